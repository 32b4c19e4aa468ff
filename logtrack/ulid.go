package logtrack

import (
	"encoding/binary"
	"encoding/hex"
)

const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// crockValue has 0xff for what is no digit.
var crockValue = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i := range len(crockford) {
		t[crockford[i]] = byte(i)
	}
	return t
}()

// packULID gives the 16 octets of a ULID: 6 of time, 10 of entropy. It takes
// what [mail.ValidID] takes.
func packULID(s string) (b [16]byte, ok bool) {
	if len(s) != 26 {
		return b, false
	}
	// 130 bits, of which the first two are none: 50 of time, then twice 40.
	d0, d1 := crockValue[s[0]], crockValue[s[1]]
	first, bad := crockDigits(s[2:10])
	second, bad2 := crockDigits(s[10:18])
	third, bad3 := crockDigits(s[18:26])
	if (d1|bad|bad2|bad3)&0xe0 != 0 || d0 > 7 {
		return b, false
	}
	binary.BigEndian.PutUint64(b[:8], uint64(d0)<<61|uint64(d1)<<56|first<<16|second>>24)
	binary.BigEndian.PutUint64(b[8:], second<<40|third)
	return b, true
}

// crockDigits reads eight digits; bad has one of the three upper bits set when
// some are none. It is written out because each fact has some 50 of them.
func crockDigits(s string) (n uint64, bad byte) {
	_ = s[7]
	a, b, c, d := crockValue[s[0]], crockValue[s[1]], crockValue[s[2]], crockValue[s[3]]
	e, f, g, h := crockValue[s[4]], crockValue[s[5]], crockValue[s[6]], crockValue[s[7]]
	n = uint64(a)<<35 | uint64(b)<<30 | uint64(c)<<25 | uint64(d)<<20 | uint64(e)<<15 | uint64(f)<<10 | uint64(g)<<5 | uint64(h)
	return n, a | b | c | d | e | f | g | h
}

func appendULID(dst []byte, b [16]byte) []byte {
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	var out [26]byte
	for i := 25; i >= 0; i-- {
		out[i] = crockford[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return append(dst, out[:]...)
}

// ulidMS is the time part in milliseconds.
func ulidMS(b [16]byte) int64 { return int64(binary.BigEndian.Uint64(b[:8]) >> 16) }

// acceptMS is when the message of a queue ID was accepted, in milliseconds, or 0.
func acceptMS(id string) int64 {
	b, ok := packULID(id)
	if !ok {
		return 0
	}
	return ulidMS(b)
}

// packUUID gives the 16 octets of a UUID in its canonical lower-case form.
func packUUID(s string) (b [16]byte, ok bool) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return b, false
	}
	n := 0
	for i := 0; i < 36; {
		if s[i] == '-' {
			if i != 8 && i != 13 && i != 18 && i != 23 {
				return b, false
			}
			i++
			continue
		}
		h, l := hexValue(s[i]), hexValue(s[i+1])
		if h > 15 || l > 15 {
			return b, false
		}
		b[n] = h<<4 | l
		n++
		i += 2
	}
	return b, true
}

func hexValue(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	}
	return 255
}

func appendUUID(dst []byte, b [16]byte) []byte {
	for i, n := 0, 0; n < 16; i++ {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			dst = append(dst, '-')
		}
		dst = hex.AppendEncode(dst, b[n:n+1])
		n++
	}
	return dst
}
