package deliver

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"waybill/relay/backoff"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/route"
	"waybill/relay/smtpout"
)

func TestWindows(t *testing.T) {
	b := Limits{ConnectionsPerDestination: 16, StartPerDestination: 4, LeastPerDestination: 2}.bounds()
	var w windows
	now := time.Now()
	if got := w.size(internet, b); got != 4 {
		t.Errorf("begins with %d, want 4", got)
	}
	for range 5 {
		w.end(internet, b, w.begin(internet), strainNone, now)
	}
	if got := w.size(internet, b); got != 9 {
		t.Errorf("%d after 5 successes, want 9", got)
	}
	for range 50 {
		w.end(internet, b, w.begin(internet), strainNone, now)
	}
	if got := w.size(internet, b); got != 16 {
		t.Errorf("%d after many successes, want the most, 16", got)
	}
	epoch := w.begin(internet)
	for range 16 { // all that were under way fail together
		w.end(internet, b, epoch, strainSome, now)
	}
	if got := w.size(internet, b); got != 8 {
		t.Errorf("%d after one strain, want half", got)
	}
	for range 9 {
		w.end(internet, b, w.begin(internet), strainSome, now)
	}
	if got := w.size(internet, b); got != 2 {
		t.Errorf("%d after many strains, want the least, 2", got)
	}
	w.end(internet, b, w.begin(internet), strainUnknown, now)
	if got := w.size(internet, b); got != 2 {
		t.Errorf("%d after what tells nothing, want 2", got)
	}
	w.sweep(now.Add(time.Hour))
	if got := w.size(internet, b); got != 4 || len(w.of) != 0 {
		t.Errorf("%d of %d after a long time, want to begin anew", got, len(w.of))
	}
}

func TestStrained(t *testing.T) {
	deferred := func(class mail.Class, remote bool) mail.Outcome {
		return mail.Outcome{Disposition: mail.Deferred, Class: class, Remote: remote}
	}
	for _, test := range []struct {
		name     string
		outcomes []mail.Outcome
		want     strain
	}{
		{"relayed", []mail.Outcome{relayed}, strainNone},
		{"refused for good", []mail.Outcome{refused}, strainNone},
		{"timeout", []mail.Outcome{deferred(mail.ClassTimeout, false)}, strainSome},
		{"lost", []mail.Outcome{deferred(mail.ClassConnect, false)}, strainSome},
		{"throttled", []mail.Outcome{deferred(mail.ClassThrottled, true)}, strainSome},
		{"451 without a reason", []mail.Outcome{deferred(mail.ClassOther, true)}, strainSome},
		{"our own trouble", []mail.Outcome{deferred(mail.ClassOther, false)}, strainUnknown},
		{"greylist", []mail.Outcome{deferred(mail.ClassGreylist, true)}, strainUnknown},
		{"full mailbox", []mail.Outcome{deferred(mail.ClassMailboxFull, true)}, strainUnknown},
		{"one of two is throttled", []mail.Outcome{relayed, deferred(mail.ClassThrottled, true)}, strainSome},
		{"one of two is greylisted", []mail.Outcome{deferred(mail.ClassGreylist, true), relayed}, strainNone},
		{"DNS", []mail.Outcome{deferred(mail.ClassDNS, false)}, strainUnknown},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := strained(test.outcomes); got != test.want {
				t.Errorf("strain %d, want %d", got, test.want)
			}
		})
	}
}

const testRules = `
- {name: fast, do: slow, text: too fast, per_minute: 6, connections: 1, for: 10m, why: too many at once}
- {name: full, do: single, text: too many connections, for: 10m}
- {name: away, do: pause, text: go away, for: 30m, why: they are busy}
`

// gauge counts attempts at once.
type gauge struct {
	mu        sync.Mutex
	now, peak int
	at        []time.Duration
	began     time.Time
}

func (g *gauge) enter() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.now++
	g.peak = max(g.peak, g.now)
	g.at = append(g.at, time.Since(g.began))
}

