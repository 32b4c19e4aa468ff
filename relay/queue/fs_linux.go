package queue

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

func (f *diskFile) allocate(size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP):
			return f.Truncate(size)
		default:
			return err
		}
	}
}

func (f *diskFile) sync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (f *diskFile) willNeed(off, n int64) {
	_ = unix.Fadvise(int(f.Fd()), off, n, unix.FADV_WILLNEED) // it is only advice
}

// direct opens the file once more, to be written past the page cache. A copy there
// and what the kernel does with dirty pages costs more than all else about a
// write of this size, and what is written here is seldom read from the file.
func (f *diskFile) direct() {
	past, err := os.OpenFile(f.Name(), os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return // without it all is as it should be, and slower
	}
	for _, sector := range []int64{512, page} { // the first that the device takes
		if _, err = unix.Pwrite(int(past.Fd()), aligned(nil, sector), 0); err == nil {
			f.past, f.sector = past, sector
			return
		}
	}
	_ = past.Close() // nothing was written
}

// iovMost is how many parts one call takes (IOV_MAX).
const iovMost = 1024

func (f *diskFile) writeParts(parts [][]byte, off int64) error {
	if f.past != nil {
		for i, part := range parts {
			parts[i] = aligned(part, int64(len(part)))
		}
		err := writeVector(f.past, parts, off)
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
		_ = f.past.Close() // the file system has changed its mind
		f.past = nil
	}
	return writeVector(f.File, parts, off)
}

// writeVector writes parts, and leaves them as they are: who meets an error can
// write them all in another way.
func writeVector(f *os.File, parts [][]byte, off int64) error {
	done := 0 // octets of the first of parts that are written
	for len(parts) > 0 {
		list := parts[:min(len(parts), iovMost)]
		if done > 0 { // a short write ended in it
			list = [][]byte{parts[0][done:]}
		}
		n, err := unix.Pwritev(int(f.Fd()), list, off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return &os.PathError{Op: "pwritev", Path: f.Name(), Err: err}
		case n == 0:
			return io.ErrShortWrite
		}
		off += int64(n)
		parts, done = behind(parts, done+n)
	}
	return nil
}

// aligned returns b, or where it does not begin at a page a copy that does, of n
// octets.
func aligned(b []byte, n int64) []byte {
	if b != nil && uintptr(unsafe.Pointer(unsafe.SliceData(b)))%page == 0 { //nolint:gosec // only asked where it is
		return b
	}
	room := make([]byte, n+page)
	skip := -uintptr(unsafe.Pointer(&room[0])) % page //nolint:gosec // as above
	copied := room[skip : int64(skip)+n]
	copy(copied, b)
	return copied
}

func (disk) space(dir string) (free, size int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil //nolint:gosec // sizes of volumes fit
}

// isFull reports an error that a full volume or a used-up quota gives.
func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// isExhausted reports that no more files can be opened now.
func isExhausted(err error) bool { return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) }

// lockDir takes dir for this process alone, until the lock is closed.
func lockDir(dir string) (io.Closer, error) {
	d, err := os.Open(dir) //nolint:gosec // the directory of the queue
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = d.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another process has %s open", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return d, nil
}
