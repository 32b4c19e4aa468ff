package logtrack

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// TestIDSet compares a set with a map: identifiers that follow each other, that
// are random, that are none, and more than a block has.
func TestIDSet(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name string
		id   func(i int) string
		n    int
	}{
		{"serial", func(i int) string { return mail.NewSerialID(at.Add(time.Duration(i) * time.Microsecond)) }, blockRows},
		{"random", func(int) string { return ulid(at, rng) }, blockRows},
		{"equal at the end", func(int) string { return ulid(at, rng)[:18] + "00000000" }, 300},
		{"no ULIDs", func(int) string { return fmt.Sprint(rng.Uint64()) }, blockRows},
		{"more than a block", func(int) string { return ulid(at, rng) }, 5 * blockRows},
	} {
		t.Run(test.name, func(t *testing.T) {
			set, want := newIDSet(), map[[16]byte]bool{}
			defer set.free()
			ask := func(key [16]byte, ms int64) {
				if got := set.has(key, ms); got != want[key] {
					t.Fatalf("has(%x) = %t after %d, want %t", key, got, len(want), want[key])
				}
			}
			for i := range test.n {
				r := event.Record{ID: test.id(i), Time: at}
				key, ms := idKey(&r)
				ask(key, ms)
				if i%7 == 3 { // a row without an identifier
					set.add([16]byte{1}, 0, false)
				}
				set.add(key, ms, true)
				want[key] = true
				ask(key, ms)
			}
			for i, key := range set.keys {
				if key != [16]byte{1} && !set.has(key, set.min) {
					t.Fatalf("key %d is lost", i)
				}
			}
			ask([16]byte{1}, set.min)
		})
	}
}

// ulid makes a random identifier of the time at.
func ulid(at time.Time, rng *rand.Rand) string {
	id := []byte(mail.NewID(at))
	for i := 10; i < len(id); i++ {
		id[i] = crockford[rng.IntN(len(crockford))]
	}
	return string(id)
}

// TestRoomOfReadBlocks takes the rows of blocks in memory, as queries do, has
// the blocks stored and others written in their room, and finds the rows as
// they were.
func TestRoomOfReadBlocks(t *testing.T) {
	s := openStore(t, t.TempDir())
	recs := relaying(2 * blockRows)
	write := func(n int) {
		for i := range n {
			s.Write(&recs[i])
		}
		recs = recs[n:]
	}
	for range 4 {
		written := slices.Clone(recs[:1000])
		write(1000)
		s.mu.Lock()
		blocks := s.memBlocks()
		got := slices.Clip(blocks[len(blocks)-1].recs)
		s.mu.Unlock()
		seal(s)
		write(1500)
		seal(s)
		if len(got) != len(written) {
			t.Fatalf("%d rows, want %d", len(got), len(written))
		}
		for i := range got {
			if got[i].ID != written[i].ID {
				t.Fatalf("row %d is %s, want %s", i, got[i].ID, written[i].ID)
			}
		}
	}
	if st := s.Stats(); st.Events != 4*2500 {
		t.Errorf("%d facts are stored, want %d", st.Events, 4*2500)
	}
}
