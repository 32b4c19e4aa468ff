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
var rollDims = [rollWidth]string{"kind", "recipient_domain", "queue", "remote_host", "provider", "connector", "connector_in", "disposition", "class", "code", "sender_domain", "client_ip", "auth_user"}

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

// rollRow is one row of a rollup that is being made.
type rollRow struct {
	codes                  [rollWidth]uint32 // as rollDims
	minute, bucket, n, sum int64
}

const rollWidth = 13

func (r *rollRow) compare(o *rollRow) int {
	for d := range r.codes {
		if r.codes[d] != o.codes[d] {
			return cmp.Compare(r.codes[d], o.codes[d])
		}
	}
	return cmp.Or(cmp.Compare(r.minute, o.minute), cmp.Compare(r.bucket, o.bucket))
}

// rollBuilder gathers rows.
type rollBuilder struct {
	rows  []rollRow
	dicts [rollWidth][]string
	index [rollWidth]map[string]uint32
	last  [rollWidth]uint32 // the latest code of each dimension

	facts [rollFacts]struct { // the latest, by what it is about
		rollFact
		at int // its row and one, or 0
	}
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

// rollBuilders are kept for their room.
var rollBuilders = newSpare(1, func() *rollBuilder {
	b := &rollBuilder{}
	for d := range b.index {
		b.index[d] = map[string]uint32{}
	}
	return b
})

func newRollBuilder() *rollBuilder { return rollBuilders.get() }

// release empties b for the next rollup.
func (b *rollBuilder) release() {
	for d := range b.index {
		clear(b.index[d])
	}
	*b = rollBuilder{rows: b.rows[:0], index: b.index} // what was made has the dictionaries
	if cap(b.rows) <= blockRows {
		rollBuilders.put(b)
	}
}

func (b *rollBuilder) code(dim int, s string) uint32 {
	dict := b.dicts[dim]
	if c := b.last[dim]; int(c) < len(dict) && dict[c] == s {
		return c
	}
	c, ok := b.index[dim][s]
	if !ok {
		c = uint32(len(dict)) //nolint:gosec // bounded by the rows of a run
		b.index[dim][s] = c
		b.dicts[dim] = append(dict, s)
	}
	b.last[dim] = c
	return c
}

func (b *rollBuilder) add(values []string, minute int64, bucket uint16, n, sum int64) {
	row := rollRow{minute: minute, bucket: int64(bucket), n: n, sum: sum}
	for i, s := range values {
		row.codes[i] = b.code(i, s)
	}
	b.rows = append(b.rows, row)
}

// merge adds all rows of o.
func (b *rollBuilder) merge(o *rollup) {
	at := len(b.rows)
	b.rows = slices.Grow(b.rows, o.rows)[:at+o.rows]
	rows := b.rows[at:]
	for i := range rows {
		rows[i].minute, rows[i].bucket, rows[i].n, rows[i].sum = o.minute[i], o.bucket[i], o.n[i], o.sum[i]
	}
	var moved []uint32
	for d := range o.dims {
		moved = moved[:0]
		for _, s := range o.dims[d].dict {
			moved = append(moved, b.code(d, s))
		}
		for i, c := range o.dims[d].codes {
			rows[i].codes[d] = moved[c]
		}
	}
}

// done sorts the rows and makes one of those that are equal.
func (b *rollBuilder) done() *rollup {
	slices.SortFunc(b.rows, func(x, y rollRow) int { return x.compare(&y) })
	n := 0
	for i := range b.rows {
		if row := &b.rows[i]; n > 0 && b.rows[n-1].compare(row) == 0 {
			b.rows[n-1].n += row.n
			b.rows[n-1].sum += row.sum
		} else {
			b.rows[n] = *row
			n++
		}
	}
	b.rows = b.rows[:n]
	return b.rollup()
}

// rollup is what was gathered, in that order. b is empty then.
func (b *rollBuilder) rollup() *rollup {
	defer b.release()
	rows := len(b.rows)
	r := rollPool.Get().(*rollup)
	r.reset()
	r.rows = rows
	for d := range r.dims {
		codes := resized(r.dims[d].codes, rows)
		for i := range b.rows {
			codes[i] = int64(b.rows[i].codes[d])
		}
		r.dims[d] = rollDim{dict: b.dicts[d], codes: codes}
	}
	r.minute, r.bucket, r.n, r.sum = resized(r.minute, rows), resized(r.bucket, rows), resized(r.n, rows), resized(r.sum, rows)
	for i := range b.rows {
		row := &b.rows[i]
		r.minute[i], r.bucket[i], r.n[i], r.sum[i] = row.minute, row.bucket, row.n, row.sum
		if i == 0 {
			r.lo, r.hi = row.minute, row.minute
		}
		r.lo, r.hi = min(r.lo, row.minute), max(r.hi, row.minute)
	}
	return r
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
			b.fact(r, rollAccepted, rollFact{who: whoOf(&ev.Info), disposition: mail.Queued}, "", ev.Size)
		case event.AttemptFinished:
			for k := range ev.Recipients {
				rc := &ev.Recipients[k]
				if d := cmp.Or(rc.Disposition, ev.Disposition); d == mail.Deferred {
					f := rollFact{who: whoOf(&ev.Info), hop: ev.Hop, disposition: d, class: cmp.Or(rc.Class, ev.Class), code: cmp.Or(rc.Code, ev.Code)}
					b.fact(r, rollDeferred, f, rc.Address, 0)
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
	return b.rollup()
}

// What facts are about.
const (
	rollAccepted = iota
	rollDeferred
	rollFinal
	rollFacts
)

// rollFact is what many facts tell alike. It has no pointer into the fact,
// which would be copied to the heap for that.
type rollFact struct {
	who
	hop         event.Hop
	disposition mail.Disposition
	class       mail.Class
	code        int
}

// who is what a rollup tells of where a message came from.
type who struct {
	mailFrom, connectorIn, user string
	client                      netip.Addr
}

func whoOf(i *event.Info) who { return who{i.MailFrom, i.ConnectorIn, i.AuthUser, i.ClientIP} }

func (b *rollBuilder) final(r *event.Record, f *event.Final, d mail.Disposition) {
	b.fact(r, rollFinal, rollFact{who: whoOf(&f.Info), hop: f.Hop, disposition: d, class: f.Class, code: f.Code}, f.Recipient, time.Duration(f.TTotal).Microseconds())
}

// fact counts a fact. What it says like the one before is not worked out again.
func (b *rollBuilder) fact(r *event.Record, about int, f rollFact, address string, value int64) {
	minute := floorTo(r.Time.UnixMicro(), rollMinute) / rollMinute
	last := &b.facts[about]
	var row rollRow
	switch {
	case last.at == 0 || last.rollFact != f:
		row = b.row(about, &f)
		last.rollFact = f
	case about == rollAccepted && b.rows[last.at-1].minute == minute:
		b.rows[last.at-1].n++
		b.rows[last.at-1].sum += value
		return
	default:
		row.codes = b.rows[last.at-1].codes
	}
	row.minute, row.n = minute, 1
	switch about {
	case rollAccepted:
		row.sum = value
	case rollFinal:
		row.bucket = int64(bucketOf(value))
	}
	if about != rollAccepted {
		row.codes[rollDomain] = b.code(rollDomain, domainOf(address))
	}
	b.rows = append(b.rows, row)
	last.at = len(b.rows)
	if about != rollAccepted {
		b.who(minute, &f)
	}
}

// rollDomain is the place of recipient_domain in rollDims.
const rollDomain = 1

// row makes a row of what f tells, but for the domain of its recipient.
func (b *rollBuilder) row(about int, f *rollFact) (row rollRow) {
	kind := kindOutcome
	if about == rollAccepted {
		kind = kindAccepted
	}
	remote := lower(f.hop.RemoteName)
	if remote == "" && f.hop.RemoteIP.IsValid() {
		remote = f.hop.RemoteIP.String()
	}
	code := ""
	if f.code != 0 {
		code = strconv.Itoa(f.code)
	}
	for d, s := range [rollWidth]string{ // in the order of rollDims
		kind, "", f.hop.Queue, remote, f.hop.Provider, cmp.Or(f.hop.ConnectorOut, f.connectorIn), f.connectorIn,
		f.disposition.String(), string(f.class), code, senderDomain(f.mailFrom), "", "",
	} {
		if d != rollDomain || about == rollAccepted {
			row.codes[d] = b.code(d, s)
		}
	}
	return row
}

// who counts an outcome for who has submitted the message.
func (b *rollBuilder) who(minute int64, f *rollFact) {
	c := clientRow{f.client, f.user, f.disposition, floorTo(minute, clientMinutes)}
	if c == b.client && b.clientAt > 0 { // most follow one of the same client
		b.rows[b.clientAt-1].n++
		return
	}
	client := ""
	if f.client.IsValid() {
		client = f.client.String()
	}
	b.add([]string{kindClient, "", "", "", "", "", "", f.disposition.String(), "", "", "", client, f.user}, c.quarter, 0, 1, 0)
	b.client, b.clientAt = c, len(b.rows)
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
			rows = slices.DeleteFunc(rows, func(row int) bool { t, _ := v.typeOf(row); return v.types[t].name != accepted })
		}
		values[0] = kind
		a.eachIn(v, rows, all, func(x *outcome) {
			for d := range a.dims {
				values[d+1] = x.value(d)
			}
			b.addValue(kind, x.fact, values, x.when, x.n)
		})
	}
	return b.rollup(), nil
}

// youngRollup is the rollup of a block whose run is not made yet. Its numbers are
// as appendNums writes them: an octet or two each, and none of those that are
// the same in all rows, as most are.
type youngRollup struct {
	rows   int
	lo, hi int64
	dicts  [rollWidth][]string
	nums   [rollWidth + len(rollNums)][]byte // codes of the dimensions, then rollNums
}

// young packs r, which nobody may use any more. room is for what is packed, and used again.
func (r *rollup) young(room *[]byte) *youngRollup {
	y := &youngRollup{rows: r.rows, lo: r.lo, hi: r.hi}
	raw, entries := (*room)[:0], 0
	for _, d := range r.dims { // their texts are parts of facts, which would stay in memory
		entries += len(d.dict)
		for _, s := range d.dict {
			raw = append(raw, s...)
		}
	}
	texts, list := string(raw), make([]string, 0, entries)
	for i, d := range r.dims {
		from := len(list)
		for _, s := range d.dict {
			list, texts = append(list, texts[:len(s)]), texts[len(s):]
		}
		y.dicts[i] = list[from:len(list):len(list)]
	}
	raw = raw[:0]
	var ends [len(y.nums)]int
	for i := range y.nums {
		raw = appendNums(raw, *r.column(i))
		ends[i] = len(raw)
	}
	all, at := slices.Clone(raw), 0
	for i, end := range ends {
		y.nums[i], at = all[at:end:end], end
	}
	*room = raw
	rollPool.Put(r)
	return y
}

// column is a column of r as youngRollup has them.
func (r *rollup) column(i int) *[]int64 {
	if i < len(r.dims) {
		return &r.dims[i].codes
	}
	return [...]*[]int64{&r.minute, &r.bucket, &r.n, &r.sum}[i-len(r.dims)]
}

// read reads the columns that want asks for into room.
func (y *youngRollup) read(room *rollup, want func(column string) bool) (*rollup, error) {
	room.reset()
	room.rows, room.lo, room.hi = y.rows, y.lo, y.hi
	for i := range y.nums {
		if i < rollWidth {
			if !want(rollDims[i]) {
				continue
			}
			room.dims[i].dict = y.dicts[i]
		} else if !want(rollNums[i-rollWidth]) {
			continue
		}
		c := room.column(i)
		var err error
		if *c, _, err = readNumsInto(*c, y.nums[i], y.rows); err != nil {
			return nil, err
		}
	}
	return room, nil
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
		name        []byte
		raw, packed int
	}
	list := make([]entry, dims+4)
	for i := range list {
		if list[i].name, src, err = readOctets(src); err != nil {
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
	defer putRaw(scratch)
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
		} else if string(e.name) == rollDims[i] {
			name = rollDims[i]
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
	return a.step%rollMinute == 0 && !slices.ContainsFunc(a.dims, func(d dimension) bool { return !slices.Contains(rollDims[:], d.name) })
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
		q.by = append(q.by, slices.Index(rollDims[:], d.name))
		q.want[d.name] = true
	}
	filters := func(preds []*pred, not bool) {
		for _, p := range preds {
			dim, ok := rollable(p)
			if !ok {
				continue // which fact it is
			}
			rf := rollFilter{not: not, dims: []int{slices.Index(rollDims[:], dim)}, ok: p.passes(dim)}
			q.want[dim] = true
			if dim == "connector" { // either side
				rf.dims = append(rf.dims, slices.Index(rollDims[:], "connector_in"))
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
		q.filters = append(q.filters, rollFilter{not: true, dims: []int{slices.Index(rollDims[:], "disposition")}, ok: func(s string) bool { return s == mail.Deferred.String() }})
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
	room := rollPool.Get().(*rollup)
	defer rollPool.Put(room)
	for i := range young {
		if young[i].roll == nil || left[young[i].head.seq] == nil {
			continue
		}
		r, err := young[i].roll.read(room, func(column string) bool { return q.want[column] })
		if err != nil {
			return nil, nil, err
		}
		q.add(r)
		take([]uint32{young[i].head.seq})
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
func mergeRollups(blocks []fresh) (*rollup, error) {
	if slices.ContainsFunc(blocks, func(f fresh) bool { return f.roll == nil }) {
		return nil, nil //nolint:nilnil // it is made later
	}
	total := 0
	for i := range blocks {
		total += blocks[i].roll.rows
	}
	b := newRollBuilder()
	b.rows = slices.Grow(b.rows, total)
	room := rollPool.Get().(*rollup)
	defer rollPool.Put(room)
	for i := range blocks {
		r, err := blocks[i].roll.read(room, func(string) bool { return true })
		if err != nil {
			b.release()
			return nil, err
		}
		b.merge(r)
	}
	return b.done(), nil
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
	var room []byte
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
			blocks = append(blocks, fresh{head: heads[seq], roll: roll.young(&room)})
		}
		roll, err := mergeRollups(blocks)
		if err != nil {
			return fmt.Errorf("restore rollup: %w", err)
		}
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
