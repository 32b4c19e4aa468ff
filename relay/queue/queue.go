// Package queue is the durable truth about mail that is not yet relayed.
//
// It exists so that an acknowledged message is never lost: contents are in
// segment files, and each change of envelopes, states and durable facts is an entry
// of a journal behind them, so that one sync brings both onto stable storage before
// the change is acknowledged. Badger has what is left of the entries a second later,
// and the journal what Badger does not have yet. It promises
// at-least-once delivery (an attempt in flight at a crash is repeated), one
// final fact for each recipient, bounded memory per message, and that it stops
// accepting, rather than lose or corrupt, when storage fails. DESIGN.md has the
// bytes.
//
// The queue knows when something is due and for which next hop, not how to
// deliver it: package deliver claims leases and settles them.
package queue

import (
	"net/netip"
	"sync/atomic"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/route"
)

// Router assigns recipients to next hops. It is called at acceptance, at start
// and for a reroute, and must not block.
type Router interface {
	Route(q route.Query) route.Decision
}

// Confirmer is the tracking store's side of the outbox.
type Confirmer interface {
	// Write takes a record of before the last end that the store may not have
	// yet, and that the other readers have.
	event.Sink
	// Mark counts the records that the store has taken.
	Mark() uint64
	// Stored is the Mark up to which all of them are on disk. It fails when one
	// of them was lost.
	Stored() (uint64, error)
	// Sync has all of them on disk.
	Sync() error
}

// Options configure a Queue.
type Options struct {
	Dir         string // holds badger/, segments/ and the ballast file; created when missing
	Router      Router
	Emitter     event.Emitter       // readers of facts
	Confirm     Confirmer           // nil: no outbox is kept
	Lifetime    time.Duration       // for the facts' Expires; zero means 48h
	Concurrency func(route.Hop) int // leases at once for a hop, and as many again that wait for nothing but the disk; nil means 20. Asked often; must be fast and not call the queue
	// Down says whether a hop, of which a lease told that it cannot be reached, still
	// cannot be: leases may end in another order than their attempts. Nil: it cannot.
	// It must be fast and not call the queue.
	Down func(route.Hop) bool
	// Latest says when recipients of m must be claimed even if their hop cannot be
	// reached: because their life ends, or the sender is to be told that they are late.
	// Nil: when the message expires. It is asked whenever a record was written or read
	// at start, and for all of them by [Queue.Reroute]; it must be fast and not call
	// the queue.
	Latest      func(m *Message, w Waiting) time.Time
	LateAfter   time.Duration // hand-over target of normal mail where Priorities has none; zero means 5m
	Priorities  map[mail.Priority]Class
	Workers     int   // leases at once over all hops, which the shares of Priorities are of; zero: shares of each hop alone
	DiskFreeMin int64 // stop accepting below this many free octets; zero means 1 GiB, and less than 256 MiB means that
	MaxMessages int   // stop accepting above this many messages; zero means no limit
	NoSync      bool  // for benchmarks of other parts only

	// KeepRelayed is for how long messages are kept that were relayed, so that
	// they can be sent again; zero: not at all. KeepMaxBytes bounds their
	// contents; zero means 10 GiB. The oldest go first, and all go before the
	// disk gets short.
	KeepRelayed  time.Duration
	KeepMaxBytes int64

	// Reports composes the DSNs for recipients (by index) that an operator
	// bounced; nil makes none. It may read the content, and must not wait for
	// another change of the queue.
	Reports func(m *Message, index []int, outcomes []mail.Outcome) []Report

	tune tuning
}

// Class is what messages of one priority get. Zero fields mean the default: a
// tenth of LateAfter for high, and twelve times that for low; all leases.
type Class struct {
	HandOver time.Duration // how soon a next hop should have taken a message
	Share    int           // percent of the leases that they may have at once, 1 to 100
}

// Waiting is what waits together: the recipients of one message for one hop.
type Waiting struct {
	Hop    route.Hop
	Told   bool      // a delay DSN was made for all of them
	LastAt time.Time // of the last attempt for any; zero: none
}

// Message is one queued message. Values are snapshots: they do not change.
type Message struct {
	mail.Draft
	Size       int64 // octets of stored content
	AcceptedAt time.Time
	ExpiresAt  time.Time
	HeldBy     string // actor, when held as a whole
	HeldWhy    string
	HeldUntil  time.Time // zero: until released
	Poison     string    // why it was isolated, or empty
	States     []State   // parallel to Envelope.Recipients
}

// Begins is when the message's life began: when it was accepted, or when it was
// to be released (RFC 4865).
func (m *Message) Begins() time.Time {
	if m.Envelope.Release.After(m.AcceptedAt) {
		return m.Envelope.Release
	}
	return m.AcceptedAt
}

// Query is the routing question about recipient i.
func (m *Message) Query(i int) route.Query {
	q := route.Query{
		Sender: m.Envelope.Sender, Recipient: m.Envelope.Recipients[i].Address, Size: m.Size, Receive: m.Origin.Connector, User: m.Origin.User,
	}
	if h := m.States[i].Hop; h.Redirected() {
		q.Via = h
	}
	return q
}

