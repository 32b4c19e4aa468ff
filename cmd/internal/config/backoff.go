package config

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"waybill/relay/backoff"
)

// Backoff is what is done about next hops that ask for less mail.
type Backoff struct {
	Mode      string `yaml:"mode" enum:"on,off" doc:"whether replies that ask for less mail slow down all mail to that next hop: pause, one connection, or so many messages a minute, for a time"`
	RulesFile string `yaml:"rules_file" file:"true" doc:"YAML file of patterns of replies, asked before those that come with the program; \"waybill config backoff\" prints these"`
}

func defaultBackoff() Backoff { return Backoff{Mode: "on"} }

// Rules are the patterns in the order in which they are asked; none when the
// mode is off.
func (b *Backoff) Rules() (backoff.Rules, error) {
	if b.Mode == "off" {
		return nil, nil
	}
	rules := backoff.Default()
	if b.RulesFile == "" {
		return rules, nil
	}
	data, err := os.ReadFile(b.RulesFile)
	if err != nil {
		return nil, fmt.Errorf("backoff.rules_file: %w", err)
	}
	own, err := backoff.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("backoff.rules_file: %w", err)
	}
	return rules.With(own), nil
}

// checkWindow checks how many connections a next hop gets at first, and at least.
func checkWindow(l *SendLimits, p *collector, path string) {
	for _, part := range []struct {
		key   string
		value int
	}{
		{"connections_per_destination_start", l.StartPerDestination},
		{"connections_per_destination_min", l.LeastPerDestination},
	} {
		if part.value > l.ConnectionsPerDestination {
			p.errorf(path+"."+part.key, "", "%d is more than connections_per_destination, %d", part.value, l.ConnectionsPerDestination)
		}
	}
}

// checkBackoffFile checks the operator's patterns.
func checkBackoffFile(c *Config, p *collector) {
	if _, err := c.Backoff.Rules(); err != nil {
		what, hint := strings.TrimPrefix(err.Error(), "backoff.rules_file: "), "waybill config backoff prints rules to go by"
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			what, hint = readable(c.Backoff.RulesFile)
		}
		p.errorf("backoff.rules_file", hint, "%s", strings.ReplaceAll(what, "\n", "; "))
	}
}
