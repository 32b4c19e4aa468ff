package selftest

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
)

// fill replaces the placeholders of a trick: {ours} a domain of the server,
// {foreign} an address elsewhere, {user} and {else} its parts, {ip} the server's
// address as a literal.
func (t *trial) fill(s string) string {
	user, domain, _ := strings.Cut(t.o.Foreign, "@")
	return strings.NewReplacer("{ours}", t.domain, "{foreign}", t.o.Foreign, "{user}", user, "{else}", domain, "{ip}", t.ip,
		"{FOREIGN}", strings.ToUpper(t.o.Foreign)).Replace(s)
}

// relayTricks are envelopes that must be refused to strangers.
func relayTricks() []trick {
	const from = "<{foreign}>"
	var list []trick
	for _, e := range []struct{ name, helo, from, to string }{
		{"plain", "", from, "<{foreign}>"},
		{"upper case", "", from, "<{FOREIGN}>"},
		{"null sender", "", "<>", "<{foreign}>"},
		{"sender of ours", "", "<postmaster@{ours}>", "<{foreign}>"},
		{"sender at our address", "", "<postmaster@{ip}>", "<{foreign}>"},
		{"sender at localhost", "", "<root@localhost>", "<{foreign}>"},
		{"sender without a domain", "", "<root>", "<{foreign}>"},
		{"EHLO with our name", "{ours}", from, "<{foreign}>"},
		{"EHLO localhost", "localhost", from, "<{foreign}>"},
		{"EHLO with a loopback address", "[127.0.0.1]", from, "<{foreign}>"},
		{"no brackets", "", from, "{foreign}"},
		{"two brackets", "", from, "<<{foreign}>>"},
		{"trailing dot", "", from, "<{foreign}.>"},
		{"leading space", "", from, "< {foreign}>"},
		{"comment", "", from, "<{foreign}(@{ours})>"},
		{"percent hack", "", from, "<{user}%{else}@{ours}>"},
		{"percent hack at our address", "", from, "<{user}%{else}@{ip}>"},
		{"percent hack at localhost", "", from, "<{user}%{else}@localhost>"},
		{"percent hack without a domain", "", from, "<{user}%{else}>"},
		{"quoted address", "", from, `<"{foreign}"@{ours}>`},
		{"quoted address without a domain", "", from, `<"{foreign}">`},
		{"quoted percent hack", "", from, `<"{user}%{else}"@{ours}>`},
		{"nested quotes", "", from, `<"\"{foreign}\""@{ours}>`},
		{"source route", "", from, "<@{ours}:{foreign}>"},
		{"source route by our address", "", from, "<@{ip}:{foreign}>"},
		{"source route of two", "", from, "<@{ours},@localhost:{foreign}>"},
		{"bang path", "", from, "<{else}!{user}@{ours}>"},
		{"bang path without a domain", "", from, "<{else}!{user}>"},
		{"bang path through us", "", from, "<{ours}!{else}!{user}>"},
		{"bang path and percent", "", from, "<{else}!{user}%localhost@{ours}>"},
		{"two at signs, ours last", "", from, "<{foreign}@{ours}>"},
		{"two at signs, ours first", "", from, "<{user}@{ours}@{else}>"},
		{"our domain as a sub-domain of theirs", "", from, "<{user}@{ours}.{else}>"},
		{"their domain that ends like ours", "", from, "<{user}@not{ours}>"},
		{"address of this machine", "", from, "<{user}@[127.0.0.1]>"},
		{"address of this machine, IPv6", "", from, "<{user}@[IPv6:::1]>"},
		{"address of this machine, mapped", "", from, "<{user}@[IPv6:::ffff:127.0.0.1]>"},
		{"address as a number", "", from, "<{user}@2130706433>"},
		{"address without brackets", "", from, "<{user}@127.0.0.1>"},
		{"address elsewhere", "", from, "<{user}@[192.0.2.1]>"},
		{"fullwidth at sign", "", from, "<{user}＠{else}@{ours}>"},
		{"fullwidth at sign, ours first", "", from, "<{user}@{ours}＠{else}>"},
		{"fullwidth dot", "", from, "<{user}@x。{else}>"},
		{"ideographic dot after ours", "", from, "<{user}@{ours}。{else}>"},
		{"Cyrillic homograph", "", from, "<{user}@е.{else}>"},
		{"zero-width space in our domain", "", from, "<{user}@{ours}\u200b.{else}>"},
		{"NUL after the domain", "", from, "<{foreign}\x00@{ours}>"},
		{"tab in the domain", "", from, "<{foreign}\t@{ours}>"},
		{"bare CR and a second command", "", from, "<postmaster@{ours}>\rRCPT TO:<{foreign}>"},
		{"bare LF and a second command", "", from, "<nobody-{user}@{else}>\nRCPT TO:<{foreign}>"},
	} {
		list = append(list, trick{name: e.name, relay: true, try: func(ctx context.Context, t *trial) error {
			helo := e.helo
			if helo == "" {
				helo = "selftest.invalid"
			}
			return t.relays(ctx, t.fill(helo), t.fill(e.from), t.fill(e.to))
		}})
	}
	return append(list,
		trick{"second recipient", true, func(ctx context.Context, t *trial) error {
			return t.relays(ctx, "selftest.invalid", "<>", "<postmaster@"+t.domain+">", "<"+t.o.Foreign+">")
		}},
		trick{"second MAIL", true, secondMail},
		trick{"XCLIENT", true, xclient},
		trick{"PROXY header", true, proxyHeader},
	)
}

