//go:build e2e

package e2e

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"waybill/relay/relaytest"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// logins is a relay that people log in at in all ways that there are.
type logins struct {
	*daemon
	port  int // submission
	old   int // with XOAUTH2 alone: curl prefers OAUTHBEARER
	cert  int // by certificate alone
	files string
	host  *relaytest.SmartHost
	key   *rsa.PrivateKey
	idp   string
}

// loginPassword has what clients get wrong, but for what none of them gets right
// from a command line.
const loginPassword = "pass wörd, =q%"

func startLogins(t *testing.T) *logins {
	l := &logins{port: port(t), old: port(t), cert: port(t), files: shared(t), host: relaytest.NewSmartHost(t)}
	for _, name := range []string{"server", "client", "stranger"} { // each its own authority
		run(t, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "90", "-subj", "/CN="+name,
			"-addext", "subjectAltName=DNS:localhost,DNS:"+name+".source.test,IP:127.0.0.1",
			"-keyout", l.file(name+".key"), "-out", l.file(name+".pem"))
	}
	add := exec.Command(binary(t), "user", "add", "app", "--users", l.file("users.yaml"), "--sender", "@source.test")
	add.Stdin = strings.NewReader(loginPassword + "\n")
	if b, err := add.CombinedOutput(); err != nil {
		t.Fatalf("waybill user add: %v\n%s", err, b)
	}
	var err error
	if l.key, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	idp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/realms/mail/.well-known/openid-configuration":
			_ = json.NewEncoder(w).Encode(map[string]string{"issuer": l.idp, "jwks_uri": l.idp + "/keys"})
		case "/realms/mail/keys":
			_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: l.key.Public(), KeyID: "one", Use: "sig"}}})
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(idp.Close)
	l.idp = idp.URL + "/realms/mail"
	l.daemon = start(t, fmt.Sprintf(`
hostname: localhost.localdomain
data_dir: DIR/data
certificates: {default: {cert_file: %[1]s/server.pem, key_file: %[1]s/server.key}}
users:
  file: %[1]s/users.yaml
  oauth: {issuers: [{issuer: %[5]q, audiences: [waybill], user_claim: preferred_username, scopes: [mail.send]}]}
  certificates: [{user: app, dns: client.source.test}]
  lockout: {source_failures: 0}
receive_connectors:
  - name: submission
    usage: client
    listen: ["127.0.0.1:%[2]d"]
    tls: {client_certificate: request, client_ca_file: %[1]s/client.pem}
    auth: {mechanisms: [PLAIN, LOGIN, SCRAM-SHA-256, SCRAM-SHA-256-PLUS, XOAUTH2, OAUTHBEARER, EXTERNAL]}
    limits: {tarpit: 0s}
    transcript: all
  - name: old
    usage: client
    listen: ["127.0.0.1:%[6]d"]
    auth: {mechanisms: [XOAUTH2]}
    limits: {tarpit: 0s}
    transcript: all
  - name: certificate
    usage: client
    listen: ["127.0.0.1:%[3]d"]
    tls: {mode: implicit, client_certificate: request, client_ca_file: %[1]s/client.pem}
    auth: {mechanisms: [], certificate: true}
    limits: {tarpit: 0s}
    transcript: all
send_connectors:
  - {name: out, address_spaces: [{space: "*", cost: 10}], smart_hosts: [%[4]q], tls: {level: none}}
http: {listen: "127.0.0.1:HTTPPORT"}
log: {file: DIR/waybill.log}
`, l.files, l.port, l.cert, l.host.Addr(), l.idp, l.old))
	return l
}

func (l *logins) file(name string) string { return filepath.Join(l.files, name) }

// token is one for app; change is what it says otherwise.
func (l *logins) token(change map[string]any) string {
	l.t.Helper()
	claims := map[string]any{
		"iss": l.idp, "aud": "waybill", "preferred_username": "app", "scope": "mail.send", "exp": time.Now().Add(time.Hour).Unix(),
	}
	maps.Copy(claims, change)
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: l.key}, (&jose.SignerOptions{}).WithType("at+jwt").WithHeader("kid", "one"))
	if err != nil {
		l.t.Fatal(err)
	}
	text, err := jwt.Signed(s).Claims(claims).Serialize()
	if err != nil {
		l.t.Fatal(err)
	}
	return text
}

