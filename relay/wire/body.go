package wire

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"time"

	"waybill/relay/mail"
)

// ErrAborted says that the client gave up a chunked content, by RSET, QUIT or
// EHLO before the last chunk (RFC 3030 section 2).
var ErrAborted = errors.New("content given up by the client")

type bodyMode uint8

const (
	modeData bodyMode = iota
	modeChunk
)

// Body is the content of one message, decoded, as a session must read it:
// what go-smtp offers to Session.Data is empty. It is used on the goroutine
// that reads.
type Body struct {
	c        *Conn
	open     bool // DATA or BDAT was given to go-smtp, and the content has not ended
	answered bool // go-smtp's 354 was taken
	mode     bodyMode
	dots     dots
	policy   Newline
	ended    bool  // the end was seen
	err      error // sticky
	broken   bool  // the connection is not usable any more
	told     bool  // and the client has its reply
	unsafe   bool  // nothing after this content may be trusted

	left    int64 // octets of the chunk that are still to come
	last    bool  // it is the last chunk
	cr      bool  // a CR was read and not yet given out
	afterCR bool  // a CR was given out, and a LF follows

	repaired bool // bare newlines or NUL were
	binary   bool // there may be any octet

	place   Place // or nil
	octets  int64 // given out
	began   time.Time
	network int64     // octets received since began
	first   time.Time // when the content began: began is that of its present chunk
	before  int64     // octets that the session had received then
	scratch []byte
	rest    []byte // for Read
}

// Body returns the content of the message that go-smtp is asking for, in a call
// of Session.Data.
func (c *Conn) Body() *Body {
	c.body.answer()
	return &c.body
}

// A Place is where the octets of a content end up.
type Place interface {
	// Room is where the next octets will be, as far as that is known: they can be
	// received there, and need not be copied. It may be empty.
	Room() []byte
}

// Into lets [Body.Next] receive the content of DATA where p has room for it. What
// Next returns is then at the start of that room, but for what had to be
// repaired; the caller puts it into p before it calls Next again.
func (b *Body) Into(p Place) { b.place = p }

// Repaired reports whether what was given out differs from what the client sent:
// bare newlines, or NUL, were made what they should have been.
func (b *Body) Repaired() bool { return b.repaired }

// SevenBit reports whether all that was given out is known to be of octets below
// 128. It is found out beside what must be looked at anyway.
func (b *Body) SevenBit() bool { return !b.dots.eight && !b.binary }

func (b *Body) start(mode bodyMode) {
	c := b.c
	*b = Body{c: c, open: true, mode: mode, policy: c.opts.BareNewline, began: time.Now()}
	// A client whose commands all ended in a bare LF is a device that knows no
	// better, and ends its content so. A server that passes on what others wrote,
	// and could be made to smuggle, ends its own commands in CRLF.
	b.dots.lf = b.policy == Normalise && !c.crlf
	b.first, b.before = b.began, c.in.total
	if mode == modeChunk {
		b.policy = c.opts.BareNewlineChunks
		if c.env.Body == mail.BodyBinaryMIME {
			b.policy = keep
		}
	}
}

// answer takes go-smtp's 354: for DATA it goes to the client, for BDAT, which
// has no such reply, it does not.
func (b *Body) answer() {
	if !b.open || b.answered {
		return
	}
	b.answered = true
	c := b.c
	if b.mode == modeData {
		c.settle()
		c.now = dot
		return
	}
	if parseReply(c.reply).Code == 354 {
		c.reply = c.reply[:0]
	}
}

// Next returns the next octets of the content. They are valid until the next
// call, and the caller may change them. At the end it returns io.EOF. An error
// that is a [*mail.ReplyError] is the reply that the client deserves; after any
// error the message must not be accepted.
func (b *Body) Next() ([]byte, error) {
	if b.err != nil {
		return nil, b.err
	}
	var p []byte
	var err error
	if b.mode == modeData {
		p, err = b.nextData()
	} else {
		p, err = b.nextChunk()
	}
	b.err = err
	b.octets += int64(len(p))
	return p, err
}

