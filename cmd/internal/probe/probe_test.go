package probe

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"waybill/relay/dns"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/mtasts"
	"waybill/relay/relaytest"
	"waybill/relay/route"
	"waybill/relay/smtpout"
)

// world is what a probe walks through: a name server, a mail exchanger
// mx.y.example for y.example, and what the policy of the domain is.
type world struct {
	t      *testing.T
	dns    *relaytest.NameServer
	host   *relaytest.SmartHost
	opts   smtpout.Options
	facts  *Facts
	policy mtasts.Policy
	cert   tls.Certificate

	patience time.Duration // with the mail exchanger
	ask      time.Duration // how long for, of a name server
}

func (w *world) Policy(ctx context.Context, _ string) (mtasts.Policy, error) {
	return w.policy, ctx.Err()
}

// zone replaces the records of y.example.
func (w *world) zone(records ...string) {
	w.t.Helper()
	if err := w.dns.Add(records...); err != nil {
		w.t.Fatal(err)
	}
}

const usual = "y.example. 60 IN MX 10 mx.y.example."

func tlsa(c tls.Certificate, port uint16) string {
	leaf, _ := x509.ParseCertificate(c.Certificate[0])
	return fmt.Sprintf("_%d._tcp.mx.y.example. 60 IN TLSA 3 1 1 %x", port, sha256.Sum256(leaf.RawSubjectPublicKeyInfo))
}

