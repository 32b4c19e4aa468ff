package logtrack

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
)

// rollupStore is a store whose facts are partly in a run of the index, partly
// in fresh blocks, and partly in memory.
func rollupStore(t *testing.T) (s *Store, from time.Time) {
	t.Helper()
	recs := facts(21, 1500)
	s = openStore(t, t.TempDir())
	for i := range recs {
		s.Write(&recs[i])
		switch {
		case i == len(recs)/2:
			seal(s)
			p := s.parts[0]
			if err := p.acquire(true); err != nil {
				t.Fatal(err)
			}
			if err := p.settleIndex(true); err != nil {
				t.Fatal(err)
			}
			p.release()
		case i%400 == 0 && i < len(recs)*4/5:
			seal(s)
		}
	}
	return s, recs[0].Time
}

// byLabels has the points of an answer by what its series are called.
func byLabels(a *trackapi.Aggregate) map[string][]trackapi.Point {
	m := map[string][]trackapi.Point{}
	for _, s := range a.Series {
		m[fmt.Sprint(s.Labels)] = s.Points
	}
	return m
}

// near compares points, whose values may be off by a share of themselves.
func near(got, want []trackapi.Point, share float64) bool {
	return slices.EqualFunc(got, want, func(g, w trackapi.Point) bool {
		if g.Value == nil || w.Value == nil {
			return g.Value == w.Value
		}
		return g.Time.Equal(w.Time) && math.Abs(*g.Value-*w.Value) <= share**w.Value+2e-6
	})
}

// TestRollupsEqualFacts asks the same of rollups and of facts.
func TestRollupsEqualFacts(t *testing.T) {
	s, from := rollupStore(t)
	rng := rand.New(rand.NewPCG(4, 4))
	filters := []trackapi.Query{
		{},
		{Disposition: "bounced"},
		{Disposition: "bounced,deferred"},
		{Class: "greylist"},
		{Q: "-class:greylist"},
		{Domain: "gmail.example"},
		{Q: "-disposition:relayed domain:*.test"},
		{Connector: "internet"},
		{Connector: "submission"},
		{Sender: "@brand3.example"},
		{Provider: "google,yahoo"},
	}
	dims := [][]string{nil, {"disposition"}, {"recipient_domain"}, {"sender_domain"}, {"class", "code"}, {"remote_host", "class"}, {"connector", "provider"}, {"queue"}, {"client_ip"}}
	for _, metric := range trackapi.Metrics() {
		for _, by := range dims {
			if metric == "bytes" && len(by) > 0 && by[0] != "sender_domain" {
				continue
			}
			for range 6 {
				q := trackapi.AggregateQuery{Query: filters[rng.IntN(len(filters))], Metric: metric, By: by, Top: 100}
				if metric == "bytes" {
					q.Query = []trackapi.Query{{}, {Sender: "@brand3.example"}}[rng.IntN(2)]
				}
				q.From = from.Add(time.Duration(rng.Int64N(int64(4 * time.Second)))) // within a minute
				q.To = q.From.Add(time.Duration(rng.Int64N(int64(20 * time.Minute))))
				q.Step = []time.Duration{0, time.Minute, 3 * time.Minute}[rng.IntN(3)]
				name := fmt.Sprintf("%s by %v of %+v", metric, by, q.Query)
				s.exactBlocks = 1 << 30
				want := must1[*trackapi.Aggregate](t)(s.Aggregate(t.Context(), q))
				s.exactBlocks = 0
				got := must1[*trackapi.Aggregate](t)(s.Aggregate(t.Context(), q))
				if !want.Exact {
					t.Errorf("%s: facts give no exact answer", name)
				}
				share := got.Error
				if metric == "latency_max" {
					share = bucketError
				}
				g, w := byLabels(got), byLabels(want)
				if len(by) > 0 && len(w) > 100 { // which groups are the greatest is told by their values
					maps.DeleteFunc(g, func(k string, _ []trackapi.Point) bool { return w[k] == nil || len(k) == 0 || k == other(by) })
					maps.DeleteFunc(w, func(k string, _ []trackapi.Point) bool { return g[k] == nil })
				}
				if !maps.EqualFunc(g, w, func(g, w []trackapi.Point) bool { return near(g, w, share) }) {
					t.Errorf("%s, step %s: rollups answer\n%v, want\n%v", name, q.Step, show(g), show(w))
				}
			}
		}
	}
}

