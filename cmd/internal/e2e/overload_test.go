//go:build e2e

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"waybill/cmd/internal/peers"
	"waybill/relay/relaytest"
)

// raise lets this process and those that it starts have as many files as the
// system allows, and returns how many.
func raise(t *testing.T) int {
	t.Helper()
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		t.Fatal(err)
	}
	r.Cur = r.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		t.Fatal(err)
	}
	return int(min(r.Cur, 1<<20))
}

// open connects n times and says each of lines after the reply to the one before.
// It returns the connections, and the replies of those that were refused.
func open(port, n int, lines ...string) (conns []net.Conn, refused []string) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	const openers = 32
	for i := range openers {
		wg.Go(func() {
			for range (n + openers - 1 - i) / openers {
				c, err := talk(port, lines)
				mu.Lock()
				if err != nil {
					refused = append(refused, err.Error())
				} else {
					conns = append(conns, c)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return conns, refused
}

func talk(port int, lines []string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Minute)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	br := bufio.NewReaderSize(c, 1024)
	reply := func() error {
		for {
			line, err := br.ReadString('\n')
			switch {
			case err != nil:
				return err
			case len(line) < 4 || line[0] >= '4':
				return errors.New(strings.TrimSpace(line))
			case line[3] == ' ':
				return nil
			}
		}
	}
	if err = reply(); err == nil {
		for _, line := range lines {
			if _, err = fmt.Fprint(c, line+"\r\n"); err == nil {
				err = reply()
			}
			if err != nil {
				break
			}
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	_ = c.SetDeadline(time.Time{})
	return c, nil
}

// TestTenThousandIdle keeps 10,000 sessions open that say nothing, and 1,000 that
// send their content an octet a second: memory stays in bounds, and senders get
// through as if nobody was there.
func TestTenThousandIdle(t *testing.T) {
	idle, slow := 10_000, 1000
	if files := raise(t); files < 15_000 { // a small machine: fewer of each, in proportion
		idle, slow = files/2, files/20
		t.Logf("%d files: %d idle sessions and %d slow ones", files, idle, slow)
	}
	in := port(t)
	host := relaytest.NewSmartHost(t)
	d := start(t, strings.Replace(relayConf(in, int(host.Port())), "{connections: 1000, connections_per_source: 1000}", "{connections: 20000, connections_per_source: 20000}", 1))

	conns, refused := open(in, idle, "EHLO idle.test")
	if len(refused) > 0 {
		t.Fatalf("%d idle sessions were refused: %s", len(refused), refused[0])
	}
	writers, refused := open(in, slow, "EHLO slow.test", "MAIL FROM:<a@slow.test>", "RCPT TO:<slow@dest.test>", "DATA")
	if len(refused) > 0 {
		t.Fatalf("%d slow sessions were refused: %s", len(refused), refused[0])
	}
	defer func() {
		for _, c := range append(conns, writers...) {
			c.Close()
		}
	}()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				for _, c := range writers {
					_, _ = c.Write([]byte("x"))
				}
			}
		}
	}()
	defer func() { close(stop); <-done }()

	var slowest time.Duration
	var to []string
	for i := range 50 {
		rcpt := fmt.Sprintf("u%d@dest.test", i)
		to = append(to, rcpt)
		began := time.Now()
		s := dial(t, in)
		s.send("a@source.test", rcpt, hello)
		s.cmd(221, "QUIT")
		slowest = max(slowest, time.Since(began))
	}
	wantOnce(t, host, to...)
	if slowest > 30*time.Second {
		t.Errorf("a sender took %s beside them", slowest)
	}
	rss, err := peers.RSS(d.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d idle and %d slow sessions: RSS %d MiB; the slowest of 50 senders took %s", len(conns), len(writers), rss>>20, slowest.Round(time.Millisecond))
	if rss > 512<<20 {
		t.Errorf("%d MiB, want 512 at most", rss>>20)
	}
	if got := d.metrics().sum("waybill_connections", `direction="inbound"`); int(got) < idle+slow {
		t.Errorf("%v sessions are open, want %d", got, idle+slow)
	}
}

// TestIdleFlood takes all connections that a connector may have: new senders get
// in all the same, since those that say nothing have to go.
func TestIdleFlood(t *testing.T) {
	t.Parallel()
	in := port(t)
	host := relaytest.NewSmartHost(t)
	d := start(t, strings.Replace(relayConf(in, int(host.Port())), "{connections: 1000, connections_per_source: 1000}", "{connections: 200, connections_per_source: 200}", 1))
	conns, refused := open(in, 300, "EHLO flood.test")
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	if len(conns) != 200 || !strings.HasPrefix(refused[0], "421 4.7.0 too many connections") {
		t.Fatalf("%d sessions, want 200; refused with %q", len(conns), refused)
	}
	var c net.Conn
	eventually(t, time.Minute, "a sender to get in", func() (err error) {
		c, err = talk(in, []string{"EHLO sender.test", "MAIL FROM:<a@source.test>", "RCPT TO:<b@dest.test>", "DATA", hello + "."})
		return err
	})
	c.Close()
	wantOnce(t, host, "b@dest.test")
	m := d.metrics()
	if m.sum("waybill_throttle_actions_total", `action="close"`) < 1 || m.sum("waybill_connections_total", `result="limit_total"`) < 100 {
		t.Error("the metrics do not show it")
	}
}

// TestFewFiles runs with 256 file descriptors, and asks for 400 connections: some
// are turned away, those that are in go on, and mail is delivered.
func TestFewFiles(t *testing.T) {
	t.Parallel()
	in := port(t)
	host := relaytest.NewSmartHost(t)
	d := start(t, relayConf(in, int(host.Port())))
	d.stop()
	d.bootWith("ulimit -n 256")
	d.ready()
	before := dial(t, in)
	conns, refused := open(in, 400, "EHLO many.test")
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	if len(conns) == 0 || len(refused) < 200 || !strings.HasPrefix(refused[0], "421 ") {
		t.Fatalf("%d sessions and %d refusals (%q), want some of each", len(conns), len(refused), refused[0])
	}
	before.send("a@source.test", "b@dest.test", hello)
	wantOnce(t, host, "b@dest.test")
	d.answers("/-/ready", 200)
	for _, c := range conns {
		c.Close()
	}
	eventually(t, time.Minute, "connections to be taken again", func() error {
		c, err := talk(in, []string{"EHLO again.test"})
		if err == nil {
			c.Close()
		}
		return err
	})
	out, err := os.ReadFile(filepath.Join(d.dir, "waybill.log"))
	if err != nil || !strings.Contains(string(out), "file descriptors allow fewer connections") {
		t.Errorf("the log does not warn: %v", err)
	}
}

// bootWith starts the process from a shell, after a command.
func (d *daemon) bootWith(command string) {
	d.t.Helper()
	out, err := os.OpenFile(filepath.Join(d.dir, "stderr"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer out.Close() // the process has its own
	cmd := exec.Command("/bin/sh", "-c", command+` && exec "$0" serve --config "$1"`, binary(d.t), d.conf)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	done := make(chan struct{})
	d.cmd, d.done = cmd, done
	go func() {
		d.err = cmd.Wait()
		close(done)
	}()
}
