package mail

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Size limits of RFC 5321 section 4.5.3.1.
const (
	maxLocalPart = 64
	maxDomain    = 255
	maxLabel     = 63 // RFC 1035 section 2.3.4
	maxPath      = 254
)

// Address is an envelope address (RFC 5321 section 4.1.2, RFC 6531 section
// 3.3). The zero Address is the null reverse-path "<>". An address without a
// domain is only ever "postmaster" (RFC 5321 section 4.5.1).
type Address struct {
	Local  string // decoded: quotes and quoted pairs are gone
	Domain string // as given, without a trailing dot; or an address literal with its brackets
}

// Errors of address parsing. They are for operators and tests; peers see
// 5.1.3 or 5.1.7.
var (
	ErrAddressSyntax = errors.New("malformed address")
	ErrAddressUTF8   = errors.New("non-ASCII address without SMTPUTF8")
)

// ParseAddress parses addr, such as `user@example.com` or `"a b"@[192.0.2.1]`,
// without angle brackets. The empty string is the null address. Non-ASCII
// addresses are accepted here; ask [Address.ASCII] whether one needs SMTPUTF8.
func ParseAddress(addr string) (Address, error) {
	if addr == "" {
		return Address{}, nil
	}
	a, rest, err := scanMailbox(addr)
	if err != nil {
		return Address{}, err
	}
	if rest != "" {
		return Address{}, fmt.Errorf("%w: trailing %q", ErrAddressSyntax, clip(rest))
	}
	return a, nil
}

// ParsePath parses a path in angle brackets at the start of s and returns what
// follows it. A source route is accepted and stripped (RFC 5321 appendix C).
func ParsePath(s string) (a Address, rest string, err error) {
	s, ok := strings.CutPrefix(s, "<")
	if !ok {
		return Address{}, "", fmt.Errorf("%w: path must be in angle brackets", ErrAddressSyntax)
	}
	if rest, ok := strings.CutPrefix(s, ">"); ok {
		return Address{}, rest, nil
	}
	if strings.HasPrefix(s, "@") {
		route, after, ok := strings.Cut(s, ":")
		if !ok || strings.ContainsAny(route, "<> \"\\") {
			return Address{}, "", fmt.Errorf("%w: source route", ErrAddressSyntax)
		}
		for hop := range strings.SplitSeq(route, ",") {
			d, ok := strings.CutPrefix(hop, "@")
			if !ok || checkDomain(d) != nil {
				return Address{}, "", fmt.Errorf("%w: source route", ErrAddressSyntax)
			}
		}
		s = after
	}
	a, s, err = scanMailbox(s)
	if err != nil {
		return Address{}, "", err
	}
	s, ok = strings.CutPrefix(s, ">")
	if !ok {
		return Address{}, "", fmt.Errorf("%w: no closing angle bracket", ErrAddressSyntax)
	}
	return a, s, nil
}

// scanMailbox reads one mailbox at the start of s, up to a '>' or the end.
func scanMailbox(s string) (Address, string, error) {
	if !utf8.ValidString(s) {
		return Address{}, "", fmt.Errorf("%w: not UTF-8", ErrAddressSyntax)
	}
	var a Address
	var err error
	if strings.HasPrefix(s, `"`) {
		a.Local, s, err = scanQuoted(s)
	} else {
		a.Local, s, err = scanDotString(s)
	}
	if err != nil {
		return Address{}, "", err
	}
	if len(a.Local) > maxLocalPart {
		return Address{}, "", fmt.Errorf("%w: local part longer than %d octets", ErrAddressSyntax, maxLocalPart)
	}
	domain, ok := strings.CutPrefix(s, "@")
	if !ok {
		if strings.EqualFold(a.Local, "postmaster") && (s == "" || s[0] == '>') {
			return a, s, nil
		}
		return Address{}, "", fmt.Errorf("%w: no domain", ErrAddressSyntax)
	}
	end := strings.IndexByte(domain, '>')
	if end < 0 {
		end = len(domain)
	}
	a.Domain, s = domain[:end], domain[end:]
	if err := checkDomain(a.Domain); err != nil {
		return Address{}, "", err
	}
	if len(a.Local)+len(a.Domain)+1 > maxPath {
		return Address{}, "", fmt.Errorf("%w: longer than %d octets", ErrAddressSyntax, maxPath)
	}
	return a, s, nil
}

func scanDotString(s string) (local, rest string, err error) {
	i := 0
	for i < len(s) && (s[i] >= utf8.RuneSelf || isAtext(s[i]) || s[i] == '.') {
		i++
	}
	local = s[:i]
	if local == "" || local[0] == '.' || local[i-1] == '.' || strings.Contains(local, "..") || hasControl(local) {
		return "", "", fmt.Errorf("%w: local part", ErrAddressSyntax)
	}
	return local, s[i:], nil
}

func scanQuoted(s string) (local, rest string, err error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			if hasControl(b.String()) {
				return "", "", fmt.Errorf("%w: control character", ErrAddressSyntax)
			}
			return b.String(), s[i+1:], nil
		case c == '\\':
			i++
			if i == len(s) || s[i] < ' ' || s[i] > '~' {
				return "", "", fmt.Errorf("%w: quoted pair", ErrAddressSyntax)
			}
			b.WriteByte(s[i])
		case c < ' ' || c == 0x7f:
			return "", "", fmt.Errorf("%w: control character", ErrAddressSyntax)
		default:
			b.WriteByte(c)
		}
	}
	return "", "", fmt.Errorf("%w: unfinished quoted string", ErrAddressSyntax)
}

