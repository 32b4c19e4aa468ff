//go:build e2e

package e2e

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"waybill/cmd/internal/peers"
	"waybill/logtrack/trackapi"
	"waybill/relay/relaytest"
)

// relayConf relays everything from loopback to one smart host.
func relayConf(in, out int) string {
	return fmt.Sprintf(`hostname: relay.test
data_dir: DIR/data
receive_connectors:
  - {name: in, usage: internal, listen: ["127.0.0.1:%d"], remote_ranges: ["127.0.0.0/8"], permissions: [submit, relay], limits: {connections: 1000, connections_per_source: 1000}}
send_connectors:
  - {name: out, address_spaces: [{space: "*", cost: 10}], route: smart_hosts, smart_hosts: ["127.0.0.1:%d"], tls: {level: none}, retry: {schedule: [1s, 2s, 2s], lifetime: 1h, delay_dsn: 0s}}
queue: {disk_free_min: 16MiB}
http: {listen: "127.0.0.1:HTTPPORT"}
log: {file: DIR/waybill.log}
`, in, out)
}

// TestSMTPSource sends 2,000 messages of 10 KiB over 20 connections by Postfix'
// own load generator to Postfix' own sink: all arrive, once.
func TestSMTPSource(t *testing.T) {
	t.Parallel()
	const n = 2000
	in, out := port(t), port(t)
	dump := filepath.Join(shared(t), "sink")
	if err := os.MkdirAll(dump, 0o755); err != nil {
		t.Fatal(err)
	}
	sink := exec.Command("/usr/sbin/smtp-sink", "-u", "root", "-d", dump+"/%M.", fmt.Sprintf("127.0.0.1:%d", out), "1000")
	if err := sink.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Process.Kill(); _ = sink.Wait() })
	if err := peers.WaitPort(out, time.Minute); err != nil {
		t.Fatal(err)
	}
	d := start(t, relayConf(in, out))
	began := time.Now()
	run(t, "/usr/sbin/smtp-source", "-s", "20", "-m", fmt.Sprint(n), "-l", "10240", "-N", "-d", "-f", "load@source.test", "-t", "sink@sink.test", fmt.Sprintf("127.0.0.1:%d", in))
	accepted := time.Since(began)
	d.empty(2 * time.Minute)
	t.Logf("%d messages accepted in %s, all handed over after %s", n, accepted.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))

	arrived := map[string]int{}
	files, err := filepath.Glob(dump + "/*")
	if err != nil {
		t.Fatal(err)
	}
	rcpt := regexp.MustCompile(`(?m)^X-Rcpt-Args: <([^>]*)>`)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range rcpt.FindAllStringSubmatch(string(b), -1) {
			arrived[m[1]]++
		}
	}
	if len(arrived) != n {
		t.Errorf("%d different recipients arrived, want %d", len(arrived), n)
	}
	for to, times := range arrived {
		if times != 1 {
			t.Errorf("%s arrived %d times", to, times)
		}
	}
	d.reconcile(n)
}

// reconcile holds four witnesses together: what the log says, what the store
// has, what Prometheus counts, and what is known to have been relayed.
func (d *daemon) reconcile(relayed int) {
	d.t.Helper()
	names := []string{"message_queued", "recipient_relayed", "message_retired"}
	eventually(d.t, time.Minute, "tracking and metrics to agree", func() error {
		now := time.Now()
		got, err := d.api.Aggregate(context.Background(), trackapi.AggregateQuery{
			Query: trackapi.Query{From: now.Add(-time.Hour), To: now.Add(time.Minute)}, Metric: "count", By: []string{"event"}, Top: 50,
		})
		if err != nil {
			return err
		}
		sums := map[string]float64{}
		for _, s := range got.Series {
			sums[s.Labels["event"]] = *s.Points[0].Value
		}
		log, err := os.ReadFile(filepath.Join(d.dir, "waybill.log"))
		if err != nil {
			return err
		}
		for _, name := range names {
			lines := strings.Count(string(log), `"event":"`+name+`"`)
			if int(sums[name]) != relayed || lines != relayed {
				return fmt.Errorf("%s: tracking has %v, the log has %d, want %d", name, sums[name], lines, relayed)
			}
		}
		metrics := d.metrics()
		for what, n := range map[string]float64{
			"received": metrics.sum("waybill_messages_received_total", ""),
			"relayed":  metrics.sum("waybill_recipients_completed_total", `disposition="relayed"`),
			"tried":    metrics.sum("waybill_delivery_attempts_total", `disposition="relayed"`),
		} {
			if int(n) != relayed {
				return fmt.Errorf("Prometheus counts %v %s, want %d", n, what, relayed)
			}
		}
		return nil
	})
}

