package gssapi

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"time"

	"waybill/relay/auth"
)

// Replays remembers requests for as long as they are good, so that each works
// once (RFC 4120 section 3.2.3). It is bounded, and only requests that proved to
// be genuine enter: when it is full of fresh ones, logins are refused for a while
// rather than let in unchecked.
type Replays struct {
	limit int

	mu    sync.Mutex
	until map[[16]byte]int64 // Unix seconds
	swept int64              // when old ones were last looked for
}

const defaultReplays = 1 << 18 // about 20 MB, and 400 logins a second

// NewReplays makes an empty memory for so many requests; zero means 1<<18.
func NewReplays(limit int) *Replays {
	if limit == 0 {
		limit = defaultReplays
	}
	return &Replays{limit: limit, until: map[[16]byte]int64{}}
}

// first reports by its error whether a request has been here before. It counts
// until a time, after which its clock tells that it is old.
func (r *Replays) first(sealed []byte, now, until time.Time) error {
	sum := sha256.Sum256(sealed)
	id := [16]byte(sum[:16])
	r.mu.Lock()
	defer r.mu.Unlock()
	if end, ok := r.until[id]; ok && end >= now.Unix() {
		return auth.ErrReplay
	}
	if age := now.Unix() - r.swept; age >= 60 || age >= 1 && len(r.until) >= r.limit {
		for old, end := range r.until {
			if end < now.Unix() {
				delete(r.until, old)
			}
		}
		r.swept = now.Unix()
	}
	if len(r.until) >= r.limit {
		return fmt.Errorf("%w: too many Kerberos logins to remember", auth.ErrUnavailable)
	}
	r.until[id] = until.Unix() + 1
	return nil
}
