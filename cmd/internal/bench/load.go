package main

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// load submits messages over kept connections and times each 250 after the
// content, while a sink in this process counts what arrives.
type load struct {
	addr  string
	n     int
	conns int
	size  int
	to    func(i int) string // recipient of message i
	auth  string             // base64 of AUTH PLAIN, or empty
	rate  float64            // messages a second; 0: as many as go
	again bool               // what is refused for now is offered again a second later, and counted

	first            int // number of message 0 in the sink's count
	began, lastReply time.Time
	ended            []time.Time     // by connection, when the last of its messages had its reply
	latency          []time.Duration // by message
	dots             []time.Time     // by message, when its end was sent; only with a rate
	refused          atomic.Int64
}

// result is what a load found.
type result struct {
	Accepted   int
	AcceptRate float64 // per second
	P50, P99   time.Duration
	EndRate    float64       // per second until the last arrived; 0 without a sink
	E2E50      time.Duration // from the dot at the relay to that at the sink; 0 without a rate
	E2E99      time.Duration
	Arrived    int
	Twice      int
}

// run submits everything and, with a sink, waits until all has arrived.
func (l *load) run(s *sink, patience time.Duration) (result, error) {
	l.latency = make([]time.Duration, l.n)
	if l.rate > 0 {
		l.dots = make([]time.Time, l.n)
	}
	if s != nil {
		l.first = s.expect(l.n)
	}
	l.ended = make([]time.Time, l.conns)
	var next atomic.Int64
	var wg, ready sync.WaitGroup
	errs := make([]error, l.conns)
	start := make(chan struct{})
	ready.Add(l.conns)
	for c := range l.conns {
		wg.Go(func() { errs[c] = l.worker(c, &next, sync.OnceFunc(ready.Done), start) })
	}
	ready.Wait()
	l.began = time.Now()
	close(start)
	wg.Wait()
	l.lastReply = slices.MaxFunc(l.ended, time.Time.Compare)
	if err := firstOf(errs); err != nil {
		return result{}, err
	}
	var r result
	ok := l.latency[:0:0]
	for _, d := range l.latency {
		if d > 0 {
			ok = append(ok, d)
		}
	}
	r.Accepted = len(ok)
	if len(ok) == 0 {
		return r, fmt.Errorf("nothing was accepted, %d refused", l.refused.Load())
	}
	r.AcceptRate = float64(len(ok)) / l.lastReply.Sub(l.began).Seconds()
	r.P50, r.P99 = quantile(ok, 0.5), quantile(ok, 0.99)
	if s != nil {
		var last time.Time
		r.Arrived, r.Twice, last = s.wait(r.Accepted, patience)
		if r.Arrived > 0 {
			r.EndRate = float64(r.Arrived) / last.Sub(l.began).Seconds()
		}
		r.E2E50, r.E2E99 = s.delays(l.dots)
	}
	return r, nil
}

// complete is an error unless all n messages arrived, once.
func (r result) complete(n int) error {
	if r.Arrived < n || r.Twice > 0 {
		return fmt.Errorf("%d of %d messages arrived, %d of them twice", r.Arrived, n, r.Twice)
	}
	return nil
}

// firstOf is the first of the errors of connections: when a relay is gone, all
// of them say the same.
func firstOf(errs []error) error {
	failed := slices.DeleteFunc(slices.Clone(errs), func(err error) bool { return err == nil })
	if len(failed) < 2 {
		return errors.Join(failed...)
	}
	return fmt.Errorf("%d of %d connections failed, the first: %w", len(failed), len(errs), failed[0])
}

// replyPatience is how long a relay may take to answer: one that hangs is an error.
const replyPatience = 2 * time.Minute

