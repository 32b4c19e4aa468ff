package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"waybill/cmd/internal/peers"
)

// drain fills the queues of Waybill and Postfix while the sink is down, which
// measures how fast they take messages when that is all they have to do, opens it,
// lets both try what waits, and measures until the last message is there.
func drain(o options) error {
	filled, drained := map[cell][]float64{}, map[cell][]float64{}
	ceiling := map[int][]float64{}
	subjects := o.subjects(aWaybill, aUntracked, aPostfix)
	for round := range o.rounds {
		order := slices.Clone(subjects)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, conns := range connections {
			rate, err := groupedAppends(o.dir, o.size, conns, growing)
			if err != nil {
				return fmt.Errorf("appends to the disk: %w", err)
			}
			ceiling[conns] = append(ceiling[conns], rate)
			syscall.Sync() // the first relay shall not wait for what that has left to do
			time.Sleep(settleMost)
			for _, sub := range order {
				in, out, err := drainOne(o, sub, conns)
				if err != nil {
					return err
				}
				c := cell{sub.name, conns}
				filled[c], drained[c] = append(filled[c], in), append(drained[c], out)
				fmt.Fprintf(os.Stderr, "drain: round %d of %d  %-17s %3d connections: %6.0f/s in, %6.0f/s out (disk: %.0f/s)\n", round+1, o.rounds, sub.name, conns, in, out, rate)
			}
		}
	}
	fmt.Printf("\n%d messages of %d octets, after %d that warm up, are queued while the next hop is down, and all drained once it is there, medians of %d rounds:\n\n", o.n, o.size, o.warm, o.rounds)
	fmt.Println("| relay | connections | taken | drained |")
	fmt.Println("|---|---|---|---|")
	for _, sub := range subjects {
		for _, conns := range connections {
			c := cell{sub.name, conns}
			fmt.Printf("| %s | %d | %.0f/s | %.0f/s |\n", sub.name, conns, middle(filled[c]), middle(drained[c]))
		}
	}
	fmt.Println()
	for _, conns := range connections {
		w, p := cell{aWaybill, conns}, cell{aPostfix, conns}
		if len(filled[w]) == 0 {
			continue
		}
		is, can := middle(filled[w]), middle(ceiling[conns])
		verdict("disk", is >= can/2, fmt.Sprintf("%d connections: %.0f taken/s, the disk takes %.0f grouped appends/s of this size from %d writers: %.2f ×, at least 0.5", conns, is, can, conns, is/can))
		if len(filled[p]) > 0 {
			verdict("taken", is >= 8*middle(filled[p]), fmt.Sprintf("%d connections: %.1f × Postfix, at least 8", conns, is/middle(filled[p])))
			verdict("drain", middle(drained[w]) >= 4*middle(drained[p]), fmt.Sprintf("%d connections: %.1f × Postfix, at least 4", conns, middle(drained[w])/middle(drained[p])))
		}
	}
	return nil
}

// drainOne returns at what rates the relay took messages, and handed them on.
func drainOne(o options, sub subject, conns int) (in, out float64, err error) {
	port, err := peers.FreePort()
	if err != nil {
		return 0, 0, err
	}
	err = sub.in(o, port, func(r *running) error {
		take := func(first, n int) (result, error) {
			return (&load{addr: r.addr, n: n, first: first, conns: conns, size: o.size, auth: sub.auth, to: sinkUser}).run(nil, 0)
		}
		if o.warm > 0 {
			if _, err := take(o.n, o.warm); err != nil {
				return fmt.Errorf("warm up: %w", err)
			}
		}
		taken, err := take(0, o.n)
		if err != nil {
			return err
		}
		in = taken.AcceptRate
		s, err := newSink(local(port))
		if err != nil {
			return err
		}
		defer s.close()
		all := o.n + o.warm
		s.expect(all)
		began := time.Now()
		if err := r.kick(); err != nil {
			return err
		}
		var res result
		var last time.Time
		res.Arrived, res.Twice, last = s.wait(all, 5*time.Minute)
		out = float64(res.Arrived) / last.Sub(began).Seconds()
		return res.complete(all)
	})
	return in, out, err
}

func sinkUser(i int) string { return fmt.Sprintf("user%d@sink.test", i%1000) }

