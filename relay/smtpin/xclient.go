package smtpin

import (
	"errors"
	"net/netip"

	"waybill/relay/auth"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/policy"
	"waybill/relay/transcript"
	"waybill/relay/wire"
)

// mechanismXClient is what a login is said to be by that a trusted client named.
const mechanismXClient = "XCLIENT"

// xclientHook is asked at XCLIENT; nil for clients that may not use it.
func (s *session) xclientHook() func(wire.XClient) (wire.Options, *mail.ReplyError) {
	if !s.mayAnnounce(s.c) {
		return nil
	}
	return s.xclient
}

// mayAnnounce reports whether c believes the client, as it came, what it says of
// others.
func (s *session) mayAnnounce(c *connector) bool {
	return policy.Ranges(c.ClientTrusted).Contains(s.visit.remote.Addr()) && (!s.visit.proxy.IsValid() || trusts(s.visit.proxy)(c))
}

// xclient makes the session that of the client that x names. The connector is
// chosen anew, among those that trust who says so: the rights of a trusted
// client are not those of everybody behind it.
func (s *session) xclient(x wire.XClient) (wire.Options, *mail.ReplyError) {
	ip, port := s.remote.Addr(), s.remote.Port()
	if x.Has("ADDR") {
		ip, port = x.Addr, 0
	}
	if x.Has("PORT") {
		port = x.Port
	}
	var c *connector
	if ip.IsValid() { // an unknown client is nobody's
		c = s.at.find(s.visit.socket, ip, s.mayAnnounce)
	}
	if c == nil {
		s.srv.stateRefused(s.c, ip, s.visit, "denied", notForYou)
		return wire.Options{}, &mail.ReplyError{Reply: notForYou, Reason: "denied"}
	}
	id, err := s.lookup(c, x)
	if err != nil {
		e := mail.Refuse(550, "5.7.8", "auth", "that user may not log in")
		e.Err = err
		s.authFailed(mechanismXClient, &auth.Failure{User: x.Login, Reason: auth.ReasonCredentials, Err: err}, e.Reply.Code)
		return wire.Options{}, e
	}
	s.leave()
	leave, delay, no := s.srv.room(c, ip)
	if no != nil {
		s.leave = func() {}
		s.srv.stateRefused(c, ip, s.visit, no.Reason, no.Reply)
		return wire.Options{}, no
	}
	s.leave, s.delay = leave, delay
	s.c, s.remote = c, netip.AddrPortFrom(ip, port)
	s.local = netip.AddrPortFrom(or(x.DestAddr, x.Has("DESTADDR"), s.local.Addr()), or(x.DestPort, x.Has("DESTPORT"), s.local.Port()))
	s.name = or(x.Name, x.Has("NAME"), s.name)
	if x.Has("LOGIN") {
		s.become(id, mechanismXClient)
	}
	s.script.Identify(transcript.Party{Session: s.id, Direction: event.Inbound, Connector: c.Name, ClientIP: ip})
	s.emit.Emit(event.ClientAnnounced{
		Connector: c.Name, ClientIP: ip, ClientPort: port, ClientName: s.name, LocalIP: s.local.Addr(), LocalPort: s.local.Port(),
		Helo: wire.Printable(x.Helo, 255), AuthUser: wire.Printable(s.user, 255), ProxyIP: s.visit.remote.Addr(),
	})
	return s.options(), nil
}

// lookup finds the user that x names. One whom nobody knows here has been
// checked by the trusted client: it has a name, and no addresses of its own.
func (s *session) lookup(c *connector, x wire.XClient) (auth.Identity, error) {
	id := auth.Identity{User: x.Login}
	if x.Login == "" || c.Lookup == nil {
		return id, nil
	}
	known, err := c.Lookup(x.Login)
	if errors.Is(err, auth.ErrUnknownUser) {
		return id, nil
	}
	return known, err
}

// or is v when it was given, else was.
func or[T any](v T, given bool, was T) T {
	if given {
		return v
	}
	return was
}
