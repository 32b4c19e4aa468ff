package deliver_test

import (
	"bytes"
	"testing"
	"time"

	"waybill/relay/deliver"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/relaytest"
)

// TestConverted: the record says how content was changed for a next hop, and the
// queue keeps it as it came.
func TestConverted(t *testing.T) {
	r := newRig(t, deliver.Retry{Schedule: fast}, deliver.Limits{}, relaytest.WithExtensions("PIPELINING", "SIZE"))
	r.host.Do(relaytest.PhaseRcpt+" grey@example.com", relaytest.Action{Times: 1, Reply: "450 4.7.1 greylisted"})
	now := time.Now()
	d := mail.Draft{ID: mail.QueueID(mail.NewID(now)), Trace: []byte("Received: by mx1.example.net\r\n")}
	d.Envelope.Body = mail.Body8BitMIME
	d.Envelope.Sender, _ = mail.ParseAddress("alice@example.org")
	to, err := mail.ParseAddress("grey@example.com")
	if err != nil {
		t.Fatal(err)
	}
	d.Envelope.Recipients = []mail.Recipient{{Address: to}}
	if err := r.queue.Put(t.Context(), d, []byte("MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nIm Süden nichts Neues\r\n")); err != nil {
		t.Fatal(err)
	}
	r.retired(1)
	var got []string
	for _, rec := range r.rec.About(d.ID) {
		if ev, ok := rec.Event.(event.AttemptFinished); ok {
			got = append(got, ev.Disposition.String()+" "+ev.Converted)
		}
	}
	if len(got) != 2 || got[0] != "deferred " || got[1] != "relayed quoted-printable:1" {
		t.Errorf("attempts = %q, want the second converted", got)
	}
	if m := r.host.Messages(); len(m) != 1 || !bytes.Contains(m[0].Content, []byte("\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nIm S=C3=BCden nichts Neues\r\n")) {
		t.Errorf("messages = %+v", m)
	}
}
