package admin

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"waybill/cmd/internal/config"
	"waybill/logtrack/trackapi"
	"waybill/logtrack/trackhttp"
	"waybill/relay/event"
)

// TrackStore is what operators do to the tracking store.
type TrackStore interface {
	// Reindex takes the facts of log lines that the store does not have.
	Reindex(ctx context.Context, lines io.Reader) (trackapi.Imported, error)
}

// operateTracking adds the calls that change or check the tracking store. Each
// change is a fact that names who did it.
func (h *Handler) operateTracking(guard func(pattern string, role config.Role, f http.HandlerFunc)) {
	guard("POST /api/v1/tracking/import", config.RoleAdmin, h.importFacts)
}

// importFacts takes facts of the past: lines of our log, or what was read from
// the logs of another server.
func (h *Handler) importFacts(w http.ResponseWriter, r *http.Request) {
	// The server's timeouts are for questions; this may be a year of mail.
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{}) // not every writer has deadlines
	_ = rc.SetWriteDeadline(time.Time{})
	done, err := h.opts.TrackStore.Reindex(r.Context(), r.Body)
	result := "ok"
	if err != nil {
		result = "error"
	}
	h.acted(r, "import", "", done.Added, result)
	var p *trackapi.Problem
	switch {
	case err == nil:
		trackhttp.WriteJSON(w, http.StatusOK, done)
	case r.Context().Err() != nil: // nobody reads the answer
	case errors.As(err, &p):
		trackhttp.WriteProblem(w, p)
	default:
		problem(w, http.StatusInternalServerError, "The tracking store could not take all facts", err.Error(), "", "what was taken is kept; send the rest again")
	}
}

// acted states what an operator did to the tracking store.
func (h *Handler) acted(r *http.Request, action, filter string, affected int, result string) {
	h.opts.Emitter.Source(event.SourceAdmin).Emit(event.AdminActed{
		Actor: actor(r), Action: action, Filter: filter, Affected: affected, Result: result, ClientIP: clientIP(r),
	})
}
