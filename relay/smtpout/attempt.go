package smtpout

import (
	"context"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"waybill/relay/dns"
	"waybill/relay/mail"
	"waybill/relay/mtasts"
	"waybill/relay/route"
)

// Bounds of one attempt, chosen by taste.
const (
	maxAddrsPerHost = 4                // so that one host with many dead addresses is not all that is tried
	maxSessions     = 2                // hosts that are asked MAIL before the rest is left for later: a greylisted message is not carried around
	reachLimit      = 15 * time.Minute // no further host after so long
)

// attempt is one try for some recipients of one message.
type attempt struct {
	c   *Connector
	ctx context.Context // an attempt lives no longer than the call that has it
	hop route.Hop
	m   *Message
	log *script // of this attempt
	dns *dns.Tally

	outcomes []mail.Outcome
	pending  []int // recipients without a final outcome
	body     body
	sts      mtasts.Policy // of the recipients' domain, where it is asked for
	stages   mail.Stages
	via      leg
	failed   *failure // the failure to report
	failedAt leg
	others   bool                // some failure was not "takes no mail at all"
	again    bool                // the next hop took some recipients, and may take more
	closed   bool                // the connector was closed before anything was tried
	peer     []*x509.Certificate // that the last handshake showed
	probe    bool                // no content is sent: see [Connector.Probe]

	// what m, log and the transaction under way are
	message Message
	script  script
	now     transaction
}

// attempts are those that are over: one is as large as a small message's record,
// and its memory serves the next.
var attempts = sync.Pool{New: func() any { return new(attempt) }}

// free gives the memory of a back. Nobody may use a after it; what its Result has
// stays.
func (a *attempt) free() {
	pending, sent, accepted := a.pending, a.now.sent, a.now.accepted
	*a = attempt{}
	if cap(pending) <= maxGroup && cap(sent) <= maxGroup && cap(accepted) <= maxGroup { // not those of a list of recipients
		a.pending, a.now.sent, a.now.accepted = pending[:0], sent[:0], accepted[:0]
	}
	attempts.Put(a)
}

// leg is the part of a Result that says where the attempt went.
type leg struct {
	session    string
	at         target
	local      netip.AddrPort
	reused     bool
	tlsVersion string
	tlsCipher  string
	tlsVerify  string
	tlsPolicy  string
	tlsFailure string
	dsn        bool
	deliverBy  bool
	converted  string
}

// use notes that s is what the attempt goes through.
func (a *attempt) use(s *session) {
	a.via = leg{
		session: s.id, at: s.at, local: s.local, reused: s.transactions > 0, tlsVersion: s.tlsVersion, tlsCipher: s.tlsCipher,
		tlsVerify: s.tlsVerify, tlsPolicy: string(s.sec.policy), tlsFailure: s.tlsFailure, dsn: s.ext.dsn, deliverBy: s.ext.deliverBy,
	}
}

// run is the story of an attempt: a session from the pool if there is one, then
// host after host until one decides.
func (a *attempt) run() {
	if err := a.ctx.Err(); err != nil {
		a.fail(cancelled("CONNECT", target{}, err))
		return
	}
	s, err := a.c.take(a.ctx, a.hop.Name)
	if err != nil {
		a.closed = errors.Is(err, errClosed)
		a.fail(cancelled("CONNECT", target{}, err))
		return
	}
	w := walk{a: a, start: time.Now()}
	if s != nil && w.reuse(s) {
		return
	}
	a.ctx, a.dns = dns.WithTally(a.ctx)
	if s = w.run(); s != nil {
		a.c.put(s)
		return
	}
	a.c.release(a.hop.Name)
}

// walk is the way of an attempt from host to host.
type walk struct {
	a        *attempt
	start    time.Time
	tries    int
	sessions int
	skip     target // has refused the recipients for now already
}

