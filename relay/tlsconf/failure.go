package tlsconf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
)

// The words for why TLS failed that [Reason] gives. They are among those of
// event.TLSFailures.
const (
	NoSharedCipher     = "no_shared_cipher"    // neither cipher nor key exchange in common
	Version            = "version"             // no TLS version in common
	OldProtocol        = "old_protocol"        // SSL 2 or SSL 3
	NotTLS             = "not_tls"             // something else than TLS came, such as plain text
	BadCertificate     = "bad_certificate"     // malformed, revoked, or not for this use
	UnknownAuthority   = "unknown_authority"   // from nobody who is trusted
	CertificateExpired = "certificate_expired" // or not yet valid
	NameMismatch       = "name_mismatch"       // for another name
	NoCertificate      = "no_certificate"      // needed, and not shown
	Closed             = "closed"              // the peer went
	Timeout            = "timeout"
	PeerAlert          = "peer_alert" // the peer gave up for a reason that has no word here
	Other              = "other"
)

// alerts are what peers say when they give up, in the words of crypto/tls, and
// what that means (RFC 8446 section 6.2).
var alerts = map[string]string{
	"tls: handshake failure":              NoSharedCipher,
	"tls: insufficient security level":    NoSharedCipher,
	"tls: protocol version not supported": Version,
	"tls: inappropriate fallback":         Version,
	"tls: bad certificate":                BadCertificate,
	"tls: unsupported certificate":        BadCertificate,
	"tls: revoked certificate":            BadCertificate,
	"tls: unknown certificate":            BadCertificate,
	"tls: expired certificate":            CertificateExpired,
	"tls: unknown certificate authority":  UnknownAuthority,
	"tls: certificate required":           NoCertificate,
	"tls: unrecognized name":              NameMismatch,
	"tls: user canceled":                  Closed,
	"tls: close notify":                   Closed,
}

// texts are errors of crypto/tls that have no type of their own. A test holds
// the two together.
var texts = []struct{ part, word string }{
	{"client offered only unsupported versions: [300]", OldProtocol},
	{"client offered only unsupported versions: []", OldProtocol},
	{"offered only unsupported versions", Version},
	{"server selected unsupported protocol version", Version},
	{"no supported versions satisfy", Version},
	{"no cipher suite supported by both", NoSharedCipher},
	{"server chose an unconfigured cipher suite", NoSharedCipher},
	{"no key exchanges supported by both", NoSharedCipher},
	{"doesn't support any of the certificate's signature algorithms", NoSharedCipher},
	{"client didn't provide a certificate", NoCertificate},
}

// Reason is the word for why a handshake ended in err; empty when err is nil.
func Reason(err error) string {
	if err == nil {
		return ""
	}
	if word := certificateReason(err); word != "" {
		return word
	}
	var record tls.RecordHeaderError
	var op *net.OpError
	var timeout net.Error
	switch {
	case errors.As(err, &record):
		if record.RecordHeader[0] == 0x80 || strings.Contains(record.Msg, "SSLv2") { // the length of an SSL 2 hello, with its highest bit set
			return OldProtocol
		}
		return NotTLS
	case errors.As(err, &op) && op.Op == "remote error":
		if word, ok := alerts[op.Err.Error()]; ok {
			return word
		}
		return PeerAlert
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return Timeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return Closed
	}
	text := err.Error()
	for _, t := range texts {
		if strings.Contains(text, t.part) {
			return t.word
		}
	}
	return Other
}

// certificateReason is the word for what is wrong with a certificate, or empty
// when err is about something else.
func certificateReason(err error) string {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var verification *tls.CertificateVerificationError
	var critical x509.UnhandledCriticalExtension
	switch {
	case errors.Is(err, ErrClientName), errors.As(err, &host):
		return NameMismatch
	case errors.As(err, &unknown):
		return UnknownAuthority
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return CertificateExpired
	case errors.As(err, &invalid), errors.As(err, &critical), errors.As(err, &verification):
		return BadCertificate
	}
	return ""
}
