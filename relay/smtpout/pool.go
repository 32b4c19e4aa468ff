package smtpout

import (
	"context"
	"errors"
	"slices"
	"time"
)

var errClosed = errors.New("send connector is closed")

// take returns an idle session for hop, or nil and the right to open one: a
// slot. Either way the caller owns a slot then, and gives it back by put or by
// release. It waits while there are as many connections as there may be.
func (c *Connector) take(ctx context.Context, hop string) (*session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if c.closed {
			return nil, errClosed
		}
		if list := c.idle[hop]; len(list) > 0 {
			s := list[len(list)-1] // the one used last: the others may then end
			c.forget(s)
			return s, nil
		}
		if c.perHop[hop] < c.opts.Limits.ConnectionsPerDestination {
			if c.total < c.opts.Limits.Connections {
				c.total++
				c.perHop[hop]++
				return nil, nil
			}
			c.evict()
		}
		changed := c.changed
		c.waiting++
		c.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-ctx.Done():
			err = ctx.Err()
		}
		c.mu.Lock()
		c.waiting--
		if err != nil {
			return nil, err
		}
	}
}

// forget removes s from the idle sessions, and reports whether it was there.
// The caller holds mu and owns the slot of s then.
func (c *Connector) forget(s *session) bool {
	list := c.idle[s.hop]
	i := slices.Index(list, s)
	if i < 0 {
		return false
	}
	if list = slices.Delete(list, i, i+1); len(list) == 0 {
		delete(c.idle, s.hop)
	} else {
		c.idle[s.hop] = list
	}
	return true
}

// evict ends the idle session that has waited longest, so that its slot can
// serve another hop. The caller holds mu.
func (c *Connector) evict() {
	var oldest *session
	for _, list := range c.idle {
		if oldest == nil || list[0].parked.Before(oldest.parked) {
			oldest = list[0]
		}
	}
	if oldest != nil && c.forget(oldest) {
		c.wg.Go(func() { c.end(oldest, "limit") })
	}
}

// put gives a session, and its slot, to whoever wants it next.
func (c *Connector) put(s *session) {
	s.a, s.r.log = nil, nil
	s.deadline = time.Time{}
	if s.cause != "" {
		c.end(s, s.cause)
		return
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		c.end(s, "shutdown")
		return
	}
	if s.lax || s.spent() {
		c.wg.Go(func() { c.end(s, "limit") })
		c.mu.Unlock()
		return
	}
	s.parked = time.Now()
	c.idle[s.hop] = append(c.idle[s.hop], s)
	if s.timer == nil {
		s.timer = time.AfterFunc(c.opts.Limits.IdleTimeout, func() { c.expire(s) })
	} else if !s.ticking {
		s.timer.Reset(c.opts.Limits.IdleTimeout)
	}
	s.ticking = true
	c.signal()
	c.mu.Unlock()
}

// expire ends s when it has been idle for long enough. The timer goes on while a
// session is used, so that a session that is used often costs none for each message:
// it looks here at how long the session has waited by now.
func (c *Connector) expire(s *session) {
	c.mu.Lock()
	s.ticking = false
	if c.closed || !slices.Contains(c.idle[s.hop], s) {
		c.mu.Unlock()
		return
	}
	if left := c.opts.Limits.IdleTimeout - time.Since(s.parked); left > 0 {
		s.timer.Reset(left)
		s.ticking = true
		c.mu.Unlock()
		return
	}
	c.forget(s)
	c.wg.Add(1)
	c.mu.Unlock()
	defer c.wg.Done()
	c.end(s, "idle")
}

// end says good-bye and gives the slot back.
func (c *Connector) end(s *session, cause string) {
	s.finish(cause, s.cause == "")
	c.release(s.hop)
}

// release gives back the slot of a session that is no more, or never was.
func (c *Connector) release(hop string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total--
	if c.perHop[hop]--; c.perHop[hop] == 0 {
		delete(c.perHop, hop)
	}
	c.signal()
}

// signal wakes whoever waits for a slot. The caller holds mu.
func (c *Connector) signal() {
	if c.waiting > 0 {
		close(c.changed)
		c.changed = make(chan struct{})
	}
}
