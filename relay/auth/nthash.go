package auth

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"unicode/utf16"

	"golang.org/x/crypto/md4" //nolint:gosec,staticcheck // MS-NLMP section 3.3.1 asks for it
)

// NTHash is what NTLM knows of a password (MS-NLMP section 3.3.2, NTOWF). Whoever
// has it can log in with NTLM as the user, so that it is as secret as the
// password.
type NTHash [16]byte

// NewNTHash hashes a password.
func NewNTHash(password string) NTHash {
	h := md4.New()                  //nolint:gosec // as above
	_, _ = h.Write(UTF16(password)) // never fails
	return NTHash(h.Sum(nil))
}

// parseNTHash reads 32 hexadecimal digits.
func parseNTHash(s string) (*NTHash, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(NTHash{}) {
		return nil, errors.New("want 32 hexadecimal digits")
	}
	h := NTHash(b)
	return &h, nil
}

// hexText is the form that the user file has.
func (h NTHash) hexText() string { return hex.EncodeToString(h[:]) }

// String is "[secret]".
func (NTHash) String() string { return masked }

// GoString is "[secret]".
func (NTHash) GoString() string { return masked }

// UTF16 encodes text in UTF-16, little end first, as NTLM does.
func UTF16(text string) []byte {
	var b []byte
	for _, c := range utf16.Encode([]rune(text)) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return b
}

// NTLM gives the hash of a user who may log in with NTLM. The error is the one
// that an exchange with a wrong password would fail with too: it does not tell
// whether the user is unknown, disabled or without a hash, except to the
// operator.
func (u *Users) NTLM(name string) (Identity, NTHash, error) {
	name, err := prepareName(name)
	if err != nil {
		return Identity{}, NTHash{}, err
	}
	entry, known := u.table.Load().users[name]
	switch {
	case !known:
		return Identity{}, NTHash{}, ErrUnknownUser
	case entry.nt == nil:
		return Identity{}, NTHash{}, fmt.Errorf("%w: the user has no NT hash", ErrCredentials)
	}
	id, err := u.Lookup(name)
	return id, *entry.nt, err
}
