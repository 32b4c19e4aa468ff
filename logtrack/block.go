package logtrack

import (
	"encoding/binary"
	"hash/crc32"
	"strings"
	"sync"
	"sync/atomic"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// Forms of a stored column.
const (
	formNums byte = iota
	formText
	formEventIDs
	formTimes // of the rows
	formDict  // a dictionary that columns share

	formLike      byte = 0x10 // likeMark stands for the value of another column
	formShared    byte = 0x20 // the dictionary is one of formDict
	formPredicted byte = 0x40 // what differs from an earlier row about the same message or session
	formByMessage byte = 0x80 // version 1: a value for each message of the block, then those of rows without a message
	formLed       byte = 0x80 // from version 3 on: the values of rows that lead come first, by themselves
	formKind      byte = 0x0f
)

// Versions of a stored block. Older bodies are read: text columns of version 1
// have the dictionary first, and no form above but formByMessage; version 2 has
// no formLed.
const (
	headerVersion = 1
	bodyVersion   = 3
)

// header is what stays in memory of a sealed block. A busy day has a hundred
// thousand of them, so that it takes 128 octets, which the allocator has a size for.
type header struct {
	stored       source // the block, for queries, once it is stored
	minTS, maxTS int64  // times of facts, microseconds
	minID, maxID int64  // times of event ids, milliseconds
	acceptance
	types   packedTypes
	small   map[string][]string // the values of those pruned columns that have few, or none; shared
	seq     uint32
	rows    uint32
	bytes   uint32 // of the stored body
	checked uint32 // 1 once the checksum of the stored body was right; atomic
}

// acceptance is the range of when messages were accepted.
type acceptance struct {
	minAcc, maxAcc int64 // milliseconds; only when hasMsg
	hasMsg         bool
}

// include makes room in the range for another one.
func (a *acceptance) include(b acceptance) {
	switch {
	case !b.hasMsg:
	case !a.hasMsg:
		*a = b
	default:
		a.minAcc, a.maxAcc = min(a.minAcc, b.minAcc), max(a.maxAcc, b.maxAcc)
	}
}

// mayHold reports whether a block can have facts about a message that was
// accepted then: it is cheaper to tell than to read a block that a collision
// of hashes has named.
func (a *acceptance) mayHold(accepted int64) bool {
	return a.hasMsg && accepted >= a.minAcc && accepted <= a.maxAcc
}

// sound checks the stored body, unless that was done since the partition was
// opened: a block does not change, and what happens to the disk later a scrub
// finds. Whoever reads a whole block checks it each time.
func (h *header) sound(body []byte) error {
	if atomic.LoadUint32(&h.checked) == 1 {
		return nil
	}
	err := checkBody(body)
	if err == nil {
		atomic.StoreUint32(&h.checked, 1)
	}
	return err
}

// encoded is a block ready to be stored.
type encoded struct {
	head  *header
	body  []byte
	posts []posting // sorted
	roll  *youngRollup
}

// ranging is what widening the ranges of a header needs to know of the facts before.
type ranging struct {
	some bool
	msg  mail.QueueID // of the fact before, with its acceptance
	acc  int64
}

// widen makes room in the ranges of h for r, whose event id has the time id.
func (x *ranging) widen(h *header, r *event.Record, id int64) {
	ts := r.Time.UnixMicro()
	if !x.some {
		h.minTS, h.maxTS, h.minID, h.maxID, x.some = ts, ts, id, id, true
	}
	h.minTS, h.maxTS = min(h.minTS, ts), max(h.maxTS, ts)
	h.minID, h.maxID = min(h.minID, id), max(h.maxID, id)
	if r.Message == "" {
		return
	}
	if x.msg != r.Message {
		x.msg, x.acc = r.Message, acceptMS(string(r.Message))
	}
	h.include(acceptance{x.acc, x.acc, true})
}

// bodyStart is where the directory of a body begins: behind version and checksum.
const bodyStart = 5

// sign writes version and checksum into the room for them.
func sign(body []byte) []byte {
	body[0] = bodyVersion
	binary.BigEndian.PutUint32(body[1:], crc32.Checksum(body[bodyStart:], castagnoli))
	return body
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// append writes the header as it is stored.
func (h *header) append(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, headerVersion)
	dst = binary.AppendUvarint(dst, uint64(h.rows))
	dst = binary.AppendUvarint(dst, uint64(h.bytes))
	for _, v := range [...]int64{h.minTS, h.maxTS, h.minID, h.maxID} {
		dst = binary.AppendVarint(dst, v)
	}
	if h.hasMsg {
		dst = append(dst, 1)
		dst = binary.AppendVarint(dst, h.minAcc)
		dst = binary.AppendVarint(dst, h.maxAcc)
	} else {
		dst = append(dst, 0)
	}
	dst = h.types.append(dst)
	dst = h.appendSmall(dst)
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[at:], castagnoli))
}

