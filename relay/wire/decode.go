package wire

import (
	"bytes"
	"encoding/binary"
)

// Newline says what becomes of a carriage return or a line feed that stands
// alone, and of NUL, in a content. RFC 5321 section 2.3.8 forbids them all;
// receivers that disagree about them can be made to see two messages where we
// see one, so that none of them must ever leave the relay.
type Newline uint8

// The policies. The zero Newline refuses.
const (
	Reject    Newline = iota // refuse the message: 550 5.6.0
	Normalise                // make CRLF of a bare LF, a space of a bare CR and of NUL
	keep                     // leave binary content (RFC 3030) as it is; chosen here, by the envelope
)

// dots decodes the content of DATA: it takes the stuffed dots out and finds the
// end (RFC 5321 section 4.5.2). The zero dots is at the start of a content.
type dots struct {
	lf      bool // the client ends all its lines in a bare LF: so does its last one
	mid     bool // not at the start of a line
	afterLF bool // at the start of a line that follows a bare LF
	bare    bool // a bare CR or LF was seen
	nul     bool
	eight   bool // an octet above 127, or NUL, was seen
}

// heldCR is how many CRs at the end of a block wait for what follows them.
const heldCR = 3

// decode decodes the start of src in place. It returns the decoded octets,
// which are a part of src, how many octets of src it has consumed, and whether
// they end the content. It leaves in src what it cannot decide without the
// octets that follow: at most three.
func (d *dots) decode(src []byte) (out []byte, n int, end bool) {
	i, run, w, crlf := 0, 0, 0, 0 // src[run:i] is decided and not yet in src[:w]
	flush := func() {
		if w == run {
			w = i
		} else {
			w += copy(src[w:], src[run:i])
		}
	}
	skip, tried := 0, 0
scan:
	for i < len(src) {
		if i >= tried && !d.mid && !d.afterLF && src[i] != '.' {
			rest := src[i:min(len(src), i+stretch)]
			n, lines := regular(rest)
			if i, crlf = i+n, crlf+lines; n == 0 {
				tried = i + len(rest) // so that nothing is looked at in vain more than once
			}
			if i == len(src) {
				break
			}
		}
		if src[i] == '.' && (!d.mid || d.afterLF) {
			switch {
			case i+1 == len(src):
				break scan
			case d.lf && src[i+1] == '\n':
				end, skip = true, 2
				break scan
			case d.afterLF && (!d.lf || src[i+1] != '\r'):
				// The line before ended in a bare LF: this is no end of the content
				// whatever follows, unless all lines end so; but a sender of such lines may have stuffed it.
				if src[i+1] == '.' {
					flush()
					i++
					run = i
				}
			case src[i+1] == '\r' && i+2 == len(src):
				break scan
			case src[i+1] == '\r' && src[i+2] == '\n':
				end, skip = true, 3
				break scan
			default:
				flush()
				i++
				run = i
			}
		}
		d.mid, d.afterLF = true, false
		j := bytes.IndexByte(src[i:], '\n')
		if j < 0 {
			last := i
			i = len(src)
			for range heldCR {
				if i > last && src[i-1] == '\r' {
					i--
				}
			}
			break
		}
		if j > 0 && src[i+j-1] == '\r' {
			d.mid = false
			crlf++
		} else {
			d.bare, d.afterLF = true, true
		}
		i += j + 1
	}
	flush()
	out = src[:w]
	if bytes.Count(out, crByte) != crlf {
		d.bare = true
	}
	if !ordinary(out) {
		d.eight = true
		d.nul = d.nul || bytes.IndexByte(out, 0) >= 0
	}
	return out, i + skip, end
}

var (
	crByte = []byte{'\r'}
	lfByte = []byte{'\n'}
)

// stretch is how much regular looks at, by taste: that much is looked at again
// when it was in vain.
const stretch = 4 << 10

// regular is how many octets of src, which begins a line, are whole lines that end
// in CRLF, do not begin with a dot, and have no other line feed in them; and how
// many lines that are.
//
// Nearly all lines of a large message have the same length. So once two have it,
// the end of the next is looked for where it should be, and it is by their number
// that there are seen to be no other line feeds: one look at all octets, in place of
// a search that begins anew in every line, which took three times as long.
func regular(src []byte) (n, lines int) {
	width, sure := 0, false
	for n < len(src) && src[n] != '.' {
		end := n + width
		if !sure || end > len(src) || src[end-1] != '\n' || src[end-2] != '\r' {
			j := bytes.IndexByte(src[n:], '\n')
			if j < 1 || src[n+j-1] != '\r' {
				break
			}
			end = n + j + 1
			sure = j+1 == width
			width = j + 1
		}
		n = end
		lines++
	}
	if bytes.Count(src[:n], lfByte) != lines {
		return 0, 0
	}
	return n, lines
}

// ordinary reports whether all octets of p are 1 to 127.
func ordinary(p []byte) bool {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	for ; len(p) >= 32; p = p[32:] {
		a, b := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
		c, d := binary.LittleEndian.Uint64(p[16:]), binary.LittleEndian.Uint64(p[24:])
		// The subtraction sets the top bit of an octet that is zero, and of no other
		// that is below 128 unless a zero was before it.
		if (a|b|c|d|(a-ones)|(b-ones)|(c-ones)|(d-ones))&tops != 0 {
			return false
		}
	}
	for _, x := range p {
		if x == 0 || x >= 0x80 {
			return false
		}
	}
	return true
}

// paired reports whether p has no bare CR and no bare LF, when a CR has gone
// before it or not. A CR at its end counts as bare.
func paired(p []byte, afterCR bool) bool {
	crlf := 0
	for i := 0; ; {
		j := bytes.IndexByte(p[i:], '\n')
		if j < 0 {
			break
		}
		switch k := i + j; {
		case k == 0 && afterCR:
		case k > 0 && p[k-1] == '\r':
			crlf++
		default:
			return false
		}
		i += j + 1
	}
	return bytes.Count(p, crByte) == crlf
}

// normalise appends p to dst: CRLF for a bare LF and for CRs before a LF, a
// space for any other CR and for NUL. A line feed at the start of p belongs to
// a CR before it when afterCR is set.
func normalise(dst, p []byte, afterCR bool) []byte {
	for i := 0; i < len(p); i++ {
		switch p[i] {
		case '\n':
			if i > 0 || !afterCR {
				dst = append(dst, '\r')
			}
			dst = append(dst, '\n')
		case '\r':
			j := i
			for j < len(p) && p[j] == '\r' {
				j++
			}
			if j == len(p) || p[j] != '\n' {
				for range j - i {
					dst = append(dst, ' ')
				}
			}
			i = j - 1
		case 0:
			dst = append(dst, ' ')
		default:
			dst = append(dst, p[i])
		}
	}
	return dst
}
