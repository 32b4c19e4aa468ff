package dsn

import (
	"fmt"
	"strings"
	"time"

	"waybill/relay/mail"
)

// phrase is a failure class in words: what happened, and what the sender can do.
type phrase struct{ what, advice string }

const askThem = "If you can reach the recipient in another way, send them this report: their mail system's administrators can act on it."

// phrases has a row for each of [mail.Classes].
var phrases = map[mail.Class]phrase{
	mail.ClassInvalidRecipient: {"the address does not exist there", "Check the address for typing mistakes, and send the message again to the right one."},
	mail.ClassMailboxFull:      {"the recipient's mailbox is full", "Tell the recipient in another way, and send the message again when there is room."},
	mail.ClassMailboxInactive:  {"the recipient's mailbox is closed or takes no mail", "Ask the recipient in another way for a current address."},
	mail.ClassBadDomain:        {"the domain takes no mail", "Check what stands after the @ for typing mistakes."},
	mail.ClassDNS:              {"the domain's mail servers could not be found", "Check what stands after the @ for typing mistakes. If it is right, the domain's administrators must act."},
	mail.ClassConnect:          {"the recipient's mail server could not be reached, or broke off", askThem},
	mail.ClassTimeout:          {"the recipient's mail server did not answer in time, or broke off", askThem},
	mail.ClassTLS:              {"no connection could be made that is as secure as required", "Your administrators can see why. " + askThem},
	mail.ClassAuth:             {"the next mail server did not accept our login", "Your own mail administrators must act. Send them this report."},
	mail.ClassGreylist:         {"the recipient's mail server put us off for the time being", askThem},
	mail.ClassThrottled:        {"the recipient's mail server takes mail from us only slowly", "If you sent many messages at once, send fewer. Otherwise wait, and send the message again later."},
	mail.ClassReputation:       {"the recipient's mail server does not trust our mail server", "Your own mail administrators must act. Send them this report."},
	mail.ClassPolicy:           {"the recipient's mail server does not allow this message", "The server's own words say which rule it broke. Your administrators may know more."},
	mail.ClassContent:          {"the recipient's mail server did not like the content of the message", "Look for links or attachments that may look suspicious, and try again without them."},
	mail.ClassSize:             {"the message is too large for the recipient's mail server", "Send it again without large attachments, or in several parts."},
	mail.ClassOther:            {"the message was not accepted", "The server's own words may say why. Otherwise ask your administrators, and send them this report."},
}

// ours has the rules of causes that lie here, and not with a next hop: their words
// go before those of the class.
var ours = map[string]phrase{
	"operator":   {"an administrator of this mail system has stopped the message", "Ask your mail administrators why, if the reason does not say it."},
	"quota":      {"this mail system has used up what it may send", "Your own mail administrators must act. Send them this report."},
	"unroutable": {"this mail system has no way for mail to that address", "Check what stands after the @ for typing mistakes. If it is right, your own mail administrators must act."},
}

// explanation is the part that people read.
func explanation(opts *Options, kind Kind) part {
	var b strings.Builder
	host := word(opts.Hostname)
	wrap(&b, "", "This is the mail system at host "+host+".")
	b.WriteString("\r\n")
	for _, k := range []Kind{Failed, Delayed, Relayed} {
		var about []*Recipient
		for i := range opts.Recipients {
			if opts.Recipients[i].Kind() == k {
				about = append(about, &opts.Recipients[i])
			}
		}
		if len(about) == 0 {
			continue
		}
		wrap(&b, "", opening(opts, k, len(about)))
		b.WriteString("\r\n")
		for _, r := range about {
			r.explain(&b, opts)
		}
	}
	wrap(&b, "", "The message was:")
	b.WriteString("\r\n")
	for _, row := range [][2]string{
		{"Subject", line(opts.Original.Header.Subject, maxSubject, true)},
		{"From", line(opts.Original.Header.From, maxAddress, true)},
		{"Received", date(opts.AcceptedAt)},
		{"Message-ID", line(opts.Original.Header.MessageID, maxAddress, true)},
		{"Queue ID", string(opts.Original.ID)},
	} {
		if row[1] != "" {
			fmt.Fprintf(&b, "    %-11s %s\r\n", row[0]+":", row[1])
		}
	}
	b.WriteString("\r\n")
	if kind == Failed {
		wrap(&b, "", "If you need help, forward this report to <postmaster@"+host+">. It has the technical details.")
	} else {
		wrap(&b, "", "Questions go to <postmaster@"+host+">.")
	}
	return textPart("Notification", "text/plain; charset=utf-8", []byte(b.String()))
}

