package dns

import (
	"context"
	"sync/atomic"
)

// Tally counts the questions that were asked for one purpose, such as one
// attempt. It may be used by many goroutines.
type Tally struct {
	asked, cached atomic.Int32
}

// Asked is how many questions there were; Cached, how many of them needed no
// server: the cache had the answer.
func (t *Tally) Asked() int { return int(t.asked.Load()) }

// Cached is how many of the questions the cache answered.
func (t *Tally) Cached() int { return int(t.cached.Load()) }

func (t *Tally) add(cached bool) {
	if t == nil {
		return
	}
	t.asked.Add(1)
	if cached {
		t.cached.Add(1)
	}
}

type tallyKey struct{}

// WithTally returns a context whose questions are counted.
func WithTally(ctx context.Context) (context.Context, *Tally) {
	t := new(Tally)
	return context.WithValue(ctx, tallyKey{}, t), t
}

// tallyOf is the Tally of ctx, or nil.
func tallyOf(ctx context.Context) *Tally {
	t, _ := ctx.Value(tallyKey{}).(*Tally)
	return t
}
