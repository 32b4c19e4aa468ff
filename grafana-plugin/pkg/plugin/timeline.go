package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/data"

	"waybill/logtrack/trackapi"
)

// timelineQuery shows the life of one message.
type timelineQuery struct {
	ID   string `json:"id"`   // queue ID, message UID, or Message-ID
	View string `json:"view"` // a word of views; empty: all that Explore can show side by side
}

// exemplarQuery is what Grafana sends when an exemplar is followed: the form is
// Tempo's, the value is the label of our histograms, a message UID.
type exemplarQuery struct {
	Query string `json:"query"`
}

type view func(ctx context.Context, d *Datasource, t *trackapi.Timeline) (data.Frames, error)

// views are the ways to look at one message.
var views = map[string]view{
	"": func(_ context.Context, d *Datasource, t *trackapi.Timeline) (data.Frames, error) {
		return data.Frames{d.factTable(t), traceFrame(t)}, nil
	},
	"facts": func(_ context.Context, d *Datasource, t *trackapi.Timeline) (data.Frames, error) {
		return data.Frames{d.factTable(t)}, nil
	},
	"logs": func(_ context.Context, d *Datasource, t *trackapi.Timeline) (data.Frames, error) {
		return data.Frames{d.factLog(t)}, nil
	},
	"trace": func(_ context.Context, _ *Datasource, t *trackapi.Timeline) (data.Frames, error) {
		return data.Frames{traceFrame(t)}, nil
	},
	"stages": func(_ context.Context, _ *Datasource, t *trackapi.Timeline) (data.Frames, error) {
		return data.Frames{stageTable(t)}, nil
	},
	"recipients": func(_ context.Context, d *Datasource, t *trackapi.Timeline) (data.Frames, error) {
		return data.Frames{d.messageTable(rowsOf([]trackapi.Message{t.Message}, true), true)}, nil
	},
	"attempts": func(_ context.Context, _ *Datasource, t *trackapi.Timeline) (data.Frames, error) {
		return data.Frames{attemptTable(t)}, nil
	},
	"checks": func(_ context.Context, _ *Datasource, t *trackapi.Timeline) (data.Frames, error) {
		return data.Frames{checkTable(t), changeTable(t)}, nil
	},
	"transcript": transcript,
}

func timeline(ctx context.Context, d *Datasource, q timelineQuery, in backend.DataQuery) (data.Frames, error) {
	show, ok := views[q.View]
	if !ok {
		return nil, badQuery("a timeline has no view %q; it has facts, logs, trace, stages, recipients, attempts, checks and transcript", q.View)
	}
	if strings.TrimSpace(q.ID) == "" { // a dashboard before a message is chosen: no data, and no error
		frame := newTable("timeline")
		notice(frame, data.NoticeSeverityInfo, "Which message? Enter its queue ID, its UID or its Message-ID.")
		return data.Frames{frame}, nil
	}
	t, err := d.find(ctx, q.ID, in.TimeRange)
	if err != nil {
		return nil, err
	}
	return show(ctx, d, t)
}

func exemplar(ctx context.Context, d *Datasource, q exemplarQuery, in backend.DataQuery) (data.Frames, error) {
	return timeline(ctx, d, timelineQuery{ID: q.Query}, in)
}

// find gets a message by whichever of its identifiers was given: the queue ID;
// else the UID, which stays the same over splits and moves; else the Message-ID
// of the header, for which the newest message in the time range is taken.
func (d *Datasource) find(ctx context.Context, id string, span backend.TimeRange) (*trackapi.Timeline, error) {
	id = strings.TrimSpace(id)
	search := trackapi.Query{From: span.From.UTC(), To: span.To.UTC(), Limit: 1}
	switch {
	case strings.Contains(id, "@"):
		search.MessageID = id
	case isUID(id):
		return d.findUID(ctx, id)
	default:
		t, err := d.api.Message(ctx, id)
		var problem *trackapi.Problem
		if errors.As(err, &problem) && problem.Status == http.StatusNotFound {
			return nil, &trackapi.Problem{Status: http.StatusNotFound, Title: "No message " + id, Detail: "it is unknown, or older than what the tracking store keeps"}
		}
		return t, err
	}
	found, err := d.api.Messages(ctx, search)
	if err != nil {
		return nil, err
	}
	if len(found.Messages) == 0 {
		return nil, &trackapi.Problem{Status: http.StatusNotFound, Title: "No message " + id, Detail: "there is none in the time range", Hint: "widen the time range"}
	}
	return d.api.Message(ctx, found.Messages[0].QueueID)
}

