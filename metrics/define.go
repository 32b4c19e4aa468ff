package metrics

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const namespace = "waybill"

// Metric describes one metric, for the reference and for tests of dashboards.
type Metric struct {
	Name    string // in full, such as "waybill_connections_total"
	Type    string // counter, gauge or histogram
	Help    string
	Labels  []Label
	Buckets []float64 // of a histogram's classic form
}

// Label describes one label of a metric.
type Label struct {
	Name   string
	Values []string // the closed set; nil where configuration or the queue decides
	Note   string   // where the values come from, or empty
}

// definer makes families once, and their children again for every set of
// connectors.
type definer struct {
	reg       prometheus.Registerer
	known     map[string]prometheus.Collector
	catalogue []Metric
	levels    []Metric // levels' part of the catalogue
	overflow  *prometheus.CounterVec
	reload    *reload
}

// begin starts the list of families anew.
func (d *definer) begin() {
	d.catalogue = nil
	if d.overflow == nil {
		d.overflow = prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: namespace + "_metric_label_overflow_total", Help: overflowHelp,
		}, []string{"metric"})
		d.reg.MustRegister(d.overflow)
	}
}

const overflowHelp = `Samples whose label value was not in its closed set, and was folded into "other".`

// done ends the list.
func (d *definer) done() {
	d.catalogue = append(d.catalogue, Metric{
		Name: namespace + "_metric_label_overflow_total", Type: "counter", Help: overflowHelp,
		Labels: []Label{{Name: "metric", Note: "name of a metric"}},
	})
	d.catalogue = append(d.catalogue, d.levels...)
}

func (d *definer) note(name, typ, help string, buckets []float64, dims []dim) {
	m := Metric{Name: name, Type: typ, Help: help, Buckets: buckets}
	for _, dm := range dims {
		l := Label{Name: dm.label, Note: dm.note}
		if dm.fold != foldRarely || dm.note == "" {
			l.Values = slices.Clone(dm.words)
			if !dm.exact && dm.fold != foldRarely {
				l.Values = append(l.Values, other)
			}
		}
		m.Labels = append(m.Labels, l)
	}
	d.catalogue = append(d.catalogue, m)
}

// family resolves label values to the index of a child.
type family struct {
	name     string
	dims     []index
	overflow prometheus.Counter // nil when no dim counts
}

type index struct {
	dim
	at   map[string]int
	size int // words and other
}

func (d *definer) family(name string, dims []dim) (f family, total int) {
	f.name, total = name, 1
	counted := false
	if len(dims) > len(places{}) {
		panic(fmt.Sprintf("metric %s has %d labels", name, len(dims)))
	}
	for _, dm := range dims {
		ix := index{dim: dm, at: make(map[string]int, len(dm.words)), size: len(dm.words)}
		for i, w := range dm.words {
			ix.at[w] = i
		}
		if !dm.exact {
			if _, twice := ix.at[other]; twice {
				panic(fmt.Sprintf("metric %s: label %s lists %q", name, dm.label, other))
			}
			ix.size++
			counted = counted || dm.fold != foldQuietly
		}
		f.dims = append(f.dims, ix)
		total *= ix.size
	}
	if counted {
		f.overflow = d.overflow.WithLabelValues(name)
	}
	return f, total
}

// place is where a word stands in its dim; the complement of that for one that
// was folded and counts. Dims of the same words have the same places, so that a
// word that several families ask for is found once.
type place int

// places are where the words of the families' dims stand that facts repeat.
type places [3]place

// find is the place of word.
func (ix *index) find(word string) place {
	if i, ok := ix.at[word]; ok {
		return place(i)
	}
	if ix.exact {
		panic(fmt.Sprintf("label %s has no value %q", ix.label, word))
	}
	if ix.fold != foldQuietly && word != other {
		return ^place(len(ix.words))
	}
	return place(len(ix.words))
}

// find is the place of word in dim k.
func (f *family) find(k int, word string) place { return f.dims[k].find(word) }

// at are the places of words, one for each dim.
func (f *family) at(words []string) (at places) {
	for k := range f.dims {
		at[k] = f.dims[k].find(words[k])
	}
	return at
}

// child is the index of the child at the places.
func (f *family) child(at *places) (i int) {
	folded := false
	for k := range f.dims {
		p := at[k]
		if p < 0 {
			folded, p = true, ^p
		}
		i = i*f.dims[k].size + int(p)
	}
	if folded {
		f.overflow.Inc()
	}
	return i
}

// values are the label values of child i, and whether the child exists from the
// start.
func (f *family) values(i int) (words []string, early bool) {
	words, early = make([]string, len(f.dims)), true
	for k := range slices.Backward(f.dims) {
		ix := &f.dims[k]
		n := i % ix.size
		i /= ix.size
		words[k] = other
		if n < len(ix.words) {
			words[k] = ix.words[n]
		} else if ix.fold == foldRarely {
			early = false
		}
	}
	return words, early
}

