package smtpin

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	netsmtp "net/smtp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"waybill/relay/auth"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/policy"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func secure(c *Connector) {
	c.TLSMode, c.TLS, c.Auth = "starttls", serverTLS(), auth.NewAuthenticator(auth.Passwords(users{})...)
}

// TestGoClient speaks with the client of Go's standard library.
func TestGoClient(t *testing.T) {
	for _, test := range []struct {
		name     string
		implicit bool
	}{{"STARTTLS", false}, {"implicit", true}} {
		t.Run(test.name, func(t *testing.T) {
			r := start(t, Options{Connectors: []Connector{open(secure, func(c *Connector) {
				c.TLSRequired, c.AuthRequired = true, true
				if test.implicit {
					c.TLSMode = "implicit"
				}
			})}})
			raw, err := net.Dial("tcp", r.addr("test"))
			if err != nil {
				t.Fatal(err)
			}
			if test.implicit {
				raw = tls.Client(raw, clientTLS())
			}
			c, err := netsmtp.NewClient(raw, "mx.example.com")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			check := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			check(c.Hello("me.example.net"))
			if !test.implicit {
				if ok, _ := c.Extension("AUTH"); ok {
					t.Error("AUTH is announced before TLS")
				}
				check(c.StartTLS(clientTLS()))
			}
			if _, mechs := c.Extension("AUTH"); mechs != "PLAIN LOGIN" {
				t.Errorf("AUTH %q", mechs)
			}
			check(c.Auth(netsmtp.PlainAuth("", "ann", "right", "mx.example.com")))
			check(c.Mail("ann@example.com"))
			check(c.Rcpt("b@example.org"))
			check(c.Rcpt("c@example.org"))
			w, err := c.Data()
			check(err)
			_, err = w.Write([]byte("Subject: x\n\n.dot\n"))
			check(err)
			check(w.Close())
			check(c.Quit())
			m := r.messages()[0]
			if m.content != "Subject: x\r\n\r\n.dot\r\n" {
				t.Errorf("content %q", m.content)
			}
			o := m.Origin
			if o.Protocol != "UTF8SMTPSA" || o.User != "ann" || o.Mechanism != "PLAIN" || o.TLSVersion != "1.3" || !strings.HasPrefix(o.TLSCipher, "TLS_") {
				t.Errorf("origin = %+v", o)
			}
			tr := string(m.Trace)
			if !strings.Contains(tr, "\t(using TLS 1.3 with TLS_") || !strings.Contains(tr, " with UTF8SMTPSA id ") || strings.Contains(tr, "for <") {
				t.Errorf("trace %q", tr)
			}
			if f := await[event.AuthSucceeded](t, r.rec, 1)[0]; f.User != "ann" || !f.TLS || f.Mechanism != "PLAIN" {
				t.Errorf("fact %+v", f)
			}
			if f := await[event.SessionClosed](t, r.rec, 1)[0]; f.AuthUser != "ann" || f.Cause != "quit" {
				t.Errorf("fact %+v", f)
			}
		})
	}
}

const (
	annRight   = "AGFubgByaWdodA==" // \0ann\0right
	annWrong   = "AGFubgB3cm9uZw=="
	nobody     = "AGJvYgByaWdodA=="     // \0bob\0right
	asOther    = "Y2FyAGFubgByaWdodA==" // car\0ann\0right
	storeDown  = "AGRvd24AeA=="
	storePanic = "AHBhbmljAHg="
)

