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
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"waybill/cmd/internal/peers"
	"waybill/relay/tlsconf"
)

// tlsFigure is one round of the cell tls-sessions.
type tlsFigure struct {
	rate float64       // sessions a second
	p99  time.Duration // of a session
	cpu  float64       // µs a session, of the relay
}

// tlsSessions measures how many sessions with STARTTLS and TLS 1.3 a second
// Waybill and Postfix take: connect, EHLO, STARTTLS, a full handshake, EHLO,
// QUIT. Both show the same certificate (ECDSA P-256), and nothing is resumed.
func tlsSessions(o options) error {
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
	subjects := []struct {
		name string
		boot func(dir string) (addr string, pid int, stop func() error, err error)
	}{
		{"waybill", func(dir string) (string, int, func() error, error) {
			port, err := peers.FreePort()
			if err != nil {
				return "", 0, nil, err
			}
			dead, err := peers.FreePort()
			if err != nil {
				return "", 0, nil, err
			}
			p, err := startWaybill(o.binary, dir, port, dead, setup{tracking: true}, fmt.Sprintf("certificates: {default: {cert_file: %s, key_file: %s}}\n", cert, key))
			if err != nil {
				return "", 0, nil, err
			}
			return fmt.Sprintf("127.0.0.1:%d", port), p.cmd.Process.Pid, p.stop, nil
		}},
		{"postfix", func(dir string) (string, int, func() error, error) {
			p, err := peers.StartPostfix(dir, peers.PostfixOptions{Extra: map[string]string{
				"smtpd_tls_cert_file": cert, "smtpd_tls_key_file": key, "smtpd_tls_loglevel": "0",
			}})
			if err != nil {
				return "", 0, nil, err
			}
			return fmt.Sprintf("127.0.0.1:%d", p.Port), p.PID(), p.Stop, nil
		}},
	}
	const conns = 20
	figures := map[string][]tlsFigure{}
	for round := range o.rounds {
		for _, sub := range subjects {
			f, err := measureTLS(o, conns, sub.boot)
			if err != nil {
				return fmt.Errorf("%s: %w", sub.name, err)
			}
			figures[sub.name] = append(figures[sub.name], f)
			fmt.Fprintf(os.Stderr, "round %d  %-8s %6.0f TLS 1.3 sessions/s  p99 %-8s %4.0f CPU µs\n", round+1, sub.name, f.rate, f.p99.Round(100*time.Microsecond), f.cpu)
		}
	}
	fmt.Printf("\nMedians of %d rounds of %d sessions over %d connections at once, STARTTLS with full TLS 1.3 handshakes, ECDSA P-256:\n\n", o.rounds, o.tls, conns)
	fmt.Println("| relay | sessions/s | p99 of a session | CPU µs/session |")
	fmt.Println("|---|---|---|---|")
	middle := func(name string, of func(tlsFigure) float64) float64 {
		var v []float64
		for _, f := range figures[name] {
			v = append(v, of(f))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	rate := func(f tlsFigure) float64 { return f.rate }
	for _, sub := range subjects {
		fmt.Printf("| %s | %.0f | %s | %.0f |\n", sub.name, middle(sub.name, rate), ms(middle(sub.name, func(f tlsFigure) float64 { return float64(f.p99) })),
			middle(sub.name, func(f tlsFigure) float64 { return f.cpu }))
	}
	fmt.Printf("\nsessions/s %.1f × Postfix\n", middle("waybill", rate)/middle("postfix", rate))
	return nil
}

func measureTLS(o options, conns int, boot func(string) (string, int, func() error, error)) (f tlsFigure, err error) {
	dir, err := os.MkdirTemp(o.dir, "cell-")
	if err != nil {
		return f, err
	}
	defer func() { _ = os.RemoveAll(dir) }()     // temporary
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // Postfix' own users enter it
		return f, err
	}
	addr, pid, stop, err := boot(dir)
	if err != nil {
		return f, err
	}
	defer func() {
		if stopErr := stop(); err == nil {
			err = stopErr
		}
	}()
	if err := tlsSession(addr); err != nil { // the first one starts processes
		return f, err
	}
	before, began := peers.CPU(pid), time.Now()
	var mu sync.Mutex
	var took []time.Duration
	var next atomic.Int64
	group, ctx := errgroup.WithContext(context.Background())
	for range conns {
		group.Go(func() error {
			for next.Add(1) <= int64(o.tls) && ctx.Err() == nil {
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
	if err := group.Wait(); err != nil {
		return f, err
	}
	all := time.Since(began)
	slices.Sort(took)
	return tlsFigure{
		rate: float64(len(took)) / all.Seconds(), p99: took[len(took)*99/100],
		cpu: float64((peers.CPU(pid) - before).Microseconds()) / float64(len(took)),
	}, nil
}

// tlsSession is one session, from connect to the reply to QUIT.
func tlsSession(addr string) error {
	conn, err := net.Dial("tcp", addr)
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
