package auth

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"waybill/relay/policy"
)

func TestPermissionsInTheUserFile(t *testing.T) {
	u, err := CreateUsers(filepath.Join(t.TempDir(), "users.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		u.Add(User{Name: "relay", Senders: []string{"@example.com"}, Permissions: []string{"submit", "relay"}}, NewSecret("relay")),
		u.Add(User{Name: "plain", Senders: []string{"@example.com"}}, NewSecret("plain")),
	); err != nil {
		t.Fatal(err)
	}
	if err := u.Add(User{Name: "bad", AnySender: true, Permissions: []string{"rely"}}, NewSecret("bad")); err == nil || !strings.Contains(err.Error(), `unknown permission "rely"`) {
		t.Errorf("Add with a bad permission = %v", err)
	}
	for _, test := range []struct {
		user string
		want *policy.Permissions
	}{
		{"relay", &policy.Permissions{Submit: true, Relay: true}},
		{"plain", nil},
	} {
		id, err := u.Verify(t.Context(), test.user, test.user)
		if err != nil {
			t.Fatal(err)
		}
		if got := id.Permissions; (got == nil) != (test.want == nil) || got != nil && *got != *test.want {
			t.Errorf("permissions of %s = %v, want %v", test.user, got, test.want)
		}
	}
	if got := u.List(); !slices.Equal(got[0].Permissions, []string{"submit", "relay"}) || got[1].Permissions != nil {
		t.Errorf("list = %+v", got)
	}

	table, err := parseUsers([]byte("users:\n  - {name: none, passwordless: true, permissions: []}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if p := table.users["none"].id.Permissions; p == nil || *p != (policy.Permissions{}) {
		t.Errorf("an empty list = %v, want no permission at all", p)
	}
	if _, err := parseUsers([]byte("users:\n  - {name: bad, passwordless: true, permissions: [relay, relay]}\n")); err == nil || !strings.Contains(err.Error(), "given twice") {
		t.Errorf("a permission that is there twice: %v", err)
	}
}
