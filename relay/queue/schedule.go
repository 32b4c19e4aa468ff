package queue

import (
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
// A million of them are queued at a bad time, so it is kept small: 112 octets
// are one of the allocator's sizes, and TestEntrySize holds it there.
type entry struct {
	id         ident
	accepted   int64
	size       int64
	seg        *segment // nil once the message was removed
	prev, next *entry   // by time of acceptance
	first      group    // of the first hop
	more       *extra   // of the others
	version    uint16   // counts the committed changes of the record
	prio       uint8    // a priorityIndex
	aged       uint8    // which of ages it has passed
	held       bool
	poison     bool
	late       bool // the hand-over target passed and was told, or does not count
	frozen     bool // its record is being changed: not to be claimed
}

// group is the recipients of one message that wait for one hop.
type group struct {
	msg      *entry
	hop      *hopQueue // nil: the group is not in use
	due      int64     // when parked: when it must be looked at at the latest
	dueIndex int32     // in hop.due or hop.parked, or -1
	ageIndex int32     // in hop.ages, or -1
	lease    uint32    // the number of the lease on it, or 0
	status   status
	tried    bool // any recipient was attempted
	parked   bool // waits for its hop to come back
	spread   bool // due is later than its record says, so that not all are due at once
}

// extra is a group of a message's second hop and of those after it.
type extra struct {
	group
	next *extra
}

// gone reports whether the message was removed.
func (e *entry) gone() bool { return e.seg == nil }

// groups calls f for each group of e.
func (e *entry) groups(f func(g *group)) {
	if e.first.hop != nil {
		f(&e.first)
	}
	for x := e.more; x != nil; x = x.next {
		if x.hop != nil {
			f(&x.group)
		}
	}
}

// group returns the group of e for h, or nil.
func (e *entry) group(h *hopQueue) *group {
	if e.first.hop == h {
		return &e.first
	}
	for x := e.more; x != nil; x = x.next {
		if x.hop == h {
			return &x.group
		}
	}
	return nil
}

// free returns a group of e that is not in use.
func (e *entry) free() *group {
	if e.first.hop == nil {
		return &e.first
	}
	x := &extra{next: e.more}
	for at := &x.next; *at != nil; { // leave out those that are not in use
		if (*at).hop == nil {
			*at = (*at).next
			continue
		}
		at = &(*at).next
	}
	e.more = x
	return &x.group
}

// groupHeap is a heap of groups by due time, or by time of acceptance. Each
// group knows its place, so that any can be removed.
type groupHeap struct {
	items []*group
	byAge bool
}

func (h *groupHeap) key(i int) int64 {
	if h.byAge {
		return h.items[i].msg.accepted
	}
	return h.items[i].due
}

func (h *groupHeap) set(i int, g *group) {
	h.items[i] = g
	if h.byAge {
		g.ageIndex = int32(i) //nolint:gosec // fewer groups than that
	} else {
		g.dueIndex = int32(i) //nolint:gosec // fewer groups than that
	}
}

func (h *groupHeap) push(g *group) {
	h.items = append(h.items, nil)
	h.set(len(h.items)-1, g)
	h.up(len(h.items) - 1)
}

func (h *groupHeap) removeAt(i int) {
	g, last := h.items[i], len(h.items)-1
	if i != last {
		h.set(i, h.items[last])
	}
	h.items[last] = nil
	h.items = h.items[:last]
	if i != last {
		h.fix(i)
	}
	if h.byAge {
		g.ageIndex = -1
	} else {
		g.dueIndex = -1
	}
	if cap(h.items) > 1024 && len(h.items) < cap(h.items)/4 {
		h.items = append(make([]*group, 0, cap(h.items)/2), h.items...)
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
	due      [priorities]groupHeap // what may be claimed when it is due
	parked   [priorities]groupHeap // what waits for the hop to come back
	ages     [ageCount]groupHeap   // everything, by acceptance
	count    [statusCount]int
	bytes    int64
	older    [ageCount][len(ages)]int
	leases   [priorities]int
	settling int // leases that count no more, because only their commit is waited for
	held     *hold
	down     bool  // it cannot be reached
	probeAt  int64 // while it is down: when a parked group is to see whether it is back
	upAt     int64 // when it came back: what was parked is due since then
	openedAt int64 // when the last hold ended: what was due before was kept back on purpose
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

// effective is when g was or will be due, not counting the time of a hold.
func (h *hopQueue) effective(due int64) int64 { return max(due, h.openedAt) }

// earliest returns the earliest time at which something may be claimed, or MaxInt64.
func (h *hopQueue) earliest() int64 {
	first := int64(math.MaxInt64)
	for p := range h.due {
		if items := h.due[p].items; len(items) > 0 {
			first = min(first, items[0].due)
		}
		if items := h.parked[p].items; len(items) > 0 {
			first = min(first, h.callAt(items[0]))
		}
	}
	return first
}

// callAt is when g, which is the first of those that are parked, may be claimed.
func (h *hopQueue) callAt(g *group) int64 {
	if h.down {
		return min(g.due, h.probeAt)
	}
	return h.upAt
}

// dueSince is when g was due, not counting the time of a hold.
func (h *hopQueue) dueSince(g *group) int64 {
	if g.parked {
		return h.effective(h.callAt(g))
	}
	return h.effective(g.due)
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
	shares   [priorities]int // percent of the leases that each priority may have
	total    int             // leases at once that the shares are of; 0: no limit
	leases   [priorities]int // that are out
	hops     map[route.Hop]*hopQueue
	holdOf   func(route.Hop) *hold // for a hop that is new
	ring     *hopQueue             // circular list of hops that have due work and capacity; ring is the next one
	sleepers []*hopQueue           // heap by next
	capped   map[*hopQueue]struct{}

	oldest, newest *entry // all messages by acceptance
	ageAt          [len(ages)]*entry
	lateAt         [priorities]*entry

	messages int
	bytes    int64
	lease    uint32 // the last number given
}

func newSchedule(capacity func(route.Hop) int) *schedule {
	return &schedule{capacity: capacity, shares: [priorities]int{100, 100, 100}, hops: map[route.Hop]*hopQueue{}, capped: map[*hopQueue]struct{}{}}
}

// portion is the part of limit that priority p may have; one at least.
func (s *schedule) portion(limit, p int) int { return max(1, limit*s.shares[p]/100) }

// barred reports whether all leases that priority p may have are out.
func (s *schedule) barred(p int) bool { return s.total > 0 && s.leases[p] >= s.portion(s.total, p) }

// best returns the group of h to claim now, or nil. limit is the capacity of h.
func (s *schedule) best(h *hopQueue, limit int, now int64) *group {
	if h.used() >= limit {
		return nil
	}
	var best *group
	rank := int64(math.MaxInt64)
	for p := range h.due {
		if h.leases[p] >= s.portion(limit, p) || s.barred(p) {
			continue
		}
		try := func(g *group, due int64) {
			if r := h.effective(due) - headStart[p]; due <= now && r < rank {
				best, rank = g, r
			}
		}
		if items := h.due[p].items; len(items) > 0 {
			try(items[0], items[0].due)
		}
		if items := h.parked[p].items; len(items) > 0 {
			try(items[0], h.callAt(items[0]))
		}
	}
	return best
}

func (s *schedule) hop(hop route.Hop) *hopQueue {
	h := s.hops[hop]
	if h == nil {
		// Its names may be parts of a whole record, which would stay in memory with them.
		hop = route.Hop{Connector: strings.Clone(hop.Connector), Name: strings.Clone(hop.Name)}
		h = &hopQueue{hop: hop, sleepIndex: -1}
		for i := range h.ages {
			h.ages[i].byAge = true
		}
		if s.holdOf != nil {
			h.held = s.holdOf(hop)
		}
		s.hops[hop] = h
	}
	return h
}

// add links e into the list by acceptance.
func (s *schedule) add(e *entry) {
	at := s.newest
	for steps := 0; at != nil && at.accepted > e.accepted; steps++ { // messages come nearly in order
		if steps == 64 { // the clock was set back: memory counts its age from now
			at = s.newest
			e.accepted = at.accepted
			break
		}
		at = at.prev
	}
	e.prev = at
	if at == nil {
		e.next, s.oldest = s.oldest, e
	} else {
		e.next, at.next = at.next, e
	}
	if e.next == nil {
		s.newest = e
	} else {
		e.next.prev = e
	}
	for k := range s.ageAt {
		if s.ageAt[k] == nil || s.ageAt[k].accepted > e.accepted {
			s.ageAt[k] = e
		}
	}
	for k := range s.lateAt {
		if s.lateAt[k] == nil || s.lateAt[k].accepted > e.accepted {
			s.lateAt[k] = e
		}
	}
	s.messages++
	s.bytes += e.size
}

// remove takes e out with all its groups.
func (s *schedule) remove(e *entry, now int64) {
	e.groups(func(g *group) { s.drop(g, now) })
	e.more, e.seg = nil, nil
	for k := range s.ageAt {
		if s.ageAt[k] == e {
			s.ageAt[k] = e.next
		}
	}
	for k := range s.lateAt {
		if s.lateAt[k] == e {
			s.lateAt[k] = e.next
		}
	}
	if e.prev == nil {
		s.oldest = e.next
	} else {
		e.prev.next = e.next
	}
	if e.next == nil {
		s.newest = e.prev
	} else {
		e.next.prev = e.prev
	}
	e.prev, e.next = nil, nil
	s.messages--
	s.bytes -= e.size
}

// set makes g, a group of e for hop, due at due. A group that is not there yet
// is made.
func (s *schedule) set(e *entry, hop route.Hop, due int64, tried bool, now int64) {
	h := s.hop(hop)
	g := e.group(h)
	if g == nil {
		g = e.free()
		*g = group{msg: e, hop: h, due: due, tried: tried, dueIndex: -1, ageIndex: -1}
		s.join(g, now)
		return
	}
	if (g.due != due || g.parked) && g.dueIndex >= 0 {
		g.heap().removeAt(int(g.dueIndex))
	}
	g.due, g.tried, g.parked, g.spread = due, tried, false, false
	s.refresh(g, now)
}

// join puts g, which has everything but its places, into its hop.
func (s *schedule) join(g *group, now int64) {
	g.hop.in++
	g.hop.bytes += g.msg.size
	s.refresh(g, now)
}

// heap is where g waits to be claimed.
func (g *group) heap() *groupHeap {
	if g.parked {
		return &g.hop.parked[g.msg.prio]
	}
	return &g.hop.due[g.msg.prio]
}

// drop takes g out of its hop. A lease on it goes on counting.
func (s *schedule) drop(g *group, now int64) {
	h := g.hop
	s.become(g, statusNone)
	h.out++
	h.bytes -= g.msg.size
	g.hop = nil
	s.place(h, now)
}

// refresh brings g's status and its places in line with its message.
func (s *schedule) refresh(g *group, now int64) {
	st := statusQueued
	switch {
	case g.lease != 0:
		st = statusActive
	case g.msg.poison:
		st = statusPoison
	case g.msg.held:
		st = statusHeld
	case g.hop.hop == route.Unroutable:
		st = statusUnroutable
	case g.tried:
		st = statusDeferred
	}
	s.become(g, st)
	s.place(g.hop, now)
}

func (s *schedule) become(g *group, st status) {
	h := g.hop
	claimable := !g.msg.frozen && (st == statusQueued || st == statusDeferred || st == statusUnroutable)
	if !claimable && g.dueIndex >= 0 {
		g.heap().removeAt(int(g.dueIndex))
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
				h.ages[was].removeAt(int(g.ageIndex))
				h.tally(g.msg, was, -1)
			}
			if st != statusNone {
				h.ages[is].push(g)
				h.tally(g.msg, is, 1)
			}
		}
		g.status = st
	}
	if claimable && g.dueIndex < 0 {
		g.heap().push(g)
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
		for e := s.ageAt[k]; e != nil && e.accepted <= limit; e = e.next {
			if e.aged&(1<<k) == 0 {
				e.aged |= 1 << k
				e.groups(func(g *group) { g.hop.older[g.status.age()][k]++ })
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
		for e := s.lateAt[p]; e != nil && e.accepted <= now-targets[p] && len(late) < n; e = e.next {
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
	e.groups(func(g *group) { s.refresh(g, now) })
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
	case first > now:
		s.unring(h)
		s.uncap(h)
		s.sleep(h, first)
	case s.best(h, s.capacity(h.hop), now) == nil: // at its capacity, or its priorities at their shares
		s.unring(h)
		s.wakeUp(h)
		h.capped = true
		s.capped[h] = struct{}{}
	default:
		s.wakeUp(h)
		s.uncap(h)
		s.enring(h)
	}
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

// pick claims the best due group of the next hop in the ring, and says since when
// it was due; or it returns nil.
func (s *schedule) pick(now int64) (g *group, since int64) {
	for len(s.sleepers) > 0 && s.sleepers[0].next <= now {
		s.place(s.sleepers[0], now)
	}
	for s.ring != nil {
		h := s.ring
		g := s.best(h, s.capacity(h.hop), now)
		if g == nil {
			s.unring(h)
			s.place(h, now)
			continue
		}
		due := h.dueSince(g)
		s.ring = h.ringNext // the next claim is another hop's
		if h.down && g.parked && h.probeAt <= now {
			h.probeAt = now + probeGuard.Microseconds()
		}
		h.leases[g.msg.prio]++
		s.leases[g.msg.prio]++
		if s.lease++; s.lease == 0 {
			s.lease++
		}
		g.lease = s.lease
		s.refresh(g, now)
		return g, due
	}
	return nil, 0
}

// done ends the lease with that number of g, which was claimed for h.
func (s *schedule) done(g *group, h *hopQueue, lease uint32, now int64) {
	p := int(g.msg.prio)
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
	if g.hop == h && g.lease == lease {
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

// park lets g, on which that lease is, wait until h is back, or until deadline.
func (s *schedule) park(g *group, h *hopQueue, lease uint32, probeAt, deadline, now int64) {
	if g.hop == h && g.lease == lease {
		g.due, g.parked, g.spread = deadline, true, false
	}
	s.lost(h, probeAt, now)
}

// lost notes that h cannot be reached, and when that is to be tried again.
func (s *schedule) lost(h *hopQueue, probeAt, now int64) {
	h.down, h.probeAt = true, probeAt
	s.place(h, now)
}

// back notes that h can be reached.
func (s *schedule) back(h *hopQueue, now int64) {
	if h.down {
		h.down, h.upAt = false, now
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
			delete(s.hops, k)
		}
	}
}
