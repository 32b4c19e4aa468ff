package queue

import (
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

func TestStandingHolds(t *testing.T) {
	for _, test := range []struct {
		name   string
		filter Filter
		held   string // recipients that are held when they come
		free   string
	}{
		{"sender", Filter{Sender: "*@example.org"}, "a@example.com", ""},
		{"another sender", Filter{Sender: "@example.net"}, "", "a@example.com"},
		{"recipient", Filter{Recipient: "a@example.com"}, "a@example.com", "b@example.com"},
		{"domain", Filter{Domain: "Example.COM"}, "b@example.com", "a@example.net"},
		{"receive connector", Filter{Receive: "in"}, "b@example.com", ""},
		{"sender and next hop", Filter{Sender: "@example.org", Hop: "example.com"}, "a@example.com", "a@example.net"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := open(t, nil)
			h.act(t, 0, Action{Action: "hold", Filter: test.filter, Reason: "runaway"})
			h = h.reopen(t, nil) // it stands
			if test.free != "" {
				h.put(t, "x", test.free)
				h.settle(t, h.claim(t), mail.Relayed, time.Time{})
			}
			if list := h.Holds(); len(list) != 1 || list[0].Filter != test.filter || list[0].By != "op" || list[0].Why != "runaway" {
				t.Errorf("Holds() = %+v, want %+v", list, test.filter)
			}
			if test.held == "" {
				return
			}
			id := h.put(t, "x", test.held)
			h.idle(t)
			m, err := h.Get(id)
			if err != nil || m.HeldBy != "op" || m.HeldWhy != "runaway" {
				t.Errorf("Get() = %+v, %v, want it held", m, err)
			}
			h = h.reopen(t, nil)
			h.idle(t)
			equalStrings(t, "facts", h.rec.names(id), "message_queued", "queue_held")
			h.act(t, 1, Action{Action: "release", Filter: test.filter})
			h.settle(t, h.claim(t), mail.Relayed, time.Time{})
			h = h.reopen(t, nil)
			h.put(t, "x", test.held) // nothing stands any more
			h.claim(t)
			if list := h.Holds(); len(list) != 0 {
				t.Errorf("Holds() = %+v, want none", list)
			}
		})
	}
}

// The hold on a hop and a standing hold that names the hop, too, are two.
func TestHoldsOfOneHop(t *testing.T) {
	h := open(t, nil)
	hop := Filter{Hop: "example.com"}
	both := Filter{Hop: "example.com", Sender: "@example.net"}
	h.act(t, 0, Action{Action: "hold", Filter: hop})
	h.act(t, 0, Action{Action: "hold", Filter: both})
	h.put(t, "x", "a@example.com")
	h.idle(t)
	h.act(t, 0, Action{Action: "release", Filter: both})
	h.idle(t)
	if list := h.Holds(); len(list) != 1 || list[0].Filter != hop {
		t.Errorf("Holds() = %+v, want the hop's", list)
	}
	h.act(t, 1, Action{Action: "release", Filter: hop})
	h.settle(t, h.claim(t), mail.Relayed, time.Time{})
}

