package smtpin

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/reuse"
	"waybill/relay/throttle"
	"waybill/relay/tlsconf"
	"waybill/relay/wire"
)

// transaction is one MAIL and what follows it, to its end.
type transaction struct {
	s    *session
	env  mail.Envelope
	seen map[string]struct{} // recipients, when there is more than one
	at   time.Time           // MAIL was read
	in   Incoming            // nil before content, and when it is ended
	head headerScanner
	wall firewall
	size int64
	turn throttle.Turn // to be taken in

	changed []string // words of event.Changes
	trace   []byte   // that is handed over with the message
}

// transactions are those that have ended, with the room that their header fields
// took: a session has one at a time, and most have none.
var transactions = sync.Pool{New: func() any { return new(transaction) }}

// begins returns a transaction for MAIL, which was read at at.
func (s *session) begins(env mail.Envelope, at time.Time) *transaction {
	tx := transactions.Get().(*transaction)
	tx.s, tx.env, tx.at = s, env, at
	return tx
}

// end gives up what was not handed over, and tx itself.
func (tx *transaction) end() {
	tx.abort()
	tx.turn.End()
	room := tx.head.values
	for i := range room {
		reuse.Spoil(room[i])
		room[i] = room[i][:0]
	}
	reuse.Spoil(tx.trace)
	*tx = transaction{head: headerScanner{values: room}, trace: tx.trace[:0]}
	transactions.Put(tx)
}

// change notes what was changed of the message.
func (tx *transaction) change(word string) {
	if !slices.Contains(tx.changed, word) {
		tx.changed = append(tx.changed, word)
	}
}

// add adds a recipient, unless it is there already: a message is for somebody
// once.
func (tx *transaction) add(r mail.Recipient) {
	if len(tx.env.Recipients) > 0 {
		if tx.seen == nil {
			tx.seen = map[string]struct{}{tx.env.Recipients[0].Address.Key(): {}}
		}
		key := r.Address.Key()
		if _, dup := tx.seen[key]; dup {
			return
		}
		tx.seen[key] = struct{}{}
	}
	tx.env.Recipients = append(tx.env.Recipients, r)
}

// receive streams the content to the acceptor, and hands the message over.
func (tx *transaction) receive(body *wire.Body) (mail.QueueID, *mail.ReplyError) {
	if p, ok := tx.in.(wire.Place); ok {
		body.Into(p)
	}
	for {
		p, err := body.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", replyError(err, mail.Refuse(451, "4.4.2", "protocol", "content is not complete"))
		}
		if e := tx.take(p); e != nil {
			return "", e
		}
	}
	tx.turn.Received()
	ended := time.Now()
	tx.head.end()
	if e := tx.check(); e != nil {
		return "", e
	}
	s := tx.s
	if err := tx.wall.end(tx.in); err != nil {
		return "", replyError(err, mail.Refuse(451, "4.3.0", "storage", "cannot take the message now"))
	}
	id := mail.QueueID(mail.NewID(ended))
	o := tx.origin(ended)
	draft := mail.Draft{
		ID: id, UID: mail.NewUID(ended), Envelope: tx.env, Origin: o, Header: tx.head.header(), Priority: tx.priority(),
		Trace: appendTrace(tx.trace[:0], s.c.hostname(s.srv.opts), o, id, tx.env, ended), SevenBit: body.SevenBit(),
	}
	if s.c.Headers.Complete {
		fields, messageIDs := tx.head.missing(tx.env.Sender, id, s.c.hostname(s.srv.opts), ended)
		draft.Trace = append(draft.Trace, fields...)
		tx.completed(fields)
		draft.Header.MessageID = cmp.Or(draft.Header.MessageID, messageIDs)
		if draft.Header.From == "" && !tx.env.Sender.IsNull() {
			draft.Header.From = tx.env.Sender.String()
		}
	}
	draft.Header.Bytes = max(0, draft.Header.Bytes-tx.wall.removed)
	if n := tx.wall.fields; n > 0 {
		tx.change("fields:" + strconv.Itoa(n))
	}
	if body.Repaired() {
		tx.change("newlines")
	}
	draft.Changed = strings.Join(tx.changed, " ")
	in := tx.in
	tx.in, tx.trace = nil, draft.Trace // Commit ends in, whatever comes of it
	if err := in.Commit(s.srv.life, draft); err != nil {
		return "", replyError(err, mail.Refuse(451, "4.3.0", "storage", "cannot take the message now"))
	}
	return id, nil
}

