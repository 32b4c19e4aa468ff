package event

import (
	"net/netip"
	"time"

	"waybill/relay/mail"
)

// Direction of a session.
const (
	Inbound  = "inbound"
	Outbound = "outbound"
)

// SessionOpened says that a connection was admitted (inbound) or made (outbound).
type SessionOpened struct {
	Direction  string     `json:"direction"`
	Connector  string     `json:"connector"`
	ClientIP   netip.Addr `json:"client_ip,omitzero"` // inbound: the peer
	ClientPort uint16     `json:"client_port,omitzero"`
	LocalIP    netip.Addr `json:"local_ip,omitzero"`
	LocalPort  uint16     `json:"local_port,omitzero"`
	ProxyIP    netip.Addr `json:"proxy_ip,omitzero"`    // inbound: the trusted proxy that named the client (PROXY protocol)
	RemoteName string     `json:"remote_name,omitzero"` // outbound: the host asked for
	RemoteIP   netip.Addr `json:"remote_ip,omitzero"`
	RemotePort uint16     `json:"remote_port,omitzero"`
}

// SessionClosed says that a session ended, with its totals.
type SessionClosed struct {
	Direction  string     `json:"direction"`
	Connector  string     `json:"connector"`
	ClientIP   netip.Addr `json:"client_ip,omitzero"`
	RemoteName string     `json:"remote_name,omitzero"`
	RemoteIP   netip.Addr `json:"remote_ip,omitzero"`
	AuthUser   string     `json:"auth_user,omitzero"`
	Cause      string     `json:"cause"` // quit, closed, timeout, errors, shutdown, protocol, panic, idle, limit
	Commands   int        `json:"commands"`
	Messages   int        `json:"messages"`
	BytesIn    int64      `json:"bytes_in"`
	BytesOut   int64      `json:"bytes_out"`
	Duration   Seconds    `json:"duration"`
	LocalIP    netip.Addr `json:"local_ip,omitzero"` // outbound
	TLS
}

// TLS is how an outbound session was secured, where the policies of a domain
// were asked for: with the TLS levels dane, for hosts that have TLSA records, and
// mta_sts. It is empty for mail that goes in any case.
type TLS struct {
	Domain  string `json:"policy_domain,omitzero"` // the recipients' domain, or the smart host
	Base    string `json:"policy_host,omitzero"`   // dane: the host whose TLSA records count
	Policy  string `json:"tls_policy,omitzero"`    // the TLS level that counted
	Text    string `json:"policy_text,omitzero"`   // dane, mta_sts: what is published, parts apart by "; "
	Version string `json:"tls_version,omitzero"`   // "1.3"; empty: no TLS came about
	Verify  string `json:"tls_verify,omitzero"`
	Failure string `json:"tls_failure,omitzero"` // why there is no TLS, or not as asked for; a [TLSFailures] word
}

// TranscriptKept says what both sides of a session, or of an attempt, said. It
// is stated at the end of those that failed, were slow, or are kept by rule.
type TranscriptKept struct {
	Direction  string     `json:"direction"`
	Connector  string     `json:"connector"`
	ClientIP   netip.Addr `json:"client_ip,omitzero"`
	RemoteName string     `json:"remote_name,omitzero"`
	RemoteIP   netip.Addr `json:"remote_ip,omitzero"`
	AuthUser   string     `json:"auth_user,omitzero"`
	Attempt    int        `json:"attempt,omitzero"` // outbound
	Reason     string     `json:"reason"`           // failed, uncertain, slow, client_ip, user, sender, all, sampled
	Began      time.Time  `json:"began"`
	Lines      int        `json:"lines"`        // that were said
	Cut        int        `json:"cut,omitzero"` // how many of them are left out
	Transcript []Line     `json:"transcript"`   // secrets are masked, content is a number of octets
}

