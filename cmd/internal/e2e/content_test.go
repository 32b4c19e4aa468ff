//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"waybill/cmd/internal/peers"
	"waybill/relay/relaytest"
)

// sameContent wants the message that host got to end in the content that has
// this length and hash, after trace fields of ours.
func sameContent(t testing.TB, got []byte, length int, sum [sha256.Size]byte) {
	t.Helper()
	if len(got) < length {
		t.Fatalf("%d octets arrived, %d were sent", len(got), length)
	}
	trace, content := got[:len(got)-length], got[len(got)-length:]
	if sha256.Sum256(content) != sum {
		t.Errorf("the last %d octets are not those that were sent", length)
	}
	if !bytes.HasPrefix(trace, []byte("Received: from ")) || !bytes.HasSuffix(trace, []byte("\r\n")) || bytes.Contains(trace, []byte("\r\n\r\n")) {
		t.Errorf("before the content stands %q, want a Received field", trace)
	}
}

// TestLargeMessage sends 30 MiB through a daemon that must not hold them in
// memory: neither what comes in, nor what goes out.
func TestLargeMessage(t *testing.T) {
	t.Parallel()
	const size, may = 30 << 20, 40 << 20
	in := port(t)
	host := relaytest.NewSmartHost(t)
	d := start(t, relayConf(in, int(host.Port())))
	s := dial(t, in)
	for i := range 3 { // so that what every daemon needs is there
		s.send("a@source.test", fmt.Sprintf("warm%d@dest.test", i), hello)
	}
	d.empty(time.Minute)
	before, err := peers.RSS(d.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	peak, watched := make(chan int64), make(chan struct{})
	samples := 0
	go func() {
		most := before
		for {
			select {
			case <-watched:
				peak <- most
				return
			case <-time.After(5 * time.Millisecond):
				if now, err := peers.RSS(d.cmd.Process.Pid); err == nil {
					most = max(most, now)
					samples++
				}
			}
		}
	}()

	began := time.Now()
	s.cmd(250, "MAIL FROM:<a@source.test> SIZE=%d", size+1000)
	s.cmd(250, "RCPT TO:<large@dest.test>")
	s.cmd(354, "DATA")
	hash := sha256.New()
	w := bufio.NewWriterSize(s.conn, 64<<10)
	both := io.MultiWriter(w, hash)
	length, _ := io.WriteString(both, "From: <a@source.test>\r\nSubject: large\r\n\r\n")
	dice := rand.NewChaCha8([32]byte{1})
	line := make([]byte, 57)
	for length < size {
		_, _ = dice.Read(line)
		n, err := fmt.Fprintf(both, "%76x\r\n", line[:38])
		if err != nil {
			t.Fatal(err)
		}
		length += n
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	s.cmd(250, ".")
	accepted := time.Since(began)
	messages, err := host.Wait(4, 2*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	relayed := time.Since(began)
	d.empty(time.Minute)
	close(watched)
	grown := <-peak - before
	t.Logf("%d MiB accepted after %s, relayed after %s; resident set %d MiB before, %d MiB more at the highest of %d looks",
		length>>20, accepted.Round(time.Millisecond), relayed.Round(time.Millisecond), before>>20, grown>>20, samples)
	if samples < 5 {
		t.Errorf("only %d looks at the resident set: this proves nothing", samples)
	}
	if grown > may {
		t.Errorf("the resident set grew by %d MiB, want at most %d", grown>>20, may>>20)
	}
	sameContent(t, messages[3].Content, length, [sha256.Size]byte(hash.Sum(nil)))
}

// TestBytes sends what programs like to change: 8-bit octets, lines of dots,
// long lines, spaces at ends, no final line end to speak of.
func TestBytes(t *testing.T) {
	t.Parallel()
	var eight strings.Builder
	for i := range 256 {
		if i != '\r' && i != '\n' && i != 0 {
			eight.WriteByte(byte(i))
		}
	}
	head := "From: <a@source.test>\r\nSubject: =?utf-8?q?caf=C3=A9?=\r\nX-Folded: one\r\n\ttwo\r\n X-Three: three\r\nsubject:no space, and again\r\n\r\n"
	in := port(t)
	host := relaytest.NewSmartHost(t)
	d := start(t, relayConf(in, int(host.Port())))
	for i, test := range []struct {
		name string
		body string
	}{
		{"8-bit", eight.String() + "\r\n"},
		{"latin 1", "caf\xe9 na\xefve\r\n"},
		{"utf-8", "café, naïve, 日本語, 🙂\r\n"},
		{"dots", ".\r\n..\r\n...\r\n.a\r\na.\r\n\r\n.\r\n\r\n..\r\n"},
		{"a dot at the end", "text\r\n."},
		{"empty lines", "\r\n\r\n\r\n"},
		{"nothing", ""},
		{"spaces", "  a  \r\n\t\r\n   \r\nb\t \r\n"},
		{"long line", strings.Repeat("0123456789", 99) + "\r\n"},
		{"looks like SMTP", "RSET\r\nQUIT\r\nMAIL FROM:<x@y>\r\n. \r\n .\r\n"},
		{"From at the beginning", "From here on\r\n>From there\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			content := head + test.body
			if !strings.HasSuffix(content, "\r\n") {
				content += "\r\n"
			}
			stuffed := strings.ReplaceAll("\r\n"+content, "\r\n.", "\r\n..")[2:]
			dial(t, in).send("a@source.test", fmt.Sprintf("r%d@dest.test", i), stuffed)
			messages, err := host.Wait(i+1, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			sameContent(t, messages[i].Content, len(content), sha256.Sum256([]byte(content)))
		})
	}
	if v := host.Violations(); len(v) > 0 {
		t.Errorf("the next hop complains: %q", v)
	}
	d.empty(time.Minute)
}
