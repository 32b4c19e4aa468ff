// Package command is a store of passwords that asks an external program: the way
// to users whom nothing else here knows, such as those of an application's own
// database.
//
// A program is started for each question, without a shell and with an empty
// environment. It reads two lines from its standard input, the user's name and
// the password, and answers by how it ends: 0 is yes, 1 a wrong password, 2 an
// unknown user, and everything else no answer. With a yes it may write a JSON
// object to its standard output that says who the user is:
//
//	{"user": "ann", "senders": ["ann@example.com", "@ann.example"], "any_sender": false}
//
// It promises that name and password are given to nobody else and are no
// arguments, which others on the machine could see; that so many programs run at
// once and no more; that one that takes too long is ended, with all that it has
// started; and that what it writes is bounded, and counts as no answer when it is
// something else. That a wrong password takes as long as an unknown user is up to
// the program: the store cannot know what it does.
//
// To tell it more of a client, add to what is written to it in input; programs
// that read two lines do not mind a third.
package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"

	"waybill/relay/auth"
	"waybill/relay/event"
)

// What a program may do, by taste. A login waits for at most as long as package
// auth does.
const (
	defaultTimeout   = 10 * time.Second
	defaultProcesses = 16
	maxOutput        = 64 << 10
	endDelay         = time.Second // after the program was ended, for its pipes
)

// The ways in which a program ends.
const (
	exitRight   = 0
	exitWrong   = 1
	exitUnknown = 2
)

// Options configure a [Store].
type Options struct {
	Command   []string      // the program's whole path, and its arguments
	Timeout   time.Duration // of one question; zero means 10s
	Processes int           // programs at once; zero means 16
	Emitter   event.Emitter
}

// Store is an [auth.Store] that asks a program.
type Store struct {
	opts Options
	free *semaphore.Weighted
}

// New makes a Store. Nothing is started yet.
func New(opts Options) (*Store, error) {
	if len(opts.Command) == 0 || !filepath.IsAbs(opts.Command[0]) {
		return nil, errors.New("users command: want the whole path of a program")
	}
	if opts.Timeout <= 0 {
		opts.Timeout = defaultTimeout
	}
	if opts.Processes <= 0 {
		opts.Processes = defaultProcesses
	}
	opts.Command = slices.Clone(opts.Command)
	return &Store{opts: opts, free: semaphore.NewWeighted(int64(opts.Processes))}, nil
}

// Verify implements [auth.Store].
func (s *Store) Verify(ctx context.Context, user, password string) (auth.Identity, error) {
	if user == "" || password == "" || strings.ContainsAny(user+password, "\x00\r\n") {
		return auth.Identity{}, fmt.Errorf("%w: user name or password is empty, or has a line end", auth.ErrMalformed)
	}
	start := time.Now()
	id, err := s.verify(ctx, user, password)
	ev := event.LookupAnswered{Lookup: event.LookupCommand, Result: event.LookupKnown, Took: event.Since(start, time.Now())}
	switch {
	case err == nil:
	case errors.Is(err, auth.ErrUnknownUser), errors.Is(err, auth.ErrCredentials):
		ev.Result = event.LookupUnknown
	default:
		ev.Result, ev.Error = event.LookupUnavailable, err.Error()
	}
	s.opts.Emitter.Emit(ev)
	return id, err
}

func (s *Store) verify(ctx context.Context, user, password string) (auth.Identity, error) {
	if err := s.free.Acquire(ctx, 1); err != nil {
		return auth.Identity{}, unavailable("%d programs are busy", s.opts.Processes)
	}
	defer s.free.Release(1)
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	out := &output{}
	cmd := exec.CommandContext(ctx, s.opts.Command[0], s.opts.Command[1:]...) //nolint:gosec // the operator names it
	cmd.Env = []string{}                                                      // nil would be ours, where secrets may be
	cmd.Dir = filepath.VolumeName(s.opts.Command[0]) + string(filepath.Separator)
	cmd.Stdin = bytes.NewReader(input(user, password))
	cmd.Stdout = out
	cmd.WaitDelay = endDelay
	isolate(cmd)
	err := cmd.Run()
	if ctx.Err() != nil && err != nil {
		return auth.Identity{}, unavailable("it does not answer in time")
	}
	var exit *exec.ExitError
	switch {
	case out.full:
		return auth.Identity{}, unavailable("it writes more than %d octets", maxOutput)
	case err == nil:
		return identity(user, out.buf.Bytes())
	case !errors.As(err, &exit):
		return auth.Identity{}, unavailable("%w", err)
	}
	switch exit.ExitCode() {
	case exitWrong:
		return auth.Identity{}, fmt.Errorf("%w: the users command says so", auth.ErrCredentials)
	case exitUnknown:
		return auth.Identity{}, fmt.Errorf("%w: the users command says so", auth.ErrUnknownUser)
	}
	return auth.Identity{}, unavailable("it ends with %s", exit.ProcessState)
}

func unavailable(format string, args ...any) error {
	return fmt.Errorf("%w: users command: %w", auth.ErrUnavailable, fmt.Errorf(format, args...))
}

// input is what a program reads.
func input(user, password string) []byte { return []byte(user + "\n" + password + "\n") }

// answer is what a program may say with a yes.
type answer struct {
	User      string   `json:"user"`
	Senders   []string `json:"senders"`
	AnySender bool     `json:"any_sender"`
}

// identity reads what a program has said about a user whose password is right.
// None of its words is repeated in an error: it may have written the password.
func identity(user string, out []byte) (auth.Identity, error) {
	if len(bytes.TrimSpace(out)) == 0 {
		return auth.Identity{User: user}, nil
	}
	var a answer
	dec := json.NewDecoder(bytes.NewReader(out))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&a); err != nil {
		return auth.Identity{}, unavailable("it writes something else than an object with user, senders and any_sender")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return auth.Identity{}, unavailable("it writes something behind its object")
	}
	if a.User == "" {
		a.User = user
	}
	if _, err := auth.PrepareName(a.User); err != nil {
		return auth.Identity{}, unavailable("its user is not a name")
	}
	for i, sender := range a.Senders {
		if auth.CheckSender(sender) != nil {
			return auth.Identity{}, unavailable("its senders[%d] is neither an address nor @domain", i)
		}
	}
	return auth.Identity{User: a.User, Senders: a.Senders, AnySender: a.AnySender}, nil
}

// output keeps what a program writes, and no more than is allowed. The buffer is
// not embedded: it would be read into past Write.
type output struct {
	buf  bytes.Buffer
	full bool
}

// Write keeps p. What is too much is thrown away, so that the program can end.
func (o *output) Write(p []byte) (int, error) {
	if o.full = o.full || o.buf.Len()+len(p) > maxOutput; o.full {
		return len(p), nil
	}
	return o.buf.Write(p)
}
