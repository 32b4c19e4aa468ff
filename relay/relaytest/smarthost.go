package relaytest

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"waybill/relay/mail"
)

// The phases at which a [SmartHost] can be told what to do. A phase "RCPT" may
// be narrowed to one recipient: "RCPT user@example.com".
const (
	PhaseConnect  = "CONNECT" // the greeting
	PhaseHelo     = "HELO"
	PhaseEhlo     = "EHLO"
	PhaseStartTLS = "STARTTLS"
	PhaseTLS      = "TLS" // in place of the handshake
	PhaseAuth     = "AUTH"
	PhaseMail     = "MAIL"
	PhaseRcpt     = "RCPT"
	PhaseData     = "DATA"
	PhaseContent  = "CONTENT" // while the content comes, after Action.After octets
	PhaseDot      = "."
	PhaseBdat     = "BDAT"
	PhaseRset     = "RSET"
	PhaseNoop     = "NOOP"
	PhaseQuit     = "QUIT"
	PhaseOther    = "OTHER" // any other command
)

// Action is what a SmartHost does at a phase, in the order of the fields. The
// zero Action does what a well-behaved host does.
type Action struct {
	Times   int           // how often; 0 means for ever
	After   int           // CONTENT only: when so many octets have come
	Delay   time.Duration // wait first
	Hang    bool          // say nothing until the peer goes away
	Reply   string        // such as "451 4.7.1 later"; lines apart by "\n" make a multi-line reply. Empty: the usual reply
	Raw     string        // written as it is, instead of a reply
	Silent  bool          // write no reply at all
	Endless string        // written again and again until the connection breaks
	Slow    time.Duration // pause before each octet of the reply
	Close   bool          // then close the connection
	Reset   bool          // then reset the connection (RST)
}

// Message is a message that a SmartHost took responsibility for.
type Message struct {
	Envelope mail.Envelope
	MailArgs string   // what followed MAIL, as it came
	RcptArgs []string // what followed each accepted RCPT, as it came
	Content  []byte   // without dot-stuffing
	Session  int      // which connection, counting from 1
	TLS      bool
	User     string // authenticated
	At       time.Time
}

// Behaviour decides at each phase; an empty reply means the usual one. arg is
// what followed the command.
type Behaviour func(phase, arg string) (reply string, delay time.Duration, closeAfter bool)

// Option changes a SmartHost before it starts.
type Option func(*SmartHost)

// WithHostname sets the name that the host gives itself.
func WithHostname(name string) Option { return func(h *SmartHost) { h.hostname = name } }

// WithExtensions sets the EHLO keywords, instead of PIPELINING, SIZE 52428800,
// 8BITMIME, SMTPUTF8, DSN and ENHANCEDSTATUSCODES. STARTTLS and AUTH come by
// [WithTLS] and [WithAuth].
func WithExtensions(keywords ...string) Option {
	return func(h *SmartHost) { h.extensions = keywords }
}

// WithoutExtension removes an EHLO keyword.
func WithoutExtension(keyword string) Option {
	return func(h *SmartHost) {
		h.extensions = slices.DeleteFunc(slices.Clone(h.extensions), func(s string) bool {
			word, _, _ := strings.Cut(s, " ")
			return strings.EqualFold(word, keyword)
		})
	}
}

