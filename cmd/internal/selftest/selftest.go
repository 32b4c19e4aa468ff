// Package selftest tries the tricks by which strangers get a mail server to
// relay for them, or to tell what it should not, against running listeners.
//
// It exists because a configuration that reads well proves nothing: what counts
// is what the listener answers. It promises that no message is left behind: every
// session ends before DATA, but those that look for smuggling, whose content goes
// through so many hops that any server refuses it; that each trick has a session
// of its own; and that credentials go over verified TLS alone.
//
// To add a trick, add a row to [relayTricks], or a function to [sessionTricks].
package selftest

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Verdict is what a trick came to.
type Verdict string

// The verdicts, from the best to the worst.
const (
	OK      Verdict = "ok"      // refused, or harmless
	Skipped Verdict = "skipped" // not tried; Why says why
	Unclear Verdict = "unclear" // refused for now, or no answer
	Warning Verdict = "warning" // allowed, which may be meant
	Leak    Verdict = "leak"    // tells, or does, what it should not
	Open    Verdict = "open"    // relays for strangers
)

// Bad reports whether a verdict is a fault of the server.
func (v Verdict) Bad() bool { return v == Open || v == Leak }

// The points of view.
const (
	Stranger = "stranger"
	User     = "user"
)

// Target is a listener.
type Target struct {
	Name     string // of its connector; may be empty
	Addr     string // host:port
	Implicit bool   // TLS from the first octet
	Clear    bool   // passwords without TLS are meant
	// Trusted says why a client with an address may relay there without a login,
	// or nothing. May be nil.
	Trusted func(client netip.Addr) string
	// Proxied reports whether a client with an address has to say for whom it
	// speaks, by the PROXY protocol: it then speaks for a stranger. May be nil.
	Proxied func(client netip.Addr) bool
}

// stranger is whom we speak for as a proxy: nobody has an address of RFC 5737.
var stranger = netip.MustParseAddr("198.51.100.7")

// Options say what to try.
type Options struct {
	Targets  []Target
	Domain   string // one that the server takes mail for; empty: the name in its greeting
	Foreign  string // an address that it takes no mail for
	User     string // tries what a user may not, too
	Password string
	TLS      *tls.Config   // for logins; nil verifies by the system's authorities
	Timeout  time.Duration // of one step; zero means 30s
	Quiet    time.Duration // how long no answer is none; zero means 1s
	Parallel int           // sessions at once; zero means 8

	here func(net.Conn) bool // whether a server is on this machine; nil means [here]
}

// Result is one trick at one target.
type Result struct {
	Connector string   `json:"connector,omitempty"`
	Target    string   `json:"target"`
	View      string   `json:"view"` // stranger or user
	Trick     string   `json:"trick"`
	Sent      []string `json:"sent"`  // the commands that make the trick
	Reply     string   `json:"reply"` // to the last of them
	Verdict   Verdict  `json:"verdict"`
	Why       string   `json:"why,omitempty"`
}

// trial is one trick at one target, under way.
type trial struct {
	o      *Options
	target Target
	view   string
	domain string
	ip     string // of the target, as an address literal
	result *Result

	loginLater bool // the trick is in the login
}

// trick is something to try.
type trick struct {
	name  string
	relay bool // says nothing where the client may relay
	try   func(ctx context.Context, t *trial) error
}

// unreachableError is a target that cannot be talked to.
type unreachableError struct{ err error }

func (e *unreachableError) Error() string { return e.err.Error() }
func (e *unreachableError) Unwrap() error { return e.err }

