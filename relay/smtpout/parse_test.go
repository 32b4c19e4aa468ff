package smtpout

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/textproto"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode/utf8"

	"waybill/relay/mail"
	"waybill/relay/transcript"
)

func parse(in io.Reader) (mail.Reply, error) {
	p := replyReader{r: bufio.NewReaderSize(in, 4<<10)}
	if err := p.read(); err != nil {
		return mail.Reply{}, err
	}
	return p.reply(), nil
}

func TestReadReply(t *testing.T) {
	for _, test := range []struct {
		name string
		in   string
		want mail.Reply
		err  error
	}{
		{"one line", "250 ok\r\n", mail.Reply{Code: 250, Text: "ok"}, nil},
		{"code alone", "250\r\n", mail.Reply{Code: 250}, nil},
		{"code and space", "250 \r\n", mail.Reply{Code: 250}, nil},
		{"bare LF", "250 ok\n", mail.Reply{Code: 250, Text: "ok"}, nil},
		{"enhanced", "550 5.1.1 no such user\r\n", mail.Reply{Code: 550, Enhanced: "5.1.1", Text: "no such user"}, nil},
		{"enhanced alone", "550 5.1.1\r\n", mail.Reply{Code: 550, Enhanced: "5.1.1"}, nil},
		{"enhanced of another class", "550 4.1.1 x\r\n", mail.Reply{Code: 550, Text: "4.1.1 x"}, nil},
		{"not enhanced", "550 5.1.1.1 x\r\n", mail.Reply{Code: 550, Text: "5.1.1.1 x"}, nil},
		{"an address is not enhanced", "550 5.a.1 x\r\n", mail.Reply{Code: 550, Text: "5.a.1 x"}, nil},
		{"long subject", "550 5.7.1234 x\r\n", mail.Reply{Code: 550, Text: "5.7.1234 x"}, nil},
		{"three digits", "550 5.7.708 x\r\n", mail.Reply{Code: 550, Enhanced: "5.7.708", Text: "x"}, nil},
		{"lines", "550-5.7.1 a\r\n550-5.7.1 b\r\n550 5.7.1 c\r\n", mail.Reply{Code: 550, Enhanced: "5.7.1", Text: "a\nb\nc"}, nil},
		{"enhanced on the first line only", "550-5.7.1 a\r\n550 b\r\n", mail.Reply{Code: 550, Enhanced: "5.7.1", Text: "a\nb"}, nil},
		{"enhanced alone on a line", "550-5.7.1\r\n550 b\r\n", mail.Reply{Code: 550, Enhanced: "5.7.1", Text: "b"}, nil},
		{"codes differ", "250-a\r\n550 b\r\n", mail.Reply{Code: 550, Text: "a\nb"}, nil},
		{"controls", "550 a\x00\x1b[31m\tb\x7f\xc2\x85\xff\r\n", mail.Reply{Code: 550, Text: "a??[31m b???"}, nil},
		{"UTF-8", "550 größe\u202e\r\n", mail.Reply{Code: 550, Text: "größe?"}, nil},
		{"empty", "", mail.Reply{}, io.EOF},
		{"empty line", "\r\n", mail.Reply{}, errReplySyntax},
		{"no code", "ok\r\n", mail.Reply{}, errReplySyntax},
		{"two digits", "25 ok\r\n", mail.Reply{}, errReplySyntax},
		{"four digits", "2500 ok\r\n", mail.Reply{}, errReplySyntax},
		{"code out of range", "650 ok\r\n", mail.Reply{}, errReplySyntax},
		{"negative", "-50 ok\r\n", mail.Reply{}, errReplySyntax},
		{"no separator", "250ok\r\n", mail.Reply{}, errReplySyntax},
		{"cut", "250 o", mail.Reply{}, io.ErrUnexpectedEOF},
		{"cut between lines", "250-o\r\n", mail.Reply{}, io.EOF},
		{"long line", "250 " + strings.Repeat("x", 9000) + "\r\n", mail.Reply{Code: 250, Text: strings.Repeat("x", maxReplyLine-4)}, nil},
		{"line without end", "250 " + strings.Repeat("x", 70000), mail.Reply{}, errReplyLong},
		{"100 lines", strings.Repeat("250-\r\n", 99) + "250 x\r\n", mail.Reply{Code: 250, Text: strings.Repeat("\n", 99) + "x"}, nil},
		{"101 lines", strings.Repeat("250-\r\n", 100) + "250 x\r\n", mail.Reply{}, errReplyLong},
		{"64 KiB", strings.Repeat("250-"+strings.Repeat("x", 2000)+"\r\n", 40) + "250 x\r\n", mail.Reply{}, errReplyLong},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, r := range []io.Reader{strings.NewReader(test.in), iotest.OneByteReader(strings.NewReader(test.in))} {
				got, err := parse(r)
				if !errors.Is(err, test.err) {
					t.Fatalf("err = %v, want %v", err, test.err)
				}
				if got != test.want {
					t.Errorf("reply = %.200q, want %.200q", got, test.want)
				}
			}
		})
	}
}

