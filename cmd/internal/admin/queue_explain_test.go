package admin

import (
	"net/http"
	"testing"

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
