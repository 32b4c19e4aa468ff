package logtrack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

// exported is everything in the store, as lines.
func exported(t *testing.T, s *Store) []string {
	t.Helper()
	var out bytes.Buffer
	if _, err := s.Export(t.Context(), &out, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	slices.Sort(lines)
	return lines
}

// someMail writes the facts of messages in several sealed blocks, and returns them.
func someMail(s *Store, seed uint64, messages int) []event.Record {
	m := newMailer(seed)
	var recs []event.Record
	for range messages {
		recs = append(recs, m.next()...)
	}
	for i := range recs {
		s.Write(&recs[i])
		if i%(len(recs)/3) == 0 {
			s.mu.Lock()
			s.rotate()
			s.mu.Unlock()
		}
	}
	return recs
}

func closed(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestErase(t *testing.T) {
	s := openStore(t, t.TempDir())
	recs := someMail(s, 5, 120)
	victim := ""
	for i := range recs {
		if ev, ok := recs[i].Event.(event.MessageQueued); ok && len(ev.Recipients) > 0 {
			victim = ev.Recipients[0].Address
			break
		}
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	s.Write(&event.Record{ID: mail.NewID(now), Time: now, Session: "S9", Event: event.TranscriptKept{
		Direction: event.Inbound, Reason: "failed", Began: now, Lines: 1, Transcript: []event.Line{{Seq: 1, From: "client", Text: "RCPT TO:<" + strings.ToUpper(victim) + ">"}},
	}})
	var lines bytes.Buffer
	if _, err := s.Export(t.Context(), &lines, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	before := exported(t, s)
	if !strings.Contains(strings.ToLower(strings.Join(before, "\n")), victim) {
		t.Fatalf("%s is not in the store", victim)
	}
	done, err := s.Erase(t.Context(), victim)
	if err != nil || done.Facts == 0 || done.Partitions == 0 {
		t.Fatalf("Erase() = %+v, %v", done, err)
	}
	after := exported(t, s)
	if i := slices.IndexFunc(after, func(l string) bool { return strings.Contains(strings.ToLower(l), strings.ToLower(victim)) }); i >= 0 {
		t.Errorf("still there: %s", after[i])
	}
	if len(after) != len(before)-1 { // the conversation is gone
		t.Errorf("%d facts, were %d", len(after), len(before))
	}
	kept := 0
	for _, l := range before {
		if _, ok := slices.BinarySearch(after, l); ok {
			kept++
		}
	}
	if kept < len(before)-done.Facts {
		t.Errorf("%d facts are as they were, want %d", kept, len(before)-done.Facts)
	}
	if list, err := s.Messages(t.Context(), trackapi.Query{Recipient: victim, From: time.UnixMicro(1)}); err != nil || len(list.Messages) != 0 {
		t.Errorf("found %+v, %v", list, err)
	}
	if v, err := s.Verify(t.Context(), nil); err != nil || !v.OK {
		t.Errorf("Verify() = %+v, %v", v, err)
	}
	// Lines of before bring nothing back, and new mail is recorded.
	if r, err := s.Reindex(t.Context(), &lines); err != nil || r.Added != 0 {
		t.Errorf("Reindex() = %+v, %v", r, err)
	}
	late := time.Now().UTC().Add(time.Second).Truncate(time.Microsecond)
	s.Write(&event.Record{ID: mail.NewID(late), Time: late, Message: mail.QueueID(mail.NewID(late)), Event: event.MessageQueued{Info: event.Info{MailFrom: "x@y.example"}, Recipients: []event.Recipient{{Address: victim}}}})
	if list, err := s.Messages(t.Context(), trackapi.Query{Recipient: victim, From: time.UnixMicro(1)}); err != nil || len(list.Messages) != 1 {
		t.Errorf("new mail: %+v, %v", list, err)
	}
	var p *trackapi.Problem
	if _, err := s.Erase(t.Context(), "@example.com"); !errors.As(err, &p) {
		t.Errorf("a domain is erased: %v", err)
	}
	dir := s.opts.Dir
	closed(t, s)
	again := openStore(t, dir)
	if got := exported(t, again); len(got) != len(after)+1 {
		t.Errorf("after a restart %d facts, want %d", len(got), len(after)+1)
	}
}

// TestInterruptedRewrite is a crash after the new partition took its place, and
// one before.
func TestInterruptedRewrite(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	someMail(s, 6, 60)
	want := exported(t, s)
	closed(t, s)
	list, err := os.ReadDir(filepath.Join(dir, "parts"))
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	old := list[0].Name()
	now := old[:len(old)-4] + "0007"
	if err := os.CopyFS(filepath.Join(dir, "parts", now), os.DirFS(filepath.Join(dir, "parts", old))); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "parts", now, replacesFile), []byte(old), 0o600), os.MkdirAll(filepath.Join(dir, "rewrite", "half"), 0o700)); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	if got := exported(t, s); !slices.Equal(got, want) {
		t.Errorf("%d facts, want %d", len(got), len(want))
	}
	if _, err := os.Stat(filepath.Join(dir, "rewrite")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a rewrite is left: %v", err)
	}
}

// TestDamagedStore flips bits in the files of a store: it goes on answering,
// says that something is missing, and reindex brings it back.
func TestDamagedStore(t *testing.T) {
	for _, test := range []struct {
		name string
		file string // pattern
		at   float64
	}{
		{"blocks", "*.vlog", 0.5},
		{"tables", "*.sst", 0.3},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir)
			someMail(s, 7, 300)
			var lines bytes.Buffer
			if _, err := s.Export(t.Context(), &lines, time.Time{}, time.Now().Add(time.Hour)); err != nil {
				t.Fatal(err)
			}
			want := exported(t, s)
			closed(t, s)
			flip(t, filepath.Join(dir, "parts"), test.file, test.at)

			s = openStore(t, dir)
			extra := time.Now().UTC().Truncate(time.Microsecond)
			s.Write(&event.Record{ID: mail.NewID(extra), Time: extra, Event: event.Remarked{Remark: "life goes on"}})
			page, err := s.Events(t.Context(), trackapi.Query{Event: "remarked"})
			if err != nil || len(page.Events) != 1 {
				t.Fatalf("Events() = %+v, %v", page, err)
			}
			v, err := s.Verify(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Repair(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Reindex(t.Context(), bytes.NewReader(lines.Bytes())); err != nil {
				t.Fatal(err)
			}
			got := slices.DeleteFunc(exported(t, s), func(l string) bool { return strings.Contains(l, "life goes on") })
			if !slices.Equal(got, want) {
				t.Errorf("%d facts, want %d; before the repair: %+v", len(got), len(want), v)
			}
			if v, err := s.Verify(t.Context(), nil); err != nil || !v.OK {
				t.Errorf("Verify() = %+v, %v", v, err)
			}
		})
	}
}

