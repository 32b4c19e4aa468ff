package queue

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/route"
)

func (h *harness) act(t *testing.T, want int, a Action) {
	t.Helper()
	a.Actor = "op"
	aff, err := h.Act(t.Context(), a)
	if err != nil {
		t.Fatalf("Act(%s %s): %v", a.Action, a.Filter, err)
	}
	if aff.Messages != want {
		t.Errorf("Act(%s %s) affected %d messages, want %d", a.Action, a.Filter, aff.Messages, want)
	}
}

func TestHoldMessage(t *testing.T) {
	h := open(t, nil)
	id := h.put(t, "x", "a@example.com")
	h.put(t, "x", "b@example.net")
	h.act(t, 1, Action{Action: "hold", Filter: Filter{Recipient: "a@*"}, DryRun: true})
	h.act(t, 1, Action{Action: "hold", Filter: Filter{Recipient: "a@*"}, Reason: "look at it"})
	held := time.Now()
	l := h.claim(t)
	if l.Hop.Name != "example.net" {
		t.Errorf("claimed %v, want example.net", l.Hop)
	}
	h.settle(t, l, mail.Relayed, time.Time{})
	h = h.reopen(t, nil)
	h.idle(t)
	m, err := h.Get(id)
	if err != nil || m.HeldBy != "op" || m.HeldWhy != "look at it" || m.States[0].Disposition != mail.Held {
		t.Errorf("Get = %+v, %v, want it held", m, err)
	}
	if lv := h.Levels(); lv.ByState["held"] != 1 || lv.DueLag != 0 {
		t.Errorf("Levels() = %+v", lv)
	}
	least := time.Since(held)
	h.act(t, 1, Action{Action: "release", Filter: Filter{All: true}})
	l = h.claim(t)
	h.settle(t, l, mail.Relayed, time.Time{})
	// The facts from before the restart were stated again.
	eventually(t, "relayed", func() bool { return len(find[event.RecipientRelayed](h.rec)) == 2 })
	if f := find[event.RecipientRelayed](h.rec)[1]; f.TBackoff.Float() < least.Seconds() || f.TQueue < f.TBackoff {
		t.Errorf("relayed after a hold of %s: backoff %v of %v, want the hold in it", least, f.TBackoff.Float(), f.TQueue.Float())
	}
	if evs := find[event.AdminActed](h.rec); len(evs) != 2 || evs[0].Action != "hold" || evs[1].Action != "release" || evs[1].Affected != 1 || evs[1].Filter != "all" || evs[1].Result != "ok" {
		t.Errorf("acted = %+v", evs)
	}
}

func TestHoldHop(t *testing.T) {
	h := open(t, nil)
	h.put(t, "x", "a@example.com")
	h.act(t, 1, Action{Action: "hold", Filter: Filter{Hop: "example.com"}, Reason: "down"})
	h.put(t, "x", "b@example.com") // also what comes later
	h.put(t, "x", "c@example.net")
	h.settle(t, h.claim(t), mail.Relayed, time.Time{})
	h = h.reopen(t, nil)
	h.idle(t)
	st := h.Hops()[0]
	if st.State != "held" || st.Held != 2 || st.HeldBy != "op" || st.HeldWhy != "down" || st.Queued != 0 || st.DueLag != 0 || st.OldestBy["held"].IsZero() {
		t.Errorf("Hops() = %+v, want a held hop", st)
	}
	h.act(t, 0, Action{Action: "hold", Filter: Filter{Hop: "nobody.example"}})
	if st := h.Hops(); len(st) != 2 || st[1].Hop.Name != "nobody.example" || st[1].HeldBy != "op" {
		t.Errorf("Hops() = %+v, want the hold on a hop without messages", st)
	}
	list, err := h.List(t.Context(), Filter{State: "held"}, "", 10)
	if err != nil || len(list) != 2 || list[0].States[0].Disposition != mail.Held {
		t.Errorf("List(held) = %v, %v", list, err)
	}
	h.act(t, 2, Action{Action: "release", Filter: Filter{Hop: "example.com"}})
	h.settle(t, h.claim(t), mail.Relayed, time.Time{})
	h.settle(t, h.claim(t), mail.Relayed, time.Time{})
	h.act(t, 0, Action{Action: "release", Filter: Filter{Hop: "nobody.example"}})
	h = h.reopen(t, nil)
	if len(h.holds) != 0 {
		t.Error("the hold is still there")
	}
}