// State is the state of one recipient of a queued message.
type State struct {
	Disposition mail.Disposition // Queued, Deferred, Held, or final
	Hop         route.Hop
	Attempts    int
	Due         time.Time // next attempt
	Last        mail.Reply
	LastClass   mail.Class
	LastRule    string // which rule decided LastClass; empty when an older program wrote the state
	LastMeans   string // what it means and who must act, in one line
	LastAt      time.Time
	LastHost    string
	DelaySent   bool // a delay DSN was made
	Late        bool // the hand-over target passed

	since   time.Time     // when the present wait began
	backoff time.Duration // of the waits before: on purpose
	queued  time.Duration // of the waits before: on purpose and our lag
}

// Lease is a claim on some recipients of one message, all for one hop. Its
// owner must Settle or Release it.
type Lease struct {
	Message *Message
	Hop     route.Hop
	Index   []int // which of Message.Envelope.Recipients
	Attempt int   // counts from 1: the highest number of attempts among them, plus one
	Due     time.Time
	Claimed time.Time
	Shift   time.Duration // add it to the message's times: by so much the clock was set since

	queue    *Queue
	id       ident
	prio     int    // a priorityIndex
	group    *group // another's, or nobody's, once the lease is not on it any more
	hop      *hopQueue
	number   uint32
	finished bool // its settlement left nothing to do for the message
	slot     int  // in the file of what is in flight, counted from 1; its own lock guards it
	stored   *stored
	version  uint16 // of the entry when stored was read
	routing  uint64 // which routing table was in use
	spread   bool   // the group was put off at start
	probe    bool   // it is to see whether the hop is back
	freed    bool   // it does not count for its hop any more; the queue's lock guards it
	ended    atomic.Bool
}

// Settlement is how a lease ended.
type Settlement struct {
	Outcomes  []mail.Outcome        // parallel to Lease.Index; Relayed, Deferred, Bounced or Expired
	Next      time.Time             // when deferred recipients are due again
	Expires   time.Time             // when the message's life ends, where that is later than it says itself
	Hurry     <-chan struct{}       // closed when Settle shall wait for room on the disk no longer; nil: it waits until Close
	Attempt   event.AttemptFinished // Info, Recipients and TSched are filled in by the queue
	NoAttempt bool                  // no attempt was made (the lifetime ended while waiting): state no AttemptFinished
	Waits     bool                  // with NoAttempt: the outcomes say why the hop's mail waits, as its last error
	Reports   []Report              // DSNs to queue in the same commit
	DelaySent bool                  // the deferred recipients got a delay DSN
	Reached   bool                  // the next hop answered: what waits for it may be claimed
	DownUntil time.Time             // the next hop cannot be reached: what waits for it is as after [Lease.Park] with that probe
	Elsewhere bool                  // the hop cannot be reached: the router is asked again about the deferred recipients
}

// Report is a message that the relay made: a DSN.
type Report struct {
	Draft   mail.Draft
	Content []byte
	Fact    event.DSNQueued // its DSN field is filled in by the queue; zero Draft with Suppressed set states the fact alone
}

// HopStatus is the state of one hop's queue, from memory.
type HopStatus struct {
	Hop       route.Hop
	State     string // ready, active, retry, held, unroutable
	Queued    int    // messages never attempted and due
	Active    int    // leased now
	Deferred  int
	Held      int
	Poison    int
	Bytes     int64
	Oldest    time.Time            // acceptance of the oldest message, zero when empty
	OldestBy  map[string]time.Time // by state: active (queued and leased), deferred, held
	DueLag    time.Duration        // now minus the earliest due time of an unclaimed message
	Next      time.Time            // earliest due time
	LastError string
	LastClass mail.Class
	LastRule  string // which rule decided LastClass
	LastMeans string // what it means and who must act, in one line
	LastAt    time.Time
	In, Out   uint64 // messages that came and left since start
	HeldBy    string
	HeldWhy   string
	HeldUntil time.Time
}

// Levels are the queue's gauges, read in O(number of hops).
type Levels struct {
	Messages     int
	Bytes        int64
	ByState      map[string]int            // accepted, active, deferred, held, unroutable, poison
	OlderThan    map[string]map[string]int // age (1m,5m,15m,1h,4h,1d) by state (active, deferred, held)
	DueLag       time.Duration
	DiskFree     int64
	DiskSize     int64
	OutboxRows   int
	OutboxAge    time.Duration
	SegmentBytes int64
	SegmentFiles int
	Kept         int            // messages that were relayed and can be sent again
	KeptBytes    int64          // of their contents
	Pressure     map[string]int // resource → level 0..2
	Closed       string         // why nothing is accepted any more, or empty
}

// Filter selects queued messages. Zero fields select all.
type Filter struct {
	ID        mail.QueueID // prefix
	Sender    string       // exact, "@domain", or with "*"
	Recipient string       // same
	Domain    string       // recipient domain
	Hop       string       // hop name
	Connector string       // send connector
	Receive   string       // receive connector
	State     string       // queued, active, deferred, held, poison, unroutable
	OlderThan time.Duration
	All       bool // must be set for an action without any other field
}

// Action is what an operator does to the messages that a filter selects.
type Action struct {
	Action string // one of [Actions]
	Filter Filter
	Actor  string
	Client netip.Addr // where the actor asked from, if that is known
	Reason string
	Until  time.Time // hold
	To     string    // redirect: "host:port"
	Via    string    // redirect: the send connector whose settings count; empty: the one that each recipient has
	Report bool      // remove: with a DSN; bounce always makes one
	DryRun bool
}

// Affected is what an action did, or would do.
type Affected struct {
	Messages int
	Bytes    int64
	IDs      []mail.QueueID // at most 100
}
