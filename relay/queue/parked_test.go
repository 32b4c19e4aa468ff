package queue

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"waybill/relay/mail"
)

// parkedQueue opens a queue whose messages must be claimed at their deadline, for
// DELIVERBY, or after an hour, whether their hop can be reached or not.
func parkedQueue(t *testing.T, change func(*Options)) *harness {
	return open(t, func(o *Options) {
		o.Latest = func(m *Message, _ Waiting) time.Time {
			if by := m.Envelope.DeliverBy; !by.IsZero() {
				return by.Deadline
			}
			return m.AcceptedAt.Add(time.Hour)
		}
		if change != nil {
			change(o)
		}
	})
}

// pass lets d pass for what waits.
func (h *harness) pass(d time.Duration) {
	h.mu.Lock()
	h.sched.shift(-d.Microseconds())
	h.mu.Unlock()
}

// claims lists whose messages can be claimed now, and gives them back.
func (h *harness) claims(t *testing.T) []string {
	t.Helper()
	var list []string
	var leases []*Lease
	for {
		l, err := h.tryClaim()
		if err != nil {
			t.Fatal(err)
		}
		if l == nil {
			break
		}
		leases = append(leases, l)
		list = append(list, l.Message.Envelope.Recipients[l.Index[0]].Address.Local)
	}
	for _, l := range leases {
		l.Release()
	}
	slices.Sort(list)
	return list
}

// TestParkedAsOne has a hop that cannot be reached: nothing that waits for it is
// claimed, nor what comes, but one message from the time of the probe on, and each
// at its latest. What waits for another hop goes.
func TestParkedAsOne(t *testing.T) {
	for _, test := range []struct {
		name  string
		after time.Duration // since the hop was lost, for half an hour
		act   func(t *testing.T, h *harness)
		want  []string
	}{
		{"at once", 0, nil, []string{"other"}},
		{"its deadline has come", 12 * time.Minute, nil, []string{"by", "other"}},
		{"the probe", 31 * time.Minute, nil, []string{"by", "other", "urgent"}},
		{"all are at their latest", 61 * time.Minute, nil, []string{"a", "b", "by", "new", "other", "urgent"}},
		{"an operator wants it now", time.Minute, func(_ *testing.T, h *harness) { h.Probe() }, []string{"other", "urgent"}},
		{"an operator retries one", time.Minute, func(t *testing.T, h *harness) {
			h.act(t, 1, Action{Action: "retry", Filter: Filter{Recipient: "a@dead.example"}})
		}, []string{"other", "urgent"}},
		{"the probe is held", 31 * time.Minute, func(t *testing.T, h *harness) {
			h.act(t, 1, Action{Action: "hold", Filter: Filter{Recipient: "urgent@dead.example"}})
		}, []string{"a", "by", "other"}},
		{"the hop is held", 61 * time.Minute, func(t *testing.T, h *harness) {
			h.act(t, 5, Action{Action: "hold", Filter: Filter{Hop: "dead.example"}})
		}, []string{"other"}},
		{"all are removed", 61 * time.Minute, func(t *testing.T, h *harness) {
			h.act(t, 5, Action{Action: "remove", Filter: Filter{Hop: "dead.example"}})
		}, []string{"other"}},
		{"one is sent to another host", time.Minute, func(t *testing.T, h *harness) {
			h.act(t, 1, Action{Action: "redirect", Filter: Filter{Recipient: "b@dead.example"}, To: "h.example:25", Via: "out"})
		}, []string{"b", "other"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := parkedQueue(t, nil)
			put := func(to string, change func(*mail.Draft)) {
				d := draft(t, to)
				if change != nil {
					change(&d)
				}
				if err := h.Put(t.Context(), d, []byte("x")); err != nil {
					t.Fatal(err)
				}
			}
			for _, to := range []string{"a", "b"} {
				put(to+"@dead.example", nil)
			}
			put("by@dead.example", func(d *mail.Draft) {
				d.Envelope.DeliverBy = mail.DeliverBy{Deadline: time.Now().Add(10 * time.Minute), Return: true}
			})
			put("urgent@dead.example", func(d *mail.Draft) { d.Priority = mail.PriorityHigh })
			lost := h.claim(t)
			lost.Park(time.Now().Add(30*time.Minute), time.Now().Add(time.Hour))
			put("new@dead.example", nil)
			put("other@example.com", nil)
			h.pass(test.after)
			if test.act != nil {
				test.act(t, h)
			}
			if got := h.claims(t); fmt.Sprint(got) != fmt.Sprint(test.want) {
				t.Errorf("claimed %v, want %v", got, test.want)
			}
		})
	}
}
