package logtrack

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"reflect"
	"slices"

	"waybill/relay/event"
)

// A block is built type by type of fact and column by column. The loops over
// the values of a column are all that takes time: they know where in the facts
// it is and how wide, and whatever else a column needs is worked out once for
// the process (layout) or once for the block. All room is used again.

// sealLeaf is a leaf with the columns that its values go to.
type sealLeaf struct {
	*leaf
	col   int // its place in layout.columns
	below int // that of what is below the microsecond
	width int // octets of an integer that is read as it is; 0 for others
	sub   []sealLeaf
}

// columnLayout is what never changes of a column.
type columnLayout struct {
	name   string
	key    string // of colKey
	text   bool
	parent string // the list to whose elements it belongs, or ""
	shared string // the name of its dictionary, or ""
}

// layout says how facts become columns.
var layout = makeLayout()

type blockLayout struct {
	columns []columnLayout
	places  map[string]int // in columns, by key
	order   []byte         // the types of facts, by their places in journalTypes, as blocks have them
	facts   [][]sealLeaf   // by place in journalTypes
	heads   []sealLeaf     // of the record itself
}

func makeLayout() *blockLayout {
	l := &blockLayout{places: map[string]int{}}
	record := map[string]leaf{}
	for _, f := range planLeaves(reflect.TypeFor[event.Record](), nil, 0, "") {
		record[f.name] = f
	}
	own := make([]leaf, len(heads))
	for i, name := range heads {
		own[i] = record[name]
	}
	l.heads = l.leaves(own, "")
	for i, p := range journalTypes {
		l.order = append(l.order, byte(i)) // far fewer than 256
		l.facts = append(l.facts, l.leaves(p.leaves, ""))
	}
	slices.SortStableFunc(l.order, func(a, b byte) int { return cmp.Compare(rank(journalTypes[a].name), rank(journalTypes[b].name)) })
	return l
}

func (l *blockLayout) leaves(leaves []leaf, list string) []sealLeaf {
	out := make([]sealLeaf, len(leaves))
	for i := range leaves {
		f := &leaves[i]
		s := sealLeaf{leaf: f, col: l.column(f.name, f.isText(), list)}
		switch f.kind {
		case kindTime:
			s.below = l.column(f.name+"/ns", false, list)
		case kindList:
			s.sub = l.leaves(f.sub, f.name)
		case kindInt:
			if size := int(f.typ.Size()); size == 8 || size == 1 && f.is != reflect.Int8 {
				s.width = size
			}
		}
		out[i] = s
	}
	return out
}

