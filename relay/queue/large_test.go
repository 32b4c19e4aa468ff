package queue

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"waybill/relay/mail"
)

// TestManyRecipients takes a message whose record and facts are more than a
// group of changes usually is, and has every recipient through to the end.
func TestManyRecipients(t *testing.T) {
	for _, test := range []struct {
		name       string
		recipients int
	}{
		{"a thousand", 1000},
		{"three thousand", 3000},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := open(t, nil)
			to := make([]string, test.recipients)
			for i := range to {
				to[i] = fmt.Sprintf("somebody.with.a.name.%d@department-%d.example.com", i, i%3)
			}
			h.put(t, "content", to...)
			for range 3 { // hops
				h.settle(t, h.claim(t), mail.Deferred, time.Now())
			}
			for range 3 {
				h.settle(t, h.claim(t), mail.Relayed, time.Time{})
			}
			if n := h.Levels().Messages; n != 0 {
				t.Errorf("%d messages are left, want 0", n)
			}
		})
	}
}

// TestManyWords has a next hop say a lot of each of as many recipients as a
// message may have, and other words of each: what became of them is written down
// all the same, so that nobody gets the message twice, and what an operator does
// then finds room, too.
func TestManyWords(t *testing.T) {
	noise := rand.New(rand.NewPCG(1, 2)) // what cannot be compressed
	for _, kind := range []struct {
		name     string
		original int // octets of ORCPT
		least    int // recipients
	}{
		{"addresses", 0, 2500},
		{"original addresses, too", 400, 400},
	} {
		d := draft(t)
		for i := range 1 << 13 {
			r := mail.Recipient{Address: address(t, fmt.Sprintf("somebody.with.a.name.%d@department.example.com", i))}
			if kind.original > 0 {
				r.ORcpt = "rfc822;"
				for len(r.ORcpt) < kind.original {
					r.ORcpt += strconv.FormatUint(noise.Uint64(), 36)
				}
			}
			d.Envelope.Recipients = append(d.Envelope.Recipients, r)
		}
		to := func(n int) mail.Draft {
			d := d
			d.ID, d.UID = mail.QueueID(mail.NewID(time.Now())), mail.NewUID(time.Now())
			d.Envelope.Recipients = d.Envelope.Recipients[:n]
			return d
		}
		most := 0
		for step := 1 << 12; step > 0; step /= 2 {
			err := open(t, nil).Put(t.Context(), to(most+step), []byte("x"))
			var reply *mail.ReplyError
			switch {
			case err == nil:
				most += step
			case !errors.As(err, &reply) || reply.Reply.Code != 452 || reply.Reply.Enhanced != "4.5.3":
				t.Fatal(err)
			}
		}
		if most < kind.least {
			t.Errorf("%s: a message may have %d recipients, want %d at least", kind.name, most, kind.least)
		}
		for _, action := range []string{"bounce", "remove", "reroute", "retry", "hold"} {
			h := open(t, nil)
			if err := h.Put(t.Context(), to(most), []byte("x")); err != nil {
				t.Fatal(err)
			}
			h.act(t, 1, Action{Action: action, Filter: Filter{All: true}, Reason: strings.Repeat("why ", maxReply)})
		}
		for _, test := range []struct {
			name  string
			n     int
			keep  time.Duration
			is    []mail.Disposition // in turn
			words int                // that are kept, at least
		}{
			{"few", 10, 0, []mail.Disposition{mail.Deferred}, maxReply},
			{"deferred", most, 0, []mail.Disposition{mail.Deferred}, 0},
			{"relayed", most, 0, []mail.Disposition{mail.Relayed}, 0},
			{"relayed and kept", most, time.Hour, []mail.Disposition{mail.Relayed}, 0},
			{"bounced", most, 0, []mail.Disposition{mail.Bounced}, 0},
			{"half of them", most, 0, []mail.Disposition{mail.Relayed, mail.Deferred}, 0},
			{"a third of them", most, 0, []mail.Disposition{mail.Deferred, mail.Deferred, mail.Bounced}, 0},
		} {
			t.Run(kind.name+", "+test.name, func(t *testing.T) {
				h := open(t, func(o *Options) { o.KeepRelayed = test.keep })
				d := to(test.n)
				if err := h.Put(t.Context(), d, []byte("x")); err != nil {
					t.Fatal(err)
				}
				l := h.claim(t)
				list := outcomes(l, mail.Deferred)
				waiting := 0
				for i := range list {
					o := &list[i]
					o.Disposition = test.is[i%len(test.is)]
					o.Reply.Text = strings.Repeat(fmt.Sprintf("%x ", (i+1)*7919), maxReply)[:maxReply]
					o.Explanation = "it said " + o.Reply.Text
					if o.Disposition == mail.Deferred {
						waiting++
					}
				}
				if err := h.Settle(t.Context(), l, Settlement{Outcomes: list, Next: time.Now().Add(time.Hour)}); err != nil {
					t.Fatal(err)
				}
				h.act(t, min(waiting, 1), Action{Action: "hold", Filter: Filter{All: true}, Reason: strings.Repeat("why ", maxReply)})
				if err := h.saveAll(); err != nil {
					t.Fatal(err)
				}
				h = h.openCopy(t, h.killed(t))
				if waiting == 0 {
					if n := h.Levels().Messages; n != 0 {
						t.Errorf("%d messages are left, want 0", n)
					}
					return
				}
				m, err := h.Get(d.ID)
				if err != nil {
					t.Fatal(err)
				}
				for i, s := range m.States {
					if want := test.is[i%len(test.is)]; s.Disposition != want && s.Disposition != mail.Held || len(s.Last.Text) < test.words || s.Last.Code != 451 {
						t.Fatalf("recipient %d is %s after %v, want %s", i, s.Disposition, s.Last, want)
					}
				}
			})
		}
	}
}

// TestTooLargeToSettle has the outcomes of a message be more than can be written
// down, however short: it is isolated, and not sent again and again.
func TestTooLargeToSettle(t *testing.T) {
	h := openUnsaved(t, nil) // a save reads how much goes into a transaction
	to := make([]string, 50)
	for i := range to {
		to[i] = fmt.Sprintf("somebody.with.a.name.%d@example.com", i*7919)
	}
	id := h.put(t, "content", to...)
	l := h.claim(t)
	h.batchBytes, h.changeBytes = 7000, 7000
	list := outcomes(l, mail.Bounced)
	list[0].Disposition = mail.Deferred
	if err := h.Settle(t.Context(), l, Settlement{Outcomes: list}); !errors.Is(err, errTooLarge) {
		t.Errorf("Settle = %v, want %v", err, errTooLarge)
	}
	m, err := h.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(m.Poison, "too large") {
		t.Errorf("set apart for %q, want because its outcomes are too large", m.Poison)
	}
}
