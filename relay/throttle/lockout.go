package throttle

import (
	"crypto/sha256"
	"net/netip"
	"sync"
	"time"
)

// LockoutLimits say how many failed logins are too many. A zero field has the
// default that its comment names; a negative number of failures is no limit.
type LockoutLimits struct {
	Source   int           // failures of one source within the window; 30: an office behind one address
	Account  int           // failures of one account within the window, from sources that it is not known from; 10
	Window   time.Duration // 15m
	Delay    time.Duration // how long the next attempt is held off; doubles with each further failure; 30s
	MaxDelay time.Duration // the longest that it becomes; 1h
	Trust    time.Duration // for how long after a login a source is known for the account; 30d
}

func (l LockoutLimits) withDefaults() LockoutLimits {
	if l.Source == 0 {
		l.Source = 30
	}
	if l.Account == 0 {
		l.Account = 10
	}
	def := func(p *time.Duration, d time.Duration) {
		if *p <= 0 {
			*p = d
		}
	}
	def(&l.Window, 15*time.Minute)
	def(&l.Delay, 30*time.Second)
	def(&l.MaxDelay, time.Hour)
	def(&l.Trust, 30*24*time.Hour)
	l.MaxDelay = max(l.MaxDelay, l.Delay)
	return l
}

// Lockout holds off those who guess passwords: a source that fails too often,
// whatever accounts it tries, and an account that is tried too often, from
// wherever. An attempt that is held off is not checked and does not count, so
// that a program with an old password does not lock itself out for ever.
//
// Who guesses must not be able to lock out the owner of an account. A source
// that an account has logged in from is known for it: there the account is held
// to the failures of just this pair, and to no others. The exception is not
// visible from outside, since nothing is checked for those who are held off.
//
// Accounts that do not exist are held off like those that do. A Lockout is for
// all receive connectors, lives in memory alone and is bounded; when it is full
// it forgets some, who then begin anew. It is safe for use by many goroutines.
type Lockout struct {
	limits LockoutLimits

	mu       sync.Mutex
	sources  map[netip.Addr]*failures
	accounts map[account]*failures
	known    map[pair]*acquaintance
	homes    map[netip.Addr]int // sources that known has, and how often
	swept    time.Time
}

// account is the hash of a name: names come from strangers, and are long when
// strangers want them to be.
type account [16]byte

type pair struct {
	account account
	source  netip.Addr
}

// acquaintance is a source that an account has logged in from.
type acquaintance struct {
	seen time.Time
	failures
}

// NewLockout returns a Lockout that has seen nobody fail.
func NewLockout(l LockoutLimits) *Lockout {
	return &Lockout{
		limits: l.withDefaults(), sources: map[netip.Addr]*failures{}, accounts: map[account]*failures{},
		known: map[pair]*acquaintance{}, homes: map[netip.Addr]int{},
	}
}

// Change takes other limits into use. What was counted stays.
func (l *Lockout) Change(limits LockoutLimits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limits = limits.withDefaults()
}

// Begin reports whether a source may begin to log in. A source that is held off
// may begin when an account is known to log in from there: whether it is that
// account is for [Lockout.Try] to see.
func (l *Lockout) Begin(now time.Time, ip netip.Addr) bool {
	src := Source(ip)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.homes[src] > 0 || !l.sources[src].holds(now)
}

// Try reports whether the account's credentials may be checked. When not, held
// is what is held off: "source" or "user".
func (l *Lockout) Try(now time.Time, ip netip.Addr, user string) (held string, ok bool) {
	src, acc := Source(ip), accountOf(user)
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.acquainted(now, pair{acc, src}); a != nil {
		if a.holds(now) {
			return "user", false
		}
		return "", true
	}
	switch {
	case l.sources[src].holds(now):
		return "source", false
	case l.accounts[acc].holds(now):
		return "user", false
	}
	return "", true
}

