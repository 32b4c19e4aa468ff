package wire

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/relaytest"
	"waybill/relay/transcript"

	"github.com/emersion/go-smtp"
)

// pipes is a listener of pipes, which keep time with synctest.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// timed runs a session of script in a bubble, where waiting costs no time. It
// returns how the session ended and how long it took.
func timed(t *testing.T, opts Options, script func(c *client, w *Conn)) (sum Summary, got []message) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		opts.Hooks.Closed = func(s Summary) { sum = s }
		w := New(far, opts)
		b := &backend{wire: true}
		srv := NewServer(b, logger{t})
		ln := &pipes{conns: make(chan net.Conn, 1), done: make(chan struct{})}
		ln.conns <- w
		done := make(chan struct{})
		go func() { defer close(done); _ = srv.Serve(ln) }()
		c := newPipeClient(t, near)
		defer func() { // also after a failure
			_ = near.Close()
			synctest.Wait()
			_ = srv.Shutdown(context.Background())
			<-done
			got = b.got()
		}()
		script(c, w)
	})
	return sum, got
}

// newPipeClient reads replies on its own goroutine: a pipe has no buffer.
func newPipeClient(t testing.TB, c net.Conn) *client {
	r, w := io.Pipe()
	go func() {
		_, err := io.Copy(w, c)
		_ = w.CloseWithError(err)
	}()
	cl := &client{t: t, c: c}
	cl.br = bufio.NewReader(r)
	return cl
}

