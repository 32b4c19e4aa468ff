package smtpout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"waybill/relay/dns"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/relaytest"
	"waybill/relay/route"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// smart makes a connector whose smart hosts are hosts, in order of cost.
func smart(t testing.TB, change func(o *Options), hosts ...*relaytest.SmartHost) *Connector {
	t.Helper()
	o := Options{
		Name: "out", Hostname: "relay.example", TLS: TLSNone,
		Timeouts: Timeouts{
			Connect: time.Minute, Greeting: time.Minute, Command: time.Minute, Mail: time.Minute, Rcpt: time.Minute,
			Data: time.Minute, Block: time.Minute, Dot: time.Minute, Quit: time.Minute,
		},
	}
	for i, h := range hosts {
		o.SmartHosts = append(o.SmartHosts, route.SmartHost{Host: h.IP(), Port: h.Port(), Cost: i + 1})
	}
	if change != nil {
		change(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

var outHop = route.Hop{Connector: "out", Name: "out"}

const sample = "Subject: x\r\n\r\nhello\r\n.dot\r\n"

func message(content string, recipients ...string) Message {
	m := Message{ID: "01J", Trace: []byte("Received: by relay\r\n"), Size: int64(len("Received: by relay\r\n") + len(content))}
	m.Envelope.Sender, _ = mail.ParseAddress("sender@x.example")
	if len(recipients) == 0 {
		recipients = []string{"a@y.example"}
	}
	for _, r := range recipients {
		addr, err := mail.ParseAddress(r)
		if err != nil {
			panic(err)
		}
		m.Envelope.Recipients = append(m.Envelope.Recipients, mail.Recipient{Address: addr})
	}
	m.Open = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }
	return m
}

// brief writes outcomes as "relayed 250 2.0.0", with verb and class when not relayed.
func brief(outcomes []mail.Outcome) string {
	var out []string
	for _, o := range outcomes {
		b := fmt.Sprintf("%s %d %s", o.Disposition, o.Reply.Code, o.Reply.Enhanced)
		b = strings.TrimSpace(b)
		if o.Disposition != mail.Relayed {
			b += " at " + o.Verb
			if o.Class != "" {
				b += " " + string(o.Class)
			}
			if !o.Remote {
				b += " local"
			}
			if o.Uncertain {
				b += " uncertain"
			}
		}
		out = append(out, b)
	}
	return strings.Join(out, "; ")
}

func TestReplies(t *testing.T) {
	do := func(phase string, actions ...relaytest.Action) func(h *relaytest.SmartHost) {
		return func(h *relaytest.SmartHost) { h.Do(phase, actions...) }
	}
	drop := relaytest.Action{Silent: true, Close: true}
	reset := relaytest.Action{Silent: true, Reset: true}
	on := func(phase string, code int, text string) func(h *relaytest.SmartHost) {
		return func(h *relaytest.SmartHost) { h.On(phase, code, text) }
	}
	const lost = "deferred 451 4.4.2 at %s connect local"
	for _, test := range []struct {
		name   string
		script func(h *relaytest.SmartHost)
		want   string // for two recipients, a and b
	}{
		{"accepted", func(*relaytest.SmartHost) {}, "relayed 250 2.0.0; relayed 250 2.0.0"},
		{"multi-line reply", on(".", 250, "2.0.0 a\n2.0.0 b"), "relayed 250 2.0.0; relayed 250 2.0.0"},

		{"greeting 421", on("CONNECT", 421, "4.3.2 busy"), "deferred 421 4.3.2 at CONNECT"},
		{"greeting 554", on("CONNECT", 554, "5.7.1 blocked"), "deferred 554 5.7.1 at CONNECT"},
		{"greeting 521", on("CONNECT", 521, "no mail here"), "bounced 521 at CONNECT"},
		{"greeting 250", on("CONNECT", 250, "what"), "deferred 250 at CONNECT other"},
		{"greeting dropped", do("CONNECT", drop), fmt.Sprintf(lost, "CONNECT")},
		{"greeting reset", do("CONNECT", relaytest.Action{Delay: 50 * time.Millisecond, Silent: true, Reset: true}), fmt.Sprintf(lost, "CONNECT")},
		{"greeting rubbish", do("CONNECT", relaytest.Action{Raw: "HTTP/1.1 400 Bad Request\r\n\r\n", Close: true}), "deferred 451 4.5.0 at CONNECT other local"},
		{"greeting endless", do("CONNECT", relaytest.Action{Raw: "220-x\r\n", Endless: "220-more\r\n"}), "deferred 451 4.5.0 at CONNECT other local"},
		{"greeting endless line", do("CONNECT", relaytest.Action{Raw: "220 ", Endless: strings.Repeat("x", 1000)}), "deferred 451 4.5.0 at CONNECT other local"},

		{"EHLO unknown", on("EHLO", 502, "5.5.1 what"), "relayed 250 2.0.0; relayed 250 2.0.0"},
		{"EHLO and HELO refused", func(h *relaytest.SmartHost) { h.On("EHLO", 550, "no"); h.On("HELO", 550, "5.7.1 no") }, "deferred 550 5.7.1 at HELO"},
		{"EHLO 421", on("EHLO", 421, "4.7.0 later"), "deferred 421 4.7.0 at EHLO"},
		{"EHLO 451", on("EHLO", 451, "4.7.0 later"), "deferred 451 4.7.0 at EHLO"},
		{"EHLO dropped", do("EHLO", drop), fmt.Sprintf(lost, "EHLO")},
		{"EHLO rubbish", do("EHLO", relaytest.Action{Raw: "25x\r\n"}), "deferred 451 4.5.0 at EHLO other local"},

		{"MAIL 450", on("MAIL", 450, "4.7.1 later"), "deferred 450 4.7.1 at MAIL"},
		{"MAIL 550", on("MAIL", 550, "5.7.1 no"), "bounced 550 5.7.1 at MAIL"},
		{"MAIL 421", on("MAIL", 421, "4.7.0 no"), "deferred 421 4.7.0 at MAIL"},
		{"MAIL 354", on("MAIL", 354, "what"), "deferred 354 at MAIL other"},
		{"MAIL 530", on("MAIL", 530, "5.7.57 not authenticated"), "deferred 530 5.7.57 at MAIL"},
		{"MAIL 530, TLS", on("MAIL", 530, "5.7.0 Must issue a STARTTLS command first"), "deferred 530 5.7.0 at MAIL"},
		{"MAIL 535", on("MAIL", 535, "5.7.8 log in"), "deferred 535 5.7.8 at MAIL"},
		{"MAIL dropped", do("MAIL", drop), fmt.Sprintf(lost, "MAIL")},
		{"MAIL reset", do("MAIL", reset), fmt.Sprintf(lost, "MAIL")},

		{"RCPT 450 for both", on("RCPT", 450, "4.7.1 greylisted"), "deferred 450 4.7.1 at RCPT"},
		{"RCPT 550 for both", on("RCPT", 550, "5.1.1 no"), "bounced 550 5.1.1 at RCPT"},
		{"RCPT 550 for one", do("RCPT a@y.example", relaytest.Action{Reply: "550 5.1.1 no"}), "bounced 550 5.1.1 at RCPT; relayed 250 2.0.0"},
		{"RCPT 450 for one", do("RCPT a@y.example", relaytest.Action{Reply: "450 4.2.0 no"}), "deferred 450 4.2.0 at RCPT; relayed 250 2.0.0"},
		{"RCPT mixed", func(h *relaytest.SmartHost) {
			h.OnRcpt("a@y.example", 550, "5.1.1 no")
			h.OnRcpt("b@y.example", 450, "4.2.0 later")
		}, "bounced 550 5.1.1 at RCPT; deferred 450 4.2.0 at RCPT"},
		{"RCPT 530 for both", on("RCPT", 530, "5.7.0 log in"), "deferred 530 5.7.0 at RCPT"},
		{"RCPT 530 for one", do("RCPT a@y.example", relaytest.Action{Reply: "530 5.7.0 log in"}), "deferred 530 5.7.0 at RCPT; relayed 250 2.0.0"},
		{"RCPT 421 at the second", do("RCPT b@y.example", relaytest.Action{Reply: "421 4.7.0 no", Close: true}), "deferred 421 4.7.0 at RCPT"},
		{"RCPT dropped after a refusal", func(h *relaytest.SmartHost) {
			h.OnRcpt("a@y.example", 550, "5.1.1 no")
			h.Do("RCPT b@y.example", drop)
		}, "bounced 550 5.1.1 at RCPT; " + fmt.Sprintf(lost, "RCPT")},
		{"too many recipients", do("RCPT", relaytest.Action{Times: 1}, relaytest.Action{Times: 1, Reply: "452 4.5.3 too many"}), "relayed 250 2.0.0; relayed 250 2.0.0"},
		{"too many recipients, old host", do("RCPT", relaytest.Action{Times: 1}, relaytest.Action{Times: 1, Reply: "552 too many"}), "relayed 250 2.0.0; relayed 250 2.0.0"},
		{"251", on("RCPT", 251, "2.1.5 will forward"), "relayed 250 2.0.0; relayed 250 2.0.0"},

		{"DATA 451", on("DATA", 451, "4.3.0 no"), "deferred 451 4.3.0 at DATA"},
		{"DATA 554", on("DATA", 554, "5.7.1 no"), "bounced 554 5.7.1 at DATA"},
		{"DATA 530", on("DATA", 530, "5.7.0 log in"), "deferred 530 5.7.0 at DATA"},
		{"DATA 250", on("DATA", 250, "what"), "deferred 250 at DATA other"},
		{"DATA 421", on("DATA", 421, "4.3.2 no"), "deferred 421 4.3.2 at DATA"},
		{"DATA dropped", do("DATA", drop), fmt.Sprintf(lost, "DATA")},

		{"dot 451", on(".", 451, "4.7.1 later"), "deferred 451 4.7.1 at ."},
		{"dot 550", on(".", 550, "5.7.1 spam"), "bounced 550 5.7.1 at ."},
		{"dot 530", on(".", 530, "5.7.0 log in"), "deferred 530 5.7.0 at ."},
		{"dot 421", on(".", 421, "4.3.0 no"), "deferred 421 4.3.0 at ."},
		{"dot 354", on(".", 354, "what"), "deferred 354 at . other uncertain"},
		{"dot dropped", do(".", drop), fmt.Sprintf(lost, ".") + " uncertain"},
		{"dot reset", do(".", reset), fmt.Sprintf(lost, ".") + " uncertain"},
		{"dot rubbish", do(".", relaytest.Action{Raw: "ok\r\n"}), "deferred 451 4.5.0 at . other local uncertain"},
		{"half a reply", do(".", relaytest.Action{Raw: "250 2.0.0 o", Close: true}), fmt.Sprintf(lost, ".") + " uncertain"},
		{"half a multi-line reply", do(".", relaytest.Action{Raw: "250-2.0.0 o\r\n", Close: true}), fmt.Sprintf(lost, ".") + " uncertain"},
	} {
		for _, pipelining := range []bool{true, false} {
			name := test.name
			var opts []relaytest.Option
			if !pipelining {
				name += ", one by one"
				opts = append(opts, relaytest.WithoutExtension("PIPELINING"))
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				h := relaytest.NewSmartHost(t, opts...)
				test.script(h)
				c := smart(t, nil, h)
				r := c.Attempt(t.Context(), outHop, message(sample, "a@y.example", "b@y.example"))
				got, want := brief(r.Outcomes), test.want
				if !strings.Contains(want, ";") {
					want += "; " + want
				}
				if got != want {
					t.Errorf("outcomes = %s\nwant %s\n%s", got, want, lines(r))
				}
				if v := h.Violations(); len(v) > 0 {
					t.Errorf("violations: %q", v)
				}
				allRelayed := !strings.Contains(got, "deferred") && !strings.Contains(got, "bounced")
				if allRelayed != (len(r.Transcript) == 0) {
					t.Errorf("transcript of %d lines", len(r.Transcript))
				}
				if r.Session == "" || r.Remote != h.AddrPort() || r.RemoteName != h.IP() {
					t.Errorf("went to %q %v, session %q", r.RemoteName, r.Remote, r.Session)
				}
				if n, _ := c.Stats(); n != c.Idle() {
					t.Errorf("%d slots taken, %d sessions idle", n, c.Idle())
				}
			})
		}
	}
}

// TestLoginWanted has a host that wants a login refuse mail for good only where none
// can be had, and another smart host take it.
func TestLoginWanted(t *testing.T) {
	wants := func() *relaytest.SmartHost {
		h := relaytest.NewSmartHost(t)
		h.On("MAIL", 530, "5.7.0 authentication required")
		return h
	}
	t.Run("another smart host", func(t *testing.T) {
		open := relaytest.NewSmartHost(t)
		c := smart(t, func(o *Options) { o.SmartHosts[1].Cost = o.SmartHosts[0].Cost + 1 }, wants(), open)
		if got := brief(c.Attempt(t.Context(), outHop, message(sample)).Outcomes); got != "relayed 250 2.0.0" {
			t.Errorf("outcomes = %s, want it relayed by the other", got)
		}
	})
	t.Run("a session that was good before", func(t *testing.T) {
		h := relaytest.NewSmartHost(t)
		c := smart(t, nil, h)
		c.Attempt(t.Context(), outHop, message(sample))
		h.On("MAIL", 530, "5.7.0 authentication required")
		if got, want := brief(c.Attempt(t.Context(), outHop, message(sample)).Outcomes), "deferred 530 5.7.0 at MAIL"; got != want {
			t.Errorf("outcomes = %s, want %s", got, want)
		}
	})
	t.Run("a domain's own host", func(t *testing.T) {
		c, res := byMX(t, nil, wants().Port())
		res.SetMX("y.example", "mx1.y.example")
		res.SetAddrs("mx1.y.example", "127.0.0.1")
		if got, want := brief(c.Attempt(t.Context(), route.Hop{Connector: "out", Name: "y.example"}, message(sample)).Outcomes), "bounced 530 5.7.0 at MAIL"; got != want {
			t.Errorf("outcomes = %s, want %s", got, want)
		}
	})
}

func lines(r Result) string {
	var b strings.Builder
	for _, l := range r.Transcript {
		fmt.Fprintf(&b, "%s: %s\n", l.From, l.Text)
	}
	return b.String()
}

func TestRefusedPipelinedData(t *testing.T) {
	h := relaytest.NewSmartHost(t)
	h.On("RCPT", 550, "5.1.1 no")
	h.On("DATA", 354, "go on")
	c := smart(t, nil, h)
	for range 2 {
		r := c.Attempt(t.Context(), outHop, message(sample))
		if got, want := brief(r.Outcomes), "bounced 550 5.1.1 at RCPT"; got != want {
			t.Errorf("outcomes = %s, want %s", got, want)
		}
	}
	if total, _, _ := h.Connections(); total != 1 {
		t.Errorf("%d connections, want the session reused", total)
	}
	if n, _ := h.Received(); n != 0 {
		t.Errorf("the host took %d messages, want none", n)
	}
	if got := h.Counts()["RSET"]; got != 1 {
		t.Errorf("RSET came %d times, want once, before the second transaction", got)
	}
}

func TestContentArrives(t *testing.T) {
	big := strings.Repeat("line of text.\r\n.line with a dot\r\n", 20000)
	for _, test := range []struct {
		name    string
		content string
		want    string // after the trace; empty: as it is
	}{
		{"sample", sample, ""},
		{"empty", "", ""},
		{"dot alone", ".\r\n", ""},
		{"dots", "..\r\n...\r\n. \r\n", ""},
		{"larger than a block", big, ""},
		{"exactly a block", strings.Repeat("x", blockSize-2) + "\r\n", ""},
		{"no line end", "a\r\nb", "a\r\nb\r\n"},
		{"8-bit", "\xff\x80\r\n", ""},
		{"NUL", "a\x00b\r\n", ""},
		{"bare LF before a dot", "a\n.b\r\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := relaytest.NewSmartHost(t)
			c := smart(t, nil, h)
			r := c.Attempt(t.Context(), outHop, message(test.content))
			if got := brief(r.Outcomes); got != "relayed 250 2.0.0" {
				t.Fatalf("outcomes = %s\n%s", got, lines(r))
			}
			want := test.want
			if want == "" {
				want = test.content
			}
			want = "Received: by relay\r\n" + want
			if got := string(h.WaitFor(t, 1)[0].Content); got != want {
				t.Errorf("content of %d octets %.100q, want %d octets %.100q", len(got), got, len(want), want)
			}
		})
	}
}

