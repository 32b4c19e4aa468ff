package config

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"go.yaml.in/yaml/v3"

	"waybill/relay/auth"
)

// Role is what a token may do. Each role includes those before it.
type Role uint8

// The roles.
const (
	RoleNone     Role = iota // nothing
	RoleViewer               // reads metrics, queues and tracking
	RoleOperator             // acts on the queue
	RoleAdmin                // reads contents
)

var roles = [...]string{"none", "viewer", "operator", "admin"}

func (r Role) String() string {
	if int(r) < len(roles) {
		return roles[r]
	}
	return fmt.Sprintf("role(%d)", uint8(r))
}

// Allows reports whether r includes what.
func (r Role) Allows(what Role) bool { return r >= what }

// UnmarshalText reads viewer, operator or admin.
func (r *Role) UnmarshalText(text []byte) error {
	for i, word := range roles[1:] {
		if string(text) == word {
			*r = Role(i + 1)
			return nil
		}
	}
	return fmt.Errorf("role %.20q is none of viewer, operator, admin", text)
}

// MarshalText writes the role's word.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Token is a caller of the HTTP API.
type Token struct {
	Name string
	Role Role
}

// Tokens are the callers of the HTTP API. The file holds hashes, so that it
// gives nobody a token:
//
//   - name: grafana
//     role: viewer
//     token_sha256: 9f86d081…
//
// A token is long and random, see [NewToken]: a plain hash is enough.
type Tokens struct {
	hashes [][sha256.Size]byte
	tokens []Token
}

// LoadTokens reads a tokens file. It reports all that is wrong with it.
func LoadTokens(path string) (*Tokens, error) {
	data, err := os.ReadFile(path) //nolint:gosec // a file that the configuration names
	if err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	t, err := parseTokens(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

func parseTokens(data []byte) (*Tokens, error) {
	var lines []struct {
		Name   string `yaml:"name"`
		Role   string `yaml:"role"`
		SHA256 string `yaml:"token_sha256"`
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&lines); err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.New("want a list of {name, role, token_sha256}")
	}
	t := &Tokens{}
	var errs []error
	names := map[string]bool{}
	for i, line := range lines {
		var role Role
		hash, err := hex.DecodeString(line.SHA256)
		switch {
		case !nameForm.MatchString(line.Name):
			errs = append(errs, fmt.Errorf("[%d].name: use letters, digits, and . _ -", i))
		case names[line.Name]:
			errs = append(errs, fmt.Errorf("[%d].name: %s is there twice", i, line.Name))
		case role.UnmarshalText([]byte(line.Role)) != nil:
			errs = append(errs, fmt.Errorf("[%d].role: want viewer, operator or admin", i))
		case err != nil || len(hash) != sha256.Size:
			errs = append(errs, fmt.Errorf("[%d].token_sha256: want 64 hexadecimal digits, as sha256sum prints", i))
		default:
			t.hashes = append(t.hashes, [sha256.Size]byte(hash))
			t.tokens = append(t.tokens, Token{line.Name, role})
		}
		names[line.Name] = true
	}
	return t, errors.Join(errs...)
}

// Find tells who holds a token. It takes the same time for all tokens.
func (t *Tokens) Find(token string) (Token, bool) {
	hash := sha256.Sum256([]byte(token))
	found := -1
	for i := range t.hashes {
		if subtle.ConstantTimeCompare(hash[:], t.hashes[i][:]) == 1 {
			found = i
		}
	}
	if found < 0 || token == "" {
		return Token{}, false
	}
	return t.tokens[found], true
}

// NewToken makes a token of 256 random bits, and the hash that goes into the
// tokens file.
func NewToken() (token auth.Secret, hash string) {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails (Go 1.24)
	text := base64.RawURLEncoding.EncodeToString(b)
	sum := sha256.Sum256([]byte(text))
	return auth.NewSecret(text), hex.EncodeToString(sum[:])
}
