package tlsconf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"waybill/relay/event"
)

// facts records certificate facts.
type facts struct {
	mu   sync.Mutex
	list []event.CertificateReloaded
}

func (f *facts) Write(r *event.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(f.list, r.Event.(event.CertificateReloaded))
}

func (f *facts) take() []event.CertificateReloaded {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := f.list
	f.list = nil
	return list
}

func source(t *testing.T, name string, names ...string) Source {
	t.Helper()
	dir := t.TempDir()
	s := Source{Name: name, CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key")}
	if err := WriteSelfSigned(s.CertFile, s.KeyFile, names...); err != nil {
		t.Fatal(err)
	}
	return s
}

func load(t *testing.T, sources ...Source) (*Certificates, *facts) {
	t.Helper()
	f := &facts{}
	c, err := Load(sources, event.NewEmitter("node", f))
	if err != nil {
		t.Fatal(err)
	}
	return c, f
}

// handshake gives the names of the certificate that the server chose.
func handshake(t *testing.T, server, client *tls.Config) (tls.ConnectionState, error) {
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
	defer b.Close()
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
			_, err = s.Write([]byte("x")) // so that the client reads what the server thinks of its certificate
		}
		_ = a.Close()
		done <- err
	}()
	conn := tls.Client(b, client)
	err = conn.Handshake()
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	_ = b.Close()
	if serverErr := <-done; err == nil {
		err = serverErr
	}
	return conn.ConnectionState(), err
}

func TestServerChoosesByName(t *testing.T) {
	c, _ := load(t,
		source(t, "default", "mx1.example.com", "127.0.0.1"),
		source(t, "mail", "mail.example.com"),
		source(t, "wild", "*.shop.example"),
		source(t, "idn", "xn--bcher-kva.example"),
	)
	config, err := c.Server(ServerOptions{Certificate: "default"})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, sni, want string }{
		{"no name", "", "mx1.example.com"},
		{"own name", "mx1.example.com", "mx1.example.com"},
		{"another's name", "mail.example.com", "mail.example.com"},
		{"in capitals", "MAIL.Example.com", "mail.example.com"},
		{"wildcard", "a.shop.example", "*.shop.example"},
		{"two labels under a wildcard", "a.b.shop.example", "mx1.example.com"},
		{"A-label", "xn--bcher-kva.example", "xn--bcher-kva.example"},
		{"unknown name", "victim.example", "mx1.example.com"},
	} {
		t.Run(test.name, func(t *testing.T) {
			state, err := handshake(t, config, &tls.Config{ServerName: test.sni, InsecureSkipVerify: true})
			if err != nil {
				t.Fatal(err)
			}
			if got := state.PeerCertificates[0].DNSNames[0]; got != test.want {
				t.Errorf("server name %q gets the certificate of %s, want %s", test.sni, got, test.want)
			}
		})
	}
}

