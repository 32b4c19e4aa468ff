package smtpin

import (
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"waybill/relay/auth"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/wire"

	"github.com/emersion/go-sasl"
)

// mechanisms are what EHLO announces now.
func (s *session) mechanisms() []string {
	secure := s.conn.TLS() != nil
	if !secure && !s.c.AuthBeforeTLS {
		return nil
	}
	var names []string
	for _, m := range s.c.mechanisms {
		if s.usable(m) {
			names = append(names, m.Name)
		}
	}
	return names
}

// usable reports whether a mechanism can work as the connection is now.
func (s *session) usable(m auth.Mechanism) bool {
	p := auth.Peer{TLS: s.conn.TLS()}
	return (p.TLS != nil || !m.NeedsTLS) && (p.Shown() || !m.NeedsCertificate)
}

// findMechanism finds one that is offered now.
func (s *session) findMechanism(name string) (auth.Mechanism, bool) {
	i := slices.IndexFunc(s.c.mechanisms, func(m auth.Mechanism) bool { return strings.EqualFold(m.Name, name) })
	if i < 0 || !s.usable(s.c.mechanisms[i]) {
		return auth.Mechanism{}, false
	}
	return s.c.mechanisms[i], true
}

// AuthMechanisms is not used: package wire answers EHLO.
func (s *session) AuthMechanisms() []string { return s.mechanisms() }

// Auth begins an exchange (RFC 4954 section 4).
func (s *session) Auth(name string) (_ sasl.Server, err error) {
	defer s.guard("AUTH", &err)
	mechanism := wire.Mechanism(name)
	refuse := func(reason string, e *mail.ReplyError) (sasl.Server, error) {
		s.authFailed(mechanism, &auth.Failure{Reason: reason}, e.Reply.Code)
		return nil, answer(e)
	}
	m, offered := s.findMechanism(name)
	switch {
	case s.c.Auth == nil:
		return refuse("mechanism", mail.Refuse(502, "5.5.1", "auth", "authentication is not available"))
	case s.conn.TLS() == nil && !s.c.AuthBeforeTLS:
		return refuse("before_tls", mail.Refuse(538, "5.7.11", "auth", "TLS first"))
	case !offered:
		return refuse("mechanism", mail.Refuse(504, "5.5.4", "auth", "mechanism is not available"))
	case !s.srv.lockout.Begin(time.Now(), s.remote.Addr()):
		s.heldOff("source", "")
		return refuse(auth.ReasonThrottled, mail.Refuse(454, "4.7.0", "auth", "authentication is not available now"))
	}
	s.endExchange()
	x := &exchange{s: s, mechanism: mechanism}
	x.server = m.Start(s.authPeer(), func(id auth.Identity) { x.id = id })
	s.exchange = x
	return x, nil
}

// authPeer is what mechanisms may know of the session.
func (s *session) authPeer() auth.Peer {
	return auth.Peer{
		Connector: s.c.Name, Remote: s.remote.Addr(), TLS: s.conn.TLS(), Certificate: s.conn.Certificate(),
		Binding: s.c.Binding, Offered: s.mechanisms(), Admit: s.admitUser,
	}
}

// admitUser holds off guesses at an account.
func (s *session) admitUser(user string) error {
	held, ok := s.srv.lockout.Try(time.Now(), s.remote.Addr(), user)
	if ok {
		return nil
	}
	s.heldOff(held, user)
	return auth.ErrThrottled
}

func (s *session) heldOff(scope, user string) {
	s.emit.Emit(event.ThrottleEngaged{
		Connector: s.c.Name, ClientIP: s.remote.Addr(), AuthUser: wire.Printable(user, 255), Scope: scope, Limit: "auth_failures", Action: "defer",
	})
}

// exchange is one AUTH command to its end.
type exchange struct {
	s         *session
	mechanism string
	server    sasl.Server
	id        auth.Identity
}

// Next takes the client's next response.
func (x *exchange) Next(response []byte) (challenge []byte, done bool, err error) {
	s := x.s
	defer s.guard("AUTH", &err)
	challenge, done, err = x.server.Next(response)
	if err != nil {
		s.endExchange()
		return nil, false, x.failed(err)
	}
	if done {
		s.endExchange()
		s.srv.lockout.Succeeded(time.Now(), s.remote.Addr(), keyOf(x.id.User))
		s.loggedIn(x.id, x.mechanism)
	}
	return challenge, done, nil
}

// loggedIn makes the session the user's.
func (s *session) loggedIn(id auth.Identity, mechanism string) {
	s.become(id, mechanism)
	s.emit.Emit(event.AuthSucceeded{
		Connector: s.c.Name, ClientIP: s.remote.Addr(), Mechanism: mechanism, User: wire.Printable(s.user, 255), TLS: s.conn.TLS() != nil,
	})
}

