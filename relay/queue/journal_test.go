package queue

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"waybill/relay/badgerdir"
	"waybill/relay/event"
	"waybill/relay/mail"

	"github.com/dgraph-io/badger/v4"
	"github.com/google/go-cmp/cmp"
)

// killed returns a copy of the directory of h, as a kill leaves it now.
func (h *harness) killed(t testing.TB) (dir string) {
	t.Helper()
	dir = t.TempDir()
	h.saving.Lock() // what is copied is of one moment
	defer h.saving.Unlock()
	copyTree(t, h.dir, dir)
	return dir
}

// openCopy opens a copy of the directory of h, with its options.
func (h *harness) openCopy(t testing.TB, dir string) *harness {
	t.Helper()
	opts := h.opts()
	return open(t, func(o *Options) {
		o.Dir, o.Router, o.KeepRelayed, o.NoSync, o.Latest = dir, opts.Router, opts.KeepRelayed, opts.NoSync, opts.Latest
		o.tune.segment, o.tune.save = opts.tune.segment, opts.tune.save
	})
}

// openUnsaved opens a queue whose database learns of nothing unless it is asked to.
func openUnsaved(t testing.TB, change func(*Options)) *harness {
	t.Helper()
	return open(t, func(o *Options) {
		o.tune.save = time.Hour
		o.Confirm = unconfirmed() // every fact is told again
		if change != nil {
			change(o)
		}
	})
}

func unconfirmed() *confirmer {
	c := &confirmer{}
	c.set(true, errors.New("nothing is stored"))
	return c
}

// looks is what h has: of each message its recipients' states and its content, what
// is kept, and the holds.
func (h *harness) looks(t testing.TB) map[string]string {
	t.Helper()
	all := map[string]string{}
	list, err := h.List(t.Context(), Filter{}, "", 100_000)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := h.Kept(t.Context(), Filter{}, "", 100_000)
	if err != nil {
		t.Fatal(err)
	}
	for what, ms := range map[string][]*Message{"": list, "kept ": kept} {
		for _, m := range ms {
			text := fmt.Sprintf("%q %q", m.HeldBy, m.Poison)
			for i := range m.States {
				s := &m.States[i]
				text += fmt.Sprintf(" | %s %s %d %v %s", m.Envelope.Recipients[i].Address, s.Disposition, s.Attempts, s.Last, s.Hop)
			}
			if m.Poison == "" {
				text += " | " + read(t, h.contentOf(m.ID))
			}
			all[what+string(m.ID)] = text
		}
	}
	for _, hold := range h.Holds() {
		all["hold "+hold.Filter.String()] = hold.Why
	}
	return all
}

// told are the IDs of the durable facts of r, in order.
func told(r *recorder) (ids []string) {
	for _, rec := range r.all() {
		if rec.Kept {
			ids = append(ids, rec.ID+" "+event.Name(rec.Event)+" "+string(rec.Message))
		}
	}
	return ids
}

// found is an entry in the files of a queue.
type foundEntry struct {
	name   string // of its file
	off    int64
	size   int64 // with its header
	number uint64
}

// entriesIn finds the entries above after in the files of dir, in their order.
func entriesIn(t testing.TB, dir string, s secret, after uint64) (list []foundEntry) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "segments", "*"+segmentSuffix))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at+entryHeader <= len(b); at += contentAlign {
			if e, n, _, ok := openEntry(b[at:at+entryHeader], s); ok && e.number > after {
				list = append(list, foundEntry{name, int64(at), entryHeader + n, e.number})
			}
		}
	}
	slices.SortFunc(list, func(a, b foundEntry) int { return int(a.number) - int(b.number) })
	return list
}

// overwrite writes b into a file.
func overwrite(t testing.TB, name string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(b, off)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// flipIn changes a bit in the middle of an entry.
func flipIn(t testing.TB, e foundEntry) {
	t.Helper()
	b, err := os.ReadFile(e.name)
	if err != nil {
		t.Fatal(err)
	}
	at := e.off + e.size/2
	overwrite(t, e.name, at, []byte{b[at] ^ 0x10})
}

// wantRefused has an Open of dir refused, with what to do.
func wantRefused(t testing.TB, dir, why string) {
	t.Helper()
	q, err := Open(Options{Dir: dir, Router: &domains{}, DiskFreeMin: 1 << 20, tune: tuning{fs: roomy{}}})
	if err == nil {
		_ = q.Close()
	}
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "waybill queue rescue --data-dir") {
		t.Errorf("Open = %v, want ErrCorrupt, %q, and what to do", err, why)
	}
}

func newSecret() (s secret) {
	_, _ = rand.Read(s[:])
	return s
}

// makeEntry makes a whole entry that sets one key.
func makeEntry(s secret, number uint64, key, value string) []byte {
	b := appendSet(appendEntry(nil), key, []byte(value))
	sealEntry(b, s, number, number+100)
	return b
}

func TestEntry(t *testing.T) {
	type op struct {
		key, value string
		deleted    bool
	}
	want := []op{{"m/1", "one", false}, {"m/2", "", true}, {"m/3", "", false}, {"", strings.Repeat("x", 300), false}, {"m/1", "", true}}
	b := appendEntry(nil)
	for _, o := range want {
		if o.deleted {
			b = appendDelete(b, []byte(o.key))
		} else {
			b = appendSet(b, o.key, []byte(o.value))
		}
	}
	s := newSecret()
	sealEntry(b, s, 7, 9)
	e, err := readEntry(bytes.NewReader(b), int64(len(b)), 0, s, 6)
	if err != nil || e.number != 7 || e.segment != 9 {
		t.Fatalf("readEntry() = %+v, %v, want number 7, segment 9", e, err)
	}
	var got []op
	if err := operations(e.body, func(key, value []byte) { got = append(got, op{string(key), string(value), value == nil}) }); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(op{})); d != "" {
		t.Errorf("operations (-want +got):\n%s", d)
	}
	for at := range b { // no bit of it can change
		hurt := bytes.Clone(b)
		hurt[at] ^= 1
		if e, err := readEntry(bytes.NewReader(hurt), int64(len(hurt)), 0, s, 6); err != nil || e.body != nil {
			t.Fatalf("with octet %d changed: readEntry() = %+v, %v, want nothing", at, e, err)
		}
		if e, err := readEntry(bytes.NewReader(b[:at]), int64(at), 0, s, 6); err != nil || e.body != nil {
			t.Fatalf("cut to %d octets: readEntry() = %+v, %v, want nothing", at, e, err)
		}
	}
	if e, _ := readEntry(bytes.NewReader(b), int64(len(b)), 0, newSecret(), 6); e.body != nil {
		t.Error("readEntry() with another secret found something")
	}
	if e, _ := readEntry(bytes.NewReader(b), int64(len(b)), 0, s, 7); e.body != nil {
		t.Error("readEntry() found an entry that is known")
	}
}

