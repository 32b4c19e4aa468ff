package auth

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
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

// A Peer is what an exchange may know of the connection that it runs on.
type Peer struct {
	Connector   string
	Remote      netip.Addr
	TLS         *tls.ConnectionState // nil without TLS
	Certificate *x509.Certificate    // ours, as the client has seen it; nil without TLS
	Binding     Binding              // whether the login is to be bound to the TLS channel
	Offered     []string             // names of the mechanisms that the client could choose from

	// Admit is asked by [Peer.Try]; nil admits all.
	Admit func(user string) error
}

// Try is called by a mechanism as soon as it knows which user a client claims to
// be, and before it checks that. An error is the end of the exchange: there were
// too many failures, of the source or of the account. The name is normalised.
func (p Peer) Try(user string) error {
	if p.Admit == nil {
		return nil
	}
	return p.Admit(user)
}

// A Mechanism is one SASL mechanism with what it needs to check a client: a
// store, keys, a keytab.
type Mechanism struct {
	Name      string // as registered with IANA, upper case
	Plaintext bool   // the password itself crosses the wire: not without TLS
	NeedsTLS  bool   // cannot work without TLS, as those that bind to its channel
	Legacy    bool   // weak: offered only where a connector names it

	NeedsCertificate bool // for clients that have shown a certificate

	// Start begins one exchange, which is for one goroutine. The server's Next
	// fails with a [*Failure], and calls done before it reports success. A server
	// that is an [io.Closer] is closed at the end of its exchange, however it came;
	// one that tells the client of its failure before it fails is a [Refuser].
	Start func(p Peer, done func(Identity)) sasl.Server
}

// A Refuser is a server that has told the client in a challenge why it fails,
// and waits for the answer that it then has to wait for (RFC 7628 section 3.2.3).
type Refuser interface {
	// Refused is the failure that was told, or nil.
	Refused() *Failure
}

// Passwords are the mechanisms that a store of passwords allows.
func Passwords(s Store) []Mechanism {
	return []Mechanism{
		{Name: "PLAIN", Plaintext: true, Start: func(p Peer, done func(Identity)) sasl.Server { return &plain{x: exchange{s, p, done}} }},
		{Name: "LOGIN", Plaintext: true, Start: func(p Peer, done func(Identity)) sasl.Server { return &login{x: exchange{s, p, done}} }},
	}
}

// Mechanisms names all mechanisms that the relay can speak, in the order of the
// EHLO reply. Which of them there are depends on the stores.
func Mechanisms() []string {
	return []string{
		"EXTERNAL", scramSHA256 + plus, scramSHA256, "OAUTHBEARER", "XOAUTH2", "GSSAPI", "PLAIN", "LOGIN", "NTLM",
	}
}

// An Authenticator is the mechanisms that there are.
type Authenticator struct{ list []Mechanism }

// NewAuthenticator offers mechanisms in the order of [Mechanisms]. A name that
// comes twice is an error of the program.
func NewAuthenticator(list ...Mechanism) *Authenticator {
	a := &Authenticator{list: slices.Clone(list)}
	order := Mechanisms()
	slices.SortStableFunc(a.list, func(x, y Mechanism) int { return slices.Index(order, x.Name) - slices.Index(order, y.Name) })
	for i, m := range a.list {
		if !slices.Contains(order, m.Name) || i > 0 && a.list[i-1].Name == m.Name {
			panic("auth: mechanism " + m.Name + " is unknown, or there twice")
		}
	}
	return a
}

// Offered lists the mechanisms for a connector that names these; for one that
// names none, all but the legacy ones. Names that there is no mechanism for are
// left out, and so are mechanisms that b does not allow.
func (a *Authenticator) Offered(names []string, b Binding) (list []Mechanism) {
	if a == nil {
		return nil
	}
	for _, m := range a.list {
		if slices.Contains(names, m.Name) || len(names) == 0 && !m.Legacy {
			list = append(list, m)
		}
	}
	return bound(list, b)
}

// exchange is what all password mechanisms end in.
type exchange struct {
	store Store
	peer  Peer
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
	if err := x.peer.Try(name); err != nil {
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