func TestNoSmuggling(t *testing.T) {
	evil := "MAIL FROM:<evil@x.example>\r\nRCPT TO:<victim@y.example>\r\nDATA\r\nboo\r\n.\r\n"
	for _, end := range []string{"\n.\n", "\r.\r", "\n.\r\n", "\r\n.\n", "\r\n.\r", "\r.\n", "\n.\r", "\r.\r\n", "\r\n\x00.\r\n"} {
		for _, pad := range []int{0, blockSize - 2, blockSize - 1, blockSize - 3} {
			h := relaytest.NewSmartHost(t, relaytest.WithLaxNewlines())
			c := smart(t, nil, h)
			r := c.Attempt(t.Context(), outHop, message(strings.Repeat("x", pad)+end+evil))
			if got := brief(r.Outcomes); got != "relayed 250 2.0.0" {
				t.Errorf("%q after %d octets: outcomes = %s", end, pad, got)
			}
			if n, _ := h.Received(); n != 1 || h.Counts()["MAIL"] != 1 || len(h.Violations()) > 0 {
				t.Errorf("%q after %d octets: %d messages, %v", end, pad, n, h.Violations())
			}
		}
	}
}

func TestParameters(t *testing.T) {
	utf8addr, _ := mail.ParseAddress("jörg@y.example")
	for _, test := range []struct {
		name    string
		without []string
		with    []string
		change  func(m *Message)
		content string
		want    string // MAIL's and the first RCPT's argument
		outcome string
	}{
		{name: "plain", want: "FROM:<sender@x.example> SIZE=33 TO:<a@y.example>"},
		{name: "null sender", change: func(m *Message) { m.Envelope.Sender = mail.Address{} }, want: "FROM:<> SIZE=33 TO:<a@y.example>"},
		{name: "quoted", change: func(m *Message) { m.Envelope.Sender.Local = "a b" }, want: `FROM:<"a b"@x.example> SIZE=33 TO:<a@y.example>`},
		{name: "no SIZE offered", without: []string{"SIZE"}, want: "FROM:<sender@x.example> TO:<a@y.example>"},
		{
			name: "DSN", change: func(m *Message) {
				m.Envelope.Ret, m.Envelope.EnvID = "HDRS", "a+b c"
				m.Envelope.Recipients[0].Notify = mail.NotifySuccess | mail.NotifyDelay
				m.Envelope.Recipients[0].ORcpt = "rfc822;x=y@z"
			},
			want: "FROM:<sender@x.example> SIZE=33 RET=HDRS ENVID=a+2Bb+20c TO:<a@y.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;x+3Dy@z",
		},
		{
			name: "original recipient of type utf-8", change: func(m *Message) {
				m.Envelope.UTF8, m.Envelope.Recipients[0].ORcpt = true, "utf-8;jörg+a=b@y.example"
			},
			want: `FROM:<sender@x.example> SIZE=33 SMTPUTF8 TO:<a@y.example> ORCPT=utf-8;jörg\x{2B}a\x{3D}b@y.example`,
		},
		{
			name: "the same, the transaction is not under SMTPUTF8", change: func(m *Message) {
				m.Envelope.Recipients[0].ORcpt = "utf-8;jörg+a=b@y.example"
			},
			want: `FROM:<sender@x.example> SIZE=33 TO:<a@y.example> ORCPT=utf-8;j\x{F6}rg\x{2B}a\x{3D}b@y.example`,
		},
		{
			name: "the same, SMTPUTF8 not offered and not needed", without: []string{"SMTPUTF8"}, change: func(m *Message) {
				m.Envelope.UTF8, m.Envelope.Recipients[0].ORcpt = true, "utf-8;😀@y.example"
			},
			want: `FROM:<sender@x.example> SIZE=33 TO:<a@y.example> ORCPT=utf-8;\x{1F600}@y.example`,
		},
		{
			name: "original recipient too long for 7 bits", change: func(m *Message) {
				m.Envelope.Recipients[0].ORcpt = "utf-8;" + strings.Repeat("ö", 100) + "@y.example"
			},
			want: "FROM:<sender@x.example> SIZE=33 TO:<a@y.example>",
		},
		{name: "DSN not offered", without: []string{"DSN"}, change: func(m *Message) {
			m.Envelope.Ret, m.Envelope.EnvID, m.Envelope.Recipients[0].Notify = "HDRS", "x", mail.NotifyNever
		}, want: "FROM:<sender@x.example> SIZE=33 TO:<a@y.example>"},
		{name: "AUTH is not passed on", change: func(m *Message) { m.Envelope.Auth = "x" }, want: "FROM:<sender@x.example> SIZE=33 TO:<a@y.example>"},
		{name: "8-bit declared", change: func(m *Message) { m.Envelope.Body = mail.Body8BitMIME }, want: "FROM:<sender@x.example> SIZE=33 BODY=8BITMIME TO:<a@y.example>"},
		{name: "8-bit not declared", content: "\r\n\xff\r\n", want: "FROM:<sender@x.example> SIZE=33 BODY=8BITMIME TO:<a@y.example>"},
		{name: "8-bit declared, not offered, not so", without: []string{"8BITMIME"}, change: func(m *Message) { m.Envelope.Body = mail.Body8BitMIME }, want: "FROM:<sender@x.example> SIZE=33 TO:<a@y.example>"},
		{name: "8-bit late in large content, not offered", without: []string{"8BITMIME"}, content: strings.Repeat("x", 2*blockSize) + "\xff\r\n", outcome: "bounced 554 5.6.3 at MAIL content local"},
		{name: "binary not offered, not so", change: func(m *Message) { m.Envelope.Body = mail.BodyBinaryMIME }, want: "FROM:<sender@x.example> SIZE=33 TO:<a@y.example>"},
		{
			name: "binary", with: []string{"CHUNKING", "BINARYMIME"}, change: func(m *Message) { m.Envelope.Body = mail.BodyBinaryMIME },
			content: "a\nb\x00", want: "FROM:<sender@x.example> SIZE=33 BODY=BINARYMIME TO:<a@y.example>",
		},
		{name: "SMTPUTF8 recipient", change: func(m *Message) { m.Envelope.Recipients[0].Address = utf8addr }, want: "FROM:<sender@x.example> SIZE=33 SMTPUTF8 TO:<jörg@y.example>"},
		{name: "SMTPUTF8 not offered, recipient", without: []string{"SMTPUTF8"}, change: func(m *Message) { m.Envelope.Recipients[0].Address = utf8addr }, outcome: "bounced 553 5.6.7 at MAIL content local"},
		{name: "SMTPUTF8 not offered, sender", without: []string{"SMTPUTF8"}, change: func(m *Message) { m.Envelope.Sender = utf8addr }, outcome: "bounced 553 5.6.7 at MAIL content local"},
		{name: "SMTPUTF8 not offered, header", without: []string{"SMTPUTF8"}, change: func(m *Message) { m.Envelope.UTF8 = true }, content: "Subject: ä\r\n\r\n", outcome: "bounced 553 5.6.7 at MAIL content local"},
		{name: "SMTPUTF8 not offered, not needed", without: []string{"SMTPUTF8"}, change: func(m *Message) { m.Envelope.UTF8 = true }, content: "Subject: a\r\n\r\nä\r\n", want: "FROM:<sender@x.example> SIZE=33 BODY=8BITMIME TO:<a@y.example>"},
		{name: "line end in an address", change: func(m *Message) { m.Envelope.Sender.Local = "a\r\nRSET" }, outcome: "bounced 553 5.1.7 at MAIL other local"},
		{name: "line end in a recipient", change: func(m *Message) { m.Envelope.Recipients[0].Address.Local = "a\r\nRSET" }, outcome: "bounced 553 5.1.3 at MAIL other local"},
		{name: "too large", with: []string{"SIZE 32"}, without: []string{"SIZE"}, outcome: "bounced 552 5.3.4 at MAIL size local"},
		{name: "just not too large", with: []string{"size 33"}, without: []string{"SIZE"}, want: "FROM:<sender@x.example> SIZE=33 TO:<a@y.example>"},
	} {
		t.Run(test.name, func(t *testing.T) {
			opts := []relaytest.Option{}
			keywords := []string{"PIPELINING", "SIZE 52428800", "8BITMIME", "SMTPUTF8", "DSN"}
			for _, w := range test.without {
				keywords = slices.DeleteFunc(keywords, func(k string) bool { return strings.HasPrefix(k, w) })
			}
			opts = append(opts, relaytest.WithExtensions(append(keywords, test.with...)...))
			h := relaytest.NewSmartHost(t, opts...)
			c := smart(t, nil, h)
			content := test.content
			if content == "" {
				content = "Subject: x\r\n\r\n"
			}
			m := message(content)
			if test.change != nil {
				test.change(&m)
			}
			if m.Envelope.Body != mail.BodyBinaryMIME {
				m.Size = 33
			}
			r := c.Attempt(t.Context(), outHop, m)
			if test.outcome != "" {
				if got := brief(r.Outcomes); got != test.outcome {
					t.Errorf("outcome = %s, want %s", got, test.outcome)
				}
				if h.Counts()["MAIL"] > 0 {
					t.Error("MAIL was sent")
				}
				return
			}
			if got := brief(r.Outcomes); got != "relayed 250 2.0.0" {
				t.Fatalf("outcome = %s\n%s", got, lines(r))
			}
			got := h.Messages()[0]
			want := test.want
			if m.Envelope.Body == mail.BodyBinaryMIME {
				want = strings.Replace(want, "SIZE=33", fmt.Sprintf("SIZE=%d", m.Size), 1)
			}
			if args := got.MailArgs + " " + got.RcptArgs[0]; args != want {
				t.Errorf("arguments = %s\nwant %s", args, want)
			}
			if string(got.Content) != string(m.Trace)+content {
				t.Errorf("content = %q, want %q", got.Content, string(m.Trace)+content)
			}
			if v := h.Violations(); len(v) > 0 {
				t.Errorf("violations: %q", v)
			}
			if r.DSN != !slices.Contains(test.without, "DSN") {
				t.Errorf("DSN = %t", r.DSN)
			}
		})
	}
}