// run tries host after host, address after address, and returns the session
// that decided, or nil. Addresses that did not answer a moment ago come last,
// so that one dead host does not delay every message.
func (w *walk) run() *session {
	a := w.a
	var later []target
	for _, group := range a.plan() {
		targets, last := a.resolve(group)
		for _, at := range targets {
			if at.same(w.skip) {
				continue
			}
			if a.c.isDead(at.addr) {
				later = append(later, at)
			} else if s, done := w.try(at); done {
				return s
			}
		}
		if last {
			break
		}
	}
	for _, at := range later {
		if s, done := w.try(at); done {
			return s
		}
	}
	return nil
}

// try speaks to one address. Done means that no other is to be tried; the
// session is the one that decided, if one did.
func (w *walk) try(at target) (s *session, done bool) {
	a := w.a
	if w.tries == a.c.opts.Limits.MaxHosts || w.sessions == maxSessions || time.Since(w.start) > reachLimit {
		return nil, true
	}
	w.tries++
	a.via = leg{at: at}
	s, f := a.open(at, a.level())
	if f != nil && f.plain && !a.m.Envelope.RequireTLS {
		at.fallen = f.why
		s, f = a.open(at, TLSNone)
	}
	if f != nil {
		a.fail(f)
		return nil, f.hopeless
	}
	w.sessions++
	if f = a.speak(s); f == nil {
		return s, true
	}
	a.fail(f)
	s.a, s.r.log = nil, nil
	s.finish(causeOf(s, f), !f.lost)
	return nil, f.hopeless
}

func causeOf(s *session, f *failure) string {
	for _, c := range []string{s.cause, f.cause} {
		if c != "" {
			return c
		}
	}
	return "quit"
}

// reuse tries a session from the pool. A next hop may end an idle session at
// any time, so that what fails there before RCPT counts as nothing, and a fresh
// session is opened. It reports whether the attempt is over; if not, the attempt
// still owns the slot.
func (w *walk) reuse(s *session) bool {
	a := w.a
	if !s.quiet() {
		s.finish("closed", false)
		return false
	}
	if a.m.Envelope.RequireTLS && s.guarded(a.hop.Name) != nil { // a fresh one may be better
		s.finish("quit", true)
		return false
	}
	f := a.speak(s)
	if f == nil {
		a.c.put(s)
		return true
	}
	s.a, s.r.log = nil, nil
	s.finish(causeOf(s, f), !f.lost)
	switch {
	case f.hopeless:
		a.fail(f)
		a.c.release(a.hop.Name)
		return true
	case f.verb == "RCPT" && !f.lost:
		a.fail(f)
		w.skip, w.sessions = s.at, 1
		return false
	}
	a.log.note("session was no longer good")
	for _, i := range a.pending {
		a.outcomes[i] = mail.Outcome{}
	}
	return false
}

// speak runs transactions on s until nothing is left that it would take now.
func (a *attempt) speak(s *session) *failure {
	s.a, s.r.log = a, a.log
	a.log.speaksTo(s.id, s.at)
	if s.transactions > 0 {
		a.log.reused(s.transactions)
	}
	a.use(s)
	stop := context.AfterFunc(a.ctx, s.kill)
	var f *failure
	for {
		a.again = false
		f = a.transact(s)
		s.deadline = time.Time{}
		if f != nil || !a.again || s.cause != "" || s.spent() {
			break
		}
	}
	if !stop() {
		s.cause = "shutdown"
		if f != nil {
			f = cancelled(f.verb, s.at, a.ctx.Err())
		}
	}
	if f != nil && f.lost && s.cause == "" {
		s.cause = f.cause
	}
	return f
}

// fail keeps f if it tells more than what is known. A temporary failure always
// counts more than a permanent one of another host.
func (a *attempt) fail(f *failure) {
	a.others = a.others || !f.closes
	if !f.remote && !f.lost { // what ended a session is there already
		a.log.note(f.reply.Text)
	}
	if a.failed == nil || f.hopeless || a.failed.permanent && !f.permanent || a.failed.permanent == f.permanent && f.rank() >= a.failed.rank() {
		if f.at != (target{}) && !a.via.at.same(f.at) {
			a.via = leg{at: f.at}
		}
		a.failed, a.failedAt = f, a.via
		if f.policy != "" {
			a.failedAt.tlsPolicy, a.failedAt.tlsFailure = string(f.policy), f.why
		}
	}
}

