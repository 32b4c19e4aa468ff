package mail

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Body says what the content may hold (RFC 6152, RFC 3030).
type Body uint8

// The values of the BODY parameter. The zero Body is 7BIT.
const (
	Body7Bit Body = iota
	Body8BitMIME
	BodyBinaryMIME
)

func (b Body) String() string {
	if b > BodyBinaryMIME {
		return fmt.Sprintf("body(%d)", uint8(b))
	}
	return [...]string{"7BIT", "8BITMIME", "BINARYMIME"}[b]
}

// Notify is when the sender wants a DSN for a recipient (RFC 3461 section
// 4.1). The zero Notify means that nothing was asked: failure and delay.
type Notify uint8

// The bits of NOTIFY. NotifyNever stands alone.
const (
	NotifyNever Notify = 1 << iota
	NotifySuccess
	NotifyFailure
	NotifyDelay
)

// String writes n as the NOTIFY parameter's value, or "" for the zero Notify.
func (n Notify) String() string {
	var words []string
	for _, w := range []struct {
		bit  Notify
		word string
	}{{NotifyNever, "NEVER"}, {NotifySuccess, "SUCCESS"}, {NotifyFailure, "FAILURE"}, {NotifyDelay, "DELAY"}} {
		if n&w.bit != 0 {
			words = append(words, w.word)
		}
	}
	return strings.Join(words, ",")
}

// Wants reports whether a DSN of kind k is wanted under n, with the defaults
// of RFC 3461 section 4.1 for the zero Notify: failure and delay.
func (n Notify) Wants(k Notify) bool {
	if n == 0 {
		return k == NotifyFailure || k == NotifyDelay
	}
	return n&k != 0
}

// Recipient is one forward-path and its DSN parameters.
type Recipient struct {
	Address Address `json:"address"`
	Notify  Notify  `json:"notify,omitzero"`
	ORcpt   string  `json:"orcpt,omitzero"` // RFC 3461 section 4.2, such as "rfc822;user@example.com"; decoded
}

// Envelope is what MAIL and RCPT said (RFC 5321 section 2.3.1).
type Envelope struct {
	Sender     Address     `json:"sender"`
	Recipients []Recipient `json:"recipients"`
	Size       int64       `json:"size,omitzero"` // octets announced by SIZE=; 0 when unknown
	Body       Body        `json:"body,omitzero"`
	UTF8       bool        `json:"utf8,omitzero"`  // SMTPUTF8 was given (RFC 6531)
	Ret        string      `json:"ret,omitzero"`   // RFC 3461 section 4.3: "FULL", "HDRS" or ""
	EnvID      string      `json:"envid,omitzero"` // RFC 3461 section 4.4, xtext decoded
	Auth       string      `json:"auth,omitzero"`  // RFC 4954 section 5: the submitter, xtext decoded; recorded, not trusted

	RequireTLS  bool      `json:"require_tls,omitzero"`  // RFC 8689: over verified TLS to hosts that promise the same, or not at all
	TLSOptional bool      `json:"tls_optional,omitzero"` // RFC 8689 section 5: whatever the recipients' domain publishes about TLS
	Priority    int8      `json:"mt_priority,omitzero"`  // RFC 6710: -9 to 9
	Release     time.Time `json:"release,omitzero"`      // RFC 4865: not to be sent before; zero: at once
	DeliverBy   DeliverBy `json:"deliver_by,omitzero"`   // RFC 2852: by when it is to be delivered
}

// DeliverBy is what BY= asks for (RFC 2852 section 4). The zero DeliverBy asks
// for nothing.
type DeliverBy struct {
	Deadline time.Time `json:"deadline"`
	Return   bool      `json:"return,omitzero"` // by-mode R: what is not delivered by then goes back; otherwise (N) the sender is told that it is late
	Trace    bool      `json:"trace,omitzero"`  // by-trace T: the sender is told of each relay
}

// IsZero reports whether nothing is asked for.
func (b DeliverBy) IsZero() bool { return b.Deadline.IsZero() }

// Value is the value of BY= for a host that is told of b at now. A time of less
// than a second in by-mode R has passed: then ok is false.
func (b DeliverBy) Value(now time.Time) (value string, ok bool) {
	left := int64(b.Deadline.Sub(now).Truncate(time.Second) / time.Second)
	left = min(max(left, -maxByTime), maxByTime)
	mode := ";N"
	if b.Return {
		mode = ";R"
	}
	if b.Trace {
		mode += "T"
	}
	return strconv.FormatInt(left, 10) + mode, !b.Return || left > 0
}

