//go:build e2e

package e2e

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const slapdConf = `include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include /etc/ldap/schema/misc.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile DIR/slapd.pid
TLSCertificateFile DIR/ldap.crt
TLSCertificateKeyFile DIR/ldap.key
disallow bind_anon
database mdb
suffix "dc=example,dc=com"
rootdn "cn=admin,dc=example,dc=com"
directory DIR/db
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact="cn=waybill,dc=example,dc=com" read by self read by * none
`

const people = `dn: dc=example,dc=com
objectClass: domain
dc: example

dn: cn=waybill,dc=example,dc=com
objectClass: applicationProcess
objectClass: simpleSecurityObject
cn: waybill
userPassword: service

dn: ou=people,dc=example,dc=com
objectClass: organizationalUnit
ou: people

dn: uid=ann,ou=people,dc=example,dc=com
objectClass: inetOrgPerson
objectClass: inetLocalMailRecipient
uid: ann
cn: Ann
sn: Smith
mail: ann@ours.test
mailLocalAddress: a.smith@ours.test
userPassword: p*ss)(word

dn: uid=bob,ou=people,dc=example,dc=com
objectClass: inetOrgPerson
uid: bob
cn: Bob
sn: Jones
mail: bob@ours.test
userPassword: bobs

dn: cn=senders,dc=example,dc=com
objectClass: groupOfNames
cn: senders
member: uid=ann,ou=people,dc=example,dc=com
`

// startSlapd runs OpenLDAP with a small company, on ldap:// and ldaps://.
func startSlapd(t *testing.T, dir string) (plain, secure int, stop func()) {
	t.Helper()
	file := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Mkdir(file("db"), 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "9", "-subj", "/CN=localhost",
		"-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", file("ldap.key"), "-out", file("ldap.crt"))
	write(t, file("slapd.conf"), strings.ReplaceAll(slapdConf, "DIR", dir))
	write(t, file("people.ldif"), people)
	run(t, "/usr/sbin/slapadd", "-f", file("slapd.conf"), "-l", file("people.ldif"))
	plain, secure = port(t), port(t)
	cmd := exec.Command("/usr/sbin/slapd", "-d", "0", "-f", file("slapd.conf"), "-h", fmt.Sprintf("ldap://127.0.0.1:%d ldaps://127.0.0.1:%d", plain, secure))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait() // by a signal
		}
	}
	t.Cleanup(stop)
	eventually(t, time.Minute, "slapd to listen", func() error {
		for _, p := range []int{plain, secure} {
			conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p))
			if err != nil {
				return err
			}
			_ = conn.Close()
		}
		return nil
	})
	return plain, secure, stop
}

