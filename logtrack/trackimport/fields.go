package trackimport

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strings"
)

// table reads logs that name their columns in a line "#Fields:".
type table struct {
	columns map[string]int
	values  []string
	kind    string // what "#Log-type:" says

	feed feeder
	csv  *csv.Reader
}

var errNoFields = errors.New("no #Fields line comes before it")

// directive reads a line that begins with "#", and reports whether it is one.
func (t *table) directive(s, separator string) bool {
	rest, ok := strings.CutPrefix(s, "#")
	if !ok {
		return false
	}
	name, value, _ := strings.Cut(rest, ":")
	value = strings.TrimSpace(value)
	switch strings.ToLower(name) {
	case "log-type":
		t.kind = strings.Clone(value)
	case "fields":
		t.columns = map[string]int{}
		for i, c := range strings.Split(value, separator) {
			c = strings.ToLower(strings.TrimSpace(c))
			if _, twice := t.columns[c]; !twice && c != "" {
				t.columns[strings.Clone(c)] = i
			}
		}
	}
	return true
}

// get is the value in a column; columns that the log does not have are empty.
func (t *table) get(column string) string {
	i, ok := t.columns[column]
	if !ok || i >= len(t.values) {
		return ""
	}
	return t.values[i]
}

// csvLine reads a line of comma-separated values (RFC 4180).
func (t *table) csvLine(s string) error {
	if t.columns == nil {
		return errNoFields
	}
	if t.csv == nil {
		t.csv = csv.NewReader(&t.feed)
		t.csv.FieldsPerRecord, t.csv.ReuseRecord = -1, true
	}
	t.feed.set(s)
	values, err := t.csv.Read()
	if err != nil {
		t.csv = nil // it may have kept a part of the line
		if pe, ok := errors.AsType[*csv.ParseError](err); ok {
			return fmt.Errorf("column %d: %w", pe.Column, pe.Err)
		}
		return fmt.Errorf("no values: %w", err)
	}
	if len(values) > len(t.columns)+2 {
		return fmt.Errorf("%d values for %d columns", len(values), len(t.columns))
	}
	t.values = values
	return nil
}

// feeder gives one line at a time: after each comes an end of file.
type feeder struct {
	line string
	left bool
}

func (f *feeder) set(s string) { f.line, f.left = s+"\n", true }

// Read gives what is left of the line.
func (f *feeder) Read(b []byte) (int, error) {
	if !f.left {
		return 0, io.EOF
	}
	n := copy(b, f.line)
	f.line = f.line[n:]
	f.left = f.line != ""
	return n, nil
}
