package smtpout

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"waybill/relay/mail"
	"waybill/relay/route"
	"waybill/relay/transcript"
)

// Connector hands messages to the next hops of one send connector. It is safe
// for use by many goroutines.
type Connector struct {
	opts Options
	tls  *tls.Config
	self map[netip.AddrPort]bool
	keep *transcript.Chooser

	mu      sync.Mutex
	idle    map[string][]*session // by hop; the last was used last
	perHop  map[string]int        // slots
	total   int                   // slots
	waiting int                   // for a slot
	changed chan struct{}         // closed when waiting may end
	closed  bool
	dead    map[netip.AddrPort]time.Time // addresses that did not answer, and until when they are tried last
	wg      sync.WaitGroup               // sessions that say good-bye
}

var _ Attempter = (*Connector)(nil)

// New makes a Connector.
func New(opts Options) (*Connector, error) {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if opts.Hostname == "" || !safe(opts.Hostname) || strings.ContainsAny(opts.Hostname, " \t") {
		bad("hostname %q cannot be said in EHLO", opts.Hostname)
	}
	opts.TLS = cmp.Or(opts.TLS, TLSOpportunistic)
	if !slices.Contains([]TLSLevel{TLSNone, TLSOpportunistic, TLSEncrypt, TLSVerify, TLSVerifyName, TLSDANE, TLSMTASTS}, opts.TLS) {
		bad("unknown TLS level %q", opts.TLS)
	}
	if opts.TLS == TLSDANE && opts.DANE == nil {
		bad("the TLS level dane needs a resolver")
	}
	if opts.TLS == TLSMTASTS && (opts.Policies == nil || len(opts.SmartHosts) > 0) {
		bad("the TLS level mta_sts needs policies, and mail exchangers")
	}
	switch {
	case opts.Auth.Mechanism == "":
	case opts.Auth.Login != nil || slices.Contains(Mechanisms(), opts.Auth.Mechanism):
		if opts.Auth.Password == nil && opts.Auth.Login == nil {
			bad("auth has no password")
		}
		if len(opts.SmartHosts) == 0 {
			bad("credentials go to smart hosts only")
		}
		if opts.TLS == TLSNone && !opts.ImplicitTLS && !opts.Auth.Insecure {
			bad("credentials do not go without TLS")
		}
		if strings.ContainsRune(opts.Auth.Username, 0) {
			bad("the user name holds a NUL")
		}
	default:
		bad("unknown auth mechanism %q", opts.Auth.Mechanism)
	}
	opts.EightBit, opts.Unconvertible = cmp.Or(opts.EightBit, EightBitConvert), cmp.Or(opts.Unconvertible, EightBitBounce)
	if !slices.Contains([]EightBit{EightBitConvert, EightBitBounce, EightBitSend}, opts.EightBit) || !slices.Contains([]EightBit{EightBitBounce, EightBitSend}, opts.Unconvertible) {
		bad("what becomes of 8-bit content is neither convert, bounce nor send")
	}
	keep, err := transcript.NewChooser(opts.Transcript)
	if err != nil {
		errs = append(errs, err)
	}
	needsDNS := len(opts.SmartHosts) == 0
	for _, h := range opts.SmartHosts {
		if _, err := netip.ParseAddr(h.Host); err != nil {
			needsDNS = true
		}
		if !safe(h.Host) || h.Host == "" {
			bad("smart host %q is not a name", h.Host)
		}
	}
	if needsDNS && opts.Resolver == nil {
		bad("no resolver")
	}
	l := &opts.Limits
	l.Connections = cmp.Or(l.Connections, 1000)
	l.ConnectionsPerDestination = cmp.Or(l.ConnectionsPerDestination, 40)
	l.MessagesPerConnection = cmp.Or(l.MessagesPerConnection, 100)
	l.IdleTimeout = cmp.Or(l.IdleTimeout, 5*time.Second)
	l.MaxHosts = cmp.Or(l.MaxHosts, 10)
	if l.Connections < 0 || l.ConnectionsPerDestination < 0 || l.MessagesPerConnection < 0 || l.IdleTimeout < 0 || l.MaxHosts < 0 {
		bad("negative limit")
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("send connector %s: %w", opts.Name, err)
	}
	opts.Timeouts = opts.Timeouts.withDefaults()
	opts.Port = cmp.Or(opts.Port, 25)
	opts.SmartHosts = slices.Clone(opts.SmartHosts)
	slices.SortStableFunc(opts.SmartHosts, func(a, b route.SmartHost) int { return cmp.Compare(a.Cost, b.Cost) })

	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if opts.TLSConfig != nil {
		cfg = opts.TLSConfig.Clone()
	}
	if cfg.ClientSessionCache == nil {
		cfg.ClientSessionCache = tls.NewLRUClientSessionCache(256)
	}
	return &Connector{
		opts: opts, tls: cfg, self: ownAddresses(opts.Self), keep: keep,
		idle: map[string][]*session{}, perHop: map[string]int{}, changed: make(chan struct{}),
		dead: map[netip.AddrPort]time.Time{},
	}, nil
}

