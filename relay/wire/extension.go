package wire

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"waybill/relay/mail"
)

// Extensions are the SMTP extensions that a connection announces and takes
// (RFC 5321 section 2.2). The zero Extensions are the usual ones, see
// [ExtensionNames]; STARTTLS and AUTH follow from the connection's options.
type Extensions struct{ on, off uint32 }

// MaxHold is how far in the future a message may ask to be released (RFC 4865).
const MaxHold = 7 * 24 * time.Hour

// The extensions, in the order of the EHLO reply.
const (
	pipelining = iota
	sizeExtension
	eightBitMIME
	smtpUTF8
	chunking
	binaryMIME
	dsnExtension
	requireTLS
	mtPriority
	futureRelease
	deliverBy
	limits
	enhancedCodes
)

// extras are announced only when asked for: binary content is never converted,
// and few next hops take it; mail that waits here is for submission; and few
// next hops know DELIVERBY, so that by-mode R mostly means to come back.
const extras = 1<<binaryMIME | 1<<futureRelease | 1<<deliverBy

// extension is one that this package can announce.
type extension struct {
	word string
	// offer tells whether the extension can be had now, and what follows its
	// name; nil: always, and nothing.
	offer func(c *Conn) (args string, ok bool)
	// What uses it: a parameter of an extension that is not announced is an
	// unknown one (RFC 5321 section 4.1.1.11).
	mail func(e *mail.Envelope) bool
	rcpt func(r *mail.Recipient) bool
}

// extensionTable lists all extensions. To add one, add its line here; BDAT and
// enhanced codes ask [Extensions.has].
var extensionTable = [...]extension{
	pipelining:    {word: "PIPELINING"},                                                                                                         // RFC 2920
	sizeExtension: {word: "SIZE", offer: (*Conn).offerSize, mail: func(e *mail.Envelope) bool { return e.Size > 0 }},                            // RFC 1870
	eightBitMIME:  {word: "8BITMIME", mail: func(e *mail.Envelope) bool { return e.Body == mail.Body8BitMIME }},                                 // RFC 6152
	smtpUTF8:      {word: "SMTPUTF8", mail: func(e *mail.Envelope) bool { return e.UTF8 }},                                                      // RFC 6531
	chunking:      {word: "CHUNKING"},                                                                                                           // RFC 3030
	binaryMIME:    {word: "BINARYMIME", offer: (*Conn).offerBinary, mail: func(e *mail.Envelope) bool { return e.Body == mail.BodyBinaryMIME }}, // RFC 3030
	dsnExtension: {
		word: "DSN", // RFC 3461
		mail: func(e *mail.Envelope) bool { return e.Ret != "" || e.EnvID != "" },
		rcpt: func(r *mail.Recipient) bool { return r.Notify != 0 || r.ORcpt != "" },
	},
	requireTLS:    {word: "REQUIRETLS", offer: (*Conn).offerRequireTLS, mail: func(e *mail.Envelope) bool { return e.RequireTLS }},        // RFC 8689
	mtPriority:    {word: "MT-PRIORITY", mail: func(e *mail.Envelope) bool { return e.Priority != 0 }},                                    // RFC 6710
	futureRelease: {word: "FUTURERELEASE", offer: (*Conn).offerRelease, mail: func(e *mail.Envelope) bool { return !e.Release.IsZero() }}, // RFC 4865
	deliverBy:     {word: "DELIVERBY", mail: func(e *mail.Envelope) bool { return !e.DeliverBy.IsZero() }},                                // RFC 2852
	limits:        {word: "LIMITS", offer: (*Conn).offerLimits},                                                                           // RFC 9422
	enhancedCodes: {word: "ENHANCEDSTATUSCODES"},                                                                                          // RFC 2034
}

func (c *Conn) offerSize() (string, bool) {
	if c.opts.MaxSize > 0 {
		return strconv.FormatInt(c.opts.MaxSize, 10), true
	}
	return "", true
}

