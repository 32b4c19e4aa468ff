package auth

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"waybill/relay/relaytest"

	"github.com/xdg-go/scram"
)

// scramUsers has bob, and mallory, who is disabled, and ann without SCRAM keys.
func scramUsers(t testing.TB) *Users {
	t.Helper()
	var b strings.Builder
	b.WriteString("users:\n")
	for _, name := range []string{"Bob@example.com", "mallory", "x,y=z"} {
		k, err := newScram("pass wörd")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "  - {name: %q, scram_sha_256: %q, senders: ['@example.com'], disabled: %t}\n", name, k, name == "mallory")
	}
	fmt.Fprintf(&b, "  - {name: ann, password: %q}\n", newArgon("pass wörd"))
	path := filepath.Join(t.TempDir(), "users.yaml")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	u, err := OpenUsers(path)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// channel is both ends of a TLS connection: the server's as mechanisms see it.
func channel(t testing.TB, version uint16) (server Peer, client tls.ConnectionState) {
	t.Helper()
	cert, roots := relaytest.Certificate(t, "mx.example.com")
	a, b := net.Pipe()
	s := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: version})
	c := tls.Client(b, &tls.Config{RootCAs: roots, ServerName: "mx.example.com"})
	done := make(chan error, 1)
	go func() { done <- s.Handshake() }()
	if err := errors.Join(c.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	st := s.ConnectionState()
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return Peer{TLS: &st, Certificate: c.ConnectionState().PeerCertificates[0]}, c.ConnectionState()
}

// converse runs a client against a server.
func converse(m Mechanism, p Peer, client *scram.ClientConversation) (id Identity, err error) {
	server := m.Start(p, func(i Identity) { id = i })
	challenge, _, err := server.Next(nil)
	for err == nil {
		response, cerr := client.Step(string(challenge))
		if cerr != nil {
			return id, cerr
		}
		var done bool
		if challenge, done, err = server.Next([]byte(response)); done {
			if !client.Valid() {
				return id, errors.New("the client does not trust the server")
			}
			return id, err
		}
	}
	return id, err
}

