// Package deliver is the scheduler: it claims what is due, lets send connectors
// attempt it, and settles what became of it.
//
// It exists so that one place decides when mail is tried, tried again, given up
// and reported. It promises: each claimed recipient gets exactly one outcome;
// nothing is attempted after its lifetime; a next hop that cannot be reached is
// asked by one message at a time, however many wait for it; a panic ends one
// attempt and no more; at the end of [Scheduler.Run] every lease has been
// settled or given back.
//
// It writes no bytes to a wire (package smtpout does) and none to a disk
// (package queue does). To teach it a provider's replies, add a rule to
// rules.go.
package deliver

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"waybill/relay/backoff"
	"waybill/relay/event"
	"waybill/relay/failure"
	"waybill/relay/mail"
	"waybill/relay/queue"
	"waybill/relay/route"
	"waybill/relay/smtpout"
)

// Queue gives out what is due. [FromQueue] makes one of a *queue.Queue.
type Queue interface {
	// Claim waits for the next due recipients of one message for one hop.
	Claim(ctx context.Context) (Lease, error)
	// Probe gives out a message of every next hop that cannot be reached, so that
	// it is tried at once.
	Probe()
}

// Lease is a claim on recipients. Its owner ends it by exactly one of Settle,
// Release, ReleaseUntil, Park and Poison.
type Lease interface {
	View() *queue.Lease
	Open() (io.ReadCloser, error) // the content without Trace
	Settle(ctx context.Context, s queue.Settlement) error
	Release()                   // give back, as if it had never been claimed
	ReleaseUntil(due time.Time) // give back; due again then. Forgotten in a crash
	// Park gives back what waits for a hop that cannot be reached: until it is
	// back, and until deadline at the latest. From probe on one is to try.
	Park(probe, deadline time.Time)
	Poison(err error) error // give back, and say that it broke its worker
	// Free is called after all others: the message that View gave, and its States, are
	// not used any more.
	Free()
}

// Connector is what the scheduler needs of a send connector.
type Connector struct {
	Attempter smtpout.Attempter
	Retry     Retry
	Limits    Limits
	Quota     Quota // nil: none
}

// Limits bound what a send connector does at once. Zero fields mean the default.
type Limits struct {
	ConnectionsPerDestination int // attempts at once for one hop; default 40
	StartPerDestination       int // of these, for a hop of which nothing is known yet; default 10
	LeastPerDestination       int // of these, for a hop that has trouble; default 1
	MessagesPerMinute         int // default: no limit
	Connections               int // of the send connector to all hops; default 1000
	RecipientsPerMessage      int // of one transaction; default: no limit
}

// messages is in how many transactions a message to so many recipients goes.
func (l Limits) messages(recipients int) int {
	if l.RecipientsPerMessage <= 0 {
		return 1
	}
	return (recipients + l.RecipientsPerMessage - 1) / l.RecipientsPerMessage
}

func (l Limits) perDestination() int {
	if l.ConnectionsPerDestination > 0 {
		return l.ConnectionsPerDestination
	}
	return defaultPerDestination
}

func (l Limits) connections() int {
	if l.Connections > 0 {
		return l.Connections
	}
	return defaultConnections
}

const (
	defaultConnections    = 1000 // of package smtpout
	defaultPerDestination = 40
	// DefaultWorkers is how many attempts are made at once. Chosen by taste.
	DefaultWorkers = 500
	defaultDrain   = 25 * time.Second
)

// Options configure a Scheduler.
type Options struct {
	Queue Queue
	// Connectors finds a send connector by its name. It is asked for each
	// attempt and by [Scheduler.Concurrency], so that a reload can swap them.
	Connectors func(name string) (Connector, bool)
	// Router is asked, when a hop cannot be reached, whether there is another
	// way: it should know [Scheduler.Down]. Nil: mail waits for its hop.
	Router       queue.Router
	Hostname     string // of reports
	Emitter      event.Emitter
	Workers      int            // attempts at once; default DefaultWorkers
	DrainTimeout time.Duration  // how long attempts in hand may go on after the end; default 25s
	Backoff      backoff.Rules  // replies by which hops ask for less; nil: none are known
	Failures     failure.Rules  // what replies mean; without any, those that come with the program
	Reports      ReportPolicy   // whom reports go to
	Rand         func() float64 // in [0,1); nil means math/rand. For tests
}

// Scheduler delivers mail.
type Scheduler struct {
	opts    Options
	slots   *slots
	share   *shares
	started time.Time
	hops    hops
	paces   paces
	emit    event.Emitter

	windows  windows
	backoff  *backoff.Set
	failures atomic.Pointer[failure.Rules]

	reporting atomic.Pointer[ReportPolicy]
}

