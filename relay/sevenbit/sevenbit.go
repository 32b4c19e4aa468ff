// Package sevenbit rewrites content for hosts that do not take it as it is: 8-bit
// content for those without 8BITMIME (RFC 6152), and binary content for those
// without BINARYMIME (RFC 3030).
//
// It exists because the libraries that write MIME write a message anew, and lose
// what they do not look at: preambles, folding, the order of parameters. Here a
// message is read twice. [Scan] walks over its parts and notes what must change,
// by offset: transfer encodings, and the header fields that name them. [Plan.Write]
// copies the message and changes that, and nothing else.
//
// It promises that each octet outside of what is encoded stays as it is, that what
// is encoded decodes to the same octets, that nothing signed is touched, and that
// memory is bounded whatever the message is. What cannot be kept is an [Error]: the
// message is to be returned, or sent as it is.
//
// To convert more, add an edit where the scanner closes a part.
package sevenbit

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime/quotedprintable"
)

// Encoding is a content transfer encoding (RFC 2045 section 6).
type Encoding string

// The encodings.
const (
	QuotedPrintable Encoding = "quoted-printable"
	Base64          Encoding = "base64"
)

// Options say what comes, and what the host takes.
type Options struct {
	Binary   bool // the content was given as BODY=BINARYMIME
	EightBit bool // the host takes 8-bit lines
}

// Reason is why a message cannot be converted.
type Reason string

// The reasons.
const (
	Signed Reason = "signed"         // a signature would no longer hold
	Header Reason = "8-bit header"   // a header field is not ASCII
	Around Reason = "around parts"   // octets before the first part or after the last, which no encoding is for
	Form   Reason = "malformed MIME" // what it is cannot be told
	Bounds Reason = "too many parts" // more than anybody needs
)

// Error says that a message cannot be converted, and why.
type Error struct{ Reason Reason }

func (e *Error) Error() string { return "content cannot be converted: " + string(e.Reason) }

// edit is one change of a message.
type edit struct {
	off, size int64    // what it replaces
	text      string   // by what, when it is not an encoding
	encoding  Encoding // of the octets that are there
}

// Plan is how a message is converted.
type Plan struct {
	edits  []edit // by offset
	length int64  // of the message as it is

	QuotedPrintable int // parts that are encoded so
	Base64          int
}

// Needed reports whether anything is to be changed.
func (p *Plan) Needed() bool { return len(p.edits) > 0 }

// String says what is changed, such as "quoted-printable:2 base64:1".
func (p *Plan) String() string {
	switch {
	case p.Base64 == 0:
		return fmt.Sprintf("%s:%d", QuotedPrintable, p.QuotedPrintable)
	case p.QuotedPrintable == 0:
		return fmt.Sprintf("%s:%d", Base64, p.Base64)
	}
	return fmt.Sprintf("%s:%d %s:%d", QuotedPrintable, p.QuotedPrintable, Base64, p.Base64)
}

// ErrChanged says that a message is not what was scanned.
var ErrChanged = errors.New("content is not what it was")

// Write writes the message that r gives, converted. It must be the message that
// was scanned.
func (p *Plan) Write(w io.Writer, r io.Reader) error {
	br := bufio.NewReaderSize(r, blockSize)
	at := int64(0)
	pass := func(to io.Writer, until int64) error {
		n, err := io.CopyN(to, br, until-at)
		at += n
		if errors.Is(err, io.EOF) {
			return ErrChanged
		}
		return err
	}
	for _, e := range p.edits {
		if err := pass(w, e.off); err != nil {
			return err
		}
		end := e.off + e.size
		var err error
		switch e.encoding {
		case QuotedPrintable:
			q := quotedprintable.NewWriter(w)
			if err = pass(q, end); err == nil {
				err = q.Close()
			}
		case Base64:
			lines := &lineBreaker{w: w}
			b := base64.NewEncoder(base64.StdEncoding, lines)
			if err = pass(b, end); err == nil {
				err = b.Close()
			}
			if err == nil && end == p.length {
				_, err = io.WriteString(w, "\r\n")
			}
		default:
			if err = pass(io.Discard, end); err == nil {
				_, err = io.WriteString(w, e.text)
			}
		}
		if err != nil {
			return err
		}
	}
	if err := pass(w, p.length); err != nil {
		return err
	}
	if _, err := br.ReadByte(); err == nil {
		return ErrChanged
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// Size is how many octets Write writes of the message that r gives.
func (p *Plan) Size(r io.Reader) (int64, error) {
	var n counter
	err := p.Write(&n, r)
	return int64(n), err
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// maxEncoded is the length of an encoded line (RFC 2045 section 6.8).
const maxEncoded = 76

// lineBreaker breaks what is written into lines. The last one has no end.
type lineBreaker struct {
	w    io.Writer
	used int
}

// Write writes p in lines.
func (l *lineBreaker) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		if l.used == maxEncoded {
			if _, err := io.WriteString(l.w, "\r\n"); err != nil {
				return n, err
			}
			l.used = 0
		}
		k, err := l.w.Write(p[:min(len(p), maxEncoded-l.used)])
		n, l.used, p = n+k, l.used+k, p[k:]
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
