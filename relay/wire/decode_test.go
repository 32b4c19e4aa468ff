package wire

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// decodeAll feeds src to a decoder in pieces that cut chooses, as a network does.
func decodeAll(src []byte, cut func(left int) int) (out []byte, rest []byte, d dots, end bool) {
	var buf []byte
	for len(src) > 0 {
		n := cut(len(src))
		buf = append(buf, src[:n]...)
		src = src[n:]
		p, used, e := d.decode(buf)
		out = append(out, p...)
		buf = append([]byte(nil), buf[used:]...)
		if e {
			return out, append(buf, src...), d, true
		}
	}
	return out, buf, d, false
}

// reference is RFC 5321 section 4.5.2, an octet at a time.
func reference(src []byte) (out []byte, rest []byte, bare, end bool) {
	start := true
	for i := range src {
		if start && src[i] == '.' {
			if bytes.HasPrefix(src[i:], []byte(".\r\n")) {
				return out, src[i+3:], bare, true
			}
			start = false
			continue
		}
		start = false
		switch {
		case src[i] == '\n':
			if i > 0 && src[i-1] == '\r' && (len(out) > 0 && out[len(out)-1] == '\r') {
				start = true
			} else {
				bare = true
			}
		case src[i] == '\r' && i+1 < len(src) && src[i+1] != '\n':
			bare = true
		}
		out = append(out, src[i])
	}
	return out, nil, bare, false
}

// clean reports whether p has nothing that must not leave the relay.
func clean(p []byte, afterCR bool) bool {
	return paired(p, afterCR) && bytes.IndexByte(p, 0) < 0
}

func TestDecode(t *testing.T) {
	for _, test := range []struct {
		name string
		in   string
		bare bool
		want string // with "|" where the end was seen
	}{
		{"empty", ".\r\n", false, "|"},
		{"a line", "a\r\n.\r\n", false, "a\r\n|"},
		{"stuffed", "..a\r\n..\r\n...\r\n.\r\n", false, ".a\r\n.\r\n..\r\n|"},
		{"what follows stays", "a\r\n.\r\nQUIT\r\n", false, "a\r\n|QUIT\r\n"},
		{"dot within", "a.\r\nb.c\r\n.\r\n", false, "a.\r\nb.c\r\n|"},
		{"LF dot LF", "a\n.\nb\r\n.\r\n", true, "a\n.\nb\r\n|"},
		{"LF dot CRLF", "a\n.\r\nb\r\n.\r\n", true, "a\n.\r\nb\r\n|"},
		{"CRLF dot LF", "a\r\n.\nb\r\n.\r\n", true, "a\r\n\nb\r\n|"},
		{"CR dot CR", "a\r.\rb\r\n.\r\n", true, "a\r.\rb\r\n|"},
		{"CR dot CRLF", "a\r.\r\nb\r\n.\r\n", true, "a\r.\r\nb\r\n|"},
		{"CRLF dot CR CRLF", "a\r\n.\r\r\nb\r\n.\r\n", true, "a\r\n\r\r\nb\r\n|"},
		{"CR CRLF dot CRLF", "a\r\r\n.\r\n", true, "a\r\r\n|"},
		{"CRLF dot CR x", "a\r\n.\rx\r\n.\r\n", true, "a\r\n\rx\r\n|"},
		{"LF stuffed", "a\n..b\r\n.\r\n", true, "a\n.b\r\n|"},
		{"many CRs", "a" + strings.Repeat("\r", 9) + "\n.\r\n", true, "a" + strings.Repeat("\r", 9) + "\n|"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for size := 1; size <= len(test.in); size++ {
				out, rest, d, end := decodeAll([]byte(test.in), func(left int) int { return min(size, left) })
				got := string(out)
				if end {
					got += "|" + string(rest)
				}
				if got != test.want || d.bare != test.bare {
					t.Errorf("in pieces of %d: %q bare %t, want %q bare %t", size, got, d.bare, test.want, test.bare)
				}
			}
		})
	}
}

