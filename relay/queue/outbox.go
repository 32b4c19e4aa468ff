package queue

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"waybill/relay/event"

	"github.com/dgraph-io/badger/v4"
	"github.com/klauspost/compress/s2"
)

// outboxMany is how many facts may wait before the tracking store is asked to
// confirm at once, not only every second. By taste.
const outboxMany = 20_000

// packFacts compresses the JSON lines of one transaction. Lines of one group are
// much alike, and what is not written need not be synced, flushed and compacted.
// It uses the room of buf.
func packFacts(buf, lines []byte) []byte { return s2.Encode(buf[:cap(buf)], lines) }

// unpackFacts is the inverse of packFacts.
func unpackFacts(v []byte) ([]byte, error) {
	if n, err := s2.DecodedLen(v); err != nil || n > maxFacts {
		return nil, fmt.Errorf("%w: facts of the outbox", errRecord)
	}
	return s2.Decode(nil, v)
}

// maxFacts bounds the lines of one row: more than any transaction takes.
const maxFacts = 256 << 20

// outboxRow is one value of the outbox: the facts of one transaction.
type outboxRow struct {
	seq   uint64
	facts int
	bytes int
	at    time.Time
	out   bool // the readers have it
}

// outbox is what memory holds of the rows that are not yet confirmed.
type outbox struct {
	next uint64 // of the next row; the committer's own

	mu    sync.Mutex
	rows  []outboxRow
	facts int
	many  chan struct{} // holds a token when many wait
}

func (o *outbox) add(seq uint64, facts, size int, at time.Time) {
	o.next = seq + 1
	o.mu.Lock()
	o.rows = append(o.rows, outboxRow{seq, facts, size, at, false})
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
func (o *outbox) emitted(seq uint64) {
	o.mu.Lock()
	for i := len(o.rows) - 1; i >= 0; i-- {
		if o.rows[i].seq == seq {
			o.rows[i].out = true
			break
		}
	}
	o.mu.Unlock()
}

// ready returns the leading rows that the readers have, at most n.
func (o *outbox) ready(n int) []outboxRow {
	o.mu.Lock()
	defer o.mu.Unlock()
	i := 0
	for i < len(o.rows) && i < n && o.rows[i].out {
		i++
	}
	return append([]outboxRow(nil), o.rows[:i]...)
}

// confirmed forgets the first n rows.
func (o *outbox) confirmed(n int) {
	o.mu.Lock()
	for _, r := range o.rows[:n] {
		o.facts -= r.facts
	}
	o.rows = append([]outboxRow(nil), o.rows[n:]...)
	o.mu.Unlock()
}

func (o *outbox) level(now time.Time) (facts int, age time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.rows) > 0 {
		age = max(now.Sub(o.rows[0].at), 0)
	}
	return o.facts, age
}

// confirm asks the tracking store to sync, and deletes the rows that it has.
func (q *Queue) confirm() error {
	for {
		rows := q.outbox.ready(4096)
		if len(rows) == 0 {
			return nil
		}
		if q.opts.Confirm != nil {
			if err := q.opts.Confirm.Sync(); err != nil {
				return fmt.Errorf("confirm facts: %w", err)
			}
		}
		c := &change{}
		for _, r := range rows {
			c.del = append(c.del, outboxKey(r.seq))
		}
		first := rows[len(rows)-1].seq + 1
		c.set = []pair{{[]byte(keyOutbox), binary.BigEndian.AppendUint64(nil, first)}}
		if err := q.submit(c); err != nil {
			return err
		}
		q.outbox.confirmed(len(rows))
	}
}

// reemit publishes the facts that were not confirmed when the queue last ended.
func (q *Queue) reemit() (facts int, err error) {
	first := uint64(1)
	err = q.db.View(func(txn *badger.Txn) error {
		mark, err := readNumber(txn, keyOutbox)
		if err != nil {
			return err
		}
		first = max(first, mark)
		opts := badger.DefaultIteratorOptions
		opts.Prefix = []byte(prefixOutbox)
		it := txn.NewIterator(opts)
		defer it.Close()
		for it.Seek(outboxKey(first)); it.Valid(); it.Next() {
			key := it.Item().Key()
			if len(key) != len(prefixOutbox)+8 {
				continue
			}
			seq := binary.BigEndian.Uint64(key[len(prefixOutbox):])
			n, size := 0, 0
			err := it.Item().Value(func(v []byte) error {
				size = len(v)
				lines, err := unpackFacts(v)
				if err != nil {
					q.remark("a row of the outbox cannot be read", err.Error())
					return nil
				}
				for line := range bytes.Lines(lines) {
					var r event.Record
					if err := json.Unmarshal(line, &r); err != nil {
						q.remark("a fact in the outbox cannot be read", err.Error())
						continue
					}
					q.opts.Emitter.Publish(r)
					n++
				}
				return nil
			})
			if err != nil {
				return err
			}
			facts += n
			q.outbox.add(seq, n, size, time.Now())
			q.outbox.emitted(seq)
		}
		return nil
	})
	q.outbox.next = max(q.outbox.next, first)
	if err != nil {
		return facts, fmt.Errorf("read outbox: %w", err)
	}
	return facts, nil
}

// readNumber reads a number of 8 octets, or 0 when there is none.
func readNumber(txn *badger.Txn, key string) (uint64, error) {
	item, err := txn.Get([]byte(key))
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