func FuzzReadReply(f *testing.F) {
	for _, s := range []string{
		"250 ok\r\n", "250-a\r\n250 b\r\n", "550 5.1.1 no\r\n", "550-5.1.1 no\r\n550 5.1.1\r\n", "220", "354\r\n", "4xx\r\n", "250-\r\n\r\n",
		"250-mx\r\n250-SIZE 1000\r\n250-AUTH=LOGIN\r\n250 AUTH PLAIN LOGIN\r\n", "\x00\xff\r\n", strings.Repeat("250-x\r\n", 101),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		p := replyReader{r: bufio.NewReaderSize(r, 4<<10), log: &script{log: transcript.New(time.Now(), true, nil, transcript.Party{})}}
		err := p.read()
		if len(p.text) > maxReplyOctets+maxReplyLine {
			t.Errorf("holds %d octets", len(p.text))
		}
		if err != nil {
			return
		}
		got := p.reply()
		if got.Code < 200 || got.Code > 599 {
			t.Errorf("code %d", got.Code)
		}
		if !utf8.ValidString(got.Text) || strings.ContainsFunc(got.Text, func(r rune) bool { return r != '\n' && isControl(r) }) {
			t.Errorf("text %q", got.Text)
		}
		if strings.Count(got.Text, "\n") >= maxReplyLines {
			t.Errorf("%d lines", strings.Count(got.Text, "\n")+1)
		}
		parseExtensions(p.text)
		said, _, _ := p.log.log.Lines()
		for _, l := range said {
			if strings.ContainsFunc(l.Text, isControl) || !utf8.ValidString(l.Text) {
				t.Errorf("line %q", l.Text)
			}
		}
	})
}

func TestParseExtensions(t *testing.T) {
	e := parseExtensions([]byte("mx.example PIPELINING\n8bitmime\nSIZE 1000\nsmtputf8\nDSN\nStartTLS\nAUTH PLAIN login\nAUTH=LOGIN XOAUTH2\nCHUNKING\nBINARYMIME\nX-FOO"))
	if e.pipelining || !e.eightBit || !e.size || e.maxSize != 1000 || !e.utf8 || !e.dsn || !e.startTLS || !e.chunking || !e.binary {
		t.Errorf("extensions = %+v", e)
	}
	if got := strings.Join(e.auth, " "); got != "PLAIN LOGIN LOGIN XOAUTH2" {
		t.Errorf("auth = %q", got)
	}
	for _, size := range []string{"SIZE", "SIZE 0", "SIZE x", "SIZE -1", "SIZE 99999999999999999999"} {
		if e := parseExtensions([]byte("x\n" + size)); !e.size || e.maxSize != 0 {
			t.Errorf("%q: %+v", size, e)
		}
	}
}

func stuff(p []byte, block int) []byte {
	var out bytes.Buffer
	s := newStuffer(&out)
	for len(p) > 0 {
		n := min(block, len(p))
		_, _ = s.Write(p[:n])
		p = p[n:]
	}
	_ = s.end()
	return out.Bytes()
}

