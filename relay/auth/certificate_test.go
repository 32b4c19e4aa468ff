package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"testing"
)

// clientCertificate is for app.example.com and others.
func clientCertificate(t *testing.T) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "app", Organization: []string{"Example"}},
		EmailAddresses: []string{"App@example.com"}, DNSNames: []string{"other.example.com", "app.example.com"},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "example.com", Path: "/app"}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestCertificates(t *testing.T) {
	cert := clientCertificate(t)
	sum := sha256.Sum256(cert.Raw)
	fingerprint := hex.EncodeToString(sum[:])
	lookup := func(user string) (Identity, error) {
		switch user {
		case "app":
			return Identity{User: "App", Senders: []string{"app@example.com"}}, nil
		case "mallory":
			return Identity{}, fmt.Errorf("%w: disabled", ErrCredentials)
		}
		return Identity{}, ErrUnknownUser
	}
	type rules = []CertificateRule
	for _, test := range []struct {
		name       string
		rules      rules
		unverified bool
		none       bool
		authz      string
		want       string // user and senders, or the reason
	}{
		{name: "address", rules: rules{{User: "x", Email: "app@EXAMPLE.com"}}, want: "x []"},
		{name: "host", rules: rules{{User: "x", DNS: "APP.example.com"}}, want: "x []"},
		{name: "URI", rules: rules{{User: "x", URI: "spiffe://example.com/app"}}, want: "x []"},
		{name: "subject", rules: rules{{User: "x", Subject: "CN=app,O=Example"}}, want: "x []"},
		{name: "fingerprint", rules: rules{{User: "x", Fingerprint: fingerprint}}, want: "x []"},
		{name: "fingerprint in capitals", rules: rules{{User: "x", Fingerprint: strings.ToUpper(fingerprint)}}, want: "x []"},
		{name: "first rule", rules: rules{{User: "no", DNS: "example.com"}, {User: "x", DNS: "app.example.com"}, {User: "y", DNS: "other.example.com"}}, want: "x []"},
		{name: "user of the file", rules: rules{{User: "app", DNS: "app.example.com", Senders: []string{"@example.org"}}}, want: "App [app@example.com @example.org]"},
		{name: "disabled user of the file", rules: rules{{User: "mallory", DNS: "app.example.com"}}, want: "credentials"},
		{name: "nobody's", rules: rules{{User: "x", DNS: "example.com"}, {User: "x", Subject: "CN=app"}, {User: "x", URI: "spiffe://example.com/ap"}}, want: "certificate"},
		{name: "from nobody whom we know", rules: rules{{User: "x", DNS: "app.example.com"}, {User: "x", Subject: "CN=app,O=Example"}}, unverified: true, want: "certificate"},
		{name: "from nobody whom we know, by its fingerprint", rules: rules{{User: "x", Fingerprint: fingerprint}}, unverified: true, want: "x []"},
		{name: "none", rules: rules{{User: "x", DNS: "app.example.com"}}, none: true, want: "certificate"},
		{name: "own authorization identity", rules: rules{{User: "app", DNS: "app.example.com"}}, authz: "APP", want: "App [app@example.com]"},
		{name: "foreign authorization identity", rules: rules{{User: "app", DNS: "app.example.com"}}, authz: "root", want: "credentials"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := NewCertificates(test.rules, lookup)
			if err != nil {
				t.Fatal(err)
			}
			st := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}, VerifiedChains: [][]*x509.Certificate{{cert}}}
			if test.unverified {
				st.VerifiedChains = nil
			}
			if test.none {
				st = &tls.ConnectionState{}
			}
			var id Identity
			server := c.Mechanism().Start(Peer{TLS: st}, func(i Identity) { id = i })
			if challenge, done, err := server.Next(nil); len(challenge) > 0 || done || err != nil {
				t.Fatalf("the begin = %q, %t, %v", challenge, done, err)
			}
			_, done, err := server.Next([]byte(test.authz))
			got := fmt.Sprintf("%s %v", id.User, id.Senders)
			if f, ok := errors.AsType[*Failure](err); ok {
				got = f.Reason
			}
			if got != test.want || done != (err == nil) || err != nil && id.User != "" {
				t.Errorf("EXTERNAL = %s, %t, %v, want %s", got, done, err, test.want)
			}
			if _, done, err := server.Next([]byte("app")); done || err == nil {
				t.Error("the exchange goes on after its end")
			}
		})
	}
}

func TestCertificateRules(t *testing.T) {
	for _, test := range []struct {
		name string
		rule CertificateRule
		want string
	}{
		{"nothing", CertificateRule{User: "x"}, "want one of"},
		{"two", CertificateRule{User: "x", DNS: "a", URI: "b"}, "want one of"},
		{"short fingerprint", CertificateRule{User: "x", Fingerprint: "00"}, "64 hexadecimal digits"},
		{"no user", CertificateRule{DNS: "a"}, "user name"},
		{"senders", CertificateRule{User: "x", DNS: "a", Senders: []string{"b"}}, "sender"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := NewCertificates([]CertificateRule{test.rule}, nil); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("NewCertificates() = %v, want %q", err, test.want)
			}
		})
	}
}
