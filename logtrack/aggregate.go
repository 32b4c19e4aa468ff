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

// Percentiles come from buckets whose bounds grow by this factor from a
// microsecond on, so that a value is off by less than 2.5 percent.
const (
	bucketGrowth = 1.05
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
	hist []bucketCount // in order
}

type bucketCount struct {
	bucket uint16
	n      int64
}

func (c *cell) add(n, value int64, hist bool) {
	c.n += n
	c.sum += value
	c.max = max(c.max, value)
	if hist {
		c.count(bucketOf(value), n)
	}
}

func (c *cell) count(bucket uint16, n int64) {
	i, ok := slices.BinarySearchFunc(c.hist, bucket, func(b bucketCount, want uint16) int { return cmp.Compare(b.bucket, want) })
	if !ok {
		c.hist = slices.Insert(c.hist, i, bucketCount{bucket: bucket})
	}
	c.hist[i].n += n
}

func (c *cell) merge(o *cell) {
	c.n += o.n
	c.sum += o.sum
	c.max = max(c.max, o.max)
	for _, b := range o.hist {
		c.count(b.bucket, b.n)
	}
}

func (c *cell) quantile(q float64) float64 {
	rank := int64(math.Ceil(q * float64(c.n)))
	for _, b := range c.hist {
		if rank -= b.n; rank <= 0 {
			return bucketMid(b.bucket)
		}
	}
	return float64(c.max) / 1e6
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
	metric   string
	dims     []dimension
	step     int64 // microseconds; 0: one value
	from, to int64
	outcomes bool // count recipients' outcomes, not facts
	hist     bool
	column   string // of the value, or "" to count

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
	f, err := compile(q.Query, true)
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
	blocks, err := sn.blocks(f.preds, func(h *header) bool {
		return inRange(h.minTS, h.maxTS) && slices.ContainsFunc(h.types, func(t typeRun) bool { return a.wants(t.name) }) || h.types == nil
	})
	if err != nil {
		return nil, err
	}
	err = parallel(ctx, blocks, func(src *source) error { return a.block(sn, src, f) })
	switch {
	case isCut(ctx, err):
		a.cut = fmt.Sprintf("stopped after %s: the numbers are too low; give a shorter time range or an exact filter", s.opts.QueryTimeout)
	case err != nil:
		return nil, err
	case sn.bad.Load() > 0 && a.cut == "":
		a.cut = fmt.Sprintf("%d damaged blocks were left out", sn.bad.Load())
	}
	out := a.answer(q)
	out.TookMS = sn.took()
	return out, nil
}

func newAggregation(q trackapi.AggregateQuery, f *filter) (*aggregation, error) {
	a := &aggregation{
		metric: or(q.Metric, "count"), step: q.Step.Microseconds(), from: f.from, to: f.to, groups: map[groupKey]*group{},
	}
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
		a.column = "size"
		if !named {
			f.preds = append(f.preds, &pred{
				term: trackapi.Term{Field: "event"}, field: fields["event"], fact: func(name string) bool { return name == "message_queued" },
			})
		}
	case strings.HasPrefix(a.metric, "latency_"):
		a.column, a.hist = "t_total", a.metric != "latency_max"
		a.outcomes = !named
	default:
		a.outcomes = !named
	}
	return a, nil
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
	index   map[groupKey]int
	keys    []groupKey
	samples []sample
}

type sample struct {
	group int
	at    int64 // start of its step
	value int64
}

func newSink(a *aggregation) *sink { return &sink{step: a.step, index: map[groupKey]int{}} }

func (k *sink) add(key groupKey, ts, value int64) {
	g, ok := k.index[key]
	if !ok {
		g = len(k.keys)
		k.index[key] = g
		k.keys = append(k.keys, key)
	}
	at := int64(0)
	if k.step > 0 {
		at = floorTo(ts, k.step)
	}
	k.samples = append(k.samples, sample{g, at, value})
}