func (l *blockLayout) column(name string, text bool, list string) int {
	key := colKey(name, text)
	at, ok := l.places[key]
	if !ok {
		at = len(l.columns)
		l.places[key] = at
		c := columnLayout{name: name, key: key, text: text, parent: list}
		if text {
			c.shared = sharedDicts[name]
		}
		l.columns = append(l.columns, c)
	}
	return at
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

// colBuild gathers a column while a block is encoded.
type colBuild struct {
	*columnLayout
	n     int    // values
	cover []byte // indexes of the types that have values
	nums  []int64
	codes []uint32
	last  uint32                // the code before
	addrs map[netip.Addr]uint32 // codes of addresses of hosts
	*dictBuild
}

// unique is the column whose values are all different. They are not gathered,
// unless they are no ULIDs.
const unique = "event_id"

// code is the code of s. Facts follow each other much as they did in the type
// before, so that the code is often the last one or the next.
func (c *colBuild) code(s string) uint32 {
	if s == "" {
		return 0
	}
	if c.list[c.last] == s {
		return c.last
	}
	if next := c.last + 1; int(next) < len(c.list) && c.list[next] == s {
		c.last = next
		return next
	}
	c.last = c.find(s)
	return c.last
}

// dictBuild is the dictionary of a text column, or of several.
type dictBuild struct {
	list  []string
	hash  []uint32 // of each
	slots []uint32 // entries, by hash; twice as many as entries at least
}

var dictSeed = maphash.MakeSeed()

// find is the entry that is s, which is not empty. It is added when there is none.
func (d *dictBuild) find(s string) uint32 {
	if 2*len(d.list) > len(d.slots) {
		d.grow()
	}
	h := uint32(maphash.String(dictSeed, s)) //nolint:gosec // its lower half
	mask := uint32(len(d.slots) - 1)         //nolint:gosec // a power of two
	at := h & mask
	for d.slots[at] > 0 {
		if e := d.slots[at]; d.hash[e] == h && d.list[e] == s {
			return e
		}
		at = (at + 1) & mask
	}
	e := uint32(len(d.list)) //nolint:gosec // bounded by the elements of a block
	d.list, d.hash, d.slots[at] = append(d.list, s), append(d.hash, h), e
	return e
}

func (d *dictBuild) grow() {
	d.slots = make([]uint32, max(16, 2*len(d.slots)))
	mask := uint32(len(d.slots) - 1) //nolint:gosec // a power of two
	for e := 1; e < len(d.list); e++ {
		at := d.hash[e] & mask
		for d.slots[at] > 0 {
			at = (at + 1) & mask
		}
		d.slots[at] = uint32(e) //nolint:gosec // bounded by the elements of a block
	}
}

func (d *dictBuild) reset() {
	if len(d.list) > 1 {
		clear(d.list)
		clear(d.slots)
		d.list, d.hash = d.list[:1], d.hash[:1]
	}
}

type builder struct {
	*rows
	head  *header
	types []typeRun // of head
	order []int     // rows as stored → their places in rows
	cols  []*colBuild

	// room, of blocks before too
	at      []*colBuild           // by place in layout.columns
	dicts   map[string]*dictBuild // shared
	rowKey  []uint32              // of the rows
	nkeys   int
	prev    []prediction
	nprev   int
	lists   []listSum
	nlists  int
	last    []stretch
	raw     []byte
	data    []byte
	dir     []byte
	nums    []int64
	nanos   []int64
	scratch []int64
	times   []int64
	bases   [][16]byte
	tail    []byte
	codes   []uint32
	moved   []uint32
	texts   []string
	records []event.Value
	facts   []event.Value
	elems   []event.Value
	warmed  int64
	posts   []posting
	sorting []posting
	roll    []byte
	places  map[int64]int
}

// prediction is the predictors of columns that have the same types.
type prediction struct {
	list  string
	cover []byte
	prev  []int32
}

// listSum is where each type's values begin in the column of a list, and the
// elements before each.
type listSum struct {
	name  string
	first []int
	sums  []int32
}

// encodeBlock seals records into a block. The records do not change.
func encodeBlock(seq uint32, recs []event.Record) *encoded {
	x, h := rowsOf(recs)
	return encodeRows(seq, x, h)
}

// encodeRows is encodeBlock for records whose ranges are known.
func encodeRows(seq uint32, x *rows, h *header) *encoded {
	b := builders.get()
	defer b.release()
	b.rows, b.head = x, h
	h.seq, h.rows = seq, uint32(len(x.recs)) //nolint:gosec // bounded by the rows of a block
	h.small = make(map[string][]string, len(pruned))
	b.sortByType()
	for t, run := range b.types {
		b.addType(byte(t), run) // far fewer types than 256
	}
	e := &encoded{head: h, body: b.body(), posts: b.postings(), roll: rollupOf(x.recs).young(&b.roll)}
	h.bytes = uint32(len(e.body)) //nolint:gosec // columns are bounded
	for _, name := range pruned {
		switch c := b.find(name); {
		case c == nil:
			h.small[name] = []string{}
		case len(c.list) <= maxPruned+1:
			h.small[name] = slices.Sorted(slices.Values(c.list[1:]))
		}
	}
	h.share()
	return e
}

// builders are kept, because their room is as large as a block.
var builders = newSpare(1, func() *builder {
	return &builder{at: make([]*colBuild, len(layout.columns)), dicts: map[string]*dictBuild{}, places: map[int64]int{}}
})

// release empties b, so that it holds nothing of its block, for the next one.
func (b *builder) release() {
	for _, c := range b.cols {
		if c.text {
			c.reset()
			clear(c.addrs)
		}
		c.n, c.cover, c.nums, c.codes, c.last = 0, c.cover[:0], c.nums[:0], c.codes[:0], 0
	}
	for _, room := range []*[]event.Value{&b.records, &b.facts, &b.elems} {
		clear((*room)[:cap(*room)])
	}
	clear(b.texts[:cap(b.texts)])
	b.rows, b.head, b.cols, b.nprev, b.nlists = nil, nil, b.cols[:0], 0, 0
	if cap(b.data)+cap(b.raw) <= maxSpare {
		builders.put(b)
	}
}

// maxSpare is how much room for columns, in octets, is kept for the next block;
// many times that of the facts of a relay. Transcripts take more.
const maxSpare = 1 << 20

// spare keeps a few things for their room, for who needs one next. A pool keeps
// some for each processor, and forgets them when memory is collected, twenty
// times a minute under load.
type spare[T any] struct {
	kept chan *T
	make func() *T
}

func newSpare[T any](most int, fresh func() *T) *spare[T] {
	return &spare[T]{kept: make(chan *T, most), make: fresh}
}

func (s *spare[T]) get() *T {
	select {
	case x := <-s.kept:
		return x
	default:
		return s.make()
	}
}

// put gives back what get gave. It is dropped when there are enough.
func (s *spare[T]) put(x *T) {
	select {
	case s.kept <- x:
	default:
	}
}

func (b *builder) sortByType() {
	var next [256]int
	for _, k := range b.kinds {
		next[k]++
	}
	b.types = b.types[:0]
	start := 0
	for _, k := range layout.order {
		n := next[k]
		if next[k] = start; n > 0 {
			b.types = append(b.types, typeRun{name: journalTypes[k].name, start: start, n: n})
			start += n
		}
	}
	b.head.types = packTypes(b.types)
	b.order = resized(b.order, len(b.kinds))
	for i, k := range b.kinds {
		b.order[next[k]] = i
		next[k]++
	}
}

// use is the column at a place, which gets n values of type t.
func (b *builder) use(place int, t byte, n int) *colBuild {
	c := b.at[place]
	if c == nil {
		c = &colBuild{columnLayout: &layout.columns[place]}
		if c.text {
			c.dictBuild = b.dictionary(c.shared)
		}
		b.at[place] = c
	}
	if len(c.cover) == 0 {
		b.cols = append(b.cols, c)
	}
	c.cover = append(c.cover, t)
	c.n += n
	return c
}

// find is the column with a key, or nil when the block has none.
func (b *builder) find(key string) *colBuild {
	place, ok := layout.places[key]
	if !ok || b.at[place] == nil || len(b.at[place].cover) == 0 {
		return nil
	}
	return b.at[place]
}

// dictionary is the shared one with that name, or one of a column's own.
func (b *builder) dictionary(shared string) *dictBuild {
	if d := b.dicts[shared]; d != nil {
		return d
	}
	d := &dictBuild{list: []string{""}, hash: []uint32{0}}
	if shared != "" {
		b.dicts[shared] = d
	}
	return d
}

// addType adds the columns of one type of fact.
func (b *builder) addType(t byte, run typeRun) {
	b.records, b.facts = resized(b.records, run.n), resized(b.facts, run.n)
	for i, row := range b.order[run.start : run.start+run.n] {
		r := &b.recs[row]
		b.records[i], b.facts[i] = r.Value(), event.ValueOf(r.Event)
	}
	p := planNames[run.name]
	b.warmed += warm(b.facts, p.typ.Size())
	b.addLeaves(t, layout.heads, b.records)
	b.addLeaves(t, layout.facts[p.place], b.facts)
}

// warm reads a word of each line of memory that structs of the size lie in. They
// were written long ago, all over the memory: here a processor waits for many at
// once, and in the loops over columns for each by itself. The sum has no meaning.
func warm(structs []event.Value, size uintptr) (sum int64) {
	const line = 64
	for _, v := range structs {
		for at := uintptr(0); at < size; at += line {
			sum += v.Field(at).Word()
		}
	}
	return sum
}

// addLeaves adds the values of structs, unless they say nothing.
func (b *builder) addLeaves(t byte, leaves []sealLeaf, structs []event.Value) {
	for i := range leaves {
		l := &leaves[i]
		switch l.kind {
		case kindString:
			b.addText(t, l, structs)
		case kindAddr:
			b.addAddrs(t, l, structs)
		case kindTime:
			b.addTimes(t, l, structs)
		case kindList:
			b.addList(t, l, structs)
		case kindJSON:
			b.addJSON(t, l, structs)
		default:
			b.addInts(t, l, structs)
		}
	}
}

func (b *builder) addText(t byte, l *sealLeaf, structs []event.Value) {
	first := 0
	for first < len(structs) && structs[first].Field(l.offset).Text() == "" {
		first++
	}
	if first == len(structs) {
		return
	}
	c := b.use(l.col, t, len(structs))
	if c.name == unique {
		return
	}
	codes := c.more(len(structs))
	clear(codes[:first])
	before, code := "", uint32(0)
	for i := first; i < len(structs); i++ {
		if s := structs[i].Field(l.offset).Text(); s != before {
			before, code = s, c.code(s)
		}
		codes[i] = code
	}
}

// more makes room for n codes.
func (c *colBuild) more(n int) []uint32 {
	at := len(c.codes)
	c.codes = slices.Grow(c.codes, n)[:at+n]
	return c.codes[at:]
}

func (b *builder) addAddrs(t byte, l *sealLeaf, structs []event.Value) {
	first := 0
	for first < len(structs) && !structs[first].Field(l.offset).Addr().IsValid() {
		first++
	}
	if first == len(structs) {
		return
	}
	c := b.use(l.col, t, len(structs))
	if c.addrs == nil {
		c.addrs = map[netip.Addr]uint32{}
	}
	codes := c.more(len(structs))
	clear(codes[:first])
	var before netip.Addr
	code := uint32(0)
	for i := first; i < len(structs); i++ {
		if a := structs[i].Field(l.offset).Addr(); a != before {
			before = a
			var ok bool
			if code, ok = c.addrs[a]; !ok {
				code = c.code(l.text(structs[i]))
				c.addrs[a] = code
			}
		}
		codes[i] = code
	}
}

func (b *builder) addJSON(t byte, l *sealLeaf, structs []event.Value) {
	b.texts = resized(b.texts, len(structs))
	some := false
	for i, v := range structs {
		b.texts[i] = l.text(v)
		some = some || b.texts[i] != ""
	}
	if !some {
		return
	}
	c := b.use(l.col, t, len(structs))
	for i, codes := 0, c.more(len(structs)); i < len(codes); i++ {
		codes[i] = c.code(b.texts[i])
	}
}

func (b *builder) addInts(t byte, l *sealLeaf, structs []event.Value) {
	first := 0
	switch l.width {
	case 8:
		for first < len(structs) && structs[first].Field(l.offset).Word() == 0 {
			first++
		}
	case 1:
		for first < len(structs) && structs[first].Field(l.offset).Octet() == 0 {
			first++
		}
	}
	if first == len(structs) {
		return
	}
	nums := resized(b.nums, len(structs))
	b.nums = nums
	clear(nums[:first])
	switch {
	case l.width == 8 && l.seconds:
		for i := first; i < len(structs); i++ {
			nums[i] = structs[i].Field(l.offset).Word() / 1000 // microseconds
		}
	case l.width == 8:
		for i := first; i < len(structs); i++ {
			nums[i] = structs[i].Field(l.offset).Word()
		}
	case l.width == 1:
		for i := first; i < len(structs); i++ {
			nums[i] = int64(structs[i].Field(l.offset).Octet())
		}
	default:
		for i := range structs {
			nums[i], _ = l.num(structs[i])
		}
	}
	b.addNums(t, l.col, nums)
}

func (b *builder) addTimes(t byte, l *sealLeaf, structs []event.Value) {
	b.nums, b.nanos = resized(b.nums, len(structs)), resized(b.nanos, len(structs))
	for i, v := range structs {
		b.nums[i], b.nanos[i] = packTime(v.Field(l.offset).Time())
	}
	b.addNums(t, l.col, b.nums)
	b.addNums(t, l.below, b.nanos)
}

func (b *builder) addList(t byte, l *sealLeaf, structs []event.Value) {
	b.nums, b.elems = resized(b.nums, len(structs)), b.elems[:0]
	for i, v := range structs {
		list := v.Field(l.offset)
		n := list.Len()
		b.nums[i] = int64(n) + 1 // 0 for nil
		for j := range n {
			b.elems = append(b.elems, list.Item(j, l.size))
		}
	}
	b.addNums(t, l.col, b.nums)
	b.addLeaves(t, l.sub, b.elems)
}

func (b *builder) addNums(t byte, place int, nums []int64) {
	if !slices.ContainsFunc(nums, func(n int64) bool { return n != 0 }) {
		return
	}
	c := b.use(place, t, len(nums))
	c.nums = append(c.nums, nums...)
}

// packedSmall are columns that only the view of one message reads, and that
// take much room.
var packedSmall = map[string]bool{"event_id": true, "transcript": true}

// body writes the directory of columns and the columns.
func (b *builder) body() []byte {
	b.rowKeys()
	shared := 0
	for _, d := range b.dicts {
		if len(d.list) > 1 {
			shared++
		}
	}
	dir := append(b.dir[:0], make([]byte, bodyStart)...)
	dir = binary.AppendUvarint(dir, uint64(len(b.cols)+shared)) // a count
	data, raw := b.data[:0], b.raw
	column := func(name string, form byte, cover []byte, n int) {
		at := len(data)
		data = appendPacked(data, raw, packedSmall[name])
		dir = appendString(dir, name)
		dir = append(dir, form)
		dir = binary.AppendUvarint(dir, uint64(len(cover)))
		dir = append(dir, cover...)
		dir = binary.AppendUvarint(dir, uint64(n)) //nolint:gosec // a count
		dir = binary.AppendUvarint(dir, uint64(len(raw)))
		dir = binary.AppendUvarint(dir, uint64(len(data)-at)) //nolint:gosec // a length
	}
	for _, c := range b.cols {
		var form byte
		raw, form = b.column(raw[:0], c)
		column(c.name, form, c.cover, c.n)
	}
	for _, name := range sharedNames {
		if d := b.dicts[name]; d != nil && len(d.list) > 1 {
			raw = b.appendDict(raw[:0], d.list)
			column(name, formDict, nil, 0)
		}
	}
	b.dir, b.data, b.raw = dir, data, raw
	return sign(append(append(make([]byte, 0, len(dir)+len(data)), dir...), data...))
}

// rowKeys tells which rows belong together.
func (b *builder) rowKeys() {
	var queue, session placed
	messages := 0
	if c := b.find("queue_id"); c != nil {
		queue, messages = placed{c.cover, c.codes}, len(c.list)-1
	}
	if c := b.find("session_id"); c != nil {
		session = placed{c.cover, c.codes}
	}
	b.rowKey = resized(b.rowKey, len(b.recs))
	clear(b.rowKey)
	b.nkeys = setKeys(b.rowKey, b.types, messages, queue, session)
}

// predictors of a column. Columns of the same types have the same.
func (b *builder) predictors(c *colBuild) []int32 {
	for i := range b.prev[:b.nprev] {
		if p := &b.prev[i]; p.list == c.parent && bytes.Equal(p.cover, c.cover) {
			return p.prev
		}
	}
	if b.nprev == len(b.prev) {
		b.prev = append(b.prev, prediction{})
	}
	p := &b.prev[b.nprev]
	b.nprev++
	p.list, p.cover = c.parent, append(p.cover[:0], c.cover...)
	var sum listSum
	if p.list != "" {
		sum = b.listSums(p.list)
	}
	b.last = resized(b.last, b.nkeys)
	clear(b.last)
	p.prev = predictorsInto(p.prev[:0], b.last, b.types, c.cover, b.rowKey, sum.first, sum.sums)
	return p.prev
}

// listSums sums the lengths of a list up.
func (b *builder) listSums(name string) listSum {
	for _, l := range b.lists[:b.nlists] {
		if l.name == name {
			return l
		}
	}
	if b.nlists == len(b.lists) {
		b.lists = append(b.lists, listSum{})
	}
	l := &b.lists[b.nlists]
	b.nlists++
	c := b.find(colKey(name, false))
	l.name, l.first, l.sums = name, resized(l.first, len(b.types)), resized(l.sums, len(c.nums)+1)
	clear(l.first)
	at := 0
	for _, t := range c.cover {
		l.first[t] = at
		at += b.types[t].n
	}
	l.sums[0] = 0
	for i, n := range c.nums {
		l.sums[i+1] = l.sums[i] + int32(max(n-1, 0)) //nolint:gosec // bounded by the elements of a block
	}
	return *l
}

// lead is how many values of a column, from the first on, are of rows that lead.
func (b *builder) lead(c *colBuild) (n int) {
	for _, t := range c.cover {
		run := &b.types[t]
		if !ledColumns[run.name][c.key] {
			break
		}
		if c.parent == "" {
			n += run.n
			continue
		}
		l := b.listSums(c.parent)
		n += int(l.sums[l.first[t]+run.n] - l.sums[l.first[t]])
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
	case c.name == unique:
		if out, ok := b.eventIDs(raw, c); ok {
			return out, formEventIDs
		}
		b.addUnique(c)
	case c.name == "ts":
		raw = b.appendTimes(raw, c)
		return raw, formTimes
	case !c.text:
		return b.numbers(raw, c)
	}
	form, codes, dict := formText, c.codes, c.list
	entries := len(dict)
	if like := likes[c.name]; like != "" {
		if base := b.find(like); base != nil {
			if k, d, ok := b.liken(c, base); ok {
				form, codes, dict, entries = form|formLike, k, d, len(d)
			}
		}
	}
	if c.shared != "" {
		form, dict = form|formShared, nil
	}
	raw = binary.AppendUvarint(raw, uint64(entries))
	switch {
	case constant(codes):
		raw = appendConstant(raw, int64(codes[0]))
	case c.name == "queue_id" || c.name == "session_id" || c.name == unique: // they tell which rows belong together
		raw, b.scratch = appendCodes(raw, codes, b.scratch)
	default:
		form |= formPredicted
		lead := b.lead(c)
		if lead > 0 {
			form |= formLed
			raw = binary.AppendUvarint(raw, uint64(lead))
		}
		var prev []int32
		if lead < len(codes) {
			prev = b.predictors(c)
		}
		raw, b.scratch = appendPredictedCodes(raw, codes, lead, prev, b.scratch)
	}
	if dict != nil {
		raw = b.appendDict(raw, dict)
	}
	return raw, form
}

// numbers writes a column of numbers.
func (b *builder) numbers(raw []byte, c *colBuild) ([]byte, byte) {
	nums, form, lead := c.nums, formNums, 0
	if constant(nums) {
		return appendConstant(raw, nums[0]), form
	}
	if len(c.cover) > 1 {
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
	at := make([]int, len(b.types)) // in base, of each type
	n := 0
	for _, t := range base.cover {
		at[t] = n
		n += b.types[t].n
	}
	b.codes, b.moved = resized(b.codes, len(c.codes)), resized(b.moved, len(c.list))
	clear(b.moved) // code in c to code in dict
	dict = []string{"", likeMark}
	k := 0
	var code, of, is uint32 // most are as the one before
	for _, t := range c.cover {
		for row := range b.types[t].n {
			if x, y := c.codes[k], base.codes[at[t]+row]; x != code || y != of {
				code, of = x, y
				switch {
				case x == 0:
					is = 0
				case c.list[x] == base.list[y]:
					is = 1
				default:
					if b.moved[x] == 0 {
						b.moved[x] = uint32(len(dict)) //nolint:gosec // bounded by the rows of a block
						dict = append(dict, c.list[x])
					}
					is = b.moved[x]
				}
			}
			b.codes[k] = is
			k++
		}
	}
	return b.codes, dict, true
}

func isSubset(list, of []byte) bool {
	return !slices.ContainsFunc(list, func(t byte) bool { return !slices.Contains(of, t) })
}

// eventIDs writes ULIDs next to the times of their rows: the identifier's time
// is nearly always that of the row, and identifiers of one process in one
// millisecond differ only in their last bits.
func (b *builder) eventIDs(dst []byte, c *colBuild) ([]byte, bool) {
	ts := b.find("ts#")
	if c.n != len(b.recs) || ts == nil || len(ts.nums) != c.n {
		return nil, false
	}
	clear(b.places) // milliseconds, with their places in bases
	bases := b.bases[:0]
	b.scratch = resized(b.scratch, 2*c.n)
	off, of := b.scratch[:c.n], b.scratch[c.n:]
	last, at := int64(-1), 0 // most are of the millisecond of the one before
	for i, row := range b.order {
		key := &b.keys[row]
		if key[0] == noULID {
			if _, ok := packULID(b.recs[row].ID); !ok {
				return nil, false
			}
		}
		if ms := ulidMS(*key); ms != last {
			var ok bool
			if at, ok = b.places[ms]; !ok {
				at = len(bases)
				b.places[ms], bases = at, append(bases, *key)
			}
			last = ms
		}
		if bytes.Compare(key[6:], bases[at][6:]) < 0 {
			bases[at] = *key
		}
		off[i], of[i] = last-rowMS(ts.nums[i]), int64(at)
	}
	b.bases = bases
	dst = appendNums(dst, off)
	low := of
	for i, row := range b.order {
		key, base := &b.keys[row], &bases[of[i]]
		d := binary.BigEndian.Uint64(key[8:]) - binary.BigEndian.Uint64(base[8:])
		if key[6] != base[6] || key[7] != base[7] || d > 1<<31 {
			return nil, false
		}
		low[i] = int64(d)
	}
	dst = appendNums(dst, low)
	for _, ms := range sortedMS(b.places) {
		dst = append(dst, bases[b.places[ms]][6:]...)
	}
	return dst, true
}

// addUnique gathers the event ids, because eventIDs could not write them.
func (b *builder) addUnique(c *colBuild) {
	for _, t := range c.cover {
		run := &b.types[t]
		for _, row := range b.order[run.start : run.start+run.n] {
			code := uint32(0)
			if id := b.recs[row].ID; id != "" {
				code = uint32(len(c.list)) //nolint:gosec // bounded by the rows of a block
				c.list = append(c.list, id)
			}
			c.codes = append(c.codes, code)
		}
	}
}

// appendDict writes the entries of a dictionary after entry 0, which is "".
func (b *builder) appendDict(dst []byte, dict []string) []byte {
	dict = dict[1:]
	dst = binary.AppendUvarint(dst, uint64(len(dict)))
	if len(dict) == 0 {
		return dst
	}
	for _, form := range [...]struct {
		id   byte
		pack func(string) ([16]byte, bool)
	}{{dictULID, packULID}, {dictUUID, packUUID}} {
		if out, ok := b.appendIDs(append(dst, form.id), dict, form.pack); ok {
			return out
		}
	}
	dst = append(dst, dictPlain)
	b.nums = resized(b.nums, len(dict))
	for i, s := range dict {
		b.nums[i] = int64(len(s))
	}
	dst = appendNums(dst, b.nums)
	for _, s := range dict {
		dst = append(dst, s...)
	}
	return dst
}

// appendIDs writes identifiers whose first six octets are a time.
func (b *builder) appendIDs(dst []byte, ids []string, pack func(string) ([16]byte, bool)) ([]byte, bool) {
	if _, ok := pack(ids[0]); !ok {
		return nil, false
	}
	b.nums, b.tail = resized(b.nums, len(ids)), b.tail[:0]
	for i, s := range ids {
		id, ok := pack(s)
		if !ok {
			return nil, false
		}
		b.nums[i] = ulidMS(id)
		b.tail = append(b.tail, id[6:]...)
	}
	return append(appendNums(dst, b.nums), b.tail...), true
}

// appendTimes writes the times of rows: those of each type of fact as the
// distance from the fact of that earlier type about the same message that they
// follow closest, or from the row before. Those of lead types are of the latter kind.
func (b *builder) appendTimes(dst []byte, c *colBuild) []byte {
	types, ts := b.types, c.nums
	b.scratch = resized(b.scratch, 2*len(ts))
	b.times = resized(b.times, len(c.cover)*b.nkeys) // by key, of each type so far
	clear(b.times)
	dst = binary.AppendVarint(dst, ts[0])
	at := 0
	for k, t := range c.cover {
		run := &types[t]
		mine := ts[at : at+run.n]
		keys := b.rowKey[run.start : run.start+run.n]
		best, other := b.scratch[:run.n], b.scratch[run.n:2*run.n]
		ref, least := byte(neighbours), distances(best, mine, keys, nil, ts[0])
		for j := range k {
			if leads(run.name) {
				break
			}
			if cost := distances(other, mine, keys, b.times[j*b.nkeys:][:b.nkeys], ts[0]); cost < least {
				ref, least = c.cover[j], cost
				best, other = other, best
			}
		}
		dst = append(dst, ref)
		dst = appendNums(dst, best)
		byKey := b.times[k*b.nkeys:][:b.nkeys]
		for i, key := range keys {
			if key > 0 {
				byKey[key] = mine[i]
			}
		}
		at += run.n
	}
	return dst
}

// postings lists the postings of the block, each once.
func (b *builder) postings() []posting {
	posts := b.posts[:0]
	for i, p := range postings {
		c := b.find(p.column)
		if c == nil {
			continue
		}
		again := slices.ContainsFunc(postings[:i], func(q indexed) bool { // of a dictionary that columns share
			o := b.find(q.column)
			return q.post == p.post && o != nil && o.dictBuild == c.dictBuild
		})
		if !again {
			posts = appendPostings(posts, p.post, p.key, c.list)
		}
	}
	b.posts = b.appendUndelivered(posts)
	b.sorting = resized(b.sorting, len(b.posts))
	posts = slices.Compact(sorted(b.posts, b.sorting))
	return append(make([]posting, 0, len(posts)), posts...) // not nil
}