func TestUTF8RefusesOnlyWhomItMust(t *testing.T) {
	h := relaytest.NewSmartHost(t, relaytest.WithoutExtension("SMTPUTF8"))
	c := smart(t, nil, h)
	r := c.Attempt(t.Context(), outHop, message(sample, "jörg@y.example", "b@y.example"))
	if got, want := brief(r.Outcomes), "bounced 553 5.6.7 at MAIL content local; relayed 250 2.0.0"; got != want {
		t.Errorf("outcomes = %s, want %s", got, want)
	}
}

func TestReuse(t *testing.T) {
	h := relaytest.NewSmartHost(t)
	var rec relaytest.Recorder
	c := smart(t, func(o *Options) { o.Emitter = rec.Emitter(); o.Limits.MessagesPerConnection = 3 }, h)
	var sessions []string
	for i := range 4 {
		r := c.Attempt(t.Context(), outHop, message(sample))
		if got := brief(r.Outcomes); got != "relayed 250 2.0.0" {
			t.Fatalf("outcome = %s", got)
		}
		if want := i != 0 && i != 3; r.Reused != want {
			t.Errorf("message %d: reused = %t, want %t", i, r.Reused, want)
		}
		if r.Reused && (r.Stages.Connect != 0 || r.Stages.Banner != 0) {
			t.Errorf("message %d: stages of a reused session: %+v", i, r.Stages)
		}
		if r.Stages.Envelope == 0 || r.Stages.Data == 0 || r.Stages.Reply == 0 {
			t.Errorf("message %d: stages %+v", i, r.Stages)
		}
		sessions = append(sessions, r.Session)
	}
	if sessions[0] != sessions[2] || sessions[0] == sessions[3] {
		t.Errorf("sessions = %q, want three messages in the first", sessions)
	}
	rec.WaitFor(t, "session_closed", 1)
	_ = c.Close()
	closed := rec.WaitFor(t, "session_closed", 2)
	var causes []string
	for _, r := range closed {
		ev := r.Event.(event.SessionClosed)
		causes = append(causes, fmt.Sprintf("%s %d", ev.Cause, ev.Messages))
		if ev.Direction != event.Outbound || ev.BytesIn == 0 || ev.BytesOut == 0 || ev.Commands == 0 || r.Source != event.SourceSMTPOut {
			t.Errorf("closed: %+v", ev)
		}
	}
	if want := []string{"limit 3", "shutdown 1"}; !slices.Equal(causes, want) {
		t.Errorf("causes = %q, want %q", causes, want)
	}
	if n := len(rec.Named("session_opened")); n != 2 {
		t.Errorf("%d sessions opened, want 2", n)
	}
	if got := h.Counts()["QUIT"]; got != 2 {
		t.Errorf("QUIT came %d times, want 2", got)
	}
	if r := c.Attempt(t.Context(), outHop, message(sample)); r.Outcomes[0].Disposition != mail.Deferred {
		t.Errorf("after Close: %s", brief(r.Outcomes))
	}
}

