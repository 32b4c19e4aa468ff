package auth

import (
	"errors"
	"fmt"
	"strings"

	"waybill/relay/mail"
)

// Proved turns users whom somebody else has vouched for, such as a Kerberos
// realm or a Windows domain, into identities. What it decides is who a user is
// to us and what they may send as; that they are who they say must have been
// proved before.
type Proved struct {
	Format  string   // our name for the user: text with {user} and {domain}, the latter in lower case; empty means "{user}"
	Senders []string // what users may send as whom Users does not know: such text again; empty: there are no such users
	Users   *Users   // the user file, whose word on a user counts before Senders; may be nil
}

// Check reports what is wrong with Format and Senders.
func (p Proved) Check() error {
	errs := []error{checkFormat(p.Format)}
	for _, s := range p.Senders {
		errs = append(errs, checkFormat(s))
		if _, err := p.sender(s, "user", "example.com"); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func checkFormat(format string) error {
	rest := fill(format, "", "")
	if strings.ContainsAny(rest, "{}") {
		return fmt.Errorf("%q: only {user} and {domain} are replaced", format)
	}
	return nil
}

// fill replaces the words of a format.
func fill(format, user, domain string) string {
	return strings.NewReplacer("{user}", user, "{domain}", strings.ToLower(domain)).Replace(format)
}

// Name is our name for a user of a domain.
func (p Proved) Name(user, domain string) (string, error) {
	format := p.Format
	if format == "" {
		format = "{user}"
	}
	if user == "" || strings.Contains(user, "@") {
		// An "@" could make a user of one domain look like one of another.
		return "", fmt.Errorf("%w: user name", ErrMalformed)
	}
	return prepareName(fill(format, user, domain))
}

// Identity says who a user of a domain is.
func (p Proved) Identity(user, domain string) (Identity, error) {
	name, err := p.Name(user, domain)
	if err != nil {
		return Identity{}, err
	}
	if p.Users != nil {
		id, err := p.Users.Lookup(name)
		if err == nil || !errors.Is(err, ErrUnknownUser) {
			return id, err
		}
	}
	if len(p.Senders) == 0 {
		return Identity{}, fmt.Errorf("%w: %s is not in the user file", ErrUnknownUser, name)
	}
	id := Identity{User: name}
	for _, s := range p.Senders {
		sender, err := p.sender(s, user, domain)
		if err != nil {
			return Identity{}, fmt.Errorf("%w: %w", ErrCredentials, err)
		}
		id.Senders = append(id.Senders, sender)
	}
	return id, nil
}

// sender fills in what a user may send as. A name that was chosen elsewhere must
// not widen that: it can only be part of one address.
func (p Proved) sender(format, user, domain string) (string, error) {
	s := fill(format, user, domain)
	if !strings.Contains(format, "{user}") {
		return s, CheckSender(s)
	}
	if a, err := mail.ParseAddress(s); err != nil || a.Domain == "" || strings.ContainsAny(user, `"@*<>`) {
		return "", fmt.Errorf("%q is no address to send as", s)
	}
	return s, nil
}

// SameName reports whether two names are those of one user: an authorization
// identity must be the user's own.
func SameName(a, b string) bool {
	x, err1 := prepareName(a)
	y, err2 := prepareName(b)
	return err1 == nil && err2 == nil && x == y
}
