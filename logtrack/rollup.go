package logtrack

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"go.uber.org/zap"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// A rollup is what aggregates over long times read instead of facts: how many
// outcomes of recipients there were in each minute, by what dashboards group
// and filter by, with their latency in buckets; and the same of accepted
// messages, with their size. Each block brings its own when it is sealed; they
// stay in memory until the block's run of the index is made, and are stored
// merged beside it. A row of a rollup has the minute, so counts are exact for
// every range: the parts of minutes at its ends are counted from facts. Who has
// submitted the mail, of whom there are many, has rows without most of that, for
// each quarter of an hour.

// rollDims are the dimensions of a rollup, in the order in which its rows are
// sorted. Names that are not in dimensions are of the rollup alone.
var rollDims = []string{"kind", "recipient_domain", "queue", "remote_host", "provider", "connector", "connector_in", "disposition", "class", "code", "sender_domain", "client_ip", "auth_user"}

const (
	rollupVersion = 2
	rollMinute    = 60_000_000 // microseconds
	kindOutcome   = "outcome"
	kindAccepted  = "accepted"
	kindClient    = "client" // outcomes by who has submitted the message
)

// rollKinds are the kinds of rows, with the minutes that one tells together and
// its dimensions; it has no value of the others.
var rollKinds = []struct {
	name    string
	minutes int64
	dims    []string
}{
	{kindOutcome, 1, rollDims[1:11]},
	{kindAccepted, 1, rollDims[1:11]},
	{kindClient, clientMinutes, []string{"client_ip", "auth_user", "disposition"}},
}

const clientMinutes = 15

// rollDim is one dimension: a dictionary, and its code in each row.
type rollDim struct {
	dict  []string
	codes []int64
}

// rollup is some rows, or those columns of them that were asked for.
type rollup struct {
	rows   int
	dims   []rollDim // as rollDims
	minute []int64   // since 1970
	bucket []int64   // of the latency; only of outcomes that are final
	n      []int64
	sum    []int64 // octets; only of accepted messages
	lo, hi int64   // the first and the last minute
}

// rollBuilder gathers rows.
type rollBuilder struct {
	r     *rollup
	index []map[string]int64
	last  []valueCode // the latest of each dimension

	client   clientRow // the latest
	clientAt int       // its row and one, or 0
}

// clientRow is what a row of kindClient tells.
type clientRow struct {
	ip          netip.Addr
	user        string
	disposition mail.Disposition
	quarter     int64 // of an hour: its first minute
}

type valueCode struct {
	value string
	code  int64
}

func newRollBuilder() *rollBuilder {
	b := &rollBuilder{r: &rollup{dims: make([]rollDim, len(rollDims))}, index: make([]map[string]int64, len(rollDims)), last: make([]valueCode, len(rollDims))}
	for i := range b.index {
		b.index[i] = map[string]int64{}
	}
	return b
}

func (b *rollBuilder) code(dim int, s string) int64 {
	last := &b.last[dim]
	if last.value == s && len(b.r.dims[dim].dict) > 0 {
		return last.code
	}
	c, ok := b.index[dim][s]
	if !ok {
		c = int64(len(b.r.dims[dim].dict))
		b.index[dim][s] = c
		b.r.dims[dim].dict = append(b.r.dims[dim].dict, s)
	}
	*last = valueCode{s, c}
	return c
}

func (b *rollBuilder) add(values []string, minute int64, bucket uint16, n, sum int64) {
	r := b.r
	for i, s := range values {
		r.dims[i].codes = append(r.dims[i].codes, b.code(i, s))
	}
	b.count(minute, int64(bucket), n, sum)
}

func (b *rollBuilder) count(minute, bucket, n, sum int64) {
	r := b.r
	if r.rows == 0 {
		r.lo, r.hi = minute, minute
	}
	r.lo, r.hi = min(r.lo, minute), max(r.hi, minute)
	r.rows++
	r.minute, r.bucket, r.n, r.sum = append(r.minute, minute), append(r.bucket, bucket), append(r.n, n), append(r.sum, sum)
}

