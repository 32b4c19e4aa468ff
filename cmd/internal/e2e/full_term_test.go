//go:build e2e

package e2e

import (
	"context"
	"fmt"
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

// TestFaultTermOnFullDisk ends the daemon while somebody has taken all that is
// left of the disk, clients send, and next hops defer, accept and think: it ends
// within the time that service managers grant, by itself, and after the next
// start everything that was acknowledged arrives.
func TestFaultTermOnFullDisk(t *testing.T) {
	t.Parallel()
	data := mount(t, "size=1200m")
	var deferring atomic.Bool
	deferring.Store(true)
	sink, err := relaytest.StartSmartHost("127.0.0.1:0", relaytest.WithKeep(1<<20), relaytest.WithBehaviour(func(phase, arg string) (string, time.Duration, bool) {
		switch {
		case phase == relaytest.PhaseRcpt && strings.Contains(arg, "later") && deferring.Load():
			return "451 4.3.0 later", 0, false
		case phase == relaytest.PhaseDot: // some are on their way whenever it ends
			return "", 50 * time.Millisecond, false
		}
		return "", 0, false
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	in := port(t)
	conf := strings.Replace(relayConf(in, int(sink.Port())), "DIR/data", data+"/data", 1)
	d := start(t, strings.Replace(conf, "disk_free_min: 16MiB", "disk_free_min: 256MiB", 1))

	ctx, stop := context.WithCancel(t.Context())
	var mu sync.Mutex
	acked := map[string]bool{}
	var n, refused atomic.Int64
	var senders sync.WaitGroup
	for range 10 {
		senders.Go(func() {
			for ctx.Err() == nil {
				i := n.Add(1)
				to := fmt.Sprintf("%s%d@sink.test", []string{"now", "later"}[i%2], i)
				r := sendTo(t, in, to, 20_000)
				switch {
				case strings.HasPrefix(r, "250"):
					mu.Lock()
					acked[to] = true
					mu.Unlock()
					continue
				case strings.HasPrefix(r, "452"):
					refused.Add(1)
				}
				<-time.After(5 * time.Millisecond)
			}
		})
	}
	defer senders.Wait()
	defer stop()
	wait := func(what string, ok func() bool) {
		t.Helper()
		eventually(t, time.Minute, what, func() error {
			select {
			case <-d.done:
				t.Fatalf("the daemon has ended: %v", d.err)
			default:
			}
			if !ok() {
				return fmt.Errorf("%d refused so far", refused.Load())
			}
			return nil
		})
	}
	wait("mail to be taken", func() bool { mu.Lock(); defer mu.Unlock(); return len(acked) > 1000 })
	filler := filepath.Join(data, "filler")
	if err := takeAll(data, filler); err != nil {
		t.Fatal(err)
	}
	wait("mail to be refused", func() bool { return refused.Load() > 50 })
	began := time.Now()
	d.signal(syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(40 * time.Second):
		t.Fatal("the daemon goes on 40 s after the signal")
	}
	took := time.Since(began).Round(time.Millisecond)
	stop()
	senders.Wait()
	// It may say that the tracking store could not put everything in its place.
	if said := d.said(); d.err != nil && (d.err.Error() != "exit status 1" || !strings.Contains(said, "disk full")) || strings.Contains(said, "panic") {
		t.Errorf("it ended with %v and said %q", d.err, said)
	}
	d.cmd = nil

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	deferring.Store(false)
	d.boot()
	d.ready()
	d.empty(time.Minute)
	arrived := map[string]int{}
	for _, m := range sink.Messages() {
		for _, r := range m.Envelope.Recipients {
			arrived[r.Address.String()]++
		}
	}
	lost, twice := 0, 0
	for to := range acked {
		switch arrived[to] {
		case 0:
			lost++
		case 1:
		default:
			twice++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d messages that were acknowledged did not arrive", lost, len(acked))
	}
	if total, _, _ := sink.Connections(); twice > total {
		t.Errorf("%d messages arrived twice, over %d connections: at most the one on its way in each may", twice, total)
	}
	told := 0
	for id, f := range d.tales() {
		if f.queued != 1 || f.retired != 1 {
			t.Errorf("tracking has %s queued %d times and retired %d times, want once each", id, f.queued, f.retired)
		}
		told++
	}
	if told < len(acked) {
		t.Errorf("tracking knows %d messages, want the %d that were acknowledged", told, len(acked))
	}
	t.Logf("%d messages acknowledged, %d refused; it ended after %s; %d arrived twice", len(acked), refused.Load(), took, twice)
}
