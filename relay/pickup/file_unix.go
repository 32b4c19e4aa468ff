//go:build unix

package pickup

import (
	"io/fs"
	"syscall"
)

// openFlags keep a name that was exchanged from being followed or waited for.
const openFlags = syscall.O_NOFOLLOW | syscall.O_NONBLOCK

// linked reports whether a file has a second name.
func linked(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Nlink > 1
}

// openToAll reports whether everybody may write into a directory.
func openToAll(info fs.FileInfo) bool { return info.Mode().Perm()&0o002 != 0 }
