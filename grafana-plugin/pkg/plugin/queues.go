package plugin

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/data"

	"waybill/logtrack/trackapi"
)

// queuesQuery reads the queue as it is now: one row per next hop.
type queuesQuery struct {
	Queue     string `json:"queue"` // a part of the next hop's name
	Connector string `json:"connector"`
	State     words  `json:"state"`
	Value     string `json:"value"` // a word of queueValues: numbers for an alert rule, not a table
}

type queueValue struct {
	unit string
	of   func(trackapi.Queue) float64
}

// queueValues are the numbers that an alert rule can look at.
var queueValues = map[string]queueValue{
	"messages":           {"short", func(q trackapi.Queue) float64 { return float64(q.Messages) }},
	"queued":             {"short", func(q trackapi.Queue) float64 { return float64(q.Queued) }},
	"active":             {"short", func(q trackapi.Queue) float64 { return float64(q.Active) }},
	"deferred":           {"short", func(q trackapi.Queue) float64 { return float64(q.Deferred) }},
	"held":               {"short", func(q trackapi.Queue) float64 { return float64(q.Held) }},
	"bytes":              {"bytes", func(q trackapi.Queue) float64 { return float64(q.Bytes) }},
	"oldest_age_seconds": {"s", func(q trackapi.Queue) float64 { return q.OldestAge }},
	"due_lag_seconds":    {"s", func(q trackapi.Queue) float64 { return q.DueLag }},
	"in_per_minute":      {"short", func(q trackapi.Queue) float64 { return q.InRate }},
	"out_per_minute":     {"short", func(q trackapi.Queue) float64 { return q.OutRate }},
	"velocity":           {"short", func(q trackapi.Queue) float64 { return q.Velocity }},
}

func queues(ctx context.Context, d *Datasource, q queuesQuery, _ backend.DataQuery) (data.Frames, error) {
	value, numbers := queueValues[q.Value]
	if q.Value != "" && !numbers {
		return nil, badQuery("the queue has no value %q; it has %s", q.Value, strings.Join(slices.Sorted(maps.Keys(queueValues)), ", "))
	}
	answer, err := d.api.Queues(ctx)
	if err != nil {
		return nil, err
	}
	rows := slices.DeleteFunc(answer.Queues, func(r trackapi.Queue) bool { return !q.selects(r) })
	if numbers {
		return queueNumbers(rows, q.Value, value), nil
	}
	frame := d.queueTable(rows)
	if !answer.Accepts && answer.Why != "" {
		notice(frame, data.NoticeSeverityWarning, "Waybill does not accept mail: "+answer.Why)
	}
	return data.Frames{frame}, nil
}

func (q queuesQuery) selects(r trackapi.Queue) bool {
	part, connector := term(q.Queue), term(q.Connector)
	return (part == "" || strings.Contains(strings.ToLower(r.Name), strings.ToLower(strings.Trim(part, "*")))) &&
		(connector == "" || strings.EqualFold(connector, r.Connector)) &&
		(len(q.State) == 0 || slices.Contains(q.State, r.State))
}

func queueNumbers(rows []trackapi.Queue, name string, value queueValue) data.Frames {
	frames := data.Frames{}
	for _, r := range rows {
		f := data.NewField(name, data.Labels{"queue": r.Name, "connector": r.Connector}, []float64{value.of(r)})
		f.Config = &data.FieldConfig{Unit: value.unit, DisplayNameFromDS: r.Name}
		frames = append(frames, newFrame(name, data.FrameTypeNumericMulti, version01, "", f))
	}
	if len(frames) == 0 {
		frames = append(frames, newFrame(name, data.FrameTypeNumericMulti, version01, ""))
	}
	return frames
}

func (d *Datasource) queueTable(rows []trackapi.Queue) *data.Frame {
	type queue = trackapi.Queue
	return newTable(
		"queues",
		column(rows, "queue", "Next hop", func(r *queue) string { return r.Name }, filterable, width(220),
			link(d.explore("Messages waiting for it", map[string]string{"queryType": "messages", "queue": "${__value.raw}", "disposition": "queued,deferred,held"}))),
		column(rows, "connector", "Connector", func(r *queue) string { return r.Connector }, filterable, width(130)),
		column(rows, "state", "State", func(r *queue) string { return r.State }, filterable, width(105), coloured(stateColours)),
		column(rows, "messages", "Messages", func(r *queue) int64 { return int64(r.Messages) }, unit("short"), width(95)),
		column(rows, "bytes", "Size", func(r *queue) int64 { return r.Bytes }, unit("bytes"), width(95)),
		column(rows, "oldest_age_seconds", "Oldest", func(r *queue) float64 { return r.OldestAge }, unit("s"), thresholds(900, 3600), width(95)),
		column(rows, "due_lag_seconds", "Due lag", func(r *queue) float64 { return r.DueLag }, unit("s"), thresholds(10, 60), width(90)),
		column(rows, "queued", "Queued", func(r *queue) int64 { return int64(r.Queued) }, unit("short"), width(85)),
		column(rows, "active", "Active", func(r *queue) int64 { return int64(r.Active) }, unit("short"), width(80)),
		column(rows, "deferred", "Deferred", func(r *queue) int64 { return int64(r.Deferred) }, unit("short"), width(90)),
		column(rows, "held", "Held", func(r *queue) int64 { return int64(r.Held) }, unit("short"), width(75)),
		column(rows, "in_per_minute", "In / min", func(r *queue) float64 { return r.InRate }, unit("short"), width(90)),
		column(rows, "out_per_minute", "Out / min", func(r *queue) float64 { return r.OutRate }, unit("short"), width(90)),
		column(rows, "velocity", "Velocity", func(r *queue) float64 { return r.Velocity }, unit("short"), width(90)),
		column(rows, "next_retry", "Next retry", func(r *queue) *time.Time { return ifTime(r.Next) }, width(175)),
		column(rows, "last_class", "Last class", func(r *queue) string { return r.LastClass }, filterable, width(120)),
		column(rows, "last_error", "Last error", func(r *queue) string { return r.LastError }, width(330)),
		column(rows, "last_explanation", "What it means", func(r *queue) string { return r.LastMeans }, width(330)),
		column(rows, "last_at", "Last attempt", func(r *queue) *time.Time { return ifTime(r.LastAt) }, width(175)),
		column(rows, "held_by", "Held by", func(r *queue) string { return r.HeldBy }, width(110)),
		column(rows, "held_until", "Held until", func(r *queue) *time.Time { return ifTime(r.HeldUntil) }, width(175)),
	)
}
