// Package mtasts knows the MTA-STS policies of domains (RFC 8461): which hosts
// may take their mail, and that they must prove by a certificate who they are.
//
// It exists apart from smtpout because a policy outlives connections and
// restarts. It promises that a policy that was once seen is held until it
// expires, whatever happens to the DNS or to the policy host meanwhile; that a
// fetch is bounded in size and time, follows no redirect, and reaches no address
// that is not of the internet; and that one domain's policy is fetched once at a
// time.
//
// [Cache.Policy] is all that is asked. To add a field of policies, add it to
// [Policy] and to its field method; old files on disk then lack it.
package mtasts

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/strangers"
)

// Chosen by taste, with RFC 8461 sections 3.3 and 10.2 in hand.
const (
	refreshAge  = 24 * time.Hour  // a policy that is in use is looked at again each day
	retryAfter  = 5 * time.Minute // after a fetch that failed
	roundEvery  = 30 * time.Minute
	usedWithin  = 30 * 24 * time.Hour
	notBefore   = time.Minute // after one that did not: no domain has us fetch at each message
	defaultSize = 10_000      // policies
	maxFile     = 128 << 10   // of one on disk
)

// Resolver is what is asked of the DNS; package dns has one.
type Resolver interface {
	TXT(ctx context.Context, name string) ([]string, error)
	Addrs(ctx context.Context, host string) ([]netip.Addr, error)
}

// Options configure a Cache.
type Options struct {
	Dir          string // where policies are kept over restarts; empty: nowhere
	Resolver     Resolver
	Emitter      event.Emitter
	RootCAs      *x509.CertPool // authorities of policy hosts; nil: the system's
	Size         int            // policies; default 10,000
	Port         uint16         // of policy hosts; 0 means 443
	AllowPrivate bool           // policy hosts may be anywhere: for tests
}

// entry is a policy that is known, or that could not be fetched.
type entry struct {
	Domain  string    `json:"domain"`
	ID      string    `json:"id"`
	Policy  Policy    `json:"policy"`
	Fetched time.Time `json:"fetched"` // zero: never
	Used    time.Time `json:"used"`    // as it was when the policy was last kept on disk, and later

	retry  time.Time // no fetch before
	flight *flight   // a fetch under way
}

type flight struct{ done chan struct{} }

func (e *entry) valid(now time.Time) bool {
	return !e.Fetched.IsZero() && now.Before(e.Fetched.Add(e.Policy.MaxAge))
}

// Cache knows policies. It is safe for use by many goroutines.
type Cache struct {
	opts Options
	http *http.Client
	life context.Context // of fetches, which outlive the first who asked; ended by Close
	end  context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	entries map[string]*entry
	closed  bool
}

// Open reads the policies that are on disk.
func Open(opts Options) (*Cache, error) {
	if opts.Resolver == nil {
		return nil, errors.New("mta-sts: no resolver")
	}
	if opts.Size <= 0 {
		opts.Size = defaultSize
	}
	if opts.Port == 0 {
		opts.Port = 443
	}
	c := &Cache{opts: opts, entries: map[string]*entry{}}
	c.http = strangers.Client(strangers.Options{
		Resolver: opts.Resolver, RootCAs: opts.RootCAs, Timeout: fetchTimeout, Port: opts.Port, AllowPrivate: opts.AllowPrivate,
	})
	c.life, c.end = context.WithCancel(context.Background())
	if opts.Dir == "" {
		return c, nil
	}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("mta-sts: %w", err)
	}
	files, err := os.ReadDir(opts.Dir)
	if err != nil {
		return nil, fmt.Errorf("mta-sts: %w", err)
	}
	now := time.Now()
	for _, f := range files {
		path := filepath.Join(opts.Dir, f.Name())
		e := read(path)
		if e == nil || !e.valid(now) || c.file(e.Domain) != path || len(c.entries) >= opts.Size {
			if strings.HasSuffix(f.Name(), suffix) || strings.HasPrefix(f.Name(), temporary) {
				_ = os.Remove(path) // what cannot be used is in nobody's way but on disk
			}
			continue
		}
		c.entries[e.Domain] = e
	}
	return c, nil
}

// suffix and temporary are of our files' names.
const suffix, temporary = ".json", "tmp-"

func read(path string) *entry {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil
	}
	text, err := os.ReadFile(path) //nolint:gosec // below our own data folder
	if err != nil {
		return nil
	}
	var e entry
	if json.Unmarshal(text, &e) != nil || !validHost(e.Domain) || e.Policy.MaxAge <= 0 || e.Policy.MaxAge > maxAge || e.Fetched.After(time.Now()) {
		return nil
	}
	return &e
}

// file is where the policy of domain is kept. A domain is too long for a file's
// name, and no stranger should choose one.
func (c *Cache) file(domain string) string {
	sum := sha256.Sum256([]byte(domain))
	return filepath.Join(c.opts.Dir, hex.EncodeToString(sum[:16])+suffix)
}

// Close ends all fetches and waits for their ends.
func (c *Cache) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.end()
	c.wg.Wait()
	c.http.CloseIdleConnections()
	return nil
}

// Len is how many policies are known.
func (c *Cache) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries)
}

