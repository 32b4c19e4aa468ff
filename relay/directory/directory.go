// Package directory asks LDAP servers, Active Directory among them, who a user
// is and which recipients there are.
//
// It exists because most organisations keep their people in one directory
// already. It promises that a server which does not answer costs one timeout and
// then another server is asked; that no server that cannot be reached is ever
// taken for a "no" ([auth.ErrUnavailable]); that what a client sends can change
// neither the meaning of a filter nor that of a name; that an empty password is
// refused before any server is asked, because a server answers it with success
// (RFC 4513 section 5.1.2); and that passwords go over TLS alone unless the
// operator said otherwise.
//
// [Client] holds the connections. [Users] is an [auth.Store] over it, and
// [Recipients] answers whether an address exists. To support another kind of
// directory, add a [Schema].
package directory

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"waybill/relay/auth"

	"github.com/go-ldap/ldap/v3"
	"golang.org/x/sync/semaphore"
)

// Options configure a [Client].
type Options struct {
	Name        string                 // of the directory, in errors
	Servers     []string               // such as "ldaps://dc1.example.com" or "ldap://dc2.example.com:389"; the next is asked when one does not answer
	StartTLS    bool                   // upgrade ldap:// connections (RFC 4513 section 3); an ldap:// server that cannot is not used
	TLS         *tls.Config            // authorities and versions; nil means the system's. The server's name is verified always
	BindDN      string                 // whom to search as; empty means anonymous
	Password    func() (string, error) // of BindDN; asked at each bind, so that it may change
	Timeout     time.Duration          // of one question to one server, connecting included; zero means 5s
	Connections int                    // at once, to all servers together; zero means 8
}

// Client asks the servers of one directory. It is safe for use by many
// goroutines.
type Client struct {
	opts  Options
	hosts []host
	slots *semaphore.Weighted

	mu     sync.Mutex
	idle   [kinds][]*conn // the last was used last
	down   []time.Time    // by server: until when it is asked last
	closed bool
	locked lockout
}

// kind is what a connection is bound as: one serves searches of the service
// account, the other is bound anew by each login.
type kind int

const (
	searching kind = iota
	login
	kinds
)

// host is one server.
type host struct {
	at       string // host:port
	name     string // for its certificate
	implicit bool   // TLS from the first octet
}

// conn is one connection.
type conn struct {
	*ldap.Conn
	raw   net.Conn
	host  int
	since time.Time // unused since then
}

// Bounds chosen by taste.
const (
	defaultTimeout     = 5 * time.Second
	defaultConnections = 8
	idleFor            = time.Minute      // less than the 15 minutes after which Active Directory hangs up
	downFor            = 15 * time.Second // how long a server that did not answer is asked last
	lockedFor          = 30 * time.Second // how long a refused service account is not tried again: it may get locked
)

// New makes a Client. It connects when it is first asked.
func New(opts Options) (*Client, error) {
	c := &Client{opts: opts}
	var errs []error
	for _, s := range opts.Servers {
		h, err := parseServer(s)
		errs = append(errs, err)
		c.hosts = append(c.hosts, h)
	}
	if len(opts.Servers) == 0 {
		errs = append(errs, errors.New("no servers"))
	}
	if opts.BindDN != "" && opts.Password == nil {
		errs = append(errs, errors.New("a bind name without a password"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("directory %s: %w", opts.Name, err)
	}
	c.opts.Timeout = cmp.Or(opts.Timeout, defaultTimeout)
	c.opts.Connections = cmp.Or(opts.Connections, defaultConnections)
	c.slots = semaphore.NewWeighted(int64(c.opts.Connections))
	c.down = make([]time.Time, len(c.hosts))
	return c, nil
}

// CheckServer reports what is wrong with the URL of a server.
func CheckServer(s string) error {
	_, err := parseServer(s)
	return err
}

// Encrypted reports whether a server's URL means TLS from the first octet.
func Encrypted(s string) bool {
	h, err := parseServer(s)
	return err == nil && h.implicit
}

func parseServer(s string) (host, error) {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return host{}, fmt.Errorf("%.80q is not the URL of a server, such as ldaps://dc1.example.com", s)
	}
	port := u.Port()
	switch u.Scheme {
	case "ldaps":
		port = cmp.Or(port, "636")
	case "ldap":
		port = cmp.Or(port, "389")
	default:
		return host{}, fmt.Errorf("%.80q is neither ldaps:// nor ldap://", s)
	}
	return host{at: net.JoinHostPort(u.Hostname(), port), name: u.Hostname(), implicit: u.Scheme == "ldaps"}, nil
}

// Close ends the idle connections. Those in use end with their questions.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for k := range c.idle {
		for _, conn := range c.idle[k] {
			conn.end()
		}
		c.idle[k] = nil
	}
	return nil
}

