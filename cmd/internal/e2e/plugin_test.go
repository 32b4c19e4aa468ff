//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend" //nolint:depguard // this test stands in for Grafana
	"github.com/grafana/grafana-plugin-sdk-go/data"    //nolint:depguard // its answers

	"waybill/grafana-plugin/pkg/host"
	"waybill/relay/relaytest"
)

// TestPlugin asks the built backend of the Grafana plugin, as Grafana does,
// about mail that a running daemon has relayed, refused and kept.
func TestPlugin(t *testing.T) {
	t.Parallel()
	in := port(t)
	hop := relaytest.NewSmartHost(t)
	hop.OnRcpt("nobody@dest.test", 550, "5.1.1 no such user")
	hop.OnRcpt("later@dest.test", 451, "4.7.1 greylisted")
	d := start(t, relayConf(in, int(hop.Port())))
	s := dial(t, in)
	for _, to := range []string{"ann@dest.test", "nobody@dest.test", "later@dest.test"} {
		s.send("sender@source.test", to, hello)
	}
	bounced := d.found("nobody@dest.test", "bounced", 1)[0]
	d.found("later@dest.test", "deferred", 1)
	d.found("ann@dest.test", "relayed", 1)
	d.found("sender@source.test", "relayed", 1) // the DSN

	executable := filepath.Join("..", "..", "..", "grafana-plugin", "dist", "gpx_waybill_linux_"+runtime.GOARCH)
	if _, err := os.Stat(executable); err != nil { // make plugin has not run: build it as that would
		executable = filepath.Join(shared(t), "gpx_waybill")
		run(t, "go", "build", "-o", executable, "waybill/grafana-plugin/pkg")
	}
	h, err := host.Start(context.WithoutCancel(t.Context()), executable)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	if err := h.Configure(d.api.BaseURL, "", nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	health, err := h.CheckHealth(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if health.Status != backend.HealthStatusOk || !strings.Contains(health.Message, "Connected to Waybill") {
		t.Errorf("health: %s %q", health.Status, health.Message)
	}

	now := time.Now()
	query := func(ref, kind, body string) backend.DataQuery {
		return backend.DataQuery{
			RefID: ref, QueryType: kind, JSON: json.RawMessage(body), Interval: time.Minute, MaxDataPoints: 100,
			TimeRange: backend.TimeRange{From: now.Add(-time.Hour), To: now.Add(time.Minute)},
		}
	}
	answer, err := h.QueryData(ctx,
		query("search", "messages", `{"recipient":"nobody@dest.test"}`),
		query("everything", "messages", `{}`),
		query("timeline", "timeline", `{"id":"`+bounced.QueueID+`"}`),
		query("transcript", "timeline", `{"id":"`+bounced.QueueID+`","view":"transcript"}`),
		query("outcomes", "aggregate", `{"metric":"count","by":["disposition"],"step":"total"}`),
		query("queues", "queues", `{}`),
		query("events", "events", `{"event":"recipient_bounced"}`),
		query("wrong", "messages", `{"q":"nonsense"}`),
	)
	if err != nil {
		t.Fatal(err)
	}
	frames := func(ref string) data.Frames {
		t.Helper()
		r := answer.Responses[ref]
		if r.Error != nil || len(r.Frames) == 0 {
			t.Fatalf("%s: %d frames, error %v", ref, len(r.Frames), r.Error)
		}
		return r.Frames
	}

	search := frames("search")[0]
	if search.Rows() != 1 || text(search, "queue_id", 0) != bounced.QueueID || text(search, "disposition", 0) != "bounced" || text(search, "class", 0) != "invalid_recipient" {
		t.Errorf("the search by recipient answers\n%s", table(search))
	}
	if everything := frames("everything")[0]; everything.Rows() != 4 {
		t.Errorf("%d messages, want three and the DSN:\n%s", everything.Rows(), table(everything))
	}
	timeline := frames("timeline")[0]
	var events []string
	for i := range timeline.Rows() {
		events = append(events, text(timeline, "event", i))
	}
	order := strings.Join(events, " ")
	if !strings.Contains(order, "message_queued") || strings.Index(order, "message_queued") > strings.Index(order, "attempt_finished") || !strings.Contains(order, "recipient_bounced") {
		t.Errorf("the timeline has %s", order)
	}
	if transcript := table(frames("transcript")[0]); !strings.Contains(transcript, "550 5.1.1 no such user") {
		t.Errorf("the transcript does not have the next hop's words:\n%s", transcript)
	}
	outcomes := map[string]float64{}
	for _, f := range frames("outcomes") {
		for _, field := range f.Fields {
			if v, err := field.FloatAt(0); err == nil && field.Labels["disposition"] != "" {
				outcomes[field.Labels["disposition"]] += v
			}
		}
	}
	if outcomes["relayed"] != 2 || outcomes["bounced"] != 1 || outcomes["deferred"] < 1 {
		t.Errorf("outcomes = %v, want 2 relayed (one is the DSN), 1 bounced and deferrals", outcomes)
	}
	if queues := frames("queues")[0]; queues.Rows() != 1 || text(queues, "queue", 0) != "out" {
		t.Errorf("queues:\n%s", table(queues))
	}
	if events := frames("events")[0]; events.Rows() != 1 {
		t.Errorf("%d facts recipient_bounced, want 1:\n%s", events.Rows(), table(events))
	}
	if wrong := answer.Responses["wrong"]; wrong.Error == nil || wrong.Status != backend.StatusBadRequest {
		t.Errorf("a filter that is none: %d %v, want 400", wrong.Status, wrong.Error)
	}
	status, body, err := h.CallResource(ctx, "GET", "values", "values?field=recipient_domain")
	if err != nil || status != 200 || !strings.Contains(string(body), "dest.test") {
		t.Errorf("values for a picker: %d %s %v", status, body, err)
	}
}

// text is a field's value in words, or what is wrong with it.
func text(f *data.Frame, name string, row int) string {
	field, _ := f.FieldByName(name)
	if field == nil || row >= field.Len() {
		return "no " + name
	}
	switch v := field.At(row).(type) {
	case string:
		return v
	case *string:
		if v != nil {
			return *v
		}
	}
	return ""
}

func table(f *data.Frame) string {
	s, err := f.StringTable(-1, 50)
	if err != nil {
		return err.Error()
	}
	return s
}
