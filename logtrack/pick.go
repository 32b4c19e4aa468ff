package logtrack

import (
	"errors"
	"reflect"
	"slices"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// target is a column that facts of a type have, and the field that its values are of.
type target struct {
	id, nanos int   // of the column, and of that of what is below the microsecond
	list      *leaf // whose elements have the field, or nil
	leaf      *leaf // nil: a field of the record itself
	text      bool
	head      func(r *event.Record, s string)
}

// headFields are the texts of the record itself.
var headFields = map[string]func(r *event.Record, s string){
	"event_id":    func(r *event.Record, s string) { r.ID = s },
	"node":        func(r *event.Record, s string) { r.Node = s },
	"source":      func(r *event.Record, s string) { r.Source = event.Source(s) },
	"config_rev":  func(r *event.Record, s string) { r.ConfigRev = s },
	"session_id":  func(r *event.Record, s string) { r.Session = s },
	"queue_id":    func(r *event.Record, s string) { r.Message = mail.QueueID(s) },
	"message_uid": func(r *event.Record, s string) { r.UID = s },
}

// targets lists, by fact, what the sets read of it.
var targets = func() map[string]*[readSets][]target {
	m := map[string]*[readSets][]target{}
	for name, p := range planNames {
		m[name] = &[readSets][]target{}
		for set := range readSets {
			m[name][set] = p.targets(set)
		}
	}
	return m
}()

func (p *plan) targets(set readSet) []target {
	list := []target{{id: columnIDs["ts#"], nanos: columnIDs["ts/ns#"]}}
	for _, name := range heads[1:] {
		if !set.leaves(name) {
			list = append(list, target{id: columnIDs[name], text: true, head: headFields[name]})
		}
	}
	add := func(l, parent *leaf) {
		if !set.leaves(l.name) {
			list = append(list, target{id: columnIDs[l.key], nanos: columnIDs[l.nanos], list: parent, leaf: l, text: l.isText()})
		}
	}
	for i := range p.leaves {
		l := &p.leaves[i]
		if set.leaves(l.name) {
			continue
		}
		add(l, nil)
		for j := range l.sub {
			add(&l.sub[j], l)
		}
	}
	return list
}

// pickedRun is picked rows of one type.
type pickedRun struct {
	t     int
	rows  []pickedRow
	recs  []event.Record
	facts []reflect.Value // structs, of which the facts are made in the end
}

// pick reads some rows, which are in order, as far as the facts of each type
// are needed by sets.
func (k *picker) pick(rows []pickedRow, set func(t int) readSet) ([]event.Record, error) {
	was := k.led
	k.led = k.body[0] > 2 && !slices.ContainsFunc(rows, func(r pickedRow) bool { return !leads(k.types[r.t].name) })
	if was && !k.led {
		k.forget()
	}
	recs, err := k.records(rows, set)
	if errors.Is(err, errBeyondLead) {
		k.led = false
		k.forget()
		recs, err = k.records(rows, set)
	}
	return recs, err
}

func (k *picker) records(rows []pickedRow, set func(t int) readSet) ([]event.Record, error) {
	k.text, k.later = k.text[:0], k.later[:0]
	defer k.emptyFacts()
	recs := make([]event.Record, len(rows))
	for at := 0; at < len(rows); {
		n := 1
		for at+n < len(rows) && rows[at+n].t == rows[at].t {
			n++
		}
		run := pickedRun{t: rows[at].t, rows: rows[at : at+n], recs: recs[at : at+n]}
		at += n
		p := planNames[k.types[run.t].name]
		if p == nil {
			return nil, errUnknownFact
		}
		run.facts = k.room(p, n)
		for _, c := range targets[p.name][set(run.t)] {
			if err := k.fill(&run, c); err != nil {
				return nil, err
			}
		}
	}
	all := string(k.text) // of which the texts are parts: one piece of memory for all
	for _, l := range k.later {
		if l.leaf == nil {
			l.head(l.row, all[l.lo:l.hi])
			continue
		}
		l.leaf.setText(l.of, all[l.lo:l.hi])
	}
	for at := 0; at < len(rows); {
		facts := k.facts[planNames[k.types[rows[at].t].name]]
		for i, t := 0, rows[at].t; at < len(rows) && rows[at].t == t; i++ {
			recs[at].Event = facts[i].Interface().(event.Event) // a copy
			at++
		}
	}
	return recs, nil
}

// room is structs for n facts of a type, all zero.
func (k *picker) room(p *plan, n int) []reflect.Value {
	list := k.facts[p]
	for len(list) < n {
		list = append(list, reflect.New(p.typ).Elem())
	}
	k.facts[p] = list
	return list[:n]
}

// maxFacts is how many facts of a type a picker keeps room for. By taste.
const maxFacts = 2 * maxGlimpses

// emptyFacts makes the room for facts zero again.
func (k *picker) emptyFacts() {
	for p, list := range k.facts {
		if len(list) > maxFacts {
			list = slices.Clip(list[:maxFacts])
			k.facts[p] = list
		}
		for _, s := range list {
			s.SetZero()
		}
	}
	clear(k.later)
}

// fill sets the fields that are the target of a column.
func (k *picker) fill(run *pickedRun, c target) error {
	d := k.dir.byID(c.id)
	if d == nil || !slices.Contains(d.cover, byte(run.t)) { //nolint:gosec // far fewer types
		return nil
	}
	if err := k.placesOf(d, run); err != nil {
		return err
	}
	if c.text {
		if err := k.texts(d, run, c.list != nil); err != nil {
			return err
		}
	} else if err := k.numsOf(d, run, c.nanos); err != nil {
		return err
	}
	if c.list == nil {
		for i := range run.rows {
			k.set(&run.recs[i], run.facts[i], c, i)
		}
		return nil
	}
	at := 0
	for i := range run.rows {
		list := run.facts[i].FieldByIndex(c.list.index)
		for e := range list.Len() {
			k.set(&run.recs[i], list.Index(e), c, at)
			at++
		}
	}
	return nil
}

// set sets a field to the i-th value that was read.
func (k *picker) set(r *event.Record, of reflect.Value, c target, i int) {
	switch {
	case c.text:
		if k.spans[i].lo < k.spans[i].hi {
			k.later = append(k.later, laterText{k.spans[i], c.head, r, c.leaf, of})
		}
	case c.leaf == nil:
		r.Time = unpackTime(k.vals[i], k.nanos[i])
	case c.leaf.kind == kindList:
		if n := int(k.vals[i]) - 1; n >= 0 { // bounded by list
			of.FieldByIndex(c.leaf.index).Set(reflect.MakeSlice(c.leaf.typ, n, n))
		}
	default:
		c.leaf.setNum(of, k.vals[i], k.nanos[i])
	}
}

// placesOf finds where a column has the values of the rows.
func (k *picker) placesOf(d *dirEntry, run *pickedRun) error {
	k.places = k.places[:0]
	start, err := k.starts(d)
	if err != nil {
		return err
	}
	first := start[run.t]
	if first < 0 {
		return k.noRow()
	}
	if d.column.list == 0 {
		for _, r := range run.rows {
			k.places = append(k.places, first+r.at)
		}
		return nil
	}
	l, err := k.list(d.column.list)
	if err != nil {
		return err
	}
	p := l.start[run.t]
	for _, r := range run.rows {
		if p < 0 || p+r.at+1 >= len(l.sums) {
			return k.noRow()
		}
		for e := l.sums[p+r.at]; e < l.sums[p+r.at+1]; e++ {
			k.places = append(k.places, first+int(e-l.sums[p]))
		}
	}
	return nil
}

// numsOf reads the numbers at places, and what is below the microsecond of them.
func (k *picker) numsOf(d *dirEntry, run *pickedRun, nanos int) (err error) {
	if k.vals, err = k.numsAt(d, k.vals[:0]); err != nil {
		return err
	}
	if listNames[d.name] { // whose counts are checked
		if _, err := k.list(d.column.nums); err != nil {
			return err
		}
	}
	k.nanos = resized(k.nanos, len(k.vals))
	clear(k.nanos)
	n := k.dir.byID(nanos)
	if n == nil || !slices.Contains(n.cover, byte(run.t)) { //nolint:gosec // far fewer types
		return nil
	}
	if err := k.placesOf(n, run); err != nil {
		return err
	}
	k.nanos, err = k.numsAt(n, k.nanos[:0])
	if err == nil && len(k.nanos) != len(k.vals) {
		err = damaged("times")
	}
	return err
}

// numsAt appends the numbers at places to dst.
func (k *picker) numsAt(d *dirEntry, dst []int64) ([]int64, error) {
	if d.form&^formLed == formNums {
		return k.plainAt(d, dst)
	}
	return k.readAt(d, dst)
}

// readAt is numsAt for numbers that must be read all.
func (k *picker) readAt(d *dirEntry, dst []int64) ([]int64, error) {
	nums, err := k.numbers(d)
	if err != nil {
		return nil, err
	}
	for _, at := range k.places {
		if at >= len(nums) {
			return nil, k.noRow()
		}
		dst = append(dst, nums[at])
	}
	return dst, nil
}

// plainAt is numsAt for numbers that nothing is predicted of: no others are read.
func (k *picker) plainAt(d *dirEntry, dst []int64) ([]int64, error) {
	raw, err := k.unpack(d)
	if err != nil {
		return nil, err
	}
	first, rest, _, err := d.parts(raw)
	if err != nil {
		return nil, err
	}
	if k.slow(first, rest) {
		return k.readAt(d, dst)
	}
	for _, at := range k.places {
		switch {
		case at < first.n:
			dst = append(dst, first.at(at))
		case at < d.n && (!k.led || first.n == 0):
			dst = append(dst, rest.at(at-first.n))
		default:
			return nil, k.noRow()
		}
	}
	return dst, nil
}

// texts reads the texts at places.
func (k *picker) texts(d *dirEntry, run *pickedRun, child bool) error {
	k.spans = k.spans[:0]
	if err := k.appendTexts(d); err != nil {
		return err
	}
	if d.form&formLike == 0 || child {
		return nil
	}
	return k.unliken(d, run)
}

// appendTexts appends the texts at places to text, and where they are to spans.
func (k *picker) appendTexts(d *dirEntry) error {
	dict, err := k.codesOf(d)
	if err != nil {
		return err
	}
	open, err := openDict(dict)
	if err == nil && len(k.picked) > fewPlaces {
		k.ends, err = open.locate(k.ends)
	}
	if err != nil {
		return err
	}
	last, at := uint32(0), extent{}
	for _, code := range k.picked {
		if code != last {
			at.lo = len(k.text)
			if k.text, err = open.append(k.text, int(code)); err != nil {
				return err
			}
			last, at.hi = code, len(k.text)
		}
		k.spans = append(k.spans, at)
	}
	return nil
}

// unliken puts the values of the other column where likeMark stands.
func (k *picker) unliken(d *dirEntry, run *pickedRun) error {
	marked := func(s extent) bool { return string(k.text[s.lo:s.hi]) == likeMark }
	if !slices.ContainsFunc(k.spans, marked) {
		return nil
	}
	base := k.dir.byID(d.column.like)
	if base == nil || !slices.Contains(base.cover, byte(run.t)) { //nolint:gosec // far fewer types
		return damaged("like another column")
	}
	if err := k.placesOf(base, run); err != nil {
		return err
	}
	n := len(k.spans)
	if err := k.appendTexts(base); err != nil {
		return err
	}
	for i, s := range k.spans[:n] {
		if marked(s) {
			k.spans[i] = k.spans[n+i]
		}
	}
	return nil
}

// codesOf reads the codes at places into picked, and finds the dictionary.
func (k *picker) codesOf(d *dirEntry) (dict []byte, err error) {
	if d.form&formKind != formText {
		return nil, errNotPicked
	}
	k.picked = k.picked[:0]
	if d.form&formPredicted != 0 && !k.led {
		return k.allCodesOf(d)
	}
	raw, err := k.unpack(d)
	if err != nil {
		return nil, err
	}
	entries, raw, err := d.entries(raw)
	if err != nil {
		return nil, err
	}
	first, rest, raw, err := d.parts(raw)
	if err != nil {
		return nil, err
	}
	switch {
	case d.form&formPredicted == 0 && k.slow(first, rest):
		return k.allCodesOf(d)
	case d.form&formPredicted == 0:
		err = k.plainCodesAt(first, rest, entries)
	case first.n == 0:
		err = errBeyondLead
	default:
		err = k.leadCodesAt(first, entries)
	}
	if err == nil && d.form&formShared != 0 {
		return k.shared(d)
	}
	return raw, err
}

// allCodesOf is codesOf for codes that must be read all.
func (k *picker) allCodesOf(d *dirEntry) (dict []byte, err error) {
	if dict, err = k.codesAndDict(d); err != nil {
		return nil, err
	}
	for _, at := range k.places {
		if at >= len(k.codes) {
			return nil, k.noRow()
		}
		k.picked = append(k.picked, k.codes[at])
	}
	return dict, nil
}

// fewPlaces is up to how many values of a column are read one by one, each from
// the beginning. By taste.
const fewPlaces = 16

// slow reports whether the numbers at places are better read with all others.
func (k *picker) slow(parts ...packedNums) bool {
	return len(k.places) > fewPlaces && slices.ContainsFunc(parts, func(p packedNums) bool { return p.neighbours })
}

// plainCodesAt reads the codes at places, which nothing is predicted of.
func (k *picker) plainCodesAt(first, rest packedNums, entries int) error {
	for _, at := range k.places {
		var code int64
		switch {
		case at < first.n:
			code = first.at(at)
		case at < first.n+rest.n && (!k.led || first.n == 0):
			code = rest.at(at - first.n)
		default:
			return k.noRow()
		}
		if code < 0 || code >= int64(entries) {
			return damaged("code")
		}
		k.picked = append(k.picked, uint32(code)) //nolint:gosec // bounded by entries
	}
	return nil
}

// leadCodesAt reads the codes at places of rows that lead: others are read as
// far as it takes to tell which entry was new at a place.
func (k *picker) leadCodesAt(first packedNums, entries int) error {
	last := -1
	for _, at := range k.places {
		if at >= first.n {
			return errBeyondLead
		}
		last = max(last, at)
	}
	k.codes = resized(k.codes, last+1)
	if first.neighbours || first.width != 1 || first.base != 0 {
		k.nums = first.head(k.nums, last+1)
		if err := predictedCodes(k.codes, k.nums, last+1, nil, entries); err != nil {
			return err
		}
	} else {
		next := uint32(1)
		for i, n := range first.planes[:last+1] {
			c := next
			if n != 0 {
				c = uint32(n - 1)
			}
			if int(c) >= entries {
				return damaged("code")
			}
			k.codes[i] = c
			next = max(next, c+1)
		}
	}
	for _, at := range k.places {
		k.picked = append(k.picked, k.codes[at])
	}
	return nil
}