// TestFindEntries puts entries at every place around where what is read at once
// ends: each is found once.
func TestFindEntries(t *testing.T) {
	const window = 1 << 20
	s := newSecret()
	for shift := int64(-80); shift <= 24; shift += contentAlign {
		file := make([]byte, 2*window+5000)
		copy(file[64:], makeEntry(s, 2, "k", "known already"))
		copy(file[1024:], makeEntry(newSecret(), 3, "k", "of another secret"))
		copy(file[2048+4:], makeEntry(s, 4, "k", "where no entry begins"))
		copy(file[4096:], makeEntry(s, 5, "k", "first"))
		copy(file[window+shift:], makeEntry(s, 6, "k", "at the end of a window"))
		copy(file[2*window+shift:], makeEntry(s, 7, "k", strings.Repeat("x", 3000)))
		var got []uint64
		err := findEntries(bytes.NewReader(file), int64(len(file)), s, 2, func(e logged) { got = append(got, e.number) })
		if want := []uint64{5, 6, 7}; err != nil || !slices.Equal(got, want) {
			t.Errorf("shifted by %d: found %v, %v, want %v", shift, got, err, want)
		}
	}
}

func FuzzOperations(f *testing.F) {
	f.Add(appendDelete(appendSet(nil, "m/1", []byte("value")), []byte("m/2")))
	f.Add([]byte{opSet, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{opDelete, 3, 'a'})
	f.Add([]byte{9})
	f.Fuzz(func(t *testing.T, body []byte) {
		var again []byte
		err := operations(body, func(key, value []byte) {
			if value == nil {
				again = appendDelete(again, key)
			} else {
				again = appendSet(again, string(key), value)
			}
		})
		if err != nil && !errors.Is(err, errJournal) {
			t.Errorf("operations() = %v, want %v", err, errJournal)
		}
		if err != nil {
			return
		}
		if len(again) > len(body) {
			t.Errorf("%d octets written again are %d", len(body), len(again))
		}
		if err := operations(again, func(_, _ []byte) {}); err != nil {
			t.Errorf("written again: %v", err)
		}
	})
}

// FuzzFindEntries hides an entry among hostile octets: it is found unless they are
// written over it, and nothing else is.
func FuzzFindEntries(f *testing.F) {
	var s secret
	copy(s[:], "0123456789abcdef")
	entry := makeEntry(s, 3, "m/1", "value")
	forged := makeEntry(secret{1}, 4, "m/1", "forged")
	f.Add(forged, uint16(0), []byte{})
	f.Add(entry[:entryHeader], uint16(200), forged)
	f.Add([]byte("WBj1"), uint16(8), entry[8:24])
	f.Fuzz(func(t *testing.T, before []byte, gap uint16, behind []byte) {
		at := (len(before) + int(gap) + contentAlign - 1) &^ (contentAlign - 1)
		file := make([]byte, at+len(entry))
		copy(file, before)
		copy(file[at:], entry)
		file = append(file, behind...)
		var got []int
		err := findEntries(bytes.NewReader(file), int64(len(file)), s, 2, func(e logged) {
			if e.number != 3 || !bytes.Equal(e.body, entry[entryHeader:]) {
				t.Errorf("found %+v", e)
			}
			got = append(got, int(e.number))
		})
		copies := bytes.Count(file, entry) // the fuzzer may know the secret
		if err != nil || len(got) < 1 || len(got) > copies {
			t.Errorf("found %v, %v, want the entry", got, err)
		}
	})
}

// busy fills h with all kinds of changes, some of which are saved meanwhile.
func (h *harness) busy(t *testing.T, save func(step int)) {
	t.Helper()
	for i := range 12 {
		h.put(t, strings.Repeat(fmt.Sprint("content ", i), 1+i*50), fmt.Sprintf("a@d%d.example", i%4), fmt.Sprintf("b@e%d.example", i%3))
	}
	save(0)
	h.put(t, strings.Repeat("large", smallContent/4), "a@large.example")
	h.act(t, 1, Action{Action: "hold", Filter: Filter{Hop: "large.example"}, Reason: "whole hop"})
	h.act(t, 0, Action{Action: "hold", Filter: Filter{Sender: "@nobody.example"}, Reason: "ended soon"})
	save(1)
	for i := range 14 {
		l := h.claim(t)
		switch i % 4 {
		case 0:
			h.settle(t, l, mail.Relayed, time.Time{})
		case 1:
			h.settle(t, l, mail.Deferred, time.Now().Add(time.Hour))
		case 2:
			s := Settlement{Outcomes: outcomes(l, mail.Bounced), Reports: []Report{{
				Draft: draft(t, "sender@report.example"), Content: fmt.Appendf(nil, "report %d", i), Fact: event.DSNQueued{Kind: "failed"},
			}}}
			if err := h.Settle(t.Context(), l, s); err != nil {
				t.Fatal(err)
			}
		default:
			l.Release()
		}
		if i == 7 {
			save(2)
		}
	}
	id := h.put(t, "kept back", "a@held.example")
	h.act(t, 1, Action{Action: "hold", Filter: Filter{ID: id}})
	h.act(t, 0, Action{Action: "release", Filter: Filter{Sender: "@nobody.example"}})
	save(3)
	h.act(t, 1, Action{Action: "remove", Filter: Filter{ID: h.put(t, "removed", "a@removed.example")}})
	h.act(t, 1, Action{Action: "remove", Filter: Filter{Hop: "large.example"}})
	h.act(t, 0, Action{Action: "hold", Filter: Filter{Hop: "none.example"}, Reason: "late"})
	d := draft(t, "again@example.com") // comes twice under its ID
	for _, content := range []string{"first", "second"} {
		if err := h.Put(t.Context(), d, []byte(content)); err != nil {
			t.Fatal(err)
		}
		if content == "first" {
			h.act(t, 1, Action{Action: "remove", Filter: Filter{ID: d.ID}})
			save(4)
		}
	}
}

// TestReplay kills queues whose database knows more or less of what happened: a
// start finds all of it, and tells all facts again.
func TestReplay(t *testing.T) {
	for _, test := range []struct {
		name string
		save func(h *harness, step int) error
	}{
		{"nothing saved", func(*harness, int) error { return nil }},
		{"older changes saved", func(h *harness, _ int) error { return h.saveOnce(false) }},
		{"all saved at times", func(h *harness, step int) error {
			if step == 2 {
				return h.saveAll()
			}
			return nil
		}},
		{"one or the other", func(h *harness, step int) error { return h.saveOnce(step%2 == 0) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := openUnsaved(t, func(o *Options) { o.KeepRelayed = time.Hour })
			h.busy(t, func(step int) {
				if err := test.save(h, step); err != nil {
					t.Fatal(err)
				}
			})
			want := h.looks(t)
			dir := h.killed(t)
			if err := h.Close(); err != nil { // then everything is published
				t.Fatal(err)
			}
			facts := told(h.rec)
			again := h.openCopy(t, dir)
			if d := cmp.Diff(want, again.looks(t)); d != "" {
				t.Errorf("after the kill (-want +got):\n%s", d)
			}
			if got := told(again.rec); !slices.Equal(got, facts) {
				t.Errorf("facts told again:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(facts, "\n"))
			}
			second := again.openCopy(t, again.killed(t)) // nothing has changed
			if d := cmp.Diff(want, second.looks(t)); d != "" {
				t.Errorf("after the second kill (-want +got):\n%s", d)
			}
		})
	}
}

// TestDamagedJournal damages the journal of a killed queue.
func TestDamagedJournal(t *testing.T) {
	h := openUnsaved(t, nil)
	for i := range 10 {
		h.put(t, fmt.Sprint("content ", i), "a@example.com")
	}
	eventually(t, "the witness has seen all", func() bool {
		_, n := readWitness(filepath.Join(h.dir, witnessName))
		return n == 10
	})
	all := h.looks(t)
	sound := h.killed(t)
	noWitness := func(t *testing.T, dir string) {
		t.Helper()
		if err := os.Truncate(filepath.Join(dir, witnessName), witnessSize); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name    string
		hurt    func(t *testing.T, dir string, es []foundEntry)
		refused string
		want    int // messages, when it is not refused
	}{
		{"sound", func(*testing.T, string, []foundEntry) {}, "", 10},
		{"sound, without a witness", func(t *testing.T, dir string, _ []foundEntry) { noWitness(t, dir) }, "", 10},
		{"the first", func(t *testing.T, _ string, es []foundEntry) { flipIn(t, es[0]) }, "the journal has entry 2 and not 1 before it", 0},
		{"one in the middle", func(t *testing.T, _ string, es []foundEntry) { flipIn(t, es[4]) }, "the journal has entry 6 and not 5 before it", 0},
		{"one in the middle, without a witness", func(t *testing.T, dir string, es []foundEntry) {
			flipIn(t, es[4])
			noWitness(t, dir)
		}, "the journal has entry 6 and not 5 before it", 0},
		{"the last", func(t *testing.T, _ string, es []foundEntry) { flipIn(t, es[9]) }, "the journal ends with entry 9, and 10 were committed", 0},
		{"the last, after a power cut", func(t *testing.T, dir string, es []foundEntry) {
			flipIn(t, es[9])
			noWitness(t, dir)
		}, "", 9},
		{"cut", func(t *testing.T, _ string, es []foundEntry) {
			if err := os.Truncate(es[7].name, es[7].off+20); err != nil {
				t.Fatal(err)
			}
		}, "the journal ends with entry 7, and 10 were committed", 0},
		{"its file is missing", func(t *testing.T, _ string, es []foundEntry) {
			if err := os.Remove(es[0].name); err != nil {
				t.Fatal(err)
			}
		}, "the journal ends with entry 0, and 10 were committed", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			copyTree(t, sound, dir)
			es := entriesIn(t, dir, h.secret, 0)
			if len(es) != 10 {
				t.Fatalf("%d entries, want 10", len(es))
			}
			test.hurt(t, dir, es)
			if test.refused != "" {
				wantRefused(t, dir, test.refused)
				return
			}
			got := h.openCopy(t, dir).looks(t)
			if len(got) != test.want {
				t.Errorf("%d messages, want %d", len(got), test.want)
			}
			for id, text := range got {
				if all[id] != text {
					t.Errorf("%s is %q, want %q", id, text, all[id])
				}
			}
		})
	}
}

// TestPowerCut has the power fail during the last sync: of what it was to bring
// onto the disk, any part is there. What was acknowledged before is whole, and the
// last commit is there as a whole or not at all.
func TestPowerCut(t *testing.T) {
	seed := mathrand.Uint64()
	t.Logf("seed %d", seed)
	rnd := mathrand.New(mathrand.NewPCG(seed, 0))
	h := openUnsaved(t, func(o *Options) { o.tune.segment = 8 << 20 })
	for i := range 20 {
		h.put(t, strings.Repeat(fmt.Sprint("content ", i), 1+i*200), fmt.Sprintf("a@d%d.example", i%3))
	}
	for range 5 {
		h.settle(t, h.claim(t), mail.Relayed, time.Time{})
	}
	move := h.put(t, strings.Repeat("moved", 2000), "a@moved.example")
	steps := []struct {
		name string
		do   func(t *testing.T)
	}{
		{"a message", func(t *testing.T) { h.put(t, strings.Repeat("new", 10_000), "a@new.example") }},
		{"an envelope", func(t *testing.T) {
			var many []string
			for i := range 600 {
				many = append(many, fmt.Sprintf("a%d@many.example", i))
			}
			h.put(t, "small", many...)
		}},
		{"a report", func(t *testing.T) {
			l := h.claim(t)
			s := Settlement{Outcomes: outcomes(l, mail.Bounced), Reports: []Report{{
				Draft: draft(t, "sender@report.example"), Content: bytes.Repeat([]byte("report"), 5000), Fact: event.DSNQueued{Kind: "failed"},
			}}}
			if err := h.Settle(t.Context(), l, s); err != nil {
				t.Fatal(err)
			}
		}},
		{"a content that is copied forward", func(t *testing.T) {
			id, _ := parseIdent(move)
			m, err := h.read(id)
			if err == nil {
				err = h.moveContent(id, h.contents.find(m.loc.seq))
			}
			if err != nil {
				t.Fatal(err)
			}
		}},
	}
	torn, whole := 0, 0
	for _, step := range steps {
		before, was := h.looks(t), h.killed(t)
		number := h.journal
		step.do(t)
		after, is := h.looks(t), h.killed(t)
		es := entriesIn(t, is, h.secret, number-1)
		if len(es) != 1 {
			t.Fatalf("%s: %d entries, want one commit", step.name, len(es))
		}
		name := filepath.Base(es[0].name)
		oldFile, err := os.ReadFile(filepath.Join(was, "segments", name))
		if err != nil {
			t.Fatal(err)
		}
		newFile, err := os.ReadFile(es[0].name)
		if err != nil {
			t.Fatal(err)
		}
		const page = 4096
		var changed []int
		for at := 0; at < len(newFile); at += page {
			if !bytes.Equal(oldFile[at:at+page], newFile[at:at+page]) {
				changed = append(changed, at)
			}
		}
		if len(changed) < 2 {
			t.Fatalf("%s: %d pages have changed: this proves less than it should", step.name, len(changed))
		}
		for try := range 8 {
			dir := t.TempDir()
			copyTree(t, is, dir)
			file := bytes.Clone(newFile)
			lost := 0
			for i, at := range changed {
				// All of them, all but the first, all but the last, and others at random.
				if try == 0 || try == 1 && i == 0 || try == 2 && i == len(changed)-1 || try > 2 && rnd.IntN(3) == 0 {
					copy(file[at:at+page], oldFile[at:at+page])
					lost++
				}
			}
			overwrite(t, filepath.Join(dir, "segments", name), 0, file)
			w, err := openWitness(filepath.Join(dir, witnessName))
			if err != nil {
				t.Fatal(err)
			}
			w.entry(number - 1) // that of the last commit comes after its sync
			if err := w.close(); err != nil {
				t.Fatal(err)
			}
			again := h.openCopy(t, dir)
			got := again.looks(t)
			switch {
			case lost == 0 && cmp.Equal(got, after):
				whole++
			case cmp.Equal(got, after): // pages that were not needed
				whole++
			case cmp.Equal(got, before):
				torn++
			default:
				t.Errorf("%s, %d of %d pages lost: neither as before nor as after:\n%s", step.name, lost, len(changed), cmp.Diff(after, got))
			}
			if err := again.Close(); err != nil { // what is refused never comes back
				t.Fatal(err)
			}
			if later := h.openCopy(t, dir).looks(t); !cmp.Equal(got, later) {
				t.Errorf("%s: at the next start:\n%s", step.name, cmp.Diff(got, later))
			}
		}
	}
	if torn < len(steps)*2 {
		t.Errorf("%d were torn, and %d whole: this proves less than it should", torn, whole)
	}
}

// fill leaves no segment with room, and lets none be made.
func (h *harness) fill(full bool) {
	h.contents.makers.Wait()
	h.contents.mu.Lock()
	defer h.contents.mu.Unlock()
	h.contents.spend = h.guard.spend
	if full {
		h.contents.seal()
		for _, s := range h.contents.spares {
			_ = s.f.Close() // nothing is in it
		}
		h.contents.spares = nil
		h.contents.spend = func(int64) bool { return false }
	}
}

// TestNoRoomForEntries commits to the database what finds no room in a segment.
func TestNoRoomForEntries(t *testing.T) {
	h := openUnsaved(t, nil)
	for i := range 9 {
		h.put(t, fmt.Sprint("content ", i), fmt.Sprintf("a@d%d.example", i))
	}
	h.fill(true)
	for range 5 {
		h.settle(t, h.claim(t), mail.Relayed, time.Time{})
	}
	h.act(t, 1, Action{Action: "hold", Filter: Filter{Hop: "d7.example"}})
	if n := len(h.direct); n < 6 {
		t.Fatalf("%d entries are in the database, want at least 6", n)
	}
	h.fill(false)
	h.put(t, "later", "a@later.example") // an entry behind them
	want := h.looks(t)
	directly := func(h *harness) (n int) {
		t.Helper()
		err := h.db.View(func(txn *badger.Txn) error {
			list, err := directEntries(txn)
			n = len(list)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	again := h.openCopy(t, h.killed(t))
	if d := cmp.Diff(want, again.looks(t)); d != "" {
		t.Errorf("after the kill (-want +got):\n%s", d)
	}
	if n := directly(again); n != 0 {
		t.Errorf("%d entries are in the database after a start, want none", n)
	}
	// A save that ends anywhere leaves what a start needs.
	h.batchKeys = 2
	saves := 0
	for budget := int64(0); ; budget += 2 * perKey {
		if err := h.room.shutTables(true); err != nil {
			t.Fatal(err)
		}
		h.saving.Lock()
		h.room.used = logMost - budget
		h.saving.Unlock()
		err := h.saveAll()
		if rerr := h.room.shutTables(false); rerr != nil {
			t.Fatal(rerr)
		}
		if err != nil && !errors.Is(err, errLogFull) {
			t.Fatal(err)
		}
		if saves++; saves%4 == 1 || err == nil {
			again := h.openCopy(t, h.killed(t))
			if d := cmp.Diff(want, again.looks(t)); d != "" {
				t.Fatalf("after a save that could write %d octets, %v (-want +got):\n%s", budget, err, d)
			}
			if err := again.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err == nil {
			break
		}
	}
	if saves < 4 {
		t.Errorf("%d saves: this proves less than it should", saves)
	}
	if n := directly(h); n != 0 {
		t.Errorf("%d entries are in the database after a save, want none", n)
	}
}

// TestFullDiskMeetsEntry has the disk fill up between a content and its entry, on
// a file system that gives no blocks in advance.
func TestFullDiskMeetsEntry(t *testing.T) {
	f := &faulty{free: 100 << 30}
	h := openUnsaved(t, func(o *Options) { o.tune.fs = f })
	h.put(t, "x", "a@example.com")
	l := h.claim(t)
	f.set(func(f *faulty) { f.writeErr = syscall.ENOSPC })
	h.settle(t, l, mail.Deferred, time.Now().Add(time.Hour))
	f.set(func(f *faulty) { f.writeErr = nil })
	h.put(t, "y", "b@example.com")
	if len(h.direct) != 1 {
		t.Errorf("%d entries are in the database, want one", len(h.direct))
	}
	if d := cmp.Diff(h.looks(t), h.openCopy(t, h.killed(t)).looks(t)); d != "" {
		t.Errorf("after the kill (-want +got):\n%s", d)
	}
}

// TestSegmentsWithEntries uses segments again that have entries of the journal: not
// before the database knows them, and then they mean nothing any more.
func TestSegmentsWithEntries(t *testing.T) {
	h := openUnsaved(t, func(o *Options) { o.tune.segment = 1 << 20 })
	stays := h.put(t, "stays", "a@stays.example")
	h.act(t, 1, Action{Action: "hold", Filter: Filter{ID: stays}})
	again := 0
	for round := range 5 {
		for i := range 50 {
			h.put(t, strings.Repeat(fmt.Sprintf("%d.%d ", round, i), 8_000), fmt.Sprintf("a@d%d.example", i%3))
		}
		for range 50 {
			h.settle(t, h.claim(t), mail.Relayed, time.Time{})
		}
		h.contents.makers.Wait()
		if err := h.reclaim(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := h.looks(t)
		if d := cmp.Diff(want, h.openCopy(t, h.killed(t)).looks(t)); d != "" {
			t.Fatalf("round %d, before the save (-want +got):\n%s", round, d)
		}
		if err := h.saveAll(); err != nil {
			t.Fatal(err)
		}
		h.contents.mu.Lock()
		files := len(h.contents.segs)
		h.contents.mu.Unlock()
		if err := h.reclaim(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.contents.mu.Lock()
		again += len(h.contents.spares)
		if len(h.contents.segs) >= files {
			t.Errorf("round %d: %d segments, and %d before the database knew the journal", round, len(h.contents.segs), files)
		}
		h.contents.mu.Unlock()
		dir := h.killed(t)
		if round > 0 && len(entriesIn(t, dir, h.secret, 0)) == len(entriesIn(t, dir, h.secret, h.reached.number)) {
			t.Error("no file has old entries: this proves less than it should")
		}
		if d := cmp.Diff(want, h.openCopy(t, dir).looks(t)); d != "" {
			t.Fatalf("round %d, after the save (-want +got):\n%s", round, d)
		}
	}
	if again == 0 {
		t.Error("no segment was used again: this proves less than it should")
	}
}

// TestEntryOfAFailedSync has a sync fail, the refused entry be there again after
// the next start, and the power fail then: it is no part of the journal.
func TestEntryOfAFailedSync(t *testing.T) {
	f := &faulty{free: 100 << 30}
	h := openUnsaved(t, func(o *Options) { o.tune.fs = f })
	kept := h.put(t, "kept", "a@example.com")
	secret, number := h.secret, h.journal
	f.set(func(f *faulty) { f.syncErr = errors.New("input/output error") })
	wantReply(t, "Put", h.Put(t.Context(), draft(t, "b@example.com"), []byte("refused")), "4.3.0", "storage")
	f.set(func(f *faulty) { f.syncErr = nil })
	dir := h.killed(t)
	if es := entriesIn(t, dir, secret, 0); len(es) != 1 {
		t.Fatalf("%d entries, want that of %s", len(es), kept)
	}
	es := entriesIn(t, dir, secret, 0)
	next := h.openCopy(t, dir)
	next.put(t, "next", "a@example.com") // has the number of the one that was refused
	want := next.looks(t)
	if len(want) != 2 {
		t.Errorf("%d messages, want 2", len(want))
	}
	again := next.killed(t)
	// The old segment was cut behind its last content at the start; the power cut undoes that.
	ghost := makeEntry(secret, number, prefixMessage+"x", "y")
	name := filepath.Join(again, "segments", filepath.Base(es[0].name))
	overwrite(t, name, es[0].off+(es[0].size+7)&^7, ghost)
	if d := cmp.Diff(want, next.openCopy(t, again).looks(t)); d != "" {
		t.Errorf("with the entry that was refused (-want +got):\n%s", d)
	}
}

// TestFormat has a queue say that only a program that knows the journal may open
// it, for as long as the journal may have what the database has not.
func TestFormat(t *testing.T) {
	format := func(t *testing.T, dir string) (n uint64) {
		t.Helper()
		db, err := openBadger(filepath.Join(dir, "badger"), false, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = db.View(func(txn *badger.Txn) (err error) {
			n, err = readNumber(txn, keyFormat)
			return err
		})
		if err = errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
		return n
	}
	h := openUnsaved(t, nil)
	h.put(t, "x", "a@example.com")
	killed := h.killed(t)
	if n := format(t, killed); n != formatJournal {
		t.Errorf("a killed queue has format %d, want %d", n, formatJournal)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if n := format(t, h.dir); n != formatNumber {
		t.Errorf("a closed queue has format %d, want %d", n, formatNumber)
	}
	again := h.openCopy(t, h.dir)
	again.put(t, "y", "b@example.com")
	if n := format(t, again.killed(t)); n != formatJournal {
		t.Errorf("a queue that was opened again has format %d, want %d", n, formatJournal)
	}

	failed, f := openFaulty(t)
	f.set(func(f *faulty) { f.syncErr = errors.New("input/output error") })
	wantReply(t, "Put", failed.Put(t.Context(), draft(t, "b@example.com"), []byte("refused")), "4.3.0", "storage")
	if err := failed.Close(); err != nil {
		t.Fatal(err)
	}
	if n := format(t, failed.dir); n != formatJournal {
		t.Errorf("a queue that failed has format %d, want %d", n, formatJournal)
	}

	h = open(t, nil)
	h.inDatabaseOnly(t, []byte(keyFormat), binary.BigEndian.AppendUint64(nil, formatJournal+1))
	if _, err := Open(Options{Dir: h.killed(t), Router: &domains{}, DiskFreeMin: 1 << 20, tune: tuning{fs: roomy{}}}); err == nil || !strings.Contains(err.Error(), "use a newer program") {
		t.Errorf("Open of a later format = %v, want that a newer program is needed", err)
	}
}

// older makes of a closed queue one of a program without a journal.
func older(t *testing.T, dir string) {
	t.Helper()
	db, err := openBadger(filepath.Join(dir, "badger"), true, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(txn *badger.Txn) error { return txn.Delete([]byte(restingKey(keyJournal))) })
	err = errors.Join(err, db.Close(), os.Truncate(filepath.Join(dir, witnessName), witnessSize))
	if err != nil {
		t.Fatal(err)
	}
}

func TestOlderQueue(t *testing.T) {
	h := openUnsaved(t, func(o *Options) { o.KeepRelayed = time.Hour })
	h.busy(t, func(int) {})
	want := h.looks(t)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	older(t, h.dir)
	saved := filepath.Join(t.TempDir(), "saved")
	got, err := Rescue(t.Context(), RescueOptions{Dir: h.dir, To: saved})
	if err != nil || len(got.Damage) > 0 || got.Messages == 0 {
		t.Errorf("Rescue() = %+v, %v, want all messages", got, err)
	}
	h = h.openCopy(t, h.dir)
	if d := cmp.Diff(want, h.looks(t)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	h.put(t, "new", "a@example.com")
	h = h.openCopy(t, h.killed(t))
	if got := h.looks(t); len(got) != len(want)+1 {
		t.Errorf("%d messages and holds after a kill, want %d", len(got), len(want)+1)
	}
	dir := h.killed(t)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	// A database that has lost its mark is none of an older program.
	copyTree(t, h.dir, dir)
	db, err := openBadger(filepath.Join(dir, "badger"), true, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(txn *badger.Txn) error { return txn.Delete([]byte(restingKey(keyJournal))) })
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, dir, "were committed")
}

// TestRescueJournal saves a killed queue whose database does not know everything.
func TestRescueJournal(t *testing.T) {
	h := openUnsaved(t, nil)
	h.busy(t, func(step int) {
		if step == 1 {
			if err := h.saveOnce(false); err != nil {
				t.Fatal(err)
			}
		}
	})
	h.fill(true) // some entries are in the database
	for range 2 {
		h.settle(t, h.claim(t), mail.Deferred, time.Now().Add(time.Hour))
	}
	h.fill(false)
	last := h.put(t, "last", "a@last.example")
	want := h.looks(t)
	eventually(t, "the witness has seen all", func() bool {
		_, n := readWitness(filepath.Join(h.dir, witnessName))
		return n == h.journal-1
	})
	for _, test := range []struct {
		name   string
		hurt   func(t *testing.T, dir string, es []foundEntry)
		damage string
		lost   mail.QueueID // its envelope
	}{
		{"sound", func(*testing.T, string, []foundEntry) {}, "", ""},
		{"an entry in the middle", func(t *testing.T, _ string, es []foundEntry) { flipIn(t, es[len(es)/2]) }, "before it", "any"},
		{"the last entry", func(t *testing.T, _ string, es []foundEntry) { flipIn(t, es[len(es)-1]) }, "were committed", last},
		{"a stale entry of a file that is no part of it", func(t *testing.T, dir string, _ []foundEntry) {
			b := make([]byte, 4096)
			copy(b, makeEntry(h.secret, h.journal+1, prefixMessage+string(last), "stale"))
			if err := os.WriteFile(filepath.Join(dir, "segments", "0000000000000000.seg"), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, to := h.killed(t), filepath.Join(t.TempDir(), "saved")
			test.hurt(t, dir, entriesIn(t, dir, h.secret, h.reached.number))
			got, err := Rescue(t.Context(), RescueOptions{Dir: dir, To: to, Queue: true})
			if err != nil {
				t.Fatal(err)
			}
			if damage := strings.Join(got.Damage, "; "); (damage == "") != (test.damage == "") || !strings.Contains(damage, test.damage) {
				t.Errorf("damage %q, want %q", damage, test.damage)
			}
			again := h.openCopy(t, got.Queue)
			looks := again.looks(t)
			switch test.lost {
			case "":
				if d := cmp.Diff(want, looks); d != "" {
					t.Errorf("the new queue (-want +got):\n%s", d)
				}
				if facts, wanted := told(again.rec), told(h.rec); !slices.Equal(facts, wanted) {
					t.Errorf("%d facts in the new queue, want %d", len(facts), len(wanted))
				}
			case "any":
				if looks[string(last)] != want[string(last)] || len(looks) < len(want)-2 {
					t.Errorf("%d messages and holds are in the new queue, want all but what one entry said of %d", len(looks), len(want))
				}
			default:
				if _, ok := looks[string(test.lost)]; ok || len(looks) != len(want)-1 || got.Orphans == 0 {
					t.Errorf("%d messages and holds, and %d orphans, want %d: all but %s", len(looks), got.Orphans, len(want)-1, test.lost)
				}
			}
		})
	}
}

// TestRescueOfRelayed saves a queue with a damaged database that never heard of the
// mail that was relayed: its contents are no orphans.
func TestRescueOfRelayed(t *testing.T) {
	h := openUnsaved(t, nil)
	for i := range 10 {
		h.put(t, fmt.Sprint("content ", i), "a@example.com")
		h.settle(t, h.claim(t), mail.Relayed, time.Time{})
	}
	h.put(t, "waits", "a@example.com")
	for range 3 {
		if err := h.saveOnce(false); err != nil {
			t.Fatal(err)
		}
	}
	dir := h.killed(t)
	if err := os.Remove(filepath.Join(dir, "badger", "MANIFEST")); err != nil {
		t.Fatal(err)
	}
	got, err := Rescue(t.Context(), RescueOptions{Dir: dir, To: filepath.Join(t.TempDir(), "saved")})
	if err != nil {
		t.Fatal(err)
	}
	if got.Messages != 1 || got.Orphans != 0 || len(got.Damage) == 0 {
		t.Errorf("%+v, want one message, no orphans, and the damage", *got)
	}
}

// TestBackupIsOfOneMoment backs up a queue whose messages change while the database
// learns of them: each is there as it was.
func TestBackupIsOfOneMoment(t *testing.T) {
	h := openUnsaved(t, nil)
	for i := range 10 {
		h.put(t, fmt.Sprint("content ", i), fmt.Sprintf("a@d%d.example", i))
	}
	if err := h.saveOnce(false); err != nil { // they are the older generation now
		t.Fatal(err)
	}
	for range 5 { // and some of them have changed since
		h.settle(t, h.claim(t), mail.Deferred, time.Now().Add(time.Hour))
	}
	h.act(t, 0, Action{Action: "hold", Filter: Filter{Hop: "none.example"}})
	h.fill(true)
	h.settle(t, h.claim(t), mail.Deferred, time.Now().Add(time.Hour))
	h.fill(false)
	want := h.looks(t)
	from := filepath.Join(t.TempDir(), "backup")
	info, err := h.Backup(t.Context(), from)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "queue")
	if _, err := Restore(t.Context(), from, to, info); err != nil {
		t.Fatal(err)
	}
	db, err := openBadger(filepath.Join(to, "badger"), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.View(func(txn *badger.Txn) error {
		for _, prefix := range []string{keyJournal, prefixEntry} {
			it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte(prefix)})
			if it.Rewind(); it.Valid() {
				t.Errorf("the restored queue has %q, of the journal of another", it.Item().Key())
			}
			it.Close()
		}
		return nil
	})
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, h.openCopy(t, to).looks(t)); d != "" {
		t.Errorf("restored (-want +got):\n%s", d)
	}
}

// TestStrayTables has tables that no manifest names hold what was deleted on
// purpose: facts that are confirmed, and entries of the journal that are known.
func TestStrayTables(t *testing.T) {
	h := openUnsaved(t, func(o *Options) { o.Confirm = &confirmer{} })
	h.put(t, "x", "a@example.com")
	if err := h.saveAll(); err != nil { // its facts are in the database now
		t.Fatal(err)
	}
	eventually(t, "the facts are out", func() bool {
		if err := h.confirm(); err != nil {
			t.Fatal(err)
		}
		facts, _ := h.outbox.level(time.Now())
		return facts == 0
	})
	// One that is confirmed in each generation: the mark is in both.
	for range 2 {
		h.put(t, "y", "a@example.com")
		if err := h.saveOnce(false); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the facts are out", func() bool {
			if err := h.confirm(); err != nil {
				t.Fatal(err)
			}
			facts, _ := h.outbox.level(time.Now())
			return facts == 0
		})
	}
	if err := h.saveOnce(false); err != nil {
		t.Fatal(err)
	}
	err := h.db.View(func(txn *badger.Txn) error {
		confirmed, err := readNumber(txn, keyOutbox)
		if err != nil {
			return err
		}
		known, err := readMark(txn)
		if err != nil {
			return err
		}
		if known.number == 0 || confirmed < 2 {
			t.Errorf("the database knows %d entries, and facts below %d are confirmed: want some", known.number, confirmed)
		}
		for _, test := range []struct {
			name string
			key  []byte
			want bool
		}{
			{"facts that were confirmed", outboxKey(1), false},
			{"facts that were not", outboxKey(confirmed), true},
			{"an entry that is known", directKey(known.number), false},
			{"an entry that is not", directKey(known.number + 1), true},
		} {
			got, err := h.isMissing(txn, badgerdir.Entry{Key: test.key, Value: []byte("x"), Version: 1}, confirmed, known.number)
			if err != nil || got != test.want {
				t.Errorf("%s: isMissing() = %t, %v, want %t", test.name, got, err, test.want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestFloor has entries go into files whose numbers are below the next one: a start
// looks there.
func TestFloor(t *testing.T) {
	h := openUnsaved(t, nil)
	h.put(t, "x", "a@example.com")
	h.contents.prepare()
	h.contents.makers.Wait()
	h.put(t, strings.Repeat("large", smallContent), "a@example.com") // has the next number
	h.contents.mu.Lock()
	h.contents.seal()
	spares := len(h.contents.spares)
	h.contents.mu.Unlock()
	if spares == 0 {
		t.Fatal("no file is ready")
	}
	if err := h.saveAll(); err != nil {
		t.Fatal(err)
	}
	h.act(t, 0, Action{Action: "hold", Filter: Filter{Hop: "example.net"}})
	if err := h.saveOnce(false); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(h.looks(t), h.openCopy(t, h.killed(t)).looks(t)); d != "" {
		t.Errorf("after the kill (-want +got):\n%s", d)
	}
	for _, test := range []struct {
		name string
		c    *contents
		want uint64
	}{
		{"nothing", &contents{next: 9}, 9},
		{"active", &contents{next: 9, active: &segment{seq: 4}}, 4},
		{"spares", &contents{next: 9, active: &segment{seq: 6}, spares: []*segment{{seq: 7}, {seq: 5}}}, 5},
		{"a file is being made", &contents{next: 9, active: &segment{seq: 6}, preparing: map[uint64]bool{3: true, 7: true}}, 3},
	} {
		if got := test.c.floor(); got != test.want {
			t.Errorf("%s: floor() = %d, want %d", test.name, got, test.want)
		}
	}
}

// opening is a file system that notes which files are opened to read.
type opening struct {
	roomy
	mu    sync.Mutex
	names []string
}

func (o *opening) open(name string) (file, error) {
	o.mu.Lock()
	o.names = append(o.names, filepath.Base(name))
	o.mu.Unlock()
	return o.roomy.open(name)
}

// TestOrderlyEndLeavesNoJournal has a start after an orderly end look for entries in
// no file, and one after a kill in those that may have some.
func TestOrderlyEndLeavesNoJournal(t *testing.T) {
	h := openUnsaved(t, nil)
	h.busy(t, func(int) {})
	want := h.looks(t)
	start := func(dir string) (*harness, []string) {
		fs := &opening{}
		opts := h.opts()
		q := open(t, func(o *Options) { o.Dir, o.Router, o.tune.fs = dir, opts.Router, fs })
		fs.mu.Lock()
		defer fs.mu.Unlock()
		return q, fs.names
	}
	if _, read := start(h.killed(t)); len(read) == 0 {
		t.Error("a start after a kill read no file")
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	again, read := start(h.dir)
	if len(read) > 0 {
		t.Errorf("a start after an orderly end read %v, want no file", read)
	}
	if d := cmp.Diff(want, again.looks(t)); d != "" {
		t.Errorf("after an orderly end (-want +got):\n%s", d)
	}
	again.put(t, "new", "a@example.com") // what comes then is found after a kill
	want = again.looks(t)
	third, _ := start(again.killed(t))
	if d := cmp.Diff(want, third.looks(t)); d != "" {
		t.Errorf("after an orderly end and a kill (-want +got):\n%s", d)
	}
}

// TestNumbersAreGivenOnce has a file of contents come and go before the database
// learns of it: no other has its number after a kill.
func TestNumbersAreGivenOnce(t *testing.T) {
	h := openUnsaved(t, nil)
	id, _ := parseIdent(h.put(t, strings.Repeat("large", smallContent), "a@example.com"))
	m, err := h.read(id)
	if err != nil {
		t.Fatal(err)
	}
	h.settle(t, h.claim(t), mail.Relayed, time.Time{})
	if err := h.removeDead(); err != nil {
		t.Fatal(err)
	}
	if h.contents.find(m.loc.seq) != nil {
		t.Fatal("its file is still there")
	}
	dir := h.killed(t)
	for _, name := range filesOf(t, filepath.Join(dir, "segments")) { // what was made ready is of no concern
		if seq, err := segmentNumber(filepath.Base(name)); err == nil && seq > m.loc.seq {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	again := h.openCopy(t, dir)
	again.contents.makers.Wait()
	again.contents.mu.Lock()
	defer again.contents.mu.Unlock()
	for _, spare := range again.contents.spares {
		if spare.seq <= m.loc.seq {
			t.Errorf("a new file has number %d, and %d was given", spare.seq, m.loc.seq)
		}
	}
	if next := again.contents.next; next <= m.loc.seq {
		t.Errorf("the next file has number %d, and %d was given", next, m.loc.seq)
	}
}

// syncing is a file system that notes which files are synced, in their order.
type syncing struct {
	roomy
	mu    sync.Mutex
	names []string
}

type syncingFile struct {
	file
	name string
	f    *syncing
}

func (f syncingFile) sync() error {
	f.f.mu.Lock()
	f.f.names = append(f.f.names, filepath.Base(f.name))
	f.f.mu.Unlock()
	return f.file.sync()
}

// taken returns the names since the last call.
func (f *syncing) taken() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	names := f.names
	f.names = nil
	return names
}

func (f *syncing) open(name string) (file, error) {
	inner, err := f.roomy.open(name)
	if err != nil {
		return nil, err
	}
	return syncingFile{inner, name, f}, nil
}

func (f *syncing) create(name string) (file, error) {
	inner, err := f.roomy.create(name)
	if err != nil {
		return nil, err
	}
	return syncingFile{inner, name, f}, nil
}

// TestStartSyncsWhatItFinds has a process killed before its sync has ended: a start
// takes what it finds, and so it must be on the disk before the database says so.
func TestStartSyncsWhatItFinds(t *testing.T) {
	h := openUnsaved(t, nil)
	h.put(t, "x", "a@example.com")
	fs := &syncing{}
	opened := func(dir string) *harness {
		return open(t, func(o *Options) { o.Dir, o.tune.fs, o.tune.save = dir, fs, time.Hour })
	}
	dir := h.killed(t)
	again := opened(dir)
	if got := fs.taken(); len(got) != 1 {
		t.Errorf("%v were synced at a start with an entry, want its file", got)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	opened(dir)
	if got := fs.taken(); len(got) != 0 {
		t.Errorf("%v were synced at a start without entries, want none", got)
	}
}
