package plugin

import (
	"context"
	"encoding/json"
	"flag"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/data"
	"github.com/grafana/grafana-plugin-sdk-go/experimental"

	"waybill/grafana-plugin/pkg/host"
	"waybill/logtrack/trackapi"
)

var update = flag.Bool("update", false, "write the golden files anew")

const (
	apiFolder   = "../../testdata/api"
	queryFolder = "../../testdata/queries"
)

// sixHours is a fixed range of six hours.
var sixHours = backend.TimeRange{
	From: time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC),
	To:   time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC),
}

// newDatasource makes a data source for the API at base.
func newDatasource(t *testing.T, base, token string) *Datasource {
	t.Helper()
	instance, err := New(t.Context(), backend.DataSourceInstanceSettings{
		UID: "waybill", Name: "Waybill", Type: ID, URL: base, JSONData: []byte(`{}`),
		DecryptedSecureJSONData: map[string]string{"token": token},
	})
	if err != nil {
		t.Fatal(err)
	}
	d := instance.(*Datasource)
	t.Cleanup(d.Dispose)
	return d
}

// canned makes a data source for canned answers.
func canned(t *testing.T) *Datasource {
	t.Helper()
	server := httptest.NewServer(host.Canned(apiFolder, "viewer"))
	t.Cleanup(server.Close)
	return newDatasource(t, server.URL, "viewer")
}

// ask runs one query.
func ask(t *testing.T, d *Datasource, queryType, query string) backend.DataResponse {
	t.Helper()
	res, err := d.QueryData(t.Context(), &backend.QueryDataRequest{Queries: []backend.DataQuery{{
		RefID: "A", QueryType: queryType, JSON: []byte(query), TimeRange: sixHours, Interval: 30 * time.Second, MaxDataPoints: 24,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return res.Responses["A"]
}

// TestContract runs every query that the editor's side is tested with, and
// compares the frames with golden files.
func TestContract(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(queryFolder, "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no queries: %v", err)
	}
	d := canned(t)
	seen := map[string]bool{}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(name, func(t *testing.T) {
			query, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var head struct {
				QueryType string `json:"queryType"`
			}
			if err := json.Unmarshal(query, &head); err != nil {
				t.Fatal(err)
			}
			seen[head.QueryType] = true
			res := ask(t, d, head.QueryType, string(query))
			if res.Error != nil {
				t.Fatalf("status %d: %v", res.Status, res.Error)
			}
			experimental.CheckGoldenJSONResponse(t, "testdata", name, &res, *update)
		})
	}
	for name := range queryTypes {
		if !seen[name] {
			t.Errorf("query type %q has no file in %s", name, queryFolder)
		}
	}
}

// TestContractKeys decodes every query strictly: a key that the backend does not
// know would be silently ignored.
func TestContractKeys(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(queryFolder, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var query map[string]any
		if err := json.Unmarshal(raw, &query); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		checkKeys(t, file, query)
	}
}

// TestDashboards does the same with every query of the bundled dashboards.
func TestDashboards(t *testing.T) {
	files, err := filepath.Glob("../../../dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no dashboards: %v", err)
	}
	found := 0
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var dashboard any
		if err := json.Unmarshal(raw, &dashboard); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		var walk func(v any)
		walk = func(v any) {
			switch v := v.(type) {
			case []any:
				for _, item := range v {
					walk(item)
				}
			case map[string]any:
				if source, ok := v["datasource"].(map[string]any); ok && source["type"] == ID && v["refId"] != nil {
					found++
					checkKeys(t, file, v)
				}
				for _, item := range v {
					walk(item)
				}
			}
		}
		walk(dashboard)
	}
	if found == 0 {
		t.Error("no dashboard has a query of this data source")
	}
}

// checkKeys checks that the backend knows the query's type and each of its keys.
func checkKeys(t *testing.T, file string, query map[string]any) {
	t.Helper()
	types := map[string]any{
		"messages": messagesQuery{}, "timeline": timelineQuery{}, "traceql": exemplarQuery{},
		"aggregate": aggregateQuery{}, "queues": queuesQuery{}, "events": eventsQuery{},
	}
	name, _ := query["queryType"].(string)
	typ, ok := types[name]
	if !ok {
		t.Errorf("%s: unknown query type %q", file, name)
		return
	}
	known := append(jsonKeys(reflect.TypeOf(typ)), "refId", "queryType", "datasource", "hide")
	for key := range query {
		if !slices.Contains(known, key) {
			t.Errorf("%s: %s has the key %q, which the backend does not know", file, name, key)
		}
	}
}

