package trackapi

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Limits of queries.
const (
	DefaultLimit = 50
	MaxLimit     = 1000
	MaxTop       = 100
	MaxSteps     = 11000 // points of one series
)

// Filters are the names of filters, as parameters and in the q language.
func Filters() []string {
	return []string{
		"sender", "recipient", "domain", "message_id", "queue_id", "client_ip", "auth_user", "connector", "remote_host",
		"session_id", "queue", "provider", "disposition", "class", "code", "event", "min_latency",
		"max_latency", "min_size", "max_size", "subject", "reason", "node", "source", "external_id",
	}
}

// Metrics are the words of [AggregateQuery.Metric].
func Metrics() []string {
	return []string{"count", "rate", "bytes", "latency_p50", "latency_p90", "latency_p95", "latency_p99", "latency_max"}
}

// Dimensions are the words of [AggregateQuery.By].
func Dimensions() []string {
	return []string{
		"sender_domain", "recipient_domain", "connector", "remote_host", "provider", "queue", "disposition", "class", "code", "event",
		"client_ip", "auth_user", "reason", "node",
	}
}

// ValueFields are the fields that GET /api/v1/values lists.
func ValueFields() []string {
	return []string{
		"sender", "sender_domain", "recipient", "recipient_domain", "connector", "remote_host", "client_ip", "auth_user",
		"provider", "queue", "disposition", "class", "code", "event", "reason", "node",
	}
}

// badParameter is the type of the problem of a wrong parameter.
const badParameter = "urn:waybill:problem:bad_parameter"

// BadParameter makes the problem of a wrong parameter.
func BadParameter(field, detail, hint string) *Problem {
	return &Problem{Type: badParameter, Title: "Bad parameter", Status: http.StatusBadRequest, Detail: detail, Field: field, Hint: hint}
}

// A Term is one filter: a field and the value that it must have, or must not.
type Term struct {
	Field string
	Value string
	Not   bool
}

// ParseFilter reads the q language: terms such as recipient:*@example.com,
// between white space, all of which must hold. A leading minus negates. A value
// with white space stands in double quotes, in which a backslash keeps the next
// character.
func ParseFilter(q string) ([]Term, *Problem) {
	var terms []Term
	for rest := strings.TrimSpace(q); rest != ""; rest = strings.TrimSpace(rest) {
		var t Term
		word := rest
		if strings.HasPrefix(rest, "-") {
			t.Not, rest = true, rest[1:]
		}
		end := strings.IndexAny(rest, ": \t\r\n\"")
		if end < 0 || rest[end] != ':' {
			word, _, _ = strings.Cut(word, " ")
			return nil, BadParameter("q", fmt.Sprintf("%q is not field:value", clip(word)), sayField(word))
		}
		t.Field, rest = rest[:end], rest[end+1:]
		if !slices.Contains(Filters(), t.Field) {
			return nil, BadParameter("q", fmt.Sprintf("unknown field %q", clip(t.Field)), didYouMean(t.Field, Filters()))
		}
		var p *Problem
		if t.Value, rest, p = scanValue(t.Field, rest); p != nil {
			return nil, p
		}
		terms = append(terms, t)
	}
	return terms, nil
}

func scanValue(field, s string) (value, rest string, p *Problem) {
	if !strings.HasPrefix(s, `"`) {
		end := strings.IndexAny(s, " \t\r\n")
		if end < 0 {
			end = len(s)
		}
		if end == 0 {
			return "", "", BadParameter("q", field+" has no value", "write "+field+":value, without a space after the colon")
		}
		return s[:end], s[end:], nil
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			if b.Len() == 0 {
				return "", "", BadParameter("q", field+" has an empty value", "leave the filter out")
			}
			return b.String(), s[i+1:], nil
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return "", "", BadParameter("q", field+" has a quote that is not closed", `end the value with "`)
}

// String writes a term so that [ParseFilter] reads it back.
func (t Term) String() string {
	v := t.Value
	if v == "" || strings.ContainsAny(v, " \t\r\n\"\\") {
		v = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v) + `"`
	}
	if t.Not {
		return "-" + t.Field + ":" + v
	}
	return t.Field + ":" + v
}

