package queue

import (
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/route"
)

// maxReply bounds what a fact and a record keep of a next hop's words.
const maxReply = 512

func infoOf(m *Message) event.Info {
	return event.Info{
		MailFrom: event.Sender(m.Envelope.Sender), HeaderMessageID: m.Header.MessageID, HeaderFrom: m.Header.From,
		Size: m.Size, ConnectorIn: m.Origin.Connector, ClientIP: m.Origin.Client.Addr(), AuthUser: m.Origin.User,
		Priority: m.Priority.String(),
	}
}

func recipientOf(m *Message, i int) event.Recipient {
	r := &m.Envelope.Recipients[i]
	return event.Recipient{Address: r.Address.String(), Original: r.ORcpt}
}

func messageQueued(m *Message, now time.Time) event.MessageQueued {
	o := &m.Origin
	ev := event.MessageQueued{
		Info: infoOf(m), Parent: m.Parent, ClientPort: o.Client.Port(), ClientName: o.ClientName, Helo: o.Helo,
		AuthMechanism: o.Mechanism, Protocol: o.Protocol, TLSVersion: o.TLSVersion, TLSCipher: o.TLSCipher,
		Subject: m.Header.Subject, Changed: m.Changed, EnvID: m.Envelope.EnvID,
		TReceive: event.Since(o.MailAt, o.DataEndedAt), TAccept: event.Since(o.DataEndedAt, now), Expires: m.ExpiresAt, DeliverBy: m.Envelope.DeliverBy.Deadline,
		Recipients: make([]event.Recipient, len(m.Envelope.Recipients)),
	}
	for i := range ev.Recipients {
		ev.Recipients[i] = recipientOf(m, i)
	}
	return ev
}

func answerOf(o *mail.Outcome) event.Answer {
	return event.Answer{
		Code: o.Reply.Code, Enhanced: o.Reply.Enhanced, Reply: clip(o.Reply.Text, maxReply), Verb: o.Verb, Class: o.Class, ClassRule: o.ClassRule,
		Permanence: o.Permanence, Explanation: clip(o.Explanation, maxReply),
	}
}

// severity orders dispositions for the summary of an attempt. An expiry is a
// deferral as far as the attempt goes.
func severity(d mail.Disposition) int {
	switch d {
	case mail.Bounced:
		return 3
	case mail.Deferred, mail.Expired:
		return 2
	default:
		return 1
	}
}

// attemptFinished completes the fact that the settlement brought.
func attemptFinished(l *Lease, s *Settlement, index []int, info event.Info) event.AttemptFinished {
	ev := s.Attempt
	m := l.Message
	ev.Info = info
	ev.TSched = event.Since(l.Due, l.Claimed)
	if ev.Queue == "" {
		ev.Queue, ev.ConnectorOut = l.Hop.Name, l.Hop.Connector
	}
	if ev.Attempt == 0 {
		ev.Attempt = l.Attempt
	}
	ev.Recipients = make([]event.Recipient, 0, len(index))
	worst, waiting := 0, false
	for _, k := range index {
		o := &s.Outcomes[k]
		r := recipientOf(m, l.Index[k])
		r.Disposition, r.Code, r.Enhanced, r.Reply, r.Class = o.Disposition, o.Reply.Code, o.Reply.Enhanced, clip(o.Reply.Text, maxReply), o.Class
		ev.Recipients = append(ev.Recipients, r)
		waiting = waiting || o.Disposition == mail.Deferred
		if severity(o.Disposition) > severity(s.Outcomes[worst].Disposition) {
			worst = k
		}
	}
	ev.Answer = answerOf(&s.Outcomes[worst])
	ev.Disposition = s.Outcomes[worst].Disposition
	if ev.Disposition == mail.Expired {
		ev.Disposition = mail.Deferred
	}
	if waiting && ev.NextAttempt.IsZero() {
		ev.NextAttempt = s.Next
	}
	return ev
}

// finalOf completes f, which is the end of recipient i and has what all of m's
// recipients have in common, and the address if another fact has it.
func finalOf(m *stored, i int, f event.Final, now time.Time) event.Final {
	r, s := &m.Envelope.Recipients[i], &m.States[i]
	if f.Recipient == "" {
		f.Recipient = r.Address.String()
	}
	if !m.brief { // otherwise it is in the fact that the message was queued
		f.Original = r.ORcpt
	}
	f.Attempts, f.Late = s.Attempts, s.Late
	f.TTotal, f.TBackoff, f.TQueue = event.Since(m.AcceptedAt, now), event.Secs(s.backoff), event.Secs(s.queued)
	return f
}

func hopOf(h route.Hop) event.Hop { return event.Hop{ConnectorOut: h.Connector, Queue: h.Name} }

// retired sums a message up.
func retired(m *stored, info event.Info, now time.Time) event.MessageRetired {
	ev := event.MessageRetired{Info: info, Recipients: len(m.States), TTotal: event.Since(m.AcceptedAt, now)}
	for i := range m.States {
		s := &m.States[i]
		switch s.Disposition {
		case mail.Relayed:
			ev.Relayed++
		case mail.Bounced:
			ev.Bounced++
		case mail.Expired:
			ev.Expired++
		case mail.Dropped:
			ev.Dropped++
		}
		ev.Attempts = max(ev.Attempts, s.Attempts)
	}
	return ev
}

// target is the hand-over target of priority p: a tenth for high, twelve times
// for low.
func (q *Queue) target(p mail.Priority) time.Duration {
	switch {
	case q.opts.Priorities[p].HandOver > 0:
		return q.opts.Priorities[p].HandOver
	case p > 0:
		return q.opts.LateAfter / 10
	case p < 0:
		return q.opts.LateAfter * 12
	}
	return q.opts.LateAfter
}

// stateLate marks recipient i late and says so, if its target has passed and
// that was not said yet.
func (q *Queue) stateLate(c *change, emit event.Emitter, m *stored, i int, hop event.Hop, now time.Time) error {
	s := &m.States[i]
	target := q.target(m.Priority)
	if s.Late || m.excused || now.Sub(m.AcceptedAt) < target {
		return nil
	}
	s.Late = true
	return q.state(c, emit, event.RecipientLate{
		Info: infoOf(&m.Message), Recipient: m.Envelope.Recipients[i].Address.String(), Queue: hop.Queue, Provider: hop.Provider, Target: event.Secs(target),
	})
}
