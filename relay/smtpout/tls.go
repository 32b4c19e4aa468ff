package smtpout

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"strings"
	"time"

	"waybill/relay/dane"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/tlsconf"
)

// errInjected is what a next hop said between its reply to STARTTLS and the
// handshake: somebody on the way put it there.
var errInjected = errors.New("plaintext after the reply to STARTTLS")

// The reasons for which a session has no TLS beside those of handshakes; see
// event.TLSFailures.
const (
	notOffered   = "not_offered"
	refusedTLS   = "refused"
	injected     = "injected"
	tlsaMismatch = "tlsa_mismatch"
	dnssecFailed = "dnssec_failed"
	mxMismatch   = "mx_mismatch"
)

// startTLS upgrades the session where its security wants it (RFC 3207).
func (s *session) startTLS(a *attempt) *failure {
	needed := s.sec.required()
	switch {
	case s.sec.level == TLSNone:
		if s.at.fallen != "" { // opportunistic, and TLS had failed
			s.goesPlain(s.at.fallen)
		}
		return nil
	case !s.ext.startTLS && !needed:
		s.goesPlain(notOffered)
		return nil
	case !s.ext.startTLS:
		f := ours("STARTTLS", 451, "4.7.4", mail.ClassTLS, "%s does not offer STARTTLS, which is required", s.at)
		return s.insecure(f, notOffered, f.reply.Text)
	}
	start := time.Now()
	s.line("STARTTLS", "")
	if f := s.ask("STARTTLS", s.c.opts.Timeouts.Command); f != nil {
		reason := tlsconf.Closed
		if f.cause == "timeout" {
			reason = tlsconf.Timeout
		}
		f.plain = !needed
		return s.insecure(f, reason, f.reply.Text)
	}
	if s.r.code != 220 {
		f := said("STARTTLS", s.at, s.r.reply())
		if !needed && !f.lost {
			s.goesPlain(refusedTLS)
			return nil
		}
		f.permanent, f.class = false, mail.ClassTLS
		return s.insecure(f, refusedTLS, f.reply.Text)
	}
	if s.r.r.Buffered() > 0 { // CVE-2021-38371
		f := ours("STARTTLS", 451, "4.7.5", mail.ClassTLS, "%s: %v", s.at, errInjected)
		f.lost, f.cause = true, "protocol"
		s.stateTLS(nil, errInjected, 0)
		return s.insecure(f, injected, errInjected.Error())
	}
	a.stages.TLS += time.Since(start)
	if f := s.handshake(a); f != nil {
		return f
	}
	start = time.Now()
	f := s.hello() // RFC 3207 section 4.2: what was offered before does not count
	a.stages.Banner += time.Since(start)
	return f
}

// handshake makes the connection TLS. Certificates are verified by our own
// hand, because their state is a fact also where the level does not ask for it.
func (s *session) handshake(a *attempt) *failure {
	start := time.Now()
	cfg := s.c.tls.Clone()
	names := s.names(cfg)
	verified := tlsconf.Unverified
	var short error // how the certificate falls short of a policy that is not enforced
	also := cfg.VerifyConnection
	cfg.InsecureSkipVerify = true // VerifyConnection decides
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		var err error
		a.peerOf(state)
		if verified, short, err = s.sec.verify(state.PeerCertificates, cfg.RootCAs, names); err != nil {
			return err
		}
		if also != nil {
			return also(state)
		}
		return nil
	}
	conn := tls.Client(s.tcp, cfg)
	_ = conn.SetDeadline(s.until(min(s.c.opts.Timeouts.Command, time.Minute)))
	err := conn.HandshakeContext(a.ctx)
	took := time.Since(start)
	a.stages.TLS += took
	if err != nil {
		s.stateTLS(nil, err, took)
		a.log.note("TLS failed: " + clip(err.Error()))
		if a.ctx.Err() != nil {
			return cancelled("STARTTLS", s.at, a.ctx.Err())
		}
		f := ours("STARTTLS", 451, "4.7.5", mail.ClassTLS, "%s: TLS: %v", s.at, err)
		f.lost, f.cause, f.plain = true, "errors", !s.sec.required() && !s.c.opts.ImplicitTLS
		return s.insecure(f, reasonOf(err), err.Error())
	}
	_ = conn.SetDeadline(time.Time{})
	state := conn.ConnectionState()
	s.conn = conn
	s.r.r.Reset(s)
	s.w.Reset(s)
	s.tlsVersion, s.tlsCipher, s.tlsVerify = tlsconf.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite), verified
	a.use(s)
	s.stateTLS(&state, nil, took)
	if s.tlsFailure = s.sec.short; short != nil {
		s.tlsFailure = reasonOf(short)
		s.policyFailed(s.tlsFailure, short.Error())
	}
	s.c.opts.Memory.had(s.at.name)
	a.log.note("TLS " + s.tlsVersion + " " + s.tlsCipher + " " + s.tlsVerify)
	return nil
}

