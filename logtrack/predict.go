package logtrack

import (
	"errors"
	"maps"
	"math/bits"
	"slices"
)

// Most of what a fact says, an earlier fact about the same message or session
// has said. A predicted column stores what differs from that: rows are stored
// by type, so the fact before is one of another type mostly. rowKeys tell which
// rows belong together: the message's code, or behind those the session's.

// Lists show what became of messages, which their acceptance and their final
// facts tell. Rows of these lead: they are stored before all others, and what
// lists need of them depends on no other row, so that it is read alone and quickly.
var leadSets = map[string]readSet{"message_queued": readRow, "recipient_relayed": readFinal, "recipient_bounced": readFinal}

func leads(fact string) bool { return leadSets[fact] != 0 }

// errBeyondLead says that more than the rows that lead must be read.
var errBeyondLead = errors.New("not only rows that lead")

// ledColumns are the columns, by colKey, that lists need of a fact that leads.
var ledColumns = func() map[string]map[string]bool {
	m := map[string]map[string]bool{}
	for fact, set := range leadSets {
		m[fact] = map[string]bool{}
		for _, key := range planNames[fact].keys[set] {
			m[fact][key] = true
		}
	}
	return m
}()

// keysOf makes the keys of all rows from the codes of the two columns, whose
// values follow each other as covered. 0 stands for neither.
func keysOf(types []typeRun, rows, messages int, queue, session placed) (keys []uint32, n int) {
	keys = make([]uint32, rows)
	return keys, setKeys(keys, types, messages, queue, session)
}

// setKeys sets the keys, which are 0, and returns how many there may be.
func setKeys(keys []uint32, types []typeRun, messages int, queue, session placed) (n int) {
	n = messages
	session.each(types, func(row int, code uint32) {
		if code > 0 {
			keys[row] = uint32(messages) + code //nolint:gosec // both are counts of a block
			n = max(n, messages+int(code))
		}
	})
	queue.each(types, func(row int, code uint32) {
		if code > 0 {
			keys[row] = code
			n = max(n, int(code))
		}
	})
	return n + 1
}

// placed is codes with the types that have some.
type placed struct {
	cover []byte
	codes []uint32
}

func (p placed) each(types []typeRun, visit func(row int, code uint32)) {
	at := 0
	for _, t := range p.cover {
		run := &types[t]
		for i := range run.n {
			visit(run.start+i, p.codes[at])
			at++
		}
	}
}

// predictors says for each value of a column which earlier value is likely the
// same, or -1. sums, of a list's element column, are the elements before each
// value of the list's column, which begins for each type at first.
func predictors(types []typeRun, cover []byte, keys []uint32, n int, first []int, sums []int32) []int32 {
	return predictorsInto(make([]int32, 0, len(keys)), make([]stretch, n), types, cover, keys, first, sums)
}

// stretch is some values that follow each other.
type stretch struct{ at, n int32 }

// predictorsInto is predictors with room for the answer, and for a stretch of each key.
func predictorsInto(prev []int32, last []stretch, types []typeRun, cover []byte, keys []uint32, first []int, sums []int32) []int32 {
	for _, t := range cover {
		run := &types[t]
		for row := range run.n {
			size := int32(1)
			if sums != nil {
				p := first[t] + row
				size = sums[p+1] - sums[p]
			}
			key := keys[run.start+row]
			old := last[key]
			if key > 0 && size > 0 {
				last[key] = stretch{int32(len(prev)), size} //nolint:gosec // bounded by the elements of a block
			}
			for i := range size {
				if i < old.n {
					prev = append(prev, old.at+i)
				} else {
					prev = append(prev, -1)
				}
			}
		}
	}
	return prev
}

// appendPredictedCodes writes 0 for a code that is the one predicted (without
// a prediction: the first that was not there yet), and others plus one. The
// first ones, lead of them, are not predicted and a part of their own.
func appendPredictedCodes(dst []byte, codes []uint32, lead int, prev []int32, scratch []int64) ([]byte, []int64) {
	scratch = scratch[:0]
	next := uint32(1)
	for i, c := range codes {
		want := next
		if i >= lead && prev[i] >= 0 {
			want = codes[prev[i]]
		}
		if c == want {
			scratch = append(scratch, 0)
		} else {
			scratch = append(scratch, int64(c)+1)
		}
		next = max(next, c+1)
	}
	return appendParts(dst, scratch, lead), scratch
}

// readPredictedCodes reads what appendPredictedCodes wrote.
func readPredictedCodes(src []byte, lead int, prev []int32, entries int) (codes []uint32, rest []byte, err error) {
	nums, rest, err := readParts(nil, src, len(prev), lead)
	if err != nil {
		return nil, nil, err
	}
	codes = make([]uint32, len(prev))
	return codes, rest, predictedCodes(codes, nums, lead, prev, entries)
}