// merge adds all rows of o.
func (b *rollBuilder) merge(o *rollup) {
	for i := range o.dims {
		moved := make([]int64, len(o.dims[i].dict))
		for c, s := range o.dims[i].dict {
			moved[c] = b.code(i, s)
		}
		for _, c := range o.dims[i].codes {
			b.r.dims[i].codes = append(b.r.dims[i].codes, moved[c])
		}
	}
	for row := range o.rows {
		b.count(o.minute[row], o.bucket[row], o.n[row], o.sum[row])
	}
}

// done sorts the rows and makes one of those that are equal.
func (b *rollBuilder) done() *rollup {
	r := b.r
	order := make([]int, r.rows)
	for i := range order {
		order[i] = i
	}
	compare := func(x, y int) int {
		for d := range r.dims {
			if c := cmp.Compare(r.dims[d].codes[x], r.dims[d].codes[y]); c != 0 {
				return c
			}
		}
		return cmp.Or(cmp.Compare(r.minute[x], r.minute[y]), cmp.Compare(r.bucket[x], r.bucket[y]))
	}
	slices.SortFunc(order, compare)
	out := &rollup{dims: make([]rollDim, len(r.dims)), lo: r.lo, hi: r.hi}
	for d := range r.dims {
		out.dims[d] = rollDim{dict: r.dims[d].dict, codes: make([]int64, 0, r.rows)}
	}
	for i, x := range order {
		if i > 0 && compare(order[i-1], x) == 0 {
			out.n[out.rows-1] += r.n[x]
			out.sum[out.rows-1] += r.sum[x]
			continue
		}
		for d := range r.dims {
			out.dims[d].codes = append(out.dims[d].codes, r.dims[d].codes[x])
		}
		out.minute, out.bucket = append(out.minute, r.minute[x]), append(out.bucket, r.bucket[x])
		out.n, out.sum = append(out.n, r.n[x]), append(out.sum, r.sum[x])
		out.rows++
	}
	return out
}

// rollQuery is the aggregation whose rows a rollup gathers, so that facts count
// there as they count in an answer.
func rollQuery(kind string, dims []string) *aggregation {
	a := &aggregation{metric: "count", outcomes: kind != kindAccepted, column: "t_total", minutes: true, from: -1 << 63, to: 1<<63 - 1}
	if kind == kindAccepted {
		a.column = "size"
	}
	for _, name := range rollDims[1:] {
		d := dimensions[name]
		if name == "connector_in" {
			d = dimension{text: "connector_in"}
		}
		if !slices.Contains(dims, name) {
			d = dimension{}
		}
		if kind == kindAccepted {
			d.child = "" // a message counts once
		}
		d.name = name
		a.dims = append(a.dims, d)
	}
	return a
}

var rollQueries = func() map[string]*aggregation {
	m := map[string]*aggregation{}
	for _, kind := range rollKinds {
		m[kind.name] = rollQuery(kind.name, kind.dims)
	}
	return m
}()

// accepted is the fact of which sizes are summed.
const accepted = "message_queued"

// addValue adds an outcome or an accepted message.
func (b *rollBuilder) addValue(kind, fact string, values []string, when, value int64) {
	minute := floorTo(when, rollMinute) / rollMinute
	switch {
	case kind == kindAccepted:
		b.add(values, minute, 0, 1, value)
	case kind == kindClient:
		b.add(values, floorTo(minute, clientMinutes), 0, 1, 0)
	case finals[fact]:
		b.add(values, minute, bucketOf(value), 1, 0)
	default:
		b.add(values, minute, 0, 1, 0)
	}
}

// rollupOf gathers the rollup of records, in no order. It counts what
// rollQueries count, and does not ask each fact for its fields by their names.
func rollupOf(recs []event.Record) *rollup {
	b := newRollBuilder()
	for i := range recs {
		r := &recs[i]
		switch ev := r.Event.(type) { //nolint:gochecksumtype // the other facts tell of no outcome; a test compares with rollQueries
		case event.MessageQueued:
			b.fact(r, rollFact{kind: kindAccepted, who: whoOf(&ev.Info), disposition: mail.Queued, value: ev.Size})
		case event.AttemptFinished:
			for k := range ev.Recipients {
				rc := &ev.Recipients[k]
				if d := cmp.Or(rc.Disposition, ev.Disposition); d == mail.Deferred {
					b.fact(r, rollFact{
						kind: kindOutcome, who: whoOf(&ev.Info), hop: ev.Hop, address: rc.Address,
						disposition: d, class: cmp.Or(rc.Class, ev.Class), code: cmp.Or(rc.Code, ev.Code),
					})
				}
			}
		case event.RecipientRelayed:
			b.final(r, &ev.Final, mail.Relayed)
		case event.RecipientBounced:
			b.final(r, &ev.Final, mail.Bounced)
		case event.RecipientExpired:
			b.final(r, &ev.Final, mail.Expired)
		case event.RecipientDropped:
			b.final(r, &ev.Final, mail.Dropped)
		}
	}
	return b.r
}

