package logtrack

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"go.uber.org/zap"

	"waybill/relay/badgerdir"
)

const (
	metaFile     = "meta.json"
	memTableSize = 2 << 20 // of headers and the places of blocks: 10 million facts have less
)

// meta summarizes a partition, so that it need not be opened to know that it
// has nothing to say.
type meta struct {
	Day      string `json:"day"`
	Finished bool   `json:"finished"` // cleanly closed and complete
	Rows     int64  `json:"rows"`
	Blocks   int    `json:"blocks"`
	MinSeq   uint32 `json:"min_seq"`
	MaxSeq   uint32 `json:"max_seq"`
	MinTS    int64  `json:"min_ts"`
	MaxTS    int64  `json:"max_ts"`
	MinID    int64  `json:"min_id"`
	MaxID    int64  `json:"max_id"`
	MinAcc   int64  `json:"min_acc"`
	MaxAcc   int64  `json:"max_acc"`
	HasMsg   bool   `json:"has_msg"`
	Rollups  int    `json:"rollups,omitempty"` // version of all of them, once finished

	Thinned []string `json:"thinned,omitempty"` // kinds of facts that were taken out before their day goes
}

func (m *meta) add(h *header) {
	if m.Blocks == 0 {
		m.MinSeq, m.MaxSeq = h.seq, h.seq
		m.MinTS, m.MaxTS, m.MinID, m.MaxID = h.minTS, h.maxTS, h.minID, h.maxID
	}
	m.Blocks++
	m.Rows += int64(h.rows)
	m.MinSeq, m.MaxSeq = min(m.MinSeq, h.seq), max(m.MaxSeq, h.seq)
	m.MinTS, m.MaxTS = min(m.MinTS, h.minTS), max(m.MaxTS, h.maxTS)
	m.MinID, m.MaxID = min(m.MinID, h.minID), max(m.MaxID, h.maxID)
	if !h.hasMsg {
		return
	}
	if !m.HasMsg {
		m.MinAcc, m.MaxAcc, m.HasMsg = h.minAcc, h.maxAcc, true
	}
	m.MinAcc, m.MaxAcc = min(m.MinAcc, h.minAcc), max(m.MaxAcc, h.maxAcc)
}

// partition is one Badger database with the blocks of a day, or of a part of it.
type partition struct {
	name string
	dir  string
	log  *zap.Logger

	mu      sync.Mutex
	meta    meta
	heads   []*header // grows; a prefix of it never changes
	runs    []*run    // the index of all blocks but the fresh
	fresh   []fresh
	db      *badger.DB
	ro      bool
	refs    int
	used    time.Time
	dropped bool
	bytes   int64 // as of the last look

	thinAfter time.Time // when taking kinds of facts out may be tried again

	indexing sync.Mutex   // held while runs are made
	writes   sync.RWMutex // held for reading by who writes to the database
}

// badgerOptions are for a database that only ever grows and is then removed
// whole: small memtables, no Bloom filters (index keys are only iterated), the
// blocks in the value log so that compaction does not move them.
func badgerOptions(dir string, log *zap.Logger, readOnly bool) badger.Options {
	return badger.DefaultOptions(dir).
		WithLogger(badgerLog{log.Sugar()}).
		WithSyncWrites(true). // a block's journal is removed once the block is stored
		WithReadOnly(readOnly).
		WithMemTableSize(memTableSize).
		WithNumMemtables(2).
		WithNumCompactors(2).
		WithValueThreshold(4 << 10).
		WithValueLogFileSize(256 << 20).
		WithCompression(options.Snappy).
		WithBlockCacheSize(8 << 20).
		WithBloomFalsePositive(0).
		WithDetectConflicts(false).
		WithMetricsEnabled(false)
}

// badgerLog passes on what Badger says that a person should see.
type badgerLog struct{ *zap.SugaredLogger }

// Warningf passes a warning on.
func (l badgerLog) Warningf(f string, a ...any) { l.Warnf(f, a...) }

// Infof is silent.
func (l badgerLog) Infof(string, ...any) {}

// Debugf is silent.
func (l badgerLog) Debugf(string, ...any) {}

