// Package auth proves who an SMTP client is: SASL mechanisms (RFC 4954, RFC
// 4422) and the stores that hold the users.
//
// It exists so that no other package handles a password. It promises that a
// wrong password, an unknown user and a disabled user cost the same time and are
// told apart for the operator only; that an authorization identity other than
// the user's own is refused; that the memory for password hashing is bounded
// however many clients log in at once; and that no error, log line or transcript
// holds a credential.
//
// To add a mechanism, make a [Mechanism] of it, name it in [Mechanisms], and give
// it to [NewAuthenticator] where the others are given. To add a store of passwords,
// implement [Store]; wrap [ErrCredentials], [ErrUnknownUser] or [ErrUnavailable]
// in what Verify returns.
package auth

import (
	"context"
	"errors"
	"fmt"

	"waybill/relay/policy"
)

// Identity is a user who has proved who they are.
type Identity struct {
	User      string   // the name in the store's spelling
	Senders   []string // what the user may send as: addresses, "@example.com" or "*"
	AnySender bool     // may use any sender address

	// Permissions, when there are any, are the user's own: instead of those of the
	// receive connector, fewer or more. Nil leaves the connector's.
	Permissions *policy.Permissions
}

// A Store knows users.
type Store interface {
	// Verify checks a user's password. Its error wraps one of the Err values of
	// this package; any other error counts as ErrUnavailable.
	Verify(ctx context.Context, user, password string) (Identity, error)
}

// The ways in which a store says no. Clients must not learn whether it was the
// first or the second.
var (
	ErrCredentials = errors.New("wrong credentials")
	ErrUnknownUser = errors.New("unknown user")
	ErrUnavailable = errors.New("authentication is not available")
	ErrMalformed   = errors.New("malformed credentials")
)

// Other ways in which an exchange fails.
var (
	ErrThrottled      = errors.New("too many failed logins")
	ErrChannelBinding = errors.New("channel binding")
	ErrToken          = errors.New("token is not valid")
	ErrExpired        = errors.New("token has expired")
	ErrCertificate    = errors.New("client certificate is not accepted")
	ErrClockSkew      = errors.New("clocks differ by too much")
	ErrReplay         = errors.New("credentials were used before")
	ErrWeak           = errors.New("algorithm is too weak")
	ErrRealm          = errors.New("users of the realm are not welcome")
)

// The reasons of a [Failure]: words of event.AuthFailed.
const (
	ReasonCredentials = "credentials"
	ReasonUnknownUser = "unknown_user"
	ReasonMalformed   = "malformed"
	ReasonCancelled   = "cancelled" // the client sent "*" (RFC 4954 section 4); stated by the session, which alone sees it
	ReasonUnavailable = "unavailable"
	ReasonThrottled   = "throttled"
	ReasonBinding     = "channel_binding"
	ReasonToken       = "token"
	ReasonExpired     = "expired"
	ReasonCertificate = "certificate"
	ReasonClockSkew   = "clock_skew"
	ReasonReplay      = "replay"
	ReasonWeak        = "weak"
	ReasonRealm       = "realm"
)

// reasons are the words for errors; the first that fits is the one.
var reasons = []struct {
	err    error
	reason string
}{
	{ErrUnknownUser, ReasonUnknownUser},
	{ErrCredentials, ReasonCredentials},
	{ErrMalformed, ReasonMalformed},
	{ErrThrottled, ReasonThrottled},
	{ErrChannelBinding, ReasonBinding},
	{ErrExpired, ReasonExpired},
	{ErrToken, ReasonToken},
	{ErrCertificate, ReasonCertificate},
	{ErrClockSkew, ReasonClockSkew},
	{ErrReplay, ReasonReplay},
	{ErrWeak, ReasonWeak},
	{ErrRealm, ReasonRealm},
}

// Failure is why an exchange failed. It is for the operator; the client gets
// the same reply for all reasons except the temporary ones.
type Failure struct { //nolint:errname // an exchange fails; the word is the one of event.AuthFailed
	User   string // as claimed, normalised and bounded; empty when the exchange did not come so far
	Reason string // one of the Reason constants
	Err    error
}

func (f *Failure) Error() string {
	if f.User == "" {
		return fmt.Sprintf("authenticate: %v", f.Err)
	}
	return fmt.Sprintf("authenticate %q: %v", f.User, f.Err)
}

func (f *Failure) Unwrap() error { return f.Err }

// Temporary reports whether the same credentials may be right later: reply 454
// instead of 535.
func (f *Failure) Temporary() bool {
	return f.Reason == ReasonUnavailable || f.Reason == ReasonThrottled
}

// Fail makes a Failure of an error of a store or of a mechanism. An error that
// wraps none of this package's is unavailable.
func Fail(user string, err error) *Failure { return fail(user, err) }

func fail(user string, err error) *Failure {
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return &Failure{User: user, Reason: r.reason, Err: err}
		}
	}
	return &Failure{User: user, Reason: ReasonUnavailable, Err: err}
}
