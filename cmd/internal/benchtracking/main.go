// Command benchtracking fills a tracking store with a made-up mail flow and
// asks it what people and dashboards ask.
//
// It exists because the store's promises are numbers: facts a second,
// processor time and octets for each, and how long an answer takes. The flow is
// that of a real relay: a few recipients, senders and domains have most of the
// mail (Zipf's law), every fact of a message's life is there, identifiers and
// replies differ as they do in life. With -compare victorialogs the same facts
// go to a VictoriaLogs on the same machine in the same run, and it is asked the
// same. Ratios count; single figures are this machine's.
//
// To add a question, add it to the list in ask.go. The last line has the
// figures that are followed from release to release.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"waybill/logtrack"
	"waybill/relay/event"
)

type options struct {
	events  int
	span    time.Duration
	rate    int
	dir     string
	compare string
	profile string
	heap    string
	only    string
	keep    bool
	again   bool
}

func main() {
	var o options
	flag.IntVar(&o.events, "events", 1_000_000, "facts to fill the store with")
	flag.DurationVar(&o.span, "span", 24*time.Hour, "the time that the mail flow took")
	flag.IntVar(&o.rate, "rate", 20000, "facts a second while questions are asked once more; 0 leaves that out")
	flag.StringVar(&o.dir, "dir", "", "where the stores go: on the disk to be measured (default: a temporary folder)")
	flag.StringVar(&o.compare, "compare", "", `"victorialogs": give the same facts to a VictoriaLogs, and ask it the same`)
	flag.StringVar(&o.profile, "cpuprofile", "", "write a CPU profile of the questions to this file")
	flag.StringVar(&o.heap, "heapprofile", "", "write a profile of the memory after the questions to this file")
	flag.StringVar(&o.only, "only", "", "ask only the questions whose names match this regular expression")
	flag.BoolVar(&o.keep, "keep", false, "leave the stores where they are")
	flag.BoolVar(&o.again, "again", false, "ask the store that a run with -keep left in -dir, and fill none")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "benchtracking:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	if o.events < 1000 || o.compare != "" && o.compare != "victorialogs" {
		return fmt.Errorf("at least 1000 events, and nothing to compare with but victorialogs")
	}
	if o.again && o.dir == "" {
		return errors.New("-again needs -dir")
	}
	if o.again {
		o.keep = true
	}
	if o.dir == "" {
		d, err := os.MkdirTemp("", "waybill-benchtracking-")
		if err != nil {
			return err
		}
		o.dir = d
	}
	if !o.keep {
		defer func() { _ = os.RemoveAll(o.dir) }() // temporary
	}
	mem := watchMemory()
	start := time.Now().Add(-o.span).UTC().Truncate(time.Minute)
	b := &bench{opts: o, start: start, dir: filepath.Join(o.dir, "track")}
	if err := b.prepare(); err != nil {
		return err
	}
	defer func() { _ = b.store.Close() }() // measured
	b.report("rss after load, total/anonymous", fmt.Sprintf("%d / %d MiB", mem.now("VmRSS")>>10, mem.now("RssAnon")>>10))
	qs, err := b.chosen()
	if err != nil {
		return err
	}
	if err := b.answers("store at rest", qs, o.profile); err != nil {
		return err
	}
	if err := heapTo(o.heap); err != nil {
		return err
	}
	b.line = append(b.line, fmt.Sprintf("recipient_p99_ms=%.1f substring_ms=%.1f bounced_by_domain_ms=%.1f latency_by_domain_ms=%.1f",
		b.p99["recipient"], b.p50["substring, 24 h"], b.p50["bounced by domain, 5 min"], b.p50["latency p50, p95, p99 by domain"]))
	b.line = append(b.line, fmt.Sprintf("rss_mib=%d", mem.now("VmRSS")>>10))
	if o.rate > 0 {
		if err := b.whileWriting(qs); err != nil {
			return err
		}
	}
	b.report("rss after questions, total/anonymous, peak anonymous", fmt.Sprintf("%d / %d / %d MiB", mem.now("VmRSS")>>10, mem.now("RssAnon")>>10, mem.peak.Load()>>10))
	if o.compare != "" {
		if err := b.victoriaLogs(qs); err != nil {
			return err
		}
	}
	fmt.Println(strings.Join(b.line, " "))
	return nil
}

// bench is one run.
type bench struct {
	opts  options
	start time.Time // of the mail flow
	end   time.Time // of its last fact
	dir   string
	store *logtrack.Store
	flow  *flow // what it knows of the messages in the store
	line  []string

	p50, p99 map[string]float64 // by question, milliseconds
}

func (b *bench) report(what, figure string) { fmt.Printf("  %-58s %s\n", what, figure) }

func (b *bench) open() (*logtrack.Store, error) {
	return logtrack.Open(logtrack.Options{Dir: b.dir, Retention: 400 * 24 * time.Hour, MaxBytes: 1 << 40, QueryTimeout: time.Minute})
}

// chunkSize is how many facts the flow is ahead at a time.
const chunkSize = 2_000

