package smtpin

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"waybill/relay/auth"
	"waybill/relay/event"
	"waybill/relay/policy"
	"waybill/relay/relaytest"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// behind are two connectors at one address: for 10.0.0.0/8, who may relay, and
// for everybody, who may not. Both believe proxies on loopback.
func behind(addr string, change ...func(*Connector)) []Connector {
	var list []Connector
	for _, c := range []Connector{
		{Name: "inside", RemoteRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Permissions: policy.Permissions{Submit: true, Relay: true}},
		{Name: "outside", RemoteRanges: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}, Permissions: policy.Permissions{Submit: true}},
	} {
		c.Listen, c.Banner, c.Policy = []string{addr}, "ESMTP "+c.Name, &policy.Control{}
		c.Limits = Limits{Tarpit: -1, ConnectionsPerSource: -1, ProtocolErrors: 1000}
		c.ProxyTrusted = loopback
		for _, f := range change {
			f(&c)
		}
		list = append(list, c)
	}
	return list
}

func (r *relay) dialTo(t testing.TB, addr string) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, c)
}

func TestProxyHeader(t *testing.T) {
	addr := "127.0.0.1:" + relaytest.Port(t)
	r := start(t, Options{Connectors: behind(addr)})
	for _, test := range []struct {
		name, header string
		want         string // greeting's end; "" is no session
		client       string
		rcpt         string
	}{
		{"inside", "PROXY TCP4 10.1.2.3 192.0.2.25 1234 25\r\n", "inside", "10.1.2.3", "250"},
		{"outside", "PROXY TCP4 198.51.100.9 192.0.2.25 1234 25\r\n", "outside", "198.51.100.9", "550 5.7.1 relay"},
		{"IPv6", "PROXY TCP6 2001:db8::9 2001:db8::25 1234 25\r\n", "outside", "2001:db8::9", "550 5.7.1 relay"},
		{"the proxy itself", "PROXY UNKNOWN\r\n", "outside", "127.0.0.1", "550 5.7.1 relay"},
		{"no header", "EHLO x\r\n", "", "127.0.0.1", ""},
		{"a bad one", "PROXY TCP4 10.1.2.3\r\n", "", "127.0.0.1", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			sessions, refused := len(facts[event.SessionOpened](r.rec)), len(facts[event.SessionRefused](r.rec))
			c := r.dialTo(t, addr)
			c.send(test.header)
			got := c.reply()
			if test.want == "" {
				if got != "" {
					t.Errorf("reply = %q, want none", got)
				}
				f := await[event.SessionRefused](t, r.rec, refused+1)[refused]
				if f.Reason != "proxy_protocol" || f.ClientIP.String() != test.client || f.Error == "" {
					t.Errorf("fact = %+v", f)
				}
				return
			}
			if !strings.HasSuffix(got, test.want) {
				t.Fatalf("greeting = %q, want of %s", got, test.want)
			}
			c.talk("EHLO x=>250", "MAIL FROM:<a@example.net>=>250", "RCPT TO:<b@example.org>=>"+test.rcpt, "QUIT=>221")
			f := await[event.SessionOpened](t, r.rec, sessions+1)[sessions]
			if f.Connector != test.want || f.ClientIP.String() != test.client || f.ProxyIP.IsValid() != (test.client != "127.0.0.1") {
				t.Errorf("fact = %+v", f)
			}
			if f.ProxyIP.IsValid() && (f.ProxyIP.String() != "127.0.0.1" || f.ClientPort != 1234 || f.LocalPort != 25) {
				t.Errorf("fact = %+v", f)
			}
		})
	}
}

func TestProxyThatOnlyOneConnectorTrusts(t *testing.T) {
	addr := "127.0.0.1:" + relaytest.Port(t)
	r := start(t, Options{Connectors: behind(addr, func(c *Connector) {
		if c.Name == "inside" {
			c.ProxyTrusted = nil
		}
	})})
	c := r.dialTo(t, addr)
	c.send("PROXY TCP4 10.1.2.3 192.0.2.25 1234 25\r\n")
	if got := c.reply(); !strings.HasSuffix(got, "outside") {
		t.Errorf("greeting = %q: what a proxy says must count only where it is trusted", got)
	}
}

