package queue

import (
	"errors"
	"sync"
	"testing"
	"time"

	"waybill/relay/mail"
	"waybill/relay/route"
)

func TestSnapshot(t *testing.T) {
	h := open(t, nil)
	id := h.put(t, "x", "a@example.com", "b@example.net")
	at, _ := parseIdent(id)
	old := h.snapshots.take()
	first := h.claim(t)
	h.settle(t, first, mail.Relayed, time.Time{})
	m, err := h.read(at)
	if err != nil || m.States[first.Index[0]].Disposition != mail.Relayed {
		t.Errorf("read() after a settlement = %+v, %v, want it settled", m, err)
	}
	was := func() (d mail.Disposition) {
		t.Helper()
		err := old.get(messageKey(string(id)), func(v []byte) error {
			m, err := decodeRecord(v)
			if err == nil {
				d = m.States[first.Index[0]].Disposition
			}
			return err
		})
		if err != nil {
			t.Errorf("get() of an old snapshot: %v", err)
		}
		return d
	}
	if d := was(); d != mail.Queued {
		t.Errorf("an old snapshot says %s, want %s", d, mail.Queued)
	}
	h.settle(t, h.claim(t), mail.Relayed, time.Time{})
	if _, err := h.read(at); !errors.Is(err, ErrNotFound) {
		t.Errorf("read() of what is finished = %v, want %v", err, ErrNotFound)
	}
	if d := was(); d != mail.Queued {
		t.Errorf("an old snapshot says %s later, want %s", d, mail.Queued)
	}
	h.snapshots.drop(old)
	if got := h.snapshots.latest.users; got != 1 {
		t.Errorf("the latest snapshot has %d users, want 1", got)
	}
}

// TestReadDuringCommits reads a record by many while it changes: nobody sees less
// than what was settled before.
func TestReadDuringCommits(t *testing.T) {
	h := open(t, nil)
	at, _ := parseIdent(h.put(t, "x", "a@example.com"))
	const rounds = 50
	var settled sync.Map
	var readers sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				least := 0
				if v, ok := settled.Load(at); ok {
					least = v.(int)
				}
				if m, err := h.read(at); err != nil || m.States[0].Attempts < least {
					t.Errorf("read() = %+v, %v, want %d attempts", m, err, least)
					return
				}
			}
		})
	}
	for i := range rounds {
		l := h.claim(t)
		if l.Attempt != i+1 {
			t.Errorf("attempt %d, want %d", l.Attempt, i+1)
		}
		h.settle(t, l, mail.Deferred, time.Now())
		settled.Store(at, i+1)
	}
	close(done)
	readers.Wait()
}

// TestSettlingFreesItsHop lets a commit wait: the hop gets other messages
// meanwhile, and not more than as many again.
func TestSettlingFreesItsHop(t *testing.T) {
	gate, entered := make(chan struct{}), make(chan struct{}, 100)
	var mu sync.Mutex
	shut := false
	h := open(t, func(o *Options) {
		o.Concurrency = func(route.Hop) int { return 2 }
		o.tune.beforeCommit = func() error {
			mu.Lock()
			wait := shut
			mu.Unlock()
			if wait {
				entered <- struct{}{}
				<-gate
			}
			return nil
		}
	})
	for range 6 {
		h.put(t, "x", "a@example.com")
	}
	a, b := h.claim(t), h.claim(t)
	h.idle(t)
	mu.Lock()
	shut = true
	mu.Unlock()
	var settling sync.WaitGroup
	settle := func(l *Lease) {
		settling.Go(func() {
			if err := h.Settle(t.Context(), l, Settlement{Outcomes: outcomes(l, mail.Relayed), Reached: true}); err != nil {
				t.Errorf("Settle: %v", err)
			}
		})
	}
	settle(a)
	settle(b)
	<-entered
	c, d := h.claim(t), h.claim(t) // in their places
	h.idle(t)
	settle(c)
	settle(d)
	eventually(t, "all settling", func() bool {
		h.com.mu.Lock()
		defer h.com.mu.Unlock()
		return len(h.com.waiting) >= 2
	})
	h.idle(t) // two are out that count, and two that do not
	mu.Lock()
	shut = false
	mu.Unlock()
	close(gate)
	settling.Wait()
	h.settle(t, h.claim(t), mail.Relayed, time.Time{})
	h.settle(t, h.claim(t), mail.Relayed, time.Time{})
	if n := h.Levels().Messages; n != 0 {
		t.Errorf("%d messages are left, want none", n)
	}
}

// TestRetryOfParked lets messages wait for a hop that cannot be reached. To try
// them now writes no record: one of them sees whether the hop is back.
func TestRetryOfParked(t *testing.T) {
	h := open(t, nil)
	const n = 20
	for range n {
		h.put(t, "x", "a@example.com")
	}
	soon, late := time.Now().Add(time.Hour), time.Now().Add(24*time.Hour)
	one, other := h.claim(t), h.claim(t)
	one.Park(soon, late)
	other.Park(soon, late)
	h.idle(t) // the others need not be claimed
	before := h.commits
	aff, err := h.Act(t.Context(), Action{Action: "retry", Filter: Filter{All: true}})
	if err != nil || aff.Messages != n || len(aff.IDs) != n {
		t.Fatalf("Act() = %+v, %v, want %d messages", aff, err, n)
	}
	if got := h.commits - before; got != 1 {
		t.Errorf("%d commits, want the one of the fact", got)
	}
	l := h.claim(t)
	h.idle(t)
	if err := h.Settle(t.Context(), l, Settlement{Outcomes: outcomes(l, mail.Relayed), Reached: true}); err != nil {
		t.Fatal(err)
	}
	for range n - 1 {
		h.settle(t, h.claim(t), mail.Relayed, time.Time{})
	}
	deferred := h.put(t, "x", "a@example.com")
	h.settle(t, h.claim(t), mail.Deferred, soon)
	h.act(t, 1, Action{Action: "retry", Filter: Filter{All: true}})
	if l := h.claim(t); l.Message.ID != deferred {
		t.Errorf("claimed %s, want %s", l.Message.ID, deferred)
	}
}
