package deliver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/queue"
	"waybill/relay/relaytest"
	"waybill/relay/route"
	"waybill/relay/smtpout"

	"pgregory.net/rapid"
)

func TestSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(t)
		began := time.Now()
		var attempts []time.Duration
		_, stop := start(t, q, Connector{Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
			attempts = append(attempts, time.Since(began))
			return answer(m, greylisted)
		})}, nil)
		q.add(internet, nil, "bob@example.com")
		time.Sleep(50 * time.Hour)
		if err := stop(); err != nil {
			t.Fatal(err)
		}

		var want []time.Duration
		at := time.Duration(0)
		for i := 0; at < 48*time.Hour; i++ {
			want = append(want, at)
			at += defaultSchedule[min(i, len(defaultSchedule)-1)]
		}
		if !slices.Equal(attempts, want) {
			t.Errorf("attempts at %v,\nwant %v", attempts, want)
		}
		all := q.settlements()
		last := all[len(all)-1]
		o := last.Outcomes[0]
		if !last.NoAttempt || last.at.Sub(began) != 48*time.Hour || o.Disposition != mail.Expired || o.Reply.Enhanced != "4.4.7" || o.Class != mail.ClassGreylist {
			t.Errorf("last settlement after %v: %+v", last.at.Sub(began), last)
		}
		if want := "delivery time expired after 48h; last: 450 4.7.1 greylisted"; o.Reply.Text != want {
			t.Errorf("reply %q, want %q", o.Reply.Text, want)
		}
		facts, drafts := q.reports()
		if len(facts) != 2 || facts[0].Kind != "delayed" || facts[1].Kind != "failed" || len(drafts) != 2 {
			t.Fatalf("reports %+v", facts)
		}
		for _, s := range all {
			if len(s.Reports) > 0 && s.Reports[0].Fact.Kind == "delayed" {
				if age := s.at.Sub(began); age < 4*time.Hour || age > 4*time.Hour+10*time.Minute || !s.DelaySent {
					t.Errorf("the delay was reported after %v", age)
				}
			}
		}
		text := string(last.Reports[0].Content)
		for _, want := range []string{"Given up after 2 days", "Status: 4.4.7", "Diagnostic-Code: smtp; 450 4.7.1 greylisted", "To: <alice@example.org>"} {
			if !strings.Contains(text, want) {
				t.Errorf("report without %q:\n%s", want, text)
			}
		}
	})
}

func TestJitter(t *testing.T) {
	for _, test := range []struct {
		name   string
		random float64
		want   time.Duration
	}{
		{"lowest", 0, 54 * time.Second},
		{"middle", 0.5, time.Minute},
		{"highest", 1, 66 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := jitter(time.Minute, test.random); got != test.want {
				t.Errorf("jitter(1m, %v) = %v, want %v", test.random, got, test.want)
			}
		})
	}
}

func TestPause(t *testing.T) {
	r := Retry{Schedule: []time.Duration{time.Second, 0, time.Hour}}
	for _, test := range []struct {
		name    string
		attempt int
		want    time.Duration
	}{
		{"none yet", 0, time.Second}, {"first", 1, time.Second}, {"second, too short", 2, shortestPause}, {"third", 3, time.Hour}, {"the last repeats", 1000, time.Hour},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := r.Pause(test.attempt); got != test.want {
				t.Errorf("Pause(%d) = %v, want %v", test.attempt, got, test.want)
			}
		})
	}
}

