package mail

import (
	"crypto/rand"
	"encoding/binary"
	"strings"
	"sync"
	"time"
)

// QueueID names one message in one queue: a ULID, 26 characters, sortable by
// the time of acceptance, unique over nodes and time.
type QueueID string

// crockford is the alphabet of ULIDs: no I, L, O or U.
const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

var ids struct {
	sync.Mutex
	ms     uint64
	hi     uint16
	lo     uint64
	source [1024]byte
	next   int
}

// NewID returns a new ULID for time t. Identifiers made in one process within
// one millisecond rise, as the ULID specification's monotonic factory does.
func NewID(t time.Time) string {
	ms := uint64(max(t.UnixMilli(), 0))
	ids.Lock()
	if ms <= ids.ms && ids.ms-ms < 10_000 { // same millisecond, or a small step back of the clock
		ms = ids.ms
		ids.lo++
		if ids.lo == 0 {
			ids.hi++
		}
	} else {
		if ids.next == 0 {
			_, _ = rand.Read(ids.source[:]) // never fails (Go 1.24)
		}
		b := ids.source[ids.next : ids.next+16]
		ids.next = (ids.next + 16) % len(ids.source)
		ids.ms, ids.hi, ids.lo = ms, binary.BigEndian.Uint16(b)&0x7fff, binary.BigEndian.Uint64(b[8:])
	}
	hi, lo := ids.hi, ids.lo
	ids.Unlock()
	return formatID(ms, hi, lo)
}

// formatID writes 48 bits of time and the 80 of hi and lo.
func formatID(ms uint64, hi uint16, lo uint64) string {
	out := writeID(ms, hi, lo)
	return string(out[:])
}

func writeID(ms uint64, hi uint16, lo uint64) (out [26]byte) {
	for i := 9; i >= 0; i-- { // 48 bits of time
		out[i] = crockford[ms&31]
		ms >>= 5
	}
	for i := 25; i >= 10; i-- { // 80 random bits, from hi:lo
		out[i] = crockford[lo&31]
		lo = lo>>5 | uint64(hi&31)<<59
		hi >>= 5
	}
	return out
}

var serial struct {
	sync.Mutex
	ms    uint64
	hi    uint16
	lo    uint64
	drawn bool
	row   strings.Builder // of identifiers, until it is full
}

// serialRow is how many identifiers are in one piece of memory. By taste.
const serialRow = 16

// NewSerialID returns a new ULID for time t, as [NewID] does, for things of
// which there are many and that are kept for long: the random part is drawn
// once for the process and then counts, so that a row of such identifiers
// packs into little more than their times; and some that follow one another share
// their memory, because they mostly go together. They are unique over processes and
// rise within one, but whoever knows one can guess the next.
func NewSerialID(t time.Time) string {
	ms := uint64(max(t.UnixMilli(), 0))
	serial.Lock()
	if !serial.drawn {
		var b [10]byte
		_, _ = rand.Read(b[:]) // never fails (Go 1.24)
		serial.hi, serial.lo, serial.drawn = binary.BigEndian.Uint16(b[:])&0x7fff, binary.BigEndian.Uint64(b[2:]), true
	}
	if ms <= serial.ms && serial.ms-ms < 10_000 { // a small step back of the clock
		ms = serial.ms
	}
	serial.ms = ms
	serial.lo++
	if serial.lo == 0 {
		serial.hi++
	}
	id := writeID(ms, serial.hi, serial.lo)
	if serial.row.Len()+len(id) > serial.row.Cap() {
		serial.row.Reset() // what was in it stays
		serial.row.Grow(serialRow * len(id))
	}
	begin := serial.row.Len()
	_, _ = serial.row.Write(id[:])
	text := serial.row.String()[begin:]
	serial.Unlock()
	return text
}

// ValidID reports whether s has the form that [NewID] gives.
func ValidID(s string) bool {
	if len(s) != 26 || s[0] > '7' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if c < '0' || c > 'Z' || c > '9' && c < 'A' || c == 'I' || c == 'L' || c == 'O' || c == 'U' {
			return false
		}
	}
	return true
}

// IDTime is the time in a ULID, or the zero time when id is not one.
func IDTime(id string) time.Time {
	if !ValidID(id) {
		return time.Time{}
	}
	var ms int64
	for i := range 10 {
		c := id[i]
		v := int64(c - '0')
		if c >= 'A' {
			v = 10
			for j := 10; crockford[j] != c; j++ {
				v++
			}
		}
		ms = ms<<5 | v
	}
	return time.UnixMilli(ms)
}

// NewUID returns a UUIDv7 for time t (RFC 9562 section 5.7): the identity of a
// message that survives splits and moves between nodes.
func NewUID(t time.Time) string {
	var b [16]byte
	_, _ = rand.Read(b[6:]) // never fails (Go 1.24)
	ms := uint64(max(t.UnixMilli(), 0))
	binary.BigEndian.PutUint64(b[:8], ms<<16|uint64(b[6])<<8|uint64(b[7]))
	b[6] = b[6]&0x0f | 0x70
	b[8] = b[8]&0x3f | 0x80
	const hex = "0123456789abcdef"
	out := make([]byte, 0, 36)
	for i, c := range b {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			out = append(out, '-')
		}
		out = append(out, hex[c>>4], hex[c&15])
	}
	return string(out)
}
