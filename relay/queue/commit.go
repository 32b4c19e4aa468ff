package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/reuse"
)

// Errors that callers can tell apart.
var (
	// ErrNotFound says that no such message is queued.
	ErrNotFound = errors.New("no such message in the queue")
	// ErrClosed says that the queue was closed.
	ErrClosed = errors.New("queue is closed")
	// ErrStorage is wrapped by everything that fails after a commit or a sync
	// failed. The queue does nothing more until it is opened again.
	ErrStorage = errors.New("queue storage failed")

	// errRefused says that there is no room for a group. Nothing has changed.
	errRefused = errors.New("no room in the queue")
	// errTooLarge says that a change is more than a transaction of the database takes.
	errTooLarge = errors.New("too large a change")
)

// Keys. DESIGN.md has the layout.
const (
	prefixMessage = "m/" // + queue ID
	prefixOutbox  = "o/" // + sequence, 8 octets, big endian
	prefixHold    = "h/" // + connector, NUL, hop name
	prefixEntry   = "j/" // + number, 8 octets, big endian: an entry of the journal for which no segment had room
	prefixMark    = "z/" // + what there is one of; marks.go says why it is the last
	keyFormat     = "g/format"
	keySegment    = "z/segment" // a segment number that no new segment may go below
	keyOutbox     = "z/outbox"  // facts below this sequence are confirmed
	keyTold       = "z/told"    // all readers but the tracking store have the facts below this sequence
	keyJournal    = "z/journal" // how far the database knows the journal
	keyCommits    = "z/commits" // how many transactions there were
)

func messageKey(id mail.QueueID) string { return prefixMessage + string(id) }

func outboxKey(seq uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte(prefixOutbox), seq)
}

type pair struct {
	key   string
	value []byte
	fresh bool // the database has never had the key
}

// change is something that becomes durable as a whole, with its facts. The memory of
// one that newChange gave is used again once its facts are published: nobody may look
// at it any more when submit has returned nil.
type change struct {
	set     []pair
	del     [][]byte
	facts   []event.Record // to publish, in order
	lines   []byte         // those of them that are durable, as JSON lines
	rows    int            // how many
	forms   []event.Form   // what facts have of lines
	small   []*content     // contents that the committer writes
	segs    []*segment     // files of large contents, which are on disk; their names may not be
	apply   []func()       // after the commit, in order, with q.mu held
	arrived []arrival
	done    chan error
	room    []byte // to write in
	again   bool   // its memory is used again
}

// arrival is a MessageQueued whose TAccept ends with the commit: the fact with that
// index has no event until then.
type arrival struct {
	fact  int
	from  time.Time
	event event.MessageQueued
}

// after has f done after the commit, behind what is to be done already, with q.mu held.
func (c *change) after(f func()) { c.apply = append(c.apply, f) }

// bring has c bring a content, of which the pair that is set next says where it is.
func (c *change) bring(ct *content) {
	ct.record = len(c.set)
	if ct.seg == nil {
		c.small = append(c.small, ct)
	} else {
		c.segs = append(c.segs, ct.seg)
	}
}

// size estimates the room that c takes in an entry, or in a transaction.
func (c *change) size() int64 {
	n := int64(len(c.lines))
	for _, p := range c.set {
		n += int64(len(p.key)+len(p.value)) + 16
	}
	for _, k := range c.del {
		n += int64(len(k)) + 16
	}
	return n
}

// committer merges the changes that wait into one entry of the journal at a time.
type committer struct {
	mu      sync.Mutex
	waiting []*change
	closed  bool
	wake    chan struct{} // holds one token when something waits

	join, pack []byte     // the facts of a group, for the commit under way
	entry      []byte     // of the journal, as above
	list       []*content // that come with it
	took       []byte     // how long the messages of the last row took, for the next one
	floor      uint64     // the lowest number of a segment that an entry can be in
}

// submit hands c to the committer and waits until it is durable.
func (q *Queue) submit(c *change) error {
	done := answers.Get().(chan error)
	c.done = done
	if n := c.size(); n > q.batchBytes {
		// It goes alone, and its facts are compressed: those of many recipients are much alike.
		n += int64(len(packFacts(nil, c.lines)) - len(c.lines))
		if n > q.changeBytes {
			return fmt.Errorf("%w of %d octets", errTooLarge, n)
		}
	}
	q.com.mu.Lock()
	if q.com.closed {
		q.com.mu.Unlock()
		return ErrClosed
	}
	q.com.waiting = append(q.com.waiting, c)
	q.com.mu.Unlock()
	select {
	case q.com.wake <- struct{}{}:
	default:
	}
	err := <-done
	answers.Put(done)
	return err
}

