package trackhttp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.yaml.in/yaml/v3"

	"waybill/logtrack"
	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"),
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
	)
}

// serve is a store with one message behind a real server, and its client.
func serve(t *testing.T, change ...func(*Options)) (*logtrack.Store, *trackapi.Client, mail.QueueID) {
	t.Helper()
	s, err := logtrack.Open(logtrack.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	opts := Options{Store: s, Heartbeat: 20 * time.Millisecond}
	for _, c := range change {
		c(&opts)
	}
	srv := httptest.NewServer(New(opts))
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	id := queue(s, "bob@example.net")
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return s, &trackapi.Client{BaseURL: srv.URL + "/", HTTP: &http.Client{Transport: transport}}, id
}

func queue(s *logtrack.Store, rcpt string) mail.QueueID {
	now := time.Now().UTC()
	id := mail.QueueID(mail.NewID(now))
	s.Write(&event.Record{
		ID: mail.NewID(now), Time: now, Message: id, Session: "S1", Event: event.MessageQueued{
			Info:       event.Info{MailFrom: "alice@example.com", HeaderMessageID: "<x@example.com>", ClientIP: netip.MustParseAddr("192.0.2.1")},
			Recipients: []event.Recipient{{Address: rcpt}},
		},
	})
	return id
}

func TestClientAndServer(t *testing.T) {
	_, c, id := serve(t)
	ctx := t.Context()
	list, err := c.Messages(ctx, trackapi.Query{Q: "recipient:@example.net", From: time.Now().Add(-time.Hour), Explain: true})
	if err != nil || len(list.Messages) != 1 || list.Messages[0].QueueID != string(id) || len(list.Explain) == 0 {
		t.Fatalf("Messages() = %+v, %v", list, err)
	}
	tl, err := c.Message(ctx, string(id))
	if err != nil || len(tl.Timeline) != 1 || !strings.HasPrefix(tl.Timeline[0].Summary, "Accepted from alice@example.com") {
		t.Errorf("Message() = %+v, %v", tl, err)
	}
	if tr, err := c.Transcript(ctx, string(id)); err != nil || tr.Note == "" {
		t.Errorf("Transcript() = %+v, %v", tr, err)
	}
	ev, err := c.Events(ctx, trackapi.Query{Event: "message_queued"})
	if err != nil || len(ev.Events) != 1 {
		t.Fatalf("Events() = %+v, %v", ev, err)
	}
	var r event.Record
	if err := json.Unmarshal(ev.Events[0], &r); err != nil || r.Message != id {
		t.Errorf("record %+v, %v", r, err)
	}
	agg, err := c.Aggregate(ctx, trackapi.AggregateQuery{Metric: "count", By: []string{"recipient_domain"}, Query: trackapi.Query{Event: "message_queued"}})
	if err != nil || len(agg.Series) != 1 || agg.Series[0].Labels["recipient_domain"] != "example.net" || *agg.Series[0].Points[0].Value != 1 {
		t.Errorf("Aggregate() = %+v, %v", agg, err)
	}
	if v, err := c.Values(ctx, trackapi.ValuesQuery{Field: "sender", Prefix: "al"}); err != nil || len(v.Values) != 1 {
		t.Errorf("Values() = %+v, %v", v, err)
	}
}

func TestProblems(t *testing.T) {
	_, c, _ := serve(t)
	for _, test := range []struct {
		name   string
		method string
		path   string
		status int
		field  string
	}{
		{"unknown parameter", "GET", "/api/v1/messages?recipent=a@b", 400, "recipent"},
		{"bad q", "GET", "/api/v1/messages?q=x:y", 400, "q"},
		{"bad class", "GET", "/api/v1/events?class=nope", 400, "class"},
		{"bad aggregate", "GET", "/api/v1/aggregate?by=nope", 400, "by"},
		{"bad field", "GET", "/api/v1/values?field=body", 400, "field"},
		{"bad time", "GET", "/api/v1/messages?from=yesterday", 400, "from"},
		{"bad end", "GET", "/api/v1/aggregate?metric=count&to=2026-13-01T00:00:00Z", 400, "to"},
		{"times the wrong way round", "GET", "/api/v1/events?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", 400, "from"},
		{"bad cursor", "GET", "/api/v1/messages?cursor=../../etc/passwd", 400, "cursor"},
		{"cursor of other filters", "GET", "/api/v1/messages?cursor=AAAAAAAAAAAAAAAAAAAAAAAA", 400, "cursor"},
		{"bad limit", "GET", "/api/v1/messages?limit=100000", 400, "limit"},
		{"negative limit", "GET", "/api/v1/events?limit=-1", 400, "limit"},
		{"bad size", "GET", "/api/v1/messages?min_size=big", 400, "min_size"},
		{"bad latency", "GET", "/api/v1/messages?max_latency=5", 400, "max_latency"},
		{"bad network", "GET", "/api/v1/messages?client_ip=10.0.0.0/99", 400, "client_ip"},
		{"too many steps", "GET", "/api/v1/aggregate?metric=count&from=2020-01-01T00:00:00Z&to=2026-01-01T00:00:00Z&step=1s", 400, "step"},
		{"too many groups", "GET", "/api/v1/aggregate?metric=count&by=recipient_domain&top=100000", 400, "top"},
		{"a filter of 100,000 octets", "GET", "/api/v1/messages?q=" + strings.Repeat("a", 100000), 400, "q"},
		{"twice", "GET", "/api/v1/messages?sender=a@b.example&sender=c@d.example", 400, "sender"},
		{"NUL in a name", "GET", "/api/v1/messages?%00=x", 400, "\x00"},
		{"bad tail", "GET", "/api/v1/tail?class=nope", 400, "class"},
		{"no such message", "GET", "/api/v1/messages/01J9ZZZZZZZZZZZZZZZZZZZZZZ", 404, "queue_id"},
		{"parameter of a message", "GET", "/api/v1/messages/01J9ZZZZZZZZZZZZZZZZZZZZZZ?from=now", 400, "from"},
		{"method", "POST", "/api/v1/messages", 405, ""},
		{"path", "GET", "/api/v1/mesages", 404, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), test.method, strings.TrimSuffix(c.BaseURL, "/")+test.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := c.HTTP.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			var p trackapi.Problem
			if err := json.NewDecoder(res.Body).Decode(&p); err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != test.status || p.Status != test.status || p.Field != test.field || p.Hint == "" || res.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%d %s %+v, want %d and field %q", res.StatusCode, res.Header.Get("Content-Type"), p, test.status, test.field)
			}
		})
	}
	var p *trackapi.Problem
	if _, err := c.Messages(t.Context(), trackapi.Query{Class: "nope"}); !errors.As(err, &p) || p.Field != "class" {
		t.Errorf("the client's error is %v", err)
	}
}

