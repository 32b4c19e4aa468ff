package queue

import "math/bits"

// slab keeps many values of one kind in chunks, each value in a slot with a number.
// It grows by a chunk at a time, so that nothing is copied, and gives a chunk back
// when all its slots are empty. Where T has no pointers the collector sees one
// pointer for a whole chunk. Its zero value is empty.
type slab[T any] struct {
	chunks []chunk[T]
	open   []uint32      // chunks with an empty slot, or all of whose memory was given back
	spare  *[chunkSize]T // kept, so that memory does not come and go with a few values
}

// chunkSize makes chunks that the allocator has sizes for: of entries 16 KiB, of
// groups 10 KiB. Few values that stay keep little memory that many have left.
const chunkSize = 256

type chunk[T any] struct {
	slots *[chunkSize]T // nil when all are empty
	taken [chunkSize / 64]uint64
	used  uint16
}

// at is the value with that number, which is not 0. It stays where it is.
func (s *slab[T]) at(ref uint32) *T {
	return &s.chunks[(ref-1)/chunkSize].slots[(ref-1)%chunkSize]
}

// take finds an empty slot, and returns its number, which is not 0.
func (s *slab[T]) take() (ref uint32, v *T) {
	if len(s.open) == 0 {
		s.open = append(s.open, uint32(len(s.chunks))) //nolint:gosec // fewer than that
		s.chunks = append(s.chunks, chunk[T]{})
	}
	n := s.open[len(s.open)-1]
	c := &s.chunks[n]
	if c.slots == nil {
		if c.slots, s.spare = s.spare, nil; c.slots == nil {
			c.slots = new([chunkSize]T)
		}
	}
	if c.used++; c.used == chunkSize {
		s.open = s.open[:len(s.open)-1]
	}
	word := 0
	for c.taken[word] == ^uint64(0) {
		word++
	}
	bit := bits.TrailingZeros64(^c.taken[word])
	c.taken[word] |= 1 << bit
	slot := uint32(word*64 + bit) //nolint:gosec // below chunkSize
	return n*chunkSize + slot + 1, &c.slots[slot]
}

// give empties the slot with that number. Who still has a pointer to it finds the
// zero value there, until the slot is taken again.
func (s *slab[T]) give(ref uint32) {
	n, slot := (ref-1)/chunkSize, (ref-1)%chunkSize
	c := &s.chunks[n]
	var zero T
	c.slots[slot] = zero
	c.taken[slot/64] &^= 1 << (slot % 64)
	if c.used == chunkSize {
		s.open = append(s.open, n)
	}
	if c.used--; c.used == 0 {
		s.spare, c.slots = c.slots, nil
	}
}
