// Package strangers speaks HTTPS to hosts that strangers name: policy hosts of
// domains, and where they want reports.
//
// It exists because such a URL must not become a way into our own network. It
// promises that no connection goes to an address that is not of the internet,
// also when the DNS changes its answer between two looks; that no redirect is
// followed, no proxy used, no connection and no cookie kept; and that headers and
// waiting have an end.
//
// Networks that must not be reached are in the list below.
package strangers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

// Bounds, by taste.
const (
	defaultTimeout = time.Minute
	maxHeaders     = 16 << 10
	maxAddresses   = 4 // of one host, that are tried
)

// Resolver is what is asked of the DNS; package dns has one.
type Resolver interface {
	Addrs(ctx context.Context, host string) ([]netip.Addr, error)
}

// Options configure a client.
type Options struct {
	Resolver     Resolver
	RootCAs      *x509.CertPool // nil: the system's
	Timeout      time.Duration  // of a whole request; zero means one minute
	Port         uint16         // instead of 443; zero: as the URL has it
	AllowPrivate bool           // hosts may be anywhere: for tests
}

// Client makes a client.
func Client(opts Options) *http.Client {
	if opts.Timeout <= 0 {
		opts.Timeout = defaultTimeout
	}
	d := dialer{opts}
	return &http.Client{
		Timeout:       opts.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: d.dial, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeaders,
			TLSHandshakeTimeout: opts.Timeout / 2,
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: opts.RootCAs},
		},
	}
}

type dialer struct{ opts Options }

// dial connects to a host at a public address. Addresses are looked up and
// checked here, so that no answer of the DNS comes between check and use.
func (d dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, word, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(word, 10, 16)
	if err != nil {
		return nil, err
	}
	if d.opts.Port != 0 {
		port = uint64(d.opts.Port)
	}
	ips, err := d.opts.Resolver.Addrs(ctx, host)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, ip := range ips {
		if !d.opts.AllowPrivate && !Public(ip) {
			errs = append(errs, fmt.Errorf("%s is not a public address", ip))
			continue
		}
		if len(errs) >= maxAddresses {
			break
		}
		one := net.Dialer{Timeout: d.opts.Timeout / 4}
		conn, err := one.DialContext(ctx, network, netip.AddrPortFrom(ip.Unmap(), uint16(port)).String())
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("%s has no address", host)
	}
	return nil, errors.Join(errs...)
}

// special are networks that no stranger's host can be in. What netip.Addr knows by
// itself is not here (RFC 6890, and the ways to write an IPv4 address within an
// IPv6 one).
var special = func() (list []netip.Prefix) {
	for _, s := range []string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
		"::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "fec0::/10",
	} {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}()

// Public reports whether ip can be that of a host of the internet.
func Public(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	if !ip.IsGlobalUnicast() || ip.IsPrivate() {
		return false
	}
	for _, p := range special {
		if p.Contains(ip) {
			return false
		}
	}
	return true
}
