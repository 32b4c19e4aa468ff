package mail

import (
	"fmt"
	"strings"
)

// Reply is an SMTP reply, sent or received (RFC 5321 section 4.2).
type Reply struct {
	Code     int    `json:"code,omitzero"`     // such as 250; 0 when there was no reply
	Enhanced string `json:"enhanced,omitzero"` // RFC 3463, such as "2.0.0", or empty
	Text     string `json:"text,omitzero"`     // without the codes; lines are joined by "\n"
}

// String is the reply in one line, such as "451 4.7.1 try again".
func (r Reply) String() string {
	var b strings.Builder
	if r.Code != 0 {
		fmt.Fprintf(&b, "%d", r.Code)
	}
	for _, s := range []string{r.Enhanced, strings.ReplaceAll(r.Text, "\n", " ")} {
		if s != "" {
			if b.Len() > 0 {
				b.WriteByte(' ')
			}
			b.WriteString(s)
		}
	}
	return b.String()
}

// Temporary reports whether the peer may try again: a 4xx reply, or none.
func (r Reply) Temporary() bool { return r.Code/100 == 4 || r.Code == 0 }

// ReplyError is a failure that has an SMTP reply. Reply is for the peer, and
// tells it no more than it needs; Err is for the operator, and says why.
type ReplyError struct {
	Reply  Reply
	Reason string // reason class for records and metrics, such as "relay_denied"; a closed set (package event)
	Err    error  // may be nil
}

func (e *ReplyError) Error() string {
	if e.Err != nil {
		return e.Err.Error()
	}
	return e.Reply.String()
}

func (e *ReplyError) Unwrap() error { return e.Err }

// Temporary reports whether the same request may succeed later.
func (e *ReplyError) Temporary() bool { return e.Reply.Temporary() }

// Refuse makes a ReplyError from a code, an enhanced code, a reason class and
// the text for the peer.
func Refuse(code int, enhanced, reason, text string) *ReplyError {
	return &ReplyError{Reply: Reply{Code: code, Enhanced: enhanced, Text: text}, Reason: reason}
}
