package peers

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// userHz is the unit of times in /proc on Linux, whatever the kernel's own tick.
const userHz = 100

// CPU is the processor time that the process tree below pid has used, with
// that of its children that have ended and were waited for.
func CPU(pid int) time.Duration {
	stats := map[int][]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*/stat") // a fixed pattern
	for _, f := range dirs {
		b, err := os.ReadFile(f) //nolint:gosec // a process list
		if err != nil {
			continue // it ended
		}
		i := bytes.LastIndexByte(b, ')')
		id, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if i < 0 || err != nil {
			continue
		}
		stats[id] = strings.Fields(string(b[i+1:]))
	}
	var ticks int
	for id, f := range stats {
		if !below(stats, id, pid) || len(f) < 15 {
			continue
		}
		for _, s := range f[11:15] { // utime stime cutime cstime
			n, _ := strconv.Atoi(s) // the kernel's own number
			ticks += n
		}
	}
	return time.Duration(ticks) * time.Second / userHz
}

func below(stats map[int][]string, id, root int) bool {
	for range 32 {
		if id == root {
			return true
		}
		f, ok := stats[id]
		if !ok || len(f) < 2 {
			return false
		}
		id, _ = strconv.Atoi(f[1]) // the kernel's own number
	}
	return false
}

// RSS is the resident set of one process in octets.
func RSS(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			var kb int64
			_, err := fmt.Sscan(v, &kb)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no resident set", pid)
}
