// Package relay is the tour of the relay; its rooms are the packages below it.
//
// # The story of a message
//
//  1. A client connects to a receive connector. Package wire frames its lines,
//     throttle admits it: SessionOpened.
//  2. AUTH hands the credential to auth: AuthSucceeded or AuthFailed.
//  3. MAIL begins a transaction with an empty envelope; each RCPT asks policy.
//     A refusal is a *mail.ReplyError: the client sees its Reply, the record
//     sees its Err: RecipientRefused.
//  4. DATA or BDAT streams the content into the queue. It joins the group
//     commit: one entry of the queue's journal has the envelopes and the facts
//     of all waiting sessions, one sync brings it and the contents in front of
//     it onto the disk, and only then do the clients read "250 2.0.0 queued as
//     01J9Z…": MessageQueued. From here the relay is responsible.
//  5. Package route has named the send connector and the next hop of each
//     recipient: MessageRouted. Package deliver claims recipients of one message
//     that share them: a lease.
//  6. Package smtpout takes a kept session or connects, and speaks the
//     transaction. Each recipient gets one outcome: relayed, deferred, bounced.
//  7. queue.Settle commits the outcomes with their facts: AttemptFinished, and
//     RecipientRelayed, RecipientBounced or RecipientExpired, or the next attempt.
//  8. A recipient that failed for good has package dsn write the report, which
//     is queued in the same commit: DSNQueued. A DSN never causes a DSN.
//  9. When no recipient is left: MessageRetired.
//
// Each fact became a log line (protolog), a count (package metrics) and an entry
// of the tracking store (package logtrack). None of those is called from here.
//
// # Map
//
//	mail        words: address, envelope, reply, outcome, identifiers
//	event       facts, their Emitter and codec
//	protolog    reader: facts → JSON lines
//	otlplog     reader: facts → OpenTelemetry logs
//	wire        the connection under go-smtp
//	smtpin      receive connectors: sessions and transactions
//	pickup      a directory that messages are taken from
//	auth        SASL mechanisms and user stores
//	auth/oauth  logins by OAuth tokens
//	auth/command users whom an external program knows
//	policy      relay control: pure decisions
//	directory   users and recipients of LDAP directories
//	recipients  which recipients of accepted domains exist
//	throttle    admission and rates
//	pressure    what runs out, and what reception does about it
//	queue       durable truth about undelivered mail; DESIGN.md
//	route       recipient → send connector and next hop
//	dns         MX and addresses, cached
//	blocklist   whether our own addresses are on DNS blocklists
//	dane        certificates by TLSA records
//	mtasts      policies of domains about TLS
//	tlsrpt      reader: facts → daily reports to domains about TLS
//	strangers   HTTPS to hosts that strangers name
//	smtpout     send connectors: sessions to next hops
//	sevenbit    content for hosts that do not take 8-bit lines
//	login       logins at next hops by tokens and tickets
//	quota       what next hops take of us in a time
//	deliver     claims, attempts, settles, retries
//	backoff     replies by which next hops ask for less mail
//	dsn         delivery status notifications
//	tlsconf     certificates and TLS policy
//	reuse       finds late readers of pooled memory, in tests
//	relaytest   scripted real servers and recorders for tests
package relay
