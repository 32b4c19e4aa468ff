package app

import (
	"context"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"
)

func TestCollectPercent(t *testing.T) {
	for _, test := range []struct {
		name string
		live uint64
		want int
	}{
		{"nothing", 0, 100},
		{"little", 8 << 20, 100},
		{"a little more", 20 << 20, 40},
		{"a short queue", 120 << 20, 33},
		{"just enough", 512 << 20, 33},
		{"a long queue", 1000 << 20, 25},
		{"a very long one", 8 << 30, 25},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := collectPercent(test.live); got != test.want {
				t.Errorf("collectPercent(%d) = %d, want %d", test.live, got, test.want)
			}
		})
	}
}

// TestBoundGarbage has a heap grow, and shrink, and expects that the collector's room
// follows once it has run.
func TestBoundGarbage(t *testing.T) {
	t.Setenv("GOGC", "")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- boundGarbage(ctx) }()
	expect := func(when string, good func(percent uint64) bool) {
		t.Helper()
		sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		for began := time.Now(); ; runtime.GC() {
			metrics.Read(sample)
			if good(sample[0].Value.Uint64()) {
				return
			}
			if time.Since(began) > 20*time.Second {
				t.Fatalf("%s: the collector has %d %%", when, sample[0].Value.Uint64())
			}
		}
	}
	for _, when := range []string{"much lives", "much lives again"} {
		ballast := make([]byte, 200<<20)
		expect(when, func(n uint64) bool { return n <= 60 })
		runtime.KeepAlive(ballast)
		expect("little lives", func(n uint64) bool { return n > 60 })
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	expect("at the end", func(n uint64) bool { return n == 100 })
}
