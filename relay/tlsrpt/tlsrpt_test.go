package tlsrpt

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"waybill/relay/dns"
	"waybill/relay/event"
	wmail "waybill/relay/mail"
	"waybill/relay/relaytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParseRecord(t *testing.T) {
	for _, test := range []struct {
		name  string
		texts []string
		want  string
	}{
		{"mail, as in the RFC", []string{"v=TLSRPTv1;rua=mailto:reports@example.com"}, "mail reports@example.com"},
		{"HTTPS, as in the RFC", []string{"v=TLSRPTv1; rua=https://reporting.example.com/v1/tlsrpt"}, "https reporting.example.com"},
		{"both", []string{"v=TLSRPTv1; rua=mailto:a@example.com , https://b.example:8443/x?y=z;"}, "mail a@example.com, https b.example:8443"},
		{"escaped", []string{"v=TLSRPTv1; rua=mailto:a%2Bb@example.com"}, "mail a+b@example.com"},
		{"with more than an address", []string{"v=TLSRPTv1; rua=mailto:a@example.com?subject=x"}, "mail a@example.com"},
		{"other fields and records", []string{"v=spf1 -all", "v=TLSRPTv1; x=y; rua=mailto:a@example.com; rua=mailto:b@example.com"}, "mail a@example.com"},
		{"none", nil, ""},
		{"two", []string{"v=TLSRPTv1; rua=mailto:a@example.com", "v=TLSRPTv1; rua=mailto:b@example.com"}, ""},
		{"no rua", []string{"v=TLSRPTv1"}, ""},
		{"other version", []string{"v=TLSRPTv2; rua=mailto:a@example.com"}, ""},
		{"other scheme", []string{"v=TLSRPTv1; rua=http://a.example/,ftp://a.example/,gopher:x"}, ""},
		{"secrets in the URL", []string{"v=TLSRPTv1; rua=https://user:password@a.example/"}, ""},
		{"an address", []string{"v=TLSRPTv1; rua=https://127.0.0.1/,https://[::1]/,mailto:a@[127.0.0.1]"}, ""},
		{"a local name", []string{"v=TLSRPTv1; rua=https://localhost/,mailto:root@localhost"}, ""},
		{"a line of its own", []string{"v=TLSRPTv1; rua=mailto:a%0d%0aBcc:%20b@example.com"}, ""},
		{"too many", []string{"v=TLSRPTv1; rua=" + strings.Repeat("mailto:a@example.com,", 9)}, strings.TrimSuffix(strings.Repeat("mail a@example.com, ", maxDestinations), ", ")},
		{"too long", []string{"v=TLSRPTv1; rua=https://a.example/" + strings.Repeat("x", maxURI)}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			for _, d := range ParseRecord(test.texts) {
				got = append(got, d.Method+" "+d.String())
			}
			if got := strings.Join(got, ", "); got != test.want {
				t.Errorf("ParseRecord = %q, want %q", got, test.want)
			}
		})
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add("v=TLSRPTv1; rua=mailto:a@example.com,https://b.example/?c", "v=spf1 -all")
	f.Add("v=TLSRPTv1;;;=;rua=,,mailto:%00@x.y,https://%5b", "v=TLSRPTv1")
	f.Fuzz(func(t *testing.T, a, b string) {
		list := ParseRecord([]string{a, b})
		if len(list) > maxDestinations {
			t.Errorf("%d destinations", len(list))
		}
		for _, d := range list {
			if s := d.String(); s == "" || strings.ContainsAny(s, "\r\n<> ") && d.Method == byHTTPS || strings.ContainsAny(s, "\r\n") {
				t.Errorf("destination %q", s)
			}
			if d.Method == byHTTPS && !strings.HasPrefix(d.URL, "https://") {
				t.Errorf("URL %q", d.URL)
			}
		}
	})
}

// TestWords holds our words for failures to those of package event and of RFC
// 8460 section 4.3.
func TestWords(t *testing.T) {
	for _, word := range event.TLSFailures() {
		if !slices.Contains(rfcResultTypes, resultTypes[word]) {
			t.Errorf("%q becomes %q, which is no result type", word, resultTypes[word])
		}
	}
	if len(resultTypes) != len(event.TLSFailures()) {
		t.Error("resultTypes has words that package event does not know")
	}
}

