package trackimport

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// postfix reads Postfix' log: what syslog, journald's export or postlogd wrote,
// with traditional times, RFC 3339 times or RFC 5424 headers. What several
// lines say of one queue ID comes together in a message.
type postfix struct {
	im       *Importer
	year     time.Time // about when the file ends
	messages *aging[*pfMessage]

	// of the line at hand
	at      time.Time
	host    string
	service string // submission in postfix/submission/smtpd
	daemon  string // smtpd, qmgr, smtp …
}

// pfMessage is what is known of one message.
type pfMessage struct {
	event.Record
	event.Info
	queued     bool
	client     string // name
	port       uint16
	mechanism  string
	recipients int
	pending    map[string]int // attempts of recipients without a final word
	finals     map[string]mail.Disposition
	parent     mail.QueueID // of a report: the message that it is about
	attempts   int
	relayed    int
	bounced    int
	expired    int
}

func (p *postfix) begin(end time.Time) {
	p.year = end
	if p.messages == nil {
		p.messages = newAging[*pfMessage](maxMessages, nil)
	}
}

func (p *postfix) end() {}

var errNoSyslog = errors.New("no line of syslog: want a time, a host and postfix/daemon[pid]")

func (p *postfix) line(s string) error {
	msg, err := p.head(s)
	if err != nil {
		return err
	}
	if rest, ok := strings.CutPrefix(msg, "NOQUEUE: "); ok {
		return p.rejected(nil, rest)
	}
	id, rest, ok := strings.Cut(msg, ": ")
	if !ok || !isPostfixID(id) {
		if p.daemon == "smtpd" && strings.HasPrefix(msg, "warning: ") && strings.Contains(msg, " authentication failed: ") {
			return p.noAuth(msg)
		}
		return errPassed
	}
	return p.about(id, rest)
}

// head reads what stands before the text: RFC 5424 section 6, RFC 3164 section
// 4.1, and the latter with a time of RFC 3339.
func (p *postfix) head(s string) (msg string, err error) {
	if rest, ok := strings.CutPrefix(s, "<"); ok {
		pri, after, ok := strings.Cut(rest, ">")
		if !ok || !digits(pri) {
			return "", errNoSyslog
		}
		s = after
	}
	versioned := false
	if rest, ok := strings.CutPrefix(s, "1 "); ok && len(rest) > 10 && rest[4] == '-' {
		s, versioned = rest, true
	}
	if len(s) < 20 {
		return "", errNoSyslog
	}
	if s[4] == '-' && (s[10] == 'T' || s[10] == ' ') {
		stamp, rest, _ := strings.Cut(s, " ")
		if s[10] == ' ' {
			stamp, rest = s[:19], s[20:]
		}
		if p.at, err = parseISO(stamp, p.im.opts.Zone); err != nil {
			return "", err
		}
		s = rest
	} else if s, err = p.traditional(s); err != nil {
		return "", err
	}
	host, rest, ok := strings.Cut(strings.TrimLeft(s, " "), " ")
	if !ok {
		return "", errNoSyslog
	}
	p.host = strings.Clone(host)
	if versioned {
		f := strings.SplitN(rest, " ", 4) // program, process, kind, structured data and text
		if len(f) < 4 {
			return "", errNoSyslog
		}
		text := strings.TrimPrefix(f[3], "- ")
		if strings.HasPrefix(text, "[") {
			if end := strings.Index(text, "] "); end > 0 {
				text = text[end+2:]
			}
		}
		return strings.TrimPrefix(text, "\ufeff"), p.program(f[0])
	}
	tag, msg, ok := strings.Cut(rest, ": ")
	if !ok {
		return "", errPassed // as "last message repeated 2 times"
	}
	tag, _, _ = strings.Cut(tag, "[")
	return msg, p.program(tag)
}

