package tlsrpt

import (
	"net/netip"
	"net/url"
	"strings"

	"waybill/relay/mail"
)

// Bounds of what a domain may ask for.
const (
	maxDestinations = 5
	maxURI          = 1000
)

// The methods by which reports go.
const (
	byMail  = "mail"
	byHTTPS = "https"
)

// Destination is where a domain wants its reports.
type Destination struct {
	Method  string       `json:"method"` // mail, https
	Address mail.Address `json:"address,omitzero"`
	URL     string       `json:"url,omitempty"`
}

// String is the destination without what a URL may hold beyond its host: that is
// nobody's business but the domain's.
func (d Destination) String() string {
	if d.Method == byMail {
		return d.Address.String()
	}
	if u, err := url.Parse(d.URL); err == nil {
		return u.Host
	}
	return ""
}

// ParseRecord finds where reports go in the TXT records of "_smtp._tls." and a
// domain (RFC 8460 section 3). There is none when the domain wants no reports,
// which it also says by having two records. What cannot be used is left out.
func ParseRecord(texts []string) []Destination {
	var found []string
	for _, text := range texts {
		version, rest, _ := strings.Cut(text, ";")
		if strings.TrimRight(version, " \t") == "v=TLSRPTv1" {
			found = append(found, rest)
		}
	}
	if len(found) != 1 {
		return nil
	}
	var list []Destination
	for field := range strings.SplitSeq(found[0], ";") {
		name, value, _ := strings.Cut(strings.Trim(field, " \t"), "=")
		if name != "rua" {
			continue
		}
		for uri := range strings.SplitSeq(value, ",") {
			if d, ok := parseURI(strings.Trim(uri, " \t")); ok && len(list) < maxDestinations {
				list = append(list, d)
			}
		}
		break // the first one counts
	}
	return list
}

func parseURI(uri string) (d Destination, ok bool) {
	if len(uri) > maxURI || strings.ContainsFunc(uri, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return d, false
	}
	u, err := url.Parse(uri)
	if err != nil {
		return d, false
	}
	switch u.Scheme { // in lower case
	case "mailto":
		address, err := url.PathUnescape(u.Opaque)
		if err != nil {
			return d, false
		}
		a, err := mail.ParseAddress(address)
		if _, literal := a.Literal(); err != nil || a.IsNull() || !a.ASCII() || literal || !validDomain(a.DomainKey()) {
			return d, false
		}
		return Destination{Method: byMail, Address: a}, true
	case "https":
		if u.User != nil || u.Opaque != "" || !validDomain(strings.ToLower(u.Hostname())) {
			return d, false
		}
		u.Fragment = ""
		return Destination{Method: byHTTPS, URL: u.String()}, true
	}
	return d, false
}

// validDomain accepts names in the form that the DNS has them, with a dot among
// them.
func validDomain(name string) bool {
	folded, err := mail.ParseDomain(name)
	if err != nil || folded != name || !strings.Contains(name, ".") {
		return false
	}
	for _, c := range []byte(name) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	_, err = netip.ParseAddr(name)
	return err != nil
}
