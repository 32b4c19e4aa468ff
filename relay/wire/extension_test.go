package wire

import (
	"fmt"
	"strings"
	"testing"
)

// TestExtensions switches extensions on and off: what is not announced is not
// taken either.
func TestExtensions(t *testing.T) {
	const begin, from, to = "EHLO me\r\n=>250", "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>"
	for _, test := range []struct {
		name          string
		with, without []string
		opts          Options
		announced     string
		talk          []string
	}{
		{"SIZE", nil, []string{"size"}, Options{MaxSize: 100}, "", []string{from + " SIZE=5\r\n=>555 5.5.4"}},
		{"SIZE", nil, nil, Options{MaxSize: 100}, "SIZE 100", []string{from + " SIZE=5\r\n=>250"}},
		{"8BITMIME", nil, []string{"8BITMIME"}, Options{}, "", []string{from + " BODY=8BITMIME\r\n=>555", from + " BODY=7BIT\r\n=>250"}},
		{"8BITMIME", nil, nil, Options{}, "8BITMIME", []string{from + " BODY=8BITMIME\r\n=>250"}},
		{"SMTPUTF8", nil, []string{"SMTPUTF8"}, Options{}, "", []string{from + " SMTPUTF8\r\n=>555"}},
		{"SMTPUTF8", nil, nil, Options{}, "SMTPUTF8", []string{from + " SMTPUTF8=x\r\n=>501", "MAIL FROM:<ä@example.com> SMTPUTF8\r\n=>250"}},
		{"CHUNKING", nil, []string{"CHUNKING"}, Options{}, "", []string{from + "\r\n=>250", to + "\r\n=>250", "BDAT 6 LAST\r\nQUIT\r\n=>502 5.5.1", "NOOP\r\n=>250"}},
		{"CHUNKING", nil, nil, Options{}, "CHUNKING", []string{from + "\r\n=>250", to + "\r\n=>250", "BDAT 6 LAST\r\nQUIT\r\n=>250 2.0.0"}},
		{"BINARYMIME", nil, nil, Options{}, "", []string{from + " BODY=BINARYMIME\r\n=>555"}},
		{"BINARYMIME", []string{"BINARYMIME"}, []string{"CHUNKING"}, Options{}, "", []string{from + " BODY=BINARYMIME\r\n=>555"}},
		{"BINARYMIME", []string{"BINARYMIME"}, nil, Options{}, "BINARYMIME", []string{
			from + " BODY=BINARYMIME\r\n=>250", to + "\r\n=>250", "DATA\r\n=>503 5.5.1", "BDAT 9\r\nA: b\r\n\r\nx=>250", "BDAT 4 LAST\r\n\x00\r\n\r=>250 2.0.0",
		}},
		{"DSN", nil, []string{"DSN"}, Options{}, "", []string{from + " RET=HDRS\r\n=>555", from + "\r\n=>250", to + " NOTIFY=NEVER\r\n=>555", to + " ORCPT=rfc822;x\r\n=>555"}},
		{"DSN", nil, nil, Options{}, "DSN", []string{from + " RET=HDRS ENVID=x\r\n=>250", to + " NOTIFY=NEVER\r\n=>250"}},
		{"REQUIRETLS", nil, nil, Options{}, "", []string{from + " REQUIRETLS\r\n=>530 5.7.10"}},
		{"REQUIRETLS", nil, []string{"REQUIRETLS"}, Options{}, "", []string{from + " REQUIRETLS\r\n=>555"}},
		{"MT-PRIORITY", nil, []string{"MT-PRIORITY"}, Options{}, "", []string{from + " MT-PRIORITY=3\r\n=>555"}},
		{"MT-PRIORITY", nil, nil, Options{}, "MT-PRIORITY", []string{
			from + " MT-PRIORITY=10\r\n=>501", from + " MT-PRIORITY=+1\r\n=>501", from + " MT-PRIORITY\r\n=>501", from + " MT-PRIORITY=-9\r\n=>250",
		}},
		{"FUTURERELEASE", nil, nil, Options{}, "", []string{from + " HOLDFOR=10\r\n=>555"}},
		{"FUTURERELEASE", []string{"FUTURERELEASE"}, nil, Options{}, "FUTURERELEASE 604800 ", []string{
			from + " HOLDFOR=604900\r\n=>501 5.5.4", from + " HOLDFOR=0\r\n=>501", from + " HOLDFOR=1 HOLDUNTIL=2030-01-01T00:00:00Z\r\n=>501",
			from + " HOLDUNTIL=tomorrow\r\n=>501", from + " HOLDFOR=60\r\n=>250",
		}},
		{"LIMITS", nil, nil, Options{}, "", []string{"NOOP\r\n=>250"}},
		{"LIMITS", nil, nil, Options{MaxRecipients: 7}, "LIMITS RCPTMAX=7", []string{"NOOP\r\n=>250"}},
		{"ENHANCEDSTATUSCODES", nil, []string{"ENHANCEDSTATUSCODES"}, Options{}, "", []string{"NOOP\r\n=>250 ok", "XYZZY\r\n=>500 command"}},
		{"PIPELINING", nil, []string{"PIPELINING"}, Options{}, "", []string{"NOOP\r\n=>250"}},
		{"DELIVERBY", nil, nil, Options{}, "", []string{from + " BY=120;R\r\n=>555"}},
		{"DELIVERBY", []string{"DELIVERBY"}, nil, Options{}, "DELIVERBY", []string{
			from + " BY=0;R\r\n=>501 5.5.4", from + " BY=9\r\n=>501", from + " BY=-9;NT\r\n=>250", "RSET\r\n=>250", from + " BY=120;R\r\n=>250",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var err error
			if test.opts.Extensions, err = NewExtensions(test.with, test.without); err != nil {
				t.Fatal(err)
			}
			test.opts.ProtocolErrors = 20
			c := dial(t, serve(t, true, test.opts, nil).addr)
			c.expect("220")
			c.send("EHLO me\r\n")
			announced := ""
			for line := range strings.SplitSeq(c.reply(), "|") {
				if word, _, _ := strings.Cut(line[4:], " "); word == test.name {
					announced = line[4:]
				}
			}
			if (announced == "") != (test.announced == "") || !strings.HasPrefix(announced, test.announced) {
				t.Errorf("announced %q, want %q", announced, test.announced)
			}
			c.talk(test.talk...)
		})
	}
	if _, err := NewExtensions(nil, []string{"STARTTLS"}); err == nil {
		t.Error("STARTTLS is no switch")
	}
}

