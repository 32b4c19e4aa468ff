package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
)

// noted is the key of the place in a handshake's context where the certificate
// that it chose is noted.
type noted struct{}

// NoteCertificate returns c such that [Conn.Certificate] knows which certificate
// a client was shown: package tls tells it to nobody, and a login can be bound to
// it (RFC 5929 section 4). It makes each handshake a full one, since those that
// resume a session show none.
func NoteCertificate(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.SessionTicketsDisabled = true
	choose := c.GetCertificate
	c.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		var cert *tls.Certificate
		var err error
		if choose != nil {
			cert, err = choose(hello)
		}
		if cert == nil && err == nil && len(c.Certificates) == 1 {
			cert = &c.Certificates[0]
		}
		if place, ok := hello.Context().Value(noted{}).(**tls.Certificate); ok {
			*place = cert
		}
		return cert, err
	}
	return c
}

// noting is a context for a handshake, and the place where it notes the
// certificate.
func noting() (context.Context, **tls.Certificate) {
	place := new(*tls.Certificate)
	return context.WithValue(context.Background(), noted{}, place), place
}

// leaf is the certificate itself, without its chain; nil when there is none.
func leaf(c *tls.Certificate) *x509.Certificate {
	if c == nil || c.Leaf != nil {
		if c == nil {
			return nil
		}
		return c.Leaf
	}
	if len(c.Certificate) == 0 {
		return nil
	}
	cert, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return nil
	}
	return cert
}

// Certificate is our own certificate that the client was shown, or nil when there
// is no TLS, or the configuration does not come from [NoteCertificate].
func (c *Conn) Certificate() *x509.Certificate { return c.own }