func TestAuthentication(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Connector)
		talk   []string
		want   string // reasons and codes of AuthFailed
	}{
		{"before TLS", secure, []string{"AUTH PLAIN " + annRight + "=>538 5.7.11"}, "before_tls 538"},
		{"none", func(*Connector) {}, []string{"AUTH PLAIN " + annRight + "=>502 5.5.1"}, "mechanism 502"},
		{"unknown mechanism", plainAuth, []string{"AUTH CRAM-MD5=>504 5.5.4"}, "mechanism 504"},
		{"not this connector's", plainAuth, []string{"AUTH LOGIN=>504 5.5.4"}, "mechanism 504"},
		{"wrong password", plainAuth, []string{"AUTH PLAIN " + annWrong + "=>535 5.7.8 authentication failed"}, "credentials 535"},
		{"unknown user", plainAuth, []string{"AUTH PLAIN " + nobody + "=>535 5.7.8 authentication failed"}, "unknown_user 535"},
		{"for somebody else", plainAuth, []string{"AUTH PLAIN " + asOther + "=>535 5.7.8 authentication failed"}, "credentials 535"},
		{"store is down", plainAuth, []string{"AUTH PLAIN " + storeDown + "=>454 4.7.0 authentication is not available now"}, "unavailable 454"},
		{"malformed", plainAuth, []string{"AUTH PLAIN ****=>501 5.5.2", "AUTH PLAIN=>334", "****=>501 5.5.2"}, "malformed 501,malformed 501"},
		{"cancelled", plainAuth, []string{"AUTH PLAIN=>334", "*=>501", "NOOP=>250"}, "cancelled 501"},
		{"too many", plainAuth, []string{
			"AUTH PLAIN " + annWrong + "=>535", "AUTH PLAIN " + nobody + "=>535", "AUTH PLAIN " + annWrong + "=>421 4.7.0", "=>",
		}, "credentials 535,unknown_user 535,credentials 421"},
		{"within a transaction", plainAuth, []string{"MAIL FROM:<>=>250", "AUTH PLAIN " + annRight + "=>503"}, ""},
		{"twice", plainAuth, []string{"AUTH PLAIN " + annRight + "=>235 2.7.0", "AUTH PLAIN " + annRight + "=>503"}, ""},
		{"a long token", plainAuth, []string{"AUTH PLAIN=>334", strings.Repeat("QUJD", 3072) + "=>535", "NOOP=>250"}, "malformed 535"},
		{"a token that is too long", plainAuth, []string{"AUTH PLAIN=>334", strings.Repeat("QUJD", 3073) + "=>500 5.5.6", "NOOP=>250"}, "malformed 500"},
		{"store panics", plainAuth, []string{"AUTH PLAIN " + storePanic + "=>421 4.3.0", "=>"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := start(t, Options{Connectors: []Connector{open(test.change)}})
			c := r.dial(t)
			c.begin()
			c.talk(test.talk...)
			_ = c.c.Close()
			await[event.SessionClosed](t, r.rec, 1)
			var got []string
			for _, f := range facts[event.AuthFailed](r.rec) {
				got = append(got, fmt.Sprintf("%s %d", f.Reason, f.Code))
			}
			if strings.Join(got, ",") != test.want {
				t.Errorf("stated %s, want %s", strings.Join(got, ","), test.want)
			}
			for _, l := range conversation(r.rec) {
				for _, secret := range []string{annRight, annWrong, nobody, "QUJD"} {
					if strings.Contains(l.Text, secret) {
						t.Errorf("transcript has %q", l.Text)
					}
				}
			}
			if n := len(facts[event.Panicked](r.rec)); (n == 1) != (test.name == "store panics") {
				t.Errorf("%d panics", n)
			}
		})
	}
}

func plainAuth(c *Connector) {
	c.Auth, c.AuthBeforeTLS, c.Mechanisms = auth.NewAuthenticator(auth.Passwords(users{})...), true, []string{"PLAIN"}
}

func TestGuessingIsSlowedOverSessions(t *testing.T) {
	r := start(t, Options{Connectors: []Connector{open(plainAuth, func(c *Connector) { c.Limits.AuthFailures = -1 })}})
	c := r.dial(t)
	c.begin()
	for range 10 {
		c.talk("AUTH PLAIN " + annWrong + "=>535")
	}
	c = r.dial(t)
	c.begin()
	c.talk("AUTH PLAIN " + annRight + "=>454 4.7.0")
	if f := await[event.ThrottleEngaged](t, r.rec, 1)[0]; f.Limit != "auth_failures" || f.Scope != "user" || f.AuthUser != "ann" {
		t.Errorf("fact %+v", f)
	}
	if f := await[event.AuthFailed](t, r.rec, 11)[10]; f.Reason != "throttled" || f.User != "ann" || f.Code != 454 {
		t.Errorf("fact %+v", f)
	}
	for i := range 20 {
		c.talk("AUTH PLAIN " + base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "\x00user%d\x00x", i)) + "=>535")
	}
	c = r.dial(t)
	c.begin()
	c.talk("AUTH PLAIN " + annRight + "=>454 4.7.0")
	if f := await[event.ThrottleEngaged](t, r.rec, 2)[1]; f.Limit != "auth_failures" || f.Scope != "source" || f.AuthUser != "" {
		t.Errorf("fact %+v", f)
	}
}

