package queue

import (
	"path/filepath"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// crash leaves h as it is, as a killed process would, and opens a copy.
func (h *harness) crash(t *testing.T) *harness {
	t.Helper()
	return h.openCopy(t, h.killed(t))
}

// TestMessageThatEndsTheProcess has one message in flight at three crashes, and
// others at fewer.
func TestMessageThatEndsTheProcess(t *testing.T) {
	h := open(t, nil)
	bad := h.put(t, "bad", "a@bad.example")
	once := h.put(t, "once", "a@once.example", "b@other.example")
	for range 3 {
		h.claim(t)
	}
	if h = h.crash(t); len(find[event.MessagePoisoned](h.rec)) != 0 {
		t.Fatal("isolated after the first crash")
	}
	for range 3 { // all are due at once: the first crash means nothing
		if l := h.claim(t); l.Message.ID == once {
			h.settle(t, l, mail.Deferred, time.Now().Add(time.Hour))
		}
	}
	h = h.crash(t)
	h.idle(t)
	if m, err := h.Get(bad); err != nil || m.Poison != "" || time.Until(m.States[0].Due) < aloneAfter/2 {
		t.Fatalf("after the second crash it is %+v, %v, want it to wait", m, err)
	}
	if m, err := h.Get(once); err != nil || m.Poison != "" || time.Until(m.States[0].Due) < 30*time.Minute {
		t.Errorf("the other one is %+v, %v, want it due as it was", m, err)
	}
	if _, err := h.Act(t.Context(), Action{Action: "retry", Filter: Filter{All: true}}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		h.claim(t)
	}
	h = h.crash(t)
	if evs := stated[event.MessagePoisoned](t, h.rec, 1); len(evs) != 1 || evs[0].Error == "" {
		t.Errorf("poisoned = %+v, want one", evs)
	}
	if m, err := h.Get(bad); err != nil || m.Poison == "" {
		t.Errorf("after the third crash it is %+v, %v, want it isolated", m, err)
	}
	for range 2 {
		if l := h.claim(t); l.Message.ID != once {
			t.Errorf("claimed %s, want the other message only", l.Message.ID)
		} else {
			h.settle(t, l, mail.Relayed, time.Time{})
		}
	}
	h.idle(t)
	if got := h.Levels().ByState["poison"]; got != 1 {
		t.Errorf("%d messages are isolated, want 1", got)
	}
	if _, err := h.Act(t.Context(), Action{Action: "release", Filter: Filter{State: "poison"}}); err != nil {
		t.Fatal(err)
	}
	h.settle(t, h.claim(t), mail.Relayed, time.Time{})
	if got := h.Levels().Messages; got != 0 {
		t.Errorf("%d messages are left, want none", got)
	}
}

// TestCleanEndBlamesNobody closes a queue with leases out, again and again.
func TestCleanEndBlamesNobody(t *testing.T) {
	h := open(t, nil)
	id := h.put(t, "x", "a@example.com")
	for range 4 {
		h.claim(t)
		h = h.reopen(t, nil)
	}
	ident, _ := parseIdent(id)
	if m, err := h.read(ident); err != nil || m.panics != 0 {
		t.Errorf("its count is %+v, %v, want 0", m, err)
	}
	if f, ids, err := openFlight(filepath.Join(t.TempDir(), "none")); err == nil || f != nil || ids != nil {
		t.Error("openFlight without a directory succeeded")
	}
}
