package wire

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

// v2 is a header of version 2 with its parts as given.
func v2(command, family byte, rest string) string {
	return "\r\n\r\n\x00\r\nQUIT\n" + string([]byte{command, family, byte(len(rest) >> 8), byte(len(rest))}) + rest
}

const (
	addrs4 = "\xc0\x00\x02\x01\xc6\x33\x64\x02\x30\x39\x00\x19" // 192.0.2.1:12345 to 198.51.100.2:25
	addrs6 = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" +
		"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x30\x39\x00\x19"
	mapped = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc0\x00\x02\x01" +
		"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc6\x33\x64\x02\x30\x39\x00\x19"
)

func TestReadProxy(t *testing.T) {
	for _, test := range []struct {
		name  string
		in    string
		after string // what can be read behind the header
		want  string // client and local address, "" for none, or a part of the error
		bad   bool
	}{
		{"v1", "PROXY TCP4 192.0.2.1 198.51.100.2 12345 25\r\n", "", "192.0.2.1:12345 198.51.100.2:25", false},
		{"v1, IPv6", "PROXY TCP6 2001:db8::1 2001:db8::2 12345 25\r\n", "", "[2001:db8::1]:12345 [2001:db8::2]:25", false},
		{"v1, and a client that does not wait", "PROXY TCP4 192.0.2.1 198.51.100.2 12345 25\r\nEHLO x\r\n", "EHLO x\r\n", "192.0.2.1:12345 198.51.100.2:25", false},
		{"v1 of nobody", "PROXY UNKNOWN\r\n", "", "", false},
		{"v1 of nobody, with addresses", "PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", "", "", false},
		{"v2", v2(0x21, 0x11, addrs4), "", "192.0.2.1:12345 198.51.100.2:25", false},
		{"v2, IPv6", v2(0x21, 0x21, addrs6), "", "[2001:db8::1]:12345 [2001:db8::2]:25", false},
		{"v2, IPv4 in IPv6", v2(0x21, 0x21, mapped), "", "192.0.2.1:12345 198.51.100.2:25", false},
		{"v2 with more behind the addresses", v2(0x21, 0x11, addrs4+"\x04\x00\x03abc") + "\x16\x03\x01", "\x16\x03\x01", "192.0.2.1:12345 198.51.100.2:25", false},
		{"v2 of the proxy itself", v2(0x20, 0x00, ""), "", "", false},
		{"v2 of the proxy itself, with addresses", v2(0x20, 0x11, addrs4), "", "", false},

		{"nothing", "", "", ErrNoHeader.Error(), true},
		{"SMTP", "EHLO example.com\r\n", "", "signature not present", true},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdefgh", "", "signature not present", true},
		{"cut", "PROXY TCP4 192.0", "", "PROXY header", true},
		{"v1, too long", "PROXY TCP4 " + strings.Repeat("1", 200) + "\r\n", "", "PROXY header", true},
		{"v1, only a line feed", "PROXY TCP4 192.0.2.1 198.51.100.2 12345 25\n", "", "PROXY header", true},
		{"v1, a bad address", "PROXY TCP4 192.0.2.999 198.51.100.2 12345 25\r\n", "", "PROXY header", true},
		{"v1, a bad port", "PROXY TCP4 192.0.2.1 198.51.100.2 123456 25\r\n", "", "PROXY header", true},
		{"v1, the wrong family", "PROXY TCP4 2001:db8::1 2001:db8::2 12345 25\r\n", "", "PROXY header", true},
		{"v1, a zone", "PROXY TCP6 fe80::1%eth0 2001:db8::2 12345 25\r\n", "", "PROXY header", true},
		{"v1, another protocol", "PROXY UDP4 192.0.2.1 198.51.100.2 12345 25\r\n", "", "PROXY header", true},
		{"nobody's address", "PROXY TCP4 0.0.0.0 198.51.100.2 12345 25\r\n", "", "nobody connects from", true},
		{"v2, datagrams", v2(0x21, 0x12, addrs4), "", "not of a TCP connection", true},
		{"v2, a local socket", v2(0x21, 0x31, strings.Repeat("a", 216)), "", "not of a TCP connection", true},
		{"v2, no family", v2(0x21, 0x00, ""), "", "PROXY header", true},
		{"v2, another version", v2(0x31, 0x11, addrs4), "", "PROXY header", true},
		{"v2, too short for its addresses", v2(0x21, 0x11, addrs4[:8]), "", "PROXY header", true},
		{"v2, much too long", v2(0x21, 0x11, addrs4+strings.Repeat("x", 60000)), "", "PROXY header", true},
		{"v2, cut", v2(0x21, 0x11, addrs4)[:20], "", "PROXY header", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			near, far := net.Pipe()
			defer far.Close()
			go func() {
				_, _ = io.WriteString(near, test.in)
				_ = near.Close()
			}()
			conn, p, err := ReadProxy(far, time.Now().Add(time.Minute))
			if test.bad {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("ReadProxy() = %v, %v, want %q", p, err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if p.Client.IsValid() {
				got = p.Client.String() + " " + p.Local.String()
			}
			if got != test.want {
				t.Errorf("ReadProxy() = %s, want %s", got, test.want)
			}
			rest, err := io.ReadAll(conn)
			if string(rest) != test.after || err != nil {
				t.Errorf("behind the header: %q, %v, want %q", rest, err, test.after)
			}
		})
	}
}

func TestReadProxyWaitsNoLonger(t *testing.T) {
	for _, test := range []struct {
		name string
		in   string
	}{{"nothing came", ""}, {"a part came", "PROXY TC"}} {
		t.Run(test.name, func(t *testing.T) {
			near, far := net.Pipe()
			defer near.Close()
			defer far.Close()
			go func() { _, _ = io.WriteString(near, test.in) }()
			_, _, err := ReadProxy(far, time.Now().Add(50*time.Millisecond))
			if err == nil || errors.Is(err, ErrNoHeader) || test.in == "" && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("ReadProxy() = %v, want that time is over", err)
			}
		})
	}
}

