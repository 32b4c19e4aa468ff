package smtpin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/throttle"
	"waybill/relay/wire"

	"github.com/emersion/go-smtp"
)

// Server receives mail for all receive connectors.
type Server struct {
	opts      Options
	emit      event.Emitter
	smtp      *smtp.Server
	feed      *feed
	lockout   *throttle.Lockout
	throttles *throttle.Set
	first     []*connector // of Options, until Listen

	// life ends when sessions must end at once. Sessions are called by go-smtp,
	// which has no context to hand on: this is the one that they use.
	life context.Context
	end  context.CancelFunc

	change  sync.Mutex // one change of the connectors at a time; held from Prepare to Commit
	running bool       // listeners are served
	ended   bool
	accepts sync.WaitGroup
	headers atomic.Int64 // connections that wait for their PROXY header

	mu         sync.Mutex
	listeners  []*listener // changed under both mutexes
	connectors []*connector
	counters   map[string]*counters // by connector name
	sessions   map[*session]struct{}
	draining   bool
	empty      chan struct{} // closed when draining and no session is left
}

// New checks opts and returns a Server that does not yet listen.
func New(opts Options) (*Server, error) {
	if opts.Hostname == "" || opts.Acceptor == nil {
		return nil, errors.New("smtpin: a host name and an acceptor are needed")
	}
	if opts.patience <= 0 {
		opts.patience = crowded
	}
	if opts.DrainTimeout <= 0 {
		opts.DrainTimeout = 25 * time.Second
	}
	connectors, err := newConnectors(opts.Connectors)
	if err != nil {
		return nil, err
	}
	s := &Server{
		opts: opts, emit: opts.Emitter.Source(event.SourceSMTPIn), feed: newFeed(), first: connectors,
		counters: map[string]*counters{}, sessions: map[*session]struct{}{}, empty: make(chan struct{}), lockout: opts.Lockout,
	}
	if s.throttles = opts.Throttles; s.throttles == nil {
		if s.throttles, err = throttle.NewSet(); err != nil {
			return nil, err
		}
	}
	if s.lockout == nil {
		s.lockout = throttle.NewLockout(throttle.LockoutLimits{})
	}
	s.life, s.end = context.WithCancel(context.Background())
	s.smtp = wire.NewServer(backend{}, panicLog{s.emit})
	return s, nil
}

// Listen opens all listeners, or none.
func (s *Server) Listen() error {
	s.change.Lock()
	if s.first == nil {
		s.change.Unlock()
		return nil
	}
	c := &Change{s: s, connectors: s.first, kept: map[*listener]*socket{}}
	if err := c.open(); err != nil {
		defer s.change.Unlock()
		return errors.Join(err, c.undo())
	}
	s.first = nil
	c.Commit()
	return nil
}

// Run receives mail until ctx is done. Then it takes no new session, ends those
// that are between transactions with 421, lets transactions in hand end within
// the drain timeout, cuts what is left, and returns nil. It calls Listen when
// that has not been done. A Server runs once.
func (s *Server) Run(ctx context.Context) error {
	if err := s.Listen(); err != nil {
		return err
	}
	failed := make(chan error, 1)
	var loops sync.WaitGroup
	loops.Go(func() {
		if err := s.smtp.Serve(s.feed); err != nil {
			failed <- err
		}
	})
	s.change.Lock()
	s.running = true
	for _, l := range s.listeners {
		s.serve(l)
	}
	s.change.Unlock()
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	s.change.Lock()
	s.ended = true
	for _, l := range s.listeners {
		l.close()
	}
	s.change.Unlock()
	s.drain()
	s.accepts.Wait()
	stop, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = s.smtp.Shutdown(stop) // waits for its goroutines, whose connections are closed
	_ = s.feed.Close()        // when Serve began after Shutdown had looked, nobody else does
	loops.Wait()
	return err
}

// drain ends all sessions.
func (s *Server) drain() {
	s.mu.Lock()
	s.draining = true
	for ses := range s.sessions {
		ses.conn.Drain()
	}
	s.checkEmpty()
	s.mu.Unlock()
	t := time.NewTimer(s.opts.DrainTimeout)
	defer t.Stop()
	select {
	case <-s.empty:
	case <-t.C:
		s.mu.Lock()
		for ses := range s.sessions {
			ses.conn.Kill()
		}
		s.mu.Unlock()
		s.end()
		<-s.empty
	}
	s.end()
}

