package login

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // a name for the certificate, which RFC 7515 section 4.1.7 wants in SHA-1
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// assertionLifetime is how long an assertion is good: for one request.
const assertionLifetime = 5 * time.Minute

// assertion is a JSON Web Token by which the client proves who it is (RFC 7523
// section 3). The endpoint finds the key by the certificate's thumbprints.
func (t *Tokens) assertion(now time.Time) (string, error) {
	cert, err := t.opts.Certificate()
	switch {
	case err != nil:
		return "", fmt.Errorf("read the client's certificate: %w", err)
	case cert == nil || len(cert.Certificate) == 0:
		return "", errors.New("there is no client certificate")
	}
	algorithm, err := algorithmOf(cert.PrivateKey)
	if err != nil {
		return "", err
	}
	old, thumb := sha1.Sum(cert.Certificate[0]), sha256.Sum256(cert.Certificate[0]) //nolint:gosec // as above
	opts := (&jose.SignerOptions{}).WithType("JWT").
		WithHeader("x5t", base64.RawURLEncoding.EncodeToString(old[:])).
		WithHeader("x5t#S256", base64.RawURLEncoding.EncodeToString(thumb[:]))
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: cert.PrivateKey}, opts)
	if err != nil {
		return "", errors.New("the key of the client's certificate cannot sign")
	}
	text, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: t.opts.ClientID, Subject: t.opts.ClientID, Audience: jwt.Audience{t.opts.URL}, ID: rand.Text(),
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now.Add(-time.Minute)), Expiry: jwt.NewNumericDate(now.Add(assertionLifetime)),
	}).Serialize()
	if err != nil {
		return "", errors.New("the key of the client's certificate cannot sign")
	}
	return text, nil
}

// algorithmOf is the signature that goes with a key. Entra ID takes RSA alone.
func algorithmOf(key crypto.PrivateKey) (jose.SignatureAlgorithm, error) {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		return jose.RS256, nil
	case *ecdsa.PrivateKey:
		switch k.Curve {
		case elliptic.P256():
			return jose.ES256, nil
		case elliptic.P384():
			return jose.ES384, nil
		case elliptic.P521():
			return jose.ES512, nil
		}
	}
	return "", errors.New("the key of the client's certificate is neither RSA nor of a NIST curve")
}