func TestGuessersDoNotLockOutWhoIsKnown(t *testing.T) {
	r := start(t, Options{Connectors: []Connector{open(plainAuth, func(c *Connector) { c.Limits.AuthFailures = -1 })}})
	known := r.dial(t)
	known.begin()
	known.talk("AUTH PLAIN " + annRight + "=>235")
	for i := range 40 {
		c := r.dial(t)
		c.begin()
		want := "535"
		if i >= 30 {
			want = "454"
		}
		c.talk("AUTH PLAIN " + base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "\x00user%d\x00x", i)) + "=>" + want)
	}
	again := r.dial(t)
	again.begin()
	again.talk("AUTH PLAIN " + annRight + "=>235")
}

// control is a policy for tests: example.org is ours.
func control(t *testing.T) *policy.Control {
	d, err := policy.NewDomains([]policy.Domain{{Name: "example.org", Type: "internal_relay"}})
	if err != nil {
		t.Fatal(err)
	}
	return &policy.Control{Domains: d}
}

func TestRefusals(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Connector)
		opts   func(*Options, *acceptor)
		talk   []string
		want   string // the refusals that are stated
	}{
		{
			"TLS required", func(c *Connector) { secure(c); c.TLSRequired = true }, nil,
			[]string{"MAIL FROM:<a@example.net>=>530 5.7.0"},
			"sender a@example.net 530 tls_required",
		},
		{
			"authentication required", func(c *Connector) { plainAuth(c); c.AuthRequired = true }, nil,
			[]string{"MAIL FROM:<>=>530 5.7.0"},
			"sender <> 530 auth_required",
		},
		{
			"sender syntax", nil, nil,
			[]string{"MAIL FROM:a@example.net=>501 5.1.7", "MAIL FROM:<a@b@c>=>501 5.1.7", "MAIL FROM:<a@example.net> X=1=>555 5.5.4", "MAIL FROM:<\u00e4@example.net>=>553 5.6.7", "MAIL FROM:<a@example.net> BODY=BINARYMIME=>555 5.5.4"},
			"sender FROM:a@example.net 501 syntax,sender FROM:<a@b@c> 501 syntax,sender FROM:<a@example.net> X=1 555 syntax,sender FROM:<\u00e4@example.net> 553 utf8,sender FROM:<a@example.net> BODY=BINARYMIME 555 syntax",
		},
		{
			"recipient syntax", nil, nil,
			[]string{"MAIL FROM:<>=>250", "RCPT TO:<>=>501 5.1.3", "RCPT TO:<b@example.org> NOTIFY=NEVER,DELAY=>501 5.5.4"},
			"recipient TO:<> 501 syntax,recipient TO:<b@example.org> NOTIFY=NEVER,DELAY 501 syntax",
		},
		{
			"sequence", nil, nil,
			[]string{"RCPT TO:<b@example.org>=>503", "MAIL FROM:<>=>250", "MAIL FROM:<>=>503", "DATA=>554 5.5.1"},
			"sender FROM:<> 503 protocol,recipient TO:<b@example.org> 503 protocol",
		},
		{
			"relaying", func(c *Connector) { c.Permissions = policy.Permissions{Submit: true} }, nil,
			[]string{"MAIL FROM:<a@example.net>=>250", "RCPT TO:<b@example.com>=>550 5.7.1", "RCPT TO:<b@example.org>=>250"},
			"recipient b@example.com 550 relay_denied",
		},
		{
			"recipients", func(c *Connector) { c.Limits.Recipients = 1 }, nil,
			[]string{"MAIL FROM:<>=>250", "RCPT TO:<b@example.org>=>250", "RCPT TO:<c@example.org>=>452 4.5.3", "DATA=>354", ".=>250"},
			"recipient c@example.org 452 recipients",
		},
		{
			"announced size", func(c *Connector) { c.Limits.MessageSize = 100 }, nil,
			[]string{"MAIL FROM:<> SIZE=101=>552 5.3.4", "MAIL FROM:<> SIZE=100=>250"},
			"sender <> 552 size",
		},
		{
			"rate", func(c *Connector) { c.Limits.MessagesPerMinute = 1 }, nil,
			[]string{"MAIL FROM:<>=>250", "RSET=>250", "MAIL FROM:<>=>450 4.7.1"},
			"sender <> 450 throttle",
		},
		{
			"not ready", nil, func(o *Options, _ *acceptor) { o.Ready = func() error { return errors.New("disk is at 99 %") } },
			[]string{"MAIL FROM:<>=>452 4.3.1 not enough resources, try again later"},
			"sender <> 452 backpressure disk is at 99 %",
		},
		{
			"queue does not begin", nil,
			func(_ *Options, a *acceptor) {
				a.begin = func() error { return mail.Refuse(452, "4.3.1", "backpressure", "queue is full") }
			},
			[]string{"MAIL FROM:<>=>250", "RCPT TO:<b@example.org>=>250", "DATA=>452 4.3.1 queue is full", "BDAT 6 LAST\r\nNOOP=>452 4.3.1", "DATA=>503"},
			"message <> 452 backpressure,message <> 452 backpressure",
		},
		{
			"queue cannot write", nil, func(_ *Options, a *acceptor) {
				a.write = func() error { return errors.New("no space left: /var/lib/x") }
			},
			[]string{"MAIL FROM:<>=>250", "RCPT TO:<b@example.org>=>250", "DATA=>354", "x\r\n.=>451 4.3.0 cannot take the message now", "MAIL FROM:<>=>250"},
			"message <> 451 storage no space left: /var/lib/x",
		},
		{
			"queue cannot commit", nil, func(_ *Options, a *acceptor) {
				a.commit = func(context.Context) error { return fmt.Errorf("sync: %w", mail.Refuse(452, "4.3.1", "", "disk full")) }
			},
			[]string{"MAIL FROM:<>=>250", "RCPT TO:<b@example.org>=>250", "DATA=>354", "x\r\n.=>452 4.3.1 disk full", "NOOP=>250"},
			"message <> 452 storage",
		},
		{
			"mail loop", func(c *Connector) { c.Limits.Hops = 2 }, nil,
			[]string{
				"MAIL FROM:<>=>250", "RCPT TO:<b@example.org>=>250", "DATA=>354", "Received: a\r\nreceived: b\r\n\r\nReceived: c\r\n.=>250",
				"MAIL FROM:<>=>250", "RCPT TO:<b@example.org>=>250", "DATA=>354", "Received: a\r\nreceived: b\r\nRECEIVED : c\r\n\r\n.=>554 5.4.6",
			},
			"message <> 554 hops",
		},
		{
			"header size", func(c *Connector) { c.Limits.HeaderSize = 100 }, nil,
			[]string{
				"MAIL FROM:<>=>250", "RCPT TO:<b@example.org>=>250", "DATA=>354", "A: " + strings.Repeat("x", 50) + "\r\n\r\n" + strings.Repeat("x", 100) + "\r\n.=>250",
				"MAIL FROM:<>=>250", "RCPT TO:<b@example.org>=>250", "DATA=>354", "A: " + strings.Repeat("x", 100) + "\r\n\r\n.=>552 5.3.4",
			},
			"message <> 552 header",
		},
		{
			"NUL", nil, nil,
			[]string{"MAIL FROM:<>=>250", "RCPT TO:<b@example.org>=>250", "DATA=>354", "a\x00b\r\n.=>550 5.6.0", "=>"},
			"message <> 550 protocol",
		},
		{
			"bare LF", nil, nil,
			[]string{"MAIL FROM:<>=>250", "RCPT TO:<b@example.org>=>250", "DATA=>354", "a\nb\r\n.=>550 5.6.0", "=>"},
			"message <> 550 bare_newline",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			con := open(func(c *Connector) { c.Policy = control(t) })
			if test.change != nil {
				test.change(&con)
			}
			a := &acceptor{}
			opts := Options{Connectors: []Connector{con}, Acceptor: a}
			if test.opts != nil {
				test.opts(&opts, a)
			}
			r := start(t, opts)
			c := r.dial(t)
			c.begin()
			c.talk(test.talk...)
			_ = c.c.Close()
			await[event.SessionClosed](t, r.rec, 1)
			var got []string
			state := func(kind, whom string, f event.Refusal) {
				s := fmt.Sprintf("%s %s %d %s", kind, whom, f.Code, f.Reason)
				if strings.HasPrefix(f.Error, "disk") || strings.HasPrefix(f.Error, "no space") {
					s += " " + f.Error
				}
				got = append(got, s)
			}
			for _, f := range facts[event.SenderRefused](r.rec) {
				state("sender", f.MailFrom, f.Refusal)
			}
			for _, f := range facts[event.RecipientRefused](r.rec) {
				state("recipient", f.Recipient, f.Refusal)
			}
			for _, f := range facts[event.MessageRefused](r.rec) {
				state("message", f.MailFrom, f.Refusal)
				if len(f.Recipients) != 1 || f.Recipients[0].Address != "b@example.org" || f.Recipients[0].Code != f.Code {
					t.Errorf("recipients %+v", f.Recipients)
				}
			}
			if s := strings.Join(got, ","); s != test.want {
				t.Errorf("stated %q\nwant   %q", s, test.want)
			}
			if conversation(r.rec) == nil {
				t.Error("no transcript of a session that was refused something")
			}
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.open != 0 {
				t.Errorf("%d contents were neither committed nor aborted", a.open)
			}
		})
	}
}