func jsonKeys(typ reflect.Type) []string {
	var names []string
	for f := range typ.Fields() {
		if f.Anonymous {
			names = append(names, jsonKeys(f.Type)...)
			continue
		}
		names = append(names, f.Tag.Get("json"))
	}
	return names
}

// TestFilterIsComplete checks that every filter of the API is a key of a query.
func TestFilterIsComplete(t *testing.T) {
	known := jsonKeys(reflect.TypeFor[Filter]())
	for _, name := range trackapi.Filters() {
		if !slices.Contains(known, name) {
			t.Errorf("the API's filter %q is no key of Filter", name)
		}
	}
}

// recorded is an API that keeps the parameters of the last request.
func recorded(t *testing.T, answer string) (*Datasource, func() url.Values) {
	t.Helper()
	var last url.Values
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		last = r.URL.Query()
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(answer))
	}))
	t.Cleanup(server.Close)
	return newDatasource(t, server.URL, ""), func() url.Values { return last }
}

func TestParameters(t *testing.T) {
	const from, to = "2026-11-22T06:00:00Z", "2026-11-22T12:00:00Z"
	for _, test := range []struct {
		name      string
		queryType string
		query     string
		want      url.Values
	}{
		{
			"search", "messages", `{"recipient":" *@example.org ","sender":"*","disposition":["deferred","bounced"],"min_latency":"2d","limit":"7"}`,
			url.Values{"from": {from}, "to": {to}, "recipient": {"*@example.org"}, "disposition": {"deferred,bounced"}, "min_latency": {"48h0m0s"}, "limit": {"7"}},
		},
		{
			"search without a limit", "messages", `{}`,
			url.Values{"from": {from}, "to": {to}, "limit": {"100"}},
		},
		{
			"limit beyond what is sensible", "events", `{"limit":1000000}`,
			url.Values{"from": {from}, "to": {to}, "limit": {"1000"}},
		},
		{
			"step by the width of the panel", "aggregate", `{"metric":"rate","by":"recipient_domain, disposition"}`,
			url.Values{"from": {from}, "to": {to}, "metric": {"rate"}, "by": {"recipient_domain,disposition"}, "step": {"15m0s"}},
		},
		{
			"several percentiles", "aggregate", `{"metric":"latency_p50, latency_p99","step":"total"}`,
			url.Values{"from": {from}, "to": {to}, "metric": {"latency_p50,latency_p99"}},
		},
		{
			"total", "aggregate", `{"step":"total","top":1000,"event":"recipient_bounced,*"}`,
			url.Values{"from": {from}, "to": {to}, "metric": {"count"}, "top": {"100"}, "event": {"recipient_bounced"}},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, last := recorded(t, `{}`)
			if res := ask(t, d, test.queryType, test.query); res.Error != nil {
				t.Fatal(res.Error)
			}
			if diff := cmp.Diff(test.want, last()); diff != "" {
				t.Errorf("parameters (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBadQueries(t *testing.T) {
	d := canned(t)
	for _, test := range []struct {
		name      string
		queryType string
		query     string
		want      string // in the message
	}{
		{"unknown type", "sql", `{}`, `there is no query type "sql"`},
		{"no type", "", `{}`, `there is no query type ""`},
		{"not an object", "messages", `[]`, "cannot be read"},
		{"count that is none", "messages", `{"limit":"many"}`, "is not a count"},
		{"rows", "messages", `{"rows":"columns"}`, "a row is one of"},
		{"order", "events", `{"sort":"size"}`, "order"},
		{"latency", "messages", `{"min_latency":"long"}`, "is not a duration"},
		{"the API's refusal", "messages", `{"disposition":"vanished"}`, `no disposition "vanished" (relayed, deferred, bounced, ...)`},
		{"step", "aggregate", `{"step":"often"}`, "is not a duration"},
		{"step too fine", "aggregate", `{"step":"1s"}`, "more than 2000 points"},
		{"too many dimensions", "aggregate", `{"by":"class,code,event"}`, "at most two"},
		{"table over time", "aggregate", `{"view":"table"}`, "total"},
		{"view", "timeline", `{"id":"01KANF5M80AAAAAAAAAAAAAAAB","view":"pie"}`, "no view"},
		{"queue value", "queues", `{"value":"weight"}`, "no value"},
	} {
		t.Run(test.name, func(t *testing.T) {
			res := ask(t, d, test.queryType, test.query)
			if res.Error == nil || !strings.Contains(res.Error.Error(), test.want) {
				t.Errorf("error = %v, want %q in it", res.Error, test.want)
			}
			if res.Status != backend.StatusBadRequest || res.ErrorSource != backend.ErrorSourceDownstream {
				t.Errorf("status %d from %s, want 400 from downstream", res.Status, res.ErrorSource)
			}
		})
	}
}

// TestFailures checks whose failure each is, its status, and that it says what to do.
func TestFailures(t *testing.T) {
	answer := func(status int, kind, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}
	}
	const problem = "application/problem+json"
	for _, test := range []struct {
		name    string
		handler http.HandlerFunc
		status  backend.Status
		want    string
	}{
		{"token refused", answer(401, problem, `{"title":"Unauthorized","status":401}`), 401, "role viewer"},
		{"forbidden", answer(403, problem, `{"title":"Forbidden","status":403}`), 403, "role viewer"},
		{"another server", answer(404, "text/html", `<h1>nginx</h1>`), 404, "check the URL"},
		{"busy", answer(429, problem, `{"title":"Too many queries","status":429}`), 429, "busy"},
		{"broken", answer(500, problem, `{"title":"Store closed","status":500}`), 502, "Store closed"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://sso.example.com/", http.StatusFound)
		}, 502, "redirect"},
		{"not JSON", answer(200, "text/html", `<h1>welcome</h1>`), 502, "cannot be read"},
		{"cut off", answer(200, "application/json", `{"messages":[`), 502, "cannot be read"},
		{"too large", answer(200, "application/json", `{"messages":[],"padding":"`+strings.Repeat("x", maxResponse)+`"}`), 502, "larger than 32 MiB"},
		{"closed without an answer", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 502, "does not answer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := httptest.NewServer(test.handler)
			defer server.Close()
			res := ask(t, newDatasource(t, server.URL, "t0ken"), "messages", `{}`)
			if res.Error == nil || !strings.Contains(res.Error.Error(), test.want) {
				t.Errorf("error = %v, want %q in it", res.Error, test.want)
			}
			if res.Status != test.status || res.ErrorSource != backend.ErrorSourceDownstream {
				t.Errorf("status %d from %s, want %d from downstream", res.Status, res.ErrorSource, test.status)
			}
			if res.Error != nil && strings.Contains(res.Error.Error(), "t0ken") {
				t.Errorf("the message holds the token: %v", res.Error)
			}
		})
	}
}

func TestNoAnswer(t *testing.T) {
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	defer secure.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	for _, test := range []struct {
		name string
		url  string
		want string
	}{
		{"connection refused", closed.URL, "is it running"},
		{"certificate that is not trusted", secure.URL, "add its CA"},
		{"TLS to a plain port", strings.Replace(plain.URL, "http://", "https://", 1), "does not speak TLS"},
	} {
		t.Run(test.name, func(t *testing.T) {
			res := ask(t, newDatasource(t, test.url, ""), "messages", `{}`)
			if res.Error == nil || !strings.Contains(res.Error.Error(), test.want) || res.Status != 502 || res.ErrorSource != backend.ErrorSourceDownstream {
				t.Errorf("%d from %s: %v, want 502 from downstream with %q", res.Status, res.ErrorSource, res.Error, test.want)
			}
		})
	}
}

func TestTimeout(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer server.Close()
	defer close(release)
	d := newDatasource(t, server.URL, "")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	res := d.query(ctx, backend.DataQuery{RefID: "A", QueryType: "queues", JSON: []byte(`{}`)})
	if res.Status != backend.StatusTimeout || res.ErrorSource != backend.ErrorSourceDownstream {
		t.Errorf("%d from %s: %v, want 504 from downstream", res.Status, res.ErrorSource, res.Error)
	}
}

// TestPanic checks that a fault in one query costs neither the process nor the other queries.
func TestPanic(t *testing.T) {
	d := canned(t)
	d.api = nil
	res, err := d.QueryData(t.Context(), &backend.QueryDataRequest{Queries: []backend.DataQuery{
		{RefID: "A", QueryType: "queues", JSON: []byte(`{}`)},
		{RefID: "B", QueryType: "nonsense", JSON: []byte(`{}`)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if a := res.Responses["A"]; a.Status != 500 || a.ErrorSource != backend.ErrorSourcePlugin {
		t.Errorf("%d from %s: %v, want 500 from the plugin", a.Status, a.ErrorSource, a.Error)
	}
	if b := res.Responses["B"]; b.Status != 400 {
		t.Errorf("the other query has status %d, want 400", b.Status)
	}
}

// TestEmpty checks that an answer without rows still says what it is.
func TestEmpty(t *testing.T) {
	for _, test := range []struct {
		name      string
		queryType string
		query     string
		want      data.FrameType
		version   data.FrameTypeVersion
		fields    bool
	}{
		{"messages", "messages", `{}`, data.FrameTypeTable, version00, true},
		{"events", "events", `{}`, data.FrameTypeLogLines, version00, true},
		{"series", "aggregate", `{}`, data.FrameTypeTimeSeriesMulti, version01, false},
		{"numbers", "aggregate", `{"step":"total"}`, data.FrameTypeNumericMulti, version01, false},
		{"groups", "aggregate", `{"step":"total","view":"table","by":"class"}`, data.FrameTypeNumericLong, version01, true},
		{"series of percentiles", "aggregate", `{"metric":"latency_p50,latency_p95,latency_p99"}`, data.FrameTypeTimeSeriesMulti, version01, false},
		{"percentiles", "aggregate", `{"metric":"latency_p50,latency_p99","step":"total","by":"recipient_domain"}`, data.FrameTypeNumericMulti, version01, false},
		{"groups of percentiles", "aggregate", `{"metric":"latency_p50,latency_p99","step":"total","view":"table","by":"recipient_domain"}`, data.FrameTypeNumericLong, version01, true},
		{"queues", "queues", `{}`, data.FrameTypeTable, version00, true},
		{"queue numbers", "queues", `{"value":"messages"}`, data.FrameTypeNumericMulti, version01, false},
		{"no message chosen yet", "timeline", `{"id":" ","view":"trace"}`, data.FrameTypeTable, version00, false},
		{"exemplar without a value", "traceql", `{"query":""}`, data.FrameTypeTable, version00, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, _ := recorded(t, `{}`)
			res := ask(t, d, test.queryType, test.query)
			if res.Error != nil || len(res.Frames) != 1 {
				t.Fatalf("%d frames, error %v; want one frame", len(res.Frames), res.Error)
			}
			f := res.Frames[0]
			if f.Meta == nil || f.Meta.Type != test.want || f.Meta.TypeVersion != test.version {
				t.Errorf("meta = %+v, want %s %v", f.Meta, test.want, test.version)
			}
			if (len(f.Fields) > 0) != test.fields || f.Rows() != 0 {
				t.Errorf("%d fields with %d rows", len(f.Fields), f.Rows())
			}
		})
	}
}

// TestPages checks that rows are fetched page by page until the limit, and what
// the reader is told when there are more, or when the search was cut short.
func TestPages(t *testing.T) {
	for _, test := range []struct {
		name  string
		limit string
		pages int // that there are, of 1000 rows each
		cut   string
		rows  int
		want  string // in the notice
	}{
		{"all", "2500", 2, "", 2000, ""},
		{"more than asked for", "2500", 9, "", 2500, "there are more"},
		{"never more than sensible", "1000000", 9, "", 5000, "there are more"},
		{"cut short", "5000", 1, "the search took too long", 1000, "took too long"},
	} {
		t.Run(test.name, func(t *testing.T) {
			served := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				served++
				q, p := trackapi.ParseQuery(r.URL.Query())
				if p != nil {
					t.Error(p)
				}
				if (q.Cursor == "") != (served == 1) {
					t.Errorf("page %d asked for with cursor %q", served, q.Cursor)
				}
				answer := trackapi.Messages{Messages: make([]trackapi.Message, q.Limit), Page: trackapi.Page{Cut: test.cut}}
				if served < test.pages {
					answer.Cursor = "next"
				}
				_ = json.NewEncoder(w).Encode(answer)
			}))
			defer server.Close()
			res := ask(t, newDatasource(t, server.URL, ""), "messages", `{"limit":`+test.limit+`}`)
			if res.Error != nil {
				t.Fatal(res.Error)
			}
			if got := res.Frames[0].Rows(); got != test.rows {
				t.Errorf("%d rows, want %d", got, test.rows)
			}
			var told []string
			for _, n := range res.Frames[0].Meta.Notices {
				told = append(told, n.Text)
			}
			if got := strings.Join(told, " "); (test.want == "") != (got == "") || !strings.Contains(got, test.want) {
				t.Errorf("notice = %q, want %q", got, test.want)
			}
		})
	}
}

func TestFind(t *testing.T) {
	for _, test := range []struct {
		name   string
		id     string
		search string // the parameter of the search before, or empty
		value  string
	}{
		{"queue ID", "01KANF5M80AAAAAAAAAAAAAAAB", "", ""},
		{"UID", "019AAAF2-D100-7aaa-8aaa-aaaaaaaaaaab", "from", "2025-11-22T09:43:50.296Z"},
		{"Message-ID", " <20261122.2@example.com> ", "message_id", "<20261122.2@example.com>"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var searched url.Values
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/api/v1/messages" {
					searched = r.URL.Query()
				}
				host.Canned(apiFolder, "").ServeHTTP(w, r)
			}))
			defer server.Close()
			query, err := json.Marshal(map[string]string{"id": test.id, "view": "facts"})
			if err != nil {
				t.Fatal(err)
			}
			res := ask(t, newDatasource(t, server.URL, ""), "timeline", string(query))
			if res.Error != nil {
				t.Fatal(res.Error)
			}
			if (searched != nil) != (test.search != "") || searched.Get(test.search) != test.value {
				t.Errorf("searched by %v, want %s=%s", searched, test.search, test.value)
			}
		})
	}
	for _, id := range []string{"01ZZZZZZZZZZZZZZZZZZZZZZZZ", "019aaaf2-d100-7aaa-8aaa-000000000000"} {
		res := ask(t, canned(t), "timeline", `{"id":"`+id+`"}`)
		if res.Status != 404 || res.ErrorSource != backend.ErrorSourceDownstream || !strings.Contains(res.Error.Error(), "older than") {
			t.Errorf("unknown message %s: %d from %s: %v", id, res.Status, res.ErrorSource, res.Error)
		}
	}
}