// ownAddresses replaces unspecified addresses by all of this machine's.
func ownAddresses(listen []netip.AddrPort) map[netip.AddrPort]bool {
	self := map[netip.AddrPort]bool{}
	for _, l := range listen {
		if !l.Addr().IsUnspecified() {
			self[netip.AddrPortFrom(l.Addr().Unmap(), l.Port())] = true
			continue
		}
		addrs, _ := net.InterfaceAddrs() // without them we know less, and relay no worse than others
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				self[netip.AddrPortFrom(p.Addr().Unmap(), l.Port())] = true
			}
		}
	}
	return self
}

// Close ends the idle sessions and waits for their ends. Sessions in use end
// with their attempts; attempts that come later are deferred.
func (c *Connector) Close() error {
	c.mu.Lock()
	c.closed = true
	for _, list := range c.idle {
		for _, s := range list {
			c.wg.Go(func() { c.end(s, "shutdown") })
		}
	}
	clear(c.idle)
	c.signal()
	c.mu.Unlock()
	c.wg.Wait()
	return nil
}

// Stats returns how many connections there are, and how many there may be.
func (c *Connector) Stats() (connections, limit int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total, c.opts.Limits.Connections
}

// Idle returns how many sessions wait for their next message.
func (c *Connector) Idle() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, list := range c.idle {
		n += len(list)
	}
	return n
}

// Bounds of what is remembered of addresses that did not answer.
const (
	deadFor = time.Minute
	maxDead = 1000
)

// isDead reports whether at did not answer a moment ago.
func (c *Connector) isDead(at netip.AddrPort) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	until, ok := c.dead[at]
	if ok && time.Now().After(until) {
		delete(c.dead, at)
		return false
	}
	return ok
}

// answered notes whether a connection to at came about.
func (c *Connector) answered(at netip.AddrPort, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ok {
		delete(c.dead, at)
		return
	}
	if len(c.dead) >= maxDead {
		clear(c.dead) // to forget costs a delay, and no more
	}
	c.dead[at] = time.Now().Add(deadFor)
}

// Attempt implements [Attempter]: it hands m to one next hop of hop. Every
// recipient has an outcome when it returns. When ctx ends, it closes its
// connection and returns.
func (c *Connector) Attempt(ctx context.Context, hop route.Hop, m Message) Result {
	a := c.newAttempt(ctx, hop, m)
	if len(a.pending) > 0 {
		a.run()
	}
	a.body.close()
	r := a.result()
	a.free()
	return r
}

func (c *Connector) newAttempt(ctx context.Context, hop route.Hop, m Message) *attempt {
	a := attempts.Get().(*attempt)
	a.c, a.ctx, a.hop, a.message = c, ctx, hop, m
	a.outcomes = make([]mail.Outcome, len(m.Envelope.Recipients))
	for i := range m.Envelope.Recipients {
		a.pending = append(a.pending, i)
	}
	a.m = &a.message
	a.body.m = a.m
	a.listen()
	return a
}
