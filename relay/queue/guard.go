package queue

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"waybill/relay/event"
)

const ballastName = "ballast"

// guard watches the free space of the volume. A full disk should not happen, and
// Badger could not bear it: it writes through mapped sparse files, so that the
// process would be killed. See room for what is done about that.
//
// With m = Options.DiskFreeMin, the marks are: below m nothing is accepted,
// until m·5/4 are free again; below m/2 a content on its way is cut off, and the
// ballast file is given up; below m/4 nothing is claimed either, until m/2 are
// free again, because a settlement might not be written. Between two looks the
// guard counts what is written: a fast disk is filled within a second.
type guard struct {
	q    *Queue
	fs   fsys
	dir  string
	min  int64
	free atomic.Int64 // as far as known: the last look, less what was written since
	size atomic.Int64

	stopped  atomic.Bool // nothing is accepted
	critical atomic.Bool // nothing is claimed

	mu      sync.Mutex // one look at a time
	level   int
	ballast bool
	blind   bool // the last look failed
	unshut  bool // it was told that tables cannot be kept from being made
}

func newGuard(q *Queue) *guard {
	g := &guard{q: q, fs: q.opts.tune.fs, dir: q.opts.Dir, min: q.opts.DiskFreeMin}
	g.free.Store(math.MaxInt64)
	return g
}

func (g *guard) ballastFile() string { return filepath.Join(g.dir, ballastName) }

// beforeOpen looks before the database is opened, and gives up the ballast
// when that is what it takes.
func (g *guard) beforeOpen() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.removeTorn()
	if err := g.look(); err != nil {
		return err
	}
	need := g.min / 4
	if g.free.Load() < need && g.ballast {
		if err := g.drop(); err != nil {
			return err
		}
		if err := g.look(); err != nil {
			return err
		}
	}
	if free := g.free.Load(); free < need {
		return fmt.Errorf("the disk is full: %d octets are free in %s, at least %d are needed to open the database safely; make room and start again",
			free, g.dir, need)
	}
	g.judge()
	return nil
}

// removeTorn forgets a ballast that was not completed.
func (g *guard) removeTorn() {
	files, err := g.fs.list(g.dir)
	size, there := files[ballastName]
	g.ballast = err == nil && there
	if g.ballast && size != g.ballastSize() {
		_ = g.drop()
	}
}

func (g *guard) ballastSize() int64 { return max(g.min/8, 4096) }

func (g *guard) drop() error {
	if err := g.fs.remove(g.ballastFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove ballast: %w", err)
	}
	g.ballast = false
	return nil
}

// keep makes the ballast file.
func (g *guard) keep() {
	f, err := g.fs.create(g.ballastFile())
	if err != nil {
		return // tried again at the next look
	}
	err = f.allocate(g.ballastSize())
	g.ballast = true
	if cerr := f.Close(); err != nil || cerr != nil {
		_ = g.drop()
	}
}

func (g *guard) look() error {
	free, size, err := g.fs.space(g.dir)
	if err != nil {
		return fmt.Errorf("free space of %s: %w", g.dir, err)
	}
	g.free.Store(free)
	g.size.Store(size)
	return nil
}

// judge sets the level from the free space.
func (g *guard) judge() {
	free := g.free.Load()
	switch {
	case free < g.min:
		g.level = 2
	case g.level == 2 && free < g.min/4*5: // hysteresis
	case free < 2*g.min:
		g.level = 1
	case g.level == 1 && free < g.min/4*9:
	default:
		g.level = 0
	}
	g.stopped.Store(g.level == 2)
	critical := free < g.min/4 || g.critical.Load() && free < g.min/2
	if g.critical.Swap(critical) && !critical {
		g.q.ring()
	}
	if err := g.q.room.shutTables(critical); err != nil && !g.unshut {
		g.unshut = true
		g.q.remark("disk guard", err.Error())
	}
}

// check looks and acts on what it sees. Run calls it every second.
func (g *guard) check() {
	g.mu.Lock()
	err := g.look()
	if err == nil {
		switch free := g.free.Load(); {
		case free < g.min/2 && g.ballast:
			err = g.drop()
			_ = g.look()
		case free >= 2*g.min && !g.ballast:
			g.keep()
		}
		g.judge()
	}
	level, free, seen := g.level, g.free.Load(), g.blind
	g.blind = err != nil
	g.mu.Unlock()
	if err != nil {
		if !seen {
			g.q.remark("disk guard", err.Error())
		}
		return
	}
	g.q.setPressure(event.PressureChanged{Resource: "disk_space", Level: level, Detail: fmt.Sprintf("%d octets free", free)})
}

// full says that a write met a full disk.
func (g *guard) full() {
	g.stopped.Store(true) // until the next look says otherwise
	g.critical.Store(true)
	g.free.Store(0)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ballast {
		_ = g.drop() // what is under way needs it now
	}
	_ = g.q.room.shutTables(true) // the next look tries again
}

// room reports whether a message of size octets may begin.
func (g *guard) room(size int64) bool { return g.free.Load()-max(size, 0) >= g.min }

// spend counts size octets that are about to be written, and reports whether
// a content may still be written.
func (g *guard) spend(size int64) bool { return g.free.Add(-size) >= g.min/2 }
