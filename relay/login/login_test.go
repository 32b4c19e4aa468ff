package login

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"waybill/relay/auth"
	"waybill/relay/auth/ntlm"
	"waybill/relay/auth/oauth"
	"waybill/relay/event"
	"waybill/relay/relaytest"
	"waybill/relay/tlsconf"
)

const testSecret = "s3cret~value"

// endpoint is a token endpoint over TLS.
type endpoint struct {
	*httptest.Server
	ca string // file

	mu     sync.Mutex
	forms  []map[string]string
	answer func(w http.ResponseWriter, form map[string]string)
}

func newEndpoint(t *testing.T) *endpoint {
	t.Helper()
	e := &endpoint{ca: filepath.Join(t.TempDir(), "ca.pem")}
	e.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		form := map[string]string{}
		_ = r.ParseForm()
		for k, v := range r.PostForm {
			form[k] = strings.Join(v, " ")
		}
		e.mu.Lock()
		e.forms = append(e.forms, form)
		answer := e.answer
		e.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		answer(w, form)
	}))
	t.Cleanup(e.Close)
	e.Config.ErrorLog = nil
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: e.Certificate().Raw})
	if err := os.WriteFile(e.ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	e.set(func(w http.ResponseWriter, _ map[string]string) {
		fmt.Fprintf(w, `{"access_token":"token-%d","token_type":"Bearer","expires_in":3600}`, e.asked())
	})
	return e
}

func (e *endpoint) set(answer func(w http.ResponseWriter, form map[string]string)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answer = answer
}

func (e *endpoint) asked() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.forms)
}

func (e *endpoint) last() map[string]string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.forms[len(e.forms)-1]
}

func (e *endpoint) tokens(t *testing.T, rec *relaytest.Recorder) *Tokens {
	t.Helper()
	opts := TokenOptions{
		Connector: "out", URL: e.URL + "/tenant/oauth2/v2.0/token", ClientID: "client", Scopes: []string{"https://mail.example/.default"},
		Secret: func() (string, error) { return testSecret, nil }, CAFile: e.ca,
	}
	if rec != nil {
		opts.Emitter = event.NewEmitter("test", rec)
	}
	tk, err := NewTokens(opts)
	if err != nil {
		t.Fatal(err)
	}
	return tk
}

func refreshes(rec *relaytest.Recorder) (list []event.TokenRefreshed) {
	for _, r := range rec.Records() {
		if ev, ok := r.Event.(event.TokenRefreshed); ok {
			list = append(list, ev)
		}
	}
	return list
}

func get(t *testing.T, tk *Tokens) string {
	t.Helper()
	token, err := tk.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestTokenIsKept(t *testing.T) {
	e := newEndpoint(t)
	rec := &relaytest.Recorder{}
	tk := e.tokens(t, rec)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if token, err := tk.Get(context.Background()); token != "token-1" || err != nil {
				t.Errorf("Get = %q, %v, want token-1", token, err)
			}
		})
	}
	all.Wait()
	if n := e.asked(); n != 1 {
		t.Errorf("the endpoint was asked %d times, want once", n)
	}
	want := map[string]string{
		"grant_type": "client_credentials", "client_id": "client", "client_secret": testSecret, "scope": "https://mail.example/.default",
	}
	if got := e.last(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the endpoint was asked with %v, want %v", got, want)
	}
	if left := time.Until(tk.Expires()); left < 59*time.Minute || left > time.Hour {
		t.Errorf("the token is good for %v, want an hour", left)
	}
	tk.Refresh(t.Context()) // too early
	if n := e.asked(); n != 1 {
		t.Errorf("a fresh token was refreshed: %d requests", n)
	}
	tk.mu.Lock()
	tk.refresh = time.Now()
	tk.mu.Unlock()
	tk.Refresh(t.Context())
	if got := get(t, tk); got != "token-2" {
		t.Errorf("after the refresh Get = %q, want token-2", got)
	}
	facts := refreshes(rec)
	if len(facts) != 2 || facts[0].Error != "" || facts[0].Connector != "out" || facts[0].Expires.IsZero() {
		t.Errorf("facts = %+v, want two without error", facts)
	}
}

