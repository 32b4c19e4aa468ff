//go:build e2e

package e2e

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/relaytest"
)

// TestBrokenTracking starts the daemon on a tracking store that cannot be
// opened: it relays, is ready, and says everywhere what is wrong and what to do.
// That works, and then nothing is missing, not even mail of meanwhile.
func TestBrokenTracking(t *testing.T) {
	t.Parallel()
	in := port(t)
	hop := relaytest.NewSmartHost(t)
	d := start(t, relayConf(in, int(hop.Port())))
	dial(t, in).send("a@source.test", "before@dest.test", hello)
	d.found("before@dest.test", "relayed", 1)
	d.stop()
	track := filepath.Join(d.dir, "data", "track")
	write(t, filepath.Join(track, "erased.json"), "{")
	d.boot()
	d.ready()

	dial(t, in).send("a@source.test", "meanwhile@dest.test", hello)
	hop.WaitFor(t, 2)
	for _, call := range []string{"GET /api/v1/messages", "GET /api/v1/aggregate?metric=count", "GET /api/v1/messages/01J9Z000000000000000000000", "GET /api/v1/tracking/stats", "POST /api/v1/tracking/verify"} {
		method, path, _ := strings.Cut(call, " ")
		req, err := http.NewRequestWithContext(t.Context(), method, d.api.BaseURL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		var p trackapi.Problem
		if err == nil {
			err = json.Unmarshal(b, &p)
		}
		if err != nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Content-Type") != "application/problem+json" ||
			p.Status != http.StatusServiceUnavailable || p.Title != "Tracking is broken" || !strings.Contains(p.Detail, "erased.json") || !strings.Contains(p.Hint, "waybill track reindex") {
			t.Errorf("%s: %s %s, %v; want 503 as a problem with a hint", call, resp.Status, b, err)
		}
	}
	if out, err := d.waybill("status"); err != nil || !strings.Contains(out, "tracking is broken: ") || !strings.Contains(out, "erased.json") {
		t.Errorf("waybill status: %v\n%s", err, out)
	}
	if out, err := d.waybill("track", "search"); err == nil || !strings.Contains(out, "Tracking is broken") || !strings.Contains(out, "reindex") {
		t.Errorf("waybill track search: %v\n%s", err, out)
	}
	if m := d.metrics(); m.value("waybill_tracking_up") != 0 || m.value("waybill_tracking_degraded") != 1 || m.value("waybill_queue_outbox_records") == 0 {
		t.Errorf("up %v, degraded %v, outbox %v; want 0, 1 and what waits", m.value("waybill_tracking_up"), m.value("waybill_tracking_degraded"), m.value("waybill_queue_outbox_records"))
	}

	d.stop() // as the hint says
	if err := os.Rename(track, track+".broken"); err != nil {
		t.Fatal(err)
	}
	d.boot()
	d.ready()
	d.found("meanwhile@dest.test", "relayed", 1)
	if out, err := d.waybill("track", "reindex", filepath.Join(d.dir, "waybill.log")); err != nil {
		t.Fatalf("waybill track reindex: %v\n%s", err, out)
	}
	d.found("before@dest.test", "relayed", 1)
	d.sound()
	if m := d.metrics(); m.value("waybill_tracking_up") != 1 || m.value("waybill_tracking_degraded") != 0 {
		t.Errorf("up %v, degraded %v; want 1 and 0", m.value("waybill_tracking_up"), m.value("waybill_tracking_degraded"))
	}
}

// TestDamagedTracking damages the tables of the only day there is: the daemon
// goes on with the next, says what is left out, and the two commands of the
// how-to bring everything back.
func TestDamagedTracking(t *testing.T) {
	t.Parallel()
	in := port(t)
	hop := relaytest.NewSmartHost(t)
	d := start(t, relayConf(in, int(hop.Port())))
	dial(t, in).send("a@source.test", "before@dest.test", hello)
	d.found("before@dest.test", "relayed", 1)
	d.stop()
	tables, err := filepath.Glob(filepath.Join(d.dir, "data", "track", "parts", "*", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("%v, %v: no tables", tables, err)
	}
	for _, name := range tables {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/5] ^= 0x10
		write(t, name, string(b))
	}
	d.boot()
	d.ready()
	dial(t, in).send("a@source.test", "after@dest.test", hello)
	d.found("after@dest.test", "relayed", 1)
	if list, err := d.api.Messages(t.Context(), trackapi.Query{Recipient: "before@dest.test", From: time.Now().Add(-time.Hour)}); err != nil || len(list.Messages) != 0 {
		t.Errorf("%+v, %v: the damaged day answers", list, err)
	}
	if out, err := d.waybill("status"); err != nil || !strings.Contains(out, "tracking is degraded: damaged partitions are left out: "+filepath.Base(filepath.Dir(tables[0]))) {
		t.Errorf("waybill status: %v\n%s", err, out)
	}
	if m := d.metrics(); m.value("waybill_tracking_up") != 1 || m.value("waybill_tracking_degraded") != 1 {
		t.Errorf("up %v, degraded %v; want 1 and 1", m.value("waybill_tracking_up"), m.value("waybill_tracking_degraded"))
	}
	if out, err := d.waybill("track", "verify"); err == nil {
		t.Errorf("waybill track verify finds nothing:\n%s", out)
	}
	_, _ = d.waybill("track", "verify", "--repair") // what is missing is not back yet
	if out, err := d.waybill("track", "reindex", filepath.Join(d.dir, "waybill.log")); err != nil {
		t.Fatalf("waybill track reindex: %v\n%s", err, out)
	}
	d.found("before@dest.test", "relayed", 1)
	d.sound()
}

// sound wants a tracking store that lacks nothing.
func (d *daemon) sound() {
	d.t.Helper()
	if out, err := d.waybill("track", "verify"); err != nil {
		d.t.Errorf("waybill track verify: %v\n%s", err, out)
	}
	if s, err := d.api.Status(d.t.Context()); err != nil || s.Tracking != trackapi.TrackingOn {
		d.t.Errorf("status: %+v, %v; want tracking on", s, err)
	}
}

// TestStrangeAddresses imports what nobody should write, and finds it: by its
// whole self, in every form of answer, and without a control character for the
// terminal.
func TestStrangeAddresses(t *testing.T) {
	t.Parallel()
	d := start(t, relayConf(port(t), 1))
	at := time.Now().UTC().Add(-time.Hour)
	addresses := []string{
		`"quo\"ted, ann"@dest.test`, "jürgen@bücher.test", strings.Repeat("a", 309) + "@dest2.test", "*@dest.test", "a*b@dest.test", "nul\x00l@dest.test",
		`"<script>alert(1)</script>"@dest.test`, "esc\x1b[31mape@dest.test", "=cmd|calc!A0@dest.test", "';DROP--@dest.test", "back\\slash@dest.test", "%s%n@dest.test",
	}
	var log strings.Builder
	for i, a := range addresses {
		fmt.Fprintf(&log, "%s m postfix/smtp[1]: ABCDEF%02d: to=<%s>, relay=none, delay=1, delays=0/0/0/1, dsn=5.0.0, status=bounced (no)\n", at.Add(time.Duration(i)*time.Second).Format(time.RFC3339), i, a)
	}
	file := filepath.Join(d.dir, "mail.log")
	write(t, file, log.String())
	if out, err := d.waybill("track", "import", "--format", "postfix", file); err != nil {
		t.Fatalf("waybill track import: %v\n%s", err, out)
	}
	from := at.Add(-time.Hour)
	for _, a := range addresses {
		t.Run(fmt.Sprintf("%.30q", a), func(t *testing.T) {
			// An exact address with "*" in it is a quoted one in the q language, or a pattern.
			list, err := d.api.Messages(t.Context(), trackapi.Query{From: from, Q: trackapi.Term{Field: "recipient", Value: a}.String()})
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, m := range list.Messages {
				found = found || len(m.Recipients) == 1 && m.Recipients[0].Address == a
			}
			if !found {
				t.Errorf("not found among %+v", list.Messages)
			}
		})
	}
	for _, args := range [][]string{
		{"track", "search", "--from", "6h", "--limit", "100"},
		{"track", "search", "--from", "6h", "-o", "csv"},
		{"track", "export", "--from", "6h"},
		{"track", "export", "--from", "6h", "--format", "exchange"},
	} {
		out, err := d.waybill(args...)
		if err != nil {
			t.Errorf("waybill %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		if strings.ContainsAny(out, "\x00\x1b") {
			t.Errorf("waybill %s writes control characters:\n%q", strings.Join(args, " "), out)
		}
		if !strings.Contains(out, "DROP--@dest.test") || !strings.Contains(out, "bücher.test") {
			t.Errorf("waybill %s leaves something out:\n%s", strings.Join(args, " "), out)
		}
		switch {
		case slices.Contains(args, "csv"), slices.Contains(args, "exchange"):
			r := csv.NewReader(strings.NewReader(regexp.MustCompile(`(?m)^#.*\r?\n|^[0-9]+ (facts?|messages?).*\n`).ReplaceAllString(out, "")))
			r.LazyQuotes = false
			rows, err := r.ReadAll()
			if err != nil || len(rows) < len(addresses) {
				t.Errorf("waybill %s: %d rows, %v", strings.Join(args, " "), len(rows), err)
			}
		case args[1] == "export":
			for line := range strings.Lines(out) {
				if strings.HasPrefix(line, "{") && !json.Valid([]byte(line)) {
					t.Errorf("not JSON: %s", line)
				}
			}
		}
	}
	d.sound()
}
