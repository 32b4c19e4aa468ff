package queue

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// formSink compares the form of each fact with the fact.
type formSink struct {
	mu    sync.Mutex
	forms int
	late  int // facts of acceptance that were amended
	wrong []string
}

func (s *formSink) Write(r *event.Record) {
	kept := r.Keep()
	got, gerr := r.AppendJSON(nil)
	want, werr := kept.AppendJSON(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Form != nil {
		s.forms++
	}
	if ev, ok := r.Event.(event.MessageQueued); ok && ev.TAccept.Float() >= 3600 {
		s.late++
	}
	if gerr != nil || werr != nil || string(got) != string(want) {
		s.wrong = append(s.wrong, fmt.Sprintf("%s, %v\nwant %s, %v", got, gerr, want, werr))
	}
}

func TestFormsFollowTheirFacts(t *testing.T) {
	sink, rec := &formSink{}, &recorder{}
	h := open(t, func(o *Options) { o.Emitter = event.NewEmitter("n1", sink, rec) })
	h.run(t)
	const senders, messages, durable = 4, 25, 4 // queued, attempt, relayed, retired
	var wg sync.WaitGroup
	for range senders {
		wg.Go(func() {
			for i := range messages {
				d := draft(t, "user@example.com")
				for k := range i % 3 * 20 { // some sheets grow, some are too large to be used again
					d.Envelope.Recipients = append(d.Envelope.Recipients, mail.Recipient{Address: address(t, fmt.Sprintf("u%d@example.com", k))})
				}
				d.Origin.DataEndedAt = time.Now().Add(-time.Hour)
				if err := h.Put(t.Context(), d, []byte("text\r\n")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range senders * messages {
		l, err := h.Claim(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Settle(t.Context(), l, Settlement{Outcomes: outcomes(l, mail.Relayed)}); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	stated[event.MessageRetired](t, rec, senders*messages)
	sink.mu.Lock()
	defer sink.mu.Unlock()
	for _, w := range sink.wrong {
		t.Error(w)
	}
	if sink.late != senders*messages || sink.forms < durable*senders*messages {
		t.Errorf("%d facts of acceptance were amended and %d facts had a form, want %d and at least %d", sink.late, sink.forms, senders*messages, durable*senders*messages)
	}
}
