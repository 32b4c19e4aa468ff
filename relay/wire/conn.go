package wire

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/transcript"
)

// Options configure a Conn.
type Options struct {
	Hostname  string // in the greeting and in the EHLO reply
	Banner    string // what the greeting says after the name; empty means "ESMTP Waybill"
	Connector string // receive connector, for facts
	Client    netip.Addr

	TLS         *tls.Config // nil: no TLS
	Implicit    bool        // TLS from the first octet (RFC 8314 section 3.3)
	ClientNames []string    // names that clients' certificates are looked at for, see [tlsconf.VerifyClient]

	Extensions        Extensions
	MaxSize           int64   // announced as SIZE; 0 announces no limit
	MaxRecipients     int     // announced as LIMITS RCPTMAX; 0 announces no limit
	BareNewline       Newline // in DATA
	BareNewlineChunks Newline // in BDAT
	Lenient           bool    // take paths without angle brackets, as old devices write them
	NoVerify          bool    // VRFY is answered 502, and not 252 (RFC 5321 section 3.5.3)

	CommandTimeout time.Duration // for a whole command line, and between blocks of a content; zero means 5m
	SessionTimeout time.Duration // ends the session between transactions; zero means no limit
	MinRate        int64         // octets per second that a content must come at, on average; zero means 1024
	ProtocolErrors int           // end the session after so many; zero means 5
	Tarpit         time.Duration // delay of each 5xx reply while nobody is authenticated; zero means none
	Delay          time.Duration // of the greeting; see [Conn.Pause]

	Transcript *transcript.Log // what both sides say is written here; nil: nowhere
	Emitter    event.Emitter   // with the session in its context
	Hooks      Hooks
}

// Hooks are what the session does when this package learns something. All but
// Closed are called on the goroutine that reads, and each may be nil.
type Hooks struct {
	// Secured is told that the handshake of implicit TLS succeeded: the session begins.
	Secured func()
	// Mechanisms are the SASL mechanisms to announce now.
	Mechanisms func() []string
	// Begin is asked when content is about to come; an error refuses DATA, or the first BDAT.
	Begin func() *mail.ReplyError
	// Command is asked about every command but QUIT. An error refuses it, but for
	// DATA and BDAT, whose octets may be on their way already: those it refuses only
	// together with the session, after [Conn.HangUp]. Nil lets all pass.
	Command func(verb string) *mail.ReplyError
	// Refused is told that MAIL or RCPT was refused here; arg is what the client gave.
	Refused func(verb, arg string, e *mail.ReplyError)
	// AuthEnded is told that an exchange ended without a verdict: "cancelled" or "malformed".
	AuthEnded func(mechanism, reason string, code int)
	// Throttled is told that a limit acted, the first time that it does in the session.
	Throttled func(limit, action string)
	// XClient is asked when XCLIENT says for whom the client speaks from now on; nil
	// where it may not. It returns the options of a connection of that client, or
	// an error that ends this one.
	XClient func(XClient) (Options, *mail.ReplyError)
	// Unasked is told of a PROXY header that nobody asked for; it ends the connection.
	Unasked func()
	// Early is told that the client spoke before it was greeted (RFC 5321 section 4.3.1).
	Early func()
	// Panicked is told of a panic on the way of a command.
	Panicked func(value any, stack []byte)
	// Closed is called once, when the connection is closed.
	Closed func(Summary)
}

// Summary is what became of a connection.
type Summary struct {
	Cause    string // see [event.SessionClosed]
	Failed   bool   // something was refused, or the end was not orderly
	Slow     bool   // a reply took long
	Commands int
	BytesIn  int64
	BytesOut int64
	Duration time.Duration
}

// Bounds chosen by taste, where RFC 5321 gives none or a smaller one.
const (
	maxLine        = 4096      // of a command: RFC 5321 section 4.5.3.1.4 says 512 plus what extensions add
	maxAuthLine    = 12288     // RFC 4954 section 4
	maxLongLine    = 256 << 10 // of a line that is too long, before the connection is cut
	maxOut         = 8 << 10   // of replies that wait for the end of pipelined commands
	maxJunk        = 100       // commands that do nothing, between messages
	maxRefusals    = 200       // commands refused by policy, between messages
	slowReply      = 10 * time.Second
	writeTimeout   = time.Minute // of replies
	handshakeTime  = 30 * time.Second
	lingerTime     = 500 * time.Millisecond
	lingerBytes    = 1 << 20
	maxDiscard     = 256 << 20 // of a refused content, before the connection is cut
	defaultMinRate = 1024
)

// The causes of [Summary.Cause] that are set here.
const (
	CauseQuit     = "quit"
	CauseClosed   = "closed"   // by the client, without QUIT
	CauseTimeout  = "timeout"  // within a command or a content, or of the session
	CauseIdle     = "idle"     // no command came
	CauseErrors   = "errors"   // too many
	CauseShutdown = "shutdown" // we are going
	CauseProtocol = "protocol" // it does not speak SMTP, or in a way that is not safe
	CausePanic    = "panic"
	CauseLimit    = "limit"
)