// TestHopDown has many messages for a hop that nobody answers at: the attempts
// do not grow with the messages, and when it is back everything goes soon.
func TestHopDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const messages = 300
		q := newFakeQueue(t)
		var mu sync.Mutex
		attempts, active, peak, first := 0, 0, 0, 0
		up := false
		s, stop := start(t, q, Connector{Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
			mu.Lock()
			attempts++
			active++
			if up && first == 0 {
				first = active
			}
			peak = max(peak, active)
			mu.Unlock()
			time.Sleep(30 * time.Second) // a connect timeout, or a slow transaction
			mu.Lock()
			defer mu.Unlock()
			active--
			if !up {
				return answer(m, noRoute)
			}
			return answer(m, relayed)
		})}, func(o *Options) { o.Workers = 100 })
		for range messages {
			q.add(internet, nil, "bob@example.com")
		}
		other := q.add(route.Hop{Connector: "internet", Name: "elsewhere.example"}, nil, "carol@elsewhere.example")
		time.Sleep(3 * time.Hour)
		mu.Lock()
		// 40 at once before anybody knew, then one at each step of the schedule, for each hop.
		if attempts > 40+60 {
			t.Errorf("%d attempts while the hop was down", attempts)
		}
		up, peak = true, 0
		mu.Unlock()
		if got := s.HopsDown(); got != 2 {
			t.Errorf("HopsDown() = %d, want 2", got)
		}
		time.Sleep(30 * time.Minute)
		q.mu.Lock()
		for _, m := range q.messages {
			if m.States[0].Disposition != mail.Relayed {
				t.Errorf("%s is %v, due in %v", m.ID, m.States[0].Disposition, time.Until(m.due))
				break
			}
		}
		if other.States[0].Disposition != mail.Relayed {
			t.Errorf("the other hop's message is %v", other.States[0].Disposition)
		}
		q.mu.Unlock()
		if s.HopsDown() != 0 {
			t.Errorf("a hop is still down")
		}
		if first != 1 || peak > 41 {
			t.Errorf("recovery began with %d attempts at once and came to %d", first, peak)
		}
		_ = stop()
		if got := len(q.settlements()); got > messages+1+100 {
			t.Errorf("%d settlements: waiting must not be written down", got)
		}
	})
}

// TestHopDownDelayAndExpiry: messages that never get an attempt of their own are
// reported late and expire in time all the same.
func TestHopDownDelayAndExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(t)
		began := time.Now()
		_, stop := start(t, q, Connector{
			Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result { return answer(m, noRoute) }),
			Retry:     Retry{Lifetime: 10 * time.Hour},
		}, nil)
		for range 100 {
			q.add(internet, nil, "bob@example.com")
		}
		time.Sleep(11 * time.Hour)
		_ = stop()
		delayed, failed := map[mail.QueueID]int{}, map[mail.QueueID]int{}
		for _, s := range q.settlements() {
			for _, r := range s.Reports {
				switch r.Fact.Kind {
				case "delayed":
					delayed[s.id]++
					if age := s.at.Sub(began); age < 4*time.Hour || age > 4*time.Hour+20*time.Minute {
						t.Errorf("the delay was reported after %v", age)
					}
				case "failed":
					failed[s.id]++
					if age := s.at.Sub(began); age < 10*time.Hour || age > 10*time.Hour+time.Minute {
						t.Errorf("expired after %v", age)
					}
				}
			}
		}
		for _, m := range q.messages {
			if delayed[m.ID] != 1 || failed[m.ID] != 1 || m.States[0].Disposition != mail.Expired {
				t.Fatalf("%s: %d delayed and %d failed reports, now %v", m.ID, delayed[m.ID], failed[m.ID], m.States[0].Disposition)
			}
		}
	})
}

func TestProbeNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(t)
		var up atomic.Bool
		s, stop := start(t, q, Connector{Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
			if up.Load() {
				return answer(m, relayed)
			}
			return answer(m, noRoute)
		})}, nil)
		m := q.add(internet, nil, "bob@example.com")
		time.Sleep(65 * time.Minute)
		up.Store(true)
		s.ProbeNow()
		q.mu.Lock() // what the retry of an operator does
		m.due = time.Now()
		q.wake()
		q.mu.Unlock()
		synctest.Wait()
		_ = stop()
		if got := m.States[0].Disposition; got != mail.Relayed {
			t.Errorf("the message is %v, want relayed at once", got)
		}
		if got := s.HopsDown(); got != 0 {
			t.Errorf("HopsDown() = %d, want 0", got)
		}
	})
}

func TestDamagedContent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(t)
		_, stop := start(t, q, Connector{Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
			if _, err := m.Open(); !errors.Is(err, queue.ErrDamaged) {
				t.Errorf("Open() = %v", err)
			}
			return answer(m, mail.Outcome{Disposition: mail.Deferred, Class: mail.ClassOther})
		})}, nil)
		m := q.message(internet, "bob@example.com")
		m.damaged = true
		q.put(m)
		synctest.Wait()
		_ = stop()
		if got := q.settlements(); len(got) != 0 || m.poison == nil {
			t.Errorf("settlements %+v, poison %v", got, m.poison)
		}
	})
}

