package logtrack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// Percentiles over many facts come from buckets whose bounds grow by this
// factor from a microsecond on, so that a value is off by less than bucketError.
const (
	bucketGrowth = 1.05
	bucketError  = 0.025
	// maxGroups bounds the groups of one aggregate; what comes later counts as other.
	maxGroups = 20000
	// maxCells bounds the values of one aggregate.
	maxCells = 2_000_000
)

var logGrowth = math.Log(bucketGrowth)

func bucketOf(micros int64) uint16 {
	if micros < 1 {
		return 0
	}
	return uint16(1 + math.Log(float64(micros))/logGrowth)
}

// bucketMid is a value in the middle of a bucket, in seconds.
func bucketMid(b uint16) float64 {
	if b == 0 {
		return 0
	}
	return math.Pow(bucketGrowth, float64(b)-0.5) / 1e6
}

// cell gathers the values of one group in one step.
type cell struct {
	n    int64
	sum  int64
	max  int64
	few  []bucketCount // in order; while there are few buckets
	lo   uint16        // the bucket of many[0]
	many []int64
	vals []int64 // all values, while they are kept
}

type bucketCount struct {
	bucket uint16
	n      int64
}

// fewBuckets is how many buckets are searched rather than looked up.
const fewBuckets = 12

// count adds n to a bucket.
func (c *cell) count(bucket uint16, n int64) {
	if c.many != nil {
		c.dense(bucket, n)
		return
	}
	i, ok := slices.BinarySearchFunc(c.few, bucket, func(b bucketCount, want uint16) int { return cmp.Compare(b.bucket, want) })
	switch {
	case ok:
		c.few[i].n += n
	case len(c.few) < fewBuckets:
		c.few = slices.Insert(c.few, i, bucketCount{bucket, n})
	default:
		lo, hi := min(c.few[0].bucket, bucket), max(c.few[len(c.few)-1].bucket, bucket)
		c.lo, c.many = lo, make([]int64, hi-lo+1)
		for _, b := range c.few {
			c.many[b.bucket-lo] = b.n
		}
		c.few = nil
		c.many[bucket-lo] += n
	}
}

func (c *cell) dense(bucket uint16, n int64) {
	if bucket < c.lo {
		c.many = append(make([]int64, c.lo-bucket, int(c.lo-bucket)+len(c.many)), c.many...)
		c.lo = bucket
	}
	if more := int(bucket-c.lo) + 1 - len(c.many); more > 0 {
		c.many = append(c.many, make([]int64, more)...)
	}
	c.many[bucket-c.lo] += n
}

// buckets calls each with the buckets in order until it returns false.
func (c *cell) buckets(each func(bucket uint16, n int64) bool) {
	for _, b := range c.few {
		if !each(b.bucket, b.n) {
			return
		}
	}
	for i, n := range c.many {
		if n > 0 && !each(c.lo+uint16(i), n) {
			return
		}
	}
}

func (c *cell) merge(o *cell) {
	c.n += o.n
	c.sum += o.sum
	c.max = max(c.max, o.max)
	o.buckets(func(bucket uint16, n int64) bool {
		c.count(bucket, n)
		return true
	})
	c.vals = append(c.vals, o.vals...)
}

// quantile is the value below which the share q of all are: exact while all
// values are kept, and else the middle of its bucket.
func (c *cell) quantile(q float64) float64 {
	rank := int64(math.Ceil(q * float64(c.n)))
	if len(c.vals) > 0 {
		slices.Sort(c.vals)
		return float64(c.vals[max(0, min(rank, int64(len(c.vals)))-1)]) / 1e6
	}
	found := float64(c.max) / 1e6
	c.buckets(func(bucket uint16, n int64) bool {
		if rank -= n; rank <= 0 {
			found = bucketMid(bucket)
		}
		return rank > 0
	})
	return found
}

type groupKey [2]string

type group struct {
	cells  map[int64]*cell // by step; only when there are steps
	total  cell
	last   *cell // of the latest value, whose neighbours in time mostly follow
	lastAt int64
}

// aggregation is an aggregate being computed.
type aggregation struct {
	metric   string   // the first
	metrics  []string // several only of latency
	dims     []dimension
	step     int64 // microseconds; 0: one value
	from, to int64
	outcomes bool // count recipients' outcomes, not facts
	minutes  bool // when something was matters, even without steps
	octets   bool // sum the sizes of accepted messages
	hist     bool
	keep     bool   // all values, for exact percentiles
	rolled   bool   // some of the answer is from rollups
	column   string // of the value, or "" to count
	asked    []outcomeFilter

	mu     sync.Mutex
	groups map[groupKey]*group
	cells  int
	cut    string
}

