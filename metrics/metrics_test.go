package metrics

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/queue"
	"waybill/relay/route"
)

var update = flag.Bool("update", false, "write the golden files and the reference")

var options = Options{
	Connectors: []string{"inbound", "submission"}, SendConnectors: []string{"internet"}, Providers: []string{"google", "m365", "other"},
	Version: "1.2.3", Revision: "abcdef",
}

// facts is one day in the life of a relay, one fact of each kind at least.
func facts() []event.Event {
	info := event.Info{MailFrom: "a@example.com", Size: 10_240, ConnectorIn: "submission", Priority: "normal"}
	hop := event.Hop{ConnectorOut: "internet", Queue: "example.net", Provider: "google", RemoteName: "mx.example.net"}
	final := event.Final{Info: info, Hop: hop, Recipient: "b@example.net", Attempts: 2, TTotal: event.Secs(90 * time.Second)}
	late := final
	late.Late = true
	ms := func(n int) event.Seconds { return event.Secs(time.Duration(n) * time.Millisecond) }
	return []event.Event{
		event.SessionOpened{Direction: event.Inbound, Connector: "submission"},
		event.SessionOpened{Direction: event.Outbound, Connector: "internet"},
		event.SessionClosed{Direction: event.Inbound, Connector: "submission", Cause: "quit"},
		event.SessionRefused{Connector: "inbound", Reason: "limit_source"},
		event.CommandAnswered{Connector: "submission", Verb: "EHLO", Code: 250},
		event.CommandAnswered{Connector: "submission", Verb: "UNKNOWN", Code: 500},
		event.TLSNegotiated{Direction: event.Inbound, Connector: "submission", Version: "1.3"},
		event.TLSNegotiated{Direction: event.Inbound, Connector: "submission", Failure: "EOF", Reason: "closed"},
		event.TLSNegotiated{Direction: event.Outbound, Connector: "internet", Provider: "google", Version: "1.2", Verify: "pkix"},
		event.TLSPolicyFailed{Connector: "internet", Domain: "example.net", Provider: "google", Policy: "mta_sts", Reason: "mx_mismatch"},
		event.TLSDowngraded{Connector: "internet", RemoteName: "mx.example.net", Provider: "google", Reason: "not_offered"},
		event.TLSReportSent{Domain: "example.net", Day: "2026-01-31", Method: "mail", Destination: "r@example.net"},
		event.TLSReportFailed{Domain: "example.net", Day: "2026-01-31", Method: "https", Destination: "r.example.net", Error: "refused"},
		event.TLSReportFailed{Domain: "example.net", Day: "2026-01-31", Method: "https", Destination: "r.example.net", Error: "refused", Final: true},
		event.AuthSucceeded{Connector: "submission", Mechanism: "PLAIN", User: "a"},
		event.AuthFailed{Connector: "submission", Mechanism: "LOGIN", Reason: "credentials"},
		event.AuthFailed{Connector: "submission", Mechanism: "LOGIN", Reason: "unavailable"},
		event.SenderRefused{Refusal: event.Refusal{Connector: "inbound", Reason: "sender_denied"}},
		event.RecipientRefused{Refusal: event.Refusal{Connector: "inbound", Reason: "relay_denied"}, Recipient: "x@example.org"},
		event.MessageRefused{Refusal: event.Refusal{Connector: "inbound", Reason: "size"}},
		event.MessageQueued{Info: info, Recipients: make([]event.Recipient, 2), Protocol: "ESMTPSA", TReceive: ms(40), TAccept: ms(4)},
		event.MessageQueued{Info: event.Info{MailFrom: event.NullSender}, Recipients: make([]event.Recipient, 1)},
		event.MessageRouted{Info: info, ConnectorOut: "internet"},
		event.AttemptFinished{
			Info: info, Hop: hop, Disposition: mail.Relayed, Attempt: 1, Recipients: []event.Recipient{{Disposition: mail.Relayed, Code: 250}},
			TSched: ms(1), DNSAsked: 3, DNSCached: 1, Converted: "quoted-printable:1 base64:2", Stages: event.Stages{TDNS: ms(2), TConnect: ms(20), TBanner: ms(30), TTLS: ms(40), TEnvelope: ms(50), TData: ms(60), TReply: ms(700)},
		},
		event.AttemptFinished{
			Info: info, Hop: hop, Disposition: mail.Bounced, Attempt: 2, Reused: true,
			Recipients: []event.Recipient{
				{Disposition: mail.Bounced, Code: 550, Class: mail.ClassInvalidRecipient},
				{Disposition: mail.Deferred, Code: 571, Class: mail.ClassGreylist},
				{Disposition: mail.Deferred, Code: 451, Class: mail.ClassConnect},
			},
			Stages: event.Stages{TEnvelope: ms(50)},
		},
		event.RecipientRelayed{Final: final},
		event.RecipientBounced{Final: final},
		event.RecipientExpired{Final: late},
		event.RecipientDropped{Final: final, Actor: "ops"},
		event.RecipientLate{Info: info, Provider: "google"},
		event.BackoffChanged{Hop: event.Hop{Provider: "google"}, Mode: event.BackoffSlow, Was: event.BackoffNone},
		event.BackoffChanged{Hop: event.Hop{Provider: "google"}, Mode: event.BackoffNone, Was: event.BackoffSlow},
		event.ListingChanged{List: "zen.spamhaus.org", Result: event.ListingListed},
		event.ThrottleEngaged{Connector: "submission", Scope: "source", Limit: "messages_per_minute", Action: "defer"},
		event.PressureChanged{Resource: "disk_space", Level: 1},
		event.DSNQueued{Info: info, Kind: "failed"},
		event.DSNQueued{Info: info, Kind: "failed", Suppressed: "null_sender"},
		event.QueueHeld{Actor: "ops"},
		event.QueueReleased{Actor: "ops"},
		event.AdminActed{Actor: "ops", Action: "retry", Result: "ok"},
		event.QueueLoaded{Messages: 3},
		event.MessagePoisoned{Info: info},
		event.MessageRetired{Info: info},
		event.ConfigReloaded{Revision: "r2"},
		event.ConfigReloaded{Error: "bad"},
		event.CertificateReloaded{Certificate: "default"},
		event.DNSAnswered{Type: "MX", Result: "ok", Took: ms(12)},
		event.DNSAnswered{Type: "A", Result: "cached"},
		event.LookupAnswered{Lookup: "users_ldap", Result: "known", Took: ms(7)},
		event.LookupAnswered{Lookup: "recipients_probe", Result: "cached"},
		event.TokenRefreshed{Connector: "internet", Took: ms(100), Error: "the endpoint answers 401: invalid_client"},
		event.Panicked{Where: "session"},
		event.Remarked{Remark: "odd"},
		event.ClientAnnounced{Connector: "submission"},
		event.TranscriptKept{Direction: event.Inbound, Reason: "failed"},
	}
}

