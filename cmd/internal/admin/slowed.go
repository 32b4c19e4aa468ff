package admin

import (
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/route"
)

// Slowed is how a next hop is treated at present.
type Slowed struct {
	Connections int    // at once, as learned from its replies
	Mode        string // slow, single, pause; empty: as usual
	Rule        string // which pattern knew the reply that asked for it
	Why         string
	Until       time.Time
	PerMinute   int // messages; of mode slow
}

func (h *Handler) slowed(hop route.Hop, row *trackapi.Queue) {
	if h.opts.Slowed == nil || hop.Connector == "" {
		return
	}
	s := h.opts.Slowed(hop)
	row.Connections, row.Backoff, row.BackoffRule, row.BackoffWhy, row.BackoffUntil, row.PerMinute = s.Connections, s.Mode, s.Rule, s.Why, s.Until, s.PerMinute
}
