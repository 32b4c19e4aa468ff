package queue

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/route"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sync/errgroup"
)

// At start every record is read once: by several goroutines, each of which takes
// the next range of keys, and by one that puts what they found where it belongs,
// range by range in the order of the keys. Only a few ranges are in memory at a
// time, and nothing of a record stays in memory but its entry.
const loadRanges = 256 // at most; by taste

// scanned is what one record said.
type scanned struct {
	id       ident
	waiting  bool
	message  entry // where something waits
	loc      location
	size     int64
	finished time.Time // of a kept one
	kept     bool
	ended    bool      // its lifetime has passed
	strays   bool      // the routing table would send it elsewhere
	until    time.Time // of a hold of the message alone
	waits    []wait
	damage   string // why it cannot be read
	key      string // of a damaged one
}

// scannedRange is what the records of a range of keys said.
type scannedRange struct {
	list   []scanned
	failed failures
}

// loadRecords calls f with what the records of every range said, in the order of
// the keys, and never at the same time.
func (q *Queue) loadRecords(start time.Time, f func(*scannedRange)) error {
	from := q.keyRanges()
	results := make([]chan scannedRange, len(from))
	for i := range results {
		results[i] = make(chan scannedRange, 1)
	}
	workers := min(len(from), max(1, runtime.GOMAXPROCS(0)))
	group, ctx := errgroup.WithContext(context.Background())
	ahead := make(chan int, workers) // ranges that are read, or wait for their turn
	group.Go(func() error {
		defer close(ahead)
		for i := range from {
			select {
			case ahead <- i:
			case <-ctx.Done():
				return nil
			}
		}
		return nil
	})
	free := make(chan struct{}, 2*workers) // bounds what is in memory
	for range workers {
		group.Go(func() error {
			for {
				select {
				case free <- struct{}{}:
				case <-ctx.Done():
					return nil
				}
				i, ok := <-ahead
				if !ok {
					return nil
				}
				var end []byte
				if i+1 < len(from) {
					end = from[i+1]
				}
				found, err := q.loadRange(ctx, start, from[i], end)
				if err != nil {
					return err
				}
				results[i] <- found
			}
		})
	}
	group.Go(func() error {
		for _, r := range results {
			select {
			case found := <-r:
				f(&found)
				<-free
			case <-ctx.Done():
				return nil
			}
		}
		return nil
	})
	return group.Wait()
}

// keyRanges returns where the ranges of keys of messages begin, of about the same
// size each. They follow from the database's tables.
func (q *Queue) keyRanges() [][]byte {
	prefix := []byte(prefixMessage)
	var keys [][]byte
	for _, t := range q.db.Tables() {
		for _, k := range [][]byte{t.Left, t.Right} {
			if len(k) > 8 && bytes.HasPrefix(k, prefix) { // a version follows the key
				keys = append(keys, k[:len(k)-8])
			}
		}
	}
	slices.SortFunc(keys, bytes.Compare)
	keys = slices.CompactFunc(keys, bytes.Equal)
	from := [][]byte{prefix}
	for i, step := 1, max(1, len(keys)/loadRanges); i < len(keys); i += step {
		from = append(from, keys[i])
	}
	return from
}

