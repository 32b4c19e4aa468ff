package logtrack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"waybill/relay/badgerdir"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/reuse"
)

// Numbers chosen by taste, but for the block's size: larger blocks compress
// little better and cost more to look one message up in.
const (
	blockRows    = 2048
	blockBytes   = 8 << 20 // of journal
	blockAge     = time.Hour
	maxSealing   = 24 // full blocks that wait to be stored
	sealTogether = 8
	sealWait     = 2 * time.Second // of a full block for company
	maxUnwritten = 8 << 20         // octets of journal in memory
	recentBlocks = 8               // sealed blocks whose event ids stay in memory
	syncEvery    = time.Second
	// journalBuffer is about what a block of a relay under load brings.
	journalBuffer = 128 << 10
	writeEvery    = 100 * time.Millisecond
	minFree       = 64 << 20 // below this much free disk nothing is stored: Badger would die of SIGBUS
)

// Options configure a Store.
type Options struct {
	Dir          string        // of the store alone; created when missing
	Retention    time.Duration // how long facts are kept; zero means 30 days
	MaxBytes     int64         // on disk; the oldest facts go first; zero means 20 GiB. An eighth of it is for conversations
	CacheBytes   int64         // decoded columns kept in memory; zero means 64 MiB
	QueryTimeout time.Duration // after which a query answers with what it has; zero means 10s
	Logger       *zap.Logger   // nil: none
	Observe      func(kind string, took time.Duration)

	Privacy *Privacy // how addresses are kept; nil: as they are
	// Pending lists the messages that the queue has and that were accepted before
	// a time: their facts outlive the retention. Nil: none.
	Pending func(ctx context.Context, before time.Time) ([]mail.QueueID, error)

	TranscriptRetention time.Duration // how long conversations are kept; zero means 7 days, and Retention is the most

	// Kinds are kept for less than Retention: names of facts that are not durable,
	// or a group of them ([KindSession], [KindProtocol]).
	Kinds map[string]time.Duration

	talks bool // this is the store of conversations of another
}

// Store is the tracking store of one node.
type Store struct {
	opts Options
	log  *zap.Logger
	dir  string // of the journal

	mu        sync.Mutex
	room      sync.Cond // a block was sealed, journal was written, or the store changed its health
	synced    sync.Cond // the flusher has synced up to syncedTo
	closed    bool
	nextSeq   uint32
	open      *memBlock
	sealing   []*memBlock // full, oldest first
	recent    []*idSet    // ids of the last sealed blocks, oldest first
	before    int64       // the latest time of ids in blocks in memory but the open one
	covered   int64       // the latest time of ids in blocks of before the store was opened
	openSeq   uint32      // those blocks have lower numbers
	retired   []*segment  // of stored blocks; the flusher removes their files
	parts     []*partition
	active    *partition // where blocks go; nil before the first
	sealErr   error      // the last try to seal failed
	unwritten int        // octets of journal in memory
	spare     [][]byte   // buffers of the journal to use again
	appended  uint64     // records taken
	writtenTo uint64
	syncedTo  uint64
	storedTo  uint64 // records in stored blocks, and all before them
	wantSync  bool
	oldestDue time.Time // when the first record that is not synced was taken
	lost      uint64    // durable facts that had to be dropped

	flushKick, sealKick, stop chan struct{}
	workers                   sync.WaitGroup

	rewriting sync.Mutex // held while a partition is written anew, or gets facts of the past
	storing   sync.Mutex // held while live blocks are stored
	unloaded  time.Time  // when blocks were last taken out of memory; guarded by storing
	mapped    int        // octets of blocks that were stored since; guarded by storing
	erased    erasedList
	leftOut   []string // partitions that could not be opened

	cache *viewCache
	tails tails

	exactBlocks int    // constant, but in tests
	talks       *Store // of conversations; nil in that store itself

	duplicates, protocolDrops, failureDrops, closedDrops, panics atomic.Int64
	journalErrors, sealErrors, readErrors                        atomic.Int64
	bytes                                                        atomic.Int64
	heavy                                                        chan struct{} // one token for each aggregate at once
	crew                                                         crew
}

