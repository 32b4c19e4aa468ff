package smtpin

import (
	"errors"
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
		if secure || !m.NeedsTLS {
			names = append(names, m.Name)
		}
	}
	return names
}

// findMechanism finds one that is offered now.
func (s *session) findMechanism(name string) (auth.Mechanism, bool) {
	i := slices.IndexFunc(s.c.mechanisms, func(m auth.Mechanism) bool { return strings.EqualFold(m.Name, name) })
	if i < 0 || s.c.mechanisms[i].NeedsTLS && s.conn.TLS() == nil {
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
		s.authFailed(mechanism, "", reason, e.Reply.Code)
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
	case !s.c.guess.Allowed(time.Now(), s.remote.Addr()):
		s.emit.Emit(event.ThrottleEngaged{Connector: s.c.Name, ClientIP: s.remote.Addr(), Scope: "source", Limit: "auth_failures", Action: "defer"})
		return refuse("throttled", mail.Refuse(454, "4.7.0", "auth", "authentication is not available now"))
	}
	x := &exchange{s: s, mechanism: mechanism}
	x.server = m.Start(auth.Peer{Connector: s.c.Name, Remote: s.remote.Addr(), TLS: s.conn.TLS()}, func(id auth.Identity) { x.id = id })
	return x, nil
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
		return nil, false, x.failed(err)
	}
	if done {
		s.user, s.senders, s.anySender, s.mechanism = x.id.User, x.id.Senders, x.id.AnySender, x.mechanism
		s.emit.Emit(event.AuthSucceeded{
			Connector: s.c.Name, ClientIP: s.remote.Addr(), Mechanism: x.mechanism, User: wire.Printable(s.user, 255), TLS: s.conn.TLS() != nil,
		})
	}
	return challenge, done, nil
}

// failed answers a failure. All reasons read the same, so that nobody learns
// which users there are; what cannot be answered now is the exception.
func (x *exchange) failed(err error) error {
	s := x.s
	reason, user := auth.ReasonUnavailable, ""
	if f, ok := errors.AsType[*auth.Failure](err); ok {
		reason, user = f.Reason, f.User
	}
	e := mail.Refuse(535, "5.7.8", "auth", "authentication failed")
	if reason == auth.ReasonUnavailable {
		e = mail.Refuse(454, "4.7.0", "auth", "authentication is not available now")
	} else {
		s.c.guess.Failed(time.Now(), s.remote.Addr())
		e = s.countFailure(e)
	}
	s.authFailed(x.mechanism, user, reason, e.Reply.Code)
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
	s.authFailed(mechanism, "", reason, code)
	s.failures++
	if n := s.c.Limits.AuthFailures; n > 0 && s.failures >= n {
		s.throttled("auth_failures", "close")
		s.conn.HangUp(wire.CauseErrors)
	}
}

func (s *session) authFailed(mechanism, user, reason string, code int) {
	s.emit.Emit(event.AuthFailed{
		Connector: s.c.Name, ClientIP: s.remote.Addr(), Mechanism: mechanism, User: wire.Printable(user, 255), Reason: reason,
		TLS: s.conn.TLS() != nil, Code: code,
	})
}
