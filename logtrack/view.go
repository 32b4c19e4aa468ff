package logtrack

import (
	"encoding/binary"
	"errors"
	"reflect"
	"slices"
	"sync"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// view is a block that is being read: its directory, and the columns that were
// asked for. It is shared by queries.
type view struct {
	head  *header
	types []typeRun                                // of head
	load  func(read func(body []byte) error) error // calls read with the stored body

	mu   sync.Mutex
	v1   bool // the body is of version 1
	dir  *directory
	keys []uint32 // of the rows, once they were needed
	nkey int
	prev map[string][]int32 // predictors, while columns are decoded
	cols map[string]*colView
	dict map[string][]string // of columns whose codes were not needed yet
	ids  map[string]struct{} // event ids, once they were asked for
	size int64
	told int64            // what of size grew was told
	grew func(size int64) // is told how much more the view takes; nil for one that is not kept
}

// unlock is v.mu.Unlock, and tells what was decoded meanwhile.
func (v *view) unlock() {
	more := v.size - v.told
	v.told = v.size
	v.mu.Unlock()
	if more > 0 && v.grew != nil {
		v.grew(more)
	}
}

// hasID reports whether the block has a fact with that event id.
func (v *view) hasID(id string) (bool, error) {
	if err := v.need("event_id"); err != nil {
		return false, err
	}
	v.mu.Lock()
	defer v.unlock()
	if v.ids == nil {
		v.ids = map[string]struct{}{}
		if c := v.cols["event_id"]; c != nil {
			for _, s := range c.dict {
				v.ids[s] = struct{}{}
			}
			v.size += int64(len(c.dict)) * 40 // about what a map takes for an entry
		}
	}
	_, ok := v.ids[id]
	return ok, nil
}

// colView is a decoded column with the place of each type's rows in it.
type colView struct {
	column
	start []int   // by type: where its values begin, or -1
	sums  []int32 // of a list: elements before each value
}

func colKey(name string, text bool) string {
	if text {
		return name
	}
	return name + "#"
}

func newView(head *header, load func(func([]byte) error) error) *view {
	return &view{head: head, types: head.types.unpack(), load: load, cols: map[string]*colView{}}
}

// need decodes the columns with the given keys that are not decoded yet.
// Columns that the block does not have are passed over.
func (v *view) need(keys ...string) error {
	v.mu.Lock()
	defer v.unlock()
	missing := v.dir == nil
	for _, k := range keys {
		if _, ok := v.cols[k]; !ok && (v.dir == nil || v.dir.get(k) != nil) {
			missing = true
			break
		}
	}
	if !missing {
		return nil
	}
	return v.load(func(body []byte) error {
		if err := v.open(body); err != nil {
			return err
		}
		v.prev = map[string][]int32{}
		defer func() { v.prev = nil }()
		for _, k := range keys {
			if err := v.decode(body, k); err != nil {
				return err
			}
		}
		return nil
	})
}

// open reads the directory, unless that is done. v.mu is held.
func (v *view) open(body []byte) error {
	if v.dir != nil {
		return nil
	}
	dir, err := readDir(body, len(v.types))
	if err == nil {
		v.dir, v.v1 = dir, body[0] == 1
	}
	return err
}

// values is the dictionary of a text column, or nil when the block has none;
// its codes, of which a search for a rare value needs none in most blocks, are
// passed over.
func (v *view) values(name string) ([]string, error) {
	v.mu.Lock()
	defer v.unlock()
	at := name
	if shared := sharedDicts[name]; shared != "" && v.dir != nil && !v.v1 && v.dir.get(name) != nil {
		at = shared
	}
	if c := v.cols[at]; c != nil {
		return c.dict, nil
	}
	if list, ok := v.dict[at]; ok {
		return list, nil
	}
	if v.dir != nil && v.dir.get(name) == nil {
		return nil, nil
	}
	var list []string
	err := v.load(func(body []byte) (err error) {
		if err := v.open(body); err != nil {
			return err
		}
		d := v.dir.get(name)
		switch {
		case d == nil:
			return nil
		case v.v1 || d.form&^formPredicted&^formShared&^formLed != formText:
			at = name
			if err = v.decode(body, name); err == nil {
				list = v.cols[name].dict
			}
			return err
		case d.form&formShared != 0:
			if at = sharedDicts[name]; v.cols[at] == nil {
				err = v.decode(body, at)
			}
			if c := v.cols[at]; err == nil && c != nil {
				list = c.dict
			}
			return err
		}
		at = name
		list, err = v.dictOf(body, d)
		return err
	})
	if err == nil && v.cols[at] == nil && list != nil {
		if v.dict == nil {
			v.dict = map[string][]string{}
		}
		v.dict[at] = list
		v.size += (&column{dict: list}).size()
	}
	return list, err
}

// dictOf reads the dictionary of a text column that has its own.
func (v *view) dictOf(body []byte, d *dirEntry) ([]string, error) {
	scratch := rawPool.Get().(*[]byte)
	defer putRaw(scratch)
	raw, err := unpack(body[d.off:d.off+d.packed], d.rawLen, scratch)
	if err != nil {
		return nil, err
	}
	entries, raw, err := readUvarint(raw, uint64(d.n)+2) //nolint:gosec // a count
	if err != nil {
		return nil, err
	}
	lead, raw, err := d.lead(raw)
	if err != nil {
		return nil, err
	}
	if raw, err = skipParts(raw, d.n, lead); err != nil {
		return nil, err
	}
	list, _, err := readDict(raw)
	if err == nil && len(list) != entries {
		err = damaged("dictionary")
	}
	return list, err
}

// decode decodes one column and those that it depends on. v.mu is held.
func (v *view) decode(body []byte, key string) error {
	d := v.dir.get(key)
	if d == nil || v.cols[key] != nil {
		return nil
	}
	scratch := rawPool.Get().(*[]byte)
	defer putRaw(scratch)
	raw, err := unpack(body[d.off:d.off+d.packed], d.rawLen, scratch)
	if err != nil {
		return err
	}
	c := &colView{}
	if err := v.place(body, d, c); err != nil {
		return err
	}
	switch form := d.form; {
	case form == formEventIDs:
		err = v.decodeIDs(body, d, raw, c)
	case form == formTimes:
		err = v.decodeTimes(body, d, raw, c)
	case form == formDict && !slices.Contains(sharedNames, d.name):
		err = damaged("form") // a column of values has codes
	case v.v1 && form&formByMessage != 0 && form&formKind != formText && form&formKind != formNums:
		err = damaged("form")
	case form == formDict:
		c.dict, _, err = readDict(raw)
	case v.v1 && form&formByMessage != 0:
		err = v.decodeByMessage(body, d, raw, c)
	case form&formKind == formText && v.v1:
		if c.dict, raw, err = readDict(raw); err == nil {
			c.codes, _, err = readCodes(raw, d.n, 0, len(c.dict))
		}
	case form&formKind == formText:
		err = v.decodeText(body, d, raw, c)
	case form&^formPredicted&^formLed == formNums:
		err = v.decodeNums(body, d, raw, c)
	default:
		err = damaged("form")
	}
	if err != nil {
		return err
	}
	if err := c.sum(d, v); err != nil {
		return err
	}
	v.cols[key] = c
	v.size += c.size()
	if d.form&formShared != 0 { // the dictionary counts once
		v.size -= (&column{dict: c.dict}).size()
	}
	return nil
}

// decodeNums reads a column of numbers.
func (v *view) decodeNums(body []byte, d *dirEntry, raw []byte, c *colView) error {
	lead, raw, err := d.lead(raw)
	if err != nil {
		return err
	}
	if c.nums, _, err = readParts(nil, raw, d.n, lead); err != nil || d.form&formPredicted == 0 {
		return err
	}
	prev, err := v.predictors(body, d)
	if err == nil {
		unpredictNums(c.nums, lead, prev)
	}
	return err
}

// decodeText reads a text column.
func (v *view) decodeText(body []byte, d *dirEntry, raw []byte, c *colView) error {
	limit := uint64(d.n) + 2 //nolint:gosec // a count; there are "" and likeMark too
	if d.form&formShared != 0 {
		name := sharedDicts[d.name]
		if err := v.decode(body, name); err != nil {
			return err
		}
		shared := v.cols[name]
		if shared == nil {
			return damaged("shared dictionary")
		}
		c.dict, limit = shared.dict, maxListValues
	}
	entries, raw, err := readUvarint(raw, limit)
	if err != nil {
		return err
	}
	if c.dict != nil && entries > len(c.dict) {
		return damaged("shared dictionary")
	}
	lead, raw, err := d.lead(raw)
	if err != nil {
		return err
	}
	if d.form&formPredicted == 0 {
		c.codes, raw, err = readCodes(raw, d.n, lead, entries)
	} else {
		var prev []int32
		if prev, err = v.predictors(body, d); err == nil {
			c.codes, raw, err = readPredictedCodes(raw, lead, prev, entries)
		}
	}
	if err != nil {
		return err
	}
	if c.dict == nil {
		if c.dict, _, err = readDict(raw); err != nil {
			return err
		}
		if len(c.dict) != entries {
			return damaged("dictionary")
		}
	}
	if d.form&formLike != 0 {
		return v.unliken(body, d, c)
	}
	return nil
}

// unliken puts the values of the other column where likeMark stands.
func (v *view) unliken(body []byte, d *dirEntry, c *colView) error {
	key := likes[d.name]
	if err := v.decode(body, key); err != nil {
		return err
	}
	base := v.cols[key]
	if base == nil || len(base.dict) == 0 || len(c.dict) < 2 || c.dict[1] != likeMark {
		return damaged("like another column")
	}
	moved := make([]uint32, len(base.dict)) // code in base to code in c
	c.dict[1] = ""
	for _, t := range d.cover {
		from, to := base.start[t], c.start[t]
		if from < 0 {
			return damaged("like another column")
		}
		for row := range v.types[t].n {
			if c.codes[to+row] != 1 {
				continue
			}
			code := base.codes[from+row]
			if moved[code] == 0 {
				moved[code] = uint32(len(c.dict)) //nolint:gosec // bounded by the rows of a block
				c.dict = append(c.dict, base.dict[code])
			}
			c.codes[to+row] = moved[code]
		}
	}
	return nil
}

// predictors of a column's values.
func (v *view) predictors(body []byte, d *dirEntry) ([]int32, error) {
	if err := v.rowKeys(body); err != nil {
		return nil, err
	}
	list, child := isChild(d.name)
	if !child {
		list = ""
	}
	key := list + "/" + string(d.cover)
	if prev, ok := v.prev[key]; ok {
		return prev, nil
	}
	var first []int
	var sums []int32
	switch {
	case child:
		parent := v.cols[colKey(list, false)] // place has decoded it
		first, sums = parent.start, parent.sums
	case d.n > int(v.head.rows):
		return nil, damaged("column length")
	}
	prev := predictors(v.types, d.cover, v.keys, v.nkey, first, sums)
	v.prev[key] = prev
	return prev, nil
}

// rowKeys tells which rows belong together.
func (v *view) rowKeys(body []byte) error {
	if v.keys != nil {
		return nil
	}
	queue, messages, err := v.codesOf(body, "queue_id")
	if err != nil {
		return err
	}
	session, _, err := v.codesOf(body, "session_id")
	if err != nil {
		return err
	}
	v.keys, v.nkey = keysOf(v.types, int(v.head.rows), max(messages-1, 0), queue, session)
	v.size += int64(4 * len(v.keys))
	return nil
}

// codesOf reads the codes of a column, and how many there may be, without its dictionary.
func (v *view) codesOf(body []byte, name string) (p placed, entries int, err error) {
	d := v.dir.get(name)
	if d == nil {
		return placed{}, 0, nil
	}
	if c := v.cols[name]; c != nil {
		return placed{d.cover, c.codes}, len(c.dict), nil
	}
	if d.form != formText || d.n > int(v.head.rows) {
		return placed{}, 0, damaged("row keys")
	}
	scratch := rawPool.Get().(*[]byte)
	defer putRaw(scratch)
	raw, err := unpack(body[d.off:d.off+d.packed], d.rawLen, scratch)
	if err != nil {
		return placed{}, 0, err
	}
	if err := v.place(body, d, &colView{}); err != nil {
		return placed{}, 0, err
	}
	entries, raw, err = readUvarint(raw, uint64(d.n)+2) //nolint:gosec // a count
	if err != nil {
		return placed{}, 0, err
	}
	codes, _, err := readCodes(raw, d.n, 0, entries)
	return placed{d.cover, codes}, entries, err
}

func (v *view) decodeTimes(body []byte, d *dirEntry, raw []byte, c *colView) error {
	err := v.rowKeys(body)
	if err == nil {
		c.nums, err = readTimes(raw, v.types, d.cover, d.n, v.keys, v.nkey)
	}
	return err
}

// place computes where each type's rows are in a column, and checks the count.
func (v *view) place(body []byte, d *dirEntry, c *colView) error {
	c.start = make([]int, len(v.types))
	for i := range c.start {
		c.start[i] = -1
	}
	var parent *colView
	if list, ok := isChild(d.name); ok {
		if err := v.decode(body, colKey(list, false)); err != nil {
			return err
		}
		if parent = v.cols[colKey(list, false)]; parent == nil || parent.sums == nil {
			return damaged("list without its counts")
		}
	}
	at := 0
	for _, t := range d.cover {
		c.start[t] = at
		if parent == nil {
			at += v.types[t].n
			continue
		}
		p := parent.start[t]
		if p < 0 {
			return damaged("list without its counts")
		}
		at += int(parent.sums[p+v.types[t].n] - parent.sums[p])
	}
	if at != d.n {
		return damaged("column length")
	}
	return nil
}

// sum prepares the column of a list's counts.
func (c *colView) sum(d *dirEntry, v *view) error {
	if _, child := isChild(d.name); child || d.form&formKind != formNums || !v.isList(d.name) {
		return nil
	}
	c.sums = make([]int32, len(c.nums)+1)
	total, limit := int64(0), maxElements(int(v.head.bytes))
	for i, n := range c.nums {
		if n < 0 || n > maxListValues {
			return damaged("list length")
		}
		total += max(n-1, 0)
		if total > limit {
			return damaged("list length")
		}
		c.sums[i+1] = int32(total) //nolint:gosec // bounded by maxElements
	}
	return nil
}

// isList reports whether the block has columns for the elements of name.
func (v *view) isList(name string) bool { return listNames[name] }

// listNames are the names of all lists in facts.
var listNames = func() map[string]bool {
	m := map[string]bool{}
	for _, p := range plans {
		for _, l := range p.leaves {
			if l.kind == kindList {
				m[l.name] = true
			}
		}
	}
	return m
}()

func (v *view) decodeIDs(body []byte, d *dirEntry, raw []byte, c *colView) error {
	if err := v.decode(body, "ts#"); err != nil {
		return err
	}
	ts := v.cols["ts#"]
	if ts == nil || len(ts.nums) != d.n || d.n > maxBlockRows {
		return damaged("event ids")
	}
	ids, err := readEventIDs(raw, ts.nums)
	if err != nil {
		return err
	}
	c.column = *ids
	return nil
}

func (v *view) decodeByMessage(body []byte, d *dirEntry, raw []byte, c *colView) error {
	if d.name == "queue_id" {
		return damaged("queue_id by message")
	}
	if err := v.decode(body, "queue_id"); err != nil {
		return err
	}
	q := v.cols["queue_id"]
	if q == nil {
		return damaged("by message without messages")
	}
	text := d.form&formKind == formText
	var err error
	if text {
		if c.dict, raw, err = readDict(raw); err != nil {
			return err
		}
	}
	per, raw, err := readNums(raw, len(q.dict)-1)
	if err != nil {
		return err
	}
	none := 0 // rows of the column without a message
	for _, t := range d.cover {
		for row := range v.types[t].n {
			if q.codeAt(int(t), row) == 0 {
				none++
			}
		}
	}
	rest, _, err := readNums(raw, none)
	if err != nil {
		return err
	}
	vals := make([]int64, 0, d.n)
	for _, t := range d.cover {
		for row := range v.types[t].n {
			if code := q.codeAt(int(t), row); code > 0 {
				vals = append(vals, per[code-1])
			} else {
				vals = append(vals, rest[0])
				rest = rest[1:]
			}
		}
	}
	if !text {
		c.nums = vals
		return nil
	}
	c.codes = make([]uint32, len(vals))
	for i, n := range vals {
		if n < 0 || n >= int64(len(c.dict)) {
			return damaged("code")
		}
		c.codes[i] = uint32(n) //nolint:gosec // bounded above
	}
	return nil
}

// col is a column that need has decoded, or nil.
func (v *view) col(key string) *colView {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.cols[key]
}

// codeAt is the code of the row-th row of type t.
func (c *colView) codeAt(t, row int) uint32 {
	if c == nil || c.start[t] < 0 {
		return 0
	}
	return c.codes[c.start[t]+row]
}

func (c *colView) textAt(t, row int) string {
	if c == nil || c.start[t] < 0 {
		return ""
	}
	return c.dict[c.codes[c.start[t]+row]]
}

func (c *colView) numAt(t, row int) int64 {
	if c == nil || c.start[t] < 0 {
		return 0
	}
	return c.nums[c.start[t]+row]
}

// elems is the range of a list's elements of a row, counted from the first of
// its type; has is false for a nil list.
func (c *colView) elems(t, row int) (lo, hi int, has bool) {
	if c == nil || c.start[t] < 0 || c.sums == nil {
		return 0, 0, false
	}
	first := c.start[t]
	base := c.sums[first]
	return int(c.sums[first+row] - base), int(c.sums[first+row+1] - base), c.nums[first+row] > 0
}

// typeOf finds the type of a stored row and its place among its rows.
func (v *view) typeOf(row int) (t, at int) {
	for i := range v.types {
		if r := &v.types[i]; row < r.start+r.n {
			return i, row - r.start
		}
	}
	return -1, 0
}

var errUnknownFact = errors.New("fact of a newer version")

// readSet says how much of a fact is read.
type readSet uint8

const (
	readAll      readSet = iota
	readFiltered         // what filters may ask for: all but transcripts
	readRow              // what a message row tells
	readFinal            // what a final fact adds to it, when message_queued is read too
	readSets
)

// leaves reports whether a field is left out.
func (s readSet) leaves(name string) bool {
	switch s {
	case readFiltered:
		return name == "transcript"
	case readRow:
		return notInRow[name]
	case readFinal:
		return notInRow[name] || inQueued[name]
	}
	return false
}

// inQueued are fields that a message row takes from message_queued.
var inQueued = map[string]bool{
	"mail_from": true, "header_from": true, "header_message_id": true, "size": true, "connector_in": true, "client_ip": true, "auth_user": true,
	"external_id": true, "session_id": true, "message_uid": true, "remote_ip": true,
}

// notInRow are fields that a message row does not tell. Ids only order facts of
// one microsecond, of which a final one wins in any order.
var notInRow = func() map[string]bool {
	m := map[string]bool{}
	for _, name := range []string{
		"event_id", "node", "source", "config_rev", "transcript", "client_port", "client_name", "helo", "auth_mechanism", "protocol",
		"tls_version", "tls_cipher", "tls_verify", "tls_policy", "envid", "t_receive", "t_accept", "expires", "address_space", "why",
		"provider", "remote_port", "reply_verb", "class_rule", "permanence", "explanation", "local_ip", "conn_reused", "uncertain", "t_sched", "t_dns", "t_connect",
		"t_banner", "t_tls", "t_auth", "t_envelope", "t_data", "t_reply", "t_backoff", "t_queue", "late", "orig_address",
		"recipients.orig_address", "priority", "out_session_id", "target", "changed", "converted",
	} {
		m[name] = true
	}
	return m
}()

// columns lists the columns that facts of p have and that set reads.
func (p *plan) columns(set readSet) []string {
	keys := []string{"ts#", "ts/ns#"}
	for _, name := range heads[1:] {
		if !set.leaves(name) {
			keys = append(keys, name)
		}
	}
	for i := range p.leaves {
		l := &p.leaves[i]
		for _, x := range append([]leaf{*l}, l.sub...) {
			if set.leaves(l.name) || set.leaves(x.name) {
				continue
			}
			keys = append(keys, x.key)
			if x.kind == kindTime {
				keys = append(keys, x.nanos)
			}
		}
	}
	return keys
}

// needRecords decodes the columns of the facts of type t that set reads.
func (v *view) needRecords(t int, set readSet) error {
	p := planNames[v.types[t].name]
	if p == nil {
		return errUnknownFact
	}
	return v.need(p.keys[set]...)
}

// record puts a row together again. The columns must have been decoded by
// needRecords with the same set.
func (v *view) record(row int, set readSet) (event.Record, error) {
	t, at := v.typeOf(row)
	if t < 0 {
		return event.Record{}, damaged("row")
	}
	p := planNames[v.types[t].name]
	if p == nil {
		return event.Record{}, errUnknownFact
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	r := event.Record{
		Time:      unpackTime(v.cols["ts#"].numAt(t, at), v.cols["ts/ns#"].numAt(t, at)),
		ID:        v.cols["event_id"].textAt(t, at),
		Node:      v.cols["node"].textAt(t, at),
		Source:    event.Source(v.cols["source"].textAt(t, at)),
		ConfigRev: v.cols["config_rev"].textAt(t, at),
		Session:   v.cols["session_id"].textAt(t, at),
		Message:   mail.QueueID(v.cols["queue_id"].textAt(t, at)),
		UID:       v.cols["message_uid"].textAt(t, at),
	}
	s := reflect.New(p.typ).Elem()
	for i := range p.leaves {
		l := &p.leaves[i]
		if set.leaves(l.name) {
			continue
		}
		if l.kind != kindList {
			v.setLeaf(l, s, t, at)
			continue
		}
		lo, hi, has := v.cols[l.key].elems(t, at)
		if !has {
			continue
		}
		list := reflect.MakeSlice(l.typ, hi-lo, hi-lo)
		for j := range l.sub {
			for k := lo; k < hi; k++ {
				v.setLeaf(&l.sub[j], list.Index(k-lo), t, k)
			}
		}
		s.FieldByIndex(l.index).Set(list)
	}
	r.Event = s.Interface().(event.Event)
	return r, nil
}

func (v *view) setLeaf(l *leaf, s reflect.Value, t, at int) {
	if l.isText() {
		l.setText(s, v.cols[l.key].textAt(t, at))
		return
	}
	var nanos int64
	if l.kind == kindTime {
		nanos = v.cols[l.nanos].numAt(t, at)
	}
	l.setNum(s, v.cols[l.key].numAt(t, at), nanos)
}

// blockKey is the suffix of keys in Badger that names a block.
func blockKey(prefix byte, seq uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{prefix}, seq)
}
