package config

import (
	"fmt"
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
