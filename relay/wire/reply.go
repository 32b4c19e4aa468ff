package wire

import (
	"bytes"
	"strconv"
	"strings"
	"time"

	"waybill/relay/mail"
)

// answer replies to the current command without go-smtp.
func (c *Conn) answer(code int, enhanced, text string) {
	c.say(mail.Reply{Code: code, Enhanced: enhanced, Text: text})
	c.now = none
}

// offend answers a protocol error, and ends the session when there were too many.
func (c *Conn) offend(code int, enhanced, text string) {
	if c.errors++; c.errors >= c.opts.ProtocolErrors {
		c.throttled("protocol_errors", "close")
		c.bye(CauseErrors, 421, "4.7.0", "too many errors")
		return
	}
	c.answer(code, enhanced, text)
}

// bye answers and ends the session.
func (c *Conn) bye(cause string, code int, enhanced, text string) {
	c.setCause(cause)
	if cause != CauseShutdown && cause != CauseIdle { // going is not failing
		c.failed = true
	}
	c.say(mail.Reply{Code: code, Enhanced: enhanced, Text: text})
	c.now = none
}

// say sends r as the reply to the current command.
func (c *Conn) say(r mail.Reply) {
	now := c.answered(r.Code, r.Enhanced)
	if c.tarpit(r.Code) {
		now = time.Now()
	}
	for text, more := r.Text, true; more; {
		var line string
		line, text, more = strings.Cut(text, "\n")
		c.replyLine(now, r, line, more)
	}
}

// replyLine appends one line of a reply. Every line carries the enhanced code
// (RFC 2034 section 3), no line holds what could be taken for another.
func (c *Conn) replyLine(now time.Time, r mail.Reply, text string, more bool) {
	at := len(c.out)
	c.out = strconv.AppendInt(c.out, int64(r.Code), 10)
	if more {
		c.out = append(c.out, '-')
	} else {
		c.out = append(c.out, ' ')
	}
	if r.Enhanced != "" && c.opts.Extensions.has(enhancedCodes) {
		c.out = append(c.out, r.Enhanced...)
		c.out = append(c.out, ' ')
	}
	const limit = 480 // RFC 5321 section 4.5.3.1.5: 512 with everything
	said := len(c.out)
	c.out = append(c.out, text[:min(len(text), limit)]...)
	for i, b := range c.out[said:] {
		if b < ' ' || b == 0x7f || b >= 0x80 && !c.env.UTF8 {
			c.out[said+i] = '?'
		}
	}
	c.script.Server(now, c.out[at:])
	c.out = append(c.out, '\r', '\n')
}

// put sends one line as it is, outside any command.
func (c *Conn) put(line string) {
	at := len(c.out)
	c.out = append(c.out, line...)
	c.script.Server(time.Now(), c.out[at:])
	c.out = append(c.out, '\r', '\n')
}

// tarpit delays a 5xx reply while nobody is authenticated, so that guessing
// costs the guesser time. It holds no more than an idle session does. It reports
// whether it did.
func (c *Conn) tarpit(code int) bool {
	if code < 500 || c.authed || c.opts.Tarpit <= 0 {
		return false
	}
	if !c.tarpitted {
		c.tarpitted = true
		c.throttled("tarpit", "tarpit")
	}
	c.in.shrink()
	if c.flush() != nil {
		return false
	}
	t := time.NewTimer(c.opts.Tarpit)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.gone:
	}
	return true
}

// settle takes go-smtp's reply, which is complete, and sends ours.
func (c *Conn) settle() {
	if c.now == none {
		if len(c.reply) > 0 { // go-smtp speaks unasked only to say that it ends
			c.out = append(c.out, c.reply...)
			c.reply = c.reply[:0]
		}
		return
	}
	v := c.now
	if len(c.reply) == 0 { // go-smtp said nothing: it is ending
		c.now = none
		return
	}
	r, ok := c.override, c.override.Code != 0
	c.override = mail.Reply{}
	if !ok {
		r, ok = ours(v, c.reply)
	}
	if !ok {
		r = parseReply(c.reply)
	}
	c.reply = c.reply[:0]
	if r.Code == 0 {
		c.now = none
		return
	}
	c.state(v, r.Code)
	if c.swallow {
		c.swallow = false
		c.now = none
		return
	}
	if c.override.Code != 0 { // there were too many of it
		r, c.override = c.override, mail.Reply{}
	}
	switch {
	case r.Code == 334:
		// Not answered yet. The challenge may hold what the client should not see logged.
		c.out = append(c.out, "334 "...)
		c.out = append(c.out, r.Text...)
		c.out = append(c.out, '\r', '\n')
		c.script.Server(time.Now(), []byte("334 ***"))
		return
	case v == ehlo && r.Code == 250:
		c.answered(250, "")
		c.capabilities()
	case v == data && r.Code == 354:
		c.put("354 end with CRLF.CRLF")
	default:
		c.say(r)
	}
	c.now = none
}

