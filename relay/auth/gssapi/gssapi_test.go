package gssapi

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"waybill/relay/auth"
	"waybill/relay/relaytest"

	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// exchange runs a client against an acceptor to the end.
func exchange(a *Acceptor, c *initiator, p auth.Peer) (id auth.Identity, err error) {
	_, token, err := c.Start()
	if err != nil {
		return id, fmt.Errorf("client: %w", err)
	}
	s := a.Mechanism().Start(p, func(i auth.Identity) { id = i })
	for {
		challenge, done, err := s.Next(token)
		if err != nil || done {
			return id, err
		}
		if token, err = c.Next(challenge); err != nil {
			return id, fmt.Errorf("client: %w", err)
		}
	}
}

func reason(err error) string {
	if f, ok := errors.AsType[*auth.Failure](err); ok {
		return f.Reason
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func TestExchange(t *testing.T) {
	const sha1 = etypeID.AES256_CTS_HMAC_SHA1_96
	r := newRealm(t, sha1)
	for _, test := range []struct {
		name   string
		opts   Options
		change func(*messages.EncTicketPart)
		client func(*initiator)
		want   string // reason, or empty
	}{
		{name: "good"},
		{name: "own name as authorization identity", client: func(c *initiator) { c.authz = "alice" }},
		{name: "principal as authorization identity", client: func(c *initiator) { c.authz = "alice@EXAMPLE.COM" }},
		{name: "our name for her as authorization identity", client: func(c *initiator) { c.authz = "Alice@example.com" }},
		{name: "foreign authorization identity", client: func(c *initiator) { c.authz = "bob@EXAMPLE.COM" }, want: auth.ReasonCredentials},
		{name: "ended long ago", change: func(p *messages.EncTicketPart) { p.EndTime = time.Now().Add(-6 * time.Minute).UTC() }, want: auth.ReasonExpired},
		{name: "ended within the skew", change: func(p *messages.EncTicketPart) { p.EndTime = time.Now().Add(-4 * time.Minute).UTC() }},
		{name: "begins later", change: func(p *messages.EncTicketPart) { p.StartTime = time.Now().Add(6 * time.Minute).UTC() }, want: auth.ReasonExpired},
		{name: "invalid", change: func(p *messages.EncTicketPart) { types.SetFlag(&p.Flags, flags.Invalid) }, want: auth.ReasonExpired},
		{name: "foreign realm", change: func(p *messages.EncTicketPart) { p.CRealm = "EVIL.EXAMPLE" }, want: auth.ReasonRealm},
		{name: "welcome realm", opts: Options{Realms: []string{"FRIEND.EXAMPLE"}}, change: func(p *messages.EncTicketPart) { p.CRealm = "FRIEND.EXAMPLE" }},
		{name: "own realm is not among the welcome", opts: Options{Realms: []string{"FRIEND.EXAMPLE"}}, want: auth.ReasonRealm},
		{
			name: "over realms that nobody checked", opts: Options{Realms: []string{"FRIEND.EXAMPLE"}},
			change: func(p *messages.EncTicketPart) {
				p.CRealm, p.Transited.Contents = "FRIEND.EXAMPLE", []byte("MIDDLE.EXAMPLE")
			},
			want: auth.ReasonRealm,
		},
		{
			name: "over realms that the KDC checked", opts: Options{Realms: []string{"FRIEND.EXAMPLE"}},
			change: func(p *messages.EncTicketPart) {
				p.CRealm, p.Transited.Contents = "FRIEND.EXAMPLE", []byte("MIDDLE.EXAMPLE")
				types.SetFlag(&p.Flags, flags.TransitedPolicyChecked)
			},
		},
		{name: "for this address", change: func(p *messages.EncTicketPart) {
			p.CAddr = types.HostAddresses{{AddrType: 2, Address: []byte{192, 0, 2, 1}}}
		}},
		{name: "for another address", change: func(p *messages.EncTicketPart) {
			p.CAddr = types.HostAddresses{{AddrType: 2, Address: []byte{192, 0, 2, 2}}}
		}, want: auth.ReasonCredentials},
		{name: "claims a friendlier realm", client: func(c *initiator) { c.realm = "FRIEND.EXAMPLE" }, want: auth.ReasonCredentials},
		{name: "claims another name", client: func(c *initiator) { c.name = types.NewPrincipalName(1, "bob") }, want: auth.ReasonCredentials},
		{name: "has not the session key", client: func(c *initiator) { c.session.KeyValue = make([]byte, 32) }, want: auth.ReasonCredentials},
		{name: "service principal as user", change: func(p *messages.EncTicketPart) { p.CName = types.NewPrincipalName(1, "app/host") }},
		{name: "name with a separator in it", change: func(p *messages.EncTicketPart) {
			p.CName = types.PrincipalName{NameType: 1, NameString: []string{"a/b"}}
		}, want: auth.ReasonMalformed},
		{name: "name with a realm in it", change: func(p *messages.EncTicketPart) {
			p.CName = types.PrincipalName{NameType: 1, NameString: []string{"a@FRIEND.EXAMPLE"}}
		}, want: auth.ReasonMalformed},
		{name: "nobody", change: func(p *messages.EncTicketPart) { p.CName = types.NewPrincipalName(11, "WELLKNOWN/ANONYMOUS") }, want: auth.ReasonCredentials},
		{
			name: "unknown user", opts: Options{Identify: func(string, string) (auth.Identity, error) { return auth.Identity{}, auth.ErrUnknownUser }},
			want: auth.ReasonUnknownUser,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := r.part("alice", sha1)
			if test.change != nil {
				test.change(&p)
			}
			c := r.client(p, sha1)
			if test.client != nil {
				test.client(c)
			}
			id, err := exchange(r.acceptor(test.opts), c, testPeer)
			if got := reason(err); got != test.want {
				t.Errorf("reason = %q (%v), want %q", got, err, test.want)
			}
			if (err == nil) != (id.User != "") {
				t.Errorf("identity = %+v with error %v", id, err)
			}
		})
	}
}

func TestChannelBinding(t *testing.T) {
	peer, client := tlsPeer(t)
	exported, err := client.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		t.Fatal(err)
	}
	r := newRealm(t, etypeID.AES256_CTS_HMAC_SHA1_96)
	leaf := sha256.Sum256(client.PeerCertificates[0].Raw) // signed with SHA-256
	endPoint, exporter := auth.GSSBinding(auth.BindingEndPoint, leaf[:]), auth.GSSBinding(auth.BindingExporter, exported)
	for _, test := range []struct {
		name    string
		policy  auth.Binding
		tls     bool
		binding [16]byte
		want    string
	}{
		{"none", auth.BindingAllow, true, [16]byte{}, ""},
		{"none where one is needed", auth.BindingRequire, true, [16]byte{}, auth.ReasonBinding},
		{"to the certificate", auth.BindingRequire, true, endPoint, ""},
		{"to the connection", auth.BindingAllow, true, exporter, ""},
		{"to another", auth.BindingAllow, true, [16]byte{1}, auth.ReasonBinding},
		{"to another, and nobody minds", auth.BindingOff, true, [16]byte{1}, ""},
		{"to a connection that ends before us", auth.BindingAllow, false, endPoint, auth.ReasonBinding},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := peer
			p.Binding = test.policy
			if !test.tls {
				p.TLS, p.Certificate = nil, nil
			}
			c := r.alice()
			c.binding = test.binding
			if _, err := exchange(r.acceptor(Options{}), c, p); reason(err) != test.want {
				t.Errorf("reason = %v, want %q", err, test.want)
			}
		})
	}
}