// answers are channels for the answers to changes: each gets one, and is empty again.
var answers = sync.Pool{New: func() any { return make(chan error, 1) }}

// take removes the changes of the next entry. It returns nil when the
// committer shall end.
func (q *Queue) take() []*change {
	for {
		q.com.mu.Lock()
		if n := len(q.com.waiting); n > 0 {
			var octets, keys, contents int64
			take := 0
			for take < n {
				c := q.com.waiting[take]
				octets += c.size()
				keys += int64(len(c.set) + len(c.del))
				for _, ct := range c.small {
					contents += int64(len(ct.rec))
				}
				// A segment whose end a group finds too short must still be one to be used again.
				if take > 0 && (octets > q.batchBytes || keys > q.batchKeys || octets+contents > q.contents.limit/16) {
					break
				}
				take++
			}
			group := q.com.waiting[:take:take]
			q.com.waiting = q.com.waiting[take:]
			if len(q.com.waiting) == 0 {
				q.com.waiting = nil
			}
			q.com.mu.Unlock()
			return group
		}
		closed := q.com.closed
		q.com.mu.Unlock()
		if closed {
			return nil
		}
		<-q.com.wake
	}
}

// commitLoop is the one goroutine that writes the journal.
func (q *Queue) commitLoop() {
	defer close(q.published)
	defer close(q.committed)
	for {
		group := q.take()
		if group == nil {
			return
		}
		q.latency.begin(time.Now())
		row, err := q.commitGroup(group)
		for errors.Is(err, errRefused) || errors.Is(err, errLogFull) {
			if group = refuse(group, err); len(group) == 0 {
				break
			}
			row, err = q.commitGroup(group)
		}
		q.latency.end(time.Now())
		if len(group) == 0 {
			continue
		}
		if err != nil {
			q.fail(err)
			for _, c := range group {
				c.done <- fmt.Errorf("%w: %w", ErrStorage, err)
			}
			continue
		}
		now := time.Now()
		q.mu.Lock()
		for _, c := range group {
			for _, f := range c.apply {
				f()
			}
		}
		q.mu.Unlock()
		acknowledge(group)
		q.mu.Lock()
		q.rearm(now)
		q.mu.Unlock()
		if row != 0 {
			q.com.took = appendTook(q.com.took[:0], group, now)
		}
		q.published <- publication{group: group, at: now, row: row}
		q.witness.entry(q.journal - 1)
	}
}

// refuse answers those of group that bring a content, or all when none does, that
// there is no room, and returns the others: of them the database can take the entry.
func refuse(group []*change, err error) (others []*change) {
	for _, c := range group {
		if len(c.small) == 0 {
			others = append(others, c)
		}
	}
	for _, c := range group {
		if len(c.small) > 0 || len(others) == len(group) {
			c.done <- err
		}
	}
	if len(others) == len(group) {
		return nil
	}
	return others
}

// acknowledge says that group is durable: first to those for whom a client
// waits. Who is woken first runs first when the processors are busy, and what is
// due for delivery, a settlement and the facts can all wait a little longer.
func acknowledge(group []*change) {
	for _, c := range group {
		if len(c.arrived) > 0 {
			c.done <- nil
		}
	}
	for _, c := range group {
		if len(c.arrived) == 0 {
			c.done <- nil
		}
	}
}

// commitGroup makes the group durable, by one write and one sync: its small contents
// and the entry of the journal behind them. It returns the sequence of the outbox
// row. When there is no room, everything is as it was.
func (q *Queue) commitGroup(group []*change) (row uint64, err error) {
	if err := q.failure(); err != nil {
		return 0, err
	}
	if err := q.opts.tune.commit(); err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	if q.overlay.above(overlayBound) { // the database does not keep up
		if err := q.saveOnce(false); err != nil && !errors.Is(err, errLogFull) {
			return 0, err
		}
	}
	if q.com.entry == nil {
		q.com.entry = make([]byte, 0, entryRoom/4)
	}
	entry := appendEntry(q.com.entry[:0])
	list := q.com.list[:0]
	rows := 0
	for _, c := range group {
		list = append(list, c.small...)
		for i, p := range c.set {
			entry = appendSet(entry, p.key, p.value)
			for _, ct := range c.small {
				if ct.record == i {
					ct.entry = len(entry) - len(p.value)
				}
			}
		}
		for _, k := range c.del {
			entry = appendDelete(entry, k)
		}
		rows += c.rows
	}
	var facts pair
	if rows > 0 {
		row = q.outbox.next
		facts = pair{string(outboxKey(row)), q.groupFacts(group), true}
		entry = appendSet(entry, facts.key, facts.value)
	}
	q.com.entry, q.com.list = entry, list
	err = q.write(group, list, entry)
	clear(list)
	if err != nil {
		return 0, err
	}
	q.overlay.put(group, facts, q.journal, q.com.floor)
	q.journal++
	if rows > 0 {
		q.outbox.add(row, rows, len(facts.value), time.Now())
		reuse.Spoil(q.com.join)
	}
	reuse.Spoil(entry)
	if cap(entry) > entryRoom {
		q.com.entry = nil
	}
	return row, nil
}

