package smtpout

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"waybill/relay/dane"
	"waybill/relay/dns"
	"waybill/relay/event"
	"waybill/relay/mtasts"
	"waybill/relay/relaytest"
	"waybill/relay/route"
)

// policies are what a domain publishes.
type policies mtasts.Policy

func (p policies) Policy(ctx context.Context, domain string) (mtasts.Policy, error) {
	if domain != "y.example" {
		return mtasts.Policy{Mode: mtasts.None}, ctx.Err()
	}
	return mtasts.Policy(p), ctx.Err()
}

// spki is a record 3 1 1 for a certificate.
func spki(t *testing.T, c tls.Certificate) dns.TLSA {
	t.Helper()
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	return dns.TLSA{Usage: dane.UsageEE, Selector: dane.SelectorSPKI, MatchingType: dane.MatchSHA256, Data: sum[:]}
}

// told lists what was stated about policies: "policy reason enforced?".
func told(rec *relaytest.Recorder) string {
	var list []string
	for _, r := range rec.Named("tls_policy_failed") {
		ev := r.Event.(event.TLSPolicyFailed)
		word := ev.Policy + " " + ev.Reason
		if ev.Enforced {
			word += " enforced"
		}
		if !slices.Contains(event.TLSFailures(), ev.Reason) || !slices.Contains(event.TLSPolicies(), ev.Policy) {
			word += " (unknown word)"
		}
		list = append(list, word)
	}
	return strings.Join(list, ", ")
}

// signed makes a world in which everything about y.example is authentic, and
// mx.y.example is on port.
func signed(t *testing.T, port uint16) *relaytest.Resolver {
	t.Helper()
	res := &relaytest.Resolver{}
	res.SetMX("y.example", "mx.y.example")
	res.SetAddrs("mx.y.example", "127.0.0.1")
	res.SetSecure(true, "y.example", "mx.y.example", tlsaName(port, "mx.y.example"), tlsaName(port, "real.y.example"))
	return res
}

func tlsaName(port uint16, host string) string { return fmt.Sprintf("_%d._tcp.%s", port, host) }

const (
	relayed = "relayed 250 2.0.0"
	refused = "deferred 451 4.7.5 at STARTTLS tls local"
	missing = "deferred 451 4.7.4 at STARTTLS tls local"
	unsure  = "deferred 451 4.7.5 at  tls local"
)

