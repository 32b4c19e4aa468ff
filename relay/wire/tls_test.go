package wire

import (
	"bufio"
	"crypto/tls"
	"strings"
	"testing"

	"waybill/relay/event"
	"waybill/relay/relaytest"
)

func (c *client) startTLS(cfg *tls.Config) {
	c.t.Helper()
	t := tls.Client(c.c, cfg)
	if err := t.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	c.c, c.br = t, bufio.NewReader(t)
}

func configs(t *testing.T) (server, client *tls.Config) {
	cert, roots := relaytest.Certificate(t, "mx.example.com")
	return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}, &tls.Config{RootCAs: roots, ServerName: "mx.example.com"}
}

func TestSTARTTLS(t *testing.T) {
	server, cfg := configs(t)
	rec := &relaytest.Recorder{}
	s := serve(t, true, Options{TLS: server, Emitter: rec.Emitter(), Connector: "c"}, nil)
	c := dial(t, s.addr)
	c.talk("=>220", "EHLO me\r\n=>250-mx.example.com|250-PIPELINING|250-SIZE|250-8BITMIME|250-SMTPUTF8|250-CHUNKING|250-DSN|250-MT-PRIORITY|250-ENHANCEDSTATUSCODES|250 STARTTLS")
	c.talk("STARTTLS now\r\n=>501 5.5.4", "STARTTLS\r\n=>220 2.0.0")
	c.startTLS(cfg)
	c.talk("MAIL FROM:<a@example.com>\r\n=>503 5.5.1") // EHLO is forgotten
	c.send("EHLO me\r\n")
	if r := c.reply(); strings.Contains(r, "STARTTLS") || !strings.Contains(r, "250-REQUIRETLS|") {
		t.Errorf("announced within TLS: %q", r)
	}
	c.talk(
		"STARTTLS\r\n=>503", "MAIL FROM:<a@example.com>\r\n=>250", "RCPT TO:<b@example.com>\r\n=>250", "DATA\r\n=>354", "x\r\n.\r\n=>250", "QUIT\r\n=>221",
	)
	if r := c.reply(); r != "" {
		t.Errorf("after QUIT: %q", r)
	}
	fact := rec.WaitFor(t, "tls_negotiated", 1)[0].Event.(event.TLSNegotiated)
	if fact.Version != "1.3" || fact.Cipher == "" || fact.Connector != "c" || fact.Failure != "" || fact.Verify != "none" {
		t.Errorf("fact = %+v", fact)
	}
}

func TestImplicitTLS(t *testing.T) {
	server, cfg := configs(t)
	s := serve(t, true, Options{TLS: server, Implicit: true}, nil)
	c := dial(t, s.addr)
	c.startTLS(cfg)
	c.talk("=>220", "EHLO me\r\n=>250", "STARTTLS\r\n=>503", "QUIT\r\n=>221")
}

// TestSTARTTLSInjection is CVE-2011-0411: plaintext after STARTTLS must not run.
func TestSTARTTLSInjection(t *testing.T) {
	server, _ := configs(t)
	for _, test := range []struct{ name, after string }{
		{"a command", "MAIL FROM:<evil@example.com>\r\n"},
		{"a part of one", "M"},
		{"a line end", "\r\n"},
		{"the hello of TLS at once", "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := serve(t, true, Options{TLS: server}, nil)
			c := dial(t, s.addr)
			c.talk("=>220", "EHLO me\r\n=>250")
			c.send("STARTTLS\r\n" + test.after)
			c.expect("554 5.5.1")
			if r := c.reply(); r != "" {
				t.Errorf("the connection went on: %q", r)
			}
		})
	}
}

func TestHandshakeFails(t *testing.T) {
	server, _ := configs(t)
	for _, test := range []struct {
		name     string
		implicit bool
	}{{"STARTTLS", false}, {"implicit", true}} {
		t.Run(test.name, func(t *testing.T) {
			rec := &relaytest.Recorder{}
			closed := make(chan Summary, 1)
			s := serve(t, true, Options{
				TLS: server, Implicit: test.implicit, Emitter: rec.Emitter(), Hooks: Hooks{Closed: func(s Summary) { closed <- s }},
			}, nil)
			c := dial(t, s.addr)
			if !test.implicit {
				c.talk("=>220", "EHLO me\r\n=>250", "STARTTLS\r\n=>220")
			}
			c.send("MAIL FROM:<evil@example.com>\r\n")
			for line := range strings.SplitSeq(c.reply(), "|") {
				if len(line) > 3 && line[3] == ' ' {
					t.Errorf("an answer in plaintext: %q", line)
				}
			}
			fact := rec.WaitFor(t, "tls_negotiated", 1)[0].Event.(event.TLSNegotiated)
			if fact.Failure == "" || fact.Reason != "not_tls" || fact.Version != "" {
				t.Errorf("fact = %+v", fact)
			}
			if sum := <-closed; sum.Cause != CauseProtocol || !sum.Failed {
				t.Errorf("summary = %+v", sum)
			}
		})
	}
}
