package queue

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"

	"waybill/relay/badgerdir"
	"waybill/relay/mail"

	"github.com/dgraph-io/badger/v4/pb"
)

const (
	backupDatabase = "database" // the stream of all keys
	backupContents = "contents" // the contents of the messages in it, one after the other
)

// BackupInfo says what a backup of a queue has.
type BackupInfo struct {
	Messages int            `json:"messages"`
	Bytes    int64          `json:"bytes"`             // of their contents
	Damaged  []mail.QueueID `json:"damaged,omitempty"` // whose contents could not be copied
	SHA256   string         `json:"sha256"`            // of the stream of all keys; each content has a checksum of its own
}

// Backup writes into dir, which has none yet, what the queue is at one moment,
// while it goes on. Every message that was acknowledged before the call is in
// it, unless its last recipient was final by then.
func (q *Queue) Backup(ctx context.Context, dir string) (*BackupInfo, error) {
	info, err := q.backup(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("back up queue: %w", err)
	}
	return info, nil
}

func (q *Queue) backup(ctx context.Context, dir string) (_ *BackupInfo, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ending := make(chan struct{})
	defer close(ending)
	q.life.RLock()
	defer q.life.RUnlock()
	if q.closed {
		return nil, ErrClosed
	}
	go func() { // the queue's end does not wait for a backup
		select {
		case <-q.closing:
			cancel()
		case <-ending:
		}
	}()
	if err := newDirectory(dir); err != nil {
		return nil, err
	}
	// What the moment has stays until it is copied.
	q.contents.freeze(true)
	defer q.contents.freeze(false)
	info := &BackupInfo{}
	if info.SHA256, err = q.copyDatabase(ctx, filepath.Join(dir, backupDatabase)); err != nil {
		return nil, err
	}
	list, err := backedUp(ctx, filepath.Join(dir, backupDatabase))
	if err != nil {
		return nil, err
	}
	if err := q.copyContents(ctx, filepath.Join(dir, backupContents), list, info); err != nil {
		return nil, err
	}
	return info, disk{}.syncDir(dir)
}

// copyDatabase writes all keys as the last commit left them. Nothing else is
// written to the database meanwhile: who reads it to copy it does not see all of it
// at the same moment, and a save is no moment of the queue.
func (q *Queue) copyDatabase(ctx context.Context, name string) (sum string, err error) {
	q.saving.Lock()
	defer q.saving.Unlock()
	if err := q.saveLocked(true); err != nil {
		return "", err
	}
	return badgerdir.Backup(ctx, q.db, name)
}

// backedUp lists the messages of a stream that are not finished, by where their
// contents are.
func backedUp(ctx context.Context, name string) ([]*stored, error) {
	newest := map[string]uint64{}
	messages := map[string]*stored{}
	err := badgerdir.ReadBackup(ctx, name, func(kv *pb.KV) error {
		if !bytes.HasPrefix(kv.Key, []byte(prefixMessage)) {
			return nil
		}
		key := string(kv.Key)
		if was, ok := newest[key]; ok && was > kv.Version {
			return nil
		}
		newest[key] = kv.Version
		delete(messages, key)
		if badgerdir.Deleted(kv) {
			return nil
		}
		if m, err := decodeRecord(kv.Value); err == nil && !m.done { // one that cannot be read goes along as it is
			// Only these are needed: a backlog is large.
			messages[key] = &stored{Message: Message{Draft: mail.Draft{ID: m.ID}, Size: m.Size}, loc: m.loc}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	list := make([]*stored, 0, len(messages))
	for _, m := range messages {
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b *stored) int {
		return cmp.Or(cmp.Compare(a.loc.seq, b.loc.seq), cmp.Compare(a.loc.off, b.loc.off))
	})
	return list, nil
}

// copyContents writes the contents of the messages, each behind its header.
func (q *Queue) copyContents(ctx context.Context, name string, list []*stored, info *BackupInfo) (err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // below a directory that the operator named
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	for _, m := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		id, _ := parseIdent(m.ID)
		r, err := q.contents.open(id, m.loc, m.Size) // checks it
		if errors.Is(err, ErrDamaged) {
			info.Damaged = append(info.Damaged, m.ID)
			continue
		}
		if err != nil {
			return err
		}
		err = copyContent(w, id, m.Size, r)
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
		info.Messages++
		info.Bytes += m.Size
	}
	return errors.Join(w.Flush(), f.Sync())
}

// copyContent writes one content, followed by its checksum.
func copyContent(w io.Writer, id ident, size int64, r io.Reader) error {
	var head [contentHeader]byte
	putContentHeader(head[:], id, size, 0, 0)
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	sum := crc32.New(castagnoli)
	n, err := io.Copy(io.MultiWriter(w, sum), r)
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		_, err = w.Write(binary.LittleEndian.AppendUint32(nil, sum.Sum32()))
	}
	return err
}

