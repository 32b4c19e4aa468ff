package deliver

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"waybill/relay/mail"
	"waybill/relay/queue"
	"waybill/relay/route"
	"waybill/relay/smtpout"
)

// TestDeliverBy: at the deadline the sender has the message back (by-mode R), or
// knows that it is late (by-mode N), to the minute; and hears of relays when
// asked, or when the next hop does not know of deadlines (RFC 2852).
func TestDeliverBy(t *testing.T) {
	const deadline = 35 * time.Minute
	for _, test := range []struct {
		name    string
		by      mail.DeliverBy
		notify  mail.Notify
		outcome mail.Outcome
		knows   bool // the next hop does
		want    []string
		at      []time.Duration
	}{
		{"return", mail.DeliverBy{Return: true}, 0, greylisted, true, []string{"failed"}, []time.Duration{deadline}},
		{"return, host down", mail.DeliverBy{Return: true}, 0, noRoute, true, []string{"failed"}, []time.Duration{deadline}},
		{"tell", mail.DeliverBy{}, 0, greylisted, true, []string{"delayed", "failed"}, []time.Duration{deadline, 10 * time.Hour}},
		{"tell, host down", mail.DeliverBy{}, 0, noRoute, true, []string{"delayed", "failed"}, []time.Duration{deadline, 10 * time.Hour}},
		{"tell, delay not wanted", mail.DeliverBy{}, mail.NotifyFailure, greylisted, true, []string{"failed"}, []time.Duration{10 * time.Hour}},
		{"tell, relayed in time", mail.DeliverBy{}, 0, relayed, true, nil, nil},
		{"tell, next hop does not know", mail.DeliverBy{}, 0, relayed, false, []string{"relayed"}, []time.Duration{0}},
		{"trace", mail.DeliverBy{Return: true, Trace: true}, 0, relayed, true, []string{"relayed"}, []time.Duration{0}},
		{"trace, never", mail.DeliverBy{Trace: true}, mail.NotifyNever, relayed, true, nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newFakeQueue(t)
				began := time.Now()
				_, stop := start(t, q, Connector{
					Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
						r := answer(m, test.outcome)
						r.DSN, r.DeliverBy = true, test.knows
						return r
					}),
					Retry: Retry{Lifetime: 10 * time.Hour, DelayDSN: -1},
				}, nil)
				q.add(internet, func(m *queue.Message) {
					m.Envelope.DeliverBy = test.by
					m.Envelope.DeliverBy.Deadline = began.Add(deadline)
					m.Envelope.Recipients[0].Notify = test.notify
				}, "bob@example.com")
				time.Sleep(11 * time.Hour)
				_ = stop()
				var kinds []string
				for _, s := range q.settlements() {
					for _, r := range s.Reports {
						if r.Fact.Suppressed != "" {
							t.Errorf("suppressed: %+v", r.Fact)
						}
						if late := s.at.Sub(began) - test.at[min(len(kinds), len(test.at)-1)]; late < 0 || late > time.Minute {
							t.Errorf("%s %v after its time", r.Fact.Kind, late)
						}
						kinds = append(kinds, r.Fact.Kind)
					}
				}
				if !slices.Equal(kinds, test.want) {
					t.Errorf("reports %v, want %v", kinds, test.want)
				}
			})
		})
	}
}