// TestConnectorReplaced has a reload close the connector that an attempt was
// about to use: the message goes through its successor, at once.
func TestConnectorReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(t)
		attempts := 0
		_, stop := start(t, q, Connector{Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
			if attempts++; attempts > 1 {
				return answer(m, relayed)
			}
			r := answer(m, mail.Outcome{Disposition: mail.Deferred, Verb: "CONNECT", Class: mail.ClassOther, Reply: mail.Reply{Code: 451, Enhanced: "4.3.2"}})
			r.Closed = true
			return r
		})}, nil)
		q.add(internet, nil, "bob@example.com")
		synctest.Wait()
		_ = stop()
		got := q.settlements()
		if attempts != 2 || len(got) != 1 || got[0].Outcomes[0].Disposition != mail.Relayed {
			t.Errorf("%d attempts, settlements %+v; want the second to relay", attempts, got)
		}
	})
}

func TestDispose(t *testing.T) {
	for _, test := range []struct {
		name    string
		outcome mail.Outcome
		want    mail.Disposition
	}{
		{"relayed", relayed, mail.Relayed},
		{"4xx", greylisted, mail.Deferred},
		{"5xx to RCPT", refused, mail.Bounced},
		{"5xx to MAIL", relaytest.Outcome(t, "MAIL", "550 5.7.1 no"), mail.Bounced},
		{"5xx to the dot", relaytest.Outcome(t, ".", "554 5.7.1 spam"), mail.Bounced},
		{"5xx banner", relaytest.Outcome(t, "CONNECT", "554 - no"), mail.Deferred},
		{"521 banner", relaytest.Outcome(t, "CONNECT", "521 - no mail here"), mail.Bounced},
		{"556 to EHLO", relaytest.Outcome(t, "EHLO", "556 - no mail here"), mail.Bounced},
		{"5xx to AUTH", relaytest.Outcome(t, "AUTH", "535 5.7.8 no"), mail.Deferred},
		{"5xx to STARTTLS", relaytest.Outcome(t, "STARTTLS", "554 - no"), mail.Deferred},
		{"552 too many recipients", relaytest.Outcome(t, "RCPT", "552 - Too many recipients"), mail.Deferred},
		{"552 mailbox full", relaytest.Outcome(t, "RCPT", "552 5.2.2 full"), mail.Bounced},
		{"our own refusal", mail.Outcome{Disposition: mail.Bounced, Verb: "EHLO", Reply: mail.Reply{Enhanced: "5.3.4"}}, mail.Bounced},
		{"nothing", mail.Outcome{}, mail.Deferred},
		{"nonsense", mail.Outcome{Disposition: mail.Moved}, mail.Deferred},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := dispose(&test.outcome); got != test.want {
				t.Errorf("dispose(%+v) = %v, want %v", test.outcome, got, test.want)
			}
		})
	}
}

func TestJudge(t *testing.T) {
	lost := mail.Outcome{Disposition: mail.Deferred, Verb: "DATA", Class: mail.ClassTimeout}
	for _, test := range []struct {
		name     string
		outcomes []mail.Outcome
		want     verdict
	}{
		{"relayed", []mail.Outcome{relayed}, reached},
		{"refused recipient", []mail.Outcome{greylisted}, reached},
		{"no connection", []mail.Outcome{noRoute, noRoute}, unreachable},
		{"some relayed", []mail.Outcome{relayed, noRoute}, reached},
		{"lost at the content", []mail.Outcome{lost}, reached},
		{"banner", []mail.Outcome{relaytest.Outcome(t, "CONNECT", "421 - busy")}, unreachable},
		{"login", []mail.Outcome{relaytest.Outcome(t, "AUTH", "454 - later")}, unreachable},
		{"DNS", []mail.Outcome{{Disposition: mail.Deferred, Class: mail.ClassDNS}}, unreachable},
		{"unreadable content", []mail.Outcome{{Disposition: mail.Deferred, Class: mail.ClassOther}}, inconclusive},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := judge(test.outcomes); got != test.want {
				t.Errorf("judge() = %d, want %d", got, test.want)
			}
		})
	}
}

