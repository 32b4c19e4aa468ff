package gssapi

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"waybill/relay/auth"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// flagIntegrity asks for checksums (RFC 4121 section 4.1.1.1), which the choice
// of security layer is protected by.
const flagIntegrity = 32

// initiator is the client's side of an exchange: a sasl.Client with a ticket.
type initiator struct {
	name    types.PrincipalName
	realm   string
	ticket  messages.Ticket
	session types.EncryptionKey
	authz   string
	binding [16]byte // of auth.GSSBinding; zero for none

	step   step
	at     time.Time // what the server has to repeat
	ctx    secContext
	proven bool
}

// Proven reports whether the server has shown that it holds the service's key.
func (i *initiator) Proven() error {
	if !i.proven {
		return errors.New("GSSAPI: the server let us in without showing who it is")
	}
	return nil
}

// Start makes the first token. It always asks the server to prove who it is.
func (i *initiator) Start() (mechanism string, token []byte, err error) {
	if !usable(i.session) {
		return "", nil, fmt.Errorf("the session key is of encryption type %d, which is not taken", i.session.KeyType)
	}
	key := types.EncryptionKey{KeyType: i.session.KeyType, KeyValue: make([]byte, len(i.session.KeyValue))}
	var number [4]byte
	_, _ = rand.Read(key.KeyValue) // never fails (Go 1.24)
	_, _ = rand.Read(number[:])
	i.at = time.Now().UTC().Truncate(time.Microsecond)
	i.ctx = secContext{initiator: true, ordered: true, key: key, send: uint64(binary.BigEndian.Uint32(number[:]) >> 2)}
	sum := make([]byte, 24)
	binary.LittleEndian.PutUint32(sum, 16)
	copy(sum[4:], i.binding[:])
	binary.LittleEndian.PutUint32(sum[20:], flagMutual|flagReplay|flagSequence|flagIntegrity)
	token, err = i.request(types.Authenticator{
		AVNO: 5, CRealm: i.realm, CName: i.name, Cksum: types.Checksum{CksumType: gssChecksum, Checksum: sum},
		Cusec: i.at.Nanosecond() / 1000, CTime: i.at.Truncate(time.Second), SubKey: key, SeqNumber: int64(i.ctx.send), //nolint:gosec // of 30 bits
	})
	i.step = stepToken
	return "GSSAPI", token, err
}

// request writes the first token.
func (i *initiator) request(who types.Authenticator) ([]byte, error) {
	text, err := who.Marshal()
	if err != nil {
		return nil, fmt.Errorf("write authenticator: %w", err)
	}
	enc, err := crypto.GetEncryptedData(text, i.session, keyusage.AP_REQ_AUTHENTICATOR, 0)
	if err != nil {
		return nil, fmt.Errorf("seal authenticator: %w", err)
	}
	req := messages.APReq{PVNO: 5, MsgType: 14, APOptions: types.NewKrbFlags(), Ticket: i.ticket, EncryptedAuthenticator: enc}
	types.SetFlag(&req.APOptions, flags.APOptionMutualRequired)
	body, err := req.Marshal()
	if err != nil {
		return nil, fmt.Errorf("write request: %w", err)
	}
	return frame(tokenRequest, body)
}

// Next answers the server's tokens.
func (i *initiator) Next(challenge []byte) (response []byte, err error) {
	was := i.step
	i.step = stepOver
	switch was {
	case stepToken:
		if err := i.check(challenge); err != nil {
			return nil, err
		}
		i.step = stepLayer
		return []byte{}, nil
	case stepLayer:
		offer, err := i.ctx.unwrap(challenge)
		if err != nil {
			return nil, err
		}
		if len(offer) != 4 || offer[0]&noLayer[0] == 0 {
			return nil, errors.New("the server insists on a security layer")
		}
		i.proven = true // the offer is signed with a key that only the ticket's service can know
		return i.ctx.wrap(append(noLayer[:4:4], i.authz...))
	case stepEmpty, stepOver:
	}
	return nil, errors.New("the exchange is over")
}

// check lets the server prove who it is.
func (i *initiator) check(token []byte) (err error) {
	defer func() {
		if recover() != nil { // the library
			err = fmt.Errorf("%w: reply", auth.ErrMalformed)
		}
	}()
	body, err := unframe(token, tokenReply)
	if err != nil {
		if _, failed := unframe(token, tokenError); failed == nil {
			return errors.New("the server refuses the ticket")
		}
		return err
	}
	var rep messages.APRep
	if err := rep.Unmarshal(body); err != nil {
		return fmt.Errorf("%w: reply", auth.ErrMalformed)
	}
	text, err := open(rep.EncPart, i.session, keyusage.AP_REP_ENCPART)
	if err != nil {
		return fmt.Errorf("the server's reply: %w", err)
	}
	var part messages.EncAPRepPart
	if err := part.Unmarshal(text); err != nil {
		return fmt.Errorf("%w: reply", auth.ErrMalformed)
	}
	if !part.CTime.Equal(i.at.Truncate(time.Second)) || part.Cusec != i.at.Nanosecond()/1000 {
		return errors.New("the server's reply is to another request")
	}
	i.ctx.receive = uint64(uint32(part.SequenceNumber)) //nolint:gosec // of 32 bits
	if len(part.Subkey.KeyValue) > 0 {
		if !usable(part.Subkey) {
			return fmt.Errorf("the server's sub-key is of encryption type %d, which is not taken", part.Subkey.KeyType)
		}
		i.ctx.key, i.ctx.subkey = part.Subkey, true
	}
	return nil
}
