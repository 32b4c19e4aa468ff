package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	netmail "net/mail"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"waybill/cmd/internal/config"
	"waybill/logtrack/trackapi"
	"waybill/logtrack/trackhttp"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/queue"
)

// Drain is an order to hand the queue to another host. Without a host it ends.
type Drain struct {
	To     string // "host:port"
	Via    string // the send connector whose settings count; empty: each recipient's own
	Actor  string
	Client netip.Addr // where the actor asked from
	Reason string
}

// Bounds of an import.
const (
	maxImport      = 1 << 30   // octets of a message
	maxEnvelope    = 4 << 20   // octets of JSON
	maxImportRcpts = 10_000    // as many as fit into a record
	headerLook     = 256 << 10 // how much is looked at for the header
)

// decodeBody reads one JSON object, strictly, and answers when it is none.
func decodeBody(w http.ResponseWriter, r *http.Request, into any) bool {
	if ct, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || ct != "application/json" {
		problem(w, http.StatusUnsupportedMediaType, "Want JSON", "", "", "send Content-Type: application/json")
		return false
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	if err == nil && dec.More() {
		err = errors.New("there is more than one object")
	}
	if err != nil {
		badJSON(w, err)
		return false
	}
	return true
}

// badJSON says what is wrong with a body, in the words of who wrote it.
func badJSON(w http.ResponseWriter, err error) {
	what, field := strings.TrimPrefix(err.Error(), "json: "), ""
	wrong, isWrong := errors.AsType[*json.UnmarshalTypeError](err)
	when, isWhen := errors.AsType[*time.ParseError](err)
	switch {
	case errors.Is(err, io.EOF):
		what = "the body is empty"
	case errors.Is(err, io.ErrUnexpectedEOF):
		what = "the body ends too early"
	case isWrong:
		what, field = "a JSON "+wrong.Value+" is not what belongs there", wrong.Field
	case isWhen:
		what = when.Value + " is not a time such as 2026-01-31T08:00:00Z"
	}
	problem(w, http.StatusBadRequest, "Bad JSON", what, field, "GET /api/v1/openapi.yaml describes what it takes")
}

// nextHop reads a host that mail is to be sent to.
func (h *Handler) nextHop(to, via string) (hostport string, p *trackapi.Problem) {
	host, port, err := config.SmartHost{Host: to}.Split()
	if err != nil || to == "" {
		return "", trackapi.BadParameter("to", fmt.Sprintf("%.80q is not a host", to), "such as relay2.example.com, or 192.0.2.1:2525")
	}
	if names := h.opts.SendConnectors(); via != "" && !slices.Contains(names, via) {
		return "", trackapi.BadParameter("via", fmt.Sprintf("there is no send connector %.80q", via), "one of "+strings.Join(names, ", "))
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port))), nil
}

// holds lists the holds that are also for messages to come.
func (h *Handler) holds(w http.ResponseWriter, _ *http.Request) {
	answer := trackapi.QueueHolds{Holds: []trackapi.QueueHold{}}
	for _, d := range h.opts.Queue.Holds() {
		answer.Holds = append(answer.Holds, trackapi.QueueHold{
			Filter: trackapi.QueueFilter{
				Sender: d.Filter.Sender, Recipient: d.Filter.Recipient, Domain: d.Filter.Domain,
				Queue: d.Filter.Hop, Connector: d.Filter.Connector, Receive: d.Filter.Receive,
			},
			By: d.By, Why: d.Why, Until: d.Until,
		})
	}
	trackhttp.WriteJSON(w, http.StatusOK, answer)
}

// drained says how far a drain has come.
func (h *Handler) drained(w http.ResponseWriter, _ *http.Request) {
	trackhttp.WriteJSON(w, http.StatusOK, h.opts.Drained())
}

// drain begins or ends handing the queue to another host.
func (h *Handler) drain(w http.ResponseWriter, r *http.Request) {
	var in trackapi.QueueDrainOrder
	if !decodeBody(w, r, &in) {
		return
	}
	order := Drain{Via: in.Via, Actor: actor(r), Client: clientIP(r), Reason: in.Reason}
	if !in.Stop {
		var p *trackapi.Problem
		if order.To, p = h.nextHop(in.To, in.Via); p != nil {
			trackhttp.WriteProblem(w, p)
			return
		}
	}
	if err := h.opts.Drain(order); err != nil {
		problem(w, http.StatusConflict, "Nothing was changed", err.Error(), "", "")
		return
	}
	trackhttp.WriteJSON(w, http.StatusOK, h.opts.Drained())
}

