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
	return c.work(func() (i int, ok, more bool) {
		i = int(next.Add(1)) - 1
		return i, i < len(list), i+1 < len(list)
	}, func(i int) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return each(list[i])
	})
}

// work calls each for every piece of work that next tells of, at the same time
// as far as there are hands, until one fails; more says that there may be
// another piece.
func (c crew) work(next func() (i int, ok, more bool), each func(i int) error) error {
	var failed atomic.Pointer[error]
	var hands sync.WaitGroup
	var work func()
	work = func() {
		for failed.Load() == nil {
			i, ok, more := next()
			if !ok {
				return
			}
			if more { // a hand that has become free meanwhile, too
				select {
				case c <- struct{}{}:
					hands.Go(func() {
						defer func() { <-c }()
						work()
					})
				default:
				}
			}
			if err := each(i); err != nil {
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