// New makes a Scheduler.
func New(opts Options) *Scheduler {
	if opts.Workers <= 0 {
		opts.Workers = DefaultWorkers
	}
	if opts.DrainTimeout <= 0 {
		opts.DrainTimeout = defaultDrain
	}
	if opts.Rand == nil {
		opts.Rand = random
	}
	s := &Scheduler{opts: opts, slots: newSlots(opts.Workers), share: newShares(opts.Workers), emit: opts.Emitter.Source(event.SourceSMTPOut), backoff: backoff.NewSet(opts.Backoff)}
	if len(opts.Failures.List()) == 0 {
		opts.Failures = failure.Default()
	}
	s.failures.Store(&opts.Failures)
	s.reporting.Store(&opts.Reports)
	s.paces.emit, s.paces.queue, s.paces.random = s.emit, max(1, opts.Workers/16), opts.Rand
	return s
}

// Concurrency is how many leases of hop may be out at once. It is fast, and
// changes with what the scheduler learns of the hop: hand it to the queue.
func (s *Scheduler) Concurrency(hop route.Hop) int {
	c, _ := s.opts.Connectors(hop.Connector)
	return s.share.limit(hop, c.Limits.connections(), s.tame(hop, s.hops.concurrency(hop, s.windows.size(hop, c.Limits.bounds()))))
}

// Active is how many attempts are under way, and how many may be.
func (s *Scheduler) Active() (now, limit int) {
	return len(s.slots.busy) + int(s.slots.slow.Load()), cap(s.slots.busy)
}

// Down reports whether hop cannot be reached at present. It is fast, and false
// again when the hop is to be tried.
func (s *Scheduler) Down(hop route.Hop) bool { return s.hops.avoid(hop, time.Now()) }

// HopsDown is how many next hops cannot be reached at present.
func (s *Scheduler) HopsDown() int { return s.hops.down(time.Now()) }

// ProbeNow forgets until when the hops that cannot be reached are to be left
// alone. Call it when an operator asks for a retry, and after a reload: what is
// due then is attempted, one message first.
func (s *Scheduler) ProbeNow() {
	s.hops.probeNow()
	s.opts.Queue.Probe()
}

// Shut reports whether hop takes nothing at present: it cannot be reached, or has
// asked for a pause. Hand it to the queue as Down. It is fast.
func (s *Scheduler) Shut(hop route.Hop) bool {
	now := time.Now()
	if s.hops.avoid(hop, now) {
		return true
	}
	st, ok := s.backoff.Of(hop, now)
	return ok && st.Mode == backoff.Pause
}

// Run delivers mail until ctx is done, then finishes the attempts in hand, at
// most for the drain timeout; what is still under way then is cut off and given
// back. It returns an error only when the queue gives out nothing any more.
func (s *Scheduler) Run(ctx context.Context) error {
	s.started = time.Now()
	attempts, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var wg sync.WaitGroup
	sweeping, swept := context.WithCancel(ctx)
	wg.Go(func() { s.sweep(sweeping) })
	err := s.claim(ctx, attempts, &wg)
	swept()

	drained := make(chan struct{})
	go func() {
		wg.Wait()
		close(drained)
	}()
	timer := time.NewTimer(s.opts.DrainTimeout)
	defer timer.Stop()
	select {
	case <-drained:
	case <-timer.C:
		cut()
		<-drained
	}
	return err
}

// claim gives each lease to a goroutine, until ctx is done.
func (s *Scheduler) claim(ctx, attempts context.Context, wg *sync.WaitGroup) error {
	crew := newCrew(wg)
	defer crew.close()
	for {
		if s.slots.take(ctx) != nil {
			return nil
		}
		l, err := s.opts.Queue.Claim(ctx)
		if err != nil {
			<-s.slots.busy
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("claim from the queue: %w", err)
		}
		p := s.slots.place(s.share.enter(l.View().Hop))
		crew.do(func() {
			p.begin()
			defer p.end()
			s.handle(ctx, attempts, l, &p.job)
		})
	}
}

// unknownPause is how long recipients wait for a send connector that is gone:
// a reload is about to give them another. Chosen by taste.
const unknownPause = time.Minute

// lastChance is for how long after the start a message waits for an attempt whose
// lifetime ended before, while nobody was there to try or by a clock that was
// wrong. Chosen by taste.
const lastChance = time.Hour

// lastTried is when the last attempt for any recipient of the lease was.
func lastTried(v *queue.Lease) (at time.Time) {
	for _, i := range v.Index {
		if t := v.Message.States[i].LastAt; t.After(at) {
			at = t
		}
	}
	return at
}

