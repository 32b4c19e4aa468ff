package auth

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/emersion/go-sasl"
)

// A CertificateRule says whose a client certificate is. One of the fields that
// describe a certificate is set.
type CertificateRule struct {
	Email       string // subject alternative name: an address
	DNS         string // subject alternative name: a host, to the letter
	URI         string // subject alternative name
	Subject     string // as in RFC 4514, such as "CN=app,O=Example"
	Fingerprint string // SHA-256 of the certificate, in hexadecimal, with or without colons

	User    string
	Senders []string // what the user may send as, beside what the users tell
}

// Certificates know users by their TLS client certificates. A certificate has to
// be from an authority that the receive connector trusts; one that is known by its
// fingerprint may be from anybody, itself included.
type Certificates struct {
	rules []certificateRule
	users func(user string) (Identity, error)
}

type certificateRule struct {
	CertificateRule
	fingerprint []byte
}

// NewCertificates checks rules, of which the first that fits a certificate
// counts. What else is known of a user comes from users, whose error for one that
// it does not know wraps ErrUnknownUser; nil knows nobody.
func NewCertificates(rules []CertificateRule, users func(user string) (Identity, error)) (*Certificates, error) {
	c := &Certificates{users: users}
	var errs []error
	for i, r := range rules {
		rule := certificateRule{CertificateRule: r}
		if err := rule.check(); err != nil {
			errs = append(errs, fmt.Errorf("certificate %d: %w", i, err))
		}
		c.rules = append(c.rules, rule)
	}
	return c, errors.Join(errs...)
}

func (r *certificateRule) check() error {
	set := 0
	for _, s := range []string{r.Email, r.DNS, r.URI, r.Subject, r.Fingerprint} {
		if s != "" {
			set++
		}
	}
	if set != 1 {
		return errors.New("want one of email, dns, uri, subject and fingerprint")
	}
	if r.Fingerprint != "" {
		var err error
		if r.fingerprint, err = hex.DecodeString(strings.ReplaceAll(r.Fingerprint, ":", "")); err != nil || len(r.fingerprint) != sha256.Size {
			return errors.New("the fingerprint is not the 64 hexadecimal digits of a SHA-256 hash")
		}
	}
	for _, s := range r.Senders {
		if err := CheckSender(s); err != nil {
			return err
		}
	}
	_, err := prepareName(r.User)
	return err
}

// fits reports whether the rule is about a certificate. Who has issued it is
// known, unless it is found by its fingerprint.
func (r *certificateRule) fits(cert *x509.Certificate, verified bool) bool {
	if r.fingerprint != nil {
		sum := sha256.Sum256(cert.Raw)
		return subtle.ConstantTimeCompare(sum[:], r.fingerprint) == 1
	}
	if !verified {
		return false
	}
	fold := func(want string) func(string) bool {
		return func(s string) bool { return strings.EqualFold(s, want) }
	}
	switch {
	case r.Email != "":
		return slices.ContainsFunc(cert.EmailAddresses, fold(r.Email))
	case r.DNS != "":
		return slices.ContainsFunc(cert.DNSNames, fold(r.DNS))
	case r.URI != "":
		for _, u := range cert.URIs {
			if u.String() == r.URI {
				return true
			}
		}
		return false
	}
	return cert.Subject.String() == r.Subject
}

// Shown reports whether p has a certificate at all.
func (p Peer) Shown() bool { return p.TLS != nil && len(p.TLS.PeerCertificates) > 0 }

// Login says whose certificate a client has shown. A certificate that is nobody's
// is ErrCertificate.
func (c *Certificates) Login(p Peer) (Identity, error) {
	if !p.Shown() {
		return Identity{}, fmt.Errorf("%w: there is none", ErrCertificate)
	}
	cert, verified := p.TLS.PeerCertificates[0], len(p.TLS.VerifiedChains) > 0
	i := slices.IndexFunc(c.rules, func(r certificateRule) bool { return r.fits(cert, verified) })
	switch {
	case i < 0 && !verified:
		return Identity{}, fmt.Errorf("%w: it is from no known authority, and its fingerprint is nobody's", ErrCertificate)
	case i < 0:
		return Identity{}, fmt.Errorf("%w: it is nobody's: subject %.200q", ErrCertificate, cert.Subject.String())
	}
	id := Identity{User: c.rules[i].User}
	if c.users != nil {
		known, err := c.users(id.User)
		switch {
		case err == nil:
			id = known
		case !errors.Is(err, ErrUnknownUser):
			return Identity{}, err
		}
	}
	id.Senders = slices.Concat(id.Senders, c.rules[i].Senders)
	return id, nil
}

// Mechanism is EXTERNAL (RFC 4422 appendix A).
func (c *Certificates) Mechanism() Mechanism {
	return Mechanism{Name: "EXTERNAL", NeedsTLS: true, NeedsCertificate: true, Start: func(p Peer, done func(Identity)) sasl.Server {
		return &external{certificates: c, peer: p, done: done}
	}}
}

// external is one exchange.
type external struct {
	certificates *Certificates
	peer         Peer
	done         func(Identity)
	over         bool
}

// Next takes the authorization identity, which may be empty.
func (x *external) Next(response []byte) (challenge []byte, done bool, err error) {
	if x.over {
		return nil, false, fail("", errUnexpected)
	}
	if response == nil { // no initial response: ask for it
		return []byte{}, false, nil
	}
	x.over = true
	id, err := x.certificates.Login(x.peer)
	if err != nil {
		return nil, false, fail("", err)
	}
	name, err := prepareName(id.User)
	if err != nil {
		return nil, false, fail("", err)
	}
	if len(response) > 0 {
		if other, err := prepareName(string(response)); err != nil || other != name {
			return nil, false, fail(name, fmt.Errorf("%w: foreign authorization identity", ErrCredentials))
		}
	}
	if x.done != nil {
		x.done(id)
	}
	return nil, true, nil
}