// WithTLS offers STARTTLS with a generated certificate for names; see
// [SmartHost.CA].
func WithTLS(names ...string) Option {
	return func(h *SmartHost) {
		cert, pool, err := NewCertificate(time.Now().Add(24*time.Hour), names...)
		h.optErr = errors.Join(h.optErr, err)
		h.ca = pool
		h.tls = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
}

// WithTLSConfig offers STARTTLS with cfg.
func WithTLSConfig(cfg *tls.Config) Option { return func(h *SmartHost) { h.tls = cfg } }

// WithImplicitTLS speaks TLS from the first octet, with the certificate of
// [WithTLS] or [WithTLSConfig].
func WithImplicitTLS() Option { return func(h *SmartHost) { h.implicit = true } }

// WithAuth offers AUTH (PLAIN and LOGIN, or the given mechanisms) and refuses
// MAIL without it.
func WithAuth(user, password string, mechanisms ...string) Option {
	return func(h *SmartHost) {
		h.user, h.password, h.mechanisms = user, password, mechanisms
		if len(mechanisms) == 0 {
			h.mechanisms = []string{"PLAIN", "LOGIN"}
		}
	}
}

// WithBehaviour asks b at each phase, before any script.
func WithBehaviour(b Behaviour) Option { return func(h *SmartHost) { h.behaviour = b } }

// WithKeep keeps the latest n messages and commands only, for hosts that run
// for long; 0 keeps all.
func WithKeep(n int) Option { return func(h *SmartHost) { h.keep = n } }

// WithLaxNewlines takes a bare LF or a bare CR for a line end, also around the
// final dot, as hosts that fall for SMTP smuggling do.
func WithLaxNewlines() Option { return func(h *SmartHost) { h.lax = true } }

// SmartHost is a real SMTP server that does what it is told: a next hop for
// tests and demonstrations. Everything may be changed while it runs.
type SmartHost struct {
	hostname   string
	extensions []string
	tls        *tls.Config
	ca         *x509.CertPool
	implicit   bool
	user       string
	password   string
	mechanisms []string
	behaviour  Behaviour
	keep       int
	lax        bool
	optErr     error

	listener net.Listener
	done     chan struct{}
	wg       sync.WaitGroup

	mu         sync.Mutex
	scripts    map[string][]Action
	conns      map[net.Conn]bool
	accepted   int
	peak       int
	messages   []Message
	received   int
	octets     int64
	commands   []string
	counts     map[string]int
	violations []string
	changed    chan struct{}
}

// NewSmartHost starts a SmartHost on a [Port] of 127.0.0.1 that ends with the
// test. When it is closed before, nobody listens there.
func NewSmartHost(t TB, opts ...Option) *SmartHost {
	t.Helper()
	h, err := StartSmartHost("127.0.0.1:"+Port(t), opts...)
	if err != nil {
		t.Fatalf("start a smart host: %v", err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// StartSmartHost starts a SmartHost at addr. Close ends it.
func StartSmartHost(addr string, opts ...Option) (*SmartHost, error) {
	h := &SmartHost{
		hostname:   "next-hop.example",
		extensions: []string{"PIPELINING", "SIZE 52428800", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES"},
		done:       make(chan struct{}),
		scripts:    map[string][]Action{},
		conns:      map[net.Conn]bool{},
		counts:     map[string]int{},
		changed:    make(chan struct{}),
	}
	for _, o := range opts {
		o(h)
	}
	if h.optErr != nil {
		return nil, h.optErr
	}
	var err error
	if h.listener, err = net.Listen("tcp", addr); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	h.wg.Go(h.serve)
	return h, nil
}

// Close closes the listener and all connections, and waits for their ends.
func (h *SmartHost) Close() error {
	h.mu.Lock()
	select {
	case <-h.done:
		h.mu.Unlock()
		return nil
	default:
	}
	close(h.done)
	err := h.listener.Close()
	for c := range h.conns {
		_ = c.Close()
	}
	h.mu.Unlock()
	h.wg.Wait()
	return err
}

// Drop closes all connections that are open now, as a restart would.
func (h *SmartHost) Drop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.conns {
		_ = c.Close()
	}
}

// Addr is the host's address, "127.0.0.1:port".
func (h *SmartHost) Addr() string { return h.listener.Addr().String() }

// AddrPort is the host's address.
func (h *SmartHost) AddrPort() netip.AddrPort {
	return h.listener.Addr().(*net.TCPAddr).AddrPort()
}

// IP is the host's address without its port.
func (h *SmartHost) IP() string { return h.AddrPort().Addr().Unmap().String() }

// Port is the host's port.
func (h *SmartHost) Port() uint16 { return h.AddrPort().Port() }

// CA is the authority of the certificate that [WithTLS] made.
func (h *SmartHost) CA() *x509.CertPool { return h.ca }

// On makes the host answer so at a phase, always. Lines of text apart by "\n"
// make a multi-line reply.
func (h *SmartHost) On(phase string, code int, text string) {
	h.Do(phase, Action{Reply: fmt.Sprintf("%d %s", code, text)})
}

// OnRcpt makes the host answer so to one recipient.
func (h *SmartHost) OnRcpt(recipient string, code int, text string) {
	h.On(PhaseRcpt+" "+recipient, code, text)
}

// Do makes the host do each of the actions in turn at a phase, and afterwards
// what is usual. No actions at all end what was said before.
func (h *SmartHost) Do(phase string, actions ...Action) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.scripts[scriptKey(phase)] = slices.Clone(actions)
}

func scriptKey(phase string) string {
	verb, arg, ok := strings.Cut(phase, " ")
	if !ok {
		return strings.ToUpper(verb)
	}
	return strings.ToUpper(verb) + " " + strings.ToLower(arg)
}

// Messages returns the messages that the host took, in order.
func (h *SmartHost) Messages() []Message {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.messages)
}

// Wait waits until the host has taken n messages, and returns them. The error
// says how many there were when timeout (zero: 20 seconds) had passed.
func (h *SmartHost) Wait(n int, timeout time.Duration) ([]Message, error) {
	if timeout == 0 {
		timeout = waitLimit
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		h.mu.Lock()
		received, changed, messages := h.received, h.changed, slices.Clone(h.messages)
		h.mu.Unlock()
		if received >= n {
			return messages, nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return messages, fmt.Errorf("%d messages after %v, want %d", received, timeout, n)
		}
	}
}

// WaitFor is [SmartHost.Wait] for tests.
func (h *SmartHost) WaitFor(t TB, n int) []Message {
	t.Helper()
	m, err := h.Wait(n, 0)
	if err != nil {
		t.Fatalf("smart host: %v", err)
	}
	return m
}

// Received returns how many messages the host has taken, and their octets.
func (h *SmartHost) Received() (messages int, octets int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.received, h.octets
}

// Connections returns how many connections there have been, how many are open,
// and how many were open at once.
func (h *SmartHost) Connections() (total, open, peak int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.accepted, len(h.conns), h.peak
}

// Commands returns the command lines that came, over all connections.
func (h *SmartHost) Commands() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.commands)
}