func TestReuseAfterTheHostClosed(t *testing.T) {
	for _, test := range []struct {
		name   string
		script func(h *relaytest.SmartHost)
	}{
		{"closed while idle", func(h *relaytest.SmartHost) { h.Drop() }},
		{"closes at MAIL", func(h *relaytest.SmartHost) { h.Do("MAIL", relaytest.Action{Times: 1, Silent: true, Close: true}) }},
		{"resets at MAIL", func(h *relaytest.SmartHost) { h.Do("MAIL", relaytest.Action{Times: 1, Silent: true, Reset: true}) }},
		{"421 at MAIL", func(h *relaytest.SmartHost) {
			h.Do("MAIL", relaytest.Action{Times: 1, Reply: "421 4.4.2 idle", Close: true})
		}},
		{"too many messages", func(h *relaytest.SmartHost) {
			h.Do("MAIL", relaytest.Action{Times: 1, Reply: "451 4.7.0 too many messages"})
		}},
		{"closes at RCPT", func(h *relaytest.SmartHost) { h.Do("RCPT", relaytest.Action{Times: 1, Silent: true, Close: true}) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := relaytest.NewSmartHost(t)
			c := smart(t, nil, h)
			c.Attempt(t.Context(), outHop, message(sample))
			test.script(h)
			r := c.Attempt(t.Context(), outHop, message(sample))
			if got := brief(r.Outcomes); got != "relayed 250 2.0.0" || r.Reused {
				t.Errorf("outcome = %s, reused %t\n%s", got, r.Reused, lines(r))
			}
			if n, _ := h.Received(); n != 2 {
				t.Errorf("the host took %d messages, want 2", n)
			}
			if n, _ := c.Stats(); n != 1 {
				t.Errorf("%d slots taken, want 1", n)
			}
		})
	}
}

func TestReusedSessionRefusesRecipients(t *testing.T) {
	first, second := relaytest.NewSmartHost(t), relaytest.NewSmartHost(t)
	c := smart(t, nil, first, second)
	c.Attempt(t.Context(), outHop, message(sample))
	first.On("RCPT", 451, "4.3.0 lookup failed")
	r := c.Attempt(t.Context(), outHop, message(sample))
	if got := brief(r.Outcomes); got != "relayed 250 2.0.0" || r.Remote != second.AddrPort() {
		t.Errorf("outcome = %s at %v, want relayed by the second host", got, r.Remote)
	}
	if n := first.Counts()["RCPT"]; n != 2 {
		t.Errorf("the first host was asked RCPT %d times, want 2: once for each message", n)
	}
	second.On("RCPT", 450, "4.7.1 greylisted")
	r = c.Attempt(t.Context(), outHop, message(sample))
	if got := brief(r.Outcomes); !strings.HasPrefix(got, "deferred 45") {
		t.Errorf("outcome = %s", got)
	}
	if n, _ := c.Stats(); n != c.Idle() {
		t.Errorf("%d slots taken, %d idle", n, c.Idle())
	}
}

func TestContextIsDoneAlready(t *testing.T) {
	h := relaytest.NewSmartHost(t)
	c := smart(t, nil, h)
	c.Attempt(t.Context(), outHop, message(sample))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := c.Attempt(ctx, outHop, message(sample))
	if got, want := brief(r.Outcomes), "deferred 451 4.3.2 at CONNECT other local"; got != want {
		t.Errorf("outcome = %s, want %s", got, want)
	}
	if c.Idle() != 1 {
		t.Error("the idle session is gone")
	}
	if r := c.Attempt(t.Context(), outHop, Message{}); len(r.Outcomes) != 0 {
		t.Errorf("no recipients: %s", brief(r.Outcomes))
	}
}

