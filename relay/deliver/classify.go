package deliver

import (
	"strings"

	"waybill/relay/mail"
)

// RuleLocal is the rule of classes that package smtpout names itself, because
// it knows the cause better than its words tell.
const RuleLocal = "local"

const ruleUnknown = "unknown"

// maxClassified is how much of a reply the rules read. The meaning comes early;
// the rest is addresses of help pages.
const maxClassified = 1 << 10

// Classify says why o failed, and which rule decided that. It is empty for
// what did not fail. The rules are in rules.go.
func Classify(o mail.Outcome) (class mail.Class, rule string) {
	switch {
	case o.Disposition == mail.Relayed:
		return mail.ClassNone, ""
	case o.Class != mail.ClassNone && o.ClassRule != "":
		return o.Class, o.ClassRule
	case o.Class != mail.ClassNone:
		return o.Class, RuleLocal
	}
	text := strings.ToLower(strings.ReplaceAll(o.Reply.Text[:min(len(o.Reply.Text), maxClassified)], "\n", " "))
	for i := range rules {
		if rules[i].matches(&o, text) {
			return rules[i].class, rules[i].name
		}
	}
	return mail.ClassOther, ruleUnknown
}

// Rule is one rule of [Classify], for the reference.
type Rule struct {
	Name  string
	Class mail.Class
	Why   string // what the reply means, in words
}

// Rules lists the rules of [Classify] in their order.
func Rules() []Rule {
	list := make([]Rule, 0, len(rules)+2)
	list = append(list, Rule{RuleLocal, "", "the relay knows the cause itself, as when no connection could be made"})
	for _, r := range rules {
		list = append(list, Rule{r.name, r.class, r.why})
	}
	return append(list, Rule{ruleUnknown, mail.ClassOther, "no rule knows the reply"})
}

func (r *rule) matches(o *mail.Outcome, text string) bool {
	if r.local == o.Remote {
		return false
	}
	return (r.code == "" || matchCode(r.code, o.Reply.Code)) &&
		(r.verb == "" || hasWord(r.verb, o.Verb)) &&
		(r.enh == "" || matchEnhanced(r.enh, o.Reply.Enhanced)) &&
		(r.text == nil || matchText(r.text, text))
}

func matchCode(prefixes string, code int) bool {
	if code < 100 || code > 999 {
		return false
	}
	digits := [3]byte{byte('0' + code/100), byte('0' + code/10%10), byte('0' + code%10)}
	for p := range strings.SplitSeq(prefixes, " ") {
		if strings.HasPrefix(string(digits[:]), p) {
			return true
		}
	}
	return false
}

func hasWord(words, word string) bool {
	for w := range strings.SplitSeq(words, " ") {
		if w == word {
			return true
		}
	}
	return false
}

func matchEnhanced(patterns, code string) bool {
	if len(code) < 5 {
		return false
	}
	for p := range strings.SplitSeq(patterns, " ") {
		c := code
		if p[0] == 'x' {
			p, c = p[1:], c[1:]
		}
		if rest, ok := strings.CutSuffix(p, "*"); ok && strings.HasPrefix(c, rest) || c == p {
			return true
		}
	}
	return false
}

func matchText(patterns []string, text string) bool {
	for _, p := range patterns {
		if matchPattern(p, text) {
			return true
		}
	}
	return false
}

// matchPattern reports whether the parts of pattern between stars stand in text
// in their order.
func matchPattern(pattern, text string) bool {
	for {
		part, rest, more := strings.Cut(pattern, "*")
		i := strings.Index(text, part)
		if i < 0 {
			return false
		}
		if !more {
			return true
		}
		pattern, text = rest, text[i+len(part):]
	}
}
