package auth

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
)

// Secret holds a password or a key. It cannot be printed, logged or marshalled:
// every such way gives "[secret]". The zero Secret is empty.
//
// The text is behind a pointer because package fmt reads unexported fields of
// other structs without asking their methods.
type Secret struct{ text *string }

const masked = "[secret]"

// NewSecret keeps text as a Secret.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{&text}
}

// Expose returns the text. Each call is a place to look at in a review.
func (s Secret) Expose() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero reports whether the secret is empty.
func (s Secret) IsZero() bool { return s.text == nil }

// Equal compares two secrets in a time that does not depend on their text.
func (s Secret) Equal(t Secret) bool {
	a, b := sha256.Sum256([]byte(s.Expose())), sha256.Sum256([]byte(t.Expose()))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// String is "[secret]", or empty for the zero Secret.
func (s Secret) String() string {
	if s.IsZero() {
		return ""
	}
	return masked
}

// Format writes [Secret.String] whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalText writes [Secret.String].
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalJSON writes [Secret.String] as a JSON string.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + s.String() + `"`), nil }

// MarshalYAML writes [Secret.String].
func (s Secret) MarshalYAML() (any, error) { return s.String(), nil }

// LogValue is [Secret.String].
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
