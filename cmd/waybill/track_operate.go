package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"waybill/logtrack/trackapi"
)

func trackStatsCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "stats",
		Short:   "How large the tracking store is, how far behind, and what it lost",
		Example: "  waybill track stats\n  waybill track stats -o json | jq .indexes",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			st, err := c.TrackStats(cmd.Context())
			if err != nil {
				return err
			}
			t := newTable("DAY", "FACTS", "BLOCKS", "SIZE", "OLDEST", "NEWEST", "STATE")
			for _, p := range st.Partitions {
				state := "closed"
				if p.Open {
					state = "open"
				}
				t.add(p.Name, fmt.Sprint(p.Facts), fmt.Sprint(p.Blocks), e.size(p.Bytes), e.clock(p.Oldest), e.clock(p.Newest), state)
			}
			if err := render(e, st, st.Partitions, t); err != nil || e.format != "table" {
				return err
			}
			e.note(fmt.Sprintf("%s, %s on disk, index %s behind, %d blocks waiting, %d seen twice", count(int(st.Facts), "fact"), size(st.Bytes), seconds(st.IndexLag), st.Waiting, st.Duplicates))
			for _, x := range st.Indexes {
				if x.Entries > 0 {
					e.note(fmt.Sprintf("index %-16s %10d entries %s", x.Index, x.Entries, size(x.Bytes)))
				}
			}
			for _, what := range []struct {
				name string
				n    map[string]int64
			}{{"dropped", st.Dropped}, {"errors", st.WriteErrors}} {
				for reason, n := range what.n {
					if n > 0 {
						e.note(fmt.Sprintf("%s %s: %d", what.name, reason, n))
					}
				}
			}
			if st.Degraded != "" {
				e.note("degraded: " + st.Degraded)
				return &exitError{code: exitNo}
			}
			return nil
		},
	}
}

func trackVerifyCmd(e *env) *cobra.Command {
	var repair bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check the tracking store against itself and the queue",
		Long: `Reads every fact, looks every value up in the indexes, and compares the messages
that have not left with those in the queue. Exit code 1 when anything differs.
With --repair, damaged parts are taken out of the store first; "waybill track
reindex" brings their facts back from the log.`,
		Example: "  waybill track verify\n  waybill track verify --repair",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			c.HTTP.Timeout = 0 // it reads everything
			if repair {
				done, err := c.Repair(cmd.Context())
				if err != nil {
					return err
				}
				e.note(fmt.Sprintf("%s taken out, %s written anew or put aside", count(done.Blocks, "damaged block"), count(done.Partitions, "partition")))
			}
			v, err := c.Verify(cmd.Context())
			if err != nil {
				return err
			}
			t := newTable("FACTS", "BLOCKS", "DAMAGED", "LEFT OUT", "UNINDEXED", "TWICE", "QUEUED", "MISSING", "LINGERING")
			t.add(fmt.Sprint(v.Facts), fmt.Sprint(v.Blocks), fmt.Sprint(len(v.Damaged)), fmt.Sprint(len(v.LeftOut)), fmt.Sprint(v.Unindexed),
				fmt.Sprint(v.Duplicates), fmt.Sprint(v.Queued), fmt.Sprint(len(v.Missing)), fmt.Sprint(len(v.Lingering)))
			if err := render(e, v, []*trackapi.Verified{v}, t); err != nil {
				return err
			}
			if e.format == "table" {
				e.verified(v)
			}
			if !v.OK {
				return &exitError{code: exitNo}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "take damaged parts out first")
	return cmd
}

// verified says what differs, line by line.
func (e *env) verified(v *trackapi.Verified) {
	for _, d := range v.Damaged {
		e.note(fmt.Sprintf("damaged: block %d of %s with %s: %s", d.Block, d.Partition, count(d.Facts, "fact"), d.Error))
	}
	for _, name := range v.LeftOut {
		e.note("cannot be opened: " + name)
	}
	for _, id := range v.Missing {
		e.note("in the queue, and tracking does not know it, or knows that it left: " + id)
	}
	for _, id := range v.Lingering {
		e.note("not in the queue, and tracking does not know that it left: " + id)
	}
	if v.Note != "" {
		e.note(v.Note)
	}
	if v.OK {
		e.note(fmt.Sprintf("nothing differs (%s)", time.Duration(v.TookMS*float64(time.Millisecond)).Round(time.Millisecond)))
	}
}

func trackEraseCmd(e *env) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "erase ADDRESS",
		Short: "Take an address out of everything that tracking has recorded",
		Long: `Takes an address out of all facts: out of their fields and texts, with the subject
of its mail, and the conversations in which it was said. The days that have it
are written anew. Mail that comes later is recorded again. The relay's log is
not touched. It needs the admin role, and is recorded without the address.`,
		Example: "  waybill track erase ann@example.com --yes",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				return usagef("this cannot be undone: repeat it with --yes")
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			c.HTTP.Timeout = 0
			done, err := c.Erase(cmd.Context(), strings.TrimSpace(args[0]))
			if err != nil {
				return err
			}
			t := newTable("FACTS", "PARTITIONS")
			t.add(fmt.Sprint(done.Facts), fmt.Sprint(done.Partitions))
			return render(e, done, []*trackapi.Erased{done}, t)
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}