// host is a next hop before its addresses are known.
type host struct {
	name   string
	port   uint16
	self   bool
	secure bool // its name is authentic: configured, or from a signed zone

	preference int // or cost
}

// plan lists the hosts to try, in groups of equal preference.
func (a *attempt) plan() [][]host {
	o := &a.c.opts
	var groups [][]host
	if len(o.SmartHosts) > 0 {
		for i, h := range o.SmartHosts {
			port := h.Port
			if port == 0 {
				port = 25
				if o.ImplicitTLS {
					port = 465
				}
			}
			if i == 0 || h.Cost != o.SmartHosts[i-1].Cost {
				groups = append(groups, nil)
			}
			groups[len(groups)-1] = append(groups[len(groups)-1], host{name: h.Host, port: port, secure: true, preference: h.Cost})
		}
		for _, g := range groups {
			rand.Shuffle(len(g), func(i, j int) { g[i], g[j] = g[j], g[i] }) //nolint:gosec // shares the load
		}
		return groups
	}
	start := time.Now()
	mx, err := o.Resolver.MX(a.ctx, a.hop.Name)
	a.stages.DNS += time.Since(start)
	if err != nil {
		if a.ctx.Err() != nil {
			a.fail(cancelled("", target{}, a.ctx.Err()))
		} else {
			a.fail(unresolved(a.hop.Name, err))
		}
		return nil
	}
	if o.TLS == TLSMTASTS && !a.unbound() {
		start = time.Now()
		a.sts, err = o.Policies.Policy(a.ctx, a.hop.Name)
		a.stages.DNS += time.Since(start)
		if err != nil {
			a.fail(cancelled("", target{}, err))
			return nil
		}
	}
	for i, m := range mx {
		if i == 0 || m.Preference != mx[i-1].Preference {
			groups = append(groups, nil)
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], host{name: m.Host, port: o.Port, self: a.isSelf(m), secure: m.Secure, preference: int(m.Preference)})
	}
	return groups
}

// isSelf reports whether an MX names us. A domain that is its own host and bears
// our name is no proof of a loop; its addresses are.
func (a *attempt) isSelf(m dns.MX) bool {
	return !m.Implicit && !a.c.opts.AllowLoopback && strings.EqualFold(m.Host, strings.TrimSuffix(a.c.opts.Hostname, "."))
}

// resolve finds the addresses of a group of hosts. Last means that one of them
// is us: hosts of that preference or worse would send the message back (RFC 5321
// section 5.1).
func (a *attempt) resolve(group []host) (targets []target, last bool) {
	start := time.Now()
	defer func() { a.stages.DNS += time.Since(start) }()
	smart := len(a.c.opts.SmartHosts) > 0
	for _, h := range group {
		if h.self {
			a.fail(loop(h.name))
			return nil, true
		}
		ips, f := a.addresses(h, smart)
		if f != nil {
			a.fail(f)
			if f.hopeless {
				return nil, true
			}
			continue
		}
		sec, f := a.published(h)
		if f != nil {
			a.fail(f)
			if f.hopeless {
				return nil, true
			}
			continue
		}
		provider := Provider(h.name)
		n := 0
		for _, ip := range ips {
			if !a.c.hasSource(ip) {
				continue
			}
			at := target{name: h.name, addr: netip.AddrPortFrom(ip, h.port), provider: provider, sec: sec}
			if a.probe && a.c.self[at.addr] { // also by hand: each probe would ask for the next
				a.fail(loop(at.String()))
				return nil, true
			}
			if !smart && !a.c.opts.AllowLoopback {
				if ip.IsLoopback() || ip.IsUnspecified() || a.c.self[at.addr] {
					a.fail(loop(at.String()))
					return nil, true
				}
				if ip.IsMulticast() || ip.IsLinkLocalUnicast() || ip.IsPrivate() && !a.c.opts.AllowPrivate {
					f := ours("CONNECT", 550, "5.4.4", mail.ClassBadDomain, "%s is not a public address", at)
					f.at = at
					a.fail(f)
					continue
				}
			}
			if n++; n <= maxAddrsPerHost {
				targets = append(targets, at)
			}
		}
		if n == 0 && !slices.ContainsFunc(ips, a.c.hasSource) {
			a.fail(ours("CONNECT", 451, "4.4.1", mail.ClassConnect, "%s: %v", h.name, errNoSource))
		}
	}
	return targets, false
}

