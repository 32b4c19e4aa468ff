//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"waybill/cmd/internal/peers"
	"waybill/logtrack/trackapi"
	"waybill/relay/relaytest"
)

// TestPrometheus has the real Prometheus scrape the daemon as provisioned, with
// a token, and evaluate every rule. A next hop that is down makes the backlog
// alert fire for its queue alone; it ends when the host is back.
func TestPrometheus(t *testing.T) {
	t.Parallel()
	in, down := port(t), port(t)
	up := relaytest.NewSmartHost(t)
	dir := shared(t)
	token := strings.TrimSpace(run(t, "cat", provisioning("viewer.token")))
	d := start(t, fmt.Sprintf(`hostname: relay.test
data_dir: DIR/data
receive_connectors:
  - {name: in, usage: internal, listen: ["127.0.0.1:%d"], remote_ranges: ["127.0.0.0/8"], permissions: [submit, relay]}
send_connectors:
  - {name: up, address_spaces: [{space: up.test}], smart_hosts: [%q], tls: {level: none}, retry: {schedule: [1s], lifetime: 10m}}
  - {name: down, address_spaces: [{space: down.test}], smart_hosts: ["127.0.0.1:%d"], tls: {level: none}, retry: {schedule: [1s], lifetime: 10m}}
queue: {disk_free_min: 16MiB}
http: {listen: "127.0.0.1:HTTPPORT", tokens_file: %q}
log: {file: DIR/waybill.log}
`, in, up.Addr(), down, provisioning("tokens.yaml")))
	d.answers("/metrics", http.StatusUnauthorized) // without a token
	d.api.Token = token
	prom := startPrometheus(t, dir, strings.TrimPrefix(d.api.BaseURL, "http://"))

	s := dial(t, in)
	for i := range 5 {
		s.send("a@source.test", fmt.Sprintf("r%d@up.test", i), hello)
		s.send("a@source.test", fmt.Sprintf("r%d@down.test", i), hello)
	}
	eventually(t, time.Minute, "Prometheus to count what tracking has", func() error {
		relayed, err := prom.query(`sum(waybill_recipients_completed_total{job="waybill",disposition="relayed"})`)
		if err != nil {
			return err
		}
		now := time.Now()
		got, err := d.api.Messages(context.Background(), trackapi.Query{Disposition: "relayed", From: now.Add(-time.Hour), To: now})
		if err != nil {
			return err
		}
		if relayed != 5 || len(got.Messages) != 5 {
			return fmt.Errorf("Prometheus counts %v relayed, tracking has %d, want 5", relayed, len(got.Messages))
		}
		return nil
	})
	eventually(t, time.Minute, "every rule to be evaluated", func() error {
		var rules struct {
			Groups []struct {
				Rules []struct{ Name, Health, LastError string }
			}
		}
		if err := prom.get("/api/v1/rules", &rules); err != nil {
			return err
		}
		n := 0
		for _, g := range rules.Groups {
			for _, r := range g.Rules {
				if n++; r.Health != "ok" {
					return fmt.Errorf("%s: health %s %s", r.Name, r.Health, r.LastError)
				}
			}
		}
		if n < 40 {
			return fmt.Errorf("only %d rules", n)
		}
		return nil
	})

	const backlog = "WaybillQueueBacklogAgeCritical"
	eventually(t, 90*time.Second, "the backlog alert to fire", func() error {
		firing, err := prom.firing(backlog)
		if err != nil || len(firing) == 0 {
			return errors.Join(errors.New("it does not fire"), err)
		}
		for _, a := range firing {
			if a.Labels["queue"] != "down" || a.Labels["severity"] != "critical" || !strings.HasPrefix(a.Annotations["description"], "Queue down on ") {
				t.Errorf("alert = %+v, want it for the queue down", a)
			}
		}
		return nil
	})
	eventually(t, 90*time.Second, "the queue to wait", func() error { // an attempt may be under way
		q, err := d.api.Queues(t.Context())
		if err != nil {
			return err
		}
		for _, row := range q.Queues {
			if row.Name == "down" && (row.State != "retry" || row.Deferred == 0 || row.LastClass == "" || row.Next.IsZero()) {
				return fmt.Errorf("queue = %+v, want state retry with a reason and a next attempt", row)
			}
		}
		return nil
	})

	back, err := relaytest.StartSmartHost(fmt.Sprintf("127.0.0.1:%d", down))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = back.Close() })
	if _, err := d.api.ActOnQueue(t.Context(), trackapi.QueueAction{Action: "retry", Filter: trackapi.QueueFilter{All: true}}); err == nil {
		t.Error("a viewer's token may act on the queue")
	}
	d.empty(2 * time.Minute) // by its own probes
	wantOnce(t, back, "r0@down.test", "r1@down.test", "r2@down.test", "r3@down.test", "r4@down.test")
	eventually(t, time.Minute, "the alert to end", func() error {
		firing, err := prom.firing(backlog)
		if err == nil && len(firing) > 0 {
			err = fmt.Errorf("%d fire", len(firing))
		}
		return err
	})
}

