package logtrack

import (
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestReadsBlocksOfVersion1 reads a block as the first version of the format
// stored it, and compares it with the facts that went in.
func TestReadsBlocksOfVersion1(t *testing.T) {
	stored, err := os.ReadFile("testdata/block-v1.bin")
	if err != nil {
		t.Fatal(err)
	}
	lines, err := os.ReadFile("testdata/block-v1.jsonl")
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
		t.Errorf("%d facts of version 1 come back as %d others", len(want), len(got))
	}
}
