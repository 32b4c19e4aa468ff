package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"waybill/cmd/internal/config"
	"waybill/logtrack"
	"waybill/logtrack/trackapi"
	"waybill/logtrack/trackimport"
	"waybill/relay/event"
	"waybill/relay/failure"
)

// offline are the flags of commands that also work on a store that no daemon has open.
type offline struct {
	on     bool
	config string
}

func (o *offline) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.on, "offline", false, "write to the store itself, while the daemon is stopped")
	cmd.Flags().StringVar(&o.config, "config", "/etc/waybill/waybill.yaml", "`FILE` that names the store, with --offline")
}

// open opens the store of the configuration.
func (o *offline) open(e *env) (*logtrack.Store, error) {
	cfg, problems := config.Load(o.config)
	if problems.Errors() {
		e.problems(problems)
		return nil, &exitError{code: exitNo}
	}
	return logtrack.Open(logtrack.Options{
		Dir: filepath.Join(cfg.DataDir, "track"), Retention: time.Duration(cfg.Tracking.Retention), MaxBytes: int64(cfg.Tracking.MaxSize),
		TranscriptRetention: time.Duration(cfg.Tracking.TranscriptRetention), Kinds: cfg.Tracking.KindRetention(),
	})
}

// take hands lines to the store, through the daemon or without it.
func (o *offline) take(ctx context.Context, e *env, lines io.Reader) (done trackapi.Imported, err error) {
	if o.on {
		s, err := o.open(e)
		if err != nil {
			return done, err
		}
		done, err = s.Reindex(ctx, lines)
		return done, errors.Join(err, s.Close())
	}
	c, err := e.client()
	if err != nil {
		return done, err
	}
	c.HTTP.Timeout = 0 // a year of mail takes its time
	answer, err := c.Import(ctx, lines)
	if err != nil {
		return done, err
	}
	return *answer, nil
}

// imported is what an import came to.
type imported struct {
	trackimport.Counts
	Stored trackapi.Imported `json:"stored"`
}