var rfcResultTypes = []string{
	"starttls-not-supported", "certificate-host-mismatch", "certificate-expired", "certificate-not-trusted", "validation-failure",
	"tlsa-invalid", "dnssec-invalid", "dane-required", "sts-policy-fetch-error", "sts-policy-invalid", "sts-webpki-invalid",
}

// valid decodes a report as RFC 8460 section 4.4 has it, and fails the test for
// members that it does not have, and for those that lack.
func valid(t *testing.T, text []byte) Report {
	t.Helper()
	check := func(what string, have map[string]any, must, may []string) {
		for _, k := range must {
			if _, ok := have[k]; !ok {
				t.Errorf("%s has no %q", what, k)
			}
		}
		for k, v := range have {
			if !slices.Contains(must, k) && !slices.Contains(may, k) {
				t.Errorf("%s has %q", what, k)
			}
			if n, ok := v.(float64); ok && (n < 0 || n != float64(int(n))) {
				t.Errorf("%s: %q is %v", what, k, n)
			}
		}
	}
	object := func(v any) map[string]any {
		m, ok := v.(map[string]any)
		if !ok {
			t.Fatalf("%v is no object", v)
		}
		return m
	}
	array := func(v any) []any {
		a, ok := v.([]any)
		if !ok && v != nil {
			t.Fatalf("%v is no array", v)
		}
		return a
	}
	var top map[string]any
	if err := json.Unmarshal(text, &top); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	check("report", top, []string{"organization-name", "date-range", "contact-info", "report-id", "policies"}, nil)
	check("date-range", object(top["date-range"]), []string{"start-datetime", "end-datetime"}, nil)
	for _, v := range array(top["policies"]) {
		p := object(v)
		check("policies", p, []string{"policy", "summary"}, []string{"failure-details"})
		pol := object(p["policy"])
		check("policy", pol, []string{"policy-type", "policy-domain"}, []string{"policy-string", "mx-host"})
		if !slices.Contains([]any{"tlsa", "sts", "no-policy-found"}, pol["policy-type"]) {
			t.Errorf("policy-type %v", pol["policy-type"])
		}
		check("summary", object(p["summary"]), []string{"total-successful-session-count", "total-failure-session-count"}, nil)
		for _, v := range array(p["failure-details"]) {
			f := object(v)
			check("failure-details", f, []string{"result-type", "failed-session-count"}, []string{
				"sending-mta-ip", "receiving-mx-hostname", "receiving-mx-helo", "receiving-ip", "additional-information", "failure-reason-code",
			})
			if word, _ := f["result-type"].(string); !slices.Contains(rfcResultTypes, word) {
				t.Errorf("result-type %q", word)
			}
		}
	}
	var rep Report
	if err := json.Unmarshal(text, &rep); err != nil {
		t.Fatal(err)
	}
	return rep
}

