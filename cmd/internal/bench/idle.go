package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"waybill/cmd/internal/peers"
)

// idleTarget is the most that idle sessions may cost.
const idleTarget = 400 << 20

// idleConnections measures what sessions cost that said EHLO and nothing more,
// and whether a sender still gets through beside them.
func idleConnections(o options) error {
	if o.idle == 0 {
		return nil // it was asked to be left out
	}
	dead, err := peers.FreePort()
	if err != nil {
		return err
	}
	return o.waybill(aWaybill, setup{tracking: true}).in(o, dead, func(r *running) error { return idleBeside(o, r) })
}

// idleBeside is what idleConnections finds of one relay.
func idleBeside(o options, r *running) error {
	fmt.Fprintf(os.Stderr, "idle: %d sessions\n", o.idle)
	time.Sleep(2 * time.Second) // until its start is over
	before, err := peers.RSS(r.pid)
	if err != nil {
		return err
	}
	conns, err := openIdle(r.addr, o.idle)
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	if err != nil {
		return err
	}
	time.Sleep(2 * time.Second) // until they are idle
	after, err := peers.RSS(r.pid)
	if err != nil {
		return err
	}
	l := &load{addr: r.addr, n: 2000, conns: 20, size: o.size, to: sinkUser}
	res, err := l.run(nil, 0)
	if err != nil {
		return fmt.Errorf("a sender beside idle sessions: %w", err)
	}
	fmt.Printf("\n%d idle sessions: RSS %d MiB, %d MiB before, %.1f KiB each; beside them %.0f messages/s accepted, p99 of 250 after DATA %s\n",
		len(conns), after>>20, before>>20, float64(after-before)/1024/float64(len(conns)), res.AcceptRate, ms(float64(res.P99)))
	verdict("idle", after <= idleTarget, fmt.Sprintf("%d MiB, at most %d", after>>20, idleTarget>>20))
	return nil
}

// openIdle opens n sessions as far as EHLO.
func openIdle(addr string, n int) ([]net.Conn, error) {
	var mu sync.Mutex
	var conns []net.Conn
	var errs []error
	var wg sync.WaitGroup
	const openers = 50
	for i := range openers {
		wg.Go(func() {
			for range (n + openers - 1 - i) / openers {
				c, err := hello(addr)
				mu.Lock()
				if err != nil {
					errs = append(errs, err)
					mu.Unlock()
					return
				}
				conns = append(conns, c)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(errs) > 0 {
		return conns, fmt.Errorf("%d of %d sessions are open: %w (hint: ulimit -n)", len(conns), n, errs[0])
	}
	return conns, nil
}

// hello opens a session and says EHLO.
func hello(addr string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second) //nolint:gosec // the relay that we started
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(30 * time.Second)) // fails only on a closed connection
	_, err = c.Write([]byte("EHLO idle.test\r\n"))
	r := bufio.NewReaderSize(c, 512)
	for err == nil {
		var line string
		line, err = r.ReadString('\n')
		switch {
		case strings.HasPrefix(line, "250 "):
			return c, nil
		case strings.HasPrefix(line, "4"), strings.HasPrefix(line, "5"):
			err = errors.New(strings.TrimSpace(line))
		}
	}
	_ = c.Close() // it is of no use
	return nil, err
}
