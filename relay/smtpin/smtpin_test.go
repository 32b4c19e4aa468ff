package smtpin

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"waybill/relay/auth"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/policy"
)

// recorder keeps the facts.
type recorder struct {
	mu   sync.Mutex
	recs []event.Record
	wake chan struct{}
	off  atomic.Bool // keep nothing
}

func newRecorder() *recorder { return &recorder{wake: make(chan struct{}, 1)} }

func (r *recorder) Write(rec *event.Record) {
	if r.off.Load() {
		return
	}
	r.mu.Lock()
	r.recs = append(r.recs, rec.Keep())
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func facts[T event.Event](r *recorder) []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []T
	for _, rec := range r.recs {
		if e, ok := rec.Event.(T); ok {
			out = append(out, e)
		}
	}
	return out
}

// await waits until there are n facts of a kind.
func await[T event.Event](t testing.TB, r *recorder, n int) []T {
	t.Helper()
	timeout := time.After(time.Minute)
	for {
		if got := facts[T](r); len(got) >= n {
			return got
		}
		select {
		case <-r.wake:
		case <-timeout:
			var none T
			t.Fatalf("%d facts %T, want %d", len(facts[T](r)), none, n)
		}
	}
}

// accepted is a message that an acceptor took.
type accepted struct {
	mail.Draft
	content string
}

// acceptor keeps messages in memory.
type acceptor struct {
	mu      sync.Mutex
	got     []accepted
	aborted int
	open    int
	discard bool  // keep no contents
	octets  int64 // all that were written
	begin   func() error
	write   func() error
	commit  func(context.Context) error
}

func (a *acceptor) Begin(context.Context, int64) (Incoming, error) {
	if a.begin != nil {
		if err := a.begin(); err != nil {
			return nil, err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open++
	return &incoming{a: a}, nil
}

type incoming struct {
	a    *acceptor
	buf  bytes.Buffer
	room [2048]byte
}

// Room is where contents are received.
func (in *incoming) Room() []byte { return in.room[:] }

func (in *incoming) Write(p []byte) (int, error) {
	defer func() { clear(p) }() // nobody may need it any more
	if in.a.write != nil {
		if err := in.a.write(); err != nil {
			return 0, err
		}
	}
	if in.a.discard {
		in.a.mu.Lock()
		defer in.a.mu.Unlock()
		in.a.octets += int64(len(p))
		return len(p), nil
	}
	return in.buf.Write(p)
}

func (in *incoming) Commit(ctx context.Context, d mail.Draft) error {
	d.Trace = bytes.Clone(d.Trace) // its memory is used again
	in.a.mu.Lock()
	in.a.open--
	in.a.mu.Unlock()
	if in.a.discard {
		return nil
	}
	if in.a.commit != nil {
		if err := in.a.commit(ctx); err != nil {
			return err
		}
	}
	in.a.mu.Lock()
	defer in.a.mu.Unlock()
	in.a.got = append(in.a.got, accepted{d, in.buf.String()})
	return nil
}

func (in *incoming) Abort() {
	in.a.mu.Lock()
	defer in.a.mu.Unlock()
	in.a.open--
	in.a.aborted++
}

func (a *acceptor) messages() []accepted {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]accepted(nil), a.got...)
}

// users is a store of one user, ann, with the password "right".
type users struct{}

func (users) Verify(_ context.Context, user, password string) (auth.Identity, error) {
	switch {
	case user == "down":
		return auth.Identity{}, errors.New("database: connection refused")
	case user == "panic":
		panic("in the store")
	case user != "ann":
		return auth.Identity{}, auth.ErrUnknownUser
	case password != "right":
		return auth.Identity{}, auth.ErrCredentials
	}
	return auth.Identity{User: "ann", Senders: []string{"@example.com"}}, nil
}

var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mx.example.com"}, DNSNames: []string{"mx.example.com"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

func serverTLS() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{certificate()}, MinVersion: tls.VersionTLS12}
}

func clientTLS() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: "mx.example.com"}
}

// relay is a running Server.
type relay struct {
	*Server
	*acceptor
	rec  *recorder
	stop context.CancelFunc
	done chan error
}

