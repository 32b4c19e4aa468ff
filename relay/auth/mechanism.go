package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/emersion/go-sasl"
)

// verifyTimeout bounds the wait for a store. A client waits minutes for its
// reply (RFC 5321 section 4.5.3.2); a session should not be held as long.
const verifyTimeout = 15 * time.Second

// Bounds of what a client sends. RFC 4616 section 2 limits each part of PLAIN
// to 255 characters; passwords of machines are sometimes longer.
const (
	maxName     = 255
	maxPassword = 1024
)

// mechanisms is what the relay speaks, in the order of the EHLO reply.
var mechanisms = []struct {
	name      string
	plaintext bool // the password crosses the wire: TLS is needed
	start     func(exchange) sasl.Server
}{
	{"PLAIN", true, func(x exchange) sasl.Server { return &plain{x: x} }},
	{"LOGIN", true, func(x exchange) sasl.Server { return &login{x: x} }},
}

// ErrMechanism says that a mechanism is not known: reply 504 (RFC 4954 section 4).
var ErrMechanism = errors.New("unknown authentication mechanism")

// Mechanisms lists the mechanisms that [NewServer] knows.
func Mechanisms() []string {
	names := make([]string, len(mechanisms))
	for i, m := range mechanisms {
		names[i] = m.name
	}
	return names
}

// Plaintext reports whether a mechanism sends the password itself, so that it
// must not be used without TLS.
func Plaintext(mechanism string) bool {
	for _, m := range mechanisms {
		if strings.EqualFold(m.name, mechanism) {
			return m.plaintext
		}
	}
	return false
}

// NewServer begins one exchange. The server's Next fails with a [*Failure], and
// calls done before it reports success. An exchange is for one goroutine.
func NewServer(mechanism string, s Store, done func(Identity)) (sasl.Server, error) {
	for _, m := range mechanisms {
		if strings.EqualFold(m.name, mechanism) {
			return m.start(exchange{s, done}), nil
		}
	}
	return nil, fmt.Errorf("%w: %.40q", ErrMechanism, mechanism)
}

// exchange is what all password mechanisms end in.
type exchange struct {
	store Store
	done  func(Identity)
}

// verify checks the names and the password, and tells the session who it is.
func (x exchange) verify(authz, user, password []byte) error {
	name, err := prepareName(string(user))
	if err != nil {
		return fail("", err)
	}
	if len(authz) > 0 {
		// Nobody may act for somebody else: RFC 4616 section 2 leaves it to us.
		if other, err := prepareName(string(authz)); err != nil || other != name {
			return fail(name, fmt.Errorf("%w: foreign authorization identity", ErrCredentials))
		}
	}
	pw, err := preparePassword(string(password))
	if err != nil {
		return fail(name, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), verifyTimeout)
	defer cancel()
	id, err := x.store.Verify(ctx, name, pw)
	if err != nil {
		return fail(name, err)
	}
	if x.done != nil {
		x.done(id)
	}
	return nil
}

var errUnexpected = fmt.Errorf("%w: the exchange is over", ErrMalformed)

// plain is RFC 4616.
type plain struct {
	x    exchange
	over bool
}

// Next takes "authzid NUL authcid NUL password".
func (p *plain) Next(response []byte) (challenge []byte, done bool, err error) {
	if p.over {
		return nil, false, fail("", errUnexpected)
	}
	if response == nil { // no initial response: ask for it
		return []byte{}, false, nil
	}
	p.over = true
	authz, rest, ok1 := bytes.Cut(response, []byte{0})
	user, password, ok2 := bytes.Cut(rest, []byte{0})
	if !ok1 || !ok2 || bytes.IndexByte(password, 0) >= 0 {
		return nil, false, fail("", fmt.Errorf("%w: not three parts", ErrMalformed))
	}
	if err := p.x.verify(authz, user, password); err != nil {
		return nil, false, err
	}
	return nil, true, nil
}

// login is the LOGIN mechanism, which has no RFC (draft-murchison-sasl-login)
// and which old devices speak.
type login struct {
	x    exchange
	step int // 0 nothing yet, 1 user name asked, 2 password asked, 3 over
	user []byte
}

// Next takes the user name, then the password. The name may come as initial
// response.
func (l *login) Next(response []byte) (challenge []byte, done bool, err error) {
	switch {
	case l.step == 0 && response == nil:
		l.step = 1
		return []byte("Username:"), false, nil
	case l.step <= 1:
		if len(response) == 0 || len(response) > maxName {
			l.step = 3
			return nil, false, fail("", fmt.Errorf("%w: user name is empty or too long", ErrMalformed))
		}
		l.step, l.user = 2, bytes.Clone(response)
		return []byte("Password:"), false, nil
	case l.step == 2:
		l.step = 3
		if err := l.x.verify(nil, l.user, response); err != nil {
			return nil, false, err
		}
		return nil, true, nil
	}
	return nil, false, fail("", errUnexpected)
}