func TestSizeLimit(t *testing.T) {
	for _, test := range []struct {
		name string
		size int
		how  string
		want string
	}{
		{"DATA, exactly", 1000, "DATA", "250"},
		{"DATA, one more", 1001, "DATA", "552 5.3.4"},
		{"BDAT, exactly", 1000, "BDAT", "250"},
		{"BDAT, one more", 1001, "BDAT", "552 5.3.4"},
		{"BDAT, in the second chunk", 1001, "chunks", "552 5.3.4"},
		{"DATA, much more", 3 << 20, "DATA", "552 5.3.4"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := start(t, Options{Connectors: []Connector{open(func(c *Connector) { c.Limits.MessageSize = 1000 })}})
			c := r.dial(t)
			c.begin()
			c.envelope()
			content := strings.Repeat("0123456\r\n", (test.size-2)/9)
			content += strings.Repeat("x", test.size-len(content)-2) + "\r\n"
			switch test.how {
			case "DATA":
				c.talk("DATA=>354")
				go c.send(content + ".\r\n") // the reply may come before all of it is read
			case "BDAT":
				c.send(fmt.Sprintf("BDAT %d LAST\r\n%s", len(content), content))
			default:
				c.send(fmt.Sprintf("BDAT 500\r\n%sBDAT %d LAST\r\n%s", content[:500], len(content)-500, content[500:]))
				c.expect("250 2.0.0 chunk")
			}
			c.expect(test.want)
			c.talk("MAIL FROM:<>=>250", "QUIT=>221")
		})
	}
}