// program reads postfix/smtpd, postfix-out/smtp and postfix/submission/smtpd.
func (p *postfix) program(tag string) error {
	parts := strings.Split(tag, "/")
	if len(parts) < 2 || !strings.HasPrefix(parts[0], "postfix") {
		return errPassed
	}
	p.daemon, p.service = strings.Clone(parts[len(parts)-1]), ""
	if len(parts) > 2 {
		p.service = strings.Clone(parts[1])
	}
	return nil
}

// traditional reads "Jan  2 15:04:05", which has no year: the last one in which
// the file can have been written.
func (p *postfix) traditional(s string) (rest string, err error) {
	t, err := time.ParseInLocation("Jan _2 15:04:05", s[:15], p.im.opts.Zone)
	if err != nil || s[15] != ' ' {
		return "", errNoSyslog
	}
	year := p.year.In(p.im.opts.Zone).Year()
	for range 9 { // to the last leap year
		at := time.Date(year, t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, p.im.opts.Zone)
		if !at.After(p.year.Add(24*time.Hour)) && at.Day() == t.Day() {
			p.at = at
			return s[16:], nil
		}
		year--
	}
	return "", fmt.Errorf("no year has %s", s[:6])
}

func parseISO(s string, zone *time.Location) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02T15:04:05.999999999-0700", "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05"} {
		if t, err := time.ParseInLocation(layout, s, zone); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("no time: %.40q", s)
}

// isPostfixID tells queue IDs from other first words: short ones are
// hexadecimal, long ones have six digits of base 52 for the seconds, four for
// the microseconds, "z", and the inode in base 51 (postconf(5),
// enable_long_queue_ids).
func isPostfixID(s string) bool {
	if len(s) < 6 || len(s) > 30 {
		return false
	}
	if strings.Trim(s, "0123456789ABCDEF") == "" {
		return true
	}
	_, ok := longIDTime(s)
	return ok
}

const base52 = "0123456789BCDFGHJKLMNPQRSTVWXYZbcdfghjklmnpqrstvwxyz"

// longIDTime is the time in a long queue ID.
func longIDTime(s string) (time.Time, bool) {
	z := strings.LastIndexByte(s, 'z')
	if z < 10 || z == len(s)-1 {
		return time.Time{}, false
	}
	n := func(s string) (v int64, ok bool) {
		for i := range len(s) {
			d := strings.IndexByte(base52, s[i])
			if d < 0 {
				return 0, false
			}
			v = v*52 + int64(d)
		}
		return v, true
	}
	sec, ok1 := n(s[:z-4])
	micros, ok2 := n(s[z-4 : z])
	_, ok3 := n(s[z+1:])
	if !ok1 || !ok2 || !ok3 || z > 12 || micros >= 1e6 {
		return time.Time{}, false
	}
	return time.Unix(sec, micros*1000), true
}

// message is the message of a queue ID. It came at most delay ago.
func (p *postfix) message(id string, delay time.Duration) *pfMessage {
	key := p.host + " " + id
	if m := p.messages.get(key); m != nil {
		return m
	}
	m := &pfMessage{pending: map[string]int{}, finals: map[string]mail.Disposition{}}
	first := p.at.Add(-delay)
	if t, ok := longIDTime(id); ok && t.Before(p.at.Add(time.Hour)) && t.After(p.at.AddDate(0, -2, 0)) {
		first = t
	}
	m.Node = p.host
	m.Message = p.im.messageID(first, p.host, id, strconv.FormatInt(first.UnixMilli(), 10))
	m.External = strings.Clone(id)
	p.messages.put(key, m)
	return m
}

func (p *postfix) state(m *pfMessage, ev event.Event) {
	r := event.Record{Time: p.at, Node: p.host, Event: ev}
	if m != nil {
		r.Message = m.Message
	}
	p.im.state(&r)
}