// loadPartition reads what is known of a partition without opening it.
func loadPartition(dir string, log *zap.Logger) (*partition, error) {
	p := &partition{name: filepath.Base(dir), dir: dir, log: log}
	b, err := os.ReadFile(filepath.Join(dir, metaFile)) //nolint:gosec // the store's own directory
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, err
	case json.Unmarshal(b, &p.meta) != nil:
		p.meta = meta{} // rebuilt from the blocks
	}
	if p.meta.Day == "" && len(p.name) >= 8 {
		p.meta.Day = p.name[:8]
	}
	if p.meta.Finished { // opened when somebody asks for it
		return p, inspect(dir)
	}
	p.meta = meta{Day: p.meta.Day}
	if err := p.acquire(true); err != nil {
		return nil, err
	}
	for _, h := range p.heads {
		p.meta.add(h)
	}
	p.release()
	return p, nil
}

// acquire opens the partition if needed and keeps it open until release.
func (p *partition) acquire(write bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dropped {
		return os.ErrClosed
	}
	if p.db != nil && p.ro && write {
		if p.refs > 0 {
			return fmt.Errorf("partition %s is being read", p.name)
		}
		if err := p.closeLocked(); err != nil {
			return err
		}
	}
	if p.db == nil {
		if err := p.openLocked(write); err != nil {
			return err
		}
	}
	p.refs++
	p.used = time.Now()
	return nil
}

func (p *partition) openLocked(write bool) error {
	ro := p.meta.Finished && !write
	if err := badgerdir.Tidy(p.dir); err != nil {
		return err
	}
	if err := inspect(p.dir); err != nil {
		return err
	}
	db, err := openBadger(badgerOptions(p.dir, p.log, ro))
	if err != nil && ro { // not closed as cleanly as it says
		ro = false
		db, err = openBadger(badgerOptions(p.dir, p.log, ro))
	}
	if err != nil {
		return fmt.Errorf("open track partition %s: %w", p.dir, err)
	}
	heads, err := readHeaders(db, p.log)
	if err != nil {
		return errors.Join(err, db.Close())
	}
	runs, young, err := readIndex(db, heads, p.log)
	if err != nil {
		return errors.Join(err, db.Close())
	}
	for _, h := range heads {
		h.stored = source{head: h, part: p}
	}
	p.db, p.ro, p.heads, p.runs, p.fresh = db, ro, heads, runs, young
	return nil
}

// inspect reads the checksums of a closed partition, whose tables are small
// because blocks are in the value log. Badger goes on without what it cannot
// read, and so would a search, with no word about it.
func inspect(dir string) error {
	state, err := badgerdir.Inspect(dir, 2*memTableSize)
	if err == nil {
		err = state.Err(dir)
	}
	return err
}

// openBadger makes an error of a panic: Badger asserts where files contradict
// themselves.
func openBadger(opts badger.Options) (db *badger.DB, err error) {
	defer func() {
		if v := recover(); v != nil {
			db, err = nil, &badgerdir.DamageError{Dir: opts.Dir, List: []badgerdir.Damage{{File: "database", What: fmt.Sprintf("contradicts itself: %.200v", v)}}}
		}
	}()
	return badgerdir.Open(opts)
}

func readHeaders(db *badger.DB, log *zap.Logger) ([]*header, error) {
	var heads []*header
	words := map[string]string{}
	intern := func(s string) string {
		if w, ok := words[s]; ok {
			return w
		}
		words[s] = s
		return s
	}
	err := db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{PrefetchValues: true, PrefetchSize: 64, Prefix: []byte{'h'}})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			k := it.Item().Key()
			if len(k) != 5 {
				continue
			}
			seq := binary.BigEndian.Uint32(k[1:])
			err := it.Item().Value(func(b []byte) error {
				h, err := readHeader(seq, b, intern)
				if err != nil {
					log.Error("track block left out: its header is damaged", zap.Uint32("block", seq), zap.Error(err))
					return nil
				}
				heads = append(heads, h)
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	return heads, err
}

func (p *partition) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refs--
	p.used = time.Now()
	if p.dropped && p.refs == 0 {
		p.removeLocked()
	}
}

// idle closes the database when nobody has used it for a while.
func (p *partition) idle(since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.db == nil || p.refs > 0 || p.used.After(since) {
		return
	}
	if err := p.closeLocked(); err != nil && !errors.Is(err, errDiskFull) { // there it is tried again
		p.log.Warn("close of track partition", zap.String("partition", p.name), zap.Error(err))
	}
}

// closeFree is how much of the disk must be free for a database to be closed: its
// newest keys become a table then, which Badger maps before it has its blocks.
const closeFree = 16 << 20

