//go:build e2e

package dashboards

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"waybill/relay/relaytest"
)

// TestStack runs the real Prometheus and Alertmanager with our files against an
// exposition in which the queue is closed: every rule evaluates, every panel's
// expression is PromQL, and the alert arrives.
func TestStack(t *testing.T) {
	prometheus, alertmanager := program(t, "prometheus"), program(t, "prometheus-alertmanager", "alertmanager")
	relay := fakeRelay(t)

	amURL := start(t, alertmanager, func(addr string) []string {
		return []string{
			"--config.file=" + abs(t, "provisioning/alertmanager.yml"), "--storage.path=" + t.TempDir(),
			"--web.listen-address=" + addr, "--cluster.listen-address=",
		}
	})
	dir := configDir(t)
	config := filepath.Join(dir, "prometheus.yml")
	text := string(read(t, config))
	for _, change := range [][2]string{
		{"alertmanager:9093", strings.TrimPrefix(amURL, "http://")},
		{"relay.waybill.test:8025", strings.TrimPrefix(relay, "http://")},
		{"scrape_interval: 15s", "scrape_interval: 1s"},
		{"evaluation_interval: 15s", "evaluation_interval: 1s"},
	} {
		if !strings.Contains(text, change[0]) {
			t.Fatalf("prometheus.yml has no %s", change[0])
		}
		text = strings.ReplaceAll(text, change[0], change[1])
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	rules := filepath.Join(dir, "rules.yaml")
	if err := os.WriteFile(rules, []byte(strings.ReplaceAll(string(read(t, rules)), "interval: 30s", "interval: 1s")), 0o600); err != nil {
		t.Fatal(err)
	}
	promURL := start(t, prometheus, func(addr string) []string {
		return []string{
			"--config.file=" + config, "--storage.tsdb.path=" + t.TempDir(), "--web.listen-address=" + addr,
			"--enable-feature=exemplar-storage",
		}
	})

	eventually(t, "the relay to be scraped", func() error {
		v := query(t, promURL, `up{job="waybill"}`)
		if len(v) != 1 || v[0].Value[1] != "1" {
			return fmt.Errorf("up = %v", v)
		}
		return nil
	})
	eventually(t, "every rule to be evaluated", func() error {
		var answer struct {
			Data struct {
				Groups []struct {
					Name  string
					Rules []struct{ Name, Health, LastError string }
				}
			}
		}
		get(t, promURL+"/api/v1/rules", &answer)
		n := 0
		for _, g := range answer.Data.Groups {
			for _, r := range g.Rules {
				n++
				if r.Health != "ok" {
					return fmt.Errorf("rule %s: health %s %s", r.Name, r.Health, r.LastError)
				}
			}
		}
		if n < 40 {
			return fmt.Errorf("only %d rules", n)
		}
		return nil
	})
	eventually(t, "the alert to arrive at Alertmanager", func() error {
		var list []struct{ Labels, Annotations map[string]string }
		get(t, amURL+"/api/v2/alerts", &list)
		for _, a := range list {
			if a.Labels["alertname"] == "WaybillQueueClosed" {
				if a.Labels["severity"] != "critical" || !strings.Contains(a.Annotations["runbook_url"], "WaybillQueueClosed") || strings.Contains(a.Annotations["description"], "{{") {
					t.Errorf("alert = %+v", a)
				}
				return nil
			}
		}
		return fmt.Errorf("%d alerts, none of the closed queue", len(list))
	})

	// Every panel, annotation and rule, with what Grafana puts in for variables.
	variables := strings.NewReplacer(
		"$__rate_interval", "10s", "$__interval", "10s", "$__range", "1h", "$job", "waybill", "$instance", ".*", "$provider", ".*", "$connector", ".*",
		"$receive", ".*", "$queue", ".*",
	)
	eventually(t, "two evaluations of the rules", func() error {
		if len(query(t, promURL, `waybill:final_fail_ratio:rate1h`)) == 0 {
			return errors.New("nothing recorded")
		}
		return nil
	})
	for where, expr := range expressions(t) {
		expr = variables.Replace(expr)
		if strings.Contains(expr, "$") {
			t.Errorf("%s: a variable is left: %s", where, expr)
		}
		if n := len(query(t, promURL, expr)); n == 0 && !mayBeEmpty(where, expr) {
			t.Errorf("%s: no data: %s", where, expr)
		}
	}
	if v := query(t, promURL, `sum(waybill_queue_messages)`); len(v) != 1 || v[0].Value[1] == "0" {
		t.Errorf("messages in the queue = %v", v)
	}
}

// mayBeEmpty reports whether an expression has nothing to show here: alerts and
// annotations are about what is not going on, and the exposition holds neither
// the process nor a disk that fills up.
func mayBeEmpty(where, expr string) bool {
	return strings.HasPrefix(where, "alerts.yaml") || strings.Contains(where, ": annotation ") || strings.Contains(where, ": Full in ") ||
		strings.HasPrefix(expr, "process_") || strings.HasPrefix(expr, "go_") || strings.Contains(expr, "process_cpu_seconds_total")
}

// grow multiplies all counters of an exposition by n, so that they have rates.
func grow(exposition string, n int) string {
	var b strings.Builder
	rising := false
	for line := range strings.Lines(exposition) {
		if kind, ok := strings.CutPrefix(line, "# TYPE "); ok {
			rising = !strings.HasSuffix(kind, " gauge\n")
		}
		i := strings.LastIndexByte(line, ' ')
		v, err := strconv.ParseFloat(strings.TrimSpace(line[i+1:]), 64)
		if !rising || line[0] == '#' || err != nil {
			b.WriteString(line)
			continue
		}
		fmt.Fprintf(&b, "%s %g\n", line[:i], v*float64(n))
	}
	return b.String()
}

// fakeRelay serves the golden exposition of package metrics, with the queue
// closed. It wants the token that Prometheus is given.
func fakeRelay(t *testing.T) string {
	t.Helper()
	exposition := string(read(t, "../metrics/exposition.golden"))
	sound := "\nwaybill_queue_accepting 1\n"
	if !strings.Contains(exposition, sound) {
		t.Fatalf("the exposition has no %q", sound)
	}
	exposition = strings.Replace(exposition, sound, "\nwaybill_queue_accepting 0\n", 1)
	token := strings.TrimSpace(string(read(t, "provisioning/viewer.token")))
	var scrapes atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token {
			http.Error(w, "no token", http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = io.WriteString(w, grow(exposition, int(scrapes.Add(1))))
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func program(t *testing.T, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatalf("%s is not installed", names[0])
	return ""
}

func abs(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// start runs a program on a free port of loopback until the test ends, and
// waits until it is ready.
func start(t *testing.T, path string, args func(addr string) []string) string {
	t.Helper()
	addr := "127.0.0.1:" + relaytest.Port(t)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, args(addr)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was told to end
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(path), read(t, log.Name()))
		}
		_ = log.Close()
	})
	base := "http://" + addr
	eventually(t, filepath.Base(path)+" to be ready", func() error {
		resp, err := http.Get(base + "/-/ready")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %s", resp.Status)
		}
		return nil
	})
	return base
}

// eventually polls until f succeeds.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.NewTimer(60 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("waited in vain for %s: %v", what, err)
		case <-tick.C:
		}
	}
}

func get(t *testing.T, address string, into any) {
	t.Helper()
	resp, err := http.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Errorf("%s: %s: %s", address, resp.Status, body)
		return
	}
	if err := json.Unmarshal(body, into); err != nil {
		t.Fatal(err)
	}
}

type sample struct {
	Metric map[string]string
	Value  [2]any
}

var spaces = regexp.MustCompile(`\s+`)

func query(t *testing.T, base, expr string) []sample {
	t.Helper()
	var answer struct {
		Data struct{ Result []sample }
	}
	get(t, base+"/api/v1/query?query="+url.QueryEscape(spaces.ReplaceAllString(expr, " ")), &answer)
	return answer.Data.Result
}
