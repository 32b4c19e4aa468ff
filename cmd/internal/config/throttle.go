package config

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"waybill/relay/policy"
	"waybill/relay/throttle"
)

// Throttle is a limit on what clients may send.
type Throttle struct {
	Name       string    `yaml:"name" required:"true" doc:"name in facts and in the list of who is stopped; what was used survives a reload under the same name"`
	AppliesTo  []string  `yaml:"applies_to" doc:"receive connectors; empty: all"`
	By         string    `yaml:"by" enum:"source,network,user,sender,connector" doc:"what there is one count for: each address (IPv6 /64), each network, each user that has logged in, each envelope sender, or each connector with all of its clients"`
	Limit      RateLimit `yaml:"limit" default:"**needed**" type:"such as 100 messages/1m, 500 recipients/1h, 1GiB/1d, 60 commands/10s, 30 connections/1m, or 10 connections (at once)" doc:"how much of what, in which time"`
	Burst      int       `yaml:"burst" min:"0" max:"2000000000" doc:"how much of it may come at once; a number of messages, recipients, octets, …" default:"as much as the limit"`
	Action     string    `yaml:"action" enum:"tarpit,defer,reject,close" doc:"what happens above the limit: the client waits (30 s at most, beyond that it is deferred); is told to try again later; is refused for good; or is cut off with 421"`
	IPv4Prefix int       `yaml:"ipv4_prefix" min:"1" max:"32" doc:"size of an IPv4 network, by: network"`
	IPv6Prefix int       `yaml:"ipv6_prefix" min:"1" max:"128" doc:"size of an IPv6 network, by: network"`
	Exempt     []string  `yaml:"exempt" doc:"networks and addresses of clients that the limit is not for"`
}

func newThrottle() Throttle {
	return Throttle{By: "source", Action: "defer", IPv4Prefix: 24, IPv6Prefix: 48}
}

func (t *Throttle) preset(string) { *t = newThrottle() }

// Rule is the throttle as package throttle has it.
func (t *Throttle) Rule() (throttle.Rule, error) {
	r := throttle.Rule{
		Name: t.Name, Connectors: t.AppliesTo, Amount: t.Limit.Amount, Per: time.Duration(t.Limit.Per), Burst: int64(t.Burst),
		IPv4Bits: t.IPv4Prefix, IPv6Bits: t.IPv6Prefix,
	}
	var err error
	if r.By, err = throttle.ParseBy(t.By); err != nil {
		return r, err
	}
	if r.What, err = throttle.ParseWhat(t.Limit.What); err != nil {
		return r, err
	}
	if r.Action, err = throttle.ParseAction(t.Action); err != nil {
		return r, err
	}
	for _, word := range t.Exempt {
		p, err := policy.ParseRange(word)
		if err != nil {
			return r, err
		}
		r.Exempt = append(r.Exempt, p)
	}
	return r, nil
}

// RateLimit is an amount of something in a time, such as "100 messages/1m". For
// connections the time may be left out: so many at once.
type RateLimit struct {
	Amount int64
	What   string   // a word of package throttle
	Per    Duration // zero: at once
}

const rateForm = "such as 100 messages/1m, 500 recipients/1h, 1GiB/1d, 60 commands/10s, 30 connections/1m, or 10 connections"

// ParseRateLimit reads an amount in a time. An amount of octets is a size.
func ParseRateLimit(s string) (RateLimit, error) {
	bad := fmt.Errorf("%q is not a limit %s", clip(s), rateForm)
	amount, per, hasPer := strings.Cut(s, "/")
	number, what, _ := strings.Cut(strings.TrimSpace(amount), " ")
	l := RateLimit{What: strings.TrimSpace(what)}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil {
		l.Amount = n
	} else if size, err := ParseSize(number); err == nil && (l.What == "" || l.What == "bytes") {
		l.Amount, l.What = int64(size), "bytes"
	} else {
		return RateLimit{}, bad
	}
	if !strings.HasSuffix(l.What, "s") { // 1 message/1s
		l.What += "s"
	}
	if _, err := throttle.ParseWhat(l.What); err != nil {
		return RateLimit{}, bad
	}
	if hasPer {
		per = strings.TrimSpace(per)
		if per != "" && (per[0] < '0' || per[0] > '9') { // 100 messages/m
			per = "1" + per
		}
		d, err := ParseDuration(per)
		if err != nil {
			return RateLimit{}, err
		}
		if d <= 0 {
			return RateLimit{}, bad
		}
		l.Per = d
	}
	if l.Amount < 1 || l.Amount > math.MaxInt32 && l.What != "bytes" || l.Per == 0 && l.What != "connections" {
		return RateLimit{}, bad
	}
	return l, nil
}

