package app

import (
	"errors"
	"strings"
	"sync"

	"waybill/cmd/internal/config"
	"waybill/relay/dns"
	"waybill/relay/event"
)

// resolvers are those of send connectors with name servers of their own. They
// live as long as the program: a reload finds its answers again, and attempts
// that began before it go on asking.
type resolvers struct {
	mu sync.Mutex
	of map[string]*dns.Resolver // by their servers
}

// resolverOf is the resolver that s asks.
func (r *routes) resolverOf(c *config.Config, s *config.SendConnector) (*dns.Resolver, error) {
	if len(s.DNSServers) == 0 {
		return r.resolver, nil
	}
	key := strings.Join(s.DNSServers, " ")
	r.own.mu.Lock()
	defer r.own.mu.Unlock()
	if have := r.own.of[key]; have != nil {
		return have, nil
	}
	made, err := dns.New(dns.Options{Servers: s.DNSServers, TrustAD: c.DNS.TrustAD, Emitter: r.emit.Source(event.SourceSMTPOut)})
	if err != nil {
		return nil, err
	}
	if r.own.of == nil {
		r.own.of = map[string]*dns.Resolver{}
	}
	r.own.of[key] = made
	return made, nil
}

func (r *resolvers) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, x := range r.of {
		errs = append(errs, x.Close())
	}
	return errors.Join(errs...)
}
