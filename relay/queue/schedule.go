package queue

import (
	"iter"
	"math"
	"strings"
	"time"

	"waybill/relay/mail"
	"waybill/relay/route"
)

// status is where a group stands.
type status uint8

const (
	statusNone       status = iota
	statusQueued            // never attempted
	statusActive            // leased
	statusDeferred          // to be tried again
	statusHeld              // its message is held
	statusUnroutable        // no send connector wants it; due when it expires
	statusPoison            // its message is isolated
	statusCount
)

var statusWords = [statusCount]string{"", "accepted", "active", "deferred", "held", "unroutable", "poison"}

// The classes by which ages are told.
const (
	ageActive = iota // queued and leased
	ageDeferred
	ageHeld
	ageOther // unroutable, poison
	ageCount
)

var ageWords = [...]string{ageActive: "active", ageDeferred: "deferred", ageHeld: "held"}

func (s status) age() int {
	switch s {
	case statusQueued, statusActive:
		return ageActive
	case statusDeferred:
		return ageDeferred
	case statusHeld:
		return ageHeld
	default:
		return ageOther
	}
}

// The ages of [Levels.OlderThan].
var (
	ages     = [...]time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 4 * time.Hour, 24 * time.Hour}
	ageNames = [...]string{"1m", "5m", "15m", "1h", "4h", "1d"}
)

// The priorities as indexes: high first.
const priorities = 3

func priorityIndex(p mail.Priority) int { return 1 - int(p) }

// headStart is how much earlier than its due time a message counts when
// messages of several priorities are due for one hop: high before normal before
// low, but nobody waits for ever. Numbers by taste.
var headStart = [priorities]int64{int64(5 * time.Minute / time.Microsecond), 0, -int64(30 * time.Minute / time.Microsecond)}

// probeGuard is when another group sees whether a hop is back, if nothing was
// heard of the first. Chosen by taste.
const probeGuard = time.Minute

// entry is what memory holds of one message. Times are microseconds since 1970.
//
// A million of them are queued at a bad time, and stay for hours. So entries and
// groups are small, and have no pointers: they refer to one another by the numbers
// of their slots, and the collector never looks into them. An *entry or a *group is
// good while the lock is held and until it is removed; then its slot is empty, and
// may be another's.
type entry struct {
	id         ident
	accepted   int64
	size       int64
	segment    uint64 // which has the content; 0 in an empty slot
	ref        uint32 // of the entry itself
	prev, next uint32 // entries, by time of acceptance
	groups     uint32 // the first of its groups
	version    uint16 // counts the committed changes of the record
	prio       uint8  // a priorityIndex
	aged       uint8  // which of ages it has passed
	held       bool
	poison     bool
	late       bool // the hand-over target passed and was told, or does not count
	frozen     bool // its record is being changed: not to be claimed
}

// group is the recipients of one message that wait for one hop.
type group struct {
	due       int64
	latest    seconds // when it must be claimed even if its hop cannot be reached; not before due
	ref       uint32  // of the group itself
	next      uint32  // the next group of the same message
	msg       uint32  // the entry of its message
	hop       uint32  // the number of its hop; 0 in an empty slot
	lease     uint32  // the number of the lease on it, or 0
	dueIndex  int32   // in hop.due, or -1
	lastIndex int32   // in hop.latest, or -1
	ageIndex  int32   // in hop.ages, or -1
	status    status
	tried     bool // any recipient was attempted
	spread    bool // due is later than its record says, so that not all are due at once
}

// seconds is a time in seconds since 1970, rounded up. That is exact enough for the
// end of a life, and half as long.
type seconds uint32

func toSeconds(us int64) seconds {
	const second = int64(time.Second / time.Microsecond)
	return seconds(min(max(0, us/second+min(1, us%second)), math.MaxUint32))
}

func (t seconds) micro() int64 { return int64(t) * int64(time.Second/time.Microsecond) }

// when is when a group is to be claimed.
type when struct {
	due    int64
	latest int64 // even if its hop cannot be reached
}

