package transcript

import (
	"errors"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"waybill/relay/event"
)

// Why a live reader was ended.
var (
	ErrSlow   = errors.New("this reader fell behind")
	ErrClosed = errors.New("the relay is about to end")
	ErrMany   = errors.New("too many live readers")
)

// Bounds of a Tap, chosen by taste.
const (
	maxWatchers = 16
	watchRoom   = 2048 // lines that a reader may be behind
)

// Spoken is one line as a live reader gets it.
type Spoken struct {
	Party
	Time time.Time
	Line event.Line
}

// Filter says which conversations a live reader wants. Its zero value wants all.
type Filter struct {
	Direction  string
	Connector  string
	Session    string
	ClientIP   netip.Prefix
	RemoteHost string // name or address of the next hop
}

func (f *Filter) wants(p *Party) bool {
	return (f.Direction == "" || f.Direction == p.Direction) &&
		(f.Connector == "" || f.Connector == p.Connector) &&
		(f.Session == "" || strings.EqualFold(f.Session, p.Session)) &&
		(!f.ClientIP.IsValid() || f.ClientIP.Contains(p.ClientIP)) &&
		(f.RemoteHost == "" || strings.EqualFold(f.RemoteHost, p.RemoteName) || p.RemoteIP.IsValid() && f.RemoteHost == p.RemoteIP.String())
}

// Tap hands the lines of all Logs that have it to live readers. Its zero value
// is ready.
type Tap struct {
	gen atomic.Uint64 // 0 while nobody watches; otherwise changes with every reader

	mu     sync.Mutex
	list   map[*Watcher]struct{}
	last   uint64
	closed bool
	slow   int64
}

// Watcher is one live reader.
type Watcher struct {
	// C gives the lines. It is closed when the reader is ended; Err says why.
	C <-chan Spoken

	c    chan Spoken
	f    Filter
	t    *Tap
	live bool
	err  error
}

// Watch gives the lines of conversations that f wants, from now on. The caller
// must Close the reader.
func (t *Tap) Watch(f Filter) (*Watcher, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return nil, ErrClosed
	case len(t.list) >= maxWatchers:
		return nil, ErrMany
	}
	w := &Watcher{c: make(chan Spoken, watchRoom), f: f, t: t, live: true}
	w.C = w.c
	if t.list == nil {
		t.list = map[*Watcher]struct{}{}
	}
	t.list[w] = struct{}{}
	t.changed()
	return w, nil
}

// Close ends all readers; there are none from now on.
func (t *Tap) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for w := range t.list {
		t.end(w, ErrClosed)
	}
}

// Stats are the number of live readers, and of those that were too slow so far.
func (t *Tap) Stats() (live int, slow int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.list), t.slow
}

// changed makes every Log look who listens to it. t.mu is held.
func (t *Tap) changed() {
	t.last++
	if len(t.list) == 0 {
		t.gen.Store(0)
		return
	}
	t.gen.Store(t.last)
}

// end ends a reader. t.mu is held.
func (t *Tap) end(w *Watcher, err error) {
	if !w.live {
		return
	}
	if errors.Is(err, ErrSlow) {
		t.slow++
	}
	w.live, w.err = false, err
	delete(t.list, w)
	close(w.c)
	t.changed()
}

// Close ends the reader.
func (w *Watcher) Close() {
	w.t.mu.Lock()
	defer w.t.mu.Unlock()
	w.t.end(w, nil)
}

// Err says why C was closed; nil after Close.
func (w *Watcher) Err() error {
	w.t.mu.Lock()
	defer w.t.mu.Unlock()
	return w.err
}

// aloud hands a line to those who listen to this Log.
func (l *Log) aloud(gen uint64, now time.Time, from byte, text []byte, n int64) {
	if gen != l.gen {
		l.gen, l.ears = gen, l.tap.listeners(&l.who, l.ears[:0])
	}
	if len(l.ears) == 0 {
		return
	}
	l.tap.tell(l.ears, Spoken{Party: l.who, Time: now.UTC(), Line: event.Line{
		Seq: l.count, At: event.Secs(now.Sub(l.start)), From: speakers[from], Text: Printable(string(text[:min(len(text), lineOctets)]), lineOctets), Bytes: n,
	}})
}

func (t *Tap) listeners(p *Party, list []*Watcher) []*Watcher {
	t.mu.Lock()
	defer t.mu.Unlock()
	for w := range t.list {
		if w.f.wants(p) {
			list = append(list, w)
		}
	}
	return list
}

func (t *Tap) tell(list []*Watcher, s Spoken) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, w := range list {
		if !w.live {
			continue
		}
		select {
		case w.c <- s:
		default:
			t.end(w, ErrSlow)
		}
	}
}