// logged are the logins that the log tells of: "MECHANISM user", or
// "MECHANISM reason".
func (l *logins) logged() (list []string) {
	l.t.Helper()
	b, err := os.ReadFile(filepath.Join(l.dir, "waybill.log"))
	if err != nil {
		l.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var fact struct {
			Event     string `json:"event"`
			Mechanism string `json:"auth_mechanism"`
			User      string `json:"auth_user"`
			Reason    string `json:"reason"`
		}
		if json.Unmarshal([]byte(line), &fact) != nil {
			continue
		}
		switch fact.Event {
		case "auth_succeeded":
			list = append(list, fact.Mechanism+" "+fact.User)
		case "auth_failed":
			list = append(list, fact.Mechanism+" "+fact.Reason)
		}
	}
	return list
}

// next waits for the login that follows the first n.
func (l *logins) next(t *testing.T, n int) (login string) {
	t.Helper()
	eventually(t, time.Minute, "a login in the log", func() error {
		list := l.logged()
		if len(list) <= n {
			return errors.New("there is none")
		}
		login = list[len(list)-1]
		return nil
	})
	return login
}

// TestLogins has real clients log in with every mechanism, as they should and as
// they should not.
func TestLogins(t *testing.T) {
	t.Parallel()
	l := startLogins(t)
	message := l.file("mail.eml")
	write(t, message, "From: <a@source.test>\r\nTo: <b@dest.test>\r\nSubject: login\r\n\r\nhello\r\n")
	good, bad, old := l.token(nil), l.token(map[string]any{"aud": "other"}), l.token(map[string]any{"exp": time.Now().Add(-time.Hour).Unix()})
	node := shared(t)
	run(t, "npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", node, "nodemailer@^7")
	write(t, filepath.Join(node, "send.js"), nodeSend)
	write(t, filepath.Join(node, "send.py"), pythonSend)

	// Each client gets the recipient as its last word.
	curl := func(port int, scheme string, args ...string) []string {
		return append([]string{
			"curl", "-sS", "--ssl-reqd", "--cacert", l.file("server.pem"), "--mail-from", "a@source.test", "-T", message,
			"--resolve", fmt.Sprintf("localhost:%d:127.0.0.1", port), fmt.Sprintf("%s://localhost:%d", scheme, port),
		}, append(args, "--mail-rcpt")...)
	}
	password := func(mechanism, pass string) []string {
		return curl(l.port, "smtp", "-u", "app:"+pass, "--login-options", "AUTH="+mechanism)
	}
	bearer := func(mechanism, token string) []string {
		at := l.port
		if mechanism == "XOAUTH2" {
			at = l.old
		}
		return curl(at, "smtp", "-u", "app:", "--oauth2-bearer", token, "--login-options", "AUTH="+mechanism)
	}
	shown := func(port int, scheme, name string, args ...string) []string {
		return curl(port, scheme, append([]string{"--cert", l.file(name + ".pem"), "--key", l.file(name + ".key")}, args...)...)
	}
	swaks := func(mechanism, pass string) []string {
		return []string{
			"swaks", "--server", fmt.Sprintf("127.0.0.1:%d", l.port), "--from", "a@source.test", "--tls", "--auth", mechanism,
			"--auth-user", "app", "--auth-password", pass, "--to",
		}
	}
	msmtp := func(mechanism string, args ...string) []string {
		return append([]string{
			"msmtp", "--file=/dev/null", "--host=localhost", fmt.Sprintf("--port=%d", l.port), "--tls=on", "--tls-starttls=on",
			"--tls-trust-file=" + l.file("server.pem"), "--auth=" + mechanism, "--user=app", "--from=a@source.test",
		}, append(args, "--")...)
	}
	secret := func(text string) string {
		name := l.file(fmt.Sprintf("secret-%d", len(text)))
		write(t, name, text+"\n")
		return "--passwordeval=cat " + name
	}
	gsasl := func(mechanism, pass string, args ...string) []string {
		return append(append([]string{
			"gsasl", "--smtp", fmt.Sprintf("--connect=localhost:%d", l.port), "--starttls", "--x509-ca-file=" + l.file("server.pem"), "--mechanism=" + mechanism,
			"--authentication-id=app", "--password=" + pass, "--hostname=localhost", "--service=smtp",
		}, args...), "")
	}
	script := func(interpreter, name string, args ...string) []string {
		return append([]string{interpreter, filepath.Join(node, name), fmt.Sprint(l.port), l.file("server.pem")}, args...)
	}
	for _, test := range []struct {
		name string
		cmd  []string
		want string // mechanism and user, or reason
	}{
		{"curl PLAIN", password("PLAIN", loginPassword), "PLAIN app"},
		{"curl LOGIN", password("LOGIN", loginPassword), "LOGIN app"},
		{"curl, wrong password", password("PLAIN", "guess"), "PLAIN credentials"},
		{"curl XOAUTH2", bearer("XOAUTH2", good), "XOAUTH2 app"},
		{"curl OAUTHBEARER", bearer("OAUTHBEARER", good), "OAUTHBEARER app"},
		{"curl XOAUTH2, for another audience", bearer("XOAUTH2", bad), "XOAUTH2 token"},
		{"curl OAUTHBEARER, for another audience", bearer("OAUTHBEARER", bad), "OAUTHBEARER token"},
		{"curl OAUTHBEARER, expired", bearer("OAUTHBEARER", old), "OAUTHBEARER expired"},
		{"curl EXTERNAL", shown(l.port, "smtp", "client", "--login-options", "AUTH=EXTERNAL", "-u", "app:"), "EXTERNAL app"},
		{"curl, certificate alone", shown(l.cert, "smtps", "client"), "CERTIFICATE app"},
		{"swaks PLAIN", swaks("PLAIN", loginPassword), "PLAIN app"},
		{"swaks LOGIN", swaks("LOGIN", loginPassword), "LOGIN app"},
		{"swaks, wrong password", swaks("LOGIN", "guess"), "LOGIN credentials"},
		{"msmtp PLAIN", msmtp("plain", secret(loginPassword)), "PLAIN app"},
		{"msmtp SCRAM-SHA-256", msmtp("scram-sha-256", secret(loginPassword)), "SCRAM-SHA-256 app"},
		{"msmtp SCRAM-SHA-256, wrong password", msmtp("scram-sha-256", secret("guess")), "SCRAM-SHA-256 credentials"},
		{"msmtp OAUTHBEARER", msmtp("oauthbearer", secret(good)), "OAUTHBEARER app"},
		{"msmtp XOAUTH2", msmtp("xoauth2", secret(good)), "XOAUTH2 app"},
		{"msmtp EXTERNAL", msmtp("external", "--tls-cert-file="+l.file("client.pem"), "--tls-key-file="+l.file("client.key")), "EXTERNAL app"},
		{"gsasl PLAIN", gsasl("PLAIN", loginPassword), "PLAIN app"},
		{"gsasl SCRAM-SHA-256", gsasl("SCRAM-SHA-256", loginPassword, "--no-cb"), "SCRAM-SHA-256 app"},
		{"gsasl SCRAM-SHA-256-PLUS", gsasl("SCRAM-SHA-256-PLUS", loginPassword), "SCRAM-SHA-256-PLUS app"},
		{"gsasl SCRAM-SHA-256-PLUS, TLS 1.2", gsasl("SCRAM-SHA-256-PLUS", loginPassword, "--priority=NORMAL:-VERS-TLS1.3"), "SCRAM-SHA-256-PLUS app"},
		{"gsasl SCRAM-SHA-256-PLUS, wrong password", gsasl("SCRAM-SHA-256-PLUS", "guess"), "SCRAM-SHA-256-PLUS credentials"},
		{"nodemailer PLAIN", script("node", "send.js", "PLAIN", loginPassword), "PLAIN app"},
		{"nodemailer LOGIN", script("node", "send.js", "LOGIN", loginPassword), "LOGIN app"},
		{"nodemailer XOAUTH2", script("node", "send.js", "OAUTH2", good), "XOAUTH2 app"},
		{"nodemailer XOAUTH2, for another audience", script("node", "send.js", "OAUTH2", bad), "XOAUTH2 token"},
		{"smtplib PLAIN", script("python3", "send.py", "plain", loginPassword), "PLAIN app"},
		{"smtplib LOGIN", script("python3", "send.py", "login", loginPassword), "LOGIN app"},
		{"smtplib XOAUTH2", script("python3", "send.py", "xoauth2", good), "XOAUTH2 app"},
		{"smtplib, wrong password", script("python3", "send.py", "plain", "guess"), "PLAIN credentials"},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := len(l.logged())
			to := strings.NewReplacer(" ", "-", ",", "").Replace(strings.ToLower(test.name)) + "@dest.test"
			sends := test.cmd[0] != "gsasl"
			args := slices.Clone(test.cmd[1:])
			if sends {
				args = append(args, to)
			} else {
				args = args[:len(args)-1]
			}
			cmd := exec.Command(test.cmd[0], args...)
			in, err := os.Open(message)
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			if sends {
				cmd.Stdin = in
			}
			out, err := cmd.CombinedOutput()
			ok := strings.HasSuffix(test.want, " app")
			if (err == nil) != ok {
				t.Errorf("%s: %v\n%s", test.cmd[0], err, out)
			}
			if got := l.next(t, before); got != test.want {
				t.Errorf("the login was %q, want %q\n%s", got, test.want, out)
			}
			if ok && sends {
				eventually(t, time.Minute, "the message at the next hop", func() error {
					for _, m := range l.host.Messages() {
						if strings.Contains(strings.Join(m.RcptArgs, " "), to) {
							return nil
						}
					}
					return errors.New("it is not there")
				})
			}
		})
	}
	t.Run("certificate of a stranger", func(t *testing.T) {
		words := shown(l.cert, "smtps", "stranger")
		out, err := exec.Command(words[0], append(words[1:], "stranger@dest.test")...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "530") {
			t.Errorf("curl: %v, want 530\n%s", err, out)
		}
	})
	log := run(t, "cat", filepath.Join(l.dir, "waybill.log"), filepath.Join(l.dir, "stderr"))
	for _, secret := range []string{loginPassword, "guess", good, bad, old, base64.StdEncoding.EncodeToString([]byte(loginPassword)), strings.Split(good, ".")[2]} {
		if strings.Contains(log, secret) {
			t.Errorf("the log has %q", secret)
		}
	}
}