// TestDamagedDay damages the tables of one day: the others are as they were, what
// is missing is said, and one whose damage shows while the store runs is no
// different.
func TestDamagedDay(t *testing.T) {
	for _, test := range []struct {
		name    string
		running bool // damaged while the store has it closed
	}{
		{"before the start", false},
		{"while it runs", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir)
			im := s.Import()
			now := time.Now().UTC().Truncate(time.Microsecond)
			var lines bytes.Buffer
			for day := range 3 {
				at := now.Add(time.Duration(day-4) * 24 * time.Hour)
				for range 20 {
					r := event.Record{ID: mail.NewID(at), Time: at, Message: mail.QueueID(mail.NewID(at)), Event: event.MessageQueued{Info: event.Info{MailFrom: fmt.Sprintf("day%d@example.com", day)}}}
					if b, err := r.MarshalJSON(); err == nil {
						lines.Write(append(b, '\n'))
					}
					if err := im.Add(&r); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := im.Close(); err != nil {
				t.Fatal(err)
			}
			s.maintain(now) // finishes the days
			s.maintain(now.Add(2 * idleAfter))
			day := filepath.Join(dir, "parts", now.Add(-3*24*time.Hour).Format("20060102")+"-0000")
			if test.running {
				flipFiles(t, filepath.Join(day, "*.sst"), 0.2)
			} else {
				closed(t, s)
				flipFiles(t, filepath.Join(day, "*.sst"), 0.2)
				s = openStore(t, dir)
			}
			find := func() (found [3]int, cut string) {
				t.Helper()
				for day := range found {
					list, err := s.Messages(t.Context(), trackapi.Query{Sender: fmt.Sprintf("day%d@example.com", day), From: now.Add(-7 * 24 * time.Hour), Limit: 100})
					if err != nil {
						t.Fatal(err)
					}
					found[day] = len(list.Messages)
					cut += list.Cut
				}
				return found, cut
			}
			if found, cut := find(); found != [3]int{20, 0, 20} || test.running && cut == "" {
				t.Errorf("found %v (%s), want all but the damaged day", found, cut)
			}
			if st := s.Stats(); !strings.Contains(st.Degraded, filepath.Base(day)) {
				t.Errorf("degraded: %q, want it to name the day", st.Degraded)
			}
			if v, err := s.Verify(t.Context(), nil); err != nil || v.OK || !slices.Equal(v.LeftOut, []string{filepath.Base(day)}) {
				t.Errorf("Verify() = %+v, %v", v, err)
			}
			if done, err := s.Repair(t.Context()); err != nil || done.Partitions != 1 {
				t.Errorf("Repair() = %+v, %v", done, err)
			}
			if _, err := s.Reindex(t.Context(), &lines); err != nil {
				t.Fatal(err)
			}
			if found, cut := find(); found != [3]int{20, 20, 20} || cut != "" {
				t.Errorf("after the repair: %v (%s), want all", found, cut)
			}
			if st := s.Stats(); st.Degraded != "" {
				t.Errorf("degraded after the repair: %q", st.Degraded)
			}
		})
	}
}

