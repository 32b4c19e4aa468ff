// Package throttle decides whether the relay takes one more connection or one
// more message from somebody.
//
// It exists so that no client can have all of the relay. It promises that its
// memory is bounded however many addresses a flood comes from, that an answer
// costs no I/O and no wait, and that hosts of one IPv6 network (/64, which is
// what one customer gets) count as one source. It states a limit that delayed
// or refused something as [event.ThrottleEngaged]; a refused connection is the
// receive connector's to state.
//
// To add a limit, give it its own type here, with a method that asks and takes
// at once, and let its owner in package smtpin ask at the moment of the command.
package throttle

import (
	"net/netip"
	"sync"
	"time"

	"waybill/relay/event"

	"golang.org/x/time/rate"
)

// Source is what counts as one source: an IPv4 address, or the /64 network of
// an IPv6 address.
func Source(ip netip.Addr) netip.Addr {
	ip = ip.Unmap().WithZone("")
	if !ip.Is6() {
		return ip
	}
	p, err := ip.Prefix(64)
	if err != nil {
		return ip
	}
	return p.Addr()
}

// Verdict is what became of a request for a connection.
type Verdict uint8

// The verdicts.
const (
	Admitted    Verdict = iota
	LimitTotal          // the connector has all connections that it may have
	LimitSource         // the source has all that it may have
)

// Connections limits the connections that are open at once. The zero value
// admits all.
type Connections struct {
	Total     int // zero: no limit
	PerSource int // zero: no limit

	mu    sync.Mutex
	open  int
	bySrc map[netip.Addr]int
}

// Admit counts one connection of ip, unless it is one too many. What it
// admitted must be given back with [Connections.Release].
func (c *Connections) Admit(ip netip.Addr) Verdict {
	src := Source(ip)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.Total > 0 && c.open >= c.Total {
		return LimitTotal
	}
	if c.PerSource > 0 && c.bySrc[src] >= c.PerSource {
		return LimitSource
	}
	if c.bySrc == nil {
		c.bySrc = map[netip.Addr]int{}
	}
	c.open++
	c.bySrc[src]++
	return Admitted
}

// Release gives back what [Connections.Admit] admitted.
func (c *Connections) Release(ip netip.Addr) {
	src := Source(ip)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if c.bySrc[src]--; c.bySrc[src] <= 0 {
		delete(c.bySrc, src)
	}
}

// Limit changes the limits. What is open stays open, also beyond them.
func (c *Connections) Limit(total, perSource int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Total, c.PerSource = total, perSource
}

// Open is how many connections are open now.
func (c *Connections) Open() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open
}

// By says whose messages a rate counts.
type By uint8

// What a rate is counted by.
const (
	BySource By = iota
	ByUser      // the authenticated user; without one, the source
	ByBoth      // a message must be within the rate of its user and of its source
)

// maxKeys bounds the sources and users that a rate remembers. Above it those
// that have been quiet are forgotten, and then any: who is forgotten begins
// with a full burst, which a flood from as many addresses has anyhow.
const maxKeys = 100_000

// Messages limits the rate of messages.
type Messages struct {
	PerMinute int // zero: no limit
	By        By

	mu    sync.Mutex
	table table
}

// Client is who asks for a message.
type Client struct {
	Connector string
	IP        netip.Addr
	User      string
}

// Admit takes one message of the rate of client at time now and reports whether
// there was one. When there was none it states so with emit.
func (m *Messages) Admit(now time.Time, client Client, emit event.Emitter) bool {
	scope := "source"
	ok := true
	m.mu.Lock()
	if m.PerMinute <= 0 {
		m.mu.Unlock()
		return true
	}
	m.table.sweep(now, 2*time.Minute)
	if client.User != "" && m.By != BySource {
		scope = "user"
		ok = m.take(now, "u"+client.User)
	}
	if ok && (client.User == "" || m.By != ByUser) {
		scope = "source"
		ok = m.take(now, sourceKey(client.IP))
	}
	m.mu.Unlock()
	if !ok {
		emit.Emit(event.ThrottleEngaged{
			Connector: client.Connector, ClientIP: client.IP, AuthUser: client.User,
			Scope: scope, Limit: "messages_per_minute", Action: "defer",
		})
	}
	return ok
}

// Limit changes the rate, from now on. What was taken of the old one counts.
func (m *Messages) Limit(now time.Time, perMinute int, by By) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.By = by; perMinute == m.PerMinute {
		return
	}
	m.PerMinute = perMinute
	for _, b := range m.table.keys {
		b.rate.SetLimitAt(now, m.limit())
		b.rate.SetBurstAt(now, perMinute)
	}
}

func (m *Messages) limit() rate.Limit { return rate.Limit(float64(m.PerMinute) / 60) }

// take takes one message of key's rate. The burst is a minute's worth: a message
// a second and sixty at once are the same to us.
func (m *Messages) take(now time.Time, key string) bool {
	return m.table.get(key, m.limit(), m.PerMinute).take(now)
}

// table holds the buckets of those who were seen lately.
type table struct {
	keys  map[string]*bucket
	swept time.Time
}

type bucket struct {
	rate *rate.Limiter
	used time.Time
}

func (b *bucket) take(now time.Time) bool {
	b.used = now
	return b.rate.AllowN(now, 1)
}

// get returns the bucket of key, and makes it when there is none.
func (t *table) get(key string, limit rate.Limit, burst int) *bucket {
	b := t.keys[key]
	if b != nil {
		return b
	}
	if t.keys == nil {
		t.keys = map[string]*bucket{}
	}
	if len(t.keys) >= maxKeys {
		for k := range t.keys { // any one: the order of a map is random
			delete(t.keys, k)
			break
		}
	}
	b = &bucket{rate: rate.NewLimiter(limit, burst)}
	t.keys[key] = b
	return b
}

// sweep forgets, once a minute, those who were quiet for so long that their
// bucket is full again.
func (t *table) sweep(now time.Time, full time.Duration) {
	if now.Sub(t.swept) < time.Minute {
		return
	}
	t.swept = now
	for k, b := range t.keys {
		if now.Sub(b.used) > full {
			delete(t.keys, k)
		}
	}
}

func sourceKey(ip netip.Addr) string {
	b := Source(ip).As16()
	return string(b[:])
}