type exposition string

func (d *daemon) metrics() exposition {
	d.t.Helper()
	return exposition(run(d.t, "/usr/bin/curl", "-sf", d.api.BaseURL+"/metrics"))
}

// value is that of a metric without labels, or -1.
func (x exposition) value(name string) float64 {
	v := -1.0
	for line := range strings.Lines(string(x)) {
		if s, ok := strings.CutPrefix(line, name+" "); ok {
			_, _ = fmt.Sscan(s, &v) // what is no number stays -1
		}
	}
	return v
}

// sum adds the samples of a metric that have the label pair.
func (x exposition) sum(name, label string) float64 {
	var total float64
	for line := range strings.Lines(string(x)) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), "} ")
		if !ok || !strings.HasPrefix(series, name+"{") || !strings.Contains(series, label) {
			continue
		}
		var v float64
		if _, err := fmt.Sscan(value, &v); err == nil {
			total += v
		}
	}
	return total
}

// TestClients submits with swaks and curl over STARTTLS with AUTH, as people do,
// and as people should not.
func TestClients(t *testing.T) {
	t.Parallel()
	const password = "s3cret-pass"
	in := port(t)
	host := relaytest.NewSmartHost(t)
	certs := shared(t)
	run(t, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "90", "-subj", "/CN=localhost",
		"-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", certs+"/key.pem", "-out", certs+"/cert.pem")
	users := filepath.Join(certs, "users.yaml")
	add := exec.Command(binary(t), "user", "add", "app", "--users", users, "--sender", "@source.test")
	add.Stdin = strings.NewReader(password + "\n")
	if b, err := add.CombinedOutput(); err != nil {
		t.Fatalf("user add: %v\n%s", err, b)
	}
	d := start(t, fmt.Sprintf(`hostname: relay.test
data_dir: DIR/data
certificates:
  default: {cert_file: %[1]s/cert.pem, key_file: %[1]s/key.pem}
users: {file: %[2]s}
receive_connectors:
  - {name: submission, usage: client, listen: ["127.0.0.1:%[3]d"], transcript: all, limits: {tarpit: 100ms}}
send_connectors:
  - {name: out, address_spaces: [{space: "*", cost: 10}], smart_hosts: [%[4]q], tls: {level: none}}
queue: {disk_free_min: 16MiB}
http: {listen: "127.0.0.1:HTTPPORT"}
log: {file: DIR/waybill.log}
`, certs, users, in, host.Addr()))
	login := func(mechanism, password string) []string {
		return []string{"--tls", "--auth", mechanism, "--auth-user", "app", "--auth-password", password}
	}
	swaks := func(args ...string) *exec.Cmd {
		return exec.Command("swaks", append([]string{"--server", fmt.Sprintf("127.0.0.1:%d", in), "--from", "a@source.test"}, args...)...)
	}
	mail := filepath.Join(certs, "mail.eml")
	write(t, mail, "From: <a@source.test>\r\nTo: <curl@dest.test>\r\nSubject: curl\r\n\r\nhello\r\n")

	var recipients []string
	for _, mechanism := range []string{"PLAIN", "LOGIN"} {
		t.Run("swaks "+mechanism, func(t *testing.T) {
			to := "swaks-" + strings.ToLower(mechanism) + "@dest.test"
			recipients = append(recipients, to)
			out, err := swaks(append(login(mechanism, password), "--to", to)...).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "queued as ") || !strings.Contains(string(out), "TLS started") {
				t.Errorf("swaks: %v\n%s", err, out)
			}
		})
		t.Run("curl "+mechanism, func(t *testing.T) {
			to := "curl-" + strings.ToLower(mechanism) + "@dest.test"
			recipients = append(recipients, to)
			run(t, "curl", "-sS", "--ssl-reqd", "--cacert", certs+"/cert.pem", "-u", "app:"+password, "--login-options", "AUTH="+mechanism,
				"--mail-from", "a@source.test", "--mail-rcpt", to, "-T", mail, fmt.Sprintf("smtp://localhost:%d", in), "--resolve", fmt.Sprintf("localhost:%d:127.0.0.1", in))
		})
	}
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"wrong password", login("PLAIN", "guess"), "535 5.7.8"},
		{"wrong password by LOGIN", login("LOGIN", "guess"), "535 5.7.8"},
		{"unknown user", []string{"--tls", "--auth", "PLAIN", "--auth-user", "nobody", "--auth-password", password}, "535 5.7.8"},
		{"AUTH before TLS", []string{"--auth", "PLAIN", "--auth-user", "app", "--auth-password", password}, "did not advertise"},
		{"no AUTH", []string{"--tls"}, "530 5.7.0"},
		{"no TLS", nil, "530 5.7.0"},
		{"not its sender", append(login("PLAIN", password), "--from", "boss@other.test"), "550 5.7.1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, err := swaks(append([]string{"--to", "refused@dest.test"}, test.args...)...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), test.want) {
				t.Errorf("swaks: %v, want %q in:\n%s", err, test.want, out)
			}
		})
	}
	plain := base64.StdEncoding.EncodeToString([]byte("\x00app\x00" + password))
	t.Run("AUTH before TLS all the same", func(t *testing.T) {
		s := dial(t, in)
		if err := s.PrintfLine("AUTH PLAIN %s", plain); err != nil {
			t.Fatal(err)
		}
		if code, text, err := s.ReadResponse(0); code != 530 && code != 538 {
			t.Errorf("the right password in clear is answered by %d %s (%v), want 530 or 538", code, text, err)
		}
		s.cmd(530, "MAIL FROM:<a@source.test>")
	})

	d.empty(time.Minute)
	wantOnce(t, host, recipients...)
	for _, m := range host.Messages() {
		if !strings.HasPrefix(string(m.Content), "Received: from ") || !strings.Contains(string(m.Content), "with ESMTPSA") {
			t.Errorf("the message does not begin with a trace field that says ESMTPSA:\n%s", m.Content)
		}
	}
	secrets := []string{
		password, plain[4 : len(plain)-4], base64.StdEncoding.EncodeToString([]byte(password)), base64.StdEncoding.EncodeToString([]byte("guess")), "guess",
	}
	var log string
	eventually(t, time.Minute, "a transcript with AUTH to be in the log", func() error { // without it this proves nothing
		log = run(t, "cat", filepath.Join(d.dir, "waybill.log"), filepath.Join(d.dir, "stderr"))
		if !strings.Contains(log, "AUTH PLAIN") {
			return errors.New("there is none")
		}
		return nil
	})
	for _, to := range recipients {
		row := d.found(to, "relayed", 1)[0]
		if row.AuthUser != "app" {
			t.Errorf("%s: user %q, want app", to, row.AuthUser)
		}
		conversations, err := d.waybill("track", "show", row.QueueID, "--transcript")
		if err != nil {
			t.Errorf("track show: %v\n%s", err, conversations)
		}
		log += conversations
	}
	for _, secret := range secrets {
		if i := strings.Index(log, secret); i >= 0 {
			t.Errorf("log or transcripts have a password (%s): …%s…", secret, log[max(0, i-200):min(len(log), i+100)])
		}
	}
}