// uidWindow is how much later than its UID a message may be accepted: the time
// that the queue takes to store it. A minute is far beyond what clients wait for.
const uidWindow = time.Minute

// findUID gets the message with a UID. The API has no index of UIDs, and needs
// none: a UID is a UUIDv7, which begins with the millisecond in which it was
// made, just before the message was accepted. The messages accepted from then
// on are looked through, whatever the time range of the panel.
func (d *Datasource) findUID(ctx context.Context, id string) (*trackapi.Timeline, error) {
	ms, err := strconv.ParseInt(id[:8]+id[9:13], 16, 64)
	if err != nil {
		return nil, err
	}
	made := time.UnixMilli(ms).UTC()
	search := trackapi.Query{From: made.Add(-time.Second), To: made.Add(uidWindow), Sort: "time"}
	queueID := ""
	_, _, err = pages(maxRows, &search, func() (int, trackapi.Page, error) {
		found, err := d.api.Messages(ctx, search)
		if err != nil {
			return 0, trackapi.Page{}, err
		}
		for _, m := range found.Messages {
			if strings.EqualFold(m.UID, id) {
				queueID = m.QueueID
				return 0, trackapi.Page{}, nil // no more pages
			}
		}
		return len(found.Messages), found.Page, nil
	})
	if err != nil {
		return nil, err
	}
	if queueID == "" {
		return nil, &trackapi.Problem{Status: http.StatusNotFound, Title: "No message " + id, Detail: "no message accepted at " + made.Format(time.RFC3339) + " has this UID; it may be older than what the tracking store keeps"}
	}
	return d.api.Message(ctx, queueID)
}

// isUID tells whether id has the form of a UUID.
func isUID(id string) bool {
	if len(id) != 36 {
		return false
	}
	for i, c := range []byte(id) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (c == '-') || !dash && !strings.ContainsRune("0123456789abcdefABCDEF", rune(c)) {
			return false
		}
	}
	return true
}

// factTable shows the facts with their stages in words. Up to those, it is not
// wider than the 1,400 pixels that a dashboard has on a usual screen.
func (d *Datasource) factTable(t *trackapi.Timeline) *data.Frame {
	rows := t.Timeline
	type entry = trackapi.Entry
	frame := newTable(
		"timeline",
		column(rows, "time", "Time", func(e *entry) time.Time { return e.Time.UTC() }, width(195)),
		column(rows, "since", "Since accepted", func(e *entry) float64 { return max(0, e.Time.Sub(t.Message.Time).Seconds()) }, unit("s"), width(120)),
		column(rows, "event", "Fact", func(e *entry) string { return e.Event }, width(155)),
		column(rows, "summary", "What happened", func(e *entry) string { return e.Summary }, width(430)),
		column(rows, "took", "Took", func(e *entry) *float64 { return ifSet(took(e.Stages)) }, unit("s"), width(85)),
		column(rows, "stages", "Stages", func(e *entry) string { return stagesInWords(e.Stages) }, width(380)),
		column(rows, "level", "Level", func(e *entry) string { return e.Level }, width(80), coloured(levelColours)),
		column(rows, "attempt", "Attempt", func(e *entry) *int64 { return ifSet(int64(attemptOf(*e))) }, width(80)),
		column(rows, "record", "Record", func(e *entry) json.RawMessage { return e.Record }, width(140)),
	)
	for _, r := range t.Related {
		notice(frame, data.NoticeSeverityInfo, fmt.Sprintf("Related (%s): %s", strings.ReplaceAll(r.Kind, "_", " "), r.QueueID))
	}
	return frame
}

