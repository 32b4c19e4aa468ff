package otlplog

import (
	"compress/gzip"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	collector "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/proto"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/tlsconf"
)

// receiver takes logs as a collector does.
type receiver struct {
	*httptest.Server
	answer func(w http.ResponseWriter, n int) bool // may answer the n-th request itself; nil takes all

	mu       sync.Mutex
	requests int
	header   http.Header // of the latest request
	path     string
	resource map[string]any
	got      []*logs.LogRecord
	changed  chan struct{}
}

func newReceiver(t testing.TB, answer func(w http.ResponseWriter, n int) bool) *receiver {
	r := &receiver{answer: answer, changed: make(chan struct{}, 1)}
	r.Server = httptest.NewUnstartedServer(r)
	r.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(func() { r.Close() })
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body := io.Reader(req.Body)
	if req.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		body = z
	}
	data, err := io.ReadAll(body)
	var export collector.ExportLogsServiceRequest
	if err == nil {
		err = proto.Unmarshal(data, &export)
	}
	if err != nil || req.Header.Get("Content-Type") != "application/x-protobuf" || req.Method != http.MethodPost {
		http.Error(w, fmt.Sprint("no export: ", err), http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests++
	r.header, r.path = req.Header.Clone(), req.URL.Path
	defer func() {
		select {
		case r.changed <- struct{}{}:
		default:
		}
	}()
	if r.answer != nil && r.answer(w, r.requests) {
		return
	}
	for _, of := range export.GetResourceLogs() {
		r.resource = object(of.GetResource().GetAttributes())
		for _, scope := range of.GetScopeLogs() {
			r.got = append(r.got, scope.GetLogRecords()...)
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// until waits for something that requests bring about.
func (r *receiver) until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.After(time.Minute)
	for {
		r.mu.Lock()
		done := ok()
		r.mu.Unlock()
		if done {
			return
		}
		select {
		case <-r.changed:
		case <-end:
			t.Fatalf("waited for %s", what)
		}
	}
}

func object(list []*common.KeyValue) map[string]any {
	m := map[string]any{}
	for _, kv := range list {
		m[kv.GetKey()] = value(kv.GetValue())
	}
	return m
}

func value(v *common.AnyValue) any {
	switch v := v.GetValue().(type) {
	case *common.AnyValue_StringValue:
		return v.StringValue
	case *common.AnyValue_IntValue:
		return float64(v.IntValue)
	case *common.AnyValue_DoubleValue:
		return v.DoubleValue
	case *common.AnyValue_BoolValue:
		return v.BoolValue
	case *common.AnyValue_ArrayValue:
		var list any // as JSON has it
		for _, item := range v.ArrayValue.GetValues() {
			sofar, _ := list.([]any)
			list = append(sofar, value(item))
		}
		return list
	case *common.AnyValue_KvlistValue:
		return object(v.KvlistValue.GetValues())
	}
	return nil
}

// fast is for tests; nothing in it decides what they see.
func fast() bounds {
	return bounds{
		room: 1 << 20, every: 5 * time.Millisecond, request: time.Minute, first: time.Millisecond, longest: 5 * time.Millisecond, giveUp: time.Minute, quiet: time.Millisecond, flush: time.Minute,
	}
}

// heard collects what Trouble is called with.
type heard struct {
	mu   sync.Mutex
	list []error
}

func (h *heard) trouble(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = append(h.list, err)
}

func (h *heard) words() (list []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, err := range h.list {
		list = append(list, fmt.Sprint(err))
	}
	return list
}

func open(t testing.TB, opts Options, tm bounds) *Log {
	t.Helper()
	l, err := start(opts, tm)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func emitter(l *Log) event.Emitter { return event.NewEmitter("mx1.example.com", l) }

// facts are one of each kind, without values, and some with lists and with text
// that peers have made.
func facts(t testing.TB) (list []event.Record) {
	for i, name := range event.Names() {
		var r event.Record
		line := fmt.Sprintf(`{"ts":"2026-11-22T03:04:05.%06dZ","event_id":"%d","schema":1,"event":%q,"session_id":"s1","queue_id":"q1"}`, i+1, i, name)
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	at := time.Date(2026, 11, 22, 3, 5, 0, 123456000, time.UTC)
	for _, ev := range []event.Event{
		event.TranscriptKept{Reason: "failed", Began: at, Transcript: []event.Line{{Seq: 1, At: event.Secs(time.Second), From: "client", Text: "EHLO <\u202e>"}, {From: "note", Text: "x", Bytes: 9}}},
		event.MessageQueued{Recipients: []event.Recipient{{Address: "ann@example.com", Disposition: mail.Relayed, Code: 250}, {Address: "bob@example.com"}}},
		event.AuthFailed{User: "\xff\xfeann\x00", Mechanism: "PLAIN", Reason: "credentials"},
	} {
		list = append(list, event.Record{ID: "x" + strconv.Itoa(len(list)), Time: at, Node: "mx1", Event: ev})
	}
	return list
}

// What arrives is what the lines of the record hold.
func TestRecords(t *testing.T) {
	for _, test := range []struct {
		name     string
		compress bool
		want     string
	}{
		{"plain", false, ""},
		{"gzip", true, "gzip"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newReceiver(t, nil)
			r.Start()
			l := open(t, Options{Endpoint: r.URL + "/otel", Compress: test.compress, Host: "mx1.example.com", Version: "1.2"}, fast())
			all := facts(t)
			minor := all[0]
			minor.Minor = true
			l.Write(&minor)
			for i := range all {
				l.Write(&all[i])
			}
			r.until(t, "all facts", func() bool { return len(r.got) == len(all) })
			if got := r.header.Get("Content-Encoding"); got != test.want || r.path != "/otel/v1/logs" {
				t.Errorf("request to %s with the encoding %q, want %q", r.path, got, test.want)
			}
			about := map[string]any{"service.name": "waybill", "service.version": "1.2", "service.instance.id": "mx1.example.com", "host.name": "mx1.example.com"}
			for key, want := range about {
				if r.resource[key] != want {
					t.Errorf("resource: %s is %v, want %v", key, r.resource[key], want)
				}
			}
			for i, got := range r.got {
				line, err := all[i].MarshalJSON()
				if err != nil {
					t.Fatal(err)
				}
				var want map[string]any
				if err := json.Unmarshal(line, &want); err != nil {
					t.Fatal(err)
				}
				delete(want, "ts")
				name := event.Name(all[i].Event)
				// JSON has a U+FFFD for each octet that is not UTF-8, and this one for all in a row.
				if user, _ := want["auth_user"].(string); strings.HasPrefix(user, "\uFFFD\uFFFD") {
					want["auth_user"] = strings.TrimPrefix(user, "\uFFFD")
				}
				if d := cmp.Diff(want, object(got.GetAttributes())); d != "" {
					t.Errorf("%s (-line +attributes):\n%s", name, d)
				}
				if got.GetEventName() != name || got.GetBody().GetStringValue() != name || got.GetTimeUnixNano() != uint64(all[i].Time.UnixNano()) {
					t.Errorf("%s: %s, %v, %d", name, got.GetEventName(), got.GetBody(), got.GetTimeUnixNano())
				}
			}
			eventually(t, "the count", func() bool { return l.Stats().Sent == uint64(len(all)) && l.Stats().Pending == 0 })
		})
	}
}

func TestSeverity(t *testing.T) {
	for _, test := range []struct {
		name  string
		level string
		fact  event.Event
		text  string
		want  logs.SeverityNumber // 0: not sent
	}{
		{"debug", "", event.CommandAnswered{}, "debug", logs.SeverityNumber_SEVERITY_NUMBER_DEBUG},
		{"info", "debug", event.MessageQueued{}, "info", logs.SeverityNumber_SEVERITY_NUMBER_INFO},
		{"warn", "warn", event.AuthFailed{}, "warn", logs.SeverityNumber_SEVERITY_NUMBER_WARN},
		{"error", "error", event.Panicked{}, "error", logs.SeverityNumber_SEVERITY_NUMBER_ERROR},
		{"below info", "info", event.CommandAnswered{}, "", 0},
		{"below error", "error", event.AuthFailed{}, "", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newReceiver(t, nil)
			r.Start()
			l := open(t, Options{Endpoint: r.URL, Level: test.level}, fast())
			emitter(l).Emit(test.fact)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			var got logs.SeverityNumber
			var text string
			if len(r.got) > 0 {
				got, text = r.got[0].GetSeverityNumber(), r.got[0].GetSeverityText()
			}
			if got != test.want || text != test.text {
				t.Errorf("severity %v %q, want %v %q", got, text, test.want, test.text)
			}
		})
	}
	if _, err := New(Options{Endpoint: "http://localhost", Level: "loud"}); err == nil {
		t.Error("New takes a level that is none")
	}
}

// A collector that is away or busy gets the facts when it is back, each once.
func TestTriesAgain(t *testing.T) {
	say := func(code int, header ...string) func(http.ResponseWriter, int) bool {
		return func(w http.ResponseWriter, n int) bool {
			if n > 3 {
				return false
			}
			for i := 0; i+1 < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			http.Error(w, "later, Bearer s3cret", code)
			return true
		}
	}
	for _, test := range []struct {
		name   string
		answer func(http.ResponseWriter, int) bool
		want   string // said
	}{
		{"busy", say(http.StatusServiceUnavailable), "the collector answers 503 Service Unavailable"},
		{"too many requests, for ever", say(http.StatusTooManyRequests, "Retry-After", "9223372036854775807"), "the collector answers 429 Too Many Requests"},
		{"a gateway without it", say(http.StatusBadGateway, "Retry-After", "Fri, 31 Dec 9999 23:59:59 GMT"), "the collector answers 502 Bad Gateway"},
		{"hangs up", func(w http.ResponseWriter, n int) bool {
			if n > 3 {
				return false
			}
			panic(http.ErrAbortHandler)
		}, "EOF"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newReceiver(t, test.answer)
			r.Start()
			var h heard
			l := open(t, Options{Endpoint: r.URL, Trouble: h.trouble}, fast())
			emitter(l).Emit(event.MessageQueued{})
			r.until(t, "the fact", func() bool { return len(r.got) == 1 })
			eventually(t, "the end of trouble", func() bool { return len(h.words()) == 2 })
			if said := h.words(); !strings.Contains(said[0], test.want) || said[1] != "<nil>" {
				t.Errorf("said %q, want %q and that it is over", said, test.want)
			}
			if s := l.Stats(); s.Sent != 1 || len(r.got) != 1 {
				t.Errorf("sent %d, got %d, want 1", s.Sent, len(r.got))
			}
		})
	}
}

// When nobody listens, it is tried again.
func TestNobodyListens(t *testing.T) {
	var h heard
	var tries atomic.Int64
	tm := fast()
	tm.flush = 0
	l := open(t, Options{Endpoint: "http://127.0.0.1:1", Trouble: h.trouble, Header: func() (http.Header, error) {
		tries.Add(1)
		return nil, nil
	}}, tm)
	emitter(l).Emit(event.MessageQueued{})
	eventually(t, "three tries", func() bool { return tries.Load() >= 3 })
	if said := h.words(); len(said) != 1 || !strings.Contains(said[0], "127.0.0.1:1") {
		t.Errorf("said %q, want once that nobody listens", said)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if s := l.Stats(); s.Dropped[Closed] != 1 {
		t.Errorf("%+v, want one dropped at the end", s)
	}
}

// What a collector refuses is not sent again, and counted.
func TestRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer func(http.ResponseWriter, int) bool
		said   string
		want   Stats
	}{
		{"no token", func(w http.ResponseWriter, _ int) bool {
			http.Error(w, "you sent Bearer s3cret", http.StatusUnauthorized)
			return true
		}, "the collector answers 401 Unauthorized", Stats{Dropped: map[string]uint64{Refused: 2}}},
		{"elsewhere", func(w http.ResponseWriter, _ int) bool {
			w.Header().Set("Location", "http://127.0.0.1:1/")
			w.WriteHeader(http.StatusTemporaryRedirect)
			return true
		}, "the collector answers 307 Temporary Redirect", Stats{Dropped: map[string]uint64{Refused: 2}}},
		{"one of two", func(w http.ResponseWriter, _ int) bool {
			b, _ := proto.Marshal(&collector.ExportLogsServiceResponse{PartialSuccess: &collector.ExportLogsPartialSuccess{RejectedLogRecords: 1, ErrorMessage: "too old"}})
			w.Header().Set("Content-Type", "application/x-protobuf")
			w.Write(b)
			return true
		}, `the collector refused 1 records: "too old"`, Stats{Sent: 1, Dropped: map[string]uint64{Refused: 1}}},
		{"taken with nonsense", func(w http.ResponseWriter, _ int) bool {
			w.Header().Set("Content-Type", "application/x-protobuf")
			w.Write([]byte{0xff, 0xff})
			return true
		}, "", Stats{Sent: 2}},
		{"taken with a book", func(w http.ResponseWriter, _ int) bool {
			w.Header().Set("Content-Type", "application/x-protobuf")
			w.Write(make([]byte, 2*maxResponse))
			return true
		}, "", Stats{Sent: 2}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newReceiver(t, test.answer)
			r.Start()
			var h heard
			slow := fast()
			slow.every, slow.quiet = time.Hour, time.Hour
			l := open(t, Options{Endpoint: r.URL, Trouble: h.trouble}, slow)
			emitter(l).Emit(event.MessageQueued{})
			emitter(l).Emit(event.MessageQueued{})
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			got := l.Stats()
			for reason, n := range got.Dropped {
				if n == 0 {
					delete(got.Dropped, reason)
				}
			}
			if len(got.Dropped) == 0 {
				got.Dropped = nil
			}
			if d := cmp.Diff(test.want, got); d != "" || r.requests != 1 {
				t.Errorf("%d requests; stats (-want +got):\n%s", r.requests, d)
			}
			if said := strings.Join(h.words(), ";"); said != test.said {
				t.Errorf("said %q, want %q", said, test.said)
			}
		})
	}
}

