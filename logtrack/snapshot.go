package logtrack

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"waybill/relay/event"
)

// source is one block that a query may look at: in memory or stored.
type source struct {
	head *header
	part *partition // of a stored block
	mem  *inMemory  // of one in memory
}

// inMemory is a block in memory: its facts, or the block once it is encoded.
type inMemory struct {
	recs  []event.Record
	block *memBlock
}

// recs are the facts of a block in memory that is not encoded.
func (src *source) recs() []event.Record {
	if src.mem == nil {
		return nil
	}
	return src.mem.recs
}

// encoded is a block in memory that is encoded, or nil.
func (src *source) encoded() *memBlock {
	if src.mem == nil {
		return nil
	}
	return src.mem.block
}

// body calls read with the body of a block that is stored or encoded.
func (src *source) body(read func([]byte) error) error {
	if m := src.encoded(); m != nil {
		return read(m.encoded.body)
	}
	return src.part.body(src.head.seq, read)
}

// may reports whether a block that is encoded may hold p.
func (src *source) may(p posting) bool {
	m := src.encoded()
	if m == nil {
		return false
	}
	_, ok := slices.BinarySearch(m.encoded.posts, p)
	return ok
}

// allowed reports whether a block in memory may have a fact that passes preds, as
// its postings tell.
func (src *source) allowed(preds []*pred) bool {
	if src.encoded() == nil {
		return true
	}
	failed := slices.ContainsFunc(preds, func(p *pred) bool { return p.failed })
	for _, p := range preds {
		undelivered := failed && slices.Contains(undeliveredPosts, p.post)
		if p.post != postNone && !slices.ContainsFunc(p.keys, func(k string) bool {
			key := postingOf(p.post, k)
			return src.may(key) && (!undelivered || src.may(key.undelivered()))
		}) {
			return false
		}
	}
	return !slices.ContainsFunc(preds, func(p *pred) bool { return p.cannot(src.head) })
}

// facts are all facts of a block in memory.
func (src *source) facts() ([]event.Record, error) {
	if m := src.encoded(); m != nil {
		return m.view.allRecords()
	}
	return src.recs(), nil
}

// snapshot is what a query sees: all blocks at one moment. It must be released.
type snapshot struct {
	s       *Store
	started time.Time
	mem     []*source
	parts   []*partition // acquired
	heads   map[*partition][]*header
	places  map[*partition]map[uint32]int // in heads, once one was not where it was looked for
	bad     atomic.Int32                  // blocks that could not be read
	looked  atomic.Int32                  // blocks that were read
	folded  int                           // messages, of a search for them

	mu       sync.Mutex
	notes    []string
	glimpsed map[string]*glimpse // messages of which some blocks were read already
}

// snapshot takes the blocks that may hold what want asks for, as the summary of
// a partition tells.
func (s *Store) snapshot(want func(m *meta) bool) (*snapshot, error) {
	sn := &snapshot{s: s, started: time.Now(), heads: map[*partition][]*header{}}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, errClosed
	}
	var parts []*partition
	for _, p := range s.parts {
		if m := p.summary(); m.Blocks > 0 && want(&m) {
			parts = append(parts, p)
		}
	}
	// The headers of partitions that are open are taken under the lock, so
	// that no block is seen twice or not at all while it is being sealed.
	var shut []*partition
	for _, p := range parts {
		if p.acquireOpen() {
			sn.parts = append(sn.parts, p)
			sn.heads[p] = p.headers()
		} else {
			shut = append(shut, p)
		}
	}
	sn.mem = s.memory()
	s.mu.Unlock()
	for _, p := range shut {
		if err := s.read(p); err != nil {
			sn.bad.Add(1)
			continue
		}
		sn.parts = append(sn.parts, p)
		for _, h := range p.headers() { // but for those that were still in memory a moment ago
			if !slices.ContainsFunc(sn.mem, func(m *source) bool { return m.head.seq == h.seq }) {
				sn.heads[p] = append(sn.heads[p], h)
			}
		}
	}
	return sn, nil
}

var errClosed = errors.New("the tracking store is closed")

// acquireOpen acquires the partition if it is open already.
func (p *partition) acquireOpen() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dropped || p.db == nil {
		return false
	}
	p.refs++
	return true
}

func (sn *snapshot) release() {
	for _, p := range sn.parts {
		p.release()
	}
}

func (sn *snapshot) note(format string, args ...any) {
	sn.mu.Lock()
	defer sn.mu.Unlock()
	sn.notes = append(sn.notes, fmt.Sprintf(format, args...))
}

// view is the view of a block that is stored or encoded.
func (sn *snapshot) view(src *source) *view {
	sn.looked.Add(1)
	if m := src.encoded(); m != nil {
		return m.view
	}
	return sn.s.cache.get(src.part, src.head)
}

