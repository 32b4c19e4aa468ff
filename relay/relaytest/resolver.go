package relaytest

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"waybill/relay/dns"
)

// Resolver is a [dns.Looker] that answers from what it was told. A name that it
// was not told of does not exist. Its zero value knows no name.
type Resolver struct {
	mu    sync.Mutex
	mx    map[string][]dns.MX
	addrs map[string][]netip.Addr
	fails map[string]dns.Kind
	asked map[string]int

	secure map[string]bool
	tlsa   map[string][]dns.TLSA
	alias  map[string]string
}

// SetMX gives domain its hosts, with preferences 10, 20, 30 and so on. A host
// "." alone says that the domain takes no mail (RFC 7505).
func (r *Resolver) SetMX(domain string, hosts ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var mx []dns.MX
	for i, h := range hosts {
		mx = append(mx, dns.MX{Host: fold(h), Preference: uint16(10 * (i + 1))})
	}
	set(&r.mx, fold(domain), mx)
}

// SetAddrs gives host its addresses. Without an MX of its own, it is its own
// implicit MX.
func (r *Resolver) SetAddrs(host string, addrs ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ips []netip.Addr
	for _, a := range addrs {
		ips = append(ips, netip.MustParseAddr(a))
	}
	set(&r.addrs, fold(host), ips)
}

// Fail makes every question about name fail in that way; an empty kind ends it.
func (r *Resolver) Fail(name string, kind dns.Kind) {
	r.mu.Lock()
	defer r.mu.Unlock()
	set(&r.fails, fold(name), kind)
}

// Asked returns how often name was asked for.
func (r *Resolver) Asked(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked[fold(name)]
}

// MX implements [dns.Looker].
func (r *Resolver) MX(ctx context.Context, domain string) ([]dns.MX, error) {
	if err := ctx.Err(); err != nil {
		return nil, &dns.Error{Kind: dns.Timeout, Name: domain, Type: "MX", Err: err}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	name := r.ask(domain)
	mx := r.mx[name]
	switch {
	case r.fails[name] != "":
		return nil, &dns.Error{Kind: r.fails[name], Name: domain, Type: "MX"}
	case len(mx) == 1 && mx[0].Host == "":
		return nil, &dns.Error{Kind: dns.NullMX, Name: domain, Type: "MX"}
	case len(mx) > 0:
		mx = slices.Clone(mx)
		for i := range mx {
			mx[i].Secure = r.secure[name]
		}
		return mx, nil
	case len(r.addrs[name]) > 0:
		return []dns.MX{{Host: name, Implicit: true, Secure: r.secure[name]}}, nil
	}
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return []dns.MX{{Host: name, Implicit: true}}, nil
	}
	return nil, &dns.Error{Kind: dns.NXDomain, Name: domain, Type: "MX"}
}

// Addrs implements [dns.Looker].
func (r *Resolver) Addrs(ctx context.Context, host string) ([]netip.Addr, error) {
	if err := ctx.Err(); err != nil {
		return nil, &dns.Error{Kind: dns.Timeout, Name: host, Type: "A", Err: err}
	}
	if ip, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return []netip.Addr{ip}, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	name := r.ask(host)
	if kind := r.fails[name]; kind != "" {
		return nil, &dns.Error{Kind: kind, Name: host, Type: "A"}
	}
	if len(r.addrs[name]) == 0 {
		return nil, &dns.Error{Kind: dns.NXDomain, Name: host, Type: "A"}
	}
	return slices.Clone(r.addrs[name]), nil
}

func (r *Resolver) ask(name string) string {
	name = fold(name)
	if r.asked == nil {
		r.asked = map[string]int{}
	}
	r.asked[name]++
	return name
}

func set[V any](m *map[string]V, key string, v V) {
	if *m == nil {
		*m = map[string]V{}
	}
	(*m)[key] = v
}

func fold(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
