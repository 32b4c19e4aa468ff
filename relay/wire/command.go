package wire

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/transcript"
)

// verb is a command that this package knows.
type verb uint8

const (
	none verb = iota
	unknown
	helo
	ehlo
	mailFrom
	rcptTo
	data
	bdat
	rset
	noop
	quit
	authenticate
	starttls
	vrfy
	expn
	help
	xclient
	dot // the end of a content, which is answered like a command
)

var verbs = [...]string{
	none: "", unknown: "UNKNOWN", helo: "HELO", ehlo: "EHLO", mailFrom: "MAIL", rcptTo: "RCPT", data: "DATA", bdat: "BDAT",
	rset: "RSET", noop: "NOOP", quit: "QUIT", authenticate: "AUTH", starttls: "STARTTLS", vrfy: "VRFY", expn: "EXPN", help: "HELP", xclient: "XCLIENT", dot: "DATA",
}

// Verbs are the words of [event.CommandAnswered.Verb] that this package states.
// DATA is stated once: when it is refused, or when its content is answered.
func Verbs() []string {
	return slices.Clone(verbs[unknown:dot])
}

func (v verb) String() string { return verbs[v] }

// verbOf finds the command named word, which may be in any case.
func verbOf(word []byte) verb {
	var up [8]byte
	if len(word) == 0 || len(word) > len(up) {
		return unknown
	}
	for i, b := range word {
		if b >= 'a' && b <= 'z' {
			b -= 'a' - 'A'
		}
		up[i] = b
	}
	for v := helo; v < dot; v++ {
		if string(up[:len(word)]) == verbs[v] {
			return v
		}
	}
	return unknown
}

// authState is where an AUTH exchange is.
type authState struct {
	mechanism string
	active    bool // go-smtp answered 334: the next line is a response, not a command
}

// What go-smtp gets in place of what the client said. Nothing in these lines
// comes from the client, and go-smtp accepts them all.
const (
	safeHelo = "HELO client\r\n" // for EHLO too: its reply is made here
	safeMail = "MAIL FROM:<>\r\n"
	safeRcpt = "RCPT TO:<r@h>\r\n"
	safeData = "DATA\r\n"
	safeEnd  = ".\r\n"
	safeRset = "RSET\r\n"
	safeQuit = "QUIT\r\n"
	safeStop = "*\r\n" // cancels AUTH (RFC 4954 section 4)
)

// step brings the conversation to the point where go-smtp gets something in
// c.pend, or returns the error that ends go-smtp's loop.
func (c *Conn) step() error {
	if c.body.open {
		return c.endBody()
	}
	if !c.greet {
		if err := c.open(); err != nil {
			return err
		}
	}
	c.settle()
	for c.cause == "" && len(c.pend) == 0 {
		if len(c.out) > maxOut {
			if err := c.flush(); err != nil {
				return io.EOF
			}
		}
		c.command()
	}
	if len(c.pend) > 0 {
		return nil
	}
	_ = c.flush() // the peer may be gone; we are going
	return io.EOF
}

// open does the handshake of implicit TLS and replaces go-smtp's greeting.
func (c *Conn) open() error {
	c.greet = true
	c.Pause(c.opts.Delay)
	if c.opts.Implicit {
		if err := c.handshake(); err != nil {
			c.reply = c.reply[:0]
			return io.EOF
		}
	} else if c.opts.Hooks.Early != nil && early(c.raw) {
		c.opts.Hooks.Early()
	}
	c.reply = c.reply[:0]
	c.put(c.greeting())
	return nil
}