// The relay does not wait for a collector that is stuck: facts are left out,
// those of the protocol first.
func TestBounded(t *testing.T) {
	stuck, arrived := make(chan struct{}), make(chan struct{}, 100)
	r := newReceiver(t, func(http.ResponseWriter, int) bool {
		arrived <- struct{}{}
		<-stuck
		return false
	})
	r.Start()
	var h heard
	tm := fast()
	tm.quiet = time.Hour
	l := open(t, Options{Endpoint: r.URL, Trouble: h.trouble}, tm)
	emit := emitter(l)
	emit.Emit(event.SessionOpened{})
	<-arrived
	fill := func(ev event.Event) (octets int) {
		before := l.Stats().Dropped[BufferFull]
		for l.Stats().Dropped[BufferFull] == before {
			emit.Emit(ev)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.octets
	}
	long := event.TranscriptKept{Transcript: []event.Line{{Text: strings.Repeat("x", 16<<10)}}}
	if n := fill(long); n > tm.room/2 {
		t.Errorf("protocol facts take %d octets of %d", n, tm.room)
	}
	if n := fill(event.SessionOpened{}); n > tm.room || n < tm.room-2*factOctets {
		t.Errorf("facts take %d octets of %d", n, tm.room)
	}
	close(stuck)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s := l.Stats()
	if s.Sent != uint64(len(r.got)) || s.Dropped[BufferFull] != 2 || s.Dropped[Closed]+s.Dropped[Refused]+s.Dropped[Unavailable] != 0 {
		t.Errorf("%+v after %d facts arrived", s, len(r.got))
	}
	if said := h.words(); len(said) != 1 || !errors.Is(h.list[0], ErrFull) {
		t.Errorf("said %q, want once that facts are left out", said)
	}
	emit.Emit(event.SessionOpened{})
	if n := l.Stats().Dropped[Closed]; n != 1 {
		t.Errorf("%d facts after the end are counted, want 1", n)
	}
}

// The end does not wait for a collector for long, and facts that it did not get
// are counted.
func TestCloseInTime(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer func(http.ResponseWriter, int) bool
		change func(*bounds)
		want   string // the reason
	}{
		{
			"busy", func(w http.ResponseWriter, _ int) bool { w.WriteHeader(http.StatusServiceUnavailable); return true },
			func(tm *bounds) { tm.flush = 50 * time.Millisecond }, Closed,
		},
		{
			"gave up before", func(w http.ResponseWriter, _ int) bool { w.WriteHeader(http.StatusServiceUnavailable); return true },
			func(tm *bounds) { tm.giveUp = 20 * time.Millisecond }, Unavailable,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newReceiver(t, test.answer)
			r.Start()
			tm := fast()
			test.change(&tm)
			l := open(t, Options{Endpoint: r.URL}, tm)
			emitter(l).Emit(event.MessageQueued{})
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if s := l.Stats(); s.Dropped[test.want] != 1 || s.Sent != 0 {
				t.Errorf("%+v, want one dropped as %s", s, test.want)
			}
		})
	}
}

