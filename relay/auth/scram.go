package auth

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/emersion/go-sasl"
	"github.com/xdg-go/scram"
)

// SCRAM are SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677) for the
// users of a file: those whose keys are stored.
//
// The secret makes up the salts of users that there are not. It should outlive
// the process: who asks twice must get the same salt.
func SCRAM(u *Users, secret []byte) []Mechanism {
	start := func(name string, isPlus bool) Mechanism {
		return Mechanism{Name: name, NeedsTLS: isPlus, Start: func(p Peer, done func(Identity)) sasl.Server {
			return &scramServer{users: u, secret: secret, peer: p, done: done, plus: isPlus}
		}}
	}
	return []Mechanism{start(scramSHA256, false), start(scramSHA256+plus, true)}
}

const scramSHA256 = "SCRAM-SHA-256"

// scramServer is one exchange.
type scramServer struct {
	users  *Users
	secret []byte
	peer   Peer
	done   func(Identity)
	plus   bool

	step  int // 0 nothing yet, 1 proof asked, 2 our own proof shown, 3 over
	conv  *scram.ServerConversation
	user  string // as claimed, prepared
	entry userEntry
	known bool
	err   error // why there are no keys
}

// Next takes client-first-message, client-final-message, and the empty answer
// to ours, which in SMTP has no other way to come before the end.
func (x *scramServer) Next(response []byte) (challenge []byte, done bool, err error) {
	if x.step == 0 && response == nil { // no initial response: ask for it
		return []byte{}, false, nil
	}
	step := x.step
	x.step++
	switch step {
	case 0:
		challenge, err = x.first(response)
	case 1:
		challenge, err = x.final(response)
	case 2:
		if len(response) > 0 {
			err = fmt.Errorf("%w: answer to the server's proof", ErrMalformed)
			break
		}
		id := x.entry.id
		id.Senders = slices.Clone(id.Senders)
		if x.done != nil {
			x.done(id)
		}
		return nil, true, nil
	default:
		err = errUnexpected
	}
	if err != nil {
		x.step = 3
		return nil, false, fail(x.user, err)
	}
	return challenge, false, nil
}

// first answers with salt and iterations, whether or not there is such a user.
func (x *scramServer) first(response []byte) ([]byte, error) {
	server, err := scram.SHA256.NewServer(x.keys)
	if err != nil {
		return nil, err
	}
	if x.conv, err = x.conversation(server, response); err != nil {
		return nil, err
	}
	answer, err := x.conv.Step(string(response))
	switch {
	case x.err != nil:
		return nil, x.err
	case err != nil: // the library's words quote what the client sent
		return nil, fmt.Errorf("%w: first message", ErrMalformed)
	}
	if authz := x.conv.AuthzID(); authz != "" {
		if other, err := prepareName(authz); err != nil || other != x.user {
			return nil, fmt.Errorf("%w: foreign authorization identity", ErrCredentials)
		}
	}
	return []byte(answer), nil
}

// conversation begins one by what the client says of channel binding (RFC 5802
// section 6).
func (x *scramServer) conversation(server *scram.Server, response []byte) (*scram.ServerConversation, error) {
	flag, _, _ := bytes.Cut(response, []byte{','})
	kind, binds := bytes.CutPrefix(flag, []byte("p="))
	switch {
	case binds && !x.plus:
		return nil, fmt.Errorf("%w: it was used with a mechanism that has none", ErrChannelBinding)
	case x.plus && !binds:
		return nil, fmt.Errorf("%w: it was not used with a mechanism that needs it", ErrChannelBinding)
	case binds:
		data, err := x.peer.ChannelBinding(string(kind))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrChannelBinding, err)
		}
		return server.NewConversationWithChannelBindingRequired(scram.ChannelBinding{Type: scram.ChannelBindingType(kind), Data: data}), nil
	case string(flag) == "y" && slices.Contains(x.peer.Offered, scramSHA256+plus):
		// The client would have bound, had it seen that we can: somebody took the offer away.
		return nil, fmt.Errorf("%w: the client did not see that it is offered, as when somebody is in the middle", ErrChannelBinding)
	}
	return server.NewConversation(), nil
}

// keys looks up the keys of a user. One that does not exist has keys too, which
// no password fits.
func (x *scramServer) keys(name string) (scram.StoredCredentials, error) {
	var none scram.StoredCredentials
	if x.user, x.err = prepareName(name); x.err != nil {
		return none, x.err
	}
	if x.err = x.peer.Try(x.user); x.err != nil {
		return none, x.err
	}
	t := x.users.table.Load()
	x.entry, x.known = t.users[x.user]
	k := x.entry.scram
	if k == nil {
		k = t.fakeKeys(x.secret, x.user)
	}
	return scram.StoredCredentials{KeyFactors: scram.KeyFactors{Salt: string(k.salt), Iters: k.iterations}, StoredKey: k.stored, ServerKey: k.serverKey}, nil
}

// final checks the client's proof and answers with ours.
func (x *scramServer) final(response []byte) ([]byte, error) {
	answer, err := x.conv.Step(string(response))
	switch {
	case err != nil && answer == "": // the library's words quote what the client sent
		return nil, fmt.Errorf("%w: final message", ErrMalformed)
	case answer == scram.ErrChannelBindingsDontMatch:
		return nil, fmt.Errorf("%w: the client saw another channel, as when somebody is in the middle", ErrChannelBinding)
	case !x.known:
		return nil, ErrUnknownUser
	case x.entry.scram == nil:
		return nil, fmt.Errorf("%w: no SCRAM keys are stored for the user", ErrCredentials)
	case err != nil || !x.conv.Valid():
		return nil, ErrCredentials
	case x.entry.disabled:
		return nil, fmt.Errorf("%w: the user is disabled", ErrCredentials)
	}
	return []byte(answer), nil
}

// scramShape is what a client sees of stored keys without knowing the password.
type scramShape struct{ iterations, salt int }

// commonShape is the one that most users have, so that made up keys look like
// theirs.
func commonShape(users map[string]userEntry) scramShape {
	count := map[scramShape]int{}
	for _, e := range users {
		if e.scram != nil {
			count[scramShape{e.scram.iterations, len(e.scram.salt)}]++
		}
	}
	best := scramShape{scramIterations, saltBytes}
	for s, n := range count {
		if cmp.Or(cmp.Compare(n, count[best]), cmp.Compare(s.iterations, best.iterations), cmp.Compare(s.salt, best.salt)) > 0 {
			best = s
		}
	}
	return best
}

// fakeKeys are the keys of a user who has none: always the same, and of no
// password.
func (t *userTable) fakeKeys(secret []byte, user string) *scramKeys {
	derive := func(what string) []byte {
		m := hmac.New(sha256.New, secret)
		m.Write([]byte(what + "\x00" + user))
		return m.Sum(nil)
	}
	salt := append(derive("salt"), derive("more salt")...) // 64 octets, the longest that a file may have
	return &scramKeys{iterations: t.shape.iterations, salt: salt[:t.shape.salt], stored: derive("stored key"), serverKey: derive("server key")}
}
