//go:build unix

package smtpout

import (
	"errors"
	"syscall"
)

// quiet reports whether the next hop has neither closed the session nor said
// anything while it was idle: both mean that it wants it no more.
func (s *session) quiet() bool {
	_, err := s.peek()
	return errors.Is(err, syscall.EAGAIN) && s.r.r.Buffered() == 0
}

// heard reports whether something waits to be read. With TLS nobody can tell
// whether that is a reply, and so it is not looked at.
func (s *session) heard() bool {
	if s.conn != s.tcp {
		return false
	}
	n, err := s.peek()
	return err == nil && n > 0
}

// peek looks at the connection without waiting, and without taking anything
// from it. A connection that cannot be looked at seems quiet.
func (s *session) peek() (n int, err error) {
	if s.raw == nil {
		return 0, syscall.EAGAIN
	}
	g := &s.glimpse
	if g.take == nil {
		g.take = func(fd uintptr) bool {
			g.n, _, g.err = syscall.Recvfrom(int(fd), g.octet[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			return true
		}
	}
	g.n, g.err = 0, nil
	if failed := s.raw.Read(g.take); failed != nil {
		return g.n, failed
	}
	return g.n, g.err
}