func TestHoldsEnd(t *testing.T) {
	h := open(t, nil)
	h.put(t, "x", "a@example.com")
	h.put(t, "x", "b@example.net")
	until := time.Now().Add(time.Second)
	h.act(t, 1, Action{Action: "hold", Filter: Filter{Hop: "example.com"}, Until: until})
	h.act(t, 1, Action{Action: "hold", Filter: Filter{Domain: "example.net"}, Until: until})
	h = h.reopen(t, nil)
	h.idle(t)
	h.run(t)
	h.claim(t)
	h.claim(t)
	eventually(t, "released", func() bool { return len(find[event.QueueReleased](h.rec)) == 2 })
	for _, ev := range find[event.QueueReleased](h.rec) {
		if ev.Affected != 1 || ev.Actor != "timer" {
			t.Errorf("released = %+v", ev)
		}
	}
}

func TestRemoveAndBounce(t *testing.T) {
	var asked []int
	h := open(t, func(o *Options) {
		o.Reports = func(m *Message, index []int, _ []mail.Outcome) []Report {
			asked = index
			d := mail.Draft{Envelope: mail.Envelope{Recipients: []mail.Recipient{{Address: m.Envelope.Sender}}}}
			return []Report{{Draft: d, Content: []byte("report"), Fact: event.DSNQueued{Kind: "failed"}}}
		}
	})
	id := h.put(t, "x", "a@example.com", "b@example.net", "c@example.net")
	l := h.claim(t)
	h.act(t, 1, Action{Action: "remove", Filter: Filter{Domain: "example.com"}, Reason: "spam"})
	h.act(t, 1, Action{Action: "bounce", Filter: Filter{Recipient: "c@example.net"}, Reason: "wrong" + strings.Repeat("!", 1000)})
	if fmt.Sprint(asked) != "[2]" {
		t.Errorf("reports were asked for recipients %v, want [2]", asked)
	}
	m, err := h.Get(id)
	if err != nil || m.States[0].Disposition != mail.Dropped || m.States[1].Disposition != mail.Queued || m.States[2].Disposition != mail.Bounced {
		t.Fatalf("Get = %+v, %v", m, err)
	}
	h.act(t, 1, Action{Action: "remove", Filter: Filter{ID: id}})
	before := len(h.rec.names(id))
	h.settle(t, l, mail.Relayed, time.Time{}) // nothing of it is left
	if _, err := h.Get(id); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get = %v, want ErrNotFound", err)
	}
	dsn := h.claim(t)
	if dsn.Message.Parent != id || read(t, dsn.Open) != "report" || !dsn.Message.Envelope.Sender.IsNull() {
		t.Errorf("report = %+v", dsn.Message)
	}
	h.settle(t, dsn, mail.Relayed, time.Time{})
	h.idle(t)
	if st := h.Hops(); st[0].Active != 0 || h.sched.hop(l.Hop).used() != 0 {
		t.Errorf("Hops() = %+v, want no lease", st)
	}
	eventually(t, "all facts", func() bool { return len(find[event.MessageRetired](h.rec)) == 2 })
	if after := len(h.rec.names(id)); after < before {
		t.Errorf("%d facts, then %d", before, after)
	}
	if ev := find[event.DSNQueued](h.rec); len(ev) != 1 || ev[0].DSN != dsn.Message.ID || ev[0].MailFrom != "sender@example.org" {
		t.Errorf("dsn queued = %+v", ev)
	}
	if evs := find[event.RecipientDropped](h.rec); len(evs) != 2 || evs[0].Reason != "spam" || evs[0].Actor != "op" {
		t.Errorf("dropped = %+v", evs)
	}
	if evs := find[event.RecipientBounced](h.rec); len(evs) != 1 || evs[0].Reason != "wrong"+strings.Repeat("!", 251) || evs[0].Actor != "op" || evs[0].ClassRule != "operator" || evs[0].Code != 554 || evs[0].Recipient != "c@example.net" {
		t.Errorf("bounced = %+v", evs)
	}
	if ev := find[event.MessageRetired](h.rec)[0]; ev.Dropped != 2 || ev.Bounced != 1 || ev.Relayed != 0 {
		t.Errorf("retired = %+v", ev)
	}
	if len(find[event.RecipientRelayed](h.rec)) != 1 {
		t.Error("a removed recipient was relayed")
	}
	for _, a := range []Action{{Action: "dance", Filter: Filter{All: true}}, {Action: "remove"}} {
		if _, err := h.Act(t.Context(), a); err == nil {
			t.Errorf("Act(%+v) succeeded", a)
		}
	}
}

