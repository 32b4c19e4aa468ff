package smtpout

import (
	"strconv"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/transcript"
)

// slowAttempt is from when on the conversation of an attempt that went well is
// kept, because somebody will ask; chosen by taste.
const slowAttempt = 30 * time.Second

type speaker uint8

const (
	fromClient speaker = iota
	fromServer
)

// contentWord stands for a content of which nothing was sent.
var contentWord = []byte("(content)")

// script is the conversation of one attempt. A nil script keeps nothing.
type script struct {
	log *transcript.Log
	who transcript.Party
}

// listen begins the conversation of a.
func (a *attempt) listen() {
	a.log = &a.script
	a.log.who = transcript.Party{Direction: event.Outbound, Connector: a.c.opts.Name, Message: a.m.ID}
	a.log.log = transcript.New(time.Now(), a.c.keep.Keeps(), a.c.opts.Tap, a.log.who)
}

// speaksTo says which session the conversation is in from now on.
func (s *script) speaksTo(session string, at target) {
	s.who.Session, s.who.RemoteName, s.who.RemoteIP = session, at.name, at.addr.Addr()
	s.log.Identify(s.who)
}

// add keeps one line; octets is the size of a content.
func (s *script) add(from speaker, text []byte, octets int64) {
	if s == nil {
		return
	}
	switch now := time.Now(); {
	case octets > 0:
		s.log.Content(now, octets)
	case from == fromServer:
		s.log.Server(now, text)
	default:
		s.log.Client(now, text)
	}
}

func (s *script) note(text string) {
	if s != nil {
		s.log.Note(time.Now(), "("+text+")")
	}
}

// reused notes that the session has served before.
func (s *script) reused(transactions int) {
	s.log.Note(time.Now(), "(session reused, after "+strconv.Itoa(transactions)+" transactions)")
}

// end forgets the conversation.
func (s *script) end() {
	s.log.Free()
	s.log = nil
}

// keep puts the conversation into r if it is to be kept.
func (a *attempt) keep(r *Result) {
	about := transcript.Session{
		Slow: r.Stages.Sum() >= slowAttempt, User: a.c.opts.Auth.Username, Sender: a.c.keep.Sender(event.Sender(a.m.Envelope.Sender)),
	}
	for i := range r.Outcomes {
		about.Failed = about.Failed || r.Outcomes[i].Disposition != mail.Relayed
		about.Uncertain = about.Uncertain || r.Outcomes[i].Uncertain
	}
	if reason := a.c.keep.Why(about); reason != "" {
		r.Kept.Reason, r.Kept.Began = reason, a.log.log.Began().UTC().Truncate(time.Microsecond)
		r.Transcript, r.Kept.Lines, r.Kept.Cut = a.log.log.Lines()
	}
}
