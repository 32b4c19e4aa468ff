package app

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Go's collector lets the heap grow to twice what lives before it runs. Half of
// that room is enough where there is much of it. A heap that is small anyway has
// leastRoom, or may double: with 12 MiB a relay at full speed with tracking had 13 MiB
// less, but tracking cost it 10 to 13 % of its rate instead of 6 to 9. What a million
// queued messages need lives for hours: the room does not grow beyond garbageRoom either.
const (
	leastRoom    = 32 << 20
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
