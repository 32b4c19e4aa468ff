package logtrack

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
)

func cpuTime() time.Duration {
	var ru syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// rssMiB is the resident memory now, in MiB.
func rssMiB() float64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kb / 1024
		}
	}
	return 0
}

// BenchmarkIngest writes facts made beforehand, over and over with new ids, and
// waits until they are sealed.
func BenchmarkIngest(b *testing.B) {
	recs := facts(5, 8000)
	s := openStore(b, b.TempDir())
	runtime.GC()
	cpu := cpuTime()
	b.ResetTimer()
	for i := range b.N {
		r := &recs[i%len(recs)]
		r.Time = time.Now()
		r.ID = mail.NewID(r.Time)
		s.Write(r)
	}
	seal(s)
	b.StopTimer()
	b.ReportMetric(float64((cpuTime()-cpu).Microseconds())/float64(b.N), "cpu-µs/event")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(rssMiB(), "MiB")
}

// BenchmarkSearch1M asks a store with a million messages (WAYBILL_BENCH_MESSAGES
// says another number) the questions that people ask.
func BenchmarkSearch1M(b *testing.B) {
	messages := 1_000_000
	if n, err := strconv.Atoi(os.Getenv("WAYBILL_BENCH_MESSAGES")); err == nil {
		messages = n
	}
	s := openStore(b, b.TempDir())
	m := newMailer(6)
	m.sessions = false
	m.step = 12 * time.Hour / time.Duration(messages)
	rng := rand.New(rand.NewPCG(1, 2))
	var pending []event.Record // a message's later facts come after those of others
	var sample []event.Record
	events := 0
	cpu, start := cpuTime(), time.Now()
	for range messages {
		recs := m.next()
		if rng.IntN(messages/200+1) == 0 {
			sample = append(sample, recs[0])
		}
		events += len(recs)
		pending = append(pending, recs...)
		if len(pending) < 20000 {
			continue
		}
		slices.SortFunc(pending, func(a, b event.Record) int { return a.Time.Compare(b.Time) })
		for i := range pending[:10000] {
			s.Write(&pending[i])
		}
		pending = slices.Delete(pending, 0, 10000)
	}
	for i := range pending {
		s.Write(&pending[i])
	}
	if err := s.Sync(); err != nil {
		b.Fatal(err)
	}
	s.mu.Lock()
	s.rotate()
	for len(s.sealing) > 0 {
		s.room.Wait()
	}
	s.mu.Unlock()
	took := time.Since(start)
	s.measure()
	b.Logf("%d messages, %d events in %s: %.0f events/s, %.1f cpu-µs/event with the generator, %.1f B/event, %.0f MiB", messages, events, took.Round(time.Millisecond),
		float64(events)/took.Seconds(), float64((cpuTime()-cpu).Microseconds())/float64(events), float64(s.Stats().Bytes)/float64(events), rssMiB())

	clear(pending)
	runtime.GC()
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	b.Logf("%d MiB of heap live, %d of cache", ms.HeapAlloc>>20, s.cache.size()>>20)
	from := m.start.Add(-time.Hour)
	ask := func(name string, q func(i int) trackapi.Query) {
		b.Run(name, func(b *testing.B) {
			var worst time.Duration
			rows := 0
			for i := range b.N {
				query := q(i)
				query.From = from
				t := time.Now()
				got, err := s.Messages(b.Context(), query)
				if err != nil {
					b.Fatal(err)
				}
				worst = max(worst, time.Since(t))
				rows += len(got.Messages)
			}
			b.ReportMetric(float64(worst.Microseconds())/1000, "worst-ms")
			b.ReportMetric(float64(rows)/float64(b.N), "rows")
		})
	}
	at := func(i int) event.MessageQueued { return sample[i%len(sample)].Event.(event.MessageQueued) }
	ask("recipient", func(i int) trackapi.Query { return trackapi.Query{Recipient: at(i).Recipients[0].Address} })
	ask("recipient-most", func(int) trackapi.Query { return trackapi.Query{Recipient: "anna0@gmail.example"} })
	ask("sender", func(i int) trackapi.Query { return trackapi.Query{Sender: at(i).MailFrom} })
	ask("queue-id", func(i int) trackapi.Query {
		return trackapi.Query{QueueID: string(sample[i%len(sample)].Message)}
	})
	ask("message-id", func(i int) trackapi.Query { return trackapi.Query{MessageID: at(i).HeaderMessageID} })
	ask("domain", func(i int) trackapi.Query { return trackapi.Query{Domain: domainName(uint64(i % 20))} })
	ask("newest", func(int) trackapi.Query { return trackapi.Query{} })
	ask("bounced", func(int) trackapi.Query { return trackapi.Query{Disposition: "bounced"} })
	ask("domain-bounced", func(i int) trackapi.Query {
		return trackapi.Query{Domain: domainName(uint64(i % 20)), Disposition: "bounced"}
	})
	ask("substring", func(int) trackapi.Query { return trackapi.Query{Recipient: "*olga77*"} })
	b.Run("timeline", func(b *testing.B) {
		for i := range b.N {
			if _, err := s.Message(b.Context(), string(sample[i%len(sample)].Message)); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, q := range []trackapi.AggregateQuery{
		{Metric: "count", By: []string{"disposition"}, Step: 5 * time.Minute},
		{Metric: "latency_p95", By: []string{"recipient_domain"}},
		{Metric: "count", By: []string{"recipient_domain", "class"}, Step: 30 * time.Minute, Query: trackapi.Query{Disposition: "bounced,deferred"}},
	} {
		b.Run(fmt.Sprintf("aggregate-%s-%s", q.Metric, strings.Join(q.By, "-")), func(b *testing.B) {
			q.From = from
			for range b.N {
				if _, err := s.Aggregate(b.Context(), q); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.ReportMetric(rssMiB(), "MiB")
}
