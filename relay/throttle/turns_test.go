package throttle

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// contents come one after the other, at one moment, and notes when each
// goes on.
type contents struct {
	turns *Turns
	turn  []*Turn
	gone  []chan struct{}

	mu   sync.Mutex
	went map[int]time.Duration // after how long, by number
}

func (c *contents) come(n int) {
	began := time.Now()
	for range n {
		i, u, gone := len(c.turn), &Turn{}, make(chan struct{})
		c.turn, c.gone = append(c.turn, u), append(c.gone, gone)
		go func() {
			c.turns.Wait(u, gone)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.went[i] = time.Since(began)
		}()
		synctest.Wait()
	}
}

// check compares what went on since the last check.
func (c *contents) check(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	var got []string
	for _, i := range slices.Sorted(maps.Keys(c.went)) {
		got = append(got, fmt.Sprint(i, " ", c.went[i]))
	}
	if !slices.Equal(got, want) {
		t.Errorf("went on: %q, want %q", got, want)
	}
	clear(c.went)
}

// over ends all turns: nothing may be left.
func (c *contents) over(t *testing.T) {
	t.Helper()
	for _, u := range c.turn {
		u.End()
	}
	synctest.Wait()
	for _, u := range c.turn {
		u.End() // those that had waited
	}
	if s := c.turns.Status(); s.Held != 0 || s.Waiting != 0 {
		t.Errorf("Status() at the end = %+v", s)
	}
	time.Sleep(2 * longestWait) // the timer has nothing to do
	c.turns.mu.Lock()
	defer c.turns.mu.Unlock()
	if !c.turns.due.IsZero() {
		t.Error("the timer goes on")
	}
}

func TestTurns(t *testing.T) {
	for _, test := range []struct {
		name  string
		limit int
		run   func(t *testing.T, c *contents)
	}{
		{"in order", 2, func(t *testing.T, c *contents) {
			c.come(5)
			c.check(t, "0 0s", "1 0s")
			if s := c.turns.Status(); s.Held != 2 || s.Waiting != 3 {
				t.Errorf("Status() = %+v", s)
			}
			time.Sleep(time.Millisecond)
			c.turn[1].End()
			c.check(t, "2 1ms")
			c.turn[1].End() // again
			c.check(t)
			time.Sleep(time.Millisecond)
			c.turn[0].End()
			c.turn[2].End()
			c.check(t, "3 2ms", "4 2ms")
			if got, want := c.turns.Status().Waited, 5*time.Millisecond; got != want {
				t.Errorf("Waited = %v, want %v", got, want)
			}
		}},
		{"any number", 0, func(t *testing.T, c *contents) {
			c.come(3)
			c.check(t, "0 0s", "1 0s", "2 0s")
			c.turn[0].Received()
		}},
		{"octets that do not come", 2, func(t *testing.T, c *contents) {
			c.come(1)
			time.Sleep(time.Millisecond)
			c.come(4)
			c.check(t, "0 0s", "1 0s")
			time.Sleep(longestReceiving)
			c.check(t, "2 4ms", "3 5ms")
			c.turn[0].Received() // it has none
			c.turn[1].End()
			c.check(t)
		}},
		{"a slow commit", 1, func(t *testing.T, c *contents) {
			c.come(1)
			time.Sleep(2 * time.Millisecond)
			c.turn[0].Received()
			c.come(2)
			time.Sleep(longestStoring - time.Nanosecond)
			c.check(t, "0 0s")
			time.Sleep(time.Nanosecond)
			c.check(t, "1 10ms")
			c.turn[0].End()
			c.check(t)
			time.Sleep(longestReceiving)
			c.check(t, "2 15ms")
		}},
		{"one that moves among others that do not", 2, func(t *testing.T, c *contents) {
			c.come(2)
			c.turn[0].Received()
			c.turn[1].Received()
			time.Sleep(longestStoring - time.Millisecond)
			c.come(2)
			c.turn[0].End()
			c.check(t, "0 0s", "1 0s", "2 0s")
			time.Sleep(longestReceiving)
			c.check(t, "3 1ms") // that of 1, and not of 2
		}},
		{"nobody waits", 1, func(t *testing.T, c *contents) {
			c.come(1)
			time.Sleep(time.Hour)
			if s := c.turns.Status(); s.Held != 1 {
				t.Errorf("Status() = %+v", s)
			}
			c.come(1)
			c.check(t, "0 0s", "1 0s") // it has had it for long
		}},
		{"one that goes", 1, func(t *testing.T, c *contents) {
			c.come(3)
			close(c.gone[1])
			c.check(t, "0 0s", "1 0s")
			c.turn[0].End()
			c.check(t, "2 0s")
		}},
		{"other limits", 1, func(t *testing.T, c *contents) {
			c.come(5)
			c.turns.Limit(3)
			c.check(t, "0 0s", "1 0s", "2 0s")
			c.turns.Limit(1)
			c.turn[0].End()
			c.turn[1].End()
			c.check(t)
			c.turn[2].End()
			c.check(t, "3 0s")
			c.turns.Limit(0)
			c.check(t, "4 0s")
		}},
		{"a lower limit", 3, func(t *testing.T, c *contents) {
			c.come(3)
			c.turn[0].Received()
			c.turns.Limit(1)
			c.come(1)
			time.Sleep(longestStoring)
			c.check(t, "0 0s", "1 0s", "2 0s", "3 10ms")
			if s := c.turns.Status(); s.Held != 1 || s.Limit != 1 {
				t.Errorf("Status() = %+v", s)
			}
		}},
		{"too many", 1, func(t *testing.T, c *contents) {
			const all = 300
			c.come(all)
			time.Sleep(longestWait)
			synctest.Wait()
			if len(c.went) != all {
				t.Errorf("%d went on in time, want %d", len(c.went), all)
			}
			for i, after := range c.went {
				if want := min(time.Duration(i)*longestReceiving, longestWait); after != want {
					t.Errorf("%d went on after %v, want %v", i, after, want)
				}
			}
			if s := c.turns.Status(); s.Held != 1 || s.Waiting != 0 {
				t.Errorf("Status() = %+v", s)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &contents{turns: NewTurns(test.limit, nil), went: map[int]time.Duration{}}
				test.run(t, c)
				c.over(t)
			})
		})
	}
}

