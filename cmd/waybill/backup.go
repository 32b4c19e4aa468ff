package main

import (
	"fmt"
	"net/http"
	"path/filepath"

	"github.com/spf13/cobra"

	"waybill/cmd/internal/app"
	"waybill/cmd/internal/config"
	"waybill/logtrack/trackapi"
)

func backupCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "backup DIR",
		Short: "Copy queue and tracking store while the relay runs",
		Long: `Has the daemon write a consistent copy of its queue and its tracking store to
DIR, a new or empty directory on the daemon's host, while mail goes on. Every
message that was queued at that moment is in it, with its content, and every
fact. Needs the admin role.

The copy holds the contents of messages and keys: keep it as safe as the relay.`,
		Example: "  waybill backup /var/backups/waybill/monday",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			dir, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			c.HTTP = &http.Client{} // it takes as long as it takes
			done, err := c.Backup(cmd.Context(), trackapi.BackupRequest{Dir: dir})
			if err != nil {
				return err
			}
			t := newTable("DIR", "MESSAGES", "SIZE", "FACTS", "TOOK")
			t.add(done.Dir, fmt.Sprint(done.Messages), e.size(done.Bytes), fmt.Sprint(done.Facts), e.seconds(done.Seconds))
			if err := render(e, done, []*trackapi.BackupDone{done}, t); err != nil {
				return err
			}
			if n := len(done.Damaged); n > 0 {
				return &exitError{code: exitNo, err: fmt.Errorf("%s damaged and not in the backup, such as %s", areOrIs(n), done.Damaged[0])}
			}
			return nil
		},
	}
}

// areOrIs begins a sentence about n contents.
func areOrIs(n int) string {
	if n == 1 {
		return "the content of 1 message is"
	}
	return fmt.Sprintf("the contents of %d messages are", n)
}

func restoreCmd(e *env) *cobra.Command {
	var path, dataDir string
	cmd := &cobra.Command{
		Use:   "restore DIR",
		Short: "Make a data directory of a backup",
		Long: `Makes queue and tracking store of the backup in DIR. The data directory, that of
the configuration or --data-dir, must be new or empty: nothing is overwritten.
Every checksum is compared. The relay must not be running.

Messages that were relayed after the backup was made are queued again and will
be sent twice: hold the queue first if that matters.`,
		Example: `  waybill restore /var/backups/waybill/monday --config /etc/waybill/waybill.yaml
  waybill restore /var/backups/waybill/monday --data-dir /var/lib/waybill`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if dataDir == "" {
				cfg, problems := config.Load(path)
				if problems.Errors() {
					e.problems(problems)
					return &exitError{code: exitNo, err: fmt.Errorf("no data directory: name it with --data-dir, or a configuration with --config")}
				}
				dataDir = cfg.DataDir
			}
			done, err := app.Restore(cmd.Context(), args[0], dataDir)
			if err != nil {
				return err
			}
			t := newTable("MADE", "HOSTNAME", "MESSAGES", "SIZE", "FACTS")
			t.add(e.clock(done.Made), done.Hostname, fmt.Sprint(done.Messages), e.size(done.Bytes), fmt.Sprint(done.Facts))
			return render(e, done, []*app.Restored{done}, t)
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "data `DIR` to make, instead of that of the configuration")
	return cmd
}
