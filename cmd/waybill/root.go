package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"waybill/logtrack/trackapi"
)

// Exit codes of the program.
const (
	exitOK          = 0
	exitNo          = 1 // a negative answer: not found, invalid, failed
	exitUsage       = 2
	exitUnreachable = 3 // no daemon at --api
)

// exitError ends the program with a code. Without an error all has been said.
type exitError struct {
	code int
	err  error
	hint string // what to do; may be empty
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// env is what every command shares: streams and global flags.
type env struct {
	in       io.Reader
	out, err io.Writer

	api       string
	tokenFile string
	format    string
	noColor   bool
}

// run is the program; main gives it the real streams.
func run(ctx context.Context, args []string, in io.Reader, out, errw io.Writer) int {
	e := &env{in: in, out: out, err: errw}
	root := newRoot(e)
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errw)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	code := e.explain(err)
	if code == exitUsage {
		fmt.Fprintln(errw, "hint: "+usageOf(cmd, err))
	}
	return code
}

// usageOf says how a command that was used wrongly is used.
func usageOf(cmd *cobra.Command, err error) string {
	if cmd.Name() == "help" {
		return `"waybill help" lists the commands`
	}
	help := strings.TrimSpace("waybill help " + strings.TrimPrefix(strings.TrimPrefix(cmd.CommandPath(), "waybill"), " "))
	if text := err.Error(); strings.HasPrefix(text, "accepts ") || strings.HasPrefix(text, "requires ") { // cobra's words for arguments
		return fmt.Sprintf("it goes %s; %q shows examples", strings.TrimSuffix(cmd.UseLine(), " [flags]"), help)
	}
	return fmt.Sprintf("%q shows flags and examples", help)
}

// explain says what went wrong, and what to do about it, and returns the exit code.
func (e *env) explain(err error) int {
	errw := e.err
	if exit, ok := errors.AsType[*exitError](err); ok {
		if exit.err != nil {
			fmt.Fprintf(errw, "waybill: %v\n", exit.err)
		}
		if exit.hint != "" {
			fmt.Fprintln(errw, "hint: "+exit.hint)
		}
		return exit.code
	}
	if problem, ok := errors.AsType[*trackapi.Problem](err); ok {
		fmt.Fprintf(errw, "waybill: %v\n", problem)
		if problem.Status == http.StatusUnauthorized {
			fmt.Fprintln(errw, "hint: give a token with --token-file, or WAYBILL_TOKEN_FILE")
		}
		if problem.IsBadParameter() {
			return exitUsage
		}
		return exitNo
	}
	if unreachable(err) {
		fmt.Fprintf(errw, "waybill: cannot reach the daemon at %s: %v\n", e.api, cause(err))
		fmt.Fprintln(errw, `hint: is "waybill serve" running? Name its http.listen address with --api or WAYBILL_API`)
		return exitUnreachable
	}
	fmt.Fprintf(errw, "waybill: %v\n", err)
	if isUsage(err) {
		return exitUsage
	}
	return exitNo
}

// group makes cmd a noun: alone it shows its help, and a wrong verb is a mistake.
func group(cmd *cobra.Command, verbs ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(verbs...)
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		var known []string
		for _, c := range cmd.Commands() {
			known = append(known, c.Name())
		}
		return usagef("%s has no command %q; it has %s", cmd.CommandPath(), args[0], strings.Join(known, ", "))
	}
	return cmd
}

// usageError is a mistake in the command line.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func isUsage(err error) bool {
	if _, ok := errors.AsType[usageError](err); ok {
		return true
	}
	// cobra has no types for its own complaints.
	for _, s := range []string{"unknown command", "unknown flag", "unknown shorthand", "accepts ", "requires ", "invalid argument", "flag needs an argument", "required flag"} {
		if strings.HasPrefix(err.Error(), s) {
			return true
		}
	}
	return false
}