// command reads one command, and answers it or gives it to go-smtp.
func (c *Conn) command() {
	c.in.shrink()
	if c.held != nil {
		line := c.held
		c.held = nil
		c.dispatch(line)
		return
	}
	now := time.Now()
	deadline := now.Add(c.opts.CommandTimeout)
	if c.opts.SessionTimeout > 0 {
		end := c.started.Add(c.opts.SessionTimeout)
		if c.tx || c.auth.active {
			end = end.Add(c.opts.CommandTimeout)
		}
		if !now.Before(end) {
			c.bye(CauseTimeout, 421, "4.4.2", "session too long, closing connection")
			return
		}
		if end.Before(deadline) {
			deadline = end
		}
	}
	if !c.tx && c.isDraining() {
		c.bye(CauseShutdown, 421, "4.3.2", "service closing, try again later")
		return
	}
	limit := maxLine
	if c.auth.active {
		limit = maxAuthLine
	}
	c.waitFor(now, !c.tx && !c.auth.active)
	c.nowAt, c.waited = now, false
	line, err := c.line(limit, deadline, !c.tx)
	if c.waited { // it was not among the octets at hand
		c.nowAt = time.Now()
	}
	if c.waitFor(time.Time{}, false) && errors.Is(err, errTimeout) {
		err = errEvicted
	}
	switch {
	case err == nil && c.auth.active:
		c.response(line)
	case err == nil:
		c.dispatch(line)
	default:
		c.lineError(err)
	}
}

var (
	errLongLine    = errors.New("line too long")
	errVeryLong    = errors.New("line much too long")
	errBareNewline = errors.New("line ends in a bare LF")
	errBinary      = errors.New("control character in a command")
)

// line reads one line, without its end. It stays valid until the next read.
func (c *Conn) line(limit int, deadline time.Time, idle bool) ([]byte, error) {
	scanned, dropped := 0, 0
	for {
		buf := c.in.bytes()
		i := bytes.IndexByte(buf[scanned:], '\n')
		if i < 0 {
			scanned = len(buf)
			if scanned > maxAuthLine+512 {
				c.in.advance(scanned)
				dropped += scanned
				scanned = 0
			}
			if dropped > maxLongLine {
				return nil, errVeryLong
			}
			if err := c.fill(deadline, idle && len(buf) == 0, false); err != nil {
				return nil, err
			}
			continue
		}
		i += scanned
		line := buf[:i]
		c.in.advance(i + 1)
		if len(line) > 4 && bytes.EqualFold(line[:5], authPrefix) {
			limit = maxAuthLine + len(authPrefix)
		}
		line, crlf := bytes.CutSuffix(line, crByte)
		if dropped > 0 || len(line) > limit {
			return nil, errLongLine
		}
		if !crlf && c.opts.BareNewline == Reject {
			return nil, errBareNewline
		}
		c.crlf = c.crlf || crlf
		for _, b := range line {
			if b < ' ' && b != '\t' || b == 0x7f {
				return line, errBinary
			}
		}
		return line, nil
	}
}

var authPrefix = []byte("AUTH ")

// lineError answers what did not become a line.
func (c *Conn) lineError(err error) {
	c.now = unknown
	switch {
	case errors.Is(err, errLongLine) && c.auth.active:
		c.abandon(500, "5.5.6", "authentication exchange line is too long", "malformed") // RFC 4954 section 4
	case errors.Is(err, errBinary) && c.auth.active:
		c.abandon(501, "5.5.2", "malformed response", "malformed")
	case errors.Is(err, errLongLine):
		c.script.Client(c.nowAt, []byte("(line too long)"))
		c.offend(500, "5.5.2", "line too long")
	case errors.Is(err, errBinary):
		c.script.Client(c.nowAt, []byte("(control characters)"))
		if c.commands == 0 { // as of a TLS client on a plaintext port
			c.bye(CauseProtocol, 554, "5.5.1", "this is SMTP")
			return
		}
		c.offend(500, "5.5.2", "control character in command")
	case errors.Is(err, errBareNewline):
		// Whoever ends commands in LF may be a smuggled content (RFC 5321 section 2.3.8).
		c.bye(CauseProtocol, 500, "5.5.2", "lines must end in CRLF")
	case errors.Is(err, errVeryLong):
		c.bye(CauseProtocol, 500, "5.5.2", "line too long, closing connection")
	case errors.Is(err, errDraining):
		c.now = none
		c.bye(CauseShutdown, 421, "4.3.2", "service closing, try again later")
	case errors.Is(err, errEvicted):
		c.now = none
		c.bye(CauseLimit, 421, "4.7.0", "others are waiting, try again later")
	case errors.Is(err, errTimeout):
		c.now = none
		cause := CauseIdle
		if c.tx || c.auth.active || c.in.len() > 0 || c.opts.SessionTimeout > 0 && c.nowAt.Sub(c.started) >= c.opts.SessionTimeout {
			cause = CauseTimeout
		}
		c.bye(cause, 421, "4.4.2", "timeout, closing connection")
	default:
		c.setCause(c.lost())
	}
}

