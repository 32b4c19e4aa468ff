package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"waybill/relay/badgerdir"
	"waybill/relay/event"
	"waybill/relay/route"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

const (
	defaultLifetime    = 48 * time.Hour
	defaultConcurrency = 20
	defaultLateAfter   = 5 * time.Minute
	defaultDiskFreeMin = 1 << 30
	defaultKeepMax     = 10 << 30
	// leastDiskFreeMin is what the database itself may need at once: its log,
	// and copies of its tables while they are merged.
	leastDiskFreeMin = 256 << 20

	// memTableSize is what the newest keys may take before they are made a table.
	// Badger keeps it three times: as log, as list, and for a while as table, for
	// which it takes 4 MiB at first and 8 more when that does not do. With 16 MiB
	// there was 65 MiB more at full speed, and no less time. It also bounds
	// transactions, and so how many recipients a message may have: a transaction of
	// Badger's takes 15 %.
	memTableSize = 4 << 20
	// blockSize is that of the tables' blocks. Badger has 4 KiB, of which records
	// leave so much empty that a table does not fit into the first 4 MiB.
	blockSize = 16 << 10
	// baseLevelSize is how large the level may be that new tables are merged into
	// before what is in it goes on into the next one. Badger has 10 MiB: what waits in
	// a queue of more than some 20,000 messages was written once more.
	baseLevelSize = 64 << 20
	transactional = memTableSize * 15 / 100

	// formatNumber is that of a queue all of which is in the database, and formatJournal
	// that of one whose journal may have more: a program that does not know the journal
	// must not open it.
	formatNumber  = 1
	formatJournal = 3 // 2 had its marks where a closed queue has them
)

// tuning is what tests change.
type tuning struct {
	fs           fsys
	segment      int64        // size of shared segments
	beforeCommit func() error // its error is that of the commit
	tick         time.Duration
	save         time.Duration // how often the database learns of the journal
}

func (t tuning) commit() error {
	if t.beforeCommit == nil {
		return nil
	}
	return t.beforeCommit()
}

// Queue is the queue of one node.
type Queue struct {
	opts     Options
	db       *badger.DB
	dirLock  io.Closer
	contents *contents
	guard    *guard
	outbox   outbox
	overlay  overlay
	com      committer
	latency  latency
	recent   recent
	lastSize atomic.Int64 // of the latest content: a guess at the next

	batchBytes int64 // of one transaction, and so of one entry: it may have to go there
	// recordBytes bounds a record, so that it has room in a transaction beside a
	// quarter of a batch, as changes by operators are, and beside its facts.
	recordBytes int64
	changeBytes int64 // bounds a change that goes alone, its facts compressed
	batchKeys   int64
	journal     uint64        // the committer's own: the number of the next entry
	secret      secret        // of its entries
	committed   chan struct{} // closed when the committer has ended

	saving      sync.Mutex // held while the database is written to
	reached     mark       // these belong to it: how far the database knows the journal
	segmentMark uint64     // the segment number that the database has
	resting     bool       // the marks are where a closed queue has them
	direct      []uint64   // entries of the journal that are in the database
	commits     uint64     // transactions so far
	room        room

	witness   *witness
	flight    *flight
	published chan publication
	working   sync.WaitGroup

	// One message is changed by one goroutine at a time: its stripe is held
	// from reading its record until the change is committed.
	stripes [256]sync.Mutex

	routing atomic.Uint64 // counts the routing tables
	due     chan struct{} // holds a token when something may be due

	failed  atomic.Pointer[failed]
	broken  chan struct{} // closed by the first failure
	closing chan struct{} // closed by Close
	once    sync.Once
	life    sync.RWMutex // held for reading while the database is read
	closed  bool         // guarded by life

	mu       sync.Mutex
	sched    *schedule
	holds    map[route.Hop]*hold
	until    map[ident]int64 // of held messages, in microseconds since 1970
	timer    *time.Timer     // rings when the next group is due
	pressure map[string]int
	strays   []ident // committed while the routing table changed
	inFlight []ident // when the process before this one crashed
	cutOff   []ident // found at start, with a content that is not whole
	unheld   []ident // committed while a standing hold began or ended
	standing atomic.Pointer[[]*hold]
	kept     keptList
	shut     atomic.Pointer[string] // why an operator had it closed

	unloading sync.Once // its error was told
	steady    steady
}

