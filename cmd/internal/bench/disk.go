package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// diskTime is how long each figure of the disk is measured.
const diskTime = 3 * time.Second

// room is where appends go: over blocks that were written beforehand, or to the
// end of a file that grows by them, as queues do that have not been as long before.
type room bool

const (
	written room = false
	growing room = true
)

// writtenRoom is how much is written beforehand.
const writtenRoom = 256 << 20

// groupedAppends is how many appends of size octets a second the disk takes from
// so many writers, when one syncs for all that wait: what durable acceptance can
// be at best.
func groupedAppends(dir string, size, writers int, where room) (rate float64, err error) {
	f, err := os.Create(filepath.Join(dir, "appends")) //nolint:gosec // in our own folder
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	zero := make([]byte, 1<<20)
	for n := 0; where == written && n < writtenRoom; n += len(zero) {
		if _, err := f.Write(zero); err != nil {
			return 0, err
		}
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	waiting := make(chan chan error, writers)
	var group sync.WaitGroup
	group.Go(func() {
		one := bytes.Repeat([]byte("waybill\n"), (size+7)/8)[:size]
		var at int64
		for first := range waiting {
			all := []chan error{first}
			for more := true; more; {
				select {
				case w := <-waiting:
					all = append(all, w)
				default:
					more = false
				}
			}
			batch := bytes.Repeat(one, len(all))
			if where == written && at+int64(len(batch)) > writtenRoom {
				at = 0
			}
			_, err := f.WriteAt(batch, at)
			at += int64(len(batch))
			if err == nil {
				err = syscall.Fdatasync(int(f.Fd()))
			}
			for _, w := range all {
				w <- err
			}
		}
	})
	var writing sync.WaitGroup
	counts, errs := make([]int, writers), make([]error, writers)
	began := time.Now()
	for w := range writers {
		writing.Go(func() {
			done := make(chan error, 1)
			for time.Since(began) < diskTime && errs[w] == nil {
				waiting <- done
				if errs[w] = <-done; errs[w] == nil {
					counts[w]++
				}
			}
		})
	}
	writing.Wait()
	took := time.Since(began)
	close(waiting)
	group.Wait()
	total := 0
	for _, n := range counts {
		total += n
	}
	return float64(total) / took.Seconds(), errors.Join(errs...)
}

// writeRate is how many octets a second go into a new file, with a sync at its end.
func writeRate(dir string) (rate float64, err error) {
	f, err := os.Create(filepath.Join(dir, "stream")) //nolint:gosec // in our own folder
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	part := bytes.Repeat([]byte("waybill\n"), 1<<17)
	const most = 1 << 30
	written := 0
	began := time.Now()
	for written < most && time.Since(began) < diskTime {
		if _, err := f.Write(part); err != nil {
			return 0, err
		}
		written += len(part)
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	return float64(written) / time.Since(began).Seconds(), nil
}
