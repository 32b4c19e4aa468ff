package auth

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"sync"
	"time"
)

// Bounds of the cache of verified passwords. Both are chosen by taste: an
// application that sends all day logs in once for each message, and a stolen
// password that was changed is forgotten at once, because the stored hash is
// part of the key.
const (
	cacheTTL  = 5 * time.Minute
	cacheSize = 4096
)

// cache remembers which passwords were right, so that an application that logs
// in a thousand times a second does not hash a thousand times a second. It
// holds neither passwords nor anything that outlives the process: keys are
// HMACs under a random key.
type cache struct {
	secret [32]byte

	mu      sync.Mutex
	expires map[cacheKey]time.Time
}

type cacheKey [sha256.Size]byte

func newCache() *cache {
	c := &cache{expires: map[cacheKey]time.Time{}}
	_, _ = rand.Read(c.secret[:]) // never fails (Go 1.24)
	return c
}

// key is the cache's name for "this user has this password, under this hash".
func (c *cache) key(user, password, hash string) cacheKey {
	m := hmac.New(sha256.New, c.secret[:])
	for _, s := range []string{user, password, hash} {
		m.Write([]byte(s))
		m.Write([]byte{0})
	}
	return cacheKey(m.Sum(nil))
}

func (c *cache) has(k cacheKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	end, ok := c.expires[k]
	if ok && time.Now().After(end) {
		delete(c.expires, k)
		return false
	}
	return ok
}

func (c *cache) add(k cacheKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if len(c.expires) >= cacheSize {
		for old, end := range c.expires {
			if now.After(end) {
				delete(c.expires, old)
			}
		}
		if len(c.expires) >= cacheSize { // all are fresh: start over, which only costs time
			clear(c.expires)
		}
	}
	c.expires[k] = now.Add(cacheTTL)
}
