package deliver

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestCrew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var wg sync.WaitGroup
		c := newCrew(&wg)
		var mu sync.Mutex
		runs, now, most := 0, 0, 0
		work := func() {
			mu.Lock()
			runs++
			now++
			most = max(most, now)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			now--
			mu.Unlock()
		}
		for range 3 { // all at once, however few wait
			for range 10 {
				c.do(work)
			}
			synctest.Wait()
			mu.Lock()
			if now != 10 {
				t.Errorf("%d run, want 10", now)
			}
			mu.Unlock()
			time.Sleep(2 * time.Second)
		}
		time.Sleep(idle) // they go
		c.do(work)
		c.close()
		wg.Wait()
		if runs != 31 || most != 10 {
			t.Errorf("%d runs, %d at once, want 31 and 10", runs, most)
		}
	})
}
