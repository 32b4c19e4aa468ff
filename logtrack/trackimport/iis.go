package trackimport

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// iis reads the log of the SMTP service of IIS in the W3C extended format. It
// has no session and no queue ID: lines with the same server, site, peer and
// direction are one session until QUIT or ten minutes of silence. What came in
// and what went out are two messages.
type iis struct {
	im       *Importer
	t        table
	date     string // of the last #Date
	sessions *aging[*iisSession]
}

type iisSession struct {
	session
	host  string
	began time.Time
	m     *iisMessage // the transaction
	wait  string      // outbound: the command that waits for its reply
	final bool        // outbound: the content was sent
	ehlo  string
}

type iisMessage struct {
	begun time.Time
	info  event.Info
	rcpts []event.Recipient
}

const iisSilence = 10 * time.Minute

func (x *iis) begin(time.Time) {
	x.t.columns, x.date = nil, ""
	if x.sessions == nil {
		x.sessions = newAging[*iisSession](maxSessions, nil)
	}
}

func (x *iis) end() {}

func (x *iis) line(s string) error {
	if x.t.directive(s, " ") {
		if rest, ok := strings.CutPrefix(s, "#Date: "); ok {
			x.date, _, _ = strings.Cut(rest, " ")
		}
		return errPassed
	}
	if x.t.columns == nil {
		return errNoFields
	}
	x.t.values = strings.Fields(s)
	if len(x.t.values) < len(x.t.columns)-1 || len(x.t.values) > len(x.t.columns)+1 {
		return fmt.Errorf("%d values for %d columns", len(x.t.values), len(x.t.columns))
	}
	day := cmp.Or(x.get("date"), x.date)
	at, err := time.Parse("2006-01-02 15:04:05", day+" "+x.get("time")) // W3C: always UTC
	if err != nil {
		return fmt.Errorf("no time: %.40q", day+" "+x.get("time"))
	}
	verb := strings.ToUpper(x.get("cs-method"))
	name := x.get("cs-username")
	out := strings.HasPrefix(name, "OutboundConnection")
	peer := ip(x.get("c-ip"))
	key := strings.Join([]string{x.get("s-computername"), x.get("s-sitename"), peer.String(), strconv.FormatBool(out)}, " ")
	e := x.sessions.get(key)
	if e == nil || at.Sub(e.last) > iisSilence {
		e = &iisSession{host: strings.Clone(cmp.Or(x.get("s-computername"), x.im.opts.Host)), began: at}
		e.outbound, e.node, e.connector, e.opened = out, e.host, clip(x.get("s-sitename"), 100), at
		e.remote.ip = peer
		x.sessions.put(key, e)
	}
	e.last = at
	text := strings.ReplaceAll(x.get("cs-uri-query"), "+", " ")
	if out {
		return x.outbound(e, at, name == "OutboundConnectionResponse", verb, strings.TrimSpace(text))
	}
	code, err := strconv.Atoi(x.get("sc-status"))
	if err != nil && x.get("sc-status") != "" {
		return errors.New("sc-status is no number")
	}
	if verb == "QUIT" || verb == "TIMEOUT" {
		x.sessions.delete(key)
		return errPassed
	}
	return x.inbound(e, at, verb, strings.TrimSpace(text), code, name)
}

// get is the value in a column; "-" stands for none.
func (x *iis) get(column string) string {
	if v := x.t.get(column); v != "-" {
		return v
	}
	return ""
}

func (x *iis) state(e *iisSession, at time.Time, id mail.QueueID, ev event.Event) {
	x.im.state(&event.Record{Time: at, Node: e.host, Message: id, Event: ev})
}

// inbound reads a command with the code that answered it.
func (x *iis) inbound(e *iisSession, at time.Time, verb, text string, code int, name string) error {
	ref := event.Refusal{Connector: e.connector, ClientIP: e.remote.ip, Code: code, Reason: refusal(code, "", "")}
	if e.m != nil {
		ref.MailFrom = e.m.info.MailFrom
	}
	switch verb {
	case "HELO", "EHLO":
		e.ehlo, e.m = clip(strings.TrimSpace(text), 255), nil
		return errPassed
	case "RSET":
		e.m = nil
		return errPassed
	case "MAIL":
		e.m = nil
		from := sender(pathOf(text))
		if code >= 400 {
			ref.MailFrom = from
			x.state(e, at, "", event.SenderRefused{Refusal: ref})
			return nil
		}
		e.m = &iisMessage{begun: at, info: event.Info{MailFrom: from, ConnectorIn: e.connector, ClientIP: e.remote.ip}}
		return nil
	case "RCPT":
		to := address(pathOf(text))
		if code >= 400 {
			if ref.Reason == "protocol" && code == 550 {
				ref.Reason = "relay_denied"
			}
			x.state(e, at, "", event.RecipientRefused{Refusal: ref, Recipient: to})
			return nil
		}
		if e.m != nil && len(e.m.rcpts) < maxRecipients {
			e.m.rcpts = append(e.m.rcpts, event.Recipient{Address: to})
		}
		return nil
	case "DATA", "BDAT":
		m := e.m
		if m == nil || code == 354 || code == 0 {
			return errPassed
		}
		if verb == "BDAT" && !strings.Contains(strings.ToUpper(text), "LAST") && !strings.Contains(text, "@") {
			return errPassed
		}
		e.m = nil
		if code >= 400 {
			x.state(e, at, "", event.MessageRefused{Refusal: ref, Recipients: m.rcpts})
			return nil
		}
		if strings.Contains(text, "@") {
			m.info.HeaderMessageID = clip(text, maxText)
		}
		if n, err := strconv.ParseInt(x.get("cs-bytes"), 10, 64); err == nil && n > 0 {
			m.info.Size = n
		}
		id := x.im.messageID(at, e.host, e.remote.ip.String(), m.info.MailFrom, m.info.HeaderMessageID, at.Format(time.RFC3339))
		ev := event.MessageQueued{Info: m.info, Recipients: m.rcpts, Helo: cmp.Or(e.ehlo, clip(name, 255)), TReceive: event.Since(m.begun, at)}
		if ms, err := strconv.ParseInt(x.get("time-taken"), 10, 64); err == nil && ms > 0 && ms < 1e8 {
			ev.TAccept = event.Seconds(time.Duration(ms) * time.Millisecond)
		}
		x.state(e, at, id, ev)
		return nil
	}
	return errPassed
}