func TestReload(t *testing.T) {
	s := source(t, "default", "old.example")
	c, f := load(t, s)
	config, err := c.Server(ServerOptions{Certificate: "default"})
	if err != nil {
		t.Fatal(err)
	}
	serves := func(want string) {
		t.Helper()
		state, err := handshake(t, config, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := state.PeerCertificates[0].DNSNames[0]; got != want {
			t.Errorf("served certificate is for %s, want %s", got, want)
		}
	}
	said := func(want ...string) {
		t.Helper()
		list := f.take()
		if len(list) != len(want) {
			t.Fatalf("%d facts %+v, want %d", len(list), list, len(want))
		}
		for i, fact := range list {
			if fact.Certificate != "default" || !strings.Contains(fact.Error, want[i]) || (fact.Error == "") != (want[i] == "") || (want[i] == "") == fact.NotAfter.IsZero() {
				t.Errorf("fact %+v, want an error with %q", fact, want[i])
			}
		}
	}
	serves("old.example")
	said("")

	if n, err := c.Reload(); n != 0 || err != nil {
		t.Errorf("Reload = %d, %v, want nothing", n, err)
	}
	said()

	if err := WriteSelfSigned(s.CertFile, s.KeyFile, "new.example"); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Reload(); n != 1 || err != nil {
		t.Errorf("Reload = %d, %v, want one", n, err)
	}
	said("")
	serves("new.example")

	other := source(t, "other", "other.example")
	key, err := os.ReadFile(other.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.KeyFile, key, 0o600); err != nil { // a pair that is half renewed
		t.Fatal(err)
	}
	for range 3 {
		if n, err := c.Reload(); n != 0 || err == nil {
			t.Errorf("Reload = %d, %v, want an error", n, err)
		}
	}
	said("private key does not match")
	serves("new.example")

	if err := os.Remove(s.CertFile); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if n, err := c.Reload(); n != 0 || err == nil {
			t.Errorf("Reload = %d, %v, want an error", n, err)
		}
	}
	said("no such file")
	serves("new.example")

	if err := WriteSelfSigned(s.CertFile, s.KeyFile, "third.example"); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Reload(); n != 1 || err != nil {
		t.Errorf("Reload = %d, %v, want one", n, err)
	}
	said("")
	serves("third.example")
	if got := c.Expiries(); len(got) != 1 || got[0].Subject != "third.example" || time.Until(got[0].NotAfter) < 300*24*time.Hour {
		t.Errorf("Expiries = %+v", got)
	}
}

func TestRunReloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := source(t, "default", "old.example")
		c, _ := load(t, s)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- c.Run(ctx, time.Minute) }()
		if err := WriteSelfSigned(s.CertFile, s.KeyFile, "new.example"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if got := c.Get("default").Leaf.DNSNames[0]; got != "new.example" {
			t.Errorf("certificate is for %s after a minute, want new.example", got)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestLoadReportsEverything(t *testing.T) {
	s := source(t, "default", "a.example")
	_, err := Load([]Source{{Name: "x", CertFile: "none.crt", KeyFile: "none.key"}, {Name: "y", CertFile: s.KeyFile, KeyFile: s.KeyFile}, s, s}, event.Emitter{})
	if err == nil {
		t.Fatal("Load took bad certificates")
	}
	for _, want := range []string{`"x"`, "no such file", `"y"`, "named twice"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %q", err, want)
		}
	}
}

func TestVersions(t *testing.T) {
	c, _ := load(t, source(t, "default", "a.example"))
	for _, test := range []struct {
		name, server string
		client       uint16 // the most that it speaks
		want         bool
	}{
		{"default takes 1.2", "", tls.VersionTLS12, true},
		{"default refuses 1.1", "", tls.VersionTLS11, false},
		{"1.3 refuses 1.2", "1.3", tls.VersionTLS12, false},
		{"1.0 for an old device", "1.0", tls.VersionTLS10, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			config, err := c.Server(ServerOptions{Certificate: "default", MinVersion: test.server})
			if err != nil {
				t.Fatal(err)
			}
			state, err := handshake(t, config, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: test.client})
			if (err == nil) != test.want {
				t.Errorf("handshake = %v, want success %t", err, test.want)
			}
			if err == nil && versions[VersionName(state.Version)] != test.client {
				t.Errorf("version = %s", VersionName(state.Version))
			}
		})
	}
	if VersionName(0) != "" || VersionName(tls.VersionTLS13) != "1.3" {
		t.Error("VersionName is wrong")
	}
}

