//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"waybill/cmd/internal/peers"
)

// realm is a Kerberos realm of MIT's KDC on loopback.
type realm struct {
	t    testing.TB
	dir  string
	port int
	env  []string // of clients
	own  []string // of the KDC, which must not follow what clients are told
}

func startRealm(t testing.TB) *realm {
	t.Helper()
	r := &realm{t: t, dir: shared(t), port: port(t)}
	r.config("krb5.conf", "")
	r.config("own.conf", "")
	write(t, filepath.Join(r.dir, "kdc.conf"), fmt.Sprintf(`[kdcdefaults]
 kdc_listen = 127.0.0.1:%[2]d
 kdc_tcp_listen = 127.0.0.1:%[2]d
[realms]
 EXAMPLE.TEST = {
  database_name = %[1]s/principal
  key_stash_file = %[1]s/stash
  supported_enctypes = aes256-cts-hmac-sha384-192:normal aes128-cts-hmac-sha256-128:normal aes256-cts-hmac-sha1-96:normal aes128-cts-hmac-sha1-96:normal arcfour-hmac:normal
 }
[logging]
 kdc = FILE:%[1]s/kdc.log
`, r.dir, r.port))
	r.env = append(os.Environ(), "KRB5_CONFIG="+r.dir+"/krb5.conf", "KRB5CCNAME=FILE:"+r.dir+"/tickets")
	r.own = append(os.Environ(), "KRB5_CONFIG="+r.dir+"/own.conf", "KRB5_KDC_PROFILE="+r.dir+"/kdc.conf")
	r.run("", "/usr/sbin/kdb5_util", "create", "-s", "-P", "master", "-r", "EXAMPLE.TEST")
	for _, principal := range []string{"alice", "bob"} {
		r.run("", "/usr/sbin/kadmin.local", "-q", "addprinc -pw "+principal+"-password "+principal)
	}
	r.run("", "/usr/sbin/kadmin.local", "-q", "addprinc -randkey smtp/localhost")
	kdc := r.command("/usr/sbin/krb5kdc", "-n")
	if err := kdc.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kdc.Process.Kill(); _ = kdc.Wait() })
	if err := peers.WaitPort(r.port, time.Minute); err != nil {
		t.Fatal(err)
	}
	return r
}

// config writes a configuration, with the encryption types that they
// take; none means MIT's own choice.
func (r *realm) config(name, types string) {
	if types != "" {
		types = " allow_weak_crypto = true\n permitted_enctypes = " + types + "\n"
	}
	write(r.t, filepath.Join(r.dir, name), fmt.Sprintf(`[libdefaults]
 default_realm = EXAMPLE.TEST
 dns_lookup_realm = false
 dns_lookup_kdc = false
 dns_canonicalize_hostname = false
 rdns = false
%s[realms]
 EXAMPLE.TEST = {
  kdc = 127.0.0.1:%d
 }
`, types, r.port))
}

func (r *realm) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = r.env
	if strings.HasPrefix(name, "/usr/sbin/") {
		cmd.Env = r.own
	}
	return cmd
}

