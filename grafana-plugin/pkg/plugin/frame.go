package plugin

import (
	"encoding/json"
	"math"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/data"
)

// Versions of the frame types that this plugin writes; see Grafana's data plane contract.
var (
	version00 = data.FrameTypeVersion{0, 0}
	version01 = data.FrameTypeVersion{0, 1}
)

// newFrame makes a frame that says what it is, whether or not it will have rows.
func newFrame(name string, typ data.FrameType, version data.FrameTypeVersion, vis data.VisType, fields ...*data.Field) *data.Frame {
	f := data.NewFrame(name, fields...)
	f.Meta = &data.FrameMeta{Type: typ, TypeVersion: version, PreferredVisualization: vis}
	return f
}

func newTable(name string, fields ...*data.Field) *data.Frame {
	return newFrame(name, data.FrameTypeTable, version00, data.VisTypeTable, fields...)
}

// notice tells the reader of a panel something about its data.
func notice(f *data.Frame, severity data.NoticeSeverity, text string) {
	if text != "" {
		f.Meta.Notices = append(f.Meta.Notices, data.Notice{Severity: severity, Text: text})
	}
}

// column makes a field of a table: one value of each row.
func column[R, T any](rows []R, name, title string, value func(*R) T, options ...func(*data.FieldConfig)) *data.Field {
	values := make([]T, len(rows))
	for i := range rows {
		values[i] = value(&rows[i])
	}
	f := data.NewField(name, nil, values)
	f.Config = &data.FieldConfig{DisplayNameFromDS: title}
	for _, option := range options {
		option(f.Config)
	}
	return f
}

// unit names one of Grafana's units, such as "s" or "bytes".
func unit(u string) func(*data.FieldConfig) {
	return func(c *data.FieldConfig) { c.Unit = u }
}

// width is how wide a table shows the column, in pixels.
func width(px int) func(*data.FieldConfig) {
	return func(c *data.FieldConfig) { custom(c, "width", px) }
}

func custom(c *data.FieldConfig, key string, value any) {
	if c.Custom == nil {
		c.Custom = map[string]any{}
	}
	c.Custom[key] = value
}

// filterable lets a click on a value of the column filter by it.
func filterable(c *data.FieldConfig) { c.SetFilterable(true) }

// hidden keeps a column in the data and out of sight.
func hidden(c *data.FieldConfig) { custom(c, "hidden", true) }

func link(l data.DataLink) func(*data.FieldConfig) {
	return func(c *data.FieldConfig) { c.Links = append(c.Links, l) }
}

// thresholds colours the text of a cell from the values given on.
func thresholds(orange, red float64) func(*data.FieldConfig) {
	return func(c *data.FieldConfig) {
		c.Thresholds = &data.ThresholdsConfig{Mode: data.ThresholdsModeAbsolute, Steps: []data.Threshold{
			data.NewThreshold(math.Inf(-1), "text", ""),
			data.NewThreshold(orange, "orange", ""),
			data.NewThreshold(red, "red", ""),
		}}
		c.Color = map[string]any{"mode": "thresholds"}
		custom(c, "cellOptions", map[string]any{"type": "color-text"})
	}
}

// coloured colours the text of a cell by its word.
func coloured(colours [][2]string) func(*data.FieldConfig) {
	return func(c *data.FieldConfig) {
		words := data.ValueMapper{}
		for i, pair := range colours {
			words[pair[0]] = data.ValueMappingResult{Color: pair[1], Index: i}
		}
		c.Mappings = data.ValueMappings{words}
		custom(c, "cellOptions", map[string]any{"type": "color-text"})
	}
}

// The colours of dispositions are those of the bundled dashboards.
var dispositionColours = [][2]string{
	{"relayed", "green"},
	{"queued", "blue"},
	{"deferred", "orange"},
	{"held", "dark-yellow"},
	{"bounced", "red"},
	{"expired", "dark-red"},
	{"dropped", "purple"},
	{"moved", "text"},
}

var stateColours = [][2]string{
	{"ready", "green"},
	{"active", "green"},
	{"connecting", "blue"},
	{"retry", "orange"},
	{"held", "dark-yellow"},
}

// resultColours are those of checks; one that was not made has none.
var resultColours = [][2]string{{"pass", "green"}, {"fail", "red"}}

var levelColours = [][2]string{
	{"info", "text"},
	{"warning", "orange"},
	{"error", "red"},
}

// ifSet is v, or nil when v is zero, which a table shows as an empty cell.
func ifSet[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

func ifTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// jsonValue marshals what cannot fail to marshal.
func jsonValue(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		return json.RawMessage("null")
	}
	return b
}

// explore makes a link that runs another query of this data source.
func (d *Datasource) explore(title string, query map[string]string) data.DataLink {
	return data.DataLink{Title: title, Internal: &data.InternalDataLink{Query: query, DatasourceUID: d.uid, DatasourceName: d.name}}
}