// Line is one line of a transcript.
type Line struct {
	Seq   int     `json:"seq,omitzero"`
	At    Seconds `json:"at"`   // since the transcript began
	From  string  `json:"from"` // "client", "server", or "note": what the relay knows about it
	Text  string  `json:"text"` // without its line end; secrets masked, control characters escaped
	Bytes int64   `json:"bytes,omitzero"`
}

// SessionRefused says that a connection was not admitted.
type SessionRefused struct {
	Connector string     `json:"connector"`
	ClientIP  netip.Addr `json:"client_ip,omitzero"`
	Reason    string     `json:"reason"` // a [SessionRefusals] word
	Reply     string     `json:"reply,omitzero"`
	Error     string     `json:"error,omitzero"` // for the operator
}

// ClientAnnounced says that a trusted client named another one, for whom it
// speaks in the rest of the session (XCLIENT). The fields are those of the other.
type ClientAnnounced struct {
	Connector  string     `json:"connector"`
	ClientIP   netip.Addr `json:"client_ip,omitzero"`
	ClientPort uint16     `json:"client_port,omitzero"`
	ClientName string     `json:"client_name,omitzero"`
	LocalIP    netip.Addr `json:"local_ip,omitzero"`
	LocalPort  uint16     `json:"local_port,omitzero"`
	Helo       string     `json:"helo,omitzero"`
	AuthUser   string     `json:"auth_user,omitzero"`
	ProxyIP    netip.Addr `json:"proxy_ip,omitzero"` // who said so
}

// CommandAnswered says that the relay replied to one SMTP command. Where there are
// more than 1,000 a second that went well, log and tracking have one in a hundred of the others.
type CommandAnswered struct {
	Connector string  `json:"connector"`
	Verb      string  `json:"verb"` // upper case; "UNKNOWN" for anything that the relay does not know
	Code      int     `json:"code"`
	Enhanced  string  `json:"enhanced,omitzero"`
	Took      Seconds `json:"took"`
}

// TLSNegotiated says how a TLS handshake ended.
type TLSNegotiated struct {
	Direction  string     `json:"direction"`
	Connector  string     `json:"connector"`
	ClientIP   netip.Addr `json:"client_ip,omitzero"`
	RemoteName string     `json:"remote_name,omitzero"`
	RemoteIP   netip.Addr `json:"remote_ip,omitzero"`
	Provider   string     `json:"provider,omitzero"`
	Version    string     `json:"tls_version,omitzero"` // "1.3"; empty when the handshake failed
	Cipher     string     `json:"tls_cipher,omitzero"`
	Peer       string     `json:"tls_peer,omitzero"`       // certificate subject
	Verify     string     `json:"tls_verify,omitzero"`     // none, unverified, pkix, pkix_name, dane, mta_sts
	Policy     string     `json:"tls_policy,omitzero"`     // outbound: the level that the session was under
	Failure    string     `json:"failure,omitzero"`        // why the handshake failed
	Reason     string     `json:"failure_reason,omitzero"` // the same as one of the [TLSFailures] words
	Took       Seconds    `json:"took"`
}

// TLSPolicyFailed says that a next hop, or what its domain publishes, is not as
// the TLS level of the send connector asks for.
type TLSPolicyFailed struct {
	Connector  string     `json:"connector,omitzero"`     // empty: whichever asked for the policy of the domain
	Domain     string     `json:"policy_domain,omitzero"` // whose policy it is; empty for the connector's own
	RemoteName string     `json:"remote_name,omitzero"`
	RemoteIP   netip.Addr `json:"remote_ip,omitzero"`
	Provider   string     `json:"provider,omitzero"`
	Policy     string     `json:"tls_policy"`           // a [TLSPolicies] word
	Text       string     `json:"policy_text,omitzero"` // dane, mta_sts: what is published, parts apart by "; "
	Reason     string     `json:"failure_reason"`
	Detail     string     `json:"failure,omitzero"`
	Enforced   bool       `json:"enforced,omitzero"` // nothing is sent there for it; else the domain only wants to know (RFC 8461 section 5), or its policy could not be had
}

