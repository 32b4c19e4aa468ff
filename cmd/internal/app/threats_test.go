package app

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"waybill/logtrack/trackapi"
	"waybill/relay/relaytest"
)

// threatened is a relay for strangers on one port and for users on another.
const threatened = `hostname: relay.test
data_dir: DIR/data
certificates:
  default: {cert_file: DIR/tls.crt, key_file: DIR/tls.key}
users: {file: DIR/users.yaml}
accepted_domains: [{domain: dest.test, type: internal_relay}]
receive_connectors:
  - name: internet
    usage: internet
    listen: ["127.0.0.1:0"]
    headers: {malformed: reject}
    limits: {tarpit: 0s, message_size: 1MiB, recipients: 10, protocol_errors: 50}
  - name: submission
    usage: client
    listen: ["127.0.0.1:0"]
    limits: {tarpit: 0s}
send_connectors:
  - {name: out, address_spaces: [{space: "*"}], smart_hosts: ["HOST"], tls: {level: none}, retry: {schedule: [1s]}}
queue: {disk_free_min: 256MiB}
back_pressure: {disk_latency: {medium: 0s, high: 0s}}
http: {listen: "127.0.0.1:0"}
log: {file: DIR/waybill.log}
`

// attack is what one client does.
type attack struct {
	name  string
	to    string // connector; empty: internet
	tls   bool   // after STARTTLS
	first string // sent instead of EHLO
	send  string // all at once, after EHLO
	cut   bool   // the client is gone before it reads replies

	replies string   // codes of all replies after EHLO; "…" stands for those before the last
	facts   string   // refusals that are tracked: event, reason, code
	cause   string   // of the session's end; empty: quit, or closed when the client goes on
	relayed []string // recipients of messages that get through, as the next hop is told
}

const (
	mailFrom = "MAIL FROM:<a@source.test>\r\n"
	rcptTo   = "RCPT TO:<b@dest.test>\r\n"
	begun    = mailFrom + rcptTo
	quit     = "QUIT\r\n"
)

func plain(authzid, user, password string) string {
	return "AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte(authzid+"\x00"+user+"\x00"+password)) + "\r\n"
}

