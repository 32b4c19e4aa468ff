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
			t := newTable("HOST", "VERSION", "UP", "READY", "EVENTS", "STORE", "OLDEST", "INDEX LAG")
			ready := "yes"
			if !s.Ready {
				ready = "no: " + s.Why
			}
			t.flex, t.spare = []int{0, 3}, []int{7, 6, 1}
			t.add(s.Hostname, s.Version, e.seconds(time.Since(s.Started).Seconds()), ready, fmt.Sprint(s.Events), e.size(s.StoreSize), e.clock(s.Oldest), e.seconds(s.IndexLag))
			if err := render(e, s, []*trackapi.Status{s}, t); err != nil {
				return err
			}
			if !s.Ready {
				return &exitError{code: exitNo}
			}
			return nil
		},
	}
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
