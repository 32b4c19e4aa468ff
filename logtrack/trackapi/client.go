package trackapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// maxAnswer bounds what a client reads of one answer.
const maxAnswer = 256 << 20

// Client calls the API of a daemon. Its methods may be called at once. Errors
// that the daemon answered are of type *Problem.
type Client struct {
	BaseURL string       // such as http://127.0.0.1:8025
	Token   string       // bearer token, or empty
	HTTP    *http.Client // nil means http.DefaultClient
}

// Messages searches messages.
func (c *Client) Messages(ctx context.Context, q Query) (*Messages, error) {
	return get[Messages](ctx, c, "/api/v1/messages", q.Values())
}

// Message is one message with its timeline.
func (c *Client) Message(ctx context.Context, queueID string) (*Timeline, error) {
	return get[Timeline](ctx, c, "/api/v1/messages/"+url.PathEscape(queueID), nil)
}

// Transcript is the SMTP conversations that carried a message.
func (c *Client) Transcript(ctx context.Context, queueID string) (*Transcript, error) {
	return get[Transcript](ctx, c, "/api/v1/messages/"+url.PathEscape(queueID)+"/transcript", nil)
}

// SessionTranscript is what was said in one session.
func (c *Client) SessionTranscript(ctx context.Context, session string) (*Transcript, error) {
	return get[Transcript](ctx, c, "/api/v1/sessions/"+url.PathEscape(session)+"/transcript", nil)
}

// Events searches facts.
func (c *Client) Events(ctx context.Context, q Query) (*Events, error) {
	return get[Events](ctx, c, "/api/v1/events", q.Values())
}

// Aggregate computes numbers over facts.
func (c *Client) Aggregate(ctx context.Context, q AggregateQuery) (*Aggregate, error) {
	return get[Aggregate](ctx, c, "/api/v1/aggregate", q.Values())
}

// Values lists the values of a field.
func (c *Client) Values(ctx context.Context, q ValuesQuery) (*Values, error) {
	return get[Values](ctx, c, "/api/v1/values", q.Values())
}

// Queues lists the next hops.
func (c *Client) Queues(ctx context.Context) (*Queues, error) {
	return get[Queues](ctx, c, "/api/v1/queues", nil)
}

// QueuedMessages lists queued messages.
func (c *Client) QueuedMessages(ctx context.Context, f QueueFilter, cursor string, limit int) (*QueuedMessages, error) {
	v := f.Values()
	if cursor != "" {
		v.Set("cursor", cursor)
	}
	if limit > 0 {
		v.Set("limit", strconv.Itoa(limit))
	}
	return get[QueuedMessages](ctx, c, "/api/v1/queue/messages", v)
}

// Values writes f as the parameters of a request.
func (f QueueFilter) Values() url.Values {
	v := url.Values{}
	for name, s := range map[string]string{
		"queue_id": f.QueueID, "sender": f.Sender, "recipient": f.Recipient, "domain": f.Domain, "queue": f.Queue,
		"connector": f.Connector, "connector_in": f.Receive, "state": f.State, "older_than": f.OlderThan,
	} {
		if s != "" {
			v.Set(name, s)
		}
	}
	return v
}

// ActOnQueue does something to queued messages.
func (c *Client) ActOnQueue(ctx context.Context, a QueueAction) (*QueueActed, error) {
	body, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	res, err := c.do(ctx, http.MethodPost, "/api/v1/queue/actions", nil, body) //nolint:bodyclose // decode does
	if err != nil {
		return nil, err
	}
	return decode[QueueActed](res)
}

// Content is a queued message as it will leave. The caller must close it.
func (c *Client) Content(ctx context.Context, queueID string) (io.ReadCloser, error) {
	res, err := c.do(ctx, http.MethodGet, "/api/v1/queue/messages/"+url.PathEscape(queueID)+"/content", nil, nil)
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

// Status is the daemon's state.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	return get[Status](ctx, c, "/api/v1/status", nil)
}

// ErrTailEnded is wrapped when the daemon ends a live stream; its text says why.
var ErrTailEnded = errors.New("live stream ended")

