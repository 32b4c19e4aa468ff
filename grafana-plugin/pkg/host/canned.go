package host

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// refusal is a problem of the API (RFC 9457), and canned the part of its answer
// that is looked into. They are written out here so that this package knows no
// other of the module, and can host any plugin.
type refusal struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Field  string `json:"field,omitempty"`
	Hint   string `json:"hint,omitempty"`
}

type canned struct {
	Messages []map[string]any `json:"messages"`
	TookMS   float64          `json:"took_ms"`
}

// Canned is a tracking API that answers from the files of a folder: for tests,
// and for looking at the plugin without a relay. It checks the token when one is
// given, refuses a Disposition that does not exist as the real API does, and
// applies the filter by recipient; everything else it takes as given.
func Canned(folder, token string) http.Handler {
	mux := http.NewServeMux()
	file := func(pattern, name string) {
		mux.HandleFunc("GET /api/v1/"+pattern, func(w http.ResponseWriter, _ *http.Request) { serveFile(w, folder, name) })
	}
	file("status", "status")
	file("events", "events")
	file("queues", "queues")
	file("values", "values")
	file("messages/{id}/transcript", "transcript")
	mux.HandleFunc("GET /api/v1/aggregate", func(w http.ResponseWriter, r *http.Request) {
		total := func(q url.Values) bool { return q.Get("step") == "" || q.Get("step") == "0s" || q.Get("step") == "0" }
		switch q := r.URL.Query(); {
		case q.Get("domain") == "nowhere.example":
			serveFile(w, folder, "aggregate_empty")
		case strings.Contains(q.Get("metric"), ",") && total(q):
			serveFile(w, folder, "aggregate_percentiles_total")
		case strings.Contains(q.Get("metric"), ","):
			serveFile(w, folder, "aggregate_percentiles")
		case total(q):
			serveFile(w, folder, "aggregate_total")
		default:
			serveFile(w, folder, "aggregate")
		}
	})
	mux.HandleFunc("GET /api/v1/messages", func(w http.ResponseWriter, r *http.Request) { serveMessages(w, r, folder) })
	mux.HandleFunc("GET /api/v1/messages/{id}", func(w http.ResponseWriter, r *http.Request) {
		if id := r.PathValue("id"); !strings.HasPrefix(id, "01KANF5M80") {
			problem(w, &refusal{Status: http.StatusNotFound, Type: "about:blank", Title: "Not found", Detail: "no message " + id})
			return
		}
		serveFile(w, folder, "message")
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if token != "" && r.Header.Get("Authorization") != "Bearer "+token {
			problem(w, &refusal{Status: http.StatusUnauthorized, Type: "about:blank", Title: "Unauthorized", Detail: "a token is needed"})
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func serveMessages(w http.ResponseWriter, r *http.Request, folder string) {
	q := r.URL.Query()
	if q.Get("disposition") == "vanished" {
		problem(w, &refusal{Status: http.StatusBadRequest, Type: "about:blank", Title: "Bad parameter", Detail: "no disposition \"vanished\"", Field: "disposition", Hint: "relayed, deferred, bounced, ..."})
		return
	}
	b, err := os.ReadFile(filepath.Join(folder, "messages.json")) //nolint:gosec // test data, named by the caller
	var answer canned
	if err == nil {
		err = json.Unmarshal(b, &answer)
	}
	if err != nil {
		problem(w, &refusal{Status: http.StatusInternalServerError, Type: "about:blank", Title: "Canned answer", Detail: err.Error()})
		return
	}
	part := strings.Trim(q.Get("recipient"), "*")
	all := answer.Messages
	answer.Messages = []map[string]any{}
	for _, m := range all {
		if recipients, err := json.Marshal(m["recipients"]); err == nil && strings.Contains(string(recipients), part) {
			answer.Messages = append(answer.Messages, m)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

func serveFile(w http.ResponseWriter, folder, name string) {
	b, err := os.ReadFile(filepath.Join(folder, name+".json")) //nolint:gosec // test data, named by the caller
	if err != nil {
		problem(w, &refusal{Status: http.StatusInternalServerError, Type: "about:blank", Title: "Canned answer", Detail: err.Error()})
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b)
}

func problem(w http.ResponseWriter, p *refusal) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}
