// Package oauth lets clients log in with OAuth 2.0 access tokens: the SASL
// mechanisms OAUTHBEARER (RFC 7628) and XOAUTH2, which is its older form.
//
// It exists so that the relay needs no passwords where an identity provider has
// them. A token is a JSON Web Token (RFC 7519, RFC 9068) that a configured issuer
// has signed; it is checked here, and nobody is asked. It promises that only
// algorithms with a public key are taken, whatever a token says of itself (RFC
// 8725); that a token is for us (audience), of now (expiry) and of a user whom
// its issuer may name; that the keys of an issuer outlive its outage, and that
// nobody can make us ask for them more often than now and then; and that no
// error holds a token.
//
// To add a condition on tokens, add a field to [Issuer] and a check to
// Verifier.Verify; to add a place where keys come from, see keys.go.
package oauth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/go-jose/go-jose/v4"

	"waybill/relay/auth"
	"waybill/relay/event"
)

// Users knows more about users than their tokens tell. Its error for a user that
// it does not know wraps [auth.ErrUnknownUser].
type Users interface {
	Lookup(user string) (auth.Identity, error)
}

// Options configure a Verifier.
type Options struct {
	Issuers []Issuer
	Users   Users // what else is known of users; nil: nothing
	Emitter event.Emitter
}

// Issuer is who signs tokens, and what its tokens must say.
type Issuer struct {
	Issuer    string   // claim "iss", to the letter
	Audiences []string // claim "aud" must have one of them

	// Where its keys are: a file or a URL with a JSON Web Key Set (RFC 7517), or
	// when there is neither, where its OpenID configuration says.
	JWKSFile string
	JWKSURL  string
	CAFile   string // PEM; authorities that the URLs' certificates may be from instead of the system's

	UserClaim    string            // which claim is the user's name
	SendersClaim string            // which claim lists the user's sender addresses; empty: none
	Senders      []string          // what every user of this issuer may send as
	Scopes       []string          // that a token must have, all of them
	Claims       map[string]string // that a token must have: a value that is this, or a list with it
	KnownUsers   bool              // only users that Users knows
	Algorithms   []string          // which of [Algorithms] are taken; empty: all
	Skew         time.Duration     // by how much clocks may differ; zero means a minute
}

// Algorithms lists the signatures that are taken. There are none without a key,
// and none whose key is a secret (RFC 8725 section 3.1).
func Algorithms() []string {
	return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
}

// A Verifier checks tokens. It is safe for use by many goroutines.
type Verifier struct {
	opts    Options
	issuers map[string]*issuer
	order   []*issuer
}

type issuer struct {
	Issuer
	algorithms []jose.SignatureAlgorithm
	keys       *keys
}

// New checks opts. It reads the keys that are in files; the others come with
// [Verifier.Refresh], or with the first token.
func New(opts Options) (*Verifier, error) {
	v := &Verifier{opts: opts, issuers: map[string]*issuer{}}
	var errs []error
	for _, i := range opts.Issuers {
		if err := v.add(i); err != nil {
			errs = append(errs, fmt.Errorf("token issuer %q: %w", i.Issuer, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return v, nil
}

func (v *Verifier) add(i Issuer) error {
	switch {
	case i.Issuer == "":
		return errors.New("it has no name")
	case v.issuers[i.Issuer] != nil:
		return errors.New("it is there twice")
	case len(i.Audiences) == 0 || slices.Contains(i.Audiences, ""):
		return errors.New("no audience: tokens for anybody else would be taken")
	case i.UserClaim == "":
		return errors.New("no claim is the user's name")
	}
	if i.Skew <= 0 {
		i.Skew = time.Minute
	}
	if len(i.Algorithms) == 0 {
		i.Algorithms = Algorithms()
	}
	is := &issuer{Issuer: i}
	for _, a := range i.Algorithms {
		if !slices.Contains(Algorithms(), a) {
			return fmt.Errorf("algorithm %q is none of %s", a, strings.Join(Algorithms(), ", "))
		}
		is.algorithms = append(is.algorithms, jose.SignatureAlgorithm(a))
	}
	for _, s := range i.Senders {
		if err := auth.CheckSender(s); err != nil {
			return err
		}
	}
	var err error
	if is.keys, err = newKeys(i, v.opts.Emitter); err != nil {
		return err
	}
	v.issuers[i.Issuer] = is
	v.order = append(v.order, is)
	return nil
}

// Refresh reads the keys whose time has come. It is to be called every few
// seconds, beside whatever else happens: it waits for those who have the keys.
// What goes wrong is stated as a fact.
func (v *Verifier) Refresh(ctx context.Context) {
	var all sync.WaitGroup
	for _, i := range v.order {
		if i.keys.due() {
			all.Go(func() { i.keys.refresh(ctx) })
		}
	}
	all.Wait()
}

// Mechanisms are OAUTHBEARER and XOAUTH2.
func (v *Verifier) Mechanisms() []auth.Mechanism {
	mechanism := func(name string, old bool) auth.Mechanism {
		return auth.Mechanism{Name: name, Plaintext: true, Start: func(p auth.Peer, done func(auth.Identity)) sasl.Server {
			return &exchange{verifier: v, peer: p, done: done, old: old}
		}}
	}
	return []auth.Mechanism{mechanism("OAUTHBEARER", false), mechanism("XOAUTH2", true)}
}
