package logtrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"waybill/relay/reuse"
)

// Bounds on what a stored block may claim, so that damage cannot make us allocate without end.
const (
	maxBlockRows  = 1 << 16
	maxColumn     = 64 << 20 // octets of one column before compression
	maxListValues = 1 << 22
)

// maxElements is how many elements the lists of a block of so many octets may
// have. Elements that are alike in all take no room, so that a damaged block could
// claim millions; but each one of a real list takes an octet or two, packed, for
// its address or its time.
func maxElements(octets int) int64 { return min(maxListValues, 1<<16+64*int64(octets)) }

var errDamaged = errors.New("damaged block")

func damaged(what string) error { return fmt.Errorf("%w: %s", errDamaged, what) }

// column is one decoded column. Text columns have dict (entry 0 is always "")
// and codes, others nums.
type column struct {
	dict  []string
	codes []uint32
	nums  []int64
}

func (c *column) size() int64 {
	n := len(c.codes)*4 + len(c.nums)*8 + len(c.dict)*16
	for _, s := range c.dict {
		n += len(s)
	}
	return int64(n)
}

// appendNums writes nums in the smallest of: offsets from the least value, or
// offsets between neighbours; each octet of their width on a plane of its own,
// which is what a general compressor likes best.
func appendNums(dst []byte, nums []int64) []byte {
	if len(nums) == 0 {
		return dst
	}
	lo, hi, dlo, dhi := spans(nums)
	w := width(uint64(hi) - uint64(lo)) //nolint:gosec // modular
	if len(nums) > 1 {
		if dw := width(uint64(dhi) - uint64(dlo)); dw < w { //nolint:gosec // modular
			dst = append(dst, byte(dw)|0x80) //nolint:gosec // at most 8
			dst = binary.AppendVarint(dst, nums[0])
			dst = binary.AppendVarint(dst, dlo)
			for p := range dw {
				var plane []byte
				dst, plane = more(dst, len(nums)-1)
				before := nums[0]
				for i, v := range nums[1:] {
					plane[i] = byte(uint64(v-before-dlo) >> (8 * p)) //nolint:gosec // modular
					before = v
				}
			}
			return dst
		}
	}
	dst = append(dst, byte(w)) //nolint:gosec // at most 8
	dst = binary.AppendVarint(dst, lo)
	for p := range w {
		var plane []byte
		dst, plane = more(dst, len(nums))
		for i, v := range nums {
			plane[i] = byte(uint64(v-lo) >> (8 * p)) //nolint:gosec // modular
		}
	}
	return dst
}

// spans are the least and the greatest number, and those of the distances of
// neighbours, which wrap, and wrap back.
func spans(nums []int64) (lo, hi, dlo, dhi int64) {
	lo, hi, dlo, dhi = nums[0], nums[0], math.MaxInt64, math.MinInt64
	before := nums[0]
	for _, v := range nums[1:] {
		d := v - before
		lo, hi, dlo, dhi = min(lo, v), max(hi, v), min(dlo, d), max(dhi, d)
		before = v
	}
	return lo, hi, dlo, dhi
}

// more makes dst n octets longer, and gives these.
func more(dst []byte, n int) (longer, last []byte) {
	at := len(dst)
	dst = slices.Grow(dst, n)[:at+n]
	return dst, dst[at:]
}

func width(span uint64) int {
	w := 0
	for ; span > 0; span >>= 8 {
		w++
	}
	return w
}

// readNums reads n numbers that appendNums wrote.
func readNums(src []byte, n int) (nums []int64, rest []byte, err error) {
	return readNumsInto(nil, src, n)
}

