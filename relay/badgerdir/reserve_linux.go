package badgerdir

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate gives the first size octets of f their blocks; keep leaves its size as
// it is. Where the file system cannot, all stays as it was.
func allocate(f *os.File, size int64, keep bool) error {
	mode := uint32(0)
	if keep {
		mode = unix.FALLOC_FL_KEEP_SIZE
	}
	for {
		err := unix.Fallocate(int(f.Fd()), mode, 0, size)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP):
			return nil
		default:
			return err
		}
	}
}
