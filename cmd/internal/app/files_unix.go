//go:build unix

package app

import "golang.org/x/sys/unix"

// fileLimit is how many file descriptors the process may have; 0 is unknown.
func fileLimit() int {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil || r.Cur > 1<<30 {
		return 0
	}
	return int(r.Cur)
}
