package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"

	"waybill/relay/badgerdir"

	"github.com/dgraph-io/badger/v4"
)

// ErrCorrupt is wrapped by what Open says of files that are not what was
// written. Nothing that can still be read is lost: Rescue saves it.
var ErrCorrupt = errors.New("damaged queue")

const (
	logSize = 2 * memTableSize // of Badger's logs

	// witnessName is a file that says how many transactions there have been: a
	// database with fewer has lost the last ones.
	witnessName = "commits"
	straysName  = "strays" // tables that no manifest names, until they are compared
	markerName  = "marker" // in segments/: this directory is the one that was made
)

// advise adds to an error of files what can be done about it.
func (q *Queue) advise(err error) error {
	return fmt.Errorf("%w: %w (nothing was changed. Check the disk; then restore a backup with \"waybill restore\", or save what can be read: "+
		"waybill queue rescue --data-dir %s --to NEW-DIRECTORY --queue)", ErrCorrupt, err, filepath.Dir(q.opts.Dir))
}

// inspect reads all checksums of the database before it is opened, because
// Badger goes on without what it cannot read. Tables that it would remove are
// put aside until compareStrays has seen that nothing is lost with them.
func (q *Queue) inspect(dir string) error {
	state, err := badgerdir.Inspect(dir, logSize, keyCommits, restingKey(keyCommits))
	if err != nil {
		return err
	}
	if err := state.Err(dir); err != nil {
		return q.advise(err)
	}
	has := max(number(state.Latest(keyCommits)), number(state.Latest(restingKey(keyCommits))))
	if told, _ := readWitness(filepath.Join(q.opts.Dir, witnessName)); has < told && !q.opts.NoSync {
		return q.advise(fmt.Errorf("database %s ends with transaction %d, and %d were committed: its last files are damaged, missing or older than the others",
			dir, has, told))
	}
	q.commits = has
	if len(state.Strays) == 0 {
		return nil
	}
	aside := filepath.Join(q.opts.Dir, straysName)
	if err := os.MkdirAll(aside, 0o700); err != nil {
		return err
	}
	if aside, err = os.MkdirTemp(aside, ""); err != nil { // a number may have been given before
		return err
	}
	for _, name := range state.Strays {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(aside, name)); err != nil {
			return err
		}
	}
	return nil
}

func number(v []byte) uint64 {
	if len(v) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(v)
}