// about reads a line about a queue ID.
func (p *postfix) about(id, rest string) error {
	switch {
	case strings.HasPrefix(rest, "client="):
		return p.client(p.message(id, 0), rest)
	case p.daemon == "pickup" && strings.HasPrefix(rest, "uid="):
		m := p.message(id, 0)
		m.ConnectorIn = "pickup"
		uid, _, _ := strings.Cut(strings.TrimPrefix(rest, "uid="), " ")
		m.AuthUser = "uid " + clip(uid, 20)
		return nil
	case strings.HasPrefix(rest, "message-id="):
		p.message(id, 0).HeaderMessageID = clip(strings.TrimPrefix(rest, "message-id="), maxText)
		return nil
	case strings.HasPrefix(rest, "resent-message-id="):
		return nil
	case strings.HasPrefix(rest, "from=<"):
		return p.queued(p.message(id, 0), rest)
	case strings.HasPrefix(rest, "to=<"):
		return p.attempt(id, rest)
	case rest == "removed":
		m := p.message(id, 0)
		p.state(m, event.MessageRetired{
			Info: m.Info, Recipients: max(m.recipients, len(m.finals)), Relayed: m.relayed, Bounced: m.bounced, Expired: m.expired,
			Attempts: m.attempts, TTotal: event.Since(mail.IDTime(string(m.Message)), p.at),
		})
		p.messages.delete(p.host + " " + id)
		return nil
	case p.daemon == "bounce" && strings.HasPrefix(rest, "sender "):
		return p.report(p.message(id, 0), rest)
	case strings.HasPrefix(rest, "reject: "), strings.HasPrefix(rest, "milter-reject: "):
		return p.rejected(p.message(id, 0), rest)
	case strings.HasPrefix(rest, "hold: "), strings.HasPrefix(rest, "milter-hold: "):
		kind, why, _ := strings.Cut(rest, ": ")
		p.state(p.message(id, 0), event.QueueHeld{Actor: kind, Reason: clip(why, maxText), Filter: "queue_id:" + clip(id, 40), Affected: 1})
		return nil
	}
	return errPassed
}

// client reads "client=mail.example[192.0.2.1]:4711, sasl_method=PLAIN, sasl_username=ann".
func (p *postfix) client(m *pfMessage, rest string) error {
	for part := range strings.SplitSeq(rest, ", ") {
		key, val, _ := strings.Cut(part, "=")
		switch key {
		case "client":
			m.client, m.ClientIP, m.port = hostPort(val)
		case "sasl_method":
			m.mechanism = clip(val, 40)
		case "sasl_username":
			m.AuthUser = clip(val, 200)
		case "orig_client":
			m.client, m.ClientIP, m.port = hostPort(val)
		}
	}
	m.ConnectorIn = p.daemon
	if p.service != "" {
		m.ConnectorIn = p.service
	}
	return nil
}

// queued reads the queue manager's word: "from=<a@b>, size=100, nrcpt=1 (queue
// active)", and the one with which it gives up.
func (p *postfix) queued(m *pfMessage, rest string) error {
	from, fields, ok := angled(rest, "from=")
	if !ok {
		return errors.New("from=<…> does not end")
	}
	if strings.HasPrefix(fields, "status=expired") || strings.HasPrefix(fields, "status=force-expired") {
		m.MailFrom = sender(from)
		return p.gaveUp(m)
	}
	if p.daemon != "qmgr" && p.daemon != "nqmgr" {
		return errPassed
	}
	again := m.queued
	m.MailFrom, m.queued = sender(from), true
	for part := range strings.SplitSeq(fields, ", ") {
		key, val, _ := strings.Cut(part, "=")
		val, _, _ = strings.Cut(val, " ")
		n, err := strconv.ParseInt(val, 10, 64)
		switch {
		case key == "size" && err == nil:
			m.Size = n
		case key == "nrcpt" && err == nil:
			m.recipients = int(min(n, 1<<30))
		}
	}
	if again {
		return errPassed // it came back from the deferred queue
	}
	p.state(m, event.MessageQueued{
		Info: m.Info, Parent: m.parent, Recipients: []event.Recipient{}, ClientPort: m.port, ClientName: m.client, AuthMechanism: m.mechanism,
		TAccept: event.Since(mail.IDTime(string(m.Message)), p.at),
	})
	return nil
}

