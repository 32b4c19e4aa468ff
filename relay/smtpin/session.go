package smtpin

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/policy"
	"waybill/relay/throttle"
	"waybill/relay/transcript"
	"waybill/relay/wire"

	"github.com/emersion/go-smtp"
)

// session is one connection. All of it but the drain is used on the one
// goroutine that go-smtp runs for the connection.
type session struct {
	srv    *Server
	at     entrances // behind the socket that it came in at
	visit  visit     // as it came
	c      *connector
	conn   *conn
	id     string
	emit   event.Emitter
	remote netip.AddrPort
	local  netip.AddrPort

	name      string // of the client, as a trusted one has named it
	user      string
	senders   []string
	anySender bool
	rights    *policy.Permissions // of the user; nil: those of the connector
	mechanism string
	failures  int       // of AUTH
	exchange  *exchange // the AUTH in hand, or nil

	byCertificate bool // a login by certificate was tried

	tx       *transaction
	messages int
	begun    bool          // SessionOpened is stated
	leave    func()        // gives back what the connection was let in with
	delay    time.Duration // of the greeting
	slowed   bool          // that we are slow was stated

	script *transcript.Log
	sender bool // one of its senders is named by the transcript's rule
}

func (s *Server) newSession(at entrances, c *connector, raw net.Conn, v visit, leave func(), delay time.Duration) *session {
	now := time.Now()
	ses := &session{srv: s, at: at, c: c, id: mail.NewID(now), remote: v.remote, local: v.local, visit: v, leave: leave, delay: delay}
	ses.emit = s.emit.Session(ses.id)
	if c.Revision != "" {
		ses.emit = ses.emit.Config(c.Revision)
	}
	ses.script = transcript.New(now, c.keep.Keeps(), s.opts.Tap, transcript.Party{
		Session: ses.id, Direction: event.Inbound, Connector: c.Name, ClientIP: v.remote.Addr(),
	})
	ses.conn = &conn{ses: ses, Conn: wire.New(raw, ses.options())}
	return ses
}

// options are those of the connection for the connector and the client of now.
func (s *session) options() wire.Options {
	c := s.c
	return wire.Options{
		Hostname: c.hostname(s.srv.opts), Banner: c.Banner, Connector: c.Name, Client: s.remote.Addr(),
		TLS: c.TLS, Implicit: c.TLSMode == "implicit", ClientNames: c.ClientNames, MaxSize: s.announced(),
		MaxRecipients: c.Limits.Recipients, Extensions: c.extensions, Lenient: c.Lenient, NoVerify: c.NoVerify,
		BareNewline: c.bare, BareNewlineChunks: c.bareChunks,
		CommandTimeout: c.Limits.CommandTimeout, SessionTimeout: c.Limits.SessionTimeout,
		ProtocolErrors: c.Limits.ProtocolErrors, Tarpit: c.Limits.Tarpit, Delay: s.delay, Transcript: s.script,
		Emitter: s.emit,
		Hooks: wire.Hooks{
			Secured: s.opened, Command: s.command, Mechanisms: s.mechanisms, Begin: s.begin, Refused: s.refusedByWire, AuthEnded: s.authEnded, XClient: s.xclientHook(), Unasked: s.unasked,
			Throttled: s.throttled, Early: s.early, Panicked: s.panicked, Closed: s.closed,
		},
	}
}

// opened states that the session begins.
func (s *session) opened() {
	s.begun = true
	s.emit.Emit(event.SessionOpened{
		Direction: event.Inbound, Connector: s.c.Name, ClientIP: s.remote.Addr(), ClientPort: s.remote.Port(),
		LocalIP: s.local.Addr(), LocalPort: s.local.Port(), ProxyIP: s.visit.proxy,
	})
}

// closed states the end of the session.
func (s *session) closed(sum wire.Summary) {
	defer s.srv.forget(s)
	if !s.begun { // TLS from the first octet did not come about; why is stated already
		reason := "tls_error"
		if sum.Cause == wire.CauseShutdown {
			reason = "shutdown"
		}
		s.emit.Emit(event.SessionRefused{Connector: s.c.Name, ClientIP: s.remote.Addr(), Reason: reason})
		return
	}
	s.keep(sum)
	s.emit.Emit(event.SessionClosed{
		Direction: event.Inbound, Connector: s.c.Name, ClientIP: s.remote.Addr(), AuthUser: s.user, Cause: sum.Cause,
		Commands: sum.Commands, Messages: s.messages, BytesIn: sum.BytesIn, BytesOut: sum.BytesOut, Duration: event.Secs(sum.Duration),
	})
}

// keep states what was said, if it is to be kept.
func (s *session) keep(sum wire.Summary) {
	s.script.Note(time.Now(), "(session closed: "+sum.Cause+")")
	reason := s.c.keep.Why(transcript.Session{Failed: sum.Failed, Slow: sum.Slow, ClientIP: s.remote.Addr(), User: s.user, Sender: s.sender})
	if reason == "" {
		return
	}
	lines, said, cut := s.script.Lines()
	if len(lines) == 0 {
		return
	}
	s.emit.Emit(event.TranscriptKept{
		Direction: event.Inbound, Connector: s.c.Name, ClientIP: s.remote.Addr(), AuthUser: s.user, Reason: reason,
		Began: s.script.Began().UTC().Truncate(time.Microsecond), Lines: said, Cut: cut, Transcript: lines,
	})
}

