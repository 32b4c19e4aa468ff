//go:build !linux

package pressure

import "runtime"

// resident is how much memory the Go runtime has from the system: elsewhere the
// system tells no better without cgo.
func resident() (int64, error) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.Sys - m.HeapReleased), nil //nolint:gosec // less than the address space
}
