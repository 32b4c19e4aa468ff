package oauth

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/sync/singleflight"

	"waybill/relay/auth"
	"waybill/relay/event"
)

// When keys are read. An issuer that changes its keys shows the new ones for a
// while before it signs with them; that of one that does not is met by reading
// again when a token names a key that we do not have.
const (
	freshFor   = time.Hour        // keys from a URL are read again after
	fileEvery  = 30 * time.Second // keys from a file are read again after
	retryAfter = time.Minute      // what failed is tried again after
	askEvery   = 20 * time.Second // no token makes us read more often
	fetchTime  = 10 * time.Second
)

// Bounds of a key set, chosen by taste.
const (
	maxSet    = 1 << 20
	maxKeys   = 200
	minRSA    = 2048 // bits (RFC 7518 section 3.3)
	maxRSA    = 8192 // bits: checking costs
	redirects = 3
)

// keys are the keys of one issuer.
type keys struct {
	issuer    string
	emit      event.Emitter
	discovers bool
	every     time.Duration
	fetch     func(ctx context.Context) ([]byte, error)
	flight    singleflight.Group

	mu    sync.Mutex
	list  []jose.JSONWebKey
	tried time.Time
	err   error // of the last time
}

func newKeys(i Issuer, emit event.Emitter) (*keys, error) {
	k := &keys{issuer: i.Issuer, emit: emit, every: freshFor}
	if i.JWKSFile != "" {
		if i.JWKSURL != "" {
			return nil, errors.New("its keys are in a file, or at a URL, but not both")
		}
		k.every = fileEvery
		k.fetch = func(context.Context) ([]byte, error) { return readFile(i.JWKSFile) }
		return k, k.load(context.Background()) // an error is the caller's to state
	}
	client, err := newClient(i.CAFile)
	if err != nil {
		return nil, err
	}
	if i.JWKSURL != "" {
		if err := CheckURL(i.JWKSURL); err != nil {
			return nil, err
		}
		k.fetch = func(ctx context.Context) ([]byte, error) { return get(ctx, client, i.JWKSURL) }
		return k, nil
	}
	if err := CheckURL(i.Issuer); err != nil {
		return nil, fmt.Errorf("its keys are neither in a file nor at a URL, and it is no URL itself: %w", err)
	}
	k.discovers = true
	k.fetch = func(ctx context.Context) ([]byte, error) { return discover(ctx, client, i.Issuer) }
	return k, nil
}

// find gives the keys that may have signed a token with that header. It reads
// the keys again when there is none.
func (k *keys) find(ctx context.Context, id, algorithm string) ([]jose.JSONWebKey, error) {
	found, may, known := k.look(id, algorithm)
	if len(found) == 0 && may {
		// Its error is a fact; here it matters only whether there is such a key now.
		answer := k.flight.DoChan("", func() (any, error) {
			if _, may, _ := k.look(id, algorithm); !may { // somebody was faster
				return nil, nil //nolint:nilnil // there is nothing to say
			}
			return nil, k.read(ctx)
		})
		select {
		case <-answer:
		case <-ctx.Done():
		}
		found, _, known = k.look(id, algorithm)
	}
	switch {
	case len(found) > 0:
		return found, nil
	case !known:
		return nil, fmt.Errorf("%w: the keys of the token's issuer have not been read", auth.ErrUnavailable)
	}
	return nil, refuse("its key is none of the issuer's")
}

// look finds keys, and says whether reading them again may be tried now, and
// whether there are any at all.
func (k *keys) look(id, algorithm string) (found []jose.JSONWebKey, may, known bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range k.list {
		if (id == "" || key.KeyID == id) && (key.Algorithm == "" || key.Algorithm == algorithm) && fits(key.Key, algorithm) {
			found = append(found, key)
		}
	}
	return found, time.Since(k.tried) >= askEvery, len(k.list) > 0
}

// fits reports whether a key is of the kind that an algorithm takes.
func fits(key any, algorithm string) bool {
	switch key.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(algorithm, "RS") || strings.HasPrefix(algorithm, "PS")
	case *ecdsa.PublicKey:
		return strings.HasPrefix(algorithm, "ES")
	case ed25519.PublicKey:
		return algorithm == string(jose.EdDSA)
	}
	return false
}

// due reports whether it is time to read the keys.
func (k *keys) due() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	wait := k.every
	if k.err != nil {
		wait = min(wait, retryAfter)
	}
	return time.Since(k.tried) >= wait
}

