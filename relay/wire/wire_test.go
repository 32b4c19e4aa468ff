package wire

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"waybill/relay/mail"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// backend is a session that keeps what it accepts. With wire set it reads the
// way that this package wants; without, it is a plain go-smtp backend.
type backend struct {
	mu       sync.Mutex
	wire     bool
	messages []message
	stop     int64          // refuse contents above it; 0 none
	overlaps int            // how often Reset was called during Data
	bodies   sync.WaitGroup // calls of Data
	repaired bool           // the latest content was
}

type message struct {
	from, to string
	content  string
}

func (b *backend) NewSession(c *smtp.Conn) (smtp.Session, error) { return &session{b: b, c: c}, nil }

func (b *backend) got() []message {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]message(nil), b.messages...)
}

type session struct {
	b        *backend
	c        *smtp.Conn
	from, to string

	mu      sync.Mutex
	inData  bool
	overlap chan struct{} // closed by a Reset during Data
}

func (s *session) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inData {
		close(s.overlap)
		s.inData = false
		return
	}
	s.from, s.to = "", ""
}

func (s *session) AuthMechanisms() []string { return []string{"TOKEN"} }

func (s *session) Auth(string) (sasl.Server, error) { return token{}, nil }

// token takes any response that is not empty.
type token struct{}

func (token) Next(response []byte) (challenge []byte, done bool, err error) {
	return nil, len(response) > 0, nil
}

func (s *session) Logout() error { return nil }

func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	s.from = from
	if s.b.wire {
		e, _ := s.c.Conn().(*Conn).Envelope()
		s.from = e.Sender.String()
	}
	return nil
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	if s.b.wire {
		to = s.c.Conn().(*Conn).Recipient().Address.String()
	}
	if strings.HasPrefix(to, "no@") {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such user\nreally"}
	}
	s.to += to + " "
	return nil
}

func (s *session) Data(r io.Reader) error {
	s.b.bodies.Add(1)
	defer s.b.bodies.Done()
	if s.b.wire {
		r = s.c.Conn().(*Conn).Body()
	}
	var buf bytes.Buffer
	if s.b.stop > 0 {
		r = io.LimitReader(r, s.b.stop)
	}
	s.mu.Lock()
	s.inData, s.overlap = true, make(chan struct{})
	s.mu.Unlock()
	_, err := io.Copy(&buf, r)
	if err != nil { // does go-smtp wait for us?
		patience := 100 * time.Millisecond
		if !s.b.wire && errors.Is(err, smtp.ErrDataReset) {
			patience = 10 * time.Second
		}
		select {
		case <-s.overlap:
			s.b.mu.Lock()
			s.b.overlaps++
			s.b.mu.Unlock()
		case <-time.After(patience):
		}
	}
	s.mu.Lock()
	s.inData = false
	s.mu.Unlock()
	if err != nil {
		if e, ok := errors.AsType[*mail.ReplyError](err); ok {
			return &smtp.SMTPError{Code: e.Reply.Code, EnhancedCode: smtp.EnhancedCode{e.Reply.Code / 100, 6, 0}, Message: e.Reply.Text}
		}
		return err
	}
	if s.b.stop > 0 && int64(buf.Len()) == s.b.stop {
		return &smtp.SMTPError{Code: 552, EnhancedCode: smtp.EnhancedCode{5, 3, 4}, Message: "too large"}
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.b.messages = append(s.b.messages, message{s.from, strings.TrimSpace(s.to), buf.String()})
	if s.b.wire {
		s.b.repaired = s.c.Conn().(*Conn).Body().Repaired()
	}
	return nil
}

// listener hands out connections of this package.
type listener struct {
	net.Listener
	opts  Options
	conns chan *Conn
	mu    sync.Mutex
	all   []*Conn
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	w := New(c, l.opts)
	l.mu.Lock()
	l.all = append(l.all, w)
	l.mu.Unlock()
	select {
	case l.conns <- w:
	default:
	}
	return w, nil
}

type logger struct{ t testing.TB }

func (l logger) Printf(f string, v ...any) {}
func (l logger) Println(v ...any)          {}

type server struct {
	*backend
	addr  string
	conns chan *Conn
	smtp  *smtp.Server
}

// serve starts a server: of ours, or of go-smtp alone.
func serve(t testing.TB, ours bool, opts Options, bare func(*smtp.Server)) *server {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{backend: &backend{wire: ours}, addr: ln.Addr().String(), conns: make(chan *Conn, 100)}
	srv := NewServer(s.backend, logger{t})
	if !ours {
		srv = smtp.NewServer(s.backend)
		srv.ErrorLog = logger{t}
		srv.AllowInsecureAuth = true
		if bare != nil {
			bare(srv)
		}
	} else {
		if opts.Hostname == "" {
			opts.Hostname = "mx.example.com"
		}
		ours := &listener{Listener: ln, opts: opts, conns: s.conns}
		ln = ours
		t.Cleanup(func() {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_ = srv.Shutdown(ctx) // closes the listener
			ours.mu.Lock()
			defer ours.mu.Unlock()
			for _, c := range ours.all {
				c.Kill()
			}
		})
	}
	s.smtp = srv
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() {
		if !ours {
			_ = srv.Close()
		}
	})
	return s
}

