package tlsconf

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"waybill/relay/event"
)

// answer gives what a server says of a client that sends raw and then closes, or
// waits when hold is set.
func answer(t *testing.T, server *tls.Config, raw []byte, hold bool) error {
	t.Helper()
	a, b := net.Pipe()
	defer b.Close()
	done := make(chan error, 1)
	go func() {
		defer a.Close()
		if hold {
			_ = a.SetDeadline(time.Now().Add(20 * time.Millisecond))
		}
		done <- tls.Server(a, server).Handshake()
	}()
	go func() { _, _ = io.Copy(io.Discard, b) }()
	if len(raw) > 0 {
		_, _ = b.Write(raw)
	}
	if !hold {
		_ = b.Close()
	}
	return <-done
}

// hello is the record of a client's first message that offers version in the way
// of before TLS 1.3.
func hello(version uint16) []byte {
	body := append([]byte{byte(version >> 8), byte(version)}, bytes.Repeat([]byte{7}, 32)...)
	body = append(body, 0, 0, 2, 0, 0x2f, 1, 0)
	msg := append([]byte{1, 0, byte(len(body) >> 8), byte(len(body))}, body...)
	return append([]byte{22, 3, 0, byte(len(msg) >> 8), byte(len(msg))}, msg...)
}

func TestReasonOfClients(t *testing.T) {
	c, _ := load(t, source(t, "default", "a.example"))
	server, err := c.Server(ServerOptions{Certificate: "default"})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		raw  []byte
		hold bool
		want string
	}{
		{"plain SMTP", []byte("EHLO client.example\r\n"), false, NotTLS},
		{"HTTP", []byte("GET / HTTP/1.1\r\n\r\n"), false, NotTLS},
		{"SSL 2", append([]byte{0x80, 0x2e, 1, 0, 2}, bytes.Repeat([]byte{0}, 41)...), false, OldProtocol},
		{"SSL 3", hello(0x0300), false, OldProtocol},
		{"TLS 1.0", hello(tls.VersionTLS10), false, Version},
		{"TLS 1.2 with an old cipher alone", hello(tls.VersionTLS12), false, NoSharedCipher},
		{"gone", nil, false, Closed},
		{"gone within a record", hello(tls.VersionTLS12)[:20], false, Closed},
		{"silent", nil, true, Timeout},
		{"another kind of record", []byte{23, 3, 3, 0, 1, 0}, false, NotTLS},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := answer(t, server, test.raw, test.hold)
			if got := Reason(err); got != test.want {
				t.Errorf("Reason(%v) = %s, want %s", err, got, test.want)
			}
		})
	}
}

// sides gives both sides' errors of a handshake and of the first octet after it.
func sides(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	b, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	if err := errors.Join(a.SetDeadline(deadline), b.SetDeadline(deadline)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		s := tls.Server(a, server)
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		_, _ = io.Copy(io.Discard, a) // lets the client read our alert
		_ = a.Close()
		done <- err
	}()
	conn := tls.Client(b, client)
	clientErr = conn.Handshake()
	if clientErr == nil {
		_, clientErr = conn.Read(make([]byte, 1))
	}
	_ = b.Close()
	return <-done, clientErr
}

func TestReasonOfBothSides(t *testing.T) {
	own, friend, enemy := source(t, "default", "a.example"), source(t, "f", "friend.example"), source(t, "e", "enemy.example")
	c, _ := load(t, own)
	for _, test := range []struct {
		name           string
		server         ServerOptions
		client         ClientOptions
		change         func(c *tls.Config)
		server1, wantC string // reasons; empty: no failure
	}{
		{"good", ServerOptions{}, ClientOptions{}, nil, "", ""},
		{"old client", ServerOptions{}, ClientOptions{MinVersion: "1.0"}, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS11 }, Version, Version},
		{"no cipher", ServerOptions{}, ClientOptions{}, func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}
		}, NoSharedCipher, NoSharedCipher},
		{"client knows another authority", ServerOptions{}, ClientOptions{CAFile: friend.CertFile}, nil, BadCertificate, UnknownAuthority},
		{"client wants another name", ServerOptions{}, ClientOptions{}, func(c *tls.Config) { c.ServerName = "b.example" }, BadCertificate, NameMismatch},
		{"client's clock", ServerOptions{}, ClientOptions{}, func(c *tls.Config) {
			c.Time = func() time.Time { return time.Now().Add(3 * 365 * 24 * time.Hour) }
		}, BadCertificate, CertificateExpired},
		{"no client certificate", ServerOptions{ClientCertificate: "require", ClientCAFile: friend.CertFile}, ClientOptions{}, nil, NoCertificate, NoCertificate},
		{"unknown client certificate", ServerOptions{ClientCertificate: "require", ClientCAFile: friend.CertFile}, with(enemy), nil, UnknownAuthority, UnknownAuthority},
		{"known client", ServerOptions{ClientCertificate: "require", ClientCAFile: friend.CertFile}, with(friend), nil, "", ""},
		{"known client, right name", ServerOptions{ClientCertificate: "require", ClientCAFile: friend.CertFile, ClientNames: []string{"x.example", "friend.example"}}, with(friend), nil, "", ""},
		{"known client, wrong name", ServerOptions{ClientCertificate: "require", ClientCAFile: friend.CertFile, ClientNames: []string{"x.example"}}, with(friend), nil, NameMismatch, BadCertificate},
		{"request and unknown", ServerOptions{ClientCertificate: "request", ClientCAFile: friend.CertFile}, with(enemy), nil, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.server.Certificate = "default"
			server, err := c.Server(test.server)
			if err != nil {
				t.Fatal(err)
			}
			if test.client.CAFile == "" {
				test.client.CAFile = own.CertFile
			}
			client, err := Client(test.client)
			if err != nil {
				t.Fatal(err)
			}
			client.ServerName = "a.example"
			if len(client.Certificates) > 0 {
				client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &client.Certificates[0], nil }
			}
			if test.change != nil {
				test.change(client)
			}
			serverErr, clientErr := sides(t, server, client)
			if got := Reason(serverErr); got != test.server1 {
				t.Errorf("server: Reason(%v) = %q, want %q", serverErr, got, test.server1)
			}
			if got := Reason(clientErr); got != test.wantC {
				t.Errorf("client: Reason(%v) = %q, want %q", clientErr, got, test.wantC)
			}
		})
	}
}