func flip(t *testing.T, root, pattern string, at float64) {
	t.Helper()
	flipFiles(t, filepath.Join(root, "*", pattern), at)
}

func flipFiles(t *testing.T, pattern string, at float64) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	flipped := 0
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		used := len(bytes.TrimRight(b, "\x00"))
		if used == 0 {
			continue
		}
		for i := int(float64(used) * at); i < min(used, int(float64(used)*at)+40); i++ {
			b[i] ^= 0x55
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		flipped++
	}
	if flipped == 0 {
		t.Fatalf("the store has no %s", pattern)
	}
}

func TestVerifyAgainstQueue(t *testing.T) {
	s := openStore(t, t.TempDir())
	at := time.Now().UTC().Add(-time.Minute).Truncate(time.Microsecond)
	id := func(i int) mail.QueueID { return mail.QueueID(mail.NewID(at.Add(time.Duration(i) * time.Millisecond))) }
	waits, left, lost, unknown := id(1), id(2), id(3), id(4)
	for _, m := range []mail.QueueID{waits, left, lost} {
		s.Write(&event.Record{ID: mail.NewID(at), Time: at, Message: m, Event: event.MessageQueued{Info: event.Info{MailFrom: "a@b.example"}}})
	}
	s.Write(&event.Record{ID: mail.NewID(at), Time: at, Message: left, Event: event.MessageRetired{}})
	queued := func(context.Context) (map[mail.QueueID]bool, error) {
		return map[mail.QueueID]bool{waits: true, unknown: true}, nil
	}
	v, err := s.Verify(t.Context(), queued)
	if err != nil || v.OK || v.Queued != 2 || !slices.Equal(v.Missing, []string{string(unknown)}) || !slices.Equal(v.Lingering, []string{string(lost)}) || v.Differs != 2 {
		t.Errorf("Verify() = %+v, %v", v, err)
	}
	if _, err := s.Verify(t.Context(), func(context.Context) (map[mail.QueueID]bool, error) { return nil, errClosed }); !errors.Is(err, errClosed) {
		t.Errorf("Verify() = %v", err)
	}
	if o := s.Operation(); o.Facts != 4 || len(o.Partitions) != 1 || len(o.Indexes) == 0 {
		t.Errorf("Operation() = %+v", o)
	}
}