func TestReports(t *testing.T) {
	for _, size := range []int{10, 2 * smallContent} {
		h := open(t, nil)
		id := h.put(t, "x", "a@example.com")
		l := h.claim(t)
		content := bytes.Repeat([]byte("r"), size)
		s := Settlement{Outcomes: outcomes(l, mail.Bounced), Reports: []Report{
			{
				Draft:   mail.Draft{Envelope: mail.Envelope{Recipients: []mail.Recipient{{Address: l.Message.Envelope.Sender}}}},
				Content: content, Fact: event.DSNQueued{Kind: "failed"},
			},
			{Fact: event.DSNQueued{Kind: "delayed", Suppressed: "notify"}},
		}}
		s.Attempt.RemoteName = "mx.example.com"
		if err := h.Settle(t.Context(), l, s); err != nil {
			t.Fatal(err)
		}
		h = h.reopen(t, nil)
		r := h.claim(t)
		if r.Message.Parent != id || read(t, r.Open) != string(content) {
			t.Errorf("report of %d octets differs", size)
		}
		var names []string
		for _, rec := range h.rec.all() { // stated again, because nobody confirmed
			if event.Class(rec.Event) == event.Durable {
				names = append(names, event.Name(rec.Event))
			}
		}
		equalStrings(t, "facts", names, "message_queued", "attempt_finished", "recipient_bounced", "dsn_queued", "message_queued", "dsn_queued", "message_retired")
	}
}

func TestReroute(t *testing.T) {
	router := &domains{refused: map[string]bool{"example.com": true}}
	h := open(t, func(o *Options) { o.Router = router })
	id := h.put(t, "x", "a@example.com", "b@example.net")
	l := h.claim(t)
	if l.Hop.Name != "example.net" {
		t.Fatalf("claimed %v", l.Hop)
	}
	h.idle(t)
	if lv := h.Levels(); lv.ByState["unroutable"] != 1 || lv.DueLag != 0 {
		t.Errorf("Levels() = %+v, want one unroutable", lv)
	}
	router.mu.Lock()
	router.refused, router.connector = nil, "new"
	router.mu.Unlock()
	h.Reroute()
	other := h.claim(t)
	if want := (route.Hop{Connector: "new", Name: "example.com"}); other.Hop != want {
		t.Errorf("claimed %v after a new table, want %v", other.Hop, want)
	}
	h.settle(t, l, mail.Deferred, time.Now().Add(time.Hour)) // was leased: moves now, and is due at once
	l = h.claim(t)
	if want := (route.Hop{Connector: "new", Name: "example.net"}); l.Hop != want || l.Attempt != 2 {
		t.Errorf("claimed %v, attempt %d, want %v, 2", l.Hop, l.Attempt, want)
	}
	h.settle(t, l, mail.Relayed, time.Time{})

	// The table may also change while the queue is closed.
	router.mu.Lock()
	router.connector = "third"
	router.mu.Unlock()
	h = h.reopen(t, nil)
	if l := h.claim(t); l.Hop.Connector != "third" || l.Message.ID != id {
		t.Errorf("claimed %v after the restart, want connector third", l.Hop)
	}
}

func TestUnroutableExpires(t *testing.T) {
	h := open(t, func(o *Options) {
		o.Router = &domains{refused: map[string]bool{"example.com": true}}
		o.Lifetime = 50 * time.Millisecond
	})
	h.put(t, "x", "a@example.com")
	l := h.claim(t)
	if l.Hop != route.Unroutable || time.Now().Before(l.Message.ExpiresAt) {
		t.Errorf("claimed %v at %v, want unroutable after %v", l.Hop, time.Now(), l.Message.ExpiresAt)
	}
	s := Settlement{Outcomes: outcomes(l, mail.Expired), NoAttempt: true}
	if err := h.Settle(t.Context(), l, s); err != nil {
		t.Fatal(err)
	}
	eventually(t, "expired", func() bool { return len(find[event.RecipientExpired](h.rec)) == 1 })
	if len(find[event.AttemptFinished](h.rec)) != 0 || find[event.RecipientExpired](h.rec)[0].Attempts != 0 {
		t.Error("an attempt was stated that nobody made")
	}
}

