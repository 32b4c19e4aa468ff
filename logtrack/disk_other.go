//go:build !unix

package logtrack

import (
	"io/fs"
	"path/filepath"
)

func freeBytes(string) (int64, bool) { return 0, false }

func usedBytes(dir string) int64 {
	var total int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			total += info.Size()
		}
		return nil
	})
	return total
}
