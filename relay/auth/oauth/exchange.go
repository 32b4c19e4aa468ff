package oauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"waybill/relay/auth"
)

// verifyTimeout bounds the wait for an issuer's keys, as auth bounds the wait for
// a store.
const verifyTimeout = 15 * time.Second

// exchange is one AUTH command.
type exchange struct {
	verifier *Verifier
	peer     auth.Peer
	done     func(auth.Identity)
	old      bool // XOAUTH2

	refused *auth.Failure // told to the client, who is to answer something
	over    bool
}

// Next takes the client's message; after a failure, the answer to the error that
// it was told (RFC 7628 section 3.2.3).
func (x *exchange) Next(response []byte) (challenge []byte, done bool, err error) {
	switch {
	case x.refused != nil && !x.over:
		x.over = true
		return nil, false, x.refused
	case x.over:
		return nil, false, auth.Fail("", fmt.Errorf("%w: the exchange is over", auth.ErrMalformed))
	case response == nil: // no initial response: ask for it
		return []byte{}, false, nil
	}
	user, id, err := x.login(string(response))
	if err == nil {
		x.over = true
		if x.done != nil {
			x.done(id)
		}
		return nil, true, nil
	}
	f := auth.Fail(user, err)
	if f.Temporary() { // the token may be good: it is not for the client to get another
		x.over = true
		return nil, false, f
	}
	x.refused = f
	return x.answer(f), false, nil
}

// Refused implements [auth.Refuser].
func (x *exchange) Refused() *auth.Failure { return x.refused }

// login reads the message and checks its token. The user is who the client says
// it is, as far as that was said.
func (x *exchange) login(message string) (user string, id auth.Identity, err error) {
	read := parseBearer
	if x.old {
		read = parseOld
	}
	claimed, token, err := read(message)
	if err != nil {
		return "", id, err
	}
	if claimed != "" {
		if user, err = auth.PrepareName(claimed); err != nil {
			return "", id, err
		}
		if err = x.peer.Try(user); err != nil {
			return user, id, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), verifyTimeout)
	defer cancel()
	if id, err = x.verifier.Verify(ctx, token); err != nil {
		return user, id, err
	}
	name, err := auth.PrepareName(id.User)
	switch {
	case err != nil:
		return user, id, err
	case user != "" && user != name: // nobody may act for somebody else
		return user, id, fmt.Errorf("%w: the token is another user's", auth.ErrCredentials)
	}
	return name, id, nil
}

// answer is what the client is told: RFC 7628 section 3.2.2, and the form that
// Google and Microsoft gave XOAUTH2.
func (x *exchange) answer(f *auth.Failure) []byte {
	var scopes []string
	discovery := ""
	for _, i := range x.verifier.order {
		scopes = append(scopes, i.Scopes...)
		if discovery == "" && i.keys.discovers {
			discovery = discoveryURL(i.Issuer.Issuer)
		}
	}
	told := struct {
		Status  string `json:"status"`
		Schemes string `json:"schemes,omitempty"`
		Scope   string `json:"scope,omitempty"`
		Config  string `json:"openid-configuration,omitempty"`
	}{Status: "invalid_token", Scope: strings.Join(scopes, " ")}
	switch {
	case x.old && f.Reason == auth.ReasonMalformed:
		told.Status, told.Schemes = "400", "bearer"
	case x.old:
		told.Status, told.Schemes = "401", "bearer"
	case f.Reason == auth.ReasonMalformed:
		told.Status = "invalid_request"
	case errors.Is(f, errScope):
		told.Status = "insufficient_scope"
	}
	if !x.old {
		told.Config = discovery
	}
	b, err := json.Marshal(told)
	if err != nil {
		return []byte(`{"status":"invalid_token"}`)
	}
	return b
}

const separator = "\x01"

// parseOld reads "user=…^Aauth=Bearer …^A^A" of XOAUTH2.
func parseOld(message string) (user, token string, err error) {
	pairs, err := pairsOf(message)
	if err != nil {
		return "", "", err
	}
	token, err = bearer(pairs["auth"])
	return pairs["user"], token, err
}

// parseBearer reads "n,a=…,^Aauth=Bearer …^A^A" (RFC 7628 section 3.1).
func parseBearer(message string) (user, token string, err error) {
	header, rest, ok := strings.Cut(message, separator)
	part := strings.Split(header, ",")
	if !ok || len(part) != 3 || part[2] != "" {
		return "", "", fmt.Errorf("%w: GS2 header", auth.ErrMalformed)
	}
	if part[0] != "n" && part[0] != "y" { // there is no binding in OAUTHBEARER
		return "", "", fmt.Errorf("%w: channel binding", auth.ErrMalformed)
	}
	if part[1] != "" {
		name, ok := strings.CutPrefix(part[1], "a=")
		if !ok || name == "" {
			return "", "", fmt.Errorf("%w: authorization identity", auth.ErrMalformed)
		}
		if user, ok = unescape(name); !ok {
			return "", "", fmt.Errorf("%w: authorization identity", auth.ErrMalformed)
		}
	}
	pairs, err := pairsOf(rest)
	if err != nil {
		return "", "", err
	}
	token, err = bearer(pairs["auth"])
	return user, token, err
}

// unescape reads a saslname (RFC 5801 section 4).
func unescape(s string) (string, bool) {
	plain := strings.NewReplacer("=2C", ",", "=3D", "=").Replace(s)
	return plain, strings.Count(s, "=") == strings.Count(s, "=2C")+strings.Count(s, "=3D")
}

// maxPairs is chosen by taste: four have a meaning.
const maxPairs = 20

// pairsOf reads "key=value^A…^A". Keys that mean nothing to us are for others
// (RFC 7628 section 3.1).
func pairsOf(s string) (map[string]string, error) {
	s, ok := strings.CutSuffix(s, separator+separator)
	if !ok {
		return nil, fmt.Errorf("%w: no end", auth.ErrMalformed)
	}
	pairs := map[string]string{}
	for pair := range strings.SplitSeq(s, separator) {
		key, val, ok := strings.Cut(pair, "=")
		if _, dup := pairs[key]; !ok || key == "" || dup || len(pairs) == maxPairs {
			return nil, fmt.Errorf("%w: not keys with values", auth.ErrMalformed)
		}
		pairs[key] = val
	}
	return pairs, nil
}

// bearer is the token of "Bearer TOKEN" (RFC 6750 section 2.1).
func bearer(s string) (string, error) {
	scheme, token, ok := strings.Cut(s, " ")
	token = strings.TrimLeft(token, " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", fmt.Errorf("%w: no bearer token", auth.ErrMalformed)
	}
	return token, nil
}