func (r *realm) run(stdin, name string, args ...string) string {
	r.t.Helper()
	cmd := r.command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// rekey gives the service a new key of one encryption type, and writes the keytab.
func (r *realm) rekey(etype, keytab string) {
	r.t.Helper()
	next := filepath.Join(r.dir, "next.keytab")
	_ = os.Remove(next)
	r.run("", "/usr/sbin/kadmin.local", "-q", "ktadd -k "+next+" -e "+etype+":normal smtp/localhost")
	if err := os.Rename(next, keytab); err != nil {
		r.t.Fatal(err)
	}
}

// curl submits with a ticket; without mutual authentication.
func (r *realm) curl(port int, user, from, to string) error {
	mail := filepath.Join(r.dir, "mail.eml")
	write(r.t, mail, "Subject: ticket\r\n\r\nhello\r\n")
	out, err := r.command("curl", "-sS", "--max-time", "30", "--login-options", "AUTH=GSSAPI", "-u", user+"@EXAMPLE.TEST:",
		fmt.Sprintf("smtp://localhost:%d", port), "--mail-from", from, "--mail-rcpt", to, "-T", mail).CombinedOutput()
	if err != nil {
		return fmt.Errorf("curl: %w\n%s", err, out)
	}
	return nil
}

// gsasl logs in with mutual authentication.
func (r *realm) gsasl(port int, user, authz string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "gsasl", "--client", "--smtp", "-m", "GSSAPI", "--no-starttls", "--hostname=localhost", "--service=smtp",
		"--authentication-id="+user, "--authorization-id="+authz, fmt.Sprintf("--connect=127.0.0.1:%d", port))
	cmd.Env = r.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestKerberos logs in with tickets of MIT's KDC: each encryption type, a keytab
// that changes meanwhile, curl and gsasl, and what must be refused.
func TestKerberos(t *testing.T) {
	t.Parallel()
	r := startRealm(t)
	in := port(t)
	keytab := filepath.Join(r.dir, "smtp.keytab")
	r.rekey("aes256-cts-hmac-sha384-192", keytab)
	d := start(t, fmt.Sprintf(`hostname: localhost
data_dir: DIR/data
users: {kerberos: {keytab_file: %s, senders: ["{user}@source.test"]}}
receive_connectors:
  - {name: in, usage: client, listen: ["127.0.0.1:%d"], tls: {mode: "off", required: false}, auth: {mechanisms: [GSSAPI], before_tls: true}, limits: {tarpit: 0s, auth_failures: 20}}
send_connectors:
  - {name: out, address_spaces: [{space: "*"}], smart_hosts: ["127.0.0.1:%d"], tls: {level: none}}
queue: {disk_free_min: 16MiB}
http: {listen: "127.0.0.1:HTTPPORT"}
log: {file: DIR/waybill.log}
`, keytab, in, port(t)))
	for _, etype := range []string{"aes256-cts-hmac-sha384-192", "aes128-cts-hmac-sha256-128", "aes256-cts-hmac-sha1-96", "aes128-cts-hmac-sha1-96"} {
		t.Run(etype, func(t *testing.T) {
			r.rekey(etype, keytab)
			d.signal(syscall.SIGHUP)
			r.config("krb5.conf", etype)
			r.run("alice-password\n", "kinit", "alice")
			eventually(t, time.Minute, "a login with the new key", func() error {
				return r.curl(in, "alice", "alice@source.test", etype+"@dest.test")
			})
			if got := r.run("", "klist", "-e"); strings.Count(got, etype) < 2 {
				t.Errorf("the tickets are not of %s:\n%s", etype, got)
			}
			for _, authz := range []string{"alice", "alice@EXAMPLE.TEST", "alice@example.test"} {
				if out, err := r.gsasl(in, "alice", authz); err != nil || !strings.Contains(out, "235 2.7.0") || !strings.Contains(out, "server trusted") {
					t.Errorf("gsasl as %s: %v\n%s", authz, err, out)
				}
			}
		})
	}
	if out, _ := r.gsasl(in, "alice", "bob"); !strings.Contains(out, "535 5.7.8") {
		t.Errorf("alice may act for bob:\n%s", out)
	}
	if err := r.curl(in, "alice", "bob@source.test", "forged@dest.test"); err == nil {
		t.Error("alice may send as bob")
	}
	t.Run("arcfour-hmac", func(t *testing.T) {
		// The KDC still has the type; we do not take its tickets.
		r.rekey("arcfour-hmac", filepath.Join(r.dir, "weak.keytab"))
		r.config("krb5.conf", "aes256-cts-hmac-sha1-96 arcfour-hmac")
		r.run("alice-password\n", "kinit", "alice")
		if err := r.curl(in, "alice", "alice@source.test", "weak@dest.test"); err == nil {
			t.Error("a ticket of RC4 was taken")
		}
		d.failed("weak")
	})
	d.failed("credentials")
	secrets(t, d, "alice-password")
}

// failed waits for a failed login of a reason in the log.
func (d *daemon) failed(reason string) {
	d.t.Helper()
	eventually(d.t, time.Minute, "a login that failed: "+reason, func() error {
		b, err := os.ReadFile(filepath.Join(d.dir, "waybill.log"))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, `"event":"auth_failed"`) && strings.Contains(line, `"reason":"`+reason+`"`) {
				return nil
			}
		}
		return fmt.Errorf("there is none")
	})
}

// secrets looks for words in what the daemon has written about itself.
func secrets(t testing.TB, d *daemon, words ...string) {
	t.Helper()
	for _, name := range []string{"waybill.log", "stderr"} {
		b, err := os.ReadFile(filepath.Join(d.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range words {
			if strings.Contains(string(b), w) {
				t.Errorf("%s holds %q", name, w)
			}
		}
	}
}