func TestHealth(t *testing.T) {
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	server := httptest.NewServer(host.Canned(apiFolder, "viewer"))
	defer server.Close()
	for _, test := range []struct {
		name   string
		url    string
		token  string
		status backend.HealthStatus
		want   string
	}{
		{"well", server.URL + "/api/v1/", "viewer", backend.HealthStatusOk, "Connected to Waybill 0.1.0 on mx1.example.com: 6120443 facts since 2026-10-24"},
		{"wrong token", server.URL, "guess", backend.HealthStatusError, "role viewer"},
		{"nobody there", closed.URL, "", backend.HealthStatusError, "is it running"},
		{"no URL", "", "", backend.HealthStatusError, "no URL is set"},
		{"not a URL", "localhost:8025", "", backend.HealthStatusError, "is not usable"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := newDatasource(t, test.url, test.token)
			got, err := d.CheckHealth(t.Context(), &backend.CheckHealthRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if got.Status != test.status || !strings.Contains(got.Message, test.want) {
				t.Errorf("%s %q, want %s with %q", got.Status, got.Message, test.status, test.want)
			}
		})
	}
}

func TestBrokenSettings(t *testing.T) {
	res := ask(t, newDatasource(t, "ftp://mx1", ""), "messages", `{}`)
	if res.Status != 400 || res.ErrorSource != backend.ErrorSourceDownstream || !strings.Contains(res.Error.Error(), "not usable") {
		t.Errorf("%d from %s: %v", res.Status, res.ErrorSource, res.Error)
	}
}

