package logtrack

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
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
		blocks := s.memory()
		got := blocks[len(blocks)-1].recs()
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

// TestEncodedBlocksAnswerAsStored asks blocks that are encoded and cannot be
// stored yet, one with rows, and asks again once all are stored. A backup of the
// former has all facts too.
func TestEncodedBlocksAnswerAsStored(t *testing.T) {
	s := openStore(t, t.TempDir())
	recs := facts(31, 200)
	s.storing.Lock()
	locked := true
	defer func() {
		if locked {
			s.storing.Unlock()
		}
	}()
	for i := range recs {
		s.Write(&recs[i])
		if i%(len(recs)/5) == len(recs)/10 {
			s.mu.Lock()
			s.rotate()
			s.mu.Unlock()
		}
	}
	s.mu.Lock()
	waiting := slices.Clone(s.sealing)
	s.mu.Unlock()
	for _, m := range waiting {
		m.encode()
		s.mu.Lock()
		m.settle()
		if m.recs != nil || m.count() == 0 {
			t.Fatalf("an encoded block has %d rows and %d facts", len(m.recs), m.count())
		}
		s.mu.Unlock()
	}
	from := recs[0].Time.Add(-time.Hour)
	answers := func() (list []string) {
		add := func(name string, answer any, err error) {
			b, jsonErr := json.Marshal(answer)
			if err := errors.Join(err, jsonErr); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			list = append(list, name+" "+regexp.MustCompile(`"took_ms":[0-9.e-]+`).ReplaceAllString(string(b), ""))
		}
		for _, q := range []string{"", "domain:gmail.example", "recipient:*a*", "disposition:bounced", "-disposition:relayed", "client_ip:192.0.2.0/24", "sender:@brand3.example disposition:bounced", "min_latency:1s", "event:recipient_relayed"} {
			query := trackapi.Query{Q: q, From: from, Limit: 200}
			page, err := s.Messages(t.Context(), query)
			add("messages "+q, page, err)
			events, err := s.Events(t.Context(), query)
			add("events "+q, events, err)
		}
		for i := 0; i < len(recs); i += 40 {
			if id := string(recs[i].Message); id != "" {
				timeline, err := s.Message(t.Context(), id)
				add("message "+id, timeline, err)
				page, err := s.Messages(t.Context(), trackapi.Query{QueueID: id})
				add("queue ID "+id, page, err)
			}
		}
		for _, by := range []string{"disposition", "recipient_domain", "class"} {
			q := trackapi.AggregateQuery{Query: trackapi.Query{From: from}, Metric: "count", By: []string{by}}
			a, err := s.Aggregate(t.Context(), q)
			add("aggregate "+by, a, err)
			s.exactBlocks = 0
			a, err = s.Aggregate(t.Context(), q)
			add("aggregate of rollups "+by, a, err)
			s.exactBlocks = exactBlocks
		}
		return list
	}
	before := answers()
	if st := s.Stats(); st.Events != int64(len(recs)) || st.Waiting != len(waiting) {
		t.Errorf("%d facts and %d waiting blocks, want %d and %d", st.Events, st.Waiting, len(recs), len(waiting))
	}
	dir := filepath.Join(t.TempDir(), "copy")
	if info, err := s.Backup(t.Context(), dir); err != nil || info.Facts != int64(len(recs)) {
		t.Errorf("backup of %+v, want %d facts; %v", info, len(recs), err)
	}
	copied := openStore(t, dir)
	if got, want := export(t, copied), export(t, s); !slices.Equal(got, want) {
		t.Errorf("a backup has %d facts, want %d", len(got), len(want))
	}
	for i := range recs[:50] { // the queue states them again
		s.Write(&recs[i])
	}
	if got := s.Stats().Duplicates; got != 50 {
		t.Errorf("%d facts were known, want 50", got)
	}
	locked = false
	s.storing.Unlock()
	seal(s)
	after := answers()
	for i := range before {
		if before[i] != after[i] {
			t.Errorf("encoded:\n%.2000s\nstored:\n%.2000s", before[i], after[i])
		}
	}
	if got := export(t, s); !slices.Equal(got, lines(t, recs)) {
		t.Errorf("%d facts are stored, want %d", len(got), len(recs))
	}
}