// Tail calls each with every fact that matches q, as it happens, until ctx is
// done, each returns an error, or the daemon ends the stream.
func (c *Client) Tail(ctx context.Context, q Query, each func(record json.RawMessage) error) error {
	return c.stream(ctx, "/api/v1/tail", q.Values(), each)
}

// ProtocolFilter selects conversations to watch. Zero fields select all.
type ProtocolFilter struct {
	ClientIP   string // address or CIDR of the client
	Connector  string
	Direction  string // inbound, outbound
	RemoteHost string // name or address of the next hop
	Session    string
}

// Values writes f as the parameters of a request.
func (f ProtocolFilter) Values() url.Values {
	v := url.Values{}
	for name, s := range map[string]string{
		"client_ip": f.ClientIP, "connector": f.Connector, "direction": f.Direction, "remote_host": f.RemoteHost, "session_id": f.Session,
	} {
		if s != "" {
			v.Set(name, s)
		}
	}
	return v
}

// TailProtocol calls each with every line of the conversations that f selects,
// while they happen, until ctx is done, each returns an error, or the daemon
// ends the stream.
func (c *Client) TailProtocol(ctx context.Context, f ProtocolFilter, each func(ProtocolLine) error) error {
	return c.stream(ctx, "/api/v1/protocol/tail", f.Values(), func(raw json.RawMessage) error {
		var l ProtocolLine
		if err := json.Unmarshal(raw, &l); err != nil {
			return fmt.Errorf("answer of /api/v1/protocol/tail: %w", err)
		}
		return each(l)
	})
}

// stream reads Server-Sent Events.
func (c *Client) stream(ctx context.Context, path string, v url.Values, each func(json.RawMessage) error) error {
	res, err := c.do(ctx, http.MethodGet, path, v, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(make([]byte, 0, 64<<10), 64<<20)
	name, data := "", []byte(nil)
	for lines.Scan() {
		line := lines.Text()
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "":
			if name == "end" {
				return fmt.Errorf("%w: %s", ErrTailEnded, data)
			}
			if len(data) > 0 {
				if err := each(json.RawMessage(data)); err != nil {
					return err
				}
			}
			name, data = "", nil
		case key == "event":
			name = value
		case key == "data":
			data = append(data, value...)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrTailEnded, err)
	}
	return fmt.Errorf("%w: connection closed", ErrTailEnded)
}

func get[T any](ctx context.Context, c *Client, path string, v url.Values) (*T, error) {
	res, err := c.do(ctx, http.MethodGet, path, v, nil) //nolint:bodyclose // decode does
	if err != nil {
		return nil, err
	}
	return decode[T](res)
}

func decode[T any](res *http.Response) (*T, error) {
	defer res.Body.Close()
	var v T
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(&v); err != nil {
		return nil, fmt.Errorf("answer of %s: %w", res.Request.URL.Path, err)
	}
	return &v, nil
}

// do sends a request; an answer other than 2xx becomes a *Problem.
func (c *Client) do(ctx context.Context, method, path string, v url.Values, body []byte) (*http.Response, error) {
	if body == nil {
		return c.send(ctx, method, path, v, nil, "")
	}
	return c.send(ctx, method, path, v, bytes.NewReader(body), "application/json")
}

func (c *Client) send(ctx context.Context, method, path string, v url.Values, body io.Reader, kind string) (*http.Response, error) {
	target := strings.TrimSuffix(c.BaseURL, "/") + path
	if len(v) > 0 {
		target += "?" + v.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	req.Header.Set("Accept", "application/json")
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode/100 == 2 {
		return res, nil
	}
	defer res.Body.Close()
	return nil, problemOf(res)
}

func problemOf(res *http.Response) *Problem {
	p := &Problem{}
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil && strings.HasSuffix(kind, "json") && json.Unmarshal(b, p) == nil && p.Title != "" {
		if p.Status == 0 {
			p.Status = res.StatusCode
		}
		return p
	}
	return &Problem{Type: "about:blank", Title: res.Status, Status: res.StatusCode, Hint: "the answer did not come from the relay's API; check the URL"}
}
