package badgerdir

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// TestOpenSmaller leaves the log of a large memtable behind, as a killed process
// does, and opens the database with smaller ones.
func TestOpenSmaller(t *testing.T) {
	const entries = 3000
	value := func(i int) []byte { return bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 1000) }
	dir := t.TempDir()
	db, err := badger.Open(testOptions(dir).WithSyncWrites(false))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() // of the process that was killed
	wb := db.NewWriteBatch()
	for i := range entries {
		if err := wb.Set(fmt.Appendf(nil, "m/%06d", i), value(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := wb.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		size int64
	}{
		{"smaller", 1 << 20},
		{"the same", 16 << 20},
	} {
		t.Run(test.name, func(t *testing.T) {
			left := killed(t, dir)
			if state, err := Inspect(left, 2*test.size); err != nil || len(state.Damage) > 0 {
				t.Fatalf("Inspect = %v, %v, want no damage", state.Damage, err)
			}
			opts := testOptions(left).WithMemTableSize(test.size)
			opts.ValueThreshold = 64 << 10
			db, err := Open(opts)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			err = db.View(func(txn *badger.Txn) error {
				for i := range entries {
					item, err := txn.Get(fmt.Appendf(nil, "m/%06d", i))
					if err != nil {
						return fmt.Errorf("entry %d: %w", i, err)
					}
					err = item.Value(func(v []byte) error {
						if !bytes.Equal(v, value(i)) {
							return fmt.Errorf("entry %d has another value", i)
						}
						return nil
					})
					if err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// killed copies the files of the open database in dir: what would be there if
// its process were killed now.
func killed(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(to, "LOCK")); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return to
}
