package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/emersion/go-smtp"

	"waybill/logtrack/trackapi"
	"waybill/relay/auth"
	"waybill/relay/relaytest"
	"waybill/relay/throttle"
	"waybill/relay/tlsconf"
)

// reloadable has a connector for our own domain and one that may relay. PORT
// becomes a port that was free.
const reloadable = `hostname: relay.test
data_dir: DIR/data
receive_connectors:
  - {name: mx, usage: internet, listen: ["127.0.0.1:PORT"], limits: {tarpit: 0s}}
accepted_domains:
  - {domain: ours.test, recipients: {file: DIR/recipients.txt}}
send_connectors:
  - {name: out, address_spaces: [{space: "*"}], smart_hosts: ["HOST"], tls: {level: none}, retry: {schedule: [1s]}}
queue: {disk_free_min: 256MiB}
back_pressure: {disk_latency: {medium: 0s, high: 0s}}
http: {listen: "127.0.0.1:0"}
log: {file: DIR/waybill.log}
`

func (f *fixture) file(name, content string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), []byte(content), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// refusal says what is answered to a recipient, or nil when it is accepted.
func refusal(addr, to string) error {
	c, err := smtp.Dial(addr)
	if err != nil {
		return err
	}
	defer c.Close()
	return errors.Join(c.Mail("a@source.test", nil), c.Rcpt(to, nil))
}

func TestReloadOfReception(t *testing.T) {
	host := relaytest.NewSmartHost(t)
	f := newFixture(t, host.Addr())
	mx, other := relaytest.Port(t), relaytest.Port(t)
	f.file("recipients.txt", "ann\n")
	conf := strings.Replace(reloadable, "PORT", mx, 1)
	f.write(conf)
	r := f.start()
	here, there := "127.0.0.1:"+mx, "127.0.0.1:"+other

	// A session that is in the middle of a content when its connector goes.
	old, err := smtp.Dial(here)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := errors.Join(old.Mail("a@source.test", nil), old.Rcpt("ann@ours.test", nil)); err != nil {
		t.Fatal(err)
	}
	content, err := old.Data()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(content, "Subject: begun before\r\n\r\n"); err != nil {
		t.Fatal(err)
	}

	for _, step := range []struct {
		name string
		conf string // "" as it is
		do   func()
		at   string
		to   string
		want string // of the reply; "" is accepted
	}{
		{"a recipient", "", func() { f.file("recipients.txt", "ann\nbob\n") }, here, "bob@ours.test", ""},
		{"an accepted domain", strings.Replace(conf, "accepted_domains:", "accepted_domains:\n  - {domain: more.test}", 1), nil, here, "x@more.test", ""},
		{"and without it", conf, nil, here, "x@more.test", "550"},
		{"permissions", strings.Replace(conf, "usage: internet", "usage: internal", 1), nil, here, "x@elsewhere.test", ""},
		{"postmaster", conf + "postmaster: pm@ours.test\n", func() { f.file("recipients.txt", "ann\npm\n") }, here, "postmaster", ""},
		{"limits", strings.Replace(conf, "limits: {", "limits: {recipients: 1, ", 1), nil, here, "ann@ours.test", ""},
		{"another address", strings.Replace(conf, mx, other, 1), nil, there, "ann@ours.test", ""},
		{"and none at the old one", "", nil, here, "ann@ours.test", "refused"},
		{"another name", strings.Replace(strings.Replace(conf, mx, other, 1), "name: mx", "name: mail", 1), nil, there, "ann@ours.test", ""},
		{"users, and a second connector", strings.Replace(strings.Replace(conf, mx, other, 1), "accepted_domains:",
			"  - {name: submission, usage: client, listen: [\"127.0.0.1:0\"]}\nusers: {file: DIR/users.yaml}\n"+
				"certificates: {default: {cert_file: DIR/tls.crt, key_file: DIR/tls.key}}\naccepted_domains:", 1), nil, there, "ann@ours.test", ""},
	} {
		t.Run(step.name, func(t *testing.T) {
			if step.conf != "" {
				f.write(step.conf)
			}
			if step.do != nil {
				step.do()
			}
			if err := r.Reload(); err != nil {
				t.Fatal(err)
			}
			err := refusal(step.at, step.to)
			if step.want == "" && err != nil || step.want != "" && (err == nil || !strings.Contains(err.Error(), step.want)) {
				t.Errorf("RCPT TO:<%s> = %v, want %q", step.to, err, step.want)
			}
		})
	}
	c, err := r.login("app")
	if err != nil {
		t.Fatalf("a user of a file that was not there at the start: %v", err)
	}
	_ = c.Quit()

	if _, err := io.WriteString(content, "ended after\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := content.Close(); err != nil {
		t.Errorf("the content that was begun before the reloads: %v", err)
	}
	_ = old.Quit()
	if got := host.WaitFor(t, 1)[0]; !strings.Contains(string(got.Content), "ended after") {
		t.Errorf("content at the next hop:\n%s", got.Content)
	}
	if _, body := r.get("/metrics"); !strings.Contains(body, `waybill_connections{connector="submission",direction="inbound"} `) ||
		!strings.Contains(body, `waybill_tls_certificate_not_after_timestamp_seconds{certificate="default"}`) {
		t.Error("metrics do not have what came with the reload")
	}
	eventually(t, "facts with the new revision", func() error {
		got, err := r.api.Events(context.Background(), trackapi.Query{Event: "session_opened", Limit: 100})
		if err == nil && !strings.Contains(fmt.Sprintf("%s", got.Events), r.Status().Config) {
			err = errors.New("there is none")
		}
		return err
	})
}

