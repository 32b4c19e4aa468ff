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
	stats := processes()
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

// processes are the fields of /proc/PID/stat after the name, of all processes.
func processes() map[int][]string {
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
	return stats
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
func RSS(pid int) (n int64, err error) {
	err = ProcFields(fmt.Sprintf("/proc/%d/status", pid), map[string]*int64{"VmRSS": &n})
	return n, err
}

// PSS is the memory of the process tree below pid in octets: pages that several
// processes share count once.
func PSS(pid int) (sum int64, err error) {
	stats := processes()
	for id := range stats {
		if !below(stats, id, pid) {
			continue
		}
		var n int64
		if err := ProcFields(fmt.Sprintf("/proc/%d/smaps_rollup", id), map[string]*int64{"Pss": &n}); err != nil && id == pid {
			return 0, err // others may have ended
		}
		sum += n
	}
	return sum, nil
}

// ProcFields reads those fields of a file of /proc, such as status, that are in
// kB; values are in octets.
func ProcFields(file string, fields map[string]*int64) error {
	b, err := os.ReadFile(file) //nolint:gosec // of /proc
	if err != nil {
		return err
	}
	found := 0
	for line := range strings.Lines(string(b)) {
		name, v, _ := strings.Cut(line, ":")
		if to := fields[name]; to != nil {
			if _, err := fmt.Sscan(v, to); err != nil {
				return fmt.Errorf("%s: %s: %w", file, name, err)
			}
			*to <<= 10
			found++
		}
	}
	if found < len(fields) {
		return fmt.Errorf("%s lacks some of %d fields", file, len(fields))
	}
	return nil
}
