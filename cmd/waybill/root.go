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

// exitError ends the program with a code. Its text may be empty when all has
// been said.
type exitError struct {
	code int
	err  error
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
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var exit *exitError
	if errors.As(err, &exit) {
		if exit.err != nil {
			fmt.Fprintf(errw, "waybill: %v\n", exit.err)
		}
		return exit.code
	}
	var problem *trackapi.Problem
	switch {
	case errors.As(err, &problem):
		fmt.Fprintf(errw, "waybill: %v\n", problem)
		if problem.Status == http.StatusUnauthorized {
			fmt.Fprintln(errw, "hint: give a token with --token-file, or WAYBILL_TOKEN_FILE")
		}
		return exitNo
	case unreachable(err):
		fmt.Fprintf(errw, "waybill: cannot reach the daemon at %s: %v\n", e.api, cause(err))
		fmt.Fprintln(errw, `hint: is "waybill serve" running? Name its http.listen address with --api or WAYBILL_API`)
		return exitUnreachable
	}
	fmt.Fprintf(errw, "waybill: %v\n", err)
	if isUsage(err) {
		fmt.Fprintln(errw, `hint: "waybill help COMMAND" shows flags and examples`)
		return exitUsage
	}
	return exitNo
}

// usageError is a mistake in the command line.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func isUsage(err error) bool {
	var u usageError
	if errors.As(err, &u) {
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
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

func cause(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
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
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
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
		{"see", []*cobra.Command{trackCmd(e), queueCmd(e), routeCmd(e), sendCmd(e), statusCmd(e)}},
		{"setup", []*cobra.Command{checkCmd(e), configCmd(e), userCmd(e), versionCmd(e)}},
	} {
		for _, c := range g.cmds {
			c.GroupID = g.id
			root.AddCommand(c)
		}
	}
	return root
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