// wait sets when g is to be claimed. It is in none of the heaps that this orders.
func (g *group) wait(w when) { g.due, g.latest = w.due, w.last() }

func (w when) last() seconds { return toSeconds(max(w.due, w.latest)) }

// leased reports whether that lease, which was given for h, still is on g.
func (g *group) leased(h *hopQueue, lease uint32) bool { return g.hop == h.number && g.lease == lease }

// message returns the message of g.
func (s *schedule) message(g *group) *entry { return s.entries.at(g.msg) }

// hopOf returns the hop that g waits for.
func (s *schedule) hopOf(g *group) *hopQueue { return s.numbers[g.hop-1] }

// find returns the message with that ID, or nil.
func (s *schedule) find(id ident) *entry {
	return s.entryAt(s.ids.find(id, func(ref uint32) bool { return s.entries.at(ref).id == id }))
}

// entryAt is the entry with that number, or nil for none.
func (s *schedule) entryAt(ref uint32) *entry {
	if ref == 0 {
		return nil
	}
	return s.entries.at(ref)
}

// all are the messages by time of acceptance, the oldest first.
func (s *schedule) all() iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		for e := s.entryAt(s.oldest); e != nil && yield(e); e = s.entryAt(e.next) {
		}
	}
}

// groups are the groups of e, each with its hop. The one at hand may be dropped.
func (s *schedule) groups(e *entry) iter.Seq2[*group, *hopQueue] {
	return func(yield func(*group, *hopQueue) bool) {
		for ref := e.groups; ref != 0; {
			g := s.slots.at(ref)
			ref = g.next
			if !yield(g, s.hopOf(g)) {
				return
			}
		}
	}
}

// group returns the group of e for h, or nil.
func (s *schedule) group(e *entry, h *hopQueue) *group {
	for g, of := range s.groups(e) {
		if of == h {
			return g
		}
	}
	return nil
}

// firstIn returns the first hop of e that is one of hops, or nil.
func (s *schedule) firstIn(e *entry, hops map[*hopQueue]bool) *hopQueue {
	for _, h := range s.groups(e) {
		if hops[h] {
			return h
		}
	}
	return nil
}

// newGroup gives e a group for h, which is in none of h's places yet.
func (s *schedule) newGroup(e *entry, h *hopQueue, w when, tried bool) *group {
	ref, g := s.slots.take()
	*g = group{ref: ref, next: e.groups, msg: e.ref, hop: h.number, tried: tried, dueIndex: -1, lastIndex: -1, ageIndex: -1}
	g.wait(w)
	e.groups = ref
	return g
}

// groupHeap is a heap of groups by one of their times. Each group knows its place,
// so that any can be removed.
type groupHeap struct {
	items []uint32
	of    *schedule
	by    order
}

// order is which time of a group a heap is by.
type order uint8

const (
	byDue order = iota
	byLatest
	byAge // time of acceptance
)

// first is what is on top, or nil.
func (h *groupHeap) first() *group {
	if len(h.items) == 0 {
		return nil
	}
	return h.of.slots.at(h.items[0])
}

// all are the groups in h, in no order.
func (h *groupHeap) all() iter.Seq[*group] {
	return func(yield func(*group) bool) {
		for _, ref := range h.items {
			if !yield(h.of.slots.at(ref)) {
				return
			}
		}
	}
}

func (h *groupHeap) key(i int) int64 {
	switch g := h.of.slots.at(h.items[i]); h.by {
	case byAge:
		return h.of.message(g).accepted
	case byLatest:
		return int64(g.latest)
	default:
		return g.due
	}
}

// place is where g keeps its place in the heap.
func (h *groupHeap) place(g *group) *int32 {
	switch h.by {
	case byAge:
		return &g.ageIndex
	case byLatest:
		return &g.lastIndex
	default:
		return &g.dueIndex
	}
}

func (h *groupHeap) set(i int, ref uint32) {
	h.items[i] = ref
	*h.place(h.of.slots.at(ref)) = int32(i) //nolint:gosec // fewer groups than that
}

