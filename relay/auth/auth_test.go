package auth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/emersion/go-sasl"
	"go.yaml.in/yaml/v3"
)

// fakeStore knows one user.
type fakeStore struct {
	asked int
	err   error
}

func (s *fakeStore) Verify(_ context.Context, user, password string) (Identity, error) {
	s.asked++
	switch {
	case s.err != nil:
		return Identity{}, s.err
	case user != "bob@example.com":
		return Identity{}, ErrUnknownUser
	case password != "pass word":
		return Identity{}, ErrCredentials
	}
	return Identity{User: "Bob@example.com"}, nil
}

// begin starts an exchange with a password; nil for an unknown mechanism.
func begin(mechanism string, s Store, done func(Identity)) sasl.Server {
	for _, m := range Passwords(s) {
		if strings.EqualFold(m.Name, mechanism) {
			return m.Start(Peer{}, done)
		}
	}
	return nil
}

// talk runs an exchange: responses in order, nil for none.
func talk(t *testing.T, mechanism string, s Store, responses ...[]byte) (challenges []string, id Identity, err error) {
	t.Helper()
	server := begin(mechanism, s, func(i Identity) { id = i })
	for i, r := range responses {
		challenge, done, err := server.Next(r)
		if err != nil {
			return challenges, id, err
		}
		if done {
			if i != len(responses)-1 {
				t.Errorf("done after %d of %d responses", i+1, len(responses))
			}
			return challenges, id, nil
		}
		challenges = append(challenges, string(challenge))
	}
	return challenges, id, errors.New("not done")
}

func TestMechanisms(t *testing.T) {
	b := func(s string) []byte { return []byte(s) }
	for _, test := range []struct {
		name      string
		mechanism string
		responses [][]byte
		store     error
		want      string // reason, or empty
	}{
		{"plain", "PLAIN", [][]byte{b("\x00bob@example.com\x00pass word")}, nil, ""},
		{"plain, lower-case mechanism", "plain", [][]byte{b("\x00bob@example.com\x00pass word")}, nil, ""},
		{"plain without initial response", "PLAIN", [][]byte{nil, b("\x00bob@example.com\x00pass word")}, nil, ""},
		{"plain, name in another case", "PLAIN", [][]byte{b("\x00BOB@Example.com\x00pass word")}, nil, ""},
		{"plain, own authorization identity", "PLAIN", [][]byte{b("Bob@example.com\x00bob@example.com\x00pass word")}, nil, ""},
		{"plain, full-width name", "PLAIN", [][]byte{b("\x00ｂob@example.com\x00pass word")}, nil, ""},
		{"plain, no-break space in the password", "PLAIN", [][]byte{b("\x00bob@example.com\x00pass\u00a0word")}, nil, ""},
		{"plain, foreign authorization identity", "PLAIN", [][]byte{b("alice@example.com\x00bob@example.com\x00pass word")}, nil, ReasonCredentials},
		{"plain, wrong password", "PLAIN", [][]byte{b("\x00bob@example.com\x00password")}, nil, ReasonCredentials},
		{"plain, password in another case", "PLAIN", [][]byte{b("\x00bob@example.com\x00Pass word")}, nil, ReasonCredentials},
		{"plain, unknown user", "PLAIN", [][]byte{b("\x00eve\x00x")}, nil, ReasonUnknownUser},
		{"plain, store is down", "PLAIN", [][]byte{b("\x00bob@example.com\x00pass word")}, errors.New("timeout"), ReasonUnavailable},
		{"plain, empty", "PLAIN", [][]byte{{}}, nil, ReasonMalformed},
		{"plain, two parts", "PLAIN", [][]byte{b("bob\x00x")}, nil, ReasonMalformed},
		{"plain, four parts", "PLAIN", [][]byte{b("\x00bob\x00x\x00y")}, nil, ReasonMalformed},
		{"plain, empty name", "PLAIN", [][]byte{b("\x00\x00x")}, nil, ReasonMalformed},
		{"plain, empty password", "PLAIN", [][]byte{b("\x00bob@example.com\x00")}, nil, ReasonMalformed},
		{"plain, control character in the name", "PLAIN", [][]byte{b("\x00bob\x1b\x00x")}, nil, ReasonMalformed},
		{"plain, not UTF-8", "PLAIN", [][]byte{b("\x00bob\xff\x00x")}, nil, ReasonMalformed},
		{"plain, line end in the password", "PLAIN", [][]byte{b("\x00bob@example.com\x00x\r\n")}, nil, ReasonMalformed},
		{"plain, long name", "PLAIN", [][]byte{b("\x00" + strings.Repeat("b", 256) + "\x00x")}, nil, ReasonMalformed},
		{"plain, long password", "PLAIN", [][]byte{b("\x00bob@example.com\x00" + strings.Repeat("x", 1025))}, nil, ReasonMalformed},
		{"login", "LOGIN", [][]byte{nil, b("bob@example.com"), b("pass word")}, nil, ""},
		{"login with initial response", "LOGIN", [][]byte{b("bob@example.com"), b("pass word")}, nil, ""},
		{"login, wrong password", "LOGIN", [][]byte{nil, b("bob@example.com"), b("x")}, nil, ReasonCredentials},
		{"login, empty name", "LOGIN", [][]byte{nil, {}}, nil, ReasonMalformed},
		{"login, empty password", "LOGIN", [][]byte{nil, b("bob@example.com"), {}}, nil, ReasonMalformed},
		{"login, NUL in the name", "LOGIN", [][]byte{nil, b("bob\x00x"), b("x")}, nil, ReasonMalformed},
		{"login, long name", "LOGIN", [][]byte{nil, b(strings.Repeat("b", 256))}, nil, ReasonMalformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, id, err := talk(t, test.mechanism, &fakeStore{err: test.store}, test.responses...)
			var f *Failure
			switch {
			case test.want == "" && (err != nil || id.User != "Bob@example.com"):
				t.Errorf("exchange = %v, %v, want Bob@example.com", id, err)
			case test.want != "" && (!errors.As(err, &f) || f.Reason != test.want):
				t.Errorf("exchange = %v, want reason %s", err, test.want)
			case test.want != "" && id.User != "":
				t.Errorf("a failed exchange gave the identity %q", id.User)
			case test.want != "" && strings.Contains(err.Error(), "pass word"):
				t.Errorf("the error holds the password: %v", err)
			case f != nil && f.Temporary() != (test.want == ReasonUnavailable):
				t.Errorf("Temporary() = %t for %s", f.Temporary(), f.Reason)
			}
		})
	}
}

