package smtpin

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"waybill/relay/event"
)

const evil = "MAIL FROM:<evil@example.com>\r\nRCPT TO:<victim@example.com>\r\nDATA\r\nSubject: smuggled\r\n\r\nsmuggled\r\n"

// TestSmuggledMessages sends every sequence that some server has taken for the
// end of a content, in every way that a content can come, cut at every place.
// There is never a second message, no byte leaves that could smuggle further, and
// a refusal is a fact.
func TestSmuggledMessages(t *testing.T) {
	ends := []string{
		"\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\r.\r\n", "\r\n.\r", "\r\n.\r\r\n", "\n.\r", "\r.\n", "\n\n.\r\n", "\r\n\x00.\r\n", "\r\n.\x00\r\n",
		"\x00\r\n.\r", "\r\n.\n\r", "\n\r.\r\n", "\r\n.\r\x00\n", "\r\r\n.\r\r\n", "\n.\n.\r\n.\n",
	}
	const head = "Subject: x\r\n\r\nbody"
	for _, way := range []string{"DATA", "DATA pipelined", "BDAT", "BDAT in two"} {
		for _, policy := range []string{"reject", "normalise"} {
			t.Run(way+" "+policy, func(t *testing.T) {
				r := start(t, Options{Connectors: []Connector{open(func(c *Connector) { c.BareNewline, c.BareNewlineChunks = policy, policy })}})
				messages, refused := 0, 0
				for _, end := range ends {
					content := head + end + "\r\n" + evil
					c := r.dial(t)
					switch way {
					case "DATA":
						c.begin()
						c.envelope()
						c.talk("DATA=>354")
						c.send(content + ".\r\n")
					case "DATA pipelined":
						c.send("EHLO x\r\nMAIL FROM:<a@example.net>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n" + content + ".\r\nQUIT\r\n")
						c.talk("=>220", "=>250", "=>250", "=>250", "=>354")
					case "BDAT":
						c.begin()
						c.envelope()
						c.send(fmt.Sprintf("BDAT %d LAST\r\n%s", len(content), content))
					case "BDAT in two":
						c.begin()
						c.envelope()
						cut := len(head) + len(end)/2
						c.send(fmt.Sprintf("BDAT %d\r\n%sBDAT %d LAST\r\n%s", cut, content[:cut], len(content)-cut, content[cut:]))
						if policy == "normalise" {
							c.expect("250 2.0.0")
						}
					}
					if policy == "normalise" {
						messages++
						c.expect("250 2.0.0 queued as")
					} else {
						refused++
						if got := c.reply(); !strings.HasPrefix(got, "550 5.6.0") && !strings.HasPrefix(got, "250 2.0.0 chunk") {
							t.Errorf("%q: %q", end, got)
						}
					}
					_ = c.c.(*net.TCPConn).CloseWrite()
					_, _ = io.Copy(io.Discard, c.br) // to its end, whatever is said
				}
				if closed := await[event.SessionClosed](t, r.rec, len(ends)); len(closed) != len(ends) {
					t.Errorf("%d sessions", len(closed))
				}
				got := r.messages()
				if len(got) != messages {
					t.Errorf("%d messages, want %d", len(got), messages)
				}
				for _, m := range got {
					if m.Envelope.Sender.String() != "a@example.net" || !strings.Contains(m.content, "smuggled") {
						t.Errorf("message from %s: %q", m.Envelope.Sender, m.content)
					}
					if strings.Count(m.content, "\r\n") != strings.Count(m.content, "\n") || strings.Count(m.content, "\r") != strings.Count(m.content, "\r\n") || strings.ContainsRune(m.content, 0) {
						t.Errorf("unclean: %q", m.content)
					}
				}
				facts := await[event.MessageRefused](t, r.rec, refused)
				for _, f := range facts {
					if f.Reason != "bare_newline" && f.Reason != "protocol" || f.Code != 550 {
						t.Errorf("fact %+v", f)
					}
				}
				r.acceptor.mu.Lock()
				defer r.acceptor.mu.Unlock()
				if len(facts) != refused || r.open != 0 {
					t.Errorf("%d refusals are facts, want %d; %d contents are open", len(facts), refused, r.open)
				}
			})
		}
	}
}

