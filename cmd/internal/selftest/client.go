package selftest

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// reply is what a server said.
type reply struct {
	code int
	text string
}

func (r reply) String() string {
	return fmt.Sprintf("%d %s", r.code, strings.Join(strings.FieldsFunc(r.text, func(c rune) bool { return c == '\n' || c == '\r' }), " "))
}

// client is one session. It says what it is told to, however wrong.
type client struct {
	o      *Options
	conn   net.Conn
	client netip.Addr // who we are to the server
	r      *textproto.Reader
	ext    []string // of EHLO, upper case
	stop   func() bool
}

// maxSaid bounds what is read of a server in one session.
const maxSaid = 1 << 20

func dial(ctx context.Context, o *Options, target Target, verify bool) (*client, error) {
	d := net.Dialer{Timeout: o.Timeout}
	conn, err := d.DialContext(ctx, "tcp", target.Addr)
	if err != nil {
		return nil, err
	}
	c := &client{o: o, conn: conn, stop: context.AfterFunc(ctx, func() { _ = conn.Close() })}
	c.use(conn)
	if local, err := netip.ParseAddrPort(conn.LocalAddr().String()); err == nil {
		c.client = local.Addr().Unmap()
	}
	if target.Proxied != nil && target.Proxied(c.client) {
		c.client = stranger
		if _, err := fmt.Fprintf(conn, "PROXY TCP4 %s 127.0.0.1 40000 25\r\n", stranger); err != nil {
			c.close()
			return nil, err
		}
	}
	if target.Implicit {
		if err := c.handshake(ctx, target, verify); err != nil {
			c.close()
			return nil, err
		}
	}
	return c, nil
}

func (c *client) use(conn net.Conn) {
	c.conn = conn
	c.r = textproto.NewReader(bufio.NewReader(io.LimitReader(conn, maxSaid)))
}

