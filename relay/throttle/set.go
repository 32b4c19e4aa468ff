package throttle

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"

	"golang.org/x/time/rate"
)

// Set is the rules in use, with what was used. Its methods may be called at
// once; a nil Set has no rules.
type Set struct {
	mu         sync.Mutex // one change at a time
	fixed      []Rule
	configured []Rule
	lockout    *Lockout // to be listed and released with the others; may be nil
	tables     uint64   // how many there ever were
	now        atomic.Pointer[plan]
}

// limit is a rule in use.
type limit struct {
	Rule
	table *table
	full  time.Duration // after which a bucket that nobody used is full again
}

// plan is all rules, by what they count. Those of one kind are in the order in
// which their tables are locked.
type plan struct {
	all  []*limit
	what [whats][]*limit
}

// NewSet returns a Set with the rules of the configuration.
func NewSet(rules ...Rule) (*Set, error) {
	s := &Set{}
	return s, s.Replace(rules)
}

// Replace takes other rules of the configuration into use. A rule that has the
// name of an old one, and counts the same by the same, goes on with what was
// used. After an error the rules are as they were.
func (s *Set) Replace(rules []Rule) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.plan(slices.Concat(s.fixed, rules)); err != nil {
		return err
	}
	s.configured = slices.Clone(rules)
	return nil
}

// Fix takes rules into use that are not the configuration's to replace: those of
// the receive connectors' own limits.
func (s *Set) Fix(rules []Rule) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.plan(slices.Concat(rules, s.configured)); err != nil {
		return err
	}
	s.fixed = slices.Clone(rules)
	return nil
}

// Include lists and releases with the others whom l holds off.
func (s *Set) Include(l *Lockout) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lockout = l
}

// plan puts all rules into use. s.mu is held.
func (s *Set) plan(rules []Rule) error {
	old := map[string]*limit{}
	if p := s.now.Load(); p != nil {
		for _, l := range p.all {
			old[l.Name] = l
		}
	}
	next := &plan{}
	seen := map[string]bool{}
	for _, r := range rules {
		if err := r.check(); err != nil {
			return err
		}
		if seen[r.Name] {
			return fmt.Errorf("two throttles are named %s", r.Name)
		}
		seen[r.Name] = true
		l := &limit{Rule: r}
		if was := old[r.Name]; was != nil && was.By == r.By && was.What == r.What && was.atOnce() == r.atOnce() &&
			was.IPv4Bits == r.IPv4Bits && was.IPv6Bits == r.IPv6Bits {
			l.table = was.table
		} else {
			s.tables++
			l.table = newTable(s.tables)
		}
		if !r.atOnce() {
			// At least a minute, so that the listing can tell who was stopped lately.
			l.full = max(time.Minute, time.Duration(math.Min(float64(r.Burst)/r.perSecond(), 1e8)*float64(time.Second)))
		}
		next.all = append(next.all, l)
		next.what[r.What] = append(next.what[r.What], l)
	}
	for _, list := range next.what {
		slices.SortFunc(list, func(a, b *limit) int { return int(a.table.id) - int(b.table.id) }) //nolint:gosec // counts of tables
	}
	s.now.Store(next)
	return nil
}

// Any reports whether a rule counts what.
func (s *Set) Any(what What) bool { return len(s.limits(what)) > 0 }

func (s *Set) limits(what What) []*limit {
	if s == nil {
		return nil
	}
	if p := s.now.Load(); p != nil {
		return p.what[what]
	}
	return nil
}

// Answer is what the rules say to one request. The zero value says go on.
type Answer struct {
	Rule   *Rule         // that objected, or asks to wait; nil when none did
	Action Action        // of it; Defer for a Tarpit that would take too long
	Wait   time.Duration // before going on: a Tarpit
	Retry  time.Duration // after which the rule would not object; zero when nobody knows
}

// Refused reports whether the request must not go on.
func (a Answer) Refused() bool { return a.Rule != nil && a.Wait == 0 }

// taking is one request and the buckets that it touches.
type taking struct {
	limits  [8]*limit // as many as there are by far most often
	buckets [8]*bucket
	more    []*limit
	moreB   []*bucket
}

func (t *taking) add(l *limit, b *bucket, n int) {
	if n < len(t.limits) {
		t.limits[n], t.buckets[n] = l, b
		return
	}
	t.more, t.moreB = append(t.more, l), append(t.moreB, b)
}

func (t *taking) at(i int) (*limit, *bucket) {
	if i < len(t.limits) {
		return t.limits[i], t.buckets[i]
	}
	i -= len(t.limits)
	return t.more[i], t.moreB[i]
}

// Take asks all rules about n more of what for c. When none refuses it takes
// them from all; otherwise from none. With n zero it asks whether there is
// anything left, for what is charged when it is known: see [Set.Charge]. What
// delayed or refused is stated with emit.
func (s *Set) Take(now time.Time, what What, n int64, c Client, emit event.Emitter) Answer {
	a, _ := s.ask(now, what, n, c)
	a.state(c, emit)
	return a
}

// Connect is [Set.Take] for one connection. What it let in must be given back
// with leave, which is nil when it let nothing in.
func (s *Set) Connect(now time.Time, c Client, emit event.Emitter) (a Answer, leave func()) {
	a, leave = s.ask(now, Connects, 1, c)
	a.state(c, emit)
	return a, leave
}

func (a Answer) state(c Client, emit event.Emitter) {
	if a.Rule == nil {
		return
	}
	action := a.Action
	if a.Wait > 0 {
		action = Tarpit
	}
	emit.Emit(event.ThrottleEngaged{
		Connector: c.Connector, ClientIP: c.IP, AuthUser: c.User, Scope: a.Rule.By.scope(), Limit: a.Rule.Name, Action: action.String(),
	})
}

