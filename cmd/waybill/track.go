package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"waybill/logtrack/trackapi"
)

func trackCmd(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "track",
		Short: "Find messages and see what became of them",
		Example: `  waybill track search --recipient ann@example.com
  waybill track show 01J9ZC3K5V8Q2M7RXT4W6Y0ABC
  waybill track tail --disposition bounced`,
	}
	return group(cmd, trackSearchCmd(e), trackShowCmd(e), trackTailCmd(e), trackExportCmd(e), trackImportCmd(e), trackReindexCmd(e), trackVerifyCmd(e), trackStatsCmd(e), trackEraseCmd(e))
}

// queryFlags adds the filters of a search.
func queryFlags(cmd *cobra.Command, q *trackapi.Query, from, to *string) {
	f := cmd.Flags()
	f.StringVar(from, "from", "", "begin: a `TIME` such as 2026-01-31T08:00:00Z, or how long ago, such as 2h or 7d (default 24h)")
	f.StringVar(to, "to", "", "end: a `TIME`, or how long ago (default now)")
	f.StringVar(&q.Sender, "sender", "", "envelope sender: `ADDRESS`, @domain, or a pattern with *")
	f.StringVar(&q.Recipient, "recipient", "", "recipient: `ADDRESS`, @domain, or a pattern with *")
	f.StringVar(&q.Domain, "domain", "", "recipient `DOMAIN`")
	f.StringVar(&q.MessageID, "message-id", "", "Message-ID header `FIELD`")
	f.StringVar(&q.QueueID, "queue-id", "", "queue `ID`, or its beginning")
	f.StringVar(&q.ClientIP, "client-ip", "", "`ADDRESS` or CIDR of the client")
	f.StringVar(&q.AuthUser, "auth-user", "", "`LOGIN` of the client")
	f.StringVar(&q.Connector, "connector", "", "receive or send connector `NAME`")
	f.StringVar(&q.RemoteHost, "remote-host", "", "next hop's `NAME` or address")
	f.StringVar(&q.Disposition, "disposition", "", "`LIST` of queued, deferred, held, relayed, bounced, expired, dropped")
	f.StringVar(&q.Class, "class", "", "failure `CLASS`, such as greylist or invalid_recipient")
	f.StringVar(&q.Code, "code", "", "reply `CODE`: 550, 5.1.1 or 5xx")
	f.StringVar(&q.Subject, "subject", "", "`SUBJECT`, or a pattern with *")
	f.StringVar(&q.Source, "source", "", "`PART` that stated it; import for the logs of other servers")
	f.StringVar(&q.Node, "node", "", "relay, or the server of an imported log, by `NAME`")
	f.StringVar(&q.Reason, "reason", "", "`LIST` of reasons of refusals, such as relay_denied")
	f.StringVar(&q.MinSize, "min-size", "", "only messages of at least this `SIZE`, such as 10MiB")
	f.StringVar(&q.MaxSize, "max-size", "", "only messages of at most this `SIZE`")
	f.StringVar(&q.MaxLatency, "max-latency", "", "only messages that took or wait at most this `DURATION`")
	f.DurationVar(&q.MinLatency, "min-latency", 0, "only messages that took or wait at least this long")
	_ = cmd.RegisterFlagCompletionFunc("disposition", cobra.FixedCompletions(
		[]string{"queued", "deferred", "held", "relayed", "bounced", "expired", "dropped"}, cobra.ShellCompDirectiveNoFileComp))
}

// when reads a time, or a duration before now.
func when(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	if d, ok := duration(s); ok {
		return time.Now().Add(-d), nil
	}
	return time.Time{}, usagef("%q is neither a time (2026-01-31T08:00:00Z) nor a duration (2h, 7d)", s)
}

// ahead reads a time to come, or a duration from now.
func ahead(s string) (time.Time, error) {
	if d, ok := duration(s); ok {
		return time.Now().Add(d), nil
	}
	t, err := when(s)
	if err == nil && s != "" && !t.After(time.Now()) {
		err = usagef("%s has passed; name a time to come, or a duration such as 2h", s)
	}
	return t, err
}

