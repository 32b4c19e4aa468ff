package queue

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"waybill/relay/mail"

	"github.com/dgraph-io/badger/v4"
)

const (
	// saveEvery is how long something is in the journal alone, at least: mail that
	// is relayed sooner never costs the database anything. Twice as long at most.
	saveEvery = time.Second
	// overlayMost is how many octets of changes make a save due at once.
	overlayMost = 4 << 20
	// overlayBound is how many it may be before who hands in more waits for a save.
	// By taste.
	overlayBound = 32 << 20
)

// held is what a key has since a commit that the database does not know of.
type held struct {
	value []byte // nil: deleted
	fresh bool   // the database has never had the key
}

// saving is what a save does to a key.
type saving struct {
	key   string
	value []byte // nil: deleted
}

// overlay is what was committed and is not in the database yet, in two
// generations: what came since the last save, and what came before it and goes
// into the database with the next.
type overlay struct {
	mu     sync.RWMutex
	young  map[string]held
	old    map[string]held
	octets int    // of young
	last   uint64 // the latest entry of the journal
	turn   uint64 // the last of old
	floor  uint64 // of the first entry of young, or of the last one when there is none
	empty  bool   // nothing was committed since turn
	base   *base  // the database without old and young

	due chan struct{} // holds a token when much waits
}

// base is a view of the database that many read by.
type base struct {
	txn   *badger.Txn
	users int // those who read, and one for being the latest; the lock of the overlay guards it
}

func newOverlay() overlay {
	return overlay{young: map[string]held{}, old: map[string]held{}, empty: true, due: make(chan struct{}, 1)}
}

// put takes the changes of a group, which are the journal's entry number.
func (o *overlay) put(group []*change, row pair, number, floor uint64) {
	o.mu.Lock()
	for _, c := range group {
		for i := range c.set {
			o.set(c.set[i])
		}
		for _, k := range c.del {
			o.delete(k)
		}
	}
	if row.key != "" {
		o.set(row)
	}
	o.last = number
	if o.empty || floor < o.floor {
		o.floor = floor
	}
	o.empty = false
	due := o.octets > overlayMost
	o.mu.Unlock()
	if due {
		select {
		case o.due <- struct{}{}:
		default:
		}
	}
}

func (o *overlay) set(p pair) {
	fresh := p.fresh
	was, ok := o.young[p.key]
	if ok {
		o.octets -= len(p.key) + len(was.value)
		fresh = was.fresh
	} else if was, ok = o.old[p.key]; ok {
		fresh = was.fresh
	}
	o.young[p.key] = held{p.value, fresh}
	o.octets += len(p.key) + len(p.value)
}

func (o *overlay) delete(key []byte) {
	was, ok := o.young[string(key)]
	if ok {
		o.octets -= len(key) + len(was.value)
	} else {
		was, ok = o.old[string(key)]
	}
	if ok && was.fresh { // as if it had never been
		delete(o.young, string(key))
		delete(o.old, string(key))
		return
	}
	o.young[string(key)] = held{}
	o.octets += len(key)
}

// find looks for key, first in what the database does not know. When ok is false
// b is where to look next, to be given back by leave.
func (o *overlay) find(key string) (v []byte, ok bool, b *base) {
	o.mu.RLock()
	e, ok := o.young[key]
	if !ok {
		e, ok = o.old[key]
	}
	o.mu.RUnlock()
	if ok {
		return e.value, true, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if e, ok = o.young[key]; !ok { // a save may have ended in between
		e, ok = o.old[key]
	}
	if ok {
		return e.value, true, nil
	}
	o.base.users++
	return nil, false, o.base
}

// begin has nothing, and the journal known up to m.
func (o *overlay) begin(m mark, b *base) {
	b.users = 1
	o.last, o.turn, o.floor, o.base = m.number, m.number, m.floor, b
}

// turnOver begins a save: it returns what to write of the older generation, or of
// both, and how far the database knows the journal then. After a save of both it
// is as the last commit left it; after one of the older one it never was as it is,
// because what has changed again since is not written.
func (o *overlay) turnOver(both bool) ([]saving, mark) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if both {
		maps.Copy(o.old, o.young)
		clear(o.young)
		o.octets, o.turn, o.empty = 0, o.last, true
	}
	list := make([]saving, 0, len(o.old))
	for key, e := range o.old {
		// What it is now is in an entry that is not saved yet. But a mark goes with the
		// rows that it speaks of.
		if later, ok := o.young[key]; ok {
			if !strings.HasPrefix(key, prefixMark) {
				continue
			}
			later.fresh = false
			o.young[key] = later
		}
		if e.fresh {
			if isDone(key, e.value) {
				continue // nobody will ask for it: the message is nowhere else
			}
			e.fresh = false
			o.old[key] = e
		}
		list = append(list, saving{key, e.value})
	}
	return list, mark{o.turn, o.floor}
}