// TestHoldsCount has each message count once, with its octets, in what a hold or a
// release of hops answers: as many as it holds, or lets go.
func TestHoldsCount(t *testing.T) {
	com, net, out := Filter{Hop: "example.com"}, Filter{Hop: "example.net"}, Filter{Connector: "out"}
	for _, test := range []struct {
		name    string
		held    []Filter // before
		action  string
		filter  Filter
		want    int
		octets  int64
		waiting int // what is held by then; of all four
	}{
		{"hold a hop", nil, "hold", com, 2, 11, 2},
		{"hold a connector", nil, "hold", out, 4, 1111, 4},
		{"release a hop", []Filter{com}, "release", com, 2, 11, 0},
		{"release a connector's hops", []Filter{{Hop: "example.com", Connector: "out"}, {Hop: "example.net", Connector: "out"}}, "release", out, 3, 111, 0},
		{"release a hop whose connector is held", []Filter{com, out}, "release", com, 0, 0, 4},
		{"release all", []Filter{com, net}, "release", Filter{All: true}, 3, 111, 0},
		{"release all, a connector", []Filter{out}, "release", Filter{All: true}, 4, 1111, 0},
		{"release all, with messages that are held themselves", []Filter{com, {Recipient: "both@example.com"}}, "release", Filter{All: true}, 2, 11, 0},
		{"release all, a standing hold alone", []Filter{{Recipient: "a@example.org"}}, "release", Filter{All: true}, 1, 1000, 0},
		{"release all of a domain", []Filter{com, {Recipient: "a@example.org"}}, "release", Filter{All: true, Domain: "example.org"}, 1, 1000, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := open(t, nil)
			h.put(t, "1", "a@example.com")
			h.put(t, strings.Repeat("x", 10), "both@example.com", "both@example.net")
			h.put(t, strings.Repeat("x", 100), "a@example.net")
			h.put(t, strings.Repeat("x", 1000), "a@example.org")
			for _, f := range test.held {
				if _, err := h.Act(t.Context(), Action{Action: "hold", Filter: f}); err != nil {
					t.Fatal(err)
				}
			}
			for _, dry := range []bool{true, false} {
				got, err := h.Act(t.Context(), Action{Action: test.action, Filter: test.filter, DryRun: dry})
				if err != nil || got.Messages != test.want || got.Bytes != test.octets || len(got.IDs) != test.want {
					t.Errorf("Act(dry run %t) = %+v, %v, want %d messages, %d octets", dry, got, err, test.want, test.octets)
				}
			}
			if list, err := h.List(t.Context(), Filter{State: "held"}, "", 10); err != nil || len(list) != test.waiting {
				t.Errorf("%d messages are held then (%v), want %d", len(list), err, test.waiting)
			}
			if test.action != "release" {
				return
			}
			if facts := stated[event.QueueReleased](t, h.rec, 1); facts[0].Affected != test.want {
				t.Errorf("queue_released says %d, want %d", facts[0].Affected, test.want)
			}
		})
	}
}

func TestStandingHoldOfWhatIsThere(t *testing.T) {
	h := open(t, nil)
	id := h.put(t, "x", "a@example.com")
	h.act(t, 1, Action{Action: "hold", Filter: Filter{Sender: "@example.org"}, DryRun: true})
	if len(h.Holds()) != 0 {
		t.Error("a dry run began a hold")
	}
	h.act(t, 1, Action{Action: "hold", Filter: Filter{Sender: "@example.org"}})
	h.act(t, 0, Action{Action: "hold", Filter: Filter{Sender: "@example.org"}}) // again
	if list := h.Holds(); len(list) != 1 {
		t.Errorf("Holds() = %+v, want one", list)
	}
	h.idle(t)
	h.act(t, 1, Action{Action: "release", Filter: Filter{ID: id}}) // one of them
	h.settle(t, h.claim(t), mail.Relayed, time.Time{})
	h.put(t, "x", "b@example.com")
	h.idle(t)
	h.act(t, 1, Action{Action: "release", Filter: Filter{All: true}})
	if list := h.Holds(); len(list) != 0 {
		t.Errorf("Holds() = %+v, want none after a release of all", list)
	}
	h.claim(t)
}

func TestStandingHoldEnds(t *testing.T) {
	h := open(t, nil)
	until := time.Now().Add(time.Second)
	h.act(t, 0, Action{Action: "hold", Filter: Filter{Sender: "@example.org"}, Until: until})
	h.put(t, "x", "a@example.com")
	h = h.reopen(t, nil)
	h.idle(t)
	h.run(t)
	h.claim(t)
	if time.Now().Before(until) {
		t.Error("released too early")
	}
	eventually(t, "the hold has ended", func() bool { return len(h.Holds()) == 0 && len(find[event.QueueReleased](h.rec)) == 1 })
	if ev := find[event.QueueReleased](h.rec)[0]; ev.Affected != 1 || ev.Actor != "timer" || ev.Filter != "sender:@example.org" {
		t.Errorf("released = %+v", ev)
	}
}