// Terms are all filters of q, those of Q among them.
func (q *Query) Terms() ([]Term, *Problem) {
	terms, p := ParseFilter(q.Q)
	if p != nil {
		return nil, p
	}
	for _, name := range Filters() {
		if v := q.text(name); v != nil && *v != "" {
			terms = append(terms, Term{Field: name, Value: *v})
		}
	}
	if q.MinLatency != 0 {
		terms = append(terms, Term{Field: "min_latency", Value: q.MinLatency.String()})
	}
	return terms, nil
}

// text is the field of a filter with a text value, or nil.
func (q *Query) text(name string) *string {
	switch name {
	case "sender":
		return &q.Sender
	case "recipient":
		return &q.Recipient
	case "domain":
		return &q.Domain
	case "message_id":
		return &q.MessageID
	case "queue_id":
		return &q.QueueID
	case "client_ip":
		return &q.ClientIP
	case "auth_user":
		return &q.AuthUser
	case "connector":
		return &q.Connector
	case "remote_host":
		return &q.RemoteHost
	case "session_id":
		return &q.SessionID
	case "queue":
		return &q.Queue
	case "provider":
		return &q.Provider
	case "disposition":
		return &q.Disposition
	case "class":
		return &q.Class
	case "code":
		return &q.Code
	case "event":
		return &q.Event
	case "max_latency":
		return &q.MaxLatency
	case "min_size":
		return &q.MinSize
	case "max_size":
		return &q.MaxSize
	case "subject":
		return &q.Subject
	case "reason":
		return &q.Reason
	case "node":
		return &q.Node
	case "source":
		return &q.Source
	case "external_id":
		return &q.ExternalID
	case "sort":
		return &q.Sort
	case "cursor":
		return &q.Cursor
	case "q":
		return &q.Q
	}
	return nil
}

var queryTexts = append(Filters(), "sort", "cursor", "q") // min_latency is not a text, and set apart

// Values writes q as the parameters of a request.
func (q Query) Values() url.Values {
	v := url.Values{}
	for _, name := range queryTexts {
		if s := q.text(name); s != nil && *s != "" {
			v.Set(name, *s)
		}
	}
	for name, t := range map[string]time.Time{"from": q.From, "to": q.To} {
		if !t.IsZero() {
			v.Set(name, t.UTC().Format(time.RFC3339Nano))
		}
	}
	if q.MinLatency != 0 {
		v.Set("min_latency", q.MinLatency.String())
	}
	if q.Limit != 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Explain {
		v.Set("explain", "true")
	}
	return v
}

// ParseQuery reads the parameters of a request. A parameter that it does not
// know, or that is given twice, is a problem.
func ParseQuery(v url.Values) (Query, *Problem) {
	var q Query
	p := eachParam(v, append(slices.Clone(queryTexts), "from", "to", "limit", "explain"), q.set)
	return q, p
}

func eachParam(v url.Values, known []string, set func(name, value string) *Problem) *Problem {
	names := make([]string, 0, len(v))
	for name := range v {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		switch {
		case !slices.Contains(known, name):
			return BadParameter(name, fmt.Sprintf("unknown parameter %q", clip(name)), didYouMean(name, known))
		case len(v[name]) > 1:
			return BadParameter(name, "given more than once", "several values stand in one parameter, separated by commas")
		case v.Get(name) == "":
			continue
		}
		if p := set(name, v.Get(name)); p != nil {
			return p
		}
	}
	return nil
}

func (q *Query) set(name, value string) *Problem {
	if s := q.text(name); s != nil {
		*s = value
		if name == "sort" && value != "time" && value != "-time" {
			return BadParameter("sort", fmt.Sprintf("unknown order %q", clip(value)), "use -time (newest first) or time")
		}
		return nil
	}
	var err error
	switch name {
	case "from":
		q.From, err = ParseTime(value, time.Now())
	case "to":
		q.To, err = ParseTime(value, time.Now())
	case "min_latency":
		q.MinLatency, err = ParseDuration(value)
	case "explain":
		q.Explain, err = strconv.ParseBool(value)
	case "limit":
		if q.Limit, err = strconv.Atoi(value); err != nil || q.Limit < 1 || q.Limit > MaxLimit {
			err = fmt.Errorf("%s is not a number between 1 and %d", value, MaxLimit)
		}
	}
	if err != nil {
		return BadParameter(name, err.Error(), hints[name])
	}
	return nil
}

