package backoff

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"waybill/relay/mail"
	"waybill/relay/route"
)

// said is a temporary refusal as package smtpout gives it.
func said(verb string, code int, enhanced, text string) mail.Outcome {
	return mail.Outcome{Disposition: mail.Deferred, Remote: true, Verb: verb, Reply: mail.Reply{Code: code, Enhanced: enhanced, Text: text}}
}

func TestDefault(t *testing.T) {
	rules := Default()
	for _, test := range []struct {
		name     string
		provider string
		said     mail.Outcome
		want     string // rule and mode, or empty
	}{
		{"Microsoft 365, client submission", "m365", said("DATA", 432, "4.3.2", "Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information."), "m365-concurrency single"},
		{"Microsoft 365, sender thread limit", "m365", said(".", 432, "4.3.2", "STOREDRV.ClientSubmit; sender thread limit exceeded"), "m365-concurrency single"},
		{"Microsoft 365, server busy", "m365", said("RCPT", 451, "4.7.500", "Server busy. Please try again later from [192.0.2.1]. (S77719)"), "m365-server-busy slow"},
		{"Outlook.com, rate by reputation", "outlook", said("CONNECT", 421, "", "RP-001 (BAY004-MC1F3) Unfortunately, some messages from 192.0.2.1 weren't sent."), "outlook-rate slow"},
		{"Google, unusual rate", "google", said(".", 421, "4.7.28", "Gmail has detected an unusual rate of unsolicited mail originating from your IP Netblock."), "google-rate slow"},
		{"Google, unusual rate, old code", "google", said(".", 421, "4.7.0", "[192.0.2.1] Our system has detected an unusual rate of unsolicited mail originating from your IP address."), "google-unusual-rate slow"},
		{"Yahoo, TSS04", "yahoo", said("MAIL", 421, "4.7.0", "[TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints - 4.16.55.1"), "yahoo-volume pause"},
		{"Yahoo, TS03", "yahoo", said("MAIL", 421, "4.7.1", "[TS03] All messages from 192.0.2.1 will be permanently deferred"), "yahoo-volume pause"},
		{"Yahoo, TSS09", "yahoo", said("MAIL", 421, "4.7.1", "[TSS09] All messages from 192.0.2.1 will be permanently deferred; Retrying will NOT succeed."), "yahoo-blocked pause"},
		{"Apple", "apple", said("MAIL", 450, "4.1.8", "[HME1] This message was temporarily deferred"), "apple-deferred pause"},
		{"Comcast", "other", said("CONNECT", 421, "", "mx.example RL000003 throttled"), "comcast-rate slow"},
		{"Orange", "other", said("CONNECT", 421, "", "mwinf5c04 ME Trop de connexions, veuillez verifier votre configuration. Too many connections, slow down. LPN105_104"), "orange-connections single"},
		{"Postfix, too many connections", "other", said("CONNECT", 421, "4.7.0", "mx.example Error: too many connections from 192.0.2.1"), "connections single"},
		{"Exim, too many concurrent", "other", said("CONNECT", 421, "", "Too many concurrent SMTP connections; please try again later."), "connections single"},
		{"Postfix, message rate", "other", said("MAIL", 450, "4.7.1", "Error: too much mail from 192.0.2.1"), "rate slow"},
		{"rate limited", "other", said("RCPT", 451, "4.7.1", "You are being rate limited"), "rate slow"},
		{"greylisted", "other", said("RCPT", 450, "4.2.0", "Greylisted, see http://postgrey.schweikert.ch/help/example.com.html"), ""},
		{"mailbox full", "google", said("RCPT", 452, "4.2.2", "The email account that you tried to reach is over quota."), ""},
		{"a user's own rate", "google", said("RCPT", 450, "4.2.1", "The user you are trying to contact is receiving mail at a rate that prevents additional messages from being delivered."), ""},
		{"no such user", "other", said("RCPT", 550, "5.1.1", "too many connections, but no such user"), ""},
		{"relayed", "other", mail.Outcome{Disposition: mail.Relayed, Remote: true, Reply: mail.Reply{Code: 250, Text: "rate limit"}}, ""},
		{"our own words", "other", mail.Outcome{Disposition: mail.Deferred, Reply: mail.Reply{Code: 451, Text: "too many connections"}}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := ""
			if r, ok := rules.Match(test.provider, &test.said); ok {
				got = r.Name + " " + string(r.Do)
			}
			if got != test.want {
				t.Errorf("matched %q, want %q", got, test.want)
			}
		})
	}
	for _, r := range rules {
		if r.Why == "" {
			t.Errorf("rule %s does not say why", r.Name)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, test := range []struct {
		name string
		file string
		want string
	}{
		{"unknown key", "- {name: a, do: pause, code: [421], patern: x}", "patern"},
		{"no name", "- {do: pause, code: [421]}", "name is needed"},
		{"name twice", "- {name: a, do: pause, code: [421]}\n- {name: a, do: slow, code: [421]}", "is taken"},
		{"unknown mode", "- {name: a, do: stop, code: [421]}", "none of pause, single, slow, none"},
		{"every reply", "- {name: a, do: pause, verb: [MAIL]}", "every reply"},
		{"bad pattern", "- {name: a, do: pause, text: '('}", "missing closing"},
		{"pattern too long", "- {name: a, do: pause, text: '" + strings.Repeat("x", 2000) + "'}", "longer than"},
		{"code of a success", "- {name: a, do: pause, code: [250]}", "250 is not"},
		{"negative", "- {name: a, do: slow, code: [421], per_minute: -1}", "negative"},
		{"for ever", "- {name: a, do: pause, code: [421], for: 1000h}", "at most"},
		{"not a duration", "- {name: a, do: pause, code: [421], for: soon}", "soon"},
		{"no list", "name: a", "cannot unmarshal"},
		{"two lines", "- {name: \"a\\nb\", do: pause, code: [421]}", "one line"},
		{"a bomb", "a: &a [x]\nb: &b [*a, *a]\n", "cannot unmarshal"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := Parse([]byte(test.file)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
	if rules, err := Parse(nil); err != nil || len(rules) != 0 {
		t.Errorf("an empty file gives %v, %v", rules, err)
	}
}

func TestWith(t *testing.T) {
	own, err := Parse([]byte("- {name: connections, do: none, text: too many connections}\n- {name: mine, do: pause, enhanced: ['4.9.*']}"))
	if err != nil {
		t.Fatal(err)
	}
	rules := Default().With(own)
	if len(rules) != len(Default())+1 {
		t.Errorf("%d rules, want one more than %d", len(rules), len(Default()))
	}
	busy := said("CONNECT", 421, "4.7.0", "too many connections")
	if r, ok := rules.Match("other", &busy); ok {
		t.Errorf("rule %s matched what was switched off", r.Name)
	}
	mine := said("MAIL", 451, "4.9.9", "whatever")
	if r, ok := rules.Match("other", &mine); !ok || r.Name != "mine" {
		t.Errorf("the own rule did not match")
	}
}

var hop = route.Hop{Connector: "out", Name: "example.com"}

func rulesOf(t *testing.T, file string) Rules {
	t.Helper()
	rules, err := Parse([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

const three = `
- {name: full, do: single, text: connections, for: 10m}
- {name: fast, do: slow, text: fast, per_minute: 40, connections: 3, for: 10m, longest: 30m}
- {name: away, do: pause, text: away, for: 1h, longest: 3h}
- {name: often, do: pause, text: busy, hits: 3, within: 1m}
`

func TestSet(t *testing.T) {
	s := NewSet(rulesOf(t, three))
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	tell := func(at, began time.Duration, text string) string {
		c, changed := s.Tell(hop, "other", []mail.Outcome{said("MAIL", 451, "4.7.1", text)}, start.Add(began), start.Add(at))
		if !changed {
			return ""
		}
		return fmt.Sprintf("%s to %s by %s, %d, %dx%d until %s", c.Was, c.Mode, c.Rule, c.Times, c.Connections, c.PerMinute, c.Until.Sub(start))
	}
	sweep := func(at time.Duration) string {
		var out []string
		for _, c := range s.Sweep(start.Add(at)) {
			out = append(out, fmt.Sprintf("%s to %s", c.Was, c.Mode))
		}
		return strings.Join(out, ", ")
	}
	const m = time.Minute
	for _, step := range []struct {
		name string
		got  func() string
		want string
	}{
		{"nothing known", func() string { return tell(0, 0, "greylisted") }, ""},
		{"slow", func() string { return tell(0, 0, "too fast") }, "none to slow by fast, 1, 3x40 until 10m0s"},
		{"an attempt that was under way", func() string { return tell(1*m, -1*m, "too fast") }, ""},
		{"still too fast", func() string { return tell(2*m, 1*m, "too fast") }, "slow to slow by fast, 2, 3x20 until 22m0s"},
		{"and again, bounded", func() string { return tell(3*m, 3*m, "too fast") }, "slow to slow by fast, 3, 3x10 until 33m0s"},
		{"stronger", func() string { return tell(4*m, 3*m, "connections") }, "slow to single by full, 1, 1x0 until 14m0s"},
		{"weaker does not count", func() string { return tell(5*m, 4*m, "too fast") }, ""},
		{"strongest", func() string { return tell(6*m, 5*m, "go away") }, "single to pause by away, 1, 0x0 until 1h6m0s"},
		{"too early", func() string { return sweep(60 * m) }, ""},
		{"ended", func() string { return sweep(66 * m) }, "pause to none"},
		{"once more", func() string { return tell(67*m, 66*m, "go away") }, "none to pause by away, 2, 0x0 until 3h7m0s"},
		{"ended again", func() string { return sweep(200 * m) }, "pause to none"},
		{"up to the longest", func() string { return tell(201*m, 201*m, "go away") }, "none to pause by away, 3, 0x0 until 6h21m0s"},
		{"ended a third time", func() string { return sweep(400 * m) }, "pause to none"},
		{"forgotten", func() string { return sweep(40 * 60 * m) }, ""},
		{"as if for the first time", func() string { return tell(2401*m, 2401*m, "go away") }, "none to pause by away, 1, 0x0 until 41h1m0s"},
	} {
		if got := step.got(); got != step.want {
			t.Errorf("%s: %q, want %q", step.name, got, step.want)
		}
	}
}

func TestHits(t *testing.T) {
	s := NewSet(rulesOf(t, three))
	start := time.Now()
	busy := []mail.Outcome{said("CONNECT", 421, "", "busy")}
	for _, step := range []struct {
		at   time.Duration
		want bool
	}{{0, false}, {10 * time.Second, false}, {2 * time.Minute, false}, {130 * time.Second, false}, {131 * time.Second, true}} {
		if _, changed := s.Tell(hop, "other", busy, start, start.Add(step.at)); changed != step.want {
			t.Errorf("after %v: changed %t, want %t", step.at, changed, step.want)
		}
	}
}

func TestOf(t *testing.T) {
	s := NewSet(rulesOf(t, three))
	now := time.Now()
	if _, ok := s.Of(hop, now); ok {
		t.Error("a hop that has asked for nothing is slowed")
	}
	s.Tell(hop, "other", []mail.Outcome{said("MAIL", 451, "", "go away")}, now, now)
	if st, ok := s.Of(hop, now); !ok || st.Mode != Pause || st.Reply.Text != "go away" {
		t.Errorf("state %+v", st)
	}
	if _, ok := s.Of(hop, now.Add(time.Hour)); ok {
		t.Error("the mode goes on after its time")
	}
	if n := s.Count(now); n[Pause] != 1 {
		t.Errorf("count %v", n)
	}
	if ended := s.Use(rulesOf(t, "- {name: other, do: slow, code: [421]}"), now); len(ended) != 1 {
		t.Errorf("%d modes ended with their rules, want 1", len(ended))
	}
	if _, ok := s.Of(hop, now); ok {
		t.Error("the mode goes on without its rule")
	}
	s.Use(rulesOf(t, three), now)
	s.Tell(hop, "other", []mail.Outcome{said("MAIL", 451, "", "go away")}, now, now)
	if ended := s.Clear(now); len(ended) != 1 || len(s.Count(now)) != 0 {
		t.Errorf("%d modes cleared, %v left", len(ended), s.Count(now))
	}
}

func FuzzParse(f *testing.F) {
	f.Add(shipped)
	f.Add([]byte(three))
	f.Add([]byte("- {name: a, do: pause, text: '(?i)((a*)*)*', code: [421]}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		rules, err := Parse(data)
		if err != nil {
			return
		}
		o := said("MAIL", 421, "4.7.0", string(data))
		if r, ok := rules.Match("other", &o); ok && r.Do == None {
			t.Errorf("rule %s asks for nothing and matched", r.Name)
		}
	})
}