func TestResources(t *testing.T) {
	d := canned(t)
	for _, test := range []struct {
		name   string
		url    string
		status int
		want   string
	}{
		{"values", "values?field=connector&prefix=i&from=2026-11-22T06:00:00Z", 200, `"submission"`},
		{"values by the filter's name", "values?field=domain", 200, `"values"`},
		{"connectors", "connectors", 200, `"internet"`},
		{"no field", "values", 400, "which field"},
		{"unknown field", "values?field=colour", 400, "unknown field"},
		{"bad time", "values?field=class&from=yesterday", 400, "bad time"},
		{"unknown resource", "secrets", 404, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var status int
			var body []byte
			path, _, _ := strings.Cut(test.url, "?")
			err := d.CallResource(t.Context(), &backend.CallResourceRequest{Method: "GET", Path: path, URL: test.url},
				backend.CallResourceResponseSenderFunc(func(r *backend.CallResourceResponse) error {
					status, body = r.Status, r.Body
					return nil
				}))
			if err != nil {
				t.Fatal(err)
			}
			if status != test.status || !strings.Contains(string(body), test.want) {
				t.Errorf("%d %s, want %d with %q", status, body, test.status, test.want)
			}
		})
	}
}

func TestStep(t *testing.T) {
	for _, test := range []struct {
		name   string
		step   string
		width  time.Duration // of the range
		points int64
		want   time.Duration
	}{
		{"panel of an hour", "auto", time.Hour, 720, 5 * time.Second},
		{"alert rule: one second asked for, over a week", "", 7 * 24 * time.Hour, 43200, 10 * time.Minute},
		{"a year", "auto", 365 * 24 * time.Hour, 100, 4 * 24 * time.Hour},
		{"given", "90s", time.Hour, 10, 90 * time.Second},
		{"days", "1d", 30 * 24 * time.Hour, 10, 24 * time.Hour},
		{"total", "total", time.Hour, 100, 0},
		{"zero", "0", time.Hour, 100, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := stepOf(test.step, backend.DataQuery{
				Interval: time.Second, MaxDataPoints: test.points,
				TimeRange: backend.TimeRange{From: sixHours.From, To: sixHours.From.Add(test.width)},
			})
			if err != nil || got != test.want {
				t.Errorf("stepOf(%q) = %v, %v; want %v", test.step, got, err, test.want)
			}
		})
	}
}