// loadRange reads the records from key from to before end, or to the last.
func (q *Queue) loadRange(ctx context.Context, start time.Time, from, end []byte) (found scannedRange, err error) {
	found.failed = failures{}
	err = q.db.View(func(txn *badger.Txn) error {
		opts := badger.DefaultIteratorOptions
		opts.Prefix = []byte(prefixMessage)
		opts.PrefetchValues = false // they are in the tables
		it := txn.NewIterator(opts)
		defer it.Close()
		for it.Seek(from); it.Valid(); it.Next() {
			item := it.Item()
			if end != nil && bytes.Compare(item.Key(), end) >= 0 {
				return nil
			}
			if len(found.list)%1024 == 0 && ctx.Err() != nil {
				return nil
			}
			id, ok := parseIdent(mail.QueueID(item.Key()[len(prefixMessage):]))
			var m *stored
			err := item.Value(func(v []byte) (err error) {
				m, err = decodeRecord(v)
				return err
			})
			if !ok || err == nil && m.ID != id.QueueID() {
				err = fmt.Errorf("%w: key", errRecord)
			}
			switch {
			case errors.Is(err, errRecord):
				found.list = append(found.list, scanned{damage: err.Error(), key: string(item.Key()[len(prefixMessage):])})
			case err != nil:
				return err
			default:
				found.list = append(found.list, q.findOut(id, m, start))
				found.failed.gather(m)
			}
		}
		return nil
	})
	return found, err
}

// findOut takes from m what memory is to hold of it.
func (q *Queue) findOut(id ident, m *stored, start time.Time) scanned {
	f := scanned{id: id, loc: m.loc, size: m.Size, kept: m.kept, finished: m.finished}
	if m.done {
		return f
	}
	f.waiting, f.message = true, newEntry(id, m)
	f.ended = m.ExpiresAt.Before(start)
	if m.HeldBy != "" {
		f.until = m.HeldUntil
	}
	f.waits, f.strays = q.waits(m, nil) // the table may have changed since
	now := start.UnixMicro()
	ahead := m.AcceptedAt.After(start.Add(clockStep))
	for i := range m.States {
		ahead = ahead || m.States[i].LastAt.After(start.Add(clockStep))
	}
	for i := range f.waits {
		// A due time beyond the lifetime comes from a clock that was wrong, and so does
		// one that was set when it was later than now.
		w := &f.waits[i]
		released := m.Envelope.Release.UnixMicro()
		if w.hop != route.Unroutable && (w.due > max(now+q.opts.Lifetime.Microseconds(), released) || ahead && w.due > max(now, released)) {
			w.due = now
		}
	}
	return f
}

// load reads everything. Only Open calls it, so it needs no lock.
func (q *Queue) load(start time.Time) (*event.QueueLoaded, error) {
	loaded := &event.QueueLoaded{}
	if err := q.contents.load(); err != nil {
		return nil, err
	}
	if err := q.compareStrays(); err != nil {
		return nil, err
	}
	if err := q.loadFormat(); err != nil {
		return nil, err
	}
	if err := q.loadJournal(); err != nil {
		return nil, err
	}
	err := q.db.View(q.loadHolds)
	if err != nil {
		return nil, err
	}
	if loaded.Reemitted, err = q.reemit(); err != nil {
		return nil, err
	}
	l := loading{Queue: q, now: start.UnixMicro(), ends: map[uint64]int64{}, failed: failures{}}
	if err := q.loadRecords(start, l.takeRange); err != nil {
		return nil, err
	}
	if l.damaged > 0 { // their contents are somewhere in these files
		for _, s := range q.contents.segs {
			s.pinned = true
		}
		q.remark("damaged queue records", fmt.Sprintf("%d records cannot be read and stay where they are; no content file is removed", l.damaged))
	}
	loaded.Dropped = l.dropped
	if err := q.checkMarker(loaded.Dropped); err != nil {
		return nil, err
	}
	if loaded.Dropped > 0 {
		q.remark("queued messages without content", fmt.Sprintf("%d messages have no content in %s and are left out; if files are missing there, put them back and start again",
			loaded.Dropped, q.contents.dir))
	}
	q.sortKept()
	q.contents.trim(l.ends)
	q.enlist(l.entries, l.now)
	l.failed.recall(q.sched.hops)
	loaded.Messages = q.sched.messages
	return loaded, q.deleteKeys(l.gone)
}

// loading is a load under way.
type loading struct {
	*Queue
	now     int64
	ends    map[uint64]int64 // of what is needed of each segment
	entries []uint32
	gone    []ident // whose keys may go
	failed  failures
	damaged int
	dropped int // without content
}

