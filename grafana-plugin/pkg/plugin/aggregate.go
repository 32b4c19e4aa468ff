package plugin

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/data"

	"waybill/logtrack/trackapi"
)

// aggregateQuery asks for numbers over facts: over time, or one for each group.
type aggregateQuery struct {
	Filter
	Metric words  `json:"metric"` // one, or several latencies
	By     words  `json:"by"`
	Step   string `json:"step"` // "auto" (the default), "total", or a duration
	Top    number `json:"top"`
	Legend string `json:"legend"` // such as "{{recipient_domain}}"; empty: the values of the labels
	View   string `json:"view"`   // "series" (the default) or, for totals, "table"
}

// units are Grafana's words for the units of the API.
var units = map[string]string{"facts": "short", "per_second": "cps", "bytes": "bytes", "seconds": "s"}

func aggregate(ctx context.Context, d *Datasource, q aggregateQuery, in backend.DataQuery) (data.Frames, error) {
	find, err := q.query(in.TimeRange)
	if err != nil {
		return nil, err
	}
	step, err := stepOf(q.Step, in)
	if err != nil {
		return nil, err
	}
	switch {
	case q.View != "" && q.View != "series" && q.View != "table":
		return nil, badQuery("the view is \"series\" or \"table\", not %q", q.View)
	case q.View == "table" && step != 0:
		return nil, badQuery("a table needs the step \"total\"")
	case len(q.By) > 2:
		return nil, badQuery("numbers can be grouped by at most two fields, not %d", len(q.By))
	}
	metrics := q.Metric
	if len(metrics) == 0 {
		metrics = words{"count"}
	}
	answer, err := d.api.Aggregate(ctx, trackapi.AggregateQuery{Query: find, Metric: strings.Join(metrics, ","), By: q.By, Step: step, Top: int(min(q.Top, trackapi.MaxTop))})
	if err != nil {
		return nil, err
	}
	if len(metrics) > 1 {
		tellApart(answer)
	}
	// The order of series decides their colours: make it the same each time.
	slices.SortStableFunc(answer.Series, func(a, b trackapi.Series) int {
		return strings.Compare(data.Labels(a.Labels).String(), data.Labels(b.Labels).String())
	})
	var frames data.Frames
	switch {
	case q.View == "table":
		frames = data.Frames{groupTable(answer, metrics, q.By)}
	case step == 0:
		frames = numbers(answer, metrics[0], q.Legend)
	default:
		frames = overTime(answer, metrics[0], q.Legend, step)
	}
	notice(frames[0], data.NoticeSeverityWarning, answer.Cut)
	if answer.Error > 0 {
		notice(frames[0], data.NoticeSeverityInfo, fmt.Sprintf("From histograms: values may be off by %.2g %%.", 100*answer.Error))
	}
	return frames, nil
}

// metricLabel is the label that tells the series of several metrics apart.
const metricLabel = "metric"

// tellApart gives series of several metrics a label: Grafana's alerting wants
// different labels for different numbers, and a legend can name them.
func tellApart(a *trackapi.Aggregate) {
	for i := range a.Series {
		s := &a.Series[i]
		labels := map[string]string{metricLabel: s.Metric}
		maps.Copy(labels, s.Labels)
		s.Labels = labels
	}
}

// metricOf is the metric of s, which says so only when it is one of several.
func metricOf(s trackapi.Series, only string) string {
	if s.Metric == "" {
		return only
	}
	return s.Metric
}

// overTime makes one frame per series, of type timeseries-multi.
func overTime(a *trackapi.Aggregate, metric, legend string, step time.Duration) data.Frames {
	frames := data.Frames{}
	for _, s := range a.Series {
		times, values := make([]time.Time, len(s.Points)), make([]*float64, len(s.Points))
		for i, p := range s.Points {
			times[i], values[i] = p.Time.UTC(), p.Value
		}
		at := data.NewField("time", nil, times)
		at.Config = &data.FieldConfig{Interval: float64(step.Milliseconds())}
		frames = append(frames, newFrame(metricOf(s, metric), data.FrameTypeTimeSeriesMulti, version01, data.VisTypeGraph, at, numberField(a, s, metric, legend, values)))
	}
	if len(frames) == 0 {
		frames = append(frames, newFrame(metric, data.FrameTypeTimeSeriesMulti, version01, data.VisTypeGraph))
	}
	return frames
}

