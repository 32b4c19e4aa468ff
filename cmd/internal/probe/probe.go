// Package probe walks a delivery without sending: the look-ups, connections, TLS
// and logins that a message for a domain would have, each looked at.
//
// It exists because "the mail does not arrive" has a dozen causes, most of them
// not ours, and an operator should see in one answer which it is and whom to tell.
// It promises that the walk is the one that messages go (package smtpout does it,
// with the connector of the configuration); that nothing is sent, not even MAIL;
// that it is bounded in time; and that every failure has a sentence about what it
// is, who can mend it, and how.
//
// To explain another failure, add it to the tables in explain.go.
package probe

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/mtasts"
	"waybill/relay/route"
	"waybill/relay/smtpout"
	"waybill/relay/tlsrpt"
)

// expiresSoon is from when on the end of a certificate is worth a word; by taste.
const expiresSoon = 14 * 24 * time.Hour

// Inspector walks; [smtpout.Connector] is the real one.
type Inspector interface {
	Inspect(ctx context.Context, hop route.Hop, timeout time.Duration) smtpout.Inspection
}

// Resolver is what is asked beside that.
type Resolver interface {
	TXT(ctx context.Context, name string) ([]string, error)
	Validates() bool
}

// Options say what to probe.
type Options struct {
	Connector Inspector
	Resolver  Resolver
	Facts     *Facts // that the connector and its policies state
	Name      string // of the connector; empty without a configuration
	Route     string // mx, smart_hosts
	Level     string // the TLS level
	Hop       route.Hop
	Target    string        // as the operator named it
	Timeout   time.Duration // of one session
	Now       time.Time     // zero: now
}

// Report is what a probe found.
type Report struct {
	Target    string    `json:"target"`
	Connector string    `json:"connector,omitempty"`
	Route     string    `json:"route"`
	Level     string    `json:"tls_level"`
	Verdict   string    `json:"verdict"` // ok, warning, fail
	Outcome   string    `json:"outcome"` // what would become of a message: relayed, deferred, bounced
	First     *Finding  `json:"first_failure,omitempty"`
	Findings  []Finding `json:"findings"` // all, the worst first
	STS       *STS      `json:"mta_sts,omitempty"`
	Reports   []string  `json:"tls_reports,omitempty"` // where the domain wants reports on TLS
	Hosts     []Host    `json:"hosts"`
	Took      float64   `json:"took"` // seconds
}

// STS is the MTA-STS policy of the domain.
type STS struct {
	Mode   string   `json:"mode"`
	MX     []string `json:"mx"`
	MaxAge int64    `json:"max_age"` // seconds
}

// Host is one host that takes the mail.
type Host struct {
	Name       string    `json:"name"`
	Preference int       `json:"preference"`
	Secure     bool      `json:"dnssec"`
	Policy     string    `json:"tls_policy,omitempty"`
	Text       string    `json:"policy_text,omitempty"`
	Verdict    string    `json:"verdict"`
	Error      string    `json:"error,omitempty"`
	Addresses  []Address `json:"addresses"`
}

// Address is one address of a host.
type Address struct {
	Addr        string             `json:"address"`
	Local       string             `json:"local_address,omitempty"`
	Verdict     string             `json:"verdict"`
	Stage       string             `json:"failed_at,omitempty"` // connect, banner, ehlo, starttls, tls, auth
	Error       string             `json:"error,omitempty"`
	Banner      string             `json:"banner,omitempty"`
	Extensions  []string           `json:"extensions,omitempty"`
	TLSVersion  string             `json:"tls_version,omitempty"`
	TLSCipher   string             `json:"tls_cipher,omitempty"`
	TLSVerify   string             `json:"tls_verify,omitempty"`
	TLSFailure  string             `json:"tls_failure,omitempty"`
	Certificate *Certificate       `json:"certificate,omitempty"`
	User        string             `json:"auth_user,omitempty"`
	Stages      map[string]float64 `json:"stages"` // seconds
	Transcript  []event.Line       `json:"transcript,omitempty"`
}

// Certificate is what a host shows.
type Certificate struct {
	Subject  string    `json:"subject"`
	Names    []string  `json:"names"`
	Issuer   string    `json:"issuer"`
	NotAfter time.Time `json:"not_after"`
	Chain    int       `json:"chain"` // certificates that were shown
}

// Words of verdicts.
const (
	OK      = "ok"
	Warning = "warning"
	Fail    = "fail"
)