// TestOpenLDAP holds that the users and the recipients of an OpenLDAP server are
// those of the relay: over ldaps:// and STARTTLS, by search and by name.
func TestOpenLDAP(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plain, secure, stop := startSlapd(t, dir)
	write(t, filepath.Join(dir, "pw"), "service\n")
	submission, mx := port(t), port(t)
	d := start(t, fmt.Sprintf(`hostname: relay.test
data_dir: DIR/data
directories:
  secure: {servers: ["ldaps://127.0.0.1:%[2]d"], ca_file: %[1]s/ldap.crt, bind_dn: "cn=waybill,dc=example,dc=com", bind_password_file: %[1]s/pw, base_dn: "dc=example,dc=com"}
  upgraded: {servers: ["ldap://127.0.0.1:%[3]d"], ca_file: %[1]s/ldap.crt, bind_dn: "cn=waybill,dc=example,dc=com", bind_password: service, base_dn: "dc=example,dc=com"}
users: {ldap: {directory: secure, cache: 0s}}
receive_connectors:
  - {name: submission, usage: client, listen: ["127.0.0.1:%[4]d"], tls: {required: false}, auth: {mechanisms: [PLAIN, LOGIN], before_tls: true}, limits: {tarpit: 0s, auth_failures: 10}}
  - {name: mx, usage: internet, listen: ["127.0.0.1:%[5]d"], limits: {tarpit: 0s}}
accepted_domains:
  - {domain: ours.test, recipients: {ldap: upgraded, cache: 0s, cache_unknown: 0s}}
send_connectors:
  - {name: out, address_spaces: [{space: "*"}]}
queue: {disk_free_min: 64MiB}
http: {listen: "127.0.0.1:HTTPPORT"}
log: {file: DIR/waybill.log}
`, dir, secure, plain, submission, mx))

	login := func(user, password string) int {
		t.Helper()
		s := dial(t, submission)
		defer s.conn.Close()
		return s.code("AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00"+user+"\x00"+password)))
	}
	type attempt struct {
		user, password string
		want           int
	}
	logins := func(what string, list ...attempt) {
		t.Helper()
		for _, l := range list {
			if got := login(l.user, l.password); got != l.want {
				t.Errorf("%s: login of %q with %q: %d, want %d", what, l.user, l.password, got, l.want)
			}
		}
	}
	logins("searched", attempt{"ann", "p*ss)(word", 235}, attempt{"ANN@ours.test", "p*ss)(word", 235}, attempt{"ann", "wrong", 535}, attempt{"bob", "bobs", 235},
		attempt{"nobody", "x", 535}, attempt{"*", "bobs", 535}, attempt{"ann)(uid=*", "p*ss)(word", 535}, attempt{"waybill", "service", 535})

	s := dial(t, submission)
	s.cmd(235, "AUTH PLAIN %s", base64.StdEncoding.EncodeToString([]byte("\x00ann\x00p*ss)(word")))
	s.cmd(250, "RSET")
	s.cmd(250, "MAIL FROM:<ann@ours.test>")
	s.cmd(250, "RSET")
	s.cmd(550, "MAIL FROM:<bob@ours.test>")
	s.conn.Close()

	recipients := func(want ...int) {
		t.Helper()
		for i, to := range []string{"ann@ours.test", "A.Smith@OURS.test", "nobody@ours.test", "*@ours.test", "postmaster@ours.test"} {
			s := dial(t, mx)
			s.cmd(250, "MAIL FROM:<>")
			if got := s.code("RCPT TO:<" + to + ">"); got != want[i] {
				t.Errorf("recipient %s: %d, want %d", to, got, want[i])
			}
			s.conn.Close()
		}
	}
	recipients(250, 250, 550, 550, 250)

	reload := func(pairs ...string) {
		t.Helper()
		d.change(pairs...)
		if _, err := d.waybill("check", "--config", d.conf); err != nil {
			t.Fatal(err)
		}
		d.signal(syscall.SIGHUP)
	}
	reload("cache: 0s}}\nrec", `cache: 0s, required_group: "cn=senders,dc=example,dc=com"}}`+"\nrec")
	eventually(t, time.Minute, "the group to be required", func() error {
		if got := login("bob", "bobs"); got != 535 {
			return fmt.Errorf("bob: %d", got)
		}
		return nil
	})
	logins("in a group", attempt{"ann", "p*ss)(word", 235})

	reload(`required_group: "cn=senders,dc=example,dc=com"`, `bind_name: "uid={user},ou=people,dc=example,dc=com"`)
	eventually(t, time.Minute, "users to be bound by name", func() error {
		if got := login("bob", "bobs"); got != 235 {
			return fmt.Errorf("bob: %d", got)
		}
		return nil
	})
	logins("bound by name", attempt{"ann", "p*ss)(word", 235}, attempt{"ann", "wrong", 535}, attempt{"nobody", "x", 535}, attempt{"ann,ou=people", "p*ss)(word", 535})

	// A server that is down makes nobody wrong.
	stop()
	logins("down", attempt{"ann", "p*ss)(word", 454}, attempt{"ann", "wrong", 454})
	recipients(450, 450, 450, 450, 250)
	eventually(t, time.Minute, "the look-ups to be counted", func() error {
		for _, lookup := range []string{"users_ldap", "recipients_ldap"} {
			if d.metrics().value(fmt.Sprintf(`waybill_lookups_total{lookup=%q,result="unavailable"}`, lookup)) < 1 {
				return errors.New("no unavailable " + lookup)
			}
		}
		return nil
	})
	for _, secret := range []string{"p*ss)(word", "bobs", base64.StdEncoding.EncodeToString([]byte("\x00bob\x00bobs"))} {
		b, err := os.ReadFile(filepath.Join(d.dir, "waybill.log"))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), `"`+secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
}

// code sends a command and returns the code of its reply.
func (s *session) code(command string) int {
	s.t.Helper()
	if err := s.PrintfLine("%s", command); err != nil {
		s.t.Fatal(err)
	}
	code, _, err := s.ReadResponse(0)
	if _, refused := errors.AsType[*textproto.Error](err); err != nil && !refused {
		s.t.Fatal(err)
	}
	return code
}
