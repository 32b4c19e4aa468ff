package dane

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"testing"
	"time"

	"waybill/relay/dns"
)

// issue makes a certificate that signer has signed; nil: its own authority.
func issue(t *testing.T, signer *party, authority bool, notAfter time.Time, names ...string) *party {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: serial.String()}, DNSNames: names,
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: notAfter, BasicConstraintsValid: true, IsCA: authority,
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if authority {
		template.KeyUsage = x509.KeyUsageCertSign
	} else {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	p := &party{key: key}
	parent := template
	signKey := key
	if signer != nil {
		parent, signKey = signer.cert, signer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signKey)
	if err != nil {
		t.Fatal(err)
	}
	if p.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return p
}

type party struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func record(usage, selector, matching uint8, p *party) dns.TLSA {
	data := p.cert.Raw
	if selector == SelectorSPKI {
		data = p.cert.RawSubjectPublicKeyInfo
	}
	switch matching {
	case MatchSHA256:
		sum := sha256.Sum256(data)
		data = sum[:]
	case MatchSHA512:
		sum := sha512.Sum512(data)
		data = sum[:]
	}
	return dns.TLSA{Usage: usage, Selector: selector, MatchingType: matching, Data: data}
}

func TestVerify(t *testing.T) {
	later, past := time.Now().Add(24*time.Hour), time.Now().Add(-time.Hour)
	root := issue(t, nil, true, later)
	inter := issue(t, root, true, later)
	leaf := issue(t, inter, false, later, "mx.example")
	next := issue(t, inter, false, later, "mx.example")
	expired := issue(t, inter, false, past, "other.example")
	stranger := issue(t, nil, true, later)
	alone := issue(t, nil, false, later, "mx.example")
	chain := func(ps ...*party) (list []*x509.Certificate) {
		for _, p := range ps {
			list = append(list, p.cert)
		}
		return list
	}
	full := chain(leaf, inter, root)
	mx := []string{"mx.example", "example"}
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	for _, test := range []struct {
		name    string
		records []dns.TLSA
		peer    []*x509.Certificate
		names   []string
		as      any // what the error is, when it tells more
		want    bool
	}{
		{"3 1 1", []dns.TLSA{record(3, 1, 1, leaf)}, full, nil, nil, true},
		{"3 1 2", []dns.TLSA{record(3, 1, 2, leaf)}, full, nil, nil, true},
		{"3 1 0", []dns.TLSA{record(3, 1, 0, leaf)}, full, nil, nil, true},
		{"3 0 1", []dns.TLSA{record(3, 0, 1, leaf)}, full, nil, nil, true},
		{"3 0 0", []dns.TLSA{record(3, 0, 0, leaf)}, full, nil, nil, true},
		{"3 of another", []dns.TLSA{record(3, 1, 1, next)}, full, nil, nil, false},
		{"3 of the authority, not of the server", []dns.TLSA{record(3, 1, 1, inter)}, full, nil, nil, false},
		{"3 knows neither dates nor names", []dns.TLSA{record(3, 1, 1, expired)}, chain(expired), mx, nil, true},
		{"3 of a certificate on its own", []dns.TLSA{record(3, 1, 1, alone)}, chain(alone), mx, nil, true},
		{"rollover", []dns.TLSA{record(3, 1, 1, leaf), record(3, 1, 1, next)}, chain(next, inter), nil, nil, true},
		{"rollover, with the old one", []dns.TLSA{record(3, 1, 1, next), record(3, 1, 1, leaf)}, full, nil, nil, true},

		{"2 0 1 root", []dns.TLSA{record(2, 0, 1, root)}, full, mx, nil, true},
		{"2 1 1 intermediate", []dns.TLSA{record(2, 1, 1, inter)}, full, mx, nil, true},
		{"2 1 2 intermediate, root not sent", []dns.TLSA{record(2, 1, 2, inter)}, chain(leaf, inter), mx, nil, true},
		{"2 0 1 root, not sent", []dns.TLSA{record(2, 0, 1, root)}, chain(leaf, inter), mx, nil, false},
		{"2 0 0 root, not sent but in the record", []dns.TLSA{record(2, 0, 0, root)}, chain(leaf, inter), mx, nil, true},
		{"2 of a stranger", []dns.TLSA{record(2, 0, 1, stranger)}, full, mx, nil, false},
		{"2 of a stranger, sent along", []dns.TLSA{record(2, 0, 1, stranger)}, chain(leaf, inter, root, stranger), mx, new(x509.UnknownAuthorityError), false},
		{"2 by the second name", []dns.TLSA{record(2, 0, 1, root)}, full, []string{"example", "mx.example"}, nil, true},
		{"2 with another name", []dns.TLSA{record(2, 0, 1, root)}, full, []string{"mx2.example"}, &host, false},
		{"2 without a name", []dns.TLSA{record(2, 0, 1, root)}, full, nil, nil, false},
		{"2 expired", []dns.TLSA{record(2, 0, 1, root)}, chain(expired, inter, root), []string{"other.example"}, &invalid, false},

		{"0 and 1 do not count", []dns.TLSA{record(0, 0, 1, root), record(1, 1, 1, leaf)}, full, mx, nil, false},
		{"mixed with what does not count", []dns.TLSA{record(1, 1, 1, leaf), {Usage: 3, Selector: 9}, record(3, 1, 1, leaf)}, full, mx, nil, true},
		{"2 fails and 3 matches", []dns.TLSA{record(2, 0, 1, stranger), record(3, 1, 1, leaf)}, full, mx, nil, true},
		{"none", nil, full, mx, nil, false},
		{"no certificate", []dns.TLSA{record(3, 1, 1, leaf)}, nil, mx, nil, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := Verify(test.records, test.peer, test.names)
			if (err == nil) != test.want {
				t.Fatalf("Verify = %v, want success %t", err, test.want)
			}
			if test.as != nil && !errors.As(err, test.as) {
				t.Errorf("Verify = %v, want a %T", err, test.as)
			}
		})
	}
}

