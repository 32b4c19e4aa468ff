package queue

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// faulty is a file system with faults to order.
type faulty struct {
	disk
	mu       sync.Mutex
	free     int64
	syncErr  error
	writeErr error
	syncs    int
}

func (f *faulty) set(change func(*faulty)) {
	f.mu.Lock()
	change(f)
	f.mu.Unlock()
}

func (f *faulty) space(string) (free, size int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.free, 100 << 30, nil
}

func (f *faulty) create(name string) (file, error) {
	inner, err := f.disk.create(name)
	if err != nil {
		return nil, err
	}
	return &faultyFile{inner, f}, nil
}

func (f *faulty) reuse(old, name string) (file, error) {
	inner, err := f.disk.reuse(old, name)
	if err != nil {
		return nil, err
	}
	return &faultyFile{inner, f}, nil
}

type faultyFile struct {
	file
	f *faulty
}

func (f *faultyFile) sync() error {
	f.f.mu.Lock()
	defer f.f.mu.Unlock()
	f.f.syncs++
	if f.f.syncErr != nil {
		return f.f.syncErr
	}
	return f.file.sync()
}

func (f *faultyFile) WriteAt(p []byte, off int64) (int, error) {
	f.f.mu.Lock()
	defer f.f.mu.Unlock()
	if f.f.writeErr != nil {
		return 0, f.f.writeErr
	}
	return f.file.WriteAt(p, off)
}

func (f *faultyFile) writeParts(parts [][]byte, off int64) error {
	f.f.mu.Lock()
	defer f.f.mu.Unlock()
	if f.f.writeErr != nil {
		return f.f.writeErr
	}
	return f.file.writeParts(parts, off)
}

func openFaulty(t *testing.T) (*harness, *faulty) {
	f := &faulty{free: 100 << 30}
	return open(t, func(o *Options) { o.tune.fs = f }), f
}

func wantReply(t *testing.T, what string, err error, enhanced, reason string) {
	t.Helper()
	var reply *mail.ReplyError
	if !errors.As(err, &reply) || reply.Reply.Code != 452 || reply.Reply.Enhanced != enhanced || reply.Reason != reason {
		t.Errorf("%s = %v, want 452 %s, reason %s", what, err, enhanced, reason)
	}
}

func TestFailureStopsTheQueue(t *testing.T) {
	boom := errors.New("input/output error")
	for _, test := range []struct {
		name  string
		large bool
		fault func(*harness, *faulty)
	}{
		{"sync of a segment", false, func(_ *harness, f *faulty) { f.set(func(f *faulty) { f.syncErr = boom }) }},
		{"full disk at a sync", false, func(_ *harness, f *faulty) {
			f.set(func(f *faulty) { f.syncErr = fmt.Errorf("%w: %w", boom, syscall.ENOSPC) })
		}},
		{"sync of a large content", true, func(_ *harness, f *faulty) { f.set(func(f *faulty) { f.syncErr = boom }) }},
		{"write to a segment", false, func(_ *harness, f *faulty) { f.set(func(f *faulty) { f.writeErr = boom }) }},
		{"commit", false, func(h *harness, _ *faulty) { h.Queue.opts.tune.beforeCommit = func() error { return boom } }},
	} {
		t.Run(test.name, func(t *testing.T) {
			h, f := openFaulty(t)
			kept := h.put(t, "kept", "a@example.com", "a@example.net")
			l := h.claim(t)
			test.fault(h, f)
			content := []byte("lost")
			if test.large {
				content = make([]byte, 2*smallContent)
			}
			lost := draft(t, "b@example.com")
			wantReply(t, "Put", h.Put(t.Context(), lost, content), "4.3.0", "storage")
			f.mu.Lock()
			syncs := f.syncs
			f.syncErr, f.writeErr = nil, nil // a second sync would succeed, and mean nothing
			f.mu.Unlock()

			wantReply(t, "Put after the failure", h.Put(t.Context(), draft(t, "c@example.com"), nil), "4.3.0", "storage")
			if _, err := h.Claim(t.Context()); !errors.Is(err, ErrStorage) {
				t.Errorf("Claim = %v, want ErrStorage", err)
			}
			if err := h.Settle(t.Context(), l, Settlement{Outcomes: outcomes(l, mail.Relayed)}); !errors.Is(err, ErrStorage) {
				t.Errorf("Settle = %v, want ErrStorage", err)
			}
			if _, err := h.Act(t.Context(), Action{Action: "retry", Filter: Filter{All: true}}); !errors.Is(err, ErrStorage) {
				t.Errorf("Act = %v, want ErrStorage", err)
			}
			if f.mu.Lock(); f.syncs != syncs {
				t.Errorf("%d syncs after the failed one", f.syncs-syncs)
			}
			f.mu.Unlock()
			if err := h.Ready(); !errors.Is(err, ErrStorage) || !errors.Is(err, boom) {
				t.Errorf("Ready() = %v, want ErrStorage and why", err)
			}
			if lv := h.Levels(); lv.Closed == "" || lv.Pressure["storage_error"] != 2 {
				t.Errorf("Levels() = %+v, want closed", lv)
			}
			if evs := find[event.PressureChanged](h.rec); len(evs) != 1 || evs[0].Resource != "storage_error" || evs[0].Level != 2 {
				t.Errorf("pressure = %+v", evs)
			}

			h.Queue.opts.tune.beforeCommit = nil
			h = h.reopen(t, nil)
			if m, err := h.Get(kept); err != nil || m.States[0].Disposition != mail.Queued {
				t.Errorf("Get(kept) = %v, %v", m, err)
			}
			if _, err := h.Get(lost.ID); !errors.Is(err, ErrNotFound) {
				t.Errorf("Get(refused) = %v, want ErrNotFound", err)
			}
		})
	}
}