// maxByTime is the largest by-time: nine digits.
const maxByTime = 999_999_999

// parseDeliverBy parses the value of BY=, such as "120;R".
func parseDeliverBy(val string, now time.Time) (DeliverBy, bool) {
	seconds, mode, _ := strings.Cut(strings.ToUpper(val), ";")
	digits := strings.TrimLeft(seconds, "+-")
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil || len(digits) > 9 || len(seconds)-len(digits) > 1 {
		return DeliverBy{}, false
	}
	b := DeliverBy{Deadline: now.UTC().Truncate(time.Microsecond).Add(time.Duration(n) * time.Second)}
	mode, b.Trace = strings.CutSuffix(mode, "T")
	b.Return = mode == "R"
	if mode != "R" && mode != "N" || b.Return && n <= 0 {
		return DeliverBy{}, false
	}
	return b, true
}

// Queueing is the priority that e asks for, as the queue knows it.
func (e *Envelope) Queueing() Priority {
	switch {
	case e.Priority > 0:
		return PriorityHigh
	case e.Priority < 0:
		return PriorityLow
	}
	return PriorityNormal
}

// ErrUnknownParameter is wrapped by [ParseMail] and [ParseRcpt] when a
// parameter is not known: reply 555 (RFC 5321 section 4.1.1.11).
var ErrUnknownParameter = errors.New("unknown parameter")

// ErrParameter is wrapped when a known parameter has a bad value or is given
// twice: reply 501 5.5.4.
var ErrParameter = errors.New("bad parameter")

// ParseMail parses what follows "MAIL" in a command line, such as
// "FROM:<a@example.com> SIZE=1000 BODY=8BITMIME". Recipients stay empty.
func ParseMail(args string) (Envelope, error) {
	var e Envelope
	addr, params, err := parsePathArgs("FROM:", args)
	if err != nil {
		return e, err
	}
	e.Sender = addr
	if !addr.IsNull() && addr.Domain == "" {
		return e, fmt.Errorf("%w: sender has no domain", ErrAddressSyntax)
	}
	err = eachParam(params, func(key, val string, has bool) error {
		switch key {
		case "SIZE":
			n, err := strconv.ParseInt(val, 10, 64)
			if err != nil || len(val) > 20 || val[0] == '+' || val[0] == '-' {
				return errBadValue
			}
			e.Size = n
		case "BODY":
			switch strings.ToUpper(val) {
			case "7BIT":
				e.Body = Body7Bit
			case "8BITMIME":
				e.Body = Body8BitMIME
			case "BINARYMIME":
				e.Body = BodyBinaryMIME
			default:
				return errBadValue
			}
		case "SMTPUTF8":
			if has {
				return errBadValue
			}
			e.UTF8 = true
		case "RET":
			e.Ret = strings.ToUpper(val)
			if e.Ret != "FULL" && e.Ret != "HDRS" {
				return errBadValue
			}
		case "ENVID":
			s, err := DecodeXText(val)
			if err != nil || s == "" || len(val) > 100 {
				return errBadValue
			}
			e.EnvID = s
		case "AUTH":
			s, err := DecodeXText(val)
			if err != nil || s == "" {
				return errBadValue
			}
			e.Auth = s
		case "REQUIRETLS": // RFC 8689 section 2
			if has {
				return errBadValue
			}
			e.RequireTLS = true
		case "MT-PRIORITY": // RFC 6710 section 4
			n, err := strconv.Atoi(val)
			if err != nil || n < -9 || n > 9 || val[0] == '+' || len(val) > 2 {
				return errBadValue
			}
			e.Priority = int8(n)
		case "HOLDFOR": // RFC 4865 section 5: seconds, at most nine digits
			n, err := strconv.ParseUint(val, 10, 32)
			if err != nil || len(val) > 9 || n == 0 || !e.Release.IsZero() {
				return errBadValue
			}
			e.Release = time.Now().UTC().Truncate(time.Microsecond).Add(time.Duration(n) * time.Second)
		case "HOLDUNTIL":
			at, err := time.Parse(time.RFC3339, strings.ToUpper(val))
			if err != nil || !e.Release.IsZero() || len(val) > 40 {
				return errBadValue
			}
			e.Release = at.UTC()
		case "BY": // RFC 2852 section 4
			by, ok := parseDeliverBy(val, time.Now())
			if !ok {
				return errBadValue
			}
			e.DeliverBy = by
		default:
			return ErrUnknownParameter
		}
		return nil
	})
	if err == nil && !e.UTF8 && !e.Sender.ASCII() {
		err = ErrAddressUTF8
	}
	return e, err
}

