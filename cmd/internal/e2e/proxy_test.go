//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/relaytest"
)

// spawn starts a program and ends it with the test.
func spawn(t *testing.T, name string, args ...string) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		done := make(chan struct{})
		go func() { _ = cmd.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-done
		}
		if t.Failed() {
			t.Logf("%s:\n%s", name, out.String())
		}
	})
}

// listening waits until somebody listens on a port.
func listening(t *testing.T, port int) {
	t.Helper()
	eventually(t, time.Minute, fmt.Sprintf("port %d", port), func() error {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			err = c.Close()
		}
		return err
	})
}

// TestProxies has HAProxy and swaks name clients by the PROXY protocol, and nginx
// and swaks by XCLIENT. A client that comes from 127.0.0.5, or is said to, may
// relay; others may not.
func TestProxies(t *testing.T) {
	t.Parallel()
	host := relaytest.NewSmartHost(t)
	in, open := port(t), port(t)
	dir := shared(t)
	d := start(t, fmt.Sprintf(`hostname: relay.test
data_dir: DIR/data
receive_connectors:
  - name: inside
    usage: internal
    listen: ["127.0.0.1:%[1]d"]
    remote_ranges: ["127.0.0.5", "10.0.0.0/8"]
    proxy_protocol: {trusted: ["127.0.0.1"]}
    xclient: {trusted: ["127.0.0.9"]}
  - name: outside
    usage: internet
    listen: ["127.0.0.1:%[1]d"]
    limits: {tarpit: 0s}
    proxy_protocol: {trusted: ["127.0.0.1"]}
    xclient: {trusted: ["127.0.0.9"]}
  - name: inside-x
    usage: internal
    listen: ["127.0.0.1:%[2]d"]
    remote_ranges: ["127.0.0.5", "10.0.0.0/8"]
    xclient: {trusted: ["127.0.0.9", "127.0.0.1"]}
  - name: outside-x
    usage: internet
    listen: ["127.0.0.1:%[2]d"]
    limits: {tarpit: 0s}
    xclient: {trusted: ["127.0.0.9", "127.0.0.1"]}
accepted_domains: [{domain: ours.test}]
send_connectors:
  - {name: out, address_spaces: [{space: "*"}], smart_hosts: [%[3]q], tls: {level: none}}
queue: {disk_free_min: 16MiB}
http: {listen: "127.0.0.1:HTTPPORT"}
`, in, open, host.Addr()))

	v1, v2 := port(t), port(t)
	conf := filepath.Join(dir, "haproxy.cfg")
	write(t, conf, fmt.Sprintf(`defaults
  mode tcp
  timeout connect 5s
  timeout client 30s
  timeout server 30s
listen one
  bind 127.0.0.1:%[1]d
  server relay 127.0.0.1:%[3]d send-proxy check inter 100ms
listen two
  bind 127.0.0.1:%[2]d
  server relay 127.0.0.1:%[3]d send-proxy-v2 check inter 100ms
`, v1, v2, in))
	spawn(t, "/usr/sbin/haproxy", "-db", "-f", conf)
	listening(t, v2)

	auth := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Auth-Status", "OK")
		w.Header().Set("Auth-Server", "127.0.0.1")
		w.Header().Set("Auth-Port", fmt.Sprint(open))
	}))
	defer auth.Close()
	front := port(t)
	conf = filepath.Join(dir, "nginx.conf")
	write(t, conf, fmt.Sprintf(`load_module /usr/lib/nginx/modules/ngx_mail_module.so;
daemon off;
pid %[1]s/nginx.pid;
error_log stderr info;
events {}
mail {
  server_name front.test;
  auth_http %[2]s/;
  proxy_pass_error_message on;
  server { listen 127.0.0.1:%[3]d; protocol smtp; smtp_auth none plain; xclient on; }
}
`, dir, auth.URL, front))
	spawn(t, "/usr/sbin/nginx", "-c", conf, "-e", "stderr")
	listening(t, front)

	swaks := func(port int, local string, args ...string) (string, error) {
		out, err := exec.Command("swaks", append([]string{
			"--server", fmt.Sprintf("127.0.0.1:%d", port), "--local-interface", local, "--from", "a@source.test",
		}, args...)...).CombinedOutput()
		return string(out), err
	}
	proxy := func(version, source string) []string {
		family, dest := "TCP4", "127.0.0.1"
		if version == "2" {
			family = "AF_INET"
		}
		return []string{
			"--proxy-version", version, "--proxy-family", family, "--proxy-source", source, "--proxy-source-port", "4321",
			"--proxy-dest", dest, "--proxy-dest-port", "25",
		}
	}
	for _, test := range []struct {
		name  string
		port  int
		local string // address that the client connects from
		args  []string
		want  string // a refusal; "" is relayed
		ip    string // client in the record
	}{
		{"HAProxy, version 1, inside", v1, "127.0.0.5", nil, "", "127.0.0.5"},
		{"HAProxy, version 1, outside", v1, "127.0.0.6", nil, "550 5.7.1 relay", ""},
		{"HAProxy, version 2, inside", v2, "127.0.0.5", nil, "", "127.0.0.5"},
		{"HAProxy, version 2, outside", v2, "127.0.0.6", nil, "550 5.7.1 relay", ""},
		{"swaks, PROXY version 1", in, "127.0.0.1", proxy("1", "10.1.2.3"), "", "10.1.2.3"},
		{"swaks, PROXY version 2", in, "127.0.0.1", proxy("2", "10.1.2.4"), "", "10.1.2.4"},
		{"swaks, PROXY, outside", in, "127.0.0.1", proxy("1", "198.51.100.7"), "550 5.7.1 relay", ""},
		{"swaks, PROXY, not trusted", in, "127.0.0.8", proxy("1", "10.1.2.3"), "554 5.5.1", ""},
		{"swaks, no header where one is needed", in, "127.0.0.1", nil, "closed connection unexpectedly", ""},
		{"swaks, XCLIENT", open, "127.0.0.9", []string{"--xclient-addr", "10.1.2.5", "--xclient-name", "printer.inside.test", "--xclient-port", "99"}, "", "10.1.2.5"},
		{"swaks, XCLIENT in two", open, "127.0.0.9", []string{"--xclient-addr", "10.1.2.6", "--xclient-delim", "--xclient-name", "p.inside.test"}, "", "10.1.2.6"},
		{"swaks, XCLIENT, outside", open, "127.0.0.9", []string{"--xclient-addr", "198.51.100.7"}, "550 5.7.1 relay", ""},
		{"swaks, XCLIENT, not trusted", open, "127.0.0.8", []string{"--xclient-addr", "10.1.2.3"}, "did not advertise XCLIENT", ""},
		{"swaks, XCLIENT through the PROXY protocol", in, "127.0.0.1", append(proxy("1", "127.0.0.9"), "--xclient-addr", "10.1.2.7"), "", "10.1.2.7"},
	} {
		t.Run(test.name, func(t *testing.T) {
			to := strings.NewReplacer(" ", "-", ",", "").Replace(strings.ToLower(test.name)) + "@dest.test"
			out, err := swaks(test.port, test.local, append([]string{"--to", to}, test.args...)...)
			if test.want != "" {
				if err == nil || !strings.Contains(strings.ToLower(out), strings.ToLower(test.want)) {
					t.Errorf("swaks: %v, want %q in:\n%s", err, test.want, out)
				}
				return
			}
			if err != nil {
				t.Fatalf("swaks: %v\n%s", err, out)
			}
			m := d.found(to, "relayed", 1)[0]
			if m.ClientIP != test.ip || !strings.HasPrefix(m.Connector, "inside") {
				t.Errorf("message = %+v, want one of %s at inside", m, test.ip)
			}
		})
	}

	t.Run("nginx", func(t *testing.T) {
		send := func(local, to string, args ...string) (string, error) {
			return swaks(front, local, append([]string{"--to", to}, args...)...)
		}
		if out, err := send("127.0.0.5", "nginx@dest.test"); err != nil {
			t.Fatalf("swaks: %v\n%s", err, out)
		}
		if m := d.found("nginx@dest.test", "relayed", 1)[0]; m.ClientIP != "127.0.0.5" || m.Connector != "inside-x" || m.AuthUser != "" {
			t.Errorf("message = %+v", m)
		}
		out, err := send("127.0.0.6", "nginx-outside@dest.test")
		if err == nil || !strings.Contains(out, "550 5.7.1 relay") {
			t.Errorf("swaks: %v, want that relaying is refused in:\n%s", err, out)
		}
		if out, err := send("127.0.0.5", "nginx-login@dest.test", "--auth", "PLAIN", "--auth-user", "a@source.test", "--auth-password", "x"); err != nil {
			t.Fatalf("swaks: %v\n%s", err, out)
		}
		if m := d.found("nginx-login@dest.test", "relayed", 1)[0]; m.ClientIP != "127.0.0.5" || m.AuthUser != "a@source.test" {
			t.Errorf("message = %+v, want one of a@source.test", m)
		}
		out, err = send("127.0.0.5", "nginx-forged@dest.test", "--auth", "PLAIN", "--auth-user", "eve@source.test", "--auth-password", "x")
		if err == nil || !strings.Contains(out, "550 5.7.1 sender") {
			t.Errorf("swaks: %v, want that the sender is refused in:\n%s", err, out)
		}
	})
	t.Run("facts", func(t *testing.T) {
		for kind, want := range map[string]string{"client_announced": "printer.inside.test", "session_refused": "proxy_protocol", "remarked": "PROXY header"} {
			eventually(t, time.Minute, kind, func() error {
				got, err := d.api.Events(context.Background(), trackapi.Query{Event: kind, Limit: 200})
				if err == nil && !strings.Contains(fmt.Sprintf("%s", got.Events), want) {
					err = fmt.Errorf("no %s says %s: %s", kind, want, got.Events)
				}
				return err
			})
		}
	})
}
