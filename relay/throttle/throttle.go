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

	"golang.org/x/time/rate"

	"waybill/relay/event"
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
	keys  map[string]*bucket
	swept time.Time
}

type bucket struct {
	rate *rate.Limiter
	used time.Time
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
	if m.PerMinute <= 0 {
		return true
	}
	scope := "source"
	ok := true
	m.mu.Lock()
	m.sweep(now)
	if client.User != "" && m.By != BySource {
		scope = "user"
		ok = m.take(now, "u"+client.User)
	}
	if ok && (client.User == "" || m.By != ByUser) {
		scope = "source"
		b := Source(client.IP).As16()
		ok = m.take(now, string(b[:]))
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

func (m *Messages) take(now time.Time, key string) bool {
	b := m.keys[key]
	if b == nil {
		if m.keys == nil {
			m.keys = map[string]*bucket{}
		}
		if len(m.keys) >= maxKeys {
			for k := range m.keys { // any one: the order of a map is random
				delete(m.keys, k)
				break
			}
		}
		// The burst is a minute's worth, so that a message a second and sixty at once are the same to us.
		b = &bucket{rate: rate.NewLimiter(rate.Limit(float64(m.PerMinute)/60), m.PerMinute)}
		m.keys[key] = b
	}
	b.used = now
	return b.rate.AllowN(now, 1)
}

// sweep forgets, once a minute, those whose bucket has filled up again.
func (m *Messages) sweep(now time.Time) {
	if now.Sub(m.swept) < time.Minute {
		return
	}
	m.swept = now
	for k, b := range m.keys {
		if now.Sub(b.used) > 2*time.Minute {
			delete(m.keys, k)
		}
	}
}
