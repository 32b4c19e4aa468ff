// Package trackapi is the wire contract of the tracking and queue API, and its
// Go client. The daemon serves it, the command line and the Grafana plugin call
// it; it imports only the standard library, so that each can.
//
// Times are RFC 3339 in UTC with nanoseconds, keys are snake_case, errors are
// problem details (RFC 9457), lists are paged by an opaque cursor. To add a
// field, add it here, to the OpenAPI document of trackhttp and to the store.
package trackapi

import (
	"encoding/json"
	"time"
)

// Query selects messages or facts. Zero fields select all. Address filters
// take an exact address, "@domain", or a pattern with "*".
//
// A message is selected when one of its facts passes all filters. Its time is
// that of its acceptance; its disposition is that of the worst off among the
// recipients that the recipient and domain filters select. A negated filter
// passes over messages with any fact that the filter selects.
type Query struct {
	From        time.Time // inclusive; zero: a day before To, or without limit when QueueID or MessageID is exact
	To          time.Time // exclusive; zero: now
	Q           string    // the filters below as one string: recipient:*@example.com -class:greylist
	Sender      string
	Recipient   string
	Domain      string // recipient domain
	MessageID   string // Message-ID, with or without angle brackets
	QueueID     string // or a prefix of at least 6 characters
	ClientIP    string // address or CIDR
	AuthUser    string
	Connector   string // receive or send connector
	RemoteHost  string // name, pattern or address
	SessionID   string // inbound or outbound
	Queue       string // next hop
	Provider    string
	Disposition string // one or several, by comma
	Class       string
	Code        string        // 550, 5.1.1, 5xx
	Event       string        // names of facts, by comma; events only
	MinLatency  time.Duration // accepted to final or to now
	MaxLatency  string        // a duration
	MinSize     string        // octets, or 10KiB
	MaxSize     string
	Subject     string // whole, or a pattern with "*"; whole only where hashes are kept
	Reason      string // why something was refused
	Node        string // which relay, or which server a log was imported from
	Source      string // which part stated it: smtp_in, queue, import …
	ExternalID  string // the queue ID in another server's log
	Sort        string // "-time" (newest first, the default) or "time"
	Limit       int    // default 50, at most 1000
	Cursor      string
	Explain     bool
}

// Recipient is the latest state of one recipient of a message.
type Recipient struct {
	Address     string    `json:"address"`
	Disposition string    `json:"disposition"`
	Attempts    int       `json:"attempts"`
	Code        int       `json:"code,omitempty"`
	Enhanced    string    `json:"enhanced,omitempty"`
	Reply       string    `json:"reply,omitempty"`
	Class       string    `json:"class,omitempty"`
	ClassRule   string    `json:"class_rule,omitempty"`
	Permanence  string    `json:"permanence,omitempty"`  // temporary, permanent: whether the failure goes away when one waits
	Explanation string    `json:"explanation,omitempty"` // one line: what the failure means, and who must act
	RemoteHost  string    `json:"remote_host,omitempty"`
	Actor       string    `json:"actor,omitempty"` // who removed or bounced it by hand; remote_host is then that of the last attempt
	Connector   string    `json:"connector_out,omitempty"`
	Queue       string    `json:"queue,omitempty"`
	At          time.Time `json:"at"`                    // of the latest fact
	Next        time.Time `json:"next_attempt,omitzero"` // when deferred
	Latency     float64   `json:"latency,omitempty"`     // seconds from accepted to final; 0 while waiting
}

// Message is one row of a message search.
type Message struct {
	QueueID     string      `json:"queue_id"`
	UID         string      `json:"message_uid,omitempty"`
	Parent      string      `json:"parent_queue_id,omitempty"`
	Time        time.Time   `json:"time"`   // accepted
	Sender      string      `json:"sender"` // "<>" for the null reverse-path
	HeaderFrom  string      `json:"header_from,omitempty"`
	MessageID   string      `json:"header_message_id,omitempty"`
	Subject     string      `json:"subject,omitempty"`
	Size        int64       `json:"size"`
	Connector   string      `json:"connector_in,omitempty"`
	ClientIP    string      `json:"client_ip,omitempty"`
	AuthUser    string      `json:"auth_user,omitempty"`
	SessionID   string      `json:"session_id,omitempty"`
	Disposition string      `json:"disposition"`       // of the recipient that is worst off: bounced, expired, dropped, held, deferred, queued, moved, relayed
	Latency     float64     `json:"latency,omitempty"` // seconds from accepted to the last final fact, or to now while waiting
	Attempts    int         `json:"attempts"`
	Recipients  []Recipient `json:"recipients"`
}