// TestClientsFromRollups asks who has submitted what, of rollups and of facts,
// in ranges that are longer than a row of a rollup tells together.
func TestClientsFromRollups(t *testing.T) {
	s, from := rollupStore(t)
	rng := rand.New(rand.NewPCG(4, 5))
	some := must1[*trackapi.Messages](t)(s.Messages(t.Context(), trackapi.Query{From: from.Add(-time.Hour), Limit: 1})).Messages[0]
	filters := []trackapi.Query{
		{},
		{Disposition: "bounced"},
		{ClientIP: some.ClientIP},
		{ClientIP: "10.0.0.0/8", Disposition: "relayed"},
		{AuthUser: "app*"},
		{Q: "-client_ip:" + some.ClientIP + " -disposition:deferred"},
	}
	for _, by := range [][]string{{"client_ip"}, {"auth_user"}, {"client_ip", "disposition"}, {"auth_user", "client_ip"}} {
		for _, filter := range filters {
			for range 4 {
				q := trackapi.AggregateQuery{Query: filter, Metric: []string{"count", "rate"}[rng.IntN(2)], By: by, Top: 100}
				q.From = from.Add(-time.Duration(rng.Int64N(int64(time.Hour))))
				q.To = from.Add(time.Duration(rng.Int64N(int64(2 * time.Hour))))
				q.Step = []time.Duration{0, 15 * time.Minute, time.Hour}[rng.IntN(3)]
				f := must1[*filterOf](t)(filterFor(q))
				if !f.a.canRoll(f.filter) {
					t.Errorf("%s by %v of %+v is not answered from rollups", q.Metric, by, filter)
				}
				s.exactBlocks = 1 << 30
				want := byLabels(must1[*trackapi.Aggregate](t)(s.Aggregate(t.Context(), q)))
				s.exactBlocks = 0
				got := byLabels(must1[*trackapi.Aggregate](t)(s.Aggregate(t.Context(), q)))
				if !maps.EqualFunc(got, want, func(g, w []trackapi.Point) bool { return near(g, w, 0) }) {
					t.Errorf("%s by %v of %+v, step %s: rollups answer\n%v, want\n%v", q.Metric, by, filter, q.Step, show(got), show(want))
				}
			}
		}
	}
}

// filterOf is an aggregate as it is compiled.
type filterOf struct {
	filter *filter
	a      *aggregation
}

func filterFor(q trackapi.AggregateQuery) (*filterOf, error) {
	f, err := compile(q.Query, true)
	if err != nil {
		return nil, err
	}
	a, err := newAggregation(q, f)
	return &filterOf{f, a}, err
}

func other(by []string) string {
	labels := map[string]string{}
	for _, d := range by {
		labels[d] = otherGroup
	}
	return fmt.Sprint(labels)
}

func show(m map[string][]trackapi.Point) string {
	var b bytes.Buffer
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&b, "  %s:", k)
		for _, p := range m[k] {
			if p.Value != nil && *p.Value != 0 {
				fmt.Fprintf(&b, " %s=%g", p.Time.Format("15:04:05"), *p.Value)
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// TestRollupOfViewEqualsRollupOfRecords gathers the rollup of random facts
// from the records, and again from the block that was made of them.
func TestRollupOfViewEqualsRollupOfRecords(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 9))
		recs := append(randomRecords(rng, 1+rng.IntN(300)), facts(seed, 20)...)
		want := rollupOf(recs)
		got, err := rollupOfView(viewOf(encodeBlock(1, recs)))
		if err != nil {
			t.Fatal(err)
		}
		if g, w := rollRows(summed(got)), rollRows(summed(want)); !slices.Equal(g, w) {
			t.Fatalf("seed %d: %d rows from the block, %d from the records", seed, len(g), len(w))
		}
	}
}

// summed makes one of rows that are alike.
func summed(r *rollup) *rollup {
	b := newRollBuilder()
	b.merge(r)
	return b.done()
}

