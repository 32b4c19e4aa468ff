package smtpin

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"waybill/relay/event"
)

// TestHeaderChecks sends header sections to connectors of each kind.
func TestHeaderChecks(t *testing.T) {
	strict := func(c *Connector) { c.Headers.NoEightBit, c.Headers.NoMalformed = true, true }
	fields := func(n int) string { return strings.Repeat("X: y\r\n", n) + "\r\nbody\r\n" }
	for _, test := range []struct {
		name    string
		change  func(*Connector)
		params  string
		content string
		want    string // reply
		reason  string // of the fact
	}{
		{"ordinary", strict, "", "From: a@example.net\r\nSubject: x\r\n y\r\n\r\nb\xe4dy\r\n", "250", ""},
		{"8-bit, accepted", nil, "", "Subject: b\xe4r\r\n\r\n", "250", ""},
		{"8-bit, refused", strict, "", "Subject: b\xe4r\r\n\r\n", "550 5.6.0", "utf8"},
		{"8-bit in a folded line", strict, "", "Subject: x\r\n b\xe4r\r\n\r\n", "550 5.6.0", "utf8"},
		{"8-bit with SMTPUTF8", strict, " SMTPUTF8", "Subject: b\u00e4r\r\n\r\n", "250", ""},
		{"no header section, accepted", nil, "", "hello\r\n", "250", ""},
		{"no header section, refused", strict, "", "hello\r\n", "550 5.6.0", "header"},
		{"a line that is no field", strict, "", "From: a@example.net\r\nhello\r\n\r\n", "550 5.6.0", "header"},
		{"a name with a space", strict, "", "From: a@example.net\r\nNot a field: x\r\n\r\n", "550 5.6.0", "header"},
		{"two From", strict, "", "From: a@example.net\r\nFROM: b@example.net\r\n\r\n", "550 5.6.0", "header"},
		{"two Subject, accepted", nil, "", "Subject: a\r\nSubject: b\r\n\r\n", "250", ""},
		{"begins folded", strict, "", " Subject: a\r\n\r\n", "550 5.6.0", "header"},
		{"no colon for long", strict, "", strings.Repeat("x", 2000) + ": y\r\n\r\n", "550 5.6.0", "header"},
		{"many fields", nil, "", fields(1000), "250", ""},
		{"too many fields", nil, "", fields(1001), "552 5.3.4", "header"},
		{"our own limit", func(c *Connector) { c.Limits.HeaderFields = 3 }, "", fields(4), "552 5.3.4", "header"},
		{"50,000 fields", func(c *Connector) { c.Limits.HeaderSize = -1 }, "", fields(50000), "552 5.3.4", "header"},
		{"too large", func(c *Connector) { c.Limits.HeaderSize = 1000 }, "", "X: " + strings.Repeat("y", 1000) + "\r\n\r\n", "552 5.3.4", "header"},
		{"30 hops", nil, "", strings.Repeat("Received: x\r\n", 30) + "\r\n", "250", ""},
		{"31 hops", nil, "", strings.Repeat("Received: x\r\n", 31) + "\r\n", "554 5.4.6", "hops"},
	} {
		t.Run(test.name, func(t *testing.T) {
			changes := []func(*Connector){}
			if test.change != nil {
				changes = append(changes, test.change)
			}
			r := start(t, Options{Connectors: []Connector{open(changes...)}})
			c := r.dial(t)
			c.begin()
			c.talk("MAIL FROM:<a@example.net>"+test.params+"=>250", "RCPT TO:<b@example.org>=>250", "DATA=>354")
			c.send(test.content + ".\r\n")
			c.expect(test.want)
			c.talk("NOOP=>250") // the session goes on
			if test.reason == "" {
				if n := len(r.messages()); n != 1 {
					t.Errorf("%d messages", n)
				}
				return
			}
			if n := len(r.messages()); n != 0 {
				t.Errorf("%d messages", n)
			}
			f := await[event.MessageRefused](t, r.rec, 1)[0]
			if got := fmt.Sprintf("%d %s", f.Code, f.Enhanced); got != test.want || f.Reason != test.reason {
				t.Errorf("fact %s %s, want %s %s", got, f.Reason, test.want, test.reason)
			}
		})
	}
}

