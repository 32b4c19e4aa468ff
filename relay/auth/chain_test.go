package auth

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// storeFunc answers as a function does.
type storeFunc func(user, password string) (Identity, error)

func (f storeFunc) Verify(_ context.Context, user, password string) (Identity, error) {
	return f(user, password)
}

func TestChain(t *testing.T) {
	yes := func(user, password string) (Identity, error) { return Identity{User: user}, nil }
	no := func(err error) storeFunc { return func(string, string) (Identity, error) { return Identity{}, err } }
	for _, test := range []struct {
		name          string
		first, second storeFunc
		err           error
		asked         string // whom the second store was asked about: "ann", "nobody" or nothing
	}{
		{"the first knows", yes, yes, nil, ""},
		{"the second knows", no(ErrUnknownUser), yes, nil, "ann"},
		{"nobody knows", no(ErrUnknownUser), no(ErrUnknownUser), ErrUnknownUser, "ann"},
		{"wrong at the first", no(ErrCredentials), yes, ErrCredentials, "nobody"},
		{"wrong at the second", no(ErrUnknownUser), no(ErrCredentials), ErrCredentials, "ann"},
		{"the first is down", no(ErrUnavailable), yes, ErrUnavailable, ""},
		{"the second is down", no(ErrUnknownUser), no(ErrUnavailable), ErrUnavailable, "ann"},
	} {
		t.Run(test.name, func(t *testing.T) {
			asked := ""
			second := storeFunc(func(user, password string) (Identity, error) {
				if asked = user; user != "ann" {
					asked = "nobody"
					if strings.Contains(password, "secret") {
						t.Error("the password went to a store that has no part in it")
					}
				}
				return test.second(user, password)
			})
			_, err := Chain(test.first, second).Verify(t.Context(), "ann", "secret")
			if !errors.Is(err, test.err) || asked != test.asked {
				t.Errorf("Verify = %v with the second asked about %q, want %v and %q", err, asked, test.err, test.asked)
			}
		})
	}
}
