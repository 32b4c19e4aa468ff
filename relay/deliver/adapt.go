package deliver

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"waybill/relay/backoff"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/route"
	"waybill/relay/smtpout"
)

// This file learns from attempts how much a next hop takes: how many at once
// (windows), and whether it has asked for less (package backoff).

// windows is how many attempts at once each next hop gets. It begins with few,
// grows by one with each attempt that got through, and is halved when the hop
// defers us, loses a connection or does not answer. So a hop that never answers
// does not take the workers of all others, and a busy one is not made busier.
type windows struct {
	mu sync.RWMutex
	of map[route.Hop]*window
}

type window struct {
	size  int
	epoch uint32 // counts how often it was halved
	used  time.Time
}

// bounds of a window.
type bounds struct{ start, least, most int }

func (l Limits) bounds() bounds {
	b := bounds{start: l.StartPerDestination, least: l.LeastPerDestination, most: l.perDestination()}
	if b.start <= 0 {
		b.start = defaultStart
	}
	b.least = min(max(b.least, 1), b.most)
	b.start = min(max(b.start, b.least), b.most)
	return b
}

const (
	defaultStart = 10
	maxWindows   = 100_000
	windowIdle   = 10 * time.Minute // after which a hop begins anew; chosen by taste
)

// size is how many attempts hop gets at once. It is fast.
func (w *windows) size(hop route.Hop, b bounds) int {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if x := w.of[hop]; x != nil {
		return min(max(x.size, b.least), b.most)
	}
	return b.start
}

// begin notes an attempt. What it returns goes to [windows.end].
func (w *windows) begin(hop route.Hop) (epoch uint32) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if x := w.of[hop]; x != nil {
		return x.epoch
	}
	return 0
}

// end tells how an attempt went that began in epoch. Of the attempts that were
// under way together, the first that strains halves the window; the others tell
// nothing new.
func (w *windows) end(hop route.Hop, b bounds, epoch uint32, s strain, now time.Time) {
	if s == strainUnknown {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.of[hop]
	if x == nil {
		if len(w.of) >= maxWindows {
			return // it stays where hops begin
		}
		if w.of == nil {
			w.of = map[route.Hop]*window{}
		}
		x = &window{size: b.start}
		w.of[hop] = x
	}
	x.used = now
	x.size = min(max(x.size, b.least), b.most) // the bounds may have changed
	switch {
	case s == strainNone:
		x.size = min(x.size+1, b.most)
	case epoch == x.epoch:
		x.size = max(x.size/2, b.least)
		x.epoch++
	}
}

// narrow has hop begin with the least when what it asked for is over.
func (w *windows) narrow(hop route.Hop, b bounds, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if x := w.of[hop]; x != nil {
		x.size, x.used = b.least, now
		x.epoch++
	}
}

// sweep forgets hops that had no mail for long.
func (w *windows) sweep(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for hop, x := range w.of {
		if now.Sub(x.used) > windowIdle {
			delete(w.of, hop)
		}
	}
}

// strain is what the outcomes of an attempt tell about how much a hop takes.
type strain uint8

const (
	strainUnknown strain = iota
	strainNone           // it got through
	strainSome           // the hop had trouble, or had enough of us
)

// strained judges outcomes. What is about one recipient or one message, such as
// a greylist, a full mailbox or an attachment, says nothing about the hop.
func strained(outcomes []mail.Outcome) strain {
	s := strainUnknown
	for i := range outcomes {
		o := &outcomes[i]
		if o.Disposition != mail.Deferred {
			if o.Remote {
				s = strainNone
			}
			continue
		}
		switch o.Class {
		case mail.ClassTimeout, mail.ClassConnect:
			return strainSome
		case mail.ClassThrottled, mail.ClassReputation, mail.ClassPolicy, mail.ClassOther:
			if o.Remote {
				return strainSome
			}
		default:
		}
	}
	return s
}

// sweepEvery is how often what has had its time is looked for.
const sweepEvery = 5 * time.Second

// sweep ends the back-offs whose time has come, until ctx is done.
func (s *Scheduler) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			s.windows.sweep(now)
			s.share.sweep(now)
			for _, c := range s.backoff.Sweep(now) {
				s.stateBackoff(c, nil)
			}
			s.paces.forget(func(hop route.Hop) bool { st, ok := s.backoff.Of(hop, now); return ok && st.PerMinute > 0 })
		case <-ctx.Done():
			return
		}
	}
}