type client struct {
	t  testing.TB
	c  net.Conn
	br *bufio.Reader
}

func dial(t testing.TB, addr string) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	return &client{t, c, bufio.NewReader(c)}
}

func (c *client) send(s string) {
	c.t.Helper()
	if s == "" { // which a pipe would hand over as such
		return
	}
	if _, err := io.WriteString(c.c, s); err != nil {
		c.t.Logf("send: %v", err)
	}
}

// reply reads one reply, its lines joined by "|"; "" at the end of the connection.
func (c *client) reply() string {
	c.t.Helper()
	var all []string
	for {
		line, err := c.br.ReadString('\n')
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return "(timeout)"
			}
			return strings.Join(all, "|")
		}
		line = strings.TrimRight(line, "\r\n")
		all = append(all, line)
		if len(line) < 4 || line[3] != '-' {
			return strings.Join(all, "|")
		}
	}
}

func (c *client) expect(want string) string {
	c.t.Helper()
	got := c.reply()
	if !strings.HasPrefix(got, want) {
		c.t.Fatalf("reply = %q, want %q", got, want)
	}
	return got
}

// talk sends each command and checks its reply: "command=>reply".
func (c *client) talk(lines ...string) {
	c.t.Helper()
	for _, l := range lines {
		cmd, want, _ := strings.Cut(l, "=>")
		c.send(cmd)
		if got := c.reply(); !strings.HasPrefix(got, want) {
			c.t.Fatalf("%.60q: reply = %q, want %q", cmd, got, want)
		}
	}
}

func TestConversation(t *testing.T) {
	s := serve(t, true, Options{ProtocolErrors: 100}, nil)
	c := dial(t, s.addr)
	c.expect("220 mx.example.com ESMTP Waybill")
	c.talk(
		"NOOP\r\n=>250 2.0.0",
		"NOOP what ever\r\n=>250 2.0.0",
		"MAIL FROM:<a@example.com>\r\n=>503 5.5.1",
		"EHLO\r\n=>501 5.5.4",
		"EHLO me.example.com\r\n=>250-mx.example.com|250-PIPELINING|250-SIZE|250-8BITMIME|250-SMTPUTF8|250-CHUNKING|250-DSN|250-MT-PRIORITY|250 ENHANCEDSTATUSCODES",
		"HELP\r\n=>214 2.0.0",
		"VRFY postmaster\r\n=>252 2.5.0",
		"EXPN list\r\n=>502 5.5.1",
		"XYZZY\r\n=>500 5.5.1",
		"STARTTLS\r\n=>502 5.5.1",
		"MAIL FROM:<a@example.com> SIZE=100\r\n=>250 2.1.0",
		"MAIL FROM:<b@example.com>\r\n=>503 5.5.1",
		"DATA\r\n=>554 5.5.1",
		"RCPT TO:<no@example.com>\r\n=>550-5.1.1 no such user|550 5.1.1 really",
		"RCPT TO:<Postmaster>\r\n=>250 2.1.5",
		"RCPT TO:<\"x y\"@example.com>\r\n=>250 2.1.5",
		"DATA\r\n=>354",
		"Subject: x\r\n\r\n..dot\r\n.\r\n=>250 2.0.0",
		"DATA\r\n=>503",
		"RSET\r\n=>250 2.0.0",
		"QUIT\r\n=>221 2.0.0",
	)
	if got := c.reply(); got != "" {
		t.Errorf("after QUIT: %q", got)
	}
	got := s.got()
	if len(got) != 1 || got[0] != (message{"a@example.com", `Postmaster "x y"@example.com`, "Subject: x\r\n\r\n.dot\r\n"}) {
		t.Errorf("got %q", got)
	}
}

