package wire

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/pires/go-proxyproto"
)

// ErrNoHeader says that a connection ended before anything came: a probe that
// looks whether somebody listens.
var ErrNoHeader = errors.New("nothing came")

// Proxied is what a proxy says of a connection that it makes for a client. It is
// zero when the proxy speaks for itself, as it does to see whether we are there.
type Proxied struct {
	Client netip.AddrPort // who connected to the proxy
	Local  netip.AddrPort // and to which address
}

// ReadProxy reads the header of the PROXY protocol, version 1 or 2, with which a
// connection must begin, even before TLS, and returns the connection behind it.
// Who may say such a thing is for the caller to decide. After an error the
// connection is of no use.
func ReadProxy(raw net.Conn, deadline time.Time) (net.Conn, Proxied, error) {
	_ = raw.SetReadDeadline(deadline) // fails only on a closed connection, as the read does
	r := bufio.NewReader(raw)
	if _, err := r.Peek(1); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, Proxied{}, fmt.Errorf("no PROXY header came: %w", err)
		}
		return nil, Proxied{}, ErrNoHeader
	}
	h, err := proxyproto.Read(r)
	if err != nil {
		return nil, Proxied{}, fmt.Errorf("PROXY header: %s", Printable(strings.TrimPrefix(err.Error(), "proxyproto: "), 200))
	}
	p, err := proxied(h)
	if err != nil {
		return nil, Proxied{}, err
	}
	_ = raw.SetReadDeadline(time.Time{})
	if n := r.Buffered(); n > 0 { // a client that did not wait for the greeting, or its TLS handshake
		ahead, err := r.Peek(n)
		if err != nil {
			return nil, Proxied{}, err
		}
		return &aheadConn{Conn: raw, ahead: ahead}, p, nil
	}
	return raw, p, nil
}

func proxied(h *proxyproto.Header) (p Proxied, err error) {
	if h.Command.IsLocal() { // what addresses come with it mean nothing
		return p, nil
	}
	client, local, ok := h.TCPAddrs()
	if !ok {
		return p, errors.New("PROXY header: not of a TCP connection")
	}
	p.Client, p.Local = plainAddr(client), plainAddr(local)
	if ip := p.Client.Addr(); ip.IsUnspecified() || ip.IsMulticast() {
		return Proxied{}, errors.New("PROXY header: nobody connects from " + ip.String())
	}
	return p, nil
}

// plainAddr is an address as rules compare it.
func plainAddr(a *net.TCPAddr) netip.AddrPort {
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// aheadConn is a connection of which some octets were read already.
type aheadConn struct {
	net.Conn
	ahead []byte
}

// Read gives the octets that were read ahead, then those that come.
func (c *aheadConn) Read(p []byte) (int, error) {
	if len(c.ahead) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.ahead)
	c.ahead = c.ahead[n:]
	return n, nil
}

// CloseWrite ends our half of the connection.
func (c *aheadConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return io.ErrClosedPipe
}

// proxyV2 is how a binary PROXY header begins, with the lines that it would be.
var proxyV2 = []byte("\r\n\r\n\x00\r\nQUIT\n")

// proxyHeader reports whether a line that came where the first command was
// expected is a header of the PROXY protocol, of a peer that nobody has asked
// for one. What follows it cannot be trusted to be what a client said.
func (c *Conn) proxyHeader(line []byte) bool {
	switch {
	case c.commands > 0:
		return false
	case len(line) == 0:
		rest := c.in.bytes()
		want := proxyV2[2:]
		n := min(len(rest), len(want))
		return n >= 3 && string(rest[:n]) == string(want[:n])
	}
	return len(line) >= 6 && strings.EqualFold(string(line[:6]), "PROXY ")
}
