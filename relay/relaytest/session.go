package relaytest

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"waybill/relay/mail"

	"github.com/xdg-go/scram"
)

// errEnd ends a session.
var errEnd = errors.New("session ended")

// session is one connection of a SmartHost.
type session struct {
	host *SmartHost
	raw  net.Conn // for closing and resetting
	conn net.Conn // raw, or TLS over it
	r    *bufio.Reader
	w    *bufio.Writer
	n    int
	tls  bool
	user string
	ehlo bool

	inMail bool
	msg    Message
	chunks []byte // BDAT so far
}

func newSession(h *SmartHost, conn net.Conn, n int) *session {
	return &session{host: h, raw: conn, conn: conn, r: bufio.NewReaderSize(conn, 64<<10), w: bufio.NewWriterSize(conn, 16<<10), n: n}
}

func (s *session) run() {
	if s.host.implicit && s.startTLS() != nil {
		return
	}
	if code, err := s.act(PhaseConnect, "", "220 "+s.host.hostname+" ESMTP"); err != nil {
		return
	} else if code != 220 {
		_ = s.w.Flush()
		s.hangUp()
		return
	}
	for {
		line, err := s.readLine()
		if err != nil {
			return
		}
		if s.command(line) != nil {
			return
		}
	}
}

// readLine reads a command line. Replies are held back while more commands are
// there to read, as RFC 2920 section 3.2 wants it.
func (s *session) readLine() (string, error) {
	if s.r.Buffered() == 0 {
		if err := s.w.Flush(); err != nil {
			return "", err
		}
	}
	b, err := s.r.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	line, ok := bytes.CutSuffix(b, []byte("\r\n"))
	if !ok {
		s.host.violation("line without CRLF: %q", b)
		line = bytes.TrimRight(b, "\r\n")
	}
	return string(line), nil
}

func (s *session) offers(keyword string) bool {
	return s.ehlo && slices.ContainsFunc(s.host.extensions, func(e string) bool {
		word, _, _ := strings.Cut(e, " ")
		return strings.EqualFold(word, keyword)
	})
}

func (s *session) command(line string) error {
	verb, arg, _ := strings.Cut(line, " ")
	verb = strings.ToUpper(verb)
	s.host.command(verb, line)
	switch verb {
	case "MAIL", "RCPT", "RSET":
		if s.r.Buffered() > 0 && !s.offers("PIPELINING") {
			s.host.violation("pipelined without the offer: %q", line)
		}
	case "BDAT", "DATA":
	default: // RFC 2920 section 3.1: these must be the last of a group
		if s.r.Buffered() > 0 {
			s.host.violation("not the last command of a group: %q", line)
		}
	}
	var err error
	switch verb {
	case "HELO":
		s.ehlo = false
		s.forget()
		_, err = s.act(PhaseHelo, arg, "250 "+s.host.hostname)
	case "EHLO":
		var code int
		s.forget()
		code, err = s.act(PhaseEhlo, arg, s.greeting())
		s.ehlo = code == 250
	case "STARTTLS":
		return s.commandStartTLS()
	case "AUTH":
		return s.commandAuth(arg)
	case "MAIL":
		return s.commandMail(arg)
	case "RCPT":
		return s.commandRcpt(arg)
	case "DATA":
		return s.commandData()
	case "BDAT":
		return s.commandBdat(arg)
	case "RSET":
		s.forget()
		_, err = s.act(PhaseRset, arg, "250 2.0.0 ok")
	case "NOOP":
		_, err = s.act(PhaseNoop, arg, "250 2.0.0 ok")
	case "QUIT":
		if _, err = s.act(PhaseQuit, arg, "221 2.0.0 bye"); err == nil {
			_ = s.w.Flush()
			err = errEnd
		}
	default:
		_, err = s.act(PhaseOther, line, "500 5.5.1 unknown command")
	}
	return err
}

func (s *session) greeting() string {
	lines := append([]string{s.host.hostname}, s.host.extensions...)
	if s.host.tls != nil && !s.tls {
		lines = append(lines, "STARTTLS")
	}
	if s.host.user != "" {
		lines = append(lines, "AUTH "+strings.Join(s.host.mechanisms, " "))
	}
	return "250 " + strings.Join(lines, "\n")
}

func (s *session) forget() {
	s.inMail, s.msg, s.chunks = false, Message{}, nil
}

func (s *session) commandStartTLS() error {
	usual := "220 2.0.0 go ahead"
	if s.host.tls == nil || s.tls {
		usual = "502 5.5.1 not offered"
	}
	code, err := s.act(PhaseStartTLS, "", usual)
	if err != nil || code != 220 {
		return err
	}
	if err := s.w.Flush(); err != nil {
		return err
	}
	return s.startTLS()
}

