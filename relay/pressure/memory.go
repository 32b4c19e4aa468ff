package pressure

import (
	"fmt"
	"math"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// MemoryLimit is how much memory the process may have: the smallest limit of its
// control groups, or what the machine has. own says that it is the groups', which
// the process need not share. Zero is unknown.
func MemoryLimit() (limit int64, own bool) {
	if n, err := memlimit.FromCgroup(); err == nil && n > 0 && n < math.MaxInt64 {
		limit, own = int64(n), true
	}
	if n, err := memlimit.FromSystem(); err == nil && n > 0 && n < math.MaxInt64 && (limit == 0 || int64(n) <= limit) {
		limit, own = int64(n), false
	}
	return limit, own
}

// Memory measures how much of limit the process has, in percent.
func Memory(limit int64) func() (Sample, bool) {
	return func() (Sample, bool) {
		used, err := resident()
		if err != nil || limit <= 0 {
			return Sample{}, false
		}
		share := 100 * float64(used) / float64(limit)
		return Sample{Value: share, Text: fmt.Sprintf("%.0f %% of %d MiB", share, limit>>20)}, true
	}
}
