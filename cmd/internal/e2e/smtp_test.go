//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net"
	"net/textproto"
	"testing"
	"time"
)

// session is an SMTP session by hand: for what no decent client does, and for
// what has to happen in the middle of a command.
type session struct {
	t    testing.TB
	conn net.Conn
	*textproto.Conn
}

// dial connects, reads the greeting and says EHLO.
func dial(t testing.TB, port int) *session {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	s := &session{t, conn, textproto.NewConn(conn)}
	s.want(220)
	s.cmd(250, "EHLO e2e.test")
	return s
}

// want reads a reply and returns its text.
func (s *session) want(code int) string {
	s.t.Helper()
	_, text, err := s.ReadResponse(code)
	if err != nil {
		s.t.Fatalf("want a reply %d: %v", code, err)
	}
	return text
}

// cmd sends a command and wants that reply.
func (s *session) cmd(code int, format string, args ...any) string {
	s.t.Helper()
	if _, err := fmt.Fprintf(s.conn, format+"\r\n", args...); err != nil {
		s.t.Fatal(err)
	}
	return s.want(code)
}

// raw sends octets as they are.
func (s *session) raw(text string) {
	s.t.Helper()
	if _, err := io.WriteString(s.conn, text); err != nil {
		s.t.Fatal(err)
	}
}

// send hands in a message, whose content is sent as it is: with its dots
// stuffed, without the final one.
func (s *session) send(from, to, content string) {
	s.t.Helper()
	s.cmd(250, "MAIL FROM:<%s> BODY=8BITMIME", from)
	s.cmd(250, "RCPT TO:<%s>", to)
	s.cmd(354, "DATA")
	s.raw(content)
	s.cmd(250, ".")
}