// TLSDowngraded says that a host that had TLS has none now, and got the message
// in plain text, because the TLS level allows that.
type TLSDowngraded struct {
	Connector  string     `json:"connector"`
	RemoteName string     `json:"remote_name"`
	RemoteIP   netip.Addr `json:"remote_ip,omitzero"`
	Provider   string     `json:"provider,omitzero"`
	Reason     string     `json:"failure_reason"` // a [TLSFailures] word
	LastTLS    time.Time  `json:"last_tls"`       // when the host had TLS
}

// TLSReportSent says that a report on TLS (RFC 8460) is on its way to who asked
// for it: in the queue, or taken by an HTTPS server.
type TLSReportSent struct {
	Domain      string `json:"policy_domain"`
	ReportID    string `json:"report_id"`
	Day         string `json:"report_day"`    // such as "2026-01-31", in UTC
	Method      string `json:"report_method"` // mail, https
	Destination string `json:"destination"`   // a mail address, or a host
	Successful  int    `json:"sessions_successful"`
	Failed      int    `json:"sessions_failed"`
	Attempts    int    `json:"attempts"`
}

// TLSReportFailed says that a report on TLS could not be handed over.
type TLSReportFailed struct {
	Domain      string `json:"policy_domain"`
	ReportID    string `json:"report_id"`
	Day         string `json:"report_day"`
	Method      string `json:"report_method"`
	Destination string `json:"destination"`
	Error       string `json:"error"`
	Attempts    int    `json:"attempts"`
	Final       bool   `json:"final,omitzero"` // it is not tried again
}

// AuthSucceeded says that a client proved who it is.
type AuthSucceeded struct {
	Connector string     `json:"connector"`
	ClientIP  netip.Addr `json:"client_ip,omitzero"`
	Mechanism string     `json:"auth_mechanism"`
	User      string     `json:"auth_user"`
	TLS       bool       `json:"tls"`
}

// AuthFailed says that a client did not prove who it is.
type AuthFailed struct {
	Connector string     `json:"connector"`
	ClientIP  netip.Addr `json:"client_ip,omitzero"`
	Mechanism string     `json:"auth_mechanism"`
	User      string     `json:"auth_user,omitzero"` // as claimed
	Reason    string     `json:"reason"`             // credentials, unknown_user, malformed, cancelled, unavailable, throttled, mechanism, before_tls, channel_binding, token, expired, certificate, clock_skew, replay, weak, realm
	Error     string     `json:"error,omitzero"`     // for the operator; no part of a credential
	TLS       bool       `json:"tls"`
	Code      int        `json:"code"`
}

// Refusal is what every refused command has in common.
type Refusal struct {
	Connector string     `json:"connector"`
	ClientIP  netip.Addr `json:"client_ip,omitzero"`
	AuthUser  string     `json:"auth_user,omitzero"`
	MailFrom  string     `json:"mail_from,omitzero"`
	Code      int        `json:"code"`
	Enhanced  string     `json:"enhanced,omitzero"`
	Reply     string     `json:"reply,omitzero"`
	Reason    string     `json:"reason"`         // a [Refusals] word
	Error     string     `json:"error,omitzero"` // for the operator
}

// SenderRefused says that MAIL was refused.
type SenderRefused struct {
	Refusal
}

// RecipientRefused says that RCPT was refused.
type RecipientRefused struct {
	Refusal
	Recipient string `json:"recipient"`
}

// MessageRefused says that the content was refused, or that the queue could not take it.
type MessageRefused struct {
	Refusal
	Recipients []Recipient `json:"recipients,omitzero"`
	Size       int64       `json:"size,omitzero"`
}

// Recipient is one recipient within a fact about several.
type Recipient struct {
	Address     string           `json:"address"`
	Original    string           `json:"orig_address,omitzero"` // ORCPT
	Disposition mail.Disposition `json:"disposition,omitzero"`
	Code        int              `json:"code,omitzero"`
	Enhanced    string           `json:"enhanced,omitzero"`
	Reply       string           `json:"reply,omitzero"`
	Class       mail.Class       `json:"class,omitzero"`
}

