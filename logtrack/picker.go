package logtrack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
)

// A picker reads a few rows of a block. A page of a list has its messages in
// as many blocks, of which it needs a dozen rows each: decoding whole columns
// for those, and keeping them, would cost more than everything else. What a
// picker decodes goes to buffers that the next one uses again, and only the
// values of the wanted rows become a view, with those rows alone.
//
// Most of the rows that are picked are of facts that lead, and what is needed
// of them is a part of its own in each column: all else is then passed over.
type picker struct {
	head *header
	body []byte
	dir  directory
	led  bool // nothing but rows that lead is read

	raw     []byte   // decompressed columns, one after the other
	raws    [][]byte // those that are, by their place in dir
	nums    []int64
	lens    []int64
	codes   []uint32
	queue   codesOfRows // of queue_id
	session codesOfRows
	keys    []uint32
	nkey    int
	keyed   bool
	prev    []foreseen
	last    []stretch
	lists   map[string]*listOfRows
	times   timesScratch
	keep    []bool // rows that pass all filters so far
	hit     []bool // rows that pass one
	ok      []bool // entries of a dictionary that pass one
}

// codesOfRows are the codes of a column, and what follows them.
type codesOfRows struct {
	codes   []uint32
	entries int
	dict    []byte
	d       *dirEntry // nil: the block has no such column
}

// foreseen is the predictors of columns with one cover.
type foreseen struct {
	list  string
	cover []byte
	prev  []int32
}

// listOfRows is the column of a list's counts.
type listOfRows struct {
	d     *dirEntry
	nums  []int64
	start []int
	sums  []int32
}

// pickedRow is a row by its type and its place among the rows of that type.
type pickedRow struct{ t, at int }

// errNotPicked says that a block is to be read in another way.
var errNotPicked = errors.New("block of an older form")

var pickers = sync.Pool{New: func() any { return &picker{lists: map[string]*listOfRows{}} }}

// maxPicker is how much room a picker keeps for the next block.
const maxPicker = 1 << 20

// newPicker begins to read a block. The picker must be released before body
// goes away.
func newPicker(head *header, body []byte) (*picker, error) {
	k := pickers.Get().(*picker)
	k.head, k.body = head, body
	if k.raw == nil {
		k.raw = make([]byte, 0, maxPicker/2)
	}
	if err := k.dir.read(body, len(head.types)); err != nil {
		k.release()
		return nil, err
	}
	if body[0] < 2 {
		k.release()
		return nil, errNotPicked
	}
	k.raws = resized(k.raws, len(k.dir.list))
	return k, nil
}

func (k *picker) release() {
	k.head, k.body, k.keyed, k.led = nil, nil, false, false
	k.queue.d, k.session.d = nil, nil
	k.raw, k.prev = k.raw[:0], k.prev[:0]
	clear(k.raws)
	clear(k.lists)
	if cap(k.raw) <= maxPicker {
		pickers.Put(k)
	}
}

// unpack decompresses a column.
func (k *picker) unpack(d *dirEntry) ([]byte, error) {
	if k.raws[d.place] != nil {
		return k.raws[d.place], nil
	}
	src := k.body[d.off : d.off+d.packed]
	if len(src) > 0 && src[0] == packedRaw {
		return src[1:], nil
	}
	at := len(k.raw)
	raw, err := appendUnpacked(k.raw, src, d.rawLen)
	if err != nil {
		return nil, err
	}
	k.raw, k.raws[d.place] = raw, raw[at:len(raw):len(raw)]
	return k.raws[d.place], nil
}

// plainCodes reads the codes of one of the columns that tell which rows belong together.
func (k *picker) plainCodes(c *codesOfRows, name string) error {
	if c.d != nil {
		return nil
	}
	d := k.dir.get(name)
	if d == nil {
		*c = codesOfRows{codes: c.codes[:0]}
		return nil
	}
	if d.form != formText || d.n > k.head.rows {
		return errNotPicked
	}
	n := 0
	for _, t := range d.cover {
		n += k.head.types[t].n
	}
	if n != d.n {
		return damaged("column length")
	}
	raw, err := k.unpack(d)
	if err != nil {
		return err
	}
	if c.entries, raw, err = readUvarint(raw, uint64(d.n)+2); err != nil { //nolint:gosec // a count
		return err
	}
	if k.nums, raw, err = readNumsInto(k.nums, raw, d.n); err != nil {
		return err
	}
	c.codes = resized(c.codes, d.n)
	for i, v := range k.nums {
		if v < 0 || v >= int64(c.entries) {
			return damaged("code")
		}
		c.codes[i] = uint32(v) //nolint:gosec // bounded by entries
	}
	c.dict, c.d = raw, d
	return nil
}