// end closes a connection. It says good-bye where that cannot block for long.
func (c *conn) end() {
	_ = c.raw.SetDeadline(time.Now().Add(time.Second))
	_ = c.Close() // there is nothing to do about it
}

// unavailable is err as one that says nothing about a user or a recipient.
func (c *Client) unavailable(err error) error {
	return fmt.Errorf("directory %s: %w: %w", c.opts.Name, auth.ErrUnavailable, err)
}

// ask runs f on a connection of a kind, on one server after another until one
// answers. What f returns is the answer unless it says that the server cannot
// answer; then it wraps auth.ErrUnavailable.
func (c *Client) ask(ctx context.Context, k kind, f func(*conn) error) error {
	if err := c.slots.Acquire(ctx, 1); err != nil {
		return c.unavailable(fmt.Errorf("all %d connections are busy: %w", c.opts.Connections, err))
	}
	defer c.slots.Release(1)
	var errs []error
	for _, i := range c.order() {
		err := c.askServer(ctx, k, i, f)
		if !broken(err) {
			c.answered(i, true)
			return err
		}
		errs = append(errs, fmt.Errorf("%s: %w", c.hosts[i].at, err))
		if ctx.Err() != nil || errors.Is(err, errService) {
			break
		}
		c.answered(i, false)
	}
	return c.unavailable(errors.Join(errs...))
}

// askServer asks one server: on an idle connection first, which may have been
// closed by the server a moment ago, and then on a fresh one.
func (c *Client) askServer(ctx context.Context, k kind, i int, f func(*conn) error) error {
	for {
		conn := c.take(k, i)
		reused := conn != nil
		turn, cancel := context.WithTimeout(ctx, c.opts.Timeout)
		err := c.onConn(turn, k, i, &conn, f)
		cancel()
		switch {
		case conn == nil:
		case broken(err):
			conn.end()
		default:
			c.put(k, conn)
		}
		if reused && lost(err) && !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			continue // there are fewer idle connections each time
		}
		return err
	}
}

// onConn makes the connection if there is none, and runs f within ctx.
func (c *Client) onConn(ctx context.Context, k kind, i int, conn **conn, f func(*conn) error) error {
	if *conn == nil {
		fresh, err := c.dial(ctx, k, i)
		if err != nil {
			return err
		}
		*conn = fresh
	}
	raw := (*conn).raw
	stop := within(ctx, raw)
	err := f(*conn)
	if !stop() {
		return &lostError{cmp.Or(ctx.Err(), err)}
	}
	return err
}

// within makes everything on raw fail when ctx ends. It returns what ends that,
// which reports whether raw is as it was.
func within(ctx context.Context, raw net.Conn) func() bool {
	return context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
}

