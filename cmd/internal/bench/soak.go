package main

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// sample is what a relay uses at one moment.
type sample struct {
	at                    time.Duration
	rss, anon             int64
	files                 int
	goroutines            int
	queue, tracking, logs int64 // octets on disk
	queued                int   // messages
}

// The soak takes a sample at most every leastEvery, and is judged by leastSamples.
const (
	leastEvery   = 2 * time.Second
	leastSamples = 6
	leastSoak    = (leastSamples + 1) * leastEvery
)

// soak runs a relay at half of the rate that it reaches, and tells whether what
// it uses stays flat. The tracking store and the log grow with the messages, up
// to what the configuration lets them; they are shown, and not judged.
func soak(o options) error {
	if o.soak == 0 {
		o.soak = 30 * time.Minute
	}
	s, err := newSink("127.0.0.1:0")
	if err != nil {
		return err
	}
	defer s.close()
	sub := o.waybill(aWaybill, setup{tracking: true})
	return sub.in(o, s.port(), func(r *running) error {
		if err := sub.warm(o, s, r, 100); err != nil {
			return err
		}
		top := &load{addr: r.addr, n: o.n, conns: 100, size: o.size, to: sinkUser}
		res, err := top.run(s, loadPatience)
		if err == nil {
			err = res.complete(o.n)
		}
		if err != nil {
			return err
		}
		rate := res.EndRate / 2
		fmt.Printf("\nSoak of %s at %.0f messages/s of %d octets, half of %.0f end to end/s:\n\n", o.soak, rate, o.size, res.EndRate)
		fmt.Println("| minute | RSS | anonymous | descriptors | goroutines | queue | queue on disk | tracking | log |")
		fmt.Println("|---|---|---|---|---|---|---|---|---|")
		var samples []sample
		began := time.Now()
		every := max(o.soak/60, leastEvery)
		done := make(chan error, 1)
		total, refused := 0, int64(0)
		go func() { // in parts, so that no table of all messages is kept
			for time.Since(began) < o.soak {
				n := max(1, int(rate*min(time.Minute, o.soak-time.Since(began)).Seconds()))
				l := &load{addr: r.addr, n: n, conns: 20, size: o.size, rate: rate, to: sinkUser, again: true}
				res, err := l.run(s, loadPatience)
				if err == nil {
					err = res.complete(n)
				}
				if err != nil {
					done <- err
					return
				}
				total += n
				refused += l.refused.Load()
			}
			done <- nil
		}()
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				m, err := takeSample(r, time.Since(began))
				if err != nil {
					return err
				}
				samples = append(samples, m)
				fmt.Printf("| %.1f | %d MiB | %d MiB | %d | %d | %d | %d MiB | %d MiB | %d MiB |\n",
					m.at.Minutes(), m.rss>>20, m.anon>>20, m.files, m.goroutines, m.queued, m.queue>>20, m.tracking>>20, m.logs>>20)
			case err := <-done:
				if err != nil {
					return err
				}
				fmt.Printf("\n%d messages arrived, each once; %d were refused for now at first.\n\n", total, refused)
				return judge(samples)
			}
		}
	})
}

// judge compares the last third of the samples with the second. What grows by
// more than a tenth and a small amount is not flat.
func judge(samples []sample) error {
	if len(samples) < leastSamples {
		return fmt.Errorf("%d samples are too few to judge", len(samples))
	}
	third := len(samples) / 3
	for _, what := range []struct {
		name  string
		of    func(sample) float64
		slack float64
		unit  float64
		word  string
	}{
		{"RSS", func(m sample) float64 { return float64(m.rss) }, 32 << 20, 1 << 20, " MiB"},
		{"descriptors", func(m sample) float64 { return float64(m.files) }, 10, 1, ""},
		{"goroutines", func(m sample) float64 { return float64(m.goroutines) }, 20, 1, ""},
		{"queue on disk", func(m sample) float64 { return float64(m.queue) }, 192 << 20, 1 << 20, " MiB"}, // three segments
	} {
		part := func(list []sample) float64 {
			var v []float64
			for _, m := range list {
				v = append(v, what.of(m))
			}
			return middle(v)
		}
		a, b := part(samples[third:2*third]), part(samples[2*third:])
		verdict(what.name, b <= a*1.1+what.slack, fmt.Sprintf("%.0f, then %.0f%s: flat when it grows by less than a tenth and %.0f", a/what.unit, b/what.unit, what.word, what.slack/what.unit))
	}
	return nil
}

func takeSample(r *running, at time.Duration) (m sample, err error) {
	mem, err := memoryOf(r.pid)
	if err != nil {
		return m, err
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.pid))
	if err != nil {
		return m, err
	}
	gauges, err := scrape(r.http, "go_goroutines", "waybill_queue_messages")
	if err != nil {
		return m, err
	}
	logs, _ := filepath.Glob(filepath.Join(r.dir, "waybill*.log*")) // a fixed pattern
	m = sample{
		at: at, rss: mem.rss, anon: mem.anon, files: len(fds), goroutines: int(gauges["go_goroutines"]), queued: int(gauges["waybill_queue_messages"]),
		queue: diskUse(filepath.Join(r.dir, "data", "queue")), tracking: diskUse(filepath.Join(r.dir, "data", "track")),
	}
	for _, f := range logs {
		m.logs += diskUse(f)
	}
	return m, nil
}

// scrape reads metrics of a Waybill, each summed over its labels.
func scrape(port int, names ...string) (map[string]float64, error) {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", port)) //nolint:gosec // of the relay that we started
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // read below
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("metrics: %s", resp.Status)
	}
	sums := map[string]float64{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), " ")
		if i := strings.IndexByte(lines.Text(), '}'); i >= 0 {
			key, value = lines.Text()[:i+1], lines.Text()[i+1:]
		}
		name, _, _ := strings.Cut(key, "{")
		for _, want := range names {
			var v float64
			if _, err := fmt.Sscan(value, &v); name == want && err == nil {
				sums[want] += v
			}
		}
	}
	for _, want := range names {
		if _, there := sums[want]; !there && lines.Err() == nil {
			return nil, fmt.Errorf("metrics: there is no %s", want)
		}
	}
	return sums, lines.Err()
}