// outbound reads a command of ours or the remote's reply to the last one.
func (x *iis) outbound(e *iisSession, at time.Time, response bool, verb, text string) error {
	if !response {
		e.wait = clip(verb, 20)
		switch verb {
		case "MAIL":
			e.m = &iisMessage{begun: at, info: event.Info{MailFrom: sender(pathOf(text))}}
		case "RCPT":
			if e.m != nil && len(e.m.rcpts) < maxRecipients {
				e.m.rcpts = append(e.m.rcpts, event.Recipient{Address: address(pathOf(text))})
			}
		case "RSET", "QUIT":
			e.m = nil
		}
		e.final = false
		return errPassed
	}
	code, enhanced, said := reply(text)
	m := e.m
	if m == nil || code == 0 {
		return errPassed
	}
	a := event.Answer{Code: code, Enhanced: enhanced, Reply: said, Verb: e.wait}
	d := mail.Relayed
	switch {
	case code >= 500:
		d = mail.Bounced
	case code >= 400:
		d = mail.Deferred
	}
	switch e.wait {
	case "RCPT": // replies come in the order of the commands
		i := 0
		for i < len(m.rcpts) && m.rcpts[i].Disposition != 0 {
			i++
		}
		if i == len(m.rcpts) {
			return errPassed
		}
		rc := &m.rcpts[i]
		rc.Disposition = mail.Queued
		if d != mail.Relayed {
			a = x.im.answer(d, a, true)
			rc.Disposition, rc.Code, rc.Enhanced, rc.Reply, rc.Class = d, code, enhanced, said, a.Class
			x.attempt(e, at, m, []event.Recipient{*rc}, a, d)
			return nil
		}
		return errPassed
	case "MAIL":
		if d == mail.Relayed {
			return errPassed
		}
		m.info.External = ""
		return errPassed // its recipients are not known yet
	case "DATA", "BDAT":
		if code == 354 {
			return errPassed
		}
		a.Verb = "."
		a = x.im.answer(d, a, true)
		var list []event.Recipient
		for _, rc := range m.rcpts {
			if rc.Disposition == mail.Queued || rc.Disposition == 0 {
				rc.Disposition, rc.Code, rc.Enhanced, rc.Reply, rc.Class = d, code, enhanced, said, a.Class
				list = append(list, rc)
			}
		}
		e.m = nil
		if len(list) == 0 {
			return errPassed
		}
		x.attempt(e, at, m, list, a, d)
		return nil
	}
	return errPassed
}

func (x *iis) attempt(e *iisSession, at time.Time, m *iisMessage, list []event.Recipient, a event.Answer, d mail.Disposition) {
	id := x.im.messageID(m.begun, "out", e.host, e.remote.ip.String(), m.info.MailFrom, list[0].Address, m.begun.Format(time.RFC3339))
	if len(m.rcpts) > 0 {
		id = x.im.messageID(m.begun, "out", e.host, e.remote.ip.String(), m.info.MailFrom, m.rcpts[0].Address, m.begun.Format(time.RFC3339))
	}
	hop := event.Hop{ConnectorOut: e.connector, RemoteIP: e.remote.ip, RemotePort: 25}
	hop.Queue = clip(strings.ToLower(list[0].Address[strings.LastIndexByte(list[0].Address, '@')+1:]), 255)
	x.state(e, at, id, event.AttemptFinished{Info: m.info, Hop: hop, Answer: a, Disposition: d, Recipients: list, Attempt: 1, Stages: event.Stages{TData: event.Since(m.begun, at)}})
	for _, rc := range list {
		f := event.Final{Info: m.info, Hop: hop, Answer: a, Recipient: rc.Address, Attempts: 1, TTotal: event.Since(m.begun, at)}
		switch d { //nolint:exhaustive // a deferral is not final
		case mail.Relayed:
			x.state(e, at, id, event.RecipientRelayed{Final: f})
		case mail.Bounced:
			x.state(e, at, id, event.RecipientBounced{Final: f})
		}
	}
}