// opening says what happened to n recipients of one kind.
func opening(opts *Options, kind Kind, n int) string {
	whom := "the recipient below"
	if n > 1 {
		whom = fmt.Sprintf("the %d recipients below", n)
	}
	if !opts.Postmaster.IsNull() {
		return "A report, or another message without a sender, could not be delivered to " + whom + ". Nobody else is told of it, and we will not try again."
	}
	switch kind {
	case Failed:
		return "Your message could not be delivered to " + whom + ". We will not try again."
	case Delayed:
		s := "Your message has not reached " + whom + " yet. THIS IS ONLY A WARNING: we keep trying, and you need not send it again."
		if !opts.Expires.IsZero() {
			s += " If it cannot be delivered by " + date(opts.Expires) + ", you will get another report."
		}
		return s
	case Relayed:
	}
	return "Your message was handed over for " + whom + ". The next mail server confirms no delivery, so you may hear nothing more of it."
}

// explain tells of one recipient.
func (r *Recipient) explain(b *strings.Builder, opts *Options) {
	b.WriteString("<" + line(r.Address.String(), maxAddress, true) + ">\r\n")
	host := word(r.Host)
	if r.Kind() == Relayed {
		if host == "" {
			host = "the next mail server"
		}
		wrap(b, "    ", "Taken over by "+host+".")
		b.WriteString("\r\n")
		return
	}
	p, ok := ours[r.Outcome.ClassRule]
	if !ok {
		p, ok = phrases[r.Outcome.Class]
	}
	if !ok {
		p = phrases[mail.ClassOther]
	}
	said, remote := r.words()
	if !remote && p == phrases[mail.ClassOther] { // there are no words of a server to read
		p.advice = "Ask your administrators, and send them this report."
	}
	what := strings.ToUpper(p.what[:1]) + p.what[1:] + "."
	if r.Outcome.Disposition == mail.Expired {
		what = fmt.Sprintf("Given up after %s and %s: %s.", age(opts.Now.Sub(opts.AcceptedAt)), times(r.Attempts), p.what)
	}
	if r.Outcome.Uncertain {
		what += " It may have arrived all the same: the server got the whole message, and did not say whether it took it."
	}
	wrap(b, "    ", what)
	if said != (mail.Reply{}) {
		who := "Reason"
		if remote {
			who = "The mail server said"
			if host != "" {
				who = "The mail server " + host + " said"
			}
			if r.Outcome.Verb != "" && r.Outcome.Remote {
				who += " in answer to " + verb(r.Outcome.Verb)
			}
		}
		wrap(b, "    ", who+":")
		for l := range strings.SplitSeq(said.String(), "\n") {
			wrap(b, "        ", line(l, maxDiagnostic, true))
		}
	}
	if r.Kind() == Failed {
		wrap(b, "    ", "What you can do: "+p.advice)
	}
	if about := r.Outcome.Explanation; about != "" {
		wrap(b, "    ", "For administrators: "+line(about, maxExplained, true)+" ("+r.judgement()+").")
	}
	b.WriteString("\r\n")
}

// judgement is how the failure was classed: class, permanence and rule.
func (r *Recipient) judgement() string {
	s := word(string(r.Outcome.Class))
	if p := r.Outcome.Permanence; p != "" {
		s += ", " + word(string(p))
	}
	if r.Outcome.ClassRule != "" {
		s += ", rule " + word(r.Outcome.ClassRule)
	}
	return s
}

// verb is an SMTP command for people who may not know one.
func verb(v string) string {
	switch v {
	case "RCPT":
		return "the recipient's address (RCPT)"
	case "MAIL":
		return "the sender's address (MAIL)"
	case ".", "DATA", "BDAT":
		return "the message itself (DATA)"
	case "CONNECT":
		return "our connection"
	}
	return word(v)
}

func times(n int) string {
	switch {
	case n <= 0:
		return "no attempt"
	case n == 1:
		return "one attempt"
	}
	return fmt.Sprintf("%d attempts", n)
}

// age is d as people say it.
func age(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", int(d.Minutes()))
	}
	return "a minute"
}
