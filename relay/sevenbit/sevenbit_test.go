package sevenbit

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"mime/quotedprintable"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// crlf writes text with the line ends of messages.
func crlf(text string) string {
	return strings.ReplaceAll(strings.TrimPrefix(text, "\n"), "\n", "\r\n")
}

func convert(content string, opts Options) (string, *Plan, error) {
	p, err := Scan(strings.NewReader(content), opts)
	if err != nil {
		return "", nil, err
	}
	var b bytes.Buffer
	err = p.Write(&b, strings.NewReader(content))
	return b.String(), p, err
}

const twoParts = `
From: a@x.example
MIME-Version: 1.0
Content-Type: multipart/mixed;
	boundary="=_b"
Content-Transfer-Encoding: 8bit
Subject: x

preamble
--=_b
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding:
 8bit
X-Other: 1

Grüße aus dem Süden, and a longer line of plain text.
.
--=_b  
Content-Type: application/octet-stream
Content-Disposition: attachment

ÿÿÿ
--=_b
Content-Type: text/plain

only ASCII, and  trailing space 
--=_b--
epilogue
`

func TestConvert(t *testing.T) {
	for _, test := range []struct {
		name    string
		content string
		opts    Options
		want    string // the message, or the reason why not
	}{
		{"nothing to do", "Subject: x\n\nASCII = \n", Options{}, "Subject: x\n\nASCII = \n"},
		{
			"text of one part", "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\nSubject: x\n\nGrüße aus dem Süden \n=\n",
			Options{},
			"MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\nSubject: x\n\nGr=C3=BC=C3=9Fe aus dem S=C3=BCden=20\n=3D\n",
		},
		{
			"label in capitals with a comment", "MIME-Version: 1.0\nCONTENT-transfer-encoding: 8BIT (really)\nContent-Type: text/html\n\n<p>für alle</p>\n",
			Options{},
			"MIME-Version: 1.0\nContent-Transfer-Encoding: quoted-printable\nContent-Type: text/html\n\n<p>f=C3=BCr alle</p>\n",
		},
		{
			"no label", "MIME-Version: 1.0\nContent-Type: text/plain\n\nfür alle Leute\n",
			Options{},
			"MIME-Version: 1.0\nContent-Type: text/plain\nContent-Transfer-Encoding: quoted-printable\n\nf=C3=BCr alle Leute\n",
		},
		{
			"a lying label", "MIME-Version: 1.0\nContent-Type: text/plain\nContent-Transfer-Encoding: 7bit\n\nfür alle Leute\n",
			Options{},
			"MIME-Version: 1.0\nContent-Type: text/plain\nContent-Transfer-Encoding: quoted-printable\n\nf=C3=BCr alle Leute\n",
		},
		{
			"not MIME", "Subject: x\n\nfür alle Leute\n",
			Options{},
			"Subject: x\nMIME-Version: 1.0\nContent-Type: text/plain; charset=unknown-8bit\nContent-Transfer-Encoding: quoted-printable\n\nf=C3=BCr alle Leute\n",
		},
		{
			"a type without MIME-Version", "Content-Type: text/plain; charset=latin1\n\nfür alle Leute\n",
			Options{},
			"Content-Type: text/plain; charset=latin1\nMIME-Version: 1.0\nContent-Transfer-Encoding: quoted-printable\n\nf=C3=BCr alle Leute\n",
		},
		{
			"text that is mostly not ASCII", "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n\nПривет\n",
			Options{},
			"MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\n\n0J/RgNC40LLQtdGCDQo=\n",
		},
		{
			"a picture", "MIME-Version: 1.0\nContent-Type: image/png\nContent-Transfer-Encoding: 8bit\n\nplain text mostly, \xff\n",
			Options{},
			"MIME-Version: 1.0\nContent-Type: image/png\nContent-Transfer-Encoding: base64\n\ncGxhaW4gdGV4dCBtb3N0bHksIP8NCg==\n",
		},
		{
			"parts", twoParts, Options{}, `
From: a@x.example
MIME-Version: 1.0
Content-Type: multipart/mixed;
	boundary="=_b"
Content-Transfer-Encoding: 7bit
Subject: x

preamble
--=_b
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: quoted-printable
X-Other: 1

Gr=C3=BC=C3=9Fe aus dem S=C3=BCden, and a longer line of plain text.
.
--=_b  
Content-Type: application/octet-stream
Content-Disposition: attachment
Content-Transfer-Encoding: base64

w7/Dv8O/
--=_b
Content-Type: text/plain

only ASCII, and  trailing space 
--=_b--
epilogue
`,
		},
		{
			"parts of parts, ended by the outer delimiter", "Content-Type: multipart/mixed; boundary=a\nMIME-Version: 1.0\n\n--a\nContent-Type: multipart/alternative; boundary=ab\n\n--ab\n\nnur für alle\n--a\n\nand für alle\n--a--\n",
			Options{},
			"Content-Type: multipart/mixed; boundary=a\nMIME-Version: 1.0\n\n--a\nContent-Type: multipart/alternative; boundary=ab\n\n--ab\nContent-Transfer-Encoding: quoted-printable\n\nnur f=C3=BCr alle\n--a\nContent-Transfer-Encoding: quoted-printable\n\nand f=C3=BCr alle\n--a--\n",
		},
		{
			"a message in a message", "MIME-Version: 1.0\nContent-Type: message/rfc822\nContent-Transfer-Encoding: 8bit\n\nSubject: y\nMIME-Version: 1.0\nContent-Type: text/plain\n\nnur für alle\n",
			Options{},
			"MIME-Version: 1.0\nContent-Type: message/rfc822\nContent-Transfer-Encoding: 7bit\n\nSubject: y\nMIME-Version: 1.0\nContent-Type: text/plain\nContent-Transfer-Encoding: quoted-printable\n\nnur f=C3=BCr alle\n",
		},
		{
			"a digest", "MIME-Version: 1.0\nContent-Type: multipart/digest; boundary=a\n\n--a\n\nSubject: y\n\nnur für alle\n--a--\n",
			Options{},
			"MIME-Version: 1.0\nContent-Type: multipart/digest; boundary=a\n\n--a\n\nSubject: y\nMIME-Version: 1.0\nContent-Type: text/plain; charset=unknown-8bit\nContent-Transfer-Encoding: quoted-printable\n\nnur f=C3=BCr alle\n--a--\n",
		},
		{
			"no line end at the end", "MIME-Version: 1.0\nContent-Type: text/plain\n\nnur für alle",
			Options{},
			"MIME-Version: 1.0\nContent-Type: text/plain\nContent-Transfer-Encoding: quoted-printable\n\nnur f=C3=BCr alle",
		},
		{"signed by DKIM", "DKIM-Signature: v=1\nMIME-Version: 1.0\n\nnur für alle\n", Options{}, "signed"},
		{"sealed by ARC", "ARC-Message-Signature: i=1\nMIME-Version: 1.0\n\nnur für alle\n", Options{}, "signed"},
		{"signed by DKIM, and nothing to do", "DKIM-Signature: v=1\n\nASCII\n", Options{}, "DKIM-Signature: v=1\n\nASCII\n"},
		{
			"signed within a message within", "MIME-Version: 1.0\nContent-Type: message/rfc822\n\nDKIM-Signature: v=1\nMIME-Version: 1.0\n\nnur für alle\n",
			Options{},
			"MIME-Version: 1.0\nContent-Type: message/rfc822\n\nDKIM-Signature: v=1\nMIME-Version: 1.0\nContent-Transfer-Encoding: quoted-printable\n\nnur f=C3=BCr alle\n",
		},
		{"a signed part", "MIME-Version: 1.0\nContent-Type: multipart/signed; boundary=a\n\n--a\n\nnur für alle\n--a\nContent-Type: application/pgp-signature\n\nx\n--a--\n", Options{}, "signed"},
		{"a header field of a signed part", "MIME-Version: 1.0\nContent-Type: multipart/signed; boundary=a\n\n--a\nX: ü\n\nx\n--a--\n", Options{}, "signed"},
		{
			"a signed part that needs nothing", "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=o\n\n--o\nContent-Type: multipart/signed; boundary=a\n\n--a\n\nx\n--a--\n--o\n\nnur für alle\n--o--\n",
			Options{},
			"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=o\n\n--o\nContent-Type: multipart/signed; boundary=a\n\n--a\n\nx\n--a--\n--o\nContent-Transfer-Encoding: quoted-printable\n\nnur f=C3=BCr alle\n--o--\n",
		},
		{"a header field", "Subject: für\n\nx\n", Options{}, "8-bit header"},
		{"a header field of a part", "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=a\n\n--a\nContent-Disposition: attachment; filename=\"ü\"\n\nx\n--a--\n", Options{}, "8-bit header"},
		{"a preamble", "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=a\n\nfür\n--a\n\nx\n--a--\n", Options{}, "around parts"},
		{"an epilogue", "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=a\n\n--a\n\nx\n--a--\nfür\n", Options{}, "around parts"},
		{"encoded already", "MIME-Version: 1.0\nContent-Type: text/plain\nContent-Transfer-Encoding: quoted-printable\n\nfür\n", Options{}, "malformed MIME"},
		{"no boundary", "MIME-Version: 1.0\nContent-Type: multipart/mixed\n\nfür\n", Options{}, "malformed MIME"},
		{"two labels", "MIME-Version: 1.0\nContent-Transfer-Encoding: 8bit\nContent-Transfer-Encoding: 7bit\n\nfür\n", Options{}, "malformed MIME"},
		{"no header section", "für alle\n", Options{}, "malformed MIME"},
		{"a report", "MIME-Version: 1.0\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; ü\n", Options{}, "malformed MIME"},
		{
			"an international message", "MIME-Version: 1.0\nContent-Type: message/global\n\nSubject: ü\n\nx\n",
			Options{},
			"MIME-Version: 1.0\nContent-Type: message/global\nContent-Transfer-Encoding: base64\n\nU3ViamVjdDogw7wNCg0KeA0K\n",
		},
		{
			"binary for a host that takes 8-bit lines", "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=a\nContent-Transfer-Encoding: binary\n\n--a\nContent-Type: text/plain\nContent-Transfer-Encoding: binary\n\nfür\n--a\nContent-Type: x/y\nContent-Transfer-Encoding: binary\n\n\x00\x01\n--a--\n",
			Options{Binary: true, EightBit: true},
			"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=a\nContent-Transfer-Encoding: 8bit\n\n--a\nContent-Type: text/plain\nContent-Transfer-Encoding: 8bit\n\nfür\n--a\nContent-Type: x/y\nContent-Transfer-Encoding: base64\n\nAAE=\n--a--\n",
		},
		{
			"binary that is none", "MIME-Version: 1.0\nContent-Type: text/plain\nContent-Transfer-Encoding: binary\n\nx\n",
			Options{Binary: true},
			"MIME-Version: 1.0\nContent-Type: text/plain\nContent-Transfer-Encoding: 7bit\n\nx\n",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			content := crlf(test.content)
			got, p, err := convert(content, test.opts)
			if e, ok := errors.AsType[*Error](err); ok {
				got = string(e.Reason)
			} else if err != nil {
				t.Fatal(err)
			}
			if want := crlf(test.want); got != strings.TrimSuffix(want, "\r\n") && got != want {
				t.Errorf("converted differs (-want +got):\n%s", cmp.Diff(want, got))
			}
			if p == nil {
				return
			}
			if n, err := p.Size(iotest.OneByteReader(strings.NewReader(content))); err != nil || n != int64(len(got)) {
				t.Errorf("Size() = %d, %v, want %d", n, err, len(got))
			}
		})
	}
}