func (h *groupHeap) push(g *group) {
	h.items = append(h.items, 0)
	h.set(len(h.items)-1, g.ref)
	h.up(len(h.items) - 1)
}

func (h *groupHeap) remove(g *group) {
	i, last := int(*h.place(g)), len(h.items)-1
	if i != last {
		h.set(i, h.items[last])
	}
	h.items = h.items[:last]
	if i != last {
		h.fix(i)
	}
	*h.place(g) = -1
	if cap(h.items) > 1024 && len(h.items) < cap(h.items)/4 {
		h.items = append(make([]uint32, 0, cap(h.items)/2), h.items...)
	}
}

func (h *groupHeap) fix(i int) {
	if !h.down(i) {
		h.up(i)
	}
}

func (h *groupHeap) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if h.key(parent) <= h.key(i) {
			return
		}
		a, b := h.items[parent], h.items[i]
		h.set(parent, b)
		h.set(i, a)
		i = parent
	}
}

func (h *groupHeap) down(i int) bool {
	start := i
	for {
		child := 2*i + 1
		if child >= len(h.items) {
			break
		}
		if child+1 < len(h.items) && h.key(child+1) < h.key(child) {
			child++
		}
		if h.key(i) <= h.key(child) {
			break
		}
		a, b := h.items[i], h.items[child]
		h.set(i, b)
		h.set(child, a)
		i = child
	}
	return i > start
}

// hopQueue is everything that waits for one hop.
type hopQueue struct {
	hop      route.Hop
	number   uint32                // by which groups refer to it; never 0
	due      [priorities]groupHeap // what may be claimed when it is due
	latest   [priorities]groupHeap // the same, by when it must be claimed even if the hop cannot be reached
	ages     [ageCount]groupHeap   // everything, by acceptance
	count    [statusCount]int
	bytes    int64
	older    [ageCount][len(ages)]int
	leases   [priorities]int
	settling int // leases that count no more, because only their commit is waited for
	held     *hold
	down     bool  // it cannot be reached: what is due waits, but for a probe and for what is at its latest
	probeAt  int64 // while it is down: when the next group is to see whether it is back
	openedAt int64 // when it came back, or its last hold ended: what was due before was kept back on purpose
	in, out  uint64
	idle     time.Time // when it was first seen empty, or zero

	last   failure
	lastAt time.Time

	// where the hop is: in the ring of those with work, asleep until next, or at its capacity
	inRing     bool
	capped     bool
	ringNext   *hopQueue
	ringPrev   *hopQueue
	next       int64 // when asleep: the earliest due time
	sleepIndex int   // in schedule.sleepers, or -1
}

func (h *hopQueue) groups() int {
	n := 0
	for _, c := range h.count {
		n += c
	}
	return n
}

// effective is since when what is due at due could be claimed.
func (h *hopQueue) effective(due int64) int64 { return max(due, h.openedAt) }

// callAt is when the first group of priority p may be claimed because it is due, or
// MaxInt64. While the hop is down that is not before the next probe.
func (h *hopQueue) callAt(p int) int64 {
	g := h.due[p].first()
	switch {
	case g == nil:
		return math.MaxInt64
	case h.down:
		return max(g.due, h.probeAt)
	}
	return g.due
}

// lastCall is when the first group of priority p must be claimed although the hop is
// down, or MaxInt64.
func (h *hopQueue) lastCall(p int) int64 {
	if g := h.latest[p].first(); g != nil && h.down {
		return g.latest.micro()
	}
	return math.MaxInt64
}

// earliest returns the earliest time at which something may be claimed, or MaxInt64.
func (h *hopQueue) earliest() int64 {
	first := int64(math.MaxInt64)
	for p := range h.due {
		first = min(first, h.callAt(p), h.lastCall(p))
	}
	return first
}

// used is how many leases are out.
func (h *hopQueue) used() (n int) {
	for _, k := range h.leases {
		n += k
	}
	return n
}