// tlsPeer is a client with a TLS connection, seen from both sides.
func tlsPeer(t *testing.T) (auth.Peer, tls.ConnectionState) {
	t.Helper()
	server, client, leaf := relaytest.Handshake(t, "mx1.example.com")
	p := testPeer
	p.TLS, p.Certificate = &server, leaf
	return p, client
}

func TestEncryptionTypes(t *testing.T) {
	r := newRealm(t, etypeID.AES256_CTS_HMAC_SHA1_96, etypeID.AES128_CTS_HMAC_SHA1_96, etypeID.RC4_HMAC,
		etypeID.AES128_CTS_HMAC_SHA256_128, etypeID.AES256_CTS_HMAC_SHA384_192)
	for _, test := range []struct {
		name    string
		ticket  int32
		session int32
		want    string
	}{
		{"aes128-cts-hmac-sha1-96", etypeID.AES128_CTS_HMAC_SHA1_96, etypeID.AES128_CTS_HMAC_SHA1_96, ""},
		{"aes256-cts-hmac-sha1-96", etypeID.AES256_CTS_HMAC_SHA1_96, etypeID.AES256_CTS_HMAC_SHA1_96, ""},
		{"aes128-cts-hmac-sha256-128", etypeID.AES128_CTS_HMAC_SHA256_128, etypeID.AES128_CTS_HMAC_SHA256_128, ""},
		{"aes256-cts-hmac-sha384-192", etypeID.AES256_CTS_HMAC_SHA384_192, etypeID.AES256_CTS_HMAC_SHA384_192, ""},
		{"mixed", etypeID.AES256_CTS_HMAC_SHA384_192, etypeID.AES128_CTS_HMAC_SHA1_96, ""},
		{"rc4 ticket", etypeID.RC4_HMAC, etypeID.AES256_CTS_HMAC_SHA1_96, auth.ReasonWeak},
		{"rc4 session key", etypeID.AES256_CTS_HMAC_SHA1_96, etypeID.RC4_HMAC, auth.ReasonWeak},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := r.part("alice", test.session)
			a := r.acceptor(Options{})
			var err error
			if test.session == etypeID.RC4_HMAC { // our client would not begin
				_, _, err = a.Mechanism().Start(testPeer, nil).Next(rawRequest(t, r, p, test.ticket, authenticator(p, 0)))
			} else {
				_, err = exchange(a, r.client(p, test.ticket), testPeer)
			}
			if got := reason(err); got != test.want {
				t.Errorf("reason = %q (%v), want %q", got, err, test.want)
			}
		})
	}
}