// rollFact is what a row counts of one fact. It has no pointer into it: the fact
// would be copied to the heap for that.
type rollFact struct {
	kind string
	who
	hop         event.Hop
	address     string
	disposition mail.Disposition
	class       mail.Class
	code        int
	value       int64
}

// who is what a rollup tells of where a message came from.
type who struct {
	mailFrom, connectorIn, user string
	client                      netip.Addr
}

func whoOf(i *event.Info) who { return who{i.MailFrom, i.ConnectorIn, i.AuthUser, i.ClientIP} }

func (b *rollBuilder) final(r *event.Record, f *event.Final, d mail.Disposition) {
	b.fact(r, rollFact{
		kind: kindOutcome, who: whoOf(&f.Info), hop: f.Hop, address: f.Recipient, disposition: d, class: f.Class, code: f.Code,
		value: time.Duration(f.TTotal).Microseconds(),
	})
}

func (b *rollBuilder) fact(r *event.Record, f rollFact) {
	remote := lower(f.hop.RemoteName)
	if remote == "" && f.hop.RemoteIP.IsValid() {
		remote = f.hop.RemoteIP.String()
	}
	code := ""
	if f.code != 0 {
		code = strconv.Itoa(f.code)
	}
	values := [...]string{ // in the order of rollDims
		f.kind, domainOf(f.address), f.hop.Queue, remote, f.hop.Provider, cmp.Or(f.hop.ConnectorOut, f.connectorIn), f.connectorIn,
		f.disposition.String(), string(f.class), code, senderDomain(f.mailFrom), "", "",
	}
	b.addValue(f.kind, planOf(r).name, values[:], r.Time.UnixMicro(), f.value)
	if f.kind != kindOutcome {
		return
	}
	quarter := floorTo(floorTo(r.Time.UnixMicro(), rollMinute)/rollMinute, clientMinutes)
	if c := (clientRow{f.client, f.user, f.disposition, quarter}); c != b.client || b.clientAt == 0 {
		b.client, b.clientAt = c, b.r.rows+1
	} else { // most follow one of the same client
		b.r.n[b.clientAt-1]++
		return
	}
	client := ""
	if f.client.IsValid() {
		client = f.client.String()
	}
	values = [...]string{kindClient, "", "", "", "", "", "", f.disposition.String(), "", "", "", client, f.user}
	b.addValue(kindClient, "", values[:], r.Time.UnixMicro(), 0)
}

// rollupOfView gathers the rollup of a stored block.
func rollupOfView(v *view) (*rollup, error) {
	b := newRollBuilder()
	values := make([]string, len(rollDims))
	all := &filter{from: -1 << 62, to: 1<<62 - 1}
	for i := range rollKinds {
		kind := rollKinds[i].name
		a := rollQueries[kind]
		if err := v.need(a.columns(false)...); err != nil {
			return nil, err
		}
		rows, err := v.rows(nil, nil)
		if err != nil {
			return nil, err
		}
		if kind == kindAccepted {
			rows = slices.DeleteFunc(rows, func(row int) bool { t, _ := v.head.typeOf(row); return v.head.types[t].name != accepted })
		}
		values[0] = kind
		a.eachIn(v, rows, all, func(x *outcome) {
			for d := range a.dims {
				values[d+1] = x.value(d)
			}
			b.addValue(kind, x.fact, values, x.when, x.n)
		})
	}
	return b.r, nil
}

