package mail

import (
	"testing"
	"time"
)

// serialRuns counts the runs of TestSerialIDsRiseAndDiffer: each is of a later
// time, since identifiers of one process rise.
var serialRuns int

// TestSerialIDsRiseAndDiffer makes many identifiers for the same and for other
// times, in the order of time and a little out of it.
func TestSerialIDsRiseAndDiffer(t *testing.T) {
	serialRuns++
	base := time.Date(2026, 1, 31, 12+serialRuns, 0, 0, 0, time.UTC)
	seen := map[string]bool{}
	last := ""
	for i := range 10000 {
		at := base.Add(time.Duration(i/3-i%2) * time.Millisecond)
		id := NewSerialID(at)
		if !ValidID(id) || seen[id] || id <= last {
			t.Fatalf("identifier %d is %s, after %s", i, id, last)
		}
		if d := IDTime(id).Sub(at); d < 0 || d > 2*time.Millisecond {
			t.Fatalf("identifier %s is of %s, want %s", id, IDTime(id), at)
		}
		seen[id], last = true, id
	}
}