// rawRequest is the first token with an authenticator of one's own making.
func rawRequest(t testing.TB, r *realm, p messages.EncTicketPart, etype int32, who types.Authenticator) []byte {
	t.Helper()
	c := r.client(p, etype)
	token, err := c.request(who)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestAuthenticator(t *testing.T) {
	const etype = etypeID.AES128_CTS_HMAC_SHA256_128
	r := newRealm(t, etype)
	for _, test := range []struct {
		name   string
		change func(*types.Authenticator)
		want   string
	}{
		{"good", func(*types.Authenticator) {}, ""},
		{"slow clock", func(w *types.Authenticator) { w.CTime = w.CTime.Add(-6 * time.Minute) }, auth.ReasonClockSkew},
		{"fast clock", func(w *types.Authenticator) { w.CTime = w.CTime.Add(6 * time.Minute) }, auth.ReasonClockSkew},
		{"fast clock, within bounds", func(w *types.Authenticator) { w.CTime = w.CTime.Add(4 * time.Minute) }, ""},
		{"microseconds of a minute", func(w *types.Authenticator) { w.Cusec = 60_000_000 }, auth.ReasonMalformed},
		{"no checksum", func(w *types.Authenticator) { w.Cksum = types.Checksum{CksumType: 7, Checksum: make([]byte, 24)} }, auth.ReasonMalformed},
		{"short checksum", func(w *types.Authenticator) { w.Cksum.Checksum = w.Cksum.Checksum[:23] }, auth.ReasonMalformed},
		{"binding of another length", func(w *types.Authenticator) { w.Cksum.Checksum[0] = 17 }, auth.ReasonMalformed},
		{"short sub-key", func(w *types.Authenticator) {
			w.SubKey = types.EncryptionKey{KeyType: etype, KeyValue: make([]byte, 3)}
		}, auth.ReasonWeak},
		{"rc4 sub-key", func(w *types.Authenticator) { w.SubKey = types.EncryptionKey{KeyType: 23, KeyValue: make([]byte, 16)} }, auth.ReasonWeak},
		{"another version", func(w *types.Authenticator) { w.AVNO = 4 }, auth.ReasonMalformed},
		{"empty name", func(w *types.Authenticator) { w.CName.NameString = nil }, auth.ReasonCredentials},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := r.part("alice", etype)
			who := authenticator(p, 0)
			test.change(&who)
			_, _, err := r.acceptor(Options{}).Mechanism().Start(testPeer, nil).Next(rawRequest(t, r, p, etype, who))
			if got := reason(err); got != test.want {
				t.Errorf("reason = %q (%v), want %q", got, err, test.want)
			}
			if f, ok := errors.AsType[*auth.Failure](err); ok && f.User != "alice@example.com" {
				t.Errorf("user of the failure = %q, want alice@example.com", f.User)
			}
		})
	}
}

