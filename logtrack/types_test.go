package logtrack

import (
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"testing"
)

// TestTypesOfNewerVersions: a header keeps the names of facts that this version
// does not know, and writes what it has read.
func TestTypesOfNewerVersions(t *testing.T) {
	known := journalTypes[len(journalTypes)-1].name
	for _, test := range []struct {
		name string
		want []typeRun
	}{
		{"none", nil},
		{"known", []typeRun{{journalTypes[0].name, 0, 3}, {known, 3, 1}}},
		{"newer", []typeRun{{"newer_one", 0, 3}, {known, 3, 1}, {"newer_two", 4, 7}, {"newer_one", 11, 1}}},
		{"without rows", []typeRun{{"newer_one", 0, 0}, {known, 0, 2}, {"newer_two", 2, 0}}},
		{"as many as there may be", []typeRun{{"newer_two", 0, maxBlockRows}, {known, maxBlockRows, 0}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			src := []byte{byte(len(test.want))}
			rows := 0
			for _, run := range test.want {
				src = appendString(src, run.name)
				src = binary.AppendUvarint(src, uint64(run.n))
				rows += run.n
			}
			types, rest, err := readTypes(append(src, "rest"...), rows)
			if err != nil || string(rest) != "rest" {
				t.Fatalf("readTypes gives %v and leaves %q", err, rest)
			}
			if got := types.unpack(); !slices.Equal(got, test.want) {
				t.Errorf("types are %v, want %v", got, test.want)
			}
			if got := types.append(nil); string(got) != string(src) {
				t.Errorf("written again: %x, want %x", got, src)
			}
			for _, wrong := range []int{rows - 1, rows + 1} {
				if _, _, err := readTypes(src, wrong); wrong >= 0 && !errors.Is(err, errDamaged) {
					t.Errorf("%d rows for a block of %d give %v", rows, wrong, err)
				}
			}
		})
	}
}

// TestHeadersAreSmall holds what memory keeps of a block: a store that gets 5,000
// messages a second has twelve more of them each second, until the day is over.
func TestHeadersAreSmall(t *testing.T) {
	const (
		blocks = 10_000
		most   = 200 // octets, with the place in the list
	)
	made := encodeBlock(1, facts(3, 400)).head
	if n := len(made.types); n < 6 || cap(made.types) != n {
		t.Fatalf("the block has room for %d types of fact and has %d, want the same, and 6 at least", cap(made.types), n)
	}
	stored := made.append(nil)
	inUse := func() uint64 {
		var ms runtime.MemStats
		for range 3 { // what a pool had is gone after the second
			runtime.GC()
		}
		runtime.ReadMemStats(&ms)
		return ms.HeapAlloc
	}
	before := inUse()
	var heads []*header
	for i := range blocks {
		h, err := readHeader(uint32(i), stored, same)
		if err != nil {
			t.Fatal(err)
		}
		h.stored = source{head: h}
		heads = append(heads, h)
	}
	after := inUse()
	if each := (int64(after) - int64(before)) / blocks; each < 64 || each > most {
		t.Errorf("a header with %d types of fact keeps %d octets, want at most %d", len(made.types), each, most)
	}
	runtime.KeepAlive(heads)
}