// Page is what lists have in common.
type Page struct {
	Cursor  string   `json:"cursor,omitempty"`  // of the next page; empty at the end
	Cut     string   `json:"cut,omitempty"`     // why the search stopped early, or empty
	Hint    string   `json:"hint,omitempty"`    // why nothing may have been found, or empty
	Explain []string `json:"explain,omitempty"` // how it was answered, when asked
	TookMS  float64  `json:"took_ms"`
	// Estimate is about how many messages there are from this page on; it is
	// exact on the last page. Of messages only.
	Estimate int64 `json:"estimate,omitempty"`
}

// Messages answers GET /api/v1/messages.
type Messages struct {
	Messages []Message `json:"messages"`
	Page
}

// Events answers GET /api/v1/events. Each is a record as the log has it.
type Events struct {
	Events []json.RawMessage `json:"events"`
	Page
}

// Stage is a named duration of a message's life.
type Stage struct {
	Name    string    `json:"name"` // receive, accept, sched, backoff, dns, connect, banner, tls, auth, envelope, data, reply
	Start   time.Time `json:"start"`
	Seconds float64   `json:"seconds"`
	Attempt int       `json:"attempt,omitempty"`
}

// Entry is one fact in a message's timeline.
type Entry struct {
	Time    time.Time       `json:"time"`
	Event   string          `json:"event"`
	Summary string          `json:"summary"` // one sentence
	Level   string          `json:"level"`   // info, warning, error
	Stages  []Stage         `json:"stages,omitempty"`
	Record  json.RawMessage `json:"record"`
}

// Related is another message that belongs to this one.
type Related struct {
	QueueID string `json:"queue_id"`
	Kind    string `json:"kind"` // dsn, parent, split, resend, same_message_id
}

// Timeline answers GET /api/v1/messages/{queue_id}. Attempts, checks and changes
// tell what is in the timeline's facts by subject.
type Timeline struct {
	Message  Message           `json:"message"`
	Timeline []Entry           `json:"timeline"`
	Attempts []DeliveryAttempt `json:"attempts,omitempty"`
	Checks   []Check           `json:"checks,omitempty"`
	Changes  []Change          `json:"changes,omitempty"`
	Related  []Related         `json:"related,omitempty"`
}

// DeliveryAttempt is one try to hand a message on.
type DeliveryAttempt struct {
	Attempt     int       `json:"attempt"` // counts from 1
	Start       time.Time `json:"start"`   // when a worker took it up
	End         time.Time `json:"end"`
	Disposition string    `json:"disposition"` // of the recipient that is worst off
	Recipients  []string  `json:"recipients"`
	Connector   string    `json:"connector_out,omitempty"`
	RemoteHost  string    `json:"remote_host,omitempty"` // name, or address when there is none
	RemoteIP    string    `json:"remote_ip,omitempty"`
	LocalIP     string    `json:"local_ip,omitempty"`
	SessionID   string    `json:"session_id,omitempty"`
	Reused      bool      `json:"conn_reused,omitempty"` // the session had carried other messages
	TLS         string    `json:"tls,omitempty"`         // version and cipher; empty: in clear
	Code        int       `json:"code,omitempty"`
	Enhanced    string    `json:"enhanced,omitempty"`
	Reply       string    `json:"reply,omitempty"`
	Class       string    `json:"class,omitempty"`
	Next        time.Time `json:"next_attempt,omitzero"`
	Stages      []Stage   `json:"stages,omitempty"`
}

// Check is something about a message that was looked at, and what came of it.
type Check struct {
	Time    time.Time `json:"time"`
	Name    string    `json:"check"`             // authentication, transport, next_hop_tls
	Result  string    `json:"result"`            // pass, fail, none
	Detail  string    `json:"detail"`            // one line
	Attempt int       `json:"attempt,omitempty"` // of a next hop's
}