// noMore says that no entry will follow in a segment with a number below floor.
func (o *overlay) noMore(floor uint64) {
	o.mu.Lock()
	o.floor = floor
	o.mu.Unlock()
}

// turned ends a save: b is the database with what turnOver gave.
func (o *overlay) turned(b *base) {
	b.users = 1
	o.mu.Lock()
	was := o.base
	o.base = b
	clear(o.old)
	o.old, o.young = o.young, o.old
	o.octets, o.turn, o.empty = 0, o.last, true
	o.mu.Unlock()
	if was != nil {
		o.leave(was)
	}
}

// above reports whether more than n octets came since the last save.
func (o *overlay) above(n int) bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.octets > n
}

// waiting reports whether there is anything to save.
func (o *overlay) waiting() bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return len(o.old) > 0 || !o.empty
}

// end forgets everything.
func (o *overlay) end() {
	o.mu.Lock()
	b := o.base
	o.base = nil
	o.mu.Unlock()
	if b != nil {
		o.leave(b)
	}
}

func (o *overlay) leave(b *base) {
	o.mu.Lock()
	b.users--
	unused := b.users == 0
	o.mu.Unlock()
	if unused {
		b.txn.Discard()
	}
}

// isDone reports whether value is the record of a message that is finished, and
// not kept.
func isDone(key string, value []byte) bool {
	return strings.HasPrefix(key, prefixMessage) && len(value) > 1 && value[1] == recordDone
}

// saveLoop saves what is due, until the queue is closed.
func (q *Queue) saveLoop() {
	timer := time.NewTimer(q.opts.tune.save)
	defer timer.Stop()
	for {
		select {
		case <-q.committed:
			return
		case <-q.broken:
			return
		case <-timer.C:
		case <-q.overlay.due:
			if !q.overlay.above(overlayMost) { // a save has begun since
				continue
			}
		}
		timer.Reset(q.opts.tune.save)
		if !q.overlay.waiting() {
			continue
		}
		if err := q.saveOnce(false); err != nil && !errors.Is(err, errLogFull) { // then it is tried again
			q.fail(err)
			return
		}
	}
}

// saveOnce brings the older generation into the database, or both.
func (q *Queue) saveOnce(both bool) error {
	q.saving.Lock()
	defer q.saving.Unlock()
	return q.saveLocked(both)
}

// saveLocked is saveOnce for who holds q.saving.
func (q *Queue) saveLocked(both bool) error {
	if err := q.failure(); err != nil {
		return err
	}
	if err := q.save(q.overlay.turnOver(both)); err != nil {
		return err
	}
	q.overlay.turned(&base{txn: q.db.NewTransaction(false)})
	return nil
}

// saveAll brings everything into the database that was committed before.
func (q *Queue) saveAll() error { return q.saveOnce(true) }

// saveLast is saveAll when the committer has ended. The next start goes on in new
// files, so it need not look for entries in those that are there.
func (q *Queue) saveLast() error {
	q.overlay.noMore(q.contents.nextNumber())
	return q.saveAll()
}

