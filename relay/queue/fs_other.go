//go:build !linux

package queue

import (
	"errors"
	"io"
	"math"
	"syscall"
)

// allocate sets the size; other systems have no common way to reserve blocks.
func (f *diskFile) allocate(size int64) error { return f.Truncate(size) }

func (f *diskFile) sync() error { return f.Sync() }

func (f *diskFile) willNeed(int64, int64) {}

// direct leaves all to the page cache.
func (f *diskFile) direct() {}

func (f *diskFile) writeParts(parts [][]byte, off int64) error {
	for _, part := range parts {
		if _, err := f.WriteAt(part, off); err != nil {
			return err
		}
		off += int64(len(part))
	}
	return nil
}

// space reports no shortage: on systems other than Linux the disk guard is off,
// and operators watch the disk themselves.
func (disk) space(string) (free, size int64, err error) { return math.MaxInt64, math.MaxInt64, nil }

func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) }

// lockDir leaves the locking to Badger.
func lockDir(string) (io.Closer, error) { return io.NopCloser(nil), nil }

// isExhausted reports that no more files can be opened now.
func isExhausted(err error) bool { return errors.Is(err, syscall.EMFILE) }
