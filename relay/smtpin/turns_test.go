package smtpin

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"waybill/relay/event"
	"waybill/relay/throttle"
)

// piped is a relay without listeners, in a bubble of synctest.
type piped struct {
	*Server
	t  *testing.T
	at entrances
}

func newPiped(t *testing.T, a *acceptor, n int) *piped {
	t.Helper()
	s, err := New(Options{Hostname: "mx.example.com", Acceptor: a, Emitter: event.NewEmitter("n", newRecorder()), Turns: throttle.NewTurns(n, nil)})
	if err != nil {
		t.Fatal(err)
	}
	c, err := newConnector(open(func(c *Connector) { c.Limits.MessageSize = 1000 }))
	if err != nil {
		t.Fatal(err)
	}
	s.take([]*connector{c})
	done := make(chan error, 1)
	go func() { done <- s.smtp.Serve(s.feed) }()
	t.Cleanup(func() {
		s.drain()
		_ = s.smtp.Shutdown(context.Background())
		if err := <-done; err != nil {
			t.Errorf("Serve() = %v", err)
		}
	})
	return &piped{s, t, entrances{{connector: c}}}
}

// ready returns a client that has said for whom its message is.
func (p *piped) ready() *client {
	p.t.Helper()
	mine, theirs := net.Pipe()
	ip := netip.MustParseAddrPort("192.0.2.1:1234")
	go p.enter(p.at, visit{remote: ip, local: ip}, theirs)
	c := newClient(p.t, mine)
	c.begin()
	c.envelope()
	return c
}

// left is what there should be of turns now.
func (p *piped) left(held, waiting int) {
	p.t.Helper()
	synctest.Wait()
	if s := p.opts.Turns.Status(); s.Held != held || s.Waiting != waiting {
		p.t.Errorf("%d turns and %d that wait, want %d and %d", s.Held, s.Waiting, held, waiting)
	}
}

