package app

import (
	"waybill/cmd/internal/admin"
	"waybill/relay/backoff"
	"waybill/relay/route"
)

// slowed is how the scheduler treats a next hop at present, for the API.
func (a *App) slowed(hop route.Hop) admin.Slowed {
	st := a.deliver.Slowed(hop)
	out := admin.Slowed{Connections: st.Window, Rule: st.Rule, Why: st.Why, Until: st.Until, PerMinute: st.PerMinute}
	if st.Mode != backoff.None {
		out.Mode = string(st.Mode)
	}
	return out
}

// backoffs counts the next hops that have asked for less, by mode.
func (a *App) backoffs() map[string]int {
	n := map[string]int{}
	for mode, k := range a.deliver.Backoffs() {
		n[string(mode)] = k
	}
	return n
}
