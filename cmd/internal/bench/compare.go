package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// connections are how many a relay is loaded over.
var connections = []int{20, 100}

// cell is one row of the table: a relay at a number of connections.
type cell struct {
	relay string
	conns int
}

// compare runs every relay at 20 and 100 connections in alternating rounds,
// whose order is turned each time.
func compare(o options) error {
	s, err := newSink("127.0.0.1:0")
	if err != nil {
		return err
	}
	defer s.close()
	subjects := o.subjects()
	ceiling := map[int][]float64{}
	figures := map[cell][]figure{}
	for round := range o.rounds {
		for _, conns := range connections {
			rate, err := groupedAppends(o.dir, o.size, conns, written)
			if err != nil {
				return fmt.Errorf("appends to the disk: %w", err)
			}
			ceiling[conns] = append(ceiling[conns], rate)
		}
		syscall.Sync() // the first relay shall not wait for what that has left to do
		time.Sleep(settleMost)
		order := slices.Clone(subjects)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, sub := range order {
			for _, conns := range connections {
				f, err := measure(o, s, sub, conns)
				if err != nil {
					return fmt.Errorf("%d connections: %w", conns, err)
				}
				c := cell{sub.name, conns}
				figures[c] = append(figures[c], f)
				fmt.Fprintf(os.Stderr, "compare: round %d of %d  %-17s %3d connections: %s\n", round+1, o.rounds, sub.name, conns, f)
			}
		}
	}
	fmt.Printf("\nMedians of %d rounds. A message has %d octets and 1 recipient; all sync before 250; none was lost or arrived twice.\n", o.rounds, o.size)
	var counted []string
	for _, sub := range subjects {
		counted = append(counted, fmt.Sprintf("%s %d", sub.name, sub.n))
	}
	fmt.Printf("For each row and round the relay is started afresh and takes %d messages that do not count, then those that do: %s.\n\n", o.warm, strings.Join(counted, ", "))
	shown := []aspect{acceptRate, endRate, p50Reply, p99Reply, cpuMessage}
	tableHead("relay", shown)
	for _, sub := range subjects {
		for _, conns := range connections {
			fmt.Printf("| %s | %d |", sub.name, conns)
			for _, a := range shown {
				fmt.Printf(" %s |", a.unit(a.median(figures[cell{sub.name, conns}])))
			}
			fmt.Println()
		}
	}
	fmt.Println()
	for _, conns := range connections {
		if w := figures[cell{"waybill", conns}]; len(w) > 0 {
			is, can := acceptRate.median(w), middle(ceiling[conns])
			verdict("disk", is >= can/2, fmt.Sprintf("%d connections: %.0f accepted/s, a written file takes %.0f grouped appends/s of this size from %d writers: %.2f ×, at least 0.5", conns, is, can, conns, is/can))
		}
	}
	againstPostfix(figures)
	return nil
}

// tableHead begins a table with a column for each aspect.
func tableHead(first string, shown []aspect) {
	fmt.Printf("| %s | connections |", first)
	for _, a := range shown {
		fmt.Printf(" %s |", a.name)
	}
	fmt.Print("\n|---|---|")
	for range shown {
		fmt.Print("---|")
	}
	fmt.Println()
}

// againstPostfix tells Waybill's figures as multiples of Postfix'.
func againstPostfix(figures map[cell][]figure) {
	shown := []aspect{acceptRate, endRate, p99Reply, cpuMessage}
	targets := []struct {
		name   string
		of     aspect
		most   bool // the target is the most, not the least
		target float64
		conns  []int
	}{
		{"accept", acceptRate, false, 8, connections},
		{"end to end", endRate, false, 5, connections},
		{"CPU", cpuMessage, true, 0.2, connections},
		{"p99", p99Reply, true, 0.5, connections[:1]},
	}
	headed := false
	for _, relay := range []string{"waybill", "waybill-untracked"} {
		for _, conns := range connections {
			w, p := figures[cell{relay, conns}], figures[cell{"postfix", conns}]
			if len(w) == 0 || len(p) == 0 {
				continue
			}
			if !headed {
				fmt.Print("\nRatios of those medians to Postfix':\n\n")
				tableHead("relay", shown)
				headed = true
			}
			fmt.Printf("| %s | %d |", relay, conns)
			for _, a := range shown {
				fmt.Printf(" %.2f × |", a.median(w)/a.median(p))
			}
			fmt.Println()
		}
	}
	if headed {
		fmt.Println()
	}
	for _, conns := range connections {
		w, p := figures[cell{"waybill", conns}], figures[cell{"postfix", conns}]
		for _, t := range targets {
			if len(w) == 0 || len(p) == 0 || !slices.Contains(t.conns, conns) {
				continue
			}
			is, word := t.of.median(w)/t.of.median(p), "at least"
			ok := is >= t.target
			if t.most {
				ok, word = is <= t.target, "at most"
			}
			verdict(t.name, ok, fmt.Sprintf("%d connections: %.2f × Postfix, %s %.2f", conns, is, word, t.target))
		}
	}
}

// measure starts a relay, warms it up, loads it, and ends it.
func measure(o options, s *sink, sub subject, conns int) (f figure, err error) {
	err = sub.in(o, s.port(), func(r *running) error {
		if err := sub.warm(o, s, r, conns); err != nil {
			return err
		}
		f, err = sub.load(o, s, r, conns, sub.n)
		return err
	})
	return f, err
}
