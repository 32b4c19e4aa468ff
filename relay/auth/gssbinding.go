package auth

import (
	"crypto/md5" //nolint:gosec // what RFC 4121 section 4.1.1.2 and MS-NLMP section 2.2.2.1 ask for
	"crypto/subtle"
	"encoding/binary"
	"fmt"
)

// GSSBinding is the form in which Kerberos and NTLM carry a channel binding: the
// MD5 hash of its kind and data in a structure of GSSAPI without addresses (RFC
// 2744 section 3.11, RFC 5056 section 2.1).
func GSSBinding(kind string, data []byte) [16]byte {
	text := append([]byte(kind+":"), data...)
	b := make([]byte, 20, 20+len(text))
	binary.LittleEndian.PutUint32(b[16:], uint32(len(text))) //nolint:gosec // a word and a hash
	return md5.Sum(append(b, text...))                       //nolint:gosec // as above
}

// CheckGSSBinding holds the binding that a client claims in that form against the
// connection. A zero one is that of a client that does not bind.
func (p Peer) CheckGSSBinding(claimed [16]byte) error {
	switch {
	case p.Binding == BindingOff:
		return nil
	case claimed == [16]byte{} && p.Binding == BindingRequire:
		return fmt.Errorf("%w: the client does not bind the login to the connection", ErrChannelBinding)
	case claimed == [16]byte{}:
		return nil
	}
	for _, kind := range []string{BindingEndPoint, BindingExporter, BindingUnique} {
		data, err := p.ChannelBinding(kind)
		if err != nil {
			continue
		}
		if ours := GSSBinding(kind, data); subtle.ConstantTimeCompare(ours[:], claimed[:]) == 1 {
			return nil
		}
	}
	return fmt.Errorf("%w: the login is bound to another connection", ErrChannelBinding)
}
