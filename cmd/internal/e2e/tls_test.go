//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
)

// TestTLSPeers has other TLS libraries than Go's look at what our listeners
// speak, and what not.
func TestTLSPeers(t *testing.T) {
	t.Parallel()
	modern, device, implicit := port(t), port(t), port(t)
	certs := shared(t)
	rsa, elliptic := filepath.Join(certs, "rsa"), filepath.Join(certs, "ec")
	for name, key := range map[string][]string{rsa: {"rsa:2048"}, elliptic: {"ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"}} {
		args := append([]string{"req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=relay.test", "-addext", "subjectAltName=DNS:relay.test", "-keyout", name + ".key", "-out", name + ".crt", "-newkey"}, key...)
		run(t, "openssl", args...)
	}
	d := start(t, fmt.Sprintf(`hostname: relay.test
data_dir: DIR/data
http: {listen: "127.0.0.1:HTTPPORT"}
log: {file: DIR/waybill.log}
certificates:
  default: {cert_file: %[1]s.crt, key_file: %[1]s.key}
  rsa: {cert_file: %[2]s.crt, key_file: %[2]s.key}
receive_connectors:
  - {name: modern, usage: internal, listen: ["127.0.0.1:%[3]d"]}
  - {name: device, usage: device, listen: ["127.0.0.1:%[4]d"], remote_ranges: ["127.0.0.0/8"]}
  - {name: implicit, usage: internal, listen: ["127.0.0.1:%[5]d"], tls: {mode: implicit, min_version: "1.3"}}
send_connectors:
  - {name: out, address_spaces: [{space: "*"}], smart_hosts: ["127.0.0.1:9"]}
`, elliptic, rsa, modern, device, implicit))

	at := func(p int) string { return fmt.Sprintf("127.0.0.1:%d", p) }
	sclient := func(p int, more ...string) []string {
		return append([]string{"openssl", "s_client", "-starttls", "smtp", "-connect", at(p)}, more...)
	}
	gnutls := func(p int, priority string) []string {
		return []string{"gnutls-cli", "--insecure", "--starttls-proto=smtp", "--priority=" + priority, at(p)}
	}
	for _, test := range []struct {
		name string
		cmd  []string
		says string // in its output; the last part tells the version
		want bool
	}{
		{"openssl, 1.3", sclient(modern, "-tls1_3"), "TLSv1.3", true},
		{"openssl, 1.2", sclient(modern, "-tls1_2"), "TLSv1.2", true},
		{"openssl, 1.1", sclient(modern, "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"), "", false},
		{"openssl, RSA key exchange", sclient(modern, "-tls1_2", "-cipher", "AES128-SHA@SECLEVEL=0"), "", false},
		{"openssl, RSA certificate for who knows no other", sclient(modern, "-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256", "-servername", "relay.test"), "ECDHE-RSA", true},
		{"openssl, 1.3 from the first octet", []string{"openssl", "s_client", "-connect", at(implicit), "-tls1_3"}, "TLSv1.3", true},
		{"openssl, 1.2 where 1.3 is the oldest", []string{"openssl", "s_client", "-connect", at(implicit), "-tls1_2"}, "", false},
		{"openssl, device with 1.0", sclient(device, "-tls1", "-cipher", "DEFAULT@SECLEVEL=0"), "TLSv1", true},
		{"openssl, device with RSA key exchange", sclient(device, "-tls1", "-cipher", "AES128-SHA@SECLEVEL=0"), "AES128-SHA", true},
		{"openssl, device of today", sclient(device, "-tls1_3"), "TLSv1.3", true},
		{"gnutls, usual", gnutls(modern, "NORMAL"), "TLS1.3", true},
		{"gnutls, 1.1", gnutls(modern, "NORMAL:-VERS-ALL:+VERS-TLS1.1"), "", false},
		{"gnutls, device with 1.0", gnutls(device, "LEGACY:-VERS-ALL:+VERS-TLS1.0:%VERIFY_ALLOW_SIGN_WITH_SHA1"), "TLS1.0", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, test.cmd[0], test.cmd[1:]...)
			cmd.Stdin = strings.NewReader("QUIT\r\n")
			out, err := cmd.CombinedOutput()
			ok := err == nil && strings.Contains(string(out), test.says) && !strings.Contains(string(out), "Cipher is (NONE)")
			if ok != test.want {
				t.Errorf("%q succeeded: %t, want %t: %v\n%s", test.cmd, ok, test.want, err, out)
			}
		})
	}

	t.Run("sslscan", func(t *testing.T) {
		out := strings.ToLower(run(t, "sslscan", "--no-colour", "--starttls-smtp", "--no-check-certificate", at(modern)))
		versions := 0
		for line := range strings.SplitSeq(out, "\n") {
			words := strings.Fields(line)
			if len(words) == 2 && (words[1] == "enabled" || words[1] == "disabled") {
				versions++
				want := "disabled"
				if words[0] == "tlsv1.2" || words[0] == "tlsv1.3" {
					want = "enabled"
				}
				if words[1] != want {
					t.Errorf("%s is %s", words[0], words[1])
				}
			}
		}
		if versions != 6 {
			t.Errorf("sslscan tells of %d versions, want 6:\n%s", versions, out)
		}
		if strings.Contains(out, "secure session renegotiation supported") || strings.Contains(out, "to heartbleed") && strings.Contains(out, " vulnerable to heartbleed") && !strings.Contains(out, "not vulnerable") {
			t.Errorf("sslscan says:\n%s", out)
		}
	})

	t.Run("plain text on the TLS port", func(t *testing.T) {
		conn, err := net.Dial("tcp", at(implicit))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
		_, _ = io.WriteString(conn, "EHLO plain.test\r\n")
		_, _ = io.Copy(io.Discard, conn)
		eventually(t, time.Minute, "the refusal", func() error {
			list, err := d.api.Events(context.Background(), trackapi.Query{Event: "session_refused"})
			if err != nil {
				return err
			}
			for _, raw := range list.Events {
				var got struct {
					Connector string `json:"connector"`
					Reason    string `json:"reason"`
				}
				if err := json.Unmarshal(raw, &got); err != nil {
					t.Fatal(err)
				}
				if got.Connector == "implicit" && got.Reason == "tls_error" {
					return nil
				}
			}
			return errors.New("there is none")
		})
	})
}
