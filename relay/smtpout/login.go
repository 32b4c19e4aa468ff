package smtpout

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"waybill/relay/mail"

	"github.com/emersion/go-sasl"
	"github.com/xdg-go/scram"
)

// Mechanisms lists the SASL mechanisms that we can log in with by ourselves.
// Others come with a [Login].
func Mechanisms() []string { return []string{"PLAIN", "LOGIN", "SCRAM-SHA-256"} }

// Login begins exchanges of a mechanism that needs more than a user name and a
// password: a token, a ticket. Its clients may be a [Prover] and an [Explainer].
type Login interface {
	// Begin makes the client of one exchange with a host. The state is that of
	// the connection's TLS, or nil. An error is ours, and no other host is asked
	// then; it is told to operators, and must hold no secret.
	Begin(ctx context.Context, host string, state *tls.ConnectionState) (sasl.Client, error)
}

// A Prover is a client that knows at the end whether the host has proved who it
// is, where the mechanism has that.
type Prover interface{ Proven() error }

// An Explainer is a client that knows more of a refusal than the reply says, such
// as the error that XOAUTH2 sends in a challenge. The text may be empty.
type Explainer interface{ Explain() string }

// maxRounds bounds an exchange with a host that goes on asking.
const maxRounds = 10

// maxInitial is the longest line with an initial response: RFC 4954 section 4
// wants longer ones, as those with tokens and tickets are, in a line of their own.
const maxInitial = 512

// beginLogin makes the client of an exchange.
func (s *session) beginLogin(ctx context.Context) (sasl.Client, error) {
	o := &s.c.opts.Auth
	if o.Login != nil {
		var state *tls.ConnectionState
		if conn, ok := s.conn.(*tls.Conn); ok {
			cs := conn.ConnectionState()
			state = &cs
		}
		return o.Login.Begin(ctx, s.at.name, state)
	}
	password, err := o.Password()
	if err != nil {
		return nil, fmt.Errorf("read the password of %s: %w", s.c.opts.Name, err)
	}
	client, err := newLogin(o, password)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.c.opts.Name, err)
	}
	return client, nil
}

// newLogin begins an exchange with a password.
func newLogin(o *Auth, password string) (sasl.Client, error) {
	switch o.Mechanism {
	case "PLAIN":
		return sasl.NewPlainClient("", o.Username, password), nil
	case "LOGIN":
		return &loginClient{answers: []string{o.Username, password}}, nil
	}
	c, err := scram.SHA256.NewClient(o.Username, password, "")
	if err != nil { // the library's words are about the password
		return nil, errors.New("the user name or the password has characters that SCRAM does not allow")
	}
	return &scramClient{c.WithMinIterations(minIterations).NewConversation()}, nil
}

// loginClient answers whatever LOGIN asks: prompts differ between servers.
type loginClient struct{ answers []string }

// Start says no more than the mechanism.
func (c *loginClient) Start() (mechanism string, initial []byte, err error) { return "LOGIN", nil, nil }

// Next gives the user name, then the password.
func (c *loginClient) Next([]byte) ([]byte, error) {
	if len(c.answers) == 0 {
		return nil, errMore
	}
	answer := c.answers[0]
	c.answers = c.answers[1:]
	return []byte(answer), nil
}

var errMore = errors.New("AUTH asks for more than there is")

// Bounds of what a host may ask: fewer rounds would help who guesses (RFC 7677
// section 4), and more would only keep us busy.
const (
	minIterations = 4096
	maxIterations = 2_000_000
)

// scramClient is SCRAM-SHA-256 (RFC 5802, RFC 7677) without channel binding.
type scramClient struct{ conv *scram.ClientConversation }

// Start makes the first message.
func (c *scramClient) Start() (mechanism string, initial []byte, err error) {
	first, err := c.conv.Step("")
	return "SCRAM-SHA-256", []byte(first), err
}

