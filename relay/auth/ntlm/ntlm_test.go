package ntlm

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"waybill/relay/auth"
	"waybill/relay/relaytest"

	ntlmssp "github.com/Azure/go-ntlmssp"
)

// testUsers has bob, who may use NTLM, and others who may not.
func testUsers(name string) (auth.Identity, auth.NTHash, error) {
	switch strings.ToLower(name) {
	case "bob", "carol@example.com":
		return auth.Identity{User: strings.ToLower(name), Senders: []string{"bob@example.com"}}, auth.NewNTHash("pass word"), nil
	case "modern":
		return auth.Identity{}, auth.NTHash{}, auth.ErrCredentials
	}
	return auth.Identity{}, auth.NTHash{}, auth.ErrUnknownUser
}

var testBackend = Local{Hostname: "mx1.example.com", Lookup: testUsers}

var testPeer = auth.Peer{Remote: netip.MustParseAddr("192.0.2.1")}

func reason(err error) string {
	if f, ok := errors.AsType[*auth.Failure](err); ok {
		return f.Reason
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// client is NTLM's other side, which does what a test wants of it.
type client struct {
	user, domain, password string

	flags   uint32 // of AUTHENTICATE
	ascii   bool   // names, and not Unicode
	mic     bool
	binding [16]byte
	nonce   [8]byte // instead of the server's
	mangle  func(message []byte) []byte

	first []byte
}

func (c *client) negotiate() []byte {
	b := append([]byte(signature), typeNegotiate, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, flagUnicode|flagNTLM|flagExtended|flagTarget|flagAlwaysSign)
	c.first = append(b, make([]byte, 16)...)
	return c.first
}

func (c *client) authenticate(challenge []byte) []byte {
	nonce := challenge[24:32]
	if c.nonce != [8]byte{} {
		nonce = c.nonce[:]
	}
	blob := append([]byte{1, 1, 0, 0, 0, 0, 0, 0}, fileTime(time.Now())...)
	blob = append(blob, "clientno"...)
	blob = append(blob, 0, 0, 0, 0)
	av := func(id uint16, value []byte) {
		blob = binary.LittleEndian.AppendUint16(blob, id)
		blob = binary.LittleEndian.AppendUint16(blob, uint16(len(value)))
		blob = append(blob, value...)
	}
	av(avTargetName, auth.UTF16("SMTPSVC/mx1.example.com"))
	if c.mic {
		av(avFlags, []byte{flagMIC, 0, 0, 0})
	}
	if c.binding != [16]byte{} {
		av(avBinding, c.binding[:])
	}
	av(avEnd, nil)
	blob = append(blob, 0, 0, 0, 0)
	hash := auth.NewNTHash(c.password)
	key := mac(hash[:], auth.UTF16(strings.ToUpper(c.user)+c.domain))
	proof := mac(key, nonce, blob)

	parts := [][]byte{make([]byte, 24), append(bytes.Clone(proof), blob...), auth.UTF16(c.domain), auth.UTF16(c.user), auth.UTF16("PC1"), nil}
	if c.ascii {
		parts[2], parts[3], parts[4] = []byte(c.domain), []byte(c.user), []byte("PC1")
	}
	b := append([]byte(signature), typeAuthenticate, 0, 0, 0)
	at := micEnd
	for _, p := range parts {
		b = appendField(b, len(p), at)
		at += len(p)
	}
	if !c.ascii {
		c.flags |= flagUnicode
	}
	b = binary.LittleEndian.AppendUint32(b, c.flags)
	b = append(b, make([]byte, micEnd-atFlags-4)...)
	for _, p := range parts {
		b = append(b, p...)
	}
	if c.mic {
		copy(b[atMIC:], mac(mac(key, proof), c.first, challenge, b))
	}
	if c.mangle != nil {
		b = c.mangle(b)
	}
	return b
}

func (c *client) login(b Backend, p auth.Peer) (id auth.Identity, err error) {
	s := Mechanism(b).Start(p, func(i auth.Identity) { id = i })
	challenge, done, err := s.Next(c.negotiate())
	if err != nil || done {
		return id, err
	}
	_, done, err = s.Next(c.authenticate(challenge))
	if err == nil && !done {
		err = errors.New("not done")
	}
	return id, err
}

func TestLogin(t *testing.T) {
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }
	put := func(at int, v ...byte) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[at:], v); return b }
	}
	for _, test := range []struct {
		name   string
		client client
		want   string // reason, or empty
	}{
		{"good", client{user: "bob", password: "pass word"}, ""},
		{"name in another case", client{user: "BOB", password: "pass word"}, ""},
		{"any domain", client{user: "bob", domain: "WORKGROUP", password: "pass word"}, ""},
		{"name with its domain", client{user: "carol@example.com", password: "pass word"}, ""},
		{"name and domain of mail", client{user: "carol", domain: "example.com", password: "pass word"}, ""},
		{"integrity code", client{user: "bob", password: "pass word", mic: true}, ""},
		{"integrity code of other messages", client{user: "bob", password: "pass word", mic: true, mangle: put(atMIC, 1, 2, 3)}, auth.ReasonCredentials},
		{"message changed under its code", client{user: "bob", password: "pass word", mic: true, mangle: put(atFlags+3, 0xff)}, auth.ReasonCredentials},
		{"announced integrity code cut off", client{user: "bob", password: "pass word", mic: true, mangle: cut(micEnd - 1)}, auth.ReasonMalformed},
		{"wrong password", client{user: "bob", password: "pass"}, auth.ReasonCredentials},
		{"answer to another challenge", client{user: "bob", password: "pass word", nonce: [8]byte{1}}, auth.ReasonCredentials},
		{"unknown user", client{user: "eve", password: "pass word"}, auth.ReasonUnknownUser},
		{"unknown user, who guesses the decoy", client{user: "eve", password: ""}, auth.ReasonUnknownUser},
		{"user without NT hash", client{user: "modern", password: "x"}, auth.ReasonCredentials},
		{"nobody", client{password: "pass word"}, auth.ReasonCredentials},
		{"NTLMv1", client{user: "bob", password: "pass word", mangle: put(atNT, 24, 0, 24, 0)}, auth.ReasonWeak},
		{"LM alone", client{user: "bob", password: "pass word", mangle: put(atNT, 0, 0, 0, 0)}, auth.ReasonWeak},
		{"names in ASCII", client{user: "bob", password: "pass word", ascii: true}, ""},
		{"names that are said to be in ASCII", client{user: "böb", password: "pass word", mangle: put(atFlags, 2, 0, 0, 0)}, auth.ReasonMalformed},
		{"name outside the message", client{user: "bob", password: "pass word", mangle: put(atUser+4, 0xff, 0xff, 0xff, 0xff)}, auth.ReasonMalformed},
		{"name of odd length", client{user: "bob", password: "pass word", mangle: put(atUser, 5, 0)}, auth.ReasonMalformed},
		{"control character in the name", client{user: "bob\n", password: "pass word"}, auth.ReasonMalformed},
		{"long name", client{user: strings.Repeat("b", 256), password: "pass word"}, auth.ReasonMalformed},
		{"first message again", client{user: "bob", password: "pass word", mangle: put(8, 1)}, auth.ReasonMalformed},
		{"short message", client{user: "bob", password: "pass word", mangle: cut(59)}, auth.ReasonMalformed},
		{"empty message", client{user: "bob", password: "pass word", mangle: cut(0)}, auth.ReasonMalformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			id, err := test.client.login(testBackend, testPeer)
			if got := reason(err); got != test.want {
				t.Errorf("reason = %q (%v), want %q", got, err, test.want)
			}
			if (err == nil) != (id.User != "") {
				t.Errorf("identity = %+v with error %v", id, err)
			}
			if err != nil && strings.Contains(err.Error(), "pass word") {
				t.Errorf("the error holds the password: %v", err)
			}
		})
	}
}

