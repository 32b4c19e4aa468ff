package failure

import (
	_ "embed"
	"strings"
	"testing"

	"waybill/relay/mail"
	"waybill/relay/relaytest"
)

//go:embed testdata/replies.tsv
var replies string

// reply is a row of testdata/replies.tsv: a reply as it was seen or as its
// sender documents it, with addresses replaced.
type reply struct {
	name, verb, class, rule, permanence, text string
}

func readReplies(t testing.TB) (rows []reply) {
	t.Helper()
	for line := range strings.Lines(replies) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(line, "\t")
		if len(f) != 6 {
			t.Fatalf("replies.tsv: %d fields in %q", len(f), line)
		}
		rows = append(rows, reply{f[0], f[1], f[2], f[3], f[4], f[5]})
	}
	return rows
}

func TestReplies(t *testing.T) {
	rules := Default()
	tests := readReplies(t)
	if len(tests) < 120 {
		t.Errorf("%d replies, want 120 at least", len(tests))
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o := outcome(t, test.verb, test.text)
			got := rules.Explain(o)
			if string(got.Class) != test.class || got.Rule != test.rule || string(got.Permanence) != test.permanence {
				t.Errorf("Explain(%s: %s) =\n%s\t%s\t%s, want\n%s\t%s\t%s", test.verb, test.text, got.Class, got.Rule, got.Permanence, test.class, test.rule, test.permanence)
			}
			if got.Explanation == "" || len(got.Explanation) > maxPeople+60 {
				t.Errorf("explanation %q", got.Explanation)
			}
		})
	}
}

// outcome is that of a reply whose lines are parted by \n.
func outcome(t testing.TB, verb, text string) *mail.Outcome {
	t.Helper()
	o := relaytest.Outcome(t, verb, strings.ReplaceAll(text, `\n`, "\n"))
	return &o
}

