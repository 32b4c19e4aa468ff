package smtpout

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/relaytest"
	"waybill/relay/route"
)

// named makes a connector whose smart hosts have names: "mx.example" and the port of each host.
func named(t *testing.T, change func(o *Options), hosts ...*relaytest.SmartHost) *Connector {
	t.Helper()
	res := &relaytest.Resolver{}
	res.SetAddrs("mx.example", "127.0.0.1")
	return smart(t, func(o *Options) {
		o.Resolver, o.SmartHosts = res, nil
		for i, h := range hosts {
			o.SmartHosts = append(o.SmartHosts, route.SmartHost{Host: "mx.example", Port: h.Port(), Cost: i + 1})
		}
		change(o)
	})
}

func TestTLS(t *testing.T) {
	good, pool := relaytest.Certificate(t, "mx.example")
	other, otherPool := relaytest.Certificate(t, "other.example")
	expired, expiredPool, err := relaytest.NewCertificate(time.Now().Add(-time.Hour), "mx.example")
	if err != nil {
		t.Fatal(err)
	}
	with := func(c tls.Certificate) relaytest.Option {
		return relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{c}, MinVersion: tls.VersionTLS10})
	}
	v13only := relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS13})
	old := relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	inject := func(h *relaytest.SmartHost) {
		h.Do("STARTTLS", relaytest.Action{Raw: "220 go\r\n250 injected\r\n"})
	}
	const refused = "deferred 451 4.7.5 at STARTTLS tls local"
	const missing = "deferred 451 4.7.4 at STARTTLS tls local"
	const relayed = "relayed 250 2.0.0"
	for _, test := range []struct {
		name   string
		level  TLSLevel
		host   relaytest.Option
		roots  *x509.CertPool
		script func(h *relaytest.SmartHost)
		want   string
		verify string
		facts  string // "version verify failure?" of each
	}{
		{"none, offered", TLSNone, with(good), pool, nil, relayed, "none", ""},
		{"opportunistic, not offered", TLSOpportunistic, nil, pool, nil, relayed, "none", ""},
		{"opportunistic, good", TLSOpportunistic, with(good), pool, nil, relayed, "pkix_name", "1.3 pkix_name"},
		{"opportunistic, unknown authority", TLSOpportunistic, with(good), otherPool, nil, relayed, "unverified", "1.3 unverified"},
		{"opportunistic, other name", TLSOpportunistic, with(other), otherPool, nil, relayed, "pkix", "1.3 pkix"},
		{"opportunistic, expired", TLSOpportunistic, with(expired), expiredPool, nil, relayed, "unverified", "1.3 unverified"},
		{"opportunistic, too old", TLSOpportunistic, old, pool, nil, relayed, "none", "failed"},
		{"opportunistic, refused 454", TLSOpportunistic, with(good), pool, func(h *relaytest.SmartHost) { h.On("STARTTLS", 454, "4.7.0 not now") }, relayed, "none", ""},
		{"opportunistic, rubbish handshake", TLSOpportunistic, with(good), pool, func(h *relaytest.SmartHost) {
			h.Do("TLS", relaytest.Action{Times: 1, Raw: "this is not TLS at all\r\n"})
		}, relayed, "none", "failed"},
		{"opportunistic, dropped in the handshake", TLSOpportunistic, with(good), pool, func(h *relaytest.SmartHost) {
			h.Do("TLS", relaytest.Action{Times: 1, Silent: true, Close: true})
		}, relayed, "none", "failed"},
		{"opportunistic, dropped at STARTTLS", TLSOpportunistic, with(good), pool, func(h *relaytest.SmartHost) {
			h.Do("STARTTLS", relaytest.Action{Times: 1, Silent: true, Close: true})
		}, relayed, "none", ""},
		{"opportunistic, 421 at STARTTLS", TLSOpportunistic, with(good), pool, func(h *relaytest.SmartHost) { h.On("STARTTLS", 421, "4.3.2 no") }, "deferred 421 4.3.2 at STARTTLS tls", "none", ""},
		{"opportunistic, injected reply", TLSOpportunistic, with(good), pool, inject, refused, "none", "failed"},

		{"encrypt, not offered", TLSEncrypt, nil, pool, nil, missing, "none", ""},
		{"encrypt, any certificate", TLSEncrypt, with(other), pool, nil, relayed, "unverified", "1.3 unverified"},
		{"encrypt, refused 454", TLSEncrypt, with(good), pool, func(h *relaytest.SmartHost) { h.On("STARTTLS", 454, "4.7.0 not now") }, "deferred 454 4.7.0 at STARTTLS tls", "none", ""},
		{"encrypt, refused 554", TLSEncrypt, with(good), pool, func(h *relaytest.SmartHost) { h.On("STARTTLS", 554, "5.7.0 no") }, "deferred 554 5.7.0 at STARTTLS tls", "none", ""},
		{"encrypt, too old", TLSEncrypt, old, pool, nil, refused, "none", "failed"},
		{"encrypt, injected reply", TLSEncrypt, with(good), pool, inject, refused, "none", "failed"},
		{"encrypt, 1.3 only", TLSEncrypt, v13only, pool, nil, relayed, "pkix_name", "1.3 pkix_name"},

		{"verify, unknown authority", TLSVerify, with(good), otherPool, nil, refused, "none", "failed"},
		{"verify, expired", TLSVerify, with(expired), expiredPool, nil, refused, "none", "failed"},
		{"verify, other name", TLSVerify, with(other), otherPool, nil, relayed, "pkix", "1.3 pkix"},
		{"verify_name, other name", TLSVerifyName, with(other), otherPool, nil, refused, "none", "failed"},
		{"verify_name, good", TLSVerifyName, with(good), pool, nil, relayed, "pkix_name", "1.3 pkix_name"},
		{"verify_name, not offered", TLSVerifyName, nil, pool, nil, missing, "none", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var opts []relaytest.Option
			if test.host != nil {
				opts = append(opts, test.host)
			}
			h := relaytest.NewSmartHost(t, opts...)
			if test.script != nil {
				test.script(h)
			}
			var rec relaytest.Recorder
			c := named(t, func(o *Options) {
				o.TLS, o.TLSConfig, o.Emitter = test.level, &tls.Config{RootCAs: test.roots, MinVersion: tls.VersionTLS12}, rec.Emitter()
			}, h)
			r := c.Attempt(t.Context(), outHop, message(sample))
			if got := brief(r.Outcomes); got != test.want {
				t.Errorf("outcome = %s, want %s\n%s", got, test.want, lines(r))
			}
			if r.TLSVerify != test.verify {
				t.Errorf("verify = %q, want %q", r.TLSVerify, test.verify)
			}
			if (r.TLSVersion != "") != (test.verify != "none") || (r.TLSCipher != "") != (test.verify != "none") {
				t.Errorf("version %q, cipher %q with verify %q", r.TLSVersion, r.TLSCipher, r.TLSVerify)
			}
			var facts []string
			for _, rec := range rec.Named("tls_negotiated") {
				ev := rec.Event.(event.TLSNegotiated)
				f := ev.Version + " " + ev.Verify
				if ev.Failure != "" {
					f = "failed"
				} else if ev.Peer == "" || ev.Cipher == "" {
					t.Errorf("fact without peer or cipher: %+v", ev)
				}
				if ev.Policy != string(test.level) || ev.Direction != event.Outbound || ev.RemoteName != "mx.example" {
					t.Errorf("fact: %+v", ev)
				}
				facts = append(facts, f)
			}
			if got := strings.Join(facts, ", "); got != test.facts {
				t.Errorf("facts = %q, want %q", got, test.facts)
			}
			if strings.HasPrefix(test.want, "relayed") {
				if m := h.WaitFor(t, 1)[0]; m.TLS != (test.verify != "none") {
					t.Errorf("message came by TLS: %t", m.TLS)
				}
			} else if h.Counts()["MAIL"] > 0 {
				t.Error("MAIL was sent")
			}
			if v := h.Violations(); len(v) > 0 {
				t.Errorf("violations: %q", v)
			}
		})
	}
}