// TestEndpointFails wants failures to be told without secrets, the old token to
// serve as long as it is good, and pauses between requests.
func TestEndpointFails(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer func(w http.ResponseWriter, form map[string]string)
		want   string
	}{
		{"refused", func(w http.ResponseWriter, _ map[string]string) {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret provided.\r\nTrace ID: 1"}`)
		}, "no OAuth token: the endpoint answers 401: invalid_client: AADSTS7000215: Invalid client secret provided."},
		{"echoes the secret", func(w http.ResponseWriter, form map[string]string) {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `{"error":"invalid_client","error_description":"no such secret: %s"}`, form["client_secret"])
		}, "no OAuth token: the endpoint answers 400: invalid_client: no such secret: ***"},
		{"page of a proxy", func(w http.ResponseWriter, _ map[string]string) {
			w.WriteHeader(http.StatusBadGateway)
			fmt.Fprint(w, "<html>"+strings.Repeat("x", 100_000))
		}, "no OAuth token: the endpoint answers 502"},
		{"redirect", func(w http.ResponseWriter, _ map[string]string) {
			w.Header().Set("Location", "https://evil.example/")
			w.WriteHeader(http.StatusTemporaryRedirect)
		}, "no OAuth token: the token endpoint redirects"},
		{"another type", func(w http.ResponseWriter, _ map[string]string) {
			fmt.Fprint(w, `{"access_token":"x","token_type":"mac","expires_in":3600}`)
		}, `no OAuth token: the endpoint gives tokens of type "MAC"`},
		{"line end in the token", func(w http.ResponseWriter, _ map[string]string) {
			fmt.Fprint(w, `{"access_token":"x\r\ny","token_type":"Bearer","expires_in":3600}`)
		}, "no OAuth token: the endpoint gives a malformed token"},
		{"ended", func(w http.ResponseWriter, _ map[string]string) {
			fmt.Fprint(w, `{"access_token":"x","token_type":"Bearer","expires_in":1}`)
		}, "no OAuth token: the endpoint gives tokens that have ended already; is the clock right?"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := newEndpoint(t)
			rec := &relaytest.Recorder{}
			tk := e.tokens(t, rec)
			e.set(test.answer)
			_, err := tk.Get(t.Context())
			if err == nil || err.Error() != test.want {
				t.Fatalf("Get = %v, want %s", err, test.want)
			}
			n := e.asked()
			if _, again := tk.Get(t.Context()); again == nil || again.Error() != err.Error() || e.asked() != n {
				t.Errorf("a second Get = %v with %d more requests, want the same error and none", again, e.asked()-n)
			}
			tk.Refresh(t.Context())
			if e.asked() != n {
				t.Error("the endpoint is asked without a pause")
			}
			facts := refreshes(rec)
			if len(facts) != 1 || facts[0].Error != strings.TrimPrefix(test.want, "no OAuth token: ") {
				t.Errorf("facts = %+v, want the error once", facts)
			}
			// The pause ends, and the endpoint is well again.
			e.set(func(w http.ResponseWriter, _ map[string]string) {
				fmt.Fprint(w, `{"access_token":"well","token_type":"bearer"}`)
			})
			tk.mu.Lock()
			if pause := time.Until(tk.next); pause < 5*time.Second || pause > 12*time.Second {
				t.Errorf("pause = %v, want about 10s", pause)
			}
			tk.next = time.Now()
			tk.mu.Unlock()
			if got := get(t, tk); got != "well" {
				t.Errorf("Get = %q, want well", got)
			}
		})
	}
}

