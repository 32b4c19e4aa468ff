package ntlm

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"
	"unicode/utf16"

	"waybill/relay/auth"
)

const signature = "NTLMSSP\x00"

// The types of messages (MS-NLMP section 2.2.1).
const (
	typeNegotiate    = 1
	typeChallenge    = 2
	typeAuthenticate = 3
)

// The flags that we use (MS-NLMP section 2.2.2.5).
const (
	flagUnicode      = 1 << 0
	flagTarget       = 1 << 2 // REQUEST_TARGET
	flagNTLM         = 1 << 9
	flagAlwaysSign   = 1 << 15
	flagTargetServer = 1 << 17
	flagExtended     = 1 << 19 // EXTENDED_SESSIONSECURITY
	flagTargetInfo   = 1 << 23
	flagVersion      = 1 << 25
	flag128          = 1 << 29
	flag56           = 1 << 31
)

// The attributes that we use (MS-NLMP section 2.2.2.1).
const (
	avEnd = iota
	avComputer
	avDomain
	avDNSComputer
	avDNSDomain
	avDNSTree
	avFlags
	avTimestamp
	avSingleHost
	avTargetName
	avBinding
)

// flagMIC of avFlags says that there is a message integrity code.
const flagMIC = 2

// The places of AUTHENTICATE's fields (MS-NLMP section 2.2.1.3).
const (
	atLM, atNT, atDomain, atUser, atWorkstation, atFlags, atMIC = 12, 20, 28, 36, 44, 60, 72
	micEnd                                                      = atMIC + 16
)

// Bounds of what a client sends; the second is that of package auth.
const (
	maxMessage = 16 << 10
	maxName    = 255
)

func malformed(what string) error { return fmt.Errorf("%w: NTLM: %s", auth.ErrMalformed, what) }

// header checks what all messages begin with.
func header(b []byte, kind uint32, least int) error {
	switch {
	case len(b) < least || len(b) > maxMessage || string(b[:8]) != signature:
		return malformed("not a message")
	case binary.LittleEndian.Uint32(b[8:]) != kind:
		return malformed("a message of another type")
	}
	return nil
}

// parseNegotiate reads the client's first message: its flags.
func parseNegotiate(b []byte) (flags uint32, err error) {
	if err := header(b, typeNegotiate, 16); err != nil {
		return 0, err
	}
	flags = binary.LittleEndian.Uint32(b[12:])
	if flags&flagNTLM == 0 {
		return 0, malformed("the client does not want NTLM")
	}
	return flags, nil
}

// challenge is our message.
type challenge struct {
	flags    uint32 // the client's
	nonce    [8]byte
	hostname string
	now      time.Time
}

// marshal writes the message (MS-NLMP section 2.2.1.2). We are a server of its
// own, which is its own domain.
func (c challenge) marshal() []byte {
	host, domain, _ := strings.Cut(c.hostname, ".")
	netbios := strings.ToUpper(host[:min(len(host), 15)])
	target := auth.UTF16(netbios)
	var info []byte
	add := func(id uint16, value []byte) {
		info = binary.LittleEndian.AppendUint16(info, id)
		info = binary.LittleEndian.AppendUint16(info, uint16(len(value))) //nolint:gosec // a name
		info = append(info, value...)
	}
	add(avDomain, target)
	add(avComputer, target)
	add(avDNSDomain, auth.UTF16(domain))
	add(avDNSComputer, auth.UTF16(c.hostname))
	add(avTimestamp, fileTime(c.now)) // clients that are told the time send a MIC
	add(avEnd, nil)

	const fixed = 56
	flags := uint32(flagUnicode | flagTarget | flagNTLM | flagTargetServer | flagExtended | flagTargetInfo)
	flags |= c.flags & (flagAlwaysSign | flag128 | flag56 | flagVersion)
	b := append([]byte(signature), typeChallenge, 0, 0, 0)
	b = appendField(b, len(target), fixed)
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = append(b, c.nonce[:]...)
	b = append(b, make([]byte, 8)...)
	b = appendField(b, len(info), fixed+len(target))
	b = append(b, 10, 0, 0, 0, 0, 0, 0, 15) // NTLMSSP_REVISION_W2K3; the version itself is for people
	return append(append(b, target...), info...)
}

func appendField(b []byte, size, at int) []byte {
	b = binary.LittleEndian.AppendUint16(b, uint16(size))  //nolint:gosec // below 64 KiB
	b = binary.LittleEndian.AppendUint16(b, uint16(size))  //nolint:gosec // below 64 KiB
	return binary.LittleEndian.AppendUint32(b, uint32(at)) //nolint:gosec // below 64 KiB
}