func TestTLSNameFromConfig(t *testing.T) {
	cert, pool := relaytest.Certificate(t, "tls-domain.example")
	h := relaytest.NewSmartHost(t, relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}}))
	c := named(t, func(o *Options) {
		o.TLS, o.TLSConfig = TLSVerifyName, &tls.Config{RootCAs: pool, ServerName: "tls-domain.example", MinVersion: tls.VersionTLS12}
	}, h)
	if got := brief(c.Attempt(t.Context(), outHop, message(sample)).Outcomes); got != "relayed 250 2.0.0" {
		t.Errorf("outcome = %s", got)
	}
}

func TestTLSByAddress(t *testing.T) {
	h := relaytest.NewSmartHost(t, relaytest.WithTLS("127.0.0.1"))
	c := smart(t, func(o *Options) {
		o.TLS, o.TLSConfig = TLSVerifyName, &tls.Config{RootCAs: h.CA(), MinVersion: tls.VersionTLS12}
	}, h)
	if r := c.Attempt(t.Context(), outHop, message(sample)); r.TLSVerify != "pkix_name" {
		t.Errorf("verify = %q, outcome %s", r.TLSVerify, brief(r.Outcomes))
	}
}

func TestTLSResumption(t *testing.T) {
	h := relaytest.NewSmartHost(t, relaytest.WithTLS("mx.example"))
	c := named(t, func(o *Options) {
		o.TLS, o.TLSConfig = TLSVerifyName, &tls.Config{RootCAs: h.CA(), MinVersion: tls.VersionTLS12}
		o.Limits.MessagesPerConnection = 1
	}, h)
	for range 3 {
		if r := c.Attempt(t.Context(), outHop, message(sample)); r.TLSVerify != "pkix_name" {
			t.Errorf("verify = %q, outcome %s", r.TLSVerify, brief(r.Outcomes))
		}
	}
}