// TestWithoutMutual speaks as curl does: no reply, and one number for both.
func TestWithoutMutual(t *testing.T) {
	const etype = etypeID.AES256_CTS_HMAC_SHA384_192
	r := newRealm(t, etype)
	p := r.part("alice", etype)
	for _, test := range []struct {
		name   string
		change func(ctx *secContext)
		mangle func(token []byte) []byte
		choice string
		want   string
	}{
		{name: "good"},
		{name: "with a name", choice: "\x01\x00\x00\x00alice"},
		{name: "a security layer", choice: "\x04\x00\xff\xff", want: auth.ReasonMalformed},
		{name: "short choice", choice: "\x01\x00\x00", want: auth.ReasonMalformed},
		{name: "rotated", mangle: func(b []byte) []byte { return rotate(b, 12) }},
		{name: "rotated by more than there is", mangle: func(b []byte) []byte { return rotate(b, 1000) }},
		{name: "number of another token", change: func(c *secContext) { c.send++ }, want: auth.ReasonMalformed},
		{name: "another key", change: func(c *secContext) { c.key.KeyValue = make([]byte, 32) }, want: auth.ReasonCredentials},
		{name: "our own token sent back", change: func(c *secContext) { c.initiator = false }, want: auth.ReasonMalformed},
		{name: "a key of ours that there is not", change: func(c *secContext) { c.subkey = true }, want: auth.ReasonMalformed},
		{name: "cut", mangle: func(b []byte) []byte { return b[:15] }, want: auth.ReasonMalformed},
		{name: "header alone", mangle: func(b []byte) []byte { return b[:16] }, want: auth.ReasonMalformed},
		{name: "empty", mangle: func([]byte) []byte { return nil }, want: auth.ReasonMalformed},
		{name: "a bit turned", mangle: func(b []byte) []byte { b[17] ^= 1; return b }, want: auth.ReasonCredentials},
		{name: "said to be sealed", mangle: func(b []byte) []byte { b[2] |= sealed; return b }, want: auth.ReasonCredentials},
	} {
		t.Run(test.name, func(t *testing.T) {
			var id auth.Identity
			s := r.acceptor(Options{}).Mechanism().Start(testPeer, func(i auth.Identity) { id = i })
			who := authenticator(p, flagSequence)
			challenge, done, err := s.Next(rawRequest(t, r, p, etype, who))
			if err != nil || done {
				t.Fatalf("first token: %v", err)
			}
			ctx := &secContext{key: p.Key, initiator: true, ordered: true, send: 4711, receive: 4711}
			if offer, err := ctx.unwrap(challenge); err != nil || !bytes.Equal(offer, noLayer) {
				t.Fatalf("offer = %x, %v, want %x", offer, err, noLayer)
			}
			if test.change != nil {
				test.change(ctx)
			}
			if test.choice == "" {
				test.choice = "\x01\x00\x00\x00"
			}
			token, err := ctx.wrap([]byte(test.choice))
			if err != nil {
				t.Fatal(err)
			}
			if test.mangle != nil {
				token = test.mangle(token)
			}
			_, done, err = s.Next(token)
			if got := reason(err); got != test.want || done != (test.want == "") {
				t.Errorf("reason = %q (%v), done %t, want %q", got, err, done, test.want)
			}
			if done && id.User != "alice@example.com" {
				t.Errorf("user = %q, want alice@example.com", id.User)
			}
			if _, done, err := s.Next(token); done || reason(err) != auth.ReasonMalformed {
				t.Errorf("a second end gave done %t, %v, want malformed", done, err)
			}
		})
	}
}

