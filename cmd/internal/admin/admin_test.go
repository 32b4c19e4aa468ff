package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"go.yaml.in/yaml/v3"

	"waybill/cmd/internal/config"
	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/queue"
	"waybill/relay/relaytest"
	"waybill/relay/route"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// router sends each domain to a next hop of its own.
type router struct{}

func (router) Route(q route.Query) route.Decision {
	domain := q.Recipient.DomainKey()
	if domain == "nowhere.test" {
		return route.Decision{Hop: route.Unroutable, Why: "no address space matches"}
	}
	return route.Decision{Hop: route.Hop{Connector: "out", Name: domain}, Connector: &route.Connector{Name: "out"}, Space: "*"}
}

// fixture is a Handler over a real queue that nobody delivers from.
type fixture struct {
	*Handler
	t     *testing.T
	queue *queue.Queue
	facts *relaytest.Recorder
	acted int
	ready error
	load  error // what a reload answers
}

func newFixture(t *testing.T, change ...func(*Options)) *fixture {
	t.Helper()
	f := &fixture{t: t, facts: &relaytest.Recorder{}}
	q, err := queue.Open(queue.Options{Dir: t.TempDir(), Router: router{}, Emitter: f.facts.Emitter(), DiskFreeMin: 256 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	})
	f.queue = q
	opts := Options{
		Queue:   q,
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "waybill_up 1\n") }),
		Tracking: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/api/v1/values" {
				panic("a table fell over")
			}
			if r.URL.Path == "/api/v1/tail" {
				panic(http.ErrAbortHandler)
			}
			_, _ = io.WriteString(w, "{}")
		}),
		Ready:   func() error { return f.ready },
		Acted:   func() { f.acted++ },
		Reload:  func() error { return f.load },
		Status:  func() trackapi.Status { return trackapi.Status{Version: "test"} },
		Emitter: f.facts.Emitter(),
		Hosts:   []string{"relay.test"},
	}
	for _, c := range change {
		c(&opts)
	}
	f.Handler = New(opts)
	return f
}

// put queues a message.
func (f *fixture) put(from string, to ...string) mail.QueueID {
	f.t.Helper()
	now := time.Now()
	d := mail.Draft{
		ID: mail.QueueID(mail.NewID(now)), Header: mail.Header{MessageID: "<1@source.test>"}, Trace: []byte("Received: by us\r\n"),
		Origin: mail.Origin{Connector: "in", Client: netip.MustParseAddrPort("192.0.2.1:2525"), User: "app"},
	}
	var err error
	if d.Envelope.Sender, err = mail.ParseAddress(from); err != nil {
		f.t.Fatal(err)
	}
	for _, r := range to {
		addr, err := mail.ParseAddress(r)
		if err != nil {
			f.t.Fatal(err)
		}
		d.Envelope.Recipients = append(d.Envelope.Recipients, mail.Recipient{Address: addr})
	}
	in, err := f.queue.Begin(context.Background(), 0)
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := io.WriteString(in, "Subject: hello\r\n\r\nhello\r\n"); err != nil {
		f.t.Fatal(err)
	}
	if err := in.Commit(context.Background(), d); err != nil {
		f.t.Fatal(err)
	}
	return d.ID
}

// request is a request as a caller on loopback makes it.
func request(method, target, body string, headers ...string) *http.Request {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.RemoteAddr, r.Host = "127.0.0.1:40000", "127.0.0.1:8025"
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		switch headers[i] {
		case "Host":
			r.Host = headers[i+1]
		case "RemoteAddr":
			r.RemoteAddr = headers[i+1]
		default:
			r.Header.Set(headers[i], headers[i+1])
		}
	}
	return r
}

func (f *fixture) do(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	return w
}

// ask wants status of a request, a problem document when it is an error, and
// decodes the answer into v.
func (f *fixture) ask(r *http.Request, status int, v any) {
	f.t.Helper()
	w := f.do(r)
	if w.Code != status {
		f.t.Fatalf("%s %s = %d %s, want %d", r.Method, r.URL, w.Code, w.Body, status)
	}
	if status >= 400 {
		isProblem(f.t, w)
	}
	if v != nil {
		if err := json.Unmarshal(w.Body.Bytes(), v); err != nil {
			f.t.Fatalf("%s %s answers %s: %v", r.Method, r.URL, w.Body, err)
		}
	}
}

