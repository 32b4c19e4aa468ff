package failure

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"waybill/relay/mail"
)

// Bounds of a rules file, chosen by taste.
const (
	maxFile    = 1 << 20
	maxRules   = 2000
	maxTexts   = 200 // of one rule
	maxText    = 200 // octets
	maxPeople  = 300 // octets of means and act together, as the record keeps them
	maxName    = 60
	maxProblem = 100
)

// Problem is one thing that is wrong with a rules file.
type Problem struct {
	Line int // counts from 1; 0 when it is no line's
	What string
	Hint string // may be empty
}

// String says the problem with its line.
func (p *Problem) String() string {
	s := p.What
	if p.Line > 0 {
		s = fmt.Sprintf("line %d: %s", p.Line, s)
	}
	if p.Hint != "" {
		s += " (" + p.Hint + ")"
	}
	return s
}

// Problems are all that is wrong with a rules file, in its order.
type Problems []*Problem //nolint:errname // they are one error together

// Error is one line for each problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Parse reads a rules file: a YAML list of rules, as rules.yaml describes them.
// Its error is [Problems].
func Parse(data []byte) (Rules, error) {
	if len(data) > maxFile {
		return Rules{}, Problems{{What: "the file is larger than 1 MiB"}}
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return Rules{}, Problems{syntax(err)}
	}
	p := parser{names: map[string]int{}}
	rules := p.rules(&doc)
	if len(p.problems) > 0 {
		return Rules{}, p.problems
	}
	return rules, nil
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): (.*)`)

// syntax makes a problem of what the YAML reader says.
func syntax(err error) *Problem {
	pr := &Problem{What: strings.TrimPrefix(err.Error(), "yaml: "), Hint: "values with : or # go in quotes"}
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		_, _ = fmt.Sscan(m[1], &pr.Line)
		pr.What = m[2]
	}
	return pr
}

// parser gathers what is wrong.
type parser struct {
	problems Problems
	names    map[string]int // line of each rule's name
}

func (p *parser) bad(n *yaml.Node, hint, format string, args ...any) {
	if len(p.problems) < maxProblem {
		p.problems = append(p.problems, &Problem{Line: n.Line, What: fmt.Sprintf(format, args...), Hint: hint})
	}
}

func (p *parser) rules(doc *yaml.Node) Rules {
	if doc.Kind == 0 || len(doc.Content) == 0 {
		return Rules{} // an empty file
	}
	list := doc.Content[0]
	if list.Kind == yaml.ScalarNode && list.Tag == "!!null" {
		return Rules{}
	}
	if list.Kind != yaml.SequenceNode {
		p.bad(list, "each rule begins with \"- \"", "the file is no list of rules")
		return Rules{}
	}
	if len(list.Content) > maxRules {
		p.bad(list, "", "%d rules, and %d is the most", len(list.Content), maxRules)
		return Rules{}
	}
	rules := make([]Rule, 0, len(list.Content))
	for _, n := range list.Content {
		if n.Kind != yaml.MappingNode {
			p.bad(n, "such as {name: mine, class: policy, text: [\"go away\"]}", "a rule must be keys and values")
			continue
		}
		rules = append(rules, p.rule(n))
	}
	return Rules{rules}
}

var keys = []string{"name", "class", "means", "act", "permanence", "code", "enhanced", "verb", "text", "local"}

// rule reads one rule.
func (p *parser) rule(n *yaml.Node) (r Rule) {
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		if seen[key.Value] {
			p.bad(key, "", "%s is given twice", clip(key.Value))
			continue
		}
		seen[key.Value] = true
		switch key.Value {
		case "name":
			r.Name = p.name(val)
		case "class":
			r.Class = mail.Class(p.word(val, key.Value, classes()))
		case "means":
			r.Means = p.line(val, key.Value)
		case "act":
			r.Act = p.line(val, key.Value)
		case "permanence":
			r.Permanence = mail.Permanence(p.word(val, key.Value, []string{string(mail.Temporary), string(mail.Permanent)}))
		case "code":
			r.Code = p.list(val, key.Value, codePattern, "beginnings of reply codes, such as [\"4\"] or [\"421\"]")
		case "enhanced":
			r.Enhanced = p.list(val, key.Value, enhancedPattern, "such as 5.7.1, x.7.1 or \"4.7.*\"")
		case "verb":
			r.Verb = p.list(val, key.Value, verbPattern, "CONNECT, EHLO, STARTTLS, AUTH, MAIL, RCPT, DATA or \".\"")
		case "text":
			r.Text = p.list(val, key.Value, nil, "words of the reply; * stands for anything between")
		case "local":
			r.Local = p.word(val, key.Value, []string{"true", "false"}) == "true"
		default:
			p.bad(key, "known are "+strings.Join(keys, ", "), "unknown key %q", clip(key.Value))
		}
	}
	for _, need := range []string{"name", "class", "means"} {
		if !seen[need] {
			p.bad(n, "", "rule %s has no %s", r.label(), need)
		}
	}
	if len(r.Means)+len(r.Act)+2 > maxPeople {
		p.bad(n, "", "rule %s: means and act are longer than %d octets together", r.label(), maxPeople)
	}
	if len(r.Code)+len(r.Enhanced)+len(r.Verb)+len(r.Text) == 0 && !r.Local {
		p.bad(n, "give code, enhanced, verb or text", "rule %s would match every reply", r.label())
	}
	p.texts(n, &r)
	return r
}

func (r *Rule) label() string {
	if r.Name == "" {
		return "without a name"
	}
	return r.Name
}

var (
	namePattern     = regexp.MustCompile(`^[a-z0-9]+([-_.][a-z0-9]+)*$`)
	codePattern     = regexp.MustCompile(`^[45][0-9]{0,2}$`)
	enhancedPattern = regexp.MustCompile(`^[45x]\.([0-9]{1,3}\.([0-9]{1,3}|[0-9]{0,2}\*)|\*)$`)
	verbPattern     = regexp.MustCompile(`^(CONNECT|EHLO|HELO|STARTTLS|AUTH|MAIL|RCPT|DATA|BDAT|\.)$`)
)

// texts splits the texts at their stars. Case does not count.
func (p *parser) texts(n *yaml.Node, r *Rule) {
	for i, t := range r.Text {
		t = strings.ToLower(t)
		r.Text[i] = t
		if strings.Trim(t, "* ") == "" || strings.HasPrefix(t, "*") || strings.HasSuffix(t, "*") || strings.Contains(t, "**") {
			p.bad(n, "a text is found anywhere in the reply; * goes between two words", "rule %s: text %q", r.label(), clip(t))
			continue
		}
		r.text = append(r.text, strings.Split(t, "*"))
	}
}

func (p *parser) name(n *yaml.Node) string {
	s, ok := p.scalar(n, "name")
	if !ok {
		return ""
	}
	_, reserved := own[s]
	switch {
	case len(s) > maxName || !namePattern.MatchString(s):
		p.bad(n, "such as acme-blocked", "name %q is not of small letters, digits and hyphens, at most %d", clip(s), maxName)
	case reserved || s == RuleLocal || s == RuleExpired:
		p.bad(n, "", "the name %q is reserved", s)
	case p.names[s] > 0:
		p.bad(n, "", "the name %q is taken by the rule in line %d", s, p.names[s])
	default:
		p.names[s] = n.Line
	}
	return s
}

func (p *parser) scalar(n *yaml.Node, key string) (string, bool) {
	if n.Kind != yaml.ScalarNode {
		p.bad(n, "", "%s must be one value", key)
		return "", false
	}
	return n.Value, true
}

func (p *parser) word(n *yaml.Node, key string, known []string) string {
	s, ok := p.scalar(n, key)
	if ok && !slices.Contains(known, s) {
		p.bad(n, "known are "+strings.Join(known, ", "), "%s: unknown word %q", key, clip(s))
	}
	return s
}

// line reads text for people: one line.
func (p *parser) line(n *yaml.Node, key string) string {
	s, ok := p.scalar(n, key)
	if ok && (s == "" || strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f })) {
		p.bad(n, "", "%s must be one line of text", key)
	}
	return s
}

// list reads a list of values that have the pattern, if there is one.
func (p *parser) list(n *yaml.Node, key string, pattern *regexp.Regexp, hint string) []string {
	items := n.Content
	if n.Kind == yaml.ScalarNode {
		items = []*yaml.Node{n} // one value needs no brackets
	} else if n.Kind != yaml.SequenceNode || len(items) == 0 || len(items) > maxTexts {
		p.bad(n, hint, "%s must be a list of 1 to %d values", key, maxTexts)
		return nil
	}
	list := make([]string, 0, len(items))
	for _, item := range items {
		s, ok := p.scalar(item, key)
		if !ok {
			continue
		}
		if key == "verb" {
			s = strings.ToUpper(s)
		}
		if len(s) == 0 || len(s) > maxText || pattern != nil && !pattern.MatchString(s) {
			p.bad(item, hint, "%s: %q", key, clip(s))
			continue
		}
		list = append(list, s)
	}
	return list
}

func classes() []string {
	all := mail.Classes()
	words := make([]string, len(all))
	for i, c := range all {
		words[i] = string(c)
	}
	return words
}

// clip bounds text of the file in a message.
func clip(s string) string {
	if r := []rune(s); len(r) > 40 {
		return string(r[:40]) + "…"
	}
	return s
}

// ErrReply is wrapped by [ParseReply] when a text is no reply of a failure.
var ErrReply = errors.New("no reply of a failure")

var replyPattern = regexp.MustCompile(`(?s)^\s*([45][0-9]{2})(?:[ -]+|$)(?:#?([45]\.[0-9]{1,3}\.[0-9]{1,3})(?:[ :]+|$))?(.*)$`)

// ParseReply reads a reply as logs and reports have it, such as "550 5.1.1 No
// such user", with continuation lines if there are any.
func ParseReply(s string) (mail.Reply, error) {
	if len(s) > 64<<10 {
		return mail.Reply{}, fmt.Errorf("%w: it is too long", ErrReply)
	}
	var reply mail.Reply
	var text []string
	for line := range strings.Lines(strings.ReplaceAll(s, `\n`, "\n")) {
		line = strings.TrimSpace(line)
		m := replyPattern.FindStringSubmatch(line)
		switch {
		case line == "":
		case m == nil && reply.Code == 0:
			return mail.Reply{}, fmt.Errorf("%w: it does not begin with a code such as 550 or 421", ErrReply)
		case m == nil:
			text = append(text, line)
		default:
			_, _ = fmt.Sscan(m[1], &reply.Code)
			if m[2] != "" {
				reply.Enhanced = m[2]
			}
			text = append(text, strings.TrimSpace(m[3]))
		}
	}
	if reply.Code == 0 {
		return mail.Reply{}, fmt.Errorf("%w: it is empty", ErrReply)
	}
	reply.Text = strings.TrimSpace(strings.Join(text, "\n"))
	return reply, nil
}
