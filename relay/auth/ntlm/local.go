package ntlm

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/md5" //nolint:gosec // NTLMv2 is made of it
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"strings"
	"time"

	"waybill/relay/auth"
)

// Local checks passwords against the NT hashes of our own users.
type Local struct {
	Hostname string // ours, which becomes the target that clients are told
	// Lookup finds a user's hash. Its error wraps ErrUnknownUser or ErrCredentials.
	Lookup func(name string) (auth.Identity, auth.NTHash, error)
}

// Begin implements [Backend].
func (l Local) Begin(_ context.Context, negotiate []byte) (Exchange, error) {
	flags, err := parseNegotiate(negotiate)
	if err != nil {
		return nil, err
	}
	c := challenge{flags: flags, hostname: l.Hostname, now: time.Now()}
	_, _ = rand.Read(c.nonce[:]) // never fails (Go 1.24)
	return &local{lookup: l.Lookup, nonce: c.nonce, first: bytes.Clone(negotiate), second: c.marshal()}, nil
}

// local is one login.
type local struct {
	lookup        func(name string) (auth.Identity, auth.NTHash, error)
	nonce         [8]byte
	first, second []byte // messages, for the integrity code
}

// Challenge is our own.
func (x *local) Challenge() []byte { return x.second }

// Close has nothing to give back.
func (x *local) Close() error { return nil }

// Account is the user without their domain, unless it is part of our name.
func (x *local) Account(m *Authenticate) string {
	for _, name := range []string{m.User, withDomain(m)} {
		if _, _, err := x.lookup(name); err == nil {
			return prepared(name)
		}
	}
	return prepared(m.User)
}

// prepared is a name as they are compared; one that cannot be ours is empty.
func prepared(name string) string {
	name, _ = auth.PrepareName(name)
	return name
}

// withDomain is a user with a domain that looks like one of mail, or empty: "bob"
// of "example.com" may be our user bob@example.com.
func withDomain(m *Authenticate) string {
	if !strings.Contains(m.Domain, ".") {
		return ""
	}
	return m.User + "@" + strings.TrimSuffix(m.Domain, ".")
}

// Verify compares what the client proves with what the user's hash would prove.
// For a user without a hash it does the same work with an empty one.
func (x *local) Verify(_ context.Context, m *Authenticate, message []byte) (auth.Identity, error) {
	id, hash, err := x.find(m)
	key := mac(hash[:], auth.UTF16(strings.ToUpper(m.User)+m.Domain)) // NTOWFv2 (MS-NLMP section 3.3.2)
	proof := mac(key, x.nonce[:], m.Blob)
	good := subtle.ConstantTimeCompare(proof, m.Proof[:])
	session := mac(key, proof)
	zeroed := bytes.Clone(message)
	var claimed [16]byte
	if m.MIC != nil {
		claimed = *m.MIC
		clear(zeroed[atMIC:micEnd])
	}
	whole := subtle.ConstantTimeCompare(mac(session, x.first, x.second, zeroed), claimed[:])
	switch {
	case err != nil:
		return auth.Identity{}, err
	case good != 1:
		return auth.Identity{}, fmt.Errorf("%w: wrong password", auth.ErrCredentials)
	case m.MIC != nil && whole != 1: // MS-NLMP section 3.2.5.1.2
		return auth.Identity{}, fmt.Errorf("%w: the messages were changed on their way", auth.ErrCredentials)
	}
	return id, nil
}

// find looks for the user as the client names them, and then with their domain.
func (x *local) find(m *Authenticate) (auth.Identity, auth.NTHash, error) {
	id, hash, err := x.lookup(m.User)
	if id2, hash2, err2 := x.lookup(withDomain(m)); err != nil && err2 == nil {
		return id2, hash2, nil
	}
	return id, hash, err
}

// mac is HMAC-MD5 (RFC 2104).
func mac(key []byte, parts ...[]byte) []byte {
	h := hmac.New(md5.New, key)
	for _, p := range parts {
		_, _ = h.Write(p) // never fails
	}
	return h.Sum(nil)
}