func (d *Datasource) factLog(t *trackapi.Timeline) *data.Frame {
	lines := make([]logLine, len(t.Timeline))
	for i, e := range t.Timeline {
		line, err := lineOf(e.Record)
		if err != nil { // a record of a later version: its summary still tells
			line = logLine{id: fmt.Sprintf("%s-%d", t.Message.QueueID, i), labels: map[string]string{"event": e.Event, "queue_id": t.Message.QueueID}}
		}
		line.at, line.body, line.severity = e.Time, e.Summary, e.Level
		lines[i] = line
	}
	return d.logFrame("facts", lines)
}

// stageTable shows where the time went, in order: made for bars.
func stageTable(t *trackapi.Timeline) *data.Frame {
	var rows []trackapi.Stage
	for _, e := range t.Timeline {
		for _, s := range e.Stages {
			if s.Attempt == 0 {
				s.Attempt = attemptOf(e)
			}
			rows = append(rows, s)
		}
	}
	type stage = trackapi.Stage
	return newTable(
		"stages",
		column(rows, "stage", "Stage", stageLabel, width(160)),
		column(rows, "seconds", "Took", func(s *stage) float64 { return s.Seconds }, unit("s"), width(110)),
		column(rows, "start", "Start", func(s *stage) time.Time { return s.Start.UTC() }, width(195)),
		column(rows, "attempt", "Attempt", func(s *stage) *int64 { return ifSet(int64(s.Attempt)) }, width(80)),
		column(rows, "name", "Name", func(s *stage) string { return s.Name }, hidden),
	)
}

// attemptTable shows each try to hand the message on.
func attemptTable(t *trackapi.Timeline) *data.Frame {
	rows := t.Attempts
	type attempt = trackapi.DeliveryAttempt
	return newTable(
		"attempts",
		column(rows, "start", "Start", func(a *attempt) time.Time { return a.Start.UTC() }, width(195)),
		column(rows, "attempt", "Attempt", func(a *attempt) int64 { return int64(a.Attempt) }, width(80)),
		column(rows, "disposition", "Disposition", func(a *attempt) string { return a.Disposition }, width(110), coloured(dispositionColours)),
		column(rows, "remote_host", "Next hop", func(a *attempt) string { return a.RemoteHost }, width(170)),
		column(rows, "reply", "Reply", func(a *attempt) string { return replyInWords(a.Code, a.Enhanced, a.Reply) }, width(290)),
		column(rows, "class", "Class", func(a *attempt) string { return a.Class }, width(100)),
		column(rows, "took", "Took", func(a *attempt) float64 { return max(0, a.End.Sub(a.Start).Seconds()) }, unit("s"), width(80)),
		column(rows, "stages", "Stages", func(a *attempt) string { return stagesInWords(a.Stages) }, width(420)),
		column(rows, "recipients", "Recipients", func(a *attempt) string { return strings.Join(a.Recipients, ", ") }, width(260)),
		column(rows, "tls", "TLS", func(a *attempt) string { return a.TLS }, width(200)),
		column(rows, "connector_out", "Connector", func(a *attempt) string { return a.Connector }, width(130)),
	)
}

// replyInWords is a reply as the next hop wrote it.
func replyInWords(code int, enhanced, text string) string {
	var words []string
	if code > 0 {
		words = append(words, strconv.Itoa(code))
	}
	for _, w := range []string{enhanced, text} {
		if w != "" {
			words = append(words, w)
		}
	}
	return strings.Join(words, " ")
}

