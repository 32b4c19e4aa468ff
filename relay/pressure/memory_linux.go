package pressure

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
)

// resident is how much memory the process has that the system cannot take back:
// not its pages of mapped files, of which the stores have many.
func resident() (int64, error) {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, fmt.Errorf("resident memory: %w", err)
	}
	return parseResident(data)
}

func parseResident(data []byte) (int64, error) {
	var sum int64
	found := false
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		for _, key := range []string{"RssAnon:", "RssShmem:"} {
			rest, ok := bytes.CutPrefix(lines.Bytes(), []byte(key))
			if !ok {
				continue
			}
			var kib int64
			if _, err := fmt.Sscan(string(rest), &kib); err != nil {
				return 0, fmt.Errorf("resident memory: %s %w", key, err)
			}
			sum += kib << 10
			found = true
		}
	}
	if !found {
		return 0, errors.New("resident memory: the kernel does not tell")
	}
	return sum, nil
}