// duration reads 90s, 2h or 7d.
func duration(s string) (time.Duration, bool) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseFloat(days, 64)
		return time.Duration(n * 24 * float64(time.Hour)).Abs(), err == nil
	}
	d, err := time.ParseDuration(s)
	return d.Abs(), err == nil
}

func trackSearchCmd(e *env) *cobra.Command {
	var q trackapi.Query
	var from, to string
	var all, oldest bool
	cmd := &cobra.Command{
		Use:   "search [FILTER...]",
		Short: "Find messages by sender, recipient, and much more",
		Long: `Finds messages, newest first. Filters are flags, or words such as
recipient:*@example.com disposition:bounced. A word that begins with - excludes;
it goes after -- or into quotes with another one. Exit code 1 when there is none.`,
		Example: `  waybill track search --recipient ann@example.com
  waybill track search --from 7d --sender @shop.example --disposition bounced,expired
  waybill track search 'recipient:*@example.com -class:greylist' -o csv > mail.csv`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if q.Limit < 1 || q.Limit > trackapi.MaxLimit {
				return usagef("--limit %d: want a number from 1 to %d; --all shows all pages", q.Limit, trackapi.MaxLimit)
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			if q.From, err = when(from); err != nil {
				return err
			}
			if q.To, err = when(to); err != nil {
				return err
			}
			q.Q = strings.Join(args, " ")
			if oldest {
				q.Sort = "time"
			}
			var rows []trackapi.Message
			var page trackapi.Page
			for {
				answer, err := c.Messages(cmd.Context(), q)
				if err != nil {
					return err
				}
				rows, page = append(rows, answer.Messages...), answer.Page
				if q.Cursor = page.Cursor; !all || q.Cursor == "" {
					break
				}
			}
			t := newTable("TIME", "QUEUE ID", "SENDER", "RECIPIENT", "DISPOSITION", "LATENCY", "ATTEMPTS", "SIZE", "LAST REPLY")
			t.flex, t.spare = []int{2, 3, 8}, []int{7, 6, 5, 8, 2, 0}
			for _, m := range rows {
				var to []string
				for _, r := range m.Recipients {
					to = append(to, r.Address)
				}
				t.add(e.clock(m.Time), m.QueueID, e.unhash(m.Sender), e.unhash(e.addresses(to)), m.Disposition, e.seconds(m.Latency), fmt.Sprint(m.Attempts), e.size(m.Size), lastReply(m))
			}
			if err := render(e, trackapi.Messages{Messages: rows, Page: page}, rows, t); err != nil {
				return err
			}
			if e.format == "table" {
				e.note(searchNote(len(rows), page))
				for _, line := range page.Explain {
					e.note("plan: " + line)
				}
			}
			if len(rows) == 0 {
				return &exitError{code: exitNo}
			}
			return nil
		},
	}
	queryFlags(cmd, &q, &from, &to)
	cmd.Flags().IntVar(&q.Limit, "limit", 50, "how many messages (at most 1000)")
	cmd.Flags().StringVar(&q.Cursor, "cursor", "", "go on where the last page ended")
	cmd.Flags().BoolVar(&all, "all", false, "all pages")
	cmd.Flags().BoolVar(&oldest, "oldest-first", false, "oldest first")
	cmd.Flags().BoolVar(&q.Explain, "explain", false, "say how the search was done")
	return cmd
}

// hashed is what tracking keeps of the local part of an address with addresses: hash.
var hashed = regexp.MustCompile(`^(~[0-9a-f]{8})[0-9a-f]{12}@`)

// unhash shortens a hash in a table for people, so that a narrow column still has
// the domain, which is what they can read.
func (e *env) unhash(address string) string {
	if e.format == "csv" {
		return address
	}
	return hashed.ReplaceAllString(address, "$1…@")
}