// wait waits for an action's fact, which follows the answer.
func (f *fixture) wait(what string, is func(event.AdminActed) bool) {
	f.t.Helper()
	if !f.facts.Wait(0, func(all []event.Record) bool {
		return slices.ContainsFunc(all, func(r event.Record) bool {
			ev, ok := r.Event.(event.AdminActed)
			return ok && is(ev)
		})
	}) {
		f.t.Fatalf("no fact of %s among %+v", what, f.facts.Named("admin_acted"))
	}
}

// isProblem wants a problem document (RFC 9457) that a browser cannot mistake.
func isProblem(t *testing.T, w *httptest.ResponseRecorder) trackapi.Problem {
	t.Helper()
	var p trackapi.Problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Title == "" || p.Status != w.Code {
		t.Errorf("answer %d %s is not a problem document of that status: %v", w.Code, w.Body, err)
	}
	if ct := w.Header().Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("Content-Type of a problem = %q", ct)
	}
	if w.Header().Get("X-Content-Type-Options") != "nosniff" || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("headers of a problem = %v", w.Header())
	}
	return p
}

func TestWhoMayCall(t *testing.T) {
	const action = `{"action":"retry","filter":{"all":true}}`
	for _, test := range []struct {
		name string
		req  *http.Request
		want int
	}{
		{"loopback", request("GET", "/api/v1/queues", ""), 200},
		{"loopback, IPv6", request("GET", "/api/v1/queues", "", "RemoteAddr", "[::1]:4000", "Host", "[::1]:8025"), 200},
		{"loopback, mapped", request("GET", "/api/v1/queues", "", "RemoteAddr", "[::ffff:127.0.0.1]:4000"), 200},
		{"by localhost", request("GET", "/api/v1/queues", "", "Host", "LocalHost:8025"), 200},
		{"by our name", request("GET", "/api/v1/queues", "", "Host", "Relay.test"), 200},
		{"from elsewhere", request("GET", "/api/v1/queues", "", "RemoteAddr", "192.0.2.7:4000"), 403},
		{"metrics from elsewhere", request("GET", "/metrics", "", "RemoteAddr", "192.0.2.7:4000"), 403},
		{"index from elsewhere", request("GET", "/", "", "RemoteAddr", "192.0.2.7:4000"), 403},
		{"health from elsewhere", request("GET", "/-/healthy", "", "RemoteAddr", "192.0.2.7:4000"), 200},
		{"readiness from elsewhere", request("GET", "/-/ready", "", "RemoteAddr", "192.0.2.7:4000"), 200},
		{"no address", request("GET", "/api/v1/queues", "", "RemoteAddr", "@"), 403},
		{"through a proxy", request("GET", "/api/v1/queues", "", "X-Forwarded-For", "192.0.2.7"), 403},
		{"through a proxy that follows the standard", request("GET", "/metrics", "", "Forwarded", "for=192.0.2.7"), 403},
		{"rebound name", request("GET", "/api/v1/queues", "", "Host", "evil.example"), 421},
		{"rebound name, with our port", request("GET", "/-/healthy", "", "Host", "evil.example:8025"), 421},
		{"no host", request("GET", "/api/v1/queues", "", "Host", ""), 421},
		{"action", request("POST", "/api/v1/queue/actions", action), 200},
		{"action of a page", request("POST", "/api/v1/queue/actions", action, "Origin", "https://evil.example"), 403},
		{"action of a sandboxed page", request("POST", "/api/v1/queue/actions", action, "Origin", "null"), 403},
		{"action across sites", request("POST", "/api/v1/queue/actions", action, "Sec-Fetch-Site", "cross-site"), 403},
		{"action of a form", request("POST", "/api/v1/queue/actions", action, "Content-Type", "text/plain"), 415},
		{"reload of a page", request("POST", "/-/reload", "", "Origin", "https://evil.example"), 403},
		{"reload", request("POST", "/-/reload", ""), 200},
		{"wrong method", request("POST", "/api/v1/queues", "{}"), 405},
		{"wrong method of an action", request("GET", "/api/v1/queue/actions", ""), 200}, // tracking answers what it does not know
		{"wrong method of a reload", request("GET", "/-/reload", ""), 405},
		{"HEAD", request("HEAD", "/api/v1/queues", ""), 200},
		{"no such path", request("GET", "/favicon.ico", ""), 404},
		{"index", request("GET", "/", ""), 200},
		{"path tricks", request("GET", "/api/v1/../../-/healthy", ""), 307},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newFixture(t).do(test.req)
			if w.Code != test.want {
				t.Errorf("%s %s = %d %s, want %d", test.req.Method, test.req.URL, w.Code, w.Body, test.want)
			}
			if w.Code >= 400 {
				isProblem(t, w)
			}
			if h := w.Header().Get("Access-Control-Allow-Origin"); h != "" {
				t.Errorf("pages from elsewhere may read: %s", h)
			}
		})
	}
}

