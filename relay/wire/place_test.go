package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// arriving is a connection that octets come from in pieces.
type arriving struct {
	net.Conn
	src  []byte
	size int
}

func (a *arriving) Read(p []byte) (int, error) {
	if len(a.src) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), a.size)], a.src)
	a.src = a.src[n:]
	return n, nil
}

func (a *arriving) SetReadDeadline(time.Time) error { return nil }

// place keeps a content in one buffer, of which it shows a part at a time, and
// now and then nothing.
type place struct {
	buf   []byte
	n     int
	shown int
	asked int
}

func (p *place) Room() []byte {
	if p.asked++; p.asked%5 == 0 {
		return nil
	}
	room := p.buf[p.n:]
	return room[:min(len(room), p.shown)]
}

// take is what an acceptor does with what Next returned.
func (p *place) take(b []byte) {
	if len(b) > 0 && &b[0] != &p.buf[p.n] {
		copy(p.buf[p.n:], b)
	}
	p.n += len(b)
	clear(p.buf[p.n:]) // nobody may need it any more
}

// receiveAll receives a content that comes in pieces of size, into a place that
// shows so much at once, or into none. held is what was received before.
func receiveAll(src []byte, held, size, shown int, policy Newline) (out, rest string, repaired bool, err error) {
	raw := &arriving{src: bytes.Clone(src), size: size}
	c := New(raw, Options{BareNewline: policy})
	c.crlf = true
	if held = min(held, len(raw.src), smallBuffer); held > 0 {
		c.in.filled(copy(c.in.room(false), raw.src[:held]))
		raw.src = raw.src[held:]
	}
	b := &c.body
	b.start(modeData)
	b.answered = true
	to := &place{buf: make([]byte, 3*len(src)+1), shown: shown}
	if shown > 0 {
		b.Into(to)
	}
	for {
		p, err := b.Next()
		if errors.Is(err, io.EOF) {
			return string(to.buf[:to.n]), string(c.in.bytes()) + string(raw.src), b.Repaired(), nil
		}
		if err != nil {
			return string(to.buf[:to.n]), "", b.Repaired(), err
		}
		to.take(p)
	}
}

func TestInto(t *testing.T) {
	long := strings.Repeat("..a line that begins with a dot\r\nand one that does not\r\n", 100)
	for _, test := range []struct {
		name   string
		in     string
		policy Newline
		want   string // with "|" where the content ends
	}{
		{"empty", ".\r\n", Reject, "|"},
		{"lines", "a\r\n..b\r\n.\r\n", Reject, "a\r\n.b\r\n|"},
		{"what follows stays", "a\r\n.\r\nMAIL FROM:<>\r\nRCPT", Reject, "a\r\n|MAIL FROM:<>\r\nRCPT"},
		{"much follows", "a\r\n.\r\n" + strings.Repeat("NOOP\r\n", 5000), Reject, "a\r\n|" + strings.Repeat("NOOP\r\n", 5000)},
		{"long", long + ".\r\n", Reject, strings.ReplaceAll(long, "..", ".") + "|"},
		{"repaired", "a\n.\nb\rc\x00\r\n\n.\r\n\r\n.\r\nQUIT", Normalise, "a\r\n.\r\nb c \r\n\r\n.\r\n\r\n|QUIT"},
		{"grows by repair", strings.Repeat("\n", 3000) + "\r\n.\r\n", Normalise, strings.Repeat("\r\n", 3001) + "|"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, size := range []int{1, 2, 3, 7, 1023, 1024, 5000, 1 << 20} {
				for _, shown := range []int{0, leastRoom - 1, leastRoom, 1500, 1 << 20} {
					for _, held := range []int{0, 1, 5} {
						out, rest, repaired, err := receiveAll([]byte(test.in), held, size, shown, test.policy)
						if got := out + "|" + rest; err != nil || got != test.want {
							t.Fatalf("in pieces of %d, room of %d, %d held: %.100q, %v, want %.100q", size, shown, held, got, err, test.want)
						}
						if want := test.policy == Normalise; repaired != want {
							t.Errorf("Repaired() = %t, want %t", repaired, want)
						}
					}
				}
			}
		})
	}
}

// FuzzInto: what is received in its place is what is received otherwise.
func FuzzInto(f *testing.F) {
	for _, s := range []string{"a\r\n..b\r\n.\r\nQUIT\r\n", "\n.\n\r\n.\r\n", ".\r\n", "..\r\r.\r\n\x00\r\n.\r\n", "a\r\n.\r"} {
		f.Add([]byte(s), uint16(1), uint16(0), true)
	}
	f.Fuzz(func(t *testing.T, src []byte, size, held uint16, normalise bool) {
		policy := Reject
		if normalise {
			policy = Normalise
		}
		for _, shown := range []int{leastRoom, largeBuffer + 1} {
			wantOut, wantRest, wantRepaired, wantErr := receiveAll(src, int(held), int(size)+1, 0, policy)
			out, rest, repaired, err := receiveAll(src, int(held), int(size)+1, shown, policy)
			if (err == nil) != (wantErr == nil) || err == nil && (out != wantOut || rest != wantRest) || repaired != wantRepaired {
				t.Fatalf("in pieces of %d, %d held: %q, %q, %t, %v, want %q, %q, %t, %v", size, held, out, rest, repaired, err, wantOut, wantRest, wantRepaired, wantErr)
			}
		}
	})
}