// failed counts a block that could not be read. It is left out of the answer.
func (sn *snapshot) failed(src *source, err error) {
	if errors.Is(err, errUnknownFact) {
		return
	}
	sn.bad.Add(1)
	place := "" // memory
	if src.part != nil {
		place = src.part.name
	}
	sn.s.damaged(place, src.head, err)
}

// blocks lists the blocks that pass keep and that the indexes of preds allow.
func (sn *snapshot) blocks(ctx context.Context, preds []*pred, keep func(h *header) bool) ([]*source, error) {
	var list []*source
	for _, m := range sn.mem {
		if keep(m.head) && m.allowed(preds) {
			list = append(list, m)
		}
	}
	inMemory := len(list)
	total, indexed := 0, ""
	for _, p := range sn.parts {
		allowed, by, err := sn.indexed(ctx, p, preds)
		if err != nil {
			return nil, err
		}
		indexed = by
		total += len(sn.heads[p])
		if by == "" {
			allowed = sn.heads[p]
		}
		list = slices.Grow(list, len(allowed))
		for _, h := range allowed {
			if keep(h) && !slices.ContainsFunc(preds, func(p *pred) bool { return p.cannot(h) }) {
				list = append(list, &h.stored)
			}
		}
	}
	if indexed == "" {
		indexed = "no index"
	}
	sn.note("%d of %d sealed blocks may match (%s), and %d in memory", len(list)-inMemory, total, indexed, inMemory)
	return list, nil
}

// indexed intersects the index entries of preds in p; by is empty when no index helps.
func (sn *snapshot) indexed(ctx context.Context, p *partition, preds []*pred) (allowed []*header, by string, err error) {
	failed := slices.ContainsFunc(preds, func(pr *pred) bool { return pr.failed })
	var passed []uint8 // by place among the headers: how many of the lists so far have the block
	lists := uint8(0)
	var names []string
	both := func(found [][]uint32) {
		if passed == nil {
			passed = make([]uint8, len(sn.heads[p]))
		}
		n := 0
		for _, seqs := range found {
			n += len(seqs)
		}
		allowed = slices.Grow(allowed[:0], n)
		for _, seqs := range found {
			for _, seq := range seqs {
				if i := sn.placeOf(p, seq); i >= 0 && passed[i] == lists {
					passed[i]++
					allowed = append(allowed, sn.heads[p][i])
				}
			}
		}
		lists++
	}
	for _, pr := range preds {
		if pr.post == postNone {
			continue
		}
		keys := make([]posting, len(pr.keys), 2*len(pr.keys))
		for i, k := range pr.keys {
			keys[i] = postingOf(pr.post, k)
		}
		undelivered := failed && slices.Contains(undeliveredPosts, pr.post)
		if undelivered {
			for _, k := range keys {
				keys = append(keys, k.undelivered())
			}
		}
		found, err := p.lookup(ctx, sn.s.crew, keys, nil)
		if err != nil {
			return nil, "", err
		}
		both(found[:len(pr.keys)])
		names = append(names, "index of "+pr.term.Field)
		if undelivered {
			both(found[len(pr.keys):])
			names = append(names, "and of what was not delivered")
		}
	}
	return allowed, strings.Join(names, " "), nil
}

// placeOf is the place of a block among the headers of a partition, or -1 when
// the query does not see it.
func (sn *snapshot) placeOf(p *partition, seq uint32) int {
	heads := sn.heads[p]
	if len(heads) == 0 {
		return -1
	}
	// Blocks are mostly numbered without a gap.
	if i := int(seq) - int(heads[0].seq); i >= 0 && i < len(heads) && heads[i].seq == seq {
		return i
	}
	places := sn.places[p]
	if places == nil {
		places = make(map[uint32]int, len(heads))
		for i, h := range heads {
			places[h.seq] = i
		}
		if sn.places == nil {
			sn.places = map[*partition]map[uint32]int{}
		}
		sn.places[p] = places
	}
	if i, ok := places[seq]; ok {
		return i
	}
	return -1
}

// explain is the plan of an answer, when it was asked for.
func (sn *snapshot) explain(asked bool) []string {
	if !asked {
		return nil
	}
	sn.note("%d block reads, %d partitions", sn.looked.Load(), len(sn.parts))
	sn.mu.Lock()
	defer sn.mu.Unlock()
	return sn.notes
}

func (sn *snapshot) took() float64 { return float64(time.Since(sn.started).Microseconds()) / 1000 }

// deadline bounds a query in time.
func (s *Store) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.opts.QueryTimeout)
}

// observe tells how long a query took.
func (s *Store) observe(kind string, sn *snapshot) { s.opts.Observe(kind, time.Since(sn.started)) }

// isCut tells a query that ran out of its own time from one that was given up.
func isCut(ctx context.Context, err error) bool {
	return errors.Is(err, context.DeadlineExceeded) && errors.Is(ctx.Err(), context.DeadlineExceeded)
}
