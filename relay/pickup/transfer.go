package pickup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/policy"
)

// transfer is one file on its way into the queue.
type transfer struct {
	p       *Pickup
	session string
	emit    event.Emitter
	name    string
	parsed  parsed
	size    int64
	stated  bool     // the refusal was stated already
	changed []string // words of event.Changes
}

// run is the story of one file: its header section, who may send it to whom,
// its content, the queue. Errors that are no [*mail.ReplyError] pass.
func (t *transfer) run(ctx context.Context, f *os.File, written time.Time) error {
	p := t.p
	began := time.Now()
	in := bufio.NewReaderSize(f, 64<<10)
	head, err := readHeader(in, p.opts.HeaderSize)
	if err != nil {
		return err
	}
	if t.parsed, err = parse(head, p.opts.Permissions); err != nil {
		return err
	}
	if n := len(t.parsed.env.Recipients); n > p.opts.Recipients {
		return refuse("recipients", "%d recipients are more than %d", n, p.opts.Recipients)
	}
	if err := t.control(); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return unreadable(err)
	}
	content, err := p.opts.Acceptor.Begin(ctx, info.Size())
	if err != nil {
		return err
	}
	done := false
	defer func() {
		if !done {
			content.Abort()
		}
	}()
	if err := t.copy(content, in); err != nil {
		return err
	}
	ended := time.Now()
	id := mail.QueueID(mail.NewID(ended))
	env, h := t.parsed.env, t.parsed.header
	if t.parsed.eight && env.Body == mail.Body7Bit {
		env.Body = mail.Body8BitMIME
	}
	o := mail.Origin{Connector: p.opts.Name, Helo: printable(t.name), Protocol: "PICKUP", Session: t.session, MailAt: began, DataEndedAt: ended}
	changed := t.changed
	trace := fmt.Appendf(nil, "Received: by %s (Waybill) with PICKUP id %s;\r\n\t%s\r\n", p.opts.Hostname, id, ended.Format(dateForm))
	if !t.parsed.has("Date") { // RFC 6409 section 8: mail begins here
		trace = fmt.Appendf(trace, "Date: %s\r\n", written.Format(dateForm))
		changed = append(changed, "date")
	}
	if h.MessageID == "" {
		h.MessageID = "<" + string(id) + "@" + p.opts.Hostname + ">"
		trace = append(trace, "Message-ID: "+h.MessageID+"\r\n"...)
		changed = append(changed, "message_id")
	}
	if !t.parsed.has("From") && !env.Sender.IsNull() {
		h.From = env.Sender.String()
		trace = append(trace, "From: "+env.Sender.Path()+"\r\n"...)
		changed = append(changed, "from")
	}
	done = true // Commit ends it, whatever comes of it
	return content.Commit(ctx, mail.Draft{
		ID: id, UID: mail.NewUID(ended), Envelope: env, Origin: o, Header: h, Priority: env.Queueing(), Changed: strings.Join(changed, " "), Trace: trace,
	})
}

const dateForm = "Mon, 2 Jan 2006 15:04:05 -0700"

// control asks relay control about sender and recipients. One refused recipient
// refuses the file: whoever wrote it is not there to be told which.
func (t *transfer) control() error {
	if t.p.opts.Policy == nil {
		return nil
	}
	c := t.p.opts.Policy()
	peer := policy.Peer{Permissions: t.p.opts.Permissions, Senders: t.p.opts.Senders}
	if len(peer.Senders) > 0 {
		peer.User = t.p.opts.Name // so that its senders count
	}
	env := &t.parsed.env
	if e := c.Sender(peer, *env); e != nil {
		t.emit.Emit(event.SenderRefused{Refusal: t.p.refusal(e, *env)})
		t.stated = true
		return e
	}
	for i, r := range env.Recipients {
		if e := c.Recipient(peer, *env, r); e != nil {
			t.emit.Emit(event.RecipientRefused{Refusal: t.p.refusal(e, *env), Recipient: r.Address.String()})
			t.stated = true
			return e
		}
		if to := c.Target(r.Address); to != r.Address {
			env.Recipients[i].Address = to
			if !slices.Contains(t.changed, "postmaster") {
				t.changed = append(t.changed, "postmaster")
			}
		}
	}
	return nil
}

// copy writes header section and body, with CRLF for every line end: files have
// those of their system.
func (t *transfer) copy(to io.Writer, body *bufio.Reader) error {
	w := &lines{to: to, limit: t.p.opts.MessageSize}
	if t.p.opts.Permissions.BypassSize {
		w.limit = 0
	}
	if err := w.write(t.parsed.section); err != nil {
		return err
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := body.Read(buf)
		if werr := w.write(buf[:n]); werr != nil {
			return werr
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return unreadable(err)
		}
	}
	err := w.end()
	t.size, t.parsed.eight = w.size, t.parsed.eight || w.eight
	return err
}

// unreadable is a fault of the file's disk; the file is put aside, so that the
// others do not wait for it.
func unreadable(err error) *mail.ReplyError { return refuse("internal", "read: %w", err) }

// lines writes text with CRLF at its line ends, a space for NUL and for a CR
// that ends no line, and a line end at its end: nothing else may leave the relay
// (RFC 5321 section 2.3.8).
type lines struct {
	to    io.Writer
	limit int64
	size  int64
	eight bool
	cr    bool // the last octet was a CR
	mid   bool // not at the start of a line
	out   []byte
}

func (w *lines) write(p []byte) error {
	w.out = w.out[:0]
	for _, b := range p {
		if w.cr {
			w.cr = false
			if b != '\n' {
				w.out = append(w.out, ' ')
			}
		}
		switch {
		case b == '\r':
			w.cr, w.mid = true, true
			continue
		case b == '\n':
			w.out = append(w.out, '\r')
		case b == 0:
			b = ' '
		case b >= 0x80:
			w.eight = true
		}
		w.mid = b != '\n'
		w.out = append(w.out, b)
	}
	return w.flush()
}

func (w *lines) end() error {
	w.out = w.out[:0]
	if w.mid {
		w.out = append(w.out, '\r', '\n')
	}
	return w.flush()
}

func (w *lines) flush() error {
	if len(w.out) == 0 {
		return nil
	}
	if w.size += int64(len(w.out)); w.limit > 0 && w.size > w.limit {
		return refuse("size", "the message is larger than %d octets", w.limit)
	}
	_, err := w.to.Write(w.out)
	return err
}

// readHeader reads the header section up to its empty line, which it leaves
// out. Lines end in CRLF or LF; they come back with LF.
func readHeader(in *bufio.Reader, limit int) (section []string, err error) {
	size := 0
	for {
		var line strings.Builder
		for {
			part, err := in.ReadSlice('\n')
			if size += len(part); size > limit {
				return nil, refuse("header", "the header section is larger than %d octets", limit)
			}
			line.Write(part)
			if err == nil {
				break
			}
			if errors.Is(err, bufio.ErrBufferFull) {
				continue
			}
			if errors.Is(err, io.EOF) {
				if text := strings.TrimRight(line.String(), "\r"); text != "" {
					section = append(section, text)
				}
				return section, nil
			}
			return nil, unreadable(err)
		}
		text := strings.TrimSuffix(strings.TrimSuffix(line.String(), "\n"), "\r")
		if text == "" {
			return section, nil
		}
		section = append(section, text)
	}
}