func TestProxyHeaderOfAStranger(t *testing.T) {
	for _, test := range []struct{ name, header string }{
		{"v1", "PROXY TCP4 10.1.2.3 192.0.2.25 1234 25\r\n"},
		{"v1 in lower case", "proxy tcp4 10.1.2.3 192.0.2.25 1234 25\r\n"},
		{"v2", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x0a\x01\x02\x03\xc0\x00\x02\x19\x04\xd2\x00\x19"},
	} {
		t.Run(test.name, func(t *testing.T) {
			addr := "127.0.0.1:" + relaytest.Port(t)
			r := start(t, Options{Connectors: behind(addr, func(c *Connector) { c.ProxyTrusted = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")} })})
			c := r.dialTo(t, addr)
			c.send(test.header + "EHLO x\r\nMAIL FROM:<a@example.net>\r\n")
			c.talk("=>220", "=>554 5.5.1 no PROXY header", "=>")
			if f := await[event.SessionClosed](t, r.rec, 1)[0]; f.Connector != "outside" || f.Cause != "protocol" || f.ClientIP.String() != "127.0.0.1" {
				t.Errorf("closed = %+v", f)
			}
			remarks := facts[event.Remarked](r.rec)
			if !slices.ContainsFunc(remarks, func(f event.Remarked) bool { return strings.Contains(f.Remark, "PROXY header") }) {
				t.Errorf("remarks = %+v", remarks)
			}
		})
	}
}

func TestProxyHeaderComesBeforeTLS(t *testing.T) {
	addr := "127.0.0.1:" + relaytest.Port(t)
	r := start(t, Options{Connectors: behind(addr, secure, func(c *Connector) { c.TLSMode = "implicit" })})
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, tls.Client(ahead{raw, []byte("PROXY TCP4 10.1.2.3 192.0.2.25 1234 465\r\n")}, clientTLS()))
	c.talk("=>220 mx.example.com ESMTP inside", "EHLO x=>250", "QUIT=>221")
	if f := await[event.SessionClosed](t, r.rec, 1)[0]; f.ClientIP.String() != "10.1.2.3" {
		t.Errorf("closed = %+v", f)
	}

	// Within TLS it is no header.
	raw, err = net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c = newClient(t, tls.Client(ahead{raw, []byte("PROXY TCP4 198.51.100.9 192.0.2.25 1234 465\r\n")}, clientTLS()))
	c.talk("=>220 mx.example.com ESMTP outside", "PROXY TCP4 10.1.2.3 192.0.2.25 1234 465=>554 5.5.1", "=>")
}

// ahead writes something in front of the first octets, in the same segment.
type ahead struct {
	net.Conn
	first []byte
}

func (a ahead) Write(p []byte) (int, error) {
	if len(a.first) > 0 && p[0] == 0x16 && p[5] == 1 { // a ClientHello
		n, err := a.Conn.Write(append(slices.Clone(a.first), p...))
		return n - len(a.first), err
	}
	return a.Conn.Write(p)
}

func TestProxyHeaderInTime(t *testing.T) {
	addr := "127.0.0.1:" + relaytest.Port(t)
	r := start(t, Options{Connectors: behind(addr, func(c *Connector) { c.ProxyTimeout = time.Second })})
	probe, err := net.Dial("tcp", addr) // connects and goes: no fact
	if err != nil {
		t.Fatal(err)
	}
	_ = probe.Close()
	c := r.dialTo(t, addr)
	c.send("PROXY TCP4 10.1")
	c.talk("=>")
	f := await[event.SessionRefused](t, r.rec, 1)
	if len(f) != 1 || f[0].Reason != "proxy_protocol" || f[0].Connector != "inside" {
		t.Errorf("facts = %+v", f)
	}
}

func TestProxyLimitsAreOfTheClient(t *testing.T) {
	addr := "127.0.0.1:" + relaytest.Port(t)
	r := start(t, Options{Connectors: behind(addr, func(c *Connector) { c.Limits.ConnectionsPerSource = 1 })})
	hello := func(ip string) string {
		c := r.dialTo(t, addr)
		c.send("PROXY TCP4 " + ip + " 192.0.2.25 1234 25\r\n")
		return c.reply()[:3]
	}
	if got := hello("10.0.0.1") + hello("10.0.0.2") + hello("10.0.0.1"); got != "220220421" {
		t.Errorf("replies = %s, want 220, 220 and 421", got)
	}
}

func TestEndDoesNotWaitForHeaders(t *testing.T) {
	addr := "127.0.0.1:" + relaytest.Port(t)
	r := start(t, Options{Connectors: behind(addr, func(c *Connector) { c.ProxyTimeout = time.Hour })})
	for range 3 {
		r.dialTo(t, addr).send("PROXY")
	}
	for deadline := time.Now().Add(time.Minute); r.headers.Load() < 3 && time.Now().Before(deadline); {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	r.stop()
	if err := <-r.done; err != nil { // or the end of the test's time
		t.Error(err)
	}
	r.done <- nil
}

const announced = "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"

// announcing are the connectors of behind for clients on loopback that may use
// XCLIENT: one more is for them.
func announcing(addr string, change ...func(*Connector)) []Connector {
	list := behind(addr, func(c *Connector) { c.ProxyTrusted, c.ClientTrusted = nil, loopback })
	own := list[0]
	own.Name, own.Banner, own.RemoteRanges = "own", "ESMTP own", loopback
	list = append(list, own)
	for i := range list {
		for _, f := range change {
			f(&list[i])
		}
	}
	return list
}

func TestXClient(t *testing.T) {
	addr := "127.0.0.1:" + relaytest.Port(t)
	r := start(t, Options{Connectors: announcing(addr, func(c *Connector) { c.Transcript.Mode = "all" })})
	c := r.dialTo(t, addr)
	c.talk("=>220 mx.example.com ESMTP own")
	c.send("EHLO filter\r\n")
	if got := c.reply(); !strings.Contains(got, announced) {
		t.Errorf("EHLO = %q, want %s", got, announced)
	}
	c.talk(
		"XCLIENT NAME=spike.example.com ADDR=198.51.100.9 PORT=1234 DESTADDR=192.0.2.25 DESTPORT=25 HELO=spike PROTO=ESMTP=>220 mx.example.com ESMTP outside",
		"MAIL FROM:<a@example.net>=>250", "RCPT TO:<b@example.org>=>550 5.7.1 relay", "XCLIENT ADDR=10.1.2.3=>503", "RSET=>250",
		"XCLIENT ADDR=10.1.2.3=>220 mx.example.com ESMTP inside",
		"MAIL FROM:<a@example.net>=>503", "EHLO filter=>250",
		"MAIL FROM:<a@example.net>=>250", "RCPT TO:<b@example.org>=>250", "DATA=>354", "x\r\n.=>250",
		"XCLIENT ADDR=nonsense=>501 5.5.4", "XCLIENT=>501",
		"XCLIENT LOGIN=ann+40example.com=>220", "EHLO filter=>250", "MAIL FROM:<bob@example.com>=>550 5.7.1", "MAIL FROM:<ann@example.com>=>250", "RSET=>250",
		"XCLIENT LOGIN=[UNAVAILABLE]=>220", "EHLO filter=>250", "MAIL FROM:<bob@example.com>=>250", "QUIT=>221",
	)
	m := r.messages()[0]
	if o := m.Origin; o.Connector != "inside" || o.Client.Addr().String() != "10.1.2.3" || o.ClientName != "spike.example.com" || o.Helo != "filter" {
		t.Errorf("origin = %+v", o)
	}
	if !strings.Contains(string(m.Trace), "from filter (spike.example.com [10.1.2.3])\r\n") {
		t.Errorf("trace = %s", m.Trace)
	}
	said := facts[event.ClientAnnounced](r.rec)
	if len(said) != 4 || said[0].ClientIP.String() != "198.51.100.9" || said[0].ProxyIP.String() != "127.0.0.1" || said[0].ClientPort != 1234 ||
		said[0].Helo != "spike" || said[0].Connector != "outside" || said[0].LocalIP.String() != "192.0.2.25" || said[2].AuthUser != "ann@example.com" {
		t.Errorf("facts = %+v", said)
	}
	if f := await[event.SessionClosed](t, r.rec, 1)[0]; f.Connector != "inside" || f.ClientIP.String() != "10.1.2.3" {
		t.Errorf("closed = %+v", f)
	}
	for name, c := range r.Connections() {
		if c[0] > 0 {
			defer func() {
				if got := r.Connections()[name][0]; got != 0 {
					t.Errorf("%s still counts %d connections", name, got)
				}
			}()
		}
	}
	r.stop()
	<-r.done
	r.done <- nil
}

func TestXClientIsRefused(t *testing.T) {
	stranger := func(c *Connector) { c.ClientTrusted = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")} }
	for _, test := range []struct {
		name   string
		change func(*Connector)
		talk   []string
		reason string // of SessionRefused
	}{
		{"a stranger", stranger, []string{"XCLIENT ADDR=10.1.2.3=>550 5.7.0", "MAIL FROM:<a@example.net>=>250"}, ""},
		{"nobody may connect from there", func(c *Connector) {
			if c.Name == "outside" {
				c.RemoteRanges = nil
				c.ClientTrusted = nil
			}
		}, []string{"XCLIENT ADDR=198.51.100.9=>554 5.7.1", "=>"}, "denied"},
		{"an unknown client", func(*Connector) {}, []string{"XCLIENT ADDR=[UNAVAILABLE]=>554 5.7.1", "=>"}, "denied"},
		{"too many of that client", func(c *Connector) {
			if c.Name == "inside" {
				c.Limits.Connections = 1
			}
		}, []string{"XCLIENT ADDR=10.1.2.3=>421 4.7.0", "=>"}, "limit_total"},
	} {
		t.Run(test.name, func(t *testing.T) {
			addr := "127.0.0.1:" + relaytest.Port(t)
			r := start(t, Options{Connectors: announcing(addr, test.change)})
			if test.reason == "limit_total" {
				c := r.dialTo(t, addr)
				c.talk("=>220", "EHLO x=>250", "XCLIENT ADDR=10.1.2.3=>220")
			}
			c := r.dialTo(t, addr)
			c.talk("=>220")
			c.send("EHLO x\r\n")
			if got := c.reply(); strings.Contains(got, "XCLIENT") != (test.name != "a stranger") {
				t.Errorf("EHLO = %q", got)
			}
			c.talk(test.talk...)
			if test.reason != "" {
				if f := await[event.SessionRefused](t, r.rec, 1)[0]; f.Reason != test.reason || !strings.Contains(f.Error, "127.0.0.1 says") {
					t.Errorf("fact = %+v", f)
				}
			}
		})
	}
}

func TestXClientLogin(t *testing.T) {
	lookup := func(user string) (auth.Identity, error) {
		switch user {
		case "app":
			return auth.Identity{User: "App", Senders: []string{"@example.com"}}, nil
		case "off":
			return auth.Identity{}, fmt.Errorf("%w: disabled", auth.ErrCredentials)
		}
		return auth.Identity{}, auth.ErrUnknownUser
	}
	addr := "127.0.0.1:" + relaytest.Port(t)
	r := start(t, Options{Connectors: announcing(addr, secure, func(c *Connector) { c.AuthRequired, c.AuthBeforeTLS, c.Lookup = true, true, lookup })})
	for _, test := range []struct {
		name string
		talk []string
	}{
		{"known", []string{"XCLIENT LOGIN=app=>220", "EHLO x=>250", "MAIL FROM:<any@example.com>=>250", "RSET=>250", "MAIL FROM:<any@example.org>=>550 5.7.1"}},
		{"unknown here", []string{"XCLIENT LOGIN=eve+40example.org=>220", "EHLO x=>250", "MAIL FROM:<eve@example.org>=>250", "RSET=>250", "MAIL FROM:<any@example.com>=>550 5.7.1"}},
		{"disabled", []string{"XCLIENT LOGIN=off=>550 5.7.8", "=>"}},
		{"no login", []string{"XCLIENT ADDR=10.0.0.1=>220", "EHLO x=>250", "MAIL FROM:<any@example.com>=>530 5.7.0"}},
		{"an own login, then no other", []string{"AUTH PLAIN AGFubgByaWdodA===>235", "XCLIENT LOGIN=app=>503"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := r.dialTo(t, addr)
			c.talk("=>220", "EHLO x=>250")
			c.talk(test.talk...)
		})
	}
}
