package badgerdir

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"
)

// blocks is how many octets of the disk a file has.
func blocks(t *testing.T, name string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// TestReserve has Badger go from log to log: each one has all its blocks before
// anything is written to it, and after a crash all of it is there.
func TestReserve(t *testing.T) {
	const size = 32 << 20
	dir := filepath.Join(t.TempDir(), "db")
	db, err := badger.Open(testOptions(dir).WithSyncWrites(false))
	if err != nil {
		t.Fatal(err)
	}
	r, err := Begin(dir, size)
	if err != nil {
		t.Fatal(err)
	}
	n, taken := 0, 0
	for taken < 3 {
		spare := r.spare.Name()
		if got := blocks(t, spare); got < size {
			t.Fatalf("%s has %d octets of the disk, want %d", spare, got, size)
		}
		err := db.Update(func(txn *badger.Txn) error {
			return txn.Set(fmt.Appendf(nil, "%08d", n), bytes.Repeat([]byte{byte(n)}, 100<<10))
		})
		if err != nil {
			t.Fatal(err)
		}
		if n++; n > 2000 {
			t.Fatal("the reserve was never taken")
		}
		if r.Taken() {
			taken++
			if got := blocks(t, spare); got < size {
				t.Errorf("%s is in use and has %d octets of the disk, want %d", spare, got, size)
			}
			if r.Taken() {
				t.Error("it was taken twice")
			}
			if err := r.Ready(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	state, err := Inspect(dir, size)
	if err != nil || state.Err(dir) != nil {
		t.Errorf("a reserve that is not used is taken for damage: %v, %v", err, state.Err(dir))
	}
	if err := r.End(); err != nil {
		t.Fatal(err)
	}
	if err := Tidy(dir); err != nil {
		t.Fatal(err)
	}
	if db, err = badger.Open(testOptions(dir)); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(txn *badger.Txn) error {
		for i := range n {
			if _, err := txn.Get(fmt.Appendf(nil, "%08d", i)); err != nil {
				return fmt.Errorf("key %d: %w", i, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestShut takes a database's directory away and gives it back: what is written
// meanwhile is there, and no table was made.
func TestShut(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "db")
	db, err := badger.Open(testOptions(dir))
	if err != nil {
		t.Fatal(err)
	}
	set := func(key string) error {
		return db.Update(func(txn *badger.Txn) error { return txn.Set([]byte(key), []byte("value")) })
	}
	if err := set("before"); err != nil {
		t.Fatal(err)
	}
	if err := Shut(dir); err != nil {
		t.Fatal(err)
	}
	if err := set("while"); err != nil {
		t.Errorf("a shut database takes nothing for the log that it has: %v", err)
	}
	if err := Reopen(dir); err != nil {
		t.Fatal(err)
	}
	if err := Reopen(dir); err != nil {
		t.Errorf("one that is not shut: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir+shutSuffix, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Reopen(dir); err == nil {
		t.Error("two directories claim to be the database, and Reopen takes one")
	}
	if err := os.Remove(dir + shutSuffix); err != nil {
		t.Fatal(err)
	}
	if db, err = badger.Open(testOptions(dir)); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, key := range []string{"before", "while"} {
		if err := db.View(func(txn *badger.Txn) error { _, err := txn.Get([]byte(key)); return err }); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
}
