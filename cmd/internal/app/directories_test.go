package app

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/emersion/go-smtp"

	"waybill/relay/directory/ldaptest"
	"waybill/relay/relaytest"
)

// directories has users in a file and in a directory, and a domain for each way
// to find out about recipients.
const directories = `hostname: relay.test
data_dir: DIR/data
certificates: {default: {cert_file: DIR/tls.crt, key_file: DIR/tls.key}}
directories:
  corp:
    servers: ["LDAP"]
    starttls: false
    bind_dn: cn=waybill,dc=example
    bind_password_file: DIR/ldap.pw
    base_dn: dc=example
users: {file: DIR/users.yaml, ldap: corp}
receive_connectors:
  - {name: submission, usage: client, listen: ["127.0.0.1:0"], auth: {mechanisms: [PLAIN, LOGIN]}, limits: {tarpit: 0s}}
  - {name: mx, usage: internet, listen: ["127.0.0.1:0"], limits: {tarpit: 0s}}
accepted_domains:
  - {domain: ldap.test, recipients: {ldap: corp, cache: 0s}}
  - {domain: probe.test, recipients: {probe: true}}
  - {domain: strict.test, recipients: {probe: true, unavailable: defer}}
send_connectors:
  - {name: out, address_spaces: [{space: "*"}], smart_hosts: ["HOST"], tls: {level: none}, retry: {schedule: [1s]}}
  - {name: nowhere, address_spaces: [{space: strict.test}], smart_hosts: ["127.0.0.1:1"], tls: {level: none}, retry: {schedule: [1s]}}
queue: {disk_free_min: 256MiB}
back_pressure: {disk_latency: {medium: 0s, high: 0s}}
http: {listen: "127.0.0.1:0"}
log: {file: DIR/waybill.log}
`

// TestDirectories holds that the users and the recipients of a directory, and
// those that the next hop knows, are those of the relay.
func TestDirectories(t *testing.T) {
	host := relaytest.NewSmartHost(t)
	host.OnRcpt("nobody@probe.test", 550, "5.1.1 no such user")
	ldap := ldaptest.New(t, ldaptest.Options{Entries: []ldaptest.Entry{
		{DN: "cn=waybill,dc=example", Password: "service"},
		{DN: "uid=eve,dc=example", Password: "eve", Attributes: map[string][]string{"uid": {"eve"}, "mail": {"eve@source.test", "eve@ldap.test"}}},
		{DN: "uid=app,dc=example", Password: "other", Attributes: map[string][]string{"uid": {"app"}}}, // the one of the file comes first
	}})
	f := newFixture(t, host.Addr())
	f.file("ldap.pw", "service\n")
	f.write(strings.Replace(directories, "LDAP", ldap.URL(), 1))
	r := f.start()

	for _, test := range []struct{ user, from, want string }{
		{"app", "a@anywhere.test", ""}, // whose password is its name in the file
		{"eve", "eve@source.test", ""},
		{"EVE", "eve@source.test", ""},
		{"eve", "a@source.test", "550"},
		{"mallory", "", "535"},
	} {
		err := func() error {
			c, err := r.login(strings.ToLower(test.user))
			if err != nil {
				return err
			}
			defer c.Close()
			return c.Mail(test.from, nil)
		}()
		if said := fmt.Sprint(smtpCode(err)); test.want == "" && err != nil || test.want != "" && said != test.want {
			t.Errorf("%s sends as %s: %v, want %q", test.user, test.from, err, test.want)
		}
	}

	mx := r.Receive()["mx"][0].String()
	recipients := func(tests ...string) {
		t.Helper()
		for i := 0; i < len(tests); i += 2 {
			to, want := tests[i], tests[i+1]
			if got := fmt.Sprint(smtpCode(refusal(mx, to))); got != want {
				t.Errorf("recipient %s: %s, want %s", to, got, want)
			}
		}
	}
	recipients(
		"eve@ldap.test", "0", "nobody@ldap.test", "550", "postmaster@ldap.test", "0",
		"anybody@probe.test", "0", "nobody@probe.test", "550", "nobody@probe.test", "550",
		"a@strict.test", "450", "a@elsewhere.test", "550",
	)
	if n := host.Counts()["DATA"]; n > 0 {
		t.Errorf("%d contents were sent by probes", n)
	}
	eventually(t, "the look-ups to be counted", func() error {
		_, body := r.get("/metrics")
		for _, want := range []string{
			`waybill_lookups_total{lookup="users_ldap",result="known"} `, `waybill_lookups_total{lookup="users_ldap",result="unknown"} 1`,
			`waybill_lookups_total{lookup="recipients_ldap",result="unknown"} 1`, `waybill_lookups_total{lookup="recipients_probe",result="cached"} 1`,
			`waybill_lookups_total{lookup="recipients_probe",result="unavailable"} 1`,
			`waybill_recipients_rejected_total{connector="mx",reason="unverified_recipient"} 1`,
		} {
			if !strings.Contains(body, want) {
				return errors.New("no " + want)
			}
		}
		return nil
	})

	// A reload takes another rule into use.
	f.write(strings.Replace(strings.Replace(directories, "LDAP", ldap.URL(), 1), "unavailable: defer", "unavailable: accept", 1))
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	mx = r.Receive()["mx"][0].String()
	recipients("a@strict.test", "0", "eve@ldap.test", "0", "nobody@ldap.test", "550")
}

// smtpCode is the reply code that err is, or 0 without one.
func smtpCode(err error) int {
	if e, ok := errors.AsType[*smtp.SMTPError](err); ok {
		return e.Code
	}
	return 0
}
