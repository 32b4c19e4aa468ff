package dns

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	mdns "github.com/miekg/dns"
)

// Host is a host as DANE sees it (RFC 7672 section 2.2.2).
type Host struct {
	Addrs  []netip.Addr
	Name   string // the name that the addresses are of, at the end of all aliases
	Secure bool   // the server authenticated all of it; what the hosts file tells is not
}

// Host returns the addresses of host, which is a name, with what the server says
// of their authenticity.
func (r *Resolver) Host(ctx context.Context, host string) (Host, error) {
	name, err := queryName(host)
	if err != nil {
		return Host{}, &Error{Kind: NXDomain, Name: host, Type: "A", Err: err}
	}
	ips, secure, fail := r.addrs(ctx, host)
	if fail != nil {
		return Host{}, fail
	}
	h := Host{Addrs: ips, Secure: secure, Name: strings.TrimSuffix(name, ".")}
	if !secure {
		return h, nil
	}
	for _, qtype := range []uint16{mdns.TypeA, mdns.TypeAAAA} { // from the cache, in general
		if a, err := r.ask(ctx, question{name, qtype}); err == nil && len(a.records) > 0 {
			h.Name = strings.ToLower(strings.TrimSuffix(a.records[0].Header().Name, "."))
			break
		}
	}
	return h, nil
}

// trusts reports whether server may say that it has authenticated an answer: one
// on this machine, between which and us nobody can change a bit (RFC 7672 section
// 2.1.1), and others when the options say so.
func (r *Resolver) trusts(server string) bool {
	if r.opts.TrustAD {
		return true
	}
	at, err := netip.ParseAddrPort(server)
	return err == nil && at.Addr().Unmap().IsLoopback()
}

// Validates reports whether any of the servers that r asks is one whose word on
// authenticity counts. Without one there is no DANE.
func (r *Resolver) Validates() bool {
	return slices.ContainsFunc(r.servers, r.trusts)
}
