package trackimport

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"waybill/relay/event"
)

// exchangeProtocol reads Exchange's SMTP protocol logs, of receive and of send
// connectors. A session becomes its opening, its end, what was refused in it,
// and the conversation.
type exchangeProtocol struct {
	im       *Importer
	t        table
	sessions *aging[*session]
}

// session is one SMTP session of which the log tells line by line.
type session struct {
	id        string
	node      string
	connector string
	outbound  bool
	local     endpointAddr
	remote    endpointAddr
	opened    time.Time
	last      time.Time
	lines     []event.Line
	size      int
	cut       int
	commands  int
	messages  int
	user      string
	mechanism string
	from      string
	verb      string // of the last command
	rcpt      string
	secret    bool // the next line of the client is a credential
	failed    bool
}

const (
	maxTranscriptLines = 1000
	maxTranscriptBytes = 64 << 10
)

func (x *exchangeProtocol) begin(time.Time) {
	x.t.columns, x.t.kind = nil, ""
	if x.sessions == nil {
		x.sessions = newAging(maxSessions, func(_ string, s *session) { x.close(s, "unknown") })
	}
}

func (x *exchangeProtocol) end() { x.sessions.end() }

func (x *exchangeProtocol) line(s string) error {
	if x.t.directive(s, ",") {
		if low := strings.ToLower(x.t.kind); x.t.kind != "" && !strings.Contains(low, "smtp") && !strings.Contains(low, "protocol") {
			return fmt.Errorf("this is a %.60q, and not a protocol log", x.t.kind)
		}
		return errPassed
	}
	if err := x.t.csvLine(s); err != nil {
		return err
	}
	at, err := parseISO(x.t.get("date-time"), time.UTC)
	if err != nil {
		return err
	}
	id, kind := x.t.get("session-id"), x.t.get("event")
	if id == "" || len(id) > 64 {
		return fmt.Errorf("no session: %.40q", id)
	}
	if len(kind) != 1 || !strings.Contains("+-><*", kind) {
		return fmt.Errorf("no event: %.40q", kind)
	}
	e := x.sessions.get(id)
	if e == nil {
		e = &session{id: strings.Clone(id), opened: at, outbound: strings.Contains(strings.ToLower(x.t.kind), "send")}
		x.sessions.put(id, e)
	}
	e.last = at
	if e.connector == "" {
		e.connector = clip(x.t.get("connector-id"), 200)
		if server, _, ok := strings.Cut(e.connector, `\`); ok {
			e.node = server
		}
	}
	e.endpoints(x.t.get("local-endpoint"), x.t.get("remote-endpoint"))
	data, note := x.t.get("data"), x.t.get("context")
	fromClient := (kind == "<") != e.outbound
	switch kind {
	case "+":
		x.state(e, e.opening())
	case "-":
		x.sessions.delete(id)
		x.close(e, cause(note))
	case "*":
		e.note(at, data, note)
		if ev, ok := e.tls(data, note); ok {
			x.state(e, ev)
		}
	default:
		x.im.said(e, at, fromClient, data, func(ev event.Event) { x.state(e, ev) })
	}
	return nil
}

func (x *exchangeProtocol) state(e *session, ev event.Event) { x.im.stateSession(e, e.last, ev) }

func (x *exchangeProtocol) close(e *session, cause string) {
	x.im.from("session " + e.id + " " + e.opened.UTC().Format(time.RFC3339Nano))
	x.im.closeSession(e, cause)
}

type endpointAddr struct {
	ip   netip.Addr
	port uint16
}

func (e *session) endpoints(local, remote string) {
	if !e.local.ip.IsValid() {
		e.local.ip, e.local.port = endpoint(local)
	}
	if !e.remote.ip.IsValid() {
		e.remote.ip, e.remote.port = endpoint(remote)
	}
}

func (im *Importer) stateSession(e *session, at time.Time, ev event.Event) {
	im.state(&event.Record{Time: at, Node: e.node, Session: e.id, Event: ev})
}

func (e *session) direction() string {
	if e.outbound {
		return event.Outbound
	}
	return event.Inbound
}

func (e *session) opening() event.Event {
	ev := event.SessionOpened{Direction: e.direction(), Connector: e.connector, LocalIP: e.local.ip, LocalPort: e.local.port}
	if e.outbound {
		ev.RemoteIP, ev.RemotePort = e.remote.ip, e.remote.port
	} else {
		ev.ClientIP, ev.ClientPort = e.remote.ip, e.remote.port
	}
	return ev
}

// closeSession states the end of a session and what was said in it.
func (im *Importer) closeSession(e *session, cause string) {
	closed := event.SessionClosed{
		Direction: e.direction(), Connector: e.connector, AuthUser: e.user, Cause: cause, Commands: e.commands, Messages: e.messages,
		Duration: event.Since(e.opened, e.last),
	}
	kept := event.TranscriptKept{
		Direction: e.direction(), Connector: e.connector, AuthUser: e.user, Reason: "all", Began: e.opened.UTC(),
		Lines: len(e.lines) + e.cut, Cut: e.cut, Transcript: e.lines,
	}
	if e.failed {
		kept.Reason = "failed"
	}
	if e.outbound {
		closed.RemoteIP, kept.RemoteIP, kept.Attempt = e.remote.ip, e.remote.ip, 1
	} else {
		closed.ClientIP, kept.ClientIP = e.remote.ip, e.remote.ip
	}
	im.stateSession(e, e.last, closed)
	if len(e.lines) > 0 {
		im.stateSession(e, e.last, kept)
	}
}

func cause(note string) string {
	switch low := strings.ToLower(note); {
	case strings.Contains(low, "local"):
		return "quit"
	case strings.Contains(low, "remote"):
		return "closed"
	case strings.Contains(low, "timeout"), strings.Contains(low, "timed out"):
		return "timeout"
	case low == "":
		return "quit"
	}
	return "errors"
}

func (e *session) keep(at time.Time, from, text string) {
	text = clip(text, 2048)
	if len(e.lines) >= maxTranscriptLines || e.size+len(text) > maxTranscriptBytes {
		e.cut++
		return
	}
	e.size += len(text)
	e.lines = append(e.lines, event.Line{Seq: len(e.lines) + 1, At: event.Since(e.opened, at), From: from, Text: text})
}

func (e *session) note(at time.Time, data, note string) {
	if text := strings.TrimSpace(strings.Trim(data+": "+note, ": ")); text != "" {
		e.keep(at, "note", text)
	}
	if user, ok := strings.CutPrefix(note, "authenticated"); ok && data != "" && user == "" {
		e.user = clip(data, 200)
	}
}

// tls reads "TLS protocol SP_PROT_TLS1_2_SERVER negotiation succeeded using
// bulk encryption algorithm CALG_AES_256 with strength 256 bits, …".
func (e *session) tls(data, note string) (event.Event, bool) {
	text := data + " " + note
	_, after, ok := strings.Cut(text, "TLS protocol SP_PROT_TLS")
	if !ok {
		return nil, false
	}
	version, rest, _ := strings.Cut(after, " ")
	version = strings.ReplaceAll(strings.TrimSuffix(strings.TrimSuffix(version, "_SERVER"), "_CLIENT"), "_", ".")
	ev := event.TLSNegotiated{Direction: e.direction(), Connector: e.connector, Version: clip(version, 8)}
	if e.outbound {
		ev.RemoteIP = e.remote.ip
	} else {
		ev.ClientIP = e.remote.ip
	}
	if !strings.Contains(rest, "succeeded") {
		ev.Failure, ev.Reason = clip(rest, maxText), "other"
	} else if _, cipher, ok := strings.Cut(rest, "algorithm "); ok {
		cipher, _, _ = strings.Cut(cipher, " ")
		ev.Cipher = clip(cipher, 60)
	}
	return ev, true
}

// said takes a line of the conversation. state is for what was refused.
func (im *Importer) said(e *session, at time.Time, fromClient bool, text string, state func(event.Event)) {
	if fromClient {
		im.command(e, at, text)
		return
	}
	e.keep(at, "server", text)
	e.answered(text, state)
}

// command takes what the client said. Credentials are masked.
func (im *Importer) command(e *session, at time.Time, text string) {
	if e.secret {
		e.secret = false
		e.keep(at, "client", "****")
		return
	}
	verb, args, _ := strings.Cut(strings.TrimSpace(text), " ")
	verb = strings.ToUpper(verb)
	shown := text
	switch verb {
	case "AUTH":
		mechanism, initial, ok := strings.Cut(args, " ")
		e.mechanism = clip(strings.ToUpper(mechanism), 40)
		if ok && initial != "" {
			shown = "AUTH " + mechanism + " ****"
		}
	case "MAIL":
		e.from = sender(pathOf(args))
	case "RCPT":
		e.rcpt = address(pathOf(args))
	}
	e.verb = clip(verb, 20)
	e.commands++
	e.keep(at, "client", shown)
}

// pathOf reads FROM:<a@b> SIZE=1 and TO:<a@b>.
func pathOf(args string) string {
	_, path, ok := strings.Cut(args, ":")
	if !ok {
		return ""
	}
	path = strings.TrimSpace(path)
	if strings.HasPrefix(path, "<") {
		if i := strings.LastIndexByte(path, '>'); i > 0 {
			return path[:i+1]
		}
	}
	path, _, _ = strings.Cut(path, " ")
	return path
}

// answered takes what the server said to the last command.
func (e *session) answered(text string, state func(event.Event)) {
	code, enhanced, said := reply(text)
	if len(text) > 3 && text[3] == '-' && code != 0 && code < 400 {
		return // more of it comes
	}
	e.secret = code == 334 && e.verb == "AUTH" || len(text) >= 3 && text[:3] == "334"
	if code >= 400 {
		e.failed = true
	}
	if e.outbound {
		if code == 250 && (e.verb == "." || e.verb == "BDAT" || e.verb == "DATA") {
			e.messages++
		}
		return
	}
	ref := event.Refusal{
		Connector: e.connector, ClientIP: e.remote.ip, AuthUser: e.user, MailFrom: e.from, Code: code, Enhanced: enhanced, Reply: said,
		Reason: refusal(code, enhanced, said),
	}
	switch {
	case e.verb == "AUTH" && code == 235:
		state(event.AuthSucceeded{Connector: e.connector, ClientIP: e.remote.ip, Mechanism: e.mechanism, User: e.user})
	case e.verb == "AUTH" && code >= 400:
		state(event.AuthFailed{Connector: e.connector, ClientIP: e.remote.ip, Mechanism: e.mechanism, User: e.user, Reason: "credentials", Code: code})
	case code == 250 && (e.verb == "DATA" || e.verb == "BDAT"):
		e.messages++
	case code < 400:
	case e.verb == "MAIL":
		state(event.SenderRefused{Refusal: ref})
	case e.verb == "RCPT":
		state(event.RecipientRefused{Refusal: ref, Recipient: e.rcpt})
	case e.verb == "DATA" || e.verb == "BDAT":
		state(event.MessageRefused{Refusal: ref})
	}
}
