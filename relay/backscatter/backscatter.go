// Package backscatter decides whom a report about a message may go to.
//
// It exists because the reverse-path of mail from strangers is whatever they
// wrote there: a report about spam that a server behind us refused hits
// somebody who sent nothing. RFC 5321 section 6.1 wants every failure reported,
// and its section 6.2 lets a host drop what is known to be forged; this package
// draws that line. It promises that mail of users, and of clients that may
// relay through us, is always reported on; that a stranger's claim is judged by
// SPF (RFC 7208) at most once for a report, within a few seconds; and that a
// question without an answer counts as not forged.
//
// To draw the line elsewhere, add a word to [Strangers] and a case to
// [Policy.Refuse].
package backscatter

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"blitiri.com.ar/go/spf"

	"waybill/relay/dns"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// Strangers says which senders of mail from strangers get reports.
type Strangers string

// The words of [Strangers], the most generous first.
const (
	All          Strangers = "all"           // every sender
	UnlessForged Strangers = "unless_forged" // not when the sender's domain says that it does not send from there
	Verified     Strangers = "verified"      // only when the sender's domain says that it does
	None         Strangers = "none"          // nobody
)

// Words lists the words of [Strangers].
func Words() []string {
	return []string{string(All), string(UnlessForged), string(Verified), string(None)}
}

// Resolver asks the DNS; *[dns.Resolver] is one.
type Resolver interface {
	MX(ctx context.Context, domain string) ([]dns.MX, error)
	Addrs(ctx context.Context, host string) ([]netip.Addr, error)
	TXT(ctx context.Context, name string) ([]string, error)
	PTR(ctx context.Context, ip netip.Addr) ([]string, error)
}

// Policy decides. The zero Policy lets reports go to everybody.
type Policy struct {
	Strangers Strangers
	// Trusted reports whether clients of a receive connector may relay without a
	// login; nil: none may.
	Trusted  func(connector string) bool
	Resolver Resolver
}

// timeout bounds the look-ups for one report; an answer after it counts as none.
const timeout = 5 * time.Second

// Refuse says why the sender of m must get no report: a word of
// [event.DSNQueued], or nothing when the report may go. It may ask the DNS.
func (p *Policy) Refuse(ctx context.Context, m *mail.Draft) (why string) {
	if p.Strangers == "" || p.Strangers == All || p.known(&m.Origin) {
		return ""
	}
	if p.Strangers == None {
		return event.SuppressedStranger
	}
	switch result := p.check(ctx, m); {
	case result == spf.Fail || result == spf.SoftFail:
		return event.SuppressedForged
	case p.Strangers == Verified && result != spf.Pass:
		return event.SuppressedStranger
	}
	return ""
}

// known reports whether the message is from somebody whom we know: the relay
// itself, a user, or a client that may relay.
func (p *Policy) known(o *mail.Origin) bool {
	return !o.Client.IsValid() || o.User != "" || p.Trusted != nil && p.Trusted(o.Connector)
}

// check asks whether the sender's domain sends from the client's address.
func (p *Policy) check(ctx context.Context, m *mail.Draft) spf.Result {
	sender := m.Envelope.Sender
	if p.Resolver == nil || sender.IsNull() {
		return spf.None
	}
	if _, literal := sender.Literal(); literal {
		return spf.None
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	sender.Domain = sender.DomainKey() // A-labels, which is what is published
	ip := net.IP(m.Origin.Client.Addr().Unmap().WithZone("").AsSlice())
	result, _ := spf.CheckHostWithSender(ip, m.Origin.Helo, sender.String(), spf.WithContext(ctx), spf.WithResolver(resolver{p.Resolver}))
	return result // its error says why; temperror and permerror are results, too
}

// resolver asks as package spf wants it.
type resolver struct{ Resolver }

// mostText is the longest text that can be a policy. RFC 7208 section 3.4 wants
// them within 450 octets or so, and the longest seen have a few thousand; package
// spf takes time that grows with the square of the length. Chosen by taste.
const mostText = 8 << 10

// LookupTXT returns the texts of name.
func (r resolver) LookupTXT(ctx context.Context, name string) ([]string, error) {
	texts, err := r.TXT(ctx, name)
	var list []string
	for _, s := range texts {
		if len(s) <= mostText {
			list = append(list, s)
		}
	}
	return list, convert(name, err)
}

// LookupMX returns the mail exchangers of name, without an implicit one.
func (r resolver) LookupMX(ctx context.Context, name string) ([]*net.MX, error) {
	hosts, err := r.MX(ctx, name)
	var list []*net.MX
	for _, h := range hosts {
		if !h.Implicit { // RFC 7208 section 5.4: mx has no implicit MX
			list = append(list, &net.MX{Host: h.Host, Pref: h.Preference})
		}
	}
	return list, convert(name, err)
}

// LookupIPAddr returns the addresses of host.
func (r resolver) LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error) {
	addrs, err := r.Addrs(ctx, host)
	list := make([]net.IPAddr, len(addrs))
	for i, a := range addrs {
		list[i] = net.IPAddr{IP: a.Unmap().AsSlice()}
	}
	return list, convert(host, err)
}

// LookupAddr returns the names of addr.
func (r resolver) LookupAddr(ctx context.Context, addr string) ([]string, error) {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return nil, &net.DNSError{Err: err.Error(), Name: addr, IsNotFound: true}
	}
	names, err := r.PTR(ctx, ip)
	return names, convert(addr, err)
}

// convert makes the error that package spf tells apart.
func convert(name string, err error) error {
	if err == nil {
		return nil
	}
	de, ok := errors.AsType[*dns.Error](err)
	if !ok || de.Temporary() {
		return &net.DNSError{Err: err.Error(), Name: name, IsTemporary: true}
	}
	return &net.DNSError{Err: err.Error(), Name: name, IsNotFound: true}
}
