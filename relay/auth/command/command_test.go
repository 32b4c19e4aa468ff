package command

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"waybill/relay/auth"
	"waybill/relay/event"
	"waybill/relay/relaytest"
)

// The test program is the users command, too, when it is started with this
// argument. What it does is the user's name.
const asCommand = "users-command"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == asCommand {
		os.Exit(behave(os.Args[2:]))
	}
	os.Exit(m.Run())
}

func behave(args []string) int {
	in := bufio.NewReader(os.Stdin)
	user, _ := in.ReadString('\n')
	password, _ := in.ReadString('\n')
	rest, _ := io.ReadAll(in)
	password = strings.TrimSuffix(password, "\n")
	dir, _ := os.Getwd()
	switch user = strings.TrimSuffix(user, "\n"); {
	case len(rest) > 0 || dir != "/" || len(os.Environ()) > 0:
		return 99
	case user == "nobody":
		return 2
	case user == "stuck": // with a child that holds the pipes
		self, _ := os.Executable()
		child := exec.Command(self, append([]string{asCommand}, args...)...)
		child.Env = []string{}
		child.Stdin, child.Stdout = strings.NewReader("waiter\nx\n"), os.Stdout
		return map[bool]int{true: 98, false: 97}[child.Run() == nil]
	case user == "waiter": // says so, and waits for who never answers
		c, err := net.Dial("tcp", args[0])
		if err == nil {
			_, _ = io.Copy(io.Discard, c)
		}
		return 0
	case user == "crash":
		return 70
	case user == "loud":
		fmt.Print(strings.Repeat(" ", 1<<20))
		return 0
	case password != "right horse":
		fmt.Print(password)
		return 1
	case strings.HasPrefix(user, "says "):
		fmt.Print(strings.TrimPrefix(user, "says "))
	}
	return 0
}

func store(t testing.TB, opts Options, args ...string) (*Store, *relaytest.Recorder) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	rec := &relaytest.Recorder{}
	opts.Command, opts.Emitter = append([]string{self, asCommand}, args...), rec.Emitter()
	if opts.Timeout == 0 {
		opts.Timeout = time.Minute
	}
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return s, rec
}

