// Package route decides which send connector takes a recipient, and by which
// next hop. It does no I/O: the same question under the same table always has
// the same answer, so that "waybill route explain" tells exactly what the relay
// does.
//
// The order is: connectors that are enabled, that are for this sender, login and
// receive connector, whose size limit the message meets, and that have a matching
// address space; of these, one that is linked to the receive connector, then the
// one with the most specific space, then the one that names the sender most
// closely (the login, the address, its domain, a domain above it, none), then the
// lowest cost, then the lowest name. "example.com" is more specific than
// "*.example.com", which is more specific than "*.com", which is more specific
// than "*".
//
// When the next hop of the winner cannot be reached, the next one of the same
// address space and as close to the sender takes its place: mail for a partner
// never falls through to the connector for everybody because the partner's host
// is down.
//
// To add a criterion, add it to [Query] and to the order in [Table.Route], and
// a row to its test.
package route

import (
	"strings"

	"waybill/relay/mail"
)

// Hop names a queue: all recipients that one send connector hands to one next
// hop. It is a map key.
type Hop struct {
	Connector string // send connector; empty for [Unroutable] and [Oversize]
	Name      string // the recipient's domain (route mx), or the connector's name (smart hosts)
}

// String is the hop as operators read it: the connector and the next hop, or
// one of them where they are the same or the connector is missing.
func (h Hop) String() string {
	if h.Connector == "" || h.Connector == h.Name {
		return h.Name
	}
	return h.Connector + "/" + h.Name
}

// at separates what sent a hop's mail to one host from the host. No domain and
// no connector has it in its name.
const at = "@"

// RedirectTo is the hop of recipients that an operator sends to one host, given
// as "host:port", with the settings of connector.
func RedirectTo(connector, hostport string) Hop {
	return Hop{Connector: connector, Name: at + hostport}
}

// DrainTo is the hop of recipients that go to one host because the whole queue
// does. Unlike a redirect it does not stay when the router decides again.
func DrainTo(connector, hostport string) Hop {
	return Hop{Connector: connector, Name: "drain" + at + hostport}
}

// Target is the "host:port" that h goes to, whatever its recipients' domains
// are, or empty.
func (h Hop) Target() string {
	_, target, _ := strings.Cut(h.Name, at)
	return target
}

// Redirected reports whether an operator sent these recipients to h.
func (h Hop) Redirected() bool { return strings.HasPrefix(h.Name, at) }

// Unroutable is where recipients wait that no send connector wants.
var Unroutable = Hop{Name: "unroutable"}

// Oversize is for recipients whose every send connector has a size limit below
// the message's size. Waiting does not help: they are bounced with 5.3.4.
var Oversize = Hop{Name: "oversize"}

// Space is an address space of a send connector.
type Space struct {
	Pattern string // "*", "example.com" or "*.example.com" (its sub-domains, and itself not); A-labels, lower case
	Cost    int    // 1 to 100; lower wins; 0 means 1
}

// SmartHost is a configured next hop.
type SmartHost struct {
	Host string // name, or IP address without brackets
	Port uint16
	Cost int // tried in order of cost; equal cost shares the load
}

// Connector is what routing needs to know of a send connector.
type Connector struct {
	Name       string
	Spaces     []Space
	SmartHosts []SmartHost // empty: route by MX
	MaxSize    int64       // octets; 0 means no limit
	Disabled   bool

	// What comes from elsewhere is not for the connector. Empty lists say nothing.
	Receive []string // receive connectors that it is linked to
	Senders []string // "user@example.com", "example.com", "*.example.com" (its sub-domains, and itself not), or "<>"
	Users   []string // logins
}

// Query is one routing question.
type Query struct {
	Sender    mail.Address
	Recipient mail.Address
	Size      int64  // octets of content; 0 when unknown
	Receive   string // receive connector
	User      string // login
	Via       Hop    // where an operator redirected the recipient to, or zero

	// Avoid tells which hops cannot be reached at present. Nil: none.
	Avoid func(Hop) bool
}

// Candidate is what became of one connector.
type Candidate struct {
	Connector string
	Space     string // the address space that matched best, or empty
	Cost      int
	Won       bool
	Why       string // why it won or lost, in words
}

// Decision is the answer to a Query.
type Decision struct {
	Hop        Hop
	Connector  *Connector // nil when unroutable; not to be changed
	Space      string
	Why        string
	Others     bool        // another connector would take the recipient if the next hop could not be reached, or takes it because it cannot
	Revision   string      // of the configuration that decided; filled in by who has the table
	Candidates []Candidate // filled by Explain only; the winner first, then in the order of preference
}
