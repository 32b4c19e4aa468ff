package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"waybill/logtrack/trackapi"
)

func throttleCmd(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "throttle",
		Short: "Who is stopped by which limit; and how to let them go",
		Example: `  waybill throttle list
  waybill throttle release --key 192.0.2.7 --reason "known office"`,
	}
	return group(cmd, throttleListCmd(e), throttleReleaseCmd(e))
}

func throttleListCmd(e *env) *cobra.Command {
	var q trackapi.ThrottleQuery
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "Who is stopped now, or was in the last ten minutes",
		Example: `  waybill throttle list
  waybill throttle list --all --rule per-customer
  waybill throttle list --key 192.0.2. -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			answer, err := c.Throttles(cmd.Context(), q)
			if err != nil {
				return err
			}
			t := newTable("RULE", "KEY", "STATE", "USED", "LIMIT", "ACTION", "UNTIL", "HITS", "LAST HIT")
			t.flex, t.spare = []int{0, 1}, []int{8, 5, 7}
			for _, r := range answer.Throttles {
				state := "ok"
				if r.Engaged {
					state = "stopped"
				}
				t.add(r.Rule, r.Key, state, fmt.Sprintf("%d/%d", r.Used, r.Burst), limitText(r), r.Action, e.until(r.Until), fmt.Sprint(r.Hits), e.clock(r.LastHit))
			}
			if err := render(e, answer, answer.Throttles, t); err != nil {
				return err
			}
			if e.format == "table" {
				note := count(answer.Total, "key")
				if n := len(answer.Throttles); n < answer.Total {
					note = fmt.Sprintf("the first %d of %s; more with --limit", n, note)
				}
				if !q.All {
					note += " stopped now or lately; all with --all"
				}
				e.note(note)
			}
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&q.Rule, "rule", "", "rule `NAME`")
	fl.StringVar(&q.Key, "key", "", "a `PART` of the address, network, user, sender or connector")
	fl.BoolVar(&q.All, "all", false, "also who is within the limits")
	fl.IntVar(&q.Limit, "limit", 1000, "at most `N` rows")
	return cmd
}

// limitText is a limit as the configuration writes it.
func limitText(r trackapi.Throttle) string {
	amount := fmt.Sprintf("%d %s", r.Amount, r.What)
	if r.What == "bytes" {
		amount = size(r.Amount)
	}
	if r.Per > 0 {
		per := time.Duration(r.Per * float64(time.Second)).String()
		if strings.HasSuffix(per, "m0s") {
			per = strings.TrimSuffix(per, "0s")
		}
		if strings.HasSuffix(per, "h0m") {
			per = strings.TrimSuffix(per, "0m")
		}
		return amount + "/" + per
	}
	return amount
}

func throttleReleaseCmd(e *env) *cobra.Command {
	var a trackapi.ThrottleAction
	cmd := &cobra.Command{
		Use:   "release",
		Short: "Forget what somebody has used of a limit",
		Long: `Whoever is released begins again with nothing used. Connections that are open
stay counted. It is a fact with your name on it.`,
		Example: `  waybill throttle release --key 192.0.2.7
  waybill throttle release --rule per-customer --key app1 --reason "month's end"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.Rule == "" && a.Key == "" {
				return usagef("whom? Name a --key, a --rule, or both")
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			a.Action = "release"
			did, err := c.ActOnThrottles(cmd.Context(), a)
			if err != nil {
				return err
			}
			if e.format != "table" {
				t := newTable("RELEASED")
				t.add(fmt.Sprint(did.Released))
				err = render(e, did, []*trackapi.ThrottleActed{did}, t)
			} else {
				_, err = fmt.Fprintf(e.out, "%s released\n", count(did.Released, "key"))
			}
			if err == nil && did.Released == 0 {
				return &exitError{code: exitNo}
			}
			return err
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&a.Rule, "rule", "", "rule `NAME`")
	fl.StringVar(&a.Key, "key", "", "`KEY` as throttle list shows it")
	fl.StringVar(&a.Reason, "reason", "", "why, for the record")
	return cmd
}