func TestHashedAddresses(t *testing.T) {
	dir := t.TempDir()
	open := func(keys ...string) *Store {
		t.Helper()
		p := &Privacy{}
		for _, k := range keys {
			p.Keys = append(p.Keys, []byte(k))
		}
		s, err := Open(Options{Dir: dir, Privacy: p})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	at := time.Now().UTC().Truncate(time.Microsecond)
	write := func(s *Store) mail.QueueID {
		id := mail.QueueID(mail.NewID(at))
		info := event.Info{MailFrom: "Ann.Secret@Example.com", HeaderFrom: "ann.secret@example.com", AuthUser: "ann.secret@example.com", HeaderMessageID: "<1@example.com>"}
		s.Write(&event.Record{ID: mail.NewID(at), Time: at, Message: id, Event: event.MessageQueued{Info: info, Recipients: []event.Recipient{{Address: "bob.secret@bücher.example"}}}})
		s.Write(&event.Record{ID: mail.NewID(at), Time: at, Message: id, Event: event.RecipientBounced{Final: event.Final{
			Info: info, Recipient: "bob.secret@bücher.example", Answer: event.Answer{Code: 550, Reply: "<bob.secret@bücher.example>: no such user, ann.secret@example.com."},
		}}})
		return id
	}
	find := func(s *Store, q trackapi.Query) int {
		t.Helper()
		list, err := s.Messages(t.Context(), q)
		if err != nil {
			t.Fatalf("%+v: %v", q, err)
		}
		return len(list.Messages)
	}
	s := open("key one key one key one")
	write(s)
	if all := strings.Join(exported(t, s), "\n"); strings.Contains(strings.ToLower(all), "secret") || !strings.Contains(all, "no such user") || !strings.Contains(all, "<1@example.com>") {
		t.Errorf("the store has %s", all)
	}
	for _, test := range []struct {
		name string
		q    trackapi.Query
		want int
	}{
		{"sender", trackapi.Query{Sender: "ann.secret@example.com"}, 1},
		{"sender in capitals", trackapi.Query{Sender: "ANN.SECRET@EXAMPLE.COM"}, 1},
		{"recipient", trackapi.Query{Recipient: "bob.secret@bücher.example"}, 1},
		{"recipient with A-labels", trackapi.Query{Recipient: "bob.secret@xn--bcher-kva.example"}, 1},
		{"domain", trackapi.Query{Recipient: "@bücher.example"}, 1},
		{"pattern of domains", trackapi.Query{Recipient: "*@*.example"}, 1},
		{"user", trackapi.Query{AuthUser: "ann.secret@example.com"}, 1},
		{"somebody else", trackapi.Query{Sender: "bob@example.com"}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			if n := find(s, test.q); n != test.want {
				t.Errorf("%d messages, want %d", n, test.want)
			}
		})
	}
	var p *trackapi.Problem
	if _, err := s.Messages(t.Context(), trackapi.Query{Sender: "ann*@example.com"}); !errors.As(err, &p) || p.Status != 400 || p.Hint == "" {
		t.Errorf("part of a hashed address: %v", err)
	}
	closed(t, s)

	// A new key: what the old one hashed is found as long as that is there.
	s = open("key two key two key two", "key one key one key one")
	write(s)
	if n := find(s, trackapi.Query{Sender: "ann.secret@example.com"}); n != 2 {
		t.Errorf("%d messages with two keys, want 2", n)
	}
	if done, err := s.Erase(t.Context(), "ann.secret@example.com"); err != nil || done.Facts != 4 {
		t.Errorf("Erase() = %+v, %v", done, err)
	}
	closed(t, s)
}

