package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
)

// schema is the version of the record that this plugin was made for.
const schema = 1

// CheckHealth asks the relay for its status, as every query would ask: with
// address, TLS and token. It says what it found, or what to do.
func (d *Datasource) CheckHealth(ctx context.Context, _ *backend.CheckHealthRequest) (*backend.CheckHealthResult, error) {
	bad := func(err error) (*backend.CheckHealthResult, error) {
		_, _, text := d.explain(err)
		return &backend.CheckHealthResult{Status: backend.HealthStatusError, Message: text}, nil
	}
	if d.broken != nil {
		return bad(d.broken)
	}
	s, err := d.api.Status(ctx)
	if err != nil {
		return bad(err)
	}
	text := fmt.Sprintf("Connected to Waybill %s on %s: %d facts", s.Version, s.Hostname, s.Events)
	if !s.Oldest.IsZero() {
		text += " since " + s.Oldest.UTC().Format(time.DateTime) + " UTC"
	}
	text += "."
	if !s.Ready {
		text += " It does not accept mail now: " + s.Why + "."
	}
	if s.Schema > schema {
		text += fmt.Sprintf(" It writes records of version %d, this plugin reads version %d: update the plugin.", s.Schema, schema)
	}
	details, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	return &backend.CheckHealthResult{Status: backend.HealthStatusOk, Message: text, JSONDetails: details}, nil
}
