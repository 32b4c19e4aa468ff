// Package policy decides who may hand what to whom: relay control.
//
// It exists so that the question "is this an open relay?" has one answer in one
// place. It promises to deny by default: a recipient is accepted because its
// domain is ours ([Domains]) or because the peer holds the relay right, and for
// no other reason. It does no I/O and keeps no state, so that each decision can
// be a row in a table test, and it never interprets a local part (RFC 5321
// section 2.3.11): what it saw is what goes out.
//
// To add a right, add a field to [Permissions] and its word to the table below
// it. To add a rule, add it to [Control] and rows to its test, at least one that
// an honest sender passes and one that an attacker tries.
package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/text/unicode/norm"

	"waybill/relay/mail"
)

// The reason classes of refusals by this package (event.Refusals).
const (
	ReasonSender    = "sender_denied"
	ReasonRelay     = "relay_denied"
	ReasonRecipient = "unknown_recipient"
	// ReasonUnverified is for recipients that nobody could tell about.
	ReasonUnverified = "unverified_recipient"
)

// Peer is who asks: one session's client at the time of the question.
type Peer struct {
	IP          netip.Addr
	User        string   // authenticated name; empty for anonymous peers
	Senders     []string // what User may send as: addresses, "@example.com", or "*"
	TLS         bool
	Permissions Permissions // of the receive connector, with what the login added
}

func (p Peer) String() string {
	who := "unknown client"
	if p.IP.IsValid() {
		who = "client " + Canonical(p.IP).String()
	}
	if p.User != "" {
		return fmt.Sprintf("%s, user %q", who, p.User)
	}
	return who
}

// Control is the relay control of a receive connector. The zero Control accepts
// mail only from peers that may relay.
type Control struct {
	// Domains are the accepted domains; nil means none.
	Domains *Domains
	// Postmaster is where mail for "postmaster" without a domain, and at our own
	// address literals, goes (RFC 5321 section 4.5.1). Without one such mail is
	// refused.
	Postmaster mail.Address
	// Self reports whether an address is one of our own, so that mail for its
	// literal is not sent to ourselves. Loopback is always ours. May be nil.
	Self func(netip.Addr) bool
}

// Sender decides about MAIL: whether p may submit at all, and whether a user
// that has logged in may send as e.Sender. It returns nil to accept.
//
// The null reverse-path is nobody's address: everyone who may submit may use it,
// as disposition notifications must (RFC 8098 section 3).
func (c *Control) Sender(p Peer, e mail.Envelope) *mail.ReplyError {
	if !p.Permissions.Submit {
		return refuse(ReasonSender, "5.7.1", "you may not submit mail here", fmt.Errorf("%s has no permission to submit", p))
	}
	if p.User == "" || p.Permissions.AnySender || e.Sender.IsNull() || mayUse(p, e.Sender) {
		return nil
	}
	why := fmt.Errorf("%s may not send as %s", p, e.Sender)
	if len(p.Senders) == 0 {
		why = fmt.Errorf("%w: the user has no senders", why)
	}
	return refuse(ReasonSender, "5.7.1", "sender address not owned by the authenticated user", why)
}

// Recipient decides about RCPT. It returns nil to accept.
func (c *Control) Recipient(p Peer, _ mail.Envelope, r mail.Recipient) *mail.ReplyError {
	if !p.Permissions.Submit {
		return refuse(ReasonRelay, "5.7.1", "relay access denied", fmt.Errorf("%s has no permission to submit", p))
	}
	to := r.Address
	if to.IsNull() {
		return refuse(ReasonRecipient, "5.1.1", "no such recipient", errors.New("the null path is no recipient"))
	}
	ip, literal := to.Literal()
	ours := literal && c.self(ip)
	if to.Domain == "" || ours && strings.EqualFold(to.Local, "postmaster") {
		if c.Postmaster.IsNull() {
			return refuse(ReasonRecipient, "5.1.1", "no such recipient", fmt.Errorf("no postmaster is configured for %s", to))
		}
		return nil
	}
	if ours {
		return refuse(ReasonRelay, "5.7.1", "relay access denied", fmt.Errorf("%s is at an address of this relay", to))
	}
	if !literal {
		if d, ok := c.Domains.Lookup(to.DomainKey()); ok {
			return accepted(p, d, to)
		}
	}
	if p.Permissions.Relay {
		return nil
	}
	return refuse(ReasonRelay, "5.7.1", "relay access denied", fmt.Errorf("%s may not relay to %s: not an accepted domain, and no relay permission", p, to))
}

