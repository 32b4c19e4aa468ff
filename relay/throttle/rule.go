package throttle

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// By says what a rule keeps one count for.
type By uint8

// What there is one count for.
const (
	BySource    By = iota // each IPv4 address or IPv6 /64
	ByNetwork             // each network of the rule's size
	ByUser                // each authenticated user
	BySender              // each envelope sender; the null sender is nobody's
	ByConnector           // each receive connector, all of its clients together
)

var byWords = [...]string{"source", "network", "user", "sender", "connector"}

// String is the word of the configuration.
func (b By) String() string { return byWords[b] }

// ParseBy reads the word of the configuration.
func ParseBy(word string) (By, error) {
	i := slices.Index(byWords[:], word)
	if i < 0 {
		return 0, fmt.Errorf("by %.40q: source, network, user, sender or connector", word)
	}
	return By(i), nil //nolint:gosec // an index of a few words
}

// scope is the word of the fact.
func (b By) scope() string {
	if b == ByConnector {
		return "total"
	}
	return b.String()
}

// What says what a rule counts.
type What uint8

// What can be counted.
const (
	Messages What = iota
	Recipients
	Bytes
	Commands
	Connects // connections, at once or in a time
	whats
)

var whatWords = [...]string{"messages", "recipients", "bytes", "commands", "connections"}

// String is the word of the configuration.
func (w What) String() string { return whatWords[w] }

// ParseWhat reads the word of the configuration.
func ParseWhat(word string) (What, error) {
	i := slices.Index(whatWords[:], word)
	if i < 0 {
		return 0, fmt.Errorf("%.40q: messages, recipients, bytes, commands or connections", word)
	}
	return What(i), nil //nolint:gosec // an index of a few words
}

// Action says what happens to a request above the limit.
type Action uint8

// What happens.
const (
	Defer  Action = iota // a 4xx reply: the client may try again
	Tarpit               // it waits until there is room, at most maxWait; beyond that it is deferred
	Reject               // a 5xx reply: the client gives up
	Close                // 421, and the connection is closed
)

var actionWords = [...]string{"defer", "tarpit", "reject", "close"}

// String is the word of the configuration, of facts and of metrics.
func (a Action) String() string { return actionWords[a] }

// ParseAction reads the word of the configuration.
func ParseAction(word string) (Action, error) {
	i := slices.Index(actionWords[:], word)
	if i < 0 {
		return 0, fmt.Errorf("action %.40q: tarpit, defer, reject or close", word)
	}
	return Action(i), nil //nolint:gosec // an index of a few words
}

// maxWait is the longest that Tarpit lets a client wait: shorter than the
// timeouts of clients (RFC 5321 section 4.5.3.2 asks for minutes).
const maxWait = 30 * time.Second

// Rule is one limit.
type Rule struct {
	Name       string   // in facts, listings and replies to the operator; unique
	Connectors []string // receive connectors that it applies to; empty: all
	By         By
	OrSource   bool // by user: a client without one counts by its source; otherwise the rule is not for it
	What       What
	Amount     int64         // how much there may be within Per
	Per        time.Duration // zero: at once; for connections only
	Burst      int64         // how much may come at once; zero means Amount
	Action     Action
	IPv4Bits   int            // size of a network; zero means 24
	IPv6Bits   int            // zero means 48
	Exempt     []netip.Prefix // clients that it is not for
}

// check completes a rule, or says what is wrong with it.
func (r *Rule) check() error {
	bad := func(text string) error { return fmt.Errorf("throttle %s: %s", r.Name, text) }
	if r.Burst == 0 {
		r.Burst = r.Amount
	}
	if r.IPv4Bits == 0 {
		r.IPv4Bits = 24
	}
	if r.IPv6Bits == 0 {
		r.IPv6Bits = 48
	}
	switch {
	case r.Name == "":
		return errors.New("throttle without a name")
	case r.Amount < 1 || r.Burst < 1 || r.Per < 0:
		return bad("the limit must be more than nothing")
	case r.Per == 0 && r.What != Connects:
		return bad("only connections can be limited without a time")
	case r.What == Connects && (r.By == ByUser || r.By == BySender):
		return bad("who connects is not known yet: count connections by source, network or connector")
	case r.What == Commands && r.By == BySender:
		return bad("commands have no sender")
	case r.Per == 0 && r.Action == Tarpit:
		return bad("a limit without a time ends with no wait: defer, reject or close")
	case r.IPv4Bits < 1 || r.IPv4Bits > 32 || r.IPv6Bits < 1 || r.IPv6Bits > 128:
		return bad("not the size of a network")
	}
	return nil
}

// atOnce reports whether the rule counts what is there now, and no rate.
func (r *Rule) atOnce() bool { return r.Per == 0 }

// perSecond is the rate.
func (r *Rule) perSecond() float64 { return float64(r.Amount) / r.Per.Seconds() }

// Client is who asks.
type Client struct {
	Connector string
	IP        netip.Addr
	User      string
	Sender    string // empty: not known, or the null sender
}

// key is whom a count is for: an address, or a text.
type key struct {
	ip   netip.Addr
	text string
}

// maxText bounds a key: addresses are shorter (RFC 5321 section 4.5.3.1).
const maxText = 320

// keyOf is whom c counts for; ok is false when the rule is not for c.
func (r *Rule) keyOf(c *Client) (k key, ok bool) {
	if len(r.Connectors) > 0 && !slices.Contains(r.Connectors, c.Connector) {
		return key{}, false
	}
	ip := c.IP.Unmap().WithZone("")
	for _, p := range r.Exempt {
		if p.Contains(ip) {
			return key{}, false
		}
	}
	switch {
	case r.By == BySource, r.By == ByUser && c.User == "" && r.OrSource:
		return key{ip: Source(ip)}, true
	case r.By == ByNetwork:
		p, err := ip.Prefix(r.bits(ip))
		return key{ip: p.Addr()}, err == nil
	case r.By == ByUser:
		return textKey(c.User)
	case r.By == BySender:
		return textKey(c.Sender)
	}
	return textKey(c.Connector)
}

func textKey(s string) (key, bool) { return key{text: s[:min(len(s), maxText)]}, s != "" }

func (r *Rule) bits(ip netip.Addr) int {
	if ip.Is6() {
		return r.IPv6Bits
	}
	return r.IPv4Bits
}

// show is k as people read and write it.
func (r *Rule) show(k key) string {
	switch {
	case !k.ip.IsValid():
		return k.text
	case r.By == ByNetwork:
		return netip.PrefixFrom(k.ip, r.bits(k.ip)).String()
	case k.ip.Is6():
		return netip.PrefixFrom(k.ip, 64).String()
	}
	return k.ip.String()
}
