package relaytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// Certificate makes a server certificate for names, which may be IP addresses,
// and the pool with the authority that signed it.
func Certificate(t TB, names ...string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	cert, pool, err := NewCertificate(time.Now().Add(24*time.Hour), names...)
	if err != nil {
		t.Fatalf("make a certificate: %v", err)
	}
	return cert, pool
}

// NewCertificate makes a server certificate for names, which may be IP
// addresses, and the pool with the authority that signed it. It is valid until
// notAfter, which may have passed.
func NewCertificate(notAfter time.Time, names ...string) (tls.Certificate, *x509.CertPool, error) {
	var none tls.Certificate
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return none, nil, fmt.Errorf("authority key: %w", err)
	}
	notBefore := notAfter.Add(-48 * time.Hour)
	if now := time.Now().Add(-time.Hour); now.Before(notBefore) {
		notBefore = now
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "relaytest authority"},
		NotBefore: notBefore, NotAfter: notAfter.Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return none, nil, fmt.Errorf("authority: %w", err)
	}
	if ca, err = x509.ParseCertificate(der); err != nil {
		return none, nil, fmt.Errorf("authority: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return none, nil, fmt.Errorf("key: %w", err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "relaytest"},
		NotBefore: notBefore, NotAfter: notAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if len(names) > 0 {
		leaf.Subject.CommonName = names[0]
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			leaf.IPAddresses = append(leaf.IPAddresses, ip)
		} else {
			leaf.DNSNames = append(leaf.DNSNames, n)
		}
	}
	if der, err = x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey); err != nil {
		return none, nil, fmt.Errorf("certificate: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool, nil
}

// Handshake is a TLS connection for a name, as both sides see it, and the
// certificate that the server showed.
func Handshake(t TB, name string) (server, client tls.ConnectionState, leaf *x509.Certificate) {
	t.Helper()
	cert, pool := Certificate(t, name)
	near, far := net.Pipe()
	s := tls.Server(near, &tls.Config{Certificates: []tls.Certificate{cert}})
	c := tls.Client(far, &tls.Config{RootCAs: pool, ServerName: name})
	failed := make(chan error, 1)
	go func() { failed <- s.Handshake() }()
	if err := errors.Join(c.Handshake(), <-failed); err != nil {
		t.Fatalf("handshake: %v", err)
	}
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatalf("certificate: %v", err)
	}
	return s.ConnectionState(), c.ConnectionState(), leaf
}