func TestIdleSessionEnds(t *testing.T) {
	h := relaytest.NewSmartHost(t)
	var rec relaytest.Recorder
	c := smart(t, func(o *Options) { o.Emitter = rec.Emitter(); o.Limits.IdleTimeout = time.Millisecond }, h)
	c.Attempt(t.Context(), outHop, message(sample))
	ev := rec.WaitFor(t, "session_closed", 1)[0].Event.(event.SessionClosed)
	if ev.Cause != "idle" {
		t.Errorf("cause = %q, want idle", ev.Cause)
	}
	if got := h.Counts()["QUIT"]; got != 1 {
		t.Errorf("QUIT came %d times, want 1", got)
	}
	eventually(t, "slot is free", func() bool { n, _ := c.Stats(); return n == 0 })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("it never happened that %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

func TestNextHost(t *testing.T) {
	for _, test := range []struct {
		name   string
		script func(h *relaytest.SmartHost)
		want   string // of the second host's taking it, or else the outcome
	}{
		{"greeting 554", func(h *relaytest.SmartHost) { h.On("CONNECT", 554, "no") }, "relayed 250 2.0.0"},
		{"greeting 521", func(h *relaytest.SmartHost) { h.On("CONNECT", 521, "no") }, "relayed 250 2.0.0"},
		{"refuses connections", func(h *relaytest.SmartHost) { _ = h.Close() }, "relayed 250 2.0.0"},
		{"EHLO dropped", func(h *relaytest.SmartHost) { h.Do("EHLO", relaytest.Action{Silent: true, Close: true}) }, "relayed 250 2.0.0"},
		{"MAIL 451", func(h *relaytest.SmartHost) { h.On("MAIL", 451, "no") }, "relayed 250 2.0.0"},
		{"MAIL 550", func(h *relaytest.SmartHost) { h.On("MAIL", 550, "5.7.1 no") }, "bounced 550 5.7.1 at MAIL"},
		{"RCPT 451", func(h *relaytest.SmartHost) { h.On("RCPT", 451, "no") }, "relayed 250 2.0.0"},
		{"RCPT 550", func(h *relaytest.SmartHost) { h.On("RCPT", 550, "5.1.1 no") }, "bounced 550 5.1.1 at RCPT"},
		{"DATA 451", func(h *relaytest.SmartHost) { h.On("DATA", 451, "4.3.0 no") }, "deferred 451 4.3.0 at DATA"},
		{"dot dropped", func(h *relaytest.SmartHost) { h.Do(".", relaytest.Action{Silent: true, Close: true}) }, "deferred 451 4.4.2 at . connect local uncertain"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			first, second := relaytest.NewSmartHost(t), relaytest.NewSmartHost(t)
			c := smart(t, nil, first, second)
			test.script(first)
			r := c.Attempt(t.Context(), outHop, message(sample))
			if got := brief(r.Outcomes); got != test.want {
				t.Errorf("outcome = %s, want %s\n%s", got, test.want, lines(r))
			}
			went := first.AddrPort()
			if strings.HasPrefix(test.want, "relayed") {
				went = second.AddrPort()
			}
			if r.Remote != went {
				t.Errorf("went to %v, want %v", r.Remote, went)
			}
		})
	}
}

func TestMostTellingFailure(t *testing.T) {
	first, second, third := relaytest.NewSmartHost(t), relaytest.NewSmartHost(t), relaytest.NewSmartHost(t)
	first.On("CONNECT", 521, "no mail")
	second.On("CONNECT", 554, "5.7.1 blocked")
	_ = third.Close()
	c := smart(t, nil, first, second, third)
	r := c.Attempt(t.Context(), outHop, message(sample))
	if got, want := brief(r.Outcomes), "deferred 554 5.7.1 at CONNECT"; got != want || r.Remote != second.AddrPort() || r.Session == "" {
		t.Errorf("outcome = %s at %v, session %q, want %s", got, r.Remote, r.Session, want)
	}
}

func TestRecipientsRefusedForNowKeepTheirReply(t *testing.T) {
	first, second := relaytest.NewSmartHost(t), relaytest.NewSmartHost(t)
	first.OnRcpt("a@y.example", 450, "4.7.1 a")
	first.OnRcpt("b@y.example", 550, "5.1.1 b")
	_ = second.Close()
	c := smart(t, nil, first, second)
	r := c.Attempt(t.Context(), outHop, message(sample, "a@y.example", "b@y.example"))
	if got, want := brief(r.Outcomes), "deferred 450 4.7.1 at RCPT; bounced 550 5.1.1 at RCPT"; got != want {
		t.Errorf("outcomes = %s, want %s", got, want)
	}
}

func TestEqualCostSharesLoad(t *testing.T) {
	a, b := relaytest.NewSmartHost(t), relaytest.NewSmartHost(t)
	c := smart(t, func(o *Options) {
		o.SmartHosts[1].Cost = o.SmartHosts[0].Cost
		o.Limits.MessagesPerConnection = 1
	}, a, b)
	for range 60 {
		c.Attempt(t.Context(), outHop, message(sample))
	}
	na, _ := a.Received()
	nb, _ := b.Received()
	if na+nb != 60 || na < 10 || nb < 10 {
		t.Errorf("%d and %d messages, want about as many each", na, nb)
	}
}

// byMX makes a connector that routes by MX to the ports of hosts on 127.0.0.1
// and 127.0.0.2.
func byMX(t *testing.T, change func(o *Options), port uint16) (*Connector, *relaytest.Resolver) {
	t.Helper()
	res := &relaytest.Resolver{}
	return smart(t, func(o *Options) {
		o.Resolver, o.Port, o.AllowLoopback = res, port, true
		if change != nil {
			change(o)
		}
	}), res
}

func TestMX(t *testing.T) {
	one := relaytest.NewSmartHost(t)
	two, err := relaytest.StartSmartHost(fmt.Sprintf("127.0.0.2:%d", one.Port()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = two.Close() })
	self := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), one.Port())
	for _, test := range []struct {
		name   string
		change func(o *Options)
		domain string
		want   string
		remote string
	}{
		{"first", nil, "y.example", "relayed 250 2.0.0", "mx1.y.example"},
		{"first has no address", nil, "second.example", "relayed 250 2.0.0", "mx2.y.example"},
		{"first fails in the DNS", nil, "fails1.example", "relayed 250 2.0.0", "mx2.y.example"},
		{"implicit", nil, "mx1.y.example", "relayed 250 2.0.0", "mx1.y.example"},
		{"address literal", nil, "[127.0.0.1]", "relayed 250 2.0.0", "[127.0.0.1]"},
		{"no such domain", nil, "unknown.example", "bounced 550 5.1.2 at  bad_domain local", ""},
		{"no host", nil, "nodata.example", "bounced 550 5.1.2 at  bad_domain local", ""},
		{"null MX", nil, "null.example", "bounced 556 5.1.10 at  bad_domain local", ""},
		{"DNS fails", nil, "servfail.example", "deferred 451 4.4.3 at  dns local", ""},
		{"DNS is silent", nil, "timeout.example", "deferred 451 4.4.3 at  dns local", ""},
		{"no MX has an address", nil, "dangling.example", "bounced 550 5.4.4 at  dns local", ""},
		{"one has none, one fails", nil, "mixed.example", "deferred 451 4.4.3 at  dns local", ""},
		{"loopback", func(o *Options) { o.AllowLoopback = false }, "y.example", "bounced 554 5.4.6 at CONNECT bad_domain local", ""},
		{"loopback literal", func(o *Options) { o.AllowLoopback = false }, "[127.0.0.1]", "bounced 554 5.4.6 at CONNECT bad_domain local", ""},
		{"our name", func(o *Options) { o.AllowLoopback = false }, "ours.example", "bounced 554 5.4.6 at CONNECT bad_domain local", ""},
		{"our address", func(o *Options) { o.AllowLoopback = false; o.Self = []netip.AddrPort{self} }, "y.example", "bounced 554 5.4.6 at CONNECT bad_domain local", ""},
		{"private address", func(o *Options) { o.AllowLoopback = false }, "private.example", "bounced 550 5.4.4 at CONNECT bad_domain local", "mx.private.example"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, res := byMX(t, test.change, one.Port())
			res.SetMX("y.example", "mx1.y.example", "mx2.y.example")
			res.SetAddrs("mx1.y.example", "127.0.0.1")
			res.SetAddrs("mx2.y.example", "127.0.0.2")
			res.SetMX("second.example", "none.y.example", "mx2.y.example")
			res.SetMX("fails1.example", "broken.y.example", "mx2.y.example")
			res.Fail("broken.y.example", dns.ServFail)
			res.SetMX("null.example", ".")
			res.Fail("nodata.example", dns.NoData)
			res.Fail("servfail.example", dns.ServFail)
			res.Fail("timeout.example", dns.Timeout)
			res.SetMX("dangling.example", "none1.example", "none2.example")
			res.SetMX("mixed.example", "broken.y.example", "none2.example")
			res.SetMX("ours.example", "relay.example", "mx2.y.example")
			res.SetAddrs("relay.example", "192.0.2.1")
			res.SetMX("private.example", "mx.private.example")
			res.SetAddrs("mx.private.example", "10.1.2.3")
			r := c.Attempt(t.Context(), route.Hop{Connector: "out", Name: test.domain}, message(sample))
			if got := brief(r.Outcomes); got != test.want {
				t.Errorf("outcome = %s, want %s\n%s", got, test.want, lines(r))
			}
			if r.RemoteName != test.remote {
				t.Errorf("went to %q, want %q", r.RemoteName, test.remote)
			}
			if r.Provider == "" || r.TLSVerify == "" {
				t.Errorf("provider %q, verify %q, want words", r.Provider, r.TLSVerify)
			}
			if n, _ := c.Stats(); n != c.Idle() {
				t.Errorf("%d slots taken, %d idle", n, c.Idle())
			}
		})
	}
}

