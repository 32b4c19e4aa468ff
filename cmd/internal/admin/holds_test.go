package admin

import (
	"net/http"
	"testing"

	"waybill/logtrack/trackapi"
)

// A held message says who holds it, whatever kind of hold that is, and has no
// next attempt.
func TestQueueHeld(t *testing.T) {
	f := newFixture(t)
	f.put("a@source.test", "x@hop.test")
	f.put("b@source.test", "x@mail.test")
	f.put("c@source.test", "x@free.test")
	for _, filter := range []string{`{"queue": "hop.test"}`, `{"sender": "b@source.test"}`} {
		f.ask(request("POST", "/api/v1/queue/actions", `{"action": "hold", "reason": "as agreed", "until": "2999-01-01T00:00:00Z", "filter": `+filter+`}`), http.StatusOK, nil)
	}
	var list trackapi.QueuedMessages
	f.ask(request("GET", "/api/v1/queue/messages", ""), http.StatusOK, &list)
	if len(list.Messages) != 3 {
		t.Fatalf("messages %+v", list.Messages)
	}
	for i, m := range list.Messages {
		state, why, due := "held", "as agreed", false
		if i == 2 {
			state, why, due = "queued", "", true
		}
		if m.State != state || m.HeldWhy != why || (m.HeldBy != "") == due || m.HeldUntil.IsZero() != due || m.Recipients[0].Next.IsZero() == due {
			t.Errorf("%s: %+v", m.Sender, m)
		}
	}
}

// A release says whether it ended a hold for messages to come.
func TestReleaseLasting(t *testing.T) {
	for _, test := range []struct {
		name    string
		hold    string
		release string
		want    bool
	}{
		{"the same", `{"sender": "@shop.test"}`, `{"sender": "@shop.test"}`, true},
		{"another", `{"sender": "@shop.test"}`, `{"sender": "@shop.example"}`, false},
		{"all", `{"sender": "@shop.test"}`, `{"all": true}`, true},
		{"a next hop", `{"queue": "a.test"}`, `{"queue": "a.test"}`, true},
		{"a next hop of the connector", `{"queue": "a.test", "connector": "out"}`, `{"connector": "out"}`, true},
		{"the connector of the next hop", `{"connector": "out"}`, `{"queue": "a.test"}`, false},
		{"of messages by their state", `{"sender": "@shop.test"}`, `{"sender": "@shop.test", "state": "held"}`, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t)
			f.ask(request("POST", "/api/v1/queue/actions", `{"action": "hold", "filter": `+test.hold+`}`), http.StatusOK, nil)
			for _, dry := range []string{"true", "false"} {
				var did trackapi.QueueActed
				f.ask(request("POST", "/api/v1/queue/actions", `{"action": "release", "dry_run": `+dry+`, "filter": `+test.release+`}`), http.StatusOK, &did)
				if did.Lasting != test.want {
					t.Errorf("dry run %s: lasting is %t, want %t", dry, did.Lasting, test.want)
				}
			}
		})
	}
}