// encode writes r as it is stored.
func (r *rollup) encode() []byte {
	out := make([]byte, bodyStart, 64<<10)
	out = binary.AppendUvarint(out, uint64(r.rows)) //nolint:gosec // a count
	out = binary.AppendVarint(out, r.lo)
	out = binary.AppendVarint(out, r.hi)
	out = binary.AppendUvarint(out, uint64(len(r.dims)))
	var data, raw []byte
	column := func(name string) {
		at := len(data)
		data = appendPacked(data, raw, true)
		out = appendString(out, name)
		out = binary.AppendUvarint(out, uint64(len(raw)))
		out = binary.AppendUvarint(out, uint64(len(data)-at)) //nolint:gosec // a length
	}
	for i, d := range r.dims {
		raw = binary.AppendUvarint(raw[:0], uint64(len(d.dict)))
		for _, s := range d.dict {
			raw = appendString(raw, s)
		}
		raw = appendNums(raw, d.codes)
		column(rollDims[i])
	}
	for _, nums := range [...][]int64{r.minute, r.bucket, r.n, r.sum} {
		raw = appendNums(raw[:0], nums)
		column("")
	}
	return signRollup(append(out, data...))
}

// signRollup writes version and checksum into the room for them.
func signRollup(value []byte) []byte {
	value[0] = rollupVersion
	binary.BigEndian.PutUint32(value[1:], crc32.Checksum(value[bodyStart:], castagnoli))
	return value
}

var errOldRollup = errors.New("rollup of another version")

// rollHead is what memory holds of a stored rollup.
type rollHead struct{ lo, hi int64 }

// Names of the columns of a rollup that are no dimensions.
var rollNums = [...]string{"minute", "bucket", "n", "sum"}

// reset empties r, and keeps its room but for texts.
func (r *rollup) reset() {
	dims := resized(r.dims, len(rollDims))
	for i := range dims {
		dims[i] = rollDim{codes: dims[i].codes[:0]}
	}
	*r = rollup{dims: dims, minute: r.minute[:0], bucket: r.bucket[:0], n: r.n[:0], sum: r.sum[:0]}
}

// rollPool has rollups that have been read, for their room.
var rollPool = sync.Pool{New: func() any { return &rollup{} }}

// readRollup reads the rows of a stored rollup: those columns that want asks
// for; nil means none but the times.
func readRollup(src []byte, want func(column string) bool) (*rollup, error) {
	return readRollupInto(&rollup{}, src, want)
}