func TestChunksReachTheQueue(t *testing.T) {
	r := start(t, Options{})
	c := r.dial(t)
	c.begin()
	c.envelope()
	c.send("BDAT 13\r\nSubject: x\r\n\rBDAT 5\r\n\n.\r\nyBDAT 0 LAST\r\n")
	c.talk("=>250", "=>250", "=>250 2.0.0 queued as")
	c.envelope()
	c.send("BDAT 5\r\nhelloBDAT 4\r\nRSETRSET\r\n")
	c.talk("=>250", "=>250", "=>250 2.0.0 ok", "DATA=>503", "QUIT=>221")
	if m := r.messages(); len(m) != 1 || m[0].content != "Subject: x\r\n\r\n.\r\ny" || r.aborted != 1 {
		t.Errorf("messages %+v, %d aborted", m, r.aborted)
	}
	await[event.SessionClosed](t, r.rec, 1)
	if n := len(facts[event.MessageRefused](r.rec)); n != 0 {
		t.Errorf("%d refusals of what the client gave up", n)
	}
}

// TestPanics lets every part that a session calls panic. Each ends its session
// with 421 and is stated; the server lives on.
func TestPanics(t *testing.T) {
	boom := func() error { panic("boom \x1b[31m") }
	for _, test := range []struct {
		name string
		set  func(*acceptor)
		how  string
	}{
		{"begin", func(a *acceptor) { a.begin = boom }, "DATA=>421 4.3.0"},
		{"begin of chunks", func(a *acceptor) { a.begin = boom }, "BDAT 1 LAST=>421 4.3.0"},
		{"write", func(a *acceptor) { a.write = boom }, "DATA=>354"},
		{"write of chunks", func(a *acceptor) { a.write = boom }, "BDAT 9 LAST=>"},
		{"commit", func(a *acceptor) { a.commit = func(context.Context) error { return boom() } }, "DATA=>354"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			a := &acceptor{}
			test.set(a)
			r := start(t, Options{Acceptor: a})
			c := r.dial(t)
			c.begin()
			c.envelope()
			cmd, want, _ := strings.Cut(test.how, "=>")
			c.send(cmd + "\r\n")
			if want != "" {
				c.expect(want)
			}
			if !strings.HasPrefix(want, "421") {
				c.send("content\r\n.\r\n")
				c.expect("421 4.3.0")
			}
			if rest := c.reply(); rest != "" {
				t.Errorf("the session went on: %q", rest)
			}
			closed := await[event.SessionClosed](t, r.rec, 1)[0]
			if closed.Cause != "panic" || conversation(r.rec) == nil {
				t.Errorf("closed = %+v", closed)
			}
			if f := facts[event.Panicked](r.rec); len(f) != 1 || f[0].Value != `boom \x1b[31m` || !strings.Contains(f[0].Stack, "session_test.go") {
				t.Errorf("panics: %+v", f)
			}
			c = r.dial(t)
			c.begin()
			c.talk("QUIT=>221")
		})
	}
}

