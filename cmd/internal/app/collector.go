package app

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// Go's collector lets the heap grow to twice what lives before it runs. A third of
// that room is enough where there is much of it, and leastRoom in any case: a relayed
// message leaves 7.5 KiB of garbage, so that at 10,000 a second the collector runs eight
// times, for 3 % of the relay's CPU. What a million queued messages need lives for
// hours: the room does not grow beyond garbageRoom either.
const (
	leastRoom    = 8 << 20
	garbageRoom  = 256 << 20
	mostPercent  = 100
	leastPercent = 25 // below, the collector would run all the time
	slack        = 2  // percent: each change stops the world for some microseconds
)

// collectPercent is the GOGC for a heap of which so much lives.
func collectPercent(live uint64) int {
	room := min(max(live/3, leastRoom), garbageRoom)
	return int(min(max(100*room/max(live, 1), leastPercent), mostPercent))
}

// boundGarbage keeps to collectPercent until ctx is done, unless the environment
// says otherwise: it looks whenever the collector has run, so that a heap that
// grows fast has no more room than one that has grown.
func boundGarbage(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		return nil
	}
	ran := make(chan struct{}, 1)
	afterCollections(ctx, func() {
		select {
		case ran <- struct{}{}:
		default: // it is known
		}
	})
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	now := 100
	defer func() { debug.SetGCPercent(100) }()
	for {
		metrics.Read(sample)
		if want := collectPercent(sample[0].Value.Uint64()); want < now-slack || want > now+slack {
			debug.SetGCPercent(want)
			now = want
		}
		select {
		case <-ran:
		case <-ctx.Done():
			return nil
		}
	}
}

// mortal is something that the collector finds each time it runs. It has a pointer,
// so that it shares its memory with nothing that stays.
type mortal struct{ _ *mortal }

// afterCollections has f called each time the collector has run, until ctx is done.
// f must not wait: all finalizers run in one goroutine.
func afterCollections(ctx context.Context, f func()) {
	var again func(*mortal)
	again = func(m *mortal) {
		if ctx.Err() == nil {
			f()
			runtime.SetFinalizer(m, again)
		}
	}
	runtime.SetFinalizer(new(mortal), again)
}
