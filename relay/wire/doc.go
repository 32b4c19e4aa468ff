// Package wire is the connection under an unmodified go-smtp server.
//
// It exists because a relay must see and decide more than go-smtp shows: each
// command and reply with its duration, TLS, deadlines, line limits, the framing
// of the content, and what may be said in which state. A [Conn] is the net.Conn
// that go-smtp gets. Each Read hands it exactly one command line, in a safe
// form that holds nothing that the client chose; each Write is collected, and
// when go-smtp reads again the whole reply is known. The two run in lock-step,
// so that this package owns the conversation and go-smtp the dispatch.
//
// It promises:
//
//   - Only CRLF.CRLF ends the content of DATA, only its octets end a chunk of
//     BDAT (RFC 5321 section 4.1.1.4, RFC 3030 section 2), and nothing of a
//     content is ever taken for a command: after an error in the content the
//     connection is not read again.
//   - What MAIL and RCPT said reaches the session as parsed by package mail,
//     once, and by no second parser.
//   - Nothing sent before a TLS handshake counts after it (RFC 3207 section 4.2).
//   - Every wait has a deadline and every buffer a bound.
//   - No secret enters the transcript: AUTH is masked in both directions, and a
//     content is a number of octets.
//
// It states two facts: [event.CommandAnswered] and [event.TLSNegotiated]. What
// only the session can state it learns through [Hooks].
//
// To add a command, add it to the table in command.go and a case to
// [Conn.dispatch]. What comes before SMTP and TLS, as the header of the PROXY
// protocol does ([ReadProxy]), is read before there is a Conn.
package wire