func (s *Set) ask(now time.Time, what What, n int64, c Client) (a Answer, leave func()) {
	limits := s.limits(what)
	if len(limits) == 0 {
		return Answer{}, func() {}
	}
	var t taking
	count := 0
	for _, l := range limits {
		k, ok := l.keyOf(&c)
		if !ok {
			continue
		}
		l.table.mu.Lock()
		t.add(l, l.table.get(now, k, l.full), count)
		count++
	}
	defer func() {
		for i := range count {
			l, _ := t.at(i)
			l.table.mu.Unlock()
		}
	}()
	for i := range count {
		if a = worse(a, t.look(i, now, n)); a.Refused() {
			break
		}
	}
	if a.Refused() {
		t.refused(a, now, count)
		return a, nil
	}
	var open []func()
	for i := range count {
		l, b := t.at(i)
		if a.Rule == &l.Rule {
			b.hits++
			b.hit = now
		}
		if l.atOnce() {
			b.open++
			open = append(open, func() { l.table.leave(b) })
			continue
		}
		spend(b.rate, now, n)
	}
	return a, func() {
		for _, f := range open {
			f()
		}
	}
}

// look is what one rule says.
func (t *taking) look(i int, now time.Time, n int64) Answer {
	l, b := t.at(i)
	if l.atOnce() {
		if b.open+n > l.Amount {
			return Answer{Rule: &l.Rule, Action: l.Action}
		}
		return Answer{}
	}
	b.tune(now, l)
	short := float64(max(n, 1)) - b.rate.TokensAt(now)
	if short <= 0 {
		return Answer{}
	}
	wait := max(time.Duration(math.Min(short/l.perSecond(), 1e8)*float64(time.Second)), time.Millisecond)
	switch {
	case l.Action == Tarpit && wait <= maxWait:
		return Answer{Rule: &l.Rule, Action: Tarpit, Wait: wait, Retry: wait}
	case l.Action == Tarpit:
		return Answer{Rule: &l.Rule, Action: Defer, Retry: wait}
	}
	return Answer{Rule: &l.Rule, Action: l.Action, Retry: wait}
}

// refused counts it, and forgets what was made for the request alone.
func (t *taking) refused(a Answer, now time.Time, count int) {
	for i := range count {
		l, b := t.at(i)
		if a.Rule == &l.Rule {
			b.hits++
			b.hit = now
		}
		if l.atOnce() && b.open == 0 && b.hits == 0 {
			l.table.forget(b)
		}
	}
}

// worse is the stricter of two answers: a refusal, or the longer wait.
func worse(a, b Answer) Answer {
	switch {
	case b.Refused() || a.Rule == nil, b.Rule != nil && b.Wait > a.Wait:
		return b
	}
	return a
}

// tune gives the bucket the rule's rate, which may have changed.
func (b *bucket) tune(now time.Time, l *limit) {
	per, burst := rate.Limit(l.perSecond()), int(min(l.Burst, math.MaxInt32))
	switch {
	case b.rate == nil:
		b.rate = rate.NewLimiter(per, burst)
	case b.rate.Limit() != per || b.rate.Burst() != burst:
		b.rate.SetLimitAt(now, per)
		b.rate.SetBurstAt(now, burst)
	}
}

// spend takes n, in pieces that the limiter takes, even when they are not there:
// what was used before it was known is a debt.
func spend(r *rate.Limiter, now time.Time, n int64) {
	for piece := int64(r.Burst()); n > 0; n -= piece {
		piece = min(piece, n)
		r.ReserveN(now, int(piece))
	}
}

// leave ends what was counted as being there. Who was refused meanwhile is
// remembered for the listing.
func (t *table) leave(b *bucket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b.open--; b.open <= 0 && b.hits == 0 && t.keys[b.key] == b {
		t.forget(b)
	}
}

// Charge takes n of what for c, whether they are there or not: a content is
// known when it has come. Who owes is refused by the next [Set.Take].
func (s *Set) Charge(now time.Time, what What, n int64, c Client) {
	if n <= 0 {
		return
	}
	for _, l := range s.limits(what) {
		k, ok := l.keyOf(&c)
		if !ok || l.atOnce() {
			continue
		}
		l.table.mu.Lock()
		b := l.table.get(now, k, l.full)
		b.tune(now, l)
		// A debt has an end: what would take more than a day to pay is a day.
		most := int64(math.Min(l.perSecond()*86400, math.MaxInt32)) + l.Burst
		spend(b.rate, now, min(n, most))
		l.table.mu.Unlock()
	}
}

// Reply is what a refused client is told: what was too much, and when to try
// again, as far as that is known.
func (a Answer) Reply() *mail.ReplyError {
	r := a.Rule
	text := "too many " + r.What.String() + " " + map[By]string{
		BySource: "from your address", ByNetwork: "from your network", ByUser: "from this user", BySender: "from this sender", ByConnector: "here now",
	}[r.By]
	switch retry := a.Retry.Round(time.Second); {
	case a.Action == Reject:
	case a.Retry <= 0:
		text += ", try again later"
	default:
		text += ", try again in " + max(retry, time.Second).String()
	}
	code, enhanced := 450, "4.7.1"
	switch {
	case a.Action == Reject && r.What == Connects:
		code, enhanced = 554, "5.7.1" // RFC 5321 section 3.1
	case a.Action == Reject:
		code, enhanced = 550, "5.7.1"
	case a.Action == Close || r.What == Connects:
		code, enhanced = 421, "4.7.0" // RFC 5321 section 3.8
	}
	e := mail.Refuse(code, enhanced, "throttle", text)
	e.Err = fmt.Errorf("throttle %s: %d %s in %s by %s", r.Name, r.Amount, r.What, r.Per, r.By)
	return e
}
