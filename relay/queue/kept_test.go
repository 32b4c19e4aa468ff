package queue

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

func keeping(o *Options) { o.KeepRelayed, o.NoSync = time.Hour, true }

// relayAll settles everything that is due as relayed.
func (h *harness) relayAll(t testing.TB) {
	t.Helper()
	for {
		l, err := h.tryClaim()
		if err != nil {
			t.Fatal(err)
		}
		if l == nil {
			return
		}
		h.settle(t, l, mail.Relayed, time.Time{})
	}
}

func TestResend(t *testing.T) {
	h := open(t, keeping)
	small := h.put(t, "small", "a@example.com", "b@example.net")
	large := h.put(t, strings.Repeat("large ", 100_000), "c@example.com")
	bounced := h.put(t, "x", "d@example.org")
	for range 4 {
		l := h.claim(t)
		d := mail.Relayed
		if l.Message.ID == bounced {
			d = mail.Bounced
		}
		h.settle(t, l, d, time.Time{})
	}
	if l := h.Levels(); l.Messages != 0 || l.Kept != 2 || l.KeptBytes != 5+600_000 {
		t.Errorf("Levels() = %d messages, %d kept with %d octets", l.Messages, l.Kept, l.KeptBytes)
	}
	for range 2 { // before and after a restart
		for range 2 {
			if err := h.reclaim(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if list, err := h.Kept(t.Context(), Filter{}, "", 10); err != nil || len(list) != 2 || list[0].ID != small || list[1].ID != large {
			t.Errorf("Kept() = %v, %v", list, err)
		}
		if got := read(t, h.contentOf(large)); len(got) != 600_000+len("Received: from test\r\n") {
			t.Errorf("content of %d octets", len(got))
		}
		if _, err := h.Get(small); err == nil {
			t.Error("a kept message is queued")
		}
		h = h.reopen(t, nil)
	}
	for _, test := range []struct {
		name   string
		filter Filter
		want   int
	}{
		{"by ID", Filter{ID: small}, 1},
		{"by recipient", Filter{Recipient: "b@example.net"}, 1},
		{"by sender", Filter{Sender: "@example.org"}, 2},
		{"by next hop", Filter{Hop: "example.com"}, 2},
		{"by connector and domain", Filter{Connector: "out", Domain: "example.net"}, 1},
		{"all", Filter{All: true}, 2},
		{"too young", Filter{OlderThan: time.Hour}, 0},
		{"what bounced", Filter{ID: bounced}, 0},
		{"what is held", Filter{State: "held"}, 0},
		{"what was relayed", Filter{State: "relayed"}, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			aff, err := h.Resend(t.Context(), Action{Filter: test.filter, DryRun: true})
			if err != nil || aff.Messages != test.want {
				t.Errorf("Resend(%s) = %d, %v, want %d", test.filter, aff.Messages, err, test.want)
			}
		})
	}
	aff, err := h.Resend(t.Context(), Action{Filter: Filter{Recipient: "b@example.net"}, Actor: "op", Reason: "lost there"})
	if err != nil || aff.Messages != 1 {
		t.Fatalf("Resend() = %+v, %v", aff, err)
	}
	l := h.claim(t)
	if len(l.Message.States) != 1 || l.Hop.Name != "example.net" || l.Message.Parent != small || l.Message.ID == small {
		t.Errorf("claimed %+v", l.Message)
	}
	if got := read(t, l.Open); got != "small" {
		t.Errorf("content %q", got)
	}
	h.settle(t, l, mail.Relayed, time.Time{})
	var ev event.AdminActed
	eventually(t, "the resend", func() bool {
		acted := find[event.AdminActed](h.rec)
		if len(acted) > 0 {
			ev = acted[len(acted)-1]
		}
		return ev.Action == "resend"
	})
	if ev.Affected != 1 || ev.Actor != "op" || ev.Reason != "lost there" {
		t.Errorf("acted = %+v", ev)
	}
	if _, err := h.Resend(t.Context(), Action{}); err == nil {
		t.Error("an empty filter was taken")
	}
}

func TestResendOfWhatIsStillQueued(t *testing.T) {
	h := open(t, keeping)
	id := h.put(t, "x", "a@example.com", "b@example.net")
	l := h.claim(t)
	h.settle(t, l, mail.Relayed, time.Time{})
	aff, err := h.Resend(t.Context(), Action{Filter: Filter{ID: id}})
	if err != nil || aff.Messages != 1 || h.Levels().Messages != 2 {
		t.Errorf("Resend() = %+v, %v, and %d messages", aff, err, h.Levels().Messages)
	}
}

func TestKeptIsForgotten(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Options)
		want   int // of ten messages of 100,000 octets
	}{
		{"not yet", func(*Options) {}, 10},
		{"too many octets", func(o *Options) { o.KeepMaxBytes = 300_000 }, 3},
		{"too old", func(o *Options) { o.KeepRelayed = time.Microsecond }, 0},
		{"not wanted", func(o *Options) { o.KeepRelayed = 0 }, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := open(t, func(o *Options) { keeping(o); test.change(o) })
			for i := range 10 {
				h.put(t, strings.Repeat("x", 100_000), fmt.Sprintf("u%d@example.com", i))
			}
			h.relayAll(t)
			if err := h.forgetKept(t.Context()); err != nil {
				t.Fatal(err)
			}
			list, err := h.Kept(t.Context(), Filter{}, "", 100)
			if err != nil || len(list) != test.want || h.Levels().Kept != test.want {
				t.Errorf("Kept() = %d, %v, want %d", len(list), err, test.want)
			}
			h = h.reopen(t, nil)
			if err := h.forgetKept(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := h.Levels().Kept; got != test.want {
				t.Errorf("%d are kept after a restart, want %d", got, test.want)
			}
			if test.want == 0 {
				if _, err := h.contents.sweep(); err != nil {
					t.Fatal(err)
				}
				if bytes, files := h.contents.usage(); files != 0 {
					t.Errorf("%d files with %d octets are left", files, bytes)
				}
			}
		})
	}
}