func (s *session) startTLS() error {
	if a, ok := s.host.script(PhaseTLS); ok {
		if _, err := s.r.Peek(1); err != nil { // the peer has begun
			return err
		}
		if _, err := s.perform(a, ""); err != nil {
			return err
		}
		if a.Raw != "" || a.Silent {
			_ = s.w.Flush()
			return errEnd
		}
	}
	if s.host.tls == nil {
		return errEnd
	}
	c := tls.Server(s.conn, s.host.tls)
	_ = c.SetDeadline(time.Now().Add(waitLimit))
	if err := c.Handshake(); err != nil {
		return err
	}
	_ = c.SetDeadline(time.Time{})
	s.conn, s.tls, s.ehlo = c, true, false
	s.r.Reset(c)
	s.w.Reset(c)
	s.forget()
	return nil
}

// scram runs SCRAM-SHA-256 (RFC 5802); the user is empty when it fails.
func (s *session) scram(message string, ask func(string) (string, error)) (user string, err error) {
	client, err := scram.SHA256.NewClient(s.host.user, s.host.password, "")
	if err != nil {
		return "", err
	}
	keys, err := client.GetStoredCredentialsWithError(scram.KeyFactors{Salt: "relaytest salt", Iters: 4096})
	if err != nil {
		return "", err
	}
	server, err := scram.SHA256.NewServer(func(string) (scram.StoredCredentials, error) { return keys, nil })
	if err != nil {
		return "", err
	}
	conv := server.NewConversation()
	for !conv.Done() {
		challenge, err := conv.Step(message)
		if err != nil {
			return "", nil //nolint:nilerr // it is the client that failed
		}
		if message, err = ask(challenge); err != nil {
			return "", err
		}
	}
	return conv.Username(), nil
}

func (s *session) commandAuth(arg string) error {
	mech, initial, has := strings.Cut(arg, " ")
	mech = strings.ToUpper(mech)
	if !slices.Contains(s.host.mechanisms, mech) {
		_, err := s.act(PhaseAuth, arg, "504 5.5.4 unknown mechanism")
		return err
	}
	ask := func(prompt string) (string, error) {
		if _, err := s.perform(Action{}, "334 "+base64.StdEncoding.EncodeToString([]byte(prompt))); err != nil {
			return "", err
		}
		return s.readLine()
	}
	decode := func(b64 string) string {
		b, err := base64.StdEncoding.DecodeString(b64)
		if err != nil {
			s.host.violation("AUTH: not base64: %q", b64)
		}
		return string(b)
	}
	if a, ok := s.host.script(PhaseAuth); ok {
		_, err := s.perform(a, "535 5.7.8 no")
		return err
	}
	var user, password string
	var err error
	switch mech {
	case "PLAIN":
		if !has {
			if initial, err = ask(""); err != nil {
				return err
			}
		}
		parts := strings.Split(decode(initial), "\x00")
		if len(parts) == 3 {
			user, password = parts[1], parts[2]
		}
	case "LOGIN":
		if !has {
			if initial, err = ask("Username:"); err != nil {
				return err
			}
		}
		user = decode(initial)
		line, err := ask("Password:")
		if err != nil {
			return err
		}
		password = decode(line)
	case "SCRAM-SHA-256":
		if user, err = s.scram(decode(initial), func(challenge string) (string, error) {
			line, err := ask(challenge)
			return decode(line), err
		}); err != nil {
			return err
		}
		if user != "" {
			password = s.host.password
		}
	}
	usual := "535 5.7.8 credentials invalid"
	if user == s.host.user && password == s.host.password {
		s.user, usual = user, "235 2.7.0 welcome"
	}
	_, err = s.perform(Action{}, usual)
	return err
}

func (s *session) commandMail(arg string) error {
	usual := "250 2.1.0 ok"
	env, perr := mail.ParseMail(arg)
	switch {
	case s.inMail:
		usual = "503 5.5.1 nested MAIL"
	case s.host.user != "" && s.user == "":
		usual = "530 5.7.0 authentication required"
	case perr != nil:
		usual = "501 5.5.4 " + perr.Error()
	}
	for _, p := range []struct {
		used    bool
		keyword string
	}{
		{strings.Contains(arg, " SIZE="), "SIZE"},
		{env.Body == mail.Body8BitMIME, "8BITMIME"},
		{env.Body == mail.BodyBinaryMIME, "BINARYMIME"},
		{env.UTF8, "SMTPUTF8"},
		{env.Ret != "" || env.EnvID != "", "DSN"},
	} {
		if p.used && !s.offers(p.keyword) {
			s.host.violation("%s was not offered: MAIL %s", p.keyword, arg)
		}
	}
	code, err := s.act(PhaseMail, arg, usual)
	if code/100 == 2 {
		s.inMail = true
		s.msg = Message{Envelope: env, MailArgs: arg, Session: s.n, TLS: s.tls, User: s.user}
	}
	return err
}