func TestUsable(t *testing.T) {
	p := issue(t, nil, true, time.Now().Add(time.Hour))
	cut := record(3, 1, 1, p)
	cut.Data = cut.Data[:31]
	long := record(3, 1, 2, p)
	long.Data = append(long.Data, 0)
	for _, test := range []struct {
		name   string
		record dns.TLSA
		want   bool
	}{
		{"2 0 0", record(2, 0, 0, p), true},
		{"2 1 0", record(2, 1, 0, p), true},
		{"3 1 1", record(3, 1, 1, p), true},
		{"0 0 1", record(0, 0, 1, p), false},
		{"1 0 1", record(1, 0, 1, p), false},
		{"private usage", record(255, 0, 1, p), false},
		{"unknown selector", dns.TLSA{Usage: 3, Selector: 2, MatchingType: 1, Data: make([]byte, 32)}, false},
		{"unknown matching", dns.TLSA{Usage: 3, Selector: 1, MatchingType: 3, Data: make([]byte, 32)}, false},
		{"cut digest", cut, false},
		{"long digest", long, false},
		{"no data", dns.TLSA{Usage: 3, Selector: 1, MatchingType: 1}, false},
		{"rubbish for a certificate", dns.TLSA{Usage: 2, Data: []byte("certificate")}, false},
		{"rubbish for a key", dns.TLSA{Usage: 3, Selector: 1, Data: []byte("key")}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := len(Usable([]dns.TLSA{test.record})) == 1; got != test.want {
				t.Errorf("Usable = %t, want %t", got, test.want)
			}
		})
	}
}

// FuzzVerify: records are remote data.
func FuzzVerify(f *testing.F) {
	f.Add(uint8(3), uint8(1), uint8(1), []byte("0123456789abcdef0123456789abcdef"))
	f.Add(uint8(2), uint8(0), uint8(0), []byte{0x30, 0x82, 1, 0})
	f.Add(uint8(2), uint8(1), uint8(0), []byte{0x30, 0x59, 0x30, 0x13})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"mx.example"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		f.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, usage, selector, matching uint8, data []byte) {
		r := dns.TLSA{Usage: usage, Selector: selector, MatchingType: matching, Data: data}
		if err := Verify([]dns.TLSA{r}, []*x509.Certificate{cert}, []string{"mx.example"}); err == nil && !matches(r, cert) {
			t.Errorf("%v verified a certificate that it does not stand for", r)
		}
	})
}