// accepted decides about a recipient whose domain is ours.
func accepted(p Peer, d Domain, to mail.Address) *mail.ReplyError {
	// The hosts behind us may read routes out of local parts: user%elsewhere,
	// elsewhere!user, "user@elsewhere". From strangers such an address is an
	// attempt to relay through them. So is one with letters that some of them
	// take for these, such as U+FF20 (RFC 8265 section 2.1 is why).
	if !p.Permissions.Relay && strings.ContainsAny(norm.NFKC.String(to.Local), "@%!") {
		return refuse(ReasonRelay, "5.7.1", "relay access denied", fmt.Errorf("%s: sender-specified routing in %s", p, to))
	}
	// Every domain that takes mail has a postmaster (RFC 5321 section 4.5.1).
	if d.Recipients != nil && !d.Recipients(to) && !strings.EqualFold(to.Local, "postmaster") {
		return refuse(ReasonRecipient, "5.1.1", "no such recipient", fmt.Errorf("%s is not a known recipient of %s", to, d.Name))
	}
	return nil
}

// Target is the address that a message for a goes to: a itself, or the
// configured postmaster for "postmaster" without a domain, at one of our address
// literals, or at a domain of ours whose recipients are known and that has none.
func (c *Control) Target(a mail.Address) mail.Address {
	if c.Postmaster.IsNull() || !strings.EqualFold(a.Local, "postmaster") {
		return a
	}
	if a.Domain == "" {
		return c.Postmaster
	}
	if ip, ok := a.Literal(); ok {
		if c.self(ip) {
			return c.Postmaster
		}
		return a
	}
	if d, ok := c.Domains.Lookup(a.DomainKey()); ok && d.Recipients != nil && !d.Recipients(a) {
		return c.Postmaster
	}
	return a
}

// self reports addresses that no mail may be sent to because they are this
// machine, or no machine.
func (c *Control) self(ip netip.Addr) bool {
	ip = Canonical(ip)
	return ip.IsLoopback() || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast() || c.Self != nil && c.Self(ip)
}

// mayUse reports whether from is one of the peer's own addresses: its name, when
// that is an address, or what its senders list.
func mayUse(p Peer, from mail.Address) bool {
	if strings.Contains(p.User, "@") && matches(p.User, from) {
		return true
	}
	for _, s := range p.Senders {
		if matches(s, from) {
			return true
		}
	}
	return false
}

// matches reports whether pattern covers a: "*", "user@example.com",
// "@example.com", "*@example.com" or "example.com". Local parts are compared
// without regard to ASCII case: the list is the operator's, who owns them.
func matches(pattern string, a mail.Address) bool {
	if pattern == "*" {
		return true
	}
	at := strings.LastIndexByte(pattern, '@')
	domain := pattern[at+1:]
	if key := a.DomainKey(); domain != key {
		if folded, err := mail.ParseDomain(domain); err != nil || folded != key {
			return false
		}
	}
	if at <= 0 || pattern[:at] == "*" {
		return true
	}
	local := pattern[:at]
	if local[0] == '"' {
		own, err := mail.ParseAddress(pattern)
		if err != nil {
			return false
		}
		local = own.Local
	}
	return equalASCIIFold(local, a.Local)
}

// equalASCIIFold is strings.EqualFold for ASCII letters alone: U+212A is not "k".
func equalASCIIFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

func refuse(reason, enhanced, text string, why error) *mail.ReplyError {
	e := mail.Refuse(550, enhanced, reason, text)
	e.Err = why
	return e
}