// FuzzReadProxy looks for headers that are taken and mean something else to
// whoever reads them again.
func FuzzReadProxy(f *testing.F) {
	for _, s := range []string{
		"PROXY TCP4 192.0.2.1 198.51.100.2 12345 25\r\nEHLO x\r\n", "PROXY UNKNOWN\r\n", v2(0x21, 0x11, addrs4), v2(0x21, 0x21, addrs6+"\x04\x00\x01a"),
		v2(0x20, 0, ""), v2(0x21, 0x31, strings.Repeat("a", 216)), "EHLO x\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = near.Write(in)
			_ = near.Close()
		}()
		conn, p, err := ReadProxy(far, time.Now().Add(time.Minute))
		if err == nil && p.Client.IsValid() {
			h := proxyproto.HeaderProxyFromAddrs(2, net.TCPAddrFromAddrPort(p.Client), net.TCPAddrFromAddrPort(p.Local))
			again, err := proxied(h)
			if err != nil || again != p {
				t.Errorf("%v is read again as %v, %v", p, again, err)
			}
			if ip := p.Client.Addr(); ip.Is4In6() || ip.Zone() != "" || ip.IsUnspecified() {
				t.Errorf("client %s", ip)
			}
		}
		if err == nil {
			rest, err := io.ReadAll(conn)
			if err != nil || !strings.HasSuffix(string(in), string(rest)) {
				t.Errorf("behind the header of %q: %q, %v", in, rest, err)
			}
		}
		_ = far.Close()
		<-done
	})
}