// dimension is something to group by: where its value is, of a fact or of one
// of its recipients.
type dimension struct {
	name      string
	text      string // column of the fact
	child     string // column of its recipients
	num       bool   // both are integers
	of        func(string) string
	elsewhere []string // further columns of the fact, when the first has no value
}

var dimensions = map[string]dimension{
	"sender_domain":    {text: "mail_from", of: senderDomain},
	"recipient_domain": {text: "recipient", child: "recipients.address", of: domainOf},
	"connector":        {text: "connector_out", elsewhere: []string{"connector_in", "connector"}},
	"remote_host":      {text: "remote_name", elsewhere: []string{"remote_ip"}, of: lower},
	"provider":         {text: "provider"},
	"queue":            {text: "queue"},
	"disposition":      {text: "disposition", child: "recipients.disposition", num: true},
	"class":            {text: "class", child: "recipients.class"},
	"code":             {text: "code", child: "recipients.code", num: true},
	"event":            {},
	"client_ip":        {text: "client_ip"},
	"auth_user":        {text: "auth_user"},
	"reason":           {text: "reason"},
	"node":             {text: "node"},
}

// senderDomain groups the null reverse-path under its own name.
func senderDomain(s string) string {
	if s == event.NullSender {
		return s
	}
	return domainOf(s)
}