func TestTail(t *testing.T) {
	s, c, _ := serve(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got := make(chan string)
	ended := make(chan error, 1)
	go func() {
		ended <- c.Tail(ctx, trackapi.Query{Recipient: "@live.example"}, func(rec json.RawMessage) error {
			var r event.Record
			if err := json.Unmarshal(rec, &r); err != nil {
				return err
			}
			got <- string(r.Message)
			return nil
		})
	}()
	for s.Stats().Tails == 0 { // the stream is there once the store says so
		if ctx.Err() != nil {
			t.Fatal(ctx.Err())
		}
	}
	queue(s, "x@elsewhere.example")
	want := queue(s, "x@live.example")
	if id := <-got; id != string(want) {
		t.Errorf("live fact of %s, want %s", id, want)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the stream ended with %v", err)
	}
}

func TestTailEndsWithTheStore(t *testing.T) {
	s, c, _ := serve(t)
	ended := make(chan error, 1)
	go func() {
		ended <- c.Tail(t.Context(), trackapi.Query{}, func(json.RawMessage) error { return nil })
	}()
	for s.Stats().Tails == 0 {
		if t.Context().Err() != nil {
			t.Fatal("no stream")
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, trackapi.ErrTailEnded) || !strings.Contains(err.Error(), "closed") {
		t.Errorf("the stream ended with %v", err)
	}
}

// stuck is a store whose search waits until it is let go.
type stuck struct {
	Store
	begun, let chan struct{}
}

func (s stuck) Messages(context.Context, trackapi.Query) (*trackapi.Messages, error) {
	s.begun <- struct{}{}
	<-s.let
	return &trackapi.Messages{}, nil
}

func TestTooManyQueries(t *testing.T) {
	s := stuck{begun: make(chan struct{}), let: make(chan struct{})}
	_, c, _ := serve(t, func(o *Options) { s.Store = o.Store; o.Store = s; o.Queries = 1; o.Wait = time.Millisecond })
	first := make(chan error, 1)
	go func() {
		_, err := c.Messages(t.Context(), trackapi.Query{})
		first <- err
	}()
	<-s.begun
	var p *trackapi.Problem
	if _, err := c.Events(t.Context(), trackapi.Query{}); !errors.As(err, &p) || p.Status != http.StatusServiceUnavailable {
		t.Errorf("a query too many: %v, want 503", err)
	}
	close(s.let)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

func TestOtherServer(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadGateway)
		fmt.Fprint(w, "<html>")
	}))
	defer srv.Close()
	c := &trackapi.Client{BaseURL: srv.URL}
	var p *trackapi.Problem
	if _, err := c.Status(t.Context()); !errors.As(err, &p) || p.Status != 502 || p.Hint == "" {
		t.Errorf("Status() of another server: %v", err)
	}
}