// sample is a full set of levels at now.
func sample(now time.Time) Levels {
	return Levels{
		Queue: &queue.Levels{
			Messages: 8, ByState: map[string]int{"poison": 1, "unroutable": 2},
			OlderThan: map[string]map[string]int{"1m": {"active": 3, "deferred": 2}, "1h": {"deferred": 1}},
			DueLag:    1500 * time.Millisecond, DiskFree: 3 << 30, DiskSize: 10 << 30, OutboxRows: 4, Kept: 7, KeptBytes: 70_000, OutboxAge: 2 * time.Second,
			SegmentBytes: 1 << 20, SegmentFiles: 2, Pressure: map[string]int{"disk_space": 1},
		},
		Hops: []queue.HopStatus{
			{
				Hop: route.Hop{Connector: "internet", Name: "example.net"}, State: "active", Queued: 2, Active: 1, Bytes: 3000, Oldest: now.Add(-time.Minute),
				OldestBy: map[string]time.Time{"active": now.Add(-time.Minute)},
			},
			{
				Hop: route.Hop{Connector: "partner", Name: "example.net"}, State: "retry", Deferred: 2, Held: 1, Bytes: 500, Oldest: now.Add(-time.Hour),
				OldestBy: map[string]time.Time{"deferred": now.Add(-time.Hour)},
			},
			{Hop: route.Unroutable, Queued: 2, Oldest: now.Add(-time.Hour)},
		},
		Lifetime:    48 * time.Hour,
		Connections: []Connections{{event.Inbound, "submission", 3, 5000}, {event.Outbound, "internet", 1, 0}},
		Turns:       &Turns{Limit: 32, Held: 32, Waiting: 3, Waited: 1500 * time.Millisecond},
		Tracking: &Tracking{
			Degraded: true, IndexLag: 2 * time.Second, Oldest: now.Add(-24 * time.Hour), Bytes: 1 << 20, Dropped: map[string]uint64{"buffer_full": 1, "cat": 2}, WriteErrors: 1,
		},
		Log:          &Log{Written: 100, Sampled: 2, Dropped: 1, Pending: 512},
		OTLP:         &OTLP{Sent: 90, Dropped: map[string]uint64{"unavailable": 5}, Pending: 7},
		Disks:        []Disk{{"tracking", 1 << 30, 2 << 30}},
		Certificates: []Certificate{{"default", now.Add(30 * 24 * time.Hour)}},
		Stores:       []Store{{"queue", 1000, 2000}, {"tracking", 3000, 0}},
		Tokens:       []Token{{"partner", now.Add(time.Hour)}},
		Quotas: []Quota{
			{"partner", "connections", 2, 3, -1}, {"partner", "recipients_per_day", 7500, 10000, 4 * time.Hour},
		},
		Listings: []Listing{
			{"zen.spamhaus.org", "192.0.2.1", true, true, now}, {"zen.spamhaus.org", "192.0.2.2", true, false, now.Add(-time.Minute)}, {List: "dead.example", Address: "192.0.2.1"},
		},
	}
}