func TestTokens(t *testing.T) {
	tokens := map[string]config.Token{
		"v": {Name: "grafana", Role: config.RoleViewer}, "o": {Name: "olga", Role: config.RoleOperator}, "a": {Name: "ada", Role: config.RoleAdmin},
	}
	f := newFixture(t, func(o *Options) {
		o.Authenticate = func(token string) (config.Token, bool) { t, ok := tokens[token]; return t, ok }
	})
	id := f.put("a@source.test", "b@dest.test")
	for _, test := range []struct {
		name string
		req  *http.Request
		want map[string]int // by token
	}{
		{"health", request("GET", "/-/healthy", ""), map[string]int{"": 200, "v": 200}},
		{"metrics", request("GET", "/metrics", ""), map[string]int{"": 401, "x": 401, "v": 200, "a": 200}},
		{"status", request("GET", "/api/v1/status", ""), map[string]int{"": 401, "v": 200}},
		{"queues", request("GET", "/api/v1/queues", ""), map[string]int{"": 401, "v": 200, "o": 200, "a": 200}},
		{"tracking", request("GET", "/api/v1/messages", ""), map[string]int{"": 401, "v": 200}},
		{"action", request("POST", "/api/v1/queue/actions", `{"action":"hold","filter":{"all":true},"dry_run":true}`), map[string]int{"": 401, "v": 403, "o": 200, "a": 200}},
		{"content", request("GET", "/api/v1/queue/messages/"+string(id)+"/content", ""), map[string]int{"": 401, "v": 403, "o": 403, "a": 200}},
		{"reload", request("POST", "/-/reload", ""), map[string]int{"": 401, "v": 403, "o": 403, "a": 200}},
		{"profiles", request("GET", "/debug/pprof/goroutine?debug=1", ""), map[string]int{"": 401, "o": 403, "a": 200}},
		{"elsewhere", request("GET", "/api/v1/queues", "", "RemoteAddr", "192.0.2.7:4000", "X-Forwarded-For", "192.0.2.8"), map[string]int{"": 401, "v": 200}},
	} {
		for token, want := range test.want {
			t.Run(test.name+" with "+fmt.Sprintf("%q", token), func(t *testing.T) {
				body, err := io.ReadAll(test.req.Body)
				if err != nil {
					t.Fatal(err)
				}
				test.req.Body = io.NopCloser(strings.NewReader(string(body)))
				req := test.req.Clone(t.Context())
				req.Body = io.NopCloser(strings.NewReader(string(body)))
				if token != "" {
					req.Header.Set("Authorization", "Bearer "+token)
				}
				w := f.do(req)
				if w.Code != want {
					t.Fatalf("%s %s = %d %s, want %d", req.Method, req.URL, w.Code, w.Body, want)
				}
				if want == 401 && w.Header().Get("WWW-Authenticate") == "" {
					t.Error("401 without WWW-Authenticate (RFC 9110 section 11.6.1)")
				}
				if want >= 400 {
					isProblem(t, w)
				}
			})
		}
	}
	f.ask(request("POST", "/api/v1/queue/actions", `{"action":"retry","filter":{"all":true},"reason":"because"}`, "Authorization", "Bearer o"), 200, nil)
	f.wait("retry by olga", func(ev event.AdminActed) bool {
		return ev.Action == "retry" && ev.Actor == "olga" && ev.Reason == "because"
	})
}

