package demo

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"waybill/logtrack/trackapi"
)

// view draws what the API says, once a second. It asks nothing but the API, so
// that what it shows is what anybody can see.
type view struct {
	out    io.Writer
	api    *trackapi.Client
	began  time.Time
	live   bool // a terminal: redraw in place
	color  bool
	width  int
	height int      // rows of the terminal; 0: enough
	header []string // addresses and what to try
	lines  int      // drawn last time
}

// numbers is one look at the relay.
type numbers struct {
	queues *trackapi.Queues
	latest []trackapi.Message
	out    map[string]float64 // messages a second by disposition, over the last ten seconds
	p50    float64
	p99    float64
}

func (v *view) look(ctx context.Context) (numbers, error) {
	var n numbers
	var err error
	if n.queues, err = v.api.Queues(ctx); err != nil {
		return n, err
	}
	now := time.Now()
	recent := trackapi.Query{From: now.Add(-10 * time.Second), To: now}
	got, err := v.api.Messages(ctx, trackapi.Query{From: now.Add(-10 * time.Minute), To: now, Limit: 8})
	if err != nil {
		return n, err
	}
	n.latest = got.Messages
	n.out = map[string]float64{}
	agg, err := v.api.Aggregate(ctx, trackapi.AggregateQuery{Query: recent, Metric: "count", By: []string{"event"}, Top: 50})
	if err != nil {
		return n, err
	}
	for _, s := range agg.Series {
		if len(s.Points) > 0 && s.Points[0].Value != nil {
			n.out[s.Labels["event"]] = *s.Points[0].Value / 10
		}
	}
	recent.From = now.Add(-time.Minute)
	agg, err = v.api.Aggregate(ctx, trackapi.AggregateQuery{Query: recent, Metric: "latency_p50,latency_p99"})
	if err != nil {
		return n, err
	}
	for _, s := range agg.Series {
		if len(s.Points) > 0 && s.Points[0].Value != nil {
			switch s.Metric {
			case "latency_p50":
				n.p50 = *s.Points[0].Value
			case "latency_p99":
				n.p99 = *s.Points[0].Value
			}
		}
	}
	return n, nil
}

func (v *view) run(ctx context.Context) error {
	every := time.Second
	if !v.live {
		every = 5 * time.Second
		fmt.Fprintln(v.out, strings.Join(v.header, "\n"))
	}
	for {
		n, err := v.look(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("ask the demo's own API: %w", err)
		case v.live:
			v.draw(n)
		default:
			v.line(n)
		}
		if !pause(ctx, every) {
			return nil
		}
	}
}

// line is the view for a pipe or a log.
func (v *view) line(n numbers) {
	oldest := 0.0
	for _, q := range n.queues.Queues {
		oldest = max(oldest, q.OldestAge)
	}
	fmt.Fprintf(v.out, "%4.0f s  in %.1f/s  relayed %.1f/s  bounced %.1f/s  queued %d  oldest %s  latency p50 %s p99 %s\n", time.Since(v.began).Seconds(),
		n.out["message_queued"], n.out["recipient_relayed"], n.out["recipient_bounced"], n.queues.Messages, short(oldest), short(n.p50), short(n.p99))
}

