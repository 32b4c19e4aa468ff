// Package admin is the daemon's HTTP side: health, metrics, the queue's API and
// control, and the tracking API that package trackhttp serves.
//
// It exists so that one listener with one set of rules guards all of it. It
// promises that without tokens only loopback is answered, that a browser's page
// from elsewhere cannot reach it (Host and Origin are checked, no CORS), that
// what changes the queue needs the operator role and is a fact, and that every
// error is a problem document (RFC 9457).
//
// To add a call, add its route to New with the role that it needs, its types to
// trackapi and its description to the OpenAPI document of trackhttp.
package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"waybill/cmd/internal/config"
	"waybill/logtrack/trackapi"
	"waybill/logtrack/trackhttp"
	"waybill/relay/event"
	"waybill/relay/failure"
	"waybill/relay/queue"
	"waybill/relay/route"
	"waybill/relay/throttle"
	"waybill/relay/transcript"
)

// Options configure the Handler.
type Options struct {
	Queue      *queue.Queue
	Throttles  *throttle.Set // nil: there are none
	Tracking   http.Handler  // messages, events, aggregate, values, tail, openapi.yaml; nil when tracking is off
	TrackStore TrackStore    // nil when tracking is off
	// TrackBroken is why the tracking store could not be opened; nil when it was, or is off.
	TrackBroken error
	Metrics     http.Handler
	Ready       func() error                       // nil when mail is taken
	Acted       func()                             // after a change of the queue that lets messages go, and before a retry; may be nil
	Slowed      func(hop route.Hop) Slowed         // how a next hop is treated; may be nil
	Explain     func(*queue.State) failure.Meaning // what a recipient's last failure means; may be nil
	Ends        func(*queue.Message) time.Time     // when the life of a queued message ends, zero when nobody waits for it; may be nil
	Reload      func() error
	Backup      func(ctx context.Context, dir string) (*trackapi.BackupDone, error)
	Status      func() trackapi.Status
	Emitter     event.Emitter
	Tap         *transcript.Tap // where conversations can be watched

	// Operations on the queue that its owner makes possible.
	Drain          func(Drain) error          // hands the queue to another host, or ends that
	Drained        func() trackapi.QueueDrain // how far that has come
	SendConnectors func() []string            // their names
	Subject        func(string) string        // what the record keeps of a subject

	// Authenticate tells who holds a bearer token. Nil: there are no tokens,
	// and callers on loopback have every role.
	Authenticate func(token string) (config.Token, bool)
	Hosts        []string // names under which the listener may be called, beside loopback and IP addresses
}

// Handler serves the HTTP side.
type Handler struct {
	opts     Options
	mux      *http.ServeMux
	patterns []string // that the mux serves
	rates    *rates
}

