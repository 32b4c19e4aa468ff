package smtpout

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"waybill/relay/reuse"
	"waybill/relay/sevenbit"
)

// blockSize is how much content is read and written at once. Most messages are
// smaller, and are read but once.
const blockSize = 64 << 10

var blocks = sync.Pool{New: func() any { return new([blockSize]byte) }}

func putBlock(b *[blockSize]byte) {
	reuse.Spoil(b[:])
	blocks.Put(b)
}

// inMemory is content that need not be read: all of it is at hand until it is closed.
type inMemory interface{ Bytes() []byte }

// knownSevenBit is content of which it may be known that all its octets are below
// 128: then it need not be looked at.
type knownSevenBit interface{ SevenBit() bool }

// body is the content of an attempt: opened when first needed, read ahead by
// one block unless it is in memory, and opened again when it must go out again.
type body struct {
	m       *Message
	src     io.ReadCloser
	block   *[blockSize]byte // nil when the content is in memory
	head    []byte           // the beginning of the content, in block or in memory
	all     bool             // that is everything
	sent    bool
	eight   bool // some octet has its high bit set; known when scanned
	scanned bool // the content was scanned for 8-bit octets

	plan  *sevenbit.Plan // how the content is converted, or nil
	plans map[sevenbit.Options]planned
}

// planned is a plan, or why there is none.
type planned struct {
	plan *sevenbit.Plan
	size int64
	err  *sevenbit.Error
}

// open makes the content ready to be sent from its beginning.
func (b *body) open() error {
	if b.src != nil && !b.sent {
		return nil
	}
	b.close()
	src, err := b.m.Open()
	if err != nil {
		return fmt.Errorf("open content: %w", err)
	}
	b.src, b.sent = src, false
	if c, ok := src.(inMemory); ok {
		b.head, b.all = c.Bytes(), true
		return nil
	}
	b.block = blocks.Get().(*[blockSize]byte)
	n, err := io.ReadFull(src, b.block[:])
	b.head = b.block[:n]
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		b.all, err = true, nil
	}
	if err != nil {
		b.close()
		return fmt.Errorf("read content: %w", err)
	}
	return nil
}

func (b *body) close() {
	if b.src != nil {
		_ = b.src.Close()
		if b.block != nil {
			putBlock(b.block)
		}
		b.src, b.block, b.head, b.all = nil, nil, nil, false
	}
}

// eightBit reports whether any octet of the message has its high bit set. It
// reads content that is larger than one block a second time, once per attempt.
func (b *body) eightBit() (bool, error) {
	if b.scanned {
		return b.eight, nil
	}
	if err := b.open(); err != nil {
		return false, err
	}
	b.eight = hasHighBit(b.m.Trace)
	if c, ok := b.src.(knownSevenBit); ok && c.SevenBit() {
		b.scanned = true
		return b.eight, nil
	}
	b.eight = b.eight || hasHighBit(b.head)
	if !b.eight && !b.all {
		src, err := b.m.Open()
		if err != nil {
			return false, fmt.Errorf("open content: %w", err)
		}
		defer src.Close()
		buf := blocks.Get().(*[blockSize]byte)
		defer putBlock(buf)
		for !b.eight {
			n, err := src.Read(buf[:])
			b.eight = hasHighBit(buf[:n])
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return false, fmt.Errorf("read content: %w", err)
			}
		}
	}
	b.scanned = true
	return b.eight, nil
}

// eightBitHeader reports whether the header section has 8-bit octets (RFC 6532).
// Of a header section larger than one block, it knows the beginning.
func (b *body) eightBitHeader() (bool, error) {
	if err := b.open(); err != nil {
		return false, err
	}
	head := b.head
	if i := bytes.Index(head, []byte("\r\n\r\n")); i >= 0 {
		head = head[:i]
	}
	return hasHighBit(b.m.Trace) || hasHighBit(head), nil
}

func hasHighBit(p []byte) bool {
	for ; len(p) >= 32; p = p[32:] { // by four words, which takes a quarter of the time: all octets of nearly all mail are looked at
		a, b := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
		c, d := binary.LittleEndian.Uint64(p[16:]), binary.LittleEndian.Uint64(p[24:])
		if (a|b|c|d)&0x8080808080808080 != 0 {
			return true
		}
	}
	for _, c := range p {
		if c >= 0x80 {
			return true
		}
	}
	return false
}

// convert makes each give the message as a host takes it. The error is a
// *[sevenbit.Error] when that cannot be done. A message is read once for each kind
// of host that an attempt meets.
func (b *body) convert(opts sevenbit.Options) error {
	p, ok := b.plans[opts]
	if !ok {
		err := b.whole(func(r io.Reader) (err error) {
			p.plan, err = sevenbit.Scan(r, opts)
			return err
		})
		if err == nil && p.plan.Needed() {
			err = b.whole(func(r io.Reader) (err error) {
				p.size, err = p.plan.Size(r)
				return err
			})
		}
		if err != nil && !errors.As(err, &p.err) {
			return err
		}
		if b.plans == nil {
			b.plans = map[sevenbit.Options]planned{}
		}
		b.plans[opts] = p
	}
	switch {
	case p.err != nil:
		return p.err
	case p.plan.Needed():
		b.plan = p.plan
	}
	return nil
}