// Restored says what Restore made.
type Restored struct {
	Messages int            `json:"messages"`
	Bytes    int64          `json:"bytes"`
	Missing  []mail.QueueID `json:"missing,omitempty"` // without a content: they were damaged before the backup
}

// Restore makes a queue in dir, which has none, of the backup in from. Every
// checksum is compared, and info, which came with the backup, must be right.
func Restore(ctx context.Context, from, dir string, info *BackupInfo) (*Restored, error) {
	done, err := restore(ctx, from, dir, info)
	if err != nil {
		return nil, fmt.Errorf("restore queue: %w", err)
	}
	return done, nil
}

func restore(ctx context.Context, from, dir string, info *BackupInfo) (_ *Restored, err error) {
	if err := newDirectory(dir); err != nil {
		return nil, err
	}
	database := filepath.Join(from, backupDatabase)
	if sum, err := badgerdir.Sum(database); err != nil || sum != info.SHA256 {
		return nil, errors.Join(err, fmt.Errorf("%s is damaged: its checksum is not that of when it was made", database))
	}
	last, err := lastSegment(ctx, database)
	if err != nil {
		return nil, err
	}
	b, err := newRebuild(dir, last+1)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			b.abandon()
		}
	}()
	// The contents first: where they are now is needed for the records.
	places := map[ident]place{}
	if err := b.takeContents(ctx, filepath.Join(from, backupContents), places); err != nil {
		return nil, err
	}
	done, err := b.takeRecords(ctx, database, places)
	if err != nil {
		return nil, err
	}
	if done.Messages != info.Messages {
		return nil, fmt.Errorf("%d messages are in %s, and there were %d when it was made", done.Messages, from, info.Messages)
	}
	return done, b.close()
}

// place is where a content was put.
type place struct {
	loc  location
	size int64
}

// lastSegment is the highest number of a segment that any record of a stream names.
func lastSegment(ctx context.Context, name string) (last uint64, err error) {
	err = badgerdir.ReadBackup(ctx, name, func(kv *pb.KV) error {
		switch {
		case currentKey(string(kv.Key)) == keySegment:
			last = max(last, number(kv.Value))
		case bytes.HasPrefix(kv.Key, []byte(prefixMessage)):
			if m, err := decodeRecord(kv.Value); err == nil {
				last = max(last, m.loc.seq)
			}
		}
		return nil
	})
	return last, err
}

// takeContents writes all contents of a backup into segments.
func (b *rebuild) takeContents(ctx context.Context, name string, places map[ident]place) error {
	f, err := os.Open(name) //nolint:gosec // below a directory that the operator named
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // opened for reading
	r := bufio.NewReaderSize(f, 1<<20)
	damaged := func(what string) error {
		return fmt.Errorf("%s is damaged: %s after %d messages", name, what, len(places))
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		var head [contentHeader]byte
		if _, err := io.ReadFull(r, head[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return damaged(err.Error())
		}
		id, size := ident(head[8:24]), int64(binary.LittleEndian.Uint64(head[24:])) //nolint:gosec // checked
		if _, err := checkContentHeader(head[:], id, size); err != nil || size < 0 {
			return damaged("a wrong header")
		}
		sum := crc32.New(castagnoli)
		loc, err := b.writeContent(id, size, io.TeeReader(io.LimitReader(r, size), sum))
		if err != nil {
			return err
		}
		var want [4]byte
		if _, err := io.ReadFull(r, want[:]); err != nil || binary.LittleEndian.Uint32(want[:]) != sum.Sum32() {
			return damaged("a wrong checksum")
		}
		places[id] = place{loc, size}
	}
}

// takeRecords puts all keys of a stream into the queue, with the new places.
func (b *rebuild) takeRecords(ctx context.Context, name string, places map[ident]place) (*Restored, error) {
	done := &Restored{}
	newest := map[string]uint64{}
	err := badgerdir.ReadBackup(ctx, name, func(kv *pb.KV) error { // the stream has a key's versions newest first
		key := string(kv.Key)
		if _, ok := newest[key]; ok {
			return nil
		}
		newest[key] = kv.Version
		key = currentKey(key)
		if badgerdir.Deleted(kv) || bytes.HasPrefix(kv.Key, []byte(prefixEntry)) ||
			key == keyCommits || key == keySegment || key == keyFormat || key == keyJournal { // the new queue begins its own
			return nil
		}
		if !bytes.HasPrefix(kv.Key, []byte(prefixMessage)) {
			return b.set([]byte(restingKey(key)), kv.Value)
		}
		m, err := decodeRecord(kv.Value)
		switch {
		case err != nil: // as it was: nobody can read it
			return b.set(kv.Key, kv.Value)
		case m.done: // its segment does not exist here
			return nil
		}
		id, _ := parseIdent(m.ID)
		at, ok := places[id]
		if !ok || at.size != m.Size {
			done.Missing = append(done.Missing, m.ID)
			return nil
		}
		m.loc = at.loc
		done.Messages++
		done.Bytes += m.Size
		return b.set(kv.Key, encodeRecord(nil, m))
	})
	return done, err
}
