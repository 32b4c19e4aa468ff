package config

import (
	"fmt"
	"slices"
)

// DomainRetry says when delivery to certain domains is tried again.
type DomainRetry struct {
	Domains  []string   `yaml:"domains" required:"true" doc:"recipient domains: \"example.com\", or \"*.example.com\" for its sub-domains, and not itself. The most specific one counts"`
	Schedule []Duration `yaml:"schedule" doc:"waits between attempts; the last one repeats" default:"that of the connector"`
	Lifetime Duration   `yaml:"lifetime" doc:"how long delivery is tried before the sender gets a report" default:"that of the connector"`
	DelayDSN Duration   `yaml:"delay_dsn" doc:"after how long the sender is told about a delay; 0s is never" default:"that of the connector, or 0s when lifetime is not longer"`
}

// completeRetry gives the domains of send connector i what they do not say.
func (c *Config) completeRetry(i int) {
	r := &c.Send[i].Retry
	for j := range r.Domains {
		d := &r.Domains[j]
		said := func(key string) bool {
			_, ok := c.positions[fmt.Sprintf("send_connectors[%d].retry.domains[%d].%s", i, j, key)]
			return ok
		}
		if !said("schedule") {
			d.Schedule = slices.Clone(r.Schedule)
		}
		if !said("lifetime") {
			d.Lifetime = r.Lifetime
		}
		if !said("delay_dsn") {
			if d.DelayDSN = r.DelayDSN; d.DelayDSN >= d.Lifetime {
				d.DelayDSN = 0
			}
		}
	}
}

// checkRetryDomains checks the schedules of domains.
func checkRetryDomains(s *SendConnector, p *collector, path string) {
	if len(s.Retry.Domains) > 0 && s.Route != "mx" {
		p.errorf(path, "give the domains a send connector of their own",
			"domains have schedules of their own with route: mx; what is for smart hosts waits together")
	}
	seen := map[string]bool{}
	for j, d := range s.Retry.Domains {
		at := fmt.Sprintf("%s[%d]", path, j)
		for k, name := range d.Domains {
			key, err := parseSpace(name)
			switch {
			case err != nil || name == "*":
				p.errorf(fmt.Sprintf("%s.domains[%d]", at, k), `"example.com" or "*.example.com"`, "%q is not a domain", clip(name))
			case seen[key]:
				p.errorf(fmt.Sprintf("%s.domains[%d]", at, k), "", "%q is there twice", key)
			}
			seen[key] = true
		}
		checkRetry(Retry{Schedule: d.Schedule, Lifetime: d.Lifetime, DelayDSN: d.DelayDSN}, p, at)
	}
}

// Priorities are the classes of messages in the queue.
type Priorities struct {
	High   Priority `yaml:"high" doc:"urgent mail"`
	Normal Priority `yaml:"normal" doc:"all other mail"`
	Low    Priority `yaml:"low" doc:"bulk mail"`
}

// Priority is what the queue does for messages of one priority.
type Priority struct {
	HandOver    Duration `yaml:"hand_over" doc:"how soon a next hop should have taken a message of this priority (RFC 6710); what takes longer is told and counted as late"`
	Connections Percent  `yaml:"connections" min:"1" max:"100" doc:"the most that its messages may have at once of the attempts at a next hop, and of all; the rest is kept for others"`
}

func defaultPriorities() Priorities {
	return Priorities{
		High: Priority{HandOver: 30 * second, Connections: 100}, Normal: Priority{HandOver: 5 * minute, Connections: 100},
		Low: Priority{HandOver: 60 * minute, Connections: 50},
	}
}

func checkPriorities(q Priorities, p *collector) {
	for _, class := range []struct {
		key string
		Priority
	}{{"high", q.High}, {"normal", q.Normal}, {"low", q.Low}} {
		path := "queue.priorities." + class.key
		if class.HandOver < second || class.HandOver > Week {
			p.errorf(path+".hand_over", "", "%v is not between 1s and 7d", class.HandOver)
		}
		if class.Connections < 1 {
			p.errorf(path+".connections", "", "without connections its mail would never go")
		}
	}
}

// Domain is a domain of [DomainRetry] as routing compares it.
func Domain(name string) (string, error) { return parseSpace(name) }
