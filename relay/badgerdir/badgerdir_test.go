package badgerdir

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

func testOptions(dir string) badger.Options {
	return badger.DefaultOptions(dir).WithLogger(nil).WithMemTableSize(16 << 20).WithSyncWrites(true)
}

// TestTidy kills, in effect, a process that is about to write its next file:
// Badger by itself does not open what is left, and after Tidy it does, with
// everything.
func TestTidy(t *testing.T) {
	for _, name := range []string{"00099.mem", "000099.vlog"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			db, err := badger.Open(testOptions(dir))
			if err != nil {
				t.Fatal(err)
			}
			err = db.Update(func(txn *badger.Txn) error { return txn.Set([]byte("key"), []byte("value")) })
			if err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			empty := filepath.Join(dir, name)
			if err := os.WriteFile(empty, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if db, err := badger.Open(testOptions(dir)); err == nil {
				_ = db.Close()
				t.Fatal("Badger opens it by itself now: Tidy need not remove it")
			}
			if err := os.WriteFile(empty, nil, 0o600); err != nil { // Badger has written a header
				t.Fatal(err)
			}
			if err := Tidy(dir); err != nil {
				t.Fatal(err)
			}
			db, err = badger.Open(testOptions(dir))
			if err != nil {
				t.Fatalf("after Tidy: %v", err)
			}
			defer db.Close()
			err = db.View(func(txn *badger.Txn) error {
				_, err := txn.Get([]byte("key"))
				return err
			})
			if err != nil {
				t.Errorf("the key is gone: %v", err)
			}
		})
	}
}

func TestTidyKeeps(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"1.mem": "x", "1.vlog": "x", "MANIFEST": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Tidy(dir); err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 3 {
		t.Errorf("%d files are left, %v, want all 3", len(files), err)
	}
	if err := Tidy(filepath.Join(dir, "none")); err != nil {
		t.Errorf("Tidy of nothing = %v", err)
	}
}