// TestOpenAPI: the document names every path that is served, every call of the
// queue, every parameter, and every field of the wire contract.
func TestOpenAPI(t *testing.T) {
	_, c, _ := serve(t)
	res, err := c.HTTP.Get(c.BaseURL + "api/v1/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths      map[string]any
		Components struct {
			Parameters map[string]any
			Schemas    map[string]struct{ Properties map[string]any }
		}
	}
	if err := yaml.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	for _, path := range append(Paths(), "/api/v1/queues", "/api/v1/queue/messages", "/api/v1/queue/actions", "/api/v1/queue/messages/{queue_id}/content", "/api/v1/status", "/api/v1/protocol/tail", "/api/v1/tracking/import", "/api/v1/tracking/stats", "/api/v1/tracking/verify", "/api/v1/tracking/repair", "/api/v1/tracking/erase") {
		if doc.Paths[path] == nil {
			t.Errorf("path %s is not described", path)
		}
	}
	for _, name := range append(trackapi.Filters(), "from", "to", "q", "sort", "limit", "cursor", "explain") {
		if doc.Components.Parameters[name] == nil {
			t.Errorf("parameter %s is not described", name)
		}
	}
	for _, v := range []any{
		trackapi.Messages{},
		trackapi.Timeline{},
		trackapi.Transcript{},
		trackapi.ProtocolLine{},
		trackapi.Events{},
		trackapi.Aggregate{},
		trackapi.Values{},
		trackapi.Queues{},
		trackapi.QueuedMessages{},
		trackapi.QueueAction{},
		trackapi.QueueActed{},
		trackapi.Status{},
		trackapi.Problem{},
		trackapi.Imported{},
		trackapi.EraseInput{},
		trackapi.Erased{},
		trackapi.Repaired{},
		trackapi.Verified{},
		trackapi.TrackStats{},
	} {
		check(t, reflect.TypeOf(v), func(typ, field string) bool { return doc.Components.Schemas[typ].Properties[field] != nil })
	}
}

func check(t *testing.T, typ reflect.Type, described func(typ, field string) bool) {
	var fields func(in reflect.Type)
	fields = func(in reflect.Type) {
		for f := range in.Fields() {
			if f.Anonymous {
				fields(f.Type)
				continue
			}
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if !described(typ.Name(), name) {
				t.Errorf("field %s of %s is not described", name, typ.Name())
			}
			of := f.Type
			for of.Kind() == reflect.Slice || of.Kind() == reflect.Pointer {
				of = of.Elem()
			}
			if of.Kind() == reflect.Struct && of.PkgPath() == typ.PkgPath() {
				check(t, of, described)
			}
		}
	}
	fields(typ)
}

// TestTailResumes reads a stream, loses it, misses facts, and comes back: none is missing.
func TestTailResumes(t *testing.T) {
	s, c, first := serve(t)
	id := ""
	page, err := c.Events(t.Context(), trackapi.Query{QueueID: string(first)})
	if err != nil || len(page.Events) != 1 {
		t.Fatalf("%+v, %v", page, err)
	}
	var head struct {
		ID string `json:"event_id"`
	}
	if err := json.Unmarshal(page.Events[0], &head); err != nil {
		t.Fatal(err)
	}
	id = head.ID
	missed := []mail.QueueID{queue(s, "one@example.net"), queue(s, "two@example.net"), queue(s, "other@example.org")}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	got := make(chan string, 100)
	done := make(chan error, 1)
	go func() {
		done <- c.Tail(ctx, trackapi.Query{Recipient: "@example.net", Cursor: id}, func(raw json.RawMessage) error {
			var r event.Record
			if err := json.Unmarshal(raw, &r); err != nil {
				return err
			}
			got <- string(r.Message)
			return nil
		})
	}()
	seen := map[string]int{}
	next := func() {
		t.Helper()
		select {
		case m := <-got:
			seen[m]++
		case err := <-done:
			t.Fatalf("the stream ended: %v", err)
		case <-time.After(2 * time.Minute):
			t.Fatalf("nothing came after %v", seen)
		}
	}
	next()
	next()
	live := queue(s, "three@example.net")
	next()
	for _, m := range []mail.QueueID{missed[0], missed[1], live} {
		if seen[string(m)] != 1 {
			t.Errorf("%s came %d times: %v", m, seen[string(m)], seen)
		}
	}
	if seen[string(missed[2])] != 0 || seen[string(first)] != 0 {
		t.Errorf("what was not asked for came: %v", seen)
	}
	res, err := c.HTTP.Get(strings.TrimSuffix(c.BaseURL, "/") + "/api/v1/tail?cursor=nonsense")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusBadRequest {
		t.Errorf("a cursor that is none: %s", res.Status)
	}
}

// TestBusy has as many questions under way as may be: the next one is told to
// come again, and when.
func TestBusy(t *testing.T) {
	h := &handler{opts: Options{Wait: time.Millisecond}, turns: make(chan struct{}, 1)}
	began, end := make(chan struct{}), make(chan struct{})
	slow := h.query(func(*http.Request) (any, error) {
		close(began)
		<-end
		return "done", nil
	})
	first := httptest.NewRecorder()
	done := make(chan struct{})
	go func() {
		defer close(done)
		slow(first, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
	}()
	<-began
	w := httptest.NewRecorder()
	quick := h.query(func(*http.Request) (any, error) { return "done", nil })
	quick(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
	var p trackapi.Problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || p.Hint == "" {
		t.Errorf("%d %s, %v; want 503 and when to come again", w.Code, w.Body, err)
	}
	close(end)
	<-done
	w = httptest.NewRecorder()
	quick(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
	if first.Code != http.StatusOK || w.Code != http.StatusOK {
		t.Errorf("the slow one: %d; the one after it: %d", first.Code, w.Code)
	}
}
