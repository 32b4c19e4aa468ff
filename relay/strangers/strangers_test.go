package strangers

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"waybill/relay/relaytest"
)

func TestPublic(t *testing.T) {
	for _, test := range []struct {
		ip   string
		want bool
	}{
		{"9.9.9.9", true},
		{"2620:fe::fe", true},
		{"::ffff:9.9.9.9", true},
		{"127.0.0.1", false},
		{"::1", false},
		{"10.1.2.3", false},
		{"172.16.0.1", false},
		{"192.168.1.1", false},
		{"169.254.169.254", false},
		{"100.64.0.1", false},
		{"0.0.0.0", false},
		{"0.1.2.3", false},
		{"255.255.255.255", false},
		{"224.0.0.1", false},
		{"198.18.0.1", false},
		{"240.0.0.1", false},
		{"192.0.2.1", false},
		{"::", false},
		{"::ffff:127.0.0.1", false},
		{"::127.0.0.1", false},
		{"64:ff9b::7f00:1", false},
		{"2002:7f00:1::", false},
		{"2001::1", false},
		{"fe80::1", false},
		{"fe80::1%eth0", false},
		{"fc00::1", false},
		{"fd12::1", false},
		{"ff02::1", false},
		{"fec0::1", false},
		{"2001:db8::1", false},
	} {
		if got := Public(netip.MustParseAddr(test.ip)); got != test.want {
			t.Errorf("Public(%s) = %t, want %t", test.ip, got, test.want)
		}
	}
}

type addrs []netip.Addr

func (a addrs) Addrs(_ context.Context, host string) ([]netip.Addr, error) {
	if host != "stranger.example" {
		return nil, errors.New("no such host")
	}
	return a, nil
}

func TestClient(t *testing.T) {
	cert, roots := relaytest.Certificate(t, "stranger.example")
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/elsewhere" {
			http.Redirect(w, r, "https://stranger.example/", http.StatusFound)
		}
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	port := uint16(s.Listener.Addr().(*net.TCPAddr).Port)
	here := addrs{netip.MustParseAddr("127.0.0.1")}
	for _, test := range []struct {
		name string
		opts Options
		url  string
		want string // the status, or a part of the error
	}{
		{"there", Options{Resolver: here, RootCAs: roots, Port: port, AllowPrivate: true}, "https://stranger.example/", "200 OK"},
		{"no way elsewhere", Options{Resolver: here, RootCAs: roots, Port: port, AllowPrivate: true}, "https://stranger.example/elsewhere", "302 Found"},
		{"our own machine", Options{Resolver: here, RootCAs: roots, Port: port}, "https://stranger.example/", "127.0.0.1 is not a public address"},
		{"no such host", Options{Resolver: here, RootCAs: roots, Port: port}, "https://other.example/", "no such host"},
		{"no address", Options{Resolver: addrs{}, RootCAs: roots, Port: port}, "https://stranger.example/", "has no address"},
		{"unknown authority", Options{Resolver: here, Port: port, AllowPrivate: true}, "https://stranger.example/", "certificate"},
		{"strange port", Options{Resolver: here, AllowPrivate: true}, "https://stranger.example:99999/", "99999"},
	} {
		t.Run(test.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, test.url, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := Client(test.opts).Do(req)
			var got string
			if err != nil {
				got = err.Error()
			} else {
				got = resp.Status
				_ = resp.Body.Close()
			}
			if !strings.Contains(got, test.want) {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}
