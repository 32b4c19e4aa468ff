// Package gssapi is the SASL mechanism GSSAPI (RFC 4752): logins with Kerberos
// tickets (RFC 4120, RFC 4121), so that a client of a realm needs no password
// here, and we hold none.
//
// It exists because no library that is kept up accepts a Kerberos context.
// Messages and encryption are those of gokrb5; what it does not do is here: the
// checks of a request as RFC 4120 section 3.2.3 asks for them, the reply that
// proves who we are, and the tokens that agree on no security layer.
//
// The other side is here too, for logins of ours at others: [Tickets] gets a
// ticket from a realm, and [Ticket.Client] logs in with it, always asking the
// server to prove who it is.
//
// It promises that only AES is taken, that a request works once, that the realm
// of a user is the one that the ticket says and never the one that the client
// says, that a user can act for nobody else, and that no octets of a client make
// it panic. The keytab may change while we run: see [Acceptor.Reload].
//
// To take another encryption type, add it to encryptionTypes, with the lengths
// that the library does not check.
package gssapi

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"waybill/relay/auth"

	"github.com/emersion/go-sasl"
)

// Options are what an [Acceptor] needs.
type Options struct {
	KeytabFile string        // keys of the service, as kadmin or ktpass writes them
	Service    string        // our principal, such as smtp/mx1.example.com; with @REALM only that realm's keys count
	Realms     []string      // whose users are welcome; empty: those of the realms that the service's keys are of
	MaxSkew    time.Duration // how far clocks may be apart; zero means five minutes (RFC 4120 section 8.2)
	Replays    *Replays      // what was used before; nil means none. It must outlive the Acceptor where another one follows

	// Identify says who a user of a realm is. Its error wraps one of the Err
	// values of package auth.
	Identify func(user, realm string) (auth.Identity, error)
}

// An Acceptor takes Kerberos logins. It is safe for use by many goroutines.
type Acceptor struct {
	opts Options
	keys keys
}

// New reads the keytab.
func New(opts Options) (*Acceptor, error) {
	if opts.MaxSkew == 0 {
		opts.MaxSkew = 5 * time.Minute
	}
	if opts.Replays == nil {
		opts.Replays = NewReplays(0)
	}
	if opts.Identify == nil {
		return nil, errors.New("gssapi: nobody says who the users are")
	}
	a := &Acceptor{opts: opts}
	a.keys.path, a.keys.service = opts.KeytabFile, opts.Service
	if _, err := a.keys.reload(); err != nil {
		return nil, err
	}
	return a, nil
}

// Reload reads the keytab again when it has changed, and reports whether it has.
// After an error the keys stay as they were.
func (a *Acceptor) Reload() (changed bool, err error) { return a.keys.reload() }

// Mechanism is GSSAPI with this Acceptor.
func (a *Acceptor) Mechanism() auth.Mechanism {
	return auth.Mechanism{Name: "GSSAPI", Start: func(p auth.Peer, done func(auth.Identity)) sasl.Server {
		return &server{a: a, peer: p, done: done}
	}}
}

// welcome reports whether users of a realm may log in.
func (a *Acceptor) welcome(realm string) bool {
	if len(a.opts.Realms) > 0 {
		return slices.Contains(a.opts.Realms, realm) // realms are case-sensitive (RFC 4120 section 6.1)
	}
	return slices.Contains(a.keys.realms(), realm)
}

// server is one exchange.
type server struct {
	a    *Acceptor
	peer auth.Peer
	done func(auth.Identity)
	step step
	ctx  *secContext
	name string // of the user, once the ticket was read
}

type step int

const (
	stepToken step = iota // the first token is awaited
	stepEmpty             // an empty response to our token is awaited
	stepLayer             // the client's choice of security layer is awaited
	stepOver
)

// noLayer offers no security layer and no buffer for one (RFC 4752 section 3.3).
var noLayer = []byte{1, 0, 0, 0}

// Next takes the client's next token.
func (s *server) Next(response []byte) (challenge []byte, done bool, err error) {
	was := s.step
	s.step = stepOver // until it went well
	switch was {
	case stepToken:
		if response == nil { // no initial response: ask for it
			s.step = stepToken
			return []byte{}, false, nil
		}
		return s.accept(response)
	case stepEmpty:
		if len(response) > 0 {
			return nil, false, s.fail(fmt.Errorf("%w: a token where none was awaited", auth.ErrMalformed))
		}
		return s.offer()
	case stepLayer:
		if err := s.finish(response); err != nil {
			return nil, false, s.fail(err)
		}
		return nil, true, nil
	case stepOver:
	}
	return nil, false, s.fail(fmt.Errorf("%w: the exchange is over", auth.ErrMalformed))
}

// accept takes the token that begins the context.
func (s *server) accept(token []byte) ([]byte, bool, error) {
	ctx, answer, err := s.a.accept(token, s.peer)
	if ctx != nil {
		s.name = ctx.client.String()
	}
	if err != nil {
		return nil, false, s.fail(err)
	}
	s.ctx = ctx
	if answer == nil {
		return s.offer() // the client does not want us to prove who we are
	}
	s.step = stepEmpty
	return answer, false, nil
}

// offer says that there is no security layer: TLS is ours.
func (s *server) offer() ([]byte, bool, error) {
	token, err := s.ctx.wrap(noLayer)
	if err != nil {
		return nil, false, s.fail(err)
	}
	s.step = stepLayer
	return token, false, nil
}

// finish reads the client's choice, and who it wants to be.
func (s *server) finish(token []byte) error {
	choice, err := s.ctx.unwrap(token)
	if err != nil {
		return err
	}
	if len(choice) < 4 || choice[0] != noLayer[0] {
		return fmt.Errorf("%w: choice of security layer", auth.ErrMalformed)
	}
	id, err := s.a.opts.Identify(s.ctx.client.user, s.ctx.client.realm)
	if err != nil {
		return err
	}
	authz := string(choice[4:])
	if authz != "" && authz != s.ctx.client.String() && authz != s.ctx.client.user && !auth.SameName(authz, id.User) {
		return fmt.Errorf("%w: foreign authorization identity", auth.ErrCredentials)
	}
	if s.done != nil {
		s.done(id)
	}
	return nil
}

// fail makes a Failure of an error.
func (s *server) fail(err error) error {
	name, _ := auth.PrepareName(s.name) // a principal's may be none of a user
	return auth.Fail(name, err)
}
