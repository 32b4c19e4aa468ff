package queue

import (
	"fmt"
	"io"
	"strings"
	"testing"
)

// TestRoom takes contents in their places, in places and by copy in turns, and
// with parts left out of what was received in place.
func TestRoom(t *testing.T) {
	h := open(t, nil)
	for _, size := range []int{0, 1, 16 << 10, 64<<10 - 1, 64 << 10, 64<<10 + 1, smallContent - 1, smallContent, smallContent + 1, 3*smallContent + 17} {
		content := strings.Repeat("0123456789abcdef", size/16+1)[:size]
		for _, hint := range []int{0, size} {
			for _, way := range []string{"in place", "in turns", "with gaps"} {
				t.Run(fmt.Sprintf("%d octets, %d announced, %s", size, hint, way), func(t *testing.T) {
					in, err := h.Begin(t.Context(), int64(hint))
					if err != nil {
						t.Fatal(err)
					}
					rest := content
					for turn := 0; rest != ""; turn++ {
						gap := 0
						if way == "with gaps" {
							gap = 5
						}
						p := in.Room()
						if len(p) <= gap || way == "in turns" && turn%2 == 1 {
							p, gap = make([]byte, 5000), 0
						}
						n := copy(p[gap:min(len(p), 30000)], rest)
						if got, err := in.Write(p[gap : gap+n]); got != n || err != nil {
							t.Fatalf("Write() = %d, %v, want %d", got, err, n)
						}
						rest = rest[n:]
					}
					if got := in.Size(); got != int64(size) {
						t.Errorf("Size() = %d, want %d", got, size)
					}
					d := draft(t, "a@example.com")
					if err := in.Commit(t.Context(), d); err != nil {
						t.Fatal(err)
					}
					if room := in.Room(); room != nil {
						t.Errorf("%d octets of room after Commit", len(room))
					}
					if got := read(t, func() (io.ReadCloser, error) { return h.Content(d.ID) }); got != string(d.Trace)+content {
						t.Error("content differs")
					}
				})
			}
		}
	}
}
