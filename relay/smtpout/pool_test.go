package smtpout

import (
	"testing"
	"testing/synctest"
	"time"

	"waybill/relay/route"
)

// TestIdleSession ends a session when it has been idle for its time since its
// last use, whatever happened when the timer that was set at its first use fired.
func TestIdleSession(t *testing.T) {
	const idle = 10 * time.Second
	for _, test := range []struct {
		name string
		uses []time.Duration // pauses and uses in turns
	}{
		{"never used again", nil},
		{"used before the time", []time.Duration{idle - 1, 0}},
		{"in use when the timer fires", []time.Duration{idle / 2, idle}},
		{"in use when it fires, and again", []time.Duration{idle / 2, idle, idle / 2, 2 * idle}},
		{"used often", []time.Duration{idle / 2, 1, idle / 2, 1, idle / 2, 1, idle / 2, 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, err := New(Options{Name: "out", Hostname: "mx.example", SmartHosts: []route.SmartHost{{Host: "192.0.2.1"}}, Limits: Limits{IdleTimeout: idle}})
				if err != nil {
					t.Fatal(err)
				}
				s := &session{c: c, hop: "hop"}
				s.closed.Store(true) // it has no connection
				c.total, c.perHop[s.hop] = 1, 1
				c.put(s)
				for i := 0; i < len(test.uses); i += 2 {
					time.Sleep(test.uses[i])
					if got, err := c.take(t.Context(), s.hop); got != s || err != nil {
						t.Fatalf("take() = %v, %v, want the session", got, err)
					}
					time.Sleep(test.uses[i+1])
					c.put(s)
				}
				time.Sleep(idle - 1)
				synctest.Wait()
				if got := c.Idle(); got != 1 {
					t.Errorf("%d sessions are idle before the time, want 1", got)
				}
				time.Sleep(time.Nanosecond)
				synctest.Wait()
				if n, _ := c.Stats(); n != 0 || c.Idle() != 0 {
					t.Errorf("%d sessions are there after the time, %d of them idle; want none", n, c.Idle())
				}
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