// ours is what we say in place of reply, when that is go-smtp's own word for the
// success of v; ok tells whether it is.
func ours(v verb, reply []byte) (r mail.Reply, ok bool) {
	code := func(s string) bool { return len(reply) > 4 && string(reply[:4]) == s }
	switch v {
	case mailFrom:
		return mail.Reply{Code: 250, Enhanced: "2.1.0", Text: "sender ok"}, code("250 ")
	case rcptTo:
		return mail.Reply{Code: 250, Enhanced: "2.1.5", Text: "recipient ok"}, code("250 ")
	case rset:
		return mail.Reply{Code: 250, Enhanced: "2.0.0", Text: "ok"}, code("250 ")
	case quit:
		return mail.Reply{Code: 221, Enhanced: "2.0.0", Text: "bye"}, code("221 ")
	case authenticate:
		return mail.Reply{Code: 235, Enhanced: "2.7.0", Text: "authenticated"}, code("235 ")
	case helo, ehlo:
		return mail.Reply{Code: 250, Text: "ok"}, code("250 ")
	case data:
		return mail.Reply{Code: 354}, code("354 ")
	}
	return r, false
}

// state follows what a reply means for the conversation.
func (c *Conn) state(v verb, code int) {
	ok := code/100 == 2
	switch v {
	case helo, ehlo:
		if ok {
			c.greeted, c.tx, c.env.UTF8 = true, false, false
		}
	case mailFrom:
		if ok {
			c.tx, c.rcpts = true, 0
		} else {
			c.refused()
		}
	case rcptTo:
		if ok {
			c.rcpts++
		} else {
			c.refused()
		}
	case rset:
		c.tx, c.env.UTF8 = false, false
	case dot, bdat:
		c.tx = false
		c.env.UTF8 = false
		if ok {
			c.junk, c.refusals = 0, 0
		}
	case data:
		if code != 354 {
			c.body.open = false
		}
	case quit:
		c.setCause(CauseQuit)
	case authenticate:
		c.auth.active = code == 334
		c.authed = code == 235
		c.sasl = c.authed
	default: // the others are answered here
	}
}

// refused counts a command that policy refused.
func (c *Conn) refused() {
	if c.refusals++; c.refusals >= maxRefusals {
		c.throttled("refusals", "close")
		c.failed = true
		c.setCause(CauseErrors)
		c.override = mail.Reply{Code: 421, Enhanced: "4.7.0", Text: "too many errors"}
	}
}

// capabilities answers EHLO (RFC 5321 section 4.1.1.1).
func (c *Conn) capabilities() {
	lines := append([]string{c.opts.Hostname}, c.announced()...)
	if c.tls == nil && c.opts.TLS != nil && !c.authed {
		lines = append(lines, "STARTTLS")
	}
	if c.opts.Hooks.Mechanisms != nil && !c.authed {
		if m := c.opts.Hooks.Mechanisms(); len(m) > 0 {
			lines = append(lines, "AUTH "+strings.Join(m, " "))
		}
	}
	if c.opts.Hooks.XClient != nil && !c.sasl {
		lines = append(lines, "XCLIENT "+strings.Join(xclientWords, " "))
	}
	for i, l := range lines {
		if i < len(lines)-1 {
			c.put("250-" + l)
		} else {
			c.put("250 " + l)
		}
	}
}

// parseReply reads go-smtp's reply: lines of one code, of which the last has an
// enhanced code.
func parseReply(b []byte) mail.Reply {
	var r mail.Reply
	var text []byte
	first := true
	for line := range bytes.SplitSeq(bytes.TrimSuffix(b, []byte("\r\n")), []byte("\r\n")) {
		if len(line) < 4 {
			continue
		}
		if n, err := strconv.Atoi(string(line[:3])); err == nil && n >= 200 && n < 600 {
			r.Code = n
		}
		rest := line[4:]
		if line[3] == ' ' && r.Code != 334 && r.Code != 354 {
			if word, after, ok := bytes.Cut(rest, space); ok && enhancedCode(word) {
				r.Enhanced, rest = string(word), after
			}
		}
		if !first {
			text = append(text, '\n')
		}
		text, first = append(text, rest...), false
	}
	r.Text = string(text)
	return r
}

func enhancedCode(b []byte) bool {
	dots := 0
	for i, x := range b {
		switch {
		case x == '.' && i > 0:
			dots++
		case x < '0' || x > '9':
			return false
		}
	}
	return dots == 2 && (b[0] == '2' || b[0] == '4' || b[0] == '5')
}
