package queue

import (
	"fmt"
	"sync"
	"time"

	"waybill/relay/event"
	"waybill/relay/reuse"
)

// The memory of a change that is used again: a usual one has three or four facts,
// and lines of 1.4 (an acceptance) or 2.4 KiB (an attempt).
const (
	changeFacts = 4
	changeLines = 3 << 10
	changeRoom  = 1 << 10
)

var changes = sync.Pool{New: func() any {
	return &change{
		facts: make([]event.Record, 0, changeFacts), lines: make([]byte, 0, changeLines), forms: make([]event.Form, 0, changeFacts),
		room: make([]byte, 0, changeRoom), again: true,
	}
}}

// newChange is an empty change, for what each message needs. Who does not hand it in
// leaves it to the collector.
func newChange() *change { return changes.Get().(*change) }

// form is room for one more form.
func (c *change) form() *event.Form {
	if len(c.forms) == cap(c.forms) { // the records refer to those that they have
		c.forms = make([]event.Form, 0, max(changeFacts, 2*cap(c.forms)))
	}
	c.forms = c.forms[:len(c.forms)+1]
	return &c.forms[len(c.forms)-1]
}

// state adds a fact to c. Durable facts also go into the outbox.
func (q *Queue) state(c *change, emit event.Emitter, ev event.Event) error {
	c.facts = append(c.facts, event.Record{})
	r := &c.facts[len(c.facts)-1]
	emit.StampTo(r, ev)
	if q.opts.Confirm == nil || event.Class(ev) != event.Durable {
		return nil
	}
	lines, err := r.Encode(c.lines, c.form()) // the log writes the same
	return c.keep(r, lines, err)
}

// stateQueued adds that a message was queued, whose content ended at from, or that had
// no session when from is zero.
func (q *Queue) stateQueued(c *change, emit event.Emitter, ev *event.MessageQueued, from time.Time) error {
	if from.IsZero() {
		return q.state(c, emit, *ev)
	}
	c.arrived = append(c.arrived, arrival{len(c.facts), from, *ev})
	c.facts = append(c.facts, event.Record{})
	r := &c.facts[len(c.facts)-1]
	emit.StampTo(r, nil)
	if q.opts.Confirm == nil {
		return nil
	}
	lines, err := r.EncodeAhead(c.lines, c.form(), &c.arrived[len(c.arrived)-1].event)
	return c.keep(r, lines, err)
}

// keep takes lines, which are those of c and that of r, for the outbox.
func (c *change) keep(r *event.Record, lines []byte, err error) error {
	if err != nil {
		return fmt.Errorf("encode fact: %w", err)
	}
	c.lines = append(lines, '\n')
	c.rows++
	r.Kept = true
	return nil
}

// publish gives the facts of c, which is durable since then, to the readers.
// Nobody uses c any more.
func (q *Queue) publish(c *change, since time.Time) {
	for i := range c.arrived {
		a := &c.arrived[i]
		a.event.TAccept = event.Since(a.from, since)
		c.facts[a.fact].Amend(a.event, "t_accept")
	}
	q.opts.Emitter.Publish(c.facts...)
	c.tear()
}

// tear gives the memory of c back, unless that is of a message for many.
func (c *change) tear() {
	large := max(cap(c.facts), cap(c.forms), cap(c.set)) > 4*changeFacts || cap(c.lines) > 4*changeLines || cap(c.room) > 4*changeRoom
	if large || !c.again {
		return
	}
	clear(c.set)
	clear(c.facts)
	clear(c.forms)
	clear(c.small)
	clear(c.apply)
	clear(c.arrived)
	reuse.Spoil(c.lines)
	reuse.Spoil(c.room)
	*c = change{
		set: c.set[:0], facts: c.facts[:0], lines: c.lines[:0], forms: c.forms[:0], small: c.small[:0], apply: c.apply[:0], arrived: c.arrived[:0],
		room: c.room[:0], again: true,
	}
	changes.Put(c)
}
