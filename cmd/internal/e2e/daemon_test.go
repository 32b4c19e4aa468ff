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

// binary is the program under test, as make builds it.
func binary(t testing.TB) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "..", "bin", "waybill"))
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
	out  *os.File
	http int
	api  *trackapi.Client
}

// start writes the configuration (with HTTP and DIR filled in) and starts the daemon.
func start(t testing.TB, conf string) *daemon {
	t.Helper()
	d := &daemon{t: t, dir: shared(t)}
	d.http = port(t)
	d.api = &trackapi.Client{BaseURL: fmt.Sprintf("http://127.0.0.1:%d", d.http), HTTP: &http.Client{Timeout: 30 * time.Second}}
	conf = strings.NewReplacer("DIR", d.dir, "HTTPPORT", fmt.Sprint(d.http)).Replace(conf)
	d.conf = filepath.Join(d.dir, "waybill.yaml")
	write(t, d.conf, conf)
	d.boot()
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

func (d *daemon) boot() {
	d.t.Helper()
	out, err := os.OpenFile(filepath.Join(d.dir, "stderr"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	d.out = out
	d.cmd = exec.Command(binary(d.t), "serve", "--config", d.conf)
	d.cmd.Stdout, d.cmd.Stderr = out, out
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	eventually(d.t, 30*time.Second, "the daemon to be ready", func() error {
		resp, err := http.Get(d.api.BaseURL + "/-/ready")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("ready answers %s", resp.Status)
		}
		return nil
	})
}

// stop ends the daemon as an operator does, and wants exit code 0.
func (d *daemon) stop() {
	d.t.Helper()
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	if err := d.cmd.Wait(); err != nil {
		d.t.Errorf("waybill serve ended with %v", err)
	}
	d.cmd = nil
	_ = d.out.Close()
}

// kill ends it with the signal that cannot be caught.
func (d *daemon) kill() {
	_ = d.cmd.Process.Signal(syscall.SIGKILL)
	_ = d.cmd.Wait()
	d.cmd = nil
	_ = d.out.Close()
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
