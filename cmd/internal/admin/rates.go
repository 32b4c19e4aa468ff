package admin

import (
	"context"
	"sync"
	"time"

	"waybill/relay/queue"
	"waybill/relay/route"
)

// Rates are told over the last minute, from totals sampled every few seconds.
const (
	rateWindow = time.Minute
	rateStep   = 5 * time.Second
)

// rates keeps what each hop's totals were up to a minute ago.
type rates struct {
	mu      sync.Mutex
	samples []sample // oldest first
}

type sample struct {
	at     time.Time
	totals map[route.Hop][2]uint64 // in, out
}

func newRates() *rates { return &rates{} }

func (r *rates) run(ctx context.Context, q *queue.Queue) error {
	tick := time.NewTicker(rateStep)
	defer tick.Stop()
	for {
		r.take(time.Now(), q.Hops())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (r *rates) take(now time.Time, hops []queue.HopStatus) {
	s := sample{now, make(map[route.Hop][2]uint64, len(hops))}
	for _, h := range hops {
		s.totals[h.Hop] = [2]uint64{h.In, h.Out}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.samples = append(r.samples, s)
	for len(r.samples) > 1 && now.Sub(r.samples[0].at) > rateWindow {
		r.samples = r.samples[1:]
	}
}

// perMinute is how many messages came and left in the last minute.
func (r *rates) perMinute(now time.Time, h queue.HopStatus) (in, out float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.samples) == 0 {
		return 0, 0
	}
	first := r.samples[0]
	span := now.Sub(first.at).Minutes()
	if span < 1.0/60 {
		return 0, 0
	}
	was := first.totals[h.Hop] // a hop that is new since then began at zero
	if h.In < was[0] || h.Out < was[1] {
		return 0, 0 // the hop was forgotten and came back
	}
	return float64(h.In-was[0]) / span, float64(h.Out-was[1]) / span
}