// Open opens the store in opts.Dir. What a crash left in the journal is taken
// back. A partition that cannot be opened is left out, and said in the log and
// in [Store.Stats]; the store works without it.
func Open(opts Options) (*Store, error) {
	if opts.Retention <= 0 {
		opts.Retention = 30 * 24 * time.Hour
	}
	if opts.MaxBytes <= 0 {
		opts.MaxBytes = 20 << 30
	}
	if opts.CacheBytes <= 0 {
		opts.CacheBytes = 64 << 20
	}
	if opts.QueryTimeout <= 0 {
		opts.QueryTimeout = 10 * time.Second
	}
	if opts.Observe == nil {
		opts.Observe = func(string, time.Duration) {}
	}
	log := opts.Logger
	if log == nil {
		log = zap.NewNop()
	}
	s := &Store{
		opts: opts, log: log.Named("track"), dir: filepath.Join(opts.Dir, "journal"), nextSeq: 1,
		flushKick: make(chan struct{}, 1), sealKick: make(chan struct{}, 1), stop: make(chan struct{}),
		cache: newViewCache(opts.CacheBytes), heavy: make(chan struct{}, 2), crew: newCrew(),
		exactBlocks: exactBlocks,
	}
	s.room.L, s.synced.L = &s.mu, &s.mu
	s.tails.init()
	for _, dir := range []string{opts.Dir, s.dir, filepath.Join(opts.Dir, "parts")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open tracking store: %w", err)
		}
	}
	if free, ok := freeBytes(opts.Dir); ok && free < minFree {
		return nil, fmt.Errorf("open tracking store %s: %w: %d MiB free, %d MiB are needed; free some, or set tracking.max_size lower",
			opts.Dir, errDiskFull, free>>20, minFree>>20)
	}
	if err := errors.Join(s.settleRewrites(), s.loadErased()); err != nil {
		return nil, err
	}
	if err := s.loadPartitions(); err != nil {
		return nil, err
	}
	if err := s.recover(); err != nil {
		return nil, errors.Join(err, s.closePartitions())
	}
	if err := s.openTalks(); err != nil {
		return nil, errors.Join(err, s.closePartitions())
	}
	s.openSeq = s.nextSeq
	for _, m := range s.sealing {
		s.covered = max(s.covered, m.ids.max)
	}
	s.measure()
	s.workers.Go(s.flusher)
	s.workers.Go(s.sealer)
	s.workers.Go(s.tails.run)
	kick(s.sealKick)
	return s, nil
}

var errDiskFull = errors.New("disk full")

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (s *Store) loadPartitions() error {
	root := filepath.Join(s.opts.Dir, "parts")
	list, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("open tracking store: %w", err)
	}
	for _, d := range list {
		if !d.IsDir() {
			continue
		}
		p, err := loadPartition(filepath.Join(root, d.Name()), s.log)
		if err != nil {
			s.leaveOut(d.Name(), err)
			continue
		}
		s.parts = append(s.parts, p)
		if !p.meta.Finished {
			s.active = p
		}
		if p.meta.Blocks > 0 {
			s.nextSeq = max(s.nextSeq, p.meta.MaxSeq+1)
			s.covered = max(s.covered, p.meta.MaxID)
		}
	}
	return nil
}

// leaveOut goes on without a partition that cannot be opened. s.mu is held, or
// the store is not open yet.
func (s *Store) leaveOut(name string, err error) {
	if slices.Contains(s.leftOut, name) {
		return
	}
	s.log.Error("track partition left out: its facts are not found until it is repaired or removed",
		zap.String("partition", filepath.Join(s.opts.Dir, "parts", name)), zap.Error(err))
	s.readErrors.Add(1)
	s.leftOut = append(s.leftOut, name)
	s.parts = slices.DeleteFunc(slices.Clone(s.parts), func(p *partition) bool { return p.name == name })
	if s.active != nil && s.active.name == name {
		s.active = nil
	}
}

// read acquires a partition to read it, and leaves it out for good when it
// turns out to be damaged. It counts what cannot be read, and one that is gone
// meanwhile is no such thing. s.mu is not held, or the store is not open yet.
func (s *Store) read(p *partition) error {
	err := p.acquire(false)
	if _, damaged := errors.AsType[*badgerdir.DamageError](err); damaged {
		s.mu.Lock()
		s.leaveOut(p.name, err)
		s.mu.Unlock()
	} else if err != nil && !gone(err) {
		s.readErrors.Add(1)
	}
	return err
}