func searchNote(n int, p trackapi.Page) string {
	s := fmt.Sprintf("%s in %.1f ms", count(n, "message"), p.TookMS)
	if p.Estimate > int64(n) {
		s += fmt.Sprintf("; about %d in all", p.Estimate)
	}
	if p.Cut != "" {
		s += "; cut: " + p.Cut
	}
	if p.Hint != "" {
		s += "; " + p.Hint
	}
	if p.Cursor != "" {
		s += "; more with --all, or --cursor " + p.Cursor
	}
	return s
}

// note tells a person something beside the answer.
func (e *env) note(s string) { fmt.Fprintln(e.err, e.paintErr(s)) }

func (e *env) paintErr(s string) string {
	if _, ok := terminalOf(e.err); ok && !e.noColor {
		return "\x1b[2m" + s + "\x1b[0m"
	}
	return s
}

// lastReply is the newest reply among the recipients that are worst off.
func lastReply(m trackapi.Message) string {
	var last trackapi.Recipient
	for _, r := range m.Recipients {
		if r.Disposition == m.Disposition && !r.At.Before(last.At) && r.Reply != "" {
			last = r
		}
	}
	return codes(last.Code, last.Enhanced) + last.Reply
}

func trackShowCmd(e *env) *cobra.Command {
	var transcript, full bool
	cmd := &cobra.Command{
		Use:   "show QUEUE-ID",
		Short: "One message: its timeline, stages, and the next hops' words",
		Long: `Shows one message: where it came from, each fact about it with the time since
its acceptance, how long each stage took, and the messages that belong to it.
Attempts that ended alike, one after the other, are told once; --full tells each.
With --transcript it shows what was said: in the session that handed the message
in, and in the attempts to hand it on. An ID of a session may stand there too.`,
		Example: `  waybill track show 01J9ZC3K5V8Q2M7RXT4W6Y0ABC
  waybill track show 01J9ZC3K5V8Q2M7RXT4W6Y0ABC --transcript`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			if transcript {
				tr, err := transcriptOf(cmd.Context(), c, args[0])
				if err != nil {
					return err
				}
				if e.format != "table" {
					return render(e, tr, tr.Conversations, transcriptTable(tr))
				}
				return e.drawTranscript(tr)
			}
			tl, err := c.Message(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if e.format != "table" {
				t := newTable("TIME", "EVENT", "LEVEL", "SUMMARY")
				for _, en := range tl.Timeline {
					t.add(en.Time.Format(time.RFC3339Nano), en.Event, en.Level, en.Summary)
				}
				return render(e, tl, tl.Timeline, t)
			}
			return e.drawTimeline(tl, full)
		},
	}
	cmd.Flags().BoolVar(&full, "full", false, "each attempt, also those that ended alike")
	cmd.Flags().BoolVar(&transcript, "transcript", false, "the SMTP conversations that carried it, or the one of a session")
	return cmd
}