// may is what the client may do now: what its user may, if the store says so,
// else what the connector allows.
func (s *session) may() policy.Permissions {
	if s.rights != nil {
		return *s.rights
	}
	return s.c.Permissions
}

// announced is the size of messages that EHLO announces; 0 is any.
func (s *session) announced() int64 {
	if s.may().BypassSize {
		return 0
	}
	return s.c.Limits.MessageSize
}

// peer is the client as relay control sees it.
func (s *session) peer() policy.Peer {
	p := s.may()
	p.AnySender = p.AnySender || s.anySender
	return policy.Peer{IP: s.remote.Addr(), User: s.user, Senders: s.senders, TLS: s.conn.TLS() != nil, Permissions: p}
}

// Mail begins a transaction. Syntax and sequence were checked by package wire.
func (s *session) Mail(string, *smtp.MailOptions) (err error) {
	defer s.guard("MAIL", &err)
	s.logInByCertificate()
	env, at := s.conn.Envelope()
	if s.c.keep.NamesSenders() {
		s.sender = s.sender || s.c.keep.Sender(event.Sender(env.Sender))
	}
	if e := s.mayMail(env); e != nil {
		s.emit.Emit(event.SenderRefused{Refusal: s.refusal(e, env)})
		return answer(e)
	}
	s.trust(&env)
	s.tx = s.begins(env, at)
	return nil
}

// mayMail asks all who may object to a sender, the cheap ones first.
func (s *session) mayMail(env mail.Envelope) *mail.ReplyError {
	switch l := s.c.Limits; {
	case s.c.TLSRequired && s.conn.TLS() == nil:
		return mail.Refuse(530, "5.7.0", "tls_required", "STARTTLS first") // RFC 3207 section 4
	case s.c.AuthRequired && s.user == "":
		return mail.Refuse(530, "5.7.0", "auth_required", "authentication required") // RFC 4954 section 6
	case l.MessageSize > 0 && env.Size > l.MessageSize && !s.may().BypassSize:
		return mail.Refuse(552, "5.3.4", "size", "message too large") // RFC 1870 section 6.1
	}
	if s.c.Policy != nil {
		if e := s.c.Policy.Sender(s.peer(), env); e != nil {
			return e
		}
	}
	if s.srv.opts.Ready != nil {
		if err := s.srv.opts.Ready(); err != nil {
			return replyError(err, mail.Refuse(452, "4.3.1", "backpressure", "not enough resources, try again later"))
		}
	}
	if e := s.pressed(); e != nil {
		return e
	}
	return s.mayMore(env)
}

// Rcpt adds a recipient.
func (s *session) Rcpt(string, *smtp.RcptOptions) (err error) {
	defer s.guard("RCPT", &err)
	rcpt := s.conn.Recipient()
	if e := s.mayRcpt(rcpt); e != nil {
		s.emit.Emit(event.RecipientRefused{Refusal: s.refusal(e, s.tx.env), Recipient: rcpt.Address.String()})
		return answer(e)
	}
	if s.c.Policy != nil {
		to := s.c.Policy.Target(rcpt.Address)
		if to != rcpt.Address {
			s.tx.change("postmaster")
		}
		rcpt.Address = to
	}
	s.tx.add(rcpt)
	return nil
}

func (s *session) mayRcpt(rcpt mail.Recipient) *mail.ReplyError {
	if n := s.c.Limits.Recipients; n > 0 && len(s.tx.env.Recipients) >= n {
		return mail.Refuse(452, "4.5.3", "recipients", "too many recipients") // RFC 5321 section 4.5.3.1.10
	}
	if s.c.Policy != nil {
		if e := s.c.Policy.Recipient(s.peer(), s.tx.env, rcpt); e != nil {
			return e
		}
	}
	if e := s.throttle(throttle.Recipients, 1, s.tx.env); e != nil || s.c.Recipients == nil {
		return e
	}
	return s.c.Recipients.Check(s.srv.life, rcpt.Address)
}

// begin is asked when DATA or the first BDAT comes.
func (s *session) begin() *mail.ReplyError {
	s.srv.opts.Turns.Wait(&s.tx.turn, s.srv.life.Done())
	in, err := s.srv.opts.Acceptor.Begin(s.srv.life, s.tx.env.Size)
	if err != nil {
		e := replyError(err, mail.Refuse(451, "4.3.0", "storage", "cannot take the message now"))
		s.tx.turn.End()
		s.emit.Emit(s.tx.refused(e))
		return e
	}
	s.tx.in = in
	return nil
}