func TestExplain(t *testing.T) {
	rules := Default()
	for _, test := range []struct {
		name    string
		outcome mail.Outcome
		want    Meaning
	}{
		{"relayed", mail.Outcome{Disposition: mail.Relayed, Reply: mail.Reply{Code: 250}}, Meaning{}},
		{"named by smtpout", mail.Outcome{Class: mail.ClassTLS, ClassRule: RuleLocal, Reply: mail.Reply{Code: 550, Text: "user unknown"}}, Meaning{mail.ClassTLS, RuleLocal, mail.Temporary, "TLS could not be had"}},
		{"a login that was refused", mail.Outcome{Class: mail.ClassAuth, ClassRule: RuleLocal, Remote: true, Verb: "AUTH", Reply: mail.Reply{Code: 535, Enhanced: "5.7.8", Text: "authentication failed"}}, Meaning{mail.ClassAuth, RuleLocal, mail.Permanent, "the next hop wants a login, or did not accept ours; look at"}},
		{"in other words", mail.Outcome{Class: mail.ClassAuth, ClassRule: RuleLocal, Remote: true, Verb: "AUTH", Reply: mail.Reply{Code: 535, Text: "no"}}, Meaning{mail.ClassAuth, RuleLocal, mail.Permanent, "the next hop refused our login; look at"}},
		{"in words that no rule knows", mail.Outcome{Class: mail.ClassAuth, ClassRule: RuleLocal, Remote: true, Verb: "EHLO", Reply: mail.Reply{Code: 334, Text: "eh"}}, Meaning{mail.ClassAuth, RuleLocal, mail.Temporary, "the send connector could not log in; look at"}},
		{"a domain that is not there", mail.Outcome{Disposition: mail.Bounced, Class: mail.ClassBadDomain, ClassRule: RuleLocal, Reply: mail.Reply{Code: 550, Enhanced: "5.1.2", Text: "no such domain"}}, Meaning{mail.ClassBadDomain, RuleLocal, mail.Permanent, "the domain does not exist"}},
		{"a loop", mail.Outcome{Disposition: mail.Bounced, Class: mail.ClassBadDomain, ClassRule: RuleLocal, Reply: mail.Reply{Code: 550, Enhanced: "5.4.6", Text: "us"}}, Meaning{mail.ClassBadDomain, RuleLocal, mail.Permanent, "the MX records of the domain point at ourselves"}},
		{"an MX without address", mail.Outcome{Disposition: mail.Bounced, Class: mail.ClassDNS, ClassRule: RuleLocal, Reply: mail.Reply{Code: 550, Enhanced: "5.4.4", Text: "host mx.example has no address"}}, Meaning{mail.ClassDNS, RuleLocal, mail.Permanent, "the MX records of the domain name a host that has no address"}},
		{"a smart host without address", mail.Outcome{Disposition: mail.Deferred, Class: mail.ClassDNS, ClassRule: RuleLocal, Reply: mail.Reply{Code: 451, Enhanced: "4.4.4", Text: "smart host mx.example has no address"}}, Meaning{mail.ClassDNS, RuleLocal, mail.Temporary, "the smart host of the send connector has no address"}},
		{"a private address", mail.Outcome{Disposition: mail.Bounced, Class: mail.ClassBadDomain, ClassRule: RuleLocal, Reply: mail.Reply{Code: 550, Enhanced: "5.4.4", Text: "mx.example[10.0.0.1]:25 is not a public address"}}, Meaning{mail.ClassBadDomain, RuleLocal, mail.Permanent, "the MX records of the domain lead to an address that is not public"}},
		{"no answer to connections", mail.Outcome{Disposition: mail.Deferred, Class: mail.ClassTimeout, ClassRule: RuleLocal, Verb: "CONNECT", Reply: mail.Reply{Code: 451, Enhanced: "4.4.1", Text: "connect to mx.example: timeout"}}, Meaning{mail.ClassTimeout, RuleLocal, mail.Temporary, "the next hop does not answer connections"}},
		{"lost in the middle", mail.Outcome{Disposition: mail.Deferred, Class: mail.ClassConnect, ClassRule: RuleLocal, Verb: "RCPT", Reply: mail.Reply{Code: 451, Enhanced: "4.4.2", Text: "connection lost at RCPT: closed by the peer"}}, Meaning{mail.ClassConnect, RuleLocal, mail.Temporary, "the next hop closed the connection in the middle"}},
		{"silent in the middle", mail.Outcome{Disposition: mail.Deferred, Class: mail.ClassTimeout, ClassRule: RuleLocal, Verb: "RCPT", Reply: mail.Reply{Code: 451, Enhanced: "4.4.2", Text: "timeout at RCPT"}}, Meaning{mail.ClassTimeout, RuleLocal, mail.Temporary, "the connection broke, or the next hop fell silent"}},
		{"lost at the end", mail.Outcome{Disposition: mail.Deferred, Class: mail.ClassConnect, ClassRule: RuleLocal, Verb: ".", Reply: mail.Reply{Code: 451, Enhanced: "4.4.2", Text: "connection lost at .: closed by the peer"}}, Meaning{mail.ClassConnect, RuleLocal, mail.Temporary, "the connection broke after the whole message was sent"}},
		{"silent at the end", mail.Outcome{Disposition: mail.Deferred, Class: mail.ClassTimeout, ClassRule: RuleLocal, Verb: ".", Reply: mail.Reply{Code: 451, Enhanced: "4.4.2", Text: "timeout at ."}}, Meaning{mail.ClassTimeout, RuleLocal, mail.Temporary, "the next hop got the whole message"}},
		{"no time left", mail.Outcome{Disposition: mail.Deferred, Class: mail.ClassTimeout, ClassRule: RuleLocal, Verb: "RCPT", Reply: mail.Reply{Code: 451, Enhanced: "4.4.7", Text: "no time left for the attempt at RCPT"}}, Meaning{mail.ClassTimeout, RuleLocal, mail.Temporary, "the attempt took all the time"}},
		{"not SMTP", mail.Outcome{Disposition: mail.Deferred, Class: mail.ClassOther, ClassRule: RuleLocal, Verb: "EHLO", Reply: mail.Reply{Code: 451, Enhanced: "4.5.0", Text: "mx.example: malformed reply to EHLO"}}, Meaning{mail.ClassOther, RuleLocal, mail.Temporary, "the next hop does not speak SMTP"}},
		{"our certificate", mail.Outcome{Disposition: mail.Deferred, Class: mail.ClassTLS, ClassRule: RuleLocal, Verb: "EHLO", Reply: mail.Reply{Code: 451, Enhanced: "4.7.5", Text: "the host ended TLS at EHLO: tls: certificate required"}}, Meaning{mail.ClassTLS, RuleLocal, mail.Temporary, "the next hop wants a certificate from us"}},
		{"REQUIRETLS", mail.Outcome{Disposition: mail.Bounced, Class: mail.ClassTLS, ClassRule: RuleLocal, Verb: "MAIL", Reply: mail.Reply{Code: 550, Enhanced: "5.7.10", Text: "the sender requires TLS"}}, Meaning{mail.ClassTLS, RuleLocal, mail.Permanent, "the sender demands TLS with a proven name"}},
		{"named without a rule", mail.Outcome{Class: mail.ClassDNS}, Meaning{mail.ClassDNS, RuleLocal, mail.Temporary, "the name servers of the domain"}},
		{"named for good", mail.Outcome{Disposition: mail.Bounced, Class: mail.ClassSize, ClassRule: RuleLocal, Reply: mail.Reply{Enhanced: "5.3.4"}}, Meaning{mail.ClassSize, RuleLocal, mail.Permanent, "the message is larger"}},
		{"loop", mail.Outcome{Disposition: mail.Bounced, Reply: mail.Reply{Enhanced: "5.4.6", Text: "MX points at ourselves"}}, Meaning{mail.ClassBadDomain, "local-loop", mail.Permanent, "the MX records"}},
		{"connect", mail.Outcome{Disposition: mail.Deferred, Reply: mail.Reply{Enhanced: "4.4.1", Text: "connection refused"}}, Meaning{mail.ClassConnect, "local-connect", mail.Temporary, "no connection"}},
		{"lost", mail.Outcome{Disposition: mail.Deferred, Reply: mail.Reply{Enhanced: "4.4.2"}}, Meaning{mail.ClassTimeout, "local-lost", mail.Temporary, "the connection broke"}},
		{"null MX", mail.Outcome{Disposition: mail.Bounced, Reply: mail.Reply{Enhanced: "5.1.10"}}, Meaning{mail.ClassBadDomain, "local-domain", mail.Permanent, "the domain does not exist"}},
		{"no words", mail.Outcome{Disposition: mail.Deferred}, Meaning{mail.ClassOther, "local-other", mail.Temporary, "Waybill's own reason"}},
		{"the next hop's words do not count for ours", mail.Outcome{Disposition: mail.Deferred, Reply: mail.Reply{Text: "user unknown"}}, Meaning{mail.ClassOther, "local-other", mail.Temporary, "Waybill's own reason"}},
		{"quota", mail.Outcome{Disposition: mail.Deferred, Class: mail.ClassThrottled, ClassRule: RuleQuota}, Meaning{mail.ClassThrottled, RuleQuota, mail.Temporary, "the send connector's own quota"}},
		{"unroutable", mail.Outcome{Disposition: mail.Deferred, Class: mail.ClassBadDomain, ClassRule: RuleUnroutable}, Meaning{mail.ClassBadDomain, RuleUnroutable, mail.Temporary, "no send connector takes"}},
		{"recorded rule", mail.Outcome{Disposition: mail.Deferred, Remote: true, Class: mail.ClassThrottled, ClassRule: "gmail-rate"}, Meaning{mail.ClassThrottled, "gmail-rate", mail.Temporary, "Google sees an unusual rate"}},
		{"another's words are kept", mail.Outcome{Disposition: mail.Deferred, Class: mail.ClassThrottled, ClassRule: "busy", Explanation: "mine"}, Meaning{mail.ClassThrottled, "busy", mail.Temporary, "mine"}},
		{"expired", mail.Outcome{Disposition: mail.Expired, Class: mail.ClassConnect, ClassRule: RuleExpired, Reply: mail.Reply{Enhanced: "4.4.7"}}, Meaning{mail.ClassConnect, RuleExpired, mail.Temporary, "given up at the end of its lifetime: no connection"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := rules.Explain(&test.outcome)
			said := strings.HasPrefix(got.Explanation, test.want.Explanation) && (got.Explanation == "") == (test.want.Explanation == "")
			got.Explanation, test.want.Explanation = "", ""
			if got != test.want || !said {
				t.Errorf("Explain() = %+v (%q), want %+v", got, rules.Explain(&test.outcome).Explanation, test.want)
			}
			rules.Complete(&test.outcome)
			once := test.outcome
			if rules.Complete(&test.outcome); test.outcome != once {
				t.Errorf("Complete() twice makes %+v, want %+v", test.outcome, once)
			}
		})
	}
}

