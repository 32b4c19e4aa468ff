package queue

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"waybill/relay/event"

	"github.com/dgraph-io/badger/v4"
	"github.com/klauspost/compress/s2"
)

// outboxMany is how many facts may wait before the tracking store is asked what
// it has at once, not only every second. By taste.
const outboxMany = 20_000

// packFacts compresses the JSON lines of one group of changes. They are much
// alike, and what is not written need not be synced, flushed and compacted.
// It uses the room of buf.
func packFacts(buf, lines []byte) []byte { return s2.Encode(buf[:cap(buf)], lines) }

// unpackFacts is the inverse of packFacts.
func unpackFacts(v []byte) ([]byte, error) {
	if n, err := s2.DecodedLen(v); err != nil || n > maxFacts {
		return nil, fmt.Errorf("%w: facts of the outbox", errRecord)
	}
	return s2.Decode(nil, v)
}

// maxFacts bounds the lines of one row: more than any group has.
const maxFacts = 256 << 20

// outboxRow is one value of the outbox: the facts of one group of changes.
type outboxRow struct {
	seq   uint64
	facts int
	bytes int
	at    time.Time
	out   bool   // the readers have it
	mark  uint64 // of the tracking store, once it has it in memory
}

// outbox is what memory holds of the rows that are not yet confirmed.
type outbox struct {
	next uint64 // of the next row; the committer's own

	confirming sync.Mutex // held by who confirms

	mu      sync.Mutex
	rows    []outboxRow
	facts   int
	told    uint64        // rows below it are out, and that is on disk
	failing time.Time     // since when the tracking store has been failing
	many    chan struct{} // holds a token when many wait
}

func (o *outbox) add(seq uint64, facts, size int, at time.Time) {
	o.next = seq + 1
	o.mu.Lock()
	o.rows = append(o.rows, outboxRow{seq: seq, facts: facts, bytes: size, at: at})
	o.facts += facts
	many := o.facts > outboxMany
	o.mu.Unlock()
	if many {
		select {
		case o.many <- struct{}{}:
		default:
		}
	}
}

// emitted notes that the readers have row seq.
func (o *outbox) emitted(seq, mark uint64) {
	o.mu.Lock()
	for i := len(o.rows) - 1; i >= 0; i-- {
		if o.rows[i].seq == seq {
			o.rows[i].out, o.rows[i].mark = true, mark
			break
		}
	}
	o.mu.Unlock()
}

// ready returns how many leading rows are stored up to mark, at most n, the
// sequence of the first row after them, and that of the first which the readers
// do not have.
func (o *outbox) ready(mark uint64, n int) (rows []outboxRow, first, told uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	i := 0
	for i < len(o.rows) && o.rows[i].out {
		if len(rows) == i && i < n && o.rows[i].mark <= mark {
			rows = o.rows[:i+1]
		}
		i++
	}
	rows, told = append([]outboxRow(nil), rows...), o.told
	if i > 0 {
		told = o.rows[i-1].seq + 1
	}
	if len(rows) > 0 {
		first = rows[len(rows)-1].seq + 1
	}
	return rows, first, told
}

// confirmed forgets the first n rows, and remembers what is told.
func (o *outbox) confirmed(n int, told uint64) {
	o.mu.Lock()
	for _, r := range o.rows[:n] {
		o.facts -= r.facts
	}
	o.rows = slices.Delete(o.rows, 0, n)
	if cap(o.rows) > 1024 && len(o.rows) < cap(o.rows)/4 { // there were many
		o.rows = slices.Clone(o.rows)
	}
	o.told = told
	o.mu.Unlock()
}

// health notes whether the tracking store works.
func (o *outbox) health(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case err == nil:
		o.failing = time.Time{}
	case o.failing.IsZero():
		o.failing = time.Now()
	}
}

