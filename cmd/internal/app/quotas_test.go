package app

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"waybill/logtrack/trackapi"
	"waybill/relay/relaytest"
)

// TestQuotaOutlivesRestart lets mail wait for a quota, where everybody can see it,
// and after a restart too.
func TestQuotaOutlivesRestart(t *testing.T) {
	hop := relaytest.NewSmartHost(t)
	f := newFixture(t, hop.Addr())
	f.write(strings.Replace(standard, "tls: {level: none},", "tls: {level: none}, limits: {recipients_per_day: 2},", 1))
	r := f.start()
	r.submit("app", "a@dest.test")
	r.submit("app", "b@dest.test")
	hop.WaitFor(t, 2)
	waits := func(r *running, id string) {
		t.Helper()
		eventually(t, "the message to wait for the quota", func() error {
			_, queues := r.get("/api/v1/queues")
			_, messages := r.get("/api/v1/queue/messages")
			_, events := r.get("/api/v1/messages/" + id)
			for where, text := range map[string]string{"queues": queues, "messages": messages} {
				if !strings.Contains(text, "quota: recipients_per_day of send connector out is used up") {
					return fmt.Errorf("the %s do not say so: %.400s", where, text)
				}
			}
			if !strings.Contains(events, "throttle_engaged") {
				return errors.New("the timeline does not say so")
			}
			return nil
		})
	}
	waits(r, r.submit("app", "c@dest.test"))
	if _, text := r.get("/metrics"); !strings.Contains(text, `waybill_remote_quota_used{connector="out",quota="recipients_per_day"} 2`) ||
		!strings.Contains(text, `waybill_remote_quota_used_ratio{connector="out",quota="recipients_per_day"} 1`) {
		t.Error("the metrics do not say that the quota is used up")
	}
	r.stop()
	r = f.start()
	waits(r, r.submit("app", "d@dest.test"))
	if n, _ := hop.Received(); n != 2 {
		t.Errorf("%d messages went, want 2", n)
	}
	// More room lets them go.
	f.write(strings.Replace(standard, "tls: {level: none},", "tls: {level: none}, limits: {recipients_per_day: 4},", 1))
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.api.ActOnQueue(t.Context(), trackapi.QueueAction{Action: "retry", Filter: trackapi.QueueFilter{Sender: "a@source.test"}}); err != nil {
		t.Fatal(err)
	}
	hop.WaitFor(t, 4)
	r.stop()
	if _, err := os.Stat(filepath.Join(f.dir, "data", "quota.json")); err != nil {
		t.Error(err)
	}
}
