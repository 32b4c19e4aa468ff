package throttle

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// guessing is a Lockout with a clock.
type guessing struct {
	*Lockout
	now time.Time
}

func newGuessing() *guessing {
	return &guessing{NewLockout(LockoutLimits{}), time.Unix(1e9, 0)}
}

// fail tries n times with a wrong password, and returns how often it was checked.
func (g *guessing) fail(n int, from netip.Addr, user string) (checked int) {
	for range n {
		if _, ok := g.Try(g.now, from, user); ok {
			g.Failed(g.now, from, user)
			checked++
		}
	}
	return checked
}

func (g *guessing) may(from netip.Addr, user string) bool {
	_, ok := g.Try(g.now, from, user)
	return ok
}

func TestLockout(t *testing.T) {
	bad, good, third := ip("192.0.2.1"), ip("198.51.100.2"), ip("203.0.113.3")
	for _, test := range []struct {
		name string
		do   func(g *guessing)
		want string // who may try: bob from good, alice from bad, eve from bad, bob from third
	}{
		{"nothing happened", func(*guessing) {}, "yes yes yes yes"},
		{"few failures", func(g *guessing) { g.fail(9, bad, "bob") }, "yes yes yes yes"},
		{"an account that is guessed at", func(g *guessing) { g.fail(20, bad, "bob") }, "no yes yes no"},
		{"an account that does not exist", func(g *guessing) { g.fail(20, bad, "eve") }, "yes yes no yes"},
		{"many accounts from one source", func(g *guessing) {
			for i := range 40 {
				g.fail(1, bad, fmt.Sprint("user", i))
			}
		}, "yes no no yes"},
		{"one account from many sources", func(g *guessing) {
			for i := range 20 {
				g.fail(1, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), "bob")
			}
		}, "no yes yes no"},
		{"the owner's source is known", func(g *guessing) {
			g.Succeeded(g.now, good, "bob")
			g.fail(20, bad, "bob")
		}, "yes yes yes no"},
		{"the owner's source is held to its own failures", func(g *guessing) {
			g.Succeeded(g.now, good, "bob")
			g.fail(20, good, "bob")
		}, "no yes yes yes"},
		{"who shares the source of a guesser", func(g *guessing) {
			g.Succeeded(g.now, bad, "alice")
			for i := range 40 {
				g.fail(1, bad, fmt.Sprint("user", i))
			}
		}, "yes yes no yes"},
		{"a login does not wash off guesses", func(g *guessing) {
			for range 40 {
				g.fail(1, bad, "bob")
				g.Succeeded(g.now, bad, "mallory")
			}
		}, "no yes yes no"},
		{"the delay ends", func(g *guessing) {
			g.fail(20, bad, "bob")
			g.now = g.now.Add(30 * time.Second)
		}, "yes yes yes yes"},
		{"failures slide out of the window", func(g *guessing) {
			g.fail(9, bad, "bob")
			g.now = g.now.Add(30 * time.Minute)
			g.fail(9, bad, "bob")
		}, "yes yes yes yes"},
		{"failures at the end of one window and the begin of the next", func(g *guessing) {
			g.fail(1, bad, "bob")
			g.now = g.now.Add(14 * time.Minute)
			g.fail(8, bad, "bob")
			g.now = g.now.Add(2 * time.Minute)
			g.fail(8, bad, "bob")
		}, "no yes yes no"},
		{"trust ends", func(g *guessing) {
			g.Succeeded(g.now, good, "bob")
			g.now = g.now.Add(31 * 24 * time.Hour)
			g.fail(20, bad, "bob")
		}, "no yes yes no"},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newGuessing()
			test.do(g)
			word := map[bool]string{true: "yes", false: "no"}
			got := fmt.Sprintf("%s %s %s %s", word[g.may(good, "bob")], word[g.may(bad, "alice")], word[g.may(bad, "eve")], word[g.may(third, "bob")])
			if got != test.want {
				t.Errorf("may try = %q, want %q", got, test.want)
			}
		})
	}
}

func TestLockoutDelayGrows(t *testing.T) {
	g := newGuessing()
	from := ip("192.0.2.1")
	g.fail(10, from, "bob")
	for _, want := range []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 16 * time.Minute, 32 * time.Minute, time.Hour, time.Hour} {
		g.now = g.now.Add(want - time.Second)
		if g.may(from, "bob") {
			t.Fatalf("may try within %v", want)
		}
		g.now = g.now.Add(time.Second)
		if n := g.fail(5, from, "bob"); n != 1 {
			t.Fatalf("%d attempts were checked after %v, want 1", n, want)
		}
	}
	g.now = g.now.Add(90 * time.Minute)
	if n := g.fail(20, from, "bob"); n != 10 {
		t.Errorf("%d attempts were checked after a quiet time, want 10", n)
	}
}

func TestLockoutBegin(t *testing.T) {
	g := newGuessing()
	bad, shared := ip("2001:db8::1"), ip("2001:db8:1::1")
	g.Succeeded(g.now, shared, "alice")
	for i := range 40 {
		g.fail(1, bad, fmt.Sprint("user", i))
		g.fail(1, shared, fmt.Sprint("user", i))
	}
	if g.Begin(g.now, bad) || g.Begin(g.now, ip("2001:db8::2")) {
		t.Error("a network that guesses may begin")
	}
	if !g.Begin(g.now, shared) {
		t.Error("a network that a user is known from may not begin")
	}
	if !g.Begin(g.now, ip("2001:db8:2::1")) {
		t.Error("another network may not begin")
	}
}

func TestLockoutOff(t *testing.T) {
	g := &guessing{NewLockout(LockoutLimits{Source: -1, Account: -1}), time.Unix(1e9, 0)}
	if n := g.fail(1000, ip("192.0.2.1"), "bob"); n != 1000 {
		t.Errorf("%d of 1000 attempts were checked", n)
	}
	g.Change(LockoutLimits{Account: 1})
	if n := g.fail(10, ip("192.0.2.1"), "bob"); n != 1 {
		t.Errorf("%d attempts were checked after the change, want 1", n)
	}
}

func TestLockoutIsBounded(t *testing.T) {
	g := newGuessing()
	for i := range maxKeys + 1000 {
		from := netip.AddrFrom4([4]byte{byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)})
		g.Failed(g.now, from, fmt.Sprint("guessed", i))
		g.Succeeded(g.now, from, fmt.Sprint("known", i))
	}
	if len(g.sources) > maxKeys || len(g.accounts) > maxKeys || len(g.known) > maxKeys || len(g.homes) > maxKeys {
		t.Errorf("%d sources, %d accounts, %d known, %d homes: more than %d", len(g.sources), len(g.accounts), len(g.known), len(g.homes), maxKeys)
	}
	g.now = g.now.Add(31 * 24 * time.Hour)
	g.Failed(g.now, ip("192.0.2.1"), "bob")
	if len(g.sources) != 1 || len(g.accounts) != 1 || len(g.known) != 0 || len(g.homes) != 0 {
		t.Errorf("%d sources, %d accounts, %d known, %d homes after a quiet month", len(g.sources), len(g.accounts), len(g.known), len(g.homes))
	}
}
