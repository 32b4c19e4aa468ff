package auth

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/secure/precis"
)

// prepareName brings a user name into the form that stores compare: without
// regard to case (RFC 8265 section 3.3, UsernameCaseMapped).
func prepareName(name string) (string, error) {
	if name == "" || len(name) > maxName {
		return "", fmt.Errorf("%w: user name is empty or too long", ErrMalformed)
	}
	if printable(name) && !strings.Contains(name, " ") {
		return strings.ToLower(name), nil
	}
	name, err := precis.UsernameCaseMapped.String(name)
	if err != nil || name == "" {
		return "", fmt.Errorf("%w: character in the user name", ErrMalformed)
	}
	return name, nil
}

// PrepareName brings a user name into the form in which names are compared, and
// which [Peer.Try] wants. Its error wraps ErrMalformed.
func PrepareName(name string) (string, error) { return prepareName(name) }

// preparePassword brings a password into the form that is hashed (RFC 8265
// section 4.2, OpaqueString): the same characters typed on another keyboard are
// the same password.
func preparePassword(password string) (string, error) {
	if password == "" || len(password) > maxPassword {
		return "", fmt.Errorf("%w: password is empty or too long", ErrMalformed)
	}
	if printable(password) {
		return password, nil
	}
	password, err := precis.OpaqueString.String(password)
	if err != nil || password == "" || !utf8.ValidString(password) {
		return "", fmt.Errorf("%w: character in the password", ErrMalformed)
	}
	return password, nil
}

// printable reports whether s is printable ASCII, which the profiles leave as
// it is, case apart.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
