package logtrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"slices"
	"sort"

	"github.com/cespare/xxhash/v2"
	"github.com/dgraph-io/badger/v4"
	"go.uber.org/zap"
)

// The index of a partition says which blocks may hold a value. A block brings
// its postings when it is stored; they stay in memory until there are those of
// runBlocks blocks, which become one run: sorted, packed, and read by a binary
// search of a directory that stays in memory. What a crash takes from memory is
// worked out again from the blocks' dictionaries.

// A posting is kind, 40 bits of the hash of a value, and 16 bits for the place
// of the block in its run, which are zero in what is looked up.
type posting uint64

// postingOf makes the posting of a value. Who is found by it is rechecked, so
// that a collision costs time and nothing else.
func postingOf(post byte, value string) posting {
	return posting(post)<<56 | posting(xxhash.Sum64String(value)>>24)<<hashShift
}

func (p posting) kind() byte { return byte(p >> 56) }

// hash is the value's hash, 40 bits.
func (p posting) hash() uint64 { return uint64(p) >> hashShift & (1<<hashBits - 1) }

const (
	hashBits  = 40
	hashShift = 16      // where a posting has its hash
	runBlocks = 128     // by taste: 5 MiB of postings in memory
	runMost   = 1 << 16 // blocks whose place a posting has room for
	runChunk  = 128     // entries for each one in the directory
	// spareBits is how many more bits of a hash are kept than tell the entries
	// apart: one look-up in 2^7 reads a block in vain, if its times allow
	// it, and differences of neighbours mostly fit into one octet.
	spareBits = 7
	// runVersion 1 has no postings of undelivered recipients.
	runVersion = 2
)

// fresh is a stored block that is in no run yet.
type fresh struct {
	head  *header
	posts []posting    // sorted; nil when they could not be worked out: anything may be in the block
	roll  *youngRollup // nil when it could not be worked out
}

func (f *fresh) may(p posting) bool {
	if f.posts == nil {
		return true
	}
	_, ok := slices.BinarySearch(f.posts, p)
	return ok
}

// run is what memory holds of a run.
type run struct {
	key      []byte
	version  byte
	blocks   []uint32
	sections map[byte]*section
	roll     *rollHead  // nil when there is no rollup
	accepted acceptance // of the messages of its blocks
}

// section is the postings of one kind in a run.
type section struct {
	bits    int // of the hash that are kept
	first   []uint32
	at      []uint32 // octets from the section's data to each chunk
	start   int      // of the data in the run's value
	size    int
	entries int
}

// encodeRun packs the postings of blocks.
func encodeRun(blocks []fresh) []byte {
	total := 0
	for i := range blocks {
		total += len(blocks[i].posts)
	}
	all := make([]posting, 0, total)
	for i := range blocks {
		for _, p := range blocks[i].posts {
			all = append(all, p|posting(i))
		}
	}
	all = sorted(all, make([]posting, total)) // those alike are in the order of their blocks
	var dirs, data []byte
	sections := 0
	for len(all) > 0 {
		n := sort.Search(len(all), func(i int) bool { return all[i].kind() > all[0].kind() })
		dirs, data = appendSection(dirs, data, all[:n])
		all = all[n:]
		sections++
	}
	out := append(make([]byte, bodyStart, bodyStart+len(dirs)+len(data)+5*len(blocks)), byte(sections))
	out = binary.AppendUvarint(out, uint64(len(blocks)))
	for i := range blocks {
		out = binary.AppendUvarint(out, uint64(blocks[i].head.seq))
	}
	out = append(append(out, dirs...), data...)
	out[0] = runVersion
	binary.BigEndian.PutUint32(out[1:], crc32.Checksum(out[bodyStart:], castagnoli))
	return out
}

func appendSection(dirs, data []byte, list []posting) ([]byte, []byte) {
	keep := min(32, bits.Len(uint(len(list)))+spareBits)
	start := len(data)
	dirs = append(dirs, list[0].kind(), byte(keep)) //nolint:gosec // at most 32
	dirs = binary.AppendUvarint(dirs, uint64(len(list)))
	var last uint64
	for i, p := range list {
		h := p.hash() >> (hashBits - keep)
		if i%runChunk == 0 {
			dirs = binary.LittleEndian.AppendUint32(dirs, uint32(h))               //nolint:gosec // keep bits
			dirs = binary.LittleEndian.AppendUint32(dirs, uint32(len(data)-start)) //nolint:gosec // a run is far smaller
		} else {
			data = binary.AppendUvarint(data, h-last)
		}
		data = binary.AppendUvarint(data, uint64(p&(runMost-1)))
		last = h
	}
	return binary.AppendUvarint(dirs, uint64(len(data)-start)), data //nolint:gosec // a length
}