func TestSettlement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, facts := newFakeQueue(t), &sink{}
		_, stop := start(t, q, Connector{Attempter: attempter(func(_ context.Context, hop route.Hop, m smtpout.Message) smtpout.Result {
			if hop != internet || len(m.Envelope.Recipients) != 3 || m.Size != int64(len(content)+len("Received: by us\r\n")) || string(m.Trace) != "Received: by us\r\n" {
				t.Errorf("attempt of %+v for %v", m, hop)
			}
			r := answer(m, relayed)
			r.Outcomes[1], r.Outcomes[2] = greylisted, refused
			r.Session, r.Provider, r.Reused, r.TLSVersion = "s1", "other", true, "1.3"
			r.Stages.Data = time.Second
			r.Transcript, r.Kept.Reason, r.Kept.Lines = []event.Line{{Text: "EHLO"}}, "failed", 1
			return r
		})}, func(o *Options) { o.Emitter = event.NewEmitter("n", facts) })
		q.add(internet, nil, "a@example.com", "b@example.com", "c@example.com")
		synctest.Wait()
		_ = stop()
		s := q.settlements()[0]
		a := s.Attempt
		if a.Disposition != mail.Bounced || a.Code != 550 || a.Class != mail.ClassInvalidRecipient || a.ClassRule == "" || a.Attempt != 1 ||
			a.OutSession != "s1" || a.Provider != "other" || !a.Reused || a.TLSVersion != "1.3" || a.TData != event.Secs(time.Second) ||
			a.RemoteName != "mx.example.com" || a.ConnectorOut != "internet" || a.Queue != "example.com" {
			t.Errorf("attempt %+v", a)
		}
		if len(facts.recs) != 1 || facts.recs[0].Message == "" || facts.recs[0].Session != "s1" {
			t.Fatalf("facts %+v", facts.recs)
		}
		if kept, ok := facts.recs[0].Event.(event.TranscriptKept); !ok || kept.Attempt != 1 || kept.Reason != "failed" || kept.RemoteName != "mx.example.com" || len(kept.Transcript) != 1 {
			t.Errorf("conversation %+v", kept)
		}
		if got := s.Next.Sub(s.at); got != time.Minute || !a.NextAttempt.Equal(s.Next) {
			t.Errorf("next attempt in %v (%v), want a minute", got, a.NextAttempt)
		}
		if len(s.Reports) != 1 || len(s.Reports[0].Fact.Recipients) != 1 || s.Reports[0].Fact.Recipients[0].Address != "c@example.com" {
			t.Errorf("reports %+v", s.Reports)
		}
	})
}

