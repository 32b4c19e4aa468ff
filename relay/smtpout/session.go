package smtpout

import (
	"bufio"
	"cmp"
	"context"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/reuse"
)

// The timeouts of RFC 5321 section 4.5.3.2, and those that it leaves to us.
const (
	connectTimeout  = 30 * time.Second
	greetingTimeout = 5 * time.Minute // section 4.5.3.2.1
	mailTimeout     = 5 * time.Minute // section 4.5.3.2.2
	rcptTimeout     = 5 * time.Minute // section 4.5.3.2.3
	dataTimeout     = 2 * time.Minute // section 4.5.3.2.4
	blockTimeout    = 3 * time.Minute // section 4.5.3.2.5
	dotTimeout      = 10 * time.Minute
	commandTimeout  = 5 * time.Minute
	quitTimeout     = 5 * time.Second // nothing depends on it
)

func (t Timeouts) withDefaults() Timeouts {
	return Timeouts{
		Connect: cmp.Or(t.Connect, connectTimeout), Greeting: cmp.Or(t.Greeting, greetingTimeout),
		Command: cmp.Or(t.Command, commandTimeout), Mail: cmp.Or(t.Mail, mailTimeout), Rcpt: cmp.Or(t.Rcpt, rcptTimeout),
		Data: cmp.Or(t.Data, dataTimeout), Block: cmp.Or(t.Block, blockTimeout), Dot: cmp.Or(t.Dot, dotTimeout),
		Quit: cmp.Or(t.Quit, quitTimeout),
	}
}

// extensions are what a next hop offers (RFC 5321 section 2.2).
type extensions struct {
	pipelining, eightBit, binary, chunking, utf8, dsn, startTLS, size, requireTLS, priority, deliverBy bool

	maxSize int64 // 0: no limit told
	maxRcpt int   // recipients of a message (RFC 9422); 0: no limit told
	maxMail int   // messages of a session; 0: no limit told
	minBy   int64 // least seconds that it delivers in (RFC 2852); 0: none told
	auth    []string
}

// session is one connection to a next hop. One attempt uses it at a time.
type session struct {
	c    *Connector
	id   string
	emit event.Emitter
	at   target
	tcp  net.Conn        // for closing
	raw  syscall.RawConn // of tcp, to look at it; nil where that cannot be done
	conn net.Conn        // tcp, or TLS over it
	r    replyReader
	w    *bufio.Writer
	ext  extensions

	local      netip.AddrPort
	tlsVersion string
	tlsCipher  string
	tlsVerify  string
	tlsFailure string   // why there is no TLS, or not as a policy that is not enforced wants it
	sec        security // what it must have of TLS
	user       string   // authenticated as
	lax        bool     // opened for a message that goes whatever is published: for no other

	opened       time.Time
	deadline     time.Time     // no wait of the present phase goes beyond it; zero: none
	patience     time.Duration // of a wait that has begun and has not yet come to read; zero: none
	commands     int
	messages     int
	transactions int
	in, out      int64
	cause        string   // why it cannot go on
	dirty        bool     // RSET before the next transaction
	a            *attempt // that uses the session; nil in the pool
	closed       atomic.Bool
	glimpse      glimpse

	// of a session in the pool
	hop     string
	timer   *time.Timer // see [Connector.expire]; nil before it is there for the first time
	ticking bool        // it will fire
	parked  time.Time
}

// glimpse is what was seen of the connection without taking anything from it.
type glimpse struct {
	take  func(fd uintptr) bool // made once
	octet [1]byte
	n     int
	err   error
}

// writers are the buffers of sessions that have ended.
var writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 16<<10) }}

// Write implements io.Writer for the session's buffer: each write has its own
// deadline, so that a peer that stops reading is noticed.
func (s *session) Write(p []byte) (int, error) {
	if err := s.conn.SetWriteDeadline(s.until(s.c.opts.Timeouts.Block)); err != nil {
		return 0, err
	}
	n, err := s.conn.Write(p)
	s.out += int64(n)
	return n, err
}

// Read implements io.Reader for the session's buffer. What is in the buffer
// needs no deadline: of the replies to a pipelined envelope, the first has one.
func (s *session) Read(p []byte) (int, error) {
	if s.patience > 0 {
		if err := s.conn.SetReadDeadline(s.until(s.patience)); err != nil {
			return 0, err
		}
		s.patience = 0
	}
	n, err := s.conn.Read(p)
	s.in += int64(n)
	return n, err
}

func (s *session) until(d time.Duration) time.Time {
	t := time.Now().Add(d)
	if !s.deadline.IsZero() && s.deadline.Before(t) {
		return s.deadline
	}
	return t
}