func attacks() []attack {
	const smuggled = "MAIL FROM:<evil@source.test>\r\nRCPT TO:<victim@dest.test>\r\nDATA\r\nsmuggled\r\n.\r\n"
	nested := "MIME-Version: 1.0\r\n"
	for i := range 2000 {
		nested += fmt.Sprintf("Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n", i, i)
	}
	return []attack{
		{name: "smuggling", send: begun + "DATA\r\nSubject: x\r\n\r\nbody\n.\r\n" + smuggled, replies: "250 250 354 550", facts: "message_refused bare_newline 550", cause: "protocol"},
		{name: "smuggling by CR", send: begun + "DATA\r\nSubject: x\r\n\r\nbody\r.\r" + smuggled, replies: "250 250 354 550", facts: "message_refused bare_newline 550", cause: "protocol"},
		{name: "smuggling by NUL", send: begun + "DATA\r\nSubject: x\r\n\r\nbody\r\n\x00.\r\n" + smuggled, replies: "250 250 354 550", facts: "message_refused protocol 550", cause: "protocol"},
		{name: "smuggling in a chunk", send: begun + fmt.Sprintf("BDAT %d LAST\r\nSubject: x\r\n\r\n\n.\r\n%s", 18+len(smuggled), smuggled) + quit, replies: "250 250 250 221", relayed: []string{"b@dest.test"}},
		{name: "octets of a refused chunk", send: fmt.Sprintf("BDAT %d LAST\r\n%s", len(smuggled), smuggled) + quit, replies: "503 221"},
		{name: "a chunk that is cut off", send: begun + "BDAT 1000 LAST\r\nSubject: x\r\n", replies: "250 250", cause: "closed"},
		{name: "a size that is none", send: begun + "BDAT 1x LAST\r\n" + smuggled, replies: "250 250 501", cause: "protocol"},
		{name: "commands behind STARTTLS", send: "STARTTLS\r\n" + begun, replies: "554", cause: "protocol"},
		{name: "TLS is stripped", to: "submission", send: begun + quit, replies: "530 503 221", facts: "sender_refused tls_required 530, recipient_refused protocol 503"},
		{name: "AUTH before TLS", to: "submission", send: plain("", "app", "app") + quit, replies: "538 221", facts: "auth_failed before_tls 538"},
		{name: "a guess", to: "submission", tls: true, send: plain("", "app", "gu3ss") + quit, replies: "535 221", facts: "auth_failed credentials 535"},
		{name: "somebody else's name", to: "submission", tls: true, send: plain("admin", "app", "app") + quit, replies: "535 221", facts: "auth_failed credentials 535"},
		{
			name: "relaying", send: mailFrom + "RCPT TO:<b@elsewhere.test>\r\nRCPT TO:<@dest.test:b@elsewhere.test>\r\nRCPT TO:<b@evil-dest.test>\r\nRCPT TO:<b@dest.test.evil.test>\r\nRCPT TO:<b@[127.0.0.1]>\r\nRCPT TO:<b@[IPv6:::ffff:127.0.0.1]>\r\n" + quit,
			replies: "250 550 550 550 550 550 550 221", facts: strings.TrimSuffix(strings.Repeat("recipient_refused relay_denied 550, ", 6), ", "),
		},
		{name: "relaying from nobody", send: "MAIL FROM:<>\r\nRCPT TO:<b@elsewhere.test>\r\n" + quit, replies: "250 550 221", facts: "recipient_refused relay_denied 550"},
		{name: "relaying by two @", send: mailFrom + "RCPT TO:<b@elsewhere.test@dest.test>\r\nRCPT TO:<b@elsewhere\x00.test>\r\n" + quit, replies: "250 501 500 221", facts: "recipient_refused syntax 501"},
		{
			name: "local parts with routes in them", send: mailFrom + "RCPT TO:<b%elsewhere.test@dest.test>\r\nRCPT TO:<elsewhere.test!b@DEST.test>\r\nRCPT TO:<\"b@elsewhere.test\"@dest.test>\r\n" + quit,
			replies: "250 550 550 550 221", facts: "recipient_refused relay_denied 550, recipient_refused relay_denied 550, recipient_refused relay_denied 550",
		},
		{
			name: "a parameter in a local part", send: mailFrom + "RCPT TO:<\"x> NOTIFY=NEVER t\"@dest.test>\r\nDATA\r\nSubject: x\r\n\r\n.\r\n" + quit,
			replies: "250 250 354 250 221", relayed: []string{`"x> NOTIFY=NEVER t"@dest.test`},
		},
		{name: "line ends in parameters", send: "MAIL FROM:<a@source.test> ENVID=x+0D+0ARCPT\r\nMAIL FROM:<a@source.test> AUTH=<>\rX\r\n" + quit, replies: "501 500 221", facts: "sender_refused syntax 501"},
		{name: "XCLIENT from a stranger", send: "XCLIENT ADDR=127.0.0.1 LOGIN=app\r\n" + quit, replies: "550 221"},
		{name: "PROXY from a stranger", first: "PROXY TCP4 127.0.0.1 127.0.0.1 1 25\r\n", send: begun, replies: "554", cause: "protocol"},
		{name: "a browser", first: "POST / HTTP/1.1\r\n", send: "Host: relay.test\r\nContent-Length: 100\r\n\r\n" + begun + "DATA\r\n", replies: "554", cause: "protocol"},
		{name: "control characters", send: "EHLO \x1b]0;evil\x07\r\nMAIL FROM:<\x1b[2Jevil@source.test>\r\n" + quit, replies: "500 500 221"},
		{name: "directions", send: "MAIL FROM:<evil\u202egro@source.test> SMTPUTF8\r\nRSET\r\nMAIL FROM:<a@source.test> SMTPUTF8\r\nRCPT TO:<\u202eevil@elsewhere.test>\r\n" + quit, replies: "250 250 250 550 221", facts: "recipient_refused relay_denied 550"},
		{name: "8 bits without SMTPUTF8", send: "MAIL FROM:<\u00e4@source.test>\r\n" + mailFrom + "RCPT TO:<\u00e4@dest.test>\r\n" + quit, replies: "553 250 553 221", facts: "sender_refused utf8 553, recipient_refused utf8 553"},
		{name: "a size that is too large", send: "MAIL FROM:<a@source.test> SIZE=1048577\r\nMAIL FROM:<a@source.test> SIZE=99999999999999999999\r\n" + quit, replies: "552 501 221", facts: "sender_refused size 552, sender_refused syntax 501"},
		{name: "a content that is too large", send: begun + "DATA\r\nSubject: x\r\n\r\n" + strings.Repeat(strings.Repeat("x", 998)+"\r\n", 1100) + ".\r\n" + quit, replies: "250 250 354 552 221", facts: "message_refused size 552"},
		{name: "a line that is too long", send: "NOOP " + strings.Repeat("x", 100_000) + "\r\n" + quit, replies: "500 221"},
		{name: "50,000 header fields", send: begun + "DATA\r\n" + strings.Repeat("X: y\r\n", 50_000) + "\r\n.\r\n" + quit, replies: "250 250 354 552 221", facts: "message_refused header 552"},
		{name: "two From", send: begun + "DATA\r\nFrom: a@source.test\r\nFrom: evil@source.test\r\n\r\n.\r\n" + quit, replies: "250 250 354 550 221", facts: "message_refused header 550"},
		{name: "2,000 nested parts", send: begun + "DATA\r\n" + nested + "\r\n.\r\n" + quit, replies: "250 250 354 250 221", relayed: []string{"b@dest.test"}},
		{name: "recipients", send: mailFrom + strings.Repeat("RCPT TO:<b@dest.test>\r\n", 3) + numbered("RCPT TO:<b%d@dest.test>\r\n", 10) + quit, replies: "… 452 221", facts: "recipient_refused recipients 452"},
		{name: "a loop", send: begun + "DATA\r\n" + strings.Repeat("Received: x\r\n", 31) + "\r\n.\r\n" + quit, replies: "250 250 354 554 221", facts: "message_refused hops 554"},
		{name: "NOOP", send: strings.Repeat("NOOP\r\n", 1000), replies: "… 421", cause: "errors"},
		{name: "errors", send: strings.Repeat("XYZZY\r\n", 60), replies: "… 421", cause: "errors"},
		{name: "refused recipients", send: mailFrom + numbered("RCPT TO:<b%d@elsewhere.test>\r\n", 200), replies: "… 421", facts: "…", cause: "errors"},
		{name: "who is there", send: "VRFY root\r\nEXPN staff\r\n" + quit, replies: "252 502 221"},
		{name: "MAIL within a transaction", send: begun + "MAIL FROM:<evil@source.test>\r\n" + quit, replies: "250 250 503 221", facts: "sender_refused protocol 503"},
		{name: "gone in a content", send: begun + "DATA\r\nSubject: x\r\n\r\nx\r\n", cut: true, cause: "closed"},
		{name: "gone in a handshake", send: "STARTTLS\r\n", replies: "220", cause: "protocol"},
	}
}