// Policy is what domain publishes; its mode is [None] when that is nothing, or
// nothing that could be had: then mail goes as to anybody (RFC 8461 section
// 3.3), and the failure is a fact. The error is ctx's.
func (c *Cache) Policy(ctx context.Context, domain string) (Policy, error) {
	none := Policy{Mode: None}
	domain, err := mail.ParseDomain(domain)
	if err != nil || !validHost(domain) {
		return none, nil // an address, or a name that can have no policy
	}
	texts, err := c.opts.Resolver.TXT(ctx, "_mta-sts."+domain)
	if ctx.Err() != nil {
		return none, ctx.Err()
	}
	id := ""
	if err == nil {
		id = ParseRecord(texts)
	}
	flight, wait := c.look(domain, id)
	if flight != nil && wait {
		select {
		case <-flight.done:
		case <-ctx.Done():
			return none, ctx.Err()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[domain]; e != nil && e.valid(time.Now()) {
		e.Used = time.Now().UTC().Truncate(time.Second)
		return e.Policy, nil
	}
	return none, nil
}

// Run looks at policies again before they expire, also when there is no mail for
// their domains just then: somebody who can suppress the look-ups for the next
// message must not find that the policy is forgotten (RFC 8461 section 10.2). It
// returns when ctx is done.
func (c *Cache) Run(ctx context.Context) error {
	t := time.NewTicker(roundEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			c.round(ctx)
		}
	}
}

// round looks at the policies that are old, one after the other: nobody waits.
func (c *Cache) round(ctx context.Context) {
	for _, domain := range c.old(time.Now()) {
		texts, err := c.opts.Resolver.TXT(ctx, "_mta-sts."+domain)
		if ctx.Err() != nil {
			return
		}
		id := ""
		if err == nil {
			id = ParseRecord(texts)
		}
		if f, _ := c.look(domain, id); f != nil {
			select {
			case <-f.done:
			case <-ctx.Done():
				return
			}
		}
	}
}

// old lists the domains whose policies were not looked at for a while, and are of
// use: nobody's policy is kept for ever because it was asked for once.
func (c *Cache) old(now time.Time) (domains []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for domain, e := range c.entries {
		if e.valid(now) && now.Sub(e.Fetched) > min(refreshAge, e.Policy.MaxAge/2) && now.Sub(e.Used) < usedWithin && !now.Before(e.retry) {
			domains = append(domains, domain)
		}
	}
	return domains
}

// look decides whether the policy of domain is to be fetched, and whether to
// wait for that. Without an id, which is a domain that says no longer that it has
// a policy, or a DNS that does not answer, what is known stays until it expires.
func (c *Cache) look(domain, id string) (f *flight, wait bool) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[domain]
	if e != nil && !e.valid(now) && e.flight == nil && id == "" {
		c.forget(e)
		return nil, false
	}
	if id == "" || c.closed {
		return nil, false
	}
	if e == nil {
		e = &entry{Domain: domain}
		c.makeRoom()
		c.entries[domain] = e
	}
	changed := !e.valid(now) || e.ID != id
	old := now.Sub(e.Fetched) > min(refreshAge, e.Policy.MaxAge/2)
	if e.flight == nil && (changed || old) && !now.Before(e.retry) {
		e.flight = &flight{done: make(chan struct{})}
		c.wg.Go(func() { c.fly(e, id, e.flight) })
	}
	return e.flight, changed
}

// makeRoom forgets the policy that ends first. The caller holds mu.
func (c *Cache) makeRoom() {
	for len(c.entries) >= c.opts.Size {
		var first *entry
		for _, e := range c.entries {
			if e.flight == nil && (first == nil || e.Fetched.Add(e.Policy.MaxAge).Before(first.Fetched.Add(first.Policy.MaxAge))) {
				first = e
			}
		}
		if first == nil {
			return // all are being fetched: they are bounded by the attempts under way
		}
		c.forget(first)
	}
}

// forget removes e. The caller holds mu.
func (c *Cache) forget(e *entry) {
	delete(c.entries, e.Domain)
	if c.opts.Dir != "" && !e.Fetched.IsZero() {
		_ = os.Remove(c.file(e.Domain)) // read again at the next start, and found old
	}
}

// fly fetches the policy of e, keeps it, and states what went wrong.
func (c *Cache) fly(e *entry, id string, f *flight) {
	defer close(f.done)
	p, err := c.fetch(c.life, e.Domain)
	now := time.Now()
	c.mu.Lock()
	e.flight = nil
	if err != nil {
		e.retry = now.Add(retryAfter)
	} else {
		e.ID, e.Policy, e.Fetched, e.retry = id, p, now.UTC().Truncate(time.Second), now.Add(notBefore)
		if e.Used.IsZero() {
			e.Used = e.Fetched
		}
	}
	kept := *e
	c.mu.Unlock()
	if c.life.Err() != nil {
		return
	}
	if err != nil {
		reason := "policy_unavailable"
		var untrusted *tls.CertificateVerificationError
		switch {
		case errors.Is(err, ErrMalformed):
			reason = "policy_malformed"
		case errors.As(err, &untrusted):
			reason = "policy_certificate"
		}
		c.opts.Emitter.Emit(event.TLSPolicyFailed{Domain: e.Domain, Policy: "mta_sts", Reason: reason, Detail: printable(err)})
		return
	}
	if err := c.write(&kept); err != nil {
		c.opts.Emitter.Emit(event.Remarked{Remark: "an MTA-STS policy cannot be kept on disk", Detail: printable(err)})
	}
}

// printable is what a record may hold of an error, which may quote a stranger.
func printable(err error) string {
	const most = 300
	s := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, err.Error())
	if len(s) > most {
		s = s[:most] + "..."
	}
	return s
}

// write puts a policy on disk, all of it or nothing.
func (c *Cache) write(e *entry) error {
	if c.opts.Dir == "" {
		return nil
	}
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(c.opts.Dir, temporary)
	if err != nil {
		return err
	}
	_, err = tmp.Write(text)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), c.file(e.Domain))
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}
