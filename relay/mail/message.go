package mail

import (
	"net/netip"
	"time"
)

// Priority orders messages that are due at the same time.
type Priority int8

// The priorities. The zero Priority is normal.
const (
	PriorityLow    Priority = -1
	PriorityNormal Priority = 0
	PriorityHigh   Priority = 1
)

func (p Priority) String() string {
	switch {
	case p < 0:
		return "low"
	case p > 0:
		return "high"
	}
	return "normal"
}

// MarshalText writes "low", "normal" or "high".
func (p Priority) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what [Priority.MarshalText] wrote; any other word is normal.
func (p *Priority) UnmarshalText(b []byte) error {
	switch string(b) {
	case "low":
		*p = PriorityLow
	case "high":
		*p = PriorityHigh
	default:
		*p = PriorityNormal
	}
	return nil
}

// Origin says where a message came from: the session that handed it in. All
// of it may be empty for a message that the relay made itself, as a DSN.
type Origin struct {
	Session     string         `json:"session,omitzero"`
	Connector   string         `json:"connector,omitzero"` // receive connector
	Client      netip.AddrPort `json:"client,omitzero"`
	ClientName  string         `json:"client_name,omitzero"` // verified reverse name, or empty
	Helo        string         `json:"helo,omitzero"`
	User        string         `json:"user,omitzero"` // authenticated identity
	Mechanism   string         `json:"mechanism,omitzero"`
	Protocol    string         `json:"protocol,omitzero"` // RFC 3848: SMTP, ESMTP, ESMTPA, ESMTPS, ESMTPSA, or with UTF8 (RFC 6531)
	TLSVersion  string         `json:"tls_version,omitzero"`
	TLSCipher   string         `json:"tls_cipher,omitzero"`
	MailAt      time.Time      `json:"mail_at,omitzero"`       // MAIL was read
	DataEndedAt time.Time      `json:"data_ended_at,omitzero"` // the end of the content was read
}

// Header is what the relay reads of the content's header section. Values are
// bounded and hold no control characters.
type Header struct {
	MessageID string `json:"message_id,omitzero"` // with its angle brackets
	From      string `json:"from,omitzero"`       // the first address of From:
	Subject   string `json:"subject,omitzero"`    // decoded; the record keeps it only when configuration says so
	Received  int    `json:"received,omitzero"`   // how many Received: fields (RFC 5321 section 6.3)
	Bytes     int    `json:"bytes,omitzero"`      // size of the header section in octets
}

// Draft is a message on its way into the queue: everything but its content.
// Trace is written in front of the content when it leaves, and is not part of
// the stored content.
type Draft struct {
	ID       QueueID
	UID      string // UUIDv7, stable over splits and moves; empty means a new one
	Parent   QueueID
	Envelope Envelope
	Origin   Origin
	Header   Header
	Priority Priority
	Changed  string // what was changed of envelope and content before they were handed over; words of event.Changes, by space
	Trace    []byte // header fields to prepend, each ending in CRLF: Received, and Return-Path never
	SevenBit bool   // the content is known to be of octets below 128; of a message that was queued before, the content itself says so
}