// with shows a certificate.
func with(s Source) ClientOptions { return ClientOptions{CertFile: s.CertFile, KeyFile: s.KeyFile} }

func TestReasonWords(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		want string
	}{
		{"nothing", nil, ""},
		{"alert that has no word", &net.OpError{Op: "remote error", Err: errors.New("tls: internal error")}, PeerAlert},
		{"reset", &net.OpError{Op: "read", Err: net.ErrClosed}, Closed},
		{"key usage", &tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.IncompatibleUsage}}, BadCertificate},
		{"wrapped", fmt.Errorf("mx.example: %w", &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}), UnknownAuthority},
		{"unheard of", errors.New("tls: the moon"), Other},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := Reason(test.err); got != test.want {
				t.Errorf("Reason(%v) = %q, want %q", test.err, got, test.want)
			}
		})
	}
	all := []string{
		NoSharedCipher, Version, OldProtocol, NotTLS, BadCertificate, UnknownAuthority, CertificateExpired, NameMismatch, NoCertificate, Closed, Timeout,
		PeerAlert, Other,
	}
	for _, w := range alerts {
		all = append(all, w)
	}
	for _, w := range texts {
		all = append(all, w.word)
	}
	for _, w := range all {
		if !slices.Contains(event.TLSFailures(), w) {
			t.Errorf("%q is not among event.TLSFailures", w)
		}
	}
}

func TestVerifyClient(t *testing.T) {
	friend, enemy := source(t, "f", "mail.friend.example", "*.wild.example"), source(t, "e", "mail.friend.example")
	roots, err := Roots(friend.CertFile)
	if err != nil {
		t.Fatal(err)
	}
	certs, _ := load(t, friend, enemy)
	good, bad := certs.Get("f").Leaf, certs.Get("e").Leaf
	for _, test := range []struct {
		name   string
		cert   *x509.Certificate
		roots  *x509.CertPool
		names  []string
		reason string
		want   string
	}{
		{"none", nil, roots, nil, "", VerifiedNone},
		{"nobody to trust", good, nil, nil, "", Unverified},
		{"any name", good, roots, nil, "", VerifiedPKIX},
		{"the name", good, roots, []string{"other.example", "mail.friend.example"}, "", VerifiedName},
		{"in capitals", good, roots, []string{"MAIL.friend.example"}, "", VerifiedName},
		{"a sub-domain", good, roots, []string{"*.friend.example"}, "", VerifiedName},
		{"the domain itself is no sub-domain", good, roots, []string{"*.mail.friend.example"}, NameMismatch, VerifiedPKIX},
		{"suffix of a label", good, roots, []string{"*.iend.example"}, NameMismatch, VerifiedPKIX},
		{"below the certificate's wildcard", good, roots, []string{"a.wild.example"}, "", VerifiedName},
		{"wildcard among sub-domains", good, roots, []string{"*.wild.example"}, "", VerifiedName},
		{"another name", good, roots, []string{"other.example"}, NameMismatch, VerifiedPKIX},
		{"right name from a stranger", bad, roots, []string{"mail.friend.example"}, UnknownAuthority, Unverified},
	} {
		t.Run(test.name, func(t *testing.T) {
			var state tls.ConnectionState
			if test.cert != nil {
				state.PeerCertificates = []*x509.Certificate{test.cert}
			}
			chains, got, err := VerifyClient(state, test.roots, test.names)
			if got != test.want || Reason(err) != test.reason {
				t.Errorf("VerifyClient = %s, %v, want %s, %s", got, err, test.want, test.reason)
			}
			if (len(chains) > 0) != (got == VerifiedPKIX || got == VerifiedName) {
				t.Errorf("%d chains with %s", len(chains), got)
			}
		})
	}
}