func TestTimes(t *testing.T) {
	tlsConfig, _ := configs(t)
	envelope := []string{"=>220", "EHLO me\r\n=>250", "MAIL FROM:<a@example.com>\r\n=>250", "RCPT TO:<b@example.com>\r\n=>250"}
	for _, test := range []struct {
		name      string
		opts      Options
		script    func(c *client, w *Conn)
		wantCause string
		wantTime  time.Duration
	}{
		{"idle", Options{}, func(c *client, _ *Conn) {
			c.talk("=>220", "EHLO me\r\n=>250", "=>421 4.4.2")
		}, CauseIdle, 5 * time.Minute},
		{"idle in a transaction", Options{CommandTimeout: time.Minute}, func(c *client, _ *Conn) {
			c.talk(envelope...)
			c.talk("=>421 4.4.2")
		}, CauseTimeout, time.Minute},
		{"a command an octet a second", Options{CommandTimeout: time.Minute}, func(c *client, _ *Conn) {
			c.talk("=>220")
			for range 59 {
				c.send("x")
				time.Sleep(time.Second)
			}
			c.talk("=>421 4.4.2")
		}, CauseTimeout, time.Minute},
		{"a content an octet a minute", Options{}, func(c *client, _ *Conn) {
			c.talk(envelope...)
			c.talk("DATA\r\n=>354")
			for range 5 {
				c.send("x")
				time.Sleep(59 * time.Second)
			}
			c.talk("=>421 4.4.2")
		}, CauseTimeout, 5 * time.Minute},
		{"a chunk an octet a minute", Options{}, func(c *client, _ *Conn) {
			c.talk(envelope...)
			c.send("BDAT 1000 LAST\r\n")
			for range 5 {
				c.send("x")
				time.Sleep(59 * time.Second)
			}
			c.talk("=>421 4.4.2")
		}, CauseTimeout, 5 * time.Minute},
		{"a slow content that is fast enough", Options{}, func(c *client, _ *Conn) {
			c.talk(envelope...)
			c.talk("DATA\r\n=>354")
			for range 60 {
				c.send(strings.Repeat("x", 65535) + "\r\n")
				time.Sleep(30 * time.Second)
			}
			c.talk(".\r\n=>250", "QUIT\r\n=>221")
		}, CauseQuit, 30 * time.Minute},
		{"a long session", Options{SessionTimeout: 10 * time.Minute}, func(c *client, _ *Conn) {
			c.talk("=>220", "EHLO me\r\n=>250")
			for range 10 {
				c.talk("RSET\r\n=>250")
				time.Sleep(time.Minute)
			}
			c.talk("=>421 4.4.2")
		}, CauseTimeout, 10 * time.Minute},
		{"a tarpit", Options{Tarpit: 5 * time.Second}, func(c *client, _ *Conn) {
			c.talk("=>220", "EHLO me\r\n=>250", "WHAT\r\n=>500", "MAIL FROM:<>\r\n=>250", "RCPT TO:<no@example.com>\r\n=>550", "QUIT\r\n=>221")
		}, CauseQuit, 10 * time.Second},
		{"no tarpit after authentication", Options{Tarpit: 5 * time.Second}, func(c *client, _ *Conn) {
			c.talk("=>220", "EHLO me\r\n=>250", "AUTH TOKEN QUJD\r\n=>235 2.7.0", "WHAT\r\n=>500", "QUIT\r\n=>221")
		}, CauseQuit, 0},
		{"a handshake that stalls", Options{TLS: tlsConfig, Implicit: true}, func(c *client, _ *Conn) {
			c.send("\x16\x03\x01")
			if r := c.reply(); len(r) > 0 && r[0] == '2' {
				c.t.Errorf("reply %q", r)
			}
		}, CauseTimeout, handshakeTime},
		{"a chunked content that stalls between chunks", Options{}, func(c *client, _ *Conn) {
			c.talk(envelope...)
			c.talk("BDAT 1\r\nx=>250", "=>421 4.4.2")
		}, CauseTimeout, 5 * time.Minute},
		{"chunks of nothing", Options{}, func(c *client, _ *Conn) {
			c.talk(envelope...)
			for range 5 {
				c.talk("BDAT 0\r\n=>250")
				time.Sleep(4*time.Minute - time.Millisecond)
			}
			c.talk("=>421 4.4.2")
		}, CauseTimeout, 20 * time.Minute},
		{"many chunks that are fast enough", Options{}, func(c *client, _ *Conn) {
			c.talk(envelope...)
			for range 60 {
				c.talk("BDAT 65536\r\n" + strings.Repeat("x", 65534) + "\r\n=>250")
				time.Sleep(30 * time.Second)
			}
			c.talk("BDAT 0 LAST\r\n=>250", "QUIT\r\n=>221")
		}, CauseQuit, 30 * time.Minute},
		{"idle while others wait", Options{}, func(c *client, w *Conn) {
			c.talk("=>220", "EHLO me\r\n=>250")
			time.Sleep(20 * time.Second)
			synctest.Wait()
			if w.EndIdle(time.Now(), 20*time.Second) || !w.EndIdle(time.Now(), 19*time.Second) || w.EndIdle(time.Now(), time.Second) {
				c.t.Error("EndIdle did not end it once, when it was idle for long enough")
			}
			c.talk("=>421 4.7.0")
		}, CauseLimit, 20 * time.Second},
		{"a command an octet a second while others wait", Options{}, func(c *client, w *Conn) {
			c.talk("=>220")
			for range 20 {
				c.send("x")
				time.Sleep(time.Second)
			}
			synctest.Wait()
			if !w.EndIdle(time.Now(), 10*time.Second) {
				c.t.Error("EndIdle left it")
			}
			c.talk("=>421 4.7.0")
		}, CauseLimit, 20 * time.Second},
		{"who is at work while others wait", Options{}, func(c *client, w *Conn) {
			c.talk(envelope...)
			time.Sleep(time.Minute)
			synctest.Wait()
			if w.EndIdle(time.Now(), time.Second) {
				c.t.Error("a transaction was ended")
			}
			c.talk("DATA\r\n=>354", "x\r\n.\r\n=>250", "AUTH TOKEN QUJD\r\n=>235 2.7.0")
			time.Sleep(time.Minute)
			synctest.Wait()
			if w.EndIdle(time.Now(), time.Second) {
				c.t.Error("the session of a user was ended")
			}
			c.talk("QUIT\r\n=>221")
		}, CauseQuit, 2 * time.Minute},
		{"a late greeting", Options{Delay: 7 * time.Second}, func(c *client, _ *Conn) {
			c.talk("=>220", "QUIT\r\n=>221")
		}, CauseQuit, 7 * time.Second},
		{"drained in a pause", Options{Delay: time.Hour}, func(c *client, w *Conn) {
			time.Sleep(time.Second)
			synctest.Wait()
			w.Drain()
			c.talk("=>220", "=>421 4.3.2")
		}, CauseShutdown, time.Second},
		{"drained while idle", Options{}, func(c *client, w *Conn) {
			c.talk("=>220", "EHLO me\r\n=>250")
			synctest.Wait()
			w.Drain()
			c.talk("=>421 4.3.2")
		}, CauseShutdown, 0},
		{"drained in a transaction", Options{}, func(c *client, w *Conn) {
			c.talk(envelope...)
			w.Drain()
			c.talk("DATA\r\n=>354", "x\r\n.\r\n=>250", "=>421 4.3.2")
		}, CauseShutdown, 0},
		{"drained before the first command", Options{}, func(c *client, w *Conn) {
			w.Drain()
			c.talk("=>220", "=>421 4.3.2")
		}, CauseShutdown, 0},
		{"killed in a tarpit", Options{Tarpit: time.Hour}, func(c *client, w *Conn) {
			c.talk("=>220")
			c.send("WHAT\r\n")
			synctest.Wait()
			w.Kill()
			if r := c.reply(); r != "" {
				c.t.Errorf("after Kill: %q", r)
			}
		}, CauseShutdown, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			sum, _ := timed(t, test.opts, test.script)
			if sum.Cause != test.wantCause || sum.Duration.Truncate(time.Second) != test.wantTime {
				t.Errorf("cause %s after %s, want %s after %s", sum.Cause, sum.Duration, test.wantCause, test.wantTime)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	for _, test := range []struct {
		name   string
		opts   Options
		script func(c *client)
		want   string // the last reply; the connection is closed after it
	}{
		{"protocol errors", Options{}, func(c *client) { c.send("A\r\nB\r\nC\r\nD\r\nE\r\nF\r\n") }, "421 4.7.0 too many errors"},
		{"NOOP", Options{}, func(c *client) { c.send(strings.Repeat("NOOP\r\n", maxJunk+1)) }, "421 4.7.0 too many commands"},
		{"RSET", Options{}, func(c *client) { c.send(strings.Repeat("RSET\r\n", maxJunk+1)) }, "421 4.7.0 too many commands"},
		{"refused recipients", Options{}, func(c *client) {
			c.send("EHLO me\r\nMAIL FROM:<>\r\n" + strings.Repeat("RCPT TO:<no@example.com>\r\n", maxRefusals))
		}, "421 4.7.0 too many errors"},
		{"browser", Options{}, func(c *client) {
			c.send("POST / HTTP/1.1\r\nHost: mx\r\n\r\nMAIL FROM:<a@example.com>\r\n")
		}, "554 5.5.1 this is SMTP"},
		{"header of a browser", Options{}, func(c *client) { c.send("Host: mx\r\nMAIL FROM:<a@example.com>\r\n") }, "554 5.5.1 this is SMTP"},
		{"ssh", Options{}, func(c *client) { c.send("SSH-2.0-OpenSSH_9.9\r\n") }, "554 5.5.1 this is SMTP"},
		{"TLS without STARTTLS", Options{}, func(c *client) { c.send("\x16\x03\x01\x00\x05hello\n") }, "5"},
		{"bare LF", Options{}, func(c *client) { c.send("EHLO me\nMAIL FROM:<a@example.com>\n") }, "500 5.5.2 lines must end in CRLF"},
		{"an endless line", Options{}, func(c *client) { c.send(strings.Repeat("x", 2*maxLongLine)) }, "500 5.5.2 line too long, closing"},
		{"malformed chunk", Options{}, func(c *client) { c.send("EHLO me\r\nBDAT ten\r\n0123456789") }, "501 5.5.4 malformed chunk"},
		{"a content sent without waiting", Options{}, func(c *client) {
			c.send("EHLO me\r\nMAIL FROM:<>\r\nRCPT TO:<no@example.com>\r\nDATA\r\nMAIL FROM:<evil@example.com>\r\n.\r\n")
		}, "554 5.5.1 no valid recipients"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, true, test.opts, nil)
			c := dial(t, s.addr)
			c.talk("=>220")
			test.script(c)
			last := ""
			for r := c.reply(); r != ""; r = c.reply() {
				last = r
			}
			if !strings.HasPrefix(last, test.want) {
				t.Errorf("last reply = %q, want %q", last, test.want)
			}
			if n := len(s.got()); n != 0 {
				t.Errorf("%d messages", n)
			}
		})
	}
}

// TestCommandHook lets the session refuse commands, but not the octets after them.
func TestCommandHook(t *testing.T) {
	refuse := map[string]bool{}
	var w *Conn
	opts := Options{Hooks: Hooks{Command: func(verb string) *mail.ReplyError {
		switch {
		case refuse["close"]:
			w.HangUp(CauseLimit)
			return mail.Refuse(421, "4.7.0", "throttle", "too many commands")
		case refuse[verb]:
			return mail.Refuse(450, "4.7.1", "throttle", "too many commands")
		}
		return nil
	}}}
	sum, got := timed(t, opts, func(c *client, conn *Conn) {
		w = conn
		c.talk("=>220", "EHLO me\r\n=>250")
		refuse["MAIL"], refuse["DATA"], refuse["BDAT"], refuse["QUIT"] = true, true, true, true
		c.talk("MAIL FROM:<a@example.com>\r\n=>450 4.7.1 too many commands")
		delete(refuse, "MAIL")
		c.talk("MAIL FROM:<a@example.com>\r\n=>250", "RCPT TO:<b@example.com>\r\n=>250", "DATA\r\n=>354", "x\r\n.\r\n=>250")
		c.talk("MAIL FROM:<a@example.com>\r\n=>250", "RCPT TO:<b@example.com>\r\n=>250")
		c.talk("BDAT 6 LAST\r\nQUIT\r\n=>250")
		c.talk("MAIL FROM:<a@example.com>\r\n=>250", "RCPT TO:<b@example.com>\r\n=>250")
		refuse["close"] = true
		c.talk("BDAT 6 LAST\r\nNOOP\r\n=>421 4.7.0")
		if r := c.reply(); r != "" {
			c.t.Errorf("after 421: %q", r)
		}
	})
	if len(got) != 2 || sum.Cause != CauseLimit {
		t.Errorf("%d messages and cause %s, want 2 and %s", len(got), sum.Cause, CauseLimit)
	}
}

// TestLines sends lines that are refused without ending the session.
func TestLines(t *testing.T) {
	s := serve(t, true, Options{ProtocolErrors: 100, BareNewline: Normalise}, nil)
	c := dial(t, s.addr)
	c.talk("=>220", "EHLO me\n=>250", "NOOP\r\r\n=>500 5.5.2", "NOOP \x00\r\n=>500 5.5.2", "NOOP \x1b[2J\r\n=>500 5.5.2",
		strings.Repeat("x", 20000)+"\r\n=>500 5.5.2 line too long", strings.Repeat("x", maxLine+1)+"\r\n=>500 5.5.2 line too long",
		"\r\n=>500 5.5.1", "NOOP\r\n=>250", "EHLO "+strings.Repeat("x", 256)+"\r\n=>501", "QUIT now\r\n=>501 5.5.4", "QUIT\r\n=>221")
}

func TestPipelining(t *testing.T) {
	s := serve(t, true, Options{}, nil)
	c := dial(t, s.addr)
	const n = 200
	var all strings.Builder
	all.WriteString("EHLO me\r\n")
	for i := range n {
		fmt.Fprintf(&all, "MAIL FROM:<a%d@example.com>\r\nRCPT TO:<b@example.com>\r\nBDAT 7 LAST\r\nhello\r\n", i)
	}
	all.WriteString("QUIT\r\n")
	go func() { _, _ = io.WriteString(c.c, all.String()) }()
	c.talk("=>220", "=>250")
	for range n {
		c.talk("=>250 2.1.0", "=>250 2.1.5", "=>250 2.0.0")
	}
	c.talk("=>221")
	got := s.got()
	if len(got) != n || got[n-1] != (message{fmt.Sprintf("a%d@example.com", n-1), "b@example.com", "hello\r\n"}) {
		t.Errorf("%d messages", len(got))
	}
}

// TestRepliesAreBatched checks that the replies to pipelined commands go out in
// one write.
func TestRepliesAreBatched(t *testing.T) {
	near, far := net.Pipe()
	w := New(far, Options{Hostname: "mx"})
	srv := NewServer(&backend{wire: true}, logger{t})
	ln := &pipes{conns: make(chan net.Conn, 1), done: make(chan struct{})}
	ln.conns <- w
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	buf := make([]byte, 4096)
	read := func() string {
		n, err := near.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	read()
	_, _ = io.WriteString(near, "EHLO me\r\nMAIL FROM:<>\r\nRCPT TO:<b@example.com>\r\nRCPT TO:<c@example.com>\r\n")
	if got := strings.Count(read(), "\r\n"); got != 9+3 {
		t.Errorf("%d lines in the first write", got)
	}
	_ = near.Close()
	_ = srv.Shutdown(t.Context())
	<-done
}

func TestTranscriptHidesSecrets(t *testing.T) {
	script := transcript.New(time.Now(), true, nil, transcript.Party{})
	_, _ = timed(t, Options{ProtocolErrors: 100, Transcript: script}, func(c *client, _ *Conn) {
		c.talk(
			"=>220", "EHLO me\r\n=>250",
			"AUTH TOKEN c2VjcmV0LTE=x\r\n=>501",
			"AUTH\tTOKEN c2VjcmV0LTI=\r\n=>500",
			"AUTH c2VjcmV0LTM=\r\n=>501",
			"auth c2VjcmV0LTQ\r\n=>334",
			"c2VjcmV0LTUx\r\n=>235",
			"c2VjcmV0LTY=\r\n=>500", // after the exchange is over
			"MAIL FROM:<a@example.com>\r\n=>250", "RCPT TO:<b@example.com>\r\n=>250", "DATA\r\n=>354", "secret-7\r\n.\r\n=>250", "QUIT\r\n=>221",
		)
	})
	var all strings.Builder
	said, _, _ := script.Lines()
	for _, l := range said {
		fmt.Fprintf(&all, "%s %q %d\n", l.From, l.Text, l.Bytes)
	}
	for _, bad := range []string{"c2Vj", "secret"} {
		if strings.Contains(all.String(), bad) {
			t.Errorf("the transcript has %q:\n%s", bad, all.String())
		}
	}
	for _, want := range []string{`client "EHLO me" 7`, `client "AUTH *** ***"`, `server "334 ***"`, `client "(content)" 13`, `server "235 2.7.0 authenticated"`} {
		if want == `client "AUTH *** ***"` {
			want = `client "AUTH other ***"`
		}
		if !strings.Contains(all.String(), want) {
			t.Errorf("the transcript has no %s:\n%s", want, all.String())
		}
	}
}

// TestCommandAnswered also sends a command that must not name itself in a record.
func TestCommandAnswered(t *testing.T) {
	rec := &relaytest.Recorder{}
	s := serve(t, true, Options{Emitter: rec.Emitter(), Connector: "c", ProtocolErrors: 100}, nil)
	c := dial(t, s.addr)
	c.talk("=>220", "EHLO me\r\n=>250", "EVIL\x1b\r\n=>500", "WHAT is this\r\n=>500", "MAIL FROM:<>\r\n=>250", "RCPT TO:<b@example.com>\r\n=>250",
		"BDAT 1\r\nx=>250", "BDAT 1 LAST\r\nx=>250", "QUIT\r\n=>221")
	var got []string
	for _, r := range rec.WaitFor(t, "command_answered", 8) {
		e := r.Event.(event.CommandAnswered)
		got = append(got, fmt.Sprintf("%s %d %s", e.Verb, e.Code, e.Enhanced))
	}
	want := "EHLO 250 ,UNKNOWN 500 5.5.2,UNKNOWN 500 5.5.1,MAIL 250 2.1.0,RCPT 250 2.1.5,BDAT 250 2.0.0,BDAT 250 2.0.0,QUIT 221 2.0.0"
	if strings.Join(got, ",") != want {
		t.Errorf("stated %s\nwant   %s", strings.Join(got, ","), want)
	}
}

// FuzzConn feeds whole sessions. Whatever comes in, what goes out is SMTP, no
// accepted content holds what could be taken for two messages, and it ends.
func FuzzConn(f *testing.F) {
	for _, s := range []string{
		"EHLO me\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n",
		"EHLO me\r\nMAIL FROM:<>\r\nRCPT TO:<c@d.example>\r\nBDAT 5\r\nab\r\ncBDAT 3 LAST\r\nd\r\nRSET\r\n",
		"EHLO me\r\nMAIL FROM:<>\r\nRCPT TO:<c@d.example>\r\nBDAT 5\r\nabcdeRSET\r\nNOOP\r\n",
		"EHLO me\r\nAUTH TOKEN\r\nQUJD\r\nAUTH TOKEN =\r\n*\r\nMAIL FROM:<a@b>\r\n",
		"HELO x\r\nMAIL FROM:<a@b> SIZE=1\r\nRCPT TO:<no@d>\r\nRCPT TO:<c@d>\r\nDATA\r\n..\r\n\n.\n\r\n.\r\n",
		"BDAT 99\r\nxx\r\nBDAT\r\n", "GET / HTTP/1.1\r\n\r\n", "EHLO \x00\r\nNOOP\nQUIT\n",
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, in []byte, mend bool) {
		closed := make(chan struct{})
		opts := Options{Hostname: "mx", ProtocolErrors: 50, CommandTimeout: 5 * time.Second, Hooks: Hooks{
			Panicked: func(v any, stack []byte) { t.Errorf("panic: %v\n%s", v, stack) },
			Closed:   func(Summary) { close(closed) },
		}}
		if mend {
			opts.BareNewline, opts.BareNewlineChunks = Normalise, Normalise
		}
		near, far := net.Pipe()
		w := New(far, opts)
		b := &backend{wire: true}
		srv := NewServer(b, logger{t})
		ln := &pipes{conns: make(chan net.Conn, 1), done: make(chan struct{})}
		ln.conns <- w
		done := make(chan struct{})
		go func() { defer close(done); _ = srv.Serve(ln) }()
		replies := make(chan []byte)
		go func() {
			all, _ := io.ReadAll(near)
			replies <- all
		}()
		_, _ = near.Write(append(slices.Clip(in), "\r\n.\r\nQUIT\r\nQUIT\r\n"...))
		killed := false
		select {
		case <-closed: // by QUIT
		case <-time.After(20 * time.Millisecond): // it waits for the rest of a chunk
			killed = true
			w.Kill()
		}
		said := <-replies
		if killed { // perhaps in the middle of a line, on a busy machine
			said = said[:bytes.LastIndexByte(said, '\n')+1]
		}
		checkReplies(t, said)
		_ = near.Close()
		_ = srv.Shutdown(t.Context())
		<-done
		for _, m := range b.got() {
			if !clean([]byte(m.content), false) {
				t.Errorf("accepted %q", m.content)
			}
		}
	})
}

func checkReplies(t *testing.T, all []byte) {
	for line := range strings.SplitAfterSeq(string(all), "\r\n") {
		if line == "" {
			continue
		}
		ok := len(line) >= 5 && strings.HasSuffix(line, "\r\n") && line[0] >= '2' && line[0] <= '5' && (line[3] == ' ' || line[3] == '-')
		for _, b := range []byte(strings.TrimSuffix(line, "\r\n")) {
			ok = ok && b >= ' ' && b != 0x7f
		}
		if !ok {
			t.Errorf("reply line %q", line)
		}
	}
}

var _ smtp.Backend = (*backend)(nil)
