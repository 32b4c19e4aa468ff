package trackexport

import (
	"bytes"
	"encoding/csv"
	"net/netip"
	"strings"
	"testing"
	"time"

	"waybill/logtrack/trackimport"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// TestRoundTrip writes the facts of a message and reads them back as Exchange's log.
func TestRoundTrip(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 600e6, time.UTC)
	info := event.Info{MailFrom: "ann@example.com", HeaderFrom: "Ann@example.com", HeaderMessageID: "<a,b@example.com>", Size: 1234, ConnectorIn: "in", ClientIP: netip.MustParseAddr("192.0.2.1")}
	hop := event.Hop{ConnectorOut: "out", Queue: "dest.example", RemoteName: "mx.dest.example", RemoteIP: netip.MustParseAddr("2001:db8::1")}
	final := func(to string, code int, enhanced, text string) event.Final {
		return event.Final{Info: info, Hop: hop, Recipient: to, Answer: event.Answer{Code: code, Enhanced: enhanced, Reply: text}, Attempts: 2, TTotal: event.Seconds(1500 * time.Millisecond)}
	}
	to := []event.Recipient{{Address: `"a;b"@dest.example`}, {Address: "bob@dest.example"}, {Address: "late@dest.example"}, {Address: "gone@dest.example"}}
	facts := []event.Event{
		event.MessageQueued{Info: info, Recipients: to, Subject: "Two \"words\",\nand a line"},
		event.SessionOpened{Direction: event.Inbound},
		event.AttemptFinished{Info: info, Hop: hop, Disposition: mail.Deferred, Recipients: []event.Recipient{{Address: "late@dest.example", Code: 451, Enhanced: "4.7.1", Reply: "later; please"}}, Attempt: 1},
		event.RecipientRelayed{Final: final(`"a;b"@dest.example`, 250, "2.0.0", "ok")},
		event.RecipientBounced{Final: final("bob@dest.example", 550, "5.1.1", "no such user")},
		event.RecipientExpired{Final: final("late@dest.example", 451, "4.7.1", "later")},
		event.RecipientDropped{Final: final("gone@dest.example", 0, "", ""), Actor: "ann", Reason: "asked for"},
		event.RecipientBounced{Final: final("ended@dest.example", 554, "5.7.1", "Returned by the administrator."), Actor: "ann", Reason: "as agreed"},
	}
	var out bytes.Buffer
	w, err := NewWriter(&out, at)
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for i, ev := range facts {
		r := event.Record{ID: mail.NewID(at), Time: at.Add(time.Duration(i) * time.Second), Node: "relay1", Message: "01J9ZC3K5V8Q2M7RXT4W6Y0ABC", UID: "01945f5a-1111-7222-8333-444455556666", Event: ev}
		written, err := w.Write(&r)
		if err != nil {
			t.Fatal(err)
		}
		if written {
			lines++
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if lines != 7 {
		t.Errorf("%d lines, want 7", lines)
	}
	text := out.String()
	in := csv.NewReader(strings.NewReader(text))
	in.Comment = '#'
	rows, err := in.ReadAll()
	if err != nil || len(rows) != lines || len(rows[0]) != 30 || len(Columns()) != 30 {
		t.Fatalf("%d rows of %d columns, %v", len(rows), len(rows[0]), err)
	}
	if row := rows[len(rows)-1]; row[eventID] != "FAIL" || row[source] != "ADMIN" || row[sourceContext] != "ann as agreed" {
		t.Errorf("what an operator gave up is %q of %q by %q, want FAIL of ADMIN by ann as agreed", row[eventID], row[source], row[sourceContext])
	}

	// The subject's line end makes a row of two lines, as Exchange never has.
	text = strings.ReplaceAll(text, ",\nand", ", and")
	var back []event.Record
	im, err := trackimport.New("exchange-tracking", trackimport.Options{
		Each: func(r *event.Record) error { back = append(back, *r); return nil },
		Bad:  func(_ string, line int, err error) { t.Errorf("line %d: %v", line, err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := im.Read(t.Context(), "log", at, strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, r := range back {
		switch ev := r.Event.(type) { //nolint:gochecksumtype // the final ones
		case event.MessageQueued:
			if len(ev.Recipients) != 4 || ev.Recipients[0].Address != `"a;b"@dest.example` || ev.ClientIP != info.ClientIP || ev.Size != 1234 {
				t.Errorf("queued %+v", ev)
			}
		case event.RecipientRelayed:
			got[ev.Recipient] = "relayed"
			if ev.TTotal != event.Seconds(1500*time.Millisecond) || ev.RemoteIP != hop.RemoteIP || r.Node != "relay1" {
				t.Errorf("relayed %+v by %s", ev, r.Node)
			}
		case event.RecipientBounced:
			got[ev.Recipient] = "bounced " + ev.Enhanced
		case event.RecipientExpired:
			got[ev.Recipient] = "expired"
		case event.RecipientDropped:
			got[ev.Recipient] = "dropped"
		}
	}
	for to, want := range map[string]string{`"a;b"@dest.example`: "relayed", "bob@dest.example": "bounced 5.1.1", "late@dest.example": "expired", "gone@dest.example": "dropped", "ended@dest.example": "bounced 5.7.1"} {
		if got[to] != want {
			t.Errorf("%s is %q, want %q", to, got[to], want)
		}
	}
}

// TestControlCharacters holds that what a stranger writes does nothing to a
// terminal, and ends no line.
func TestControlCharacters(t *testing.T) {
	var out bytes.Buffer
	w, err := NewWriter(&out, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r := event.Record{Time: time.Now(), Event: event.RecipientBounced{Final: event.Final{Recipient: "nul\x00esc\x1b[31m@dest.example", Answer: event.Answer{Code: 550, Reply: "no\r\x07\u009b2J"}}}}
	if _, err := w.Write(&r); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); strings.ContainsAny(text, "\x00\x1b\x07\r\u009b") || !strings.Contains(text, "nul\uFFFDesc\uFFFD[31m@dest.example") {
		t.Errorf("%q", text)
	}
}