func TestDANE(t *testing.T) {
	cert, pool := relaytest.Certificate(t, "mx.y.example")
	stranger, _ := relaytest.Certificate(t, "mx.y.example")
	good := spki(t, cert)
	bad := spki(t, stranger)
	withTLS := relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}})
	old := relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	for _, test := range []struct {
		name   string
		host   relaytest.Option
		change func(res *relaytest.Resolver, tlsa string)
		verify string
		policy string
		reason string // in the result
		facts  string
		want   string
	}{
		{"match", withTLS, nil, "dane", "dane", "", "", relayed},
		{"no match", withTLS, func(res *relaytest.Resolver, tlsa string) { res.SetTLSA(tlsa, bad) }, "none", "dane", "tlsa_mismatch", "dane tlsa_mismatch enforced", refused},
		{"rollover", withTLS, func(res *relaytest.Resolver, tlsa string) { res.SetTLSA(tlsa, bad, good) }, "dane", "dane", "", "", relayed},
		{"mixed with unusable", withTLS, func(res *relaytest.Resolver, tlsa string) {
			res.SetTLSA(tlsa, dns.TLSA{Usage: 1, Data: []byte{1}}, good)
		}, "dane", "dane", "", "", relayed},
		{"all unusable: TLS, of anybody", withTLS, func(res *relaytest.Resolver, tlsa string) {
			res.SetTLSA(tlsa, dns.TLSA{Usage: 1, Data: []byte{1}})
		}, "pkix_name", "dane", "", "", relayed},
		{"all unusable, no TLS", nil, func(res *relaytest.Resolver, tlsa string) {
			res.SetTLSA(tlsa, dns.TLSA{Usage: 0, Data: []byte{1}})
		}, "none", "dane", "not_offered", "dane not_offered enforced", missing},
		{"not offered", nil, nil, "none", "dane", "not_offered", "dane not_offered enforced", missing},
		{"no handshake, and no way back to plain text", old, nil, "none", "dane", "version", "dane version enforced", refused},
		{"no records", withTLS, func(res *relaytest.Resolver, tlsa string) { res.SetTLSA(tlsa) }, "pkix_name", "opportunistic", "", "", relayed},
		{"no records, no TLS", nil, func(res *relaytest.Resolver, tlsa string) { res.SetTLSA(tlsa) }, "none", "opportunistic", "not_offered", "", relayed},
		{"insecure MX", nil, func(res *relaytest.Resolver, _ string) { res.SetSecure(false, "y.example") }, "none", "opportunistic", "not_offered", "", relayed},
		{"insecure address", nil, func(res *relaytest.Resolver, _ string) { res.SetSecure(false, "mx.y.example") }, "none", "opportunistic", "not_offered", "", relayed},
		{"insecure records", nil, func(res *relaytest.Resolver, tlsa string) { res.SetSecure(false, tlsa) }, "none", "opportunistic", "not_offered", "", relayed},
		{"bogus records", withTLS, func(res *relaytest.Resolver, tlsa string) { res.Fail(tlsa, dns.ServFail) }, "none", "dane", "dnssec_failed", "dane dnssec_failed enforced", unsure},
		{"no answer about records", withTLS, func(res *relaytest.Resolver, tlsa string) { res.Fail(tlsa, dns.Timeout) }, "none", "dane", "dnssec_failed", "dane dnssec_failed enforced", unsure},
		{"records at the end of an alias", withTLS, func(res *relaytest.Resolver, tlsa string) {
			res.SetAlias("mx.y.example", "real.y.example")
			res.SetTLSA(strings.Replace(tlsa, "mx.", "real.", 1), good)
			res.SetTLSA(tlsa, bad)
		}, "dane", "dane", "", "", relayed},
		{"records before an alias", withTLS, func(res *relaytest.Resolver, _ string) { res.SetAlias("mx.y.example", "real.y.example") }, "dane", "dane", "", "", relayed},
		{"second host", withTLS, func(res *relaytest.Resolver, tlsa string) {
			res.SetMX("y.example", "bogus.y.example", "mx.y.example")
			res.SetAddrs("bogus.y.example", "127.0.0.1")
			res.SetSecure(true, "bogus.y.example")
			res.Fail(strings.Replace(tlsa, "mx.", "bogus.", 1), dns.ServFail)
		}, "dane", "dane", "", "dane dnssec_failed enforced", relayed},
	} {
		for _, level := range []TLSLevel{TLSDANE, TLSMTASTS} {
			t.Run(test.name+", "+string(level), func(t *testing.T) {
				t.Parallel()
				var opts []relaytest.Option
				if test.host != nil {
					opts = append(opts, test.host)
				}
				h := relaytest.NewSmartHost(t, opts...)
				res := signed(t, h.Port())
				tlsa := tlsaName(h.Port(), "mx.y.example")
				res.SetTLSA(tlsa, good)
				if test.change != nil {
					test.change(res, tlsa)
				}
				var rec relaytest.Recorder
				c := policed(t, level, h, res, &rec, pool, policies{Mode: mtasts.None})
				r := c.Attempt(t.Context(), route.Hop{Connector: "out", Name: "y.example"}, message(sample))
				if got := brief(r.Outcomes); got != test.want {
					t.Errorf("outcome = %s, want %s\n%s", got, test.want, lines(r))
				}
				if r.TLSVerify != test.verify || r.TLSPolicy != test.policy || r.TLSFailure != test.reason {
					t.Errorf("verify %q, policy %q, failure %q; want %q, %q, %q", r.TLSVerify, r.TLSPolicy, r.TLSFailure, test.verify, test.policy, test.reason)
				}
				if got := told(&rec); got != test.facts {
					t.Errorf("facts = %q, want %q", got, test.facts)
				}
				if test.want != relayed && h.Counts()["MAIL"] > 0 {
					t.Error("MAIL was sent")
				}
			})
		}
	}
}