// checkEmpty closes s.empty when no session is left. The caller holds s.mu.
func (s *Server) checkEmpty() {
	if s.draining && len(s.sessions) == 0 {
		select {
		case <-s.empty:
		default:
			close(s.empty)
		}
	}
}

// enter decides which connector a connection is for, and whether it may come in.
func (s *Server) enter(at entrances, v visit, raw net.Conn) {
	ip := v.remote.Addr()
	c := at.choose(v)
	if c == nil {
		s.turnAway(at[0].connector, raw, ip, "denied", notForYou)
		return
	}
	leave, ok, delay := s.let(c, raw, ip)
	if !ok {
		return
	}
	ses := s.newSession(at, c, raw, v, leave, delay)
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		leave()
		s.turnAway(c, raw, ip, "shutdown", mail.Reply{Code: 421, Enhanced: "4.3.2", Text: "service closing, try again later"})
		return
	}
	s.sessions[ses] = struct{}{}
	s.mu.Unlock()
	if c.TLSMode != "implicit" { // which opens it after the handshake
		ses.opened()
	}
	if !s.feed.put(ses.conn) {
		_ = ses.conn.Close()
	}
}

var notForYou = mail.Reply{Code: 554, Enhanced: "5.7.1", Text: "not for you"}

// addrPort is an address as rules compare it, or the zero AddrPort.
func addrPort(a net.Addr) netip.AddrPort {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// turnAway refuses a connection (RFC 5321 section 3.1).
func (s *Server) turnAway(c *connector, raw net.Conn, ip netip.Addr, reason string, r mail.Reply) {
	if c.TLSMode != "implicit" && r.Code != 0 {
		_ = raw.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = raw.Write([]byte(r.String() + "\r\n")) // fits into the empty send buffer: it does not wait
	}
	_ = raw.Close()
	s.stateRefused(c, ip, visit{}, reason, r)
}

func (s *Server) stateRefused(c *connector, ip netip.Addr, v visit, reason string, r mail.Reply) {
	fact := event.SessionRefused{Connector: c.Name, ClientIP: ip, Reason: reason}
	if r.Code != 0 {
		fact.Reply = r.String()
	}
	if v.remote.IsValid() {
		fact.Error = "as " + v.remote.Addr().String() + " says by XCLIENT"
	}
	s.emit.Emit(fact)
}

// forget is called when a session is over.
func (s *Server) forget(ses *session) {
	ses.leave()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, ses)
	s.checkEmpty()
}

// feed is the listener that go-smtp serves: connections that were admitted.
type feed struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newFeed() *feed { return &feed{conns: make(chan net.Conn), done: make(chan struct{})} }

func (f *feed) put(c net.Conn) bool {
	select {
	case f.conns <- c:
		return true
	case <-f.done:
		return false
	}
}

// Accept returns the next connection.
func (f *feed) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (f *feed) Close() error {
	f.once.Do(func() { close(f.done) })
	return nil
}

// Addr is no address.
func (f *feed) Addr() net.Addr { return &net.TCPAddr{} }

// backend gives go-smtp the session that belongs to its connection.
type backend struct{}

// NewSession is called at the first EHLO.
func (backend) NewSession(c *smtp.Conn) (smtp.Session, error) { return c.Conn().(*conn).ses, nil }

// conn is a connection with its session.
type conn struct {
	*wire.Conn
	ses *session
}

// panicLog takes what go-smtp logs: panics in its own code. Those in ours do
// not reach it.
type panicLog struct{ emit event.Emitter }

// Printf states a panic.
func (l panicLog) Printf(format string, v ...any) {
	if !strings.HasPrefix(format, "panic") {
		return // a connection's error, which its session states
	}
	text := fmt.Sprintf(format, v...)
	value, stack, _ := strings.Cut(text, "\n")
	l.emit.Emit(event.Panicked{Where: "go-smtp", Value: wire.Printable(value, 500), Stack: stack})
}

// Println states nothing: go-smtp logs no panic with it.
func (l panicLog) Println(...any) {}