// dispatch handles one command line.
func (c *Conn) dispatch(line []byte) {
	if c.proxyHeader(line) {
		c.now = unknown
		c.script.Client(c.nowAt, []byte("(PROXY header)"))
		if c.opts.Hooks.Unasked != nil {
			c.opts.Hooks.Unasked()
		}
		c.bye(CauseProtocol, 554, "5.5.1", "no PROXY header is expected from you")
		return
	}
	word, args, _ := bytes.Cut(line, space)
	v := verbOf(word)
	c.now = v
	if v != authenticate {
		c.script.Client(c.nowAt, c.shown(v, line))
	}
	c.commands++
	if v != quit && c.mayNot(v) {
		return
	}
	switch v {
	case noop, rset, vrfy, expn, help, helo, ehlo:
		if c.junk++; c.junk > maxJunk {
			c.throttled("junk", "close")
			c.bye(CauseErrors, 421, "4.7.0", "too many commands without mail")
			return
		}
	}
	args = bytes.TrimLeft(args, " \t")
	if c.hasty(v) {
		return
	}
	switch v {
	case helo, ehlo:
		c.hello(v, args)
	case mailFrom:
		c.mail(args)
	case rcptTo:
		c.recipient(args)
	case data:
		c.data(args)
	case bdat:
		c.chunk(args)
	case authenticate:
		c.authenticate(args)
	case starttls:
		c.startTLS(args)
	case rset:
		c.plainCommand(args, safeRset)
	case quit:
		c.plainCommand(args, safeQuit)
	case noop: // its argument is ignored (RFC 5321 section 4.1.1.9)
		c.answer(250, "2.0.0", "ok")
	case help:
		c.answer(214, "2.0.0", "EHLO MAIL RCPT DATA BDAT RSET NOOP QUIT AUTH STARTTLS VRFY; see RFC 5321")
	case vrfy:
		switch { // RFC 5321 section 3.5.3: nobody learns here who exists
		case len(bytes.TrimSpace(args)) == 0:
			c.offend(501, "5.5.4", "whom?")
		case c.opts.NoVerify:
			c.answer(502, "5.5.1", "not here")
		default:
			c.answer(252, "2.5.0", "send mail, and see")
		}
	case expn:
		c.answer(502, "5.5.1", "not here")
	case xclient:
		c.xclient(args)
	default:
		if foreign(word, args) {
			c.bye(CauseProtocol, 554, "5.5.1", "this is SMTP")
			return
		}
		c.offend(500, "5.5.1", "command not recognised")
	}
}

// hasty refuses a command that others came with, where PIPELINING is not
// announced: the client has to wait for each reply (RFC 2920 section 3.1).
func (c *Conn) hasty(v verb) bool {
	if c.in.len() == 0 || c.opts.Extensions.has(pipelining) {
		return false
	}
	switch v {
	case bdat, starttls: // a chunk follows its command; what follows STARTTLS ends the session
		return false
	case data: // a content, which must not be run
		c.bye(CauseProtocol, 503, "5.5.1", "wait for the reply to each command")
	default:
		c.offend(503, "5.5.1", "wait for the reply to each command")
	}
	return true
}