func TestProbe(t *testing.T) {
	for _, test := range []struct {
		name    string
		host    []relaytest.Option
		noTLS   bool
		setup   func(w *world)
		outcome string
		verdict string
		stage   string
		who     string
		want    string // part of the first failure, or of the first finding
	}{
		{name: "all is well", setup: func(w *world) {
			w.zone(usual, "_smtp._tls.y.example. 60 IN TXT \"v=TLSRPTv1; rua=mailto:r@y.example\"")
		}, outcome: "relayed", verdict: OK},
		{name: "no such domain", setup: func(*world) {}, outcome: "bounced", verdict: Fail, stage: "dns", who: Sender, want: "does not exist"},
		{name: "takes no mail", setup: func(w *world) { w.zone("y.example. 60 IN MX 0 .") }, outcome: "bounced", verdict: Fail, stage: "dns", who: Sender, want: "null MX"},
		{name: "nothing that takes mail", setup: func(w *world) { w.zone(`y.example. 60 IN TXT "hello"`) }, outcome: "bounced", verdict: Fail, stage: "dns", who: TheirDNS, want: "neither MX nor address"},
		{name: "broken DNS", setup: func(w *world) { w.dns.Fail("y.example", mdns.RcodeServerFailure) }, outcome: "deferred", verdict: Fail, stage: "dns", who: TheirDNS, want: "the DNS cannot say"},
		{name: "no DNS", setup: func(w *world) {
			w.ask = 200 * time.Millisecond
			w.dns.Mute("y.example")
		}, outcome: "deferred", verdict: Fail, stage: "dns", who: OurDNS, want: "no answer"},
		{name: "MX without address", setup: func(w *world) { w.zone("y.example. 60 IN MX 10 gone.y.example.") }, outcome: "bounced", verdict: Fail, stage: "dns", who: TheirDNS, want: "it has no address"},
		{name: "MX inside", setup: func(w *world) {
			w.opts.AllowLoopback = false
			w.zone("y.example. 60 IN MX 10 inside.y.example.", "inside.y.example. 60 IN A 10.1.2.3")
		}, outcome: "bounced", verdict: Fail, stage: "dns", who: TheirDNS, want: "not a public address"},
		{name: "MX is us", setup: func(w *world) {
			w.opts.AllowLoopback = false
			w.zone(usual)
		}, outcome: "bounced", verdict: Fail, stage: "dns", who: "us, or their DNS", want: "loops back to us"},
		{name: "nobody listens", setup: func(w *world) {
			w.zone(usual)
			_ = w.host.Close()
		}, outcome: "deferred", verdict: Fail, stage: "connect", who: Them, want: "connection refused"},
		{name: "says nothing", setup: func(w *world) {
			w.patience = 10 * time.Second
			w.zone(usual)
			w.host.Do(relaytest.PhaseConnect, relaytest.Action{Hang: true})
		}, outcome: "deferred", verdict: Fail, stage: "banner", who: Them, want: "says nothing"},
		{name: "block list", setup: func(w *world) {
			w.zone(usual)
			w.host.Do(relaytest.PhaseConnect, relaytest.Action{Reply: "554 5.7.1 blocked, see list.example", Close: true})
		}, outcome: "deferred", verdict: Fail, stage: "banner", who: Them, want: "554 5.7.1 blocked"},
		{name: "does not like our name", setup: func(w *world) {
			w.zone(usual)
			w.host.Do(relaytest.PhaseEhlo, relaytest.Action{Reply: "550 5.7.1 get a name"})
			w.host.Do(relaytest.PhaseHelo, relaytest.Action{Reply: "550 5.7.1 get a name"})
		}, outcome: "deferred", verdict: Fail, stage: "ehlo", who: Us, want: "get a name"},
		{name: "no TLS, and none is needed", noTLS: true, setup: func(w *world) { w.zone(usual) }, outcome: "relayed", verdict: Warning, stage: "starttls", who: Them, want: "plain text"},
		{name: "no TLS, by policy", noTLS: true, setup: func(w *world) {
			w.zone(usual)
			w.policy = mtasts.Policy{Mode: mtasts.Enforce, MX: []string{"mx.y.example"}, MaxAge: time.Hour}
		}, outcome: "deferred", verdict: Fail, stage: "starttls", who: Them, want: "does not offer STARTTLS, and the domain's MTA-STS policy demands more"},
		{name: "STARTTLS refused", setup: func(w *world) {
			w.zone(usual)
			w.opts.TLS = smtpout.TLSEncrypt
			w.host.Do(relaytest.PhaseStartTLS, relaytest.Action{Reply: "454 4.7.0 no certificate"})
		}, outcome: "deferred", verdict: Fail, stage: "starttls", who: Them, want: "454 no certificate"},
		{name: "TLS garbage", setup: func(w *world) {
			w.zone(usual)
			w.opts.TLS = smtpout.TLSEncrypt
			w.host.Do(relaytest.PhaseTLS, relaytest.Action{Raw: "this is not TLS at all, sorry\r\n", Close: true})
		}, outcome: "deferred", verdict: Fail, stage: "tls", who: Them, want: "not TLS"},
		{name: "wants our certificate", setup: func(w *world) {
			w.wantOurs(tls.RequireAnyClientCert, false)
		}, outcome: "deferred", verdict: Fail, stage: "tls", who: Us, want: "it wants a certificate of ours"},
		{name: "does not know our certificate", setup: func(w *world) {
			w.wantOurs(tls.RequireAndVerifyClientCert, true)
		}, outcome: "deferred", verdict: Fail, stage: "tls", who: Us, want: "it does not take the certificate that we show"},
		{name: "expired", setup: func(w *world) {
			w.zone(usual)
			w.opts.TLS = smtpout.TLSVerifyName
			w.expire(-time.Hour)
		}, outcome: "deferred", verdict: Fail, stage: "tls", who: TheirCertificate, want: "has expired on"},
		{name: "ends soon", setup: func(w *world) {
			w.zone(usual)
			w.expire(72 * time.Hour)
		}, outcome: "relayed", verdict: Warning, who: TheirCertificate, want: "its certificate ends on"},
		{name: "other name", setup: func(w *world) {
			w.zone("y.example. 60 IN MX 10 other.y.example.", "other.y.example. 60 IN A 127.0.0.1")
			w.policy = mtasts.Policy{Mode: mtasts.Enforce, MX: []string{"*.y.example"}, MaxAge: time.Hour}
		}, outcome: "deferred", verdict: Fail, stage: "tls", who: TheirCertificate, want: "for other names: mx.y.example"},
		{name: "unknown authority", setup: func(w *world) {
			w.zone(usual)
			w.opts.TLS, w.opts.TLSConfig = smtpout.TLSVerify, &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
		}, outcome: "deferred", verdict: Fail, stage: "tls", who: TheirCertificate, want: "from nobody whom we trust, and tls.level of the send connector is verify"},
		{name: "old TLS", host: []relaytest.Option{relaytest.WithTLSConfig(nil)}, setup: func(w *world) {
			w.zone(usual)
			w.opts.TLS, w.opts.TLSConfig = smtpout.TLSEncrypt, &tls.Config{MinVersion: tls.VersionTLS13}
			w.serve(&tls.Config{Certificates: []tls.Certificate{w.cert}, MaxVersion: tls.VersionTLS12})
		}, outcome: "deferred", verdict: Fail, stage: "tls", who: Them, want: "no TLS version in common"},
		{name: "DANE", setup: func(w *world) {
			w.zone(usual, tlsa(w.cert, w.host.Port()))
			w.dns.SetSecure(true)
		}, outcome: "relayed", verdict: OK},
		{name: "forgotten TLSA", setup: func(w *world) {
			other, _ := relaytest.Certificate(w.t, "mx.y.example")
			w.zone(usual, tlsa(other, w.host.Port()))
			w.dns.SetSecure(true)
		}, outcome: "deferred", verdict: Fail, stage: "tls", who: TheirDNS, want: "does not match its TLSA records"},
		{name: "bogus TLSA", setup: func(w *world) {
			w.zone(usual)
			w.dns.SetSecure(true)
			w.dns.Fail(fmt.Sprintf("_%d._tcp.mx.y.example", w.host.Port()), mdns.RcodeServerFailure)
		}, outcome: "deferred", verdict: Fail, stage: "policy", who: TheirDNS, want: "no authentic answer"},
		{name: "MX not in the policy", setup: func(w *world) {
			w.zone(usual)
			w.policy = mtasts.Policy{Mode: mtasts.Enforce, MX: []string{"mx1.y.example"}, MaxAge: time.Hour}
		}, outcome: "deferred", verdict: Fail, stage: "policy", who: TheirPolicy, want: "not among the hosts"},
		{name: "MX not in a policy that is tried out", setup: func(w *world) {
			w.zone(usual)
			w.policy = mtasts.Policy{Mode: mtasts.Testing, MX: []string{"mx1.y.example"}, MaxAge: time.Hour}
		}, outcome: "relayed", verdict: Warning, stage: "policy", who: TheirPolicy, want: "not among the hosts"},
		{name: "policy cannot be fetched", setup: func(w *world) {
			w.zone(usual)
			rec := event.Record{Event: event.TLSPolicyFailed{Domain: "y.example", Policy: "mta_sts", Reason: "policy_unavailable", Detail: "the policy host answers 404"}}
			w.facts.Write(&rec)
		}, outcome: "relayed", verdict: Warning, stage: "policy", who: "them, or the network between", want: "answers 404"},
		{name: "wrong password", host: []relaytest.Option{relaytest.WithAuth("relay", "s3cret")}, setup: func(w *world) { w.smart("not-the-s3cret") }, outcome: "deferred", verdict: Fail, stage: "auth", who: Us, want: "535"},
		{name: "right password", host: []relaytest.Option{relaytest.WithAuth("relay", "s3cret")}, setup: func(w *world) { w.smart("s3cret") }, outcome: "relayed", verdict: OK},
		{name: "no source address", setup: func(w *world) {
			w.zone(usual)
			w.opts.SourceAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
		}, outcome: "deferred", verdict: Fail, stage: "connect", who: Us, want: "cannot assign"},
		{name: "one host is down", setup: func(w *world) {
			w.zone(usual, "y.example. 60 IN MX 5 down.y.example.", "down.y.example. 60 IN A 127.0.0.2")
		}, outcome: "relayed", verdict: Warning, stage: "connect", who: Them, want: "connection refused"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cert, pool, err := relaytest.NewCertificate(time.Now().Add(300*24*time.Hour), "mx.y.example")
			if err != nil {
				t.Fatal(err)
			}
			w := &world{t: t, patience: time.Minute, ask: 30 * time.Second, facts: &Facts{}, cert: cert, dns: relaytest.NewNameServer(t, "mx.y.example. 60 IN A 127.0.0.1")}
			opts := test.host
			if !test.noTLS {
				opts = append([]relaytest.Option{relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})}, opts...)
			}
			w.host = relaytest.NewSmartHost(t, opts...)
			w.opts = smtpout.Options{
				Name: "out", Hostname: "relay.example", Policies: w, Port: w.host.Port(), TLS: smtpout.TLSMTASTS,
				TLSConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, AllowLoopback: true,
			}
			test.setup(w)
			resolver, err := dns.New(dns.Options{Servers: []string{w.dns.Addr()}, Timeout: w.ask, HostsFile: "/dev/null"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = resolver.Close() })
			w.opts.Resolver, w.opts.DANE = resolver, resolver
			connector, err := smtpout.New(w.opts)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = connector.Close() })
			way := "mx"
			if len(w.opts.SmartHosts) > 0 {
				way = "smart_hosts"
			}
			r := Run(t.Context(), Options{
				Connector: connector, Resolver: resolver, Facts: w.facts, Name: "out", Route: way, Level: string(w.opts.TLS),
				Hop: route.Hop{Connector: "out", Name: "y.example"}, Target: "y.example", Timeout: w.patience,
			})
			text, err := json.MarshalIndent(r, "", " ")
			if err != nil {
				t.Fatal(err)
			}
			if r.Outcome != test.outcome || r.Verdict != test.verdict || r.Summary() == "" {
				t.Errorf("outcome %s, verdict %s; want %s, %s\n%s", r.Outcome, r.Verdict, test.outcome, test.verdict, text)
			}
			f := r.First
			if f == nil && len(r.Findings) > 0 {
				f = &r.Findings[0]
			}
			switch {
			case test.want == "" && len(r.Findings) > 0:
				t.Errorf("findings %+v, want none", r.Findings)
			case test.want == "":
			case f == nil:
				t.Errorf("nothing is found\n%s", text)
			case f.Stage != test.stage || f.Who != test.who || !strings.Contains(f.What, test.want) || f.Fix == "":
				t.Errorf("first = %+v, want %s of %s: %s", *f, test.stage, test.who, test.want)
			}
			if (r.Verdict == Fail) != (r.First != nil && r.Outcome != "relayed") && r.Verdict == Fail {
				t.Errorf("verdict %s with first failure %+v", r.Verdict, r.First)
			}
			if n := w.host.Counts()["MAIL"]; n > 0 {
				t.Error("MAIL was sent")
			}
			if strings.Contains(string(text), "s3cret") {
				t.Error("the password is in the report")
			}
			if r.Verdict == OK && way == "mx" {
				a := r.Hosts[0].Addresses[0]
				if a.TLSVersion == "" || a.Certificate == nil || !slices.Contains(a.Extensions, "8BITMIME") || !strings.HasPrefix(a.Banner, "220 ") || a.Stages["connect"] <= 0 {
					t.Errorf("address = %+v", a)
				}
			}
		})
	}
}