func TestFirstMessage(t *testing.T) {
	for _, test := range []struct {
		name    string
		message string
		want    string
	}{
		{"empty", "", auth.ReasonMalformed},
		{"text", "hello", auth.ReasonMalformed},
		{"not NTLM", "NTLMSSP\x00\x01\x00\x00\x00\x01\x00\x00\x00", auth.ReasonMalformed},
		{"short", "NTLMSSP\x00\x01\x00\x00\x00\x01\x02\x00", auth.ReasonMalformed},
		{"no more than flags", "NTLMSSP\x00\x01\x00\x00\x00\x01\x02\x00\x00", ""},
		{"another type", "NTLMSSP\x00\x03\x00\x00\x00\x01\x02\x00\x00", auth.ReasonMalformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := Mechanism(testBackend).Start(testPeer, nil)
			if c, done, err := s.Next(nil); err != nil || done || c == nil {
				t.Fatalf("without initial response: %v, %t, %v", c, done, err)
			}
			if _, _, err := s.Next([]byte(test.message)); reason(err) != test.want {
				t.Errorf("Next = %v, want %q", err, test.want)
			}
		})
	}
}

func TestExchangeIsUsedOnce(t *testing.T) {
	var c client
	s := Mechanism(testBackend).Start(testPeer, nil)
	challenge, _, err := s.Next(c.negotiate())
	if err != nil {
		t.Fatal(err)
	}
	c.user, c.password = "bob", "guess"
	if _, _, err := s.Next(c.authenticate(challenge)); reason(err) != auth.ReasonCredentials {
		t.Fatalf("a guess gave %v", err)
	}
	c.password = "pass word"
	if _, done, err := s.Next(c.authenticate(challenge)); done || reason(err) != auth.ReasonMalformed {
		t.Errorf("a second guess at one challenge gave done %t, %v, want malformed", done, err)
	}
}