// level is how many facts are not confirmed, and for how long one has been late:
// because a reader is slow to take it, or because the tracking store fails. A
// fact that waits for its block to fill is not late.
func (o *outbox) level(now time.Time) (facts int, age time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.rows) > 0 && !o.failing.IsZero() {
		age = max(now.Sub(o.failing), 0)
	}
	for i := range o.rows {
		if !o.rows[i].out {
			age = max(age, now.Sub(o.rows[i].at))
			break
		}
	}
	return o.facts, age
}

// mark is that of the tracking store now.
func (q *Queue) mark() uint64 {
	if q.opts.Confirm == nil {
		return 0
	}
	return q.opts.Confirm.Mark()
}

// confirm deletes the rows that the tracking store has on disk, and remembers
// which the other readers have.
func (q *Queue) confirm() error {
	q.outbox.confirming.Lock()
	defer q.outbox.confirming.Unlock()
	for {
		c, done, err := q.confirmation()
		if c != nil {
			if err := q.submit(c); err != nil {
				return err
			}
			done()
		}
		if err != nil || c == nil || len(c.del) == 0 {
			return err
		}
	}
}

// confirmation is a step of confirm, or nil when there is nothing to do; done
// is for after its commit.
func (q *Queue) confirmation() (c *change, done func(), err error) {
	stored := uint64(math.MaxUint64)
	if q.opts.Confirm != nil {
		if stored, err = q.opts.Confirm.Stored(); err != nil {
			stored, err = 0, fmt.Errorf("confirm facts: %w", err)
		}
	}
	q.outbox.health(err)
	rows, first, told := q.outbox.ready(stored, 4096)
	if err != nil {
		rows = nil // a store that loses facts gets all again that it may not have
	}
	if len(rows) == 0 && told == q.outbox.told {
		return nil, nil, err
	}
	c = &change{set: []pair{{key: keyTold, value: binary.BigEndian.AppendUint64(nil, told)}}}
	for _, r := range rows {
		c.del = append(c.del, outboxKey(r.seq))
	}
	if len(rows) > 0 {
		c.set = append(c.set, pair{key: keyOutbox, value: binary.BigEndian.AppendUint64(nil, first)})
	}
	return c, func() { q.outbox.confirmed(len(rows), told) }, err
}

// confirmLast is confirm at the end, when everything is published and the
// committer has gone.
func (q *Queue) confirmLast() error {
	if q.opts.Confirm == nil {
		return nil
	}
	q.outbox.confirming.Lock()
	defer q.outbox.confirming.Unlock()
	if err := q.opts.Confirm.Sync(); err != nil {
		return fmt.Errorf("confirm facts: %w", err)
	}
	for {
		c, done, err := q.confirmation()
		if c == nil || err != nil {
			return err
		}
		q.overlay.put([]*change{c}, pair{}, q.journal-1, q.com.floor) // what is saved next needs no entry
		done()
	}
}

// reemit publishes the facts that were not confirmed when the queue last ended:
// to all readers, or to the tracking store alone where the others have them.
func (q *Queue) reemit() (facts int, err error) {
	first := uint64(1)
	err = q.db.View(func(txn *badger.Txn) error {
		mark, err := readNumber(txn, keyOutbox)
		if err != nil {
			return err
		}
		told, err := readNumber(txn, keyTold)
		if err != nil {
			return err
		}
		first, q.outbox.told = max(first, mark), told
		opts := badger.DefaultIteratorOptions
		opts.Prefix = []byte(prefixOutbox)
		it := txn.NewIterator(opts)
		defer it.Close()
		var last foundRow
		for it.Seek(outboxKey(first)); it.Valid(); it.Next() {
			key := it.Item().Key()
			if len(key) != len(prefixOutbox)+8 {
				continue
			}
			row := foundRow{seq: binary.BigEndian.Uint64(key[len(prefixOutbox):])}
			var took []event.Seconds
			err := it.Item().Value(func(v []byte) error {
				row.size = len(v)
				lines, err := unpackFacts(v)
				if err != nil {
					q.remark("a row of the outbox cannot be read", err.Error())
					return nil
				}
				row.facts, took = q.readFacts(lines)
				return nil
			})
			if err != nil {
				return err
			}
			if row.seq != last.seq+1 {
				took = nil
			}
			facts += q.tellAgain(&last, took)
			last = row
		}
		facts += q.tellAgain(&last, nil)
		return nil
	})
	q.outbox.next = max(q.outbox.next, first, q.outbox.told)
	if err != nil {
		return facts, fmt.Errorf("read outbox: %w", err)
	}
	return facts, nil
}

