package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"waybill/logtrack/trackapi"
)

func queueHoldsCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "holds",
		Short:   "Holds that are also for messages to come",
		Example: "  waybill queue holds",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			answer, err := c.Holds(cmd.Context())
			if err != nil {
				return err
			}
			t := newTable("HOLDS", "BY", "UNTIL", "REASON")
			t.flex = []int{0, 3}
			for _, h := range answer.Holds {
				t.add(filterText(h.Filter), h.By, e.until(h.Until), h.Why)
			}
			return render(e, answer, answer.Holds, t)
		},
	}
}

// filterText writes a filter for people.
func filterText(f trackapi.QueueFilter) string {
	var words []string
	for _, w := range []struct{ key, value string }{
		{"sender", f.Sender}, {"recipient", f.Recipient}, {"domain", f.Domain}, {"next-hop", f.Queue}, {"connector", f.Connector}, {"receive-connector", f.Receive},
	} {
		if w.value != "" {
			words = append(words, w.key+" "+w.value)
		}
	}
	return strings.Join(words, ", ")
}

func queueDrainCmd(e *env) *cobra.Command {
	var order trackapi.QueueDrainOrder
	var yes, detach bool
	cmd := &cobra.Command{
		Use:   "drain [--to HOST]",
		Short: "Hand the whole queue to another host, and take no mail meanwhile",
		Long: `Hands the whole queue to another host by SMTP, and shows how far it is. No mail
is taken meanwhile, and readiness is 503. What is held, poisoned, or has no send
connector stays. The drain ends with --stop, or with the daemon; what is left
then goes by the routing table again. Without --to it says how far a drain is.
To begin and to end one needs the role admin.`,
		Example: `  waybill queue drain --to relay2.example.com --reason "moving the host"
  waybill queue drain
  waybill queue drain --stop`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			var d *trackapi.QueueDrain
			switch {
			case order.To != "" && order.Stop:
				return usagef("--to begins a drain and --stop ends it: give one of them")
			case order.Stop:
				d, err = c.Drain(cmd.Context(), order)
			case order.To == "":
				d, err = c.Drained(cmd.Context())
			default:
				if !yes {
					if err := e.confirm("take no mail, and hand the whole queue to " + order.To + "?"); err != nil {
						return err
					}
				}
				if d, err = c.Drain(cmd.Context(), order); err == nil && !detach {
					d, err = e.followDrain(cmd.Context(), c, d)
				}
			}
			if err != nil {
				return err
			}
			if order.Stop && e.format == "table" {
				e.note("the drain is over: mail is taken again, and what is left goes by the routing table")
				return nil
			}
			return e.showDrain(d)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&order.To, "to", "", "the other `HOST`, with :port unless it is 25")
	fl.StringVar(&order.Via, "via", "", "send connector `NAME` whose TLS, limits and retries count; without it each recipient's own")
	fl.StringVar(&order.Reason, "reason", "", "why, for the record")
	fl.BoolVar(&order.Stop, "stop", false, "end the drain")
	fl.BoolVarP(&yes, "yes", "y", false, "do not ask")
	fl.BoolVar(&detach, "detach", false, "do not wait for its end")
	return cmd
}

// followDrain shows how far a drain is until nothing moves any more.
func (e *env) followDrain(ctx context.Context, c *trackapi.Client, d *trackapi.QueueDrain) (*trackapi.QueueDrain, error) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	last := ""
	for {
		if line := fmt.Sprintf("%d of %d left", d.Left, d.Started); e.format == "table" && line != last {
			e.note(line + drainTrouble(d))
			last = line
		}
		if d.Done || !d.Draining {
			return d, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			e.note("the drain goes on; waybill queue drain says how far it is")
			return d, nil
		}
		next, err := c.Drained(ctx)
		if err != nil {
			if ctx.Err() != nil {
				continue
			}
			return nil, err
		}
		d = next
	}
}