// open connects to at and brings the session to where MAIL may follow.
func (a *attempt) open(at target, level TLSLevel) (*session, *failure) {
	c := a.c
	a.log.speaksTo("", at)
	a.log.note("connect " + at.String())
	start := time.Now()
	tcp, err := c.dial(a.ctx, a.hop.Name, at.addr)
	a.stages.Connect += time.Since(start)
	if err != nil {
		if a.ctx.Err() != nil {
			return nil, cancelled("CONNECT", at, a.ctx.Err())
		}
		c.answered(at.addr, false)
		return nil, unreachable(at, err)
	}
	c.answered(at.addr, true)
	s := &session{
		c: c, id: mail.NewID(time.Now()), at: at, tcp: tcp, conn: tcp, opened: time.Now(), hop: a.hop.Name, tlsVerify: "none", lax: a.unbound(), a: a,
	}
	if sc, ok := tcp.(syscall.Conn); ok {
		s.raw, _ = sc.SyscallConn() // fails for what is closed
	}
	s.emit = c.opts.Emitter.Source(event.SourceSMTPOut).Session(s.id)
	a.log.speaksTo(s.id, at)
	s.r = replyReader{r: bufio.NewReaderSize(s, 4<<10), log: a.log}
	s.w = writers.Get().(*bufio.Writer)
	s.w.Reset(s)
	if l, ok := tcp.LocalAddr().(*net.TCPAddr); ok {
		s.local = l.AddrPort()
		s.local = netip.AddrPortFrom(s.local.Addr().Unmap(), s.local.Port())
	}
	s.emit.Emit(event.SessionOpened{
		Direction: event.Outbound, Connector: c.opts.Name, LocalIP: s.local.Addr(), LocalPort: s.local.Port(),
		RemoteName: at.name, RemoteIP: at.addr.Addr(), RemotePort: at.addr.Port(),
	})
	s.sec = a.security(at, level)
	a.use(s)
	stop := context.AfterFunc(a.ctx, s.kill)
	f := s.begin(a)
	if !stop() && a.ctx.Err() != nil {
		f = cancelled(verbOf(f, "EHLO"), at, a.ctx.Err())
	}
	a.use(s)
	if f != nil {
		s.finish(cmp.Or(f.cause, "errors"), f.remote && f.cause != "closed")
		return nil, f
	}
	return s, nil
}

func verbOf(f *failure, otherwise string) string {
	if f != nil && f.verb != "" {
		return f.verb
	}
	return otherwise
}

// begin is the story of a session up to MAIL: greeting, EHLO, TLS, AUTH.
func (s *session) begin(a *attempt) *failure {
	o := &s.c.opts
	if o.ImplicitTLS {
		if f := s.handshake(a); f != nil {
			return f
		}
	}
	start := time.Now()
	if f := s.await("CONNECT", o.Timeouts.Greeting); f != nil {
		return f
	}
	if s.r.code != 220 {
		f := said("CONNECT", s.at, s.r.reply())
		f.closes = s.r.code == 521        // RFC 7504 section 2
		f.permanent, f.lost = false, true // a host that does not talk to us says nothing about the recipients
		return f
	}
	if f := s.hello(); f != nil {
		return f
	}
	a.stages.Banner += time.Since(start)
	if !o.ImplicitTLS {
		if f := s.startTLS(a); f != nil {
			return f
		}
	}
	if o.Auth.Mechanism == "" {
		return nil
	}
	start = time.Now()
	f := s.auth(a.ctx)
	a.stages.Auth += time.Since(start)
	return f
}

// hello says EHLO, or HELO to those that do not know it (RFC 5321 section 3.2).
func (s *session) hello() *failure {
	name := s.c.opts.Hostname
	s.ext = extensions{}
	s.line("EHLO ", name)
	if f := s.ask("EHLO", s.c.opts.Timeouts.Command); f != nil {
		return f
	}
	if s.r.code == 250 {
		s.ext = parseExtensions(s.r.text)
		return nil
	}
	f := said("EHLO", s.at, s.r.reply())
	if s.r.code/100 != 5 {
		f.permanent = false
		return f
	}
	s.line("HELO ", name)
	if f := s.ask("HELO", s.c.opts.Timeouts.Command); f != nil {
		return f
	}
	if s.r.code == 250 {
		return nil
	}
	f = said("HELO", s.at, s.r.reply())
	f.permanent = false
	return f
}

// parseExtensions reads the keywords of an EHLO reply, which begin on its
// second line. Case does not matter (RFC 5321 section 2.4).
func parseExtensions(text []byte) extensions {
	var e extensions
	first := true
	for l := range strings.SplitSeq(string(text), "\n") {
		if first {
			first = false
			continue
		}
		keyword, params, _ := strings.Cut(strings.TrimSpace(l), " ")
		switch keyword = strings.ToUpper(keyword); keyword {
		case "PIPELINING":
			e.pipelining = true
		case "8BITMIME":
			e.eightBit = true
		case "BINARYMIME":
			e.binary = true
		case "CHUNKING":
			e.chunking = true
		case "SMTPUTF8":
			e.utf8 = true
		case "DSN":
			e.dsn = true
		case "REQUIRETLS":
			e.requireTLS = true
		case "MT-PRIORITY":
			e.priority = true
		case "DELIVERBY":
			e.deliverBy, e.minBy = true, parseMinimum(params)
		case "LIMITS":
			e.limits(params)
		case "STARTTLS":
			e.startTLS = true
		case "SIZE":
			e.size = true
			if n, err := strconv.ParseInt(strings.TrimSpace(params), 10, 64); err == nil && n > 0 {
				e.maxSize = n
			}
		case "AUTH":
			e.auth = append(e.auth, strings.Fields(strings.ToUpper(params))...)
		default:
			if mech, ok := strings.CutPrefix(keyword, "AUTH="); ok { // before RFC 2554
				e.auth = append(e.auth, append([]string{mech}, strings.Fields(strings.ToUpper(params))...)...)
			}
		}
	}
	return e
}

