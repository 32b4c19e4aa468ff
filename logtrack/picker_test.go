package logtrack

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
)

// TestPickedRowsAreThoseOfTheBlock picks random rows of random blocks.
func TestPickedRowsAreThoseOfTheBlock(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 11))
		e := encodeBlock(1, append(randomRecords(rng, 1+rng.IntN(200)), facts(seed, 40)...))
		var rows []pickedRow
		var at []int
		for typ, run := range e.head.types.unpack() {
			for row := range run.n {
				if rng.IntN(9) == 0 {
					rows, at = append(rows, pickedRow{typ, row}), append(at, run.start+row)
				}
			}
		}
		if len(rows) == 0 {
			continue
		}
		k, err := newPicker(e.head, e.body)
		if err != nil {
			t.Fatal(err)
		}
		got, err := k.pick(rows, func(int) readSet { return readRow }) // more than lists need of rows that lead
		k.release()
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		v := viewOf(e)
		for i, row := range at {
			typ, _ := v.typeOf(row)
			if err := v.needRecords(typ, readRow); err != nil {
				t.Fatal(err)
			}
			want := must1[event.Record](t)(v.record(row, readRow))
			picked := got[i]
			if g, w := jsonOf(t, &picked), jsonOf(t, &want); g != w {
				t.Fatalf("seed %d: row %d is picked as\n%s, want\n%s", seed, row, g, w)
			}
		}
	}
}

// TestLeadsAreReadAlone picks all rows that lead, with what lists need of
// them, and nothing else may be needed for that.
func TestLeadsAreReadAlone(t *testing.T) {
	m := newMailer(9)
	var recs []event.Record
	for len(recs) < blockRows {
		recs = append(recs, m.next()...)
	}
	e := encodeBlock(1, recs[:blockRows])
	types := e.head.types.unpack()
	var rows []pickedRow
	for typ, run := range types {
		if leads(run.name) {
			for row := range run.n {
				rows = append(rows, pickedRow{typ, row})
			}
		}
	}
	k, err := newPicker(e.head, e.body)
	if err != nil {
		t.Fatal(err)
	}
	defer k.release()
	k.led = true
	got, err := k.records(rows, func(typ int) readSet { return leadSets[types[typ].name] })
	if err != nil {
		t.Fatal(err)
	}
	if k.keyed || len(rows) < blockRows/10 {
		t.Errorf("of %d rows that lead, some could not be read alone", len(rows))
	}
	views := map[readSet]*view{readRow: viewOf(e), readFinal: viewOf(e)}
	for i, row := range rows {
		set := leadSets[types[row.t].name]
		v := views[set]
		if err := v.needRecords(row.t, set); err != nil {
			t.Fatal(err)
		}
		want := must1[event.Record](t)(v.record(types[row.t].start+row.at, set))
		picked := got[i]
		if g, w := jsonOf(t, &picked), jsonOf(t, &want); g != w {
			t.Fatalf("row %d is picked as\n%s, want\n%s", i, g, w)
		}
	}
}

// TestGlancesEqualFolds compares what a glance tells of messages with what all
// of their facts tell.
func TestGlancesEqualFolds(t *testing.T) {
	s, from := rollupStore(t)
	sn, err := s.snapshot(func(*meta) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	defer sn.release()
	page := must1[*trackapi.Messages](t)(s.Messages(t.Context(), trackapi.Query{From: from.Add(-time.Hour), To: time.Now().Add(time.Hour), Limit: 1000}))
	var ids []position
	for _, m := range page.Messages {
		ids = append(ids, position{acceptMS(m.QueueID), m.QueueID})
	}
	folds, rest, err := sn.glances(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	if len(folds) < len(ids)/2 || len(folds)+len(rest) != len(ids) {
		t.Errorf("of %d messages, a glance was enough for %d and not for %d", len(ids), len(folds), len(rest))
	}
	all, err := sn.messageFacts(t.Context(), ids, readAll)
	if err != nil {
		t.Fatal(err)
	}
	text := func(fo *fold) string {
		b, err := json.Marshal(fo.message())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for id, fo := range folds {
		if got, want := text(fo), text(foldFacts(id, all[id])); got != want {
			t.Errorf("a glance tells\n%s, want\n%s", got, want)
		}
	}
}

func FuzzPicker(f *testing.F) {
	e := encodeBlock(1, append(randomRecords(rand.New(rand.NewPCG(5, 5)), 12), facts(3, 3)...))
	f.Add(e.head.append(nil), e.body)
	f.Add([]byte{1}, []byte{2, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, head, body []byte) {
		h, err := readHeader(1, head, same)
		if err != nil {
			h = e.head
		}
		if len(body) < bodyStart {
			return
		}
		k, err := newPicker(h, sign(bytes.Clone(body)))
		if err != nil {
			return
		}
		defer k.release()
		var rows []pickedRow
		for typ, run := range h.types.unpack() {
			if run.n > 0 && planNames[run.name] != nil {
				rows = append(rows, pickedRow{typ, run.n - 1})
			}
		}
		_, _ = k.messages([]string{"01JZ8Z0Z0Z0Z0Z0Z0Z0Z0Z0Z0Z", "x"})
		_, _ = k.pick(rows, func(int) readSet { return readRow }) // only that it ends
	})
}

// TestSeveralLatencies asks for several percentiles at once, and one by one.
func TestSeveralLatencies(t *testing.T) {
	s, from := rollupStore(t)
	metrics := []string{"latency_p50", "latency_p95", "latency_max"}
	for _, blocks := range []int{0, 1 << 30} {
		for _, step := range []time.Duration{0, time.Minute} {
			s.exactBlocks = blocks
			q := trackapi.AggregateQuery{Query: trackapi.Query{From: from, To: from.Add(10 * time.Minute)}, By: []string{"provider"}, Step: step, Metric: strings.Join(metrics, ",")}
			got := must1[*trackapi.Aggregate](t)(s.Aggregate(t.Context(), q))
			for _, m := range metrics {
				q.Metric = m
				want := byLabels(must1[*trackapi.Aggregate](t)(s.Aggregate(t.Context(), q)))
				n := 0
				for _, series := range got.Series {
					if series.Metric != m {
						continue
					}
					n++
					if w := want[fmt.Sprint(series.Labels)]; !near(series.Points, w, 0) {
						t.Errorf("%s of %v is %v among others, want %v", m, series.Labels, series.Points, w)
					}
				}
				if n != len(want) || n == 0 {
					t.Errorf("%d groups of %s, want %d", n, m, len(want))
				}
			}
		}
	}
}