// attempt reads a delivery: "to=<a@b>, orig_to=<c@d>, relay=mx[192.0.2.1]:25,
// conn_use=2, delay=1.2, delays=0.1/0/0.6/0.5, dsn=2.0.0, status=sent (250 2.0.0 Ok)".
func (p *postfix) attempt(id, rest string) error {
	to, fields, ok := angled(rest, "to=")
	if !ok {
		return errors.New("to=<…> does not end")
	}
	orig := ""
	if strings.HasPrefix(fields, "orig_to=<") {
		if orig, fields, ok = angled(fields, "orig_to="); !ok {
			return errors.New("orig_to=<…> does not end")
		}
	}
	head, status, ok := strings.Cut(fields, "status=")
	if !ok {
		return errors.New("no status=")
	}
	word, text, _ := strings.Cut(status, " ")
	var d mail.Disposition
	switch word {
	case "sent":
		d = mail.Relayed
	case "deferred", "SOFTBOUNCE":
		d = mail.Deferred
	case "bounced":
		d = mail.Bounced
	case "expired":
		d = mail.Expired
	default: // deliverable and undeliverable are probes
		return errPassed
	}
	f := parseFields(head)
	m := p.message(id, f.delay)
	ev := event.AttemptFinished{Info: m.Info, Disposition: d, Reused: f.use > 1}
	ev.ConnectorOut = p.daemon
	if p.service != "" {
		ev.ConnectorOut = p.service
	}
	ev.RemoteName, ev.RemoteIP, ev.RemotePort = hostPort(f.relay)
	switch ev.RemoteName {
	case "none", "local", "virtual":
		ev.RemoteName = ""
	}
	domain := to[strings.LastIndexByte(to, '@')+1:]
	ev.Queue = clip(strings.ToLower(domain), maxAddress)
	ev.TSched, ev.TConnect, ev.TData = event.Seconds(f.delays[1]), event.Seconds(f.delays[2]), event.Seconds(f.delays[3])
	var remote bool
	ev.Answer, remote = words(text, f.dsn)
	ev.Answer = p.im.answer(d, ev.Answer, remote)
	to = address(to)
	ev.Attempt = m.pending[to] + 1
	rc := event.Recipient{Address: to, Original: original(orig), Disposition: d, Code: ev.Code, Enhanced: ev.Enhanced, Reply: ev.Reply, Class: ev.Class}
	ev.Recipients = []event.Recipient{rc}
	m.attempts++
	p.state(m, ev)
	if d == mail.Deferred {
		if len(m.pending) < maxRecipients {
			m.pending[to] = ev.Attempt
		}
		return nil
	}
	delete(m.pending, to)
	fin := event.Final{
		Info: m.Info, Hop: ev.Hop, Answer: ev.Answer, Recipient: to, Original: rc.Original, Attempts: ev.Attempt, TTotal: event.Seconds(f.delay),
		TQueue: event.Seconds(f.delays[0] + f.delays[1]),
	}
	m.final(to, d)
	switch d { //nolint:exhaustive // those that were set above
	case mail.Relayed:
		p.state(m, event.RecipientRelayed{Final: fin})
	case mail.Bounced:
		p.state(m, event.RecipientBounced{Final: fin})
	case mail.Expired:
		p.state(m, event.RecipientExpired{Final: fin})
	}
	return nil
}

func (m *pfMessage) final(to string, d mail.Disposition) {
	if len(m.finals) < maxRecipients {
		m.finals[to] = d
	}
	switch d { //nolint:exhaustive // the final ones of Postfix
	case mail.Relayed:
		m.relayed++
	case mail.Bounced:
		m.bounced++
	case mail.Expired:
		m.expired++
	}
}

// gaveUp states the end of all recipients that still waited.
func (p *postfix) gaveUp(m *pfMessage) error {
	list := make([]string, 0, len(m.pending))
	for to := range m.pending {
		list = append(list, to)
	}
	slices.Sort(list)
	for _, to := range list {
		m.final(to, mail.Expired)
		p.state(m, event.RecipientExpired{Final: event.Final{
			Info: m.Info, Recipient: to, Attempts: m.pending[to], Answer: event.Answer{Enhanced: "4.4.7", Reply: "status=expired, returned to sender"},
			TTotal: event.Since(mail.IDTime(string(m.Message)), p.at),
		}})
	}
	clear(m.pending)
	if len(list) == 0 {
		return errPassed
	}
	return nil
}

