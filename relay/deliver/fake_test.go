package deliver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/failure"
	"waybill/relay/mail"
	"waybill/relay/queue"
	"waybill/relay/route"
	"waybill/relay/smtpout"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeQueue keeps messages in memory, each for one hop. It checks that leases
// end exactly once.
type fakeQueue struct {
	t           testing.TB
	mu          sync.Mutex
	changed     chan struct{}
	messages    []*fakeMessage
	active      map[route.Hop]int
	concurrency func(route.Hop) int
	settled     []settled
	claims      int
	err         error
	settleErr   error
	router      queue.Router // of what is to go elsewhere
}

type fakeMessage struct {
	*queue.Message
	hop    route.Hop
	due    time.Time
	leased bool
	parked bool
	poison error

	damaged bool // opening it isolates it
}

// settled is one settlement and when it came.
type settled struct {
	queue.Settlement
	id      mail.QueueID
	at      time.Time
	attempt int
}

func newFakeQueue(t testing.TB) *fakeQueue {
	return &fakeQueue{t: t, changed: make(chan struct{}), active: map[route.Hop]int{}, concurrency: func(route.Hop) int { return 20 }}
}

const content = "From: alice@example.org\r\nSubject: Lunch?\r\n\r\nAre you there?\r\n"

// add queues a message for hop, now.
func (q *fakeQueue) add(hop route.Hop, change func(*queue.Message), rcpts ...string) *fakeMessage {
	m := q.message(hop, rcpts...)
	if change != nil {
		change(m.Message)
	}
	return q.put(m)
}

// message makes a message that is due, which put puts there.
func (q *fakeQueue) message(hop route.Hop, rcpts ...string) *fakeMessage {
	now := time.Now()
	m := &queue.Message{Size: int64(len(content)), AcceptedAt: now, ExpiresAt: now.Add(DefaultLifetime)}
	m.ID, m.UID = mail.QueueID(mail.NewID(now)), mail.NewUID(now)
	m.Envelope.Sender = address(q.t, "alice@example.org")
	m.Trace = []byte("Received: by us\r\n")
	for _, r := range rcpts {
		m.Envelope.Recipients = append(m.Envelope.Recipients, mail.Recipient{Address: address(q.t, r)})
		m.States = append(m.States, queue.State{Disposition: mail.Queued, Hop: hop, Due: now})
	}
	return &fakeMessage{Message: m, hop: hop, due: now}
}

func (q *fakeQueue) put(m *fakeMessage) *fakeMessage {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.messages = append(q.messages, m)
	q.wake()
	return m
}

