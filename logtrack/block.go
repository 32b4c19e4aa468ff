package logtrack

import (
	"cmp"
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// Forms of a stored column.
const (
	formNums byte = iota
	formText
	formEventIDs
	formTimes // of the rows
	formDict  // a dictionary that columns share

	formLike      byte = 0x10 // likeMark stands for the value of another column
	formShared    byte = 0x20 // the dictionary is one of formDict
	formPredicted byte = 0x40 // what differs from an earlier row about the same message or session
	formByMessage byte = 0x80 // version 1: a value for each message of the block, then those of rows without a message
	formLed       byte = 0x80 // from version 3 on: the values of rows that lead come first, by themselves
	formKind      byte = 0x0f
)

// Versions of a stored block. Older bodies are read: text columns of version 1
// have the dictionary first, and no form above but formByMessage; version 2 has
// no formLed.
const (
	headerVersion = 1
	bodyVersion   = 3
)

// typeRun is a stretch of rows of one type of fact. Rows are stored by type,
// so that a column needs room only where it has something to say.
type typeRun struct {
	name  string
	start int
	n     int
}

// header is what stays in memory of a sealed block.
type header struct {
	seq            uint32
	rows           int
	bytes          int   // of the stored body
	minTS, maxTS   int64 // times of facts, microseconds
	minID, maxID   int64 // times of event ids, milliseconds
	minAcc, maxAcc int64 // acceptance of the messages, milliseconds; only when hasMsg
	hasMsg         bool
	types          []typeRun
	lastMsg        mail.QueueID // of widen, with its acceptance
	lastAcc        int64
	small          map[string][]string // the values of those pruned columns that have few, or none
}

// encoded is a block ready to be stored.
type encoded struct {
	head  *header
	body  []byte
	posts []posting // sorted
	roll  *rollup
}

// colBuild gathers a column while a block is encoded.
type colBuild struct {
	name  string
	text  bool
	cover []byte // indexes of the types that have values
	nums  []int64
	codes []uint32
	last  uint32 // the code before
	*dictBuild
}

// dictBuild is the dictionary of a text column, or of several.
type dictBuild struct {
	dict map[string]uint32
	list []string
}

// unique is the column whose values are all different, so that it needs no map.
const unique = "event_id"

// code is the code of s. Facts follow each other much as they did in the type
// before, so that the code is often the last one or the next.
func (c *colBuild) code(s string) uint32 {
	if s == "" {
		return 0
	}
	if c.dict == nil {
		c.list = append(c.list, s)
		return uint32(len(c.list) - 1) //nolint:gosec // bounded by the rows of a block
	}
	if c.list[c.last] == s {
		return c.last
	}
	if next := c.last + 1; int(next) < len(c.list) && c.list[next] == s {
		c.last = next
		return next
	}
	id, ok := c.dict[s]
	if !ok {
		id = uint32(len(c.list)) //nolint:gosec // bounded by the rows of a block
		c.dict[s] = id
		c.list = append(c.list, s)
	}
	c.last = id
	return id
}

type builder struct {
	recs   []event.Record
	head   *header
	order  []int // rows as stored → index in recs
	cols   []*colBuild
	byName map[string]*colBuild

	// scratch, of blocks before too
	spare   map[string]*colBuild
	dicts   map[string]*dictBuild // shared
	keys    []uint32              // of the rows
	nkeys   int
	prev    map[string][]int32 // predictors by cover and list
	name    []string
	raw     []byte
	data    []byte
	nums    []int64
	nanos   []int64
	scratch []int64
	facts   []event.Value
	vals    []event.Value
}

// encodeBlock seals records into a block. The records do not change.
func encodeBlock(seq uint32, recs []event.Record) *encoded {
	return encodeRows(seq, recs, summarize(recs))
}

// encodeRows is encodeBlock for records whose ranges are known.
func encodeRows(seq uint32, recs []event.Record, h *header) *encoded {
	b := builders.Get().(*builder)
	defer b.release()
	b.recs, b.head = recs, h
	b.head.seq, b.head.rows = seq, len(recs)
	b.head.small = map[string][]string{}
	b.head.lastMsg, b.head.lastAcc = "", 0
	b.sortByType()
	for t, run := range b.head.types {
		b.addType(byte(t), run) // far fewer types than 256
	}
	e := &encoded{head: b.head, body: b.body(), posts: b.postings(), roll: rollupOf(recs)}
	b.head.bytes = len(e.body)
	for _, name := range pruned {
		switch c := b.byName[name]; {
		case c == nil:
			b.head.small[name] = []string{}
		case len(c.list) <= maxPruned+1:
			b.head.small[name] = slices.Clone(c.list[1:])
		}
	}
	return e
}

// builders are kept, because their maps and slices are as large as a block.
var builders = sync.Pool{New: func() any {
	return &builder{byName: map[string]*colBuild{}, spare: map[string]*colBuild{}, dicts: map[string]*dictBuild{}, prev: map[string][]int32{}}
}}

// release empties b, so that it holds nothing of its block, for the next one.
func (b *builder) release() {
	for key, c := range b.byName {
		if c.text {
			clear(c.dict)
			clear(c.list)
			c.list = c.list[:1]
		}
		c.cover, c.nums, c.codes, c.last = c.cover[:0], c.nums[:0], c.codes[:0], 0
		b.spare[key] = c
	}
	clear(b.byName)
	clear(b.prev)
	clear(b.vals[:cap(b.vals)])
	clear(b.facts[:cap(b.facts)])
	b.recs, b.head, b.cols = nil, nil, b.cols[:0]
	builders.Put(b)
}

// summarize computes what a header says of the ranges of recs.
func summarize(recs []event.Record) *header {
	h := &header{}
	for i := range recs {
		_, id := idKey(&recs[i])
		h.widen(&recs[i], id, i == 0)
	}
	return h
}

// widen makes room in the ranges for r, whose event id has the time id.
func (h *header) widen(r *event.Record, id int64, first bool) {
	ts := r.Time.UnixMicro()
	if first {
		h.minTS, h.maxTS, h.minID, h.maxID = ts, ts, id, id
	}
	h.minTS, h.maxTS = min(h.minTS, ts), max(h.maxTS, ts)
	h.minID, h.maxID = min(h.minID, id), max(h.maxID, id)
	if r.Message == "" {
		return
	}
	acc := h.lastAcc
	if h.lastMsg != r.Message || !h.hasMsg {
		acc = acceptMS(string(r.Message))
		h.lastMsg, h.lastAcc = r.Message, acc
	}
	if !h.hasMsg {
		h.minAcc, h.maxAcc, h.hasMsg = acc, acc, true
	}
	h.minAcc, h.maxAcc = min(h.minAcc, acc), max(h.maxAcc, acc)
}

func (b *builder) sortByType() {
	count := map[string]int{}
	name := slices.Grow(b.name[:0], len(b.recs))[:len(b.recs)]
	b.name = name
	for i := range b.recs {
		name[i] = plans[reflect.TypeOf(b.recs[i].Event)].name
		count[name[i]]++
	}
	for n, c := range count {
		b.head.types = append(b.head.types, typeRun{name: n, n: c})
	}
	slices.SortFunc(b.head.types, func(x, y typeRun) int {
		return cmp.Or(cmp.Compare(rank(x.name), rank(y.name)), cmp.Compare(x.name, y.name))
	})
	next := map[string]int{}
	start := 0
	for i := range b.head.types {
		t := &b.head.types[i]
		t.start, next[t.name] = start, start
		start += t.n
	}
	b.order = slices.Grow(b.order[:0], len(b.recs))[:len(b.recs)]
	for i := range b.recs {
		b.order[next[name[i]]] = i
		next[name[i]]++
	}
}

// rank is the place of facts in a block: those that lead, acceptance first.
func rank(fact string) int {
	switch {
	case fact == "message_queued":
		return 0
	case leads(fact):
		return 1
	}
	return 2
}

func (b *builder) col(name string, text bool) *colBuild {
	key := name
	if !text {
		key += "#"
	}
	c := b.byName[key]
	if c == nil {
		c = b.spare[key]
		if c == nil {
			c = &colBuild{name: name, text: text}
			if text {
				c.dictBuild = b.dictionary(name)
			}
		}
		b.byName[key] = c
		b.cols = append(b.cols, c)
	}
	return c
}

// dictionary is the one that a column begins with.
func (b *builder) dictionary(column string) *dictBuild {
	name := sharedDicts[column]
	if d := b.dicts[name]; d != nil {
		return d
	}
	d := &dictBuild{list: []string{""}}
	if column != unique {
		d.dict = map[string]uint32{}
	}
	if name != "" {
		b.dicts[name] = d
	}
	return d
}

// addText appends n texts to a column, unless they say nothing.
func (b *builder) addText(t byte, name string, n int, text func(i int) string) {
	first := 0
	for first < n && text(first) == "" {
		first++
	}
	if first == n {
		return
	}
	c := b.col(name, true)
	c.cover = append(c.cover, t)
	c.codes = slices.Grow(c.codes, n)
	for range first {
		c.codes = append(c.codes, 0)
	}
	for i := first; i < n; i++ {
		c.codes = append(c.codes, c.code(text(i)))
	}
}

func (b *builder) addNums(t byte, name string, nums []int64) {
	if !slices.ContainsFunc(nums, func(n int64) bool { return n != 0 }) {
		return
	}
	c := b.col(name, false)
	c.cover = append(c.cover, t)
	c.nums = append(c.nums, nums...)
}

// addType adds the columns of one type of fact.
func (b *builder) addType(t byte, run typeRun) {
	rows := b.order[run.start : run.start+run.n]
	for _, name := range heads {
		if name == "ts" {
			b.nums, b.nanos = b.nums[:0], b.nanos[:0]
			for _, i := range rows {
				n, ns := packTime(b.recs[i].Time)
				b.nums, b.nanos = append(b.nums, n), append(b.nanos, ns)
			}
			b.addNums(t, "ts", b.nums)
			b.addNums(t, "ts/ns", b.nanos)
			continue
		}
		text := headTexts[name]
		b.addText(t, name, len(rows), func(i int) string { return text(&b.recs[rows[i]]) })
	}
	p := planNames[run.name]
	b.facts = b.facts[:0]
	for _, i := range rows {
		b.facts = append(b.facts, event.ValueOf(b.recs[i].Event))
	}
	for i := range p.leaves {
		l := &p.leaves[i]
		if l.kind != kindList {
			b.addLeaf(t, l, b.facts)
			continue
		}
		b.nums, b.vals = b.nums[:0], b.vals[:0]
		for _, s := range b.facts {
			list := s.Field(l.offset)
			n := list.Len()
			b.nums = append(b.nums, int64(n)+1) // 0 for nil
			for j := range n {
				b.vals = append(b.vals, list.Item(j, l.size))
			}
		}
		b.addNums(t, l.name, b.nums)
		for j := range l.sub {
			b.addLeaf(t, &l.sub[j], b.vals)
		}
	}
}

// headTexts are the fields of the record itself, but for its time.
var headTexts = map[string]func(r *event.Record) string{
	"event_id":    func(r *event.Record) string { return r.ID },
	"node":        func(r *event.Record) string { return r.Node },
	"source":      func(r *event.Record) string { return string(r.Source) },
	"config_rev":  func(r *event.Record) string { return r.ConfigRev },
	"session_id":  func(r *event.Record) string { return r.Session },
	"queue_id":    func(r *event.Record) string { return string(r.Message) },
	"message_uid": func(r *event.Record) string { return r.UID },
}

func (b *builder) addLeaf(t byte, l *leaf, structs []event.Value) {
	switch l.kind {
	case kindString:
		b.addText(t, l.name, len(structs), func(i int) string { return structs[i].Field(l.offset).Text() })
	case kindAddr:
		var last netip.Addr // most are the same
		text := ""
		b.addText(t, l.name, len(structs), func(i int) string {
			if a := structs[i].Field(l.offset).Addr(); a != last {
				last, text = a, l.text(structs[i])
			}
			return text
		})
	case kindJSON:
		b.addText(t, l.name, len(structs), func(i int) string { return l.text(structs[i]) })
	default:
		b.nums, b.nanos = b.nums[:0], b.nanos[:0]
		some := int64(0)
		for _, s := range structs {
			n, ns := l.num(s)
			some |= n | ns
			b.nums = append(b.nums, n)
			if l.kind == kindTime {
				b.nanos = append(b.nanos, ns)
			}
		}
		if some == 0 {
			return
		}
		b.addNums(t, l.name, b.nums)
		if l.kind == kindTime {
			b.addNums(t, l.name+"/ns", b.nanos)
		}
	}
}

// packedSmall are columns that only the view of one message reads, and that
// take much room.
var packedSmall = map[string]bool{"event_id": true, "transcript": true}

// body writes the directory of columns and the columns.
func (b *builder) body() []byte {
	b.rowKeys()
	dir := binary.AppendUvarint(make([]byte, bodyStart, 4<<10), uint64(len(b.cols)+b.sharedCount())) //nolint:gosec // a count
	data, raw := b.data[:0], b.raw
	column := func(name string, form byte, cover []byte, n int) {
		at := len(data)
		data = appendPacked(data, raw, packedSmall[name])
		dir = appendString(dir, name)
		dir = append(dir, form)
		dir = appendString(dir, string(cover))
		dir = binary.AppendUvarint(dir, uint64(n)) //nolint:gosec // a count
		dir = binary.AppendUvarint(dir, uint64(len(raw)))
		dir = binary.AppendUvarint(dir, uint64(len(data)-at)) //nolint:gosec // a length
	}
	for _, c := range b.cols {
		var form byte
		raw, form = b.column(raw[:0], c)
		column(c.name, form, c.cover, max(len(c.nums), len(c.codes)))
	}
	for _, name := range sharedNames {
		if d := b.dicts[name]; d != nil && len(d.list) > 1 {
			raw = appendDict(raw[:0], d.list)
			column(name, formDict, nil, 0)
		}
	}
	b.data, b.raw = data, raw
	return sign(append(dir, data...))
}

func (b *builder) sharedCount() (n int) {
	for _, d := range b.dicts {
		if len(d.list) > 1 {
			n++
		}
	}
	return n
}

// rowKeys tells which rows belong together.
func (b *builder) rowKeys() {
	var queue, session placed
	messages := 0
	if c := b.byName["queue_id"]; c != nil {
		queue, messages = placed{c.cover, c.codes}, len(c.list)-1
	}
	if c := b.byName["session_id"]; c != nil {
		session = placed{c.cover, c.codes}
	}
	b.keys, b.nkeys = keysOf(b.head.types, len(b.recs), messages, queue, session)
}

// predictors of a column. Columns of the same types have the same.
func (b *builder) predictors(c *colBuild) []int32 {
	list, child := isChild(c.name)
	if !child {
		list = ""
	}
	key := list + "/" + string(c.cover)
	if prev, ok := b.prev[key]; ok {
		return prev
	}
	var first []int
	var sums []int32
	if child {
		first, sums = b.listSums(list)
	}
	prev := predictors(b.head.types, c.cover, b.keys, b.nkeys, first, sums)
	b.prev[key] = prev
	return prev
}

// listSums is where each type's values begin in the column of a list, and the
// elements before each.
func (b *builder) listSums(list string) (first []int, sums []int32) {
	c := b.byName[colKey(list, false)]
	first = make([]int, len(b.head.types))
	at := 0
	for _, t := range c.cover {
		first[t] = at
		at += b.head.types[t].n
	}
	sums = make([]int32, len(c.nums)+1)
	for i, n := range c.nums {
		sums[i+1] = sums[i] + int32(max(n-1, 0)) //nolint:gosec // bounded by the elements of a block
	}
	return first, sums
}

// lead is how many values of a column, from the first on, are of rows that lead.
func (b *builder) lead(c *colBuild) (n int) {
	list, child := isChild(c.name)
	key := colKey(c.name, c.text)
	for _, t := range c.cover {
		run := &b.head.types[t]
		if !ledColumns[run.name][key] {
			break
		}
		if !child {
			n += run.n
			continue
		}
		first, sums := b.listSums(list)
		n += int(sums[first[t]+run.n] - sums[first[t]])
	}
	return n
}

// constant reports whether all values are the same.
func constant[T comparable](values []T) bool {
	for _, v := range values {
		if v != values[0] {
			return false
		}
	}
	return true
}

// column writes one column in the form that suits it.
func (b *builder) column(raw []byte, c *colBuild) ([]byte, byte) {
	switch {
	case c.name == unique && len(c.codes) == len(b.recs):
		if out, ok := b.eventIDs(raw, c); ok {
			return out, formEventIDs
		}
	case c.name == "ts":
		raw, b.scratch = appendTimes(raw, b.head.types, c.cover, c.nums, b.keys, b.nkeys, b.scratch)
		return raw, formTimes
	case !c.text:
		return b.numbers(raw, c)
	}
	form, codes, dict := formText, c.codes, c.list
	entries := len(dict)
	if base := b.byName[likes[c.name]]; base != nil {
		if k, d, ok := b.liken(c, base); ok {
			form, codes, dict, entries = form|formLike, k, d, len(d)
		}
	}
	if sharedDicts[c.name] != "" {
		form, dict = form|formShared, nil
	}
	plain := func(dst []byte) []byte { return appendCodes(dst, codes) }
	if c.name != "queue_id" && c.name != "session_id" && c.name != unique && !constant(codes) { // those tell which rows belong together
		form |= formPredicted
		lead := b.lead(c)
		if lead > 0 {
			form |= formLed
		}
		plain = func(dst []byte) []byte {
			if lead > 0 {
				dst = binary.AppendUvarint(dst, uint64(lead))
			}
			var prev []int32
			if lead < len(codes) {
				prev = b.predictors(c)
			}
			dst, b.scratch = appendPredictedCodes(dst, codes, lead, prev, b.scratch)
			return dst
		}
	}
	return appendText(raw, entries, plain, dict), form
}

// numbers writes a column of numbers.
func (b *builder) numbers(raw []byte, c *colBuild) ([]byte, byte) {
	nums, form, lead := c.nums, formNums, 0
	if len(c.cover) > 1 && !constant(nums) {
		if lead = b.lead(c); lead < len(nums) {
			diff, worth := predictedNums(nums, lead, b.predictors(c), b.scratch)
			if b.scratch = diff; worth {
				nums, form = diff, formNums|formPredicted
			}
		}
	}
	if lead > 0 && lead < len(nums) {
		return appendParts(binary.AppendUvarint(raw, uint64(lead)), nums, lead), form | formLed
	}
	return appendNums(raw, nums), form
}

// liken gives a column of which most values are those of base codes and a
// dictionary in which likeMark, entry 1, stands for the value of base.
func (b *builder) liken(c, base *colBuild) (codes []uint32, dict []string, ok bool) {
	if !isSubset(c.cover, base.cover) || slices.Contains(c.list, likeMark) {
		return nil, nil, false
	}
	at := make([]int, len(b.head.types)) // in base, of each type
	n := 0
	for _, t := range base.cover {
		at[t] = n
		n += b.head.types[t].n
	}
	codes = make([]uint32, 0, len(c.codes))
	dict = []string{"", likeMark}
	moved := make([]uint32, len(c.list)) // code in c to code in dict
	k := 0
	for _, t := range c.cover {
		for row := range b.head.types[t].n {
			code := c.codes[k]
			k++
			switch {
			case code == 0:
				codes = append(codes, 0)
			case c.list[code] == base.list[base.codes[at[t]+row]]:
				codes = append(codes, 1)
			default:
				if moved[code] == 0 {
					moved[code] = uint32(len(dict)) //nolint:gosec // bounded by the rows of a block
					dict = append(dict, c.list[code])
				}
				codes = append(codes, moved[code])
			}
		}
	}
	return codes, dict, true
}

func isSubset(list, of []byte) bool {
	return !slices.ContainsFunc(list, func(t byte) bool { return !slices.Contains(of, t) })
}

// bodyStart is where the directory of a body begins: behind version and checksum.
const bodyStart = 5

// sign writes version and checksum into the room for them.
func sign(body []byte) []byte {
	body[0] = bodyVersion
	binary.BigEndian.PutUint32(body[1:], crc32.Checksum(body[bodyStart:], castagnoli))
	return body
}

func (b *builder) eventIDs(raw []byte, c *colBuild) ([]byte, bool) {
	ts := b.byName["ts#"]
	if ts == nil || len(ts.nums) != len(c.codes) {
		return nil, false
	}
	ids := make([]string, len(c.codes))
	for i, code := range c.codes {
		ids[i] = c.list[code]
	}
	return appendEventIDs(raw, ids, ts.nums)
}

// postings lists the postings of the block, each once.
func (b *builder) postings() []posting {
	posts := []posting{}
	for i, p := range postings {
		c := b.byName[p.column]
		if c == nil {
			continue
		}
		again := slices.ContainsFunc(postings[:i], func(q indexed) bool { // of a dictionary that columns share
			o := b.byName[q.column]
			return q.post == p.post && o != nil && o.dictBuild == c.dictBuild
		})
		if !again {
			posts = appendPostings(posts, p.post, p.key, c.list)
		}
	}
	return sortPostings(b.appendUndelivered(posts))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// append writes the header as it is stored.
func (h *header) append(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, headerVersion)
	dst = binary.AppendUvarint(dst, uint64(h.rows))  //nolint:gosec // a count
	dst = binary.AppendUvarint(dst, uint64(h.bytes)) //nolint:gosec // a count
	for _, v := range [...]int64{h.minTS, h.maxTS, h.minID, h.maxID} {
		dst = binary.AppendVarint(dst, v)
	}
	if h.hasMsg {
		dst = append(dst, 1)
		dst = binary.AppendVarint(dst, h.minAcc)
		dst = binary.AppendVarint(dst, h.maxAcc)
	} else {
		dst = append(dst, 0)
	}
	dst = binary.AppendUvarint(dst, uint64(len(h.types)))
	for _, t := range h.types {
		dst = appendString(dst, t.name)
		dst = binary.AppendUvarint(dst, uint64(t.n)) //nolint:gosec // a count
	}
	dst = binary.AppendUvarint(dst, uint64(len(h.small)))
	for _, name := range pruned {
		vals, ok := h.small[name]
		if !ok {
			continue
		}
		dst = appendString(dst, name)
		dst = binary.AppendUvarint(dst, uint64(len(vals)))
		for _, v := range vals {
			dst = appendString(dst, v)
		}
	}
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[at:], castagnoli))
}