func TestQueues(t *testing.T) {
	f := newFixture(t)
	f.put("a@source.test", "b@dest.test", "c@dest.test")
	f.put("a@source.test", "b@dest.test")
	f.put("a@source.test", "b@other.test")
	f.put("a@source.test", "b@nowhere.test")
	var got trackapi.Queues
	f.ask(request("GET", "/api/v1/queues", ""), 200, &got)
	if got.Messages != 4 || !got.Accepts || len(got.Queues) != 3 {
		t.Fatalf("queues = %+v, want 4 messages for 3 next hops", got)
	}
	i := slices.IndexFunc(got.Queues, func(q trackapi.Queue) bool { return q.Name == "dest.test" })
	if i < 0 || got.Queues[i].Messages != 2 || got.Queues[i].Connector != "out" || got.Queues[i].OldestAge <= 0 || got.Queues[i].Bytes == 0 {
		t.Errorf("rows = %+v, want dest.test with 2 messages through out", got.Queues)
	}
	f.ready = errors.New("the disk is full")
	f.ask(request("GET", "/api/v1/queues", ""), 200, &got)
	if got.Accepts || got.Why != "the disk is full" {
		t.Errorf("accepts = %t, why = %q, want the reason", got.Accepts, got.Why)
	}
	f.ask(request("GET", "/-/ready", ""), 503, nil)
	f.load = errors.New("line 3 is wrong")
	f.ask(request("POST", "/-/reload", ""), 422, nil)
}

// A message ends with its connector's patience, and what has no route has no next
// attempt.
func TestWhenAMessageEnds(t *testing.T) {
	end := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	f := newFixture(t, func(o *Options) { o.Ends = func(*queue.Message) time.Time { return end } })
	f.put("a@source.test", "b@dest.test", "e@nowhere.test")
	var got trackapi.QueuedMessages
	f.ask(request("GET", "/api/v1/queue/messages", ""), 200, &got)
	if len(got.Messages) != 1 || !got.Messages[0].Expires.Equal(end) {
		t.Fatalf("messages = %+v, want one until %s", got.Messages, end)
	}
	if to := got.Messages[0].Recipients; len(to) != 2 || to[0].Next.IsZero() || !to[1].Next.IsZero() {
		t.Errorf("recipients = %+v, want a next attempt for the first alone", to)
	}
}

