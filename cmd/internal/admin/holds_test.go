package admin

import (
	"net/http"
	"reflect"
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

// What a hold and a release of a next hop did has the messages' octets.
func TestHopActionsCount(t *testing.T) {
	f := newFixture(t)
	f.put("a@source.test", "x@hop.test")
	var list trackapi.QueuedMessages
	f.ask(request("GET", "/api/v1/queue/messages", ""), http.StatusOK, &list)
	want := trackapi.QueueActed{Messages: 1, Bytes: list.Messages[0].Size, IDs: []string{list.Messages[0].QueueID}, Lasting: true}
	for _, action := range []string{`"hold", "filter": {"queue": "hop.test"}`, `"release", "filter": {"all": true}`, `"hold", "filter": {"queue": "hop.test"}`, `"release", "filter": {"queue": "hop.test"}`} {
		var did trackapi.QueueActed
		f.ask(request("POST", "/api/v1/queue/actions", `{"action": `+action+`}`), http.StatusOK, &did)
		if !reflect.DeepEqual(did, want) || did.Bytes == 0 {
			t.Errorf("%s: %+v, want %+v", action, did, want)
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
		{"all of a sender", `{"sender": "@shop.test"}`, `{"all": true, "sender": "@shop.example"}`, false},
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