// latency measures how long messages take from one end of the relay to the
// other, at rates far below the highest.
func latency(o options) error {
	s, err := newSink("127.0.0.1:0")
	if err != nil {
		return err
	}
	defer s.close()
	steps := []struct {
		rate float64
		most time.Duration // the target for the p99
	}{{100, 5 * time.Millisecond}, {1000, 50 * time.Millisecond}}
	type row struct {
		relay string
		rate  float64
	}
	found := map[row][]result{}
	subjects := o.subjects(aWaybill, aPostfix)
	for round := range o.rounds {
		for _, step := range steps {
			for _, sub := range subjects {
				res, err := latencyOne(o, s, sub, step.rate)
				if err != nil {
					return err
				}
				found[row{sub.name, step.rate}] = append(found[row{sub.name, step.rate}], res)
				fmt.Fprintf(os.Stderr, "latency: round %d of %d  %-8s %4.0f of %4.0f messages/s: end to end p50 %s  p99 %s\n",
					round+1, o.rounds, sub.name, res.AcceptRate, step.rate, ms(float64(res.E2E50)), ms(float64(res.E2E99)))
			}
		}
	}
	fmt.Printf("\nEnd to end, from the final dot at the relay to that at the sink, messages of %d octets, 20 connections, medians of %d rounds:\n\n", o.size, o.rounds)
	fmt.Println("| relay | messages/s asked for | reached | end to end p50 | p99 | 250 after DATA p50 | p99 |")
	fmt.Println("|---|---|---|---|---|---|---|")
	for _, step := range steps {
		for _, sub := range subjects {
			of := func(get func(result) float64) float64 {
				var v []float64
				for _, res := range found[row{sub.name, step.rate}] {
					v = append(v, get(res))
				}
				return middle(v)
			}
			fmt.Printf("| %s | %.0f | %.0f | %s | %s | %s | %s |\n", sub.name, step.rate, of(func(r result) float64 { return r.AcceptRate }),
				ms(of(func(r result) float64 { return float64(r.E2E50) })), ms(of(func(r result) float64 { return float64(r.E2E99) })),
				ms(of(func(r result) float64 { return float64(r.P50) })), ms(of(func(r result) float64 { return float64(r.P99) })))
		}
	}
	fmt.Println()
	for _, step := range steps {
		var p99 []time.Duration
		for _, res := range found[row{aWaybill, step.rate}] {
			p99 = append(p99, res.E2E99)
		}
		if len(p99) > 0 {
			verdict("latency", middle(p99) <= step.most, fmt.Sprintf("p99 at %.0f/s %s, at most %s", step.rate, ms(float64(middle(p99))), ms(float64(step.most))))
		}
	}
	return nil
}

// latencyOne loads a relay at a rate for ten seconds, or with o.n messages if
// those are fewer.
func latencyOne(o options, s *sink, sub subject, rate float64) (res result, err error) {
	err = sub.in(o, s.port(), func(r *running) error {
		if err := sub.warm(o, s, r, 20); err != nil {
			return err
		}
		l := &load{addr: r.addr, n: min(o.n, int(10*rate)), conns: 20, size: o.size, rate: rate, to: sinkUser}
		if res, err = l.run(s, loadPatience); err != nil {
			return err
		}
		return res.complete(l.n)
	})
	return res, err
}

// memoryInUse measures the proportional set of a relay that has nothing to do,
// and the most of it while 20 connections keep it busy.
func memoryInUse(o options) error {
	const most = 60 << 20
	s, err := newSink("127.0.0.1:0")
	if err != nil {
		return err
	}
	defer s.close()
	type row struct{ idle, top int64 }
	found := map[string]row{}
	subjects := o.subjects(aWaybill, aUntracked, aPostfix)
	for _, sub := range subjects {
		err := sub.in(o, s.port(), func(r *running) error {
			idle, top, err := memoryOne(o, s, sub, r)
			found[sub.name] = row{idle, top}
			return err
		})
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "memory: %-17s %d MiB idle, %d MiB at most\n", sub.name, found[sub.name].idle>>20, found[sub.name].top>>20)
	}
	fmt.Printf("\nProportional set size of one run each: when it has just begun and has nothing to do, and the most while it takes messages of %d octets:\n\n", o.size)
	fmt.Println("| relay | idle | at 20 connections |")
	fmt.Println("|---|---|---|")
	for _, sub := range subjects {
		fmt.Printf("| %s | %d MiB | %d MiB |\n", sub.name, found[sub.name].idle>>20, found[sub.name].top>>20)
	}
	fmt.Println()
	if top := found[aWaybill].top; top > 0 {
		verdict("memory", top <= most, fmt.Sprintf("%d MiB, at most %d", top>>20, most>>20))
	}
	return nil
}