// checkDomain accepts host names, internationalised domains and address
// literals. It does not ask whether they exist.
func checkDomain(d string) error {
	bad := func(why string) error { return fmt.Errorf("%w: domain: %s", ErrAddressSyntax, why) }
	if d == "" || len(d) > maxDomain {
		return bad("empty or too long")
	}
	if d[0] == '[' {
		lit, ok := strings.CutSuffix(d[1:], "]")
		if !ok {
			return bad("unfinished address literal")
		}
		if len(lit) > 5 && strings.EqualFold(lit[:5], "IPv6:") {
			ip, err := netip.ParseAddr(lit[5:])
			if err != nil || !ip.Is6() || ip.Zone() != "" {
				return bad("address literal")
			}
			return nil
		}
		if ip, err := netip.ParseAddr(lit); err != nil || !ip.Is4() {
			return bad("address literal")
		}
		return nil
	}
	ascii := d
	if !isASCII(d) {
		var err error
		if ascii, err = idna.Lookup.ToASCII(d); err != nil || len(ascii) > maxDomain {
			return bad("internationalised name")
		}
	}
	// The A-labels are checked, not the letters as given: the mapping makes dots,
	// digits and nothing at all out of other letters (RFC 5895).
	last := ""
	for label := range strings.SplitSeq(ascii, ".") {
		if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' {
			return bad("label")
		}
		for i := range len(label) {
			switch c := label[i]; {
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
			default:
				return bad("character")
			}
		}
		last = label
	}
	// 127.0.0.1 is no host name (RFC 3696 section 2), but what dials it would
	// take it for an address that relay control has not seen.
	if strings.Trim(last, "0123456789") == "" {
		return bad("top-level label is a number")
	}
	return nil
}

// ParseDomain checks that s is a domain name or an address literal and returns
// it in the form that comparisons use: lower case, A-labels, no trailing dot.
func ParseDomain(s string) (string, error) {
	s = strings.TrimSuffix(s, ".")
	if err := checkDomain(s); err != nil {
		return "", err
	}
	return foldDomain(s), nil
}

func foldDomain(d string) string {
	for i := range len(d) {
		if d[i] >= utf8.RuneSelf {
			if a, err := idna.Lookup.ToASCII(d); err == nil {
				return a
			}
			return strings.ToLower(d)
		}
	}
	return strings.ToLower(d)
}

// IsNull reports whether a is the null reverse-path.
func (a Address) IsNull() bool { return a == Address{} }

// ASCII reports whether a can go to a next hop without SMTPUTF8.
func (a Address) ASCII() bool { return isASCII(a.Local) && isASCII(a.Domain) }

// Literal is the address of an address literal such as "[192.0.2.1]" or
// "[IPv6:2001:db8::1]" (RFC 5321 section 4.1.3), and whether the domain is one.
func (a Address) Literal() (netip.Addr, bool) {
	lit, ok := strings.CutPrefix(a.Domain, "[")
	if !ok {
		return netip.Addr{}, false
	}
	lit = strings.TrimSuffix(lit, "]")
	if len(lit) > 5 && strings.EqualFold(lit[:5], "IPv6:") {
		lit = lit[5:]
	}
	ip, err := netip.ParseAddr(lit)
	return ip, err == nil
}

// DomainKey is the domain in the form that comparisons use: lower case and
// A-labels. It is empty for the null address.
func (a Address) DomainKey() string { return foldDomain(a.Domain) }

// Key is the address in the form that searches and maps use: the local part as
// it is (only its owner may fold it, RFC 5321 section 2.4) and [Address.DomainKey].
func (a Address) Key() string {
	if a.Domain == "" {
		return a.Local
	}
	return quoteLocal(a.Local) + "@" + a.DomainKey()
}

// String is the address as SMTP writes it between angle brackets, with the
// local part quoted where it must be. The null address is the empty string.
func (a Address) String() string {
	if a.Domain == "" {
		return a.Local
	}
	return quoteLocal(a.Local) + "@" + a.Domain
}

// Path is the address in angle brackets.
func (a Address) Path() string { return "<" + a.String() + ">" }

// MarshalText writes [Address.String].
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads what [Address.MarshalText] wrote.
func (a *Address) UnmarshalText(b []byte) error {
	got, err := ParseAddress(string(b))
	if err != nil {
		return err
	}
	*a = got
	return nil
}

func quoteLocal(local string) string {
	before := byte('.') // a dot neither begins nor ends a local part, nor follows another
	plain := true
	for i := 0; plain && i < len(local); i++ {
		c := local[i]
		plain = c >= utf8.RuneSelf || isAtext(c) || c == '.' && before != '.'
		before = c
	}
	plain = plain && before != '.'
	if plain {
		return local
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(local) {
		if local[i] == '"' || local[i] == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(local[i])
	}
	b.WriteByte('"')
	return b.String()
}

func isAtext(c byte) bool { return atext[c] }

// atext is the set of characters of that name (RFC 5321 section 4.1.2).
var atext = func() (set [256]bool) {
	for c := range set {
		set[c] = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-/=?^_`{|}~", byte(c)) >= 0
	}
	return set
}()

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// hasControl reports C0, DEL and C1 controls, and the line and paragraph
// separators that some readers take for line ends.
func hasControl(s string) bool {
	for _, r := range s {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return true
		}
	}
	return false
}

func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}