// connector is an open one for tests: anybody may do anything, and nothing is slow.
func open(change ...func(*Connector)) Connector {
	c := Connector{
		Name: "test", Listen: []string{"127.0.0.1:0"}, Permissions: policy.Permissions{Submit: true, Relay: true},
		Limits: Limits{Tarpit: -1, ConnectionsPerSource: -1, ProtocolErrors: 1000},
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

func start(t testing.TB, opts Options) *relay {
	t.Helper()
	r := &relay{acceptor: &acceptor{}, rec: newRecorder(), done: make(chan error, 1)}
	if opts.Acceptor == nil {
		opts.Acceptor = r.acceptor
	}
	if opts.Hostname == "" {
		opts.Hostname = "mx.example.com"
	}
	if len(opts.Connectors) == 0 {
		opts.Connectors = []Connector{open()}
	}
	opts.Emitter = event.NewEmitter("node", r.rec)
	var err error
	if r.Server, err = New(opts); err != nil {
		t.Fatal(err)
	}
	if err := r.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go func() { r.done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		r.cut()
		select {
		case err := <-r.done:
			if err != nil {
				t.Errorf("Run() = %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("Run did not end")
		}
	})
	return r
}

// cut cuts what a test has left open.
func (r *relay) cut() {
	r.Server.mu.Lock()
	defer r.Server.mu.Unlock()
	for s := range r.sessions {
		s.conn.Kill()
	}
}

func (r *relay) addr(name string) string { return r.Addrs()[name][0].String() }

type client struct {
	t  testing.TB
	c  net.Conn
	br *bufio.Reader
}

func (r *relay) dial(t testing.TB) *client {
	t.Helper()
	c, err := net.Dial("tcp", r.addr("test"))
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, c)
}

func newClient(t testing.TB, c net.Conn) *client {
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	return &client{t, c, bufio.NewReader(c)}
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.c, s); err != nil {
		c.t.Logf("send: %v", err)
	}
}

// reply reads one reply, its lines joined by "|"; "" at the end of the connection.
func (c *client) reply() string {
	c.t.Helper()
	var all []string
	for {
		line, err := c.br.ReadString('\n')
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return "(timeout)"
			}
			return strings.Join(all, "|")
		}
		line = strings.TrimRight(line, "\r\n")
		all = append(all, line)
		if len(line) < 4 || line[3] != '-' {
			return strings.Join(all, "|")
		}
	}
}

func (c *client) expect(want string) string {
	c.t.Helper()
	got := c.reply()
	if !strings.HasPrefix(got, want) {
		c.t.Fatalf("reply = %q, want %q", got, want)
	}
	return got
}

// talk sends each line with CRLF and checks its reply: "command=>reply".
func (c *client) talk(lines ...string) {
	c.t.Helper()
	for _, l := range lines {
		cmd, want, _ := strings.Cut(l, "=>")
		if cmd != "" {
			c.send(cmd + "\r\n")
		}
		if got := c.reply(); !strings.HasPrefix(got, want) || want == "" && got != "" {
			c.t.Fatalf("%q: reply = %q, want %q", cmd, got, want)
		}
	}
}

const hello = "EHLO client.example.net=>250-mx.example.com"

func (c *client) begin() { c.t.Helper(); c.talk("=>220", hello) }

func (c *client) envelope() {
	c.t.Helper()
	c.talk("MAIL FROM:<a@example.net>=>250 2.1.0", "RCPT TO:<b@example.org>=>250 2.1.5")
}