// stateBackoff states that a hop is treated in another way from now on.
func (s *Scheduler) stateBackoff(c backoff.Change, res *smtpout.Result) {
	ev := event.BackoffChanged{
		Hop:  event.Hop{ConnectorOut: c.Hop.Connector, Queue: c.Hop.Name, Provider: c.Provider},
		Mode: string(c.Mode), Was: string(c.Was), Rule: c.Rule, Times: c.Times, PerMinute: c.PerMinute, Connections: c.Connections, Until: c.Until,
	}
	if c.Mode != backoff.None {
		ev.Answer = event.Answer{Code: c.Reply.Code, Enhanced: c.Reply.Enhanced, Reply: clip(c.Reply.Text, maxReply), Verb: c.Verb, Class: mail.ClassThrottled, ClassRule: c.Rule, Permanence: mail.Temporary, Explanation: c.Why}
	}
	if res != nil {
		ev.RemoteName, ev.RemoteIP, ev.RemotePort = res.RemoteName, res.Remote.Addr(), res.Remote.Port()
	}
	s.emit.Emit(ev)
}

// learn takes what an attempt that began at began tells about its hop.
func (j *job) learn(res *smtpout.Result, outcomes []mail.Outcome, began time.Time, epoch uint32) {
	j.windows.end(j.view.Hop, j.connector.Limits.bounds(), epoch, strained(outcomes), j.now)
	if c, changed := j.backoff.Tell(j.view.Hop, res.Provider, outcomes, began, j.now); changed {
		j.windows.narrow(j.view.Hop, j.connector.Limits.bounds(), j.now)
		j.stateBackoff(c, res)
	}
}

// obey reports whether the lease was given back because its hop has asked for
// less.
func (j *job) obey(ctx context.Context) bool {
	st, ok := j.backoff.Of(j.view.Hop, j.now)
	switch {
	case !ok:
		return false
	case st.Mode == backoff.Pause:
		pause := st.Until.Sub(j.now)
		next := earlier(st.Until.Add(time.Duration(j.opts.Rand()*float64(min(pause, time.Minute))/5)), j.expires)
		if !j.restTold(ctx, st, next) {
			j.lease.Park(next, earlier(j.delayAt(), j.limit())) // nor need the others be claimed
		}
		return true
	case st.PerMinute > 0:
		if again := j.paces.turn(j.view.Hop, st.PerMinute, j.now); !again.IsZero() {
			if again = earlier(again, j.expires); !j.restTold(ctx, st, again) {
				j.lease.ReleaseUntil(again)
			}
			return true
		}
	}
	return false
}

// restTold puts the lease off until next, and tells the sender that it is late, if
// that is due. Otherwise it says so, and does nothing.
func (j *job) restTold(ctx context.Context, st backoff.State, next time.Time) bool {
	if !j.delayDue() {
		return false
	}
	why := mail.Outcome{
		Reply: mail.Reply{Enhanced: "4.4.5", Text: clip("waiting, because the next hop asked for less mail: "+st.Why, maxReply)},
		Class: mail.ClassThrottled, ClassRule: st.Rule, Explanation: clip(st.Why+"; Waybill slows down by itself, nothing to do", maxReply),
	}
	j.wait(ctx, next, why)
	return true
}

// Slowed says how a next hop is treated that does not get all that it might.
type Slowed struct {
	backoff.State     // Mode is backoff.None where the hop has asked for nothing
	Window        int // attempts at once, by what was learned
}