func TestDiskGuard(t *testing.T) {
	h, f := openFaulty(t)
	const m = leastDiskFreeMin
	ballast := filepath.Join(h.dir, ballastName)
	look := func(free int64) {
		f.set(func(f *faulty) { f.free = free })
		h.guard.check()
	}
	for _, step := range []struct {
		name    string
		free    int64
		level   int
		accept  bool
		claim   bool
		ballast bool
	}{
		{"plenty", 100 * m, 0, true, true, true},
		{"medium", 3 * m / 2, 1, true, true, true},
		{"below the mark", m - 1, 2, false, true, true},
		{"between the marks", m + m/8, 2, false, true, true},
		{"recovered", m + m/4, 1, true, true, true},
		{"nearly full", m/2 - 1, 2, false, true, false},
		{"full", m/4 - 1, 2, false, false, false},
		{"a little room", m / 4, 2, false, false, false},
		{"enough to settle", m / 2, 2, false, true, false},
		{"plenty again", 100 * m, 0, true, true, true},
	} {
		look(step.free)
		if got := h.Levels().Pressure["disk_space"]; got != step.level {
			t.Errorf("%s: level %d, want %d", step.name, got, step.level)
		}
		in, err := h.Begin(t.Context(), 100)
		if step.accept {
			if err != nil {
				t.Fatalf("%s: Begin = %v", step.name, err)
			}
			if err := in.Commit(t.Context(), draft(t, "a@example.com")); err != nil {
				t.Errorf("%s: Commit = %v", step.name, err)
			}
		} else {
			wantReply(t, step.name, err, "4.3.1", "backpressure")
		}
		if got := !h.guard.critical.Load(); got != step.claim {
			t.Errorf("%s: claims = %t, want %t", step.name, got, step.claim)
		}
		if _, err := os.Stat(ballast); (err == nil) != step.ballast {
			t.Errorf("%s: ballast: %v, want there = %t", step.name, err, step.ballast)
		}
		if (h.Ready() == nil) != step.accept {
			t.Errorf("%s: Ready() = %v", step.name, h.Ready())
		}
	}
	var levels []int
	for _, ev := range find[event.PressureChanged](h.rec) {
		levels = append(levels, ev.Level)
	}
	if want := []int{1, 2, 1, 2, 0}; !slices.Equal(levels, want) {
		t.Errorf("pressure levels %v, want %v: one fact for each change", levels, want)
	}

	// Between two looks the guard counts what comes.
	look(m + m/4)
	in, err := h.Begin(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	var werr error
	for part := make([]byte, 1<<20); in.Size() < m && werr == nil; {
		_, werr = in.Write(part)
	}
	wantReply(t, "Write", werr, "4.3.1", "backpressure")
	in.Abort()
}

func TestFullDiskRefusesAndRecovers(t *testing.T) {
	h, f := openFaulty(t)
	h.put(t, "x", "a@example.com")
	f.set(func(f *faulty) { f.writeErr = syscall.ENOSPC })
	wantReply(t, "Put", h.Put(t.Context(), draft(t, "b@example.com"), []byte("x")), "4.3.1", "backpressure")
	wantReply(t, "Put", h.Put(t.Context(), draft(t, "b@example.com"), make([]byte, 2*smallContent)), "4.3.1", "backpressure")
	f.set(func(f *faulty) { f.writeErr = nil })
	h.guard.check()
	h.put(t, "x", "c@example.com")
	if got := h.Levels().Messages; got != 2 {
		t.Errorf("%d messages, want 2", got)
	}
}

func TestOpenOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	f := &faulty{free: 100}
	opts := Options{Dir: dir, Router: &domains{}, DiskFreeMin: 1 << 20, tune: tuning{fs: f}}
	if _, err := Open(opts); err == nil || !strings.Contains(err.Error(), "disk is full") || !strings.Contains(err.Error(), "make room") {
		t.Errorf("Open = %v, want a full disk and what to do", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "badger")); err == nil {
		t.Error("the database was touched")
	}
}

