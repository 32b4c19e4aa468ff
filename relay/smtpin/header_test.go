package smtpin

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"waybill/relay/mail"
)

func TestHeader(t *testing.T) {
	for _, test := range []struct {
		name string
		in   string
		want mail.Header
	}{
		{"empty", "", mail.Header{}},
		{"only a body", "hello\r\nworld\r\n", mail.Header{}},
		{"empty section", "\r\nSubject: x\r\n", mail.Header{Bytes: 2}},
		{"LF", "Subject: x\n\nbody", mail.Header{Subject: "x", Bytes: 12}},
		{"no end", "Subject: x\r\n", mail.Header{Subject: "x", Bytes: 12}},
		{"cut off", "Subject: x", mail.Header{Subject: "x", Bytes: 10}},
		{"folded", "Subject: a\r\n b\r\n\tc\r\n\r\n", mail.Header{Subject: "a b c", Bytes: 22}},
		{"case and space", "SUBJECT :x\r\nmessage-id:<1@x>\r\n\r\n", mail.Header{Subject: "x", MessageID: "<1@x>", Bytes: 32}},
		{"the first counts", "Subject: a\r\nSubject: b\r\n c\r\n\r\n", mail.Header{Subject: "a", Bytes: 30}},
		{"received", "Received: a\r\n b: c\r\nReceived: d\r\nX-Received: e\r\n\r\n", mail.Header{Received: 2, Bytes: 50}},
		{"body begins without an empty line", "Subject: x\r\nno field here\r\nReceived: y\r\n\r\n", mail.Header{Subject: "x", Bytes: 12}},
		{"a long name", strings.Repeat("x", 100) + ": y\r\nSubject: z\r\n\r\n", mail.Header{Subject: "z", Bytes: 119}},
		{"encoded", "Subject: =?iso-8859-1?Q?caf=E9?= =?utf-8?b?4oKs?=\r\n\r\n", mail.Header{Subject: "café€", Bytes: 53}},
		{"unknown charset", "Subject: =?x-klingon?Q?a?=\r\n\r\n", mail.Header{Subject: "=?x-klingon?Q?a?=", Bytes: 30}},
		{"long", "Subject: " + strings.Repeat("a", 5000) + "\r\n\r\n", mail.Header{Subject: strings.Repeat("a", maxWord) + "…", Bytes: 5013}},
		{"CR within", "Subject: a\rb\r\n\r\n", mail.Header{Subject: "ab", Bytes: 16}},
		{"CR at the start", "\rSubject: a\r\nSubject: b\r\n\r\n", mail.Header{Subject: "b", Bytes: 27}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for size := 1; size <= max(1, min(len(test.in), 60)); size++ {
				var h headerScanner
				for in := []byte(test.in); len(in) > 0; {
					n := min(size, len(in))
					h.write(in[:n])
					in = in[n:]
				}
				h.end()
				if got := h.header(); got != test.want {
					t.Fatalf("in pieces of %d: %+v, want %+v", size, got, test.want)
				}
			}
		})
	}
}

func TestFirstAddress(t *testing.T) {
	for _, test := range []struct {
		in, want string
	}{
		{"a@example.com", "a@example.com"},
		{"<a@example.com>", "a@example.com"},
		{"Ann <a@example.com>, b@example.com", "a@example.com"},
		{`"x, <y@z>" <a@example.com>`, "a@example.com"},
		{`"a b"@example.com`, `"a b"@example.com`},
		{"(comment <x@y> (nested)) a@example.com (end)", "a@example.com"},
		{`(a \) b) a@example.com`, "a@example.com"},
		{"group: a@example.com, b@example.com;", "a@example.com"},
		{"nobody, a@example.com", "a@example.com"},
		{"a@example.com, b@example.com", "a@example.com"},
		{"<a@example.com", "a@example.com"},
		{"", ""},
		{"(((", ""},
	} {
		if got := firstAddress(test.in); got != test.want {
			t.Errorf("firstAddress(%q) = %q, want %q", test.in, got, test.want)
		}
	}
}

