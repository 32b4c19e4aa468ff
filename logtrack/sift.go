package logtrack

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"slices"
	"unsafe"
)

// A search by an index reads a block for a row or two, and one for a part of an
// address reads the dictionaries of thousands of blocks in vain. Both are done
// by a picker: filters are asked of a dictionary as it is stored, and what a
// list tells of a message that is found is read at once.

// maxGlimpses is how many messages of one block are read whole while they are
// looked for: with more, most are not on the page. By taste.
const maxGlimpses = 8

// hint is a text that every value that passes a filter has in it.
type hint struct {
	text   []byte // nil: there is no such text
	folded bool   // only values without capitals and beyond ASCII are as they are compared
}

// sifted is candidates for a block that is stored or encoded, by a picker. want says which of the
// messages found are of use; those are glimpsed, if gather is set.
func (sn *snapshot) sifted(src *source, preds []*pred, f *filter, want func(position) bool, gather bool) (list []position, err error) {
	sn.looked.Add(1)
	err = src.body(func(body []byte) error {
		k, err := newPicker(src.head, body)
		if err != nil {
			return err
		}
		defer k.release()
		var codes []uint32
		if list, codes, err = k.candidates(preds, f); err != nil || !gather || len(list) > maxGlimpses {
			return err
		}
		var ids []string
		var of []uint32
		for i, pos := range list {
			if want(pos) {
				ids, of = append(ids, pos.id), append(of, codes[i])
			}
		}
		if len(ids) == 0 {
			return nil
		}
		found := make([]glimpse, len(ids))
		if err := k.glance(of, found); err != nil {
			return err
		}
		sn.glimpse(viewKey{src.part, src.head.seq}, ids, found)
		return nil
	})
	return list, err
}

// glimpse remembers what one block has of messages.
func (sn *snapshot) glimpse(key viewKey, ids []string, found []glimpse) {
	sn.mu.Lock()
	defer sn.mu.Unlock()
	if sn.glimpsed == nil {
		sn.glimpsed = map[string]*glimpse{}
	}
	for i, id := range ids {
		g := sn.glimpsed[id]
		if g == nil {
			g = &glimpse{}
			sn.glimpsed[id] = g
		}
		g.add(&found[i])
		g.blocks = append(g.blocks, key)
	}
}

// candidates lists the messages with a row that passes preds, and their codes.
func (k *picker) candidates(preds []*pred, f *filter) (list []position, codes []uint32, err error) {
	some, done := false, false
	if len(preds) == 1 {
		if some, done, err = k.siftLead(preds[0]); err != nil && !errors.Is(err, errBeyondLead) {
			return nil, nil, err
		}
	}
	if !done {
		some, err = k.sift(preds)
	}
	if err != nil || !some {
		return nil, nil, err
	}
	if err := k.plainCodes(&k.queue, "queue_id"); err != nil || k.queue.d == nil {
		return nil, nil, err
	}
	seen := resized(k.ok, k.queue.entries)
	clear(seen)
	k.ok = seen
	at := 0
	for _, t := range k.queue.d.cover {
		run := &k.types[t]
		for row, code := range k.queue.codes[at : at+run.n] {
			if code == 0 || seen[code] || !k.keep[run.start+row] {
				continue
			}
			seen[code] = true
			id, err := k.entry(k.queue.dict, int(code))
			if err != nil {
				return nil, nil, err
			}
			acc := acceptMS(id)
			if acc <= 0 { // its own time counts
				return nil, nil, errNotPicked
			}
			if at := acc * 1000; at+999 >= f.from && at < f.to {
				list, codes = append(list, position{acc, id}), append(codes, code)
			}
		}
		at += run.n
	}
	return list, codes, nil
}