var space = []byte{' '}

// shown is what of a command the transcript may keep. Clients have been seen to
// misspell AUTH, and to go on with what they take for their credentials after it
// was refused: of an unknown command only a well-known name is kept.
func (c *Conn) shown(v verb, line []byte) []byte {
	if v != unknown {
		return line
	}
	word, _, _ := bytes.Cut(line, space)
	for _, known := range others {
		if bytes.EqualFold(word, []byte(known)) {
			return word
		}
	}
	return []byte("(unknown command)")
}

// others are names of commands that are not ours.
var others = []string{
	"LHLO", "ETRN", "TURN", "ATRN", "SEND", "SOML", "SAML", "XFORWARD", "XEXCH50", "X-ANONYMOUSTLS", "X-EXPS", "X-LINK2STATE", "BURL",
	"GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT",
}

// foreign reports whether a line is of another protocol: a browser that was made
// to post to us, for example. Its content would follow as commands.
func foreign(word, args []byte) bool {
	switch strings.ToUpper(string(word)) {
	case "GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "DELETE", "PATCH", "TRACE", "PRI":
		return true
	}
	return bytes.HasSuffix(word, []byte{':'}) && len(word) > 1 || bytes.HasPrefix(word, []byte("SSH-")) || bytes.Contains(args, []byte(" HTTP/"))
}

// give hands line to go-smtp.
func (c *Conn) give(line string) { c.pend = line }

// plainCommand hands a command that takes no argument to go-smtp.
func (c *Conn) plainCommand(args []byte, line string) {
	if len(bytes.TrimSpace(args)) > 0 {
		c.offend(501, "5.5.4", "no argument is allowed")
		return
	}
	c.give(line)
}

func (c *Conn) hello(v verb, args []byte) {
	name, _, _ := bytes.Cut(args, space)
	if len(name) == 0 || len(name) > 255 {
		c.offend(501, "5.5.4", "your name, please")
		return
	}
	c.helo, c.esmtp = Printable(string(name), 255), v == ehlo
	c.give(safeHelo)
}

// mail handles MAIL. Its order of checks is that of the replies in RFC 5321
// section 4.1.4: sequence, then syntax, then policy (in the session).
func (c *Conn) mail(args []byte) {
	if !c.greeted || c.tx {
		c.refuse(args, mail.Refuse(503, "5.5.1", "protocol", "bad sequence of commands"))
		return
	}
	env, err := mail.ParseMail(c.path(args))
	if err != nil {
		c.refuse(args, syntax(err, "5.1.7"))
		return
	}
	last := c.env
	c.env = env
	if e := c.mayMail(&c.env); e != nil {
		c.env = last
		c.refuse(args, e)
		return
	}
	c.mailAt = c.nowAt
	c.give(safeMail)
}

func (c *Conn) recipient(args []byte) {
	if !c.tx {
		c.refuse(args, mail.Refuse(503, "5.5.1", "protocol", "bad sequence of commands"))
		return
	}
	rcpt, err := mail.ParseRcpt(c.path(args), c.env.UTF8)
	if err != nil {
		c.refuse(args, syntax(err, "5.1.3"))
		return
	}
	last := c.rcpt
	c.rcpt = rcpt
	if e := c.mayRcpt(&c.rcpt); e != nil {
		c.rcpt = last
		c.refuse(args, e)
		return
	}
	c.give(safeRcpt)
}