// Info is what every fact about a message repeats, so that each can be found by it.
type Info struct {
	MailFrom        string     `json:"mail_from"` // "<>" for the null reverse-path
	HeaderMessageID string     `json:"header_message_id,omitzero"`
	HeaderFrom      string     `json:"header_from,omitzero"`
	Size            int64      `json:"size"` // octets of content
	ConnectorIn     string     `json:"connector_in,omitzero"`
	ClientIP        netip.Addr `json:"client_ip,omitzero"`
	AuthUser        string     `json:"auth_user,omitzero"`
	Priority        string     `json:"priority,omitzero"`
	External        string     `json:"external_id,omitzero"` // the queue ID in the log of another server that it was imported from
}

// MessageQueued says that a message is on stable storage: from here the relay
// is responsible for it.
type MessageQueued struct {
	Info
	Parent        mail.QueueID `json:"parent_queue_id,omitzero"`
	Recipients    []Recipient  `json:"recipients"`
	ClientPort    uint16       `json:"client_port,omitzero"`
	ClientName    string       `json:"client_name,omitzero"`
	Helo          string       `json:"helo,omitzero"`
	AuthMechanism string       `json:"auth_mechanism,omitzero"`
	Protocol      string       `json:"protocol,omitzero"`
	TLSVersion    string       `json:"tls_version,omitzero"`
	TLSCipher     string       `json:"tls_cipher,omitzero"`
	Subject       string       `json:"subject,omitzero"`
	Changed       string       `json:"changed,omitzero"` // what was changed before the message was queued: [Changes] words, by space
	EnvID         string       `json:"envid,omitzero"`
	TReceive      Seconds      `json:"t_receive"`         // first byte of MAIL to end of content
	TAccept       Seconds      `json:"t_accept,omitzero"` // end of content to durable; left out when a crash came before it was known
	Expires       time.Time    `json:"expires,omitzero"`
	DeliverBy     time.Time    `json:"deliver_by,omitzero"` // when the sender wants it delivered (RFC 2852)
}

// MessageRouted says which send connector and next hop were chosen, and why.
// It is stated at the first decision and when the decision changes.
type MessageRouted struct {
	Info
	Recipients   []Recipient `json:"recipients"`
	ConnectorOut string      `json:"connector_out,omitzero"` // empty when nothing matched
	Queue        string      `json:"queue"`                  // next-hop key
	Space        string      `json:"address_space,omitzero"`
	Why          string      `json:"why"`
}

// Hop is where an attempt went.
type Hop struct {
	ConnectorOut string     `json:"connector_out,omitzero"`
	Queue        string     `json:"queue,omitzero"`    // next-hop key
	Provider     string     `json:"provider,omitzero"` // roll-up of the next hop; a closed set
	RemoteName   string     `json:"remote_name,omitzero"`
	RemoteIP     netip.Addr `json:"remote_ip,omitzero"`
	RemotePort   uint16     `json:"remote_port,omitzero"`
}

// Answer is what was said to an attempt and what it means.
type Answer struct {
	Code      int        `json:"code,omitzero"`
	Enhanced  string     `json:"enhanced,omitzero"`
	Reply     string     `json:"reply,omitzero"` // at most 512 octets
	Verb      string     `json:"reply_verb,omitzero"`
	Class     mail.Class `json:"class,omitzero"`
	ClassRule string     `json:"class_rule,omitzero"`

	Permanence  mail.Permanence `json:"permanence,omitzero"`  // temporary or permanent: whether the failure goes away when one waits
	Explanation string          `json:"explanation,omitzero"` // what the failure means and who must act, in one line
}

