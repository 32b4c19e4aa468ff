package mail

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxORcpt is how long ORCPT's value may be (RFC 3461 section 4.2).
const maxORcpt = 500

// addrUTF8 is the address type of RFC 6533 section 3. Its addresses have an
// encoding of their own in place of xtext: \x{HEX} for a character.
const addrUTF8 = "utf-8"

// SplitORcpt parts an original recipient into its address type, such as
// "rfc822", and its address; isUTF8 reports whether the type is utf-8.
func SplitORcpt(orcpt string) (kind, addr string, isUTF8, ok bool) {
	kind, addr, ok = strings.Cut(orcpt, ";")
	if !ok || kind == "" || addr == "" {
		return "", "", false, false
	}
	return kind, addr, strings.EqualFold(kind, addrUTF8), true
}

// parseORcpt parses the value of ORCPT=, such as "rfc822;a+2Bb@example.com", into
// its type and the address as it is.
func parseORcpt(val string) (string, error) {
	kind, enc, isUTF8, ok := SplitORcpt(val)
	if !ok || len(val) > maxORcpt || !isAtom(kind) {
		return "", errBadValue
	}
	decode := DecodeXText
	if isUTF8 {
		decode = DecodeUXText
	}
	addr, err := decode(enc)
	if err != nil {
		return "", err
	}
	return kind + ";" + addr, nil
}

// ORcptValue is the value of ORCPT= for a next hop. An address of type utf-8 goes
// as utf-8-addr-unitext where smtputf8 says that the transaction is under
// SMTPUTF8, and otherwise as utf-8-addr-xtext, which every host with DSN takes
// (RFC 6533 section 3). It is empty when there is no original recipient, or none
// that fits into the parameter: RCPT goes without it then.
func (r *Recipient) ORcptValue(smtputf8 bool) string {
	kind, addr, isUTF8, ok := SplitORcpt(r.ORcpt)
	if !ok {
		return ""
	}
	var val string
	switch {
	case isUTF8 && smtputf8:
		val = EncodeUnitext(addr)
	case isUTF8:
		val = EncodeUXText(addr)
	default:
		val = EncodeXText(addr)
	}
	if val = EncodeXText(kind) + ";" + val; len(val) > maxORcpt {
		return ""
	}
	return val
}

// EncodeUXText encodes s as utf-8-addr-xtext (RFC 6533 section 3): in printable
// ASCII.
func EncodeUXText(s string) string { return encodeUXText(s, '~') }

// EncodeUnitext encodes s as utf-8-addr-unitext (RFC 6533 section 3): only what a
// parameter cannot have is written as \x{HEX}.
func EncodeUnitext(s string) string { return encodeUXText(s, utf8.MaxRune) }

// encodeUXText writes the characters up to last as they are, where they may be.
func encodeUXText(s string, last rune) string {
	var b strings.Builder
	for _, r := range s {
		if r <= ' ' || r == '\\' || r == '+' || r == '=' || r == 0x7f || r > last {
			fmt.Fprintf(&b, `\x{%02X}`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// DecodeUXText decodes an address of type utf-8 in any of its forms: as
// utf-8-addr-xtext, as utf-8-addr-unitext, or as it is (RFC 6533 section 3). It
// takes xtext too, which some clients write for every type. It refuses what
// [DecodeXText] refuses, and characters that do not exist.
func DecodeUXText(s string) (string, error) { return decodeEscapes(s, DecodeXText) }

// ReadableORcpt is orcpt as [ParseRcpt] gives it, from a form in which \x{HEX}
// still stands in an address of type utf-8. What is no such thing stays as it
// is.
func ReadableORcpt(orcpt string) string {
	kind, addr, isUTF8, ok := SplitORcpt(orcpt)
	if !ok || !isUTF8 {
		return orcpt
	}
	text, err := decodeEscapes(addr, func(s string) (string, error) { return s, nil })
	if err != nil {
		return orcpt
	}
	return kind + ";" + text
}

// decodeEscapes decodes \x{HEX}, and what stands between by means of between.
func decodeEscapes(s string, between func(string) (string, error)) (string, error) {
	var b strings.Builder
	for {
		plain, rest, found := strings.Cut(s, `\`)
		text, err := between(plain)
		if err != nil {
			return "", err
		}
		b.WriteString(text)
		if !found {
			return b.String(), nil
		}
		rest, begins := strings.CutPrefix(rest, "x{")
		digits, after, ends := strings.Cut(rest, "}")
		r, ok := hexRune(digits)
		if !begins || !ends || !ok || hasControl(string(r)) {
			return "", fmt.Errorf("%w: utf-8 address", ErrParameter)
		}
		b.WriteRune(r)
		s = after
	}
}

// hexRune is the character of a HEXPOINT (RFC 6533 section 3), with any number of
// digits that can be one.
func hexRune(digits string) (rune, bool) {
	if len(digits) > 6 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 21) // no sign, no prefix
	r := rune(n)
	return r, err == nil && utf8.ValidRune(r)
}
