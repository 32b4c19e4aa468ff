// Package trackhttp serves the tracking API over HTTP.
//
// It exists so that the store knows nothing of HTTP, and HTTP nothing of
// blocks: a handler parses parameters, asks, and writes the answer. It promises
// that every error is a problem (RFC 9457) that names the wrong parameter, that
// the number of queries at once is bounded, and that openapi.yaml, which it
// serves too, names every path and every field (a test compares them).
//
// Who may call it is decided in front of it (package admin). To add a call, add
// its line to routes, its path to openapi.yaml and its method to trackapi's
// client.
package trackhttp

import (
	"cmp"
	"context"
	_ "embed" // openapi.yaml
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"go.uber.org/zap"

	"waybill/logtrack"
	"waybill/logtrack/trackapi"
)

//go:embed openapi.yaml
var openAPI []byte

// Store is what is served; [logtrack.Store] is the embedded one.
type Store interface {
	Messages(ctx context.Context, q trackapi.Query) (*trackapi.Messages, error)
	Message(ctx context.Context, queueID string) (*trackapi.Timeline, error)
	Transcript(ctx context.Context, queueID string) (*trackapi.Transcript, error)
	SessionTranscript(ctx context.Context, session string) (*trackapi.Transcript, error)
	Events(ctx context.Context, q trackapi.Query) (*trackapi.Events, error)
	Aggregate(ctx context.Context, q trackapi.AggregateQuery) (*trackapi.Aggregate, error)
	Values(ctx context.Context, q trackapi.ValuesQuery) (*trackapi.Values, error)
	Tail(q trackapi.Query) (*logtrack.Tailer, error)
}

// Options configure the handler.
type Options struct {
	Store     Store
	Logger    *zap.Logger   // nil: none
	Queries   int           // at once; others wait; zero means 8
	Wait      time.Duration // for a turn, before 503; zero means 2s
	Heartbeat time.Duration // of live streams; zero means 15s
}

type handler struct {
	opts  Options
	log   *zap.Logger
	turns chan struct{}
}

// New returns the handler of the paths in [Paths].
func New(opts Options) http.Handler {
	if opts.Queries <= 0 {
		opts.Queries = 8
	}
	if opts.Wait <= 0 {
		opts.Wait = 2 * time.Second
	}
	if opts.Heartbeat <= 0 {
		opts.Heartbeat = 15 * time.Second
	}
	log := opts.Logger
	if log == nil {
		log = zap.NewNop()
	}
	h := &handler{opts: opts, log: log.Named("trackhttp"), turns: make(chan struct{}, opts.Queries)}
	mux := http.NewServeMux()
	for path, serve := range h.routes() {
		mux.HandleFunc(path, get(serve))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		WriteProblem(w, &trackapi.Problem{Type: "about:blank", Title: "Not found", Status: http.StatusNotFound, Detail: "no such path", Hint: "GET /api/v1/openapi.yaml lists them"})
	})
	return mux
}

func (h *handler) routes() map[string]http.HandlerFunc {
	s := h.opts.Store
	return map[string]http.HandlerFunc{
		"/api/v1/messages": h.query(func(r *http.Request) (any, error) {
			q, p := trackapi.ParseQuery(r.URL.Query())
			if p != nil {
				return nil, p
			}
			return s.Messages(r.Context(), q)
		}),
		"/api/v1/messages/{queue_id}":              h.one(func(r *http.Request, id string) (any, error) { return s.Message(r.Context(), id) }),
		"/api/v1/messages/{queue_id}/transcript":   h.one(func(r *http.Request, id string) (any, error) { return s.Transcript(r.Context(), id) }),
		"/api/v1/sessions/{session_id}/transcript": h.one(func(r *http.Request, id string) (any, error) { return s.SessionTranscript(r.Context(), id) }),
		"/api/v1/events": h.query(func(r *http.Request) (any, error) {
			q, p := trackapi.ParseQuery(r.URL.Query())
			if p != nil {
				return nil, p
			}
			return s.Events(r.Context(), q)
		}),
		"/api/v1/aggregate": h.query(func(r *http.Request) (any, error) {
			q, p := trackapi.ParseAggregateQuery(r.URL.Query())
			if p != nil {
				return nil, p
			}
			return s.Aggregate(r.Context(), q)
		}),
		"/api/v1/values": h.query(func(r *http.Request) (any, error) {
			q, p := trackapi.ParseValuesQuery(r.URL.Query())
			if p != nil {
				return nil, p
			}
			return s.Values(r.Context(), q)
		}),
		"/api/v1/tail":         h.tail,
		"/api/v1/openapi.yaml": h.openAPI,
	}
}

