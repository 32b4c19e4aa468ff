package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"waybill/logtrack/trackapi"
	"waybill/logtrack/trackexport"
	"waybill/relay/event"
	"waybill/relay/otlplog"
)

var exportFormats = []string{"jsonl", "exchange", "otlp"}

func trackExportCmd(e *env) *cobra.Command {
	var q trackapi.Query
	var from, to, format, file, endpoint, headers string
	cmd := &cobra.Command{
		Use:   "export [FILTER...]",
		Short: "Write facts as JSON lines, in Exchange's format, or to a collector",
		Long: `Writes every fact that the filters select, oldest first: as JSON lines (what
"track reindex" reads), in the format of Exchange's message-tracking log (30
columns), or as OpenTelemetry logs to a collector.`,
		Example: `  waybill track export --from 7d > facts.jsonl
  waybill track export --format exchange --from 2026-01-31 --to 2026-02-01 --file MSGTRK20260131.LOG
  waybill track export --format otlp --endpoint http://127.0.0.1:4318 recipient:*@example.com`,
		RunE: func(cmd *cobra.Command, args []string) error {
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
			if q.To.IsZero() {
				q.To = time.Now() // one moment for all pages
			}
			q.Q, q.Sort, q.Limit = strings.Join(args, " "), "time", trackapi.MaxLimit
			var out exporter
			switch {
			case format == "otlp":
				out, err = newOTLPExporter(endpoint, headers)
			case endpoint != "" || headers != "":
				err = usagef("--endpoint and --headers-file go with --format otlp")
			case !slices.Contains(exportFormats, format):
				err = usagef("--format: want one of %s", strings.Join(exportFormats, ", "))
			default:
				out, err = newFileExporter(e.out, format, file)
			}
			if err != nil {
				return err
			}
			n, err := exportFacts(cmd.Context(), c, q, out)
			if err = errors.Join(err, out.close()); err != nil {
				return err
			}
			e.note(fmt.Sprintf("%s written", count(n, "fact")))
			if n == 0 {
				return &exitError{code: exitNo}
			}
			return nil
		},
	}
	queryFlags(cmd, &q, &from, &to)
	f := cmd.Flags()
	f.StringVar(&q.Event, "event", "", "`LIST` of facts, such as message_queued,recipient_bounced")
	f.StringVar(&format, "format", "jsonl", strings.Join(exportFormats, ", "))
	f.StringVar(&file, "file", "", "write to `FILE`, which must not be there yet (default: standard output)")
	f.StringVar(&endpoint, "endpoint", "", "`URL` of an OTLP collector (HTTP)")
	f.StringVar(&headers, "headers-file", "", "`FILE` with header fields for the collector, such as Authorization: Bearer …")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(exportFormats, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// exporter takes facts. write says whether the fact has a place in the format.
type exporter interface {
	write(raw json.RawMessage) (bool, error)
	page() error // some hundred facts are written
	close() error
}

// exportFacts gives all pages to out.
func exportFacts(ctx context.Context, c *trackapi.Client, q trackapi.Query, out exporter) (n int, err error) {
	for {
		answer, err := c.Events(ctx, q)
		if err != nil {
			return n, err
		}
		for _, raw := range answer.Events {
			written, err := out.write(raw)
			if err != nil {
				return n, err
			}
			if written {
				n++
			}
		}
		if err := out.page(); err != nil {
			return n, err
		}
		if q.Cursor = answer.Cursor; q.Cursor == "" {
			if answer.Cut != "" {
				return n, fmt.Errorf("not everything could be read: %s", answer.Cut)
			}
			return n, nil
		}
	}
}

// fileExporter writes lines.
type fileExporter struct {
	file     *os.File // nil for standard output
	out      *bufio.Writer
	exchange *trackexport.Writer
}

func newFileExporter(stdout io.Writer, format, file string) (*fileExporter, error) {
	x := &fileExporter{}
	w := stdout
	if file != "" {
		f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // the user names it
		if err != nil {
			return nil, err
		}
		x.file, w = f, f
	}
	x.out = bufio.NewWriterSize(w, 256<<10)
	if format == "exchange" {
		var err error
		if x.exchange, err = trackexport.NewWriter(x.out, time.Now()); err != nil {
			return nil, err
		}
	}
	return x, nil
}

func (x *fileExporter) write(raw json.RawMessage) (bool, error) {
	if x.exchange == nil {
		_, err := x.out.Write(append(raw, '\n'))
		return true, err
	}
	var r event.Record
	if err := json.Unmarshal(raw, &r); err != nil {
		return false, nil //nolint:nilerr // a fact of a newer daemon has no line in Exchange's format
	}
	return x.exchange.Write(&r)
}

func (x *fileExporter) page() error { return nil }

func (x *fileExporter) close() error {
	var err error
	if x.exchange != nil {
		err = x.exchange.Flush()
	}
	err = errors.Join(err, x.out.Flush())
	if x.file != nil {
		err = errors.Join(err, x.file.Close())
	}
	return err
}

// otlpExporter sends to a collector, no faster than that takes it.
type otlpExporter struct {
	log     *otlplog.Log
	trouble chan error
}

func newOTLPExporter(endpoint, headers string) (*otlpExporter, error) {
	if endpoint == "" {
		return nil, usagef("--format otlp needs --endpoint")
	}
	if err := otlplog.CheckEndpoint(endpoint); err != nil {
		return nil, usagef("--endpoint: %v", err)
	}
	x := &otlpExporter{trouble: make(chan error, 1)}
	host, _ := os.Hostname() // an empty name is none
	opts := otlplog.Options{Endpoint: endpoint, Compress: true, Host: host, Trouble: func(err error) {
		select {
		case x.trouble <- err:
		default:
		}
	}}
	if headers != "" {
		b, err := os.ReadFile(headers) //nolint:gosec // the user names it
		if err != nil {
			return nil, err
		}
		h, err := otlplog.ParseHeader(string(b))
		if err != nil {
			return nil, fmt.Errorf("--headers-file: %w", err)
		}
		opts.Header = func() (http.Header, error) { return h, nil }
	}
	var err error
	x.log, err = otlplog.New(opts)
	return x, err
}

func (x *otlpExporter) write(raw json.RawMessage) (bool, error) {
	var r event.Record
	if err := json.Unmarshal(raw, &r); err != nil {
		return false, nil //nolint:nilerr // a fact of a newer daemon
	}
	x.log.Write(&r)
	return true, nil
}

// page waits until the collector has what was written.
func (x *otlpExporter) page() error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		st := x.log.Stats()
		for reason, n := range st.Dropped {
			if n > 0 {
				select {
				case err := <-x.trouble:
					return fmt.Errorf("the collector did not take %d facts (%s): %w", n, reason, err)
				default:
					return fmt.Errorf("the collector did not take %d facts (%s)", n, reason)
				}
			}
		}
		if st.Pending == 0 {
			return nil
		}
		<-tick.C
	}
}

func (x *otlpExporter) close() error {
	err := x.log.Close()
	return errors.Join(err, x.page())
}