// Slowed says how hop is treated at present.
func (s *Scheduler) Slowed(hop route.Hop) Slowed {
	st, ok := s.backoff.Of(hop, time.Now())
	if !ok {
		st = backoff.State{Hop: hop, Mode: backoff.None}
	}
	return Slowed{State: st, Window: s.Concurrency(hop)}
}

// Backoffs is how many next hops are in each mode at present.
func (s *Scheduler) Backoffs() map[backoff.Mode]int { return s.backoff.Count(time.Now()) }

// SetBackoff changes the rules by which next hops are backed off from. Modes of
// rules that are gone end.
func (s *Scheduler) SetBackoff(rules backoff.Rules) {
	for _, c := range s.backoff.Use(rules, time.Now()) {
		s.stateBackoff(c, nil)
	}
}

// RetryNow is [Scheduler.ProbeNow] for hops that have asked for less, too. Call
// it when an operator wants mail to go now, whatever was said.
func (s *Scheduler) RetryNow() {
	for _, c := range s.backoff.Clear(time.Now()) {
		s.stateBackoff(c, nil)
	}
	s.ProbeNow()
}

// slots are the workers. An attempt that takes long gives its place to another
// one meanwhile, so that hosts which never answer do not stop the mail of those
// that do.
type slots struct {
	busy     chan struct{}
	patience time.Duration
	most     int64 // attempts that may be under way without a place
	slow     atomic.Int64
	places   sync.Pool // of *place; timers belong to one scheduler
}

const (
	patience = 10 * time.Second // chosen by taste: real hosts take less
	perSlow  = 3                // for each place, so many slow attempts may be under way without one
)

func newSlots(n int) *slots {
	return &slots{busy: make(chan struct{}, n), patience: patience, most: perSlow * int64(n)}
}

// take waits for a place.
func (s *slots) take(ctx context.Context) error {
	select {
	case s.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// place is what an attempt has while it is under way. Its memory, and its timer,
// serve one attempt after another.
type place struct {
	slots *slots
	job   job

	mu    sync.Mutex // between the attempt and its timer
	share share
	late  time.Time // when it takes long; zero while no attempt is under way
	slow  bool      // it does, and has no place any more
	timer *time.Timer
}

// place is for who has taken one: an attempt that has that share. Its work is
// between begin and end.
func (s *slots) place(share share) *place {
	p, ok := s.places.Get().(*place)
	if !ok {
		p = &place{slots: s}
	}
	p.share = share
	return p
}

// begin is called when the work begins.
func (p *place) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	patience := p.share.patience(p.slots.patience)
	p.late = time.Now().Add(patience)
	if p.timer == nil {
		p.timer = time.AfterFunc(patience, p.linger)
	} else {
		p.timer.Reset(patience)
	}
}

// linger gives the place to another attempt, when this one takes long.
func (p *place) linger() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.late.IsZero() || time.Now().Before(p.late) { // the timer was that of the attempt before
		return
	}
	if p.slots.slow.Add(1) > p.slots.most {
		p.slots.slow.Add(-1)
		return
	}
	p.slow = true
	p.share.linger()
	<-p.slots.busy
}

// end gives the place back. Nobody uses p after it.
func (p *place) end() {
	p.timer.Stop()
	p.mu.Lock()
	p.share.leave(time.Now())
	if p.slow {
		p.slots.slow.Add(-1)
	} else {
		<-p.slots.busy
	}
	p.job, p.share, p.late, p.slow = job{}, share{}, time.Time{}, false
	p.mu.Unlock()
	p.slots.places.Put(p)
}

// tame is how many leases of hop may be out at once for what it has asked for,
// at most n.
func (s *Scheduler) tame(hop route.Hop, n int) int {
	st, ok := s.backoff.Of(hop, time.Now())
	switch {
	case !ok:
	case st.Mode == backoff.Pause:
		return min(sweepers, n) // those that are put off
	case st.Connections > 0:
		return min(st.Connections, n)
	}
	return n
}