// schedule says what is due, for which hop, in which order. It is not safe for
// concurrent use: the lock of Queue guards it. All of it costs O(log n).
type schedule struct {
	capacity func(route.Hop) int
	isDown   func(route.Hop) bool // whether what a lease said of its hop still holds
	shares   [priorities]int      // percent of the leases that each priority may have
	total    int                  // leases at once that the shares are of; 0: no limit
	leases   [priorities]int      // that are out
	hops     map[route.Hop]*hopQueue
	numbers  []*hopQueue           // by their numbers, from 1; nil where none has it
	vacant   []uint32              // numbers that none has
	holdOf   func(route.Hop) *hold // for a hop that is new
	ring     *hopQueue             // circular list of hops that have due work and capacity; ring is the next one
	sleepers []*hopQueue           // heap by next
	capped   map[*hopQueue]struct{}

	entries slab[entry]
	slots   slab[group]
	ids     index

	oldest, newest uint32 // all messages by acceptance
	ageAt          [len(ages)]uint32
	lateAt         [priorities]uint32

	messages int
	bytes    int64
	lease    uint32 // the last number given
}

func newSchedule(capacity func(route.Hop) int) *schedule {
	return &schedule{capacity: capacity, isDown: func(route.Hop) bool { return true }, shares: [priorities]int{100, 100, 100}, hops: map[route.Hop]*hopQueue{}, capped: map[*hopQueue]struct{}{}}
}

// portion is the part of limit that priority p may have; one at least.
func (s *schedule) portion(limit, p int) int { return max(1, limit*s.shares[p]/100) }

// barred reports whether all leases that priority p may have are out.
func (s *schedule) barred(p int) bool { return s.total > 0 && s.leases[p] >= s.portion(s.total, p) }

// best returns the group of h to claim now, or nil, and since when it could have been. limit is the
// capacity of h. Who is to see whether the hop is back comes before those that are at their latest, so
// that very many of these do not keep it down.
func (s *schedule) best(h *hopQueue, limit int, now int64) (g *group, since int64) {
	if h.used() >= limit {
		return nil, 0
	}
	if g, since = s.bestOf(h, &h.due, h.callAt, limit, now); g == nil && h.down {
		g, since = s.bestOf(h, &h.latest, h.lastCall, limit, now)
	}
	return g, since
}

// bestOf returns the best of the first of heaps that may be claimed now. at says
// when that of a priority may be.
func (s *schedule) bestOf(h *hopQueue, heaps *[priorities]groupHeap, at func(p int) int64, limit int, now int64) (best *group, since int64) {
	rank := int64(math.MaxInt64)
	for p := range heaps {
		due := at(p)
		if due > now || h.leases[p] >= s.portion(limit, p) || s.barred(p) {
			continue
		}
		if due = h.effective(due); due-headStart[p] < rank {
			best, since, rank = heaps[p].first(), due, due-headStart[p]
		}
	}
	return best, since
}

func (s *schedule) hop(hop route.Hop) *hopQueue {
	h := s.hops[hop]
	if h == nil {
		// Its names may be parts of a whole record, which would stay in memory with them.
		hop = route.Hop{Connector: strings.Clone(hop.Connector), Name: strings.Clone(hop.Name)}
		h = &hopQueue{hop: hop, sleepIndex: -1}
		for p := range h.due {
			h.due[p].of, h.latest[p].of, h.latest[p].by = s, s, byLatest
		}
		for i := range h.ages {
			h.ages[i].of, h.ages[i].by = s, byAge
		}
		if n := len(s.vacant); n > 0 {
			h.number, s.vacant = s.vacant[n-1], s.vacant[:n-1]
			s.numbers[h.number-1] = h
		} else {
			s.numbers = append(s.numbers, h)
			h.number = uint32(len(s.numbers)) //nolint:gosec // fewer hops than that
		}
		if s.holdOf != nil {
			h.held = s.holdOf(hop)
		}
		s.hops[hop] = h
	}
	return h
}

