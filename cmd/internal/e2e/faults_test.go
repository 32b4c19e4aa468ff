//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
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

// mount mounts a file system on a new folder until the test ends.
func mount(t *testing.T, options string) string {
	t.Helper()
	dir := shared(t)
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", options, "tmpfs", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount needs to be root, with the right to mount: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	return dir
}

// send1 sends a message and returns the last reply.
func send1(t *testing.T, port int, size int) string {
	t.Helper()
	return sendTo(t, port, "b@sink.test", size)
}

// sendTo is send1 to a recipient.
func sendTo(t *testing.T, port int, to string, size int) string {
	t.Helper()
	c, err := dialSMTP(port)
	if err != nil {
		return err.Error()
	}
	defer c.close()
	for _, line := range []string{"EHLO fault.test", "MAIL FROM:<a@fault.test>", "RCPT TO:<" + to + ">", "DATA"} {
		if r := c.say(line); r == "" || r[0] > '3' {
			return r
		}
	}
	return c.say("Subject: x\r\n\r\n" + strings.Repeat(strings.Repeat("x", 76)+"\r\n", size/78+1) + ".")
}

// plainSMTP is a client that says what it is told to.
type plainSMTP struct {
	conn net.Conn
	r    *bufio.Reader
}

// dialSMTP connects and reads the banner.
func dialSMTP(port int) (*plainSMTP, error) {
	conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 10*time.Second)
	if err != nil {
		return nil, err
	}
	c := &plainSMTP{conn, bufio.NewReader(conn)}
	if r := c.reply(); !strings.HasPrefix(r, "220") {
		c.close()
		return nil, fmt.Errorf("the banner is %q", r)
	}
	return c, nil
}

// reply is the last line of the next reply, or empty when the connection ends.
func (c *plainSMTP) reply() string {
	_ = c.conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	for {
		line, err := c.r.ReadString('\n')
		if err != nil || len(line) < 4 || line[3] == ' ' {
			return strings.TrimSpace(line)
		}
	}
}

func (c *plainSMTP) say(line string) string {
	if _, err := c.conn.Write([]byte(line + "\r\n")); err != nil {
		return ""
	}
	return c.reply()
}

func (c *plainSMTP) close() { _ = c.conn.Close() }

