package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"waybill/cmd/internal/peers"
	"waybill/relay/mail"
	"waybill/relay/queue"
	"waybill/relay/route"
)

// Targets of the part million.
const (
	millionRSS   = 1 << 30
	millionReady = 15 * time.Second
	millionShare = 0.8 // of the accept rate of an empty queue
)

// million fills the queue with messages for many destinations that are dead,
// and measures what that costs: memory, the time of a restart, and the rate at
// which more is accepted, against a relay with an empty queue in the same run.
//
// Every destination is a next hop of its own, by MX; a name server of our own
// answers SERVFAIL for all of them, so that nothing leaves the machine.
func million(o options) error {
	dir, err := os.MkdirTemp(o.dir, "million-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // temporary, and large
	names, stop, err := deadNames()
	if err != nil {
		return err
	}
	defer stop()
	port, err := peers.FreePort()
	if err != nil {
		return err
	}
	set := setup{tracking: true, names: names}
	to := func(i int) string { return fmt.Sprintf("user%d@d%d.test", i, i%o.destinations) }
	began := time.Now()
	var full memory
	if o.direct {
		err = fillFiles(o, filepath.Join(dir, "data", "queue"), to)
	} else {
		full, err = fillRelay(o, dir, port, set, to)
	}
	if err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	filled := time.Since(began)
	syscall.Sync() // what is still to be written would be in the way of what is measured
	used := diskUse(dir)
	start := time.Now()
	p, err := startWaybill(o, dir, port, 0, set)
	if err != nil {
		return err
	}
	defer func() { _ = p.cmd.Process.Kill() }() // does nothing when it has ended
	ready := time.Since(start)
	again, err := memoryOf(p.cmd.Process.Pid)
	if err != nil {
		return err
	}
	trying, resting, rested, err := beside(o, p, port, set)
	if err != nil {
		return err
	}
	after, err := memoryOf(p.cmd.Process.Pid)
	if err != nil {
		return err
	}
	if err := p.stop(); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	rss := max(full.rss, again.rss, after.rss)
	fmt.Printf("\n%d messages of %d octets queued for %d destinations that are dead, in %s; %d MiB on disk:\n\n", o.million, o.millionSize, o.destinations, filled.Round(time.Second), used>>20)
	fmt.Println("| | RSS | anonymous | files | peak |")
	fmt.Println("|---|---|---|---|---|")
	for _, row := range []struct {
		name string
		m    memory
	}{{"full", full}, {"restarted", again}, {"after more was accepted", after}} {
		if row.m.rss == 0 {
			continue // not measured
		}
		fmt.Printf("| %s | %d MiB | %d MiB | %d MiB | %d MiB |\n", row.name, row.m.rss>>20, row.m.anon>>20, row.m.file>>20, row.m.peak>>20)
	}
	fmt.Printf("\nrestart to ready %s; accepted while dead destinations are tried: %s; after that: %s\n", ready.Round(10*time.Millisecond), trying, resting)
	fmt.Printf("the full relay rested after %s; the empty one after %s\n", rested[0], rested[1])
	verdict("RSS", rss <= millionRSS, fmt.Sprintf("%d MiB, at most %d", rss>>20, millionRSS>>20))
	verdict("restart", ready <= millionReady, fmt.Sprintf("%s, at most %s", ready.Round(10*time.Millisecond), millionReady))
	for _, row := range []struct {
		when string
		r    rates
	}{{"while destinations are tried", trying}, {"at rest", resting}} {
		verdict("accept rate", row.r.share() >= millionShare, fmt.Sprintf("%s %.2f × that of an empty queue, at least %.2f", row.when, row.r.share(), millionShare))
	}
	return nil
}

// fillRelay fills a relay by SMTP, stops it, and says what memory it took.
func fillRelay(o options, dir string, port int, set setup, to func(int) string) (full memory, err error) {
	p, err := startWaybill(o, dir, port, 0, set)
	if err != nil {
		return full, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	for done := 0; done < o.million; {
		part := min(50_000, o.million-done)
		first := done
		l := &load{addr: local(port), n: part, conns: 50, size: o.millionSize, to: func(i int) string { return to(first + i) }}
		r, err := l.run(nil, 0)
		if err != nil {
			return full, err
		}
		done += part
		if full, err = memoryOf(p.cmd.Process.Pid); err != nil {
			return full, err
		}
		fmt.Fprintf(os.Stderr, "%8d queued: %6.0f accepted/s, p99 %s, RSS %d MiB (anonymous %d, files %d)\n",
			done, r.AcceptRate, r.P99.Round(100*time.Microsecond), full.rss>>20, full.anon>>20, full.file>>20)
	}
	return full, nil
}

// byDomain routes as the relay of this part does.
type byDomain struct{}

// Route makes a next hop of every domain.
func (byDomain) Route(q route.Query) route.Decision {
	return route.Decision{Hop: route.Hop{Connector: "sink", Name: q.Recipient.DomainKey()}, Space: "*"}
}

// fillFiles makes the queue that a relay would have, without syncs.
func fillFiles(o options, dir string, to func(int) string) (err error) {
	q, err := queue.Open(queue.Options{Dir: dir, Router: byDomain{}, NoSync: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.Close()) }()
	body := content(o.millionSize)
	body = body[:len(body)-len(".\r\n")]
	var next atomic.Int64
	group, ctx := errgroup.WithContext(context.Background())
	for range 64 {
		group.Go(func() error {
			for i := int(next.Add(1) - 1); i < o.million; i = int(next.Add(1) - 1) {
				rcpt, err := mail.ParseAddress(to(i))
				if err != nil {
					return err
				}
				now := time.Now()
				id := mail.QueueID(mail.NewID(now))
				d := mail.Draft{ID: id, UID: mail.NewUID(now)}
				d.Envelope.Sender = mail.Address{Local: "bench", Domain: "bench.test"}
				d.Envelope.Recipients = []mail.Recipient{{Address: rcpt}}
				d.Origin = mail.Origin{
					Session: mail.NewID(now), Connector: "in", Client: netip.MustParseAddrPort("127.0.0.1:54321"), Helo: "bench.test",
					Protocol: "ESMTP", MailAt: now, DataEndedAt: now,
				}
				d.Header = mail.Header{MessageID: "<00000000.bench@bench.test>", From: "bench@bench.test", Subject: "bench", Bytes: 140}
				d.Trace = fmt.Appendf(nil, "Received: from bench.test ([127.0.0.1])\r\n\tby relay.test with ESMTP id %s\r\n\tfor <%s>;\r\n\t%s\r\n", id, to(i), now.Format(time.RFC1123Z))
				if err := q.Put(ctx, d, body); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// rates are accept rates of a full queue and of an empty one, a second.
type rates struct{ full, empty []float64 }

func (r rates) share() float64 { return middle(r.full) / middle(r.empty) }

func (r rates) String() string {
	return fmt.Sprintf("%.0f/s with a full queue, %.0f/s with an empty one: %.2f ×", middle(r.full), middle(r.empty), r.share())
}

// beside measures the accept rate of the full relay p against that of a fresh
// one; the one that is not measured is stopped. Trying is while destinations are
// tried: those that waited after the start of the full relay, those that mail
// comes for in the fresh one. Resting are alternating rounds after that, when
// both know that all are dead and have come to rest.
func beside(o options, p *process, port int, set setup) (trying, resting rates, rested [2]rest, err error) {
	take := func(port, n, round int) (float64, error) {
		l := &load{addr: local(port), n: n, conns: 50, size: o.millionSize, to: func(i int) string { return fmt.Sprintf("more%d.%d@d%d.test", round, i, i%o.destinations) }}
		r, err := l.run(nil, 0)
		return r.AcceptRate, err
	}
	add := func(to *[]float64, p *process, port, n, round int) error {
		r, err := take(port, n, round)
		*to = append(*to, r)
		return err
	}
	if err := add(&trying.full, p, port, o.n, 0); err != nil {
		return trying, resting, rested, fmt.Errorf("accept with a full queue: %w", err)
	}
	rested[0] = p.rest()
	stop := func(p *process, stopped bool) error {
		if stopped {
			return p.cmd.Process.Signal(syscall.SIGSTOP)
		}
		return p.cmd.Process.Signal(syscall.SIGCONT)
	}
	err = stop(p, true)
	if err != nil {
		return trying, resting, rested, err
	}
	err = fresh(o, set, func(other *process, otherPort int) error {
		// Each destination is tried once.
		if err := add(&trying.empty, other, otherPort, max(o.n, o.destinations), 0); err != nil {
			return fmt.Errorf("accept with an empty queue: %w", err)
		}
		rested[1] = other.rest()
		for round := 1; round <= o.rounds; round++ {
			if err := errors.Join(stop(other, true), stop(p, false)); err != nil {
				return err
			}
			if err := add(&resting.full, p, port, o.n, round); err != nil {
				return fmt.Errorf("accept with a full queue: %w", err)
			}
			if err := errors.Join(stop(p, true), stop(other, false)); err != nil {
				return err
			}
			if err := add(&resting.empty, other, otherPort, o.n, round); err != nil {
				return fmt.Errorf("accept with an empty queue: %w", err)
			}
			fmt.Fprintf(os.Stderr, "round %d: full %.0f/s, empty %.0f/s\n", round, resting.full[round-1], resting.empty[round-1])
		}
		return nil
	})
	return trying, resting, rested, errors.Join(err, stop(p, false))
}

// A relay rests when it takes less than restShare of a processor for restFor: dead
// destinations go on being probed, one message each. It may take restMost until then.
const (
	restShare = 0.25
	restFor   = 5 * time.Second
	restMost  = 5 * time.Minute
)

// rest is how a relay came to rest.
type rest struct {
	waited time.Duration
	share  float64 // of a processor that it takes still
}

// String says it.
func (r rest) String() string {
	return fmt.Sprintf("%s, until it took %.2f of a processor", r.waited.Round(time.Second), r.share)
}

// rest waits until p rests. One that never does is measured as it is, and said to be.
func (p *process) rest() rest {
	began, was := time.Now(), peers.CPU(p.cmd.Process.Pid)
	for at := began; ; {
		time.Sleep(restFor)
		now, cpu := time.Now(), peers.CPU(p.cmd.Process.Pid)
		r := rest{now.Sub(began), (cpu - was).Seconds() / now.Sub(at).Seconds()}
		if r.share < restShare || r.waited >= restMost {
			return r
		}
		was, at = cpu, now
	}
}

// fresh does something with a relay whose queue is empty.
func fresh(o options, set setup, do func(p *process, port int) error) (err error) {
	dir, err := os.MkdirTemp(o.dir, "fresh-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // temporary
	port, err := peers.FreePort()
	if err != nil {
		return err
	}
	p, err := startWaybill(o, dir, port, 0, set)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, p.cmd.Process.Signal(syscall.SIGCONT), p.stop()) // it may be stopped
	}()
	return do(p, port)
}

// deadNames starts a name server that fails for every name.
func deadNames() (addr string, stop func(), err error) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	s := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)) // who gets no answer fails too
	})}
	go func() { _ = s.ActivateAndServe() }() // ends with stop
	return conn.LocalAddr().String(), func() { _ = s.Shutdown() }, nil
}

func local(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// memory is what a process has in memory, in octets.
type memory struct {
	rss, anon, file int64
	peak            int64 // of rss
	pss             int64
}

func memoryOf(pid int) (m memory, err error) {
	err = peers.ProcFields(fmt.Sprintf("/proc/%d/status", pid), map[string]*int64{"VmRSS": &m.rss, "RssAnon": &m.anon, "RssFile": &m.file, "VmHWM": &m.peak})
	if err == nil {
		err = peers.ProcFields(fmt.Sprintf("/proc/%d/smaps_rollup", pid), map[string]*int64{"Pss": &m.pss})
	}
	return m, err
}

// diskUse is how many octets the files below dir take on the disk.
func diskUse(dir string) (octets int64) {
	_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error { //nolint:gosec // our own folder; files that go meanwhile do not count
		if err != nil {
			return nil //nolint:nilerr // it is gone
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				octets += st.Blocks * 512
			}
		}
		return nil
	})
	return octets
}
