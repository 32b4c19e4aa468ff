package app

import (
	"time"

	"waybill/cmd/internal/config"
	"waybill/relay/deliver"
	"waybill/relay/mail"
	"waybill/relay/queue"
	"waybill/relay/smtpin"
)

// Retry is when a send connector tries again.
func Retry(c config.Retry) deliver.Retry {
	one := func(schedule []config.Duration, lifetime, delay config.Duration) deliver.Retry {
		r := deliver.Retry{Lifetime: time.Duration(lifetime), DelayDSN: orNone(time.Duration(delay))}
		for _, d := range schedule {
			r.Schedule = append(r.Schedule, time.Duration(d))
		}
		return r
	}
	r := one(c.Schedule, c.Lifetime, c.DelayDSN)
	for _, d := range c.Domains {
		for _, name := range d.Domains {
			if key, err := config.Domain(name); err == nil { // checked
				if r.Domains == nil {
					r.Domains = map[string]deliver.Retry{}
				}
				r.Domains[key] = one(d.Schedule, d.Lifetime, d.DelayDSN)
			}
		}
	}
	return r
}

// receivePriority is how urgent messages of a receive connector are.
func receivePriority(c config.ReceivePriority) smtpin.Priority {
	p := smtpin.Priority{Headers: c.Headers}
	_ = p.Default.UnmarshalText([]byte(c.Default)) // never fails
	return p
}

// priorities are the queue's classes.
func priorities(c *config.Config) map[mail.Priority]queue.Class {
	class := func(p config.Priority) queue.Class {
		return queue.Class{HandOver: time.Duration(p.HandOver), Share: int(p.Connections)}
	}
	p := c.Queue.Priorities
	return map[mail.Priority]queue.Class{mail.PriorityHigh: class(p.High), mail.PriorityNormal: class(p.Normal), mail.PriorityLow: class(p.Low)}
}
