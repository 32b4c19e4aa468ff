//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"waybill/relay/relaytest"
)

const hello = "From: <a@source.test>\r\nSubject: hello\r\n\r\nhello\r\n"

// wantOnce wants each of the recipients to have got exactly one message.
func wantOnce(t testing.TB, host *relaytest.SmartHost, recipients ...string) {
	t.Helper()
	if _, err := host.Wait(len(recipients), time.Minute); err != nil {
		t.Error(err)
	}
	got := map[string]int{}
	for _, m := range host.Messages() {
		for _, r := range m.Envelope.Recipients {
			got[r.Address.String()]++
		}
	}
	for _, r := range recipients {
		if got[r] != 1 {
			t.Errorf("%s got %d messages, want 1", r, got[r])
		}
	}
}

// TestTerm ends the daemon while a message is coming in and another is going
// out: both come to their end, strangers are turned away, and what could not
// leave is there after the next start.
func TestTerm(t *testing.T) {
	t.Parallel()
	in := port(t)
	host := relaytest.NewSmartHost(t)
	d := start(t, relayConf(in, int(host.Port())))

	host.Do(relaytest.PhaseDot, relaytest.Action{Times: 1, Delay: 2 * time.Second})
	out := dial(t, in)
	out.send("a@source.test", "outgoing@dest.test", hello)
	eventually(t, time.Minute, "the message to be on its way", func() error {
		if host.Counts()["DATA"] == 0 {
			return fmt.Errorf("commands: %v", host.Counts())
		}
		return nil
	})
	coming := dial(t, in)
	coming.cmd(250, "MAIL FROM:<a@source.test>")
	coming.cmd(250, "RCPT TO:<incoming@dest.test>")
	coming.cmd(354, "DATA")
	coming.raw(hello)

	began := time.Now()
	d.signal(syscall.SIGTERM)
	d.answers("/-/ready", http.StatusServiceUnavailable)
	out.want(421) // it was idle
	coming.raw("the end comes late\r\n")
	coming.cmd(250, ".")
	d.ended()
	t.Logf("ended %s after the signal", time.Since(began).Round(time.Millisecond))

	d.boot()
	d.ready()
	d.empty(time.Minute)
	wantOnce(t, host, "outgoing@dest.test", "incoming@dest.test")
}

// TestTermStuck ends the daemon although a client never ends its message and a
// next hop never answers: within the time that service managers grant, without
// losing the message that hangs.
func TestTermStuck(t *testing.T) {
	t.Parallel()
	in := port(t)
	host := relaytest.NewSmartHost(t)
	host.Do(relaytest.PhaseDot, relaytest.Action{Times: 1, Hang: true})
	d := start(t, relayConf(in, int(host.Port())))
	dial(t, in).send("a@source.test", "stuck@dest.test", hello)
	eventually(t, time.Minute, "the message to hang", func() error {
		if host.Counts()["DATA"] == 0 {
			return fmt.Errorf("commands: %v", host.Counts())
		}
		return nil
	})
	never := dial(t, in)
	never.cmd(250, "MAIL FROM:<a@source.test>")
	never.cmd(250, "RCPT TO:<never@dest.test>")
	never.cmd(354, "DATA")
	never.raw(hello)
	began := time.Now()
	d.stop()
	t.Logf("ended %s after the signal", time.Since(began).Round(time.Millisecond))
	if line, err := never.ReadLine(); err == nil && !strings.HasPrefix(line, "421 ") {
		t.Errorf("the client that never ended was told %q, want 421 or nothing", line)
	}
	d.boot()
	d.ready()
	d.empty(time.Minute)
	wantOnce(t, host, "stuck@dest.test")
}

