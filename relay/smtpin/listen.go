package smtpin

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"waybill/relay/event"
	"waybill/relay/throttle"
	"waybill/relay/wire"
)

// ErrEnded is returned by [Server.Prepare] when the Server receives no more.
var ErrEnded = errors.New("reception has ended")

// An entrance is where a connector can be reached.
type entrance struct {
	local netip.Addr // the address of ours that it is for; the zero Addr is any
	*connector
}

// entrances are those behind one socket.
type entrances []entrance

// find chooses the connector for a client that came to our address local: among
// those for that very address the one that is most narrowly for the client; when
// none of them is for it, among those for all addresses. ok may exclude some.
func (e entrances) find(local, client netip.Addr, ok func(*connector) bool) *connector {
	var best *connector
	bits, own := -1, false
	for _, x := range e {
		exact := x.local.IsValid()
		if exact && x.local != local || own && !exact || ok != nil && !ok(x.connector) {
			continue
		}
		if n := x.match(client); n > bits || n >= 0 && exact && !own {
			best, bits, own = x.connector, n, exact
		}
	}
	return best
}

// counters are what a connector counts. They belong to its name: a reload that
// changes limits does not forget who has used how much.
type counters struct {
	conns   throttle.Connections
	evicted atomic.Int64 // when idle sessions were last ended for new ones, in Unix nanoseconds
}

// A socket is an address to listen on.
type socket struct {
	key  string // names it; two that can share a socket have the same
	addr string // as package net takes it
	port uint16 // 0: a free one, or one with a name
	wild bool   // all our addresses
	entrances
}

// sockets finds out where to listen for all connectors. Where one of them is on
// all addresses, a single socket serves those of single addresses too, since
// the system would not let both listen.
func sockets(list []*connector) []*socket {
	var all []*socket
	wild := map[uint16]*socket{}
	byKey := map[string]*socket{}
	for _, exact := range []bool{false, true} { // those on all addresses first
		for _, c := range list {
			for i, addr := range c.Listen {
				s, local := socketOf(c.Name, i, addr)
				if s.wild == exact {
					continue
				}
				if w := wild[s.port]; w != nil {
					s = w
				} else if known := byKey[s.key]; known != nil {
					s = known
				} else {
					all = append(all, s)
					byKey[s.key] = s
					if s.wild && s.port != 0 {
						wild[s.port] = s
					}
				}
				if !slices.ContainsFunc(s.entrances, func(e entrance) bool { return e.connector == c && e.local == local }) {
					s.entrances = append(s.entrances, entrance{local, c})
				}
			}
		}
	}
	return all
}

// socketOf reads an address to listen on. A free port (0) is each connector's
// own.
func socketOf(connector string, i int, addr string) (s *socket, local netip.Addr) {
	s = &socket{key: addr, addr: addr}
	host, word, err := net.SplitHostPort(addr)
	if err != nil {
		return s, local
	}
	port, err := strconv.ParseUint(word, 10, 16)
	if err != nil {
		return s, local
	}
	s.port = uint16(port)
	ip, err := netip.ParseAddr(host)
	switch {
	case host == "" || err == nil && ip.Unmap().IsUnspecified():
		s.wild = true
		s.key = net.JoinHostPort("", word)
	case err == nil:
		ip = ip.Unmap()
		s.key = netip.AddrPortFrom(ip, s.port).String()
		local = ip.WithZone("")
	}
	if s.port == 0 {
		s.key = fmt.Sprintf("%s of %s, %d", addr, connector, i)
	}
	return s, local
}

// conflicts reports whether s and t cannot be listened on at once.
func (s *socket) conflicts(t *socket) bool {
	return s.port == t.port && s.port != 0 && (s.wild || t.wild)
}

// A listener is a socket that is open.
type listener struct {
	socket
	now  atomic.Pointer[entrances] // replaced by a reload
	ln   net.Listener
	done chan struct{} // closed with ln
}

func listen(s *socket) (*listener, error) {
	ln, err := net.Listen("tcp", s.addr)
	if err != nil {
		return nil, fmt.Errorf("listen for %s: %w", s.entrances[0].Name, err)
	}
	l := &listener{socket: *s, ln: ln, done: make(chan struct{})}
	l.now.Store(&s.entrances)
	return l, nil
}

func (l *listener) close() {
	_ = l.ln.Close() // accept is done with it
	close(l.done)
}

