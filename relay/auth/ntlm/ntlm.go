// Package ntlm is the SASL mechanism NTLM (MS-SMTPNTLM, MS-NLMP), for clients
// that know nothing newer.
//
// It exists because no library has the server's side. It is legacy: nothing
// hides the fact that passwords with an MD4 hash are behind it, and a connector
// offers it only when it names it, and under TLS only.
//
// It promises that only NTLMv2 is taken; that a message integrity code and a
// channel binding, where the client sends them, are checked; that an unknown user
// costs as much as a wrong password; and that no octets of a client make it
// panic. Passwords are checked against the NT hashes of our own users, see
// [Local], or by a domain that Samba's helper asks, see [Helper].
//
// To check them elsewhere, implement [Backend].
package ntlm

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"waybill/relay/auth"

	"github.com/emersion/go-sasl"
)

// verifyTimeout bounds the wait for a backend.
const verifyTimeout = 15 * time.Second

// A Backend knows passwords.
type Backend interface {
	// Begin answers a client's first message with a challenge.
	Begin(ctx context.Context, negotiate []byte) (Exchange, error)
}

// An Exchange is one login at a Backend.
type Exchange interface {
	// Challenge is the message to the client.
	Challenge() []byte
	// Account is the user that a client claims to be, in the form in which names
	// are compared: what failures are counted by.
	Account(m *Authenticate) string
	// Verify checks the client's last message, which is well-formed NTLMv2. Its
	// error wraps one of the Err values of package auth.
	Verify(ctx context.Context, m *Authenticate, message []byte) (auth.Identity, error)
	// Close gives back what the exchange holds. It may be called at any time, and
	// more than once.
	io.Closer
}

// Mechanism is NTLM with a backend.
func Mechanism(b Backend) auth.Mechanism {
	return auth.Mechanism{Name: "NTLM", NeedsTLS: true, Legacy: true, Start: func(p auth.Peer, done func(auth.Identity)) sasl.Server {
		return &server{backend: b, peer: p, done: done}
	}}
}

// server is one exchange.
type server struct {
	backend Backend
	peer    auth.Peer
	done    func(auth.Identity)

	mu       sync.Mutex // Close may come while Next waits
	exchange Exchange
	over     bool
}

// Next takes the client's messages: NEGOTIATE, then AUTHENTICATE.
func (s *server) Next(response []byte) (challenge []byte, done bool, err error) {
	s.mu.Lock()
	exchange, over := s.exchange, s.over
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), verifyTimeout)
	defer cancel()
	switch {
	case over:
		return nil, false, auth.Fail("", fmt.Errorf("%w: the exchange is over", auth.ErrMalformed))
	case exchange == nil && len(response) == 0:
		if response == nil { // no initial response: ask for it
			return []byte{}, false, nil
		}
		s.end()
		return nil, false, auth.Fail("", fmt.Errorf("%w: no message", auth.ErrMalformed))
	case exchange == nil:
		challenge, err := s.begin(ctx, response)
		if err != nil {
			s.end()
			return nil, false, auth.Fail("", err)
		}
		return challenge, false, nil
	}
	defer s.end()
	m, err := ParseAuthenticate(response)
	if err != nil {
		name := ""
		if m != nil {
			name = exchange.Account(m)
		}
		return nil, false, auth.Fail(name, err)
	}
	id, err := s.verify(ctx, exchange, m, response)
	if err != nil {
		return nil, false, auth.Fail(exchange.Account(m), err)
	}
	if s.done != nil {
		s.done(id)
	}
	return nil, true, nil
}

func (s *server) begin(ctx context.Context, message []byte) ([]byte, error) {
	if _, err := parseNegotiate(message); err != nil {
		return nil, err
	}
	x, err := s.backend.Begin(ctx, message)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		_ = x.Close()
		return nil, fmt.Errorf("%w: the exchange is over", auth.ErrMalformed)
	}
	s.exchange = x
	return x.Challenge(), nil
}

func (s *server) verify(ctx context.Context, x Exchange, m *Authenticate, message []byte) (auth.Identity, error) {
	if err := s.peer.Try(x.Account(m)); err != nil {
		return auth.Identity{}, err
	}
	id, err := x.Verify(ctx, m, message)
	if err != nil {
		return auth.Identity{}, err
	}
	// The proof covers the binding, so that it is genuine now.
	return id, s.peer.CheckGSSBinding(m.Binding)
}

// end is the end of the exchange.
func (s *server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	if s.exchange != nil {
		_ = s.exchange.Close() // there is nobody to tell
	}
}

// Close ends the exchange wherever it is.
func (s *server) Close() error {
	s.end()
	return nil
}