func TestTLSReuse(t *testing.T) {
	h := relaytest.NewSmartHost(t, relaytest.WithTLS("mx.example"))
	c := named(t, func(o *Options) { o.TLS = TLSEncrypt }, h)
	for i := range 3 {
		r := c.Attempt(t.Context(), outHop, message(sample))
		if got := brief(r.Outcomes); got != "relayed 250 2.0.0" || r.Reused != (i > 0) || r.TLSVersion != "1.3" {
			t.Errorf("message %d: %s, reused %t, TLS %q", i, got, r.Reused, r.TLSVersion)
		}
	}
	h.Drop()
	if r := c.Attempt(t.Context(), outHop, message(sample)); r.Reused || brief(r.Outcomes) != "relayed 250 2.0.0" {
		t.Errorf("after the host closed: %s, reused %t", brief(r.Outcomes), r.Reused)
	}
}

func TestImplicitTLS(t *testing.T) {
	h := relaytest.NewSmartHost(t, relaytest.WithTLS("mx.example"), relaytest.WithImplicitTLS())
	c := named(t, func(o *Options) {
		o.TLS, o.ImplicitTLS, o.TLSConfig = TLSVerifyName, true, &tls.Config{RootCAs: h.CA(), MinVersion: tls.VersionTLS12}
	}, h)
	r := c.Attempt(t.Context(), outHop, message(sample))
	if got := brief(r.Outcomes); got != "relayed 250 2.0.0" || r.TLSVerify != "pkix_name" || r.Stages.TLS == 0 {
		t.Errorf("outcome = %s, verify %q, stages %+v", got, r.TLSVerify, r.Stages)
	}
	plain := relaytest.NewSmartHost(t)
	c = named(t, func(o *Options) { o.TLS, o.ImplicitTLS = TLSOpportunistic, true }, plain)
	if got, want := brief(c.Attempt(t.Context(), outHop, message(sample)).Outcomes), "deferred 451 4.7.5 at STARTTLS tls local"; got != want {
		t.Errorf("outcome = %s, want %s: implicit TLS has no way back to plaintext", got, want)
	}
}