func TestReports(t *testing.T) {
	for _, test := range []struct {
		name       string
		notify     mail.Notify
		sender     string
		outcome    mail.Outcome
		dsn        bool // of the next hop
		kind       string
		suppressed string
	}{
		{"relayed", 0, "alice@example.org", relayed, false, "", ""},
		{"relayed, success asked", mail.NotifySuccess, "alice@example.org", relayed, false, "relayed", ""},
		{"relayed to a hop with DSN", mail.NotifySuccess, "alice@example.org", relayed, true, "", ""},
		{"relayed, null sender", mail.NotifySuccess, "", relayed, false, "", ""},
		{"bounced", 0, "alice@example.org", refused, true, "failed", ""},
		{"bounced, never", mail.NotifyNever, "alice@example.org", refused, false, "failed", "notify"},
		{"bounced, success only", mail.NotifySuccess, "alice@example.org", refused, false, "failed", "notify"},
		{"bounced, null sender", 0, "", refused, false, "failed", "null_sender"},
		{"deferred", 0, "alice@example.org", greylisted, false, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newFakeQueue(t)
				_, stop := start(t, q, Connector{Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
					r := answer(m, test.outcome)
					r.DSN = test.dsn
					return r
				})}, nil)
				q.add(internet, func(m *queue.Message) {
					m.Envelope.Sender = address(t, test.sender)
					m.Envelope.Recipients[0].Notify = test.notify
				}, "bob@example.com")
				synctest.Wait()
				_ = stop()
				facts, drafts := q.reports()
				if test.kind == "" {
					if len(facts) != 0 {
						t.Fatalf("reports %+v, want none", facts)
					}
					return
				}
				if len(facts) != 1 || facts[0].Kind != test.kind || facts[0].Suppressed != test.suppressed {
					t.Fatalf("reports %+v, want %s, suppressed %q", facts, test.kind, test.suppressed)
				}
				if got, want := len(drafts), btoi(test.suppressed == ""); got != want {
					t.Errorf("%d reports, want %d", got, want)
				}
				for _, d := range drafts {
					if !d.Envelope.Sender.IsNull() {
						t.Errorf("report from %v", d.Envelope.Sender)
					}
				}
			})
		})
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestWithoutAttempt(t *testing.T) {
	for _, test := range []struct {
		name   string
		hop    route.Hop
		after  time.Duration // when it is looked at
		want   mail.Disposition
		status string
	}{
		{"too large for every connector", route.Oversize, time.Second, mail.Bounced, "5.3.4"},
		{"unroutable waits", route.Unroutable, time.Hour, mail.Deferred, "4.4.4"},
		{"unroutable expires", route.Unroutable, 49 * time.Hour, mail.Expired, "4.4.7"},
		{"connector is gone", route.Hop{Connector: "gone", Name: "gone"}, time.Hour, mail.Deferred, "4.3.5"},
		{"connector never comes back", route.Hop{Connector: "gone", Name: "gone"}, 49 * time.Hour, mail.Expired, "4.4.7"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newFakeQueue(t)
				_, stop := start(t, q, Connector{Attempter: attempter(func(context.Context, route.Hop, smtpout.Message) smtpout.Result {
					t.Error("attempted")
					return smtpout.Result{}
				})}, nil)
				m := q.add(test.hop, nil, "bob@example.com")
				time.Sleep(test.after)
				_ = stop()
				if st := m.States[0]; st.Disposition != test.want || st.Last.Enhanced != test.status || st.Attempts != 0 {
					t.Errorf("state %+v, want %v %s", st, test.want, test.status)
				}
			})
		})
	}
}

func TestLongAttemptExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(t)
		_, stop := start(t, q, Connector{
			Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
				time.Sleep(2 * time.Minute)
				return answer(m, greylisted)
			}),
			Retry: Retry{Lifetime: time.Minute},
		}, nil)
		m := q.add(internet, nil, "bob@example.com")
		time.Sleep(3 * time.Minute)
		_ = stop()
		s := q.settlements()
		if len(s) != 1 || s[0].NoAttempt || m.States[0].Disposition != mail.Expired || !s[0].Attempt.NextAttempt.IsZero() {
			t.Errorf("settlements %+v", s)
		}
	})
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(t)
		var begun atomic.Int32
		_, stop := start(t, q, Connector{Attempter: attempter(func(ctx context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
			begun.Add(1)
			switch m.Envelope.Recipients[0].Address.Local {
			case "first": // so that the hop is well known
				return answer(m, relayed)
			case "slow":
				time.Sleep(10 * time.Second)
				return answer(m, relayed)
			case "uncertain":
				<-ctx.Done()
				return answer(m, mail.Outcome{Disposition: mail.Deferred, Verb: ".", Class: mail.ClassTimeout, Uncertain: true})
			}
			<-ctx.Done()
			return answer(m, noRoute)
		})}, func(o *Options) { o.DrainTimeout = 20 * time.Second; o.Workers = 3 })
		q.add(internet, nil, "first@example.com")
		synctest.Wait()
		slow := q.add(internet, nil, "slow@example.com")
		uncertain := q.add(internet, nil, "uncertain@example.com")
		hanging := q.add(internet, nil, "hanging@example.com")
		waiting := q.add(internet, nil, "waiting@example.com")
		synctest.Wait()
		began := time.Now()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 20*time.Second {
			t.Errorf("drained in %v, want the drain timeout", took)
		}
		if begun.Load() != 1+3 {
			t.Errorf("%d attempts began, want 4", begun.Load())
		}
		for _, test := range []struct {
			m        *fakeMessage
			want     mail.Disposition
			attempts int
		}{{slow, mail.Relayed, 1}, {uncertain, mail.Deferred, 1}, {hanging, mail.Queued, 0}, {waiting, mail.Queued, 0}} {
			if st := test.m.States[0]; st.Disposition != test.want || st.Attempts != test.attempts {
				t.Errorf("%v: %v after %d attempts, want %v after %d", test.m.Envelope.Recipients[0].Address, st.Disposition, st.Attempts, test.want, test.attempts)
			}
		}
	})
}

func TestPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, facts := newFakeQueue(t), &sink{}
		s, stop := start(t, q, Connector{Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
			if m.Envelope.Recipients[0].Address.Local == "bad" {
				panic("broken")
			}
			return answer(m, relayed)
		})}, func(o *Options) { o.Emitter = event.NewEmitter("n", facts) })
		bad := q.add(internet, nil, "bad@example.com")
		good := q.add(internet, nil, "good@example.com")
		synctest.Wait()
		if now, limit := s.Active(); now != 1 || limit != DefaultWorkers { // one worker waits in Claim
			t.Errorf("Active() = %d of %d", now, limit)
		}
		_ = stop()
		if bad.poison == nil || !strings.Contains(bad.poison.Error(), "broken") || good.States[0].Disposition != mail.Relayed {
			t.Errorf("poison %v, good %v", bad.poison, good.States[0].Disposition)
		}
		if got := facts.names(); !slices.Equal(got, []string{"panicked"}) {
			t.Errorf("facts %v", got)
		}
	})
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, facts := newFakeQueue(t), &sink{}
		began := time.Now()
		var mu sync.Mutex
		var at []time.Duration
		_, stop := start(t, q, Connector{
			Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
				mu.Lock()
				defer mu.Unlock()
				at = append(at, time.Since(began))
				return answer(m, relayed)
			}),
			Limits: Limits{MessagesPerMinute: 30},
		}, func(o *Options) { o.Emitter = event.NewEmitter("n", facts); o.Workers = 64 })
		for range 300 {
			q.add(internet, nil, "bob@example.com")
		}
		time.Sleep(11 * time.Minute)
		_ = stop()
		if len(at) < 295 {
			t.Errorf("%d messages in 11 minutes, want 300", len(at))
		}
		for i := 30; i < len(at); i++ {
			if d := at[i] - at[i-30]; d < time.Minute-time.Millisecond {
				t.Fatalf("31 messages within %v", d)
			}
		}
		if got := facts.names(); len(got) == 0 || len(got) > 10 || got[0] != "throttle_engaged" {
			t.Errorf("facts %v", got)
		}
		if got := len(q.settlements()); got != len(at) {
			t.Errorf("%d settlements for %d attempts", got, len(at))
		}
	})
}

func TestQueueFails(t *testing.T) {
	t.Run("claim", func(t *testing.T) {
		q := newFakeQueue(t)
		q.err = errStorage
		s := New(Options{Queue: q, Connectors: func(string) (Connector, bool) { return Connector{}, false }})
		if err := s.Run(context.Background()); !errors.Is(err, errStorage) {
			t.Errorf("Run() = %v, want %v", err, errStorage)
		}
	})
	t.Run("settle", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			q, facts := newFakeQueue(t), &sink{}
			q.settleErr = errStorage
			_, stop := start(t, q, Connector{Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
				q.mu.Lock()
				q.err = errStorage // as the real queue does
				q.mu.Unlock()
				return answer(m, relayed)
			})}, func(o *Options) { o.Emitter = event.NewEmitter("n", facts) })
			q.add(internet, nil, "bob@example.com")
			synctest.Wait()
			if err := stop(); !errors.Is(err, errStorage) {
				t.Errorf("Run() = %v, want %v", err, errStorage)
			}
			if got := facts.names(); !slices.Equal(got, []string{"remarked"}) {
				t.Errorf("facts %v", got)
			}
		})
	})
}