// dial connects, and for searches binds as the service account.
func (c *Client) dial(ctx context.Context, k kind, i int) (*conn, error) {
	h := c.hosts[i]
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", h.at)
	if err != nil {
		return nil, &lostError{err}
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.opts.TLS != nil {
		config = c.opts.TLS.Clone()
	}
	config.ServerName = h.name
	made := &conn{raw: raw, host: i}
	if h.implicit {
		t := tls.Client(raw, config)
		if err := t.HandshakeContext(ctx); err != nil {
			_ = raw.Close() // it is of no use
			return nil, &lostError{fmt.Errorf("TLS: %w", err)}
		}
		made.raw = t
	}
	stop := within(ctx, raw)
	made.Conn = ldap.NewConn(made.raw, h.implicit)
	made.Start()
	if !h.implicit && c.opts.StartTLS {
		if err := made.StartTLS(config); err != nil {
			made.end()
			return nil, &lostError{fmt.Errorf("STARTTLS: %w", err)}
		}
	}
	if k == searching {
		if err := c.bindService(made); err != nil {
			made.end()
			return nil, err
		}
	}
	if !stop() {
		made.end()
		return nil, &lostError{ctx.Err()}
	}
	return made, nil
}

// errService says that the service account may not log in.
var errService = errors.New("the service account cannot log in")

// lockout remembers that the service account was refused: to try at each
// question what fails anyway is how accounts get locked.
type lockout struct {
	until    time.Time
	password string
	err      error
}

// bindService makes conn the service account's.
func (c *Client) bindService(conn *conn) error {
	if c.opts.BindDN == "" {
		return nil // anonymous, as every connection begins
	}
	password, err := c.opts.Password()
	if err != nil {
		return fmt.Errorf("%w: %w", errService, err)
	}
	if password == "" { // the server would take it for an anonymous bind, and say yes
		return fmt.Errorf("%w: its password is empty", errService)
	}
	c.mu.Lock()
	locked := c.locked
	c.mu.Unlock()
	if locked.err != nil && locked.password == password && time.Now().Before(locked.until) {
		return locked.err
	}
	err = conn.Bind(c.opts.BindDN, password)
	switch {
	case err == nil || broken(err):
		return err
	case !refused(err):
		return &lostError{err}
	}
	err = fmt.Errorf("%w: %s", errService, reason(err))
	c.mu.Lock()
	c.locked = lockout{until: time.Now().Add(lockedFor), password: password, err: err}
	c.mu.Unlock()
	return err
}

// order lists the servers in the order to ask them in: those that did not answer
// a moment ago come last.
func (c *Client) order() []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	var up, down []int
	for i, until := range c.down {
		if now.Before(until) {
			down = append(down, i)
		} else {
			up = append(up, i)
		}
	}
	return append(up, down...)
}

func (c *Client) answered(i int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down[i] = time.Time{}
	if !ok {
		c.down[i] = time.Now().Add(downFor)
	}
}

// take gives an idle connection to server i, or nil.
func (c *Client) take(k kind, i int) *conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	for at, conn := range slices.Backward(c.idle[k]) {
		old := time.Since(conn.since) > idleFor || conn.IsClosing()
		if !old && conn.host != i {
			continue
		}
		c.idle[k] = slices.Delete(c.idle[k], at, at+1) // only what was seen already moves
		if !old {
			return conn
		}
		go conn.end() // waits a second at most
	}
	return nil
}

// put keeps a connection for the next question.
func (c *Client) put(k kind, conn *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || conn.IsClosing() || len(c.idle[searching])+len(c.idle[login]) >= c.opts.Connections {
		go conn.end() // waits a second at most
		return
	}
	conn.since = time.Now()
	c.idle[k] = append(c.idle[k], conn)
}

// lostError is a connection that did not come about or broke.
type lostError struct{ err error }

func (e *lostError) Error() string { return e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

// lost reports whether err is the connection's, so that another one may do.
func lost(err error) bool {
	if _, ok := errors.AsType[*lostError](err); ok {
		return true
	}
	return ldap.IsErrorAnyOf(err, ldap.ErrorNetwork, ldap.ErrorUnexpectedMessage, ldap.ErrorUnexpectedResponse, ldap.LDAPResultServerDown)
}

// broken reports whether err means that this server cannot answer now.
func broken(err error) bool {
	return lost(err) || errors.Is(err, errService) || ldap.IsErrorAnyOf(err, ldap.LDAPResultOperationsError, ldap.LDAPResultProtocolError, ldap.LDAPResultTimeLimitExceeded,
		ldap.LDAPResultStrongAuthRequired, ldap.LDAPResultConfidentialityRequired, ldap.LDAPResultBusy, ldap.LDAPResultUnavailable, ldap.LDAPResultLocalError,
		ldap.LDAPResultTimeout, ldap.LDAPResultConnectError, ldap.LDAPResultOther)
}

// refused reports whether err is a server's word that the name or the password
// of a bind is wrong, or that the account may not be used.
func refused(err error) bool {
	return ldap.IsErrorAnyOf(err, ldap.LDAPResultInvalidCredentials, ldap.LDAPResultNoSuchObject, ldap.LDAPResultInvalidDNSyntax,
		ldap.LDAPResultInappropriateAuthentication, ldap.LDAPResultUnwillingToPerform, ldap.LDAPResultConstraintViolation,
		ldap.LDAPResultInsufficientAccessRights, ldap.LDAPResultNamingViolation)
}