// exposition gathers a Reader that saw the facts, at a fixed time.
func exposition(t *testing.T, f expfmt.FormatType) (text []byte, metrics []Metric) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		r := New(reg, options)
		r.SetLevels(func() Levels { return sample(time.Now()) })
		em := event.NewEmitter("n1", r).Message("q1", "0190a6e0-0000-7000-8000-000000000000")
		for _, ev := range facts() {
			em.Emit(ev)
		}
		r.ObserveQuery("search", 20*time.Millisecond)
		var err error
		text, err = format(reg, f)
		if err != nil {
			t.Fatal(err)
		}
		metrics = r.Metrics()
	})
	return text, metrics
}

// format writes all metrics of g.
func format(g prometheus.Gatherer, f expfmt.FormatType) ([]byte, error) {
	families, err := g.Gather()
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	enc := expfmt.NewEncoder(&buf, expfmt.NewFormat(f))
	for _, family := range families {
		if err := enc.Encode(family); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), nil
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")); d != "" {
		t.Errorf("%s differs; run go generate, and say so in the changelog (-want +got):\n%s", name, d)
	}
}

// TestExposition holds the promise of names, labels, buckets and help texts.
func TestExposition(t *testing.T) {
	text, _ := exposition(t, expfmt.TypeTextPlain)
	text = bytes.ReplaceAll(text, []byte(runtime.Version()), []byte("go1.x"))
	golden(t, "exposition.golden", text)
}

// TestPromtool lets Prometheus' own linter read the exposition.
func TestPromtool(t *testing.T) {
	tool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("WAYBILL_REQUIRE_PROMTOOL") == "1" {
			t.Fatal("promtool is not installed, and WAYBILL_REQUIRE_PROMTOOL=1")
		}
		fmt.Fprintln(os.Stderr, "metrics: promtool is not installed: the exposition was NOT linted")
		return
	}
	text, _ := exposition(t, expfmt.TypeTextPlain)
	cmd := exec.Command(tool, "check", "metrics")
	cmd.Stdin = bytes.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// TestCatalogue holds Metrics and the exposition together.
