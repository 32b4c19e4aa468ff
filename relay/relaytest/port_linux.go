package relaytest

import (
	"fmt"
	"syscall"
)

// ReservePort is [Port] for programs, until release.
//
// A socket that is bound, and does not listen, has the port. Linux gives a port
// that somebody has to nobody who asks for any, but lets others bind it if all of
// them say SO_REUSEADDR, as servers do, and none of them listens: so this one says
// it too, once it has the port for itself.
func ReservePort() (port int, release func(), err error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, fmt.Errorf("socket: %w", err)
	}
	release = func() { _ = syscall.Close(fd) }
	if err = syscall.Bind(fd, &syscall.SockaddrInet4{}); err == nil {
		err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	}
	var at syscall.Sockaddr
	if err == nil {
		at, err = syscall.Getsockname(fd)
	}
	if err != nil {
		release()
		return 0, nil, fmt.Errorf("bind: %w", err)
	}
	return at.(*syscall.SockaddrInet4).Port, release, nil
}
