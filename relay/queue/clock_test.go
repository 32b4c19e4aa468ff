package queue

import (
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

func TestSteady(t *testing.T) {
	type look struct{ wall, lived, want time.Duration }
	for _, test := range []struct {
		name  string
		looks []look
	}{
		{"runs", []look{{time.Second, time.Second, 0}, {time.Hour, time.Hour, 0}}},
		{"is slewed", []look{{time.Hour + 20*time.Second, time.Hour, 0}, {2*time.Hour + 40*time.Second, 2 * time.Hour, 0}, {3*time.Hour + 65*time.Second, 3 * time.Hour, 0}}},
		{"forward", []look{{time.Second, time.Second, 0}, {10 * time.Hour, 2 * time.Second, 10*time.Hour - 2*time.Second}, {10*time.Hour + time.Second, 3 * time.Second, 0}}},
		{"back", []look{{-10 * time.Hour, time.Second, -10*time.Hour - time.Second}, {-10*time.Hour + time.Second, 2 * time.Second, 0}}},
		{"forward and back", []look{{5 * time.Hour, 0, 5 * time.Hour}, {time.Second, time.Second, -5 * time.Hour}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var s steady
			for _, l := range test.looks {
				if got := s.compare(l.wall, l.lived); got != l.want {
					t.Errorf("compare(%s, %s) = %s, want %s", l.wall, l.lived, got, l.want)
				}
			}
		})
	}
}

// TestClockIsSet sets the clock while messages wait: each waits for as long as
// before, keeps its age, and its life ends as much later or earlier.
func TestClockIsSet(t *testing.T) {
	for _, by := range []time.Duration{10 * time.Hour, -10 * time.Hour, 100 * 24 * time.Hour} {
		t.Run(by.String(), func(t *testing.T) {
			h := open(t, nil)
			id := h.put(t, "x", "bob@example.com")
			l := h.claim(t)
			h.settle(t, l, mail.Deferred, time.Now().Add(time.Hour))
			before := h.Hops()[0]
			h.jump(by, time.Now())
			after := h.Hops()[0]
			if got := after.Next.Sub(before.Next); got != by {
				t.Errorf("the next attempt moved by %s, want %s", got, by)
			}
			if got := after.Oldest.Sub(before.Oldest); got != by {
				t.Errorf("the oldest moved by %s, want %s", got, by)
			}
			if len(find[event.Remarked](h.rec)) == 0 {
				t.Error("nobody was told")
			}
			h.jump(-by-2*time.Hour, time.Now()) // now it is due
			l = h.claim(t)
			if l.Message.ID != id || l.Shift != -2*time.Hour {
				t.Errorf("claimed %s with a shift of %s, want %s and -2h", l.Message.ID, l.Shift, id)
			}
			l.Release()
		})
	}
}

// TestClockWasAhead opens a queue whose records are from a clock that was ahead:
// nothing waits until that clock is reached.
func TestClockWasAhead(t *testing.T) {
	h := open(t, nil)
	h.put(t, "x", "bob@example.com")
	m, err := h.read(h.oldest())
	if err != nil {
		t.Fatal(err)
	}
	start := m.AcceptedAt.Add(-10 * time.Hour)
	f := h.findOut(h.oldest(), m, start)
	if got := f.waits[0].due; got != start.UnixMicro() {
		t.Errorf("due at %s, want at once: %s", fromMicro(got), start)
	}
}

// oldest is the ID of the oldest message.
func (h *harness) oldest() ident {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sched.entryAt(h.sched.oldest).id
}
