package trackimport

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// exchangeTracking reads Exchange's message-tracking log, whose columns are
// named in the file: 2007 has 19 of them, 2019 has 30. A message is one over
// all servers, by its network-message-id, or before 2013 by its Message-ID.
type exchangeTracking struct {
	im       *Importer
	t        table
	messages *aging[*exMessage]
}

type exMessage struct {
	id       mail.QueueID
	info     event.Info
	queued   bool
	attempts map[string]int // of recipients
}

func (x *exchangeTracking) begin(time.Time) {
	x.t.columns, x.t.kind = nil, ""
	if x.messages == nil {
		x.messages = newAging[*exMessage](maxMessages, nil)
	}
}

func (x *exchangeTracking) end() {}

func (x *exchangeTracking) line(s string) error {
	if x.t.directive(s, ",") {
		if x.t.kind != "" && !strings.Contains(strings.ToLower(x.t.kind), "tracking") {
			return fmt.Errorf("this is a %.60q, and not a message-tracking log", x.t.kind)
		}
		return errPassed
	}
	if err := x.t.csvLine(s); err != nil {
		return err
	}
	first := x.t.get("date-time")
	if first == "" {
		first = x.t.get("#fields: date-time") // as some exports have it
	}
	at, err := parseISO(first, time.UTC)
	if err != nil {
		return err
	}
	kind := strings.ToUpper(strings.TrimSpace(x.t.get("event-id")))
	if kind == "" || !word(kind) {
		return fmt.Errorf("no event: %.40q", kind)
	}
	return x.event(at, kind)
}

func word(s string) bool {
	return len(s) < 40 && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == ""
}

// node is the server that wrote the line: the client of what it sends, the
// server of what it receives.
func (x *exchangeTracking) node(kind string) string {
	own, other := x.t.get("server-hostname"), x.t.get("client-hostname")
	if kind == "SEND" {
		own, other = other, own
	}
	return clip(cmp.Or(own, other, x.im.opts.Host), 255)
}

func (x *exchangeTracking) message(at time.Time, node string) *exMessage {
	internal := x.t.get("internal-message-id")
	key := cmp.Or(x.t.get("network-message-id"), x.t.get("message-id"))
	if key == "" && internal != "" && internal != "0" {
		key = node + " " + internal
	}
	if key == "" {
		return nil
	}
	m := x.messages.get(key)
	if m == nil {
		m = &exMessage{id: x.im.messageID(at, key), attempts: map[string]int{}}
		if internal != "0" {
			m.info.External = clip(internal, 100)
		}
		x.messages.put(key, m)
	}
	in := &m.info
	in.HeaderMessageID = cmp.Or(in.HeaderMessageID, clip(x.t.get("message-id"), maxText))
	if from := x.t.get("return-path"); in.MailFrom == "" || in.MailFrom == event.NullSender {
		in.MailFrom = sender(cmp.Or(from, x.t.get("sender-address")))
	}
	if from := x.t.get("sender-address"); in.HeaderFrom == "" && from != "<>" {
		in.HeaderFrom = address(from)
	}
	if n, err := strconv.ParseInt(x.t.get("total-bytes"), 10, 64); err == nil && n > 0 {
		in.Size = n
	}
	return m
}