// TestKeptGivesWay lets the disk get short: what is kept goes, oldest first,
// and nothing more is kept.
func TestKeptGivesWay(t *testing.T) {
	h := open(t, keeping)
	h.guard.min = 1 << 20
	for i := range 10 {
		h.put(t, strings.Repeat("x", 100_000), fmt.Sprintf("u%d@example.com", i))
	}
	h.relayAll(t)
	h.guard.free.Store(2*h.guard.min - 10_000)
	h.put(t, "x", "late@example.com")
	h.relayAll(t)
	if err := h.forgetKept(t.Context()); err != nil {
		t.Fatal(err)
	}
	list, err := h.Kept(t.Context(), Filter{}, "", 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		if m.Envelope.Recipients[0].Address.Local == "late" {
			t.Error("a message was kept on a disk that is short")
		}
	}
	if len(list) != 7 { // 272,000 octets were missing
		t.Errorf("%d messages are kept, want 7", len(list))
	}
}

// TestKeptIsCopiedForward frees a segment of which only kept messages are left.
func TestKeptIsCopiedForward(t *testing.T) {
	h := open(t, func(o *Options) { keeping(o); o.tune.segment = 1 << 20 })
	id := h.put(t, "precious", "a@example.com")
	h.relayAll(t)
	for i := range 60 {
		h.put(t, strings.Repeat("x", 50_000), fmt.Sprintf("u%d@example.com", i))
	}
	for range 60 { // these are not kept
		h.settle(t, h.claim(t), mail.Bounced, time.Time{})
	}
	for i := range 60 { // and these stay in the queue
		h.put(t, strings.Repeat("x", 50_000), fmt.Sprintf("v%d@example.com", i))
	}
	was := h.kept.index[mustIdent(t, id)].seg
	eventually(t, "it is copied", func() bool {
		if err := h.reclaim(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.kept.index[mustIdent(t, id)].seg != was && h.contents.find(was.seq) == nil
	})
	for range 2 {
		if got := read(t, h.contentOf(id)); got != "Received: from test\r\nprecious" {
			t.Errorf("content %q", got)
		}
		h = h.reopen(t, nil)
	}
}

func mustIdent(t testing.TB, id mail.QueueID) ident {
	t.Helper()
	at, ok := parseIdent(id)
	if !ok {
		t.Fatal(id)
	}
	return at
}

func TestKeptOrder(t *testing.T) {
	var l keptList
	for i := range 3 {
		l.add(&kept{id: ident{byte(i)}, size: 10})
	}
	for i := range 3 {
		if k := l.takeOldest(); k.id != (ident{byte(i)}) || l.bytes != int64(20-10*i) || len(l.index) != 2-i {
			t.Errorf("took %v, %d octets are left", k.id, l.bytes)
		}
	}
}