func address(t testing.TB, s string) mail.Address {
	t.Helper()
	a, err := mail.ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// wake lets Claim look again. q.mu is held.
func (q *fakeQueue) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

func (q *fakeQueue) Claim(ctx context.Context) (Lease, error) {
	for {
		q.mu.Lock()
		if q.err != nil {
			q.mu.Unlock()
			return nil, q.err
		}
		now := time.Now()
		var best *fakeMessage
		next := now.Add(1000 * time.Hour)
		for _, m := range q.messages {
			switch {
			case m.leased || m.poison != nil || !m.open():
			case m.due.After(now):
				next = earlier(next, m.due)
			case q.active[m.hop] >= q.concurrency(m.hop):
			case best == nil || m.due.Before(best.due):
				best = m
			}
		}
		if best != nil {
			best.leased, best.parked = true, false
			q.active[best.hop]++
			q.claims++
			v := &queue.Lease{Message: best.Message, Hop: best.hop, Due: best.due, Claimed: now}
			for i, st := range best.States {
				if !st.Disposition.Final() {
					v.Index = append(v.Index, i)
					v.Attempt = max(v.Attempt, st.Attempts+1)
				}
			}
			q.mu.Unlock()
			return &fakeLease{q: q, m: best, view: v}, nil
		}
		changed := q.changed
		q.mu.Unlock()
		timer := time.NewTimer(next.Sub(now))
		select {
		case <-timer.C:
		case <-changed:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

func (q *fakeQueue) Probe() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range q.messages {
		if m.parked {
			m.due, m.parked = time.Now(), false
		}
	}
	q.wake()
}

func (m *fakeMessage) open() bool {
	return slices.ContainsFunc(m.States, func(s queue.State) bool { return !s.Disposition.Final() })
}

type fakeLease struct {
	q     *fakeQueue
	m     *fakeMessage
	view  *queue.Lease
	ended bool
}

func (l *fakeLease) View() *queue.Lease { return l.view }

func (l *fakeLease) Open() (io.ReadCloser, error) {
	l.q.mu.Lock()
	defer l.q.mu.Unlock()
	if l.m.damaged {
		l.m.poison = queue.ErrDamaged
		return nil, fmt.Errorf("open: %w", queue.ErrDamaged)
	}
	return io.NopCloser(strings.NewReader(content)), nil
}

// end ends the lease. q.mu is held.
func (l *fakeLease) end(how string) {
	if l.ended {
		l.q.t.Errorf("%s: %s of a lease that has ended", l.m.ID, how)
	}
	l.ended = true
	l.m.leased = false
	l.q.active[l.view.Hop]--
	l.q.wake()
}

// Free spoils what the scheduler must not use any more.
func (l *fakeLease) Free() {
	l.view.Message = nil
}

func (l *fakeLease) Release() {
	l.q.mu.Lock()
	defer l.q.mu.Unlock()
	l.end("release")
}

func (l *fakeLease) ReleaseUntil(due time.Time) {
	l.q.mu.Lock()
	defer l.q.mu.Unlock()
	if !due.After(time.Now()) {
		l.q.t.Errorf("%s: released until %v, which is not later", l.m.ID, due)
	}
	l.m.due = due
	l.end("release")
}

// Park is simpler than the real one: all that are parked come back at probe.
func (l *fakeLease) Park(probe, deadline time.Time) {
	l.q.mu.Lock()
	defer l.q.mu.Unlock()
	if now := time.Now(); !probe.After(now) || !deadline.After(now) {
		l.q.t.Errorf("%s: parked until %v, and %v at the latest, which is not later", l.m.ID, probe, deadline)
	}
	l.m.due, l.m.parked = earlier(probe, deadline), true
	l.end("park")
}

func (l *fakeLease) Poison(err error) error {
	l.q.mu.Lock()
	defer l.q.mu.Unlock()
	l.m.poison = err
	l.end("poison")
	return nil
}

func (l *fakeLease) Settle(ctx context.Context, s queue.Settlement) error {
	l.q.mu.Lock()
	defer l.q.mu.Unlock()
	defer l.end("settlement")
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if l.q.settleErr != nil {
		return l.q.settleErr
	}
	if len(s.Outcomes) != len(l.view.Index) {
		return fmt.Errorf("%d outcomes for %d recipients", len(s.Outcomes), len(l.view.Index))
	}
	now := time.Now()
	msg := *l.m.Message
	msg.States = slices.Clone(msg.States)
	for k, i := range l.view.Index {
		o, st := &s.Outcomes[k], &msg.States[i]
		if o.Recipient != msg.Envelope.Recipients[i].Address {
			l.q.t.Errorf("%s: outcome %d is for %v", l.m.ID, k, o.Recipient)
		}
		switch o.Disposition {
		case mail.Relayed, mail.Deferred, mail.Bounced, mail.Expired:
		default:
			l.q.t.Errorf("%s: outcome %v", l.m.ID, o.Disposition)
		}
		if o.Disposition == mail.Deferred && !s.Next.After(now) {
			l.q.t.Errorf("%s: deferred until %v, which is not later", l.m.ID, s.Next)
		}
		if o.Disposition != mail.Relayed && (o.Class == mail.ClassNone || o.ClassRule == "") {
			l.q.t.Errorf("%s: no class for %+v", l.m.ID, o)
		}
		st.Disposition, st.Last, st.LastClass, st.LastRule, st.LastMeans = o.Disposition, o.Reply, o.Class, o.ClassRule, o.Explanation
		if !s.NoAttempt {
			st.Attempts++
			st.LastAt, st.LastHost = now, s.Attempt.RemoteName
		}
		st.DelaySent = st.DelaySent || s.DelaySent && o.Disposition == mail.Deferred
	}
	l.m.Message = &msg
	l.m.due = s.Next
	if s.Elsewhere {
		if hop := l.q.router.Route(msg.Query(0)).Hop; hop != l.m.hop { // all recipients of a fakeMessage have one hop
			l.m.hop, l.m.due = hop, now
			for i := range msg.States {
				msg.States[i].Hop = hop
			}
		}
	}
	l.q.settled = append(l.q.settled, settled{s, l.m.ID, now, l.view.Attempt})
	return nil
}

// settlements returns what was settled so far.
func (q *fakeQueue) settlements() []settled {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.settled)
}

// reports returns the facts of all reports, and the drafts of those that were made.
func (q *fakeQueue) reports() (facts []event.DSNQueued, drafts []mail.Draft) {
	for _, s := range q.settlements() {
		for _, r := range s.Reports {
			facts = append(facts, r.Fact)
			if len(r.Draft.Envelope.Recipients) > 0 {
				drafts = append(drafts, r.Draft)
			}
		}
	}
	return facts, drafts
}

// attempter is a next hop in a function.
type attempter func(ctx context.Context, hop route.Hop, m smtpout.Message) smtpout.Result

func (f attempter) Attempt(ctx context.Context, hop route.Hop, m smtpout.Message) smtpout.Result {
	return f(ctx, hop, m)
}

// answer is a Result that says o for every recipient.
func answer(m smtpout.Message, o mail.Outcome) smtpout.Result {
	r := smtpout.Result{RemoteName: "mx.example.com", DSN: false}
	for range m.Envelope.Recipients {
		r.Outcomes = append(r.Outcomes, o)
	}
	return r
}

var (
	relayed    = mail.Outcome{Disposition: mail.Relayed, Remote: true, Verb: ".", Reply: mail.Reply{Code: 250, Text: "ok"}}
	greylisted = mail.Outcome{Disposition: mail.Deferred, Remote: true, Verb: "RCPT", Reply: mail.Reply{Code: 450, Enhanced: "4.7.1", Text: "greylisted"}}
	refused    = mail.Outcome{Disposition: mail.Bounced, Remote: true, Verb: "RCPT", Reply: mail.Reply{Code: 550, Enhanced: "5.1.1", Text: "no such user"}}
	noRoute    = mail.Outcome{Disposition: mail.Deferred, Verb: "CONNECT", Class: mail.ClassConnect, ClassRule: failure.RuleLocal, Reply: mail.Reply{Code: 451, Enhanced: "4.4.1", Text: "connection refused"}}
)

var internet = route.Hop{Connector: "internet", Name: "example.com"}

// sink keeps records.
type sink struct {
	mu   sync.Mutex
	recs []event.Record
}

func (s *sink) Write(r *event.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recs = append(s.recs, r.Keep())
}

func (s *sink) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, r := range s.recs {
		names = append(names, event.Name(r.Event))
	}
	return names
}

// start runs a scheduler over q with one connector until the test's end, or until stop.
func start(t testing.TB, q *fakeQueue, c Connector, change func(*Options)) (s *Scheduler, stop func() error) {
	opts := Options{
		Queue: q, Hostname: "mx1.example.net", Rand: func() float64 { return 0.5 },
		Connectors: func(name string) (Connector, bool) { return c, name == "internet" },
	}
	if change != nil {
		change(&opts)
	}
	s = New(opts)
	q.concurrency = s.Concurrency
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() {
			cancel()
			err = <-done
			q.mu.Lock()
			defer q.mu.Unlock()
			for _, m := range q.messages {
				if m.leased {
					t.Errorf("%s is still leased after Run", m.ID)
				}
			}
		})
		return err
	}
	t.Cleanup(func() { _ = stop() })
	return s, stop
}

var errStorage = errors.New("storage failed")
