package smtpin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"waybill/relay/auth"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/policy"
	"waybill/relay/pressure"
	"waybill/relay/throttle"
	"waybill/relay/transcript"
	"waybill/relay/wire"
)

// An Acceptor takes responsibility for messages. Its errors may be
// [*mail.ReplyError]; any other error is answered 451 4.3.0.
type Acceptor interface {
	// Begin prepares for one content. sizeHint is what the client announced, or 0.
	Begin(ctx context.Context, sizeHint int64) (Incoming, error)
}

// An Incoming takes one content. It is ended by Commit or by Abort, once. One that
// is a [wire.Place] too has the content received where it goes.
type Incoming interface {
	io.Writer
	// Commit returns nil when message and content are on stable storage. After
	// an error the message is not queued. It keeps nothing of d.Trace, whose memory
	// is used again.
	Commit(ctx context.Context, d mail.Draft) error
	Abort()
}

// Recipients know which recipients there are. Unlike package policy they may
// have to ask for it.
type Recipients interface {
	// Check returns nil to accept.
	Check(ctx context.Context, to mail.Address) *mail.ReplyError
}

// Options configure a Server.
type Options struct {
	Hostname     string // our name, in greetings and in Received fields
	Connectors   []Connector
	Acceptor     Acceptor
	Emitter      event.Emitter
	DrainTimeout time.Duration     // how long transactions in hand may take at the end; zero means 25s
	Ready        func() error      // nil, or asked before each transaction: an error answers 452 4.3.1
	Lockout      *throttle.Lockout // holds off who guesses passwords; nil: with its defaults
	Tap          *transcript.Tap   // nil, or where conversations can be watched
	Throttles    *throttle.Set     // rules beside the connectors' own limits; nil: none
	Pressure     *pressure.Monitor // nil: there is always enough of everything
	MaxSessions  int               // of all connectors together: what file descriptors allow; zero: no limit
	Turns        *throttle.Turns   // how many contents of all connectors are taken in at a time; nil: any number

	patience time.Duration // with idle sessions when others want their places; zero means crowded
}

// A Connector is one receive connector: where it listens, for whom, and what
// they may do.
type Connector struct {
	Name         string
	Revision     string         // of the configuration that it is from, for facts; empty: the Emitter's
	Hostname     string         // our name to its clients; empty: that of Options
	Listen       []string       // host:port; port 0 is a free one
	RemoteRanges []netip.Prefix // whom it is for; empty: everybody
	Banner       string         // in the greeting, after our name; empty means "ESMTP Waybill"

	ProxyTrusted  []netip.Prefix // peers that must begin with a PROXY header, and are believed what it says
	ProxyTimeout  time.Duration  // how long to wait for it; zero means 5s
	ClientTrusted []netip.Prefix // clients that may say by XCLIENT for whom they speak

	TLSMode     string // "off", "starttls" or "implicit"; empty means off
	TLSRequired bool   // no MAIL and no AUTH before TLS
	TLS         *tls.Config
	ClientNames []string // names that clients' certificates are looked at for; facts say whether one is there

	AuthRequired  bool
	Mechanisms    []string // which of Auth's are offered; empty: all but the legacy ones
	AuthBeforeTLS bool     // offer them without TLS too
	Auth          *auth.Authenticator
	Lookup        func(user string) (auth.Identity, error) // what is known of a user that XCLIENT names; nil: nothing
	Binding       auth.Binding                             // whether logins are bound to their TLS channel; empty means that they may be
	Certificates  *auth.Certificates                       // log clients in by their certificates alone; nil: none

	Policy      *policy.Control
	Permissions policy.Permissions
	Recipients  Recipients // nil, or asked about the recipients that Policy accepts

	Headers       Headers
	Priority      Priority // of messages that do not say one by MT-PRIORITY
	With, Without []string // SMTP extensions to announce beside the usual ones, and of those not to announce; see wire.ExtensionNames
	Lenient       bool     // take what old devices write: paths without angle brackets
	NoVerify      bool     // VRFY is refused, and not only left unanswered

	BareNewline       string // in DATA: "reject" (when empty) or "normalise"
	BareNewlineChunks string // in BDAT: "normalise" (when empty), since senders that use it may send bare newlines, or "reject"

	Limits     Limits
	Transcript transcript.Rule // which sessions' conversations are kept
}

// Headers say what becomes of header sections. The zero Headers pass on what
// comes: a relay is no judge of it.
type Headers struct {
	Complete    bool // add Date, Message-ID and From where they are missing: for submission only (RFC 6409 section 8)
	NoEightBit  bool // refuse 8-bit octets without SMTPUTF8
	NoMalformed bool // refuse lines that are no field, and doubled From, Date, Message-ID and Subject
}

