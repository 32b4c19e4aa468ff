package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Canonical is ip as rules compare it: an IPv4 address mapped into IPv6 becomes
// IPv4, and a zone is dropped. Without it "::ffff:10.1.2.3" would not be in
// 10.0.0.0/8.
func Canonical(ip netip.Addr) netip.Addr { return ip.Unmap().WithZone("") }

// Ranges are networks, such as a receive connector's remote ranges.
type Ranges []netip.Prefix

// ParseRange reads a network ("10.0.0.0/8", "2001:db8::/32") or one address. It
// refuses host bits, as in "10.1.2.3/8", which are more often a slip than meant.
func ParseRange(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		ip, err := netip.ParseAddr(s)
		if err != nil || ip.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is neither a network nor an address", s)
		}
		ip = Canonical(ip)
		return netip.PrefixFrom(ip, ip.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is neither a network nor an address", s)
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, fmt.Errorf("%q is wider than the IPv4 addresses mapped into IPv6", s)
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%q has bits behind its length: did you mean %s?", s, p.Masked())
	}
	return p, nil
}

// Match finds the narrowest network that ip is in.
func (r Ranges) Match(ip netip.Addr) (netip.Prefix, bool) {
	ip = Canonical(ip)
	best := netip.Prefix{}
	found := false
	for _, p := range r {
		if p.Contains(ip) && (!found || p.Bits() > best.Bits()) {
			best, found = p, true
		}
	}
	return best, found
}

// Contains reports whether ip is in one of the networks.
func (r Ranges) Contains(ip netip.Addr) bool {
	ip = Canonical(ip)
	return slices.ContainsFunc(r, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// private are the networks whose hosts an operator knows: loopback, link-local,
// RFC 1918, RFC 4193, and the shared space of RFC 6598.
var private = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10"),
}

// Private reports whether all of p is private: loopback, link-local, RFC 1918,
// RFC 4193 or RFC 6598.
func Private(p netip.Prefix) bool {
	return slices.ContainsFunc(private, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) })
}
