package app

import (
	"compress/gzip"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"

	"waybill/relay/relaytest"
)

// TestTelemetryAndUsersCommand: a user whom only a program knows sends mail, and a
// collector gets the facts, the last ones at the end.
func TestTelemetryAndUsersCommand(t *testing.T) {
	var mu sync.Mutex
	got := map[string]int{}
	users := map[string]bool{}
	tokens := map[string]bool{}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var export collector.ExportLogsServiceRequest
		z, err := gzip.NewReader(req.Body)
		if err == nil {
			var data []byte
			if data, err = io.ReadAll(z); err == nil {
				err = proto.Unmarshal(data, &export)
			}
		}
		if err != nil || req.URL.Path != "/v1/logs" {
			http.Error(w, "no export", http.StatusBadRequest)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		tokens[req.Header.Get("Authorization")] = true
		for _, of := range export.GetResourceLogs() {
			for _, scope := range of.GetScopeLogs() {
				for _, r := range scope.GetLogRecords() {
					got[r.GetEventName()]++
					for _, kv := range r.GetAttributes() {
						if kv.GetKey() == "auth_user" {
							users[kv.GetValue().GetStringValue()] = true
						}
					}
				}
			}
		}
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()

	f := newFixture(t, relaytest.NewSmartHost(t).Addr())
	f.file("collector.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))
	f.file("headers", "Authorization: Bearer s3cret\n")
	conf := strings.Replace(standard, "users: {file: DIR/users.yaml}", `users:
  file: DIR/users.yaml
  command: [/bin/sh, -c, 'read u; read p; case $u:$p in eve:eve) echo {\"any_sender\":true};; eve:*) exit 1;; *) exit 2;; esac']`, 1)
	f.write(conf + `telemetry: {otlp_endpoint: "` + srv.URL + `", headers_file: DIR/headers, ca_file: DIR/collector.crt}` + "\n")
	r := f.start()
	r.message(r.submit("eve", "ann@dest.test"), "relayed")
	r.message(r.submit("app", "ann@dest.test"), "relayed")
	if c, err := r.login("mallory"); smtpCode(err) != 535 {
		t.Errorf("mallory logs in: %v, %v", c, err)
	}
	eventually(t, "the count of facts", func() error {
		_, body := r.get("/metrics")
		for _, want := range []string{
			"waybill_otlp_records_sent_total ", `waybill_otlp_records_dropped_total{reason="refused"} 0`, "waybill_otlp_records_pending ",
			`waybill_lookups_total{lookup="users_command",result="known"} 1`, `waybill_lookups_total{lookup="users_command",result="unknown"} 1`,
		} {
			if !strings.Contains(body, want) {
				return errors.New("no " + want)
			}
		}
		return nil
	})
	r.stop()
	mu.Lock()
	defer mu.Unlock()
	for name, want := range map[string]int{"message_queued": 2, "recipient_relayed": 2, "message_retired": 2, "auth_succeeded": 2, "auth_failed": 1, "lookup_answered": 2, "config_reloaded": 1} {
		if got[name] != want {
			t.Errorf("%d facts %s, want %d", got[name], name, want)
		}
	}
	if !users["eve"] || !users["app"] || len(tokens) != 1 || !tokens["Bearer s3cret"] {
		t.Errorf("facts of %v with the headers %v", users, tokens)
	}
	lines, err := os.ReadFile(filepath.Join(f.dir, "waybill.log"))
	if err != nil || strings.Contains(string(lines), "s3cret") || strings.Contains(string(lines), "cannot be sent") {
		t.Errorf("%v; the log has the token, or trouble:\n%s", err, lines)
	}
}