// relays asks for recipients; the last must be refused.
func (t *trial) relays(ctx context.Context, helo, from string, to ...string) error {
	c, err := t.open(ctx, helo)
	if errors.Is(err, errHelo) && t.result.Reply != "" {
		return nil // refused
	}
	if err != nil {
		return err
	}
	defer c.quit()
	return t.envelope(c, from, to...)
}

func (t *trial) envelope(c *client, from string, to ...string) error {
	params := ""
	if _, ok := c.offers("SMTPUTF8"); ok && !ascii(from+strings.Join(to, "")) {
		params = " SMTPUTF8"
	}
	r, err := t.say(c, "MAIL FROM:"+from+params)
	if err != nil {
		return err
	}
	if r.code/100 != 2 {
		t.temporary(r)
		return nil
	}
	for _, path := range to {
		if r, err = t.say(c, "RCPT TO:"+path); err != nil {
			return err
		}
	}
	if r.code/100 == 2 {
		t.verdict(Open, "the recipient was accepted")
	}
	t.temporary(r)
	return nil
}

// temporary makes a refusal for now no verdict.
func (t *trial) temporary(r reply) {
	if r.code/100 == 4 {
		t.verdict(Unclear, "refused for now")
	}
}

func ascii(s string) bool { return strings.IndexFunc(s, func(r rune) bool { return r > 0x7f }) < 0 }

// secondMail changes the sender in the middle of a transaction.
func secondMail(ctx context.Context, t *trial) error {
	c, err := t.open(ctx, "selftest.invalid")
	if err != nil {
		return err
	}
	defer c.quit()
	if _, err := t.say(c, "MAIL FROM:<>"); err != nil {
		return err
	}
	return t.envelope(c, "<postmaster@"+t.domain+">", "<"+t.o.Foreign+">")
}

// xclient passes for this machine (https://www.postfix.org/XCLIENT_README.html).
func xclient(ctx context.Context, t *trial) error {
	c, err := t.open(ctx, "selftest.invalid")
	if err != nil {
		return err
	}
	defer c.quit()
	r, err := t.say(c, "XCLIENT NAME=localhost ADDR=127.0.0.1")
	if err != nil || r.code/100 != 2 {
		return err
	}
	if _, err := c.hello("localhost"); err != nil {
		return err
	}
	if err := t.envelope(c, "<"+t.o.Foreign+">", "<"+t.o.Foreign+">"); err == nil && t.result.Verdict != Open {
		t.verdict(Warning, "XCLIENT is believed: is this machine a trusted proxy?")
	}
	return err
}

// proxyHeader passes for this machine by the PROXY protocol.
func proxyHeader(ctx context.Context, t *trial) error {
	c, err := dial(ctx, t.o, t.target, false)
	if err != nil {
		return &unreachableError{err}
	}
	defer c.quit()
	const header = "PROXY TCP4 127.0.0.1 127.0.0.1 56324 25"
	if err := c.write(header + "\r\n"); err != nil {
		return err
	}
	r, err := c.read()
	t.sent(header, r)
	if err != nil || r.code != 220 {
		return err
	}
	if r, err := c.hello("localhost"); err != nil || r.code/100 != 2 { // where the header was taken for a command, this is its reply
		return err
	}
	return t.envelope(c, "<"+t.o.Foreign+">", "<"+t.o.Foreign+">")
}

// sessionTricks need no envelope, or one that is allowed.
func sessionTricks() []trick {
	list := []trick{
		{"VRFY", false, verify},
		{"EXPN", false, expand},
		{"password before TLS", false, beforeTLS},
		{"command behind STARTTLS", false, injection},
		{"commands in a refused chunk", false, chunks},
	}
	for _, end := range []struct{ name, seq string }{
		{"LF . LF", "\n.\n"},
		{"LF . CRLF", "\n.\r\n"},
		{"CRLF . LF", "\r\n.\n"},
		{"CR . CR", "\r.\r"},
		{"CRLF . CR", "\r\n.\r"},
		{"CRLF NUL . CRLF", "\r\n\x00.\r\n"},
		{"CR . CRLF", "\r.\r\n"},
	} {
		list = append(list, trick{"smuggling by " + end.name, false, func(ctx context.Context, t *trial) error { return smuggle(ctx, t, end.seq) }})
	}
	return list
}

