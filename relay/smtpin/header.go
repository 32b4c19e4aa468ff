package smtpin

import (
	"bytes"
	"encoding/binary"
	"mime"
	"strings"
	"time"

	"waybill/relay/mail"
	"waybill/relay/wire"
)

// Bounds of what is kept of a header section, by taste: RFC 5322 allows more,
// and nobody looks at it.
const (
	maxName  = 32   // of a field name
	maxLine  = 998  // of a field name with all that there may be before its colon (RFC 5322 section 2.1.1)
	maxValue = 2048 // of an unfolded value
	maxWord  = 512  // of what goes into a record
)

// fields are the header fields that are read.
type field uint8

const (
	otherField field = iota
	messageID
	from
	subject
	date
	importance // of these, see priority.go
	urgency
	xPriority
	receivedField
)

// headerScanner reads a header section as it passes, in whatever pieces it
// comes, and keeps what a [mail.Header] needs. Its memory is bounded.
type headerScanner struct {
	done     bool
	size     int // octets of the section, with the empty line
	line     int // octets of the line so far
	received int
	fields   int
	empty    bool // the section ended with an empty line
	text     bool // it ended with what is no field
	eight    bool // an octet has its high bit set
	wrong    bool // a line is no field, or a field is there twice that may be there but once
	dirty    bool // a bare CR or LF, or NUL: possible in binary content only
	last     byte // octet before

	lineEight, lineDirty bool // the same of the line so far

	name    [maxName]byte // of the line that has begun, until its colon
	nameLen int
	inName  bool
	long    bool // the name does not fit
	middle  bool // not at the start of a line
	blank   bool // the line has begun with CR
	field   field
	keep    bool // the value is kept
	have    [receivedField + 1]bool
	values  [receivedField + 1][]byte
}

// write takes the next octets of the content.
func (h *headerScanner) write(p []byte) {
	for len(p) > 0 && !h.done {
		line, rest, whole := p, []byte(nil), false
		if i := bytes.IndexByte(p, '\n'); i >= 0 {
			line, rest, whole = p[:i+1], p[i+1:], true
		}
		h.size += len(line)
		if h.line == 0 {
			h.lineEight, h.lineDirty = false, false
		}
		h.line += len(line)
		h.look(line)
		h.part(line, whole)
		if h.done && h.blank || !h.done && !h.inName { // it is of the section
			h.eight, h.dirty = h.eight || h.lineEight, h.dirty || h.lineDirty
		}
		if h.done && !h.blank {
			h.size -= h.line // it was the first of the body
		}
		if whole {
			h.line = 0
		}
		p = rest
	}
}

// look notes which octets there are.
func (h *headerScanner) look(p []byte) {
	for i := 0; i < len(p); i++ {
		if h.last != '\r' {
			if n := ordinary(p[i:]); n > 0 {
				i += n
				h.last = p[i-1]
				if i == len(p) {
					return
				}
			}
		}
		b := p[i]
		h.lineEight = h.lineEight || b >= 0x80
		h.lineDirty = h.lineDirty || b == 0 || (b == '\n') != (h.last == '\r')
		h.last = b
	}
}

// ordinary is how many octets p begins with of which there is nothing to say: it
// looks at eight at a time, and may stop too early.
func ordinary(p []byte) (n int) {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	for ; n+8 <= len(p); n += 8 {
		// The top bit of an octet that is less than SO is set by the subtraction.
		if w := binary.LittleEndian.Uint64(p[n:]); (w|(w-ones*('\r'+1)))&tops != 0 {
			break
		}
	}
	for n < len(p) && p[n] > '\r' && p[n] < 0x80 {
		n++
	}
	return n
}

// end is called at the end of the content.
func (h *headerScanner) end() {
	h.text = h.text || !h.done && h.middle && h.inName
	h.done = true
}

// part takes a line, or the next part of it; whole says that the line ends here.
func (h *headerScanner) part(p []byte, whole bool) {
	if !h.middle {
		h.middle = true
		switch p[0] {
		case '\n':
			h.blank, h.done, h.empty = true, true, true
			return
		case '\r':
			if len(p) == 2 && p[1] == '\n' {
				h.blank, h.done, h.empty = true, true, true
				return
			}
			if len(p) == 1 {
				h.blank = true // if a LF follows
				return
			}
		case ' ', '\t': // goes on
			h.wrong = h.wrong || h.fields == 0
			h.inName = false
		default:
			h.inName, h.nameLen, h.long, h.field, h.keep = true, 0, false, otherField, false
		}
	} else if h.blank {
		if p[0] == '\n' {
			h.done, h.empty = true, true
			return
		}
		h.blank = false
	}
	if h.inName {
		i := bytes.IndexByte(p, ':')
		before := h.line // octets before the colon, as far as they are known
		if i >= 0 {
			before += i - len(p)
		}
		if i < 0 && whole || before > maxLine {
			// Not a field: the header section has ended without an empty line.
			h.done, h.wrong, h.text = true, true, true
			return
		}
		name := p
		if i >= 0 {
			name = p[:i]
		}
		if h.nameLen+len(name) > maxName {
			h.long = true
		} else {
			h.nameLen += copy(h.name[h.nameLen:], name)
		}
		if i >= 0 {
			h.begin()
			p = p[i+1:]
		}
	}
	if h.keep && !h.inName {
		v := h.values[h.field]
		v = append(v, p[:min(len(p), maxValue-len(v))]...)
		h.values[h.field] = v
	}
	if whole {
		h.middle = false
	}
}

