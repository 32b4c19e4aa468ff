package logtrack

import (
	"encoding/binary"
	"slices"
	"sync"
)

// typeRun is a stretch of rows of one type of fact. Rows are stored by type,
// so that a column needs room only where it has something to say.
type typeRun struct {
	name  string
	start int
	n     int
}

// packedTypes are the runs of a block as memory keeps them, because a busy day
// has a hundred thousand blocks with ten runs each: by run the number of its
// name, and where it ends. It begins where the one before ends.
type packedTypes []uint32

const (
	endBits     = 17 // up to maxBlockRows
	mostFactNos = 1 << (32 - endBits)
)

// packType packs one run.
func packType(fact, end int) uint32 {
	return uint32(fact)<<endBits | uint32(end) //nolint:gosec // below mostFactNos; at most maxBlockRows
}

// packTypes packs the runs of a block, whose facts are of this version.
func packTypes(runs []typeRun) packedTypes {
	p := make(packedTypes, len(runs)) // no larger: it stays in memory
	for i, r := range runs {
		p[i] = packType(int(planNames[r.name].place), r.start+r.n)
	}
	return p
}

// appendTo appends the runs to dst.
func (p packedTypes) appendTo(dst []typeRun) []typeRun {
	start := 0
	for _, x := range p {
		end := int(x & (1<<endBits - 1))
		dst = append(dst, typeRun{name: factName(x >> endBits), start: start, n: end - start})
		start = end
	}
	return dst
}

// unpack gives the runs in room of their own.
func (p packedTypes) unpack() []typeRun { return p.appendTo(make([]typeRun, 0, len(p))) }

// has reports whether is holds for the name of a run.
func (p packedTypes) has(is func(fact string) bool) bool {
	return slices.ContainsFunc(p, func(x uint32) bool { return is(factName(x >> endBits)) })
}

// newerFacts are the types of facts that blocks of newer versions have, which have
// numbers beyond those of journalTypes, in the order in which they were met.
var newerFacts = struct {
	sync.RWMutex
	names []string
	by    map[string]int
}{by: map[string]int{}}

// factName is the type of fact with a number of factNo.
func factName(no uint32) string {
	if int(no) < len(journalTypes) {
		return journalTypes[no].name
	}
	newerFacts.RLock()
	defer newerFacts.RUnlock()
	return newerFacts.names[int(no)-len(journalTypes)]
}

// factNo is the number of a type of fact as long as the process runs: its place in
// journalTypes, or one that it gets now. The error says that there are too many.
func factNo(name []byte) (int, error) {
	if p := planNames[string(name)]; p != nil {
		return int(p.place), nil
	}
	f := &newerFacts
	f.Lock()
	defer f.Unlock()
	no, ok := f.by[string(name)]
	if !ok {
		if no = len(journalTypes) + len(f.names); no == mostFactNos {
			return 0, damaged("too many types of facts")
		}
		f.names, f.by[string(name)] = append(f.names, string(name)), no
	}
	return no, nil
}

// append writes the runs as a header has them: names and numbers of rows.
func (p packedTypes) append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(p)))
	start := uint32(0)
	for _, x := range p {
		end := x & (1<<endBits - 1)
		dst = appendString(dst, factName(x>>endBits))
		dst = binary.AppendUvarint(dst, uint64(end-start))
		start = end
	}
	return dst
}

// readTypes reads what packedTypes.append wrote, for a block of so many rows.
func readTypes(src []byte, rows int) (packedTypes, []byte, error) {
	n, src, err := readUvarint(src, 255)
	if err != nil {
		return nil, nil, err
	}
	runs := make(packedTypes, 0, n)
	end := 0
	for range n {
		var size, more, no int
		if size, src, err = readUvarint(src, maxColumn); err != nil || len(src) < size {
			return nil, nil, damaged("string")
		}
		if no, err = factNo(src[:size]); err != nil {
			return nil, nil, err
		}
		if more, src, err = readUvarint(src[size:], uint64(rows-end)); err != nil { //nolint:gosec // end is at most rows
			return nil, nil, err
		}
		end += more
		runs = append(runs, packType(no, end))
	}
	if end != rows {
		return nil, nil, damaged("rows")
	}
	return runs, src, nil
}