var hints = map[string]string{
	"from":        "RFC 3339 such as 2026-01-31T12:00:00Z, or relative such as now-1h",
	"to":          "RFC 3339 such as 2026-01-31T12:00:00Z, or relative such as now-1h",
	"min_latency": "a duration such as 90s, 5m or 2h",
	"step":        "a duration such as 90s, 5m or 2h",
	"explain":     "true or false",
	"limit":       "a number of at most 1000; use the cursor for more",
	"top":         "a number of at most 100",
}

// Values writes q as the parameters of a request.
func (q AggregateQuery) Values() url.Values {
	v := q.Query.Values()
	if q.Metric != "" {
		v.Set("metric", q.Metric)
	}
	if len(q.By) > 0 {
		v.Set("by", strings.Join(q.By, ","))
	}
	if q.Step != 0 {
		v.Set("step", q.Step.String())
	}
	if q.Top != 0 {
		v.Set("top", strconv.Itoa(q.Top))
	}
	return v
}

// ParseAggregateQuery is [ParseQuery] for aggregates.
func ParseAggregateQuery(v url.Values) (AggregateQuery, *Problem) {
	var q AggregateQuery
	known := append(Filters(), "q", "from", "to", "metric", "by", "step", "top")
	p := eachParam(v, known, func(name, value string) *Problem {
		var err error
		switch name {
		case "metric":
			q.Metric = value
		case "by":
			q.By = strings.Split(value, ",")
		case "step":
			q.Step, err = ParseDuration(value)
		case "top":
			if q.Top, err = strconv.Atoi(value); err != nil {
				err = fmt.Errorf("%q is not a number", value)
			}
		default:
			return q.set(name, value)
		}
		if err != nil {
			return BadParameter(name, err.Error(), hints[name])
		}
		return nil
	})
	if p == nil {
		p = q.Check()
	}
	return q, p
}

// Metrics are the words of q.Metric.
func (q *AggregateQuery) Metrics() []string {
	if q.Metric == "" {
		return []string{"count"}
	}
	return strings.Split(q.Metric, ",")
}

func (q *AggregateQuery) checkMetrics() *Problem {
	list := q.Metrics()
	for i, m := range list {
		switch {
		case !slices.Contains(Metrics(), m):
			return BadParameter("metric", fmt.Sprintf("unknown metric %q", clip(m)), "one of "+strings.Join(Metrics(), ", ")+"; or several of latency, with commas")
		case len(list) > 1 && !strings.HasPrefix(m, "latency_"):
			return BadParameter("metric", fmt.Sprintf("%q stands alone", m), "several only of latency, such as latency_p50,latency_p99")
		case slices.Contains(list[:i], m):
			return BadParameter("metric", fmt.Sprintf("%q is there twice", m), "each once")
		}
	}
	return nil
}

// Check reports what is wrong with the words and numbers of q.
func (q *AggregateQuery) Check() *Problem {
	if p := q.checkMetrics(); p != nil {
		return p
	}
	for _, by := range q.By {
		if !slices.Contains(Dimensions(), by) {
			return BadParameter("by", fmt.Sprintf("unknown dimension %q", clip(by)), "at most two of "+strings.Join(Dimensions(), ", "))
		}
	}
	switch {
	case len(q.By) > 2 || len(q.By) == 2 && q.By[0] == q.By[1]:
		return BadParameter("by", "too many dimensions", "at most two of "+strings.Join(Dimensions(), ", "))
	case q.Step != 0 && q.Step < time.Second:
		return BadParameter("step", "shorter than a second", hints["step"])
	case q.Top < 0 || q.Top > MaxTop:
		return BadParameter("top", "out of range", hints["top"])
	}
	return nil
}

// ValuesQuery asks for the values of a field, for pickers.
type ValuesQuery struct {
	Field    string
	Prefix   string
	From, To time.Time
	Limit    int // default 50, at most 1000
}

// Values writes q as the parameters of a request.
func (q ValuesQuery) Values() url.Values {
	v := Query{From: q.From, To: q.To, Limit: q.Limit}.Values()
	for name, s := range map[string]string{"field": q.Field, "prefix": q.Prefix} {
		if s != "" {
			v.Set(name, s)
		}
	}
	return v
}

