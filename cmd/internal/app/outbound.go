package app

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"

	"waybill/cmd/internal/config"
	"waybill/relay/dns"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/mtasts"
	"waybill/relay/route"
	"waybill/relay/smtpout"
	"waybill/relay/tlsconf"
)

// Outbound is the sending half of a relay, without a queue and without a daemon:
// for commands that want to go the way that messages go.
type Outbound struct {
	Resolver *dns.Resolver
	routes   *routes
	policies *mtasts.Cache
	config   *config.Config
}

// NewOutbound makes the send connectors of cfg. What they find out goes to emit.
// Nothing is kept on disk.
func NewOutbound(cfg *config.Config, emit event.Emitter) (*Outbound, error) {
	resolver, err := dns.New(dns.Options{Servers: cfg.DNS.Servers, TrustAD: cfg.DNS.TrustAD, Emitter: emit})
	if err != nil {
		return nil, err
	}
	o := &Outbound{Resolver: resolver, config: cfg}
	if o.policies, err = mtasts.Open(mtasts.Options{Resolver: resolver, Emitter: emit}); err != nil {
		return nil, errors.Join(err, o.Close())
	}
	certs, err := tlsconf.Load(certificateSources(cfg), event.Emitter{})
	if err != nil {
		return nil, errors.Join(err, o.Close())
	}
	o.routes = &routes{
		resolver: resolver, policies: o.policies, emit: emit, certificate: func(name string) *tls.Certificate { return certs.Get(name) },
	}
	return o, errors.Join(o.routes.load(cfg))
}

// Find is the connector that mail for a domain goes through, or the one of that
// name, with what it hands the mail to.
func (o *Outbound) Find(domain, name string) (config.SendConnector, *smtpout.Connector, route.Hop, error) {
	g := o.routes.now.Load()
	if name == "" {
		d := g.table.Route(route.Query{Recipient: mail.Address{Local: "postmaster", Domain: domain}})
		if d.Connector == nil {
			return config.SendConnector{}, nil, d.Hop, fmt.Errorf("no send connector is for %s: %s", domain, d.Why)
		}
		name = d.Hop.Connector
	}
	i := slices.IndexFunc(o.config.Send, func(s config.SendConnector) bool { return s.Name == name })
	if i < 0 {
		return config.SendConnector{}, nil, route.Hop{}, fmt.Errorf("there is no send connector %q", name)
	}
	s := o.config.Send[i]
	hop := route.Hop{Connector: name, Name: mail.Address{Local: "postmaster", Domain: domain}.DomainKey()}
	if s.Route == "smart_hosts" {
		hop.Name = name
	}
	return s, g.connectors[name].out.Connector, hop, nil
}

// Close ends what New began.
func (o *Outbound) Close() error {
	var errs []error
	if o.routes != nil && o.routes.now.Load() != nil {
		errs = append(errs, o.routes.close())
	}
	if o.policies != nil {
		errs = append(errs, o.policies.Close())
	}
	return errors.Join(append(errs, o.Resolver.Close())...)
}