// found waits until a search for the recipient finds n messages with the disposition.
func (d *daemon) found(recipient, disposition string, n int) []trackapi.Message {
	d.t.Helper()
	var rows []trackapi.Message
	eventually(d.t, time.Minute, fmt.Sprintf("%d %s messages to %s", n, disposition, recipient), func() error {
		now := time.Now()
		got, err := d.api.Messages(context.Background(), trackapi.Query{Recipient: recipient, Disposition: disposition, From: now.Add(-time.Hour), To: now.Add(time.Minute), Limit: 1000})
		if err != nil {
			return err
		}
		if rows = got.Messages; len(rows) != n {
			return fmt.Errorf("%d found", len(rows))
		}
		return nil
	})
	return rows
}

// TestPostfixNextHop relays to a real Postfix that accepts, defers and refuses.
func TestPostfixNextHop(t *testing.T) {
	t.Parallel()
	in := port(t)
	dir := shared(t)
	began := time.Now()
	postfix, err := peers.StartPostfix(dir, peers.PostfixOptions{
		Extra: map[string]string{"smtpd_recipient_restrictions": fmt.Sprintf("check_recipient_access regexp:%s/etc/access, permit", dir)},
		Files: map[string]string{"access": "/^later@/ DEFER_IF_PERMIT 4.7.1 greylisted for the test\n/^nobody@/ 550 5.1.1 no such user here\n/^full@/ 452 4.2.2 mailbox full\n"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := postfix.Stop(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("Postfix started after %s", time.Since(began).Round(time.Millisecond))
	d := start(t, relayConf(in, postfix.Port))
	send := func(to ...string) {
		t.Helper()
		run(t, "swaks", "--server", fmt.Sprintf("127.0.0.1:%d", in), "--from", "sender@source.test", "--to", strings.Join(to, ","))
	}
	send("ann@dest.test")
	send("nobody@dest.test")
	send("later@dest.test")
	send("full@dest.test", "bob@dest.test", "nobody@other.test")

	d.found("ann@dest.test", "relayed", 1)
	bounced := d.found("nobody@dest.test", "bounced", 1)[0]
	if r := bounced.Recipients[0]; r.Code != 550 || r.Enhanced != "5.1.1" || !strings.Contains(r.Reply, "no such user here") || r.Class != "invalid_recipient" {
		t.Errorf("bounced recipient = %+v, want 550 5.1.1 invalid_recipient with Postfix' words", r)
	}
	later := d.found("later@dest.test", "deferred", 1)[0]
	if r := later.Recipients[0]; r.Class != "greylist" || r.Next.IsZero() {
		t.Errorf("deferred recipient = %+v, want class greylist and a next attempt", r)
	}
	// The DSN goes to the sender with the null reverse-path, through the same Postfix.
	dsn := d.found("sender@source.test", "relayed", 2)
	for _, m := range dsn {
		if m.Sender != "<>" {
			t.Errorf("a DSN has the sender %s", m.Sender)
		}
	}
	eventually(t, time.Minute, "Postfix to log two reports with the null sender", func() error {
		if log := postfix.Log(); strings.Count(log, "from=<>,") != 2 || strings.Count(log, "to=<sender@source.test>,") != 2 {
			return errors.New(log)
		}
		return nil
	})
	mixed := d.found("bob@dest.test", "", 1)[0]
	states := map[string]string{}
	for _, r := range mixed.Recipients {
		states[r.Address] = r.Disposition
	}
	if states["bob@dest.test"] != "relayed" || states["full@dest.test"] != "deferred" || states["nobody@other.test"] != "bounced" {
		t.Errorf("one message, three recipients: %v", states)
	}
	tl, err := d.api.Message(context.Background(), bounced.QueueID)
	if err != nil {
		t.Fatal(err)
	}
	if len(tl.Related) == 0 {
		t.Error("the timeline does not name the DSN")
	}
	out, err := d.waybill("track", "show", bounced.QueueID, "--transcript")
	if err != nil || !strings.Contains(out, "no such user here") {
		t.Errorf("track show --transcript: %v\n%s", err, out)
	}
	// What waits can be removed; then the queue is empty.
	if out, err := d.waybill("queue", "remove", "--recipient", "later@dest.test", "--yes", "--reason", "test"); err != nil {
		t.Errorf("queue remove: %v\n%s", err, out)
	}
	if out, err := d.waybill("queue", "bounce", "--recipient", "full@dest.test", "--yes"); err != nil {
		t.Errorf("queue bounce: %v\n%s", err, out)
	}
	d.empty(time.Minute)
	d.found("later@dest.test", "dropped", 1)
}