// The collector is checked by its certificate, and gets header fields that may
// change at any time.
func TestTLSAndHeader(t *testing.T) {
	r := newReceiver(t, nil)
	r.StartTLS()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	trust, err := tlsconf.Client(tlsconf.ClientOptions{Level: "verify_name", CAFile: ca})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	header := func() (http.Header, error) {
		n++
		return ParseHeader(fmt.Sprintf("Authorization: Bearer %d\n", n))
	}
	l := open(t, Options{Endpoint: r.URL, TLS: trust, Header: header}, fast())
	for want := 1; want <= 2; want++ {
		emitter(l).Emit(event.MessageQueued{})
		r.until(t, "the fact", func() bool { return len(r.got) == want })
		if got := r.header.Get("Authorization"); got != fmt.Sprint("Bearer ", want) {
			t.Errorf("Authorization: %s, want Bearer %d", got, want)
		}
	}

	var h heard
	tm := fast()
	tm.flush = 0
	stranger := open(t, Options{Endpoint: r.URL, Header: header, Trouble: h.trouble}, tm) // which trusts the system's authorities
	emitter(stranger).Emit(event.MessageQueued{})
	eventually(t, "trouble", func() bool { return len(h.words()) > 0 })
	if said := h.words()[0]; !strings.Contains(said, "certificate") {
		t.Errorf("said %q", said)
	}
	if n := len(r.got); n != 2 {
		t.Errorf("%d facts, want 2: none over a connection that was not checked", n)
	}
}

