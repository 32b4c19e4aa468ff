//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestKerberosToNextHop relays through a relay of our own that wants tickets of
// MIT's KDC: got with a keytab, and out of a credential cache of kinit.
func TestKerberosToNextHop(t *testing.T) {
	t.Parallel()
	r := startRealm(t)
	r.run("", "/usr/sbin/kadmin.local", "-q", "addprinc -randkey relay")
	ours := filepath.Join(r.dir, "relay.keytab")
	r.run("", "/usr/sbin/kadmin.local", "-q", "ktadd -k "+ours+" -e aes256-cts-hmac-sha384-192:normal relay")
	theirs := filepath.Join(r.dir, "smtp.keytab")
	r.rekey("aes256-cts-hmac-sha1-96", theirs)
	r.run("alice-password\n", "kinit", "alice")

	inner, outer := port(t), port(t)
	hop := start(t, fmt.Sprintf(`hostname: localhost
data_dir: DIR/data
users: {kerberos: {keytab_file: %s, senders: ["any@source.test"]}}
receive_connectors:
  - {name: in, usage: client, listen: ["127.0.0.1:%d"], tls: {mode: "off", required: false}, auth: {mechanisms: [GSSAPI], before_tls: true}, limits: {tarpit: 0s}}
send_connectors:
  - {name: out, address_spaces: [{space: "*"}], smart_hosts: ["127.0.0.1:%d"], tls: {level: none}}
queue: {disk_free_min: 16MiB}
http: {listen: "127.0.0.1:HTTPPORT"}
log: {file: DIR/waybill.log}
`, theirs, inner, port(t)))
	d := start(t, fmt.Sprintf(`hostname: localhost
data_dir: DIR/data
receive_connectors:
  - {name: in, usage: internal, listen: ["127.0.0.1:%[1]d"], tls: {mode: "off"}, limits: {tarpit: 0s}}
send_connectors:
  - {name: keytab, address_spaces: [{space: "keytab.test"}], smart_hosts: ["localhost:%[2]d"], tls: {level: none},
     auth: {mechanism: GSSAPI, username: relay@EXAMPLE.TEST, keytab_file: %[3]s/relay.keytab, krb5_file: %[3]s/krb5.conf, before_tls: true}}
  - {name: cache, address_spaces: [{space: "cache.test"}], smart_hosts: ["127.0.0.1:%[2]d"], tls: {level: none},
     auth: {mechanism: GSSAPI, ccache_file: %[3]s/tickets, krb5_file: %[3]s/krb5.conf, service: smtp/localhost, before_tls: true}}
queue: {disk_free_min: 16MiB}
http: {listen: "127.0.0.1:HTTPPORT"}
log: {file: DIR/waybill.log}
`, outer, inner, r.dir))
	for domain, user := range map[string]string{"keytab.test": "relay@example.test", "cache.test": "alice@example.test"} {
		s := dial(t, outer)
		s.cmd(250, "EHLO client.test")
		s.send("any@source.test", "rcpt@"+domain, "Subject: ticket\r\n\r\nhello\r\n")
		s.cmd(221, "QUIT")
		eventually(t, time.Minute, "a login of "+user, func() error {
			b, err := os.ReadFile(filepath.Join(hop.dir, "waybill.log"))
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(b)) {
				if strings.Contains(line, `"auth_succeeded"`) && strings.Contains(line, `"GSSAPI"`) && strings.Contains(line, user) {
					return nil
				}
			}
			return fmt.Errorf("none in %d octets of log", len(b))
		})
	}
	eventually(t, time.Minute, "both messages to be handed over", func() error { return handedOver(d, 2) })
	secrets(t, d, "alice-password")
}

// handedOver wants so many recipients to have been relayed.
func handedOver(d *daemon, n int) error {
	b, err := os.ReadFile(filepath.Join(d.dir, "waybill.log"))
	if err != nil {
		return err
	}
	if got := strings.Count(string(b), `"recipient_relayed"`); got < n {
		return fmt.Errorf("%d recipients are relayed, want %d", got, n)
	}
	return nil
}