// Facts keeps what is stated beside the result of a walk: that a policy could not
// be fetched. It is an [event.Sink].
type Facts struct {
	mu   sync.Mutex
	list []event.TLSPolicyFailed
}

// Write keeps the fact of r, if it is one of those.
func (f *Facts) Write(r *event.Record) {
	if ev, ok := r.Event.(event.TLSPolicyFailed); ok && ev.Connector == "" {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.list = append(f.list, ev)
	}
}

func (f *Facts) all() []event.TLSPolicyFailed {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.list)
}

// Run probes.
func Run(ctx context.Context, o Options) Report {
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	r := Report{Target: o.Target, Connector: o.Name, Route: o.Route, Level: o.Level, Findings: []Finding{}, Hosts: []Host{}}
	start := time.Now()
	in := o.Connector.Inspect(ctx, o.Hop, o.Timeout)
	r.policy(in.Policy)
	if o.Route == "mx" {
		texts, err := o.Resolver.TXT(ctx, "_smtp._tls."+o.Hop.Name)
		if err == nil {
			for _, d := range tlsrpt.ParseRecord(texts) {
				r.Reports = append(r.Reports, d.String())
			}
		}
	}
	for _, ev := range o.Facts.all() {
		r.find(explainPolicy(ev))
	}
	if in.Failed != nil {
		r.find(explainDomain(o.Hop.Name, in.Failed))
	}
	for i := range in.Hosts {
		r.host(&in.Hosts[i], &o)
	}
	if (o.Level == "dane" || o.Level == "mta_sts") && !o.Resolver.Validates() {
		r.find(Finding{
			Level: Warning, What: "no name server is one that DANE can rely on: TLSA records are not looked at", Who: Us,
			Fix: "run a validating resolver on this machine, and name it in dns.servers; or set dns.trust_ad",
		})
	}
	r.conclude(in)
	r.Took = time.Since(start).Seconds()
	return r
}

func (r *Report) find(f Finding) {
	if !slices.Contains(r.Findings, f) {
		r.Findings = append(r.Findings, f)
	}
}

func (r *Report) policy(p mtasts.Policy) {
	if p.Mode == "" || p.Mode == mtasts.None && len(p.MX) == 0 {
		return
	}
	r.STS = &STS{Mode: string(p.Mode), MX: p.MX, MaxAge: int64(p.MaxAge / time.Second)}
}

// host describes one host, and finds what is wrong with it.
func (r *Report) host(in *smtpout.InspectedHost, o *Options) {
	h := Host{
		Name: in.Name, Preference: in.Preference, Secure: in.Secure, Policy: in.Policy.Policy, Text: in.Policy.Text, Verdict: OK, Addresses: []Address{},
	}
	if in.Failed != nil {
		f := explainHost(in, o)
		h.Error = f.What
		if len(in.Sessions) > 0 { // of some address, or of a policy that is not enforced
			f.Level = Warning
		}
		h.Verdict = f.Level
		r.find(f)
	}
	good := 0
	for i := range in.Sessions {
		a := r.address(in, &in.Sessions[i], o)
		if a.Verdict != Fail {
			good++
		}
		h.Verdict = worse(h.Verdict, cmp.Or(map[string]string{Fail: Warning}[a.Verdict], a.Verdict))
		h.Addresses = append(h.Addresses, a)
	}
	if good == 0 {
		h.Verdict = Fail
	}
	r.Hosts = append(r.Hosts, h)
}

func worse(a, b string) string {
	order := []string{OK, Warning, Fail}
	return order[max(slices.Index(order, a), slices.Index(order, b))]
}

func (r *Report) address(h *smtpout.InspectedHost, s *smtpout.InspectedSession, o *Options) Address {
	a := Address{
		Addr: s.Addr.String(), Verdict: OK, Extensions: s.Extensions, TLSVersion: s.TLSVersion, TLSCipher: s.TLSCipher,
		TLSVerify: s.TLSVerify, TLSFailure: s.TLSFailure, User: s.User, Transcript: s.Transcript, Stages: stages(s.Stages), Banner: banner(s.Transcript),
	}
	if s.Local.IsValid() {
		a.Local = s.Local.Addr().String()
	}
	where := fmt.Sprintf("%s [%s]", h.Name, s.Addr)
	warn := func(what, who, fix string) {
		a.Verdict = Warning
		r.find(Finding{Level: Warning, Where: where, What: what, Who: who, Fix: fix})
	}
	if len(s.Peer) > 0 {
		a.Certificate = describe(s.Peer)
		if left := s.Peer[0].NotAfter.Sub(o.Now); s.Failed == nil && left > 0 && left < expiresSoon {
			warn(fmt.Sprintf("its certificate ends on %s", s.Peer[0].NotAfter.UTC().Format(time.DateOnly)), TheirCertificate, "renew it")
		}
	}
	if s.Failed != nil {
		f := explainSession(h, s, o)
		f.Where = where
		a.Verdict, a.Stage, a.Error = Fail, f.Stage, f.What
		r.find(f)
		return a
	}
	if s.TLSFailure != "" {
		f := explainTLS(h, s, o)
		f.Level, f.Where = Warning, where
		a.Verdict = Warning
		r.find(f)
	}
	return a
}