// String is the limit as the file writes it.
func (l RateLimit) String() string {
	if l.Amount == 0 {
		return ""
	}
	text := fmt.Sprintf("%d %s", l.Amount, l.What)
	if l.What == "bytes" {
		text = Size(l.Amount).String()
	}
	if l.Per > 0 {
		text += "/" + l.Per.String()
	}
	return text
}

// UnmarshalText is [ParseRateLimit].
func (l *RateLimit) UnmarshalText(text []byte) (err error) {
	*l, err = ParseRateLimit(string(text))
	return err
}

// MarshalText writes [RateLimit.String].
func (l RateLimit) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

func checkThrottles(c *Config, p *collector) {
	var names []string
	for i := range c.Throttles {
		t := &c.Throttles[i]
		names = append(names, t.Name)
		path := fmt.Sprintf("throttles[%d]", i)
		for j, name := range t.AppliesTo {
			if !slices.ContainsFunc(c.Receive, func(r ReceiveConnector) bool { return r.Name == name }) {
				p.errorf(fmt.Sprintf("%s.applies_to[%d]", path, j), "", "there is no receive connector %q", clip(name))
			}
		}
		for j, s := range t.Exempt {
			if _, err := policy.ParseRange(s); err != nil {
				p.errorf(fmt.Sprintf("%s.exempt[%d]", path, j), "", "%v", err)
			}
		}
		checkThrottle(t, p, path)
	}
	uniqueNames(p, "throttles", names)
}

func checkThrottle(t *Throttle, p *collector, path string) {
	switch what := t.Limit.What; {
	case what == "":
		p.errorf(path+".limit", rateForm, "this key is needed")
	case what == "connections" && (t.By == "user" || t.By == "sender"):
		p.errorf(path+".by", "use source, network or connector", "who connects has not said who it is: connections cannot be counted by %s", t.By)
	case what == "commands" && t.By == "sender":
		p.errorf(path+".by", "use source, network, user or connector", "commands have no sender")
	case t.Limit.Per == 0 && t.Action == "tarpit":
		p.errorf(path+".action", "use defer, reject or close", "waiting does not end what is there at once")
	case t.Limit.Per == 0 && t.Burst > 0:
		p.errorf(path+".burst", "remove it", "a limit of what is there at once has no burst")
	}
	for j, name := range t.AppliesTo {
		if slices.Contains(t.AppliesTo[:j], name) {
			p.errorf(fmt.Sprintf("%s.applies_to[%d]", path, j), "", "%s is there twice", clip(name))
		}
	}
}

// Percent is a share, such as "85%".
type Percent int

// UnmarshalText reads a whole number with a percent sign.
func (s *Percent) UnmarshalText(text []byte) error {
	word, sign := strings.CutSuffix(string(text), "%")
	n, err := strconv.Atoi(strings.TrimSpace(word))
	if err != nil || n < 0 || n > 100 || !sign && n != 0 {
		return fmt.Errorf("%q is not a percentage such as 85%%", clip(string(text)))
	}
	*s = Percent(n)
	return nil
}

// MarshalText writes it with its sign.
func (s Percent) MarshalText() ([]byte, error) { return []byte(strconv.Itoa(int(s)) + "%"), nil }