func loop(where string) *failure {
	return ours("CONNECT", 554, "5.4.6", mail.ClassBadDomain, "mail for this domain loops back to us: %s", where)
}

func (a *attempt) addresses(h host, smart bool) ([]netip.Addr, *failure) {
	if ip, err := netip.ParseAddr(h.name); err == nil {
		return []netip.Addr{ip.Unmap()}, nil
	}
	ips, err := a.c.opts.Resolver.Addrs(a.ctx, h.name)
	if err == nil && len(ips) > 0 {
		return ips, nil
	}
	if a.ctx.Err() != nil {
		return nil, cancelled("", target{}, a.ctx.Err())
	}
	f := unresolved(h.name, err)
	f.class = mail.ClassDNS
	if f.permanent { // an MX, or a smart host, that does not exist
		f = ours("", 550, "5.4.4", mail.ClassDNS, "host %s has no address", h.name)
		if smart { // a mistake of ours, and not the sender's
			f = ours("", 451, "4.4.4", mail.ClassDNS, "smart host %s has no address", h.name)
		}
	}
	return nil, f
}

// result makes the outcome of every recipient that has none, and the Result.
func (a *attempt) result() Result {
	via := a.via
	for i := range a.outcomes {
		if a.outcomes[i].Disposition == 0 {
			if a.failed == nil {
				a.failed, a.failedAt = ours("CONNECT", 451, "4.4.1", mail.ClassConnect, "no host of %s could be tried", a.hop.Name), a.via
			}
			if a.failed.closes && !a.others { // RFC 7504 section 3: then it is for good
				a.failed.permanent = true
			}
			a.outcomes[i] = a.failed.outcome(a.m.Envelope.Recipients[i].Address)
			via = a.failedAt
		}
	}
	r := Result{
		Outcomes: a.outcomes, Stages: a.stages, Session: via.session, RemoteName: via.at.name, Remote: via.at.addr, Local: via.local,
		Provider: via.at.provider, Reused: via.reused, TLSVersion: via.tlsVersion, TLSCipher: via.tlsCipher, TLSVerify: via.tlsVerify, TLSPolicy: via.tlsPolicy, TLSFailure: via.tlsFailure, DSN: via.dsn, DeliverBy: via.deliverBy, Converted: via.converted, Closed: a.closed,
	}
	if a.dns != nil {
		r.Questions, r.Cached = a.dns.Asked(), a.dns.Cached()
	}
	if r.Provider == "" {
		r.Provider = Provider(a.hop.Name)
	}
	if r.TLSVerify == "" {
		r.TLSVerify = "none"
	}
	a.keep(&r)
	a.log.end()
	return r
}

// decide gives recipient i its outcome, which is final for this attempt.
func (a *attempt) decide(i int, f *failure) {
	a.outcomes[i] = f.outcome(a.m.Envelope.Recipients[i].Address)
	a.pending = slices.DeleteFunc(a.pending, func(p int) bool { return p == i })
}

// decideRest gives an outcome to the pending recipients that have none.
func (a *attempt) decideRest(f *failure) {
	for _, i := range slices.Clone(a.pending) {
		if a.outcomes[i].Disposition == 0 {
			a.decide(i, f)
		}
	}
}

// decideAll gives all recipients of idx the same outcome.
func (a *attempt) decideAll(idx []int, f *failure) {
	for _, i := range slices.Clone(idx) {
		a.decide(i, f)
	}
}
