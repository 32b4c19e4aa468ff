package badgerdir

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/badger/v4/y"
	"github.com/dgraph-io/ristretto/v2/z"
)

const (
	logExt   = ".mem"
	tableExt = ".sst"
	valueExt = ".vlog"

	// deleted is the meta bit of a tombstone.
	deleted = 1 << 0
)

// Entry is one version of a key, as a file has it.
type Entry struct {
	Key, Value []byte
	Version    uint64
	Deleted    bool // the key was deleted at this version
	Loose      bool // of a transaction that is not whole
}

// Damage is what is wrong with a file.
type Damage struct {
	File string // its name
	What string
}

// String says it in one line.
func (d Damage) String() string { return d.File + ": " + d.What }

// DamageError is returned when a database cannot be opened without losing some
// of what was written to it.
type DamageError struct {
	Dir  string
	List []Damage
}

// Error lists the first damages.
func (e *DamageError) Error() string {
	var words []string
	for _, d := range e.List[:min(len(e.List), 5)] {
		words = append(words, d.String())
	}
	if more := len(e.List) - len(words); more > 0 {
		words = append(words, fmt.Sprintf("and %d more", more))
	}
	return fmt.Sprintf("database %s is damaged: %s", e.Dir, strings.Join(words, "; "))
}

// State is what the files of a database say, before it is opened.
type State struct {
	Damage []Damage
	Strays []string // tables that the manifest does not name; Badger removes them when it opens
	values map[string]Entry
}

// Latest is the value that key has, or nil, of those keys that Inspect was asked for.
func (s *State) Latest(key string) []byte {
	if e := s.values[key]; !e.Deleted {
		return e.Value
	}
	return nil
}

// Err is a *DamageError, or nil when the files are sound.
func (s *State) Err(dir string) error {
	if len(s.Damage) == 0 {
		return nil
	}
	return &DamageError{dir, s.Damage}
}

// Inspect reads every checksum of the closed database in dir, which has logs of
// logSize octets, and looks the given keys up. It changes nothing. Badger itself
// leaves out a table whose checksum is wrong, cuts a log at the first wrong
// octet, forgets tables when its manifest was cut, and panics where a file
// contradicts itself.
//
// What a killed process or a power cut can leave is no damage: an unfinished
// transaction at the end of a log, tables that no manifest names yet, a log that
// is empty. An error says that a file cannot be read.
func Inspect(dir string, logSize int64, keys ...string) (*State, error) {
	f, err := list(dir)
	if err != nil {
		return nil, err
	}
	s := &State{values: map[string]Entry{}}
	if f == nil || f.empty() {
		return s, nil
	}
	note := func(e Entry) {
		if was, ok := s.values[string(e.Key)]; !ok || e.Version >= was.Version {
			s.values[string(e.Key)] = e
		}
	}
	manifest, err := f.manifest()
	if err != nil {
		s.Damage = append(s.Damage, Damage{badger.ManifestFilename, err.Error()})
		return s, nil //nolint:nilerr // it is a damage
	}
	for id := range manifest.Tables {
		if !slices.Contains(f.tables, id) {
			s.Damage = append(s.Damage, Damage{table.IDToFilename(id), "is missing"})
		}
	}
	for _, name := range f.values {
		if err := checkHeader(filepath.Join(dir, name)); err != nil {
			s.Damage = append(s.Damage, Damage{name, err.Error()})
		}
	}
	if err := checkRegistry(dir); err != nil {
		s.Damage = append(s.Damage, Damage{badger.KeyRegistryFileName, err.Error()})
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	free := make(chan struct{}, max(runtime.GOMAXPROCS(0), 1))
	for _, id := range f.tables {
		m, ok := manifest.Tables[id]
		if !ok {
			s.Strays = append(s.Strays, table.IDToFilename(id))
			continue
		}
		wg.Go(func() {
			free <- struct{}{}
			defer func() { <-free }()
			found, err := checkTable(table.NewFilename(id, dir), m.Compression, keys)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				s.Damage = append(s.Damage, Damage{table.IDToFilename(id), err.Error()})
			}
			for _, e := range found {
				note(e)
			}
		})
	}
	wg.Wait()
	for i, id := range f.logs {
		name := logName(id)
		data, err := os.ReadFile(filepath.Join(dir, name)) //nolint:gosec // below the database's own directory
		if err != nil {
			return nil, err
		}
		if len(data) == 0 && i == len(f.logs)-1 {
			continue // its process was killed before it wrote anything
		}
		what := checkLog(data, logSize, func(e Entry) {
			if slices.Contains(keys, string(e.Key)) {
				note(e)
			}
		})
		if what != "" {
			s.Damage = append(s.Damage, Damage{name, what})
		}
	}
	slices.SortFunc(s.Damage, func(a, b Damage) int { return strings.Compare(a.File, b.File) })
	slices.Sort(s.Strays)
	return s, nil
}