func TestClientCertificates(t *testing.T) {
	server := source(t, "default", "a.example")
	friend, enemy := source(t, "f", "friend.example"), source(t, "e", "enemy.example")
	c, _ := load(t, server)
	for _, test := range []struct {
		name   string
		want   string // the server's word
		client *Source
		ok     bool
	}{
		{"none, without", "none", nil, true},
		{"none, with any", "none", &enemy, true},
		{"request, without", "request", nil, true},
		{"request, known", "request", &friend, true},
		{"request, unknown", "request", &enemy, true},
		{"require, without", "require", nil, false},
		{"require, known", "require", &friend, true},
		{"require, unknown", "require", &enemy, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			config, err := c.Server(ServerOptions{Certificate: "default", ClientCertificate: test.want, ClientCAFile: friend.CertFile})
			if err != nil {
				t.Fatal(err)
			}
			opts := ClientOptions{Level: "verify_name", CAFile: server.CertFile}
			if test.client != nil {
				opts.CertFile, opts.KeyFile = test.client.CertFile, test.client.KeyFile
			}
			client, err := Client(opts)
			if err != nil {
				t.Fatal(err)
			}
			client.ServerName = "a.example"
			if test.client != nil { // send it even when the server names other authorities
				client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &client.Certificates[0], nil }
			}
			if _, err := handshake(t, config, client); (err == nil) != test.ok {
				t.Errorf("handshake = %v, want success %t", err, test.ok)
			}
		})
	}
}

func TestClientVerifies(t *testing.T) {
	s := source(t, "default", "a.example")
	c, _ := load(t, s)
	server, err := c.Server(ServerOptions{Certificate: "default"})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		ca   string
		host string
		want bool
	}{
		{"known authority", s.CertFile, "a.example", true},
		{"other name", s.CertFile, "b.example", false},
		{"unknown authority", source(t, "x", "x.example").CertFile, "a.example", false},
		{"system's authorities", "", "a.example", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			client, err := Client(ClientOptions{Level: "verify_name", CAFile: test.ca})
			if err != nil {
				t.Fatal(err)
			}
			if client.InsecureSkipVerify {
				t.Fatal("verification is off")
			}
			client.ServerName = test.host
			if _, err := handshake(t, server, client); (err == nil) != test.want {
				t.Errorf("handshake = %v, want success %t", err, test.want)
			}
		})
	}
}

func TestBadOptions(t *testing.T) {
	s := source(t, "default", "a.example")
	c, _ := load(t, s)
	for name, opts := range map[string]ServerOptions{
		"no such certificate": {Certificate: "other"},
		"version":             {Certificate: "default", MinVersion: "1.4"},
		"client word":         {Certificate: "default", ClientCertificate: "always"},
		"no authorities":      {Certificate: "default", ClientCertificate: "require"},
		"not a PEM file":      {Certificate: "default", ClientCertificate: "require", ClientCAFile: s.KeyFile},
	} {
		if _, err := c.Server(opts); err == nil {
			t.Errorf("Server took bad options: %s", name)
		}
	}
	for name, opts := range map[string]ClientOptions{
		"level":          {Level: "may"},
		"version":        {MinVersion: "ssl3"},
		"authorities":    {CAFile: "none.pem"},
		"key is missing": {CertFile: s.CertFile},
	} {
		if _, err := Client(opts); err == nil {
			t.Errorf("Client took bad options: %s", name)
		}
	}
	if config, err := Client(ClientOptions{Level: "none"}); config != nil || err != nil {
		t.Errorf("Client(none) = %v, %v, want nothing", config, err)
	}
	for _, level := range Levels()[1:] {
		if config, err := Client(ClientOptions{Level: level}); config == nil || err != nil {
			t.Errorf("Client(%s) = %v, %v", level, config, err)
		}
	}
}

func TestSelfSigned(t *testing.T) {
	cert, err := SelfSigned("a.example", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	for _, name := range []string{"a.example", "127.0.0.1"} {
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots}); err != nil {
			t.Errorf("certificate is not good for %s: %v", name, err)
		}
	}
	if _, err := SelfSigned(); err == nil {
		t.Error("SelfSigned took no names")
	}
	s := source(t, "x", "a.example")
	info, err := os.Stat(s.KeyFile)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key has mode %v, %v, want 600", info.Mode(), err)
	}
	if !slices.Contains(Versions(), "1.3") || !slices.Contains(ClientCertificates(), "require") {
		t.Error("words are missing")
	}
}