// expire gives the host a certificate that ends so far from now.
func (w *world) expire(in time.Duration) {
	w.t.Helper()
	cert, pool, err := relaytest.NewCertificate(time.Now().Add(in), "mx.y.example")
	if err != nil {
		w.t.Fatal(err)
	}
	w.opts.TLSConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	w.serve(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
}

// wantOurs has the host ask for a certificate of ours, with TLS 1.3.
func (w *world) wantOurs(auth tls.ClientAuthType, show bool) {
	w.t.Helper()
	w.zone(usual)
	cert, pool, err := relaytest.NewCertificate(time.Now().Add(time.Hour), "mx.y.example")
	if err != nil {
		w.t.Fatal(err)
	}
	w.opts.TLS, w.opts.TLSConfig = smtpout.TLSVerifyName, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
	if show {
		ours, _ := relaytest.Certificate(w.t, "relay.example")
		w.opts.TLSConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &ours, nil }
	}
	w.serve(&tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: auth, ClientCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS13})
}

// serve replaces the host by one with another TLS.
func (w *world) serve(cfg *tls.Config) {
	w.t.Helper()
	w.host = relaytest.NewSmartHost(w.t, relaytest.WithTLSConfig(cfg))
	w.opts.Port = w.host.Port()
}

// smart makes the host a smart host that wants a login.
func (w *world) smart(password string) {
	w.opts.SmartHosts, w.opts.TLS = []route.SmartHost{{Host: "mx.y.example", Port: w.host.Port(), Cost: 10}}, smtpout.TLSVerifyName
	w.opts.Auth = smtpout.Auth{Mechanism: "PLAIN", Username: "relay", Password: func() (string, error) { return password, nil }}
}

