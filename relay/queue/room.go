package queue

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"waybill/relay/badgerdir"
)

// room keeps a full disk from ending the process in the middle of a transaction.
// Badger writes through memory that is mapped to files, where a full disk is no
// error but a SIGBUS. So the log that transactions go to has all its blocks before it
// is used, and so has the next one; and from the mark on at which nothing is
// claimed either, Badger may begin no table, until there is room again. What is
// under way then still goes into the segment in use, or into the log in use. When
// both are used up, everything is refused, and settlements come again until there is
// room.
type room struct {
	dir     string // of the database
	reserve *badgerdir.Reserve
	used    int64  // octets of the log in use, as many as it can be; these belong to Queue.saving
	last    int64  // of the last transaction
	said    string // why the next log was not reserved

	mu    sync.RWMutex // held for reading while a transaction is committed
	shut  atomic.Bool  // no table may be begun
	ready bool         // the database is open; guarded by mu
}

// logMost is how much of a log is used while there is no other: less than what
// has Badger begin the next one.
const logMost = memTableSize / 4 * 3

// perKey is what a key takes beside its octets, in the log or in memory, where
// Badger begins a new log when either is full. It is more than enough.
const perKey = 160

// errLogFull says that a transaction would need a new log, for which there is no room.
var errLogFull = errors.New("the disk is full")

// open is called when the database is.
func (r *room) open() (err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reserve, err = badgerdir.Begin(r.dir, logSize)
	r.ready = err == nil
	return err
}

// close says whether the database can be closed: on a full disk it cannot,
// because it would write a table. All of it is in its log, and is found there at
// the next start.
func (r *room) close() (can bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ready {
		return true, nil
	}
	r.ready = false
	if r.shut.Load() {
		return false, nil
	}
	return true, r.reserve.End()
}

// shutTables has Badger begin no table, or lets it again.
func (r *room) shutTables(shut bool) error {
	if r.shut.Load() == shut {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ready || r.shut.Load() == shut {
		return nil
	}
	do := badgerdir.Reopen
	if shut {
		do = badgerdir.Shut
	}
	err := do(r.dir)
	if err == nil {
		r.shut.Store(shut)
	}
	return err
}

// admit reports whether a transaction of size octets can be committed now. When
// it can, the caller calls done after the commit. Queue.saving is held.
func (q *Queue) admit(size int64) (done func(), ok bool) {
	r := &q.room
	if r.reserve.Taken() {
		r.used = r.last
	}
	r.mu.RLock()
	err := error(nil)
	if !r.shut.Load() {
		err = r.reserve.Ready()
		q.sayReserve(err)
	}
	spare := err == nil && !r.shut.Load()
	if !spare && r.used+size > logMost {
		r.mu.RUnlock()
		if err != nil {
			q.guard.full()
		}
		return nil, false
	}
	r.used += size
	r.last = size
	if err == nil {
		return r.mu.RUnlock, true
	}
	return func() { r.mu.RUnlock(); q.guard.full() }, true
}

// sayReserve tells why the next log could not be reserved, once.
func (q *Queue) sayReserve(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != q.room.said {
		q.remark("disk guard", text)
	}
	q.room.said = text
}

// noRoom reports whether what failed with err may succeed when there is room again.
func noRoom(err error) bool {
	return !errors.Is(err, ErrStorage) && (errors.Is(err, errLogFull) || errors.Is(err, errNoRoom) || isFull(err) || isExhausted(err))
}

// pause lets some time pass before what found no room is tried again. It reports
// whether it is to be.
func (q *Queue) pause(hurry <-chan struct{}) bool {
	timer := time.NewTimer(holdBackFor)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-hurry:
	case <-q.closing:
	case <-q.broken:
	}
	return false
}

// holdBackFor is until a settlement that found no room is tried again. Chosen by taste.
const holdBackFor = 100 * time.Millisecond

// The guard looks the more often the less is free, so that even who fills a disk
// at once (more than fillRate a second is memory) is seen before the last mark.
const (
	fillRate  = 4 << 30
	lookLeast = 20 * time.Millisecond
	lookMost  = time.Second
)

// lookAfter is when the guard must look again.
func (g *guard) lookAfter() time.Duration {
	over := max(g.free.Load(), 0) - g.min/4
	return min(max(time.Duration(float64(over)/fillRate*float64(time.Second))/2, lookLeast), lookMost)
}

// keepWatch has the guard look as often as it must, until ctx is done.
func (q *Queue) keepWatch(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.closing:
			return
		case <-q.broken:
			return
		case <-timer.C:
		}
		q.guard.check()
		timer.Reset(min(q.guard.lookAfter(), q.opts.tune.tick))
	}
}

func (q *Queue) databaseDir() string { return filepath.Join(q.opts.Dir, "badger") }
