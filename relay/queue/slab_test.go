package queue

import (
	"testing"

	"pgregory.net/rapid"
)

// TestSlab compares a slab with a map over random steps, and wants its memory back.
func TestSlab(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s slab[int64]
		has := map[uint32]int64{}
		at := map[uint32]*int64{}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				chunks := map[uint32]bool{}
				for ref, want := range has {
					chunks[(ref-1)/chunkSize] = true
					if got := s.at(ref); *got != want || got != at[ref] {
						t.Fatalf("at(%d) = %d at %p, want %d at %p", ref, *got, got, want, at[ref])
					}
				}
				for n := range s.chunks {
					if got, want := s.chunks[n].slots != nil, chunks[uint32(n)]; got != want {
						t.Fatalf("chunk %d has memory: %t, want %t", n, got, want)
					}
				}
				if most := (len(at) + chunkSize - 1) / chunkSize; len(s.chunks) > most {
					t.Fatalf("%d chunks for %d values at most", len(s.chunks), len(at))
				}
			},
			"take": func(t *rapid.T) {
				for range rapid.SampledFrom([]int{1, 3, 300}).Draw(t, "n") {
					ref, v := s.take()
					if _, there := has[ref]; there || ref == 0 || *v != 0 {
						t.Fatalf("take() = %d, %d, want an empty slot", ref, *v)
					}
					*v = rapid.Int64().Draw(t, "value")
					has[ref], at[ref] = *v, v
				}
			},
			"give": func(t *rapid.T) {
				n := rapid.SampledFrom([]int{1, 3, 300}).Draw(t, "n")
				for ref := range has {
					if n--; n < 0 {
						break
					}
					s.give(ref)
					if *at[ref] != 0 {
						t.Fatalf("%d is left in a slot that was given back", *at[ref])
					}
					delete(has, ref)
				}
			},
		})
	})
}

// TestSlabGivesBack wants the memory of many values back when they are gone, but
// that of a chunk.
func TestSlabGivesBack(t *testing.T) {
	var s slab[entry]
	const n = 100 * chunkSize
	for want := range uint32(n) {
		if ref, _ := s.take(); ref != want+1 {
			t.Fatalf("take() = %d, want %d", ref, want+1)
		}
	}
	for ref := range uint32(n) {
		s.give(ref + 1)
	}
	for i := range s.chunks {
		if s.chunks[i].slots != nil {
			t.Errorf("chunk %d has its memory still", i)
		}
	}
	if s.spare == nil {
		t.Error("no chunk is kept for the next value")
	}
	if got := testing.AllocsPerRun(100, func() { ref, _ := s.take(); s.give(ref) }); got != 0 {
		t.Errorf("a value that comes and goes takes %v allocations, want 0", got)
	}
}
