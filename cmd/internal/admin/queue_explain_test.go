package admin

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/failure"
	"waybill/relay/mail"
	"waybill/relay/queue"
)

// What the last failure means stands with each queued recipient.
func TestQueueExplain(t *testing.T) {
	asked := 0
	f := newFixture(t, func(o *Options) {
		o.Explain = func(st *queue.State) failure.Meaning {
			if asked++; st.Hop.Name != "late.test" {
				return failure.Meaning{}
			}
			return failure.Meaning{Class: mail.ClassThrottled, Rule: "mine", Permanence: mail.Temporary, Explanation: "they take less; nothing to do"}
		}
	})
	f.put("a@source.test", "b@late.test", "c@other.test")
	var list trackapi.QueuedMessages
	f.ask(request("GET", "/api/v1/queue/messages", ""), http.StatusOK, &list)
	if len(list.Messages) != 1 || len(list.Messages[0].Recipients) != 2 || asked != 2 {
		t.Fatalf("%+v after %d questions", list, asked)
	}
	r := list.Messages[0].Recipients
	if r[0].Rule != "mine" || r[0].Permanence != "temporary" || r[0].Explanation != "they take less; nothing to do" || r[1].Explanation != "" {
		t.Errorf("recipients %+v", r)
	}
}

// A message that waits for a next hop that cannot be reached says so, although
// nobody tried it.
func TestQueueWaits(t *testing.T) {
	f := newFixture(t)
	tried := f.put("a@source.test", "b@dead.test")
	l, err := f.queue.Claim(t.Context())
	if err != nil || l.Message.ID != tried {
		t.Fatalf("claimed %+v, %v", l, err)
	}
	again := time.Now().Add(time.Minute).UTC().Truncate(time.Microsecond)
	err = f.queue.Settle(t.Context(), l, queue.Settlement{
		Outcomes: []mail.Outcome{{Disposition: mail.Deferred, Class: mail.ClassConnect, Reply: mail.Reply{Code: 451, Enhanced: "4.4.1", Text: "connection refused"}}},
		Next:     again.Add(time.Hour), DownUntil: again,
	})
	if err != nil {
		t.Fatal(err)
	}
	waits := f.put("a@source.test", "c@dead.test", "d@other.test")
	var list trackapi.QueuedMessages
	f.ask(request("GET", "/api/v1/queue/messages", ""), http.StatusOK, &list)
	got := map[string]trackapi.QueuedRecipient{}
	for _, m := range list.Messages {
		for _, r := range m.Recipients {
			got[m.QueueID+" "+r.Address] = r
		}
	}
	if r := got[string(tried)+" b@dead.test"]; r.Waits != "" || !strings.Contains(r.Reply, "refused") || !r.Next.Equal(again.Add(time.Hour)) {
		t.Errorf("the one that was tried: %+v", r)
	}
	if r := got[string(waits)+" c@dead.test"]; r.Waits != "the next hop takes nothing at present: 451 4.4.1 connection refused" || !r.Next.Equal(again) {
		t.Errorf("the one that waits: %+v, want it to wait until %v", r, again)
	}
	if r := got[string(waits)+" d@other.test"]; r.Waits != "" || r.Next.After(time.Now()) {
		t.Errorf("the one for another next hop: %+v", r)
	}
}