func drainTrouble(d *trackapi.QueueDrain) string {
	if d.LastError == "" {
		return ""
	}
	return "; last error: " + clean(d.LastError)
}

// drainLeft says what to do about what a drain leaves.
func drainLeft(d *trackapi.QueueDrain) string {
	var parts []string
	for _, p := range []struct {
		n      int
		advice string
	}{
		{d.Held, "held: waybill queue release lets it go"},
		{d.Unroutable, "without a send connector: begin the drain again with --via to say which one is to carry it"},
		{d.Poison, "isolated because it is damaged: waybill queue messages --state poison"},
	} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.advice))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return "what is left stays here: " + strings.Join(parts, "; ")
}

func (e *env) showDrain(d *trackapi.QueueDrain) error {
	t := newTable("TO", "SINCE", "AT START", "LEFT", "MOVING", "HELD", "UNROUTABLE", "POISON", "LAST ERROR")
	t.flex = []int{8}
	if d.Draining {
		t.add(d.To, e.clock(d.Since), fmt.Sprint(d.Started), fmt.Sprint(d.Left), fmt.Sprint(d.Moving), fmt.Sprint(d.Held), fmt.Sprint(d.Unroutable), fmt.Sprint(d.Poison), d.LastError)
	} else if e.format == "table" {
		e.note("the queue is not being drained")
		return nil
	}
	if err := render(e, d, []*trackapi.QueueDrain{d}, t); err != nil {
		return err
	}
	if left := drainLeft(d); e.format == "table" && d.Done && left != "" {
		e.note(left)
	}
	return nil
}

func queueExportCmd(e *env) *cobra.Command {
	var f trackapi.QueueFilter
	var dir string
	cmd := &cobra.Command{
		Use:   "export [QUEUE-ID...] --to DIR",
		Short: "Write messages with their envelopes into files",
		Long: `Writes for each message ID.eml, as it would leave, and ID.json, its envelope:
what waybill queue import takes. The messages stay in the queue; hold them first
if they are to go elsewhere. Needs the role admin; each content is a fact.`,
		Example: "  waybill queue export --domain example.com --to /tmp/mail\n  waybill queue export 01J9ZC3K5V8Q2M7RXT4W6Y0ABC --to .",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			if dir == "" {
				return usagef("--to: into which directory?")
			}
			if len(args) == 0 && f == (trackapi.QueueFilter{}) {
				return usagef("which messages? Name queue IDs, a filter such as --domain, or --all for the whole queue")
			}
			ids := args
			for cursor := ""; len(args) == 0; {
				page, err := c.QueuedMessages(cmd.Context(), f, cursor, 1000)
				if err != nil {
					return err
				}
				for _, m := range page.Messages {
					ids = append(ids, m.QueueID)
				}
				if cursor = page.Cursor; cursor == "" {
					break
				}
			}
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			done := 0
			t := newTable("QUEUE ID")
			for _, id := range ids {
				err := exportMessage(cmd.Context(), c, dir, strings.ToUpper(id))
				if p, ok := errors.AsType[*trackapi.Problem](err); ok && p.Status == 404 && len(args) == 0 {
					continue // it has left meanwhile
				}
				if err != nil {
					return err
				}
				done++
				t.add(id)
			}
			if e.format == "table" {
				fmt.Fprintf(e.out, "%s written to %s\n", count(done, "message"), dir)
			} else if err := render(e, ids, ids, t); err != nil {
				return err
			}
			if done == 0 {
				return &exitError{code: exitNo}
			}
			return nil
		},
	}
	filterFlags(cmd, &f)
	cmd.Flags().BoolVar(&f.All, "all", false, "the whole queue")
	cmd.Flags().StringVar(&dir, "to", "", "`DIR` to write to")
	return cmd
}

