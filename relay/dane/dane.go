// Package dane verifies certificates of SMTP servers by the TLSA records of their
// domains (RFC 7672), without any authority beside the DNS.
//
// It exists apart from smtpout because it decides and does nothing else: no
// network, no clock but the certificates', no facts. It promises that a record
// that RFC 7672 does not allow, or that is malformed, verifies nothing, and that
// usable records among unusable ones count as if they were alone.
//
// Whether records are authentic is for who asks the DNS for them. To take another
// kind of record, add it to usable and to matches.
package dane

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"waybill/relay/dns"
)

// The values of a TLSA record (RFC 6698 section 2.1, RFC 7218).
const (
	UsageTA = 2 // the certificate of an authority of the domain's own choice
	UsageEE = 3 // the server's certificate

	SelectorCert = 0 // the whole certificate
	SelectorSPKI = 1 // its public key

	MatchFull   = 0
	MatchSHA256 = 1
	MatchSHA512 = 2
)

// ErrNoMatch says that no record stands for what the server showed.
var ErrNoMatch = errors.New("no TLSA record matches the certificate")

// Usable keeps those records that can verify something: usages 2 and 3 (RFC 7672
// section 3.1.3 excludes 0 and 1, which need authorities that SMTP does not
// agree on), known selectors, and digests of the length that they must have.
func Usable(records []dns.TLSA) []dns.TLSA {
	var list []dns.TLSA
	for _, r := range records {
		if usable(r) {
			list = append(list, r)
		}
	}
	return list
}

// maxTextRecords bounds what Text tells.
const maxTextRecords = 16

// Text writes records for people, as they stand in a zone, apart by "; ". Data
// that is no digest is cut.
func Text(records []dns.TLSA) string {
	var b strings.Builder
	for i, r := range records {
		if i == maxTextRecords {
			b.WriteString("; ...")
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%d %d %d %x", r.Usage, r.Selector, r.MatchingType, r.Data[:min(len(r.Data), sha512.Size)])
	}
	return b.String()
}

func usable(r dns.TLSA) bool {
	if r.Usage != UsageTA && r.Usage != UsageEE || r.Selector != SelectorCert && r.Selector != SelectorSPKI {
		return false
	}
	switch r.MatchingType {
	case MatchSHA256:
		return len(r.Data) == sha256.Size
	case MatchSHA512:
		return len(r.Data) == sha512.Size
	case MatchFull:
		if r.Selector == SelectorCert {
			_, err := x509.ParseCertificate(r.Data)
			return err == nil
		}
		_, err := x509.ParsePKIXPublicKey(r.Data)
		return err == nil
	}
	return false
}

// Verify checks what a server showed, its own certificate first, against
// records. With usage 3 the record says all: neither names nor dates count (RFC
// 7672 section 3.1.1). With usage 2 there must be a chain to the authority, and
// one of names in the server's certificate (section 3.2.2).
func Verify(records []dns.TLSA, peer []*x509.Certificate, names []string) error {
	if len(peer) == 0 {
		return errors.New("no certificate")
	}
	why := ErrNoMatch
	for _, r := range records {
		switch {
		case !usable(r):
		case r.Usage == UsageEE:
			if matches(r, peer[0]) {
				return nil
			}
		default:
			anchor := anchorOf(r, peer)
			if anchor == nil {
				continue
			}
			err := verifyChain(anchor, peer, names)
			if err == nil {
				return nil
			}
			why = err // tells more than that nothing matched
		}
	}
	return why
}

// matches reports whether r stands for cert.
func matches(r dns.TLSA, cert *x509.Certificate) bool {
	data := cert.Raw
	if r.Selector == SelectorSPKI {
		data = cert.RawSubjectPublicKeyInfo
	}
	switch r.MatchingType {
	case MatchSHA256:
		sum := sha256.Sum256(data)
		data = sum[:]
	case MatchSHA512:
		sum := sha512.Sum512(data)
		data = sum[:]
	}
	return bytes.Equal(data, r.Data)
}

// anchorOf is the certificate of the authority that r stands for: among those
// that the server sent, as it must (RFC 7672 section 3.1.2), or the record
// itself.
func anchorOf(r dns.TLSA, peer []*x509.Certificate) *x509.Certificate {
	for _, cert := range peer {
		if matches(r, cert) {
			return cert
		}
	}
	if r.Selector == SelectorCert && r.MatchingType == MatchFull {
		if cert, err := x509.ParseCertificate(r.Data); err == nil {
			return cert
		}
	}
	return nil
}

func verifyChain(anchor *x509.Certificate, peer []*x509.Certificate, names []string) error {
	opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	opts.Roots.AddCert(anchor)
	for _, c := range peer[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := peer[0].Verify(opts); err != nil {
		return err
	}
	err := errors.New("no name to look for")
	for _, name := range names {
		if err = peer[0].VerifyHostname(name); err == nil {
			return nil
		}
	}
	return err
}
