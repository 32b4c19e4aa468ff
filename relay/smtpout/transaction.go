package smtpout

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"waybill/relay/mail"
)

const (
	maxGroup      = 100              // commands sent before their replies are read: replies that nobody reads must fit the peer's window (RFC 2920 section 3.1)
	contentGrace  = 10 * time.Minute // what any content may take
	contentRate   = 4 << 10          // octets a second that content of any size must reach on top of that
	envelopeSlack = 4                // an envelope may take as long as so many RCPT that are answered in the last moment
)

// transaction is one transaction of an attempt: the recipients that it is for,
// and what has become of its commands.
type transaction struct {
	a        *attempt
	s        *session
	bdat     bool  // content goes by BDAT (RFC 3030)
	utf8     bool  // MAIL says SMTPUTF8
	size     int64 // octets of the content as it goes
	sent     []command
	mailed   *failure // MAIL, or RSET before it, was refused
	lost     *failure // the session broke
	accepted []int
	refused  *failure // the last recipient that was refused for now
	asked    bool     // DATA was answered
	data     mail.Reply
	tooMany  bool // a recipient was refused because there were too many
	stuffer  stuffer
}

// command is one that was sent and not yet answered.
type command struct {
	verb string
	rcpt int // index of the recipient, for RCPT
}

// begin begins a transaction on s. The one before is over.
func (a *attempt) begin(s *session) *transaction {
	t := &a.now
	*t = transaction{a: a, s: s, size: a.m.Size, sent: t.sent[:0], accepted: t.accepted[:0]}
	return t
}

// transact hands the message over for the pending recipients. It returns nil
// when the session has decided what there was to decide, and otherwise why a
// different host may do better; recipients that were refused each have their
// own outcome already.
func (a *attempt) transact(s *session) *failure {
	if a.probe {
		return a.ask(s)
	}
	t := a.begin(s)
	params, f := t.prepare()
	if f != nil || len(a.pending) == 0 {
		return f
	}
	s.transactions++
	start := time.Now()
	s.deadline = start.Add(s.c.opts.Timeouts.Mail + envelopeSlack*s.c.opts.Timeouts.Rcpt + s.c.opts.Timeouts.Data)
	t.envelope(params)
	s.deadline = time.Time{}
	a.stages.Envelope += time.Since(start)
	switch {
	case t.lost != nil:
		if len(t.accepted) == 0 {
			return t.lost
		}
		a.decideAll(t.accepted, t.lost)
		a.decideRest(t.lost)
		return nil
	case t.mailed != nil:
		t.abort()
		if t.mailed.permanent {
			a.decideAll(a.pending, t.mailed)
			return nil
		}
		return t.mailed
	case len(t.accepted) == 0:
		t.abort()
		if len(a.pending) == 0 {
			return nil
		}
		return t.refused
	case !t.bdat && t.data.Code != 354:
		f := t.said("DATA", t.data)
		if s.dirty = true; f.lost {
			s.cause = f.cause
		}
		a.decideAll(t.accepted, f)
		return nil
	}
	t.content()
	return nil
}

// safe reports whether s can be part of a command line.
func safe(s string) bool { return !strings.ContainsAny(s, "\r\n\x00") }

// safeAddress reports whether a, which is written as its parts are, can be part of one.
func safeAddress(a mail.Address) bool { return safe(a.Local) && safe(a.Domain) }

// envelope sends RSET where needed, MAIL, RCPT for each pending recipient, and
// DATA: all at once to those that offer PIPELINING, one by one to others.
func (t *transaction) envelope(params string) {
	a, s := t.a, t.s
	todo := t.share(append([]int(nil), a.pending...))
	if s.dirty {
		s.dirty = false
		if !t.send("RSET", "", 0) {
			return
		}
	}
	if !t.send("MAIL ", params, 0) {
		return
	}
	for _, i := range todo {
		if !t.send("RCPT ", t.rcptArg(i), i) {
			return
		}
	}
	if s.ext.pipelining && !t.bdat && len(t.sent)+len(t.accepted) > 0 {
		t.send("DATA", "", 0)
		return
	}
	if t.drain() && len(t.accepted) > 0 && !t.bdat {
		t.send("DATA", "", 0)
	}
}

