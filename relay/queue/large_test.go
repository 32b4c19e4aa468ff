package queue

import (
	"fmt"
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