func TestOldTokenServesWhileEndpointIsDown(t *testing.T) {
	e := newEndpoint(t)
	tk := e.tokens(t, nil)
	first := get(t, tk)
	e.set(func(w http.ResponseWriter, _ map[string]string) { w.WriteHeader(http.StatusServiceUnavailable) })
	tk.mu.Lock()
	tk.refresh = time.Now()
	tk.mu.Unlock()
	tk.Refresh(t.Context())
	if got := get(t, tk); got != first || e.asked() != 2 {
		t.Errorf("Get = %q after %d requests, want %q after 2", got, e.asked(), first)
	}
}

func TestEndpointMustProveItself(t *testing.T) {
	e := newEndpoint(t)
	e.Config.ErrorLog = nil
	tk := e.tokens(t, nil)
	tk.client.Transport.(*http.Transport).TLSClientConfig.RootCAs = x509.NewCertPool()
	if _, err := tk.Get(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate") || e.asked() != 0 {
		t.Errorf("Get = %v after %d requests, want a certificate error and none", err, e.asked())
	}
}

func TestNewTokensRefuses(t *testing.T) {
	secret := func() (string, error) { return "x", nil }
	for _, test := range []struct {
		name string
		opts TokenOptions
		want string
	}{
		{"plain", TokenOptions{URL: "http://x/", ClientID: "a", Secret: secret}, "https"},
		{"credentials in the URL", TokenOptions{URL: "https://a:b@x/", ClientID: "a", Secret: secret}, "https"},
		{"no id", TokenOptions{URL: "https://x/", Secret: secret}, "client id"},
		{"no secret", TokenOptions{URL: "https://x/", ClientID: "a"}, "either"},
		{"no authorities", TokenOptions{URL: "https://x/", ClientID: "a", Secret: secret, CAFile: os.DevNull}, "no certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := NewTokens(test.opts); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("NewTokens = %v, want %s", err, test.want)
			}
		})
	}
}

