package mail

import (
	"strings"
	"testing"
)

func TestParseORcpt(t *testing.T) {
	for _, test := range []struct {
		name string
		in   string
		want string // empty: refused
	}{
		{"rfc822", "rfc822;Bob@example.com", "rfc822;Bob@example.com"},
		{"xtext", "rfc822;a+2Bb+3Dc@example.com", "rfc822;a+b=c@example.com"},
		{"an escape of another type", `rfc822;a\x{E9}@example.com`, `rfc822;a\x{E9}@example.com`},
		{"any type", "x400;/C+3DDE/", "x400;/C=DE/"},
		{"utf-8-addr-xtext", `utf-8;caf\x{E9}\x{1F600}@b\x{FC}cher.example`, "utf-8;café😀@bücher.example"},
		{"utf-8-addr-unitext", "UTF-8;jörg@bücher.example", "UTF-8;jörg@bücher.example"},
		{"both", `utf-8;jörg\x{2B}a@example.com`, "utf-8;jörg+a@example.com"},
		{"lower case digits", `utf-8;j\x{f6}rg@example.com`, "utf-8;jörg@example.com"},
		{"what needs no escape", `utf-8;\x{62}ob\x{000040}example.com`, "utf-8;bob@example.com"},
		{"all xtext-specials", `utf-8;"a\x{20}b\x{5C}\x{5C}"\x{2B}\x{3D}@example.com`, `utf-8;"a b\\"+=@example.com`},
		{"xtext, as some clients write it", "utf-8;j+C3+B6rg+2Ba@example.com", "utf-8;jörg+a@example.com"},
		{"an escape that is escaped", `utf-8;\x{5C}x{41}@example.com`, `utf-8;\x{41}@example.com`},

		{"control character", `utf-8;a\x{0D}\x{0A}b`, ""},
		{"NUL", `utf-8;\x{0}`, ""},
		{"C1 control", `utf-8;a\x{85}b`, ""},
		{"line separator", `utf-8;a\x{2028}b`, ""},
		{"surrogate", `utf-8;a\x{D800}`, ""},
		{"past the last character", `utf-8;a\x{110000}`, ""},
		{"too many digits", `utf-8;a\x{0000041}`, ""},
		{"no digits", `utf-8;a\x{}`, ""},
		{"a sign", `utf-8;a\x{+41}`, ""},
		{"no hexadecimal", `utf-8;a\x{4G}`, ""},
		{"not closed", `utf-8;a\x{41`, ""},
		{"another escape", `utf-8;a\n`, ""},
		{"a backslash at the end", `utf-8;a\`, ""},
		{"not UTF-8", "utf-8;a\xff", ""},
		{"half a character by xtext", "utf-8;a+C3", ""},
		{"control by xtext", "utf-8;a+0D", ""},
		{"equals sign", "utf-8;a=b", ""},
		{"a plus that is no xtext", "utf-8;a+b@example.com", ""},
		{"no address", "utf-8;", ""},
		{"no type", ";a@example.com", ""},
		{"too long", "utf-8;" + strings.Repeat("x", 500), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, err := ParseRcpt("TO:<a@b.example> ORCPT="+test.in, false)
			if r.ORcpt != test.want || (err != nil) != (test.want == "") {
				t.Errorf("ORCPT=%s gives %q, %v, want %q", test.in, r.ORcpt, err, test.want)
			}
		})
	}
}

func TestORcptValue(t *testing.T) {
	for _, test := range []struct {
		name    string
		orcpt   string
		xtext   string // for a transaction without SMTPUTF8
		unitext string // for one under it
	}{
		{"none", "", "", ""},
		{"no type", "a@example.com", "", ""},
		{"rfc822", "rfc822;a+b@example.com", "rfc822;a+2Bb@example.com", "rfc822;a+2Bb@example.com"},
		{"rfc822 that is not", "rfc822;ö@example.com", "rfc822;+C3+B6@example.com", "rfc822;+C3+B6@example.com"},
		{"utf-8", "utf-8;jörg😀@example.com", `utf-8;j\x{F6}rg\x{1F600}@example.com`, "utf-8;jörg😀@example.com"},
		{"specials", `UTF-8;"a b\\"+=@example.com`, `UTF-8;"a\x{20}b\x{5C}\x{5C}"\x{2B}\x{3D}@example.com`, `UTF-8;"a\x{20}b\x{5C}\x{5C}"\x{2B}\x{3D}@example.com`},
		{"too long in 7 bits", "utf-8;" + strings.Repeat("ö", 100), "", "utf-8;" + strings.Repeat("ö", 100)},
		{"too long", "utf-8;" + strings.Repeat("+", 100), "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := Recipient{ORcpt: test.orcpt}
			if got := r.ORcptValue(false); got != test.xtext {
				t.Errorf("ORcptValue(false) = %q, want %q", got, test.xtext)
			}
			if got := r.ORcptValue(true); got != test.unitext {
				t.Errorf("ORcptValue(true) = %q, want %q", got, test.unitext)
			}
		})
	}
}

func TestReadableORcpt(t *testing.T) {
	for _, test := range []struct {
		name string
		in   string
		want string
	}{
		{"none", "", ""},
		{"another type", `rfc822;a\x{E9}`, `rfc822;a\x{E9}`},
		{"escaped", `utf-8;caf\x{E9}+a=b@example.com`, "utf-8;café+a=b@example.com"},
		{"as it is", "utf-8;café@example.com", "utf-8;café@example.com"},
		{"no escape", `utf-8;a\x{zz}\x{41`, `utf-8;a\x{zz}\x{41`},
		{"a control character", `utf-8;a\x{0D}`, `utf-8;a\x{0D}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := ReadableORcpt(test.in); got != test.want {
				t.Errorf("ReadableORcpt(%q) = %q, want %q", test.in, got, test.want)
			}
		})
	}
}

// What was taken is passed on so that it is taken again, unchanged.
func FuzzORcpt(f *testing.F) {
	for _, s := range []string{`utf-8;j\x{F6}rg@example.com`, "utf-8;jörg@example.com", "utf-8;j+C3+B6rg", "rfc822;a+2Bb", `utf-8;\x{5C}x{41}`, `utf-8;\x{10FFFF}\x{D800}`, "utf-8;\\"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, val string) {
		orcpt, err := parseORcpt(val)
		if err != nil {
			return
		}
		r := Recipient{ORcpt: orcpt}
		for _, smtputf8 := range []bool{false, true} {
			out := r.ORcptValue(smtputf8)
			if out == "" && len(val) < 60 { // nothing of that length can grow out of the parameter
				t.Fatalf("%q is lost", orcpt)
			}
			if strings.ContainsAny(out, " \r\n\x00") || !smtputf8 && !isASCII(out) {
				t.Fatalf("%q is written as %q", orcpt, out)
			}
			if out == "" {
				continue
			}
			if again, err := parseORcpt(out); err != nil || again != orcpt {
				t.Fatalf("%q is written as %q, which is read as %q, %v", orcpt, out, again, err)
			}
		}
	})
}