func (x *exchangeTracking) event(at time.Time, kind string) error {
	node := x.node(kind)
	m := x.message(at, node)
	if m == nil {
		return errPassed // as of a server's own notices
	}
	state := func(ev event.Event) {
		r := event.Record{Time: at, Node: node, Message: m.id, Event: ev}
		if id := x.t.get("network-message-id"); len(id) == 36 {
			r.UID = strings.Clone(id)
		}
		x.im.state(&r)
	}
	addresses := splitList(x.t.get("recipient-address"))
	statuses := splitStatuses(x.t.get("recipient-status"))
	status := func(i int) string {
		if i < len(statuses) {
			return statuses[i]
		}
		return ""
	}
	list := make([]event.Recipient, len(addresses))
	for i, a := range addresses {
		list[i] = event.Recipient{Address: address(a)}
	}
	switch kind {
	case "RECEIVE", "DSN", "HARECEIVE":
		first := !m.queued
		if kind == "HARECEIVE" || !first && kind == "RECEIVE" {
			state(x.remark(kind)) // a shadow copy, or the next server of the organization
			return nil
		}
		m.queued = true
		if kind == "RECEIVE" {
			m.info.ConnectorIn = clip(x.t.get("connector-id"), 200)
			m.info.ClientIP = ip(cmp.Or(x.t.get("original-client-ip"), x.t.get("client-ip")))
		} else {
			m.info.MailFrom = event.NullSender
		}
		state(event.MessageQueued{
			Info: m.info, Recipients: list, ClientName: clip(x.t.get("client-hostname"), 255), Subject: clip(x.t.get("message-subject"), maxText),
		})
	case "SEND", "DELIVER", "DUPLICATEDELIVER":
		x.attempt(at, m, state, list, status, mail.Relayed)
	case "DEFER":
		x.attempt(at, m, state, list, status, mail.Deferred)
	case "FAIL", "DELIVERFAIL":
		x.attempt(at, m, state, list, status, mail.Bounced)
	case "DROP", "SUPPRESSED":
		for i := range list {
			f := x.final(at, m, list[i].Address)
			_, _, f.Reply = reply(status(i))
			state(event.RecipientDropped{Final: f, Actor: "exchange", Reason: clip(x.t.get("source-context"), maxText)})
		}
	case "POISONMESSAGE":
		state(event.MessagePoisoned{Info: m.info, Error: clip(cmp.Or(x.t.get("source-context"), "poison message"), maxText)})
	case "BADMAIL":
		state(event.MessageRefused{
			Refusal:    event.Refusal{Connector: clip(x.t.get("connector-id"), 200), ClientIP: ip(x.t.get("client-ip")), MailFrom: m.info.MailFrom, Code: 554, Reason: "syntax", Error: clip(x.t.get("source-context"), maxText)},
			Recipients: list, Size: m.info.Size,
		})
	default: // expanded, resolved, seen by an agent …
		state(x.remark(kind))
	}
	return nil
}

// remark is an event that no fact of ours stands for: the timeline shows it.
func (x *exchangeTracking) remark(kind string) event.Remarked {
	var parts []string
	for _, column := range []string{"recipient-address", "related-recipient-address", "recipient-status", "source-context", "reference", "custom-data"} {
		if v := x.t.get(column); v != "" {
			parts = append(parts, column+"="+v)
		}
	}
	name := "exchange " + kind
	if src := x.t.get("source"); src != "" {
		name += " by " + clip(src, 40)
	}
	return event.Remarked{Remark: name, Detail: clip(strings.Join(parts, " "), maxText)}
}

// attempt states what became of recipients that an event is about: those with
// the same words in one attempt.
func (x *exchangeTracking) attempt(at time.Time, m *exMessage, state func(event.Event), list []event.Recipient, status func(int) string, d mail.Disposition) {
	worst := event.Answer{}
	attempt := 1
	for i := range list {
		rc := &list[i]
		text := status(i)
		if text == "" && d != mail.Relayed {
			text = x.t.get("source-context")
		}
		var a event.Answer
		a.Code, a.Enhanced, a.Reply = exchangeReply(text)
		rc.Disposition = d
		if d == mail.Bounced && a.Enhanced == "4.4.7" {
			rc.Disposition = mail.Expired
		}
		a = x.im.answer(rc.Disposition, a, a.Code != 0)
		rc.Code, rc.Enhanced, rc.Reply, rc.Class = a.Code, a.Enhanced, a.Reply, a.Class
		if len(m.attempts) < maxRecipients || m.attempts[rc.Address] > 0 {
			m.attempts[rc.Address]++
		}
		attempt = max(attempt, m.attempts[rc.Address])
		if i == 0 {
			worst = a
		}
	}
	ev := event.AttemptFinished{Info: m.info, Hop: x.hop(), Answer: worst, Disposition: d, Recipients: list, Attempt: attempt}
	if len(list) > 0 && list[0].Disposition == mail.Expired {
		ev.Disposition = mail.Expired
	}
	state(ev)
	for i := range list {
		if d == mail.Deferred {
			break
		}
		f := x.final(at, m, list[i].Address)
		f.Answer = event.Answer{Code: list[i].Code, Enhanced: list[i].Enhanced, Reply: list[i].Reply, Class: list[i].Class}
		switch list[i].Disposition { //nolint:exhaustive // what is set above
		case mail.Relayed:
			state(event.RecipientRelayed{Final: f})
		case mail.Bounced:
			state(event.RecipientBounced{Final: f})
		case mail.Expired:
			state(event.RecipientExpired{Final: f})
		}
	}
}

