package logtrack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"go.uber.org/zap"

	"waybill/relay/badgerdir"
	"waybill/relay/event"
)

const erasedName = "erased.json"

// BackupInfo says what a backup of a store has.
type BackupInfo struct {
	Facts       int64        `json:"facts"`       // about: facts that came meanwhile are in it too
	Partitions  []BackupPart `json:"partitions"`  // files in parts/
	Journal     []BackupPart `json:"journal"`     // files in journal/: blocks that were in memory
	Erased      *BackupPart  `json:"erased"`      // what is remembered about erased addresses; null: nothing
	Transcripts *BackupInfo  `json:"transcripts"` // the store of conversations
}

// BackupPart is one file of a backup.
type BackupPart struct {
	Name   string          `json:"name"`
	SHA256 string          `json:"sha256"`
	Meta   json.RawMessage `json:"meta,omitempty"` // of a finished partition
}

// Backup writes into dir, which has none yet, all facts that the store has
// taken, while it goes on. Facts that come meanwhile may be in it or not. It
// includes what the queue's outbox still keeps.
func (s *Store) Backup(ctx context.Context, dir string) (*BackupInfo, error) {
	info, err := s.backup(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("back up tracking store: %w", err)
	}
	return info, nil
}

func (s *Store) backup(ctx context.Context, dir string) (*BackupInfo, error) {
	for _, d := range []string{dir, filepath.Join(dir, "parts"), filepath.Join(dir, "journal")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, err
		}
	}
	info := &BackupInfo{}
	// First what is in memory: a block that is stored meanwhile is in both then,
	// which the next start notices, and never in neither.
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, os.ErrClosed
	}
	blocks := s.memory()
	s.mu.Unlock()
	for _, b := range blocks {
		recs, err := b.facts()
		if err != nil {
			return nil, err
		}
		part, err := writeJournal(filepath.Join(dir, "journal"), b.head.seq, recs)
		if err != nil {
			return nil, err
		}
		info.Facts += int64(len(recs))
		info.Journal = append(info.Journal, part)
	}
	if err := s.backupPartitions(ctx, filepath.Join(dir, "parts"), info); err != nil {
		return nil, err
	}
	part, err := s.backupErased(dir)
	if err != nil {
		return nil, err
	}
	info.Erased = part
	if s.talks != nil {
		talks, err := s.talks.backup(ctx, filepath.Join(dir, "transcripts"))
		if err != nil {
			return nil, err
		}
		info.Transcripts = talks
	}
	for _, d := range []string{filepath.Join(dir, "parts"), filepath.Join(dir, "journal"), dir} {
		if err := syncDir(d); err != nil {
			return nil, err
		}
	}
	return info, nil
}

// backupPartitions copies the partitions that the store has in the end: one may
// be written anew meanwhile, or its retention may end.
func (s *Store) backupPartitions(ctx context.Context, dir string, info *BackupInfo) error {
	done := map[*partition]BackupPart{}
	for {
		s.mu.Lock()
		parts := slices.Clone(s.parts)
		s.mu.Unlock()
		for p, part := range done {
			if !slices.Contains(parts, p) { // what was erased must not come back
				delete(done, p)
				if err := os.Remove(filepath.Join(dir, part.Name)); err != nil {
					return err
				}
			}
		}
		before := len(done)
		for _, p := range parts {
			if _, ok := done[p]; ok {
				continue
			}
			part, err := p.backup(ctx, dir)
			if errors.Is(err, os.ErrClosed) {
				continue // it has just been replaced, or its retention has ended
			}
			if err != nil {
				return err
			}
			done[p] = part
		}
		if len(done) > before {
			continue // and look whether all of them are still there
		}
		for p, part := range done {
			info.Facts += p.summary().Rows
			info.Partitions = append(info.Partitions, part)
		}
		slices.SortFunc(info.Partitions, func(a, b BackupPart) int { return strings.Compare(a.Name, b.Name) })
		return nil
	}
}