// predictedCodes makes codes of what is stored for them.
func predictedCodes(codes []uint32, nums []int64, lead int, prev []int32, entries int) error {
	next := uint32(1)
	for i, n := range nums {
		var c uint32
		switch {
		case n != 0:
			if n < 0 || n > int64(entries) {
				return damaged("code")
			}
			c = uint32(n - 1) //nolint:gosec // bounded by entries
		case i >= lead && prev[i] >= 0:
			c = codes[prev[i]]
		default:
			if c = next; int(c) >= entries {
				return damaged("code")
			}
		}
		codes[i] = c
		next = max(next, c+1)
	}
	return nil
}

func zigzag(n int64) int64   { return n<<1 ^ n>>63 }
func unzigzag(n int64) int64 { return int64(uint64(n)>>1) ^ -(n & 1) } //nolint:gosec // modular

func bitsOf(n int64) int { return bits.Len64(uint64(n)) } //nolint:gosec // modular

// predictedNums takes from each number but the first ones, lead of them, the
// one predicted; worth is false when that hardly makes them smaller.
func predictedNums(nums []int64, lead int, prev []int32, scratch []int64) (diff []int64, worth bool) {
	diff = append(scratch[:0], nums[:lead]...)
	lo := slices.Min(nums)
	plain, less := 0, 0
	for i := lead; i < len(nums); i++ {
		n := nums[i]
		d := n
		if p := prev[i]; p >= 0 {
			d -= nums[p]
		}
		d = zigzag(d)
		diff = append(diff, d)
		plain += bitsOf(n - lo)
		less += bitsOf(d)
	}
	return diff, less < plain*4/5
}

// unpredictNums puts back what predictedNums took, in place.
func unpredictNums(diff []int64, lead int, prev []int32) {
	for i := lead; i < len(diff); i++ {
		d := unzigzag(diff[i])
		if p := prev[i]; p >= 0 {
			d += diff[p]
		}
		diff[i] = d
	}
}

// neighbours stands for no earlier type in a column of times.
const neighbours = 0xff

// distances fills out, and tells about how many bits it takes.
func distances(out, ts []int64, keys []uint32, ref []int64, before int64) (cost int) {
	for i, t := range ts {
		base := before
		if ref != nil && ref[keys[i]] != 0 {
			base = ref[keys[i]]
		}
		out[i] = zigzag(t - base)
		cost += bitsOf(out[i])
		before = t
	}
	return cost
}

// readTimes reads what appendTimes wrote.
func readTimes(src []byte, types []typeRun, cover []byte, total int, keys []uint32, n int) ([]int64, error) {
	var room timesScratch
	return room.read(nil, src, types, cover, total, keys, n)
}

// timesScratch is room that reading times needs.
type timesScratch struct {
	diff, by []int64
	start    [256]int32 // of each type in what is read, and one
}

// read is readTimes with room for them. Without keys it reads those that are
// predicted by neighbours only.
func (s *timesScratch) read(room []int64, src []byte, types []typeRun, cover []byte, total int, keys []uint32, n int) ([]int64, error) {
	ts := room[:0]
	base0, src, err := readVarint(src)
	if err != nil {
		return nil, err
	}
	ts = slices.Grow(ts, total)
	clear(s.start[:])
	for _, t := range cover {
		if len(src) == 0 {
			return nil, damaged("times")
		}
		ref := src[0]
		run := &types[t]
		if s.diff, src, err = readNumsInto(s.diff, src[1:], run.n); err != nil {
			return nil, err
		}
		var rowKeys []uint32
		var by []int64
		if ref != neighbours {
			if keys == nil {
				return nil, errBeyondLead
			}
			rowKeys = keys[run.start : run.start+run.n]
			at := int(s.start[ref]) - 1
			if at < 0 {
				return nil, damaged("times")
			}
			r := &types[ref]
			s.by = resized(s.by, n)
			clear(s.by)
			by = s.by
			for i, k := range keys[r.start : r.start+r.n] {
				if k > 0 {
					by[k] = ts[at+i]
				}
			}
		}
		s.start[t] = int32(len(ts) + 1) //nolint:gosec // bounded by the rows of a block
		before := base0
		for i, d := range s.diff {
			base := before
			if by != nil && by[rowKeys[i]] != 0 {
				base = by[rowKeys[i]]
			}
			before = base + unzigzag(d)
			ts = append(ts, before)
		}
	}
	if len(ts) != total {
		return nil, damaged("column length")
	}
	return ts, nil
}

// likeMark stands in a dictionary for the value of another column in the row.
const likeMark = "\x00"

// likes are columns that mostly say what another one of the same row says.
var likes = map[string]string{"header_from": "mail_from"}

// sharedDicts names the dictionary that columns share because they say the same things.
var sharedDicts = map[string]string{
	"recipient": "recipient/dict", "recipients.address": "recipient/dict",
	"reply": "reply/dict", "recipients.reply": "reply/dict",
	"enhanced": "enhanced/dict", "recipients.enhanced": "enhanced/dict",
	"class": "class/dict", "recipients.class": "class/dict",
}

// sharedNames are the names of the shared dictionaries, in order.
var sharedNames = slices.Compact(slices.Sorted(maps.Values(sharedDicts)))
