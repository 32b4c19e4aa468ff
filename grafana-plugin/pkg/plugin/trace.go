package plugin

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/data"

	"waybill/logtrack/trackapi"
)

// span is one row of a trace frame: the message, an attempt, or a stage.
type span struct {
	id, parent string
	operation  string
	service    string
	start      time.Time
	seconds    float64
	failed     bool
	status     string
	tags       []keyValue
	logs       []spanLog
}

// keyValue and spanLog have the form that Grafana's trace view reads.
type keyValue struct {
	Key   string `json:"key"`
	Value any    `json:"value"`
}

type spanLog struct {
	Timestamp float64    `json:"timestamp"` // milliseconds
	Fields    []keyValue `json:"fields"`
}

// traceFrame draws the message as a trace: the message is the root, its
// reception and each attempt are spans under it, stages are spans under those,
// and facts without a duration are logs of the root. Times between attempts
// (backoff, and our own lag) are spans of the root, so that waiting is seen.
func traceFrame(t *trackapi.Timeline) *data.Frame {
	m := t.Message
	trace := m.UID
	if trace == "" {
		trace = m.QueueID
	}
	root := span{id: "message", operation: "message " + m.QueueID, service: "waybill", start: m.Time, failed: bad(m.Disposition), status: m.Disposition, tags: rootTags(m)}
	end := m.Time.Add(seconds(m.Latency))
	spans := []span{root}
	for i, e := range t.Timeline {
		if e.Time.After(end) {
			end = e.Time
		}
		if len(e.Stages) == 0 {
			spans[0].logs = append(spans[0].logs, spanLog{milliseconds(e.Time), []keyValue{{"event", e.Event}, {"message", e.Summary}}})
			continue
		}
		spans = append(spans, entrySpans(e, i)...)
	}
	for _, s := range spans[1:] {
		if s.start.Before(spans[0].start) {
			spans[0].start = s.start
		}
		if last := s.start.Add(seconds(s.seconds)); last.After(end) {
			end = last
		}
	}
	spans[0].seconds = end.Sub(spans[0].start).Seconds()
	return spansFrame(trace, spans)
}

func bad(disposition string) bool {
	return disposition == "bounced" || disposition == "expired" || disposition == "dropped"
}

func rootTags(m trackapi.Message) []keyValue {
	tags := []keyValue{
		{"queue_id", m.QueueID},
		{"sender", m.Sender},
		{"disposition", m.Disposition},
		{"size", m.Size},
		{"attempts", m.Attempts},
	}
	for i, r := range m.Recipients {
		tags = append(tags, keyValue{fmt.Sprintf("recipient.%d", i+1), fmt.Sprintf("%s (%s)", r.Address, r.Disposition)})
	}
	for _, tag := range []struct{ key, value string }{
		{"header_message_id", m.MessageID},
		{"connector_in", m.Connector},
		{"client_ip", m.ClientIP},
		{"auth_user", m.AuthUser},
		{"parent_queue_id", m.Parent},
	} {
		if tag.value != "" {
			tags = append(tags, keyValue{tag.key, tag.value})
		}
	}
	return tags
}

// entrySpans makes the spans of one fact that has stages.
func entrySpans(e trackapi.Entry, n int) []span {
	id := fmt.Sprintf("fact-%d", n)
	own := span{id: id, parent: "message", operation: e.Event, service: "waybill", status: e.Summary, failed: e.Level == "error"}
	own.tags = []keyValue{{"summary", e.Summary}, {"level", e.Level}}
	attempt := attemptOf(e)
	if attempt != 0 {
		own.operation = fmt.Sprintf("attempt %d", attempt)
		own.failed = own.failed || e.Level == "warning"
	}
	own.service, own.tags = hopOf(e.Record, own.service, own.tags)

	var waiting, under []span
	var end time.Time
	for j, s := range e.Stages {
		child := span{id: fmt.Sprintf("%s-%d", id, j), parent: id, operation: s.Name, service: own.service, start: s.Start, seconds: s.Seconds}
		if waits(s.Name) {
			child.parent, child.service = "message", "waybill"
			waiting = append(waiting, child)
			continue
		}
		if len(under) == 0 || s.Start.Before(own.start) {
			own.start = s.Start
		}
		if last := s.Start.Add(seconds(s.Seconds)); last.After(end) {
			end = last
		}
		under = append(under, child)
	}
	if len(under) == 0 { // only waited, as for a host that could not be tried
		own.start, end = e.Time, e.Time
	}
	own.seconds = end.Sub(own.start).Seconds()
	if own.failed && len(under) > 0 { // the conversation broke in its last stage
		under[len(under)-1].failed = true
	}
	return append(append(waiting, own), under...)
}

