package host_test

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/data"

	"waybill/grafana-plugin/pkg/host"
)

// start builds the backend and starts it as Grafana does.
func start(t *testing.T) *host.Host {
	t.Helper()
	executable := filepath.Join(t.TempDir(), "gpx_waybill")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", executable, "waybill/grafana-plugin/pkg")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	h, err := host.Start(context.WithoutCancel(t.Context()), executable)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// TestHost asks the built executable what Grafana asks it: "Save & test", a
// search by recipient together with a number for an alert rule and a query that
// does not exist, and a picker's values.
func TestHost(t *testing.T) {
	h := start(t)
	api := httptest.NewServer(host.Canned("../../testdata/api", "viewer"))
	defer api.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	if err := h.Configure(api.URL, "wrong", nil); err != nil {
		t.Fatal(err)
	}
	health, err := h.CheckHealth(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if health.Status != backend.HealthStatusError || !strings.Contains(health.Message, "token") {
		t.Errorf("health with a wrong token: %s %q", health.Status, health.Message)
	}

	if err := h.Configure(api.URL, "viewer", map[string]any{"timeout": 5}); err != nil {
		t.Fatal(err)
	}
	health, err = h.CheckHealth(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if health.Status != backend.HealthStatusOk || !strings.Contains(health.Message, "Connected to Waybill 0.1.0") {
		t.Errorf("health: %s %q", health.Status, health.Message)
	}
	if !json.Valid(health.JSONDetails) {
		t.Errorf("details are no JSON: %s", health.JSONDetails)
	}

	to := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	query := func(ref, typ, body string) backend.DataQuery {
		return backend.DataQuery{
			RefID: ref, QueryType: typ, JSON: json.RawMessage(body), Interval: time.Minute, MaxDataPoints: 100,
			TimeRange: backend.TimeRange{From: to.Add(-6 * time.Hour), To: to},
		}
	}
	res, err := h.QueryData(
		ctx,
		query("A", "messages", `{"recipient":"nobody@example.org"}`),
		query("B", "aggregate", `{"metric":"latency_p95","step":"total"}`),
		query("C", "poem", `{}`),
	)
	if err != nil {
		t.Fatal(err)
	}

	a := res.Responses["A"]
	if a.Error != nil || len(a.Frames) != 1 || a.Frames[0].Rows() != 1 {
		t.Fatalf("search: %d frames, error %v; want one frame with one row", len(a.Frames), a.Error)
	}
	for name, want := range map[string]string{
		"recipients": "nobody@example.org", "disposition": "bounced", "class": "invalid_recipient", "remote_host": "mx1.example.org",
	} {
		field, _ := a.Frames[0].FieldByName(name)
		if field == nil || field.At(0) != want {
			t.Errorf("%s = %v, want %q", name, field, want)
		}
	}
	field, _ := a.Frames[0].FieldByName("queue_id")
	if links := field.Config.Links; len(links) != 1 || links[0].Internal == nil || links[0].Internal.DatasourceUID != "waybill" {
		t.Errorf("the queue ID has the links %+v, want one to the timeline", links)
	}

	if b := res.Responses["B"]; b.Error != nil || len(b.Frames) != 5 || b.Frames[0].Meta.Type != data.FrameTypeNumericMulti {
		t.Errorf("numbers: %d frames, error %v", len(b.Frames), b.Error)
	}
	if c := res.Responses["C"]; c.Status != backend.StatusBadRequest || c.ErrorSource != backend.ErrorSourceDownstream {
		t.Errorf("unknown query type: %d from %s, want 400 from downstream", c.Status, c.ErrorSource)
	}

	status, body, err := h.CallResource(ctx, "GET", "values", "values?field=connector")
	if err != nil || status != 200 || !strings.Contains(string(body), "submission") {
		t.Errorf("values: %d %s %v", status, body, err)
	}
}

func TestStartFails(t *testing.T) {
	for _, test := range []struct {
		name       string
		executable string
	}{
		{"no such file", filepath.Join(t.TempDir(), "missing")},
		{"not a plugin", "/bin/true"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h, err := host.Start(t.Context(), test.executable)
			if err == nil {
				h.Close()
				t.Error("Start succeeded")
			}
		})
	}
}
