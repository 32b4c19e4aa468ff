package deliver

import (
	"sync"
	"time"
)

// crew runs work on goroutines that stay a while for more: the stack that an
// attempt needs has grown there already, and growing it was a fortieth of what a
// message costs.
type crew struct {
	wg   *sync.WaitGroup
	work chan func()
	quit chan struct{}
}

// idle is how long a goroutine without work stays. Chosen by taste.
const idle = 5 * time.Second

func newCrew(wg *sync.WaitGroup) *crew {
	return &crew{wg: wg, work: make(chan func()), quit: make(chan struct{})}
}

// do runs f on a goroutine of its own.
func (c *crew) do(f func()) {
	select {
	case c.work <- f:
	default:
		c.wg.Go(func() { c.run(f) })
	}
}

func (c *crew) run(f func()) {
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		f()
		timer.Reset(idle)
		select {
		case f = <-c.work:
		case <-timer.C:
			return
		case <-c.quit:
			return
		}
	}
}

// close lets go of the goroutines, each when its work is done. Nothing may be
// done after it.
func (c *crew) close() { close(c.quit) }