// worker submits over connection c, once all are open and logged in: it says
// that its own is ready, and waits for start.
func (l *load) worker(c int, next *atomic.Int64, ready func(), start <-chan struct{}) error {
	defer ready()
	conn, err := net.Dial("tcp", l.addr)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()                 // after QUIT
	_ = conn.SetDeadline(time.Now().Add(replyPatience)) // fails only on a closed connection
	br := bufio.NewReader(conn)
	say := func(line string, want int) error {
		if line != "" {
			if _, err := io.WriteString(conn, line+"\r\n"); err != nil {
				return err
			}
		}
		return expect(br, want)
	}
	if err := say("", 220); err != nil {
		return err
	}
	if err := say("EHLO bench.test", 250); err != nil {
		return err
	}
	if l.auth != "" {
		if err := say("AUTH PLAIN "+l.auth, 235); err != nil {
			return err
		}
	}
	ready()
	<-start
	msg := content(l.size)
	at := bytes.Index(msg, []byte("0000000000"))
	for {
		i := int(next.Add(1) - 1)
		if i >= l.n {
			l.ended[c] = time.Now()
			return say("QUIT", 221)
		}
		if l.rate > 0 {
			time.Sleep(time.Until(l.began.Add(time.Duration(float64(i) / l.rate * float64(time.Second)))))
		}
		copy(msg[at:], fmt.Sprintf("%010d", l.first+i))
		for {
			err := l.submit(conn, br, i, msg)
			if err == nil {
				break
			}
			if _, later := errors.AsType[laterError](err); !l.again || !later {
				return err
			}
			l.refused.Add(1)
			time.Sleep(time.Second)
		}
	}
}

// submit hands over message i, once. It returns a laterError for one that was
// refused for now.
func (l *load) submit(conn net.Conn, br *bufio.Reader, i int, msg []byte) error {
	_ = conn.SetDeadline(time.Now().Add(replyPatience)) // fails only on a closed connection
	if _, err := fmt.Fprintf(conn, "MAIL FROM:<bench@bench.test>\r\nRCPT TO:<%s>\r\nDATA\r\n", l.to(i)); err != nil {
		return err
	}
	if err := expect(br, 250); err != nil {
		if _, later := errors.AsType[laterError](err); later { // RCPT and DATA follow from it
			return cmp.Or(errors.Join(expect(br, 503), expect(br, 503)), err)
		}
		return err
	}
	for _, want := range []int{250, 354} {
		if err := expect(br, want); err != nil {
			return err
		}
	}
	if _, err := conn.Write(msg); err != nil {
		return err
	}
	dot := time.Now()
	if l.rate > 0 {
		l.dots[i] = dot
	}
	if err := expect(br, 250); err != nil {
		return err
	}
	l.latency[i] = max(1, time.Since(dot))
	return nil
}

// laterError is a reply that refuses for now.
type laterError string

func (e laterError) Error() string { return "refused for now: " + string(e) }

// content is a message of about size octets with its number in a header, and the final dot.
func content(size int) []byte {
	var b bytes.Buffer
	b.WriteString("From: <bench@bench.test>\r\nTo: <sink@bench.test>\r\nSubject: bench\r\nDate: Thu, 01 Jan 2026 00:00:00 +0000\r\nMessage-ID: <0000000000.bench@bench.test>\r\n\r\n")
	line := strings.Repeat("waybill ", 9) + "\r\n"
	for b.Len()+len(line) <= size {
		b.WriteString(line)
	}
	b.WriteString(".\r\n")
	return b.Bytes()
}

func expect(br *bufio.Reader, want int) error {
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return err
		}
		if len(line) > 3 && line[3] == '-' {
			continue
		}
		if code, _ := strconv.Atoi(line[:min(3, len(line))]); code != want { // a bad number is not the wanted one
			if code >= 400 && code < 500 {
				return laterError(strings.TrimSpace(line))
			}
			return fmt.Errorf("want %d, got %q", want, strings.TrimSpace(line))
		}
		return nil
	}
}

// sink is an SMTP server that counts messages by the number in their Message-ID.
type sink struct {
	l       net.Listener
	mu      sync.Mutex
	first   int // number of the first message that is expected: what comes late of an earlier load is not one of this
	seen    []uint8
	at      []time.Time // of the first arrival, by message
	arrived int
	twice   int
	last    time.Time
	done    chan struct{}
	want    int
}

func newSink(addr string) (*sink, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	s := &sink{l: l}
	go s.serve()
	return s, nil
}

func (s *sink) port() int { return s.l.Addr().(*net.TCPAddr).Port }

// close ends the listener; sessions end with their peers.
func (s *sink) close() { _ = s.l.Close() }

// expect says that n messages will come. It returns the number of the first.
func (s *sink) expect(n int) (first int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.first += len(s.seen)
	s.at = make([]time.Time, n)
	s.seen, s.arrived, s.twice, s.want, s.done = make([]uint8, n), 0, 0, 0, make(chan struct{})
	return s.first
}