// begin is called when a field's name is known.
func (h *headerScanner) begin() {
	h.inName = false
	h.fields++
	if h.long {
		return
	}
	name := bytes.TrimRight(h.name[:h.nameLen], " \t")
	h.wrong = h.wrong || len(name) == 0
	for i, b := range name {
		h.wrong = h.wrong || b <= ' ' || b > '~' // RFC 5322 section 2.2
		if b >= 'A' && b <= 'Z' {
			name[i] = b + 'a' - 'A'
		}
	}
	switch string(name) {
	case "received":
		h.received++
	case "message-id":
		h.field = messageID
	case "from":
		h.field = from
	case "subject":
		h.field = subject
	case "date":
		h.field = date
	case "importance":
		h.field = importance
	case "priority":
		h.field = urgency
	case "x-priority":
		h.field = xPriority
	}
	// The first of each counts: it is the one that others show.
	h.keep = h.field != otherField && !h.have[h.field]
	h.wrong = h.wrong || h.field != otherField && h.field <= date && h.have[h.field] // RFC 5322 section 3.6
	h.have[h.field] = true
}

// missing are the fields that a submitted message should have and has not (RFC
// 6409 section 8), ready to stand before it: Date, Message-ID, and From when the
// sender is known. After them, what has no header section at all gets the empty
// line that makes all of it a body.
func (h *headerScanner) missing(sender mail.Address, id mail.QueueID, hostname string, at time.Time) (fields []byte, messageIDs string) {
	if !h.have[date] {
		fields = append(fields, "Date: "...)
		fields = append(at.AppendFormat(fields, "Mon, 2 Jan 2006 15:04:05 -0700"), "\r\n"...)
	}
	if !h.have[messageID] {
		messageIDs = "<" + string(id) + "@" + hostname + ">"
		fields = append(fields, "Message-ID: "+messageIDs+"\r\n"...)
	}
	if !h.have[from] && !sender.IsNull() {
		fields = append(fields, "From: "+sender.Path()+"\r\n"...)
	}
	if h.text && h.fields == 0 {
		fields = append(fields, "\r\n"...)
	}
	return fields, messageIDs
}

// header is what was found.
func (h *headerScanner) header() mail.Header {
	return mail.Header{
		MessageID: wire.Printable(firstID(unfold(h.values[messageID])), maxWord),
		From:      wire.Printable(firstAddress(unfold(h.values[from])), maxWord),
		Subject:   wire.Printable(decodeWords(unfold(h.values[subject])), maxWord),
		Received:  h.received,
		Bytes:     h.size,
	}
}

// unfold removes line ends (RFC 5322 section 2.2.3) and surrounding space, in
// place.
func unfold(v []byte) string {
	b := v[:0]
	for _, c := range v {
		switch c {
		case '\r', '\n':
		case '\t':
			b = append(b, ' ')
		default:
			b = append(b, c)
		}
	}
	return string(bytes.TrimSpace(b))
}

// firstID is the first identifier in a Message-ID field, with its brackets; or
// all of the value, when it has none.
func firstID(v string) string {
	i := strings.IndexByte(v, '<')
	if i < 0 {
		return v
	}
	if j := strings.IndexByte(v[i:], '>'); j >= 0 {
		return v[i : i+j+1]
	}
	return v[i:]
}

// firstAddress is the first address of a From field, without name, comment and
// brackets. It does not judge: what it finds is for people to search by.
func firstAddress(v string) string {
	var word strings.Builder
	quoted, depth := false, 0
	for i := 0; i < len(v); i++ {
		c := v[i]
		switch {
		case c == '\\' && (quoted || depth > 0) && i+1 < len(v):
			i++
			if depth == 0 {
				word.WriteByte(c)
				word.WriteByte(v[i])
			}
		case depth > 0:
			switch c {
			case '(':
				depth++
			case ')':
				depth--
			}
		case c == '"':
			quoted = !quoted
			word.WriteByte(c)
		case quoted:
			word.WriteByte(c)
		case c == '(':
			depth++
		case c == '<':
			if j := strings.IndexByte(v[i:], '>'); j > 0 {
				return strings.TrimSpace(v[i+1 : i+j])
			}
			return strings.TrimSpace(v[i+1:])
		case c == ',' || c == ';':
			if s := strings.TrimSpace(word.String()); strings.Contains(s, "@") {
				return s
			}
			word.Reset()
		case c == ':': // the name of a group
			word.Reset()
		default:
			word.WriteByte(c)
		}
	}
	return strings.TrimSpace(word.String())
}

// decodeWords decodes encoded words (RFC 2047), as far as their charset is known.
func decodeWords(v string) string {
	if !strings.Contains(v, "=?") {
		return v
	}
	var d mime.WordDecoder
	s, err := d.DecodeHeader(v)
	if err != nil {
		return v
	}
	return s
}