func provisioning(name string) string {
	path, err := filepath.Abs(filepath.Join("..", "..", "..", "dashboards", "provisioning", name))
	if err != nil {
		panic(err) // no working directory
	}
	return path
}

// prometheus is a running Prometheus, by its URL.
type prometheus string

// startPrometheus starts Prometheus with the provisioned configuration and the
// repository's rules and alerts. Only what makes a test long is changed:
// intervals, waits, and the share of the lifetime that makes a backlog.
func startPrometheus(t *testing.T, dir, target string) prometheus {
	t.Helper()
	write(t, filepath.Join(dir, "viewer.token"), run(t, "cat", provisioning("viewer.token")))
	for _, file := range []struct {
		path    string
		changes []string
	}{
		{provisioning("prometheus.yml"), []string{
			"scrape_interval: 15s", "scrape_interval: 1s", "evaluation_interval: 15s", "evaluation_interval: 1s", "relay.waybill.test:8025", target,
		}},
		{provisioning("../rules.yaml"), []string{"interval: 30s", "interval: 1s"}},
		{provisioning("../alerts.yaml"), []string{"(0.5 * max by (job, instance) (waybill_config_message_lifetime_seconds))", "(0.01 * max by (job, instance) (waybill_config_message_lifetime_seconds))"}},
	} {
		text := run(t, "cat", file.path)
		for i := 0; i < len(file.changes); i += 2 {
			if !strings.Contains(text, file.changes[i]) {
				t.Fatalf("%s has no %q", file.path, file.changes[i])
			}
			text = strings.ReplaceAll(text, file.changes[i], file.changes[i+1])
		}
		text = regexp.MustCompile(`(?m)^( +for:) .*$`).ReplaceAllString(text, "$1 1s")
		text = regexp.MustCompile(`(?ms)^alerting:.*?^(\S)`).ReplaceAllString(text, "$1") // there is no Alertmanager
		write(t, filepath.Join(dir, filepath.Base(file.path)), text)
	}
	p := port(t)
	log, err := os.Create(filepath.Join(dir, "prometheus.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("prometheus", "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "tsdb"),
		fmt.Sprintf("--web.listen-address=127.0.0.1:%d", p))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		_ = log.Close()
		if t.Failed() {
			t.Logf("prometheus:\n%s", run(t, "tail", "-n", "20", log.Name()))
		}
	})
	if err := peers.WaitPort(p, time.Minute); err != nil {
		t.Fatal(err)
	}
	return prometheus(fmt.Sprintf("http://127.0.0.1:%d", p))
}

// get asks the HTTP API.
func (p prometheus) get(path string, data any) error {
	resp, err := http.Get(string(p) + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("%s: %s: %w", path, resp.Status, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", path, answer.Error)
	}
	return nil
}

// query is the value of an expression with one.
func (p prometheus) query(expr string) (float64, error) {
	var v struct {
		Result []struct{ Value [2]any }
	}
	if err := p.get("/api/v1/query?query="+url.QueryEscape(expr), &v); err != nil {
		return 0, err
	}
	if len(v.Result) != 1 {
		return 0, fmt.Errorf("%s has %d values", expr, len(v.Result))
	}
	var f float64
	_, err := fmt.Sscan(fmt.Sprint(v.Result[0].Value[1]), &f)
	return f, err
}

type alert struct {
	Labels, Annotations map[string]string
	State               string
}

// firing lists the alerts of that name that fire.
func (p prometheus) firing(name string) ([]alert, error) {
	var v struct{ Alerts []alert }
	if err := p.get("/api/v1/alerts", &v); err != nil {
		return nil, err
	}
	var list []alert
	for _, a := range v.Alerts {
		if a.Labels["alertname"] == name && a.State == "firing" {
			list = append(list, a)
		}
	}
	return list, nil
}
