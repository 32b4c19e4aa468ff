package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// This file writes answers. The rules are: tables are for people, fit the
// terminal and never wrap; JSON is the API's own; nothing from a mail is
// written with its control characters.

// table is a list for people and spreadsheets.
type table struct {
	heads []string
	rows  [][]string
	flex  map[int]bool // columns that may be shortened to fit
}

func newTable(heads ...string) *table { return &table{heads: heads, flex: map[int]bool{}} }

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// render writes value as JSON or t as a table, whatever --output says.
// Elements of rows are written one a line by jsonl.
func render[T any](e *env, value any, rows []T, t *table) error {
	switch e.format {
	case "json":
		enc := json.NewEncoder(e.out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(value)
	case "jsonl":
		enc := json.NewEncoder(e.out)
		enc.SetEscapeHTML(false)
		for _, r := range rows {
			if err := enc.Encode(r); err != nil {
				return err
			}
		}
		return nil
	case "csv":
		w := csv.NewWriter(e.out)
		_ = w.Write(t.heads) // the error is kept and comes back from Error
		for _, r := range t.rows {
			_ = w.Write(r)
		}
		w.Flush()
		return w.Error()
	}
	return t.write(e)
}

func (t *table) write(e *env) error {
	width := make([]int, len(t.heads))
	for i, h := range t.heads {
		width[i] = utf8.RuneCountInString(h)
	}
	for _, r := range t.rows {
		for i, c := range r {
			r[i] = clean(c)
			width[i] = max(width[i], utf8.RuneCountInString(r[i]))
		}
	}
	t.shrink(width, e.columns())
	var b strings.Builder
	line := func(cells []string, style string) {
		for i, c := range cells {
			c = fit(c, width[i])
			pad := width[i] - utf8.RuneCountInString(c)
			if i == len(cells)-1 {
				pad = 0
			} else {
				pad += 2
			}
			if s := cellStyle(t.heads[i], c); style == "" && s != "" {
				b.WriteString(e.paint(s, c))
			} else {
				b.WriteString(e.paint(style, c))
			}
			b.WriteString(strings.Repeat(" ", pad))
		}
		b.WriteByte('\n')
	}
	line(t.heads, "dim")
	for _, r := range t.rows {
		line(r, "")
	}
	_, err := io.WriteString(e.out, b.String())
	return err
}

// shrink narrows flexible columns, the widest first, until the row fits.
func (t *table) shrink(width []int, columns int) {
	for {
		sum, widest := 2*(len(width)-1), -1
		for i, w := range width {
			sum += w
			if t.flex[i] && w > 12 && (widest < 0 || w > width[widest]) {
				widest = i
			}
		}
		if sum <= columns || widest < 0 {
			return
		}
		width[widest] = max(12, width[widest]-(sum-columns))
	}
}

func fit(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	r := []rune(s)
	return string(r[:n-1]) + "…"
}

// cellStyle colours what the eye looks for.
func cellStyle(head, cell string) string {
	switch head {
	case "STATE", "DISPOSITION", "LEVEL":
		switch cell {
		case "relayed", "ready", "ok", "info":
			return "green"
		case "deferred", "retry", "held", "queued", "warning", "active":
			return "yellow"
		case "bounced", "expired", "poison", "unroutable", "error", "dropped":
			return "red"
		}
	}
	return ""
}

func (e *env) paint(style, s string) string {
	code := map[string]string{"dim": "2", "bold": "1", "green": "32", "yellow": "33", "red": "31", "cyan": "36"}[style]
	if code == "" || e.noColor || !e.terminal() || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (e *env) terminal() bool {
	f, ok := e.out.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) //nolint:gosec // a descriptor fits an int
}

// columns is how wide a table may be: the terminal, $COLUMNS, or no limit in a pipe.
func (e *env) columns() int {
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 20 {
		return n
	}
	if f, ok := e.out.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 20 { //nolint:gosec // a descriptor fits an int
			return w
		}
	}
	return 1 << 20
}

// clean makes text from mail safe to show: no controls, no direction overrides.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029' || r == utf8.RuneError {
			return '·'
		}
		return r
	}, s)
}

// age is a duration for people: 340 ms, 12 s, 5 m, 3 h 20 m, 2 d 4 h.
func age(d time.Duration) string {
	switch {
	case d <= 0:
		return "0 s"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", max(0.1, float64(d.Microseconds())/1000))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d m", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d m", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%d d %d h", int(d.Hours())/24, int(d.Hours())%24)
}

func seconds(f float64) string { return age(time.Duration(f * float64(time.Second))) }

// size is octets for people.
func size(n int64) string {
	f, unit := float64(n), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if f < 1024 {
			break
		}
		f, unit = f/1024, u
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, unit)
}

// clock is a time for people: today's without the date.
func clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	t = t.Local()
	now := time.Now()
	if t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		return t.Format("15:04:05")
	}
	return t.Format("2006-01-02 15:04:05")
}

// until is how long until t, for people.
func until(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := time.Until(t)
	if d <= 0 {
		return "now"
	}
	return "in " + age(d)
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
