package smtpout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"waybill/relay/dane"
	"waybill/relay/dns"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/mtasts"
)

// A SecureLooker is what is asked of the DNS for DANE (RFC 7672); [dns.Resolver]
// is the real one.
type SecureLooker interface {
	// Host returns addresses of host, and whether they are authentic.
	Host(ctx context.Context, host string) (dns.Host, error)
	// TLSA returns the associations of name, and whether they are authentic.
	TLSA(ctx context.Context, name string) ([]dns.TLSA, bool, error)
}

// A PolicySource knows what domains publish about TLS; [mtasts.Cache] is the
// real one.
type PolicySource interface {
	// Policy returns the policy of domain; its mode is none when there is none.
	// The error is ctx's.
	Policy(ctx context.Context, domain string) (mtasts.Policy, error)
}

// security is what sessions with one host must have of TLS.
type security struct {
	level   TLSLevel   // one of those up to verify_name, or dane
	policy  TLSLevel   // by which it is so, for facts
	domain  string     // whose policy it is; empty: the connector's own
	records []dns.TLSA // usable ones, with the level dane
	names   []string   // that the certificate may be for, the first one for SNI; empty: the host's name, or the TLS domain
	testing bool       // the policy is looked at, and not enforced
	base    string     // dane: the host whose records they are
	text    string     // what is published, for facts
	short   string     // how the host falls short of a policy that is not enforced, before there is a session
}

// required reports whether there is no sending without TLS.
func (sec *security) required() bool { return sec.level != TLSNone && sec.level != TLSOpportunistic }

// failed states that a host is not as sec asks for. Where nothing is asked for,
// nothing can fail.
func (sec *security) failed(emit event.Emitter, connector string, at target, reason, detail string) {
	if !sec.required() && !sec.testing {
		return
	}
	emit.Emit(event.TLSPolicyFailed{
		Connector: connector, Domain: sec.domain, RemoteName: at.name, RemoteIP: at.addr.Addr(), Provider: at.provider,
		Policy: string(sec.policy), Text: sec.text, Reason: reason, Detail: cleanText([]byte(clip(detail))), Enforced: !sec.testing,
	})
}

// security is what a session with at must have when the level is level: what its
// domain publishes where the level is to ask for that.
func (a *attempt) security(at target, level TLSLevel) security {
	switch {
	case level == TLSNone && at.fallen != "":
		return security{level: TLSNone, policy: TLSOpportunistic}
	case level != TLSDANE && level != TLSMTASTS:
		return security{level: level, policy: level}
	case at.sec != nil:
		return *at.sec
	}
	return security{level: TLSOpportunistic, policy: TLSOpportunistic}
}

// published finds what the host, or the domain of the recipients, publishes about
// TLS. DANE comes first: what it asks for no other policy can lessen (RFC 8461
// section 2). The failure says that nothing may be sent to the host.
func (a *attempt) published(h host) (*security, *failure) {
	o := &a.c.opts
	if o.TLS != TLSDANE && o.TLS != TLSMTASTS || a.unbound() {
		return nil, nil
	}
	if o.DANE != nil && h.secure {
		if sec, f := a.dane(h); sec != nil || f != nil {
			return sec, f
		}
	}
	sec := &security{level: TLSOpportunistic, policy: TLSOpportunistic}
	switch a.sts.Mode {
	case mtasts.Enforce:
		sec = &security{level: TLSVerifyName, policy: TLSMTASTS, domain: a.hop.Name, names: []string{h.name}, text: a.sts.Text()}
	case mtasts.Testing:
		sec = &security{level: TLSOpportunistic, policy: TLSMTASTS, domain: a.hop.Name, names: []string{h.name}, testing: true, text: a.sts.Text()}
	case mtasts.None:
		return sec, nil
	default: // no policy was asked for
		return sec, nil
	}
	if a.sts.Match(h.name) {
		return sec, nil
	}
	f := ours("", 451, "4.7.5", mail.ClassTLS, "%s is not among the hosts that the MTA-STS policy of %s names", h.name, a.hop.Name)
	a.breach(sec, h, f, mxMismatch)
	if sec.testing {
		sec.short = mxMismatch
		return sec, nil
	}
	return nil, f
}

// breach states that a host cannot be used, before there is a session.
func (a *attempt) breach(sec *security, h host, f *failure, reason string) {
	f.why, f.policy = reason, sec.policy
	at := target{name: h.name, provider: Provider(h.name)}
	sec.failed(a.c.opts.Emitter.Source(event.SourceSMTPOut), a.c.opts.Name, at, reason, f.reply.Text)
}

// dane finds the TLSA records of a host whose name is authentic (RFC 7672 section
// 2.2). Nil means that it has none that count, and is a host like others; when
// the DNS does not tell, nothing may be sent there.
func (a *attempt) dane(h host) (*security, *failure) {
	sec := &security{level: TLSDANE, policy: TLSDANE, domain: a.hop.Name}
	if len(a.c.opts.SmartHosts) > 0 {
		sec.domain = h.name
	}
	unknown := func(err error) (*security, *failure) {
		if a.ctx.Err() != nil {
			return nil, cancelled("", target{}, a.ctx.Err())
		}
		var e *dns.Error
		if errors.As(err, &e) && !e.Temporary() {
			return nil, nil
		}
		f := ours("", 451, "4.7.5", mail.ClassTLS, "no authentic answer about the TLSA records of %s: %v", h.name, err)
		a.breach(sec, h, f, dnssecFailed)
		return nil, f
	}
	found, err := a.c.opts.DANE.Host(a.ctx, h.name)
	if err != nil {
		return unknown(err)
	}
	if !found.Secure {
		return nil, nil
	}
	for _, base := range slices.Compact([]string{found.Name, strings.ToLower(h.name)}) {
		records, secure, err := a.c.opts.DANE.TLSA(a.ctx, fmt.Sprintf("_%d._tcp.%s", h.port, base))
		if err != nil {
			if none, f := unknown(err); f != nil {
				return none, f
			}
			continue
		}
		if !secure {
			continue
		}
		sec.base, sec.text = base, dane.Text(records)
		if sec.records = dane.Usable(records); len(sec.records) == 0 {
			sec.level = TLSEncrypt // RFC 7672 section 2.2: TLS all the same
			return sec, nil
		}
		sec.names = slices.Compact([]string{base, strings.ToLower(h.name)})
		if len(a.c.opts.SmartHosts) == 0 {
			sec.names = append(sec.names, a.hop.Name)
		}
		return sec, nil
	}
	return nil, nil
}