// AttemptFinished says how one delivery attempt ended for its recipients.
type AttemptFinished struct {
	Info
	Hop
	Answer                       // of the worst recipient
	Disposition mail.Disposition `json:"disposition"` // of the worst recipient: bounced before deferred before relayed
	Recipients  []Recipient      `json:"recipients"`
	OutSession  string           `json:"out_session_id,omitzero"`
	LocalIP     netip.Addr       `json:"local_ip,omitzero"`
	Reused      bool             `json:"conn_reused,omitzero"`
	TLSVersion  string           `json:"tls_version,omitzero"`
	TLSCipher   string           `json:"tls_cipher,omitzero"`
	TLSVerify   string           `json:"tls_verify,omitzero"`
	TLSPolicy   string           `json:"tls_policy,omitzero"`  // the TLS level that counted
	TLSFailure  string           `json:"tls_failure,omitzero"` // why there is no TLS, or not as asked for; a [TLSFailures] word
	Attempt     int              `json:"attempt"`              // counts from 1
	Uncertain   bool             `json:"uncertain,omitzero"`
	TSched      Seconds          `json:"t_sched"` // due to claimed by a worker: our lag
	Stages
	NextAttempt time.Time `json:"next_attempt,omitzero"`
	DNSAsked    int       `json:"dns_asked,omitzero"`  // questions to the DNS
	DNSCached   int       `json:"dns_cached,omitzero"` // of these, those that the cache answered
	Converted   string    `json:"converted,omitzero"`  // parts of the content that were encoded for a next hop that does not take it as it is, such as "quoted-printable:1 base64:2"
}

// Stages are the durations of an attempt.
type Stages struct {
	TDNS      Seconds `json:"t_dns,omitzero"`
	TConnect  Seconds `json:"t_connect,omitzero"`
	TBanner   Seconds `json:"t_banner,omitzero"`
	TTLS      Seconds `json:"t_tls,omitzero"`
	TAuth     Seconds `json:"t_auth,omitzero"`
	TEnvelope Seconds `json:"t_envelope,omitzero"`
	TData     Seconds `json:"t_data,omitzero"`
	TReply    Seconds `json:"t_reply,omitzero"`
}

// Final is what every final fact about a recipient has in common.
type Final struct {
	Info
	Hop
	Answer
	Recipient string  `json:"recipient"`
	Original  string  `json:"orig_address,omitzero"`
	Attempts  int     `json:"attempt"`            // how many attempts there were
	Late      bool    `json:"late,omitzero"`      // the hand-over target had passed
	TTotal    Seconds `json:"t_total"`            // accepted to final
	TBackoff  Seconds `json:"t_backoff,omitzero"` // waited on purpose: schedule, hold
	TQueue    Seconds `json:"t_queue,omitzero"`   // backoff and lag together
}

// RecipientRelayed says that the next hop took responsibility. Final.
type RecipientRelayed struct{ Final }

// RecipientBounced says that the recipient failed for good. Final.
type RecipientBounced struct {
	Final
	Actor  string `json:"actor,omitzero"`  // who gave it up; empty when a next hop or the relay did
	Reason string `json:"reason,omitzero"` // of the actor
}

// RecipientExpired says that the message's lifetime ended. Final.
type RecipientExpired struct{ Final }

// RecipientDropped says that an operator or a policy removed the recipient without a DSN. Final.
type RecipientDropped struct {
	Final
	Actor  string `json:"actor,omitzero"`
	Reason string `json:"reason,omitzero"`
}

// RecipientLate says that the hand-over target passed while the recipient was unresolved. Stated once.
type RecipientLate struct {
	Info
	Recipient string  `json:"recipient"`
	Queue     string  `json:"queue,omitzero"`
	Provider  string  `json:"provider,omitzero"`
	Target    Seconds `json:"target"`
}

// ThrottleEngaged says that a limit of ours delayed or refused something.
type ThrottleEngaged struct {
	Connector string     `json:"connector"`
	ClientIP  netip.Addr `json:"client_ip,omitzero"`
	AuthUser  string     `json:"auth_user,omitzero"`
	Scope     string     `json:"throttle_scope"` // total, source, network, user, sender, destination
	Limit     string     `json:"throttle_limit"` // the configuration key, or the name of the rule
	Action    string     `json:"action"`         // tarpit, defer, reject, close
}