// Conn is a net.Conn for a go-smtp server. One goroutine reads and writes; only
// [Conn.Drain] and [Conn.Kill] may be called by others.
type Conn struct {
	opts Options
	raw  net.Conn
	cur  net.Conn // raw, or TLS over it
	tls  *tls.ConnectionState
	own  *x509.Certificate // see Certificate

	in     input
	out    []byte // replies that are not yet sent
	outN   int64
	pend   string // what go-smtp gets next
	reply  []byte // what go-smtp says
	wrbuf  [256]byte
	script *transcript.Log

	started  time.Time
	greeted  bool // HELO or EHLO came, after STARTTLS again
	crlf     bool // a command line ended in CRLF, as all should
	greet    bool // the greeting is out
	notified bool // TLS has said that we close
	helo     string
	esmtp    bool
	authed   bool
	sasl     bool // and by AUTH
	tx       bool // a transaction is open
	rcpts    int
	env      mail.Envelope  // of the last MAIL
	rcpt     mail.Recipient // of the last RCPT
	mailAt   time.Time

	now      verb // the command that go-smtp is answering
	nowAt    time.Time
	waited   bool // octets were received since nowAt
	auth     authState
	override mail.Reply // say this instead of what go-smtp says
	swallow  bool       // say nothing instead
	body     Body
	held     []byte // a command that ended a chunked content, to be handled next

	commands, errors, junk, refusals int
	failed, slow                     bool
	tarpitted                        bool
	cause                            string // not empty: nothing more is read

	mu       sync.Mutex
	draining bool
	idle     bool // waits for a command outside a transaction
	killed   bool
	waiting  time.Time     // since when for a command outside a transaction; zero when not
	evicted  bool          // see EndIdle
	gone     chan struct{} // closed by Kill, to wake a tarpit
	leave    chan struct{} // closed by Drain and Kill, to wake a pause
	once     sync.Once
}

// New returns the connection for go-smtp over raw.
func New(raw net.Conn, opts Options) *Conn {
	opts = opts.withDefaults()
	now := time.Now()
	c := &Conn{opts: opts, raw: raw, cur: raw, started: now, nowAt: now, gone: make(chan struct{}), leave: make(chan struct{})}
	c.script = opts.Transcript
	c.body.c = c
	return c
}

func (opts Options) withDefaults() Options {
	if opts.CommandTimeout <= 0 {
		opts.CommandTimeout = 5 * time.Minute // RFC 5321 section 4.5.3.2.7
	}
	if opts.MinRate <= 0 {
		opts.MinRate = defaultMinRate
	}
	if opts.ProtocolErrors <= 0 {
		opts.ProtocolErrors = 5
	}
	if opts.Banner == "" {
		opts.Banner = "ESMTP Waybill"
	}
	return opts
}

// Read gives go-smtp one command line, or the end of a content. It is called
// when the reply to the command before is complete.
func (c *Conn) Read(p []byte) (n int, err error) {
	defer func() {
		if v := recover(); v != nil {
			c.panicked(v)
			n, err = 0, io.EOF
		}
	}()
	if len(c.pend) == 0 {
		if err := c.step(); err != nil {
			return 0, err
		}
	}
	n = copy(p, c.pend)
	c.pend = c.pend[n:]
	return n, nil
}

// Write takes a part of go-smtp's reply.
func (c *Conn) Write(p []byte) (int, error) {
	if c.reply == nil {
		c.reply = c.wrbuf[:0]
	}
	c.reply = append(c.reply, p...)
	return len(p), nil
}

// Close sends what is left to send and ends the connection. It is called by
// go-smtp, more than once.
func (c *Conn) Close() error {
	c.once.Do(func() {
		func() {
			defer func() {
				if v := recover(); v != nil {
					c.panicked(v)
				}
			}()
			c.settle()
			_ = c.flush()
			if c.cause != "" && c.cause != CauseClosed && c.cause != CauseQuit && !c.isKilled() {
				c.linger()
			}
		}()
		c.setCause(c.lost())
		c.closeNotify()
		_ = c.raw.Close()
		c.mu.Lock()
		c.killed = true
		c.mu.Unlock()
		c.in.release()
		if c.opts.Hooks.Closed != nil {
			orderly := c.cause == CauseQuit || c.cause == CauseShutdown || c.cause == CauseClosed && !c.tx
			c.opts.Hooks.Closed(Summary{
				Cause: c.cause, Failed: c.failed || !orderly, Slow: c.slow, Commands: c.commands,
				BytesIn: c.in.total, BytesOut: c.outN, Duration: time.Since(c.started),
			})
		}
	})
	return nil
}

// linger ends our half of the connection and reads for a moment what the peer
// still sends: closing with unread input makes TCP take back the last reply.
func (c *Conn) linger() {
	tcp, ok := c.raw.(interface{ CloseWrite() error })
	if !ok {
		return
	}
	c.closeNotify()
	if tcp.CloseWrite() != nil {
		return
	}
	_ = c.raw.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.CopyN(io.Discard, struct{ io.Reader }{c.raw}, lingerBytes)
}