func TestQueuedMessages(t *testing.T) {
	f := newFixture(t)
	first := f.put("a@source.test", "b@dest.test")
	f.put("z@source.test", "c@other.test")
	f.put("", "d@other.test", "e@nowhere.test")
	for _, test := range []struct {
		name  string
		query string
		want  int
	}{
		{"all", "", 3},
		{"sender", "sender=a@source.test", 1},
		{"null sender", "sender=%3C%3E", 1},
		{"pattern", "recipient=*@other.test", 2},
		{"domain", "domain=other.test", 2},
		{"next hop", "queue=dest.test", 1},
		{"connector", "connector=out", 3},
		{"ID", "queue_id=" + string(first), 1},
		{"ID in lower case", "queue_id=" + strings.ToLower(string(first)), 1},
		{"beginning of an ID", "queue_id=" + string(first[:4]), 3},
		{"unroutable", "state=unroutable", 1},
		{"held", "state=held", 0},
		{"young", "older_than=1h30m", 0},
		{"younger than days", "older_than=2d", 0},
		{"two", "domain=other.test&sender=z@source.test", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got trackapi.QueuedMessages
			f.ask(request("GET", "/api/v1/queue/messages?"+test.query, ""), 200, &got)
			if len(got.Messages) != test.want || got.Messages == nil {
				t.Errorf("%s selects %d (%v), want %d", test.query, len(got.Messages), got.Messages, test.want)
			}
		})
	}
	for query, field := range map[string]string{
		"state=asleep": "state", "older_than=yesterday": "older_than", "older_than=-1h": "older_than", "limit=0": "limit", "limit=2000": "limit", "limit=x": "limit",
		"cursor=x": "cursor", "nothing=1": "nothing",
	} {
		t.Run(query, func(t *testing.T) {
			w := f.do(request("GET", "/api/v1/queue/messages?"+query, ""))
			if p := isProblem(t, w); w.Code != 400 || p.Field != field {
				t.Errorf("%s = %d %+v, want 400 about %s", query, w.Code, p, field)
			}
		})
	}
	seen := map[string]bool{}
	for cursor, pages := "", 0; ; pages++ {
		var page trackapi.QueuedMessages
		f.ask(request("GET", "/api/v1/queue/messages?limit=2&cursor="+cursor, ""), 200, &page)
		for _, m := range page.Messages {
			seen[m.QueueID] = true
		}
		if cursor = page.Cursor; cursor == "" || pages > 5 {
			break
		}
	}
	if len(seen) != 3 {
		t.Errorf("all pages have %d messages, want 3", len(seen))
	}
	var got trackapi.QueuedMessages
	f.ask(request("GET", "/api/v1/queue/messages?queue_id="+string(first), ""), 200, &got)
	m := got.Messages[0]
	if m.Sender != "a@source.test" || m.ClientIP != "192.0.2.1" || m.AuthUser != "app" || m.Connector != "in" || m.State != "queued" ||
		m.MessageID != "<1@source.test>" || len(m.Recipients) != 1 || m.Recipients[0].Address != "b@dest.test" || m.Recipients[0].Queue != "dest.test" || m.Recipients[0].Reply != "" {
		t.Errorf("message = %+v", m)
	}
}

func TestActions(t *testing.T) {
	f := newFixture(t)
	first, second := f.put("a@source.test", "b@dest.test"), f.put("a@source.test", "b@other.test")
	act := func(body string) trackapi.QueueActed {
		t.Helper()
		var did trackapi.QueueActed
		f.ask(request("POST", "/api/v1/queue/actions", body), 200, &did)
		return did
	}
	state := func(id mail.QueueID) string {
		t.Helper()
		var got trackapi.QueuedMessages
		f.ask(request("GET", "/api/v1/queue/messages?queue_id="+string(id), ""), 200, &got)
		if len(got.Messages) == 0 {
			return "gone"
		}
		return got.Messages[0].State
	}

	if did := act(`{"action":"remove","filter":{"all":true},"dry_run":true}`); did.Messages != 2 || !did.DryRun || state(first) != "queued" {
		t.Errorf("dry run = %+v, and %s is %s; want 2, and nothing changed", did, first, state(first))
	}
	if n := len(f.facts.Named("admin_acted")); n != 0 {
		t.Errorf("a dry run stated %d facts", n)
	}
	did := act(`{"action":"hold","filter":{"queue_id":"` + strings.ToLower(string(first)) + `"},"reason":"looking","until":"2999-01-01T00:00:00Z"}`)
	if did.Messages != 1 || len(did.IDs) != 1 || did.IDs[0] != string(first) || state(first) != "held" || state(second) != "queued" {
		t.Errorf("hold = %+v, states %s and %s", did, state(first), state(second))
	}
	if f.acted != 0 {
		t.Error("hold lets nothing go")
	}
	act(`{"action":"release","filter":{"queue_id":"` + string(first) + `"}}`)
	if state(first) != "queued" || f.acted != 1 {
		t.Errorf("released is %s, and was told %d times", state(first), f.acted)
	}
	act(`{"action":"hold","filter":{"queue":"other.test"}}`)
	if state(second) != "held" {
		t.Errorf("a message of a held next hop is %s", state(second))
	}
	act(`{"action":"release","filter":{"all":true}}`)
	if state(second) != "queued" {
		t.Errorf("after a release of all it is %s", state(second))
	}
	act(`{"action":"retry","filter":{"domain":"dest.test"}}`)
	act(`{"action":"reroute","filter":{"older_than":"0s","all":true}}`)
	act(`{"action":"bounce","filter":{"queue_id":"` + string(first) + `"},"reason":"as agreed"}`)
	act(`{"action":"remove","filter":{"recipient":"b@other.test"}}`)
	if state(first) != "gone" || state(second) != "gone" {
		t.Errorf("in the end they are %s and %s, want gone", state(first), state(second))
	}
	f.wait("the last action", func(ev event.AdminActed) bool { return ev.Action == "remove" })
	var names []string
	for _, r := range f.facts.Named("admin_acted") {
		ev := r.Event.(event.AdminActed)
		names = append(names, ev.Action)
		if ev.Actor != "local" || ev.Result != "ok" || ev.Filter == "" || ev.ClientIP != netip.MustParseAddr("127.0.0.1") {
			t.Errorf("fact %+v, want actor, result, filter and the caller's address", ev)
		}
	}
	if got, want := strings.Join(names, " "), "hold release hold release retry reroute bounce remove"; got != want {
		t.Errorf("facts = %s, want %s", got, want)
	}
}