// entryRoom is the size of a buffer for entries that is kept. By taste.
const entryRoom = 256 << 10

// groupFacts packs the durable facts of a group into one value.
func (q *Queue) groupFacts(group []*change) []byte {
	lines := group[0].lines
	if len(group) > 1 || len(q.com.took) > 0 {
		lines = append(q.com.join[:0], q.com.took...)
		for _, c := range group {
			lines = append(lines, c.lines...)
		}
		q.com.join = lines
	}
	q.com.pack = packFacts(q.com.pack, lines)
	return bytes.Clone(q.com.pack)
}

// write brings the group onto the disk: list, which are its small contents, and
// entry, which names them.
func (q *Queue) write(group []*change, list []*content, entry []byte) error {
	p, err := q.contents.place(q.journal, list, len(entry))
	if noRoom(err) {
		return q.writeElsewhere(group, list, entry, err)
	}
	if err != nil {
		return err
	}
	q.com.floor = p.floor
	if err = q.syncNames(group); err == nil {
		err = q.writePlaced(group, p, list, entry)
	}
	q.contents.abort(p.seg)
	if err == nil {
		return nil
	}
	for _, ct := range list {
		q.contents.abort(ct.seg)
		ct.seg = nil
	}
	if errors.Is(err, errRefused) {
		return q.writeElsewhere(group, list, entry, err)
	}
	return err
}

// writeElsewhere does it when no segment has room for the group: its entry can be
// in the database, contents can not.
func (q *Queue) writeElsewhere(group []*change, list []*content, entry []byte, why error) error {
	if len(list) > 0 {
		if !isExhausted(why) {
			q.guard.full()
		}
		if !errors.Is(why, errRefused) {
			why = fmt.Errorf("%w: %w", errRefused, why)
		}
		return why
	}
	if err := q.syncNames(group); err != nil {
		return err
	}
	return q.commitDirectly(entry)
}

// writePlaced writes and syncs what has its place. When the write, and not the sync, meets
// a full disk, as it does where a file system gives no blocks in advance, the error is errRefused.
func (q *Queue) writePlaced(group []*change, p placed, list []*content, entry []byte) error {
	above := p.seg.seq + 1
	for _, c := range group {
		for _, s := range c.segs {
			above = max(above, s.seq+1)
		}
		for _, ct := range c.small {
			value := c.set[ct.record].value
			relocate(value, ct.location())
			copy(entry[ct.entry:], value)
		}
	}
	sealEntry(entry, q.secret, q.journal, above)
	err := q.contents.write(p, list, entry)
	switch {
	case isFull(err):
		err = fmt.Errorf("%w: write segment: %w", errRefused, err)
	case err != nil:
		err = fmt.Errorf("write segment: %w", err)
	default:
		err = q.contents.sync(p.seg)
	}
	if err != nil { // it was refused: it should not be there at the next start
		var none [entryHeader]byte
		_, _ = p.seg.f.WriteAt(none[:], p.entry) // may well fail, too
	}
	return err
}

// syncNames brings the names of the group's large contents onto the disk. What is
// in them was synced by the sessions that wrote them.
func (q *Queue) syncNames(group []*change) error {
	for _, c := range group {
		if len(c.segs) > 0 {
			return q.contents.syncDir()
		}
	}
	return nil
}

// publication is a committed group on its way to the readers.
type publication struct {
	group []*change
	at    time.Time
	row   uint64
}

// publishLoop states the facts of committed groups, in order. It is apart from
// the committer so that slow readers do not hold up an acknowledgement.
func (q *Queue) publishLoop() {
	for p := range q.published {
		for _, c := range p.group {
			q.publish(c, p.at)
		}
		if p.row != 0 {
			q.outbox.emitted(p.row, q.mark())
		}
	}
}