// readRun reads what memory holds of a run.
func readRun(key, src []byte) (*run, error) {
	if len(src) < bodyStart+1 || src[0] < 1 || src[0] > runVersion || crc32.Checksum(src[bodyStart:], castagnoli) != binary.BigEndian.Uint32(src[1:]) {
		return nil, damaged("run")
	}
	r := &run{key: slices.Clone(key), version: src[0], sections: map[byte]*section{}}
	whole := len(src)
	n := int(src[bodyStart])
	blocks, src, err := readUvarint(src[bodyStart+1:], runMost)
	if err != nil {
		return nil, err
	}
	if blocks > len(src) {
		return nil, damaged("run")
	}
	r.blocks = make([]uint32, 0, blocks)
	for range blocks {
		var seq int
		if seq, src, err = readUvarint(src, 1<<32-1); err != nil {
			return nil, err
		}
		r.blocks = append(r.blocks, uint32(seq)) //nolint:gosec // bounded
	}
	size := 0
	for range n {
		if len(src) < 2 {
			return nil, damaged("run")
		}
		kind, s := src[0], &section{bits: int(src[1]), start: size}
		if s.entries, src, err = readUvarint(src[2:], maxListValues); err != nil {
			return nil, err
		}
		chunks := (s.entries + runChunk - 1) / runChunk
		if s.bits > 32 || len(src) < 8*chunks {
			return nil, damaged("run")
		}
		s.first, s.at = make([]uint32, chunks), make([]uint32, chunks)
		for i := range chunks {
			s.first[i] = binary.LittleEndian.Uint32(src[8*i:])
			s.at[i] = binary.LittleEndian.Uint32(src[8*i+4:])
		}
		if s.size, src, err = readUvarint(src[8*chunks:], maxColumn); err != nil {
			return nil, err
		}
		size += s.size
		r.sections[kind] = s
	}
	if len(src) != size {
		return nil, damaged("run")
	}
	for _, s := range r.sections {
		s.start += whole - size
	}
	return r, nil
}

// find appends the blocks that may hold p to dst. value is the run as stored.
func (r *run) find(dst []uint32, p posting, value []byte) ([]uint32, error) {
	if p.kind() == postUndelivered && r.version < 2 { // any may
		return append(dst, r.blocks...), nil
	}
	s := r.sections[p.kind()]
	if s == nil {
		return dst, nil
	}
	if len(value) < s.start+s.size {
		return dst, damaged("run")
	}
	data := value[s.start : s.start+s.size]
	h := p.hash() >> (hashBits - s.bits)
	// Equal entries may begin in the chunk before the first that begins with h.
	chunk := max(0, sort.Search(len(s.first), func(i int) bool { return uint64(s.first[i]) >= h })-1)
	for ; chunk < len(s.first) && uint64(s.first[chunk]) <= h; chunk++ {
		if int(s.at[chunk]) > len(data) {
			return dst, damaged("run")
		}
		src := data[s.at[chunk]:]
		at := uint64(s.first[chunk])
		for i := range min(runChunk, s.entries-chunk*runChunk) {
			if i > 0 {
				d, n := binary.Uvarint(src)
				if n <= 0 {
					return dst, damaged("run")
				}
				at, src = at+d, src[n:]
			}
			block, n := binary.Uvarint(src)
			if n <= 0 || block >= uint64(len(r.blocks)) {
				return dst, damaged("run")
			}
			src = src[n:]
			if at == h {
				dst = append(dst, r.blocks[block])
			}
			if at > h {
				return dst, nil
			}
		}
	}
	return dst, nil
}

// runsAtOnce is how many runs one hand asks at a time. By taste.
const runsAtOnce = 16

// lookup lists the blocks that may hold each of keys, in the order of runs.
// accepted, if any, is for each key when the message was accepted that is
// looked for. The partition is acquired.
func (p *partition) lookup(ctx context.Context, c crew, keys []posting, accepted []int64) ([][]uint32, error) {
	p.mu.Lock()
	runs, young := p.runs, p.fresh // replaced, never changed
	p.mu.Unlock()
	found := make([][]uint32, len(keys))
	for i := range young {
		for k, key := range keys {
			if young[i].may(key) {
				found[k] = append(found[k], young[i].head.seq)
			}
		}
	}
	if accepted != nil {
		runs = slices.DeleteFunc(slices.Clone(runs), func(r *run) bool { return !slices.ContainsFunc(accepted, r.accepted.mayHold) })
	}
	if len(runs) <= runsAtOnce {
		return found, p.findIn(runs, keys, accepted, found)
	}
	parts := slices.Collect(slices.Chunk(runs, runsAtOnce))
	lists := make([][][]uint32, len(parts))
	place := make([]int, len(parts))
	for i := range place {
		place[i], lists[i] = i, make([][]uint32, len(keys))
	}
	err := parallel(ctx, c, place, func(i int) error { return p.findIn(parts[i], keys, accepted, lists[i]) })
	for _, list := range lists {
		for k := range list {
			found[k] = append(found[k], list[k]...)
		}
	}
	return found, err
}