// message finds a message that is queued or kept.
func (h *Handler) message(ctx context.Context, id mail.QueueID) (*queue.Message, error) {
	m, err := h.opts.Queue.Get(id)
	if !errors.Is(err, queue.ErrNotFound) || !mail.ValidID(string(id)) {
		return m, err
	}
	list, err := h.opts.Queue.Kept(ctx, queue.Filter{ID: id}, "", 1)
	if err == nil && len(list) == 0 {
		err = queue.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// envelope answers with all that an import needs beside the content.
func (h *Handler) envelope(w http.ResponseWriter, r *http.Request) {
	m, err := h.message(r.Context(), mail.QueueID(r.PathValue("queue_id")))
	if err != nil {
		fail(w, err)
		return
	}
	env, err := json.Marshal(m.Envelope)
	if err != nil {
		fail(w, err)
		return
	}
	out := trackapi.QueueEnvelope{
		QueueID: string(m.ID), UID: m.UID, Parent: string(m.Parent), Accepted: m.AcceptedAt, Expires: m.ExpiresAt, Priority: m.Priority.String(), Envelope: env,
	}
	for i, s := range m.States {
		out.Recipients = append(out.Recipients, trackapi.QueueEnvelopeRecipient{
			Address: m.Envelope.Recipients[i].Address.String(), Disposition: s.Disposition.String(), Attempts: s.Attempts, Open: !s.Disposition.Final(),
		})
	}
	trackhttp.WriteJSON(w, http.StatusOK, out)
}

// importMessage queues a message that is given with its envelope.
func (h *Handler) importMessage(w http.ResponseWriter, r *http.Request) {
	bad := func(detail, field, hint string) {
		problem(w, http.StatusBadRequest, "The message was not read", detail, field, hint)
	}
	form, err := r.MultipartReader()
	if err != nil {
		problem(w, http.StatusUnsupportedMediaType, "Want a form", err.Error(), "", "send multipart/form-data with the parts envelope and content, in this order")
		return
	}
	part, err := form.NextPart()
	if err != nil || part.FormName() != "envelope" {
		bad("the form does not begin with the part envelope", "envelope", "")
		return
	}
	d, err := readEnvelope(io.LimitReader(part, maxEnvelope))
	if err != nil {
		bad(err.Error(), "envelope", "")
		return
	}
	if part, err = form.NextPart(); err != nil || part.FormName() != "content" {
		bad("there is no part content", "content", "")
		return
	}
	in, err := h.opts.Queue.Begin(r.Context(), 0)
	if err != nil {
		refused(w, err)
		return
	}
	defer in.Abort()
	look := &prefix{limit: headerLook}
	lines := &lineEnds{w: io.MultiWriter(in, look), binary: d.Envelope.Body == mail.BodyBinaryMIME}
	_, err = io.Copy(lines, io.LimitReader(part, maxImport+1))
	if err = errors.Join(err, lines.end()); err != nil {
		refused(w, err)
		return
	}
	if in.Size() > maxImport {
		problem(w, http.StatusRequestEntityTooLarge, "Too large", fmt.Sprintf("more than %d octets", maxImport), "content", "")
		return
	}
	d.Header = readHeader(look.b)
	d.Header.Subject = h.opts.Subject(d.Header.Subject)
	d.ID = mail.QueueID(mail.NewID(time.Now()))
	size := in.Size()
	if err := in.Commit(r.Context(), d); err != nil {
		refused(w, err)
		return
	}
	h.opts.Emitter.Source(event.SourceImport).Message(d.ID, d.UID).Emit(event.AdminActed{
		Actor: actor(r), Action: "import", Affected: 1, Result: "ok", ClientIP: clientIP(r),
	})
	trackhttp.WriteJSON(w, http.StatusCreated, trackapi.QueueImported{QueueID: string(d.ID), Size: size})
}

// refused answers an error of taking a message.
func refused(w http.ResponseWriter, err error) {
	if e, ok := errors.AsType[*mail.ReplyError](err); ok {
		problem(w, http.StatusServiceUnavailable, "The queue does not take the message", e.Error(), "", "try again later")
		return
	}
	problem(w, http.StatusBadRequest, "The message was not read", err.Error(), "content", "")
}

// readEnvelope makes a draft of what an export wrote. Recipients that had their
// end are left out.
func readEnvelope(r io.Reader) (d mail.Draft, err error) {
	var in trackapi.QueueEnvelope
	if err := json.NewDecoder(r).Decode(&in); err != nil {
		return d, err
	}
	if err := json.Unmarshal(in.Envelope, &d.Envelope); err != nil {
		return d, fmt.Errorf("envelope: %w", err)
	}
	env := &d.Envelope
	if len(in.Recipients) > 0 {
		if len(in.Recipients) != len(env.Recipients) {
			return d, fmt.Errorf("%d recipients in the envelope, and the states of %d", len(env.Recipients), len(in.Recipients))
		}
		var open []mail.Recipient
		for i, s := range in.Recipients {
			if s.Open {
				open = append(open, env.Recipients[i])
			}
		}
		env.Recipients = open
	}
	switch {
	case len(env.Recipients) == 0:
		return d, errors.New("no recipient waits for the message")
	case len(env.Recipients) > maxImportRcpts:
		return d, fmt.Errorf("more than %d recipients", maxImportRcpts)
	case slices.ContainsFunc(env.Recipients, func(r mail.Recipient) bool { return r.Address.IsNull() }):
		return d, errors.New("a recipient has no address")
	case env.Body > mail.BodyBinaryMIME, env.Priority < -9, env.Priority > 9, env.Ret != "" && env.Ret != "FULL" && env.Ret != "HDRS":
		return d, errors.New("a parameter has a value that it cannot have")
	case hasControl(env.EnvID), hasControl(env.Auth), slices.ContainsFunc(env.Recipients, func(r mail.Recipient) bool { return hasControl(r.ORcpt) || r.Notify > 15 }):
		return d, errors.New("a parameter has a value that it cannot have")
	}
	d.Priority = env.Queueing()
	switch in.Priority {
	case mail.PriorityHigh.String():
		d.Priority = mail.PriorityHigh
	case mail.PriorityLow.String():
		d.Priority = mail.PriorityLow
	}
	if mail.ValidID(in.QueueID) {
		d.Parent = mail.QueueID(in.QueueID)
	}
	d.UID = mail.NewUID(time.Now())
	return d, nil
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// readHeader finds what the record keeps of the header.
func readHeader(b []byte) mail.Header {
	m, err := netmail.ReadMessage(bytes.NewReader(b))
	if err != nil {
		return mail.Header{}
	}
	word := func(s string) string {
		s = strings.Map(func(r rune) rune {
			if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
				return ' '
			}
			return r
		}, s)
		return strings.TrimSpace(strings.ToValidUTF8(s[:min(len(s), 512)], ""))
	}
	head := mail.Header{MessageID: word(m.Header.Get("Message-Id")), Received: len(m.Header["Received"])}
	if from, err := m.Header.AddressList("From"); err == nil && len(from) > 0 {
		head.From = word(from[0].Address)
	}
	if subject, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject")); err == nil {
		head.Subject = word(subject)
	}
	if i := bytes.Index(b, []byte("\r\n\r\n")); i >= 0 {
		head.Bytes = i + 4
	}
	return head
}

// prefix keeps the beginning of what is written.
type prefix struct {
	b     []byte
	limit int
}

func (p *prefix) Write(b []byte) (int, error) {
	p.b = append(p.b, b[:min(len(b), p.limit-len(p.b))]...)
	return len(b), nil
}

// lineEnds makes the line ends of a file those of SMTP: a CR or an LF alone
// becomes CRLF (RFC 5321 section 2.3.8), unless the content is binary.
type lineEnds struct {
	w      io.Writer
	binary bool
	cr     bool // the last octet was a CR, and is not written yet
	buf    []byte
}

func (l *lineEnds) Write(p []byte) (int, error) {
	if l.binary {
		return l.w.Write(p)
	}
	l.buf = l.buf[:0]
	for _, c := range p {
		if l.cr || c == '\n' {
			l.buf = append(l.buf, '\r', '\n')
		}
		l.cr = c == '\r'
		if c != '\r' && c != '\n' {
			l.buf = append(l.buf, c)
		}
	}
	if _, err := l.w.Write(l.buf); err != nil {
		return 0, err
	}
	return len(p), nil
}

// end writes what is held back, and ends the last line.
func (l *lineEnds) end() error {
	if !l.cr {
		return nil
	}
	l.cr = false
	_, err := io.WriteString(l.w, "\r\n")
	return err
}
