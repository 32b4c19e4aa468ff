package tlsconf

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
)

// How far a peer's certificate can be trusted, as event.TLSNegotiated has it.
const (
	VerifiedNone = "none"       // there is no certificate
	Unverified   = "unverified" // from nobody whom we know
	VerifiedPKIX = "pkix"       // from a known authority
	VerifiedName = "pkix_name"  // from a known authority, and for a name that we asked for
)

// ErrClientName says that a client's certificate is for none of the names that
// were asked for.
var ErrClientName = errors.New("the client's certificate is for none of the names that are let in")

// VerifyClient says how far a client's certificate can be trusted: from whom it
// is, and whether it is for one of names; see [MatchName]. The chains are those
// that lead to roots; the error is why it is not trusted further.
func VerifyClient(state tls.ConnectionState, roots *x509.CertPool, names []string) (chains [][]*x509.Certificate, word string, err error) {
	if len(state.PeerCertificates) == 0 {
		return nil, VerifiedNone, nil
	}
	if roots == nil { // the system's authorities would tell nothing about who may come in
		return nil, Unverified, nil
	}
	if chains, err = Chains(state.PeerCertificates, roots, x509.ExtKeyUsageClientAuth); err != nil {
		return nil, Unverified, err
	}
	if len(names) == 0 {
		return chains, VerifiedPKIX, nil
	}
	for _, name := range names {
		if MatchName(state.PeerCertificates[0], name) {
			return chains, VerifiedName, nil
		}
	}
	return chains, VerifiedPKIX, fmt.Errorf("%w: it is for %q", ErrClientName, clip(strings.Join(state.PeerCertificates[0].DNSNames, ", ")))
}

// clip bounds what a certificate says of itself.
func clip(s string) string {
	const most = 200
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

// Chains verifies a peer's certificates, its own first, and gives the chains to
// roots; nil means the system's.
func Chains(peer []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage) ([][]*x509.Certificate, error) {
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{usage}}
	for _, c := range peer[1:] {
		opts.Intermediates.AddCert(c)
	}
	return peer[0].Verify(opts)
}

// MatchName reports whether a certificate is for name. A name "*.example.com"
// stands for all sub-domains of example.com, at any depth, whether the
// certificate names one of them or has a wildcard among them itself.
func MatchName(cert *x509.Certificate, name string) bool {
	suffix, ok := strings.CutPrefix(name, "*")
	if !ok {
		return cert.VerifyHostname(name) == nil
	}
	suffix = strings.ToLower(suffix)
	for _, n := range cert.DNSNames {
		if n = strings.ToLower(strings.TrimSuffix(n, ".")); len(n) > len(suffix) && strings.HasSuffix(n, suffix) {
			return true
		}
	}
	return false
}
