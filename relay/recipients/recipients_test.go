package recipients

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/policy"
	"waybill/relay/relaytest"
)

// sourceFunc answers as a function does.
type sourceFunc func(ctx context.Context, a mail.Address) (bool, error)

func (f sourceFunc) Lookup(ctx context.Context, a mail.Address) (bool, error) { return f(ctx, a) }

func address(t testing.TB, s string) mail.Address {
	t.Helper()
	a, err := mail.ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newChecker(t testing.TB, rec *relaytest.Recorder, rule Rule) *Checker {
	t.Helper()
	domains, err := policy.NewDomains([]policy.Domain{{Name: "example.com", Subdomains: true}, {Name: "open.example"}})
	if err != nil {
		t.Fatal(err)
	}
	if rule.Kind == "" {
		rule.Kind = event.LookupProbe
	}
	c, err := New(Options{Domains: domains, Rules: map[string]Rule{"EXAMPLE.com": rule}, Emitter: rec.Emitter()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// results are how the look-ups ended.
func results(rec *relaytest.Recorder) string {
	var words []string
	for _, r := range rec.Named("lookup_answered") {
		ev, _ := r.Event.(event.LookupAnswered)
		words = append(words, ev.Result)
	}
	return strings.Join(words, " ")
}

func TestCheck(t *testing.T) {
	onlyAnn := sourceFunc(func(_ context.Context, a mail.Address) (bool, error) {
		return strings.EqualFold(a.Local, "ann"), nil
	})
	down := sourceFunc(func(context.Context, mail.Address) (bool, error) { return false, errors.New("connection refused") })
	for _, test := range []struct {
		name   string
		rule   Rule
		to     string
		want   int // reply code; 0 is accepted
		reason string
		facts  string
	}{
		{"known", Rule{Source: onlyAnn}, "ann@example.com", 0, "", "known"},
		{"unknown", Rule{Source: onlyAnn}, "bob@example.com", 550, "unknown_recipient", "unknown"},
		{"sub-domain", Rule{Source: onlyAnn}, "bob@a.b.example.com", 550, "unknown_recipient", "unknown"},
		{"postmaster is always there", Rule{Source: onlyAnn}, "PostMaster@example.com", 0, "", ""},
		{"a domain without a rule", Rule{Source: onlyAnn}, "bob@open.example", 0, "", ""},
		{"not our domain", Rule{Source: onlyAnn}, "bob@elsewhere.example", 0, "", ""},
		{"cannot tell: defer", Rule{Source: down}, "ann@example.com", 450, "unverified_recipient", "unavailable"},
		{"cannot tell: accept", Rule{Source: down, Accept: true}, "ann@example.com", 0, "", "unavailable"},
	} {
		t.Run(test.name, func(t *testing.T) {
			rec := &relaytest.Recorder{}
			e := newChecker(t, rec, test.rule).Check(t.Context(), address(t, test.to))
			code, reason := 0, ""
			if e != nil {
				code, reason = e.Reply.Code, e.Reason
			}
			if code != test.want || reason != test.reason {
				t.Errorf("Check(%s) = %d %s, want %d %s", test.to, code, reason, test.want, test.reason)
			}
			if e != nil && strings.Contains(e.Reply.Text, "refused") {
				t.Errorf("the client is told what the operator alone should know: %s", e.Reply.Text)
			}
			if got := results(rec); got != test.facts {
				t.Errorf("facts = %q, want %q", got, test.facts)
			}
		})
	}
	if e := (*Checker)(nil).Check(t.Context(), address(t, "a@example.com")); e != nil {
		t.Errorf("a nil Checker refuses: %v", e)
	}
}

func TestMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exists, down := map[string]bool{"ann": true}, false
		asked := 0
		rec := &relaytest.Recorder{}
		c := newChecker(t, rec, Rule{Known: time.Hour, Unknown: time.Minute, Source: sourceFunc(func(_ context.Context, a mail.Address) (bool, error) {
			asked++
			if down {
				return false, errors.New("down")
			}
			return exists[a.Local], nil
		})})
		ask := func(local string, want, wantAsked int) {
			t.Helper()
			code := 0
			if e := c.Check(t.Context(), mail.Address{Local: local, Domain: "example.com"}); e != nil {
				code = e.Reply.Code
			}
			if code != want || asked != wantAsked {
				t.Errorf("%s: code %d after %d questions, want %d after %d", local, code, asked, want, wantAsked)
			}
		}
		ask("ann", 0, 1)
		ask("ann", 0, 1)
		ask("bob", 550, 2)
		ask("bob", 550, 2)
		exists["bob"] = true
		time.Sleep(time.Minute)
		ask("bob", 0, 3) // the "no" is forgotten
		ask("ann", 0, 3)
		time.Sleep(time.Hour)
		down = true
		ask("ann", 0, 4) // nobody answers: what was known serves
		ask("carl", 450, 5)
		ask("dora", 450, 6)
		ask("emil", 450, 6) // left alone by now
		ask("ann", 0, 6)
		time.Sleep(pause)
		ask("emil", 450, 7)
		ask("emil", 450, 7)
		down = false
		time.Sleep(pause)
		delete(exists, "ann")
		ask("ann", 550, 8)
		ask("ann", 550, 8)
		down = true
		time.Sleep(time.Minute)
		ask("ann", 450, 9) // what was known then is known no longer
		if got, want := results(rec), "known cached unknown cached known cached unavailable stale unavailable unavailable stale unavailable unknown cached unavailable"; got != want {
			t.Errorf("facts = %q, want %q", got, want)
		}
	})
}

// TestCrowd holds that a crowd with one question asks it once, that many
// questions wait for each other, and that nobody waits for longer than the rule
// says.
func TestCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked, now, most atomic.Int64
		hold := make(chan struct{})
		c := newChecker(t, &relaytest.Recorder{}, Rule{Concurrency: 3, Timeout: 10 * time.Second, Source: sourceFunc(func(ctx context.Context, _ mail.Address) (bool, error) {
			asked.Add(1)
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			defer now.Add(-1)
			select {
			case <-hold:
				return true, nil
			case <-ctx.Done():
				return false, ctx.Err()
			}
		})})
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if e := c.Check(t.Context(), mail.Address{Local: "ann", Domain: "example.com"}); e != nil {
					t.Errorf("Check = %v", e)
				}
			})
		}
		synctest.Wait()
		if asked.Load() != 1 {
			t.Errorf("%d questions, want 1", asked.Load())
		}
		hold <- struct{}{}
		wg.Wait()

		gone, leave := context.WithCancel(t.Context())
		wg.Go(func() {
			if e := c.Check(gone, mail.Address{Local: "x", Domain: "example.com"}); e == nil || e.Reply.Code != 450 {
				t.Errorf("Check = %v for one who left", e)
			}
		})
		synctest.Wait()
		leave()
		wg.Wait()

		start := time.Now()
		for local := range strings.SplitSeq("abcdefghij", "") {
			wg.Go(func() {
				if e := c.Check(t.Context(), mail.Address{Local: local, Domain: "example.com"}); e == nil || e.Reply.Code != 450 {
					t.Errorf("Check = %v, want 450", e)
				}
			})
		}
		wg.Wait()
		if most.Load() > 3 {
			t.Errorf("%d questions at once, want 3 at most", most.Load())
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("waited %v, want 10s at most", took)
		}
	})
}

