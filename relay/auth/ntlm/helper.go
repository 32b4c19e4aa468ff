package ntlm

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"waybill/relay/auth"
)

// Bounds of helpers, chosen by taste.
const (
	defaultProcesses = 16
	// leaseTime is how long one login may keep a process: the challenge that it has
	// made is its state, so that nobody else can use it meanwhile.
	leaseTime  = 30 * time.Second
	askTimeout = 10 * time.Second // wait for one answer
	maxAnswer  = 32 << 10         // octets of one
)

// Helper passes logins on to processes that speak the protocol
// "squid-2.5-ntlmssp", such as Samba's ntlm_auth(1), which asks the domain
// controllers. Processes are started when they are needed, used again, and
// replaced when they end or do not answer.
type Helper struct {
	command []string
	who     auth.Proved
	free    chan struct{} // one for each process that may be in use

	mu     sync.Mutex
	idle   []*process
	closed bool
}

// NewHelper makes a Helper of a command, with at most so many processes; zero
// means 16. Who says who a user of a domain is to us.
func NewHelper(command []string, processes int, who auth.Proved) (*Helper, error) {
	if len(command) == 0 {
		return nil, errors.New("ntlm: no helper")
	}
	if processes == 0 {
		processes = defaultProcesses
	}
	return &Helper{command: command, who: who, free: make(chan struct{}, processes)}, nil
}

// Begin implements [Backend].
func (h *Helper) Begin(ctx context.Context, negotiate []byte) (Exchange, error) {
	select {
	case h.free <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: all NTLM helpers are busy", auth.ErrUnavailable)
	}
	x, err := h.begin(ctx, negotiate)
	if err != nil {
		<-h.free
		return nil, err
	}
	x.lease = time.AfterFunc(leaseTime, func() { _ = x.Close() })
	return x, nil
}

// begin asks a process for a challenge. One that was idle may have ended
// meanwhile; a new one may not.
func (h *Helper) begin(ctx context.Context, negotiate []byte) (*passed, error) {
	for {
		p, used, err := h.process()
		if err != nil {
			return nil, fmt.Errorf("%w: start NTLM helper: %w", auth.ErrUnavailable, err)
		}
		word, rest, err := p.ask(ctx, "YR "+base64.StdEncoding.EncodeToString(negotiate))
		if err != nil {
			p.stop()
			if used && ctx.Err() == nil {
				continue
			}
			return nil, fmt.Errorf("%w: NTLM helper: %w", auth.ErrUnavailable, err)
		}
		message, err := base64.StdEncoding.DecodeString(rest)
		if word != "TT" || err != nil || header(message, typeChallenge, 32) != nil {
			p.stop()
			return nil, fmt.Errorf("%w: NTLM helper has no challenge", auth.ErrUnavailable)
		}
		return &passed{h: h, p: p, challenge: message}, nil
	}
}

// process gives an idle process or starts one.
func (h *Helper) process() (p *process, used bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.idle); n > 0 {
		p, h.idle = h.idle[n-1], h.idle[:n-1]
		return p, true, nil
	}
	p, err = startProcess(h.command)
	return p, false, err
}

// put takes a process back.
func (h *Helper) put(p *process) {
	h.mu.Lock()
	closed := h.closed
	if !closed {
		h.idle = append(h.idle, p)
	}
	h.mu.Unlock()
	if closed {
		p.stop()
	}
}

// Close ends the processes that are idle, and the others when they become so.
// Sessions that outlive it can still log in, each with a process of its own.
func (h *Helper) Close() error {
	h.mu.Lock()
	idle := h.idle
	h.idle, h.closed = nil, true
	h.mu.Unlock()
	for _, p := range idle {
		p.stop()
	}
	return nil
}

// passed is one login at a helper.
type passed struct {
	h         *Helper
	challenge []byte
	lease     *time.Timer

	mu sync.Mutex
	p  *process // nil when it was given back
}

// Challenge is the helper's.
func (x *passed) Challenge() []byte { return x.challenge }

// Account is our name for the user that the client claims to be.
func (x *passed) Account(m *Authenticate) string {
	if name, err := x.h.who.Name(m.User, m.Domain); err == nil {
		return name
	}
	return prepared(m.User)
}