func TestSelfEndsTheList(t *testing.T) {
	one := relaytest.NewSmartHost(t)
	res := &relaytest.Resolver{}
	res.SetMX("y.example", "mx1.y.example", "us.y.example", "mx3.y.example")
	res.SetAddrs("mx1.y.example", "192.0.2.99")
	res.SetAddrs("us.y.example", "192.0.2.7")
	res.SetAddrs("mx3.y.example", "127.0.0.1")
	c := smart(t, func(o *Options) {
		o.Resolver, o.Port = res, one.Port()
		o.Self = []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("192.0.2.7"), one.Port())}
		o.Timeouts.Connect = 50 * time.Millisecond
	})
	r := c.Attempt(t.Context(), route.Hop{Connector: "out", Name: "y.example"}, message(sample))
	if o := r.Outcomes[0]; o.Disposition != mail.Deferred || o.Verb != "CONNECT" {
		t.Errorf("outcome = %s, want deferred: the better host does not answer", brief(r.Outcomes))
	}
	if res.Asked("mx3.y.example") != 0 {
		t.Error("a host worse than ourselves was asked for")
	}
}

func TestOwnAddresses(t *testing.T) {
	self := ownAddresses([]netip.AddrPort{netip.MustParseAddrPort("[::]:25"), netip.MustParseAddrPort("[::ffff:192.0.2.1]:2525")})
	if !self[netip.MustParseAddrPort("127.0.0.1:25")] || !self[netip.MustParseAddrPort("192.0.2.1:2525")] || self[netip.MustParseAddrPort("127.0.0.1:26")] {
		t.Errorf("own addresses = %v", self)
	}
}

func TestDeadHostComesLast(t *testing.T) {
	dead, alive := relaytest.NewSmartHost(t), relaytest.NewSmartHost(t)
	at := dead.AddrPort()
	_ = dead.Close()
	c := smart(t, func(o *Options) { o.Limits.MessagesPerConnection = 1 }, dead, alive)
	for i := range 3 {
		r := c.Attempt(t.Context(), outHop, message(sample))
		if got := brief(r.Outcomes); got != "relayed 250 2.0.0" {
			t.Fatalf("outcome = %s", got)
		}
		if !c.isDead(at) {
			t.Errorf("message %d: the dead host is not remembered", i)
		}
	}
	back, err := relaytest.StartSmartHost(at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = back.Close() })
	_ = alive.Close()
	if r := c.Attempt(t.Context(), outHop, message(sample)); r.Remote != at {
		t.Errorf("went to %v, want the host that came back: %s", r.Remote, brief(r.Outcomes))
	}
	if c.isDead(at) {
		t.Error("the host that came back still comes last")
	}
}

func TestMaxHosts(t *testing.T) {
	h := relaytest.NewSmartHost(t)
	h.On("CONNECT", 554, "no")
	c := smart(t, func(o *Options) {
		for range 20 {
			o.SmartHosts = append(o.SmartHosts, o.SmartHosts[0])
		}
		o.Limits.MaxHosts = 3
	}, h)
	c.Attempt(t.Context(), outHop, message(sample))
	if total, _, _ := h.Connections(); total != 3 {
		t.Errorf("%d connections, want 3", total)
	}
}

func TestTimeouts(t *testing.T) {
	const soon = 30 * time.Millisecond
	slow := relaytest.Action{Slow: 10 * time.Millisecond}
	hang := relaytest.Action{Hang: true}
	for _, test := range []struct {
		name   string
		phase  string
		action relaytest.Action
		change func(to *Timeouts)
		want   string
	}{
		{"greeting", "CONNECT", hang, func(to *Timeouts) { to.Greeting = soon }, "deferred 451 4.4.2 at CONNECT timeout local"},
		{"greeting, an octet at a time", "CONNECT", slow, func(to *Timeouts) { to.Greeting = soon }, "deferred 451 4.4.2 at CONNECT timeout local"},
		{"EHLO", "EHLO", hang, func(to *Timeouts) { to.Command = soon }, "deferred 451 4.4.2 at EHLO timeout local"},
		{"MAIL", "MAIL", hang, func(to *Timeouts) { to.Mail = soon }, "deferred 451 4.4.2 at MAIL timeout local"},
		{"RCPT", "RCPT", hang, func(to *Timeouts) { to.Rcpt = soon }, "deferred 451 4.4.2 at RCPT timeout local"},
		{"DATA", "DATA", hang, func(to *Timeouts) { to.Data = soon }, "deferred 451 4.4.2 at DATA timeout local"},
		{"dot", ".", hang, func(to *Timeouts) { to.Dot = soon }, "deferred 451 4.4.2 at . timeout local uncertain"},
		{"dot, an octet at a time", ".", slow, func(to *Timeouts) { to.Dot = soon }, "deferred 451 4.4.2 at . timeout local uncertain"},
		{"content is not read", "CONTENT", relaytest.Action{Delay: time.Minute, Silent: true}, func(to *Timeouts) { to.Block = soon }, "deferred 451 4.4.2 at DATA timeout local"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := relaytest.NewSmartHost(t)
			h.Do(test.phase, test.action)
			c := smart(t, func(o *Options) { test.change(&o.Timeouts) }, h)
			r := c.Attempt(t.Context(), outHop, message(strings.Repeat("a line of content\r\n", 1<<19)))
			if got := brief(r.Outcomes); got != test.want {
				t.Errorf("outcome = %s, want %s", got, test.want)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	for _, phase := range []string{"CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "."} {
		t.Run(phase, func(t *testing.T) {
			t.Parallel()
			reached := make(chan struct{})
			var once sync.Once
			h := relaytest.NewSmartHost(t, relaytest.WithoutExtension("PIPELINING"), relaytest.WithBehaviour(func(p, _ string) (string, time.Duration, bool) {
				if p == phase {
					once.Do(func() { close(reached) })
					return "", time.Minute, false
				}
				return "", 0, false
			}))
			c := smart(t, func(o *Options) { o.Timeouts = Timeouts{} }, h)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan Result)
			go func() { done <- c.Attempt(ctx, outHop, message(sample)) }()
			<-reached
			cancel()
			r := <-done
			want := "deferred 451 4.3.2 at " + phase + " other local"
			if phase == "." {
				want += " uncertain"
			}
			if got := brief(r.Outcomes); got != want {
				t.Errorf("outcome = %s, want %s", got, want)
			}
			if n, _ := c.Stats(); n != 0 {
				eventually(t, "slot is free", func() bool { n, _ := c.Stats(); return n == 0 })
			}
		})
	}
}

func TestEarlyReply(t *testing.T) {
	h := relaytest.NewSmartHost(t)
	h.Do("CONTENT", relaytest.Action{After: 10_000, Reply: "552 5.3.4 too much", Close: true})
	c := smart(t, nil, h)
	r := c.Attempt(t.Context(), outHop, message(strings.Repeat("a line of content\r\n", 1<<20)))
	if got, want := brief(r.Outcomes), "bounced 552 5.3.4 at ."; got != want {
		t.Errorf("outcome = %s, want %s", got, want)
	}
}

func TestEarlyReplyAndReset(t *testing.T) {
	h := relaytest.NewSmartHost(t)
	h.Do("CONTENT", relaytest.Action{After: 10_000, Reply: "552 5.3.4 too much", Reset: true})
	c := smart(t, nil, h)
	r := c.Attempt(t.Context(), outHop, message(strings.Repeat("a line of content\r\n", 1<<20)))
	// Whether the reply survives the reset is the kernel's to say; the message is not in doubt either way.
	got := brief(r.Outcomes)
	if got != "bounced 552 5.3.4 at ." && got != "deferred 451 4.4.2 at DATA connect local" {
		t.Errorf("outcome = %s", got)
	}
}

func TestContentFails(t *testing.T) {
	for _, test := range []struct {
		name string
		open func() (io.ReadCloser, error)
		mail int
	}{
		{"open", func() (io.ReadCloser, error) { return nil, errors.New("no segment") }, 0},
		{"read", func() (io.ReadCloser, error) { return io.NopCloser(&breaking{}), nil }, 0},
		{"read late", func() (io.ReadCloser, error) { return io.NopCloser(&breaking{left: 3 * blockSize}), nil }, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			h, other := relaytest.NewSmartHost(t), relaytest.NewSmartHost(t)
			c := smart(t, nil, h, other)
			m := message(sample)
			m.Open = test.open
			m.Envelope.Body = mail.Body8BitMIME // or else it is read before MAIL
			r := c.Attempt(t.Context(), outHop, m)
			o := r.Outcomes[0]
			if o.Disposition != mail.Deferred || o.Reply.Enhanced != "4.3.0" || o.Remote || o.Uncertain {
				t.Errorf("outcome = %s", brief(r.Outcomes))
			}
			if got := h.Counts()["MAIL"]; got != test.mail {
				t.Errorf("MAIL came %d times, want %d", got, test.mail)
			}
			if n, _ := h.Received(); n != 0 {
				t.Error("half a message was taken")
			}
			if total, _, _ := other.Connections(); total != 0 {
				t.Error("the next host was tried for a fault of ours")
			}
		})
	}
}

// breaking is content that cannot be read to its end.
type breaking struct{ left int }

func (b *breaking) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errors.New("bad checksum")
	}
	n := min(len(p), b.left)
	b.left -= n
	copy(p, bytes.Repeat([]byte("x"), n))
	return n, nil
}