func TestOpenErrors(t *testing.T) {
	h := open(t, nil)
	if _, err := Open(h.opts()); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("Open of an open queue = %v, want that another process has it", err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "badger", "MANIFEST"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(h.opts()); err == nil || !strings.Contains(err.Error(), "restore") {
		t.Errorf("Open of a damaged database = %v, want what to do", err)
	}
	if _, err := Open(Options{}); err == nil {
		t.Error("Open without a directory succeeded")
	}
}

// scratch changes one octet of the content file of a message.
func scratch(t *testing.T, h *harness, id mail.QueueID, at int64) {
	t.Helper()
	ident, _ := parseIdent(id)
	h.recent.sweep(time.Now().Add(time.Hour)) // so that it is read
	m, err := h.read(ident)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(h.contents.dir, h.contents.find(m.loc.seq).name())
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, m.loc.off+at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b, m.loc.off+at); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedContent(t *testing.T) {
	for _, test := range []struct {
		name string
		size int
		at   int64
	}{
		{"magic", 100, 0},
		{"queue ID", 100, 10},
		{"small content", 100, contentHeader + 50},
		{"large content", 3 * smallContent, contentHeader + 2*smallContent + 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := open(t, nil)
			id := h.put(t, strings.Repeat("x", test.size), "a@example.com")
			good := h.put(t, "good", "a@example.com")
			scratch(t, h, id, test.at)
			for range 2 {
				l := h.claim(t)
				r, err := l.Open()
				if l.Message.ID == good {
					if err != nil {
						t.Fatal(err)
					}
					r.Close()
					h.settle(t, l, mail.Relayed, time.Time{})
					continue
				}
				if !errors.Is(err, ErrDamaged) {
					t.Fatalf("Open = %v, want ErrDamaged", err)
				}
				l.Release()
			}
			h.idle(t)
			eventually(t, "poisoned", func() bool { return len(find[event.MessagePoisoned](h.rec)) == 1 })
			if got := h.Levels().ByState["poison"]; got != 1 {
				t.Errorf("%d messages are poisoned, want 1", got)
			}
			h = h.reopen(t, nil)
			h.idle(t)
			if m, err := h.Get(id); err != nil || m.Poison == "" {
				t.Errorf("Get = %+v, %v, want it isolated", m, err)
			}
			if aff, err := h.Act(t.Context(), Action{Action: "remove", Filter: Filter{State: "poison"}}); err != nil || aff.Messages != 1 {
				t.Errorf("remove = %+v, %v", aff, err)
			}
		})
	}
}

func TestDamagedRecord(t *testing.T) {
	h := open(t, nil)
	bad := h.put(t, "bad", "a@example.com")
	h.inDatabaseOnly(t, []byte(messageKey(bad)), []byte{recordVersion, recordLive, 1, 2, 3, 4, 5, 6})
	good := h.put(t, "good", "b@example.com")
	h.recent.sweep(time.Now().Add(time.Hour)) // so that they are read
	l := h.claim(t)                           // the damaged one is met first, and passed over
	if l.Message.ID != good {
		t.Errorf("claimed %s, want %s", l.Message.ID, good)
	}
	h.settle(t, l, mail.Relayed, time.Time{})
	h.idle(t)
	if evs := stated[event.MessagePoisoned](t, h.rec, 1); len(evs) != 1 {
		t.Errorf("poisoned = %+v, want one", evs)
	}
	h = h.reopen(t, nil)
	if evs := find[event.MessagePoisoned](h.rec); len(evs) != 1 {
		t.Errorf("poisoned after the restart = %+v, want one", evs)
	}
	if err := h.reclaim(t.Context()); err != nil {
		t.Error(err)
	}
	if _, files := h.contents.usage(); files != 1 {
		t.Errorf("%d content files, want the one that may hold the damaged message", files)
	}
}