// numbers makes one frame per group, of type numeric-multi.
func numbers(a *trackapi.Aggregate, metric, legend string) data.Frames {
	frames := data.Frames{}
	for _, s := range a.Series {
		frames = append(frames, newFrame(metricOf(s, metric), data.FrameTypeNumericMulti, version01, "", numberField(a, s, metric, legend, []*float64{total(s)})))
	}
	if len(frames) == 0 {
		frames = append(frames, newFrame(metric, data.FrameTypeNumericMulti, version01, ""))
	}
	return frames
}

func total(s trackapi.Series) *float64 {
	if len(s.Points) == 0 {
		return nil
	}
	return s.Points[0].Value
}

func numberField(a *trackapi.Aggregate, s trackapi.Series, metric, legend string, values []*float64) *data.Field {
	metric = metricOf(s, metric)
	f := data.NewField(metric, data.Labels(s.Labels), values)
	f.Config = &data.FieldConfig{Unit: units[a.Unit], DisplayNameFromDS: legendOf(legend, metric, s.Labels)}
	if colour, ok := colourOf(s.Labels); ok {
		f.Config.Color = map[string]any{"mode": "fixed", "fixedColor": colour}
	}
	return f
}

// colourOf gives a series of one disposition the colour that it has everywhere.
func colourOf(labels map[string]string) (string, bool) {
	word, ok := labels["disposition"]
	if !ok || len(labels) != 1 {
		return "", false
	}
	for _, pair := range dispositionColours {
		if pair[0] == word {
			return pair[1], true
		}
	}
	return "", false
}

// groupRow is a group with its number of each metric.
type groupRow struct {
	labels map[string]string
	values []*float64
}

// groupRows puts the series of each group side by side.
func groupRows(a *trackapi.Aggregate, metrics, by []string) (rows []groupRow) {
	at := map[string]int{}
	for _, s := range a.Series {
		var key strings.Builder
		for _, name := range by {
			fmt.Fprintf(&key, "%q", s.Labels[name])
		}
		i, known := at[key.String()]
		if !known {
			i = len(rows)
			at[key.String()] = i
			rows = append(rows, groupRow{s.Labels, make([]*float64, len(metrics))})
		}
		if k := slices.Index(metrics, metricOf(s, metrics[0])); k >= 0 {
			rows[i].values[k] = total(s)
		}
	}
	return rows
}

// groupTable makes one frame with a row per group, of type numeric-long, those
// with the greatest first metric first.
func groupTable(a *trackapi.Aggregate, metrics, by []string) *data.Frame {
	rows := groupRows(a, metrics, by)
	slices.SortStableFunc(rows, func(x, y groupRow) int {
		switch vx, vy := x.values[0], y.values[0]; {
		case vx == nil && vy == nil:
			return 0
		case vx == nil || vy != nil && *vx < *vy:
			return 1
		case vy == nil || *vx > *vy:
			return -1
		}
		return 0
	})
	frame := newFrame(metrics[0], data.FrameTypeNumericLong, version01, data.VisTypeTable)
	for _, name := range by {
		options := []func(*data.FieldConfig){filterable}
		switch name {
		case "disposition":
			options = append(options, coloured(dispositionColours))
		}
		frame.Fields = append(frame.Fields, column(rows, name, strings.ReplaceAll(title(name), "_", " "), func(r *groupRow) string { return r.labels[name] }, options...))
	}
	for k, metric := range metrics {
		frame.Fields = append(frame.Fields, column(rows, metric, strings.ReplaceAll(title(metric), "_", " "), func(r *groupRow) *float64 { return r.values[k] }, unit(units[a.Unit])))
	}
	return frame
}

func title(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

var placeholder = regexp.MustCompile(`\{\{\s*([\w.]+)\s*\}\}`)

// legendOf names a series: by the template, else by the values of its labels and
// its metric, as far as they tell it from others.
func legendOf(template, metric string, labels map[string]string) string {
	if template != "" {
		return placeholder.ReplaceAllStringFunc(template, func(p string) string {
			return labels[placeholder.FindStringSubmatch(p)[1]]
		})
	}
	metric = strings.ReplaceAll(metric, "_", " ")
	var values []string
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		value := labels[name]
		switch {
		case name == metricLabel:
			continue
		case value == "":
			value = fmt.Sprintf("no %s", strings.ReplaceAll(name, "_", " "))
		}
		values = append(values, value)
	}
	if _, several := labels[metricLabel]; several || len(values) == 0 {
		values = append(values, metric)
	}
	return strings.Join(values, ", ")
}