func TestConnectors(t *testing.T) {
	// Two connectors share a bind; the one whose range is narrower is for us.
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	_ = free.Close()
	named := func(name, ranges string) Connector {
		return open(func(c *Connector) {
			c.Name, c.Banner, c.Listen = name, "ESMTP "+name, []string{addr}
			c.RemoteRanges = []netip.Prefix{netip.MustParsePrefix(ranges)}
		})
	}
	for _, test := range []struct {
		name string
		con  []Connector
		want string
	}{
		{"narrower wins", []Connector{named("all", "0.0.0.0/0"), named("host", "127.0.0.1/32"), named("net", "127.0.0.0/8")}, "220 mx.example.com ESMTP host"},
		{"nobody", []Connector{named("other", "192.0.2.0/24")}, "554 5.7.1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := start(t, Options{Connectors: test.con})
			raw, err := net.Dial("tcp", r.addr(test.con[0].Name))
			if err != nil {
				t.Fatal(err)
			}
			c := newClient(t, raw)
			c.expect(test.want)
			if test.want[0] == '5' {
				if f := await[event.SessionRefused](t, r.rec, 1)[0]; f.Reason != "denied" || f.Connector != "other" {
					t.Errorf("fact %+v", f)
				}
			}
		})
	}
}

func TestConnectionLimits(t *testing.T) {
	for _, test := range []struct {
		name   string
		limits Limits
		want   string
	}{
		{"total", Limits{Connections: 2}, "limit_total"},
		{"source", Limits{ConnectionsPerSource: 2}, "limit_source"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := start(t, Options{Connectors: []Connector{open(func(c *Connector) { c.Limits = test.limits })}})
			a := r.dial(t)
			a.talk("=>220")
			r.dial(t).talk("=>220")
			if got := r.Connections()["test"]; got[0] != 2 {
				t.Errorf("Connections() = %v", got)
			}
			r.dial(t).talk("=>421 4.7.0", "=>")
			if f := await[event.SessionRefused](t, r.rec, 1)[0]; f.Reason != test.want || f.Connector != "test" {
				t.Errorf("fact %+v", f)
			}
			a.talk("QUIT=>221")
			r.left(t, 1)
			r.dial(t).talk("=>220") // there is room again
		})
	}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	r := start(t, Options{DrainTimeout: 15 * time.Second})
	idle, busy, stuck := r.dial(t), r.dial(t), r.dial(t)
	for _, c := range []*client{idle, busy, stuck} {
		c.begin()
	}
	busy.envelope()
	stuck.envelope()
	stuck.talk("DATA=>354")
	stuck.send("never ends\r\n")
	r.stop()
	idle.talk("=>421 4.3.2", "=>")
	busy.talk("DATA=>354", "x\r\n.=>250 2.0.0 queued", "=>421 4.3.2", "=>")
	if rest := stuck.reply(); rest != "" {
		t.Errorf("the session that was cut got %q", rest)
	}
	if err := <-r.done; err != nil {
		t.Errorf("Run() = %v", err)
	}
	r.done <- nil // for the clean-up
	if _, err := net.Dial("tcp", r.addr("test")); err == nil {
		t.Error("it still listens")
	}
	if n := len(r.messages()); n != 1 {
		t.Errorf("%d messages, want 1", n)
	}
	causes := map[string]int{}
	for _, f := range facts[event.SessionClosed](r.rec) {
		causes[f.Cause]++
	}
	if causes["shutdown"] != 3 {
		t.Errorf("causes %v", causes)
	}
}

