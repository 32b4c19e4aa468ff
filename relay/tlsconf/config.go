package tlsconf

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// versions are the words for TLS versions. 1.0 and 1.1 are deprecated (RFC
// 8996), and there for devices that speak nothing newer.
var versions = map[string]uint16{"": tls.VersionTLS12, "1.0": tls.VersionTLS10, "1.1": tls.VersionTLS11, "1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

// Versions lists the words for TLS versions.
func Versions() []string { return []string{"1.0", "1.1", "1.2", "1.3"} }

func parseVersion(word string) (uint16, error) {
	v, ok := versions[word]
	if !ok {
		return 0, fmt.Errorf("unknown TLS version %q: known are %s", word, strings.Join(Versions(), ", "))
	}
	return v, nil
}

// VersionName is the word for a TLS version, such as "1.3", or empty.
func VersionName(v uint16) string {
	for word, known := range versions {
		if known == v && word != "" {
			return word
		}
	}
	return ""
}

// clientCertificates are the words for what a server wants of its clients'
// certificates.
var clientCertificates = map[string]tls.ClientAuthType{
	"": tls.NoClientCert, "none": tls.NoClientCert, "request": tls.RequestClientCert, "require": tls.RequireAndVerifyClientCert,
}

// ClientCertificates lists the words of [ServerOptions.ClientCertificate].
func ClientCertificates() []string { return []string{"none", "request", "require"} }

// ServerOptions say how a receive connector speaks TLS.
type ServerOptions struct {
	Certificate       string   // name of the source for clients that ask for no other name
	MinVersion        string   // "1.0" to "1.3"; empty means 1.2. Below 1.2 the ciphers of that time come with it
	ClientCertificate string   // none, request (what comes is verified, and never refused), require; empty means none
	ClientCAFile      string   // PEM; whom client certificates are from. Needed for request and require
	ClientNames       []string // require: one of them must be in the certificate, see [MatchName]; empty means any
}

// legacyCiphers are what devices have that know no TLS 1.2: key exchange by RSA
// without forward secrecy, and 3DES. They follow those that are usual, and are
// offered by connectors that take such versions, and by no other.
var legacyCiphers = []uint16{
	tls.TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA,
	tls.TLS_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_RSA_WITH_AES_128_CBC_SHA,
	tls.TLS_RSA_WITH_AES_256_CBC_SHA,
	tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA,
}

// ciphers are those for a connector that goes down to version; nil means those
// that Go takes by default. The order is Go's in any case.
func ciphers(version uint16) []uint16 {
	if version >= tls.VersionTLS12 {
		return nil
	}
	var list []uint16
	for _, c := range tls.CipherSuites() {
		list = append(list, c.ID)
	}
	return append(list, legacyCiphers...)
}

// Server makes the TLS configuration of a receive connector. It follows
// certificates that are reloaded later. Session tickets have keys that crypto/tls
// changes each day, and renegotiation does not exist on the server's side.
func (c *Certificates) Server(opts ServerOptions) (*tls.Config, error) {
	version, err := parseVersion(opts.MinVersion)
	if err != nil {
		return nil, err
	}
	if c.Get(opts.Certificate) == nil {
		return nil, fmt.Errorf("no certificate %q", opts.Certificate)
	}
	client, ok := clientCertificates[opts.ClientCertificate]
	if !ok {
		return nil, fmt.Errorf("unknown word %q for client certificates: known are %s", opts.ClientCertificate, strings.Join(ClientCertificates(), ", "))
	}
	config := &tls.Config{
		MinVersion:   version,
		CipherSuites: ciphers(version),
		ClientAuth:   client,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.choose(opts.Certificate, hello)
		},
	}
	if client != tls.NoClientCert {
		if opts.ClientCAFile == "" { // the system's authorities would let in anyone with any certificate
			return nil, errors.New("client certificates need a file of the authorities that they are from")
		}
		if config.ClientCAs, err = Roots(opts.ClientCAFile); err != nil {
			return nil, err
		}
	}
	if client == tls.RequireAndVerifyClientCert && len(opts.ClientNames) > 0 {
		config.VerifyConnection = func(state tls.ConnectionState) error { // resumed sessions too
			_, word, err := VerifyClient(state, config.ClientCAs, opts.ClientNames)
			if word != VerifiedName && err == nil {
				err = ErrClientName
			}
			return err
		}
	}
	return config, nil
}

// Levels lists the TLS levels of send connectors. The last two ask what the
// recipients' domain publishes.
func Levels() []string {
	return []string{"none", "opportunistic", "encrypt", "verify", "verify_name", "dane", "mta_sts"}
}

// ClientOptions say how a send connector speaks TLS.
type ClientOptions struct {
	Level      string // one of [Levels]; empty means opportunistic
	MinVersion string // "1.0" to "1.3"; empty means 1.2
	CAFile     string // PEM; authorities to trust instead of the system's
	CertFile   string // PEM; our certificate for next hops that ask for one
	KeyFile    string

	// Certificate is asked for our certificate at each handshake, in place of
	// files that are read once; nil: there are only files.
	Certificate func() *tls.Certificate
}

// Client makes the TLS configuration of a send connector: versions, authorities
// and our own certificate. It is nil for the level none. It verifies the peer;
// the caller sets the name, and turns verification off for the levels that do
// not ask for it.
func Client(opts ClientOptions) (*tls.Config, error) {
	if opts.Level != "" && !slices.Contains(Levels(), opts.Level) {
		return nil, fmt.Errorf("unknown TLS level %q: known are %s", opts.Level, strings.Join(Levels(), ", "))
	}
	version, err := parseVersion(opts.MinVersion)
	if err != nil || opts.Level == "none" {
		return nil, err
	}
	config := &tls.Config{
		MinVersion:         version,
		ClientSessionCache: tls.NewLRUClientSessionCache(256),
	}
	if opts.CAFile != "" {
		if config.RootCAs, err = Roots(opts.CAFile); err != nil {
			return nil, err
		}
	}
	if opts.CertFile != "" || opts.KeyFile != "" {
		cert, err := Pair(opts.CertFile, opts.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{*cert}
	}
	if opts.Certificate != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert := opts.Certificate(); cert != nil {
				return cert, nil
			}
			return &tls.Certificate{}, nil // none: it is for the next hop to say that it needs one
		}
	}
	return config, nil
}

// Roots reads certificates of authorities from a PEM file.
func Roots(name string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(name) //nolint:gosec // a file that the configuration names
	if err != nil {
		return nil, fmt.Errorf("authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("authorities: no certificate in %s", name)
	}
	return pool, nil
}
