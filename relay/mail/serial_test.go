package mail

import (
	"testing"
	"time"
)

// TestSerialIDsRiseAndDiffer makes many identifiers for the same and for other
// times, in the order of time and a little out of it.
func TestSerialIDsRiseAndDiffer(t *testing.T) {
	base := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
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
