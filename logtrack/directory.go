package logtrack

import (
	"encoding/binary"
	"hash/crc32"
	"slices"
)

// directory says where the columns of a block are. It is small and quick to
// read, because a search reads those of thousands of blocks: names are those of
// the table of columns, and columns that this version does not know are left out.
type directory struct {
	list []dirEntry
	at   []int16 // by columnIDs: place in list and one, or 0

	covers []byte        // that list shares
	names  []*columnName // of the columns of the last one that was read into it, as far as there is room
}

// dirEntry is where a column of a block is, and which rows it has values for.
type dirEntry struct {
	name   string
	form   byte
	cover  []byte
	n      int
	rawLen int
	off    int
	packed int
	place  int // in the directory
	column *columnName
}

// columnIDs numbers the columns that facts may have, by colKey; columnNames
// has them by name.
var columnIDs, columnNames = func() (map[string]int, map[string]*columnName) {
	ids, names := map[string]int{}, map[string]*columnName{}
	add := func(name string, text bool) {
		key := colKey(name, text)
		if ids[key] == 0 {
			ids[key] = len(ids) + 1
		}
		if names[name] == nil {
			names[name] = &columnName{name: name}
		}
		if text {
			names[name].text = ids[key]
		} else {
			names[name].nums = ids[key]
		}
	}
	for _, name := range heads[1:] {
		add(name, true)
	}
	add("ts", false)
	add("ts/ns", false)
	for _, name := range sharedNames {
		add(name, true)
	}
	for _, p := range plans {
		for i := range p.leaves {
			for _, l := range append([]leaf{p.leaves[i]}, p.leaves[i].sub...) {
				add(l.name, l.isText())
				if l.kind == kindTime {
					add(l.name+"/ns", false)
				}
			}
		}
	}
	for name, c := range names {
		if list, ok := isChild(name); ok {
			c.list = ids[colKey(list, false)]
		}
		c.shared, c.like = ids[sharedDicts[name]], ids[likes[name]]
	}
	return ids, names
}()

// columnName is a name that columns may have, and their numbers: 0 where there
// is no such column.
type columnName struct {
	name       string
	text, nums int
	list       int // the counts of the list whose elements have it
	shared     int // the dictionary that it shares with others
	like       int // the column that it mostly says the same as
}

// get is the entry of a column by its colKey, or nil.
func (dir *directory) get(key string) *dirEntry {
	if dir == nil {
		return nil
	}
	return dir.byID(columnIDs[key])
}

// byID is the entry of a column by its number, or nil.
func (dir *directory) byID(id int) *dirEntry {
	if i := dir.at[id]; i > 0 {
		return &dir.list[i-1]
	}
	return nil
}

// guess is the i-th column's name: mostly that of the directory before.
func (dir *directory) guess(i int, name []byte) *columnName {
	if i >= len(dir.names) {
		return columnNames[string(name)]
	}
	if c := dir.names[i]; c == nil || c.name != string(name) {
		dir.names[i] = columnNames[string(name)]
	}
	return dir.names[i]
}

// readDir reads the directory at the start of a block's body.
func readDir(body []byte, types int) (*directory, error) {
	if err := checkBody(body); err != nil {
		return nil, err
	}
	dir := &directory{}
	if err := dir.read(body, types); err != nil {
		return nil, err
	}
	return dir, nil
}

// checkBody checks the checksum of a block's body.
func checkBody(body []byte) error {
	if len(body) < bodyStart || crc32.Checksum(body[bodyStart:], castagnoli) != binary.BigEndian.Uint32(body[1:]) {
		return damaged("body checksum")
	}
	return nil
}

// read reads the directory of a body that was checked into d, whose room it uses again.
func (dir *directory) read(body []byte, types int) error {
	if len(body) < bodyStart || body[0] < 1 || body[0] > bodyVersion {
		return damaged("body version")
	}
	n, src, err := readUvarint(body[bodyStart:], 4096)
	if err != nil {
		return err
	}
	dir.list, dir.at = slices.Grow(dir.list[:0], n), resized(dir.at, len(columnIDs)+1)
	clear(dir.at)
	covers := dir.covers[:0]
	if covers == nil {
		covers = make([]byte, 0, 512)
	}
	off := 0
	for i := range n {
		var d dirEntry
		var name, cover []byte
		if name, src, err = readOctets(src); err != nil {
			return err
		}
		if len(src) == 0 {
			return damaged("directory")
		}
		d.form, src = src[0], src[1:]
		if cover, src, err = readOctets(src); err != nil {
			return err
		}
		for k, t := range cover {
			if int(t) >= types || k > 0 && t <= cover[k-1] {
				return damaged("directory")
			}
		}
		covers = append(covers, cover...)
		d.cover = covers[len(covers)-len(cover) : len(covers) : len(covers)]
		if d.n, src, err = readUvarint(src, maxListValues); err != nil {
			return err
		}
		if d.rawLen, src, err = readUvarint(src, maxColumn); err != nil {
			return err
		}
		if d.packed, src, err = readUvarint(src, maxColumn); err != nil {
			return err
		}
		kind := d.form & formKind
		if kind > formDict || kind > formEventIDs && d.form != kind || body[0] == 1 && (kind > formEventIDs || d.form&^(formKind|formByMessage) != 0) || body[0] == 2 && d.form&formLed != 0 {
			return damaged("form")
		}
		d.off = off
		off += d.packed
		known := dir.guess(i, name)
		if known == nil {
			continue
		}
		id := known.text
		if kind == formNums || kind == formTimes {
			id = known.nums
		}
		if id == 0 {
			continue
		}
		d.name, d.column, d.place = known.name, known, len(dir.list)
		dir.list = append(dir.list, d)
		dir.at[id] = int16(len(dir.list)) //nolint:gosec // at most 4096
	}
	start := len(body) - len(src)
	if start+off > len(body) {
		return damaged("directory")
	}
	for i := range dir.list {
		dir.list[i].off += start
	}
	dir.covers = covers
	return nil
}

// readOctets is readString without a copy.
func readOctets(src []byte) (octets, rest []byte, err error) {
	n, src, err := readUvarint(src, maxColumn)
	if err != nil || len(src) < n {
		return nil, nil, damaged("string")
	}
	return src[:n], src[n:], nil
}

// lead is how many of a column's values are of rows that lead, where it says so.
func (d *dirEntry) lead(raw []byte) (n int, rest []byte, err error) {
	if d.form&formLed == 0 {
		return 0, raw, nil
	}
	return readUvarint(raw, uint64(d.n)) //nolint:gosec // a count
}

// parts opens the numbers of a column, of which raw is left: those of the rows
// that lead, and the others.
func (d *dirEntry) parts(raw []byte) (first, rest packedNums, tail []byte, err error) {
	lead, raw, err := d.lead(raw)
	if err != nil {
		return first, rest, nil, err
	}
	if first, raw, err = openNums(raw, lead); err != nil {
		return first, rest, nil, err
	}
	rest, tail, err = openNums(raw, d.n-lead)
	return first, rest, tail, err
}

// entries is how many entries the dictionary of a text column has.
func (d *dirEntry) entries(raw []byte) (n int, rest []byte, err error) {
	limit := uint64(d.n) + 2 //nolint:gosec // a count; there are "" and likeMark too
	if d.form&formShared != 0 {
		limit = maxListValues
	}
	return readUvarint(raw, limit)
}
