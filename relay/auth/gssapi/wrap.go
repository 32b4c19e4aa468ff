package gssapi

import (
	"bytes"
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"waybill/relay/auth"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/gssapi"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/types"
)

// The flags of a per-message token (RFC 4121 section 4.2.2).
const (
	fromAcceptor = 1 << iota
	sealed
	acceptorKey
)

// usage is the key usage of what the acceptor, or the initiator, wraps.
func usage(acceptor bool) uint32 {
	if acceptor {
		return keyusage.GSSAPI_ACCEPTOR_SEAL
	}
	return keyusage.GSSAPI_INITIATOR_SEAL
}

// wrap writes a text with a checksum, and not encrypted (RFC 4121 section
// 4.2.6.2): there is TLS for that.
func (c *secContext) wrap(text []byte) ([]byte, error) {
	t := gssapi.WrapToken{EC: uint16(encryptionTypes[c.key.KeyType].mac), SndSeqNum: c.send, Payload: text} //nolint:gosec // at most 24
	if !c.initiator {
		t.Flags |= fromAcceptor
	}
	if c.subkey {
		t.Flags |= acceptorKey
	}
	if err := t.SetCheckSum(c.key, usage(!c.initiator)); err != nil {
		return nil, fmt.Errorf("wrap: %w", err)
	}
	c.send++
	return t.Marshal()
}

// errToken is all that is said about a per-message token that is not right.
var errToken = fmt.Errorf("%w: per-message token", auth.ErrMalformed)

// unwrap checks the peer's token and takes the text out.
func (c *secContext) unwrap(token []byte) (text []byte, err error) {
	defer func() {
		if recover() != nil { // the library again
			text, err = nil, errToken
		}
	}()
	if len(token) < gssapi.HdrLen || token[0] != 5 || token[1] != 4 || token[3] != gssapi.FillerByte {
		return nil, errToken
	}
	flags := token[2]
	if flags&fromAcceptor != 0 != c.initiator || flags&acceptorKey != 0 != c.subkey || flags >= acceptorKey<<1 {
		return nil, errToken
	}
	extra := int(binary.BigEndian.Uint16(token[4:]))
	if number := binary.BigEndian.Uint64(token[8:]); c.ordered && number != c.receive {
		return nil, fmt.Errorf("%w: its number is not the next", errToken)
	}
	body := unrotate(token[gssapi.HdrLen:], int(binary.BigEndian.Uint16(token[6:])))
	if flags&sealed != 0 {
		text, err = c.unseal(token[:gssapi.HdrLen], body, extra)
	} else {
		text, err = c.unsign(token[:gssapi.HdrLen], body, extra)
	}
	if err != nil {
		return nil, err
	}
	c.receive++
	return text, nil
}

// unrotate undoes the rotation to the right that some clients send (RFC 4121
// section 4.2.5).
func unrotate(body []byte, count int) []byte {
	if len(body) == 0 {
		return body
	}
	count %= len(body)
	return slices.Concat(body[count:], body[:count])
}

// unsign checks the checksum over the text and the header.
func (c *secContext) unsign(header, body []byte, extra int) ([]byte, error) {
	if extra != encryptionTypes[c.key.KeyType].mac || extra > len(body) {
		return nil, errToken
	}
	text, sum := body[:len(body)-extra], body[len(body)-extra:]
	et, err := crypto.GetEtype(c.key.KeyType)
	if err != nil {
		return nil, err
	}
	// RFC 4121 section 4.2.4: the header counts with its two lengths as zero.
	want, err := et.GetChecksumHash(c.key.KeyValue, slices.Concat(text, plainHeader(header, 0)), usage(c.initiator))
	if err != nil || !hmac.Equal(want, sum) {
		return nil, errors.Join(auth.ErrCredentials, errSeal)
	}
	return text, nil
}

// unseal decrypts a text that the client chose to encrypt though it need not.
func (c *secContext) unseal(header, body []byte, extra int) ([]byte, error) {
	text, err := open(types.EncryptedData{EType: c.key.KeyType, Cipher: body}, c.key, usage(c.initiator))
	switch {
	case err != nil:
		return nil, errors.Join(auth.ErrCredentials, errSeal)
	case len(text) < gssapi.HdrLen+extra:
		return nil, errToken
	}
	end := len(text) - gssapi.HdrLen
	if !bytes.Equal(text[end:], plainHeader(header, extra)) {
		return nil, errToken
	}
	return text[:end-extra], nil
}

// plainHeader is a token's header as the checksum sees it: not rotated.
func plainHeader(header []byte, extra int) []byte {
	h := bytes.Clone(header)
	binary.BigEndian.PutUint16(h[4:], uint16(extra)) //nolint:gosec // of 16 bits
	binary.BigEndian.PutUint16(h[6:], 0)
	return h
}