func labelNames(dims []dim) (names []string) {
	for _, dm := range dims {
		names = append(names, dm.label)
	}
	return names
}

// counters is a counter for each combination of its labels' values.
type counters struct {
	family
	vec  *prometheus.CounterVec
	kids []prometheus.Counter
}

func (d *definer) counters(name, help string, dims ...dim) *counters {
	name = namespace + "_" + name
	d.note(name, "counter", help, nil, dims)
	f, total := d.family(name, dims)
	c := &counters{family: f, kids: make([]prometheus.Counter, total)}
	if vec, ok := d.known[name].(*prometheus.CounterVec); ok {
		c.vec = vec
	} else {
		c.vec = prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labelNames(dims))
		d.reg.MustRegister(c.vec)
		d.known[name] = c.vec
	}
	for i := range c.kids {
		if words, early := f.values(i); early {
			c.kids[i] = c.vec.WithLabelValues(words...)
		}
	}
	return c
}

func (c *counters) inc(words ...string) { c.add(1, words...) }

func (c *counters) add(n float64, words ...string) { c.addAt(n, c.at(words)) }

// addAt is add for words whose places are known.
func (c *counters) addAt(n float64, at places) {
	i := c.child(&at)
	kid := c.kids[i]
	if kid == nil { // a rare fold
		labels, _ := c.values(i)
		kid = c.vec.WithLabelValues(labels...)
	}
	kid.Add(n)
}

// histograms is a histogram for each combination of its labels' values, in the
// classic and in the native form.
type histograms struct {
	family
	vec   *prometheus.HistogramVec
	kids  []prometheus.Observer
	marks []mark
}

// mark is the latest exemplar of a histogram.
type mark struct {
	at    atomic.Int64 // nanoseconds since 1970
	value atomic.Uint64
}

// exemplarEvery is how often a histogram gets an exemplar of no note. A scrape
// sees the latest of each bucket only, and each costs more than the counting.
const exemplarEvery = 100 * time.Millisecond

// due reports whether v is worth an exemplar: it is greater than the latest
// one's, or that one is old.
func (m *mark) due(v float64) bool {
	now := time.Now().UnixNano()
	if age := now - m.at.Load(); age >= 0 && age < int64(exemplarEvery) && v <= math.Float64frombits(m.value.Load()) {
		return false
	}
	m.at.Store(now)
	m.value.Store(math.Float64bits(v))
	return true
}

func (d *definer) histograms(name, help string, buckets []float64, dims ...dim) *histograms {
	name = namespace + "_" + name
	d.note(name, "histogram", help, buckets, dims)
	f, total := d.family(name, dims)
	h := &histograms{family: f, kids: make([]prometheus.Observer, total), marks: make([]mark, total)}
	if vec, ok := d.known[name].(*prometheus.HistogramVec); ok {
		h.vec = vec
	} else {
		h.vec = prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name, Help: help, Buckets: buckets,
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160, NativeHistogramMinResetDuration: time.Hour,
		}, labelNames(dims))
		d.reg.MustRegister(h.vec)
		d.known[name] = h.vec
	}
	for i := range h.kids {
		if words, early := f.values(i); early {
			h.kids[i] = h.vec.WithLabelValues(words...)
		}
	}
	return h
}

// observe counts v. A message's uid, when not empty, may become the exemplar
// that leads from a graph to the message.
func (h *histograms) observe(v float64, uid string, words ...string) {
	h.observeAt(v, uid, h.at(words))
}

// observeAt is observe for words whose places are known.
func (h *histograms) observeAt(v float64, uid string, at places) {
	i := h.child(&at)
	kid := h.kids[i]
	if kid == nil { // a rare fold
		labels, _ := h.values(i)
		kid = h.vec.WithLabelValues(labels...)
	}
	if uid != "" && h.marks[i].due(v) && validUID(uid) {
		if ex, ok := kid.(prometheus.ExemplarObserver); ok {
			ex.ObserveWithExemplar(v, prometheus.Labels{"message_uid": uid})
			return
		}
	}
	kid.Observe(v)
}

// validUID keeps out what the client library would panic on. A UID may come
// from an import.
func validUID(uid string) bool {
	if len(uid) > 64 {
		return false
	}
	for i := range len(uid) {
		if c := uid[i]; c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

// reload remembers how the latest change of configuration went.
type reload struct {
	mu sync.Mutex
	ok bool
	at time.Time // of the latest success
}

func (d *definer) reloadState() *reload {
	if d.reload == nil { // the configuration that the program started with is in use
		d.reload = &reload{ok: true, at: time.Now()}
	}
	return d.reload
}

func (r *reload) note(at time.Time, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ok = ok
	if ok {
		r.at = at
	}
}

func (r *reload) state() (ok bool, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ok, r.at
}
