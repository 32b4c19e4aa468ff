// Package badgerdir prepares the directory of a Badger database to be opened
// after a crash.
//
// It exists because Badger refuses, at the first start after it, what a process
// leaves that is killed while it creates a file, and a relay must come back by
// itself. It promises to remove nothing that anything was ever written to. When
// a version of Badger has another such fault, its cure belongs here, with a test
// that shows the fault.
package badgerdir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Tidy removes from dir the logs of memtables and of values that are empty files:
// their process was killed between the creation and the first octet. A directory
// that is not there is tidy.
func Tidy(dir string) error {
	files, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("database directory: %w", err)
	}
	for _, f := range files {
		if ext := filepath.Ext(f.Name()); ext != ".mem" && ext != ".vlog" {
			continue
		}
		info, err := f.Info()
		if err != nil {
			return fmt.Errorf("database directory: %w", err)
		}
		if !info.Mode().IsRegular() || info.Size() > 0 {
			continue
		}
		if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
			return fmt.Errorf("database directory: %w", err)
		}
	}
	return nil
}
