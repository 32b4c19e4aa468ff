package wire

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// early reports whether octets have come on a connection that nobody has
// greeted. It does not wait and takes nothing away.
func early(c net.Conn) bool {
	if a, ok := c.(*aheadConn); ok {
		if len(a.ahead) > 0 {
			return true
		}
		c = a.Conn
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	_ = rc.Read(func(fd uintptr) bool { // fails only on a closed connection
		var b [1]byte
		n, _, _ = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return true
	})
	return n > 0
}