// verify asks for one who exists in every domain, and for one who does not.
func verify(ctx context.Context, t *trial) error {
	c, err := t.open(ctx, "selftest.invalid")
	if err != nil {
		return err
	}
	defer c.quit()
	nobody, err := t.say(c, "VRFY nobody-"+strings.ToLower(rand.Text())+"@"+t.domain)
	if err != nil {
		return err
	}
	somebody, err := t.say(c, "VRFY postmaster@"+t.domain)
	if err == nil && somebody.code != nobody.code && somebody.code/100 == 2 {
		t.verdict(Leak, "VRFY tells who exists: %d for postmaster, %d for nobody", somebody.code, nobody.code)
	}
	return err
}

func expand(ctx context.Context, t *trial) error {
	c, err := t.open(ctx, "selftest.invalid")
	if err != nil {
		return err
	}
	defer c.quit()
	r, err := t.say(c, "EXPN postmaster")
	if err == nil && (r.code == 250 || r.code == 251) {
		t.verdict(Leak, "EXPN tells the members of lists")
	}
	return err
}

// beforeTLS looks whether passwords are taken in clear.
func beforeTLS(ctx context.Context, t *trial) error {
	if t.target.Implicit {
		t.verdict(Skipped, "TLS comes first")
		return nil
	}
	c, err := dial(ctx, t.o, t.target, false)
	if err != nil {
		return &unreachableError{err}
	}
	defer c.quit()
	if _, err := c.read(); err != nil {
		return err
	}
	r, err := c.hello("selftest.invalid")
	t.sent("EHLO selftest.invalid", r)
	if err != nil {
		return err
	}
	v := Leak
	if t.target.Clear {
		v = Warning
	}
	offered, _ := c.offers("AUTH")
	for name := range strings.FieldsSeq(offered) {
		if name == "PLAIN" || name == "LOGIN" {
			t.verdict(v, "AUTH %s is offered without TLS", name)
			return nil
		}
	}
	for _, name := range []string{"LOGIN", "PLAIN"} {
		r, err := t.say(c, "AUTH "+name)
		if err != nil {
			return err
		}
		if r.code == 334 {
			t.verdict(v, "AUTH %s asks for a password without TLS", name)
			_, err := c.say("*")
			return err
		}
	}
	return nil
}

// injection puts a command behind STARTTLS, where it must not be run under TLS
// (CVE-2011-0411).
func injection(ctx context.Context, t *trial) error {
	if t.target.Implicit {
		t.verdict(Skipped, "TLS comes first")
		return nil
	}
	c, err := dial(ctx, t.o, t.target, false)
	if err != nil {
		return &unreachableError{err}
	}
	defer c.close()
	if _, err := c.read(); err != nil {
		return err
	}
	if _, err := c.hello("selftest.invalid"); err != nil {
		return err
	}
	if _, ok := c.offers("STARTTLS"); !ok {
		t.verdict(Skipped, "STARTTLS is not offered")
		return nil
	}
	if err := c.write("STARTTLS\r\nNOOP\r\n"); err != nil {
		return err
	}
	r, err := c.read()
	t.sent("STARTTLS\r\nNOOP", r)
	if err != nil || r.code != 220 {
		return err
	}
	if err := c.handshake(ctx, t.target, false); err != nil {
		return err
	}
	if r, err := c.readWithin(t.o.Quiet); err == nil {
		t.result.Reply = r.String()
		t.verdict(Leak, "a command that was sent in clear was run under TLS")
	} else if !timeout(err) {
		return err
	}
	return nil
}