// Paths lists the patterns that the handler serves, for [http.ServeMux].
func Paths() []string {
	var h handler
	var list []string
	for path := range h.routes() {
		list = append(list, path)
	}
	return list
}

func get(serve http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			WriteProblem(w, &trackapi.Problem{Type: "about:blank", Title: "Method not allowed", Status: http.StatusMethodNotAllowed, Hint: "use GET"})
			return
		}
		serve(w, r)
	}
}

// query serves an answer when it is its turn.
func (h *handler) query(ask func(r *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		wait := time.NewTimer(h.opts.Wait)
		defer wait.Stop()
		select {
		case h.turns <- struct{}{}:
			defer func() { <-h.turns }()
		case <-r.Context().Done():
			return
		case <-wait.C:
			w.Header().Set("Retry-After", "5")
			WriteProblem(w, &trackapi.Problem{
				Type: "urn:waybill:problem:busy", Title: "Too many queries", Status: http.StatusServiceUnavailable, Hint: "try again in a few seconds, or ask for less",
			})
			return
		}
		v, err := ask(r)
		if err != nil {
			h.fail(w, r, err)
			return
		}
		WriteJSON(w, http.StatusOK, v)
	}
}

func (h *handler) one(ask func(r *http.Request, id string) (any, error)) http.HandlerFunc {
	return h.query(func(r *http.Request) (any, error) {
		for name := range r.URL.Query() {
			return nil, trackapi.BadParameter(name, "this path takes no parameters", "leave it out")
		}
		return ask(r, cmp.Or(r.PathValue("queue_id"), r.PathValue("session_id")))
	})
}

func (h *handler) openAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/yaml")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(openAPI) // the client is gone, or not
}

// fail writes the problem of an error. What is not the client's fault is logged.
func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	var p *trackapi.Problem
	switch {
	case errors.As(err, &p):
	case errors.Is(err, logtrack.ErrNotFound):
		p = &trackapi.Problem{
			Type: "urn:waybill:problem:not_found", Title: "No such message", Status: http.StatusNotFound, Field: "queue_id",
			Hint: "the store keeps facts for its retention only; search by recipient or sender",
		}
	case errors.Is(err, logtrack.ErrNoSession):
		p = &trackapi.Problem{
			Type: "urn:waybill:problem:not_found", Title: "No conversation of that session", Status: http.StatusNotFound, Field: "session_id",
			Hint: "those of failed and slow sessions are kept, and what the connectors' transcript keys name; a session that is still open has none yet",
		}
	case errors.Is(err, context.Canceled) && r.Context().Err() != nil:
		return // nobody reads the answer
	case errors.Is(err, context.DeadlineExceeded):
		p = &trackapi.Problem{Type: "urn:waybill:problem:timeout", Title: "The query took too long", Status: http.StatusServiceUnavailable, Hint: "give a shorter time range or an exact filter"}
	default:
		h.log.Error("query failed", zap.String("path", r.URL.Path), zap.Error(err))
		p = &trackapi.Problem{Type: "about:blank", Title: "Internal error", Status: http.StatusInternalServerError, Hint: "the relay's log says more"}
	}
	WriteProblem(w, p)
}

// WriteJSON answers with v.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	write(w, "application/json", status, v)
}

// WriteProblem answers with a problem (RFC 9457).
func WriteProblem(w http.ResponseWriter, p *trackapi.Problem) {
	if p.Status == 0 {
		p.Status = http.StatusInternalServerError
	}
	write(w, "application/problem+json", p.Status, p)
}

func write(w http.ResponseWriter, kind string, status int, v any) {
	h := w.Header()
	b, err := json.Marshal(v)
	if err != nil {
		kind, status = "application/problem+json", http.StatusInternalServerError
		b = []byte(`{"type":"about:blank","title":"Internal error","status":500}`)
	}
	h.Set("Content-Type", kind)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // the client is gone, or not
}
