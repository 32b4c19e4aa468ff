package wire

import (
	"errors"
	"time"
)

// Pause lets the client wait for d, or until the session should end. What it has
// been answered so far is sent. It is called on the goroutine that reads, and
// holds no more than an idle session does.
func (c *Conn) Pause(d time.Duration) {
	if d <= 0 {
		return
	}
	c.in.shrink()
	if c.flush() != nil {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.leave:
	}
}

// errEvicted says that EndIdle ended the wait for a command.
var errEvicted = errors.New("evicted")

// EndIdle ends the session when nobody has logged in, no transaction is open, and
// it has waited for its next command for longer than d: the client gets 421. It
// reports whether it did, and may be called by any goroutine.
func (c *Conn) EndIdle(now time.Time, d time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting.IsZero() || c.evicted || c.draining || now.Sub(c.waiting) <= d {
		return false
	}
	c.evicted = true
	_ = c.raw.SetReadDeadline(past) // fails only on a closed connection, which is ended
	return true
}

// waitFor notes since when the session waits for a command that it may be ended
// for, and reports whether it was ended.
func (c *Conn) waitFor(since time.Time, may bool) (evicted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = time.Time{}
	if may && !c.authed {
		c.waiting = since
	}
	evicted, c.evicted = c.evicted, false // a command that came all the same is run
	return evicted
}

// mayNot asks the session about a command, and answers it when it must not be run.
func (c *Conn) mayNot(v verb) bool {
	if c.opts.Hooks.Command == nil {
		return false
	}
	e := c.opts.Hooks.Command(v.String())
	if e == nil {
		return false
	}
	if c.cause == "" && (v == data || v == bdat) {
		return false
	}
	c.failed = true
	c.answer(e.Reply.Code, e.Reply.Enhanced, e.Reply.Text)
	return true
}
