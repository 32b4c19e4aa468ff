package badgerdir

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
	"golang.org/x/sys/unix"
)

// Unload takes the tables of db, which is open in dir, out of the memory of this
// process: Badger maps them, and every page that was ever written or read counts
// as the process' own until the table goes. What is in the kernel's cache stays
// there, so that the next reader finds it. It does nothing while fewer than least
// octets of files are in the process' memory.
func Unload(db *badger.DB, dir string, least int64) error {
	if in, err := filesInMemory(); err != nil || in < least {
		return err
	}
	before := tableNames(db)
	txn := db.NewTransaction(false)
	defer txn.Discard()
	opts := badger.DefaultIteratorOptions
	opts.PrefetchValues = false
	it := txn.NewIterator(opts)
	defer it.Close()
	// A table that was there before and after the iterator began is in its hands:
	// until it is closed, the table stays where it is mapped. Of the others nobody
	// knows what is at their addresses by now.
	after := tableNames(db)
	return unload(dir, func(file string) bool { return before[file] && after[file] })
}

// UnloadValues takes the value log of the database that is open in dir out of the
// memory of this process, as [Unload] does tables. Until it returns, the caller
// sees to it that nobody writes to the database or closes it: either may move what
// is mapped, and something else may be at its address then. Readers do no harm.
func UnloadValues(dir string, least int64) error {
	if in, err := filesInMemory(); err != nil || in < least {
		return err
	}
	return unload(dir, func(file string) bool { return filepath.Ext(file) == ".vlog" })
}

// unload takes those mapped files of dir that are wanted, which must stay where
// they are, out of the memory of this process.
func unload(dir string, wanted func(file string) bool) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err == nil {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("mapped files: %w", err)
	}
	lines := bufio.NewScanner(bytes.NewReader(maps))
	for lines.Scan() {
		from, to, name, ok := parseMapping(lines.Text())
		if !ok || filepath.Dir(name) != dir || !wanted(filepath.Base(name)) {
			continue
		}
		// The mapping is shared: its pages are the file's, and are found there again.
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("unload %s: %w", name, errno)
		}
	}
	return nil
}

func tableNames(db *badger.DB) map[string]bool {
	names := map[string]bool{}
	for _, t := range db.Tables() {
		names[table.IDToFilename(t.ID)] = true
	}
	return names
}

// parseMapping reads a line of /proc/self/maps, as in proc_pid_maps(5).
func parseMapping(line string) (from, to uintptr, name string, ok bool) {
	fields := strings.SplitN(line, " ", 6)
	if len(fields) < 6 || len(fields[1]) < 4 || fields[1][3] != 's' {
		return 0, 0, "", false
	}
	a, b, _ := strings.Cut(fields[0], "-")
	begin, err := strconv.ParseUint(a, 16, 64)
	if err != nil {
		return 0, 0, "", false
	}
	end, err := strconv.ParseUint(b, 16, 64)
	return uintptr(begin), uintptr(end), strings.TrimLeft(fields[5], " "), err == nil && begin < end
}

// filesInMemory is how many octets of mapped files are in the memory of this process.
func filesInMemory() (int64, error) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, fmt.Errorf("memory of this process: %w", err)
	}
	var size, resident, shared int64
	if _, err := fmt.Sscan(string(b), &size, &resident, &shared); err != nil {
		return 0, fmt.Errorf("memory of this process: %w", err)
	}
	return shared * int64(os.Getpagesize()), nil
}
