package queue

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"waybill/relay/mail"

	"github.com/google/go-cmp/cmp"
)

// TestWriteParts writes vectors past the page cache and through it, with parts that
// begin anywhere, more of them than one call takes, and a file system that refuses
// direct writes all of a sudden.
func TestWriteParts(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*diskFile)
	}{
		{"buffered", func(*diskFile) {}},
		{"direct", func(f *diskFile) { f.direct() }},
		{"refused", func(f *diskFile) {
			f.direct()
			f.sector = contentAlign // which no device takes
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "file")
			made, err := disk{}.create(name)
			if err != nil {
				t.Fatal(err)
			}
			f, ok := made.(*diskFile)
			if !ok {
				t.Fatalf("create returned %T", made)
			}
			const size = 8 << 20
			if err := f.allocate(size); err != nil {
				t.Fatal(err)
			}
			test.change(f)
			part, whole := f.units()
			t.Logf("parts of %d octets, writes of %d", part, whole)
			want := make([]byte, size)
			rnd := rand.New(rand.NewPCG(1, 2))
			off := int64(0)
			for _, n := range []int{1, 2, 17, 1024, 1025, 3000} {
				var parts [][]byte
				all := int64(0)
				for i := range n {
					b := make([]byte, 1+rnd.IntN(1500), page)
					if i%3 == 0 { // somewhere in memory
						b = make([]byte, 1600)[1+rnd.IntN(99):]
					}
					for k := range b {
						b[k] = byte(rnd.Uint32())
					}
					unit := part
					if i == n-1 {
						unit = 1
						b = fill(b, roundUp(all+int64(len(b)), whole)-all)
					}
					b = fill(b, roundUp(int64(len(b)), unit))
					copy(want[off+all:], b)
					all += int64(len(b))
					parts = append(parts, b)
				}
				if err := f.writeParts(parts, off); err != nil {
					t.Fatal(err)
				}
				off += all
			}
			if err := f.sync(); err != nil {
				t.Fatal(err)
			}
			if f.past != nil && test.name == "refused" {
				t.Error("nothing was refused: this proves less than it should")
			}
			got := make([]byte, size)
			if err := readFull(f, got, 0); err != nil || !bytes.Equal(got[:off], want[:off]) {
				t.Errorf("read %v, and the same: %t", err, bytes.Equal(got[:off], want[:off]))
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			if b, err := os.ReadFile(name); err != nil || !bytes.Equal(b[:off], want[:off]) {
				t.Errorf("the file has something else, %v", err)
			}
		})
	}
}

// TestPlace lays groups out: where the parts begin, and what happens at the end of a
// segment.
func TestPlace(t *testing.T) {
	sizes := func(ns ...int) (list []*content) {
		for _, n := range ns {
			list = append(list, &content{rec: make([]byte, n)})
		}
		return list
	}
	for _, test := range []struct {
		name        string
		part, whole int64
		used, limit int64
		list        []*content
		entry       int
		offs        []int64 // of the list, and of the entry
		to          int64
		fits        bool
	}{
		{"an entry alone", 8, 8, 16, 1024, nil, 60, []int64{16}, 80, true},
		{"buffered", 8, 8, 0, 1024, sizes(41, 48), 60, []int64{0, 48, 96}, 160, true},
		{"direct", 512, 4096, 4096, 16384, sizes(41, 513), 60, []int64{4096, 4608, 5632}, 8192, true},
		{"large sectors", 4096, 4096, 0, 16384, sizes(41, 41), 60, []int64{0, 4096, 8192}, 12288, true},
		{"to the last octet", 8, 8, 0, 160, sizes(41, 48), 64, []int64{0, 48, 96}, 160, true},
		{"one too many", 8, 8, 0, 160, sizes(41, 48), 65, nil, 0, false},
		{"rounded up one too many", 512, 4096, 4096, 8191, sizes(41), 60, nil, 0, false},
	} {
		f := unitFile{part: test.part, whole: test.whole}
		var p placed
		fits := p.fit(&segment{f: f, used: test.used}, test.list, test.entry, test.limit)
		if fits != test.fits {
			t.Errorf("%s: fits: %t, want %t", test.name, fits, test.fits)
		}
		if !fits || !test.fits {
			continue
		}
		var offs []int64
		for _, ct := range test.list {
			offs = append(offs, ct.off)
		}
		if offs = append(offs, p.entry); !slices.Equal(offs, test.offs) || p.from != test.used || p.to != test.to {
			t.Errorf("%s: %v to %d, want %v to %d", test.name, offs, p.to, test.offs, test.to)
		}
	}
}