// Limits bound what a client may use. Zero means the default that the comment
// names, a negative value means no limit.
type Limits struct {
	Connections          int           // at once; 5000
	ConnectionsPerSource int           // at once, of one IPv4 address or IPv6 /64; 20
	MessagesPerMinute    int           // no limit
	RateBy               string        // "source" (when empty), "user" or "both"
	Recipients           int           // of a message; 200
	MessageSize          int64         // octets; 36 MiB
	HeaderSize           int           // octets; 256 KiB
	HeaderFields         int           // 1000
	Hops                 int           // Received fields; 30
	ProtocolErrors       int           // of a session; 5
	AuthFailures         int           // of a session; 3
	Tarpit               time.Duration // delay of refusals to those who have not authenticated; 5s
	CommandTimeout       time.Duration // 5m
	SessionTimeout       time.Duration // 10m
}

func (l Limits) withDefaults() Limits {
	def := func(p *int, d int) {
		if *p == 0 {
			*p = d
		}
		*p = max(*p, 0)
	}
	def(&l.Connections, 5000)
	def(&l.ConnectionsPerSource, 20)
	def(&l.MessagesPerMinute, 0)
	def(&l.Recipients, 200)
	def(&l.HeaderSize, 256<<10)
	def(&l.HeaderFields, 1000)
	def(&l.Hops, 30)
	def(&l.AuthFailures, 3)
	if l.ProtocolErrors == 0 {
		l.ProtocolErrors = 5
	}
	if l.ProtocolErrors < 0 {
		l.ProtocolErrors = 1 << 30
	}
	if l.MessageSize == 0 {
		l.MessageSize = 36 << 20
	}
	l.MessageSize = max(l.MessageSize, 0)
	dur := func(p *time.Duration, d time.Duration) {
		if *p == 0 {
			*p = d
		}
		*p = max(*p, 0)
	}
	dur(&l.Tarpit, 5*time.Second)
	dur(&l.SessionTimeout, 10*time.Minute)
	dur(&l.CommandTimeout, 5*time.Minute) // package wire reads 0 as the same: a wait has always an end
	return l
}

// connector is a Connector in use.
type connector struct {
	Connector
	bare, bareChunks wire.Newline
	extensions       wire.Extensions
	keep             *transcript.Chooser
	mechanisms       []auth.Mechanism
	*counters        // from Server.take
}

func newConnector(c Connector) (*connector, error) {
	if c.Name == "" {
		return nil, errors.New("receive connector without a name")
	}
	bad := func(format string, v ...any) error {
		return fmt.Errorf("receive connector %s: %w", c.Name, fmt.Errorf(format, v...))
	}
	c.Limits = c.Limits.withDefaults()
	out := &connector{Connector: c}
	switch c.TLSMode {
	case "", "off":
		if c.TLSRequired {
			return nil, bad("tls is required, and off")
		}
		out.TLS = nil
	case "starttls", "implicit":
		if c.TLS == nil {
			return nil, bad("tls mode %s needs a certificate", c.TLSMode)
		}
	default:
		return nil, bad("tls mode %q: off, starttls or implicit", c.TLSMode)
	}
	var err error
	if out.bare, err = newline(c.BareNewline, wire.Reject); err != nil {
		return nil, bad("%w", err)
	}
	if out.bareChunks, err = newline(c.BareNewlineChunks, wire.Normalise); err != nil {
		return nil, bad("%w", err)
	}
	if out.extensions, err = wire.NewExtensions(c.With, c.Without); err != nil {
		return nil, bad("%w", err)
	}
	if out.keep, err = transcript.NewChooser(c.Transcript); err != nil {
		return nil, bad("%w", err)
	}
	if c.AuthRequired && c.Auth == nil && c.Certificates == nil {
		return nil, bad("authentication is required, and there are no users")
	}
	for _, m := range c.Mechanisms {
		if !slices.Contains(auth.Mechanisms(), m) {
			return nil, bad("unknown mechanism %q", m)
		}
	}
	if c.Binding != "" && !slices.Contains(auth.Bindings(), string(c.Binding)) {
		return nil, bad("channel binding %q: off, allow or require", c.Binding)
	}
	out.mechanisms = c.Auth.Offered(c.Mechanisms, c.Binding)
	if len(out.mechanisms) > 0 && out.TLS != nil {
		out.TLS = wire.NoteCertificate(out.TLS)
	}
	switch c.Limits.RateBy {
	case "", "source", "user", "both":
	default:
		return nil, bad("rate_by %q: source, user or both", c.Limits.RateBy)
	}
	return out, nil
}

func newline(word string, def wire.Newline) (wire.Newline, error) {
	switch word {
	case "":
		return def, nil
	case "reject":
		return wire.Reject, nil
	case "normalise":
		return wire.Normalise, nil
	}
	return 0, fmt.Errorf("bare_newline %q: reject or normalise", word)
}

// match is how narrowly c is for ip: the length of the narrowest range that ip
// is in, or -1.
func (c *connector) match(ip netip.Addr) int {
	if len(c.RemoteRanges) == 0 {
		return 0
	}
	return narrowest(c.RemoteRanges, ip)
}

// hostname is our name to the clients of c.
func (c *connector) hostname(o Options) string {
	if c.Hostname != "" {
		return c.Hostname
	}
	return o.Hostname
}
