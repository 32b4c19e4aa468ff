package recipients

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"waybill/relay/mail"
)

// A Prober asks the next hop that routing gives a recipient whether it takes it.
type Prober interface {
	Probe(ctx context.Context, to mail.Address) mail.Outcome
}

// Probe is the [Source] that asks the next hop ("call-forward").
type Probe struct{ Prober Prober }

// Lookup implements [Source]. A refusal counts as "no such recipient" only when
// the next hop gave it to RCPT and for the recipient: the same reply code serves
// for policies against us, which say nothing about anybody's address.
func (p Probe) Lookup(ctx context.Context, a mail.Address) (known bool, err error) {
	o := p.Prober.Probe(ctx, a)
	switch {
	case o.Disposition == mail.Relayed:
		return true, nil
	case o.Disposition == mail.Bounced && o.Remote && o.Verb == "RCPT" && aboutRecipient(o.Reply):
		return false, nil
	}
	if err := ctx.Err(); err != nil && o.Reply.Text == "" {
		return false, err
	}
	what := o.Reply.String()
	if what == "" {
		return false, errors.New("the next hop said nothing")
	}
	return false, fmt.Errorf("the next hop answered %s: %s", o.Verb, what)
}

// aboutRecipient reports whether a permanent refusal of RCPT is about the address
// (RFC 3463 section 3.2 and 3.3, and without an enhanced code RFC 5321 section
// 4.2.3) rather than about us or our mail.
func aboutRecipient(r mail.Reply) bool {
	switch {
	case strings.HasPrefix(r.Enhanced, "5.1."):
		return r.Enhanced != "5.1.7" && r.Enhanced != "5.1.8" // the sender's address
	case r.Enhanced == "5.2.1": // disabled mailbox
		return true
	case r.Enhanced != "" && r.Enhanced != "5.0.0":
		return false
	}
	return r.Code == 550 || r.Code == 551 || r.Code == 553
}