// BackPressure is when the relay slows down and refuses.
type BackPressure struct {
	Memory      PercentMarks  `yaml:"memory" doc:"share of the memory that the process may have: of its control group, or of the machine"`
	QueueLength CountMarks    `yaml:"queue_length" doc:"messages in the queue"`
	DiskLatency DurationMarks `yaml:"disk_latency" doc:"how long commits to stable storage take, on average"`
	OutboxLag   DurationMarks `yaml:"outbox_lag" doc:"how long the tracking store has not confirmed facts; it slows mail down, and never refuses it"`
	Patience    Duration      `yaml:"patience" doc:"how long medium may last before strangers are refused, and high before connections are turned away"`
	DelayStep   Duration      `yaml:"delay_step" doc:"how much longer acknowledgements wait with every look at medium or above, every 2 seconds; 0s is no wait"`
	DelayMost   Duration      `yaml:"delay_most" doc:"how long they wait at most"`
	Contents    int           `yaml:"contents" min:"0" max:"1000000" doc:"contents that are taken in at a time, by all receive connectors; the others wait for their turn, before DATA is answered, so that busy senders do not slow each other and deliveries down; twice as many while there are next to no deliveries; 0 is no limit" default:"8 for each processor"`
}

// PercentMarks are the marks of a share.
type PercentMarks struct {
	Medium Percent `yaml:"medium" min:"0" max:"100" doc:"share at which the relay slows down; 0 is never"`
	High   Percent `yaml:"high" min:"0" max:"100" doc:"share at which it refuses mail; 0 is never"`
}

// CountMarks are the marks of a number.
type CountMarks struct {
	Medium int `yaml:"medium" min:"0" max:"1000000000" doc:"number at which the relay slows down; 0 is never"`
	High   int `yaml:"high" min:"0" max:"1000000000" doc:"number at which it refuses mail; 0 is never"`
}

// DurationMarks are the marks of a time.
type DurationMarks struct {
	Medium Duration `yaml:"medium" doc:"time at which the relay slows down; 0s is never"`
	High   Duration `yaml:"high" doc:"time at which the level is high; 0s is never"`
}

// turns is replaced in tests, which run on any machine.
var turns = throttle.DefaultTurns

// defaultBackPressure has marks by taste: memory as Exchange has it, with more
// head-room for Go's collector, and a queue that still fits into a few GiB: a
// million messages take less than one.
func defaultBackPressure() BackPressure {
	return BackPressure{
		Memory:      PercentMarks{70, 85},
		QueueLength: CountMarks{2_000_000, 4_000_000},
		DiskLatency: DurationMarks{500 * Duration(time.Millisecond), 5 * second},
		OutboxLag:   DurationMarks{minute, 10 * minute},
		Patience:    2 * minute, DelayStep: second, DelayMost: 20 * second,
		Contents: turns(),
	}
}

func checkBackPressure(c *Config, p *collector) {
	b := c.BackPressure
	for _, m := range []struct {
		key          string
		medium, high int64
	}{
		{"memory", int64(b.Memory.Medium), int64(b.Memory.High)},
		{"queue_length", int64(b.QueueLength.Medium), int64(b.QueueLength.High)},
		{"disk_latency", int64(b.DiskLatency.Medium), int64(b.DiskLatency.High)},
		{"outbox_lag", int64(b.OutboxLag.Medium), int64(b.OutboxLag.High)},
	} {
		if m.medium > 0 && m.high > 0 && m.medium >= m.high {
			p.errorf("back_pressure."+m.key+".medium", "set it below high", "medium is not below high")
		}
	}
	if b.Patience < 2*second {
		p.errorf("back_pressure.patience", "", "%v is less than 2s", b.Patience)
	}
	if b.DelayMost > minute {
		p.errorf("back_pressure.delay_most", "clients give up waiting", "%v is more than 1m", b.DelayMost)
	}
	if b.DelayStep > b.DelayMost {
		p.errorf("back_pressure.delay_step", "", "%v is more than delay_most, %v", b.DelayStep, b.DelayMost)
	}
}
