package app

import (
	"context"
	"crypto/tls"
	"path/filepath"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"waybill/cmd/internal/config"
	"waybill/relay/dns"
	"waybill/relay/event"
	"waybill/relay/mtasts"
	"waybill/relay/smtpout"
)

// openLookups opens what send connectors ask about other domains, and makes
// a.routes of it.
func (a *App) openLookups(cfg *config.Config) error {
	emit := a.emit.Source(event.SourceSMTPOut)
	resolver, err := dns.New(dns.Options{Servers: cfg.DNS.Servers, TrustAD: cfg.DNS.TrustAD, Emitter: emit})
	if err != nil {
		return err
	}
	a.onStop(resolver.Close)
	policies, err := mtasts.Open(mtasts.Options{Dir: filepath.Join(cfg.DataDir, "mta-sts"), Resolver: resolver, Emitter: emit})
	if err != nil {
		return err
	}
	a.onStop(policies.Close)
	a.routes = &routes{
		resolver: resolver, policies: policies, emit: a.emit, tap: &a.tap, memory: smtpout.OpenTLSMemory(filepath.Join(cfg.DataDir, "tls-hosts.json")),
		certificate: func(name string) *tls.Certificate { return a.reception.Load().certs.Get(name) },
	}
	a.onStop(a.routes.own.close)
	if !resolver.Validates() {
		for _, s := range cfg.Send {
			if s.TLS.Level == "dane" && !s.Disabled {
				a.logger.Warn("no name server is one that DANE can rely on: mail goes as without it", zap.String("connector", s.Name),
					zap.Strings("dns_servers", resolver.Servers()), zap.String("hint", "run a validating resolver on this machine, or set dns.trust_ad"))
			}
		}
	}
	return nil
}

// runLookups keeps what is known about the TLS of other domains, until ctx is
// done.
func (a *App) runLookups(ctx context.Context) error {
	var group errgroup.Group
	group.Go(func() error { return a.routes.policies.Run(ctx) })
	group.Go(func() error {
		a.routes.memory.Run(ctx, func(err error) { a.logger.Warn("TLS downgrades may go unnoticed after a restart", zap.Error(err)) })
		return nil
	})
	group.Go(func() error { return a.runReports(ctx) })
	group.Go(func() error { return a.runBlocklists(ctx) })
	return group.Wait()
}