func TestLimits(t *testing.T) {
	h := relaytest.NewSmartHost(t)
	h.Do(".", relaytest.Action{Delay: 2 * time.Millisecond})
	var rec relaytest.Recorder
	c := smart(t, func(o *Options) {
		o.Emitter = rec.Emitter()
		o.Limits.Connections, o.Limits.ConnectionsPerDestination = 4, 3
		o.Resolver, o.AllowLoopback = &relaytest.Resolver{}, true
		o.Port = h.Port()
	})
	res := c.opts.Resolver.(*relaytest.Resolver)
	for i := range 5 {
		res.SetAddrs(fmt.Sprintf("d%d.example", i), "127.0.0.1")
	}
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			r := c.Attempt(t.Context(), route.Hop{Connector: "out", Name: fmt.Sprintf("d%d.example", i%5)}, message(sample))
			if got := brief(r.Outcomes); got != "relayed 250 2.0.0" {
				t.Errorf("outcome = %s\n%s", got, lines(r))
			}
		})
	}
	wg.Wait()
	open := 0
	for _, r := range rec.Records() {
		switch event.Name(r.Event) {
		case "session_opened":
			open++
		case "session_closed":
			open--
		}
		if open > 4 {
			t.Errorf("%d sessions at once, want at most 4", open)
		}
	}
	if n, limit := c.Stats(); n > 4 || limit != 4 {
		t.Errorf("Stats() = %d, %d", n, limit)
	}
	if n, _ := h.Received(); n != 60 {
		t.Errorf("the host took %d messages, want 60", n)
	}
}

func TestWaitForASlotEnds(t *testing.T) {
	reached := make(chan struct{})
	h := relaytest.NewSmartHost(t, relaytest.WithBehaviour(func(p, _ string) (string, time.Duration, bool) {
		if p == "." {
			close(reached)
			return "", time.Minute, false
		}
		return "", 0, false
	}))
	c := smart(t, func(o *Options) { o.Limits.Connections = 1 }, h)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { c.Attempt(ctx, outHop, message(sample)) })
	<-reached
	short, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	r := c.Attempt(short, outHop, message(sample))
	if got, want := brief(r.Outcomes), "deferred 451 4.4.7 at CONNECT timeout local"; got != want {
		t.Errorf("outcome = %s, want %s", got, want)
	}
	cancel()
	wg.Wait()
}

