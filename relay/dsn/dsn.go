// Package dsn writes delivery status notifications: the reports that tell a
// sender that mail failed, is late, or was relayed (RFC 3461 to 3464, 6522,
// 6533).
//
// It exists so that a person understands what happened, a program can parse it,
// and nobody is hurt by it. It promises: never a report for a null sender
// (its failure may be told to the postmaster) nor one that NOTIFY does not want; one report for all recipients that it is given;
// text from a next hop or from the original message can never add a header
// field, a MIME part or a line of its own; a report without 8-bit octets unless
// the returned message or its sender's address has them; at most about 50 KiB
// of the original.
//
// To add words for a failure class, add a row to the table in words.go. To add a
// field to the machine-readable part, add it to [Options] and to status.go.
package dsn

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"mime"
	"mime/quotedprintable"
	netmail "net/mail"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"waybill/relay/mail"
)

// Kind is what a report is about in the first place.
type Kind string

// The kinds, the gravest first. A report about several recipients has the
// gravest kind among them.
const (
	Failed  Kind = "failed"
	Delayed Kind = "delayed"
	Relayed Kind = "relayed"
)

// Errors of [Compose]: there is to be no report.
var (
	ErrNullSender = errors.New("no report to the null reverse-path")
	ErrNotWanted  = errors.New("no report is wanted for any recipient")
)

// Options say what to report.
type Options struct {
	Hostname   string     // the reporting MTA: us
	Original   mail.Draft // the message that is reported on
	Size       int64      // octets of its content, without Trace
	AcceptedAt time.Time
	Expires    time.Time // when we stop trying; for delayed recipients
	Now        time.Time // zero means now
	Recipients []Recipient
	// Open gives the content of the original message, without Trace. When it is
	// nil or fails, the report goes without the returned part: that something
	// failed must be told even when the content is gone.
	Open func() (io.ReadCloser, error)
	// Postmaster gets the report instead of the sender when it is set: the
	// message is a report itself, and its failure a double bounce. NOTIFY, which
	// reports are sent without, does not count then.
	Postmaster mail.Address
}

// Recipient is one recipient to report on.
type Recipient struct {
	mail.Recipient
	Outcome  mail.Outcome
	Host     string    // the next hop's name, or empty when there was none
	Attempts int       // how many attempts there were
	At       time.Time // the last attempt; zero when there was none
	// Last is the answer to the last attempt, when Outcome.Reply is ours because
	// the lifetime has ended; LastRemote says that the next hop gave it.
	Last       mail.Reply
	LastRemote bool
	Traced     bool // BY= asks to tell of its relay too, unless NOTIFY=NEVER (RFC 2852)
}

// Kind is what the recipient's outcome amounts to.
func (r *Recipient) Kind() Kind {
	switch r.Outcome.Disposition {
	case mail.Relayed:
		return Relayed
	case mail.Queued, mail.Deferred, mail.Held:
		return Delayed
	case mail.Bounced, mail.Expired, mail.Dropped, mail.Moved:
	}
	return Failed
}

// Wanted reports whether the sender wants to hear of this outcome (RFC 3461
// section 4.1).
func (r *Recipient) Wanted() bool {
	switch r.Kind() {
	case Relayed:
		return r.Notify.Wants(mail.NotifySuccess) || r.Traced && !r.Notify.Wants(mail.NotifyNever)
	case Delayed:
		return r.Notify.Wants(mail.NotifyDelay)
	case Failed:
	}
	return r.Notify.Wants(mail.NotifyFailure)
}

// KindOf is the kind of a report about recipients: the gravest.
func KindOf(recipients []Recipient) Kind {
	kind := Relayed
	for i := range recipients {
		switch recipients[i].Kind() {
		case Failed:
			return Failed
		case Delayed:
			kind = Delayed
		case Relayed:
		}
	}
	return kind
}

