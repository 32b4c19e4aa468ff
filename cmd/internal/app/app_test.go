package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"go.uber.org/goleak"

	"waybill/cmd/internal/config"
	"waybill/logtrack/trackapi"
	"waybill/relay/auth"
	"waybill/relay/relaytest"
	"waybill/relay/tlsconf"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// standard is a relay with a login, and one smart host at HOST. DIR is the
// fixture's folder. The disk of a machine that runs tests may be as slow as it is.
const standard = `hostname: relay.test
data_dir: DIR/data
certificates:
  default: {cert_file: DIR/tls.crt, key_file: DIR/tls.key}
users: {file: DIR/users.yaml}
receive_connectors:
  - {name: submission, usage: client, listen: ["127.0.0.1:0"], limits: {tarpit: 0s}}
  - {name: servers, usage: internal, listen: ["127.0.0.1:0"], remote_ranges: ["127.0.0.0/8"]}
send_connectors:
  - {name: out, address_spaces: [{space: "*"}], smart_hosts: ["HOST"], tls: {level: none}, retry: {schedule: [1s]}}
queue: {disk_free_min: 256MiB}
back_pressure: {disk_latency: {medium: 0s, high: 0s}}
http: {listen: "127.0.0.1:0"}
log: {file: DIR/waybill.log}
`

// fixture is a folder with a configuration and what it names.
type fixture struct {
	t     *testing.T
	dir   string
	host  string
	roots *x509.CertPool
}

func newFixture(t *testing.T, host string) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: t.TempDir(), host: host, roots: x509.NewCertPool()}
	cert := filepath.Join(f.dir, "tls.crt")
	if err := tlsconf.WriteSelfSigned(cert, filepath.Join(f.dir, "tls.key"), "localhost", "127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	f.roots.AppendCertsFromPEM(pem)
	f.addUser("app")
	f.write(standard)
	return f
}