// ParseValuesQuery is [ParseQuery] for values.
func ParseValuesQuery(v url.Values) (ValuesQuery, *Problem) {
	var q ValuesQuery
	var common Query
	p := eachParam(v, []string{"field", "prefix", "from", "to", "limit"}, func(name, value string) *Problem {
		switch name {
		case "field":
			q.Field = value
		case "prefix":
			q.Prefix = value
		default:
			return common.set(name, value)
		}
		return nil
	})
	q.From, q.To, q.Limit = common.From, common.To, common.Limit
	if p == nil && !slices.Contains(ValueFields(), q.Field) {
		p = BadParameter("field", fmt.Sprintf("unknown field %q", clip(q.Field)), "one of "+strings.Join(ValueFields(), ", "))
	}
	return q, p
}

// ParseTime reads RFC 3339, or "now" with an offset such as "now-1h".
func ParseTime(s string, now time.Time) (time.Time, error) {
	if rest, ok := strings.CutPrefix(s, "now"); ok {
		if rest == "" {
			return now.UTC(), nil
		}
		d, err := ParseDuration(rest[1:])
		if err == nil && rest[0] == '-' {
			return now.Add(-d).UTC(), nil
		}
		if err == nil && (rest[0] == '+' || rest[0] == ' ') { // an unescaped plus sign is a space
			return now.Add(d).UTC(), nil
		}
		return time.Time{}, fmt.Errorf("bad time %q", clip(s))
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("bad time %q", clip(s))
	}
	return t.UTC(), nil
}

// ParseDuration reads durations such as 90s, 1h30m or 7d. They are never negative.
func ParseDuration(s string) (time.Duration, error) {
	bad := fmt.Errorf("bad duration %q", clip(s))
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return 0, bad
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, bad
	}
	return d, nil
}

// ParseSize reads sizes such as 1500, 10KiB or 2MB. They are never negative.
func ParseSize(s string) (int64, error) {
	num := strings.TrimRight(s, "BKMGikmgb")
	unit, ok := map[string]int64{
		"": 1, "b": 1, "k": 1 << 10, "kib": 1 << 10, "kb": 1e3, "m": 1 << 20, "mib": 1 << 20, "mb": 1e6, "g": 1 << 30, "gib": 1 << 30, "gb": 1e9,
	}[strings.ToLower(s[len(num):])]
	n, err := strconv.ParseFloat(num, 64)
	if err != nil || !ok || !(n >= 0) || n*float64(unit) > 1<<50 {
		return 0, fmt.Errorf("bad size %q", clip(s))
	}
	return int64(n * float64(unit)), nil
}

func clip(s string) string {
	if len(s) > 60 {
		return s[:60] + "…"
	}
	return s
}

// queueID is what queue IDs look like.
var queueID = regexp.MustCompile(`^[0-7][0-9A-HJKMNP-TV-Z]{25}$`)

// sayField says how a word without a field is to be written: what a person has at
// hand is an address, a domain, or a queue ID.
func sayField(word string) string {
	word = strings.TrimPrefix(word, "-")
	odd := func(r rune) bool {
		return !unicode.IsGraphic(r) || unicode.IsSpace(r) || strings.ContainsRune(`"\\`, r)
	}
	switch {
	case len(word) > 60 || strings.ContainsFunc(word, odd): // it would have to stand in quotes
	case queueID.MatchString(word):
		return "write queue_id:" + word
	case strings.HasPrefix(word, "@") && len(word) > 1:
		return fmt.Sprintf("write recipient:*%s or sender:*%s", word, word)
	case strings.Contains(word, "@"):
		return fmt.Sprintf("write recipient:%s or sender:%s", word, word)
	}
	return "write for example recipient:alice@example.com"
}

// didYouMean names the nearest of words, or all.
func didYouMean(s string, words []string) string {
	best, at := 3, ""
	for _, w := range words {
		if d := distance(s, w); d < best {
			best, at = d, w
		}
	}
	if at != "" {
		return "did you mean " + at + "?"
	}
	return "one of " + strings.Join(words, ", ")
}

// distance is the number of edits between two short words.
func distance(a, b string) int {
	if len(a) > 30 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diag, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diag+cost)
		}
	}
	return row[len(b)]
}
