package queue

import (
	"fmt"
	"sync"
	"time"

	"waybill/relay/event"
	"waybill/relay/reuse"
)

// sheet is what the facts of a change are written on. It is used again once the
// readers have them: the facts and lines of a message take 8 KiB.
type sheet struct {
	facts []event.Record
	lines []byte
	forms []event.Form
}

// The sizes of a sheet: a usual change has three or four facts, and lines of
// 1.4 (an acceptance) or 2.4 KiB (an attempt).
const (
	sheetFacts = 4
	sheetLines = 3 << 10
)

var sheets = sync.Pool{New: func() any {
	return &sheet{
		facts: make([]event.Record, 0, sheetFacts), lines: make([]byte, 0, sheetLines), forms: make([]event.Form, 0, sheetFacts),
	}
}}

// form is room for one more form.
func (s *sheet) form() *event.Form {
	if len(s.forms) == cap(s.forms) { // the records refer to those that they have
		s.forms = make([]event.Form, 0, 2*cap(s.forms))
	}
	s.forms = s.forms[:len(s.forms)+1]
	return &s.forms[len(s.forms)-1]
}

// state adds a fact to c. Durable facts also go into the outbox.
func (q *Queue) state(c *change, emit event.Emitter, ev event.Event) error {
	if c.sheet == nil {
		c.sheet = sheets.Get().(*sheet)
		c.facts, c.lines = c.sheet.facts, c.sheet.lines
	}
	c.facts = append(c.facts, event.Record{})
	r := &c.facts[len(c.facts)-1]
	emit.StampTo(r, ev)
	if q.opts.Confirm == nil || event.Class(ev) != event.Durable {
		return nil
	}
	lines, err := r.Encode(c.lines, c.sheet.form()) // the log writes the same
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
	for _, a := range c.arrived {
		r := &c.facts[a.fact]
		if ev, ok := r.Event.(event.MessageQueued); ok {
			ev.TAccept = event.Since(a.from, since)
			r.Amend(ev, "t_accept")
		}
	}
	q.opts.Emitter.Publish(c.facts...)
	c.tear()
}

// tear gives the sheet of c back.
func (c *change) tear() {
	s := c.sheet
	if s == nil {
		return
	}
	large := cap(c.facts) > 4*sheetFacts || cap(c.lines) > 4*sheetLines || cap(s.forms) > 4*sheetFacts
	clear(c.facts)
	clear(s.forms)
	reuse.Spoil(c.lines)
	s.facts, s.lines, s.forms = c.facts[:0], c.lines[:0], s.forms[:0]
	c.sheet, c.facts, c.lines = nil, nil, nil
	if !large { // that of a message for many
		sheets.Put(s)
	}
}