func TestLoginPrompts(t *testing.T) {
	got, _, err := talk(t, "LOGIN", &fakeStore{}, nil, []byte("bob@example.com"), []byte("pass word"))
	if err != nil || len(got) != 2 || got[0] != "Username:" || got[1] != "Password:" {
		t.Errorf("challenges = %q, %v, want Username: and Password:", got, err)
	}
}

func TestExchangeIsUsedOnce(t *testing.T) {
	for _, mechanism := range []string{"PLAIN", "LOGIN"} {
		s := &fakeStore{}
		server := begin(mechanism, s, nil)
		for range 5 {
			_, _, _ = server.Next([]byte("\x00bob@example.com\x00guess"))
		}
		if s.asked > 1 {
			t.Errorf("%s asked the store %d times in one exchange, want at most once", mechanism, s.asked)
		}
	}
}

func TestOffered(t *testing.T) {
	a := NewAuthenticator(Passwords(&fakeStore{})...)
	a.list[0].Legacy = true
	for _, test := range []struct {
		name  string
		a     *Authenticator
		names []string
		want  string
	}{
		{"none named", a, nil, "LOGIN"},
		{"a legacy one named", a, []string{"LOGIN", "PLAIN"}, "PLAIN LOGIN"},
		{"unknown", a, []string{"CRAM-MD5", "LOGIN"}, "LOGIN"},
		{"no authenticator", nil, nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var names []string
			for _, m := range test.a.Offered(test.names, BindingAllow) {
				names = append(names, m.Name)
			}
			if got := strings.Join(names, " "); got != test.want {
				t.Errorf("Offered(%q) = %q, want %q", test.names, got, test.want)
			}
		})
	}
}

func TestSecretDoesNotLeak(t *testing.T) {
	type holder struct {
		Public Secret
		inner  Secret
		ptr    *Secret
	}
	const text = "hunter2"
	s := NewSecret(text)
	h := holder{s, s, &s}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T"} {
		fmt.Fprintf(&out, verb+verb+verb, s, h, &h)
	}
	j, err1 := json.Marshal(h)
	y, err2 := yaml.Marshal(map[string]any{"secret": s})
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	out.Write(j)
	out.Write(y)
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "s", s, "h", h)
	out.Write(log.Bytes())
	for _, leak := range []string{text, fmt.Sprintf("%x", text), fmt.Sprintf("%X", text)} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("the secret leaks as %q in %s", leak, out.String())
		}
	}
	if s.Expose() != text || s.IsZero() || !s.Equal(NewSecret(text)) || s.Equal(NewSecret("x")) || !(Secret{}).IsZero() || NewSecret("").String() != "" {
		t.Error("Expose, IsZero or Equal is wrong")
	}
}

func FuzzExchange(f *testing.F) {
	f.Add("PLAIN", []byte("\x00bob@example.com\x00pass word"), []byte(""))
	f.Add("PLAIN", []byte("a\x00b\x00c"), []byte("\x00\x00"))
	f.Add("LOGIN", []byte("bob@example.com"), []byte("pass word"))
	f.Add("LOGIN", []byte("ｂob"), []byte("\u0130\u200d"))
	f.Fuzz(func(t *testing.T, mechanism string, first, second []byte) {
		s := &fakeStore{}
		var id Identity
		server := begin(mechanism, s, func(i Identity) { id = i })
		if server == nil {
			return
		}
		for _, r := range [][]byte{first, second, second} {
			_, done, err := server.Next(r)
			var failure *Failure
			if err != nil && (!errors.As(err, &failure) || failure.Reason == "" || len(failure.User) > 4*maxName) {
				t.Errorf("Next(%q) = %v, want a bounded *Failure", r, err)
			}
			if done != (id.User != "") || done && err != nil {
				t.Errorf("done = %t with identity %q and error %v", done, id.User, err)
			}
			if done || err != nil {
				break
			}
		}
		if s.asked > 1 {
			t.Errorf("the store was asked %d times", s.asked)
		}
	})
}
