package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Problem is one thing that is wrong with a configuration, in words for its
// author.
type Problem struct {
	File    string
	Line    int // counts from 1; 0 when the problem is no line's
	Column  int
	Path    string // such as receive_connectors[0].listen; empty for the file as a whole
	What    string // what is wrong
	Hint    string // what to do about it; may be empty
	Warning bool   // the configuration can be used all the same
}

// String is the problem in one line: FILE:LINE: path: what (hint).
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	b.WriteString(": ")
	if p.Warning {
		b.WriteString("warning: ")
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.What)
	if p.Hint != "" {
		b.WriteString(" (" + p.Hint + ")")
	}
	return b.String()
}

// Problems is all that is wrong with a configuration, in the order of the file.
type Problems []Problem //nolint:errname // most of what it holds is read, not returned as an error

// Error is one line for each problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Errors reports whether a problem is more than a warning.
func (ps Problems) Errors() bool {
	return slices.ContainsFunc(ps, func(p Problem) bool { return !p.Warning })
}

// Err is ps when a problem is more than a warning, else nil.
func (ps Problems) Err() error {
	if ps.Errors() {
		return ps
	}
	return nil
}

// position is where a key's value stands in the file.
type position struct{ line, column int }

// collector gathers problems, and knows where paths stand in the file.
type collector struct {
	file      string
	positions map[string]position
	list      Problems
	syntax    bool            // the file could not be read as YAML: further checks say nothing
	broken    map[string]bool // paths whose value could not be read; nil while reading
	hidden    []string        // pairs: a text from the environment, and how the file writes it
}

// begin ends the reading: what it found wrong is not to be said twice.
func (c *collector) begin() {
	c.broken = map[string]bool{}
	for _, p := range c.list {
		c.broken[p.Path] = true
	}
}

// said reports whether a check of path would only repeat that its value could
// not be read.
func (c *collector) said(path string) bool {
	for broken := range c.broken {
		if rest, ok := strings.CutPrefix(broken, path); ok && broken != "" && (rest == "" || rest[0] == '[' && !strings.Contains(rest, ".")) {
			return true
		}
	}
	for path = parent(path); path != ""; path = parent(path) {
		if c.broken[path] {
			return true
		}
	}
	return false
}

// hide keeps a text from the environment out of all messages: it may be a
// password in the wrong place.
func (c *collector) hide(text, raw string) {
	if len(text) < 4 || text == raw {
		return
	}
	quoted := strings.Trim(strconv.Quote(text), `"`)
	c.hidden = append(c.hidden, text, raw, quoted, raw, clip(text), raw, strings.Trim(strconv.Quote(clip(text)), `"`), raw)
}

func (c *collector) errorf(path, hint, format string, args ...any) {
	c.add(Problem{Path: path, What: fmt.Sprintf(format, args...), Hint: hint})
}

func (c *collector) warnf(path, hint, format string, args ...any) {
	c.add(Problem{Path: path, What: fmt.Sprintf(format, args...), Hint: hint, Warning: true})
}

// add completes p with its place: of its path, or of the nearest path above it
// that the file has.
func (c *collector) add(p Problem) {
	if p.Path != "" && c.said(p.Path) {
		return
	}
	if p.File == "" {
		p.File = c.file
	} else if p.Line == 0 {
		p.Line = 1 // of another file that this one names
	}
	p.What = strings.NewReplacer(c.hidden...).Replace(p.What)
	for path := p.Path; p.Line == 0 && path != ""; path = parent(path) {
		if at, ok := c.positions[path]; ok {
			p.Line, p.Column = at.line, at.column
		}
	}
	if len(c.list) < maxProblems && !slices.Contains(c.list, p) {
		c.list = append(c.list, p)
	}
}

// maxProblems bounds the list: nobody reads more, and a hostile file has many.
const maxProblems = 500

func parent(path string) string {
	return path[:max(strings.LastIndexAny(path, ".["), 0)]
}

func (c *collector) sorted() Problems {
	slices.SortStableFunc(c.list, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Path, b.Path), cmp.Compare(a.What, b.What))
	})
	return c.list
}

// plain is err without the name of the file, which the path says.
func plain(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Sprintf("%s: %v", pe.Path, pe.Err)
	}
	return err.Error()
}

// readable says why name cannot be read, with a hint, or nothing.
func readable(name string) (what, hint string) {
	f, err := os.Open(name) //nolint:gosec // a file that the configuration names
	switch {
	case err == nil:
		info, err := f.Stat()
		_ = f.Close()
		if err == nil && info.IsDir() {
			return name + " is a directory", ""
		}
		return "", ""
	case errors.Is(err, fs.ErrPermission):
		return plain(err), fmt.Sprintf("the file must be readable by user id %d", os.Geteuid())
	case errors.Is(err, fs.ErrNotExist):
		return plain(err), "file names are relative to the configuration file"
	}
	return plain(err), ""
}

// clip bounds text of the file in a message.
func clip(s string) string {
	if r := []rune(s); len(r) > 60 {
		return string(r[:60]) + "…"
	}
	return s
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return strings.TrimSuffix(line, "\r")
}
