// Package failure knows what the replies of next hops mean: the class of a
// failure, whether it lasts, and who must do what about it.
//
// It exists because a code such as 550 5.7.1 says next to nothing, while the
// words beside it tell an expert at once what to do; the rules here are that
// expert. It promises that every failure gets one of the closed set of classes
// ([mail.Classes]), that the name of the rule that decided goes with it, and an
// explanation in one line; and that reading a reply costs bounded time,
// whatever a next hop says.
//
// The rules are data: rules.yaml holds those that come with the program, and an
// operator's file goes before it ([Rules.With]). To teach a server's words, add
// a rule there before the first that would take its replies too, and a reply to
// TestReplies; nothing else changes.
package failure

import (
	_ "embed" // rules.yaml
	"slices"
	"strconv"
	"strings"

	"waybill/relay/mail"
)

// Names of what no rule of the file decides. They stand in the record as
// class_rule, as the names of rules do.
const (
	RuleLocal      = "local"      // the class was named by who made the attempt, because it knows the cause
	RuleUnknown    = "unknown"    // no rule knows the reply
	RuleExpired    = "expired"    // the lifetime ended; the class is that of the last failure
	RuleUnroutable = "unroutable" // no send connector takes the recipient
	RuleOperator   = "operator"   // an operator gave the recipient up
	RuleQuota      = "quota"      // a quota of ours is used up
)

// own says what those names mean.
var own = map[string]Rule{
	RuleUnknown:    {Class: mail.ClassOther, Means: "no rule knows this reply", Act: "its own words may tell; a rule in replies.rules_file can teach it"},
	RuleUnroutable: {Class: mail.ClassBadDomain, Means: "no send connector takes the recipient", Act: "add an address space to a send connector; \"waybill route explain\" shows why none matches"},
	RuleOperator:   {Class: mail.ClassPolicy, Means: "an operator gave it up", Permanence: mail.Permanent, Act: "nothing to do"},
	RuleQuota:      {Class: mail.ClassThrottled, Means: "the send connector's own quota is used up", Permanence: mail.Temporary, Act: "Waybill goes on when the quota allows, nothing to do"},
}

// Rule is a pattern of replies and what they mean. Empty conditions hold for
// every reply; all that are given must hold, and of the texts one.
type Rule struct {
	Name       string
	Class      mail.Class
	Means      string          // what the reply means, for operators
	Act        string          // who must do what; may be empty
	Permanence mail.Permanence // empty: that of the reply code
	Code       []string        // prefixes of the reply code
	Enhanced   []string        // enhanced codes; "x" stands for any class, "*" at the end for any rest
	Verb       []string        // answered commands
	Text       []string        // lower case; "*" stands for anything between
	Local      bool            // only our own words; without it only the next hop's

	text [][]string // Text between the stars
}

// Rules are rules in the order in which they are asked. The zero Rules know
// nothing.
type Rules struct{ list []Rule }

// List are the rules in their order. It must not be changed.
func (r Rules) List() []Rule { return r.list }

//go:embed rules.yaml
var shipped []byte

// Shipped is the file of the rules that come with the program.
func Shipped() string { return string(shipped) }

// Default are the rules that come with the program.
func Default() Rules {
	rules, err := Parse(shipped)
	if err != nil {
		panic("failure: rules.yaml: " + err.Error()) // a test parses it
	}
	return rules
}

// With puts first before r. A rule of r whose name first has too is left out.
func (r Rules) With(first Rules) Rules {
	all := slices.Clone(first.list)
	for _, rule := range r.list {
		if !slices.ContainsFunc(first.list, func(f Rule) bool { return f.Name == rule.Name }) {
			all = append(all, rule)
		}
	}
	return Rules{all}
}

// Meaning is what a failure means.
type Meaning struct {
	Class       mail.Class
	Rule        string // which rule decided; see class_rule in the record
	Permanence  mail.Permanence
	Explanation string // one line for operators
}

// maxMatched is how much of a reply the rules read. The meaning comes early;
// the rest is addresses of help pages.
const maxMatched = 1 << 10

// atItsEnd begins the explanation of what expired.
const atItsEnd = "given up at the end of its lifetime: "