// readNumsInto is readNums with room for what is read.
func readNumsInto(room []int64, src []byte, n int) (nums []int64, rest []byte, err error) {
	if n == 0 {
		return room[:0], src, nil
	}
	if len(src) == 0 {
		return nil, nil, damaged("numbers")
	}
	w, delta := int(src[0]&0x7f), src[0]&0x80 != 0
	src = src[1:]
	var first int64
	count := n
	if delta {
		if first, src, err = readVarint(src); err != nil {
			return nil, nil, err
		}
		count--
	}
	base, src, err := readVarint(src)
	if err != nil {
		return nil, nil, err
	}
	if w > 8 || len(src) < w*count {
		return nil, nil, damaged("numbers")
	}
	nums = resized(room, n)
	vals := nums[n-count:]
	if w == 0 {
		for i := range vals {
			vals[i] = base
		}
	} else {
		for i, b := range src[:count] {
			vals[i] = base + int64(b)
		}
	}
	for p := 1; p < w; p++ { // a sum is as good as an or: no two planes share a bit
		plane := src[p*count : (p+1)*count]
		for i, b := range plane {
			vals[i] += int64(uint64(b) << (8 * p)) //nolint:gosec // modular
		}
	}
	src = src[w*count:]
	if delta {
		nums[0] = first
		for i := 1; i < n; i++ {
			nums[i] += nums[i-1]
		}
	}
	return nums, src, nil
}

// packedNums are numbers as appendNums wrote them.
type packedNums struct {
	n, width    int
	neighbours  bool // each is stored as what it is more than the one before
	first, base int64
	planes      []byte
}

// openNums is n numbers that are not read yet, and what follows them.
func openNums(src []byte, n int) (p packedNums, rest []byte, err error) {
	if n == 0 {
		return packedNums{}, src, nil
	}
	if len(src) == 0 {
		return p, nil, damaged("numbers")
	}
	p = packedNums{n: n, width: int(src[0] & 0x7f), neighbours: src[0]&0x80 != 0}
	src = src[1:]
	count := n
	if p.neighbours {
		if p.first, src, err = readVarint(src); err != nil {
			return p, nil, err
		}
		count--
	}
	if p.base, src, err = readVarint(src); err != nil {
		return p, nil, err
	}
	if p.width > 8 || len(src) < p.width*count {
		return p, nil, damaged("numbers")
	}
	p.planes = src[:p.width*count]
	return p, src[p.width*count:], nil
}

// at is a number whose place is known to be there. Those that are stored by
// neighbours are read from the first on: whoever needs many reads them all.
func (p *packedNums) at(i int) int64 {
	if p.neighbours {
		return p.first + p.sum(i)
	}
	v := p.base
	for k := range p.width {
		v += int64(uint64(p.planes[k*p.n+i]) << (8 * k)) //nolint:gosec // modular
	}
	return v
}

// head reads the first i numbers, with room for them.
func (p *packedNums) head(room []int64, i int) []int64 {
	nums := resized(room, i)
	if i == 0 {
		return nums
	}
	count, vals := p.n, nums
	if p.neighbours {
		count--
		nums[0], vals = p.first, nums[1:]
	}
	for k := range vals {
		vals[k] = p.base
	}
	for plane := range p.width {
		for k, b := range p.planes[plane*count:][:len(vals)] {
			vals[k] += int64(uint64(b) << (8 * plane)) //nolint:gosec // modular
		}
	}
	if p.neighbours {
		for k := 1; k < i; k++ {
			nums[k] += nums[k-1]
		}
	}
	return nums
}

// sum adds up the first numbers of those stored, to modulo 2^64.
func (p *packedNums) sum(i int) int64 {
	count := p.n
	if p.neighbours {
		count--
	}
	total := int64(i) * p.base
	for k := range p.width {
		plane := uint64(0)
		for _, b := range p.planes[k*count : k*count+i] {
			plane += uint64(b)
		}
		total += int64(plane << (8 * k)) //nolint:gosec // modular
	}
	return total
}

// total adds up the first i numbers.
func (p *packedNums) total(i int) int64 {
	if !p.neighbours {
		return p.sum(i)
	}
	total, v := int64(0), p.first
	for k := range i {
		total += v
		v += p.base
		for plane := range p.width {
			if at := plane*(p.n-1) + k; k < p.n-1 {
				v += int64(uint64(p.planes[at]) << (8 * plane)) //nolint:gosec // modular
			}
		}
	}
	return total
}

// appendParts writes numbers in two parts, of which the first can be read alone.
func appendParts(dst []byte, nums []int64, lead int) []byte {
	return appendNums(appendNums(dst, nums[:lead]), nums[lead:])
}

// readParts reads what appendParts wrote.
func readParts(room []int64, src []byte, n, lead int) (nums []int64, rest []byte, err error) {
	nums = resized(room, n)
	if _, src, err = readNumsInto(nums[:0:lead], src, lead); err == nil {
		_, src, err = readNumsInto(nums[lead:lead], src, n-lead)
	}
	return nums, src, err
}