// logInByCertificate makes the session the user's whose certificate the client has
// shown, where the connector says so. A certificate that is nobody's is no failure:
// many clients show one to everybody.
func (s *session) logInByCertificate() {
	if s.c.Certificates == nil || s.user != "" || s.byCertificate || s.conn.TLS() == nil {
		return
	}
	s.byCertificate = true // once is enough
	id, err := s.c.Certificates.Login(s.authPeer())
	switch {
	case err == nil:
		s.loggedIn(id, byCertificate)
	case !errors.Is(err, auth.ErrCertificate):
		s.authFailed(byCertificate, auth.Fail("", err), 0)
	}
}

// byCertificate is what records call a login by a certificate without AUTH.
const byCertificate = "CERTIFICATE"

// become takes an identity, or none.
func (s *session) become(id auth.Identity, mechanism string) {
	if id.User == "" {
		mechanism = ""
	}
	s.user, s.senders, s.anySender, s.mechanism, s.rights = id.User, id.Senders, id.AnySender, mechanism, id.Permissions
	s.conn.Announce(s.announced())
}

// keyOf is a user's name as failures are counted by.
func keyOf(user string) string {
	if name, err := auth.PrepareName(user); err == nil {
		return name
	}
	return user
}

// endExchange gives back what the exchange in hand, if any, holds.
func (s *session) endExchange() {
	if s.exchange == nil {
		return
	}
	if c, ok := s.exchange.server.(io.Closer); ok {
		_ = c.Close() // it has nobody to tell
	}
	s.exchange = nil
}

// failed answers a failure. All reasons read the same, so that nobody learns
// which users there are; what cannot be answered now is the exception.
func (x *exchange) failed(err error) error {
	s := x.s
	f, ok := errors.AsType[*auth.Failure](err)
	if !ok {
		f = &auth.Failure{Reason: auth.ReasonUnavailable, Err: err}
	}
	e := mail.Refuse(535, "5.7.8", "auth", "authentication failed")
	if f.Temporary() {
		e = mail.Refuse(454, "4.7.0", "auth", "authentication is not available now")
	} else {
		s.srv.lockout.Failed(time.Now(), s.remote.Addr(), f.User)
	}
	if f.Reason != auth.ReasonUnavailable { // that one is our own fault
		e = s.countFailure(e)
	}
	s.authFailed(x.mechanism, f, e.Reply.Code)
	return answer(e)
}

// countFailure counts a failure, and ends the session when there were too many.
func (s *session) countFailure(e *mail.ReplyError) *mail.ReplyError {
	s.failures++
	if n := s.c.Limits.AuthFailures; n == 0 || s.failures < n {
		return e
	}
	s.throttled("auth_failures", "close")
	s.conn.HangUp(wire.CauseErrors)
	return mail.Refuse(421, "4.7.0", "auth", "too many failures")
}

// authEnded states that the client, and not the store, ended an exchange.
func (s *session) authEnded(mechanism, reason string, code int) {
	if !s.authLeft(code) {
		s.authFailed(mechanism, &auth.Failure{Reason: reason}, code)
	}
	s.endExchange()
	s.failures++
	if n := s.c.Limits.AuthFailures; n > 0 && s.failures >= n {
		s.throttled("auth_failures", "close")
		s.conn.HangUp(wire.CauseErrors)
	}
}

// authLeft states the failure that the client was told in a challenge, and did
// not wait for the end of: it may cancel there (RFC 7628 section 3.2.3), and some
// just go. It reports whether there was one.
func (s *session) authLeft(code int) bool {
	if s.exchange == nil {
		return false
	}
	r, ok := s.exchange.server.(auth.Refuser)
	if !ok || r.Refused() == nil {
		return false
	}
	f := r.Refused()
	if !f.Temporary() {
		s.srv.lockout.Failed(time.Now(), s.remote.Addr(), f.User)
	}
	s.authFailed(s.exchange.mechanism, f, code)
	return true
}

func (s *session) authFailed(mechanism string, f *auth.Failure, code int) {
	fact := event.AuthFailed{
		Connector: s.c.Name, ClientIP: s.remote.Addr(), Mechanism: mechanism, User: wire.Printable(f.User, 255), Reason: f.Reason,
		TLS: s.conn.TLS() != nil, Code: code,
	}
	if f.Err != nil {
		fact.Error = wire.Printable(f.Err.Error(), 500)
	}
	s.emit.Emit(fact)
}