// recover takes back what the journal holds: blocks that were never sealed.
func (s *Store) recover() error {
	list, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("open tracking store: %w", err)
	}
	for _, d := range list {
		seq, ok := journalSeq(d.Name())
		if !ok {
			continue
		}
		s.nextSeq = max(s.nextSeq, seq+1)
		path := filepath.Join(s.dir, d.Name())
		if s.isSealed(seq) {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("open tracking store: %w", err)
			}
			continue
		}
		m, torn, err := s.readBlock(seq, path)
		if err != nil {
			return fmt.Errorf("open tracking store: %w", err)
		}
		if torn > 0 {
			s.log.Warn("track journal had a torn tail", zap.String("file", path), zap.Int("cut_bytes", torn), zap.Int("records", len(m.recs)))
		}
		if len(m.recs) > 0 {
			s.sealing = append(s.sealing, m)
			s.before = max(s.before, m.ids.max)
			continue
		}
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("open tracking store: %w", err)
		}
	}
	return nil
}

func (s *Store) readBlock(seq uint32, path string) (*memBlock, int, error) {
	f, err := os.Open(path) //nolint:gosec // the store's own directory
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	m := newMemBlock(seq, &segment{path: path})
	torn, err := readJournal(f, func(r event.Record) {
		key, ms := idKey(&r)
		if r.ID != "" && (m.ids.has(key, ms) || s.inRecent(key, ms) || ms <= s.covered && s.inSealed(&r, s.overlapping(ms), ms, seq)) {
			return
		}
		m.add(&r, planOf(&r).place, key, ms)
	})
	return m, torn, err
}

// overlapping lists partitions that have ids of the time ms in blocks that are
// not in memory any more. s.mu is held, or the store is not open yet.
func (s *Store) overlapping(ms int64) (list []*partition) {
	for _, p := range s.parts {
		if m := p.summary(); m.Blocks > 0 && m.MinID <= ms && ms <= m.MaxID {
			list = append(list, p)
		}
	}
	return list
}

// isSealed reports whether a block is stored.
func (s *Store) isSealed(seq uint32) bool {
	for _, p := range s.parts {
		if m := p.summary(); m.Blocks == 0 || seq < m.MinSeq || seq > m.MaxSeq {
			continue
		}
		if err := s.read(p); err != nil {
			continue
		}
		found := p.has(seq)
		p.release()
		if found {
			return true
		}
	}
	return false
}

// inSealed looks a record's id up in stored blocks with numbers below seq. Only
// records of the past come here: those of the queue's outbox, which it states
// again at its start, and imports. What this process has written is compared
// with the blocks in memory only.
func (s *Store) inSealed(r *event.Record, parts []*partition, ms int64, seq uint32) bool {
	for _, p := range parts {
		if s.read(p) != nil {
			continue
		}
		found := s.partitionHasID(p, r.ID, ms, seq)
		p.release()
		if found {
			return true
		}
	}
	return false
}

func (s *Store) partitionHasID(p *partition, id string, ms int64, seq uint32) bool {
	for _, h := range p.headers() {
		if ms < h.minID || ms > h.maxID || h.seq >= seq {
			continue
		}
		found, err := s.cache.get(p, h).hasID(id)
		if err != nil {
			s.damaged(p.name, h, err)
		}
		if found {
			return true
		}
	}
	return false
}

func (s *Store) damaged(partition string, h *header, err error) {
	s.readErrors.Add(1)
	s.log.Error("track block cannot be read; its facts are left out", zap.String("partition", partition), zap.Uint32("block", h.seq), zap.Error(err))
}

var framePool = sync.Pool{New: func() any { b := make([]byte, 0, 2048); return &b }}

// Write takes a record: the store is an [event.Sink]. It is found by queries
// that begin after Write returns. When the store's buffers are full, Write
// waits for room, but for facts of the protocol class, which it drops and
// counts; when the store's disk has failed, it drops everything, and Sync says
// so. Write does not panic. It keeps the values of r, whose lists must not
// change any more once a fact is stated. A record that the queue keeps
// (event.Record.Kept) is not written to the journal as well.
func (s *Store) Write(r *event.Record) {
	defer s.survive()
	if e, ok := s.admit(r); ok {
		s.append([]admitted{e})
	}
}

