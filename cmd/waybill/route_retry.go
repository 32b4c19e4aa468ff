package main

import (
	"fmt"
	"strings"

	"waybill/cmd/internal/config"
	"waybill/relay/deliver"
)

// retryPlan says when delivery is tried again.
type retryPlan struct {
	Schedule []string `json:"schedule"` // the last one repeats
	Lifetime string   `json:"lifetime"`
	DelayDSN string   `json:"delay_dsn,omitempty"` // empty: the sender is not told of a delay
	Domain   string   `json:"domain,omitempty"`    // whose values these are; empty: those of the connector
}

// planOf is the plan of r for a next hop.
func planOf(r deliver.Retry, hop string) *retryPlan {
	of, domain := r.For(hop)
	p := &retryPlan{Lifetime: config.Duration(of.Lifetime).String(), Domain: domain}
	for _, d := range of.Schedule {
		p.Schedule = append(p.Schedule, config.Duration(d).String())
	}
	if of.DelayDSN > 0 {
		p.DelayDSN = config.Duration(of.DelayDSN).String()
	}
	return p
}

// String is the plan in words, without when the sender is told.
func (p *retryPlan) String() string {
	var b strings.Builder
	for i := 0; i < len(p.Schedule); {
		n := 1
		for i+n < len(p.Schedule) && p.Schedule[i+n] == p.Schedule[i] {
			n++
		}
		switch last := i+n == len(p.Schedule); {
		case last:
			fmt.Fprintf(&b, "every %s", p.Schedule[i])
		case n > 1:
			fmt.Fprintf(&b, "%d × %s, then ", n, p.Schedule[i])
		default:
			b.WriteString(p.Schedule[i] + ", then ")
		}
		i += n
	}
	return b.String() + ", for " + p.Lifetime
}
