package smtpin

import (
	"strings"
	"testing"
	"time"

	"waybill/relay/event"
)

// device makes a connector what the preset of that name is.
func device(c *Connector) {
	c.BareNewline, c.Lenient, c.Headers.Complete = "normalise", true, true
}

// TestOldDevices holds conversations as old devices have them. Each line is what
// the device sends at once, with its line ends, and the code it waits for.
func TestOldDevices(t *testing.T) {
	for _, test := range []struct {
		name    string
		talk    []string // "octets=>code"; without a code it does not wait
		slowly  bool     // octet by octet
		hangsUp bool     // ends without QUIT
		content string
		trace   string // a part of it
		changed string
	}{
		{
			name: "copier: HELO, a space after the colon, no QUIT", hangsUp: true,
			talk: []string{
				"=>220", "HELO copier\r\n=>250", "MAIL FROM: <scan@example.net>\r\n=>250", "RCPT TO: <b@example.org>\r\n=>250", "DATA\r\n=>354",
				"From: scan@example.net\r\nSubject: Scan\r\n\r\npage\r\n.\r\n=>250",
			},
			content: "From: scan@example.net\r\nSubject: Scan\r\n\r\npage\r\n", trace: "Received: from copier (", changed: "date message_id",
		},
		{
			name: "controller: commands end in LF, content too, but for its end",
			talk: []string{
				"=>220", "HELO plc\n=>250", "MAIL FROM:<plc@example.net>\n=>250", "RCPT TO:<b@example.org>\n=>250", "DATA\n=>354",
				"Subject: alarm\n\ntank 3\n..5 full\n", "\r\n.\r\n=>250", "QUIT\n=>221",
			},
			content: "Subject: alarm\r\n\r\ntank 3\r\n.5 full\r\n\r\n", trace: "From: <plc@example.net>\r\n", changed: "date message_id from newlines",
		},
		{
			name: "fax server: no angle brackets, lower case, spaces at the end",
			talk: []string{
				"=>220", "helo fax \r\n=>250", "mail from: fax@example.net\r\n=>250", "rcpt to: b@example.org \r\n=>250", "data \r\n=>354",
				"Subject: fax\r\n\r\nx\r\n.\r\n=>250", "quit \r\n=>221",
			},
			content: "Subject: fax\r\n\r\nx\r\n", changed: "date message_id from",
		},
		{
			name: "power supply: text without a header section",
			talk: []string{
				"=>220", "HELO [192.0.2.7]\r\n=>250", "MAIL FROM:<ups@example.net>\r\n=>250", "RCPT TO:<b@example.org>\r\n=>250", "DATA\r\n=>354",
				"UPS on battery\r\n.\r\n=>250", "QUIT\r\n=>221",
			},
			content: "UPS on battery\r\n", trace: "From: <ups@example.net>\r\n\r\n", changed: "date message_id from separator",
		},
		{
			name: "printer: all at once, whatever is answered", hangsUp: true,
			talk: []string{
				"=>220",
				"HELO printer\r\nMAIL FROM:<p@example.net>\r\nRCPT TO:<b@example.org>\r\nDATA\r\nSubject: toner\r\n\r\nlow\r\n.\r\nQUIT\r\n=>250",
				"=>250", "=>250", "=>354", "=>250", "=>221",
			},
			content: "Subject: toner\r\n\r\nlow\r\n", changed: "date message_id from",
		},
		{
			name: "terminal: types octet by octet, and says too much", slowly: true,
			talk: []string{
				"=>220", "HELO me\r\n=>250", "NOOP\r\n=>250", "RSET\r\n=>250", "HELO me\r\n=>250", "MAIL FROM:<a@example.net>\r\n=>250",
				"RCPT TO:<b@example.org>\r\n=>250", "DATA\r\n=>354", "Subject: x\r\n\r\nhello\r\n.\r\n=>250", "QUIT\r\n=>221",
			},
			content: "Subject: x\r\n\r\nhello\r\n", changed: "date message_id from",
		},
		{
			name: "scanner: raw Latin-1, a line without end",
			talk: []string{
				"=>220", "EHLO scanner_1\r\n=>250", "MAIL FROM:<s@example.net> SIZE=5000\r\n=>250", "RCPT TO:<b@example.org>\r\n=>250", "DATA\r\n=>354",
				"Subject: \xdcbersicht\r\n\r\n" + strings.Repeat("A", 5000) + "\r\n.\r\n=>250", "QUIT\r\n=>221",
			},
			content: "Subject: \xdcbersicht\r\n\r\n" + strings.Repeat("A", 5000) + "\r\n", changed: "date message_id from",
		},
		{
			name: "two messages in one session, a reset between", hangsUp: true,
			talk: []string{
				"=>220", "HELO x\r\n=>250", "MAIL FROM:<no@example.net>\r\n=>250", "RSET\r\n=>250", "MAIL FROM:<>\r\n=>250", "RCPT TO:<b@example.org>\r\n=>250",
				"DATA\r\n=>354", "Subject: y\r\n\r\n.\r\n=>250",
			},
			content: "Subject: y\r\n\r\n", changed: "date message_id",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := start(t, Options{Connectors: []Connector{open(device)}})
			c := r.dial(t)
			for _, l := range test.talk {
				out, code, wait := strings.Cut(l, "=>")
				if test.slowly {
					for i := range len(out) {
						c.send(out[i : i+1])
					}
				} else {
					c.send(out)
				}
				if wait {
					c.expect(code)
				}
			}
			if test.hangsUp {
				_ = c.c.Close()
			}
			f := await[event.SessionClosed](t, r.rec, 1)[0]
			if f.Messages != 1 || test.hangsUp && f.Cause != "closed" && f.Cause != "quit" || !test.hangsUp && f.Cause != "quit" {
				t.Errorf("fact %+v", f)
			}
			m := r.messages()
			if len(m) != 1 || m[0].content != test.content || !strings.Contains(string(m[0].Trace), test.trace) || m[0].Changed != test.changed {
				t.Fatalf("got %+v, want content %q, trace with %q, changed %q", m, test.content, test.trace, test.changed)
			}
		})
	}
}

// TestDevicesAreNotTrustedWithEnds: a content that ends in LF.LF has no end, also
// where devices are served: it would be an end for some, and none for others.
func TestDevicesAreNotTrustedWithEnds(t *testing.T) {
	r := start(t, Options{Connectors: []Connector{open(device, func(c *Connector) { c.Limits.CommandTimeout = 5 * time.Second })}})
	c := r.dial(t)
	c.talk("=>220", "HELO x=>250", "MAIL FROM:<a@example.net>=>250", "RCPT TO:<b@example.org>=>250", "DATA=>354")
	c.send("Subject: x\n\nx\n.\n")
	c.expect("421 4.4.2")
	if f := await[event.MessageRefused](t, r.rec, 1)[0]; f.Reason != "timeout" {
		t.Errorf("fact %+v", f)
	}
	if n := len(r.messages()); n != 0 {
		t.Errorf("%d messages", n)
	}
}

// TestOthersAreNotLenient: what devices may do is refused elsewhere.
func TestOthersAreNotLenient(t *testing.T) {
	for _, test := range []struct {
		name string
		send string
		want string
	}{
		{"no angle brackets", "MAIL FROM: a@example.net\r\n", "501 5.1.7"},
		{"a command that ends in LF", "NOOP\n", "500 5.5.2"},
		{"a space before the colon", "MAIL FROM : <a@example.net>\r\n", "501 5.1.7"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := start(t, Options{})
			c := r.dial(t)
			c.begin()
			c.send(test.send)
			c.expect(test.want)
		})
	}
}