// report reads "sender non-delivery notification: 4AbCdE".
func (p *postfix) report(m *pfMessage, rest string) error {
	what, id, ok := strings.Cut(strings.TrimPrefix(rest, "sender "), ": ")
	if !ok || !isPostfixID(id) {
		return errPassed
	}
	kind, about := "failed", m.ended(mail.Bounced, mail.Expired)
	switch {
	case strings.HasPrefix(what, "delay"):
		kind, about = "delayed", slices.Sorted(maps.Keys(m.pending))
	case strings.HasPrefix(what, "delivery status"):
		kind, about = "relayed", m.ended(mail.Relayed)
	}
	report := p.message(id, 0)
	report.MailFrom, report.parent = event.NullSender, m.Message
	list := make([]event.Recipient, len(about))
	for i, to := range about {
		list[i].Address = to
	}
	p.state(m, event.DSNQueued{Info: m.Info, Kind: kind, Recipients: list, DSN: report.Message})
	return nil
}

// ended lists the recipients that ended as one of ds, in the order of their addresses.
func (m *pfMessage) ended(ds ...mail.Disposition) (list []string) {
	for to, d := range m.finals {
		if slices.Contains(ds, d) {
			list = append(list, to)
		}
	}
	slices.Sort(list)
	return list
}

// rejected reads "reject: RCPT from mail.example[192.0.2.1]: 554 5.7.1 <a@b>:
// Relay access denied; from=<c@d> to=<a@b> proto=ESMTP helo=<mail.example>".
func (p *postfix) rejected(m *pfMessage, rest string) error {
	_, rest, ok := strings.Cut(rest, ": ")
	verb, rest, ok2 := strings.Cut(rest, " from ")
	peer, rest, ok3 := strings.Cut(rest, ": ")
	if !ok || !ok2 || !ok3 {
		return errPassed
	}
	ref := event.Refusal{Connector: p.daemon}
	if p.service != "" {
		ref.Connector = p.service
	}
	_, ref.ClientIP, _ = hostPort(peer)
	said, tail := rest, ""
	if i := strings.LastIndex(rest, "; from=<"); i >= 0 {
		said, tail = rest[:i], rest[i+2:]
	}
	ref.Code, ref.Enhanced, ref.Reply = reply(said)
	ref.Reason = refusal(ref.Code, ref.Enhanced, ref.Reply)
	var to string
	for _, key := range []string{"from", "to"} {
		_, after, ok := strings.Cut(" "+tail, " "+key+"=<")
		if !ok {
			continue
		}
		val, _, _ := strings.Cut(strings.ReplaceAll(after, ">,", "> "), "> ")
		val = strings.TrimSuffix(val, ">")
		if key == "from" {
			ref.MailFrom = sender(val)
		} else {
			to = address(val)
		}
	}
	if m != nil {
		ref.AuthUser = m.AuthUser
	}
	switch verb {
	case "RCPT":
		p.state(m, event.RecipientRefused{Refusal: ref, Recipient: to})
	case "MAIL":
		p.state(m, event.SenderRefused{Refusal: ref})
	case "DATA", "END-OF-MESSAGE", "BDAT", "EOM":
		ev := event.MessageRefused{Refusal: ref}
		if to != "" {
			ev.Recipients = []event.Recipient{{Address: to}}
		}
		p.state(m, ev)
	default:
		p.state(m, event.SessionRefused{Connector: ref.Connector, ClientIP: ref.ClientIP, Reason: "denied", Reply: clip(said, maxText)})
	}
	return nil
}