// Open opens the queue in opts.Dir, or makes it. It reads all messages, states
// again the facts that the tracking store may not have, and is ready to accept
// and to be claimed from when it returns.
func Open(opts Options) (*Queue, error) {
	start := time.Now()
	q, err := newQueue(opts)
	if err != nil {
		return nil, err
	}
	if err := q.openFiles(); err != nil {
		return nil, errors.Join(fmt.Errorf("open queue: %w", err), q.closeFiles())
	}
	loaded, err := q.load(start)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("load queue: %w", err), q.closeFiles())
	}
	q.working.Go(q.commitLoop)
	q.working.Go(q.publishLoop)
	q.working.Go(q.saveLoop)
	if err := q.rerouteAll(context.Background(), nil); err != nil {
		return nil, errors.Join(fmt.Errorf("route queue: %w", err), q.Close())
	}
	if err := errors.Join(q.setApart(q.cutOff), q.suspect(q.inFlight)); err != nil {
		return nil, errors.Join(fmt.Errorf("load queue: %w", err), q.Close())
	}
	q.contents.prepare()
	loaded.Took = event.Secs(time.Since(start))
	if loaded.Messages > 100_000 { // reading them has left as much behind as they take
		debug.FreeOSMemory()
		q.unload()
	}
	q.opts.Emitter.Source(event.SourceBoot).Emit(*loaded)
	q.steady.observe(time.Now())
	q.mu.Lock()
	q.rearm(time.Now())
	q.mu.Unlock()
	return q, nil
}