func numbered(format string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// TestThreats lets a whole relay meet what attackers send, one after the other,
// over real sockets: what is answered, what is tracked, how the session ends. In
// the end nothing is in the queue, nothing has got through that should not have,
// the log has neither secrets nor characters that could harm a terminal, and the
// relay works as before.
func TestThreats(t *testing.T) {
	host := relaytest.NewSmartHost(t)
	f := newFixture(t, host.Addr())
	f.write(threatened)
	r := f.start()
	defer func() {
		if log, err := os.ReadFile(filepath.Join(f.dir, "waybill.log")); err == nil && t.Failed() {
			for line := range strings.Lines(string(log)) {
				if strings.Contains(line, `"event":"pressure_changed"`) {
					t.Log(line) // a machine that cannot carry the test
				}
			}
		}
	}()
	var through []string
	for _, test := range attacks() {
		t.Run(test.name, func(t *testing.T) {
			began := time.Now()
			replies := r.attack(t, &test)
			if !matches(replies, test.replies) {
				t.Errorf("replies %s, want %s", replies, test.replies)
			}
			facts, cause := r.stated(t, began)
			if !matches(facts, test.facts) {
				t.Errorf("facts %s, want %s", facts, test.facts)
			}
			if want := cmp.Or(test.cause, "quit"); cause != want {
				t.Errorf("the session ended by %s, want %s", cause, want)
			}
			through = append(through, test.relayed...)
		})
	}

	r.submit("app", "good@dest.test")
	through = append(through, "good@dest.test")
	eventually(t, "the queue to be empty", func() error {
		q, err := r.api.Queues(t.Context())
		if err == nil && (q.Messages != 0 || !q.Accepts) {
			err = fmt.Errorf("%d messages, accepts: %t", q.Messages, q.Accepts)
		}
		return err
	})
	var got []string
	for _, m := range host.Messages() {
		for _, to := range m.Envelope.Recipients {
			got = append(got, to.Address.String())
		}
		if m.Envelope.Sender.String() != "a@source.test" {
			t.Errorf("a message from %s got through", m.Envelope.Sender)
		}
		if bytes.Count(m.Content, []byte("\n")) != bytes.Count(m.Content, []byte("\r\n")) {
			t.Errorf("a bare LF got through: %.200q", m.Content)
		}
	}
	slices.Sort(got)
	slices.Sort(through)
	if !slices.Equal(got, through) || len(host.Violations()) > 0 {
		t.Errorf("the next hop got %q, want %q; violations %q", got, through, host.Violations())
	}
	if code, body := r.get("/-/ready"); code != http.StatusOK {
		t.Errorf("ready answers %d %s", code, body)
	}
	var metrics string
	eventually(t, "the last session to give its place back", func() error { // after the fact that it has ended
		_, metrics = r.get("/metrics")
		if want := `waybill_connections{connector="internet",direction="inbound"} 0`; !strings.Contains(metrics, want) {
			return fmt.Errorf("the metrics have no %s", want)
		}
		return nil
	})
	for _, bad := range []string{"evil", "elsewhere", "source.test", "XYZZY", "\x1b"} {
		if strings.Contains(metrics, bad) {
			t.Errorf("%q is in the metrics", bad)
		}
	}
	r.stop()
	checkLog(t, filepath.Join(f.dir, "waybill.log"))
}

// matches reports whether a list is as wanted; "…" stands for any beginning.
func matches(got, want string) bool {
	if end, ok := strings.CutPrefix(want, "…"); ok {
		return strings.HasSuffix(got, end) && got != ""
	}
	return got == want
}

// attack makes one session and returns the codes that it was answered.
func (r *running) attack(t *testing.T, a *attack) string {
	t.Helper()
	c, err := net.Dial("tcp", r.Receive()[cmp.Or(a.to, "internet")][0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	br := bufio.NewReader(c)
	say := func(s string) {
		if s != "" {
			if _, err := io.WriteString(c, s); err != nil {
				t.Fatal(err)
			}
		}
		if code, err := readCode(br); err != nil || code[0] != '2' {
			t.Fatalf("%q: %s, %v", s, code, err)
		}
	}
	say("")
	if a.first == "" {
		say("EHLO client.test\r\n")
	}
	if a.tls {
		say("STARTTLS\r\n")
		c = tls.Client(c, &tls.Config{RootCAs: r.roots, ServerName: "localhost"})
		br = bufio.NewReader(c)
		say("EHLO client.test\r\n")
	}
	if _, err := io.WriteString(c, a.first+a.send); err != nil {
		t.Logf("it was not all taken: %v", err)
	}
	if a.cut {
		return ""
	}
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	var codes []string
	for {
		code, err := readCode(br)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the session did not end; replies %q", codes)
			}
			return strings.Join(codes, " ")
		}
		codes = append(codes, code)
	}
}

// readCode reads one reply, of which no line may have a control character.
func readCode(br *bufio.Reader) (string, error) {
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return "", err
		}
		text := strings.TrimSuffix(line, "\r\n")
		if len(text) < 4 || strings.ContainsFunc(text, unicode.IsControl) {
			return "", fmt.Errorf("bad reply %q", line)
		}
		if text[3] == ' ' {
			return text[:3], nil
		}
	}
}

