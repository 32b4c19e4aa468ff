package badgerdir

import (
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
)

// Open opens the database of opts, tidied. Its memtables may be smaller than
// those of the program that wrote it last: Badger asserts where a log does not
// fit into a memtable, so logs that were left by larger ones are made tables first.
func Open(opts badger.Options) (*badger.DB, error) {
	if err := Tidy(opts.Dir); err != nil {
		return nil, err
	}
	size, err := memTableOf(opts.Dir)
	if err != nil {
		return nil, err
	}
	if size > opts.MemTableSize && !opts.ReadOnly { // to read, Badger opens none that has a log to be cut
		db, err := badger.Open(opts.WithMemTableSize(size))
		if err == nil {
			err = db.Close() // leaves no log
		}
		if err != nil {
			return nil, err
		}
	}
	return badger.Open(opts)
}

// memTableOf is the size of the memtables that the largest log in dir is for.
// Badger makes a log twice as large as its memtable, and cuts it only when it
// has all of it in one.
func memTableOf(dir string) (int64, error) {
	f, err := list(dir)
	if err != nil || f == nil {
		return 0, err
	}
	var most int64
	for _, id := range f.logs {
		info, err := os.Stat(filepath.Join(dir, logName(id)))
		if err != nil {
			return 0, err
		}
		most = max(most, info.Size())
	}
	return most / 2, nil
}
