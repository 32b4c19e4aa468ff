// Package recipients finds out whether the recipients of accepted domains exist,
// by asking whoever knows: a directory, or the next hop.
//
// It exists so that mail for nobody is refused while its sender still listens:
// whoever accepts it has to send a report to an address that is forged as a rule
// (RFC 3834 section 2, "backscatter"). It promises that each question ends in
// time, that the same question is asked once however many ask it, that what is
// remembered and what is asked at once is bounded, and that a server which cannot
// answer makes nobody's address wrong: mail is then deferred or accepted, as the
// domain's rule says.
//
// Package policy decides first, without asking anybody. To add a way to ask,
// implement [Source] and give it a word in package event.
package recipients

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/policy"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"
)

// A Source knows which recipients there are.
type Source interface {
	// Lookup reports whether the recipient exists. An error says that this
	// cannot be told now; it is for the operator.
	Lookup(ctx context.Context, a mail.Address) (known bool, err error)
}

// Rule says how the recipients of one accepted domain are found out.
type Rule struct {
	Source      Source
	Kind        string        // one of event.Lookups
	Accept      bool          // accept recipients that nothing is known of because Source cannot answer; otherwise they are deferred
	Timeout     time.Duration // of one question; zero means 10s
	Known       time.Duration // how long a recipient that exists is remembered; zero means 1h, negative is not at all
	Unknown     time.Duration // how long one that does not is; zero means 5m, negative is not at all
	Concurrency int           // questions at once; zero means 20
}

// Bounds chosen by taste.
const (
	defaultTimeout     = 10 * time.Second
	defaultKnown       = time.Hour
	defaultUnknown     = 5 * time.Minute
	defaultConcurrency = 20
	remembered         = 20000            // recipients of each kind and domain; an address is some 30 octets
	tolerated          = 3                // failures in a row, after which the source is left alone
	pause              = 15 * time.Second // for so long
)

// Options configure a [Checker].
type Options struct {
	Domains *policy.Domains // whose recipients they are
	Rules   map[string]Rule // by the name of an accepted domain
	Emitter event.Emitter
}

// Checker decides about recipients. It is safe for use by many goroutines.
type Checker struct {
	domains *policy.Domains
	rules   map[string]*rule
	emit    event.Emitter
}

// rule is a Rule in use.
type rule struct {
	Rule
	known, unknown *lru.Cache[string, time.Time] // until when; those that exist also serve after that, when nobody answers
	flight         singleflight.Group
	slots          *semaphore.Weighted

	mu       sync.Mutex
	failures int // in a row
	resume   time.Time
}

// New makes a Checker.
func New(opts Options) (*Checker, error) {
	c := &Checker{domains: opts.Domains, rules: map[string]*rule{}, emit: opts.Emitter}
	for name, r := range opts.Rules {
		key, err := mail.ParseDomain(name)
		if err != nil {
			return nil, fmt.Errorf("recipients of %q: %w", name, err)
		}
		def := func(d *time.Duration, otherwise time.Duration) {
			if *d == 0 {
				*d = otherwise
			}
		}
		def(&r.Timeout, defaultTimeout)
		def(&r.Known, defaultKnown)
		def(&r.Unknown, defaultUnknown)
		if r.Concurrency == 0 {
			r.Concurrency = defaultConcurrency
		}
		made := &rule{Rule: r, slots: semaphore.NewWeighted(int64(r.Concurrency))}
		made.known, _ = lru.New[string, time.Time](remembered)
		made.unknown, _ = lru.New[string, time.Time](remembered)
		c.rules[key] = made
	}
	return c, nil
}

// Check decides about a recipient that relay control has accepted. It returns
// nil to accept. A nil Checker accepts all.
func (c *Checker) Check(ctx context.Context, to mail.Address) *mail.ReplyError {
	if c == nil || strings.EqualFold(to.Local, "postmaster") { // always there (RFC 5321 section 4.5.1)
		return nil
	}
	d, ok := c.domains.Lookup(to.DomainKey())
	if !ok {
		return nil
	}
	r, ok := c.rules[d.Name]
	if !ok {
		return nil
	}
	known, err := c.lookup(ctx, r, to)
	switch {
	case err != nil && r.Accept || known:
		return nil
	case err != nil:
		e := mail.Refuse(450, "4.1.1", policy.ReasonUnverified, "cannot verify the recipient now, try again later")
		e.Err = fmt.Errorf("look up %s: %w", to, err)
		return e
	}
	e := mail.Refuse(550, "5.1.1", policy.ReasonRecipient, "no such recipient")
	e.Err = fmt.Errorf("%s is not a known recipient of %s", to, d.Name)
	return e
}

// lookup asks the memory, then the source.
func (c *Checker) lookup(ctx context.Context, r *rule, to mail.Address) (known bool, err error) {
	key, now := to.Key(), time.Now()
	until, was := r.known.Get(key)
	if was && now.Before(until) {
		c.state(r, event.LookupCached, 0, nil)
		return true, nil
	}
	if until, ok := r.unknown.Get(key); ok && now.Before(until) {
		c.state(r, event.LookupCached, 0, nil)
		return false, nil
	}
	answer := r.flight.DoChan(key, func() (any, error) {
		// The answer is shared, so that it must not end with one caller's ctx.
		shared, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.Timeout)
		defer cancel()
		return c.ask(shared, r, to, key)
	})
	select {
	case got := <-answer:
		known, _ = got.Val.(bool)
		err = got.Err
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil && was {
		c.state(r, event.LookupStale, 0, nil)
		return true, nil
	}
	return known, err
}

// ask asks the source, unless it has to be left alone, and remembers the answer.
func (c *Checker) ask(ctx context.Context, r *rule, to mail.Address, key string) (known bool, err error) {
	start := time.Now()
	if wait := r.paused(start); wait > 0 {
		return false, fmt.Errorf("not asked again for %v after %d failures", wait.Round(time.Second), tolerated)
	}
	if err := r.slots.Acquire(ctx, 1); err != nil {
		return false, fmt.Errorf("more than %d questions at once: %w", r.Concurrency, err)
	}
	known, err = r.Source.Lookup(ctx, to)
	r.slots.Release(1)
	now := time.Now()
	r.answered(now, err == nil)
	switch {
	case err != nil:
		c.state(r, event.LookupUnavailable, now.Sub(start), err)
	case known:
		r.unknown.Remove(key)
		if r.Known > 0 {
			r.known.Add(key, now.Add(r.Known))
		}
		c.state(r, event.LookupKnown, now.Sub(start), nil)
	default:
		r.known.Remove(key)
		if r.Unknown > 0 {
			r.unknown.Add(key, now.Add(r.Unknown))
		}
		c.state(r, event.LookupUnknown, now.Sub(start), nil)
	}
	return known, err
}

// paused is for how long the source is still left alone: clients must not all
// wait for what does not answer.
func (r *rule) paused(now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.resume.Sub(now)
}

func (r *rule) answered(now time.Time, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ok {
		r.failures, r.resume = 0, time.Time{}
		return
	}
	if r.failures++; r.failures >= tolerated {
		r.failures, r.resume = tolerated-1, now.Add(pause) // one question then tells
	}
}

func (c *Checker) state(r *rule, result string, took time.Duration, err error) {
	ev := event.LookupAnswered{Lookup: r.Kind, Result: result, Took: event.Secs(took)}
	if err != nil {
		ev.Error = printable(err.Error())
	}
	c.emit.Emit(ev)
}

// printable bounds what servers said, and keeps control characters out.
func printable(s string) string {
	const most = 300
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
