package logtrack

import (
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"

	"waybill/relay/event"
	"waybill/relay/reuse"
)

// memBlock is a block in memory: the open one, or one that waits to be stored.
// Once it is encoded, queries read what will be stored, and the rows are gone:
// with the facts that they point to they take twenty times as much.
type memBlock struct {
	seq uint32
	rows
	head  header // ranges only
	wide  ranging
	ids   *idSet
	seg   *segment
	bytes int
	kept  bool   // some of recs are not in the journal, because the queue keeps them
	lent  bool   // somebody may still read recs when the block is encoded
	upTo  uint64 // records taken when it was full
	since time.Time
	full  time.Time // since when it waits to be stored

	encoding sync.Once
	encoded  *encoded
	view     *view // of what was encoded, once there are no rows
}

// rows are the facts of a block, with what is worked out once about each.
type rows struct {
	recs  []event.Record // grows within its capacity; rows below its length do not change
	keys  [][16]byte     // of their event ids, as idKey makes them
	kinds []byte         // their plans' places in journalTypes
}

// spareRows are rooms of blocks that are encoded: a third of a megabyte each, which
// a relay under load fills twenty times a second and more. One is filled while
// another is encoded; two more are for a sealer that is late.
var spareRows = newSpare(4, func() *rows {
	return &rows{recs: make([]event.Record, 0, blockRows), kinds: make([]byte, 0, blockRows)}
})

func newMemBlock(seq uint32, seg *segment) *memBlock {
	return &memBlock{seq: seq, seg: seg, rows: *spareRows.get(), ids: newIDSet(), since: time.Now()}
}

// free lets go of the rows of an encoded block, and gives their room back, unless
// somebody may read them.
func (m *memBlock) free() {
	old := m.rows
	m.rows = rows{}
	if m.lent || cap(old.recs) != blockRows {
		return
	}
	clear(old.recs)
	reuse.Spoil(old.kinds)
	spareRows.put(&rows{recs: old.recs[:0], kinds: old.kinds[:0]})
}

// settle has an encoded block read as what was encoded, without its rows. The
// store's lock is held.
func (m *memBlock) settle() {
	if m.view == nil {
		e := m.encoded
		m.view = newView(e.head, func(read func([]byte) error) error { return read(e.body) })
		m.free()
	}
}

// count is the number of the block's facts. The store's lock is held.
func (m *memBlock) count() int {
	if m.view != nil {
		return int(m.encoded.head.rows)
	}
	return len(m.recs)
}

// source is the block for a query, which may read its rows for as long as it
// wants. The store's lock is held.
func (m *memBlock) source() *source {
	if m.view != nil {
		return &source{head: m.encoded.head, mem: &inMemory{block: m}}
	}
	m.lent = true
	h := m.head
	h.rows, h.seq = uint32(len(m.recs)), m.seq //nolint:gosec // bounded by the rows of a block
	return &source{head: &h, mem: &inMemory{recs: slices.Clip(m.recs)}}
}

// add adds r, whose plan has the place kind, and whose event id has the key and
// the time ms.
func (m *memBlock) add(r *event.Record, kind byte, key [16]byte, ms int64) {
	m.wide.widen(&m.head, r, ms)
	m.recs = append(m.recs, *r)
	m.recs[len(m.recs)-1].Form = nil // it would keep the octets in memory
	m.kinds = append(m.kinds, kind)
	m.ids.add(key, ms, r.ID != "")
	m.keys = m.ids.keys
}

// encode encodes the block, which is full, once.
func (m *memBlock) encode() *encoded {
	m.encoding.Do(func() {
		head := m.head
		m.encoded = encodeRows(m.seq, &m.rows, &head)
	})
	return m.encoded
}

// rowsOf works out what a block needs to know of recs, and what its header
// says of their ranges.
func rowsOf(recs []event.Record) (*rows, *header) {
	x, h := &rows{recs: recs, keys: make([][16]byte, len(recs)), kinds: make([]byte, len(recs))}, &header{}
	var wide ranging
	for i := range recs {
		var ms int64
		x.keys[i], ms = idKey(&recs[i])
		x.kinds[i] = planOf(&recs[i]).place
		wide.widen(h, &recs[i], ms)
	}
	return x, h
}

