package queue

import (
	"fmt"
	"sync"
	"time"
)

// The schedule is in the time of the wall clock, because records are, and people
// read it. When that clock is set, by hand or by a time server that finds it wrong,
// no time has passed: everything that waits is moved by as much, so that it waits
// for as long as before, its age stays, and its life does not end early (see
// Lease.Shift). It is forgotten at the end of the process: what comes from a
// record whose times are ahead of the clock is due at the next start.

// clockStep is what counts as setting the clock; less is a time server's work
// while the clock runs. Chosen by taste.
const clockStep = time.Minute

// steady compares the wall clock with the monotonic one. A machine that was asleep
// looks like a clock that was set forward, and means the same: nobody tried.
type steady struct {
	mu   sync.Mutex
	base time.Time     // with its monotonic reading
	skew time.Duration // of the wall clock against the monotonic one, as of the last look
}

// observe returns by how much the wall clock was set since the last look, or 0.
func (s *steady) observe(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.base.IsZero() {
		s.base = now
		return 0
	}
	return s.compare(now.Round(0).Sub(s.base.Round(0)), now.Sub(s.base))
}

// compare takes what has passed since base by either clock. s.mu is held.
func (s *steady) compare(wall, lived time.Duration) time.Duration {
	skew := wall - lived
	by := skew - s.skew
	s.skew = skew
	if by.Abs() < clockStep {
		return 0
	}
	return by
}

// lookAtClock moves what waits when the clock was set.
func (q *Queue) lookAtClock(now time.Time) {
	if by := q.steady.observe(now); by != 0 {
		q.jump(by, now)
	}
}

// jump moves what waits by what the clock was set.
func (q *Queue) jump(by time.Duration, now time.Time) {
	q.mu.Lock()
	q.sched.shift(by.Microseconds())
	q.rearm(now)
	q.mu.Unlock()
	word := "forward"
	if by < 0 {
		word = "back"
	}
	q.remark("the clock was set", fmt.Sprintf("%s by %s; what is queued waits for as long as before, and its lifetime ends as much later or earlier", word, by.Abs().Round(time.Second)))
}

// shift moves all times by d microseconds. The order of everything stays.
func (s *schedule) shift(d int64) {
	move := func(at *int64) {
		if *at != 0 {
			*at += d
		}
	}
	for e := range s.all() {
		move(&e.accepted)
		for g := range s.groups(e) {
			move(&g.due)
			g.latest = toSeconds(g.latest.micro() + d)
		}
	}
	for _, h := range s.hops {
		move(&h.probeAt)
		move(&h.openedAt)
		if h.sleepIndex >= 0 {
			move(&h.next)
		}
	}
}

// shifted is by how much the life of e is moved against its record.
func (e *entry) shifted(m *stored) time.Duration {
	return time.Duration(e.accepted-m.AcceptedAt.UnixMicro()) * time.Microsecond
}