// skipParts passes over what appendParts wrote.
func skipParts(src []byte, n, lead int) (rest []byte, err error) {
	if src, err = skipNums(src, lead); err == nil {
		src, err = skipNums(src, n-lead)
	}
	return src, err
}

// skipNums passes over n numbers that appendNums wrote.
func skipNums(src []byte, n int) (rest []byte, err error) {
	if n == 0 {
		return src, nil
	}
	if len(src) == 0 {
		return nil, damaged("numbers")
	}
	w := int(src[0] & 0x7f)
	if src[0]&0x80 != 0 {
		n--
		if _, src, err = readVarint(src[1:]); err != nil {
			return nil, err
		}
	} else {
		src = src[1:]
	}
	if _, src, err = readVarint(src); err != nil {
		return nil, err
	}
	if w > 8 || len(src) < w*n {
		return nil, damaged("numbers")
	}
	return src[w*n:], nil
}

func readVarint(src []byte) (int64, []byte, error) {
	v, n := binary.Varint(src)
	if n <= 0 {
		return 0, nil, damaged("varint")
	}
	return v, src[n:], nil
}

func readUvarint(src []byte, limit uint64) (int, []byte, error) {
	v, n := binary.Uvarint(src)
	if n <= 0 || v > limit {
		return 0, nil, damaged("count")
	}
	return int(v), src[n:], nil //nolint:gosec // bounded by limit
}

func readString(src []byte) (string, []byte, error) {
	n, src, err := readUvarint(src, maxColumn)
	if err != nil || len(src) < n {
		return "", nil, damaged("string")
	}
	return string(src[:n]), src[n:], nil
}

func appendString(dst []byte, s string) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

// Forms of a dictionary.
const (
	dictPlain byte = iota
	dictULID
	dictUUID
)

func readDict(src []byte) ([]string, []byte, error) {
	n, src, err := readUvarint(src, maxListValues)
	if err != nil {
		return nil, nil, err
	}
	if n == 0 {
		return []string{""}, src, nil
	}
	if len(src) == 0 {
		return nil, nil, damaged("dictionary")
	}
	form := src[0]
	lens, src, err := readNums(src[1:], n) // lengths, or times
	if err != nil {
		return nil, nil, err
	}
	dict := make([]string, 1, n+1)
	if form == dictPlain {
		total := int64(0)
		for _, l := range lens {
			if l < 0 || l > int64(len(src))-total {
				return nil, nil, damaged("dictionary")
			}
			total += l
		}
		all := string(src[:total])
		for _, l := range lens {
			dict = append(dict, all[:l])
			all = all[l:]
		}
		return dict, src[total:], nil
	}
	if form > dictUUID || len(src) < 10*n {
		return nil, nil, damaged("dictionary")
	}
	text := make([]byte, 0, 36*n)
	size := 26
	if form == dictUUID {
		size = 36
	}
	for i, ms := range lens {
		var b [16]byte
		binary.BigEndian.PutUint64(b[:8], uint64(ms)<<16) //nolint:gosec // modular
		copy(b[6:], src[10*i:])
		if form == dictUUID {
			text = appendUUID(text, b)
		} else {
			text = appendULID(text, b)
		}
	}
	all := string(text)
	for i := range n {
		dict = append(dict, all[i*size:(i+1)*size])
	}
	return dict, src[10*n:], nil
}

// appendConstant is appendNums of one or more that are all n.
func appendConstant(dst []byte, n int64) []byte { return binary.AppendVarint(append(dst, 0), n) }

// appendCodes writes codes as numbers; scratch is room for them.
func appendCodes(dst []byte, codes []uint32, scratch []int64) ([]byte, []int64) {
	scratch = resized(scratch, len(codes))
	for i, c := range codes {
		scratch[i] = int64(c)
	}
	return appendNums(dst, scratch), scratch
}

func readCodes(src []byte, n, lead, entries int) ([]uint32, []byte, error) {
	nums, rest, err := readParts(nil, src, n, lead)
	if err != nil {
		return nil, nil, err
	}
	codes := make([]uint32, n)
	for i, v := range nums {
		if v < 0 || v >= int64(entries) {
			return nil, nil, damaged("code")
		}
		codes[i] = uint32(v) //nolint:gosec // bounded by entries
	}
	return codes, rest, nil
}