// unitFile is a file of which only the units matter.
type unitFile struct {
	file
	part, whole int64
}

func (f unitFile) units() (part, whole int64) { return f.part, f.whole }

// together has several calls be one group: the committer waits until all of them do.
// Before their commit it calls then.
func (h *harness) together(t *testing.T, then func(), calls ...func()) {
	t.Helper()
	under, ahead := make(chan struct{}), make(chan struct{})
	commits := 0
	h.Queue.opts.tune.beforeCommit = func() error {
		switch commits++; commits {
		case 1:
			close(under)
			<-ahead
		case 2:
			then()
		}
		return nil
	}
	var calling sync.WaitGroup
	calling.Go(func() { h.put(t, "the one before", "a@before.example") })
	<-under
	for _, call := range calls {
		calling.Go(call)
	}
	for waiting := 0; waiting < len(calls); time.Sleep(time.Millisecond) {
		h.com.mu.Lock()
		waiting = len(h.com.waiting)
		h.com.mu.Unlock()
	}
	close(ahead)
	calling.Wait()
}

// TestFullDiskMeetsGroup has a disk fill up under a group of messages and
// settlements: who hands mail over is told so, and what became of the mail that was
// there is written down all the same, at once and for the next start.
func TestFullDiskMeetsGroup(t *testing.T) {
	for _, test := range []struct {
		name string
		full func(h *harness, f *faulty)
	}{
		{"a write meets it", func(_ *harness, f *faulty) { f.set(func(f *faulty) { f.writeErr = syscall.ENOSPC }) }},
		{"no segment can be made", func(h *harness, _ *faulty) {
			h.contents.mu.Lock()
			h.contents.seal()
			for _, s := range h.contents.spares {
				if err := s.f.Close(); err != nil {
					t.Error(err)
				}
			}
			h.contents.spares, h.contents.spend = nil, func(int64) bool { return false }
			h.contents.mu.Unlock()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := &faulty{free: 100 << 30}
			h := openUnsaved(t, func(o *Options) { o.tune.fs = f })
			h.contents.makers.Wait()
			h.put(t, "there", "a@example.com")
			l := h.claim(t)
			refused := make([]error, 3)
			d := draft(t, "b@example.com")
			calls := []func(){func() { h.settle(t, l, mail.Deferred, time.Now().Add(time.Hour)) }}
			for i := range refused {
				d := d
				d.ID = ""
				calls = append(calls, func() { refused[i] = h.Put(t.Context(), d, []byte("new")) })
			}
			h.together(t, func() { test.full(h, f) }, calls...)
			for _, err := range refused {
				wantReply(t, "Put", err, "4.3.1", "backpressure")
			}
			if len(h.direct) == 0 {
				t.Error("no entry is in the database: the group was not what it was to be")
			}
			want := h.looks(t)
			if n := len(want); n == 0 {
				t.Fatal("nothing is left")
			}
			if d := cmp.Diff(want, h.openCopy(t, h.killed(t)).looks(t)); d != "" {
				t.Errorf("after the kill (-want +got):\n%s", d)
			}
			f.set(func(f *faulty) { f.writeErr = nil })
			h.contents.mu.Lock()
			h.contents.spend = h.guard.spend
			for _, s := range h.contents.segs {
				if s.pending != 0 {
					t.Errorf("segment %d waits for %d that were refused", s.seq, s.pending)
				}
			}
			h.contents.mu.Unlock()
			h.guard.check()
			h.put(t, "later", "c@example.com")
		})
	}
}

