package smtpin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/throttle"
	"waybill/relay/wire"

	"github.com/emersion/go-smtp"
)

// Server receives mail for all receive connectors.
type Server struct {
	opts       Options
	emit       event.Emitter
	connectors []*connector
	binds      []*bind
	smtp       *smtp.Server
	feed       *feed
	lockout    *throttle.Lockout

	// life ends when sessions must end at once. Sessions are called by go-smtp,
	// which has no context to hand on: this is the one that they use.
	life context.Context
	end  context.CancelFunc

	mu       sync.Mutex
	sessions map[*session]struct{}
	draining bool
	empty    chan struct{} // closed when draining and no session is left
}

// bind is one listening address and the connectors that share it.
type bind struct {
	addr       string
	ln         net.Listener
	connectors []*connector
}

// New checks opts and returns a Server that does not yet listen.
func New(opts Options) (*Server, error) {
	if opts.Hostname == "" || opts.Acceptor == nil {
		return nil, errors.New("smtpin: a host name and an acceptor are needed")
	}
	if opts.DrainTimeout <= 0 {
		opts.DrainTimeout = 25 * time.Second
	}
	s := &Server{
		opts: opts, emit: opts.Emitter.Source(event.SourceSMTPIn), feed: newFeed(),
		sessions: map[*session]struct{}{}, empty: make(chan struct{}), lockout: opts.Lockout,
	}
	if s.lockout == nil {
		s.lockout = throttle.NewLockout(throttle.LockoutLimits{})
	}
	s.life, s.end = context.WithCancel(context.Background())
	s.smtp = wire.NewServer(backend{}, panicLog{s.emit})
	shared := map[string]*bind{}
	names := map[string]bool{}
	for _, c := range opts.Connectors {
		con, err := newConnector(c)
		if err != nil {
			return nil, err
		}
		if names[c.Name] {
			return nil, fmt.Errorf("two receive connectors are named %s", c.Name)
		}
		names[c.Name] = true
		s.connectors = append(s.connectors, con)
		for _, addr := range c.Listen {
			b := shared[addr]
			if b == nil {
				b = &bind{addr: addr}
				s.binds = append(s.binds, b)
				if !strings.HasSuffix(addr, ":0") { // a free port is each connector's own
					shared[addr] = b
				}
			}
			b.connectors = append(b.connectors, con)
		}
	}
	return s, nil
}

// Listen opens all listeners, or none.
func (s *Server) Listen() error {
	for i, b := range s.binds {
		if b.ln != nil {
			continue
		}
		ln, err := net.Listen("tcp", b.addr)
		if err != nil {
			for _, open := range s.binds[:i] {
				_ = open.ln.Close()
				open.ln = nil
			}
			return fmt.Errorf("listen for %s: %w", b.connectors[0].Name, err)
		}
		b.ln = ln
	}
	return nil
}

// Addrs are the addresses that each connector listens on, after Listen.
func (s *Server) Addrs() map[string][]net.Addr {
	out := map[string][]net.Addr{}
	for _, b := range s.binds {
		if b.ln == nil {
			continue
		}
		for _, c := range b.connectors {
			out[c.Name] = append(out[c.Name], b.ln.Addr())
		}
	}
	return out
}

// Connections is how many connections each connector has open, and how many it
// may have (0 is no limit).
func (s *Server) Connections() map[string][2]int {
	out := map[string][2]int{}
	for _, c := range s.connectors {
		out[c.Name] = [2]int{c.conns.Open(), c.conns.Total}
	}
	return out
}

// Run receives mail until ctx is done. Then it takes no new session, ends those
// that are between transactions with 421, lets transactions in hand end within
// the drain timeout, cuts what is left, and returns nil. It calls Listen when
// that has not been done. A Server runs once.
func (s *Server) Run(ctx context.Context) error {
	if err := s.Listen(); err != nil {
		return err
	}
	failed := make(chan error, len(s.binds)+1)
	var loops sync.WaitGroup
	loops.Go(func() {
		if err := s.smtp.Serve(s.feed); err != nil {
			failed <- err
		}
	})
	var accepts sync.WaitGroup
	for _, b := range s.binds {
		accepts.Go(func() {
			if err := s.accept(ctx, b); err != nil {
				failed <- err
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	for _, b := range s.binds {
		_ = b.ln.Close() // accept is done with it
	}
	s.drain()
	accepts.Wait()
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

// accept takes connections until the listener is closed.
func (s *Server) accept(ctx context.Context, b *bind) error {
	const shortest, longest = 5 * time.Millisecond, time.Second
	wait := shortest
	for {
		raw, err := b.ln.Accept()
		if err == nil {
			wait = shortest
			s.admit(b, raw)
			continue
		}
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return nil
		}
		// Out of file descriptors, or a connection that went before we took it.
		if wait == longest {
			s.emit.Emit(event.Remarked{Remark: "connections cannot be accepted", Detail: wire.Printable(err.Error(), 300)})
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		wait = min(2*wait, longest)
	}
}

// admit decides which connector a connection is for, and whether it may come in.
func (s *Server) admit(b *bind, raw net.Conn) {
	remote, _ := netip.ParseAddrPort(raw.RemoteAddr().String())
	remote = netip.AddrPortFrom(remote.Addr().Unmap().WithZone(""), remote.Port())
	c := b.choose(remote.Addr())
	if c == nil {
		s.turnAway(b.connectors[0], raw, remote.Addr(), "denied", mail.Reply{Code: 554, Enhanced: "5.7.1", Text: "not for you"})
		return
	}
	switch c.conns.Admit(remote.Addr()) {
	case throttle.LimitTotal:
		s.turnAway(c, raw, remote.Addr(), "limit_total", mail.Reply{Code: 421, Enhanced: "4.7.0", Text: "too many connections, try again later"})
		return
	case throttle.LimitSource:
		s.turnAway(c, raw, remote.Addr(), "limit_source", mail.Reply{Code: 421, Enhanced: "4.7.0", Text: "too many connections from you"})
		return
	case throttle.Admitted:
	}
	ses := s.newSession(c, raw, remote)
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		c.conns.Release(remote.Addr())
		s.turnAway(c, raw, remote.Addr(), "shutdown", mail.Reply{Code: 421, Enhanced: "4.3.2", Text: "service closing, try again later"})
		return
	}
	s.sessions[ses] = struct{}{}
	s.mu.Unlock()
	ses.opened()
	if !s.feed.put(ses.conn) {
		_ = ses.conn.Close()
	}
}

// choose finds the connector that is most narrowly for ip.
func (b *bind) choose(ip netip.Addr) *connector {
	var best *connector
	bits := -1
	for _, c := range b.connectors {
		if n := c.match(ip); n > bits {
			best, bits = c, n
		}
	}
	return best
}

// turnAway refuses a connection (RFC 5321 section 3.1).
func (s *Server) turnAway(c *connector, raw net.Conn, ip netip.Addr, reason string, r mail.Reply) {
	if c.TLSMode != "implicit" {
		_ = raw.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = raw.Write([]byte(r.String() + "\r\n")) // fits into the empty send buffer: it does not wait
	}
	_ = raw.Close()
	s.emit.Emit(event.SessionRefused{Connector: c.Name, ClientIP: ip, Reason: reason, Reply: r.String()})
}

// forget is called when a session is over.
func (s *Server) forget(ses *session) {
	ses.c.conns.Release(ses.remote.Addr())
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
