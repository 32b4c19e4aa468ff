package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/data"

	"waybill/logtrack/trackapi"
)

// eventsQuery reads the facts themselves, as log lines.
type eventsQuery struct {
	Filter
	Sort  string `json:"sort"`
	Limit number `json:"limit"`
}

// logLine is one row of a log frame.
type logLine struct {
	at       time.Time
	body     string
	severity string // info, warning, error
	id       string
	labels   map[string]string
}

func events(ctx context.Context, d *Datasource, q eventsQuery, in backend.DataQuery) (data.Frames, error) {
	find, err := q.query(in.TimeRange)
	if err != nil {
		return nil, err
	}
	if find.Sort, err = sortOf(q.Sort); err != nil {
		return nil, err
	}
	var lines []logLine
	cut, more, err := pages(q.Limit.rows(), &find, func() (int, trackapi.Page, error) {
		answer, err := d.api.Events(ctx, find)
		if err != nil {
			return 0, trackapi.Page{}, err
		}
		for _, raw := range answer.Events {
			line, err := lineOf(raw)
			if err != nil {
				return 0, trackapi.Page{}, backend.DownstreamError(fmt.Errorf("a record cannot be read: %w", err))
			}
			lines = append(lines, line)
		}
		return len(answer.Events), answer.Page, nil
	})
	if err != nil {
		return nil, err
	}
	frame := d.logFrame("events", lines)
	notice(frame, data.NoticeSeverityWarning, cut)
	if more {
		notice(frame, data.NoticeSeverityInfo, fmt.Sprintf("These are the first %d facts; there are more. Narrow the filters, or raise the limit (at most %d).", len(lines), maxRows))
	}
	return data.Frames{frame}, nil
}

// logFrame makes a frame of type log-lines: Grafana's data plane contract wants
// these names in this order.
func (d *Datasource) logFrame(name string, lines []logLine) *data.Frame {
	frame := newFrame(
		name, data.FrameTypeLogLines, version00, data.VisTypeLogs,
		column(lines, "timestamp", "", func(l *logLine) time.Time { return l.at.UTC() }),
		column(lines, "body", "", func(l *logLine) string { return l.body }),
		column(lines, "severity", "", func(l *logLine) string { return l.severity }),
		column(lines, "id", "", func(l *logLine) string { return l.id }),
		column(lines, "labels", "", func(l *logLine) json.RawMessage { return jsonValue(l.labels) }),
		column(lines, "queue_id", "Queue ID", func(l *logLine) string { return l.labels["queue_id"] },
			link(d.explore("Timeline of the message", map[string]string{"queryType": "timeline", "id": "${__value.raw}"}))),
	)
	for _, f := range frame.Fields[:5] {
		f.Config = nil
	}
	return frame
}

// lineOf reads a record into a line: a short sentence, and all its plain values
// as labels.
func lineOf(raw json.RawMessage) (logLine, error) {
	var record map[string]any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := dec.Decode(&record); err != nil {
		return logLine{}, err
	}
	line := logLine{labels: map[string]string{}}
	for key, value := range record {
		if s := plain(value); s != "" {
			line.labels[key] = s
		}
	}
	at, err := time.Parse(time.RFC3339Nano, line.labels["ts"])
	if err != nil {
		return logLine{}, err
	}
	line.at, line.id = at, line.labels["event_id"]
	line.body, line.severity = sentence(line.labels), severity(line.labels)
	for _, key := range []string{"ts", "event_id", "schema"} {
		delete(line.labels, key)
	}
	return line, nil
}

// plain writes a value as a label, and is empty for what is none.
func plain(value any) string {
	switch v := value.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	case bool:
		return strconv.FormatBool(v)
	case []any: // recipients: their addresses
		var addresses []string
		for _, item := range v {
			if object, ok := item.(map[string]any); ok {
				if address, ok := object["address"].(string); ok {
					addresses = append(addresses, address)
				}
			}
		}
		return strings.Join(addresses, ", ")
	}
	return ""
}

// severity is how much a fact matters, by what it says of itself.
func severity(labels map[string]string) string {
	event := labels["event"]
	switch {
	case event == "recipient_bounced", event == "recipient_expired", event == "message_poisoned", event == "panicked",
		labels["disposition"] == "bounced", labels["disposition"] == "expired",
		labels["error"] != "" && !strings.HasSuffix(event, "_refused"):
		return "error"
	case strings.HasSuffix(event, "_refused"), event == "auth_failed", event == "recipient_late", event == "throttle_engaged",
		event == "queue_held", labels["disposition"] == "deferred", labels["failure"] != "",
		event == "pressure_changed" && labels["level"] != "0":
		return "warning"
	}
	return "info"
}

// sentence says a fact in a line: what happened, to whom, where, and what was said.
func sentence(l map[string]string) string {
	var b strings.Builder
	b.WriteString(strings.ReplaceAll(l["event"], "_", " "))
	part := func(before string, keys ...string) {
		for _, key := range keys {
			if l[key] != "" {
				b.WriteString(before + l[key])
				return
			}
		}
	}
	b.WriteString(":")
	mark := b.Len()
	part(" ", "disposition", "action", "kind", "reason", "verb", "resource")
	part(" from ", "mail_from")
	part(" to ", "recipient", "recipients")
	part(" by ", "actor", "auth_user")
	part(" at ", "remote_name", "queue", "client_ip")
	if l["code"] != "" {
		part(": ", "code")
		part(" ", "enhanced")
		part(" ", "reply")
	}
	part(": ", "error", "failure", "detail", "remark", "filter")
	if b.Len() == mark {
		return strings.TrimSuffix(b.String(), ":")
	}
	return b.String()
}
