package gssapi

import (
	"crypto/rand"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"waybill/relay/auth"

	krbasn1 "github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/asn1tools"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// encryptionTypes are those that are taken: RFC 3962 and RFC 8009. Single DES,
// triple DES and RC4 are not (RFC 6649, RFC 8429). The library panics on keys
// and texts of wrong lengths, so that these are checked here.
var encryptionTypes = map[int32]struct{ key, mac int }{
	etypeID.AES128_CTS_HMAC_SHA1_96:    {16, 12},
	etypeID.AES256_CTS_HMAC_SHA1_96:    {32, 12},
	etypeID.AES128_CTS_HMAC_SHA256_128: {16, 16},
	etypeID.AES256_CTS_HMAC_SHA384_192: {32, 24},
}

const confounder = 16 // octets that AES encryption types put before the text

// krb5OID is the mechanism Kerberos V5 (RFC 4121 section 1).
var krb5OID = asn1.ObjectIdentifier{1, 2, 840, 113554, 1, 2, 2}

// The identifiers of context tokens (RFC 4121 section 4.1).
const (
	tokenRequest = 0x0100 // KRB_AP_REQ
	tokenReply   = 0x0200 // KRB_AP_REP
	tokenError   = 0x0300 // KRB_ERROR
)

// The flags of a context (RFC 4121 section 4.1.1.1).
const (
	flagMutual   = 2
	flagReplay   = 4
	flagSequence = 8
)

// gssChecksum is the type of the checksum that is none: it carries flags and
// channel bindings (RFC 4121 section 4.1.1).
const gssChecksum = 0x8003

// principal is who a ticket is for.
type principal struct{ user, realm string }

func (p principal) String() string { return p.user + "@" + p.realm }

// secContext is an established context.
type secContext struct {
	client    principal
	key       types.EncryptionKey // of the per-message tokens
	initiator bool                // we began it
	subkey    bool                // key is the acceptor's
	ordered   bool                // the peer numbers its tokens
	send      uint64              // number of our next token
	receive   uint64              // of the peer's
}

// accept checks the client's first token. The context is there as soon as the
// client is known, even when the request is refused; the answer is nil when the
// client wants none.
func (a *Acceptor) accept(token []byte, peer auth.Peer) (ctx *secContext, answer []byte, err error) {
	defer func() {
		// The library was written for tokens of friends. Nothing of ours is held here.
		if p := recover(); p != nil {
			answer, err = nil, fmt.Errorf("%w: token", auth.ErrMalformed)
		}
	}()
	body, err := unframe(token, tokenRequest)
	if err != nil {
		return nil, nil, err
	}
	var req messages.APReq
	if err := req.Unmarshal(body); err != nil {
		return nil, nil, fmt.Errorf("%w: request", auth.ErrMalformed)
	}
	if req.PVNO != 5 || req.APOptions.At(flags.APOptionUseSessionKey) == 1 {
		return nil, nil, fmt.Errorf("%w: version or option of the request", auth.ErrMalformed)
	}
	if err := a.openTicket(&req.Ticket); err != nil {
		return nil, nil, err
	}
	ticket := &req.Ticket.DecryptedEncPart
	client, err := nameOf(ticket.CName, ticket.CRealm)
	if err != nil {
		return nil, nil, err
	}
	ctx = &secContext{client: client}
	now := time.Now()
	if err := a.checkTicket(ticket, req.Ticket.Realm, now, peer); err != nil {
		return ctx, nil, err
	}
	who, err := a.openAuthenticator(&req, now)
	if err != nil {
		return ctx, nil, err
	}
	wants, err := checkBinding(who, peer)
	if err != nil {
		return ctx, nil, err
	}
	if err := a.opts.Replays.first(req.EncryptedAuthenticator.Cipher, now, who.CTime.Add(a.opts.MaxSkew)); err != nil {
		return ctx, nil, err
	}
	ctx.key = ticket.Key
	if len(who.SubKey.KeyValue) > 0 {
		ctx.key = who.SubKey
	}
	ctx.ordered = wants&(flagReplay|flagSequence) != 0
	ctx.receive = uint64(uint32(who.SeqNumber)) //nolint:gosec // old clients write it as a signed number (RFC 4120 section 5.3.2)
	ctx.send = ctx.receive                      // without a reply there is one number for both
	if wants&flagMutual == 0 {
		return ctx, nil, nil
	}
	answer, err = ctx.reply(who, ticket.Key)
	return ctx, answer, err
}

// unframe takes the mechanism and the kind off a context token (RFC 2743 section
// 3.1).
func unframe(token []byte, kind uint16) ([]byte, error) {
	var inner cryptobyte.String
	var oid asn1.ObjectIdentifier
	var got uint16
	in := cryptobyte.String(token)
	if !in.ReadASN1(&inner, cryptobyte_asn1.Tag(0x60)) || !in.Empty() || !inner.ReadASN1ObjectIdentifier(&oid) || !inner.ReadUint16(&got) {
		return nil, fmt.Errorf("%w: no GSSAPI token", auth.ErrMalformed)
	}
	if !oid.Equal(krb5OID) {
		return nil, fmt.Errorf("%w: a token of another mechanism than Kerberos", auth.ErrMalformed)
	}
	if got != kind {
		return nil, fmt.Errorf("%w: a token of the kind %04x", auth.ErrMalformed, got)
	}
	return inner, nil
}

// frame is the reverse of unframe.
func frame(kind uint16, body []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cryptobyte_asn1.Tag(0x60), func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(krb5OID)
		b.AddUint16(kind)
		b.AddBytes(body)
	})
	return b.Bytes()
}

