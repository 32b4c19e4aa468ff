package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/textproto"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"waybill/cmd/internal/peers"
	"waybill/relay/tlsconf"
)

// tlsFigure is one round of the part tls.
type tlsFigure struct {
	rate float64       // sessions a second
	p99  time.Duration // of a session
	cpu  float64       // µs a session, of the relay
}

// tlsSessions measures how many sessions with STARTTLS and TLS 1.3 a second
// Waybill and Postfix take: connect, EHLO, STARTTLS, a full handshake, EHLO,
// QUIT. Both show the same certificate (ECDSA P-256), and nothing is resumed.
func tlsSessions(o options) error {
	if o.tls == 0 {
		return nil // it was asked to be left out
	}
	certs, err := os.MkdirTemp(o.dir, "certs-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(certs) }()     // temporary
	if err := os.Chmod(certs, 0o755); err != nil { //nolint:gosec // Postfix' own users enter it
		return err
	}
	cert, key := filepath.Join(certs, "cert.pem"), filepath.Join(certs, "key.pem")
	if err := tlsconf.WriteSelfSigned(cert, key, "relay.test"); err != nil {
		return err
	}
	var subjects []subject
	for _, sub := range []subject{
		{name: aWaybill, boot: waybill(o, setup{tracking: true, cert: cert, key: key})},
		{name: aPostfix, boot: postfix(o, map[string]string{"smtpd_tls_cert_file": cert, "smtpd_tls_key_file": key, "smtpd_tls_loglevel": "0"})},
	} {
		if o.has(sub.name) {
			subjects = append(subjects, sub)
		}
	}
	dead, err := peers.FreePort()
	if err != nil {
		return err
	}
	const conns = 20
	figures := map[string][]tlsFigure{}
	for round := range o.rounds {
		for _, sub := range subjects {
			var f tlsFigure
			err := sub.in(o, dead, func(r *running) (err error) {
				f, err = measureTLS(o, conns, r)
				return err
			})
			if err != nil {
				return err
			}
			figures[sub.name] = append(figures[sub.name], f)
			fmt.Fprintf(os.Stderr, "tls: round %d of %d  %-8s %6.0f TLS 1.3 sessions/s  p99 %-8s %4.0f µs of CPU a session\n", round+1, o.rounds, sub.name, f.rate, f.p99.Round(100*time.Microsecond), f.cpu)
		}
	}
	fmt.Printf("\nMedians of %d rounds of %d sessions over %d connections at once, STARTTLS with full TLS 1.3 handshakes, ECDSA P-256, after %d that do not count:\n\n", o.rounds, o.tls, conns, tlsWarm(o))
	fmt.Println("| relay | sessions/s | p99 of a session | CPU µs/session |")
	fmt.Println("|---|---|---|---|")
	median := func(name string, of func(tlsFigure) float64) float64 {
		var v []float64
		for _, f := range figures[name] {
			v = append(v, of(f))
		}
		return middle(v)
	}
	rate := func(f tlsFigure) float64 { return f.rate }
	for _, sub := range subjects {
		fmt.Printf("| %s | %.0f | %s | %.0f |\n", sub.name, median(sub.name, rate), ms(median(sub.name, func(f tlsFigure) float64 { return float64(f.p99) })),
			median(sub.name, func(f tlsFigure) float64 { return f.cpu }))
	}
	if len(figures[aWaybill]) > 0 && len(figures[aPostfix]) > 0 {
		fmt.Println()
		is := median(aWaybill, rate) / median(aPostfix, rate)
		verdict("tls", is >= 2, fmt.Sprintf("%.1f × the sessions/s of Postfix, at least 2", is))
	}
	return nil
}

// tlsWarm is how many sessions a relay has before those that count: it starts
// processes for them.
func tlsWarm(o options) int { return max(100, o.tls/10) }

func measureTLS(o options, conns int, r *running) (f tlsFigure, err error) {
	if _, err := tlsLoad(r.addr, conns, tlsWarm(o)); err != nil {
		return f, fmt.Errorf("warm up: %w", err)
	}
	settle(r.pid)
	before, began := peers.CPU(r.pid), time.Now()
	took, err := tlsLoad(r.addr, conns, o.tls)
	if err != nil {
		return f, err
	}
	all := time.Since(began)
	settle(r.pid)
	return tlsFigure{
		rate: float64(len(took)) / all.Seconds(), p99: quantile(took, 0.99),
		cpu: float64((peers.CPU(r.pid) - before).Microseconds()) / float64(len(took)),
	}, nil
}

// tlsLoad opens n sessions, so many at once, and says how long each took.
func tlsLoad(addr string, conns, n int) (took []time.Duration, err error) {
	var mu sync.Mutex
	var next atomic.Int64
	group, ctx := errgroup.WithContext(context.Background())
	for range conns {
		group.Go(func() error {
			for next.Add(1) <= int64(n) && ctx.Err() == nil {
				start := time.Now()
				if err := tlsSession(addr); err != nil {
					return err
				}
				mu.Lock()
				took = append(took, time.Since(start))
				mu.Unlock()
			}
			return nil
		})
	}
	return took, group.Wait()
}

// tlsSession is one session, from connect to the reply to QUIT.
func tlsSession(addr string) error {
	conn, err := net.Dial("tcp", addr) //nolint:gosec // the relay that we started
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // all was said
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	talk := func(w net.Conn, r *textproto.Reader, code int, line string) error {
		if line != "" {
			if _, err := w.Write([]byte(line + "\r\n")); err != nil {
				return err
			}
		}
		_, _, err := r.ReadResponse(code)
		return err
	}
	r := textproto.NewReader(bufio.NewReader(conn))
	for _, step := range []struct {
		code int
		line string
	}{{220, ""}, {250, "EHLO bench.test"}, {220, "STARTTLS"}} {
		if err := talk(conn, r, step.code, step.line); err != nil {
			return err
		}
	}
	secure := tls.Client(conn, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}) //nolint:gosec // the certificate is our own
	if err := secure.Handshake(); err != nil {
		return err
	}
	r = textproto.NewReader(bufio.NewReader(secure))
	if err := talk(secure, r, 250, "EHLO bench.test"); err != nil {
		return err
	}
	return talk(secure, r, 221, "QUIT")
}
