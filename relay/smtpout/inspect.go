package smtpout

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/mtasts"
	"waybill/relay/route"
	"waybill/relay/transcript"
)

// maxInspected bounds the sessions of an inspection that are open at once.
const maxInspected = 8

// Inspection is what a walk to the next hops of a hop finds, without a message.
type Inspection struct {
	Policy mtasts.Policy // of the domain; its mode is empty where it is not asked for
	Hosts  []InspectedHost
	Failed *Trouble // no host is known
}

// InspectedHost is one host that messages could go to.
type InspectedHost struct {
	Name       string
	Port       uint16
	Preference int  // of the MX, or the cost of the smart host
	Secure     bool // its name is authentic: configured, or from a signed zone
	Policy     event.TLS
	Failed     *Trouble // at least one of its addresses is not to be used, or all
	Sessions   []InspectedSession
}

// InspectedSession is a session with one address, which ended with QUIT before
// MAIL.
type InspectedSession struct {
	Addr       netip.AddrPort
	Local      netip.AddrPort
	Stages     mail.Stages
	Peer       []*x509.Certificate
	TLSVersion string
	TLSCipher  string
	TLSVerify  string   // none, unverified, pkix, pkix_name, dane, mta_sts
	TLSFailure string   // why there is no TLS, or not as it should be: an event.TLSFailures word
	TLSDetail  string   // the same in words, of a session that goes on in plain text
	Extensions []string // EHLO keywords with their parameters
	User       string   // logged in as
	Failed     *Trouble // why no message would go there
	Transcript []event.Line

	at target
}

// Trouble is why something would not go on.
type Trouble struct {
	Verb      string // empty: before there was a session
	Reply     mail.Reply
	Remote    bool // Reply is the next hop's, and not ours
	Permanent bool // a message would bounce; else wait
	Class     mail.Class
	TLS       string // an event.TLSFailures word
}

func (f *failure) trouble() *Trouble {
	if f == nil {
		return nil
	}
	return &Trouble{Verb: f.verb, Reply: f.reply, Remote: f.remote, Permanent: f.permanent, Class: f.class, TLS: f.why}
}

// Inspect goes to every host and address that a message for hop could go to, up
// to four addresses a host, the way that messages go: with the same look-ups,
// source addresses, TLS and login. It says QUIT in place of MAIL. No session is
// waited for longer than timeout.
func (c *Connector) Inspect(ctx context.Context, hop route.Hop, timeout time.Duration) Inspection {
	first := c.inspection(ctx, hop)
	groups := first.plan()
	in := Inspection{Policy: first.sts}
	if first.failed != nil {
		in.Failed = first.failed.trouble()
		return in
	}
	var list []host
	for _, group := range groups {
		list = append(list, group...)
	}
	list = list[:min(len(list), c.opts.Limits.MaxHosts)]
	in.Hosts = make([]InspectedHost, len(list))
	var group errgroup.Group
	group.SetLimit(maxInspected)
	for i, h := range list {
		group.Go(func() error {
			in.Hosts[i] = c.inspectHost(ctx, hop, first.sts, h)
			return nil
		})
	}
	_ = group.Wait() // what fails is in the result
	for i := range in.Hosts {
		h := &in.Hosts[i]
		for j := range h.Sessions {
			group.Go(func() error {
				c.inspectSession(ctx, hop, h, &h.Sessions[j], timeout)
				return nil
			})
		}
	}
	_ = group.Wait() // likewise
	return in
}

// inspection is an attempt without recipients.
func (c *Connector) inspection(ctx context.Context, hop route.Hop) *attempt {
	m := &Message{}
	s := &script{who: transcript.Party{Direction: event.Outbound, Connector: c.opts.Name}}
	s.log = transcript.New(time.Now(), true, nil, s.who)
	return &attempt{c: c, ctx: ctx, hop: hop, m: m, log: s}
}

func (c *Connector) inspectHost(ctx context.Context, hop route.Hop, sts mtasts.Policy, h host) InspectedHost {
	a := c.inspection(ctx, hop)
	a.sts = sts
	targets, _ := a.resolve([]host{h})
	found := InspectedHost{Name: h.name, Port: h.port, Preference: h.preference, Secure: h.secure, Failed: a.failed.trouble()}
	if a.failed != nil && a.failed.policy != "" {
		found.Policy.Policy, found.Policy.Failure = string(a.failed.policy), a.failed.why
	}
	for _, at := range targets {
		sec := a.security(at, a.level())
		found.Policy = event.TLS{Domain: sec.domain, Base: sec.base, Policy: string(sec.policy), Text: sec.text, Failure: sec.short}
		found.Sessions = append(found.Sessions, InspectedSession{Addr: at.addr, at: at})
	}
	return found
}

func (c *Connector) inspectSession(ctx context.Context, hop route.Hop, h *InspectedHost, found *InspectedSession, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	a := c.inspection(ctx, hop)
	at := found.at
	var detail string
	s, f := c.look(a, at, a.level(), found)
	if f != nil && f.plain && ctx.Err() == nil {
		detail, at.fallen = f.reply.Text, f.why
		s, f = c.look(a, at, TLSNone, found)
	}
	found.TLSDetail = detail
	found.Stages = a.stages
	found.Failed = f.trouble()
	if f != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		found.Failed = ours(f.verb, 451, "4.4.2", mail.ClassTimeout, "%s: no answer at %s within %s", at, f.verb, timeout).trouble()
	}
	if s != nil {
		found.User = s.user
		s.finish("quit", true)
	}
	found.Transcript, _, _ = a.log.log.Lines()
	found.Extensions = said250(found.Transcript)
}

// look opens a session, and notes what it shows of TLS, also when it fails.
func (c *Connector) look(a *attempt, at target, level TLSLevel, found *InspectedSession) (*session, *failure) {
	a.peer = nil
	s, f := a.open(at, level)
	if a.peer != nil {
		found.Peer = a.peer
	}
	found.Local = a.via.local
	found.TLSVersion, found.TLSCipher, found.TLSVerify, found.TLSFailure = a.via.tlsVersion, a.via.tlsCipher, a.via.tlsVerify, a.via.tlsFailure
	return s, f
}

// said250 lists the keywords of the last reply to EHLO.
func said250(lines []event.Line) (keywords []string) {
	hello := -1
	for i, l := range lines {
		if l.From == "client" && strings.HasPrefix(l.Text, "EHLO ") {
			hello = i
		}
	}
	if hello < 0 {
		return nil
	}
	for _, l := range lines[hello+1:] {
		if l.From == "client" {
			break
		}
		if rest, ok := strings.CutPrefix(l.Text, "250"); ok && l.From == "server" && len(rest) > 1 {
			keywords = append(keywords, strings.TrimSpace(rest[1:]))
		}
	}
	if len(keywords) > 0 {
		keywords = slices.Clip(keywords[1:]) // after the host's name
	}
	return keywords
}

// peerOf keeps the certificates that a handshake shows, for whoever inspects.
func (a *attempt) peerOf(state tls.ConnectionState) {
	a.peer = state.PeerCertificates
}
