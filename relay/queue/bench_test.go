package queue

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// quiet is a sink that counts.
type quiet struct{ n atomic.Int64 }

func (q *quiet) Write(*event.Record) { q.n.Add(1) }

func openBench(b *testing.B, change func(*Options)) *harness {
	return open(b, func(o *Options) {
		o.Emitter = event.NewEmitter("n1", &quiet{})
		o.tune = tuning{fs: roomy{}}
		o.DiskFreeMin = 0
		if change != nil {
			change(o)
		}
	})
}

func BenchmarkAccept(b *testing.B) {
	for _, size := range []int{10 << 10, 100 << 10} {
		for _, writers := range []int{1, 20, 100} {
			b.Run(fmt.Sprintf("%dKiB/%d", size>>10, writers), func(b *testing.B) {
				h := openBench(b, nil)
				h.run(b)
				content := bytes.Repeat([]byte("0123456789abcde\n"), size/16)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.ResetTimer()
				start := time.Now()
				spread(b, writers, func() error { return h.Put(b.Context(), draft(b, "user@example.com"), content) })
				b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "msg/s")
				b.StopTimer()
			})
		}
	}
}

// spread does f b.N times in n goroutines.
func spread(b *testing.B, n int, f func() error) {
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := f(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkCycle(b *testing.B) {
	for _, workers := range []int{1, 20, 100} {
		b.Run(fmt.Sprint(workers), func(b *testing.B) {
			h := openBench(b, func(o *Options) { o.Concurrency = nil })
			h.run(b)
			content := bytes.Repeat([]byte("0123456789abcde\n"), 640)
			b.ReportAllocs()
			b.ResetTimer()
			start := time.Now()
			ctx, cancel := context.WithCancel(b.Context())
			var settled atomic.Int64
			var wg sync.WaitGroup
			for range workers {
				wg.Go(func() {
					for {
						l, err := h.Claim(ctx)
						if err != nil {
							return
						}
						if err := h.Settle(ctx, l, Settlement{Outcomes: outcomes(l, mail.Relayed)}); err != nil {
							b.Error(err)
						}
						if settled.Add(1) == int64(b.N) {
							cancel()
						}
					}
				})
			}
			var domain atomic.Int64
			spread(b, workers, func() error {
				return h.Put(b.Context(), draft(b, fmt.Sprintf("user@d%d.example.com", domain.Add(1)%50)), content)
			})
			wg.Wait()
			b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "msg/s")
			b.StopTimer()
			cancel()
		})
	}
}

// BenchmarkDepth fills the queue with 100,000 messages, and tells what they
// cost in memory and at a restart.
func BenchmarkDepth(b *testing.B) {
	const n = 100_000
	for b.Loop() {
		h := openBench(b, nil)
		h.run(b)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		content := make([]byte, 1000)
		var left, domain atomic.Int64
		left.Store(n)
		start := time.Now()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				for left.Add(-1) >= 0 {
					if err := h.Put(b.Context(), draft(b, fmt.Sprintf("user@d%d.example.com", domain.Add(1)%1000)), content); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		b.ReportMetric(n/time.Since(start).Seconds(), "msg/s")
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "live-B/msg")
		if err := h.Close(); err != nil {
			b.Fatal(err)
		}
		start = time.Now()
		h = h.reopen(b, func(o *Options) { o.Emitter = event.NewEmitter("n1", &quiet{}) })
		b.ReportMetric(time.Since(start).Seconds(), "reopen-s")
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc)/n, "heap-after-reopen-B/msg")
		if got := h.Levels().Messages; got != n {
			b.Fatalf("%d messages", got)
		}
	}
}