func gunzip(t *testing.T, packed []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

var (
	local  = netip.MustParseAddr("192.0.2.1")
	remote = netip.MustParseAddr("198.51.100.7")
)

const (
	stsText  = "version: STSv1; mode: enforce; mx: mx.y.example; mx: *.z.example; max_age: 86400"
	tlsaText = "3 1 1 aabb; 2 0 1 ccdd"
)

// closed is the end of a session with mx.y.example for y.example.
func closed(policy, failure string) event.SessionClosed {
	ev := event.SessionClosed{
		Direction: event.Outbound, Connector: "out", RemoteName: "mx.y.example", RemoteIP: remote, LocalIP: local, Cause: "quit",
		TLS: event.TLS{Domain: "y.example", Policy: policy, Failure: failure},
	}
	switch policy {
	case "mta_sts":
		ev.Text = stsText
	case "dane":
		ev.Text, ev.Base = tlsaText, "mx.y.example"
	}
	if failure == "" {
		ev.Version = "1.3"
	}
	return ev
}

func (r *Reporter) feed(events ...event.Event) {
	for _, ev := range events {
		rec := event.Record{Time: time.Now(), Event: ev}
		r.Write(&rec)
	}
}

func open(t *testing.T, dir string) *Reporter {
	t.Helper()
	from, err := wmail.ParseAddress("tls-reports@relay.example")
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(Options{Dir: dir, From: from, Organization: "Relay Inc."})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCount(t *testing.T) {
	r := open(t, t.TempDir())
	early := closed("mta_sts", "not_offered")
	early.Failure = "" // the session ended before STARTTLS
	early.Version = ""
	plain := closed("", "")
	plain.TLS = event.TLS{} // a smart host
	r.feed(
		closed("mta_sts", ""), closed("mta_sts", ""), closed("mta_sts", "certificate_expired"), closed("mta_sts", "certificate_expired"),
		closed("mta_sts", "name_mismatch"), closed("opportunistic", ""), closed("opportunistic", "not_offered"), early, plain,
		closed("dane", ""), closed("dane", "tlsa_mismatch"),
		event.SessionClosed{Direction: event.Inbound},
		// Told again at the end of the session:
		event.TLSPolicyFailed{Connector: "out", Domain: "y.example", RemoteName: "mx.y.example", RemoteIP: remote, Policy: "mta_sts", Reason: "certificate_expired", Enforced: true},
		event.TLSPolicyFailed{Connector: "out", Domain: "y.example", RemoteName: "mx2.y.example", Policy: "mta_sts", Reason: "mx_mismatch"},
		// Before there was one:
		event.TLSPolicyFailed{Connector: "out", Domain: "y.example", RemoteName: "mx2.y.example", Policy: "mta_sts", Text: stsText, Reason: "mx_mismatch", Enforced: true},
		event.TLSPolicyFailed{Connector: "out", Domain: "y.example", RemoteName: "mx.y.example", Policy: "dane", Reason: "dnssec_failed", Enforced: true},
		event.TLSPolicyFailed{Domain: "y.example", Policy: "mta_sts", Reason: "policy_certificate"},
		// Of nobody's concern:
		event.TLSPolicyFailed{Connector: "out", RemoteName: "smart.example", Policy: "verify_name", Reason: "name_mismatch", Enforced: true},
		event.DNSAnswered{Type: "MX", Result: "ok"},
	)
	d := r.days[dateOf(time.Now())]
	rep, total := r.report(d, "y.example", "1@relay.example")
	packed, err := pack(rep)
	if err != nil {
		t.Fatal(err)
	}
	rep = valid(t, gunzip(t, packed))
	if total != (Summary{4, 8}) || rep.Organization != "Relay Inc." || rep.Contact != "tls-reports@relay.example" || rep.DateRange.End.Sub(rep.DateRange.Start) != 24*time.Hour-time.Second {
		t.Errorf("total %+v, report %+v", total, rep)
	}
	var got []string
	for _, p := range rep.Policies {
		line := fmt.Sprintf("%s %s %q %q: %d/%d", p.Policy.Type, p.Policy.Domain, p.Policy.String, p.Policy.MX, p.Summary.Successful, p.Summary.Failed)
		for _, f := range p.Failures {
			line += fmt.Sprintf(" [%s %d %s %s %s %s]", f.Type, f.Count, f.From, f.MX, f.To, f.Code)
		}
		got = append(got, line)
	}
	want := []string{
		`no-policy-found y.example [] []: 1/1 [starttls-not-supported 1 192.0.2.1 mx.y.example 198.51.100.7 not_offered]`,
		`sts y.example [] []: 0/1 [sts-webpki-invalid 1    policy_certificate]`,
		`sts y.example ["version: STSv1" "mode: enforce" "mx: mx.y.example" "mx: *.z.example" "max_age: 86400"] ["mx.y.example" "*.z.example"]: 2/4` +
			` [certificate-expired 2 192.0.2.1 mx.y.example 198.51.100.7 certificate_expired] [certificate-host-mismatch 1 192.0.2.1 mx.y.example 198.51.100.7 name_mismatch]` +
			` [validation-failure 1  mx2.y.example  mx_mismatch]`,
		`tlsa mx.y.example [] []: 0/1 [dnssec-invalid 1  mx.y.example  dnssec_failed]`,
		`tlsa mx.y.example ["3 1 1 aabb" "2 0 1 ccdd"] []: 1/1 [tlsa-invalid 1 192.0.2.1 mx.y.example 198.51.100.7 tlsa_mismatch]`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("policies:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	host, total := r.report(d, "mx.y.example", "2@relay.example")
	if total != (Summary{1, 2}) || len(host.Policies) != 2 || host.Policies[0].Policy.Type != "tlsa" {
		t.Errorf("report to the host = %+v", host)
	}
	if got := d.domains(); !slices.Equal(got, []string{"mx.y.example", "y.example"}) {
		t.Errorf("domains = %q", got)
	}
}

func TestBounds(t *testing.T) {
	r := open(t, t.TempDir())
	for i := range maxFailures + 20 {
		ev := closed("mta_sts", "not_offered")
		ev.RemoteName = fmt.Sprintf("mx%d.y.example", i)
		r.feed(ev)
	}
	d := r.days[dateOf(time.Now())]
	tallies := d.about("y.example")
	if n := len(tallies[0].Failures); n > maxFailures+1 || tallies[0].failed() != maxFailures+20 {
		t.Errorf("%d kinds of %d failures", n, tallies[0].failed())
	}
	for i := range maxTallies + 10 {
		ev := closed("mta_sts", "")
		ev.Domain = fmt.Sprintf("d%d.example", i)
		r.feed(ev)
	}
	if n := len(d.tallies); n != maxTallies {
		t.Errorf("%d tallies, want %d", n, maxTallies)
	}
	bad := closed("mta_sts", "")
	bad.Domain = "[192.0.2.1]"
	r.feed(bad)
	if len(d.about(bad.Domain)) > 0 {
		t.Error("an address is reported on")
	}
}

// world is where reports go.
type world struct {
	mu      sync.Mutex
	texts   map[string][]string
	dnsFail map[string]error
	refuse  error // of the queue
	mails   [][]byte
	drafts  []wmail.Draft
	posts   [][]byte
	status  int
	rec     relaytest.Recorder
}

func (w *world) TXT(ctx context.Context, name string) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.texts[name], errors.Join(w.dnsFail[name], ctx.Err())
}

func (w *world) Submit(_ context.Context, d wmail.Draft, content []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuse != nil {
		return w.refuse
	}
	w.drafts, w.mails = append(w.drafts, d), append(w.mails, content)
	return nil
}

// RoundTrip is the HTTPS server.
func (w *world) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status == 0 {
		return nil, errors.New("connection refused")
	}
	rec := httptest.NewRecorder()
	rec.WriteHeader(w.status)
	if w.status < 300 && req.Method == http.MethodPost && req.Header.Get("Content-Type") == "application/tlsrpt+gzip" {
		w.posts = append(w.posts, body)
	}
	return rec.Result(), nil
}

func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) ways() Ways {
	return Ways{Resolver: w, Queue: w, HTTP: &http.Client{Transport: w}, Emitter: w.rec.Emitter()}
}

// run runs r until stop is called.
func run(t *testing.T, r *Reporter, w *world) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, w.ways()) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestReports(t *testing.T) {
	for _, test := range []struct {
		name   string
		record string
		setup  func(w *world)
		later  func(w *world) // six hours after midnight
		mails  int
		posts  int
		want   string // facts
	}{
		{"by mail", "v=TLSRPTv1; rua=mailto:r@y.example", nil, nil, 1, 0, "tls_report_sent 1"},
		{"by HTTPS", "v=TLSRPTv1; rua=https://r.y.example/x?secret", func(w *world) { w.status = 201 }, nil, 0, 1, "tls_report_sent 1"},
		{"by both", "v=TLSRPTv1; rua=mailto:r@y.example,https://r.y.example/", func(w *world) { w.status = 200 }, nil, 1, 1, "tls_report_sent 2"},
		{"not wanted", "", nil, nil, 0, 0, ""},
		{"the DNS fails at first", "v=TLSRPTv1; rua=mailto:r@y.example", func(w *world) {
			w.dnsFail = map[string]error{"_smtp._tls.y.example": &dns.Error{Kind: dns.ServFail}}
		}, func(w *world) { w.dnsFail = nil }, 1, 0, "tls_report_sent 1"},
		{"the DNS fails for ever", "v=TLSRPTv1; rua=mailto:r@y.example", func(w *world) {
			w.dnsFail = map[string]error{"_smtp._tls.y.example": &dns.Error{Kind: dns.Timeout}}
		}, nil, 0, 0, ""},
		{"the queue is shut at first", "v=TLSRPTv1; rua=mailto:r@y.example", func(w *world) { w.refuse = errors.New("disk full\r\nx") }, func(w *world) { w.refuse = nil }, 1, 0, "failed+sent"},
		{"the server fails at first, and the mail goes once", "v=TLSRPTv1; rua=mailto:r@y.example,https://r.y.example/", func(w *world) { w.status = 503 }, func(w *world) { w.status = 200 }, 1, 1, "failed+sent"},
		{"nobody is there, ever", "v=TLSRPTv1; rua=https://r.y.example/?secret", nil, nil, 0, 0, "failed for good"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				w := &world{texts: map[string][]string{"_smtp._tls.y.example": {test.record}}}
				if test.setup != nil {
					test.setup(w)
				}
				r := open(t, dir)
				stop := run(t, r, w)
				r.feed(closed("mta_sts", "certificate_expired"))
				pass(t, 2*time.Minute)
				stop()
				r.feed(closed("mta_sts", "")) // a session that was idle ends with the relay
				if err := r.Close(); err != nil {
					t.Error(err)
				}
				r = open(t, dir) // a restart
				stop = run(t, r, w)
				r.feed(closed("mta_sts", ""))
				midnight := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, 1)
				pass(t, time.Until(midnight)-time.Second)
				if len(w.rec.Records()) > 0 {
					t.Errorf("%d facts before midnight", len(w.rec.Records()))
				}
				pass(t, 5*time.Hour)
				stop()
				r = open(t, dir) // another one, perhaps between two tries
				stop = run(t, r, w)
				r.feed(closed("mta_sts", "not_offered")) // of the next day
				if test.later != nil {
					w.change(func() { test.later(w) })
				}
				pass(t, 18*time.Hour) // still the same day
				stop()
				w.mu.Lock()
				if len(w.mails) != test.mails || len(w.posts) != test.posts {
					t.Errorf("%d mails and %d posts, want %d and %d", len(w.mails), len(w.posts), test.mails, test.posts)
				}
				for _, content := range w.mails {
					checkMail(t, content)
				}
				for _, packed := range w.posts {
					checkReport(t, gunzip(t, packed))
				}
				w.mu.Unlock()
				checkFacts(t, w, test.want)
			})
		})
	}
}

