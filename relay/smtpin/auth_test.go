package smtpin

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"waybill/relay/auth"
	"waybill/relay/event"
	"waybill/relay/relaytest"

	"github.com/emersion/go-sasl"
	"github.com/xdg-go/scram"
)

// startTLS goes on under TLS.
func (c *client) startTLS(cfg *tls.Config) {
	c.t.Helper()
	c.talk("STARTTLS=>220")
	conn := tls.Client(c.c, cfg)
	if err := conn.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	c.c, c.br = conn, bufio.NewReader(conn)
}

// state is that of the TLS connection.
func (c *client) state() tls.ConnectionState { return c.c.(*tls.Conn).ConnectionState() }

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// userFile has bob, who sends for example.com.
func userFile(t *testing.T) *auth.Users {
	t.Helper()
	u, err := auth.CreateUsers(filepath.Join(t.TempDir(), "users.yaml"))
	if err == nil {
		err = u.Add(auth.User{Name: "bob", Senders: []string{"@example.com"}}, auth.NewSecret(correct))
	}
	if err == nil {
		_, err = u.Reload()
	}
	if err != nil {
		t.Fatal(err)
	}
	return u
}

const correct, wrong = "correct horse battery", "wrong horse battery"

// converse runs a SCRAM client, and returns the last reply.
func (c *client) converse(mechanism string, client *scram.ClientConversation) string {
	c.t.Helper()
	challenge := ""
	line := "AUTH " + mechanism + " "
	for {
		response, err := client.Step(challenge)
		if err != nil {
			c.t.Fatal(err)
		}
		c.send(line + b64(response) + "\r\n")
		line = ""
		code, text, _ := strings.Cut(c.reply(), " ")
		if code != "334" {
			return code
		}
		plain, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			c.t.Fatal(err)
		}
		challenge = string(plain)
	}
}

// offered are the mechanisms of an EHLO reply.
func offered(reply string) string {
	for line := range strings.SplitSeq(reply, "|") {
		if list, ok := strings.CutPrefix(line[min(4, len(line)):], "AUTH "); ok {
			return list
		}
	}
	return ""
}

func TestSCRAM(t *testing.T) {
	list := auth.SCRAM(userFile(t), []byte("secret"))
	for _, test := range []struct {
		name     string
		binding  auth.Binding
		password string
		plus     bool
		kind     string
		yes      bool
		offered  string
		want     string // code, and reason
	}{
		{"allow", auth.BindingAllow, correct, false, "", false, "SCRAM-SHA-256-PLUS SCRAM-SHA-256", "235 "},
		{"allow, wrong password", auth.BindingAllow, wrong, false, "", false, "SCRAM-SHA-256-PLUS SCRAM-SHA-256", "535 credentials"},
		{"allow, exporter", auth.BindingAllow, correct, true, "tls-exporter", false, "SCRAM-SHA-256-PLUS SCRAM-SHA-256", "235 "},
		{"allow, end point", auth.BindingAllow, correct, true, "tls-server-end-point", false, "SCRAM-SHA-256-PLUS SCRAM-SHA-256", "235 "},
		{"allow, the offer was taken away", auth.BindingAllow, correct, false, "", true, "SCRAM-SHA-256-PLUS SCRAM-SHA-256", "535 channel_binding"},
		{"require", auth.BindingRequire, correct, true, "tls-exporter", false, "SCRAM-SHA-256-PLUS", "235 "},
		{"require, not bound", auth.BindingRequire, correct, false, "", false, "SCRAM-SHA-256-PLUS", "504 mechanism"},
		{"off", auth.BindingOff, correct, false, "", true, "SCRAM-SHA-256", "235 "},
		{"off, bound", auth.BindingOff, correct, true, "tls-exporter", false, "SCRAM-SHA-256", "504 mechanism"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := start(t, Options{Connectors: []Connector{open(secure, func(c *Connector) {
				c.Auth, c.Binding = auth.NewAuthenticator(list...), test.binding
			})}})
			c := r.dial(t)
			c.begin()
			c.startTLS(clientTLS())
			c.send("EHLO me\r\n")
			if got := offered(c.reply()); got != test.offered {
				t.Errorf("offered %q, want %q", got, test.offered)
			}
			user, err := scram.SHA256.NewClient("bob", test.password, "")
			if err != nil {
				t.Fatal(err)
			}
			conv, mechanism := user.NewConversation(), "SCRAM-SHA-256"
			if test.yes {
				conv = user.NewConversationAdvertisingChannelBinding()
			}
			if test.plus {
				mechanism += "-PLUS"
				st := c.state()
				b, err1 := scram.NewTLSExporterBinding(&st)
				if test.kind == auth.BindingEndPoint {
					b, err1 = scram.NewTLSServerEndpointBinding(&st)
				}
				if err1 != nil {
					t.Fatal(err1)
				}
				conv = user.NewConversationWithChannelBinding(b)
			}
			got := c.converse(mechanism, conv) + " "
			if got == "235 " {
				if f := await[event.AuthSucceeded](t, r.rec, 1)[0]; f.Mechanism != mechanism || f.User != "bob" {
					t.Errorf("fact %+v", f)
				}
			} else {
				got += await[event.AuthFailed](t, r.rec, 1)[0].Reason
			}
			if got != test.want {
				t.Errorf("AUTH = %s, want %s", got, test.want)
			}
		})
	}
}