// TestQueuedMessageOutlivesRetention removes the day of a message that the
// queue still has.
func TestQueuedMessageOutlivesRetention(t *testing.T) {
	at := time.Now().UTC().Add(-10 * 24 * time.Hour).Truncate(time.Microsecond)
	waits, left := mail.QueueID(mail.NewID(at)), mail.QueueID(mail.NewID(at))
	s, err := Open(Options{Dir: t.TempDir(), Retention: 30 * 24 * time.Hour, Pending: func(_ context.Context, before time.Time) ([]mail.QueueID, error) {
		if !before.After(at) {
			return nil, nil
		}
		return []mail.QueueID{waits}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, s) })
	im := s.Import()
	var lines bytes.Buffer
	for _, m := range []mail.QueueID{waits, left} {
		for range 3 {
			r := event.Record{ID: mail.NewID(at), Time: at, Message: m, Event: event.MessageQueued{Info: event.Info{MailFrom: "a@b.example"}}}
			lines.WriteString(jsonOf(t, &r) + "\n")
			if err := im.Add(&r); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := im.Close(); err != nil || im.Done().Added != 6 {
		t.Fatalf("%+v, %v", im.Done(), err)
	}
	s.opts.Retention = 24 * time.Hour
	s.maintain(time.Now())
	if _, err := s.Message(t.Context(), string(left)); !errors.Is(err, ErrNotFound) {
		t.Errorf("a message past the retention: %v", err)
	}
	tl, err := s.Message(t.Context(), string(waits))
	if err != nil || len(tl.Timeline) != 3 {
		t.Errorf("a message that waits: %+v, %v", tl, err)
	}

	// Neither does its history get lost when the store is made anew.
	again, err := Open(Options{Dir: t.TempDir(), Retention: s.opts.Retention, Pending: s.opts.Pending})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, again) })
	if done, err := again.Reindex(t.Context(), &lines); err != nil || done.Added != 3 || done.Old != 3 {
		t.Errorf("Reindex() = %+v, %v; want the facts of the message that waits", done, err)
	}
	again.maintain(time.Now())
	if tl, err := again.Message(t.Context(), string(waits)); err != nil || len(tl.Timeline) != 3 {
		t.Errorf("a message that waits, in the new store: %+v, %v", tl, err)
	}
}

func TestAddressFilters(t *testing.T) {
	s := openStore(t, t.TempDir())
	at := time.Now().UTC().Truncate(time.Microsecond)
	for _, to := range []string{"ann@example.com", "Joann@mail.example.com", "ann@a.b.example.com", "hans@münchen.example", `"a*b c"@example.net`, "nul\x00l@example.org"} {
		s.Write(&event.Record{ID: mail.NewID(at), Time: at, Message: mail.QueueID(mail.NewID(at)), Event: event.MessageQueued{
			Info: event.Info{MailFrom: "x@y.example", Size: 5000, External: "4T7RnN0Z4zz9rwN"}, Subject: "Invoice 42", Recipients: []event.Recipient{{Address: to}},
		}})
	}
	for _, test := range []struct {
		name string
		q    trackapi.Query
		want int
	}{
		{"exact", trackapi.Query{Recipient: "ann@example.com"}, 1},
		{"case", trackapi.Query{Recipient: "ANN@Example.COM"}, 1},
		{"domain", trackapi.Query{Recipient: "@example.com"}, 1},
		{"sub-domains", trackapi.Query{Recipient: "@*.example.com"}, 2},
		{"sub-domains by a dot", trackapi.Query{Recipient: "@.example.com"}, 2},
		{"sub-domains as a domain", trackapi.Query{Domain: "*.example.com"}, 2},
		{"local part", trackapi.Query{Recipient: "ann@*"}, 2},
		{"part of both", trackapi.Query{Recipient: "*ann*@*.example.com"}, 2},
		{"U-labels", trackapi.Query{Recipient: "hans@münchen.example"}, 1},
		{"A-labels", trackapi.Query{Recipient: "hans@xn--mnchen-3ya.example"}, 1},
		{"A-labels in a pattern", trackapi.Query{Recipient: "*s@xn--mnchen-3ya.example"}, 1},
		{"U-labels in a pattern", trackapi.Query{Recipient: "h*@München.*"}, 1},
		{"quotes", trackapi.Query{Q: `recipient:"\"a*b c\"@example.net"`}, 1},
		{"NUL", trackapi.Query{Recipient: "nul\x00l@example.org"}, 1},
		{"size", trackapi.Query{MinSize: "5000", MaxSize: "5KB"}, 6},
		{"too large", trackapi.Query{MinSize: "5KiB"}, 0},
		{"subject", trackapi.Query{Subject: "invoice 42"}, 6},
		{"part of a subject", trackapi.Query{Subject: "*voice*"}, 6},
		{"external ID", trackapi.Query{ExternalID: "4T7RnN0Z4zz9rwN"}, 6},
		{"external ID as queue ID", trackapi.Query{QueueID: "4T7RnN0Z4zz9rwN"}, 6},
		{"latency", trackapi.Query{MaxLatency: "1h", Q: "-max_latency:1s -min_latency:2h"}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			list, err := s.Messages(t.Context(), test.q)
			if err != nil || len(list.Messages) != test.want || list.Estimate != int64(test.want) {
				t.Errorf("%d messages, estimate %d, want %d, %v", len(list.Messages), list.Estimate, test.want, err)
			}
		})
	}
	page, err := s.Messages(t.Context(), trackapi.Query{Sender: "x@y.example", Limit: 2})
	if err != nil || page.Cursor == "" || page.Estimate < 3 || page.Estimate > 12 {
		t.Errorf("a page of 2 of 6: estimate %d, %v", page.Estimate, err)
	}
	for _, q := range []trackapi.Query{{MinSize: "big"}, {MaxLatency: "soon"}, {MaxSize: "-1"}} {
		var p *trackapi.Problem
		if _, err := s.Messages(t.Context(), q); !errors.As(err, &p) || p.Status != 400 || p.Hint == "" {
			t.Errorf("%+v: %v", q, err)
		}
	}
}