func TestSCRAM(t *testing.T) {
	users := scramUsers(t)
	tls13, client13 := channel(t, tls.VersionTLS13)
	tls12, client12 := channel(t, tls.VersionTLS12)
	other, _ := channel(t, tls.VersionTLS13)
	type cb = scram.ChannelBinding
	exporter := func(st tls.ConnectionState) cb {
		b, err := scram.NewTLSExporterBinding(&st)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	endPoint := func(st tls.ConnectionState) cb {
		b, err := scram.NewTLSServerEndpointBinding(&st)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	both := []string{"SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"}
	for _, test := range []struct {
		name     string
		user     string
		password string
		authz    string
		plus     bool
		peer     Peer
		offered  []string
		binding  cb
		yes      bool   // the client can bind, and says that we cannot
		want     string // reason, or empty
	}{
		{name: "right", user: "bob@example.com", password: "pass wörd"},
		{name: "name in another case", user: "BOB@example.com", password: "pass wörd"},
		{name: "name with what has to be escaped", user: "x,y=z", password: "pass wörd"},
		{name: "password composed otherwise", user: "bob@example.com", password: "pass wo\u0308rd"},
		{name: "password in compatibility characters", user: "bob@example.com", password: "ｐass wörd"},
		{name: "wrong password", user: "bob@example.com", password: "pass word", want: ReasonCredentials},
		{name: "unknown user", user: "eve", password: "pass wörd", want: ReasonUnknownUser},
		{name: "disabled user", user: "mallory", password: "pass wörd", want: ReasonCredentials},
		{name: "user without keys", user: "ann", password: "pass wörd", want: ReasonCredentials},
		{name: "own authorization identity", user: "bob@example.com", authz: "Bob@example.com", password: "pass wörd"},
		{name: "foreign authorization identity", user: "bob@example.com", authz: "ann", password: "pass wörd", want: ReasonCredentials},
		{name: "under TLS, no binding", user: "bob@example.com", password: "pass wörd", peer: tls13, offered: both},
		{name: "under TLS, we do not offer to bind", user: "bob@example.com", password: "pass wörd", peer: tls13, offered: both[1:], yes: true},
		{name: "the offer was taken away", user: "bob@example.com", password: "pass wörd", peer: tls13, offered: both, yes: true, want: ReasonBinding},
		{name: "exporter", user: "bob@example.com", password: "pass wörd", plus: true, peer: tls13, offered: both, binding: exporter(client13)},
		{name: "exporter, TLS 1.2", user: "bob@example.com", password: "pass wörd", plus: true, peer: tls12, offered: both, binding: exporter(client12)},
		{name: "unique, TLS 1.2", user: "bob@example.com", password: "pass wörd", plus: true, peer: tls12, offered: both, binding: scram.NewTLSUniqueBinding(client12.TLSUnique)},
		{name: "end point", user: "bob@example.com", password: "pass wörd", plus: true, peer: tls13, offered: both, binding: endPoint(client13)},
		{name: "end point, TLS 1.2", user: "bob@example.com", password: "pass wörd", plus: true, peer: tls12, offered: both, binding: endPoint(client12)},
		{name: "bound, wrong password", user: "bob@example.com", password: "x", plus: true, peer: tls13, offered: both, binding: exporter(client13), want: ReasonCredentials},
		{name: "exporter of another channel", user: "bob@example.com", password: "pass wörd", plus: true, peer: other, offered: both, binding: exporter(client13), want: ReasonBinding},
		{name: "end point of another channel", user: "bob@example.com", password: "pass wörd", plus: true, peer: other, offered: both, binding: endPoint(client13), want: ReasonBinding},
		{name: "unique, TLS 1.3", user: "bob@example.com", password: "pass wörd", plus: true, peer: tls13, offered: both, binding: scram.NewTLSUniqueBinding([]byte("x")), want: ReasonBinding},
		{name: "unknown kind", user: "bob@example.com", password: "pass wörd", plus: true, peer: tls13, offered: both, binding: cb{Type: "x", Data: []byte("x")}, want: ReasonBinding},
		{name: "PLUS without binding", user: "bob@example.com", password: "pass wörd", plus: true, peer: tls13, offered: both, want: ReasonBinding},
		{name: "binding without PLUS", user: "bob@example.com", password: "pass wörd", peer: tls13, offered: both, binding: exporter(client13), want: ReasonBinding},
		{name: "held off", user: "bob@example.com", password: "pass wörd", peer: Peer{Admit: func(string) error { return ErrThrottled }}, want: ReasonThrottled},
	} {
		t.Run(test.name, func(t *testing.T) {
			// What the client's library does to a password is not under test.
			c, err := scram.SHA256.NewClient(test.user, test.password, test.authz)
			if err != nil {
				t.Fatal(err)
			}
			conv := c.NewConversation()
			switch {
			case test.binding.Type != "":
				conv = c.NewConversationWithChannelBinding(test.binding)
			case test.yes:
				conv = c.NewConversationAdvertisingChannelBinding()
			}
			list := SCRAM(users, []byte("secret"))
			m := list[slices.IndexFunc(list, func(m Mechanism) bool { return strings.HasSuffix(m.Name, plus) == test.plus })]
			test.peer.Offered = test.offered
			id, err := converse(m, test.peer, conv)
			f, _ := errors.AsType[*Failure](err)
			switch {
			case test.want == "" && (err != nil || !strings.EqualFold(id.User, test.user) || len(id.Senders) != 1):
				t.Errorf("exchange = %+v, %v", id, err)
			case test.want != "" && (f == nil || f.Reason != test.want):
				t.Errorf("exchange = %v, want reason %s", err, test.want)
			case test.want != "" && id.User != "":
				t.Errorf("a failed exchange gave the identity %q", id.User)
			}
		})
	}
}

// TestSCRAMServerIsProven wants a client that does not answer the server's proof
// not to be logged in.
func TestSCRAMServerIsProven(t *testing.T) {
	users := scramUsers(t)
	c, err := scram.SHA256.NewClient("bob@example.com", "pass wörd", "")
	if err != nil {
		t.Fatal(err)
	}
	conv := c.NewConversation()
	logged := false
	server := SCRAM(users, []byte("secret"))[0].Start(Peer{}, func(Identity) { logged = true })
	var challenge []byte
	for range 2 {
		response, err := conv.Step(string(challenge))
		if err != nil {
			t.Fatal(err)
		}
		if challenge, _, err = server.Next([]byte(response)); err != nil {
			t.Fatal(err)
		}
	}
	if logged {
		t.Error("logged in before the client has seen our proof")
	}
	if _, done, err := server.Next([]byte("more")); done || err == nil || logged {
		t.Errorf("an answer to the server's proof: done %t, %v", done, err)
	}
}

// TestSCRAMUnknownUsers wants who asks for users to learn nothing.
func TestSCRAMUnknownUsers(t *testing.T) {
	ask := func(u *Users, secret, user string) (salt, iterations string) {
		t.Helper()
		server := SCRAM(u, []byte(secret))[0].Start(Peer{}, nil)
		answer, _, err := server.Next([]byte("n,,n=" + user + ",r=abcdefgh"))
		if err != nil {
			t.Fatal(err)
		}
		part := strings.Split(string(answer), ",")
		return strings.TrimPrefix(part[1], "s="), part[2]
	}
	u := scramUsers(t)
	salt, iterations := ask(u, "a", "eve")
	if again, _ := ask(u, "a", "EVE"); again != salt {
		t.Error("the salt of an unknown user changes")
	}
	if again, _ := ask(scramUsers(t), "a", "eve"); again != salt {
		t.Error("the salt of an unknown user changes with the file")
	}
	for _, other := range [][2]string{{"a", "eva"}, {"b", "eve"}} {
		if s, _ := ask(u, other[0], other[1]); s == salt {
			t.Errorf("%q has the same salt", other)
		}
	}
	known, i := ask(u, "a", "bob@example.com")
	if a, b := decoded(t, salt), decoded(t, known); len(a) != len(b) || i != iterations {
		t.Errorf("unknown: %d octets of salt, %s; known: %d, %s", len(a), iterations, len(b), i)
	}
}

func decoded(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBound(t *testing.T) {
	list := append(SCRAM(nil, nil), Passwords(nil)...)
	for _, test := range []struct {
		binding Binding
		want    string
	}{
		{"", "SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN LOGIN"},
		{BindingAllow, "SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN LOGIN"},
		{BindingOff, "SCRAM-SHA-256 PLAIN LOGIN"},
		{BindingRequire, "SCRAM-SHA-256-PLUS PLAIN LOGIN"},
	} {
		var names []string
		for _, m := range NewAuthenticator(list...).Offered(nil, test.binding) {
			names = append(names, m.Name)
		}
		if got := strings.Join(names, " "); got != test.want {
			t.Errorf("binding %q offers %s, want %s", test.binding, got, test.want)
		}
	}
}

func FuzzSCRAM(f *testing.F) {
	users := scramUsers(f)
	f.Add("n,,n=bob@example.com,r=abcdefgh", "c=biws,r=%s,p=AAAA")
	f.Add("y,a=x,n=bob@example.com,r=abcdefgh,x=y", "c=eSwsbg==,r=%s,m=x,p=")
	f.Add("p=tls-exporter,,n=x=2Cy=3Dz,r=abcdefgh", "c=,r=%s,p=")
	f.Add("p=tls-unique,,m=,n=a,r=", "v=")
	f.Fuzz(func(t *testing.T, first, final string) {
		for _, m := range SCRAM(users, []byte("secret")) {
			server := m.Start(Peer{}, func(Identity) { t.Error("logged in") })
			answer, _, err := server.Next([]byte(first))
			nonce, _, _ := strings.Cut(strings.TrimPrefix(string(answer), "r="), ",")
			for err == nil {
				var done bool
				if _, done, err = server.Next([]byte(strings.Replace(final, "%s", nonce, 1))); done {
					t.Fatal("done")
				}
			}
			if failure, ok := errors.AsType[*Failure](err); !ok || failure.Reason == ReasonUnavailable || len(failure.User) > 4*maxName {
				t.Errorf("error = %v, want a bounded *Failure", err)
			}
		}
	})
}
