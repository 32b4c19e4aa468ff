package main

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"waybill/cmd/internal/peers"
)

// drain fills the queues of Waybill and Postfix while the sink is down, opens it,
// lets both try what waits, and measures until the last message is there.
func drain(o options) error {
	rates := map[string][]float64{}
	subjects := o.subjects("waybill", "postfix")
	for round := range o.rounds {
		for _, sub := range subjects {
			rate, err := drainOne(o, sub)
			if err != nil {
				return err
			}
			rates[sub.name] = append(rates[sub.name], rate)
			fmt.Fprintf(os.Stderr, "round %d  %-8s drained at %.0f/s\n", round+1, sub.name, rate)
		}
	}
	fmt.Printf("\nDrain of %d messages of %d octets that were queued while the next hop was down, medians of %d rounds:\n\n", o.n, o.size, o.rounds)
	for _, sub := range subjects {
		fmt.Printf("- %s: %.0f/s\n", sub.name, middle(rates[sub.name]))
	}
	if w, p := rates["waybill"], rates["postfix"]; len(w) > 0 && len(p) > 0 {
		verdict("drain", middle(w) >= 4*middle(p), fmt.Sprintf("%.1f × Postfix, at least 4", middle(w)/middle(p)))
	}
	return nil
}

func drainOne(o options, sub subject) (rate float64, err error) {
	port, err := peers.FreePort()
	if err != nil {
		return 0, err
	}
	err = sub.in(o, port, func(r *running) error {
		l := &load{addr: r.addr, n: o.n, conns: 20, size: o.size, to: sinkUser}
		if _, err := l.run(nil, 0); err != nil {
			return err
		}
		s, err := newSink(local(port))
		if err != nil {
			return err
		}
		defer s.close()
		s.expect(o.n)
		began := time.Now()
		if err := r.kick(); err != nil {
			return err
		}
		arrived, twice, last := s.wait(o.n, 5*time.Minute)
		if arrived < o.n || twice > 0 {
			return fmt.Errorf("%d of %d messages arrived, %d twice", arrived, o.n, twice)
		}
		rate = float64(arrived) / last.Sub(began).Seconds()
		return nil
	})
	return rate, err
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
	fmt.Printf("\nEnd to end, from the final dot at the relay to that at the sink, messages of %d octets, 20 connections, medians of %d rounds:\n\n", o.size, o.rounds)
	fmt.Println("| relay | messages/s | p50 | p99 | p50 of the 250 | p99 |")
	fmt.Println("|---|---|---|---|---|---|")
	for _, step := range []struct {
		rate float64
		most time.Duration
	}{{100, 5 * time.Millisecond}, {1000, 50 * time.Millisecond}} {
		for _, sub := range o.subjects("waybill", "postfix") {
			n := min(o.n, int(10*step.rate))
			var p50, p99, reply50, reply99 []time.Duration
			for range o.rounds {
				err := sub.in(o, s.port(), func(r *running) error {
					warm := &load{addr: r.addr, n: max(20, n/20), conns: 20, size: o.size, to: sinkUser}
					if _, err := warm.run(s, time.Minute); err != nil {
						return err
					}
					l := &load{addr: r.addr, n: n, conns: 20, size: o.size, rate: step.rate, to: sinkUser}
					res, err := l.run(s, 2*time.Minute)
					if err == nil && res.Arrived < n {
						err = fmt.Errorf("%d of %d messages arrived", res.Arrived, n)
					}
					p50, p99 = append(p50, res.E2E50), append(p99, res.E2E99)
					reply50, reply99 = append(reply50, res.P50), append(reply99, res.P99)
					return err
				})
				if err != nil {
					return err
				}
			}
			fmt.Printf("| %s | %.0f | %s | %s | %s | %s |\n", sub.name, step.rate,
				ms(float64(middle(p50))), ms(float64(middle(p99))), ms(float64(middle(reply50))), ms(float64(middle(reply99))))
			if sub.name == "waybill" {
				defer verdict("latency", middle(p99) <= step.most, fmt.Sprintf("p99 at %.0f/s %s, at most %s", step.rate, ms(float64(middle(p99))), ms(float64(step.most))))
			}
		}
	}
	fmt.Println()
	return nil
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
	fmt.Println("\n| relay | PSS idle | at 20 connections |")
	fmt.Println("|---|---|---|")
	for _, sub := range o.subjects("waybill", "waybill-untracked", "postfix") {
		err := sub.in(o, s.port(), func(r *running) error {
			time.Sleep(3 * time.Second) // until it is idle
			idle, err := peers.PSS(r.pid)
			if err != nil {
				return err
			}
			var watch sync.WaitGroup
			end := make(chan struct{})
			var busy []int64
			watch.Go(func() {
				for {
					select {
					case <-end:
						return
					case <-time.After(200 * time.Millisecond):
						if n, err := peers.PSS(r.pid); err == nil {
							busy = append(busy, n)
						}
					}
				}
			})
			l := &load{addr: r.addr, n: sub.n, conns: 20, size: o.size, to: sinkUser}
			_, err = l.run(s, 2*time.Minute)
			close(end)
			watch.Wait()
			if err != nil {
				return err
			}
			top := slices.Max(append(busy, idle))
			fmt.Printf("| %s | %d MiB | %d MiB |\n", sub.name, idle>>20, top>>20)
			if sub.name == "waybill" {
				defer verdict("memory", top <= most, fmt.Sprintf("%d MiB, at most %d", top>>20, most>>20))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
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
	for _, step := range []struct{ size, n int }{{100 << 10, o.n / 5}, {10 << 20, max(20, o.n/400)}} {
		for _, sub := range o.subjects("waybill") {
			var is, can []float64
			appends := 0.0
			if step.size < 1<<20 {
				rate, err := groupedAppends(o.dir, step.size, 20)
				if err != nil {
					return err
				}
				appends = rate * float64(step.size)
			}
			for range o.rounds {
				disk, err := writeRate(o.dir)
				if err != nil {
					return err
				}
				err = sub.in(o, s.port(), func(r *running) error {
					l := &load{addr: r.addr, n: step.n, conns: 20, size: step.size, to: sinkUser}
					res, err := l.run(s, 5*time.Minute)
					if err == nil && res.Arrived < step.n {
						err = fmt.Errorf("%d of %d messages arrived", res.Arrived, step.n)
					}
					is, can = append(is, res.AcceptRate*float64(step.size)), append(can, disk)
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