// TestWords holds the explanations to the words of package event.
func TestWords(t *testing.T) {
	for _, word := range event.TLSFailures() {
		if w, ok := tlsWords[word]; !ok || w.what == "" || w.who == "" || w.fix == "" || w.stage == "" {
			t.Errorf("%q is not explained", word)
		}
	}
	if len(tlsWords) != len(event.TLSFailures()) {
		t.Error("words are explained that there are not")
	}
}

// lost is a walk to addresses that never answer.
type lost struct{}

func (lost) Inspect(context.Context, route.Hop, time.Duration) smtpout.Inspection {
	silent := &smtpout.Trouble{Verb: "CONNECT", Reply: mail.Reply{Code: 451, Enhanced: "4.4.2", Text: "timeout"}, Class: mail.ClassTimeout}
	return smtpout.Inspection{Hosts: []smtpout.InspectedHost{{Name: "mx.y.example", Sessions: []smtpout.InspectedSession{
		{Addr: netip.MustParseAddrPort("192.0.2.1:25"), Failed: silent}, {Addr: netip.MustParseAddrPort("[2001:db8::1]:25"), Failed: silent},
	}}}}
}

func (lost) TXT(context.Context, string) ([]string, error) { return nil, nil }
func (lost) Validates() bool                               { return false }