// LocalAddr is the address that the client connected to.
func (c *Conn) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// RemoteAddr is the client's address.
func (c *Conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }

// SetDeadline does nothing: deadlines are this package's.
func (c *Conn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing: deadlines are this package's.
func (c *Conn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing: deadlines are this package's.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }

// TLS is the state of the TLS connection, or nil when there is none.
func (c *Conn) TLS() *tls.ConnectionState { return c.tls }

// Announce changes the size of messages that EHLO announces from now on; 0
// announces no limit. Limits that are less for some than for others are the
// session's to enforce.
func (c *Conn) Announce(size int64) { c.opts.MaxSize = size }

// Helo is the client's name for itself, fit for records, and whether it said
// EHLO.
func (c *Conn) Helo() (name string, esmtp bool) { return c.helo, c.esmtp }

// Envelope is what the last MAIL said; its recipients are empty.
func (c *Conn) Envelope() (mail.Envelope, time.Time) { return c.env, c.mailAt }

// Recipient is what the last RCPT said.
func (c *Conn) Recipient() mail.Recipient { return c.rcpt }

// Transaction reports whether MAIL was accepted and its transaction is open.
func (c *Conn) Transaction() bool { return c.tx }

// Answer makes r the reply to the command that is being handled, in place of the
// usual words for its success.
func (c *Conn) Answer(r mail.Reply) { c.override = r }

// HangUp ends the session after the reply that is being made.
func (c *Conn) HangUp(cause string) { c.setCause(cause) }

func (c *Conn) setCause(cause string) {
	if c.cause == "" {
		c.cause = cause
	}
}

// Drain ends the session as soon as no transaction is open: the client gets 421
// (RFC 5321 section 3.8).
func (c *Conn) Drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining {
		return
	}
	c.draining = true
	close(c.leave)
	if c.idle {
		_ = c.raw.SetReadDeadline(past)
	}
}

// Kill cuts the connection at once.
func (c *Conn) Kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.killed {
		return
	}
	if !c.draining {
		close(c.leave)
	}
	c.killed, c.draining = true, true
	close(c.gone)
	_ = c.raw.Close()
}

// lost is the cause when the connection is gone.
func (c *Conn) lost() string {
	if c.isKilled() {
		return CauseShutdown
	}
	return CauseClosed
}

func (c *Conn) isKilled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.killed
}

func (c *Conn) isDraining() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.draining
}

func (c *Conn) panicked(v any) {
	stack := debug.Stack()
	c.setCause(CausePanic)
	c.failed = true
	c.body.open = false
	c.reply, c.now, c.swallow = c.reply[:0], none, false
	c.out = append(c.out, "421 4.3.0 internal error\r\n"...)
	c.script.Server(time.Now(), []byte("421 4.3.0 internal error"))
	_ = c.flush()
	if c.opts.Hooks.Panicked != nil {
		defer func() { _ = recover() }() // the hook itself may be what is broken
		c.opts.Hooks.Panicked(v, stack)
	}
}

// past is a deadline that has passed.
var past = time.Unix(1, 0)

var (
	errDraining = errors.New("draining")
	errTimeout  = errors.New("timed out")
)

// fill receives more octets, after it has sent all replies. idle says that the
// session may end here when we are going.
func (c *Conn) fill(deadline time.Time, idle, large bool) error {
	if err := c.flush(); err != nil {
		return err
	}
	room := c.in.room(large)
	if len(room) == 0 {
		return io.ErrShortBuffer
	}
	n, err := c.receive(room, deadline, idle)
	c.in.filled(n)
	return err
}

// receive receives octets into room. When it got some, there is no error.
func (c *Conn) receive(room []byte, deadline time.Time, idle bool) (int, error) {
	c.mu.Lock()
	if c.draining && idle {
		c.mu.Unlock()
		return 0, errDraining
	}
	if c.evicted {
		deadline = past
	}
	c.idle = idle
	_ = c.raw.SetReadDeadline(deadline) // fails only on a closed connection, as Read does
	c.mu.Unlock()

	n, err := c.cur.Read(room)
	c.waited = true

	if idle {
		c.mu.Lock()
		c.idle = false
		drain := c.draining
		c.mu.Unlock()
		if drain && n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, errDraining
		}
	}
	switch {
	case n > 0:
		return n, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, errTimeout
	case err == nil:
		return 0, io.ErrNoProgress
	}
	return 0, err
}

// flush sends the replies.
func (c *Conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	_ = c.raw.SetWriteDeadline(time.Now().Add(writeTimeout)) // fails only on a closed connection, as Write does
	n, err := c.cur.Write(c.out)
	c.outN += int64(n)
	c.out = c.out[:0]
	if err != nil {
		c.setCause(CauseClosed)
	}
	return err
}