// WriteChange takes the facts of one change as [Store.Write] takes each: the
// store is an [event.ChangeSink]. A query finds all of them or none, unless the
// buffers were full in the midst of them.
func (s *Store) WriteChange(recs []event.Record) {
	defer s.survive()
	list := make([]admitted, 0, 8)
	for i := range recs {
		if e, ok := s.admit(&recs[i]); ok {
			list = append(list, e)
		}
	}
	s.append(list)
}

// survive keeps the relay alive when the store breaks.
func (s *Store) survive() {
	if v := recover(); v != nil {
		s.panics.Add(1)
		s.log.Error("track write broke", zap.Any("panic", v), zap.ByteString("stack", debug.Stack()))
	}
}

// admitted is a record that the store takes, with what is worked out about it
// before the store is locked.
type admitted struct {
	r     *event.Record
	p     *plan
	key   [16]byte // of its id, as idKey makes it
	ms    int64
	frame *[]byte // for the journal, from framePool; nil when the queue keeps the record
}

func (s *Store) admit(r *event.Record) (e admitted, ok bool) {
	if r == nil || r.Event == nil || r.Minor {
		return e, false
	}
	p := plans[reflect.TypeOf(r.Event)]
	if p == nil {
		return e, false
	}
	if r = s.opts.Privacy.protect(r); s.takesTalk(r) {
		return e, false
	}
	e.r, e.p = r, p
	e.key, e.ms = idKey(r)
	if !r.Kept {
		e.frame = framePool.Get().(*[]byte)
		*e.frame = appendRecord((*e.frame)[:0], r)
	}
	return e, true
}

// append adds records to the open block, all of them while the store is locked once.
func (s *Store) append(list []admitted) {
	if s.add(list) {
		kick(s.flushKick)
	}
	for i := range list {
		if f := list[i].frame; f != nil && cap(*f) <= 1<<20 {
			reuse.Spoil(*f)
			framePool.Put(f)
		}
	}
}

// add reports whether the journal should be written soon.
func (s *Store) add(list []admitted) (flush bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range list {
		if s.mayTake(&list[i]) {
			s.take(&list[i])
		}
	}
	return s.unwritten > maxUnwritten/8
}

// mayTake reports whether there is room for e, and no record with its id. s.mu
// is held, but for the time that looking into stored blocks or waiting takes.
func (s *Store) mayTake(e *admitted) bool {
	for checked := e.r.ID == ""; ; checked = true {
		if !s.waitForRoom(e.p.class) {
			return false
		}
		known := e.r.ID != "" && s.inRecent(e.key, e.ms)
		if !known {
			if checked || e.ms > s.covered {
				return true
			}
			known = s.storedAlready(e)
		}
		if known {
			s.duplicates.Add(1)
			return false
		}
	}
}

// storedAlready looks for the id of e in stored blocks, for which it lets go of s.mu.
func (s *Store) storedAlready(e *admitted) bool {
	parts, seq := s.overlapping(e.ms), s.openSeq
	s.mu.Unlock()
	defer s.mu.Lock()
	return s.inSealed(e.r, parts, e.ms, seq)
}

// take adds e to the open block. s.mu is held.
func (s *Store) take(e *admitted) {
	if s.open == nil {
		s.open = newMemBlock(s.nextSeq, &segment{path: journalPath(s.dir, s.nextSeq)})
		s.nextSeq++
	}
	m := s.open
	m.add(e.r, e.p.place, e.key, e.ms)
	switch {
	case e.r.Kept:
		m.kept = true
	default:
		m.bytes += len(*e.frame)
		if m.seg.err != nil {
			break
		}
		if m.seg.buf == nil {
			m.seg.buf = s.buffer()
		}
		m.seg.buf = append(m.seg.buf, *e.frame...)
		s.unwritten += len(*e.frame)
	}
	s.appended++
	if s.oldestDue.IsZero() {
		s.oldestDue = time.Now()
	}
	if s.tails.live.Load() > 0 {
		m.lent = true
		s.tails.offer(&m.recs[len(m.recs)-1])
	}
	if len(m.recs) == cap(m.recs) || m.bytes >= blockBytes {
		s.rotate()
	}
}

