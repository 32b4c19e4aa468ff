package smtpin

import (
	"bytes"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"waybill/relay/event"
)

// FuzzSession feeds whole sessions to a server: what goes out is SMTP, what is
// accepted is clean and complete, nothing panics, every content is ended, and
// there are no more messages than ends of contents.
func FuzzSession(f *testing.F) {
	const begin = "EHLO me\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
	for _, s := range []string{
		begin + "DATA\r\nSubject: x\r\n\r\nx\r\n.\r\n" + begin + "DATA\r\n\r\n.\r\n",
		begin + "BDAT 5\r\nab\r\ncBDAT 3 LAST\r\nd\r\nRSET\r\n",
		begin + "BDAT 5\r\nabcdeRSET\r\n" + begin[9:] + "BDAT 0 LAST\r\n",
		"EHLO me\r\nAUTH PLAIN AGFubgByaWdodA==\r\nMAIL FROM:<ann@example.com>\r\n",
		"EHLO me\r\nAUTH LOGIN\r\nYW5u\r\nd3Jvbmc=\r\nAUTH LOGIN YW5u\r\n*\r\n",
		begin + "DATA\r\nReceived: " + strings.Repeat("x\r\nReceived: ", 40) + "\r\n\r\n.\r\n",
		begin + "DATA\r\na\n.\nMAIL FROM:<x@y>\r\n.\r\n", begin + "DATA\r\na\r\r\n.\r\nQUIT\r\n",
		"STARTTLS\r\nMAIL FROM:<x@y>\r\n", "POST / HTTP/1.0\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		rec, a := newRecorder(), &acceptor{}
		s, err := New(Options{
			Hostname: "mx.example.com", Acceptor: a, Emitter: event.NewEmitter("n", rec),
			Connectors: []Connector{open(plainAuth, func(c *Connector) {
				c.Listen = nil
				c.Limits.ProtocolErrors, c.Limits.MessageSize, c.Limits.HeaderSize = 30, 4096, 2048
				c.Transcript.Mode = "all"
				if len(in)%2 == 1 {
					device(c)
				}
			})},
		})
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan struct{})
		go func() { defer close(served); _ = s.smtp.Serve(s.feed) }()
		near, far := net.Pipe()
		replies := make(chan []byte)
		go func() {
			all, _ := io.ReadAll(near)
			replies <- all
		}()
		s.take(s.first)
		s.admit(entrances{{connector: s.first[0]}}, far)
		_, _ = near.Write(append(slices.Clip(in), "\r\n.\r\nQUIT\r\nQUIT\r\n"...))
		go s.drain() // for a session that waits for the rest of a chunk
		select {
		case <-s.empty:
		case <-time.After(20 * time.Millisecond):
			s.mu.Lock()
			for ses := range s.sessions {
				ses.conn.Kill()
			}
			s.mu.Unlock()
			<-s.empty
		}
		out := <-replies
		_ = near.Close()
		_ = s.smtp.Shutdown(t.Context())
		<-served

		for line := range bytes.SplitAfterSeq(out, []byte("\r\n")) {
			if len(line) == 0 {
				continue
			}
			if len(line) < 5 || line[0] < '2' || line[0] > '5' || line[3] != ' ' && line[3] != '-' || bytes.ContainsAny(line[:len(line)-2], "\r\n\x00\x1b") {
				t.Errorf("reply line %q", line)
			}
		}
		if p := facts[event.Panicked](rec); len(p) > 0 {
			t.Errorf("panic: %s\n%s", p[0].Value, p[0].Stack)
		}
		if a.open != 0 {
			t.Errorf("%d contents were neither committed nor aborted", a.open)
		}
		ends := bytes.Count(in, []byte("\n.\r\n")) + bytes.Count(bytes.ToUpper(in), []byte("BDAT")) + 1
		if len(a.got) > ends {
			t.Errorf("%d messages from %d ends", len(a.got), ends)
		}
		for _, m := range a.got {
			if strings.ContainsRune(m.content, 0) || strings.Count(m.content, "\n") != strings.Count(m.content, "\r\n") ||
				strings.Count(m.content, "\r") != strings.Count(m.content, "\r\n") || len(m.content) > 4096 {
				t.Errorf("accepted %q", m.content)
			}
		}
		closed := facts[event.SessionClosed](rec)
		if len(closed) != 1 || closed[0].Messages != len(a.got) {
			t.Fatalf("closed: %+v, %d messages", closed, len(a.got))
		}
		// A credential that is where it belongs, or where nothing belongs, is not kept.
		secret := []byte("AGFubgByaWdodA==")
		hidden := bytes.Count(in, secret) == bytes.Count(in, append([]byte("\nAUTH PLAIN "), secret...))+bytes.Count(in, append([]byte("\n"), secret...))
		for _, l := range conversation(rec) {
			if hidden && strings.Contains(l.Text, string(secret)) || strings.ContainsAny(l.Text, "\r\n\x00\x1b") {
				t.Errorf("transcript line %q", l.Text)
			}
		}
	})
}