func TestBadActions(t *testing.T) {
	f := newFixture(t)
	id := f.put("a@source.test", "b@dest.test")
	for _, test := range []struct {
		name  string
		body  string
		field string
		want  int
	}{
		{"empty filter", `{"action":"remove","filter":{}}`, "filter", 400},
		{"no filter", `{"action":"remove"}`, "filter", 400},
		{"null", `null`, "filter", 400},
		{"no action", `{"filter":{"all":true}}`, "action", 400},
		{"unknown action", `{"action":"explode","filter":{"all":true}}`, "action", 400},
		{"beginning of an ID", `{"action":"remove","filter":{"queue_id":"0"}}`, "queue_id", 400},
		{"unknown state", `{"action":"remove","filter":{"state":"asleep"}}`, "state", 400},
		{"no duration", `{"action":"remove","filter":{"older_than":"1"}}`, "older_than", 400},
		{"until has passed", `{"action":"hold","filter":{"all":true},"until":"2020-01-01T00:00:00Z"}`, "until", 400},
		{"until of another action", `{"action":"retry","filter":{"all":true},"until":"2999-01-01T00:00:00Z"}`, "until", 400},
		{"misspelt key", `{"action":"remove","filter":{"al":true}}`, "", 400},
		{"misspelt dry run", `{"action":"remove","filter":{"all":true},"dryrun":true}`, "", 400},
		{"not JSON", `remove everything`, "", 400},
		{"two objects", `{"action":"remove","filter":{"all":true},"dry_run":true} {"action":"remove","filter":{"all":true}}`, "", 400},
		{"too long", `{"action":"hold","filter":{"all":true},"reason":"` + strings.Repeat("x", 70<<10) + `"}`, "", 400},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := f.do(request("POST", "/api/v1/queue/actions", test.body))
			p := isProblem(t, w)
			if w.Code != test.want || p.Field != test.field {
				t.Errorf("= %d %+v, want %d about %q", w.Code, p, test.want, test.field)
			}
			if parameter := test.field != "" && test.field != "action"; p.IsBadParameter() != parameter {
				t.Errorf("IsBadParameter() = %t of %+v, want %t", !parameter, p, parameter)
			}
		})
	}
	if _, err := f.queue.Get(id); err != nil {
		t.Errorf("a refused action removed the message: %v", err)
	}
	if n := len(f.facts.Named("admin_acted")); n != 0 {
		t.Errorf("%d facts about refused actions", n)
	}
}

func TestContent(t *testing.T) {
	f := newFixture(t)
	id := f.put("a@source.test", "b@dest.test")
	w := f.do(request("GET", "/api/v1/queue/messages/"+string(id)+"/content", ""))
	if got, want := w.Body.String(), "Received: by us\r\nSubject: hello\r\n\r\nhello\r\n"; w.Code != 200 || got != want {
		t.Errorf("content = %d %q, want %q", w.Code, got, want)
	}
	if ct, cd := w.Header().Get("Content-Type"), w.Header().Get("Content-Disposition"); ct != "message/rfc822" || cd != `attachment; filename="`+string(id)+`.eml"` {
		t.Errorf("Content-Type %q, Content-Disposition %q", ct, cd)
	}
	acts := f.facts.Named("admin_acted")
	if len(acts) != 1 || acts[0].Message != id || acts[0].Event.(event.AdminActed).Action != "export" {
		t.Errorf("facts = %+v, want one export of %s", acts, id)
	}
	for _, other := range []string{"01J9ZC3K5V8Q2M7RXT4W6Y0ABC", "nothing", string(id[:10]), "..%2f..%2fetc%2fpasswd"} {
		f.ask(request("GET", "/api/v1/queue/messages/"+other+"/content", ""), 404, nil)
	}
	if n := len(f.facts.Named("admin_acted")); n != 1 {
		t.Errorf("%d facts after asking for what is not there, want 1", n)
	}
}