// sift sets keep for the rows that pass all of preds. Filters of texts are
// asked of dictionaries first: most blocks end there.
func (k *picker) sift(preds []*pred) (some bool, err error) {
	k.keep, k.hit = resized(k.keep, int(k.head.rows)), resized(k.hit, int(k.head.rows))
	clear(k.keep)
	for _, run := range k.types {
		if planNames[run.name] != nil {
			for row := run.start; row < run.start+run.n; row++ {
				k.keep[row] = true
			}
		}
	}
	preds = slices.Clone(preds)
	slices.SortStableFunc(preds, func(a, b *pred) int { return cmp.Compare(a.rarity(), b.rarity()) })
	for _, p := range preds {
		clear(k.hit)
		if err := k.mark(p); err != nil {
			return false, err
		}
		some := false
		for row, hit := range k.hit {
			k.keep[row] = k.keep[row] && hit
			some = some || k.keep[row]
		}
		if !some {
			return false, nil
		}
	}
	return true, nil
}

// siftLead is sift for one filter of texts, as far as rows that lead tell which
// messages have a row that passes: those alone are kept. It is not done when
// another row may be the only one of its message, which it cannot be when its
// value is predicted from one that leads, or is not one that passes.
func (k *picker) siftLead(p *pred) (some, done bool, err error) {
	if k.body[0] < 3 || p.text == nil || p.num != nil || p.fact != nil {
		return false, false, nil
	}
	k.led = true
	defer func() {
		if !done {
			k.led = false
			k.forget()
		}
	}()
	k.keep, k.hit = resized(k.keep, int(k.head.rows)), resized(k.hit, int(k.head.rows))
	clear(k.keep)
	clear(k.hit)
	last, matched := "", false
	for _, name := range p.field.text {
		d := k.dir.get(name)
		if d == nil {
			continue
		}
		if d.form&^formShared != formText|formPredicted|formLed {
			return false, false, nil
		}
		of := name
		if d.form&formShared != 0 {
			of = sharedDicts[name]
		}
		if last != of {
			dict, err := k.dictOf(d)
			if err != nil {
				return false, false, err
			}
			if matched, err = k.match(p, dict); err != nil {
				return false, false, err
			}
			last = of
		}
		if !matched {
			continue
		}
		found, ok, err := k.markLead(d)
		if err != nil || !ok {
			return false, false, err
		}
		some = some || found
	}
	copy(k.keep, k.hit)
	return some, true, nil
}

// markLead sets hit for the rows that lead and have a value that passes; ok is
// false when others may have one that does not follow from theirs.
func (k *picker) markLead(d *dirEntry) (some, ok bool, err error) {
	if _, err := k.codesAndDict(d); err != nil { // of rows that lead
		if errors.Is(err, errBeyondLead) {
			err = nil
		}
		return false, false, err
	}
	next := 1 // the first entry that is new to the others
	for _, c := range k.codes {
		if int(c) >= len(k.ok) {
			return false, false, damaged("code")
		}
		some = some || k.ok[c]
		next = max(next, int(c)+1)
	}
	if len(k.codes) < d.n {
		if slices.Contains(k.ok[min(next, len(k.ok)):], true) {
			return false, false, nil
		}
		if others, err := k.othersMatch(d, len(k.codes)); err != nil || others {
			return false, false, err
		}
	}
	if some {
		lead := len(k.codes)
		err = k.markPlaces(d, func(at int) bool { return at < lead && k.ok[k.codes[at]] })
	}
	return some, true, err
}

// othersMatch reports whether a row that does not lead has a value that passes,
// and that is not predicted.
func (k *picker) othersMatch(d *dirEntry, lead int) (bool, error) {
	raw, err := k.unpack(d)
	if err != nil {
		return false, err
	}
	if _, raw, err = readUvarint(raw, maxListValues); err != nil {
		return false, err
	}
	if _, raw, err = d.lead(raw); err == nil {
		raw, err = skipNums(raw, lead)
	}
	if err != nil {
		return false, err
	}
	if k.nums, _, err = readNumsInto(k.nums, raw, d.n-lead); err != nil {
		return false, err
	}
	for _, n := range k.nums {
		switch {
		case n < 0 || n > int64(len(k.ok)):
			return false, damaged("code")
		case n > 0 && k.ok[n-1]:
			return true, nil
		}
	}
	return false, nil
}

