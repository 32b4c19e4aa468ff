package directory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"waybill/relay/mail"

	"github.com/go-ldap/ldap/v3"
)

// search finds at most two entries: more than one is as bad as many.
func search(conn *conn, base string, scope int, filter string, attributes []string) ([]*ldap.Entry, error) {
	const most = 2
	got, err := conn.Search(ldap.NewSearchRequest(base, scope, ldap.NeverDerefAliases, most, 0, false, filter, attributes, nil))
	switch {
	case err == nil:
		return got.Entries, nil
	case ldap.IsErrorWithCode(err, ldap.LDAPResultSizeLimitExceeded) && got != nil && len(got.Entries) > 0:
		return got.Entries, nil
	case ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject) && scope == ldap.ScopeBaseObject:
		return nil, nil
	case lost(err):
		return nil, err
	}
	// A base that is not there, or no right to read it, is a mistake of the
	// configuration and says nothing about anybody.
	return nil, &lostError{fmt.Errorf("search below %q: %s", base, reason(err))}
}

// RecipientOptions configure [Recipients].
type RecipientOptions struct {
	Schema Schema
	BaseDN string // below it are the recipients
	Filter string // finds {address}, or {local} and {domain}; empty means the schema's
}

// Recipients answers whether the entries of a directory have an address. Whether
// an account is disabled does not matter: shared mailboxes are disabled accounts.
type Recipients struct {
	c    *Client
	opts RecipientOptions
}

// NewRecipients makes Recipients of c.
func NewRecipients(c *Client, opts RecipientOptions) (*Recipients, error) {
	opts.Filter = cmp.Or(opts.Filter, opts.Schema.RecipientFilter)
	if err := errors.Join(CheckDN(opts.BaseDN), CheckRecipientFilter(opts.Filter)); err != nil {
		return nil, fmt.Errorf("recipients of directory %s: %w", c.opts.Name, err)
	}
	return &Recipients{c: c, opts: opts}, nil
}

// Lookup reports whether an entry has the address. An error says that it cannot
// be told now.
func (r *Recipients) Lookup(ctx context.Context, a mail.Address) (known bool, err error) {
	domain := a.DomainKey()
	filter := template(r.opts.Filter).fill(ldap.EscapeFilter, map[string]string{
		"{address}": mail.Address{Local: a.Local, Domain: domain}.String(), "{local}": a.Local, "{domain}": domain,
	})
	err = r.c.ask(ctx, searching, func(conn *conn) error {
		found, err := search(conn, r.opts.BaseDN, ldap.ScopeWholeSubtree, filter, []string{"1.1"})
		known = len(found) > 0
		return err
	})
	return known, err
}

// reason is a server's refusal in words.
func reason(err error) string {
	if code := activeDirectoryCode(err); code != "" {
		if why, ok := activeDirectoryReasons[code]; ok {
			return why
		}
	}
	return printable(err)
}

// activeDirectoryReasons are what Active Directory means by the codes in the
// text of a refused bind.
var activeDirectoryReasons = map[string]string{
	"525": "no such user",
	"52e": "wrong password",
	"530": "not allowed at this time",
	"531": "not allowed at this computer",
	"532": "the password has expired",
	"533": "the account is disabled",
	"701": "the account has expired",
	"773": "the password must be changed first",
	"775": "the account is locked",
}

// activeDirectoryCode is the code in a text such as "80090308: LdapErr:
// DSID-0C09042A, comment: AcceptSecurityContext error, data 52e, v3839", or empty.
func activeDirectoryCode(err error) string {
	e, ok := errors.AsType[*ldap.Error](err)
	if !ok || e.Err == nil || !strings.Contains(e.Err.Error(), "AcceptSecurityContext") {
		return ""
	}
	_, rest, ok := strings.Cut(e.Err.Error(), " data ")
	code, _, _ := strings.Cut(rest, ",")
	if !ok || len(code) > 4 {
		return ""
	}
	return strings.ToLower(strings.TrimSpace(code))
}

// printable is what an error says, bounded and without what could break a line.
func printable(err error) string {
	s := strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, err.Error()), "?")
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}