// TestDecodeLF: a client that ends all its lines in LF ends its content so, too.
func TestDecodeLF(t *testing.T) {
	for _, test := range []struct {
		name string
		in   string
		want string // with "|" where the end was seen
	}{
		{"empty", ".\n", "|"},
		{"lines", "a\nb\n.\nQUIT\n", "a\nb\n|QUIT\n"},
		{"stuffed", "..a\nb\n..c\n.\n", ".a\nb\n.c\n|"},
		{"a dot that is not", "a\n.b\n.\n", "a\n.b\n|"},
		{"CRLF at the end", "a\nb\r\n.\r\n", "a\nb\r\n|"},
		{"LF dot CRLF", "a\n.\r\nb", "a\n|b"},
		{"CRLF dot LF", "a\r\n.\nb", "a\r\n|b"},
		{"CR dot LF", "a\r.\nb\n.\n", "a\r.\nb\n|"},
		{"LF dot CR x", "a\n.\rx\n.\n", "a\n\rx\n|"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for size := 1; size <= len(test.in); size++ {
				d, got, buf := dots{lf: true}, "", []byte(nil)
				for src := []byte(test.in); len(src) > 0; {
					n := min(size, len(src))
					buf, src = append(buf, src[:n]...), src[n:]
					out, used, end := d.decode(buf)
					got += string(out)
					buf = append([]byte(nil), buf[used:]...)
					if end {
						got += "|" + string(buf) + string(src)
						break
					}
				}
				if got != test.want {
					t.Fatalf("by %d: %q, want %q", size, got, test.want)
				}
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{"a\r\n..b\r\n.\r\nQUIT\r\n", "\r\r\n.\r\n", "\n.\n\r\n.\r\n", ".\r\n", "..\r\r.\r\n\x00\r\n.\r\n"} {
		f.Add([]byte(s), uint64(1))
	}
	f.Fuzz(func(t *testing.T, src []byte, seed uint64) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		out, rest, d, end := decodeAll(bytes.Clone(src), func(left int) int { return 1 + rnd.IntN(min(left, 7)) })
		wantOut, wantRest, wantBare, wantEnd := reference(src)
		if end != wantEnd {
			t.Fatalf("end %t, want %t", end, wantEnd)
		}
		if !end {
			return
		}
		if d.bare != wantBare {
			t.Fatalf("bare %t, want %t", d.bare, wantBare)
		}
		if !bytes.Equal(rest, wantRest) {
			t.Fatalf("rest %q, want %q", rest, wantRest)
		}
		if !wantBare && !bytes.Equal(out, wantOut) {
			t.Fatalf("out %q, want %q", out, wantOut)
		}
		if fixed := normalise(nil, out, false); !clean(fixed, false) {
			t.Fatalf("normalise(%q) = %q is not clean", out, fixed)
		}
	})
}

// TestDecodeLines: lines that are as long as those before them are found where
// they should be, and what is hidden in one of them is found all the same.
func TestDecodeLines(t *testing.T) {
	line := strings.Repeat("x", 74) + "\r\n"
	plain := strings.Repeat(line, 3*stretch/len(line))
	at := func(i int, s string) string { return plain[:i] + s + plain[i+len(s):] }
	second := len(line)*100 + 20
	for _, test := range []struct {
		name string
		in   string
		bare bool
		want string
	}{
		{"alike", plain, false, plain},
		{"LF within", at(second, "\n"), true, at(second, "\n")},
		{"CR within", at(second, "\r"), true, at(second, "\r")},
		{"CRLF within", at(second, "\r\n"), false, at(second, "\r\n")},
		{"two lines within", at(second, "\r\n.x\r\n"), false, plain[:second] + "\r\nx\r\n" + plain[second+6:]},
		{"stuffed within", at(second, "\r\n..\r\n"), false, plain[:second] + "\r\n.\r\n" + plain[second+6:]},
		{"LF dot LF within", at(second, "\n.\n"), true, at(second, "\n.\n")},
		{"LF dot CRLF within", at(second, "\n.\r\n"), true, at(second, "\n.\r\n")},
		{"CR dot CR within", at(second, "\r.\r"), true, at(second, "\r.\r")},
		{"LF at the end of a line", at(len(line)*30-2, "x\n"), true, at(len(line)*30-2, "x\n")},
		{"stuffed line", at(len(line)*31, ".."), false, plain[:len(line)*31] + "." + plain[len(line)*31+2:]},
		{"the end within", at(second, "\r\n.\r\n"), false, plain[:second] + "\r\n"},
		{"empty lines", strings.Repeat("\r\n", 3*stretch), false, strings.Repeat("\r\n", 3*stretch)},
		{"line feeds", strings.Repeat("\n", 3*stretch) + "\r\n", true, strings.Repeat("\n", 3*stretch) + "\r\n"},
		{"long lines", strings.Repeat(strings.Repeat("y", 2*stretch)+"\r\n", 3), false, strings.Repeat(strings.Repeat("y", 2*stretch)+"\r\n", 3)},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, size := range []int{1, 75, 76, 1000, stretch - 1, stretch + 1, len(test.in) + 3} {
				out, _, d, end := decodeAll([]byte(test.in+".\r\n"), func(left int) int { return min(size, left) })
				if string(out) != test.want || d.bare != test.bare || !end {
					t.Errorf("in pieces of %d: %d octets %.60q, bare %t, end %t, want %d octets %.60q, bare %t", size, len(out), out, d.bare, end, len(test.want), test.want, test.bare)
				}
			}
		})
	}
}