// TestTermTwice ends the daemon at once, with exit code 1, and loses nothing.
func TestTermTwice(t *testing.T) {
	t.Parallel()
	in := port(t)
	host := relaytest.NewSmartHost(t)
	host.Do(relaytest.PhaseDot, relaytest.Action{Times: 1, Hang: true})
	d := start(t, relayConf(in, int(host.Port())))
	dial(t, in).send("a@source.test", "kept@dest.test", hello)
	eventually(t, time.Minute, "the message to hang", func() error {
		if host.Counts()["DATA"] == 0 {
			return fmt.Errorf("commands: %v", host.Counts())
		}
		return nil
	})
	d.signal(syscall.SIGTERM)
	d.answers("/-/ready", http.StatusServiceUnavailable)
	d.signal(syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(time.Minute):
		t.Fatal("the daemon goes on after a second SIGTERM")
	}
	if d.cmd = nil; d.err == nil || d.err.Error() != "exit status 1" {
		t.Errorf("after a second SIGTERM the daemon ends with %v, want exit status 1", d.err)
	}
	d.boot()
	d.ready()
	d.empty(time.Minute)
	wantOnce(t, host, "kept@dest.test")
}

// TestReload changes the smart host while the daemon runs. A file with a
// mistake changes nothing.
func TestReload(t *testing.T) {
	t.Parallel()
	in := port(t)
	before, after := relaytest.NewSmartHost(t), relaytest.NewSmartHost(t)
	d := start(t, relayConf(in, int(before.Port())))
	s := dial(t, in)
	s.send("a@source.test", "first@dest.test", hello)
	wantOnce(t, before, "first@dest.test")

	mentions := func(what string) {
		t.Helper()
		eventually(t, time.Minute, fmt.Sprintf("the log to mention %q", what), func() error {
			b, err := os.ReadFile(filepath.Join(d.dir, "waybill.log"))
			if err == nil && !strings.Contains(string(b), what) {
				err = fmt.Errorf("it does not")
			}
			return err
		})
	}
	d.change("cost: 10", "price: 10")
	d.signal(syscall.SIGHUP)
	mentions("price")
	s.send("a@source.test", "second@dest.test", hello)
	wantOnce(t, before, "first@dest.test", "second@dest.test")

	before.Do(relaytest.PhaseDot, relaytest.Action{Times: 1, Delay: 3 * time.Second})
	data := before.Counts()["DATA"]
	s.send("a@source.test", "slow@dest.test", hello)
	eventually(t, time.Minute, "the message to be on its way", func() error {
		if before.Counts()["DATA"] == data {
			return fmt.Errorf("commands: %v", before.Counts())
		}
		return nil
	})
	d.change("price: 10", "cost: 10", before.Addr(), after.Addr())
	d.signal(syscall.SIGHUP)
	mentions("configuration reloaded")
	s.send("a@source.test", "third@dest.test", hello) // the session has lived through both
	wantOnce(t, after, "third@dest.test")
	wantOnce(t, before, "first@dest.test", "second@dest.test", "slow@dest.test") // the attempt went on
	d.empty(time.Minute)
	if n, _ := after.Received(); n != 1 {
		t.Errorf("the new smart host got %d messages, want 1", n)
	}
	if got := d.metrics().value("waybill_config_last_reload_successful"); got != 1 {
		t.Errorf("waybill_config_last_reload_successful = %v, want 1", got)
	}
}

