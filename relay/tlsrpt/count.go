package tlsrpt

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"waybill/relay/event"
)

// Policy types (RFC 8460 section 4.2).
const (
	typeTLSA = "tlsa"
	typeSTS  = "sts"
	typeNone = "no-policy-found"
)

// resultTypes are the words of RFC 8460 section 4.3 for those of
// [event.TLSFailures].
var resultTypes = map[string]string{
	"not_offered": "starttls-not-supported",
	"refused":     "starttls-not-supported",

	"name_mismatch":       "certificate-host-mismatch",
	"certificate_expired": "certificate-expired",
	"unknown_authority":   "certificate-not-trusted",
	"bad_certificate":     "certificate-not-trusted",
	"no_certificate":      "certificate-not-trusted",

	"no_shared_cipher": "validation-failure",
	"version":          "validation-failure",
	"old_protocol":     "validation-failure",
	"not_tls":          "validation-failure",
	"closed":           "validation-failure",
	"timeout":          "validation-failure",
	"peer_alert":       "validation-failure",
	"injected":         "validation-failure",
	"other":            "validation-failure",

	"tlsa_mismatch": "tlsa-invalid",
	"dnssec_failed": "dnssec-invalid",

	"mx_mismatch":        "validation-failure",
	"policy_unavailable": "sts-policy-fetch-error",
	"policy_malformed":   "sts-policy-invalid",
	"policy_certificate": "sts-webpki-invalid",
}

// tally is what happened under one policy of one domain on one day.
type tally struct {
	Domain     string    `json:"domain"`
	Type       string    `json:"type"`
	Base       string    `json:"base,omitempty"` // tlsa: the host whose records they are
	Text       string    `json:"text,omitempty"` // what is published, parts apart by "; "
	Successful int       `json:"successful"`
	Failures   []failure `json:"failures,omitempty"`
}

// failure is one kind of failure of a tally.
type failure struct {
	Reason string `json:"reason"` // a word of event.TLSFailures
	From   string `json:"from,omitempty"`
	MX     string `json:"mx,omitempty"`
	To     string `json:"to,omitempty"`
	Count  int    `json:"count"`
}

func (f *failure) same(o *failure) bool {
	return f.Reason == o.Reason && f.From == o.From && f.MX == o.MX && f.To == o.To
}

// key is what tells tallies of one day apart.
type key struct{ domain, kind, base, text string }

func (t *tally) key() key { return key{t.Domain, t.Type, t.Base, t.Text} }

// fail counts a failure. When there are many kinds, the hosts of further ones are
// left out.
func (t *tally) fail(f failure) {
	for range 2 {
		for i := range t.Failures {
			if t.Failures[i].same(&f) {
				t.Failures[i].Count += f.Count
				return
			}
		}
		if len(t.Failures) < maxFailures {
			break
		}
		f.From, f.MX, f.To = "", "", ""
	}
	t.Failures = append(t.Failures, f)
}

// failed is how many sessions failed.
func (t *tally) failed() (n int) {
	for i := range t.Failures {
		n += t.Failures[i].Count
	}
	return n
}

// Write counts the fact of rec. It implements [event.Sink]. Two facts tell all
// that a report is made of: the end of a session, and what failed before there
// was one.
func (r *Reporter) Write(rec *event.Record) {
	if ev, ok := rec.Event.(event.SessionClosed); ok {
		r.session(rec.Time, &ev)
	}
	if ev, ok := rec.Event.(event.TLSPolicyFailed); ok {
		r.before(rec.Time, &ev)
	}
}

func (r *Reporter) session(at time.Time, ev *event.SessionClosed) {
	if ev.Domain == "" || ev.Version == "" && ev.Failure == "" { // the session ended before TLS was tried
		return
	}
	t := tally{Domain: ev.Domain, Type: policyType(ev.Policy), Base: ev.Base, Text: ev.Text}
	if ev.Failure == "" {
		t.Successful = 1
	} else {
		t.Failures = []failure{{Reason: ev.Failure, From: ip(ev.LocalIP), MX: ev.RemoteName, To: ip(ev.RemoteIP), Count: 1}}
	}
	r.add(at, t)
}

// before counts what failed before there was a session; what failed in one is
// told at its end.
func (r *Reporter) before(at time.Time, ev *event.TLSPolicyFailed) {
	never := ev.RemoteName == "" || ev.Enforced // comes to be
	if ev.Domain == "" || ev.RemoteIP.IsValid() || !never || policyType(ev.Policy) == typeNone {
		return
	}
	t := tally{Domain: ev.Domain, Type: policyType(ev.Policy), Text: ev.Text, Failures: []failure{{Reason: ev.Reason, MX: ev.RemoteName, Count: 1}}}
	if t.Type == typeTLSA {
		t.Base = ev.RemoteName
	}
	r.add(at, t)
}

func policyType(level string) string {
	switch level {
	case "dane":
		return typeTLSA
	case "mta_sts":
		return typeSTS
	}
	return typeNone
}

func ip(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// add counts t on the day of at, or today when that day has been reported on.
func (r *Reporter) add(at time.Time, t tally) {
	if !validDomain(t.Domain) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.days[dateOf(at)]
	if d == nil || d.Closed {
		today := dateOf(time.Now())
		if d = r.days[today]; d == nil {
			d = newDay(today)
			r.days[today] = d
		}
	}
	have := d.tallies[t.key()]
	if have == nil {
		if len(d.tallies) >= maxTallies {
			return // a report less, and no more memory
		}
		have = &tally{Domain: t.Domain, Type: t.Type, Base: t.Base, Text: t.Text}
		d.tallies[t.key()] = have
	}
	have.Successful += t.Successful
	for _, f := range t.Failures {
		have.fail(f)
	}
	d.dirty = true
}

// dateOf is the UTC day of t.
func dateOf(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// about lists what a report to domain is made of: the domain's own, and what
// happened with its hosts under their TLSA records, for whomever (RFC 8460 section
// 1.1 calls that host the policy domain). The latter are put together.
func (d *day) about(domain string) []*tally {
	byKey := map[key]*tally{}
	var list []*tally
	for _, t := range d.tallies {
		if t.Domain != domain && (t.Type != typeTLSA || t.Base != domain) {
			continue
		}
		k := t.key()
		k.domain = ""
		sum := byKey[k]
		if sum == nil {
			sum = &tally{Domain: domain, Type: t.Type, Base: t.Base, Text: t.Text}
			byKey[k] = sum
			list = append(list, sum)
		}
		sum.Successful += t.Successful
		for _, f := range t.Failures {
			sum.fail(f)
		}
	}
	slices.SortFunc(list, func(a, b *tally) int {
		return strings.Compare(a.Type+" "+a.Base+" "+a.Text, b.Type+" "+b.Base+" "+b.Text)
	})
	return list
}

// domains lists who may want a report about d.
func (d *day) domains() []string {
	seen := map[string]bool{}
	for _, t := range d.tallies {
		seen[t.Domain] = true
		if t.Type == typeTLSA && validDomain(t.Base) {
			seen[t.Base] = true
		}
	}
	list := make([]string, 0, len(seen))
	for name := range seen {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}