// TestAssertion logs in at the endpoint with a certificate's key.
func TestAssertion(t *testing.T) {
	dir := t.TempDir()
	if err := tlsconf.WriteSelfSigned(filepath.Join(dir, "crt"), filepath.Join(dir, "key"), "app.example.com"); err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "crt"), filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	e := newEndpoint(t)
	tk := e.tokens(t, nil)
	tk.opts.Secret, tk.opts.Certificate = nil, func() (*tls.Certificate, error) { return &cert, nil }
	get(t, tk)
	form := e.last()
	if form["client_assertion_type"] != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" || form["client_secret"] != "" {
		t.Errorf("form = %v", form)
	}
	token, err := jwt.ParseSigned(form["client_assertion"], []jose.SignatureAlgorithm{jose.RS256, jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var claims jwt.Claims
	if err := token.Claims(leaf.PublicKey, &claims); err != nil {
		t.Fatal(err)
	}
	if err := claims.Validate(jwt.Expected{Issuer: "client", Subject: "client", AnyAudience: jwt.Audience{tk.opts.URL}, Time: time.Now()}); err != nil {
		t.Error(err)
	}
	if h := token.Headers[0].ExtraHeaders; h["x5t"] == nil || h["x5t#S256"] == nil || claims.ID == "" {
		t.Errorf("headers = %v, id %q, want thumbprints and an id", h, claims.ID)
	}
}

// talk lets a client and a server of a mechanism speak to the end.
func talk(c sasl.Client, m auth.Mechanism, p auth.Peer) (id auth.Identity, err error) {
	name, response, err := c.Start()
	if err != nil || name != m.Name {
		return id, fmt.Errorf("client of %s for %s: %w", name, m.Name, err)
	}
	s := m.Start(p, func(i auth.Identity) { id = i })
	for {
		challenge, done, err := s.Next(response)
		if err != nil || done {
			return id, err
		}
		if response, err = c.Next(challenge); err != nil {
			return id, fmt.Errorf("client: %w", err)
		}
	}
}

var testPeer = auth.Peer{Remote: netip.MustParseAddr("192.0.2.1")}

// TestXOAUTH2 logs in at our own server's side, which wants tokens of an issuer.
func TestXOAUTH2(t *testing.T) {
	key := signer(t)
	verifier := newVerifier(t, key)
	audience := "mail"
	e := newEndpoint(t)
	e.set(func(w http.ResponseWriter, _ map[string]string) {
		fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":3600}`, key.token(t, audience))
	})
	tk := e.tokens(t, nil)
	x := XOAUTH2{Username: "robot@example.com", Tokens: tk}
	login := func() (sasl.Client, auth.Identity, error) {
		t.Helper()
		c, err := x.Begin(t.Context(), "mx.example.com", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range verifier.Mechanisms() {
			if m.Name == "XOAUTH2" {
				id, err := talk(c, m, testPeer)
				return c, id, err
			}
		}
		t.Fatal("no XOAUTH2")
		return nil, auth.Identity{}, nil
	}
	if c, id, err := login(); err != nil || id.User != "robot@example.com" || c.(*xoauth2Client).refused {
		t.Errorf("login = %+v, %v, want robot@example.com", id, err)
	}
	// A token that is no longer taken is replaced once it has some age.
	audience = "another"
	tk.mu.Lock()
	tk.token = key.token(t, audience)
	tk.mu.Unlock()
	for range 2 {
		c, _, err := login()
		if _, ok := errors.AsType[*auth.Failure](err); !ok {
			t.Fatalf("login with a foreign token = %v", err)
		}
		if why := c.(*xoauth2Client).Explain(); !strings.HasPrefix(why, "the host says: status 401") {
			t.Errorf("Explain = %q, want the status", why)
		}
	}
	if e.asked() != 1 {
		t.Errorf("a fresh token was thrown away: %d requests", e.asked())
	}
	tk.mu.Lock()
	tk.got = time.Now().Add(-2 * refusedAge)
	tk.mu.Unlock()
	audience = "mail"
	_, _, _ = login()
	if _, id, err := login(); err != nil || id.User == "" || e.asked() != 2 {
		t.Errorf("after the old token was refused: %+v, %v, %d requests, want a login with a new one", id, err, e.asked())
	}
}

func TestExplain(t *testing.T) {
	for _, test := range []struct {
		name, challenge, want string
	}{
		{"Google", `{"status":"401","schemes":"bearer mac","scope":"https://mail.google.com/"}`, "the host says: status 401, scope https://mail.google.com/"},
		{"number", `{"status":400}`, "the host says: status 400"},
		{"nothing", ``, ""},
		{"no status", `{"token":"eyJ"}`, ""},
		{"list", `{"status":["401"]}`, ""},
		{"controls", `{"status":"4\u0000\n1"}`, "the host says: status 4  1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := explain([]byte(test.challenge)); got != test.want {
				t.Errorf("explain = %q, want %q", got, test.want)
			}
		})
	}
}

func FuzzExplain(f *testing.F) {
	f.Add([]byte(`{"status":"401","schemes":"bearer","scope":"x"}`))
	f.Add([]byte(`{"status":400}`))
	for _, c := range realChallenges(f) {
		f.Add(c)
	}
	f.Fuzz(func(t *testing.T, challenge []byte) {
		text := explain(challenge)
		if len(text) > maxExplained || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' }) {
			t.Errorf("explain = %q", text)
		}
	})
}