func TestOrdinary(t *testing.T) {
	for n := range 100 {
		p := bytes.Repeat([]byte{0x7f}, n)
		if !ordinary(p) {
			t.Errorf("ordinary(%d of 0x7f) = false", n)
		}
		for i := range p {
			for _, x := range []byte{0, 1, 0x7f, 0x80, 0xff} {
				p[i] = x
				if got, want := ordinary(p), x > 0 && x < 0x80; got != want {
					t.Errorf("ordinary(%d octets, %#x at %d) = %t, want %t", n, x, i, got, want)
				}
			}
			p[i] = 1
		}
	}
}

// FuzzDecodeLines: many lines of the same length, and what is put into them, are
// decoded as RFC 5321 says, in whatever pieces they come.
func FuzzDecodeLines(f *testing.F) {
	for _, s := range []string{"", "\n", "\r", "\r\n", "\r\n..\r\n", "\n.\n", "\r\n.\r\n", "\x00", "\xff"} {
		f.Add(uint8(20), uint16(300), []byte(s), uint16(0), uint16(4000))
	}
	f.Fuzz(func(t *testing.T, width uint8, lines uint16, what []byte, at, size uint16) {
		line := strings.Repeat("x", int(width)) + "\r\n"
		src := []byte(strings.Repeat(line, int(lines%1000)))
		src = slices.Insert(src, int(at)%(len(src)+1), what...)
		src = append(src, ".\r\n"...)
		out, rest, d, end := decodeAll(bytes.Clone(src), func(left int) int { return min(int(size)+1, left) })
		wantOut, wantRest, wantBare, wantEnd := reference(src)
		if end != wantEnd {
			t.Fatalf("end %t, want %t", end, wantEnd)
		}
		if !end {
			return
		}
		if d.bare != wantBare || !bytes.Equal(rest, wantRest) {
			t.Fatalf("bare %t, rest %q, want %t, %q", d.bare, rest, wantBare, wantRest)
		}
		if !wantBare && !bytes.Equal(out, wantOut) {
			t.Fatalf("out %q, want %q", out, wantOut)
		}
		if got, want := d.eight, slices.ContainsFunc(out, func(c byte) bool { return c == 0 || c >= 0x80 }); got != want {
			t.Fatalf("eight %t, want %t", got, want)
		}
	})
}

func FuzzParseChunk(f *testing.F) {
	for _, s := range []string{"10", "0 LAST", "1 last ", "-1", "99999999999999999999", " 5  LAST", "5 LAST x", "+5", ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, args []byte) {
		n, last, ok := parseChunk(args)
		if !ok {
			return
		}
		if n < 0 {
			t.Fatalf("parseChunk(%q) = %d", args, n)
		}
		again := fmt.Sprint(n)
		if last {
			again += " LAST"
		}
		if n2, last2, ok := parseChunk([]byte(again)); n2 != n || last2 != last || !ok {
			t.Fatalf("parseChunk(%q) = %d, %t, %t", again, n2, last2, ok)
		}
	})
}

func TestNormalise(t *testing.T) {
	for _, test := range []struct {
		name, in string
		afterCR  bool
		want     string
	}{
		{"clean", "a\r\nb\r\n", false, "a\r\nb\r\n"},
		{"LF", "a\nb\n", false, "a\r\nb\r\n"},
		{"CRs", "a\r\r\r\nb", false, "a\r\nb"},
		{"CR", "a\rb", false, "a b"},
		{"NUL", "a\x00b", false, "a b"},
		{"LF first", "\na", false, "\r\na"},
		{"LF first, after CR", "\na", true, "\na"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := normalise(nil, []byte(test.in), test.afterCR); string(got) != test.want {
				t.Errorf("normalise(%q) = %q, want %q", test.in, got, test.want)
			}
		})
	}
}

func TestPrintable(t *testing.T) {
	for _, test := range []struct {
		name, in string
		limit    int
		want     string
	}{
		{"plain", "user@example.com", 40, "user@example.com"},
		{"umlaut", "fööbar", 40, "fööbar"},
		{"escape sequence", "\x1b[31mred", 40, `\x1b[31mred`},
		{"lines", "a\r\nb\x00", 40, `a\x0d\x0ab\x00`},
		{"C1", "a\u0085b", 40, `a\x85b`},
		{"direction", "a\u202eb", 40, `a\u202eb`},
		{"far", "a\U000e0001", 40, `a\U000e0001`},
		{"not UTF-8", "a\xffb", 40, `a\xffb`},
		{"long", "abcdefgh", 4, "abcd…"},
		{"long, escaped", "ab\x00\x00", 6, `ab\x00…`},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := Printable(test.in, test.limit); got != test.want {
				t.Errorf("Printable(%q) = %q, want %q", test.in, got, test.want)
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	line := strings.Repeat("x", 74) + "\r\n"
	content := []byte(strings.Repeat(line, largeBuffer/len(line)))
	buf := make([]byte, len(content))
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		var d dots
		copy(buf, content)
		d.decode(buf)
	}
}