func (a *aggregation) merge(k *sink) {
	a.mu.Lock()
	defer a.mu.Unlock()
	groups := make([]*group, len(k.keys))
	for i, key := range k.keys {
		groups[i] = a.group(key)
	}
	for _, x := range k.samples {
		g := groups[x.group]
		g.total.add(1, x.value, a.hist)
		if a.step == 0 {
			continue
		}
		if g.last == nil || g.lastAt != x.at {
			g.last, g.lastAt = g.cells[x.at], x.at
			if g.last == nil {
				g.last = &cell{}
				g.cells[x.at] = g.last
				a.cells++
			}
		}
		g.last.add(1, x.value, a.hist)
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
	if src.recs != nil {
		for i := range src.recs {
			if r := &src.recs[i]; f.matches(r) {
				a.record(k, r)
			}
		}
		a.merge(k)
		return nil
	}
	v := sn.view(src)
	rows, err := v.rows(f.preds, f.nots)
	if err == nil {
		err = v.need(a.columns()...)
	}
	if err != nil {
		sn.failed(src, err)
		return nil
	}
	a.scan(k, v, rows, f)
	a.merge(k)
	return nil
}

func (a *aggregation) columns() []string {
	keys := []string{"ts#", "recipients#", "recipients.disposition#", "disposition#"}
	if a.column != "" {
		keys = append(keys, colKey(a.column, false))
	}
	for _, d := range a.dims {
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
	top    []*colView
	child  *colView
	values map[*colView][]string
}

func newDimReader(d dimension, v *view) *dimReader {
	r := &dimReader{dimension: d, values: map[*colView][]string{}}
	add := func(name string) *colView {
		c := v.col(colKey(name, !d.num))
		if c != nil && !d.num {
			vals := c.dict
			if d.of != nil {
				vals = make([]string, len(c.dict))
				for i, s := range c.dict {
					vals[i] = d.of(s)
				}
			}
			r.values[c] = vals
		}
		return c
	}
	for _, name := range append([]string{d.text}, d.elsewhere...) {
		if c := add(name); name != "" && c != nil {
			r.top = append(r.top, c)
		}
	}
	if d.child != "" {
		r.child = add(d.child)
	}
	return r
}

func (r *dimReader) at(c *colView, t, row int) string {
	if c == nil || c.start[t] < 0 {
		return ""
	}
	if r.num {
		return r.word(c.numAt(t, row))
	}
	return r.values[c][c.codeAt(t, row)]
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

func (a *aggregation) scan(k *sink, v *view, rows []int, f *filter) {
	readers := make([]*dimReader, len(a.dims))
	for i, d := range a.dims {
		readers[i] = newDimReader(d, v)
	}
	ts, value := v.col("ts#"), (*colView)(nil)
	if a.column != "" {
		value = v.col(colKey(a.column, false))
	}
	lists, disp, worstDisp := v.col("recipients#"), v.col("recipients.disposition#"), v.col("disposition#")
	each := a.perRecipient()
	t := 0
	for _, row := range rows { // in order, so that the types are too
		for row >= v.head.types[t].start+v.head.types[t].n {
			t++
		}
		name, at := v.head.types[t].name, row-v.head.types[t].start
		if !a.wants(name) {
			continue
		}
		when := unpackTime(ts.numAt(t, at), 0).UnixMicro()
		if when < f.from || when >= f.to {
			continue
		}
		n := value.numAt(t, at)
		lo, hi, _ := lists.elems(t, at)
		key := func(elem int) (key groupKey) {
			for i, r := range readers {
				key[i] = r.value(name, t, at, elem)
			}
			return key
		}
		switch {
		case a.outcomes && name == "attempt_finished":
			for e := lo; e < hi; e++ {
				d := disp.numAt(t, e)
				if d == 0 {
					d = worstDisp.numAt(t, at)
				}
				if d == int64(mail.Deferred) {
					k.add(key(e), when, n)
				}
			}
		case each && hi > lo:
			for e := lo; e < hi; e++ {
				k.add(key(e), when, n)
			}
		default:
			k.add(key(-1), when, n)
		}
	}
}

// record is scan for a fact in memory.
func (a *aggregation) record(k *sink, r *event.Record) {
	p := planOf(r)
	if !a.wants(p.name) {
		return
	}
	when := r.Time.UnixMicro()
	n := p.firstNum(r, a.column)
	list := recipientsOf(r.Event)
	key := func(rc *event.Recipient) (key groupKey) {
		for i := range a.dims {
			key[i] = a.dims[i].of1(p, r, rc)
		}
		return key
	}
	switch {
	case a.outcomes && p.name == "attempt_finished":
		worstDisp := r.Event.(event.AttemptFinished).Disposition
		for i := range list {
			d := list[i].Disposition
			if d == 0 {
				d = worstDisp
			}
			if d == mail.Deferred {
				k.add(key(&list[i]), when, n)
			}
		}
	case a.perRecipient() && len(list) > 0:
		for i := range list {
			k.add(key(&list[i]), when, n)
		}
	default:
		k.add(key(nil), when, n)
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
	for _, c := range append([]string{d.text}, d.elsewhere...) {
		s := ""
		if d.num {
			s = d.word(p.firstNum(r, c))
		} else if g, ok := p.getter(c); ok {
			g.texts(r, func(v string) bool { s = v; return true })
			s = fold(s)
		}
		if s != "" {
			return s
		}
	}
	if d.name == "disposition" {
		return dispositionOf(p.name).String()
	}
	return ""
}

// answer makes the series: the greatest groups, and the rest as other.
func (a *aggregation) answer(q trackapi.AggregateQuery) *trackapi.Aggregate {
	out := &trackapi.Aggregate{Metric: a.metric, Step: q.Step.Seconds(), Exact: !a.hist, Unit: unitOf(a.metric), Series: []trackapi.Series{}, Cut: a.cut}
	top := q.Top
	if top == 0 {
		top = 10
	}
	span := float64(a.to-a.from) / 1e6
	if q.From.IsZero() && a.step == 0 {
		span = (24 * time.Hour).Seconds()
	}
	keys := make([]groupKey, 0, len(a.groups))
	for key := range a.groups {
		keys = append(keys, key)
	}
	rank := make(map[groupKey]float64, len(keys))
	for _, key := range keys {
		rank[key] = a.value(&a.groups[key].total, span)
	}
	slices.SortFunc(keys, func(x, y groupKey) int {
		return cmp.Or(cmp.Compare(rank[y], rank[x]), cmp.Compare(a.groups[y].total.n, a.groups[x].total.n), slices.Compare(x[:], y[:]))
	})
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
		series := trackapi.Series{Labels: map[string]string{}}
		for i, d := range a.dims {
			series.Labels[d.name] = key[i]
		}
		series.Points = a.points(a.groups[key], span)
		out.Series = append(out.Series, series)
	}
	return out
}

func (a *aggregation) points(g *group, span float64) []trackapi.Point {
	if a.step == 0 {
		return []trackapi.Point{{Time: time.UnixMicro(max(a.from, 0)).UTC(), Value: a.pointValue(&g.total, span)}}
	}
	var list []trackapi.Point
	for at := a.from; at < a.to; at += a.step {
		c := g.cells[at]
		if c == nil {
			c = &cell{}
		}
		list = append(list, trackapi.Point{Time: time.UnixMicro(at).UTC(), Value: a.pointValue(c, float64(a.step)/1e6)})
	}
	return list
}

// pointValue is a cell's value, or nil when there is nothing to compute it from.
func (a *aggregation) pointValue(c *cell, seconds float64) *float64 {
	if c.n == 0 && strings.HasPrefix(a.metric, "latency_") {
		return nil
	}
	v := a.value(c, seconds)
	return &v
}

func (a *aggregation) value(c *cell, seconds float64) float64 {
	switch a.metric {
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
	blocks, err := sn.blocks(nil, func(h *header) bool { return inRange(h.minTS, h.maxTS) })
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
		if src.recs == nil {
			for _, t := range src.head.types {
				c.add(t.name)
			}
			return nil
		}
		for i := range src.recs {
			c.add(planOf(&src.recs[i]).name)
		}
		return nil
	}
	columns := append([]string{c.d.text, c.d.child}, c.d.elsewhere...)
	if src.recs != nil {
		for i := range src.recs {
			r := &src.recs[i]
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