const nodeSend = `
const [port, ca, kind, secret, to] = process.argv.slice(2);
const auth = kind === "OAUTH2" ? {type: "OAuth2", user: "app", accessToken: secret} : {user: "app", pass: secret};
require("nodemailer").createTransport({
	host: "localhost", port: Number(port), requireTLS: true, tls: {ca: require("fs").readFileSync(ca)},
	auth, authMethod: kind === "OAUTH2" ? undefined : kind,
}).sendMail({from: "a@source.test", to, subject: "login", text: "hello"}).then(
	(info) => console.log(info.response), (err) => { console.error(err.message); process.exit(1); });
`

const pythonSend = `
import smtplib, ssl, sys
port, ca, kind, secret, to = sys.argv[1:]
with smtplib.SMTP("localhost", int(port)) as s:
	s.starttls(context=ssl.create_default_context(cafile=ca))
	s.ehlo()
	s.user, s.password = "app", secret
	if kind == "xoauth2":
		s.auth("XOAUTH2", lambda challenge=None: "user=app\x01auth=Bearer " + secret + "\x01\x01" if not challenge else "")
	elif secret.isascii():
		s.auth(kind.upper(), getattr(s, "auth_" + kind))
	else:  # smtplib itself takes ASCII passwords only
		import base64
		b64 = lambda b: base64.b64encode(b).decode()
		if kind == "plain":
			code, text = s.docmd("AUTH PLAIN", b64(b"\0app\0" + secret.encode()))
		else:
			s.docmd("AUTH LOGIN", b64(b"app"))
			code, text = s.docmd(b64(secret.encode()))
		if code != 235:
			raise smtplib.SMTPAuthenticationError(code, text)
	s.sendmail("a@source.test", to, "Subject: login\r\n\r\nhello\r\n")
`
