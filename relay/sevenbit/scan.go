package sevenbit

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"io"
	"mime"
	"slices"
	"strings"
)

// Bounds of a message that is converted, far above what mail programs make.
const (
	maxDepth  = 50
	maxParts  = 10_000
	maxField  = 16 << 10 // of a field that is looked at
	maxLine   = 998      // RFC 5322 section 2.1.1, without the line end
	blockSize = 64 << 10
)

// state is where in an entity the scanner is.
type state uint8

const (
	inHeader  state = iota
	inBody          // of an entity that has no parts
	inBetween       // before the first part, or after the last
)

// entity is a message or a part of one (RFC 2045 section 2.4).
type entity struct {
	boundary string // "--" and the boundary, while it may still come
	digest   bool   // parts are messages unless they say otherwise (RFC 2046 section 5.1.5)
	sealed   bool   // it is, or is within, what is signed or encrypted as it stands (RFC 1847)
	message  bool   // it is a whole message, and not only a part

	odd      bool // what its header means is not certain
	media    string
	encoding string // what it says of its transfer encoding
	version  bool   // there is a MIME-Version field
	typed    bool   // there is a Content-Type field
	headEnd  int64  // where a field can be added
	closed   bool   // there is an empty line at headEnd
	field    span   // the Content-Transfer-Encoding field
	begin    int64  // of the body
	eight    int64  // octets of the body with the high bit set
	binary   bool   // the body has octets that are no text: NUL, and CR or LF that do not stand together
	long     bool   // the body has lines that are longer than text may have
	changed  bool   // its transfer encoding is edited already
}

// span is a stretch of the message.
type span struct{ off, size int64 }

// scanner walks over a message line by line.
type scanner struct {
	opts Options
	plan *Plan

	stack []*entity // the current entity last, those that it is in before it
	state state
	parts int

	at   int64 // offset of the current piece
	line int   // octets of the current line before it
	end  int64 // octets of the line end before the current line
	last byte  // octet before the current piece

	name   string // of the field that is read, where it is one of interest; lower-case
	value  []byte
	start  int64 // offset of that field
	sealed bool  // the whole message is signed (RFC 6376, RFC 8617)

	trouble *Error
}

