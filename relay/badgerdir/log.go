package badgerdir

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"

	"github.com/dgraph-io/badger/v4/y"
)

// The log of a memtable, as Badger writes it: a header of 20 octets, then
// entries. The entries of a transaction are followed by one that ends it. The
// file is made with its full size, so what was not written is zero.
//
//	+------+-----------+----------+-----------+-------------+-----+-------+-----------+
//	| meta | user meta | key len  | value len | expires     | key | value | CRC-32C   |
//	| 1    | 1         | uvarint  | uvarint   | uvarint     |     |       | 4, big    |
//	+------+-----------+----------+-----------+-------------+-----+-------+-----------+
const (
	logHeader  = 20
	metaTxn    = 1 << 6 // part of a transaction
	metaFinTxn = 1 << 7 // ends one
)

// logEntry is an entry at its place.
type logEntry struct {
	meta       byte
	key, value []byte
	size       int
}

func (e *logEntry) version() uint64 { return y.ParseTs(e.key) }

func (e *logEntry) entry(loose bool) Entry {
	return Entry{
		Key: bytes.Clone(y.ParseKey(e.key)), Value: bytes.Clone(e.value), Version: e.version(),
		Deleted: e.meta&deleted != 0, Loose: loose,
	}
}

// parseEntry reads the entry that b begins with.
func parseEntry(b []byte) (e logEntry, ok bool) {
	if len(b) < 2 {
		return e, false
	}
	at := 2
	var nums [3]uint64 // key length, value length, expiry
	for i := range nums {
		v, n := binary.Uvarint(b[at:])
		if n <= 0 {
			return e, false
		}
		nums[i] = v
		at += n
	}
	left := uint64(len(b) - at) //nolint:gosec // not negative
	if nums[0] <= 8 || nums[0] > 1<<16 || nums[1] > left || nums[0]+nums[1]+crc32.Size > left {
		return e, false
	}
	end := at + int(nums[0]+nums[1]) //nolint:gosec // below the length of b
	if crc32.Checksum(b[:end], y.CastagnoliCrcTable) != binary.BigEndian.Uint32(b[end:]) {
		return e, false
	}
	k := at + int(nums[0]) //nolint:gosec // below the length of b
	return logEntry{meta: b[0], key: b[at:k], value: b[k:end], size: end + crc32.Size}, true
}

// findEntry returns where the next whole entry begins, at from or later, or -1.
// Only entries without user meta and expiry are looked for.
func findEntry(b []byte, from int) int {
	for at := from; at+logHeader <= len(b); at++ {
		if b[at+1] != 0 || b[at+2] <= 8 || b[at]&0x30 != 0 {
			continue
		}
		if _, ok := parseEntry(b[at:]); ok {
			return at
		}
	}
	return -1
}

// prefix is the part of a log that Badger would replay.
type prefix struct {
	end  int    // behind the last whole transaction
	stop int    // behind the last whole entry
	last uint64 // version of the last whole transaction
}

// replay gives each the entries of whole transactions, up to the first octet
// that is not as it was written.
func replay(b []byte, each func(Entry)) prefix {
	p := prefix{end: min(logHeader, len(b))}
	p.stop = p.end
	var open []logEntry
	for {
		e, ok := parseEntry(b[p.stop:])
		if !ok {
			return p
		}
		switch {
		case e.meta&metaFinTxn != 0:
			ts, err := strconv.ParseUint(string(e.value), 10, 64)
			if err != nil || len(open) == 0 || open[0].version() != ts {
				return p
			}
			for i := range open {
				each(open[i].entry(false))
			}
			open = open[:0]
			p.last = ts
			p.end = p.stop + e.size
		case e.meta&metaTxn != 0:
			if len(open) > 0 && open[0].version() != e.version() {
				return p
			}
			open = append(open, e)
		case len(open) > 0:
			return p
		default:
			each(e.entry(false))
			p.last = e.version()
			p.end = p.stop + e.size
		}
		p.stop += e.size
	}
}

// checkLog says what is wrong with the log b, or nothing.
//
// A killed process leaves an unfinished transaction and zeros behind it. After a
// power cut the pages of the transaction under way, and only those, may be
// there or not. So whole entries of a second transaction behind the last whole
// one say that what was synced is broken.
func checkLog(b []byte, logSize int64, each func(Entry)) string {
	if key := b[:min(8, len(b))]; len(bytes.Trim(key, "\x00")) > 0 {
		return "has a wrong header"
	}
	p := replay(b, each)
	if int64(len(b)) < logSize && p.end != len(b) { // a larger one is of a larger memtable
		return fmt.Sprintf("is cut off: its last transaction goes on behind octet %d", len(b))
	}
	under := p.last + 1 // the transaction that may have been under way
	for at := p.end; ; {
		if at = findEntry(b, at); at < 0 {
			return ""
		}
		e, _ := parseEntry(b[at:])
		v := e.version()
		if p.last == 0 {
			p.last, under = v, v
		}
		if v != under {
			return fmt.Sprintf("wrong octets from %d on, and later transactions behind them", p.stop)
		}
		at += e.size
	}
}

// readLog gives each all whole entries, also behind wrong octets, and says what
// was skipped.
func readLog(b []byte, each func(Entry)) string {
	at := replay(b, each).end
	skipped, entries := 0, 0
	for {
		next := findEntry(b, at)
		if next < 0 {
			break
		}
		skipped += next - at
		e, _ := parseEntry(b[next:])
		if e.meta&metaFinTxn == 0 {
			each(e.entry(true))
			entries++
		}
		at = next + e.size
	}
	rest := len(bytes.TrimRight(b[min(at, len(b)):], "\x00"))
	if skipped+rest == 0 {
		return ""
	}
	return fmt.Sprintf("%d octets cannot be read; %d entries around them can", skipped+rest, entries)
}
