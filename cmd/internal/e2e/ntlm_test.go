//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"waybill/relay/tlsconf"
)

// ntlmConf takes NTLM logins under STARTTLS, from users that are configured so.
func ntlmConf(t testing.TB, dir, users string, in, out int) string {
	t.Helper()
	if err := tlsconf.WriteSelfSigned(dir+"/cert.pem", dir+"/key.pem", "localhost", "127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`hostname: relay.test
data_dir: DIR/data
certificates: {default: {cert_file: %[1]s/cert.pem, key_file: %[1]s/key.pem}}
users: %[2]s
receive_connectors:
  - {name: in, usage: client, listen: ["127.0.0.1:%[3]d"], auth: {mechanisms: [NTLM]}, limits: {tarpit: 0s, auth_failures: 20}}
send_connectors:
  - {name: out, address_spaces: [{space: "*"}], smart_hosts: ["127.0.0.1:%[4]d"], tls: {level: none}}
queue: {disk_free_min: 16MiB}
http: {listen: "127.0.0.1:HTTPPORT"}
log: {file: DIR/waybill.log}
`, dir, users, in, out)
}

// curlNTLM submits with a login by NTLM.
func curlNTLM(t testing.TB, dir string, port int, login, from string) error {
	t.Helper()
	mail := filepath.Join(dir, "mail.eml")
	write(t, mail, "Subject: old\r\n\r\nhello\r\n")
	out, err := exec.Command("curl", "-sS", "--max-time", "30", "--ssl-reqd", "--cacert", dir+"/cert.pem", "--login-options", "AUTH=NTLM", "-u", login,
		fmt.Sprintf("smtp://localhost:%d", port), "--mail-from", from, "--mail-rcpt", "x@dest.test", "-T", mail).CombinedOutput()
	if err != nil {
		return fmt.Errorf("curl: %w\n%s", err, out)
	}
	return nil
}

// TestNTLM logs our own users in with curl (NTLMv2), and refuses swaks' Perl
// module, which speaks NTLMv1.
func TestNTLM(t *testing.T) {
	t.Parallel()
	dir, in := shared(t), port(t)
	write(t, dir+"/password", "old-password\n")
	for user, form := range map[string]string{"old": "--ntlm", "modern": "--any-sender"} {
		run(t, binary(t), "user", "add", user, "--users", dir+"/users.yaml", "--sender", user+"@source.test", form, "--password-file", dir+"/password")
	}
	d := start(t, ntlmConf(t, dir, "{file: "+dir+"/users.yaml, ntlm: {users: true}}", in, port(t)))
	for _, test := range []struct {
		name  string
		login string
		want  bool
	}{
		{"good", "old:old-password", true},
		{"with a domain", `ANY\old:old-password`, true},
		{"wrong password", "old:other", false},
		{"no hash", "modern:old-password", false},
		{"unknown user", "nobody:old-password", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := curlNTLM(t, dir, in, test.login, "old@source.test"); (err == nil) != test.want {
				t.Errorf("curl: %v, want success: %t", err, test.want)
			}
		})
	}
	out, err := exec.Command("swaks", "--server", fmt.Sprintf("127.0.0.1:%d", in), "--tls", "--auth", "NTLM", "--auth-user", "old",
		"--auth-password", "old-password", "--from", "old@source.test", "--to", "x@dest.test").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "535 5.7.8") {
		t.Errorf("swaks with NTLMv1: %v, want 535 5.7.8 in:\n%s", err, out)
	}
	plain := dial(t, in)
	if text := plain.cmd(250, "EHLO e2e.test"); strings.Contains(text, "NTLM") {
		t.Errorf("NTLM is offered without TLS:\n%s", text)
	}
	for _, reason := range []string{"credentials", "unknown_user", "weak"} {
		d.failed(reason)
	}
	secrets(t, d, "old-password")
}

// TestNTLMHelper passes logins on to Samba's ntlm_auth, which asks a winbindd
// without a domain: users of this machine.
func TestNTLMHelper(t *testing.T) {
	t.Parallel()
	dir, in := shared(t), port(t)
	for _, sub := range []string{"private", "lock", "state", "cache", "pid", "log"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// ntlm_auth looks for winbindd where it was built to.
	if err := os.MkdirAll("/run/samba", 0o755); err != nil {
		t.Fatal(err)
	}
	conf := dir + "/smb.conf"
	write(t, conf, strings.ReplaceAll(`[global]
 workgroup = WGROUP
 netbios name = WBTEST
 server role = standalone server
 private dir = DIR/private
 lock directory = DIR/lock
 state directory = DIR/state
 cache directory = DIR/cache
 pid directory = DIR/pid
 ncalrpc dir = DIR/ncalrpc
 log file = DIR/log/winbindd
 passdb backend = tdbsam:DIR/private/passdb.tdb
 interfaces = 127.0.0.1
 bind interfaces only = yes
 disable netbios = yes
 ntlm auth = ntlmv2-only
 idmap config * : backend = tdb
 idmap config * : range = 100000-200000
`, "DIR", dir))
	add := exec.Command("smbpasswd", "-c", conf, "-L", "-s", "-a", "games") // a user that Debian has
	add.Stdin = strings.NewReader("domain-password\ndomain-password\n")
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("smbpasswd: %v\n%s", err, out)
	}
	winbindd := exec.Command("/usr/sbin/winbindd", "-F", "--no-process-group", "--configfile="+conf)
	if err := winbindd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// winbindd starts samba-dcerpcd, which would outlive it.
		files, _ := filepath.Glob(dir + "/pid/*.pid")
		for _, f := range files {
			b, _ := os.ReadFile(f)
			if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && pid != winbindd.Process.Pid {
				_ = syscall.Kill(pid, syscall.SIGTERM)
			}
		}
		_ = winbindd.Process.Signal(syscall.SIGTERM)
		_ = winbindd.Wait()
	})
	eventually(t, time.Minute, "winbindd to know its user", func() error {
		out, err := exec.Command("ntlm_auth", "--configfile="+conf, "--username=games", "--password=domain-password", "--domain=WBTEST").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	users := `{ntlm: {helper: [/usr/bin/ntlm_auth, "--configfile=` + conf + `", --helper-protocol=squid-2.5-ntlmssp], processes: 2, senders: ["{user}@source.test"]}}`
	d := start(t, ntlmConf(t, dir, users, in, port(t)))
	for _, test := range []struct {
		name  string
		login string
		want  bool
	}{
		{"good", `WBTEST\games:domain-password`, true},
		{"without a domain", "games:domain-password", true},
		{"wrong password", `WBTEST\games:other`, false},
		{"unknown user", `WBTEST\nobody-here:other`, false},
		{"good again", `WBTEST\games:domain-password`, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := curlNTLM(t, dir, in, test.login, "games@source.test"); (err == nil) != test.want {
				t.Errorf("curl: %v, want success: %t", err, test.want)
			}
		})
	}
	if err := curlNTLM(t, dir, in, `WBTEST\games:domain-password`, "other@source.test"); err == nil {
		t.Error("a user of the domain may send as somebody else")
	}
	d.failed("credentials")
	secrets(t, d, "domain-password")
}