func TestMessage(t *testing.T) {
	r := start(t, Options{})
	c := r.dial(t)
	c.begin()
	c.talk(
		"MAIL FROM:<a@example.net> SIZE=100 RET=HDRS ENVID=q+2B1 BODY=8BITMIME=>250 2.1.0",
		"RCPT TO:<b@example.org> NOTIFY=FAILURE,DELAY ORCPT=rfc822;x@example.org=>250 2.1.5",
		"RCPT TO:<b@EXAMPLE.org>=>250 2.1.5", // the same again
		"DATA=>354",
	)
	content := "Received: from x by y; date\r\nFrom: \"A, B\" (x) <ann@example.net>\r\nSubject: =?utf-8?q?caf=C3=A9?=\r\n\tbar\r\nMessage-ID:\r\n <1@example.net>\r\n\r\n.dot\r\nbody\r\n"
	c.send(strings.ReplaceAll(content, "\r\n.", "\r\n..") + ".\r\n")
	got := c.expect("250 2.0.0 queued as ")
	c.talk("QUIT=>221 2.0.0", "=>")

	msgs := r.messages()
	if len(msgs) != 1 {
		t.Fatalf("%d messages", len(msgs))
	}
	m := msgs[0]
	if m.content != content {
		t.Errorf("content = %q, want %q", m.content, content)
	}
	if string(m.ID) != strings.TrimPrefix(got, "250 2.0.0 queued as ") || !mail.ValidID(string(m.ID)) {
		t.Errorf("queue id %q, reply %q", m.ID, got)
	}
	want := mail.Header{MessageID: "<1@example.net>", From: "ann@example.net", Subject: "café bar", Received: 1, Bytes: strings.Index(content, ".dot")}
	if m.Header != want {
		t.Errorf("header = %+v, want %+v", m.Header, want)
	}
	e := m.Envelope
	if e.Sender.String() != "a@example.net" || e.Size != 100 || e.Ret != "HDRS" || e.EnvID != "q+1" || e.Body != mail.Body8BitMIME {
		t.Errorf("envelope = %+v", e)
	}
	if len(e.Recipients) != 1 || e.Recipients[0].ORcpt != "rfc822;x@example.org" || e.Recipients[0].Notify != mail.NotifyFailure|mail.NotifyDelay {
		t.Errorf("recipients = %+v", e.Recipients)
	}
	tr := string(m.Trace)
	for _, want := range []string{"Received: from client.example.net ([127.0.0.1])\r\n", "by mx.example.com (Waybill) with ESMTP id " + string(m.ID), "\r\n\tfor <b@example.org>;\r\n"} {
		if !strings.Contains(tr, want) {
			t.Errorf("trace %q does not contain %q", tr, want)
		}
	}
	o := m.Origin
	if o.Connector != "test" || o.Helo != "client.example.net" || o.Protocol != "ESMTP" || !o.Client.Addr().IsLoopback() || o.MailAt.IsZero() || o.DataEndedAt.Before(o.MailAt) {
		t.Errorf("origin = %+v", o)
	}

	closed := await[event.SessionClosed](t, r.rec, 1)[0]
	if closed.Cause != "quit" || closed.Messages != 1 || closed.Commands != 6 || closed.BytesIn == 0 || closed.BytesOut == 0 || conversation(r.rec) != nil {
		t.Errorf("closed = %+v", closed)
	}
	if o := facts[event.SessionOpened](r.rec); len(o) != 1 || o[0].Connector != "test" || o[0].ClientPort == 0 || o[0].LocalPort == 0 {
		t.Errorf("opened = %+v", o)
	}
	var said []string
	for _, a := range facts[event.CommandAnswered](r.rec) {
		said = append(said, fmt.Sprintf("%s %d", a.Verb, a.Code))
	}
	if got, want := strings.Join(said, ","), "EHLO 250,MAIL 250,RCPT 250,RCPT 250,DATA 250,QUIT 221"; got != want {
		t.Errorf("commands = %s, want %s", got, want)
	}
	for _, rec := range r.rec.recs {
		if rec.Session == "" || rec.Session != o.Session || rec.Source != event.SourceSMTPIn {
			t.Errorf("record without its session: %+v", rec)
		}
	}
}

// TestRunEndsAtOnce ends a server whose context is done before it has begun.
func TestRunEndsAtOnce(t *testing.T) {
	for range 200 {
		s, err := New(Options{Hostname: "relay.test", Acceptor: &acceptor{}, Connectors: []Connector{{Name: "in", Listen: []string{"127.0.0.1:0"}}}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Run(ctx); err != nil {
			t.Fatal(err)
		}
	}
}