// drawTimeline draws one message for a terminal. Unless it is to be full, the
// middle of a row of attempts that ended alike is only counted.
func (e *env) drawTimeline(tl *trackapi.Timeline, full bool) error {
	var b strings.Builder
	m := tl.Message
	row := func(key, val string) {
		if val != "" {
			fmt.Fprintf(&b, "%s %s\n", e.paint("dim", fmt.Sprintf("%-11s", key)), clean(val))
		}
	}
	fmt.Fprintf(&b, "%s  %s\n", e.paint("bold", m.QueueID), e.paint(cellStyle("DISPOSITION", m.Disposition), m.Disposition))
	row("from", m.Sender)
	if m.HeaderFrom != "" && m.HeaderFrom != m.Sender {
		row("header from", m.HeaderFrom)
	}
	row("message-id", m.MessageID)
	row("subject", m.Subject)
	row("size", size(m.Size))
	came := m.Connector
	if m.ClientIP != "" {
		came += " from " + m.ClientIP
	}
	if m.AuthUser != "" {
		came += " as " + m.AuthUser
	}
	row("came in by", came)
	row("accepted", m.Time.Local().Format("2006-01-02 15:04:05.000"))
	if m.Latency > 0 {
		row("latency", seconds(m.Latency))
	}
	b.WriteByte('\n')
	for _, r := range m.Recipients {
		fmt.Fprintf(&b, "  %s  %s", e.paint(cellStyle("DISPOSITION", r.Disposition), fmt.Sprintf("%-9s", r.Disposition)), clean(r.Address))
		if by := or(r.Actor, r.RemoteHost); by != "" {
			fmt.Fprintf(&b, "  %s", e.paint("dim", "by "+clean(by)))
		}
		if !r.Next.IsZero() {
			fmt.Fprintf(&b, "  %s", e.paint("yellow", "next attempt "+until(r.Next)))
		}
		b.WriteByte('\n')
		if r.Reply != "" {
			fmt.Fprintf(&b, "             %s%s\n", codes(r.Code, r.Enhanced), clean(r.Reply))
		}
		if r.Explanation != "" {
			fmt.Fprintf(&b, "             %s\n", e.meaning(r.Class, r.ClassRule, r.Permanence, r.Explanation))
		}
	}
	b.WriteByte('\n')
	for i := 0; i < len(tl.Timeline); i++ {
		if n := alike(tl.Timeline[i:]); n >= 4 && !full {
			e.drawEntry(&b, tl, i)
			fmt.Fprintf(&b, "%s %s\n", e.paint("dim", fmt.Sprintf("%10s ┊", "")), e.paint("dim", fmt.Sprintf("%d more attempts ended like this (--full shows them)", n-2)))
			i += n - 1
		}
		e.drawEntry(&b, tl, i)
	}
	e.drawSections(&b, tl)
	for i, r := range tl.Related {
		if i == 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "related: %s (%s)%s\n", r.QueueID, r.Kind, e.paint("dim", "  "+relation[r.Kind]))
	}
	_, err := io.WriteString(e.out, b.String())
	return err
}

// drawEntry draws the i-th fact of a timeline.
func (e *env) drawEntry(b *strings.Builder, tl *trackapi.Timeline, i int) {
	en, mark, rail := tl.Timeline[i], "├", "│"
	if i == len(tl.Timeline)-1 {
		mark, rail = "└", " "
	}
	fmt.Fprintf(b, "%s %s %s %s\n", e.paint("dim", fmt.Sprintf("%10s", "+"+offset(en.Time.Sub(tl.Message.Time)))), e.paint("dim", mark), e.paint(levelStyle(en.Level), "●"), clean(en.Summary))
	if bar := e.stageBar(en.Stages); bar != "" {
		fmt.Fprintf(b, "%10s %s   %s\n", "", e.paint("dim", rail), bar)
	}
}

// alike counts the attempts at the beginning of list that ended like the first
// one, but for when the next is.
func alike(list []trackapi.Entry) int {
	ended := func(en trackapi.Entry) string { s, _, _ := strings.Cut(en.Summary, "; next attempt in "); return s }
	n := 0
	for n < len(list) && list[n].Event == "attempt_finished" && ended(list[n]) == ended(list[0]) {
		n++
	}
	return n
}

