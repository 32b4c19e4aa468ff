package throttle

import (
	"runtime"
	"sync"
	"time"
)

const (
	turnsPerProcessor = 8                     // measured: docs/explanation/performance.md
	longestReceiving  = 5 * time.Millisecond  // that others wait for a content to come; by taste
	longestStoring    = 10 * time.Millisecond // that others wait for its checks and its commit: a few commits of a good disk
	longestWait       = time.Second           // for a turn; by taste
)

// whileQuiet is how many times as many turns there are while nothing else needs the
// processors. Measured: docs/explanation/performance.md.
const whileQuiet = 2

// DefaultTurns is how many contents are taken in at a time where nobody says.
func DefaultTurns() int { return turnsPerProcessor * runtime.GOMAXPROCS(0) }

// Turns let contents in by turns, in the order in which they came. When more
// come than the processors can serve, they all take longer together, and
// deliveries with them: then it is better that a few are quick, and the others
// wait before they have sent anything.
//
// A turn is kept from others only while it moves. The one that waits longest gets
// the turn of a client whose octets do not come, or of a message whose commit
// takes long; these go on without. So neither slow clients nor a slow disk keep
// others from the processors, nothing that hangs keeps anybody waiting, and how
// many contents there are at a time grows with the time that a commit takes. Who
// has waited for a second goes on without a turn too.
//
// While there are next to no deliveries, as when a next hop is down, nobody is slowed
// down by contents but their senders, and larger groups are stored sooner: then there
// are twice as many turns.
type Turns struct {
	quiet  func() bool // nil: never
	mu     sync.Mutex
	limit  int // 0: none
	timer  *time.Timer
	due    time.Time // when timer fires; zero when it does not
	waited time.Duration

	waiting, receiving, storing line
}

// NewTurns returns turns for n contents at a time, and twice as many while quiet says
// that next to nothing else is done; 0 is any number. quiet is asked often, must be
// fast, and may be nil: it never is.
func NewTurns(n int, quiet func() bool) *Turns { return &Turns{limit: max(n, 0), quiet: quiet} }

// Turn is that of one content. The zero Turn has none. It is used by one
// goroutine, and not copied.
type Turn struct {
	of         *Turns
	in         *line // where it stands, or nil; guarded as what follows by of.mu
	prev, next *Turn
	since      time.Time     // when it came there
	ready      chan struct{} // closed when the wait is over; nil when there was none
}

// line is some turns, those that came first first.
type line struct {
	first, last *Turn
	n           int
}

func (l *line) add(u *Turn, now time.Time) {
	u.in, u.since, u.prev, u.next = l, now, l.last, nil
	if l.last == nil {
		l.first = u
	} else {
		l.last.next = u
	}
	l.last = u
	l.n++
}

func (l *line) remove(u *Turn) {
	if u.prev == nil {
		l.first = u.next
	} else {
		u.prev.next = u.next
	}
	if u.next == nil {
		l.last = u.prev
	} else {
		u.next.prev = u.prev
	}
	u.in, u.prev, u.next = nil, nil, nil
	l.n--
}

// Limit changes how many contents are taken in at a time; 0 is any number.
func (t *Turns) Limit(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limit = max(n, 0)
	t.move(time.Now())
}

// Wait waits until it is the turn of u, until that took too long, or until gone
// is closed. Its caller goes on in any case, and calls [Turn.End] after all. Nil
// Turns let everybody go on at once.
func (t *Turns) Wait(u *Turn, gone <-chan struct{}) {
	if t == nil {
		return
	}
	now := time.Now()
	t.mu.Lock()
	u.of = t
	if t.waiting.n == 0 && t.room() {
		t.receiving.add(u, now)
		t.mu.Unlock()
		return
	}
	ready := make(chan struct{})
	u.ready = ready
	t.waiting.add(u, now)
	t.move(now)
	t.mu.Unlock()
	select {
	case <-ready:
	case <-gone:
		u.End()
	}
}

// Received says that all of the content has come.
func (u *Turn) Received() {
	t := u.of
	if t == nil {
		return
	}
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if u.in == &t.receiving { // else another has the turn
		t.receiving.remove(u)
		t.storing.add(u, now)
	}
}

// End gives the turn to the next, if it is still there. It may be called again.
func (u *Turn) End() {
	t := u.of
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	u.of = nil
	if u.in == nil {
		return
	}
	u.in.remove(u)
	if t.waiting.n > 0 {
		t.move(time.Now())
	}
}

// room reports whether there is a turn to be had. The caller holds t.mu.
func (t *Turns) room() bool {
	held := t.receiving.n + t.storing.n
	return t.limit == 0 || held < t.limit || held < whileQuiet*t.limit && t.quiet != nil && t.quiet()
}

// move lets those go on that wait and for whom there is a turn, or that have
// waited long enough, and sees that it is called again in time. The caller holds
// t.mu.
func (t *Turns) move(now time.Time) {
	for t.waiting.n > 0 {
		next := t.waiting.first.since.Add(longestWait)
		tired := !now.Before(next)
		next = earlier(next, t.drop(&t.receiving, now, longestReceiving))
		next = earlier(next, t.drop(&t.storing, now, longestStoring))
		room := t.room()
		if !room && !tired {
			t.wake(next, now)
			return
		}
		u := t.waiting.first
		t.waited += now.Sub(u.since)
		t.waiting.remove(u)
		if room {
			t.receiving.add(u, now)
		}
		close(u.ready)
	}
}

// drop takes turns of those in l that have been there for d, until there is room.
// When there is none, it returns when the next one will have been; zero is never.
// The caller holds t.mu.
func (t *Turns) drop(l *line, now time.Time, d time.Duration) time.Time {
	for !t.room() && l.first != nil {
		if due := l.first.since.Add(d); now.Before(due) {
			return due
		}
		l.remove(l.first)
	}
	return time.Time{}
}

// earlier is the earlier time, where zero is none.
func earlier(a, b time.Time) time.Time {
	if !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// wake sees that move is called at at, or before. The caller holds t.mu.
func (t *Turns) wake(at, now time.Time) {
	switch {
	case t.timer == nil:
		t.timer = time.AfterFunc(at.Sub(now), t.tick)
	case t.due.IsZero() || at.Before(t.due):
		t.timer.Reset(at.Sub(now))
	default:
		return
	}
	t.due = at
}

func (t *Turns) tick() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.due = time.Time{}
	t.move(time.Now())
}

// TurnsStatus is how things are with contents.
type TurnsStatus struct {
	Limit   int           // how many there may be, or twice as many while it is quiet; 0: any number
	Held    int           // contents that are being taken in, but for those that have lost their turn
	Waiting int           // contents that wait for theirs
	Waited  time.Duration // how long they have waited, all that ever did
}

// Status is how things are now.
func (t *Turns) Status() TurnsStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	return TurnsStatus{Limit: t.limit, Held: t.receiving.n + t.storing.n, Waiting: t.waiting.n, Waited: t.waited}
}
