package queue

import "hash/maphash"

// index finds the numbers of entries by their IDs. It has 8 octets for a place, of
// which from an eighth to three quarters are in use, and no pointers in them. It consists of many small tables, so that none
// takes long to grow, and it shrinks when messages leave, which a map does not.
type index struct {
	seed   maphash.Seed
	tables [indexTables]indexTable
}

const (
	indexTables = 256
	leastPlaces = 8
)

// indexTable is an open-addressing table: an entry is at the place that its hash
// says, or in the next ones up to the first that is empty.
type indexTable struct {
	places []indexPlace // a power of two of them
	used   int
}

type indexPlace struct {
	hash uint32
	ref  uint32 // 0: empty
}

// hash is what id hashes to; its first octet says in which table.
func (x *index) hash(id ident) uint32 {
	if x.seed == (maphash.Seed{}) {
		x.seed = maphash.MakeSeed()
	}
	return uint32(maphash.Bytes(x.seed, id[:])) //nolint:gosec // that many bits are enough
}

func (x *index) table(hash uint32) *indexTable { return &x.tables[hash/(1<<32/indexTables)] }

// find returns the number of the entry with that ID, or 0. is says whether an entry
// has it.
func (x *index) find(id ident, is func(ref uint32) bool) uint32 {
	hash := x.hash(id)
	return x.table(hash).find(hash, is)
}

// add notes the entry of id, which has none yet.
func (x *index) add(id ident, ref uint32) {
	hash := x.hash(id)
	x.table(hash).add(indexPlace{hash, ref})
}

// remove forgets the entry of id, which is there.
func (x *index) remove(id ident, ref uint32) {
	hash := x.hash(id)
	x.table(hash).remove(indexPlace{hash, ref})
}

func (t *indexTable) find(hash uint32, is func(ref uint32) bool) uint32 {
	if t.used == 0 {
		return 0
	}
	for i := t.home(hash); ; i = t.after(i) {
		switch p := t.places[i]; {
		case p.ref == 0:
			return 0
		case p.hash == hash && is(p.ref):
			return p.ref
		}
	}
}

func (t *indexTable) add(p indexPlace) {
	if 4*(t.used+1) > 3*len(t.places) {
		t.resize(max(leastPlaces, 2*len(t.places)))
	}
	t.put(p)
}

func (t *indexTable) remove(p indexPlace) {
	i := t.home(p.hash)
	for t.places[i] != p {
		i = t.after(i)
	}
	// What came behind it moves up, unless it would be before its home then.
	mask := uint32(len(t.places) - 1) //nolint:gosec // below 2^32
	for j := t.after(i); t.places[j].ref != 0; j = t.after(j) {
		if (j-t.home(t.places[j].hash))&mask >= (j-i)&mask {
			t.places[i] = t.places[j]
			i = j
		}
	}
	t.places[i] = indexPlace{}
	t.used--
	if n := len(t.places); n > leastPlaces && t.used < n/8 {
		t.resize(n / 4)
	}
}

func (t *indexTable) home(hash uint32) uint32 {
	return hash & uint32(len(t.places)-1) //nolint:gosec // below 2^32
}

func (t *indexTable) after(i uint32) uint32 {
	return (i + 1) & uint32(len(t.places)-1) //nolint:gosec // below 2^32
}

func (t *indexTable) put(p indexPlace) {
	i := t.home(p.hash)
	for t.places[i].ref != 0 {
		i = t.after(i)
	}
	t.places[i] = p
	t.used++
}

func (t *indexTable) resize(n int) {
	old := t.places
	t.places, t.used = make([]indexPlace, n), 0
	for _, p := range old {
		if p.ref != 0 {
			t.put(p)
		}
	}
}
