package auth

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func provedUsers(t *testing.T) *Users {
	t.Helper()
	u, err := CreateUsers(filepath.Join(t.TempDir(), "users.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []User{
		{Name: "Alice@example.com", Senders: []string{"sales@example.com"}, Passwordless: true},
		{Name: "gone@example.com", Disabled: true, Passwordless: true},
	} {
		if err := u.Add(x, Secret{}); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

func TestProved(t *testing.T) {
	users := provedUsers(t)
	for _, test := range []struct {
		name    string
		proved  Proved
		user    string
		domain  string
		want    string // user and senders
		wantErr error
	}{
		{"in the file", Proved{Format: "{user}@{domain}", Users: users}, "alice", "EXAMPLE.COM", "Alice@example.com [sales@example.com]", nil},
		{"the file's word counts first", Proved{Format: "{user}@{domain}", Users: users, Senders: []string{"@{domain}"}}, "alice", "EXAMPLE.COM", "Alice@example.com [sales@example.com]", nil},
		{"disabled", Proved{Format: "{user}@{domain}", Users: users, Senders: []string{"{user}@example.com"}}, "gone", "EXAMPLE.COM", "", ErrCredentials},
		{"not in the file", Proved{Format: "{user}@{domain}", Users: users}, "bob", "EXAMPLE.COM", "", ErrUnknownUser},
		{"not in the file, and may send", Proved{Format: "{user}@{domain}", Users: users, Senders: []string{"{user}@example.org", "@{domain}"}}, "bob", "EXAMPLE.COM", "bob@example.com [bob@example.org @example.com]", nil},
		{"no file", Proved{Senders: []string{"{user}@example.com"}}, "bob", "EXAMPLE", "bob [bob@example.com]", nil},
		{"no file and no senders", Proved{}, "bob", "", "", ErrUnknownUser},
		{"service", Proved{Senders: []string{"{user}@example.com"}}, "app/host1", "", "app/host1 [app/host1@example.com]", nil},
		{"nobody", Proved{Senders: []string{"{user}@example.com"}}, "", "", "", ErrMalformed},
		{"a name with a domain", Proved{Senders: []string{"{user}@example.com"}}, "bob@evil.example", "", "", ErrMalformed},
		{"a name that is everybody", Proved{Senders: []string{"{user}@example.com"}}, "*", "", "", ErrCredentials},
		{"a name that is no local part", Proved{Senders: []string{"{user}@example.com"}}, "a b", "", "", ErrMalformed},
		{"a quoted name", Proved{Senders: []string{"{user}@example.com"}}, `"bob"`, "", "", ErrCredentials},
	} {
		t.Run(test.name, func(t *testing.T) {
			id, err := test.proved.Identity(test.user, test.domain)
			got := ""
			if err == nil {
				got = fmt.Sprint(id.User, " ", id.Senders)
			}
			if got != test.want || !errors.Is(err, test.wantErr) {
				t.Errorf("Identity = %q, %v, want %q, %v", got, err, test.want, test.wantErr)
			}
		})
	}
}

func TestProvedCheck(t *testing.T) {
	for _, test := range []struct {
		name   string
		proved Proved
		want   bool
	}{
		{"zero", Proved{}, true},
		{"all words", Proved{Format: "{user}@{domain}", Senders: []string{"{user}@{domain}", "@{domain}", "@example.com", "*"}}, true},
		{"another word", Proved{Format: "{name}"}, false},
		{"another word in a sender", Proved{Senders: []string{"{mail}@example.com"}}, false},
		{"no address", Proved{Senders: []string{"{user}"}}, false},
		{"all of what the user says", Proved{Senders: []string{"@{user}"}}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := test.proved.Check(); (err == nil) != test.want {
				t.Errorf("Check = %v, want good: %t", err, test.want)
			}
		})
	}
}

func TestNTHash(t *testing.T) {
	// MS-NLMP section 4.2.2.1.2
	if got, want := NewNTHash("Password").hexText(), "a4f49c406510bdcab6824ee7c30fd852"; got != want {
		t.Errorf("NTHash = %s, want %s", got, want)
	}
	h := NewNTHash("Password")
	if s := fmt.Sprintf("%v %s %+v %#v", h, h, h, &h); strings.Contains(s, "a4") || strings.Contains(s, "164") {
		t.Errorf("a hash prints as %s", s)
	}
}

func TestUsersNTLM(t *testing.T) {
	u := provedUsers(t)
	add := func(x User) {
		t.Helper()
		if err := u.Add(x, NewSecret("pass word")); err != nil {
			t.Fatal(err)
		}
	}
	add(User{Name: "Bob", NTLM: true})
	add(User{Name: "off", NTLM: true, Disabled: true})
	add(User{Name: "modern"})
	for _, test := range []struct {
		name string
		want error
	}{
		{"bob", nil},
		{"BOB", nil},
		{"off", ErrCredentials},
		{"modern", ErrCredentials},
		{"alice@example.com", ErrCredentials},
		{"eve", ErrUnknownUser},
		{"a b\x00", ErrMalformed},
	} {
		id, hash, err := u.NTLM(test.name)
		if !errors.Is(err, test.want) || test.want == nil && (id.User != "Bob" || hash != NewNTHash("pass word")) {
			t.Errorf("NTLM(%s) = %+v, %v, want %v", test.name, id, err, test.want)
		}
	}
	if _, err := u.Verify(t.Context(), "alice@example.com", "x"); !errors.Is(err, ErrCredentials) {
		t.Errorf("a passwordless user's password: %v", err)
	}
	// A new password leaves no old one behind, and makes no hash where there was none.
	for _, name := range []string{"bob", "modern", "alice@example.com"} {
		if err := u.SetPassword(name, NewSecret("new word")); err != nil {
			t.Fatal(err)
		}
	}
	if _, hash, err := u.NTLM("bob"); err != nil || hash != NewNTHash("new word") {
		t.Errorf("after a new password: %v", err)
	}
	if _, _, err := u.NTLM("modern"); !errors.Is(err, ErrCredentials) {
		t.Errorf("a new password made a hash: %v", err)
	}
	if _, err := u.Verify(t.Context(), "alice@example.com", "new word"); err != nil {
		t.Errorf("a passwordless user who got a password: %v", err)
	}
	var stored []string
	for _, x := range u.List() {
		stored = append(stored, fmt.Sprintf("%s%v%t", x.Name, x.Stored, x.Passwordless))
	}
	want := "Alice@example.com[scram-sha-256 argon2id]false gone@example.com[]true Bob[scram-sha-256 argon2id nt]false off[scram-sha-256 argon2id nt]false modern[scram-sha-256 argon2id]false"
	if got := strings.Join(stored, " "); got != want {
		t.Errorf("List = %s, want %s", got, want)
	}
}

func TestUserFileWithBadHash(t *testing.T) {
	for _, test := range []struct {
		name string
		line string
		want string
	}{
		{"short hash", "{name: bob, password: PW, nt_hash: abcd}", "nt_hash"},
		{"no hexadecimal", "{name: bob, password: PW, nt_hash: zzf49c406510bdcab6824ee7c30fd852}", "nt_hash"},
		{"passwordless with a hash", "{name: bob, passwordless: true, nt_hash: a4f49c406510bdcab6824ee7c30fd852}", "passwordless"},
		{"hash alone", "{name: bob, nt_hash: a4f49c406510bdcab6824ee7c30fd852}", "no password"},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "users.yaml")
			line := strings.Replace(test.line, "PW", "'"+newArgon("x").String()+"'", 1)
			if err := os.WriteFile(file, []byte("users:\n  - "+line+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := OpenUsers(file)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "510bdca") {
				t.Errorf("OpenUsers = %v, want an error about %s that does not quote the hash", err, test.want)
			}
		})
	}
}