// TestMergedRollupsLoseNothing merges the rollups of parts of random facts.
func TestMergedRollupsLoseNothing(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 10))
		recs := facts(seed, 200)
		want := newRollBuilder()
		want.merge(rollupOf(recs))
		var parts []fresh
		var room []byte
		for len(recs) > 0 {
			n := min(1+rng.IntN(60), len(recs))
			parts = append(parts, fresh{roll: rollupOf(recs[:n]).young(&room)})
			recs = recs[n:]
		}
		got, err := mergeRollups(parts)
		if err != nil {
			t.Fatal(err)
		}
		if g, w := rollRows(got), rollRows(want.done()); !slices.Equal(g, w) {
			t.Fatalf("seed %d: %d rows of parts, %d of all", seed, len(g), len(w))
		}
	}
}

// rollRows writes the rows of a rollup, in an order of their own.
func rollRows(r *rollup) []string {
	var list []string
	for row := range r.rows {
		var values []string
		for _, d := range r.dims {
			values = append(values, d.dict[d.codes[row]])
		}
		list = append(list, fmt.Sprintf("%q %d %d %d %d", values, r.minute[row], r.bucket[row], r.n[row], r.sum[row]))
	}
	slices.Sort(list)
	return list
}

func TestRollupComesBack(t *testing.T) {
	want := rollupOf(facts(3, 500))
	got, err := readRollup(want.encode(), func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(rollRows(got), rollRows(want)) || got.lo != want.lo || got.hi != want.hi {
		t.Error("a rollup comes back as another")
	}
}

// TestAnswersWithoutRollups asks a store whose rollups are of another version,
// damaged, or not there: facts are read instead, and they are made again.
func TestAnswersWithoutRollups(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(txn *badger.Txn, key []byte, value []byte) error
	}{
		{"of another version", func(txn *badger.Txn, key, value []byte) error {
			value[0] = 200
			return txn.Set(key, value)
		}},
		{"damaged", func(txn *badger.Txn, key, value []byte) error {
			value[len(value)/2] ^= 1
			return txn.Set(key, value)
		}},
		{"not there", func(txn *badger.Txn, key, _ []byte) error { return txn.Delete(key) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			recs := facts(5, 400)
			dir := t.TempDir()
			s, err := Open(Options{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			for i := range recs {
				s.Write(&recs[i])
			}
			seal(s)
			q := trackapi.AggregateQuery{Metric: "count", By: []string{"disposition"}, Query: trackapi.Query{From: recs[0].Time.Add(-time.Hour)}}
			s.exactBlocks = 0
			want := byLabels(must1[*trackapi.Aggregate](t)(s.Aggregate(t.Context(), q)))
			p := s.parts[0]
			if err := p.acquire(true); err != nil {
				t.Fatal(err)
			}
			if err := p.settleIndex(true); err != nil {
				t.Fatal(err)
			}
			err = p.db.Update(func(txn *badger.Txn) error {
				key := rollKey(p.runs[0])
				item, err := txn.Get(key)
				if err != nil {
					return err
				}
				value, err := item.ValueCopy(nil)
				if err != nil {
					return err
				}
				return test.change(txn, key, value)
			})
			if err != nil {
				t.Fatal(err)
			}
			p.release()
			ask := func(when string) {
				t.Helper()
				if got := byLabels(must1[*trackapi.Aggregate](t)(s.Aggregate(t.Context(), q))); !maps.EqualFunc(got, want, func(g, w []trackapi.Point) bool { return near(g, w, 0) }) {
					t.Errorf("%s: answer is\n%s, want\n%s", when, show(got), show(want))
				}
			}
			ask("at once")
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, dir)
			s.exactBlocks = 0
			ask("after a restart")
			s.maintain(time.Now())
			if err := s.parts[0].acquire(false); err != nil {
				t.Fatal(err)
			}
			defer s.parts[0].release()
			if s.parts[0].runs[0].roll == nil {
				t.Error("the rollup was not made again")
			}
			ask("made again")
		})
	}
}

func FuzzReadRollup(f *testing.F) {
	f.Add(rollupOf(facts(3, 10)).encode())
	f.Add(rollupOf([]event.Record{}).encode())
	f.Fuzz(func(t *testing.T, src []byte) {
		if len(src) < bodyStart {
			return
		}
		src = signRollup(bytes.Clone(src))
		r, err := readRollup(src, func(string) bool { return true })
		if err != nil {
			return
		}
		if n := len(rollRows(r)); n != r.rows {
			t.Errorf("%d rows of %d", n, r.rows)
		}
	})
}