func TestHeaderFails(t *testing.T) {
	r := newReceiver(t, nil)
	r.Start()
	var h heard
	n := 0
	l := open(t, Options{Endpoint: r.URL, Trouble: h.trouble, Header: func() (http.Header, error) {
		if n++; n < 3 {
			return nil, errors.New("no file")
		}
		return http.Header{"X-Tenant": {"a"}}, nil
	}}, fast())
	emitter(l).Emit(event.MessageQueued{})
	r.until(t, "the fact", func() bool { return len(r.got) == 1 && r.header.Get("X-Tenant") == "a" })
	if said := h.words(); said[0] != "no file" {
		t.Errorf("said %q", said)
	}
}

func TestCheckEndpoint(t *testing.T) {
	for _, test := range []struct {
		name string
		url  string
		want string // the URL of requests; empty: refused
	}{
		{"base", "http://localhost:4318", "http://localhost:4318/v1/logs"},
		{"slash", "https://c.example.com/", "https://c.example.com/v1/logs"},
		{"path", "https://c.example.com/otlp", "https://c.example.com/otlp/v1/logs"},
		{"whole", "https://c.example.com/x/v1/logs", "https://c.example.com/x/v1/logs"},
		{"IPv6", "http://[::1]:4318", "http://[::1]:4318/v1/logs"},
		{"no scheme", "localhost:4318", ""},
		{"gRPC", "grpc://localhost:4317", ""},
		{"user", "https://u:s3cret@c.example.com", ""},
		{"query", "https://c.example.com/?key=s3cret", ""},
		{"fragment", "https://c.example.com/#s3cret", ""},
		{"no host", "http:///v1/logs", ""},
		{"malformed", "http://u:s3cret@c.example.com:port", ""},
		{"empty", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := endpointURL(test.url)
			if got != test.want || (err != nil) != (test.want == "") || (CheckEndpoint(test.url) != nil) != (err != nil) {
				t.Errorf("endpointURL(%q) = %q, %v, want %q", test.url, got, err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error has the secret: %v", err)
			}
		})
	}
}