// Compose writes one report about those of the recipients for whom one is
// wanted. The draft is ready for the queue: its reverse-path is null, its one
// recipient the sender of the original.
func Compose(opts Options) (content []byte, draft mail.Draft, err error) {
	sender := opts.Original.Envelope.Sender
	opts.Recipients = slices.Clone(opts.Recipients)
	if double := !opts.Postmaster.IsNull(); double {
		sender = opts.Postmaster
		opts.Recipients = slices.DeleteFunc(opts.Recipients, func(r Recipient) bool { return r.Kind() != Failed })
	} else {
		opts.Recipients = slices.DeleteFunc(opts.Recipients, func(r Recipient) bool { return !r.Wanted() })
	}
	if sender.IsNull() {
		return nil, mail.Draft{}, ErrNullSender
	}
	if len(opts.Recipients) == 0 {
		return nil, mail.Draft{}, ErrNotWanted
	}
	if opts.Now.IsZero() {
		opts.Now = time.Now()
	}
	kind := KindOf(opts.Recipients)
	original := read(&opts)
	kept := subject(&opts, kind) // by what the record knows of the original
	original.name(&opts.Original.Header)
	parts := []part{explanation(&opts, kind), status(&opts)}
	if p, ok := returned(&opts, kind, original); ok {
		parts = append(parts, p)
	}

	id := mail.NewID(opts.Now)
	draft = mail.Draft{
		ID:     mail.QueueID(id),
		UID:    mail.NewUID(opts.Now),
		Parent: opts.Original.ID,
		Envelope: mail.Envelope{
			// RFC 3461 section 6.1: a report never asks for a report.
			Recipients: []mail.Recipient{{Address: sender, Notify: mail.NotifyNever}},
			UTF8:       !sender.ASCII(),
		},
		Priority: opts.Original.Priority,
		Header: mail.Header{
			MessageID: "<" + id + "@" + word(opts.Hostname) + ">",
			From:      "postmaster@" + word(opts.Hostname),
			Subject:   kept,
		},
	}
	head := header(&opts, &draft, kind)
	boundary := boundaryFor(parts)
	var b bytes.Buffer
	b.Write(head)
	b.WriteString("Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"" + boundary + "\"\r\n\r\n")
	draft.Header.Bytes = b.Len()
	b.WriteString("This is a delivery status notification in MIME format (RFC 3464).\r\n")
	for _, p := range parts {
		b.WriteString("\r\n--" + boundary + "\r\n")
		b.WriteString("Content-Description: " + p.description + "\r\nContent-Type: " + p.kind + "\r\nContent-Transfer-Encoding: " + p.encoding + "\r\n\r\n")
		b.Write(p.body)
		if p.encoding == "8bit" {
			draft.Envelope.Body = mail.Body8BitMIME
		}
	}
	b.WriteString("\r\n--" + boundary + "--\r\n")
	if draft.Envelope.UTF8 {
		draft.Envelope.Body = mail.Body8BitMIME // RFC 6531 section 3.6: the header section has 8-bit octets
	}
	draft.Envelope.Size = int64(b.Len())
	return b.Bytes(), draft, nil
}

// header writes the report's header section without Content-Type.
func header(opts *Options, draft *mail.Draft, kind Kind) []byte {
	var b bytes.Buffer
	field := func(name, value string) { b.WriteString(fold(name+": "+value) + "\r\n") }
	field("Date", date(opts.Now))
	field("From", "Mail Delivery System <"+draft.Header.From+">")
	field("To", "<"+line(draft.Envelope.Recipients[0].Address.String(), maxAddress, true)+">")
	field("Subject", encodeWords(subject(opts, kind)))
	field("Message-ID", draft.Header.MessageID)
	if id := opts.Original.Header.MessageID; goodMessageID(id) {
		field("In-Reply-To", id)
		field("References", id)
	}
	field("Auto-Submitted", "auto-replied") // RFC 3834 section 5.2
	field("MIME-Version", "1.0")
	return b.Bytes()
}

func subject(opts *Options, kind Kind) string {
	prefix := map[Kind]string{Failed: "Undelivered mail: ", Delayed: "Delayed mail: ", Relayed: "Relayed mail: "}[kind]
	if !opts.Postmaster.IsNull() {
		prefix = "Undeliverable report: "
	}
	if s := line(opts.Original.Header.Subject, maxSubject, true); s != "" {
		return prefix + s
	}
	return prefix + "to " + line(opts.Recipients[0].Address.String(), maxSubject, true)
}

// encodeWords writes s as RFC 2047 wants it in an unstructured field: as it is
// when it is plain ASCII, else in encoded words that [fold] can part.
func encodeWords(s string) string {
	// The encoder leaves printable ASCII alone, even what reads as an encoded word.
	return mime.QEncoding.Encode("utf-8", strings.ReplaceAll(s, "=?", "= ?"))
}

// part is one body part of the report.
type part struct {
	description string
	kind        string // Content-Type
	encoding    string // Content-Transfer-Encoding
	body        []byte // encoded; ends in CRLF
}

// textPart makes a part that 7-bit transport cannot harm.
func textPart(description, kind string, body []byte) part {
	if transparent(body) {
		return part{description, kind, "7bit", body}
	}
	var b bytes.Buffer
	w := quotedprintable.NewWriter(&b)
	_, _ = w.Write(body) // a Buffer does not fail
	_ = w.Close()
	return part{description, kind, "quoted-printable", b.Bytes()}
}