// offset is how long after its acceptance something happened to a message. It is
// more exact than an age, because one looks for what is between two of them.
func offset(d time.Duration) string {
	if d < 2*time.Minute || d >= 48*time.Hour {
		return age(d)
	}
	if d < time.Hour {
		return fmt.Sprintf("%d m %d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d h %d m", int(d.Hours()), int(d.Minutes())%60)
}

// drawSections draws what was checked and what was changed, once for attempts
// of which the same is to be said.
func (e *env) drawSections(b *strings.Builder, tl *trackapi.Timeline) {
	at := func(attempts []int) string {
		switch first, last := attempts[0], attempts[len(attempts)-1]; {
		case first == 0:
			return ""
		case first == last:
			return e.paint("dim", fmt.Sprintf("  attempt %d", first))
		case last-first == 1:
			return e.paint("dim", fmt.Sprintf("  attempts %d and %d", first, last))
		case last-first == len(attempts)-1:
			return e.paint("dim", fmt.Sprintf("  attempts %d to %d", first, last))
		default:
			return e.paint("dim", fmt.Sprintf("  %d attempts from %d to %d", len(attempts), first, last))
		}
	}
	checks, tried := fold(tl.Checks, func(c trackapi.Check) (trackapi.Check, int) {
		n := c.Attempt
		c.Attempt, c.Time = 0, time.Time{}
		return c, n
	})
	for i, c := range checks {
		if i == 0 {
			b.WriteString("\nchecks\n")
		}
		style := map[string]string{"pass": "green", "fail": "red"}[c.Result]
		fmt.Fprintf(b, "  %s  %-14s %s%s\n", e.paint(style, fmt.Sprintf("%-4s", clean(c.Result))), clean(c.Name), clean(c.Detail), at(tried[c]))
	}
	changes, made := fold(tl.Changes, func(c trackapi.Change) (trackapi.Change, int) {
		n := c.Attempt
		c.Attempt, c.Time = 0, time.Time{}
		return c, n
	})
	for i, c := range changes {
		if i == 0 {
			b.WriteString("\nchanges\n")
		}
		by := ""
		if c.Actor != "" {
			by = e.paint("dim", "  by "+clean(c.Actor))
		}
		fmt.Fprintf(b, "  %-12s %s%s%s\n", clean(c.Name), clean(c.Detail), at(made[c]), by)
	}
}

// fold takes together what differs only in its attempt, in the order of the first.
func fold[T comparable](list []T, split func(T) (T, int)) (kinds []T, attempts map[T][]int) {
	attempts = map[T][]int{}
	for _, v := range list {
		kind, n := split(v)
		if attempts[kind] == nil {
			kinds = append(kinds, kind)
		}
		attempts[kind] = append(attempts[kind], n)
	}
	return kinds, attempts
}

// relation says what a related message is.
var relation = map[string]string{
	"dsn": "the report about it", "parent": "what it was made from", "split": "made from it", "resend": "it, sent again", "same_message_id": "has the same Message-ID",
}

func levelStyle(level string) string {
	return map[string]string{"info": "green", "warning": "yellow", "error": "red"}[level]
}

// stageBar writes stage durations in a line: connect 12 ms · data 3 ms.
func (e *env) stageBar(stages []trackapi.Stage) string {
	var parts []string
	for _, s := range stages {
		if s.Seconds > 0 {
			parts = append(parts, e.paint("dim", s.Name)+" "+seconds(s.Seconds))
		}
	}
	return strings.Join(parts, e.paint("dim", " · "))
}

func trackTailCmd(e *env) *cobra.Command {
	var q trackapi.Query
	var from, to string
	var protocol bool
	var conversations trackapi.ProtocolFilter
	cmd := &cobra.Command{
		Use:   "tail [FILTER...]",
		Short: "Watch facts, or conversations, as they happen",
		Long: `Shows facts as they happen, until interrupted. With --protocol it shows what
clients, next hops and the relay say to each other, line by line and without
secrets; that needs the operator role.`,
		Example: `  waybill track tail
  waybill track tail --protocol --client 10.0.0.5
  waybill track tail --event message_queued,recipient_bounced
  waybill track tail recipient:*@example.com -o jsonl | jq .reply`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			if e.format == "csv" {
				return usagef("facts have no columns: use -o jsonl")
			}
			if !protocol && (conversations.Direction != "" || conversations.Session != "") {
				return usagef("--direction and --session go with --protocol")
			}
			c.HTTP.Timeout = 0 // it goes on until interrupted
			if from+to != "" {
				return usagef("a tail begins now; --after goes on from a fact, and track search looks back")
			}
			q.Q = strings.Join(args, " ")
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt)
			defer stop()
			if protocol {
				err = e.watch(ctx, cmd, c, &q, conversations)
			} else {
				err = c.Tail(ctx, q, func(raw json.RawMessage) error { return e.tailLine(raw) })
			}
			if ctx.Err() != nil {
				return nil //nolint:nilerr // interrupted, as a tail ends
			}
			return err
		},
	}
	queryFlags(cmd, &q, &from, &to)
	protocolFlags(cmd, &protocol, &conversations)
	for _, name := range []string{"from", "to", "min-latency"} {
		_ = cmd.Flags().MarkHidden(name) // a tail is about now
	}
	cmd.Flags().StringVar(&q.Event, "event", "", "`LIST` of facts, such as message_queued,recipient_bounced")
	cmd.Flags().StringVar(&q.Cursor, "after", "", "event `ID` of the last fact that was seen: what came since comes first")
	return cmd
}