func TestParseHeader(t *testing.T) {
	for _, test := range []struct {
		name string
		text string
		want http.Header // nil: refused
	}{
		{"token", "Authorization: Bearer s3cret\n", http.Header{"Authorization": {"Bearer s3cret"}}},
		{"two", "# tenant\nX-Scope-OrgID:a\r\n\nX-Key: s3cret:x", http.Header{"X-Scope-Orgid": {"a"}, "X-Key": {"s3cret:x"}}},
		{"empty", "\n# nothing\n", nil},
		{"no name", ": s3cret", nil},
		{"no value", "X-Key:", nil},
		{"no colon", "s3cret", nil},
		{"space in the name", "X Key: s3cret", nil},
		{"control", "X-Key: s3cret\x01", nil},
		{"not ASCII", "X-Key: s3cret\u00e9", nil},
		{"ours", "Content-Encoding: s3cret", nil},
		{"too long", "X-Key: s3cret" + strings.Repeat("x", maxHeader), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParseHeader(test.text)
			if d := cmp.Diff(test.want, got); d != "" || (err != nil) != (test.want == nil) {
				t.Errorf("ParseHeader(%q): %v (-want +got):\n%s", test.text, err, d)
			}
			if err != nil && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error has the secret: %v", err)
			}
		})
	}
}

