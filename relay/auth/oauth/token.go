package oauth

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"waybill/relay/auth"
)

// Bounds of a token, chosen by taste; a line of SMTP holds 9 KiB of it.
const (
	maxToken   = 16 << 10
	maxSenders = 100
)

// errScope is why a token that is good otherwise is not for this.
var errScope = fmt.Errorf("%w: a scope is missing", auth.ErrToken)

// types are what a token may say that it is: nothing, the generic word, or an
// access token (RFC 9068 section 2.1). What is made for other uses is refused.
var types = []string{"", "jwt", "at+jwt", "application/at+jwt"}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %w", auth.ErrToken, fmt.Errorf(format, args...))
}

// Verify checks a token and says whose it is. Its errors wrap those of package
// auth, and hold no part of the token's signature.
func (v *Verifier) Verify(ctx context.Context, token string) (auth.Identity, error) {
	var none auth.Identity
	if len(token) > maxToken {
		return none, fmt.Errorf("%w: the token is too long", auth.ErrMalformed)
	}
	i, t, err := v.open(token)
	if err != nil {
		return none, err
	}
	var std jwt.Claims
	all := map[string]any{}
	if err := i.signed(ctx, t, &std, &all); err != nil {
		return none, err
	}
	if err := i.check(std, all); err != nil {
		return none, err
	}
	return v.identity(i, all)
}

// open reads a token as far as that can be done without a key: who says that it
// is from them, and whether they may use its algorithm.
func (v *Verifier) open(token string) (*issuer, *jwt.JSONWebToken, error) {
	every := make([]jose.SignatureAlgorithm, 0, len(Algorithms()))
	for _, a := range Algorithms() {
		every = append(every, jose.SignatureAlgorithm(a))
	}
	t, err := jwt.ParseSigned(token, every)
	if err != nil || len(t.Headers) != 1 {
		if _, ok := errors.AsType[*jose.ErrUnexpectedSignatureAlgorithm](err); ok {
			return nil, nil, refuse("the algorithm of its signature is not taken")
		}
		return nil, nil, fmt.Errorf("%w: not a signed JSON Web Token", auth.ErrMalformed)
	}
	typ, _ := t.Headers[0].ExtraHeaders[jose.HeaderType].(string)
	if !slices.Contains(types, strings.ToLower(typ)) {
		return nil, nil, refuse("its type is not that of an access token")
	}
	var claims struct {
		Issuer string `json:"iss"`
	}
	if err := t.UnsafeClaimsWithoutVerification(&claims); err != nil {
		return nil, nil, fmt.Errorf("%w: the claims are not JSON", auth.ErrMalformed)
	}
	i := v.issuers[claims.Issuer]
	switch {
	case i == nil:
		return nil, nil, refuse("issuer %.200q is not configured", claims.Issuer)
	case !slices.Contains(i.algorithms, jose.SignatureAlgorithm(t.Headers[0].Algorithm)):
		return nil, nil, refuse("the algorithm %s of its signature is not taken", t.Headers[0].Algorithm)
	}
	return i, t, nil
}

// signed reads the claims of a token, if one of the issuer's keys has signed it.
func (i *issuer) signed(ctx context.Context, t *jwt.JSONWebToken, claims ...any) error {
	header := t.Headers[0]
	found, err := i.keys.find(ctx, header.KeyID, header.Algorithm)
	if err != nil {
		return err
	}
	for _, key := range found {
		if err = t.Claims(key, claims...); err == nil {
			return nil
		}
	}
	if err != nil && !errors.Is(err, jose.ErrCryptoFailure) {
		return refuse("its claims cannot be read, or its key is for another algorithm")
	}
	return refuse("its signature is not the issuer's")
}

// check looks at the claims.
func (i *issuer) check(std jwt.Claims, all map[string]any) error {
	err := std.ValidateWithLeeway(jwt.Expected{Issuer: i.Issuer.Issuer, AnyAudience: i.Audiences, Time: time.Now()}, i.Skew)
	switch {
	case errors.Is(err, jwt.ErrExpired):
		return fmt.Errorf("%w at %s", auth.ErrExpired, std.Expiry.Time().UTC().Format(time.RFC3339))
	case errors.Is(err, jwt.ErrInvalidAudience):
		return refuse("it is for %.200q and not for us", []string(std.Audience))
	case err != nil:
		return refuse("%s", strings.TrimPrefix(err.Error(), "go-jose/go-jose/jwt: "))
	case std.Expiry == nil:
		return refuse("it has no end")
	}
	scopes := slices.Concat(words(all["scope"]), words(all["scp"]))
	for _, s := range i.Scopes {
		if !slices.Contains(scopes, s) {
			return fmt.Errorf("%w: %s", errScope, s)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(i.Claims)) {
		if !slices.Contains(texts(all[name]), i.Claims[name]) {
			return refuse("claim %s is not as it should be", name)
		}
	}
	return nil
}

// identity is the user of a token that is good.
func (v *Verifier) identity(i *issuer, all map[string]any) (auth.Identity, error) {
	var none auth.Identity
	name, _ := all[i.UserClaim].(string)
	if name == "" {
		return none, refuse("it has no claim %s", i.UserClaim)
	}
	if i.UserClaim == "email" {
		// Whoever can type any address into their profile is not its owner.
		switch all["email_verified"] {
		case nil, true, "true":
		default:
			return none, refuse("the issuer has not verified the user's address")
		}
	}
	if _, err := auth.PrepareName(name); err != nil {
		return none, refuse("claim %s is not a user name", i.UserClaim)
	}
	id := auth.Identity{User: name}
	if v.opts.Users != nil {
		known, err := v.opts.Users.Lookup(name)
		switch {
		case err == nil:
			id = known
		case !errors.Is(err, auth.ErrUnknownUser) || i.KnownUsers:
			return none, err
		}
	} else if i.KnownUsers {
		return none, auth.ErrUnknownUser
	}
	id.Senders = slices.Concat(id.Senders, i.Senders)
	for _, s := range texts(all[i.SendersClaim]) {
		if i.SendersClaim != "" && len(id.Senders) < maxSenders && s != "*" && auth.CheckSender(s) == nil {
			id.Senders = append(id.Senders, s)
		}
	}
	return id, nil
}

// texts are the strings of a claim: itself, or those in its list.
func texts(claim any) (list []string) {
	switch c := claim.(type) {
	case string:
		return []string{c}
	case []any:
		for _, item := range c {
			if s, ok := item.(string); ok {
				list = append(list, s)
			}
		}
	}
	return list
}

// words are the scopes of a claim: a list, or a text with spaces (RFC 8693
// section 4.2).
func words(claim any) (list []string) {
	for _, s := range texts(claim) {
		list = append(list, strings.Fields(s)...)
	}
	return list
}
