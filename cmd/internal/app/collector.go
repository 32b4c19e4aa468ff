package app

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Go's collector lets the heap grow to twice what lives before it runs. A relay
// allocates 45 KiB a message and little of what it has is pointers to follow, so
// that half of that room costs it less than a twentieth of its processor time at
// full speed, and spares a quarter of its memory. What a million queued messages
// need lives for hours: the room does not grow beyond garbageRoom either.
const (
	garbageRoom  = 128 << 20
	mostPercent  = 50
	leastPercent = 25 // below, the collector would run all the time
	collectEvery = 5 * time.Second
)

// collectPercent is the GOGC for a heap of which so much lives.
func collectPercent(live uint64) int {
	return int(min(max(100*garbageRoom/max(live, 1), leastPercent), mostPercent))
}

// boundGarbage keeps to collectPercent until ctx is done, unless the environment
// says otherwise.
func boundGarbage(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		return nil
	}
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	now := 100
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	defer func() { debug.SetGCPercent(100) }()
	for {
		metrics.Read(sample)
		if want := collectPercent(sample[0].Value.Uint64()); want < now-2 || want > now+2 { // each change stops the world
			debug.SetGCPercent(want)
			now = want
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
