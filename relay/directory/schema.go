package directory

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"waybill/relay/mail"

	"github.com/go-ldap/ldap/v3"
)

// Schema is what a kind of directory calls things.
type Schema struct {
	Name             string
	UserFilter       string   // finds a user by {user}
	UserAttribute    string   // the user's name
	SenderAttributes []string // the user's addresses
	RecipientFilter  string   // finds a recipient by {address}
	nested           bool     // the server follows groups within groups (1.2.840.113556.1.4.1941)
}

// Schemas lists the kinds of directories that are known; the first is for those
// that are none of the others.
func Schemas() []Schema {
	return []Schema{
		{
			Name:             "generic",
			UserFilter:       "(|(uid={user})(mail={user}))",
			UserAttribute:    "uid",
			SenderAttributes: []string{"mail", "mailAlternateAddress"},
			RecipientFilter:  "(|(mail={address})(mailAlternateAddress={address})(mailLocalAddress={address}))",
		},
		{
			Name:             "active_directory",
			UserFilter:       "(&(objectCategory=person)(objectClass=user)(|(sAMAccountName={user})(userPrincipalName={user})(mail={user})))",
			UserAttribute:    "sAMAccountName",
			SenderAttributes: []string{"mail", "proxyAddresses"},
			RecipientFilter:  "(|(mail={address})(proxyAddresses=smtp:{address}))",
			nested:           true,
		},
	}
}

// FindSchema finds a schema by its name; the empty name is the first.
func FindSchema(name string) (Schema, bool) {
	all := Schemas()
	if name == "" {
		return all[0], true
	}
	i := slices.IndexFunc(all, func(s Schema) bool { return s.Name == name })
	if i < 0 {
		return Schema{}, false
	}
	return all[i], true
}

var placeholder = regexp.MustCompile(`\{[^{}]*\}`)

// template is a text with placeholders.
type template string

// check reports what is wrong with t: each placeholder must be known, and one of
// those that identify must be there, or everybody would be the same.
func (t template) check(known []string, identify ...string) error {
	found := placeholder.FindAllString(string(t), -1)
	for _, f := range found {
		if !slices.Contains(known, f) {
			return fmt.Errorf("unknown placeholder %s: known are %s", f, strings.Join(known, ", "))
		}
	}
	if !slices.ContainsFunc(identify, func(p string) bool { return slices.Contains(found, p) }) {
		return fmt.Errorf("without %s it would be the same for everybody", strings.Join(identify, " or "))
	}
	return nil
}

// fill replaces the placeholders with values, each escaped.
func (t template) fill(escape func(string) string, values map[string]string) string {
	return placeholder.ReplaceAllStringFunc(string(t), func(f string) string { return escape(values[f]) })
}

var (
	userWords    = []string{"{user}"}
	addressWords = []string{"{address}", "{local}", "{domain}"}
)

// CheckUserFilter reports what is wrong with a filter that finds users.
func CheckUserFilter(filter string) error { return checkFilter(filter, userWords, "{user}") }

// CheckRecipientFilter reports what is wrong with a filter that finds recipients.
func CheckRecipientFilter(filter string) error {
	return checkFilter(filter, addressWords, "{address}", "{local}")
}

func checkFilter(filter string, known []string, identify ...string) error {
	if err := template(filter).check(known, identify...); err != nil {
		return err
	}
	if _, err := ldap.CompileFilter(placeholder.ReplaceAllString(filter, "x")); err != nil {
		return fmt.Errorf("not a filter (RFC 4515): %w", err)
	}
	return nil
}

// CheckUserName reports what is wrong with a template for the name that users
// are bound as.
func CheckUserName(name string) error {
	return template(name).check(userWords, "{user}")
}

// CheckDN reports what is wrong with a distinguished name (RFC 4514).
func CheckDN(dn string) error {
	if _, err := ldap.ParseDN(dn); err != nil || dn == "" {
		return fmt.Errorf("%.100q is not a distinguished name, such as ou=people,dc=example,dc=com", dn)
	}
	return nil
}

// bindName is the name that a user is bound as: a distinguished name, or what
// Active Directory takes as well, user@domain and DOMAIN\user.
func bindName(t template, user string) (string, error) {
	values := map[string]string{"{user}": user}
	if CheckDN(placeholder.ReplaceAllString(string(t), "x")) == nil {
		return t.fill(ldap.EscapeDN, values), nil
	}
	if strings.ContainsAny(user, `@\/"[]:;|=,+*?<>`) { // none of them can be in a sAMAccountName
		return "", errors.New("the user name has a character that no account name has")
	}
	return t.fill(func(s string) string { return s }, values), nil
}

// addresses picks the addresses out of the values of attributes. Those of
// proxyAddresses begin with their kind: "SMTP:" the primary one, "smtp:" others,
// "sip:", "x500:" and so on what is no address of mail. Patterns are left out:
// what a sender may use is not the user's to write.
func addresses(values []string) []string {
	var list []string
	for _, v := range values {
		if kind, rest, ok := strings.Cut(v, ":"); ok {
			if !strings.EqualFold(kind, "smtp") {
				continue
			}
			v = rest
		}
		a, err := mail.ParseAddress(v)
		if err != nil || a.Domain == "" || a.Local == "*" || a.Local == "" {
			continue
		}
		if key := a.Key(); len(list) < maxSenders && !slices.Contains(list, key) {
			list = append(list, key)
		}
	}
	return list
}

// maxSenders bounds what one user's entry can cost.
const maxSenders = 500
