package config

import (
	"fmt"
	"slices"
	"strings"

	"waybill/relay/route"
)

// conditions reports whether the connector is not for everybody's mail.
func (s *SendConnector) conditions() bool {
	return len(s.Linked)+len(s.Senders)+len(s.Users) > 0
}

// checkOrigin checks what a send connector wants of where mail comes from.
func checkOrigin(c *Config, s *SendConnector, p *collector, path string) {
	receive, _ := c.connectorNames()
	for j, name := range s.Linked {
		if !slices.Contains(receive, name) {
			p.errorf(fmt.Sprintf("%s.receive_connectors[%d]", path, j), "one of "+strings.Join(receive, ", "), "there is no receive connector %q", clip(name))
		}
	}
	for j, pattern := range s.Senders {
		if err := route.CheckSender(pattern); err != nil {
			p.errorf(fmt.Sprintf("%s.senders[%d]", path, j), `"user@example.com", "example.com", "*.example.com" or "<>"`, "%q is not a sender", clip(pattern))
		}
	}
	for j, user := range s.Users {
		if user == "" {
			p.errorf(fmt.Sprintf("%s.users[%d]", path, j), "", "the name is empty")
		}
	}
}

// connectorNames lists the names of the receive connectors and the pickup
// directory, and those of the send connectors.
func (c *Config) connectorNames() (receive, send []string) {
	for _, r := range c.Receive {
		receive = append(receive, r.Name)
	}
	if c.Pickup.Dir != "" {
		receive = append(receive, c.Pickup.Name)
	}
	for _, s := range c.Send {
		send = append(send, s.Name)
	}
	return receive, send
}

// checkKeep checks for how long relayed messages are kept.
func checkKeep(q *Queue, p *collector) {
	if q.KeepAfterRelay > 31*Day {
		p.errorf("queue.keep_after_relay", "", "%v is more than 31d", q.KeepAfterRelay)
	}
	if q.KeepMaxSize < MiB {
		p.errorf("queue.keep_max_size", "", "%v is less than 1MiB", q.KeepMaxSize)
	}
}