func TestLegend(t *testing.T) {
	for _, test := range []struct {
		name     string
		template string
		labels   map[string]string
		want     string
	}{
		{"no labels", "", nil, "latency p95"},
		{"labels", "", map[string]string{"recipient_domain": "example.org", "class": ""}, "no class, example.org"},
		{"several metrics", "", map[string]string{"metric": "latency_p95"}, "latency p95"},
		{"several metrics of groups", "", map[string]string{"metric": "latency_p95", "recipient_domain": "example.org"}, "example.org, latency p95"},
		{"template with the metric", "{{metric}}", map[string]string{"metric": "latency_p95"}, "latency_p95"},
		{"template", "to {{ recipient_domain }} ({{class}})", map[string]string{"recipient_domain": "example.org", "class": "dns"}, "to example.org (dns)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := legendOf(test.template, "latency_p95", test.labels); got != test.want {
				t.Errorf("legendOf = %q, want %q", got, test.want)
			}
		})
	}
}

// FuzzLine feeds records as a relay of another version, or a broken one, may write them.
func FuzzLine(f *testing.F) {
	f.Add(`{"ts":"2026-11-22T11:12:00.93Z","event_id":"1","schema":1,"event":"recipient_bounced","code":550,"reply":"no"}`)
	f.Add(`{"ts":"2026-11-22T11:12:00Z","event":"attempt_finished","recipients":[{"address":"a@b"},7,null],"level":0}`)
	f.Add(`{"ts":"never"}`)
	f.Add(`[]`)
	f.Add(`{"ts":7,"event":{}}`)
	f.Fuzz(func(t *testing.T, record string) {
		line, err := lineOf(json.RawMessage(record))
		if err == nil && line.severity == "" {
			t.Errorf("no severity for %s", record)
		}
		_ = entrySpans(trackapi.Entry{Record: json.RawMessage(record), Stages: []trackapi.Stage{{Name: "dns", Seconds: 1}}}, 0)
	})
}