// enter takes a message into memory. Until it is linked, nobody finds it.
func (s *schedule) enter(message entry) *entry {
	ref, e := s.entries.take()
	*e = message
	e.ref = ref
	return e
}

// add takes a message into memory and links it.
func (s *schedule) add(message entry) *entry {
	e := s.enter(message)
	s.link(e)
	return e
}

// link lets e be found, by its ID and in the list by acceptance.
func (s *schedule) link(e *entry) {
	at := s.entryAt(s.newest)
	for steps := 0; at != nil && at.accepted > e.accepted; steps++ { // messages come nearly in order
		if steps == 64 { // the clock was set back: memory counts its age from now
			at = s.entryAt(s.newest)
			e.accepted = at.accepted
			break
		}
		at = s.entryAt(at.prev)
	}
	if at == nil {
		e.next, s.oldest = s.oldest, e.ref
	} else {
		e.prev, e.next, at.next = at.ref, at.next, e.ref
	}
	if next := s.entryAt(e.next); next == nil {
		s.newest = e.ref
	} else {
		next.prev = e.ref
	}
	for _, marks := range [][]uint32{s.ageAt[:], s.lateAt[:]} {
		for k := range marks {
			if mark := s.entryAt(marks[k]); mark == nil || mark.accepted > e.accepted {
				marks[k] = e.ref
			}
		}
	}
	s.ids.add(e.id, e.ref)
	s.messages++
	s.bytes += e.size
}

// remove takes e out with all its groups.
func (s *schedule) remove(e *entry, now int64) {
	for g := range s.groups(e) {
		s.drop(g, now)
	}
	for _, marks := range [][]uint32{s.ageAt[:], s.lateAt[:]} {
		for k := range marks {
			if marks[k] == e.ref {
				marks[k] = e.next
			}
		}
	}
	if prev := s.entryAt(e.prev); prev == nil {
		s.oldest = e.next
	} else {
		prev.next = e.next
	}
	if next := s.entryAt(e.next); next == nil {
		s.newest = e.prev
	} else {
		next.prev = e.prev
	}
	s.ids.remove(e.id, e.ref)
	s.messages--
	s.bytes -= e.size
	s.entries.give(e.ref)
}

// set has e wait for hop as w says. A group that is not there yet is made.
func (s *schedule) set(e *entry, hop route.Hop, w when, tried bool, now int64) {
	h := s.hop(hop)
	g := s.group(e, h)
	if g == nil {
		s.join(s.newGroup(e, h, w, tried), now)
		return
	}
	if g.dueIndex >= 0 && (g.due != w.due || g.latest != w.last()) {
		s.unheap(g)
	}
	g.wait(w)
	g.tried, g.spread = tried, false
	s.refresh(g, now)
}

// limit sets when g must be claimed even if its hop cannot be reached.
func (s *schedule) limit(g *group, latest, now int64) {
	waits := g.dueIndex >= 0
	if waits {
		s.unheap(g)
	}
	if g.wait(when{g.due, latest}); waits {
		s.enheap(g)
		s.place(s.hopOf(g), now)
	}
}

// join puts g, which has everything but its places, into its hop.
func (s *schedule) join(g *group, now int64) {
	h := s.hopOf(g)
	h.in++
	h.bytes += s.message(g).size
	s.refresh(g, now)
}

// enheap puts g among what may be claimed.
func (s *schedule) enheap(g *group) {
	h, p := s.hopOf(g), s.message(g).prio
	h.due[p].push(g)
	h.latest[p].push(g)
}

// unheap takes g out again.
func (s *schedule) unheap(g *group) {
	h, p := s.hopOf(g), s.message(g).prio
	h.due[p].remove(g)
	h.latest[p].remove(g)
}