// waitForRoom waits until a record of the class may be taken; false means that
// it was dropped and counted. s.mu is held.
func (s *Store) waitForRoom(class event.Durability) bool {
	for {
		full := s.unwritten > maxUnwritten || len(s.sealing) >= maxSealing
		switch {
		case s.closed:
			s.closedDrops.Add(1)
			s.dropped(class)
			return false
		case !full:
			return true
		case s.sealErr != nil:
			s.failureDrops.Add(1)
			s.dropped(class)
			return false
		case class == event.Protocol:
			s.protocolDrops.Add(1)
			return false
		}
		if s.unwritten > maxUnwritten {
			kick(s.flushKick)
		}
		s.room.Wait()
	}
}

func (s *Store) dropped(class event.Durability) {
	if class == event.Durable {
		s.lost++
	}
}

// buffer is an empty buffer for the journal. s.mu is held.
func (s *Store) buffer() []byte {
	n := len(s.spare) - 1
	if n < 0 {
		return make([]byte, 0, journalBuffer)
	}
	b := s.spare[n]
	s.spare = s.spare[:n]
	return b
}

// rotate makes the open block wait to be stored. s.mu is held.
func (s *Store) rotate() {
	if s.open == nil || len(s.open.recs) == 0 {
		return
	}
	s.open.full, s.open.upTo = time.Now(), s.appended
	s.before = max(s.before, s.open.ids.max)
	s.sealing = append(s.sealing, s.open)
	s.open = nil
	kick(s.sealKick)
	kick(s.flushKick)
}

// Mark is the number of records taken so far, for Stored.
func (s *Store) Mark() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.appended
}

// Stored returns the Mark up to which every record is in a stored block. It
// fails once a durable fact was dropped: the queue then keeps its outbox.
func (s *Store) Stored() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.lost > 0:
		return s.storedTo, s.lostErr()
	case s.open == nil && len(s.sealing) == 0:
		return s.appended, nil
	}
	return s.storedTo, nil
}

// lostErr says that durable facts were dropped. s.mu is held.
func (s *Store) lostErr() error {
	return fmt.Errorf("tracking store: %d durable facts could not be taken: %w", s.lost, errors.Join(errLost, s.sealErr))
}

// Sync waits until every record that was written before the call is on disk;
// those that the queue keeps are in a stored block then. It returns an error
// when that cannot be, or when a durable fact was dropped
// before: the queue then keeps its outbox, and states the facts again at its
// next start.
func (s *Store) Sync() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	target := s.appended
	stored := s.hurry()
	for (s.syncedTo < target || s.storedTo < stored) && !s.closed {
		if err := s.journalErr(); err != nil && s.sealErr != nil {
			return fmt.Errorf("sync tracking store: %w", errors.Join(err, s.sealErr))
		}
		if s.storedTo < stored && s.sealErr != nil {
			return fmt.Errorf("sync tracking store: %w", s.sealErr)
		}
		s.wantSync = true
		kick(s.flushKick)
		s.synced.Wait()
	}
	switch {
	case s.lost > 0:
		return s.lostErr()
	case s.syncedTo < target || s.storedTo < stored:
		return errors.New("sync tracking store: closed")
	}
	return nil
}

// hurry has the blocks with records that are in no journal stored at once, and
// returns what storedTo will be then. s.mu is held.
func (s *Store) hurry() (stored uint64) {
	if s.open != nil && s.open.kept {
		s.rotate()
	}
	for _, m := range s.sealing {
		if m.kept {
			stored = m.upTo
		}
	}
	if stored > 0 {
		for _, m := range s.sealing {
			m.full = time.Time{} // waits for no company
		}
		kick(s.sealKick)
	}
	return stored
}

var errLost = errors.New("repair its disk and restart, so that they are stated again")

// journalErr is the first error of a journal file that still matters. s.mu is held.
func (s *Store) journalErr() error {
	for _, m := range s.sealing {
		if m.seg.err != nil {
			return m.seg.err
		}
	}
	if s.open != nil {
		return s.open.seg.err
	}
	return nil
}

// flusher writes and syncs the journal.
func (s *Store) flusher() {
	tick := time.NewTicker(writeEvery)
	defer tick.Stop()
	last := time.Now()
	for {
		stopping := false
		select {
		case <-s.flushKick:
		case <-tick.C:
		case <-s.stop:
			stopping = true
		}
		if s.flush(stopping || time.Since(last) >= syncEvery) {
			last = time.Now()
		}
		if stopping {
			return
		}
	}
}

