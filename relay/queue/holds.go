package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"waybill/relay/event"
	"waybill/relay/route"

	"github.com/dgraph-io/badger/v4"
)

// A hold is what an operator stopped for good or for a time. There are three
// kinds. A hold on single messages is in their records. A hold on hops stops
// whatever waits for them, now and later, without touching a record. A hold on
// senders, recipients or receive connectors, a standing hold, marks the records
// of what is there, and of what comes later as it comes.

// maxStanding bounds the standing holds: each is compared with every message
// that is accepted. By taste.
const maxStanding = 1000

// hold is an operator's hold on hops, or a standing hold. An empty connector or
// name of Hop stands for every one.
type hold struct {
	Hop       route.Hop `json:"hop"`
	Sender    string    `json:"sender,omitzero"` // these as in Filter
	Recipient string    `json:"recipient,omitzero"`
	Domain    string    `json:"domain,omitzero"`
	Receive   string    `json:"receive,omitzero"`
	By        string    `json:"by"`
	Why       string    `json:"why,omitzero"`
	Until     time.Time `json:"until,omitzero"`

	match *matcher // of a standing hold
}

// holdOf is the hold that a asks for.
func holdOf(a *Action) *hold {
	f := &a.Filter
	return &hold{
		Hop: route.Hop{Connector: f.Connector, Name: f.Hop}, Sender: f.Sender, Recipient: f.Recipient, Domain: f.Domain, Receive: f.Receive,
		By: orDefault(a.Actor, "operator"), Why: clip(a.Reason, maxReply), Until: a.Until,
	}
}

// filter selects what h is for.
func (h *hold) filter() Filter {
	return Filter{Sender: h.Sender, Recipient: h.Recipient, Domain: h.Domain, Receive: h.Receive, Hop: h.Hop.Name, Connector: h.Hop.Connector}
}

// standing reports whether h is for messages by more than their hop.
func (h *hold) standing() bool { return h.Sender+h.Recipient+h.Domain+h.Receive != "" }

func (h *hold) key() []byte {
	k := prefixHold + h.Hop.Connector + "\x00" + h.Hop.Name
	if h.standing() {
		k += "\x00" + strings.Join([]string{h.Sender, h.Recipient, h.Domain, h.Receive}, "\x00")
	}
	return []byte(k)
}

// takes reports whether m, whose hops are known, is what the standing hold is for.
func (h *hold) takes(m *stored) bool {
	v := view{accepted: m.AcceptedAt.UnixMicro()}
	for i := range m.States {
		v.groups = append(v.groups, groupView{hop: m.States[i].Hop, status: statusQueued})
	}
	return len(h.match.recipients(&v, m)) > 0
}

// lasting reports whether f selects messages by what those to come have, too.
func (f *Filter) lasting() bool {
	g := *f
	g.Sender, g.Recipient, g.Domain, g.Receive, g.Hop, g.Connector, g.All = "", "", "", "", "", "", false
	return g == Filter{} && f.Sender+f.Recipient+f.Domain+f.Receive != ""
}

// Lasting reports whether a hold with f is for messages to come too.
func (f *Filter) Lasting() bool { return f.lasting() || f.onlyHop() }

// loadHolds reads the holds at start.
func (q *Queue) loadHolds(txn *badger.Txn) error {
	opts := badger.DefaultIteratorOptions
	opts.Prefix = []byte(prefixHold)
	it := txn.NewIterator(opts)
	defer it.Close()
	var list []*hold
	for it.Rewind(); it.Valid(); it.Next() {
		h := &hold{}
		if err := it.Item().Value(func(v []byte) error { return json.Unmarshal(v, h) }); err != nil {
			return fmt.Errorf("%w: hold: %w", errRecord, err)
		}
		if !h.standing() {
			q.holds[h.Hop] = h
			continue
		}
		f := h.filter()
		h.match = f.compile()
		list = append(list, h)
	}
	q.standing.Store(&list)
	return nil
}

// holdFor returns the hold that stops hop, or nil. q.mu is held.
func (q *Queue) holdFor(hop route.Hop) *hold {
	if len(q.holds) == 0 || hop == route.Unroutable {
		return nil
	}
	for _, pattern := range [...]route.Hop{hop, {Name: hop.Name}, {Connector: hop.Connector}} {
		if h := q.holds[pattern]; h != nil {
			return h
		}
	}
	return nil
}

