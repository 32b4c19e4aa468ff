package logtrack

import (
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestReadsOlderBlocks reads blocks as earlier versions of the format stored
// them, and compares them with the facts that went in.
func TestReadsOlderBlocks(t *testing.T) {
	for _, name := range []string{"block-v1", "block-v2"} {
		t.Run(name, func(t *testing.T) {
			stored, err := os.ReadFile("testdata/" + name + ".bin")
			if err != nil {
				t.Fatal(err)
			}
			lines, err := os.ReadFile("testdata/" + name + ".jsonl")
			if err != nil {
				t.Fatal(err)
			}
			n := 4 + binary.BigEndian.Uint32(stored)
			h, err := readHeader(7, stored[4:n], same)
			if err != nil {
				t.Fatal(err)
			}
			want := strings.Split(strings.TrimSpace(string(lines)), "\n")
			slices.Sort(want)
			v := newView(h, func(read func([]byte) error) error { return read(stored[n:]) })
			if got := viewRecords(t, v); !slices.Equal(got, want) {
				t.Errorf("%d facts come back as %d others", len(want), len(got))
			}
		})
	}
}
