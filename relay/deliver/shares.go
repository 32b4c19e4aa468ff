package deliver

import (
	"sync"
	"sync/atomic"
	"time"

	"waybill/relay/mail"
	"waybill/relay/route"
)

// shares keeps hosts that never answer from taking what the others need. A next
// hop is well known when it answered its last attempt, in trouble when that
// failed or when most of what is under way to it takes long, and new otherwise.
//
// Hops in trouble get at most a quarter of the places, and half of all attempts
// that may be under way and of their send connector's connections; together with
// those that are new, three quarters of either. So a message for a hop that is well
// known finds a place however many hops hang. When half of the share of the new ones is taken, each gets one attempt
// at a time, so that one that is fine is not behind ten attempts of each that hangs.
//
// While less than a quarter of all that is taken by hops that are not well known,
// none of this counts.
type shares struct {
	places, all int // attempts with a place, and all that may be under way

	placed, slow [standings]atomic.Int64
	calm         atomic.Int64 // below so many attempts to hops that are not well known, nothing is looked at
	mu           sync.RWMutex
	of           map[route.Hop]*repute
	connectors   map[string]*[standings]int // attempts under way
}

// standing is what is known of a next hop.
type standing uint8

const (
	standingNew standing = iota
	standingGood
	standingBad
	standings
)

// repute is what is remembered of a hop.
type repute struct {
	last  standing
	slow  int       // attempts under way that take long
	under int       // attempts under way
	used  time.Time // the end of the last
}

// maxReputes bounds the map: beyond, hops stay new.
const maxReputes = 200_000

func newShares(workers int) *shares {
	s := &shares{places: workers, all: (1 + perSlow) * workers, of: map[route.Hop]*repute{}, connectors: map[string]*[standings]int{}}
	s.calm.Store(part(workers, 1))
	return s
}

// part is n parts of four of whole, one at least.
func part(whole, n int) int64 { return int64(max(1, whole*n/4)) }

// limit is how many attempts at once hop may have, at most n, when its send
// connector has so many connections. It is fast.
func (s *shares) limit(hop route.Hop, connections, n int) int {
	if q := part(connections, 1); q < s.calm.Load() {
		s.calm.Store(q)
	}
	taken := func() (bad, others, allBad, allNew int64) {
		bad, others = s.placed[standingBad].Load(), s.placed[standingNew].Load()
		return bad, others, bad + s.slow[standingBad].Load(), others + s.slow[standingNew].Load()
	}
	if _, _, bad, others := taken(); bad+others < s.calm.Load() {
		return n
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	bad, others, allBad, allNew := taken() // of one moment
	itsBad, itsNew := int64(0), int64(0)
	if c := s.connectors[hop.Connector]; c != nil {
		itsBad, itsNew = int64(c[standingBad]), int64(c[standingNew])
	}
	crowded := bad+others >= part(s.places, 3) || allBad+allNew >= part(s.all, 3) || itsBad+itsNew >= part(connections, 3)
	switch s.standing(hop) {
	case standingBad:
		if crowded || bad >= part(s.places, 1) || allBad >= part(s.all, 2) || itsBad >= part(connections, 2) {
			return 0
		}
	case standingNew:
		switch {
		case crowded:
			return 0
		case bad+others >= part(s.places, 3)/2 || allNew >= part(s.all, 1) || itsNew >= part(connections, 1):
			return min(n, 1)
		}
	default:
	}
	return n
}

// standing is what is known of hop. s.mu is held.
func (s *shares) standing(hop route.Hop) standing {
	r := s.of[hop]
	switch {
	case r == nil:
		return standingNew
	case r.slow > 0 && 2*r.slow >= r.under:
		return standingBad
	}
	return r.last
}

// share is what one attempt takes.
type share struct {
	*shares
	hop  route.Hop
	as   standing
	slow bool
	over bool
}

// enter counts an attempt that has a place. Its owner calls leave at its end.
func (s *shares) enter(hop route.Hop) share {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := share{shares: s, hop: hop, as: s.standing(hop)}
	s.placed[x.as].Add(1)
	c := s.connectors[hop.Connector]
	if c == nil {
		c = new([standings]int)
		s.connectors[hop.Connector] = c
	}
	c[x.as]++
	r := s.of[hop]
	if r == nil && len(s.of) < maxReputes {
		r = &repute{}
		s.of[hop] = r
	}
	if r != nil {
		r.under++
	}
	return x
}

// linger says that the attempt takes long, and gives its place to another.
func (x *share) linger() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over {
		return
	}
	x.shares.slow[x.as].Add(1) // first: who looks now may see it twice, and never not at all
	x.shares.placed[x.as].Add(-1)
	x.slow = true
	if r := x.of[x.hop]; r != nil {
		r.slow++
	}
}

// leave ends what the attempt took.
func (x *share) leave(now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.over = true
	x.connectors[x.hop.Connector][x.as]--
	if x.slow {
		x.shares.slow[x.as].Add(-1)
	} else {
		x.shares.placed[x.as].Add(-1)
	}
	if r := x.of[x.hop]; r != nil {
		r.under = max(r.under-1, 0)
		r.used = now
		if x.slow {
			r.slow = max(r.slow-1, 0)
		}
		if r.under == 0 && r.last == standingNew { // nothing was learned
			delete(x.of, x.hop)
		}
	}
}

// patience is after how long the attempt takes long. Of who is well known a large
// message may.
func (x *share) patience(most time.Duration) time.Duration {
	if x.as == standingGood {
		return most
	}
	return most / 5
}

// learn takes what an attempt told of hop.
func (s *shares) learn(hop route.Hop, v verdict, outcomes []mail.Outcome) {
	is := standingGood
	switch v {
	case inconclusive:
		return
	case unreachable:
		is = standingBad
	case reached:
		for i := range outcomes {
			if outcomes[i].Class == mail.ClassTimeout {
				is = standingBad
			}
		}
	}
	s.mu.RLock()
	r := s.of[hop]
	same := r != nil && r.last == is
	s.mu.RUnlock()
	if same {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r = s.of[hop]; r != nil {
		r.last = is
	}
}

// sweep forgets hops that had no mail for long. One that was in trouble is
// remembered for longer: its next attempt may be an hour away.
func (s *shares) sweep(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, c := range s.connectors {
		if *c == [standings]int{} {
			delete(s.connectors, name)
		}
	}
	s.calm.Store(part(s.places, 1)) // those that have fewer say so again
	for hop, r := range s.of {
		idle := windowIdle
		if r.last == standingBad {
			idle = 2 * forgotten
		}
		if r.under == 0 && now.Sub(r.used) > idle {
			delete(s.of, hop)
		}
	}
}