// pass lets time pass.
func pass(t *testing.T, d time.Duration) {
	t.Helper()
	<-time.After(d)
	synctest.Wait()
}

func checkFacts(t *testing.T, w *world, want string) {
	t.Helper()
	sent, failed := w.rec.Named("tls_report_sent"), w.rec.Named("tls_report_failed")
	final := 0
	for _, r := range failed {
		ev := r.Event.(event.TLSReportFailed)
		if ev.Final {
			final++
		}
		if strings.ContainsAny(ev.Error, "\r\n") || strings.Contains(fmt.Sprint(ev), "secret") {
			t.Errorf("fact %+v", ev)
		}
	}
	for _, r := range sent {
		ev := r.Event.(event.TLSReportSent)
		if ev.Domain != "y.example" || ev.Successful != 2 || ev.Failed != 1 || strings.Contains(ev.Destination, "secret") || (r.Message == "") != (ev.Method == "https") {
			t.Errorf("fact %+v of message %q", ev, r.Message)
		}
	}
	got := ""
	switch {
	case len(failed) > 0 && len(sent) > 0 && final == 0:
		got = "failed+sent"
	case final == 1 && len(sent) == 0:
		got = "failed for good"
	case len(failed) == 0 && len(sent) > 0:
		got = fmt.Sprintf("tls_report_sent %d", len(sent))
	case len(failed) > 0:
		got = fmt.Sprintf("%d failed, %d final", len(failed), final)
	}
	if got != want && (want != "failed for good" || len(failed) == 0 || len(sent) > 0) {
		t.Errorf("facts: %s, want %s", got, want)
	}
}