// boundaryFor makes a boundary that stands in none of the parts. "=_" cannot
// stand in quoted-printable (RFC 2045 section 6.7); for the rest, 128 random
// bits settle it, and we look all the same.
func boundaryFor(parts []part) string {
	for {
		var r [16]byte
		_, _ = rand.Read(r[:]) // never fails (Go 1.24)
		b := "=_" + hex.EncodeToString(r[:])
		if !slices.ContainsFunc(parts, func(p part) bool { return bytes.Contains(p.body, []byte(b)) }) {
			return b
		}
	}
}

const (
	maxReturned = 50 << 10 // octets of the original that go back
	maxLine     = 998      // RFC 5322 section 2.1.1
)

// returned is the last part: the original's header section, or all of it when
// RET=FULL asks for it (RFC 3461 section 4.3) and it is small and clean. A report
// of no failure has the header section only, whatever RET says (there, too); a
// postmaster gets the report that could not be delivered whole.
func returned(opts *Options, kind Kind, original beginning) (part, bool) {
	content, whole := []byte(original), len(original) <= maxReturned
	full := opts.Original.Envelope.Ret == "FULL" && kind == Failed || !opts.Postmaster.IsNull()
	media, headers := "message/rfc822", "text/rfc822-headers"
	if opts.Original.Envelope.UTF8 {
		media, headers = "message/global", "message/global-headers" // RFC 6533 sections 5 and 6
	}
	if full && whole && opts.Original.Envelope.Body != mail.BodyBinaryMIME && transportable(content) {
		p := part{"Your message", media, "7bit", content}
		if !isASCII(content) {
			p.encoding = "8bit"
		} else if opts.Original.Envelope.UTF8 {
			p.kind = "message/rfc822"
		}
		return p, true
	}
	if len(content) > maxReturned {
		content = content[:maxReturned]
	}
	head := headerSection(content)
	if len(head) == 0 {
		return part{}, false
	}
	if isASCII(head) {
		headers = "text/rfc822-headers"
	}
	return textPart("Header section of your message", headers, head), true
}

// content is the beginning of the original, as it would leave: at most one octet
// more than goes back.
type beginning []byte

// read reads it; nil when it is gone.
func read(opts *Options) beginning {
	if opts.Open == nil {
		return nil
	}
	r, err := opts.Open()
	if err != nil {
		return nil
	}
	defer r.Close()
	trace := opts.Original.Trace
	b, err := io.ReadAll(io.LimitReader(r, max(0, maxReturned-int64(len(trace)))+1))
	if err != nil {
		return nil
	}
	return append(slices.Clip(slices.Clone(trace)), b...)
}

// name puts in what a person knows the message by. The record may keep no
// subject, or its hash; who wrote it may read it.
func (c beginning) name(h *mail.Header) {
	if len(c) == 0 {
		return
	}
	m, err := netmail.ReadMessage(bytes.NewReader(append(headerSection(c), '\r', '\n')))
	if err != nil {
		return
	}
	words, said := mime.WordDecoder{}, m.Header.Get("Subject")
	if h.Subject, err = words.DecodeHeader(said); err != nil {
		h.Subject = said
	}
}

// headerSection returns the whole lines before the first empty line, with CRLF
// at their ends.
func headerSection(content []byte) []byte {
	var b bytes.Buffer
	for {
		l, rest, ok := bytes.Cut(content, []byte("\n"))
		l = bytes.TrimSuffix(l, []byte("\r"))
		if !ok || len(l) == 0 {
			break
		}
		b.Write(l)
		b.WriteString("\r\n")
		content = rest
	}
	return b.Bytes()
}

// transparent reports whether b may go as it is with encoding 7bit.
func transparent(b []byte) bool { return isASCII(b) && transportable(b) }

// transportable reports whether b is lines of at most 998 octets that end in
// CRLF, without NUL and stray CR and LF: what encoding 8bit may hold (RFC 2045
// section 2.8).
func transportable(b []byte) bool {
	for len(b) > 0 {
		l, rest, ok := bytes.Cut(b, []byte("\r\n"))
		if !ok || len(l) > maxLine || bytes.ContainsAny(l, "\r\n\x00") {
			return false
		}
		b = rest
	}
	return true
}

func isASCII(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c >= utf8.RuneSelf })
}

// date is t as RFC 5322 section 3.3 writes it.
func date(t time.Time) string { return t.UTC().Format("Mon, 02 Jan 2006 15:04:05 -0700") }

// goodMessageID reports whether a Message-ID of a stranger may be repeated in
// our header section.
func goodMessageID(id string) bool {
	inner, ok := strings.CutPrefix(id, "<")
	inner, ok2 := strings.CutSuffix(inner, ">")
	return ok && ok2 && inner != "" && len(id) <= 250 && isPlain(inner) && !strings.ContainsAny(inner, "<> ")
}