func rotate(b []byte, n int) []byte {
	b[6], b[7] = byte(n>>8), byte(n)
	body := b[16:]
	n %= len(body)
	return append(append(bytes.Clone(b[:16]), body[len(body)-n:]...), body[:len(body)-n]...)
}

func TestMalformed(t *testing.T) {
	r := newRealm(t, etypeID.AES256_CTS_HMAC_SHA1_96)
	a := r.acceptor(Options{})
	_, good, err := r.alice().Start()
	if err != nil {
		t.Fatal(err)
	}
	spnego := bytes.Replace(good, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x12, 1, 2, 2}, []byte{0x2a, 0x86, 0x48, 0x82, 0xf7, 0x12, 1, 2, 2}, 1)
	for _, test := range []struct {
		name  string
		token []byte
		want  string
	}{
		{"empty", []byte{}, auth.ReasonMalformed},
		{"text", []byte("hello"), auth.ReasonMalformed},
		{"one octet less", good[:len(good)-1], auth.ReasonMalformed},
		{"one octet more", append(bytes.Clone(good), 0), auth.ReasonMalformed},
		{"another mechanism", spnego, auth.ReasonMalformed},
		{"NTLM", []byte("NTLMSSP\x00\x01\x00\x00\x00"), auth.ReasonMalformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, _, err := a.Mechanism().Start(testPeer, nil).Next(test.token); reason(err) != test.want {
				t.Errorf("Next = %v, want %s", err, test.want)
			}
		})
	}
}

func TestTokenBeforeItsTime(t *testing.T) {
	r := newRealm(t, etypeID.AES256_CTS_HMAC_SHA1_96)
	s := r.acceptor(Options{}).Mechanism().Start(testPeer, nil)
	if c, done, err := s.Next(nil); err != nil || done || c == nil || len(c) != 0 {
		t.Fatalf("without initial response: %q, %t, %v, want an empty challenge", c, done, err)
	}
	_, token, err := r.alice().Start()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Next(token); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Next([]byte("x")); reason(err) != auth.ReasonMalformed {
		t.Errorf("a token instead of the empty response gave %v, want malformed", err)
	}
}

func TestReplay(t *testing.T) {
	r := newRealm(t, etypeID.AES256_CTS_HMAC_SHA1_96)
	a := r.acceptor(Options{})
	_, token, err := r.alice().Start()
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	got := map[string]int{}
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			_, _, err := a.Mechanism().Start(testPeer, nil).Next(token)
			mu.Lock()
			defer mu.Unlock()
			got[reason(err)]++
		})
	}
	all.Wait()
	if got[""] != 1 || got[auth.ReasonReplay] != 15 {
		t.Errorf("16 times the same request gave %v, want one success and 15 replays", got)
	}
}

func TestReplaysAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewReplays(3)
		at := func(s string) error { return r.first([]byte(s), time.Now(), time.Now().Add(5*time.Minute)) }
		for _, s := range []string{"a", "b", "c"} {
			if err := at(s); err != nil {
				t.Fatal(err)
			}
		}
		if err := at("d"); !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("a fourth login gave %v, want unavailable", err)
		}
		if err := at("a"); err == nil {
			t.Error("a replay was taken while the memory was full")
		}
		time.Sleep(5*time.Minute + 3*time.Second)
		if err := at("d"); err != nil {
			t.Errorf("a login after the others are old gave %v", err)
		}
		if len(r.until) != 1 {
			t.Errorf("%d requests are remembered, want 1", len(r.until))
		}
	})
}