func newQueue(opts Options) (*Queue, error) {
	if opts.Dir == "" || opts.Router == nil {
		return nil, errors.New("open queue: a directory and a router are needed")
	}
	opts.Lifetime = orDefault(opts.Lifetime, defaultLifetime)
	opts.LateAfter = orDefault(opts.LateAfter, defaultLateAfter)
	opts.KeepMaxBytes = orDefault(opts.KeepMaxBytes, defaultKeepMax)
	opts.DiskFreeMin = max(orDefault(opts.DiskFreeMin, defaultDiskFreeMin), leastDiskFreeMin)
	opts.tune.segment = orDefault(opts.tune.segment, segmentSize)
	opts.tune.tick = orDefault(opts.tune.tick, time.Second)
	opts.tune.save = orDefault(opts.tune.save, min(saveEvery, opts.tune.tick))
	if opts.Concurrency == nil {
		opts.Concurrency = func(route.Hop) int { return defaultConcurrency }
	}
	if opts.tune.fs == nil {
		opts.tune.fs = disk{}
	}
	q := &Queue{
		opts: opts,
		contents: &contents{
			fs: opts.tune.fs, dir: filepath.Join(opts.Dir, "segments"), limit: opts.tune.segment,
			noSync: opts.NoSync, segs: map[uint64]*segment{}, preparing: map[uint64]bool{}, next: 1, ripe: make(chan struct{}, 1),
		},
		overlay:   newOverlay(),
		published: make(chan publication, 16),
		committed: make(chan struct{}),
		due:       make(chan struct{}, 1),
		broken:    make(chan struct{}),
		closing:   make(chan struct{}),
		sched:     newSchedule(opts.Concurrency),
		holds:     map[route.Hop]*hold{},
		until:     map[ident]int64{},
		pressure:  map[string]int{},
	}
	q.room.dir = q.databaseDir()
	q.standing.Store(new([]*hold))
	q.com.wake = make(chan struct{}, 1)
	q.outbox.many = make(chan struct{}, 1)
	q.outbox.next = 1
	q.sched.holdOf = q.holdFor
	if opts.Down != nil {
		q.sched.isDown = opts.Down
	}
	q.sched.total = opts.Workers
	for p, class := range opts.Priorities {
		if class.Share > 0 {
			q.sched.shares[priorityIndex(p)] = min(class.Share, 100)
		}
	}
	q.guard = newGuard(q)
	q.contents.spend = q.guard.spend
	q.contents.made.L = &q.contents.mu
	q.opts.Emitter = opts.Emitter.Source(event.SourceQueue)
	q.timer = time.AfterFunc(time.Hour, q.ring)
	return q, nil
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// openFiles makes the directories and opens the database, after the disk guard
// has seen that there is room: on a full disk Badger's files, which are mapped
// into memory, would kill the process.
func (q *Queue) openFiles() error {
	fs := q.opts.tune.fs
	for _, dir := range []string{q.opts.Dir, q.contents.dir} {
		if err := fs.mkdirAll(dir); err != nil {
			return err
		}
	}
	var err error
	if q.dirLock, err = lockDir(q.opts.Dir); err != nil {
		return err
	}
	if err := q.guard.beforeOpen(); err != nil {
		return err
	}
	dir := q.databaseDir()
	if err := badgerdir.Reopen(dir); err != nil {
		return err
	}
	if err := q.inspect(dir); err != nil {
		return err
	}
	if q.db, err = openBadger(dir, !q.opts.NoSync, &badgerLog{q: q}); err != nil {
		return q.advise(err)
	}
	if err := q.room.open(); err != nil {
		return err
	}
	if q.flight, q.inFlight, err = openFlight(q.opts.Dir); err != nil {
		return err
	}
	if q.witness, err = openWitness(filepath.Join(q.opts.Dir, witnessName)); err != nil {
		return err
	}
	q.batchBytes = q.db.MaxBatchSize() * 3 / 4
	q.recordBytes, q.changeBytes = q.db.MaxBatchSize()/16*11, q.db.MaxBatchSize()/16*15
	q.batchKeys = q.db.MaxBatchCount() * 3 / 4
	if q.opts.NoSync {
		return nil
	}
	for _, dir := range []string{dir, q.contents.dir, q.opts.Dir} {
		if err := fs.syncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// closeFiles undoes openFiles, as far as that came.
func (q *Queue) closeFiles() error {
	q.timer.Stop()
	errs := []error{q.contents.close()}
	can, err := q.room.close()
	errs = append(errs, err)
	q.overlay.end()
	if q.db != nil && can {
		errs = append(errs, q.db.Close())
	}
	errs = append(errs, q.witness.close(), q.flight.close())
	if q.dirLock != nil {
		errs = append(errs, q.dirLock.Close())
	}
	return errors.Join(errs...)
}

func openBadger(dir string, synced bool, log badger.Logger) (db *badger.DB, err error) {
	defer func() { // Badger asserts where its files contradict each other
		if p := recover(); p != nil {
			db, err = nil, fmt.Errorf("%s is damaged: %v", dir, p)
		}
	}()
	opts := badger.DefaultOptions(dir).
		WithSyncWrites(synced).
		WithMemTableSize(memTableSize).
		WithNumMemtables(3).
		WithValueThreshold(transactional). // no transaction has a value that goes elsewhere
		WithValueLogFileSize(16 << 20).
		WithNumCompactors(2).
		WithBaseLevelSize(baseLevelSize).
		WithCompression(options.None). // what is left of a damaged table can be read record by record
		WithBlockCacheSize(0).
		WithBlockSize(blockSize).
		WithDetectConflicts(false). // there is one committer
		WithChecksumVerificationMode(options.OnBlockRead).
		WithMetricsEnabled(false).
		WithLogger(log)
	if db, err = badgerdir.Open(opts); err != nil {
		return nil, fmt.Errorf("open database %s: %w", dir, err)
	}
	return db, nil
}

// unloadAbove is how much of mapped files may be in memory, in octets. Tables of a
// long queue are hundreds of MiB, and all of it is read or written again whenever
// Badger merges them. Chosen by taste.
const unloadAbove = 40 << 20

// unload takes the database's tables out of this process' memory.
func (q *Queue) unload() {
	q.life.RLock()
	defer q.life.RUnlock()
	if q.closed || q.room.shut.Load() { // then they are not where their names say
		return
	}
	if err := badgerdir.Unload(q.db, q.databaseDir(), unloadAbove); err != nil {
		q.unloading.Do(func() { q.remark("memory of tables", err.Error()) })
	}
}

// badgerLog makes facts of what Badger has to say, one a second at most.
type badgerLog struct {
	q    *Queue
	last atomic.Int64
}

func (l *badgerLog) remark(format string, args []any) {
	now := time.Now().UnixMilli()
	if last := l.last.Load(); now-last >= 1000 && l.last.CompareAndSwap(last, now) {
		l.q.remark("badger", strings.TrimSpace(fmt.Sprintf(format, args...)))
	}
}

// Errorf makes a fact of an error.
func (l *badgerLog) Errorf(format string, args ...any) { l.remark(format, args) }

// Warningf makes a fact of a warning.
func (l *badgerLog) Warningf(format string, args ...any) { l.remark(format, args) }

// Infof says nothing.
func (*badgerLog) Infof(string, ...any) {}

// Debugf says nothing.
func (*badgerLog) Debugf(string, ...any) {}

func (q *Queue) remark(what, detail string) {
	q.opts.Emitter.Emit(event.Remarked{Remark: what, Detail: clip(detail, 1024)})
}

func (q *Queue) loadFormat() error {
	err := q.db.View(func(txn *badger.Txn) error {
		format, err := readNumber(txn, keyFormat)
		if err != nil {
			return err
		}
		if format > formatJournal {
			return fmt.Errorf("the queue has format %d, this program knows format %d; use a newer program", format, formatJournal)
		}
		q.segmentMark, err = readNumber(txn, keySegment)
		return err
	})
	if err != nil {
		return err
	}
	q.contents.next = max(q.contents.next, q.segmentMark)
	return q.setFormat(formatJournal)
}

// wait is the recipients of one message that wait for one hop.
type wait struct {
	hop route.Hop
	when
	tried  bool
	others bool      // there is another way for any
	told   bool      // all delays were told
	lastAt time.Time // of the last attempt
}

// newEntry is what memory is to hold of m.
func newEntry(id ident, m *stored) entry {
	return entry{
		id: id, accepted: m.AcceptedAt.UnixMicro(), size: m.Size, segment: m.loc.seq,
		prio: uint8(priorityIndex(m.Priority)), held: m.HeldBy != "", poison: m.Poison != "", //nolint:gosec // 0 to 2
		late: m.excused || allLate(m),
	}
}

func allLate(m *stored) bool {
	for i := range m.States {
		if !m.States[i].Late && !m.States[i].Disposition.Final() {
			return false
		}
	}
	return true
}

// waits lists the hops that m waits for, and says whether the routing table would
// have any recipient wait for another. decided is what it said of each, or nil.
func (q *Queue) waits(m *stored, decided []route.Decision) (ws []wait, strays bool) {
	for i := range m.States {
		s := &m.States[i]
		if s.Disposition.Final() {
			continue
		}
		var d route.Decision
		if decided != nil {
			d = decided[i]
		} else {
			d = q.routeOf(&m.Message, i)
		}
		strays = strays || d.Hop != s.Hop
		due := s.Due.UnixMicro()
		if s.Hop == route.Unroutable {
			due = m.ExpiresAt.UnixMicro()
		}
		k := slices.IndexFunc(ws, func(w wait) bool { return w.hop == s.Hop })
		if k < 0 {
			k = len(ws)
			ws = append(ws, wait{hop: s.Hop, when: when{due: due}, told: true})
		}
		w := &ws[k]
		w.due = min(w.due, due)
		w.tried = w.tried || s.Attempts > 0
		w.others = w.others || d.Others
		w.told = w.told && s.DelaySent
		w.lastAt = later(w.lastAt, s.LastAt)
	}
	for k := range ws {
		switch w := &ws[k]; {
		case w.others: // whoever claims it looks for another way
		case q.opts.Latest == nil:
			w.latest = m.ExpiresAt.UnixMicro()
		default:
			w.latest = q.opts.Latest(&m.Message, Waiting{Hop: w.hop, Told: w.told, LastAt: w.lastAt}).UnixMicro()
		}
	}
	return ws, strays
}

// deleteKeys deletes the keys of messages that are finished, in bulk.
func (q *Queue) deleteKeys(ids []ident) error {
	for part := range slices.Chunk(ids, 1000) {
		q.room.used += int64(len(part)) * 2 * perKey
		txn := q.db.NewTransaction(true)
		for _, id := range part {
			if err := txn.Delete([]byte(messageKey(id.QueueID()))); err != nil {
				txn.Discard()
				return err
			}
		}
		if err := txn.Commit(); err != nil {
			return err
		}
	}
	return nil
}

// ring lets a waiting Claim look again.
func (q *Queue) ring() {
	select {
	case q.due <- struct{}{}:
	default:
	}
}

// rearm rings now if something is due, or sets the timer to when it will be.
// q.mu is held.
func (q *Queue) rearm(now time.Time) {
	if d, idle := q.sched.wait(now.UnixMicro()); idle {
		q.timer.Reset(max(d, 0))
	} else {
		q.ring()
	}
}

// failed is why the queue stopped.
type failed struct{ err error }

func (q *Queue) failure() error {
	if f := q.failed.Load(); f != nil {
		return f.err
	}
	return nil
}

// fail stops the queue for good: after a failed sync nobody knows what is on
// the disk, and a second sync would say that all is well.
func (q *Queue) fail(err error) {
	if !q.failed.CompareAndSwap(nil, &failed{err}) {
		return
	}
	close(q.broken)
	q.setPressure(event.PressureChanged{Resource: "storage_error", Level: 2, Detail: clip(err.Error(), 512)})
}

// setPressure states a change of a resource's level, and nothing when it did not change.
func (q *Queue) setPressure(p event.PressureChanged) {
	q.mu.Lock()
	p.Was = q.pressure[p.Resource]
	q.pressure[p.Resource] = p.Level
	q.mu.Unlock()
	if p.Was != p.Level {
		q.opts.Emitter.Emit(p)
	}
}

// Ready returns nil when the queue takes mail, or why it does not.
func (q *Queue) Ready() error {
	select {
	case <-q.closing:
		return ErrClosed
	default:
	}
	if err := q.failure(); err != nil {
		return fmt.Errorf("%w: %w", ErrStorage, err)
	}
	if why := q.refusal(); why != "" {
		return errors.New(why)
	}
	return nil
}

// refusal says why no mail is taken at the moment, or is empty.
func (q *Queue) refusal() string {
	if why := q.shut.Load(); why != nil {
		return *why
	}
	if q.guard.stopped.Load() {
		return "the disk is nearly full"
	}
	if q.opts.MaxMessages > 0 {
		q.mu.Lock()
		n := q.sched.messages
		q.mu.Unlock()
		if n >= q.opts.MaxMessages {
			return fmt.Sprintf("the queue is full: %d messages", n)
		}
	}
	return ""
}

// Close ends the queue: what was handed in is committed, its facts are stated.
// Leases that are still out come back at the next Open.
func (q *Queue) Close() error {
	var err error
	q.once.Do(func() {
		close(q.closing)
		q.com.mu.Lock()
		q.com.closed = true
		q.com.mu.Unlock()
		select {
		case q.com.wake <- struct{}{}:
		default:
		}
		q.working.Wait()
		q.life.Lock() // its files are mapped: nobody may read them any more
		defer q.life.Unlock()
		q.closed = true
		if q.failure() == nil { // otherwise nobody knows what is on the disk: the journal says so at the next start
			if err := q.confirmLast(); err != nil {
				q.remark("facts stay in the outbox until the next start", err.Error())
			}
			serr := q.saveLast()
			if serr == nil { // nothing is in the journal alone
				serr = q.setFormat(formatNumber)
			}
			if serr != nil && !errors.Is(serr, errLogFull) { // then it is in the journal
				err = fmt.Errorf("save queue: %w", serr)
			}
		}
		err = errors.Join(err, q.closeFiles())
	})
	return err
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}

// latency is a moving average of how long commits take. Nobody commits while
// nothing is accepted, so it halves with every look that finds no new commit; a
// commit that has begun and not ended counts for as long as it takes already.
type latency struct {
	mu    sync.Mutex
	mean  time.Duration
	began time.Time // of the commit under way; zero when there is none
	fresh bool      // a commit ended since the last look
}

func (l *latency) begin(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.began = now
}

func (l *latency) end(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mean += (now.Sub(l.began) - l.mean) / 8
	l.began, l.fresh = time.Time{}, true
}

func (l *latency) look(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.fresh && l.began.IsZero() {
		l.mean /= 2
	}
	l.fresh = false
	if !l.began.IsZero() {
		return max(l.mean, now.Sub(l.began))
	}
	return l.mean
}