// Run tries everything at all targets. The results are in the order of targets
// and tricks. An error says which targets cannot be talked to; the results are
// those of the others.
func Run(ctx context.Context, o Options) ([]Result, error) {
	o.Timeout, o.Quiet, o.Parallel = cmp.Or(o.Timeout, 30*time.Second), cmp.Or(o.Quiet, time.Second), cmp.Or(o.Parallel, 8)
	if o.here == nil {
		o.here = here
	}
	if o.Foreign == "" || strings.Count(o.Foreign, "@") != 1 {
		return nil, fmt.Errorf("%q is not an address", o.Foreign)
	}
	var results []*Result
	var silent []error
	work, within := errgroup.WithContext(ctx)
	work.SetLimit(o.Parallel)
	for _, target := range o.Targets {
		seen, err := look(ctx, &o, target)
		if err != nil {
			silent = append(silent, fmt.Errorf("%s: %w", target.Addr, err))
			continue
		}
		host, _, _ := net.SplitHostPort(target.Addr)
		add := func(view string, k trick) {
			r := &Result{Connector: target.Name, Target: target.Addr, View: view, Trick: k.name, Verdict: OK}
			results = append(results, r)
			switch {
			case seen.refused != "":
				r.Verdict, r.Why = Skipped, seen.refused
				return
			case view == Stranger && k.relay && seen.trusted != "":
				r.Verdict, r.Why = Skipped, seen.trusted
				return
			}
			t := &trial{o: &o, target: target, view: view, domain: seen.domain, ip: literal(host), result: r}
			work.Go(func() error { return t.run(within, k) })
		}
		for _, k := range slices.Concat(relayTricks(), sessionTricks()) {
			add(Stranger, k)
		}
		if o.User != "" {
			for _, k := range userTricks() {
				add(User, k)
			}
		}
	}
	err := work.Wait()
	list := make([]Result, len(results))
	for i, r := range results {
		list[i] = *r
	}
	return list, errors.Join(append(silent, err)...)
}

// glance is what a target looks like from here.
type glance struct {
	domain  string // that it takes mail for
	trusted string // why we may relay there, or empty
	refused string // why it does not talk to us at all, or empty
}

// look finds out where a target is, and who we are to it.
func look(ctx context.Context, o *Options, target Target) (glance, error) {
	c, err := dial(ctx, o, target, false)
	if err != nil {
		return glance{}, &unreachableError{err}
	}
	defer c.close()
	greeting, err := c.read()
	if err != nil {
		return glance{}, &unreachableError{fmt.Errorf("greeting: %w", err)}
	}
	g := glance{domain: o.Domain}
	if greeting.code >= 500 {
		g.refused = "the server does not talk to " + c.client.String() + ": " + greeting.String()
	}
	if g.domain == "" {
		g.domain, _, _ = strings.Cut(strings.TrimSpace(greeting.text), " ")
	}
	if c.client.IsValid() && target.Trusted != nil {
		g.trusted = target.Trusted(c.client)
	}
	return g, nil
}

// run tries k, once more if it was told to come again.
func (t *trial) run(ctx context.Context, k trick) error {
	for again := range 2 {
		t.result.Verdict, t.result.Why, t.result.Sent, t.result.Reply = OK, "", nil, ""
		err := k.try(ctx, t)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil { // the server hung up, which is a way to refuse, unless it did so at once
			t.result.Verdict, t.result.Why = OK, "the server hung up: "+err.Error()
			switch _, ok := errors.AsType[*unreachableError](err); {
			case wantsCertificate(err):
				t.result.Why = "it wants a client certificate, which strangers have not"
			case ok:
				t.result.Verdict, t.result.Why = Unclear, err.Error()
			}
		}
		if t.result.Verdict != Unclear || again > 0 {
			return nil
		}
		select {
		case <-time.After(t.o.Quiet):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// wantsCertificate reports whether err is the alert certificate_required (RFC
// 8446 section 6.2), to which crypto/tls gives no type of its own.
func wantsCertificate(err error) bool {
	return strings.HasSuffix(err.Error(), "tls: certificate required")
}

// literal is an address as a literal, or the one of this machine.
func literal(host string) string {
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return "[127.0.0.1]"
	case ip.Unmap().Is4():
		return "[" + ip.Unmap().String() + "]"
	}
	return "[IPv6:" + ip.String() + "]"
}

// Worst is the worst of verdicts.
func Worst(results []Result) Verdict {
	order := []Verdict{OK, Skipped, Unclear, Warning, Leak, Open}
	worst := 0
	for _, r := range results {
		worst = max(worst, slices.Index(order, r.Verdict))
	}
	return order[worst]
}

// MarshalJSON writes an empty list of commands as one.
func (r Result) MarshalJSON() ([]byte, error) {
	type plain Result
	if r.Sent == nil {
		r.Sent = []string{}
	}
	return json.Marshal(plain(r))
}

// Unreachable reports whether err says that a target cannot be talked to.
func Unreachable(err error) bool {
	_, ok := errors.AsType[*unreachableError](err)
	return ok
}