// TestNTLM logs in at our own server's side, with channel binding.
func TestNTLM(t *testing.T) {
	server, client, leaf := relaytest.Handshake(t, "mx1.example.com")
	_, other, _ := relaytest.Handshake(t, "evil.example.com")
	other.PeerCertificates = nil
	backend := ntlm.Mechanism(ntlm.Local{Hostname: "mx1.example.com", Lookup: func(name string) (auth.Identity, auth.NTHash, error) {
		if name == "bob" {
			return auth.Identity{User: "bob"}, auth.NewNTHash("pass word"), nil
		}
		return auth.Identity{}, auth.NTHash{}, auth.ErrUnknownUser
	}})
	client.PeerCertificates = []*x509.Certificate{leaf}
	foreign, err := tlsconf.SelfSigned("evil.example.com")
	if err != nil {
		t.Fatal(err)
	}
	evil, err := x509.ParseCertificate(foreign.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name           string
		user, password string
		state          *tls.ConnectionState
		policy         auth.Binding
		want           string
	}{
		{"good", "bob", "pass word", &client, auth.BindingRequire, ""},
		{"not bound", "bob", "pass word", nil, auth.BindingAllow, ""},
		{"not bound where it must be", "bob", "pass word", &other, auth.BindingRequire, auth.ReasonBinding},
		{"bound to who is in the middle", "bob", "pass word", &tls.ConnectionState{PeerCertificates: []*x509.Certificate{evil}}, auth.BindingAllow, auth.ReasonBinding},
		{"wrong password", "bob", "password", &client, auth.BindingRequire, auth.ReasonCredentials},
		{"nobody", "eve", "pass word", &client, auth.BindingRequire, auth.ReasonUnknownUser},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := NTLM{Username: test.user, Password: func() (string, error) { return test.password, nil }}
			c, err := n.Begin(t.Context(), "mx1.example.com", test.state)
			if err != nil {
				t.Fatal(err)
			}
			p := testPeer
			p.TLS, p.Certificate, p.Binding = &server, leaf, test.policy
			_, err = talk(c, backend, p)
			got := ""
			if f, ok := errors.AsType[*auth.Failure](err); ok {
				got = f.Reason
			} else if err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("reason = %q, want %q", got, test.want)
			}
			if _, err := c.Next(nil); err == nil {
				t.Error("the client goes on after the end")
			}
		})
	}
	n := NTLM{Password: func() (string, error) { return "", errors.New("no file") }}
	if _, err := n.Begin(t.Context(), "", nil); err == nil {
		t.Error("a login without a password begins")
	}
}

func FuzzNTLM(f *testing.F) {
	info := "\x02\x00\x04\x00A\x00B\x00\x07\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0a\x00\x10\x000123456789abcdef\x00\x00\x00\x00"
	head := "NTLMSSP\x00\x02\x00\x00\x00\x00\x00\x00\x00\x38\x00\x00\x00\x05\x82\x89\xa2ABCDEFGH\x00\x00\x00\x00\x00\x00\x00\x00" +
		string([]byte{byte(len(info)), 0, byte(len(info)), 0, 56, 0, 0, 0}) + "\x0a\x00\x00\x00\x00\x00\x00\x0f"
	f.Add([]byte(head + info))
	f.Add([]byte(head))
	for _, c := range realChallenges(f) {
		f.Add(c)
	}
	f.Fuzz(func(t *testing.T, challenge []byte) {
		c := ntlmClient{user: `D\u`, password: "p", binding: [16]byte{1}}
		first, err := c.Next(nil)
		if err != nil || len(first) < 16 {
			t.Fatal("no first message")
		}
		bound, err := bind(challenge, c.binding)
		if err == nil && len(challenge) >= challengeLeast && len(bound) < len(challenge) {
			t.Fatal("the challenge became shorter")
		}
		_, _ = c.Next(challenge)
	})
}

// keyPair signs tokens of an issuer.
type keyPair struct{ key *rsa.PrivateKey }

func signer(t *testing.T) keyPair {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return keyPair{key}
}

func (k keyPair) token(t *testing.T, audience string) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: k.key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(s).Claims(map[string]any{
		"iss": "tests", "aud": audience, "sub": "robot@example.com", "exp": time.Now().Add(time.Hour).Unix(),
	}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func newVerifier(t *testing.T, k keyPair) *oauth.Verifier {
	t.Helper()
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: k.key.Public(), KeyID: "one"}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(file, keys, 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := oauth.New(oauth.Options{Issuers: []oauth.Issuer{{Issuer: "tests", Audiences: []string{"mail"}, UserClaim: "sub", JWKSFile: file}}})
	if err != nil {
		t.Fatal(err)
	}
	return v
}
