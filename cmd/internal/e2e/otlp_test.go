//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"waybill/relay/relaytest"
)

// logStore is a VictoriaLogs, which takes OpenTelemetry logs.
type logStore struct {
	t   *testing.T
	url string
}

// startLogStore builds VictoriaLogs from its module, and runs it until the test ends.
func startLogStore(t *testing.T) *logStore {
	t.Helper()
	dir := shared(t)
	binary := filepath.Join(dir, "victoria-logs")
	run(t, "go", "build", "-C", filepath.Join("..", "..", "..", ".ci", "victorialogs"), "-o", binary, "github.com/VictoriaMetrics/VictoriaLogs/app/victoria-logs")
	addr := fmt.Sprintf("127.0.0.1:%d", port(t))
	cmd := exec.Command(binary, "-storageDataPath="+filepath.Join(dir, "data"), "-httpListenAddr="+addr, "-loggerLevel=WARN")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("the collector said:\n%s", said.Bytes())
		}
	})
	c := &logStore{t: t, url: "http://" + addr}
	eventually(t, time.Minute, "the collector to answer", func() error {
		resp, err := http.Get(c.url + "/health")
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	})
	return c
}

// records are what the collector holds for a tenant, by event id.
func (c *logStore) records(tenant string) (map[string]map[string]string, error) {
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, c.url+"/select/logsql/query?limit=100000&query="+url.QueryEscape("*"), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("AccountID", tenant)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		return nil, fmt.Errorf("%s: %s", resp.Status, b)
	}
	all := map[string]map[string]string{}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var r map[string]string
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("%w: %.200s", err, lines.Bytes())
		}
		if all[r["event_id"]] != nil {
			return nil, fmt.Errorf("the record %s is there twice", r["event_id"])
		}
		all[r["event_id"]] = r
	}
	return all, lines.Err()
}

// TestCollector sends facts to a real collector in both ways: as they happen, and
// as an export of the tracking store. It holds what the log and the store have,
// field by field.
func TestCollector(t *testing.T) {
	t.Parallel()
	c := startLogStore(t)
	in := port(t)
	hop := relaytest.NewSmartHost(t)
	hop.OnRcpt("nobody@dest.test", 550, "5.1.1 no such user")
	d := start(t, relayConf(in, int(hop.Port()))+fmt.Sprintf("telemetry: {otlp_endpoint: %q}\n", c.url+"/insert/opentelemetry"))
	s := dial(t, in)
	for _, to := range []string{"ann@dest.test", "nobody@dest.test", `"a\"quote, *"@dest.test`} {
		s.send("sender@source.test", to, hello)
	}
	s.cmd(250, "RSET")
	d.found("nobody@dest.test", "bounced", 1)
	d.found("sender@source.test", "relayed", 1) // the DSN
	d.empty(time.Minute)

	export := func(args ...string) string {
		t.Helper()
		out, err := d.waybill(append([]string{"track", "export", "--from", "1h"}, args...)...)
		if err != nil {
			t.Fatalf("waybill track export: %v\n%s", err, out)
		}
		return out
	}
	headers, facts := filepath.Join(d.dir, "headers"), filepath.Join(d.dir, "facts.jsonl")
	write(t, headers, "AccountID: 7\n")
	export("--event", "message_queued,attempt_finished,recipient_relayed,recipient_bounced,dsn_queued,message_retired", "--format", "otlp", "--endpoint", c.url+"/insert/opentelemetry", "--headers-file", headers)
	export("--event", "message_queued,attempt_finished,recipient_relayed,recipient_bounced,dsn_queued,message_retired", "--file", facts)
	stored := recordLines(t, facts)
	if len(stored) < 15 {
		t.Fatalf("the store has %d facts of four messages", len(stored))
	}
	c.holds("7", stored, true)

	d.stop() // sends what waits
	logged := recordLines(t, filepath.Join(d.dir, "waybill.log"))
	c.holds("0", logged, false)
}

// recordLines are the facts of a file of log lines, by event id.
func recordLines(t *testing.T, name string) map[string]map[string]any {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]map[string]any{}
	for line := range bytes.Lines(b) {
		var r map[string]any
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.UseNumber()
		if err := dec.Decode(&r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if id, ok := r["event_id"].(string); ok {
			all[id] = r
		}
	}
	return all
}

// holds wants the collector to have the facts, and, with only, no others. Facts
// that were stated when the daemon ended may be in neither.
func (c *logStore) holds(tenant string, facts map[string]map[string]any, only bool) {
	c.t.Helper()
	var held map[string]map[string]string
	eventually(c.t, time.Minute, "the collector to have all facts", func() (err error) {
		if held, err = c.records(tenant); err != nil {
			return err
		}
		for id, f := range facts {
			if held[id] == nil {
				return fmt.Errorf("%d of %d are there; not %s %s", len(held), len(facts), f["event"], id)
			}
		}
		return nil
	})
	if only && len(held) != len(facts) {
		c.t.Errorf("the collector has %d facts, want %d", len(held), len(facts))
	}
	for id, f := range facts {
		for key, want := range f {
			if err := same(held[id], key, want); err != nil {
				c.t.Fatalf("%s %s: %s: %v\n%v", f["event"], id, key, err, held[id])
			}
		}
	}
}

// names that the collector has for what OpenTelemetry has a place of its own for.
var collected = map[string]string{"ts": "_time", "msg": "_msg", "level": "severity"}

// same compares a field of a fact with what the collector has, which keeps all
// as text.
func same(held map[string]string, key string, want any) error {
	if name := collected[key]; name != "" {
		key = name
	}
	got := held[key]
	switch want := want.(type) {
	case json.Number:
		a, err := strconv.ParseFloat(got, 64)
		if err != nil {
			return err
		}
		if b, err := want.Float64(); err != nil || a != b {
			return fmt.Errorf("%s, want %s", got, want)
		}
	case []any:
		var list []any
		dec := json.NewDecoder(strings.NewReader(got))
		dec.UseNumber()
		if err := dec.Decode(&list); err != nil {
			return err
		}
		number := cmp.Comparer(func(a, b json.Number) bool {
			x, errA := a.Float64()
			y, errB := b.Float64()
			return errA == nil && errB == nil && x == y
		})
		if diff := cmp.Diff(want, list, number); diff != "" {
			return errors.New(diff)
		}
	default:
		if got != fmt.Sprint(want) {
			return fmt.Errorf("%q, want %q", got, want)
		}
	}
	return nil
}