// readRollupInto is readRollup with room for what is read.
func readRollupInto(room *rollup, src []byte, want func(column string) bool) (*rollup, error) {
	if len(src) < bodyStart || crc32.Checksum(src[bodyStart:], castagnoli) != binary.BigEndian.Uint32(src[1:]) {
		return nil, damaged("rollup")
	}
	if src[0] != rollupVersion {
		return nil, errOldRollup
	}
	r := room
	r.reset()
	var err error
	src = src[bodyStart:]
	if r.rows, src, err = readUvarint(src, maxListValues); err != nil {
		return nil, err
	}
	if r.lo, src, err = readVarint(src); err != nil {
		return nil, err
	}
	if r.hi, src, err = readVarint(src); err != nil {
		return nil, err
	}
	dims, src, err := readUvarint(src, 64)
	if err != nil {
		return nil, err
	}
	if dims != len(rollDims) {
		return nil, errOldRollup
	}
	if want == nil {
		return r, nil
	}
	type entry struct {
		name        string
		raw, packed int
	}
	list := make([]entry, dims+4)
	for i := range list {
		if list[i].name, src, err = readString(src); err != nil {
			return nil, err
		}
		if list[i].raw, src, err = readUvarint(src, maxColumn); err != nil {
			return nil, err
		}
		if list[i].packed, src, err = readUvarint(src, uint64(len(src))); err != nil {
			return nil, err
		}
	}
	scratch := rawPool.Get().(*[]byte)
	defer rawPool.Put(scratch)
	nums := [...]*[]int64{&r.minute, &r.bucket, &r.n, &r.sum}
	for i, e := range list {
		if len(src) < e.packed {
			return nil, damaged("rollup")
		}
		packed := src[:e.packed]
		src = src[e.packed:]
		name := ""
		if i >= dims {
			name = rollNums[i-dims]
		} else if e.name == rollDims[i] {
			name = e.name
		}
		if name == "" || !want(name) {
			continue
		}
		raw, err := unpack(packed, e.raw, scratch)
		if err != nil {
			return nil, err
		}
		if i >= dims {
			if *nums[i-dims], _, err = readNumsInto(*nums[i-dims], raw, r.rows); err != nil {
				return nil, err
			}
			continue
		}
		if r.dims[i], err = readRollDim(r.dims[i].codes, raw, r.rows); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func readRollDim(room []int64, raw []byte, rows int) (d rollDim, err error) {
	n, raw, err := readUvarint(raw, uint64(len(raw)))
	if err != nil {
		return d, err
	}
	d.dict = make([]string, n)
	texts := raw
	for range d.dict {
		if _, raw, err = readOctets(raw); err != nil {
			return d, err
		}
	}
	all := string(texts[:len(texts)-len(raw)]) // once for all entries
	at := 0
	for i := range d.dict {
		s, rest, err := readOctets(texts)
		if err != nil {
			return d, err
		}
		at += len(texts) - len(rest) - len(s)
		d.dict[i] = all[at : at+len(s)]
		at, texts = at+len(s), rest
	}
	if d.codes, _, err = readNumsInto(room, raw, rows); err != nil {
		return d, err
	}
	for _, c := range d.codes {
		if c < 0 || c >= int64(n) {
			return d, damaged("rollup")
		}
	}
	return d, nil
}

// rollable says by which dimension of a rollup a filter can be answered.
func rollable(p *pred) (dim string, ok bool) {
	switch f := p.term.Field; {
	case f == "class" || f == "provider" || f == "queue":
		return f, p.text != nil
	case f == "disposition":
		return f, true
	case f == "domain", f == "recipient" && p.post == postRecipientDomain:
		return "recipient_domain", true
	case f == "sender" && p.post == postSenderDomain:
		return "sender_domain", true
	case f == "connector":
		return "connector", true
	case f == "client_ip" || f == "auth_user":
		return f, p.text != nil
	}
	return "", false
}

// rollKind is the kind of rows that an aggregation of outcomes can be answered
// from, as far as its dimensions and filters go: an index of rollKinds, or -1.
func (a *aggregation) rollKind(f *filter) int {
	var names []string
	for _, d := range a.dims {
		names = append(names, d.name)
	}
	for _, p := range slices.Concat(f.preds, f.nots, f.outcomeNots) {
		dim, ok := rollable(p)
		if !ok {
			return -1
		}
		names = append(names, dim)
	}
	for i, kind := range rollKinds {
		if kind.name != kindAccepted && !slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(kind.dims, n) }) {
			return i
		}
	}
	return -1
}

// passes makes, of a filter that is rollable, the question to a value of its dimension.
func (p *pred) passes(dim string) func(string) bool {
	switch dim {
	case "disposition":
		return func(s string) bool {
			var d mail.Disposition
			return d.UnmarshalText([]byte(s)) == nil && p.num(int64(d))
		}
	case "recipient_domain", "sender_domain":
		return func(s string) bool { return s != "" && p.text("x@"+s) }
	}
	return func(s string) bool { return s != "" && p.text(s) }
}

// canRoll reports whether rollups can answer the aggregation.
func (a *aggregation) canRoll(f *filter) bool {
	switch {
	case a.metric == "bytes":
		if !a.octets || slices.ContainsFunc(a.dims, func(d dimension) bool { return d.name != "sender_domain" && d.name != "connector" }) {
			return false
		}
		for _, p := range slices.Concat(f.preds, f.nots, f.outcomeNots) {
			if dim, ok := rollable(p); p.term.Field != "event" && (!ok || dim != "sender_domain" && dim != "connector") {
				return false
			}
		}
	case !a.outcomes:
		return false
	default:
		i := a.rollKind(f)
		if i < 0 || a.step%(rollKinds[i].minutes*rollMinute) != 0 || rollKinds[i].name == kindClient && strings.HasPrefix(a.metric, "latency_") {
			return false
		}
	}
	return a.step%rollMinute == 0 && !slices.ContainsFunc(a.dims, func(d dimension) bool { return !slices.Contains(rollDims, d.name) })
}

