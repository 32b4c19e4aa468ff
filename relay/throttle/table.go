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
// was not used for full is as good as none, and forgotten; zero is never.
func (t *table) get(now time.Time, k key, full time.Duration) *bucket {
	b := t.keys[k]
	if b != nil {
		t.unlink(b)
	} else {
		b = &bucket{key: k}
		t.keys[k] = b
	}
	b.used = now
	b.prev, b.next = t.ends.prev, &t.ends
	b.prev.next, t.ends.prev = b, b
	if full > 0 {
		for range 2 { // more than come, so that the table shrinks again
			if old := t.ends.next; old != b && (len(t.keys) > maxKeys || now.Sub(old.used) > full) {
				t.forget(old)
			}
		}
	}
	return b
}

func (t *table) unlink(b *bucket) { b.prev.next, b.next.prev = b.next, b.prev }

func (t *table) forget(b *bucket) {
	t.unlink(b)
	delete(t.keys, b.key)
}