// drop takes g out of its hop and its message. A lease on it goes on counting.
func (s *schedule) drop(g *group, now int64) {
	h, e := s.hopOf(g), s.message(g)
	s.become(g, statusNone)
	h.out++
	h.bytes -= e.size
	for at := &e.groups; ; at = &s.slots.at(*at).next {
		if *at == g.ref {
			*at = g.next
			break
		}
	}
	s.slots.give(g.ref)
	s.place(h, now)
}

// refresh brings g's status and its places in line with its message.
func (s *schedule) refresh(g *group, now int64) {
	h, e, st := s.hopOf(g), s.message(g), statusQueued
	switch {
	case g.lease != 0:
		st = statusActive
	case e.poison:
		st = statusPoison
	case e.held:
		st = statusHeld
	case h.hop == route.Unroutable:
		st = statusUnroutable
	case g.tried:
		st = statusDeferred
	}
	s.become(g, st)
	s.place(h, now)
}

func (s *schedule) become(g *group, st status) {
	h, e := s.hopOf(g), s.message(g)
	claimable := !e.frozen && (st == statusQueued || st == statusDeferred || st == statusUnroutable)
	if !claimable && g.dueIndex >= 0 {
		s.unheap(g)
	}
	if g.status != st {
		if g.status != statusNone {
			h.count[g.status]--
		}
		if st != statusNone {
			h.count[st]++
		}
		if was, is := g.status.age(), st.age(); g.status == statusNone || st == statusNone || was != is {
			if g.status != statusNone {
				h.ages[was].remove(g)
				h.tally(e, was, -1)
			}
			if st != statusNone {
				h.ages[is].push(g)
				h.tally(e, is, 1)
			}
		}
		g.status = st
	}
	if claimable && g.dueIndex < 0 {
		s.enheap(g)
	}
}

func (h *hopQueue) tally(e *entry, age, n int) {
	for k := range ages {
		if e.aged&(1<<k) != 0 {
			h.older[age][k] += n
		}
	}
}

// advance lets time pass for the ages.
func (s *schedule) advance(now int64) {
	for k, age := range ages {
		limit := now - age.Microseconds()
		for e := s.entryAt(s.ageAt[k]); e != nil && e.accepted <= limit; e = s.entryAt(e.next) {
			if e.aged&(1<<k) == 0 {
				e.aged |= 1 << k
				for g, h := range s.groups(e) {
					h.older[g.status.age()][k]++
				}
			}
			s.ageAt[k] = e.next
		}
	}
}

// overdue returns up to n messages whose hand-over target has passed since the
// last call. targets are by priority.
func (s *schedule) overdue(now int64, targets [priorities]int64, n int) []*entry {
	var late []*entry
	for p := range s.lateAt {
		for e := s.entryAt(s.lateAt[p]); e != nil && e.accepted <= now-targets[p] && len(late) < n; e = s.entryAt(e.next) {
			s.lateAt[p] = e.next
			if int(e.prio) == p && !e.late {
				late = append(late, e)
			}
		}
	}
	return late
}

// freeze keeps the groups of e from being claimed, or lets them be again.
func (s *schedule) freeze(e *entry, frozen bool, now int64) {
	e.frozen = frozen
	s.refreshAll(e, now)
}

// refreshAll brings all groups of e in line with it.
func (s *schedule) refreshAll(e *entry, now int64) {
	for g := range s.groups(e) {
		s.refresh(g, now)
	}
}

// place puts h where it belongs: into the ring, to sleep, with those at
// capacity, or nowhere.
func (s *schedule) place(h *hopQueue, now int64) {
	first := int64(math.MaxInt64)
	if h.held == nil {
		first = h.earliest()
	}
	switch {
	case first == math.MaxInt64:
		s.unring(h)
		s.wakeUp(h)
		s.uncap(h)
		return
	case first > now:
		s.unring(h)
		s.uncap(h)
		s.sleep(h, first)
		return
	}
	s.wakeUp(h)
	if g, _ := s.best(h, s.capacity(h.hop), now); g == nil { // at its capacity, or its priorities at their shares
		s.unring(h)
		h.capped = true
		s.capped[h] = struct{}{}
		return
	}
	s.uncap(h)
	s.enring(h)
}

