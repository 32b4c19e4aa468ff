package deliver

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"waybill/relay/mail"
	"waybill/relay/route"
	"waybill/relay/smtpout"
)

// lookAgain has q be looked at every 250 ms, as the queue does with hops that get
// nothing at the moment.
func lookAgain(q *fakeQueue) (stop func()) {
	tick := time.NewTicker(250 * time.Millisecond)
	ended := make(chan struct{})
	go func() {
		for {
			select {
			case <-tick.C:
				q.mu.Lock()
				q.wake()
				q.mu.Unlock()
			case <-ended:
				return
			}
		}
	}()
	return func() {
		tick.Stop()
		close(ended)
	}
}

// TestHangingHopsDelayNobody has many more hops hang than there are places, each
// with several messages: a message for a hop that is well known is relayed within
// 250 ms, the time after which the queue looks again; one for a hop that is new, and
// fine, after those that came before it were tried once, 120 in 30 seconds, and
// within a second once those that hang are known.
func TestHangingHopsDelayNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(t)
		defer lookAgain(q)()
		var mu sync.Mutex
		at := map[string]time.Time{}
		hangs := func(hop route.Hop) bool { return hop.Name[0] == 'x' }
		s, stop := start(t, q, Connector{
			Retry: Retry{Schedule: []time.Duration{time.Minute}},
			Attempter: attempter(func(ctx context.Context, hop route.Hop, m smtpout.Message) smtpout.Result {
				if hangs(hop) {
					timer := time.NewTimer(30 * time.Second)
					defer timer.Stop()
					select {
					case <-timer.C:
					case <-ctx.Done():
					}
					return answer(m, mail.Outcome{Disposition: mail.Deferred, Verb: "CONNECT", Class: mail.ClassTimeout})
				}
				mu.Lock()
				defer mu.Unlock()
				at[hop.Name] = time.Now()
				return answer(m, relayed)
			}),
		}, func(o *Options) { o.Workers = 40; o.DrainTimeout = time.Second })
		relayedIn := func(name string, bound time.Duration) {
			t.Helper()
			began := time.Now()
			q.add(route.Hop{Connector: "internet", Name: name}, nil, "bob@example.com")
			time.Sleep(bound)
			mu.Lock()
			defer mu.Unlock()
			if when := at[name]; when.Before(began) {
				t.Errorf("%s has nothing after %s", name, bound)
			}
		}
		relayedIn("good.example", time.Second)
		const hanging = 300 // 40 places, 160 attempts under way at most
		for i := range hanging {
			for range 3 {
				m := q.add(route.Hop{Connector: "internet", Name: fmt.Sprintf("x%d.example", i)}, nil, "bob@example.com")
				q.mu.Lock()
				m.due = m.due.Add(-time.Hour) // before everything else
				q.mu.Unlock()
			}
		}
		time.Sleep(5 * time.Second)
		for range 5 {
			relayedIn("good.example", 250*time.Millisecond)
			time.Sleep(time.Second)
		}
		if now, _ := s.Active(); now > 160*3/4+1 {
			t.Errorf("%d attempts under way, want three quarters of 160 at most", now)
		}
		relayedIn("new.example", 2*time.Minute)
		time.Sleep(5 * time.Minute) // all that hang were tried, and are tried again and again
		for i := range 5 {
			relayedIn(fmt.Sprintf("new%d.example", i), time.Second)
			relayedIn("good.example", 250*time.Millisecond)
			time.Sleep(10 * time.Second)
		}
		_ = stop()
		for k := range standings {
			if p, l := s.share.placed[k].Load(), s.share.slow[k].Load(); p != 0 || l != 0 {
				t.Errorf("standing %d has %d and %d attempts at the end, want none", k, p, l)
			}
		}
		s.share.sweep(time.Now().Add(24 * time.Hour))
		if n := len(s.share.of); n != 0 {
			t.Errorf("%d hops are remembered for ever", n)
		}
	})
}

func TestStanding(t *testing.T) {
	now := time.Now()
	timeout := []mail.Outcome{{Disposition: mail.Deferred, Class: mail.ClassTimeout, Verb: "."}}
	for _, test := range []struct {
		name    string
		verdict verdict
		out     []mail.Outcome
		linger  int // of two that are under way
		want    standing
	}{
		{"nothing known", inconclusive, nil, 0, standingNew},
		{"answered", reached, []mail.Outcome{relayed}, 0, standingGood},
		{"refused, but it answered", reached, []mail.Outcome{{Disposition: mail.Deferred, Remote: true, Class: mail.ClassGreylist}}, 0, standingGood},
		{"cannot be reached", unreachable, nil, 0, standingBad},
		{"silent at the end", reached, timeout, 0, standingBad},
		{"half of what is under way takes long", reached, []mail.Outcome{relayed}, 1, standingBad},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newShares(8)
			a, b := s.enter(internet), s.enter(internet)
			s.learn(internet, test.verdict, test.out)
			if test.linger > 0 {
				a.linger()
			}
			s.mu.RLock()
			got := s.standing(internet)
			s.mu.RUnlock()
			if got != test.want {
				t.Errorf("standing = %d, want %d", got, test.want)
			}
			a.leave(now)
			a.linger() // comes too late
			b.leave(now)
			for k := range standings {
				if p, l := s.placed[k].Load(), s.slow[k].Load(); p != 0 || l != 0 {
					t.Errorf("standing %d has %d and %d attempts at the end, want none", k, p, l)
				}
			}
		})
	}
}