// Read is [Body.Next] as an io.Reader.
func (b *Body) Read(p []byte) (int, error) {
	for len(b.rest) == 0 {
		var err error
		if b.rest, err = b.Next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// Octets is how much of the content [Body.Next] has given out.
func (b *Body) Octets() int64 { return b.octets }

func (b *Body) nextData() ([]byte, error) {
	for {
		if b.ended {
			return nil, io.EOF
		}
		if b.c.in.len() > 0 {
			p, err := b.decode()
			if err != nil || len(p) > 0 {
				return p, err
			}
			if b.ended {
				continue
			}
		}
		if b.place != nil {
			if room := b.place.Room(); len(room) >= leastRoom {
				p, err := b.receiveInto(room)
				if err != nil || len(p) > 0 {
					return p, err
				}
				continue
			}
		}
		if err := b.fill(); err != nil {
			return nil, err
		}
	}
}

// leastRoom is for how much a read is worth its while, by taste. It is more than
// what [dots.decode] may leave.
const leastRoom = 1 << 10

// receiveInto receives and decodes more of a content in room. What is not of the
// content, or cannot be decided yet, goes back to the connection.
func (b *Body) receiveInto(room []byte) ([]byte, error) {
	in := &b.c.in
	room = room[:min(len(room), largeBuffer)] // all of it must fit there
	held := copy(room, in.bytes())
	in.advance(held)
	n, err := b.receive(room[held:])
	if err != nil {
		return nil, err
	}
	src := room[:held+n]
	p, n, end := b.dots.decode(src)
	in.put(src[n:])
	return b.decoded(p, end)
}

// decode decodes what has been received.
func (b *Body) decode() ([]byte, error) {
	in := &b.c.in
	p, n, end := b.dots.decode(in.bytes())
	in.advance(n)
	return b.decoded(p, end)
}

// decoded looks at what was decoded, and whether the content ends there.
func (b *Body) decoded(p []byte, end bool) ([]byte, error) {
	if end {
		b.finish()
	}
	if !b.dots.bare && !b.dots.nul {
		return p, nil
	}
	if b.policy == Reject {
		b.unsafe = true
		return nil, b.impure(b.dots.nul)
	}
	b.dots.bare, b.dots.nul = false, false
	b.repaired = true
	b.scratch = normalise(b.scratch[:0], p, false)
	return b.scratch, nil
}

func (b *Body) impure(nul bool) error {
	if nul {
		return mail.Refuse(550, "5.6.0", "protocol", "NUL is not allowed in a message")
	}
	return mail.Refuse(550, "5.6.0", "bare_newline", "lines must end in CRLF") // RFC 5321 section 2.3.8
}

// finish notes that the end of the content was seen.
func (b *Body) finish() {
	b.ended = true
	b.c.nowAt = time.Now()
}

func (b *Body) nextChunk() ([]byte, error) {
	in := &b.c.in
	for {
		if b.left == 0 {
			if !b.last {
				if err := b.nextCommand(); err != nil {
					return nil, err
				}
				continue
			}
			if !b.ended {
				b.finish()
			}
			if !b.cr {
				return nil, io.EOF
			}
			b.cr = false
			if b.policy == Reject {
				return nil, b.impure(false)
			}
			b.repaired = true
			return []byte{' '}, nil
		}
		if in.len() == 0 {
			if err := b.fill(); err != nil {
				return nil, err
			}
			continue
		}
		p := in.bytes()
		if int64(len(p)) > b.left {
			p = p[:b.left]
		}
		if b.policy == keep {
			b.binary = true
			in.advance(len(p))
			b.left -= int64(len(p))
			return p, nil
		}
		if b.cr { // what follows it decides
			b.cr = false
			switch {
			case p[0] == '\n':
				b.afterCR = true
				return []byte{'\r'}, nil
			case b.policy == Reject:
				return nil, b.impure(false)
			}
			b.repaired = true
			return []byte{' '}, nil
		}
		in.advance(len(p))
		b.left -= int64(len(p))
		if p[len(p)-1] == '\r' {
			b.cr = true
			p = p[:len(p)-1]
		}
		afterCR := b.afterCR
		b.afterCR = false
		nul := false
		if !ordinary(p) {
			b.dots.eight = true
			nul = bytes.IndexByte(p, 0) >= 0
		}
		if !nul && paired(p, afterCR) {
			if len(p) > 0 {
				return p, nil
			}
			continue
		}
		if b.policy == Reject {
			return nil, b.impure(nul)
		}
		b.repaired = true
		b.scratch = normalise(b.scratch[:0], p, afterCR)
		return b.scratch, nil
	}
}

// nextCommand answers a chunk that was not the last and reads commands until
// the next chunk begins.
func (b *Body) nextCommand() error {
	c := b.c
	c.script.Content(time.Now(), b.network)
	c.nowAt = time.Now()
	c.answer(250, "2.0.0", "chunk received")
	for {
		if len(c.out) > maxOut && c.flush() != nil {
			return b.fail(io.ErrUnexpectedEOF)
		}
		line, err := c.line(maxLine, b.deadline(time.Now()), false)
		c.nowAt = time.Now()
		if err != nil {
			c.lineError(err)
			if c.cause != "" {
				b.broken, b.told = true, true
				return io.ErrUnexpectedEOF
			}
			continue
		}
		word, args, _ := bytes.Cut(line, space)
		switch v := verbOf(word); v {
		case bdat:
			c.now = v
			c.commands++
			c.script.Client(c.nowAt, line)
			n, last, ok := parseChunk(args)
			if !ok {
				c.bye(CauseProtocol, 501, "5.5.4", "malformed chunk size")
				b.broken, b.told = true, true
				return io.ErrUnexpectedEOF
			}
			b.left, b.last = n, last
			b.began, b.network = time.Now(), 0
			return nil
		case noop, vrfy, expn, help:
			c.dispatch(line)
		case rset, quit, helo, ehlo:
			c.held = bytes.Clone(line)
			b.ended = true
			c.swallow = true
			return ErrAborted
		default:
			if v == unknown {
				c.dispatch(line)
				break
			}
			c.now = v
			c.commands++
			c.script.Client(c.nowAt, []byte(v.String()+" (in a content)"))
			c.offend(503, "5.5.1", "bad sequence of commands") // RFC 3030 section 2
		}
		if c.cause != "" {
			b.broken, b.told = true, true
			return io.ErrUnexpectedEOF
		}
	}
}

// fill receives more of the content.
func (b *Body) fill() error {
	_, err := b.receive(nil)
	return err
}

// receive receives more of the content into room, or into the connection's own
// buffer when that is nil. Its deadline moves with the content: each block must
// come in time, and all of it fast enough on average, so that a client that sends
// an octet a minute does not hold a session for ever.
func (b *Body) receive(room []byte) (n int, err error) {
	c := b.c
	deadline := b.deadline(time.Now())
	if total := b.began.Add(c.opts.CommandTimeout + c.atLeast(b.network)); total.Before(deadline) {
		deadline = total
	}
	before := c.in.total
	if room == nil {
		err = c.fill(deadline, false, true)
	} else if err = c.flush(); err == nil {
		n, err = c.receive(room, deadline, false)
		c.in.total += int64(n)
	}
	b.network += c.in.total - before
	if err != nil {
		return 0, b.fail(err)
	}
	return n, nil
}

// chunksTimes is how many command timeouts a content in chunks may take beside
// what its octets do, by taste: a client that sends small chunks waits for a
// reply to each.
const chunksTimes = 4

// deadline is until when more must have come: the command timeout from now, and
// not after the content as a whole must have ended, so that chunks of no size do
// not hold a session for ever.
func (b *Body) deadline(now time.Time) time.Time {
	c := b.c
	deadline := now.Add(c.opts.CommandTimeout)
	if total := b.first.Add(chunksTimes*c.opts.CommandTimeout + c.atLeast(c.in.total-b.before)); total.Before(deadline) {
		return total
	}
	return deadline
}

// atLeast is how long n octets take at the slowest rate.
func (c *Conn) atLeast(n int64) time.Duration {
	return time.Duration(float64(n) / float64(c.opts.MinRate) * float64(time.Second))
}

// fail ends the content, and with it the connection: nothing that would still
// come can be told from a command.
func (b *Body) fail(err error) error {
	b.broken = true
	if errors.Is(err, errTimeout) {
		b.c.setCause(CauseTimeout)
		e := mail.Refuse(421, "4.4.2", "timeout", "timeout, closing connection")
		e.Err = errTimeout
		return e
	}
	b.c.setCause(b.c.lost())
	b.c.failed = true
	return io.ErrUnexpectedEOF
}

// end reads what the session has left of the content.
func (b *Body) end() {
	in := &b.c.in
	b.policy = Normalise // nobody looks at it any more
	for !b.ended && !b.broken {
		if b.network > maxDiscard {
			b.broken = true
			b.c.setCause(CauseProtocol)
			return
		}
		if b.mode == modeChunk {
			if n := min(b.left, int64(in.len())); n > 0 {
				in.advance(int(n))
				b.left -= n
			}
			if b.left == 0 {
				b.finish()
				return
			}
		} else if in.len() > 0 {
			_, n, end := b.dots.decode(in.bytes())
			in.advance(n)
			if end {
				b.finish()
				return
			}
		}
		_ = b.fill() // what it means is in b.broken
	}
}

// endBody is called when go-smtp wants to see the end of the content.
func (c *Conn) endBody() error {
	b := &c.body
	b.answer()
	if !b.open { // DATA was refused after all
		return c.step()
	}
	b.end()
	b.open = false
	b.scratch, b.rest, b.place = nil, nil, nil
	if c.swallow { // given up: the command that did it is answered
		c.now = bdat
		c.give(safeEnd)
		return nil
	}
	at := c.nowAt // when it ended
	if !b.ended {
		at = time.Now()
	}
	c.script.Content(at, b.network)
	if b.mode == modeData {
		c.now = dot
	} else {
		c.now = bdat
	}
	switch {
	case b.broken && !b.told && c.cause == CauseTimeout:
		c.override = mail.Reply{Code: 421, Enhanced: "4.4.2", Text: "timeout, closing connection"}
		return io.ErrUnexpectedEOF
	case b.broken:
		c.swallow = b.told || c.cause == CauseClosed || c.cause == CauseShutdown // nobody is there to hear it
		return io.ErrUnexpectedEOF
	case b.unsafe:
		c.setCause(CauseProtocol) // after the reply
	}
	c.give(safeEnd)
	return nil
}

// chunk handles the first BDAT of a transaction. go-smtp sees DATA: its own BDAT
// runs the session on a second goroutine, accepts a chunk that was cut off, and
// reads the octets of a refused one as commands.
func (c *Conn) chunk(args []byte) {
	n, last, ok := parseChunk(args)
	if !ok {
		c.bye(CauseProtocol, 501, "5.5.4", "malformed chunk size")
		return
	}
	b := &c.body
	b.start(modeChunk)
	b.left, b.last = n, last
	var refusal *mail.ReplyError
	switch {
	case !c.opts.Extensions.has(chunking):
		refusal = mail.Refuse(502, "5.5.1", "protocol", "BDAT is not offered")
	case !c.tx:
		refusal = mail.Refuse(503, "5.5.1", "protocol", "bad sequence of commands")
	case c.rcpts == 0:
		refusal = mail.Refuse(554, "5.5.1", "protocol", "no valid recipients")
	default:
		refusal = c.begin()
	}
	if refusal == nil {
		c.give(safeData)
		return
	}
	// The octets follow whatever we think of the command (RFC 3030 section 2).
	b.end()
	b.open = false
	c.script.Content(time.Now(), b.network)
	if b.broken {
		if c.cause == CauseTimeout {
			c.answer(421, "4.4.2", "timeout, closing connection")
		}
		return
	}
	if !c.tx {
		// Chunks that were sent before the refusal of an earlier one are no fault.
		if c.junk++; c.junk > maxJunk {
			c.throttled("junk", "close")
			c.bye(CauseErrors, 421, "4.7.0", "too many commands without mail")
			return
		}
		c.answer(refusal.Reply.Code, refusal.Reply.Enhanced, refusal.Reply.Text)
		return
	}
	// Without its first chunk nothing of this content may be taken: the
	// transaction is over.
	c.override = refusal.Reply
	c.give(safeRset)
}

// parseChunk parses the arguments of BDAT: a size, and perhaps LAST.
func parseChunk(args []byte) (n int64, last, ok bool) {
	word, rest, _ := bytes.Cut(bytes.Trim(args, " "), space)
	rest = bytes.TrimLeft(rest, " ")
	if len(word) == 0 || len(word) > 18 {
		return 0, false, false
	}
	for _, x := range word {
		if x < '0' || x > '9' {
			return 0, false, false
		}
	}
	n, err := strconv.ParseInt(string(word), 10, 64)
	last = len(rest) > 0
	return n, last, err == nil && (!last || bytes.EqualFold(rest, []byte("LAST")))
}