func TestReloadOfFilesElsewhere(t *testing.T) {
	f := newFixture(t, "127.0.0.1:9")
	r := f.start()
	users, err := auth.CreateUsers(filepath.Join(f.dir, "more.yaml"))
	if err == nil {
		err = users.Add(auth.User{Name: "eve"}, auth.NewSecret("eve"))
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := tlsconf.WriteSelfSigned(filepath.Join(f.dir, "new.crt"), filepath.Join(f.dir, "new.key"), "localhost", "127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(f.dir, "new.crt"))
	if err != nil {
		t.Fatal(err)
	}
	old := r.roots.Clone()
	r.roots.AppendCertsFromPEM(pem)
	f.write(strings.NewReplacer("users.yaml", "more.yaml", "tls.crt", "new.crt", "tls.key", "new.key").Replace(standard))
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	c, err := r.login("eve")
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Quit()
	if _, err := r.login("app"); err == nil {
		t.Error("a user of the old file can log in")
	}
	r.roots = old
	if _, err := r.login("eve"); err == nil {
		t.Error("the old certificate is still shown")
	}
}

func TestReloadIsAllOrNothing(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	f := newFixture(t, "127.0.0.1:9")
	mx := relaytest.Port(t)
	f.file("recipients.txt", "ann\n")
	f.file("users.yaml.bad", "users: 1\n")
	conf := strings.Replace(reloadable, "PORT", mx, 1)
	f.write(conf)
	r := f.start()
	here := "127.0.0.1:" + mx
	was := r.Status().Config
	for _, test := range []struct {
		name, conf string
		want       string
	}{
		{"a port that is taken", strings.Replace(conf, "accepted_domains:", "  - {name: more, usage: internet, listen: [\""+taken.Addr().String()+"\"]}\naccepted_domains:\n  - {domain: more.test}", 1), "listen for more"},
		{"no recipient file", strings.Replace(conf, "recipients.txt", "nothing.txt", 1), "nothing.txt"},
		{"bad user file", conf + "users: {file: DIR/users.yaml.bad}\n", "users.file"},
		{"no certificate file", conf + "certificates: {default: {cert_file: DIR/none.crt, key_file: DIR/none.key}}\n", "none.crt"},
		{"hostname", strings.Replace(conf, "relay.test", "other.test", 1), "hostname has changed, and that needs a restart"},
		{"queue", strings.Replace(conf, "256MiB", "257MiB", 1), "queue has changed, and that needs a restart"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f.write(test.conf)
			resp, err := r.api.HTTP.Post(r.api.BaseURL+"/-/reload", "", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(string(body), test.want) {
				t.Errorf("POST /-/reload = %s %s, want %q", resp.Status, body, test.want)
			}
			if got := r.Status().Config; got != was {
				t.Errorf("revision %s is in use, want the old one, %s", got, was)
			}
			if err := refusal(here, "ann@ours.test"); err != nil {
				t.Errorf("as before: %v", err)
			}
			if err := refusal(here, "x@more.test"); err == nil {
				t.Error("a part of the new configuration is in use")
			}
			eventually(t, "the fact", func() error {
				got, err := r.api.Events(context.Background(), trackapi.Query{Event: "config_reloaded", Limit: 100})
				if err == nil && !strings.Contains(fmt.Sprintf("%s", got.Events), test.want) {
					err = errors.New("it is not there")
				}
				return err
			})
		})
	}
	if err := r.log.Sync(); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(filepath.Join(f.dir, "waybill.log"))
	if err != nil || !strings.Contains(string(log), "listen for more") {
		t.Errorf("the log does not say why: %v", err)
	}
}

// How many contents are taken in at a time changes with a reload.
func TestReloadOfTurns(t *testing.T) {
	f := newFixture(t, relaytest.NewSmartHost(t).Addr())
	f.file("recipients.txt", "ann\n")
	conf := strings.Replace(reloadable, "PORT", relaytest.Port(t), 1)
	f.write(conf)
	r := f.start()
	for _, test := range []struct {
		name string
		conf string
		want string // in the exposition
	}{
		{"as many as there are processors for", conf, fmt.Sprintf("waybill_content_turns_limit %d\n", throttle.DefaultTurns())},
		{"seven", strings.Replace(conf, "back_pressure: {", "back_pressure: {contents: 7, ", 1), "waybill_content_turns_limit 7\n"},
		{"any number", strings.Replace(conf, "back_pressure: {", "back_pressure: {contents: 0, ", 1), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			f.write(test.conf)
			if err := r.Reload(); err != nil {
				t.Fatal(err)
			}
			_, body := r.get("/metrics")
			if _, got, _ := strings.Cut(body, "\nwaybill_content_turns_limit "); test.want == "" && got != "" || !strings.Contains(body, test.want) {
				t.Errorf("the exposition does not have %q", test.want)
			}
		})
	}
}