type proberFunc func() mail.Outcome

func (f proberFunc) Probe(context.Context, mail.Address) mail.Outcome { return f() }

func TestProbe(t *testing.T) {
	remote := func(d mail.Disposition, verb string, code int, enhanced string) mail.Outcome {
		return mail.Outcome{Disposition: d, Remote: true, Verb: verb, Reply: mail.Reply{Code: code, Enhanced: enhanced, Text: "words"}}
	}
	for _, test := range []struct {
		name    string
		outcome mail.Outcome
		want    string // known, unknown or error
	}{
		{"taken", remote(mail.Relayed, "RCPT", 250, "2.1.5"), "known"},
		{"no such user", remote(mail.Bounced, "RCPT", 550, "5.1.1"), "unknown"},
		{"without an enhanced code", remote(mail.Bounced, "RCPT", 550, ""), "unknown"},
		{"no mailbox, 553", remote(mail.Bounced, "RCPT", 553, ""), "unknown"},
		{"Exchange", remote(mail.Bounced, "RCPT", 550, "5.1.10"), "unknown"},
		{"disabled mailbox", remote(mail.Bounced, "RCPT", 550, "5.2.1"), "unknown"},
		{"nothing said by the code", remote(mail.Bounced, "RCPT", 550, "5.0.0"), "unknown"},
		{"null sender not wanted", remote(mail.Bounced, "RCPT", 550, "5.1.7"), "error"},
		{"policy", remote(mail.Bounced, "RCPT", 550, "5.7.1"), "error"},
		{"mailbox full", remote(mail.Bounced, "RCPT", 552, "5.2.2"), "error"},
		{"blocked", remote(mail.Bounced, "RCPT", 554, ""), "error"},
		{"refused at MAIL", remote(mail.Bounced, "MAIL", 550, "5.1.1"), "error"},
		{"greylisted", remote(mail.Deferred, "RCPT", 450, "4.7.1"), "error"},
		{"a loop", mail.Outcome{Disposition: mail.Bounced, Verb: "CONNECT", Reply: mail.Reply{Code: 554, Enhanced: "5.4.6"}}, "error"},
		{"no answer", mail.Outcome{Disposition: mail.Deferred, Verb: "CONNECT"}, "error"},
	} {
		t.Run(test.name, func(t *testing.T) {
			known, err := Probe{proberFunc(func() mail.Outcome { return test.outcome })}.Lookup(t.Context(), mail.Address{})
			got := map[bool]string{true: "known", false: "unknown"}[known]
			if err != nil {
				got = "error"
			}
			if got != test.want {
				t.Errorf("Lookup = %s (%v), want %s", got, err, test.want)
			}
		})
	}
}

func TestNewRefusesNames(t *testing.T) {
	if _, err := New(Options{Rules: map[string]Rule{"exa mple": {}}}); err == nil {
		t.Error("New took a rule for what is no domain")
	}
}
