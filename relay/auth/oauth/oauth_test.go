package oauth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"waybill/relay/auth"
	"waybill/relay/event"
	"waybill/relay/relaytest"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// signers are keys of an issuer, made once.
var signers = sync.OnceValue(func() map[string]crypto.Signer {
	r, err1 := rsa.GenerateKey(rand.Reader, 2048)
	weak, err2 := rsa.GenerateKey(rand.Reader, 1024) // Go has a lower bound of 1024
	other, err3 := rsa.GenerateKey(rand.Reader, 2048)
	e, err4 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, ed, err5 := ed25519.GenerateKey(rand.Reader)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		panic(err)
	}
	return map[string]crypto.Signer{"rsa": r, "weak": weak, "other": other, "ec": e, "ed": ed}
})

// set is a JSON Web Key Set of the named keys, with what does not belong there.
func set(t testing.TB, names ...string) []byte {
	t.Helper()
	list := []any{
		map[string]string{"kty": "oct", "kid": "secret", "k": base64.RawURLEncoding.EncodeToString([]byte("secret"))},
		map[string]string{"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
		map[string]string{"kty": "new", "kid": "unknown"},
	}
	for _, name := range names {
		list = append(list, jose.JSONWebKey{Key: signers()[name].Public(), KeyID: name})
	}
	list = append(list, jose.JSONWebKey{Key: signers()["other"].Public(), KeyID: "encryption", Use: "enc"})
	b, err := json.Marshal(map[string]any{"keys": list})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// token signs claims.
type token struct {
	key    string
	kid    string
	alg    jose.SignatureAlgorithm
	typ    string
	change map[string]any // to the claims; nil takes one away
}

const issuerURL = "https://login.example.com/"

func (k token) String() string {
	if k.key == "" {
		k.key, k.alg = "rsa", jose.RS256
	}
	if k.kid == "" {
		k.kid = k.key
	}
	claims := map[string]any{
		"iss": issuerURL, "aud": []string{"waybill", "other"}, "sub": "8a7b", "email": "Bob@example.com", "preferred_username": "bob",
		"exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(), "scope": "openid mail.send", "tid": "tenant",
		"addresses": []string{"bob@example.com", "@lists.example.com", "*", "nonsense"},
	}
	for name, val := range k.change {
		if claims[name] = val; val == nil {
			delete(claims, name)
		}
	}
	opts := (&jose.SignerOptions{}).WithHeader("kid", k.kid)
	if k.typ != "" {
		opts.WithType(jose.ContentType(k.typ))
	}
	var key any = []byte(strings.Repeat("secret", 20))
	if s := signers()[k.key]; s != nil {
		key = s
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: k.alg, Key: key}, opts)
	if err != nil {
		panic(err)
	}
	text, err := jwt.Signed(s).Claims(claims).Serialize()
	if err != nil {
		panic(err)
	}
	return text
}

// users knows ann, and that mallory is disabled.
type users struct{}

func (users) Lookup(user string) (auth.Identity, error) {
	switch user {
	case "ann":
		return auth.Identity{User: "Ann", Senders: []string{"ann@example.com"}}, nil
	case "mallory":
		return auth.Identity{}, fmt.Errorf("%w: disabled", auth.ErrCredentials)
	}
	return auth.Identity{}, auth.ErrUnknownUser
}

func file(t testing.TB, data []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func verifier(t testing.TB, change ...func(*Issuer)) *Verifier {
	t.Helper()
	i := Issuer{Issuer: issuerURL, Audiences: []string{"waybill"}, JWKSFile: file(t, set(t, "rsa", "ec", "ed", "weak")), UserClaim: "preferred_username"}
	for _, f := range change {
		f(&i)
	}
	v, err := New(Options{Issuers: []Issuer{i}, Users: users{}})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// signedWith replaces the header of a token, so that its signature is forged.
func forged(header string) string {
	part := strings.Split(token{}.String(), ".")
	return base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + part[1] + "." + part[2]
}

func TestVerify(t *testing.T) {
	claims := func(change map[string]any) string { return token{change: change}.String() }
	public, err := json.Marshal(jose.JSONWebKey{Key: signers()["other"].Public()})
	if err != nil {
		t.Fatal(err)
	}
	email := func(i *Issuer) { i.UserClaim = "email" }
	for _, test := range []struct {
		name   string
		token  string
		change func(*Issuer)
		want   string // user and senders, or the reason
	}{
		{"RS256", token{}.String(), nil, "bob []"},
		{"PS256", token{key: "rsa", alg: jose.PS256}.String(), nil, "bob []"},
		{"ES256", token{key: "ec", alg: jose.ES256}.String(), nil, "bob []"},
		{"EdDSA", token{key: "ed", alg: jose.EdDSA}.String(), nil, "bob []"},
		{"access token by its type", token{key: "rsa", alg: jose.RS256, typ: "at+jwt"}.String(), nil, "bob []"},
		{"another type", token{key: "rsa", alg: jose.RS256, typ: "logout+jwt"}.String(), nil, "token"},
		{"user of the file", claims(map[string]any{"preferred_username": "ann"}), nil, "Ann [ann@example.com]"},
		{"disabled user of the file", claims(map[string]any{"preferred_username": "mallory"}), nil, "credentials"},
		{"only users of the file", token{}.String(), func(i *Issuer) { i.KnownUsers = true }, "unknown_user"},
		{"senders by claim", token{}.String(), func(i *Issuer) { i.SendersClaim = "addresses" }, "bob [bob@example.com @lists.example.com]"},
		{"senders of the issuer", token{}.String(), func(i *Issuer) { i.Senders = []string{"@example.com"} }, "bob [@example.com]"},
		{"subject", token{}.String(), func(i *Issuer) { i.UserClaim = "sub" }, "8a7b []"},
		{"address", token{}.String(), email, "Bob@example.com []"},
		{"verified address", claims(map[string]any{"email_verified": true}), email, "Bob@example.com []"},
		{"address that is not verified", claims(map[string]any{"email_verified": false}), email, "token"},
		{"no user claim", claims(map[string]any{"preferred_username": nil}), nil, "token"},
		{"user claim is no text", claims(map[string]any{"preferred_username": 7}), nil, "token"},
		{"user claim is no name", claims(map[string]any{"preferred_username": "a\x00b"}), nil, "token"},
		{"audience as text", claims(map[string]any{"aud": "waybill"}), nil, "bob []"},
		{"other audience", claims(map[string]any{"aud": "other"}), nil, "token"},
		{"no audience", claims(map[string]any{"aud": nil}), nil, "token"},
		{"other issuer", claims(map[string]any{"iss": "https://evil.example.com/"}), nil, "token"},
		{"issuer without the slash", claims(map[string]any{"iss": "https://login.example.com"}), nil, "token"},
		{"no issuer", claims(map[string]any{"iss": nil}), nil, "token"},
		{"expired", claims(map[string]any{"exp": time.Now().Add(-2 * time.Minute).Unix()}), nil, "expired"},
		{"expired within the skew", claims(map[string]any{"exp": time.Now().Add(-30 * time.Second).Unix()}), nil, "bob []"},
		{"expired within a larger skew", claims(map[string]any{"exp": time.Now().Add(-2 * time.Minute).Unix()}), func(i *Issuer) { i.Skew = 5 * time.Minute }, "bob []"},
		{"no end", claims(map[string]any{"exp": nil}), nil, "token"},
		{"end is no number", claims(map[string]any{"exp": "soon"}), nil, "token"},
		{"not yet", claims(map[string]any{"nbf": time.Now().Add(5 * time.Minute).Unix()}), nil, "token"},
		{"issued in the future", claims(map[string]any{"iat": time.Now().Add(5 * time.Minute).Unix()}), nil, "token"},
		{"scope", token{}.String(), func(i *Issuer) { i.Scopes = []string{"mail.send"} }, "bob []"},
		{"scopes in a list", claims(map[string]any{"scope": nil, "scp": []string{"mail.send"}}), func(i *Issuer) { i.Scopes = []string{"mail.send"} }, "bob []"},
		{"missing scope", token{}.String(), func(i *Issuer) { i.Scopes = []string{"mail.send", "mail.read"} }, "token"},
		{"part of a scope", token{}.String(), func(i *Issuer) { i.Scopes = []string{"mail"} }, "token"},
		{"claim", token{}.String(), func(i *Issuer) { i.Claims = map[string]string{"tid": "tenant"} }, "bob []"},
		{"claim in a list", claims(map[string]any{"roles": []string{"a", "b"}}), func(i *Issuer) { i.Claims = map[string]string{"roles": "b"} }, "bob []"},
		{"other claim", token{}.String(), func(i *Issuer) { i.Claims = map[string]string{"tid": "other"} }, "token"},
		{"key of somebody else", token{key: "other", alg: jose.RS256, kid: "rsa"}.String(), nil, "token"},
		{"key for encryption", token{key: "other", alg: jose.RS256, kid: "encryption"}.String(), nil, "token"},
		{"key that is not there", token{key: "rsa", alg: jose.RS256, kid: "new"}.String(), nil, "token"},
		{"weak key", token{key: "weak", alg: jose.RS256}.String(), nil, "token"},
		{"secret of the set", token{key: "secret", alg: jose.HS256}.String(), nil, "token"},
		{"algorithm that is not configured", token{key: "ec", alg: jose.ES256}.String(), func(i *Issuer) { i.Algorithms = []string{"RS256"} }, "token"},
		{"none", forged(`{"alg":"none"}`), nil, "token"},
		{"none in capitals", forged(`{"alg":"NONE"}`), nil, "token"},
		{"HS256", forged(`{"alg":"HS256","kid":"rsa"}`), nil, "token"},
		{"HS256 with the public key", token{key: "public", kid: "rsa", alg: jose.HS256}.String(), nil, "token"},
		{"ES256 with an RSA key", forged(`{"alg":"ES256","kid":"rsa"}`), nil, "token"},
		{"key in the header", forged(`{"alg":"RS256","jwk":` + string(public) + `}`), nil, "token"},
		{"unknown critical header", forged(`{"alg":"RS256","kid":"rsa","crit":["x"],"x":1}`), nil, "token"},
		{"changed claims", strings.Replace(token{}.String(), ".", ".e", 1), nil, "malformed"},
		{"no token", "x", nil, "malformed"},
		{"empty", "", nil, "malformed"},
		{"too long", strings.Repeat("a", maxToken+1), nil, "malformed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			change := func(*Issuer) {}
			if test.change != nil {
				change = test.change
			}
			id, err := verifier(t, change).Verify(t.Context(), test.token)
			got := fmt.Sprintf("%s %v", id.User, id.Senders)
			if err != nil {
				got = auth.Fail("", err).Reason
				if id.User != "" {
					t.Errorf("a failure gave the identity %q", id.User)
				}
				if part := strings.Split(test.token, "."); len(part) == 3 && strings.Contains(err.Error(), part[2]) {
					t.Errorf("the error has the signature: %v", err)
				}
			}
			if got != test.want {
				t.Errorf("Verify() = %s (%v), want %s", got, err, test.want)
			}
		})
	}
}

func TestExchange(t *testing.T) {
	v := verifier(t, func(i *Issuer) { i.Scopes = []string{"mail.send"} })
	good, bad := token{}.String(), token{change: map[string]any{"aud": "other"}}.String()
	noScope := token{change: map[string]any{"scope": "x"}}.String()
	oauthbearer := func(header, tok string) string {
		return header + "\x01host=mx.example.com\x01port=587\x01auth=Bearer " + tok + "\x01\x01"
	}
	for _, test := range []struct {
		name    string
		old     bool
		message string
		want    string // what the client is told, "ok", or the reason of a failure that is not told
		reason  string
	}{
		{"OAUTHBEARER", false, oauthbearer("n,a=bob,", good), "ok", ""},
		{"OAUTHBEARER without a name", false, oauthbearer("n,,", good), "ok", ""},
		{"client could bind", false, oauthbearer("y,,", good), "ok", ""},
		{"name in another case", false, oauthbearer("n,a=BOB,", good), "ok", ""},
		{"scheme in another case", false, "n,,\x01auth=bearer  " + good + "\x01\x01", "ok", ""},
		{"another name", false, oauthbearer("n,a=ann,", good), `{"status":"invalid_token","scope":"mail.send"}`, auth.ReasonCredentials},
		{"bad token", false, oauthbearer("n,a=bob,", bad), `{"status":"invalid_token","scope":"mail.send"}`, auth.ReasonToken},
		{"no scope", false, oauthbearer("n,a=bob,", noScope), `{"status":"insufficient_scope","scope":"mail.send"}`, auth.ReasonToken},
		{"asks what there is", false, "n,,\x01auth=\x01\x01", `{"status":"invalid_request","scope":"mail.send"}`, auth.ReasonMalformed},
		{"binds", false, oauthbearer("p=tls-exporter,,", good), `{"status":"invalid_request","scope":"mail.send"}`, auth.ReasonMalformed},
		{"no header", false, "auth=Bearer x\x01\x01", `{"status":"invalid_request","scope":"mail.send"}`, auth.ReasonMalformed},
		{"bad escape", false, oauthbearer("n,a=bo=b,", good), `{"status":"invalid_request","scope":"mail.send"}`, auth.ReasonMalformed},
		{"key twice", false, "n,,\x01auth=Bearer x\x01auth=Bearer " + good + "\x01\x01", `{"status":"invalid_request","scope":"mail.send"}`, auth.ReasonMalformed},
		{"no end", false, "n,,\x01auth=Bearer " + good + "\x01", `{"status":"invalid_request","scope":"mail.send"}`, auth.ReasonMalformed},
		{"empty", false, "", `{"status":"invalid_request","scope":"mail.send"}`, auth.ReasonMalformed},
		{"XOAUTH2", true, "user=bob\x01auth=Bearer " + good + "\x01\x01", "ok", ""},
		{"XOAUTH2, no name", true, "user=\x01auth=Bearer " + good + "\x01\x01", "ok", ""},
		{"XOAUTH2, another name", true, "user=ann\x01auth=Bearer " + good + "\x01\x01", `{"status":"401","schemes":"bearer","scope":"mail.send"}`, auth.ReasonCredentials},
		{"XOAUTH2, bad token", true, "user=bob\x01auth=Bearer " + bad + "\x01\x01", `{"status":"401","schemes":"bearer","scope":"mail.send"}`, auth.ReasonToken},
		{"XOAUTH2, other scheme", true, "user=bob\x01auth=Basic " + good + "\x01\x01", `{"status":"400","schemes":"bearer","scope":"mail.send"}`, auth.ReasonMalformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := v.Mechanisms()[0]
			if test.old {
				m = v.Mechanisms()[1]
			}
			var id auth.Identity
			server := m.Start(auth.Peer{}, func(i auth.Identity) { id = i })
			if challenge, done, err := server.Next(nil); len(challenge) > 0 || done || err != nil {
				t.Fatalf("the begin = %q, %t, %v", challenge, done, err)
			}
			challenge, done, err := server.Next([]byte(test.message))
			if test.want == "ok" {
				if !done || err != nil || id.User != "bob" {
					t.Errorf("exchange = %+v, %t, %v", id, done, err)
				}
				return
			}
			if string(challenge) != test.want || done || err != nil {
				t.Errorf("told %s, %t, %v, want %s", challenge, done, err, test.want)
			}
			refuser, ok := server.(auth.Refuser)
			if !ok || refuser.Refused() == nil || refuser.Refused().Reason != test.reason {
				t.Fatalf("refused with %+v, want %s", refuser.Refused(), test.reason)
			}
			_, done, err = server.Next([]byte("\x01"))
			if f, ok := errors.AsType[*auth.Failure](err); done || !ok || f.Reason != test.reason || id.User != "" {
				t.Errorf("after the answer: %t, %v, %q", done, err, id.User)
			}
			if _, done, err = server.Next([]byte(test.message)); done || err == nil {
				t.Error("the exchange goes on after its end")
			}
		})
	}
}

// keyServer shows a key set that can change and fail.
type keyServer struct {
	*httptest.Server
	asked atomic.Int32
	data  atomic.Pointer[[]byte]
	path  atomic.Pointer[string] // where a redirect goes
}

func serveKeys(t *testing.T, names ...string) *keyServer {
	k := &keyServer{}
	k.show(set(t, names...))
	k.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k.asked.Add(1)
		if to := k.path.Load(); to != nil {
			http.Redirect(w, r, *to, http.StatusFound)
			return
		}
		if issuer, ok := strings.CutSuffix(r.URL.Path, "/.well-known/openid-configuration"); ok {
			fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, k.URL+issuer, k.URL+"/keys")
			return
		}
		if d := k.data.Load(); d != nil {
			_, _ = w.Write(*d)
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(k.Close)
	return k
}

func (k *keyServer) show(data []byte) { k.data.Store(&data) }
func (k *keyServer) fail()            { k.data.Store(nil) }

// age makes the keys look as if they had been read some time ago.
func age(v *Verifier, by time.Duration) {
	for _, i := range v.order {
		i.keys.mu.Lock()
		i.keys.tried = i.keys.tried.Add(-by)
		i.keys.mu.Unlock()
	}
}

func TestKeysFromURL(t *testing.T) {
	s := serveKeys(t, "rsa")
	rec := &relaytest.Recorder{}
	v, err := New(Options{Emitter: rec.Emitter(), Issuers: []Issuer{{Issuer: issuerURL, Audiences: []string{"waybill"}, JWKSURL: s.URL, UserClaim: "sub"}}})
	if err != nil {
		t.Fatal(err)
	}
	try := func(want string, tok token) {
		t.Helper()
		_, err := v.Verify(t.Context(), tok.String())
		got := "ok"
		if err != nil {
			got = auth.Fail("", err).Reason
		}
		if got != want {
			t.Errorf("Verify() = %s (%v), want %s", got, err, want)
		}
	}
	asked := func(want int32) {
		t.Helper()
		if n := s.asked.Load(); n != want {
			t.Errorf("the keys were asked for %d times, want %d", n, want)
		}
	}
	first, second := token{}, token{key: "ec", alg: jose.ES256}
	try("ok", first) // reads them
	try("ok", first)
	asked(1)
	s.show(set(t, "rsa", "ec"))
	for range 20 { // no token makes us ask again so soon
		try("token", second)
	}
	asked(1)
	age(v, askEvery)
	try("ok", second)
	asked(2)
	v.Refresh(t.Context()) // not due
	asked(2)
	s.fail()
	age(v, freshFor)
	v.Refresh(t.Context())
	asked(3)
	try("ok", first) // they outlive the outage
	age(v, retryAfter)
	v.Refresh(t.Context())
	asked(4)
	s.show([]byte(`{"keys":[]}`))
	age(v, retryAfter)
	v.Refresh(t.Context())
	try("ok", second)
	s.show(set(t, "ed"))
	age(v, retryAfter)
	v.Refresh(t.Context())
	try("token", first) // taken back by the issuer
	var said []string
	for _, r := range rec.Records() {
		if f, ok := r.Event.(event.Remarked); ok {
			said = append(said, f.Detail)
		}
	}
	want := []string{issuerURL + ": the answer is 503", issuerURL + ": no key for signatures is in the JSON Web Key Set"}
	if !slices.Equal(said, want) {
		t.Errorf("stated %q, want %q", said, want)
	}
}

func TestKeysUnavailable(t *testing.T) {
	s := serveKeys(t)
	s.fail()
	v, err := New(Options{Issuers: []Issuer{{Issuer: issuerURL, Audiences: []string{"waybill"}, JWKSURL: s.URL, UserClaim: "sub"}}})
	if err != nil {
		t.Fatal(err)
	}
	server := v.Mechanisms()[1].Start(auth.Peer{}, nil)
	_, _, err = server.Next([]byte("user=\x01auth=Bearer " + token{}.String() + "\x01\x01"))
	if f, ok := errors.AsType[*auth.Failure](err); !ok || !f.Temporary() {
		t.Errorf("without keys: %v, want a temporary failure", err)
	}
}

func TestDiscovery(t *testing.T) {
	s := serveKeys(t, "rsa")
	issuer := s.URL + "/realm"
	v, err := New(Options{Issuers: []Issuer{{Issuer: issuer, Audiences: []string{"waybill"}, UserClaim: "sub"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), token{change: map[string]any{"iss": issuer}}.String()); err != nil {
		t.Error(err)
	}
	server := v.Mechanisms()[0].Start(auth.Peer{}, nil)
	told, _, _ := server.Next([]byte("n,,\x01auth=\x01\x01"))
	if want := `{"status":"invalid_request","openid-configuration":"` + issuer + `/.well-known/openid-configuration"}`; string(told) != want {
		t.Errorf("told %s, want %s", told, want)
	}
	elsewhere := "http://192.0.2.1/"
	s.path.Store(&elsewhere)
	age(v, freshFor)
	v.Refresh(t.Context())
	if err := v.order[0].keys.err; err == nil || !strings.Contains(err.Error(), "want https") {
		t.Errorf("a redirect to plain http: %v", err)
	}
}

// TestOneFetch wants many tokens with a new key to be one question.
func TestOneFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		k := &keys{issuer: issuerURL, every: freshFor, fetch: func(ctx context.Context) ([]byte, error) {
			asked++
			select {
			case <-time.After(3 * time.Second):
				return set(t, "rsa"), nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}}
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				if found, err := k.find(t.Context(), "rsa", "RS256"); err != nil || len(found) != 1 {
					t.Errorf("find() = %v, %v", found, err)
				}
			})
		}
		all.Wait()
		if asked != 1 {
			t.Errorf("asked %d times, want once", asked)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Issuer)
		want   string
	}{
		{"no name", func(i *Issuer) { i.Issuer = "" }, "no name"},
		{"no audience", func(i *Issuer) { i.Audiences = nil }, "no audience"},
		{"no user claim", func(i *Issuer) { i.UserClaim = "" }, "no claim"},
		{"none", func(i *Issuer) { i.Algorithms = []string{"none"} }, "none of"},
		{"HS256", func(i *Issuer) { i.Algorithms = []string{"RS256", "HS256"} }, "none of"},
		{"senders", func(i *Issuer) { i.Senders = []string{"x"} }, "sender"},
		{"both places", func(i *Issuer) { i.JWKSURL = "https://x.example/" }, "but not both"},
		{"plain http", func(i *Issuer) { i.JWKSFile, i.JWKSURL = "", "http://x.example/" }, "want https"},
		{"password in the URL", func(i *Issuer) { i.JWKSFile, i.JWKSURL = "", "https://a:b@x.example/" }, "password"},
		{"no place", func(i *Issuer) { i.JWKSFile, i.Issuer = "", "accounts" }, "no URL itself"},
		{"no file", func(i *Issuer) { i.JWKSFile = "missing.json" }, "missing.json"},
		{"no keys in the file", func(i *Issuer) { i.JWKSFile = file(t, []byte("{}")) }, "no key"},
		{"authorities", func(i *Issuer) { i.JWKSFile, i.JWKSURL, i.CAFile = "", "https://x.example/", file(t, []byte("x")) }, "no certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			i := Issuer{Issuer: issuerURL, Audiences: []string{"a"}, JWKSFile: file(t, set(t, "rsa")), UserClaim: "sub"}
			test.change(&i)
			if _, err := New(Options{Issuers: []Issuer{i}}); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("New() = %v, want %q", err, test.want)
			}
		})
	}
}

