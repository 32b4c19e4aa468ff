package tlsrpt

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// suffix and temporary are of our files' names, and maxFile bounds them.
const (
	suffix    = ".json"
	temporary = "tmp-"
	maxFile   = 256 << 20
)

// day is what happened on one UTC day, and after it the reports about it.
type day struct {
	Date    string    `json:"date"` // such as "2026-01-31"
	Closed  bool      `json:"closed,omitempty"`
	Tallies []*tally  `json:"tallies"` // on disk; tallies in memory
	Reports []*pledge `json:"reports,omitempty"`

	tallies map[key]*tally
	dirty   bool
}

// pledge is a report that a domain may get.
type pledge struct {
	Domain string      `json:"domain"`
	ID     string      `json:"id"`
	Due    time.Time   `json:"due"`
	Until  time.Time   `json:"until"`
	Asked  bool        `json:"asked,omitempty"` // the domain's record: To is as it says
	To     []*handover `json:"to,omitempty"`
	Tries  int         `json:"tries,omitempty"` // of asking
	Done   bool        `json:"done,omitempty"`
}

// handover is one way that a report goes.
type handover struct {
	Destination
	Tries int  `json:"tries,omitempty"`
	Done  bool `json:"done,omitempty"`
}

func newDay(date string) *day { return &day{Date: date, tallies: map[key]*tally{}, dirty: true} }

// load reads the days that are on disk. What cannot be read is removed: a report
// less.
func (r *Reporter) load() error {
	files, err := os.ReadDir(r.opts.Dir)
	if err != nil {
		return err
	}
	oldest := dateOf(time.Now().AddDate(0, 0, -maxDays))
	for _, f := range files {
		path := filepath.Join(r.opts.Dir, f.Name())
		date, ours := strings.CutSuffix(f.Name(), suffix)
		switch _, err := time.Parse(time.DateOnly, date); {
		case strings.HasPrefix(f.Name(), temporary):
			_ = os.Remove(path)
			continue
		case !ours || err != nil:
			continue // not ours
		}
		d := read(path, date)
		if d == nil || date < oldest || date > dateOf(time.Now()) {
			_ = os.Remove(path)
			continue
		}
		r.days[date] = d
	}
	return nil
}

func read(path, date string) *day {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil
	}
	text, err := os.ReadFile(path) //nolint:gosec // below our own data folder
	if err != nil {
		return nil
	}
	d := newDay(date)
	if json.Unmarshal(text, d) != nil || d.Date != date || len(d.Tallies) > maxTallies {
		return nil
	}
	for _, t := range d.Tallies {
		if t == nil || !validDomain(t.Domain) || t.Successful < 0 || slices.ContainsFunc(t.Failures, func(f failure) bool { return f.Count <= 0 }) {
			return nil
		}
		d.tallies[t.key()] = t
	}
	if slices.Contains(d.Reports, nil) || slices.ContainsFunc(d.Reports, func(p *pledge) bool { return !validDomain(p.Domain) || slices.Contains(p.To, nil) }) {
		return nil
	}
	d.Tallies, d.dirty = nil, false
	return d
}

// save writes the days that have changed, each all or nothing, and removes those
// that are done.
func (r *Reporter) save() error {
	type file struct {
		d    *day
		text []byte // nil: to be removed
	}
	var files []file
	var errs []error
	r.mu.Lock()
	for date, d := range r.days {
		switch {
		case d.over():
			delete(r.days, date)
			files = append(files, file{d: d})
		case d.dirty:
			for _, t := range d.tallies {
				d.Tallies = append(d.Tallies, t)
			}
			text, err := json.Marshal(d)
			d.Tallies, d.dirty = nil, false
			if err != nil {
				errs = append(errs, err)
				continue
			}
			files = append(files, file{d, text})
		}
	}
	r.mu.Unlock()
	for _, f := range files {
		path := filepath.Join(r.opts.Dir, f.d.Date+suffix)
		if f.text == nil {
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
			continue
		}
		if err := r.replace(path, f.text); err != nil {
			errs = append(errs, err)
			r.mu.Lock()
			f.d.dirty = true
			r.mu.Unlock()
		}
	}
	return errors.Join(errs...)
}

// over reports whether all is said about d.
func (d *day) over() bool {
	return d.Closed && !slices.ContainsFunc(d.Reports, func(p *pledge) bool { return !p.Done })
}

func (r *Reporter) replace(path string, text []byte) error {
	tmp, err := os.CreateTemp(r.opts.Dir, temporary)
	if err != nil {
		return err
	}
	_, err = tmp.Write(text)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}