// The words that an operator reads when Microsoft throttles a mailbox.
func TestExplanation(t *testing.T) {
	o := outcome(t, ".", "554 5.2.2 mailbox submission quota exceeded; SubmissionQuotaExceededException")
	Default().Complete(o)
	const want = "Microsoft throttles this mailbox at 30 messages a minute; Waybill paces it, nothing to do"
	if o.Explanation != want || o.Class != mail.ClassThrottled || o.ClassRule != "ms-mailbox-rate" || o.Permanence != mail.Temporary {
		t.Errorf("Complete() made %+v, want %q", o, want)
	}
	before := *o
	if Default().Complete(o); *o != before {
		t.Errorf("twice makes %+v, want %+v", *o, before)
	}
}

func TestDefault(t *testing.T) {
	used := map[mail.Class]bool{}
	for _, r := range Default().List() {
		used[r.Class] = true
		if strings.HasSuffix(r.Means, ".") || strings.HasSuffix(r.Act, ".") {
			t.Errorf("rule %s: means %q, act %q: no full stop, they are joined", r.Name, r.Means, r.Act)
		}
	}
	for _, c := range mail.Classes() {
		if !used[c] {
			t.Errorf("no rule gives class %s", c)
		}
	}
}

func TestWith(t *testing.T) {
	mine, err := Parse([]byte("- {name: mine, class: policy, means: theirs, text: Go AWAY, permanence: temporary}\n- {name: gmail-rate, class: other, means: nothing, enhanced: 4.7.28, code: [4]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	all := Default().With(mine)
	if got, want := len(all.List()), len(Default().List())+1; got != want {
		t.Errorf("With() has %d rules, want %d", got, want)
	}
	for _, test := range []struct {
		name string
		text string
		want string
	}{
		{"mine comes first", "550 5.1.1 user unknown, go away", "mine"},
		{"mine takes the place of another", "421 4.7.28 Gmail has detected an unusual rate of mail", "gmail-rate"},
		{"the rest is asked after it", "550 5.1.1 user unknown", "text-unknown"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := all.Explain(outcome(t, "RCPT", test.text))
			if got.Rule != test.want || test.want == "gmail-rate" && got.Class != mail.ClassOther {
				t.Errorf("Explain(%s) = %+v, want rule %s", test.text, got, test.want)
			}
		})
	}
}

func TestParseProblems(t *testing.T) {
	const good = "- {name: a, class: policy, means: m, text: [x]}\n"
	for _, test := range []struct {
		name string
		file string
		want string
	}{
		{"no YAML", "- {name: a\n- b", "line 2"},
		{"no list", "name: a\n", "line 1: the file is no list of rules"},
		{"no rule", good + "- mine\n", "line 2: a rule must be keys and values"},
		{"unknown key", good + "- name: b\n  class: policy\n  means: m\n  words: [x]\n", "line 5: unknown key \"words\" (known are name"},
		{"unknown class", good + "\n\n- {name: b, class: bad, means: m, text: [x]}\n", "line 4: class: unknown word \"bad\" (known are invalid_recipient"},
		{"unknown permanence", "- {name: b, class: policy, permanence: maybe, means: m, text: [x]}\n", "permanence: unknown word"},
		{"name taken", good + good, "line 2: the name \"a\" is taken by the rule in line 1"},
		{"reserved name", "- {name: expired, class: policy, means: m, text: [x]}\n", "is reserved"},
		{"bad name", "- {name: \"A b\", class: policy, means: m, text: [x]}\n", "name \"A b\" is not of small letters"},
		{"no name", "- {class: policy, means: m, text: [x]}\n", "has no name"},
		{"no meaning", "- {name: b, class: policy, text: [x]}\n", "rule b has no means"},
		{"two lines", "- {name: b, class: policy, means: \"a\\nb\", text: [x]}\n", "means must be one line"},
		{"too long", "- {name: b, class: policy, means: " + strings.Repeat("m", 301) + ", text: [x]}\n", "longer than 300 octets"},
		{"everything", "- {name: b, class: policy, means: m}\n", "rule b would match every reply (give code"},
		{"bad code", "- {name: b, class: policy, means: m, code: [250]}\n", "code: \"250\""},
		{"bad enhanced", "- {name: b, class: policy, means: m, enhanced: [5.7]}\n", "enhanced: \"5.7\""},
		{"bad verb", "- {name: b, class: policy, means: m, verb: [QUIT]}\n", "verb: \"QUIT\""},
		{"bad text", "- {name: b, class: policy, means: m, text: [\"*x\"]}\n", "text \"*x\""},
		{"empty list", "- {name: b, class: policy, means: m, text: []}\n", "text must be a list"},
		{"key twice", "- {name: b, class: policy, means: m, text: [x], class: policy}\n", "class is given twice"},
		{"alias", "- &r {name: b, class: policy, means: m, text: [x]}\n- *r\n", "line 2: a rule must be"},
		{"too large", strings.Repeat("#", maxFile+1), "larger than 1 MiB"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Parse([]byte(test.file))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Parse() = %v, want %q", err, test.want)
			}
		})
	}
	for _, empty := range []string{"", "# nothing\n", "[]\n", "null\n"} {
		if rules, err := Parse([]byte(empty)); err != nil || len(rules.List()) != 0 {
			t.Errorf("Parse(%q) = %v, %v, want no rules", empty, rules, err)
		}
	}
}

