package main

import (
	"errors"
	"io"
	"strings"
	"testing"

	tea "github.com/charmbracelet/bubbletea"

	"waybill/logtrack/trackapi"
)

func keys(m *top, words ...string) {
	for _, w := range words {
		switch w {
		case "enter":
			m.Update(tea.KeyMsg{Type: tea.KeyEnter})
		case "esc":
			m.Update(tea.KeyMsg{Type: tea.KeyEsc})
		case "backspace":
			m.Update(tea.KeyMsg{Type: tea.KeyBackspace})
		default:
			m.Update(tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune(w)})
		}
	}
}

func TestTop(t *testing.T) {
	answer := &trackapi.Queues{Accepts: true, Messages: 6, Queues: []trackapi.Queue{
		{Name: "a.example", Connector: "out", State: "retry", Messages: 1, OldestAge: 90, LastError: "451 busy\x1b[2J"},
		{Name: "b.example", Connector: "out", State: "ready", Messages: 3, OldestAge: 10, InRate: 5, OutRate: 1},
		{Name: "c.example", Connector: "in", State: "held", Messages: 2, OldestAge: 50, DueLag: 3, OutRate: 9},
	}}
	for _, test := range []struct {
		name string
		keys []string
		want string // the first letters of the rows
	}{
		{"oldest first", nil, "acb"},
		{"by messages", []string{"m"}, "bca"},
		{"reversed", []string{"m", "r"}, "acb"},
		{"by lag", []string{"l"}, "cab"},
		{"by in", []string{"i"}, "bac"},
		{"by out", []string{"u"}, "cba"},
		{"by error", []string{"e"}, "abc"},
		{"a filter", []string{"/", "h", "e", "l", "d", "enter"}, "c"},
		{"a filter, corrected", []string{"/", "x", "backspace", "b", "."}, "b"},
		{"a filter, given up", []string{"/", "x", "esc"}, "acb"},
		{"keys that mean nothing", []string{"z", "ä"}, "acb"},
		{"beyond the end", []string{"j", "j", "j", "k"}, "acb"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := &top{env: &env{out: io.Discard, format: "table"}, answer: answer, sort: 'o', width: 100, height: 20}
			keys(m, test.keys...)
			got := ""
			for _, line := range strings.Split(m.View(), "\n")[4:] {
				if strings.Contains(line, ".example") {
					got += line[:1]
				}
				if strings.Contains(line, "\x1b") {
					t.Errorf("a control character is shown: %q", line)
				}
			}
			if got != test.want {
				t.Errorf("rows %q, want %q", got, test.want)
			}
		})
	}
}

func TestTopKeepsTheLastAnswer(t *testing.T) {
	m := &top{env: &env{out: io.Discard, format: "table"}, answer: &trackapi.Queues{}, sort: 'o', width: 60, height: 4}
	m.Update(looked{answer: &trackapi.Queues{Messages: 7, Why: "full"}})
	m.Update(looked{err: errors.New("connection refused")})
	keys(m, " ")
	for _, want := range []string{"7 messages", "connection refused", "PAUSED"} {
		if !strings.Contains(m.View(), want) {
			t.Errorf("no %q in\n%s", want, m.View())
		}
	}
	m.Update(tea.WindowSizeMsg{Width: 20, Height: 3})
	for _, line := range strings.Split(m.View(), "\n")[:2] {
		if len([]rune(line)) > 20 {
			t.Errorf("a line of %d columns on a terminal of 20: %q", len([]rune(line)), line)
		}
	}
	if _, cmd := m.Update(tea.KeyMsg{Type: tea.KeyCtrlC}); cmd == nil {
		t.Error("Ctrl-C does not end it")
	}
}