// names are those that the host's certificate may be for. It sets the name that
// the host is asked by.
func (s *session) names(cfg *tls.Config) []string {
	names := s.sec.names
	if len(names) == 0 {
		names = []string{cmp.Or(s.c.opts.TLSDomain, cfg.ServerName, s.at.name)}
	}
	cfg.ServerName = names[0]
	if strings.HasPrefix(cfg.ServerName, "*") {
		cfg.ServerName = s.at.name
	}
	if ip, err := netip.ParseAddr(strings.Trim(cfg.ServerName, "[]")); err == nil {
		if names[0] == cfg.ServerName {
			names[0] = ip.String()
		}
		cfg.ServerName = "" // RFC 6066 section 3: no addresses in SNI
	}
	return names
}

func (s *session) stateTLS(state *tls.ConnectionState, err error, took time.Duration) {
	ev := event.TLSNegotiated{
		Direction: event.Outbound, Connector: s.c.opts.Name, RemoteName: s.at.name, RemoteIP: s.at.addr.Addr(), Provider: s.at.provider,
		Version: s.tlsVersion, Cipher: s.tlsCipher, Verify: s.tlsVerify, Policy: string(s.sec.policy), Took: event.Secs(took),
	}
	if state != nil && len(state.PeerCertificates) > 0 {
		ev.Peer = cleanText([]byte(clip(state.PeerCertificates[0].Subject.String())))
	}
	if err != nil {
		ev.Failure, ev.Reason = cleanText([]byte(clip(err.Error()))), reasonOf(err)
	}
	s.emit.Emit(ev)
}

// reasonOf is the word for why TLS failed.
func reasonOf(err error) string {
	switch {
	case errors.Is(err, errInjected):
		return injected
	case errors.Is(err, dane.ErrNoMatch):
		return tlsaMismatch
	}
	return tlsconf.Reason(err)
}

// insecure notes that f ended a session because TLS is not as it must be, and
// states it.
func (s *session) insecure(f *failure, reason, detail string) *failure {
	f.at, f.why = s.at, reason
	if !f.hopeless { // our own end says nothing about the host
		s.tlsFailure = reason
		s.policyFailed(reason, detail)
	}
	return f
}

// goesPlain notes that the session goes on without TLS, and states it of a host
// that had TLS before.
func (s *session) goesPlain(reason string) {
	s.tlsFailure = reason
	if s.at.fallen == "" { // else the session before has said so
		s.policyFailed(reason, "")
	}
	if last := s.c.opts.Memory.lost(s.at.name); !last.IsZero() {
		s.emit.Emit(event.TLSDowngraded{
			Connector: s.c.opts.Name, RemoteName: s.at.name, RemoteIP: s.at.addr.Addr(), Provider: s.at.provider, Reason: reason, LastTLS: last,
		})
	}
}

// policyFailed states that the host is not as the session's policy asks for.
func (s *session) policyFailed(reason, detail string) {
	s.sec.failed(s.emit, s.c.opts.Name, s.at, reason, detail)
}

// verify says how far a certificate can be trusted: not at all, by its
// authority, by its authority and name, or by a policy of its domain. The first
// error is how it falls short of a policy that is not enforced, the second why
// the session must not go on.
func (sec *security) verify(peer []*x509.Certificate, roots *x509.CertPool, names []string) (word string, short, err error) {
	if sec.level == TLSDANE {
		if err := dane.Verify(sec.records, peer, names); err != nil {
			return tlsconf.Unverified, nil, err
		}
		return "dane", nil, nil
	}
	word, why := pkix(peer, roots, names)
	switch {
	case sec.level == TLSVerify && word == tlsconf.Unverified, sec.level == TLSVerifyName && word != tlsconf.VerifiedName:
		return word, nil, why
	case sec.testing && word != tlsconf.VerifiedName:
		return word, why, nil
	case sec.policy == TLSMTASTS && sec.level == TLSVerifyName:
		word = "mta_sts"
	}
	return word, nil, nil
}

// pkix verifies by authorities. The error is why a certificate is not trusted
// further.
func pkix(peer []*x509.Certificate, roots *x509.CertPool, names []string) (string, error) {
	if len(peer) == 0 {
		return tlsconf.Unverified, errors.New("no certificate")
	}
	if _, err := tlsconf.Chains(peer, roots, x509.ExtKeyUsageServerAuth); err != nil {
		return tlsconf.Unverified, err
	}
	for _, name := range names {
		if tlsconf.MatchName(peer[0], name) {
			return tlsconf.VerifiedName, nil
		}
	}
	return tlsconf.VerifiedPKIX, x509.HostnameError{Certificate: peer[0], Host: names[0]}
}