// addUser writes a user who may send as anybody; its password is its name.
func (f *fixture) addUser(name string) {
	f.t.Helper()
	users, err := auth.CreateUsers(filepath.Join(f.dir, "users.yaml"))
	if err == nil {
		err = users.Add(auth.User{Name: name, AnySender: true}, auth.NewSecret(name))
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) write(conf string) {
	f.t.Helper()
	conf = strings.NewReplacer("DIR", f.dir, "HOST", f.host).Replace(conf)
	if err := os.WriteFile(filepath.Join(f.dir, "waybill.yaml"), []byte(conf), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) load() (*config.Config, error) {
	cfg, problems := config.Load(filepath.Join(f.dir, "waybill.yaml"))
	return cfg, problems.Err()
}

func (f *fixture) options() Options {
	f.t.Helper()
	cfg, err := f.load()
	if err != nil {
		f.t.Fatal(err)
	}
	return Options{Config: cfg, Load: f.load, DrainTime: 2 * time.Second}
}

// running is an App that runs until stop, or the end of the test.
type running struct {
	*App
	t     *testing.T
	roots *x509.CertPool
	api   *trackapi.Client
	end   context.CancelFunc
	ended chan error
}

func (f *fixture) start(tweak ...func(*App)) *running {
	f.t.Helper()
	a, err := New(f.options())
	if err != nil {
		f.t.Fatal(err)
	}
	for _, change := range tweak {
		change(a)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	r := &running{
		App: a, t: f.t, roots: f.roots, ended: make(chan error, 1),
		api: &trackapi.Client{BaseURL: "http://" + a.Addr(), HTTP: &http.Client{Transport: transport, Timeout: time.Minute}},
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.end = cancel
	go func() { r.ended <- a.Run(ctx) }()
	f.t.Cleanup(func() { r.stop() })
	eventually(f.t, "the relay to be ready", func() error {
		code, body := r.get("/-/ready")
		if code != http.StatusOK {
			return fmt.Errorf("ready answers %d %s", code, body)
		}
		return nil
	})
	return r
}

// stop ends the App and wants that it ends well. It may be called again.
func (r *running) stop() {
	r.t.Helper()
	if r.end == nil {
		return
	}
	r.end()
	r.end = nil
	select {
	case err := <-r.ended:
		if err != nil {
			r.t.Errorf("Run = %v, want nil", err)
		}
	case <-time.After(2 * time.Minute):
		r.t.Fatal("Run has not ended after 2 minutes")
	}
}

// get asks the HTTP side; code 0 is no answer.
func (r *running) get(path string) (code int, body string) {
	resp, err := r.api.HTTP.Get(r.api.BaseURL + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

// login connects to the submission connector, upgrades and logs in.
func (r *running) login(user string) (*smtp.Client, error) {
	c, err := smtp.DialStartTLS(r.Receive()["submission"][0].String(), &tls.Config{RootCAs: r.roots, ServerName: "localhost"})
	if err != nil {
		return nil, err
	}
	if err := c.Auth(sasl.NewPlainClient("", user, user)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// submit sends a message as user and returns its queue ID.
func (r *running) submit(user, to string) string {
	r.t.Helper()
	c, err := r.login(user)
	if err != nil {
		r.t.Fatalf("log in as %s: %v", user, err)
	}
	defer c.Close()
	if err := errors.Join(c.Mail("a@source.test", nil), c.Rcpt(to, nil)); err != nil {
		r.t.Fatal(err)
	}
	w, err := c.Data()
	if err != nil {
		r.t.Fatal(err)
	}
	_, err = io.WriteString(w, "From: <a@source.test>\r\nSubject: hello\r\nMessage-ID: <"+to+">\r\n\r\nhello\r\n")
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := w.CloseWithResponse()
	if err != nil {
		r.t.Fatal(err)
	}
	_ = c.Quit()
	_, id, ok := strings.Cut(resp.StatusText, "queued as ")
	if !ok {
		r.t.Fatalf("reply %q has no queue ID", resp.StatusText)
	}
	return strings.TrimSpace(id)
}

// message waits until a message has a disposition in tracking.
func (r *running) message(id, disposition string) *trackapi.Timeline {
	r.t.Helper()
	var tl *trackapi.Timeline
	eventually(r.t, id+" to be "+disposition, func() (err error) {
		tl, err = r.api.Message(context.Background(), id)
		if err == nil && tl.Message.Disposition != disposition {
			err = fmt.Errorf("it is %s", tl.Message.Disposition)
		}
		return err
	})
	return tl
}

// timeline waits until tracking has facts of a message, in their order. The
// other readers have each of them then: tracking is told last.
func (r *running) timeline(id string, want ...string) *trackapi.Timeline {
	r.t.Helper()
	var tl *trackapi.Timeline
	eventually(r.t, "the facts of "+id, func() (err error) {
		if tl, err = r.api.Message(context.Background(), id); err != nil {
			return err
		}
		var events []string
		for _, e := range tl.Timeline {
			events = append(events, e.Event)
		}
		if !inOrder(events, want) {
			return fmt.Errorf("timeline = %q, want in it, in order, %q", events, want)
		}
		return nil
	})
	return tl
}

// eventually polls real sockets until they are as they should be.
func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("waited for %s: %v", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func TestMessageFromSubmissionToNextHop(t *testing.T) {
	host := relaytest.NewSmartHost(t)
	f := newFixture(t, host.Addr())
	r := f.start()
	id := r.submit("app", "ann@dest.test")

	got := host.WaitFor(t, 1)[0]
	if !strings.Contains(string(got.Content), "by relay.test") || !strings.Contains(string(got.Content), "\r\nhello\r\n") {
		t.Errorf("content at the next hop:\n%s\nwant our Received field and the body", got.Content)
	}
	tl := r.timeline(id, "message_queued", "message_routed", "attempt_finished", "recipient_relayed", "message_retired")
	if m := tl.Message; m.Disposition != "relayed" || m.AuthUser != "app" || m.Connector != "submission" || m.Recipients[0].Connector != "out" {
		t.Errorf("message = %+v, want one of app, by submission, relayed by out", m)
	}
	code, body := r.get("/metrics")
	if code != http.StatusOK {
		t.Fatalf("/metrics answers %d", code)
	}
	for _, want := range []string{
		`waybill_recipients_completed_total{`, `waybill_connections{connector="submission",direction="inbound"} `, `waybill_connections_limit{connector="out",direction="outbound"} 1000`,
		`waybill_spool_disk_free_bytes{volume="queue"}`, `waybill_spool_disk_free_bytes{volume="tracking"}`, `waybill_spool_disk_free_bytes{volume="log"}`,
		`waybill_tls_certificate_not_after_timestamp_seconds{certificate="default"}`, `waybill_tracking_store_bytes`, `waybill_config_last_reload_successful 1`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("/metrics has no %s", want)
		}
	}
	status, err := r.api.Status(context.Background())
	if err != nil || !status.Ready || status.Hostname != "relay.test" || status.Events == 0 {
		t.Errorf("status = %+v, %v", status, err)
	}
	r.stop()
	log, err := os.ReadFile(filepath.Join(f.dir, "waybill.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"msg":"started"`, `"event":"recipient_relayed"`, `"msg":"stopped"`} {
		if !strings.Contains(string(log), want) {
			t.Errorf("the log has no %s", want)
		}
	}
}

// inOrder reports whether want is in list, in its order.
func inOrder(list, want []string) bool {
	for _, s := range list {
		if len(want) > 0 && s == want[0] {
			want = want[1:]
		}
	}
	return len(want) == 0
}

func TestReload(t *testing.T) {
	first, second := relaytest.NewSmartHost(t), relaytest.NewSmartHost(t)
	f := newFixture(t, first.Addr())
	r := f.start()
	r.submit("app", "one@dest.test")
	first.WaitFor(t, 1)
	was := r.Status().Config

	f.host = second.Addr()
	f.write(standard)
	f.addUser("bob")
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	r.submit("bob", "two@dest.test")
	second.WaitFor(t, 1)
	now := r.Status().Config
	if now == was {
		t.Errorf("the revision is still %s", was)
	}

	for _, test := range []struct {
		name, conf string
		want       string
	}{
		{"data", strings.Replace(standard, "DIR/data", "DIR/other", 1), "data_dir has changed, and that needs a restart"},
		{"http", strings.Replace(standard, `http: {listen: "127.0.0.1:0"}`, `http: {listen: "127.0.0.1:8026"}`, 1), "http.listen has changed"},
		{"not YAML", "hostname: [", "waybill.yaml:1"},
		{"no smart host", strings.Replace(standard, `["HOST"]`, `["no port:x"]`, 1), "smart_hosts[0]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f.write(test.conf)
			err := r.Reload()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Reload() = %v, want %q", err, test.want)
			}
			if got := r.Status().Config; got != now {
				t.Errorf("revision %s is in use, want the old one, %s", got, now)
			}
			resp, err := r.api.HTTP.Post(r.api.BaseURL+"/-/reload", "", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusUnprocessableEntity {
				t.Errorf("POST /-/reload = %s, want 422", resp.Status)
			}
		})
	}
	r.submit("bob", "three@dest.test")
	second.WaitFor(t, 2)
	if _, body := r.get("/metrics"); !strings.Contains(body, "waybill_config_last_reload_successful 0") {
		t.Error("metrics do not say that the last reload was refused")
	}
	eventually(t, "the fact of a refused reload", func() error {
		got, err := r.api.Events(context.Background(), trackapi.Query{Event: "config_reloaded", Limit: 100})
		if err == nil && !strings.Contains(fmt.Sprintf("%s", got.Events), "needs a restart") {
			err = errors.New("it is not there")
		}
		return err
	})
}

func TestStalledSessionDoesNotHoldUpTheEnd(t *testing.T) {
	f := newFixture(t, relaytest.NewSmartHost(t).Addr())
	r := f.start()
	c, err := r.login("app")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := errors.Join(c.Mail("a@source.test", nil), c.Rcpt("b@dest.test", nil)); err != nil {
		t.Fatal(err)
	}
	w, err := c.Data()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "Subject: never ends\r\n"); err != nil {
		t.Fatal(err)
	}
	tail, err := r.api.HTTP.Get(r.api.BaseURL + "/api/v1/tail")
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Body.Close()

	r.end()
	eventually(t, "the relay to drain", func() error {
		if err := r.Ready(); err == nil || !strings.Contains(err.Error(), "draining") {
			return errors.Join(errors.New("it does not say so"), err)
		}
		return nil
	})
	// On a machine that is slow enough nobody answers any more.
	if code, body := r.get("/-/ready"); code != 0 && (code != http.StatusServiceUnavailable || !strings.Contains(body, "draining")) {
		t.Errorf("ready answers %d %s, want 503, draining", code, body)
	}
	eventually(t, "new connections to be refused", func() error {
		c, err := net.Dial("tcp", r.Receive()["submission"][0].String())
		if err != nil {
			return nil //nolint:nilerr // as it should be
		}
		return errors.Join(errors.New("one is taken"), c.Close())
	})
	r.stop() // which does not wait for as long as a session may be silent
}

func TestRestartKeepsQueuedMail(t *testing.T) {
	host := relaytest.NewSmartHost(t)
	host.On(relaytest.PhaseRcpt, 451, "4.7.1 later")
	f := newFixture(t, host.Addr())
	r := f.start()
	id := r.submit("app", "late@dest.test")
	r.message(id, "deferred")
	r.stop()

	host.Do(relaytest.PhaseRcpt) // as usual again
	r = f.start()
	host.WaitFor(t, 1)
	tl := r.message(id, "relayed")
	if tl.Message.Attempts < 2 {
		t.Errorf("%d attempts, want those of before the restart too", tl.Message.Attempts)
	}
}

func TestTrackingOff(t *testing.T) {
	host := relaytest.NewSmartHost(t)
	f := newFixture(t, host.Addr())
	f.write(standard + "tracking: {engine: off}\n")
	r := f.start()
	r.submit("app", "ann@dest.test")
	host.WaitFor(t, 1)
	for path, want := range map[string]int{"/api/v1/messages": 503, "/api/v1/status": 200, "/api/v1/queues": 200, "/metrics": 200} {
		if code, body := r.get(path); code != want {
			t.Errorf("GET %s = %d %s, want %d", path, code, body, want)
		}
	}
}

func TestFailedStartUnwinds(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, test := range []struct {
		name   string
		conf   string
		damage func(dir string) error
		want   string
	}{
		{"receive connector's port", strings.Replace(standard, "127.0.0.1:0", taken.Addr().String(), 1), nil, "listen for submission: listen tcp " + taken.Addr().String()},
		{"HTTP port", strings.Replace(standard, `http: {listen: "127.0.0.1:0"}`, `http: {listen: "`+taken.Addr().String()+`"}`, 1), nil, "http.listen: listen tcp"},
		{"users", standard, func(dir string) error { return os.WriteFile(dir+"/users.yaml", []byte("users: 1"), 0o600) }, "user file"},
		{"certificate", standard, func(dir string) error { return os.Remove(dir + "/tls.key") }, "tls.key"},
		{"data folder", standard, func(dir string) error { return os.WriteFile(dir+"/data", nil, 0o600) }, "data"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t, "127.0.0.1:9")
			f.write(test.conf)
			opts := f.options()
			if test.damage != nil {
				if err := test.damage(f.dir); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := New(opts); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("New() = %v, want %q", err, test.want)
			}
			if test.damage == nil { // everything was given back
				f.write(standard)
				f.start().stop()
			}
		})
	}
}

func TestUserFileIsReadAgain(t *testing.T) {
	f := newFixture(t, "127.0.0.1:9")
	r := f.start(func(a *App) { a.every = 20 * time.Millisecond })
	may := func(user string) error {
		c, err := r.login(user)
		if err != nil {
			return err
		}
		return c.Close()
	}
	if err := may("bob"); err == nil {
		t.Fatal("bob can log in before he is there")
	}
	said := func(what string) {
		t.Helper()
		eventually(t, "the log to say: "+what, func() error {
			if err := r.log.Sync(); err != nil {
				return err
			}
			b, err := os.ReadFile(filepath.Join(f.dir, "waybill.log"))
			if err == nil && !strings.Contains(string(b), what) {
				err = errors.New("it does not")
			}
			return err
		})
	}
	f.addUser("bob")
	said("user file read again")
	if err := may("bob"); err != nil {
		t.Errorf("bob cannot log in: %v", err)
	}
	// In one step: an empty file, as it is for a moment while it is written, is a good one.
	broken, file := filepath.Join(f.dir, "users.broken"), filepath.Join(f.dir, "users.yaml")
	if err := errors.Join(os.WriteFile(broken, []byte("users: 1\n"), 0o600), os.Rename(broken, file)); err != nil {
		t.Fatal(err)
	}
	said("the users stay as they were")
	if err := may("bob"); err != nil {
		t.Errorf("bob cannot log in after the file broke: %v", err)
	}
}

func TestNoMechanismsIsNoLogin(t *testing.T) {
	f := newFixture(t, "127.0.0.1:9")
	f.write(strings.Replace(standard, `remote_ranges: ["127.0.0.0/8"]`, `remote_ranges: ["127.0.0.0/8"], auth: {mechanisms: [], before_tls: true}`, 1))
	r := f.start()
	for name, want := range map[string]bool{"servers": false, "submission": true} {
		addr := r.Receive()[name][0].String()
		c, err := smtp.Dial(addr)
		if name == "submission" && err == nil {
			_ = c.Close()
			c, err = smtp.DialStartTLS(addr, &tls.Config{RootCAs: f.roots, ServerName: "localhost"})
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := c.Extension("AUTH"); got != want {
			t.Errorf("%s offers AUTH: %t, want %t", name, got, want)
		}
		_ = c.Quit()
	}
}
