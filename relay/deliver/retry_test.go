package deliver

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"waybill/relay/route"
	"waybill/relay/smtpout"
)

func TestRetryFor(t *testing.T) {
	r := Retry{Lifetime: 1, Domains: map[string]Retry{
		"example.com": {Lifetime: 2}, "*.example.com": {Lifetime: 3}, "*.mail.example.com": {Lifetime: 4},
	}}
	for _, test := range []struct {
		domain string
		key    string
		want   time.Duration
	}{
		{"example.com", "example.com", 2},
		{"a.example.com", "*.example.com", 3},
		{"mail.example.com", "*.example.com", 3},
		{"b.a.mail.example.com", "*.mail.example.com", 4},
		{"example.org", "", 1},
		{"notexample.com", "", 1},
		{"", "", 1},
	} {
		t.Run(test.domain, func(t *testing.T) {
			if got, key := r.For(test.domain); got.Lifetime != test.want || key != test.key {
				t.Errorf("For(%q) = lifetime %d of %q, want %d of %q", test.domain, got.Lifetime, key, test.want, test.key)
			}
		})
	}
}

// TestDomainSchedule defers mail for two domains of one connector, of which one
// has a schedule and a lifetime of its own.
func TestDomainSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(t)
		own := route.Hop{Connector: "internet", Name: "slow.example"}
		q.add(internet, nil, "a@example.com")
		late := q.add(own, nil, "b@slow.example")
		c := Connector{
			Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result { return answer(m, greylisted) }),
			Retry: Retry{Schedule: []time.Duration{time.Minute}, Lifetime: 24 * time.Hour, Domains: map[string]Retry{
				"slow.example": {Schedule: []time.Duration{time.Hour}, Lifetime: 150 * time.Minute, DelayDSN: -1},
			}},
		}
		_, stop := start(t, q, c, nil)
		time.Sleep(3 * time.Hour)
		_ = stop()
		attempts, ended := 0, false
		for _, s := range q.settlements() {
			if s.id != late.ID {
				continue
			}
			if !s.NoAttempt {
				attempts++
			}
			ended = ended || s.Outcomes[0].Disposition.Final()
		}
		if attempts != 3 || !ended {
			t.Errorf("%d attempts in 2½ hours, ended %t; want 3 by its own schedule, and an end", attempts, ended)
		}
	})
}
