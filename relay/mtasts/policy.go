package mtasts

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"waybill/relay/mail"
)

// Mode is how much a domain wants of its policy (RFC 8461 section 5).
type Mode string

// The modes.
const (
	None    Mode = "none"    // nothing, as if there were no policy
	Testing Mode = "testing" // to be told what would fail
	Enforce Mode = "enforce" // no mail where it fails
)

// Policy is what a domain publishes about the hosts that take its mail.
type Policy struct {
	Mode   Mode          `json:"mode"`
	MX     []string      `json:"mx,omitempty"` // host names, and "*.example.com"; lower case
	MaxAge time.Duration `json:"max_age"`
}

// maxTextMX bounds what Text tells.
const maxTextMX = 20

// Text writes p as a domain does, its lines apart by "; ".
func (p Policy) Text() string {
	var b strings.Builder
	b.WriteString("version: STSv1; mode: " + string(p.Mode))
	for _, mx := range p.MX[:min(len(p.MX), maxTextMX)] {
		b.WriteString("; mx: " + mx)
	}
	b.WriteString("; max_age: " + strconv.FormatInt(int64(p.MaxAge/time.Second), 10))
	return b.String()
}

// Bounds of a policy. RFC 8461 section 3.2 gives the first.
const (
	maxAge = 31557600 * time.Second
	maxMX  = 100
)

// ErrMalformed says that a policy or its record is not as RFC 8461 has it.
var ErrMalformed = errors.New("malformed policy")

func malformed(format string, v ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, v...))
}

// ParsePolicy reads the policy file of a domain (RFC 8461 section 3.2).
func ParsePolicy(text []byte) (Policy, error) {
	var p Policy
	seen := map[string]bool{}
	for line := range bytes.SplitSeq(text, []byte{'\n'}) {
		key, value, ok := strings.Cut(string(bytes.TrimSuffix(line, []byte{'\r'})), ":")
		if key = strings.TrimSpace(key); !ok && key == "" {
			continue
		}
		if !ok {
			return Policy{}, malformed("a line without a colon")
		}
		if key != "mx" && seen[key] {
			continue // only the first one counts
		}
		seen[key] = true
		if err := p.field(key, strings.TrimSpace(value)); err != nil {
			return Policy{}, err
		}
	}
	switch {
	case !seen["version"]:
		return Policy{}, malformed("no version")
	case !seen["mode"]:
		return Policy{}, malformed("no mode")
	case !seen["max_age"]:
		return Policy{}, malformed("no max_age")
	case p.Mode != None && len(p.MX) == 0:
		return Policy{}, malformed("no mx")
	}
	return p, nil
}

func (p *Policy) field(key, value string) error {
	switch key {
	case "version":
		if value != "STSv1" {
			return malformed("another version than STSv1")
		}
	case "mode":
		switch p.Mode = Mode(value); p.Mode {
		case None, Testing, Enforce:
		default:
			return malformed("an unknown mode")
		}
	case "max_age":
		n, err := strconv.ParseUint(value, 10, 34) // at most 10 digits
		if err != nil || len(value) > 10 {
			return malformed("max_age is no number of seconds")
		}
		p.MaxAge = time.Duration(min(n, uint64(maxAge/time.Second))) * time.Second
	case "mx":
		name := strings.ToLower(strings.TrimSuffix(value, "."))
		if len(p.MX) == maxMX {
			return malformed("more than %d mx", maxMX)
		}
		if !validHost(strings.TrimPrefix(name, "*.")) {
			return malformed("an mx that is no host name")
		}
		p.MX = append(p.MX, name)
	}
	return nil // other keys are for later versions
}

// Match reports whether host is among those that may take the domain's mail. A
// pattern "*.example.com" stands for one label (RFC 8461 section 4.1).
func (p Policy) Match(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	_, parent, _ := strings.Cut(host, ".")
	for _, pattern := range p.MX {
		if suffix, ok := strings.CutPrefix(pattern, "*."); ok && parent != "" && suffix == parent || pattern == host {
			return true
		}
	}
	return false
}

// ParseRecord finds the id in the TXT records of "_mta-sts." and a domain. It
// is empty when the domain has no policy, which it also says by having two (RFC
// 8461 section 3.1).
func ParseRecord(texts []string) string {
	var found []string
	for _, text := range texts {
		version, rest, _ := strings.Cut(text, ";")
		if strings.TrimRight(version, " \t") == "v=STSv1" {
			found = append(found, rest)
		}
	}
	if len(found) != 1 {
		return ""
	}
	for field := range strings.SplitSeq(found[0], ";") {
		key, value, _ := strings.Cut(strings.Trim(field, " \t"), "=")
		if key == "id" {
			if !validID(value) {
				return ""
			}
			return value
		}
	}
	return ""
}

func validID(id string) bool {
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return len(id) > 0 && len(id) <= 32
}

// validHost accepts names in the form that the DNS has them: letters, digits and
// hyphens, with a dot among them.
func validHost(name string) bool {
	folded, err := mail.ParseDomain(name)
	if err != nil || folded != name || !strings.Contains(name, ".") {
		return false
	}
	for _, c := range []byte(name) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && c != '-' && c != '.' {
			return false
		}
	}
	return true
}