// offerRequireTLS: it is announced under TLS only (RFC 8689 section 3).
func (c *Conn) offerRequireTLS() (string, bool) { return "", c.tls != nil }

func (c *Conn) offerRelease() (string, bool) { // RFC 4865 section 3
	return fmt.Sprintf("%d %s", int64(MaxHold/time.Second), time.Now().Add(MaxHold).UTC().Format(time.RFC3339)), true
}

func (c *Conn) offerLimits() (string, bool) {
	n := c.opts.MaxRecipients
	return "RCPTMAX=" + strconv.Itoa(n), n > 0 && n < 1e6 // six digits (RFC 9422 section 3)
}

// offerBinary: without chunks there is no way to send it.
func (c *Conn) offerBinary() (string, bool) { return "", c.opts.Extensions.has(chunking) }

// ExtensionNames are the extensions that are announced when nothing else is
// said, and those that can be announced too.
func ExtensionNames() (defaults, others []string) {
	for i := range extensionTable {
		if extras&(1<<i) == 0 {
			defaults = append(defaults, extensionTable[i].word)
		} else {
			others = append(others, extensionTable[i].word)
		}
	}
	return defaults, others
}

// NewExtensions are the default extensions with some more and without some.
func NewExtensions(with, without []string) (Extensions, error) {
	var e Extensions
	for k, list := range [][]string{with, without} {
		for _, w := range list {
			i := slices.IndexFunc(extensionTable[:], func(x extension) bool { return strings.EqualFold(x.word, w) })
			if i < 0 {
				defaults, others := ExtensionNames()
				return e, fmt.Errorf("unknown extension %.40q: want one of %s", w, strings.Join(append(defaults, others...), ", "))
			}
			if k == 0 {
				e.on |= 1 << i
			} else {
				e.off |= 1 << i
			}
		}
	}
	return e, nil
}

// has reports whether an extension is among e.
func (e Extensions) has(i int) bool {
	return e.off&(1<<i) == 0 && (extras&(1<<i) == 0 || e.on&(1<<i) != 0)
}

// announced are the lines of the EHLO reply that tell of extensions.
func (c *Conn) announced() (lines []string) {
	for i := range extensionTable {
		x := &extensionTable[i]
		if !c.opts.Extensions.has(i) {
			continue
		}
		line := x.word
		if x.offer != nil {
			args, ok := x.offer(c)
			if !ok {
				continue
			}
			if args != "" {
				line += " " + args
			}
		}
		lines = append(lines, line)
	}
	return lines
}

// mayMail looks at what an envelope asks of this connection.
func (c *Conn) mayMail(env *mail.Envelope) *mail.ReplyError {
	if env.RequireTLS && c.tls == nil && c.opts.Extensions.has(requireTLS) {
		return mail.Refuse(530, "5.7.10", "tls_required", "REQUIRETLS needs TLS") // RFC 8689 section 3
	}
	for i := range extensionTable {
		if x := &extensionTable[i]; x.mail != nil && x.mail(env) && !c.opts.Extensions.has(i) {
			return syntax(mail.ErrUnknownParameter, "")
		}
	}
	switch {
	case env.Body == mail.BodyBinaryMIME && !c.opts.Extensions.has(chunking):
		return syntax(mail.ErrUnknownParameter, "")
	case time.Until(env.Release) > MaxHold: // RFC 4865 section 4
		return mail.Refuse(501, "5.5.4", "syntax", "held for too long")
	}
	return nil
}

// mayRcpt looks at what a recipient asks of this connection.
func (c *Conn) mayRcpt(r *mail.Recipient) *mail.ReplyError {
	for i := range extensionTable {
		if x := &extensionTable[i]; x.rcpt != nil && x.rcpt(r) && !c.opts.Extensions.has(i) {
			return syntax(mail.ErrUnknownParameter, "")
		}
	}
	return nil
}
