package dsn

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of what strangers may have repeated, in octets. Chosen by taste, but
// for the diagnostic, which must fit the 1 KiB that readers bear.
const (
	maxDiagnostic = 1 << 10
	maxAddress    = 520 // RFC 3461 section 4.2: ORCPT is at most 500
	maxSubject    = 120
	maxHost       = 255
	maxExplained  = 512
)

const (
	width     = 76 // columns before a fold; RFC 5322 section 2.1.1 recommends at most 78
	textWidth = 72 // of paragraphs: room for the escapes of quoted-printable
)

// line makes one harmless line of s: no control characters, nothing invisible
// that changes how the rest reads, valid UTF-8 or, unless wide, printable ASCII,
// at most limit octets.
func line(s string, limit int, wide bool) string {
	var b strings.Builder
	space := false
	for i, r := range s {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD"):
			r = '?'
		case unicode.IsSpace(r), r < ' ', r >= 0x7f && r < 0xa0:
			space = b.Len() > 0
			continue
		case r >= utf8.RuneSelf && !wide, !unicode.IsGraphic(r):
			r = '?'
		}
		if space {
			b.WriteByte(' ')
			space = false
		}
		if b.Len()+utf8.RuneLen(r) > limit-len("…") {
			if wide {
				return b.String() + "…"
			}
			return b.String() + "..."
		}
		b.WriteRune(r)
	}
	return b.String()
}

// word makes a host name or an identifier of s: no spaces and nothing that
// structures a header field.
func word(s string) string {
	s = line(s, maxHost, false)
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(" ;<>()\"\\,@", r) {
			return '_'
		}
		return r
	}, s)
}

// fold parts a header field into lines (RFC 5322 section 2.2.3). It parts at
// spaces; a word that is longer than a line may be is cut.
func fold(field string) string {
	if len(field) <= width {
		return field
	}
	var b strings.Builder
	column := 0
	for i, w := range strings.Split(field, " ") {
		switch {
		case i == 0:
		case column+1+len(w) > width && i > 1:
			b.WriteString("\r\n ")
			column = 1
		default:
			b.WriteByte(' ')
			column++
		}
		for len(w) > 900 {
			cut := 900
			for !utf8.RuneStart(w[cut]) {
				cut--
			}
			b.WriteString(w[:cut] + "\r\n ")
			w, column = w[cut:], 1
		}
		b.WriteString(w)
		column += len(w)
	}
	return b.String()
}

// wrap writes s as a paragraph whose lines start with indent.
func wrap(b *strings.Builder, indent, s string) {
	column := 0
	for w := range strings.FieldsSeq(s) {
		n := utf8.RuneCountInString(w)
		switch {
		case column == 0:
			b.WriteString(indent)
			column = len(indent)
		case column+1+n > textWidth:
			b.WriteString("\r\n" + indent)
			column = len(indent)
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(w)
		column += n
	}
	if column > 0 {
		b.WriteString("\r\n")
	}
}

// isPlain reports whether s is printable ASCII and spaces.
func isPlain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
