//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"waybill/relay/deliver"
	"waybill/relay/mail"
	"waybill/relay/queue"
	"waybill/relay/relaytest"
	"waybill/relay/route"
	"waybill/relay/smtpout"
)

// byDomain sends each domain through the connector that its first letters name.
type byDomain struct{}

// Route makes a next hop of every domain.
func (byDomain) Route(q route.Query) route.Decision {
	domain := q.Recipient.DomainKey()
	connector := "internet"
	if strings.HasPrefix(domain, "dead") {
		connector = "dead"
	}
	return route.Decision{Hop: route.Hop{Connector: connector, Name: domain}, Connector: &route.Connector{Name: connector}, Space: "*"}
}

// TestStarvation has 100,000 messages for a destination that refuses every
// connection, and ten for each of 1,200 that take the connection and never say a
// word: more than the connector has connections, and more than there are places. A
// message for a destination that answers goes through as ever, by the same
// connector. It runs queue, scheduler and connectors on real sockets, without the
// program around them: next hops by MX need a port of their own here.
func TestStarvation(t *testing.T) {
	const (
		dead    = 100_000
		hanging = 1200
		bound   = 3 * time.Second // 250 ms by design, and a machine that does all of this at once
	)
	var mu sync.Mutex
	came := map[string]time.Time{}
	silent, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	at := netip.MustParseAddrPort(silent.Addr().String()).Port()
	sink, err := relaytest.StartSmartHost(fmt.Sprintf("127.0.0.1:%d", at), relaytest.WithKeep(10), relaytest.WithBehaviour(func(phase, arg string) (string, time.Duration, bool) {
		if _, to, ok := strings.Cut(phase, relaytest.PhaseRcpt+" "); ok {
			mu.Lock()
			defer mu.Unlock()
			came[to] = time.Now()
		} else if phase == relaytest.PhaseRcpt {
			mu.Lock()
			defer mu.Unlock()
			_, to, _ := strings.Cut(arg, "<")
			to, _, _ = strings.Cut(to, ">")
			came[to] = time.Now()
		}
		return "", 0, false
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	var held, most atomic.Int64
	go func() {
		for {
			c, err := silent.Accept()
			if err != nil {
				return
			}
			most.Store(max(most.Load(), held.Add(1)))
			go func() { // until the relay gives up
				_, _ = c.Read(make([]byte, 1))
				_ = c.Close()
				held.Add(-1)
			}()
		}
	}()
	names := &relaytest.Resolver{}
	for i := range hanging {
		names.SetMX(fmt.Sprintf("hang%d.test", i), "silent.test")
	}
	names.SetMX("sink.test", "sink-host.test")
	names.SetAddrs("silent.test", "127.0.0.2")
	names.SetAddrs("sink-host.test", "127.0.0.1")

	connectors := map[string]deliver.Connector{}
	for _, opts := range []smtpout.Options{
		{Name: "internet", Resolver: names, Port: at, Timeouts: smtpout.Timeouts{Greeting: time.Minute}},
		{Name: "dead", SmartHosts: []route.SmartHost{{Host: "127.0.0.1", Port: uint16(port(t))}}},
	} {
		opts.Hostname, opts.TLS, opts.AllowLoopback = "relay.test", smtpout.TLSNone, true
		out, err := smtpout.New(opts)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		connectors[opts.Name] = deliver.Connector{Attempter: out}
	}
	var sched *deliver.Scheduler
	q, err := queue.Open(queue.Options{
		Dir: t.TempDir(), Router: byDomain{}, NoSync: true, DiskFreeMin: 1,
		Concurrency: func(hop route.Hop) int { return sched.Concurrency(hop) },
	})
	if err != nil {
		t.Fatal(err)
	}
	sched = deliver.New(deliver.Options{
		Queue: deliver.FromQueue(q), Hostname: "relay.test", DrainTimeout: time.Second,
		Connectors: func(name string) (deliver.Connector, bool) { c, ok := connectors[name]; return c, ok },
	})
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{q.Run, sched.Run} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	defer func() {
		stop()
		running.Wait()
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	}()
	put := func(to string) {
		rcpt, err := mail.ParseAddress(to)
		if err != nil {
			t.Error(err)
			return
		}
		d := mail.Draft{}
		d.Envelope.Sender = mail.Address{Local: "a", Domain: "starve.test"}
		d.Envelope.Recipients = []mail.Recipient{{Address: rcpt}}
		if err := q.Put(t.Context(), d, []byte("Subject: x\r\n\r\nx\r\n")); err != nil {
			t.Error(err)
		}
	}
	many := func(n int, to func(i int) string) {
		var next atomic.Int64
		var senders sync.WaitGroup
		for range 16 {
			senders.Go(func() {
				for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
					put(to(i - 1))
				}
			})
		}
		senders.Wait()
	}
	probe := func(name string) time.Duration {
		t.Helper()
		began := time.Now()
		put(name + "@sink.test")
		var when time.Time
		for when.IsZero() && time.Since(began) < time.Minute {
			<-time.After(5 * time.Millisecond)
			mu.Lock()
			when = came[name+"@sink.test"]
			mu.Unlock()
		}
		if when.IsZero() {
			t.Fatalf("%s has not come within a minute; %d connections hang", name, held.Load())
		}
		return when.Sub(began)
	}
	probe("first")
	many(dead, func(int) string { return "bob@dead.test" })
	many(10*hanging, func(i int) string { return fmt.Sprintf("bob@hang%d.test", i%hanging) })
	eventually(t, time.Minute, "hosts that hang", func() error {
		if n := held.Load(); n < 500 {
			return fmt.Errorf("%d connections hang", n)
		}
		return nil
	})
	var took []time.Duration
	for i := range 60 {
		took = append(took, probe(fmt.Sprintf("fresh%d", i)))
		<-time.After(200 * time.Millisecond)
	}
	slices.Sort(took)
	t.Logf("%d messages for a dead destination, %d destinations that hang, %d connections to them at once: 60 fresh messages took %s at the median, %s at most",
		dead, hanging, most.Load(), took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	if worst := took[len(took)-1]; worst > bound {
		t.Errorf("a fresh message took %s, want at most %s", worst, bound)
	}
	if n := most.Load(); n > 750+16 {
		t.Errorf("%d connections to hosts that hang, want three quarters of the connector's 1000 at most", n)
	}
	if got, want := q.Levels().Messages, dead+10*hanging; got != want {
		t.Errorf("%d messages are queued, want %d", got, want)
	}
}