// rarity orders filters: those first that leave little to do.
func (p *pred) rarity() int {
	switch {
	case p.text != nil && p.num == nil && p.fact == nil:
		return 0
	case p.text == nil && p.num == nil:
		return 1
	}
	return 2
}

// mark sets hit for the rows that pass p, as the method of p does for a view.
func (k *picker) mark(p *pred) error {
	if p.fact != nil {
		for _, run := range k.types {
			if p.fact(run.name) {
				for row := run.start; row < run.start+run.n; row++ {
					k.hit[row] = true
				}
			}
		}
	}
	if p.text != nil {
		if err := k.markTexts(p); err != nil {
			return err
		}
	}
	if p.num != nil {
		for _, name := range p.field.nums {
			d := k.dir.get(colKey(name, false))
			if d == nil {
				continue
			}
			if _, err := k.starts(d); err != nil { // its list takes the same room as its numbers
				return err
			}
			nums, err := k.numbers(d)
			if err != nil {
				return err
			}
			if err := k.markPlaces(d, func(at int) bool { return nums[at] != 0 && p.num(nums[at]) }); err != nil {
				return err
			}
		}
	}
	return nil
}

func (k *picker) markTexts(p *pred) error {
	last := "" // dictionary that k.ok is about
	some := false
	for _, name := range p.field.text {
		d := k.dir.get(name)
		if d == nil {
			continue
		}
		if d.form&^formPredicted&^formShared&^formLed != formText {
			return errNotPicked
		}
		of := name
		if d.form&formShared != 0 {
			of = sharedDicts[name]
		}
		if last != of {
			dict, err := k.dictOf(d)
			if err != nil {
				return err
			}
			if some, err = k.match(p, dict); err != nil {
				return err
			}
			last = of
		}
		if !some {
			continue
		}
		if _, err := k.codesAndDict(d); err != nil {
			return err
		}
		if slices.ContainsFunc(k.codes, func(c uint32) bool { return int(c) >= len(k.ok) }) {
			return damaged("code")
		}
		if err := k.markPlaces(d, func(at int) bool { return k.ok[k.codes[at]] }); err != nil {
			return err
		}
	}
	return nil
}

// dictOf finds the dictionary of a text column, and passes over its codes.
func (k *picker) dictOf(d *dirEntry) ([]byte, error) {
	if d.form&formShared != 0 {
		return k.shared(d)
	}
	raw, err := k.unpack(d)
	if err != nil {
		return nil, err
	}
	if _, raw, err = readUvarint(raw, uint64(d.n)+2); err != nil { //nolint:gosec // a count
		return nil, err
	}
	lead, raw, err := d.lead(raw)
	if err != nil {
		return nil, err
	}
	return skipParts(raw, d.n, lead)
}

// match sets ok for the entries of a dictionary that pass p.
func (k *picker) match(p *pred, dict []byte) (some bool, err error) {
	n, src, err := readUvarint(dict, maxListValues)
	if err != nil {
		return false, err
	}
	k.ok = resized(k.ok, n+1)
	clear(k.ok)
	if n == 0 {
		return false, nil
	}
	if len(src) == 0 {
		return false, damaged("dictionary")
	}
	if src[0] != dictPlain {
		list, _, err := readDict(dict)
		if err != nil {
			return false, err
		}
		for i, s := range list {
			k.ok[i] = s != "" && p.text(s)
			some = some || k.ok[i]
		}
		return some, nil
	}
	if k.lens, src, err = readNumsInto(k.lens, src[1:], n); err != nil {
		return false, err
	}
	total := int64(0)
	for _, l := range k.lens {
		if l < 0 || l > int64(len(src))-total {
			return false, damaged("dictionary")
		}
		total += l
	}
	return k.matchTexts(p, src[:total]), nil
}