func TestParseReply(t *testing.T) {
	for _, test := range []struct {
		name string
		in   string
		want mail.Reply // zero: none
	}{
		{"one line", "550 5.1.1 No such user", mail.Reply{Code: 550, Enhanced: "5.1.1", Text: "No such user"}},
		{"no enhanced code", " 421 bye\r\n", mail.Reply{Code: 421, Text: "bye"}},
		{"code alone", "554", mail.Reply{Code: 554}},
		{"several lines", "550-5.7.1 one\r\n550 5.7.1 two\r\n", mail.Reply{Code: 550, Enhanced: "5.7.1", Text: "one\ntwo"}},
		{"lines without codes", "550-5.7.1 one\n  two", mail.Reply{Code: 550, Enhanced: "5.7.1", Text: "one\ntwo"}},
		{"written newline", `550-one\n550 two`, mail.Reply{Code: 550, Text: "one\ntwo"}},
		{"number in the text", "421 #4.4.5 Too many", mail.Reply{Code: 421, Enhanced: "4.4.5", Text: "Too many"}},
		{"a success", "250 2.0.0 OK", mail.Reply{}},
		{"words", "no such user", mail.Reply{}},
		{"nothing", " \n", mail.Reply{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParseReply(test.in)
			if got != test.want || (err != nil) != (test.want == mail.Reply{}) {
				t.Errorf("ParseReply(%q) = %+v, %v, want %+v", test.in, got, err, test.want)
			}
		})
	}
}

