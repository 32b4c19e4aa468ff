//go:build unix

package smtpout

import (
	"errors"
	"syscall"
)

// quiet reports whether the next hop has neither closed the session nor said
// anything while it was idle: both mean that it wants it no more. It looks
// without waiting, and without taking anything from the connection.
func (s *session) quiet() bool {
	sc, ok := s.tcp.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	var b [1]byte
	err = raw.Read(func(fd uintptr) bool {
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = errors.Is(err, syscall.EAGAIN)
		return true
	})
	return err == nil && quiet
}
