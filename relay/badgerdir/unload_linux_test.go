package badgerdir

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// resident is how many KiB of the files below dir with that suffix are in this
// process' memory.
func resident(t *testing.T, dir, suffix string) (kib int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	ours := false
	for line := range strings.Lines(string(b)) {
		if first, _, _ := strings.Cut(line, " "); strings.Contains(first, "-") { // a mapping begins
			ours = strings.Contains(line, dir) && strings.HasSuffix(strings.TrimSpace(line), suffix)
		}
		var n int
		if _, err := fmt.Sscanf(line, "Rss: %d kB", &n); err == nil && ours {
			kib += n
		}
	}
	return kib
}

// readBack compares the values of n keys with what they should be.
func readBack(db *badger.DB, key string, n int, want func(i int) []byte) error {
	return db.View(func(txn *badger.Txn) error {
		for i := range n {
			item, err := txn.Get(fmt.Appendf(nil, key, i))
			if err != nil {
				return err
			}
			if err := item.Value(func(v []byte) error {
				if !bytes.Equal(v, want(i)) {
					return fmt.Errorf("value of %d is another", i)
				}
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
}

// TestUnload fills tables and unloads them: they are no longer in the process'
// memory, and are read as before.
func TestUnload(t *testing.T) {
	dir := t.TempDir()
	db, err := badger.Open(testOptions(dir).WithSyncWrites(false))
	if err != nil {
		t.Fatal(err)
	}
	value := func(i int) []byte { return bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 500) }
	const n = 40_000
	wb := db.NewWriteBatch()
	for i := range n {
		if err := wb.Set(fmt.Appendf(nil, "m/%06d", i), value(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := wb.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil { // all of it is in tables then
		t.Fatal(err)
	}
	if db, err = badger.Open(testOptions(dir).WithNumCompactors(0)); err != nil { // and they stay
		t.Fatal(err)
	}
	defer db.Close()
	read := func() {
		t.Helper()
		if err := readBack(db, "m/%06d", n, value); err != nil {
			t.Fatal(err)
		}
	}
	read()
	before := resident(t, dir, ".sst")
	if before < 1024 {
		t.Fatalf("%d KiB of tables are in memory, the test needs more", before)
	}
	if err := Unload(db, dir, 1<<40); err != nil {
		t.Fatal(err)
	}
	if got := resident(t, dir, ".sst"); got < before/2 {
		t.Errorf("%d KiB of tables are in memory, %d before: there were fewer than were asked for", got, before)
	}
	if err := Unload(db, dir, 0); err != nil {
		t.Fatal(err)
	}
	if got := resident(t, dir, ".sst"); got != 0 {
		t.Errorf("%d KiB of tables are in memory after Unload, %d before", got, before)
	}
	read()
}

// TestUnloadValues fills a value log and unloads it while it is read: it is no
// longer in the process' memory, is read as before, and takes more.
func TestUnloadValues(t *testing.T) {
	dir := t.TempDir()
	opts := testOptions(dir).WithSyncWrites(false)
	opts.ValueThreshold = 256
	db, err := badger.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	value := func(i int) []byte { return bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 5000) }
	const n = 400
	write := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			if err := db.Update(func(txn *badger.Txn) error { return txn.Set(fmt.Appendf(nil, "d/%06d", i), value(i)) }); err != nil {
				t.Fatal(err)
			}
		}
	}
	read := func(n int) error { return readBack(db, "d/%06d", n, value) }
	write(0, n)
	before := resident(t, dir, ".vlog")
	if before < 1024 {
		t.Fatalf("%d KiB of values are in memory, the test needs more", before)
	}
	if err := UnloadValues(dir, 1<<40); err != nil {
		t.Fatal(err)
	}
	if got := resident(t, dir, ".vlog"); got < before/2 {
		t.Errorf("%d KiB of values are in memory, %d before: there were fewer than were asked for", got, before)
	}
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for range 5 {
				if err := read(n); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 50 {
		if err := UnloadValues(dir, 0); err != nil {
			t.Fatal(err)
		}
	}
	readers.Wait()
	if err := UnloadValues(dir, 0); err != nil {
		t.Fatal(err)
	}
	if got := resident(t, dir, ".vlog"); got != 0 {
		t.Errorf("%d KiB of values are in memory after UnloadValues, %d before", got, before)
	}
	write(n, 2*n)
	if err := read(2 * n); err != nil {
		t.Error(err)
	}
}

func TestParseMapping(t *testing.T) {
	for _, test := range []struct {
		name, line string
		from, to   uintptr
		path       string
		want       bool
	}{
		{"a table", "7f2c1a000000-7f2c1a200000 rw-s 00000000 fe:00 1234                       /data/queue/badger/000001.sst", 0x7f2c1a000000, 0x7f2c1a200000, "/data/queue/badger/000001.sst", true},
		{"a name with blanks", "1000-2000 r--s 00000000 fe:00 1 /a b/c", 0x1000, 0x2000, "/a b/c", true},
		{"private", "1000-2000 r-xp 00000000 fe:00 1234 /usr/bin/waybill", 0, 0, "", false},
		{"no file", "1000-2000 rw-p 00000000 00:00 0", 0, 0, "", false},
		{"the wrong way round", "2000-1000 rw-s 00000000 fe:00 1234 /a", 0x2000, 0x1000, "/a", false},
		{"no addresses", "x-y rw-s 00000000 fe:00 1234 /a", 0, 0, "", false},
		{"empty", "", 0, 0, "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			from, to, path, ok := parseMapping(test.line)
			if ok != test.want || ok && (from != test.from || to != test.to || path != test.path) {
				t.Errorf("parseMapping(%q) = %#x, %#x, %q, %t, want %#x, %#x, %q, %t", test.line, from, to, path, ok, test.from, test.to, test.path, test.want)
			}
		})
	}
}
