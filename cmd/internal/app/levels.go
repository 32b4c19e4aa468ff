package app

import (
	"cmp"
	"slices"

	"waybill/metrics"
	"waybill/relay/event"
)

// levels reads the gauges at a scrape, from memory.
func (a *App) levels() metrics.Levels {
	cfg := a.config.Load()
	q := a.queue.Levels()
	l := metrics.Levels{Queue: &q, Hops: a.queue.Hops(), Lifetime: lifetime(cfg), Stage: int(a.pressure.Now().Stage), Backoffs: a.backoffs()}
	for _, s := range a.pressure.Status() {
		q.Pressure[s.Resource] = max(q.Pressure[s.Resource], s.Level) // the queue knows first about its own
	}
	for name, c := range a.smtpin.Connections() {
		l.Connections = append(l.Connections, metrics.Connections{Direction: event.Inbound, Connector: name, Open: c[0], Limit: c[1]})
	}
	for name, c := range a.routes.now.Load().connectors {
		open, limit := c.out.Stats()
		l.Connections = append(l.Connections, metrics.Connections{Direction: event.Outbound, Connector: name, Open: open, Limit: limit})
	}
	slices.SortFunc(l.Connections, func(a, b metrics.Connections) int {
		return cmp.Or(cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Connector, b.Connector))
	})
	turns := a.turns.Status()
	l.Turns = &metrics.Turns{Limit: turns.Limit, Held: turns.Held, Waiting: turns.Waiting, Waited: turns.Waited}
	if a.trackBroken != nil {
		l.Tracking = &metrics.Tracking{Broken: true}
	}
	if a.track != nil {
		s := a.track.Stats()
		t := metrics.Tracking{Degraded: s.Degraded != "", IndexLag: s.IndexLag, Oldest: s.Oldest, Bytes: s.Bytes, Dropped: map[string]uint64{}}
		for reason, n := range s.Dropped {
			t.Dropped[reason] = uint64(n) //nolint:gosec // a count
		}
		for _, n := range s.WriteErrors {
			t.WriteErrors += uint64(n) //nolint:gosec // a count
		}
		l.Tracking = &t
	}
	s := a.log.Stats()
	l.Log = &metrics.Log{Written: s.Written, Sampled: s.Sampled, Dropped: s.Dropped, Failed: s.Failed, Pending: s.Pending}
	l.OTLP = a.telemetryLevels()
	l.Disks = a.volumes.disks()
	l.Tokens, l.Quotas, l.Listings = a.routes.tokenLevels(), a.routes.quotaLevels(), a.listingLevels()
	for _, c := range a.reception.Load().certs.Expiries() {
		l.Certificates = append(l.Certificates, metrics.Certificate{Name: c.Name, NotAfter: c.NotAfter})
	}
	return l
}
