package metrics

import (
	"strconv"
	"strings"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// other is what a word outside of its closed set becomes. internal stands for
// the receive connector of messages that the relay made; no connector can have
// this name.
const (
	other    = "other"
	internal = "(internal)"
)

// fold says what happens to a word that is not in its set.
type fold uint8

const (
	foldQuietly fold = iota // "other" is an expected answer: the word comes from a peer
	foldCounted             // the word should have been known: the fold is counted
	foldRarely              // as foldCounted; "other" is exposed only once it was needed
)

// dim is one label and the closed set of its values. "other" comes on top.
type dim struct {
	label string
	words []string
	fold  fold
	note  string // for the reference, in place of the words
	exact bool   // our own code picks the word: there is no other
}

func connectorDim(names []string, note string) dim {
	return dim{label: "connector", words: names, fold: foldRarely, note: note}
}

func classes() (words []string) {
	for _, c := range mail.Classes() {
		if c != mail.ClassOther {
			words = append(words, string(c))
		}
	}
	return words
}

// tlsFailures are the reasons for TLS failures; "other" comes on top anyway.
func tlsFailures() (words []string) {
	for _, w := range event.TLSFailures() {
		if w != other {
			words = append(words, w)
		}
	}
	return words
}

var (
	resultDim    = dim{label: "result", words: append([]string{"accepted"}, event.SessionRefusals()...), fold: foldRarely}
	directionDim = dim{label: "direction", words: []string{event.Inbound, event.Outbound}, fold: foldRarely}
	causeDim     = dim{
		label: "cause", fold: foldCounted,
		words: []string{"quit", "closed", "timeout", "errors", "shutdown", "protocol", "panic", "idle", "limit"},
	}
	commandDim = dim{label: "command", words: []string{
		"HELO", "EHLO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "QUIT", "VRFY", "EXPN", "HELP", "XCLIENT",
	}}
	codeClassDim = dim{label: "code_class", words: []string{"2xx", "3xx", "4xx", "5xx"}, fold: foldRarely}
	protocolDim  = dim{label: "protocol", fold: foldRarely, words: []string{
		"SMTP", "ESMTP", "ESMTPA", "ESMTPS", "ESMTPSA", "UTF8SMTP", "UTF8SMTPA", "UTF8SMTPS", "UTF8SMTPSA", "PICKUP",
	}}
	refusalDim   = dim{label: "reason", words: event.Refusals(), fold: foldCounted}
	mechanismDim = dim{label: "mechanism", words: []string{
		"PLAIN", "LOGIN", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "XOAUTH2", "OAUTHBEARER", "GSSAPI", "NTLM", "EXTERNAL", "CERTIFICATE",
	}}
	authResultDim   = dim{label: "result", words: []string{"ok", "failed", "error"}, exact: true}
	versionDim      = dim{label: "version", words: []string{"none", "1.0", "1.1", "1.2", "1.3"}, fold: foldRarely}
	tlsReasonDim    = dim{label: "reason", words: tlsFailures(), fold: foldQuietly}
	reportMethodDim = dim{label: "method", words: []string{"mail", "https"}, fold: foldRarely}
	reportResultDim = dim{label: "result", words: []string{"sent", "failed", "given_up"}, exact: true}
	tlsPolicyDim    = dim{label: "policy", words: event.TLSPolicies(), fold: foldRarely}
	handshakeDim    = dim{label: "result", words: []string{"ok", "failed"}, exact: true}
	scopeDim        = dim{label: "scope", words: []string{"total", "source", "network", "user", "sender", "destination"}, fold: foldRarely}
	throttleDim     = dim{label: "action", words: []string{"tarpit", "defer", "reject", "close"}, fold: foldRarely}

	actionDim       = dim{label: "action", words: []string{"hold", "release", "retry", "reroute", "remove", "bounce", "redirect", "export", "backup", "release_throttle"}, fold: foldCounted}
	actionResultDim = dim{label: "result", words: []string{"ok", "error"}, fold: foldRarely}

	attemptDim    = dim{label: "disposition", words: []string{"relayed", "deferred", "bounced", "error"}, exact: true}
	finalDim      = dim{label: "disposition", words: []string{"relayed", "bounced", "expired", "dropped", "moved"}, exact: true}
	classDim      = dim{label: "class", words: classes()}
	permanenceDim = dim{label: "permanence", words: []string{"temporary", "permanent"}, exact: true}
	codeDim       = dim{label: "code", words: []string{"250", "421", "432", "450", "451", "452", "550", "551", "552", "553", "554"}}
	stageDim      = dim{label: "stage", words: []string{"sched", "dns", "connect", "banner", "tls", "auth", "envelope", "data", "reply"}, exact: true}
	priorityDim   = dim{label: "priority", words: []string{"low", "normal", "high"}, fold: foldRarely}
	sloDim        = dim{label: "outcome", words: []string{"within", "late"}, exact: true}
	verifyDim     = dim{label: "verify", words: []string{"none", "unverified", "pkix", "pkix_name", "dane", "mta_sts"}, fold: foldRarely}
	dnsTypeDim    = dim{label: "type", words: []string{"MX", "A", "AAAA", "TLSA", "TXT", "PTR"}, fold: foldRarely}
	encodingDim   = dim{label: "encoding", words: []string{"quoted-printable", "base64", "both"}, fold: foldRarely}
	answeredDim   = dim{label: "answered_by", words: []string{"cache", "server"}, exact: true}
	backoffDim    = dim{label: "backoff", words: event.BackoffModes(), fold: foldRarely}
	lookupDim     = dim{label: "lookup", words: event.Lookups(), fold: foldRarely}
	lookupEndDim  = dim{label: "result", words: event.LookupResults(), fold: foldRarely}
	dnsResultDim  = dim{label: "result", words: []string{"cached", "ok", "nxdomain", "nodata", "servfail", "timeout"}, fold: foldRarely}
	dsnKindDim    = dim{label: "kind", words: []string{"failed", "delayed", "relayed", "expanded"}, fold: foldRarely}
	dsnResultDim  = dim{label: "result", words: []string{"queued", "suppressed"}, exact: true}
	eventDim      = dim{label: "event", words: event.Names(), exact: true, note: "name of the fact, see the reference of facts"}
	queryDim      = dim{label: "kind", words: []string{"search", "timeline", "aggregate", "events", "values", "transcript"}, fold: foldCounted}
	okDim         = dim{label: "result", words: []string{"ok", "error"}, exact: true}
)

// codeClass is the class of an SMTP reply code, such as "2xx".
func codeClass(code int) string {
	switch code / 100 {
	case 2:
		return "2xx"
	case 3:
		return "3xx"
	case 4:
		return "4xx"
	case 5:
		return "5xx"
	}
	return other
}

// encodingOf is the encodings of a fact, such as "quoted-printable:1 base64:2", in
// one word of encodingDim.
func encodingOf(converted string) string {
	found := ""
	for word := range strings.FieldsSeq(converted) {
		switch encoding, _, _ := strings.Cut(word, ":"); {
		case encoding != "quoted-printable" && encoding != "base64":
			return other
		case found != "" && found != encoding:
			found = "both"
		default:
			found = encoding
		}
	}
	if found == "" {
		return other
	}
	return found
}

// codeWord is code as codeDim has it, without allocating for any code that a
// next hop may think of.
func codeWord(code int) string {
	if code < 200 || code > 599 {
		return other
	}
	return codeWords[code-200]
}

var codeWords = func() (words [400]string) {
	for i := range words {
		words[i] = strconv.Itoa(200 + i)
	}
	return words
}()
