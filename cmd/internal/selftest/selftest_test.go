package selftest

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"waybill/relay/auth"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/policy"
	"waybill/relay/relaytest"
	"waybill/relay/smtpin"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// store takes messages and counts them.
type store struct {
	mu       sync.Mutex
	messages int
}

type incoming struct {
	io.Writer
	s *store
}

func (s *store) Begin(context.Context, int64) (smtpin.Incoming, error) {
	return incoming{io.Discard, s}, nil
}

func (in incoming) Commit(context.Context, mail.Draft) error {
	in.s.mu.Lock()
	defer in.s.mu.Unlock()
	in.s.messages++
	return nil
}

func (incoming) Abort() {}

// oneUser is eve, whose password is "secret" and who may send as herself.
type oneUser struct{}

func (oneUser) Verify(_ context.Context, user, password string) (auth.Identity, error) {
	if user != "eve" || password != "secret" {
		return auth.Identity{}, auth.ErrCredentials
	}
	return auth.Identity{User: "eve", Senders: []string{"eve@ours.example"}}, nil
}

// relay runs a relay of ours.
func relay(t *testing.T, change func(*smtpin.Connector)) (addr string, s *store, rec *relaytest.Recorder, roots *x509.CertPool) {
	t.Helper()
	cert, pool := relaytest.Certificate(t, "127.0.0.1")
	domains, err := policy.NewDomains([]policy.Domain{{Name: "ours.example"}})
	if err != nil {
		t.Fatal(err)
	}
	c := smtpin.Connector{
		Name: "in", Listen: []string{"127.0.0.1:0"}, TLSMode: "starttls", TLS: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		Auth: auth.NewAuthenticator(auth.Passwords(oneUser{})...), Permissions: policy.Permissions{Submit: true},
		Policy: &policy.Control{Domains: domains, Postmaster: mail.Address{Local: "postmaster", Domain: "ours.example"}},
		Limits: smtpin.Limits{Tarpit: -1},
	}
	change(&c)
	s, rec = &store{}, &relaytest.Recorder{}
	srv, err := smtpin.New(smtpin.Options{Hostname: "relay.test", Connectors: []smtpin.Connector{c}, Acceptor: s, Emitter: rec.Emitter(), DrainTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return srv.Addrs()["in"][0].String(), s, rec, pool
}

func run(t *testing.T, o Options) []Result {
	t.Helper()
	o.Foreign, o.Quiet, o.Timeout = "selftest@elsewhere.example", cmp.Or(o.Quiet, 300*time.Millisecond), time.Minute
	if o.Domain == "" {
		o.Domain = "ours.example"
	}
	results, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

func verdicts(results []Result, view string) map[string]Verdict {
	m := map[string]Verdict{}
	for _, r := range results {
		if r.View == view {
			m[r.Trick] = r.Verdict
		}
	}
	return m
}

// TestOurRelay holds that no trick works here, that every refused recipient is a
// fact with its reason, and that nothing is left behind.
func TestOurRelay(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		change func(*smtpin.Connector)
		want   map[string]Verdict // where not ok
	}{
		{"mail exchanger", func(*smtpin.Connector) {}, nil},
		{"submission", func(c *smtpin.Connector) {
			c.AuthRequired, c.TLSRequired, c.Permissions.Relay = true, true, true
		}, map[string]Verdict{"smuggling by": Skipped}},
		{"implicit TLS", func(c *smtpin.Connector) { c.TLSMode = "implicit" }, map[string]Verdict{"password before TLS": Skipped, "command behind STARTTLS": Skipped}},
		{"no TLS", func(c *smtpin.Connector) { c.TLSMode, c.TLS = "off", nil }, map[string]Verdict{"command behind STARTTLS": Skipped}},
		{"client certificates", func(c *smtpin.Connector) {
			c.TLSRequired, c.TLS.ClientAuth, c.TLS.ClientCAs = true, tls.RequireAndVerifyClientCert, x509.NewCertPool()
		}, nil},
		{"newlines are repaired", func(c *smtpin.Connector) { c.BareNewline = "normalise" }, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			addr, s, rec, roots := relay(t, test.change)
			o := Options{Targets: []Target{{Name: "in", Addr: addr, Implicit: test.name == "implicit TLS"}}, TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
			if test.name == "submission" {
				o.User, o.Password = "eve", "secret"
			}
			for _, r := range run(t, o) {
				want := OK
				for trick, v := range test.want {
					if r.View == Stranger && strings.HasPrefix(r.Trick, trick) {
						want = v
					}
				}
				if r.Verdict != want {
					t.Errorf("%s, %s: %s (%s), sent %q, reply %q; want %s", r.View, r.Trick, r.Verdict, r.Why, r.Sent, r.Reply, want)
				}
			}
			if s.messages > 0 {
				t.Errorf("%d messages are left behind", s.messages)
			}
			for _, r := range rec.Named("recipient_refused") {
				if ev, _ := r.Event.(event.RecipientRefused); !slices.Contains(event.Refusals(), ev.Reason) || ev.Reason == "internal" {
					t.Errorf("recipient %q was refused for the reason %q", ev.Recipient, ev.Reason)
				}
			}
			if n := len(rec.Named("recipient_refused")); n < 30 && test.name == "mail exchanger" {
				t.Errorf("%d recipients were refused, want one for each trick", n)
			}
			if n := len(rec.Named("panicked")); n > 0 {
				t.Errorf("%d panics", n)
			}
		})
	}
}

// TestOpenRelay holds that what is open is found.
func TestOpenRelay(t *testing.T) {
	t.Parallel()
	t.Run("ours, by permission", func(t *testing.T) {
		addr, s, _, _ := relay(t, func(c *smtpin.Connector) { c.Permissions.Relay, c.AuthBeforeTLS = true, true })
		results := run(t, Options{Targets: []Target{{Addr: addr}}})
		got := verdicts(results, Stranger)
		for trick, want := range map[string]Verdict{"plain": Open, "source route": Open, "null sender": Open, "password before TLS": Leak, "address of this machine": OK, "two at signs, ours last": OK} {
			if got[trick] != want {
				t.Errorf("%s: %s, want %s", trick, got[trick], want)
			}
		}
		if Worst(results) != Open || s.messages > 0 {
			t.Errorf("worst is %s, with %d messages left behind", Worst(results), s.messages)
		}
	})
	t.Run("trusted here", func(t *testing.T) {
		addr, _, _, _ := relay(t, func(c *smtpin.Connector) { c.Permissions.Relay = true })
		results := run(t, Options{Targets: []Target{{Addr: addr, Trusted: func(ip netip.Addr) string {
			if !ip.IsLoopback() {
				t.Errorf("asked about %s", ip)
			}
			return "this machine may relay"
		}}}})
		got := verdicts(results, Stranger)
		if got["plain"] != Skipped || got["VRFY"] != OK || Worst(results).Bad() {
			t.Errorf("verdicts = %v", got)
		}
	})
	t.Run("a server that takes everything", func(t *testing.T) {
		host := relaytest.NewSmartHost(t, relaytest.WithLaxNewlines())
		// It falls for most tricks, and says so, however loaded this machine is.
		got := verdicts(run(t, Options{Targets: []Target{{Addr: host.Addr()}}, Quiet: 15 * time.Second}), Stranger)
		for trick, want := range map[string]Verdict{"plain": Open, "percent hack": Open, "smuggling by LF . LF": Leak} {
			if got[trick] != want {
				t.Errorf("%s: %s, want %s", trick, got[trick], want)
			}
		}
		host = relaytest.NewSmartHost(t, relaytest.WithTLS("127.0.0.1"), relaytest.WithAuth("eve", "secret"))
		results := run(t, Options{Targets: []Target{{Addr: host.Addr()}}, User: "eve", Password: "secret", TLS: &tls.Config{RootCAs: host.CA(), MinVersion: tls.VersionTLS12}})
		if got := verdicts(results, User); got["sender elsewhere"] != Warning || got["address of this machine"] != Leak {
			t.Errorf("to a user: %v", got)
		}
	})
	t.Run("tells too much", func(t *testing.T) {
		host := relaytest.NewSmartHost(t)
		host.On("RCPT", 550, "5.7.1 relay access denied")
		host.On("EXPN", 250, "ann@ours.example")
		got := verdicts(run(t, Options{Targets: []Target{{Addr: host.Addr()}}}), Stranger)
		if got["plain"] != OK || got["smuggling by LF . LF"] != Skipped {
			t.Errorf("verdicts = %v", got)
		}
	})
	t.Run("refuses for now", func(t *testing.T) {
		host := relaytest.NewSmartHost(t)
		host.On("RCPT", 450, "4.7.1 greylisted")
		if got := verdicts(run(t, Options{Targets: []Target{{Addr: host.Addr()}}}), Stranger); got["plain"] != Unclear {
			t.Errorf("plain: %s, want %s", got["plain"], Unclear)
		}
	})
}

func TestUnreachable(t *testing.T) {
	host := relaytest.NewSmartHost(t)
	addr := host.Addr()
	if err := host.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := Run(t.Context(), Options{Targets: []Target{{Addr: addr}}, Foreign: "a@b.example"})
	if !Unreachable(err) {
		t.Errorf("Run = %v, want unreachable", err)
	}
	if _, err := Run(t.Context(), Options{Foreign: "nobody"}); err == nil {
		t.Error("Run took what is no address")
	}
	other := relaytest.NewSmartHost(t)
	other.On("CONNECT", 554, "5.7.1 not for you")
	results, err := Run(t.Context(), Options{Targets: []Target{{Addr: addr}, {Addr: other.Addr()}}, Foreign: "a@b.example"})
	if !Unreachable(err) || len(results) == 0 {
		t.Errorf("Run = %d results, %v, want those of the other, and unreachable", len(results), err)
	}
	for _, r := range results {
		if r.Target != other.Addr() || r.Verdict != Skipped || !strings.HasSuffix(r.Why, "554 5.7.1 not for you") {
			t.Fatalf("%+v, want skipped, for the server refuses us", r)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, Options{Targets: []Target{{Addr: addr}}, Foreign: "a@b.example"}); !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v, want %v", err, context.Canceled)
	}
}

// TestPasswordsStayHere holds that no password goes to a server that is not who
// it should be.
func TestPasswordsStayHere(t *testing.T) {
	addr, _, rec, _ := relay(t, func(c *smtpin.Connector) { c.AuthRequired = true })
	_, other := relaytest.Certificate(t, "127.0.0.1")
	results := run(t, Options{here: func(net.Conn) bool { return false }, Targets: []Target{{Addr: addr}}, User: "eve", Password: "secret", TLS: &tls.Config{RootCAs: other, MinVersion: tls.VersionTLS12}})
	for trick, v := range verdicts(results, User) {
		if v != Unclear {
			t.Errorf("%s: %s, want %s", trick, v, Unclear)
		}
	}
	for _, name := range []string{"auth_succeeded"} {
		if n := len(rec.Named(name)); n > 0 {
			t.Errorf("%d facts %s", n, name)
		}
	}
}
