package app

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"waybill/relay/auth"
	"waybill/relay/relaytest"
	"waybill/relay/tlsconf"
)

// TestLoginsAtNextHops sends mail through a relay of our own that wants a login:
// by a token from an endpoint, by NTLM, and by a certificate.
func TestLoginsAtNextHops(t *testing.T) {
	const secret = "client~secret"
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	endpoint := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.PostFormValue("client_secret") != secret {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"error":"invalid_client"}`)
			return
		}
		token, err := jwt.Signed(signer).Claims(map[string]any{
			"iss": "tests", "aud": "relay", "sub": "robot", "exp": time.Now().Add(time.Hour).Unix(), "padding": strings.Repeat("x", 1500),
		}).Serialize()
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":3600}`, token)
	}))
	defer endpoint.Close()

	last := relaytest.NewSmartHost(t)
	server := newFixture(t, last.Addr())
	users, err := auth.OpenUsers(filepath.Join(server.dir, "users.yaml"))
	if err == nil {
		err = users.Add(auth.User{Name: "old", AnySender: true, NTLM: true}, auth.NewSecret("pass word"))
	}
	keys, err2 := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "one"}}})
	if err = errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	server.file("keys.json", string(keys))
	server.write(strings.NewReplacer(
		"users: {file: DIR/users.yaml}", `users: {file: DIR/users.yaml, ntlm: {users: true}, oauth: {issuers: [{issuer: tests, audiences: [relay], user_claim: sub, senders: ["@source.test"], jwks_file: DIR/keys.json}]}, certificates: [{dns: device.test, user: device, senders: ["@source.test"]}]}`,
		"usage: client,", "usage: client, auth: {mechanisms: [PLAIN, NTLM, XOAUTH2, EXTERNAL], channel_binding: require, certificate: true}, tls: {client_certificate: request, client_ca_file: DIR/device.crt},",
	).Replace(standard))

	client := newFixture(t, "")
	share := func(from *fixture, name string, to *fixture, as string) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(from.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		to.file(as, string(b))
	}
	share(server, "tls.crt", client, "ca.pem")
	client.file("token-ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: endpoint.Certificate().Raw})))
	client.file("secret", secret+"\n")
	client.file("password", "pass word\n")
	device := filepath.Join(client.dir, "device")
	if err := tlsconf.WriteSelfSigned(device+".crt", device+".key", "device.test"); err != nil {
		t.Fatal(err)
	}
	share(client, "device.crt", server, "device.crt")
	srv := server.start()
	client.host = strings.Replace(srv.Receive()["submission"][0].String(), "127.0.0.1", "localhost", 1)
	client.write(strings.NewReplacer(
		`  - {name: out, address_spaces: [{space: "*"}], smart_hosts: ["HOST"], tls: {level: none}, retry: {schedule: [1s]}}`,
		fmt.Sprintf(`  - {name: token, address_spaces: [{space: "token.test"}], smart_hosts: ["HOST"], tls: {level: verify_name, ca_file: DIR/ca.pem}, retry: {schedule: [1s]},
      auth: {mechanism: XOAUTH2, username: robot, token_url: "%s/token", token_ca_file: DIR/token-ca.pem, client_id: relay, client_secret_file: DIR/secret}}
  - {name: ntlm, address_spaces: [{space: "ntlm.test"}], smart_hosts: ["HOST"], tls: {level: verify_name, ca_file: DIR/ca.pem}, retry: {schedule: [1s]},
      auth: {mechanism: NTLM, username: old, password_file: DIR/password}}
  - {name: device, address_spaces: [{space: "device.test"}], smart_hosts: ["HOST"], tls: {level: verify_name, ca_file: DIR/ca.pem, client_certificate: device}, retry: {schedule: [1s]}}`, endpoint.URL),
		"certificates:\n", "certificates:\n  device: {cert_file: DIR/device.crt, key_file: DIR/device.key}\n",
	).Replace(standard))
	cl := client.start(func(a *App) { a.every = 20 * time.Millisecond })
	for _, domain := range []string{"token.test", "ntlm.test", "device.test"} {
		cl.submit("app", "rcpt@"+domain)
	}
	got := map[string]bool{}
	for _, m := range last.WaitFor(t, 3) {
		got[m.RcptArgs[0]] = true
	}
	if len(got) != 3 {
		t.Errorf("recipients that arrived: %v", got)
	}
	logOf := func(r *running, dir string) string {
		t.Helper()
		if err := r.log.Sync(); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, "waybill.log"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	theirs := logOf(srv, server.dir)
	for _, want := range []string{`"auth_mechanism":"XOAUTH2"`, `"auth_mechanism":"NTLM"`, `"auth_user":"device"`} {
		if !strings.Contains(theirs, want) {
			t.Errorf("the next hop knows nothing of %s", want)
		}
	}
	if _, text := cl.get("/metrics"); !strings.Contains(text, `waybill_oauth_token_refreshes_total{connector="token",result="ok"} 1`) ||
		!strings.Contains(text, `waybill_oauth_token_expiry_timestamp_seconds{connector="token"} 1.`) {
		t.Error("the metrics know nothing of the token")
	}

	// A token outlives a reload; then the host does not take it any more, and says why.
	if err := cl.Reload(); err != nil {
		t.Fatal(err)
	}
	conf, err := os.ReadFile(filepath.Join(server.dir, "waybill.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	server.write(strings.ReplaceAll(string(conf), "audiences: [relay]", "audiences: [nobody]"))
	if err := srv.Reload(); err != nil {
		t.Fatal(err)
	}
	id := cl.submit("app", "late@token.test")
	eventually(t, "the refusal to be in the log", func() error {
		text := logOf(cl, client.dir)
		for line := range strings.Lines(text) {
			if strings.Contains(line, id) && strings.Contains(line, "status 401") && strings.Contains(line, `"class":"auth"`) {
				return nil
			}
		}
		return errors.New("it is not")
	})
	for _, dir := range []string{client.dir, server.dir} {
		b, err := os.ReadFile(filepath.Join(dir, "waybill.log"))
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{secret, "eyJ", "pass word"} {
			if strings.Contains(string(b), word) {
				t.Errorf("the log of %s has %q", dir, word)
			}
		}
	}
}
