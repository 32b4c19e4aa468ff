package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"

	"waybill/relay/mail"
)

// DomainType says what we are to an accepted domain.
type DomainType string

// The domain types. All three are accepted from anyone who may submit; they
// differ in what becomes of a recipient that we do not know.
const (
	Authoritative DomainType = "authoritative"  // all its recipients are behind us
	InternalRelay DomainType = "internal_relay" // some of its recipients are elsewhere, inside
	ExternalRelay DomainType = "external_relay" // we are a mail exchanger for somebody else's domain
)

// DomainTypes lists the words of [DomainType].
func DomainTypes() []string {
	return []string{string(Authoritative), string(InternalRelay), string(ExternalRelay)}
}

// Domain is an accepted domain: mail for it is taken from strangers.
type Domain struct {
	Name       string                  // in any spelling; [Domains.Lookup] gives it back as lower-case A-labels
	Type       DomainType              // empty means authoritative
	Subdomains bool                    // its sub-domains too, at any depth
	Recipients func(mail.Address) bool // whether the recipient exists; nil means that we do not know. It must not do I/O
}

// Domains are the accepted domains. A nil *Domains holds none. They do not
// change once made.
type Domains struct {
	byName map[string]Domain
	subs   bool
}

// ErrDomain is wrapped by [NewDomains] for a domain that cannot be accepted.
var ErrDomain = errors.New("accepted domain")

// NewDomains makes a table of ds. It reports all that is wrong with them, not
// only the first fault.
func NewDomains(ds []Domain) (*Domains, error) {
	t := &Domains{byName: make(map[string]Domain, len(ds))}
	var errs []error
	for _, d := range ds {
		if err := t.add(d); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return t, nil
}

func (t *Domains) add(d Domain) error {
	key, err := mail.ParseDomain(d.Name)
	switch {
	case strings.Contains(d.Name, "*"):
		return fmt.Errorf("%w %q: no wildcards; name the domain, and let it have its sub-domains", ErrDomain, d.Name)
	case err != nil:
		return fmt.Errorf("%w %q: %w", ErrDomain, d.Name, err)
	case key[0] == '[':
		return fmt.Errorf("%w %q: an address literal is not a domain", ErrDomain, d.Name)
	}
	if d.Type == "" {
		d.Type = Authoritative
	}
	if !slices.Contains(DomainTypes(), string(d.Type)) {
		return fmt.Errorf("%w %q: unknown type %q: known are %s", ErrDomain, d.Name, d.Type, strings.Join(DomainTypes(), ", "))
	}
	if suffix, icann := publicsuffix.PublicSuffix(key); icann && suffix == key && d.Subdomains {
		return fmt.Errorf("%w %q: a public suffix with its sub-domains would be an open relay", ErrDomain, d.Name)
	}
	if _, dup := t.byName[key]; dup {
		return fmt.Errorf("%w %q: named twice", ErrDomain, d.Name)
	}
	d.Name = key
	t.byName[key] = d
	t.subs = t.subs || d.Subdomains
	return nil
}

// Lookup finds the accepted domain that key belongs to. The key is a domain as
// [mail.Address.DomainKey] gives it. A domain of its own wins over a sub-domain
// of another, and the longest name over shorter ones.
func (t *Domains) Lookup(key string) (Domain, bool) {
	if t == nil || key == "" {
		return Domain{}, false
	}
	if d, ok := t.byName[key]; ok || !t.subs {
		return d, ok
	}
	for {
		_, parent, ok := strings.Cut(key, ".")
		if !ok {
			return Domain{}, false
		}
		if d, ok := t.byName[parent]; ok && d.Subdomains {
			return d, true
		}
		key = parent
	}
}

// Len is the number of accepted domains.
func (t *Domains) Len() int {
	if t == nil {
		return 0
	}
	return len(t.byName)
}