func (g *gauge) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.now--
}

func TestBackoff(t *testing.T) {
	for _, test := range []struct {
		name  string
		reply string
		want  func(g *gauge) string // what is wrong with the attempts; the first one was refused
		facts []string
	}{
		{"pause", "go away", func(g *gauge) string {
			if len(g.at) != 41 || g.at[1] < 30*time.Minute {
				return "the pause was not kept"
			}
			return ""
		}, []string{"none>pause away", "pause>none away"}},
		{"slow", "too fast", func(g *gauge) string {
			for i := 2; i < len(g.at) && g.at[i] < 10*time.Minute; i++ {
				if g.at[i]-g.at[i-1] < 9*time.Second {
					return "more than six a minute"
				}
			}
			if len(g.at) != 41 || g.at[40] > 12*time.Minute {
				return "not all, or too slow"
			}
			return ""
		}, []string{"none>slow fast", "slow>none fast"}},
		{"one connection", "too many connections", func(g *gauge) string {
			if len(g.at) != 41 || g.peak > 1 {
				return "more than one at once"
			}
			return ""
		}, []string{"none>single full", "single>none full"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rules, err := backoff.Parse([]byte(testRules))
				if err != nil {
					t.Fatal(err)
				}
				q, facts := newFakeQueue(t), &sink{}
				g := &gauge{began: time.Now()}
				first := true
				s, stop := start(t, q, Connector{
					Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
						g.enter()
						defer g.leave()
						time.Sleep(time.Second)
						g.mu.Lock()
						defer g.mu.Unlock()
						if first {
							first = false
							return answer(m, mail.Outcome{Disposition: mail.Deferred, Remote: true, Verb: "MAIL", Reply: mail.Reply{Code: 451, Enhanced: "4.7.1", Text: test.reply}})
						}
						return answer(m, relayed)
					}),
					Retry: Retry{Schedule: []time.Duration{time.Minute}},
				}, func(o *Options) { o.Emitter = event.NewEmitter("n", facts); o.Backoff = rules })
				q.add(internet, nil, "bob@example.com")
				time.Sleep(2 * time.Second)
				if st := s.Slowed(internet); st.Mode == backoff.None || st.Reply.Text != test.reply || s.Backoffs()[st.Mode] != 1 {
					t.Errorf("the hop is treated as %+v", st)
				}
				for range 39 {
					q.add(internet, nil, "bob@example.com")
				}
				time.Sleep(2 * time.Hour)
				_ = stop()
				if wrong := test.want(g); wrong != "" {
					t.Errorf("%s: %d attempts, %d at once, at %v", wrong, len(g.at), g.peak, g.at)
				}
				var got []string
				for _, r := range facts.recs {
					if ev, ok := r.Event.(event.BackoffChanged); ok {
						got = append(got, fmt.Sprintf("%s>%s %s", ev.Was, ev.Mode, ev.Rule))
						if ev.Queue != internet.Name || ev.ConnectorOut != internet.Connector || (ev.Mode != "none") != (ev.Code == 451) {
							t.Errorf("fact %+v", ev)
						}
					}
				}
				if !slices.Equal(got, test.facts) {
					t.Errorf("facts %q, want %q", got, test.facts)
				}
				if len(s.paces.hops) != 0 {
					t.Errorf("%d paces are still kept", len(s.paces.hops))
				}
			})
		})
	}
}

func TestBackoffEndsByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules, err := backoff.Parse([]byte(testRules))
		if err != nil {
			t.Fatal(err)
		}
		q := newFakeQueue(t)
		var mu sync.Mutex
		attempts := 0
		s, stop := start(t, q, Connector{
			Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
				mu.Lock()
				defer mu.Unlock()
				if attempts++; attempts > 1 {
					return answer(m, relayed)
				}
				return answer(m, mail.Outcome{Disposition: mail.Deferred, Remote: true, Verb: "MAIL", Reply: mail.Reply{Code: 451, Text: "go away"}})
			}),
			Retry: Retry{Schedule: []time.Duration{time.Minute}},
		}, func(o *Options) { o.Backoff = rules })
		q.add(internet, nil, "bob@example.com")
		time.Sleep(5 * time.Minute)
		if mu.Lock(); attempts != 1 {
			t.Errorf("%d attempts while the hop wants none", attempts)
		}
		mu.Unlock()
		s.RetryNow()
		if st := s.Slowed(internet); st.Mode != backoff.None {
			t.Errorf("the hop is still treated as %s", st.Mode)
		}
		s.SetBackoff(nil)
		time.Sleep(30 * time.Minute) // what was given back is due at its time
		_ = stop()
		if attempts != 2 {
			t.Errorf("%d attempts, want 2", attempts)
		}
	})
}

func TestBackoffTellsTheSender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules, err := backoff.Parse([]byte(testRules))
		if err != nil {
			t.Fatal(err)
		}
		q := newFakeQueue(t)
		_, stop := start(t, q, Connector{
			Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
				return answer(m, mail.Outcome{Disposition: mail.Deferred, Remote: true, Verb: "MAIL", Reply: mail.Reply{Code: 451, Text: "go away"}})
			}),
			Retry: Retry{Schedule: []time.Duration{time.Minute}, DelayDSN: 10 * time.Minute},
		}, func(o *Options) { o.Backoff = rules })
		q.add(internet, nil, "bob@example.com")
		time.Sleep(time.Minute)
		for range 20 { // one of them is attempted when the mode ends, and the others wait
			q.add(internet, nil, "carol@example.com")
		}
		time.Sleep(2 * time.Hour)
		_ = stop()
		told := 0
		for _, s := range q.settlements() {
			if s.DelaySent && s.NoAttempt && strings.Contains(s.Outcomes[0].Reply.Text, "they are busy") && len(s.Reports) == 1 {
				told++
			}
		}
		if told == 0 {
			t.Error("no sender was told why the message waits")
		}
	})
}

func TestSlowAttemptsGiveTheirPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(t)
		defer lookAgain(q)()
		var mu sync.Mutex
		fine := 0
		s, stop := start(t, q, Connector{
			Attempter: attempter(func(ctx context.Context, hop route.Hop, m smtpout.Message) smtpout.Result {
				if hop != internet {
					<-ctx.Done() // it never answers
					return answer(m, mail.Outcome{Disposition: mail.Deferred, Verb: "CONNECT", Class: mail.ClassTimeout})
				}
				mu.Lock()
				defer mu.Unlock()
				fine++
				return answer(m, relayed)
			}),
		}, func(o *Options) { o.Workers = 8; o.DrainTimeout = time.Second })
		for i := range 100 {
			q.add(route.Hop{Connector: "internet", Name: fmt.Sprintf("deaf%d.example", i)}, nil, "bob@example.com")
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if now, limit := s.Active(); now != 6+1 || limit != 8 { // and one that waits for something to claim
			t.Errorf("%d attempts under way of %d, want the share of hops that nobody knows taken", now, limit)
		}
		m := q.add(internet, nil, "bob@example.com")
		q.mu.Lock()
		m.due = time.Now().Add(-time.Hour) // it is next
		q.mu.Unlock()
		time.Sleep(2 * patience)
		mu.Lock()
		if fine != 1 {
			t.Errorf("%d messages relayed beside hops that never answer, want 1", fine)
		}
		mu.Unlock()
		time.Sleep(10 * patience)
		synctest.Wait() // attempts that lose their patience now are counted twice for a moment
		if now, _ := s.Active(); now != (8+perSlow*8)/4*3+1 {
			t.Errorf("%d attempts under way, want the share of hops that nobody knows, and no more", now)
		}
		_ = stop()
		if now, _ := s.Active(); now != 0 {
			t.Errorf("%d attempts at the end", now)
		}
	})
}
