package admin

import (
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/mail"
	"waybill/relay/queue"
	"waybill/relay/route"
)

// explain adds why each recipient of m waits, and what its last failure means.
func (h *Handler) explain(m *queue.Message, list []trackapi.QueuedRecipient) {
	h.explainWaits(m, list)
	if h.opts.Explain == nil {
		return
	}
	for i := range list {
		got := h.opts.Explain(&m.States[i])
		list[i].Rule, list[i].Permanence, list[i].Explanation = got.Rule, string(got.Permanence), got.Explanation
	}
}

// explainWaits says which recipients wait because their next hop takes nothing,
// which no record tells: nothing is written for each message when a hop is lost.
func (h *Handler) explainWaits(m *queue.Message, list []trackapi.QueuedRecipient) {
	var hop route.Hop // of most recipients, as a rule
	var why string
	var again time.Time
	for i := range list {
		st, r := &m.States[i], &list[i]
		if m.HeldBy != "" || st.Disposition.Final() || st.Disposition == mail.Held {
			continue
		}
		if st.Hop != hop {
			hop = st.Hop
			why, again = h.opts.Queue.Unavailable(hop)
		}
		if again.IsZero() {
			continue
		}
		if again.After(r.Next) {
			r.Next = again
		}
		if r.Reply == "" {
			r.Waits = "the next hop takes nothing at present: " + why
		}
	}
}