// usable reports whether a key can be used without fear of the library.
func usable(k types.EncryptionKey) bool {
	et, ok := encryptionTypes[k.KeyType]
	return ok && len(k.KeyValue) == et.key
}

var errSeal = errors.New("the seal is broken")

// open decrypts, after checking the lengths that the library does not.
func open(e types.EncryptedData, key types.EncryptionKey, usage uint32) ([]byte, error) {
	if !usable(key) || e.EType != key.KeyType || len(e.Cipher) < confounder+encryptionTypes[key.KeyType].mac {
		return nil, errSeal
	}
	return crypto.DecryptMessage(e.Cipher, key, usage)
}

// openTicket decrypts the ticket with a key of ours.
func (a *Acceptor) openTicket(t *messages.Ticket) error {
	if _, ok := encryptionTypes[t.EncPart.EType]; !ok {
		return fmt.Errorf("%w: the ticket is of encryption type %d", auth.ErrWeak, t.EncPart.EType)
	}
	for _, key := range a.keys.candidates(t.EncPart.EType, t.EncPart.KVNO) {
		text, err := open(t.EncPart, key, keyusage.KDC_REP_TICKET)
		if err != nil {
			continue
		}
		if err := t.DecryptedEncPart.Unmarshal(text); err != nil {
			return fmt.Errorf("%w: ticket", auth.ErrMalformed)
		}
		return nil
	}
	return fmt.Errorf("%w: no key of the keytab opens the ticket, which is for encryption type %d and key version %d", auth.ErrCredentials, t.EncPart.EType, t.EncPart.KVNO)
}

// checkTicket checks what the realm says in the ticket.
func (a *Acceptor) checkTicket(t *messages.EncTicketPart, serviceRealm string, now time.Time, peer auth.Peer) error {
	start := t.StartTime
	if start.IsZero() {
		start = t.AuthTime // RFC 4120 section 5.3
	}
	switch {
	case t.Flags.At(flags.Invalid) == 1:
		return fmt.Errorf("%w: the ticket is not valid", auth.ErrExpired)
	case start.Sub(now) > a.opts.MaxSkew:
		return fmt.Errorf("%w: the ticket is not valid yet: it begins at %v", auth.ErrExpired, start)
	case now.Sub(t.EndTime) > a.opts.MaxSkew:
		return fmt.Errorf("%w: the ticket ended at %v", auth.ErrExpired, t.EndTime)
	case !a.welcome(t.CRealm):
		return fmt.Errorf("%w: users of the realm are not welcome", auth.ErrRealm)
	case t.CRealm != serviceRealm && len(t.Transited.Contents) > 0 && t.Flags.At(flags.TransitedPolicyChecked) == 0:
		// RFC 4120 section 2.7: where the KDC has not checked the realms on the
		// way, we would have to, and know nothing of them.
		return fmt.Errorf("%w: the way through other realms was not checked by ours", auth.ErrRealm)
	case !usable(t.Key):
		return fmt.Errorf("%w: the session key is of encryption type %d", auth.ErrWeak, t.Key.KeyType)
	case len(t.CAddr) > 0 && !fromAddress(t.CAddr, peer):
		return fmt.Errorf("%w: the ticket is for another address", auth.ErrCredentials)
	}
	return nil
}

// fromAddress reports whether a ticket that is tied to addresses is for this one
// (RFC 4120 section 7.5.3).
func fromAddress(list types.HostAddresses, peer auth.Peer) bool {
	const v4, v6 = 2, 24
	kind, at := int32(v6), peer.Remote.Unmap()
	if at.Is4() {
		kind = v4
	}
	for _, h := range list {
		if h.AddrType == kind && string(h.Address) == string(at.AsSlice()) {
			return true
		}
	}
	return false
}

