// Package backoff knows which replies of next hops ask for less mail, and
// remembers which next hops have asked.
//
// It exists because a next hop that says "too fast" says it about all mail from
// us, and not about the one message that happened to be on its way: to go on as
// before until each message has met its own refusal earns a worse one. It
// promises that a mode ends by itself, that a next hop that asks again is left
// alone for longer, up to a bound, and that its memory is bounded.
//
// The patterns are data: rules.yaml holds those that come with the program, and
// an operator's file goes before it ([Rules.With]). To teach a provider's words,
// add a rule there; nothing else changes.
package backoff

import (
	"bytes"
	_ "embed" // rules.yaml
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"waybill/relay/mail"
)

// Mode is how a next hop is treated.
type Mode string

// The modes, the strongest last.
const (
	None   Mode = "none"   // as usual
	Slow   Mode = "slow"   // so many messages a minute
	Single Mode = "single" // one connection
	Pause  Mode = "pause"  // nothing
)

// Modes are the modes that a rule can ask for.
func Modes() []Mode { return []Mode{Slow, Single, Pause} }

func (m Mode) strength() int { return slices.Index([]Mode{None, Slow, Single, Pause}, m) }

// Rule is a pattern of replies and what to do about them. Empty conditions hold
// for every reply; all that are given must hold.
type Rule struct {
	Name     string   `yaml:"name"`
	Why      string   `yaml:"why"`      // what the reply means, for people
	Provider string   `yaml:"provider"` // roll-up of the next hop, as in metrics
	Code     []int    `yaml:"code"`
	Enhanced []string `yaml:"enhanced"` // such as "4.7.28", or "4.7.*"
	Verb     []string `yaml:"verb"`     // which command was answered: CONNECT, MAIL, ...
	Text     string   `yaml:"text"`     // regular expression (RE2); case does not count
	Hits     int      `yaml:"hits"`     // so many such replies within the time Within; default 1
	Within   Duration `yaml:"within"`   // default 10m

	Do          Mode     `yaml:"do"`          // none: such replies change nothing, and no later rule is asked
	PerMinute   int      `yaml:"per_minute"`  // of slow: messages; default 10
	Connections int      `yaml:"connections"` // of slow: at once; default 2
	For         Duration `yaml:"for"`         // default 10m; doubled when it is asked for again
	Longest     Duration `yaml:"longest"`     // default 4h

	text *regexp.Regexp
}

// Duration is a time.Duration that is written as "90s" or "4h".
type Duration time.Duration

// UnmarshalText reads d.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// Rules are rules in the order in which they are asked.
type Rules []Rule

// Bounds of a rules file.
const (
	maxFile   = 1 << 20
	maxRules  = 1000
	maxText   = 1000
	longest   = 7 * 24 * time.Hour
	maxPeople = 300 // octets of Name and Why
)

//go:embed rules.yaml
var shipped []byte

// Shipped is the file of the rules that come with the program.
func Shipped() string { return string(shipped) }

// Default are the rules that come with the program.
func Default() Rules {
	rules, err := Parse(shipped)
	if err != nil {
		panic("backoff: rules.yaml: " + err.Error()) // a test parses it
	}
	return rules
}

// Parse reads a rules file: a YAML list of rules.
func Parse(data []byte) (Rules, error) {
	if len(data) > maxFile {
		return nil, errors.New("the file is too large")
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	var rules Rules
	if err := dec.Decode(&rules); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(rules) > maxRules {
		return nil, fmt.Errorf("%d rules, and %d is the most", len(rules), maxRules)
	}
	var errs []error
	seen := map[string]bool{}
	for i := range rules {
		r := &rules[i]
		if err := r.complete(); err != nil {
			errs = append(errs, fmt.Errorf("rule %d (%q): %w", i+1, r.Name, err))
		} else if seen[r.Name] {
			errs = append(errs, fmt.Errorf("rule %d: the name %q is taken", i+1, r.Name))
		}
		seen[r.Name] = true
	}
	return rules, errors.Join(errs...)
}

// complete checks r and fills in its defaults.
func (r *Rule) complete() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if r.Name == "" || len(r.Name) > maxPeople || len(r.Why) > maxPeople || strings.ContainsFunc(r.Name+r.Why, func(c rune) bool { return c < ' ' }) {
		bad("name and why must be short texts of one line, and name is needed")
	}
	if r.Do != None && !slices.Contains(Modes(), r.Do) {
		bad("do: %q is none of pause, single, slow, none", r.Do)
	}
	for _, c := range r.Code {
		if c < 400 || c > 599 {
			bad("code: %d is not from 400 to 599", c)
		}
	}
	for i, v := range r.Verb {
		r.Verb[i] = strings.ToUpper(v)
	}
	if len(r.Text) > maxText {
		bad("text is longer than %d octets", maxText)
	} else if r.Text != "" {
		var err error
		if r.text, err = regexp.Compile("(?is)" + r.Text); err != nil {
			bad("text: %v", err)
		}
	}
	if r.text == nil && len(r.Code) == 0 && len(r.Enhanced) == 0 {
		bad("it would match every reply: give code, enhanced or text")
	}
	if r.Hits < 0 || r.PerMinute < 0 || r.Connections < 0 || r.Within < 0 || r.For < 0 || r.Longest < 0 {
		bad("a negative number")
	}
	r.Hits, r.PerMinute, r.Connections = max(r.Hits, 1), or(r.PerMinute, 10), or(r.Connections, 2)
	r.Within, r.For, r.Longest = or(r.Within, Duration(10*time.Minute)), or(r.For, Duration(10*time.Minute)), or(r.Longest, Duration(4*time.Hour))
	r.Longest = max(r.Longest, r.For)
	if time.Duration(r.Longest) > longest {
		bad("for and longest must be at most %v", longest)
	}
	return errors.Join(errs...)
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// With puts first before r. A rule of r whose name first has too is left out.
func (r Rules) With(first Rules) Rules {
	all := slices.Clone(first)
	for _, rule := range r {
		if !slices.ContainsFunc(first, func(f Rule) bool { return f.Name == rule.Name }) {
			all = append(all, rule)
		}
	}
	return all
}

// maxMatched is how much of a reply the patterns see.
const maxMatched = 2 << 10

// Match finds the first rule that knows the reply of o. Only what a next hop
// said about a failure counts.
func (r Rules) Match(provider string, o *mail.Outcome) (*Rule, bool) {
	if !o.Remote || o.Disposition == mail.Relayed || o.Reply.Code < 400 {
		return nil, false
	}
	text := o.Reply.Text[:min(len(o.Reply.Text), maxMatched)]
	for i := range r {
		if r[i].matches(provider, o, text) {
			return &r[i], r[i].Do != None
		}
	}
	return nil, false
}

func (r *Rule) matches(provider string, o *mail.Outcome, text string) bool {
	return (r.Provider == "" || r.Provider == provider) &&
		(len(r.Code) == 0 || slices.Contains(r.Code, o.Reply.Code)) &&
		(len(r.Verb) == 0 || slices.Contains(r.Verb, o.Verb)) &&
		(len(r.Enhanced) == 0 || slices.ContainsFunc(r.Enhanced, func(p string) bool { return matchEnhanced(p, o.Reply.Enhanced) })) &&
		(r.text == nil || r.text.MatchString(text))
}

func matchEnhanced(pattern, code string) bool {
	if rest, ok := strings.CutSuffix(pattern, "*"); ok {
		return code != "" && strings.HasPrefix(code, rest)
	}
	return pattern == code
}
