// Package tlsconf makes TLS configurations: from certificate files that are
// renewed while the relay runs, and from the words of the configuration file.
//
// It exists so that all connectors choose certificates, versions and trust in
// the same way. It promises that a renewed certificate is taken into use without
// a restart, that a broken one never replaces a good one, and that the peer's
// certificate is verified unless the caller turns that off where the caller's
// TLS level says so, in sight.
//
// To add a setting, add a field to [ServerOptions] or [ClientOptions] and set it
// in the function of the same name.
package tlsconf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/idna"

	"waybill/relay/event"
)

// Source names a certificate and its files.
type Source struct {
	Name     string
	CertFile string // PEM: the certificate, then its chain
	KeyFile  string // PEM; may be the same file
}

// Expiry is what a certificate in use tells about itself.
type Expiry struct {
	Name     string    // of the source
	Subject  string    // the first name that the certificate is for
	NotAfter time.Time // when it ends
}

// Certificates are the certificates in use. They are safe for use by many
// goroutines.
type Certificates struct {
	emit    event.Emitter
	mu      sync.RWMutex
	entries []*entry                      // in the order of the sources
	byName  map[string][]*tls.Certificate // by DNS name of the certificates, "*.example.com" included
	reload  sync.Mutex                    // one reload at a time
}

// entry is one source, and the files that its certificate came from.
type entry struct {
	Source
	cert *tls.Certificate
	seen [2]fs.FileInfo // the files as they were last read, good or bad; zero when they could not be found
	err  error          // what was wrong with them
}

// Load reads the certificates of all sources. It reports all that is wrong with
// them. Facts about them go to emit: one [event.CertificateReloaded] for each.
func Load(sources []Source, emit event.Emitter) (*Certificates, error) {
	c := &Certificates{emit: emit.Source(event.SourceBoot)}
	var errs []error
	for _, s := range sources {
		if slices.ContainsFunc(c.entries, func(e *entry) bool { return e.Name == s.Name }) {
			errs = append(errs, fmt.Errorf("certificate %q is named twice", s.Name))
			continue
		}
		e := &entry{Source: s}
		if _, err := c.read(e); err != nil {
			errs = append(errs, err)
		}
		c.entries = append(c.entries, e)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	c.index()
	return c, nil
}

// Reload reads the files that have changed and takes their certificates into
// use. A certificate that cannot be read stays as it was; the error is returned
// each time, and stated once. It reports how many changed.
func (c *Certificates) Reload() (changed int, err error) {
	c.reload.Lock()
	defer c.reload.Unlock()
	var errs []error
	for _, e := range c.entries {
		ok, err := c.read(e)
		if err != nil {
			errs = append(errs, err)
		}
		if ok {
			changed++
		}
	}
	if changed > 0 {
		c.index()
	}
	return changed, errors.Join(errs...)
}

// Run looks at the files at each interval until ctx is done. What goes wrong is
// stated as a fact.
func (c *Certificates) Run(ctx context.Context, interval time.Duration) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			_, _ = c.Reload()
		}
	}
}

// read takes the files of e into e.cert when they have changed.
func (c *Certificates) read(e *entry) (changed bool, err error) {
	seen, err := stat(e.Source)
	if err == nil && same(seen, e.seen) {
		return false, e.err
	}
	var cert *tls.Certificate
	if err == nil {
		cert, err = Pair(e.CertFile, e.KeyFile)
	}
	said := e.err
	e.seen, e.err = seen, nil
	if err != nil {
		e.err = fmt.Errorf("certificate %q: %w", e.Name, err)
		if said == nil || said.Error() != e.err.Error() {
			c.emit.Emit(event.CertificateReloaded{Certificate: e.Name, Error: e.err.Error()})
		}
		return false, e.err
	}
	c.mu.Lock()
	e.cert = cert
	c.mu.Unlock()
	c.emit.Emit(event.CertificateReloaded{Certificate: e.Name, NotAfter: cert.Leaf.NotAfter})
	return true, nil
}

func stat(s Source) (seen [2]fs.FileInfo, err error) {
	for i, name := range []string{s.CertFile, s.KeyFile} {
		info, err := os.Stat(name)
		if err != nil {
			return [2]fs.FileInfo{}, err
		}
		seen[i] = info
	}
	return seen, nil
}

func same(a, b [2]fs.FileInfo) bool {
	for i := range a {
		if a[i] == nil || b[i] == nil || !os.SameFile(a[i], b[i]) || a[i].Size() != b[i].Size() || !a[i].ModTime().Equal(b[i].ModTime()) {
			return false
		}
	}
	return true
}

// Pair reads a certificate and its key, and checks that they belong together.
func Pair(certFile, keyFile string) (*tls.Certificate, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	if cert.Leaf == nil {
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return nil, err
		}
	}
	return &cert, nil
}

// index builds the table that a client's server name is looked up in.
func (c *Certificates) index() {
	byName := map[string][]*tls.Certificate{}
	for _, e := range c.entries {
		if e.cert == nil {
			continue
		}
		for _, name := range e.cert.Leaf.DNSNames {
			name = strings.ToLower(name)
			byName[name] = append(byName[name], e.cert)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byName = byName
}

// Get is the certificate of a source, or nil.
func (c *Certificates) Get(name string) *tls.Certificate {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, e := range c.entries {
		if e.Name == name {
			return e.cert
		}
	}
	return nil
}

// Expiries lists the certificates in use, in the order of the sources.
func (c *Certificates) Expiries() []Expiry {
	c.mu.RLock()
	defer c.mu.RUnlock()
	list := make([]Expiry, 0, len(c.entries))
	for _, e := range c.entries {
		list = append(list, Expiry{Name: e.Name, Subject: subject(e.cert.Leaf), NotAfter: e.cert.Leaf.NotAfter})
	}
	return list
}

func subject(leaf *x509.Certificate) string {
	if len(leaf.DNSNames) > 0 {
		return leaf.DNSNames[0]
	}
	return leaf.Subject.CommonName
}

// choose finds the certificate for a handshake: the preferred one when the
// client asked for no name, or for one of its names; else another one that has
// the name; else the preferred one. A certificate that the client cannot use,
// such as an elliptic one that an old device does not know, comes after one for
// the same names that it can. The name is remote text, and only compared.
func (c *Certificates) choose(preferred string, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	own := c.Get(preferred)
	if own == nil {
		return nil, fmt.Errorf("no certificate %q", preferred)
	}
	name := strings.TrimSuffix(strings.ToLower(hello.ServerName), ".")
	if name == "" || own.Leaf.VerifyHostname(name) == nil {
		if hello.SupportsCertificate(own) == nil {
			return own, nil
		}
		if name == "" {
			name = subject(own.Leaf)
		}
	}
	if a, err := idna.Lookup.ToASCII(name); err == nil {
		name = a
	}
	wildcard := ""
	if _, parent, ok := strings.Cut(name, "."); ok {
		wildcard = "*." + parent
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, key := range []string{name, wildcard} {
		for _, cert := range c.byName[key] {
			if hello.SupportsCertificate(cert) == nil {
				return cert, nil
			}
		}
	}
	return own, nil
}