// path is the argument of MAIL or RCPT as it is parsed. Where old devices are
// served, a mailbox without angle brackets, such as "FROM: a@example.com", gets
// them; a quoted local part does not, since nobody that old writes one.
func (c *Conn) path(args []byte) string {
	s := string(args)
	if !c.opts.Lenient {
		return s
	}
	keyword, rest, ok := strings.Cut(s, ":")
	if !ok {
		return s
	}
	keyword = strings.TrimRight(keyword, " \t") // "MAIL FROM : <a@example.com>"
	rest = strings.TrimLeft(rest, " \t")
	if rest == "" || rest[0] == '<' || strings.ContainsAny(rest, "<>\"") {
		return keyword + ":" + rest
	}
	mailbox, params, more := strings.Cut(rest, " ")
	if more {
		params = " " + params
	}
	return keyword + ":<" + mailbox + ">" + params
}

// syntax is the reply to what package mail could not parse (RFC 5321 section
// 4.1.1.11, RFC 6531 section 3.5).
func syntax(err error, address string) *mail.ReplyError {
	var e *mail.ReplyError
	switch {
	case errors.Is(err, mail.ErrUnknownParameter):
		e = mail.Refuse(555, "5.5.4", "syntax", "parameter not recognised")
	case errors.Is(err, mail.ErrParameter):
		e = mail.Refuse(501, "5.5.4", "syntax", "bad parameter")
	case errors.Is(err, mail.ErrAddressUTF8):
		e = mail.Refuse(553, "5.6.7", "utf8", "non-ASCII address needs SMTPUTF8")
	default:
		e = mail.Refuse(501, address, "syntax", "malformed address")
	}
	e.Err = err
	return e
}

// refuse answers MAIL or RCPT with e, and lets the session state it.
func (c *Conn) refuse(args []byte, e *mail.ReplyError) {
	v := c.now
	arg := Printable(string(args), 320)
	c.offend(e.Reply.Code, e.Reply.Enhanced, e.Reply.Text)
	if c.opts.Hooks.Refused != nil {
		c.opts.Hooks.Refused(v.String(), arg, e)
	}
}

func (c *Conn) data(args []byte) {
	switch {
	case len(bytes.TrimSpace(args)) > 0:
		c.offend(501, "5.5.4", "DATA takes no argument")
	case !c.tx:
		c.offend(503, "5.5.1", "bad sequence of commands")
	case c.env.Body == mail.BodyBinaryMIME:
		c.offend(503, "5.5.1", "binary content comes by BDAT") // RFC 3030 section 3
	case c.rcpts == 0:
		c.answer(554, "5.5.1", "no valid recipients") // RFC 5321 section 3.3
	default:
		if e := c.begin(); e != nil {
			c.answer(e.Reply.Code, e.Reply.Enhanced, e.Reply.Text)
			break
		}
		c.body.start(modeData)
		c.give(safeData)
		return
	}
	if c.in.len() > 0 {
		// DATA is the last of its group (RFC 2920 section 3.1): what follows is a
		// content that was sent without waiting, and must not be run.
		c.setCause(CauseProtocol)
	}
}

func (c *Conn) begin() *mail.ReplyError {
	if c.opts.Hooks.Begin == nil {
		return nil
	}
	return c.opts.Hooks.Begin()
}

func (c *Conn) startTLS(args []byte) {
	switch {
	case len(bytes.TrimSpace(args)) > 0:
		c.offend(501, "5.5.4", "STARTTLS takes no argument")
	case c.tls != nil:
		c.offend(503, "5.5.1", "TLS is active")
	case c.opts.TLS == nil:
		c.answer(502, "5.5.1", "TLS is not available")
	case c.tx || c.authed:
		c.offend(503, "5.5.1", "bad sequence of commands")
	case c.in.len() > 0:
		// Whatever was sent with it may be an attacker's: CVE-2011-0411.
		c.bye(CauseProtocol, 554, "5.5.1", "nothing may follow STARTTLS before its reply")
	default:
		c.answer(220, "2.0.0", "go ahead")
		if c.flush() != nil || c.handshake() != nil {
			c.setCause(CauseClosed)
			return
		}
		c.greeted, c.esmtp, c.helo = false, false, "" // RFC 3207 section 4.2
	}
}

