package deliver_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"waybill/relay/deliver"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/queue"
	"waybill/relay/relaytest"
	"waybill/relay/route"
	"waybill/relay/smtpout"
)

// villain is a next hop that knows no manners: what it says is written by hand.
type villain struct {
	net.Conn
	r *bufio.Reader
}

// say writes s as it is.
func (v *villain) say(s string) { _, _ = io.WriteString(v.Conn, s) }

// hear reads a line, and reports whether there was one.
func (v *villain) hear() bool {
	_, err := v.r.ReadString('\n')
	return err == nil
}

// stay reads whatever comes until the relay has had enough.
func (v *villain) stay() { _, _ = io.Copy(io.Discard, v.r) }

// flood writes s until the relay has had enough.
func (v *villain) flood(s string) {
	s = strings.Repeat(s, 4000/len(s))
	for {
		if _, err := io.WriteString(v.Conn, s); err != nil {
			return
		}
	}
}

// drip writes s an octet at a time, again and again, until the relay has had enough.
func (v *villain) drip(s string) {
	tick := time.NewTicker(200 * time.Millisecond) // not too much for a reply before time is over
	defer tick.Stop()
	for i := 0; ; i++ {
		if _, err := v.Write([]byte{s[i%len(s)]}); err != nil {
			return
		}
		<-tick.C
	}
}

// polite answers commands with replies, in turn, beginning with the greeting.
func (v *villain) polite(replies ...string) {
	for i, reply := range replies {
		if i > 0 && !v.hear() {
			return
		}
		v.say(reply)
	}
}

// content reads up to the final dot.
func (v *villain) content() {
	for {
		line, err := v.r.ReadString('\n')
		if err != nil || line == ".\r\n" {
			return
		}
	}
}

const (
	hi   = "220 hello\r\n"
	ok   = "250 2.0.0 ok\r\n"
	ehlo = "250-next\r\n250 8BITMIME\r\n"
	pipe = "250-next\r\n250 PIPELINING\r\n"
	sts  = "250-next\r\n250 STARTTLS\r\n"
	send = "354 go on\r\n"
)