// idKey makes an event id comparable in 16 octets, with its time.
func idKey(r *event.Record) (key [16]byte, ms int64) {
	if b, ok := packULID(r.ID); ok {
		return b, ulidMS(b)
	}
	h := xxhash.Sum64String(r.ID)
	binary.LittleEndian.PutUint64(key[:8], h)
	binary.BigEndian.PutUint64(key[8:], h)
	key[0] = noULID
	return key, r.Time.UnixMilli()
}

// noULID is the first octet of the key of another identifier. A ULID that
// begins so is of the year 10889.
const noULID = 0xff

// idSet is the event ids of one block.
type idSet struct {
	keys     [][16]byte  // of all rows
	slots    []uint32    // a row and one, for each row that has an id; twice as many as rows at least
	maybe    [256]uint64 // a bit for the last bits of each id: those that follow each other have each its own
	min, max int64
	some     bool
}

var idSets = newSpare(sealTogether, func() *idSet {
	return &idSet{keys: make([][16]byte, 0, blockRows), slots: make([]uint32, 2*blockRows)}
})

func newIDSet() *idSet { return idSets.get() }

// free gives the room of a set back that nobody asks any more.
func (i *idSet) free() {
	if reuse.Spoils {
		for k := range i.keys {
			reuse.Spoil(i.keys[k][:])
		}
	}
	clear(i.slots)
	clear(i.maybe[:])
	i.keys, i.min, i.max, i.some = i.keys[:0], 0, 0, false
	if cap(i.keys) == blockRows {
		idSets.put(i)
	}
}

// add adds the key of the next row, which has an id or not.
func (i *idSet) add(key [16]byte, ms int64, has bool) {
	i.keys = append(i.keys, key)
	if !has {
		return
	}
	if !i.some {
		i.min, i.max, i.some = ms, ms, true
	}
	i.min, i.max = min(i.min, ms), max(i.max, ms)
	if 2*len(i.keys) > len(i.slots) {
		old := i.slots
		i.slots = make([]uint32, 2*len(old))
		for _, row := range old {
			if row > 0 {
				*i.slot(i.keys[row-1]) = row
			}
		}
	}
	*i.slot(key) = uint32(len(i.keys)) //nolint:gosec // bounded by the rows of a block
	word, bit := i.bit(key)
	*word |= bit
}

// bit is where maybe tells of key: nearly all keys that are asked for are in no
// set, and the sets of all recent blocks are more than a processor has at hand.
func (i *idSet) bit(key [16]byte) (word *uint64, bit uint64) {
	n := binary.BigEndian.Uint16(key[14:])
	return &i.maybe[n>>6%256], 1 << (n & 63)
}

// slot is where key is, or belongs.
func (i *idSet) slot(key [16]byte) *uint32 {
	const odd = 0x9e3779b97f4a7c15 // of the golden ratio: identifiers that follow each other are far from each other
	mask := len(i.slots) - 1
	at := int(binary.BigEndian.Uint64(key[8:])*odd>>32) & mask
	for i.slots[at] > 0 && i.keys[i.slots[at]-1] != key {
		at = (at + 1) & mask
	}
	return &i.slots[at]
}

func (i *idSet) has(key [16]byte, ms int64) bool {
	if ms < i.min || ms > i.max {
		return false
	}
	word, bit := i.bit(key)
	return *word&bit != 0 && *i.slot(key) > 0
}

// inRecent reports whether an id is in a block in memory. s.mu is held, or the store is not open yet.
func (s *Store) inRecent(key [16]byte, ms int64) bool {
	if s.open != nil && s.open.ids.has(key, ms) {
		return true
	}
	if ms > s.before { // as nearly all are
		return false
	}
	for _, m := range slices.Backward(s.sealing) {
		if m.ids.has(key, ms) {
			return true
		}
	}
	for _, ids := range slices.Backward(s.recent) {
		if ids.has(key, ms) {
			return true
		}
	}
	return false
}

// inMemory lists the blocks in memory. s.mu is held.
func (s *Store) inMemory() []*memBlock {
	list := slices.Clone(s.sealing)
	if s.open != nil {
		list = append(list, s.open)
	}
	return list
}

// memory lists the blocks in memory that have facts, for queries. s.mu is held.
func (s *Store) memory() (list []*source) {
	for _, m := range s.inMemory() {
		if src := m.source(); src.head.rows > 0 {
			list = append(list, src)
		}
	}
	return list
}
