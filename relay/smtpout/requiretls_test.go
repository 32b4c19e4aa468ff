package smtpout

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"

	"waybill/relay/mail"
	"waybill/relay/relaytest"
	"waybill/relay/route"
)

// TestRequireTLS: such a message goes over TLS with a proven name to hosts that
// promise the same, or it does not go (RFC 8689 section 4.2.1).
func TestRequireTLS(t *testing.T) {
	good, pool := relaytest.Certificate(t, "mx.example")
	other, otherPool := relaytest.Certificate(t, "other.example")
	with := func(c tls.Certificate) relaytest.Option {
		return relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{c}, MinVersion: tls.VersionTLS12})
	}
	offers := relaytest.WithExtensions("PIPELINING", "REQUIRETLS")
	for _, test := range []struct {
		name  string
		level TLSLevel
		host  []relaytest.Option
		roots *x509.CertPool
		want  string
	}{
		{"all is well", TLSOpportunistic, []relaytest.Option{with(good), offers}, pool, "relayed 250 2.0.0"},
		{"also where no TLS is configured", TLSNone, []relaytest.Option{with(good), offers}, pool, "relayed 250 2.0.0"},
		{"not offered", TLSVerifyName, []relaytest.Option{with(good)}, pool, "bounced 550 5.7.30 at MAIL tls local"},
		{"no TLS", TLSOpportunistic, []relaytest.Option{offers}, pool, "deferred 451 4.7.4 at STARTTLS tls local"},
		{"another name", TLSOpportunistic, []relaytest.Option{with(other), offers}, otherPool, "deferred 451 4.7.5 at STARTTLS tls local"},
		{"unknown authority", TLSEncrypt, []relaytest.Option{with(good), offers}, otherPool, "deferred 451 4.7.5 at STARTTLS tls local"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := relaytest.NewSmartHost(t, test.host...)
			c := named(t, func(o *Options) {
				o.TLS, o.TLSConfig = test.level, &tls.Config{RootCAs: test.roots, MinVersion: tls.VersionTLS12}
			}, h)
			m := message("x\r\n", "a@y.example")
			m.Envelope.RequireTLS = true
			r := c.Attempt(t.Context(), outHop, m)
			if got := brief(r.Outcomes); got != test.want {
				t.Errorf("%s (%s), want %s", got, r.Outcomes[0].Reply.Text, test.want)
			}
			asked := strings.Contains(strings.Join(h.Commands(), "\n"), " REQUIRETLS")
			if relayed := r.Outcomes[0].Disposition == mail.Relayed; asked != relayed {
				t.Errorf("relayed %t, and the next hop was asked: %t: %q", relayed, asked, h.Commands())
			}
		})
	}
}

// TestRequireTLSDoesNotReuse: a session that was good enough for others is not
// for such a message.
func TestRequireTLSDoesNotReuse(t *testing.T) {
	good, _ := relaytest.Certificate(t, "mx.example")
	h := relaytest.NewSmartHost(t, relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS12}),
		relaytest.WithExtensions("REQUIRETLS"))
	c := named(t, func(o *Options) { o.TLS = TLSOpportunistic }, h) // the certificate is not from an authority that it knows
	if r := c.Attempt(t.Context(), outHop, message("x\r\n", "a@y.example")); brief(r.Outcomes) != "relayed 250 2.0.0" || r.TLSVerify != "unverified" {
		t.Fatalf("%s, %s", brief(r.Outcomes), r.TLSVerify)
	}
	m := message("x\r\n", "a@y.example")
	m.Envelope.RequireTLS = true
	if got, want := brief(c.Attempt(t.Context(), outHop, m).Outcomes), "deferred 451 4.7.5 at STARTTLS tls local"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if n := len(h.Messages()); n != 1 {
		t.Errorf("%d messages arrived", n)
	}
}