// Counts returns how often each verb came.
func (h *SmartHost) Counts() map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.counts)
}

// Violations returns what peers did that no client may do: pipelining without
// the offer (RFC 2920), parameters without the offer, lines without CRLF.
func (h *SmartHost) Violations() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.violations)
}

func (h *SmartHost) serve() {
	for {
		conn, err := h.listener.Accept()
		if err != nil {
			return
		}
		h.mu.Lock()
		select {
		case <-h.done:
			h.mu.Unlock()
			_ = conn.Close()
			return
		default:
		}
		h.conns[conn] = true
		h.accepted++
		h.peak = max(h.peak, len(h.conns))
		s := newSession(h, conn, h.accepted)
		h.mu.Unlock()
		h.wg.Go(func() {
			s.run()
			_ = conn.Close()
			h.mu.Lock()
			delete(h.conns, conn)
			h.mu.Unlock()
		})
	}
}

// script takes the next action for the first of phases that has one.
func (h *SmartHost) script(phases ...string) (Action, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range phases {
		q := h.scripts[p]
		if len(q) == 0 {
			continue
		}
		a := q[0]
		if a.Times == 1 || a.Times == 0 && len(q) > 1 {
			h.scripts[p] = q[1:]
		} else if a.Times > 1 {
			q[0].Times--
		}
		return a, true
	}
	return Action{}, false
}

func (h *SmartHost) command(verb, line string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts[verb]++
	h.commands = append(h.commands, line)
	if h.keep > 0 && len(h.commands) > 2*h.keep {
		h.commands = slices.Clone(h.commands[len(h.commands)-h.keep:])
	}
}

func (h *SmartHost) violation(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.violations) < 100 {
		h.violations = append(h.violations, fmt.Sprintf(format, args...))
	}
}

func (h *SmartHost) take(m Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.received++
	h.octets += int64(len(m.Content))
	h.messages = append(h.messages, m)
	if h.keep > 0 && len(h.messages) > 2*h.keep {
		h.messages = slices.Clone(h.messages[len(h.messages)-h.keep:])
	}
	close(h.changed)
	h.changed = make(chan struct{})
}