// tailLine writes one record as it came, or shortened for people.
func (e *env) tailLine(raw json.RawMessage) error {
	if e.format == "json" || e.format == "jsonl" {
		_, err := fmt.Fprintf(e.out, "%s\n", raw)
		return err
	}
	var r struct {
		Time        time.Time `json:"ts"`
		Event       string    `json:"event"`
		QueueID     string    `json:"queue_id"`
		MailFrom    string    `json:"mail_from"`
		Recipient   string    `json:"recipient"`
		Recipients  []struct{ Address string }
		Disposition string `json:"disposition"`
		Code        int    `json:"code"`
		Enhanced    string `json:"enhanced"`
		Reply       string `json:"reply"`
		Remote      string `json:"remote_name"`
		Client      string `json:"client_ip"`
		Reason      string `json:"reason"`
		User        string `json:"auth_user"`
		Connector   string `json:"connector"`
		Verb        string `json:"verb"`
		Cause       string `json:"cause"`
		Limit       string `json:"throttle_limit"`
		Action      string `json:"action"`
		Resource    string `json:"resource"`
		Stage       string `json:"pressure_stage"`
		Detail      string `json:"detail"`
		Actor       string `json:"actor"`
		Filter      string `json:"filter"`
		Target      string `json:"target"`
		Affected    int    `json:"affected"`
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return err
	}
	to := r.Recipient
	if to == "" && len(r.Recipients) > 0 {
		to = r.Recipients[0].Address
		if n := len(r.Recipients); n > 1 {
			to = fmt.Sprintf("%s +%d", to, n-1)
		}
	}
	messages := ""
	if r.Affected > 0 {
		messages = count(r.Affected, "message")
	}
	var parts []string
	for _, p := range []string{r.QueueID, arrow(r.MailFrom, to), about(r.QueueID, r.Connector), r.Verb, prefix("limit ", r.Limit), r.Action, r.Filter, prefix("to ", r.Target), messages, prefix("resource ", r.Resource), prefix("stage ", r.Stage), r.Detail, r.Disposition, prefix("by ", r.Remote), prefix("by ", r.Actor), prefix("client ", r.Client), prefix("user ", r.User), r.Cause, r.Reason, strings.TrimSpace(codes(r.Code, r.Enhanced) + r.Reply)} {
		if p != "" {
			parts = append(parts, clean(p))
		}
	}
	style := "green"
	switch {
	case strings.Contains(r.Event, "bounced"), strings.Contains(r.Event, "expired"), strings.Contains(r.Event, "panicked"):
		style = "red"
	case strings.Contains(r.Event, "refused"), strings.Contains(r.Event, "failed"), r.Disposition == "deferred":
		style = "yellow"
	}
	_, err := fmt.Fprintf(e.out, "%s %s %s\n", e.paint("dim", r.Time.Local().Format("15:04:05.000")), e.paint(style, fmt.Sprintf("%-18s", r.Event)), strings.Join(parts, "  "))
	return err
}

// about names the connector of facts that are about no message.
func about(queueID, connector string) string {
	if queueID != "" {
		return ""
	}
	return connector
}

func arrow(from, to string) string {
	if to == "" {
		return from
	}
	return or(from, "?") + " → " + to
}

func prefix(p, s string) string {
	if s == "" {
		return ""
	}
	return p + s
}

func codes(code int, enhanced string) string {
	if code == 0 {
		return ""
	}
	return fmt.Sprintf("%d %s ", code, enhanced)
}
