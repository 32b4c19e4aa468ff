// Package demo is a complete relay on loopback with mail flowing: the real
// daemon under an embedded configuration, next hops that accept, defer, bounce,
// greylist, stall and are down, applications that submit, and a view.
//
// It exists so that somebody who has just cloned the repository sees within
// seconds what Waybill is. Everything that it shows comes from the API of the
// relay that it runs; nothing is made up but the mail.
package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"waybill/cmd/internal/app"
	"waybill/cmd/internal/config"
	"waybill/logtrack/trackapi"
	"waybill/relay/auth"
	"waybill/relay/tlsconf"
)

// Options configure a demo.
type Options struct {
	Dir     string        // where it keeps its data; empty: a temporary folder that is removed at the end
	Rate    float64       // messages a second
	For     time.Duration // 0: until ctx is done
	Out     io.Writer
	Live    bool // Out is a terminal
	Color   bool
	Width   int
	Height  int
	Program string // how the person called us, for the lines that say what to try
}

// Run shows the demo until ctx is done or its time is over.
func Run(ctx context.Context, o Options) (err error) {
	if o.Dir == "" {
		dir, err := os.MkdirTemp("", "waybill-demo-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }() // temporary
		o.Dir = dir
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil { // the configuration would take it for relative to itself
		return err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return err
	}
	if o.For > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.For)
		defer cancel()
	}
	connectors, stop, err := startHops()
	if err != nil {
		return err
	}
	defer stop()
	a, t, err := prepare(o, connectors)
	for range 3 { // somebody may have taken a port that was free a moment ago, such as another demo
		if !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
		a, t, err = prepare(o, connectors)
	}
	if err != nil {
		return err
	}
	v := &view{
		out: o.Out, live: o.Live, color: o.Color, width: o.Width, height: o.Height, began: time.Now(),
		api:    &trackapi.Client{BaseURL: "http://" + a.Addr(), HTTP: &http.Client{Timeout: 10 * time.Second}},
		header: header(o, a.Addr(), t),
	}
	g, inner := errgroup.WithContext(ctx)
	g.Go(func() error { return a.Run(inner) })
	g.Go(func() error { return t.run(inner) })
	g.Go(func() error { return v.run(inner) })
	err = g.Wait()
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		_, _ = fmt.Fprintln(o.Out, "\nThe demo has ended. Next: docs/tutorial/first-relay.md") // the last word
		return nil
	}
	return err
}

// prepare makes a relay that listens already, and the traffic for it.
func prepare(o Options, connectors string) (*app.App, *traffic, error) {
	t := &traffic{user: "shop", perSecond: o.Rate, plain: pick(2525), submission: pick(2587)}
	cfg, err := configure(o.Dir, connectors, pick(8025), t)
	if err != nil {
		return nil, nil, err
	}
	a, err := app.New(app.Options{Config: cfg})
	return a, t, err
}

// pick is the wanted port of loopback, or a free one when somebody has it.
func pick(port int) string {
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return addr // the daemon will say what is wrong
		}
		addr = l.Addr().String()
	}
	_ = l.Close() // it only had to be free
	return addr
}

// configure writes certificate, users and configuration below dir, and loads
// them as the daemon does.
func configure(dir, connectors, listen string, t *traffic) (*config.Config, error) {
	cert, key, users := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), filepath.Join(dir, "users.yaml")
	if err := tlsconf.WriteSelfSigned(cert, key, "localhost", "127.0.0.1"); err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(cert) //nolint:gosec // our own file
	if err != nil {
		return nil, err
	}
	t.roots = x509.NewCertPool()
	t.roots.AppendCertsFromPEM(pem)
	secret := make([]byte, 6)
	_, _ = rand.Read(secret) // never fails (Go 1.24)
	t.password = hex.EncodeToString(secret)
	_ = os.Remove(users) // of a demo before, with another password
	file, err := auth.CreateUsers(users)
	if err != nil {
		return nil, err
	}
	if err := file.Add(auth.User{Name: t.user, AnySender: true}, auth.NewSecret(t.password)); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `hostname: relay.example
data_dir: %[1]q
certificates:
  default: {cert_file: %[2]q, key_file: %[3]q}
users: {file: %[4]q}
receive_connectors:
  - name: devices
    usage: device
    listen: [%[5]q]
    remote_ranges: ["127.0.0.0/8"]
    tls: {mode: "off"}
    permissions: [submit, relay]
    limits: {connections_per_source: 100}
  - name: submission
    usage: client
    listen: [%[6]q]
    limits: {connections_per_source: 100, tarpit: 1s}
send_connectors:
%[7]s
queue: {disk_free_min: 200MiB}
tracking: {subject: plain}
http: {listen: %[8]q}
log: {file: %[9]q}
`, filepath.Join(dir, "data"), cert, key, users, t.plain, t.submission, connectors, listen, filepath.Join(dir, "waybill.log"))
	path := filepath.Join(dir, "waybill.yaml")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		return nil, err
	}
	cfg, problems := config.Load(path)
	if problems.Errors() {
		return nil, problems
	}
	return cfg, nil
}

// header is where things are and what to try.
func header(o Options, listen string, t *traffic) []string {
	api := ""
	if listen != "127.0.0.1:8025" {
		api = " --api http://" + listen
	}
	p := o.Program
	return []string{
		fmt.Sprintf("  SMTP        %s (devices, no login) · %s (submission: STARTTLS, user %s, password %s)", t.plain, t.submission, t.user, t.password),
		fmt.Sprintf("  HTTP        http://%s  metrics http://%s/metrics", listen, listen),
		fmt.Sprintf("  data        %s (log, configuration, stores)", o.Dir),
		"",
		"  In another terminal:",
		fmt.Sprintf("    %s queue list%s", p, api),
		fmt.Sprintf("    %s track search --recipient '*@strict.example' --disposition bounced%s", p, api),
		fmt.Sprintf("    %s send --server %s --from you@office.example --to ann@partner.example%s", p, t.plain, api),
		fmt.Sprintf("    %s track tail%s", p, api),
	}
}