func (t *transaction) rcptArg(i int) string {
	r := &t.a.m.Envelope.Recipients[i]
	arg := "TO:<" + r.Address.String() + ">"
	if !t.s.ext.dsn {
		return arg
	}
	if r.Notify != 0 {
		arg += " NOTIFY=" + r.Notify.String()
	}
	if value := r.ORcptValue(t.utf8); value != "" {
		arg += " ORCPT=" + value
	}
	return arg
}

// send puts one command on its way. It reports whether the envelope can go on.
func (t *transaction) send(verb, arg string, rcpt int) bool {
	t.s.line(verb, arg)
	t.sent = append(t.sent, command{strings.TrimSuffix(verb, " "), rcpt}) // up to maxGroup; then they are drained
	if t.s.ext.pipelining && len(t.sent) < maxGroup && verb != "DATA" {
		return true
	}
	return t.drain()
}

// drain flushes and reads a reply for every command that was sent. It reports
// whether the envelope can go on.
func (t *transaction) drain() bool {
	s := t.s
	if len(t.sent) == 0 {
		return t.lost == nil && t.mailed == nil
	}
	if t.lost = s.early(t.sent[0].verb); t.lost != nil {
		return false
	}
	if err := s.w.Flush(); err != nil {
		// The peer may have said why before it closed.
		f := s.breaks(t.sent[0].verb, err)
		if t.lost = s.lastWords(t.sent[0].verb); t.lost == nil {
			t.lost = f
		}
		return false
	}
	to := &s.c.opts.Timeouts
	for _, c := range t.sent {
		timeout := to.Command
		switch c.verb {
		case "MAIL":
			timeout = to.Mail
		case "RCPT":
			timeout = to.Rcpt
		case "DATA":
			timeout = to.Data
		}
		if t.lost = s.await(c.verb, timeout); t.lost != nil {
			return false
		}
		if t.answered(c); t.lost != nil {
			return false
		}
	}
	t.sent = t.sent[:0]
	return t.mailed == nil
}

// answered takes the reply to c. A reply that ends the session ends the
// transaction, whatever else was sent.
func (t *transaction) answered(c command) {
	s, code := t.s, t.s.r.code
	if c.verb == "DATA" {
		if t.asked, t.data.Code = true, code; code != 354 {
			t.data = s.r.reply()
			if code == 421 && len(t.accepted) == 0 {
				t.breakOff(said(c.verb, s.at, t.data))
			}
		}
		return
	}
	if code/100 == 2 {
		if c.verb == "RCPT" && t.mailed == nil {
			t.accepted = append(t.accepted, c.rcpt)
		}
		return
	}
	f := t.said(c.verb, s.r.reply())
	if f.lost {
		t.breakOff(f)
		return
	}
	if t.mailed != nil { // what follows a refused MAIL says nothing new
		return
	}
	if c.verb != "RCPT" {
		if t.mailed = f; c.verb == "RSET" {
			f.permanent, f.lost = false, true
		}
		return
	}
	// RFC 5321 section 4.5.3.1.10: 452, and 552 from old hosts, once some are accepted, ends the list of recipients.
	tooMany := len(t.accepted) > 0 && (code == 452 && f.reply.Enhanced != "4.2.2" || code == 552 && (f.reply.Enhanced == "" || f.reply.Enhanced == "5.5.3"))
	if tooMany {
		t.tooMany, f.permanent = true, false
	}
	if f.permanent {
		t.a.decide(c.rcpt, f)
		return
	}
	t.refused = f
	t.a.outcomes[c.rcpt] = f.outcome(t.a.m.Envelope.Recipients[c.rcpt].Address)
}

// said is the failure that a reply to the transaction tells. A smart host that wants
// a login, or TLS first (RFC 4954 section 6, RFC 3207 section 4), refuses how we are
// set up, and not the message. As with a login that it refused, that is ours to mend,
// so it bounces no mail. A domain's own host means it for good: nobody has a login there.
func (t *transaction) said(verb string, r mail.Reply) *failure {
	f := said(verb, t.s.at, r)
	if len(t.s.c.opts.SmartHosts) > 0 && wantsLogin(r.Code) {
		f.permanent = false
	}
	return f
}

// wantsLogin reports whether code is one by which a host asks for another way to
// log in, for TLS before it, or for any.
func wantsLogin(code int) bool { return code == 530 || code == 534 || code == 535 || code == 538 }

func (t *transaction) breakOff(f *failure) {
	t.lost = f
	t.s.cause = f.cause
}