func (s *session) commandRcpt(arg string) error {
	usual := "250 2.1.5 ok"
	rcpt, perr := mail.ParseRcpt(arg, true)
	switch {
	case !s.inMail:
		usual = "503 5.5.1 no MAIL"
	case perr != nil:
		usual = "501 5.5.4 " + perr.Error()
	}
	if (rcpt.Notify != 0 || rcpt.ORcpt != "") && !s.offers("DSN") {
		s.host.violation("DSN was not offered: RCPT %s", arg)
	}
	code, err := s.act(PhaseRcpt+" "+strings.ToLower(rcpt.Address.String()), arg, usual)
	if code/100 == 2 && s.inMail {
		s.msg.Envelope.Recipients = append(s.msg.Envelope.Recipients, rcpt)
		s.msg.RcptArgs = append(s.msg.RcptArgs, arg)
	}
	return err
}

func (s *session) commandData() error {
	usual := "354 go ahead"
	switch {
	case !s.inMail:
		usual = "503 5.5.1 no MAIL"
	case len(s.msg.Envelope.Recipients) == 0:
		usual = "554 5.5.1 no valid recipients"
	}
	if s.r.Buffered() > 0 {
		s.host.violation("not the last command of a group: DATA")
	}
	code, err := s.act(PhaseData, "", usual)
	if err != nil || code != 354 {
		return err
	}
	if err := s.w.Flush(); err != nil {
		return err
	}
	answered, err := s.readContent()
	if err != nil || answered {
		return err
	}
	return s.finish(PhaseDot)
}

// finish answers the content and keeps the message when that was a 2xx.
func (s *session) finish(phase string) error {
	m := s.msg
	usual := "250 2.0.0 taken"
	if len(m.Envelope.Recipients) == 0 {
		usual = "554 5.5.1 no valid recipients"
	}
	_, err := s.actBefore(phase, "", usual, func(code int) {
		if code/100 == 2 {
			m.At = time.Now()
			s.host.take(m)
		}
	})
	s.forget()
	return err
}

// readContent reads up to the final dot. It reports whether a script has
// answered the content already.
func (s *session) readContent() (answered bool, err error) {
	content := make([]byte, 0, 512)
	s.msg.Content = nil
	early, hasEarly := s.host.script(PhaseContent)
	start := true // at the beginning of a line
	for {
		if hasEarly && len(content) >= early.After {
			hasEarly, answered = false, true
			if _, err := s.perform(early, "552 5.3.4 too much"); err != nil {
				return true, err
			}
			if err := s.w.Flush(); err != nil {
				return true, err
			}
		}
		b, err := s.r.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return answered, err
		}
		if !s.host.lax {
			if content, start = appendLine(content, b, start); content == nil {
				return answered, nil
			}
			s.msg.Content = content
			continue
		}
		lines := laxLines(b)
		for i, l := range lines {
			if content, start = appendLine(content, l, start); content == nil {
				if i < len(lines)-1 {
					s.host.violation("smuggled: %q", lines[i+1:])
				}
				return answered, nil
			}
			s.msg.Content = content
		}
	}
}

// appendLine adds a line, or a part of one, to content without dot-stuffing. It
// returns nil at the final dot.
func appendLine(content, l []byte, start bool) (_ []byte, nextStart bool) {
	if start && string(l) == ".\r\n" {
		return nil, false
	}
	if start && len(l) > 0 && l[0] == '.' {
		l = l[1:]
	}
	return append(content, l...), bytes.HasSuffix(l, []byte("\r\n"))
}

// laxLines cuts b at any line end and makes each a CRLF.
func laxLines(b []byte) [][]byte {
	b = bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
	b = bytes.ReplaceAll(b, []byte("\r"), []byte("\n"))
	var lines [][]byte
	for l := range bytes.Lines(b) {
		if t, ok := bytes.CutSuffix(l, []byte("\n")); ok {
			l = append(bytes.Clone(t), '\r', '\n')
		}
		lines = append(lines, l)
	}
	return lines
}