func (l *loading) takeRange(found *scannedRange) {
	for k := range found.list {
		l.take(&found.list[k])
	}
	l.failed.merge(found.failed)
	l.unload() // of a long queue, half a gigabyte would be resident until the last record is read
}

// take puts what a record said where it belongs.
func (l *loading) take(f *scanned) {
	seg := l.contents.segs[f.loc.seq]
	needs := func() {
		seg.refer(f.id, f.size)
		l.ends[seg.seq] = max(l.ends[seg.seq], f.loc.end(f.size))
	}
	switch {
	case f.damage != "":
		l.damaged++
		l.opts.Emitter.Message(mail.QueueID(f.key), "").Emit(event.MessagePoisoned{Error: f.damage})
	case f.kept && seg != nil && l.restoreKept(f, seg, l.now):
		needs()
	case !f.waiting && seg != nil:
		seg.ids = append(seg.ids, f.id)
	case !f.waiting:
		l.gone = append(l.gone, f.id)
	case seg == nil:
		// A key that was deleted after its segment had gone, and came back.
		// Or somebody took the segments away: so it is kept until its lifetime has ended.
		l.dropped++
		if f.ended {
			l.gone = append(l.gone, f.id)
		}
	default:
		if f.loc.off+contentHeader+f.size > seg.used && !f.message.poison {
			l.cutOff = append(l.cutOff, f.id)
		}
		needs()
		if f.strays {
			l.strays = append(l.strays, f.id)
		}
		if !f.until.IsZero() {
			l.until[f.id] = f.until.UnixMicro()
		}
		e := l.sched.enter(f.message)
		for _, w := range f.waits { // until it is enlisted, nothing knows its groups
			l.sched.newGroup(e, l.sched.hop(w.hop), w.when, w.tried)
		}
		l.entries = append(l.entries, e.ref)
	}
}

// What was due while nobody was there is due at start over a while, in its order:
// so long for each, and at most so long for all. The first message for a hop shows
// whether the hop can be reached, and the others for it come after. There may be
// very many hops that cannot: at once, their attempts would take half of what the
// mail that comes needs. Chosen by taste; both are faster than anybody delivers.
const (
	spreadStep  = 50 * time.Microsecond
	spreadFirst = 2 * time.Millisecond // for each hop
	spreadMost  = time.Minute
)

// enlist puts the messages found at start into the schedule, oldest first.
func (q *Queue) enlist(entries []uint32, now int64) {
	s := q.sched
	slices.SortStableFunc(entries, func(a, b uint32) int { return cmp.Compare(s.entries.at(a).accepted, s.entries.at(b).accepted) })
	overdue := int64(0)
	began := map[*hopQueue]int64{} // when the first of what is overdue for a hop is due
	for _, ref := range entries {
		for g, h := range s.groups(s.entries.at(ref)) {
			if g.due <= now {
				overdue++
				began[h] = now
			}
		}
	}
	window, k := min(time.Duration(overdue)*spreadStep, spreadMost).Microseconds(), int64(0)
	hops, first := int64(len(began)), int64(0)
	opening := min(time.Duration(hops)*spreadFirst, spreadMost).Microseconds()
	clear(began)
	for _, ref := range entries {
		e := s.entries.at(ref)
		s.link(e)
		for g, h := range s.groups(e) {
			// High priority does not wait, and what no connector wants is not tried.
			if g.due <= now {
				at, begun := began[h]
				if !begun {
					at = now + opening*first/hops
					began[h] = at
					first++
				} else {
					at += window * k / overdue
				}
				if e.prio > 0 && h.hop != route.Unroutable && at > now {
					g.wait(when{at, g.latest.micro()})
					g.spread = true
				}
				k++
			}
			s.join(g, now)
		}
	}
	for _, h := range s.hops {
		h.in = 0
	}
	s.advance(now)
}