// TestBinaryContentIsKept: not an octet of binary content is touched.
func TestBinaryContentIsKept(t *testing.T) {
	ext, _ := NewExtensions([]string{"BINARYMIME"}, nil)
	s := serve(t, true, Options{Extensions: ext, BareNewlineChunks: Reject}, nil)
	c := dial(t, s.addr)
	const body = "A: b\r\n\r\n\x00\xff\r\n.\r\n\r\r\n\n\r"
	c.talk("=>220", "EHLO me\r\n=>250", "MAIL FROM:<a@example.com> BODY=BINARYMIME\r\n=>250", "RCPT TO:<b@example.com>\r\n=>250")
	c.talk("BDAT 9\r\n"+body[:9]+"=>250", fmt.Sprintf("BDAT %d LAST\r\n%s=>250", len(body)-9, body[9:]), "QUIT\r\n=>221")
	if got := s.got(); len(got) != 1 || got[0].content != body {
		t.Errorf("got %q, want %q", got, body)
	}
	// The next message is not binary.
	c = dial(t, s.addr)
	c.talk("=>220", "EHLO me\r\n=>250", "MAIL FROM:<a@example.com>\r\n=>250", "RCPT TO:<b@example.com>\r\n=>250", "BDAT 2 LAST\r\n\r\r=>550")
}

// TestVerify: whatever is asked, nobody learns who exists.
func TestVerify(t *testing.T) {
	for _, test := range []struct {
		name   string
		refuse bool
		want   string
	}{{"noncommittal", false, "252 2.5.0"}, {"refused", true, "502 5.5.1"}} {
		t.Run(test.name, func(t *testing.T) {
			c := dial(t, serve(t, true, Options{NoVerify: test.refuse}, nil).addr)
			c.talk("=>220", "VRFY\r\n=>501 5.5.4", "VRFY root\r\n=>"+test.want, "VRFY nobody@example.com\r\n=>"+test.want, "EXPN staff\r\n=>502 5.5.1",
				"HELP\r\n=>214", "HELP MAIL\r\n=>214", "NOOP any argument\r\n=>250", "RSET\r\n=>250", "RSET x\r\n=>501")
		})
	}
}

// TestLenientPaths: what only old devices write is taken where they are served.
func TestLenientPaths(t *testing.T) {
	for _, test := range []struct {
		name    string
		lenient bool
		mail    string
		rcpt    string
		want    string
	}{
		{"spaces are borne everywhere", false, "MAIL FROM: <a@example.com>=>250", "RCPT TO:   <b@example.com> =>250", "a@example.com>b@example.com"},
		{"no brackets, strict", false, "MAIL FROM:a@example.com=>501 5.1.7", "", ""},
		{"no brackets", true, "MAIL FROM:a@example.com=>250", "rcpt to: b@example.com=>250", "a@example.com>b@example.com"},
		{"a space before the colon", true, "MAIL FROM : <a@example.com>=>250", "RCPT TO :b@example.com=>250", "a@example.com>b@example.com"},
		{"with parameters", true, "MAIL FROM: a@example.com SIZE=5=>250", "RCPT TO: <b@example.com> NOTIFY=NEVER=>250", "a@example.com>b@example.com"},
		{"null sender", true, "MAIL FROM:<>=>250", "RCPT TO: b@example.com=>250", ">b@example.com"},
		{"nothing", true, "MAIL FROM:=>501", "", ""},
		{"a stray bracket", true, "MAIL FROM:a@example.com>=>501", "", ""},
		{"two", true, "MAIL FROM:a@example.com b@example.com=>555", "", ""},
		{"quoted", true, "MAIL FROM:\"a b\"@example.com=>501", "", ""},
		{"no address", true, "MAIL FROM:printer=>501", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := serve(t, true, Options{Lenient: test.lenient}, nil)
			c := dial(t, s.addr)
			line := func(s string) string { l, want, _ := strings.Cut(s, "=>"); return l + "\r\n=>" + want }
			c.talk("=>220", "HELO printer\r\n=>250", line(test.mail))
			if test.rcpt == "" {
				return
			}
			c.talk(line(test.rcpt), "DATA\r\n=>354", "x\r\n.\r\n=>250")
			if got := s.got(); len(got) != 1 || got[0].from+">"+got[0].to != test.want {
				t.Errorf("got %+v, want %s", got, test.want)
			}
		})
	}
}