func TestCatalogue(t *testing.T) {
	text, metrics := exposition(t, expfmt.TypeTextPlain)
	var exposed []string
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			exposed = append(exposed, strings.TrimSpace(rest))
		}
	}
	var listed []string
	for _, m := range metrics {
		listed = append(listed, m.Name+" "+m.Type)
		if m.Help == "" || !strings.HasSuffix(m.Help, ".") && !strings.Contains(m.Help, "; ") {
			t.Errorf("%s: help %q is no sentence", m.Name, m.Help)
		}
	}
	slices.Sort(listed)
	if d := cmp.Diff(listed, exposed); d != "" {
		t.Errorf("catalogue and exposition differ (-listed +exposed):\n%s", d)
	}
}

// TestReference writes or checks the page of the documentation.
func TestReference(t *testing.T) {
	_, metrics := exposition(t, expfmt.TypeTextPlain)
	const page = "../docs/reference/metrics.md"
	if *update {
		if err := os.MkdirAll("../docs/reference", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, page, reference(metrics))
}

func reference(metrics []Metric) []byte {
	var b bytes.Buffer
	b.WriteString(`# Metrics

<!-- Generated by "go generate ./metrics"; do not edit. -->

Waybill serves these metrics at ` + "`/metrics`" + `: as text, as OpenMetrics (with exemplars that carry the
` + "`message_uid`" + `), and as protobuf (with native histograms). Histograms have classic buckets too. All label
values that are known in advance are there from the start, with the value 0. Beside them stand the metrics of
the Go runtime (` + "`go_`" + `) and of the process (` + "`process_`" + `).

A value outside of a label's closed set becomes ` + "`other`" + `.

`)
	for _, m := range metrics {
		fmt.Fprintf(&b, "## %s\n\n%s. %s\n", m.Name, strings.ToUpper(m.Type[:1])+m.Type[1:], m.Help)
		if len(m.Labels) > 0 {
			b.WriteString("\n| label | values |\n|---|---|\n")
		}
		for _, l := range m.Labels {
			values := l.Note
			if l.Note == "" {
				for i, v := range l.Values {
					if i > 0 {
						values += ", "
					}
					values += "`" + v + "`"
				}
			}
			if l.Name == "provider" {
				values = "roll-up of the next hop, such as `google` or `m365`; `other`"
			}
			if values == "" {
				values = "text"
			}
			fmt.Fprintf(&b, "| `%s` | %s |\n", l.Name, values)
		}
		if len(m.Buckets) > 0 {
			var bounds []string
			for _, x := range m.Buckets {
				bounds = append(bounds, fmt.Sprintf("%v", x))
			}
			fmt.Fprintf(&b, "\nBuckets: %s.\n", strings.Join(bounds, ", "))
		}
		b.WriteByte('\n')
	}
	return bytes.TrimRight(b.Bytes(), "\n")
}

// value sums the samples of name whose labels hold all of labels, given as
// name="value".
func value(t *testing.T, reg prometheus.Gatherer, name string, labels ...string) float64 {
	t.Helper()
	text, err := testutil.GatherAndFormat(reg, expfmt.TypeTextPlain, name)
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") || slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(line, l) }) {
			continue
		}
		var v float64
		if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &v); err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}

func series(t *testing.T, reg prometheus.Gatherer) int {
	t.Helper()
	text, err := format(reg, expfmt.TypeTextPlain)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			n++
		}
	}
	return n
}

// TestBound is the budget of series with eight connectors each way and the
// longest list of queues.
func TestBound(t *testing.T) {
	names := func(n int, form string) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprintf(form, i))
		}
		return list
	}
	reg := prometheus.NewRegistry()
	r := New(reg, Options{Connectors: names(8, "in%d"), SendConnectors: names(8, "out%d"), Providers: names(20, "p%d")})
	r.SetLevels(func() Levels {
		l := sample(time.Now())
		l.Hops = nil
		for i := range 1000 {
			l.Hops = append(l.Hops, queue.HopStatus{Hop: route.Hop{Connector: "out1", Name: fmt.Sprintf("d%d.example", i)}, Queued: i})
		}
		return l
	})
	if n := series(t, reg); n > 10_000 {
		t.Errorf("%d series, want at most 10000", n)
	} else {
		t.Logf("%d series", n)
	}
}