// abort ends a transaction without recipients. Where DATA was sent with the
// envelope and answered by 354 nevertheless, an empty message ends it (RFC 2920
// section 3.1).
func (t *transaction) abort() {
	s := t.s
	s.dirty = true
	if !t.asked || t.data.Code != 354 {
		return
	}
	s.r.log.add(fromClient, []byte("."), 0)
	_, _ = s.w.WriteString(".\r\n")
	if f := s.ask(".", s.c.opts.Timeouts.Data); f != nil || s.r.code == 421 {
		s.cause = "closed"
	}
}

// content sends the message to the recipients that were accepted and takes the
// reply that decides.
func (t *transaction) content() {
	a, s := t.a, t.s
	start := time.Now()
	if a.via.converted = ""; a.body.plan != nil {
		a.via.converted = a.body.plan.String()
	}
	s.deadline = start.Add(contentGrace + time.Duration(t.size/contentRate)*time.Second)
	out := s.out
	err := t.write()
	if err == nil {
		err = s.w.Flush()
	}
	sent := time.Now()
	s.deadline = time.Time{}
	a.stages.Data += sent.Sub(start)
	s.r.log.add(fromClient, contentWord, s.out-out)
	if err != nil {
		a.decideAll(t.accepted, t.unfinished(err))
		return
	}
	s.r.log.add(fromClient, []byte("."), 0)
	f := s.await(".", s.c.opts.Timeouts.Dot)
	a.stages.Reply += time.Since(sent)
	if f == nil && s.r.code/100 == 2 {
		t.relayed()
		return
	}
	if f == nil {
		f = t.said(".", s.r.reply())
		if f.lost {
			s.cause = f.cause
		}
		// An answer that is none, after the final dot, leaves open what became of the message.
		f.uncertain = s.r.code/100 == 3
	} else {
		f.uncertain = true
	}
	s.dirty = true
	a.decideAll(t.accepted, f)
}

func (t *transaction) relayed() {
	t.s.messages++
	reply := t.s.r.reply()
	left := t.a.pending[:0]
	next := 0
	for _, i := range t.a.pending { // both rise
		if next < len(t.accepted) && t.accepted[next] == i {
			next++
			t.a.outcomes[i] = mail.Outcome{
				Recipient: t.a.m.Envelope.Recipients[i].Address, Disposition: mail.Relayed, Reply: reply, Remote: true, Verb: ".",
			}
			continue
		}
		left = append(left, i)
	}
	t.a.pending = left
	t.a.again = t.tooMany && len(left) > 0
}

// write writes the content, and the final dot or the chunk's head.
func (t *transaction) write() error {
	a, s := t.a, t.s
	if !t.bdat {
		t.stuffer = newStuffer(s.w)
		st := &t.stuffer
		if err := a.body.each(st.write); err != nil {
			return err
		}
		if f := s.premature(); f != nil {
			return &earlyError{f}
		}
		return st.end()
	}
	s.line("BDAT ", strconv.FormatInt(t.size, 10)+" LAST")
	left := t.size
	err := a.body.each(func(p []byte) error {
		if left -= int64(len(p)); left < 0 {
			return &contentError{errLength}
		}
		_, err := s.w.Write(p)
		return err
	})
	if err == nil && left > 0 {
		err = &contentError{errLength}
	}
	return err
}

var errLength = errors.New("content is not as long as it should be")

// unfinished is the failure of content that was not sent to its end: the next
// hop cannot have taken it. The session is over.
func (t *transaction) unfinished(err error) *failure {
	s := t.s
	if e, ok := errors.AsType[*earlyError](err); ok {
		return e.f
	}
	if _, ok := errors.AsType[*contentError](err); ok {
		s.cause = "errors"
		s.kill()
		f := ours("DATA", 451, "4.3.0", mail.ClassOther, "%v", err)
		s.r.log.note(f.reply.Text)
		return f
	}
	f := s.breaks("DATA", err)
	if early := s.lastWords("."); early != nil {
		return early
	}
	return f
}

// lastWords reads what the peer said before the connection broke under a write,
// and returns it when it is a refusal.
func (s *session) lastWords(verb string) *failure {
	if s.closed.Load() || s.conn.SetReadDeadline(time.Now().Add(min(2*time.Second, s.c.opts.Timeouts.Command))) != nil || s.r.read() != nil {
		return nil
	}
	if s.r.code/100 != 4 && s.r.code/100 != 5 {
		return nil
	}
	f := said(verb, s.at, s.r.reply())
	f.lost = true
	return f
}