// rowKeys tells which rows belong together.
func (k *picker) rowKeys() error {
	if k.keyed {
		return nil
	}
	if err := errors.Join(k.plainCodes(&k.queue, "queue_id"), k.plainCodes(&k.session, "session_id")); err != nil {
		return err
	}
	messages := 0
	var queue, session placed
	if k.queue.d != nil {
		queue, messages = placed{k.queue.d.cover, k.queue.codes}, max(k.queue.entries-1, 0)
	}
	if k.session.d != nil {
		session = placed{k.session.d.cover, k.session.codes}
	}
	k.keys = resized(k.keys, k.head.rows)
	clear(k.keys)
	k.nkey = setKeys(k.keys, k.head.types, messages, queue, session)
	k.keyed = true
	return nil
}

// predictors of a column's values.
func (k *picker) predictors(d *dirEntry) ([]int32, error) {
	if err := k.rowKeys(); err != nil {
		return nil, err
	}
	list, child := isChild(d.name)
	if !child {
		list = ""
	}
	for i := range k.prev {
		if k.prev[i].list == list && bytes.Equal(k.prev[i].cover, d.cover) {
			return k.prev[i].prev, nil
		}
	}
	var first []int
	var sums []int32
	if child {
		l, err := k.list(list)
		if err != nil {
			return nil, err
		}
		first, sums = l.start, l.sums
	}
	if len(k.prev) < cap(k.prev) { // with its room
		k.prev = k.prev[:len(k.prev)+1]
	} else {
		k.prev = append(k.prev, foreseen{})
	}
	f := &k.prev[len(k.prev)-1]
	f.list, f.cover = list, d.cover
	k.last = resized(k.last, k.nkey)
	clear(k.last)
	f.prev = predictorsInto(f.prev[:0], k.last, k.head.types, d.cover, k.keys, first, sums)
	return f.prev, nil
}

// list reads the counts of a list; only those of rows that lead when nothing
// else is read.
func (k *picker) list(name string) (*listOfRows, error) {
	if l := k.lists[name]; l != nil {
		return l, nil
	}
	d := k.dir.get(colKey(name, false))
	if d == nil {
		return nil, damaged("list without its counts")
	}
	nums, err := k.numbers(d)
	if err != nil {
		return nil, err
	}
	l := &listOfRows{d: d, nums: slices.Clone(nums), sums: make([]int32, len(nums)+1)}
	total := int64(0)
	for i, n := range nums {
		if n < 0 || n > maxListValues {
			return nil, damaged("list length")
		}
		if total += max(n-1, 0); total > maxListValues {
			return nil, damaged("list length")
		}
		l.sums[i+1] = int32(total)
	}
	if l.start, err = k.starts(d); err != nil {
		return nil, err
	}
	k.lists[name] = l
	return l, nil
}

// starts is where the values of each type begin in a column, or -1. When only
// rows that lead are read, it is known of their types.
func (k *picker) starts(d *dirEntry) ([]int, error) {
	start := make([]int, len(k.head.types))
	for i := range start {
		start[i] = -1
	}
	var parent *listOfRows
	if list, ok := isChild(d.name); ok {
		var err error
		if parent, err = k.list(list); err != nil {
			return nil, err
		}
	}
	at := 0
	for _, t := range d.cover {
		start[t] = at
		if parent == nil {
			at += k.head.types[t].n
			continue
		}
		p := parent.start[t]
		end := p + k.head.types[t].n
		switch {
		case k.led && (p < 0 || end >= len(parent.sums)):
			return start, nil
		case p < 0:
			return nil, damaged("list without its counts")
		}
		at += int(parent.sums[end] - parent.sums[p])
	}
	if at != d.n {
		return nil, damaged("column length")
	}
	return start, nil
}

