package deliver

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"waybill/relay/mail"
	"waybill/relay/route"
	"waybill/relay/smtpout"
)

// tableRouter routes by a table, around what the scheduler finds down.
type tableRouter struct {
	table *route.Table
	down  func(route.Hop) bool
}

func (r *tableRouter) Route(q route.Query) route.Decision {
	q.Avoid = r.down
	return r.table.Route(q)
}

// TestElsewhere: when the cheaper connector cannot be reached, its mail goes by
// the dearer one at once, what waits for it too; when it is back, new mail
// takes it again.
func TestElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := []route.SmartHost{{Host: "h.example"}}
		table, err := route.New([]route.Connector{
			{Name: "cheap", Spaces: []route.Space{{Pattern: "*", Cost: 1}}, SmartHosts: host},
			{Name: "dear", Spaces: []route.Space{{Pattern: "*", Cost: 2}}, SmartHosts: host},
		})
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		up := map[string]bool{"dear": true}
		tries := map[string]int{}
		c := Connector{Attempter: attempter(func(_ context.Context, hop route.Hop, m smtpout.Message) smtpout.Result {
			time.Sleep(time.Second)
			mu.Lock()
			defer mu.Unlock()
			tries[hop.Connector]++
			if up[hop.Connector] {
				return answer(m, relayed)
			}
			return answer(m, noRoute)
		})}
		q := newFakeQueue(t)
		router := &tableRouter{table: table}
		q.router = router
		s, stop := start(t, q, c, func(o *Options) {
			o.Connectors = func(string) (Connector, bool) { return c, true }
			o.Router = router
		})
		router.down = s.Down
		send := func(n int) {
			for range n {
				q.add(router.Route(route.Query{Recipient: address(t, "bob@example.com")}).Hop, nil, "bob@example.com")
			}
		}
		relayedAll := func(what string) {
			t.Helper()
			q.mu.Lock()
			defer q.mu.Unlock()
			for _, m := range q.messages {
				if m.States[0].Disposition != mail.Relayed {
					t.Fatalf("%s: %s is %v at %v", what, m.ID, m.States[0].Disposition, m.hop)
				}
			}
		}
		send(100)
		time.Sleep(20 * time.Second)
		relayedAll("the cheap connector is down")
		mu.Lock()
		if tries["cheap"] > 40 || tries["dear"] != 100 {
			t.Errorf("tries = %v, want at most 40 of the cheap one and 100 of the dear one", tries)
		}
		mu.Unlock()
		send(10) // new mail does not even try
		time.Sleep(10 * time.Second)
		relayedAll("new mail")

		mu.Lock()
		up["dear"] = false // now both are down
		before := tries["cheap"] + tries["dear"]
		mu.Unlock()
		send(50)
		time.Sleep(3 * time.Hour)
		mu.Lock()
		if n := tries["cheap"] + tries["dear"] - before; n > 150 {
			t.Errorf("%d tries in three hours while both are down", n)
		}
		up["cheap"] = true
		mu.Unlock()
		time.Sleep(30 * time.Minute)
		relayedAll("the cheap connector is back")
		mu.Lock()
		before = tries["cheap"]
		mu.Unlock()
		send(10)
		time.Sleep(time.Minute)
		mu.Lock()
		if n := tries["cheap"] - before; n != 10 {
			t.Errorf("%d tries of the cheap connector for 10 messages after it was back", n)
		}
		mu.Unlock()
		_ = stop()
	})
}
