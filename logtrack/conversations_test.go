package logtrack

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// talk is the conversation of an attempt for one message.
func talk(at time.Time, session string, id mail.QueueID, n int) event.Record {
	ev := event.TranscriptKept{
		Direction: event.Outbound, Connector: "internet", RemoteName: "mx1.example.net", RemoteIP: netip.MustParseAddr("198.51.100.7"), Attempt: 1, Reason: "all", Began: at,
	}
	for i, s := range []string{
		"(session reused, after 7 transactions)", fmt.Sprintf("MAIL FROM:<sender%d@example.com> SIZE=10240", n%1000), fmt.Sprintf("RCPT TO:<user%d@example.org>", n), "DATA",
		"250 2.1.0 sender ok", "250 2.1.5 recipient ok", "354 end with CRLF.CRLF", "(content)", ".", fmt.Sprintf("250 2.0.0 queued as %s", id),
	} {
		from := "client"
		if s[0] >= '0' && s[0] <= '9' {
			from = "server"
		}
		ev.Transcript = append(ev.Transcript, event.Line{Seq: i + 1, At: event.Secs(time.Duration(i*n%977) * time.Microsecond), From: from, Text: s, Bytes: int64(len(s))})
	}
	ev.Lines = len(ev.Transcript)
	return event.Record{ID: mail.NewID(at), Time: at, Node: "mx1", Source: event.SourceSMTPOut, Session: session, Message: id, Event: ev}
}

// TestConversationsAreKeptApart: they are found after a restart, bloat no block
// of facts, go earlier than facts, and come back from the log.
func TestConversationsAreKeptApart(t *testing.T) {
	dir := t.TempDir()
	week := func(o *Options) { o.Retention, o.TranscriptRetention = 30*24*time.Hour, 2*24*time.Hour }
	s := openStore(t, dir, week)
	now := time.Now().UTC().Truncate(time.Microsecond)
	var ids []mail.QueueID
	var log bytes.Buffer
	for n := range 50 {
		at := now.Add(time.Duration(n-50) * time.Second)
		id := mail.QueueID(mail.NewID(at))
		ids = append(ids, id)
		queued := event.Record{ID: mail.NewID(at), Time: at, Session: "S-in", Message: id, Event: event.MessageQueued{Info: event.Info{MailFrom: "a@example.com"}, Recipients: []event.Recipient{{Address: "b@example.org"}}}}
		said := talk(at, "S-out", id, n)
		for _, r := range []*event.Record{&queued, &said} {
			s.Write(r)
			s.Write(r) // twice, as after a crash
			log.WriteString(jsonOf(t, r) + "\n")
		}
	}
	check := func(s *Store) {
		t.Helper()
		if got := must1[*trackapi.Events](t)(s.Events(t.Context(), trackapi.Query{Limit: 1000})); len(got.Events) != len(ids) {
			t.Errorf("%d facts, want %d, and no conversations", len(got.Events), len(ids))
		}
		for _, i := range []int{0, 7, 49} {
			tr := must1[*trackapi.Transcript](t)(s.Transcript(t.Context(), strings.ToLower(string(ids[i]))))
			if len(tr.Conversations) != 1 || len(tr.Conversations[0].Lines) != 10 || tr.Conversations[0].Lines[9].Text != "250 2.0.0 queued as "+string(ids[i]) {
				t.Fatalf("transcript %+v", tr)
			}
		}
		if tr := must1[*trackapi.Transcript](t)(s.SessionTranscript(t.Context(), "S-out")); len(tr.Conversations) != len(ids) || !slices.IsSortedFunc(tr.Conversations, func(a, b trackapi.Conversation) int { return a.Time.Compare(b.Time) }) {
			t.Errorf("%d conversations of the session", len(tr.Conversations))
		}
	}
	check(s)
	if st := s.Stats(); st.Events != int64(2*len(ids)) || st.Duplicates != int64(2*len(ids)) {
		t.Errorf("Stats() = %+v", st)
	}
	seal(s)
	seal(s.talks)
	check(s)
	var dump bytes.Buffer
	if n := must1[int](t)(s.Export(t.Context(), &dump, time.Time{}, time.Time{})); n != 2*len(ids) {
		t.Errorf("%d lines exported, want %d", n, 2*len(ids))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	check(openStore(t, dir, week))

	for name, lines := range map[string]*bytes.Buffer{"log": &log, "export": &dump} {
		again := openStore(t, t.TempDir(), week)
		if done := must1[Reindexed](t)(again.Reindex(t.Context(), lines)); done.Added != 2*len(ids) || done.Other > 0 {
			t.Errorf("Reindex of the %s = %+v", name, done)
		}
		check(again)
		again.maintain(now.AddDate(0, 0, 4))
		if _, err := again.SessionTranscript(t.Context(), "S-out"); !errors.Is(err, ErrNoSession) {
			t.Errorf("conversations past their retention: %v", err)
		}
		if tr := must1[*trackapi.Transcript](t)(again.Transcript(t.Context(), string(ids[0]))); tr.Note == "" || len(tr.Conversations) > 0 {
			t.Errorf("transcript past its retention %+v", tr)
		}
		if left, _ := filepath.Glob(filepath.Join(again.opts.Dir, "transcripts", "parts", "*")); len(left) > 0 {
			t.Errorf("left on disk: %q", left)
		}
	}
}

// TestTailHasConversations: the live stream of facts has them, as the log.
func TestTailHasConversations(t *testing.T) {
	s := openStore(t, t.TempDir())
	live, err := s.Tail(trackapi.Query{Event: "transcript_kept"})
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	r := talk(time.Now().UTC(), "S1", "", 1)
	s.Write(&r)
	select {
	case got := <-live.C:
		if got.Session != "S1" {
			t.Errorf("got %+v", got)
		}
	case <-time.After(time.Minute):
		t.Fatal("nothing came")
	}
}

// BenchmarkTranscripts writes the conversations of attempts until they are sealed.
func BenchmarkTranscripts(b *testing.B) {
	s := openStore(b, b.TempDir())
	start := time.Now().UTC()
	recs := make([]event.Record, 20000)
	for n := range recs {
		at := start.Add(time.Duration(n) * time.Millisecond)
		recs[n] = talk(at, mail.NewID(at), mail.QueueID(mail.NewID(at)), n)
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		r := recs[n%len(recs)]
		r.ID = mail.NewID(start.Add(time.Duration(n) * time.Millisecond))
		s.Write(&r)
		n++
	}
	seal(s.talks)
	s.talks.measure()
	b.ReportMetric(float64(s.talks.Stats().Bytes)/float64(n), "octets/op")
}

// TestCloseSaysOnceWhatFailed has neither store find room for what it holds.
func TestCloseSaysOnceWhatFailed(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Options{Dir: dir, Retention: 30 * 24 * time.Hour, TranscriptRetention: 2 * 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC()
	said := talk(now, "S-out", mail.QueueID(mail.NewID(now)), 1)
	s.Write(&said)
	s.Write(&event.Record{ID: mail.NewID(now), Time: now, Event: event.Remarked{Remark: "something"}})
	for _, parts := range []string{filepath.Join(dir, "parts"), filepath.Join(dir, "transcripts", "parts")} {
		if err := errors.Join(os.RemoveAll(parts), os.WriteFile(parts, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	err = s.Close()
	if err == nil {
		t.Fatal("Close() = nil, want that nothing could be stored")
	}
	if text := err.Error(); strings.Count(text, "close tracking store:") != 1 || !strings.Contains(text, "conversations: 1 blocks stay in the journal") {
		t.Errorf("Close() = %v, want that said once, and which of the stores", err)
	}
}
