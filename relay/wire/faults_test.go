package wire

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
)

// TestFaults runs each script against go-smtp alone and against go-smtp on our
// connection. The names of the faults are those of the decision record about
// go-smtp. When a fault is gone from a later go-smtp, its line here says so.
func TestFaults(t *testing.T) {
	envelope := []string{"=>220", "EHLO me\r\n=>250", "MAIL FROM:<a@example.com>\r\n=>250", "RCPT TO:<b@example.com>\r\n=>250"}
	for _, test := range []struct {
		name   string
		bare   func(*smtp.Server)
		opts   Options
		script func(c *client, s *server) string
		broken string // what go-smtp alone does
		want   string
	}{
		{
			name: "F1 content that stalls is not followed by commands",
			bare: func(s *smtp.Server) { s.ReadTimeout = 5 * time.Second }, opts: Options{CommandTimeout: 5 * time.Second},
			script: func(c *client, s *server) string {
				c.talk(envelope...)
				c.talk("DATA\r\n=>354")
				c.send("Subject: x\r\n\r\nhello\r\n")
				first := c.reply()[:3]
				c.send("MAIL FROM:<smuggled@example.com>\r\nRCPT TO:<v@example.com>\r\nDATA\r\n")
				for r := c.reply(); r != ""; r = c.reply() {
					if strings.HasPrefix(r, "354") {
						c.send(".\r\nQUIT\r\n")
					}
				}
				return fmt.Sprintf("%s, then %d messages", first, len(s.got()))
			},
			broken: "554, then 1 messages", want: "421, then 0 messages",
		},
		{
			name: "F2 a chunk that was cut off is no message",
			script: func(c *client, s *server) string {
				c.talk(envelope...)
				c.send("BDAT 1000 LAST\r\nonly thirteen")
				_ = c.c.(*net.TCPConn).CloseWrite()
				c.reply()
				return fmt.Sprint(len(s.got()))
			},
			broken: "1", want: "0",
		},
		{
			name: "F3 a chunk in the command's segment may have long lines",
			script: func(c *client, s *server) string {
				c.talk(envelope...)
				c.send("BDAT 5000 LAST\r\n" + strings.Repeat("a", 5000))
				return c.reply()[:3]
			},
			broken: "500", want: "250",
		},
		{
			name: "F4 a long line in a content",
			script: func(c *client, s *server) string {
				c.talk(envelope...)
				c.talk("DATA\r\n=>354")
				c.send(strings.Repeat("a", 2500) + "\r\n.\r\n")
				return c.reply()[:3]
			},
			broken: "554", want: "250",
		},
		{
			name: "F4 a long token",
			script: func(c *client, s *server) string {
				c.talk("=>220", "EHLO me\r\n=>250", "AUTH TOKEN\r\n=>334")
				c.send(strings.Repeat("QUJD", 3072) + "\r\n") // 12,288 octets
				return c.reply()[:3]
			},
			broken: "500", want: "235",
		},
		{
			name: "F5 an idle session ends when the server does",
			script: func(c *client, s *server) string {
				c.talk("=>220", "EHLO me\r\n=>250")
				select {
				case w := <-s.conns:
					w.Drain()
				default:
					ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
					defer cancel()
					_ = s.smtp.Shutdown(ctx)
					_ = s.smtp.Close()
					c.send("NOOP\r\n")
				}
				return c.reply()[:3]
			},
			broken: "250", want: "421",
		},
		{
			name: "F6 a second MAIL",
			script: func(c *client, s *server) string {
				c.talk(envelope...)
				c.send("MAIL FROM:<other@example.com>\r\n")
				return c.reply()[:3]
			},
			broken: "250", want: "503",
		},
		{
			name: "F7 postmaster without a domain",
			script: func(c *client, s *server) string {
				c.talk(envelope[:3]...)
				c.send("RCPT TO:<Postmaster>\r\n")
				return c.reply()[:3]
			},
			broken: "501", want: "250",
		},
		{
			name: "F8 a quoted local part stays quoted",
			script: func(c *client, s *server) string {
				c.talk(envelope[:3]...)
				c.talk("RCPT TO:<\"x> NOTIFY=NEVER t\"@example.com>\r\n=>250", "DATA\r\n=>354", ".\r\n=>250")
				return s.got()[0].to
			},
			broken: `x> NOTIFY=NEVER t@example.com`, want: `"x> NOTIFY=NEVER t"@example.com`,
		},
		{
			name: "F9 a session is reset after Data, not during it",
			script: func(c *client, s *server) string {
				c.talk(envelope...)
				c.talk("BDAT 5\r\nabcde=>250", "RSET\r\n=>250", "NOOP\r\n=>250")
				c.talk("QUIT\r\n=>221")
				s.bodies.Wait()
				s.mu.Lock()
				defer s.mu.Unlock()
				return fmt.Sprint(s.overlaps)
			},
			broken: "1", want: "0",
		},
		{
			name: "F10 what follows a malformed BDAT is no command",
			script: func(c *client, s *server) string {
				c.talk(envelope...)
				c.send("BDAT 99999999999999999999 LAST\r\nNOOP\r\n")
				return c.reply()[:3] + "," + c.reply()
			},
			broken: "501,250 2.0.0 I have successfully done nothing", want: "501,",
		},
		{
			name: "F11 a content of exactly the announced size",
			bare: func(s *smtp.Server) { s.MaxMessageBytes = 10 }, opts: Options{MaxSize: 10},
			script: func(c *client, s *server) string {
				c.talk(envelope...)
				c.talk("DATA\r\n=>354")
				c.send("01234567\r\n.\r\n")
				return c.reply()[:3]
			},
			broken: "552", want: "250",
		},
		{
			name: "F12 the end after a line that ends in CR CR LF",
			bare: func(s *smtp.Server) { s.ReadTimeout = 5 * time.Second }, opts: Options{BareNewline: Normalise},
			script: func(c *client, s *server) string {
				c.talk(envelope...)
				c.talk("DATA\r\n=>354")
				c.send("x\r\r\n.\r\n")
				return c.reply()[:3]
			},
			broken: "554", want: "250",
		},
		{
			name: "F13 a malformed response is a permanent error",
			script: func(c *client, s *server) string {
				c.talk("=>220", "EHLO me\r\n=>250", "AUTH TOKEN\r\n=>334")
				c.send("!!!\r\n")
				a := c.reply()[:3]
				c.send("AUTH TOKEN !!!\r\n")
				return a + "," + c.reply()[:3]
			},
			broken: "454,454", want: "501,501",
		},
		{
			name: "F13 no AUTH within a transaction",
			script: func(c *client, s *server) string {
				c.talk(envelope...)
				c.send("AUTH TOKEN QUJD\r\n")
				return c.reply()[:3]
			},
			broken: "235", want: "503",
		},
		{
			name: "F14 parameters",
			bare: func(s *smtp.Server) { s.EnableSMTPUTF8 = true },
			script: func(c *client, s *server) string {
				c.talk("=>220", "EHLO me\r\n=>250")
				var got []string
				for _, args := range []string{"<a@b.example> NONSENSE=1", "<a@b.example> SIZE=1 SIZE=2", "<\u00e4@b.example>", "<a@b.example> SIZE=99999999999"} {
					c.send("MAIL FROM:" + args + "\r\n")
					got = append(got, c.reply()[:3])
					c.talk("RSET\r\n=>250")
				}
				return strings.Join(got, ",")
			},
			broken: "500,250,250,501", want: "555,501,553,250",
		},
		{
			name: "F15 the limit of errors is a setting",
			opts: Options{ProtocolErrors: 10},
			script: func(c *client, s *server) string {
				c.talk("=>220", "EHLO me\r\n=>250")
				for range 5 {
					c.send("WHAT\r\n")
				}
				n := 0
				for range 5 {
					if strings.HasPrefix(c.reply(), "500 5.5") {
						n++
					}
				}
				c.send("NOOP\r\n")
				return fmt.Sprintf("%d,%.3s", n, c.reply())
			},
			broken: "5,", want: "5,250",
		},
		{
			name: "F15 each line has the enhanced code",
			script: func(c *client, s *server) string {
				c.talk(envelope...)
				c.send("RCPT TO:<no@example.com>\r\n")
				return c.reply()
			},
			broken: "550-no such user|550 5.1.1 really", want: "550-5.1.1 no such user|550 5.1.1 really",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for _, way := range []struct {
				name string
				ours bool
				want string
			}{{"go-smtp alone", false, test.broken}, {"ours", true, test.want}} {
				s := serve(t, way.ours, test.opts, test.bare)
				if got := test.script(dial(t, s.addr), s); got != way.want {
					t.Errorf("%s: %q, want %q", way.name, got, way.want)
				}
			}
		})
	}
}