// TestReloadUnderLoad swaps two smart hosts again and again while mail flows:
// every message arrives once, at one of them, and none has to wait for it.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	const n, reloads = 1000, 10
	in := port(t)
	hosts := []*relaytest.SmartHost{relaytest.NewSmartHost(t), relaytest.NewSmartHost(t)}
	for _, h := range hosts {
		h.Do(relaytest.PhaseDot, relaytest.Action{Delay: 20 * time.Millisecond}) // so that attempts are always under way
	}
	// With a rate, so that messages that have been claimed wait when the reload comes.
	d := start(t, strings.Replace(relayConf(in, int(hosts[0].Port())), "tls: {level: none}", "tls: {level: none}, limits: {messages_per_minute: 18000}", 1))
	source := exec.Command("/usr/sbin/smtp-source", "-s", "5", "-m", fmt.Sprint(n), "-l", "2000", "-N", "-d", "-f", "load@source.test", "-t", "r@dest.test", fmt.Sprintf("127.0.0.1:%d", in))
	if err := source.Start(); err != nil {
		t.Fatal(err)
	}
	received := func() (total int) {
		for _, h := range hosts {
			m, _ := h.Received()
			total += m
		}
		return total
	}
	for i := range reloads {
		enough := n * (i + 1) / (reloads + 1)
		eventually(t, time.Minute, "load", func() error {
			if got := received(); got < enough {
				return fmt.Errorf("%d messages arrived, want %d", got, enough)
			}
			return nil
		})
		d.change(hosts[i%2].Addr(), hosts[(i+1)%2].Addr())
		d.signal(syscall.SIGHUP)
	}
	if err := source.Wait(); err != nil {
		t.Errorf("smtp-source: %v", err)
	}
	d.empty(time.Minute)
	got := map[string]int{}
	for i, h := range hosts {
		m, _ := h.Received()
		t.Logf("smart host %d got %d messages", i, m)
		if m == 0 {
			t.Errorf("smart host %d got none", i)
		}
		for _, m := range h.Messages() {
			got[m.Envelope.Recipients[0].Address.String()]++
		}
	}
	for to, times := range got {
		if times != 1 {
			t.Errorf("%s arrived %d times", to, times)
		}
	}
	if len(got) != n {
		t.Errorf("%d recipients, want %d", len(got), n)
	}
	d.reconcile(n)
	m := d.metrics()
	if deferred := m.sum("waybill_delivery_attempts_total", `disposition="deferred"`); deferred != 0 {
		t.Errorf("%v attempts were deferred by %d reloads, want none", deferred, reloads)
	}
}

// TestDiskGuard wants more free space than there is: no mail comes in, and mail
// in hand still leaves.
func TestDiskGuard(t *testing.T) {
	t.Parallel()
	in, out := port(t), port(t)
	d := start(t, relayConf(in, out))
	dial(t, in).send("a@source.test", "waiting@dest.test", hello)
	d.stop()

	var fs syscall.Statfs_t
	if err := syscall.Statfs(d.dir, &fs); err != nil {
		t.Fatal(err)
	}
	free := int64(fs.Bavail) * fs.Bsize >> 20
	// Below a quarter of the mark nothing is started, above it nothing is refused.
	d.change("disk_free_min: 16MiB", fmt.Sprintf("disk_free_min: %dMiB", free*3/2))
	host, err := relaytest.StartSmartHost(fmt.Sprintf("127.0.0.1:%d", out))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close() })
	d.boot()
	d.answers("/-/ready", http.StatusServiceUnavailable)
	wantOnce(t, host, "waiting@dest.test")

	s := dial(t, in)
	code, text := 0, ""
	for _, line := range []string{"MAIL FROM:<a@source.test>", "RCPT TO:<refused@dest.test>", "DATA"} {
		if err := s.PrintfLine("%s", line); err != nil {
			t.Fatal(err)
		}
		if code, text, err = s.ReadResponse(0); err != nil || code >= 400 {
			break
		}
	}
	if code != 452 || !strings.HasPrefix(text, "4.3.1 ") {
		t.Errorf("with too little free space the answer is %d %s (%v), want 452 4.3.1", code, text, err)
	}
	d.empty(time.Minute)
	eventually(t, time.Minute, "the metrics to say so", func() error {
		m := d.metrics()
		if accepting, level := m.value("waybill_queue_accepting"), m.sum("waybill_backpressure_level", `resource="disk_space"`); accepting != 0 || level != 2 {
			return fmt.Errorf("waybill_queue_accepting is %v, back-pressure of the disk %v, want 0 and 2", accepting, level)
		}
		return nil
	})
}
