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
	dir, err := os.MkdirTemp(o.dir, "idle-")
	if err != nil {
		return err
	}
	dead, err := peers.FreePort()
	if err != nil {
		return err
	}
	port, err := peers.FreePort()
	if err != nil {
		return err
	}
	p, err := startWaybill(o.binary, dir, port, dead, setup{tracking: true})
	if err != nil {
		return err
	}
	defer func() { _ = p.stop() }() // measured
	before, err := peers.RSS(p.cmd.Process.Pid)
	if err != nil {
		return err
	}
	conns, err := openIdle(fmt.Sprintf("127.0.0.1:%d", port), o.idle)
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	if err != nil {
		return err
	}
	time.Sleep(2 * time.Second) // until they are idle
	after, err := peers.RSS(p.cmd.Process.Pid)
	if err != nil {
		return err
	}
	l := &load{addr: fmt.Sprintf("127.0.0.1:%d", port), n: 2000, conns: 20, size: o.size, to: func(i int) string { return fmt.Sprintf("user%d@sink.test", i%1000) }}
	r, err := l.run(nil, 0)
	if err != nil {
		return fmt.Errorf("a sender beside idle sessions: %w", err)
	}
	fmt.Printf("\n%d idle sessions: RSS %d MiB, %d MiB before, %.1f KiB each (target: %d MiB in all); beside them %.0f messages/s accepted, p99 %s\n",
		len(conns), after>>20, before>>20, float64(after-before)/1024/float64(max(1, len(conns))), idleTarget>>20, r.AcceptRate, r.P99.Round(100*time.Microsecond))
	if after > idleTarget {
		return errors.New("more than the target")
	}
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
	return conns, errors.Join(errs...)
}

// hello opens a session and says EHLO.
func hello(addr string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
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
