package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/route"
)

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
	if e := q.sched.find(id); e != nil {
		for _, h := range q.sched.groups(e) {
			if e.held || h.held != nil {
				if held == nil {
					held = map[route.Hop]bool{}
				}
				held[h.hop] = true
			}
		}
	}
	q.mu.Unlock()
	for i := range m.States {
		if s := &m.States[i]; !s.Disposition.Final() && held[s.Hop] {
			s.Disposition = mail.Held
		}
	}
	return &m.Message
}

// Content returns the message as it leaves, or left: Trace and content.
func (q *Queue) Content(id mail.QueueID) (io.ReadCloser, error) {
	at, ok := parseIdent(id)
	if !ok {
		return nil, ErrNotFound
	}
	m, r, err := q.openAny(at)
	if err != nil || len(m.Trace) == 0 {
		return r, err
	}
	return &traced{io.MultiReader(strings.NewReader(string(m.Trace)), r), r}, nil
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
	prefix, start := keysFrom(filter, after)
	now := time.Now()
	return q.records(ctx, prefix, start, func(id ident, read func() (*stored, error)) (bool, error) {
		v, ok := q.look(id)
		if !ok || !match.view(&v, now) {
			return true, nil
		}
		m, err := read()
		if errors.Is(err, errRecord) || err == nil && m.done {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		index := match.recipients(&v, m)
		return len(index) == 0 || f(id, m, index), nil
	})
}

// keysFrom is where the keys of the messages that filter selects are, and the
// first of them behind after.
func keysFrom(filter Filter, after mail.QueueID) (prefix, start []byte) {
	prefix = []byte(prefixMessage + string(filter.ID))
	if after == "" {
		return prefix, prefix
	}
	return prefix, []byte(prefixMessage + max(string(after)+"\x00", string(filter.ID)))
}

// actions are what [Queue.Act] knows.
var actions = []string{"hold", "release", "retry", "reroute", "redirect", "remove", "bounce"}

// Actions lists the words of [Action.Action].
func Actions() []string { return slices.Clone(actions) }

// ErrRefused is wrapped when an action is refused as it was asked for.
var ErrRefused = errors.New("refused")

// Act does to the selected messages what a says, states it, and returns how
// many there were. Recipient, Domain, Hop, Connector and State select single
// recipients for remove, bounce and redirect, and whole messages for the others.
//
// A hold whose filter has only Hop and Connector holds the hop itself, and one
// that has Sender, Recipient, Domain or Receive, but neither ID nor State nor
// OlderThan, stands: both are for messages to come too, until they are released
// by the same filter, or by one for all. Without Until a hold lasts until it is
// released. A poisoned message is only acted on when the filter names its ID or
// the state poison; release and retry then let it go again. What is being
// attempted is not taken from its attempt: reroute and redirect leave it out.
func (q *Queue) Act(ctx context.Context, a Action) (Affected, error) {
	if !slices.Contains(actions, a.Action) {
		return Affected{}, fmt.Errorf("%w: unknown action %.40q", ErrRefused, a.Action)
	}
	if a.Filter.empty() && !a.Filter.All {
		return Affected{}, fmt.Errorf("%w: %s: the filter is empty; say that all messages are meant", ErrRefused, a.Action)
	}
	if a.Action == "redirect" && a.To == "" {
		return Affected{}, fmt.Errorf("%w: redirect: no host is named", ErrRefused)
	}
	if err := q.failure(); err != nil {
		return Affected{}, fmt.Errorf("%w: %w", ErrStorage, err)
	}
	aff, err := q.act(ctx, &a)
	if a.DryRun || errors.Is(err, ErrRefused) {
		return aff, err
	}
	return aff, errors.Join(err, q.Acted(&a, aff.Messages, err))
}

// Acted states that a was done to so many messages, or that it failed. When it was
// for one message and nothing else would tell of it, the fact is in that message's
// history.
func (q *Queue) Acted(a *Action, messages int, err error) error {
	ev := event.AdminActed{
		Actor: a.Actor, Action: a.Action, Reason: a.Reason, Filter: a.Filter.String(), Target: a.To, Affected: messages, Result: "ok", ClientIP: a.Client,
	}
	if err != nil {
		ev.Result = "error"
	}
	emit := q.opts.Emitter.Source(event.SourceAdmin)
	quiet := a.Action == "hold" || a.Action == "release" || a.Action == "retry"
	if quiet && messages > 0 && mail.ValidID(string(a.Filter.ID)) { // it may be a beginning too
		emit = emit.Message(a.Filter.ID, "")
	}
	c := &change{}
	return errors.Join(q.state(c, emit, ev), q.submit(c))
}

func (q *Queue) act(ctx context.Context, a *Action) (Affected, error) {
	lasting := a.Filter.lasting()
	var freed Affected
	switch {
	case a.Filter.onlyHop() && a.Action == "hold":
		return q.holdHop(a)
	case a.Filter.onlyHop() && a.Action == "release":
		if done, aff, err := q.releaseHop(a); done || err != nil {
			return aff, err
		}
	case lasting && a.Action == "hold" && !a.DryRun:
		if err := q.holdLasting(a); err != nil {
			return Affected{}, err
		}
	case (lasting || a.Filter.everything()) && a.Action == "release":
		var err error
		if freed, err = q.releaseLasting(a); err != nil {
			return Affected{}, err
		}
	}
	aff, ids, err := q.choose(ctx, a)
	aff.add(freed)
	if err != nil || a.DryRun {
		return aff, err
	}
	err = q.alter(ctx, ids, func(c *change, emit event.Emitter, m *stored) (bool, error) {
		changed, err := q.actOn(c, emit, m, a)
		if changed {
			aff.count(m)
		}
		return changed, err
	})
	c := &change{}
	emit := q.opts.Emitter.Source(event.SourceAdmin)
	switch a.Action {
	case "hold":
		ev := event.QueueHeld{Actor: a.Actor, Reason: a.Reason, Filter: a.Filter.String(), Until: a.Until, Affected: aff.Messages}
		err = errors.Join(err, q.settleHolds(ctx), q.state(c, emit, ev), q.submit(c))
	case "release":
		ev := event.QueueReleased{Actor: a.Actor, Reason: a.Reason, Filter: a.Filter.String(), Affected: aff.Messages}
		err = errors.Join(err, q.settleHolds(ctx), q.state(c, emit, ev), q.submit(c))
	}
	return aff, err
}

// choose finds the messages that a has something to do on. It counts them for a
// dry run, and otherwise those alone that it has dealt with already.
func (q *Queue) choose(ctx context.Context, a *Action) (aff Affected, ids []ident, err error) {
	nowhere := 0
	called := map[route.Hop]bool{}
	err = q.scan(ctx, a.Filter, "", func(id ident, m *stored, index []int) bool {
		if a.skips(m, index) {
			return true
		}
		if a.Action == "retry" && !a.DryRun && q.callNow(id, m, index, called) {
			aff.count(m)
			return true
		}
		if a.Action == "redirect" && a.Via == "" && slices.ContainsFunc(index, func(i int) bool { return m.States[i].Hop.Connector == "" }) {
			nowhere++
		}
		if a.DryRun {
			aff.count(m)
		}
		ids = append(ids, id)
		return true
	})
	if err == nil && nowhere > 0 {
		err = fmt.Errorf("%w: redirect: no send connector takes %d of the messages; say which one is to carry them", ErrRefused, nowhere)
	}
	return aff, ids, err
}

// callNow lets recipients index of m be attempted now, if their record says already
// that they are due: they wait for a hop that cannot be reached, which is seen to
// at once then, or they were spread out after the start. So when a hop comes
// back, what waited for it goes without a record of each being written before.
// Each hop is seen to once, and is in called then.
func (q *Queue) callNow(id ident, m *stored, index []int, called map[route.Hop]bool) bool {
	at := time.Now()
	now := at.UnixMicro()
	if m.Poison != "" || slices.ContainsFunc(index, func(i int) bool { return m.States[i].Due.After(at) }) {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.sched.find(id)
	if e == nil {
		return false
	}
	wanted := func(h *hopQueue) bool {
		return h.hop != route.Unroutable && slices.ContainsFunc(index, func(i int) bool { return m.States[i].Hop == h.hop })
	}
	for g, h := range q.sched.groups(e) {
		if wanted(h) && g.due > now && !g.spread {
			return false // it was put off since, or its record has changed
		}
	}
	for g, h := range q.sched.groups(e) {
		if !wanted(h) {
			continue
		}
		if g.spread && g.due > now {
			q.sched.set(e, h.hop, when{now, g.latest.micro()}, g.tried, now)
		}
		if !called[h.hop] {
			called[h.hop] = true
			q.sched.call(h, now)
		}
	}
	q.rearm(at)
	return true
}

// maxAffected is how many IDs Affected has at most.
const maxAffected = 100

func (a *Affected) count(m *stored) {
	a.Messages++
	a.Bytes += m.Size
	if len(a.IDs) < maxAffected {
		a.IDs = append(a.IDs, m.ID)
	}
}

// add counts what b counts, too.
func (a *Affected) add(b Affected) {
	a.Messages += b.Messages
	a.Bytes += b.Bytes
	a.IDs = append(a.IDs, b.IDs[:min(len(b.IDs), maxAffected-len(a.IDs))]...)
}

// skips reports whether a has nothing to do on recipients index of m.
func (a *Action) skips(m *stored, index []int) bool {
	if m.Poison != "" && a.Filter.State != "poison" && len(a.Filter.ID) < 26 {
		return true
	}
	switch a.Action {
	case "hold":
		return m.HeldBy != "" && m.HeldUntil.Equal(a.Until.Truncate(time.Microsecond))
	case "release":
		return m.HeldBy == "" && m.Poison == ""
	case "redirect":
		return !slices.ContainsFunc(index, func(i int) bool { return m.States[i].Hop != a.hop(m.States[i].Hop) })
	}
	return false
}

// hop is where a redirect sends what is in hop.
func (a *Action) hop(hop route.Hop) route.Hop {
	return route.RedirectTo(orDefault(a.Via, hop.Connector), a.To)
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
	if len(index) == 0 || a.skips(m, index) {
		return false, nil
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	switch a.Action {
	case "hold":
		q.holdAs(m, orDefault(a.Actor, "operator"), clip(a.Reason, maxReply), a.Until, now)
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
		index = q.notLeased(m, index)
		for _, i := range index { // a redirect ends
			if s := &m.States[i]; s.Hop.Redirected() {
				s.Hop = route.Hop{Connector: s.Hop.Connector}
			}
		}
		return true, q.rerouteInto(c, emit, m, index, now)
	case "redirect":
		index = q.notLeased(m, index)
		index = slices.DeleteFunc(index, func(i int) bool { return m.States[i].Hop == a.hop(m.States[i].Hop) }) // is there already
		return len(index) > 0, q.redirectRecipients(c, emit, m, index, a, now)
	case "remove":
		return true, q.removeRecipients(c, emit, m, index, a, now)
	case "bounce":
		return true, q.bounceRecipients(c, emit, m, index, a, now)
	}
	return true, nil
}

// notLeased leaves out the recipients that are being attempted.
func (q *Queue) notLeased(m *stored, index []int) []int {
	leased := q.leasedHops(m.ID)
	return slices.DeleteFunc(index, func(i int) bool { return slices.Contains(leased, m.States[i].Hop) })
}

// redirectRecipients sends recipients to one host from now on. They stay with
// it over reloads and restarts, until a reroute.
func (q *Queue) redirectRecipients(c *change, emit event.Emitter, m *stored, index []int, a *Action, now time.Time) error {
	ds := make([]route.Decision, len(index))
	recipients := make([]event.Recipient, len(index))
	for k, i := range index {
		s := &m.States[i]
		recipients[k] = recipientOf(&m.Message, i)
		ds[k] = route.Decision{Hop: a.hop(s.Hop), Why: strings.TrimSuffix("redirected to "+a.To+" by "+orDefault(a.Actor, "operator")+": "+clip(a.Reason, maxReply), ": ")}
		s.Hop, s.Due = ds[k].Hop, now
	}
	return q.stateRoutes(c, emit, infoOf(&m.Message), recipients, ds)
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
	info := infoOf(&m.Message)
	for _, i := range index {
		s := &m.States[i]
		s.endWait(now)
		s.Disposition = mail.Dropped
		ev := event.RecipientDropped{Final: finalOf(m, i, event.Final{Info: info, Hop: hopOf(s.Hop)}, now), Actor: a.Actor, Reason: a.Reason}
		if err := q.state(c, emit.Source(event.SourceAdmin), ev); err != nil {
			return err
		}
	}
	if a.Report {
		if err := q.report(c, emit, m, index, operatorOutcomes(m, index, "Removed by the administrator. "+clip(a.Reason, 256)), now); err != nil {
			return err
		}
	}
	if m.open() {
		return nil
	}
	return q.state(c, emit, retired(m, info, now))
}

// operatorOutcomes are what recipients are told that an operator gave up.
func operatorOutcomes(m *stored, index []int, text string) []mail.Outcome {
	outcomes := make([]mail.Outcome, len(index))
	for k, i := range index {
		outcomes[k] = mail.Outcome{
			Recipient: m.Envelope.Recipients[i].Address, Disposition: mail.Bounced, Class: mail.ClassPolicy, ClassRule: "operator",
			Permanence: mail.Permanent, Explanation: "an operator gave it up; nothing to do",
			Reply: mail.Reply{Code: 554, Enhanced: "5.7.1", Text: strings.TrimSpace(text)},
		}
	}
	return outcomes
}

// report queues the DSN about what an operator did.
func (q *Queue) report(c *change, emit event.Emitter, m *stored, index []int, outcomes []mail.Outcome, now time.Time) error {
	if q.opts.Reports == nil {
		return nil
	}
	return q.stateReports(c, emit, m, q.opts.Reports(&m.clone().Message, index, outcomes), now)
}

func (q *Queue) bounceRecipients(c *change, emit event.Emitter, m *stored, index []int, a *Action, now time.Time) error {
	outcomes := operatorOutcomes(m, index, "Returned by the administrator. "+clip(a.Reason, 256))
	info := infoOf(&m.Message)
	for k, i := range index {
		m.States[i].endWait(now)
		m.States[i].note(&outcomes[k])
		hop := hopOf(m.States[i].Hop)
		if err := q.stateLate(c, emit.Source(event.SourceAdmin), m, i, hop, now); err != nil {
			return err
		}
		m.States[i].Disposition = mail.Bounced
		ev := event.RecipientBounced{Final: finalOf(m, i, event.Final{Info: info, Hop: hop, Answer: answerOf(&outcomes[k])}, now), Actor: a.Actor, Reason: clip(a.Reason, 256)} // each recipient has it
		if err := q.state(c, emit.Source(event.SourceAdmin), ev); err != nil {
			return err
		}
	}
	if err := q.report(c, emit, m, index, outcomes, now); err != nil {
		return err
	}
	if m.open() {
		return nil
	}
	return q.state(c, emit, retired(m, info, now))
}