// save writes list, and then that the database knows the journal up to m. Until
// that is written a start does all of it again, and so the entries go after it
// that are in the database themselves. q.saving is held, or nobody else is there.
func (q *Queue) save(list []saving, m mark) error {
	direct := 0
	for direct < len(q.direct) && q.direct[direct] <= m.number {
		direct++
	}
	next := q.contents.nextNumber()
	if m == q.reached && len(list) == 0 && direct == 0 && next == q.segmentMark {
		return nil
	}
	slices.SortFunc(list, func(a, b saving) int { return strings.Compare(a.key, b.key) })
	list = append(list,
		saving{keySegment, binary.BigEndian.AppendUint64(nil, next)},
		saving{keyJournal, m.encode(q.secret)},
	)
	for _, number := range q.direct[:direct] {
		list = append(list, saving{key: string(directKey(number))})
	}
	for len(list) > 0 {
		n, octets := 0, int64(0)
		for n < len(list) && n < int(q.batchKeys) {
			size := int64(len(list[n].key) + len(list[n].value) + 16)
			if n > 0 && octets+size > q.batchBytes {
				break
			}
			octets += size
			n++
		}
		err := q.transact(octets, n, func(txn *badger.Txn) error {
			for _, s := range list[:n] {
				if err := apply(txn, s); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		list = list[n:]
	}
	q.reached, q.segmentMark = m, next
	q.direct = q.direct[direct:]
	q.contents.saved(m.number)
	return nil
}

func apply(txn *badger.Txn, s saving) error {
	if s.value == nil {
		return txn.Delete([]byte(s.key))
	}
	return txn.Set([]byte(s.key), s.value)
}

// transact commits a transaction of the database, when there is room in its log:
// otherwise it returns errLogFull. q.saving is held, or nobody else is there.
func (q *Queue) transact(octets int64, keys int, f func(*badger.Txn) error) error {
	done, ok := q.admit(octets + perKey*int64(keys+2))
	if !ok {
		return errLogFull
	}
	defer done()
	q.guard.spend(2 * octets) // into the log now, and into a table later
	txn := q.db.NewTransaction(true)
	defer txn.Discard()
	if err := f(txn); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	commits := keyCommits
	if q.resting {
		commits = restingKey(commits)
	}
	if err := txn.Set([]byte(commits), binary.BigEndian.AppendUint64(nil, q.commits+1)); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	if err := txn.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	q.commits++
	q.witness.commit(q.commits)
	return nil
}

// commitDirectly makes a group durable whose entry found no room in a segment: in
// the database, as it is.
func (q *Queue) commitDirectly(entry []byte) error {
	q.saving.Lock()
	defer q.saving.Unlock()
	body := entry[entryHeader:]
	next := q.contents.nextNumber()
	err := q.transact(int64(len(body)), 2, func(txn *badger.Txn) error {
		if err := txn.Set([]byte(keySegment), binary.BigEndian.AppendUint64(nil, next)); err != nil {
			return err
		}
		return txn.Set(directKey(q.journal), body)
	})
	if err == nil {
		q.direct = append(q.direct, q.journal)
	}
	return err
}

// inDatabase returns the keys of those of ids, which were in segments that are
// gone, that the database has or will have.
func (q *Queue) inDatabase(ids []ident) (keys [][]byte, err error) {
	q.life.RLock()
	defer q.life.RUnlock()
	if q.closed {
		return nil, ErrClosed
	}
	for _, id := range ids {
		key := messageKey(id.QueueID())
		has, b := q.overlay.forget(key, q.isGone)
		if b != nil {
			item, err := b.txn.Get([]byte(key))
			if err == nil {
				err = item.Value(func(v []byte) error { has = q.isGone(v); return nil })
			}
			q.overlay.leave(b)
			if err != nil && !errors.Is(err, badger.ErrKeyNotFound) {
				return nil, err
			}
		}
		if has {
			keys = append(keys, []byte(key))
		}
	}
	return keys, nil
}

// isGone reports whether v is the record of a message in a segment that is gone:
// one that came again under its ID is in another. A record that cannot be read stays.
func (q *Queue) isGone(v []byte) bool {
	m, err := decodeRecord(v)
	return err == nil && q.contents.find(m.loc.seq) == nil
}

// forget forgets a key that the database has never had, when its value isGone.
// Otherwise it reports whether there is one to be deleted, or returns where to look
// for it, to be given back by leave.
func (o *overlay) forget(key string, isGone func([]byte) bool) (has bool, b *base) {
	o.mu.Lock()
	defer o.mu.Unlock()
	e, ok := o.young[key]
	if !ok {
		e, ok = o.old[key]
	}
	switch {
	case !ok:
		o.base.users++
		return false, o.base
	case e.value == nil || !isGone(e.value):
		return false, nil
	case e.fresh:
		delete(o.young, key)
		delete(o.old, key)
		return false, nil
	}
	return true, nil
}

// record calls f with the record of key as the last commit left it. Its value is
// good until f returns.
func (q *Queue) record(key string, f func(v []byte) error) error {
	q.life.RLock() // the files are mapped: nobody reads them once they are closed
	defer q.life.RUnlock()
	if q.closed {
		return ErrClosed
	}
	v, ok, b := q.overlay.find(key)
	if ok {
		if v == nil {
			return badger.ErrKeyNotFound
		}
		return f(v)
	}
	defer q.overlay.leave(b)
	item, err := b.txn.Get([]byte(key))
	if err != nil {
		return err
	}
	return item.Value(f)
}

// records calls f for the records of messages from key start on that begin with
// prefix, in the order of their keys, until it returns false. read reads the one
// that f is asked about.
func (q *Queue) records(ctx context.Context, prefix, start []byte, f func(id ident, read func() (*stored, error)) (bool, error)) error {
	q.life.RLock()
	defer q.life.RUnlock()
	if q.closed {
		return ErrClosed
	}
	later, b := q.overlay.from(string(prefix), string(start))
	defer q.overlay.leave(b)
	one := func(key string, value func(func([]byte) error) error) (bool, error) {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		id, ok := parseIdent(mail.QueueID(key[len(prefixMessage):]))
		if !ok {
			return true, nil
		}
		return f(id, func() (m *stored, err error) {
			err = value(func(v []byte) (err error) {
				m, err = decodeRecord(v)
				return err
			})
			return m, err
		})
	}
	// until calls f for what the overlay has before key, or all of it.
	until := func(key string, all bool) (more bool, err error) {
		for len(later) > 0 && (all || later[0].key < key) {
			s := later[0]
			later = later[1:]
			if s.value == nil {
				continue
			}
			if more, err := one(s.key, func(f func([]byte) error) error { return f(s.value) }); !more || err != nil {
				return false, err
			}
		}
		return true, nil
	}
	opts := badger.DefaultIteratorOptions
	opts.Prefix = prefix
	opts.PrefetchValues = false // most keys are told apart in memory
	it := b.txn.NewIterator(opts)
	defer it.Close()
	for it.Seek(start); it.Valid(); it.Next() {
		item := it.Item()
		key := string(item.Key())
		if more, err := until(key, false); !more || err != nil {
			return err
		}
		if len(later) > 0 && later[0].key == key { // it comes with the next
			continue
		}
		if more, err := one(key, item.Value); !more || err != nil {
			return err
		}
	}
	_, err := until("", true)
	return err
}

// from lists what the overlay has of the keys with prefix from start on, in order,
// and where the others are, to be given back by leave.
func (o *overlay) from(prefix, start string) (list []saving, b *base) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, gen := range []map[string]held{o.young, o.old} {
		for key, e := range gen {
			if key < start || !strings.HasPrefix(key, prefix) {
				continue
			}
			if i > 0 {
				if _, ok := o.young[key]; ok {
					continue
				}
			}
			list = append(list, saving{key, e.value})
		}
	}
	slices.SortFunc(list, func(a, b saving) int { return strings.Compare(a.key, b.key) })
	o.base.users++
	return list, o.base
}
