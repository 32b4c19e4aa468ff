// Command bench measures Waybill against Debian's Postfix on this machine: the
// same load, the same sink, the same disk, in alternating rounds of one run.
// Ratios count; single figures are this machine's.
//
// It starts the built bin/waybill and a Postfix of its own on loopback, and
// needs root for Postfix. Targets that are missed are said, and are no error; a
// message that is lost or arrives twice is one.
//
// To measure something else, add a part.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		help(os.Stdout)
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err, "(hint: --help)")
		os.Exit(2)
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	n, rounds, size, queued int
	warm                    int
	idle, tls               int
	million, millionSize    int
	destinations            int
	direct                  bool
	soak, pairTime          time.Duration
	binary, dir             string
	relays                  []string
	parts                   []part
	alive                   *alive
}

// part is something to measure.
type part struct {
	name   string
	what   string   // it measures, in a line
	relays []string // it measures
	rare   bool     // only when it is asked for by name: it takes long, or few ask
	run    func(o options) error
}

const (
	aWaybill   = "waybill"
	aUntracked = "waybill-untracked"
	aPostfix   = "postfix"
)

// allParts are what there is to measure, in the order in which it is.
func allParts() []part {
	all, both, ours := []string{aWaybill, aUntracked, aPostfix}, []string{aWaybill, aPostfix}, []string{aWaybill}
	return []part{
		{"compare", "rates, time of the 250, and CPU of each relay, started afresh and warmed up", all, false, compare},
		{"tracking", "what tracking costs: two relays side by side, loaded in turn", ours, false, tracking},
		{"drain", "how fast a queue fills while the next hop is down, beside what the disk appends, and empties once it is back", all, false, drain},
		{"latency", "how long messages take from end to end at two rates", both, false, latency},
		{"memory", "memory, idle and busy", all, false, memoryInUse},
		{"large", "messages of 100 KiB and of 10 MiB, beside what the disk writes", ours, false, large},
		{"tls", "sessions with a full TLS 1.3 handshake", both, false, tlsSessions},
		{"idle", "memory of sessions that say nothing", ours, false, idleConnections},
		{"queue", "memory and restart with many messages queued", ours, false, longQueue},
		{"transcripts", "what keeping every conversation costs, as tracking", ours, true, transcripts},
		{"logins", "what a login on each connection costs, as tracking", ours, true, logins},
		{"million", "a million messages for dead destinations", ours, true, million},
		{"soak", "whether a relay at half of its top rate stays flat", ours, true, soak},
	}
}

// flags are those of the command, which set o. The last two are lists.
func flags(o *options) (fs *flag.FlagSet, relays, only *string) {
	fs = flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // main tells errors, and help the rest
	fs.IntVar(&o.n, "n", 20000, "messages that count in a round: Postfix takes a quarter of them but in the part drain, tracking half")
	fs.IntVar(&o.warm, "warm", 2000, "messages that each relay takes before those that count, in the parts compare, tracking, drain, latency, large and soak")
	fs.IntVar(&o.rounds, "rounds", 4, "rounds; tables have their medians. In an even number each relay is first as often as last")
	fs.IntVar(&o.size, "size", 10<<10, "octets of a message")
	fs.DurationVar(&o.pairTime, "pair-time", 90*time.Second, fmt.Sprintf("how long tracking, transcripts and logins may take; they make at least %d rounds", leastRounds))
	fs.IntVar(&o.queued, "queued", 100000, "messages of the part queue")
	fs.IntVar(&o.idle, "idle", 10000, "sessions of the part idle; 0 leaves it out")
	fs.IntVar(&o.tls, "tls-sessions", 10000, "sessions in a round of the part tls; 0 leaves it out")
	fs.StringVar(&o.binary, "waybill", "bin/waybill", "the `program`")
	fs.StringVar(&o.dir, "dir", "", "`folder` where spools go: on the disk to be measured (default: a temporary one)")
	fs.IntVar(&o.million, "million", 1_000_000, "messages of the part million")
	fs.IntVar(&o.millionSize, "million-size", 1<<10, "octets of a message of the part million: what is measured does not depend on it, and the disk is spared")
	fs.IntVar(&o.destinations, "destinations", 10_000, "destinations of the part million")
	fs.BoolVar(&o.direct, "direct", false, "fill the queue of the part million by files and not by SMTP: faster, and its figures are those after a restart only")
	fs.DurationVar(&o.soak, "soak", 0, "how long the part soak takes (default 30m); without -only, that part alone is measured")
	relays = fs.String("relays", strings.Join([]string{aWaybill, aUntracked, aPostfix}, ","), "`relays` to measure, apart by commas")
	only = fs.String("only", "", "`parts` to measure, apart by commas (default: all that are not marked below)")
	return fs, relays, only
}