// backupErased copies what is remembered about erased addresses.
func (s *Store) backupErased(dir string) (*BackupPart, error) {
	if s.erased.path == "" {
		return nil, nil //nolint:nilnil // nothing was erased
	}
	s.erased.mu.Lock()
	b, err := os.ReadFile(s.erased.path)
	s.erased.mu.Unlock()
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // nothing was erased
	}
	if err != nil {
		return nil, err
	}
	name := filepath.Join(dir, erasedName)
	if err := os.WriteFile(name, b, 0o600); err != nil { //nolint:gosec // where the administrator says
		return nil, err
	}
	sum, err := badgerdir.Sum(name)
	return &BackupPart{Name: erasedName, SHA256: sum}, err
}

// writeJournal writes a block as the journal has it.
func writeJournal(dir string, seq uint32, recs []event.Record) (part BackupPart, err error) {
	name := journalPath(dir, seq)
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // below a directory that the operator named
	if err != nil {
		return part, err
	}
	b := slices.Clone(journalStart)
	for i := range recs {
		if b = appendRecord(b, &recs[i]); len(b) < 1<<20 && i < len(recs)-1 {
			continue
		}
		if _, err := f.Write(b); err != nil {
			return part, errors.Join(err, f.Close())
		}
		b = b[:0]
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return part, err
	}
	part.Name = filepath.Base(name)
	part.SHA256, err = badgerdir.Sum(name)
	return part, err
}

func (p *partition) backup(ctx context.Context, dir string) (part BackupPart, err error) {
	if err := p.acquire(false); err != nil {
		return part, err
	}
	defer p.release()
	part.Name = p.name
	if m := p.summary(); m.Finished {
		if part.Meta, err = json.Marshal(m); err != nil {
			return part, err
		}
	}
	p.mu.Lock()
	db := p.db
	p.mu.Unlock()
	part.SHA256, err = badgerdir.Backup(ctx, db, filepath.Join(dir, p.name))
	return part, err
}

// Restore makes a store in dir, which has none, of the backup in from. Every
// file must have the checksum that info has of it.
func Restore(ctx context.Context, from, dir string, info *BackupInfo) error {
	if err := restore(ctx, from, dir, info); err != nil {
		return fmt.Errorf("restore tracking store: %w", err)
	}
	return nil
}

func restore(ctx context.Context, from, dir string, info *BackupInfo) error {
	for _, d := range []string{dir, filepath.Join(dir, "parts"), filepath.Join(dir, "journal")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	verify := func(name string, part BackupPart) error {
		if filepath.Base(part.Name) != part.Name || part.Name == ".." {
			return fmt.Errorf("%q is no name of a file", part.Name)
		}
		sum, err := badgerdir.Sum(name)
		if err == nil && sum != part.SHA256 {
			err = fmt.Errorf("%s is damaged: its checksum is not that of when it was made", name)
		}
		return err
	}
	for _, part := range info.Journal {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := filepath.Join(from, "journal", part.Name)
		if err := verify(name, part); err != nil {
			return err
		}
		b, err := os.ReadFile(name) //nolint:gosec // below a directory that the operator named
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "journal", part.Name), b, 0o600) //nolint:gosec // verify has seen that it is a base name
		}
		if err != nil {
			return err
		}
	}
	if part := info.Erased; part != nil {
		name := filepath.Join(from, erasedName)
		if err := verify(name, BackupPart{Name: erasedName, SHA256: part.SHA256}); err != nil {
			return err
		}
		b, err := os.ReadFile(name) //nolint:gosec // below a directory that the operator named
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, erasedName), b, 0o600) //nolint:gosec // where the administrator says
		}
		if err != nil {
			return err
		}
	}
	for _, part := range info.Partitions {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := filepath.Join(from, "parts", part.Name)
		if err := verify(name, part); err != nil {
			return err
		}
		if err := restorePartition(name, filepath.Join(dir, "parts", part.Name), part.Meta); err != nil {
			return err
		}
	}
	if info.Transcripts != nil {
		return restore(ctx, filepath.Join(from, "transcripts"), filepath.Join(dir, "transcripts"), info.Transcripts)
	}
	return nil
}

func restorePartition(name, dir string, m json.RawMessage) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	db, err := badger.Open(badgerOptions(dir, zap.NewNop(), false).WithSyncWrites(false)) // it is synced when it is closed
	if err != nil {
		return err
	}
	if err := errors.Join(badgerdir.LoadBackup(db, name), db.Sync(), db.Close()); err != nil {
		return err
	}
	if m == nil {
		return nil
	}
	return os.WriteFile(filepath.Join(dir, metaFile), m, 0o600)
}