// Failed counts a failed login. The user is as claimed, and empty when the
// attempt did not come so far.
func (l *Lockout) Failed(now time.Time, ip netip.Addr, user string) {
	src, acc := Source(ip), accountOf(user)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweep(now)
	if user != "" {
		if a := l.acquainted(now, pair{acc, src}); a != nil {
			a.fail(now, l.limits.Account, l.limits)
			return
		}
		recordOf(l.accounts, acc).fail(now, l.limits.Account, l.limits)
	}
	recordOf(l.sources, src).fail(now, l.limits.Source, l.limits)
}

// Succeeded makes the source known for the account. It takes back no failure:
// else a guesser with an account of its own could wash off each guess.
func (l *Lockout) Succeeded(now time.Time, ip netip.Addr, user string) {
	p := pair{accountOf(user), Source(ip)}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweep(now)
	a := l.known[p]
	if a == nil {
		if len(l.known) >= maxKeys {
			for old := range l.known { // any one: the order of a map is random
				l.forget(old)
				break
			}
		}
		a = &acquaintance{}
		l.known[p] = a
		l.homes[p.source]++
	}
	a.seen = now
}

// acquainted is what is known of a pair, or nil.
func (l *Lockout) acquainted(now time.Time, p pair) *acquaintance {
	a := l.known[p]
	if a != nil && now.Sub(a.seen) > l.limits.Trust {
		l.forget(p)
		return nil
	}
	return a
}

func (l *Lockout) forget(p pair) {
	delete(l.known, p)
	if l.homes[p.source]--; l.homes[p.source] <= 0 {
		delete(l.homes, p.source)
	}
}

// sweep forgets, once a minute, what no longer matters.
func (l *Lockout) sweep(now time.Time) {
	if now.Sub(l.swept) < time.Minute {
		return
	}
	l.swept = now
	for k, f := range l.sources {
		if f.over(now, l.limits.Window) {
			delete(l.sources, k)
		}
	}
	for k, f := range l.accounts {
		if f.over(now, l.limits.Window) {
			delete(l.accounts, k)
		}
	}
	for p, a := range l.known {
		if now.Sub(a.seen) > l.limits.Trust {
			l.forget(p)
		}
	}
}

func accountOf(user string) account {
	sum := sha256.Sum256([]byte(user))
	return account(sum[:len(account{})])
}

// recordOf is the record of key, made when there is none.
func recordOf[K comparable](m map[K]*failures, key K) *failures {
	f := m[key]
	if f != nil {
		return f
	}
	if len(m) >= maxKeys {
		for k := range m { // any one: the order of a map is random
			delete(m, k)
			break
		}
	}
	f = &failures{}
	m[key] = f
	return f
}

// failures counts in a sliding window: in full the ones of this window, and in
// part those of the one before, by how much of it is still in sight.
type failures struct {
	start     time.Time // of this window
	now, then int       // failures in this window, and in the one before
	level     int       // how many times it was held off in a row
	until     time.Time // held off until
}

// fail counts one. When it is one too many, or comes soon after the last time
// that it was, the next attempt is held off, each time for twice as long.
func (f *failures) fail(now time.Time, limit int, l LockoutLimits) {
	if limit < 0 {
		return
	}
	if now.After(f.until.Add(l.Window)) {
		f.level = 0
	}
	switch gone := now.Sub(f.start); {
	case gone >= 2*l.Window:
		f.start, f.now, f.then = now, 0, 0
	case gone >= l.Window:
		f.start, f.now, f.then = f.start.Add(l.Window), 0, f.now
	}
	f.now++
	left := 1 - float64(now.Sub(f.start))/float64(l.Window)
	if f.level == 0 && float64(f.now)+float64(f.then)*left < float64(limit) {
		return
	}
	delay := l.MaxDelay
	if f.level < 30 && l.Delay<<f.level > 0 {
		delay = min(delay, l.Delay<<f.level)
	}
	f.level++
	f.until = now.Add(delay)
}

func (f *failures) holds(now time.Time) bool { return f != nil && now.Before(f.until) }

// over reports whether nothing of it counts any more.
func (f *failures) over(now time.Time, window time.Duration) bool {
	return now.Sub(f.start) >= 2*window && now.After(f.until.Add(window))
}