func trackImportCmd(e *env) *cobra.Command {
	var format, zone, host string
	var off offline
	var dry, verbose bool
	cmd := &cobra.Command{
		Use:   "import --format FORMAT FILE...",
		Short: "Take the logs of another mail server into the tracking store",
		Long: `Reads the logs of Exchange, IIS or Postfix and takes what they tell into the
tracking store, so that one search covers what was before and after a migration.
Files may be compressed by gzip; a folder stands for the files in it. They are
read in the order of their first line's place: give rotated logs oldest first.
Lines that cannot be read are reported with file and line, and passed over.
Importing a log twice adds nothing. What was imported has source:import.`,
		Example: `  waybill track import --format exchange-tracking MSGTRK*.LOG
  waybill track import --format exchange-protocol SmtpReceive/ SmtpSend/
  waybill track import --format iis ex240131.log
  waybill track import --format postfix --zone Europe/Berlin mail.log.2.gz mail.log.1 mail.log`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(trackimport.Formats(), format) {
				return usagef("--format: want one of %s", strings.Join(trackimport.Formats(), ", "))
			}
			at := time.Local
			if zone != "" {
				var err error
				if at, err = time.LoadLocation(zone); err != nil {
					return usagef("--zone: %v", err)
				}
			}
			files, err := filesOf(args)
			if err != nil {
				return err
			}
			bad := 0
			opts := trackimport.Options{
				Zone: at, Host: host, Explain: failure.Default().Complete,
				Bad: func(file string, line int, err error) {
					if bad++; bad <= 20 || verbose {
						fmt.Fprintf(e.err, "%s:%d: %v\n", clean(file), line, clean(err.Error()))
					}
				},
				Progress: e.importProgress(files),
			}
			var answer imported
			answer.Counts, answer.Stored, err = e.runImport(cmd.Context(), format, opts, files, dry, &off)
			if bad > 20 && !verbose {
				e.note(fmt.Sprintf("… and %d more bad lines; --verbose shows all", bad-20))
			}
			if err != nil {
				return err
			}
			t := newTable("FILES", "LINES", "BAD", "PASSED OVER", "FACTS", "ADDED", "KNOWN", "TOO OLD")
			t.add(fmt.Sprint(answer.Files), fmt.Sprint(answer.Lines), fmt.Sprint(answer.Bad), fmt.Sprint(answer.Passed), fmt.Sprint(answer.Facts),
				fmt.Sprint(answer.Stored.Added), fmt.Sprint(answer.Stored.Known), fmt.Sprint(answer.Stored.Old))
			if err := render(e, answer, []imported{answer}, t); err != nil {
				return err
			}
			if answer.Stored.Old > 0 {
				e.note("facts past tracking.retention were left out")
			}
			if answer.Facts == 0 {
				return &exitError{code: exitNo}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&format, "format", "", strings.Join(trackimport.Formats(), ", "))
	f.StringVar(&zone, "zone", "", "time `ZONE` of times that name none (default: this machine's)")
	f.StringVar(&host, "host", "", "`NAME` of the server, where the log does not tell")
	f.BoolVar(&dry, "dry-run", false, "read, and store nothing")
	f.BoolVar(&verbose, "verbose", false, "every bad line, not only the first 20")
	off.flags(cmd)
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(trackimport.Formats(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// runImport parses files and hands the facts to the store while it does.
func (e *env) runImport(ctx context.Context, format string, opts trackimport.Options, files []string, dry bool, off *offline) (trackimport.Counts, trackapi.Imported, error) {
	read, write := io.Pipe()
	out := bufio.NewWriterSize(write, 256<<10)
	var line []byte
	opts.Each = func(r *event.Record) (err error) {
		if dry {
			return nil
		}
		if line, err = r.AppendJSON(line[:0]); err != nil {
			return err
		}
		line = append(line, '\n')
		_, err = out.Write(line)
		return err
	}
	im, err := trackimport.New(format, opts)
	if err != nil {
		return trackimport.Counts{}, trackapi.Imported{}, err
	}
	var stored trackapi.Imported
	done := make(chan error, 1)
	go func() {
		var err error
		if !dry {
			stored, err = off.take(ctx, e, read)
		}
		_ = read.CloseWithError(cmpErr(err, io.ErrClosedPipe)) // ends the writer below
		done <- err
	}()
	parsed := readFiles(ctx, im, files)
	if parsed == nil {
		parsed = im.Close()
	}
	if parsed == nil && !dry {
		parsed = out.Flush()
	}
	_ = write.CloseWithError(parsed) // the end of the lines, or why there is none
	if err := <-done; err != nil {
		return im.Counts(), stored, err // the first cause: the other follows from it
	}
	return im.Counts(), stored, parsed
}

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

func readFiles(ctx context.Context, im *trackimport.Importer, files []string) error {
	for _, name := range files {
		f, err := os.Open(name) //nolint:gosec // the user names it
		if err != nil {
			return err
		}
		var modified time.Time
		if st, err := f.Stat(); err == nil {
			modified = st.ModTime()
		}
		err = im.Read(ctx, name, modified, f)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// filesOf lists files; a folder stands for the files in it, in the order of
// their names, which is that of time for the logs of Exchange and IIS.
func filesOf(args []string) (files []string, err error) {
	for _, arg := range args {
		st, err := os.Stat(arg)
		if err != nil {
			return nil, err
		}
		if !st.IsDir() {
			files = append(files, arg)
			continue
		}
		list, err := os.ReadDir(arg)
		if err != nil {
			return nil, err
		}
		for _, d := range list {
			if d.Type().IsRegular() && !strings.HasPrefix(d.Name(), ".") {
				files = append(files, filepath.Join(arg, d.Name()))
			}
		}
	}
	return files, nil
}

// importProgress draws how far an import is, for a person.
func (e *env) importProgress(files []string) func(string, int64, trackimport.Counts) {
	if _, ok := terminalOf(e.err); !ok || e.format != "table" {
		return nil
	}
	return func(file string, _ int64, c trackimport.Counts) {
		fmt.Fprintf(e.err, "\r\x1b[K%d/%d %s: %d lines, %d facts, %d bad", c.Files, len(files), clean(filepath.Base(file)), c.Lines, c.Facts, c.Bad)
		if c.Files == len(files) && c.Lines > 0 {
			fmt.Fprint(e.err, "\r\x1b[K")
		}
	}
}

func trackReindexCmd(e *env) *cobra.Command {
	var off offline
	cmd := &cobra.Command{
		Use:   "reindex [FILE...]",
		Short: "Fill the tracking store from log lines",
		Long: `Reads lines of the relay's own log (files, compressed by gzip or not, or standard
input) and takes the facts that the tracking store does not have: after its disk
was lost, or a part of it was damaged. What is there already stays as it is.`,
		Example: `  waybill track reindex /var/log/waybill/waybill.log*
  waybill track reindex < waybill.log
  waybill track reindex --offline --config /etc/waybill/waybill.yaml waybill.log`,
		RunE: func(cmd *cobra.Command, args []string) error {
			lines := io.NopCloser(cmd.InOrStdin())
			if len(args) > 0 {
				files, err := filesOf(args)
				if err != nil {
					return err
				}
				lines = trackimport.Lines(files)
			}
			done, err := off.take(cmd.Context(), e, lines)
			if err = errors.Join(err, lines.Close()); err != nil {
				return err
			}
			t := newTable("LINES", "ADDED", "KNOWN", "TOO OLD", "NO FACTS")
			t.add(fmt.Sprint(done.Lines), fmt.Sprint(done.Added), fmt.Sprint(done.Known), fmt.Sprint(done.Old), fmt.Sprint(done.Other))
			if err := render(e, done, []trackapi.Imported{done}, t); err != nil {
				return err
			}
			if done.Example != "" && e.format == "table" {
				e.note("no fact: " + done.Example)
			}
			if done.Added+done.Known == 0 {
				return &exitError{code: exitNo}
			}
			return nil
		},
	}
	off.flags(cmd)
	return cmd
}
