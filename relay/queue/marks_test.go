package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/google/go-cmp/cmp"

	"waybill/relay/badgerdir"
)

// keysOf are the keys of the database in dir below prefix, in their order.
func keysOf(t *testing.T, dir, prefix string) (list []string) {
	t.Helper()
	db, err := openBadger(filepath.Join(dir, "badger"), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte(prefix)})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			list = append(list, string(it.Item().Key()))
		}
		return nil
	})
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	return list
}

// TestMarksMove has the marks behind all else in a queue that is open, and where
// older programs look for them in one that was closed.
func TestMarksMove(t *testing.T) {
	h := openUnsaved(t, func(o *Options) { o.Confirm = &confirmer{} })
	h.busy(t, func(int) {})
	eventually(t, "the facts are out", func() bool {
		h.confirmed(t)
		facts, _ := h.outbox.level(time.Now())
		return facts == 0
	})
	want := h.looks(t)
	running := []string{keyCommits, keyJournal, keyOutbox, keySegment, keyTold}
	for range 2 { // a queue that was closed is as any other once it is open
		killed := h.killed(t)
		if d := cmp.Diff(running, keysOf(t, killed, prefixMark)); d != "" {
			t.Errorf("marks of an open queue (-want +got):\n%s", d)
		}
		if d := cmp.Diff([]string{keyFormat}, keysOf(t, killed, restingMark)); d != "" {
			t.Errorf("what an open queue has where a closed one has its marks (-want +got):\n%s", d)
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		if got := keysOf(t, h.dir, prefixMark); len(got) > 0 {
			t.Errorf("a closed queue has %q, where no older program looks", got)
		}
		resting := []string{keyFormat}
		for _, key := range running {
			resting = append(resting, restingKey(key))
		}
		slices.Sort(resting)
		if d := cmp.Diff(resting, keysOf(t, h.dir, restingMark)); d != "" {
			t.Errorf("marks of a closed queue (-want +got):\n%s", d)
		}
		h = h.openCopy(t, h.dir)
		if d := cmp.Diff(want, h.looks(t)); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		h.confirmed(t)
	}
}

// confirmed has the database know what is confirmed.
func (h *harness) confirmed(t *testing.T) {
	t.Helper()
	if err := h.confirm(); err != nil {
		t.Fatal(err)
	}
	if err := h.saveAll(); err != nil {
		t.Fatal(err)
	}
}

// formerly makes of a killed queue one of a program of format 2, which had its marks
// where a closed queue has them.
func formerly(t *testing.T, dir string) {
	t.Helper()
	db, err := openBadger(filepath.Join(dir, "badger"), true, nil)
	if err != nil {
		t.Fatal(err)
	}
	moved := 0
	err = db.Update(func(txn *badger.Txn) error {
		for _, key := range marks {
			item, err := txn.Get([]byte(key))
			if errors.Is(err, badger.ErrKeyNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			v, err := item.ValueCopy(nil)
			if err = errors.Join(err, txn.Delete([]byte(key)), txn.Set([]byte(restingKey(key)), v)); err != nil {
				return err
			}
			moved++
		}
		return txn.Set([]byte(keyFormat), binary.BigEndian.AppendUint64(nil, 2))
	})
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if moved < 3 {
		t.Fatalf("the queue had %d marks", moved)
	}
}

// TestFormerMarks opens, and rescues, what a program of format 2 left when it was killed.
func TestFormerMarks(t *testing.T) {
	h := openUnsaved(t, nil)
	h.busy(t, func(step int) {
		if step == 1 {
			if err := h.saveOnce(false); err != nil {
				t.Fatal(err)
			}
		}
	})
	want := h.looks(t)
	dir := h.killed(t)
	formerly(t, dir)
	got, err := Rescue(t.Context(), RescueOptions{Dir: dir, To: filepath.Join(t.TempDir(), "saved"), Queue: true})
	if err != nil || len(got.Damage) > 0 || got.Messages == 0 {
		t.Errorf("Rescue() = %+v, %v, want all messages", got, err)
	}
	h = h.openCopy(t, dir)
	if d := cmp.Diff(want, h.looks(t)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if got := keysOf(t, h.killed(t), restingMark); !slices.Equal(got, []string{keyFormat}) {
		t.Errorf("%q are still where they were", got)
	}
}

// TestFormerEntries reads entries of the journal of a program that had its marks elsewhere.
func TestFormerEntries(t *testing.T) {
	old := appendSet(appendSet(nil, restingKey(keyOutbox), []byte("5")), "m/1", []byte("one"))
	later := appendSet(nil, keyOutbox, []byte("6"))
	list, err := newest([]logged{{number: 1, body: old}, {number: 2, body: later}})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(list, func(a, b saving) int { return strings.Compare(a.key, b.key) })
	want := []saving{{"m/1", []byte("one")}, {keyOutbox, []byte("6")}}
	if d := cmp.Diff(want, list, cmp.AllowUnexported(saving{})); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if got := currentKey(keyFormat); got != keyFormat {
		t.Errorf("currentKey(%q) = %q", keyFormat, got)
	}
}

// TestStrayMarks has marks in a table that no manifest names: they were moved, unless
// they are newer than those that the database has.
func TestStrayMarks(t *testing.T) {
	h := openUnsaved(t, nil)
	h.put(t, "x", "a@example.com")
	if err := h.saveAll(); err != nil {
		t.Fatal(err)
	}
	err := h.db.View(func(txn *badger.Txn) error {
		for _, key := range []string{keyJournal, restingKey(keyJournal)} {
			for version, want := range map[uint64]bool{1: false, 1 << 40: true} {
				got, err := h.isMissing(txn, badgerdir.Entry{Key: []byte(key), Value: []byte("x"), Version: version}, 0, 0)
				if err != nil || got != want {
					t.Errorf("isMissing(%q of version %d) = %t, %v, want %t", key, version, got, err, want)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestTablesOfNewMessages fills tables with messages that come one after another:
// Badger merges those whose ranges overlap, so a table of new ones must not reach
// back to old ones.
func TestTablesOfNewMessages(t *testing.T) {
	h := openUnsaved(t, nil)
	line := []byte("Received: from a.test by b.test\r\n")
	for range 4 {
		for range 110 {
			d := draft(t, "u@example.com")
			d.Trace = bytes.Repeat(line, memTableSize/80/len(line))
			if err := h.Put(t.Context(), d, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.saveAll(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "tables", func() bool { return len(h.db.Tables()) > 2 })
	var from []string
	for _, table := range h.db.Tables() {
		from = append(from, string(table.Left))
	}
	slices.Sort(from)
	for _, left := range from[1:] { // the first has what was written when the queue was opened
		if !strings.HasPrefix(left, prefixMessage) {
			t.Errorf("a table begins with %q: it spans all messages", left)
		}
	}
}