// timeout reports whether the server said nothing, which is what it should.
func timeout(err error) bool {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// chunks puts commands into a chunk that is refused.
func chunks(ctx context.Context, t *trial) error {
	c, err := t.open(ctx, "selftest.invalid")
	if err != nil {
		return err
	}
	defer c.close()
	if _, ok := c.offers("CHUNKING"); !ok {
		t.verdict(Skipped, "CHUNKING is not offered")
		return nil
	}
	const inside = "NOOP\r\nNOOP\r\n"
	line := fmt.Sprintf("BDAT %d\r\n%s", len(inside), inside)
	if err := c.write(line); err != nil {
		return err
	}
	r, err := c.read()
	t.sent(line, r)
	if err != nil {
		return err
	}
	if r, err = c.readWithin(t.o.Quiet); err == nil && r.code/100 == 2 {
		t.result.Reply = r.String()
		t.verdict(Leak, "the octets of a chunk were run as commands")
	}
	return nil
}

// hops is how many Received fields a content has that no server may take: as
// many as any limit allows, and some more (RFC 5321 section 6.3).
const hops = 1100

// smuggle looks whether a content ends where it does not (CVE-2023-51764).
func smuggle(ctx context.Context, t *trial, end string) error {
	c, err := t.open(ctx, "selftest.invalid")
	if err != nil {
		return err
	}
	defer c.close() // in the middle of the content, so that there is no message
	for _, line := range []string{"MAIL FROM:<>", "RCPT TO:<postmaster@" + t.domain + ">", "DATA"} {
		r, err := t.say(c, line)
		if err != nil {
			return err
		}
		if r.code/100 > 3 {
			t.verdict(Skipped, "no recipient is taken")
			return nil
		}
	}
	var b strings.Builder
	for range hops {
		b.WriteString("Received: from selftest by selftest\r\n")
	}
	b.WriteString("Subject: selftest\r\n\r\nselftest" + end)
	if err := c.write(b.String()); err != nil {
		return err
	}
	if err := c.write("NOOP\r\nNOOP\r\n"); err != nil {
		return err
	}
	first, err := c.readWithin(t.o.Quiet)
	t.sent("selftest"+end+"NOOP", first)
	switch {
	case timeout(err):
		return nil // it waits for the end
	case err != nil:
		return err
	case first.code/100 == 2:
		t.verdict(Leak, "the content was taken to end there, and the message was accepted")
		return nil
	}
	if r, err := c.readWithin(t.o.Quiet); err == nil && r.code/100 == 2 {
		t.result.Reply = r.String()
		t.verdict(Leak, "the content was taken to end there, and what followed was run as commands")
	}
	return nil
}

// userTricks are what a user who may relay may not.
func userTricks() []trick {
	list := []trick{
		{"relay", false, func(ctx context.Context, t *trial) error {
			if err := t.relays(ctx, "selftest.invalid", "<>", "<"+t.o.Foreign+">"); err != nil {
				return err
			}
			if t.result.Verdict == Open {
				t.verdict(OK, "allowed, as it is to users as a rule")
			}
			return nil
		}},
		{"another's name", false, foreignIdentity},
		{"login in a transaction", false, loginAgain},
	}
	for _, e := range []struct{ name, from string }{
		{"sender of our domain", "<selftest-somebody-else@{ours}>"}, {"sender elsewhere", "<{foreign}>"},
	} {
		list = append(list, trick{e.name, false, func(ctx context.Context, t *trial) error {
			c, err := t.open(ctx, "selftest.invalid")
			if err != nil {
				return err
			}
			defer c.quit()
			r, err := t.say(c, "MAIL FROM:"+t.fill(e.from))
			if err == nil && r.code/100 == 2 {
				t.verdict(Warning, "the user may send as anybody there")
			}
			return err
		}})
	}
	for _, e := range []struct{ name, to string }{
		{"address of this machine", "<{user}@[127.0.0.1]>"},
		{"address of this machine, IPv6", "<{user}@[IPv6:::1]>"},
		{"address of this machine, mapped", "<{user}@[IPv6:::ffff:127.0.0.1]>"},
	} {
		list = append(list, trick{e.name, false, func(ctx context.Context, t *trial) error {
			if err := t.relays(ctx, "selftest.invalid", "<>", t.fill(e.to)); err != nil {
				return err
			}
			if t.result.Verdict == Open {
				t.verdict(Leak, "mail is sent to the server's own machine")
			}
			return nil
		}})
	}
	return list
}

// foreignIdentity logs in with one's own password as somebody else (RFC 4616).
func foreignIdentity(ctx context.Context, t *trial) error {
	before := *t
	before.loginLater = true
	c, err := before.open(ctx, "selftest.invalid")
	if err != nil {
		return err
	}
	defer c.quit()
	if !c.private() {
		t.verdict(Skipped, "there is no TLS: the password stays here")
		return nil
	}
	r, err := c.say("AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("postmaster\x00"+t.o.User+"\x00"+t.o.Password)))
	t.sent("AUTH PLAIN (postmaster, by the user's password)", r)
	if err == nil && r.code == 235 && !strings.EqualFold(t.o.User, "postmaster") {
		t.verdict(Leak, "a user may act for somebody else")
	}
	return err
}

// loginAgain logs in in the middle of a transaction (RFC 4954 section 4).
func loginAgain(ctx context.Context, t *trial) error {
	c, err := t.open(ctx, "selftest.invalid")
	if err != nil {
		return err
	}
	defer c.quit()
	if _, err := t.say(c, "MAIL FROM:<>"); err != nil {
		return err
	}
	r, err := t.say(c, "AUTH LOGIN")
	if err == nil && r.code == 334 {
		t.verdict(Leak, "AUTH begins in a transaction")
		_, err = c.say("*")
	}
	return err
}
