package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/route"
)

func TestLifeOfAMessage(t *testing.T) {
	h := open(t, nil)
	id := h.put(t, "Subject: hi\r\n\r\nbody\r\n", "a@example.com", "b@example.com", "c@example.net")
	if got := h.Levels(); got.Messages != 1 || got.ByState["accepted"] != 2 {
		t.Errorf("Levels() = %+v, want one message in two hops", got)
	}

	seen := map[string]int{}
	for range 2 {
		l := h.claim(t)
		seen[l.Hop.Name] = len(l.Index)
		if l.Attempt != 1 || l.Message.ID != id {
			t.Errorf("lease = attempt %d of %s, want 1 of %s", l.Attempt, l.Message.ID, id)
		}
		if got := read(t, l.Open); got != "Subject: hi\r\n\r\nbody\r\n" {
			t.Errorf("content = %q", got)
		}
		h.settle(t, l, mail.Relayed, time.Time{})
	}
	if seen["example.com"] != 2 || seen["example.net"] != 1 {
		t.Errorf("claimed %v, want two recipients of example.com and one of example.net", seen)
	}
	h.idle(t)
	if _, err := h.Get(id); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get(finished) = %v, want ErrNotFound", err)
	}
	eventually(t, "message retired", func() bool { return len(find[event.MessageRetired](h.rec)) == 1 })
	names := h.rec.names(id)
	if names[0] != "message_queued" || names[len(names)-1] != "message_retired" || len(names) != 9 {
		t.Errorf("facts = %v, want queued, 2 routed, 2 attempts, 3 relayed, retired", names)
	}
	if ev := find[event.MessageRetired](h.rec)[0]; ev.Relayed != 3 || ev.Recipients != 3 || ev.Attempts != 1 {
		t.Errorf("retired = %+v", ev)
	}
	ev := find[event.MessageQueued](h.rec)[0]
	if ev.TReceive.Float() < 0.9 || ev.TAccept <= 0 || ev.Size != 21 || len(ev.Recipients) != 3 || ev.ConnectorIn != "in" {
		t.Errorf("queued = %+v", ev)
	}
	if l := h.Levels(); l.Messages != 0 || l.Bytes != 0 {
		t.Errorf("Levels() = %+v, want an empty queue", l)
	}
}

func TestDeferAndRetry(t *testing.T) {
	h := open(t, nil)
	id := h.put(t, "x", "a@example.com", "b@example.com")
	l := h.claim(t)
	os := outcomes(l, mail.Deferred)
	os[0] = mail.Outcome{Disposition: mail.Relayed, Reply: mail.Reply{Code: 250}}
	next := time.Now().Add(time.Hour)
	if err := h.Settle(t.Context(), l, Settlement{Outcomes: os, Next: next, DelaySent: true}); err != nil {
		t.Fatal(err)
	}
	settled := time.Now()
	h.idle(t)
	m, err := h.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	if s := m.States; s[0].Disposition != mail.Relayed || s[1].Disposition != mail.Deferred || s[1].Attempts != 1 || !s[1].DelaySent || s[1].Last.Code != 451 {
		t.Errorf("states = %+v", s)
	}
	if st := h.Hops()[0]; st.State != "retry" || st.Deferred != 1 || !strings.HasPrefix(st.LastError, "451") || st.LastClass != mail.ClassGreylist {
		t.Errorf("Hops() = %+v", st)
	}
	waited := time.Since(settled)
	h.act(t, 1, Action{Action: "retry", Filter: Filter{ID: id}})
	l = h.claim(t)
	if l.Attempt != 2 || len(l.Index) != 1 || l.Index[0] != 1 {
		t.Errorf("second lease = %+v", l)
	}
	h.settle(t, l, mail.Bounced, time.Time{})
	eventually(t, "bounce", func() bool { return len(find[event.RecipientBounced](h.rec)) == 1 })
	f := find[event.RecipientBounced](h.rec)[0]
	if f.Attempts != 2 || f.TBackoff.Float() < waited.Seconds() || f.TQueue < f.TBackoff || f.TTotal < f.TQueue || f.Code != 550 || f.Queue != "example.com" {
		t.Errorf("bounced = %+v", f)
	}
	at := find[event.AttemptFinished](h.rec)
	if at[0].Disposition != mail.Deferred || at[0].Attempt != 1 || at[0].NextAttempt.IsZero() || len(at[0].Recipients) != 2 || at[1].Disposition != mail.Bounced {
		t.Errorf("attempts = %+v", at)
	}
}

