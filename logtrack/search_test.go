package logtrack

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestScanGivesItemsInOrder walks blocks that overlap in time, some of which
// cannot be read at first, page by page.
func TestScanGivesItemsInOrder(t *testing.T) {
	for _, oldest := range []bool{false, true} {
		t.Run(fmt.Sprintf("oldest %t", oldest), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(4, 5))
			var blocks []*source
			items := map[*source][]position{}
			var want []position
			for i := range int64(200) {
				lo := 10*i + rng.Int64N(100)
				src := &source{head: &header{acceptance: acceptance{minAcc: lo, maxAcc: lo + rng.Int64N(50)}}}
				for range rng.IntN(4) {
					pos := position{lo + rng.Int64N(src.head.maxAcc-lo+1), fmt.Sprintf("%04d", len(want))}
					items[src], want = append(items[src], pos), append(want, pos)
				}
				blocks = append(blocks, src)
			}
			rng.Shuffle(len(blocks), func(i, j int) { blocks[i], blocks[j] = blocks[j], blocks[i] })
			sc := newScan(newCrew(), oldest, blocks, func(h *header) int64 { return h.minAcc }, func(h *header) int64 { return h.maxAcc })
			slices.SortFunc(want, func(a, b position) int {
				if oldest {
					return a.compare(b)
				}
				return b.compare(a)
			})
			var got []position
			for tries := 0; len(got) < len(want); tries++ {
				if tries > 2*len(want) {
					t.Fatalf("%d of %d items after %d tries", len(got), len(want), tries)
				}
				broken := errors.New("cannot be read")
				list, err := sc.next(t.Context(), 7, func(src *source) ([]position, error) {
					if tries%3 == 0 && src.head.minAcc%5 == 0 {
						return nil, broken
					}
					return items[src], nil
				})
				if err != nil && !errors.Is(err, broken) {
					t.Fatal(err)
				}
				got = append(got, list...)
			}
			if !slices.Equal(got, want) || len(sc.found) > 0 {
				t.Errorf("items %v, want %v", got, want)
			}
		})
	}
}

// TestScanStopsWithAFullPage reads no more blocks than there are hands beyond
// those that fill the page.
func TestScanStopsWithAFullPage(t *testing.T) {
	var blocks []*source
	for i := range int64(1000) {
		blocks = append(blocks, &source{head: &header{acceptance: acceptance{minAcc: i, maxAcc: i}}})
	}
	c := newCrew()
	sc := newScan(c, false, blocks, func(h *header) int64 { return h.minAcc }, func(h *header) int64 { return h.maxAcc })
	list, err := sc.next(t.Context(), 50, func(src *source) ([]position, error) {
		return []position{{src.head.minAcc, fmt.Sprint(src.head.minAcc)}}, nil
	})
	if read := 1000 - len(sc.blocks); err != nil || len(list) < 50 || read > 52+cap(c) {
		t.Errorf("%d items from %d blocks, %v", len(list), read, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	left := len(sc.blocks)
	if _, err := sc.next(ctx, 1000, nil); !errors.Is(err, context.Canceled) || len(sc.blocks) != left {
		t.Errorf("%d blocks are left of %d after a search that was given up: %v", len(sc.blocks), left, err)
	}
}

// TestPlaceOf finds headers of blocks that are numbered with gaps.
func TestPlaceOf(t *testing.T) {
	p := &partition{}
	for _, test := range []struct {
		name string
		seqs []uint32
		seq  uint32
		want int
	}{
		{"no blocks", nil, 3, -1},
		{"no gap", []uint32{3, 4, 5}, 5, 2},
		{"before all", []uint32{3, 4, 5}, 2, -1},
		{"behind all", []uint32{3, 4, 5}, 6, -1},
		{"a gap", []uint32{3, 7, 9}, 9, 2},
		{"in a gap", []uint32{3, 7, 9}, 4, -1},
		{"in another order", []uint32{9, 3, 7}, 3, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			sn := &snapshot{heads: map[*partition][]*header{}}
			for _, seq := range test.seqs {
				sn.heads[p] = append(sn.heads[p], &header{seq: seq})
			}
			if got := sn.placeOf(p, test.seq); got != test.want {
				t.Errorf("placeOf(%d) = %d, want %d", test.seq, got, test.want)
			}
		})
	}
}
