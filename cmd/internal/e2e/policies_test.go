//go:build e2e

package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"mime"
	"mime/multipart"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/dns"
	wmail "waybill/relay/mail"
	"waybill/relay/mtasts"
	"waybill/relay/relaytest"
	"waybill/relay/route"
	"waybill/relay/smtpout"
	"waybill/relay/tlsrpt"
)

// authority is one of a domain's own, and a certificate of it for names; the
// server shows both (RFC 7672 section 3.1.2).
func authority(t testing.TB, names ...string) (ca *x509.Certificate, cert tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "own authority"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	chain, err := x509.CreateCertificate(rand.Reader, leaf, ca, &own.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return ca, tls.Certificate{Certificate: [][]byte{chain, der}, PrivateKey: own}
}

// noPolicies are domains without MTA-STS.
type noPolicies struct{}

func (noPolicies) Policy(ctx context.Context, _ string) (mtasts.Policy, error) {
	return mtasts.Policy{Mode: mtasts.None}, ctx.Err()
}

// TestDANERecords sends by MX, over a zone that a real server signs and a real
// resolver validates, to hosts with every kind of TLSA records.
func TestDANERecords(t *testing.T) {
	t.Parallel()
	ca, cert := authority(t, "mx.ta.signed.example", "full.signed.example")
	_, next := authority(t, "mx.signed.example") // after the rollover
	h := relaytest.NewSmartHost(t, relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}))
	bare := relaytest.NewSmartHost(t)
	good, other := record311(t, cert), record311(t, next)
	anchor := fmt.Sprintf("TLSA 2 0 1 %x", sha256.Sum256(ca.Raw))
	const unusable = "TLSA 1 1 1 0000000000000000000000000000000000000000000000000000000000000000"
	short := "TLSA 3 1 1 abcd"

	tests := []struct {
		name    string // and sub-domain
		records []string
		bare    bool // the host has no STARTTLS
		want    string
		verify  string
		policy  string
	}{
		{"ee", []string{good}, false, "relayed", "dane", "dane"},
		{"ta", []string{anchor}, false, "relayed", "dane", "dane"},
		{"full", []string{fmt.Sprintf("TLSA 2 0 0 %x", ca.Raw)}, false, "relayed", "dane", "dane"},
		{"ta-name", []string{anchor}, false, "deferred", "none", "dane"}, // with usage 2 names count
		{"rollover", []string{other, good}, false, "relayed", "dane", "dane"},
		{"forgotten", []string{other}, false, "deferred", "none", "dane"},
		{"mixed", []string{unusable, short, good}, false, "relayed", "dane", "dane"},
		{"mixed-wrong", []string{unusable, other}, false, "deferred", "none", "dane"},
		{"unusable", []string{unusable}, false, "relayed", "unverified", "dane"},
		{"unusable-bare", []string{unusable}, true, "deferred", "none", "dane"},
		{"none", nil, false, "relayed", "unverified", "opportunistic"},
		{"none-bare", nil, true, "relayed", "none", "opportunistic"},
		{"alias", []string{"CNAME tlsa.signed.example."}, false, "relayed", "dane", "dane"},
		{"alias-unsigned", []string{"CNAME tlsa.unsigned.example."}, false, "relayed", "unverified", "opportunistic"},
	}
	var zone strings.Builder
	fmt.Fprintf(&zone, "@ MX 10 mx\nmx A 127.0.0.1\ntlsa %s\n", good)
	for _, test := range tests {
		fmt.Fprintf(&zone, "%[1]s MX 10 mx.%[1]s\nmx.%[1]s A 127.0.0.1\n", test.name)
		for _, r := range test.records {
			fmt.Fprintf(&zone, "_%d._tcp.mx.%s %s\n_%d._tcp.mx.%[2]s %[3]s\n", h.Port(), test.name, r, bare.Port())
		}
	}
	// A host that is wrong, and one behind it that is right.
	fmt.Fprintf(&zone, "hosts MX 10 wrong.hosts\nhosts MX 20 mx.ee\nwrong.hosts A 127.0.0.1\n_%d._tcp.wrong.hosts %s\n", h.Port(), other)
	z := serveZones(t, map[string]string{"signed.example": zone.String(), "bogus.example": fmt.Sprintf("@ MX 10 mx\nmx A 127.0.0.1\n_%d._tcp.mx %s\n", h.Port(), good)},
		map[string]string{"unsigned.example": fmt.Sprintf("@ MX 10 mx\nmx A 127.0.0.1\ntlsa %s\n_%d._tcp.mx %[1]s\n", other, h.Port())})
	z.ds("bogus.example")
	server := z.validate([]string{"signed.example", "unsigned.example", "bogus.example"}, z.ds("signed.example"), "bogus.example. DS 1 13 2 "+strings.Repeat("ab", 32))
	resolver, err := dns.New(dns.Options{Servers: []string{server}})
	if err != nil {
		t.Fatal(err)
	}
	defer resolver.Close()

	attempt := func(t *testing.T, domain string, port uint16, level smtpout.TLSLevel) smtpout.Result {
		t.Helper()
		c, err := smtpout.New(smtpout.Options{
			Name: "out", Hostname: "relay.test", Port: port, Resolver: resolver, DANE: resolver, Policies: noPolicies{}, TLS: level, AllowLoopback: true,
			TLSConfig: &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		content := "Subject: hello\r\n\r\nhello\r\n"
		return c.Attempt(t.Context(), route.Hop{Connector: "out", Name: domain}, smtpout.Message{
			Envelope: wmail.Envelope{
				Sender: wmail.Address{Local: "a", Domain: "source.test"}, Recipients: []wmail.Recipient{{Address: wmail.Address{Local: "b", Domain: domain}}},
			},
			Size: int64(len(content)), Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil },
		})
	}
	for _, test := range tests {
		for _, level := range []smtpout.TLSLevel{smtpout.TLSDANE, smtpout.TLSMTASTS} {
			t.Run(test.name+", "+string(level), func(t *testing.T) {
				at := h.Port()
				if test.bare {
					at = bare.Port()
				}
				r := attempt(t, test.name+".signed.example", at, level)
				if got := r.Outcomes[0].Disposition.String(); got != test.want || r.TLSVerify != test.verify || r.TLSPolicy != test.policy {
					t.Errorf("%s, verify %s, policy %s (%s); want %s, %s, %s: %+v", got, r.TLSVerify, r.TLSPolicy, r.TLSFailure, test.want, test.verify, test.policy, r.Outcomes[0].Reply)
				}
			})
		}
	}
	for _, test := range []struct {
		name   string
		domain string
		want   string
		policy string
		reason string
	}{
		{"a second host", "hosts.signed.example", "relayed", "dane", ""},
		{"unsigned", "unsigned.example", "relayed", "opportunistic", ""},
		{"bogus", "bogus.example", "deferred", "", ""}, // no answer counts: not even about the MX
	} {
		t.Run(test.name, func(t *testing.T) {
			r := attempt(t, test.domain, h.Port(), smtpout.TLSDANE)
			if got := r.Outcomes[0].Disposition.String(); got != test.want || r.TLSPolicy != test.policy || r.TLSFailure != test.reason {
				t.Errorf("%s, policy %q, failure %q: %+v", got, r.TLSPolicy, r.TLSFailure, r.Outcomes[0].Reply)
			}
		})
	}
}

