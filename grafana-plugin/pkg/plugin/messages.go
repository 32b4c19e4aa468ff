package plugin

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/data"

	"waybill/logtrack/trackapi"
)

// messagesQuery searches messages.
type messagesQuery struct {
	Filter
	Rows  string `json:"rows"` // "messages" (the default) or "recipients": what a row is
	Sort  string `json:"sort"` // "-time" (the default) or "time"
	Limit number `json:"limit"`
}

// row is one row of the table: a message with the recipient that speaks for it,
// the one that is worst off, or each in turn.
type row struct {
	*trackapi.Message
	to         trackapi.Recipient
	recipients string
}

func messages(ctx context.Context, d *Datasource, q messagesQuery, in backend.DataQuery) (data.Frames, error) {
	find, err := q.query(in.TimeRange)
	if err != nil {
		return nil, err
	}
	if q.Rows != "" && q.Rows != "messages" && q.Rows != "recipients" {
		return nil, badQuery("a row is one of \"messages\" or \"recipients\", not %q", q.Rows)
	}
	if find.Sort, err = sortOf(q.Sort); err != nil {
		return nil, err
	}
	var found []trackapi.Message
	cut, more, err := pages(q.Limit.rows(), &find, func() (int, trackapi.Page, error) {
		answer, err := d.api.Messages(ctx, find)
		if err != nil {
			return 0, trackapi.Page{}, err
		}
		found = append(found, answer.Messages...)
		return len(answer.Messages), answer.Page, nil
	})
	if err != nil {
		return nil, err
	}
	frame := d.messageTable(rowsOf(found, q.Rows == "recipients"), q.Rows == "recipients")
	notice(frame, data.NoticeSeverityWarning, cut)
	if more {
		notice(frame, data.NoticeSeverityInfo, fmt.Sprintf("These are the first %d messages; there are more. Narrow the filters, or raise the limit (at most %d).", len(found), maxRows))
	}
	return data.Frames{frame}, nil
}

func sortOf(s string) (string, error) {
	switch s {
	case "", "-time", "time":
		return s, nil
	}
	return "", badQuery("the order %q is not known; it is \"-time\" (newest first) or \"time\"", s)
}

// pages fetches pages with next until there are limit rows or no more. It says
// why the API stopped early, if it did, and whether there are more rows.
func pages(limit int, q *trackapi.Query, next func() (int, trackapi.Page, error)) (cut string, more bool, err error) {
	for got := 0; got < limit; {
		q.Limit = min(limit-got, trackapi.MaxLimit)
		n, page, err := next()
		if err != nil {
			return "", false, err
		}
		got += n
		if page.Cut != "" {
			return page.Cut, false, nil
		}
		if page.Cursor == "" || n == 0 {
			return "", false, nil
		}
		q.Cursor = page.Cursor
	}
	return "", true, nil
}

// worst orders dispositions as the API does for a message.
var worst = map[string]int{"bounced": 8, "expired": 7, "dropped": 6, "held": 5, "deferred": 4, "queued": 3, "moved": 2, "relayed": 1}

func rowsOf(found []trackapi.Message, each bool) []row {
	rows := make([]row, 0, len(found))
	for i := range found {
		m := &found[i]
		if each {
			for _, r := range m.Recipients {
				rows = append(rows, row{Message: m, to: r, recipients: r.Address})
			}
			continue
		}
		one := row{Message: m}
		addresses := make([]string, len(m.Recipients))
		for j, r := range m.Recipients {
			addresses[j] = r.Address
			if j == 0 || worst[r.Disposition] > worst[one.to.Disposition] {
				one.to = r
			}
		}
		one.recipients = strings.Join(addresses, ", ")
		one.to.Disposition, one.to.Attempts, one.to.Latency = m.Disposition, m.Attempts, m.Latency
		rows = append(rows, one)
	}
	return rows
}

// messageTable makes the frame. The order of columns is the order of questions:
// when, which, from whom, to whom, what became of it, why.
func (d *Datasource) messageTable(rows []row, each bool) *data.Frame {
	recipients, name := "Recipients", "recipients"
	if each {
		recipients, name = "Recipient", "recipient"
	}
	fields := []*data.Field{
		column(rows, "time", "Time", func(r *row) time.Time { return r.Time.UTC() }, width(175)),
		column(rows, "queue_id", "Queue ID", func(r *row) string { return r.QueueID }, width(275),
			link(d.explore("Timeline of the message", map[string]string{"queryType": "timeline", "id": "${__value.raw}"}))),
		column(rows, "sender", "Sender", func(r *row) string { return r.Sender }, filterable, width(210)),
		column(rows, name, recipients, func(r *row) string { return r.recipients }, filterable, width(240)),
		column(rows, "disposition", "Disposition", func(r *row) string { return r.to.Disposition }, filterable, width(110), coloured(dispositionColours)),
		column(rows, "latency", "Latency", func(r *row) *float64 { return ifSet(r.to.Latency) }, unit("s"), width(95)),
		column(rows, "size", "Size", func(r *row) int64 { return r.Size }, unit("bytes"), width(90)),
		column(rows, "attempts", "Attempts", func(r *row) int64 { return int64(r.to.Attempts) }, width(85)),
		column(rows, "connector_in", "Received by", func(r *row) string { return r.Connector }, filterable, width(120)),
		column(rows, "connector_out", "Sent by", func(r *row) string { return r.to.Connector }, filterable, width(120)),
		column(rows, "remote_host", "Remote host", func(r *row) string { return r.to.RemoteHost }, filterable, width(180)),
		column(rows, "code", "Code", func(r *row) *int64 { return ifSet(int64(r.to.Code)) }, unit("none"), width(65)),
		column(rows, "enhanced", "Enhanced", func(r *row) string { return r.to.Enhanced }, width(90)),
		column(rows, "last_reply", "Last reply", func(r *row) string { return r.to.Reply }, width(330)),
		column(rows, "class", "Class", func(r *row) string { return r.to.Class }, filterable, width(130)),
		column(rows, "next_attempt", "Next attempt", func(r *row) *time.Time { return ifTime(r.to.Next) }, width(175)),
		column(rows, "client_ip", "Client", func(r *row) string { return r.ClientIP }, filterable, width(130)),
		column(rows, "auth_user", "User", func(r *row) string { return r.AuthUser }, filterable, width(110)),
		column(rows, "header_from", "From", func(r *row) string { return r.HeaderFrom }, width(200)),
		column(rows, "subject", "Subject", func(r *row) string { return r.Subject }, width(200)),
		column(rows, "header_message_id", "Message-ID", func(r *row) string { return r.MessageID }, width(260),
			link(d.explore("Messages with this Message-ID", map[string]string{"queryType": "messages", "message_id": "${__value.raw}"}))),
		column(rows, "recipient_count", "Recipients in all", func(r *row) int64 { return int64(len(r.Recipients)) }, hidden),
		column(rows, "message_uid", "Message UID", func(r *row) string { return r.UID }, hidden),
	}
	return newTable("messages", fields...)
}