// TestResurrected brings a finished message's key back, as Badger did in the past.
func TestResurrected(t *testing.T) {
	h := open(t, nil)
	id := h.put(t, strings.Repeat("x", 600<<10), "a@example.com")
	ident, _ := parseIdent(id)
	m, err := h.read(ident)
	if err != nil {
		t.Fatal(err)
	}
	h.settle(t, h.claim(t), mail.Relayed, time.Time{})
	if err := h.reclaim(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.inDatabaseOnly(t, []byte(messageKey(id)), encodeRecord(nil, m))
	h = h.reopen(t, nil)
	h.idle(t)
	if ev := find[event.QueueLoaded](h.rec); len(ev) != 1 || ev[0].Dropped != 1 || ev[0].Messages != 0 {
		t.Errorf("loaded = %+v, want one dropped", ev)
	}
	m.ExpiresAt = time.Now().Add(-time.Second)
	h.inDatabaseOnly(t, []byte(messageKey(id)), encodeRecord(nil, m))
	for _, want := range []int{1, 0} { // when its lifetime has ended, the key goes
		if h = h.reopen(t, nil); find[event.QueueLoaded](h.rec)[0].Dropped != want {
			t.Errorf("loaded = %+v, want %d dropped", find[event.QueueLoaded](h.rec), want)
		}
	}
}

// TestSettleWaitsForRoom has outcomes that cannot be written: they wait until
// there is room, or until whoever waits for them must end.
func TestSettleWaitsForRoom(t *testing.T) {
	for _, test := range []struct {
		name string
		full func(h *harness, f *faulty, full bool)
	}{
		{"of the log", func(h *harness, _ *faulty, full bool) {
			h.saving.Lock() // a save may be under way, and has contents.mu after it
			defer h.saving.Unlock()
			h.contents.mu.Lock()
			h.contents.spend = h.guard.spend
			if full { // neither a segment has room nor the log
				h.contents.seal()
				for _, s := range h.contents.spares {
					if err := s.f.Close(); err != nil {
						t.Error(err)
					}
				}
				h.contents.spares = nil
				h.contents.spend = func(int64) bool { return false }
				h.room.used = logMost
			}
			h.contents.mu.Unlock()
			if err := h.room.shutTables(full); err != nil {
				t.Error(err)
			}
		}},
		{"of a report", func(_ *harness, f *faulty, full bool) {
			f.set(func(f *faulty) {
				if f.writeErr = nil; full {
					f.writeErr = syscall.ENOSPC
				}
			})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h, f := openFaulty(t)
			defer h.guard.check() // or else the database stays shut, and is not closed
			h.put(t, "x", "a@example.com")
			settle := func(l *Lease, hurry chan struct{}) chan error {
				done := make(chan error, 1)
				s := Settlement{Outcomes: outcomes(l, mail.Bounced), Hurry: hurry, Reports: []Report{{
					Draft: draft(t, "sender@example.org"), Content: []byte("gone"), Fact: event.DSNQueued{Kind: "failed"},
				}}}
				go func() { done <- h.Settle(t.Context(), l, s) }()
				return done
			}
			l := h.claim(t)
			test.full(h, f, true)
			wantReply(t, "Put", h.Put(t.Context(), draft(t, "b@example.com"), []byte("x")), "4.3.1", "backpressure")

			hurry := make(chan struct{})
			done := settle(l, hurry)
			select {
			case err := <-done:
				t.Fatalf("Settle = %v, want that it waits", err)
			case <-time.After(3 * holdBackFor):
			}
			close(hurry)
			if err := <-done; err == nil {
				t.Fatal("Settle = nil, want an error")
			}

			h.guard.check()
			l = h.claim(t) // as if released
			done = settle(l, nil)
			test.full(h, f, false)
			eventually(t, "it is settled", func() bool {
				h.guard.check() // a write may have met the full disk, and say so after the last look
				select {
				case err := <-done:
					if err != nil {
						t.Fatalf("Settle = %v", err)
					}
					return true
				default:
					return false
				}
			})
			eventually(t, "one bounce is told", func() bool { return len(find[event.RecipientBounced](h.rec)) > 0 })
			if n := len(find[event.RecipientBounced](h.rec)); n != 1 {
				t.Errorf("%d recipients bounced, want 1", n)
			}
			if got := h.Levels().Messages; got != 1 {
				t.Errorf("%d messages, want the report", got)
			}
		})
	}
}

// TestRoomSaysWhy has the next log not be reserved for a reason that nobody would
// guess from the free space.
func TestRoomSaysWhy(t *testing.T) {
	h, _ := openFaulty(t)
	defer h.guard.check()
	manifest := filepath.Join(h.dir, "badger", "MANIFEST")
	if err := h.room.reserve.End(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(manifest, manifest+".away"); err != nil {
		t.Fatal(err)
	}
	for _, rcpt := range []string{"a@example.com", "b@example.com"} {
		h.put(t, "x", rcpt)
		if err := h.saveAll(); err != nil {
			t.Error(err)
		}
		h.guard.check()
	}
	h.guard.check() // the directory has its name again
	if err := os.Rename(manifest+".away", manifest); err != nil {
		t.Fatal(err)
	}
	said := 0
	for _, ev := range find[event.Remarked](h.rec) {
		if strings.Contains(ev.Detail, "MANIFEST") {
			said++
		}
	}
	if said != 1 {
		t.Errorf("it was told %d times, want once", said)
	}
}