// TestHostile writes facts full of made-up words: the number of series must not
// follow them.
func TestHostile(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := New(reg, options)
	hops := []queue.HopStatus{}
	r.SetLevels(func() Levels {
		l := sample(time.Now())
		l.Hops = hops
		return l
	})
	before := series(t, reg)
	em := event.NewEmitter("n1", r).Message("q", strings.Repeat("u", 1000))
	for i := range 1000 {
		w := fmt.Sprintf("evil%d\"\n\xff{}", i)
		info := event.Info{ConnectorIn: w, Priority: w, Size: math.MinInt64}
		hop := event.Hop{ConnectorOut: w, Queue: w, Provider: w}
		final := event.Final{Info: info, Hop: hop, Attempts: -i, TTotal: event.Seconds(-i)}
		rcpts := []event.Recipient{
			{Address: w, Disposition: mail.Deferred, Code: i, Class: mail.Class(w)}, {Disposition: mail.Disposition(i), Code: -i}, {Disposition: mail.Bounced, Code: i * 7},
		}
		for _, ev := range []event.Event{
			event.SessionOpened{Direction: event.Inbound, Connector: w},
			event.SessionClosed{Direction: w, Connector: w, Cause: w},
			event.SessionRefused{Connector: w, Reason: w},
			event.CommandAnswered{Connector: w, Verb: w, Code: i},
			event.CommandAnswered{Connector: "inbound", Verb: w, Code: 500},
			event.TLSNegotiated{Direction: event.Inbound, Connector: w, Version: w},
			event.TLSNegotiated{Direction: w, Connector: w, Provider: w, Version: w, Verify: w},
			event.TLSNegotiated{Direction: event.Inbound, Connector: w, Failure: w, Reason: w},
			event.TLSPolicyFailed{Connector: w, Provider: w, Policy: w, Reason: w},
			event.TLSDowngraded{Connector: w, Provider: w, Reason: w},
			event.TLSReportSent{Domain: w, Method: w, Destination: w},
			event.TLSReportFailed{Domain: w, Method: w, Destination: w},
			event.AuthSucceeded{Connector: w, Mechanism: w, User: w},
			event.AuthFailed{Connector: w, Mechanism: w, User: w, Reason: w},
			event.SenderRefused{Refusal: event.Refusal{Connector: w, Reason: w}},
			event.RecipientRefused{Refusal: event.Refusal{Connector: w, Reason: w}},
			event.MessageRefused{Refusal: event.Refusal{Connector: w, Reason: w}},
			event.MessageQueued{Info: info, Protocol: w, Recipients: rcpts},
			event.AttemptFinished{Info: info, Hop: hop, Disposition: mail.Disposition(i), Recipients: rcpts, TSched: -1},
			event.RecipientRelayed{Final: final},
			event.RecipientBounced{Final: final},
			event.RecipientExpired{Final: final},
			event.RecipientDropped{Final: final},
			event.RecipientLate{Info: info, Provider: w, Queue: w},
			event.BackoffChanged{Hop: event.Hop{Provider: w}, Mode: w},
			event.ThrottleEngaged{Connector: w, Scope: w, Action: w},
			event.DSNQueued{Kind: w, Suppressed: w},
			event.AdminActed{Action: w, Result: w},
			event.CertificateReloaded{Certificate: w, Error: w},
			event.DNSAnswered{Type: w, Result: w},
			event.LookupAnswered{Lookup: w, Result: w},
		} {
			em.Emit(ev)
		}
		r.ObserveQuery(w, time.Second)
		hops = append(hops, queue.HopStatus{Hop: route.Hop{Connector: w, Name: w}, State: w, Queued: i})
	}
	after := series(t, reg)
	// One "other" for each label that had none, in each combination that occurred, and 50 queues.
	if after > before+600 {
		t.Errorf("%d series before, %d after 1000 hostile words", before, after)
	}
	if got := value(t, reg, "waybill_metric_label_overflow_total", `metric="waybill_connections_total"`); got != 2000 {
		t.Errorf("folds of waybill_connections_total = %g, want 2000", got)
	}
	if got := value(t, reg, "waybill_commands_total", `connector="inbound"`, `command="other"`, `code_class="5xx"`); got != 1000 {
		t.Errorf("unknown commands = %g, want 1000", got)
	}
	text, err := format(reg, expfmt.TypeTextPlain)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "evil") && !strings.Contains(line, "queue=") {
			t.Fatalf("a made-up word became a label: %s", line)
		}
	}
}