// PressureChanged says that the back-pressure level of a resource changed, or what the relay does about it.
type PressureChanged struct {
	Resource string `json:"resource"` // a [Resources] word
	Level    int    `json:"pressure"` // 0 normal, 1 medium, 2 high
	Was      int    `json:"was"`
	Stage    string `json:"pressure_stage,omitzero"` // what the relay does about it: open, slow, strangers, all, shut; empty when the resource's owner states its level
	Detail   string `json:"detail,omitzero"`
}

// DSNQueued says that a delivery status notification was made and queued.
type DSNQueued struct {
	Info
	Kind       string       `json:"kind"` // failed, delayed, relayed, expanded
	Recipients []Recipient  `json:"recipients"`
	DSN        mail.QueueID `json:"dsn_queue_id,omitzero"` // the report's own queue ID; empty when suppressed
	Suppressed string       `json:"suppressed,omitzero"`   // why none was made: a [Suppressions] word
}

// QueueHeld says that messages were held.
type QueueHeld struct {
	Actor    string    `json:"actor"`
	Reason   string    `json:"reason,omitzero"`
	Filter   string    `json:"filter"`
	Until    time.Time `json:"until,omitzero"`
	Affected int       `json:"affected"`
}

// QueueReleased says that held messages may go again.
type QueueReleased struct {
	Actor    string `json:"actor"`
	Reason   string `json:"reason,omitzero"`
	Filter   string `json:"filter"`
	Affected int    `json:"affected"`
}

// AdminActed says what an operator did to the queue.
type AdminActed struct {
	Actor    string     `json:"actor"`
	Action   string     `json:"action"` // retry, remove, bounce, export, ...
	Reason   string     `json:"reason,omitzero"`
	Filter   string     `json:"filter,omitzero"`
	Target   string     `json:"target,omitzero"` // redirect, drain: the host
	Affected int        `json:"affected"`
	Result   string     `json:"result"` // ok, error
	ClientIP netip.Addr `json:"client_ip,omitzero"`
}

// QueueLoaded says that the queue was read at start.
type QueueLoaded struct {
	Messages  int     `json:"messages"`
	Dropped   int     `json:"dropped,omitzero"`   // entries without content or already finished
	Reemitted int     `json:"reemitted,omitzero"` // facts that were not yet confirmed by the tracking store
	Took      Seconds `json:"took"`
}

// MessagePoisoned says that a message was isolated because it broke its worker, or its content is damaged.
type MessagePoisoned struct {
	Info
	Error string `json:"error"`
}

// MessageRetired says that no recipient is left, with the totals.
type MessageRetired struct {
	Info
	Recipients int     `json:"recipient_count"`
	Relayed    int     `json:"relayed,omitzero"`
	Bounced    int     `json:"bounced,omitzero"`
	Expired    int     `json:"expired,omitzero"`
	Dropped    int     `json:"dropped,omitzero"`
	Attempts   int     `json:"attempts"`
	TTotal     Seconds `json:"t_total"`
}

// ConfigReloaded says that a configuration was taken into use, or why it was not.
type ConfigReloaded struct {
	Revision string `json:"revision,omitzero"`
	Error    string `json:"error,omitzero"`
}

// CertificateReloaded says that a certificate was taken into use, or why it was not.
type CertificateReloaded struct {
	Certificate string    `json:"certificate"`
	NotAfter    time.Time `json:"not_after,omitzero"`
	Error       string    `json:"error,omitzero"`
}

// DNSAnswered says how a DNS question ended.
type DNSAnswered struct {
	Type   string  `json:"type"`   // MX, A, AAAA, TLSA, TXT, PTR
	Result string  `json:"result"` // cached, ok, nxdomain, nodata, servfail, timeout
	Took   Seconds `json:"took"`
}

