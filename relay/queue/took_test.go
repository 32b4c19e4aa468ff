package queue

import (
	"sync"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// TestTimeToAcceptOutlivesACrash has facts stated again: how long it took to
// accept a message was not known when its fact was written.
func TestTimeToAcceptOutlivesACrash(t *testing.T) {
	h := open(t, func(o *Options) { o.Confirm = &confirmer{} })
	ids := make([]mail.QueueID, 50)
	var all sync.WaitGroup
	for i := range ids {
		d := draft(t, "ann@example.com")
		if i%7 == 0 { // made here: nobody waits for it
			d.Origin.DataEndedAt = time.Time{}
		}
		ids[i] = d.ID
		all.Go(func() {
			if err := h.Put(t.Context(), d, []byte("content")); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	took := func(rec *recorder) map[mail.QueueID]event.Seconds {
		list := map[mail.QueueID]event.Seconds{}
		for _, r := range rec.all() {
			if ev, ok := r.Event.(event.MessageQueued); ok {
				list[r.Message] = ev.TAccept
			}
		}
		return list
	}
	last := h.put(t, "content", "ann@example.com")
	first := h.rec
	h = h.reopen(t, nil)
	want, got := took(first), took(h.rec)
	for i, id := range ids {
		if got[id] != want[id] || (got[id] == 0) != (i%7 == 0) {
			t.Errorf("message %s took %v, said after a crash, and %v before", id, got[id], want[id])
		}
	}
	if got[last] != 0 {
		t.Errorf("the last message took %v, said after a crash; that cannot be known", got[last])
	}
}
