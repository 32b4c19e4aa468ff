package smtpout

import (
	"errors"

	"waybill/relay/mail"
)

// errEarly says that a next hop answered what it had not been asked. To take
// such a reply for that to the next command would shift all that follow, until
// a refusal of one message is read as the acceptance of another.
var errEarly = errors.New("reply before its command")

// early is the failure of a next hop that said something before the command verb
// was sent, or nil. A refusal is taken at its word: hosts that shut down say 421
// at any time (RFC 5321 section 3.8).
func (s *session) early(verb string) *failure {
	if s.r.r.Buffered() == 0 {
		return nil
	}
	return s.unasked(verb)
}

// premature is the failure of a next hop that answers the content before its
// end has been sent, or nil. The end is then kept back: who has answered already
// does not wait for it. An acceptance of what was not there yet leaves open what
// was accepted.
func (s *session) premature() *failure {
	if s.r.r.Buffered() == 0 && !s.heard() {
		return nil
	}
	f := s.unasked(".")
	f.uncertain = f.cause == "protocol" && s.r.code/100 == 2
	return f
}

// unasked reads what was said too early.
func (s *session) unasked(verb string) *failure {
	if f := s.await(verb, s.c.opts.Timeouts.Command); f != nil {
		return f
	}
	var f *failure
	if k := s.r.code / 100; k == 4 || k == 5 {
		f = said(verb, s.at, s.r.reply())
		f.lost, f.cause = true, "closed"
	} else {
		f = ours(verb, 451, "4.5.0", mail.ClassOther, "%s: %v %s", s.at, errEarly, verb)
		f.lost, f.at, f.cause = true, s.at, "protocol"
		s.r.log.note(f.reply.Text)
	}
	s.cause = f.cause
	return f
}

// earlyError carries the failure of [session.premature] through the writing of
// content.
type earlyError struct{ f *failure }

func (e *earlyError) Error() string { return errEarly.Error() }