// Data takes the content. What go-smtp offers is empty: the content comes from
// the connection.
func (s *session) Data(io.Reader) (err error) {
	defer s.guard("DATA", &err)
	body := s.conn.Body()
	tx := s.tx
	defer tx.turn.End()
	id, e := tx.receive(body)
	if s.srv.throttles.Any(throttle.Bytes) {
		s.srv.throttles.Charge(time.Now(), throttle.Bytes, tx.size, s.client(tx.env))
	}
	if e == nil {
		s.messages++
		s.conn.Answer(mail.Reply{Code: 250, Enhanced: "2.0.0", Text: "queued as " + string(id)})
		return nil
	}
	if errors.Is(e, wire.ErrAborted) || errors.Is(e, io.ErrUnexpectedEOF) {
		return answer(e) // the client went: nobody was refused anything
	}
	s.emit.Emit(tx.refused(e))
	return answer(e)
}

// Reset ends the transaction.
func (s *session) Reset() {
	if s.tx != nil {
		s.tx.end()
		s.tx = nil
	}
}

// Logout is called when the connection ends.
func (s *session) Logout() error {
	s.authLeft(334)
	s.endExchange()
	s.Reset()
	return nil
}

// refusedByWire states what package wire refused on its own.
func (s *session) refusedByWire(verb, arg string, e *mail.ReplyError) {
	if verb == "RCPT" {
		var env mail.Envelope
		if s.tx != nil {
			env = s.tx.env
		}
		r := s.refusal(e, env)
		if s.tx == nil {
			r.MailFrom = ""
		}
		s.emit.Emit(event.RecipientRefused{Refusal: r, Recipient: arg})
		return
	}
	r := s.refusal(e, mail.Envelope{})
	r.MailFrom = arg
	s.emit.Emit(event.SenderRefused{Refusal: r})
}

func (s *session) throttled(limit, action string) {
	s.emit.Emit(event.ThrottleEngaged{
		Connector: s.c.Name, ClientIP: s.remote.Addr(), AuthUser: s.user, Scope: "source", Limit: limit, Action: action,
	})
}

// unasked states that somebody tried to pass for another client.
func (s *session) unasked() {
	s.emit.Emit(event.Remarked{Remark: "a PROXY header of a client that is not trusted", Detail: s.c.Name + " " + s.remote.Addr().String()})
}

// early states what spammers and broken clients do.
func (s *session) early() {
	s.emit.Emit(event.Remarked{Remark: "the client spoke before the greeting", Detail: s.c.Name + " " + s.remote.Addr().String()})
}

// refusal is what facts about a refusal have in common.
func (s *session) refusal(e *mail.ReplyError, env mail.Envelope) event.Refusal {
	r := event.Refusal{
		Connector: s.c.Name, ClientIP: s.remote.Addr(), AuthUser: s.user, MailFrom: event.Sender(env.Sender),
		Code: e.Reply.Code, Enhanced: e.Reply.Enhanced, Reply: wire.Printable(e.Reply.String(), 512), Reason: e.Reason,
	}
	if r.Reason == "" {
		r.Reason = "internal"
	}
	if e.Err != nil {
		r.Error = wire.Printable(e.Err.Error(), 500)
	}
	return r
}

// guard turns a panic into a fact and a reply that ends the session. It is
// deferred by everything that go-smtp calls.
func (s *session) guard(where string, err *error) {
	v := recover()
	if v == nil {
		return
	}
	s.emit.Emit(event.Panicked{Where: "smtpin " + where, Value: wire.Printable(printed(v), 500), Stack: string(debug.Stack())})
	s.conn.HangUp(wire.CausePanic)
	*err = answer(mail.Refuse(421, "4.3.0", "internal", "internal error"))
}

func (s *session) panicked(v any, stack []byte) {
	s.emit.Emit(event.Panicked{Where: "wire", Value: wire.Printable(printed(v), 500), Stack: string(stack)})
}

func printed(v any) string {
	switch x := v.(type) {
	case error:
		return x.Error()
	case string:
		return x
	case interface{ String() string }:
		return x.String()
	}
	return "panic"
}

// replyError is err as a ReplyError: itself, or other with err as its cause.
func replyError(err error, other *mail.ReplyError) *mail.ReplyError {
	if e, ok := errors.AsType[*mail.ReplyError](err); ok && e.Reply.Code >= 400 && e.Reply.Code < 600 {
		if e.Reason != "" {
			return e
		}
		c := *e
		c.Reason = other.Reason
		return &c
	}
	other.Err = err
	return other
}

// answer is e as go-smtp takes it: only this type keeps internals from the client.
func answer(e *mail.ReplyError) *smtp.SMTPError {
	out := &smtp.SMTPError{Code: e.Reply.Code, EnhancedCode: smtp.NoEnhancedCode, Message: e.Reply.Text}
	if words := strings.Split(e.Reply.Enhanced, "."); len(words) == 3 {
		for i, w := range words {
			n, err := strconv.Atoi(w)
			if err != nil {
				out.EnhancedCode = smtp.NoEnhancedCode
				break
			}
			out.EnhancedCode[i] = n
		}
	}
	if out.Message == "" {
		out.Message = "no"
	}
	return out
}