// TestRequireTLSByMX: what an MX record says proves no name by itself.
func TestRequireTLSByMX(t *testing.T) {
	good, pool := relaytest.Certificate(t, "mx.example", "y.example")
	h := relaytest.NewSmartHost(t, relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS12}),
		relaytest.WithExtensions("REQUIRETLS"))
	for _, test := range []struct {
		name string
		host string
		want string
	}{
		{"of another name", "mx.example", "bounced 550 5.7.10 at MAIL tls local"},
		{"of the domain's name", "y.example", "relayed 250 2.0.0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, res := byMX(t, func(o *Options) {
				o.TLS, o.TLSConfig = TLSOpportunistic, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
			}, h.Port())
			res.SetMX("y.example", test.host)
			res.SetAddrs(test.host, "127.0.0.1")
			m := message("x\r\n", "a@y.example")
			m.Envelope.RequireTLS = true
			r := c.Attempt(t.Context(), route.Hop{Connector: "out", Name: "y.example"}, m)
			if got := brief(r.Outcomes); got != test.want {
				t.Errorf("%s (%s), want %s", got, r.Outcomes[0].Reply.Text, test.want)
			}
		})
	}
}

// TestPriorityGoesOn: to those who know it.
func TestPriorityGoesOn(t *testing.T) {
	for _, test := range []struct {
		name     string
		offered  bool
		priority int8
		want     bool
	}{{"offered", true, -3, true}, {"not offered", false, -3, false}, {"normal", true, 0, false}} {
		t.Run(test.name, func(t *testing.T) {
			h := relaytest.NewSmartHost(t)
			if test.offered {
				h = relaytest.NewSmartHost(t, relaytest.WithExtensions("MT-PRIORITY"))
			}
			m := message("x\r\n", "a@y.example")
			m.Envelope.Priority = test.priority
			if r := smart(t, func(*Options) {}, h).Attempt(t.Context(), outHop, m); r.Outcomes[0].Disposition != mail.Relayed {
				t.Fatal(brief(r.Outcomes))
			}
			if got := strings.Contains(strings.Join(h.Commands(), "\n"), " MT-PRIORITY=-3"); got != test.want {
				t.Errorf("%q, want %t", h.Commands(), test.want)
			}
		})
	}
}

// TestToldLimits: a next hop's limits are kept without having to be refused
// first (RFC 9422).
func TestToldLimits(t *testing.T) {
	h := relaytest.NewSmartHost(t, relaytest.WithExtensions("PIPELINING", "LIMITS RCPTMAX=2 MAILMAX=3 OTHER=x RCPTMAX"))
	c := smart(t, func(*Options) {}, h)
	r := c.Attempt(t.Context(), outHop, message("x\r\n", "a@y.example", "b@y.example", "c@y.example", "d@y.example", "e@y.example"))
	for _, o := range r.Outcomes {
		if o.Disposition != mail.Relayed {
			t.Fatalf("%s", brief(r.Outcomes))
		}
	}
	for i, m := range h.WaitFor(t, 3) {
		if want := []int{2, 2, 1}[i]; len(m.Envelope.Recipients) != want {
			t.Errorf("transaction %d has %d recipients, want %d", i, len(m.Envelope.Recipients), want)
		}
	}
	if r := c.Attempt(t.Context(), outHop, message("x\r\n", "a@y.example")); r.Reused || r.Outcomes[0].Disposition != mail.Relayed {
		t.Errorf("reused %t: %s", r.Reused, brief(r.Outcomes))
	}

	// When the first transaction fails, the others wait with a reason of their own.
	h = relaytest.NewSmartHost(t, relaytest.WithExtensions("LIMITS RCPTMAX=1"))
	h.On(".", 451, "4.7.1 later")
	r = smart(t, func(*Options) {}, h).Attempt(t.Context(), outHop, message("x\r\n", "a@y.example", "b@y.example"))
	if got, want := brief(r.Outcomes), "deferred 451 4.7.1 at .; deferred 452 4.5.3 at RCPT other local"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