// memoryOne is the proportional set of a relay at rest, and the most of it under load.
func memoryOne(o options, s *sink, sub subject, r *running) (idle, top int64, err error) {
	time.Sleep(3 * time.Second) // until it is idle
	if idle, err = peers.PSS(r.pid); err != nil {
		return 0, 0, err
	}
	var watch sync.WaitGroup
	end := make(chan struct{})
	top = idle
	watch.Go(func() {
		for {
			select {
			case <-end:
				return
			case <-time.After(200 * time.Millisecond):
				if n, err := peers.PSS(r.pid); err == nil {
					top = max(top, n)
				}
			}
		}
	})
	_, err = sub.load(o, s, r, 20, sub.n)
	close(end)
	watch.Wait()
	return idle, top, err
}

// large compares the octets a second of large messages with what the disk takes:
// as one stream with one sync at its end, and, of messages of 100 KiB, as grouped appends, each of
// which is on disk before the next, as a message is before its 250.
func large(o options) error {
	s, err := newSink("127.0.0.1:0")
	if err != nil {
		return err
	}
	defer s.close()
	fmt.Println()
	for _, step := range []struct{ size, n int }{{100 << 10, max(20, o.n/5)}, {10 << 20, max(20, o.n/400)}} {
		for _, sub := range o.subjects(aWaybill) {
			var is, can []float64
			appends := 0.0
			if step.size < 1<<20 {
				rate, err := groupedAppends(o.dir, step.size, 20, written)
				if err != nil {
					return err
				}
				appends = rate * float64(step.size)
			}
			for round := range o.rounds {
				disk, err := writeRate(o.dir)
				if err != nil {
					return err
				}
				err = sub.in(o, s.port(), func(r *running) error {
					if err := sub.warm(o, s, r, 20); err != nil {
						return err
					}
					l := &load{addr: r.addr, n: step.n, conns: 20, size: step.size, to: sinkUser}
					res, err := l.run(s, 5*time.Minute)
					if err == nil {
						err = res.complete(step.n)
					}
					is, can = append(is, res.AcceptRate*float64(step.size)), append(can, disk)
					fmt.Fprintf(os.Stderr, "large: round %d of %d  %5d KiB: %4.0f MiB/s, the disk %4.0f MiB/s\n", round+1, o.rounds, step.size>>10, res.AcceptRate*float64(step.size)/(1<<20), disk/(1<<20))
					return err
				})
				if err != nil {
					return err
				}
			}
			a, b := middle(is), middle(can)
			verdict("large", a >= b/2, fmt.Sprintf("messages of %d KiB over 20 connections: %.0f MiB/s accepted (%.0f/s), the disk writes %.0f MiB/s: %.2f ×, at least 0.5",
				step.size>>10, a/(1<<20), a/float64(step.size), b/(1<<20), a/b))
			if appends > 0 {
				fmt.Printf("         as appends of %d KiB that are grouped by 20 writers the disk takes %.0f MiB/s: %.2f × of that\n", step.size>>10, appends/(1<<20), a/appends)
			}
		}
	}
	return nil
}

// longQueue fills the queue while the next hop is down, and restarts.
func longQueue(o options) (err error) {
	dir, err := os.MkdirTemp(o.dir, "queue-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // temporary, and large
	dead, err := peers.FreePort()
	if err != nil {
		return err
	}
	port, err := peers.FreePort()
	if err != nil {
		return err
	}
	p, err := startWaybill(o, dir, port, dead, setup{tracking: true})
	if err != nil {
		return err
	}
	defer func() { _ = p.cmd.Process.Kill() }() // does nothing when it has ended
	fmt.Fprintf(os.Stderr, "queue: %d messages for a next hop that is down\n", o.queued)
	l := &load{addr: local(port), n: o.queued, conns: 20, size: o.size, to: func(i int) string { return fmt.Sprintf("user%d@domain%d.test", i, i%1000) }}
	r, err := l.run(nil, 0)
	if err != nil {
		return err
	}
	full, err := peers.RSS(p.cmd.Process.Pid)
	if err != nil {
		return err
	}
	if err := p.stop(); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	began := time.Now()
	again, err := startWaybill(o, dir, port, dead, setup{tracking: true})
	if err != nil {
		return fmt.Errorf("restart: %w", err)
	}
	defer func() { err = errors.Join(err, again.stop()) }()
	ready := time.Since(began)
	rss, err := peers.RSS(again.cmd.Process.Pid)
	if err != nil {
		return err
	}
	fmt.Printf("\n%d messages of %d octets queued for a next hop that is down: accepted %.0f/s, RSS %d MiB; restart to ready %s, RSS %d MiB\n",
		r.Accepted, o.size, r.AcceptRate, full>>20, ready.Round(10*time.Millisecond), rss>>20)
	return nil
}