func TestChunks(t *testing.T) {
	s := serve(t, true, Options{}, nil)
	c := dial(t, s.addr)
	c.talk(
		"=>220", "EHLO me\r\n=>250",
		"MAIL FROM:<a@example.com>\r\n=>250", "RCPT TO:<b@example.com>\r\n=>250",
		"BDAT 10\r\n0123456\r\n.=>250 2.0.0 chunk",
		"NOOP\r\n=>250",
		"BDAT 3\r\n\r\nA=>250 2.0.0 chunk",
		"RCPT TO:<c@example.com>\r\n=>503",
		"BDAT 0 LAST\r\n=>250 2.0.0 OK",
		"MAIL FROM:<a@example.com>\r\n=>250", "RCPT TO:<b@example.com>\r\n=>250",
		"BDAT 4\r\nabcd=>250",
		"RSET\r\n=>250 2.0.0 ok",
		"BDAT 4 LAST\r\nabcd=>503",
		"MAIL FROM:<a2@example.com>\r\n=>250", "RCPT TO:<no@example.com>\r\n=>550",
		"BDAT 6\r\nQUIT\r\n=>554 5.5.1",
		"RSET\r\n=>250", "QUIT\r\n=>221",
	)
	got := s.got()
	if len(got) != 1 || got[0] != (message{"a@example.com", "b@example.com", "0123456\r\n.\r\nA"}) {
		t.Errorf("got %q", got)
	}
}

// TestChunkBoundaries cuts contents into chunks everywhere: where a chunk ends
// must not change what the content is.
func TestChunkBoundaries(t *testing.T) {
	for _, policy := range []Newline{Reject, Normalise} {
		s := serve(t, true, Options{BareNewlineChunks: policy}, nil)
		for _, content := range []string{"a\r\n\r\nb\r\n", "\r\n", "a\rb", "a\nb", "\n", "\r", "a\r\r\nb", "a\r", "\r\r", "a\x00b", ""} {
			for cut := 0; cut <= len(content)+1; cut++ {
				c := dial(t, s.addr)
				c.talk("=>220", "EHLO me\r\n=>250", "MAIL FROM:<a@example.com>\r\n=>250", "RCPT TO:<b@example.com>\r\n=>250")
				pieces := strings.SplitAfter(content, "") // an octet each
				if cut <= len(content) {
					pieces = []string{content[:cut], content[cut:]}
				}
				var all strings.Builder
				for i, p := range pieces {
					last := ""
					if i == len(pieces)-1 {
						last = " LAST"
					}
					fmt.Fprintf(&all, "BDAT %d%s\r\n%s", len(p), last, p)
				}
				if len(pieces) == 0 {
					all.WriteString("BDAT 0 LAST\r\n")
				}
				before := len(s.got())
				c.send(all.String())
				refused := false
				for range max(len(pieces), 1) {
					// After the refusal the transaction is over, and so are its chunks.
					if r := c.reply(); strings.HasPrefix(r, "550 5.6.0") {
						refused = true
					} else if want := map[bool]string{false: "250", true: "503"}[refused]; !strings.HasPrefix(r, want) {
						t.Fatalf("%q cut at %d: reply %q, want %s", content, cut, r, want)
					}
				}
				got := s.got()[before:]
				good := clean([]byte(content), false)
				switch {
				case refused != (policy == Reject && !good):
					t.Fatalf("%q cut at %d, policy %d: refused %t", content, cut, policy, refused)
				case refused:
					if len(got) != 0 {
						t.Fatalf("%q cut at %d: refused, and taken as %q", content, cut, got)
					}
				case len(got) != 1 || !clean([]byte(got[0].content), false) || good && got[0].content != content:
					t.Fatalf("%q cut at %d: taken as %q", content, cut, got)
				case s.repaired == good: // got has waited for the message
					t.Fatalf("%q cut at %d: repaired %t, taken as %q", content, cut, s.repaired, got)
				}
				c.talk("QUIT\r\n=>221")
			}
		}
	}
}

