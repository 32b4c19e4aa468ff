package tlsconf

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// rsaSource is a certificate with an RSA key, as old devices want it.
func rsaSource(t *testing.T, name string, names ...string) Source {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	both := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
	file := filepath.Join(t.TempDir(), "both.pem")
	if err := os.WriteFile(file, both, 0o600); err != nil {
		t.Fatal(err)
	}
	return Source{Name: name, CertFile: file, KeyFile: file}
}

func TestLegacyCiphers(t *testing.T) {
	c, _ := load(t, rsaSource(t, "default", "a.example"))
	for _, test := range []struct {
		name    string
		server  string // oldest version
		version uint16 // the client's newest
		cipher  uint16
		want    bool
	}{
		{"device, RSA and CBC", "1.0", tls.VersionTLS10, tls.TLS_RSA_WITH_AES_128_CBC_SHA, true},
		{"device, 3DES", "1.0", tls.VersionTLS10, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA, true},
		{"device with TLS 1.2 and RSA", "1.0", tls.VersionTLS12, tls.TLS_RSA_WITH_AES_128_CBC_SHA, true},
		{"device with TLS 1.1", "1.1", tls.VersionTLS11, tls.TLS_RSA_WITH_AES_256_CBC_SHA, true},
		{"device, never RC4", "1.0", tls.VersionTLS10, tls.TLS_RSA_WITH_RC4_128_SHA, false},
		{"device, modern", "1.0", tls.VersionTLS12, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, true},
		{"others, RSA and CBC", "1.2", tls.VersionTLS12, tls.TLS_RSA_WITH_AES_128_CBC_SHA, false},
		{"others, 3DES", "1.2", tls.VersionTLS12, tls.TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA, false},
		{"others, TLS 1.0", "", tls.VersionTLS10, tls.TLS_RSA_WITH_AES_128_CBC_SHA, false},
		{"others, modern", "", tls.VersionTLS12, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			server, err := c.Server(ServerOptions{Certificate: "default", MinVersion: test.server})
			if err != nil {
				t.Fatal(err)
			}
			state, err := handshake(t, server, &tls.Config{
				InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: test.version, CipherSuites: []uint16{test.cipher},
			})
			if (err == nil) != test.want {
				t.Fatalf("handshake = %v, want success %t", err, test.want)
			}
			if err == nil && state.CipherSuite != test.cipher {
				t.Errorf("cipher = %s", tls.CipherSuiteName(state.CipherSuite))
			}
		})
	}
}

// TestCertificateThatTheClientKnows has an elliptic and an RSA certificate for
// the same name.
func TestCertificateThatTheClientKnows(t *testing.T) {
	c, _ := load(t, source(t, "default", "a.example"), rsaSource(t, "old", "a.example"))
	server, err := c.Server(ServerOptions{Certificate: "default", MinVersion: "1.0"})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		sni    string
		cipher []uint16
		want   x509.PublicKeyAlgorithm
	}{
		{"modern", "a.example", nil, x509.ECDSA},
		{"RSA alone", "a.example", []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}, x509.RSA},
		{"RSA alone, without a name", "", []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}, x509.RSA},
	} {
		t.Run(test.name, func(t *testing.T) {
			state, err := handshake(t, server, &tls.Config{
				ServerName: test.sni, InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS12, CipherSuites: test.cipher,
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := state.PeerCertificates[0].PublicKeyAlgorithm; got != test.want {
				t.Errorf("certificate is %v, want %v", got, test.want)
			}
		})
	}
}