// hop is the server of an event that sends, with its connector.
func (x *exchangeTracking) hop() event.Hop {
	h := event.Hop{ConnectorOut: clip(x.t.get("connector-id"), 200)}
	switch strings.ToUpper(x.t.get("event-id")) {
	case "SEND", "DELIVER":
		h.RemoteName, h.RemoteIP = clip(x.t.get("server-hostname"), 255), ip(x.t.get("server-ip"))
	}
	if to := splitList(x.t.get("recipient-address")); len(to) > 0 {
		h.Queue = clip(strings.ToLower(to[0][strings.LastIndexByte(to[0], '@')+1:]), 255)
	}
	return h
}

func (x *exchangeTracking) final(at time.Time, m *exMessage, to string) event.Final {
	f := event.Final{Info: m.info, Hop: x.hop(), Recipient: to, Attempts: max(1, m.attempts[to])}
	begun := mail.IDTime(string(m.id))
	// SEND and DELIVER say when the message entered the organization.
	if first, _, _ := strings.Cut(x.t.get("message-info"), ";"); len(first) > 18 {
		if t, err := time.Parse(time.RFC3339Nano, strings.TrimSpace(first)); err == nil && t.Before(at) && at.Sub(t) < 30*24*time.Hour {
			begun = t
		}
	}
	if at.After(begun) {
		f.TTotal = event.Since(begun, at)
	}
	return f
}

// splitList splits a list of addresses at semicolons outside of quotes.
func splitList(s string) (list []string) {
	quoted, start := false, 0
	for i := 0; i <= len(s) && len(list) < maxRecipients; i++ {
		switch {
		case i == len(s) || s[i] == ';' && !quoted:
			if part := strings.TrimSpace(s[start:i]); part != "" {
				list = append(list, part)
			}
			start = i + 1
		case s[i] == '"':
			quoted = !quoted
		}
	}
	if len(list) == 0 && strings.TrimSpace(s) != "" {
		list = []string{strings.TrimSpace(s)} // a quote that never ends
	}
	return list
}

// splitStatuses splits a list of statuses, each of which may be a bracketed
// list: [{LED=250 2.1.5 OK};{MSG=};{FQDN=};{IP=};{LRT=}].
func splitStatuses(s string) (list []string) {
	depth, start := 0, 0
	for i := 0; i <= len(s) && len(list) < maxRecipients; i++ {
		switch {
		case i == len(s) || s[i] == ';' && depth <= 0:
			list = append(list, strings.TrimSpace(s[start:i]))
			start = i + 1
		case s[i] == '[' || s[i] == '{':
			depth++
		case s[i] == ']' || s[i] == '}':
			depth--
		}
	}
	return list
}

// exchangeReply finds the SMTP reply in a status.
func exchangeReply(s string) (code int, enhanced, text string) {
	s = strings.TrimSpace(s)
	if _, after, ok := strings.Cut(s, "{LED="); ok {
		s, _, _ = strings.Cut(after, "}")
	}
	// An enclosing answer says more than what stands around it:
	// 450 4.7.0 … remote server responded "421 4.3.2 Service not available".
	for _, word := range []string{"esponded with: ", "emote server returned '", "emote Server returned '", "rror encountered while communicating with primary target IP address: \""} {
		if _, after, ok := strings.Cut(s, word); ok {
			if c, e, t := reply(strings.Trim(after, `"'`)); c != 0 {
				return c, e, t
			}
		}
	}
	return reply(s)
}
