// Package login logs the relay in at next hops by more than a user name and a
// password: XOAUTH2 with tokens that it gets by client credentials, NTLM, and
// GSSAPI with Kerberos tickets.
//
// It exists so that package smtpout, which speaks SMTP, need know nothing of
// token endpoints and key distribution centres. It promises that a secret is
// read when it is needed and kept nowhere, that no error and no fact holds one,
// that a token endpoint is asked over TLS that is verified, early and not more
// often than makes sense, and that a login is bound to its TLS channel where the
// mechanism can.
//
// To add a mechanism, add a type with the method Begin, as smtpout.Login wants
// it, in a file of its own.
package login

import (
	"crypto/tls"
	"errors"

	"waybill/relay/auth"
)

// errMore is the answer to a host that asks for more than the mechanism has.
var errMore = errors.New("AUTH asks for more than there is")

// binding is the channel binding of a login by Kerberos or NTLM: the hash of the
// host's certificate (RFC 5929 section 4). It is zero without TLS, and where the
// kind is not defined for the certificate; the host decides whether that will do.
func binding(state *tls.ConnectionState) (sum [16]byte) {
	if state == nil || len(state.PeerCertificates) == 0 {
		return sum
	}
	data, err := auth.EndPointBinding(state.PeerCertificates[0])
	if err != nil {
		return sum
	}
	return auth.GSSBinding(auth.BindingEndPoint, data)
}