// openAuthenticator decrypts what the client says, and checks it against the
// ticket.
func (a *Acceptor) openAuthenticator(req *messages.APReq, now time.Time) (*types.Authenticator, error) {
	ticket := &req.Ticket.DecryptedEncPart
	text, err := open(req.EncryptedAuthenticator, ticket.Key, keyusage.AP_REQ_AUTHENTICATOR)
	if err != nil {
		return nil, fmt.Errorf("%w: the authenticator is not of the ticket's holder", auth.ErrCredentials)
	}
	var who types.Authenticator
	if err := who.Unmarshal(text); err != nil {
		return nil, fmt.Errorf("%w: authenticator", auth.ErrMalformed)
	}
	at := who.CTime.Add(time.Duration(who.Cusec) * time.Microsecond)
	switch skew := now.Sub(at).Abs(); {
	case who.AVNO != 5 || who.Cusec < 0 || who.Cusec > 999_999:
		return nil, fmt.Errorf("%w: authenticator", auth.ErrMalformed)
	case !who.CName.Equal(ticket.CName) || who.CRealm != ticket.CRealm:
		return nil, fmt.Errorf("%w: the authenticator is for somebody else", auth.ErrCredentials)
	case skew > a.opts.MaxSkew:
		return nil, fmt.Errorf("%w: the client's clock differs by %v", auth.ErrClockSkew, skew.Round(time.Second))
	case len(who.SubKey.KeyValue) > 0 && !usable(who.SubKey):
		return nil, fmt.Errorf("%w: the sub-key is of encryption type %d", auth.ErrWeak, who.SubKey.KeyType)
	}
	return &who, nil
}

// checkBinding reads the flags that the client wants, and holds its channel
// binding against ours.
func checkBinding(who *types.Authenticator, peer auth.Peer) (wants uint32, err error) {
	sum := who.Cksum.Checksum
	if who.Cksum.CksumType != gssChecksum || len(sum) < 24 || binary.LittleEndian.Uint32(sum) != 16 {
		return 0, fmt.Errorf("%w: checksum of the authenticator", auth.ErrMalformed)
	}
	wants = binary.LittleEndian.Uint32(sum[20:])
	return wants, peer.CheckGSSBinding([16]byte(sum[4:20]))
}

// nameOf reads a principal's name. Parts that hold what separates parts could
// be taken for another user's.
func nameOf(n types.PrincipalName, realm string) (principal, error) {
	if len(n.NameString) == 0 || len(n.NameString) > 4 || realm == "" || !plain(realm, "/@") {
		return principal{}, fmt.Errorf("%w: name of the principal", auth.ErrMalformed)
	}
	for _, part := range n.NameString {
		if part == "" || !plain(part, "/@") {
			return principal{}, fmt.Errorf("%w: name of the principal", auth.ErrMalformed)
		}
	}
	p := principal{strings.Join(n.NameString, "/"), realm}
	if len(p.String()) > 255 {
		return principal{}, fmt.Errorf("%w: name of the principal", auth.ErrMalformed)
	}
	if strings.EqualFold(n.NameString[0], "WELLKNOWN") { // RFC 6111, such as WELLKNOWN/ANONYMOUS
		return p, fmt.Errorf("%w: a principal that is nobody's", auth.ErrCredentials)
	}
	return p, nil
}

// plain reports whether text has neither control characters nor any of these.
func plain(text, none string) bool {
	for _, r := range text {
		if r < ' ' || r == 0x7f || strings.ContainsRune(none, r) {
			return false
		}
	}
	return true
}

// encReply is EncAPRepPart (RFC 4120 section 5.5.2) with all its fields. The
// library can read it only.
type encReply struct {
	CTime    time.Time           `asn1:"generalized,explicit,tag:0"`
	Cusec    int                 `asn1:"explicit,tag:1"`
	SubKey   types.EncryptionKey `asn1:"explicit,tag:2"`
	Sequence int64               `asn1:"explicit,tag:3"`
}

// reply proves to the client who we are, and gives the context a key that is
// new on both sides: what the client says from now on is no recording.
func (c *secContext) reply(who *types.Authenticator, session types.EncryptionKey) ([]byte, error) {
	fresh := types.EncryptionKey{KeyType: c.key.KeyType, KeyValue: make([]byte, encryptionTypes[c.key.KeyType].key)}
	var number [4]byte
	_, _ = rand.Read(fresh.KeyValue) // never fails (Go 1.24)
	_, _ = rand.Read(number[:])
	c.key, c.subkey = fresh, true
	c.send = uint64(binary.BigEndian.Uint32(number[:]) >> 2)                           // small: some clients read it as a signed number
	part, err := krbasn1.Marshal(encReply{who.CTime, who.Cusec, fresh, int64(c.send)}) //nolint:gosec // 30 bits
	if err != nil {
		return nil, fmt.Errorf("write reply: %w", err)
	}
	sealed, err := crypto.GetEncryptedData(asn1tools.AddASNAppTag(part, asnAppTag.EncAPRepPart), session, keyusage.AP_REP_ENCPART, 0)
	if err != nil {
		return nil, fmt.Errorf("seal reply: %w", err)
	}
	body, err := krbasn1.Marshal(messages.APRep{PVNO: 5, MsgType: 15, EncPart: sealed})
	if err != nil {
		return nil, fmt.Errorf("write reply: %w", err)
	}
	return frame(tokenReply, asn1tools.AddASNAppTag(body, asnAppTag.APREP))
}
