//go:build !linux

package relaytest

import "net"

// ReservePort is [Port] for programs. Here nothing keeps a port that nobody
// listens on: it was free a moment ago.
func ReservePort() (port int, release func(), err error) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		return 0, nil, err
	}
	return l.Addr().(*net.TCPAddr).Port, func() {}, l.Close()
}