func TestCounting(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := New(reg, options)
	em := event.NewEmitter("n1", r)
	for _, ev := range facts() {
		em.Emit(ev)
	}
	for _, test := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"waybill_recipients_enqueued_total", nil, 3},
		{"waybill_recipients_enqueued_total", []string{`connector="(internal)"`}, 1},
		{"waybill_messages_received_total", nil, 1},
		{"waybill_message_bytes_total", nil, 10_240},
		{"waybill_delivery_attempts_total", []string{`disposition="bounced"`}, 1},
		{"waybill_delivery_failures_total", []string{`permanence="temporary"`}, 2},
		{"waybill_remote_responses_total", nil, 3}, // the reply to a failed connect is our own
		{"waybill_remote_responses_total", []string{`code="other"`}, 1},
		{"waybill_recipients_completed_total", nil, 4},
		{"waybill_slo_recipients_total", []string{`outcome="within"`}, 2},
		{"waybill_slo_recipients_total", []string{`outcome="late"`}, 1}, // by RecipientLate; not again when it expired
		{"waybill_delivery_latency_seconds_count", nil, 1},
		{"waybill_delivery_stage_duration_seconds_count", []string{`stage="sched"`}, 2},
		{"waybill_delivery_stage_duration_seconds_count", []string{`stage="tls"`}, 1},
		{"waybill_connections_reused_total", nil, 1},
		{"waybill_contents_converted_total", nil, 1},
		{"waybill_contents_converted_total", []string{`encoding="both"`}, 1},
		{"waybill_dns_duration_seconds_count", nil, 1},
		{"waybill_auth_attempts_total", []string{`result="error"`}, 1},
		{"waybill_queue_actions_total", nil, 1},
		{"waybill_config_last_reload_successful", nil, 0},
		{"waybill_metric_label_overflow_total", nil, 0},
		{"waybill_tracking_events_total", nil, float64(len(facts()))},
	} {
		family := strings.TrimSuffix(test.name, "_count")
		labels := test.labels
		if family != test.name {
			labels = append(labels, test.name)
		}
		if got := value(t, reg, family, labels...); got != test.want {
			t.Errorf("%s%v = %g, want %g", test.name, test.labels, got, test.want)
		}
	}
}

// TestEveryFactIsCounted fails when a fact is missing in facts above, so that
// the golden file shows what a new fact does.
func TestEncodingOf(t *testing.T) {
	for _, test := range []struct {
		name string
		in   string
		want string
	}{
		{"text", "quoted-printable:3", "quoted-printable"},
		{"the rest", "base64:1", "base64"},
		{"both", "quoted-printable:1 base64:2", "both"},
		{"twice", "base64:1 base64:2", "base64"},
		{"something new", "uuencode:1", other},
		{"something new beside", "base64:1 uuencode:1 base64:1", other},
		{"blank", " ", other},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := encodingOf(test.in); got != test.want {
				t.Errorf("encodingOf(%q) = %q, want %q", test.in, got, test.want)
			}
		})
	}
}

func TestEveryFactIsCounted(t *testing.T) {
	seen := map[string]bool{}
	for _, ev := range facts() {
		seen[event.Name(ev)] = true
	}
	for _, name := range event.Names() {
		if !seen[name] {
			t.Errorf("the test has no fact %s", name)
		}
	}
}