func TestCertificateLogin(t *testing.T) {
	own, roots := relaytest.Certificate(t, "app.example.com")
	self, _ := relaytest.Certificate(t, "app.example.com") // from somebody else
	sum := sha256.Sum256(self.Certificate[0])
	certificates, err := auth.NewCertificates([]auth.CertificateRule{
		{DNS: "app.example.com", User: "app", Senders: []string{"app@example.com"}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	pinned, err := auth.NewCertificates([]auth.CertificateRule{{Fingerprint: hex.EncodeToString(sum[:]), User: "pinned", Senders: []string{"app@example.com"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := auth.NewCertificates([]auth.CertificateRule{{DNS: "other.example.com", User: "other"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name     string
		known    *auth.Certificates
		shown    *tls.Certificate
		implicit bool
		talk     []string
		want     string // who logged in, and how; or why not
	}{
		{"EXTERNAL", certificates, &own, false, []string{"AUTH EXTERNAL ==>235", "MAIL FROM:<app@example.com>=>250", "RSET=>250", "MAIL FROM:<boss@example.com>=>550 5.7.1"}, "app EXTERNAL"},
		{"EXTERNAL asks", certificates, &own, false, []string{"AUTH EXTERNAL=>334", b64("APP") + "=>235"}, "app EXTERNAL"},
		{"EXTERNAL by name", certificates, &own, false, []string{"AUTH EXTERNAL " + b64("app") + "=>235"}, "app EXTERNAL"},
		{"EXTERNAL for somebody else", certificates, &own, false, []string{"AUTH EXTERNAL " + b64("root") + "=>535"}, "credentials"},
		{"EXTERNAL by fingerprint", pinned, &self, false, []string{"AUTH EXTERNAL ==>235"}, "pinned EXTERNAL"},
		{"EXTERNAL, certificate from nobody whom we know", certificates, &self, false, []string{"AUTH EXTERNAL ==>535"}, "certificate"},
		{"EXTERNAL, nobody's certificate", stranger, &own, false, []string{"AUTH EXTERNAL ==>535"}, "certificate"},
		{"EXTERNAL without a certificate", certificates, nil, false, []string{"AUTH EXTERNAL ==>504"}, "mechanism"},
		{"certificate alone", certificates, &own, true, []string{"MAIL FROM:<app@example.com>=>250", "RSET=>250", "MAIL FROM:<boss@example.com>=>550 5.7.1"}, "app CERTIFICATE"},
		{"certificate alone, and then as somebody else", certificates, &own, true, []string{"AUTH PLAIN " + annRight + "=>235", "MAIL FROM:<ann@example.com>=>250"}, "ann PLAIN"},
		{"certificate alone, by fingerprint", pinned, &self, true, []string{"MAIL FROM:<app@example.com>=>250"}, "pinned CERTIFICATE"},
		{"certificate alone, nobody's", stranger, &own, true, []string{"MAIL FROM:<app@example.com>=>530 5.7.0"}, ""},
		{"certificate alone, from nobody whom we know", certificates, &self, true, []string{"MAIL FROM:<app@example.com>=>530 5.7.0"}, ""},
		{"certificate alone, none", certificates, nil, true, []string{"MAIL FROM:<app@example.com>=>530 5.7.0"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := start(t, Options{Connectors: []Connector{open(secure, func(c *Connector) {
				c.AuthRequired, c.Policy = true, control(t)
				c.Auth = auth.NewAuthenticator(append(auth.Passwords(users{}), test.known.Mechanism())...)
				if test.implicit {
					c.Certificates = test.known
				}
				c.TLS.ClientAuth, c.TLS.ClientCAs = tls.RequestClientCert, roots
			})}})
			c := r.dial(t)
			c.begin()
			cfg := clientTLS()
			if test.shown != nil {
				// Whatever authorities the server names, as many clients do.
				cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return test.shown, nil }
			}
			c.startTLS(cfg)
			c.send("EHLO me\r\n")
			if got := strings.Contains(offered(c.reply()), "EXTERNAL"); got != (test.shown != nil) {
				t.Errorf("EXTERNAL is offered: %t", got)
			}
			c.talk(test.talk...)
			_ = c.c.Close()
			await[event.SessionClosed](t, r.rec, 1)
			var got []string
			for _, f := range facts[event.AuthSucceeded](r.rec) {
				got = append(got, f.User+" "+f.Mechanism)
			}
			for _, f := range facts[event.AuthFailed](r.rec) {
				got = append(got, f.Reason)
			}
			if strings.Join(got, ", ") != test.want {
				t.Errorf("facts: %s, want %s", strings.Join(got, ", "), test.want)
			}
		})
	}
}

// refuser is a mechanism that tells why, and then fails.
type refuser struct {
	told   bool
	closed chan struct{}
}

func (r *refuser) Next([]byte) ([]byte, bool, error) {
	if !r.told {
		r.told = true
		return []byte(`{"status":"401"}`), false, nil
	}
	return nil, false, r.Refused()
}

func (r *refuser) Refused() *auth.Failure {
	return auth.Fail("bob", fmt.Errorf("%w: it is for somebody else", auth.ErrToken))
}

func (r *refuser) Close() error {
	close(r.closed)
	return nil
}

// TestRefusedInAChallenge wants the reason that a client was told to be the one
// that is stated, however the client takes it, and the exchange to be closed.
func TestRefusedInAChallenge(t *testing.T) {
	for _, test := range []struct {
		name string
		talk []string
		want string
	}{
		{"answers", []string{"AQ===>535"}, "bob token 535 token is not valid: it is for somebody else"},
		{"cancels", []string{"*=>501"}, "bob token 501 token is not valid: it is for somebody else"},
		{"goes", nil, "bob token 334 token is not valid: it is for somebody else"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := &refuser{closed: make(chan struct{})}
			r := start(t, Options{Connectors: []Connector{open(func(c *Connector) {
				c.AuthBeforeTLS = true
				c.Auth = auth.NewAuthenticator(auth.Mechanism{Name: "XOAUTH2", Start: func(auth.Peer, func(auth.Identity)) sasl.Server { return m }})
			})}})
			c := r.dial(t)
			c.begin()
			c.talk("AUTH XOAUTH2 AAAA=>334 " + b64(`{"status":"401"}`))
			c.talk(test.talk...)
			_ = c.c.Close()
			await[event.SessionClosed](t, r.rec, 1)
			<-m.closed
			got := ""
			for _, f := range facts[event.AuthFailed](r.rec) {
				got += fmt.Sprintf("%s %s %d %s", f.User, f.Reason, f.Code, f.Error)
			}
			if got != test.want {
				t.Errorf("stated %q, want %q", got, test.want)
			}
		})
	}
}

// TestNoCredentialOfRealLoginsIsKept runs logins of all kinds, good and bad, and looks for
// what was secret in all that is kept of them.
func TestNoCredentialOfRealLoginsIsKept(t *testing.T) {
	const bearer = "eyJhbGciOiJub25lIn0.eyJpc3MiOiJ4In0.c2VjcmV0"
	u := userFile(t)
	list := append(auth.Passwords(u), auth.SCRAM(u, []byte("secret"))...)
	token := refuser{closed: make(chan struct{})}
	list = append(list, auth.Mechanism{Name: "XOAUTH2", Start: func(auth.Peer, func(auth.Identity)) sasl.Server { return &token }})
	r := start(t, Options{Connectors: []Connector{open(func(c *Connector) {
		c.Auth, c.AuthBeforeTLS, c.Transcript.Mode, c.Limits.AuthFailures = auth.NewAuthenticator(list...), true, "all", -1
	})}})
	logins := 0
	try := func(talk func(c *client)) {
		c := r.dial(t)
		c.begin()
		talk(c)
		c.talk("QUIT=>221")
		logins++
	}
	for _, password := range []string{correct, wrong} {
		code := map[string]string{correct: "235", wrong: "535"}[password]
		try(func(c *client) { c.talk("AUTH PLAIN " + b64("\x00bob\x00"+password) + "=>" + code) })
		try(func(c *client) { c.talk("AUTH PLAIN=>334", b64("\x00bob\x00"+password)+"=>"+code) })
		try(func(c *client) { c.talk("AUTH LOGIN=>334", b64("bob")+"=>334", b64(password)+"=>"+code) })
		try(func(c *client) { c.talk("AUTH LOGIN "+b64("bob")+"=>334", b64(password)+"=>"+code) })
		try(func(c *client) {
			user, err := scram.SHA256.NewClient("bob", password, "")
			if err != nil {
				t.Fatal(err)
			}
			conv := user.WithNonceGenerator(func() string { return "noncenoncenonce" }).NewConversation()
			if got := c.converse("SCRAM-SHA-256", conv); got != code {
				t.Errorf("SCRAM-SHA-256 = %s, want %s", got, code)
			}
		})
	}
	try(func(c *client) {
		c.talk("AUTH XOAUTH2 "+b64("user=bob\x01auth=Bearer "+bearer+"\x01\x01")+"=>334", "AQ===>535")
	})
	try(func(c *client) { c.talk("AUTH PLAIN " + b64("\x00bob") + "=>535") })
	try(func(c *client) { c.talk("AUTH " + b64("\x00bob\x00"+correct) + "=>501") })         // the mechanism is missing
	try(func(c *client) { c.talk("AUTH LOGIN=>334", b64("bob")+"=>334", correct+"=>501") }) // not encoded
	try(func(c *client) { c.talk("AUTH LOGIN=>334", b64("bob")+"=>334", "*=>501", b64(correct)+"=>500") })
	await[event.SessionClosed](t, r.rec, logins)
	r.rec.mu.Lock()
	defer r.rec.mu.Unlock()
	secrets := []string{correct, wrong, bearer, "noncenonce", b64(correct), b64(wrong), b64("\x00bob\x00" + correct), b64("\x00bob\x00" + wrong), b64(bearer)[4:40]}
	for _, rec := range r.rec.recs {
		text, err := json.Marshal(rec.Event)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range secrets {
			if bytes.Contains(text, []byte(secret)) {
				t.Errorf("%s holds %q: %s", event.Name(rec.Event), secret, text)
			}
		}
	}
}

// The certificate that a mechanism sees is the one that the client was shown.
func TestPeerCertificate(t *testing.T) {
	var seen *x509.Certificate
	r := start(t, Options{Connectors: []Connector{open(secure, func(c *Connector) {
		c.Auth = auth.NewAuthenticator(auth.Mechanism{Name: "GSSAPI", Start: func(p auth.Peer, _ func(auth.Identity)) sasl.Server {
			seen = p.Certificate
			return &failing{}
		}})
	})}})
	cfg := clientTLS()
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for range 2 { // the second would resume the session
		c := r.dial(t)
		c.begin()
		c.startTLS(cfg)
		c.talk(hello, "AUTH GSSAPI AAAA=>535")
		if seen == nil || !seen.Equal(c.state().PeerCertificates[0]) {
			t.Fatal("the mechanism sees another certificate than the client")
		}
		seen = nil
	}
}

type failing struct{}

func (*failing) Next([]byte) ([]byte, bool, error) {
	return nil, false, auth.Fail("", errors.Join(auth.ErrMalformed))
}