func FuzzExchange(f *testing.F) {
	v := verifier(f)
	f.Add(false, "n,a=bob,\x01host=x\x01auth=Bearer a.b.c\x01\x01")
	f.Add(false, "y,,\x01auth=\x01\x01")
	f.Add(true, "user=bob\x01auth=Bearer a.b.c\x01\x01")
	f.Fuzz(func(t *testing.T, old bool, message string) {
		m := v.Mechanisms()[0]
		if old {
			m = v.Mechanisms()[1]
		}
		server := m.Start(auth.Peer{}, func(auth.Identity) { t.Error("logged in") })
		challenge, done, err := server.Next([]byte(message))
		if done || err != nil || !json.Valid(challenge) {
			t.Fatalf("Next() = %q, %t, %v, want an error to be told", challenge, done, err)
		}
		_, done, err = server.Next([]byte{1})
		if f, ok := errors.AsType[*auth.Failure](err); done || !ok || f.Reason == auth.ReasonUnavailable {
			t.Errorf("Next() = %t, %v, want a *Failure", done, err)
		}
	})
}

func FuzzToken(f *testing.F) {
	v := verifier(f)
	f.Add("a.b.c")
	f.Add(forged(`{"alg":"none"}`))
	f.Add(forged(`{"alg":"HS256","kid":"rsa","jwk":{"kty":"oct"}}`))
	f.Add(forged(`{"alg":"ES256","kid":"rsa","crit":["exp"]}`))
	f.Add(`{"payload":"e30","signatures":[{"protected":"e30","signature":""}]}`)
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := v.Verify(t.Context(), s); err == nil {
			t.Errorf("Verify(%q) = %+v", s, id)
		} else if auth.Fail("", err).Reason == auth.ReasonUnavailable {
			t.Errorf("Verify(%q) = %v, want a reason", s, err)
		}
	})
}

func FuzzKeys(f *testing.F) {
	f.Add(set(f, "rsa", "ec", "ed"))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQ","e":"AQAB"},{"kty":"EC","crv":"P-256","x":"AQ","y":"AQ"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parseKeys(data)
		if (err == nil) != (len(list) > 0) {
			t.Errorf("parseKeys() = %d keys, %v", len(list), err)
		}
		for _, k := range list {
			if !k.IsPublic() || !strong(k.Key) {
				t.Errorf("key %q is taken", k.KeyID)
			}
		}
	})
}
