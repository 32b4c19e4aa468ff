package smtpout

import (
	"context"
	"time"

	"waybill/relay/mail"
	"waybill/relay/route"
)

// Probe asks the next hop of hop whether it takes a recipient: MAIL with the null
// reverse-path, RCPT, and no content. It goes the way that a message would go,
// with the same connections, TLS and login, and never to ourselves. The outcome
// is Relayed when the recipient was taken. A Bounced one is about the recipient
// when its Verb is RCPT and it is Remote; anything else says nothing about it.
func (c *Connector) Probe(ctx context.Context, hop route.Hop, to mail.Address) mail.Outcome {
	m := Message{Envelope: mail.Envelope{Recipients: []mail.Recipient{{Address: to}}}}
	a := c.newAttempt(ctx, hop, m)
	a.probe = true
	a.run()
	return a.result().Outcomes[0]
}

// ask is the transaction of a probe.
func (a *attempt) ask(s *session) *failure {
	t := a.begin(s)
	to := a.m.Envelope.Recipients[0].Address
	params := "FROM:<>"
	switch {
	case to.IsNull() || !safeAddress(to):
		a.decide(0, ours("MAIL", 553, "5.1.3", mail.ClassOther, "recipient address cannot be sent"))
		return nil
	case to.ASCII():
	case s.ext.utf8:
		params += " SMTPUTF8"
	default:
		a.decide(0, ours("MAIL", 553, "5.6.7", mail.ClassContent, "%s does not take internationalised addresses", s.at.name))
		return nil
	}
	s.transactions++
	s.deadline = time.Now().Add(s.c.opts.Timeouts.Mail + s.c.opts.Timeouts.Rcpt)
	if s.dirty {
		s.dirty = false
		t.send("RSET", "", 0)
	}
	_ = t.lost == nil && t.mailed == nil && t.send("MAIL ", params, 0) && t.send("RCPT ", "TO:<"+to.String()+">", 0) && t.drain()
	s.deadline = time.Time{}
	switch {
	case t.lost != nil:
		return t.lost
	case t.mailed != nil:
		t.abort()
		return t.mailed
	}
	s.dirty = true // RSET comes before the next transaction; nothing else is owed
	switch {
	case len(t.accepted) > 0:
		a.outcomes[0] = mail.Outcome{Recipient: to, Disposition: mail.Relayed, Reply: s.r.reply(), Remote: true, Verb: "RCPT"}
		a.pending = nil
		return nil
	case len(a.pending) == 0: // refused for good
		return nil
	}
	return t.refused
}