// TestHostileCommands sends commands that attack: what is answered, what is
// stated, whether the session goes on, and that nothing is queued.
func TestHostileCommands(t *testing.T) {
	const tx = "MAIL FROM:<a@example.net>\r\nRCPT TO:<b@example.org>\r\n"
	for _, test := range []struct {
		name   string
		send   string // after EHLO
		want   string // the reply to its last command, or to the one that ended the session
		ends   bool
		reason string // of the refusal that is stated, if one is
	}{
		{"a browser", "POST / HTTP/1.1\r\nHost: x\r\n\r\n" + tx, "554 5.5.1", true, ""},
		{"a header of HTTP", "Content-Length: 5\r\n", "554 5.5.1", true, ""},
		{"a line without end", strings.Repeat("A", 600<<10) + "\r\n", "500 5.5.2", true, ""},
		{"a long line", "MAIL FROM:<" + strings.Repeat("a", 5000) + "@example.net>\r\n", "500 5.5.2", false, ""},
		{"NUL in a command", "MAIL FROM:<a\x00@example.net>\r\n", "500 5.5.2", false, ""},
		{"ESC in a command", "MAIL FROM:<a\x1b[2J@example.net>\r\n", "500 5.5.2", false, ""},
		{"a bare CR in a command", "MAIL FROM:<a@example.net>\rRCPT TO:<x@example.com>\r\n", "500 5.5.2", false, ""},
		{"a command that ends in LF", "NOOP\n" + tx, "500 5.5.2", true, ""},
		{"a parameter in a quoted local part", "MAIL FROM:<>\r\nRCPT TO:<\"x> NOTIFY=NEVER t\"@example.org>\r\n", "250 2.1.5", false, ""},
		{"an address that is too long", "MAIL FROM:<a@" + strings.Repeat("a.", 200) + "example>\r\n", "501 5.1.7", false, "syntax"},
		{"two @", "MAIL FROM:<a@b@example.net>\r\n", "501 5.1.7", false, "syntax"},
		{"8-bit without SMTPUTF8", "MAIL FROM:<\u00e4@example.net>\r\n", "553 5.6.7", false, "utf8"},
		{"invalid UTF-8", "MAIL FROM:<\xff@example.net> SMTPUTF8\r\n", "501 5.1.7", false, "syntax"},
		{"a domain of dots that are none", "MAIL FROM:<a@example\u3002net>\r\n", "553 5.6.7", false, "utf8"},
		{"SIZE that overflows", "MAIL FROM:<a@example.net> SIZE=99999999999999999999\r\n", "501 5.5.4", false, "syntax"},
		{"SIZE that is too large", "MAIL FROM:<a@example.net> SIZE=99999999999\r\n", "552 5.3.4", false, "size"},
		{"a negative SIZE", "MAIL FROM:<a@example.net> SIZE=-1\r\n", "501 5.5.4", false, "syntax"},
		{"a parameter twice", "MAIL FROM:<a@example.net> SIZE=1 SIZE=2\r\n", "501 5.5.4", false, "syntax"},
		{"line end in xtext", "MAIL FROM:<a@example.net> ENVID=x+0D+0ARCPT\r\n", "501 5.5.4", false, "syntax"},
		{"MAIL within a transaction", tx + "MAIL FROM:<c@example.net>\r\n", "503 5.5.1", false, "protocol"},
		{"RCPT without MAIL", "RCPT TO:<b@example.org>\r\n", "503 5.5.1", false, "protocol"},
		{"DATA without MAIL", "DATA\r\n", "503 5.5.1", false, ""},
		{"BDAT with a size that is none", tx + "BDAT 1x LAST\r\nQUIT\r\n", "501 5.5.4", true, ""},
		{"BDAT with a negative size", tx + "BDAT -1 LAST\r\n", "501 5.5.4", true, ""},
		{"BDAT with a huge size", tx + "BDAT 99999999999999999999 LAST\r\n", "501 5.5.4", true, ""},
		{"BDAT without recipients", "MAIL FROM:<>\r\nBDAT 6 LAST\r\nQUIT\r\n", "554 5.5.1", false, ""},
		{"commands as the octets of a refused chunk", "BDAT 32 LAST\r\nMAIL FROM:<evil@example.com>\r\nab", "503 5.5.1", false, ""},
		{"another command within chunks", tx + "BDAT 2\r\nabMAIL FROM:<evil@example.com>\r\n", "503 5.5.1", false, ""},
		{"ETRN", "ETRN example.org\r\n", "500 5.5.1", false, ""},
		{"XCLIENT from a stranger", "XCLIENT ADDR=127.0.0.1\r\n", "550 5.7", false, ""},
		{"who is there", "EXPN staff\r\n", "502 5.5.1", false, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := start(t, Options{Connectors: []Connector{open(func(c *Connector) { c.Limits.ProtocolErrors = 50 })}})
			c := r.dial(t)
			c.begin()
			c.send(test.send)
			got, closed := "", false
			for range bytes.Count([]byte(test.send), []byte("\n")) {
				reply := c.reply()
				if reply == "" {
					closed = true
					break
				}
				got = reply
				if strings.HasPrefix(got, test.want) {
					break
				}
			}
			if !strings.HasPrefix(got, test.want) {
				t.Errorf("reply %q, want %q", got, test.want)
			}
			if strings.ContainsAny(got, "\x00\x1b\r\n") {
				t.Errorf("the reply repeats control characters: %q", got)
			}
			if test.ends {
				if r := c.reply(); !closed && r != "" {
					t.Errorf("the session goes on: %q", r)
				}
			} else {
				c.talk("NOOP=>250", "RSET=>250", "QUIT=>221")
			}
			end := await[event.SessionClosed](t, r.rec, 1)[0]
			if end.Messages != 0 || len(r.messages()) != 0 {
				t.Errorf("%d messages", len(r.messages()))
			}
			var reasons []string
			for _, f := range facts[event.SenderRefused](r.rec) {
				reasons = append(reasons, f.Reason)
			}
			for _, f := range facts[event.RecipientRefused](r.rec) {
				reasons = append(reasons, f.Reason)
			}
			if got := strings.Join(reasons, ","); got != test.reason {
				t.Errorf("refusals stated: %q, want %q", got, test.reason)
			}
			if p := facts[event.Panicked](r.rec); len(p) > 0 {
				t.Errorf("panic: %+v", p[0])
			}
		})
	}
}
