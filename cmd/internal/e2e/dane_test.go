//go:build e2e

package e2e

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"waybill/relay/dns"
	"waybill/relay/relaytest"
)

// zones serves zones with Knot: the signed ones with DNSSEC.
type zones struct {
	t    testing.TB
	dir  string
	port int
}

const knotConf = `server:
    listen: 127.0.0.1@%d
    rundir: %s
database:
    storage: %[2]s/db
log:
  - target: stderr
    any: warning
policy:
  - id: single
    algorithm: ecdsap256sha256
    single-type-signing: on
template:
  - id: default
    storage: %[2]s
    zonefile-sync: -1
    journal-content: all
zone:
`

// serveZones starts Knot; the texts of zones are by their names.
func serveZones(t testing.TB, signed, plain map[string]string) *zones {
	t.Helper()
	z := &zones{t: t, dir: shared(t), port: port(t)}
	conf := fmt.Sprintf(knotConf, z.port, z.dir)
	for _, list := range []map[string]string{signed, plain} {
		for name, text := range list {
			conf += fmt.Sprintf("  - domain: %s\n    file: %s.zone\n", name, name)
			if _, ok := signed[name]; ok {
				conf += "    dnssec-signing: on\n    dnssec-policy: single\n"
			}
			write(t, filepath.Join(z.dir, name+".zone"), fmt.Sprintf("$ORIGIN %s.\n$TTL 60\n@ SOA ns root 1 60 60 600 60\n@ NS ns\nns A 127.0.0.1\n%s", name, text))
		}
	}
	write(t, filepath.Join(z.dir, "knot.conf"), conf)
	if err := os.Mkdir(filepath.Join(z.dir, "db"), 0o700); err != nil {
		t.Fatal(err)
	}
	background(t, "/usr/sbin/knotd", "-c", filepath.Join(z.dir, "knot.conf"))
	return z
}

// ds is the record that a parent zone would have for a signed one.
func (z *zones) ds(name string) string {
	z.t.Helper()
	var record string
	eventually(z.t, time.Minute, "the key of "+name, func() error {
		out, err := exec.Command("/usr/sbin/keymgr", "-c", filepath.Join(z.dir, "knot.conf"), name, "ds").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		record, _, _ = strings.Cut(string(out), "\n")
		if !strings.Contains(record, " DS ") {
			return fmt.Errorf("keymgr says %q", out)
		}
		return nil
	})
	return record
}

// background runs a program until the test ends.
func background(t testing.TB, name string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(shared(t), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("%s: %s", name, text)
		}
		_ = log.Close()
	})
}

