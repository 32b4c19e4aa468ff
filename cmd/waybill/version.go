package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"waybill/cmd/internal/app"
)

func versionCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Version, commit and Go version",
		Example: "  waybill version -o json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := map[string]string{"version": app.Version, "commit": commit(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
			if e.format == "table" {
				_, err := fmt.Fprintf(e.out, "waybill %s (%s, %s, %s)\n", v["version"], or(v["commit"], "no commit recorded"), v["go"], v["platform"])
				return err
			}
			t := newTable("VERSION", "COMMIT", "GO", "PLATFORM")
			t.add(v["version"], v["commit"], v["go"], v["platform"])
			return render(e, v, []map[string]string{v}, t)
		},
	}
}

// commit is what the Go tool recorded of the source.
func commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	rev, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			rev = s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+changes"
		}
	}
	return rev + dirty
}