// A content has a turn from before the reply to DATA, or the first octet of BDAT,
// to its end, whatever that is; a client that is slow, and a commit that takes
// long, give it to the next.
func TestTurns(t *testing.T) {
	const whole = "Subject: x\r\n\r\ny\r\n.\r\n"
	for _, test := range []struct {
		name  string
		first func(a *acceptor, c *client) // has the only turn when it returns, or has had it
		end   func(a *acceptor, c *client) // after a millisecond; nil: nothing
		want  time.Duration                // when the second goes on
	}{
		{"its reply", func(_ *acceptor, c *client) { c.talk("DATA=>354") }, func(_ *acceptor, c *client) {
			c.send(whole)
			c.expect("250 2.0.0 queued as")
		}, time.Millisecond},
		{"chunks", func(_ *acceptor, c *client) {
			c.send("BDAT 3\r\nx\r\n")
			c.expect("250 2.0.0 chunk received")
		}, func(_ *acceptor, c *client) {
			c.send("BDAT 3 LAST\r\ny\r\n")
			c.expect("250 2.0.0 queued as")
		}, time.Millisecond},
		{"chunks that do not come", func(_ *acceptor, c *client) {
			c.send("BDAT 3\r\nx\r\n")
			c.expect("250 2.0.0 chunk received")
		}, nil, 5 * time.Millisecond},
		{"chunks given up", func(_ *acceptor, c *client) {
			c.send("BDAT 3\r\nx\r\n")
			c.expect("250 2.0.0 chunk received")
		}, func(_ *acceptor, c *client) { c.talk("RSET=>250") }, time.Millisecond},
		{"a slow client", func(_ *acceptor, c *client) {
			c.talk("DATA=>354")
			c.send("x\r\n")
		}, nil, 5 * time.Millisecond},
		{"a lost client", func(_ *acceptor, c *client) { c.talk("DATA=>354") }, func(_ *acceptor, c *client) { _ = c.c.Close() }, time.Millisecond},
		{"a commit that hangs", func(a *acceptor, c *client) {
			a.commit = func(ctx context.Context) error {
				<-ctx.Done()
				return ctx.Err()
			}
			c.talk("DATA=>354")
			c.send(whole)
		}, nil, 10 * time.Millisecond},
		{"a commit that fails", func(a *acceptor, c *client) {
			a.commit = func(context.Context) error { return errors.New("disk") }
			c.talk("DATA=>354")
		}, func(a *acceptor, c *client) {
			c.send(whole)
			c.expect("451 4.3.0")
		}, time.Millisecond},
		{"a panic", func(a *acceptor, c *client) {
			a.write = func() error { panic("boom") }
			c.talk("DATA=>354")
		}, func(a *acceptor, c *client) {
			c.send(whole)
			c.expect("421 4.3.0")
		}, time.Millisecond},
		{"a refused content", func(_ *acceptor, c *client) { c.talk("DATA=>354") }, func(_ *acceptor, c *client) {
			for range 20 {
				c.send("0123456789012345678901234567890123456789012345678901234567890123456789\r\n")
			}
			c.send(".\r\n")
			c.expect("552 5.3.4")
		}, time.Millisecond},
		{"no room", func(a *acceptor, c *client) {
			a.begin = func() error { return errors.New("disk") }
			c.talk("DATA=>451 4.3.0")
			a.begin = nil
		}, nil, 0},
		{"no room for chunks", func(a *acceptor, c *client) {
			a.begin = func() error { return errors.New("disk") }
			c.send("BDAT 3 LAST\r\nx\r\n")
			c.expect("451 4.3.0")
			a.begin = nil
		}, nil, 0},
		{"a panic before it came", func(a *acceptor, c *client) {
			a.begin = func() error { panic("boom") }
			c.talk("DATA=>421 4.3.0", "=>")
			a.begin = nil
		}, nil, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &acceptor{}
				r := newPiped(t, a, 1)
				one, two := r.ready(), r.ready()
				began := time.Now()
				test.first(a, one)
				two.send("DATA\r\n")
				if test.want > 0 {
					r.left(1, 1)
				}
				if test.end != nil {
					time.Sleep(time.Millisecond)
					test.end(a, one)
				}
				two.expect("354")
				if got := time.Since(began); got != test.want {
					t.Errorf("the next one went on after %v, want %v", got, test.want)
				}
				r.left(1, 0)
				_, _ = one.c.Close(), two.c.Close()
				r.end() // what hangs ends
				r.left(0, 0)
			})
		})
	}
}

// The octets of a chunk are not taken in before it is their turn.
func TestTurnOfChunks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &acceptor{}
		r := newPiped(t, a, 1)
		one, two, three := r.ready(), r.ready(), r.ready()
		began := time.Now()
		one.talk("DATA=>354")
		two.send("BDAT 3\r\nx\r\n")
		synctest.Wait()
		three.send("BDAT 3 LAST\r\ny\r\n")
		r.left(1, 2)
		a.mu.Lock()
		if a.open != 1 {
			t.Errorf("%d contents are being taken in, want 1", a.open)
		}
		a.mu.Unlock()
		two.expect("250 2.0.0 chunk received")
		two.send("BDAT 3 LAST\r\ny\r\n")
		two.expect("250 2.0.0 queued as")
		three.expect("250 2.0.0 queued as")
		if got, want := time.Since(began), 5*time.Millisecond; got != want {
			t.Errorf("it took %v, want %v", got, want)
		}
		if got, want := r.opts.Turns.Status().Waited, 10*time.Millisecond; got != want {
			t.Errorf("they waited for %v, want %v", got, want)
		}
		one.send("x\r\n.\r\n")
		one.expect("250 2.0.0 queued as")
		r.left(0, 0)
	})
}

// Nobody waits for a turn when the relay ends.
func TestNoTurnAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPiped(t, &acceptor{}, 1)
		one, two := r.ready(), r.ready()
		began := time.Now()
		one.talk("DATA=>354")
		two.send("DATA\r\n")
		r.left(1, 1)
		r.end()
		two.expect("354")
		if got := time.Since(began); got > 0 {
			t.Errorf("it waited for %v", got)
		}
		r.left(1, 0)
	})
}