// Aggregate computes numbers over facts. Wrong parameters give a
// *trackapi.Problem.
func (s *Store) Aggregate(ctx context.Context, q trackapi.AggregateQuery) (*trackapi.Aggregate, error) {
	if p := q.Check(); p != nil {
		return nil, p
	}
	f, err := compile(q.Query, true, s.opts.Privacy)
	if err != nil {
		return nil, err
	}
	a, err := newAggregation(q, f)
	if err != nil {
		return nil, err
	}
	select { // these read much; others wait their turn
	case s.heavy <- struct{}{}:
		defer func() { <-s.heavy }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	inRange := func(lo, hi int64) bool { return hi >= f.from && lo < f.to }
	sn, err := s.snapshot(func(m *meta) bool { return inRange(m.MinTS, m.MaxTS) })
	if err != nil {
		return nil, err
	}
	defer sn.release()
	defer s.observe("aggregate", sn)
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	blocks, err := sn.blocks(ctx, f.preds, func(h *header) bool {
		return inRange(h.minTS, h.maxTS) && h.types.has(a.wants) || h.types == nil
	})
	if err != nil {
		return nil, err
	}
	a.keep = a.hist && len(blocks) <= s.exactBlocks
	if len(blocks) > s.exactBlocks && a.canRoll(f) {
		err = a.fromRollups(ctx, sn, f, blocks)
	} else {
		err = parallel(ctx, sn.s.crew, blocks, func(src *source) error { return a.block(sn, src, f) })
	}
	switch {
	case isCut(ctx, err):
		a.cut = fmt.Sprintf("stopped after %s: the numbers are too low; give a shorter time range or an exact filter", s.opts.QueryTimeout)
	case err != nil:
		return nil, err
	case sn.bad.Load() > 0 && a.cut == "":
		a.cut = fmt.Sprintf("%d damaged blocks were left out", sn.bad.Load())
	case a.cut == "":
		a.cut = s.missing()
	}
	out := a.answer(q)
	out.TookMS = sn.took()
	return out, nil
}

// exactBlocks is how many blocks an aggregate reads fact by fact, and so gives
// exact percentiles; above, it reads rollups if they can answer.
const exactBlocks = 64

// fromRollups reads rollups, and facts of those blocks that are in none, and of
// the parts of minutes at the ends of the range.
func (a *aggregation) fromRollups(ctx context.Context, sn *snapshot, f *filter, blocks []*source) error {
	q := a.rolling(f)
	ends := *f
	ends.skip, ends.skipFrom, ends.skipTo = true, q.lo*rollMinute, q.hi*rollMinute
	may := make(map[viewKey]bool, len(blocks)) // what the filters and indexes allow
	for _, b := range blocks {
		if b.part != nil {
			may[viewKey{b.part, b.head.seq}] = true
		}
	}
	type job struct {
		src *source
		f   *filter
	}
	var jobs []job
	for _, p := range sn.parts {
		whole, edges, err := q.roll(ctx, sn, p, f)
		if err != nil {
			return err
		}
		for _, b := range whole {
			if may[viewKey{p, b.head.seq}] {
				jobs = append(jobs, job{b, f})
			}
		}
		for _, b := range edges {
			if may[viewKey{p, b.head.seq}] {
				jobs = append(jobs, job{b, &ends})
			}
		}
	}
	for _, b := range blocks {
		if b.part == nil {
			jobs = append(jobs, job{b, f})
		}
	}
	a.rolled = true
	return parallel(ctx, sn.s.crew, jobs, func(j job) error { return a.block(sn, j.src, j.f) })
}

// holds reports whether a time is in the range of the filter.
func (f *filter) holds(when int64) bool {
	return when >= f.from && when < f.to && (!f.skip || when < f.skipFrom || when >= f.skipTo)
}

func newAggregation(q trackapi.AggregateQuery, f *filter) (*aggregation, error) {
	a := &aggregation{
		metrics: q.Metrics(), step: q.Step.Microseconds(), from: f.from, to: f.to, groups: map[groupKey]*group{},
	}
	a.metric = a.metrics[0]
	if q.To.IsZero() {
		a.to = time.Now().UnixMicro()
		f.to = a.to
	}
	for _, name := range q.By {
		d := dimensions[name]
		d.name = name
		a.dims = append(a.dims, d)
	}
	if a.step > 0 {
		a.from = floorTo(a.from, a.step)
		if (a.to-a.from)/a.step > trackapi.MaxSteps {
			return nil, trackapi.BadParameter("step", "too many points", fmt.Sprintf("at most %d; make the step longer or the range shorter", trackapi.MaxSteps))
		}
	}
	named := slices.ContainsFunc(f.preds, func(p *pred) bool { return p.term.Field == "event" }) || slices.Contains(q.By, "event")
	switch {
	case a.metric == "bytes":
		a.column, a.octets = "size", !named
		if !named {
			f.preds = append(f.preds, &pred{
				term: trackapi.Term{Field: "event"}, field: fields["event"], fact: func(name string) bool { return name == "message_queued" },
			})
		}
	case strings.HasPrefix(a.metric, "latency_"):
		a.column, a.hist = "t_total", slices.ContainsFunc(a.metrics, func(m string) bool { return m != "latency_max" })
		a.outcomes = !named
	default:
		a.outcomes = !named
	}
	if a.outcomes {
		a.ask(f)
	}
	return a, nil
}

// outcomeFilter is a filter that is asked of an outcome, not of the fact that
// tells of it: one attempt has an outcome for each of its recipients.
type outcomeFilter struct {
	dimension
	not bool
	ok  func(string) bool
}

// ask has the filters that tell recipients apart asked of outcomes. Facts are
// still chosen by those that must hold; but a fact with one outcome that must
// not be counted may have others.
func (a *aggregation) ask(f *filter) {
	address := dimension{name: "recipient", text: "recipient", child: "recipients.address"}
	add := func(p *pred, not bool) bool {
		o := outcomeFilter{not: not}
		switch p.term.Field {
		case "recipient", "domain":
			o.dimension, o.ok = address, func(s string) bool { return s != "" && p.text(s) }
		case "disposition", "class":
			o.dimension, o.ok = dimensions[p.term.Field], p.passes(p.term.Field)
			o.name = p.term.Field
		default:
			return false
		}
		a.asked = append(a.asked, o)
		return true
	}
	for _, p := range f.preds {
		add(p, false)
	}
	f.outcomeNots = nil
	f.nots = slices.DeleteFunc(f.nots, func(p *pred) bool {
		if add(p, true) {
			f.outcomeNots = append(f.outcomeNots, p)
			return true
		}
		return false
	})
}

func floorTo(v, step int64) int64 {
	f := v - v%step
	if f > v {
		f -= step
	}
	return f
}

// wants reports whether facts of that name count.
func (a *aggregation) wants(name string) bool {
	switch {
	case strings.HasPrefix(a.metric, "latency_") && a.outcomes:
		return finals[name]
	case a.outcomes:
		return finals[name] || name == "attempt_finished"
	}
	return true
}

var finals = map[string]bool{"recipient_relayed": true, "recipient_bounced": true, "recipient_expired": true, "recipient_dropped": true}

// sink gathers the values of one block before they are merged.
type sink struct {
	step    int64
	hist    bool
	index   map[groupKey]int
	keys    []groupKey
	samples []sample
}

type sample struct {
	group  int
	at     int64 // start of its step
	n      int64 // how many there are
	value  int64 // of them together
	bucket uint16
}

func newSink(a *aggregation) *sink {
	return &sink{step: a.step, hist: a.hist, index: map[groupKey]int{}}
}

func (k *sink) group(key groupKey) int {
	g, ok := k.index[key]
	if !ok {
		g = len(k.keys)
		k.index[key] = g
		k.keys = append(k.keys, key)
	}
	return g
}

func (k *sink) add(key groupKey, ts, value int64) { k.addTo(k.group(key), ts, value) }

func (k *sink) addTo(group int, ts, value int64) {
	x := sample{group: group, n: 1, value: value}
	if k.step > 0 {
		x.at = floorTo(ts, k.step)
	}
	if k.hist {
		x.bucket = bucketOf(value)
	}
	k.samples = append(k.samples, x)
}

func (a *aggregation) merge(k *sink) {
	a.mu.Lock()
	defer a.mu.Unlock()
	groups := make([]*group, len(k.keys))
	for i, key := range k.keys {
		groups[i] = a.group(key)
	}
	for i := range k.samples {
		x := &k.samples[i]
		g := groups[x.group]
		a.addTo(&g.total, x)
		if a.step == 0 {
			continue
		}
		a.addTo(a.cellOf(g, x.at), x)
	}
}

// cellOf is the cell of a step. a.mu is held.
func (a *aggregation) cellOf(g *group, at int64) *cell {
	if g.last == nil || g.lastAt != at {
		g.last, g.lastAt = g.cells[at], at
		if g.last == nil {
			g.last = &cell{}
			g.cells[at] = g.last
			a.cells++
		}
	}
	return g.last
}

func (a *aggregation) addTo(c *cell, x *sample) {
	c.n += x.n
	c.sum += x.value
	c.max = max(c.max, x.value)
	switch {
	case a.keep:
		c.vals = append(c.vals, x.value)
	case a.hist:
		c.count(x.bucket, x.n)
	}
}

// group is the group of a key, or other when there are too many. a.mu is held.
func (a *aggregation) group(key groupKey) *group {
	g := a.groups[key]
	if g == nil && (len(a.groups) >= maxGroups || a.cells >= maxCells) {
		a.cut = "too many groups: the rest counts as other; give a filter or a longer step"
		key = a.otherKey()
		g = a.groups[key]
	}
	if g == nil {
		g = &group{cells: map[int64]*cell{}}
		a.groups[key] = g
	}
	return g
}

const otherGroup = "other"

func (a *aggregation) otherKey() (key groupKey) {
	for i := range a.dims {
		key[i] = otherGroup
	}
	return key
}

// block adds what one block has.
func (a *aggregation) block(sn *snapshot, src *source, f *filter) error {
	k := newSink(a)
	if recs := src.recs(); recs != nil {
		for i := range recs {
			if r := &recs[i]; f.matches(r) && f.holds(r.Time.UnixMicro()) {
				a.record(k, r)
			}
		}
		a.merge(k)
		return nil
	}
	v := sn.view(src)
	rows, err := v.rows(f.preds, f.nots)
	if err == nil && len(rows) > 0 {
		err = v.need(a.columns(a.timeless(v.head, f))...)
	}
	if err != nil {
		sn.failed(src, err)
		return nil
	}
	if len(rows) == 0 {
		return nil
	}
	a.scan(k, v, rows, f)
	a.merge(k)
	return nil
}

// timeless reports whether the times of a block's facts need not be read,
// because all of them count alike.
func (a *aggregation) timeless(h *header, f *filter) bool {
	return a.step == 0 && !a.minutes && !f.skip && h.minTS >= f.from && h.maxTS < f.to
}

// columns lists what is read of a block, times only unless it is timeless.
func (a *aggregation) columns(timeless bool) []string {
	keys := []string{"recipients#", "recipients.disposition#", "disposition#"}
	if !timeless {
		keys = append(keys, "ts#")
	}
	if a.column != "" {
		keys = append(keys, colKey(a.column, false))
	}
	dims := a.dims
	for _, o := range a.asked {
		dims = append(slices.Clip(dims), o.dimension)
	}
	for _, d := range dims {
		for _, c := range append([]string{d.text, d.child}, d.elsewhere...) {
			if c != "" {
				keys = append(keys, colKey(c, !d.num))
			}
		}
	}
	return keys
}

// dimReader reads a dimension in one block. Values are worked out once for
// each entry of a dictionary.
type dimReader struct {
	dimension
	top   []*dimColumn
	child *dimColumn
}

// dimColumn is a column with the dimension's value of each code.
type dimColumn struct {
	*colView
	values []string
	groups []int32 // of a sink, and one; 0: not known yet
}

func newDimReader(d dimension, v *view) *dimReader {
	r := &dimReader{dimension: d}
	add := func(name string) *dimColumn {
		c := v.col(colKey(name, !d.num))
		if name == "" || c == nil {
			return nil
		}
		x := &dimColumn{colView: c}
		if !d.num {
			x.values = c.dict
			if d.of != nil {
				x.values = make([]string, len(c.dict))
				for i, s := range c.dict {
					x.values[i] = d.of(s)
				}
			}
		}
		return x
	}
	for _, name := range append([]string{d.text}, d.elsewhere...) {
		if c := add(name); c != nil {
			r.top = append(r.top, c)
		}
	}
	r.child = add(d.child)
	return r
}

func (r *dimReader) at(c *dimColumn, t, row int) string {
	if c == nil || c.start[t] < 0 {
		return ""
	}
	if r.num {
		return r.word(c.numAt(t, row))
	}
	return c.values[c.codeAt(t, row)]
}

// group is the group in k of a row, when the dimension is the only one and a
// text; -1 says that it is to be found by its value.
func (r *dimReader) group(k *sink, t, row, elem int) int {
	if r.num || r.name == "event" || r.name == "disposition" {
		return -1
	}
	c := r.child
	at := elem
	if elem < 0 || r.at(c, t, elem) == "" {
		at, c = row, nil
		for _, x := range r.top {
			if r.at(x, t, row) != "" {
				c = x
				break
			}
		}
	}
	if c == nil {
		return -1
	}
	if c.groups == nil {
		c.groups = make([]int32, len(c.values))
	}
	code := c.codeAt(t, at)
	if c.groups[code] == 0 {
		c.groups[code] = int32(k.group(groupKey{c.values[code]})) + 1 //nolint:gosec // bounded by the values of a block
	}
	return int(c.groups[code]) - 1
}

func (d *dimension) word(n int64) string {
	switch {
	case n == 0:
		return ""
	case d.name == "disposition":
		return mail.Disposition(n).String() //nolint:gosec // as stored
	}
	return strconv.FormatInt(n, 10)
}

func (r *dimReader) value(fact string, t, row, elem int) string {
	if r.name == "event" {
		return fact
	}
	if elem >= 0 && r.child != nil {
		if s := r.at(r.child, t, elem); s != "" {
			return s
		}
	}
	for _, c := range r.top {
		if s := r.at(c, t, row); s != "" {
			return s
		}
	}
	if r.name == "disposition" {
		return dispositionOf(fact).String()
	}
	return ""
}

// perRecipient reports whether a dimension tells recipients of one fact apart.
func (a *aggregation) perRecipient() bool {
	return slices.ContainsFunc(a.dims, func(d dimension) bool { return d.child != "" })
}

// outcome is one value to count: of a fact, or of one of its recipients.
type outcome struct {
	readers []*dimReader
	fact    string
	when, n int64

	t, at, elem int
}

// value is the d-th dimension's.
func (x *outcome) value(d int) string { return x.readers[d].value(x.fact, x.t, x.at, x.elem) }

func (a *aggregation) scan(k *sink, v *view, rows []int, f *filter) {
	a.eachIn(v, rows, f, func(x *outcome) {
		if len(a.dims) == 1 {
			if g := x.readers[0].group(k, x.t, x.at, x.elem); g >= 0 {
				k.addTo(g, x.when, x.n)
				return
			}
		}
		var key groupKey
		for i := range a.dims {
			key[i] = x.value(i)
		}
		k.add(key, x.when, x.n)
	})
}

// eachIn calls visit with what rows of a block tell.
func (a *aggregation) eachIn(v *view, rows []int, f *filter, visit func(*outcome)) {
	x := &outcome{}
	for _, d := range a.dims {
		x.readers = append(x.readers, newDimReader(d, v))
	}
	for _, o := range a.asked {
		x.readers = append(x.readers, newDimReader(o.dimension, v))
	}
	ts, value := v.col("ts#"), (*colView)(nil)
	if a.column != "" {
		value = v.col(colKey(a.column, false))
	}
	lists, disp, worstDisp := v.col("recipients#"), v.col("recipients.disposition#"), v.col("disposition#")
	each, timeless := a.perRecipient(), a.timeless(v.head, f)
	x.when = v.head.minTS
	wanted := make([]bool, len(v.types))
	for t := range wanted {
		wanted[t] = a.wants(v.types[t].name)
	}
	for _, row := range rows { // in order, so that the types are too
		for row >= v.types[x.t].start+v.types[x.t].n {
			x.t++
		}
		if !wanted[x.t] {
			continue
		}
		x.fact, x.at = v.types[x.t].name, row-v.types[x.t].start
		if !timeless {
			if x.when = unpackTime(ts.numAt(x.t, x.at), 0).UnixMicro(); !f.holds(x.when) {
				continue
			}
		}
		x.n = value.numAt(x.t, x.at)
		lo, hi, _ := lists.elems(x.t, x.at)
		switch {
		case a.outcomes && x.fact == "attempt_finished":
			for x.elem = lo; x.elem < hi; x.elem++ {
				d := disp.numAt(x.t, x.elem)
				if d == 0 {
					d = worstDisp.numAt(x.t, x.at)
				}
				if d == int64(mail.Deferred) && a.counts(x.value) {
					visit(x)
				}
			}
		case each && hi > lo:
			for x.elem = lo; x.elem < hi; x.elem++ {
				if a.counts(x.value) {
					visit(x)
				}
			}
		default:
			if x.elem = -1; a.counts(x.value) {
				visit(x)
			}
		}
	}
}

// counts reports whether an outcome passes the filters that are asked of it.
// Their dimensions are behind those of the aggregation.
func (a *aggregation) counts(value func(d int) string) bool {
	for i := range a.asked {
		if a.asked[i].ok(value(len(a.dims)+i)) == a.asked[i].not {
			return false
		}
	}
	return true
}

// record is scan for a fact in memory.
func (a *aggregation) record(k *sink, r *event.Record) {
	a.eachOf(r, func(value func(d int) string, when, n int64) {
		var key groupKey
		for i := range a.dims {
			key[i] = value(i)
		}
		k.add(key, when, n)
	})
}

// eachOf is eachIn for a fact in memory.
func (a *aggregation) eachOf(r *event.Record, visit func(value func(d int) string, when, n int64)) {
	p := planOf(r)
	if !a.wants(p.name) {
		return
	}
	when, n := r.Time.UnixMicro(), p.firstNum(r, a.column)
	var rc *event.Recipient
	value := func(d int) string {
		if d < len(a.dims) {
			return a.dims[d].of1(p, r, rc)
		}
		return a.asked[d-len(a.dims)].of1(p, r, rc)
	}
	each := func() {
		if a.counts(value) {
			visit(value, when, n)
		}
	}
	list := p.recipientsOf(r.Event)
	switch {
	case a.outcomes && p.name == "attempt_finished":
		worstDisp := r.Event.(event.AttemptFinished).Disposition
		for i := range list {
			rc = &list[i]
			if d := cmp.Or(rc.Disposition, worstDisp); d == mail.Deferred {
				each()
			}
		}
	case a.perRecipient() && len(list) > 0:
		for i := range list {
			rc = &list[i]
			each()
		}
	default:
		each()
	}
}

// of1 is the dimension's value for one fact in memory, and one of its recipients or nil.
func (d *dimension) of1(p *plan, r *event.Record, rc *event.Recipient) string {
	if d.name == "event" {
		return p.name
	}
	fold := d.of
	if fold == nil {
		fold = same
	}
	if rc != nil {
		s := ""
		switch d.child {
		case "recipients.address":
			s = fold(rc.Address)
		case "recipients.disposition":
			s = d.word(int64(rc.Disposition))
		case "recipients.class":
			s = string(rc.Class)
		case "recipients.code":
			s = d.word(int64(rc.Code))
		}
		if s != "" {
			return s
		}
	}
	s := d.in(p, r, d.text, fold)
	for i := 0; s == "" && i < len(d.elsewhere); i++ {
		s = d.in(p, r, d.elsewhere[i], fold)
	}
	if s != "" {
		return s
	}
	if d.name == "disposition" {
		return dispositionOf(p.name).String()
	}
	return ""
}

// in is the value in one column of a fact in memory.
func (d *dimension) in(p *plan, r *event.Record, column string, fold func(string) string) (s string) {
	if d.num {
		return d.word(p.firstNum(r, column))
	}
	if g, ok := p.getter(column); ok {
		g.texts(r, func(v string) bool { s = v; return true })
		s = fold(s)
	}
	return s
}

// ranked lists the groups, the greatest first.
func (a *aggregation) ranked(span float64) []groupKey {
	type ranked struct {
		key   groupKey
		value float64
		n     int64
	}
	list := make([]ranked, 0, len(a.groups))
	for key, g := range a.groups {
		list = append(list, ranked{key, a.value(a.metric, &g.total, span), g.total.n})
	}
	slices.SortFunc(list, func(x, y ranked) int {
		return cmp.Or(cmp.Compare(y.value, x.value), cmp.Compare(y.n, x.n), slices.Compare(x.key[:], y.key[:]))
	})
	keys := make([]groupKey, len(list))
	for i := range list {
		keys[i] = list[i].key
	}
	return keys
}

// exact reports whether nothing comes from the middle of a bucket.
func (a *aggregation) exact() bool {
	return a.keep || !a.hist && (!a.rolled || !slices.Contains(a.metrics, "latency_max"))
}

// answer makes the series: the greatest groups, and the rest as other.
func (a *aggregation) answer(q trackapi.AggregateQuery) *trackapi.Aggregate {
	out := &trackapi.Aggregate{Metric: strings.Join(a.metrics, ","), Step: q.Step.Seconds(), Exact: a.exact(), Unit: unitOf(a.metric), Series: []trackapi.Series{}, Cut: a.cut}
	if !out.Exact {
		out.Error = bucketError
	}
	top := q.Top
	if top == 0 {
		top = 10
	}
	span := float64(a.to-a.from) / 1e6
	if q.From.IsZero() && a.step == 0 {
		span = (24 * time.Hour).Seconds()
	}
	keys := a.ranked(span)
	other := a.otherKey()
	if len(a.dims) > 0 && (len(keys) > top || a.groups[other] != nil) {
		keys = slices.DeleteFunc(keys, func(k groupKey) bool { return k == other })
		rest := a.groups[other]
		if rest == nil {
			rest = &group{cells: map[int64]*cell{}}
		}
		for _, key := range keys[min(top, len(keys)):] {
			g := a.groups[key]
			rest.total.merge(&g.total)
			for at, c := range g.cells {
				if rest.cells[at] == nil {
					rest.cells[at] = &cell{}
				}
				rest.cells[at].merge(c)
			}
		}
		keys = append(keys[:min(top, len(keys))], other)
		a.groups[other] = rest
	}
	if len(keys) == 0 && len(a.dims) == 0 {
		keys = append(keys, groupKey{})
		a.groups[groupKey{}] = &group{cells: map[int64]*cell{}}
	}
	for _, key := range keys {
		for _, metric := range a.metrics {
			series := trackapi.Series{Labels: map[string]string{}}
			if len(a.metrics) > 1 {
				series.Metric = metric
			}
			for i, d := range a.dims {
				series.Labels[d.name] = key[i]
			}
			series.Points = a.points(metric, a.groups[key], span)
			out.Series = append(out.Series, series)
		}
	}
	return out
}

func (a *aggregation) points(metric string, g *group, span float64) []trackapi.Point {
	if a.step == 0 {
		return []trackapi.Point{{Time: time.UnixMicro(max(a.from, 0)).UTC(), Value: a.pointValue(metric, &g.total, span)}}
	}
	var list []trackapi.Point
	for at := a.from; at < a.to; at += a.step {
		c := g.cells[at]
		if c == nil {
			c = &cell{}
		}
		list = append(list, trackapi.Point{Time: time.UnixMicro(at).UTC(), Value: a.pointValue(metric, c, float64(a.step)/1e6)})
	}
	return list
}

// pointValue is a cell's value, or nil when there is nothing to compute it from.
func (a *aggregation) pointValue(metric string, c *cell, seconds float64) *float64 {
	if c.n == 0 && strings.HasPrefix(metric, "latency_") {
		return nil
	}
	v := a.value(metric, c, seconds)
	return &v
}

func (a *aggregation) value(metric string, c *cell, seconds float64) float64 {
	switch metric {
	case "rate":
		return float64(c.n) / max(seconds, 1)
	case "bytes":
		return float64(c.sum)
	case "latency_p50":
		return c.quantile(0.5)
	case "latency_p90":
		return c.quantile(0.9)
	case "latency_p95":
		return c.quantile(0.95)
	case "latency_p99":
		return c.quantile(0.99)
	case "latency_max":
		return float64(c.max) / 1e6
	}
	return float64(c.n)
}

func unitOf(metric string) string {
	switch metric {
	case "count":
		return "facts"
	case "rate":
		return "per_second"
	case "bytes":
		return "bytes"
	}
	return "seconds"
}

// Values lists values of a field that facts in the range have, in order.
func (s *Store) Values(ctx context.Context, q trackapi.ValuesQuery) (*trackapi.Values, error) {
	f, err := compile(trackapi.Query{From: q.From, To: q.To}, true)
	if err != nil {
		return nil, err
	}
	limit, err := limitOf(trackapi.Query{Limit: q.Limit})
	if err != nil {
		return nil, err
	}
	d, ok := valueField(q.Field)
	if !ok {
		return nil, trackapi.BadParameter("field", "unknown field", "one of "+strings.Join(trackapi.ValueFields(), ", "))
	}
	inRange := func(lo, hi int64) bool { return hi >= f.from && lo < f.to }
	sn, err := s.snapshot(func(m *meta) bool { return inRange(m.MinTS, m.MaxTS) })
	if err != nil {
		return nil, err
	}
	defer sn.release()
	defer s.observe("values", sn)
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	blocks, err := sn.blocks(ctx, nil, func(h *header) bool { return inRange(h.minTS, h.maxTS) })
	if err != nil {
		return nil, err
	}
	slices.SortFunc(blocks, func(a, b *source) int { return cmp.Compare(b.head.maxTS, a.head.maxTS) })
	c := &collector{d: d, prefix: lower(q.Prefix), limit: limit, seen: map[string]bool{}}
	for _, src := range blocks {
		if ctx.Err() != nil || c.full() {
			break
		}
		if err := c.block(sn, src); err != nil {
			sn.failed(src, err)
		}
	}
	if err := ctx.Err(); err != nil && !isCut(ctx, err) && !errors.Is(err, context.DeadlineExceeded) {
		return nil, err
	}
	return &trackapi.Values{Values: c.sorted()}, nil
}

func valueField(name string) (dimension, bool) {
	d, ok := dimensions[name]
	switch name {
	case "sender":
		d, ok = dimension{text: "mail_from"}, true
	case "recipient":
		d, ok = dimension{text: "recipient", child: "recipients.address"}, true
	case "connector":
		d.elsewhere = append(slices.Clone(d.elsewhere), "connector")
	}
	d.name = name
	return d, ok
}

// collector gathers the values of a field that begin with a prefix.
type collector struct {
	d      dimension
	prefix string
	limit  int
	seen   map[string]bool
}

// full reports whether enough has been seen; the list is then a sample of the newest.
func (c *collector) full() bool { return len(c.seen) >= 4*c.limit }

func (c *collector) add(s string) {
	if c.d.of != nil {
		s = c.d.of(s)
	}
	if s != "" && strings.HasPrefix(lower(s), c.prefix) {
		c.seen[s] = true
	}
}

func (c *collector) block(sn *snapshot, src *source) error {
	if c.d.name == "event" {
		recs := src.recs()
		if recs == nil {
			for _, run := range src.head.types.unpack() {
				c.add(run.name)
			}
			return nil
		}
		for i := range recs {
			c.add(planOf(&recs[i]).name)
		}
		return nil
	}
	columns := append([]string{c.d.text, c.d.child}, c.d.elsewhere...)
	if recs := src.recs(); recs != nil {
		for i := range recs {
			r := &recs[i]
			for _, name := range columns {
				if g, ok := planOf(r).getter(name); !ok {
					continue
				} else if c.d.num {
					g.ints(r, func(n int64) bool { c.add(c.d.word(n)); return false })
				} else {
					g.texts(r, func(s string) bool { c.add(s); return false })
				}
			}
		}
		return nil
	}
	v := sn.view(src)
	keys := make([]string, len(columns))
	for i, name := range columns {
		keys[i] = colKey(name, !c.d.num)
	}
	if err := v.need(keys...); err != nil {
		return err
	}
	for _, key := range keys {
		col := v.col(key)
		if col == nil {
			continue
		}
		for _, s := range col.dict {
			c.add(s)
		}
		last := int64(0)
		for _, n := range col.nums {
			if n != last {
				c.add(c.d.word(n))
				last = n
			}
		}
	}
	return nil
}

func (c *collector) sorted() []string {
	list := make([]string, 0, len(c.seen))
	for s := range c.seen {
		list = append(list, s)
	}
	slices.Sort(list)
	return list[:min(len(list), c.limit)]
}
