package auth

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	_ "crypto/sha256" // the hashes of endPoint
	_ "crypto/sha512" // the hashes of endPoint
)

// Binding says whether logins are bound to the TLS channel that they come
// through, so that nobody in the middle can pass one on.
type Binding string

// The words of a Binding. The zero value is allow.
const (
	BindingOff     Binding = "off"     // never
	BindingAllow   Binding = "allow"   // by clients that can; one that could, and was kept from it, is refused
	BindingRequire Binding = "require" // always, by mechanisms that can
)

// Bindings lists the words of a Binding.
func Bindings() []string {
	return []string{string(BindingOff), string(BindingAllow), string(BindingRequire)}
}

// The kinds of channel binding, as registered with IANA.
const (
	BindingExporter = "tls-exporter"         // RFC 9266
	BindingEndPoint = "tls-server-end-point" // RFC 5929 section 4
	BindingUnique   = "tls-unique"           // RFC 5929 section 3; TLS 1.2 and older
)

// ErrNoBinding says that a channel has no binding of a kind.
var ErrNoBinding = errors.New("no such channel binding")

// ChannelBinding is what a client must have seen of its channel when it is the
// one that we see: the data of a kind of channel binding, without a prefix.
func (p Peer) ChannelBinding(kind string) ([]byte, error) {
	if p.TLS == nil {
		return nil, fmt.Errorf("%w: no TLS", ErrNoBinding)
	}
	switch kind {
	case BindingExporter:
		// Fails for TLS 1.2 without extended master secret, where it proves nothing.
		data, err := p.TLS.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNoBinding, err)
		}
		return data, nil
	case BindingEndPoint:
		return endPoint(p.Certificate)
	case BindingUnique:
		if len(p.TLS.TLSUnique) == 0 || p.TLS.Version > tls.VersionTLS12 { // RFC 9266 section 3
			return nil, fmt.Errorf("%w: %s with this version of TLS", ErrNoBinding, kind)
		}
		return slices.Clone(p.TLS.TLSUnique), nil
	}
	return nil, fmt.Errorf("%w: unknown kind", ErrNoBinding)
}

// EndPointBinding is what a client sees of its server for [BindingEndPoint]: the
// hash of the server's certificate. It fails where that is not defined.
func EndPointBinding(cert *x509.Certificate) ([]byte, error) { return endPoint(cert) }

// endPoint is the hash of the server's certificate (RFC 5929 section 4.1).
func endPoint(cert *x509.Certificate) ([]byte, error) {
	if cert == nil {
		return nil, fmt.Errorf("%w: the certificate of this connection is not known", ErrNoBinding)
	}
	var hash crypto.Hash
	switch cert.SignatureAlgorithm {
	case x509.SHA384WithRSA, x509.ECDSAWithSHA384, x509.SHA384WithRSAPSS:
		hash = crypto.SHA384
	case x509.SHA512WithRSA, x509.ECDSAWithSHA512, x509.SHA512WithRSAPSS:
		hash = crypto.SHA512
	case x509.UnknownSignatureAlgorithm, x509.PureEd25519: // uses no hash of its own: section 4.1 leaves it undefined
		return nil, fmt.Errorf("%w: not defined for the certificate's signature", ErrNoBinding)
	default: // SHA-256 takes the place of MD5 and SHA-1
		hash = crypto.SHA256
	}
	h := hash.New()
	_, _ = h.Write(cert.Raw) // never fails
	return h.Sum(nil), nil
}

const plus = "-PLUS"

// bound leaves out the mechanisms that a Binding does not allow.
func bound(list []Mechanism, b Binding) []Mechanism {
	has := func(name string) bool {
		return slices.ContainsFunc(list, func(m Mechanism) bool { return m.Name == name })
	}
	return slices.DeleteFunc(slices.Clone(list), func(m Mechanism) bool {
		switch b {
		case BindingOff:
			return strings.HasSuffix(m.Name, plus)
		case BindingRequire:
			return has(m.Name + plus)
		case BindingAllow:
		}
		return false
	})
}