func TestExemplar(t *testing.T) {
	text, _ := exposition(t, expfmt.TypeOpenMetrics)
	for _, family := range []string{"waybill_delivery_latency_seconds_bucket", "waybill_accept_duration_seconds_bucket", `stage="reply"`} {
		found := false
		for line := range strings.Lines(string(text)) {
			found = found || strings.Contains(line, family) && strings.Contains(line, `# {message_uid="0190a6e0-0000-7000-8000-000000000000"}`)
		}
		if !found {
			t.Errorf("%s has no exemplar", family)
		}
	}
}

func TestSetConnectors(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := New(reg, options)
	em := event.NewEmitter("n1", r)
	open := func(name string) { em.Emit(event.SessionOpened{Direction: event.Inbound, Connector: name}) }
	open("submission")
	open("partner")
	r.SetConnectors([]string{"partner", "submission"}, []string{"smart"})
	open("submission")
	open("partner")
	for name, want := range map[string]float64{"submission": 2, "partner": 1, other: 1} {
		if got := value(t, reg, "waybill_connections_total", `connector="`+name+`"`); got != want {
			t.Errorf("connections of %s = %g, want %g", name, got, want)
		}
	}
	var many []string
	for i := range 200 {
		many = append(many, fmt.Sprintf("c%d", i))
	}
	r.SetConnectors(many, nil)
	if n := len(r.opts.Connectors); n != maxNames {
		t.Errorf("%d connectors, want at most %d", n, maxNames)
	}
	if n, want := len(r.Metrics()), len(New(prometheus.NewRegistry(), options).Metrics()); n != want {
		t.Errorf("%d metrics after SetConnectors, want %d", n, want)
	}
}

// TestConcurrent is for the race detector.
func TestConcurrent(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := New(reg, options)
	r.SetLevels(func() Levels { return sample(time.Now()) })
	em := event.NewEmitter("n1", r).Message("q", "u")
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for _, ev := range facts() {
				em.Emit(ev)
			}
			r.SetConnectors([]string{fmt.Sprintf("c%d", i)}, nil)
			if _, err := reg.Gather(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := value(t, reg, "waybill_messages_received_total"); got != 4 {
		t.Errorf("messages received = %g, want 4", got)
	}
}

func TestHandler(t *testing.T) {
	reg := NewRegistry()
	New(reg, options)
	srv := httptest.NewServer(Handler(reg))
	defer srv.Close()
	for _, test := range []struct{ name, accept, want string }{
		{"text", "text/plain", "text/plain"},
		{"openmetrics", "application/openmetrics-text; version=1.0.0", "application/openmetrics-text"},
		{"protobuf", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited", "application/vnd.google.protobuf"},
	} {
		t.Run(test.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Accept", test.accept)
			resp, err := srv.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), test.want) {
				t.Errorf("status %d, type %q, %v", resp.StatusCode, resp.Header.Get("Content-Type"), err)
			}
			if !bytes.Contains(body, []byte("waybill_build_info")) || !bytes.Contains(body, []byte("go_goroutines")) {
				t.Error("body lacks metrics")
			}
		})
	}
}

func TestTop(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	tp := newTop(2, 3, time.Hour)
	hop := func(name string, messages int, age time.Duration) *hopLevel {
		return &hopLevel{name: name, deferred: messages, oldest: now.Add(-age)}
	}
	for _, test := range []struct {
		name string
		at   time.Duration
		hops []*hopLevel
		want string
	}{
		{"largest and oldest enter", 0, []*hopLevel{hop("a", 9, 1), hop("b", 1, time.Hour), hop("c", 2, 2)}, "a=9 b=1 other=2"},
		{"a small drop in rank changes nothing", time.Minute, []*hopLevel{hop("a", 2, 1), hop("b", 3, time.Hour)}, "a=2 b=3 other=0"},
		{"a better one takes the place of the worst", 2 * time.Minute, []*hopLevel{hop("a", 2, 1), hop("b", 3, time.Hour), hop("c", 8, 2)}, "b=3 c=8 other=2"},
		{"empty ones go to zero first", 3 * time.Minute, []*hopLevel{hop("c", 8, 2)}, "b=0 c=8 other=0"},
		{"and go after an hour", 64 * time.Minute, []*hopLevel{hop("c", 8, 2)}, "c=8 other=0"},
		{"a queue called other is in the rest", 65 * time.Minute, []*hopLevel{hop("other", 5, 2)}, "c=0 other=5"},
		{"none", 130 * time.Minute, nil, "other=0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			shown, rest := tp.pick(test.hops, now.Add(test.at))
			var got []string
			for _, h := range append(shown, rest) {
				got = append(got, fmt.Sprintf("%s=%d", h.name, h.messages()))
			}
			if s := strings.Join(got, " "); s != test.want {
				t.Errorf("pick = %s, want %s", s, test.want)
			}
		})
	}
}