// matchTexts is match for the texts of a dictionary, whose lengths are lens. It
// looks for the hint in all of them at once.
func (k *picker) matchTexts(p *pred, text []byte) (some bool) {
	hinted := p.hint.text != nil && (!p.hint.folded || isFolded(text))
	next, at := 0, 0 // entry, and where it begins
	for next < len(k.lens) {
		if hinted {
			i := bytes.Index(text[at:], p.hint.text)
			if i < 0 {
				return some
			}
			for i += at; at+int(k.lens[next]) <= i; next++ {
				at += int(k.lens[next])
			}
		}
		s := text[at : at+int(k.lens[next])]
		next, at = next+1, at+len(s)
		if len(s) > 0 && p.text(unsafe.String(&s[0], len(s))) { //nolint:gosec // compared, and not kept
			k.ok[next] = true
			some = true
		}
	}
	return some
}

// isFolded reports whether a text has neither capitals nor what is beyond ASCII.
func isFolded(b []byte) bool {
	const ones = 0x0101010101010101
	for ; len(b) >= 8; b = b[8:] {
		x := binary.LittleEndian.Uint64(b)
		if x&(0x80*ones) != 0 || (x+(0x80-'A')*ones)&^(x+(0x80-'Z'-1)*ones)&(0x80*ones) != 0 {
			return false
		}
	}
	for _, c := range b {
		if c >= 0x80 || c >= 'A' && c <= 'Z' {
			return false
		}
	}
	return true
}

// markPlaces sets hit for the rows with a value at which ok holds.
func (k *picker) markPlaces(d *dirEntry, ok func(at int) bool) error {
	start, err := k.starts(d)
	if err != nil {
		return err
	}
	var parent *listOfRows
	if d.column.list > 0 {
		if parent, err = k.list(d.column.list); err != nil {
			return err
		}
	}
	for _, t := range d.cover {
		run := &k.types[t]
		if start[t] < 0 || k.led && !leads(run.name) {
			break
		}
		if parent == nil {
			for row := range run.n {
				if ok(start[t] + row) {
					k.hit[run.start+row] = true
				}
			}
			continue
		}
		p := parent.start[t]
		if p < 0 || p+run.n >= len(parent.sums) {
			return k.noRow()
		}
		for row := range run.n {
			lo, hi := parent.sums[p+row]-parent.sums[p], parent.sums[p+row+1]-parent.sums[p]
			for e := lo; e < hi; e++ {
				if ok(start[t] + int(e)) {
					k.hit[run.start+row] = true
					break
				}
			}
		}
	}
	return nil
}

// pickable reports whether a picker is the way to look for messages in a block:
// whatever is asked of texts, unless the block has been decoded already.
func (sn *snapshot) pickable(src *source, preds []*pred) bool {
	if src.recs() != nil || !slices.ContainsFunc(preds, func(p *pred) bool { return p.text != nil && p.num == nil && p.fact == nil }) {
		return false
	}
	var v *view
	if m := src.encoded(); m != nil {
		v = m.view
	} else {
		v = sn.s.cache.peek(src.part, src.head)
	}
	return v == nil || !v.hasDecoded(preds)
}

// hasDecoded reports whether v has what the text filters among preds are asked of.
func (v *view) hasDecoded(preds []*pred) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.dir == nil || v.cols["queue_id"] == nil {
		return false
	}
	for _, p := range preds {
		if p.text == nil {
			continue
		}
		for _, name := range p.field.text {
			if v.dir.get(name) != nil && v.cols[name] == nil {
				return false
			}
		}
	}
	return true
}

// look lists the messages in a block with a fact that passes preds.
func (sn *snapshot) look(src *source, preds []*pred, f *filter, want func(position) bool, gather bool) ([]position, error) {
	if sn.pickable(src, preds) {
		list, err := sn.sifted(src, preds, f, want, gather)
		switch {
		case err == nil:
			return list, nil
		case !errors.Is(err, errNotPicked):
			sn.failed(src, err)
			return nil, nil
		}
	}
	return sn.candidates(src, preds, f)
}