func (h *header) appendSmall(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(h.small)))
	for _, name := range pruned {
		vals, ok := h.small[name]
		if !ok {
			continue
		}
		dst = appendString(dst, name)
		dst = binary.AppendUvarint(dst, uint64(len(vals)))
		for _, v := range vals {
			dst = appendString(dst, v)
		}
	}
	return dst
}

// smalls are what headers have in small, by what appendSmall makes of it: a day of
// much mail has a hundred thousand blocks, most of which are alike in it.
var smalls = struct {
	sync.Mutex
	by map[string]map[string][]string
}{by: map[string]map[string][]string{}}

// maxSmalls is how many of them are known. Beyond, they begin anew. By taste.
const maxSmalls = 256

// share gives h the small that others have already, where one is alike.
func (h *header) share() {
	key := h.appendSmall(nil)
	smalls.Lock()
	defer smalls.Unlock()
	if known, ok := smalls.by[string(key)]; ok {
		h.small = known
		return
	}
	if len(smalls.by) == maxSmalls {
		clear(smalls.by)
	}
	smalls.by[string(key)] = h.small
}

// readHeader reads what header.append wrote. intern shares equal strings.
func readHeader(seq uint32, src []byte, intern func(string) string) (*header, error) {
	if len(src) < 5 || crc32.Checksum(src[:len(src)-4], castagnoli) != binary.BigEndian.Uint32(src[len(src)-4:]) {
		return nil, damaged("header checksum")
	}
	if src[0] != headerVersion {
		return nil, damaged("header version")
	}
	h := &header{seq: seq, small: map[string][]string{}}
	src = src[1 : len(src)-4]
	rows, src, err := readUvarint(src, maxBlockRows)
	if err != nil {
		return nil, err
	}
	size, src, err := readUvarint(src, 1<<31)
	if err != nil {
		return nil, err
	}
	h.rows, h.bytes = uint32(rows), uint32(size) //nolint:gosec // bounded
	for _, v := range [...]*int64{&h.minTS, &h.maxTS, &h.minID, &h.maxID} {
		if *v, src, err = readVarint(src); err != nil {
			return nil, err
		}
	}
	if len(src) == 0 {
		return nil, damaged("header")
	}
	h.hasMsg, src = src[0] == 1, src[1:]
	if h.hasMsg {
		for _, v := range [...]*int64{&h.minAcc, &h.maxAcc} {
			if *v, src, err = readVarint(src); err != nil {
				return nil, err
			}
		}
	}
	if h.types, src, err = readTypes(src, rows); err != nil {
		return nil, err
	}
	n, src, err := readUvarint(src, uint64(len(pruned)))
	if err != nil {
		return nil, err
	}
	for range n {
		var name string
		if name, src, err = readString(src); err != nil {
			return nil, err
		}
		var k int
		if k, src, err = readUvarint(src, maxPruned); err != nil {
			return nil, err
		}
		vals := make([]string, k)
		for i := range vals {
			if vals[i], src, err = readString(src); err != nil {
				return nil, err
			}
			vals[i] = intern(vals[i])
		}
		h.small[intern(name)] = vals
	}
	h.share()
	return h, nil
}

// isChild reports whether a column belongs to the elements of a list, and of which.
func isChild(name string) (list string, ok bool) {
	list, _, ok = strings.Cut(name, ".")
	return list, ok
}
