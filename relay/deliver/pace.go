package deliver

import (
	"context"
	"sync"
	"time"

	"waybill/relay/event"
	"waybill/relay/route"

	"golang.org/x/time/rate"
)

// paces keeps the messages_per_minute of each send connector that has one.
type paces struct {
	mu     sync.Mutex
	of     map[string]*pace
	hops   map[route.Hop]*pace // those that are to be served slowly
	emit   event.Emitter
	queue  int // how many attempts of one connector may wait in hand
	random func() float64
}

// maxPutOff is the longest time that a message is put off because of the rate. Chosen by taste.
const maxPutOff = 10 * time.Minute

// pace is the rate of one connector.
type pace struct {
	perMinute int
	limiter   *rate.Limiter
	waiting   int
	engaged   bool
	horizon   time.Time // when the messages that were put off so far will have gone
}

// maxTurns bounds how many turns one message takes, so that one with very many
// recipients does not stop the connector for long. Chosen by taste.
const maxTurns = 100

// wait waits for the connector's turn, for a message that goes in so many
// transactions: each is a message to the next hop, so that those behind it wait
// for them all. When too many wait already, it says when to come again instead. It
// fails when ctx is done.
func (p *paces) wait(ctx context.Context, connector string, perMinute, transactions int) (again time.Time, err error) {
	if perMinute <= 0 {
		return time.Time{}, nil
	}
	now := time.Now()
	p.mu.Lock()
	pc := p.of[connector]
	if pc == nil || pc.perMinute != perMinute {
		pc = &pace{perMinute: perMinute, limiter: rate.NewLimiter(rate.Limit(float64(perMinute)/60), max(1, perMinute/60))}
		if p.of == nil {
			p.of = map[string]*pace{}
		}
		p.of[connector] = pc
	}
	r := pc.limiter.ReserveN(now, 1)
	delay := r.DelayFrom(now)
	if delay == 0 {
		pc.engaged = false
		pc.take(now, transactions-1)
		p.mu.Unlock()
		return time.Time{}, nil
	}
	first := !pc.engaged
	pc.engaged = true
	full := pc.waiting >= p.queue
	if full {
		r.CancelAt(now)
		again = now.Add(delay)
		if pc.horizon.After(again) {
			again = pc.horizon
		}
		again = again.Add(time.Minute / time.Duration(perMinute))
		if latest := now.Add(maxPutOff); again.After(latest) {
			// Do not promise turns hours ahead: who comes again may find room earlier.
			again = latest.Add(-time.Duration(p.random() * float64(maxPutOff/2)))
		} else {
			pc.horizon = again
		}
	} else {
		pc.waiting++
		pc.take(now, transactions-1)
	}
	p.mu.Unlock()

	if first {
		p.emit.Emit(event.ThrottleEngaged{Connector: connector, Scope: "total", Limit: "messages_per_minute", Action: "defer"})
	}
	if full {
		return again, nil
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		err = ctx.Err()
	}
	p.mu.Lock()
	pc.waiting--
	if err != nil {
		r.Cancel()
	}
	p.mu.Unlock()
	return time.Time{}, err
}

// take takes n turns more, which nobody waits for.
func (pc *pace) take(now time.Time, n int) {
	for range min(n, maxTurns-1) {
		pc.limiter.ReserveN(now, 1)
	}
}

// turn says when to come again with a message for hop, which takes so many a
// minute; zero means now. Nothing waits in hand: a slow hop must not keep a
// worker.
func (p *paces) turn(hop route.Hop, perMinute int, now time.Time) (again time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pc := p.hops[hop]
	if pc == nil || pc.perMinute != perMinute {
		pc = &pace{perMinute: perMinute, limiter: rate.NewLimiter(rate.Limit(float64(perMinute)/60), 1)}
		if p.hops == nil {
			p.hops = map[route.Hop]*pace{}
		}
		p.hops[hop] = pc
	}
	if pc.limiter.AllowN(now, 1) {
		return time.Time{}
	}
	if pc.horizon.Before(now) {
		pc.horizon = now
	}
	again = pc.horizon.Add(time.Minute / time.Duration(perMinute))
	if latest := now.Add(maxPutOff); again.After(latest) {
		return latest.Add(-time.Duration(p.random() * float64(maxPutOff/2))) // who comes again may find room earlier
	}
	pc.horizon = again
	return again
}

// forget forgets the paces of hops that are no longer slow.
func (p *paces) forget(slow func(hop route.Hop) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for hop := range p.hops {
		if !slow(hop) {
			delete(p.hops, hop)
		}
	}
}