func TestNoTurns(t *testing.T) {
	var none *Turns
	var u Turn
	none.Wait(&u, nil)
	u.Received()
	u.End()
}

// There are twice as many turns while it is quiet; of those nobody loses one when it is
// not any more.
func TestTurnsWhileQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		quiet := true
		turns := NewTurns(2, func() bool { return quiet })
		const all = 5
		var held [all]Turn
		var went atomic.Int32
		for i := range held {
			go func() {
				turns.Wait(&held[i], nil)
				went.Add(1)
			}()
			synctest.Wait()
		}
		if s := turns.Status(); s.Held != 4 || s.Waiting != 1 || went.Load() != 4 {
			t.Errorf("while it is quiet: Status() = %+v, and %d went on", s, went.Load())
		}
		quiet = false
		for i := range 3 {
			if went.Load() != 4 {
				t.Errorf("one went on when %d of 4 were left, and there are 2 turns", 4-i)
			}
			held[i].End()
			synctest.Wait()
		}
		if s := turns.Status(); s.Held != 2 || s.Waiting != 0 || went.Load() != all {
			t.Errorf("later: Status() = %+v, and %d went on", s, went.Load())
		}
		held[3].End()
		held[4].End()
	})
}

// Whatever many do at once, there are no more turns than there may be, and none
// is lost.
func TestTurnsOfMany(t *testing.T) {
	const limit, senders, messages = 4, 40, 100
	turns := NewTurns(limit, nil)
	var all sync.WaitGroup
	for i := range senders {
		all.Go(func() {
			gone := make(chan struct{})
			if i%5 == 0 {
				close(gone)
			}
			for n := range messages {
				var u Turn
				turns.Wait(&u, gone)
				if s := turns.Status(); s.Held > limit {
					t.Errorf("Status() = %+v", s)
				}
				if n%3 > 0 {
					u.Received()
				}
				u.End()
			}
		})
	}
	all.Wait()
	if s := turns.Status(); s.Held != 0 || s.Waiting != 0 {
		t.Errorf("Status() at the end = %+v", s)
	}
}

func BenchmarkTurns(b *testing.B) {
	turns := NewTurns(DefaultTurns(), nil)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		var u Turn
		for pb.Next() {
			turns.Wait(&u, nil)
			u.Received()
			u.End()
		}
	})
}