// checkTable shows what was looked at, and what came of it.
func checkTable(t *trackapi.Timeline) *data.Frame {
	rows := t.Checks
	type check = trackapi.Check
	return newTable(
		"checks",
		column(rows, "time", "Time", func(c *check) time.Time { return c.Time.UTC() }, width(195)),
		column(rows, "check", "Check", func(c *check) string { return c.Name }, width(150)),
		column(rows, "result", "Result", func(c *check) string { return c.Result }, width(90), coloured(resultColours)),
		column(rows, "attempt", "Attempt", func(c *check) *int64 { return ifSet(int64(c.Attempt)) }, width(80)),
		column(rows, "detail", "What was found", func(c *check) string { return c.Detail }),
	)
}

// changeTable shows what the relay, or an operator, changed.
func changeTable(t *trackapi.Timeline) *data.Frame {
	rows := t.Changes
	type change = trackapi.Change
	return newTable(
		"changes",
		column(rows, "time", "Time", func(c *change) time.Time { return c.Time.UTC() }, width(195)),
		column(rows, "change", "Change", func(c *change) string { return c.Name }, width(150)),
		column(rows, "attempt", "Attempt", func(c *change) *int64 { return ifSet(int64(c.Attempt)) }, width(80)),
		column(rows, "actor", "By", func(c *change) string { return c.Actor }, width(120)),
		column(rows, "detail", "What was changed", func(c *change) string { return c.Detail }),
	)
}

func stageLabel(s *trackapi.Stage) string {
	if s.Attempt == 0 {
		return s.Name
	}
	return fmt.Sprintf("%s #%d", s.Name, s.Attempt)
}

func stagesInWords(stages []trackapi.Stage) string {
	words := make([]string, len(stages))
	for i, s := range stages {
		words[i] = s.Name + " " + shortDuration(s.Seconds)
	}
	return strings.Join(words, " · ")
}

// shortDuration rounds to what a person compares.
func shortDuration(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d >= time.Minute:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(time.Microsecond).String()
}

// waits are the stages in which nothing was done: the schedule's pause and our lag.
func waits(name string) bool { return name == "backoff" || name == "sched" }

// took is the time that the work of a fact took, without the waiting before it.
func took(stages []trackapi.Stage) float64 {
	var sum float64
	for _, s := range stages {
		if !waits(s.Name) {
			sum += s.Seconds
		}
	}
	return sum
}

// attemptOf is the number of the attempt that a fact tells of, or zero.
func attemptOf(e trackapi.Entry) int {
	for _, s := range e.Stages {
		if s.Attempt != 0 {
			return s.Attempt
		}
	}
	if e.Event != "attempt_finished" {
		return 0
	}
	var record struct {
		Attempt int `json:"attempt"`
	}
	if json.Unmarshal(e.Record, &record) != nil {
		return 0
	}
	return record.Attempt
}

// transcript shows the SMTP conversations that carried the message.
func transcript(ctx context.Context, d *Datasource, t *trackapi.Timeline) (data.Frames, error) {
	answer, err := d.api.Transcript(ctx, t.Message.QueueID)
	if err != nil {
		return nil, err
	}
	var lines []logLine
	for _, c := range answer.Conversations {
		for i, l := range c.Lines {
			who := map[string]string{"client": "C: ", "server": "S: "}[l.From] // a note is nobody's
			lines = append(lines, logLine{
				at:       c.Time.Add(time.Duration(l.At * float64(time.Second))),
				body:     who + l.Text,
				severity: replySeverity(l),
				id:       fmt.Sprintf("%s-%d", c.Session, i),
				labels:   map[string]string{"session_id": c.Session, "direction": c.Direction, "peer": c.Peer, "from": l.From, "queue_id": t.Message.QueueID},
			})
		}
	}
	frame := d.logFrame("transcript", lines)
	notice(frame, data.NoticeSeverityInfo, answer.Note)
	return data.Frames{frame}, nil
}

func replySeverity(l trackapi.TranscriptLine) string {
	switch {
	case l.From == "server" && strings.HasPrefix(l.Text, "5"):
		return "error"
	case l.From == "server" && strings.HasPrefix(l.Text, "4"):
		return "warning"
	}
	return "info"
}
