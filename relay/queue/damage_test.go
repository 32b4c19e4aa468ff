package queue

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"waybill/relay/mail"
)

// copyTree copies a directory as a kill would leave it now: not while files of it
// come and go. What was not written stays so.
func copyTree(t testing.TB, from, to string) {
	t.Helper()
	for range 100 {
		was := filesOf(t, from)
		err := copyOnce(from, to)
		if err == nil && slices.Equal(filesOf(t, from), was) {
			return
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if err := os.RemoveAll(to); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("%s does not come to rest", from)
}

func filesOf(t testing.TB, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, _ os.DirEntry, err error) error {
		names = append(names, name)
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return names
}

func copyOnce(from, to string) error {
	return filepath.WalkDir(from, func(name string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, rel), bytes.TrimRight(b, "\x00"), 0o600); err != nil {
			return err
		}
		return os.Truncate(filepath.Join(to, rel), int64(len(b)))
	})
}

// stock is a queue's directory and what must be in it.
type stock struct {
	dir  string
	want map[mail.QueueID]string // contents
}

// newStock fills a queue so that its database has tables and a log, and returns
// a copy of its directory: as a kill leaves it, or closed.
func newStock(t testing.TB, closed bool) *stock {
	t.Helper()
	h := open(t, nil)
	s := &stock{dir: t.TempDir(), want: map[mail.QueueID]string{}}
	line := []byte("Received: from a.test by b.test\r\n")
	trace := bytes.Repeat(line, memTableSize/80/len(line)) // so that they are more than one memtable
	for i := range 110 {
		d := draft(t, fmt.Sprintf("u%d@example.com", i))
		d.Trace = trace
		content := fmt.Sprintf("%d %s", i, strings.Repeat("x", 50*i))
		if err := h.Put(t.Context(), d, []byte(content)); err != nil {
			t.Fatal(err)
		}
		s.want[d.ID] = string(trace) + content
	}
	eventually(t, "a table", func() bool {
		names, _ := filepath.Glob(filepath.Join(h.dir, "badger", "*.sst"))
		mems, _ := filepath.Glob(filepath.Join(h.dir, "badger", "*.mem"))
		mems = slices.DeleteFunc(mems, func(name string) bool { // the next one, which is kept ready
			info, err := os.Stat(name)
			return err == nil && info.Size() == 0
		})
		return len(names) > 0 && len(mems) == 1
	})
	for range 5 { // some that are finished, and their records say so
		l := h.claim(t)
		delete(s.want, l.Message.ID)
		h.settle(t, l, mail.Relayed, l.Due)
	}
	if closed {
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	h.saving.Lock() // what is copied is of one moment
	defer h.saving.Unlock()
	copyTree(t, h.dir, s.dir)
	return s
}

// check opens dir and wants it to have everything, or to be refused with advice.
func (s *stock) check(t *testing.T, dir string) (refused bool) {
	t.Helper()
	q, err := Open(Options{Dir: dir, Router: &domains{}, DiskFreeMin: 1 << 20, Confirm: &confirmer{}, tune: tuning{fs: roomy{}, segment: 4 << 20}})
	if err != nil {
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "waybill queue rescue --data-dir") {
			t.Errorf("Open = %v, want ErrCorrupt and what to do", err)
		}
		return true
	}
	defer func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	}()
	if n := q.Levels().Messages; n != len(s.want) {
		t.Errorf("opened with %d messages, want %d or a refusal", n, len(s.want))
	}
	for id, want := range s.want {
		r, err := q.Content(id)
		if err != nil {
			t.Errorf("Content(%s) = %v", id, err)
			continue
		}
		got, err := io.ReadAll(r)
		_ = r.Close()
		if err != nil || string(got) != want {
			t.Errorf("content of %s is not what was accepted: %v", id, err)
		}
	}
	return false
}

// TestDamagedDatabase breaks each file of a queue's database in many ways: the
// queue has everything or refuses to open, and never panics.
func TestDamagedDatabase(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for _, closed := range []bool{false, true} {
		t.Run(map[bool]string{false: "killed", true: "closed"}[closed], func(t *testing.T) {
			s := newStock(t, closed)
			sound := t.TempDir()
			copyTree(t, s.dir, sound)
			if s.check(t, sound) {
				t.Fatal("the sound copy was refused")
			}
			files, err := os.ReadDir(filepath.Join(s.dir, "badger"))
			if err != nil {
				t.Fatal(err)
			}
			refused, taken := 0, 0
			for _, f := range files {
				b, err := os.ReadFile(filepath.Join(s.dir, "badger", f.Name()))
				if err != nil {
					t.Fatal(err)
				}
				used := len(bytes.TrimRight(b, "\x00"))
				type hurt struct {
					name string
					do   func(name string) error
				}
				hurts := []hurt{{"removed", os.Remove}}
				flips := 3
				switch filepath.Ext(f.Name()) {
				case ".mem", ".sst":
				default:
					if flips = 1; f.Name() == "LOCK" || f.Name() == "DISCARD" { // these hold nothing
						continue
					}
				}
				sizes := []int{used / 3, used - 1}
				if !closed {
					sizes = append(sizes, 0, len(b)-1)
				}
				for _, size := range sizes {
					if size >= 0 && size < len(b) {
						hurts = append(hurts, hurt{fmt.Sprintf("cut to %d", size), func(name string) error { return os.Truncate(name, int64(size)) }})
					}
				}
				for i := range flips {
					at := 0
					if i > 0 && used > 1 {
						at = rnd.IntN(used)
					}
					if i == 2 {
						at = max(used-2, 0)
					}
					if used == 0 {
						continue
					}
					mask := byte(1) << rnd.IntN(8)
					hurts = append(hurts, hurt{fmt.Sprintf("bit %#x of octet %d of %d", mask, at, used), func(name string) error {
						w, err := os.OpenFile(name, os.O_WRONLY, 0)
						if err != nil {
							return err
						}
						_, err = w.WriteAt([]byte{b[at] ^ mask}, int64(at))
						return errors.Join(err, w.Close())
					}})
				}
				for _, h := range hurts {
					t.Run(f.Name()+" "+h.name, func(t *testing.T) {
						dir := t.TempDir()
						copyTree(t, s.dir, dir)
						if err := h.do(filepath.Join(dir, "badger", f.Name())); err != nil {
							t.Fatal(err)
						}
						if s.check(t, dir) {
							refused++
						} else {
							taken++
							t.Log("taken: nothing was lost")
						}
					})
				}
			}
			t.Logf("%d refused, %d opened with everything", refused, taken)
			if refused < 10 {
				t.Errorf("%d refused: this proves less than it should", refused)
			}
		})
	}
}