func TestReporter(t *testing.T) {
	q := newFakeQueue(t)
	m := q.add(internet, nil, "bob@example.com", "carol@example.com")
	bounced := mail.Outcome{Disposition: mail.Bounced, Reply: mail.Reply{Enhanced: "5.0.0", Text: "removed by an operator"}, Class: mail.ClassPolicy}
	r := Reporter{Hostname: "mx1.example.net"}
	reports := r.Reports(m.Message, []int{1}, []mail.Outcome{bounced})
	if len(reports) != 1 || !strings.Contains(string(reports[0].Content), "carol@example.com") || strings.Contains(string(reports[0].Content), "bob@example.com") {
		t.Fatalf("reports %+v", reports)
	}
	// What a next hop said before is not why.
	m.States[1].Last, m.States[1].LastHost, m.States[1].LastClass = mail.Reply{Code: 452, Enhanced: "4.2.2", Text: "mailbox full"}, "mx.example.com", mail.ClassMailboxFull
	content := string(r.Reports(m.Message, []int{1}, []mail.Outcome{bounced})[0].Content)
	if !strings.Contains(content, "Diagnostic-Code: X-Waybill; 5.0.0 removed by an operator\r\n") || strings.Contains(content, "mailbox full") || strings.Contains(content, "mx.example.com") {
		t.Errorf("report of what an operator ended after an attempt:\n%s", content)
	}
	m.Envelope.Sender = mail.Address{}
	reports = r.Reports(m.Message, []int{0, 1}, []mail.Outcome{bounced, bounced})
	if len(reports) != 1 || reports[0].Fact.Suppressed != "null_sender" || len(reports[0].Content) != 0 {
		t.Errorf("reports %+v", reports)
	}
}

// TestEveryRecipientOneOutcome lets a wild next hop answer anything: each
// recipient comes to exactly one end, in time, and no settlement is malformed
// (the fake queue checks).
func TestEveryRecipientOneOutcome(t *testing.T) {
	samples := []mail.Outcome{
		relayed, greylisted, refused, noRoute,
		{},
		{Disposition: mail.Moved},
		relaytest.Outcome(t, "CONNECT", "554 - no"), relaytest.Outcome(t, ".", "552 5.3.4 big"),
		{Disposition: mail.Deferred, Verb: ".", Uncertain: true, Class: mail.ClassTimeout},
	}
	rapid.Check(t, func(rt *rapid.T) {
		seeds := rapid.SliceOfN(rapid.IntRange(0, len(samples)), 50, 50).Draw(rt, "answers")
		sizes := rapid.SliceOfN(rapid.IntRange(1, 5), 1, 10).Draw(rt, "messages")
		limit := rapid.IntRange(0, 30).Draw(rt, "messages per minute")
		synctest.Test(t, func(t *testing.T) {
			q := newFakeQueue(t)
			var n atomic.Int64
			_, stop := start(t, q, Connector{
				Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
					var r smtpout.Result
					for range m.Envelope.Recipients {
						k := seeds[int(n.Add(1))%len(seeds)]
						if k == len(samples) { // too few outcomes
							break
						}
						r.Outcomes = append(r.Outcomes, samples[k])
					}
					return r
				}),
				Retry:  Retry{Lifetime: 6 * time.Hour},
				Limits: Limits{MessagesPerMinute: limit},
			}, nil)
			for i, size := range sizes {
				var rcpts []string
				for k := range size {
					rcpts = append(rcpts, fmt.Sprintf("r%d@example.com", k))
				}
				q.add(route.Hop{Connector: "internet", Name: fmt.Sprintf("d%d", i%3)}, nil, rcpts...)
			}
			time.Sleep(7 * time.Hour)
			_ = stop()
			ends := map[string]int{}
			for _, s := range q.settlements() {
				for _, o := range s.Outcomes {
					if o.Disposition != mail.Deferred {
						ends[string(s.id)+o.Recipient.String()]++
					}
				}
			}
			for _, m := range q.messages {
				for _, r := range m.Envelope.Recipients {
					if got := ends[string(m.ID)+r.Address.String()]; got != 1 {
						t.Errorf("%s %v came to %d ends, want 1", m.ID, r.Address, got)
					}
				}
			}
		})
	})
}

