package admin

import (
	"slices"

	"waybill/logtrack/trackapi"
	"waybill/relay/mail"
	"waybill/relay/queue"
)

// explainHold says who holds a message whose record does not tell, because its
// next hop is held: nothing is written for each message when that happens.
func (h *Handler) explainHold(m *queue.Message, out *trackapi.QueuedMessage) {
	if m.HeldBy != "" || out.State != mail.Held.String() {
		return
	}
	for _, hold := range h.opts.Queue.Holds() {
		for _, s := range m.States {
			if s.Disposition == mail.Held && onlyHop(hold.Filter) && covers(hold.Filter, queue.Filter{Hop: s.Hop.Name, Connector: s.Hop.Connector}) {
				out.HeldBy, out.HeldWhy, out.HeldUntil = hold.By, hold.Why, hold.Until
				return
			}
		}
	}
}

// lasts reports whether an action with f is for messages to come too: a hold that
// stands, or the end of one that stood when it began.
func lasts(action string, f queue.Filter, standing []queue.Hold) bool {
	switch action {
	case "hold":
		return f.Lasting()
	case "release":
		all := f == queue.Filter{All: true}
		f.All = false
		return slices.ContainsFunc(standing, func(h queue.Hold) bool {
			return all || h.Filter == f || onlyHop(f) && onlyHop(h.Filter) && covers(f, h.Filter)
		})
	}
	return false
}

// onlyHop reports whether f selects by next hop and send connector alone.
func onlyHop(f queue.Filter) bool {
	return f.Hop+f.Connector != "" && f == queue.Filter{Hop: f.Hop, Connector: f.Connector}
}

// covers reports whether the next hops of pattern, with empty fields for any,
// are all of those of f.
func covers(pattern, f queue.Filter) bool {
	return (pattern.Hop == "" || pattern.Hop == f.Hop) && (pattern.Connector == "" || pattern.Connector == f.Connector)
}