func TestChallengeIsNew(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		var c client
		b, _, err := Mechanism(testBackend).Start(testPeer, nil).Next(c.negotiate())
		if err != nil || seen[string(b[24:32])] {
			t.Fatalf("challenge %x, %v, want another each time", b[24:32], err)
		}
		seen[string(b[24:32])] = true
	}
}

// TestLibraryClient logs in with a client that others wrote.
func TestLibraryClient(t *testing.T) {
	for _, test := range []struct {
		name     string
		user     string
		password string
		want     string
	}{
		{"good", "bob", "pass word", ""},
		{"wrong password", "bob", "password", auth.ReasonCredentials},
		{"unknown user", "eve", "pass word", auth.ReasonUnknownUser},
	} {
		t.Run(test.name, func(t *testing.T) {
			first, err := ntlmssp.NewNegotiateMessage("", "")
			if err != nil {
				t.Fatal(err)
			}
			s := Mechanism(testBackend).Start(testPeer, nil)
			challenge, _, err := s.Next(first)
			if err != nil {
				t.Fatal(err)
			}
			last, err := ntlmssp.NewAuthenticateMessage(challenge, test.user, test.password, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := s.Next(last); reason(err) != test.want {
				t.Errorf("Next = %v, want %q", err, test.want)
			}
		})
	}
}

// TestExamples is MS-NLMP section 4.2.4: user, domain, password, challenges and
// time are given, and so is the proof.
func TestExamples(t *testing.T) {
	hash := auth.NewNTHash("Password")
	key := mac(hash[:], auth.UTF16("USER"+"Domain"))
	if want := "\x0c\x86\x8a\x40\x3b\xfd\x7a\x93\xa3\x00\x1e\xf2\x2e\xf0\x2e\x3f"; string(key) != want {
		t.Errorf("NTOWFv2 = %x, want %x", key, want)
	}
	blob := append([]byte{1, 1, 0, 0, 0, 0, 0, 0}, make([]byte, 8)...)
	blob = append(blob, bytes.Repeat([]byte{0xaa}, 8)...)
	blob = append(blob, 0, 0, 0, 0, 2, 0, 12, 0)
	blob = append(blob, auth.UTF16("Domain")...)
	blob = append(blob, 1, 0, 12, 0)
	blob = append(blob, auth.UTF16("Server")...)
	blob = append(blob, 0, 0, 0, 0, 0, 0, 0, 0)
	proof := mac(key, []byte{1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}, blob)
	if want := "\x68\xcd\x0a\xb8\x51\xe5\x1c\x96\xaa\xbc\x92\x7b\xeb\xef\x6a\x1c"; string(proof) != want {
		t.Errorf("NTProofStr = %x, want %x", proof, want)
	}
	x := &local{lookup: func(string) (auth.Identity, auth.NTHash, error) { return auth.Identity{User: "user"}, hash, nil }}
	x.nonce = [8]byte{1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}
	m := &Authenticate{User: "User", Domain: "Domain", Proof: [16]byte(proof), Blob: blob}
	if _, err := x.Verify(t.Context(), m, nil); err != nil {
		t.Errorf("the example cannot log in: %v", err)
	}
}

func TestChannelBinding(t *testing.T) {
	peer, seen := tlsPeer(t)
	leaf := sha256.Sum256(seen.PeerCertificates[0].Raw) // signed with SHA-256
	good := auth.GSSBinding(auth.BindingEndPoint, leaf[:])
	for _, test := range []struct {
		name    string
		policy  auth.Binding
		client  client
		binding [16]byte
		want    string
	}{
		{"none", auth.BindingAllow, client{user: "bob", password: "pass word"}, [16]byte{}, ""},
		{"none where one is needed", auth.BindingRequire, client{user: "bob", password: "pass word", mic: true}, [16]byte{}, auth.ReasonBinding},
		{"to our certificate", auth.BindingRequire, client{user: "bob", password: "pass word", mic: true}, good, ""},
		{"to another", auth.BindingAllow, client{user: "bob", password: "pass word"}, [16]byte{1}, auth.ReasonBinding},
		{"to another, with a wrong password", auth.BindingAllow, client{user: "bob", password: "x"}, [16]byte{1}, auth.ReasonCredentials},
		{"to another, and nobody minds", auth.BindingOff, client{user: "bob", password: "pass word"}, [16]byte{1}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := peer
			p.Binding = test.policy
			test.client.binding = test.binding
			if _, err := test.client.login(testBackend, p); reason(err) != test.want {
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

func TestGuessesAreCounted(t *testing.T) {
	var asked []string
	p := testPeer
	p.Admit = func(user string) error {
		asked = append(asked, user)
		return auth.ErrThrottled
	}
	for _, c := range []client{
		{user: "BOB", domain: "A", password: "pass word"},
		{user: "bob", domain: "B", password: "pass word"},
		{user: "Carol", domain: "Example.com", password: "pass word"},
		{user: "Eve", domain: "c", password: "x"},
	} {
		_, err := c.login(testBackend, p)
		if f, ok := errors.AsType[*auth.Failure](err); !ok || f.Reason != auth.ReasonThrottled || f.User != asked[len(asked)-1] {
			t.Errorf("%s: %v, want a failure of %q for being throttled", c.user, err, asked[len(asked)-1])
		}
	}
	if got, want := strings.Join(asked, " "), "bob bob carol@example.com eve"; got != want {
		t.Errorf("accounts = %s, want %s", got, want)
	}
}

func FuzzMessages(f *testing.F) {
	var c client
	c.user, c.password, c.mic, c.binding = "bob", "x", true, [16]byte{1}
	challenge, _, err := Mechanism(testBackend).Start(testPeer, nil).Next(c.negotiate())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(c.first, c.authenticate(challenge))
	f.Add([]byte("NTLMSSP\x00\x01\x00\x00\x00\x01\x02\x00\x00"), []byte{})
	f.Fuzz(func(t *testing.T, first, last []byte) {
		s := Mechanism(testBackend).Start(testPeer, nil)
		challenge, done, err := s.Next(first)
		if done || reason(err) == auth.ReasonUnavailable {
			t.Fatalf("first message: done %t, %v", done, err)
		}
		if err != nil {
			return
		}
		if header(challenge, typeChallenge, 56) != nil {
			t.Fatalf("challenge = %x", challenge)
		}
		if _, done, err := s.Next(last); done || reason(err) == auth.ReasonUnavailable {
			t.Fatalf("last message: done %t, %v", done, err)
		}
	})
}
