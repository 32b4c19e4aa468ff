// Package transcript keeps what both sides of an SMTP session say.
//
// It exists because the question after "where is this mail?" is "what did they
// say?", and because the answer is needed after the fact: nobody knows beforehand
// which session will fail. So every session writes into a [Log], which is small
// and bounded; at its end a [Chooser] decides whether the conversation is kept
// ([event.TranscriptKept]) or forgotten. A [Tap] lets people watch conversations
// while they happen.
//
// It promises:
//
//   - No secret is in a Log. The Log itself follows AUTH exchanges (RFC 4954) and
//     masks what the client says in them, whatever the mechanism, and the server's
//     challenges; whoever calls it with a secret does no harm. Content is a number
//     of octets.
//   - A Log takes at most [MaxOctets] of memory, whatever the peer sends. A session
//     that said more keeps its first and its last lines, which is where sessions
//     fail, and says how many are missing. Lines are numbered.
//   - What a Log gives back is printable: control characters are escaped.
//   - A Tap never delays a session: a reader that falls behind is ended, with a
//     reason. While nobody watches, it costs one atomic load a line.
//
// To add a reason to keep a conversation, add it to [Rule], to [Session] and to
// [Chooser.Why], and its word to [Reasons].
package transcript
