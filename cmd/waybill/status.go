package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"waybill/logtrack/trackapi"
)

func statusCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "The daemon: version, readiness, tracking store",
		Example: "  waybill status",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			t := newTable("HOST", "VERSION", "UP", "READY", "PRESSURE", "EVENTS", "STORE", "OLDEST", "INDEX LAG")
			ready := "yes"
			if !s.Ready {
				ready = "no: " + s.Why
			}
			t.flex, t.spare = []int{0, 3, 4}, []int{8, 7, 1}
			t.add(s.Hostname, s.Version, e.seconds(time.Since(s.Started).Seconds()), ready, pressureText(s.Pressure), fmt.Sprint(s.Events), e.size(s.StoreSize), e.clock(s.Oldest), e.seconds(s.IndexLag))
			if err := render(e, s, []*trackapi.Status{s}, t); err != nil {
				return err
			}
			if e.format == "table" {
				if s.TrackingWhy != "" {
					e.note("tracking is " + s.Tracking + ": " + s.TrackingWhy)
				}
				for _, r := range s.Pressure.Resources {
					if r.Level > 0 {
						e.note(fmt.Sprintf("%s is %s (%s) since %s: %s", r.Resource, levelWord(r.Level), r.Detail, clock(r.Since), stageText[r.Stage]))
					}
				}
			}
			if !s.Ready {
				return &exitError{code: exitNo}
			}
			return nil
		},
	}
}

// stageText is what the relay does about back-pressure, for people.
var stageText = map[string]string{
	"open": "nothing is held back", "slow": "acknowledgements are slow", "strangers": "strangers are refused",
	"all": "all mail is refused", "shut": "connections are turned away",
}

func levelWord(level int) string {
	if level > 1 {
		return "high"
	}
	return "medium"
}

// pressureText names the stage, and the resources that are short.
func pressureText(p trackapi.Pressure) string {
	words := []string{p.Stage}
	for _, r := range p.Resources {
		if r.Level > 0 {
			words = append(words, r.Resource)
		}
	}
	return strings.Join(words, " ")
}

// healthcheckCmd is for container images that have no other program in them.
func healthcheckCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "healthcheck",
		Short:   "Exit 0 when the daemon is ready (for containers)",
		Example: "  waybill healthcheck --api http://127.0.0.1:8025",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(e.api, "/")+"/-/ready", nil)
			if err != nil {
				return usageError{err}
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			defer func() { _ = resp.Body.Close() }() // read or not, it is over
			if resp.StatusCode != http.StatusOK {
				return &exitError{code: exitNo, err: fmt.Errorf("not ready: %s", resp.Status)}
			}
			return nil
		},
	}
}