// limits reads the limits that a next hop tells (RFC 9422 section 3). What is
// malformed or unknown counts as not there.
func (e *extensions) limits(params string) {
	for word := range strings.FieldsSeq(params) {
		name, value, _ := strings.Cut(word, "=")
		n, err := strconv.ParseUint(value, 10, 20)
		if err != nil || n == 0 || len(value) > 6 {
			continue
		}
		switch strings.ToUpper(name) {
		case "RCPTMAX":
			e.maxRcpt = int(n)
		case "MAILMAX":
			e.maxMail = int(n)
		}
	}
}

// line puts one command into the buffer.
func (s *session) line(verb, arg string) {
	s.commands++
	b := append(append(s.w.AvailableBuffer(), verb...), arg...)
	s.r.log.add(fromClient, b, 0)
	_, _ = s.w.Write(append(b, "\r\n"...))
}

// ask sends what is in the buffer and reads one reply.
func (s *session) ask(verb string, timeout time.Duration) *failure {
	if f := s.early(verb); f != nil {
		return f
	}
	if err := s.w.Flush(); err != nil {
		return s.breaks(verb, err)
	}
	return s.await(verb, timeout)
}

// await reads one reply. All of it must come within timeout: a host that says
// an octet now and then does not get more.
func (s *session) await(verb string, timeout time.Duration) *failure {
	s.patience = timeout
	err := s.r.read()
	s.patience = 0
	if err != nil {
		return s.breaks(verb, err)
	}
	return nil
}

func (s *session) breaks(verb string, err error) *failure {
	f := broken(verb, s.at, err)
	if f.class == mail.ClassTLS {
		f.why, f.policy = reasonOf(err), s.sec.policy
	}
	if s.a != nil && s.a.ctx.Err() != nil {
		f = cancelled(verb, s.at, s.a.ctx.Err())
	}
	s.cause = f.cause
	s.r.log.note(f.reply.Text)
	return f
}

// kill ends the connection at once; whoever waits on it gets an error.
func (s *session) kill() {
	if s.closed.CompareAndSwap(false, true) {
		_ = s.tcp.Close()
	}
}

// finish closes the session, after QUIT when polite, and states it. Nothing is
// written to it any more.
func (s *session) finish(cause string, polite bool) {
	if s.timer != nil {
		s.timer.Stop()
	}
	if polite && !s.closed.Load() {
		s.deadline = time.Now().Add(s.c.opts.Timeouts.Quit)
		s.line("QUIT", "")
		if s.w.Flush() == nil {
			_ = s.conn.SetReadDeadline(s.deadline)
			_ = s.r.read()
		}
		if s.closed.CompareAndSwap(false, true) {
			_ = s.conn.Close() // TLS says that it closes
		}
	}
	s.kill()
	if w := s.w; w != nil {
		s.w = nil
		w.Reset(nil)
		reuse.Spoil(w.AvailableBuffer())
		writers.Put(w)
	}
	s.emit.Emit(event.SessionClosed{
		Direction: event.Outbound, Connector: s.c.opts.Name, RemoteName: s.at.name, RemoteIP: s.at.addr.Addr(), AuthUser: s.user,
		Cause: cause, Commands: s.commands, Messages: s.messages, BytesIn: s.in, BytesOut: s.out,
		Duration: event.Since(s.opened, time.Now()), LocalIP: s.local.Addr(), TLS: s.secured(),
	})
}

// secured says how the session was secured, where the policies of a domain were
// asked for, which may want to know (RFC 8460). A session in plain text after a
// failed one does not count again.
func (s *session) secured() event.TLS {
	level, domain := s.c.opts.TLS, s.hop
	if len(s.c.opts.SmartHosts) > 0 {
		domain = s.sec.domain
	}
	if s.lax || s.at.fallen != "" || domain == "" || level != TLSMTASTS && (level != TLSDANE || s.sec.policy != TLSDANE) {
		return event.TLS{}
	}
	return event.TLS{
		Domain: domain, Base: s.sec.base, Policy: string(s.sec.policy), Text: s.sec.text, Version: s.tlsVersion, Verify: s.tlsVerify, Failure: s.tlsFailure,
	}
}