func rowMS(packed int64) int64 {
	if packed > 0 {
		packed--
	}
	return packed / 1000
}

func sortedMS[V any](m map[int64]V) []int64 {
	ms := make([]int64, 0, len(m))
	for k := range m {
		ms = append(ms, k)
	}
	slices.Sort(ms)
	return ms
}

func readEventIDs(src []byte, ts []int64) (*column, error) {
	n := len(ts)
	off, src, err := readNums(src, n)
	if err != nil {
		return nil, err
	}
	low, src, err := readNums(src, n)
	if err != nil {
		return nil, err
	}
	bases := map[int64]int{}
	for i := range off {
		off[i] += rowMS(ts[i])
		bases[off[i]] = 0
	}
	if len(src) < 10*len(bases) {
		return nil, damaged("event ids")
	}
	for i, ms := range sortedMS(bases) {
		bases[ms] = 10 * i
	}
	text := make([]byte, 0, 26*n)
	for i, ms := range off {
		var b [16]byte
		binary.BigEndian.PutUint64(b[:8], uint64(ms)<<16) //nolint:gosec // modular
		copy(b[6:], src[bases[ms]:][:10])
		binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+uint64(low[i])) //nolint:gosec // modular
		text = appendULID(text, b)
	}
	all := string(text)
	c := &column{dict: make([]string, n+1), codes: make([]uint32, n)}
	for i := range n {
		c.dict[i+1], c.codes[i] = all[26*i:26*i+26], uint32(i+1)
	}
	return c, nil
}

// The codecs are shared: EncodeAll and DecodeAll may be called at once. Who encodes
// waits for others: one encoder takes more than a megabyte, and blocks are
// mostly made one after the other.
var (
	encoder = must(zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true)))
	decoder = must(zstd.NewReader(nil, zstd.WithDecoderConcurrency(4), zstd.WithDecoderMaxMemory(maxColumn), zstd.WithDecoderLowmem(true)))
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // only wrong options
	}
	return v
}

// How octets are packed: the first one says it.
const (
	packedRaw byte = iota
	packedZstd
	packedS2
)

// appendPacked compresses raw when that pays: small makes it smaller, and four
// times slower to read and to write.
func appendPacked(dst, raw []byte, small bool) []byte {
	at := len(dst)
	switch {
	case len(raw) < 48:
	case small:
		dst = encoder.EncodeAll(raw, append(dst, packedZstd))
	default:
		dst = slices.Grow(append(dst, packedS2), s2.MaxEncodedLen(len(raw)))
		dst = dst[:at+1+len(s2.EncodeBetter(dst[at+1:cap(dst)], raw))]
	}
	if n := len(dst) - at; n > 0 && n <= len(raw) {
		return dst
	}
	return append(append(dst[:at], packedRaw), raw...)
}

// rawPool has room for columns that are being decoded. What they are decoded
// to keeps nothing of it.
var rawPool = sync.Pool{New: func() any { return new([]byte) }}

func putRaw(scratch *[]byte) {
	reuse.Spoil(*scratch)
	rawPool.Put(scratch)
}

// unpack is the column that appendPacked wrote; scratch is room for it.
func unpack(src []byte, rawLen int, scratch *[]byte) ([]byte, error) {
	if cap(*scratch) < rawLen {
		*scratch = make([]byte, 0, min(rawLen, 1<<20))
	}
	raw, err := appendUnpacked((*scratch)[:0], src, rawLen)
	if err != nil {
		return nil, err
	}
	if len(src) > 0 && src[0] != packedRaw && cap(raw) <= 1<<20 {
		*scratch = raw
	}
	return raw, nil
}

