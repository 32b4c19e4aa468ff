// Package trackexport writes facts in the format of Exchange's message-tracking
// log, so that scripts and collectors that read that log go on working.
//
// It promises the 30 columns of Exchange 2013 and later in their order and under
// their names, times in UTC with milliseconds, lists by semicolon, and one line
// for each fact that Exchange has an event for; other facts have none. What
// [waybill/logtrack/trackimport] reads of such a line is the same message with
// the same outcome.
//
// To give another fact a line, add its case to row.
package trackexport

import (
	"encoding/csv"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// Columns are the columns in their order.
func Columns() []string { return strings.Split(columns, ",") }

const columns = "date-time,client-ip,client-hostname,server-ip,server-hostname,source-context,connector-id,source,event-id,internal-message-id," +
	"message-id,network-message-id,recipient-address,recipient-status,total-bytes,recipient-count,related-recipient-address,reference," +
	"message-subject,sender-address,return-path,message-info,directionality,tenant-id,original-client-ip,original-server-ip,custom-data," +
	"transport-traffic-type,log-id,schema-version"

const schemaVersion = "15.02.0000.000" // of Exchange's columns

// Writer writes lines.
type Writer struct {
	out *csv.Writer
	row []string
}

// NewWriter returns a Writer that has written the lines with which such a log
// begins.
func NewWriter(w io.Writer, now time.Time) (*Writer, error) {
	_, err := fmt.Fprintf(w, "#Software: Waybill\n#Version: %s\n#Log-type: Message Tracking Log\n#Date: %s\n#Fields: %s\n", schemaVersion, stamp(now), columns)
	return &Writer{out: csv.NewWriter(w), row: make([]string, len(Columns()))}, err
}

// Write writes the line of a fact, if it has one.
func (w *Writer) Write(r *event.Record) (written bool, err error) {
	clear(w.row)
	if !w.fill(r) {
		return false, nil
	}
	for i, field := range w.row {
		w.row[i] = strings.Map(plain, field)
	}
	return true, w.out.Write(w.row)
}

// plain replaces control characters, which readers of such logs, and terminals,
// do not expect. Line ends stay: the field stands in quotes then.
func plain(r rune) rune {
	if unicode.IsControl(r) && r != '\n' && r != '\t' {
		return '\uFFFD'
	}
	return r
}

// Flush writes what is buffered.
func (w *Writer) Flush() error {
	w.out.Flush()
	return w.out.Error()
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// positions in a row.
const (
	dateTime = iota
	clientIP
	clientHost
	serverIP
	serverHost
	sourceContext
	connectorID
	source
	eventID
	internalID
	messageID
	networkID
	recipients
	statuses
	totalBytes
	recipientCount
	relatedRecipient
	reference
	subject
	senderAddress
	returnPath
	messageInfo
	directionality
	_
	originalClientIP
	_
	customData
	trafficType
	logID
	version
)

func (w *Writer) fill(r *event.Record) bool {
	row := w.row
	row[dateTime], row[logID], row[version], row[trafficType] = stamp(r.Time), r.ID, schemaVersion, "Email"
	row[networkID] = r.UID
	if r.Message != "" {
		row[internalID] = number(r.Message)
	}
	switch ev := r.Event.(type) { //nolint:gochecksumtype // Exchange has no event for the others
	case event.MessageQueued:
		w.info(&ev.Info, "RECEIVE", "SMTP")
		if r.Source == event.SourceDSN || ev.MailFrom == event.NullSender && ev.Parent != "" {
			row[eventID], row[source] = "DSN", "DSN"
		}
		row[connectorID], row[clientHost], row[serverHost], row[subject] = ev.ConnectorIn, ev.ClientName, r.Node, ev.Subject
		w.list(ev.Recipients, false)
	case event.AttemptFinished:
		if ev.Disposition != mail.Deferred { // the final facts say the rest
			return false
		}
		w.info(&ev.Info, "DEFER", "SMTP")
		w.hop(&ev.Hop, r.Node)
		w.list(ev.Recipients, true)
		row[sourceContext] = status(ev.Code, ev.Enhanced, ev.Reply)
		w.custom("attempt", strconv.Itoa(ev.Attempt), "class", string(ev.Class))
	case event.RecipientRelayed:
		w.final(&ev.Final, r, "SEND", "SMTP")
	case event.RecipientBounced:
		if ev.Actor == "" {
			w.final(&ev.Final, r, "FAIL", "SMTP")
			break
		}
		w.final(&ev.Final, r, "FAIL", "ADMIN")
		row[sourceContext] = strings.TrimSpace(ev.Actor + " " + ev.Reason)
	case event.RecipientExpired:
		w.final(&ev.Final, r, "FAIL", "QUEUE")
		row[statuses] = status(550, "4.4.7", "QUEUE.Expired; message expired; "+status(ev.Code, ev.Enhanced, ev.Reply))
	case event.RecipientDropped:
		w.final(&ev.Final, r, "DROP", "ADMIN")
		row[sourceContext] = strings.TrimSpace(ev.Actor + " " + ev.Reason)
	case event.DSNQueued:
		if ev.DSN == "" {
			return false
		}
		w.info(&ev.Info, "DSN", "DSN")
		w.list(ev.Recipients, true)
		row[serverHost], row[reference], row[sourceContext] = r.Node, ev.HeaderMessageID, ev.Kind
		row[internalID], row[messageID], row[returnPath] = number(ev.DSN), "", event.NullSender
	case event.MessageRouted:
		w.info(&ev.Info, "TRANSFER", "ROUTING")
		w.list(ev.Recipients, false)
		row[connectorID], row[serverHost], row[sourceContext] = ev.ConnectorOut, r.Node, ev.Why
	case event.MessagePoisoned:
		w.info(&ev.Info, "POISONMESSAGE", "POISONMESSAGE")
		row[serverHost], row[sourceContext] = r.Node, ev.Error
	case event.ThrottleEngaged:
		row[eventID], row[source], row[connectorID], row[serverHost] = "THROTTLE", "SMTP", ev.Connector, r.Node
		row[reference], row[sourceContext] = ev.Limit, ev.Action
		if ev.ClientIP.IsValid() {
			row[clientIP] = ev.ClientIP.String()
		}
	default:
		return false
	}
	return true
}

func (w *Writer) info(in *event.Info, kind, by string) {
	row := w.row
	row[eventID], row[source] = kind, by
	row[messageID], row[returnPath], row[senderAddress] = in.HeaderMessageID, in.MailFrom, in.HeaderFrom
	if in.HeaderFrom == "" {
		row[senderAddress] = in.MailFrom
	}
	if in.Size > 0 {
		row[totalBytes] = strconv.FormatInt(in.Size, 10)
	}
	if in.ClientIP.IsValid() {
		row[originalClientIP] = in.ClientIP.String()
		if kind == "RECEIVE" {
			row[clientIP] = row[originalClientIP]
		}
	}
	row[directionality] = "Originating"
	if in.AuthUser == "" {
		row[directionality] = "Incoming"
	}
}

func (w *Writer) hop(h *event.Hop, node string) {
	row := w.row
	row[connectorID], row[clientHost], row[serverHost] = h.ConnectorOut, node, h.RemoteName
	if h.RemoteIP.IsValid() {
		row[serverIP] = h.RemoteIP.String()
	}
}

func (w *Writer) final(f *event.Final, r *event.Record, kind, by string) {
	row := w.row
	w.info(&f.Info, kind, by)
	w.hop(&f.Hop, r.Node)
	if kind != "SEND" {
		row[clientHost], row[serverHost] = "", r.Node
	}
	row[recipients], row[recipientCount], row[statuses] = f.Recipient, "1", status(f.Code, f.Enhanced, f.Reply)
	row[relatedRecipient] = f.Original
	if f.TTotal > 0 && kind == "SEND" {
		row[messageInfo] = stamp(r.Time.Add(-time.Duration(f.TTotal)))
	}
	w.custom("attempt", strconv.Itoa(f.Attempts), "class", string(f.Class), "latency", fmt.Sprintf("%.3f", f.TTotal.Float()))
}

func (w *Writer) list(list []event.Recipient, answers bool) {
	to, said := make([]string, len(list)), make([]string, len(list))
	for i := range list {
		to[i] = list[i].Address
		said[i] = strings.ReplaceAll(status(list[i].Code, list[i].Enhanced, list[i].Reply), ";", ",")
	}
	w.row[recipients], w.row[recipientCount] = strings.Join(to, ";"), strconv.Itoa(len(list))
	if answers {
		w.row[statuses] = strings.Join(said, ";")
	}
}

func (w *Writer) custom(pairs ...string) {
	var list []string
	for pair := range slices.Chunk(pairs, 2) {
		if len(pair) == 2 && pair[1] != "" {
			list = append(list, "S:"+pair[0]+"="+pair[1])
		}
	}
	w.row[customData] = strings.Join(list, ";")
}

func status(code int, enhanced, text string) string {
	return mail.Reply{Code: code, Enhanced: enhanced, Text: text}.String()
}

// number is a message as Exchange numbers its own: scripts group by it.
func number(id mail.QueueID) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id)) // never fails
	return strconv.FormatUint(h.Sum64()>>1, 10)
}
