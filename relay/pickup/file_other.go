//go:build !unix

package pickup

import "io/fs"

const openFlags = 0

// linked: links are for administrators there.
func linked(fs.FileInfo) bool { return false }

// openToAll: the mode says nothing about other systems' access lists.
func openToAll(fs.FileInfo) bool { return false }