// numbers reads a column of numbers into the picker's room for them, or those
// of rows that lead when nothing else is read.
func (k *picker) numbers(d *dirEntry) ([]int64, error) {
	raw, err := k.unpack(d)
	if err != nil {
		return nil, err
	}
	if d.form == formTimes {
		return k.timesOf(d, raw)
	}
	if d.form&^formPredicted&^formLed != formNums {
		return nil, errNotPicked
	}
	lead, raw, err := d.lead(raw)
	if err != nil {
		return nil, err
	}
	switch {
	case k.led && lead > 0:
		k.nums, _, err = readNumsInto(k.nums, raw, lead)
		return k.nums, err
	case d.form&formPredicted == 0:
		k.nums, _, err = readParts(k.nums, raw, d.n, lead)
		return k.nums, err
	case k.led:
		return nil, errBeyondLead
	}
	prev, err := k.predictors(d)
	if err != nil {
		return nil, err
	}
	if len(prev) != d.n {
		return nil, damaged("column length")
	}
	if k.nums, _, err = readParts(k.nums, raw, d.n, lead); err == nil {
		unpredictNums(k.nums, lead, prev)
	}
	return k.nums, err
}

// timesOf reads the times of rows.
func (k *picker) timesOf(d *dirEntry, raw []byte) (_ []int64, err error) {
	if !k.led {
		if err = k.rowKeys(); err == nil {
			k.nums, err = k.times.read(k.nums, raw, k.head.types, d.cover, d.n, k.keys, k.nkey)
		}
		return k.nums, err
	}
	types, rows := 0, 0
	for types < len(d.cover) && leads(k.head.types[d.cover[types]].name) {
		rows += k.head.types[d.cover[types]].n
		types++
	}
	k.nums, err = k.times.read(k.nums, raw, k.head.types, d.cover[:types], rows, nil, 0)
	return k.nums, err
}