// foundRow is a row of the outbox that was found at the start.
type foundRow struct {
	seq   uint64
	size  int
	facts []event.Record
}

// readFacts reads the lines of a row: its facts, and how long the messages took
// that the row before it accepts, where it says so.
func (q *Queue) readFacts(lines []byte) (facts []event.Record, took []event.Seconds) {
	for line := range bytes.Lines(lines) {
		if bytes.HasPrefix(line, []byte(tookLead)) {
			var t tookLine
			if err := json.Unmarshal(line, &t); err != nil {
				q.remark("a line of the outbox cannot be read", err.Error())
			}
			took = t.Took
			continue
		}
		var r event.Record
		if err := json.Unmarshal(line, &r); err != nil {
			q.remark("a fact in the outbox cannot be read", err.Error())
			continue
		}
		facts = append(facts, r)
	}
	return facts, took
}

// tellAgain publishes the facts of a row, or gives them to the tracking store
// when the others are told. took is how long it took to accept each of the
// row's messages, as the next row has it: what their own facts say was written
// before they were durable.
func (q *Queue) tellAgain(row *foundRow, took []event.Seconds) (facts int) {
	if row.seq == 0 {
		return 0
	}
	for i := range row.facts {
		r := &row.facts[i]
		r.Kept = true
		if ev, ok := r.Event.(event.MessageQueued); ok {
			ev.TAccept = 0
			if len(took) > 0 {
				ev.TAccept, took = took[0], took[1:]
			}
			r.Event = ev
		}
		switch {
		case row.seq >= q.outbox.told:
			q.opts.Emitter.Publish(*r)
		case q.opts.Confirm != nil:
			q.opts.Confirm.Write(r)
		}
	}
	q.outbox.add(row.seq, len(row.facts), row.size, time.Now())
	q.outbox.emitted(row.seq, q.mark())
	return len(row.facts)
}

// tookLine is the first line of a row: how long it took to accept the messages
// of the row before it, from the end of the content until they were durable.
// Their facts could not say it yet.
type tookLine struct {
	Took []event.Seconds `json:"took"`
}

const tookLead = `{"took":`

// appendTook appends the tookLine of group, which is durable since at, or
// nothing when no message came with it.
func appendTook(dst []byte, group []*change, at time.Time) []byte {
	begin := len(dst)
	dst = append(dst, tookLead...)
	next := byte('[')
	for _, c := range group {
		for i := range c.facts {
			var took event.Seconds
			_, queued := c.facts[i].Event.(event.MessageQueued)
			for k := range c.arrived {
				if a := &c.arrived[k]; a.fact == i {
					took, queued = event.Since(a.from, at), true
				}
			}
			if !queued {
				continue
			}
			dst = strconv.AppendFloat(append(dst, next), took.Float(), 'f', -1, 64)
			next = ','
		}
	}
	if next == '[' {
		return dst[:begin]
	}
	return append(dst, "]}\n"...)
}

// readNumber reads a number of 8 octets, or 0 when there is none.
func readNumber(txn *badger.Txn, key string) (uint64, error) {
	item, err := getMark(txn, key)
	if err == badger.ErrKeyNotFound { //nolint:errorlint // Badger returns it bare
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var n uint64
	err = item.Value(func(v []byte) error {
		if len(v) != 8 {
			return fmt.Errorf("%w: %s has %d octets", errRecord, key, len(v))
		}
		n = binary.BigEndian.Uint64(v)
		return nil
	})
	return n, err
}
