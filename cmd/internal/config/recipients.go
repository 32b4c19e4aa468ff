package config

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"waybill/relay/mail"
)

// Load reads the domain's recipients from their file, or nil when there is no
// file. The result is for policy.Domain.Recipients: it is pure, and compares
// local parts without regard to ASCII case.
func (d AcceptedDomain) Load() (func(mail.Address) bool, error) {
	if d.Recipients.File == "" {
		return nil, nil //nolint:nilnil // no function is what "all recipients" is
	}
	data, err := os.ReadFile(d.Recipients.File)
	if err != nil {
		return nil, fmt.Errorf("read recipients: %w", err)
	}
	known := map[string]bool{}
	var errs []error
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if !strings.Contains(line, "@") {
			line += "@" + d.Domain
		}
		a, err := mail.ParseAddress(line)
		switch {
		case len(errs) >= 20: // enough to see what is wrong
		case err != nil:
			errs = append(errs, fmt.Errorf("%s:%d: %w", d.Recipients.File, n, err))
		default:
			known[recipientKey(a)] = true
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return func(a mail.Address) bool { return known[recipientKey(a)] }, nil
}

func recipientKey(a mail.Address) string { return strings.ToLower(a.Local) + "@" + a.DomainKey() }