func TestVerify(t *testing.T) {
	s, rec := store(t, Options{})
	for _, test := range []struct {
		name     string
		user     string
		password string
		id       auth.Identity
		result   string // of the fact; empty: none
		want     error
	}{
		{"right", "ann", "right horse", auth.Identity{User: "ann"}, "known", nil},
		{"wrong", "ann", "wrong", auth.Identity{}, "unknown", auth.ErrCredentials},
		{"unknown", "nobody", "right horse", auth.Identity{}, "unknown", auth.ErrUnknownUser},
		{"crash", "crash", "right horse", auth.Identity{}, "unavailable", auth.ErrUnavailable},
		{"too much", "loud", "right horse", auth.Identity{}, "unavailable", auth.ErrUnavailable},
		{
			"identity", `says {"user": "Ann", "senders": ["ann@example.com", "@ann.example"]}`, "right horse",
			auth.Identity{User: "Ann", Senders: []string{"ann@example.com", "@ann.example"}},
			"known", nil,
		},
		{"any sender", `says {"user": "Ann", "any_sender": true}`, "right horse", auth.Identity{User: "Ann", AnySender: true}, "known", nil},
		{"no password", "ann", "", auth.Identity{}, "", auth.ErrMalformed},
		{"no name", "", "right horse", auth.Identity{}, "", auth.ErrMalformed},
		{"two lines", "ann\nright horse", "x", auth.Identity{}, "", auth.ErrMalformed},
		{"two lines in the password", "ann", "wrong\nright horse", auth.Identity{}, "", auth.ErrMalformed},
		{"NUL", "ann\x00", "right horse", auth.Identity{}, "", auth.ErrMalformed},
		{"a shell's words", "$(id);`id`", "right horse", auth.Identity{User: "$(id);`id`"}, "known", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			rec.Reset()
			id, err := s.Verify(t.Context(), test.user, test.password)
			if d := cmp.Diff(test.id, id); d != "" || !errors.Is(err, test.want) {
				t.Errorf("Verify() = %v, want %v; identity (-want +got):\n%s", err, test.want, d)
			}
			var results string
			for _, r := range rec.Records() {
				if ev, ok := r.Event.(event.LookupAnswered); ok && ev.Lookup == event.LookupCommand {
					results += ev.Result
				}
			}
			if results != test.result {
				t.Errorf("facts say %q, want %q", results, test.result)
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	for _, test := range []struct {
		name string
		out  string
		want auth.Identity // zero: no answer
	}{
		{"nothing", "", auth.Identity{User: "ann"}},
		{"white space", " \n", auth.Identity{User: "ann"}},
		{"empty object", "{}", auth.Identity{User: "ann"}},
		{"null", "null", auth.Identity{User: "ann"}},
		{"everybody", `{"senders": ["*"]}`, auth.Identity{User: "ann", Senders: []string{"*"}}},
		{"text", "OK s3cret", auth.Identity{}},
		{"list", `["s3cret"]`, auth.Identity{}},
		{"number", `{"user": 5}`, auth.Identity{}},
		{"another key", `{"sender": ["s3cret@example.com"]}`, auth.Identity{}},
		{"two objects", `{} {"any_sender": true}`, auth.Identity{}},
		{"cut", `{"user": "s3cret`, auth.Identity{}},
		{"no address", `{"senders": ["s3cret"]}`, auth.Identity{}},
		{"no name", `{"user": "s3cret\u0000"}`, auth.Identity{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := identity("ann", []byte(test.out))
			if d := cmp.Diff(test.want, got); d != "" || (err != nil) != (test.want.User == "") {
				t.Errorf("identity(%q): %v (-want +got):\n%s", test.out, err, d)
			}
			if err != nil && (!errors.Is(err, auth.ErrUnavailable) || strings.Contains(err.Error(), "s3cret")) {
				t.Errorf("identity(%q) fails with %v", test.out, err)
			}
		})
	}
}

func TestNew(t *testing.T) {
	for _, test := range []struct {
		name    string
		command []string
		want    bool
	}{
		{"path", []string{"/usr/local/bin/users"}, true},
		{"nothing", nil, false},
		{"no path", []string{"users"}, false},
		{"relative", []string{"./users"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := New(Options{Command: test.command}); (err == nil) != test.want {
				t.Errorf("New(%q) = %v, want %t", test.command, err, test.want)
			}
		})
	}
	s, err := New(Options{Command: []string{"/nonexistent/users"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Verify(t.Context(), "ann", "x"); !errors.Is(err, auth.ErrUnavailable) {
		t.Errorf("without a program: %v", err)
	}
}

// A program that does not answer is ended, and so is what it has started.
func TestStuck(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s, _ := store(t, Options{}, ln.Addr().String())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	answered := make(chan error, 1)
	go func() {
		_, err := s.Verify(ctx, "stuck", "right horse")
		answered <- err
	}()
	child, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer child.Close()
	cancel()
	if err := <-answered; !errors.Is(err, auth.ErrUnavailable) {
		t.Errorf("Verify() = %v, want %v", err, auth.ErrUnavailable)
	}
	if _, err := child.Read(make([]byte, 1)); err == nil { // ends when the process has
		t.Error("what the program started goes on")
	}
}

func TestTimeout(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s, rec := store(t, Options{Timeout: 50 * time.Millisecond}, ln.Addr().String())
	if _, err := s.Verify(t.Context(), "waiter", "right horse"); !errors.Is(err, auth.ErrUnavailable) || !strings.Contains(err.Error(), "in time") {
		t.Errorf("Verify() = %v, want %v", err, auth.ErrUnavailable)
	}
	if n := len(rec.Named("lookup_answered")); n != 1 {
		t.Errorf("%d facts, want 1", n)
	}
}

// So many programs run at once; the next login waits, and not for ever.
func TestProcesses(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s, _ := store(t, Options{Processes: 2}, ln.Addr().String())
	var all sync.WaitGroup
	var running []net.Conn
	for range 2 {
		all.Go(func() {
			if _, err := s.Verify(context.Background(), "waiter", "right horse"); err != nil {
				t.Error(err)
			}
		})
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		running = append(running, c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Verify(ctx, "ann", "right horse"); !errors.Is(err, auth.ErrUnavailable) || !strings.Contains(err.Error(), "busy") {
		t.Errorf("Verify() = %v, want that all are busy", err)
	}
	next := make(chan error, 1)
	go func() {
		_, err := s.Verify(context.Background(), "ann", "right horse")
		next <- err
	}()
	for _, c := range running {
		c.Close()
	}
	all.Wait()
	if err := <-next; err != nil {
		t.Errorf("the login that waited: %v", err)
	}
}

func FuzzIdentity(f *testing.F) {
	for _, s := range []string{"", "{}", `{"user":"a","senders":["@b.example","a@b.example"],"any_sender":true}`, "null", "[]", `{"user":"\u0000"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, out []byte) {
		id, err := identity("ann", out)
		if err != nil {
			return
		}
		if _, err := auth.PrepareName(id.User); err != nil {
			t.Errorf("name %q: %v", id.User, err)
		}
		for _, s := range id.Senders {
			if err := auth.CheckSender(s); err != nil {
				t.Errorf("sender %q: %v", s, err)
			}
		}
	})
}