// TestFactsAreHarmless sends what would harm a log or a terminal.
func TestFactsAreHarmless(t *testing.T) {
	r := start(t, Options{})
	c := r.dial(t)
	c.talk("=>220", "EHLO a\u202eb\u0085"+strings.Repeat("x", 100)+"=>250", "MAIL FROM:<\u202ea@b"+strings.Repeat("c", 2000)+">=>501", "EHLO <script>=>250")
	c.envelope()
	c.talk("DATA=>354")
	c.send("From: \x1b]0;x\x07 <a\x1b@b>\r\nSubject: =?utf-8?q?=1B[31m=0D=0AX-Evil:_1?=\r\nMessage-ID: <\x01\x7f>\r\n\r\n.\r\n")
	c.expect("250")
	c.talk("QUIT=>221")
	await[event.SessionClosed](t, r.rec, 1)
	check := func(s string) {
		t.Helper()
		for _, bad := range s {
			if bad < ' ' || bad >= 0x7f && bad < 0xa0 || bad == 0x202e {
				t.Errorf("%q", s)
				return
			}
		}
		if len(s) > 1000 {
			t.Errorf("%d octets", len(s))
		}
	}
	for _, rec := range r.rec.recs {
		for _, f := range rec.AppendFields(nil) {
			check(f.Str)
		}
	}
	m := r.messages()[0]
	for _, s := range []string{m.Header.From, m.Header.Subject, m.Header.MessageID, m.Origin.Helo} {
		check(s)
	}
	if !strings.HasPrefix(string(m.Trace), "Received: from unknown ([127.0.0.1])\r\n") {
		t.Errorf("trace %q", m.Trace)
	}
}

// TestMemory streams contents of 30 MiB over several sessions at once.
func TestMemory(t *testing.T) {
	var peak atomic.Uint64
	var writes atomic.Int64
	a := &acceptor{discard: true}
	a.write = func() error {
		if writes.Add(1)%200 == 0 {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak.Store(max(peak.Load(), m.HeapAlloc))
		}
		return nil
	}
	r := start(t, Options{Acceptor: a})
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	const sessions, size = 4, 30 << 20
	line := []byte(strings.Repeat(strings.Repeat("x", 76)+"\r\n", 1000))
	done := make(chan string, sessions)
	for range sessions {
		c := r.dial(t)
		go func() {
			c.begin()
			c.envelope()
			c.talk("DATA=>354")
			for sent := 0; sent < size; sent += len(line) {
				if _, err := c.c.Write(line); err != nil {
					break
				}
			}
			c.send(".\r\n")
			done <- c.reply()
		}()
	}
	for range sessions {
		if got := <-done; !strings.HasPrefix(got, "250") {
			t.Errorf("reply %q", got)
		}
	}
	if a.octets < sessions*size {
		t.Errorf("%d octets arrived", a.octets)
	}
	if grown := int64(peak.Load()) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

func TestNewRefusesNonsense(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Connector)
		want   string
	}{
		{"no name", func(c *Connector) { c.Name = "" }, "without a name"},
		{"tls", func(c *Connector) { c.TLSMode = "sometimes" }, "tls mode"},
		{"certificate", func(c *Connector) { c.TLSMode = "implicit" }, "needs a certificate"},
		{"required and off", func(c *Connector) { c.TLSRequired = true }, "tls is required, and off"},
		{"users", func(c *Connector) { c.AuthRequired = true }, "there are no users"},
		{"mechanism", func(c *Connector) { c.Mechanisms = []string{"MAGIC"} }, "unknown mechanism"},
		{"newline", func(c *Connector) { c.BareNewline = "keep" }, "bare_newline"},
		{"transcript", func(c *Connector) { c.Transcript.Mode = "2" }, "transcript"},
		{"rate", func(c *Connector) { c.Limits.RateBy = "moon" }, "rate_by"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := New(Options{Hostname: "mx", Acceptor: &acceptor{}, Connectors: []Connector{open(test.change)}})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("New = %v, want %q", err, test.want)
			}
		})
	}
	if _, err := New(Options{Hostname: "mx", Acceptor: &acceptor{}, Connectors: []Connector{open(), open()}}); err == nil {
		t.Error("two connectors of one name")
	}
}