func TestNobodyAnswers(t *testing.T) {
	r := Run(t.Context(), Options{Connector: lost{}, Resolver: lost{}, Route: "mx", Level: "mta_sts", Hop: route.Hop{Name: "y.example"}, Target: "y.example"})
	var closed, resolver bool
	for _, f := range r.Findings {
		closed = closed || f.Who == Network && strings.Contains(f.Fix, "port 25")
		resolver = resolver || f.Who == Us && strings.Contains(f.What, "DANE")
	}
	if r.Verdict != Fail || r.Outcome != "deferred" || !closed || !resolver {
		t.Errorf("report = %+v", r)
	}
}

// Whose name servers fail decides who can mend it.
func TestWhoseDNS(t *testing.T) {
	const refused, broken = "A mx.y.example: servfail: server 127.0.0.1:53: read: connection refused", "A mx.y.example: servfail: server 127.0.0.1:53: answered SERVFAIL"
	for _, test := range []struct {
		name  string
		route string
		text  string
		want  string
	}{
		{"ours, by MX", "mx", refused, OurDNS},
		{"ours, a smart host", "smart_hosts", refused, OurDNS},
		{"theirs, by MX", "mx", broken, TheirDNS},
		{"theirs, a smart host", "smart_hosts", broken, TheirDNS},
	} {
		t.Run(test.name, func(t *testing.T) {
			trouble := &smtpout.Trouble{Reply: mail.Reply{Code: 451, Enhanced: "4.4.3", Text: test.text}, Class: mail.ClassDNS}
			if f := explainHost(&smtpout.InspectedHost{Name: "mx.y.example", Failed: trouble}, &Options{Route: test.route}); f.Who != test.want || f.Fix == "" {
				t.Errorf("host: %+v, want %s", f, test.want)
			}
			if f := explainDomain("y.example", trouble); f.Who != test.want || f.Fix == "" {
				t.Errorf("domain: %+v, want %s", f, test.want)
			}
		})
	}
}