// refresh reads the keys, unless somebody does.
func (k *keys) refresh(ctx context.Context) {
	_, _, _ = k.flight.Do("", func() (any, error) { return nil, k.read(ctx) }) // states its error itself
}

// read takes the keys into use, and states it when that begins to fail.
func (k *keys) read(ctx context.Context) error {
	k.mu.Lock()
	said := k.err
	k.mu.Unlock()
	err := k.load(ctx)
	if err != nil && (said == nil || said.Error() != err.Error()) {
		k.emit.Emit(event.Remarked{Remark: "the keys of a token issuer cannot be read", Detail: k.issuer + ": " + err.Error()})
	}
	return err
}

// load takes the keys into use. After an error those that were stay.
func (k *keys) load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	data, err := k.fetch(ctx)
	var list []jose.JSONWebKey
	if err == nil {
		list, err = parseKeys(data)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tried, k.err = time.Now(), err
	if err == nil {
		k.list = list
	}
	return err
}

// parseKeys reads a JSON Web Key Set. Keys that are of no use here are left out,
// and one that is broken does not spoil the others (RFC 7517 section 5).
func parseKeys(data []byte) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, errors.New("not a JSON Web Key Set")
	}
	var list []jose.JSONWebKey
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if json.Unmarshal(raw, &key) != nil || key.Use != "" && key.Use != "sig" {
			continue
		}
		id, algorithm := key.KeyID, key.Algorithm
		if key = key.Public(); !strong(key.Key) || !key.Valid() {
			continue
		}
		list = append(list, jose.JSONWebKey{Key: key.Key, KeyID: id, Algorithm: algorithm})
	}
	switch {
	case len(list) == 0:
		return nil, errors.New("no key for signatures is in the JSON Web Key Set")
	case len(list) > maxKeys:
		return nil, fmt.Errorf("more than %d keys are in the JSON Web Key Set", maxKeys)
	}
	return list, nil
}

// strong reports whether a key is one that we take.
func strong(key any) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return k.N != nil && k.N.BitLen() >= minRSA && k.N.BitLen() <= maxRSA
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return true
	}
	return false
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name) //nolint:gosec // a file that the configuration names
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxSet))
}

// CheckURL reports what is wrong with a URL that keys are to be read from: it
// has to be https, but on this machine, and to hold no password.
func CheckURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "":
		return errors.New("not a URL such as https://login.example.com/keys")
	case u.User != nil:
		return errors.New("the URL holds a user name or a password")
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http" && here(u.Hostname()):
		return nil
	}
	return errors.New("want https: keys that come in clear are anybody's")
}

func here(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func newClient(caFile string) (*http.Client, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		pem, err := os.ReadFile(caFile) //nolint:gosec // a file that the configuration names
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("no certificate in %s", caFile)
		}
	}
	return &http.Client{
		Timeout: fetchTime,
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, DialContext: (&net.Dialer{Timeout: fetchTime / 2}).DialContext,
			DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) > redirects {
				return errors.New("too many redirects")
			}
			return CheckURL(r.URL.String())
		},
	}, nil
}

// get fetches a small JSON document. Its errors do not quote the URL.
func get(ctx context.Context, client *http.Client, from string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, errors.New("not a URL")
	}
	r.Header.Set("Accept", "application/jwk-set+json, application/json")
	r.Header.Set("User-Agent", "waybill")
	resp, err := client.Do(r)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the answer is %d", resp.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxSet+1))
	if err == nil && len(data) > maxSet {
		err = fmt.Errorf("the answer is longer than %d octets", maxSet)
	}
	return data, err
}

// discoveryURL is where an issuer's OpenID configuration is (OpenID Connect
// Discovery 1.0 section 4).
func discoveryURL(issuer string) string {
	return strings.TrimSuffix(issuer, "/") + "/.well-known/openid-configuration"
}

// discover fetches the keys from where the issuer says that they are.
func discover(ctx context.Context, client *http.Client, issuer string) ([]byte, error) {
	data, err := get(ctx, client, discoveryURL(issuer))
	if err != nil {
		return nil, fmt.Errorf("OpenID configuration: %w", err)
	}
	var config struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	switch err := json.Unmarshal(data, &config); {
	case err != nil:
		return nil, errors.New("OpenID configuration: not JSON")
	case config.Issuer != issuer: // section 4.3
		return nil, fmt.Errorf("OpenID configuration: it is that of issuer %.200q", config.Issuer)
	}
	if err := CheckURL(config.Keys); err != nil {
		return nil, fmt.Errorf("OpenID configuration: jwks_uri: %w", err)
	}
	return get(ctx, client, config.Keys)
}