// expires is when the life of the lease's recipients ends. It is told from now,
// with now's monotonic reading, so that an attempt may go on while the clock is
// set: the lease knows of what was before its claim only.
func (s *Scheduler) expires(v *queue.Lease, retry Retry, now time.Time) time.Time {
	end := endOf(v.Message, retry, v.Hop, v.Shift, lastTried(v), s.started)
	return now.Add(end.Sub(v.Claimed))
}

// endOf is when the life of recipients of m ends that wait for hop, all times of m
// being moved by shift. The last attempt for any was at tried, and the process began at started.
func endOf(m *queue.Message, retry Retry, hop route.Hop, shift time.Duration, tried, started time.Time) time.Time {
	end := m.ExpiresAt.Add(shift)
	if retry.Lifetime > 0 {
		end = earlier(end, m.Begins().Add(shift+retry.Lifetime))
	}
	if hop.Connector != "" && end.Before(started) && tried.Before(started) {
		end = started.Add(lastChance) // nobody tried while we were not there, or the clock was wrong
	}
	if by := m.Envelope.DeliverBy; by.Return { // RFC 2852: then it goes back, and is not relayed any more
		end = earlier(end, by.Deadline.Add(shift))
	}
	return end
}

// Latest is the function of that name in queue.Options: when recipients must be
// claimed although their hop cannot be reached. Connectors is as in [Options]. The
// queue asks before there is a scheduler: started is when the process began.
func Latest(connectors func(name string) (Connector, bool), started time.Time) func(m *queue.Message, w queue.Waiting) time.Time {
	return func(m *queue.Message, w queue.Waiting) time.Time {
		c, _ := connectors(w.Hop.Connector)
		retry, _ := c.Retry.For(w.Hop.Name)
		end := endOf(m, retry, w.Hop, 0, w.LastAt, started)
		if w.Told || w.Hop.Connector == "" {
			return end
		}
		return earlier(delayAt(m, retry, 0), end)
	}
}

// Ends tells when the first of a queued message's recipients that still wait comes
// to the end of its life; the zero time when none waits. Connectors and started are
// those of [Latest].
func Ends(connectors func(name string) (Connector, bool), started time.Time) func(m *queue.Message) time.Time {
	return func(m *queue.Message) (end time.Time) {
		for i := range m.States {
			st := &m.States[i]
			if st.Disposition.Final() {
				continue
			}
			c, _ := connectors(st.Hop.Connector)
			retry, _ := c.Retry.For(st.Hop.Name)
			if at := endOf(m, retry, st.Hop, 0, st.LastAt, started); end.IsZero() || at.Before(end) {
				end = at
			}
		}
		return end
	}
}

// handle decides what to do with a lease, and ends it; j is room for the job that it
// is. Nothing new begins once ctx is done; an attempt goes on until attempts is.
func (s *Scheduler) handle(ctx, attempts context.Context, l Lease, j *job) {
	v := l.View()
	defer func() {
		if r := recover(); r != nil {
			s.emit.Message(v.Message.ID, v.Message.UID).Emit(event.Panicked{Where: "delivery", Value: fmt.Sprint(r), Stack: string(debug.Stack())})
			if err := l.Poison(fmt.Errorf("panic: %v", r)); err != nil {
				s.remark(v, "poison", err)
			}
		}
	}()
	if ctx.Err() != nil {
		l.Release()
		return
	}
	j.Scheduler, j.lease, j.view, j.now, j.cut = s, l, v, time.Now(), attempts.Done()
	var known bool
	j.connector, known = s.opts.Connectors(v.Hop.Connector)
	j.connector.Retry, _ = j.connector.Retry.For(v.Hop.Name)
	j.expires = s.expires(v, j.connector.Retry, j.now)
	switch {
	case v.Hop == route.Oversize:
		j.bounce(ctx, mail.Outcome{
			Reply: mail.Reply{Enhanced: "5.3.4", Text: "the message is larger than any matching send connector takes"},
			Class: mail.ClassSize, ClassRule: failure.RuleLocal,
		})
	case !j.now.Before(j.expires):
		j.expire(ctx)
	case v.Hop.Connector == "":
		j.wait(ctx, j.expires, unroutable)
	case !known:
		j.wait(ctx, j.now.Add(jitter(unknownPause, s.opts.Rand())), mail.Outcome{
			Reply: mail.Reply{Enhanced: "4.3.5", Text: "send connector " + v.Hop.Connector + " is not in the configuration"},
			Class: mail.ClassOther, ClassRule: failure.RuleLocal,
		})
	default:
		j.attempt(ctx, attempts)
	}
	l.Free()
}
