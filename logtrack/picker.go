package logtrack

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"sync"

	"waybill/relay/event"
	"waybill/relay/reuse"
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
	head  *header
	types []typeRun // of head
	body  []byte
	dir   directory
	led   bool // nothing but rows that lead is read

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
	lists   []*listOfRows // the first listed are of this block
	listed  int
	start   []int // of starts
	times   timesScratch
	ts      []int64 // times of rows, once timed
	timed   bool
	keep    []bool  // rows that pass all filters so far
	hit     []bool  // rows that pass one
	ok      []bool  // entries of a dictionary that pass one
	of      []int32 // the messages that codes stand for, and one

	// of the rows that are picked
	facts  map[*plan][]reflect.Value // room for them
	places []int
	picked []uint32
	vals   []int64
	nanos  []int64
	text   []byte   // the texts of all of them
	spans  []extent // of one column
	later  []laterText
	ends   []int64 // of packedDict
}

// extent is where a text begins and ends.
type extent struct{ lo, hi int }

// laterText is a text of a picked row, which it gets when all are known.
type laterText struct {
	extent
	head func(r *event.Record, s string) // of a field of the record itself
	row  *event.Record
	leaf *leaf
	of   reflect.Value // the struct that has the leaf
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
	list  int
	cover []byte
	prev  []int32
}

// listOfRows is the column of a list's counts.
type listOfRows struct {
	id    int // of the column
	nums  []int64
	start []int
	sums  []int32
}

// pickedRow is a row by its type and its place among the rows of that type.
type pickedRow struct{ t, at int }

// errNotPicked says that a block is to be read in another way.
var errNotPicked = errors.New("block of an older form")

var pickers = sync.Pool{New: func() any {
	return &picker{
		raw: make([]byte, 0, maxPicker/2), dir: directory{names: make([]*columnName, len(columnIDs))}, facts: map[*plan][]reflect.Value{},
	}
}}

// maxPicker is how much room a picker keeps for the next block.
const maxPicker = 1 << 20

// newPicker begins to read a block. The picker must be released before body
// goes away.
func newPicker(head *header, body []byte) (*picker, error) {
	k := pickers.Get().(*picker)
	k.head, k.types, k.body = head, head.types.appendTo(k.types[:0]), body
	err := head.sound(body)
	if err == nil {
		err = k.dir.read(body, len(k.types))
	}
	if err != nil {
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
	reuse.Spoil(k.raw)
	reuse.Spoil(k.text)
	k.raw, k.prev = k.raw[:0], k.prev[:0]
	clear(k.raws)
	k.forget()
	if cap(k.raw) <= maxPicker {
		pickers.Put(k)
	}
}

// forget forgets what depends on which rows are read.
func (k *picker) forget() { k.listed, k.timed = 0, false }

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
	if d.form != formText || d.n > int(k.head.rows) {
		return errNotPicked
	}
	n := 0
	for _, t := range d.cover {
		n += k.types[t].n
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
	if c.codes, raw, err = readCodesInto(c.codes, raw, d.n, c.entries); err != nil {
		return err
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
	k.keys = resized(k.keys, int(k.head.rows))
	clear(k.keys)
	k.nkey = setKeys(k.keys, k.types, messages, queue, session)
	k.keyed = true
	return nil
}

// predictors of a column's values.
func (k *picker) predictors(d *dirEntry) ([]int32, error) {
	if err := k.rowKeys(); err != nil {
		return nil, err
	}
	list := d.column.list
	for i := range k.prev {
		if k.prev[i].list == list && bytes.Equal(k.prev[i].cover, d.cover) {
			return k.prev[i].prev, nil
		}
	}
	var first []int
	var sums []int32
	if list > 0 {
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
	f.prev = predictorsInto(f.prev[:0], k.last, k.types, d.cover, k.keys, first, sums)
	return f.prev, nil
}

// list reads the counts of a list; only those of rows that lead when nothing
// else is read.
func (k *picker) list(id int) (*listOfRows, error) {
	for _, l := range k.lists[:k.listed] {
		if l.id == id {
			return l, nil
		}
	}
	d := k.dir.byID(id)
	if d == nil {
		return nil, damaged("list without its counts")
	}
	nums, err := k.numbers(d)
	if err != nil {
		return nil, err
	}
	if k.listed == len(k.lists) {
		k.lists = append(k.lists, &listOfRows{})
	}
	l := k.lists[k.listed]
	l.id, l.nums, l.sums = id, append(l.nums[:0], nums...), resized(l.sums, len(nums)+1)
	total, limit := int64(0), maxElements(len(k.body))
	l.sums[0] = 0
	for i, n := range nums {
		if n < 0 || n > maxListValues {
			return nil, damaged("list length")
		}
		if total += max(n-1, 0); total > limit {
			return nil, damaged("list length")
		}
		l.sums[i+1] = int32(total) //nolint:gosec // bounded by maxElements
	}
	start, err := k.starts(d)
	if err != nil {
		return nil, err
	}
	l.start = append(l.start[:0], start...)
	k.listed++
	return l, nil
}

// starts is where the values of each type begin in a column, or -1, until it
// is called again. When only rows that lead are read, it is known of their types.
func (k *picker) starts(d *dirEntry) ([]int, error) {
	var parent *listOfRows
	if d.column.list > 0 {
		var err error
		if parent, err = k.list(d.column.list); err != nil {
			return nil, err
		}
	}
	k.start = resized(k.start, len(k.types))
	start := k.start
	for i := range start {
		start[i] = -1
	}
	at := 0
	for _, t := range d.cover {
		start[t] = at
		if parent == nil {
			at += k.types[t].n
			continue
		}
		p := parent.start[t]
		end := p + k.types[t].n
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
	if k.timed {
		return k.ts, nil
	}
	cover, rows := d.cover, d.n
	var keys []uint32
	nkey := 0
	if k.led {
		cover, rows = cover[:0], 0
		for _, t := range d.cover {
			if !leads(k.types[t].name) {
				break
			}
			cover, rows = d.cover[:len(cover)+1], rows+k.types[t].n
		}
	} else {
		if err = k.rowKeys(); err != nil {
			return nil, err
		}
		keys, nkey = k.keys, k.nkey
	}
	k.ts, err = k.times.read(k.ts, raw, k.types, cover, rows, keys, nkey)
	k.timed = err == nil
	return k.ts, err
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
	entries, raw, err := d.entries(raw)
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
	shared := k.dir.byID(d.column.shared)
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
	var room [36]byte
	dict, err := openDict(src)
	if err != nil {
		return "", err
	}
	b, err := dict.append(room[:0], code)
	return string(b), err
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

// resized is s with n elements, whose values do not matter.
func resized[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}
