package login

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"waybill/relay/event"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// TokenOptions say where tokens come from: OAuth 2.0 client credentials (RFC 6749
// section 4.4).
type TokenOptions struct {
	Connector string // whose tokens they are
	URL       string // of the token endpoint; https only
	ClientID  string
	Scopes    []string

	// How the client proves who it is: by a secret, or by an assertion that the
	// key of a certificate signs (RFC 7523 section 2.2). Read for each request.
	Secret      func() (string, error)
	Certificate func() (*tls.Certificate, error)

	CAFile  string // PEM; authorities that the endpoint's certificate may be from instead of the system's
	Emitter event.Emitter
}

// Tokens gets tokens and keeps the last one. It is safe for use by many
// goroutines.
type Tokens struct {
	opts   TokenOptions
	client *http.Client

	asking chan struct{} // held while the endpoint is asked

	mu       sync.Mutex
	token    string
	expires  time.Time
	got      time.Time
	refresh  time.Time // from when on a new one is wanted
	failures int
	next     time.Time // not to ask before
	err      error     // why there is no new token
}

// Chosen by taste, where the comment names no reason.
const (
	tokenMargin   = 30 * time.Second // a token that ends so soon may end during the login
	tokenLifetime = 10 * time.Minute // of one whose endpoint does not say (RFC 6749 section 5.1)
	tokenTimeout  = 20 * time.Second // of one request
	firstPause    = 10 * time.Second // after a failure; doubled after each
	longestPause  = 5 * time.Minute
	refusedAge    = time.Minute // a token that was refused is replaced when it is older than this: a fresh one would fare no better
	maxToken      = 8 << 10     // RFC 4954 section 4 asks hosts for 12288 octets of base64
)

// NewTokens checks the options. It asks nobody: see [Tokens.Refresh].
func NewTokens(opts TokenOptions) (*Tokens, error) {
	u, err := url.Parse(opts.URL)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil:
		return nil, errors.New("the token endpoint is not an https URL")
	case opts.ClientID == "":
		return nil, errors.New("tokens need a client id")
	case (opts.Secret == nil) == (opts.Certificate == nil):
		return nil, errors.New("tokens need either a secret or a certificate")
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if opts.CAFile != "" {
		pem, err := os.ReadFile(opts.CAFile)
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("no certificate in %s", opts.CAFile)
		}
	}
	return &Tokens{opts: opts, asking: make(chan struct{}, 1), client: &http.Client{
		Timeout: tokenTimeout,
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: cfg, ForceAttemptHTTP2: true,
			DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSHandshakeTimeout: 10 * time.Second, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { // the secret is for the endpoint alone
			return errors.New("the token endpoint redirects")
		},
	}}, nil
}

// Expires is when the present token ends; zero when there is none.
func (t *Tokens) Expires() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.expires
}

// Get returns a token that is good for a while. It waits for the endpoint when
// there is none, unless that has failed a moment ago.
func (t *Tokens) Get(ctx context.Context) (string, error) {
	if token, err, ok := t.present(); ok {
		return token, err
	}
	select {
	case t.asking <- struct{}{}:
		defer func() { <-t.asking }()
	case <-ctx.Done():
		return "", fmt.Errorf("no token: %w", ctx.Err())
	}
	if token, err, ok := t.present(); ok { // somebody else has asked meanwhile
		return token, err
	}
	if err := t.ask(ctx); err != nil {
		return "", err
	}
	token, err, _ := t.present()
	return token, err
}

// present is the token that there is, or why there is none for now.
func (t *Tokens) present() (token string, err error, ok bool) { //nolint:revive // the error is part of the answer
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.token != "" && now.Add(tokenMargin).Before(t.expires):
		return t.token, nil, true
	case t.err != nil && now.Before(t.next):
		return "", t.err, true
	}
	return "", nil, false
}

// Refresh gets a new token when a quarter of the time of the present one is left,
// or when there is none. It is to be called every few seconds: nothing waits for
// a token then, and a client that is no longer known is found out before mail is.
func (t *Tokens) Refresh(ctx context.Context) {
	now := time.Now()
	t.mu.Lock()
	due := !now.Before(t.refresh) && !now.Before(t.next)
	t.mu.Unlock()
	if !due {
		return
	}
	select {
	case t.asking <- struct{}{}:
		defer func() { <-t.asking }()
		_ = t.ask(ctx) // states itself how it went
	default: // somebody asks already
	}
}