// stream makes facts ahead of whoever takes them, on a thread of its own whose
// processor time is told at the end.
func stream(f *flow, events int) (<-chan []event.Record, chan<- []event.Record, *atomic.Int64) {
	full, empty, cpu := make(chan []event.Record, 2), make(chan []event.Record, 4), new(atomic.Int64)
	go func() {
		runtime.LockOSThread()
		defer close(full)
		for events > 0 {
			var chunk []event.Record
			select {
			case chunk = <-empty:
			default:
				chunk = make([]event.Record, chunkSize)
			}
			chunk = chunk[:min(chunkSize, events)]
			for i := range chunk {
				f.next(&chunk[i])
			}
			events -= len(chunk)
			cpu.Store(int64(cpuTime(rusageThread)))
			full <- chunk
		}
	}()
	return full, empty, cpu
}

// fill writes all facts and waits until they are stored.
func (b *bench) fill() error {
	var err error
	if b.store, err = b.open(); err != nil {
		return err
	}
	b.flow = newFlow(1, b.opts.events, b.start, b.opts.span)
	fmt.Printf("%d facts of %s of mail, to %s\n", b.opts.events, b.opts.span, b.dir)
	full, empty, flowCPU := stream(b.flow, b.opts.events)
	cpu, began, last, done := cpuTime(syscall.RUSAGE_SELF), time.Now(), time.Now(), 0
	lastDone := 0
	for chunk := range full {
		for i := range chunk {
			b.store.Write(&chunk[i])
		}
		done += len(chunk)
		b.end = chunk[len(chunk)-1].Time
		select {
		case empty <- chunk:
		default:
		}
		if now := time.Now(); now.Sub(last) > 5*time.Second {
			fmt.Printf("  %9d facts, %6.0f a second\n", done, float64(done-lastDone)/now.Sub(last).Seconds())
			last, lastDone = now, done
		}
	}
	if err := b.store.Sync(); err != nil {
		return err
	}
	took := time.Since(began)
	mine := time.Duration(flowCPU.Load())
	used := cpuTime(syscall.RUSAGE_SELF) - cpu - mine
	st := b.store.Stats()
	dropped := st.Dropped["buffer_full"] // of the protocol class, which no writer waits for
	if st.Events+dropped != int64(b.opts.events) || st.Degraded != "" {
		return fmt.Errorf("%d facts of %d are there; dropped: %v %s", st.Events, b.opts.events, st.Dropped, st.Degraded)
	}
	b.report("facts of the protocol class that found no room", fmt.Sprint(dropped))
	rate, each := float64(done)/took.Seconds(), float64(used.Microseconds())/float64(done)
	b.report("write and seal", fmt.Sprintf("%s, %.0f facts/s, %.2f CPU-µs a fact (and %.2f to make it up)", took.Round(time.Millisecond), rate, each, float64(mine.Microseconds())/float64(done)))
	b.line = append(b.line, fmt.Sprintf("events/s=%.0f cpu_us=%.1f", rate, each))
	if b.opts.keep {
		return b.remember()
	}
	return nil
}

// prepare fills a store, or opens the one that was kept.
func (b *bench) prepare() error {
	if b.opts.again {
		if err := b.restore(); err != nil {
			return err
		}
	} else if err := b.fill(); err != nil {
		return err
	}
	return b.reopen()
}

// reopen closes the store, looks at its size, and opens it again, so that
// questions begin with nothing in memory.
func (b *bench) reopen() error {
	if b.store != nil {
		if err := b.store.Close(); err != nil {
			return err
		}
	}
	size, err := diskUse(b.dir)
	if err != nil {
		return err
	}
	b.report("on disk", fmt.Sprintf("%.1f MiB, %.1f octets a fact", float64(size)/(1<<20), float64(size)/float64(b.opts.events)))
	b.line = append(b.line, fmt.Sprintf("bytes/event=%.1f", float64(size)/float64(b.opts.events)))
	began := time.Now()
	if b.store, err = b.open(); err != nil {
		return err
	}
	b.report("open again", time.Since(began).Round(time.Millisecond).String())
	return nil
}

// diskUse is what the files under dir take of the disk.
func diskUse(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			total += st.Blocks * 512
		}
		return nil
	})
	return total, err
}

// rusageThread is RUSAGE_THREAD of Linux.
const rusageThread = 1

func cpuTime(who int) time.Duration {
	var ru syscall.Rusage
	if syscall.Getrusage(who, &ru) != nil {
		return 0
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// memory follows how much of it this process has.
type memory struct{ peak atomic.Int64 } // KiB that are not file pages

func watchMemory() *memory {
	m := &memory{}
	go func() { // until the process ends
		for range time.Tick(100 * time.Millisecond) {
			if n := m.now("RssAnon"); n > m.peak.Load() {
				m.peak.Store(n)
			}
		}
	}()
	return m
}

// now reads a figure of the kernel, in KiB.
func (*memory) now(name string) int64 { return memoryOf("self", name) }

func memoryOf(process, name string) int64 {
	b, err := os.ReadFile("/proc/" + process + "/status") //nolint:gosec // the kernel's
	if err != nil {
		return 0
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}

func profileTo(path string) (stop func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	f, err := os.Create(path) //nolint:gosec // named by the user
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() {
		pprof.StopCPUProfile()
		_ = f.Close() // a profile
	}, nil
}
