package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"waybill/cmd/internal/app"
	"waybill/cmd/internal/config"
)

// configFlag adds --config.
func configFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVarP(path, "config", "c", envOr("WAYBILL_CONFIG", "waybill.yaml"), "configuration `FILE` (WAYBILL_CONFIG)")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml")
}

func serveCmd(e *env) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the relay",
		Long: `Runs the relay, its tracking store and its HTTP side until SIGTERM or SIGINT.

SIGHUP reads the configuration again: receive and send connectors, routing,
accepted domains, users, certificates and tokens change without dropping a
session. A file with a mistake changes nothing. SIGTERM drains and ends within 30 seconds, a second one ends at
once; no accepted message is lost either way.`,
		Example: "  waybill serve --config /etc/waybill/waybill.yaml",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return e.serve(cmd.Context(), path) },
	}
	configFlag(cmd, &path)
	return cmd
}

func (e *env) serve(ctx context.Context, path string) error {
	load := func() (*config.Config, error) {
		cfg, problems := config.Load(path)
		return cfg, problems.Err()
	}
	cfg, problems := config.Load(path)
	e.problems(problems)
	if problems.Errors() {
		return &exitError{exitNo, errors.New("the configuration has errors; nothing was started"), fmt.Sprintf("waybill check --config %s says the same without starting", path)}
	}
	a, err := app.New(app.Options{Config: cfg, Load: load, Commit: commit()})
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	for {
		select {
		case err := <-ended:
			return err
		case s := <-signals:
			switch {
			case s == syscall.SIGHUP:
				if err := a.Reload(); err != nil {
					fmt.Fprintf(e.err, "waybill: reload: %v\nhint: the old configuration stays in use\n", err)
				}
			case ctx.Err() == nil:
				cancel()
			default:
				return &exitError{code: exitNo, err: errors.New("ended at once by a second signal")}
			}
		}
	}
}

// problems writes what is wrong with a configuration.
func (e *env) problems(list config.Problems) {
	for _, p := range list {
		fmt.Fprintln(e.err, p)
	}
}