// refused notes that a host did not take a token. An old one is thrown away.
func (t *Tokens) refused(token string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.token == token && time.Since(t.got) > refusedAge {
		t.token, t.expires, t.refresh = "", time.Time{}, time.Time{}
	}
}

// ask asks the endpoint, and states how that went. The caller holds asking.
func (t *Tokens) ask(ctx context.Context) error {
	start := time.Now()
	token, err := t.fetch(ctx)
	now := time.Now()
	if err != nil && ctx.Err() != nil { // the attempt was cut off: that says nothing of the endpoint
		return fmt.Errorf("no token: %w", ctx.Err())
	}
	ev := event.TokenRefreshed{Connector: t.opts.Connector, Took: event.Seconds(now.Sub(start))}
	t.mu.Lock()
	if err != nil {
		pause := min(firstPause<<min(t.failures, 10), longestPause)
		pause += time.Duration(rand.Float64() * float64(pause) / 10) //nolint:gosec // spreads load
		t.failures++
		t.next = now.Add(pause)
		t.err = fmt.Errorf("no OAuth token: %w", err)
		err, ev.Error = t.err, err.Error()
	} else {
		t.failures, t.next, t.err = 0, time.Time{}, nil
		t.token, t.got, t.expires = token.AccessToken, now, token.Expiry
		if t.expires.IsZero() {
			t.expires = now.Add(tokenLifetime)
		}
		t.refresh = now.Add(t.expires.Sub(now) * 3 / 4)
		ev.Expires = t.expires.UTC().Truncate(time.Second)
	}
	t.mu.Unlock()
	t.opts.Emitter.Emit(ev)
	return err
}

// fetch makes one request. Its error holds neither the secret nor a token.
func (t *Tokens) fetch(ctx context.Context) (*oauth2.Token, error) {
	conf := clientcredentials.Config{
		ClientID: t.opts.ClientID, TokenURL: t.opts.URL, Scopes: t.opts.Scopes, AuthStyle: oauth2.AuthStyleInParams, EndpointParams: url.Values{},
	}
	if t.opts.Secret != nil {
		secret, err := t.opts.Secret()
		if err != nil {
			return nil, fmt.Errorf("read the client secret: %w", err)
		}
		conf.ClientSecret = secret
	} else {
		assertion, err := t.assertion(time.Now())
		if err != nil {
			return nil, err
		}
		conf.EndpointParams.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
		conf.EndpointParams.Set("client_assertion", assertion)
	}
	token, err := conf.Token(context.WithValue(ctx, oauth2.HTTPClient, t.client))
	if err != nil {
		return nil, errors.New(short(conceal(reasonOf(err), conf.ClientSecret), 400))
	}
	switch {
	case !strings.EqualFold(token.Type(), "Bearer"):
		return nil, fmt.Errorf("the endpoint gives tokens of type %.20q", token.Type())
	case token.AccessToken == "" || len(token.AccessToken) > maxToken || strings.ContainsFunc(token.AccessToken, func(r rune) bool { return r <= ' ' || r > '~' }):
		return nil, errors.New("the endpoint gives a malformed token")
	case !token.Expiry.IsZero() && time.Until(token.Expiry) < tokenMargin:
		return nil, errors.New("the endpoint gives tokens that have ended already; is the clock right?")
	}
	return token, nil
}

// reasonOf is what an error of the library says, without what the endpoint's
// body may hold, and without the URL.
func reasonOf(err error) string {
	if e, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		text := "the endpoint answers"
		if e.Response != nil {
			text += fmt.Sprintf(" %d", e.Response.StatusCode)
		}
		if e.ErrorCode != "" {
			text += ": " + e.ErrorCode
		}
		if first, _, _ := strings.Cut(e.ErrorDescription, "\n"); first != "" {
			text += ": " + first
		}
		return text
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	return err.Error()
}

// conceal keeps a secret out of a text that somebody else wrote.
func conceal(text, secret string) string {
	if secret == "" {
		return text
	}
	return strings.ReplaceAll(text, secret, "***")
}

// short makes text fit for a record: one line, of at most so many octets.
func short(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	if len(text) > limit {
		text = text[:limit]
	}
	return strings.TrimSpace(strings.ToValidUTF8(text, "?"))
}
