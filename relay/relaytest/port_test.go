package relaytest

import (
	"errors"
	"net"
	"syscall"
	"testing"
)

// A port is nobody's until somebody listens there who knows it, and so again when
// nobody does any more.
func TestPort(t *testing.T) {
	port, other := Port(t), Port(t)
	if port == other {
		t.Fatalf("port %s was given twice", port)
	}
	addr := net.JoinHostPort("127.0.0.1", port)
	for range 3 {
		if c, err := net.Dial("tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("Dial = %v, %v, want a connection that is refused", c, err)
		}
		for _, host := range []string{"127.0.0.1", "127.0.0.2", ""} {
			l, err := net.Listen("tcp", net.JoinHostPort(host, port))
			if err != nil {
				t.Fatal(err)
			}
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(c.Close(), l.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
}
