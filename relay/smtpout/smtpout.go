// Package smtpout speaks SMTP to next hops: one send connector's sessions, kept
// and reused, and one attempt at a time on each.
//
// It is our own engine on top of net, because the go-smtp client has no
// pipelining, no opportunistic TLS, and no deadline on the content
// (docs/decisions). It promises that every recipient of an attempt gets exactly
// one outcome, that every wait has a deadline (RFC 5321 section 4.5.3.2), that
// what a next hop says is bounded, and that the content arrives byte for byte,
// dot-stuffing and what package sevenbit converts apart.
//
// [Connector.Attempt] walks over hosts and addresses (hosts.go), takes a session
// from the pool (pool.go) or opens one (session.go), and speaks the transaction
// (prepare.go, transaction.go). What goes wrong anywhere is a failure (failure.go), which
// becomes an outcome. To speak another extension, add it to extensions and to
// transaction.prepare, which decides what this next hop can take.
package smtpout

import (
	"context"
	"crypto/tls"
	"io"
	"net/netip"
	"time"

	"waybill/relay/dns"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/route"
	"waybill/relay/transcript"
)

// TLSLevel is how much a send connector wants of TLS.
type TLSLevel string

// The TLS levels.
const (
	TLSNone          TLSLevel = "none"          // never STARTTLS
	TLSOpportunistic TLSLevel = "opportunistic" // when offered; any certificate; plaintext after a failed handshake
	TLSEncrypt       TLSLevel = "encrypt"       // required; any certificate
	TLSVerify        TLSLevel = "verify"        // required; certificate from a trusted authority
	TLSVerifyName    TLSLevel = "verify_name"   // required; trusted, and its name matches
	TLSDANE          TLSLevel = "dane"          // by the TLSA records of a host that has them (RFC 7672), else opportunistic
	TLSMTASTS        TLSLevel = "mta_sts"       // by TLSA records, else by the MTA-STS policy of the domain (RFC 8461), else opportunistic
)

// Options configure a Connector. They are not changed after New.
type Options struct {
	Name          string            // the send connector's name
	Hostname      string            // what we say in EHLO
	SmartHosts    []route.SmartHost // empty: by MX
	Port          uint16            // of MX hosts; 0 means 25
	Resolver      dns.Looker
	TLS           TLSLevel
	TLSConfig     *tls.Config  // roots, client certificate, minimum version; may be nil
	TLSDomain     string       // name that certificates must be for, instead of the host's; may begin with "*."
	DANE          SecureLooker // for the levels dane and mta_sts
	Policies      PolicySource // for the level mta_sts
	Memory        *TLSMemory   // of hosts that had TLS; may be nil
	ImplicitTLS   bool         // TLS from the first octet (port 465)
	Auth          Auth
	EightBit      EightBit     // hosts that do not take 8-bit or binary content; empty: EightBitConvert
	Unconvertible EightBit     // and content that cannot be converted; empty: EightBitBounce
	SourceAddrs   []netip.Addr // each hop keeps one; empty: the system's choice
	Limits        Limits
	Timeouts      Timeouts // zero fields take the values of RFC 5321 section 4.5.3.2
	Emitter       event.Emitter
	Self          []netip.AddrPort // our own listeners; an unspecified address stands for all of this machine's
	AllowLoopback bool             // next hops on loopback and our own addresses may come from the DNS
	Transcript    transcript.Rule  // which attempts' conversations are kept
	Tap           *transcript.Tap  // nil, or where conversations can be watched
	AllowPrivate  bool             // next hops in private networks may come from the DNS; AllowLoopback implies it
}

// Auth is how to log in at smart hosts. The zero Auth does not.
type Auth struct {
	Mechanism string // empty, one of [Mechanisms], or that of Login
	Username  string
	Password  func() (string, error) // read when needed, so that a changed file counts
	Login     Login                  // how, for a mechanism that takes more than a password
	Insecure  bool                   // allow it without TLS
}

// Limits bound a Connector. Zero fields mean the default.
type Limits struct {
	Connections               int           // at once over all next hops; default 1000
	ConnectionsPerDestination int           // default 40
	MessagesPerConnection     int           // default 100
	RecipientsPerMessage      int           // of one transaction; default: what the next hop tells
	IdleTimeout               time.Duration // how long a session is kept for the next message; default 5s
	MaxHosts                  int           // how many hosts one attempt tries; default 10
}

// Timeouts bound each wait of a session.
type Timeouts struct {
	Connect, Greeting, Command, Mail, Rcpt, Data, Block, Dot, Quit time.Duration
}

// Message is what an attempt hands over.
type Message struct {
	ID       mail.QueueID
	Envelope mail.Envelope // only the recipients of this attempt
	Trace    []byte        // header fields in front of the content
	Size     int64         // octets of Trace and content together
	Open     func() (io.ReadCloser, error)
}

// Result is how an attempt ended.
type Result struct {
	Outcomes   []mail.Outcome // one for each recipient, in order; they are the caller's
	Stages     mail.Stages
	Session    string // the outbound session's id, or empty when there was none
	RemoteName string
	Remote     netip.AddrPort
	Local      netip.AddrPort
	Provider   string // roll-up of the next hop, see Provider
	Reused     bool
	TLSVersion string
	TLSCipher  string
	TLSVerify  string       // none, unverified, pkix, pkix_name, dane, mta_sts
	TLSPolicy  string       // the TLS level that counted
	TLSFailure string       // why there is no TLS, or not as it should be: an event.TLSFailures word
	DSN        bool         // the next hop takes DSN parameters (RFC 3461)
	DeliverBy  bool         // the next hop takes BY= (RFC 2852)
	Converted  string       // how the content was converted for the next hop, such as "quoted-printable:1"; empty when it went as it is
	Questions  int          // that were put to the DNS
	Cached     int          // of these, those that its cache answered
	Closed     bool         // the connector was closed before the attempt began: nothing was tried
	Transcript []event.Line // what was said, if it is to be kept
	Kept       Kept         // about Transcript
}

// Kept says why a conversation is kept, and how much of it.
type Kept struct {
	Reason string // a word of [transcript.Reasons]
	Began  time.Time
	Lines  int // that were said
	Cut    int // how many of them are left out
}

// Attempter makes attempts; [Connector] is the real one.
type Attempter interface {
	Attempt(ctx context.Context, hop route.Hop, m Message) Result
}
