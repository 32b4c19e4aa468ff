package app

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Go's collector lets the heap grow to twice what lives before it runs. Half of
// that room is enough where there is much of it, and leastRoom in any case: a relayed
// message leaves 7.5 KiB of garbage, so that at 10,000 a second the collector runs five
// times, for 1 to 2 % of the relay's CPU. Twice that room makes the process 8 to 16 MiB
// larger and not measurably faster. What a million queued messages need lives for hours:
// the room does not grow beyond garbageRoom either.
const (
	leastRoom    = 14 << 20
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