// checkReport checks the report on the first day.
func checkReport(t *testing.T, text []byte) {
	t.Helper()
	rep := valid(t, text)
	if len(rep.Policies) != 1 || rep.Policies[0].Summary != (Summary{2, 1}) || rep.Policies[0].Failures[0].Type != "certificate-expired" || rep.DateRange.Start.Hour() != 0 {
		t.Errorf("report = %s", text)
	}
}

// checkMail checks a report as a message (RFC 8460 section 5.3).
func checkMail(t *testing.T, content []byte) {
	t.Helper()
	if bytes.Contains(bytes.ReplaceAll(content, []byte("\r\n"), nil), []byte("\n")) {
		t.Error("a line ends in LF alone")
	}
	for line := range bytes.SplitSeq(content, []byte("\r\n")) {
		if len(line) > 200 {
			t.Errorf("a line of %d octets", len(line))
		}
	}
	m, err := mail.ReadMessage(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"From": "<tls-reports@relay.example>", "To": "<r@y.example>", "Tls-Report-Domain": "y.example", "Tls-Report-Submitter": "relay.example",
		"Tls-Required": "No", "Auto-Submitted": "auto-generated", "Mime-Version": "1.0",
	} {
		if got := m.Header.Get(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if subject := m.Header.Get("Subject"); !strings.HasPrefix(subject, "Report Domain: y.example Submitter: relay.example Report-ID: <") {
		t.Errorf("Subject: %s", subject)
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" || params["report-type"] != "tlsrpt" {
		t.Fatalf("Content-Type: %s (%v)", m.Header.Get("Content-Type"), err)
	}
	parts := multipart.NewReader(m.Body, params["boundary"])
	text, err := parts.NextPart()
	if err != nil {
		t.Fatal(err)
	}
	if body, _ := io.ReadAll(text); !bytes.Contains(body, []byte("2 sessions succeeded, 1 failed")) {
		t.Errorf("text for people: %s", body)
	}
	file, err := parts.NextPart()
	if err != nil {
		t.Fatal(err)
	}
	if file.Header.Get("Content-Type") != "application/tlsrpt+gzip" || !strings.HasPrefix(file.FileName(), "relay.example!y.example!") || !strings.HasSuffix(file.FileName(), ".json.gz") {
		t.Errorf("attachment %s %s", file.Header.Get("Content-Type"), file.FileName())
	}
	packed, err := io.ReadAll(base64.NewDecoder(base64.StdEncoding, file))
	if err != nil {
		t.Fatal(err)
	}
	checkReport(t, gunzip(t, packed))
	if _, err := parts.NextPart(); !errors.Is(err, io.EOF) {
		t.Errorf("after the parts: %v", err)
	}
}

func TestDisk(t *testing.T) {
	dir := t.TempDir()
	today := dateOf(time.Now())
	for name, text := range map[string]string{
		"2001-01-01.json": `{"date":"2001-01-01","tallies":[]}`, temporary + "1": "x", "notes.txt": "mine", today + ".json": `{"date":"` + today + `","tallies":[null]}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := open(t, dir)
	if len(r.days) != 0 {
		t.Errorf("%d days are known, want none", len(r.days))
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "notes.txt" {
		t.Errorf("files %v (%v), want notes.txt", left, err)
	}
	r.feed(closed("dane", "tlsa_mismatch"))
	if err := r.save(); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir)
	rep, total := again.report(again.days[today], "y.example", "1")
	if total != (Summary{0, 1}) || len(rep.Policies[0].Policy.String) != 2 {
		t.Errorf("after a restart: %+v", rep)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	r.feed(closed("dane", ""))
	if r.save() == nil {
		t.Error("what cannot be written is no error")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := r.save(); err != nil || len(r.days) != 1 {
		t.Errorf("when there is a disk again: %v", err)
	}
	again = open(t, dir)
	if _, total := again.report(again.days[today], "y.example", "1"); total != (Summary{1, 1}) {
		t.Errorf("what could not be written at first is lost: %+v", total)
	}
}

func TestOpen(t *testing.T) {
	from := wmail.Address{Local: "a", Domain: "b.example"}
	for _, test := range []struct {
		name string
		opts Options
	}{
		{"no directory", Options{From: from}},
		{"no sender", Options{Dir: t.TempDir()}},
		{"a sender that not every host takes", Options{Dir: t.TempDir(), From: wmail.Address{Local: "ä", Domain: "b.example"}}},
		{"a file", Options{Dir: filepath.Join(os.Args[0], "x"), From: from}},
	} {
		if _, err := Open(test.opts); err == nil {
			t.Errorf("%s: no error", test.name)
		}
	}
}