func banner(lines []event.Line) string {
	for _, l := range lines {
		if l.From == "server" {
			return l.Text
		}
	}
	return ""
}

func stages(s mail.Stages) map[string]float64 {
	m := map[string]float64{}
	for name, d := range map[string]time.Duration{"connect": s.Connect, "banner": s.Banner, "tls": s.TLS, "auth": s.Auth} {
		if d > 0 {
			m[name] = d.Seconds()
		}
	}
	return m
}

func describe(peer []*x509.Certificate) *Certificate {
	leaf := peer[0]
	c := &Certificate{Subject: leaf.Subject.CommonName, Names: leaf.DNSNames, Issuer: leaf.Issuer.CommonName, NotAfter: leaf.NotAfter.UTC(), Chain: len(peer)}
	if c.Issuer == "" && len(leaf.Issuer.Organization) > 0 {
		c.Issuer = leaf.Issuer.Organization[0]
	}
	for _, ip := range leaf.IPAddresses {
		c.Names = append(c.Names, ip.String())
	}
	return c
}

// conclude says what would become of a message. One good address is enough: hosts
// are tried one after the other.
func (r *Report) conclude(in smtpout.Inspection) {
	r.Verdict, r.Outcome = Fail, "deferred"
	bounces, others, silent, sessions := in.Failed != nil && in.Failed.Permanent, false, 0, 0
	for _, h := range in.Hosts {
		if h.Failed != nil && len(h.Sessions) == 0 {
			bounces, others = bounces || h.Failed.Permanent, others || !h.Failed.Permanent
		}
		for _, s := range h.Sessions {
			sessions++
			switch {
			case s.Failed == nil:
				r.Verdict, r.Outcome = OK, "relayed"
				continue
			case s.Failed.Class == mail.ClassTimeout && !s.Local.IsValid():
				silent++
			}
			bounces, others = bounces || s.Failed.Permanent, others || !s.Failed.Permanent
		}
	}
	if r.Verdict == Fail && bounces && !others {
		r.Outcome = "bounced"
	}
	if silent > 0 && silent == sessions {
		r.find(Finding{
			Level: Fail, Stage: "connect", What: "no address answers at all", Who: Network,
			Fix: "try another domain: when none answers, your provider or firewall keeps you from port 25; ask for it to be opened, or send through a smart host",
		})
	}
	first := slices.IndexFunc(r.Findings, func(f Finding) bool { return f.Level == Fail })
	if r.Verdict == Fail && first < 0 { // what was only worth a word is all that there is
		first = 0
	}
	if first >= 0 && first < len(r.Findings) {
		f := r.Findings[first]
		r.First = &f
	}
	if r.Verdict == OK && len(r.Findings) > 0 {
		r.Verdict = Warning
		for i := range r.Findings { // nothing stops a message
			r.Findings[i].Level = Warning
		}
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int { return cmp.Compare(weight(a.Level), weight(b.Level)) })
}

func weight(level string) int { return slices.Index([]string{Fail, Warning, OK}, level) }

// Summary is the report in one sentence.
func (r *Report) Summary() string {
	switch {
	case r.Outcome == "relayed" && r.Verdict == OK:
		return fmt.Sprintf("a message for %s would be handed over", r.Target)
	case r.Outcome == "relayed":
		return fmt.Sprintf("a message for %s would be handed over, but something is not as it should be", r.Target)
	case r.Outcome == "bounced":
		return fmt.Sprintf("a message for %s would bounce", r.Target)
	}
	return fmt.Sprintf("a message for %s would wait, and be tried again", r.Target)
}

// safe is what may be repeated of what a stranger says.
func safe(s string) string {
	const most = 200
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
