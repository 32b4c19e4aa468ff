package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	tea "github.com/charmbracelet/bubbletea"
	"github.com/spf13/cobra"

	"waybill/logtrack/trackapi"
)

func queueTopCmd(e *env) *cobra.Command {
	var every time.Duration
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Next hops, live",
		Long: `Shows the next hops as they are, like top does processes. Keys: o m l i u e sort by
oldest, messages, lag, in, out, error; r reverses; / filters by a part of the name,
the connector, the state or the error, and Esc ends that; space pauses; q ends.`,
		Example: "  waybill queue top\n  waybill queue top --every 5s",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < 100*time.Millisecond {
				return usagef("--every %v: less than 100ms", every)
			}
			if _, ok := terminalOf(e.out); !ok {
				return usagef("queue top needs a terminal; waybill queue list is for pipes")
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			first, err := c.Queues(cmd.Context())
			if err != nil {
				return err
			}
			m := &top{env: e, ctx: cmd.Context(), client: c, every: every, answer: first, at: time.Now(), sort: 'o', width: 100, height: 30}
			_, err = tea.NewProgram(m, tea.WithAltScreen(), tea.WithContext(cmd.Context()), tea.WithInput(e.in), tea.WithOutput(e.out)).Run()
			return err
		},
	}
	cmd.Flags().DurationVar(&every, "every", time.Second, "`INTERVAL` between two looks")
	return cmd
}

// top is the live view.
type top struct {
	env           *env
	ctx           context.Context //nolint:containedctx // bubbletea's commands take none
	client        *trackapi.Client
	every         time.Duration
	width, height int

	answer  *trackapi.Queues
	at      time.Time // of the answer
	err     error     // of the last look
	sort    rune
	reverse bool
	paused  bool
	typing  bool // into filter
	filter  string
	first   int // the row at the top
}

// sorts are the keys that sort, and what by; the largest first.
var sorts = map[rune]struct {
	name string
	less func(a, b *trackapi.Queue) int
}{
	'o': {"oldest", func(a, b *trackapi.Queue) int { return cmp.Compare(b.OldestAge, a.OldestAge) }},
	'm': {"messages", func(a, b *trackapi.Queue) int { return cmp.Compare(b.Messages, a.Messages) }},
	'l': {"due lag", func(a, b *trackapi.Queue) int { return cmp.Compare(b.DueLag, a.DueLag) }},
	'i': {"in", func(a, b *trackapi.Queue) int { return cmp.Compare(b.InRate, a.InRate) }},
	'u': {"out", func(a, b *trackapi.Queue) int { return cmp.Compare(b.OutRate, a.OutRate) }},
	'e': {"last error", func(a, b *trackapi.Queue) int { return cmp.Compare(b.LastError, a.LastError) }},
}

type (
	looked struct {
		answer *trackapi.Queues
		err    error
	}
	tick struct{}
)

// Init begins to look.
func (m *top) Init() tea.Cmd { return m.wait() }

func (m *top) wait() tea.Cmd { return tea.Tick(m.every, func(time.Time) tea.Msg { return tick{} }) }

func (m *top) look() tea.Msg {
	answer, err := m.client.Queues(m.ctx)
	return looked{answer, err}
}

// Update takes keys, sizes and answers.
func (m *top) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tick:
		if m.paused {
			return m, m.wait()
		}
		return m, m.look
	case looked:
		if m.err = msg.err; msg.err == nil {
			m.answer, m.at = msg.answer, time.Now()
		}
		return m, m.wait()
	case tea.KeyMsg:
		if msg.Type == tea.KeyCtrlC {
			return m, tea.Quit
		}
		if m.typing {
			m.typed(msg)
			return m, nil
		}
		return m, m.pressed(msg)
	}
	return m, nil
}

// typed takes a key for the filter.
func (m *top) typed(k tea.KeyMsg) {
	switch k.Type {
	case tea.KeyEnter:
		m.typing = false
	case tea.KeyEsc:
		m.typing, m.filter = false, ""
	case tea.KeyBackspace:
		if _, n := utf8.DecodeLastRuneInString(m.filter); n > 0 {
			m.filter = m.filter[:len(m.filter)-n]
		}
	case tea.KeyRunes, tea.KeySpace:
		m.filter += string(k.Runes)
	default:
	}
	m.first = 0
}