// completed notes which header fields were added.
func (tx *transaction) completed(fields []byte) {
	for line := range bytes.Lines(fields) {
		switch name, _, _ := bytes.Cut(line, []byte(":")); string(name) {
		case "Date":
			tx.change("date")
		case "Message-ID":
			tx.change("message_id")
		case "From":
			tx.change("from")
		case "\r\n":
			tx.change("separator")
		}
	}
}

// take checks and passes on a part of the content.
func (tx *transaction) take(p []byte) *mail.ReplyError {
	tx.size += int64(len(p))
	if l := tx.s.c.Limits.MessageSize; l > 0 && tx.size > l && !tx.s.may().BypassSize {
		return mail.Refuse(552, "5.3.4", "size", "message too large")
	}
	if !tx.head.done {
		tx.head.write(p)
		if e := tx.check(); e != nil {
			return e
		}
	}
	if err := tx.store(p); err != nil {
		return replyError(err, mail.Refuse(451, "4.3.0", "storage", "cannot take the message now"))
	}
	return nil
}

// store passes on what the client has the right to hand in.
func (tx *transaction) store(p []byte) error {
	if tx.s.may().KeepHeaders {
		_, err := tx.in.Write(p)
		return err
	}
	return tx.wall.pass(p, tx.in)
}

// check looks at what is known of the header section.
func (tx *transaction) check() *mail.ReplyError {
	l := tx.s.c.Limits
	if l.HeaderSize > 0 && tx.head.size > l.HeaderSize {
		return mail.Refuse(552, "5.3.4", "header", "header section too large")
	}
	if l.HeaderFields > 0 && tx.head.fields > l.HeaderFields {
		return mail.Refuse(552, "5.3.4", "header", "too many header fields")
	}
	if l.Hops > 0 && tx.head.received > l.Hops {
		return mail.Refuse(554, "5.4.6", "hops", "too many hops: mail loop") // RFC 5321 section 6.3
	}
	switch h := tx.s.c.Headers; {
	case tx.head.dirty: // lines of a header section end in CRLF in binary content too (RFC 3030 section 3)
		return mail.Refuse(550, "5.6.0", "bare_newline", "lines of the header section must end in CRLF")
	case h.NoMalformed && tx.head.wrong:
		return mail.Refuse(550, "5.6.0", "header", "malformed header section")
	case h.NoEightBit && tx.head.eight && !tx.env.UTF8: // RFC 6532
		return mail.Refuse(550, "5.6.0", "utf8", "non-ASCII header field needs SMTPUTF8")
	}
	return nil
}

func (tx *transaction) origin(ended time.Time) mail.Origin {
	s := tx.s
	name, esmtp := s.conn.Helo()
	o := mail.Origin{
		Session: s.id, Connector: s.c.Name, Client: s.remote, ClientName: s.name, Helo: name, User: s.user, Mechanism: s.mechanism,
		MailAt: tx.at, DataEndedAt: ended,
	}
	t := s.conn.TLS()
	if t != nil {
		o.TLSVersion, o.TLSCipher = tlsconf.VersionName(t.Version), cipherName(t.CipherSuite)
	}
	o.Protocol = protocol(esmtp, tx.env.UTF8, t != nil, s.user != "")
	return o
}

// refused is the fact that the content was refused.
func (tx *transaction) refused(e *mail.ReplyError) event.MessageRefused {
	f := event.MessageRefused{Refusal: tx.s.refusal(e, tx.env), Size: tx.size}
	for _, r := range tx.env.Recipients {
		f.Recipients = append(f.Recipients, event.Recipient{
			Address: r.Address.String(), Original: r.ORcpt, Code: e.Reply.Code, Enhanced: e.Reply.Enhanced,
		})
	}
	return f
}

// abort gives up what was not handed over.
func (tx *transaction) abort() {
	if tx.in != nil {
		in := tx.in
		tx.in = nil
		in.Abort()
	}
}

// trust lowers what an envelope asks for to what its sender may have: strangers
// do not overtake others (RFC 6710 section 5.2).
func (s *session) trust(env *mail.Envelope) {
	if env.Priority <= 0 || s.urgent() {
		return
	}
	env.Priority = 0
	s.conn.Answer(mail.Reply{Code: 250, Enhanced: "2.3.6", Text: "sender ok, with priority 0"})
}