func TestLate(t *testing.T) {
	h := open(t, func(o *Options) {
		o.LateAfter = 500 * time.Millisecond
		o.Priorities = map[mail.Priority]Class{mail.PriorityLow: {HandOver: time.Hour}}
	})
	high := draft(t, "a@example.com", "b@example.com")
	high.Priority = mail.PriorityHigh
	if err := h.Put(t.Context(), high, nil); err != nil {
		t.Fatal(err)
	}
	normal := h.put(t, "x", "a@example.com")
	held := h.put(t, "x", "a@example.net")
	low := draft(t, "a@example.com")
	low.Priority = mail.PriorityLow
	if err := h.Put(t.Context(), low, nil); err != nil {
		t.Fatal(err)
	}
	h.act(t, 1, Action{Action: "hold", Filter: Filter{ID: held}})
	h.run(t)
	eventually(t, "three late recipients", func() bool { return len(find[event.RecipientLate](h.rec)) >= 3 })
	late := map[mail.QueueID]int{}
	for _, r := range h.rec.all() {
		if ev, ok := r.Event.(event.RecipientLate); ok {
			late[r.Message]++
			if ev.Queue != "example.com" || ev.Target == 0 {
				t.Errorf("late = %+v", ev)
			}
		}
	}
	if late[high.ID] != 2 || late[normal] != 1 || late[held] != 0 || late[low.ID] != 0 {
		t.Errorf("late = %v", late)
	}
	for range 3 {
		l := h.claim(t)
		h.settle(t, l, mail.Relayed, time.Time{})
	}
	eventually(t, "finals", func() bool { return len(find[event.RecipientRelayed](h.rec)) == 4 })
	for _, f := range find[event.RecipientRelayed](h.rec) {
		if want := f.Priority != "low"; f.Late != want {
			t.Errorf("%s %s: late = %t, want %t", f.Recipient, f.Priority, f.Late, want)
		}
	}
	if n := len(find[event.RecipientLate](h.rec)); n != 3 {
		t.Errorf("%d late recipients, want 3: once each", n)
	}
}

func TestPoison(t *testing.T) {
	h := open(t, nil)
	id := h.put(t, "x", "a@example.com")
	for i := range poisonAfter {
		l := h.claim(t)
		if err := l.Poison(errors.New("boom")); err != nil {
			t.Fatal(err)
		}
		h.act(t, map[bool]int{true: 1}[i < poisonAfter-1], Action{Action: "retry", Filter: Filter{Domain: "example.com"}})
	}
	h.idle(t)
	if m, err := h.Get(id); err != nil || m.Poison != "boom" {
		t.Errorf("Get = %+v, %v", m, err)
	}
	h.act(t, 1, Action{Action: "release", Filter: Filter{State: "poison"}})
	h.claim(t)
}