// policed makes a connector that routes by MX to h.
func policed(t *testing.T, level TLSLevel, h *relaytest.SmartHost, res *relaytest.Resolver, rec *relaytest.Recorder, roots *x509.CertPool, p policies) *Connector {
	t.Helper()
	c, err := New(Options{
		Name: "out", Hostname: "relay.example", Port: h.Port(), Resolver: res, DANE: res, Policies: p, TLS: level, AllowLoopback: true,
		TLSConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, Emitter: rec.Emitter(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestMTASTS(t *testing.T) {
	cert, pool := relaytest.Certificate(t, "mx.y.example")
	other, otherPool := relaytest.Certificate(t, "other.example")
	withTLS := func(c tls.Certificate) relaytest.Option {
		return relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{c}})
	}
	enforce := policies{Mode: mtasts.Enforce, MX: []string{"*.y.example"}}
	testing1 := policies{Mode: mtasts.Testing, MX: []string{"mx.y.example"}}
	elsewhere := []string{"mx.elsewhere.example"}
	for _, test := range []struct {
		name   string
		policy policies
		host   relaytest.Option
		roots  *x509.CertPool
		verify string
		level  string
		reason string
		facts  string
		want   string
	}{
		{"enforced, good", enforce, withTLS(cert), pool, "mta_sts", "mta_sts", "", "", relayed},
		{"enforced, other name", enforce, withTLS(other), otherPool, "none", "mta_sts", "name_mismatch", "mta_sts name_mismatch enforced", refused},
		{"enforced, unknown authority", enforce, withTLS(cert), otherPool, "none", "mta_sts", "unknown_authority", "mta_sts unknown_authority enforced", refused},
		{"enforced, not offered", enforce, nil, pool, "none", "mta_sts", "not_offered", "mta_sts not_offered enforced", missing},
		{"enforced, other hosts", policies{Mode: mtasts.Enforce, MX: elsewhere}, withTLS(cert), pool, "none", "mta_sts", "mx_mismatch", "mta_sts mx_mismatch enforced", unsure},
		{"testing, good", testing1, withTLS(cert), pool, "pkix_name", "mta_sts", "", "", relayed},
		{"testing, other name", testing1, withTLS(other), otherPool, "pkix", "mta_sts", "name_mismatch", "mta_sts name_mismatch", relayed},
		{"testing, unknown authority", testing1, withTLS(cert), otherPool, "unverified", "mta_sts", "unknown_authority", "mta_sts unknown_authority", relayed},
		{"testing, not offered", testing1, nil, pool, "none", "mta_sts", "not_offered", "mta_sts not_offered", relayed},
		{"testing, other hosts", policies{Mode: mtasts.Testing, MX: elsewhere}, withTLS(cert), pool, "pkix_name", "mta_sts", "mx_mismatch", "mta_sts mx_mismatch", relayed},
		{"none", policies{Mode: mtasts.None}, withTLS(other), pool, "unverified", "opportunistic", "", "", relayed},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var opts []relaytest.Option
			if test.host != nil {
				opts = append(opts, test.host)
			}
			h := relaytest.NewSmartHost(t, opts...)
			res := signed(t, h.Port())
			var rec relaytest.Recorder
			c := policed(t, TLSMTASTS, h, res, &rec, test.roots, test.policy)
			r := c.Attempt(t.Context(), route.Hop{Connector: "out", Name: "y.example"}, message(sample))
			if got := brief(r.Outcomes); got != test.want {
				t.Errorf("outcome = %s, want %s\n%s", got, test.want, lines(r))
			}
			if r.TLSVerify != test.verify || r.TLSPolicy != test.level || r.TLSFailure != test.reason {
				t.Errorf("verify %q, policy %q, failure %q; want %q, %q, %q", r.TLSVerify, r.TLSPolicy, r.TLSFailure, test.verify, test.level, test.reason)
			}
			if got := told(&rec); got != test.facts {
				t.Errorf("facts = %q, want %q", got, test.facts)
			}
			for _, x := range rec.Named("tls_policy_failed") {
				if ev := x.Event.(event.TLSPolicyFailed); ev.Domain != "y.example" || ev.RemoteName != "mx.y.example" || ev.Connector != "out" {
					t.Errorf("fact = %+v", ev)
				}
			}
		})
	}
}