// noAuth reads "warning: mail.example[192.0.2.1]: SASL LOGIN authentication
// failed: authentication failure, sasl_username=ann".
func (p *postfix) noAuth(msg string) error {
	peer, rest, ok := strings.Cut(strings.TrimPrefix(msg, "warning: "), ": SASL ")
	mechanism, why, ok2 := strings.Cut(rest, " authentication failed: ")
	if !ok || !ok2 {
		return errPassed
	}
	ev := event.AuthFailed{Connector: p.daemon, Mechanism: clip(mechanism, 40), Reason: "credentials", Code: 535}
	if p.service != "" {
		ev.Connector = p.service
	}
	_, ev.ClientIP, _ = hostPort(peer)
	if text, user, ok := strings.Cut(why, ", sasl_username="); ok {
		why, ev.User = text, clip(user, 200)
	}
	if strings.Contains(why, " ") { // and no challenge in base64
		ev.Error = clip(why, maxText)
	}
	p.state(nil, ev)
	return nil
}

// pfFields are what stands between the recipient and the status.
type pfFields struct {
	relay  string
	dsn    string
	delay  time.Duration
	delays [4]time.Duration // before the queue manager, in it, connecting, sending (postconf(5), delay_logging_resolution_limit)
	use    int
}

func parseFields(s string) (f pfFields) {
	for part := range strings.SplitSeq(s, ", ") {
		key, val, _ := strings.Cut(part, "=")
		switch key {
		case "relay":
			f.relay = val
		case "dsn":
			if isEnhanced(val) {
				f.dsn = strings.Clone(val)
			}
		case "delay":
			f.delay = seconds(val)
		case "conn_use":
			f.use, _ = strconv.Atoi(val)
		case "delays":
			for i, v := range strings.SplitN(val, "/", 4) {
				f.delays[i] = seconds(v)
			}
		}
	}
	return f
}

// seconds reads a number of seconds; what is none, or absurd, is zero.
func seconds(s string) time.Duration {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || !(v > 0) || v > 1e8 {
		return 0
	}
	return time.Duration(v * float64(time.Second)).Truncate(time.Microsecond)
}

// words reads the text in parentheses after a status: ours, or the remote's
// after "said: ", with the command that it answered.
func words(text, dsn string) (a event.Answer, remote bool) {
	text = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(text), "("), ")")
	if i := strings.LastIndex(text, " (in reply to "); i >= 0 {
		verb := strings.TrimSuffix(strings.TrimSuffix(text[i+len(" (in reply to "):], ")"), " command")
		switch verb {
		case "end of DATA":
			a.Verb = "."
		case "initial server greeting":
			a.Verb = "CONNECT"
		default:
			a.Verb, _, _ = strings.Cut(clip(verb, 20), " ")
		}
		text = text[:i]
	}
	if _, after, ok := strings.Cut(text, " said: "); ok {
		text, remote = after, true
	}
	code, enhanced, rest := reply(text)
	if code == 0 {
		rest = clip(text, maxText)
	}
	a.Code, a.Enhanced, a.Reply = code, enhanced, rest
	if a.Enhanced == "" {
		a.Enhanced = dsn
	}
	return a, remote || code != 0
}

func original(s string) string {
	if s == "" {
		return ""
	}
	return address(s)
}

// angled reads key<value> and the fields after it.
func angled(s, key string) (value, rest string, ok bool) {
	s, ok = strings.CutPrefix(s, key+"<")
	if !ok {
		return "", "", false
	}
	if value, rest, ok = strings.Cut(s, ">, "); ok {
		return value, rest, true
	}
	value, ok = strings.CutSuffix(s, ">")
	return value, "", ok
}

// hostPort reads "mx.example[192.0.2.1]:25".
func hostPort(s string) (name string, addr netip.Addr, port uint16) {
	name, rest, ok := strings.Cut(s, "[")
	name = clip(name, 255)
	if name == "unknown" {
		name = ""
	}
	if !ok {
		return name, addr, 0
	}
	inside, after, _ := strings.Cut(rest, "]")
	addr = ip(inside)
	if n, err := strconv.ParseUint(strings.TrimPrefix(after, ":"), 10, 16); err == nil {
		port = uint16(n)
	}
	return name, addr, port
}