func TestCopyForward(t *testing.T) {
	h := open(t, func(o *Options) { o.tune.segment = 1 << 20 })
	var kept []mail.QueueID
	for i := range 300 { // three segments, of which every 20th message stays
		id := h.put(t, strings.Repeat(string(rune('a'+i%26)), 10_000), "a@example.com")
		l := h.claim(t)
		if i%20 == 0 {
			h.settle(t, l, mail.Deferred, time.Now().Add(time.Hour))
			kept = append(kept, id)
			continue
		}
		h.settle(t, l, mail.Relayed, time.Time{})
	}
	old, err := h.List(t.Context(), Filter{}, "", 1)
	if err != nil || len(old) != 1 {
		t.Fatal(err)
	}
	h.act(t, 15, Action{Action: "retry", Filter: Filter{All: true}})
	lease := h.claim(t) // holds on to a content that is about to move
	_, before := h.contents.usage()
	for range 4 {
		if err := h.reclaim(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if size, files := h.contents.usage(); files >= before || size > 2<<20 {
		t.Errorf("%d octets in %d files, before in %d", size, files, before)
	}
	if got := read(t, lease.Open); len(got) != 10_000 {
		t.Errorf("content of %d octets after it moved", len(got))
	}
	h.settle(t, lease, mail.Relayed, time.Time{})
	h = h.reopen(t, nil)
	for _, id := range kept {
		if id == lease.Message.ID {
			continue
		}
		if got := read(t, h.contentOf(id)); len(got) != 10_000+21 {
			t.Errorf("content of %d octets", len(got))
		}
	}
	if ev := find[event.QueueLoaded](h.rec)[0]; ev.Messages != 14 || ev.Dropped != 0 {
		t.Errorf("loaded = %+v", ev)
	}
}

func TestOutbox(t *testing.T) {
	c := &confirmer{err: errors.New("disk full")}
	h := open(t, func(o *Options) { o.Confirm = c })
	h.run(t)
	h.put(t, "x", "a@example.com")
	h.settle(t, h.claim(t), mail.Relayed, time.Time{})
	eventually(t, "asked", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.n > 2 })
	eventually(t, "a store that fails", func() bool {
		lv := h.Levels()
		return lv.OutboxRows == 4 && lv.OutboxAge > 0 // queued, attempt, relayed, retired
	})
	c.set(true, nil)
	eventually(t, "a store that works, and is behind", func() bool {
		lv := h.Levels()
		return lv.OutboxRows == 4 && lv.OutboxAge == 0
	})
	c.set(false, nil)
	eventually(t, "an empty outbox", func() bool { return h.Levels().OutboxRows == 0 })
	h.put(t, "x", "b@example.com")
	eventually(t, "an empty outbox", func() bool { return h.Levels().OutboxRows == 0 })
}

func TestOutboxAfterRestart(t *testing.T) {
	for _, test := range []struct {
		name    string
		confirm bool // asked while the store was behind
		stored  bool // the store had all in the end
		want    string
	}{
		{"nobody was asked", false, false, "4 to all, 0 to the store"},
		{"the readers had them", true, false, "0 to all, 4 to the store"},
		{"the store had them too", true, true, "0 to all, 0 to the store"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := &confirmer{behind: true}
			h := open(t, func(o *Options) { o.Confirm = c }) // and nobody runs
			h.put(t, "x", "a@example.com")
			h.settle(t, h.claim(t), mail.Relayed, time.Time{})
			eventually(t, "stated", func() bool { return len(find[event.MessageRetired](h.rec)) == 1 })
			first := map[string]string{}
			for _, r := range h.rec.all() {
				if event.Class(r.Event) == event.Durable {
					first[r.ID] = event.Name(r.Event)
				}
				if r.Kept != (event.Class(r.Event) == event.Durable) {
					t.Errorf("%s: kept = %t", event.Name(r.Event), r.Kept)
				}
			}
			if test.confirm {
				eventually(t, "handed out", func() bool { // after which it is noted that all have them
					h.outbox.mu.Lock()
					defer h.outbox.mu.Unlock()
					return !slices.ContainsFunc(h.outbox.rows, func(r outboxRow) bool { return !r.out })
				})
				if err := h.confirm(); err != nil {
					t.Fatal(err)
				}
			}
			if !test.stored {
				c.set(true, errors.New("not stored at the end either"))
			} else {
				c.set(false, nil)
			}
			c.again = nil
			h = h.reopen(t, func(o *Options) { o.Confirm = c })
			all := 0
			for _, r := range h.rec.all() {
				if event.Class(r.Event) == event.Durable {
					if first[r.ID] != event.Name(r.Event) {
						t.Errorf("%s %s was not stated before", event.Name(r.Event), r.ID)
					}
					all++
				}
			}
			for _, r := range c.again {
				if first[r.ID] != event.Name(r.Event) || !r.Kept {
					t.Errorf("%s %s, kept %t, was not stated before", event.Name(r.Event), r.ID, r.Kept)
				}
			}
			if got := fmt.Sprintf("%d to all, %d to the store", all, len(c.again)); got != test.want {
				t.Errorf("stated again: %s, want %s", got, test.want)
			}
			if ev := find[event.QueueLoaded](h.rec)[0]; ev.Reemitted != all+len(c.again) {
				t.Errorf("loaded = %+v, want as many stated again", ev)
			}
		})
	}
}

