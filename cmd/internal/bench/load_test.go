package main

import (
	"bufio"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestSkipContent(t *testing.T) {
	long := strings.Repeat(strings.Repeat("waybill ", 9)+"\r\n", 100)
	for _, test := range []struct {
		name string
		in   string
		ok   bool
		want string // what is left
	}{
		{"empty", ".\r\nRSET", true, "RSET"},
		{"lines", "a\r\nb\r\n.\r\nQUIT\r\n", true, "QUIT\r\n"},
		{"long", long + ".\r\nQUIT\r\n", true, "QUIT\r\n"},
		{"dots", "..\r\n...\r\n.a\r\na.\r\n.b.\r\n\r\n.\r\n.\r\n", true, ".\r\n"},
		{"no end", long, false, ""},
		{"no whole end", long + ".\r", false, ".\r"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, size := range []int{16, 17, 31, 4096} {
				for _, r := range []io.Reader{strings.NewReader(test.in), iotest.OneByteReader(strings.NewReader(test.in))} {
					br := bufio.NewReaderSize(r, size)
					ok := skipContent(br)
					left, err := io.ReadAll(br)
					if err != nil || ok != test.ok || string(left) != test.want {
						t.Errorf("with a buffer of %d: %t and %q left, %v, want %t and %q", size, ok, left, err, test.ok, test.want)
					}
				}
			}
		})
	}
}
