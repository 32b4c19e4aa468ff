package mail

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	long := func(n int) string { return strings.Repeat("a", n) }
	for _, test := range []struct {
		name string
		in   string
		want string // as written; "!" for an error
		key  string // empty: as want
	}{
		{"null", "", "", ""},
		{"plain", "user@example.com", "user@example.com", ""},
		{"case", "User@Example.COM", "User@Example.COM", "User@example.com"},
		{"atext", "!#$%&'*+-/=?^_`{|}~@example.com", "!#$%&'*+-/=?^_`{|}~@example.com", ""},
		{"quoted without need", `"user"@example.com`, "user@example.com", ""},
		{"quoted pair without need", `"us\er"@example.com`, "user@example.com", ""},
		{"quoted space", `"a b"@example.com`, `"a b"@example.com`, ""},
		{"quoted empty", `""@example.com`, `""@example.com`, ""},
		{"quoted at sign", `"a@b"@example.com`, `"a@b"@example.com`, ""},
		{"quoted bracket", `"a>b"@example.com`, `"a>b"@example.com`, ""},
		{"quoted quote", `"a\"b\\"@example.com`, `"a\"b\\"@example.com`, ""},
		{"quoted dots", `".a..b."@example.com`, `".a..b."@example.com`, ""},
		{"postmaster", "PostMaster", "PostMaster", ""},
		{"IPv4 literal", "a@[192.0.2.1]", "a@[192.0.2.1]", ""},
		{"IPv6 literal", "a@[IPv6:2001:DB8::1]", "a@[IPv6:2001:DB8::1]", "a@[ipv6:2001:db8::1]"},
		{"underscore", "a@_dmarc.example.com", "a@_dmarc.example.com", ""},
		{"single label", "a@localhost", "a@localhost", ""},
		{"digits in a label", "a@163.com", "a@163.com", ""},
		{"UTF-8", "grüße@bücher.example", "grüße@bücher.example", "grüße@xn--bcher-kva.example"},
		{"longest local part", long(64) + "@example.com", long(64) + "@example.com", ""},

		{"no domain", "user", "!", ""},
		{"empty local part", "@example.com", "!", ""},
		{"empty domain", "user@", "!", ""},
		{"two at signs", "a@b@example.com", "!", ""},
		{"leading dot", ".a@example.com", "!", ""},
		{"trailing dot", "a.@example.com", "!", ""},
		{"two dots", "a..b@example.com", "!", ""},
		{"space", "a b@example.com", "!", ""},
		{"trailing space", "a@example.com ", "!", ""},
		{"comma", "a,b@example.com", "!", ""},
		{"comment", "a(b)@example.com", "!", ""},
		{"brackets", "<a@example.com>", "!", ""},
		{"unfinished quotes", `"a@example.com`, "!", ""},
		{"text after quotes", `"a"b@example.com`, "!", ""},
		{"unfinished quoted pair", `"a\`, "!", ""},
		{"long local part", long(65) + "@example.com", "!", ""},
		{"long label", "a@" + long(64) + ".com", "!", ""},
		{"long U-label", "a@" + strings.Repeat("ü", 60) + ".com", "!", ""},
		{"long path", "a@" + strings.Repeat(long(50)+".", 5) + "com", "!", ""},
		{"NUL", "a\x00@example.com", "!", ""},
		{"DEL", "a\x7f@example.com", "!", ""},
		{"line end", "\"a\r\n\"@example.com", "!", ""},
		{"escape", "\"\x1b[2J\"@example.com", "!", ""},
		{"C1 control", "a\u009bb@example.com", "!", ""},
		{"line separator", "a\u2028b@example.com", "!", ""},
		{"not UTF-8", "a\xff@example.com", "!", ""},
		{"hyphen first", "a@-example.com", "!", ""},
		{"hyphen last", "a@example-.com", "!", ""},
		{"empty label", "a@example..com", "!", ""},
		{"root dot", "a@example.com.", "!", ""},
		{"ideographic dots make an empty label", "a@b。.com", "!", ""},
		{"ideographic dot at the end", "a@b.com。", "!", ""},
		{"soft hyphen makes an empty label", "a@\u00ad.com", "!", ""},
		{"slash from a letter", "a@\u2100.com", "!", ""},
		{"dotted address without brackets", "a@192.0.2.1", "!", ""},
		{"number", "a@1", "!", ""},
		{"circled digits", "a@①②⑦.0.0.①", "!", ""},
		{"literal out of range", "a@[192.0.2.256]", "!", ""},
		{"literal with zeros", "a@[192.0.02.1]", "!", ""},
		{"literal with a zone", "a@[IPv6:fe80::1%lo]", "!", ""},
		{"IPv6 without tag", "a@[2001:db8::1]", "!", ""},
		{"IPv4 with tag", "a@[IPv6:192.0.2.1]", "!", ""},
		{"empty literal", "a@[]", "!", ""},
		{"text after the literal", "a@[192.0.2.1].com", "!", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParseAddress(test.in)
			if test.want == "!" {
				if !errors.Is(err, ErrAddressSyntax) {
					t.Errorf("ParseAddress(%q) = %+v, %v, want ErrAddressSyntax", test.in, got, err)
				}
				return
			}
			if err != nil || got.String() != test.want {
				t.Fatalf("ParseAddress(%q) = %q, %v, want %q", test.in, got, err, test.want)
			}
			key := test.key
			if key == "" {
				key = test.want
			}
			if got.Key() != key {
				t.Errorf("Key() = %q, want %q", got.Key(), key)
			}
			if got.Path() != "<"+test.want+">" || got.IsNull() != (test.in == "") {
				t.Errorf("Path() = %q, IsNull() = %t", got.Path(), got.IsNull())
			}
			checkRoundTrip(t, got)
		})
	}
}

// checkRoundTrip holds the package's promise.
func checkRoundTrip(t *testing.T, a Address) {
	t.Helper()
	again, err := ParseAddress(a.String())
	if err != nil || again != a {
		t.Errorf("%+v is written as %q, which parses as %+v, %v", a, a.String(), again, err)
	}
	path, rest, err := ParsePath(a.Path() + " X")
	if err != nil || path != a || rest != " X" {
		t.Errorf("ParsePath(%q) = %+v, %q, %v", a.Path()+" X", path, rest, err)
	}
	data, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	var decoded Address
	if err := json.Unmarshal(data, &decoded); err != nil || decoded != a {
		t.Errorf("JSON %s decodes to %+v, %v, want %+v", data, decoded, err, a)
	}
	if key := a.DomainKey(); a.Domain != "" {
		folded, err := ParseDomain(key)
		if err != nil || folded != key {
			t.Errorf("DomainKey() = %q is not stable: %q, %v", key, folded, err)
		}
	}
}

func TestParsePath(t *testing.T) {
	for _, test := range []struct {
		name, in, want, rest string
	}{
		{"null", "<> SIZE=1", "", " SIZE=1"},
		{"plain", "<a@b.example>x", "a@b.example", "x"},
		{"source route", "<@x.example,@y.example:a@b.example>", "a@b.example", ""},
		{"source route to an address literal", "<@[192.0.2.1]:a@b.example>", "a@b.example", ""},
		{"bracket in quotes", `<"a>"@b.example> B`, `"a>"@b.example`, " B"},
		{"no bracket", "a@b.example", "!", ""},
		{"no closing bracket", "<a@b.example", "!", ""},
		{"space inside", "< a@b.example>", "!", ""},
		{"route without address", "<@x.example:>", "!", ""},
		{"route without colon", "<@x.example>", "!", ""},
		{"route with a space", "<@x.example, @y.example:a@b.example>", "!", ""},
		{"route with an empty hop", "<@x.example,:a@b.example>", "!", ""},
		{"two brackets", "<<a@b.example>>", "!", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, rest, err := ParsePath(test.in)
			if test.want == "!" {
				if !errors.Is(err, ErrAddressSyntax) {
					t.Errorf("ParsePath(%q) = %+v, %v, want ErrAddressSyntax", test.in, a, err)
				}
				return
			}
			if err != nil || a.String() != test.want || rest != test.rest {
				t.Errorf("ParsePath(%q) = %q, %q, %v, want %q, %q", test.in, a, rest, err, test.want, test.rest)
			}
		})
	}
}

func TestParseDomain(t *testing.T) {
	for in, want := range map[string]string{
		"Example.COM.": "example.com", "bücher.example": "xn--bcher-kva.example", "XN--BCHER-KVA.example": "xn--bcher-kva.example",
		"[192.0.2.1]": "[192.0.2.1]", "": "", ".": "", "a..b": "", "a b": "", "*.a.example": "", "example.com..": "",
	} {
		got, err := ParseDomain(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("ParseDomain(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestLiteral(t *testing.T) {
	for domain, want := range map[string]string{
		"[192.0.2.1]": "192.0.2.1", "[IPv6:2001:db8::1]": "2001:db8::1", "[ipv6:::FFFF:192.0.2.1]": "::ffff:192.0.2.1", "example.com": "", "": "",
	} {
		ip, ok := (Address{Local: "a", Domain: domain}).Literal()
		if ok != (want != "") || ok && ip != netip.MustParseAddr(want) {
			t.Errorf("Literal() of %q = %v, %t, want %q", domain, ip, ok, want)
		}
	}
}

func TestASCII(t *testing.T) {
	for in, want := range map[string]bool{"a@b.example": true, "ä@b.example": false, "a@bücher.example": false, "": true} {
		a, err := ParseAddress(in)
		if err != nil || a.ASCII() != want {
			t.Errorf("ASCII() of %q = %t, %v, want %t", in, a.ASCII(), err, want)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{
		"<>", "<a@b.example>", `<"a b\"\\>"@b.example> SIZE=1`, "<@x,@y:a@[IPv6:::1]>", "<postmaster>", "<ä@bücher.example>",
		"<a@①②⑦.0.0.①>", "<a@b。.example>", "<a@\u00ad.example>", "<\"\r\n\"@b>",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, _, err := ParsePath(s)
		if err != nil {
			return
		}
		if strings.ContainsAny(a.String(), "\r\n\x00\x1b") || len(a.Local)+len(a.Domain) > maxPath {
			t.Errorf("ParsePath(%q) = %q", s, a)
		}
		checkRoundTrip(t, a)
	})
}