func (v *view) draw(n numbers) {
	var b strings.Builder
	row := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	row("%s  %s", v.paint("1;36", "Waybill demo"), v.paint("2", "up "+short(time.Since(v.began).Seconds())+" · ctrl-c ends it"))
	row("")
	for _, h := range v.header {
		row("%s", h)
	}
	row("")
	row("  in %s   relayed %s   deferred %s   bounced %s   in queue %s   latency p50 %s p99 %s",
		v.paint("1", fmt.Sprintf("%.1f/s", n.out["message_queued"])), v.paint("32", fmt.Sprintf("%.1f/s", n.out["recipient_relayed"])),
		v.paint("33", fmt.Sprintf("%.1f/s", max(0, n.out["attempt_finished"]-n.out["recipient_relayed"]-n.out["recipient_bounced"]))),
		v.paint("31", fmt.Sprintf("%.1f/s", n.out["recipient_bounced"]+n.out["recipient_expired"])), v.paint("1", fmt.Sprint(n.queues.Messages)), short(n.p50), short(n.p99))
	row("")
	row("%s", v.paint("2", fmt.Sprintf("  %-10s %-8s %8s %9s %8s  %s", "NEXT HOP", "STATE", "WAITING", "OLDEST", "OUT/MIN", "ITS TEMPER, AND ITS LAST ERROR")))
	byName := map[string]trackapi.Queue{}
	for _, q := range n.queues.Queues {
		byName[q.Name] = q
	}
	for _, h := range hops() {
		q, known := byName[h.name]
		if !known {
			q = trackapi.Queue{State: "ready"}
		}
		color := map[string]string{"retry": "33", "held": "33"}[q.State]
		words := h.temper
		if q.LastError != "" && q.Messages > 0 {
			words += v.paint("2", " · "+q.LastError)
		}
		row("  %-10s %s %8d %9s %8.0f  %s", h.name, v.paint(color, fmt.Sprintf("%-8s", q.State)), q.Messages, short(q.OldestAge), q.OutRate, words)
	}
	row("")
	row("%s", v.paint("2", "  LATEST"))
	latest := n.latest
	if v.height > 0 { // the frame must fit, or it cannot be drawn over
		latest = latest[:min(len(latest), max(0, v.height-1-strings.Count(b.String(), "\n")))]
	}
	for _, m := range latest {
		to := ""
		if len(m.Recipients) > 0 {
			to = m.Recipients[0].Address
		}
		color := map[string]string{"relayed": "32", "bounced": "31", "expired": "31", "deferred": "33", "queued": "33"}[m.Disposition]
		row("  %s %s %s  %-26s → %-26s %8s", v.paint("2", m.Time.Local().Format("15:04:05")), v.paint("2", m.QueueID), v.paint(color, fmt.Sprintf("%-9s", m.Disposition)),
			m.Sender, to, short(m.Latency))
	}
	// Draw over the last frame, cut to the width, and clear what is left of it.
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	var frame strings.Builder
	if v.lines > 0 {
		fmt.Fprintf(&frame, "\x1b[%dA", v.lines)
	}
	for _, l := range lines {
		frame.WriteString("\r" + cut(l, v.width) + "\x1b[K\n")
	}
	for range max(0, v.lines-len(lines)) {
		frame.WriteString("\x1b[K\n")
	}
	if extra := v.lines - len(lines); extra > 0 {
		fmt.Fprintf(&frame, "\x1b[%dA", extra)
	}
	v.lines = len(lines)
	_, _ = io.WriteString(v.out, frame.String()) // a terminal that is gone ends the program anyway
}

func (v *view) paint(style, s string) string {
	if !v.color || style == "" {
		return s
	}
	return "\x1b[" + style + "m" + s + "\x1b[0m"
}

// cut shortens s to width columns; escape sequences take none.
func cut(s string, width int) string {
	if width <= 0 {
		return s
	}
	var b strings.Builder
	col, esc := 0, false
	for i, r := range s {
		switch {
		case esc:
			esc = r != 'm'
		case r == '\x1b':
			esc = true
		case col == width-1 && utf8.RuneCountInString(s[i:]) > 1:
			b.WriteString("…\x1b[0m")
			return b.String()
		default:
			col++
		}
		b.WriteRune(r)
	}
	return b.String()
}

// short is a duration in seconds for a narrow column.
func short(s float64) string {
	switch {
	case s <= 0:
		return "-"
	case s < 1:
		return fmt.Sprintf("%.0f ms", max(1, s*1000))
	case s < 10:
		return fmt.Sprintf("%.1f s", s)
	case s < 120:
		return fmt.Sprintf("%.0f s", s)
	}
	return fmt.Sprintf("%.0f m", s/60)
}