func (s *schedule) uncap(h *hopQueue) {
	if h.capped {
		h.capped = false
		delete(s.capped, h)
	}
}

// recheck looks again at the hops that were at capacity, which may have changed.
func (s *schedule) recheck(now int64) {
	for h := range s.capped {
		s.place(h, now)
	}
}

// enring puts h at the end of the ring.
func (s *schedule) enring(h *hopQueue) {
	if h.inRing {
		return
	}
	h.inRing = true
	if s.ring == nil {
		h.ringNext, h.ringPrev = h, h
		s.ring = h
		return
	}
	last := s.ring.ringPrev
	h.ringPrev, h.ringNext = last, s.ring
	last.ringNext, s.ring.ringPrev = h, h
}

func (s *schedule) unring(h *hopQueue) {
	if !h.inRing {
		return
	}
	h.inRing = false
	if h.ringNext == h {
		s.ring = nil
	} else {
		h.ringPrev.ringNext, h.ringNext.ringPrev = h.ringNext, h.ringPrev
		if s.ring == h {
			s.ring = h.ringNext
		}
	}
	h.ringNext, h.ringPrev = nil, nil
}

// sleep puts h to sleep until at.
func (s *schedule) sleep(h *hopQueue, at int64) {
	if h.sleepIndex < 0 {
		h.next = at
		h.sleepIndex = len(s.sleepers)
		s.sleepers = append(s.sleepers, h)
		s.sleepUp(h.sleepIndex)
		return
	}
	if h.next != at {
		h.next = at
		s.sleepFix(h.sleepIndex)
	}
}

func (s *schedule) wakeUp(h *hopQueue) {
	i := h.sleepIndex
	if i < 0 {
		return
	}
	last := len(s.sleepers) - 1
	if i != last {
		s.sleepers[i] = s.sleepers[last]
		s.sleepers[i].sleepIndex = i
	}
	s.sleepers[last] = nil
	s.sleepers = s.sleepers[:last]
	h.sleepIndex = -1
	if i != last {
		s.sleepFix(i)
	}
}

func (s *schedule) sleepFix(i int) {
	h := s.sleepers[i]
	for {
		child := 2*i + 1
		if child >= len(s.sleepers) {
			break
		}
		if child+1 < len(s.sleepers) && s.sleepers[child+1].next < s.sleepers[child].next {
			child++
		}
		if s.sleepers[i].next <= s.sleepers[child].next {
			break
		}
		s.sleepSwap(i, child)
		i = child
	}
	s.sleepUp(h.sleepIndex)
}

func (s *schedule) sleepUp(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if s.sleepers[parent].next <= s.sleepers[i].next {
			return
		}
		s.sleepSwap(i, parent)
		i = parent
	}
}

func (s *schedule) sleepSwap(i, j int) {
	s.sleepers[i], s.sleepers[j] = s.sleepers[j], s.sleepers[i]
	s.sleepers[i].sleepIndex, s.sleepers[j].sleepIndex = i, j
}

// picked is what may be claimed.
type picked struct {
	group *group
	since int64 // could have been claimed since then
	probe bool  // is to see whether its hop is back
}

// pick claims the best due group of the next hop in the ring. Without one, picked
// has none.
func (s *schedule) pick(now int64) (got picked) {
	for len(s.sleepers) > 0 && s.sleepers[0].next <= now {
		s.place(s.sleepers[0], now)
	}
	for s.ring != nil {
		h := s.ring
		g, since := s.best(h, s.capacity(h.hop), now)
		if g == nil {
			s.unring(h)
			s.place(h, now)
			continue
		}
		got = picked{group: g, since: since, probe: h.down && h.probeAt <= now}
		s.ring = h.ringNext // the next claim is another hop's
		if got.probe {
			h.probeAt = now + probeGuard.Microseconds()
		}
		p := s.message(g).prio
		h.leases[p]++
		s.leases[p]++
		if s.lease++; s.lease == 0 {
			s.lease++
		}
		g.lease = s.lease
		s.refresh(g, now)
		return got
	}
	return got
}