// hopOf names the service of an attempt, its next hop, and adds what was said.
func hopOf(record json.RawMessage, service string, tags []keyValue) (string, []keyValue) {
	var hop struct {
		Connector string `json:"connector_out"`
		Remote    string `json:"remote_name"`
		IP        string `json:"remote_ip"`
		Code      int    `json:"code"`
		Enhanced  string `json:"enhanced"`
		Reply     string `json:"reply"`
		Class     string `json:"class"`
		TLS       string `json:"tls_version"`

		Rule        string `json:"class_rule"`
		Permanence  string `json:"permanence"`
		Explanation string `json:"explanation"`

		Reused bool `json:"conn_reused"`
	}
	if json.Unmarshal(record, &hop) != nil {
		return service, tags
	}
	if hop.Remote != "" {
		service = hop.Remote
	}
	for _, tag := range []struct{ key, value string }{
		{"connector_out", hop.Connector},
		{"remote_name", hop.Remote},
		{"remote_ip", hop.IP},
		{"enhanced", hop.Enhanced},
		{"reply", hop.Reply},
		{"class", hop.Class},
		{"class_rule", hop.Rule},
		{"permanence", hop.Permanence},
		{"explanation", hop.Explanation},
		{"tls_version", hop.TLS},
	} {
		if tag.value != "" {
			tags = append(tags, keyValue{tag.key, tag.value})
		}
	}
	if hop.Code != 0 {
		tags = append(tags, keyValue{"code", hop.Code})
	}
	if hop.Reused {
		tags = append(tags, keyValue{"conn_reused", true})
	}
	return service, tags
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func milliseconds(t time.Time) float64 { return float64(t.UnixMicro()) / 1000 }

// Codes of a span's status in OpenTelemetry's protocol.
const (
	statusUnset = 0
	statusError = 2
)

// spansFrame writes the fields that Grafana's trace view asks for.
func spansFrame(trace string, spans []span) *data.Frame {
	f := newFrame(
		"trace", "", version00, data.VisTypeTrace,
		column(spans, "traceID", "", func(*span) string { return trace }),
		column(spans, "spanID", "", func(s *span) string { return s.id }),
		column(spans, "parentSpanID", "", func(s *span) *string { return ifSet(s.parent) }),
		column(spans, "operationName", "", func(s *span) string { return s.operation }),
		column(spans, "serviceName", "", func(s *span) string { return s.service }),
		column(spans, "serviceTags", "", func(s *span) json.RawMessage {
			return jsonValue([]keyValue{{"service.name", s.service}})
		}),
		column(spans, "startTime", "", func(s *span) float64 { return milliseconds(s.start) }),
		column(spans, "duration", "", func(s *span) float64 { return s.seconds * 1000 }),
		column(spans, "tags", "", func(s *span) json.RawMessage {
			tags := append([]keyValue{}, s.tags...)
			if s.failed {
				tags = append(tags, keyValue{"error", true})
			}
			return jsonValue(tags)
		}),
		column(spans, "logs", "", func(s *span) json.RawMessage { return jsonValue(append([]spanLog{}, s.logs...)) }),
		column(spans, "statusCode", "", func(s *span) int64 {
			if s.failed {
				return statusError
			}
			return statusUnset
		}),
		column(spans, "statusMessage", "", func(s *span) string { return s.status }),
	)
	for _, field := range f.Fields {
		field.Config = nil
	}
	return f
}
