package relaytest

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/smtp"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"waybill/relay/dns"
	"waybill/relay/event"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// talk writes in and returns everything that comes until the host closes.
func talk(t *testing.T, addr, in string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(waitLimit))
	if _, err := io.WriteString(c, in); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Logf("read: %v", err)
	}
	return string(out)
}

func codes(out string) string {
	var b strings.Builder
	for l := range strings.SplitSeq(strings.TrimSuffix(out, "\r\n"), "\r\n") {
		if len(l) > 3 && l[3] == '-' {
			continue
		}
		fmt.Fprintf(&b, "%.3s ", l)
	}
	return strings.TrimSpace(b.String())
}

const dialogue = "EHLO me\r\nMAIL FROM:<a@x> SIZE=10\r\nRCPT TO:<b@y>\r\nRCPT TO:<c@y> NOTIFY=NEVER\r\nDATA\r\nhello\r\n..dot\r\n.\r\nQUIT\r\n"

func TestScripts(t *testing.T) {
	for _, test := range []struct {
		name   string
		script func(h *SmartHost)
		want   string
	}{
		{"usual", func(*SmartHost) {}, "220 250 250 250 250 354 250 221"},
		{"one recipient", func(h *SmartHost) { h.OnRcpt("b@y", 550, "5.1.1 no such user") }, "220 250 250 550 250 354 250 221"},
		{"all recipients", func(h *SmartHost) { h.On("RCPT", 451, "4.7.1 greylisted") }, "220 250 250 451 451 554 500 500 500 221"},
		{"once", func(h *SmartHost) { h.Do("RCPT", Action{Times: 1, Reply: "452 4.5.3 later"}) }, "220 250 250 452 250 354 250 221"},
		{"sequence", func(h *SmartHost) {
			h.Do("RCPT", Action{Reply: "452 a"}, Action{Reply: "550 b"})
		}, "220 250 250 452 550 554 500 500 500 221"},
		{"banner", func(h *SmartHost) { h.On("CONNECT", 554, "go away") }, "554"},
		{"close after the dot", func(h *SmartHost) { h.Do(".", Action{Silent: true, Close: true}) }, "220 250 250 250 250 354"},
		{"raw", func(h *SmartHost) { h.Do("EHLO", Action{Raw: "x\r\n", Close: true}) }, "220 x"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := NewSmartHost(t)
			test.script(h)
			if got := codes(talk(t, h.Addr(), dialogue)); got != test.want {
				t.Errorf("replies = %q, want %q", got, test.want)
			}
		})
	}
}

func TestMessage(t *testing.T) {
	h := NewSmartHost(t)
	talk(t, h.Addr(), dialogue)
	m := h.WaitFor(t, 1)[0]
	if got, want := string(m.Content), "hello\r\n.dot\r\n"; got != want {
		t.Errorf("content = %q, want %q", got, want)
	}
	if len(m.Envelope.Recipients) != 2 || m.Envelope.Sender.String() != "a@x" || m.RcptArgs[1] != "TO:<c@y> NOTIFY=NEVER" {
		t.Errorf("envelope = %+v, args %q", m.Envelope, m.RcptArgs)
	}
	if v := h.Violations(); len(v) != 2 || !strings.Contains(v[0], "EHLO") || !strings.Contains(v[1], "DATA") {
		t.Errorf("violations = %q, want two: EHLO and DATA were not the last of a group", v)
	}
	if n := h.Counts()["RCPT"]; n != 2 {
		t.Errorf("RCPT came %d times, want 2", n)
	}
	if _, err := h.Wait(2, time.Millisecond); err == nil {
		t.Error("Wait for a second message = nil, want an error")
	}
}

func TestTLSAndAuth(t *testing.T) {
	h := NewSmartHost(t, WithTLS("localhost"), WithAuth("user", "secret"))
	c, err := smtp.Dial(h.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.StartTLS(&tls.Config{RootCAs: h.CA(), ServerName: "localhost"}); err != nil {
		t.Fatal(err)
	}
	if err := c.Mail("a@x"); err == nil {
		t.Error("MAIL without AUTH = nil, want 530")
	}
	if err := c.Auth(smtp.PlainAuth("", "user", "secret", "127.0.0.1")); err != nil {
		t.Fatal(err)
	}
	if err := c.Mail("a@x"); err != nil {
		t.Error(err)
	}
	_ = c.Quit()
}

func TestEndlessAndSlow(t *testing.T) {
	h := NewSmartHost(t)
	h.Do("CONNECT", Action{Endless: "220-more\r\n", Slow: time.Microsecond})
	c, err := net.Dial("tcp", h.Addr())
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	for i := range 5 {
		if l, err := r.ReadString('\n'); err != nil || i > 0 && l != "220-more\r\n" {
			t.Fatalf("line %d = %q, %v", i, l, err)
		}
	}
	c.Close()
}

func TestRecorder(t *testing.T) {
	var r Recorder
	e := r.Emitter().Message("id", "uid")
	done := make(chan bool)
	go func() { done <- len(r.WaitFor(t, "remarked", 2)) == 2 }()
	e.Emit(event.Remarked{Remark: "a"})
	e.Emit(event.Panicked{})
	e.Emit(event.Remarked{Remark: "b"})
	if !<-done {
		t.Error("WaitFor did not see both facts")
	}
	if got, want := r.Names(), []string{"remarked", "panicked", "remarked"}; !slices.Equal(got, want) {
		t.Errorf("Names() = %q, want %q", got, want)
	}
	if n := len(r.About("id")); n != 3 {
		t.Errorf("About = %d records, want 3", n)
	}
	if r.Wait(time.Millisecond, func(all []event.Record) bool { return len(all) > 3 }) {
		t.Error("Wait = true, want false")
	}
}

func TestResolver(t *testing.T) {
	var r Resolver
	r.SetMX("Example.com.", "mx1.example.com", "mx2.example.com")
	r.SetMX("null.example", ".")
	r.SetAddrs("implicit.example", "127.0.0.1", "::1")
	r.Fail("broken.example", dns.ServFail)
	for _, test := range []struct {
		name   string
		domain string
		kind   dns.Kind
		want   string
	}{
		{"two hosts", "example.COM", "", "mx1.example.com"},
		{"null MX", "null.example", dns.NullMX, ""},
		{"implicit", "implicit.example", "", "implicit.example"},
		{"failing", "broken.example", dns.ServFail, ""},
		{"unknown", "unknown.example", dns.NXDomain, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			mx, err := r.MX(t.Context(), test.domain)
			var derr *dns.Error
			if errors.As(err, &derr) != (test.kind != "") || derr != nil && derr.Kind != test.kind {
				t.Fatalf("MX = %v, want kind %q", err, test.kind)
			}
			if err == nil && mx[0].Host != test.want {
				t.Errorf("first host = %q, want %q", mx[0].Host, test.want)
			}
		})
	}
	if a, err := r.Addrs(t.Context(), "implicit.example"); err != nil || len(a) != 2 {
		t.Errorf("Addrs = %v, %v", a, err)
	}
	if n := r.Asked("example.com"); n != 1 {
		t.Errorf("asked %d times, want 1", n)
	}
}