func TestKeytab(t *testing.T) {
	r := newRealm(t, etypeID.AES256_CTS_HMAC_SHA1_96)
	a := r.acceptor(Options{Service: "SMTP/MX1.example.com"}) // as Windows may write it
	if _, err := exchange(a, r.alice(), testPeer); err != nil {
		t.Fatal(err)
	}
	if changed, err := a.Reload(); changed || err != nil {
		t.Errorf("Reload of an unchanged file = %t, %v", changed, err)
	}
	// A new key: old tickets are good for as long as the old key is there.
	old := r.alice()
	r.addKey(testService, etypeID.AES256_CTS_HMAC_SHA1_96, 3)
	r.write()
	if changed, err := a.Reload(); !changed || err != nil {
		t.Fatalf("Reload of a changed file = %t, %v", changed, err)
	}
	for i, c := range []*initiator{old, r.alice()} {
		if _, err := exchange(a, c, testPeer); err != nil {
			t.Errorf("client %d after the change: %v", i, err)
		}
	}
	// A version that the keytab does not have, as ktpass writes it.
	c := r.alice()
	c.ticket.EncPart.KVNO = 77
	if _, err := exchange(a, c, testPeer); err != nil {
		t.Errorf("ticket with another key version: %v", err)
	}
	// A broken file changes nothing.
	if err := os.WriteFile(r.keytab, []byte("\x05\x02secretkey"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Reload(); err == nil || strings.Contains(err.Error(), "secretkey") {
		t.Errorf("Reload of a broken file = %v, want an error that does not quote it", err)
	}
	if _, err := exchange(a, r.alice(), testPeer); err != nil {
		t.Errorf("after a broken file: %v", err)
	}
	foreign := newRealm(t, etypeID.AES256_CTS_HMAC_SHA1_96)
	if _, err := exchange(a, foreign.alice(), testPeer); reason(err) != auth.ReasonCredentials {
		t.Errorf("ticket of another KDC: %v, want credentials", err)
	}
}

func TestNewRefuses(t *testing.T) {
	r := newRealm(t, etypeID.AES256_CTS_HMAC_SHA1_96)
	weak := newRealm(t, etypeID.RC4_HMAC)
	id := func(string, string) (auth.Identity, error) { return auth.Identity{}, nil }
	for _, test := range []struct {
		name string
		opts Options
		want string
	}{
		{"no file", Options{KeytabFile: r.keytab + "x", Service: testService, Identify: id}, "no such file"},
		{"no key of the service", Options{KeytabFile: r.keytab, Service: "smtp/other", Identify: id}, "no key of smtp/other"},
		{"no key of the realm", Options{KeytabFile: r.keytab, Service: testService + "@OTHER", Identify: id}, "no key of"},
		{"weak keys", Options{KeytabFile: weak.keytab, Service: testService, Identify: id}, "no AES"},
		{"nobody to ask", Options{KeytabFile: r.keytab, Service: testService}, "nobody says"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := New(test.opts); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("New = %v, want %q", err, test.want)
			}
		})
	}
}

// TestClientWantsProof lets servers lie to our client.
func TestClientWantsProof(t *testing.T) {
	r := newRealm(t, etypeID.AES256_CTS_HMAC_SHA1_96)
	a := r.acceptor(Options{})
	_, reply, err := func() (*initiator, []byte, error) {
		c := r.alice()
		_, token, err := c.Start()
		if err != nil {
			return nil, nil, err
		}
		answer, _, err := a.Mechanism().Start(testPeer, nil).Next(token)
		return c, answer, err
	}()
	if err != nil {
		t.Fatal(err)
	}
	refused, err := frame(tokenError, []byte{0})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		answer []byte
	}{
		{"nothing", nil},
		{"the reply to another", reply},
		{"a cut reply", reply[:40]},
		{"an error", refused},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := r.alice()
			if _, _, err := c.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Next(test.answer); err == nil {
				t.Error("the client believes it")
			}
		})
	}
}