func TestRestart(t *testing.T) {
	h := open(t, nil)
	for i := range 50 {
		h.put(t, strings.Repeat("x", i*1000), fmt.Sprintf("u%d@d%d.example", i, i%5))
	}
	done := h.claim(t)
	h.settle(t, done, mail.Relayed, time.Time{})
	h.claim(t) // in flight when the queue ends
	h = h.reopen(t, nil)
	if got := h.Levels().Messages; got != 49 {
		t.Errorf("%d messages after the restart, want 49", got)
	}
	ev := find[event.QueueLoaded](h.rec)
	if len(ev) != 1 || ev[0].Messages != 49 || ev[0].Dropped != 0 || ev[0].Reemitted == 0 {
		t.Errorf("loaded = %+v", ev)
	}
	for range 49 {
		l := h.claim(t)
		if got := read(t, l.Open); int64(len(got)) != l.Message.Size || strings.Trim(got, "x") != "" {
			t.Errorf("content of %s is wrong", l.Message.ID)
		}
		h.settle(t, l, mail.Relayed, time.Time{})
	}
	h.idle(t)
}

func TestLargeContent(t *testing.T) {
	h := open(t, nil)
	for _, size := range []int{0, 1, smallContent - 1, smallContent, smallContent + 1, 3*smallContent + 17} {
		content := strings.Repeat("0123456789abcdef", size/16+1)[:size]
		in, err := h.Begin(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		for rest := content; rest != ""; {
			n := min(len(rest), 7000)
			if _, err := in.Write([]byte(rest[:n])); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		d := draft(t, "a@example.com")
		if err := in.Commit(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		if got := read(t, func() (io.ReadCloser, error) { return h.Content(d.ID) }); got != string(d.Trace)+content {
			t.Errorf("%d octets: content differs", size)
		}
		if err := in.Commit(t.Context(), draft(t, "b@example.com")); err == nil {
			t.Error("second Commit succeeded")
		}
	}
	in, err := h.Begin(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	in.Write(make([]byte, 2*smallContent))
	in.Abort()
	in.Abort()
	if err := h.reclaim(t.Context()); err != nil {
		t.Error(err)
	}
	if _, files := h.contents.usage(); files != 3 {
		t.Errorf("%d files, want one segment and two large contents", files)
	}
}

func TestRefused(t *testing.T) {
	h := open(t, func(o *Options) { o.MaxMessages = 1 })
	if err := h.Put(t.Context(), mail.Draft{}, nil); err == nil {
		t.Error("a message without recipients was queued")
	}
	d := draft(t, "a@example.com")
	d.ID = "nonsense"
	if err := h.Put(t.Context(), d, nil); err == nil {
		t.Error("a bad ID was accepted")
	}
	h.put(t, "x", "a@example.com")
	var reply *mail.ReplyError
	if _, err := h.Begin(t.Context(), 0); !errors.As(err, &reply) || reply.Reply.Code != 452 || reply.Reply.Enhanced != "4.3.1" || reply.Reason != "backpressure" {
		t.Errorf("Begin above MaxMessages = %v, want 452 4.3.1", err)
	}
	if h.Ready() == nil || h.Levels().Closed == "" {
		t.Error("Ready although full")
	}
}

func TestClaimOrder(t *testing.T) {
	s := newSchedule(func(h route.Hop) int { return map[string]int{"a": 2, "b": 100, "c": 0}[h.Name] })
	now := int64(1_000_000_000)
	add := func(hop string, prio mail.Priority, due int64) {
		s.set(s.add(newTestEntry(due, prio)), route.Hop{Name: hop}, when{due: due}, false, now)
	}
	add("a", mail.PriorityNormal, now-5)
	add("a", mail.PriorityNormal, now-9)
	add("a", mail.PriorityNormal, now-1)
	add("b", mail.PriorityLow, now-100)
	add("b", mail.PriorityNormal, now-50)
	add("b", mail.PriorityHigh, now-1)
	add("b", mail.PriorityHigh, now+60)
	add("c", mail.PriorityHigh, now-1000)
	var got []string
	var leases []*group
	for g := s.pick(now).group; g != nil; g = s.pick(now).group {
		got = append(got, fmt.Sprint(s.hopOf(g).hop.Name, g.due-now))
		leases = append(leases, g)
	}
	equalStrings(t, "claims", got, "a-9", "b-1", "a-5", "b-50", "b-100")
	if d, ok := s.wait(now); !ok || d != 60*time.Microsecond {
		t.Errorf("wait() = %v, %t, want 60µs", d, ok)
	}
	s.done(leases[0], s.hopOf(leases[0]), 1, leases[0].lease, now) // it is due again at once
	if got := s.pick(now); got.group == nil || got.group.due != now-9 || got.since != now-9 {
		t.Errorf("pick after a lease ended = %+v, want the group that was given back", got)
	}
}

func TestClaimWaits(t *testing.T) {
	h := open(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan *Lease)
	errs := make(chan error)
	for range 3 {
		go func() {
			l, err := h.Claim(ctx)
			if err != nil {
				errs <- err
				return
			}
			got <- l
		}()
	}
	h.put(t, "x", "a@example.com")
	h.put(t, "x", "a@example.com")
	a, b := <-got, <-got
	if a.Message.ID == b.Message.ID {
		t.Error("one message was claimed twice")
	}
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("Claim = %v, want canceled", err)
	}
	a.Release()
	a.Release()
	if l := h.claim(t); l.Message.ID != a.Message.ID {
		t.Error("the released message did not come back")
	}
}

func TestCloseUnderLoad(t *testing.T) {
	h := open(t, nil)
	h.run(t)
	var wg sync.WaitGroup
	acked := make(chan mail.QueueID, 10_000)
	for range 4 {
		wg.Go(func() {
			for {
				d := draft(t, "a@example.com", "b@example.net")
				if err := h.Put(t.Context(), d, []byte("x")); err != nil {
					return
				}
				select {
				case acked <- d.ID:
				default:
				}
			}
		})
		wg.Go(func() {
			for {
				l, err := h.Claim(t.Context())
				if err != nil {
					return
				}
				_ = h.Settle(t.Context(), l, Settlement{Outcomes: outcomes(l, mail.Deferred), Next: time.Now().Add(time.Hour)})
				_, _ = h.List(t.Context(), Filter{State: "deferred"}, "", 3)
				h.Levels()
				h.Hops()
			}
		})
	}
	eventually(t, "some load", func() bool { return len(acked) > 50 })
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	close(acked)
	if _, err := h.Claim(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Claim = %v, want ErrClosed", err)
	}
	if _, err := h.Get("01J9ZQ3N8R7V5T2W4X6Y8Z0A1B"); !errors.Is(err, ErrClosed) {
		t.Errorf("Get = %v, want ErrClosed", err)
	}
	h = h.reopen(t, nil)
	for id := range acked {
		if _, err := h.Get(id); err != nil {
			t.Errorf("Get(%s) = %v", id, err)
		}
	}
}

// TestSegmentIsUsedAgainAtOnce: the queue does not wait for the next tick, during
// which it would make and remove several files.
func TestSegmentIsUsedAgainAtOnce(t *testing.T) {
	h := open(t, func(o *Options) { o.tune.segment, o.tune.tick = 1<<20, time.Hour })
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- h.Run(ctx) }()
	for i := range 12 { // in two segments
		h.put(t, strings.Repeat("x", 100_000), fmt.Sprintf("u%d@example.com", i))
	}
	var first *segment
	h.contents.mu.Lock()
	for _, s := range h.contents.segs {
		if first == nil || s.seq < first.seq {
			first = s
		}
	}
	h.contents.mu.Unlock()
	for range 12 {
		h.settle(t, h.claim(t), mail.Relayed, time.Time{})
	}
	eventually(t, "the first segment has another number", func() bool { return h.contents.find(first.seq) == nil })
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

// TestSegmentsAreUsedAgain fills segments, empties them, and expects their files
// under new numbers, with the contents that were written there last.
func TestSegmentsAreUsedAgain(t *testing.T) {
	h := open(t, func(o *Options) { o.tune.segment = 1 << 20 })
	content := func(round, i int) string { return strings.Repeat(fmt.Sprintf("%d.%d ", round, i), 10_000) }
	var next uint64
	for round := range 4 {
		for i := range 60 {
			h.put(t, content(round, i), fmt.Sprintf("u%d@d%d.example", i, i%3))
		}
		for range 60 {
			l := h.claim(t)
			var i int
			if _, err := fmt.Sscanf(l.Message.Envelope.Recipients[0].Address.Local, "u%d", &i); err != nil {
				t.Fatal(err)
			}
			if got := read(t, l.Open); got != content(round, i) {
				t.Fatalf("round %d: content of message %d is another", round, i)
			}
			h.settle(t, l, mail.Relayed, time.Time{})
		}
		h.idle(t)
		h.contents.makers.Wait()
		if err := h.saveAll(); err != nil { // or else their entries of the journal are needed
			t.Fatal(err)
		}
		if err := h.reclaim(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.contents.mu.Lock()
		spares := len(h.contents.spares)
		if h.contents.active != nil { // what was deleted needed a place in the journal
			spares++
		}
		next = h.contents.next
		h.contents.mu.Unlock()
		if spares < spareSegments {
			t.Errorf("round %d: %d spare segments, want at least %d", round, spares, spareSegments)
		}
		if _, files := h.contents.usage(); files > 2 {
			t.Errorf("round %d: %d segments are in use, want at most 2", round, files)
		}
	}
	if next < 10 { // each round fills two, and more
		t.Errorf("the next segment is number %d: not all were given new ones", next)
	}
	last := h.put(t, content(9, 9), "a@example.com")
	h = h.reopen(t, nil)
	if l := h.claim(t); l.Message.ID != last || read(t, l.Open) != content(9, 9) {
		t.Errorf("%s has another content after the restart", l.Message.ID)
	}
	if _, files := h.contents.usage(); files != 1 {
		t.Errorf("%d files after the restart, want 1: spares go at the end", files)
	}
}

// What failures mean is known after a restart too: of each recipient, and of
// each hop what it said last.
func TestFailuresOutliveRestart(t *testing.T) {
	h := open(t, nil)
	fail := func(rule string) mail.QueueID {
		t.Helper()
		id := h.put(t, "x", "a@example.com", "b@example.com")
		l := h.claim(t)
		os := outcomes(l, mail.Deferred)
		os[0] = mail.Outcome{Disposition: mail.Relayed, Reply: mail.Reply{Code: 250}}
		os[1].ClassRule, os[1].Explanation = rule, "because of "+rule
		if err := h.Settle(t.Context(), l, Settlement{Outcomes: os, Next: time.Now().Add(time.Hour), Attempt: event.AttemptFinished{Hop: event.Hop{RemoteName: "mx"}}}); err != nil {
			t.Fatal(err)
		}
		h.idle(t)
		return id
	}
	ids := []mail.QueueID{fail("one"), fail("two")}
	h.put(t, "x", "a@other.example")
	before := h.Hops()
	if before[0].LastRule != "two" || before[0].LastMeans != "because of two" {
		t.Fatalf("Hops() = %+v", before[0])
	}
	h = h.reopen(t, nil)
	for i, rule := range []string{"one", "two"} {
		m, err := h.Get(ids[i])
		if err != nil {
			t.Fatal(err)
		}
		if s := &m.States[1]; s.LastRule != rule || s.LastMeans != "because of "+rule {
			t.Errorf("state = %+v, want rule %s", s, rule)
		}
		if s := &m.States[0]; s.LastRule != "" || s.LastMeans != "" {
			t.Errorf("state of who was relayed = %+v", s)
		}
	}
	after := h.Hops()
	if len(after) != 2 || after[1].LastError != "" || after[1].LastRule != "" || !after[1].LastAt.IsZero() {
		t.Fatalf("Hops() = %+v, want example.com, and other.example without an error", after)
	}
	got, want := after[0], before[0]
	if got.LastError != want.LastError || got.LastClass != want.LastClass || got.LastRule != want.LastRule || got.LastMeans != want.LastMeans || !got.LastAt.Equal(want.LastAt.Truncate(time.Microsecond)) {
		t.Errorf("after the restart %+v, want %+v", got, want)
	}
}