// TestTLSReports has the daemon fail at a host without STARTTLS and at one with
// another certificate than its TLSA records say, and looks at the reports that the
// domain gets for it the next day.
func TestTLSReports(t *testing.T) {
	t.Parallel()
	cert, _ := relaytest.Certificate(t, "mx.signed.example")
	stranger, _ := relaytest.Certificate(t, "mx.signed.example")
	good := relaytest.NewSmartHost(t, relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}}))
	bare, sink := relaytest.NewSmartHost(t), relaytest.NewSmartHost(t)
	const wants = `TXT "v=TLSRPTv1; rua=mailto:reports@sink.test"`
	z := serveZones(t, map[string]string{"signed.example": fmt.Sprintf(
		"@ MX 10 mx\nmx A 127.0.0.1\nbad A 127.0.0.1\nbare A 127.0.0.1\nquiet A 127.0.0.1\n"+
			"_%[1]d._tcp.mx %[2]s\n_%[1]d._tcp.bad %[3]s\n_%[4]d._tcp.bare %[2]s\n_%[1]d._tcp.quiet %[2]s\n"+
			"_smtp._tls.mx %[5]s\n_smtp._tls.bad %[5]s\n_smtp._tls.bare %[5]s\n",
		good.Port(), record311(t, cert), record311(t, stranger), bare.Port(), wants)}, nil)
	server := z.validate([]string{"signed.example"}, z.ds("signed.example"))
	in := port(t)
	conf := fmt.Sprintf(`hostname: relay.test
data_dir: DIR/data
http: {listen: "127.0.0.1:HTTPPORT"}
log: {file: DIR/waybill.log}
dns: {servers: [%q]}
tls_reports: {enabled: true, from: tls-reports@relay.test, organization: Relay, delay: 1s}
receive_connectors:
  - {name: in, usage: internal, listen: ["127.0.0.1:%d"]}
send_connectors:
  - {name: sink, address_spaces: [{space: sink.test}], smart_hosts: ["127.0.0.1:%d"]}
`, server, in, sink.Port())
	hosts := map[string]uint16{"mx": good.Port(), "bad": good.Port(), "bare": bare.Port(), "quiet": good.Port()}
	for name, at := range hosts {
		conf += fmt.Sprintf("  - {name: %[1]s, address_spaces: [{space: %[1]s.test}], smart_hosts: [\"%[1]s.signed.example:%[2]d\"], tls: {level: dane}, retry: {schedule: [30m]}}\n", name, at)
	}
	d := start(t, conf)
	s := dial(t, in)
	for name := range hosts {
		s.send("a@source.test", "b@"+name+".test", hello)
		eventually(t, time.Minute, "the attempt", func() error {
			list, err := d.api.Events(context.Background(), trackapi.Query{Recipient: "b@" + name + ".test", Event: "attempt_finished"})
			if err == nil && len(list.Events) == 0 {
				err = errors.New("none yet")
			}
			return err
		})
	}
	// The end of the day comes by another name of the file.
	d.stop()
	now := time.Now().UTC()
	dir := filepath.Join(d.dir, "data", "tls-reports")
	yesterday := now.AddDate(0, 0, -1).Format(time.DateOnly)
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v; want the day's", files, err)
	}
	today := strings.TrimSuffix(files[0].Name(), ".json")
	text, err := os.ReadFile(filepath.Join(dir, files[0].Name()))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, files[0].Name())); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, yesterday+".json"), strings.Replace(string(text), today, yesterday, 1))
	d.boot()
	d.ready()
	messages, err := sink.Wait(3, 3*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, m := range messages {
		if m.Envelope.Sender.String() != "tls-reports@relay.test" || m.Envelope.Recipients[0].Address.String() != "reports@sink.test" {
			t.Errorf("envelope = %+v", m.Envelope)
		}
		rep := readReport(t, m.Content)
		for _, p := range rep.Policies {
			line := fmt.Sprintf("%s %d/%d", p.Policy.Type, p.Summary.Successful, p.Summary.Failed)
			for _, f := range p.Failures {
				line += fmt.Sprintf(" %s %s %s", f.Type, f.MX, f.To)
			}
			got[p.Policy.Domain] = line
		}
	}
	for domain, want := range map[string]string{
		"mx.signed.example": "tlsa 1/0", "bad.signed.example": "tlsa 0/1 tlsa-invalid bad.signed.example 127.0.0.1",
		"bare.signed.example": "tlsa 0/1 starttls-not-supported bare.signed.example 127.0.0.1",
	} {
		if got[domain] != want {
			t.Errorf("report to %s: %s, want %s", domain, got[domain], want)
		}
	}
	eventually(t, time.Minute, "the facts", func() error {
		list, err := d.api.Events(context.Background(), trackapi.Query{Event: "tls_report_sent"})
		if err == nil && len(list.Events) != 3 {
			err = fmt.Errorf("%d reports are recorded", len(list.Events))
		}
		return err
	})
	d.stop()
	if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
		t.Errorf("files %v are left (%v)", files, err)
	}
}

// readReport takes a report out of its message.
func readReport(t *testing.T, content []byte) (rep tlsrpt.Report) {
	t.Helper()
	m, err := mail.ReadMessage(bytes.NewReader(content))
	if err != nil {
		t.Fatalf("%v: %s", err, content)
	}
	_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	parts := multipart.NewReader(m.Body, params["boundary"])
	for {
		p, err := parts.NextPart()
		if err != nil {
			t.Fatalf("%v: %s", err, content)
		}
		if p.Header.Get("Content-Type") != "application/tlsrpt+gzip" {
			continue
		}
		z, err := gzip.NewReader(base64.NewDecoder(base64.StdEncoding, p))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.NewDecoder(z).Decode(&rep); err != nil {
			t.Fatal(err)
		}
		return rep
	}
}
