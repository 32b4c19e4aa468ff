//go:build e2e

package e2e

import (
	"context"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestDemo runs the demo as somebody does who pipes it: lines with numbers
// that add up, and exit code 0 when its time is over.
func TestDemo(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	dir := shared(t)
	began := time.Now()
	out, err := exec.CommandContext(ctx, binary(t), "demo", "--for", "25s", "--rate", "20", "--dir", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("waybill demo: %v\n%s", err, out)
	}
	text := string(out)
	if took := time.Since(began); took < 25*time.Second {
		t.Errorf("the demo ended after %s", took)
	}
	if strings.Contains(text, "\x1b[") {
		t.Errorf("escape sequences go into a pipe:\n%q", text)
	}
	for _, want := range []string{"SMTP        127.0.0.1:", "HTTP        http://127.0.0.1:", dir, "track search", "The demo has ended"} {
		if !strings.Contains(text, want) {
			t.Errorf("the demo does not say %q", want)
		}
	}
	numbers := regexp.MustCompile(`(?m)^ *(\d+) s  in ([\d.]+)/s  relayed ([\d.]+)/s  bounced ([\d.]+)/s  queued (\d+)  oldest \S`).FindAllStringSubmatch(text, -1)
	if len(numbers) < 2 {
		t.Fatalf("%d lines of numbers, want one every 5 seconds", len(numbers))
	}
	last := numbers[len(numbers)-1]
	for i, what := range map[int]string{2: "in", 3: "relayed"} {
		if rate, err := strconv.ParseFloat(last[i], 64); err != nil || rate <= 0 || rate > 60 {
			t.Errorf("%s %s/s at the end, want about 20", what, last[i])
		}
	}
	if t.Failed() {
		t.Logf("the demo printed\n%s", text)
	}
}

// TestCheckProvisioning holds the configuration that docker compose starts
// against the program that it starts.
func TestCheckProvisioning(t *testing.T) {
	t.Parallel()
	path := filepath.Join("..", "..", "..", "dashboards", "provisioning", "waybill.yaml")
	out, err := exec.Command(binary(t), "check", "--config", path).CombinedOutput()
	if err != nil {
		t.Errorf("waybill check: %v\n%s", err, out)
	}
	if strings.Contains(string(out), "warning") {
		t.Errorf("the provisioned configuration has warnings:\n%s", out)
	}
}
