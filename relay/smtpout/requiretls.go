package smtpout

import "waybill/relay/mail"

// level is the TLS level of a: that of the connector, and for a message that
// asks for REQUIRETLS at least one that proves the host's name (RFC 8689
// section 4.2.1).
func (a *attempt) level() TLSLevel {
	level := a.c.opts.TLS
	switch {
	case a.unbound():
		return TLSOpportunistic
	case !a.m.Envelope.RequireTLS:
		return level
	}
	switch level {
	case TLSNone, TLSOpportunistic, TLSEncrypt, TLSVerify:
		return TLSVerifyName
	case TLSVerifyName, TLSDANE, TLSMTASTS:
	}
	return level
}

// unbound reports whether a goes in any case, whatever the recipients' domain
// publishes about TLS (RFC 8689 section 5): reports about what fails must arrive
// (RFC 8460 section 3). What the configuration itself asks for is asked for all
// the same.
func (a *attempt) unbound() bool {
	return a.m.Envelope.TLSOptional && !a.m.Envelope.RequireTLS && (a.c.opts.TLS == TLSDANE || a.c.opts.TLS == TLSMTASTS)
}

// proven reports whether s speaks to whom it should, as far as REQUIRETLS asks.
// A name from an MX record proves nothing by itself: anybody may have put it
// there. That takes DANE or MTA-STS; a configured host, and one that bears the
// domain's own name, do not need them.
func (s *session) proven(hop string) bool {
	switch s.tlsVerify {
	case "dane", "mta_sts":
		return true
	case "pkix_name":
		return len(s.c.opts.SmartHosts) > 0 || s.at.name == hop
	}
	return false
}

// guarded says why a message that asks for REQUIRETLS cannot go over s, or nil.
// Another host of the next hop may do better.
func (s *session) guarded(hop string) *failure {
	var f *failure
	switch {
	case s.tlsVersion == "" || !s.proven(hop):
		f = ours("MAIL", 550, "5.7.10", mail.ClassTLS, "the sender requires TLS, and the name of %s cannot be proven", s.at)
	case !s.ext.requireTLS:
		f = ours("MAIL", 550, "5.7.30", mail.ClassTLS, "the sender requires TLS on the whole way, and %s does not offer REQUIRETLS", s.at)
	default:
		return nil
	}
	f.at = s.at
	return f
}

// spent reports whether s has carried as many messages as it may, by our limit
// or by the one that the next hop tells (RFC 9422 section 3).
func (s *session) spent() bool {
	return s.transactions >= s.c.opts.Limits.MessagesPerConnection || s.ext.maxMail > 0 && s.transactions >= s.ext.maxMail
}

// share keeps of todo what the next hop takes in one transaction. The others
// wait for the next transaction, and are deferred when none comes.
func (t *transaction) share(todo []int) []int {
	n := t.s.ext.maxRcpt
	if own := t.s.c.opts.Limits.RecipientsPerMessage; own > 0 && (n <= 0 || own < n) {
		n = own
	}
	if n <= 0 || len(todo) <= n {
		return todo
	}
	t.tooMany = true
	for _, i := range todo[n:] {
		f := ours("RCPT", 452, "4.5.3", mail.ClassOther, "%s takes %d recipients at once", t.s.at, n)
		t.a.outcomes[i] = f.outcome(t.a.m.Envelope.Recipients[i].Address)
	}
	return todo[:n]
}
