//go:build !linux

package badgerdir

import "github.com/dgraph-io/badger/v4"

// Unload does nothing: only Linux tells where files are mapped.
func Unload(*badger.DB, string, int64) error { return nil }

// UnloadValues does nothing: only Linux tells where files are mapped.
func UnloadValues(string, int64) error { return nil }
