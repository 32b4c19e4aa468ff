package badgerdir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
)

// Badger writes its files through memory that it maps to files with holes. When
// the disk is full at that moment, the kernel ends the process with SIGBUS, and no
// error is returned to anybody. So what is written with every commit, the log of
// the memtable, gets its blocks before (Reserve); and no table is begun while the
// disk is short (Shut).

// Reserve keeps blocks for the next log of a database's memtable, beside those of
// the one in use. It works because Badger takes an empty file of that name as its
// own: the blocks wait behind the end of the file. It is not safe for concurrent use.
type Reserve struct {
	dir   string
	size  int64 // of a log
	spare *os.File
}

// Begin gives the log in use of the database in dir, which was just opened and has
// logs of size octets, its blocks, and the next one too.
func Begin(dir string, size int64) (*Reserve, error) {
	r := &Reserve{dir: dir, size: size}
	last, err := r.last()
	if err != nil || last == 0 {
		return r, err
	}
	f, err := os.OpenFile(filepath.Join(dir, logName(last)), os.O_RDWR, 0) //nolint:gosec // below the database's own directory
	if err != nil {
		return r, err
	}
	if err := errors.Join(allocate(f, size, false), f.Close()); err != nil {
		return r, fmt.Errorf("reserve the database's log: %w", err)
	}
	return r, r.Ready()
}

// last is the number of the log in use.
func (r *Reserve) last() (int, error) {
	f, err := list(r.dir)
	if err != nil || f == nil || len(f.logs) == 0 {
		return 0, err
	}
	return f.logs[len(f.logs)-1], nil
}

// Taken reports whether Badger has begun to use the log that was reserved, since
// the last call: then the next one is to be reserved.
func (r *Reserve) Taken() bool {
	if r.spare == nil {
		return false
	}
	info, err := r.spare.Stat()
	if err == nil && info.Size() == 0 {
		return false
	}
	_ = r.spare.Close() // Badger has its own
	r.spare = nil
	return true
}

// Ready reserves the next log, unless it is there. Without one, nothing may be
// committed that does not go into the log in use.
func (r *Reserve) Ready() error {
	if r.spare != nil {
		return nil
	}
	last, err := r.last()
	if err != nil {
		return err
	}
	if err := r.reserveManifest(); err != nil {
		return err
	}
	name := filepath.Join(r.dir, logName(last+1))
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600) //nolint:gosec // below the database's own directory
	if err != nil {
		return fmt.Errorf("reserve the database's next log: %w", err)
	}
	if err := allocate(f, r.size, true); err != nil {
		return fmt.Errorf("reserve the database's next log: %w", errors.Join(err, f.Close(), os.Remove(name)))
	}
	r.spare = f
	return nil
}

// manifestRoom is how much the manifest grows at most while one log is used: a
// few entries of some tens of octets for each table.
const manifestRoom = 256 << 10

// reserveManifest gives the manifest room to grow. Badger goes on behind an entry
// of which a full disk took only a part, and then nobody can read what follows.
func (r *Reserve) reserveManifest() error {
	f, err := os.OpenFile(filepath.Join(r.dir, badger.ManifestFilename), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("reserve for the manifest: %w", err)
	}
	info, err := f.Stat()
	if err == nil {
		err = allocate(f, info.Size()+manifestRoom, true)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("reserve for the manifest: %w", err)
	}
	return nil
}

// End gives up what is reserved. Nothing may be written to the database after it,
// but what closing it writes.
func (r *Reserve) End() error {
	if r == nil || r.spare == nil {
		return nil
	}
	if r.Taken() {
		return nil
	}
	name := r.spare.Name()
	err := errors.Join(r.spare.Close(), os.Remove(name))
	r.spare = nil
	return err
}

// shutSuffix is of the directory of a database that is shut.
const shutSuffix = ".shut"

// Shut takes the name of an open database's directory away. Badger goes on with
// the files that it has open, and gets an error for every file that it would make:
// it tries again until [Reopen] gives the name back.
func Shut(dir string) error { return os.Rename(dir, dir+shutSuffix) }

// Reopen undoes Shut, also when that was done by a process that was killed then.
func Reopen(dir string) error {
	_, err := os.Stat(dir + shutSuffix)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		return errors.Join(err, fmt.Errorf("there are both %s and %s; the second is the database: remove the first when it has no tables", dir, dir+shutSuffix))
	}
	return os.Rename(dir+shutSuffix, dir)
}
