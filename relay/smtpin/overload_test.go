package smtpin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/policy"
	"waybill/relay/pressure"
	"waybill/relay/throttle"
)

// eventually polls until f has no complaint.
func eventually(t testing.TB, f func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-time.After(time.Millisecond)
	}
}

// left waits until n sessions are left: a session gives its place back after the
// fact that it has ended.
func (r *relay) left(t testing.TB, n int) {
	t.Helper()
	eventually(t, func() error {
		r.Server.mu.Lock()
		defer r.Server.mu.Unlock()
		if got := len(r.sessions); got != n {
			return fmt.Errorf("%d sessions, want %d", got, n)
		}
		return nil
	})
}

func rules(t *testing.T, list ...throttle.Rule) *throttle.Set {
	t.Helper()
	for i := range list {
		list[i].Name = fmt.Sprint("rule", i)
		if list[i].Per == 0 && list[i].What != throttle.Connects {
			list[i].Per = time.Hour
		}
	}
	s, err := throttle.NewSet(list...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestThrottles(t *testing.T) {
	const from, to = "MAIL FROM:<a@example.net>", "RCPT TO:<b@example.org>"
	for _, test := range []struct {
		name string
		rule throttle.Rule
		talk []string
		want string // scope and action of the fact; empty: none
	}{
		{
			"messages",
			throttle.Rule{Amount: 1},
			[]string{from + "=>250", "RSET=>250", from + "=>450 4.7.1 too many messages from your address, try again in 1h0m0s"},
			"source defer",
		},
		{
			"messages by sender",
			throttle.Rule{Amount: 1, By: throttle.BySender},
			[]string{from + "=>250", "RSET=>250", "MAIL FROM:<other@example.net>=>250", "RSET=>250", "MAIL FROM:<>=>250", "RSET=>250", "MAIL FROM:<A@EXAMPLE.net>=>250", "RSET=>250", from + "=>450 4.7.1 too many messages from this sender"},
			"sender defer",
		},
		{
			"recipients",
			throttle.Rule{Amount: 2, What: throttle.Recipients, Action: throttle.Reject},
			[]string{from + "=>250", to + "=>250", "RCPT TO:<c@example.org>=>250", "RCPT TO:<d@example.org>=>550 5.7.1 too many recipients", "DATA=>354", "x\r\n.=>250"},
			"source reject",
		},
		{
			"octets",
			throttle.Rule{Amount: 100, What: throttle.Bytes, By: throttle.ByConnector},
			[]string{from + "=>250", to + "=>250", "DATA=>354", strings.Repeat("x", 500) + "\r\n.=>250", from + "=>450 4.7.1 too many bytes here now"},
			"total defer",
		},
		{
			"commands",
			throttle.Rule{Amount: 3, What: throttle.Commands, By: throttle.ByNetwork},
			[]string{"NOOP=>250", "NOOP=>250", "NOOP=>450 4.7.1 too many commands from your network", "QUIT=>221"},
			"network defer",
		},
		{
			"commands, and out",
			throttle.Rule{Amount: 2, What: throttle.Commands, Action: throttle.Close},
			[]string{"NOOP=>250", "NOOP=>421 4.7.0 too many commands"},
			"source close",
		},
		{
			"messages, and out",
			throttle.Rule{Amount: 1, Action: throttle.Close},
			[]string{from + "=>250", "RSET=>250", from + "=>421 4.7.0 too many messages"},
			"source close",
		},
		{"another connector", throttle.Rule{Amount: 1, Connectors: []string{"other"}}, []string{from + "=>250", "RSET=>250", from + "=>250"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := start(t, Options{Throttles: rules(t, test.rule)})
			c := r.dial(t)
			c.begin()
			c.talk(test.talk...)
			if strings.Contains(test.talk[len(test.talk)-1], "=>421") {
				if s := await[event.SessionClosed](t, r.rec, 1)[0]; s.Cause != "limit" {
					t.Errorf("cause %s, want limit", s.Cause)
				}
			}
			var got string
			for _, f := range facts[event.ThrottleEngaged](r.rec) {
				got = f.Scope + " " + f.Action
				if f.Limit != "rule0" || f.Connector != "test" || !f.ClientIP.IsLoopback() {
					t.Errorf("fact %+v", f)
				}
			}
			if got != test.want {
				t.Errorf("fact %q, want %q", got, test.want)
			}
		})
	}
}

// TestTarpit has whoever comes too fast wait: for longer than a loaded machine
// takes to come.
func TestTarpit(t *testing.T) {
	t.Parallel()
	r := start(t, Options{Throttles: rules(t, throttle.Rule{Amount: 1, Per: 15 * time.Second, Action: throttle.Tarpit})})
	c := r.dial(t)
	c.begin()
	c.talk("MAIL FROM:<a@example.net>=>250", "RSET=>250", "MAIL FROM:<a@example.net>=>250", "QUIT=>221")
	if f := facts[event.ThrottleEngaged](r.rec); len(f) != 1 || f[0].Scope != "source" || f[0].Action != "tarpit" {
		t.Errorf("facts %+v, want a wait", f)
	}
}

func TestThrottledConnections(t *testing.T) {
	for _, test := range []struct {
		name  string
		rule  throttle.Rule
		reply string
		after string // the session that was let in has ended
	}{
		{"at once", throttle.Rule{Amount: 1}, "421 4.7.0 too many connections from your address, try again later", "220"},
		{"rate", throttle.Rule{Amount: 1, Per: time.Hour, By: throttle.ByNetwork}, "421 4.7.0 too many connections from your network, try again in ", "421"},
		{"rejected", throttle.Rule{Amount: 1, Action: throttle.Reject, By: throttle.ByConnector}, "554 5.7.1 too many connections here now", "220"},
	} {
		t.Run(test.name, func(t *testing.T) {
			rule := test.rule
			rule.What = throttle.Connects
			r := start(t, Options{Throttles: rules(t, rule)})
			c := r.dial(t)
			c.begin()
			r.dial(t).expect(test.reply)
			if f := await[event.SessionRefused](t, r.rec, 1)[0]; f.Reason != "throttled" {
				t.Errorf("fact %+v", f)
			}
			if f := facts[event.ThrottleEngaged](r.rec); len(f) != 1 || f[0].Limit != "rule0" {
				t.Errorf("facts %+v", f)
			}
			c.talk("QUIT=>221")
			await[event.SessionClosed](t, r.rec, 1)
			r.left(t, 0)
			r.dial(t).expect(test.after)
		})
	}
}

func TestLateGreeting(t *testing.T) {
	t.Parallel()
	r := start(t, Options{Throttles: rules(t, throttle.Rule{What: throttle.Connects, Amount: 1, Per: 15 * time.Second, Action: throttle.Tarpit})})
	r.dial(t).expect("220")
	r.dial(t).expect("220")
	if f := facts[event.ThrottleEngaged](r.rec); len(f) != 1 || f[0].Action != "tarpit" {
		t.Errorf("facts %+v, want a wait", f)
	}
}

// gauge is a resource whose level a test sets.
type gauge struct{ level atomic.Int32 }

func pressed(t *testing.T, patience time.Duration) (*gauge, *pressure.Monitor) {
	g := &gauge{}
	m := pressure.New(pressure.Options{
		Every: time.Millisecond, Settings: pressure.Settings{Patience: patience, DelayStep: time.Millisecond, DelayMost: 20 * time.Millisecond},
		Resources: []pressure.Resource{{Name: "disk_space", Told: func() (int, string) { return int(g.level.Load()), "1 MiB free" }}},
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = m.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return g, m
}

func (g *gauge) set(t *testing.T, m *pressure.Monitor, level int, want pressure.Stage) {
	t.Helper()
	g.level.Store(int32(level))
	eventually(t, func() error {
		if v := m.Now(); v.Stage != want {
			return fmt.Errorf("stage %s, want %s", v.Stage, want)
		}
		return nil
	})
}

// TestPressure goes through the stages, with a stranger and with a server of ours.
func TestPressure(t *testing.T) {
	stranger := open(func(c *Connector) { c.Permissions = policy.Permissions{Submit: true} })
	ours := open(func(c *Connector) { c.Name = "ours" })
	for _, test := range []struct {
		name     string
		level    int
		patience time.Duration
		stage    pressure.Stage
		stranger string // answers to MAIL
		ours     string
	}{
		{"enough of everything", 0, time.Hour, pressure.Open, "250", "250"},
		{"slow", 1, time.Hour, pressure.Slow, "250", "250"},
		{"strangers", 1, time.Nanosecond, pressure.Strangers, "452 4.3.1 not enough resources, try again later", "250"},
		{"all", 2, time.Hour, pressure.All, "452 4.3.1 not enough resources, try again later", "452 4.3.1"},
		{"shut", 2, time.Nanosecond, pressure.Shut, "421 4.3.2 not enough resources, try again later", "421 4.3.2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			g, m := pressed(t, test.patience)
			r := start(t, Options{Connectors: []Connector{stranger, ours}, Pressure: m})
			c := r.dial(t)
			c.begin()
			conn, err := net.Dial("tcp", r.addr("ours"))
			if err != nil {
				t.Fatal(err)
			}
			o := newClient(t, conn)
			o.begin()
			g.set(t, m, test.level, test.stage)
			c.talk("MAIL FROM:<a@example.net>=>" + test.stranger)
			o.talk("MAIL FROM:<a@example.net>=>" + test.ours)
			want := "220"
			if test.stage == pressure.Shut {
				want = "421 4.3.2 not enough resources"
				await[event.SessionClosed](t, r.rec, 2)
			}
			r.dial(t).expect(want)
			for _, f := range facts[event.SenderRefused](r.rec) {
				if f.Reason != "backpressure" || f.Error != "disk_space is short: 1 MiB free" {
					t.Errorf("fact %+v", f)
				}
			}
			slowed := facts[event.ThrottleEngaged](r.rec)
			if got := len(slowed) > 0; got != (test.stage == pressure.Slow || test.stage == pressure.Strangers) {
				t.Errorf("slowed: %+v", slowed)
			}
			if test.stage == pressure.Shut {
				if f := await[event.SessionRefused](t, r.rec, 1)[0]; f.Reason != "backpressure" {
					t.Errorf("fact %+v", f)
				}
			}
		})
	}
}

// TestIdleKeepNobodyOut takes all places with sessions that say nothing.
func TestIdleKeepNobodyOut(t *testing.T) {
	for _, test := range []struct {
		name string
		opts Options
	}{
		{"a connector's places", Options{Connectors: []Connector{open(func(c *Connector) { c.Limits.Connections = 20 })}}},
		{"all places", Options{MaxSessions: 20}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.opts.patience = 10 * time.Millisecond
			r := start(t, test.opts)
			busy := r.dial(t)
			busy.begin()
			busy.envelope()
			var idle []*client
			for range 19 {
				c := r.dial(t)
				c.expect("220")
				idle = append(idle, c)
			}
			eventually(t, func() error {
				conn, err := net.Dial("tcp", r.addr("test"))
				if err != nil {
					return err
				}
				c := newClient(t, conn)
				if reply := c.reply(); !strings.HasPrefix(reply, "220") {
					conn.Close()
					return errors.New(reply)
				}
				c.talk(hello, "MAIL FROM:<a@example.net>=>250", "RCPT TO:<b@example.org>=>250", "DATA=>354", "x\r\n.=>250", "QUIT=>221")
				return nil
			})
			eventually(t, func() error { // on a busy machine what was sent may be looked for too late
				for _, c := range idle {
					_ = c.c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
					line, _ := c.br.ReadString('\n')
					if strings.HasPrefix(line, "421 4.7.0 others are waiting") {
						return nil
					}
				}
				return errors.New("no idle session was ended")
			})
			busy.talk("DATA=>354", "x\r\n.=>250")
			if f := facts[event.ThrottleEngaged](r.rec); len(f) == 0 || f[0].Limit != "connections" || f[0].Scope != "total" || f[0].Action != "close" {
				t.Errorf("facts %+v", f)
			}
		})
	}
}

// exhausted is a listener that has no file descriptors for a while.
type exhausted struct {
	net.Listener
	fails atomic.Int64
}

func (e *exhausted) Accept() (net.Conn, error) {
	if e.fails.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return e.Listener.Accept()
}

// TestNoFileDescriptors: accept backs off, sessions go on, and a fact says it, once.
func TestNoFileDescriptors(t *testing.T) {
	r := &relay{acceptor: &acceptor{}, rec: newRecorder(), done: make(chan error, 1)}
	var err error
	r.Server, err = New(Options{Hostname: "mx.example.com", Acceptor: r.acceptor, Connectors: []Connector{open()}, Emitter: event.NewEmitter("node", r.rec)})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Listen(); err != nil {
		t.Fatal(err)
	}
	e := &exhausted{Listener: r.listeners[0].ln}
	r.listeners[0].ln = e
	ctx, cancel := context.WithCancel(context.Background())
	go func() { r.done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		r.cut()
		<-r.done
	})
	c := r.dial(t)
	c.begin()
	e.fails.Store(11)          // 5 ms doubled to a second, and two more
	r.dial(t).expect("220")    // was waited for already, or waits until there are descriptors
	waiting := make(chan bool) // one that comes while there are none
	go func() {
		d := r.dial(t)
		d.expect("220")
		close(waiting)
	}()
	c.talk("MAIL FROM:<a@example.net>=>250", "RCPT TO:<b@example.org>=>250", "DATA=>354", "x\r\n.=>250", "QUIT=>221")
	<-waiting
	got := await[event.Remarked](t, r.rec, 2)
	if got[0].Remark != "connections cannot be accepted" || got[1].Remark != "connections are accepted again" || len(got) != 2 {
		t.Errorf("facts %+v", got)
	}
}
