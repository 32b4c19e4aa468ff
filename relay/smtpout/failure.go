package smtpout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"waybill/relay/dns"
	"waybill/relay/mail"
)

// localRule is the ClassRule of causes that this package found itself. What a
// next hop said is classified by package deliver.
const localRule = "local"

// target is one address of one host.
type target struct {
	name     string // as asked for
	addr     netip.AddrPort
	provider string
	sec      *security // what it publishes about TLS; nil: nothing that was asked for
	fallen   string    // why TLS with it failed just now, and plain text is tried
}

// same reports whether o is the same address of the same host.
func (t target) same(o target) bool { return t.name == o.name && t.addr == o.addr }

func (t target) String() string {
	if t.name == t.addr.Addr().String() || t.name == "" {
		return t.addr.String()
	}
	return fmt.Sprintf("%s[%s]:%d", t.name, t.addr.Addr(), t.addr.Port())
}

// failure is why an attempt did not go on: in the next hop's words or ours.
type failure struct {
	verb      string
	reply     mail.Reply
	remote    bool       // reply came from the next hop
	permanent bool       // bounce; otherwise defer
	class     mail.Class // for local causes
	uncertain bool
	lost      bool     // the session cannot go on
	hopeless  bool     // no other host would do better: our own fault, or the attempt was cancelled
	plain     bool     // a TLS handshake failed: plaintext may do
	closes    bool     // the host takes no mail at all (521, RFC 7504)
	why       string   // TLS is not as it must be: an event.TLSFailures word
	policy    TLSLevel // whose fault that is, where no session was opened, or it ended with TLS
	cause     string
	at        target
}

// rank orders failures by how much they tell, for the one that is reported when
// several hosts failed.
func (f *failure) rank() int {
	switch {
	case f.hopeless:
		return 5
	case f.remote:
		return 4
	case f.class == mail.ClassTLS, f.class == mail.ClassAuth:
		return 3
	case f.class == mail.ClassDNS:
		return 0
	case f.verb == "CONNECT":
		return 1
	}
	return 2
}

func (f *failure) outcome(to mail.Address) mail.Outcome {
	o := mail.Outcome{
		Recipient: to, Disposition: mail.Deferred, Reply: f.reply, Remote: f.remote, Verb: f.verb, Class: f.class, Uncertain: f.uncertain,
	}
	if f.permanent {
		o.Disposition = mail.Bounced
	}
	if f.class != mail.ClassNone {
		o.ClassRule = localRule
	}
	return o
}

// ours is a failure in our words.
func ours(verb string, code int, enhanced string, class mail.Class, format string, args ...any) *failure {
	return &failure{
		verb: verb, class: class, permanent: code >= 500,
		reply: mail.Reply{Code: code, Enhanced: enhanced, Text: cleanText([]byte(clip(fmt.Sprintf(format, args...))))},
	}
}

// clip bounds what errors tell, which may hold what strangers said.
func clip(s string) string {
	const most = 400
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// broken is the failure of a session whose connection gave err at verb.
func broken(verb string, at target, err error) *failure {
	var f *failure
	switch {
	case errors.Is(err, errReplySyntax), errors.Is(err, errReplyLong):
		f = ours(verb, 451, "4.5.0", mail.ClassOther, "%s: %v to %s", at, err, verb)
		f.cause = "protocol"
	case errors.Is(err, os.ErrDeadlineExceeded):
		f = ours(verb, 451, "4.4.2", mail.ClassTimeout, "%s: timeout at %s", at, verb)
		f.cause = "timeout"
	case alert(err) != nil: // with TLS 1.3 it may come after our side of the handshake
		f = ours(verb, 451, "4.7.5", mail.ClassTLS, "%s: the host ended TLS at %s: %v", at, verb, alert(err))
		f.cause = "closed"
	default:
		f = ours(verb, 451, "4.4.2", mail.ClassConnect, "%s: connection lost at %s: %s", at, verb, reason(err))
		f.cause = "closed"
	}
	f.lost, f.at = true, at
	return f
}

// alert is the alert with which the peer ended TLS: a fault that it finds with
// us, such as the missing client certificate. It is nil for other errors.
func alert(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" { // as crypto/tls has it
		return op.Err
	}
	return nil
}

// cancelled is the failure of an attempt whose context is done.
func cancelled(verb string, at target, err error) *failure {
	f := ours(verb, 451, "4.3.2", mail.ClassOther, "attempt was cancelled at %s: %v", verb, err)
	if errors.Is(err, context.DeadlineExceeded) {
		f = ours(verb, 451, "4.4.7", mail.ClassTimeout, "no time left for the attempt at %s", verb)
	}
	f.lost, f.hopeless, f.at, f.cause = true, true, at, "shutdown"
	return f
}

// unreachable is the failure to connect.
func unreachable(at target, err error) *failure {
	f := ours("CONNECT", 451, "4.4.1", mail.ClassConnect, "connect to %s: %s", at, reason(err))
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		f.class = mail.ClassTimeout
	}
	f.at = at
	return f
}

// unresolved is the failure of a question about the recipients' domain.
func unresolved(domain string, err error) *failure {
	var e *dns.Error
	if !errors.As(err, &e) {
		return ours("", 451, "4.4.3", mail.ClassDNS, "%s: %v", domain, err)
	}
	switch e.Kind {
	case dns.NXDomain:
		return ours("", 550, "5.1.2", mail.ClassBadDomain, "domain %s does not exist", domain)
	case dns.NoData:
		return ours("", 550, "5.1.2", mail.ClassBadDomain, "domain %s has no host that takes mail", domain)
	case dns.NullMX: // RFC 7505 section 4.2
		return ours("", 556, "5.1.10", mail.ClassBadDomain, "domain %s takes no mail", domain)
	case dns.Timeout:
		return ours("", 451, "4.4.3", mail.ClassDNS, "no answer from the DNS about %s", domain)
	}
	return ours("", 451, "4.4.3", mail.ClassDNS, "%v", err)
}

// reason is the plain part of a network error.
func reason(err error) string {
	var errno syscall.Errno
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed by the peer"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.As(err, &errno):
		return errno.Error()
	}
	return err.Error()
}

// said is the failure that a reply tells. When asks to try later by its code,
// it is temporary.
func said(verb string, at target, r mail.Reply) *failure {
	f := &failure{verb: verb, reply: r, remote: true, permanent: r.Code/100 == 5, at: at}
	switch {
	case r.Code == 421: // RFC 5321 section 3.8
		f.lost, f.cause = true, "closed"
	case r.Code/100 != 4 && r.Code/100 != 5: // an answer to another question
		f.lost, f.cause, f.class = true, "protocol", mail.ClassOther
	}
	return f
}