// rollFilter is a filter over the codes of a rollup's dimensions.
type rollFilter struct {
	not  bool
	dims []int // any of them
	ok   func(string) bool
}

// rolling is an aggregation that reads rollups.
type rolling struct {
	a       *aggregation
	kind    string
	by      []int // places in rollDims
	filters []rollFilter
	want    map[string]bool
	lo, hi  int64 // minutes, [lo, hi)
	longest bool  // the longest latency is asked for
}

func (a *aggregation) rolling(f *filter) *rolling {
	q := &rolling{a: a, kind: kindAccepted, want: map[string]bool{"kind": true, "minute": true, "n": true}, longest: slices.Contains(a.metrics, "latency_max")}
	q.want["bucket"], q.want["sum"] = a.hist || q.longest, a.metric == "bytes"
	unit := int64(rollMinute)
	if a.metric != "bytes" {
		i := a.rollKind(f)
		q.kind, unit = rollKinds[i].name, rollMinute*rollKinds[i].minutes
	}
	q.lo = -floorTo(-max(f.from, -1<<52), unit) / rollMinute // rounded up
	q.hi = max(q.lo, floorTo(min(f.to, 1<<52), unit)/rollMinute)
	for _, d := range a.dims {
		q.by = append(q.by, slices.Index(rollDims, d.name))
		q.want[d.name] = true
	}
	filters := func(preds []*pred, not bool) {
		for _, p := range preds {
			dim, ok := rollable(p)
			if !ok {
				continue // which fact it is
			}
			rf := rollFilter{not: not, dims: []int{slices.Index(rollDims, dim)}, ok: p.passes(dim)}
			q.want[dim] = true
			if dim == "connector" { // either side
				rf.dims = append(rf.dims, slices.Index(rollDims, "connector_in"))
				q.want["connector_in"] = true
			}
			q.filters = append(q.filters, rf)
		}
	}
	filters(f.preds, false)
	filters(f.nots, true)
	filters(f.outcomeNots, true)
	q.filters = append(q.filters, rollFilter{dims: []int{0}, ok: func(s string) bool { return s == q.kind }})
	if strings.HasPrefix(a.metric, "latency_") {
		q.want["disposition"] = true
		q.filters = append(q.filters, rollFilter{not: true, dims: []int{slices.Index(rollDims, "disposition")}, ok: func(s string) bool { return s == mail.Deferred.String() }})
	}
	return q
}

// rollMask is a filter over the dictionaries of one rollup: ok says which codes of
// each of its dimensions pass, and codes has those of the rows.
type rollMask struct {
	not   bool
	ok    [][]bool
	codes [][]int64
}

// masks asks the filters of the dictionaries of r; not some means that no row passes.
func (q *rolling) masks(r *rollup) (masks []rollMask, some bool) {
	masks = make([]rollMask, len(q.filters))
	for i, f := range q.filters {
		m := rollMask{not: f.not}
		passes := false
		for _, d := range f.dims {
			ok := make([]bool, len(r.dims[d].dict))
			for c, s := range r.dims[d].dict {
				ok[c] = f.ok(s)
				passes = passes || ok[c]
			}
			m.ok, m.codes = append(m.ok, ok), append(m.codes, r.dims[d].codes)
		}
		if !passes && !f.not {
			return nil, false
		}
		masks[i] = m
	}
	return masks, true
}

