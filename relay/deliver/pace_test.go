package deliver

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"waybill/relay/route"
	"waybill/relay/smtpout"
)

// TestPaceOfSplitMessages: a message in three transactions takes three turns of
// sixty in a minute.
func TestPaceOfSplitMessages(t *testing.T) {
	for _, test := range []struct {
		name       string
		perMessage int
		want       time.Duration // between two messages
	}{
		{"one transaction", 0, time.Second},
		{"three transactions", 2, 3 * time.Second},
		{"as many as fit", 5, time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newFakeQueue(t)
				at := make(chan time.Time, 3)
				_, stop := start(t, q, Connector{
					Limits: Limits{MessagesPerMinute: 60, RecipientsPerMessage: test.perMessage},
					Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
						at <- time.Now()
						return answer(m, relayed)
					}),
				}, nil)
				for range 3 {
					q.add(internet, nil, "a@example.com", "b@example.com", "c@example.com", "d@example.com", "e@example.com")
				}
				first := <-at
				for i := range 2 {
					next := <-at
					if got := next.Sub(first); got != test.want {
						t.Errorf("message %d comes %v after the one before, want %v", i+2, got, test.want)
					}
					first = next
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}
