//go:build e2e

// Package e2e runs the built program against real peers: Postfix and its load
// tools, swaks, curl, Prometheus, and the signal that nobody can catch.
package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"waybill/cmd/internal/peers"
	"waybill/logtrack/trackapi"
)

// binary is the program under test: as make builds it, or another build that
// WAYBILL_E2E_BINARY names, such as one with the race detector.
func binary(t testing.TB) string {
	t.Helper()
	path := os.Getenv("WAYBILL_E2E_BINARY")
	if path == "" {
		path = filepath.Join("..", "..", "..", "bin", "waybill")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run make build first", err)
	}
	return path
}

// daemon is one waybill serve.
type daemon struct {
	t    testing.TB
	dir  string
	conf string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	err  error         // how it ended, once done is closed
	api  *trackapi.Client
}

// start writes the configuration and starts the daemon, until the test ends.
// DIR and HTTPPORT in it become the daemon's folder and a free port.
func start(t testing.TB, conf string) *daemon {
	t.Helper()
	d := prepare(t, conf)
	d.boot()
	d.ready()
	return d
}

// prepare is start without the start. The disk of a machine that runs tests may be
// as slow as it is: it is no reason to refuse mail, but for who says so.
func prepare(t testing.TB, conf string) *daemon {
	t.Helper()
	if !strings.Contains(conf, "back_pressure:") {
		conf = strings.TrimRight(conf, "\n") + "\nback_pressure: {disk_latency: {medium: 0s, high: 0s}}\n"
	}
	d := &daemon{t: t, dir: shared(t)}
	httpPort := port(t)
	d.api = &trackapi.Client{BaseURL: fmt.Sprintf("http://127.0.0.1:%d", httpPort), HTTP: &http.Client{Timeout: time.Minute}}
	d.conf = filepath.Join(d.dir, "waybill.yaml")
	write(t, d.conf, strings.NewReplacer("DIR", d.dir, "HTTPPORT", fmt.Sprint(httpPort)).Replace(conf))
	t.Cleanup(func() {
		if d.cmd != nil {
			d.stop()
		}
		if t.Failed() {
			d.tail()
		}
	})
	return d
}

// change replaces words in the configuration file.
func (d *daemon) change(pairs ...string) {
	d.t.Helper()
	b, err := os.ReadFile(d.conf)
	if err != nil {
		d.t.Fatal(err)
	}
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(string(b), pairs[i]) {
			d.t.Fatalf("the configuration has no %q:\n%s", pairs[i], b)
		}
	}
	write(d.t, d.conf, strings.NewReplacer(pairs...).Replace(string(b)))
}

// boot starts the process, or the one that runs it, in a process group of its own.
func (d *daemon) boot(runner ...string) {
	d.t.Helper()
	out, err := os.OpenFile(filepath.Join(d.dir, "stderr"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer out.Close() // the process has its own
	args := append(runner, binary(d.t), "serve", "--config", d.conf)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
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

// ready waits until the daemon takes mail.
func (d *daemon) ready() {
	d.t.Helper()
	d.answers("/-/ready", http.StatusOK)
}

// answers waits until a GET of path is answered with that status.
func (d *daemon) answers(path string, status int) {
	d.t.Helper()
	eventually(d.t, time.Minute, fmt.Sprintf("%s to answer %d", path, status), func() error {
		select {
		case <-d.done:
			d.t.Fatalf("the daemon has ended: %v", d.err)
		default:
		}
		resp, err := http.Get(d.api.BaseURL + path)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != status {
			return fmt.Errorf("it answers %s", resp.Status)
		}
		return nil
	})
}

// stop ends the daemon as an operator does, and wants exit code 0 within the
// time that service managers grant.
func (d *daemon) stop() {
	d.t.Helper()
	d.signal(syscall.SIGTERM)
	d.ended()
}

func (d *daemon) signal(s os.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		d.t.Error(err)
	}
}

// ended waits for the end that a signal asked for.
func (d *daemon) ended() {
	d.t.Helper()
	select {
	case <-d.done:
	case <-time.After(2 * time.Minute):
		d.t.Error("waybill serve goes on 2 minutes after the signal")
		d.kill()
		return
	}
	d.cmd = nil
	if d.err != nil {
		d.t.Errorf("waybill serve ended with %v, want exit code 0", d.err)
	}
}

// kill ends it with the signal that cannot be caught.
func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	<-d.done
	d.cmd = nil
}

func (d *daemon) tail() {
	for _, name := range []string{"stderr", "waybill.log"} {
		b, err := os.ReadFile(filepath.Join(d.dir, name))
		if err == nil {
			d.t.Logf("%s ends with:\n%s", name, b[max(0, len(b)-4000):])
		}
	}
}

// waybill runs the command line against the daemon.
func (d *daemon) waybill(args ...string) (string, error) {
	cmd := exec.Command(binary(d.t), append([]string{"--api", d.api.BaseURL, "--no-color"}, args...)...)
	cmd.Env = append(os.Environ(), "COLUMNS=200")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// empty waits until the queue has no message.
func (d *daemon) empty(patience time.Duration) {
	d.t.Helper()
	eventually(d.t, patience, "the queue to be empty", func() error {
		q, err := d.api.Queues(context.Background())
		if err != nil {
			return err
		}
		if q.Messages > 0 {
			return fmt.Errorf("%d messages are queued", q.Messages)
		}
		return nil
	})
}

// shared is a temporary folder that other users' processes can enter.
func shared(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "waybill-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func port(t testing.TB) int {
	t.Helper()
	p, err := peers.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// eventually polls a real process until it is as it should be.
func eventually(t testing.TB, patience time.Duration, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s: %v", patience, what, err)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// run runs a peer's program and returns what it printed.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}
