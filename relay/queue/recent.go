package queue

import (
	"slices"
	"sync"
	"time"
)

// Bounds of what is remembered of messages that have just come, by taste: at full
// speed they wait for some milliseconds, and what waits for longer is read again.
const (
	recentOctets = 8 << 20
	recentFor    = 2 * time.Second
	recordRoom   = 1 << 10 // what a decoded record takes beyond its octets
)

// recent remembers messages that were committed a moment ago. Most of them are
// claimed right away: then their records need not be read and decoded, nor their
// contents read back and summed up, when both have just been written.
//
// Each part is given out once. What nobody asks for is forgotten soon. Nothing is
// remembered that would go beyond recentOctets: in a queue that has grown, the
// older ones are asked for first.
type recent struct {
	mu            sync.Mutex
	items         map[ident]*remembered
	oldest, newer *remembered // in the order in which they came
	octets        int
	spare         *remembered // empty ones, by next
	spares        int
}

// maxSpares is how many of those are kept for the next to come. By taste.
const maxSpares = 256

type remembered struct {
	id         ident
	at         time.Time
	m          *stored // nil once it was given out
	cost       int     // of m
	content    *buffer // with room for the header in front; nil once it was given out
	size       int     // octets of the content
	next, prev *remembered
}

// add remembers m, which takes about cost octets.
func (r *recent) add(id ident, m *stored, cost int, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.items[id]; old != nil { // of a message that was removed, and came again
		r.drop(old)
	}
	if !r.room(cost, now) {
		return
	}
	x := r.spare
	if x != nil {
		r.spare = x.next
		r.spares--
	} else {
		x = new(remembered)
	}
	*x = remembered{id: id, at: now, m: m, cost: cost, prev: r.newer}
	if r.newer != nil {
		r.newer.next = x
	} else {
		r.oldest = x
	}
	r.newer = x
	if r.items == nil {
		r.items = map[ident]*remembered{}
	}
	r.items[id] = x
	r.octets += cost
}

// addContent remembers the content of a message that was added, and reports
// whether b belongs to r now.
func (r *recent) addContent(id ident, b *buffer, size int, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.items[id]
	if x == nil || x.content != nil || !r.room(len(b.b), now) || r.items[id] != x {
		return false
	}
	x.content, x.size = b, size
	r.octets += len(b.b)
	return true
}

// record gives out the record of id as its acceptance committed it, or nil.
func (r *recent) record(id ident) *stored {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.items[id]
	if x == nil || x.m == nil {
		return nil
	}
	m := x.m
	x.m = nil
	r.octets -= x.cost
	if x.content == nil {
		r.drop(x)
	}
	return m
}

// contentOf gives out the content of id, or nil. It belongs to the caller then.
func (r *recent) contentOf(id ident) (b *buffer, size int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.items[id]
	if x == nil || x.content == nil {
		return nil, 0
	}
	b, size = x.content, x.size
	x.content = nil
	r.octets -= len(b.b)
	if x.m == nil {
		r.drop(x)
	}
	return b, size
}

// sweep forgets what nobody has asked for.
func (r *recent) sweep(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.oldest != nil && now.Sub(r.oldest.at) > recentFor {
		r.drop(r.oldest)
	}
}

// room reports whether n octets more may be remembered. r.mu is held.
func (r *recent) room(n int, now time.Time) bool {
	for r.octets+n > recentOctets && r.oldest != nil && now.Sub(r.oldest.at) > recentFor {
		r.drop(r.oldest)
	}
	return r.octets+n <= recentOctets
}

// drop forgets x. r.mu is held.
func (r *recent) drop(x *remembered) {
	if x.m != nil {
		r.octets -= x.cost
	}
	if x.content != nil {
		r.octets -= len(x.content.b)
		putBuffer(x.content)
	}
	if x.prev != nil {
		x.prev.next = x.next
	} else {
		r.oldest = x.next
	}
	if x.next != nil {
		x.next.prev = x.prev
	} else {
		r.newer = x.prev
	}
	delete(r.items, x.id)
	*x = remembered{}
	if r.spares < maxSpares {
		x.next, r.spare = r.spare, x
		r.spares++
	}
}

// asRead makes m, which was made of a draft, what reading its record gives, so
// that it can be remembered: it shares no memory with the draft that somebody may
// change, and has what the record has. trace is a part of that.
func (m *stored) asRead(trace []byte) {
	micro := func(at *time.Time) {
		if *at = at.UTC().Truncate(time.Microsecond); at.UnixMicro() == 0 {
			*at = time.Time{}
		}
	}
	m.Changed, m.SevenBit = "", false
	m.Trace = trace
	m.Envelope.Recipients = slices.Clone(m.Envelope.Recipients)
	micro(&m.Origin.MailAt)
	micro(&m.Origin.DataEndedAt)
	micro(&m.Envelope.DeliverBy.Deadline)
	micro(&m.ExpiresAt) // which may be that deadline
	micro(&m.HeldUntil)
}
