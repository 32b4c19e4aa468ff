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
	for e := range h.sched.all() {
		for g, of := range h.sched.groups(e) {
			if first == 0 {
				first = g.due
			}
			if g.spread && (e.prio == 0 || g.due == first) {
				t.Errorf("%s waits, want it to be due at once", e.id.QueueID())
			}
			if n := len(of.due[1].items); n != each {
				t.Errorf("%d messages wait for %s, want %d", n, of.hop.Name, each)
			}
		}
	}
	last := first
	for _, hop := range h.sched.hops {
		begins := hop.due[1].first()
		for _, ref := range hop.due[1].items {
			g := h.sched.slots.at(ref)
			if g.due < begins.due || g != begins && h.sched.message(g).accepted < h.sched.message(begins).accepted {
				t.Errorf("the first for %s is not the oldest", hop.hop.Name)
			}
		}
		last = max(last, begins.due)
	}
	if got, least := last-first, (spreadFirst * (hops - 1)).Microseconds(); got < least {
		t.Errorf("the last hop begins %d µs after the first message, want %d at least", got, least)
	}
}