// size is how many octets each gives.
func (b *body) size() int64 {
	for _, p := range b.plans {
		if b.plan != nil && p.plan == b.plan {
			return p.size
		}
	}
	return b.m.Size
}

// whole calls f with all of the message, apart from what each reads. The error is
// of f, as it is, or of the content, as a *contentError.
func (b *body) whole(f func(r io.Reader) error) error {
	src, err := b.m.Open()
	if err != nil {
		return &contentError{fmt.Errorf("open content: %w", err)}
	}
	defer src.Close()
	return f(io.MultiReader(bytes.NewReader(b.m.Trace), storage{src}))
}

// storage tells failures of content from those of who takes it.
type storage struct{ r io.Reader }

func (s storage) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &contentError{fmt.Errorf("read content: %w", err)}
	}
	return n, err
}

// writer is a function that is written to.
type writer func(p []byte) error

func (w writer) Write(p []byte) (int, error) {
	if err := w(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// each calls f with the trace and the content, block by block, converted where
// that is planned. The error is of f, as it is, or of the content, as a
// *contentError.
func (b *body) each(f func(p []byte) error) error {
	if b.plan != nil {
		err := b.whole(func(r io.Reader) error { return b.plan.Write(writer(f), r) })
		if errors.Is(err, sevenbit.ErrChanged) {
			err = &contentError{err}
		}
		return err
	}
	if err := b.open(); err != nil {
		return &contentError{err}
	}
	b.sent = true
	if len(b.m.Trace) > 0 {
		if err := f(b.m.Trace); err != nil {
			return err
		}
	}
	head, last := b.head, b.all
	for len(head) > blockSize { // no more at once, so that a peer that is slow has its time for each block
		if err := f(head[:blockSize]); err != nil {
			return err
		}
		head = head[blockSize:]
	}
	for {
		if err := f(head); err != nil || last {
			return err
		}
		n, err := io.ReadFull(b.src, b.block[:])
		if last = errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF); err != nil && !last {
			return &contentError{fmt.Errorf("read content: %w", err)}
		}
		head = b.block[:n]
	}
}

// contentError is a failure of our own storage.
type contentError struct{ err error }

func (e *contentError) Error() string { return e.err.Error() }
func (e *contentError) Unwrap() error { return e.err }

// stuffer writes content for DATA: it doubles dots at the beginning of lines
// (RFC 5321 section 4.5.2) and changes nothing else. A dot alone between bare CR
// or LF is doubled too, so that no reader of any persuasion can take it for the
// end.
type stuffer struct {
	w     io.Writer
	prev  byte // the octet before, and the one before that; CR LF at the beginning
	prev2 byte
	held  bool // a dot that followed a bare CR or LF at the end of a block, not yet written
}

func newStuffer(w io.Writer) stuffer { return stuffer{w: w, prev2: '\r', prev: '\n'} }

func (s *stuffer) write(p []byte) error {
	_, err := s.Write(p)
	return err
}

// Write writes p stuffed.
func (s *stuffer) Write(p []byte) (int, error) {
	total := len(p)
	if s.held && len(p) > 0 {
		s.held = false
		dots := "."
		if isNewline(p[0]) {
			dots = ".."
		}
		if _, err := io.WriteString(s.w, dots); err != nil {
			return 0, err
		}
		s.prev2, s.prev = s.prev, '.'
	}
	done := 0 // p[:done] is written
	for i := 0; ; {
		dot := bytes.IndexByte(p[i:], '.') // there are fewer of them than lines, and in Base64 none
		if dot < 0 {
			break
		}
		i += dot
		before, before2 := s.before(p, i)
		switch {
		case !isNewline(before):
			i++
			continue
		case before == '\n' && before2 == '\r': // the beginning of a line
		case i == len(p)-1: // the next octet decides
			if _, err := s.w.Write(p[done:i]); err != nil {
				return done, err
			}
			s.prev2, s.prev, s.held = before2, before, true
			return total, nil
		case !isNewline(p[i+1]):
			i++
			continue
		}
		if _, err := s.w.Write(p[done:i]); err != nil {
			return done, err
		}
		if _, err := io.WriteString(s.w, "."); err != nil {
			return done, err
		}
		done = i
		i++
	}
	if _, err := s.w.Write(p[done:]); err != nil {
		return done, err
	}
	switch {
	case len(p) >= 2:
		s.prev2, s.prev = p[len(p)-2], p[len(p)-1]
	case len(p) == 1:
		s.prev2, s.prev = s.prev, p[0]
	}
	return total, nil
}

// before returns the octets before p[i].
func (s *stuffer) before(p []byte, i int) (prev, prev2 byte) {
	switch i {
	case 0:
		return s.prev, s.prev2
	case 1:
		return p[0], s.prev
	}
	return p[i-1], p[i-2]
}

// end writes the final dot, on a line of its own.
func (s *stuffer) end() error {
	end := ".\r\n"
	if s.held { // it ends with a lone dot after a bare CR or LF
		end = "..\r\n" + end
	} else if s.prev2 != '\r' || s.prev != '\n' {
		end = "\r\n" + end
	}
	_, err := io.WriteString(s.w, end)
	return err
}

func isNewline(c byte) bool { return c == '\n' || c == '\r' }
