package smtpin

import (
	"fmt"
	"strings"
	"testing"
)

// TestSevenBit: whether a content has octets above 127 is found out as it passes,
// in whichever way it comes.
func TestSevenBit(t *testing.T) {
	long := "Subject: x\r\n\r\n" + strings.Repeat(strings.Repeat("x", 74)+"\r\n", 2000)
	for _, test := range []struct {
		name    string
		content string
		want    bool
	}{
		{"short", "Subject: x\r\n\r\nx\r\n", true},
		{"short, 8-bit", "Subject: x\r\n\r\n\xff\r\n", false},
		{"long", long, true},
		{"long, 8-bit at its end", long + "\xff\r\n", false},
		{"long, 8-bit in its middle", long + "\xff\r\n" + long, false},
	} {
		for _, by := range []string{"DATA", "BDAT", "binary"} {
			t.Run(test.name+", by "+by, func(t *testing.T) {
				r := start(t, Options{Connectors: []Connector{open(func(c *Connector) { c.With = []string{"BINARYMIME"} })}})
				c := r.dial(t)
				c.begin()
				param, want := "", test.want
				if by == "binary" { // it may have any octet, and is not looked at
					param, want = " BODY=BINARYMIME", false
				}
				c.talk("MAIL FROM:<a@example.net>"+param+"=>250", "RCPT TO:<b@example.org>=>250")
				if by == "DATA" {
					c.talk("DATA=>354")
					c.send(test.content + ".\r\n")
				} else {
					c.send(fmt.Sprintf("BDAT %d\r\n%s", 7, test.content[:7]))
					c.expect("250")
					c.send(fmt.Sprintf("BDAT %d LAST\r\n%s", len(test.content)-7, test.content[7:]))
				}
				c.expect("250 2.0.0 queued as ")
				c.talk("QUIT=>221", "=>")
				if m := r.messages(); len(m) != 1 || m[0].SevenBit != want || m[0].content != test.content {
					t.Errorf("%d messages, SevenBit = %t, want %t", len(m), m[0].SevenBit, want)
				}
			})
		}
	}
}