func TestAddressOfPeer(t *testing.T) {
	v6 := types.HostAddresses{{AddrType: 24, Address: netip.MustParseAddr("2001:db8::1").AsSlice()}}
	if !fromAddress(v6, auth.Peer{Remote: netip.MustParseAddr("2001:db8::1")}) || fromAddress(v6, testPeer) {
		t.Error("IPv6 addresses are not told apart")
	}
	v4 := types.HostAddresses{{AddrType: 2, Address: []byte{192, 0, 2, 1}}}
	if !fromAddress(v4, auth.Peer{Remote: netip.MustParseAddr("::ffff:192.0.2.1")}) {
		t.Error("a mapped IPv4 address is not known as such")
	}
}

func FuzzToken(f *testing.F) {
	r := newRealm(f, etypeID.AES256_CTS_HMAC_SHA1_96, etypeID.AES128_CTS_HMAC_SHA256_128)
	a := r.acceptor(Options{})
	_, token, err := r.alice().Start()
	if err != nil {
		f.Fatal(err)
	}
	p := r.part("alice", etypeID.AES128_CTS_HMAC_SHA256_128)
	f.Add(token, []byte{})
	f.Add(rawRequest(f, r, p, etypeID.AES128_CTS_HMAC_SHA256_128, authenticator(p, 0)), []byte("\x05\x04\x00\xff\x00\x0c\x00\x00\x00\x00\x00\x00\x00\x00\x12\x67\x01\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		s := a.Mechanism().Start(testPeer, nil)
		if _, done, err := s.Next(first); done || err != nil && reason(err) == auth.ReasonUnavailable {
			t.Fatalf("first token: done %t, %v", done, err)
		}
		if _, done, err := s.Next(second); done {
			t.Fatalf("second token: done, %v", err)
		}
	})
}

func FuzzUnwrap(f *testing.F) {
	key := types.EncryptionKey{KeyType: etypeID.AES256_CTS_HMAC_SHA384_192, KeyValue: make([]byte, 32)}
	client := secContext{key: key, initiator: true}
	token, err := client.wrap(noLayer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token)
	f.Add(rotate(bytes.Clone(token), 12))
	f.Fuzz(func(t *testing.T, token []byte) {
		s := secContext{key: key}
		text, err := s.unwrap(token)
		if err == nil && !bytes.Equal(text, noLayer) {
			t.Fatalf("unwrap = %x of a token that nobody made", text)
		}
	})
}

// FuzzSealed looks behind the seals: what a KDC and a ticket's holder may write.
func FuzzSealed(f *testing.F) {
	r := newRealm(f, etypeID.AES256_CTS_HMAC_SHA1_96)
	a := r.acceptor(Options{})
	f.Add("alice", "EXAMPLE.COM", "alice", "EXAMPLE.COM", []byte("\x10\x00\x00\x00"), []byte{1, 2}, int64(-1), 5)
	f.Fuzz(func(t *testing.T, user, home, name, claimed string, sum, subkey []byte, number int64, usec int) {
		r := &realm{t: t, keytab: r.keytab, keys: r.keys}
		p := r.part(user, etypeID.AES256_CTS_HMAC_SHA1_96)
		p.CRealm = home
		who := authenticator(p, 0)
		who.CName, who.CRealm, who.SeqNumber, who.Cusec = types.NewPrincipalName(1, name), claimed, number, usec
		who.Cksum.Checksum = append(who.Cksum.Checksum[:0:0], sum...)
		who.SubKey = types.EncryptionKey{KeyType: etypeID.AES256_CTS_HMAC_SHA1_96, KeyValue: subkey}
		c := r.client(p, etypeID.AES256_CTS_HMAC_SHA1_96)
		token, err := c.request(who)
		if err != nil {
			return
		}
		ctx, _, err := a.accept(token, testPeer)
		if err == nil && (ctx.client.realm != testRealm || home != testRealm || claimed != testRealm) {
			t.Fatalf("%q of %q, who says %q of %q, was let in", user, home, name, claimed)
		}
	})
}
