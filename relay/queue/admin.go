package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/route"

	"github.com/dgraph-io/badger/v4"
)

// hold is an operator's hold on a hop. An empty connector or name stands for
// every one.
type hold struct {
	Hop   route.Hop `json:"hop"`
	By    string    `json:"by"`
	Why   string    `json:"why,omitzero"`
	Until time.Time `json:"until,omitzero"`
}

func holdKey(h route.Hop) []byte {
	return []byte(prefixHold + h.Connector + "\x00" + h.Name)
}

// loadHolds reads the holds at start.
func (q *Queue) loadHolds(txn *badger.Txn) error {
	opts := badger.DefaultIteratorOptions
	opts.Prefix = []byte(prefixHold)
	it := txn.NewIterator(opts)
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		h := &hold{}
		if err := it.Item().Value(func(v []byte) error { return json.Unmarshal(v, h) }); err != nil {
			return fmt.Errorf("%w: hold: %w", errRecord, err)
		}
		q.holds[h.Hop] = h
	}
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
	for _, h := range begin {
		v, err := json.Marshal(h)
		if err != nil {
			return err
		}
		c.set = append(c.set, pair{holdKey(h.Hop), v})
	}
	for _, h := range end {
		c.del = append(c.del, holdKey(h.Hop))
	}
	c.apply = func() {
		for _, h := range begin {
			q.holds[h.Hop] = h
		}
		for _, h := range end {
			delete(q.holds, h.Hop)
		}
		q.rehold(time.Now())
	}
	return q.submit(c)
}

// endHolds releases what was held until now.
func (q *Queue) endHolds(ctx context.Context) error {
	const actor = "timer"
	now := time.Now()
	var ended []*hold
	var ids []ident
	q.mu.Lock()
	for _, h := range q.holds {
		if !h.Until.IsZero() && !h.Until.After(now) {
			ended = append(ended, h)
		}
	}
	for id, until := range q.until {
		if !until.After(now) {
			ids = append(ids, id)
		}
	}
	q.mu.Unlock()
	for _, h := range ended {
		c := &change{}
		f := Filter{Hop: h.Hop.Name, Connector: h.Hop.Connector}
		ev := event.QueueReleased{Actor: actor, Reason: "the hold ended", Filter: f.String(), Affected: q.countIn(h.Hop)}
		if err := q.state(c, q.opts.Emitter, ev); err != nil {
			return err
		}
		if err := q.setHolds(c, nil, []*hold{h}); err != nil {
			return err
		}
	}
	if len(ids) == 0 {
		return nil
	}
	n := 0
	err := q.alter(ctx, ids, func(_ *change, _ event.Emitter, m *stored) (bool, error) {
		if m.HeldBy == "" || m.HeldUntil.IsZero() || m.HeldUntil.After(now) {
			return false, nil
		}
		m.release(now)
		n++
		return true, nil
	})
	if n > 0 {
		c := &change{}
		ev := event.QueueReleased{Actor: actor, Reason: "the hold ended", Filter: "state:held", Affected: n}
		err = errors.Join(err, q.state(c, q.opts.Emitter, ev), q.submit(c))
	}
	return err
}

// countIn counts the messages in the hops that pattern stands for.
func (q *Queue) countIn(pattern route.Hop) int {
	n := 0
	q.mu.Lock()
	for _, h := range q.sched.hops {
		if covers(pattern, h.hop) {
			n += h.groups()
		}
	}
	q.mu.Unlock()
	return n
}

