package logtrack

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
)

func TestUnderstood(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		t.Run(fmt.Sprintf("sealed %t", sealed), func(t *testing.T) {
			s := openStore(t, t.TempDir())
			t0 := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
			id := mail.QueueID(mail.NewID(t0))
			write := func(after time.Duration, ev event.Event) {
				at := t0.Add(after)
				s.Write(&event.Record{ID: mail.NewID(at), Time: at, Node: "mx1", Source: event.SourceQueue, Message: id, Event: ev})
			}
			slow := event.Answer{
				Code: 432, Reply: "concurrent connections limit exceeded", Class: mail.ClassThrottled, ClassRule: "ms-mailbox-concurrency",
				Permanence: mail.Temporary, Explanation: "Microsoft takes three connections at once; nothing to do",
			}
			no := event.Answer{Code: 550, Reply: "no such user", Class: mail.ClassInvalidRecipient, ClassRule: "text-unknown", Permanence: mail.Permanent, Explanation: "there is no such address"}
			to := func(address string, d mail.Disposition, a event.Answer) event.Recipient {
				return event.Recipient{Address: address, Disposition: d, Code: a.Code, Reply: a.Reply, Class: a.Class}
			}
			info := event.Info{MailFrom: "a@example.org"}
			yes := event.Answer{Code: 250, Reply: "queued"}
			write(0, event.MessageQueued{Info: info, Recipients: []event.Recipient{{Address: "late@example.com"}, {Address: "gone@example.com"}, {Address: "ok@example.com"}, {Address: "stopped@example.com"}, {Address: "ended@example.com"}, {Address: "once@example.com"}}})
			write(time.Second, event.AttemptFinished{Info: info, Answer: slow, Disposition: mail.Deferred, Attempt: 1, Recipients: []event.Recipient{
				to("late@example.com", mail.Deferred, slow), to("gone@example.com", mail.Deferred, slow), to("ok@example.com", mail.Deferred, slow), to("stopped@example.com", mail.Deferred, slow),
			}})
			write(2*time.Second, event.AttemptFinished{Info: info, Answer: no, Disposition: mail.Bounced, Attempt: 2, Recipients: []event.Recipient{
				to("gone@example.com", mail.Bounced, no), to("ok@example.com", mail.Relayed, yes),
			}})
			write(2*time.Second, event.RecipientBounced{Final: event.Final{Info: info, Answer: no, Recipient: "gone@example.com"}})
			write(2*time.Second, event.RecipientRelayed{Final: event.Final{Info: info, Answer: yes, Recipient: "ok@example.com"}})
			write(3*time.Second, event.RecipientDropped{Final: event.Final{Info: info, Recipient: "stopped@example.com"}, Actor: "ops"})
			byHand := event.Answer{Code: 554, Reply: "Returned by the administrator.", Class: mail.ClassPolicy, ClassRule: "operator", Permanence: mail.Permanent, Explanation: "an operator gave it up"}
			mx := event.Hop{RemoteName: "mx.example.com"} // which had a word before
			write(4*time.Second, event.RecipientBounced{Final: event.Final{Info: info, Hop: mx, Answer: byHand, Recipient: "ended@example.com"}, Actor: "ann", Reason: "as agreed"})
			write(5*time.Second, event.RecipientBounced{Final: event.Final{Info: info, Hop: mx, Answer: byHand, Recipient: "once@example.com"}}) // as older versions told it
			if sealed {
				seal(s)
			}
			tl := must1[*trackapi.Timeline](t)(s.Message(t.Context(), string(id)))
			want := map[string][3]string{
				"late@example.com": {"ms-mailbox-concurrency", "temporary", slow.Explanation},
				"gone@example.com": {"text-unknown", "permanent", no.Explanation},
				"ok@example.com":   {},

				"stopped@example.com": {},
				"ended@example.com":   {"operator", "permanent", byHand.Explanation},
				"once@example.com":    {"operator", "permanent", byHand.Explanation},
			}
			actors := map[string]string{"stopped@example.com": "ops", "ended@example.com": "ann", "once@example.com": "an operator"}
			for _, r := range tl.Message.Recipients {
				if got := [3]string{r.ClassRule, r.Permanence, r.Explanation}; got != want[r.Address] {
					t.Errorf("%s: %q, want %q", r.Address, got, want[r.Address])
				}
				if r.Actor != actors[r.Address] {
					t.Errorf("%s: actor %q, want %q", r.Address, r.Actor, actors[r.Address])
				}
			}
			if got := tl.Timeline[1].Summary; !strings.HasSuffix(got, "("+slow.Explanation+")") {
				t.Errorf("summary %q", got)
			}
			last := len(tl.Timeline) - 1
			if got, want := tl.Timeline[last-1].Summary, "ended@example.com: given up by ann: as agreed"; got != want {
				t.Errorf("summary %q, want %q", got, want)
			}
			if got, want := tl.Timeline[last].Summary, "once@example.com: ended by an operator: "; !strings.HasPrefix(got, want) {
				t.Errorf("summary %q, want %q", got, want)
			}
			var changes []string
			for _, c := range tl.Changes {
				changes = append(changes, c.Name+" by "+c.Actor+": "+c.Detail)
			}
			if want := []string{"dropped by ops: stopped@example.com was removed", "bounced by ann: ended@example.com was given up: as agreed"}; !slices.Equal(changes, want) {
				t.Errorf("changes %q, want %q", changes, want)
			}
			rows := must1[*trackapi.Messages](t)(s.Messages(t.Context(), trackapi.Query{}))
			for _, r := range rows.Messages[0].Recipients {
				if r.Explanation != "" {
					t.Errorf("row %+v tells at length", r)
				}
			}
		})
	}
}