func TestTrace(t *testing.T) {
	at := time.Date(2026, 11, 22, 3, 4, 5, 0, time.FixedZone("", 3600))
	rcpt := func(s string) mail.Recipient {
		a, err := mail.ParseAddress(s)
		if err != nil {
			t.Fatal(err)
		}
		return mail.Recipient{Address: a}
	}
	for _, test := range []struct {
		name   string
		origin mail.Origin
		rcpts  []mail.Recipient
		want   string
	}{
		{
			"one recipient",
			mail.Origin{Helo: "me.example.net", Client: netip.MustParseAddrPort("192.0.2.1:5"), Protocol: "ESMTP"},
			[]mail.Recipient{rcpt(`"b c"@example.org`)},
			"Received: from me.example.net ([192.0.2.1])\r\n\tby mx (Waybill) with ESMTP id ID\r\n\tfor <\"b c\"@example.org>;\r\n\tSun, 22 Nov 2026 03:04:05 +0100\r\n",
		},
		{
			"two, IPv6, TLS",
			mail.Origin{Helo: "[IPv6:2001:db8::1]", Client: netip.MustParseAddrPort("[2001:db8::1]:5"), Protocol: "ESMTPS", TLSVersion: "1.3", TLSCipher: "C"},
			[]mail.Recipient{rcpt("b@example.org"), rcpt("c@example.org")},
			"Received: from [ipv6:2001:db8::1] ([IPv6:2001:db8::1])\r\n\t(using TLS 1.3 with C)\r\n\tby mx (Waybill) with ESMTPS id ID;\r\n\tSun, 22 Nov 2026 03:04:05 +0100\r\n",
		},
		{
			"a name that is none",
			mail.Origin{Helo: "x\r\nEvil: y", Client: netip.MustParseAddrPort("192.0.2.1:5"), Protocol: "SMTP"},
			nil,
			"Received: from unknown ([192.0.2.1])\r\n\tby mx (Waybill) with SMTP id ID;\r\n\tSun, 22 Nov 2026 03:04:05 +0100\r\n",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := string(appendTrace(nil, "mx", test.origin, "ID", mail.Envelope{Recipients: test.rcpts}, at)); got != test.want {
				t.Errorf("trace = %q\nwant    %q", got, test.want)
			}
		})
	}
}

func TestProtocol(t *testing.T) {
	for _, test := range []struct {
		esmtp, utf8, tls, auth bool
		want                   string
	}{
		{false, false, true, false, "SMTP"},
		{true, false, false, false, "ESMTP"},
		{true, false, true, false, "ESMTPS"},
		{true, false, false, true, "ESMTPA"},
		{true, false, true, true, "ESMTPSA"},
		{true, true, true, true, "UTF8SMTPSA"},
	} {
		if got := protocol(test.esmtp, test.utf8, test.tls, test.auth); got != test.want {
			t.Errorf("protocol(%t, %t, %t, %t) = %s, want %s", test.esmtp, test.utf8, test.tls, test.auth, got, test.want)
		}
	}
}

func FuzzHeader(f *testing.F) {
	for _, s := range []string{"Subject: x\r\n y\r\n\r\nbody", "From: \"a\" <b@c>, d\r\nReceived:\r\n\r\n", "\r\r\n", ":\r\n\n", "Message-ID: <\r\n>\r\n", "a: b\r\nh\xe4llo", "a: \xff\r\n\r\n", " x: y\r\n", "From: a\r\nFROM: b\r\n"} {
		f.Add([]byte(s), 3)
	}
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		if size <= 0 || size > 1000 {
			return
		}
		var whole, parts headerScanner
		if len(in) > 0 {
			whole.write(in)
		}
		whole.end()
		for rest := in; len(rest) > 0; {
			n := min(size, len(rest))
			parts.write(rest[:n])
			rest = rest[n:]
		}
		parts.end()
		a, b := whole.header(), parts.header()
		if a != b {
			t.Fatalf("whole %+v, in parts %+v", a, b)
		}
		flags := func(h *headerScanner) [4]bool { return [4]bool{h.eight, h.wrong, h.dirty, h.text} }
		if flags(&whole) != flags(&parts) || whole.fields != parts.fields {
			t.Fatalf("whole %v %d, in parts %v %d", flags(&whole), whole.fields, flags(&parts), parts.fields)
		}
		if a.Bytes > len(in) || len(a.Subject) > 2*maxWord || len(a.From) > 2*maxWord || len(a.MessageID) > 2*maxWord {
			t.Fatalf("%+v", a)
		}
		for _, s := range []string{a.Subject, a.From, a.MessageID} {
			if strings.ContainsAny(s, "\r\n\x00\x1b") {
				t.Fatalf("%q", s)
			}
		}
	})
}

// FuzzLook compares with an octet at a time.
func FuzzLook(f *testing.F) {
	for _, s := range []string{"a: 12345678\r\n", "12345678\x0e\x7f34567\r8\r\n", "\x80234567890\x00", "\x7f\x80\x8d\x8e\xff\x0d\x0a\x0e", "1234567\n", "\r"} {
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, p []byte, afterCR bool) {
		h := headerScanner{}
		if afterCR {
			h.last = '\r'
		}
		last, eight, dirty := h.last, false, false
		for _, b := range p {
			eight = eight || b >= 0x80
			dirty = dirty || b == 0 || (b == '\n') != (last == '\r')
			last = b
		}
		if h.look(p); h.last != last || h.lineEight != eight || h.lineDirty != dirty {
			t.Errorf("look(%q) leaves %t, %t, %q, want %t, %t, %q", p, h.lineEight, h.lineDirty, h.last, eight, dirty, last)
		}
	})
}