func TestPanics(t *testing.T) {
	f := newFixture(t)
	f.ask(request("GET", "/api/v1/values", ""), 500, nil)
	facts := f.facts.Named("panicked")
	if len(facts) != 1 {
		t.Fatalf("%d facts about a panic, want 1", len(facts))
	}
	if p := facts[0].Event.(event.Panicked); p.Value != "a table fell over" || !strings.Contains(p.Stack, "admin_test.go") {
		t.Errorf("fact = %+v, want value and stack", p)
	}
	defer func() {
		if err, ok := recover().(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
			t.Errorf("an aborted handler ends with %v, want http.ErrAbortHandler", err)
		}
		if n := len(f.facts.Named("panicked")); n != 1 {
			t.Errorf("%d facts after an aborted handler, want 1", n)
		}
	}()
	f.do(request("GET", "/api/v1/tail", ""))
}

func TestTrackingOff(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Tracking = nil })
	w := f.do(request("GET", "/api/v1/messages", ""))
	if p := isProblem(t, w); w.Code != 503 || !strings.Contains(p.Detail, "tracking.engine: off") {
		t.Errorf("= %d %+v, want 503 and why", w.Code, p)
	}
}

// TestOpenAPI wants every path that is served here in the document.
func TestOpenAPI(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "logtrack", "trackhttp", "openapi.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]any `yaml:"paths"`
	}
	if err := yaml.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	served := 0
	for _, p := range newFixture(t).patterns {
		method, path, ok := strings.Cut(p, " ")
		if !ok || path == "/api/v1/" || strings.HasPrefix(path, "/debug/") { // the index, what trackhttp serves and tests, and profiles
			continue
		}
		served++
		if doc.Paths[path][strings.ToLower(method)] == nil {
			t.Errorf("%s is not in openapi.yaml", p)
		}
	}
	if served < 8 {
		t.Errorf("only %d paths are served", served)
	}
}

func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hop := route.Hop{Connector: "out", Name: "dest.test"}
		status := func(in, out uint64) queue.HopStatus { return queue.HopStatus{Hop: hop, In: in, Out: out} }
		want := func(when string, s queue.HopStatus, r *rates, in, out float64) {
			t.Helper()
			if gotIn, gotOut := r.perMinute(time.Now(), s); gotIn != in || gotOut != out {
				t.Errorf("%s: %g in, %g out, want %g and %g", when, gotIn, gotOut, in, out)
			}
		}
		r := newRates()
		want("before the first sample", status(100, 50), r, 0, 0)
		r.take(time.Now(), []queue.HopStatus{status(100, 50)})
		want("at once", status(200, 60), r, 0, 0)
		time.Sleep(30 * time.Second)
		want("after half a minute", status(130, 60), r, 60, 20)
		r.take(time.Now(), []queue.HopStatus{status(130, 60)})
		time.Sleep(40 * time.Second)
		r.take(time.Now(), []queue.HopStatus{status(130, 100)})
		want("after the first sample is too old", status(130, 100), r, 0, 60)
		want("of a hop that came back", status(1, 1), r, 0, 0)
		want("of a new hop", queue.HopStatus{Hop: route.Hop{Name: "new.test"}, In: 20}, r, 30, 0)
	})
}

func TestRunTakesSamplesUntilItIsStopped(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Run(ctx); err != nil {
		t.Errorf("Run = %v", err)
	}
	if len(f.rates.samples) != 1 {
		t.Errorf("%d samples, want the first", len(f.rates.samples))
	}
}
