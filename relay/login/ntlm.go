package login

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/emersion/go-sasl"

	ntlmssp "github.com/Azure/go-ntlmssp"
)

// NTLM logs in with NTLMv2 (MS-NLMP, MS-SMTPNTLM), for hosts that know nothing
// newer. There is no message integrity code, which the library does not make.
type NTLM struct {
	Username string // DOMAIN\user, or user@domain
	Password func() (string, error)
}

// Begin implements the Login of package smtpout.
func (n NTLM) Begin(_ context.Context, _ string, state *tls.ConnectionState) (sasl.Client, error) {
	password, err := n.Password()
	if err != nil {
		return nil, fmt.Errorf("read the password: %w", err)
	}
	return &ntlmClient{user: n.Username, password: password, binding: binding(state)}, nil
}

type ntlmClient struct {
	user, password string
	binding        [16]byte
	step           int
}

// Start says no more than the mechanism (MS-SMTPNTLM section 2.2.1.1).
func (c *ntlmClient) Start() (mechanism string, initial []byte, err error) { return "NTLM", nil, nil }

// Next answers the host's prompt with NEGOTIATE, and its challenge with
// AUTHENTICATE.
func (c *ntlmClient) Next(challenge []byte) ([]byte, error) {
	c.step++
	switch c.step {
	case 1:
		return ntlmssp.NewNegotiateMessage("", "")
	case 2:
		bound, err := bind(challenge, c.binding)
		if err != nil {
			return nil, err
		}
		message, err := ntlmssp.NewAuthenticateMessage(bound, c.user, c.password, nil)
		if err != nil { // the library's words are about the message, which is the host's
			return nil, errors.New("NTLM: the host's challenge is malformed, or asks for what we do not do")
		}
		return message, nil
	}
	return nil, errMore
}

// The places in CHALLENGE (MS-NLMP section 2.2.1.2), and the attributes that
// count here (section 2.2.2.1).
const (
	challengeLeast   = 48
	atTargetInfo     = 40
	maxChallenge     = 16 << 10
	attributeEnd     = 0
	attributeBinding = 10
)

// bind adds our channel binding to the target information of a challenge. The
// client's proof is over that, so that nobody can pass the login on to a host
// that wants Extended Protection.
func bind(challenge []byte, sum [16]byte) ([]byte, error) {
	bad := errors.New("NTLM: the host's challenge is malformed")
	if len(challenge) < 32 || len(challenge) > maxChallenge || string(challenge[:8]) != "NTLMSSP\x00" {
		return nil, bad
	}
	if sum == [16]byte{} || len(challenge) < challengeLeast {
		return challenge, nil
	}
	size, from := int(binary.LittleEndian.Uint16(challenge[atTargetInfo:])), int64(binary.LittleEndian.Uint32(challenge[atTargetInfo+4:]))
	if size == 0 {
		return challenge, nil // an old host, which knows no attributes
	}
	if from < challengeLeast || from+int64(size) > int64(len(challenge)) {
		return nil, bad
	}
	var info []byte
	for rest := challenge[from : from+int64(size)]; ; {
		if len(rest) < 4 {
			return nil, bad
		}
		id, n := binary.LittleEndian.Uint16(rest), int(binary.LittleEndian.Uint16(rest[2:]))
		if n > len(rest)-4 {
			return nil, bad
		}
		if id == attributeEnd {
			break
		}
		if id != attributeBinding { // what the host says about it counts for nothing
			info = append(info, rest[:4+n]...)
		}
		rest = rest[4+n:]
	}
	info = binary.LittleEndian.AppendUint16(info, attributeBinding)
	info = binary.LittleEndian.AppendUint16(info, uint16(len(sum)))
	info = append(info, sum[:]...)
	info = append(info, 0, 0, 0, 0)
	out := append([]byte(nil), challenge...)
	binary.LittleEndian.PutUint16(out[atTargetInfo:], uint16(len(info)))   //nolint:gosec // below 17 KiB
	binary.LittleEndian.PutUint16(out[atTargetInfo+2:], uint16(len(info))) //nolint:gosec // below 17 KiB
	binary.LittleEndian.PutUint32(out[atTargetInfo+4:], uint32(len(out)))  //nolint:gosec // below 17 KiB
	return append(out, info...), nil
}
