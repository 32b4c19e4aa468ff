package throttle

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxKeys bounds whom a rule remembers. Above it, who was quiet for longest is
// forgotten, and begins with a full burst when it comes again: a flood from more
// addresses than this has that anyhow.
const maxKeys = 100_000

// bucket is what one key has used.
type bucket struct {
	key        key
	rate       *rate.Limiter // nil when what is there now is counted
	open       int64         // that is there now
	used       time.Time     // when it was last asked about
	hits       int64         // how often it was too much
	hit        time.Time     // the last time
	prev, next *bucket       // in the order of use
}

// table holds the buckets of those who were seen lately. The caller holds mu.
type table struct {
	id   uint64 // tables are locked in this order
	mu   sync.Mutex
	keys map[key]*bucket
	ends bucket // a ring: next is the one quiet for longest, prev the latest
}

func newTable(id uint64) *table {
	t := &table{id: id, keys: map[key]*bucket{}}
	t.ends.prev, t.ends.next = &t.ends, &t.ends
	return t
}

// get returns the bucket of k, which it makes when there is none. A bucket that
// was not used for full is as good as none, and forgotten. Zero is for rules about
// what is there now: nothing that is there is forgotten, and who was refused is
// remembered lately.
func (t *table) get(now time.Time, k key, full time.Duration) *bucket {
	b := t.keys[k]
	if b != nil {
		t.unlink(b)
	} else {
		b = &bucket{key: k}
		t.keys[k] = b
	}
	b.used = now
	t.link(b)
	for range 2 { // more than come, so that the table shrinks again
		old := t.ends.next
		switch {
		case old == b:
		case old.open > 0: // it is looked at again when all others were
			t.unlink(old)
			t.link(old)
		case len(t.keys) > maxKeys, full > 0 && now.Sub(old.used) > full, full == 0 && now.Sub(old.hit) > lately:
			t.forget(old)
		}
	}
	return b
}

// link makes b the latest.
func (t *table) link(b *bucket) {
	b.prev, b.next = t.ends.prev, &t.ends
	b.prev.next, t.ends.prev = b, b
}

func (t *table) unlink(b *bucket) { b.prev.next, b.next.prev = b.next, b.prev }

func (t *table) forget(b *bucket) {
	t.unlink(b)
	delete(t.keys, b.key)
}