// TestBinaryHeader: the header section of binary content has lines too.
func TestBinaryHeader(t *testing.T) {
	r := start(t, Options{Connectors: []Connector{open(func(c *Connector) { c.With = []string{"BINARYMIME"} })}})
	for _, test := range []struct {
		name    string
		content string
		want    string
	}{
		{"binary body", "A: b\r\n\r\n\x00\r\n.\r\n\n\r", "250"},
		{"bare LF in the header", "A: b\nC: d\r\n\r\nx", "550 5.6.0"},
		{"bare CR in the header", "A: b\rC: d\r\n\r\nx", "550 5.6.0"},
		{"bare CR before an 8-bit octet", "A: b\r\xe4\r\n\r\nx", "550 5.6.0"},
		{"NUL in the header", "A: \x00\r\n\r\nx", "550 5.6.0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := r.dial(t)
			c.begin()
			c.talk("MAIL FROM:<a@example.net> BODY=BINARYMIME=>250", "RCPT TO:<b@example.org>=>250")
			c.send(fmt.Sprintf("BDAT %d LAST\r\n%s", len(test.content), test.content))
			c.expect(test.want)
		})
	}
	if m := r.messages(); len(m) != 1 || m[0].content != "A: b\r\n\r\n\x00\r\n.\r\n\n\r" {
		t.Errorf("got %+v", m)
	}
}

// TestCompletion: what a submitted message should have is added where the
// connector is for submission, and nowhere else.
func TestCompletion(t *testing.T) {
	const date, id, from = `Date: \w{3}, \d+ \w{3} \d{4} [\d:]{8} [+-]\d{4}\r\n`, `Message-ID: <QUEUEID@mx\.example\.com>\r\n`, `From: <a@example\.net>\r\n`
	for _, test := range []struct {
		name     string
		complete bool
		sender   string
		content  string
		want     string // after Received
		header   string // From in the record
	}{
		{"relaying", false, "a@example.net", "Subject: x\r\n\r\nx\r\n", "", ""},
		{"all missing", true, "a@example.net", "Subject: x\r\n\r\nx\r\n", date + id + from, "a@example.net"},
		{"nothing missing", true, "a@example.net", "Date: x\r\nMessage-Id: <1@x>\r\nFrom: b@example.net\r\n\r\n", "", "b@example.net"},
		{"only the date", true, "a@example.net", "Message-Id: <1@x>\r\nFrom: b@example.net\r\n\r\n", date, "b@example.net"},
		{"null sender", true, "", "Date: x\r\n\r\n", id, ""},
		{"no header section", true, "a@example.net", "hello\r\nworld\r\n", date + id + from + `\r\n`, "a@example.net"},
		{"one word", true, "a@example.net", "hello\r\n", date + id + from + `\r\n`, "a@example.net"},
		{"empty section", true, "a@example.net", "\r\nhello\r\n", date + id + from, "a@example.net"},
		{"no header section, relaying", false, "a@example.net", "hello\r\nworld\r\n", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := start(t, Options{Connectors: []Connector{open(func(c *Connector) { c.Headers.Complete = test.complete })}})
			c := r.dial(t)
			c.begin()
			c.talk("MAIL FROM:<"+test.sender+">=>250", "RCPT TO:<b@example.org>=>250", "DATA=>354")
			c.send(test.content + ".\r\n")
			c.expect("250")
			m := r.messages()[0]
			_, got, _ := strings.Cut(string(m.Trace), ";\r\n\t") // the date of Received follows
			_, got, _ = strings.Cut(got, "\r\n")
			want := strings.ReplaceAll(test.want, "QUEUEID", string(m.ID))
			if ok, err := regexp.MatchString("^"+want+"$", got); err != nil || !ok {
				t.Errorf("added %q, want %q", got, want)
			}
			if m.content != test.content {
				t.Errorf("content %q", m.content)
			}
			if m.Header.From != test.header || strings.Contains(want, "Message-ID") && m.Header.MessageID != "<"+string(m.ID)+"@mx.example.com>" {
				t.Errorf("header %+v", m.Header)
			}
		})
	}
}

// TestPriorityOfStrangers: who may not relay does not overtake others.
func TestPriorityOfStrangers(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Connector)
		asked  string
		reply  string
		want   int8
	}{
		{"trusted", func(*Connector) {}, "5", "250 2.1.0", 5},
		{"stranger", func(c *Connector) { c.Permissions.Relay = false }, "5", "250 2.3.6", 0},
		{"stranger, low", func(c *Connector) { c.Permissions.Relay = false }, "-5", "250 2.1.0", -5},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := start(t, Options{Connectors: []Connector{open(test.change)}})
			c := r.dial(t)
			c.begin()
			c.talk("MAIL FROM:<a@example.net> MT-PRIORITY="+test.asked+"=>"+test.reply, "RCPT TO:<b@example.org>=>250", "DATA=>354", "x\r\n.=>250")
			m := r.messages()[0]
			if m.Envelope.Priority != test.want || m.Priority != m.Envelope.Queueing() || strings.Contains(string(m.Trace), " PRIORITY 5\r\n") != (test.want == 5) {
				t.Errorf("priority %d, queue %s, trace %q", m.Envelope.Priority, m.Priority, m.Trace)
			}
		})
	}
}
