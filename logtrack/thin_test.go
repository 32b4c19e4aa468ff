package logtrack

import (
	"bytes"
	"context"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// TestKinds keeps kinds of facts for less than the rest: they leave a day that
// stays, but for those of a message that the queue has, and do not come back.
func TestKinds(t *testing.T) {
	const day = 24 * time.Hour
	dir := t.TempDir()
	now := time.Now().UTC().Truncate(time.Microsecond)
	at := now.Add(-10 * day)
	waits, left := mail.QueueID(mail.NewID(at)), mail.QueueID(mail.NewID(at))
	open := func(kinds map[string]time.Duration) *Store {
		t.Helper()
		s, err := Open(Options{Dir: dir, Retention: 30 * day, Kinds: kinds, Pending: func(context.Context, time.Time) ([]mail.QueueID, error) {
			return []mail.QueueID{waits}, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open(nil)
	im := s.Import()
	var lines bytes.Buffer
	for _, r := range []event.Record{
		{Session: "S1", Event: event.SessionOpened{Direction: event.Inbound}},
		{Session: "S1", Event: event.SessionClosed{Direction: event.Inbound}},
		{Session: "S1", Event: event.AuthFailed{}},
		{Session: "S1", Event: event.CommandAnswered{Verb: "EHLO", Code: 250}},
		{Message: waits, Event: event.MessageQueued{Info: event.Info{MailFrom: "a@b.example"}}},
		{Message: waits, Event: event.MessageRouted{Why: "it waits"}},
		{Message: left, Event: event.MessageQueued{Info: event.Info{MailFrom: "a@b.example"}}},
		{Message: left, Event: event.MessageRouted{Why: "it left"}},
		{Message: left, Event: event.RecipientLate{Recipient: "c@d.example"}},
		{Message: left, Event: event.MessageRetired{}},
	} {
		r.ID, r.Time = mail.NewID(at), at
		if b, err := r.MarshalJSON(); err == nil {
			lines.Write(append(b, '\n'))
		}
		if err := im.Add(&r); err != nil {
			t.Fatal(err)
		}
	}
	if err := im.Close(); err != nil || im.Done().Added != 10 {
		t.Fatalf("%+v, %v", im.Done(), err)
	}
	closed(t, s)

	s = open(map[string]time.Duration{KindSession: 3 * day, KindProtocol: day, "auth_failed": 20 * day, "message_routed": 5 * day, "message_retired": day})
	t.Cleanup(func() { closed(t, s) })
	facts := func() map[string]int {
		t.Helper()
		list, err := s.Events(t.Context(), trackapi.Query{From: now.Add(-20 * day), Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]int{}
		for _, e := range list.Events {
			var r event.Record
			if err := r.UnmarshalJSON(e); err != nil {
				t.Fatal(err)
			}
			found[event.Name(r.Event)]++
		}
		return found
	}
	s.Write(&event.Record{ID: mail.NewID(now), Time: now, Event: event.QueueLoaded{}}) // today is the active day then
	if err := s.settleAll(); err != nil {
		t.Fatal(err)
	}
	s.maintain(now) // finishes the day
	s.thin(t.Context(), now)
	// The message's own facts are in no group, and durable facts go with their day.
	want := map[string]int{"auth_failed": 1, "message_queued": 2, "message_routed": 1, "recipient_late": 1, "message_retired": 1, "queue_loaded": 1}
	if got := facts(); !maps.Equal(got, want) {
		t.Errorf("after the first time: %v, want %v", got, want)
	}
	if tl, err := s.Message(t.Context(), string(waits)); err != nil || len(tl.Timeline) != 2 {
		t.Errorf("the message in the queue: %+v, %v; want all of its history", tl, err)
	}
	name := s.partitions()[0].name
	if r, err := s.Reindex(t.Context(), bytes.NewReader(lines.Bytes())); err != nil || r.Added != 0 || r.Old != 4 {
		t.Errorf("Reindex() = %+v, %v; want the four facts passed over as old that left the day", r, err)
	}
	again, err := Open(Options{Dir: t.TempDir(), Retention: s.opts.Retention, Kinds: s.opts.Kinds, Pending: s.opts.Pending})
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, again)
	if r, err := again.Reindex(t.Context(), bytes.NewReader(lines.Bytes())); err != nil || r.Added != 6 || r.Old != 4 {
		t.Errorf("Reindex() into an empty store = %+v, %v; want what was left of the day", r, err)
	}
	closed(t, s)
	s = open(s.opts.Kinds)
	s.maintain(now)
	s.thin(t.Context(), now)
	if got := s.partitions()[0].name; got != name {
		t.Errorf("the day was written anew again, as %s", got)
	}
	s.thin(t.Context(), now.Add(15*day)) // logins are past their age too
	delete(want, "auth_failed")
	if got := facts(); !maps.Equal(got, want) {
		t.Errorf("later: %v, want %v", got, want)
	}
	if v, err := s.Verify(t.Context(), nil); err != nil || !v.OK {
		t.Errorf("Verify() = %+v, %v", v, err)
	}
}

// TestKindsOfDamagedDay leaves a day alone that cannot be read: what is damaged
// in it must not go unsaid.
func TestKindsOfDamagedDay(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, func(o *Options) { o.Kinds = map[string]time.Duration{KindSession: time.Hour} })
	now := time.Now().UTC()
	at := now.Add(-3 * 24 * time.Hour)
	s.opts.Kinds[KindSession] = 100 * 24 * time.Hour
	im := s.Import()
	for range 2000 {
		if err := im.Add(&event.Record{ID: mail.NewID(at), Time: at, Session: mail.NewID(at), Event: event.SessionOpened{Direction: event.Inbound, Connector: mail.NewID(at)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	s.opts.Kinds[KindSession] = time.Hour
	s.maintain(now)
	s.maintain(now.Add(2 * idleAfter))
	p := s.partitions()[0]
	flipFiles(t, filepath.Join(p.dir, "*.vlog"), 0.1)
	s.thin(t.Context(), now)
	if got := s.partitions()[0]; got != p || got.summary().Thinned != nil {
		t.Errorf("the damaged day was written anew: %+v", got.summary())
	}
	if _, err := os.Stat(filepath.Join(dir, "rewrite", p.name)); !os.IsNotExist(err) {
		t.Errorf("a half written day is left: %v", err)
	}
}

// TestDamagedDayCountsOnce damages a day that is shut: the first who reads it
// tells of it, and nobody after it.
func TestDamagedDayCountsOnce(t *testing.T) {
	s := openStore(t, t.TempDir())
	now := time.Now().UTC()
	at := now.Add(-3 * 24 * time.Hour)
	im := s.Import()
	if err := im.Add(&event.Record{ID: mail.NewID(at), Time: at, Event: event.SessionOpened{Direction: event.Inbound}}); err != nil {
		t.Fatal(err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	s.maintain(now)
	s.maintain(now.Add(2 * idleAfter))
	flipFiles(t, filepath.Join(s.partitions()[0].dir, "MANIFEST"), 0)
	for range 2 {
		page, err := s.Events(t.Context(), trackapi.Query{From: now.AddDate(0, 0, -10)})
		if err != nil || page.Cut == "" {
			t.Errorf("an answer without a day says %q, %v", page.Cut, err)
		}
	}
	if n := s.Stats().WriteErrors["read"]; n != 1 {
		t.Errorf("%d read errors, want one for the damaged day", n)
	}
}
