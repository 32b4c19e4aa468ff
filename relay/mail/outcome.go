package mail

import (
	"fmt"
	"time"
)

// Disposition is what became of one recipient, so far or for good.
type Disposition uint8

// The dispositions. Queued, Deferred and Held are states of waiting; the
// others are final, and each recipient gets exactly one of them.
const (
	Queued   Disposition = iota + 1 // accepted, not yet attempted
	Deferred                        // transient failure, to be tried again
	Held                            // stopped by an operator
	Relayed                         // the next hop took responsibility (RFC 3464 "relayed")
	Bounced                         // permanent failure
	Expired                         // the lifetime ended
	Dropped                         // removed by an operator or by policy, without a DSN
	Moved                           // handed to another node or queue
)

var dispositions = [...]string{"", "queued", "deferred", "held", "relayed", "bounced", "expired", "dropped", "moved"}

// Dispositions lists all words that [Disposition.String] gives, in order.
func Dispositions() []string { return dispositions[1:] }

func (d Disposition) String() string {
	if int(d) < len(dispositions) {
		return dispositions[d]
	}
	return fmt.Sprintf("disposition(%d)", uint8(d))
}

// Final reports whether nothing more will happen to the recipient here.
func (d Disposition) Final() bool { return d >= Relayed && d <= Moved }

// MarshalText writes the disposition's word.
func (d Disposition) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a disposition's word.
func (d *Disposition) UnmarshalText(b []byte) error {
	for i, s := range dispositions {
		if s == string(b) {
			*d = Disposition(i)
			return nil
		}
	}
	return fmt.Errorf("unknown disposition %q", b)
}

// Class says why an attempt failed. The set is closed, so that it can be a
// metric label.
type Class string

// The failure classes.
const (
	ClassNone             Class = ""
	ClassInvalidRecipient Class = "invalid_recipient"
	ClassMailboxFull      Class = "mailbox_full"
	ClassMailboxInactive  Class = "mailbox_inactive"
	ClassBadDomain        Class = "bad_domain"
	ClassDNS              Class = "dns"
	ClassConnect          Class = "connect"
	ClassTimeout          Class = "timeout"
	ClassTLS              Class = "tls"
	ClassAuth             Class = "auth"
	ClassGreylist         Class = "greylist"
	ClassThrottled        Class = "throttled"
	ClassReputation       Class = "reputation"
	ClassPolicy           Class = "policy"
	ClassContent          Class = "content"
	ClassSize             Class = "size"
	ClassOther            Class = "other"
)

// Classes lists every failure class.
func Classes() []Class {
	return []Class{
		ClassInvalidRecipient, ClassMailboxFull, ClassMailboxInactive, ClassBadDomain, ClassDNS, ClassConnect, ClassTimeout, ClassTLS,
		ClassAuth, ClassGreylist, ClassThrottled, ClassReputation, ClassPolicy, ClassContent, ClassSize, ClassOther,
	}
}

// Permanence says whether a failure goes away when one waits. It says what the
// failure means, while the disposition says what is done about it: a next hop
// may say 550 about a limit that ends tomorrow.
type Permanence string

// The permanences.
const (
	Temporary Permanence = "temporary" // goes away by itself
	Permanent Permanence = "permanent" // stays until somebody acts
)

// Outcome is what one attempt meant for one recipient.
type Outcome struct {
	Recipient   Address
	Disposition Disposition // Relayed, Deferred or Bounced; Expired when the lifetime has ended
	Reply       Reply       // the next hop's words, or ours when it said none
	Remote      bool        // Reply came from the next hop
	Verb        string      // the command that was answered: CONNECT, EHLO, STARTTLS, AUTH, MAIL, RCPT, DATA, "." or empty
	Class       Class       // why it failed; empty when relayed
	ClassRule   string      // which rule decided the class
	Permanence  Permanence  // whether the failure lasts; empty when relayed
	Explanation string      // what the failure means and who must act, in one line for operators; empty when relayed
	Uncertain   bool        // the connection broke after the final dot: the next hop may have the message
}

// Stages are the durations of one attempt. They are zero where a stage did not
// happen, as DNS, Connect, Banner, TLS and Auth on a reused connection.
type Stages struct {
	DNS      time.Duration
	Connect  time.Duration
	Banner   time.Duration // connected to greeting and EHLO answered
	TLS      time.Duration
	Auth     time.Duration
	Envelope time.Duration // MAIL to the last RCPT answered
	Data     time.Duration // DATA to the final dot written
	Reply    time.Duration // final dot to its reply
}

// Sum is the time of all stages.
func (s Stages) Sum() time.Duration {
	return s.DNS + s.Connect + s.Banner + s.TLS + s.Auth + s.Envelope + s.Data + s.Reply
}
