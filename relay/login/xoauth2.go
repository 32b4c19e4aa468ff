package login

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"

	"github.com/emersion/go-sasl"
)

// XOAUTH2 logs in with tokens, in the form that Google and Microsoft gave it.
type XOAUTH2 struct {
	Username string // the mailbox
	Tokens   *Tokens
}

// Begin implements the Login of package smtpout.
func (x XOAUTH2) Begin(ctx context.Context, _ string, _ *tls.ConnectionState) (sasl.Client, error) {
	token, err := x.Tokens.Get(ctx)
	if err != nil {
		return nil, err
	}
	return &xoauth2Client{tokens: x.Tokens, user: x.Username, token: token}, nil
}

type xoauth2Client struct {
	tokens      *Tokens
	user, token string
	refused     bool
	why         string
}

// Start makes the only message that there is.
func (c *xoauth2Client) Start() (mechanism string, initial []byte, err error) {
	return "XOAUTH2", []byte("user=" + c.user + "\x01auth=Bearer " + c.token + "\x01\x01"), nil
}

// Next reads the error that comes as a challenge, and answers it with nothing, so
// that the host can end the exchange.
func (c *xoauth2Client) Next(challenge []byte) ([]byte, error) {
	if c.refused {
		return nil, errMore
	}
	c.refused, c.why = true, explain(challenge)
	c.tokens.refused(c.token)
	return []byte{}, nil
}

// Explain is what the host said in the challenge.
func (c *xoauth2Client) Explain() string {
	if !c.refused {
		c.tokens.refused(c.token)
	}
	return c.why
}

// maxExplained bounds what is told of a challenge.
const maxExplained = 200

// explain reads the error of a challenge. What is not as it should be is not
// told: nobody knows what it holds.
func explain(challenge []byte) string {
	var told struct {
		Status  json.RawMessage `json:"status"`
		Schemes string          `json:"schemes"`
		Scope   string          `json:"scope"`
	}
	if json.Unmarshal(challenge, &told) != nil || len(told.Status) == 0 {
		return ""
	}
	var status string
	if json.Unmarshal(told.Status, &status) != nil { // a number, perhaps
		var n int
		if json.Unmarshal(told.Status, &n) != nil {
			return ""
		}
		status = fmt.Sprint(n)
	}
	text := "the host says: status " + status
	if told.Scope != "" {
		text += ", scope " + told.Scope
	}
	return short(text, maxExplained)
}
