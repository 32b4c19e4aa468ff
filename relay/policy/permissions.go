package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Permissions are the rights of a peer. The zero Permissions allow nothing.
type Permissions struct {
	Submit        bool // may hand in mail for accepted domains
	Relay         bool // may hand in mail for any domain
	AnySender     bool // may, once logged in, use any sender address
	BypassFilters bool // its mail is not filtered
	BypassSize    bool // its mail may be larger than the connector's limit
	KeepHeaders   bool // its mail keeps header fields that are removed from strangers' mail, see TrustedField
}

var permissions = []struct {
	word  string
	field func(*Permissions) *bool
}{
	{"submit", func(p *Permissions) *bool { return &p.Submit }},
	{"relay", func(p *Permissions) *bool { return &p.Relay }},
	{"any_sender", func(p *Permissions) *bool { return &p.AnySender }},
	{"bypass_filters", func(p *Permissions) *bool { return &p.BypassFilters }},
	{"bypass_size", func(p *Permissions) *bool { return &p.BypassSize }},
	{"keep_headers", func(p *Permissions) *bool { return &p.KeepHeaders }},
}

// PermissionWords lists the words that [ParsePermissions] knows.
func PermissionWords() []string {
	words := make([]string, len(permissions))
	for i, p := range permissions {
		words[i] = p.word
	}
	return words
}

// ParsePermissions reads a list of words such as "submit" and "relay".
func ParsePermissions(words []string) (Permissions, error) {
	var p Permissions
	for _, word := range words {
		i := slices.Index(PermissionWords(), word)
		if i < 0 {
			return Permissions{}, fmt.Errorf("unknown permission %q: known are %s", word, strings.Join(PermissionWords(), ", "))
		}
		right := permissions[i].field(&p)
		if *right {
			return Permissions{}, fmt.Errorf("permission %q is given twice", word)
		}
		*right = true
	}
	return p, nil
}

// Words lists the rights that p holds.
func (p Permissions) Words() []string {
	var words []string
	for _, right := range permissions {
		if *right.field(&p) {
			words = append(words, right.word)
		}
	}
	return words
}

func (p Permissions) String() string { return strings.Join(p.Words(), ",") }