// Scan reads a message and plans its conversion. The error is an *[Error] when
// the message cannot be converted, and otherwise that of r.
func Scan(r io.Reader, opts Options) (*Plan, error) {
	s := &scanner{opts: opts, plan: &Plan{}}
	s.push(&entity{message: true})
	br := bufio.NewReaderSize(r, blockSize)
	for {
		p, err := br.ReadSlice('\n')
		if len(p) > 0 {
			s.piece(p, err == nil)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
	s.plan.length = s.at
	if s.state == inHeader {
		s.endHeader(s.at, s.at)
	}
	s.pop(0, s.at)
	slices.SortStableFunc(s.plan.edits, func(a, b edit) int { return cmp.Compare(a.off, b.off) })
	if s.sealed && s.plan.Needed() {
		s.fail(Signed)
	}
	if s.trouble != nil {
		return nil, s.trouble
	}
	return s.plan, nil
}

// fail notes why the message cannot be converted. The first reason counts.
func (s *scanner) fail(why Reason) {
	if s.trouble == nil {
		s.trouble = &Error{why}
	}
}

func (s *scanner) top() *entity { return s.stack[len(s.stack)-1] }

func (s *scanner) push(e *entity) {
	if s.parts++; s.parts > maxParts || len(s.stack) >= maxDepth {
		s.fail(Bounds)
		return
	}
	if len(s.stack) > 0 {
		e.sealed = s.top().sealed
	}
	s.stack = append(s.stack, e)
	s.state, s.name, s.value = inHeader, "", nil
}

// pop closes the entities from the given depth on, whose bodies end at off.
func (s *scanner) pop(depth int, off int64) {
	for len(s.stack) > depth {
		e := s.top()
		switch {
		case s.state == inBody:
			s.close(e, off)
		case s.opts.Binary && e.encoding == "binary" && !e.odd: // it has parts, which are binary no longer
			s.label(e, s.width(true))
		}
		s.state = inBetween
		s.stack = s.stack[:len(s.stack)-1]
	}
}

// piece takes the next octets of a line; whole says that it ends with them.
func (s *scanner) piece(p []byte, whole bool) {
	begins := s.line == 0
	if s.trouble == nil && !(begins && whole && s.delimiter(p)) { //nolint:staticcheck // reads as it is meant
		if s.state == inHeader {
			s.header(p, begins, whole)
		} else {
			s.body(p, whole)
		}
	}
	s.line += len(p)
	if whole {
		s.end = 1
		if prev := len(p) - 2; prev >= 0 && p[prev] == '\r' || prev < 0 && s.last == '\r' && s.line > 1 {
			s.end = 2
		}
		s.line = 0
	}
	s.last = p[len(p)-1]
	s.at += int64(len(p))
}

// delimiter reports whether a line is one between parts, or after them, and takes
// it (RFC 2046 section 5.1.1). A delimiter of an outer entity ends inner ones.
func (s *scanner) delimiter(p []byte) bool {
	if len(p) < 3 || p[0] != '-' || p[1] != '-' {
		return false
	}
	for i, e := range slices.Backward(s.stack) {
		if e.boundary == "" {
			continue
		}
		rest, ok := bytes.CutPrefix(p, []byte(e.boundary))
		if !ok {
			continue
		}
		rest, last := bytes.CutPrefix(rest, []byte("--"))
		if len(bytes.TrimRight(rest, " \t\r\n")) > 0 {
			continue
		}
		if s.state == inHeader {
			s.endHeader(s.at, s.at)
		}
		if s.opts.Binary && s.end < 2 { // the line end before it belongs to the delimiter
			s.fail(Form)
		}
		s.around(p, true)
		s.pop(i+1, s.at-s.end)
		s.state = inBetween
		if last {
			e.boundary = ""
			return true
		}
		s.push(&entity{})
		return true
	}
	return false
}

// header takes octets of a header section.
func (s *scanner) header(p []byte, begins, whole bool) {
	e := s.top()
	if begins {
		switch {
		case whole && len(bytes.TrimRight(p, "\r\n")) == 0:
			s.around(p, whole)
			e.closed = true
			s.endHeader(s.at, s.at+int64(len(p)))
			return
		case p[0] == ' ' || p[0] == '\t':
		default:
			s.endField(s.at)
			i := bytes.IndexByte(p, ':')
			name := bytes.TrimRight(p[:max(i, 0)], " \t")
			if i < 0 || len(name) == 0 || bytes.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
				// Not a field: programs differ in what they make of what follows.
				e.odd = true
				s.endHeader(s.at, s.at)
				s.body(p, whole)
				return
			}
			s.start = s.at
			switch lower := strings.ToLower(string(name)); lower {
			case "content-type", "content-transfer-encoding", "mime-version":
				s.name = lower
				s.value = append(s.value[:0], p[i+1:]...)
			case "dkim-signature", "arc-message-signature":
				s.sealed = s.sealed || len(s.stack) == 1
			}
		}
	}
	if !begins || p[0] == ' ' || p[0] == '\t' {
		if s.name != "" {
			s.value = append(s.value, p[:min(len(p), maxField+1-min(len(s.value), maxField+1))]...)
		}
	}
	s.around(p, whole)
	if highBits(p) > 0 {
		s.touch(e, Header)
	}
}

// around looks at octets that no encoding is for: those of binary content must be
// lines all the same.
func (s *scanner) around(p []byte, whole bool) {
	if s.opts.Binary && s.isBinary(p, whole) {
		s.fail(Form)
	}
}

// touch notes octets that nothing can be done about where the host does not take
// them.
func (s *scanner) touch(e *entity, why Reason) {
	switch {
	case s.opts.EightBit:
	case e.sealed:
		s.fail(Signed)
	default:
		s.fail(why)
	}
}

// endField takes the field that ended before off.
func (s *scanner) endField(off int64) {
	e, value := s.top(), strings.TrimSpace(strings.NewReplacer("\r", "", "\n", "", "\t", " ").Replace(string(s.value)))
	e.odd = e.odd || len(s.value) > maxField
	switch s.name {
	case "mime-version":
		e.version = true
	case "content-type":
		e.odd = e.odd || e.typed
		e.typed, e.media = true, value
	case "content-transfer-encoding":
		e.odd = e.odd || e.field.size > 0
		e.field = span{s.start, off - s.start}
		e.encoding = strings.ToLower(value)
		if i := strings.IndexByte(e.encoding, '('); i >= 0 { // a comment
			e.encoding = strings.TrimSpace(e.encoding[:i])
		}
	}
	s.name, s.value = "", s.value[:0]
}

// endHeader begins the body of the current entity: its header ends at off, and
// its body begins at begin.
func (s *scanner) endHeader(off, begin int64) {
	s.endField(off)
	e := s.top()
	e.headEnd, e.begin = off, begin
	s.state = inBody
	var params map[string]string
	switch {
	case e.typed:
		media, p, err := mime.ParseMediaType(e.media)
		if media == "" { // what a part without parts is called matters little
			media, _, _ = strings.Cut(strings.ToLower(e.media), ";")
			media = strings.TrimSpace(media)
		}
		e.media, params = media, p
		e.odd = e.odd || err != nil && composite(media)
	case len(s.stack) > 1 && !e.message && s.stack[len(s.stack)-2].digest:
		e.media = "message/rfc822"
	default:
		e.media = "text/plain"
	}
	if !plain(e.encoding) {
		return
	}
	switch {
	case strings.HasPrefix(e.media, "multipart/"):
		boundary := params["boundary"]
		if boundary == "" || len(boundary) > 200 || e.odd { // at most 70 (RFC 2046 section 5.1.1); some write more
			e.odd = true
			return
		}
		e.boundary = "--" + boundary
		e.digest = e.media == "multipart/digest"
		e.sealed = e.sealed || e.media == "multipart/signed" || e.media == "multipart/encrypted"
		s.state = inBetween
	case (e.media == "message/rfc822" || e.media == "message/news") && !e.odd && e.closed:
		s.push(&entity{message: true})
	}
}

// composite reports whether what is of that type may have parts.
func composite(media string) bool {
	return strings.HasPrefix(media, "multipart/") || strings.HasPrefix(media, "message/")
}

// plain reports whether an encoding leaves octets as they are.
func plain(encoding string) bool {
	switch encoding {
	case "", "7bit", "8bit", "binary":
		return true
	}
	return false
}

// body takes octets that are not of a header section.
func (s *scanner) body(p []byte, whole bool) {
	e := s.top()
	n := highBits(p)
	if s.state == inBetween {
		s.around(p, whole)
		if n > 0 {
			s.touch(e, Around)
		}
		return
	}
	e.eight += int64(n)
	if !e.binary {
		e.binary = s.isBinary(p, whole)
	}
	e.long = e.long || s.line+len(bytes.TrimRight(p, "\r\n")) > maxLine
}

// isBinary reports whether p is not of a text of lines.
func (s *scanner) isBinary(p []byte, whole bool) bool {
	text := p
	if whole {
		text = p[:len(p)-1]
		if n := len(text); n > 0 && text[n-1] == '\r' {
			text = text[:n-1]
		} else if n > 0 || s.line == 0 || s.last != '\r' {
			return true // bare LF
		}
	}
	// A CR at the end of a piece may belong to a line end that follows: then the
	// line is longer than a piece, and base64 is right for it too.
	return bytes.IndexByte(text, 0) >= 0 || bytes.IndexByte(text, '\r') >= 0
}

// close ends an entity without parts, whose body ends at off, and plans what
// must change in it.
func (s *scanner) close(e *entity, off int64) {
	binary := s.opts.Binary && (e.binary || e.long)
	eight := e.eight > 0 && !s.opts.EightBit
	switch {
	case off <= e.begin || !binary && !eight:
		if s.opts.Binary && e.encoding == "binary" {
			s.label(e, s.width(e.eight > 0))
		}
		return
	case e.sealed:
		s.fail(Signed)
		return
	case e.odd || !plain(e.encoding) || strings.HasPrefix(e.media, "multipart/"),
		strings.HasPrefix(e.media, "message/") && !strings.HasPrefix(e.media, "message/global"): // RFC 2046 section 5.2, RFC 6532 section 3.7
		s.fail(Form)
		return
	}
	encoding, size := Base64, off-e.begin
	// Text that is mostly ASCII stays readable; the share is chosen by taste.
	if strings.HasPrefix(e.media, "text/") && !e.binary && 4*e.eight <= size {
		encoding = QuotedPrintable
	}
	if encoding == Base64 {
		s.plan.Base64++
	} else {
		s.plan.QuotedPrintable++
	}
	s.label(e, string(encoding))
	s.plan.edits = append(s.plan.edits, edit{off: e.begin, size: size, encoding: encoding})
	for _, outer := range s.stack {
		if outer != e && (outer.encoding == "8bit" && !s.opts.EightBit || outer.encoding == "binary") {
			s.label(outer, s.width(true))
		}
	}
}

// width is the narrowest label of content that the host takes.
func (s *scanner) width(eight bool) string {
	if eight && s.opts.EightBit {
		return "8bit"
	}
	return "7bit"
}

// label makes an entity say its transfer encoding, and what it takes to say so: a
// message that is none of MIME becomes one, of an unknown charset (RFC 1428
// section 3).
func (s *scanner) label(e *entity, encoding string) {
	if e.changed {
		return
	}
	if e.changed = true; e.sealed {
		s.fail(Signed)
	}
	text, at := "Content-Transfer-Encoding: "+encoding+"\r\n", e.field
	if at.size == 0 {
		at.off = e.headEnd
	}
	if e.message && !e.version {
		if !e.typed {
			text = "Content-Type: text/plain; charset=unknown-8bit\r\n" + text
		}
		text = "MIME-Version: 1.0\r\n" + text
	}
	if !e.closed { // a body without an empty line before it
		s.fail(Form)
	}
	s.plan.edits = append(s.plan.edits, edit{off: at.off, size: at.size, text: text})
}

// highBits counts the octets of p that are not ASCII.
func highBits(p []byte) (n int) {
	for _, c := range p {
		n += int(c >> 7)
	}
	return n
}
