package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"waybill/logtrack/trackapi"
)

func queueCmd(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "queue",
		Short: "What waits, for whom, since when; and what to do about it",
		Example: `  waybill queue list
  waybill queue messages --domain example.com
  waybill queue retry --domain example.com
  waybill queue hold --sender @shop.example --reason "runaway job" --until 2h`,
	}
	verbs := []*cobra.Command{queueListCmd(e), queueTopCmd(e), queueMessagesCmd(e), queueShowCmd(e), queueRescueCmd(e), queueHoldsCmd(e), queueDrainCmd(e), queueExportCmd(e), queueImportCmd(e)}
	for _, a := range []struct{ name, short, long string }{
		{"retry", "Attempt messages now", "Makes the messages due now, whatever their schedule says."},
		{"hold", "Stop messages until released", `Held messages are not attempted and do not alert; their lifetime goes on. With
--sender, --recipient, --domain, --next-hop, --connector or --receive-connector,
messages to come are held too, until a release with the same filter.`},
		{"release", "Let held messages go again", "Undoes hold."},
		{"remove", "Remove messages without a bounce", "Removes the messages for good. No DSN is sent without --dsn. The facts stay in tracking."},
		{"redirect", "Send messages to another host", `Sends the messages to the host of --to, whatever their routes are, with the TLS
level, limits and retries of their send connector or of --via, and without its
credentials. They stay with that host over reloads and restarts, until a reroute.`},
		{"resend", "Send again what was relayed", `Queues messages again that were relayed not longer ago than queue.keep_after_relay
says, as new messages. waybill queue messages --state relayed lists what there is.`},
		{"bounce", "Bounce messages now", "Ends the messages as permanent failures: their senders get a DSN."},
		{"reroute", "Route messages again", "Asks the routing table again, as after a changed configuration."},
	} {
		verbs = append(verbs, queueActionCmd(e, a.name, a.short, a.long))
	}
	return group(cmd, verbs...)
}

func queueListCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "One row for each next hop, the oldest mail first",
		Example: "  waybill queue list\n  waybill queue list -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			answer, err := c.Queues(cmd.Context())
			if err != nil {
				return err
			}
			heads := []string{"NEXT HOP", "CONNECTOR", "STATE", "MESSAGES", "ACTIVE", "DEFERRED", "HELD", "SIZE", "OLDEST", "DUE LAG", "IN/MIN", "OUT/MIN", "NEXT", "CLASS", "LAST ERROR"}
			t := newTable(append(heads, e.whyHeads()...)...)
			t.flex, t.spare = []int{0, 1, 14}, []int{4, 10, 11, 7, 9, 1, 6, 12, 13}
			var whys meanings
			for _, q := range answer.Queues {
				whys.add(q.LastClass, q.LastRule, "", q.LastMeans)
				t.add(append([]string{
					q.Name, q.Connector, stateOfQueue(q), fmt.Sprint(q.Messages), fmt.Sprint(q.Active), fmt.Sprint(q.Deferred), fmt.Sprint(q.Held), e.size(q.Bytes),
					e.seconds(q.OldestAge), e.seconds(q.DueLag), fmt.Sprintf("%.0f", q.InRate), fmt.Sprintf("%.0f", q.OutRate), e.until(nextOfQueue(q)), q.LastClass, q.LastError,
				}, e.whyCells(q.LastRule, q.LastMeans)...)...)
			}
			if err := render(e, answer, answer.Queues, t); err != nil {
				return err
			}
			if err := e.tellMeanings(&whys); err != nil {
				return err
			}
			if e.format == "table" {
				e.note(count(answer.Messages, "message") + " for " + count(len(answer.Queues), "next hop"))
				if !answer.Accepts {
					e.note("not accepting mail: " + answer.Why)
				}
			}
			return nil
		},
	}
}

