package queue

import (
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"
)

// indexIdent makes an ID of n.
func indexIdent(n uint32) (id ident) {
	binary.BigEndian.PutUint32(id[12:], n)
	return id
}

// TestIndex compares an index with a map over random steps.
func TestIndex(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var x index
		ids := map[uint32]ident{} // by ref
		has := map[ident]uint32{}
		is := func(id ident) func(uint32) bool {
			return func(ref uint32) bool { return ids[ref] == id }
		}
		next := uint32(0)
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				used := 0
				for i := range x.tables {
					used += x.tables[i].used
					if n := len(x.tables[i].places); n > leastPlaces && x.tables[i].used < n/8 {
						t.Fatalf("%d of %d places are used", x.tables[i].used, n)
					}
				}
				if used != len(has) {
					t.Fatalf("%d places are used, want %d", used, len(has))
				}
				for id, want := range has {
					if got := x.find(id, is(id)); got != want {
						t.Fatalf("find(%v) = %d, want %d", id, got, want)
					}
				}
				id := indexIdent(rapid.Uint32().Draw(t, "absent") | 1<<31)
				if got := x.find(id, is(id)); got != 0 {
					t.Fatalf("find(%v) = %d, want none", id, got)
				}
			},
			"add": func(t *rapid.T) {
				for range rapid.SampledFrom([]int{1, 10, 2000}).Draw(t, "n") {
					next++
					id := indexIdent(next)
					ids[next], has[id] = id, next
					x.add(id, next)
				}
			},
			"remove": func(t *rapid.T) {
				n := rapid.SampledFrom([]int{1, 10, 2000}).Draw(t, "n")
				for id, ref := range has {
					if n--; n < 0 {
						break
					}
					x.remove(id, ref)
					delete(has, id)
					delete(ids, ref)
				}
			},
		})
	})
}

// TestIndexTable lets entries have the same hashes, so that they are in one
// another's way, round the end of the table too.
func TestIndexTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var table indexTable
		hash := map[uint32]uint32{} // by ref
		next := uint32(0)
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				for ref, h := range hash {
					if got := table.find(h, func(r uint32) bool { return r == ref }); got != ref {
						t.Fatalf("find(%d) = %d, want %d", h, got, ref)
					}
				}
				if table.used != len(hash) {
					t.Fatalf("%d places are used, want %d", table.used, len(hash))
				}
			},
			"add": func(t *rapid.T) {
				next++
				hash[next] = rapid.SampledFrom([]uint32{0, 1, 5, 6, 7, 14, 15, 31}).Draw(t, "hash")
				table.add(indexPlace{hash[next], next})
			},
			"remove": func(t *rapid.T) {
				for ref, h := range hash {
					table.remove(indexPlace{h, ref})
					delete(hash, ref)
					break
				}
			},
		})
	})
}
