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
	Metric string `json:"metric"`
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
	metric := q.Metric
	if metric == "" {
		metric = "count"
	}
	answer, err := d.api.Aggregate(ctx, trackapi.AggregateQuery{Query: find, Metric: metric, By: q.By, Step: step, Top: int(min(q.Top, trackapi.MaxTop))})
	if err != nil {
		return nil, err
	}
	// The order of series decides their colours: make it the same each time.
	slices.SortStableFunc(answer.Series, func(a, b trackapi.Series) int {
		return strings.Compare(data.Labels(a.Labels).String(), data.Labels(b.Labels).String())
	})
	var frames data.Frames
	switch {
	case q.View == "table":
		frames = data.Frames{groupTable(answer, metric, q.By)}
	case step == 0:
		frames = numbers(answer, metric, q.Legend)
	default:
		frames = overTime(answer, metric, q.Legend, step)
	}
	notice(frames[0], data.NoticeSeverityWarning, answer.Cut)
	if answer.Error > 0 {
		notice(frames[0], data.NoticeSeverityInfo, fmt.Sprintf("From histograms: values may be off by %.2g %%.", 100*answer.Error))
	}
	return frames, nil
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
		frames = append(frames, newFrame(metric, data.FrameTypeTimeSeriesMulti, version01, data.VisTypeGraph, at, numberField(a, s, metric, legend, values)))
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
		frames = append(frames, newFrame(metric, data.FrameTypeNumericMulti, version01, "", numberField(a, s, metric, legend, []*float64{total(s)})))
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

// groupTable makes one frame with a row per group, of type numeric-long, the
// largest first.
func groupTable(a *trackapi.Aggregate, metric string, by []string) *data.Frame {
	rows := slices.Clone(a.Series)
	slices.SortStableFunc(rows, func(x, y trackapi.Series) int {
		switch vx, vy := total(x), total(y); {
		case vx == nil && vy == nil:
			return 0
		case vx == nil || vy != nil && *vx < *vy:
			return 1
		case vy == nil || *vx > *vy:
			return -1
		}
		return 0
	})
	frame := newFrame(metric, data.FrameTypeNumericLong, version01, data.VisTypeTable)
	for _, name := range by {
		options := []func(*data.FieldConfig){filterable}
		switch name {
		case "disposition":
			options = append(options, coloured(dispositionColours))
		}
		frame.Fields = append(frame.Fields, column(rows, name, strings.ReplaceAll(title(name), "_", " "), func(s *trackapi.Series) string { return s.Labels[name] }, options...))
	}
	frame.Fields = append(frame.Fields, column(rows, metric, strings.ReplaceAll(title(metric), "_", " "), func(s *trackapi.Series) *float64 { return total(*s) }, unit(units[a.Unit])))
	return frame
}

func title(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

var placeholder = regexp.MustCompile(`\{\{\s*([\w.]+)\s*\}\}`)

// legendOf names a series: by the template, else by the values of its labels,
// else by the metric.
func legendOf(template, metric string, labels map[string]string) string {
	if template != "" {
		return placeholder.ReplaceAllStringFunc(template, func(p string) string {
			return labels[placeholder.FindStringSubmatch(p)[1]]
		})
	}
	if len(labels) == 0 {
		return strings.ReplaceAll(metric, "_", " ")
	}
	var values []string
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		value := labels[name]
		if value == "" {
			value = fmt.Sprintf("no %s", strings.ReplaceAll(name, "_", " "))
		}
		values = append(values, value)
	}
	return strings.Join(values, ", ")
}