// TestBadChunks sends what ends a chunked content, or the connection.
func TestBadChunks(t *testing.T) {
	for _, test := range []struct {
		name string
		send string
		want string // codes of the replies
	}{
		{"malformed size of the second", "BDAT 1\r\nxBDAT -1\r\nNOOP\r\n", "250 501"},
		{"a browser between chunks", "BDAT 1\r\nxPOST / HTTP/1.1\r\nNOOP\r\n", "250 554"},
		{"QUIT between chunks", "BDAT 1\r\nxQUIT\r\nNOOP\r\n", "250 221"},
		{"EHLO between chunks", "BDAT 1\r\nxEHLO me\r\nDATA\r\nQUIT\r\n", "250 250 503"},
		{"DATA between chunks", "BDAT 1\r\nxDATA\r\nBDAT 1 LAST\r\nyQUIT\r\n", "250 503 250 221"},
		{"a long line between chunks", "BDAT 1\r\nx" + strings.Repeat("x", 5000) + "\r\nBDAT 1 LAST\r\nyQUIT\r\n", "250 500 250 221"},
		{"bare LF between chunks", "BDAT 1\r\nxNOOP\nNOOP\r\n", "250 500"},
		{"cut off between chunks", "BDAT 1\r\nx", "250"},
		{"cut off within a refused one", "RSET\r\nBDAT 100\r\nx", "250"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := serve(t, true, Options{ProtocolErrors: 100}, nil)
			c := dial(t, s.addr)
			c.talk("=>220", "EHLO me\r\n=>250", "MAIL FROM:<a@example.com>\r\n=>250", "RCPT TO:<b@example.com>\r\n=>250")
			c.send(test.send)
			_ = c.c.(*net.TCPConn).CloseWrite()
			var got []string
			for r := c.reply(); r != ""; r = c.reply() {
				got = append(got, r[:3])
			}
			if s := strings.Join(got, " "); s != test.want {
				t.Errorf("replies %s, want %s", s, test.want)
			}
		})
	}
}

// TestPanicInAHook lets what a session hooks in panic.
func TestPanicInAHook(t *testing.T) {
	var value any
	sum, _ := timed(t, Options{Hooks: Hooks{
		Begin:    func() *mail.ReplyError { panic("in begin") },
		Panicked: func(v any, _ []byte) { value = v },
	}}, func(c *client, _ *Conn) {
		c.talk("=>220", "EHLO me\r\n=>250", "MAIL FROM:<>\r\n=>250", "RCPT TO:<b@example.com>\r\n=>250", "DATA\r\n=>421 4.3.0")
		if r := c.reply(); r != "" {
			t.Errorf("after the panic: %q", r)
		}
	})
	if value != "in begin" || sum.Cause != CausePanic || !sum.Failed {
		t.Errorf("value %v, summary %+v", value, sum)
	}
}

// TestLF: a device that ends every line in a bare LF gets its message through
// where bare LFs are repaired; one CRLF among its commands, and a LF ends no
// content any more.
func TestLF(t *testing.T) {
	s := serve(t, true, Options{BareNewline: Normalise}, nil)
	lf := dial(t, s.addr)
	lf.talk("=>220", "HELO me\n=>250", "MAIL FROM:<a@example.com>\n=>250", "RCPT TO:<b@example.com>\n=>250", "DATA\n=>354",
		"Subject: x\n\n..y\nz\n.\n=>250", "MAIL FROM:<a@example.com>\n=>250", "RCPT TO:<b@example.com>\n=>250", "DATA\n=>354", "\n.\n=>250", "QUIT\n=>221")
	mixed := dial(t, s.addr)
	mixed.talk("=>220", "HELO me\r\n=>250", "MAIL FROM:<a@example.com>\n=>250", "RCPT TO:<b@example.com>\n=>250", "DATA\n=>354",
		"x\n.\nMAIL FROM:<evil@example.com>\nRCPT TO:<b@example.com>\nDATA\ny\r\n.\r\n=>250", "QUIT\n=>221")
	want := []string{"Subject: x\r\n\r\n.y\r\nz\r\n", "\r\n", "x\r\n.\r\nMAIL FROM:<evil@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\ny\r\n"}
	got := s.got()
	if len(got) != len(want) {
		t.Fatalf("%d messages: %q", len(got), got)
	}
	for i := range want {
		if got[i].content != want[i] {
			t.Errorf("message %d is %q, want %q", i, got[i].content, want[i])
		}
	}
}
