// Package dns answers the questions that relaying asks of the DNS: which hosts
// take mail for a domain, and at which addresses.
//
// It exists because the standard resolver tells neither time to live nor
// authenticated data, and folds "no such name" and "the server failed" into
// texts. It promises bounded time and memory, a cache (also of negative answers)
// and errors that say whether trying again may help. Each answer is a fact.
//
// To add a question, add a method to [Resolver] that goes through its cache.
package dns

import (
	"context"
	"net/netip"
)

// Kind says how a question failed.
type Kind string

// The kinds of failure.
const (
	NXDomain Kind = "nxdomain" // permanent: the name does not exist
	NoData   Kind = "nodata"   // permanent: the name has no such record
	NullMX   Kind = "null_mx"  // permanent: the domain takes no mail (RFC 7505)
	ServFail Kind = "servfail" // temporary
	Timeout  Kind = "timeout"  // temporary
)

// Error is a question without an answer.
type Error struct {
	Kind Kind
	Name string
	Type string // MX, A, AAAA, ...
	Err  error  // may be nil
}

func (e *Error) Error() string {
	text := string(e.Kind)
	if e.Type != "" {
		text = e.Type + " " + e.Name + ": " + text
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

func (e *Error) Unwrap() error { return e.Err }

// Temporary reports whether asking again later may help.
func (e *Error) Temporary() bool { return e.Kind == ServFail || e.Kind == Timeout }

// MX is one host that takes mail for a domain.
type MX struct {
	Host       string // lower case, without the trailing dot
	Preference uint16
	Implicit   bool // the domain has no MX and is its own host (RFC 5321 section 5.1)
	Secure     bool // the server authenticated the answer (AD bit)
}

// Looker is what smtpout asks; [Resolver] is the real one.
type Looker interface {
	// MX returns the hosts of domain by preference, ties in random order. A
	// domain without MX records is its own implicit MX. Errors are *Error.
	MX(ctx context.Context, domain string) ([]MX, error)
	// Addrs returns the IPv6 and IPv4 addresses of host, in the order to try.
	Addrs(ctx context.Context, host string) ([]netip.Addr, error)
}
