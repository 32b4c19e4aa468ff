package app

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Go's collector lets the heap grow to twice what lives before it runs. That is
// cheap for a relay with a short queue, and a waste with a long one: what a
// million queued messages need lives for hours, and is doubled for nothing. So
// the room that the collector gets does not grow beyond garbageRoom.
const (
	garbageRoom  = 128 << 20
	leastPercent = 25 // below, the collector would run all the time
	collectEvery = 5 * time.Second
)

// collectPercent is the GOGC for a heap of which so much lives.
func collectPercent(live uint64) int {
	if live <= garbageRoom {
		return 100
	}
	return max(leastPercent, int(100*garbageRoom/live))
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
