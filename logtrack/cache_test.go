package logtrack

import (
	"testing"
	"time"

	"waybill/logtrack/trackapi"
)

// TestCacheKeepsItsSize reads many blocks through a cache that has room for a few.
func TestCacheKeepsItsSize(t *testing.T) {
	recs := facts(31, 4000)
	s := openStore(t, t.TempDir(), func(o *Options) { o.CacheBytes = 1 << 20 })
	for i := range recs {
		s.Write(&recs[i])
	}
	seal(s)
	q := trackapi.AggregateQuery{Query: trackapi.Query{From: recs[0].Time, To: time.Now()}, Metric: "count", By: []string{"client_ip"}}
	for range 2 {
		got := must1[*trackapi.Aggregate](t)(s.Aggregate(t.Context(), q))
		if len(got.Series) == 0 {
			t.Error("nothing was counted")
		}
		if n := s.cache.size(); n < viewCost || n > 1<<20 {
			t.Errorf("the cache takes %d octets, want at most %d", n, 1<<20)
		}
	}
	total := int64(0)
	for _, e := range s.cache.byKey {
		c := e.Value.(*cached)
		total += c.size
		if want := viewCost + c.view.size; c.size != want {
			t.Errorf("a view of %d octets counts as %d", want, c.size)
		}
	}
	if total != s.cache.size() {
		t.Errorf("views of %d octets count as %d", total, s.cache.size())
	}
}