// TestHoldsDuringAcceptance holds and releases a sender while messages come:
// none slips through, and none is forgotten.
func TestHoldsDuringAcceptance(t *testing.T) {
	h := open(t, func(o *Options) { o.NoSync = true })
	h.run(t)
	const messages = 400
	done := make(chan error, 4)
	for w := range cap(done) {
		go func() {
			for i := range messages / cap(done) {
				d := draft(t, fmt.Sprintf("u%d-%d@example.com", w, i))
				if err := h.Put(t.Context(), d, []byte("x")); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	hold := Action{Action: "hold", Filter: Filter{Sender: "@example.org"}, Actor: "op"}
	release := Action{Action: "release", Filter: hold.Filter, Actor: "op"}
	for left := cap(done); left > 0; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			left--
		default:
			for _, a := range []Action{hold, release} {
				if _, err := h.Act(t.Context(), a); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if _, err := h.Act(t.Context(), hold); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all are held", func() bool { return h.Levels().ByState["held"] == messages })
	if _, err := h.Act(t.Context(), release); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all are free", func() bool { return h.Levels().ByState["accepted"] == messages })
	h = h.reopen(t, nil) // and so say the records
	if n := h.Levels().ByState["accepted"]; n != messages {
		t.Errorf("%d messages are free after a restart, want %d", n, messages)
	}
}

func TestRedirect(t *testing.T) {
	h := open(t, nil)
	id := h.put(t, "x", "a@example.com", "b@example.net")
	leased := h.claim(t)
	a := Action{Action: "redirect", Filter: Filter{All: true}, To: "relay.example:2525", Reason: "moving"}
	h.act(t, 1, Action{Action: "redirect", Filter: Filter{All: true}, To: "relay.example:2525", DryRun: true})
	h.act(t, 1, a)
	other := h.claim(t)
	if want := route.RedirectTo("out", "relay.example:2525"); other.Hop != want || len(other.Index) != 1 {
		t.Errorf("claimed %v of %v, want one recipient of %v", other.Index, other.Hop, want)
	}
	h.settle(t, other, mail.Deferred, time.Now())
	h.settle(t, leased, mail.Deferred, time.Now()) // was being attempted: stays
	h = h.reopen(t, nil)                           // what is redirected stays so
	h.Reroute()
	m, err := h.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range m.States {
		if redirected := s.Hop.Target() != ""; redirected != (i == other.Index[0]) {
			t.Errorf("recipient %d goes to %v", i, s.Hop)
		}
	}
	h.act(t, 1, a) // now the other one too
	h.act(t, 0, a)
	l := h.claim(t)
	if len(l.Index) != 2 {
		t.Errorf("claimed %v, want both", l.Index)
	}
	l.Release()
	var why []string
	eventually(t, "routed elsewhere", func() bool {
		return slices.ContainsFunc(find[event.MessageRouted](h.rec), func(ev event.MessageRouted) bool { return ev.Queue == "@relay.example:2525" })
	})
	for _, ev := range find[event.MessageRouted](h.rec) {
		if ev.Queue == "@relay.example:2525" {
			why = append(why, ev.Why)
		}
	}
	if len(why) != 1 || why[0] != "redirected to relay.example:2525 by op: moving" { // the first was before the restart
		t.Errorf("routed because %q", why)
	}
	h.act(t, 1, Action{Action: "reroute", Filter: Filter{ID: id}})
	if l := h.claim(t); l.Hop.Target() != "" {
		t.Errorf("claimed %v after a reroute", l.Hop)
	}
}

func TestRedirectWithoutConnector(t *testing.T) {
	h := open(t, func(o *Options) { o.Router = &domains{refused: map[string]bool{"example.com": true}} })
	h.put(t, "x", "a@example.com")
	a := Action{Action: "redirect", Filter: Filter{All: true}, To: "relay.example:25", Actor: "op"}
	for _, dry := range []bool{true, false} {
		a.DryRun = dry
		if _, err := h.Act(t.Context(), a); !errors.Is(err, ErrRefused) {
			t.Errorf("Act() = %v, want ErrRefused", err)
		}
	}
	if ev := find[event.AdminActed](h.rec); len(ev) != 0 {
		t.Errorf("acted = %+v, want nothing of what was refused", ev)
	}
	a.Via = "out"
	h.act(t, 1, a)
	h.claim(t)
}

// TestReportOfAnOperator ends a message that was attempted once: its sender is told
// by whom, and what the report has of attempts is of that one.
func TestReportOfAnOperator(t *testing.T) {
	for _, test := range []struct {
		action, fact, text string
	}{
		{"remove", "recipient_dropped", "Removed by the administrator. as agreed"},
		{"bounce", "recipient_bounced", "Returned by the administrator. as agreed"},
	} {
		t.Run(test.action, func(t *testing.T) {
			var outcome mail.Outcome
			var state State
			h := open(t, func(o *Options) {
				o.Reports = func(m *Message, index []int, outcomes []mail.Outcome) []Report {
					outcome, state = outcomes[0], m.States[index[0]]
					d := mail.Draft{Envelope: mail.Envelope{Recipients: []mail.Recipient{{Address: m.Envelope.Sender}}}}
					return []Report{{Draft: d, Content: []byte("report"), Fact: event.DSNQueued{Kind: "failed"}}}
				}
			})
			id := h.put(t, "x", "a@example.com")
			h.settle(t, h.claim(t), mail.Deferred, time.Now().Add(time.Hour))
			m, err := h.Get(id)
			if err != nil {
				t.Fatal(err)
			}
			h.act(t, 1, Action{Action: test.action, Filter: Filter{ID: id}, Report: true, Reason: "as agreed"})
			stated[event.MessageRetired](t, h.rec, 1)
			equalStrings(t, "facts", lastOf(h.rec.names(id), 3), test.fact, "dsn_queued", "message_retired")
			if outcome.Reply.Text != test.text || h.Levels().Messages != 1 {
				t.Errorf("outcome = %+v, %d messages", outcome, h.Levels().Messages)
			}
			if at := m.States[0].LastAt; at.IsZero() || !state.LastAt.Equal(at) || state.Attempts != 1 {
				t.Errorf("the report has %d attempts, the last at %v, want 1 at %v", state.Attempts, state.LastAt, at)
			}
		})
	}
}

// lastOf returns the last n of list.
func lastOf(list []string, n int) []string { return list[max(0, len(list)-n):] }

func TestShut(t *testing.T) {
	h := open(t, nil)
	h.Shut("moving to another host")
	if err := h.Ready(); err == nil || err.Error() != "moving to another host" {
		t.Errorf("Ready() = %v", err)
	}
	if err := h.Put(t.Context(), draft(t, "a@example.com"), []byte("x")); err == nil {
		t.Error("a message was taken")
	}
	h.Shut("")
	h.put(t, "x", "a@example.com")
}

func TestElsewhere(t *testing.T) {
	router := &domains{}
	h := open(t, func(o *Options) { o.Router = router })
	h.put(t, "x", "a@example.com")
	l := h.claim(t)
	router.mu.Lock()
	router.connector = "backup" // as when the first one is avoided
	router.mu.Unlock()
	s := Settlement{Outcomes: outcomes(l, mail.Deferred), Next: time.Now().Add(time.Hour), Elsewhere: true}
	if err := h.Settle(t.Context(), l, s); err != nil {
		t.Fatal(err)
	}
	l = h.claim(t) // at once
	if l.Hop.Connector != "backup" || l.Attempt != 2 {
		t.Errorf("claimed %v, attempt %d, want backup and 2", l.Hop, l.Attempt)
	}
}

// TestRedirectOnce redirects a message twice while one of its recipients is being
// attempted: the second time there is nothing to do.
func TestRedirectOnce(t *testing.T) {
	h := open(t, nil)
	h.put(t, "x", "a@a.example", "b@b.example")
	l := h.claim(t)
	a := Action{Action: "redirect", Filter: Filter{All: true}, To: "relay.example:2525"}
	h.act(t, 1, a)
	h.act(t, 0, a)
	l.Release()
}
