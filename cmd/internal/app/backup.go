package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"waybill/logtrack"
	"waybill/logtrack/trackapi"
	"waybill/relay/queue"
)

const (
	backupFile   = "backup.json" // written last: without it a backup is not whole
	backupFormat = 1
	queueDir     = "queue"
	trackDir     = "track"
	keysDir      = "keys"
)

// backupHead is what backup.json says.
type backupHead struct {
	Format   int                  `json:"format"`
	Made     time.Time            `json:"made"`
	Version  string               `json:"version"`
	Hostname string               `json:"hostname"`
	Queue    *queue.BackupInfo    `json:"queue"`
	Track    *logtrack.BackupInfo `json:"track"` // null when tracking was off
	Keys     []string             `json:"keys"`  // files in keys/
}

var errBackupRuns = errors.New("another backup is under way")

// Backup writes queue, tracking store and keys of our own into dir, which must
// be new or empty, while the relay goes on. The queue comes first: the tracking
// store then has at least the facts that the queue no longer keeps.
func (a *App) Backup(ctx context.Context, dir string) (_ *trackapi.BackupDone, err error) {
	if !a.backingUp.TryLock() {
		return nil, errBackupRuns
	}
	defer a.backingUp.Unlock()
	start := time.Now()
	if err := emptyDir(dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil { // half a backup is none
			for _, name := range []string{backupFile, queueDir, trackDir, keysDir} {
				err = errors.Join(err, os.RemoveAll(filepath.Join(dir, name)))
			}
		}
	}()
	head := backupHead{Format: backupFormat, Made: start.UTC(), Version: Version, Hostname: a.config.Load().Hostname}
	if head.Queue, err = a.queue.Backup(ctx, filepath.Join(dir, queueDir)); err != nil {
		return nil, err
	}
	if a.track != nil {
		if head.Track, err = a.track.Backup(ctx, filepath.Join(dir, trackDir)); err != nil {
			return nil, err
		}
	}
	if head.Keys, err = copyKeys(a.config.Load().DataDir, filepath.Join(dir, keysDir)); err != nil {
		return nil, err
	}
	if err := writeBackupHead(dir, &head); err != nil {
		return nil, err
	}
	done := &trackapi.BackupDone{Dir: dir, Messages: head.Queue.Messages, Bytes: head.Queue.Bytes, Seconds: time.Since(start).Seconds()}
	for _, id := range head.Queue.Damaged {
		done.Damaged = append(done.Damaged, string(id))
	}
	if head.Track != nil {
		done.Facts = head.Track.Facts
	}
	return done, nil
}

// emptyDir makes dir, or takes it when it is empty.
func emptyDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	names, err := os.ReadDir(dir)
	if err == nil && len(names) > 0 {
		err = fmt.Errorf("%s is not empty", dir)
	}
	return err
}

// copyKeys copies the keys that are in from, which persistentKey made.
func copyKeys(from, to string) ([]string, error) {
	names, err := filepath.Glob(filepath.Join(from, "*.key"))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return nil, err
	}
	keys := []string{}
	for _, name := range names {
		b, err := os.ReadFile(name) //nolint:gosec // below our own data folder
		if err == nil {
			err = os.WriteFile(filepath.Join(to, filepath.Base(name)), b, 0o600) //nolint:gosec // a base name, where the administrator says
		}
		if err != nil {
			return nil, err
		}
		keys = append(keys, filepath.Base(name))
	}
	return keys, nil
}

func writeBackupHead(dir string, head *backupHead) error {
	b, err := json.MarshalIndent(head, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, backupFile+".tmp")
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) //nolint:gosec // where the administrator says
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, backupFile)); err != nil {
		return err
	}
	d, err := os.Open(dir) //nolint:gosec // where the administrator says
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Restored says what Restore made.
type Restored struct {
	Made     time.Time `json:"made"` // when the backup was made
	Hostname string    `json:"hostname"`
	Messages int       `json:"messages"`
	Bytes    int64     `json:"bytes"`
	Missing  []string  `json:"missing,omitempty"` // queue IDs without a content: it was damaged before the backup
	Facts    int64     `json:"facts"`
}

// Restore makes a data folder of the backup in from. The folder must be new or
// empty: nothing is ever overwritten.
func Restore(ctx context.Context, from, dataDir string) (_ *Restored, err error) {
	b, err := os.ReadFile(filepath.Join(from, backupFile)) //nolint:gosec // where the administrator says
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s is not a whole backup: it has no %s", from, backupFile)
	}
	if err != nil {
		return nil, err
	}
	var head backupHead
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(from, backupFile), err)
	}
	if head.Format != backupFormat || head.Queue == nil {
		return nil, fmt.Errorf("%s has format %d, this program knows format %d", from, head.Format, backupFormat)
	}
	if err := emptyDir(dataDir); err != nil {
		return nil, fmt.Errorf("%w; a backup is restored into a new data directory: move the old one aside", err)
	}
	defer func() {
		if err != nil { // nobody should start with half of it
			for _, name := range []string{queueDir, trackDir} {
				err = errors.Join(err, os.RemoveAll(filepath.Join(dataDir, name)))
			}
		}
	}()
	if head.Track != nil {
		if err := logtrack.Restore(ctx, filepath.Join(from, trackDir), filepath.Join(dataDir, trackDir), head.Track); err != nil {
			return nil, err
		}
	}
	if _, err := copyKeys(filepath.Join(from, keysDir), dataDir); err != nil {
		return nil, err
	}
	q, err := queue.Restore(ctx, filepath.Join(from, queueDir), filepath.Join(dataDir, queueDir), head.Queue)
	if err != nil {
		return nil, err
	}
	done := &Restored{Made: head.Made, Hostname: head.Hostname, Messages: q.Messages, Bytes: q.Bytes}
	for _, id := range q.Missing {
		done.Missing = append(done.Missing, string(id))
	}
	if head.Track != nil {
		done.Facts = head.Track.Facts
	}
	return done, nil
}
