package queue

import (
	"fmt"
	"testing"

	"waybill/relay/mail"
)

// TestStartSpreads wants what is overdue for many hops to be due at start one hop
// after the other, and the others for a hop after its first.
func TestStartSpreads(t *testing.T) {
	const hops, each = 40, 3
	h := open(t, nil)
	for i := range hops * each {
		h.put(t, "content", fmt.Sprintf("u%d@d%d.example.com", i, i%hops))
	}
	d := draft(t, "urgent@d39.example.com")
	d.Priority = mail.PriorityHigh
	if err := h.Put(t.Context(), d, []byte("content")); err != nil {
		t.Fatal(err)
	}
	h = h.reopen(t, nil)
	h.mu.Lock()
	defer h.mu.Unlock()
	first := int64(0)
	for e := h.sched.oldest; e != nil; e = e.next {
		e.groups(func(g *group) {
			if first == 0 {
				first = g.due
			}
			if g.spread && (e.prio == 0 || g.due == first) {
				t.Errorf("%s waits, want it to be due at once", e.id.QueueID())
			}
			if n := len(g.hop.due[1].items); n != each {
				t.Errorf("%d messages wait for %s, want %d", n, g.hop.hop.Name, each)
			}
		})
	}
	last := first
	for _, hop := range h.sched.hops {
		begins := hop.due[1].items[0]
		for _, g := range hop.due[1].items {
			if g.due < begins.due || g != begins && g.msg.accepted < begins.msg.accepted {
				t.Errorf("the first for %s is not the oldest", hop.hop.Name)
			}
		}
		last = max(last, begins.due)
	}
	if got, least := last-first, (spreadFirst * (hops - 1)).Microseconds(); got < least {
		t.Errorf("the last hop begins %d µs after the first message, want %d at least", got, least)
	}
}