// TestImportedCourse holds that facts which another server's log gives one time read
// in the order of a message's life, whatever their IDs are.
func TestImportedCourse(t *testing.T) {
	s := openStore(t, t.TempDir())
	at := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	id, dsn := mail.QueueID(mail.NewID(at)), mail.QueueID(mail.NewID(at))
	info := event.Info{MailFrom: "a@example.org"}
	gone := event.Recipient{Address: "gone@example.com", Disposition: mail.Bounced, Code: 550}
	facts := []event.Event{ // from the last to the first
		event.MessageRetired{Info: info, Bounced: 1, Attempts: 1},
		event.DSNQueued{Info: info, Kind: "failed", DSN: dsn},
		event.RecipientBounced{Final: event.Final{Info: info, Answer: event.Answer{Code: 550}, Recipient: gone.Address, Attempts: 1}},
		event.AttemptFinished{Info: info, Hop: event.Hop{RemoteName: "mx.example.com"}, Answer: event.Answer{Code: 550}, Disposition: mail.Bounced, Recipients: []event.Recipient{gone}, Attempt: 1},
		event.QueueHeld{Actor: "hold", Affected: 1},
		event.MessageQueued{Info: info},
		event.RecipientRefused{Refusal: event.Refusal{Code: 554}, Recipient: "x@example.com"},
	}
	for _, ev := range facts {
		s.Write(&event.Record{ID: mail.NewID(at), Time: at, Source: event.SourceImport, Message: id, Event: ev})
	}
	tl := must1[*trackapi.Timeline](t)(s.Message(t.Context(), string(id)))
	var names []string
	for _, en := range tl.Timeline {
		names = append(names, en.Event)
	}
	want := []string{"recipient_refused", "message_queued", "queue_held", "attempt_finished", "recipient_bounced", "dsn_queued", "message_retired"}
	if !slices.Equal(names, want) {
		t.Errorf("timeline %v, want %v", names, want)
	}
	if got, want := tl.Timeline[1].Summary, "Accepted from a@example.org (0 octets)"; got != want {
		t.Errorf("queued: %q, want %q", got, want)
	}
	if got, want := tl.Timeline[5].Summary, "Queued a failed report to the sender as "+string(dsn); got != want {
		t.Errorf("report: %q, want %q", got, want)
	}
	if r := tl.Message.Recipients; len(r) != 1 || r[0].RemoteHost != "mx.example.com" || r[0].Attempts != 1 {
		t.Errorf("recipients %+v, want what the attempt says of them", r)
	}
}