// TestDANEBeforeMTASTS: a policy does not help where TLSA records do not match.
func TestDANEBeforeMTASTS(t *testing.T) {
	cert, pool := relaytest.Certificate(t, "mx.y.example")
	stranger, _ := relaytest.Certificate(t, "mx.y.example")
	h := relaytest.NewSmartHost(t, relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}}))
	res := signed(t, h.Port())
	res.SetTLSA(tlsaName(h.Port(), "mx.y.example"), spki(t, stranger))
	var rec relaytest.Recorder
	c := policed(t, TLSMTASTS, h, res, &rec, pool, policies{Mode: mtasts.Enforce, MX: []string{"mx.y.example"}})
	r := c.Attempt(t.Context(), route.Hop{Connector: "out", Name: "y.example"}, message(sample))
	if got := brief(r.Outcomes); got != refused || r.TLSFailure != "tlsa_mismatch" {
		t.Errorf("outcome = %s, failure %q", got, r.TLSFailure)
	}
}

func TestDANEOfSmartHost(t *testing.T) {
	cert, _ := relaytest.Certificate(t, "any.example")
	h := relaytest.NewSmartHost(t, relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}}))
	res := &relaytest.Resolver{}
	res.SetAddrs("smart.example", "127.0.0.1")
	name := tlsaName(h.Port(), "smart.example")
	res.SetSecure(true, "smart.example", name)
	res.SetTLSA(name, spki(t, cert))
	c, err := New(Options{
		Name: "out", Hostname: "relay.example", Resolver: res, DANE: res, TLS: TLSDANE, SmartHosts: []route.SmartHost{{Host: "smart.example", Port: h.Port()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if r := c.Attempt(t.Context(), outHop, message(sample)); brief(r.Outcomes) != relayed || r.TLSVerify != "dane" {
		t.Errorf("outcome = %s, verify %q", brief(r.Outcomes), r.TLSVerify)
	}
}

func TestTLSDomain(t *testing.T) {
	cert, pool := relaytest.Certificate(t, "eu.mail.provider.example")
	for _, test := range []struct {
		name   string
		domain string
		sni    string
		want   string
	}{
		{"another name", "eu.mail.provider.example", "eu.mail.provider.example", relayed},
		{"a wildcard", "*.provider.example", "mx.example", relayed},
		{"none", "", "mx.example", refused},
		{"wrong", "us.mail.provider.example", "us.mail.provider.example", refused},
	} {
		t.Run(test.name, func(t *testing.T) {
			asked := make(chan string, 2)
			h := relaytest.NewSmartHost(t, relaytest.WithTLSConfig(&tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
				asked <- hello.ServerName
				return &cert, nil
			}}))
			c := named(t, func(o *Options) {
				o.TLS, o.TLSDomain, o.TLSConfig = TLSVerifyName, test.domain, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
			}, h)
			if got := brief(c.Attempt(t.Context(), outHop, message(sample)).Outcomes); got != test.want {
				t.Errorf("outcome = %s, want %s", got, test.want)
			}
			if got := <-asked; got != test.sni {
				t.Errorf("SNI = %q, want %q", got, test.sni)
			}
		})
	}
}

func TestClientCertificate(t *testing.T) {
	server, pool := relaytest.Certificate(t, "mx.example")
	ours, ourPool := relaytest.Certificate(t, "relay.example")
	h := relaytest.NewSmartHost(t, relaytest.WithTLSConfig(&tls.Config{
		Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ourPool, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12,
	}))
	for _, test := range []struct {
		name string
		cert []tls.Certificate
		want string
	}{
		{"with", []tls.Certificate{ours}, relayed},
		{"without", nil, refused},
	} {
		t.Run(test.name, func(t *testing.T) {
			var rec relaytest.Recorder
			c := named(t, func(o *Options) {
				o.TLS, o.Emitter, o.TLSConfig = TLSVerifyName, rec.Emitter(), &tls.Config{RootCAs: pool, Certificates: test.cert, MinVersion: tls.VersionTLS12}
			}, h)
			r := c.Attempt(t.Context(), outHop, message(sample))
			if got := brief(r.Outcomes); got != test.want {
				t.Errorf("outcome = %s, want %s", got, test.want)
			}
			if test.want == refused && (r.TLSFailure != "no_shared_cipher" || told(&rec) != "verify_name no_shared_cipher enforced") { // all that TLS 1.2 tells is "handshake failure"
				t.Errorf("failure %q, facts %q", r.TLSFailure, told(&rec))
			}
		})
	}
}

// With TLS 1.3 the host says that it wants a certificate after our side of the
// handshake is over.
func TestClientCertificateWanted(t *testing.T) {
	server, pool := relaytest.Certificate(t, "mx.example")
	_, ourPool := relaytest.Certificate(t, "relay.example")
	h := relaytest.NewSmartHost(t, relaytest.WithTLSConfig(&tls.Config{
		Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ourPool, MinVersion: tls.VersionTLS13,
	}))
	c := named(t, func(o *Options) {
		o.TLS, o.TLSConfig = TLSVerifyName, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}, h)
	r := c.Attempt(t.Context(), outHop, message(sample))
	if got := brief(r.Outcomes); got != "deferred 451 4.7.5 at EHLO tls local" {
		t.Errorf("outcome = %s", got)
	}
	if got := r.Outcomes[0].Reply.Text; !strings.HasSuffix(got, "the host ended TLS at EHLO: tls: certificate required") { // the words that the rule local-tls-client reads
		t.Errorf("reply = %q", got)
	}
	if r.TLSPolicy != "verify_name" || r.TLSFailure != "no_certificate" {
		t.Errorf("policy %q, failure %q", r.TLSPolicy, r.TLSFailure)
	}
}

func TestDowngradeIsRemembered(t *testing.T) {
	h := relaytest.NewSmartHost(t, relaytest.WithTLS("mx.example"))
	var rec relaytest.Recorder
	memory := &TLSMemory{}
	c := named(t, func(o *Options) {
		o.TLS, o.Emitter, o.Memory, o.Limits.MessagesPerConnection = TLSOpportunistic, rec.Emitter(), memory, 1
	}, h)
	downgrades := func(want ...string) {
		t.Helper()
		if r := c.Attempt(t.Context(), outHop, message(sample)); brief(r.Outcomes) != relayed {
			t.Fatalf("outcome = %s", brief(r.Outcomes))
		}
		var got []string
		for _, x := range rec.Named("tls_downgraded") {
			ev := x.Event.(event.TLSDowngraded)
			if ev.RemoteName != "mx.example" || ev.LastTLS.IsZero() || ev.Connector == "" {
				t.Errorf("fact = %+v", ev)
			}
			got = append(got, ev.Reason)
		}
		if !slices.Equal(got, want) {
			t.Errorf("downgrades = %q, want %q", got, want)
		}
	}
	downgrades()
	h.Do("EHLO", relaytest.Action{Times: 2, Reply: "250 x"})
	downgrades("not_offered")
	downgrades("not_offered") // it is news once
	downgrades("not_offered") // has TLS again
	h.Do("TLS", relaytest.Action{Times: 1, Raw: "this is not TLS at all\r\n"})
	downgrades("not_offered", "not_tls")
	h.Do("STARTTLS", relaytest.Action{Times: 1, Reply: "454 4.7.0 not now"})
	downgrades("not_offered", "not_tls")
	h.Do("STARTTLS", relaytest.Action{Times: 2, Reply: "454 4.7.0 not now"})
	downgrades("not_offered", "not_tls")
	if told(&rec) != "" {
		t.Errorf("policies failed that nobody has: %s", told(&rec))
	}
	for i := range maxRemembered + 10 {
		memory.had(fmt.Sprint(i))
	}
	if n := len(memory.hosts); n != maxRemembered {
		t.Errorf("%d hosts are remembered, want %d", n, maxRemembered)
	}
}

func TestLevelsNeedTheirSources(t *testing.T) {
	res := &relaytest.Resolver{}
	for name, o := range map[string]Options{
		"dane without a resolver":   {TLS: TLSDANE},
		"mta_sts without policies":  {TLS: TLSMTASTS},
		"mta_sts with a smart host": {TLS: TLSMTASTS, Policies: policies{}, SmartHosts: []route.SmartHost{{Host: "a.example"}}},
	} {
		o.Name, o.Hostname, o.Resolver = "out", "relay.example", res
		if _, err := New(o); err == nil {
			t.Errorf("New took %s", name)
		}
	}
}

// TestSecured holds what the end of a session tells about its TLS, which is what
// reports to domains are made of.
func TestSecured(t *testing.T) {
	cert, pool := relaytest.Certificate(t, "mx.y.example")
	withTLS := relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}})
	broken := relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10})
	enforce, elsewhere := policies{Mode: mtasts.Enforce, MX: []string{"mx.y.example"}, MaxAge: 60e9}, policies{Mode: mtasts.Testing, MX: []string{"other.example"}, MaxAge: 60e9}
	const sts = "version: STSv1; mode: enforce; mx: mx.y.example; max_age: 60"
	for _, test := range []struct {
		name   string
		host   relaytest.Option
		policy policies
		dane   bool
		lax    bool
		want   []event.TLS // versions apart
	}{
		{"no policy", withTLS, policies{Mode: mtasts.None}, false, false, []event.TLS{{Domain: "y.example", Policy: "opportunistic", Verify: "pkix_name"}}},
		{"no policy, no TLS", nil, policies{Mode: mtasts.None}, false, false, []event.TLS{{Domain: "y.example", Policy: "opportunistic", Verify: "none", Failure: "not_offered"}}},
		{"no policy, no handshake, then plain text", broken, policies{Mode: mtasts.None}, false, false, []event.TLS{{Domain: "y.example", Policy: "opportunistic", Verify: "none", Failure: "version"}, {}}},
		{"MTA-STS", withTLS, enforce, false, false, []event.TLS{{Domain: "y.example", Policy: "mta_sts", Text: sts, Verify: "mta_sts"}}},
		{"MTA-STS, no TLS", nil, enforce, false, false, []event.TLS{{Domain: "y.example", Policy: "mta_sts", Text: sts, Verify: "none", Failure: "not_offered"}}},
		{"MTA-STS tried out, other hosts", withTLS, elsewhere, false, false, []event.TLS{{
			Domain: "y.example", Policy: "mta_sts", Text: "version: STSv1; mode: testing; mx: other.example; max_age: 60", Verify: "pkix_name", Failure: "mx_mismatch",
		}}},
		{"DANE", withTLS, enforce, true, false, []event.TLS{{Domain: "y.example", Base: "mx.y.example", Policy: "dane", Text: "TLSA", Verify: "dane"}}},
		{"a report, whatever the policy", nil, enforce, false, true, []event.TLS{{}}},
		{"a report, whatever the records", nil, enforce, true, true, []event.TLS{{}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var opts []relaytest.Option
			if test.host != nil {
				opts = append(opts, test.host)
			}
			h := relaytest.NewSmartHost(t, opts...)
			res := signed(t, h.Port())
			if test.dane {
				record := spki(t, cert)
				res.SetTLSA(tlsaName(h.Port(), "mx.y.example"), record)
				for i := range test.want {
					if test.want[i].Text != "" {
						test.want[i].Text = dane.Text([]dns.TLSA{record})
					}
				}
			}
			var rec relaytest.Recorder
			c := policed(t, TLSMTASTS, h, res, &rec, pool, test.policy)
			m := message(sample)
			m.Envelope.TLSOptional = test.lax
			r := c.Attempt(t.Context(), route.Hop{Connector: "out", Name: "y.example"}, m)
			if test.lax && brief(r.Outcomes) != relayed {
				t.Errorf("outcome = %s, want it relayed", brief(r.Outcomes))
			}
			if test.lax && c.Idle() > 0 {
				t.Error("the session is kept for other messages")
			}
			_ = c.Close()
			var got []event.TLS
			for _, record := range rec.WaitFor(t, "session_closed", len(test.want)) {
				tls := record.Event.(event.SessionClosed).TLS
				if (tls.Version != "") != (tls.Domain != "" && tls.Verify != "none") {
					t.Errorf("version %q with verify %q", tls.Version, tls.Verify)
				}
				tls.Version = ""
				got = append(got, tls)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("sessions closed with %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestTLSMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts.json")
	m := OpenTLSMemory(path)
	if err := m.Save(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a file was written for nothing")
	}
	m.had("a.example")
	m.had("b.example")
	if err := m.Save(); err != nil {
		t.Fatal(err)
	}
	m = OpenTLSMemory(path)
	if m.lost("a.example").IsZero() || m.lost("c.example") != (time.Time{}) {
		t.Error("after a restart, a.example is not known, or c.example is")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m.Run(ctx, func(err error) { t.Error(err) }) // writes at its end
	m = OpenTLSMemory(path)
	if !m.lost("a.example").IsZero() {
		t.Error("what was news once is news again")
	}
	if m.lost("b.example").IsZero() {
		t.Error("b.example is not known")
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if m = OpenTLSMemory(path); !m.lost("b.example").IsZero() {
		t.Error("a damaged file is believed")
	}
	m = OpenTLSMemory(filepath.Join(path, "below a file"))
	m.had("a.example")
	if m.Save() == nil {
		t.Error("what cannot be written is no error")
	}
}