// New returns the HTTP side. Run [Handler.Run] beside it.
func New(opts Options) *Handler {
	h := &Handler{opts: opts, mux: http.NewServeMux(), rates: newRates()}
	open := func(pattern string, f http.HandlerFunc) {
		h.patterns = append(h.patterns, pattern)
		h.mux.HandleFunc(pattern, f)
	}
	guard := func(pattern string, role config.Role, f http.HandlerFunc) {
		open(pattern, func(w http.ResponseWriter, r *http.Request) {
			if h.allow(w, r, role) {
				f(w, r)
			}
		})
	}
	open("GET /-/healthy", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "healthy") })
	open("GET /-/ready", h.ready)
	guard("POST /-/reload", config.RoleAdmin, h.reload)
	guard("GET /metrics", config.RoleViewer, opts.Metrics.ServeHTTP)
	guard("GET /api/v1/status", config.RoleViewer, func(w http.ResponseWriter, _ *http.Request) {
		trackhttp.WriteJSON(w, http.StatusOK, opts.Status())
	})
	guard("GET /api/v1/queues", config.RoleViewer, h.queues)
	guard("GET /api/v1/queue/messages", config.RoleViewer, h.queueMessages)
	guard("GET /api/v1/queue/messages/{queue_id}/content", config.RoleAdmin, h.content)
	guard("GET /api/v1/protocol/tail", config.RoleOperator, h.watch)
	guard("POST /api/v1/queue/actions", config.RoleOperator, h.act)
	guard("GET /api/v1/queue/messages/{queue_id}/envelope", config.RoleAdmin, h.envelope)
	guard("POST /api/v1/queue/messages", config.RoleAdmin, h.importMessage)
	guard("GET /api/v1/queue/holds", config.RoleViewer, h.holds)
	guard("GET /api/v1/queue/drain", config.RoleViewer, h.drained)
	guard("POST /api/v1/queue/drain", config.RoleAdmin, h.drain)
	guard("GET /api/v1/throttles", config.RoleViewer, h.throttles)
	guard("POST /api/v1/throttles/actions", config.RoleOperator, h.actOnThrottles)
	if opts.TrackStore != nil {
		h.operateTracking(guard)
	}
	if opts.Backup != nil {
		guard("POST /api/v1/backup", config.RoleAdmin, h.backup)
	}
	if opts.Tracking != nil {
		guard("GET /api/v1/", config.RoleViewer, opts.Tracking.ServeHTTP)
	} else {
		guard("GET /api/v1/", config.RoleViewer, h.untracked)
		guard("POST /api/v1/tracking/", config.RoleViewer, h.untracked)
	}
	guard("GET /debug/pprof/", config.RoleAdmin, pprof.Index)
	guard("GET /debug/pprof/profile", config.RoleAdmin, pprof.Profile)
	guard("GET /debug/pprof/trace", config.RoleAdmin, pprof.Trace)
	guard("/", config.RoleViewer, h.index)
	return h
}

// untracked answers for a tracking store that is not there.
func (h *Handler) untracked(w http.ResponseWriter, _ *http.Request) {
	if h.opts.TrackBroken != nil {
		problem(w, http.StatusServiceUnavailable, "Tracking is broken", h.opts.TrackBroken.Error(), "",
			`mail is relayed all the same, and its facts wait in the queue; cure what the detail says, or move the directory "track" in data_dir away, and restart; `+
				`"waybill track reindex LOG..." then brings back what the log has`)
		return
	}
	problem(w, http.StatusServiceUnavailable, "Tracking is off", "the configuration says tracking.engine: off", "", "")
}

// Run keeps the queue's rates until ctx is done.
func (h *Handler) Run(ctx context.Context) error { return h.rates.run(ctx, h.opts.Queue) }

// ServeHTTP checks where a request comes from and serves it. A panic answers
// 500 and is a fact.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer func() {
		v := recover()
		switch v {
		case nil:
		case http.ErrAbortHandler: // compared as net/http does
			panic(v) // the handler wants the connection closed
		default:
			h.opts.Emitter.Source(event.SourceAdmin).Emit(event.Panicked{Where: "http " + r.Method, Value: fmt.Sprint(v), Stack: string(debug.Stack())})
			problem(w, http.StatusInternalServerError, "Internal error", "", "", "the log has the details")
		}
	}()
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	if !h.knownHost(r.Host) {
		problem(w, http.StatusMisdirectedRequest, "Unknown host", "this server does not answer for that Host header", "", "call it by IP address, localhost or the configured hostname")
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		if o := r.Header.Get("Origin"); o != "" || strings.HasPrefix(r.Header.Get("Sec-Fetch-Site"), "cross") {
			problem(w, http.StatusForbidden, "Not for browsers", "requests that change something are not taken from web pages", "", "")
			return
		}
	}
	h.mux.ServeHTTP(w, r)
}

// knownHost guards against DNS rebinding: a page that made its own name point
// here still sends its own name.
func (h *Handler) knownHost(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	host = strings.Trim(host, "[]")
	if _, err := netip.ParseAddr(host); err == nil || strings.EqualFold(host, "localhost") {
		return true
	}
	return slices.ContainsFunc(h.opts.Hosts, func(s string) bool { return strings.EqualFold(s, host) })
}

type actorKey struct{}

