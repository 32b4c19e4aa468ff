package smtpin

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"waybill/relay/mail"
)

// BenchmarkSession receives messages in one session over a connection in memory:
// what a message costs without the kernel's part.
func BenchmarkSession(b *testing.B) {
	header := "From: Ann <ann@example.net>\r\nTo: b@example.org\r\nSubject: hello\r\nMessage-ID: <1@example.net>\r\nDate: Sun, 22 Nov 2026 03:04:05 +0000\r\n\r\n"
	for _, size := range []struct {
		name   string
		octets int
	}{{"10KiB", 10 << 10}, {"100KiB", 100 << 10}} {
		b.Run(size.name, func(b *testing.B) {
			content := header + strings.Repeat(strings.Repeat("x", 76)+"\r\n", size.octets/78) + ".\r\n"
			r := start(b, Options{Acceptor: &memory{}, Connectors: []Connector{open(func(c *Connector) { c.Limits.SessionTimeout = -1 })}})
			r.rec.off.Store(true)
			b.ReportAllocs()
			c := &inMemory{left: b.N, content: []byte(content), done: make(chan struct{})}
			b.ResetTimer()
			r.admit(*r.listeners[0].now.Load(), c)
			<-c.done
			b.StopTimer()
			if got := c.queued; got != b.N {
				b.Errorf("%d messages were queued, want %d", got, b.N)
			}
		})
	}
}

// memory is an acceptor that holds one content in a buffer that stays, as the
// queue's come from a pool.
type memory struct {
	buf   [128 << 10]byte
	n     int
	total int64
}

func (m *memory) Begin(context.Context, int64) (Incoming, error) { return m, nil }

func (m *memory) Room() []byte { return m.buf[m.n:] }

func (m *memory) Write(p []byte) (int, error) {
	if &p[0] != &m.buf[m.n] {
		copy(m.buf[m.n:], p)
	}
	m.n += len(p)
	return len(p), nil
}

func (m *memory) Commit(context.Context, mail.Draft) error {
	m.total += int64(m.n)
	m.n = 0
	return nil
}

func (m *memory) Abort() {}

// inMemory is a client that sends messages with pipelined commands.
type inMemory struct {
	left    int
	content []byte
	now     []byte
	step    int
	queued  int
	closed  atomic.Bool
	done    chan struct{}
}

// Read gives what the client sends next: it has seen all replies.
func (c *inMemory) Read(p []byte) (int, error) {
	if len(c.now) == 0 {
		switch {
		case c.step == 0:
			c.now = []byte("EHLO client.example.net\r\n")
		case c.step%2 == 1 && c.left == 0:
			return 0, io.EOF
		case c.step%2 == 1:
			c.left--
			c.now = pipelinedCommands
		default:
			c.now = c.content
		}
		c.step++
	}
	n := copy(p, c.now)
	c.now = c.now[n:]
	return n, nil
}

var pipelinedCommands = []byte("MAIL FROM:<ann@example.net>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n")

// Write counts what was queued.
func (c *inMemory) Write(p []byte) (int, error) {
	if bytes.HasPrefix(p, []byte("250 2.0.0 queued as ")) {
		c.queued++
	}
	return len(p), nil
}

func (c *inMemory) Close() error {
	if !c.closed.Swap(true) {
		close(c.done)
	}
	return nil
}

func (c *inMemory) LocalAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 25} }

func (c *inMemory) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2525} }
func (c *inMemory) SetDeadline(time.Time) error      { return nil }
func (c *inMemory) SetReadDeadline(time.Time) error  { return nil }
func (c *inMemory) SetWriteDeadline(time.Time) error { return nil }
