package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/data"

	"waybill/logtrack/trackapi"
)

// handler answers one query.
type handler func(context.Context, *Datasource, backend.DataQuery) (data.Frames, error)

// queryTypes is the table of query types. Its twin is in src/queries.ts.
var queryTypes = map[string]handler{
	"messages":  decoded(messages),
	"timeline":  decoded(timeline),
	"traceql":   decoded(exemplar), // what Grafana sends when an exemplar is followed
	"aggregate": decoded(aggregate),
	"queues":    decoded(queues),
	"events":    decoded(events),
}

func queryTypeNames() string {
	return strings.Join(slices.Sorted(maps.Keys(queryTypes)), ", ")
}

// decoded makes a handler of a function that takes the query in its own type.
func decoded[Q any](f func(context.Context, *Datasource, Q, backend.DataQuery) (data.Frames, error)) handler {
	return func(ctx context.Context, d *Datasource, in backend.DataQuery) (data.Frames, error) {
		var q Q
		if err := json.Unmarshal(in.JSON, &q); err != nil {
			return nil, badQuery("the query cannot be read: %v", err)
		}
		return f(ctx, d, q, in)
	}
}

// Filter is the part of a query that selects messages or facts. Its keys are
// the parameters of the API; the empty string and "*" select all.
type Filter struct {
	Q           string `json:"q"`
	Sender      string `json:"sender"`
	Recipient   string `json:"recipient"`
	Domain      string `json:"domain"`
	MessageID   string `json:"message_id"`
	QueueID     string `json:"queue_id"`
	ClientIP    string `json:"client_ip"`
	AuthUser    string `json:"auth_user"`
	Connector   string `json:"connector"`
	RemoteHost  string `json:"remote_host"`
	SessionID   string `json:"session_id"`
	Queue       string `json:"queue"`
	Provider    string `json:"provider"`
	Disposition words  `json:"disposition"`
	Class       string `json:"class"`
	Code        string `json:"code"`
	Event       words  `json:"event"`
	MinLatency  string `json:"min_latency"`
	MaxLatency  string `json:"max_latency"`
	MinSize     string `json:"min_size"`
	MaxSize     string `json:"max_size"`
	Subject     string `json:"subject"`
	Reason      string `json:"reason"`
	Node        string `json:"node"`
	Source      string `json:"source"`
	ExternalID  string `json:"external_id"`
}

// query makes the API's query of the filter and a time range.
func (f Filter) query(span backend.TimeRange) (trackapi.Query, error) {
	q := trackapi.Query{
		From: span.From.UTC(), To: span.To.UTC(),
		Q: term(f.Q), Sender: term(f.Sender), Recipient: term(f.Recipient), Domain: term(f.Domain),
		MessageID: term(f.MessageID), QueueID: term(f.QueueID), ClientIP: term(f.ClientIP), AuthUser: term(f.AuthUser),
		Connector: term(f.Connector), RemoteHost: term(f.RemoteHost),
		SessionID: term(f.SessionID), Queue: term(f.Queue), Provider: term(f.Provider), Disposition: f.Disposition.String(),
		Class: term(f.Class), Code: term(f.Code), Event: f.Event.String(),
		MaxLatency: term(f.MaxLatency), MinSize: term(f.MinSize), MaxSize: term(f.MaxSize), Subject: term(f.Subject),
		Reason: term(f.Reason), Node: term(f.Node), Source: term(f.Source), ExternalID: term(f.ExternalID),
	}
	if s := term(f.MinLatency); s != "" {
		d, err := trackapi.ParseDuration(s)
		if err != nil {
			return q, badQuery("the least latency %q is not a duration such as 90s, 1h or 2d", s)
		}
		q.MinLatency = d
	}
	return q, nil
}

func term(s string) string {
	if s = strings.TrimSpace(s); s == "*" {
		return ""
	}
	return s
}

// words are several words: a string with commas, or a list of strings.
type words []string

// UnmarshalJSON reads either form.
func (w *words) UnmarshalJSON(b []byte) error {
	*w = nil
	var list []string
	if b = bytes.TrimSpace(b); len(b) > 0 && b[0] == '[' {
		if err := json.Unmarshal(b, &list); err != nil {
			return err
		}
	} else {
		var s string
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		list = strings.Split(s, ",")
	}
	for _, s := range list {
		if s = term(s); s != "" {
			*w = append(*w, s)
		}
	}
	return nil
}

// String gives the words with commas between them.
func (w words) String() string { return strings.Join(w, ",") }

// number is a count: a number, or a string with one, as a variable gives it.
type number int

// UnmarshalJSON reads either form; the empty string is zero.
func (n *number) UnmarshalJSON(b []byte) error {
	s := strings.Trim(string(b), `"`)
	if s == "" || s == "null" {
		*n = 0
		return nil
	}
	i, err := strconv.Atoi(s)
	if err != nil || i < 0 {
		return fmt.Errorf("%.40q is not a count", s)
	}
	*n = number(i)
	return nil
}

// rows is how many rows a query with this limit may have.
func (n number) rows() int {
	switch {
	case n == 0:
		return defaultRows
	case n > maxRows:
		return maxRows
	}
	return int(n)
}

// steps are the widths of time that a series is cut into when the query leaves it to us.
var steps = []time.Duration{
	time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 15 * time.Second, 30 * time.Second,
	time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute, 30 * time.Minute,
	time.Hour, 2 * time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour,
}

// stepOf reads the step of a query: "total" and "0" are zero, one value for the
// whole range; "auto" and "" follow the panel's width.
func stepOf(s string, in backend.DataQuery) (time.Duration, error) {
	span := in.TimeRange.Duration()
	least := span / maxPoints
	switch s = strings.TrimSpace(s); s {
	case "total", "0", "0s":
		return 0, nil
	case "", "auto":
		want := in.Interval
		if in.MaxDataPoints > 0 {
			want = max(want, span/time.Duration(in.MaxDataPoints))
		}
		return roundUp(max(want, least)), nil
	}
	d, err := trackapi.ParseDuration(s)
	if err != nil || d < time.Second {
		return 0, badQuery("the step %q is not a duration of a second or more such as 5m, nor \"auto\" or \"total\"", s)
	}
	if d < least {
		return 0, badQuery("a step of %s gives more than %d points over %s; choose %s or more, or \"auto\"", s, maxPoints, span.Round(time.Second), roundUp(least))
	}
	return d, nil
}

func roundUp(d time.Duration) time.Duration {
	if i := slices.IndexFunc(steps, func(s time.Duration) bool { return s >= d }); i >= 0 {
		return steps[i]
	}
	const day = 24 * time.Hour
	return (d + day - 1) / day * day
}