// LookupAnswered says how a question about a user or a recipient ended that the
// relay had to ask another server, or its cache.
type LookupAnswered struct {
	Lookup string  `json:"lookup"` // a [Lookups] word
	Result string  `json:"result"` // a [LookupResults] word
	Took   Seconds `json:"took"`
	Error  string  `json:"error,omitzero"` // why there was no answer
}

// TokenRefreshed says that a send connector got an OAuth token to log in with, or why it did not.
type TokenRefreshed struct {
	Connector string    `json:"connector"`
	Expires   time.Time `json:"expires,omitzero"`
	Took      Seconds   `json:"took"`
	Error     string    `json:"error,omitzero"`
}

// BackoffChanged says that a next hop has asked for less mail, and how it is
// treated from now on; or, with mode none, that it is treated as usual again.
type BackoffChanged struct {
	Hop
	Answer                // that asked for it
	Mode        string    `json:"backoff"`                      // a [BackoffModes] word, or none
	Was         string    `json:"was"`                          // likewise
	Rule        string    `json:"backoff_rule,omitzero"`        // which pattern knew the reply
	Times       int       `json:"times,omitzero"`               // how often it was asked for, each time for longer
	PerMinute   int       `json:"per_minute,omitzero"`          // messages; of mode slow
	Connections int       `json:"backoff_connections,omitzero"` // at once; of slow and single
	Until       time.Time `json:"until,omitzero"`
}

// ListingChanged says that an address of ours has come onto a DNS blocklist, or off it; or that the list no longer answers.
type ListingChanged struct {
	List    string     `json:"blocklist"`
	LocalIP netip.Addr `json:"local_ip,omitzero"`
	Result  string     `json:"result"`                 // listed, clean, unknown
	Codes   string     `json:"listing_codes,omitzero"` // the list's answers, such as "127.0.0.2"; the list's own pages say what they mean
	Detail  string     `json:"detail,omitzero"`        // the list's reason; at most 200 octets
	Error   string     `json:"error,omitzero"`         // why it is unknown
}

// Panicked says that a programming error ended one session, attempt or request, and no more.
type Panicked struct {
	Where string `json:"where"`
	Value string `json:"value"`
	Stack string `json:"stack"`
}

// Remarked says an oddity that has no type of its own yet.
type Remarked struct {
	Remark string `json:"remark"`
	Detail string `json:"detail,omitzero"`
}

func (SessionOpened) fact()       {}
func (SessionClosed) fact()       {}
func (TranscriptKept) fact()      {}
func (SessionRefused) fact()      {}
func (ClientAnnounced) fact()     {}
func (CommandAnswered) fact()     {}
func (TLSNegotiated) fact()       {}
func (TLSPolicyFailed) fact()     {}
func (TLSDowngraded) fact()       {}
func (TLSReportSent) fact()       {}
func (TLSReportFailed) fact()     {}
func (AuthSucceeded) fact()       {}
func (AuthFailed) fact()          {}
func (SenderRefused) fact()       {}
func (RecipientRefused) fact()    {}
func (MessageRefused) fact()      {}
func (MessageQueued) fact()       {}
func (MessageRouted) fact()       {}
func (AttemptFinished) fact()     {}
func (RecipientRelayed) fact()    {}
func (RecipientBounced) fact()    {}
func (RecipientExpired) fact()    {}
func (RecipientDropped) fact()    {}
func (RecipientLate) fact()       {}
func (ThrottleEngaged) fact()     {}
func (PressureChanged) fact()     {}
func (DSNQueued) fact()           {}
func (QueueHeld) fact()           {}
func (QueueReleased) fact()       {}
func (AdminActed) fact()          {}
func (QueueLoaded) fact()         {}
func (MessagePoisoned) fact()     {}
func (MessageRetired) fact()      {}
func (ConfigReloaded) fact()      {}
func (CertificateReloaded) fact() {}
func (DNSAnswered) fact()         {}
func (LookupAnswered) fact()      {}
func (TokenRefreshed) fact()      {}
func (BackoffChanged) fact()      {}
func (ListingChanged) fact()      {}
func (Panicked) fact()            {}
func (Remarked) fact()            {}
