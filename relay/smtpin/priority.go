package smtpin

import (
	"strings"

	"waybill/relay/mail"
)

// Priority says how urgent messages are whose envelope does not say it (RFC 6710).
// The zero Priority is normal, whatever their header fields say.
type Priority struct {
	Default mail.Priority
	Headers bool // Importance, Priority and X-Priority count, in this order
}

// priority is how urgent the message is: as MT-PRIORITY says, else as its header
// fields say, else as its connector does. A client that may not raise it by
// MT-PRIORITY may not by header fields.
func (tx *transaction) priority() mail.Priority {
	if tx.env.Priority != 0 {
		return tx.env.Queueing()
	}
	rules := &tx.s.c.Priority
	if !rules.Headers {
		return rules.Default
	}
	p, ok := tx.head.priority()
	if !ok || p > rules.Default && !tx.s.urgent() {
		return rules.Default
	}
	return p
}

// urgent reports whether the client may send what overtakes others: strangers do
// not (RFC 6710 section 5.2).
func (s *session) urgent() bool { return s.user != "" || s.may().Relay }

// priorityFields are the header fields that say how urgent a message is.
var priorityFields = [...]struct {
	field field
	words map[string]mail.Priority
}{
	{importance, map[string]mail.Priority{"high": mail.PriorityHigh, "normal": mail.PriorityNormal, "low": mail.PriorityLow}},       // RFC 2156 section 5.3.4
	{urgency, map[string]mail.Priority{"urgent": mail.PriorityHigh, "normal": mail.PriorityNormal, "non-urgent": mail.PriorityLow}}, // RFC 2156 section 5.3.6
	{xPriority, map[string]mail.Priority{
		"1": mail.PriorityHigh, "2": mail.PriorityHigh, "3": mail.PriorityNormal, "4": mail.PriorityLow, "5": mail.PriorityLow,
	}}, // of mail programs: a number, often with a word after it
}

// priority is what the header fields say, of which the first with a meaning counts.
func (h *headerScanner) priority() (p mail.Priority, ok bool) {
	for _, f := range &priorityFields {
		if !h.have[f.field] {
			continue
		}
		word, _, _ := strings.Cut(strings.ToLower(unfold(h.values[f.field])), " ")
		word, _, _ = strings.Cut(word, "(")
		if p, ok := f.words[word]; ok {
			return p, true
		}
	}
	return mail.PriorityNormal, false
}