// compareStrays looks whether the tables that were put aside have anything that
// the database does not have. A process that is killed leaves tables that are not
// named yet, whose entries are elsewhere too, or not any more named, whose
// entries have moved. A manifest that was cut leaves the only copy.
func (q *Queue) compareStrays() error {
	root := filepath.Join(q.opts.Dir, straysName)
	names, err := filepath.Glob(filepath.Join(root, "*", "*.sst"))
	if err != nil || len(names) == 0 {
		return errors.Join(err, os.RemoveAll(root))
	}
	lost, first := 0, ""
	err = q.db.View(func(txn *badger.Txn) error {
		confirmed, err := readNumber(txn, keyOutbox)
		if err != nil {
			return err
		}
		known, err := readMark(txn)
		if err != nil {
			return err
		}
		for _, name := range names {
			var failed error
			// One that cannot be read was not finished by its process.
			badgerdir.ReadTable(name, func(e badgerdir.Entry) {
				missing, err := q.isMissing(txn, e, confirmed, known.number)
				failed = errors.Join(failed, err)
				if missing {
					if lost++; first == "" {
						first = strings.ToValidUTF8(string(e.Key), "?")
					}
				}
			})
			if failed != nil {
				return failed
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if lost > 0 {
		return q.advise(fmt.Errorf("%d entries, such as %.40q, are only in tables that the manifest does not name: it was cut, or is of another time", lost, first))
	}
	return os.RemoveAll(root)
}

// isMissing reports whether the database lacks e and should have it: facts are
// confirmed below one number, and entries of the journal known up to another.
func (q *Queue) isMissing(txn *badger.Txn, e badgerdir.Entry, confirmed, known uint64) (bool, error) {
	key := currentKey(string(e.Key))
	item, err := getMark(txn, key)
	if err == nil {
		return item.Version() < e.Version, nil
	}
	if !errors.Is(err, badger.ErrKeyNotFound) {
		return false, err
	}
	if e.Deleted {
		return false, nil
	}
	switch { // deleted on purpose?
	case strings.HasPrefix(key, prefixMessage):
		m, err := decodeRecord(e.Value)
		if err != nil {
			return true, nil //nolint:nilerr // nobody knows what it was
		}
		return q.contents.find(m.loc.seq) != nil, nil // keys go after their segment
	case strings.HasPrefix(key, prefixOutbox):
		return len(key) == len(prefixOutbox)+8 && binary.BigEndian.Uint64(e.Key[len(prefixOutbox):]) >= confirmed, nil
	case strings.HasPrefix(key, prefixEntry):
		return len(key) == len(prefixEntry)+8 && binary.BigEndian.Uint64(e.Key[len(prefixEntry):]) > known, nil
	case strings.HasPrefix(key, prefixHold):
		return false, nil // may have ended
	}
	return !strings.HasPrefix(key, "!badger!"), nil
}

// readMark reads how far the database knows the journal.
func readMark(txn *badger.Txn) (m mark, err error) {
	item, err := getMark(txn, keyJournal)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	err = item.Value(func(v []byte) (err error) {
		m, _, err = decodeMark(v)
		return err
	})
	return m, err
}

// witness is a file beside the database that counts its transactions, and the
// entries of the journal. It is not synced: after a power cut it may say less than
// is true, never more.
type witness struct {
	f       *os.File
	entries uint64 // as it was found
}

const (
	witnessSize  = 12 // a number, and its checksum
	witnessEntry = 16 // where the number of entries is, behind that of transactions
)

// readWitness returns how many transactions and entries there were, as far as the
// file says.
func readWitness(name string) (commits, entries uint64) {
	b, err := os.ReadFile(name) //nolint:gosec // below the queue's own directory
	if err != nil {
		return 0, 0
	}
	read := func(at int) uint64 {
		if len(b) < at+witnessSize || crc32.Checksum(b[at:at+8], castagnoli) != binary.LittleEndian.Uint32(b[at+8:]) {
			return 0
		}
		return binary.LittleEndian.Uint64(b[at:])
	}
	return read(0), read(witnessEntry)
}

func openWitness(name string) (*witness, error) {
	_, entries := readWitness(name)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600) //nolint:gosec // below the queue's own directory
	if err != nil {
		return nil, err
	}
	return &witness{f, entries}, nil
}

// commit says that n transactions were committed. When it cannot, the file says
// less than is true, as after a power cut.
func (w *witness) commit(n uint64) { w.write(n, 0) }

// entry says that the journal has n entries.
func (w *witness) entry(n uint64) { w.write(n, witnessEntry) }

func (w *witness) write(n uint64, at int64) {
	var b [witnessSize]byte
	binary.LittleEndian.PutUint64(b[:], n)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b[:8], castagnoli))
	_, _ = w.f.WriteAt(b[:], at) // see above
}

func (w *witness) close() error {
	if w == nil {
		return nil
	}
	return w.f.Close()
}

// checkMarker refuses an empty directory of contents that is not the one that
// was made, when messages should be there: perhaps it is not mounted.
func (q *Queue) checkMarker(dropped int) error {
	name := filepath.Join(q.contents.dir, markerName)
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if _, files := q.contents.usage(); files == 0 && dropped > 0 {
		return fmt.Errorf("%w: %s is empty and is not the directory that this queue made, and %d messages have their contents there: mount or put back the right one",
			ErrCorrupt, q.contents.dir, dropped)
	}
	return os.WriteFile(name, []byte("The contents of queued messages are in this directory.\n"), 0o600)
}

// setApart isolates the messages whose contents are cut off.
func (q *Queue) setApart(ids []ident) error {
	for _, id := range ids {
		m, err := q.read(id)
		if err != nil {
			return err
		}
		_, err = q.contents.open(id, m.loc, m.Size)
		if !errors.Is(err, ErrDamaged) {
			err = fmt.Errorf("%w: %s ends before it", ErrDamaged, m.ID)
		}
		if err := q.poison(id, err, true); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return nil
}