// readHeader reads what header.append wrote. intern shares equal strings.
func readHeader(seq uint32, src []byte, intern func(string) string) (*header, error) {
	if len(src) < 5 || crc32.Checksum(src[:len(src)-4], castagnoli) != binary.BigEndian.Uint32(src[len(src)-4:]) {
		return nil, damaged("header checksum")
	}
	if src[0] != headerVersion {
		return nil, damaged("header version")
	}
	h := &header{seq: seq, small: map[string][]string{}}
	src = src[1 : len(src)-4]
	var err error
	if h.rows, src, err = readUvarint(src, maxBlockRows); err != nil {
		return nil, err
	}
	if h.bytes, src, err = readUvarint(src, 1<<31); err != nil {
		return nil, err
	}
	for _, v := range [...]*int64{&h.minTS, &h.maxTS, &h.minID, &h.maxID} {
		if *v, src, err = readVarint(src); err != nil {
			return nil, err
		}
	}
	if len(src) == 0 {
		return nil, damaged("header")
	}
	h.hasMsg, src = src[0] == 1, src[1:]
	if h.hasMsg {
		for _, v := range [...]*int64{&h.minAcc, &h.maxAcc} {
			if *v, src, err = readVarint(src); err != nil {
				return nil, err
			}
		}
	}
	if src, err = h.readTypes(src, intern); err != nil {
		return nil, err
	}
	n, src, err := readUvarint(src, uint64(len(pruned)))
	if err != nil {
		return nil, err
	}
	for range n {
		var name string
		if name, src, err = readString(src); err != nil {
			return nil, err
		}
		var k int
		if k, src, err = readUvarint(src, maxPruned); err != nil {
			return nil, err
		}
		vals := make([]string, k)
		for i := range vals {
			if vals[i], src, err = readString(src); err != nil {
				return nil, err
			}
			vals[i] = intern(vals[i])
		}
		h.small[intern(name)] = vals
	}
	return h, nil
}

func (h *header) readTypes(src []byte, intern func(string) string) ([]byte, error) {
	n, src, err := readUvarint(src, 255)
	if err != nil {
		return nil, err
	}
	total := 0
	for range n {
		var t typeRun
		if t.name, src, err = readString(src); err != nil {
			return nil, err
		}
		if t.n, src, err = readUvarint(src, maxBlockRows); err != nil {
			return nil, err
		}
		t.name, t.start = intern(t.name), total
		total += t.n
		h.types = append(h.types, t)
	}
	if total != h.rows {
		return nil, damaged("rows")
	}
	return src, nil
}

// isChild reports whether a column belongs to the elements of a list, and of which.
func isChild(name string) (list string, ok bool) {
	list, _, ok = strings.Cut(name, ".")
	return list, ok
}