// flush writes what is buffered, and syncs when asked to by force or by a
// caller of Sync.
func (s *Store) flush(force bool) (didSync bool) {
	type job struct {
		seg *segment
		buf []byte
	}
	s.mu.Lock()
	doSync := force || s.wantSync
	target := s.appended
	retired := s.retired
	s.retired = nil
	var jobs []job
	for _, m := range append(slices.Clone(s.sealing), s.open) {
		if m != nil && m.seg.err == nil && (len(m.seg.buf) > 0 || m.seg.dirty) {
			jobs = append(jobs, job{m.seg, m.seg.buf})
			m.seg.buf = nil
		}
	}
	if doSync {
		s.wantSync = false
	}
	s.mu.Unlock()

	freed := 0
	errs := make([]error, len(jobs))
	for i, j := range jobs {
		if len(j.buf) > 0 {
			errs[i] = j.seg.write(j.buf)
			freed += len(j.buf)
		}
		if doSync && errs[i] == nil {
			errs[i] = j.seg.sync()
		}
	}
	for _, seg := range retired {
		s.remove(seg)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.unwritten -= freed
	for i, j := range jobs {
		j.seg.dirty = !doSync
		if errs[i] == nil {
			continue
		}
		j.seg.err = errs[i]
		s.unwritten -= len(j.seg.buf)
		j.seg.buf = nil
		s.journalErrors.Add(1)
		s.log.Error("track journal cannot be written; its block is stored at once", zap.String("file", j.seg.path), zap.Error(errs[i]))
		if s.open != nil && s.open.seg == j.seg {
			s.rotate()
		}
	}
	s.writtenTo = target
	if doSync {
		s.settle(target)
	}
	if freed > 0 {
		s.room.Broadcast()
	}
	for _, j := range jobs {
		if n := cap(j.buf); n >= journalBuffer && n <= maxUnwritten && len(s.spare) < maxSealing {
			reuse.Spoil(j.buf)
			s.spare = append(s.spare, j.buf[:0])
		}
	}
	return doSync
}

// settle marks everything up to target as synced, unless a journal file that
// still matters has failed. s.mu is held.
func (s *Store) settle(target uint64) {
	if s.journalErr() == nil {
		s.syncedTo = max(s.syncedTo, target)
		if s.syncedTo == s.appended {
			s.oldestDue = time.Time{}
		} else {
			s.oldestDue = time.Now()
		}
	}
	s.synced.Broadcast()
}

// sealer stores full blocks in order, several at a time: what is synced
// together costs the disk, which the queue needs too, one sync.
func (s *Store) sealer() {
	later := time.NewTimer(0)
	defer later.Stop()
	for {
		stopping := false
		select {
		case <-s.sealKick:
		case <-later.C:
		case <-s.stop:
			stopping = true
		}
		wait, ok := s.sealAll(stopping)
		switch {
		case stopping:
			return
		case !ok:
			later.Reset(time.Second)
		case wait > 0:
			later.Reset(wait)
		}
	}
}

// sealAll stores the waiting blocks. Those that wait for company, for so long
// at most, stay unless all are wanted. Not ok means that storing failed and is
// to be tried again.
func (s *Store) sealAll(all bool) (wait time.Duration, ok bool) {
	for {
		s.mu.Lock()
		list := slices.Clone(s.sealing[:min(len(s.sealing), sealTogether)])
		wait = 0
		if len(list) > 0 && len(list) < sealTogether && !all && !slices.ContainsFunc(list, func(m *memBlock) bool { return m.seg.err != nil }) {
			wait = sealWait - time.Since(list[0].full)
		}
		s.mu.Unlock()
		if len(list) == 0 {
			return 0, true
		}
		for _, m := range list { // at once, for their rows take much memory
			m.encode()
			s.mu.Lock()
			m.settle()
			s.mu.Unlock()
		}
		if wait > 0 {
			return wait, true
		}
		err := s.seal(list)
		s.mu.Lock()
		s.sealErr = err
		s.room.Broadcast()
		s.synced.Broadcast()
		s.mu.Unlock()
		if err != nil {
			s.sealErrors.Add(1)
			s.log.Error("track blocks cannot be stored; it is tried again", zap.Uint32("block", list[0].seq), zap.Int("blocks", len(list)), zap.Error(err))
			return 0, false
		}
	}
}

func (s *Store) seal(list []*memBlock) error {
	if free, ok := freeBytes(s.opts.Dir); ok && free < minFree {
		return fmt.Errorf("%w: %d MiB free", errDiskFull, free>>20)
	}
	done := make([]*encoded, len(list))
	for i, m := range list {
		done[i] = m.encode()
	}
	s.storing.Lock()
	defer s.storing.Unlock()
	p, err := s.writable(time.Now())
	if err != nil {
		return err
	}
	if err := p.acquire(true); err != nil {
		return err
	}
	defer p.release()
	if err := p.put(done...); err != nil {
		return err
	}

	s.mu.Lock()
	for i, m := range list {
		p.publish(done[i])
		s.storedTo = max(s.storedTo, m.upTo)
		s.recent = append(s.recent, m.ids)
		s.unwritten -= len(m.seg.buf)
		m.seg.buf = nil
		s.retired = append(s.retired, m.seg)
	}
	s.sealing = slices.Clone(s.sealing[len(list):])
	for len(s.recent) > recentBlocks {
		s.recent[0].free()
		s.recent = slices.Delete(s.recent, 0, 1)
	}
	if s.open == nil && len(s.sealing) == 0 { // all there is, is stored
		s.writtenTo = s.appended
		s.settle(s.appended)
	}
	s.room.Broadcast()
	s.mu.Unlock()
	if err := p.settleIndex(false); err != nil {
		s.log.Error("track index stays in memory; it is tried again", zap.String("partition", p.name), zap.Error(err))
	}
	for _, e := range done {
		s.mapped += len(e.body)
	}
	if now := time.Now(); s.mapped > unloadOctets || now.Sub(s.unloaded) > unloadEvery {
		s.unloaded, s.mapped = now, 0
		if err := p.unload(); err != nil { // it stays larger, and no worse
			s.log.Debug("track blocks stay in memory", zap.String("partition", p.name), zap.Error(err))
		}
	}
	return nil
}

// Stored blocks are taken out of memory after so many octets of them, and, because
// queries read some into it, after such a time. By taste.
const (
	unloadOctets = 2 << 20
	unloadEvery  = 5 * time.Second
)

// remove removes the journal file of a stored block. When that fails the next
// start finds that the block is stored already.
func (s *Store) remove(seg *segment) {
	if seg.file != nil {
		_ = seg.file.Close() // nothing of it is needed any more
	}
	if err := os.Remove(seg.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log.Warn("remove of a track journal file", zap.Error(err))
	}
}

// writable is the partition for blocks of time t.
func (s *Store) writable(t time.Time) (*partition, error) {
	day := t.UTC().Format("20060102")
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.active; p != nil && p.meta.Day == day && p.bytes < s.opts.MaxBytes/8 {
		return p, nil
	}
	return s.newPartition(day, true)
}

// newPartition makes a partition for a day. s.mu is held.
func (s *Store) newPartition(day string, active bool) (*partition, error) {
	n := 0
	for _, p := range s.parts {
		if p.meta.Day == day {
			if k, err := strconv.Atoi(p.name[min(9, len(p.name)):]); err == nil {
				n = max(n, k+1)
			}
		}
	}
	p := &partition{log: s.log}
	p.meta.Day = day
	for ; ; n++ { // a partition that could not be opened may have the next name
		p.name = fmt.Sprintf("%s-%04d", day, n)
		p.dir = filepath.Join(s.opts.Dir, "parts", p.name)
		err := os.Mkdir(p.dir, 0o700)
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrExist) {
			return nil, err
		}
	}
	s.parts = append(slices.Clone(s.parts), p)
	slices.SortFunc(s.parts, func(a, b *partition) int {
		if a.name < b.name {
			return -1
		}
		return 1
	})
	if active {
		s.active = p
	}
	return p, nil
}