// stated returns the refusals that tracking has of the one session since began,
// in their order, and how the session ended.
func (r *running) stated(t *testing.T, began time.Time) (refusals, cause string) {
	t.Helper()
	var all []string
	eventually(t, "the end of the session to be tracked", func() error {
		all, cause = nil, ""
		got, err := r.api.Events(t.Context(), trackapi.Query{
			From: began, Event: "sender_refused,recipient_refused,message_refused,auth_failed,session_closed,panicked", Limit: 1000,
		})
		if err != nil {
			return err
		}
		for _, raw := range got.Events {
			var f struct {
				Event, Reason, Cause, Source string
				Code                         int
			}
			if err := json.Unmarshal(raw, &f); err != nil {
				return err
			}
			switch {
			case f.Event != "session_closed":
				all = append(all, fmt.Sprintf("%s %s %d", f.Event, f.Reason, f.Code))
			case f.Source == "smtp_in":
				cause = f.Cause
			}
		}
		if cause == "" {
			return errors.New("it is not")
		}
		return nil
	})
	slices.Reverse(all) // the latest came first
	return strings.Join(all, ", "), cause
}

// checkLog reads a log as a program and as a terminal would.
func checkLog(t *testing.T, file string) {
	t.Helper()
	log, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(log) {
		text := strings.TrimSuffix(string(line), "\n")
		if !json.Valid(line) {
			t.Errorf("a line that is no JSON: %.200q", text)
		}
		if i := strings.IndexFunc(text, func(c rune) bool { return unicode.IsControl(c) || unicode.Is(unicode.Bidi_Control, c) }); i >= 0 {
			t.Errorf("a line with control characters: %.200q", text[max(0, i-100):])
		}
	}
	for _, secret := range []string{"gu3ss", base64.StdEncoding.EncodeToString([]byte("\x00app\x00gu3ss")), strings.Fields(plain("", "app", "app"))[2], strings.Fields(plain("admin", "app", "app"))[2]} {
		if bytes.Contains(log, []byte(secret)) {
			t.Errorf("%s is in the log", secret)
		}
	}
	if bytes.Contains(log, []byte(`"event":"panicked"`)) {
		t.Error("something panicked")
	}
}