// TestFaultDiskFull fills the file system that the daemon's data is on: it stops
// taking mail with 452 before anything breaks, goes on delivering, and takes mail
// again once there is room.
func TestFaultDiskFull(t *testing.T) {
	t.Parallel()
	data := mount(t, "size=800m")
	sink, err := relaytest.StartSmartHost("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	in := port(t)
	conf := strings.Replace(relayConf(in, int(sink.Port())), "DIR/data", data+"/data", 1)
	d := start(t, strings.Replace(conf, "disk_free_min: 16MiB", "disk_free_min: 128MiB", 1))
	acked := 0
	filler := filepath.Join(data, "filler")
	fill := func(mib int) error {
		f, err := os.OpenFile(filler, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		part := make([]byte, 1<<20)
		for range mib {
			if _, err := f.Write(part); err != nil {
				return nil //nolint:nilerr // it is full
			}
		}
		return nil
	}
	// Below the mark, and no further before the relay has looked.
	var fs syscall.Statfs_t
	if err := syscall.Statfs(data, &fs); err != nil {
		t.Fatal(err)
	}
	if err := fill(int(fs.Bavail*uint64(fs.Bsize)>>20) - 100); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, "452", func() error {
		r := send1(t, in, 1000)
		if strings.HasPrefix(r, "250") {
			acked++
		}
		if !strings.HasPrefix(r, "452") {
			return fmt.Errorf("the reply is %q", r)
		}
		return nil
	})
	for range 10 { // to the last octet
		if err := fill(100); err != nil {
			t.Fatal(err)
		}
	}
	d.answers("/-/ready", http.StatusServiceUnavailable)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	d.answers("/-/ready", http.StatusOK)
	if r := send1(t, in, 1000); !strings.HasPrefix(r, "250") {
		t.Errorf("after: %q", r)
	}
	d.empty(time.Minute)
	d.reconcile(acked + 1)
}

// TestFaultReadOnly starts the daemon on a file system that has become read-only,
// as a kernel makes it after an error of the disk: it refuses and says why, and
// after the repair everything that was acknowledged is there.
func TestFaultReadOnly(t *testing.T) {
	t.Parallel()
	data := mount(t, "size=1500m")
	sink, err := relaytest.StartSmartHost("127.0.0.1:0", relaytest.WithBehaviour(func(phase, _ string) (string, time.Duration, bool) {
		if phase == relaytest.PhaseRcpt {
			return "451 4.3.0 later", 0, false
		}
		return "", 0, false
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	in := port(t)
	d := start(t, strings.Replace(relayConf(in, int(sink.Port())), "DIR/data", data+"/data", 1))
	acked := 0
	for range 20 {
		if r := send1(t, in, 1000); strings.HasPrefix(r, "250") {
			acked++
		}
	}
	remount := func(how string) {
		t.Helper()
		if out, err := exec.Command("mount", "-o", "remount,"+how, data).CombinedOutput(); err != nil {
			t.Fatalf("remount: %v\n%s", err, out)
		}
	}
	// The kernel refuses to remount while files are open for writing, so the daemon
	// is stopped, and started on it.
	d.stop()
	remount("ro")
	d.boot()
	select {
	case <-d.done:
	case <-time.After(time.Minute):
		t.Fatal("the daemon runs on a read-only file system")
	}
	if said := d.said(); d.err == nil || !strings.Contains(said, "read-only file system") || strings.Contains(said, "panic") {
		t.Errorf("it ended with %v and said %q, want that the file system is read-only", d.err, said)
	}
	d.cmd = nil
	remount("rw")
	d.boot()
	d.ready()
	q, err := d.api.Queues(t.Context())
	if err != nil || q.Messages != acked || acked == 0 {
		t.Errorf("%+v, %v are queued, want the %d that were acknowledged", q, err, acked)
	}
}

// said is what the daemon wrote to its standard error.
func (d *daemon) said() string {
	b, _ := os.ReadFile(filepath.Join(d.dir, "stderr"))
	return string(b)
}

// TestFaultSync has the disk's syncs fail, by a tracer that answers in the
// kernel's place: the queue stops with 4xx until it is started again, no sync is
// tried a second time, and what was acknowledged before is there.
func TestFaultSync(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, inject string }{
		{"fdatasync of contents", "fdatasync:error=EIO:when=5+"},
		{"msync of the database", "msync:error=EIO:when=8+"},
	} {
		t.Run(test.name, func(t *testing.T) {
			sink, err := relaytest.StartSmartHost("127.0.0.1:0", relaytest.WithBehaviour(func(phase, _ string) (string, time.Duration, bool) {
				if phase == relaytest.PhaseRcpt {
					return "451 4.3.0 later", 0, false
				}
				return "", 0, false
			}))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = sink.Close() })
			in := port(t)
			d := prepare(t, strings.Replace(relayConf(in, int(sink.Port())), "queue:", "tracking: {engine: off}\nqueue:", 1))
			call, _, _ := strings.Cut(test.inject, ":")
			d.boot("/usr/bin/strace", "-f", "-qq", "-e", "signal=none", "-o", filepath.Join(d.dir, "trace"), "-e", "trace="+call, "-e", "inject="+test.inject)
			d.ready()
			acked, refused := 0, ""
			eventually(t, 2*time.Minute, "a refusal", func() error {
				r := send1(t, in, 1000)
				if strings.HasPrefix(r, "250") {
					acked++
					return errors.New("it was acknowledged")
				}
				refused = r
				return nil
			})
			if !strings.HasPrefix(refused, "4") {
				t.Errorf("refused with %q, want 4xx", refused)
			}
			for range 3 {
				if r := send1(t, in, 1000); !strings.HasPrefix(r, "4") {
					t.Errorf("after the failure: %q, want 4xx until the next start", r)
				}
			}
			d.answers("/-/ready", http.StatusServiceUnavailable)
			d.killTree()
			trace, err := os.ReadFile(filepath.Join(d.dir, "trace"))
			if err != nil {
				t.Fatal(err)
			}
			if failed := bytes.Count(trace, []byte("INJECTED")); failed == 0 {
				t.Error("nothing was injected")
			} else {
				t.Logf("%d messages acknowledged, then %d failed syncs", acked, failed)
			}
			d.boot()
			d.ready()
			q, err := d.api.Queues(t.Context())
			if err != nil || q.Messages < acked {
				t.Errorf("%+v, %v are queued, want at least the %d that were acknowledged", q, err, acked)
			}
		})
	}
}

// TestFaultDamage flips bits in the database of a killed daemon: it refuses to
// start, says what to do, and that works. Then everything is there.
func TestFaultDamage(t *testing.T) {
	t.Parallel()
	in := port(t)
	d := start(t, relayConf(in, 1)) // nobody listens there: all stays queued
	acked := 0
	for range 50 {
		if r := send1(t, in, 2000); strings.HasPrefix(r, "250") {
			acked++
		}
	}
	saved := filepath.Join(shared(t), "backup")
	if out, err := d.waybill("backup", saved); err != nil {
		t.Fatalf("waybill backup: %v\n%s", err, out)
	}
	d.kill()
	logs, err := filepath.Glob(filepath.Join(d.dir, "data", "queue", "badger", "*.mem"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("%v, %v: no log of the database", logs, err)
	}
	f, err := os.OpenFile(logs[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err = f.ReadAt(b, 3000); err == nil {
		_, err = f.WriteAt([]byte{b[0] ^ 0x10}, 3000)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	d.boot()
	select {
	case <-d.done:
	case <-time.After(time.Minute):
		t.Fatal("the daemon runs on a damaged database")
	}
	d.cmd = nil
	said := d.said()
	if d.err == nil || !strings.Contains(said, "waybill queue rescue --data-dir "+d.dir+"/data") || strings.Contains(said, "goroutine") {
		t.Errorf("it ended with %v and said %q, want what to do", d.err, said)
	}
	rescued := filepath.Join(shared(t), "saved")
	out, err := d.waybill("queue", "rescue", "--data-dir", filepath.Join(d.dir, "data"), "--to", rescued, "--queue")
	t.Logf("waybill queue rescue: %v\n%s", err, out)
	eml, err := filepath.Glob(filepath.Join(rescued, "messages", "*.eml"))
	if err != nil || len(eml) < acked-2 {
		t.Errorf("%d messages rescued, %v, want all %d but those of the damaged transaction", len(eml), err, acked)
	}
	data := filepath.Join(d.dir, "data")
	for _, move := range [][2]string{{data + "/queue", data + "/queue.damaged"}, {rescued + "/queue", data + "/queue"}} {
		if out, err := exec.Command("mv", move[0], move[1]).CombinedOutput(); err != nil {
			t.Fatalf("mv: %v\n%s", err, out)
		}
	}
	d.boot()
	d.ready()
	if q, err := d.api.Queues(t.Context()); err != nil || q.Messages != len(eml) {
		t.Errorf("%+v, %v are queued, want the %d rescued", q, err, len(eml))
	}
	d.stop()

	if out, err := d.waybill("restore", saved, "--data-dir", data); err == nil || !strings.Contains(out, "not empty") {
		t.Errorf("restore over a data directory: %v\n%s", err, out)
	}
	if err := os.Rename(data, data+".old"); err != nil {
		t.Fatal(err)
	}
	if out, err := d.waybill("restore", saved, "--config", d.conf); err != nil {
		t.Fatalf("waybill restore: %v\n%s", err, out)
	}
	d.boot()
	d.ready()
	if q, err := d.api.Queues(t.Context()); err != nil || q.Messages != acked {
		t.Errorf("%+v, %v are queued, want all %d of the backup", q, err, acked)
	}
	n := 0
	for _, f := range d.tales() {
		n += f.queued
	}
	if n != acked {
		t.Errorf("tracking knows %d messages, want the %d of the backup", n, acked)
	}
}

// killTree ends the daemon and whoever runs it.
func (d *daemon) killTree() {
	d.t.Helper()
	if err := syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL); err != nil {
		d.t.Error(err)
	}
	<-d.done
	d.cmd = nil
}
