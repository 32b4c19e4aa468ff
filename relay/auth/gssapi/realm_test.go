package gssapi

import (
	"crypto/rand"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"waybill/relay/auth"

	krbasn1 "github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/asn1tools"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

const (
	testRealm   = "EXAMPLE.COM"
	testService = "smtp/mx1.example.com"
)

// realm is a key distribution centre without the network.
type realm struct {
	t      testing.TB
	keytab string
	keys   *keytab.Keytab
}

func newRealm(t testing.TB, etypes ...int32) *realm {
	t.Helper()
	r := &realm{t: t, keytab: filepath.Join(t.TempDir(), "smtp.keytab"), keys: keytab.New()}
	for _, e := range etypes {
		r.addKey(testService, e, 2)
	}
	r.write()
	return r
}

func (r *realm) addKey(service string, etype int32, version uint8) {
	r.t.Helper()
	if err := r.keys.AddEntry(service, testRealm, rand.Text(), time.Now(), version, etype); err != nil {
		r.t.Fatal(err)
	}
}

func (r *realm) write() {
	r.t.Helper()
	b, err := r.keys.Marshal()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(r.keytab, b, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// part is a fresh ticket for a user, before it is sealed.
func (r *realm) part(user string, etype int32) messages.EncTicketPart {
	now := time.Now().UTC()
	p := messages.EncTicketPart{
		Flags: types.NewKrbFlags(), Key: types.EncryptionKey{KeyType: etype, KeyValue: make([]byte, 64)},
		CRealm: testRealm, CName: types.NewPrincipalName(1, user), Transited: messages.TransitedEncoding{},
		AuthTime: now.Add(-time.Minute), StartTime: now.Add(-time.Minute), EndTime: now.Add(time.Hour), RenewTill: now.Add(time.Hour),
	}
	if e, ok := encryptionTypes[etype]; ok {
		p.Key.KeyValue = p.Key.KeyValue[:e.key]
	} else {
		p.Key.KeyValue = p.Key.KeyValue[:16]
	}
	_, _ = rand.Read(p.Key.KeyValue)
	return p
}

// seal makes a ticket of it, with the service's key.
func (r *realm) seal(p messages.EncTicketPart, etype int32) messages.Ticket {
	r.t.Helper()
	b, err := krbasn1.Marshal(p)
	if err != nil {
		r.t.Fatal(err)
	}
	name := types.NewPrincipalName(2, testService)
	key, version, err := r.keys.GetEncryptionKey(name, testRealm, 0, etype)
	if err != nil {
		r.t.Fatal(err)
	}
	enc, err := crypto.GetEncryptedData(asn1tools.AddASNAppTag(b, asnAppTag.EncTicketPart), key, keyusage.KDC_REP_TICKET, version)
	if err != nil {
		r.t.Fatal(err)
	}
	return messages.Ticket{TktVNO: 5, Realm: testRealm, SName: name, EncPart: enc}
}

// client has a ticket.
func (r *realm) client(p messages.EncTicketPart, etype int32) *initiator {
	return &initiator{name: p.CName, realm: p.CRealm, ticket: r.seal(p, etype), session: p.Key}
}

// alice is a client as they should be.
func (r *realm) alice() *initiator {
	return r.client(r.part("alice", etypeID.AES256_CTS_HMAC_SHA1_96), etypeID.AES256_CTS_HMAC_SHA1_96)
}

// acceptor takes every user of the realm.
func (r *realm) acceptor(opts Options) *Acceptor {
	r.t.Helper()
	opts.KeytabFile = r.keytab
	if opts.Service == "" {
		opts.Service = testService
	}
	if opts.Identify == nil {
		opts.Identify = auth.Proved{Format: "{user}@{domain}", Senders: []string{"{user}@example.com"}}.Identity
	}
	a, err := New(opts)
	if err != nil {
		r.t.Fatal(err)
	}
	return a
}

var testPeer = auth.Peer{Remote: netip.MustParseAddr("192.0.2.1")}

// authenticator is the one that a client of p would make.
func authenticator(p messages.EncTicketPart, wants byte) types.Authenticator {
	sum := make([]byte, 24)
	sum[0], sum[20] = 16, wants
	now := time.Now().UTC()
	return types.Authenticator{
		AVNO: 5, CRealm: p.CRealm, CName: p.CName, CTime: now.Truncate(time.Second), Cusec: now.Nanosecond() / 1000, SeqNumber: 4711,
		Cksum: types.Checksum{CksumType: gssChecksum, Checksum: sum},
	}
}