// add adds the rows of one rollup.
func (q *rolling) add(r *rollup) {
	if r.rows == 0 || r.hi < q.lo || r.lo >= q.hi {
		return
	}
	masks, some := q.masks(r)
	if !some {
		return
	}
	begin, end := q.span(r)
	step := q.a.step / rollMinute
	first, steps := int64(0), 1 // the first step that the rollup has, and how many
	if step > 0 {
		first = floorTo(max(r.lo, q.lo), step)
		steps = int((min(r.hi, q.hi-1)-first)/step) + 1
	}
	width := 1
	if len(q.by) == 2 {
		width = len(r.dims[q.by[1]].dict)
	}
	groups := 1
	if len(q.by) > 0 {
		groups = len(r.dims[q.by[0]].dict) * width
	}
	// The values of one rollup are gathered apart, so that several can be at once.
	var cells []rollCell
	place := make(map[int]int)
	var dense []int32
	if groups*steps <= 1<<17 {
		dense = make([]int32, groups*steps)
	}
	sums, buckets := q.want["sum"], q.want["bucket"]
rows:
	for row := begin; row < end; row++ {
		minute := r.minute[row]
		if minute < q.lo || minute >= q.hi {
			continue
		}
		for i := range masks {
			m := &masks[i]
			hit := false
			for j, ok := range m.ok {
				hit = hit || ok[m.codes[j][row]]
			}
			if hit == m.not {
				continue rows
			}
		}
		at := 0
		switch len(q.by) {
		case 1:
			at = int(r.dims[q.by[0]].codes[row])
		case 2:
			at = int(r.dims[q.by[0]].codes[row])*width + int(r.dims[q.by[1]].codes[row])
		}
		in := int64(0)
		if step > 0 {
			in = (minute - first) / step
			at = at*steps + int(in)
		}
		var g int
		if dense != nil {
			g = int(dense[at])
		} else {
			g = place[at]
		}
		if g == 0 {
			x := rollCell{at: (first + in*step) * rollMinute}
			for i, d := range q.by {
				x.key[i] = r.dims[d].dict[r.dims[d].codes[row]]
			}
			cells = append(cells, x)
			g = len(cells)
			if dense != nil {
				dense[at] = int32(g) //nolint:gosec // at most 1<<17
			} else {
				place[at] = g
			}
		}
		c := &cells[g-1].cell
		c.n += r.n[row]
		if sums {
			c.sum += r.sum[row]
		}
		if !buckets {
			continue
		}
		bucket := uint16(r.bucket[row]) //nolint:gosec // as bucketOf gave it
		if q.longest {
			c.max = max(c.max, int64(bucketMid(bucket)*1e6))
		}
		if q.a.hist {
			c.count(bucket, r.n[row])
		}
	}
	q.a.mergeCells(cells)
}

// span is where the rows of the kind that is asked for begin and end: where
// the rows are sorted, nothing else is between.
func (q *rolling) span(r *rollup) (first, end int) {
	kind := &r.dims[0]
	want := int64(slices.Index(kind.dict, q.kind))
	first, end = 0, len(kind.codes)
	for first < end && kind.codes[first] != want {
		first++
	}
	for first < end && kind.codes[end-1] != want {
		end--
	}
	return first, end
}

// rollCell is what one rollup has of a group in a step.
type rollCell struct {
	key  groupKey
	at   int64
	cell cell
}

// mergeCells adds what a rollup has.
func (a *aggregation) mergeCells(cells []rollCell) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range cells {
		x := &cells[i]
		g := a.group(x.key)
		g.total.merge(&x.cell)
		if a.step > 0 {
			a.cellOf(g, x.at).merge(&x.cell)
		}
	}
}

// roll answers from the rollups of a partition what it can, and lists the
// blocks that are to be read: whole, or at the ends of the range only.
func (q *rolling) roll(ctx context.Context, sn *snapshot, p *partition, f *filter) (whole, ends []*source, err error) {
	p.mu.Lock()
	runs, young := p.runs, p.fresh // replaced, never changed
	p.mu.Unlock()
	left := make(map[uint32]*header, len(sn.heads[p]))
	for _, h := range sn.heads[p] {
		left[h.seq] = h
	}
	take := func(seqs []uint32) {
		for _, seq := range seqs {
			h := left[seq]
			delete(left, seq)
			if h.maxTS >= f.from && h.minTS < q.lo*rollMinute || h.maxTS >= q.hi*rollMinute && h.minTS < f.to {
				ends = append(ends, &source{head: h, part: p})
			}
		}
	}
	all := func(seqs []uint32) bool {
		return !slices.ContainsFunc(seqs, func(seq uint32) bool { return left[seq] == nil })
	}
	for i := range young {
		if r := young[i].roll; r != nil && left[young[i].seq] != nil {
			q.add(r)
			take([]uint32{young[i].seq})
		}
	}
	var stored []*run
	for _, r := range runs {
		if r.roll == nil || !all(r.blocks) {
			continue
		}
		if r.roll.hi >= q.lo && r.roll.lo < q.hi {
			stored = append(stored, r)
		} else {
			take(r.blocks)
		}
	}
	done, err := sn.eachRollup(ctx, p, stored, q.want, q.add)
	if err != nil {
		return nil, nil, err
	}
	for _, r := range done {
		take(r.blocks)
	}
	for _, h := range left {
		whole = append(whole, &source{head: h, part: p})
	}
	return whole, ends, nil
}