// allow reports whether the caller has role, and answers when not.
func (h *Handler) allow(w http.ResponseWriter, r *http.Request, role config.Role) bool {
	if h.opts.Authenticate == nil {
		if ip := clientIP(r); !ip.IsLoopback() || forwarded(r) {
			problem(w, http.StatusForbidden, "Loopback only", "without http.tokens_file this API answers on loopback only, and not through a proxy", "", "set http.tokens_file")
			return false
		}
		return true
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	var caller config.Token
	if ok {
		caller, ok = h.opts.Authenticate(strings.TrimSpace(token))
	}
	switch {
	case !ok:
		w.Header().Set("WWW-Authenticate", `Bearer realm="waybill"`)
		problem(w, http.StatusUnauthorized, "No valid token", "", "", "send Authorization: Bearer TOKEN")
		return false
	case !caller.Role.Allows(role):
		problem(w, http.StatusForbidden, "Not allowed", fmt.Sprintf("this call needs the role %s; token %q has %s", role, caller.Name, caller.Role), "", "")
		return false
	}
	*r = *r.WithContext(context.WithValue(r.Context(), actorKey{}, caller.Name))
	return true
}

// forwarded reports whether a proxy says that the request is somebody else's:
// its own address tells nothing then.
func forwarded(r *http.Request) bool {
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Real-Ip"} {
		if r.Header.Get(name) != "" {
			return true
		}
	}
	return false
}

// actor names the caller for facts.
func actor(r *http.Request) string {
	if name, ok := r.Context().Value(actorKey{}).(string); ok {
		return name
	}
	return "local"
}

func clientIP(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

func (h *Handler) ready(w http.ResponseWriter, _ *http.Request) {
	if err := h.opts.Ready(); err != nil {
		problem(w, http.StatusServiceUnavailable, "Not ready", err.Error(), "", "")
		return
	}
	_, _ = fmt.Fprintln(w, "ready")
}

func (h *Handler) reload(w http.ResponseWriter, _ *http.Request) {
	if err := h.opts.Reload(); err != nil {
		problem(w, http.StatusUnprocessableEntity, "The new configuration was not taken", err.Error(), "", "the old one stays in use")
		return
	}
	trackhttp.WriteJSON(w, http.StatusOK, h.opts.Status())
}

// index says what is here to a person who came with a browser or curl.
func (h *Handler) index(w http.ResponseWriter, r *http.Request) {
	if methods := h.methods(r); len(methods) > 0 {
		w.Header().Set("Allow", strings.Join(methods, ", "))
		problem(w, http.StatusMethodNotAllowed, "Method not allowed", "", "", "use "+strings.Join(methods, ", "))
		return
	}
	if r.URL.Path != "/" {
		problem(w, http.StatusNotFound, "Not found", "no such path", "", "GET / lists what is here")
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = fmt.Fprint(w, `Waybill

GET  /metrics                          Prometheus
GET  /-/healthy  /-/ready              health; POST /-/reload
GET  /api/v1/status                    version, readiness, tracking store
GET  /api/v1/messages?recipient=...    find messages
GET  /api/v1/messages/{queue_id}       one message's timeline
GET  /api/v1/queues                    what waits, for whom, since when
GET  /api/v1/throttles                 who is stopped by which limit
GET  /api/v1/openapi.yaml              everything
GET  /debug/pprof/                     profiles (role admin)
`)
}

// methods are those that r's path is served with, when r's own is not one.
func (h *Handler) methods(r *http.Request) (list []string) {
	for _, m := range []string{http.MethodGet, http.MethodPost} {
		other := r.Clone(r.Context())
		other.Method = m
		if _, pattern := h.mux.Handler(other); pattern != "/" {
			list = append(list, m)
		}
	}
	return list
}

func problem(w http.ResponseWriter, status int, title, detail, field, hint string) {
	trackhttp.WriteProblem(w, &trackapi.Problem{Type: "about:blank", Title: title, Status: status, Detail: detail, Field: field, Hint: hint})
}

// fail answers an error of the queue.
func fail(w http.ResponseWriter, err error) {
	if errors.Is(err, queue.ErrNotFound) {
		problem(w, http.StatusNotFound, "No such message in the queue", "", "queue_id", "it may have left: look in /api/v1/messages/{queue_id}")
		return
	}
	problem(w, http.StatusInternalServerError, "The queue did not answer", err.Error(), "", "")
}