// appendUnpacked appends the column that appendPacked wrote to dst, unless dst
// is empty and it lies in src as it is.
func appendUnpacked(dst, src []byte, rawLen int) ([]byte, error) {
	if len(src) == 0 || rawLen > maxColumn {
		return nil, damaged("column")
	}
	switch form, src := src[0], src[1:]; form {
	case packedRaw:
		if len(dst) == 0 {
			return src, nil
		}
		return append(dst, src...), nil
	case packedZstd:
		out, err := decoder.DecodeAll(src, dst)
		if err != nil {
			return nil, errors.Join(errDamaged, err)
		}
		return out, nil
	case packedS2:
		if n, err := s2.DecodedLen(src); err != nil || n != rawLen {
			return nil, damaged("column")
		}
		at := len(dst)
		dst = slices.Grow(dst, rawLen)
		if _, err := s2.Decode(dst[at:at+rawLen], src); err != nil {
			return nil, errors.Join(errDamaged, err)
		}
		return dst[:at+rawLen], nil
	}
	return nil, damaged("column")
}

// packedDict is a dictionary as appendDict wrote it, of which single entries are read.
type packedDict struct {
	n    int // entries after entry 0, which is ""
	form byte
	nums packedNums // lengths, or times
	rest []byte
	ends []int64 // of plain entries, or times of others, when many are read
}

func openDict(src []byte) (d packedDict, err error) {
	if d.n, src, err = readUvarint(src, maxListValues); err != nil || d.n == 0 {
		return d, err
	}
	if len(src) == 0 {
		return d, damaged("dictionary")
	}
	d.form = src[0]
	d.nums, d.rest, err = openNums(src[1:], d.n)
	if err == nil && (d.form > dictUUID || d.form != dictPlain && len(d.rest) < 10*d.n) {
		err = damaged("dictionary")
	}
	return d, err
}

// locate finds where entries are, with room for that: it is worth it when many
// of them are read.
func (d *packedDict) locate(room []int64) ([]int64, error) {
	if d.n == 0 {
		return room, nil
	}
	d.ends = d.nums.head(room, d.n)
	if d.form != dictPlain {
		return d.ends, nil
	}
	at := int64(0)
	for i, l := range d.ends {
		if l < 0 || l > int64(len(d.rest))-at {
			return room, damaged("dictionary")
		}
		at += l
		d.ends[i] = at
	}
	return d.ends, nil
}

// place is where a plain entry begins, and its length.
func (d *packedDict) place(code int) (at, l int64) {
	switch {
	case d.ends == nil:
		return d.nums.total(code - 1), d.nums.at(code - 1)
	case code > 1:
		at = d.ends[code-2]
	}
	return at, d.ends[code-1] - at
}

// append appends an entry to dst.
func (d *packedDict) append(dst []byte, code int) ([]byte, error) {
	switch {
	case code == 0:
		return dst, nil
	case code < 0 || code > d.n:
		return nil, damaged("dictionary")
	case d.form == dictPlain:
		at, l := d.place(code)
		if at < 0 || l < 0 || at > int64(len(d.rest)) || l > int64(len(d.rest))-at {
			return nil, damaged("dictionary")
		}
		return append(dst, d.rest[at:at+l]...), nil
	}
	var ms int64
	if d.ends != nil {
		ms = d.ends[code-1]
	} else {
		ms = d.nums.at(code - 1)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(ms)<<16) //nolint:gosec // modular
	copy(b[6:], d.rest[10*(code-1):][:10])
	if d.form == dictUUID {
		return appendUUID(dst, b), nil
	}
	return appendULID(dst, b), nil
}

// readCodesInto reads codes that are not predicted, with room for them.
func readCodesInto(room []uint32, src []byte, n, entries int) (codes []uint32, rest []byte, err error) {
	p, rest, err := openNums(src, n)
	if err != nil {
		return nil, nil, err
	}
	if p.neighbours || p.width > 2 || p.base < 0 || p.base > maxListValues {
		list, rest, err := readCodes(src, n, 0, entries)
		return append(room[:0], list...), rest, err
	}
	codes = resized(room, n)
	base, most := uint32(p.base), uint32(0)
	switch p.width {
	case 0:
		for i := range codes {
			codes[i] = base
		}
		most = base
	case 1:
		for i, b := range p.planes {
			codes[i] = base + uint32(b)
			most = max(most, codes[i])
		}
	case 2:
		high := p.planes[n:]
		for i, b := range p.planes[:n] {
			codes[i] = base + uint32(b) + uint32(high[i])<<8
			most = max(most, codes[i])
		}
	}
	if n > 0 && int(most) >= entries {
		return nil, nil, damaged("code")
	}
	return codes, rest, nil
}