// exportMessage writes one message. The envelope comes last: a message without
// it is not whole.
func exportMessage(ctx context.Context, c *trackapi.Client, dir, id string) error {
	env, err := c.Envelope(ctx, id)
	if err != nil {
		return err
	}
	rc, err := c.Content(ctx, id)
	if err != nil {
		return err
	}
	defer func() { _ = rc.Close() }() // read to its end
	base := filepath.Join(dir, filepath.Base(id))
	f, err := os.OpenFile(base+".eml", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // below a directory that the caller named
	if err != nil {
		return err
	}
	_, err = io.Copy(f, rc)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(base+".eml"))
	}
	b, err := json.MarshalIndent(env, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(base+".json", append(b, '\n'), 0o600)
}

func queueImportCmd(e *env) *cobra.Command {
	var from string
	var to []string
	cmd := &cobra.Command{
		Use:   "import FILE.eml|DIR...",
		Short: "Queue messages from files",
		Long: `Queues each FILE.eml with the envelope that stands beside it in FILE.json, as
waybill queue export and waybill queue rescue write them, for the recipients
that still wait for it; or with the envelope of --from and --recipient. A message
gets a new queue ID, and the old one as its parent. Needs the role admin.`,
		Example: "  waybill queue import /tmp/mail\n  waybill queue import letter.eml --from me@example.com --recipient you@example.org",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			if from != "" && len(to) == 0 {
				return usagef("--from needs --recipient")
			}
			var given *trackapi.QueueEnvelope
			if len(to) > 0 {
				if given, err = envelopeOf(from, to); err != nil {
					return err
				}
			}
			files, err := emlFiles(args)
			if err != nil {
				return err
			}
			var done []trackapi.QueueImported
			t := newTable("QUEUE ID", "SIZE", "FILE")
			for _, name := range files {
				got, err := importMessage(cmd.Context(), c, name, given)
				if err != nil {
					return fmt.Errorf("%s: %w (%d of %d messages were imported)", name, err, len(done), len(files))
				}
				done = append(done, *got)
				t.add(got.QueueID, e.size(got.Size), name)
			}
			if err := render(e, done, done, t); err != nil {
				return err
			}
			if len(done) == 0 {
				return &exitError{code: exitNo, err: errors.New("there is no .eml file")}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "envelope sender `ADDRESS`; without it the null sender")
	cmd.Flags().StringArrayVar(&to, "recipient", nil, "recipient `ADDRESS`; may be repeated")
	return cmd
}

func envelopeOf(from string, to []string) (*trackapi.QueueEnvelope, error) {
	type recipient struct {
		Address string `json:"address"`
	}
	env := struct {
		Sender     string      `json:"sender"`
		Recipients []recipient `json:"recipients"`
	}{Sender: strings.Trim(from, "<>")}
	for _, a := range to {
		env.Recipients = append(env.Recipients, recipient{a})
	}
	b, err := json.Marshal(env)
	return &trackapi.QueueEnvelope{Envelope: b}, err
}

// emlFiles lists the files that are named, and those of the directories.
func emlFiles(args []string) (files []string, err error) {
	for _, a := range args {
		info, err := os.Stat(a)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			files = append(files, a)
			continue
		}
		found, err := filepath.Glob(filepath.Join(a, "*.eml"))
		if err != nil {
			return nil, err
		}
		files = append(files, found...)
	}
	return files, nil
}

func importMessage(ctx context.Context, c *trackapi.Client, name string, given *trackapi.QueueEnvelope) (*trackapi.QueueImported, error) {
	env := given
	if env == nil {
		b, err := os.ReadFile(strings.TrimSuffix(name, ".eml") + ".json")
		if err != nil {
			return nil, fmt.Errorf("%w; give the envelope with --from and --recipient", err)
		}
		env = &trackapi.QueueEnvelope{}
		if err := json.Unmarshal(b, env); err != nil {
			return nil, err
		}
	}
	f, err := os.Open(name) //nolint:gosec // the caller names it
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // opened for reading
	return c.ImportMessage(ctx, *env, bufio.NewReader(f))
}
