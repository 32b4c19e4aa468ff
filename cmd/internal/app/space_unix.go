//go:build linux || darwin || freebsd

package app

import "golang.org/x/sys/unix"

// space is the room that dir's volume has for an ordinary user, and its size.
func space(dir string) (free, size int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	block := int64(st.Bsize)                                       //nolint:unconvert // its type differs between systems
	return int64(st.Bavail) * block, int64(st.Blocks) * block, nil //nolint:gosec // sizes of volumes fit
}
