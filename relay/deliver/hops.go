package deliver

import (
	"sync"
	"time"

	"waybill/relay/route"
)

// hops knows the next hops that cannot be reached, or could not a moment ago. A
// hop that is not in it is well.
//
// When an attempt fails before any recipient was asked about, it would fail for
// every message that waits for the hop. So the hop is down: one message at a
// time probes it, at the times of the retry schedule, and the others wait
// without an attempt of their own: the queue, which is told, gives out the probe
// and what is at its latest ([Latest]) only. After a probe that got through, more and
// more attempts at once are let out.
type hops struct {
	mu    sync.RWMutex
	state map[route.Hop]*hopState
}

type hopState struct {
	failures int       // in a row
	until    time.Time // no attempt before
	probing  bool      // an attempt is under way to see whether the hop is back
	window   int       // attempts at once while it recovers; 0 while it is down
}

// maxHops bounds the map; beyond it, hops that nobody asked about for long are forgotten.
const maxHops = 100_000

// forgotten is how long after its time a probe may be missing before the hop
// has no mail any more. Chosen by taste.
const forgotten = time.Hour

// enter asks to make an attempt. When the hop is down, it says until when.
func (h *hops) enter(hop route.Hop, now time.Time) (p pass, ok bool) {
	h.mu.RLock()
	st := h.state[hop]
	h.mu.RUnlock()
	if st == nil {
		return pass{}, true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	st = h.state[hop]
	switch {
	case st == nil || st.window > 0:
		return pass{}, true
	case st.probing || now.Before(st.until):
		return pass{until: st.until, failures: st.failures}, false
	}
	st.probing = true
	return pass{probe: true}, true
}

// pass is the answer of [hops.enter]. It is handed back at the end of the attempt.
type pass struct {
	probe    bool
	until    time.Time // when not let in: not before
	failures int
}

// result is what an attempt says of its hop.
type result struct {
	verdict verdict
	limit   int                              // attempts at once for a hop that is well
	pause   func(failures int) time.Duration // until the next probe
}

type verdict uint8

const (
	inconclusive verdict = iota // nothing, as when it was cut off
	reached                     // the hop answered for a message
	unreachable                 // it would have failed for any message
)

// leave tells how the attempt went. It returns the time before which the hop
// is not to be tried; it is zero when the hop is well.
func (h *hops) leave(hop route.Hop, p pass, r result, now time.Time) (until time.Time) {
	if r.verdict != unreachable && !p.probe {
		h.mu.RLock()
		st := h.state[hop]
		h.mu.RUnlock()
		if st == nil { // the usual case
			return time.Time{}
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	st := h.state[hop]
	if st == nil {
		if r.verdict != unreachable {
			return time.Time{}
		}
		h.forgetOld(now)
		st = &hopState{}
		if h.state == nil {
			h.state = map[route.Hop]*hopState{}
		}
		h.state[hop] = st
		return st.fail(now, r)
	}
	if p.probe {
		st.probing = false
	}
	switch r.verdict {
	case unreachable:
		// Only the probe, or the first failure while the hop recovers, counts:
		// attempts that began before the hop was found down tell nothing new.
		if p.probe || st.window > 0 {
			return st.fail(now, r)
		}
	case reached:
		st.failures, st.until = 0, time.Time{}
		if st.window = max(2, st.window*2); st.window >= r.limit {
			delete(h.state, hop)
		}
	case inconclusive:
	}
	return st.until
}

func (st *hopState) fail(now time.Time, r result) time.Time {
	st.failures++
	st.window = 0
	st.until = now.Add(r.pause(st.failures))
	return st.until
}

// sweepers is how many leases a hop that is down gets at once: one may become
// the probe, the others are at their latest, go elsewhere, or were claimed before
// the queue knew, and are put off without an attempt.
const sweepers = 4

// concurrency is how many leases hop gets at once, at most limit.
func (h *hops) concurrency(hop route.Hop, limit int) int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	st := h.state[hop]
	switch {
	case st == nil:
		return limit
	case st.window == 0:
		return min(sweepers, limit)
	}
	return min(st.window, limit)
}

// avoid reports whether nothing is to be sent to hop now, because it cannot be
// reached, or because one message is finding out.
func (h *hops) avoid(hop route.Hop, now time.Time) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	st := h.state[hop]
	return st != nil && st.window == 0 && (st.probing || now.Before(st.until))
}

// forgetOld makes room. A hop without mail is never asked about again.
func (h *hops) forgetOld(now time.Time) {
	if len(h.state) < maxHops {
		return
	}
	for hop, st := range h.state {
		if !st.probing && now.Sub(st.until) > forgotten {
			delete(h.state, hop)
		}
	}
}

// probeNow lets every hop that is down be probed at once.
func (h *hops) probeNow() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, st := range h.state {
		st.until = time.Time{}
	}
}

// down is how many hops are down now. One that nobody has mail for any more is
// no longer probed, and does not count.
func (h *hops) down(now time.Time) int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	n := 0
	for _, st := range h.state {
		if st.window == 0 && (st.probing || now.Sub(st.until) < forgotten) {
			n++
		}
	}
	return n
}