// TestGroupsOfContents has many contents of all sizes come at once, in a file system
// with direct writes and in one without, and reads them again, also after a kill.
func TestGroupsOfContents(t *testing.T) {
	for _, test := range []struct {
		name   string
		noSync bool // which writes through the page cache
	}{{"direct, if the file system can", false}, {"buffered", true}} {
		t.Run(test.name, func(t *testing.T) {
			h := openUnsaved(t, func(o *Options) { o.NoSync = test.noSync })
			texts := map[mail.QueueID]string{}
			var mu sync.Mutex
			var putting sync.WaitGroup
			for i := range 16 {
				putting.Go(func() {
					rnd := rand.New(rand.NewPCG(3, uint64(i)))
					for k := range 12 {
						n := []int{0, 1, 471, 472, 473, 4055, 4056, 4057, 10_000, 16384, 65_536, smallContent, smallContent + 1}[rnd.IntN(13)]
						text := bytes.Repeat(fmt.Appendf(nil, "%d.%d ", i, k), n/4+1)[:n]
						id := h.put(t, string(text), "a@example.com")
						mu.Lock()
						texts[id] = string(text)
						mu.Unlock()
					}
				})
			}
			putting.Wait()
			for _, q := range []*harness{h.openCopy(t, h.killed(t)), h} {
				for range texts {
					l := q.claim(t)
					if got := read(t, l.Open); got != texts[l.Message.ID] {
						t.Errorf("%s has %d octets, and had %d", l.Message.ID, len(got), len(texts[l.Message.ID]))
					}
					q.settle(t, l, mail.Relayed, time.Time{})
				}
			}
		})
	}
}

// TestStreak has segments read in several ways, and asks what is wanted ahead.
func TestStreak(t *testing.T) {
	const step = 10 << 10
	ahead := func(seqs func(i int) uint64, offs func(i int) int64) (asked, twice int64) {
		var k streak
		var upto int64
		for i := range 1000 {
			from, n := k.next(seqs(i), offs(i))
			if n > 0 && from < upto {
				twice += upto - from
			}
			if n > 0 {
				upto = from + n
			}
			asked += n
		}
		return asked, twice
	}
	one := func(int) uint64 { return 7 }
	for _, test := range []struct {
		name        string
		seqs        func(i int) uint64
		offs        func(i int) int64
		least, most int64
	}{
		{"one after the other", one, func(i int) int64 { return int64(i) * step }, 1000 * step, 1000*step + 2*streakAhead},
		{"several at a time", one, func(i int) int64 { return int64(i^7) * step }, 1000 * step, 1000*step + 2*streakAhead},
		{"anywhere", one, func(i int) int64 { return int64(i*7919%6000) * step }, 0, 0},
		{"in two segments by turns", func(i int) uint64 { return uint64(i % 2) }, func(i int) int64 { return int64(i) * step }, 0, 0},
		{"the same again and again", one, func(int) int64 { return step }, streakAhead, streakAhead},
	} {
		if asked, twice := ahead(test.seqs, test.offs); asked < test.least || asked > test.most || twice > 0 {
			t.Errorf("%s: asked for %d octets, %d of them twice, want %d to %d", test.name, asked, twice, test.least, test.most)
		}
	}
}

// TestBehind goes on after short writes.
func TestBehind(t *testing.T) {
	parts := [][]byte{make([]byte, 3), {}, make([]byte, 5)}
	for n, want := range map[int][2]int{0: {3, 0}, 2: {3, 2}, 3: {1, 0}, 4: {1, 1}, 7: {1, 4}, 8: {0, 0}} {
		if rest, done := behind(parts, n); len(rest) != want[0] || done != want[1] {
			t.Errorf("after %d octets: %d parts, %d of the first done, want %v", n, len(rest), done, want)
		}
	}
	if len(parts[0]) != 3 || len(parts[2]) != 5 {
		t.Error("the parts have changed")
	}
}