// done ends the lease with that number of g, which was claimed for h with priority p.
func (s *schedule) done(g *group, h *hopQueue, p int, lease uint32, now int64) {
	was := s.barred(p)
	h.leases[p]--
	s.leases[p]--
	s.over(g, h, lease, now)
	if was {
		s.recheckSome(now)
	}
}

// free lets a hop that has more to do have one lease more, because the attempt of
// one is over and only its commit is waited for. It says whether it did: then
// [schedule.settled] ends that lease, and not done. So a disk that is slow does not
// keep connections idle. At most as many leases as the hop may have are out in this
// way, too.
func (s *schedule) free(h *hopQueue, p int, now int64) bool {
	if !h.capped && !h.inRing || h.settling >= s.capacity(h.hop) {
		return false
	}
	was := s.barred(p)
	h.settling++
	h.leases[p]--
	s.leases[p]--
	s.place(h, now)
	if was {
		s.recheckSome(now)
	}
	return true
}

// settled ends a lease that was freed.
func (s *schedule) settled(g *group, h *hopQueue, lease uint32, now int64) {
	h.settling--
	s.over(g, h, lease, now)
}

// over takes the lease off its group, if it still is on it.
func (s *schedule) over(g *group, h *hopQueue, lease uint32, now int64) {
	if g.leased(h, lease) {
		g.lease = 0
		s.refresh(g, now)
	} else {
		s.place(h, now)
	}
}

// recheckSome lets a hop that waits for its priority's share have the lease that
// is free now. Others are looked at by recheck.
func (s *schedule) recheckSome(now int64) {
	tries := 0
	for h := range s.capped {
		if s.place(h, now); h.inRing {
			return
		}
		if tries++; tries == 8 {
			return
		}
	}
}

// park lets g, on which that lease is, wait until h is back, or until latest.
func (s *schedule) park(g *group, h *hopQueue, lease uint32, probeAt, latest, now int64) {
	if g.leased(h, lease) {
		g.wait(when{g.due, latest})
	}
	s.lost(h, probeAt, now)
}

// lost notes that h cannot be reached, and when that is to be tried again. All that
// is due for it waits then: nothing is done for each. Who says so may be late, and
// h be back already.
func (s *schedule) lost(h *hopQueue, probeAt, now int64) {
	if s.isDown(h.hop) {
		h.down, h.probeAt = true, probeAt
		s.place(h, now)
	}
}

// back notes that h can be reached.
func (s *schedule) back(h *hopQueue, now int64) {
	if h.down {
		h.down, h.openedAt = false, now
		s.place(h, now)
	}
}

// probe lets every hop that is down be tried at once.
func (s *schedule) probe(now int64) {
	for _, h := range s.hops {
		s.call(h, now)
	}
}

// call lets h be tried at once if it is down.
func (s *schedule) call(h *hopQueue, now int64) {
	if h.down && h.probeAt > now {
		h.probeAt = now
		s.place(h, now)
	}
}

// wait returns how long nothing will be due, and false when something is.
func (s *schedule) wait(now int64) (time.Duration, bool) {
	switch {
	case s.ring != nil:
		return 0, false
	case len(s.sleepers) == 0:
		return time.Hour, true
	}
	return time.Duration(s.sleepers[0].next-now) * time.Microsecond, true
}

// reap forgets hops that have been empty for a while.
func (s *schedule) reap(now time.Time, after time.Duration) {
	for k, h := range s.hops {
		switch {
		case h.used() > 0 || h.settling > 0 || h.groups() > 0:
			h.idle = time.Time{}
		case h.idle.IsZero():
			h.idle = now
		case now.Sub(h.idle) >= after:
			s.unring(h)
			s.wakeUp(h)
			s.uncap(h)
			s.numbers[h.number-1] = nil
			s.vacant = append(s.vacant, h.number)
			delete(s.hops, k)
		}
	}
}
