package logtrack

import (
	"errors"
	"sync"
	"sync/atomic"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
)

// Why a live reader was ended.
var (
	ErrTailSlow   = errors.New("this reader fell behind; search for what it missed")
	ErrTailClosed = errors.New("the store was closed")
	ErrTailCount  = errors.New("too many live readers")
)

const (
	maxTails  = 32
	tailRoom  = 512
	offerRoom = 8192
)

// tails hands new records to live readers, without ever making Write wait.
type tails struct {
	mu     sync.Mutex
	list   map[*Tailer]struct{}
	ended  bool
	slow   int64
	offers chan *event.Record
	stop   chan struct{}
	live   atomic.Int32 // how many are in list
}

// Tailer is one live reader.
type Tailer struct {
	// C gives the records that match, in the order of writing. It is closed
	// when the reader is ended; Err says why. The records are shared: do not change them.
	C <-chan *event.Record

	c    chan *event.Record
	f    *filter
	t    *tails
	err  error
	live bool
}

func (t *tails) init() {
	t.list = map[*Tailer]struct{}{}
	t.offers = make(chan *event.Record, offerRoom)
	t.stop = make(chan struct{})
}

// offer gives r to the readers, if there are any. A reader of a full channel
// is ended: it has missed something.
func (t *tails) offer(r *event.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.list) == 0 {
		return
	}
	select {
	case t.offers <- r:
	default:
		for x := range t.list {
			t.end(x, ErrTailSlow)
		}
	}
}

// run matches offered records against the readers' filters.
func (t *tails) run() {
	for {
		select {
		case <-t.stop:
			return
		case r := <-t.offers:
			t.mu.Lock()
			list := make([]*Tailer, 0, len(t.list))
			for x := range t.list {
				list = append(list, x)
			}
			t.mu.Unlock()
			for _, x := range list {
				if x.f.matches(r) {
					t.send(x, r)
				}
			}
		}
	}
}

func (t *tails) send(x *Tailer, r *event.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !x.live {
		return
	}
	select {
	case x.c <- r:
	default:
		t.end(x, ErrTailSlow)
	}
}

// end ends a reader. t.mu is held.
func (t *tails) end(x *Tailer, err error) {
	if !x.live {
		return
	}
	if errors.Is(err, ErrTailSlow) {
		t.slow++
	}
	x.live, x.err = false, err
	delete(t.list, x)
	t.live.Add(-1)
	close(x.c)
}

func (t *tails) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	for x := range t.list {
		t.end(x, ErrTailClosed)
	}
	close(t.stop)
}

func (t *tails) stats() (live int, slow int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.list), t.slow
}

// Tail gives the facts that match q from now on. Its time range, order and
// limit do not count. The caller must Close the reader.
func (s *Store) Tail(q trackapi.Query) (*Tailer, error) {
	f, err := compile(q, true, s.opts.Privacy)
	if err != nil {
		return nil, err
	}
	f.anyTime()
	t := &s.tails
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.ended:
		return nil, ErrTailClosed
	case len(t.list) >= maxTails:
		return nil, ErrTailCount
	}
	x := &Tailer{c: make(chan *event.Record, tailRoom), f: f, t: t, live: true}
	x.C = x.c
	t.list[x] = struct{}{}
	t.live.Add(1)
	return x, nil
}

// Close ends the reader.
func (x *Tailer) Close() {
	x.t.mu.Lock()
	defer x.t.mu.Unlock()
	x.t.end(x, nil)
}

// Err says why C was closed; nil after Close.
func (x *Tailer) Err() error {
	x.t.mu.Lock()
	defer x.t.mu.Unlock()
	return x.err
}
