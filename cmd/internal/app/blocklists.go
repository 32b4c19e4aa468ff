package app

import (
	"context"
	"net/netip"
	"time"

	"waybill/cmd/internal/config"
	"waybill/metrics"
	"waybill/relay/blocklist"
	"waybill/relay/event"
)

// openBlocklists makes what watches whether our addresses are listed.
func (a *App) openBlocklists(cfg *config.Config) {
	c := cfg.Blocklists
	a.listings = blocklist.New(blocklist.Options{
		Lists: c.Lists, Addresses: watched(cfg), Interval: time.Duration(c.Interval), Timeout: time.Duration(c.Timeout),
		Resolver: a.routes.resolver, Emitter: a.emit.Source(event.SourceSMTPOut),
	})
}

// listingLevels are what the lists say.
func (a *App) listingLevels() (list []metrics.Listing) {
	for _, l := range a.listings.Listings() {
		list = append(list, metrics.Listing{List: l.List, Address: l.Address.String(), Known: l.Known, Listed: l.Listed, Answered: l.Answered})
	}
	return list
}

// runBlocklists asks them until ctx is done.
func (a *App) runBlocklists(ctx context.Context) error { return a.listings.Run(ctx) }

// watched are the addresses that are watched, if any are.
func watched(cfg *config.Config) []netip.Addr {
	if len(cfg.Blocklists.Lists) == 0 {
		return nil
	}
	return cfg.Watched()
}
