package logtrack

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/dgraph-io/badger/v4"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
)

// values makes the postings of block seq: values of its own, and some that
// other blocks have too.
func values(rng *rand.Rand, seq, n int) []posting {
	var posts []posting
	for i := range n {
		posts = append(posts, postingOf(postRecipient, fmt.Sprint("own ", seq, " ", i)), postingOf(byte(rng.IntN(5)), fmt.Sprint("shared ", rng.IntN(1000))))
	}
	return sortPostings(append(posts, postingOf(postSender, "everybody")))
}

func TestRunFindsWhatItsBlocksHave(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, size := range []int{1, 2, 7, 64, 300} {
		t.Run(fmt.Sprint(size, " blocks"), func(t *testing.T) {
			var blocks []fresh
			for i := range size {
				blocks = append(blocks, fresh{head: &header{seq: uint32(1000 + 3*i)}, posts: values(rng, i, rng.IntN(200))})
			}
			value := encodeRun(blocks)
			r, err := readRun([]byte("key"), value)
			if err != nil {
				t.Fatal(err)
			}
			extra, asked := 0, 0
			for _, b := range blocks {
				for _, p := range b.posts {
					found, err := r.find(nil, p, value)
					if err != nil {
						t.Fatal(err)
					}
					var want []uint32
					for i := range blocks {
						if blocks[i].may(p) {
							want = append(want, blocks[i].head.seq)
						}
					}
					for _, seq := range want {
						if !slices.Contains(found, seq) {
							t.Fatalf("find(%x) = %d, want %d in it", p, found, seq)
						}
					}
					extra += len(found) - len(want)
					asked++
				}
			}
			for i := range 1000 {
				found, err := r.find(nil, postingOf(postRecipient, fmt.Sprint("absent ", i)), value)
				if err != nil {
					t.Fatal(err)
				}
				extra += len(found)
				asked++
			}
			if extra > 20+asked/60 {
				t.Errorf("%d blocks were named in vain in %d look-ups", extra, asked)
			}
		})
	}
}

func FuzzReadRun(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 2))
	f.Add(encodeRun([]fresh{{head: &header{seq: 1}, posts: values(rng, 1, 300)}, {head: &header{seq: 2}, posts: values(rng, 2, 3)}}), uint64(postingOf(postSender, "everybody")))
	f.Add(encodeRun([]fresh{{head: &header{seq: 1}}}), uint64(0))
	f.Fuzz(func(t *testing.T, value []byte, p uint64) {
		if len(value) < bodyStart {
			return
		}
		r, err := readRun(nil, sign(slices.Clone(value)))
		if err != nil {
			return
		}
		if _, err := r.find(nil, posting(p), value); err == nil && len(r.blocks) > runMost {
			t.Errorf("%d blocks", len(r.blocks))
		}
	})
}

// TestIndexIsRebuilt takes away a run, damages another, and expects the
// answers of before.
func TestIndexIsRebuilt(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	recs := facts(11, 1500)
	for n := range recs {
		s.Write(&recs[n])
		if n%20 == 19 { // many small blocks
			seal(s)
		}
	}
	seal(s)
	i := slices.IndexFunc(recs, func(r event.Record) bool { _, ok := r.Event.(event.MessageQueued); return ok })
	ask := func() (rows []string) {
		t.Helper()
		for _, q := range []trackapi.Query{{Domain: domainName(1)}, {Recipient: recs[i].Event.(event.MessageQueued).Recipients[0].Address}, {Sender: "*@" + domainName(2)}} {
			q.From = recs[0].Time.AddDate(0, 0, -1)
			q.Limit = 500
			got, err := s.Messages(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range got.Messages {
				rows = append(rows, m.QueueID)
			}
		}
		return rows
	}
	want := ask()
	if len(want) == 0 {
		t.Fatal("nothing is found")
	}
	p := s.active
	if len(p.runs) == 0 {
		t.Fatal("no run was made")
	}
	count := func() int {
		n := len(p.fresh)
		for _, r := range p.runs {
			n += len(r.blocks)
		}
		return n
	}
	ranges := func() {
		t.Helper()
		for _, r := range p.runs {
			var want acceptance
			for _, h := range p.heads {
				if slices.Contains(r.blocks, h.seq) {
					want.include(h.acceptance)
				}
			}
			if !want.hasMsg || r.accepted != want {
				t.Errorf("a run of %d blocks has messages accepted in %v, want %v", len(r.blocks), r.accepted, want)
			}
		}
	}
	ranges()
	before := count()
	err := p.db.Update(func(txn *badger.Txn) error { return txn.Set(p.runs[0].key, []byte("damaged")) })
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	if got := ask(); !slices.Equal(got, want) {
		t.Errorf("after the damage %d rows are found, want %d", len(got), len(want))
	}
	p = s.active
	if got := count(); got != before {
		t.Errorf("%d blocks are indexed, want %d", got, before)
	}
	ranges()
	if err := p.finish(); err != nil {
		t.Fatal(err)
	}
	if err := p.acquire(false); err != nil {
		t.Fatal(err)
	}
	defer p.release()
	if len(p.fresh) != 0 {
		t.Errorf("%d blocks of a finished partition are in no run", len(p.fresh))
	}
	ranges()
	if got := ask(); !slices.Equal(got, want) {
		t.Errorf("once finished %d rows are found, want %d", len(got), len(want))
	}
}

// TestSorted compares with a sort that compares: postings that share octets of
// their hashes, that are alike but for their block, and none.
func TestSorted(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 5))
	for _, test := range []struct {
		name string
		n    int
		mask posting // of what differs
	}{
		{"none", 0, 0},
		{"one", 1, ^posting(0)},
		{"all bits", 3000, ^posting(0)},
		{"kinds only", 300, 0xff << 56},
		{"one octet in the midst, and blocks", 3000, 0xff<<32 | runMost - 1},
		{"alike", 300, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			list := make([]posting, test.n)
			for i := range list {
				list[i] = posting(rng.Uint64()) & test.mask
			}
			want := slices.Clone(list)
			slices.SortStableFunc(want, func(a, b posting) int { return cmp.Compare(a>>hashShift, b>>hashShift) })
			if got := sorted(list, make([]posting, len(list))); !slices.Equal(got, want) {
				t.Errorf("%d postings are not in order, or not those that were given", test.n)
			}
		})
	}
}
