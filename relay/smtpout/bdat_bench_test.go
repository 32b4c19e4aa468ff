package smtpout

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"waybill/relay/relaytest"
)

// BenchmarkBDAT compares the ways that content can go, over connections with and
// without delay: the reason why it goes by DATA (docs/decisions). It speaks to the
// host by itself, since smtpout has but one of these ways.
func BenchmarkBDAT(b *testing.B) {
	const envelope = "MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n"
	content := strings.Repeat("a line of content, of no particular interest\r\n", 222)
	for _, trip := range []time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond} {
		for _, way := range []struct {
			name  string
			steps []string // each is written at once, and its replies are awaited
			codes [][]string
		}{
			{"DATA", []string{envelope + "DATA\r\n", content + ".\r\n"}, [][]string{{"250", "250", "354"}, {"250"}}},
			{"BDAT", []string{envelope, fmt.Sprintf("BDAT %d LAST\r\n%s", len(content), content)}, [][]string{{"250", "250"}, {"250"}}},
			{"BDAT with the envelope", []string{envelope + fmt.Sprintf("BDAT %d LAST\r\n%s", len(content), content)}, [][]string{{"250", "250", "250"}}},
		} {
			b.Run(fmt.Sprintf("round trip %v, %s", trip, way.name), func(b *testing.B) {
				h := relaytest.NewSmartHost(b, relaytest.WithExtensions("PIPELINING", "CHUNKING"), relaytest.WithKeep(1))
				conn, err := net.Dial("tcp", distant(b, h.Addr(), trip/2))
				if err != nil {
					b.Fatal(err)
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(5 * time.Minute))
				r := bufio.NewReader(conn)
				expect := func(code string) {
					for {
						line, err := r.ReadString('\n')
						if err != nil || !strings.HasPrefix(line, code) {
							b.Fatalf("%q, %v; want %s", line, err, code)
						}
						if line[3] == ' ' {
							return
						}
					}
				}
				expect("220")
				_, _ = io.WriteString(conn, "EHLO x.example\r\n")
				expect("250")
				b.ReportAllocs()
				for b.Loop() {
					for i, step := range way.steps {
						if _, err := io.WriteString(conn, step); err != nil {
							b.Fatal(err)
						}
						for _, code := range way.codes[i] {
							expect(code)
						}
					}
				}
			})
		}
	}
}

// distant is an address whose connections go to another one, and take so long for
// each direction.
func distant(b *testing.B, to string, delay time.Duration) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var group sync.WaitGroup
	b.Cleanup(func() { _ = l.Close(); group.Wait() })
	group.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				return
			}
			group.Go(func() { carry(far, near, delay) })
			group.Go(func() { carry(near, far, delay) })
		}
	})
	return l.Addr().String()
}

// carry writes to w what r gives, so much later.
func carry(w, r net.Conn, delay time.Duration) {
	defer w.Close()
	type piece struct {
		at time.Time
		p  []byte
	}
	pieces := make(chan piece, 1000)
	var group sync.WaitGroup
	defer group.Wait()
	defer close(pieces)
	group.Go(func() {
		for p := range pieces {
			<-time.After(time.Until(p.at))
			if _, err := w.Write(p.p); err != nil {
				_ = r.Close()
			}
		}
	})
	for {
		p := make([]byte, 64<<10)
		n, err := r.Read(p)
		if n > 0 {
			pieces <- piece{time.Now().Add(delay), p[:n]}
		}
		if err != nil {
			return
		}
	}
}
