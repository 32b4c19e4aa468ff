// Package throttle decides whether the relay takes one more connection, message,
// recipient, octet or command from somebody.
//
// It exists so that no client can have all of the relay. A [Rule] says what is
// counted, by whom, how much there may be, and what happens then; a [Set] holds
// the rules and what each key has used. It promises that its memory is bounded
// however many addresses a flood comes from, that an answer costs no I/O and no
// wait, that a request which one rule refuses uses up nothing of the others, that
// hosts of one IPv6 network (/64, which is what one customer gets) count as one
// source, and that what was used survives a change of the rules. It states a rule
// that delayed or refused something as [event.ThrottleEngaged]. A [Lockout] holds
// off who guesses passwords. [Turns] bound how many contents are taken in at a time.
//
// To count something else, add a word to [What] and let its owner in package
// smtpin ask at the moment of the command; to count it by something else, add a
// word to [By] and a case to the rule's key.
package throttle

import (
	"net/netip"
	"sync"
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