// staysHeld reports whether what is held in hop from must not leave it for to: a
// drain is no release.
func (q *Queue) staysHeld(from, to route.Hop) bool {
	if to.Target() == "" || to.Redirected() {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.holdFor(from) != nil
}

// rehold brings every hop in line with the holds. q.mu is held.
func (q *Queue) rehold(now time.Time) {
	for _, h := range q.sched.hops {
		was := h.held
		h.held = q.holdFor(h.hop)
		if was != nil && h.held == nil {
			h.openedAt = now.UnixMicro()
		}
		q.sched.place(h, now.UnixMicro())
	}
	q.rearm(now)
}

// setHolds commits holds that begin and end, with c's facts.
func (q *Queue) setHolds(c *change, begin, end []*hold) error {
	for _, h := range end {
		c.del = append(c.del, h.key())
	}
	for _, h := range begin {
		v, err := json.Marshal(h)
		if err != nil {
			return err
		}
		c.set = append(c.set, pair{key: string(h.key()), value: v})
	}
	c.after(func() {
		standing := slices.Clone(*q.standing.Load())
		for _, h := range slices.Concat(end, begin) { // one that begins takes the place of its like
			if h.standing() {
				standing = slices.DeleteFunc(standing, func(s *hold) bool { return string(s.key()) == string(h.key()) })
			} else {
				delete(q.holds, h.Hop)
			}
		}
		for _, h := range begin {
			if h.standing() {
				standing = append(standing, h)
			} else {
				q.holds[h.Hop] = h
			}
		}
		q.standing.Store(&standing)
		q.rehold(time.Now())
	})
	return q.submit(c)
}

// standingFor returns the standing hold that is for m, or nil.
func (q *Queue) standingFor(m *stored) *hold {
	for _, h := range *q.standing.Load() {
		if h.takes(m) {
			return h
		}
	}
	return nil
}

// holdAs marks m as held by h.
func (q *Queue) holdAs(m *stored, by, why string, until, now time.Time) {
	m.HeldBy, m.HeldWhy, m.HeldUntil = by, why, time.Time{}
	if !until.IsZero() {
		m.HeldUntil = until.UTC().Truncate(time.Microsecond)
	}
	if now.Sub(m.AcceptedAt) < q.target(m.Priority) {
		m.excused = true
	}
}

// holdOnArrival marks a new message that a standing hold is for, and returns
// the hold. The other value is for heldOnArrival.
func (q *Queue) holdOnArrival(m *stored, now time.Time) (*hold, *[]*hold) {
	seen := q.standing.Load()
	for _, h := range *seen {
		if h.takes(m) {
			q.holdAs(m, h.By, h.Why, h.Until, now)
			return h, seen
		}
	}
	return nil, seen
}

// stateHeld says that the message of emit is held by h.
func (q *Queue) stateHeld(c *change, emit event.Emitter, h *hold) error {
	f := h.filter()
	return q.state(c, emit.Source(event.SourceQueue), event.QueueHeld{Actor: h.By, Reason: h.Why, Filter: f.String(), Until: h.Until, Affected: 1})
}

// heldOnArrival notes what the record of a new message says of a hold. When the
// holds changed since it was written, the message waits for housekeeping to
// write it again. q.mu is held.
func (q *Queue) heldOnArrival(e *entry, m *stored, seen *[]*hold) {
	if m.HeldBy != "" && !m.HeldUntil.IsZero() {
		q.until[e.id] = m.HeldUntil.UnixMicro()
	}
	if q.standing.Load() == seen {
		return
	}
	if h := q.standingFor(m); (h != nil) != (m.HeldBy != "") {
		e.held = true
		q.unheld = append(q.unheld, e.id)
	}
}

// settleHolds decides again about messages that came while a hold began or ended.
func (q *Queue) settleHolds(ctx context.Context) error {
	q.mu.Lock()
	ids := q.unheld
	q.unheld = nil
	q.mu.Unlock()
	if len(ids) == 0 {
		return nil
	}
	now := time.Now()
	return q.alter(ctx, ids, func(c *change, emit event.Emitter, m *stored) (bool, error) {
		if h := q.standingFor(m); h != nil && m.HeldBy == "" {
			q.holdAs(m, h.By, h.Why, h.Until, now)
			return true, q.stateHeld(c, emit, h)
		} else if h == nil && m.HeldBy != "" {
			m.release(now)
		}
		return true, nil
	})
}

// endHolds releases what was held until now.
func (q *Queue) endHolds(ctx context.Context) error {
	const actor, why = "timer", "the hold ended"
	if err := q.settleHolds(ctx); err != nil {
		return err
	}
	now := time.Now()
	var hops, standing []*hold
	var ids []ident
	over := func(h *hold) bool { return !h.Until.IsZero() && !h.Until.After(now) }
	q.mu.Lock()
	for _, h := range q.holds {
		if over(h) {
			hops = append(hops, h)
		}
	}
	for _, h := range *q.standing.Load() {
		if over(h) {
			standing = append(standing, h)
		}
	}
	for id, until := range q.until {
		if until <= now.UnixMicro() {
			ids = append(ids, id)
		}
	}
	q.mu.Unlock()
	for _, h := range hops {
		f := h.filter()
		q.mu.Lock()
		freed := q.freedBy([]*hold{h})
		q.mu.Unlock()
		ev := event.QueueReleased{Actor: actor, Reason: why, Filter: f.String(), Affected: freed.Messages}
		if err := q.endHold(h, ev); err != nil {
			return err
		}
	}
	n, of := 0, map[*hold]int{}
	err := q.alter(ctx, ids, func(_ *change, _ event.Emitter, m *stored) (bool, error) {
		if m.HeldBy == "" || m.HeldUntil.IsZero() || m.HeldUntil.After(now) {
			return false, nil
		}
		if i := slices.IndexFunc(standing, func(h *hold) bool { return h.takes(m) }); i >= 0 {
			of[standing[i]]++
		} else {
			n++
		}
		m.release(now)
		return true, nil
	})
	for _, h := range standing {
		f := h.filter()
		ev := event.QueueReleased{Actor: actor, Reason: why, Filter: f.String(), Affected: of[h]}
		err = errors.Join(err, q.endHold(h, ev))
	}
	if n > 0 {
		c := &change{}
		ev := event.QueueReleased{Actor: actor, Reason: why, Filter: "state:held", Affected: n}
		err = errors.Join(err, q.state(c, q.opts.Emitter, ev), q.submit(c))
	}
	return err
}

func (q *Queue) endHold(h *hold, ev event.QueueReleased) error {
	c := &change{}
	if err := q.state(c, q.opts.Emitter, ev); err != nil {
		return err
	}
	return q.setHolds(c, nil, []*hold{h})
}

// countIn counts the messages in the hops that in selects, each once, and those
// alone that counts selects. It costs O(messages in those hops). q.mu is held.
func (q *Queue) countIn(in func(*hopQueue) bool, counts func(*entry) bool) (aff Affected) {
	hops := map[*hopQueue]bool{}
	for _, h := range q.sched.hops {
		if in(h) {
			hops[h] = true
		}
	}
	for h := range hops {
		for age := range h.ages { // every message of the hop is in one of them
			for g := range h.ages[age].all() {
				e := q.sched.message(g)
				if !counts(e) || q.sched.firstIn(e, hops) != h {
					continue
				}
				aff.Messages++
				aff.Bytes += e.size
				if len(aff.IDs) < maxAffected {
					aff.IDs = append(aff.IDs, e.id.QueueID())
				}
			}
		}
	}
	return aff
}

// freedBy counts the messages that go again when these holds end, as far as they
// are on hops: not those that are held themselves, or whose hop another hold is on.
// q.mu is held.
func (q *Queue) freedBy(ends []*hold) Affected {
	freed := func(h *hopQueue) bool {
		if h.held == nil {
			return false
		}
		for _, other := range q.holds {
			if !slices.Contains(ends, other) && covers(other.Hop, h.hop) {
				return false
			}
		}
		return true
	}
	return q.countIn(freed, func(e *entry) bool { return !e.held && !e.poison })
}

// covers reports whether pattern, with empty fields for any, stands for hop.
func covers(pattern, hop route.Hop) bool {
	return (pattern.Name == "" || pattern.Name == hop.Name) && (pattern.Connector == "" || pattern.Connector == hop.Connector)
}

// holdHop holds the hops that a names.
func (q *Queue) holdHop(a *Action) (Affected, error) {
	h := holdOf(a)
	q.mu.Lock()
	aff := q.countIn(func(of *hopQueue) bool { return covers(h.Hop, of.hop) }, func(*entry) bool { return true })
	q.mu.Unlock()
	if a.DryRun {
		return aff, nil
	}
	c := &change{}
	ev := event.QueueHeld{Actor: a.Actor, Reason: a.Reason, Filter: a.Filter.String(), Until: a.Until, Affected: aff.Messages}
	if err := q.state(c, q.opts.Emitter.Source(event.SourceAdmin), ev); err != nil {
		return aff, err
	}
	return aff, q.setHolds(c, []*hold{h}, nil)
}

// holdLasting begins the standing hold that a asks for. What is queued already
// is the caller's.
func (q *Queue) holdLasting(a *Action) error {
	h := holdOf(a)
	if n := len(*q.standing.Load()); n >= maxStanding {
		return fmt.Errorf("there are %d holds on senders and recipients already; release some", n)
	}
	h.match = a.Filter.compile()
	return q.setHolds(&change{}, []*hold{h}, nil)
}

// releaseHop ends the holds on the hops that a names. It reports false when
// there was none, so that held messages may be meant.
func (q *Queue) releaseHop(a *Action) (bool, Affected, error) {
	pattern := route.Hop{Connector: a.Filter.Connector, Name: a.Filter.Hop}
	var ends []*hold
	q.mu.Lock()
	for _, h := range q.holds {
		if h.Hop == pattern || covers(pattern, h.Hop) {
			ends = append(ends, h)
		}
	}
	aff := q.freedBy(ends)
	q.mu.Unlock()
	if len(ends) == 0 {
		return false, Affected{}, nil
	}
	if a.DryRun {
		return true, aff, nil
	}
	c := &change{}
	ev := event.QueueReleased{Actor: a.Actor, Reason: a.Reason, Filter: a.Filter.String(), Affected: aff.Messages}
	if err := q.state(c, q.opts.Emitter.Source(event.SourceAdmin), ev); err != nil {
		return true, aff, err
	}
	return true, aff, q.setHolds(c, nil, ends)
}

// releaseLasting ends the standing hold that has the filter of a, if there is
// one, and all holds when a is for all. It counts the messages that the holds on
// hops held; those that are held themselves are the caller's.
func (q *Queue) releaseLasting(a *Action) (Affected, error) {
	like := string(holdOf(a).key())
	var ends []*hold
	q.mu.Lock()
	for _, h := range *q.standing.Load() {
		if a.Filter.everything() || string(h.key()) == like {
			ends = append(ends, h)
		}
	}
	var freed Affected
	if a.Filter.everything() {
		ends = slices.AppendSeq(ends, maps.Values(q.holds))
		freed = q.freedBy(ends)
	}
	q.mu.Unlock()
	if len(ends) == 0 || a.DryRun {
		return freed, nil
	}
	return freed, q.setHolds(&change{}, nil, ends)
}

// Hold is a hold that is also for messages to come.
type Hold struct {
	Filter Filter
	By     string
	Why    string
	Until  time.Time // zero: until released
}

// Holds lists the holds that are also for messages to come, in the order of
// their filters' text.
func (q *Queue) Holds() []Hold {
	q.mu.Lock()
	list := slices.Concat(*q.standing.Load(), slices.Collect(maps.Values(q.holds)))
	q.mu.Unlock()
	holds := make([]Hold, 0, len(list))
	for _, h := range list {
		holds = append(holds, Hold{Filter: h.filter(), By: h.By, Why: h.Why, Until: h.Until})
	}
	slices.SortFunc(holds, func(a, b Hold) int { return strings.Compare(a.Filter.String(), b.Filter.String()) })
	return holds
}

// release lets a held message go again. The time of the hold was on purpose,
// so what was due in between is due now.
func (m *stored) release(now time.Time) {
	m.HeldBy, m.HeldWhy, m.HeldUntil = "", "", time.Time{}
	for i := range m.States {
		if s := &m.States[i]; !s.Disposition.Final() {
			s.Due = later(s.Due, now.UTC())
		}
	}
}
