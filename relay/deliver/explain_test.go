package deliver

import (
	"strings"
	"testing"

	"waybill/relay/failure"
	"waybill/relay/mail"
	"waybill/relay/queue"
)

func TestExplain(t *testing.T) {
	s := New(Options{})
	for _, test := range []struct {
		name  string
		state queue.State
		want  failure.Meaning // its explanation is a beginning
	}{
		{"nothing has failed", queue.State{Disposition: mail.Queued}, failure.Meaning{}},
		{"relayed", queue.State{Disposition: mail.Relayed, Last: mail.Reply{Code: 250, Text: "ok"}, LastHost: "mx"}, failure.Meaning{}},
		{
			"the next hop's words",
			queue.State{Disposition: mail.Deferred, Last: mail.Reply{Code: 432, Enhanced: "4.3.2", Text: "Concurrent connections limit exceeded."}, LastClass: mail.ClassThrottled, LastHost: "outlook.example"},
			failure.Meaning{Class: mail.ClassThrottled, Rule: "ms-mailbox-concurrency", Permanence: mail.Temporary, Explanation: "Microsoft takes three connections"},
		},
		{
			"our own words",
			queue.State{Disposition: mail.Deferred, Last: mail.Reply{Enhanced: "4.4.1", Text: "connection refused"}, LastClass: mail.ClassConnect, LastHost: "mx.example.com"},
			failure.Meaning{Class: mail.ClassConnect, Rule: failure.RuleLocal, Permanence: mail.Temporary, Explanation: "no connection to the next hop"},
		},
		{
			"bounced",
			queue.State{Disposition: mail.Bounced, Last: mail.Reply{Code: 550, Enhanced: "5.1.1", Text: "no such user"}, LastClass: mail.ClassInvalidRecipient, LastHost: "mx.example.com"},
			failure.Meaning{Class: mail.ClassInvalidRecipient, Rule: "text-unknown", Permanence: mail.Permanent, Explanation: "there is no such address"},
		},
		{
			"as it was recorded, whatever the rules say now",
			queue.State{
				Disposition: mail.Deferred, Last: mail.Reply{Code: 451, Text: "over quota"}, LastClass: mail.ClassThrottled, LastRule: "was-once",
				LastMeans: "they want less; nothing to do", LastHost: "mx.example.com",
			},
			failure.Meaning{Class: mail.ClassThrottled, Rule: "was-once", Permanence: mail.Temporary, Explanation: "they want less; nothing to do"},
		},
		{
			"a rule of our own, recorded",
			queue.State{Disposition: mail.Deferred, Last: mail.Reply{Enhanced: "4.7.28", Text: "used up"}, LastClass: mail.ClassThrottled, LastRule: failure.RuleQuota, LastMeans: "the quota"},
			failure.Meaning{Class: mail.ClassThrottled, Rule: failure.RuleQuota, Permanence: mail.Temporary, Explanation: "the quota"},
		},
		{
			"the class stays as an older program recorded it",
			queue.State{Disposition: mail.Deferred, Last: mail.Reply{Code: 451, Text: "over quota"}, LastClass: mail.ClassOther, LastHost: "mx.example.com"},
			failure.Meaning{Class: mail.ClassOther, Rule: "text-full", Permanence: mail.Temporary, Explanation: "there is no room"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := s.Explain(&test.state)
			if !strings.HasPrefix(got.Explanation, test.want.Explanation) {
				t.Errorf("explanation %q, want %q", got.Explanation, test.want.Explanation)
			}
			got.Explanation = test.want.Explanation
			if got != test.want {
				t.Errorf("Explain() = %+v, want %+v", got, test.want)
			}
		})
	}
	own, err := failure.Parse([]byte("- {name: mine, class: policy, means: they do not like us, text: [no such user]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	s.SetFailures(failure.Default().With(own))
	st := queue.State{Disposition: mail.Bounced, Last: mail.Reply{Code: 550, Text: "no such user"}, LastHost: "mx"}
	if got := s.Explain(&st); got.Rule != "mine" {
		t.Errorf("after SetFailures: %+v", got)
	}
}