// handshake makes the session TLS. Only where there is a secret to tell does it
// matter who the server is.
func (c *client) handshake(ctx context.Context, target Target, verify bool) error {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.o.TLS != nil {
		config = c.o.TLS.Clone()
	}
	if !verify || c.o.here(c.conn) {
		config.InsecureSkipVerify = true
	}
	if config.ServerName == "" {
		config.ServerName, _, _ = net.SplitHostPort(target.Addr)
	}
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	conn := tls.Client(c.conn, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	c.use(conn)
	return nil
}

func (c *client) close() {
	c.stop()
	_ = c.conn.Close() // the session is over
}

// quit ends a session in which nothing is owed.
func (c *client) quit() {
	_ = c.conn.SetDeadline(time.Now().Add(c.o.Quiet))
	_, _ = io.WriteString(c.conn, "RSET\r\nQUIT\r\n")
	_, _, _ = c.r.ReadResponse(0)
	_, _, _ = c.r.ReadResponse(0)
	c.close()
}

func (c *client) read() (reply, error) { return c.readWithin(c.o.Timeout) }

func (c *client) readWithin(d time.Duration) (reply, error) {
	_ = c.conn.SetReadDeadline(time.Now().Add(d))
	code, text, err := c.r.ReadResponse(0)
	if _, ok := errors.AsType[*textproto.Error](err); ok {
		err = nil // a refusal
	}
	return reply{code, text}, err
}

func (c *client) write(s string) error {
	_ = c.conn.SetWriteDeadline(time.Now().Add(c.o.Timeout))
	_, err := io.WriteString(c.conn, s)
	return err
}

// say sends one line and reads the reply to it.
func (c *client) say(line string) (reply, error) {
	if err := c.write(line + "\r\n"); err != nil {
		return reply{}, err
	}
	return c.read()
}

// hello says EHLO, and HELO to those that do not know it.
func (c *client) hello(name string) (reply, error) {
	r, err := c.say("EHLO " + name)
	if err == nil && r.code/100 == 5 {
		r, err = c.say("HELO " + name)
	}
	c.ext = nil
	for i, line := range strings.Split(r.text, "\n") {
		if i > 0 {
			c.ext = append(c.ext, strings.ToUpper(line))
		}
	}
	return r, err
}

// offers gives the parameters of an extension.
func (c *client) offers(keyword string) (params string, ok bool) {
	for _, e := range c.ext {
		word, rest, _ := strings.Cut(strings.Replace(e, "AUTH=", "AUTH ", 1), " ")
		if word == keyword {
			return rest, true
		}
	}
	return "", false
}

// open begins a session as a stranger does: with TLS where it is offered.
func (t *trial) open(ctx context.Context, helo string) (*client, error) {
	c, err := dial(ctx, t.o, t.target, t.view == User)
	if err != nil {
		return nil, &unreachableError{err}
	}
	r, err := c.read()
	if err != nil || r.code != 220 {
		c.close()
		if err == nil {
			err = errors.New(r.String())
		}
		return nil, &unreachableError{fmt.Errorf("greeting: %w", err)}
	}
	if r, err = c.hello(helo); err != nil || r.code != 250 {
		c.close()
		t.sent("EHLO "+helo, r)
		return nil, errors.Join(err, errHelo)
	}
	if _, ok := c.offers("STARTTLS"); ok {
		r, err := c.say("STARTTLS")
		if err != nil {
			c.close()
			return nil, &unreachableError{err}
		}
		if r.code != 220 {
			return c, nil // plain text will have to do
		}
		err = c.handshake(ctx, t.target, t.view == User)
		if err == nil {
			_, err = c.hello(helo)
		}
		if err != nil {
			c.close()
			return nil, &unreachableError{err}
		}
	}
	if t.view == User && !t.loginLater {
		if err := t.login(c); err != nil {
			c.close()
			return nil, &unreachableError{err}
		}
	}
	return c, nil
}

var errHelo = errors.New("EHLO was refused")

// login logs in, over verified TLS or on this machine.
func (t *trial) login(c *client) error {
	if !c.private() {
		return errors.New("there is no TLS: the password stays here")
	}
	offered, _ := c.offers("AUTH")
	names := strings.Fields(offered)
	encode := base64.StdEncoding.EncodeToString
	var lines []string
	switch {
	case slices.Contains(names, "PLAIN"):
		lines = []string{"AUTH PLAIN " + encode([]byte("\x00"+t.o.User+"\x00"+t.o.Password))}
	case slices.Contains(names, "LOGIN"):
		lines = []string{"AUTH LOGIN", encode([]byte(t.o.User)), encode([]byte(t.o.Password))}
	default:
		return errors.New("neither AUTH PLAIN nor AUTH LOGIN is offered")
	}
	var r reply
	for _, line := range lines {
		var err error
		if r, err = c.say(line); err != nil {
			return fmt.Errorf("log in: %w", err)
		}
	}
	if r.code != 235 {
		return fmt.Errorf("log in as %s: %s", t.o.User, r)
	}
	return nil
}

// private reports whether nobody can read along.
func (c *client) private() bool {
	_, ok := c.conn.(*tls.Conn)
	return ok || c.o.here(c.conn)
}

// here reports whether the server is on this machine, so that nobody is between
// us and it: both ends of the connection have the same address.
func here(conn net.Conn) bool {
	local, err1 := netip.ParseAddrPort(conn.LocalAddr().String())
	remote, err2 := netip.ParseAddrPort(conn.RemoteAddr().String())
	return err1 == nil && err2 == nil && local.Addr().Unmap() == remote.Addr().Unmap()
}

// sent notes a command that makes the trick, and the reply to it.
func (t *trial) sent(command string, r reply) {
	var b strings.Builder
	for _, c := range command {
		if unicode.IsPrint(c) {
			b.WriteRune(c)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(c), "'"))
		}
	}
	t.result.Sent = append(t.result.Sent, b.String())
	t.result.Reply = ""
	if r.code > 0 {
		t.result.Reply = r.String()
	}
}

// say sends a command that makes the trick.
func (t *trial) say(c *client, command string) (reply, error) {
	r, err := c.say(command)
	t.sent(command, r)
	return r, err
}

func (t *trial) verdict(v Verdict, format string, args ...any) {
	t.result.Verdict, t.result.Why = v, fmt.Sprintf(format, args...)
}