// Explain says what o means, and the same of what it was already said of. It is the zero Meaning for what did not fail. What
// o says itself of class and rule is kept.
func (r Rules) Explain(o *mail.Outcome) Meaning {
	if o.Disposition == mail.Relayed {
		return Meaning{}
	}
	m := Meaning{Class: o.Class, Rule: o.ClassRule, Permanence: o.Permanence, Explanation: o.Explanation}
	rule := r.find(o)
	if m.Class == mail.ClassNone {
		m.Class, m.Rule = rule.Class, rule.Name
	}
	if m.Rule == "" {
		m.Rule = RuleLocal
	}
	if m.Permanence == "" {
		m.Permanence = rule.Permanence
	}
	if m.Permanence == "" {
		m.Permanence = permanence(o)
	}
	if m.Explanation == "" {
		m.Explanation = rule.explanation(m.Permanence)
	}
	if o.Disposition == mail.Expired && !strings.HasPrefix(m.Explanation, atItsEnd) { // it may have been said before
		m.Explanation = atItsEnd + m.Explanation
	}
	return m
}

// Complete writes what o means into o.
func (r Rules) Complete(o *mail.Outcome) {
	m := r.Explain(o)
	o.Class, o.ClassRule, o.Permanence, o.Explanation = m.Class, m.Rule, m.Permanence, m.Explanation
}

// find finds the rule that tells what o means. Its name counts only when o has
// no class.
func (r Rules) find(o *mail.Outcome) Rule {
	text := strings.ToLower(strings.ReplaceAll(o.Reply.Text[:min(len(o.Reply.Text), maxMatched)], "\n", " "))
	if o.Class != mail.ClassNone {
		if rule, ok := own[o.ClassRule]; ok {
			return rule
		}
		if o.ClassRule != "" && o.ClassRule != RuleLocal && o.ClassRule != RuleExpired {
			if i := slices.IndexFunc(r.list, func(rule Rule) bool { return rule.Name == o.ClassRule }); i >= 0 {
				return r.list[i]
			}
		}
		// Who made the attempt knows the class, the rules of that class the words:
		// one that holds, else what we say of it ourselves whatever the words.
		if i := slices.IndexFunc(r.list, func(rule Rule) bool { return rule.Class == o.Class && rule.matches(o, text) }); i >= 0 {
			return r.list[i]
		}
		if i := slices.IndexFunc(r.list, func(rule Rule) bool { return rule.Class == o.Class && rule.Local && len(rule.Verb)+len(rule.Text) == 0 }); i >= 0 {
			return r.list[i]
		}
		return Rule{Means: "class " + string(o.Class)}
	}
	for i := range r.list {
		if r.list[i].matches(o, text) {
			return r.list[i]
		}
	}
	rule := own[RuleUnknown]
	rule.Name = RuleUnknown
	return rule
}

// permanence is what the codes of o say, or else what became of it.
func permanence(o *mail.Outcome) mail.Permanence {
	switch {
	case o.Remote && o.Reply.Code >= 500:
		return mail.Permanent
	case o.Remote && o.Reply.Code >= 400:
		return mail.Temporary
	case strings.HasPrefix(o.Reply.Enhanced, "5."), o.Disposition == mail.Bounced:
		return mail.Permanent
	}
	return mail.Temporary
}

func (r *Rule) explanation(p mail.Permanence) string {
	act := r.Act
	switch {
	case act != "":
	case p == mail.Permanent:
		act = "the reply's own words may tell more"
	default:
		act = "Waybill tries again by itself, nothing to do"
	}
	if r.Means == "" {
		return act
	}
	return r.Means + "; " + act
}

func (r *Rule) matches(o *mail.Outcome, text string) bool {
	return r.Local != o.Remote &&
		(len(r.Code) == 0 || matchCode(r.Code, o.Reply.Code)) &&
		(len(r.Verb) == 0 || slices.Contains(r.Verb, o.Verb)) &&
		(len(r.Enhanced) == 0 || matchEnhanced(r.Enhanced, o.Reply.Enhanced)) &&
		(len(r.text) == 0 || matchText(r.text, text))
}

func matchCode(prefixes []string, code int) bool {
	if code < 100 || code > 999 {
		return false
	}
	for _, p := range prefixes {
		c := code
		for range 3 - len(p) {
			c /= 10
		}
		if n, _ := strconv.Atoi(p); n == c {
			return true
		}
	}
	return false
}

func matchEnhanced(patterns []string, code string) bool {
	if len(code) < len("5.1.1") {
		return false
	}
	for _, p := range patterns {
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

// matchText reports whether the parts of a pattern stand in text in their order.
func matchText(patterns [][]string, text string) bool {
next:
	for _, parts := range patterns {
		rest := text
		for _, part := range parts {
			i := strings.Index(rest, part)
			if i < 0 {
				continue next
			}
			rest = rest[i+len(part):]
		}
		return true
	}
	return false
}
