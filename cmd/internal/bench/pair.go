package main

import (
	"fmt"
	"os"
	"slices"
	"time"
)

// pair are two relays that differ in one thing, whose price is asked.
type pair struct {
	what          string // in a sentence
	with, without subject
	least         float64 // what the rates with it are to be of those without
}

// tracking measures what the tracking store costs.
func tracking(o options) error {
	return pair{
		what: "tracking",
		with: o.waybill("tracking", setup{tracking: true}), without: o.waybill("without", setup{}),
		least: 0.9,
	}.measure(o)
}

// transcripts measures what it costs to keep every conversation.
func transcripts(o options) error {
	return pair{
		what: "keeping every conversation (transcript: all)",
		with: o.waybill("transcripts", setup{tracking: true, transcripts: true}), without: o.waybill("without", setup{tracking: true}),
		least: 0.9,
	}.measure(o)
}

// logins measures what it costs that clients log in, once on each connection.
func logins(o options) error {
	return pair{
		what: "a login (AUTH PLAIN) on each connection",
		with: o.waybill("logins", setup{tracking: true, logins: true}), without: o.waybill("without", setup{tracking: true}),
		least: 0.95,
	}.measure(o)
}

// leastRounds are measured however long they take: quartiles of fewer say nothing.
const leastRounds = 4

// another reports whether one more round is due, after so many that took so
// long. In half of them the one relay comes first, so their number is even.
func another(rounds int, took, budget time.Duration) bool {
	if rounds < leastRounds || rounds%2 == 1 {
		return true
	}
	return took+2*took/time.Duration(rounds) <= budget
}

// measure runs both relays side by side and loads them in turn. A relay that
// has just begun, whose heap grows and whose first files are made, is another
// one than the same relay a minute later, and a machine that others use is
// faster now and slower then; the ratio of two loads that follow each other
// tells of neither.
func (p pair) measure(o options) (err error) {
	s, err := newSink("127.0.0.1:0")
	if err != nil {
		return err
	}
	defer s.close()
	subjects := []subject{p.with, p.without}
	relays := make([]*running, len(subjects))
	for i, sub := range subjects {
		if relays[i], err = sub.start(o, s.port()); err != nil {
			return err
		}
		defer func() { err = sub.end(o, relays[i], err) }()
	}
	for i, sub := range subjects {
		for _, conns := range connections {
			if err := sub.warm(o, s, relays[i], conns); err != nil {
				return fmt.Errorf("%s: %w", sub.name, err)
			}
		}
	}
	n := max(1, o.n/2) // many short loads rather than few long ones: the machine changes its speed
	figures := map[cell][]figure{}
	began, rounds := time.Now(), 0
	for ; another(rounds, time.Since(began), o.pairTime); rounds++ {
		for _, conns := range connections {
			order := []int{0, 1}
			if rounds%2 == 1 {
				slices.Reverse(order)
			}
			for _, i := range order {
				f, err := subjects[i].load(o, s, relays[i], conns, n)
				if err != nil {
					return fmt.Errorf("%s, %d connections: %w", subjects[i].name, conns, err)
				}
				c := cell{subjects[i].name, conns}
				figures[c] = append(figures[c], f)
			}
			with, without := figures[cell{p.with.name, conns}][rounds:], figures[cell{p.without.name, conns}][rounds:]
			fmt.Fprintf(os.Stderr, "%s: round %2d after %2.0f of %.0f s  %3d connections: accepted/s %5.0f and %5.0f without, %.2f ×  end to end %.2f ×  p99 %.2f ×  CPU %.2f ×\n",
				p.with.name, rounds+1, time.Since(began).Seconds(), o.pairTime.Seconds(), conns, with[0].AcceptRate, without[0].AcceptRate,
				acceptRate.ratios(with, without)[0], endRate.ratios(with, without)[0], p99Reply.ratios(with, without)[0], cpuMessage.ratios(with, without)[0])
		}
	}
	p.print(o, figures, rounds, n)
	return nil
}

// print is the table of what measure found.
func (p pair) print(o options, figures map[cell][]figure, rounds, n int) {
	fmt.Printf("\nWhat %s costs. Two relays run side by side, one with it and one without, and are loaded in turn: %d rounds of %d messages\n", p.what, rounds, n)
	fmt.Printf("of %d octets each, the order turned each round, after %d each over either number of connections that do not count.\n", o.size, o.warm)
	fmt.Print("Medians of both; a ratio is of two loads that follow each other. Above 1 is more: better for a rate, worse for time.\n\n")
	fmt.Println("| connections | | with | without | ratio, median | quartiles |")
	fmt.Println("|---|---|---|---|---|---|")
	for _, conns := range connections {
		with, without := figures[cell{p.with.name, conns}], figures[cell{p.without.name, conns}]
		for _, a := range []aspect{acceptRate, endRate, p99Reply, cpuMessage} {
			r := a.ratios(with, without)
			fmt.Printf("| %d | %s | %s | %s | %.2f × | %.2f to %.2f |\n", conns, a.name, a.unit(a.median(with)), a.unit(a.median(without)), middle(r), quantile(r, 0.25), quantile(r, 0.75))
		}
	}
	fmt.Println()
	for _, conns := range connections {
		with, without := figures[cell{p.with.name, conns}], figures[cell{p.without.name, conns}]
		for _, a := range []aspect{acceptRate, endRate} {
			is := middle(a.ratios(with, without))
			verdict(p.with.name, is >= p.least, fmt.Sprintf("%d connections: %s %.2f × those without, at least %.2f", conns, a.name, is, p.least))
		}
	}
}