// validate starts unbound, which asks z and trusts the keys that anchors name.
func (z *zones) validate(names []string, anchors ...string) (server string) {
	t := z.t
	t.Helper()
	dir, at := shared(t), port(t)
	conf := fmt.Sprintf(`server:
    interface: 127.0.0.1
    port: %d
    do-daemonize: no
    chroot: ""
    username: ""
    directory: %q
    pidfile: ""
    use-syslog: no
    do-not-query-localhost: no
    module-config: "validator iterator"
    val-permissive-mode: no
remote-control:
    control-enable: no
`, at, dir)
	for _, a := range anchors {
		conf = strings.Replace(conf, "remote-control:", fmt.Sprintf("    trust-anchor: %q\nremote-control:", a), 1)
	}
	for _, n := range names {
		conf += fmt.Sprintf("stub-zone:\n    name: %q\n    stub-addr: 127.0.0.1@%d\n", n, z.port)
	}
	write(t, filepath.Join(dir, "unbound.conf"), conf)
	background(t, "/usr/sbin/unbound", "-d", "-c", filepath.Join(dir, "unbound.conf"))
	server = fmt.Sprintf("127.0.0.1:%d", at)
	r, err := dns.New(dns.Options{Servers: []string{server}, CacheSize: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	eventually(t, time.Minute, "the resolver", func() error {
		_, err := r.MX(context.Background(), names[0])
		return err
	})
	return server
}

func record311(t testing.TB, c tls.Certificate) string {
	t.Helper()
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("TLSA 3 1 1 %x", sha256.Sum256(leaf.RawSubjectPublicKeyInfo))
}

// TestDANE delivers to hosts in zones that a real server signs and a real
// resolver validates.
func TestDANE(t *testing.T) {
	t.Parallel()
	cert, _ := relaytest.Certificate(t, "mx.signed.example")
	stranger, _ := relaytest.Certificate(t, "mx.signed.example")
	withTLS := relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}})
	good, bare := relaytest.NewSmartHost(t, withTLS), relaytest.NewSmartHost(t)
	hosts := func(records string) string {
		return fmt.Sprintf("@ MX 10 mx\nmx A 127.0.0.1\nbad A 127.0.0.1\nbare A 127.0.0.1\n_%[1]d._tcp.mx %[2]s\n_%[1]d._tcp.bad %[3]s\n_%[4]d._tcp.bare %[2]s\n",
			good.Port(), records, record311(t, stranger), bare.Port())
	}
	z := serveZones(t,
		map[string]string{"signed.example": hosts(record311(t, cert)), "bogus.example": hosts(record311(t, cert))},
		map[string]string{"unsigned.example": hosts(record311(t, stranger))})
	wrong := "bogus.example. DS 1 13 2 " + strings.Repeat("ab", 32)
	z.ds("bogus.example")
	server := z.validate([]string{"signed.example", "unsigned.example", "bogus.example"}, z.ds("signed.example"), wrong)

	t.Run("resolver", func(t *testing.T) {
		r, err := dns.New(dns.Options{Servers: []string{server}})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for _, test := range []struct {
			domain string
			want   string
		}{
			{"signed.example", "mx true, host true, tlsa true"},
			{"unsigned.example", "mx false, host false, tlsa false"},
			{"bogus.example", "servfail"},
		} {
			if got := authentic(t, r, test.domain, good.Port()); got != test.want {
				t.Errorf("%s: %s, want %s", test.domain, got, test.want)
			}
		}
	})

	in := port(t)
	conf := fmt.Sprintf(`hostname: relay.test
data_dir: DIR/data
http: {listen: "127.0.0.1:HTTPPORT"}
log: {file: DIR/waybill.log}
dns: {servers: [%q]}
receive_connectors:
  - {name: in, usage: internal, listen: ["127.0.0.1:%d"]}
send_connectors:
`, server, in)
	for name, to := range map[string]string{
		"match": fmt.Sprintf("mx.signed.example:%d", good.Port()), "mismatch": fmt.Sprintf("bad.signed.example:%d", good.Port()),
		"stripped": fmt.Sprintf("bare.signed.example:%d", bare.Port()), "unsigned": fmt.Sprintf("bare.unsigned.example:%d", bare.Port()),
	} {
		conf += fmt.Sprintf("  - {name: %[1]s, address_spaces: [{space: %[1]s.test}], smart_hosts: [%[2]q], tls: {level: dane}}\n", name, to)
	}
	d := start(t, conf)
	s := dial(t, in)
	for _, test := range []struct {
		name        string
		disposition string
		verify      string
		policy      string
		failure     string
	}{
		{"match", "relayed", "dane", "dane", ""},
		{"mismatch", "deferred", "none", "dane", "tlsa_mismatch"},
		{"stripped", "deferred", "none", "dane", "not_offered"},
		{"unsigned", "relayed", "none", "opportunistic", "not_offered"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.t = t
			s.send("a@source.test", "b@"+test.name+".test", hello)
			d.attemptIs(t, "b@"+test.name+".test", security{test.disposition, test.verify, test.policy, test.failure})
		})
	}
	if n := bare.Counts()["MAIL"]; n != 1 {
		t.Errorf("the host without TLS was sent %d messages, want that of the unsigned domain alone", n)
	}
}

func authentic(t testing.TB, r *dns.Resolver, domain string, at uint16) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	mx, err := r.MX(ctx, domain)
	if e, ok := errors.AsType[*dns.Error](err); ok {
		return string(e.Kind)
	}
	host, err2 := r.Host(ctx, "mx."+domain)
	_, secure, err3 := r.TLSA(ctx, fmt.Sprintf("_%d._tcp.mx.%s", at, domain))
	if err := errors.Join(err, err2, err3); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("mx %t, host %t, tlsa %t", mx[0].Secure, host.Secure, secure)
}
