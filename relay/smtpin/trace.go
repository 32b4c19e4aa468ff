package smtpin

import (
	"crypto/tls"
	"strconv"
	"time"

	"waybill/relay/mail"
)

// appendTrace appends our Received field (RFC 5321 section 4.4). The recipient is in it
// only when it is the only one: others must not learn of each other.
func appendTrace(b []byte, hostname string, o mail.Origin, id mail.QueueID, env mail.Envelope, at time.Time) []byte {
	b = append(b, "Received: from "...)
	b = append(b, extendedDomain(o.Helo)...)
	b = append(b, " ("...)
	if o.ClientName != "" { // RFC 5321 section 4.4: TCP-info
		b = append(b, o.ClientName...)
		b = append(b, ' ')
	}
	b = append(b, '[')
	if ip := o.Client.Addr(); ip.Is6() {
		b = append(b, "IPv6:"...)
		b = ip.AppendTo(b)
	} else {
		b = ip.AppendTo(b)
	}
	b = append(b, "])\r\n"...)
	if o.TLSVersion != "" {
		b = append(b, "\t(using TLS "...)
		b = append(b, o.TLSVersion...)
		b = append(b, " with "...)
		b = append(b, o.TLSCipher...)
		b = append(b, ")\r\n"...)
	}
	b = append(b, "\tby "...)
	b = append(b, hostname...)
	b = append(b, " (Waybill) with "...)
	b = append(b, o.Protocol...)
	b = append(b, " id "...)
	b = append(b, id...)
	if env.Priority != 0 { // RFC 6710 section 7
		b = append(b, " PRIORITY "...)
		b = strconv.AppendInt(b, int64(env.Priority), 10)
	}
	b = append(b, "\r\n"...)
	if len(env.Recipients) == 1 {
		b = append(b, "\tfor "...)
		b = append(b, env.Recipients[0].Address.Path()...)
		b = append(b, ";\r\n\t"...)
	} else {
		b = append(b[:len(b)-2], ";\r\n\t"...)
	}
	b = at.AppendFormat(b, "Mon, 2 Jan 2006 15:04:05 -0700")
	return append(b, '\r', '\n')
}

// extendedDomain is a client's name for itself as a Received field may hold it.
func extendedDomain(helo string) string {
	d, err := mail.ParseDomain(helo)
	if err != nil {
		return "unknown"
	}
	return d
}

// protocol is the word after "with" (RFC 3848, RFC 6531 section 4.3).
func protocol(esmtp, utf8, secure, authenticated bool) string {
	if !esmtp {
		return "SMTP"
	}
	word := "ESMTP"
	if utf8 {
		word = "UTF8SMTP"
	}
	if secure {
		word += "S"
	}
	if authenticated {
		word += "A"
	}
	return word
}

func cipherName(id uint16) string { return tls.CipherSuiteName(id) }