func TestConcurrent(t *testing.T) {
	h := relaytest.NewSmartHost(t)
	h.Do("MAIL", slices.Repeat([]relaytest.Action{{Times: 7}, {Times: 1, Reply: "421 4.3.2 later", Close: true}}, 20)...)
	c := smart(t, func(o *Options) { o.Limits.MessagesPerConnection = 10 }, h)
	var wg sync.WaitGroup
	var mu sync.Mutex
	relayed := 0
	for range 20 {
		wg.Go(func() {
			for range 20 {
				r := c.Attempt(t.Context(), outHop, message(sample, "a@y.example", "b@y.example"))
				mu.Lock()
				if r.Outcomes[0].Disposition == mail.Relayed {
					relayed++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if n, _ := h.Received(); n != relayed {
		t.Errorf("the host took %d messages, %d were relayed", n, relayed)
	}
	_ = c.Close()
	if n, _ := c.Stats(); n != 0 {
		t.Errorf("%d slots taken after Close", n)
	}
}

// TestClosed says of attempts that come too late, or wait when the connector is
// closed, that they were not made.
func TestClosed(t *testing.T) {
	gate := make(chan struct{})
	h := relaytest.NewSmartHost(t, relaytest.WithBehaviour(func(phase, _ string) (string, time.Duration, bool) {
		if phase == relaytest.PhaseDot {
			<-gate
		}
		return "", 0, false
	}))
	c := smart(t, func(o *Options) { o.Limits.Connections, o.Limits.ConnectionsPerDestination = 1, 1 }, h)
	first, waiting := make(chan Result, 1), make(chan Result, 1)
	go func() { first <- c.Attempt(t.Context(), outHop, message(sample)) }()
	eventually(t, "the first to be under way", func() bool { return h.Counts()["DATA"] == 1 })
	go func() { waiting <- c.Attempt(t.Context(), outHop, message(sample)) }()
	eventually(t, "the second to wait", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.waiting == 1
	})
	closed := make(chan struct{})
	go func() { defer close(closed); _ = c.Close() }()
	second := <-waiting
	close(gate)
	<-closed
	if r := <-first; r.Closed || r.Outcomes[0].Disposition != mail.Relayed {
		t.Errorf("the attempt under way: closed %t, %s; want it relayed", r.Closed, r.Outcomes[0].Disposition)
	}
	for name, r := range map[string]Result{"waiting": second, "late": c.Attempt(t.Context(), outHop, message(sample))} {
		if !r.Closed || r.Outcomes[0].Disposition != mail.Deferred {
			t.Errorf("the %s attempt: closed %t, %s; want closed and deferred", name, r.Closed, r.Outcomes[0].Disposition)
		}
	}
}

func TestTranscript(t *testing.T) {
	h := relaytest.NewSmartHost(t)
	h.On(".", 550, "5.7.1 \x1b[31mspam\x00")
	c := smart(t, nil, h)
	r := c.Attempt(t.Context(), outHop, message(sample))
	want := fmt.Sprintf(`note: (connect %s)
server: 220 next-hop.example ESMTP
client: EHLO relay.example
server: 250-next-hop.example
server: 250-PIPELINING
server: 250-SIZE 52428800
server: 250-8BITMIME
server: 250-SMTPUTF8
server: 250-DSN
server: 250 ENHANCEDSTATUSCODES
client: MAIL FROM:<sender@x.example> SIZE=47
client: RCPT TO:<a@y.example>
client: DATA
server: 250 2.1.0 ok
server: 250 2.1.5 ok
server: 354 go ahead
client: (content)
client: .
server: 550 5.7.1 \x1b[31mspam\x00
`, h.Addr())
	if got := lines(r); got != want {
		t.Errorf("transcript:\n%s\nwant:\n%s", got, want)
	}
	if got, want := r.Outcomes[0].Reply.Text, "?[31mspam?"; got != want {
		t.Errorf("reply text = %q, want %q", got, want)
	}
	for _, l := range r.Transcript {
		if l.Text == "(content)" && l.Bytes != 51 {
			t.Errorf("content of %d octets on the wire, want 51", l.Bytes)
		}
	}
}

func TestTranscriptIsBounded(t *testing.T) {
	h := relaytest.NewSmartHost(t, relaytest.WithoutExtension("PIPELINING"))
	h.On("RCPT", 550, strings.Repeat("long ", 300))
	c := smart(t, nil, h)
	var to []string
	for i := range 500 {
		to = append(to, fmt.Sprintf("u%d@y.example", i))
	}
	r := c.Attempt(t.Context(), outHop, message(sample, to...))
	if r.Kept.Cut == 0 || r.Kept.Lines != len(r.Transcript)-1+r.Kept.Cut {
		t.Errorf("%+v and %d lines", r.Kept, len(r.Transcript))
	}
	var last event.Seconds
	for _, l := range r.Transcript {
		if l.At < last {
			t.Errorf("line %q at %v after %v", l.Text, l.At, last)
		}
		if last = l.At; len(l.Text) > 520 {
			t.Errorf("line of %d octets", len(l.Text))
		}
	}
	if !strings.Contains(lines(r), "lines left out") || !strings.Contains(lines(r), "u499@") || !strings.Contains(lines(r), "EHLO") {
		t.Error("the transcript must have its beginning, its end, and say that something is missing")
	}
	if n := h.Counts()["RCPT"]; n != 500 {
		t.Errorf("RCPT came %d times, want 500", n)
	}
}

func TestManyRecipients(t *testing.T) {
	h := relaytest.NewSmartHost(t)
	c := smart(t, nil, h)
	var to []string
	for i := range 350 {
		to = append(to, fmt.Sprintf("u%d@y.example", i))
	}
	h.OnRcpt("u123@y.example", 550, "5.1.1 no")
	r := c.Attempt(t.Context(), outHop, message(sample, to...))
	for i, o := range r.Outcomes {
		want := mail.Relayed
		if i == 123 {
			want = mail.Bounced
		}
		if o.Disposition != want || o.Recipient.Local != fmt.Sprintf("u%d", i) {
			t.Errorf("recipient %d: %s %s, want %s", i, o.Recipient, o.Disposition, want)
		}
	}
	if n := len(h.Messages()[0].Envelope.Recipients); n != 349 {
		t.Errorf("%d recipients arrived, want 349", n)
	}
}

func TestNewRefuses(t *testing.T) {
	password := func() (string, error) { return "x", nil }
	hosts := []route.SmartHost{{Host: "192.0.2.1"}}
	for _, test := range []struct {
		name string
		opts Options
	}{
		{"no hostname", Options{SmartHosts: hosts}},
		{"line end in the hostname", Options{SmartHosts: hosts, Hostname: "a\r\nb"}},
		{"level", Options{SmartHosts: hosts, Hostname: "a", TLS: "strong"}},
		{"mechanism", Options{SmartHosts: hosts, Hostname: "a", Auth: Auth{Mechanism: "CRAM-MD5", Password: password}}},
		{"no password", Options{SmartHosts: hosts, Hostname: "a", Auth: Auth{Mechanism: "PLAIN"}}},
		{"auth without TLS", Options{SmartHosts: hosts, Hostname: "a", TLS: TLSNone, Auth: Auth{Mechanism: "PLAIN", Password: password}}},
		{"auth by MX", Options{Resolver: &relaytest.Resolver{}, Hostname: "a", Auth: Auth{Mechanism: "PLAIN", Password: password}}},
		{"no resolver", Options{Hostname: "a"}},
		{"no resolver for a name", Options{Hostname: "a", SmartHosts: []route.SmartHost{{Host: "b"}}}},
		{"negative limit", Options{SmartHosts: hosts, Hostname: "a", Limits: Limits{Connections: -1}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := New(test.opts); err == nil {
				t.Error("New = nil, want an error")
			}
		})
	}
}

func TestProvider(t *testing.T) {
	for _, test := range []struct{ name, host, want string }{
		{"m365", "contoso-com.mail.protection.outlook.com", "m365"},
		{"m365 with DNSSEC", "contoso-com.o-v1.mx.microsoft", "m365"},
		{"outlook", "outlook-com.olc.protection.outlook.com.", "outlook"},
		{"google", "ASPMX.L.GOOGLE.COM", "google"},
		{"yahoo", "mta7.am0.yahoodns.net", "yahoo"},
		{"apple", "mx01.mail.icloud.com", "apple"},
		{"not google", "evilgoogle.com", "other"},
		{"nobody", "mx.example", "other"},
		{"empty", "", "other"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := Provider(test.host); got != test.want {
				t.Errorf("Provider(%q) = %q, want %q", test.host, got, test.want)
			}
		})
	}
	if n := len(Providers()); n != 21 {
		t.Errorf("%d providers, want 21", n)
	}
}

func TestSourceAddresses(t *testing.T) {
	h := relaytest.NewSmartHost(t)
	c := smart(t, func(o *Options) {
		o.SourceAddrs = []netip.Addr{netip.MustParseAddr("::1"), netip.MustParseAddr("127.0.0.3"), netip.MustParseAddr("127.0.0.4"), netip.MustParseAddr("203.0.113.9")}
		o.Limits.MessagesPerConnection = 1
	}, h)
	seen := map[string]int{}
	for i := range 32 {
		hop := route.Hop{Connector: "out", Name: fmt.Sprintf("hop%d.example", i)}
		var kept netip.Addr
		for range 2 {
			r := c.Attempt(t.Context(), hop, message(sample))
			if got := brief(r.Outcomes); got != "relayed 250 2.0.0" {
				t.Fatalf("outcome = %s", got)
			}
			if kept.IsValid() && r.Local.Addr() != kept {
				t.Errorf("%s was reached from %v, and then from %v", hop.Name, kept, r.Local.Addr())
			}
			kept = r.Local.Addr()
		}
		seen[kept.String()]++
	}
	if len(seen) != 2 || seen["127.0.0.3"] < 4 || seen["127.0.0.4"] < 4 {
		t.Errorf("came from %v, want both usable addresses", seen)
	}
}

func TestSourceAddressesOfOneFamily(t *testing.T) {
	h := relaytest.NewSmartHost(t)
	c := smart(t, func(o *Options) { o.SourceAddrs = []netip.Addr{netip.MustParseAddr("2001:db8::1")} }, h)
	r := c.Attempt(t.Context(), outHop, message(sample))
	if got, want := brief(r.Outcomes), "deferred 451 4.4.1 at CONNECT connect local"; got != want {
		t.Errorf("outcome = %s, want %s", got, want)
	}
	if total, _, _ := h.Connections(); total != 0 || c.isDead(h.AddrPort()) {
		t.Errorf("%d connections, dead %t: the host is not to blame", total, c.isDead(h.AddrPort()))
	}
}

func TestAcceptedBeforeTheEnd(t *testing.T) {
	h := relaytest.NewSmartHost(t)
	h.Do("CONTENT", relaytest.Action{After: 10_000, Reply: "250 2.0.0 thank you"}, relaytest.Action{Hang: true})
	c := smart(t, nil, h)
	r := c.Attempt(t.Context(), outHop, message(strings.Repeat("a line of content\r\n", 1<<20)))
	if got, want := brief(r.Outcomes), "deferred 451 4.5.0 at . other local uncertain"; got != want {
		t.Errorf("outcome = %s, want %s", got, want)
	}
}
