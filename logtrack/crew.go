package logtrack

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
)

// A crew is the hands that all queries of a store have beside their own: one
// goroutine less than there are processors, however many ask at once. A query
// alone reads as many blocks at a time as the machine can; one among many reads
// them one after the other, and none has to wait for a hand.
type crew chan struct{}

func newCrew() crew { return make(crew, max(1, min(8, runtime.GOMAXPROCS(0))-1)) }

// parallel calls each for every item of list, in their order, at the same time
// as far as there are hands, until one fails or ctx is done.
func parallel[T any](ctx context.Context, c crew, list []T, each func(T) error) error {
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var hands sync.WaitGroup
	var work func()
	work = func() {
		for {
			i := int(next.Add(1)) - 1
			if i >= len(list) || failed.Load() != nil {
				return
			}
			if i+1 < len(list) { // a hand that has become free meanwhile, too
				select {
				case c <- struct{}{}:
					hands.Go(func() {
						defer func() { <-c }()
						work()
					})
				default:
				}
			}
			err := ctx.Err()
			if err == nil {
				err = each(list[i])
			}
			if err != nil {
				failed.CompareAndSwap(nil, &err)
				return
			}
		}
	}
	work()
	hands.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}