// TestTopIsBounded churns through thousands of queues.
func TestTopIsBounded(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	tp := newTop(50, 75, time.Hour)
	for round := range 200 {
		var hops []*hopLevel
		total := 0
		for i := range 300 {
			n := (i*7919 + round*104729) % 1000
			total += n
			hops = append(hops, &hopLevel{name: fmt.Sprintf("d%d", (i+round*13)%1000), queued: n, oldest: now.Add(-time.Duration(n*i) * time.Second)})
		}
		shown, rest := tp.pick(hops, now.Add(time.Duration(round)*time.Minute))
		if len(shown) > 50 || len(tp.members) > 50 {
			t.Fatalf("round %d: %d shown, %d members, want at most 50", round, len(shown), len(tp.members))
		}
		sum := rest.messages()
		for _, h := range shown {
			sum += h.messages()
		}
		if sum != total {
			t.Fatalf("round %d: %d messages shown, want %d", round, sum, total)
		}
	}
}

func TestDuplicateLevels(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := New(reg, options)
	r.SetLevels(func() Levels {
		l := sample(time.Now())
		l.Connections = append(l.Connections, l.Connections...)
		l.Disks = append(l.Disks, l.Disks[0], Disk{Volume: "queue"})
		l.Certificates = append(l.Certificates, l.Certificates...)
		l.Stores = append(l.Stores, l.Stores...)
		l.Hops = append(l.Hops, l.Hops...)
		return l
	})
	if _, err := reg.Gather(); err != nil {
		t.Errorf("Gather: %v", errors.Unwrap(err))
	}
}

func BenchmarkWrite(b *testing.B) {
	busiest := []string{"command_answered", "message_queued", "attempt_finished", "recipient_relayed", "session_opened"}
	for _, ev := range facts() {
		if !slices.Contains(busiest, event.Name(ev)) {
			continue
		}
		b.Run(event.Name(ev), func(b *testing.B) {
			r := New(prometheus.NewRegistry(), options)
			rec := event.NewEmitter("n1").Message("q", "0190a6e0-0000-7000-8000-000000000000").Stamp(ev)
			b.ReportAllocs()
			for b.Loop() {
				r.Write(&rec)
			}
		})
	}
}

func BenchmarkScrape(b *testing.B) {
	reg := prometheus.NewRegistry()
	r := New(reg, options)
	l := sample(time.Now())
	for i := range 10_000 {
		l.Hops = append(l.Hops, queue.HopStatus{Hop: route.Hop{Connector: "internet", Name: fmt.Sprintf("d%d.example", i)}, Queued: i, Oldest: time.Now()})
	}
	r.SetLevels(func() Levels { return l })
	for b.Loop() {
		if _, err := reg.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}

func TestExemplarsAreSampled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m mark
		for _, step := range []struct {
			after time.Duration
			value float64
			want  bool
		}{
			{0, 1, true},
			{0, 1, false},
			{time.Millisecond, 0.5, false},
			{0, 2, true}, // the slow ones are what people look for
			{0, 1.5, false},
			{exemplarEvery, 0.1, true},
			{0, 0.2, true},
		} {
			time.Sleep(step.after)
			if got := m.due(step.value); got != step.want {
				t.Errorf("due(%g) = %t, want %t", step.value, got, step.want)
			}
		}
	})
}
