package trackapi

import (
	"context"
	"encoding/json"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"time"
)

// QueueHold is a hold that is also for messages to come.
type QueueHold struct {
	Filter QueueFilter `json:"filter"`
	By     string      `json:"held_by"`
	Why    string      `json:"held_reason,omitempty"`
	Until  time.Time   `json:"held_until,omitzero"`
}

// QueueHolds answers GET /api/v1/queue/holds.
type QueueHolds struct {
	Holds []QueueHold `json:"holds"`
}

// QueueDrainOrder is the body of POST /api/v1/queue/drain.
type QueueDrainOrder struct {
	To     string `json:"to,omitempty"`  // the host, with :port unless it is 25
	Via    string `json:"via,omitempty"` // the send connector whose settings count; without it each recipient's own
	Reason string `json:"reason,omitempty"`
	Stop   bool   `json:"stop,omitempty"` // ends the drain that is under way
}

// QueueDrain answers GET and POST /api/v1/queue/drain: how far the queue has been
// handed to another host.
type QueueDrain struct {
	Draining   bool      `json:"draining"`
	Done       bool      `json:"done"` // nothing moves any more; what is left needs somebody
	To         string    `json:"to,omitempty"`
	Via        string    `json:"via,omitempty"`
	By         string    `json:"by,omitempty"`
	Reason     string    `json:"reason,omitempty"`
	Since      time.Time `json:"since,omitzero"`
	Started    int       `json:"started"` // messages at its beginning
	Left       int       `json:"left"`    // messages in the queue
	Bytes      int64     `json:"bytes"`
	Moving     int       `json:"moving"` // of them on their way; these and the next count a message once for each next hop
	Held       int       `json:"held"`
	Unroutable int       `json:"unroutable"`
	Poison     int       `json:"poison"`
	LastError  string    `json:"last_error,omitempty"`
	LastAt     time.Time `json:"last_at,omitzero"`
	Next       time.Time `json:"next_retry,omitzero"`
}

// QueueEnvelope is what GET /api/v1/queue/messages/{queue_id}/envelope answers,
// what stands beside an exported message, and what an import begins with.
type QueueEnvelope struct {
	QueueID    string                   `json:"queue_id,omitempty"`
	UID        string                   `json:"message_uid,omitempty"`
	Parent     string                   `json:"parent_queue_id,omitempty"`
	Accepted   time.Time                `json:"accepted,omitzero"`
	Expires    time.Time                `json:"expires,omitzero"`
	Priority   string                   `json:"priority,omitempty"` // low, normal, high
	Envelope   json.RawMessage          `json:"envelope"`           // sender, recipients and their parameters
	Recipients []QueueEnvelopeRecipient `json:"recipients,omitempty"`
}

// QueueEnvelopeRecipient says what became of a recipient.
type QueueEnvelopeRecipient struct {
	Address     string `json:"address"`
	Disposition string `json:"disposition,omitempty"`
	Attempts    int    `json:"attempts,omitempty"`
	Open        bool   `json:"open"` // waits for the message; an import is for these alone
}

// QueueImported answers POST /api/v1/queue/messages.
type QueueImported struct {
	QueueID string `json:"queue_id"`
	Size    int64  `json:"size"`
}

// Holds lists the holds that are also for messages to come.
func (c *Client) Holds(ctx context.Context) (*QueueHolds, error) {
	return get[QueueHolds](ctx, c, "/api/v1/queue/holds", nil)
}

// Drained says how far the queue has been handed to another host.
func (c *Client) Drained(ctx context.Context) (*QueueDrain, error) {
	return get[QueueDrain](ctx, c, "/api/v1/queue/drain", nil)
}

// Drain begins or ends handing the queue to another host.
func (c *Client) Drain(ctx context.Context, order QueueDrainOrder) (*QueueDrain, error) {
	body, err := json.Marshal(order)
	if err != nil {
		return nil, err
	}
	res, err := c.do(ctx, http.MethodPost, "/api/v1/queue/drain", nil, body) //nolint:bodyclose // decode does
	if err != nil {
		return nil, err
	}
	return decode[QueueDrain](res)
}

// Envelope is the envelope of a message that is queued, or kept after it was relayed.
func (c *Client) Envelope(ctx context.Context, queueID string) (*QueueEnvelope, error) {
	return get[QueueEnvelope](ctx, c, "/api/v1/queue/messages/"+url.PathEscape(queueID)+"/envelope", nil)
}

// ImportMessage queues a message. The content is read to its end.
func (c *Client) ImportMessage(ctx context.Context, env QueueEnvelope, content io.Reader) (*QueueImported, error) {
	head, err := json.Marshal(env)
	if err != nil {
		return nil, err
	}
	pr, pw := io.Pipe()
	form := multipart.NewWriter(pw)
	written := make(chan struct{})
	go func() {
		defer close(written)
		_ = pw.CloseWithError(writeForm(form, head, content)) // never fails
	}()
	defer func() {
		_ = pr.Close() // never fails; lets the writer end, whatever came of it
		<-written
	}()
	res, err := c.send(ctx, http.MethodPost, "/api/v1/queue/messages", nil, pr, form.FormDataContentType()) //nolint:bodyclose // decode does
	if err != nil {
		return nil, err
	}
	return decode[QueueImported](res)
}

func writeForm(form *multipart.Writer, envelope []byte, content io.Reader) error {
	for _, part := range []struct{ name, kind string }{{"envelope", "application/json"}, {"content", "message/rfc822"}} {
		w, err := form.CreatePart(textproto.MIMEHeader{
			"Content-Disposition": {`form-data; name="` + part.name + `"`}, "Content-Type": {part.kind},
		})
		if err != nil {
			return err
		}
		if part.name == "envelope" {
			_, err = w.Write(envelope)
		} else {
			_, err = io.Copy(w, content)
		}
		if err != nil {
			return err
		}
	}
	return form.Close()
}