// Next answers the host's messages; its last one proves that it knows us.
func (c *scramClient) Next(challenge []byte) ([]byte, error) {
	if c.conv.Done() {
		return nil, errMore
	}
	for part := range strings.SplitSeq(string(challenge), ",") {
		if word, ok := strings.CutPrefix(part, "i="); ok {
			if n, err := strconv.Atoi(word); err != nil || n > maxIterations {
				return nil, errors.New("SCRAM: the host asks for too many rounds")
			}
		}
	}
	answer, err := c.conv.Step(string(challenge))
	if err != nil { // the library's words quote what the host sent
		return nil, errors.New("SCRAM: the host's message is not right, or it does not know our password")
	}
	return []byte(answer), nil
}

// Proven reports whether the host has shown that it knows our password.
func (c *scramClient) Proven() error {
	if !c.conv.Valid() {
		return errors.New("SCRAM: the host let us in without showing that it knows our password")
	}
	return nil
}

// auth logs in (RFC 4954). Whatever goes wrong is ours to mend, so it never
// bounces mail.
func (s *session) auth(ctx context.Context) *failure {
	o := &s.c.opts.Auth
	fail := func(code int, enhanced, format string, args ...any) *failure {
		f := ours("AUTH", code, enhanced, mail.ClassAuth, format, args...)
		f.at, f.permanent = s.at, false
		return f
	}
	if s.tlsVersion == "" && !o.Insecure {
		return fail(451, "4.7.11", "%s: no TLS, and credentials do not go without it", s.at)
	}
	if !slices.Contains(s.ext.auth, o.Mechanism) {
		return fail(451, "4.7.0", "%s does not offer AUTH %s", s.at, o.Mechanism)
	}
	client, err := s.beginLogin(ctx)
	if err != nil {
		f := fail(451, "4.3.5", "%v", err)
		f.hopeless = true
		return f
	}
	f, err := s.exchange(client)
	if err == nil && f == nil && s.r.code == 235 {
		if p, ok := client.(Prover); ok {
			err = p.Proven()
		}
	}
	switch {
	case f != nil:
		return f
	case err != nil: // the host waits for us, or is not who it says
		f = fail(451, "4.7.0", "%s: %v", s.at, err)
		f.lost, f.cause = true, "protocol"
		return f
	case s.r.code == 235:
		s.user = o.Username
		return nil
	}
	f = said("AUTH", s.at, s.r.reply())
	f.permanent, f.class = false, mail.ClassAuth
	if e, ok := client.(Explainer); ok {
		if why := e.Explain(); why != "" {
			f.reply.Text += " (" + cleanText([]byte(clip(why))) + ")"
		}
	}
	return f
}

// exchange speaks AUTH until the host has no more questions. The error is why we
// have no answer.
func (s *session) exchange(client sasl.Client) (*failure, error) {
	mechanism, initial, err := client.Start()
	if err != nil {
		return nil, err
	}
	s.commands++
	s.r.log.add(fromClient, []byte("AUTH "+mechanism+" ***"), 0)
	line := "AUTH " + mechanism
	first := initial // what is left to say when the host asks
	if with := line + " " + encode(initial, "="); initial != nil && len(with)+2 <= maxInitial {
		line, first = with, nil
	}
	_, _ = s.w.WriteString(line + "\r\n")
	f := s.ask("AUTH", s.c.opts.Timeouts.Command)
	for round := range maxRounds {
		if f != nil || s.r.code != 334 {
			return f, nil
		}
		challenge, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(s.r.text)))
		// Prompts of LOGIN mean nothing, nor does what NTLM begins with (MS-SMTPNTLM
		// section 2.2.1.2: "334 ntlm supported").
		if err != nil && mechanism != "LOGIN" && (mechanism != "NTLM" || round > 0) {
			return nil, fmt.Errorf("AUTH %s: the question is not base64", mechanism)
		}
		answer := first
		if first = nil; answer == nil {
			if answer, err = client.Next(challenge); err != nil {
				return nil, err
			}
		}
		s.r.log.add(fromClient, []byte("***"), 0)
		_, _ = s.w.WriteString(encode(answer, "") + "\r\n")
		f = s.ask("AUTH", s.c.opts.Timeouts.Command)
	}
	return f, errMore
}

// encode is base64, with a word for nothing.
func encode(b []byte, empty string) string {
	if len(b) == 0 {
		return empty
	}
	return base64.StdEncoding.EncodeToString(b)
}
