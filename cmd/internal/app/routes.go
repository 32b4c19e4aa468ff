package app

import (
	"crypto/tls"
	"errors"
	"sync/atomic"

	"waybill/cmd/internal/config"
	"waybill/relay/deliver"
	"waybill/relay/dns"
	"waybill/relay/event"
	"waybill/relay/mtasts"
	"waybill/relay/quota"
	"waybill/relay/route"
	"waybill/relay/smtpout"
	"waybill/relay/transcript"
)

// routes are the routing table and the send connectors in use. A reload swaps
// both at once; attempts under way end on the connectors that they began with.
type routes struct {
	resolver    *dns.Resolver
	own         resolvers // of connectors with name servers of their own
	policies    *mtasts.Cache
	memory      *smtpout.TLSMemory
	certificate func(name string) *tls.Certificate // the one in use
	emit        event.Emitter
	tap         *transcript.Tap
	quotas      *quota.Book
	now         atomic.Pointer[routing]
	down        atomic.Pointer[func(route.Hop) bool] // which hops cannot be reached; nil at start
	drain       atomic.Pointer[drain]                // where everything goes; nil: by the table
}

type routing struct {
	table      *route.Table
	connectors map[string]sendConnector
	logins     map[string]*sendLogin // by connector
	revision   string                // of the configuration
}

type sendConnector struct {
	deliver deliver.Connector
	out     *outlet
	account *quota.Account // nil without a quota
}

// load makes the routing of cfg and takes it into use.
func (r *routes) load(cfg *config.Config) error {
	next, err := r.build(cfg)
	if err != nil {
		return err
	}
	r.take(next)
	return nil
}

// take swaps, and ends the idle sessions of what was in use before.
func (r *routes) take(next *routing) {
	if old := r.now.Swap(next); old != nil {
		old.close()
	}
}

func (g *routing) close() {
	for _, c := range g.connectors {
		go func() { _ = c.out.Close() }() // waits for good-byes; nothing depends on them
	}
}

func (r *routes) close() error {
	var errs []error
	for _, c := range r.now.Load().connectors {
		errs = append(errs, c.out.Close())
	}
	return errors.Join(errs...)
}

// Route implements queue.Router. It goes around hops that cannot be reached.
func (r *routes) Route(q route.Query) route.Decision {
	now := r.now.Load()
	if down := r.down.Load(); down != nil {
		q.Avoid = *down
	}
	drain := r.drain.Load()
	if drain != nil {
		q.Via = route.Hop{}
	}
	d := now.table.Route(q)
	if drain != nil {
		d = drain.divert(now.table, &q, d)
	}
	d.Revision = now.revision
	return d
}

// connector finds a send connector for the scheduler.
func (r *routes) connector(name string) (deliver.Connector, bool) {
	c, ok := r.now.Load().connectors[name]
	return c.deliver, ok
}