// Close stores what is in memory and ends the store. Records that are written
// from now on are dropped and counted.
func (s *Store) Close() error {
	if err := s.end(); err != nil {
		return fmt.Errorf("close tracking store: %w", err)
	}
	return nil
}

func (s *Store) end() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.rotate()
	s.room.Broadcast()
	s.synced.Broadcast()
	s.mu.Unlock()
	close(s.stop)
	s.tails.close()
	var talks error
	if s.talks != nil {
		if talks = s.talks.end(); talks != nil {
			talks = fmt.Errorf("conversations: %w", talks)
		}
	}
	s.workers.Wait()
	s.flush(true) // only what could not be sealed
	s.mu.Lock()
	left := len(s.sealing)
	sealErr := s.sealErr
	for _, m := range s.sealing {
		if m.seg.file != nil {
			_ = m.seg.file.Close() // synced above; what failed was counted there
		}
	}
	s.mu.Unlock()
	err := errors.Join(s.closePartitions(), talks)
	if left > 0 {
		err = errors.Join(err, fmt.Errorf("%d blocks stay in the journal: %w", left, sealErr))
	}
	return err
}

func (s *Store) closePartitions() error {
	var errs []error
	for _, p := range s.parts {
		p.mu.Lock()
		errs = append(errs, p.closeLocked())
		p.mu.Unlock()
	}
	return errors.Join(errs...)
}

