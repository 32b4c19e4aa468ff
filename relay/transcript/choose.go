package transcript

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// The modes of a [Rule]. A number from 0 to 1 is one too: failures, and that
// share of the other sessions.
const (
	ModeOff      = "off"
	ModeFailures = "failures"
	ModeAll      = "all"
)

// Rule says which conversations are kept.
type Rule struct {
	Mode string // empty means failures

	// Conversations that are kept besides, also with ModeOff.
	ClientIP []netip.Prefix
	Users    []string // who logged in
	Senders  []string // an address, "@example.com", or a pattern with "*"
}

// Session is what a [Chooser] asks of a conversation that has ended.
type Session struct {
	Failed    bool
	Uncertain bool // nobody knows whether the next hop has the message
	Slow      bool
	ClientIP  netip.Addr
	User      string
	Sender    bool // [Chooser.Sender] was true for one of its senders
}

// Reasons are the words that [Chooser.Why] says.
func Reasons() []string {
	return []string{"failed", "uncertain", "slow", "client_ip", "user", "sender", "all", "sampled"}
}

// Chooser chooses by a Rule. A nil Chooser keeps failures.
type Chooser struct {
	off   bool
	share float64
	rule  Rule
}

// NewChooser checks rule.
func NewChooser(rule Rule) (*Chooser, error) {
	c := &Chooser{rule: rule}
	switch rule.Mode {
	case ModeOff:
		c.off = true
	case "", ModeFailures:
	case ModeAll:
		c.share = 1
	default:
		share, err := strconv.ParseFloat(rule.Mode, 64)
		if err != nil || !(share >= 0 && share <= 1) { // as NaN is not
			return nil, fmt.Errorf("transcript %.40q: off, failures, all, or a share such as 0.01", rule.Mode)
		}
		c.share = share
	}
	return c, nil
}

// Keeps reports whether any conversation may be kept.
func (c *Chooser) Keeps() bool {
	return c == nil || !c.off || len(c.rule.ClientIP)+len(c.rule.Users)+len(c.rule.Senders) > 0
}

// NamesSenders reports whether the rule names any sender.
func (c *Chooser) NamesSenders() bool { return c != nil && len(c.rule.Senders) > 0 }

// Sender reports whether the rule names a sender; "<>" is the null sender.
func (c *Chooser) Sender(address string) bool {
	return c != nil && slices.ContainsFunc(c.rule.Senders, func(pattern string) bool { return matches(pattern, address) })
}

// Why is the reason to keep a conversation, a word of [Reasons], or empty.
func (c *Chooser) Why(s Session) string {
	if c == nil {
		c = &Chooser{}
	}
	named := func(u string) bool { return s.User != "" && strings.EqualFold(u, s.User) }
	switch {
	case s.Uncertain && !c.off:
		return "uncertain"
	case s.Failed && !c.off:
		return "failed"
	case s.Slow && !c.off:
		return "slow"
	case slices.ContainsFunc(c.rule.ClientIP, func(p netip.Prefix) bool { return p.Contains(s.ClientIP) }):
		return "client_ip"
	case slices.ContainsFunc(c.rule.Users, named):
		return "user"
	case s.Sender:
		return "sender"
	case c.off:
		return ""
	case c.share >= 1:
		return "all"
	case c.share > 0 && rand.Float64() < c.share: //nolint:gosec // sampling
		return "sampled"
	}
	return ""
}

// matches reports whether address is pattern: the address itself, "@" and its
// domain, or parts with anything for each "*". Case does not count.
func matches(pattern, address string) bool {
	pattern, address = strings.ToLower(pattern), strings.ToLower(address)
	if strings.HasPrefix(pattern, "@") {
		pattern = "*" + pattern
	}
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == address
	}
	first, last := parts[0], parts[len(parts)-1]
	if len(address) < len(first)+len(last) || !strings.HasPrefix(address, first) || !strings.HasSuffix(address, last) {
		return false
	}
	address = address[len(first) : len(address)-len(last)]
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(address, part)
		if i < 0 {
			return false
		}
		address = address[i+len(part):]
	}
	return true
}
