package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"waybill/relay/queue"
)

func queueRescueCmd(e *env) *cobra.Command {
	var dataDir, to string
	var again bool
	cmd := &cobra.Command{
		Use:   "rescue --data-dir DIR --to DIR",
		Short: "Save what can be read of a damaged queue",
		Long: `Saves every message that can be read of a queue, whatever else is damaged, and
changes nothing in it: the message as messages/QUEUE-ID.eml, its envelope and the
state of its recipients as messages/QUEUE-ID.json. The relay must not be running.

partial/ has messages whose content is damaged, as far as it can be read. orphans/
has contents without an envelope that can be read; some of those were relayed, some
never accepted. report.json counts what was saved and what was not, and why. With
--queue, queue/ is a new queue of all whole messages: move it to where the damaged
one was, DIR/queue. Exit code 1 when something was lost.`,
		Example: `  waybill queue rescue --data-dir /var/lib/waybill --to /var/tmp/saved
  waybill queue rescue --data-dir /var/lib/waybill --to /var/tmp/saved --queue`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dataDir == "" || to == "" {
				return usagef("give --data-dir and --to")
			}
			done, err := queue.Rescue(cmd.Context(), queue.RescueOptions{Dir: filepath.Join(dataDir, "queue"), To: to, Queue: again})
			if err != nil {
				return err
			}
			t := newTable("WHAT", "COUNT")
			t.add("saved whole", fmt.Sprint(done.Messages))
			t.add("saved in part", fmt.Sprint(len(done.Partial)))
			t.add("without any content", fmt.Sprint(len(done.Lost)))
			t.add("records that cannot be read", fmt.Sprint(done.Unreadable))
			t.add("contents without an envelope", fmt.Sprint(done.Orphans))
			t.add("facts for the tracking store", fmt.Sprint(done.Facts))
			if err := render(e, done, []*queue.Rescued{done}, t); err != nil {
				return err
			}
			if e.format == "table" {
				for _, d := range done.Damage {
					e.note("damaged: " + d)
				}
				e.note("everything is in " + to + "; report.json there has the details")
			}
			if len(done.Partial)+len(done.Lost)+done.Unreadable+done.Orphans > 0 {
				return &exitError{code: exitNo, err: errors.New("not everything could be saved"), hint: "look into " + filepath.Join(to, "report.json")}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "`DIR` of the relay's data, as data_dir in its configuration")
	cmd.Flags().StringVar(&to, "to", "", "new `DIR` for what is saved")
	cmd.Flags().BoolVar(&again, "queue", false, "also make a new queue of it")
	return cmd
}
