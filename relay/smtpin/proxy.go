package smtpin

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/policy"
	"waybill/relay/wire"
)

// A visit is who has connected, and where.
type visit struct {
	remote netip.AddrPort // the client: what rules, limits and facts are about
	local  netip.AddrPort // which address it connected to
	socket netip.Addr     // our address that the connection came in at
	proxy  netip.Addr     // the trusted proxy that named remote and local; zero when nobody did
}

// maxHeaders bounds the connections whose PROXY header has not come yet. They
// are of trusted peers and wait for seconds: this is for one that has gone mad.
const maxHeaders = 1024

// defaultHeaderTimeout is what the PROXY protocol asks for at least (its section
// 2): a header is sent at once, but a packet may get lost.
const defaultHeaderTimeout = 5 * time.Second

// trusts is a test for [entrances.find].
func trusts(proxy netip.Addr) func(*connector) bool {
	return func(c *connector) bool { return policy.Ranges(c.ProxyTrusted).Contains(proxy) }
}

// trusting are the connectors behind our address local that take a PROXY header
// from peer.
func (e entrances) trusting(local, peer netip.Addr) (list []*connector) {
	ok := trusts(peer)
	for _, x := range e {
		if (!x.local.IsValid() || x.local == local) && ok(x.connector) {
			list = append(list, x.connector)
		}
	}
	return list
}

// admit takes a connection in. From a trusted proxy it waits for the header
// first, elsewhere: nobody else must wait for that.
func (s *Server) admit(at entrances, raw net.Conn) {
	remote, local := addrPort(raw.RemoteAddr()), addrPort(raw.LocalAddr())
	v := visit{remote: remote, local: local, socket: local.Addr()}
	list := at.trusting(v.socket, remote.Addr())
	if len(list) == 0 {
		s.enter(at, v, raw)
		return
	}
	if s.headers.Add(1) > maxHeaders {
		s.headers.Add(-1)
		s.turnAway(list[0], raw, remote.Addr(), "limit_total", mail.Reply{})
		return
	}
	s.accepts.Go(func() { // accept, which calls us, is one of them: nobody waits yet
		defer s.headers.Add(-1)
		s.behindProxy(at, v, raw, list)
	})
}

// behindProxy reads the PROXY header, without which nothing is taken from a
// trusted peer: whoever can leave it out could pass for the proxy itself.
func (s *Server) behindProxy(at entrances, v visit, raw net.Conn, list []*connector) {
	timeout := slices.MaxFunc(list, func(a, b *connector) int { return int(a.headerTimeout() - b.headerTimeout()) }).headerTimeout()
	stop := context.AfterFunc(s.life, func() { _ = raw.Close() })
	conn, said, err := wire.ReadProxy(raw, time.Now().Add(timeout))
	stop()
	if err != nil {
		_ = raw.Close()
		if !errors.Is(err, wire.ErrNoHeader) && s.life.Err() == nil {
			s.emit.Emit(event.SessionRefused{
				Connector: list[0].Name, ClientIP: v.remote.Addr(), Reason: "proxy_protocol", Error: wire.Printable(err.Error(), 300),
			})
		}
		return
	}
	if said.Client.IsValid() {
		v.proxy = v.remote.Addr()
		v.remote, v.local = said.Client, said.Local
		s.enter(at, v, conn)
		return
	}
	s.enter(at, v, conn) // the proxy itself, as what its own address is
}

func (c *connector) headerTimeout() time.Duration {
	if c.ProxyTimeout <= 0 {
		return defaultHeaderTimeout
	}
	return c.ProxyTimeout
}

// choose finds the connector for a visit. What a proxy says of a client counts
// only for connectors that trust this proxy.
func (e entrances) choose(v visit) *connector {
	if v.proxy.IsValid() {
		return e.find(v.socket, v.remote.Addr(), trusts(v.proxy))
	}
	return e.find(v.socket, v.remote.Addr(), nil)
}
