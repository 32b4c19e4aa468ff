package app

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Go's collector lets the heap grow to twice what lives before it runs. Half of
// that room is enough: at full speed, with tracking, it spares a fifth of the memory
// for two or three hundredths of the processor time. A heap that is small anyway has
// leastRoom, or may double. What a million queued messages need lives for hours: the
// room does not grow beyond garbageRoom either.
const (
	leastRoom    = 12 << 20
	garbageRoom  = 256 << 20
	mostPercent  = 100
	leastPercent = 25          // below, the collector would run all the time
	collectEvery = time.Second // by taste: until then a load that begins has more room
)

// collectPercent is the GOGC for a heap of which so much lives.
func collectPercent(live uint64) int {
	room := min(max(live/2, leastRoom), garbageRoom)
	return int(min(max(100*room/max(live, 1), leastPercent), mostPercent))
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
