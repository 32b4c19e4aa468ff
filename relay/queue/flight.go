package queue

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"waybill/relay/event"
)

const (
	flightName = "inflight"
	flightSlot = len(ident{})
	// What was in flight at a second crash in a row is tried alone: after a
	// minute, and so far apart. By taste.
	aloneAfter = time.Minute
	aloneEvery = 2 * time.Second
	aloneMost  = 15 * time.Minute
)

// flight remembers in a file which messages are leased, for the next start
// after a crash: a message that was in flight at three of them in a row is
// isolated. The file is not synced, because it is only to outlive the process;
// a power cut is nobody's fault.
type flight struct {
	f *os.File

	mu   sync.Mutex
	free []int // slots that were given back
	next int
}

// openFlight returns what was in flight when the queue last ended, unless it
// was closed.
func openFlight(dir string) (*flight, []ident, error) {
	f, err := os.OpenFile(filepath.Join(dir, flightName), os.O_RDWR|os.O_CREATE, 0o600) //nolint:gosec // below the queue's own directory
	if err != nil {
		return nil, nil, err
	}
	b, err := io.ReadAll(f)
	if err == nil {
		err = f.Truncate(0)
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	var ids []ident
	seen := map[ident]bool{{}: true}
	for ; len(b) >= flightSlot; b = b[flightSlot:] {
		if id := ident(b); !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return &flight{f: f}, ids, nil
}

// enter notes that l is out.
func (f *flight) enter(l *Lease) {
	f.mu.Lock()
	defer f.mu.Unlock()
	slot := f.next
	if n := len(f.free); n > 0 {
		slot, f.free = f.free[n-1], f.free[:n-1]
	} else {
		f.next++
	}
	l.slot = slot + 1
	_, _ = f.f.WriteAt(l.id[:], int64(slot*flightSlot)) // without it a crash counts one less
}

// leave notes that l has ended. It may be called again. Where the message is
// finished, its name stays until the place is used again: no start finds it queued.
func (f *flight) leave(l *Lease) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l.slot == 0 {
		return
	}
	slot := l.slot - 1
	l.slot = 0
	f.free = append(f.free, slot)
	if l.finished {
		return
	}
	_, _ = f.f.WriteAt(make([]byte, flightSlot), int64(slot*flightSlot)) // as above
}

// close says that nobody is to blame for what is still out.
func (f *flight) close() error {
	if f == nil {
		return nil
	}
	_ = f.f.Truncate(0) // at worst a clean end counts as a crash
	return f.f.Close()
}

// suspect counts a crash for each message that was in flight at it. One that has
// been there before waits and is tried alone; the third time it is isolated. An
// attempt that comes to its end, whatever its end, clears the message.
func (q *Queue) suspect(ids []ident) error {
	now := time.Now().UTC()
	alone := aloneAfter
	return q.alter(context.Background(), ids, func(c *change, emit event.Emitter, m *stored) (bool, error) {
		if m.Poison != "" {
			return false, nil
		}
		m.panics++
		switch {
		case m.panics >= poisonAfter:
			m.Poison = fmt.Sprintf("the relay ended without a word %d times in a row while it delivered this message", m.panics)
			return true, q.state(c, emit, event.MessagePoisoned{Info: infoOf(&m.Message), Error: m.Poison})
		case m.panics > 1:
			for i := range m.States {
				if s := &m.States[i]; !s.Disposition.Final() {
					s.Due = later(s.Due, now.Add(alone))
				}
			}
			alone = min(alone+aloneEvery, aloneMost)
		}
		return true, nil
	})
}