// findIn appends the blocks of some runs that may hold each of keys to found.
func (p *partition) findIn(runs []*run, keys []posting, accepted []int64, found [][]uint32) error {
	if len(runs) == 0 {
		return nil
	}
	return p.db.View(func(txn *badger.Txn) error {
		for _, r := range runs {
			item, err := txn.Get(r.key)
			if err != nil {
				return err
			}
			err = item.Value(func(value []byte) (err error) {
				for k, key := range keys {
					if accepted != nil && !r.accepted.mayHold(accepted[k]) {
						continue
					}
					if found[k], err = r.find(found[k], key, value); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// settleIndex makes runs of fresh blocks: of each full set, or of all. The
// partition is acquired for writing.
func (p *partition) settleIndex(all bool) error {
	p.indexing.Lock()
	defer p.indexing.Unlock()
	for {
		p.mu.Lock()
		young := p.fresh
		p.mu.Unlock()
		n := min(len(young), runBlocks)
		if n == 0 || n < runBlocks && !all {
			return nil
		}
		if slices.ContainsFunc(young[:n], func(f fresh) bool { return f.posts == nil }) {
			return nil // a block that cannot be read: not worth a run
		}
		value := encodeRun(young[:n])
		key := blockKey('r', young[0].head.seq)
		r, err := readRun(key, value)
		if err != nil {
			return fmt.Errorf("read back index: %w", err)
		}
		roll, err := mergeRollups(young[:n])
		if err != nil {
			return fmt.Errorf("make rollup: %w", err)
		}
		err = p.update(func(txn *badger.Txn) error {
			if roll != nil {
				if err := txn.Set(rollKey(r), roll.encode()); err != nil {
					return err
				}
			}
			return txn.Set(key, value)
		})
		if err != nil {
			return fmt.Errorf("store index: %w", err)
		}
		if roll != nil {
			r.roll = &rollHead{roll.lo, roll.hi}
		}
		for i := range young[:n] {
			r.accepted.include(young[i].head.acceptance)
		}
		p.mu.Lock()
		p.runs = append(slices.Clip(p.runs), r)
		p.fresh = slices.Clone(p.fresh[n:])
		p.mu.Unlock()
	}
}

// readIndex reads the runs of a partition, and works out the postings of the
// blocks that are in none.
func readIndex(db *badger.DB, heads []*header, log *zap.Logger) (runs []*run, young []fresh, err error) {
	in := make(map[uint32]*run, len(heads))
	err = db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{'r'}})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			key := it.Item().Key()
			err := it.Item().Value(func(value []byte) error {
				r, err := readRun(key, value)
				if err != nil {
					log.Error("part of a track index is damaged and made again", zap.Error(err))
					return nil
				}
				runs = append(runs, r)
				for _, seq := range r.blocks {
					in[seq] = r
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return readRollHeads(txn, runs, log)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read index: %w", err)
	}
	var room []byte
	for _, h := range heads {
		if r := in[h.seq]; r != nil {
			r.accepted.include(h.acceptance)
			continue
		}
		v := newView(h, func(read func([]byte) error) error { return readBody(db, h.seq, read) })
		f := fresh{head: h}
		f.posts, err = postingsOf(v)
		if err == nil {
			var r *rollup
			if r, err = rollupOfView(v); err == nil {
				f.roll = r.young(&room)
			}
		}
		if err != nil && !errors.Is(err, errUnknownFact) {
			log.Error("track block cannot be indexed", zap.Uint32("block", h.seq), zap.Error(err))
		}
		young = append(young, f)
	}
	return runs, young, nil
}

// postingsOf works out the postings of a stored block; nil when it cannot.
func postingsOf(v *view) ([]posting, error) {
	posts := []posting{}
	for _, x := range postings {
		key := colKey(x.column, true)
		if err := v.need(key); err != nil {
			return nil, err
		}
		if c := v.col(key); c != nil {
			posts = appendPostings(posts, x.post, x.key, c.dict)
		}
	}
	posts, err := appendUndeliveredOf(posts, v)
	if err != nil {
		return nil, err
	}
	return sortPostings(posts), nil
}

// appendPostings adds the postings of the values of a column, but for the
// first, which is the empty one.
func appendPostings(posts []posting, post byte, key func(string) string, dict []string) []posting {
	for _, s := range dict[1:] {
		if k := key(s); k != "" {
			posts = append(posts, postingOf(post, k))
		}
	}
	return posts
}

func sortPostings(posts []posting) []posting {
	return slices.Compact(sorted(posts, make([]posting, len(posts))))
}

// sorted is list sorted by kind and hash; those alike keep their order. It is in
// list or in room, which has the same length: octet by octet from the last one
// on, which takes a quarter of the time that comparing takes.
func sorted(list, room []posting) []posting {
	for shift := hashShift; shift < 64; shift += 8 {
		var at [257]int
		for _, p := range list {
			at[int(byte(p>>shift))+1]++ //nolint:gosec // the octet
		}
		if slices.Contains(at[:], len(list)) { // all have the same octet
			continue
		}
		for k := range 255 {
			at[k+1] += at[k]
		}
		for _, p := range list {
			k := byte(p >> shift) //nolint:gosec // the octet
			room[at[k]] = p
			at[k]++
		}
		list, room = room, list
	}
	return list
}
