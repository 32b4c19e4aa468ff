package queue

import (
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"waybill/relay/route"
)

// Hops returns the state of every hop's queue, by name, and the holds on hops
// that have none. It costs O(hops).
func (q *Queue) Hops() []HopStatus {
	q.mu.Lock()
	now := time.Now()
	list := make([]HopStatus, 0, len(q.sched.hops))
	for _, h := range q.sched.hops {
		if h.groups() > 0 || h.used() > 0 || h.held != nil || !h.lastAt.IsZero() {
			list = append(list, h.snapshot(now))
		}
	}
	for pattern, hold := range q.holds { // also those that hold nothing yet
		if !slices.ContainsFunc(list, func(s HopStatus) bool { return covers(pattern, s.Hop) }) {
			list = append(list, HopStatus{
				Hop: pattern, State: "held", OldestBy: map[string]time.Time{}, HeldBy: hold.By, HeldWhy: hold.Why, HeldUntil: hold.Until,
			})
		}
	}
	q.mu.Unlock()
	slices.SortFunc(list, func(a, b HopStatus) int {
		if c := strings.Compare(a.Hop.Name, b.Hop.Name); c != 0 {
			return c
		}
		return strings.Compare(a.Hop.Connector, b.Hop.Connector)
	})
	return list
}

func (h *hopQueue) snapshot(now time.Time) HopStatus {
	s := HopStatus{
		Hop: h.hop, Queued: h.count[statusQueued] + h.count[statusUnroutable], Active: h.count[statusActive], Deferred: h.count[statusDeferred],
		Held: h.count[statusHeld], Poison: h.count[statusPoison], Bytes: h.bytes, OldestBy: map[string]time.Time{},
		LastError: h.last.text, LastClass: h.last.class, LastRule: h.last.rule, LastMeans: h.last.means, LastAt: h.lastAt, In: h.in, Out: h.out,
	}
	for age := range h.ages {
		g := h.ages[age].first()
		if g == nil {
			continue
		}
		at := fromMicro(h.ages[age].of.message(g).accepted)
		if s.Oldest.IsZero() || at.Before(s.Oldest) {
			s.Oldest = at
		}
		if age == ageOther {
			continue
		}
		word := ageWords[age]
		if h.held != nil && h.count[statusActive] == 0 {
			word = ageWords[ageHeld]
		}
		if was, ok := s.OldestBy[word]; !ok || at.Before(was) {
			s.OldestBy[word] = at
		}
	}
	if first := h.earliest(); first != math.MaxInt64 && h.held == nil {
		s.Next = fromMicro(first)
		s.DueLag = h.lag(now.UnixMicro())
	}
	switch {
	case h.held != nil:
		s.State = "held"
		s.HeldBy, s.HeldWhy, s.HeldUntil = h.held.By, h.held.Why, h.held.Until
		s.Held += s.Queued + s.Deferred
		s.Queued, s.Deferred = 0, 0
	case h.used() > 0:
		s.State = "active"
	case s.Queued > 0 && h.hop == route.Unroutable:
		s.State = "unroutable"
	case s.Queued+s.Deferred > 0 && s.Next.After(now):
		s.State = "retry"
	case s.Queued+s.Deferred > 0:
		s.State = "ready"
	case s.Held+s.Poison > 0:
		s.State = "held"
	default:
		s.State = "ready"
	}
	return s
}

// Unavailable says, while hop cannot be reached or has asked for a pause, what it said or
// what went wrong last, and when it is tried again: what waits for it is not
// claimed before. Otherwise again is zero.
func (q *Queue) Unavailable(hop route.Hop) (why string, again time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	h := q.sched.hops[hop]
	if h == nil || !h.down {
		return "", time.Time{}
	}
	return h.last.text, fromMicro(h.probeAt)
}

// lag is for how long something has been due that nobody has claimed. What waits
// for its hop to come back is not due.
func (h *hopQueue) lag(now int64) time.Duration {
	if h.hop == route.Unroutable {
		return 0
	}
	first := now
	for p := range h.due {
		first = min(first, h.effective(min(h.callAt(p), h.lastCall(p))))
	}
	return time.Duration(now-first) * time.Microsecond
}

// Brief returns the gauges that cost the same however many hops there are: all but
// ByState, OlderThan and DueLag.
func (q *Queue) Brief() Levels {
	l := Levels{Pressure: map[string]int{}}
	q.mu.Lock()
	l.Messages, l.Bytes = q.sched.messages, q.sched.bytes
	l.Kept, l.KeptBytes = len(q.kept.list), q.kept.bytes
	maps.Copy(l.Pressure, q.pressure)
	q.mu.Unlock()
	l.DiskFree, l.DiskSize = max(q.guard.free.Load(), 0), q.guard.size.Load()
	l.OutboxRows, l.OutboxAge = q.outbox.level(time.Now())
	l.SegmentBytes, l.SegmentFiles = q.contents.usage()
	if err := q.Ready(); err != nil {
		l.Closed = err.Error()
	}
	return l
}

// Levels returns the gauges. It costs O(hops), and looks at neither disk nor database.
func (q *Queue) Levels() Levels {
	l := q.Brief()
	l.ByState, l.OlderThan = map[string]int{}, map[string]map[string]int{}
	for st := statusQueued; st < statusCount; st++ {
		l.ByState[statusWords[st]] = 0
	}
	var older [len(ages)][len(ageWords)]int

	now := time.Now().UnixMicro()
	q.mu.Lock()
	q.sched.advance(now)
	for _, h := range q.sched.hops {
		for st := statusQueued; st < statusCount; st++ {
			as := st
			if h.held != nil && (st == statusQueued || st == statusDeferred) {
				as = statusHeld
			}
			l.ByState[statusWords[as]] += h.count[st]
		}
		for age := range ageWords {
			as := age
			if h.held != nil && h.count[statusActive] == 0 {
				as = ageHeld
			}
			for k := range ages {
				older[k][as] += h.older[age][k]
			}
		}
		if h.held == nil && h.earliest() != math.MaxInt64 {
			l.DueLag = max(l.DueLag, h.lag(now))
		}
	}
	q.mu.Unlock()

	for k, name := range ageNames {
		l.OlderThan[name] = map[string]int{}
		for age, word := range ageWords {
			l.OlderThan[name][word] = older[k][age]
		}
	}
	return l
}

// CommitLatency is how long commits take at present. It is for one caller who
// looks again and again: see latency.
func (q *Queue) CommitLatency() time.Duration { return q.latency.look(time.Now()) }
