package smtpout

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	"waybill/relay/mail"
)

// Bounds of one reply. RFC 5321 section 4.5.3.1.5 allows lines of 512 octets;
// real ones are longer.
const (
	maxReplyLine   = 2 << 10 // kept of a line
	maxReplyLines  = 100
	maxReplyOctets = 64 << 10
)

var (
	errReplySyntax = errors.New("malformed reply")
	errReplyLong   = errors.New("reply too long")
)

// replyReader reads replies. What it holds is good until the next read.
type replyReader struct {
	r    *bufio.Reader
	code int
	text []byte // lines apart by '\n', without codes; as it came
	log  *script
}

// read reads one reply (RFC 5321 section 4.2). A bare LF ends a line too, and
// the last line's code counts where they differ: both are seen in the wild, and
// neither does harm to who only listens.
func (p *replyReader) read() error {
	p.code, p.text = 0, p.text[:0]
	octets := 0
	for lines := 1; ; lines++ {
		start := len(p.text)
		n, err := p.line(maxReplyOctets - octets)
		octets += n
		line := p.text[start:]
		if err != nil {
			if len(line) > 0 {
				p.log.add(fromServer, line, 0)
			}
			return err
		}
		code, last, ok := parseReplyLine(line)
		p.log.add(fromServer, shown(line, code), 0)
		if !ok {
			return errReplySyntax
		}
		p.code = code
		p.text = append(p.text[:start], line[min(4, len(line)):]...)
		if last {
			return nil
		}
		if lines == maxReplyLines {
			return errReplyLong
		}
		p.text = append(p.text, '\n')
	}
}

// shown is a line as transcripts have it: what AUTH asks helps who guesses.
func shown(line []byte, code int) []byte {
	if code == 334 {
		return []byte("334 ***")
	}
	return line
}

// line appends a line to p.text without its end, at most maxReplyLine octets of
// it, and returns how many octets it took from the connection.
func (p *replyReader) line(limit int) (int, error) {
	n, kept := 0, 0
	for {
		b, err := p.r.ReadSlice('\n')
		n += len(b)
		keep := b[:min(len(b), maxReplyLine-kept)]
		kept += len(keep)
		p.text = append(p.text, keep...)
		switch {
		case n > limit:
			return n, errReplyLong
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && n > 0:
			return n, io.ErrUnexpectedEOF
		case err != nil:
			return n, err
		}
		for len(p.text) > 0 && kept > 0 && (p.text[len(p.text)-1] == '\n' || p.text[len(p.text)-1] == '\r') {
			p.text = p.text[:len(p.text)-1]
			kept--
		}
		return n, nil
	}
}

func parseReplyLine(line []byte) (code int, last, ok bool) {
	if len(line) < 3 || line[0] < '2' || line[0] > '5' {
		return 0, false, false
	}
	for _, c := range line[:3] {
		if c < '0' || c > '9' {
			return 0, false, false
		}
		code = code*10 + int(c-'0')
	}
	if len(line) == 3 || line[3] == ' ' {
		return code, true, true
	}
	return code, false, line[3] == '-'
}

// reply makes the reply that was read last a value that can be kept.
func (p *replyReader) reply() mail.Reply {
	text := cleanText(p.text)
	first, _, _ := strings.Cut(text, " ")
	first, _, _ = strings.Cut(first, "\n")
	r := mail.Reply{Code: p.code, Text: text}
	if !isEnhanced(first, p.code) {
		return r
	}
	r.Enhanced = first
	if !strings.Contains(text, "\n") {
		r.Text = strings.TrimLeft(text[len(first):], " ")
		return r
	}
	var b strings.Builder
	for line := range strings.SplitSeq(text, "\n") { // RFC 2034 section 4: on each line
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		rest, ok := strings.CutPrefix(line, first)
		if !ok || rest != "" && rest[0] != ' ' {
			rest = line
		}
		b.WriteString(strings.TrimLeft(rest, " "))
	}
	r.Text = b.String()
	return r
}

// isEnhanced reports whether s is an enhanced status code (RFC 3463 section 2)
// that may stand with code (RFC 2034 section 4).
func isEnhanced(s string, code int) bool {
	if len(s) < 5 || len(s) > 9 || int(s[0]-'0') != code/100 || s[1] != '.' {
		return false
	}
	subject, detail, ok := strings.Cut(s[2:], ".")
	return ok && isNumber(subject) && isNumber(detail)
}

func isNumber(s string) bool {
	if s == "" || len(s) > 3 {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// cleanText makes text that a stranger sent fit for records and DSNs: UTF-8,
// and no control characters but '\n'.
func cleanText(b []byte) string {
	clean := true
	for _, c := range b {
		if c < ' ' && c != '\n' || c >= 0x7f {
			clean = false
			break
		}
	}
	if clean {
		return string(b)
	}
	var out strings.Builder
	out.Grow(len(b))
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case r == '\n':
			out.WriteByte('\n')
		case r == '\t':
			out.WriteByte(' ')
		case r == utf8.RuneError && n == 1, isControl(r):
			out.WriteByte('?')
		default:
			out.WriteRune(r)
		}
		b = b[n:]
	}
	return out.String()
}

// isControl reports controls, separators that some readers take for line ends,
// and marks that turn the direction of text.
func isControl(r rune) bool {
	return r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r >= '\u202a' && r <= '\u202e' || r >= '\u2066' && r <= '\u2069'
}
