package smtpin

import (
	"bufio"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/emersion/go-smtp"
)

// BenchmarkReception hands in messages of 10 KiB over 8 sessions, to us and to
// go-smtp alone. The processor time is that of client and server together; the
// client is the same for all.
func BenchmarkReception(b *testing.B) {
	content := strings.Repeat(strings.Repeat("x", 76)+"\r\n", 10240/78)
	header := "Received: from a by b; Sun, 22 Nov 2026 03:04:05 +0000\r\nFrom: Ann <ann@example.net>\r\nTo: b@example.org\r\nSubject: hello\r\nMessage-ID: <1@example.net>\r\n\r\n"
	for _, way := range []struct {
		name      string
		pipelined bool
	}{{"lockstep", false}, {"pipelined", true}} {
		b.Run(way.name+"/waybill", func(b *testing.B) {
			r := start(b, Options{Acceptor: &acceptor{discard: true}, Connectors: []Connector{open(func(c *Connector) { c.Limits.SessionTimeout = -1 })}})
			r.rec.off.Store(true)
			load(b, r.addr("test"), header+content, way.pipelined)
		})
		b.Run(way.name+"/go-smtp", func(b *testing.B) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			srv := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return plainSession{}, nil }))
			done := make(chan struct{})
			go func() { defer close(done); _ = srv.Serve(ln) }()
			load(b, ln.Addr().String(), header+content, way.pipelined)
			_ = srv.Close()
			<-done
		})
	}
}

type plainSession struct{}

func (plainSession) Reset()                               {}
func (plainSession) Logout() error                        { return nil }
func (plainSession) Mail(string, *smtp.MailOptions) error { return nil }
func (plainSession) Rcpt(string, *smtp.RcptOptions) error { return nil }
func (plainSession) Data(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

// load sends b.N messages over 8 connections.
func load(b *testing.B, addr, content string, pipelined bool) {
	const mailFrom, rcptTo, data = "MAIL FROM:<a@example.net>\r\n", "RCPT TO:<b@example.org>\r\n", "DATA\r\n"
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	var before, after syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	b.ReportAllocs()
	b.ResetTimer()
	for range 8 {
		wg.Go(func() {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				b.Error(err)
				return
			}
			defer c.Close()
			br := bufio.NewReader(c)
			ask := func(s string, replies int, want byte) bool {
				if _, err := io.WriteString(c, s); err != nil {
					b.Error(err)
					return false
				}
				for range replies {
					for {
						line, err := br.ReadSlice('\n')
						if err != nil || line[0] != want && line[0] != '3' {
							b.Errorf("%q: %q %v", s[:min(len(s), 20)], line, err)
							return false
						}
						if line[3] == ' ' {
							break
						}
					}
				}
				return true
			}
			if !ask("", 1, '2') || !ask("EHLO me\r\n", 1, '2') {
				return
			}
			body := content + ".\r\n"
			for left.Add(-1) >= 0 {
				var ok bool
				if pipelined {
					ok = ask(mailFrom+rcptTo+data, 3, '2') && ask(body, 1, '2')
				} else {
					ok = ask(mailFrom, 1, '2') && ask(rcptTo, 1, '2') && ask(data, 1, '3') && ask(body, 1, '2')
				}
				if !ok {
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(used)/1e3/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}