// accept takes connections until the listener is closed.
func (s *Server) accept(l *listener) {
	const shortest, longest = 5 * time.Millisecond, time.Second
	wait, stuck := shortest, false
	for {
		raw, err := l.ln.Accept()
		if err == nil {
			wait = shortest
			if stuck {
				stuck = false
				s.emit.Emit(event.Remarked{Remark: "connections are accepted again"})
			}
			s.admit(*l.now.Load(), raw)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		// Out of file descriptors, or a connection that went before we took it.
		if wait == longest && !stuck {
			stuck = true
			s.emit.Emit(event.Remarked{Remark: "connections cannot be accepted", Detail: wire.Printable(err.Error(), 300)})
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-l.done:
			t.Stop()
			return
		}
		wait = min(2*wait, longest)
	}
}

// serve begins to accept connections. The caller holds s.change.
func (s *Server) serve(l *listener) {
	if s.running {
		s.accepts.Go(func() { s.accept(l) })
	}
}

// A Change is a set of connectors that is ready to be taken into use: they have
// been checked, and their sockets are open.
type Change struct {
	s          *Server
	connectors []*connector
	kept       map[*listener]*socket
	opened     []*listener
	gone       []*listener
	closed     []*listener // of gone: those that could not be open together with what was opened
}

// Prepare checks other connectors and opens their sockets, and changes nothing
// for clients. One of [Change.Commit] and [Change.Abort] must follow; until then
// nothing else can be prepared. After an error all is as it was.
//
// A socket that is in use already is kept, with the connections that wait in
// it. New ones are open before old ones are closed, but for those that the
// system does not let be open together (all addresses, and one of them, on the
// same port): between them there is a moment without either.
func (s *Server) Prepare(list []Connector) (*Change, error) {
	connectors, err := newConnectors(list)
	if err != nil {
		return nil, err
	}
	s.change.Lock()
	if s.ended {
		s.change.Unlock()
		return nil, ErrEnded
	}
	c := &Change{s: s, connectors: connectors, kept: map[*listener]*socket{}}
	if err := c.open(); err != nil {
		err = errors.Join(err, c.undo())
		s.change.Unlock()
		return nil, err
	}
	return c, nil
}

func (c *Change) open() error {
	want := sockets(c.connectors)
	var missing []*socket
	for _, w := range want {
		if i := slices.IndexFunc(c.s.listeners, func(l *listener) bool { return l.key == w.key }); i >= 0 {
			c.kept[c.s.listeners[i]] = w
		} else {
			missing = append(missing, w)
		}
	}
	for _, l := range c.s.listeners {
		if c.kept[l] == nil {
			c.gone = append(c.gone, l)
		}
	}
	for _, m := range missing {
		for _, l := range c.gone {
			if l.conflicts(m) && !slices.Contains(c.closed, l) {
				l.close()
				c.closed = append(c.closed, l)
			}
		}
		l, err := listen(m)
		if err != nil {
			return err
		}
		c.opened = append(c.opened, l)
	}
	return nil
}

// undo closes what was opened, and opens again what had to be closed.
func (c *Change) undo() error {
	for _, l := range c.opened {
		l.close()
	}
	var errs []error
	for _, l := range c.closed {
		again, err := listen(&l.socket)
		if err != nil {
			errs = append(errs, fmt.Errorf("listen as before: %w", err))
			continue
		}
		again.now.Store(l.now.Load())
		c.s.mu.Lock()
		c.s.listeners[slices.Index(c.s.listeners, l)] = again
		c.s.mu.Unlock()
		c.s.serve(again)
	}
	return errors.Join(errs...)
}

// Abort gives up the change.
func (c *Change) Abort() error {
	defer c.s.change.Unlock()
	return c.undo()
}

// Commit takes the change into use. New connections get the new connectors;
// sessions that are open keep the one that they began with to their end.
func (c *Change) Commit() {
	s := c.s
	defer s.change.Unlock()
	s.first = nil
	s.take(c.connectors)
	s.mu.Lock()
	for l, w := range c.kept {
		l.socket = *w
		l.now.Store(&w.entrances)
	}
	for _, l := range c.gone {
		if !slices.Contains(c.closed, l) {
			l.close()
		}
	}
	s.listeners = slices.DeleteFunc(s.listeners, func(l *listener) bool { return slices.Contains(c.gone, l) })
	s.listeners = append(s.listeners, c.opened...)
	s.mu.Unlock()
	for _, l := range c.opened {
		s.serve(l)
	}
}

// take gives connectors their counters: those of the connector that had the name
// before, under the limits of now.
func (s *Server) take(list []*connector) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := map[string]bool{}
	for _, c := range list {
		names[c.Name] = true
		c.counters = s.counters[c.Name]
		if c.counters == nil {
			c.counters = &counters{}
			s.counters[c.Name] = c.counters
		}
		c.conns.Limit(c.Limits.Connections, c.Limits.ConnectionsPerSource)
	}
	for name, old := range s.counters {
		if !names[name] && old.conns.Open() == 0 {
			delete(s.counters, name)
		}
	}
	s.connectors = list
	s.fixThrottles(list)
}

// Addrs are the addresses that each connector listens on, after Listen.
func (s *Server) Addrs() map[string][]net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string][]net.Addr{}
	for _, l := range s.listeners {
		for _, e := range *l.now.Load() {
			addr := l.ln.Addr()
			if tcp, ok := addr.(*net.TCPAddr); ok && l.wild && e.local.IsValid() {
				addr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(e.local, tcp.AddrPort().Port()))
			}
			out[e.Name] = append(out[e.Name], addr)
		}
	}
	return out
}

// Connections is how many connections each connector has open, and how many it
// may have (0 is no limit). Connectors that are gone are there while sessions of
// theirs are.
func (s *Server) Connections() map[string][2]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string][2]int{}
	for _, c := range s.connectors {
		out[c.Name] = [2]int{c.conns.Open(), c.Limits.Connections}
	}
	for name, c := range s.counters {
		if n := c.conns.Open(); n > 0 && out[name] == [2]int{} {
			out[name] = [2]int{n, 0}
		}
	}
	return out
}

func newConnectors(list []Connector) ([]*connector, error) {
	var out []*connector
	for _, c := range list {
		con, err := newConnector(c)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(out, func(o *connector) bool { return o.Name == c.Name }) {
			return nil, fmt.Errorf("two receive connectors are named %s", c.Name)
		}
		out = append(out, con)
	}
	return out, nil
}

// narrowest is how narrowly one of ranges is for ip: the length of the narrowest
// one that ip is in, or -1.
func narrowest(ranges []netip.Prefix, ip netip.Addr) int {
	best := -1
	for _, p := range ranges {
		if p.Contains(ip) {
			best = max(best, p.Bits())
		}
	}
	return best
}
