package ntlm

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"waybill/relay/auth"
)

// TestMain lets the test program be the helper of its own tests.
func TestMain(m *testing.M) {
	for _, arg := range os.Args[1:] {
		if mode, ok := strings.CutPrefix(arg, "-helper="); ok {
			runHelper(mode)
			return
		}
	}
	os.Exit(m.Run())
}

// runHelper speaks squid-2.5-ntlmssp for testUsers, and misbehaves as told.
func runHelper(mode string) {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 64<<10)
	var x Exchange
	for in.Scan() {
		word, rest, _ := strings.Cut(in.Text(), " ")
		message, _ := base64.StdEncoding.DecodeString(rest)
		switch {
		case mode == "mute":
		case mode == "babble":
			fmt.Println("hello")
		case mode == "once" && word == "KK":
			return
		case word == "YR":
			x, _ = testBackend.Begin(context.Background(), message)
			fmt.Println("TT", base64.StdEncoding.EncodeToString(x.Challenge()))
		case word == "KK" && mode == "broken":
			fmt.Println("BH NT_STATUS_ACCESS_DENIED")
		case word == "KK" && mode == "away":
			fmt.Println("NA NT_STATUS_NO_LOGON_SERVERS")
		case word == "KK":
			m, err := ParseAuthenticate(message)
			if err == nil {
				_, err = x.Verify(context.Background(), m, message)
			}
			switch {
			case errors.Is(err, auth.ErrUnknownUser):
				fmt.Println("NA NT_STATUS_NO_SUCH_USER")
			case err != nil:
				fmt.Println("NA NT_STATUS_WRONG_PASSWORD")
			case mode == "pid":
				fmt.Printf("AF EXAMPLE\\pid%d\n", os.Getpid())
			default:
				fmt.Println("AF EXAMPLE\\" + strings.ToLower(m.User))
			}
		}
	}
}

func newTestHelper(t *testing.T, mode string, processes int) *Helper {
	t.Helper()
	who := auth.Proved{Senders: []string{"{user}@example.com"}}
	h, err := NewHelper([]string{os.Args[0], "-helper=" + mode}, processes, who)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func TestHelper(t *testing.T) {
	for _, test := range []struct {
		name   string
		mode   string
		client client
		want   string
	}{
		{"good", "", client{user: "bob", domain: "EXAMPLE", password: "pass word"}, ""},
		{"integrity code", "", client{user: "bob", password: "pass word", mic: true}, ""},
		{"wrong password", "", client{user: "bob", password: "x"}, auth.ReasonCredentials},
		{"unknown user", "", client{user: "eve", password: "x"}, auth.ReasonUnknownUser},
		{"helper cannot tell", "broken", client{user: "bob", password: "pass word"}, auth.ReasonUnavailable},
		{"domain is away", "away", client{user: "bob", password: "pass word"}, auth.ReasonUnavailable},
		{"helper speaks something else", "babble", client{user: "bob", password: "pass word"}, auth.ReasonUnavailable},
		{"helper ends", "once", client{user: "bob", password: "pass word"}, auth.ReasonUnavailable},
		{"bound to another connection", "", client{user: "bob", password: "pass word", binding: [16]byte{1}}, auth.ReasonBinding},
	} {
		t.Run(test.name, func(t *testing.T) {
			id, err := test.client.login(newTestHelper(t, test.mode, 1), testPeer)
			if got := reason(err); got != test.want {
				t.Errorf("reason = %q (%v), want %q", got, err, test.want)
			}
			if err == nil && (id.User != "bob" || id.Senders[0] != "bob@example.com") {
				t.Errorf("identity = %+v, want bob", id)
			}
		})
	}
}

func TestHelperThatCannotStart(t *testing.T) {
	h, err := NewHelper([]string{"/nonexistent"}, 1, auth.Proved{})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // the place in the pool comes back
		if _, err := (&client{user: "bob"}).login(h, testPeer); reason(err) != auth.ReasonUnavailable {
			t.Errorf("login = %v, want unavailable", err)
		}
	}
}

func TestHelperDoesNotAnswer(t *testing.T) {
	h := newTestHelper(t, "mute", 1)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.Begin(ctx, (&client{}).negotiate()); !errors.Is(err, auth.ErrUnavailable) {
		t.Errorf("Begin = %v, want unavailable", err)
	}
	if len(h.free) != 0 || len(h.idle) != 0 {
		t.Errorf("%d places are taken and %d processes kept, want none", len(h.free), len(h.idle))
	}
}

func TestHelpersAreUsedAgain(t *testing.T) {
	h := newTestHelper(t, "pid", 4)
	seen := map[string]bool{}
	for range 10 {
		id, err := (&client{user: "bob", password: "pass word"}).login(h, testPeer)
		if err != nil {
			t.Fatal(err)
		}
		seen[id.User] = true
	}
	if len(seen) != 1 {
		t.Errorf("10 logins after each other used %d processes, want 1", len(seen))
	}
	// One that has ended while it was idle is replaced.
	h.idle[0].cmd.Process.Kill()
	h.idle[0].cmd.Process.Wait()
	if id, err := (&client{user: "bob", password: "pass word"}).login(h, testPeer); err != nil || seen[id.User] {
		t.Errorf("after the end of the process: %v, %v, want a new one", id, err)
	}
	var all sync.WaitGroup
	for range 40 {
		all.Go(func() {
			if _, err := (&client{user: "bob", password: "pass word"}).login(h, testPeer); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := len(h.idle); n > 4 {
		t.Errorf("there are %d processes, want 4 at most", n)
	}
}

// TestClientGoesAway gives the process back however an exchange ends.
func TestClientGoesAway(t *testing.T) {
	h := newTestHelper(t, "", 1)
	for _, test := range []struct {
		name string
		end  func(s interface{ Close() error })
	}{
		{"the session ends", func(s interface{ Close() error }) { _ = s.Close() }},
		{"twice", func(s interface{ Close() error }) { _ = s.Close(); _ = s.Close() }},
		{"the lease ends", func(s interface{ Close() error }) { _ = s.(*server).exchange.Close() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := client{user: "bob", password: "pass word"}
			s := Mechanism(h).Start(testPeer, nil).(*server)
			challenge, _, err := s.Next(c.negotiate())
			if err != nil {
				t.Fatal(err)
			}
			test.end(s)
			if _, _, err := s.Next(c.authenticate(challenge)); err == nil {
				t.Error("the exchange goes on")
			}
			if _, err := (&client{user: "bob", password: "pass word"}).login(h, testPeer); err != nil {
				t.Errorf("the next login: %v", err)
			}
		})
	}
	_ = h.Close()
	if _, err := (&client{user: "bob", password: "pass word"}).login(h, testPeer); err != nil || len(h.idle) > 0 {
		t.Errorf("a login after Close: %v, with %d processes left, want none", err, len(h.idle))
	}
}