// Read gives each all entries that can be read from the files in dir, in no
// order, whatever else is damaged, and returns what could not be read. It
// changes nothing, and reads every file that looks like one of a database,
// whether a manifest names it or not.
func Read(dir string, each func(Entry)) ([]Damage, error) {
	f, err := list(dir)
	if err != nil || f == nil {
		return nil, err
	}
	var all []Damage
	manifest, err := f.manifest()
	if err != nil && !f.empty() {
		all = append(all, Damage{badger.ManifestFilename, err.Error()})
	}
	for id := range manifest.Tables {
		if !slices.Contains(f.tables, id) {
			all = append(all, Damage{table.IDToFilename(id), "is missing"})
		}
	}
	for _, id := range f.tables {
		for _, what := range readTable(table.NewFilename(id, dir), manifest.Tables[id].Compression, each) {
			all = append(all, Damage{table.IDToFilename(id), what})
		}
	}
	for _, id := range f.logs {
		data, err := os.ReadFile(filepath.Join(dir, logName(id))) //nolint:gosec // below the database's own directory
		if err != nil {
			all = append(all, Damage{logName(id), err.Error()})
			continue
		}
		if what := readLog(data, each); what != "" {
			all = append(all, Damage{logName(id), what})
		}
	}
	return all, nil
}

// ReadTable gives each all entries of one table without compression.
func ReadTable(name string, each func(Entry)) []Damage {
	var all []Damage
	for _, what := range readTable(name, options.None, each) {
		all = append(all, Damage{filepath.Base(name), what})
	}
	return all
}

// files are the names in a database's directory.
type files struct {
	dir    string
	tables []uint64
	logs   []int
	values []string
	named  bool // there is a manifest
}

func (f *files) empty() bool { return !f.named && len(f.tables)+len(f.logs)+len(f.values) == 0 }

func logName(id int) string { return fmt.Sprintf("%05d%s", id, logExt) }

// list returns nil when there is no directory.
func list(dir string) (*files, error) {
	names, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // as documented
	}
	if err != nil {
		return nil, fmt.Errorf("database directory: %w", err)
	}
	f := &files{dir: dir}
	for _, n := range names {
		base, ext := strings.TrimSuffix(n.Name(), filepath.Ext(n.Name())), filepath.Ext(n.Name())
		switch ext {
		case tableExt:
			if id, ok := table.ParseFileID(n.Name()); ok {
				f.tables = append(f.tables, id)
			}
		case logExt:
			if id, err := strconv.Atoi(base); err == nil {
				f.logs = append(f.logs, id)
			}
		case valueExt:
			f.values = append(f.values, n.Name())
		default:
			f.named = f.named || n.Name() == badger.ManifestFilename
		}
	}
	slices.Sort(f.tables)
	slices.Sort(f.logs)
	return f, nil
}

func (f *files) manifest() (m badger.Manifest, err error) {
	if !f.named {
		return m, errors.New("is missing")
	}
	fp, err := os.Open(filepath.Join(f.dir, badger.ManifestFilename))
	if err != nil {
		return m, err
	}
	defer fp.Close()
	defer recovered(&err)
	m, _, err = badger.ReplayManifestFile(fp, 0, badger.DefaultOptions(f.dir))
	return m, err
}