func (c *Conn) authenticate(args []byte) {
	word, initial, has := bytes.Cut(bytes.TrimRight(args, " "), space)
	initial = bytes.TrimLeft(initial, " ")
	c.auth.mechanism = Mechanism(string(word))
	c.script.Client(c.nowAt, []byte("AUTH "+c.auth.mechanism+" ***"))
	switch {
	case !c.greeted || c.tx:
		c.offend(503, "5.5.1", "bad sequence of commands")
	case c.authed:
		c.offend(503, "5.5.1", "already authenticated")
	case !saslName(word):
		c.offend(501, "5.5.4", "malformed mechanism")
	case has && !isBase64(initial):
		c.authEnded("malformed", 501)
		c.offend(501, "5.5.2", "malformed response")
	default:
		line := make([]byte, 0, len(args)+8)
		line = append(line, "AUTH "...)
		line = append(line, word...)
		if has {
			line = append(line, ' ')
			line = append(line, initial...)
		}
		c.give(string(append(line, '\r', '\n')))
		clear(line)
	}
}

// Mechanism is word as records may hold it; see [transcript.Mechanism].
func Mechanism(word string) string { return transcript.Mechanism(word) }

// saslName checks a mechanism's name (RFC 4422 section 3.1).
func saslName(b []byte) bool {
	for _, x := range b {
		if (x < 'A' || x > 'Z') && (x < 'a' || x > 'z') && (x < '0' || x > '9') && x != '-' && x != '_' {
			return false
		}
	}
	return len(b) > 0 && len(b) <= 20
}

func isBase64(b []byte) bool {
	if string(b) == "=" { // an empty response (RFC 4954 section 4)
		return true
	}
	if len(b) == 0 {
		return false
	}
	plain := make([]byte, base64.StdEncoding.DecodedLen(len(b)))
	_, err := base64.StdEncoding.Decode(plain, b)
	clear(plain)
	return err == nil
}

// response handles a line within an AUTH exchange.
func (c *Conn) response(line []byte) {
	c.now = authenticate
	if string(line) == "*" {
		c.script.Client(c.nowAt, line)
		c.abandon(501, "5.7.0", "authentication cancelled", "cancelled")
		return
	}
	c.script.Client(c.nowAt, []byte("***"))
	if len(line) > 0 && !isBase64(line) {
		c.abandon(501, "5.5.2", "malformed response", "malformed")
		return
	}
	c.auth.active = false
	c.give(string(line) + "\r\n")
}

// abandon ends an AUTH exchange for go-smtp, and says code to the client.
func (c *Conn) abandon(code int, enhanced, text, reason string) {
	c.now = authenticate
	c.auth.active = false
	c.override = mail.Reply{Code: code, Enhanced: enhanced, Text: text}
	c.give(safeStop)
	c.authEnded(reason, code)
}

func (c *Conn) authEnded(reason string, code int) {
	if c.opts.Hooks.AuthEnded != nil {
		c.opts.Hooks.AuthEnded(c.auth.mechanism, reason, code)
	}
}

func (c *Conn) throttled(limit, action string) {
	if c.opts.Hooks.Throttled != nil {
		c.opts.Hooks.Throttled(limit, action)
	}
}

// answered states that the current command was answered, and keeps the counts
// of its session. It returns the time of now.
func (c *Conn) answered(code int, enhanced string) time.Time {
	now := time.Now()
	took := now.Sub(c.nowAt)
	if code >= 400 && code != 421 { // bye decides about that
		c.failed = true
	}
	if took > slowReply && code < 500 {
		c.slow = true
	}
	if c.now != none {
		c.opts.Emitter.Emit(event.CommandAnswered{
			Connector: c.opts.Connector, Verb: c.now.String(), Code: code, Enhanced: enhanced, Took: event.Secs(took),
		})
	}
	return now
}