// fileTime is a time as Windows writes it: tenths of microseconds since 1601.
func fileTime(t time.Time) []byte {
	const epoch = 11644473600 // seconds from 1601 to 1970
	ticks := (t.Unix()+epoch)*10_000_000 + int64(t.Nanosecond())/100
	return binary.LittleEndian.AppendUint64(nil, uint64(ticks)) //nolint:gosec // positive for centuries
}

// Authenticate is the client's last message, as far as it matters.
type Authenticate struct {
	User    string
	Domain  string
	Proof   [16]byte  // NTProofStr
	Blob    []byte    // what the proof is over, besides our challenge
	MIC     *[16]byte // nil when the client sends none
	Binding [16]byte  // hash of the channel binding; zero when the client does not bind
}

// Name is the user as claimed, with their domain.
func (m *Authenticate) Name() string {
	if m.Domain == "" || strings.Contains(m.User, "@") {
		return m.User
	}
	return m.Domain + `\` + m.User
}

// ErrWeak is the refusal of NTLMv1 and LM responses.
var ErrWeak = fmt.Errorf("%w: NTLMv1 is not taken", auth.ErrWeak)

// ParseAuthenticate reads AUTHENTICATE (MS-NLMP section 2.2.1.3), and refuses what
// is not NTLMv2: with ErrWeak, and who it was.
func ParseAuthenticate(b []byte) (*Authenticate, error) {
	if err := header(b, typeAuthenticate, atFlags); err != nil {
		return nil, err
	}
	response, err := field(b, atNT)
	if err != nil {
		return nil, err
	}
	lm, err := field(b, atLM)
	if err != nil {
		return nil, err
	}
	unicode := len(b) < atFlags+4 || binary.LittleEndian.Uint32(b[atFlags:])&flagUnicode != 0
	var m Authenticate
	if m.User, err = text(b, atUser, unicode); err != nil {
		return nil, err
	}
	if m.Domain, err = text(b, atDomain, unicode); err != nil {
		return nil, err
	}
	if _, err = text(b, atWorkstation, unicode); err != nil {
		return nil, err
	}
	switch {
	case m.User == "":
		return nil, fmt.Errorf("%w: nobody", auth.ErrCredentials) // anonymous
	case len(response) <= 24 && len(lm)+len(response) > 0:
		return &m, ErrWeak
	}
	if err := m.response(response); err != nil {
		return nil, err
	}
	if m.MIC != nil {
		if len(b) < micEnd {
			return nil, malformed("no integrity code")
		}
		*m.MIC = [16]byte(b[atMIC:micEnd])
	}
	return &m, nil
}

// response reads NTLMv2_RESPONSE (MS-NLMP section 2.2.2.8).
func (m *Authenticate) response(b []byte) error {
	const proof, fixed = 16, 28
	if len(b) < proof+fixed {
		return malformed("response")
	}
	m.Proof, m.Blob = [16]byte(b[:proof]), b[proof:]
	if m.Blob[0] != 1 || m.Blob[1] != 1 {
		return malformed("version of the response")
	}
	for rest := m.Blob[fixed:]; ; {
		if len(rest) < 4 {
			return malformed("attributes")
		}
		id, size := binary.LittleEndian.Uint16(rest), int(binary.LittleEndian.Uint16(rest[2:]))
		if rest = rest[4:]; size > len(rest) {
			return malformed("attributes")
		}
		value := rest[:size]
		rest = rest[size:]
		switch id {
		case avEnd:
			return nil
		case avFlags:
			if size != 4 {
				return malformed("attribute")
			}
			if binary.LittleEndian.Uint32(value)&flagMIC != 0 {
				m.MIC = new([16]byte)
			}
		case avBinding:
			if size != 16 {
				return malformed("attribute")
			}
			m.Binding = [16]byte(value)
		}
	}
}

// field finds the octets that a field of the fixed part names.
func field(b []byte, at int) ([]byte, error) {
	size, from := int(binary.LittleEndian.Uint16(b[at:])), int64(binary.LittleEndian.Uint32(b[at+4:]))
	if size == 0 {
		return nil, nil
	}
	if from+int64(size) > int64(len(b)) {
		return nil, malformed("a field is outside the message")
	}
	return b[from : from+int64(size)], nil
}

// text reads a name, in UTF-16 or in ASCII: what else older clients may mean by
// their own character set, nobody knows.
func text(b []byte, at int, unicode bool) (string, error) {
	raw, err := field(b, at)
	switch {
	case err != nil:
		return "", err
	case len(raw) > 2*maxName || unicode && len(raw)%2 != 0:
		return "", malformed("name")
	}
	s := string(raw)
	if unicode {
		units := make([]uint16, len(raw)/2)
		for i := range units {
			units[i] = binary.LittleEndian.Uint16(raw[2*i:])
		}
		s = string(utf16.Decode(units))
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd || !unicode && r > 0x7f }) || len(s) > 2*maxName {
		return "", malformed("character in a name")
	}
	return s, nil
}
