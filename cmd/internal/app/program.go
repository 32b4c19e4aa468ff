package app

import (
	"context"
	"runtime/debug"
	"time"

	"go.uber.org/zap"
)

// What of the program is in memory grows with everything that it ever did. It is
// taken out once the start is over, with what that has left behind on the heap, and
// again from time to time. By taste: what runs is back within a millisecond.
const (
	unloadFirst = time.Second
	unloadEvery = 10 * time.Minute
)

// runUnload keeps to that until ctx is done.
func (a *App) runUnload(ctx context.Context) error {
	timer := time.NewTimer(unloadFirst)
	defer timer.Stop()
	freed := false
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
		if !freed {
			debug.FreeOSMemory() // what the start has left behind
			freed = true
		}
		if err := unloadProgram(); err != nil { // it stays larger, and no worse
			a.logger.Debug("the program stays in memory", zap.Error(err))
			return nil
		}
		timer.Reset(unloadEvery)
	}
}
