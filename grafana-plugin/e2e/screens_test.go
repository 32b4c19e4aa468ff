//go:build e2e

// Package e2e looks at the plugin as a person does: the production bundle and
// the built backend, in a browser, through a page that stands in for Grafana.
//
// It promises to fail when the bundle cannot be loaded, when a page writes an
// error to the console, or when it stays empty; the pictures are for a person
// to judge. To add a page, add it to PAGES in host.tsx and to the table here.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"

	"waybill/grafana-plugin/pkg/host"
)

var (
	api   = flag.String("api", "", "URL of a Waybill to ask, instead of canned answers")
	token = flag.String("token", "", "token for -api")
	serve = flag.Bool("serve", false, "serve the page until interrupted, and take no pictures")
)

// TestScreens takes a picture of each page into the folder screens.
func TestScreens(t *testing.T) {
	page := newPage(t)
	if *serve {
		t.Logf("open %s/?page=messages; end with Ctrl-C", page)
		<-t.Context().Done()
		return
	}
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("a browser is needed (apt-get install chromium): %v", err)
	}
	folder, err := filepath.Abs("../screens")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		theme  string
		height int
	}{
		{"config", "dark", 900},
		{"messages", "dark", 680},
		{"messages", "light", 680},
		{"filters", "dark", 620},
		{"timeline", "dark", 520},
		{"stages", "dark", 940},
		{"attempts", "dark", 440},
		{"checks", "dark", 540},
		{"checks", "light", 540},
		{"transcript", "dark", 700},
		{"series", "dark", 720},
		{"groups", "dark", 620},
		{"percentiles", "dark", 720},
		{"spread", "dark", 620},
		{"queues", "dark", 440},
		{"events", "dark", 800},
	} {
		t.Run(test.name+"-"+test.theme, func(t *testing.T) {
			picture := filepath.Join(folder, test.name+"-"+test.theme+".png")
			log := screenshot(t, chromium, page+"/?page="+test.name+"&theme="+test.theme, picture, test.height)
			for _, line := range log {
				t.Error(line)
			}
			info, err := os.Stat(picture)
			if err != nil {
				t.Fatal(err)
			}
			if info.Size() < 15_000 { // an empty page is about 8 kB
				t.Errorf("%s has only %d bytes: is the page empty?", picture, info.Size())
			}
		})
	}
}

// screenshot opens url and gives the errors that the page wrote to the console.
func screenshot(t *testing.T, chromium, url, picture string, height int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr",
		"--user-data-dir="+t.TempDir(), "--virtual-time-budget=12000", "--window-size=1448,"+strconv.Itoa(height), "--screenshot="+picture, url)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("chromium: %v\n%s", err, out)
	}
	var errors []string
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		line := lines.Text()
		// Grafana's fonts are not in its npm packages; the system's take their place.
		if strings.Contains(line, ":CONSOLE") && strings.Contains(line, "ERROR") && !strings.Contains(line, "/public/fonts/") {
			errors = append(errors, line)
		}
	}
	return errors
}

// newPage serves the page, the bundle, and the part of Grafana's HTTP API that
// the plugin's frontend calls, answered by the built backend.
func newPage(t *testing.T) string {
	t.Helper()
	executable := filepath.Join(t.TempDir(), "gpx_waybill")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", executable, "waybill/grafana-plugin/pkg").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	h, err := host.Start(context.WithoutCancel(t.Context()), executable)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	target := *api
	if target == "" {
		server := httptest.NewServer(host.Canned("../testdata/api", ""))
		t.Cleanup(server.Close)
		target = server.URL
	}
	if err := h.Configure(target, *token, nil); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/ds/query", func(w http.ResponseWriter, r *http.Request) { queryData(t, w, r, h) })
	mux.HandleFunc("GET /api/datasources/uid/waybill/resources/{path...}", func(w http.ResponseWriter, r *http.Request) {
		path := r.PathValue("path")
		status, body, err := h.CallResource(r.Context(), r.Method, path, path+"?"+r.URL.RawQuery)
		if err != nil {
			t.Errorf("resource %s: %v", path, err)
			status = http.StatusBadGateway
		}
		w.WriteHeader(status)
		_, _ = w.Write(body)
	})
	mux.Handle("GET /plugin/", http.StripPrefix("/plugin/", http.FileServer(http.Dir("../dist"))))
	mux.Handle("GET /public/build/img/", http.StripPrefix("/public/build/img/", http.FileServer(http.Dir("../node_modules/@grafana/ui/dist/public/img"))))
	mux.Handle("GET /host.js", http.FileServer(http.Dir("out")))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, "index.html") })
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}

// queryData is Grafana's POST /api/ds/query.
func queryData(t *testing.T, w http.ResponseWriter, r *http.Request, h *host.Host) {
	var req struct {
		Queries []json.RawMessage `json:"queries"`
		From    string            `json:"from"` // milliseconds
		To      string            `json:"to"`
	}
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = json.Unmarshal(body, &req)
	}
	if err != nil {
		t.Errorf("query %s: %v", body, err)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var queries []backend.DataQuery
	for _, raw := range req.Queries {
		var q struct {
			RefID         string `json:"refId"`
			QueryType     string `json:"queryType"`
			IntervalMS    int64  `json:"intervalMs"`
			MaxDataPoints int64  `json:"maxDataPoints"`
		}
		if err := json.Unmarshal(raw, &q); err != nil {
			t.Errorf("query %s: %v", raw, err)
		}
		queries = append(queries, backend.DataQuery{
			RefID: q.RefID, QueryType: q.QueryType, JSON: raw, MaxDataPoints: q.MaxDataPoints,
			Interval: time.Duration(q.IntervalMS) * time.Millisecond, TimeRange: backend.TimeRange{From: moment(t, req.From), To: moment(t, req.To)},
		})
	}
	res, err := h.QueryData(r.Context(), queries...)
	if err != nil {
		t.Errorf("query: %v", err)
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(res); err != nil {
		t.Errorf("answer: %v", err)
	}
}

func moment(t *testing.T, ms string) time.Time {
	n, err := strconv.ParseInt(ms, 10, 64)
	if err != nil {
		t.Errorf("time %q: %v", ms, err)
	}
	return time.UnixMilli(n)
}