// eachRollup reads the rollups of runs, several at once, and tells of which it
// could: facts can be read instead of the others.
func (sn *snapshot) eachRollup(ctx context.Context, p *partition, runs []*run, want map[string]bool, each func(*rollup)) (done []*run, err error) {
	var mu sync.Mutex
	err = parallel(ctx, sn.s.crew, runs, func(r *run) error {
		err := p.db.View(func(txn *badger.Txn) error {
			item, err := txn.Get(rollKey(r))
			if err != nil {
				return err
			}
			return item.Value(func(value []byte) error {
				room := rollPool.Get().(*rollup)
				defer rollPool.Put(room)
				got, err := readRollupInto(room, value, func(column string) bool { return want[column] })
				if err == nil {
					each(got)
				}
				return err
			})
		})
		if err != nil {
			sn.s.readErrors.Add(1)
			sn.s.log.Error("track rollup cannot be read; its facts are read instead", zap.String("partition", p.name), zap.Error(err))
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		done = append(done, r)
		return nil
	})
	return done, err
}

// mergeRollups makes one rollup of those of blocks; nil when one is absent.
func mergeRollups(blocks []fresh) *rollup {
	b := newRollBuilder()
	for i := range blocks {
		if blocks[i].roll == nil {
			return nil
		}
		b.merge(blocks[i].roll)
	}
	return b.done()
}

// restoreRollups makes the rollups of runs that have none of this version, from
// their blocks. The partition is acquired for writing.
func (p *partition) restoreRollups() error {
	p.indexing.Lock()
	defer p.indexing.Unlock()
	p.mu.Lock()
	runs := p.runs
	heads := make(map[uint32]*header, len(p.heads))
	for _, h := range p.heads {
		heads[h.seq] = h
	}
	p.mu.Unlock()
	if !slices.ContainsFunc(runs, func(r *run) bool { return r.roll == nil }) {
		return nil
	}
	runs = slices.Clone(runs)
	for i, r := range runs {
		if r.roll != nil {
			continue
		}
		var blocks []fresh
		for _, seq := range r.blocks {
			if heads[seq] == nil {
				return fmt.Errorf("restore rollup: block %d of partition %s cannot be read", seq, p.name)
			}
			roll, err := rollupOfView(newView(heads[seq], func(read func([]byte) error) error { return readBody(p.db, seq, read) }))
			if err != nil {
				return fmt.Errorf("restore rollup: %w", err)
			}
			blocks = append(blocks, fresh{seq: seq, roll: roll})
		}
		roll := mergeRollups(blocks)
		if err := p.update(func(txn *badger.Txn) error { return txn.Set(rollKey(r), roll.encode()) }); err != nil {
			return fmt.Errorf("restore rollup: %w", err)
		}
		with := *r
		with.roll = &rollHead{roll.lo, roll.hi}
		runs[i] = &with
	}
	p.mu.Lock()
	p.runs = runs
	p.mu.Unlock()
	return nil
}

// rollKey is where the rollup of a run is stored.
func rollKey(r *run) []byte {
	key := slices.Clone(r.key)
	key[0] = 'a'
	return key
}

// readRollHeads finds which runs have a rollup of this version.
func readRollHeads(txn *badger.Txn, runs []*run, log *zap.Logger) error {
	for _, r := range runs {
		item, err := txn.Get(rollKey(r))
		if errors.Is(err, badger.ErrKeyNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		err = item.Value(func(value []byte) error {
			got, err := readRollup(value, nil)
			switch {
			case errors.Is(err, errOldRollup):
			case err != nil:
				log.Error("track rollup is damaged; its facts are read instead", zap.Error(err))
			default:
				r.roll = &rollHead{got.lo, got.hi}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
