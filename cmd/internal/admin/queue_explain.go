package admin

import (
	"waybill/logtrack/trackapi"
	"waybill/relay/mail"
	"waybill/relay/queue"
)

// explain adds why each recipient of m waits, and what its last failure means.
func (h *Handler) explain(m *queue.Message, list []trackapi.QueuedRecipient) {
	for i := range list {
		h.explainWait(m, i, &list[i])
	}
	if h.opts.Explain == nil {
		return
	}
	for i := range list {
		got := h.opts.Explain(&m.States[i])
		list[i].Rule, list[i].Permanence, list[i].Explanation = got.Rule, string(got.Permanence), got.Explanation
	}
}

// explainWait says of recipient i that it waits for its next hop to come back,
// which no record tells: nothing is written for each message when that is lost.
func (h *Handler) explainWait(m *queue.Message, i int, r *trackapi.QueuedRecipient) {
	if st := &m.States[i]; m.HeldBy != "" || st.Disposition.Final() || st.Disposition == mail.Held {
		return
	}
	why, again := h.opts.Queue.Unreachable(m.States[i].Hop)
	if again.IsZero() {
		return
	}
	if again.After(r.Next) {
		r.Next = again
	}
	if r.Reply == "" {
		r.Waits = "the next hop cannot be reached: " + why
	}
}
