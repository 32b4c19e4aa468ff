package queue

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// fsys is what the queue asks of the file system outside Badger: a seam, so
// that tests can make a sync fail or a disk fill up.
type fsys interface {
	mkdirAll(dir string) error
	create(name string) (file, error)     // fails when name exists
	open(name string) (file, error)       // to read
	reuse(old, name string) (file, error) // old, under a new name, to write
	remove(name string) error
	truncate(name string, size int64) error
	list(dir string) (map[string]int64, error) // names and sizes of the files in dir
	syncDir(dir string) error
	space(dir string) (free, size int64, err error) // octets for an ordinary user, and of the volume
}

type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	allocate(size int64) error // reserves blocks and sets the size
	sync() error               // data, and what is needed to find them
	direct()                   // has writeParts go past the page cache, where the file system lets it
	// units are what the sizes of parts, and of a write as a whole, must be multiples of.
	units() (part, whole int64)
	willNeed(off, n int64)                      // has the file system read this now, if it likes to
	writeParts(parts [][]byte, off int64) error // one behind the other; off is a multiple of whole
}

// disk is the real file system.
type disk struct{}

type diskFile struct {
	*os.File
	past   *os.File // the same, for writes past the page cache; or nil
	sector int64    // what those are multiples of; 0: there never were any
}

// page is what direct writes begin and end at: so no two have to do with one block
// of a file system, or with one page of its cache.
const page = 4096

func (f *diskFile) units() (part, whole int64) {
	if f.sector == 0 {
		return contentAlign, contentAlign
	}
	return f.sector, page
}

// Close closes the file.
func (f *diskFile) Close() error {
	err := f.File.Close()
	if f.past != nil {
		err = errors.Join(err, f.past.Close())
	}
	return err
}

// behind returns the parts that n octets do not fill, and how many of the first of
// those are.
func behind(parts [][]byte, n int) (rest [][]byte, done int) {
	for len(parts) > 0 && n >= len(parts[0]) {
		n -= len(parts[0])
		parts = parts[1:]
	}
	return parts, n
}

// roundUp returns the least multiple of unit, a power of two, that is not below n.
func roundUp(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }

func (disk) mkdirAll(dir string) error { return os.MkdirAll(dir, 0o700) }

func (disk) create(name string) (file, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // names are made by this package
	if err != nil {
		return nil, err
	}
	return &diskFile{File: f}, nil
}

func (disk) reuse(old, name string) (file, error) {
	if err := os.Rename(old, name); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0o600) //nolint:gosec // names are made by this package
	if err != nil {
		return nil, errors.Join(err, os.Remove(name))
	}
	return &diskFile{File: f}, nil
}

func (disk) open(name string) (file, error) {
	f, err := os.Open(name) //nolint:gosec // names are made by this package
	if err != nil {
		return nil, err
	}
	return &diskFile{File: f}, nil
}

func (disk) remove(name string) error               { return os.Remove(name) }
func (disk) truncate(name string, size int64) error { return os.Truncate(name, size) }

func (disk) list(dir string) (map[string]int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	files := make(map[string]int64, len(entries))
	for _, e := range entries {
		info, err := e.Info()
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			return nil, err
		case info.Mode().IsRegular():
			files[e.Name()] = info.Size()
		}
	}
	return files, nil
}

func (disk) syncDir(dir string) error {
	d, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}
