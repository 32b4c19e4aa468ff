package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"waybill/cmd/internal/probe"
	"waybill/relay/relaytest"
)

func TestProbe(t *testing.T) {
	t.Setenv("COLUMNS", "100")
	t.Setenv("WAYBILL_CONFIG", "")
	ns := relaytest.NewNameServer(t, "mx.y.example. 60 IN A 127.0.0.1", "y.example. 60 IN MX 10 mx.y.example.", "null.example. 60 IN MX 0 .")
	cert, _, err := relaytest.NewCertificate(time.Now().Add(-time.Hour), "mx.y.example")
	if err != nil {
		t.Fatal(err)
	}
	h := relaytest.NewSmartHost(t, relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}))
	host := fmt.Sprintf("mx.y.example:%d", h.Port())
	conf := filepath.Join(t.TempDir(), "waybill.yaml")
	text := fmt.Sprintf(`hostname: relay.example
dns: {servers: [%q]}
receive_connectors:
  - {name: in, usage: internal, listen: ["127.0.0.1:0"]}
send_connectors:
  - {name: strict, address_spaces: [{space: strict.example}], smart_hosts: [%q], tls: {level: verify_name}}
  - {name: lax, address_spaces: [{space: "*"}], smart_hosts: [%[2]q], tls: {level: opportunistic}}
`, ns.Addr(), host)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"a host", []string{host, "--dns", ns.Addr()}, exitOK, []string{"the host itself", "220 next-hop.example", "not verified", "(expired)", "8BITMIME", "would be handed over."}},
		{
			"a host, strictly",
			[]string{host, "--dns", ns.Addr(), "--tls-level", "verify_name"},
			exitNo,
			[]string{"its certificate has expired", "who mends it   their certificate", "how            renew it", "would wait"},
		},
		{"what was said", []string{host, "--dns", ns.Addr(), "--transcript"}, exitOK, []string{"> EHLO ", "< 220 2.0.0 go ahead", "> QUIT"}},
		{"an address", []string{h.Addr()}, exitOK, []string{"handed over"}},
		{"no such domain", []string{"gone.example", "--dns", ns.Addr()}, exitNo, []string{"the domain does not exist", "whoever wrote the address", "would bounce"}},
		{"no mail", []string{"null.example", "--dns", ns.Addr()}, exitNo, []string{"null MX"}},
		{"a domain on this machine", []string{"y.example", "--dns", ns.Addr()}, exitNo, []string{"loops back to us"}},
		{"the connector that routing chooses", []string{"strict.example", "--config", conf}, exitNo, []string{"connector strict", "has expired", "tls.level"}},
		{"another one", []string{"other.example", "-c", conf}, exitOK, []string{"connector lax", "handed over"}},
		{"the one that is named", []string{"strict.example", "-c", conf, "--connector", "lax"}, exitOK, []string{"connector lax"}},
		{"a host by a connector", []string{host, "-c", conf, "--connector", "strict"}, exitNo, []string{"connector strict"}},
		{"no such connector", []string{"y.example", "-c", conf, "--connector", "x"}, exitNo, []string{`there is no send connector "x"`}},
		{"CSV", []string{host, "--dns", ns.Addr(), "-o", "csv"}, exitOK, []string{"host,address,verdict", "mx.y.example,127.0.0.1:"}},
		{"no target", nil, exitUsage, []string{"accepts 1 arg"}},
		{"nonsense", []string{"a b"}, exitUsage, []string{"a domain, a host"}},
		{"unknown level", []string{"y.example", "--tls-level", "x"}, exitUsage, []string{"opportunistic"}},
		{"a policy of a host", []string{host, "--tls-level", "mta_sts"}, exitUsage, []string{"mail exchangers"}},
		{"flags that do not fit", []string{"y.example", "-c", conf, "--tls-level", "none"}, exitUsage, []string{"without --config"}},
		{"a host by no connector", []string{host, "-c", conf}, exitUsage, []string{"--connector"}},
		{"a connector of no configuration", []string{"y.example", "--connector", "x"}, exitUsage, []string{"--config"}},
		{"no time", []string{"y.example", "--timeout", "0s"}, exitUsage, []string{"--timeout"}},
		{"a name server by name", []string{"y.example", "--dns", "ns.example"}, exitUsage, []string{"--dns"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			if code := run(t.Context(), append([]string{"probe"}, test.args...), strings.NewReader(""), &out, &out); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			for _, want := range test.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("the answer lacks %q:\n%s", want, out.String())
				}
			}
			for line := range strings.Lines(out.String()) {
				if n := len([]rune(line)); n > 111 {
					t.Errorf("a line of %d columns: %s", n, line)
				}
			}
		})
	}
	t.Run("JSON", func(t *testing.T) {
		var out bytes.Buffer
		code := run(t.Context(), []string{"probe", host, "--dns", ns.Addr(), "--tls-level", "verify_name", "-o", "json"}, strings.NewReader(""), &out, &out)
		var r probe.Report
		if err := json.Unmarshal(out.Bytes(), &r); err != nil || code != exitNo {
			t.Fatalf("exit code %d, %v: %s", code, err, out.String())
		}
		if r.Verdict != "fail" || r.First == nil || r.First.Stage != "tls" || len(r.Hosts) != 1 || len(r.Hosts[0].Addresses) != 1 || r.Hosts[0].Addresses[0].Certificate == nil {
			t.Errorf("report = %s", out.String())
		}
	})
}