// TestSmuggling sends what other servers have taken for the end of a content.
// None of it may become a second message.
func TestSmuggling(t *testing.T) {
	ends := []string{
		"\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\r.\r\n", "\r\n.\r", "\r\n.\r\r\n", "\n.\r", "\r.\n", "\n\n.\r\n", "\r\n\x00.\r\n", "\r\n.\x00\r\n",
		"\x00\r\n.\r", "\r\n.\n\r", "\n\r.\r\n", "\r\n.\r\x00\n",
	}
	const evil = "MAIL FROM:<evil@example.com>\r\nRCPT TO:<victim@example.com>\r\nDATA\r\nsmuggled\r\n"
	for _, end := range ends {
		for _, policy := range []Newline{Reject, Normalise} {
			for _, how := range []string{"DATA", "BDAT"} {
				t.Run(fmt.Sprintf("%q %s %d", end, how, policy), func(t *testing.T) {
					t.Parallel()
					s := serve(t, true, Options{BareNewline: policy, BareNewlineChunks: policy}, nil)
					c := dial(t, s.addr)
					c.talk("=>220", "EHLO me\r\n=>250", "MAIL FROM:<a@example.com>\r\n=>250", "RCPT TO:<b@example.com>\r\n=>250")
					content := "Subject: x\r\n\r\nbody" + end + evil
					if how == "DATA" {
						c.talk("DATA\r\n=>354")
						c.send(content + ".\r\n")
					} else {
						c.send(fmt.Sprintf("BDAT %d LAST\r\n%s", len(content), content))
					}
					reply := c.reply()
					got := s.got()
					if policy == Reject {
						if !strings.HasPrefix(reply, "550 5.6.0") || len(got) != 0 {
							t.Errorf("reply %q, %d messages", reply, len(got))
						}
						if how == "DATA" {
							if r := c.reply(); r != "" {
								t.Errorf("the connection went on: %q", r)
							}
						} else {
							c.talk("NOOP\r\n=>250")
						}
						return
					}
					if !strings.HasPrefix(reply, "250") || len(got) != 1 || !strings.Contains(got[0].content, evil) {
						t.Fatalf("reply %q, messages %q", reply, got)
					}
					if !clean([]byte(got[0].content), false) {
						t.Errorf("content %q is not clean", got[0].content)
					}
					c.talk("NOOP\r\n=>250", "QUIT\r\n=>221")
				})
			}
		}
	}
}
