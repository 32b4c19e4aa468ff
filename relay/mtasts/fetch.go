package mtasts

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

// Bounds of a fetch. RFC 8461 section 3.3 suggests the first two.
const (
	fetchTimeout = time.Minute
	maxPolicy    = 64 << 10
	maxHeaders   = 16 << 10
	maxAddresses = 4 // of the policy host, that are tried
)

// special are networks that no policy host can be in: a domain must not be able
// to have us ask our own neighbours. What netip.Addr knows by itself is not here
// (RFC 6890, and the ways to write an IPv4 address within an IPv6 one).
var special = func() (list []netip.Prefix) {
	for _, s := range []string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
		"::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "fec0::/10",
	} {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}()

// public reports whether ip can be that of a host of the internet.
func public(ip netip.Addr) bool {
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

// client makes the HTTPS client. It knows no proxy, follows nobody elsewhere,
// takes certificates of the policy host alone, and keeps no connection.
func (c *Cache) client() *http.Client {
	return &http.Client{
		Timeout: fetchTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { // RFC 8461 section 3.3: redirects must not be followed
			return http.ErrUseLastResponse
		},
		Transport: &http.Transport{
			DialContext: c.dial, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeaders,
			TLSHandshakeTimeout: fetchTimeout / 2,
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.opts.RootCAs},
		},
	}
}

// dial connects to the policy host at a public address. Addresses are looked up
// and checked here, so that no answer of the DNS comes between check and use.
func (c *Cache) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	ips, err := c.opts.Resolver.Addrs(ctx, host)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, ip := range ips {
		if !c.opts.AllowPrivate && !public(ip) {
			errs = append(errs, fmt.Errorf("%s is not a public address", ip))
			continue
		}
		if len(errs) >= maxAddresses {
			break
		}
		d := net.Dialer{Timeout: fetchTimeout / 4}
		conn, err := d.DialContext(ctx, network, netip.AddrPortFrom(ip.Unmap(), c.opts.Port).String())
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, errors.New("the policy host has no address")
	}
	return nil, errors.Join(errs...)
}

// fetch gets the policy of a domain (RFC 8461 section 3.3).
func (c *Cache) fetch(ctx context.Context, domain string) (Policy, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://mta-sts."+domain+"/.well-known/mta-sts.txt", nil)
	if err != nil {
		return Policy{}, err
	}
	req.Header.Set("User-Agent", "Waybill")
	req.Header.Set("Accept", "text/plain")
	resp, err := c.http.Do(req)
	if err != nil {
		return Policy{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return Policy{}, errors.New("the policy host answers " + strconv.Itoa(resp.StatusCode))
	}
	if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || kind != "text/plain" {
		return Policy{}, malformed("it is not text/plain")
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxPolicy+1))
	if err != nil {
		return Policy{}, err
	}
	if len(text) > maxPolicy {
		return Policy{}, malformed("more than %d octets", maxPolicy)
	}
	return ParsePolicy(text)
}
