// Package peers starts the real programs that end-to-end tests and benchmarks
// talk to. They listen on loopback, live in a folder of their own, and end with
// their owner.
package peers

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"waybill/relay/relaytest"
)

// Postfix is a running Postfix of our own, apart from an installed one.
type Postfix struct {
	Port int
	Dir  string // configuration, queue and log
	pid  int
}

// PostfixOptions configure a Postfix.
type PostfixOptions struct {
	RelayPort int               // where it relays everything; 0: it discards what it accepts
	Extra     map[string]string // main.cf parameters
	Files     map[string]string // further files in its configuration folder, by name
}

const mainCF = `compatibility_level = 3.6
myhostname = peer.test
mydomain = peer.test
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
mydestination =
local_recipient_maps =
smtpd_relay_restrictions = permit_mynetworks, reject
smtp_dns_support_level = disabled
smtp_host_lookup = native
smtp_tls_security_level = none
alias_maps =
alias_database =
biff = no
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
smtpd_peername_lookup = no
`

const masterCF = `127.0.0.1:%d inet n - n - - smtpd
pickup    unix  n - n 60 1 pickup
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
smtp      unix  - - n - - smtp
relay     unix  - - n - - smtp
showq     unix  n - n - - showq
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
tlsmgr    unix  - - n 1000? 1 tlsmgr
postlog   unix-dgram n - n - 1 postlogd
`

// StartPostfix starts a Postfix below dir, which its own users must be able to
// enter. It needs root, as Postfix does.
func StartPostfix(dir string, opts PostfixOptions) (*Postfix, error) {
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	p := &Postfix{Port: port, Dir: dir}
	conf := filepath.Join(dir, "etc")
	for _, d := range []string{conf, filepath.Join(dir, "spool"), filepath.Join(dir, "lib")} {
		if err := os.MkdirAll(d, 0o755); err != nil { //nolint:gosec // Postfix' own users read it
			return nil, err
		}
	}
	if out, err := exec.Command("chown", "postfix", filepath.Join(dir, "lib")).CombinedOutput(); err != nil { //nolint:gosec // our own folder
		return nil, fmt.Errorf("chown: %w: %s", err, out)
	}
	var b strings.Builder
	b.WriteString(mainCF)
	fmt.Fprintf(&b, "queue_directory = %s/spool\ndata_directory = %s/lib\nmaillog_file = %s/log\nmaillog_file_prefixes = %s\nsmtpd_tls_security_level = may\n", dir, dir, dir, dir)
	fmt.Fprintf(&b, "import_environment = MAIL_CONFIG=%s\n", conf)
	if opts.RelayPort != 0 {
		fmt.Fprintf(&b, "relayhost = [127.0.0.1]:%d\n", opts.RelayPort)
	} else {
		b.WriteString("default_transport = discard:\nrelay_transport = discard:\n")
	}
	for k, v := range opts.Extra {
		fmt.Fprintf(&b, "%s = %s\n", k, v)
	}
	files := map[string]string{"main.cf": b.String(), "master.cf": fmt.Sprintf(masterCF, port)}
	maps.Copy(files, opts.Files)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(conf, name), []byte(text), 0o644); err != nil { //nolint:gosec // Postfix' own users read it
			return nil, err
		}
	}
	if out, err := exec.Command("postfix", "-c", conf, "start").CombinedOutput(); err != nil { //nolint:gosec // our own folder
		log, _ := os.ReadFile(filepath.Join(dir, "log")) //nolint:gosec // our own folder; best effort: it explains the error
		return nil, fmt.Errorf("postfix start: %w: %s%s", err, out, log)
	}
	if p.pid, err = masterPID(filepath.Join(dir, "spool", "pid", "master.pid")); err != nil {
		return nil, err
	}
	if err := WaitPort(port, 10*time.Second); err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return p, nil
}

func masterPID(file string) (int, error) {
	b, err := os.ReadFile(file) //nolint:gosec // our own folder
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(bytes.TrimSpace(b)))
}

// PID is the master process; its children do the work.
func (p *Postfix) PID() int { return p.pid }

// Log is what Postfix logged so far.
func (p *Postfix) Log() string {
	b, err := os.ReadFile(filepath.Join(p.Dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Flush tries now what waits.
func (p *Postfix) Flush() error {
	out, err := exec.Command("postqueue", "-c", filepath.Join(p.Dir, "etc"), "-f").CombinedOutput() //nolint:gosec // our own folder
	if err != nil {
		return fmt.Errorf("postqueue: %w: %s", err, out)
	}
	return nil
}

// Stop ends Postfix and all its processes.
func (p *Postfix) Stop() error {
	out, err := exec.Command("postfix", "-c", filepath.Join(p.Dir, "etc"), "stop").CombinedOutput() //nolint:gosec // our own folder
	if err != nil {
		return fmt.Errorf("postfix stop: %w: %s", err, out)
	}
	return nil
}

// FreePort is a TCP port of loopback that nobody listens on now, and that nobody
// else is given while this program runs.
func FreePort() (int, error) {
	port, _, err := relaytest.ReservePort()
	return port, err
}

// WaitPort waits until somebody listens on port of loopback.
func WaitPort(port int, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
		if err == nil {
			return c.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("nobody listens on port %d after %s: %w", port, patience, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