// FuzzQuery feeds queries as a hand-written panel may hold them.
func FuzzQuery(f *testing.F) {
	files, err := filepath.Glob(filepath.Join(queryFolder, "*.json"))
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"disposition":["a",""],"limit":"","top":null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var q aggregateQuery
		if json.Unmarshal(raw, &q) != nil {
			return
		}
		if got := q.Top; got < 0 {
			t.Errorf("top = %d", got)
		}
		if find, err := q.query(sixHours); err == nil && strings.ContainsAny(find.Sender, "\r\n") && strings.TrimSpace(find.Sender) != find.Sender {
			t.Errorf("sender %q is not trimmed", find.Sender)
		}
	})
}

// TestSections holds the views of what a message's facts tell by subject.
func TestSections(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	tl := &trackapi.Timeline{
		Attempts: []trackapi.DeliveryAttempt{{Attempt: 2, Start: at, End: at.Add(time.Second), Disposition: "deferred", RemoteHost: "mx.example.net", Code: 451, Enhanced: "4.7.1", Reply: "later", Recipients: []string{"a@example.net", "b@example.net"}}},
		Checks:   []trackapi.Check{{Time: at, Name: "transport", Result: "pass", Detail: "TLS 1.3"}},
		Changes:  []trackapi.Change{{Time: at, Name: "date", Detail: "a Date field was added", Actor: "ops"}},
	}
	text := func(f *data.Frame, name string) any {
		field, _ := f.FieldByName(name)
		if field == nil || field.Len() != 1 {
			t.Fatalf("%s has no value of %s", f.Name, name)
		}
		return field.At(0)
	}
	if f := attemptTable(tl); text(f, "reply") != "451 4.7.1 later" || text(f, "recipients") != "a@example.net, b@example.net" || text(f, "took") != 1.0 {
		t.Errorf("attempts: %v", f.Fields)
	}
	if f := checkTable(tl); text(f, "result") != "pass" || text(f, "detail") != "TLS 1.3" {
		t.Errorf("checks: %v", f.Fields)
	}
	if f := changeTable(tl); text(f, "change") != "date" || text(f, "actor") != "ops" {
		t.Errorf("changes: %v", f.Fields)
	}
	for _, view := range []string{"attempts", "checks"} {
		if views[view] == nil {
			t.Errorf("no view %s", view)
		}
	}
}

// TestErrorOfPercentiles holds that numbers from histograms say how exact they are.
func TestErrorOfPercentiles(t *testing.T) {
	one := 1.0
	for _, test := range []struct {
		name string
		off  float64
		want string
	}{
		{"exact", 0, ""},
		{"from histograms", 0.025, "From histograms: values may be off by 2.5 %."},
	} {
		t.Run(test.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_ = json.NewEncoder(w).Encode(trackapi.Aggregate{Metric: "latency_p95", Unit: "seconds", Exact: test.off == 0, Error: test.off, Series: []trackapi.Series{{Points: []trackapi.Point{{Value: &one}}}}})
			}))
			defer srv.Close()
			d := &Datasource{api: &trackapi.Client{BaseURL: srv.URL, HTTP: srv.Client()}}
			frames, err := aggregate(t.Context(), d, aggregateQuery{Metric: words{"latency_p95"}, Step: "total"}, backend.DataQuery{TimeRange: backend.TimeRange{From: time.Unix(0, 0), To: time.Unix(3600, 0)}})
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if m := frames[0].Meta; m != nil {
				for _, n := range m.Notices {
					got += n.Text
				}
			}
			if got != test.want {
				t.Errorf("notices %q, want %q", got, test.want)
			}
		})
	}
}
