package queue

import (
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// TestRelease: mail that asked to be held (RFC 4865) is not claimed before, also
// not after a restart, its life begins then, and nobody calls it late.
func TestRelease(t *testing.T) {
	h := open(t, func(o *Options) { o.LateAfter = time.Millisecond })
	put := func(hold time.Duration) (mail.QueueID, time.Time) {
		d := draft(t, "a@example.com")
		d.Envelope.Release = time.Now().Add(hold)
		if err := h.Put(t.Context(), d, []byte("x")); err != nil {
			t.Fatal(err)
		}
		return d.ID, d.Envelope.Release
	}
	far, at := put(7 * 24 * time.Hour)
	soon, release := put(1500 * time.Millisecond)
	past, _ := put(-time.Hour)
	if l := h.claim(t); l.Message.ID != past || !l.Message.Begins().Equal(l.Message.AcceptedAt) {
		t.Errorf("claimed %s, want %s", l.Message.ID, past)
	} else {
		h.settle(t, l, mail.Relayed, time.Time{})
	}
	h = h.reopen(t, nil)
	l := h.claim(t)
	if l.Message.ID != soon || time.Now().Before(release.Add(-time.Millisecond)) {
		t.Errorf("claimed %s %s before its time", l.Message.ID, time.Until(release))
	}
	h.settle(t, l, mail.Relayed, time.Time{})
	m, err := h.Get(far)
	if err != nil {
		t.Fatal(err)
	}
	if begins := at.UTC().Truncate(time.Microsecond); !m.Begins().Equal(begins) || !m.ExpiresAt.Equal(begins.Add(h.opts().Lifetime)) {
		t.Errorf("begins %s, expires %s", m.Begins(), m.ExpiresAt)
	}
	h.idle(t)
	if late := find[event.RecipientLate](h.rec); len(late) > 0 {
		t.Errorf("late: %+v", late)
	}
}
