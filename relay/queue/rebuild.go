package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
)

// rebuild makes a new queue's directory, from a rescue or a backup. What is
// added is on disk once close returned nil.
type rebuild struct {
	dir  string
	db   *badger.DB
	wb   *badger.WriteBatch
	seq  uint64   // of the next file of contents
	file *os.File // the shared segment that is written to
	loc  location // where its next content goes
}

// newRebuild begins a queue in dir, which has none, with files of contents
// numbered from first on.
func newRebuild(dir string, first uint64) (*rebuild, error) {
	if err := os.MkdirAll(filepath.Join(dir, "segments"), 0o700); err != nil {
		return nil, err
	}
	db, err := openBadger(filepath.Join(dir, "badger"), false, nil)
	if err != nil {
		return nil, err
	}
	return &rebuild{dir: dir, db: db, wb: db.NewWriteBatch(), seq: max(first, 1)}, nil
}

// add puts a message and its content into the queue.
func (b *rebuild) add(id ident, m *stored, content io.Reader) error {
	m = m.clone()
	var err error
	if m.loc, err = b.writeContent(id, m.Size, content); err != nil {
		return err
	}
	return b.set([]byte(messageKey(m.ID)), encodeRecord(nil, m))
}

// writeContent writes a content of size octets.
func (b *rebuild) writeContent(id ident, size int64, content io.Reader) (location, error) {
	if size > smallContent {
		loc := location{seq: b.seq}
		f, err := b.create(true)
		if err != nil {
			return loc, err
		}
		return loc, errors.Join(writeContentAt(f, 0, id, size, content), f.Sync(), f.Close())
	}
	need := roundUp(contentHeader+size, contentAlign)
	if b.file == nil || b.loc.off+need > segmentSize {
		if err := b.endSegment(); err != nil {
			return location{}, err
		}
		loc := location{seq: b.seq}
		f, err := b.create(false)
		if err != nil {
			return location{}, err
		}
		b.file, b.loc = f, loc
	}
	loc := b.loc
	b.loc.off += need
	return loc, writeContentAt(b.file, loc.off, id, size, content)
}

func (b *rebuild) set(key, value []byte) error { return b.wb.Set(key, value) }

func (b *rebuild) create(own bool) (*os.File, error) {
	s := segment{seq: b.seq, own: own}
	f, err := os.OpenFile(filepath.Join(b.dir, "segments", s.name()), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		b.seq++
	}
	return f, err
}

func (b *rebuild) endSegment() error {
	if b.file == nil {
		return nil
	}
	f := b.file
	b.file = nil
	return errors.Join(f.Sync(), f.Close())
}

// writeContentAt writes a content, and its header in front of it.
func writeContentAt(f *os.File, off int64, id ident, size int64, content io.Reader) error {
	sum := crc32.New(castagnoli)
	n, err := io.Copy(io.MultiWriter(io.NewOffsetWriter(f, off+contentHeader), sum), content)
	if err != nil {
		return err
	}
	if n != size {
		return fmt.Errorf("content of %s has %d octets, want %d", id.QueueID(), n, size)
	}
	var head [contentHeader]byte
	putContentHeader(head[:], id, size, sum.Sum32(), 0)
	_, err = f.WriteAt(head[:], off)
	return err
}

// close ends the queue: no new file of contents will have a number that was given.
func (b *rebuild) close() error {
	err := b.endSegment()
	if err == nil {
		err = errors.Join(
			b.set([]byte(keyFormat), binary.BigEndian.AppendUint64(nil, formatNumber)),
			b.set([]byte(restingKey(keySegment)), binary.BigEndian.AppendUint64(nil, b.seq)),
		)
	}
	if err == nil {
		err = b.wb.Flush()
	}
	err = errors.Join(err, b.db.Close()) // writes and syncs its tables
	for _, dir := range []string{"badger", "segments", "."} {
		err = errors.Join(err, disk{}.syncDir(filepath.Join(b.dir, dir)))
	}
	return err
}

// abandon gives up without a result.
func (b *rebuild) abandon() {
	b.wb.Cancel()
	_ = errors.Join(b.endSegment(), b.db.Close()) // nobody will use it
}

// newDirectory makes dir, or takes it when it is empty.
func newDirectory(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	names, err := os.ReadDir(dir)
	if err == nil && len(names) > 0 {
		err = fmt.Errorf("%s is not empty; name a new directory", dir)
	}
	return err
}