// texts reads the values of a text column at places.
func (k *picker) texts(d *dirEntry, places []int, out []string) ([]string, error) {
	dict, err := k.codesAndDict(d)
	if err != nil {
		return nil, err
	}
	for _, at := range places {
		if at >= len(k.codes) {
			return nil, k.noRow()
		}
		out = append(out, "")
		if code := k.codes[at]; code > 0 {
			if out[len(out)-1], err = k.entry(dict, int(code)); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// codesAndDict reads the codes of a text column into the picker's room for
// them, and finds its dictionary.
func (k *picker) codesAndDict(d *dirEntry) (dict []byte, err error) {
	if d.form&formKind != formText {
		return nil, errNotPicked
	}
	raw, err := k.unpack(d)
	if err != nil {
		return nil, err
	}
	limit := uint64(d.n) + 2 //nolint:gosec // a count; there are "" and likeMark too
	if d.form&formShared != 0 {
		limit = maxListValues
	}
	entries, raw, err := readUvarint(raw, limit)
	if err != nil {
		return nil, err
	}
	if dict, err = k.codesAt(d, raw, entries); err != nil {
		return nil, err
	}
	if d.form&formShared != 0 {
		return k.shared(d)
	}
	return dict, nil
}

// shared is the dictionary that a column shares with others.
func (k *picker) shared(d *dirEntry) ([]byte, error) {
	shared := k.dir.get(sharedDicts[d.name])
	if shared == nil {
		return nil, damaged("shared dictionary")
	}
	return k.unpack(shared)
}

// noRow is the error of a row that is not there.
func (k *picker) noRow() error {
	if k.led {
		return errBeyondLead
	}
	return damaged("row")
}

// codesAt reads the codes of a text column, or those of rows that lead when
// nothing else is read, and gives what follows them.
func (k *picker) codesAt(d *dirEntry, raw []byte, entries int) (rest []byte, err error) {
	lead, raw, err := d.lead(raw)
	if err != nil {
		return nil, err
	}
	n := d.n
	var prev []int32
	switch {
	case d.form&formPredicted == 0:
	case !k.led:
		if prev, err = k.predictors(d); err != nil {
			return nil, err
		}
		if len(prev) != d.n {
			return nil, damaged("column length")
		}
	case lead == 0:
		return nil, errBeyondLead
	}
	if k.led && lead > 0 {
		n = lead
		if k.nums, raw, err = readNumsInto(k.nums, raw, lead); err != nil {
			return nil, err
		}
		raw, err = skipNums(raw, d.n-lead)
	} else {
		k.nums, raw, err = readParts(k.nums, raw, d.n, lead)
	}
	if err != nil {
		return nil, err
	}
	k.codes = resized(k.codes, n)
	if d.form&formPredicted != 0 {
		return raw, predictedCodes(k.codes, k.nums, lead, prev, entries)
	}
	for i, v := range k.nums {
		if v < 0 || v >= int64(entries) {
			return nil, damaged("code")
		}
		k.codes[i] = uint32(v) //nolint:gosec // bounded by entries
	}
	return raw, nil
}

// entry is one of a dictionary.
func (k *picker) entry(src []byte, code int) (string, error) {
	n, src, err := readUvarint(src, maxListValues)
	if err != nil {
		return "", err
	}
	if code > n || len(src) == 0 {
		return "", damaged("dictionary")
	}
	form := src[0]
	if k.lens, src, err = readNumsInto(k.lens, src[1:], n); err != nil {
		return "", err
	}
	if form == dictPlain {
		at := int64(0)
		for _, l := range k.lens[:code-1] {
			if l < 0 {
				return "", damaged("dictionary")
			}
			at += l
		}
		l := k.lens[code-1]
		if l < 0 || at > int64(len(src)) || l > int64(len(src))-at {
			return "", damaged("dictionary")
		}
		return string(src[at : at+l]), nil
	}
	if form > dictUUID || len(src) < 10*n {
		return "", damaged("dictionary")
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(k.lens[code-1])<<16) //nolint:gosec // modular
	copy(b[6:], src[10*(code-1):])
	if form == dictUUID {
		return string(appendUUID(nil, b)), nil
	}
	return string(appendULID(nil, b)), nil
}

// messages finds the codes of some queue IDs in the block; 0 for those that it
// does not have.
func (k *picker) messages(ids []string) ([]uint32, error) {
	if err := k.plainCodes(&k.queue, "queue_id"); err != nil {
		return nil, err
	}
	codes := make([]uint32, len(ids))
	if k.queue.d == nil {
		return codes, nil
	}
	n, src, err := readUvarint(k.queue.dict, maxListValues)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return codes, nil
	}
	if len(src) > 0 && src[0] == dictULID {
		if src, err = skipNums(src[1:], n); err != nil || len(src) < 10*n {
			return nil, damaged("dictionary")
		}
		for i, id := range ids {
			b, ok := packULID(id)
			if !ok {
				continue
			}
			for c := range n {
				if [10]byte(src[10*c:]) == [10]byte(b[6:]) { // it is all but certain now
					if s, err := k.entry(k.queue.dict, c+1); err != nil {
						return nil, err
					} else if s == id {
						codes[i] = uint32(c + 1)
						break
					}
				}
			}
		}
		return codes, nil
	}
	dict, _, err := readDict(k.queue.dict)
	if err != nil {
		return nil, err
	}
	for i, id := range ids {
		codes[i] = uint32(max(slices.Index(dict, id), 0)) //nolint:gosec // bounded by the rows of a block
	}
	return codes, nil
}

// pick makes a view of some rows, which are in order, with the columns that
// the facts of each type need by sets.
func (k *picker) pick(rows []pickedRow, set func(t int) readSet) (*view, error) {
	was := k.led
	k.led = k.body[0] > 2 && !slices.ContainsFunc(rows, func(r pickedRow) bool { return !leads(k.head.types[r.t].name) })
	if was && !k.led {
		clear(k.lists)
	}
	v, err := k.view(rows, set)
	if errors.Is(err, errBeyondLead) {
		k.led = false
		clear(k.lists)
		v, err = k.view(rows, set)
	}
	return v, err
}

func (k *picker) view(rows []pickedRow, set func(t int) readSet) (*view, error) {
	v := &view{head: &header{seq: k.head.seq, rows: len(rows)}, cols: map[string]*colView{}, dir: &directory{at: make([]int16, len(columnIDs)+1)}}
	var types []int // of the block, for each type of the view
	for i, r := range rows {
		if i == 0 || rows[i-1].t != r.t {
			v.head.types = append(v.head.types, typeRun{name: k.head.types[r.t].name, start: i})
			types = append(types, r.t)
		}
		v.head.types[len(types)-1].n++
	}
	for i, t := range types {
		p := planNames[k.head.types[t].name]
		if p == nil {
			return nil, errUnknownFact
		}
		for _, key := range p.keys[set(t)] {
			if err := k.column(v, key, rows, types[i:], i, set); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

// column adds a column to v for those of its types, from the first-th on, that need it.
func (k *picker) column(v *view, key string, rows []pickedRow, types []int, first int, set func(t int) readSet) error {
	d := k.dir.get(key)
	if d == nil || v.cols[key] != nil {
		return nil
	}
	list, child := isChild(d.name)
	c := &colView{start: make([]int, len(v.head.types))}
	for i := range c.start {
		c.start[i] = -1
	}
	var places []int
	var start []int
	for i, t := range types {
		if !slices.Contains(d.cover, byte(t)) || !slices.Contains(planNames[k.head.types[t].name].keys[set(t)], key) { //nolint:gosec // far fewer types
			continue
		}
		if start == nil {
			var err error
			if start, err = k.starts(d); err != nil {
				return err
			}
		}
		c.start[first+i] = len(places)
		run := &v.head.types[first+i]
		for _, r := range rows[run.start : run.start+run.n] {
			if !child {
				places = append(places, start[t]+r.at)
				continue
			}
			l, err := k.list(list)
			if err != nil {
				return err
			}
			p := l.start[t]
			if p < 0 || p+r.at+1 >= len(l.sums) {
				return k.noRow()
			}
			lo, hi := l.sums[p+r.at]-l.sums[p], l.sums[p+r.at+1]-l.sums[p]
			for e := lo; e < hi; e++ {
				places = append(places, start[t]+int(e))
			}
		}
	}
	if start == nil {
		return nil
	}
	if err := k.fill(v, d, c, places); err != nil {
		return err
	}
	if err := c.sum(d, v); err != nil {
		return err
	}
	v.cols[key] = c
	return nil
}

// fill reads the values at places.
func (k *picker) fill(v *view, d *dirEntry, c *colView, places []int) error {
	if kind := d.form & formKind; kind == formNums || kind == formTimes {
		nums, err := k.numbers(d)
		if err != nil {
			return err
		}
		c.nums = make([]int64, len(places))
		for i, at := range places {
			if at >= len(nums) {
				return k.noRow()
			}
			c.nums[i] = nums[at]
		}
		return nil
	}
	dict, err := k.texts(d, places, make([]string, 1, len(places)+1))
	if err != nil {
		return err
	}
	if d.form&formLike != 0 {
		if err := k.unliken(d, places, dict[1:]); err != nil {
			return err
		}
	}
	c.dict, c.codes = dict, make([]uint32, len(places))
	for i := range c.codes {
		c.codes[i] = uint32(i + 1)
	}
	return nil
}

// unliken puts the values of the other column where likeMark stands.
func (k *picker) unliken(d *dirEntry, places []int, texts []string) error {
	if !slices.Contains(texts, likeMark) {
		return nil
	}
	base := k.dir.get(likes[d.name])
	if base == nil {
		return damaged("like another column")
	}
	mine, err := k.starts(d)
	if err != nil {
		return err
	}
	theirs, err := k.starts(base)
	if err != nil {
		return err
	}
	var from, to []int
	for i, at := range places {
		if texts[i] != likeMark {
			continue
		}
		for _, t := range d.cover {
			if at < mine[t]+k.head.types[t].n {
				if theirs[t] < 0 {
					return damaged("like another column")
				}
				from, to = append(from, theirs[t]+at-mine[t]), append(to, i)
				break
			}
		}
	}
	found, err := k.texts(base, from, nil)
	if err != nil {
		return err
	}
	for i, at := range to {
		texts[at] = found[i]
	}
	return nil
}

// resized is s with n elements, whose values do not matter.
func resized[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}