// closeLocked closes the database. On a full disk it stays open: what is in its
// log is found there at the next start. One that is dropped is closed all the same.
func (p *partition) closeLocked() error {
	if p.db == nil {
		return nil
	}
	if free, ok := freeBytes(p.dir); ok && free < closeFree && !p.ro && !p.dropped {
		return fmt.Errorf("%w: %d MiB free", errDiskFull, free>>20)
	}
	err := p.db.Close()
	p.db, p.heads, p.runs, p.fresh = nil, nil, nil, nil
	return err
}

// finish closes the partition for good: from now on it is opened to read.
func (p *partition) finish() error {
	if err := p.acquire(true); err != nil {
		return err
	}
	err := p.settleIndex(true)
	restored := err
	if err == nil {
		restored = p.restoreRollups()
	}
	p.release()
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refs > 0 || p.ro && p.meta.Finished {
		return nil // tried again later
	}
	if err := p.closeLocked(); err != nil {
		return err
	}
	p.meta.Finished = true
	p.meta.Rollups = rollupVersion // those that cannot be made are not tried again
	return errors.Join(p.writeMetaLocked(), restored)
}

func (p *partition) writeMetaLocked() error {
	b, err := json.Marshal(p.meta)
	if err != nil {
		return err
	}
	tmp := filepath.Join(p.dir, metaFile+".tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(p.dir, metaFile))
}

// unfinish makes a finished partition take blocks again. The mark goes first,
// so that a crash finds the partition unfinished.
func (p *partition) unfinish() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.meta.Finished {
		return nil
	}
	if err := os.Remove(filepath.Join(p.dir, metaFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	p.meta.Finished = false
	p.meta.Thinned = nil // what comes may have some of them
	return nil
}

// drop removes the partition, once its last reader is done.
func (p *partition) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropped = true
	if p.refs == 0 {
		p.removeLocked()
	}
}

func (p *partition) removeLocked() {
	err := p.closeLocked()
	if err = errors.Join(err, os.RemoveAll(p.dir)); err != nil {
		p.log.Error("remove of track partition", zap.String("partition", p.name), zap.Error(err))
	}
}

// has reports whether a block is stored here. The partition is acquired.
func (p *partition) has(seq uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.heads, func(h *header) bool { return h.seq == seq })
}

// put stores blocks, all or none. The partition is acquired for writing.
func (p *partition) put(list ...*encoded) error {
	return p.update(func(txn *badger.Txn) error {
		for _, e := range list {
			if err := txn.Set(blockKey('d', e.head.seq), e.body); err != nil {
				return err
			}
			if err := txn.Set(blockKey('h', e.head.seq), e.head.append(nil)); err != nil {
				return err
			}
		}
		return nil
	})
}

// update writes to the database. The partition is acquired for writing.
func (p *partition) update(f func(txn *badger.Txn) error) error {
	p.writes.RLock()
	defer p.writes.RUnlock()
	return p.db.Update(f)
}

// unloadAbove is how much of mapped files may be in the memory of this process, in
// octets: blocks are written and read through memory, and all that was written
// today would stay there. The program's own pages are 20 MiB of it.
const unloadAbove = 24 << 20

// unload takes the stored blocks out of the memory of this process; the kernel
// keeps them as long as it has room. The partition is acquired.
func (p *partition) unload() error {
	p.writes.Lock()
	defer p.writes.Unlock()
	return badgerdir.UnloadValues(p.dir, unloadAbove)
}

// publish makes a stored block visible to queries that begin from now on.
func (p *partition) publish(e *encoded) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.head.stored = source{head: e.head, part: p}
	p.heads = append(p.heads, e.head)
	p.fresh = append(slices.Clip(p.fresh), fresh{e.head, e.posts, e.roll})
	p.meta.add(e.head)
}

// headers is what the partition holds. It is acquired.
func (p *partition) headers() []*header {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clip(p.heads)
}

func (p *partition) summary() meta {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.meta
}

// body calls read with the stored body of a block. The partition is acquired.
func (p *partition) body(seq uint32, read func([]byte) error) error { return readBody(p.db, seq, read) }

func readBody(db *badger.DB, seq uint32, read func([]byte) error) error {
	return db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(blockKey('d', seq))
		if err != nil {
			return err
		}
		return item.Value(read)
	})
}
