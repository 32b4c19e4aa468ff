package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"waybill/logtrack/trackapi"
)

// transcriptOf asks for the conversations of a message, or of a session when
// there is no message with that id.
func transcriptOf(ctx context.Context, c *trackapi.Client, id string) (*trackapi.Transcript, error) {
	tr, err := c.Transcript(ctx, id)
	if p, ok := errors.AsType[*trackapi.Problem](err); !ok || p.Status != http.StatusNotFound {
		return tr, err
	}
	tr, sessionErr := c.SessionTranscript(ctx, id)
	if p, ok := errors.AsType[*trackapi.Problem](sessionErr); ok && p.Status == http.StatusNotFound {
		return nil, err // there is neither
	}
	return tr, sessionErr
}

// transcriptTable has one row a line.
func transcriptTable(tr *trackapi.Transcript) *table {
	t := newTable("SESSION", "QUEUE ID", "DIRECTION", "PEER", "SEQ", "AT", "FROM", "TEXT", "BYTES")
	for _, c := range tr.Conversations {
		for _, l := range c.Lines {
			t.add(c.Session, c.QueueID, c.Direction, c.Peer, fmt.Sprint(l.Seq), fmt.Sprintf("%.6f", l.At), l.From, l.Text, fmt.Sprint(l.Bytes))
		}
	}
	return t
}

// pauseShown is from when on the wait before a line is pointed out.
const pauseShown = 1.0

// drawTranscript draws conversations for a terminal.
func (e *env) drawTranscript(tr *trackapi.Transcript) error {
	var b strings.Builder
	for i, c := range tr.Conversations {
		if i > 0 {
			b.WriteByte('\n')
		}
		e.drawHead(&b, &c)
		before := 0.0
		for _, l := range c.Lines {
			wait := ""
			if d := l.At - before; d >= pauseShown {
				wait = "+" + seconds(d)
			}
			before = l.At
			fmt.Fprintf(&b, "%s %s %s %s\n", e.paint("dim", fmt.Sprintf("%5d %9.3f", l.Seq, l.At)), e.paint("yellow", fmt.Sprintf("%8s", wait)), e.arrow(l.From), e.said(&l))
		}
	}
	if tr.Note != "" {
		fmt.Fprintln(&b, tr.Note)
	}
	_, err := io.WriteString(e.out, b.String())
	return err
}

// drawHead says whose conversation follows, and why it was kept.
func (e *env) drawHead(b *strings.Builder, c *trackapi.Conversation) {
	who := clean(c.Peer) + " → us"
	if c.Direction == "outbound" {
		who = "us → " + or(clean(c.Peer), "nobody")
	}
	fmt.Fprintf(b, "%s  %s", e.paint("bold", clean(c.Direction)+"  "+who), e.paint("dim", c.Time.Local().Format("2006-01-02 15:04:05.000")))
	if c.Attempt > 0 {
		fmt.Fprintf(b, "  attempt %d", c.Attempt)
	}
	if c.Disposition != "" {
		fmt.Fprintf(b, "  %s", e.paint(cellStyle("DISPOSITION", c.Disposition), c.Disposition))
	}
	b.WriteByte('\n')
	parts := []string{prefix("session ", c.Session), prefix("connector ", c.Connector), prefix("user ", c.AuthUser), prefix("kept: ", strings.ReplaceAll(c.Reason, "_", " ")), count(c.Said, "line")}
	if c.Cut > 0 {
		parts = append(parts, fmt.Sprintf("%d left out", c.Cut))
	}
	shown := parts[:0]
	for _, p := range parts {
		if p != "" {
			shown = append(shown, clean(p))
		}
	}
	fmt.Fprintf(b, "%s\n", e.paint("dim", strings.Join(shown, " · ")))
}

// arrow says who speaks: → C: the client, ← S: the server.
func (e *env) arrow(from string) string {
	switch from {
	case "client":
		return e.paint("cyan", "→ C:")
	case "server":
		return "← S:"
	}
	return e.paint("dim", "   ·")
}

// said is a line's text in the colour of what it means.
func (e *env) said(l *trackapi.TranscriptLine) string {
	text := clean(l.Text)
	switch {
	case l.From == "note":
		return e.paint("dim", text)
	case l.Text == "(content)":
		return e.paint("dim", "(content, "+size(l.Bytes)+")")
	case l.From == "server" && strings.HasPrefix(text, "4"):
		return e.paint("yellow", text)
	case l.From == "server" && strings.HasPrefix(text, "5"):
		return e.paint("red", text)
	}
	return text
}

// protocolFlags adds the flags of a tail of conversations.
func protocolFlags(cmd *cobra.Command, protocol *bool, f *trackapi.ProtocolFilter) {
	flags := cmd.Flags()
	flags.BoolVar(protocol, "protocol", false, "conversations line by line while they happen, by --client, --connector, --remote-host, --direction and --session")
	flags.StringVar(&f.Direction, "direction", "", "with --protocol: `WORD` inbound or outbound")
	flags.StringVar(&f.Session, "session", "", "with --protocol: `ID` of one session")
	flags.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "client" {
			name = "client-ip"
		}
		return pflag.NormalizedName(name)
	})
}

// protocolOnly are the flags that go with --protocol.
var protocolOnly = map[string]bool{"protocol": true, "client-ip": true, "connector": true, "remote-host": true, "direction": true, "session": true}

// watch shows conversations while they happen.
func (e *env) watch(ctx context.Context, cmd *cobra.Command, c *trackapi.Client, q *trackapi.Query, f trackapi.ProtocolFilter) error {
	var wrong []string
	cmd.Flags().Visit(func(flag *pflag.Flag) {
		if !protocolOnly[flag.Name] && cmd.InheritedFlags().Lookup(flag.Name) == nil {
			wrong = append(wrong, "--"+flag.Name)
		}
	})
	if len(wrong) > 0 || q.Q != "" {
		return usagef("--protocol goes with --client, --connector, --remote-host, --direction and --session only; leave out %s", strings.TrimSpace(strings.Join(wrong, ", ")+" "+q.Q))
	}
	f.ClientIP, f.Connector, f.RemoteHost = q.ClientIP, q.Connector, q.RemoteHost
	return c.TailProtocol(ctx, f, e.spoken)
}

// spoken writes one line of a conversation that happens now.
func (e *env) spoken(l trackapi.ProtocolLine) error {
	if e.format != "table" {
		b, err := json.Marshal(l)
		if err == nil {
			_, err = fmt.Fprintf(e.out, "%s\n", b)
		}
		return err
	}
	who := or(l.ClientIP, or(l.RemoteName, l.RemoteIP))
	way := "in "
	if l.Direction == "outbound" {
		way = "out"
	}
	_, err := fmt.Fprintf(e.out, "%s %s %s %s %s %s\n", e.paint("dim", l.Time.Local().Format("15:04:05.000")), way, e.paint("cyan", fmt.Sprintf("%-15s", clean(who))),
		e.paint("dim", fmt.Sprintf("%6s", tail(l.Session, 6))), e.arrow(l.From), e.said(&l.TranscriptLine))
	return err
}

// tail is the end of an id, which is enough to tell sessions apart.
func tail(id string, n int) string { return clean(id[max(0, len(id)-n):]) }
