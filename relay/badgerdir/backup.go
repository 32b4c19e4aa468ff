package badgerdir

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/pb"
	"google.golang.org/protobuf/proto"
)

// maxBackupPart bounds what is read of a backup at once: more than Badger puts
// into one part.
const maxBackupPart = 1 << 30

// stopping is a writer that fails once ctx is done.
type stopping struct {
	ctx context.Context
	w   io.Writer
}

// Write writes p.
func (s stopping) Write(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.w.Write(p)
}

// Backup writes all keys of db, as they are at one moment, to a new file, in
// Badger's own format, and returns its SHA-256.
func Backup(ctx context.Context, db *badger.DB, name string) (sum string, err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // the caller's
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	hash := sha256.New()
	w := bufio.NewWriterSize(io.MultiWriter(f, hash), 1<<20)
	if _, err := db.Backup(stopping{ctx, w}, 0); err != nil {
		return "", fmt.Errorf("back up database: %w", err)
	}
	if err := errors.Join(w.Flush(), f.Sync()); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// Sum returns the SHA-256 of a file.
func Sum(name string) (string, error) {
	f, err := os.Open(name) //nolint:gosec // the caller's
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // opened for reading
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// ReadBackup gives each all entries of a file that Backup wrote. The versions of
// one key come together, the newest first.
func ReadBackup(ctx context.Context, name string, each func(*pb.KV) error) error {
	f, err := os.Open(name) //nolint:gosec // the caller's
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // opened for reading
	r := bufio.NewReaderSize(f, 1<<20)
	var buf []byte
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		var size uint64
		err := binary.Read(r, binary.LittleEndian, &size)
		if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err == nil && size > maxBackupPart {
			err = errors.New("a part is too large")
		}
		if err != nil {
			return fmt.Errorf("%s is damaged: %w", name, err)
		}
		if uint64(cap(buf)) < size {
			buf = make([]byte, size)
		}
		buf = buf[:size]
		if _, err := io.ReadFull(r, buf); err != nil {
			return fmt.Errorf("%s is damaged: %w", name, err)
		}
		var list pb.KVList
		if err := proto.Unmarshal(buf, &list); err != nil {
			return fmt.Errorf("%s is damaged: %w", name, err)
		}
		for _, kv := range list.Kv {
			if err := each(kv); err != nil {
				return err
			}
		}
	}
}

// Deleted reports whether an entry of a backup is a tombstone.
func Deleted(kv *pb.KV) bool { return len(kv.Meta) > 0 && kv.Meta[0]&deleted != 0 }

// LoadBackup puts all entries of a file that Backup wrote into db, which is empty.
func LoadBackup(db *badger.DB, name string) error {
	f, err := os.Open(name) //nolint:gosec // the caller's
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // opened for reading
	if err := db.Load(bufio.NewReaderSize(f, 1<<20), 16); err != nil {
		return fmt.Errorf("load %s: %w", name, err)
	}
	return nil
}