// help tells how bench is called and what it measures.
func help(w io.Writer) {
	fs, _, _ := flags(new(options))
	fs.SetOutput(w)
	_, _ = fmt.Fprint(w, "bench measures Waybill, beside Debian's Postfix, on this machine. Ratios count.\n\nUsage: make bench ARGS='[flags]'\n\n")
	fs.PrintDefaults()
	_, _ = fmt.Fprint(w, "\nParts (*: only when asked for by -only):\n")
	for _, p := range allParts() {
		mark := " "
		if p.rare {
			mark = "*"
		}
		_, _ = fmt.Fprintf(w, "  %-12s%s %s\n", p.name, mark, p.what)
	}
}

// parse reads the command line.
func parse(args []string) (o options, err error) {
	fs, relays, only := flags(&o)
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("%s is no flag; parts are chosen by -only", fs.Arg(0))
	}
	for _, f := range []struct {
		name      string
		is, least int
	}{
		{"n", o.n, 1},
		{"warm", o.warm, 0},
		{"rounds", o.rounds, 1},
		{"size", o.size, 256},
		{"queued", o.queued, 1},
		{"idle", o.idle, 0},
		{"tls-sessions", o.tls, 0},
		{"million", o.million, 1},
		{"million-size", o.millionSize, 256},
		{"destinations", o.destinations, 1},
	} {
		if f.is < f.least {
			return o, fmt.Errorf("-%s %d: at least %d", f.name, f.is, f.least)
		}
	}
	if o.soak != 0 && o.soak < leastSoak {
		return o, fmt.Errorf("-soak %s: at least %s, or there are too few samples to judge", o.soak, leastSoak)
	}
	if o.soak > 0 && *only == "" {
		*only = "soak"
	}
	if o.relays, err = chosen("relay", *relays, []string{aWaybill, aUntracked, aPostfix}); err != nil {
		return o, err
	}
	var names, usual []string
	for _, p := range allParts() {
		names = append(names, p.name)
		if !p.rare {
			usual = append(usual, p.name)
		}
	}
	if *only != "" {
		if usual, err = chosen("part", *only, names); err != nil {
			return o, err
		}
	}
	for _, p := range allParts() {
		if slices.Contains(usual, p.name) {
			o.parts = append(o.parts, p)
		}
	}
	return o, nil
}

// chosen are the names of a list, apart by commas, each of which there must be.
func chosen(what, list string, there []string) (names []string, err error) {
	for name := range strings.SplitSeq(list, ",") {
		if name = strings.TrimSpace(name); !slices.Contains(there, name) {
			return nil, fmt.Errorf("no %s %q; there are %s", what, name, strings.Join(there, ", "))
		}
		names = append(names, name)
	}
	return names, nil
}

// has reports whether one of these relays is to be measured.
func (o options) has(names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return slices.Contains(o.relays, name) })
}

// check tells beforehand what would fail in the middle.
func (o options) check() error {
	if _, err := exec.LookPath(o.binary); err != nil {
		return fmt.Errorf("the program to be measured: %w (hint: make build, or -waybill PROGRAM)", err)
	}
	if !o.has(aPostfix) || !slices.ContainsFunc(o.parts, func(p part) bool { return slices.Contains(p.relays, aPostfix) }) {
		return nil
	}
	const without = "leave it out: -relays " + aWaybill + "," + aUntracked
	if _, err := exec.LookPath("postfix"); err != nil {
		return fmt.Errorf("%w (hint: .ci/install-peers postfix; or %s)", err, without)
	}
	if os.Geteuid() != 0 {
		return errors.New("root only can start Postfix (hint: run as root, or " + without + ")")
	}
	return nil
}

// run measures one part after the other; those that fail do not hinder others.
func run(o options) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	temporary := o.dir == ""
	if temporary {
		if o.dir, err = os.MkdirTemp("", "waybill-bench-"); err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(o.dir) }() //nolint:gosec // temporary, and ours
	}
	if err := os.Chmod(o.dir, 0o755); err != nil { //nolint:gosec // Postfix' own users enter it
		return err
	}
	o.alive = &alive{}
	defer onSignal(func() {
		o.alive.end()
		if temporary {
			_ = os.RemoveAll(o.dir) //nolint:gosec // temporary, and ours
		}
		os.Exit(130) // as a shell says of a program that was interrupted
	})()
	var failed []string
	for _, p := range o.parts {
		if !o.has(p.relays...) {
			fmt.Fprintf(os.Stderr, "%s: left out: it measures %s, which -relays leaves out\n", p.name, strings.Join(p.relays, ", "))
			continue
		}
		began := time.Now()
		if err := p.run(o); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", p.name, err) // now, since other parts follow
			failed = append(failed, p.name)
			continue
		}
		fmt.Fprintf(os.Stderr, "%s: took %s\n", p.name, time.Since(began).Round(time.Second))
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d of %d parts failed: %s", len(failed), len(o.parts), strings.Join(failed, ", "))
	}
	return nil
}

// onSignal calls do when the user has enough, until what it returns is called.
func onSignal(do func()) (end func()) {
	came, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(came, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case <-came:
			do()
		case <-done:
		}
	}()
	return func() {
		signal.Stop(came)
		close(done)
	}
}