// Verify passes the client's message on.
func (x *passed) Verify(ctx context.Context, _ *Authenticate, message []byte) (auth.Identity, error) {
	p := x.take()
	if p == nil {
		return auth.Identity{}, fmt.Errorf("%w: the client took too long", auth.ErrCredentials)
	}
	word, rest, err := p.ask(ctx, "KK "+base64.StdEncoding.EncodeToString(message))
	if err != nil {
		p.stop()
		<-x.h.free
		return auth.Identity{}, fmt.Errorf("%w: NTLM helper: %w", auth.ErrUnavailable, err)
	}
	x.h.put(p)
	<-x.h.free
	return x.answer(word, rest)
}

// away are the words for a domain that nobody could ask.
var away = []string{
	"NT_STATUS_NO_LOGON_SERVERS", "NT_STATUS_DOMAIN_CONTROLLER_NOT_FOUND", "NT_STATUS_IO_TIMEOUT", "NT_STATUS_CANT_ACCESS_DOMAIN_INFO",
}

// answer reads what the helper says: AF with the user, NA with the reason why
// not, or BH when it cannot tell.
func (x *passed) answer(word, rest string) (auth.Identity, error) {
	switch word {
	case "AF":
		user, domain := strings.TrimSpace(rest), ""
		if d, u, ok := strings.Cut(user, `\`); ok {
			user, domain = u, d
		}
		return x.h.who.Identity(user, domain)
	case "NA":
		status, _, _ := strings.Cut(rest, " ")
		if status == "NT_STATUS_NO_SUCH_USER" {
			return auth.Identity{}, auth.ErrUnknownUser
		}
		if slices.Contains(away, status) {
			return auth.Identity{}, fmt.Errorf("%w: the domain cannot be reached", auth.ErrUnavailable)
		}
		return auth.Identity{}, fmt.Errorf("%w: the domain refuses the login", auth.ErrCredentials)
	}
	return auth.Identity{}, fmt.Errorf("%w: NTLM helper cannot tell", auth.ErrUnavailable)
}

// take gives the process to one caller only.
func (x *passed) take() *process {
	x.mu.Lock()
	defer x.mu.Unlock()
	p := x.p
	x.p = nil
	return p
}

// Close gives the process back. A helper begins anew with each YR.
func (x *passed) Close() error {
	if x.lease != nil {
		x.lease.Stop()
	}
	if p := x.take(); p != nil {
		x.h.put(p)
		<-x.h.free
	}
	return nil
}

// process is a running helper.
type process struct {
	cmd *exec.Cmd
	in  *os.File // what it reads
	out *os.File // what it writes
	r   *bufio.Reader
}

// startProcess starts a helper. It gets none of our environment, where secrets
// may be, but what programs need to run at all.
func startProcess(command []string) (*process, error) {
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		_, _ = theirIn.Close(), in.Close()
		return nil, err
	}
	cmd := exec.Command(command[0], command[1:]...) //nolint:gosec // the operator names it
	cmd.Stdin, cmd.Stdout = theirIn, theirOut
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	err = cmd.Start()
	_, _ = theirIn.Close(), theirOut.Close() // the process has its own
	if err != nil {
		_, _ = in.Close(), out.Close()
		return nil, err
	}
	return &process{cmd, in, out, bufio.NewReaderSize(out, maxAnswer)}, nil
}

// ask sends a line and reads one.
func (p *process) ask(ctx context.Context, line string) (word, rest string, err error) {
	end := time.Now().Add(askTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	if err := errors.Join(p.in.SetWriteDeadline(end), p.out.SetReadDeadline(end)); err != nil {
		return "", "", err
	}
	if _, err := io.WriteString(p.in, line+"\n"); err != nil {
		return "", "", plain(err)
	}
	answer, err := p.r.ReadSlice('\n')
	if err != nil {
		return "", "", plain(err)
	}
	word, rest, _ = strings.Cut(strings.TrimRight(string(answer), "\r\n"), " ")
	return word, rest, nil
}

// plain says what is wrong with a pipe in words that an operator knows.
func plain(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errors.New("it does not answer")
	case errors.Is(err, io.EOF), errors.Is(err, os.ErrClosed):
		return errors.New("it has ended")
	}
	return err
}

// stop ends the process, whatever it is doing.
func (p *process) stop() {
	_ = p.in.Close()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // the signal cannot be caught
	_ = p.out.Close()
}
