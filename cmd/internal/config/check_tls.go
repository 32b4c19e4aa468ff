package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"waybill/relay/mail"
)

// checkLegacyTLS keeps what is deprecated (RFC 8996) to connectors that say what
// they need it for.
func checkLegacyTLS(r *ReceiveConnector, p *collector, path string) {
	if r.Usage != "device" && (r.TLS.MinVersion == "1.0" || r.TLS.MinVersion == "1.1") {
		p.errorf(path+".min_version", "set usage: device on a connector of their own", "TLS %s is for old devices alone", r.TLS.MinVersion)
	}
}

func checkClientNames(t ReceiveTLS, p *collector, path string) {
	for i, name := range t.ClientNames {
		at := fmt.Sprintf("%s.client_names[%d]", path, i)
		switch {
		case !certificateName(name):
			p.errorf(at, `such as "mail.partner.example" or "*.partner.example"`, "%q is not a name", clip(name))
		case slices.Contains(t.ClientNames[:i], name):
			p.errorf(at, "", "%q is there twice", clip(name))
		}
	}
	if len(t.ClientNames) > 0 && t.ClientCertificate == "none" {
		p.errorf(path+".client_names", "set client_certificate to require, or to request", "clients are not asked for a certificate")
	}
}

// certificateName reports whether a certificate can be for name, which may
// begin with "*.".
func certificateName(name string) bool {
	domain, err := mail.ParseDomain(strings.TrimPrefix(name, "*."))
	return err == nil && !strings.HasPrefix(domain, "[") && (strings.Contains(domain, ".") || !strings.HasPrefix(name, "*."))
}

// checkPublished looks at the levels that ask what a domain publishes, and at the
// name that certificates must be for.
func checkPublished(c *Config, s *SendConnector, p *collector, path string) {
	t := s.TLS
	if t.Level == "mta_sts" && s.Route == "smart_hosts" {
		p.errorf(path+".level", "set verify_name", "MTA-STS is about mail exchangers, and this connector has smart hosts")
	}
	servers, key := c.DNS.Servers, "dns.servers"
	if len(s.DNSServers) > 0 {
		servers, key = s.DNSServers, "dns_servers"
	}
	if t.Level == "dane" && len(servers) > 0 && !c.DNS.TrustAD && !slices.ContainsFunc(servers, onThisMachine) {
		p.warnf(path+".level", "ask a validating resolver on 127.0.0.1, or set dns.trust_ad", "none of %s is on this machine: no answer counts as authentic, and DANE is never used", key)
	}
	if t.Domain == "" {
		return
	}
	switch {
	case !certificateName(t.Domain):
		p.errorf(path+".tls_domain", `such as "smtp.provider.example" or "*.provider.example"`, "%q is not a name", clip(t.Domain))
	case t.Level != "verify_name":
		p.errorf(path+".tls_domain", "set level: verify_name", "the level %s does not look at names, or at others", t.Level)
	}
}

func onThisMachine(server string) bool {
	at, err := parseServer(server)
	return err == nil && at.Addr().Unmap().IsLoopback()
}

// parseServer reads the address of a name server, with or without a port.
func parseServer(s string) (netip.AddrPort, error) {
	if ip, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(ip, 53), nil
	}
	return netip.ParseAddrPort(s)
}

func checkDNS(c *Config, p *collector) {
	checkServers(c.DNS.Servers, p, "dns.servers")
	for i := range c.Send {
		checkServers(c.Send[i].DNSServers, p, fmt.Sprintf("send_connectors[%d].dns_servers", i))
	}
}

func checkServers(servers []string, p *collector, path string) {
	for i, s := range servers {
		if at, err := parseServer(s); err != nil || at.Port() == 0 || at.Addr().IsUnspecified() || at.Addr().IsMulticast() {
			p.errorf(fmt.Sprintf("%s[%d]", path, i), `such as "127.0.0.1" or "127.0.0.1:5353"`, "%q is not an address", clip(s))
		}
	}
}
