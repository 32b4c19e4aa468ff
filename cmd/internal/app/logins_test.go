package app

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// bearer is a client of XOAUTH2.
type bearer string

func (b bearer) Start() (mechanism string, initial []byte, err error) {
	return "XOAUTH2", []byte("user=app\x01auth=Bearer " + string(b) + "\x01\x01"), nil
}

func (bearer) Next([]byte) ([]byte, error) { return []byte{1}, nil }

// TestTokensFollowReload wants what a token must say to change with a reload, and
// sessions that are open to stay.
func TestTokensFollowReload(t *testing.T) {
	f := newFixture(t, "127.0.0.1:9")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "one"}}})
	if err != nil {
		t.Fatal(err)
	}
	f.file("keys.json", string(keys))
	conf := strings.NewReplacer(
		"users: {file: DIR/users.yaml}", `users: {file: DIR/users.yaml, oauth: {issuers: [{issuer: tests, audiences: [AUDIENCE], user_claim: sub, jwks_file: DIR/keys.json}]}}`,
		"usage: client,", "usage: client, auth: {mechanisms: [PLAIN, XOAUTH2]},",
	).Replace(standard)
	f.write(strings.ReplaceAll(conf, "AUDIENCE", "first"))
	r := f.start()
	login := func(audience string) (*smtp.Client, error) {
		t.Helper()
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: key}, nil)
		if err != nil {
			t.Fatal(err)
		}
		token, err := jwt.Signed(s).Claims(map[string]any{"iss": "tests", "aud": audience, "sub": "app", "exp": time.Now().Add(time.Hour).Unix()}).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		c, err := smtp.DialStartTLS(r.Receive()["submission"][0].String(), &tls.Config{RootCAs: r.roots, ServerName: "localhost"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c, c.Auth(bearer(token))
	}
	open, err := login("first")
	if err != nil {
		t.Fatalf("the first audience: %v", err)
	}
	if _, err := login("second"); err == nil {
		t.Error("a token for another audience is taken")
	}
	f.write(strings.ReplaceAll(conf, "AUDIENCE", "second"))
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := login("second"); err != nil {
		t.Errorf("the second audience after the reload: %v", err)
	}
	if _, err := login("first"); err == nil {
		t.Error("the first audience is taken after the reload")
	}
	if err := open.Mail("app@example.com", nil); err != nil {
		t.Errorf("the session of before: %v", err)
	}
	f.file("keys.json", "{}")
	f.write(strings.ReplaceAll(conf, "AUDIENCE", "third"))
	if err := r.Reload(); err == nil || !strings.Contains(err.Error(), "no key") {
		t.Errorf("a reload with broken keys = %v", err)
	}
	if _, err := login("second"); err != nil {
		t.Errorf("the second audience after a reload that failed: %v", err)
	}
}