// pressed takes a key.
func (m *top) pressed(k tea.KeyMsg) tea.Cmd {
	page := max(1, m.height-6)
	switch key := k.String(); key {
	case "q":
		return tea.Quit
	case "esc":
		m.filter = ""
	case "/":
		m.typing, m.filter = true, ""
	case "r":
		m.reverse = !m.reverse
	case " ":
		m.paused = !m.paused
	case "down", "j":
		m.first++
	case "up", "k":
		m.first--
	case "pgdown":
		m.first += page
	case "pgup":
		m.first -= page
	case "home":
		m.first = 0
	default:
		if r, n := utf8.DecodeRuneInString(key); n == len(key) {
			if _, ok := sorts[r]; ok {
				m.sort, m.first = r, 0
			}
		}
	}
	return nil
}

// rows are the next hops that the filter leaves, in order.
func (m *top) rows() []trackapi.Queue {
	var rows []trackapi.Queue
	part := strings.ToLower(m.filter)
	for _, q := range m.answer.Queues {
		if strings.Contains(strings.ToLower(strings.Join([]string{q.Name, q.Connector, q.State, q.LastError}, " ")), part) {
			rows = append(rows, q)
		}
	}
	by := sorts[m.sort].less
	slices.SortStableFunc(rows, func(a, b trackapi.Queue) int {
		order := cmp.Or(by(&a, &b), strings.Compare(a.Name, b.Name))
		if m.reverse {
			return -order
		}
		return order
	})
	return rows
}

// View draws everything.
func (m *top) View() string {
	rows := m.rows()
	var in, out float64
	held := 0
	for _, q := range m.answer.Queues {
		in, out, held = in+q.InRate, out+q.OutRate, held+q.Held
	}
	var b strings.Builder
	line := func(style, s string) {
		b.WriteString(m.env.paint(style, fit(s, max(m.width, 1))) + "\n")
	}
	state := "takes mail"
	if !m.answer.Accepts {
		state = "takes no mail: " + m.answer.Why
	}
	line("bold", fmt.Sprintf("waybill  %s  %s for %s, %d held  in %.0f/min  out %.0f/min  %s",
		m.at.Local().Format("15:04:05"), count(m.answer.Messages, "message"), count(len(m.answer.Queues), "next hop"), held, in, out, clean(state)))
	order := "by " + sorts[m.sort].name
	if m.reverse {
		order += ", reversed"
	}
	status := fmt.Sprintf("%s  %d shown", order, len(rows))
	if m.filter != "" || m.typing {
		status += "  filter: " + clean(m.filter)
		if m.typing {
			status += "_"
		}
	}
	if m.paused {
		status += "  PAUSED"
	}
	if m.err != nil {
		status += "  " + clean(m.err.Error())
	}
	line("", status)
	b.WriteByte('\n')
	page := max(1, m.height-6)
	m.first = max(0, min(m.first, len(rows)-page))
	t := newTable("NEXT HOP", "CONNECTOR", "STATE", "MESSAGES", "ACTIVE", "DEFERRED", "HELD", "OLDEST", "DUE LAG", "IN/MIN", "OUT/MIN", "NEXT", "LAST ERROR")
	t.flex, t.spare = []int{0, 1, 12}, []int{4, 1, 11, 5, 9, 10, 8}
	for _, q := range rows[m.first:min(len(rows), m.first+page)] {
		t.add(q.Name, q.Connector, q.State, fmt.Sprint(q.Messages), fmt.Sprint(q.Active), fmt.Sprint(q.Deferred), fmt.Sprint(q.Held),
			m.env.seconds(q.OldestAge), m.env.seconds(q.DueLag), fmt.Sprintf("%.0f", q.InRate), fmt.Sprintf("%.0f", q.OutRate), until(q.Next), q.LastError)
	}
	b.WriteString(t.text(m.env, m.width))
	b.WriteByte('\n')
	b.WriteString(m.env.paint("dim", fit("sort: o m l i u e   r reverse   / filter   space pause   q quit", max(m.width, 1))))
	return b.String()
}