func (s *session) commandBdat(arg string) error {
	size, last, _ := strings.Cut(arg, " ")
	n, err := strconv.ParseInt(size, 10, 32)
	if err != nil || n < 0 || last != "" && !strings.EqualFold(last, "LAST") {
		_, err := s.act(PhaseBdat, arg, "501 5.5.4 syntax")
		return err
	}
	chunk := make([]byte, n)
	if s.r.Buffered() < int(n) {
		if err := s.w.Flush(); err != nil {
			return err
		}
	}
	if _, err := io.ReadFull(s.r, chunk); err != nil {
		return err
	}
	if !s.inMail || len(s.msg.Envelope.Recipients) == 0 {
		_, err := s.act(PhaseBdat, arg, "503 5.5.1 no recipients")
		return err
	}
	s.chunks = append(s.chunks, chunk...)
	if last == "" {
		_, err := s.act(PhaseBdat, arg, "250 2.0.0 more")
		return err
	}
	s.msg.Content = s.chunks
	return s.finish(PhaseBdat)
}

// act does what the host was told to do at phase, or else gives the usual
// reply. It returns the code that was said; the error ends the session.
func (s *session) act(phase, arg, usual string) (int, error) {
	return s.actBefore(phase, arg, usual, nil)
}

func (s *session) actBefore(phase, arg, usual string, before func(code int)) (int, error) {
	verb, _, narrow := strings.Cut(phase, " ")
	if s.host.behaviour != nil {
		reply, delay, closeAfter := s.host.behaviour(verb, arg)
		if reply != "" || delay > 0 || closeAfter {
			return s.performBefore(Action{Reply: reply, Delay: delay, Close: closeAfter}, usual, before)
		}
	}
	phases := []string{phase}
	if narrow {
		phases = append(phases, verb)
	}
	a, _ := s.host.script(phases...)
	return s.performBefore(a, usual, before)
}

func (s *session) perform(a Action, usual string) (int, error) {
	return s.performBefore(a, usual, nil)
}

// performBefore calls before with the code that it is going to say, so that a
// message is counted before its sender knows.
func (s *session) performBefore(a Action, usual string, before func(code int)) (int, error) {
	if a.Delay > 0 || a.Hang {
		if err := s.w.Flush(); err != nil {
			return 0, err
		}
		if err := s.pause(a.Delay, a.Hang); err != nil {
			return 0, err
		}
	}
	reply := a.Reply
	if reply == "" {
		reply = usual
	}
	out := formatReply(reply)
	if a.Raw != "" {
		out = a.Raw
	}
	if a.Silent || reply == "" && a.Raw == "" {
		out = ""
	}
	code := 0
	if len(out) >= 3 {
		code, _ = strconv.Atoi(out[:3])
	}
	if before != nil {
		before(code)
	}
	if err := s.write(out, a.Slow); err != nil {
		return code, err
	}
	for a.Endless != "" {
		if err := s.write(a.Endless, a.Slow); err != nil {
			return code, err
		}
	}
	if a.Reset {
		_ = s.w.Flush()
		if tcp, ok := s.raw.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = s.raw.Close()
		return code, errEnd
	}
	if a.Close {
		_ = s.w.Flush()
		s.hangUp()
		return code, errEnd
	}
	return code, nil
}

// hangUp closes our side and reads on for a moment: closing with octets unread
// would reset the connection and take the reply with it.
func (s *session) hangUp() {
	tcp, ok := s.raw.(*net.TCPConn)
	if !ok || tcp.CloseWrite() != nil {
		return
	}
	_ = tcp.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.Copy(io.Discard, tcp)
}

func (s *session) write(out string, slow time.Duration) error {
	if slow == 0 {
		_, err := s.w.WriteString(out)
		return err
	}
	for i := range len(out) {
		if err := s.w.WriteByte(out[i]); err != nil {
			return err
		}
		if err := s.w.Flush(); err != nil {
			return err
		}
		if err := s.pause(slow, false); err != nil {
			return err
		}
	}
	return nil
}

// pause waits for d, or, when hanging, until the peer has gone.
func (s *session) pause(d time.Duration, hang bool) error {
	if hang {
		_, _ = io.Copy(io.Discard, s.conn)
		return errEnd
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-s.host.done:
		return errEnd
	}
}

// formatReply writes "250 a\nb" as "250-a\r\n250 b\r\n".
func formatReply(reply string) string {
	code, text, _ := strings.Cut(reply, " ")
	lines := strings.Split(text, "\n")
	var b strings.Builder
	for i, l := range lines {
		b.WriteString(code)
		if i < len(lines)-1 {
			b.WriteByte('-')
		} else {
			b.WriteByte(' ')
		}
		b.WriteString(l)
		b.WriteString("\r\n")
	}
	return b.String()
}