func TestListAndFilter(t *testing.T) {
	h := open(t, nil)
	a := h.put(t, "x", "ann@example.com", "bob@example.net")
	b := h.put(t, "x", `"odd name"@example.com`)
	h.settle(t, h.claim(t), mail.Deferred, time.Now().Add(time.Hour)) // ann
	both := 1
	for a[both] == b[both] {
		both++
	}
	for _, test := range []struct {
		name   string
		filter Filter
		want   []mail.QueueID
	}{
		{"all", Filter{All: true}, []mail.QueueID{a, b}},
		{"id", Filter{ID: b}, []mail.QueueID{b}},
		{"id prefix", Filter{ID: a[:both]}, []mail.QueueID{a, b}},
		{"recipient", Filter{Recipient: "Ann@Example.com"}, []mail.QueueID{a}},
		{"recipient domain", Filter{Recipient: "@example.com"}, []mail.QueueID{a, b}},
		{"recipient part", Filter{Recipient: "*b@*.net"}, []mail.QueueID{a}},
		{"domain", Filter{Domain: "EXAMPLE.net"}, []mail.QueueID{a}},
		{"part of a domain", Filter{Recipient: "@ample.com"}, nil},
		{"sender", Filter{Sender: "sender@example.org"}, []mail.QueueID{a, b}},
		{"other sender", Filter{Sender: "<>"}, nil},
		{"hop", Filter{Hop: "example.net"}, []mail.QueueID{a}},
		{"connector", Filter{Connector: "out"}, []mail.QueueID{a, b}},
		{"receive connector", Filter{Receive: "in"}, []mail.QueueID{a, b}},
		{"other receive connector", Filter{Receive: "out"}, nil},
		{"deferred", Filter{State: "deferred"}, []mail.QueueID{a}},
		{"deferred of another hop", Filter{State: "deferred", Hop: "example.net"}, nil},
		{"queued", Filter{State: "queued"}, []mail.QueueID{a, b}},
		{"unknown state", Filter{State: "tired"}, nil},
		{"older", Filter{OlderThan: time.Hour}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []mail.QueueID
			var after mail.QueueID
			for { // one at a time, so that paging is tested too
				list, err := h.List(t.Context(), test.filter, after, 1)
				if err != nil {
					t.Fatal(err)
				}
				if len(list) == 0 {
					break
				}
				after = list[0].ID
				got = append(got, after)
			}
			if fmt.Sprint(got) != fmt.Sprint(test.want) {
				t.Errorf("List(%s) = %v, want %v", test.filter, got, test.want)
			}
		})
	}
}

func TestAges(t *testing.T) {
	s := newSchedule(func(route.Hop) int { return 1 })
	now := time.Now().UnixMicro()
	hop := route.Hop{Name: "a"}
	var es []*entry
	for _, age := range []time.Duration{2 * time.Hour, 10 * time.Minute, 2 * time.Minute, 0} {
		e := s.add(newTestEntry(now-age.Microseconds(), mail.PriorityNormal))
		s.set(e, hop, when{due: now}, false, now)
		es = append(es, e)
	}
	s.advance(now)
	h := s.hop(hop)
	if got, want := h.older[ageActive], [...]int{3, 2, 1, 1, 0, 0}; got != want {
		t.Errorf("older = %v, want %v", got, want)
	}
	g := s.pick(now).group
	s.set(es[0], hop, when{due: now + 1e6}, true, now)
	s.done(g, h, 1, g.lease, now)
	s.remove(es[1], now)
	if a, d := h.older[ageActive], h.older[ageDeferred]; a[0] != 1 || d[3] != 1 || a[1] != 0 || d[1] != 1 {
		t.Errorf("older = %v active, %v deferred", a, d)
	}
	s.advance(now + time.Hour.Microseconds())
	for _, e := range es[2:] {
		s.remove(e, now)
	}
	s.remove(es[0], now)
	if h.older != [ageCount][len(ages)]int{} || s.oldest != 0 || s.newest != 0 || s.bytes != 0 || h.groups() != 0 {
		t.Errorf("an empty schedule has %v", h.older)
	}
}

// Who asks one day why a message was late finds in its history that it was held.
func TestActionIsInTheMessagesHistory(t *testing.T) {
	h := open(t, nil)
	id := h.put(t, "x", "a@example.com")
	h.put(t, "x", "b@example.com")
	h.act(t, 1, Action{Action: "hold", Filter: Filter{ID: id}, Reason: "look at it"})
	h.act(t, 1, Action{Action: "release", Filter: Filter{ID: id}})
	h.act(t, 2, Action{Action: "retry", Filter: Filter{All: true}})
	h.act(t, 1, Action{Action: "remove", Filter: Filter{ID: id}}) // recipient_dropped tells
	stated[event.AdminActed](t, h.rec, 4)
	var got []string
	for _, rec := range h.rec.all() {
		if ev, ok := rec.Event.(event.AdminActed); ok {
			got = append(got, fmt.Sprintf("%s %t", ev.Action, rec.Message == id))
		}
	}
	if want := []string{"hold true", "release true", "retry false", "remove false"}; !slices.Equal(got, want) {
		t.Errorf("actions, and whether they are the message's: %q, want %q", got, want)
	}
}