// BenchmarkScheduler measures the scheduler's own cost per message.
func BenchmarkScheduler(b *testing.B) {
	v := &queue.Lease{Message: &queue.Message{AcceptedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour), States: make([]queue.State, 1)}, Hop: internet, Index: []int{0}, Attempt: 1}
	v.Message.Envelope.Recipients = []mail.Recipient{{Address: mail.Address{Local: "bob", Domain: "example.com"}}}
	ctx, cancel := context.WithCancel(context.Background())
	q := &endless{view: v, left: int64(b.N), cancel: cancel}
	c := Connector{Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result { return answer(m, relayed) })}
	s := New(Options{Queue: q, Connectors: func(string) (Connector, bool) { return c, true }})
	b.ReportAllocs()
	b.ResetTimer()
	_ = s.Run(ctx)
}

// endless gives out one lease again and again.
type endless struct {
	fakeLease
	view   *queue.Lease
	left   int64
	cancel func()
}

func (e *endless) Claim(ctx context.Context) (Lease, error) {
	if e.left--; e.left < 0 {
		e.cancel()
		return nil, ctx.Err()
	}
	return e, nil
}
func (e *endless) View() *queue.Lease                             { return e.view }
func (e *endless) Settle(context.Context, queue.Settlement) error { return nil }
func (e *endless) Release()                                       {}
func (*endless) Probe()                                           {}

// TestLastChance has a message whose lifetime ended before the start, when nobody
// was there to try: it is attempted once before it goes back.
func TestLastChance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(t)
		for _, name := range []string{"fine", "greylisted"} {
			q.add(internet, func(m *queue.Message) {
				m.AcceptedAt = time.Now().Add(-5 * DefaultLifetime)
				m.ExpiresAt = m.AcceptedAt.Add(DefaultLifetime)
				m.States[0].LastAt = m.AcceptedAt
			}, name+"@example.com")
		}
		time.Sleep(time.Minute)
		_, stop := start(t, q, Connector{
			Retry: Retry{DelayDSN: -1},
			Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
				if m.Envelope.Recipients[0].Address.Local == "fine" {
					return answer(m, relayed)
				}
				return answer(m, mail.Outcome{Disposition: mail.Deferred, Remote: true, Verb: "RCPT", Reply: mail.Reply{Code: 450, Text: "greylisted"}})
			}),
		}, nil)
		time.Sleep(2 * time.Hour)
		_ = stop()
		got := map[mail.Disposition]int{}
		for _, s := range q.settlements() {
			if d := s.Outcomes[0].Disposition; d.Final() {
				got[d]++
				if d == mail.Expired && s.attempt < 1 {
					t.Error("it expired without an attempt")
				}
			}
		}
		if got[mail.Relayed] != 1 || got[mail.Expired] != 1 {
			t.Errorf("%v, want one relayed and one expired", got)
		}
	})
}

// TestNoLastChanceAfterDeadline has a message that was to be delivered by a time
// before the start, or to go back: it goes back.
func TestNoLastChanceAfterDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(t)
		q.add(internet, func(m *queue.Message) {
			m.Envelope.DeliverBy = mail.DeliverBy{Deadline: time.Now().Add(time.Minute), Return: true}
		}, "bob@example.com")
		time.Sleep(time.Hour)
		_, stop := start(t, q, Connector{Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
			t.Error("it was attempted after its deadline")
			return answer(m, relayed)
		})}, nil)
		time.Sleep(time.Minute)
		_ = stop()
		if s := q.settlements(); len(s) != 1 || s[0].Outcomes[0].Disposition != mail.Expired {
			t.Errorf("%d settlements, want one that it expired", len(s))
		}
	})
}

// TestLifetimeIsMeasuredSteadily: the clock may be set while an attempt is under
// way, and that must not end the message's life.
func TestLifetimeIsMeasuredSteadily(t *testing.T) {
	claimed := time.Now()
	v := &queue.Lease{
		Message: &queue.Message{AcceptedAt: claimed.Round(0), ExpiresAt: claimed.Round(0).Add(time.Hour)}, Claimed: claimed.Round(0), Shift: time.Hour,
	}
	s := New(Options{})
	got := s.expires(v, Retry{}, claimed)
	if d := got.Sub(claimed); d != 2*time.Hour {
		t.Errorf("it expires after %s, want 2h", d)
	}
	if !strings.Contains(got.String(), " m=") {
		t.Errorf("%s is compared by the wall clock", got)
	}
}
