package event

import (
	"bytes"
	"fmt"
	"strconv"
	"time"

	"waybill/relay/mail"
)

// Seconds is a duration that JSON writes as seconds with a fraction, to the
// microsecond.
type Seconds time.Duration

// Since returns the Seconds from start to end, or 0 when either is zero or the clock went back.
func Since(start, end time.Time) Seconds {
	if start.IsZero() || end.IsZero() || end.Before(start) {
		return 0
	}
	return Secs(end.Sub(start))
}

// Secs rounds d to the microsecond.
func Secs(d time.Duration) Seconds { return Seconds(d.Round(time.Microsecond)) }

// Float is the duration in seconds.
func (s Seconds) Float() float64 { return time.Duration(s).Seconds() }

// MarshalJSON writes seconds, such as 0.012345.
func (s Seconds) MarshalJSON() ([]byte, error) {
	return appendSeconds(nil, s), nil
}

func appendSeconds(dst []byte, s Seconds) []byte {
	us := time.Duration(s).Microseconds()
	if us < 0 || us >= 1e12 { // rare: not a wait of mail
		return strconv.AppendFloat(dst, float64(us)/1e6, 'f', -1, 64)
	}
	dst = strconv.AppendInt(dst, us/1e6, 10)
	if us %= 1e6; us == 0 {
		return dst
	}
	dst = append(dst, '.', byte('0'+us/100000), byte('0'+us/10000%10), byte('0'+us/1000%10), byte('0'+us/100%10), byte('0'+us/10%10), byte('0'+us%10))
	return bytes.TrimRight(dst, "0")
}

// UnmarshalJSON reads what [Seconds.MarshalJSON] wrote.
func (s *Seconds) UnmarshalJSON(b []byte) error {
	f, err := strconv.ParseFloat(string(b), 64)
	if err != nil || f > 1e9 || f < -1e9 {
		return fmt.Errorf("seconds: %.40q", b)
	}
	*s = Secs(time.Duration(f*1e6+copysign(0.5, f)) * time.Microsecond)
	return nil
}

func copysign(f, sign float64) float64 {
	if sign < 0 {
		return -f
	}
	return f
}

// SessionRefusals are the words of [SessionRefused.Reason].
func SessionRefusals() []string {
	return []string{"limit_total", "limit_source", "throttled", "denied", "tls_error", "proxy_protocol", "backpressure", "shutdown"}
}

// Refusals are the words of [Refusal.Reason].
func Refusals() []string {
	return []string{
		"relay_denied", "sender_denied", "unknown_recipient", "auth_required", "tls_required", "size", "recipients", "header", "hops",
		"unverified_recipient", "syntax", "utf8", "bare_newline", "throttle", "backpressure", "timeout", "storage", "protocol", "internal",
	}
}

// Changes are the words of [MessageQueued.Changed]. A Received field is added to
// every message that comes in by a connector, so no word says it.
func Changes() []string {
	return []string{
		"date", "message_id", "from", // header fields that were missing, and were added
		"separator",  // the empty line before a content that has no header section was added
		"fields",     // with a number, fields:2: header fields were removed that the client may not set
		"newlines",   // bare CR and LF were made line ends, and NUL a space
		"postmaster", // a recipient was replaced by the configured postmaster
	}
}

// TLSFailures are the words of [TLSNegotiated.Reason], [TLSPolicyFailed.Reason]
// and [AttemptFinished.TLSFailure]. The first ones are of handshakes; those from
// "not_offered" on are of what a next hop, or a domain's policy, lacks.
func TLSFailures() []string {
	return []string{
		"no_shared_cipher", "version", "old_protocol", "not_tls", "bad_certificate", "unknown_authority", "certificate_expired", "name_mismatch",
		"no_certificate", "closed", "timeout", "peer_alert", "other",
		"not_offered", "refused", "injected", "mx_mismatch", "tlsa_mismatch", "dnssec_failed", "policy_unavailable", "policy_malformed", "policy_certificate",
	}
}

// TLSPolicies are the words of [TLSPolicyFailed.Policy].
func TLSPolicies() []string { return []string{"encrypt", "verify", "verify_name", "dane", "mta_sts"} }

// Resources are the words of [PressureChanged.Resource].
func Resources() []string {
	return []string{"disk_space", "disk_latency", "memory", "queue_length", "outbox", "storage_error"}
}

// NullSender is how [Info.MailFrom] writes the null reverse-path.
const NullSender = "<>"

// Sender writes a as [Info.MailFrom] has it.
func Sender(a mail.Address) string {
	if a.IsNull() {
		return NullSender
	}
	return a.String()
}

// StagesOf converts an attempt's stages.
func StagesOf(s mail.Stages) Stages {
	return Stages{
		TDNS: Secs(s.DNS), TConnect: Secs(s.Connect), TBanner: Secs(s.Banner), TTLS: Secs(s.TLS), TAuth: Secs(s.Auth),
		TEnvelope: Secs(s.Envelope), TData: Secs(s.Data), TReply: Secs(s.Reply),
	}
}