// The library's own environment variables change nothing.
func TestEnvironment(t *testing.T) {
	for name, val := range map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "https://127.0.0.1:1", "OTEL_EXPORTER_OTLP_HEADERS": "X-Foreign=1",
		"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip", "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "1", "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT": "1",
		"OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT": "1", "OTEL_SERVICE_NAME": "foreign",
	} {
		t.Setenv(name, val)
	}
	r := newReceiver(t, nil)
	r.Start()
	l := open(t, Options{Endpoint: r.URL, Host: "mx1"}, fast())
	emitter(l).Emit(event.AuthFailed{User: "ann", Mechanism: "PLAIN", Reason: "credentials"})
	r.until(t, "the fact", func() bool { return len(r.got) == 1 })
	if got := object(r.got[0].GetAttributes()); got["auth_mechanism"] != "PLAIN" || r.header.Get("X-Foreign")+r.header.Get("Content-Encoding") != "" || r.resource["service.name"] != "waybill" {
		t.Errorf("got %v of %v with %v", got, r.resource, r.header)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick, end := time.NewTicker(time.Millisecond), time.After(time.Minute)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited for %s", what)
		}
	}
}

func FuzzTaken(f *testing.F) {
	b, _ := proto.Marshal(&collector.ExportLogsServiceResponse{PartialSuccess: &collector.ExportLogsPartialSuccess{RejectedLogRecords: -1, ErrorMessage: "x"}})
	f.Add(b)
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, body []byte) {
		w := &way{tell: func(error) {}}
		w.taken(&http.Response{Header: http.Header{"Content-Type": {"application/x-protobuf"}}, Body: io.NopCloser(strings.NewReader(string(body)))})
		if w.rejected > 1<<63 {
			t.Errorf("rejected %d", w.rejected)
		}
	})
}
