package dsn

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// plainORcpt is an original recipient as a report shows it. Of type utf-8 its
// characters may stand as \x{HEX} (utf-8-addr-xtext, RFC 6533 section 3), which
// an internationalised report has as they are.
func plainORcpt(orcpt string) string {
	kind, addr, ok := strings.Cut(orcpt, ";")
	if !ok || !strings.EqualFold(kind, "utf-8") {
		return orcpt
	}
	var b strings.Builder
	for addr != "" {
		before, rest, found := strings.Cut(addr, `\x{`)
		b.WriteString(before)
		if !found {
			break
		}
		digits, after, closed := strings.Cut(rest, "}")
		n, err := strconv.ParseUint(digits, 16, 21)
		if r := rune(n); closed && err == nil && utf8.ValidRune(r) && unicode.IsGraphic(r) {
			b.WriteRune(r)
			addr = after
			continue
		}
		b.WriteString(`\x{`) // what is no escape stays as it is
		addr = rest
	}
	return kind + ";" + b.String()
}
