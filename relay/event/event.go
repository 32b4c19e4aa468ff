// Package event is the vocabulary of facts that the relay publishes.
//
// The relay states each fact once, at the moment it becomes true, by handing
// an [Event] to an [Emitter]. Protocol log, Prometheus metrics and the
// message-tracking store are readers of that one stream. Nothing in the relay
// calls them, and they never call the relay.
//
// # Loss
//
// A fact has a [Durability]. Durable facts (a message was queued, an attempt
// finished, a recipient got its final disposition) are committed by the queue,
// with what they tell of, before they are emitted, and are emitted again after a
// crash until the tracking store has them on disk: readers may see such a fact
// twice with the same ID, never not at all. Session facts wait for room in a reader's
// buffer. Protocol facts may be dropped by a reader, which counts the drops; of
// commands that went well, log and tracking have a sample when there are very many
// ([Sample]).
//
// # Adding a fact
//
// Add a struct to facts.go, named for what happened, in the past tense, and its
// line in the table of codec.go. The linter (gochecksumtype) then points at
// every reader that has not yet decided what the new fact means to it. Field
// tags are the names in the log, in the tracking API and in the reference.
package event

import (
	"sync"
	"time"

	"waybill/relay/mail"
)

// Event is one fact. Its concrete types are the structs in this package.
//
//sumtype:decl
type Event interface{ fact() }

// Schema is the version of the record that this package writes.
const Schema = 1

// Source says which part of the relay stated a fact.
type Source string

// The sources.
const (
	SourceSMTPIn  Source = "smtp_in"
	SourceSMTPOut Source = "smtp_out"
	SourceQueue   Source = "queue"
	SourceRouting Source = "routing"
	SourceDSN     Source = "dsn"
	SourcePolicy  Source = "policy"
	SourceAdmin   Source = "admin"
	SourceBoot    Source = "boot"
	SourceImport  Source = "import"
	SourcePickup  Source = "pickup"
)

// Record is an Event with the context in which it happened.
type Record struct {
	ID        string       `json:"event_id"`
	Time      time.Time    `json:"ts"` // UTC, to the microsecond
	Node      string       `json:"node,omitzero"`
	Source    Source       `json:"source,omitzero"`
	ConfigRev string       `json:"config_rev,omitzero"`
	Session   string       `json:"session_id,omitzero"`  // the SMTP session, or empty
	Message   mail.QueueID `json:"queue_id,omitzero"`    // the message, or empty
	UID       string       `json:"message_uid,omitzero"` // its identity over splits and moves
	Event     Event        `json:"-"`

	// Kept says that the queue holds the record in its outbox until the tracking
	// store has it in a stored block, so that nobody else need write it first.
	Kept bool `json:"-"`

	// Minor says that there are very many such facts at the moment: metrics count
	// this one, log and tracking leave it out ([Sample]).
	Minor bool `json:"-"`

	Form *Form `json:"-"` // what Encode made; nil when it has not
}

// Keep is r as a sink may keep it.
func (r *Record) Keep() Record {
	kept := *r
	kept.Form = nil
	return kept
}

// A Sink reads the stream. Write does no I/O of its own beyond a buffer; it may
// wait for room there, as the package comment says. It must keep neither r nor
// its Form, whose room is used again ([Record.Keep]); the event stays as it is.
// Sinks are written to by many goroutines at once.
type Sink interface{ Write(r *Record) }

// A ChangeSink is a Sink that takes the facts of one change of the queue at
// once, so that whoever asks it sees all of them or none. WriteChange keeps no
// more of recs than Write does.
type ChangeSink interface {
	Sink
	WriteChange(recs []Record)
}

// Emitter stamps events with their context and writes them to its sinks.
// The zero Emitter discards everything. An Emitter is a value: the methods that
// add context return a changed copy.
type Emitter struct {
	sink Sink
	rec  Record
}

// NewEmitter returns an Emitter for facts of node that writes to each of the
// sinks in order.
func NewEmitter(node string, sinks ...Sink) Emitter {
	return Emitter{sink: fanout(sinks), rec: Record{Node: node}}
}

// Source returns an Emitter for facts stated by s.
func (e Emitter) Source(s Source) Emitter { e.rec.Source = s; return e }

// Config returns an Emitter for facts under configuration revision rev.
func (e Emitter) Config(rev string) Emitter { e.rec.ConfigRev = rev; return e }

// Session returns an Emitter for facts about one SMTP session.
func (e Emitter) Session(id string) Emitter { e.rec.Session = id; return e }

// Message returns an Emitter for facts about one queued message.
func (e Emitter) Message(id mail.QueueID, uid string) Emitter {
	e.rec.Message, e.rec.UID = id, uid
	return e
}

// Emit states the fact ev, now. It is the way out of the relay for every fact
// that does not accompany a change of the queue.
func (e Emitter) Emit(ev Event) {
	if e.sink == nil {
		return
	}
	r := records.Get().(*Record)
	e.StampTo(r, ev)
	e.sink.Write(r)
	*r = Record{}
	records.Put(r)
}

// records are those that Emit writes, which no sink keeps.
var records = sync.Pool{New: func() any { return new(Record) }}

// Stamp makes the record of ev, now, without writing it. A durable fact is
// stamped, committed together with the change that it tells of, and only then
// published.
func (e Emitter) Stamp(ev Event) (r Record) {
	e.StampTo(&r, ev)
	return r
}

// StampTo makes *r the record of ev, as [Emitter.Stamp] does.
func (e *Emitter) StampTo(r *Record, ev Event) {
	*r = e.rec
	r.Time = time.Now().UTC().Truncate(time.Microsecond)
	r.ID = mail.NewSerialID(r.Time)
	r.Event = ev
}

// Publish writes records that [Emitter.Stamp] made, which are the facts of one
// change.
func (e Emitter) Publish(recs ...Record) {
	if e.sink != nil {
		writeChange(e.sink, recs)
	}
}

func writeChange(s Sink, recs []Record) {
	if c, ok := s.(ChangeSink); ok {
		c.WriteChange(recs)
		return
	}
	for i := range recs {
		s.Write(&recs[i])
	}
}

type fanout []Sink

func (f fanout) Write(r *Record) {
	for _, s := range f {
		s.Write(r)
	}
}

// WriteChange implements [ChangeSink].
func (f fanout) WriteChange(recs []Record) {
	for _, s := range f {
		writeChange(s, recs)
	}
}

// Durability says what may happen to a fact under load or in a crash.
type Durability uint8

// The durabilities; see the package comment.
const (
	Protocol Durability = iota + 1
	Session
	Durable
)