func filterFlags(cmd *cobra.Command, f *trackapi.QueueFilter) {
	fl := cmd.Flags()
	fl.StringVar(&f.QueueID, "queue-id", "", "queue `ID`, or its beginning")
	fl.StringVar(&f.Sender, "sender", "", "envelope sender: `ADDRESS`, @domain, or a pattern with *")
	fl.StringVar(&f.Recipient, "recipient", "", "recipient: `ADDRESS`, @domain, or a pattern with *")
	fl.StringVar(&f.Domain, "domain", "", "recipient `DOMAIN`")
	fl.StringVar(&f.Queue, "next-hop", "", "next hop `NAME`, as queue list shows it")
	fl.StringVar(&f.Connector, "connector", "", "send connector `NAME`")
	fl.StringVar(&f.Receive, "receive-connector", "", "receive connector `NAME`")
	fl.StringVar(&f.State, "state", "", "`STATE`: queued, active, deferred, held, unroutable or poison; relayed for what can be sent again")
	fl.StringVar(&f.OlderThan, "older-than", "", "accepted longer ago than this `DURATION`")
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions([]string{"queued", "active", "deferred", "held", "unroutable", "poison", "relayed"}, cobra.ShellCompDirectiveNoFileComp))
}

func queueMessagesCmd(e *env) *cobra.Command {
	var f trackapi.QueueFilter
	var limit int
	cmd := &cobra.Command{
		Use:   "messages",
		Short: "The messages that wait",
		Example: `  waybill queue messages --older-than 1h
  waybill queue messages --domain example.com --state deferred -o jsonl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 {
				return usagef("--limit %d: want a number of 1 or more", limit)
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			var rows []trackapi.QueuedMessage
			var cursor string
			for len(rows) < limit {
				answer, err := c.QueuedMessages(cmd.Context(), f, cursor, min(1000, limit-len(rows)))
				if err != nil {
					return err
				}
				rows = append(rows, answer.Messages...)
				if cursor = answer.Cursor; cursor == "" {
					break
				}
			}
			heads := []string{"ACCEPTED", "QUEUE ID", "STATE", "SENDER", "RECIPIENT", "AGE", "ATTEMPTS", "NEXT", "CLASS", "LAST REPLY"}
			t := newTable(append(heads, e.whyHeads()...)...)
			t.flex, t.spare = []int{3, 4, 9}, []int{6, 0, 7, 8, 3}
			var whys meanings
			for _, m := range rows {
				var to []string
				for _, r := range m.Recipients {
					to = append(to, r.Address)
				}
				list := waiting(m.Recipients)
				for _, r := range list {
					whys.add(r.Class, r.Rule, r.Permanence, r.Explanation)
				}
				attempts, next, last := foremost(list)
				t.add(append([]string{
					e.clock(m.Time), m.QueueID, m.State, m.Sender, e.addresses(to), e.seconds(m.Age), fmt.Sprint(attempts), e.until(next), last.Class, or(last.Reply, last.Waits),
				}, e.whyCells(last.Rule, last.Explanation)...)...)
			}
			if err := render(e, trackapi.QueuedMessages{Messages: rows, Cursor: cursor}, rows, t); err != nil {
				return err
			}
			if err := e.tellMeanings(&whys); err != nil {
				return err
			}
			if e.format == "table" && cursor != "" {
				e.note(fmt.Sprintf("the first %d; more with --limit", limit))
			}
			return nil
		},
	}
	filterFlags(cmd, &f)
	cmd.Flags().IntVar(&limit, "limit", 100, "how many messages")
	return cmd
}

// waiting is the recipients that a row is about: those that still wait; when
// nobody does, the message is kept, for those that it was relayed to.
func waiting(list []trackapi.QueuedRecipient) []trackapi.QueuedRecipient {
	for _, gone := range [][]string{{"relayed", "bounced", "expired", "dropped"}, {"bounced", "expired", "dropped"}} {
		if rest := slices.DeleteFunc(slices.Clone(list), func(r trackapi.QueuedRecipient) bool { return slices.Contains(gone, r.State) }); len(rest) > 0 {
			return rest
		}
	}
	return list
}

// foremost is what a row tells of recipients: the most attempts, the next one,
// and the last word of a next hop.
func foremost(list []trackapi.QueuedRecipient) (attempts int, next time.Time, last trackapi.QueuedRecipient) {
	for _, r := range list {
		attempts = max(attempts, r.Attempts)
		if next.IsZero() || !r.Next.IsZero() && r.Next.Before(next) {
			next = r.Next
		}
		switch {
		case r.Reply != "":
			last = r
		case last.Reply == "":
			last.Waits = or(last.Waits, r.Waits)
		}
	}
	return attempts, next, last
}

func queueShowCmd(e *env) *cobra.Command {
	var content bool
	cmd := &cobra.Command{
		Use:   "show QUEUE-ID",
		Short: "One queued message",
		Example: `  waybill queue show 01J9ZC3K5V8Q2M7RXT4W6Y0ABC
  waybill queue show 01J9ZC3K5V8Q2M7RXT4W6Y0ABC --content > message.eml`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "" {
				return usagef("which message? The queue ID is empty")
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			if content {
				rc, err := c.Content(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				defer func() { _ = rc.Close() }() // read to its end
				_, err = io.Copy(e.out, rc)
				return err
			}
			list, err := c.QueuedMessages(cmd.Context(), trackapi.QueueFilter{QueueID: args[0]}, "", 2)
			switch {
			case err != nil:
				return err
			case len(list.Messages) == 0:
				return &exitError{exitNo, fmt.Errorf("no message %s in the queue", args[0]), "it may have left: waybill track show " + args[0]}
			case len(list.Messages) > 1:
				return &exitError{code: exitNo, err: fmt.Errorf("several messages begin with %s", args[0])}
			}
			m := list.Messages[0]
			t := newTable(append([]string{"RECIPIENT", "STATE", "NEXT HOP", "ATTEMPTS", "NEXT", "LAST HOST", "CLASS", "LAST REPLY"}, e.whyHeads()...)...)
			t.flex, t.spare = []int{0, 2, 5, 7}, []int{5, 3, 6, 2}
			var whys meanings
			for _, r := range m.Recipients {
				whys.add(r.Class, r.Rule, r.Permanence, r.Explanation)
				t.add(append([]string{
					r.Address, r.State, r.Queue, fmt.Sprint(r.Attempts), e.until(r.Next), e.dash(r.Host), e.dash(r.Class), e.dash(or(r.Reply, r.Waits)),
				}, e.whyCells(r.Rule, r.Explanation)...)...)
			}
			if e.format == "table" {
				held, unusual := "", ""
				if m.Priority != "normal" && m.Priority != "" {
					unusual = "\npriority    " + clean(m.Priority)
				}
				if m.HeldBy != "" {
					held = "\nheld by     " + clean(m.HeldBy) + ": " + clean(or(m.HeldWhy, "no reason given"))
					if !m.HeldUntil.IsZero() {
						held += " (until " + clock(m.HeldUntil) + ", " + until(m.HeldUntil) + ")"
					}
				}
				fmt.Fprintf(e.out, "%s  %s\nfrom        %s\nmessage-id  %s\nsize        %s\naccepted    %s (%s ago) by %s\nexpires     %s%s%s\n\n",
					e.paint("bold", m.QueueID), e.paint(cellStyle("STATE", m.State), m.State), clean(m.Sender), clean(or(m.MessageID, "-")), size(m.Size),
					clock(m.Time), seconds(m.Age), or(m.Connector, "the relay itself"), until(m.Expires), unusual, held)
			}
			if err := render(e, m, m.Recipients, t); err != nil {
				return err
			}
			return e.tellMeanings(&whys)
		},
	}
	cmd.Flags().BoolVar(&content, "content", false, "the message itself, as it would leave")
	return cmd
}

func queueActionCmd(e *env, name, short, long string) *cobra.Command {
	var f trackapi.QueueFilter
	var yes, dry bool
	var reason, until, to, via string
	var dsn bool
	cmd := &cobra.Command{
		Use:   name + " [QUEUE-ID...]",
		Short: short,
		Long: long + `

Says first how many messages it would change, and asks. Every change is a fact
in the log and in tracking, with who did it and why.`,
		Example: fmt.Sprintf("  waybill queue %[1]s --domain example.com --reason \"as agreed\"\n  waybill queue %[1]s 01J9ZC3K5V8Q2M7RXT4W6Y0ABC --yes", name),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			act := trackapi.QueueAction{Action: name, Filter: f, Reason: reason, To: to, Via: via, DSN: dsn}
			if name == "redirect" && to == "" {
				return usagef("--to: to which host?")
			}
			if act.Until, err = ahead(until); err != nil {
				return err
			}
			if len(args) == 0 && f == (trackapi.QueueFilter{}) {
				return usagef("which messages? Name queue IDs, a filter such as --domain, or --all for the whole queue")
			}
			filters := []trackapi.QueueFilter{f}
			if len(args) > 0 {
				if f != (trackapi.QueueFilter{}) {
					return usagef("give queue IDs or a filter, not both")
				}
				filters = nil
				for _, id := range args {
					filters = append(filters, trackapi.QueueFilter{QueueID: id})
				}
			}
			total := trackapi.QueueActed{DryRun: true}
			sum := func(dry bool) error {
				total = trackapi.QueueActed{DryRun: dry}
				for _, f := range filters {
					act.Filter, act.DryRun = f, dry
					did, err := c.ActOnQueue(cmd.Context(), act)
					if err != nil {
						return err
					}
					total.Messages += did.Messages
					total.Bytes += did.Bytes
					total.IDs = append(total.IDs, did.IDs...)
					total.Lasting = total.Lasting || did.Lasting
				}
				return nil
			}
			if !yes || dry {
				if err := sum(true); err != nil {
					return err
				}
				if dry || total.Messages == 0 && !total.Lasting {
					return e.acted(name, total)
				}
				if err := e.confirm(name + " " + affected(total) + andToCome(total) + "?"); err != nil {
					return err
				}
			}
			if err := sum(false); err != nil {
				return err
			}
			return e.acted(name, total)
		},
	}
	filterFlags(cmd, &f)
	fl := cmd.Flags()
	fl.Lookup("queue-id").Usage = "queue `ID`"
	fl.BoolVar(&f.All, "all", false, "the whole queue")
	fl.BoolVarP(&yes, "yes", "y", false, "do not ask")
	fl.BoolVar(&dry, "dry-run", false, "only say how many")
	fl.StringVar(&reason, "reason", "", "why, for the record")
	switch name {
	case "redirect":
		fl.StringVar(&to, "to", "", "the `HOST`, with :port unless it is 25")
		fl.StringVar(&via, "via", "", "send connector `NAME` whose settings count")
	case "remove":
		fl.BoolVar(&dsn, "dsn", false, "tell the senders")
	case "hold":
		fl.StringVar(&until, "until", "", "release by itself at a `TIME`, or after a duration such as 2h")
	}
	return cmd
}

func (e *env) acted(name string, did trackapi.QueueActed) error {
	if e.format != "table" {
		t := newTable("QUEUE ID")
		for _, id := range did.IDs {
			t.add(id)
		}
		if err := render(e, did, did.IDs, t); err != nil {
			return err
		}
		return noneIs(did)
	}
	verb := map[string]string{"retry": "made due", "hold": "held", "release": "released", "remove": "removed", "bounce": "bounced", "reroute": "routed again", "redirect": "redirected", "resend": "queued again"}[name]
	if did.DryRun {
		verb = "would be " + verb
	}
	fmt.Fprintf(e.out, "%s %s%s\n", affected(did), verb, andToCome(did))
	if name == "release" && did.Messages == 0 && !did.Lasting {
		e.note("nothing is held by that: waybill queue holds lists the holds for messages to come, waybill queue messages --state held what is held")
	}
	return noneIs(did)
}

// affected counts messages.
func affected(did trackapi.QueueActed) string {
	return count(did.Messages, "message") + " (" + size(did.Bytes) + ")"
}

func andToCome(did trackapi.QueueActed) string {
	if did.Lasting {
		return ", and those to come"
	}
	return ""
}

// noneIs makes an action on no message a negative answer.
func noneIs(did trackapi.QueueActed) error {
	if did.Messages == 0 && !did.Lasting {
		return &exitError{code: exitNo}
	}
	return nil
}

// confirm asks a person, and returns an error unless they agree. Without a
// terminal nobody agreed.
func (e *env) confirm(question string) error {
	if _, ok := terminalOf(e.in); !ok {
		return usagef("%s Add --yes to agree without a terminal", question)
	}
	fmt.Fprintf(e.err, "%s [y/N] ", question)
	line, err := bufio.NewReader(e.in).ReadString('\n')
	if err != nil && line == "" {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return &exitError{code: exitNo, err: errors.New("nothing was changed")}
}