// Change is something about a message that the relay, or an operator, changed.
type Change struct {
	Time    time.Time `json:"time"`
	Name    string    `json:"change"`            // received, date, message_id, from, separator, fields, newlines, postmaster, converted, redirected, dropped
	Detail  string    `json:"detail"`            // one line
	Attempt int       `json:"attempt,omitempty"` // it is in what this attempt sent
	Actor   string    `json:"actor,omitempty"`
}

// TranscriptLine is one line of an SMTP conversation.
type TranscriptLine struct {
	Seq   int     `json:"seq,omitempty"` // counts from 1; where lines are left out, so are their numbers
	At    float64 `json:"at"`            // seconds since the conversation began
	From  string  `json:"from"`          // client, server, or note: what the relay knows about it
	Text  string  `json:"text"`
	Bytes int64   `json:"bytes,omitempty"` // octets on the wire, of a content for example
}

// Conversation is one SMTP session that handed a message in, or the part of one
// that was an attempt to hand it on.
type Conversation struct {
	Session     string           `json:"session_id"`
	QueueID     string           `json:"queue_id,omitempty"` // outbound
	Direction   string           `json:"direction"`          // inbound, outbound
	Connector   string           `json:"connector,omitempty"`
	Peer        string           `json:"peer"`
	AuthUser    string           `json:"auth_user,omitempty"`
	Time        time.Time        `json:"time"`
	Reason      string           `json:"reason,omitempty"`      // why it was kept: failed, uncertain, slow, client_ip, user, sender, all, sampled
	Attempt     int              `json:"attempt,omitempty"`     // outbound
	Disposition string           `json:"disposition,omitempty"` // outbound: of the attempt's worst recipient
	Said        int              `json:"said"`                  // how many lines there were
	Cut         int              `json:"cut,omitempty"`         // how many of them are left out
	Lines       []TranscriptLine `json:"lines"`
}

// ProtocolLine is one line of a conversation while it happens, as GET
// /api/v1/protocol/tail sends it.
type ProtocolLine struct {
	Time       time.Time `json:"ts"`
	Session    string    `json:"session_id,omitempty"` // empty before there is one
	QueueID    string    `json:"queue_id,omitempty"`   // outbound
	Direction  string    `json:"direction"`            // inbound, outbound
	Connector  string    `json:"connector"`
	ClientIP   string    `json:"client_ip,omitempty"`   // inbound
	RemoteName string    `json:"remote_name,omitempty"` // outbound
	RemoteIP   string    `json:"remote_ip,omitempty"`   // outbound
	TranscriptLine
}

// Transcript answers GET /api/v1/messages/{queue_id}/transcript and GET
// /api/v1/sessions/{session_id}/transcript.
type Transcript struct {
	Conversations []Conversation `json:"conversations"`
	Note          string         `json:"note,omitempty"` // why there is none
}

// AggregateQuery asks for numbers over facts. Without a filter on event, count,
// rate and latency are over outcomes (each recipient's final fact, and each
// deferral), and bytes over accepted messages. A fact about several recipients
// counts once for each.
type AggregateQuery struct {
	Query
	Metric string        // count, rate, bytes, latency_p50, latency_p90, latency_p95, latency_p99, latency_max; several of latency with commas, which cost as much as one
	By     []string      // [Dimensions]; at most two
	Step   time.Duration // 0: one value for the whole range
	Top    int           // groups; the rest is "other"; default 10, at most 100
}

// Series is one group of an aggregate, or of one of its metrics; those of a
// group follow each other, and the first says which groups are the greatest.
type Series struct {
	Metric string            `json:"metric,omitempty"` // only when several were asked for
	Labels map[string]string `json:"labels"`
	Points []Point           `json:"points"`
}

// Point is one value. Time is the start of its step.
type Point struct {
	Time  time.Time `json:"time"`
	Value *float64  `json:"value"` // null: nothing to compute it from
}