func TestParseXClient(t *testing.T) {
	ip := netip.MustParseAddr
	for _, test := range []struct {
		name string
		in   string
		want XClient
		bad  bool
	}{
		{"all", "NAME=spike.example.com ADDR=192.0.2.1 PORT=1234 PROTO=ESMTP HELO=me.example LOGIN=ann+40example.com DESTADDR=198.51.100.2 DESTPORT=25", XClient{
			Name: "spike.example.com", Addr: ip("192.0.2.1"), Port: 1234, ESMTP: true, Helo: "me.example", Login: "ann@example.com",
			DestAddr: ip("198.51.100.2"), DestPort: 25,
		}, false},
		{"case and space", "  addr=IPv6:2001:db8::1   proto=smtp ", XClient{Addr: ip("2001:db8::1")}, false},
		{"mapped", "ADDR=::ffff:192.0.2.1", XClient{Addr: ip("192.0.2.1")}, false},
		{"unknown", "NAME=[UNAVAILABLE] LOGIN=[unavailable] HELO=[TEMPUNAVAIL]", XClient{}, false},
		{"nothing", "", XClient{}, true},
		{"no value", "ADDR", XClient{}, true},
		{"empty value", "ADDR=", XClient{}, true},
		{"twice", "ADDR=192.0.2.1 ADDR=192.0.2.2", XClient{}, true},
		{"unknown attribute", "REVERSE_NAME=x", XClient{}, true},
		{"bad address", "ADDR=spike", XClient{}, true},
		{"zone", "ADDR=fe80::1%eth0", XClient{}, true},
		{"bad port", "PORT=65536", XClient{}, true},
		{"bad protocol", "PROTO=LMTP", XClient{}, true},
		{"bad name", "NAME=a+20b", XClient{}, true},
		{"bad xtext", "LOGIN=a+4", XClient{}, true},
		{"control character", "LOGIN=a+0Db", XClient{}, true},
		{"long", "LOGIN=" + strings.Repeat("a", 256), XClient{}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := parseXClient(test.in)
			if (err != nil) != test.bad {
				t.Fatalf("parseXClient(%q) = %v", test.in, err)
			}
			if test.bad {
				return
			}
			for word := range strings.FieldsSeq(test.in) {
				if key, _, _ := strings.Cut(word, "="); !got.Has(strings.ToUpper(key)) {
					t.Errorf("it has no %s", key)
				}
			}
			got.has = nil
			if got.Name != test.want.Name || got.Addr != test.want.Addr || got.Port != test.want.Port || got.ESMTP != test.want.ESMTP ||
				got.Helo != test.want.Helo || got.Login != test.want.Login || got.DestAddr != test.want.DestAddr || got.DestPort != test.want.DestPort {
				t.Errorf("parseXClient(%q) = %+v, want %+v", test.in, got, test.want)
			}
		})
	}
}

func FuzzParseXClient(f *testing.F) {
	for _, s := range []string{"ADDR=192.0.2.1 PORT=25 LOGIN=a+40b NAME=[UNAVAILABLE]", "HELO=x PROTO=ESMTP DESTADDR=IPV6:::1 DESTPORT=0", "a=b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		x, err := parseXClient(in)
		if err != nil {
			return
		}
		for _, s := range []string{x.Name, x.Helo, x.Login} {
			if len(s) > 255 || strings.ContainsAny(s, "\r\n\x00") {
				t.Errorf("%q has %q", in, s)
			}
		}
		if x.Addr.Is4In6() || x.Addr.Zone() != "" {
			t.Errorf("%q has the address %s", in, x.Addr)
		}
	})
}

// TestHasteWithoutPipelining: what comes with a command, where each reply has to
// be waited for, is refused, and never run.
func TestHasteWithoutPipelining(t *testing.T) {
	const from, to = "MAIL FROM:<a@example.com>\r\n", "RCPT TO:<b@example.com>\r\n"
	without, err := NewExtensions(nil, []string{"PIPELINING"})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		ext  Extensions
		talk []string
	}{
		{"announced", Extensions{}, []string{from + to + "RSET\r\n=>250", "=>250", "=>250"}},
		{"one by one", without, []string{from + "=>250", to + "=>250", "DATA\r\n=>354", "x\r\n.\r\n=>250"}},
		{"a group", without, []string{from + to + "=>503 5.5.1 wait", "=>503 5.5.1 bad sequence", from + "=>250"}},
		{"a content before its time", without, []string{from + "=>250", to + "=>250", "DATA\r\nx\r\n.\r\nNOOP\r\n=>503 5.5.1 wait", "=>"}},
		{"a chunk comes with its command", without, []string{from + "=>250", to + "=>250", "BDAT 3 LAST\r\nx\r\n=>250"}},
		{"too often", without, []string{"NOOP\r\nNOOP\r\nNOOP\r\nNOOP\r\n=>503 5.5.1 wait", "=>503 5.5.1 wait", "=>421 4.7.0"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := dial(t, serve(t, true, Options{Extensions: test.ext, ProtocolErrors: 3}, nil).addr)
			c.expect("220")
			c.talk("EHLO me\r\n=>250")
			c.talk(test.talk...)
		})
	}
}
