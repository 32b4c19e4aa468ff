package main

import (
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"waybill/cmd/internal/demo"
)

func demoCmd(e *env) *cobra.Command {
	var dir string
	var rate float64
	var length time.Duration
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "A complete relay on this machine, with mail flowing",
		Long: `Runs the real relay on loopback with next hops that accept, greylist, bounce,
throttle, stall and are down, and a steady flow of mail. Shows what happens, and
says what to try in another terminal. Nothing leaves this machine.`,
		Example: "  waybill demo\n  waybill demo --rate 50 --for 5m --dir demo",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if rate <= 0 || rate > 5000 {
				return usagef("--rate %g: more than 0 and at most 5000 messages a second", rate)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return demo.Run(ctx, demo.Options{
				Dir: dir, Rate: rate, For: length, Out: e.out, Live: e.terminal(), Color: e.terminal() && !e.noColor, Width: min(e.columns(), 200), Height: e.lines(), Program: or(os.Args[0], "waybill"),
			})
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "keep the demo's data in `DIR` (default: a temporary folder)")
	cmd.Flags().Float64Var(&rate, "rate", 8, "messages a second")
	cmd.Flags().DurationVar(&length, "for", 0, "end after this long (default: until ctrl-c)")
	return cmd
}
