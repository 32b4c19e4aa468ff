package smtpout

import (
	"cmp"
	"context"
	"errors"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"
	"syscall"
)

// errNoSource says that no source address is of the next hop's family.
var errNoSource = errors.New("no source address of that family")

// hasSource reports whether to can be reached from one of the source addresses.
func (c *Connector) hasSource(to netip.Addr) bool {
	return len(c.opts.SourceAddrs) == 0 ||
		slices.ContainsFunc(c.opts.SourceAddrs, func(src netip.Addr) bool { return src.Is4() == to.Is4() })
}

// sources lists the source addresses for to, the one that hop keeps first. A
// hop keeps its address as long as that is configured, over restarts and changes
// of the others: greylists and reputations know us by it.
func (c *Connector) sources(hop string, to netip.Addr) []netip.Addr {
	type weighed struct {
		addr   netip.Addr
		weight uint64
	}
	var list []weighed
	for _, src := range c.opts.SourceAddrs {
		if src.Is4() != to.Is4() {
			continue
		}
		h := fnv.New64a() // of each pair: rendezvous hashing
		_, _ = h.Write([]byte(hop))
		_, _ = h.Write(src.AsSlice())
		list = append(list, weighed{src, mix(h.Sum64())})
	}
	slices.SortFunc(list, func(a, b weighed) int { return cmp.Compare(b.weight, a.weight) })
	out := make([]netip.Addr, len(list))
	for i := range list {
		out[i] = list[i].addr
	}
	return out
}

// mix spreads what FNV leaves alike in values of similar ends.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return x
}

// dial connects to an address of hop, from the source address that hop keeps, or
// from another one when this machine does not have that.
func (c *Connector) dial(ctx context.Context, hop string, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.opts.Timeouts.Connect)
	defer cancel()
	if len(c.opts.SourceAddrs) == 0 {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", to.String())
	}
	err := errNoSource
	for _, src := range c.sources(hop, to.Addr()) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0))}
		var conn net.Conn
		if conn, err = d.DialContext(ctx, "tcp", to.String()); err == nil {
			return conn, nil
		}
		if !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.EADDRINUSE) {
			break // not the source's fault
		}
	}
	return nil, err
}
