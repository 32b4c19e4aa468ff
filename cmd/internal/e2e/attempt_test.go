//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
)

// security is what an attempt says of its TLS, and what became of it.
type security struct {
	Disposition string `json:"disposition"`
	Verify      string `json:"tls_verify"`
	Policy      string `json:"tls_policy"`
	Failure     string `json:"tls_failure"`
}

// attemptIs waits for the first attempt for a recipient, and holds it against
// want.
func (d *daemon) attemptIs(t testing.TB, recipient string, want security) {
	t.Helper()
	var record []byte
	eventually(t, time.Minute, "the attempt", func() error {
		list, err := d.api.Events(context.Background(), trackapi.Query{Recipient: recipient, Event: "attempt_finished"})
		if err != nil {
			return err
		}
		if len(list.Events) == 0 {
			return errors.New("none yet")
		}
		record = list.Events[0]
		return nil
	})
	var got security
	if err := json.Unmarshal(record, &got); err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("attempt = %s\nwant %+v", record, want)
	}
}