func TestSpeakingBeforeTheGreeting(t *testing.T) {
	rec := newRecorder()
	s, err := New(Options{Hostname: "mx", Acceptor: &acceptor{}, Connectors: []Connector{open()}, Emitter: event.NewEmitter("n", rec)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	raw, err := net.Dial("tcp", s.Addrs()["test"][0].String())
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, raw)
	c.send("EHLO me\r\nQUIT\r\n") // it is in the backlog: nobody accepts yet
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	c.talk("=>220", "=>250", "=>221")
	if f := await[event.Remarked](t, rec, 1)[0]; f.Remark != "the client spoke before the greeting" {
		t.Errorf("fact %+v", f)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestContentIsKept sends random contents in random pieces and compares octets.
func TestContentIsKept(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	r := start(t, Options{})
	words := []string{".", "..", "\r\n", "\r\n.", "\r\n..\r\n", "x", "\xff\x80", strings.Repeat("long", 20000), " ", "\t"}
	c := r.dial(t)
	c.begin()
	for i := range 200 {
		var b strings.Builder
		for range rnd.IntN(30) {
			b.WriteString(words[rnd.IntN(len(words))])
		}
		b.WriteString("\r\n")
		content := b.String()
		c.envelope()
		if i%2 == 0 {
			c.talk("DATA=>354")
			stuffed := strings.ReplaceAll("\r\n"+content, "\r\n.", "\r\n..")[2:] + ".\r\n"
			for len(stuffed) > 0 {
				n := 1 + rnd.IntN(min(len(stuffed), 3000))
				c.send(stuffed[:n])
				stuffed = stuffed[n:]
			}
		} else {
			for left := content; ; {
				n := rnd.IntN(min(len(left), 100_000) + 1)
				last := ""
				if n == len(left) {
					last = " LAST"
				}
				c.send(fmt.Sprintf("BDAT %d%s\r\n%s", n, last, left[:n]))
				left = left[n:]
				if last != "" {
					break
				}
				c.expect("250 2.0.0 chunk received")
			}
		}
		c.expect("250 2.0.0 queued as ")
		msgs := r.messages()
		if len(msgs) != i+1 || msgs[i].content != content {
			t.Fatalf("message %d: %d messages, content differs", i, len(msgs))
		}
	}
}

// TestManySessions runs pipelined transactions over several sessions at once.
func TestManySessions(t *testing.T) {
	r := start(t, Options{})
	const sessions, each = 8, 100
	var wg sync.WaitGroup
	for range sessions {
		c := r.dial(t)
		wg.Go(func() {
			c.begin()
			for range each {
				c.send("MAIL FROM:<a@example.net>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n")
				c.talk("=>250", "=>250", "=>354")
				c.send("Subject: x\r\n\r\nbody\r\n.\r\n")
				c.talk("=>250 2.0.0 queued")
			}
			c.talk("QUIT=>221")
		})
	}
	wg.Wait()
	msgs := r.messages()
	ids := map[mail.QueueID]bool{}
	for _, m := range msgs {
		ids[m.ID] = true
	}
	if len(msgs) != sessions*each || len(ids) != len(msgs) {
		t.Errorf("%d messages, %d ids", len(msgs), len(ids))
	}
}

// tired is a listener that is out of file descriptors.
type tired struct {
	net.Listener
	left int
}

func (l *tired) Accept() (net.Conn, error) {
	if l.left--; l.left < 0 {
		return nil, net.ErrClosed
	}
	return nil, syscall.EMFILE
}

func TestAcceptWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := newRecorder()
		s, err := New(Options{Hostname: "mx", Acceptor: &acceptor{}, Emitter: event.NewEmitter("n", rec)})
		if err != nil {
			t.Fatal(err)
		}
		defer s.end()
		began := time.Now()
		s.accept(&listener{ln: &tired{left: 20}})
		if took := time.Since(began); took < 10*time.Second || took > 20*time.Second {
			t.Errorf("it tried for %s", took)
		}
		if n := len(facts[event.Remarked](rec)); n == 0 || n > 20 {
			t.Errorf("%d remarks", n)
		}
	})
}
