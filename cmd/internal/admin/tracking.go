package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"waybill/cmd/internal/config"
	"waybill/logtrack/trackapi"
	"waybill/logtrack/trackhttp"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/queue"
)

// TrackStore is what operators do to the tracking store.
type TrackStore interface {
	// Reindex takes the facts of log lines that the store does not have.
	Reindex(ctx context.Context, lines io.Reader) (trackapi.Imported, error)
	// Verify checks the store against itself and the queue.
	Verify(ctx context.Context, queued func(context.Context) (map[mail.QueueID]bool, error)) (*trackapi.Verified, error)
	// Repair takes damaged parts out.
	Repair(ctx context.Context) (trackapi.Repaired, error)
	// Erase takes an address out of all facts.
	Erase(ctx context.Context, address string) (trackapi.Erased, error)
	// Operation tells levels and totals.
	Operation() trackapi.TrackStats
}

// operateTracking adds the calls that change or check the tracking store. Each
// change is a fact that names who did it.
func (h *Handler) operateTracking(guard func(pattern string, role config.Role, f http.HandlerFunc)) {
	guard("POST /api/v1/tracking/import", config.RoleAdmin, h.importFacts)
	guard("POST /api/v1/tracking/repair", config.RoleAdmin, h.repairTracking)
	guard("POST /api/v1/tracking/erase", config.RoleAdmin, h.eraseAddress)
	guard("POST /api/v1/tracking/verify", config.RoleOperator, h.verifyTracking)
	guard("GET /api/v1/tracking/stats", config.RoleViewer, func(w http.ResponseWriter, _ *http.Request) {
		trackhttp.WriteJSON(w, http.StatusOK, h.opts.TrackStore.Operation())
	})
}

func (h *Handler) verifyTracking(w http.ResponseWriter, r *http.Request) {
	v, err := h.opts.TrackStore.Verify(r.Context(), h.queued)
	answerTracking(w, r, v, err)
}

func (h *Handler) repairTracking(w http.ResponseWriter, r *http.Request) {
	done, err := h.opts.TrackStore.Repair(r.Context())
	h.acted(r, "repair_tracking", "", done.Blocks+done.Partitions, resultOf(err))
	answerTracking(w, r, done, err)
}

// eraseAddress erases. The fact about it names the domain only: the address is
// not to be in the record any more.
func (h *Handler) eraseAddress(w http.ResponseWriter, r *http.Request) {
	if ct, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || ct != "application/json" {
		problem(w, http.StatusUnsupportedMediaType, "Want JSON", "", "", "send Content-Type: application/json")
		return
	}
	var in trackapi.EraseInput
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		problem(w, http.StatusBadRequest, "Bad JSON", err.Error(), "", "")
		return
	}
	done, err := h.opts.TrackStore.Erase(r.Context(), in.Address)
	if _, wrong := errors.AsType[*trackapi.Problem](err); !wrong {
		h.acted(r, "erase", "an address of "+in.Address[strings.LastIndexByte(in.Address, '@')+1:], done.Facts, resultOf(err))
	}
	answerTracking(w, r, done, err)
}

// queued lists the queue.
func (h *Handler) queued(ctx context.Context) (map[mail.QueueID]bool, error) {
	all := map[mail.QueueID]bool{}
	after := mail.QueueID("")
	for {
		const page = 1000
		list, err := h.opts.Queue.List(ctx, queue.Filter{}, after, page)
		if err != nil {
			return nil, err
		}
		for _, m := range list {
			all[m.ID] = true
			after = m.ID
		}
		if len(list) < page {
			return all, nil
		}
	}
}

func resultOf(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}

func answerTracking(w http.ResponseWriter, r *http.Request, v any, err error) {
	var p *trackapi.Problem
	switch {
	case err == nil:
		trackhttp.WriteJSON(w, http.StatusOK, v)
	case r.Context().Err() != nil: // nobody reads the answer
	case errors.As(err, &p):
		trackhttp.WriteProblem(w, p)
	default:
		problem(w, http.StatusInternalServerError, "The tracking store did not answer", err.Error(), "", "")
	}
}

// importFacts takes facts of the past: lines of our log, or what was read from
// the logs of another server.
func (h *Handler) importFacts(w http.ResponseWriter, r *http.Request) {
	// The server's timeouts are for questions; this may be a year of mail.
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{}) // not every writer has deadlines
	_ = rc.SetWriteDeadline(time.Time{})
	done, err := h.opts.TrackStore.Reindex(r.Context(), r.Body)
	h.acted(r, "import", "", done.Added, resultOf(err))
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
