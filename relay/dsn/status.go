package dsn

import (
	"net"
	"regexp"
	"strings"

	"waybill/relay/mail"
)

// status is the part that programs read (RFC 3464 section 2). It is
// internationalised (RFC 6533 section 4) only when an address needs it.
func status(opts *Options) part {
	wide := false
	for i := range opts.Recipients {
		r := &opts.Recipients[i]
		wide = wide || !r.Address.ASCII() || !isPlain(r.ORcpt)
	}
	var b strings.Builder
	field := func(name, kind, value string, limit int) {
		if value = line(value, limit, wide); value != "" {
			b.WriteString(fold(name+": "+kind+value) + "\r\n")
		}
	}
	field("Reporting-MTA", "dns; ", word(opts.Hostname), maxHost)
	field("Original-Envelope-Id", "", opts.Original.Envelope.EnvID, 128)
	field("Received-From-MTA", "dns; ", receivedFrom(&opts.Original.Origin), maxHost)
	field("Arrival-Date", "", date(opts.AcceptedAt), 64)
	if by := opts.Original.Envelope.DeliverBy; !by.IsZero() {
		field("Deliver-By-Date", "", date(by.Deadline), 64) // RFC 2852
	}
	field("X-Waybill-Queue-ID", "", string(opts.Original.ID), 64)
	for i := range opts.Recipients {
		r := &opts.Recipients[i]
		b.WriteString("\r\n")
		if kind, orig, isUTF8, ok := mail.SplitORcpt(r.ORcpt); ok {
			if isUTF8 && !wide { // RFC 6533 section 3: the form for a 7-bit report
				orig = mail.EncodeUXText(orig)
			}
			field("Original-Recipient", word(kind)+"; ", orig, maxAddress)
		}
		kind := "rfc822; "
		if !r.Address.ASCII() {
			kind = "utf-8; "
		}
		field("Final-Recipient", kind, r.Address.String(), maxAddress)
		field("Action", "", string(r.Kind()), 16)
		field("Status", "", statusCode(r), 16)
		field("Remote-MTA", "dns; ", word(r.Host), maxHost)
		said, remote := r.words()
		if remote {
			field("Diagnostic-Code", "smtp; ", said.String(), maxDiagnostic)
		} else {
			field("Diagnostic-Code", "X-Waybill; ", said.String(), maxDiagnostic)
		}
		if r.Kind() != Relayed { // extensions (RFC 3464 section 2.4)
			field("X-Waybill-Class", "", word(string(r.Outcome.Class)), 64)
			field("X-Waybill-Rule", "", word(r.Outcome.ClassRule), 64)
			field("X-Waybill-Permanence", "", word(string(r.Outcome.Permanence)), 64)
			field("X-Waybill-Explanation", "", r.Outcome.Explanation, maxExplained)
		}
		if !r.At.IsZero() {
			field("Last-Attempt-Date", "", date(r.At), 64)
		}
		if r.Kind() == Delayed && !opts.Expires.IsZero() {
			field("Will-Retry-Until", "", date(opts.Expires), 64)
		}
	}
	kind := "message/delivery-status"
	if wide {
		kind = "message/global-delivery-status"
	}
	return textPart("Delivery report", kind, []byte(b.String()))
}

// words is the reply that explains the outcome best, and whether the next hop said it.
func (r *Recipient) words() (said mail.Reply, remote bool) {
	if !r.Outcome.Remote && r.Last != (mail.Reply{}) {
		return r.Last, r.LastRemote
	}
	return r.Outcome.Reply, r.Outcome.Remote
}

var enhanced = regexp.MustCompile(`^[245]\.[0-9]{1,3}\.[0-9]{1,3}$`)

// statusCode is the recipient's status (RFC 3463). What the next hop said
// counts when it fits what became of the recipient.
func statusCode(r *Recipient) string {
	class := map[mail.Disposition]string{mail.Relayed: "2", mail.Deferred: "4", mail.Bounced: "5"}[r.Outcome.Disposition]
	switch code := r.Outcome.Reply.Enhanced; {
	case r.Outcome.Disposition == mail.Expired:
		return "4.4.7" // delivery time expired; a persistent transient failure (RFC 3464 section 2.3.4)
	case class == "":
		return "5.0.0"
	case enhanced.MatchString(code) && code[:1] == class:
		return code
	}
	return class + ".0.0"
}

// receivedFrom names the host that handed the message in.
func receivedFrom(o *mail.Origin) string {
	switch {
	case o.ClientName != "":
		return word(o.ClientName)
	case o.Helo != "" && net.ParseIP(o.Helo) == nil:
		return word(o.Helo)
	case o.Client.IsValid():
		return "[" + o.Client.Addr().Unmap().String() + "]"
	}
	return ""
}
