package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"
	"golang.org/x/term"
)

// This file writes answers. The rules are: tables are for people, fit the
// terminal and never wrap; CSV is for spreadsheets and has plain numbers and
// whole times; JSON is the API's own; nothing from a mail is written with its
// control characters.

// table is a list for people and spreadsheets.
type table struct {
	heads []string
	rows  [][]string
	flex  []int // columns that may be shortened to fit
	spare []int // columns that may be left out to fit, the first of them first
}

func newTable(heads ...string) *table { return &table{heads: heads} }

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
		return t.csv(e)
	}
	return t.write(e)
}

// csvHead turns a column's head into a name: IN/MIN into in_per_min.
var csvHead = strings.NewReplacer(" ", "_", "/", "_per_")

func (t *table) csv(e *env) error {
	w := csv.NewWriter(e.out)
	row := make([]string, len(t.heads))
	for i, h := range t.heads {
		row[i] = csvHead.Replace(strings.ToLower(h))
	}
	_ = w.Write(row) // the error is kept and comes back from Error
	for _, r := range t.rows {
		for i, c := range r {
			row[i] = clean(c)
			if computes(row[i]) {
				row[i] = "'" + row[i]
			}
		}
		_ = w.Write(row)
	}
	w.Flush()
	return w.Error()
}

// computes reports whether a spreadsheet would compute what a stranger wrote, for
// some also in full width. A negative number is none of that, nor is a dash.
func computes(cell string) bool {
	first, _ := utf8.DecodeRuneInString(cell)
	if first == '-' {
		_, err := strconv.ParseFloat(cell, 64)
		return err != nil && cell != "-"
	}
	return strings.ContainsRune("=+@＝＋－＠", first)
}

// gap is between columns.
const gap = 2

func (t *table) write(e *env) error {
	_, err := io.WriteString(e.out, t.text(e, e.columns()))
	return err
}

// text is the table as people see it, in so many columns.
func (t *table) text(e *env, columns int) string {
	width := make([]int, len(t.heads))
	for i, h := range t.heads {
		width[i] = screen.StringWidth(h)
	}
	for _, r := range t.rows {
		for i, c := range r {
			r[i] = clean(c)
			width[i] = max(width[i], screen.StringWidth(r[i]))
		}
	}
	t.shrink(width, columns)
	last := 0
	for i, w := range width {
		if w > 0 {
			last = i
		}
	}
	var b strings.Builder
	line := func(cells []string, style string) {
		for i, c := range cells {
			if width[i] == 0 {
				continue
			}
			c = fit(c, width[i])
			pad := width[i] - screen.StringWidth(c) + gap
			if i == last {
				pad = 0
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
	return b.String()
}

// narrow is how far a flexible column is shortened before others are left out;
// by taste: a short domain can still be read.
const narrow = 12

// shrink makes the row fit: it leaves out spare columns while flexible ones would
// get too narrow, then narrows the flexible ones, and if need be all.
func (t *table) shrink(width []int, columns int) {
	least := slices.Clone(width)
	for _, i := range t.flex {
		least[i] = min(least[i], narrow)
	}
	for _, i := range t.spare {
		if rowWidth(least) <= columns {
			break
		}
		least[i], width[i] = 0, 0
	}
	every := make([]int, len(width))
	for i := range every {
		every[i] = i
	}
	for over := rowWidth(width) - columns; over > 0; over = rowWidth(width) - columns {
		if i := widest(width, t.flex, narrow); i >= 0 {
			width[i] = max(narrow, width[i]-over)
		} else if i := widest(width, every, 4); i >= 0 {
			width[i]--
		} else {
			return
		}
	}
}

// rowWidth is how wide a row of such columns is; those of width 0 are left out.
func rowWidth(width []int) int {
	sum := -gap
	for _, w := range width {
		if w > 0 {
			sum += w + gap
		}
	}
	return sum
}

// widest is the widest of some columns that is wider than least, or -1.
func widest(width, of []int, least int) int {
	found := -1
	for _, i := range of {
		if width[i] > least && (found < 0 || width[i] > width[found]) {
			found = i
		}
	}
	return found
}

// screen knows how many columns of a terminal text takes: an ideograph and most
// emoji take two, a combining mark none. What is wide only in some old
// terminals (… and →) is narrow, whatever the locale says.
var screen runewidth.Condition

// fit shortens s to n columns.
func fit(s string, n int) string { return screen.Truncate(s, n, "…") }

// cellStyle colours what the eye looks for.
func cellStyle(head, cell string) string {
	switch head {
	case "STATE", "DISPOSITION", "LEVEL", "VERDICT":
		switch cell {
		case "relayed", "ready", "ok", "info":
			return "green"
		case "deferred", "retry", "held", "queued", "warning", "active", "unclear":
			return "yellow"
		case "bounced", "expired", "poison", "unroutable", "error", "dropped", "open", "leak":
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

// terminalOf is the descriptor of the terminal that a stream is, if it is one.
func terminalOf(stream any) (fd int, ok bool) {
	f, ok := stream.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	return int(f.Fd()), true
}

func (e *env) terminal() bool {
	_, ok := terminalOf(e.out)
	return ok
}

// columns is how wide a table may be: the terminal, $COLUMNS, or no limit in a pipe.
func (e *env) columns() int {
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 20 {
		return n
	}
	if fd, ok := terminalOf(e.out); ok {
		if w, _, err := term.GetSize(fd); err == nil && w > 20 {
			return w
		}
	}
	return 1 << 20
}

// lines is the height of the terminal, or 0 when there is none.
func (e *env) lines() int {
	if fd, ok := terminalOf(e.out); ok {
		if _, h, err := term.GetSize(fd); err == nil {
			return h
		}
	}
	return 0
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

// seconds is a duration for people, or its number for spreadsheets.
func (e *env) seconds(f float64) string {
	switch {
	case e.format == "csv":
		return strconv.FormatFloat(f, 'f', 3, 64)
	case f <= 0:
		return "-"
	}
	return seconds(f)
}

// size is octets for people, or their number for spreadsheets.
func (e *env) size(n int64) string {
	if e.format == "csv" {
		return strconv.FormatInt(n, 10)
	}
	return size(n)
}

// clock is a time of day for people, or a whole time for spreadsheets.
func (e *env) clock(t time.Time) string {
	switch {
	case e.format != "csv":
		return clock(t)
	case t.IsZero():
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// until is how long until t for people, or t for spreadsheets.
func (e *env) until(t time.Time) string {
	if e.format == "csv" {
		return e.clock(t)
	}
	return until(t)
}

// dash stands for nothing in a table for people.
func (e *env) dash(s string) string {
	if s == "" && e.format != "csv" {
		return "-"
	}
	return s
}

// addresses is the first of many for people, and all for spreadsheets.
func (e *env) addresses(list []string) string {
	switch {
	case len(list) > 1 && e.format != "csv":
		return fmt.Sprintf("%s +%d", list[0], len(list)-1)
	}
	return strings.Join(list, " ")
}

// count is a number of things: 1 message, 2 messages.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

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