// covers reports whether pattern, with empty fields for any, stands for hop.
func covers(pattern, hop route.Hop) bool {
	return (pattern.Name == "" || pattern.Name == hop.Name) && (pattern.Connector == "" || pattern.Connector == hop.Connector)
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

// Get returns a message, or ErrNotFound.
func (q *Queue) Get(id mail.QueueID) (*Message, error) {
	at, ok := parseIdent(id)
	if !ok {
		return nil, ErrNotFound
	}
	m, err := q.read(at)
	if err != nil {
		return nil, err
	}
	return q.present(at, m), nil
}

// present is m as others see it: what an operator stopped is held.
func (q *Queue) present(id ident, m *stored) *Message {
	var held map[route.Hop]bool
	q.mu.Lock()
	if e := q.messages[id]; e != nil {
		e.groups(func(g *group) {
			if e.held || g.hop.held != nil {
				if held == nil {
					held = map[route.Hop]bool{}
				}
				held[g.hop.hop] = true
			}
		})
	}
	q.mu.Unlock()
	for i := range m.States {
		if s := &m.States[i]; !s.Disposition.Final() && held[s.Hop] {
			s.Disposition = mail.Held
		}
	}
	return &m.Message
}

// Content returns the message as it leaves: Trace and content.
func (q *Queue) Content(id mail.QueueID) (io.ReadCloser, error) {
	at, ok := parseIdent(id)
	if !ok {
		return nil, ErrNotFound
	}
	for attempt := 0; ; attempt++ {
		m, err := q.read(at)
		if err != nil {
			return nil, err
		}
		r, err := q.contents.open(at, m.loc, m.Size)
		if errors.Is(err, ErrDamaged) && attempt == 0 {
			continue // it may have been copied forward in between
		}
		if err != nil {
			return nil, err
		}
		if len(m.Trace) == 0 {
			return r, nil
		}
		return &traced{io.MultiReader(strings.NewReader(string(m.Trace)), r), r}, nil
	}
}

type traced struct {
	io.Reader
	c io.Closer
}

// Close closes the content.
func (t *traced) Close() error { return t.c.Close() }

// List returns up to limit messages that f selects, in the order of their IDs,
// from the one after after.
func (q *Queue) List(ctx context.Context, f Filter, after mail.QueueID, limit int) ([]*Message, error) {
	if limit <= 0 {
		return nil, nil
	}
	var list []*Message
	err := q.scan(ctx, f, after, func(id ident, m *stored, _ []int) bool {
		list = append(list, q.present(id, m))
		return len(list) < limit
	})
	return list, err
}

// scan calls f for the messages that filter selects, with the recipients that
// it selects, in the order of their IDs, until f returns false.
func (q *Queue) scan(ctx context.Context, filter Filter, after mail.QueueID, f func(id ident, m *stored, index []int) bool) error {
	match := filter.compile()
	return q.view(func(txn *badger.Txn) error {
		opts := badger.DefaultIteratorOptions
		opts.Prefix = []byte(prefixMessage + string(filter.ID))
		opts.PrefetchValues = false // most keys are told apart in memory
		it := txn.NewIterator(opts)
		defer it.Close()
		start := opts.Prefix
		if after != "" {
			start = []byte(prefixMessage + max(string(after)+"\x00", string(filter.ID)))
		}
		now := time.Now()
		for it.Seek(start); it.Valid(); it.Next() {
			if err := ctx.Err(); err != nil {
				return err
			}
			id, ok := parseIdent(mail.QueueID(it.Item().Key()[len(prefixMessage):]))
			if !ok {
				continue
			}
			v, ok := q.look(id)
			if !ok || !match.view(&v, now) {
				continue
			}
			var m *stored
			err := it.Item().Value(func(b []byte) (err error) {
				m, err = decodeRecord(b)
				return err
			})
			if errors.Is(err, errRecord) || err == nil && m.done {
				continue
			}
			if err != nil {
				return err
			}
			if index := match.recipients(&v, m); len(index) > 0 && !f(id, m, index) {
				return nil
			}
		}
		return nil
	})
}

// Act does to the selected messages what a says, states it, and returns how
// many there were. Recipient, Domain, Hop, Connector and State select single
// recipients for remove and bounce, and whole messages for the other actions.
//
// A hold whose filter has only Hop and Connector holds the hop itself, for
// messages to come too; its release ends that hold. Without Until it lasts until
// it is released. A poisoned message is only acted on when the filter names its
// ID or the state poison; release and retry then let it go again.
func (q *Queue) Act(ctx context.Context, a Action) (Affected, error) {
	switch a.Action {
	case "hold", "release", "retry", "remove", "bounce", "reroute":
	default:
		return Affected{}, fmt.Errorf("unknown action %.40q", a.Action)
	}
	if a.Filter.empty() && !a.Filter.All {
		return Affected{}, fmt.Errorf("%s: the filter is empty; say that all messages are meant", a.Action)
	}
	if err := q.failure(); err != nil {
		return Affected{}, fmt.Errorf("%w: %w", ErrStorage, err)
	}
	aff, err := q.act(ctx, &a)
	if a.DryRun {
		return aff, err
	}
	ev := event.AdminActed{
		Actor: a.Actor, Action: a.Action, Reason: a.Reason, Filter: a.Filter.String(), Affected: aff.Messages, Result: "ok",
	}
	if err != nil {
		ev.Result = "error"
	}
	c := &change{}
	return aff, errors.Join(err, q.state(c, q.opts.Emitter.Source(event.SourceAdmin), ev), q.submit(c))
}

func (q *Queue) act(ctx context.Context, a *Action) (Affected, error) {
	if a.Filter.onlyHop() {
		switch a.Action {
		case "hold":
			return q.holdHop(ctx, a)
		case "release":
			if done, aff, err := q.releaseHop(ctx, a); done || err != nil {
				return aff, err
			}
		}
	}
	var aff Affected
	var ids []ident
	err := q.scan(ctx, a.Filter, "", func(id ident, m *stored, _ []int) bool {
		if a.skips(m) {
			return true
		}
		aff.count(m)
		ids = append(ids, id)
		return true
	})
	if err != nil || a.DryRun {
		return aff, err
	}
	aff = Affected{}
	err = q.alter(ctx, ids, func(c *change, emit event.Emitter, m *stored) (bool, error) {
		changed, err := q.actOn(c, emit, m, a)
		if changed {
			aff.count(m)
		}
		return changed, err
	})
	if a.Action == "release" && a.Filter.All {
		err = errors.Join(err, q.releaseAllHops())
	}
	c := &change{}
	emit := q.opts.Emitter.Source(event.SourceAdmin)
	switch a.Action {
	case "hold":
		ev := event.QueueHeld{Actor: a.Actor, Reason: a.Reason, Filter: a.Filter.String(), Until: a.Until, Affected: aff.Messages}
		err = errors.Join(err, q.state(c, emit, ev), q.submit(c))
	case "release":
		ev := event.QueueReleased{Actor: a.Actor, Reason: a.Reason, Filter: a.Filter.String(), Affected: aff.Messages}
		err = errors.Join(err, q.state(c, emit, ev), q.submit(c))
	}
	return aff, err
}

func (a *Affected) count(m *stored) {
	a.Messages++
	a.Bytes += m.Size
	if len(a.IDs) < 100 {
		a.IDs = append(a.IDs, m.ID)
	}
}

// skips reports whether a has nothing to do on m.
func (a *Action) skips(m *stored) bool {
	if m.Poison != "" && a.Filter.State != "poison" && len(a.Filter.ID) < 26 {
		return true
	}
	switch a.Action {
	case "hold":
		return m.HeldBy != "" && m.HeldUntil.Equal(a.Until)
	case "release":
		return m.HeldBy == "" && m.Poison == ""
	}
	return false
}

// actOn does a to one message, which was selected a moment ago.
func (q *Queue) actOn(c *change, emit event.Emitter, m *stored, a *Action) (bool, error) {
	id, _ := parseIdent(m.ID)
	v, ok := q.look(id)
	if !ok {
		return false, nil
	}
	match := a.Filter.compile()
	index := match.recipients(&v, m)
	if len(index) == 0 || a.skips(m) {
		return false, nil
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	switch a.Action {
	case "hold":
		m.HeldBy, m.HeldWhy, m.HeldUntil = orDefault(a.Actor, "operator"), clip(a.Reason, maxReply), a.Until.UTC().Truncate(time.Microsecond)
		if a.Until.IsZero() {
			m.HeldUntil = time.Time{}
		}
		if now.Sub(m.AcceptedAt) < q.target(m.Priority) {
			m.excused = true
		}
	case "release":
		m.Poison, m.panics = "", 0
		m.release(now)
	case "retry":
		if m.Poison != "" {
			m.Poison, m.panics = "", 0
		}
		for _, i := range index {
			m.States[i].Due = now
		}
	case "reroute":
		leased := q.leasedHops(m.ID)
		index = slices.DeleteFunc(index, func(i int) bool { return slices.Contains(leased, m.States[i].Hop) })
		return true, q.rerouteInto(c, emit, m, index, now)
	case "remove":
		return true, q.removeRecipients(c, emit, m, index, a, now)
	case "bounce":
		return true, q.bounceRecipients(c, emit, m, index, a, now)
	}
	return true, nil
}

// wait ends for recipients that an operator makes final.
func (s *State) endWait(now time.Time) {
	if wait := now.Sub(s.since); !s.since.IsZero() && wait > 0 {
		s.queued += wait
		if onPurpose := s.Due.Sub(s.since); onPurpose > 0 {
			s.backoff += min(onPurpose, wait)
		}
	}
}

func (q *Queue) removeRecipients(c *change, emit event.Emitter, m *stored, index []int, a *Action, now time.Time) error {
	for _, i := range index {
		s := &m.States[i]
		s.endWait(now)
		s.Disposition = mail.Dropped
		ev := event.RecipientDropped{Final: finalOf(m, i, hopOf(s.Hop), event.Answer{}, now), Actor: a.Actor, Reason: a.Reason}
		if err := q.state(c, emit.Source(event.SourceAdmin), ev); err != nil {
			return err
		}
	}
	if m.open() {
		return nil
	}
	return q.state(c, emit, retired(m, now))
}

func (q *Queue) bounceRecipients(c *change, emit event.Emitter, m *stored, index []int, a *Action, now time.Time) error {
	outcomes := make([]mail.Outcome, len(index))
	for k, i := range index {
		outcomes[k] = mail.Outcome{
			Recipient: m.Envelope.Recipients[i].Address, Disposition: mail.Bounced, Class: mail.ClassPolicy, ClassRule: "operator",
			Reply: mail.Reply{Code: 554, Enhanced: "5.7.1", Text: strings.TrimSpace("Returned by the administrator. " + clip(a.Reason, 256))},
		}
		m.States[i].endWait(now)
		m.States[i].Last, m.States[i].LastClass, m.States[i].LastAt = outcomes[k].Reply, mail.ClassPolicy, now
		if err := q.stateFinal(c, emit.Source(event.SourceAdmin), m, i, &outcomes[k], hopOf(m.States[i].Hop), now); err != nil {
			return err
		}
	}
	if q.opts.Reports != nil {
		reports := q.opts.Reports(&m.clone().Message, index, outcomes)
		if err := q.stateReports(c, emit, m, reports, now); err != nil {
			return err
		}
	}
	if m.open() {
		return nil
	}
	return q.state(c, emit, retired(m, now))
}

// holdHop holds the hops that a names.
func (q *Queue) holdHop(_ context.Context, a *Action) (Affected, error) {
	pattern := route.Hop{Connector: a.Filter.Connector, Name: a.Filter.Hop}
	aff := Affected{Messages: q.countIn(pattern)}
	if a.DryRun {
		return aff, nil
	}
	h := &hold{Hop: pattern, By: orDefault(a.Actor, "operator"), Why: clip(a.Reason, maxReply), Until: a.Until}
	c := &change{}
	ev := event.QueueHeld{Actor: a.Actor, Reason: a.Reason, Filter: a.Filter.String(), Until: a.Until, Affected: aff.Messages}
	if err := q.state(c, q.opts.Emitter.Source(event.SourceAdmin), ev); err != nil {
		return aff, err
	}
	return aff, q.setHolds(c, []*hold{h}, nil)
}

// releaseHop ends the holds on the hops that a names. It reports false when
// there was none, so that held messages may be meant.
func (q *Queue) releaseHop(_ context.Context, a *Action) (bool, Affected, error) {
	pattern := route.Hop{Connector: a.Filter.Connector, Name: a.Filter.Hop}
	var ends []*hold
	q.mu.Lock()
	for _, h := range q.holds {
		if h.Hop == pattern || covers(pattern, h.Hop) {
			ends = append(ends, h)
		}
	}
	q.mu.Unlock()
	if len(ends) == 0 {
		return false, Affected{}, nil
	}
	aff := Affected{Messages: q.countIn(pattern)}
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

func (q *Queue) releaseAllHops() error {
	var ends []*hold
	q.mu.Lock()
	for _, h := range q.holds {
		ends = append(ends, h)
	}
	q.mu.Unlock()
	if len(ends) == 0 {
		return nil
	}
	return q.setHolds(&change{}, nil, ends)
}
