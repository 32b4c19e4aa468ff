package relaytest

import (
	"context"
	"net/netip"

	"waybill/relay/dns"
)

// SetSecure makes all answers about names authentic (or not, when secure is
// false), as a validating resolver says of signed zones.
func (r *Resolver) SetSecure(secure bool, names ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range names {
		set(&r.secure, fold(n), secure)
	}
}

// SetTLSA gives name, such as "_25._tcp.mx.example.com", its associations.
func (r *Resolver) SetTLSA(name string, records ...dns.TLSA) {
	r.mu.Lock()
	defer r.mu.Unlock()
	set(&r.tlsa, fold(name), records)
}

// SetAlias makes target the name that the addresses of host are of.
func (r *Resolver) SetAlias(host, target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	set(&r.alias, fold(host), fold(target))
}

// Host returns the addresses of host as DANE sees them.
func (r *Resolver) Host(ctx context.Context, host string) (dns.Host, error) {
	ips, err := r.Addrs(ctx, host)
	if err != nil {
		return dns.Host{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	name := fold(host)
	h := dns.Host{Addrs: append([]netip.Addr(nil), ips...), Name: name, Secure: r.secure[name]}
	if target, ok := r.alias[name]; ok {
		h.Name = target
	}
	return h, nil
}

// TLSA returns the associations of name.
func (r *Resolver) TLSA(_ context.Context, name string) (records []dns.TLSA, secure bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := r.ask(name)
	switch {
	case r.fails[key] != "":
		return nil, false, &dns.Error{Kind: r.fails[key], Name: name, Type: "TLSA"}
	case len(r.tlsa[key]) == 0:
		return nil, false, &dns.Error{Kind: dns.NoData, Name: name, Type: "TLSA"}
	}
	return r.tlsa[key], r.secure[key], nil
}
