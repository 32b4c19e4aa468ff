package metrics

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"waybill/relay/queue"
	"waybill/relay/route"
)

// hopLevel is the level of all next hops of one name.
type hopLevel struct {
	name                           string
	queued, active, deferred, held int
	bytes                          int64
	oldest                         time.Time
	oldestBy                       [3]time.Time // as oldestStates
}

func (h *hopLevel) messages() int { return h.queued + h.active + h.deferred + h.held }

func (h *hopLevel) add(o *hopLevel) {
	h.queued += o.queued
	h.active += o.active
	h.deferred += o.deferred
	h.held += o.held
	h.bytes += o.bytes
	h.oldest = earlier(h.oldest, o.oldest)
	for i := range h.oldestBy {
		h.oldestBy[i] = earlier(h.oldestBy[i], o.oldestBy[i])
	}
}

// earlier returns the earlier of two times, where zero is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// foldHops sums the hops by name, without the unroutable ones.
func foldHops(hops []queue.HopStatus) []*hopLevel {
	by := make(map[string]*hopLevel, len(hops))
	list := make([]*hopLevel, 0, len(hops))
	for i := range hops {
		s := &hops[i]
		if s.Hop == route.Unroutable {
			continue
		}
		h := hopLevel{
			name: label(s.Hop.Name), queued: s.Queued, active: s.Active, deferred: s.Deferred, held: s.Held, bytes: s.Bytes, oldest: s.Oldest,
		}
		for k, state := range oldestStates {
			h.oldestBy[k] = s.OldestBy[state]
		}
		if have := by[h.name]; have != nil {
			have.add(&h)
			continue
		}
		by[h.name] = &h
		list = append(list, &h)
	}
	return list
}

// top chooses which queues get series of their own: the largest and the oldest.
// Who is in stays in for a while, so that a series does not come and go: a queue
// enters at a rank of at most limit, and leaves when it was below rank keep for
// a time, or has to make room.
type top struct {
	limit, keep int
	after       time.Duration

	mu      sync.Mutex
	members map[string]time.Time // since when below keep; zero: it is not
}

func newTop(limit, keep int, after time.Duration) top {
	return top{limit: limit, keep: keep, after: after, members: map[string]time.Time{}}
}

// pick returns the levels of the chosen queues by name, and the sum of the
// others under the name "other".
func (t *top) pick(hops []*hopLevel, now time.Time) (shown []*hopLevel, rest *hopLevel) {
	t.mu.Lock()
	defer t.mu.Unlock()
	rank := ranks(hops)
	var leaving []string // members, worst first
	for name, since := range t.members {
		switch r, there := rank[name]; {
		case there && r <= t.keep:
			t.members[name] = time.Time{}
		case since.IsZero():
			t.members[name] = now
		case now.Sub(since) >= t.after:
			delete(t.members, name)
			continue
		}
		leaving = append(leaving, name)
	}
	worst := func(a, b string) int {
		return cmp.Or(cmp.Compare(position(rank, b), position(rank, a)), cmp.Compare(a, b))
	}
	slices.SortFunc(leaving, worst)
	for _, h := range hops { // best first, as ranks left them
		if rank[h.name] > t.limit {
			break
		}
		if _, in := t.members[h.name]; in {
			continue
		}
		if len(t.members) >= t.limit { // then somebody in is below the limit
			delete(t.members, leaving[0])
			leaving = leaving[1:]
		}
		t.members[h.name] = time.Time{}
	}

	rest = &hopLevel{name: other}
	gone := make(map[string]bool, len(t.members))
	for name := range t.members {
		gone[name] = true
	}
	for _, h := range hops {
		if _, in := t.members[h.name]; in && h.name != other {
			shown = append(shown, h)
			delete(gone, h.name)
		} else {
			rest.add(h)
		}
	}
	delete(gone, other)
	for name := range gone { // empty now: its series goes to 0 before it goes
		shown = append(shown, &hopLevel{name: name})
	}
	slices.SortFunc(shown, func(a, b *hopLevel) int { return cmp.Compare(a.name, b.name) })
	return shown, rest
}

func position(rank map[string]int, name string) int {
	if r, ok := rank[name]; ok {
		return r
	}
	return int(^uint(0) >> 1)
}

// ranks sorts hops, best first, and returns the rank of each, from 1. A queue
// is as good as the better of its two ranks, by messages and by age.
func ranks(hops []*hopLevel) map[string]int {
	score := make(map[string]int, len(hops))
	name := func(a, b *hopLevel) int { return cmp.Compare(a.name, b.name) }
	slices.SortFunc(hops, func(a, b *hopLevel) int { return cmp.Or(cmp.Compare(b.messages(), a.messages()), name(a, b)) })
	for i, h := range hops {
		score[h.name] = i
	}
	slices.SortFunc(hops, func(a, b *hopLevel) int {
		if a.oldest.IsZero() != b.oldest.IsZero() {
			if a.oldest.IsZero() {
				return 1
			}
			return -1
		}
		return cmp.Or(a.oldest.Compare(b.oldest), name(a, b))
	})
	for i, h := range hops {
		score[h.name] = min(score[h.name], i)
	}
	slices.SortFunc(hops, func(a, b *hopLevel) int { return cmp.Or(cmp.Compare(score[a.name], score[b.name]), name(a, b)) })
	for i, h := range hops {
		score[h.name] = i + 1
	}
	return score
}
