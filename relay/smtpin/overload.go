package smtpin

import (
	"net"
	"net/netip"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/pressure"
	"waybill/relay/throttle"
	"waybill/relay/wire"
)

// This file is what reception does when there is too much: of one client, which
// package throttle knows, or of all, which package pressure knows.

const (
	// crowded is how long a session of a stranger may wait for its next command when
	// its connector has all connections that it may have: Postfix' stress mode waits
	// as long.
	crowded = 10 * time.Second
	// shutPace is the pace at which connections are turned away when the doors are
	// shut; the others wait in the kernel, and cost us nothing.
	shutPace = 10 * time.Millisecond
)

// fixThrottles makes rules of the connectors' own limits. Their names have a slash,
// which those of the configuration cannot have.
func (s *Server) fixThrottles(list []*connector) {
	var rules []throttle.Rule
	for _, c := range list {
		if c.Limits.MessagesPerMinute <= 0 {
			continue
		}
		rule := throttle.Rule{
			Name: c.Name + "/messages_per_minute", Connectors: []string{c.Name}, By: throttle.BySource, What: throttle.Messages,
			Amount: int64(c.Limits.MessagesPerMinute), Per: time.Minute,
		}
		switch c.Limits.RateBy {
		case "user":
			rule.By, rule.OrSource = throttle.ByUser, true
		case "both":
			user := rule
			user.Name, user.By = c.Name+"/messages_per_minute/user", throttle.ByUser
			rules = append(rules, user)
		}
		rules = append(rules, rule)
	}
	if err := s.throttles.Fix(rules); err != nil { // by mistake of ours
		s.emit.Emit(event.Remarked{Remark: "limits of the connectors", Detail: err.Error()})
	}
}

// let asks everybody who may object to a connection, and turns it away when
// somebody does.
func (s *Server) let(c *connector, raw net.Conn, ip netip.Addr) (leave func(), ok bool, delay time.Duration) {
	if p := s.opts.Pressure.Now(); p.Stage >= pressure.Shut {
		s.turnAway(c, raw, ip, "backpressure", mail.Reply{Code: 421, Enhanced: "4.3.2", Text: "not enough resources, try again later"})
		t := time.NewTimer(shutPace)
		defer t.Stop()
		select {
		case <-t.C:
		case <-s.life.Done():
		}
		return nil, false, 0
	}
	if s.full() {
		s.evict(c)
		s.turnAway(c, raw, ip, "limit_total", mail.Reply{Code: 421, Enhanced: "4.7.0", Text: "too many connections, try again later"})
		return nil, false, 0
	}
	leave, delay, no := s.room(c, ip)
	if no != nil {
		s.turnAway(c, raw, ip, no.Reason, no.Reply)
		return nil, false, 0
	}
	return leave, true, delay
}

// room counts one more connection of ip among those of c, or says why there is
// none for it.
func (s *Server) room(c *connector, ip netip.Addr) (leave func(), delay time.Duration, no *mail.ReplyError) {
	switch c.conns.Admit(ip) {
	case throttle.LimitTotal:
		s.evict(c)
		return nil, 0, mail.Refuse(421, "4.7.0", "limit_total", "too many connections, try again later")
	case throttle.LimitSource:
		return nil, 0, mail.Refuse(421, "4.7.0", "limit_source", "too many connections from you")
	case throttle.Admitted:
	}
	a, left := s.throttles.Connect(time.Now(), throttle.Client{Connector: c.Name, IP: ip}, s.emit)
	if a.Refused() {
		c.conns.Release(ip)
		return nil, 0, &mail.ReplyError{Reply: a.Reply().Reply, Reason: "throttled"}
	}
	if total := c.Limits.Connections; total > 0 && c.conns.Open() >= total {
		s.evict(c) // the last place is taken: make room for the next
	}
	return func() {
		left()
		c.conns.Release(ip)
	}, a.Wait, nil
}

// full reports whether there are as many sessions as there may be.
func (s *Server) full() bool {
	if s.opts.MaxSessions <= 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions) >= s.opts.MaxSessions
}

// evict ends sessions that only wait, so that whoever holds connections open
// without using them keeps nobody else out. It costs a look at each session, and
// is done now and then.
func (s *Server) evict(c *connector) {
	now := time.Now()
	last := c.evicted.Load()
	if now.Sub(time.Unix(0, last)) < s.opts.patience/10 || !c.evicted.CompareAndSwap(last, now.UnixNano()) {
		return
	}
	ended := 0
	s.mu.Lock()
	for ses := range s.sessions {
		if ses.conn.EndIdle(now, s.opts.patience) {
			ended++
		}
	}
	s.mu.Unlock()
	if ended > 0 {
		s.emit.Emit(event.ThrottleEngaged{Connector: c.Name, Scope: "total", Limit: "connections", Action: "close"})
	}
}

// client is the session as package throttle sees it.
func (s *session) client(env mail.Envelope) throttle.Client {
	c := throttle.Client{Connector: s.c.Name, IP: s.remote.Addr(), User: s.user}
	if !env.Sender.IsNull() {
		c.Sender = env.Sender.Key()
	}
	return c
}

// throttle takes n of what, waits when a rule says so, and returns the reply when
// one refuses.
func (s *session) throttle(what throttle.What, n int64, env mail.Envelope) *mail.ReplyError {
	if !s.srv.throttles.Any(what) {
		return nil
	}
	a := s.srv.throttles.Take(time.Now(), what, n, s.client(env), s.emit)
	if !a.Refused() {
		s.conn.Pause(a.Wait)
		return nil
	}
	if a.Action == throttle.Close {
		s.conn.HangUp(wire.CauseLimit)
	}
	return a.Reply()
}

// mayMore asks the rules about one more message.
func (s *session) mayMore(env mail.Envelope) *mail.ReplyError {
	if e := s.throttle(throttle.Bytes, 0, env); e != nil {
		return e
	}
	return s.throttle(throttle.Messages, 1, env)
}

// command asks the rules about one more command.
func (s *session) command(string) *mail.ReplyError {
	return s.throttle(throttle.Commands, 1, mail.Envelope{})
}

// pressed slows a transaction down, or refuses it, as hard as the relay is
// pressed.
func (s *session) pressed() *mail.ReplyError {
	p := s.srv.opts.Pressure.Now()
	stranger := s.user == "" && !s.may().Relay
	switch {
	case p.Stage >= pressure.Shut:
		s.conn.HangUp(wire.CauseLimit)
		return pressedReply(421, "4.3.2", p)
	case p.Stage == pressure.All, p.Stage == pressure.Strangers && stranger:
		return pressedReply(452, "4.3.1", p)
	case p.Delay > 0:
		if !s.slowed { // once: each acknowledgement of the session will be slow
			s.slowed = true
			s.emit.Emit(event.ThrottleEngaged{
				Connector: s.c.Name, ClientIP: s.remote.Addr(), AuthUser: s.user, Scope: "total", Limit: "back_pressure", Action: "tarpit",
			})
		}
		s.conn.Pause(p.Delay)
	}
	return nil
}

func pressedReply(code int, enhanced string, p pressure.View) *mail.ReplyError {
	e := mail.Refuse(code, enhanced, "backpressure", "not enough resources, try again later")
	e.Err = pressureError{p}
	return e
}

// pressureError is for the operator.
type pressureError struct{ pressure.View }

func (e pressureError) Error() string { return e.Resource + " is short: " + e.Detail }