func TestStuffer(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{
		{"empty", "", ".\r\n"},
		{"plain", "a\r\n", "a\r\n.\r\n"},
		{"dot line", ".\r\n", "..\r\n.\r\n"},
		{"dot first", ".a\r\n.b\r\n", "..a\r\n..b\r\n.\r\n"},
		{"dot inside", "a.b\r\n", "a.b\r\n.\r\n"},
		{"no end", "a", "a\r\n.\r\n"},
		{"CR at the end", "a\r", "a\r\r\n.\r\n"},
		{"LF at the end", "a\n", "a\n\r\n.\r\n"},
		{"bare LF, lone dot", "a\n.\nb\r\n", "a\n..\nb\r\n.\r\n"},
		{"bare LF, lone dot, CRLF", "a\n.\r\nb\r\n", "a\n..\r\nb\r\n.\r\n"},
		{"bare CR, lone dot", "a\r.\rb\r\n", "a\r..\rb\r\n.\r\n"},
		{"bare LF, text", "a\n.b\r\n", "a\n.b\r\n.\r\n"},
		{"bare CR, text", "a\r.b\r\n", "a\r.b\r\n.\r\n"},
		{"CRLF, dot, LF", "a\r\n.\nb\r\n", "a\r\n..\nb\r\n.\r\n"},
		{"LF, dot at the end", "a\n.", "a\n..\r\n.\r\n"},
		{"CR, dot at the end", "a\r.", "a\r..\r\n.\r\n"},
		{"many", "\r\n.\r\n.\r\n..\r\n", "\r\n..\r\n..\r\n...\r\n.\r\n"},
		{"both kinds", "\r.\r\n.x\n.y\n.\n", "\r..\r\n..x\n.y\n..\n\r\n.\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for block := 1; block <= len(test.in)+1; block++ {
				if got := string(stuff([]byte(test.in), block)); got != test.want {
					t.Errorf("in blocks of %d: %q, want %q", block, got, test.want)
				}
			}
		})
	}
}

func FuzzStuffer(f *testing.F) {
	for _, s := range []string{"", "a\r\n", ".\r\n.", "\n.\n", "\r.\r", "\r\n.\r", "..", "\r\n\n.\r\n\r.", "x\r\n.y\r\n"} {
		f.Add([]byte(s), 3)
	}
	f.Fuzz(func(t *testing.T, in []byte, block int) {
		if block < 1 || block > 1000 {
			block = 7
		}
		out := stuff(in, block)
		if whole := stuff(in, len(in)+1); !bytes.Equal(out, whole) {
			t.Fatalf("blocks of %d give %q, one block %q", block, out, whole)
		}
		body, ok := bytes.CutSuffix(out, []byte(".\r\n"))
		if !ok || len(body) > 0 && !bytes.HasSuffix(body, []byte("\r\n")) {
			t.Fatalf("no final dot: %q", out)
		}
		// No reader may find an end before the end, whatever it takes for a line end.
		for _, nl := range []string{"\r\n", "\n", "\r"} {
			for _, nl2 := range []string{"\r\n", "\n", "\r"} {
				if i := bytes.Index(append([]byte(nl), out...), []byte(nl+"."+nl2)); i >= 0 && i+len("."+nl2) < len(out) && i < len(body) {
					t.Fatalf("%q ends at %d of %d for a reader of %q and %q", out, i, len(out), nl, nl2)
				}
			}
		}
		clean := !bytes.Contains(bytes.ReplaceAll(in, []byte("\r\n"), nil), []byte("\n")) && !bytes.Contains(bytes.ReplaceAll(in, []byte("\r\n"), nil), []byte("\r"))
		if !clean {
			return
		}
		got, err := io.ReadAll(textproto.NewReader(bufio.NewReader(bytes.NewReader(out))).DotReader())
		want := bytes.ReplaceAll(in, []byte("\r\n"), []byte("\n"))
		if len(want) > 0 && want[len(want)-1] != '\n' {
			want = append(want, '\n')
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%q reads back as %q, %v, want %q", in, got, err, want)
		}
	})
}

func TestHasHighBit(t *testing.T) {
	for n := range 40 {
		p := bytes.Repeat([]byte{0x7f}, n)
		if hasHighBit(p) {
			t.Errorf("%d octets of 7 bits: true", n)
		}
		for i := range n {
			p[i] = 0x80
			if !hasHighBit(p) {
				t.Errorf("octet %d of %d: false", i, n)
			}
			p[i] = 0x7f
		}
	}
}