func FuzzExplain(f *testing.F) {
	rules := Default()
	f.Add(550, "5.1.1", "RCPT", "User unknown", true)
	f.Add(0, "", "", "", false)
	f.Add(-1, "x.y.z", "*", strings.Repeat("a*b", 1000), true)
	f.Fuzz(func(t *testing.T, code int, enhanced, verb, text string, remote bool) {
		m := rules.Explain(&mail.Outcome{Disposition: mail.Bounced, Reply: mail.Reply{Code: code, Enhanced: enhanced, Text: text}, Verb: verb, Remote: remote})
		if m.Class == mail.ClassNone || m.Rule == "" || m.Permanence == "" || m.Explanation == "" {
			t.Errorf("Explain() = %+v", m)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(Shipped(), "550 5.7.1 go away")
	f.Add("- {name: a, class: policy, means: m, text: [x*y], enhanced: [\"x.7.*\"], code: [4], verb: [rcpt]}\n", "421 x")
	f.Add("- &a {name: a}\n- *a\n", "")
	f.Add("- name: [", "550-\n550")
	f.Fuzz(func(t *testing.T, file, said string) {
		reply, err := ParseReply(said)
		if err == nil && (reply.Code < 400 || reply.Code > 599) {
			t.Errorf("ParseReply(%q) = %+v", said, reply)
		}
		rules, err := Parse([]byte(file))
		if err != nil {
			if strings.TrimSpace(err.Error()) == "" {
				t.Error("a problem without words")
			}
			return
		}
		for _, r := range rules.List() {
			if r.Name == "" || r.Class == mail.ClassNone || r.Means == "" {
				t.Errorf("rule %+v", r)
			}
		}
		m := rules.Explain(&mail.Outcome{Disposition: mail.Bounced, Remote: true, Reply: reply, Verb: "RCPT"})
		if m.Class == mail.ClassNone || m.Rule == "" || m.Explanation == "" {
			t.Errorf("Explain() = %+v", m)
		}
	})
}

func BenchmarkExplain(b *testing.B) {
	rules := Default()
	o := outcome(b, "RCPT", "451 - "+strings.Repeat("words that no rule knows, ", 8))
	b.ReportAllocs()
	for b.Loop() {
		rules.Explain(o)
	}
}
