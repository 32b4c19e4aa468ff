package app

import (
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ntlmssp "github.com/Azure/go-ntlmssp"
	"github.com/emersion/go-smtp"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/keytab"

	"waybill/relay/auth"
)

// ntlmClient is a sasl.Client that others wrote the hard part of.
type ntlmClient struct{ user, password string }

func (c ntlmClient) Start() (mechanism string, ir []byte, err error) {
	ir, err = ntlmssp.NewNegotiateMessage("", "")
	return "NTLM", ir, err
}

func (c ntlmClient) Next(challenge []byte) ([]byte, error) {
	return ntlmssp.NewAuthenticateMessage(challenge, c.user, c.password, nil)
}

func TestIntegratedLogins(t *testing.T) {
	f := newFixture(t, "127.0.0.1:9")
	users, err := auth.OpenUsers(filepath.Join(f.dir, "users.yaml"))
	if err == nil {
		err = users.Add(auth.User{Name: "old", AnySender: true, NTLM: true}, auth.NewSecret("pass word"))
	}
	if err != nil {
		t.Fatal(err)
	}
	keys := keytab.New()
	writeKeys := func() {
		t.Helper()
		b, err := keys.Marshal()
		next := filepath.Join(f.dir, "next.keytab")
		if err = errors.Join(err, os.WriteFile(next, b, 0o600), os.Rename(next, filepath.Join(f.dir, "smtp.keytab"))); err != nil {
			t.Fatal(err)
		}
	}
	addKey := func(version uint8) {
		t.Helper()
		if err := keys.AddEntry("smtp/relay.test", "EXAMPLE.COM", "pass word", time.Now(), version, etypeID.AES128_CTS_HMAC_SHA1_96); err != nil {
			t.Fatal(err)
		}
		writeKeys()
	}
	addKey(1)
	f.write(strings.NewReplacer(
		"users: {file: DIR/users.yaml}", "users: {file: DIR/users.yaml, ntlm: {users: true}, kerberos: {keytab_file: DIR/smtp.keytab}}",
		"usage: client,", "usage: client, auth: {mechanisms: [PLAIN, GSSAPI, NTLM]},").Replace(standard))
	r := f.start(func(a *App) { a.every = 20 * time.Millisecond })
	dial := func() *smtp.Client {
		t.Helper()
		c, err := smtp.DialStartTLS(r.Receive()["submission"][0].String(), &tls.Config{RootCAs: f.roots, ServerName: "localhost"})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	login := func(user, password string) error {
		c := dial()
		defer c.Close()
		return c.Auth(ntlmClient{user, password})
	}
	c := dial()
	if _, words := c.Extension("AUTH"); words != "GSSAPI PLAIN NTLM" {
		t.Errorf("AUTH is offered with %q, want GSSAPI PLAIN NTLM", words)
	}
	_ = c.Close()
	if err := login("old", "pass word"); err != nil {
		t.Errorf("login with NTLM: %v", err)
	}
	for _, user := range []string{"old", "app", "nobody"} {
		if err := login(user, "wrong"); err == nil || !strings.Contains(err.Error(), "authentication failed") {
			t.Errorf("login as %s with a wrong password: %v", user, err)
		}
	}
	said := func(what string) {
		t.Helper()
		eventually(t, "the log to say: "+what, func() error {
			if err := r.log.Sync(); err != nil {
				return err
			}
			b, err := os.ReadFile(filepath.Join(f.dir, "waybill.log"))
			if err == nil && !strings.Contains(string(b), what) {
				err = errors.New("it does not")
			}
			return err
		})
	}
	addKey(2)
	said("keytab read again")
	keys = keytab.New()
	writeKeys()
	said("the keys stay as they were")
	addKey(3)
	if err := r.Reload(); err != nil {
		t.Errorf("reload: %v", err)
	}
	if err := login("old", "pass word"); err != nil {
		t.Errorf("login with NTLM after a reload: %v", err)
	}
}