// Aggregate answers GET /api/v1/aggregate.
type Aggregate struct {
	Metric string   `json:"metric"`
	Unit   string   `json:"unit"`            // facts, per_second, bytes, seconds
	Step   float64  `json:"step"`            // seconds; 0: one value
	Exact  bool     `json:"exact"`           // false: percentiles come from histogram buckets
	Error  float64  `json:"error,omitempty"` // by what share a value may be off; 0 when exact
	Series []Series `json:"series"`
	Cut    string   `json:"cut,omitempty"`
	TookMS float64  `json:"took_ms"`
}

// Values answers GET /api/v1/values.
type Values struct {
	Values []string `json:"values"`
}

// Queue is one row of GET /api/v1/queues: a next hop.
type Queue struct {
	Name      string    `json:"queue"`
	Connector string    `json:"connector,omitempty"`
	State     string    `json:"state"` // ready, connecting, active, retry, held
	Messages  int       `json:"messages"`
	Queued    int       `json:"queued"`
	Active    int       `json:"active"`
	Deferred  int       `json:"deferred"`
	Held      int       `json:"held"`
	Bytes     int64     `json:"bytes"`
	OldestAge float64   `json:"oldest_age_seconds"`
	DueLag    float64   `json:"due_lag_seconds"`
	LastError string    `json:"last_error,omitempty"`
	LastClass string    `json:"last_class,omitempty"`
	LastRule  string    `json:"last_class_rule,omitempty"`
	LastMeans string    `json:"last_explanation,omitempty"` // one line: what the last error means, and who must act
	LastAt    time.Time `json:"last_at,omitzero"`
	Next      time.Time `json:"next_retry,omitzero"`
	InRate    float64   `json:"in_per_minute"`
	OutRate   float64   `json:"out_per_minute"`
	Velocity  float64   `json:"velocity"` // out minus in, per minute: negative grows
	HeldBy    string    `json:"held_by,omitempty"`
	HeldUntil time.Time `json:"held_until,omitzero"`

	// What the next hop gets: connections at once, as learned, and less when its replies asked for that.
	Connections  int       `json:"connections_limit,omitempty"`
	Backoff      string    `json:"backoff,omitempty"` // slow, single, pause
	BackoffRule  string    `json:"backoff_rule,omitempty"`
	BackoffWhy   string    `json:"backoff_why,omitempty"`
	BackoffUntil time.Time `json:"backoff_until,omitzero"`
	PerMinute    int       `json:"backoff_per_minute,omitempty"`
}

// Queues answers GET /api/v1/queues.
type Queues struct {
	Queues   []Queue `json:"queues"`
	Messages int     `json:"messages"` // in the whole queue; a message with two next hops counts once
	Accepts  bool    `json:"accepts"`
	Why      string  `json:"why,omitempty"` // it does not accept
	Kept     int     `json:"kept"`          // messages that were relayed and can be sent again
	KeptSize int64   `json:"kept_bytes"`
}

// QueuedRecipient is a recipient of a queued message.
type QueuedRecipient struct {
	Address  string    `json:"address"`
	State    string    `json:"state"`
	Queue    string    `json:"queue"`
	Attempts int       `json:"attempts"`
	Next     time.Time `json:"next_attempt,omitzero"`
	Reply    string    `json:"last_reply,omitempty"`
	Class    string    `json:"last_class,omitempty"`
	Host     string    `json:"last_host,omitempty"`
	Waits    string    `json:"waits,omitempty"` // why it waits without an attempt of its own: the next hop cannot be reached, or asked for a pause

	// What the last failure means.
	Rule        string `json:"last_class_rule,omitempty"`
	Permanence  string `json:"last_permanence,omitempty"`  // temporary, permanent
	Explanation string `json:"last_explanation,omitempty"` // one line: what it means, and who must act
}