// newVillain listens on loopback and lets serve speak on each connection.
func newVillain(t *testing.T, serve func(v *villain)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			wg.Go(func() {
				serve(&villain{conn, bufio.NewReader(conn)})
				_ = conn.Close()
				mu.Lock()
				delete(open, conn)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// street is a relay with many next hops: a queue, a scheduler, and a send
// connector for each.
type street struct {
	rig
	connectors map[string]deliver.Connector
	routes     []route.Connector
}

func newStreet(t *testing.T) *street {
	t.Helper()
	return &street{rig: rig{t: t, rec: &relaytest.Recorder{}}, connectors: map[string]deliver.Connector{}}
}

// house adds a next hop for the domain name.
func (s *street) house(name string, at netip.AddrPort, level smtpout.TLSLevel, to smtpout.Timeouts) {
	s.t.Helper()
	hosts := []route.SmartHost{{Host: at.Addr().Unmap().String(), Port: at.Port()}}
	out, err := smtpout.New(smtpout.Options{
		Name: name, Hostname: "mx1.example.net", SmartHosts: hosts, TLS: level, Emitter: s.rec.Emitter(), Timeouts: to,
		Limits: smtpout.Limits{MessagesPerConnection: 1},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = out.Close() })
	s.connectors[name] = deliver.Connector{Attempter: out, Retry: deliver.Retry{Schedule: []time.Duration{time.Hour}}}
	s.routes = append(s.routes, route.Connector{Name: name, Spaces: []route.Space{{Pattern: name}}, SmartHosts: hosts})
}

// run opens the queue and runs the relay until the test ends.
func (s *street) run() {
	s.t.Helper()
	table, err := route.New(s.routes)
	if err != nil {
		s.t.Fatal(err)
	}
	s.queue, err = queue.Open(queue.Options{
		Dir: s.t.TempDir(), Router: table, Emitter: s.rec.Emitter(), NoSync: true, DiskFreeMin: 1,
		Concurrency: func(hop route.Hop) int { return s.sched.Concurrency(hop) },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.sched = deliver.New(deliver.Options{
		Queue: deliver.FromQueue(s.queue), Hostname: "mx1.example.net", Emitter: s.rec.Emitter(), DrainTimeout: 10 * time.Millisecond,
		Connectors: func(name string) (deliver.Connector, bool) { c, ok := s.connectors[name]; return c, ok },
	})
	ctx, cancel := context.WithCancel(context.Background())
	delivering, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	stopped := make(chan struct{})
	wg.Go(func() { _ = s.queue.Run(ctx) })
	wg.Go(func() {
		defer close(stopped)
		_ = s.sched.Run(delivering)
	})
	s.t.Cleanup(func() {
		stop()
		<-stopped
		cancel()
		wg.Wait()
		if err := s.queue.Close(); err != nil {
			s.t.Error(err)
		}
	})
}

// TestHostileNextHops has a relay deliver to next hops that misbehave in every
// way that we could think of, all at once. Each must end as the right failure,
// in bounded time and with bounded input; and a next hop that behaves is served
// all the while, beside many that never answer at all.
func TestHostileNextHops(t *testing.T) {
	t.Parallel()
	const lost = "deferred 451 4.4.2 connect"
	const late = "deferred 451 4.4.2 timeout"
	const rude = "deferred 451 4.5.0 other"
	garbage := strings.Repeat("\x15\x03\xff\x00\xfe", 2000)
	tests := []struct {
		name  string
		serve func(v *villain)
		tls   smtpout.TLSLevel
		want  string // the outcome of the first attempt: disposition, code, class, and where it is unsure
	}{
		{"silence", func(v *villain) { v.stay() }, "", late + " at CONNECT"},
		{"closed at once", func(*villain) {}, "", lost + " at CONNECT"},
		{"greeting without end", func(v *villain) { v.flood("220-more\r\n") }, "", rude + " at CONNECT"},
		{"greeting is one endless line", func(v *villain) { v.flood("220 and so on and so on ") }, "", rude + " at CONNECT"},
		{"greeting of NULs", func(v *villain) { v.flood("\x00\x00\x00\x00") }, "", rude + " at CONNECT"},
		{"greeting drips", func(v *villain) { v.drip("220-slow\r\n") }, "", late + " at CONNECT"},
		{"greeting is a web page", func(v *villain) { v.say("HTTP/1.1 400 Bad Request\r\n\r\n"); v.stay() }, "", rude + " at CONNECT"},
		{"greeting of TLS", func(v *villain) { v.say(garbage); v.stay() }, "", late + " at CONNECT"},
		{"greeting 1xx", func(v *villain) { v.say("120 soon\r\n"); v.stay() }, "", rude + " at CONNECT"},
		{"greeting 9xx", func(v *villain) { v.say("999 never\r\n"); v.stay() }, "", rude + " at CONNECT"},
		{"greeting 421", func(v *villain) { v.say("421 4.3.2 too busy\r\n") }, "", "deferred 421 4.3.2 throttled at CONNECT"},
		{"greeting 554", func(v *villain) { v.say("554 go away\r\n"); v.stay() }, "", "deferred 554 reputation at CONNECT"},
		{"greeting 354", func(v *villain) { v.say(send); v.stay() }, "", "deferred 354 other at CONNECT"},
		{"greeting without text", func(v *villain) {
			v.polite("220\r\n", ehlo, "250\r\n", "250\r\n", "354\r\n")
			v.content()
			v.say("250\r\n")
			v.stay()
		}, "", "relayed 250"},
		{"reply before EHLO", func(v *villain) { v.say(hi + ehlo); v.stay() }, "", rude + " at EHLO"},
		{"replies to everything at once", func(v *villain) { v.say(hi + ehlo + ok + ok + send + ok); v.stay() }, "", rude + " at EHLO"},
		{"says that it closes before it is asked", func(v *villain) { v.say(hi + "421 4.3.2 closing\r\n"); v.stay() }, "", "deferred 421 4.3.2 throttled at EHLO"},
		{"EHLO without end", func(v *villain) { v.polite(hi, ""); v.flood("250-AUTH PLAIN\r\n") }, "", rude + " at EHLO"},
		{"EHLO list of 5000", func(v *villain) {
			v.polite(hi, strings.Repeat("250-X-EXTENSION\r\n", 5000)+"250 SIZE\r\n")
			v.stay()
		}, "", rude + " at EHLO"},
		{"EHLO offers of control characters", func(v *villain) {
			v.polite(hi, "250-\x00\x1b[2J\r\n250-SIZE 99999999999999999999\r\n250-LIMITS RCPTMAX=-1 MAILMAX=x\r\n250 AUTH \xff\r\n", ok, ok, send)
			v.content()
			v.say(ok)
			v.stay()
		}, "", "relayed 250 2.0.0"},
		{"EHLO drips", func(v *villain) { v.polite(hi, ""); v.drip("250-SIZE\r\n") }, "", late + " at EHLO"},
		{"closed at EHLO", func(v *villain) { v.polite(hi); v.hear() }, "", lost + " at EHLO"},
		{"EHLO 354", func(v *villain) { v.polite(hi, send); v.stay() }, "", "deferred 354 other at EHLO"},

		{"STARTTLS with plaintext behind it", func(v *villain) { v.polite(hi, sts, "220 go\r\n250 injected\r\n"); v.stay() }, smtpout.TLSEncrypt, "deferred 451 4.7.5 tls at STARTTLS"},
		{"STARTTLS answered twice", func(v *villain) { v.polite(hi, sts+"220 go\r\n"); v.stay() }, smtpout.TLSEncrypt, rude + " at STARTTLS"},
		{"TLS garbage", func(v *villain) { v.polite(hi, sts, "220 go\r\n"); v.hear(); v.say(garbage); v.stay() }, smtpout.TLSEncrypt, "deferred 451 4.7.5 tls at STARTTLS"},
		{"TLS silence", func(v *villain) { v.polite(hi, sts, "220 go\r\n"); v.stay() }, smtpout.TLSEncrypt, "deferred 451 4.7.5 tls at STARTTLS"},
		{"TLS records without end", func(v *villain) {
			v.polite(hi, sts, "220 go\r\n")
			v.hear()
			v.flood("\x16\x03\x03\x00\x04\x00\x00\x00\x00")
		}, smtpout.TLSEncrypt, "deferred 451 4.7.5 tls at STARTTLS"},
		{"STARTTLS refused with 5xx, and required", func(v *villain) { v.polite(hi, sts, "554 5.7.3 no\r\n"); v.stay() }, smtpout.TLSEncrypt, "deferred 554 5.7.3 tls at STARTTLS"},

		{"closed at MAIL", func(v *villain) { v.polite(hi, ehlo); v.hear() }, "", lost + " at MAIL"},
		{"MAIL drips", func(v *villain) { v.polite(hi, ehlo, ""); v.drip("250-x\r\n") }, "", late + " at MAIL"},
		{"MAIL 220", func(v *villain) { v.polite(hi, ehlo, "354 what\r\n"); v.stay() }, "", "deferred 354 other at MAIL"},
		{"MAIL answered twice", func(v *villain) { v.polite(hi, ehlo, ok+ok); v.stay() }, "", rude + " at RCPT"},
		{"closed at RCPT", func(v *villain) { v.polite(hi, ehlo, ok); v.hear() }, "", lost + " at RCPT"},
		{"RCPT line without end", func(v *villain) { v.polite(hi, ehlo, ok, ""); v.flood("550 no and ") }, "", rude + " at RCPT"},
		{"RCPT answered in control characters", func(v *villain) { v.polite(hi, ehlo, ok, "450 4.2.1 \x00\x1b[31m\xff\u202egnp\r\n"); v.stay() }, "", "deferred 450 4.2.1 mailbox_inactive at RCPT"},
		{"RCPT answered twice", func(v *villain) { v.polite(hi, ehlo, ok, ok+ok); v.stay() }, "", rude + " at DATA"},
		{"closed at DATA", func(v *villain) { v.polite(hi, ehlo, ok, ok); v.hear() }, "", lost + " at DATA"},
		{"pipelining out of order", func(v *villain) { v.polite(hi, pipe); v.hear(); v.say(send + ok + ok); v.stay() }, "", "deferred 354 other at MAIL"},
		{"pipelining with a reply left over", func(v *villain) {
			v.polite(hi, pipe)
			v.hear()
			v.say(ok + ok + send + ok)
			v.content()
			v.stay()
		}, "", rude + " at . uncertain"},
		{"pipelining, and one reply for all", func(v *villain) { v.polite(hi, pipe); v.hear(); v.say(ok); v.stay() }, "", late + " at RCPT"},

		{"354 and then silence", func(v *villain) { v.polite(hi, ehlo, ok, ok, send); v.stay() }, "", late + " at . uncertain"},
		{"354 and then closed", func(v *villain) { v.polite(hi, ehlo, ok, ok, send); v.hear() }, "", lost + " at . uncertain"},
		{"250 before the final dot", func(v *villain) { v.polite(hi, ehlo, ok, ok, send+ok); v.stay() }, "", rude + " at . uncertain"},
		{"452 before the final dot", func(v *villain) { v.polite(hi, ehlo, ok, ok, send+"452 4.3.1 disk full\r\n"); v.stay() }, "", "deferred 452 4.3.1 other at ."},
		{"closed at the final dot", func(v *villain) { v.polite(hi, ehlo, ok, ok, send); v.content() }, "", lost + " at . uncertain"},
		{"half a reply to the final dot", func(v *villain) { v.polite(hi, ehlo, ok, ok, send); v.content(); v.say("250 2.0") }, "", lost + " at . uncertain"},
		{"final dot drips", func(v *villain) { v.polite(hi, ehlo, ok, ok, send); v.content(); v.drip("250-x\r\n") }, "", late + " at . uncertain"},
		{"final dot 354", func(v *villain) { v.polite(hi, ehlo, ok, ok, send); v.content(); v.say(send); v.stay() }, "", "deferred 354 other at . uncertain"},
		{"final dot without end", func(v *villain) { v.polite(hi, ehlo, ok, ok, send); v.content(); v.flood("250-stored\r\n") }, "", rude + " at . uncertain"},
		{"451 to QUIT", func(v *villain) {
			v.polite(hi, ehlo, ok, ok, send)
			v.content()
			v.polite(ok, "451 no\r\n")
			v.stay()
		}, "", "relayed 250 2.0.0"},
		{"QUIT without end", func(v *villain) {
			v.polite(hi, ehlo, ok, ok, send)
			v.content()
			v.polite(ok, "")
			v.flood("221-bye\r\n")
		}, "", "relayed 250 2.0.0"},
	}

	s := newStreet(t)
	const limit = 15 * time.Second // of every wait, which a busy machine keeps to; real ones are minutes
	short := smtpout.Timeouts{
		Connect: limit, Greeting: limit, Command: limit, Mail: limit, Rcpt: limit, Data: limit, Block: limit, Dot: limit, Quit: limit,
	}
	for i, test := range tests {
		level := test.tls
		if level == "" {
			level = smtpout.TLSNone
		}
		s.house(fmt.Sprintf("villain%d.test", i), newVillain(t, test.serve), level, short)
	}
	const deaf, flock = 10, 20
	knocked := make(chan struct{}, deaf*flock)
	for i := range deaf { // with the real timeouts
		s.house(fmt.Sprintf("deaf%d.test", i), newVillain(t, func(v *villain) { knocked <- struct{}{}; v.stay() }), smtpout.TLSNone, smtpout.Timeouts{})
	}
	good := relaytest.NewSmartHost(t)
	s.house("good.test", good.AddrPort(), smtpout.TLSNone, smtpout.Timeouts{})
	s.run()

	for range flock {
		for i := range deaf {
			s.put("alice@example.org", mail.NotifyNever, fmt.Sprintf("bob@deaf%d.test", i))
		}
	}
	for range deaf {
		<-knocked
	}
	ids := make([]mail.QueueID, len(tests))
	for i := range tests {
		ids[i] = s.put("alice@example.org", mail.NotifyNever, fmt.Sprintf("bob@villain%d.test", i))
		s.put("alice@example.org", mail.NotifyNever, "carol@good.test")
	}
	good.WaitFor(t, len(tests))

	for i, test := range tests {
		var ev event.AttemptFinished
		if !s.rec.Wait(0, func(all []event.Record) bool {
			for _, rec := range all {
				if a, is := rec.Event.(event.AttemptFinished); is && rec.Message == ids[i] {
					ev = a
					return true
				}
			}
			return false
		}) {
			t.Errorf("%s: no attempt ended", test.name)
			continue
		}
		got := ev.Disposition.String()
		for _, w := range []string{fmt.Sprint(ev.Code), ev.Enhanced, string(ev.Class)} {
			if w != "" {
				got += " " + w
			}
		}
		if ev.Disposition != mail.Relayed {
			got += " at " + ev.Verb
		}
		if ev.Uncertain {
			got += " uncertain"
		}
		if got != test.want {
			t.Errorf("%s: %s (%q), want %s", test.name, got, ev.Reply, test.want)
		}
		if strings.ContainsFunc(ev.Reply, func(r rune) bool { return r < ' ' && r != '\n' || r == 0x202e }) {
			t.Errorf("%s: the record has %q", test.name, ev.Reply)
		}
	}
	for _, rec := range s.rec.Named("session_closed") {
		if ev := rec.Event.(event.SessionClosed); ev.BytesIn > 160<<10 {
			t.Errorf("%s: took %d octets from the next hop", ev.Connector, ev.BytesIn)
		}
	}
	// Not one of those that never answer has kept a worker from the others.
	s.put("alice@example.org", mail.NotifyNever, "carol@good.test")
	good.WaitFor(t, len(tests)+1)
}
