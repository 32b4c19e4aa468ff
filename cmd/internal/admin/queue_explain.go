package admin

import (
	"waybill/logtrack/trackapi"
	"waybill/relay/queue"
)

// explain adds what the last failure of each recipient of m means.
func (h *Handler) explain(m *queue.Message, list []trackapi.QueuedRecipient) {
	if h.opts.Explain == nil {
		return
	}
	for i := range list {
		got := h.opts.Explain(&m.States[i])
		list[i].Rule, list[i].Permanence, list[i].Explanation = got.Rule, string(got.Permanence), got.Explanation
	}
}