// ParseRcpt parses what follows "RCPT" in a command line, such as
// "TO:<b@example.com> NOTIFY=FAILURE". Set smtputf8 when MAIL gave SMTPUTF8.
func ParseRcpt(args string, smtputf8 bool) (Recipient, error) {
	var r Recipient
	addr, params, err := parsePathArgs("TO:", args)
	if err != nil {
		return r, err
	}
	if addr.IsNull() {
		return r, fmt.Errorf("%w: null forward-path", ErrAddressSyntax)
	}
	r.Address = addr
	err = eachParam(params, func(key, val string, _ bool) error {
		switch key {
		case "NOTIFY":
			for w := range strings.SplitSeq(strings.ToUpper(val), ",") {
				bit, ok := map[string]Notify{"NEVER": NotifyNever, "SUCCESS": NotifySuccess, "FAILURE": NotifyFailure, "DELAY": NotifyDelay}[w]
				if !ok || r.Notify&bit != 0 {
					return errBadValue
				}
				r.Notify |= bit
			}
			if r.Notify&NotifyNever != 0 && r.Notify != NotifyNever {
				return errBadValue
			}
		case "ORCPT":
			s, err := parseORcpt(val)
			if err != nil {
				return errBadValue
			}
			r.ORcpt = s
		default:
			return ErrUnknownParameter
		}
		return nil
	})
	if err == nil && !smtputf8 && !addr.ASCII() {
		err = ErrAddressUTF8
	}
	return r, err
}

var errBadValue = errors.New("bad value")

// isAtom reports whether s can be an address type (RFC 3461 section 4.2) and be
// written as it is.
func isAtom(s string) bool {
	for i := range len(s) {
		if !isAtext(s[i]) || s[i] == '+' || s[i] == '=' {
			return false
		}
	}
	return s != ""
}

func parsePathArgs(keyword, args string) (Address, string, error) {
	args = strings.TrimLeft(args, " ")
	if len(args) < len(keyword) || !strings.EqualFold(args[:len(keyword)], keyword) {
		return Address{}, "", fmt.Errorf("%w: expected %s<address>", ErrAddressSyntax, keyword)
	}
	// Some senders put a space after the colon; RFC 5321 section 3.3 forbids it, all servers bear it.
	addr, rest, err := ParsePath(strings.TrimLeft(args[len(keyword):], " "))
	if err != nil {
		return Address{}, "", err
	}
	if rest != "" && rest[0] != ' ' {
		return Address{}, "", fmt.Errorf("%w: text after the path", ErrAddressSyntax)
	}
	return addr, rest, nil
}

func eachParam(params string, f func(key, val string, has bool) error) error {
	seen := map[string]bool{}
	for word := range strings.FieldsFuncSeq(params, func(r rune) bool { return r == ' ' }) {
		key, val, has := strings.Cut(word, "=")
		key = strings.ToUpper(key)
		if seen[key] || hasControl(word) {
			return fmt.Errorf("%w: %s", ErrParameter, clip(key))
		}
		seen[key] = true
		if has && val == "" {
			return fmt.Errorf("%w: %s has no value", ErrParameter, clip(key))
		}
		switch err := f(key, val, has); {
		case errors.Is(err, ErrUnknownParameter):
			return fmt.Errorf("%w: %s", ErrUnknownParameter, clip(key))
		case err != nil:
			return fmt.Errorf("%w: %s", ErrParameter, clip(key))
		}
	}
	return nil
}

// EncodeXText encodes s as xtext (RFC 3461 section 4).
func EncodeXText(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= '!' && c <= '~' && c != '+' && c != '=' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "+%02X", c)
		}
	}
	return b.String()
}

// DecodeXText decodes xtext (RFC 3461 section 4). It refuses what decodes to
// control characters or is not UTF-8, which no honest ENVID, ORCPT or AUTH is,
// and which records could not hold unchanged.
func DecodeXText(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '+':
			if i+2 >= len(s) {
				return "", fmt.Errorf("%w: xtext", ErrParameter)
			}
			n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil || strings.ToUpper(s[i+1:i+3]) != s[i+1:i+3] {
				return "", fmt.Errorf("%w: xtext", ErrParameter)
			}
			b.WriteByte(byte(n))
			i += 2
		case c < '!' || c == '=' || c == 0x7f:
			return "", fmt.Errorf("%w: xtext", ErrParameter)
		default:
			b.WriteByte(c)
		}
	}
	if hasControl(b.String()) || !utf8.ValidString(b.String()) {
		return "", fmt.Errorf("%w: xtext", ErrParameter)
	}
	return b.String(), nil
}