// Stats are the store's levels and totals.
type Stats struct {
	Events       int64 // facts that can be found
	Blocks       int   // sealed
	Partitions   int
	Bytes        int64            // on disk, as of the last look, at most a minute ago
	Oldest       time.Time        // of the oldest fact; zero when there is none
	IndexLag     time.Duration    // age of the oldest record that is not on disk yet
	Waiting      int              // full blocks that wait to be stored
	Duplicates   int64            // records that were written again
	Dropped      map[string]int64 // by reason: buffer_full, store_failed, closed, panic
	WriteErrors  map[string]int64 // by reason: journal, seal, read
	Tails        int              // live readers
	TailsDropped int64            // live readers that were too slow
	CacheBytes   int64
	Degraded     string // what is wrong, or empty
}

// Stats reads the store's levels from memory.
func (s *Store) Stats() Stats {
	st := Stats{
		Bytes: s.bytes.Load(), Duplicates: s.duplicates.Load(), CacheBytes: s.cache.size(),
		Dropped: map[string]int64{
			"buffer_full": s.protocolDrops.Load(), "store_failed": s.failureDrops.Load(), "closed": s.closedDrops.Load(), "panic": s.panics.Load(),
		},
		WriteErrors: map[string]int64{"journal": s.journalErrors.Load(), "seal": s.sealErrors.Load(), "read": s.readErrors.Load()},
	}
	st.Tails, st.TailsDropped = s.tails.stats()
	if s.talks != nil {
		st.addTalks(s.talks.Stats())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	oldest := int64(0)
	see := func(ts int64) {
		if oldest == 0 || ts < oldest {
			oldest = ts
		}
	}
	for _, p := range s.parts {
		m := p.summary()
		if m.Blocks == 0 {
			continue
		}
		st.Partitions++
		st.Events += m.Rows
		st.Blocks += m.Blocks
		see(m.MinTS)
	}
	for _, m := range s.inMemory() {
		st.Events += int64(m.count())
		see(m.head.minTS)
	}
	if oldest != 0 {
		st.Oldest = time.UnixMicro(oldest).UTC()
	}
	st.Waiting += len(s.sealing)
	if !s.oldestDue.IsZero() {
		st.IndexLag = time.Since(s.oldestDue)
	}
	switch {
	case s.sealErr != nil:
		st.Degraded = s.sealErr.Error()
	case s.lost > 0:
		st.Degraded = fmt.Sprintf("%d durable facts were dropped", s.lost)
	case len(s.leftOut) > 0:
		st.Degraded = fmt.Sprintf("damaged partitions are left out: %s; waybill track reindex fills the gap", strings.Join(s.leftOut, ", "))
	}
	return st
}

// measure looks how much of the disk the store takes.
func (s *Store) measure() {
	s.mu.Lock()
	parts := slices.Clone(s.parts)
	s.mu.Unlock()
	total := usedBytes(s.dir)
	sizes := make(map[*partition]int64, len(parts))
	for _, p := range parts {
		sizes[p] = usedBytes(p.dir)
		total += sizes[p]
	}
	s.bytes.Store(total)
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range maps.Keys(sizes) {
		p.bytes = sizes[p]
	}
}
