package protolog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
)

const (
	fileMode = 0o640 // the group may read: programs that ship logs
	// stampLayout is the time in the name of a rotated file: waybill-20261122T031324.000123Z.log.
	stampLayout = "20060102T150405.000000Z"
	// gzipLevel compresses lines to an eighth, in a third of the time that the
	// default takes for a tenth.
	gzipLevel = 3
	// rotateRetry is how long a rotation that failed is not tried again.
	rotateRetry = time.Minute
)

// file is a log file that rotates itself. Its methods are called by one
// goroutine at a time, apart from the one that tidies up.
type file struct {
	path     string
	maxSize  int64
	maxAge   time.Duration
	backups  int
	keep     time.Duration
	compress bool

	f        *os.File
	size     int64
	born     time.Time // of its first line
	notUntil time.Time // rotation failed; try no earlier

	tidying sync.Mutex
	wg      sync.WaitGroup
}

func openFile(opts Options) (*file, error) {
	f := &file{
		path: opts.File, maxSize: opts.MaxSize, maxAge: opts.MaxAge,
		backups: opts.Backups, keep: opts.Keep, compress: opts.Compress,
	}
	if err := f.open(); err != nil {
		return nil, err
	}
	f.tidyLater()
	return f, nil
}

// open opens f.path for appending and learns its size and age. A line that a
// crash cut off is ended, so that it spoils only itself.
func (f *file) open() error {
	if dir := filepath.Dir(f.path); dir != "." {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return err
		}
	}
	h, err := os.OpenFile(f.path, os.O_CREATE|os.O_APPEND|os.O_RDWR, fileMode)
	if err != nil {
		return err
	}
	info, err := h.Stat()
	if err != nil {
		return errors.Join(err, h.Close())
	}
	size, born := info.Size(), time.Now()
	if info.Mode().IsRegular() && size > 0 {
		born = firstTime(h, info.ModTime())
		var last [1]byte
		if _, err := h.ReadAt(last[:], size-1); err == nil && last[0] != '\n' {
			n, _ := h.Write([]byte{'\n'}) // a failure shows at the next line
			size += int64(n)
		}
	}
	if f.f != nil {
		_ = f.f.Close() // synced by the caller where it matters
	}
	f.f, f.size, f.born = h, size, born
	return nil
}

// firstTime is the time of the first line of a log, or def when it has none.
func firstTime(r io.ReaderAt, def time.Time) time.Time {
	var head [4096]byte
	n, _ := r.ReadAt(head[:], 0)
	line, _, _ := bytes.Cut(head[:n], []byte{'\n'})
	_, rest, ok := bytes.Cut(line, []byte(`"ts":"`))
	if !ok {
		return def
	}
	stamp, _, _ := bytes.Cut(rest, []byte{'"'})
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil || t.After(def) {
		return def
	}
	return t
}

// Write appends lines, to a new file when they do not fit.
func (f *file) Write(p []byte) (int, error) {
	now := time.Now()
	full := f.maxSize > 0 && f.size+int64(len(p)) > f.maxSize
	old := f.maxAge > 0 && now.Sub(f.born) >= f.maxAge
	if (full || old) && f.size > 0 && !now.Before(f.notUntil) {
		if err := f.rotate(now); err != nil {
			f.notUntil = now.Add(rotateRetry) // go on with the file that we have
		}
	}
	if f.size == 0 {
		f.born = now
	}
	n, err := f.f.Write(p)
	f.size += int64(n)
	return n, err
}

// rotate moves the file away and opens a new one under its name.
func (f *file) rotate(now time.Time) error {
	if err := f.f.Sync(); err != nil {
		return err
	}
	moved := f.rotatedName(now)
	for n := 0; ; n++ {
		_, err := os.Lstat(moved)
		_, errGz := os.Lstat(moved + ".gz")
		if errors.Is(err, os.ErrNotExist) && errors.Is(errGz, os.ErrNotExist) {
			break
		}
		if n == 1000 {
			return fmt.Errorf("rotate %s: no free name", f.path)
		}
		now = now.Add(time.Microsecond)
		moved = f.rotatedName(now)
	}
	if err := os.Rename(f.path, moved); err != nil {
		return err
	}
	if err := f.open(); err != nil {
		return errors.Join(err, os.Rename(moved, f.path))
	}
	f.tidyLater()
	return nil
}

func (f *file) rotatedName(t time.Time) string {
	ext := filepath.Ext(f.path)
	return strings.TrimSuffix(f.path, ext) + "-" + t.UTC().Format(stampLayout) + ext
}

// Reopen opens the file again by its name.
func (f *file) Reopen() error {
	if err := f.f.Sync(); err != nil {
		return err
	}
	return f.open()
}

// Sync brings the file to stable storage.
func (f *file) Sync() error { return ignoreUnsyncable(f.f.Sync()) }

// Close closes the file and waits for the tidying to end.
func (f *file) Close() error {
	f.wg.Wait()
	return f.f.Close()
}

// tidyLater compresses and removes rotated files, aside.
func (f *file) tidyLater() {
	f.wg.Go(func() {
		f.tidying.Lock()
		defer f.tidying.Unlock()
		_ = f.tidy(time.Now()) // tried again at the next rotation
	})
}

// tidy removes the rotated files that are too many or too old, and compresses
// the others.
func (f *file) tidy(now time.Time) error {
	names, stamps, err := f.rotated()
	if err != nil {
		return err
	}
	var errs []error
	for i, name := range names { // newest first
		tooMany := f.backups > 0 && i >= f.backups
		tooOld := f.keep > 0 && now.Sub(stamps[i]) > f.keep
		switch {
		case tooMany || tooOld:
			errs = append(errs, os.Remove(name))
		case f.compress && !strings.HasSuffix(name, ".gz"):
			errs = append(errs, compressFile(name))
		}
	}
	return errors.Join(errs...)
}

// rotated lists the rotated files, newest first. Only names that rotation
// gives count: nobody else's file is touched.
func (f *file) rotated() (names []string, stamps []time.Time, err error) {
	dir := filepath.Dir(f.path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	ext := filepath.Ext(f.path)
	prefix := strings.TrimSuffix(filepath.Base(f.path), ext) + "-"
	for _, e := range slices.Backward(entries) { // names sort by time
		name, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok || !e.Type().IsRegular() {
			continue
		}
		name, ok = strings.CutSuffix(strings.TrimSuffix(name, ".gz"), ext)
		stamp, err := time.Parse(stampLayout, name)
		if !ok || err != nil {
			continue
		}
		names = append(names, filepath.Join(dir, e.Name()))
		stamps = append(stamps, stamp)
	}
	return names, stamps, nil
}

// compressFile replaces name by name.gz.
func compressFile(name string) (err error) {
	in, err := os.Open(name) //nolint:gosec // G304: a file that we made
	if err != nil {
		return err
	}
	defer in.Close()
	tmp := name + ".gz.tmp"
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, fileMode) //nolint:gosec // G302, G304: as the log itself
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp)
		}
	}()
	z, err := gzip.NewWriterLevel(out, gzipLevel)
	if err != nil {
		return errors.Join(err, out.Close())
	}
	if _, err = io.Copy(z, in); err == nil {
		err = z.Close()
	}
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	if err = os.Rename(tmp, name+".gz"); err != nil {
		return err
	}
	return os.Remove(name)
}

// ignoreUnsyncable drops the error of syncing a pipe or a device, which cannot.
func ignoreUnsyncable(err error) error {
	var perr *os.PathError
	if errors.As(err, &perr) && unsyncable(perr.Err) {
		return nil
	}
	return err
}