// TestRefusalsAreNoMessages says where to look for a reason that no message has.
func TestRefusalsAreNoMessages(t *testing.T) {
	s := openStore(t, t.TempDir())
	now := time.Now().UTC()
	s.Write(&event.Record{ID: mail.NewID(now), Time: now, Session: "S1", Event: event.RecipientRefused{Recipient: "ann@example.com", Refusal: event.Refusal{Reason: "relay_denied"}}})
	q := trackapi.Query{Reason: "relay_denied"}
	if got := must1[*trackapi.Messages](t)(s.Messages(t.Context(), q)); len(got.Messages) != 0 || !strings.Contains(got.Hint, "/api/v1/events") {
		t.Errorf("Messages = %+v, want none and a hint", got)
	}
	if got := must1[*trackapi.Events](t)(s.Events(t.Context(), q)); len(got.Events) != 1 || got.Hint != "" {
		t.Errorf("Events = %+v, want one and no hint", got)
	}
}

// TestSubjectsNotRecorded says why a search by subject finds nothing.
func TestSubjectsNotRecorded(t *testing.T) {
	for _, test := range []struct {
		name string
		off  bool
		q    trackapi.Query
		want bool // a hint
	}{
		{"off", true, trackapi.Query{Subject: "invoice 42"}, true},
		{"on", false, trackapi.Query{Subject: "invoice 42"}, false},
		{"off, and not asked for", true, trackapi.Query{Sender: "nobody@example.com"}, false},
		{"off, and found: recorded before", true, trackapi.Query{Subject: "Hello*"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := Open(Options{Dir: t.TempDir(), Privacy: &Privacy{NoSubjects: test.off}})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			now := time.Now().UTC()
			s.Write(&event.Record{ID: mail.NewID(now), Time: now, Message: mail.QueueID(mail.NewID(now)), Event: event.MessageQueued{Subject: "Hello you", Recipients: []event.Recipient{{Address: "ann@example.com"}}}})
			messages, err := s.Messages(t.Context(), test.q)
			if err != nil || (messages.Hint != "") != test.want {
				t.Errorf("Messages = %+v, %v, want a hint: %t", messages, err, test.want)
			}
			events, err := s.Events(t.Context(), test.q)
			if err != nil || (events.Hint != "") != test.want {
				t.Errorf("Events = %+v, %v, want a hint: %t", events, err, test.want)
			}
		})
	}
}

func FuzzReplaceAddresses(f *testing.F) {
	for _, s := range []string{"<ann@example.com>: no", `"a b"@c.example`, "a@b@c", "@", "x @ y", "ann@bücher.example.", "user=a@b;c@d"} {
		f.Add(s)
	}
	p := &Privacy{Keys: [][]byte{[]byte("0123456789abcdef")}}
	f.Fuzz(func(t *testing.T, s string) {
		if got := replaceAddresses(s, func(a string) string { return a }); got != s {
			t.Fatalf("%q became %q", s, got)
		}
		once := replaceAddresses(s, func(a string) string { return p.hash(p.Keys[0], a) })
		if again := replaceAddresses(once, func(a string) string { return p.hash(p.Keys[0], a) }); again != once {
			t.Fatalf("%q: %q became %q", s, once, again)
		}
	})
}
