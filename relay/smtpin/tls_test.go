package smtpin

import (
	"crypto/tls"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/relaytest"
)

// implicit is a connector with TLS from the first octet.
func implicit(c *Connector) { c.TLSMode, c.TLS = "implicit", serverTLS() }

// TestFailedImplicitTLS: a connection whose handshake fails is refused, and was
// never a session.
func TestFailedImplicitTLS(t *testing.T) {
	r := start(t, Options{Connectors: []Connector{open(implicit)}})
	rec := r.rec
	conn, err := net.Dial("tcp", r.addr("test"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "EHLO plain.example\r\n"); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	_, _ = io.Copy(io.Discard, conn)
	refused := await[event.SessionRefused](t, rec, 1)[0]
	if refused.Reason != "tls_error" || refused.Connector != "test" || !refused.ClientIP.IsLoopback() {
		t.Errorf("fact = %+v", refused)
	}
	if f := await[event.TLSNegotiated](t, rec, 1)[0]; f.Reason != "not_tls" || f.Failure == "" {
		t.Errorf("fact = %+v", f)
	}
	if n := len(facts[event.SessionOpened](rec)) + len(facts[event.SessionClosed](rec)); n > 0 {
		t.Errorf("%d facts about a session that never was", n)
	}

	// The next one is a session, and its facts come in order.
	c := newClient(t, tls.Client(dialRaw(t, r.addr("test")), clientTLS()))
	c.talk("=>220", hello, "QUIT=>221")
	await[event.SessionClosed](t, rec, 1)
	var names []string
	rec.mu.Lock()
	for _, x := range rec.recs[2:] {
		names = append(names, event.Name(x.Event))
	}
	rec.mu.Unlock()
	want := []string{"session_opened", "tls_negotiated", "command_answered", "command_answered", "session_closed"}
	if !slices.Equal(names, want) {
		t.Errorf("facts = %q, want %q", names, want)
	}
}

func dialRaw(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestGoodByeOfTLS: the last thing that a TLS client gets is a close_notify, so
// that it knows that nobody has cut the rest off (RFC 8446 section 6.1).
func TestGoodByeOfTLS(t *testing.T) {
	r := start(t, Options{Connectors: []Connector{open(implicit)}})
	for _, test := range []struct {
		name string
		end  string
	}{
		{"QUIT", "QUIT\r\n"},
		{"cut off", "GET / HTTP/1.1\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newClient(t, tls.Client(dialRaw(t, r.addr("test")), clientTLS()))
			c.talk("=>220")
			c.send(test.end)
			c.reply()
			if _, err := c.c.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // what tls.Conn gives after close_notify alone
				t.Errorf("Read = %v, want EOF", err)
			}
		})
	}
}

func TestClientCertificateFacts(t *testing.T) {
	good, pool := relaytest.Certificate(t, "mail.partner.example")
	bad, _ := relaytest.Certificate(t, "mail.partner.example")
	for _, test := range []struct {
		name   string
		names  []string
		cert   *tls.Certificate
		reason string
		want   string
	}{
		{"without", nil, nil, "", "none"},
		{"known", nil, &good, "", "pkix"},
		{"known by name", []string{"*.partner.example"}, &good, "", "pkix_name"},
		{"another name", []string{"mail.example"}, &good, "name_mismatch", "pkix"},
		{"unknown", []string{"mail.partner.example"}, &bad, "unknown_authority", "unverified"},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := serverTLS()
			server.ClientAuth, server.ClientCAs = tls.RequestClientCert, pool
			r := start(t, Options{Connectors: []Connector{open(func(c *Connector) {
				c.TLSMode, c.TLS, c.ClientNames = "implicit", server, test.names
			})}})
			cfg := clientTLS()
			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if test.cert == nil {
					return &tls.Certificate{}, nil
				}
				return test.cert, nil
			}
			c := newClient(t, tls.Client(dialRaw(t, r.addr("test")), cfg))
			c.talk("=>220", "QUIT=>221")
			f := await[event.TLSNegotiated](t, r.rec, 1)[0]
			if f.Verify != test.want || f.Reason != test.reason || f.Failure != "" {
				t.Errorf("fact = %+v, want %s %s", f, test.want, test.reason)
			}
			if (f.Peer != "") != (test.cert != nil) {
				t.Errorf("peer = %q", f.Peer)
			}
		})
	}
}