// QueuedMessage is one row of GET /api/v1/queue/messages.
type QueuedMessage struct {
	QueueID    string            `json:"queue_id"`
	UID        string            `json:"message_uid"`
	Time       time.Time         `json:"time"`
	Expires    time.Time         `json:"expires"`
	Age        float64           `json:"age_seconds"`
	Sender     string            `json:"sender"`
	MessageID  string            `json:"header_message_id,omitempty"`
	Size       int64             `json:"size"`
	Connector  string            `json:"connector_in,omitempty"`
	ClientIP   string            `json:"client_ip,omitempty"`
	AuthUser   string            `json:"auth_user,omitempty"`
	State      string            `json:"state"`
	Priority   string            `json:"priority"`
	HeldBy     string            `json:"held_by,omitempty"`
	HeldWhy    string            `json:"held_reason,omitempty"`
	HeldUntil  time.Time         `json:"held_until,omitzero"`
	Recipients []QueuedRecipient `json:"recipients"`
}

// QueuedMessages answers GET /api/v1/queue/messages.
type QueuedMessages struct {
	Messages []QueuedMessage `json:"messages"`
	Cursor   string          `json:"cursor,omitempty"`
}

// QueueFilter selects queued messages.
type QueueFilter struct {
	QueueID   string `json:"queue_id,omitempty"`
	Sender    string `json:"sender,omitempty"`
	Recipient string `json:"recipient,omitempty"`
	Domain    string `json:"domain,omitempty"`
	Queue     string `json:"queue,omitempty"` // next hop
	Connector string `json:"connector,omitempty"`
	Receive   string `json:"connector_in,omitempty"` // receive connector
	State     string `json:"state,omitempty"`
	OlderThan string `json:"older_than,omitempty"` // duration, such as "1h"
	All       bool   `json:"all,omitempty"`        // needed when nothing else is set
}

// QueueAction is the body of POST /api/v1/queue/actions.
type QueueAction struct {
	Action string      `json:"action"` // hold, release, retry, reroute, redirect, remove, bounce, resend
	Filter QueueFilter `json:"filter"`
	Reason string      `json:"reason,omitempty"`
	Until  time.Time   `json:"until,omitzero"` // hold
	To     string      `json:"to,omitempty"`   // redirect: the host, with :port unless it is 25
	Via    string      `json:"via,omitempty"`  // redirect: the send connector whose settings count
	DSN    bool        `json:"dsn,omitempty"`  // remove: the sender gets a report
	DryRun bool        `json:"dry_run,omitempty"`
}

// QueueActed answers it.
type QueueActed struct {
	Messages int      `json:"messages"`
	Bytes    int64    `json:"bytes"`
	IDs      []string `json:"queue_ids,omitempty"` // at most 100
	DryRun   bool     `json:"dry_run"`
	Lasting  bool     `json:"lasting,omitempty"` // a hold, or its end, is for messages to come too
}

// Status answers GET /api/v1/status.
type Status struct {
	Version   string    `json:"version"`
	Hostname  string    `json:"hostname"`
	Node      string    `json:"node"`
	Started   time.Time `json:"started"`
	Config    string    `json:"config_revision"`
	Ready     bool      `json:"ready"`
	Why       string    `json:"why,omitempty"`
	Schema    int       `json:"schema"`
	Oldest    time.Time `json:"oldest_event,omitzero"`
	Events    int64     `json:"events"`
	IndexLag  float64   `json:"index_lag_seconds"`
	StoreSize int64     `json:"store_bytes"`
	Pressure  Pressure  `json:"pressure"`

	Tracking    string `json:"tracking"`               // on, off, degraded, broken
	TrackingWhy string `json:"tracking_why,omitempty"` // of degraded and broken
}

// States of the tracking store.
const (
	TrackingOn       = "on"
	TrackingOff      = "off"      // by configuration
	TrackingDegraded = "degraded" // it works, and lacks something
	TrackingBroken   = "broken"   // it could not be opened; mail is relayed without it
)

// Problem is an error answer (RFC 9457).
type Problem struct { //nolint:errname // its name in RFC 9457
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Field  string `json:"field,omitempty"` // the parameter that is wrong
	Hint   string `json:"hint,omitempty"`
}

// IsBadParameter reports whether p is of a wrong parameter: asked like this, the
// answer is always the same.
func (p *Problem) IsBadParameter() bool { return p.Type == badParameter }

// Error makes a Problem an error.
func (p *Problem) Error() string {
	s := p.Title
	if p.Detail != "" {
		s += ": " + p.Detail
	}
	if p.Hint != "" {
		s += " (" + p.Hint + ")"
	}
	return s
}