func unreachable(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

func cause(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

func newRoot(e *env) *cobra.Command {
	root := &cobra.Command{
		Use:   "waybill",
		Short: "An SMTP relay that shows where every message is",
		Long: `Waybill relays mail, and shows where every message is, where it went, and why
it is late.

  waybill demo                   a complete relay on this machine, with mail flowing
  waybill serve --config FILE    the daemon
  waybill track search ...       find any message by sender, recipient, ...
  waybill queue list             what waits, for whom, and since when`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if strings.Contains(cmd.Use, "FILTER") && strings.Contains(err.Error(), ":") && strings.Contains(err.Error(), "shorthand") {
			return usageError{fmt.Errorf("%w; a filter that begins with - goes after --, as in: %s -- -class:greylist", err, cmd.CommandPath())}
		}
		return usageError{err}
	})
	pf := root.PersistentFlags()
	pf.StringVar(&e.api, "api", envOr("WAYBILL_API", "http://127.0.0.1:8025"), "`URL` of the daemon (WAYBILL_API)")
	pf.StringVar(&e.tokenFile, "token-file", os.Getenv("WAYBILL_TOKEN_FILE"), "`FILE` with the API token (WAYBILL_TOKEN_FILE)")
	pf.StringVarP(&e.format, "output", "o", "table", "table, json, jsonl or csv")
	pf.BoolVar(&e.noColor, "no-color", os.Getenv("NO_COLOR") != "", "no colours (NO_COLOR)")
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		switch e.format {
		case "table", "json", "jsonl", "csv":
			return nil
		}
		return usagef("--output %s: table, json, jsonl or csv", e.format)
	}
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "jsonl", "csv"}, cobra.ShellCompDirectiveNoFileComp))
	root.AddGroup(
		&cobra.Group{ID: "daemon", Title: "Run a relay:"},
		&cobra.Group{ID: "see", Title: "See and steer the mail:"},
		&cobra.Group{ID: "setup", Title: "Set up:"},
	)
	root.SetHelpCommandGroupID("setup")
	root.SetCompletionCommandGroupID("setup")
	for _, g := range []struct {
		id   string
		cmds []*cobra.Command
	}{
		{"daemon", []*cobra.Command{serveCmd(e), demoCmd(e), healthcheckCmd(e)}},
		{"see", []*cobra.Command{trackCmd(e), queueCmd(e), throttleCmd(e), routeCmd(e), replyCmd(e), sendCmd(e), statusCmd(e)}},
		{"setup", []*cobra.Command{backupCmd(e), restoreCmd(e), checkCmd(e), selftestCmd(e), probeCmd(e), configCmd(e), userCmd(e), versionCmd(e)}},
	} {
		for _, c := range g.cmds {
			c.GroupID = g.id
			root.AddCommand(c)
		}
	}
	strictHelp(root)
	return root
}

// strictHelp makes a topic that there is not a mistake: cobra's own help takes it
// for success, and a verb that a noun has not for the noun.
func strictHelp(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	help, _, err := root.Find([]string{"help"})
	if err != nil {
		panic(err) // it was added just now
	}
	help.Run = nil
	help.RunE = func(_ *cobra.Command, args []string) error {
		topic, rest, err := root.Find(args)
		if err != nil || len(rest) > 0 {
			return usagef("unknown help topic %q", strings.Join(args, " "))
		}
		topic.InitDefaultHelpFlag()
		return topic.Help()
	}
}

func envOr(name, other string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return other
}

// client returns a client for the daemon's API.
func (e *env) client() (*trackapi.Client, error) {
	u, err := url.Parse(e.api)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, usagef("--api %s: want a URL such as http://127.0.0.1:8025", e.api)
	}
	c := &trackapi.Client{BaseURL: strings.TrimSuffix(e.api, "/"), HTTP: &http.Client{Timeout: 2 * time.Minute}}
	if e.tokenFile != "" {
		b, err := os.ReadFile(e.tokenFile)
		if err != nil {
			return nil, err
		}
		c.Token = strings.TrimSpace(string(b))
	}
	return c, nil
}
