package smtpin

import (
	"context"
	"encoding/base64"
	"strings"
	"testing"

	"waybill/relay/auth"
	"waybill/relay/policy"
)

// staff are users with rights of their own; their passwords are their names.
type staff map[string]auth.Identity

func (s staff) Verify(_ context.Context, user, password string) (auth.Identity, error) {
	id, ok := s[user]
	if !ok || user != password {
		return auth.Identity{}, auth.ErrCredentials
	}
	id.User = user
	return id, nil
}

func TestRightsOfUsers(t *testing.T) {
	own := []string{"@example.net"}
	users := staff{
		"plain":    {Senders: own},
		"relay":    {Senders: own, Permissions: &policy.Permissions{Submit: true, Relay: true}},
		"any":      {Permissions: &policy.Permissions{Submit: true, AnySender: true}},
		"flag":     {AnySender: true, Permissions: &policy.Permissions{Submit: true}},
		"large":    {Senders: own, Permissions: &policy.Permissions{Submit: true, BypassSize: true}},
		"nothing":  {Senders: own, Permissions: &policy.Permissions{}},
		"narrowed": {Senders: own, Permissions: &policy.Permissions{Submit: true}},
	}
	ours, err := policy.NewDomains([]policy.Domain{{Name: "ours.example", Type: policy.Authoritative}})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		relay bool // the connector allows it to everybody
		user  string
		mail  string
		rcpt  string // "" is not tried
		want  string // of the last command
	}{
		{"own address", false, "plain", "<a@example.net>", "ours.example", "250"},
		{"another address", false, "plain", "<a@example.org>", "", "550 5.7.1 sender"},
		{"no right to relay", false, "plain", "<a@example.net>", "elsewhere.example", "550 5.7.1 relay"},
		{"a right to relay", false, "relay", "<a@example.net>", "elsewhere.example", "250"},
		{"and no other sender", false, "relay", "<a@example.org>", "", "550 5.7.1 sender"},
		{"any sender", false, "any", "<a@example.org>", "ours.example", "250"},
		{"any sender, by its flag", false, "flag", "<a@example.org>", "ours.example", "250"},
		{"any sender, and no relaying", true, "any", "<a@example.org>", "elsewhere.example", "550 5.7.1 relay"},
		{"too large", false, "plain", "<a@example.net> SIZE=5000", "", "552 5.3.4"},
		{"large", false, "large", "<a@example.net> SIZE=5000", "", "250"},
		{"nothing", true, "nothing", "<a@example.net>", "", "550 5.7.1 you may not submit"},
		{"the connector's", true, "plain", "<a@example.net>", "elsewhere.example", "250"},
		{"fewer than the connector's", true, "narrowed", "<a@example.net>", "elsewhere.example", "550 5.7.1 relay"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := start(t, Options{Connectors: []Connector{open(func(c *Connector) {
				c.Auth, c.AuthBeforeTLS = auth.NewAuthenticator(auth.Passwords(users)...), true
				c.Policy = &policy.Control{Domains: ours}
				c.Permissions = policy.Permissions{Submit: true, Relay: test.relay}
				c.Limits.MessageSize = 4096
			})}})
			c := r.dial(t)
			c.talk("=>220", "EHLO x=>250")
			c.send("AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00"+test.user+"\x00"+test.user)) + "\r\n")
			c.expect("235")
			c.send("EHLO x\r\n")
			size := "SIZE 4096"
			if test.user == "large" {
				size = "SIZE|"
			}
			if got := c.reply(); !strings.Contains(got, size) {
				t.Errorf("EHLO = %q, want %s", got, size)
			}
			c.send("MAIL FROM:" + test.mail + "\r\n")
			got := c.reply()
			if test.rcpt != "" {
				if !strings.HasPrefix(got, "250") {
					t.Fatalf("MAIL = %q", got)
				}
				c.send("RCPT TO:<b@" + test.rcpt + ">\r\n")
				got = c.reply()
			}
			if !strings.HasPrefix(got, test.want) {
				t.Errorf("reply = %q, want %q", got, test.want)
			}
		})
	}
}