func TestLongContent(t *testing.T) {
	long := strings.Repeat("ein Satz für alle Tage, ", 10_000) // a line much longer than a block
	content := "MIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\n" + long + "\r\n" + long + "\r\n"
	got, p, err := convert(content, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if p.String() != "quoted-printable:1" {
		t.Errorf("String() = %q, want quoted-printable:1", p)
	}
	_, body, _ := strings.Cut(got, "\r\n\r\n")
	decoded, err := io.ReadAll(quotedprintable.NewReader(strings.NewReader(body)))
	if err != nil || string(decoded) != long+"\r\n"+long+"\r\n" {
		t.Errorf("%d octets decode to %d (%v), want %d", len(body), len(decoded), err, 2*len(long)+4)
	}
}

func TestBounds(t *testing.T) {
	var b strings.Builder
	b.WriteString("MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=a\r\n\r\n")
	for range maxParts + 1 {
		b.WriteString("--a\r\n\r\nx\r\n")
	}
	deep := strings.Repeat("Content-Type: message/rfc822\r\n\r\n", maxDepth+1)
	for _, content := range []string{b.String(), deep} {
		_, err := Scan(strings.NewReader(content), Options{})
		if e, ok := errors.AsType[*Error](err); !ok || e.Reason != Bounds {
			t.Errorf("Scan() = %v, want %q", err, Bounds)
		}
	}
}

func TestChangedContent(t *testing.T) {
	content := crlf(twoParts)
	p, err := Scan(strings.NewReader(content), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{content[:len(content)-1], content + "x", ""} {
		if err := p.Write(io.Discard, strings.NewReader(other)); !errors.Is(err, ErrChanged) {
			t.Errorf("Write() of %d octets = %v, want %v", len(other), err, ErrChanged)
		}
	}
	broken := errors.New("disk")
	if _, err := Scan(io.MultiReader(strings.NewReader(content), iotest.ErrReader(broken)), Options{}); !errors.Is(err, broken) {
		t.Errorf("Scan() = %v, want %v", err, broken)
	}
	if err := p.Write(io.Discard, io.MultiReader(strings.NewReader(content[:100]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("Write() = %v, want %v", err, broken)
	}
}

// FuzzConvert converts whatever comes: what comes out is what the host takes,
// needs no second conversion, and decodes to what came in.
func FuzzConvert(f *testing.F) {
	for _, seed := range []string{
		twoParts, "Subject: x\n\nfür alle Leute\n", "für", "", "\n", "MIME-Version: 1.0\nContent-Type: image/png\n\n\xff\r\x00 \n \n",
		"Content-Type: multipart/digest; boundary=a\n\n--a\n\nSubject: y\n\nnur für alle\n--a--\n",
		"Content-Type: message/rfc822\nContent-Transfer-Encoding: binary\n\nSubject: y\n\nü\n", "Content-Type: multipart/mixed; boundary=\"a\"\nMIME-Version: 1.0\n\n--a\n--a\nX\n--a--\n",
	} {
		f.Add(crlf(seed), false, false)
		f.Add(seed, true, false)
		f.Add(crlf(seed), true, true)
	}
	f.Fuzz(func(t *testing.T, content string, binary, eightBit bool) {
		opts := Options{Binary: binary, EightBit: eightBit}
		got, p, err := convert(content, opts)
		if err != nil {
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Fatal(err)
			}
			return
		}
		if !eightBit && highBits([]byte(got)) > 0 {
			t.Errorf("8-bit octets are left in %q", got)
		}
		again, err := Scan(strings.NewReader(got), opts)
		if err != nil || again.Needed() {
			t.Errorf("%q needs a second conversion (%v)", got, err)
		}
		at := int64(0)
		var back strings.Builder // with the parts decoded, and the labels left out
		var want strings.Builder
		for _, e := range p.edits {
			if e.off < at {
				t.Fatalf("edits overlap: %v", p.edits)
			}
			want.WriteString(content[at:e.off])
			back.WriteString(content[at:e.off])
			part := content[e.off : e.off+e.size]
			at = e.off + e.size
			if e.encoding == "" {
				continue
			}
			want.WriteString(part)
			one := &Plan{edits: []edit{{size: e.size, encoding: e.encoding}}, length: e.size}
			var b bytes.Buffer
			if err := one.Write(&b, strings.NewReader(part)); err != nil {
				t.Fatal(err)
			}
			for line := range strings.SplitSeq(b.String(), "\r\n") {
				if len(line) > maxEncoded {
					t.Errorf("encoded line %q is too long", line)
				}
			}
			var r io.Reader = quotedprintable.NewReader(&b)
			if e.encoding == Base64 {
				r = base64.NewDecoder(base64.StdEncoding, &b)
			}
			decoded, err := io.ReadAll(r)
			if err != nil {
				t.Fatalf("%q: %v", part, err)
			}
			back.Write(decoded)
		}
		if back.String() != want.String() {
			t.Errorf("decodes to %q, want %q", back.String(), want.String())
		}
	})
}
