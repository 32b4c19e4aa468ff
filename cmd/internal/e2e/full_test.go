//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"waybill/relay/relaytest"
)

// TestFaultDiskFilledAtOnce has somebody take all that is left of the disk in one
// call, again and again, while mail comes and goes: the daemon stays, answers 452,
// and goes on when there is room again. Nothing that it took is lost.
func TestFaultDiskFilledAtOnce(t *testing.T) {
	data := mount(t, "size=1200m")
	sink, err := relaytest.StartSmartHost("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	in := port(t)
	conf := strings.Replace(relayConf(in, int(sink.Port())), "DIR/data", data+"/data", 1)
	d := start(t, strings.Replace(conf, "disk_free_min: 16MiB", "disk_free_min: 256MiB", 1))

	ctx, stop := context.WithCancel(t.Context())
	var acked, refused atomic.Int64
	var senders sync.WaitGroup
	for range 10 {
		senders.Go(func() {
			for ctx.Err() == nil {
				switch r := send1(t, in, 20_000); {
				case strings.HasPrefix(r, "250"):
					acked.Add(1)
				case strings.HasPrefix(r, "452"):
					refused.Add(1)
					<-time.After(5 * time.Millisecond)
				default:
					<-time.After(5 * time.Millisecond)
				}
			}
		})
	}
	defer senders.Wait()
	defer stop()
	more := func(what string, n *atomic.Int64, by int64) {
		t.Helper()
		from := n.Load()
		eventually(t, time.Minute, what, func() error {
			select {
			case <-d.done:
				t.Fatalf("the daemon has ended: %v", d.err)
			default:
			}
			if got := n.Load() - from; got < by {
				return fmt.Errorf("%d, want %d", got, by)
			}
			return nil
		})
	}
	filler := filepath.Join(data, "filler")
	for range 8 {
		more("mail to be taken", &acked, 500)
		if err := takeAll(data, filler); err != nil {
			t.Fatal(err)
		}
		more("mail to be refused", &refused, 20)
		d.answers("/-/ready", http.StatusServiceUnavailable)
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		d.answers("/-/ready", http.StatusOK)
	}
	stop()
	senders.Wait()
	d.empty(time.Minute)
	d.reconcile(int(acked.Load()))
	t.Logf("%d messages acknowledged, %d refused, the disk was full 8 times", acked.Load(), refused.Load())
}

// takeAll takes every free octet of the file system of dir into a file, nearly all
// of it in one call.
func takeAll(dir, name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	at := int64(0)
	for range 100 {
		var fs syscall.Statfs_t
		if err := syscall.Statfs(dir, &fs); err != nil {
			return err
		}
		free := int64(fs.Bavail) * fs.Bsize
		if free == 0 {
			return nil
		}
		switch err := syscall.Fallocate(int(f.Fd()), 0, at, free); {
		case err == nil:
			at += free
		case !errors.Is(err, syscall.ENOSPC): // the daemon was faster
			return err
		}
	}
	return nil
}