func TestOffersBeforeTLSDoNotCount(t *testing.T) {
	h := relaytest.NewSmartHost(t, relaytest.WithTLS("mx.example"))
	h.Do("EHLO", relaytest.Action{Reply: "250 x\nSTARTTLS\nDSN\nSIZE 1"}, relaytest.Action{Reply: "250 x\n8BITMIME"})
	c := named(t, func(o *Options) { o.TLS = TLSEncrypt }, h)
	r := c.Attempt(t.Context(), outHop, message(sample))
	if got := brief(r.Outcomes); got != "relayed 250 2.0.0" || r.DSN {
		t.Errorf("outcome = %s, DSN %t\n%s", got, r.DSN, lines(r))
	}
}

func TestAuth(t *testing.T) {
	scramOnly := []string{"SCRAM-SHA-256"}
	good := func() (string, error) { return "sec\x20ret", nil }
	bad := func() (string, error) { return "wrong", nil }
	broken := func() (string, error) { return "", errors.New("open password file: no such file") }
	for _, test := range []struct {
		name       string
		mechanism  string
		password   func() (string, error)
		tls        bool
		insecure   bool
		mechanisms []string
		script     func(h *relaytest.SmartHost)
		want       string
	}{
		{"PLAIN", "PLAIN", good, true, false, nil, nil, "relayed 250 2.0.0"},
		{"LOGIN", "LOGIN", good, true, false, nil, nil, "relayed 250 2.0.0"},
		{"SCRAM-SHA-256", "SCRAM-SHA-256", good, true, false, scramOnly, nil, "relayed 250 2.0.0"},
		{"wrong password, SCRAM-SHA-256", "SCRAM-SHA-256", bad, true, false, scramOnly, nil, "deferred 535 5.7.8 at AUTH auth"},
		{"SCRAM-SHA-256, password with a control character", "SCRAM-SHA-256", func() (string, error) { return "a\x07", nil }, true, false, scramOnly, nil, "deferred 451 4.3.5 at AUTH auth local"},
		{"SCRAM-SHA-256, let in without a proof", "SCRAM-SHA-256", good, true, false, scramOnly, func(h *relaytest.SmartHost) { h.On("AUTH", 235, "2.7.0 welcome") }, "deferred 451 4.7.0 at AUTH auth local"},
		{"SCRAM-SHA-256, nonsense", "SCRAM-SHA-256", good, true, false, scramOnly, func(h *relaytest.SmartHost) { h.On("AUTH", 334, "cj14") }, "deferred 451 4.7.0 at AUTH auth local"},
		{"SCRAM-SHA-256, not base64", "SCRAM-SHA-256", good, true, false, scramOnly, func(h *relaytest.SmartHost) { h.On("AUTH", 334, "?") }, "deferred 451 4.7.0 at AUTH auth local"},
		{"PLAIN without TLS", "PLAIN", good, false, true, nil, nil, "relayed 250 2.0.0"},
		{"never without TLS", "PLAIN", good, false, false, nil, nil, "deferred 451 4.7.11 at AUTH auth local"},
		{"wrong password, PLAIN", "PLAIN", bad, true, false, nil, nil, "deferred 535 5.7.8 at AUTH auth"},
		{"wrong password, LOGIN", "LOGIN", bad, true, false, nil, nil, "deferred 535 5.7.8 at AUTH auth"},
		{"not offered", "LOGIN", good, true, false, []string{"PLAIN"}, nil, "deferred 451 4.7.0 at AUTH auth local"},
		{"password file", "PLAIN", broken, true, false, nil, nil, "deferred 451 4.3.5 at AUTH auth local"},
		{"454", "PLAIN", good, true, false, nil, func(h *relaytest.SmartHost) { h.On("AUTH", 454, "4.7.0 later") }, "deferred 454 4.7.0 at AUTH auth"},
		{"421", "PLAIN", good, true, false, nil, func(h *relaytest.SmartHost) { h.On("AUTH", 421, "4.7.0 later") }, "deferred 421 4.7.0 at AUTH auth"},
		{"dropped", "PLAIN", good, true, false, nil, func(h *relaytest.SmartHost) {
			h.Do("AUTH", relaytest.Action{Silent: true, Close: true})
		}, "deferred 451 4.4.2 at AUTH connect local"},
		{"asks on", "PLAIN", good, true, false, nil, func(h *relaytest.SmartHost) { h.On("AUTH", 334, "") }, "deferred 451 4.7.0 at AUTH auth local"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			opts := []relaytest.Option{relaytest.WithAuth("us er", "sec\x20ret", test.mechanisms...)}
			if test.tls {
				opts = append(opts, relaytest.WithTLS("mx.example"))
			}
			h := relaytest.NewSmartHost(t, opts...)
			if test.script != nil {
				test.script(h)
			}
			c := named(t, func(o *Options) {
				o.TLS = TLSOpportunistic
				o.Auth = Auth{Mechanism: test.mechanism, Username: "us er", Password: test.password, Insecure: test.insecure}
			}, h)
			r := c.Attempt(t.Context(), outHop, message(sample))
			if got := brief(r.Outcomes); got != test.want {
				t.Errorf("outcome = %s, want %s\n%s", got, test.want, lines(r))
			}
			if strings.HasPrefix(test.want, "relayed") {
				if m := h.Messages()[0]; m.User != "us er" || strings.Contains(m.MailArgs, "AUTH=") {
					t.Errorf("user %q, MAIL %s", m.User, m.MailArgs)
				}
				if r.Stages.Auth == 0 {
					t.Error("no time for AUTH")
				}
			} else if h.Counts()["MAIL"] > 0 {
				t.Error("MAIL was sent")
			}
			if !test.tls && !test.insecure && h.Counts()["AUTH"] > 0 {
				t.Error("credentials were sent without TLS")
			}
		})
	}
}