// checkHeader looks whether a log begins as one that is not encrypted, or is
// too short to have anything.
func checkHeader(name string) error {
	fp, err := os.Open(name) //nolint:gosec // below the database's own directory
	if err != nil {
		return err
	}
	defer fp.Close()
	var key [8]byte
	if n, _ := fp.ReadAt(key[:], 0); n == len(key) && key != [8]byte{} {
		return errors.New("has a wrong header")
	}
	return nil
}

func checkRegistry(dir string) (err error) {
	defer recovered(&err)
	r, err := badger.OpenKeyRegistry(badger.KeyRegistryOptions{Dir: dir, ReadOnly: true})
	if err == nil {
		err = r.Close()
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil // made anew
	}
	return err
}

// recovered makes an error of a panic: Badger asserts where files contradict
// themselves.
func recovered(err *error) {
	if v := recover(); v != nil {
		word, _, _ := strings.Cut(strings.TrimSpace(fmt.Sprint(v)), "\n")
		*err = fmt.Errorf("contradicts itself: %.200s", word)
	}
}

// openTable opens a table that nobody has open for writing.
func openTable(name string, c options.CompressionType) (t *table.Table, err error) {
	defer recovered(&err)
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Size() < 16 { // less than any footer
		return nil, fmt.Errorf("is cut off: %d octets", info.Size())
	}
	mf, err := z.OpenMmapFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	return table.OpenTable(mf, table.Options{
		ReadOnly: true, ChkMode: options.OnBlockRead, BlockSize: 4096, Compression: c,
	})
}

func closeTable(t *table.Table) { _ = t.Close(-1) }

// checkTable reads all blocks, and returns what the table says of keys.
func checkTable(name string, c options.CompressionType, keys []string) (found []Entry, err error) {
	// A disk that does not give what was mapped is an error then, not the end.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer recovered(&err)
	t, err := openTable(name, c)
	if err != nil {
		return nil, err
	}
	defer closeTable(t)
	if err := t.VerifyChecksum(); err != nil {
		return nil, err
	}
	it := t.NewIterator(table.NOCACHE)
	defer func() { _ = it.Close() }()
	for _, k := range keys {
		it.Seek(y.KeyWithTs([]byte(k), math.MaxUint64))
		if it.Valid() && string(y.ParseKey(it.Key())) == k {
			found = append(found, entryAt(it))
		}
	}
	return found, nil
}

func entryAt(it *table.Iterator) Entry {
	v := it.ValueCopy()
	return Entry{
		Key: slices.Clone(y.ParseKey(it.Key())), Version: y.ParseTs(it.Key()),
		Value: slices.Clone(v.Value), Deleted: v.Meta&deleted != 0,
	}
}

// readTable reads what can be read of a table, block by block.
func readTable(name string, c options.CompressionType, each func(Entry)) (lost []string) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	t, err := openTable(name, c)
	if err != nil {
		return []string{err.Error()}
	}
	defer closeTable(t)
	blocks := t.KeySplits(math.MaxInt32, nil) // the first key of each
	bad := 0
	for i, key := range blocks {
		next := ""
		if i+1 < len(blocks) {
			next = blocks[i+1]
		}
		if readBlock(t, key, next, each) != nil {
			bad++
		}
	}
	if bad > 0 {
		lost = append(lost, fmt.Sprintf("%d of %d blocks cannot be read", bad, len(blocks)))
	}
	return lost
}

// readBlock reads the entries from key to before next, or to the end.
func readBlock(t *table.Table, key, next string, each func(Entry)) (err error) {
	defer recovered(&err)
	it := t.NewIterator(table.NOCACHE)
	defer func() { _ = it.Close() }()
	it.Seek([]byte(key))
	n := 0
	for ; it.Valid() && (next == "" || y.CompareKeys(it.Key(), []byte(next)) < 0); it.Next() {
		each(entryAt(it))
		n++
	}
	if n == 0 {
		return errors.New("block")
	}
	return nil
}