// wait waits until n have arrived or nothing more comes in time.
func (s *sink) wait(n int, patience time.Duration) (arrived, twice int, last time.Time) {
	s.mu.Lock()
	s.want = n
	done := s.done
	if s.arrived >= n {
		s.want = -1
	}
	full := s.want < 0
	s.mu.Unlock()
	if !full {
		select {
		case <-done:
		case <-time.After(patience):
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.arrived, s.twice, s.last
}

// delays are the median and the 99th percentile of how long messages took whose
// ends were sent at dots.
func (s *sink) delays(dots []time.Time) (p50, p99 time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var took []time.Duration
	for i, dot := range dots {
		if !s.at[i].IsZero() && !dot.IsZero() {
			took = append(took, s.at[i].Sub(dot))
		}
	}
	return quantile(took, 0.5), quantile(took, 0.99)
}

func (s *sink) serve() {
	for {
		c, err := s.l.Accept()
		if err != nil {
			return
		}
		go s.session(c)
	}
}

func (s *sink) session(c net.Conn) {
	defer func() { _ = c.Close() }() // the peer has said QUIT, or is gone
	br, bw := bufio.NewReaderSize(c, 64<<10), bufio.NewWriter(c)
	_, _ = bw.WriteString("220 sink.test ESMTP\r\n") // errors show at the flush
	for {
		if br.Buffered() == 0 && bw.Flush() != nil {
			return
		}
		line, err := br.ReadSlice('\n')
		if err != nil {
			return
		}
		switch strings.ToUpper(string(line[:min(4, len(line))])) {
		case "EHLO":
			_, _ = bw.WriteString("250-sink.test\r\n250-PIPELINING\r\n250-SIZE 100000000\r\n250 8BITMIME\r\n")
		case "DATA":
			_, _ = bw.WriteString("354 go\r\n")
			if bw.Flush() != nil || !s.body(br) {
				return
			}
			_, _ = bw.WriteString("250 2.0.0 taken\r\n")
		case "QUIT":
			_, _ = bw.WriteString("221 bye\r\n")
			_ = bw.Flush()
			return
		default:
			_, _ = bw.WriteString("250 ok\r\n")
		}
	}
}

// skipContent reads what is left of a content, from the beginning of a line to
// behind the final dot. It looks for dots, of which there are few, and not for
// lines: the relay that is measured has the same processors.
func skipContent(br *bufio.Reader) bool {
	for begins := true; ; { // a line, with the next octet
		if _, err := br.Peek(1); err != nil {
			return false
		}
		p, _ := br.Peek(br.Buffered()) // it is there
		if begins && p[0] == '.' {
			p, err := br.Peek(3)
			if err != nil {
				return false
			}
			if p[1] == '\r' && p[2] == '\n' {
				_, _ = br.Discard(3) // it was peeked
				return true
			}
		}
		dot := 1
		for dot < len(p) && (p[dot] != '.' || p[dot-1] != '\n') {
			next := bytes.IndexByte(p[dot+1:], '.')
			if dot += 1 + next; next < 0 {
				dot = len(p)
			}
		}
		begins = p[dot-1] == '\n'
		_, _ = br.Discard(dot) // it was peeked
	}
}

func (s *sink) body(br *bufio.Reader) bool {
	id := -1
	for found := false; !found; {
		line, err := br.ReadSlice('\n')
		if err != nil {
			return false
		}
		if len(line) == 3 && line[0] == '.' {
			return true
		}
		if len(line) > 22 && (line[0] == 'M' || line[0] == 'm') && bytes.EqualFold(line[:12], []byte("message-id: ")) {
			found = true
			if n, err := strconv.Atoi(string(line[13:23])); err == nil {
				id = n
			}
		}
	}
	if !skipContent(br) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if id -= s.first; id < 0 || id >= len(s.seen) {
		return true // nobody waits for it
	}
	if s.seen[id]++; s.seen[id] > 1 {
		s.twice++
		return true
	}
	s.arrived++
	s.last = time.Now()
	s.at[id] = s.last
	if s.arrived == s.want {
		s.want = -1
		close(s.done)
	}
	return true
}