func TestSecretsAreNotInTranscripts(t *testing.T) {
	for _, mechanism := range Mechanisms() {
		h := relaytest.NewSmartHost(t, relaytest.WithAuth("user", "other", Mechanisms()...), relaytest.WithTLS("mx.example"))
		c := named(t, func(o *Options) {
			o.TLS = TLSEncrypt
			o.Auth = Auth{Mechanism: mechanism, Username: "user", Password: func() (string, error) { return "secret", nil }}
		}, h)
		r := c.Attempt(t.Context(), outHop, message(sample))
		text := lines(r)
		for _, secret := range []string{"secret", "c2VjcmV0", "AHVzZXIAc2VjcmV0", "dXNlcg=="} {
			if strings.Contains(text, secret) {
				t.Errorf("%s: %q is in the transcript:\n%s", mechanism, secret, text)
			}
		}
		want := []string{"client: AUTH " + mechanism}
		if !slices.ContainsFunc(want, func(w string) bool { return strings.Contains(text, w) }) || !strings.Contains(text, "***") {
			t.Errorf("%s: no trace of AUTH in the transcript:\n%s", mechanism, text)
		}
	}
}

func TestAuthFailsOverToTheNextHost(t *testing.T) {
	first := relaytest.NewSmartHost(t, relaytest.WithAuth("user", "x"), relaytest.WithTLS("mx.example"))
	second := relaytest.NewSmartHost(t, relaytest.WithAuth("user", "y"), relaytest.WithTLS("mx.example"))
	c := named(t, func(o *Options) {
		o.TLS = TLSEncrypt
		o.Auth = Auth{Mechanism: "PLAIN", Username: "user", Password: func() (string, error) { return "y", nil }}
	}, first, second)
	r := c.Attempt(t.Context(), outHop, message(sample))
	if got := fmt.Sprintf("%s %t", brief(r.Outcomes), r.Remote.Port() == second.Port()); got != "relayed 250 2.0.0 true" {
		t.Errorf("outcome = %s", got)
	}
}
