package smtpin

import (
	"bytes"
	"strings"
	"testing"
)

func TestFirewall(t *testing.T) {
	const lie = "X-MS-Exchange-Organization-SCL: -1\r\n"
	for _, test := range []struct {
		name    string
		in      string
		want    string
		removed int // fields
	}{
		{"nothing", "", "", 0},
		{"none", "Subject: x\r\n\r\nbody\r\n", "Subject: x\r\n\r\nbody\r\n", 0},
		{"first", lie + "Subject: x\r\n\r\nbody\r\n", "Subject: x\r\n\r\nbody\r\n", 1},
		{"last", "Subject: x\r\n" + lie + "\r\nbody\r\n", "Subject: x\r\n\r\nbody\r\n", 1},
		{"folded", "A: b\r\nx-ms-exchange-forest-a:\r\n b\r\n\tc\r\nD: e\r\n f\r\n\r\n", "A: b\r\nD: e\r\n f\r\n\r\n", 1},
		{"several", lie + lie + "A: b\r\n" + lie + "\r\n", "A: b\r\n\r\n", 3},
		{"space before the colon", "X-MS-Exchange-Organization-AuthAs : Internal\r\n\r\n", "\r\n", 1},
		{"in the body", "A: b\r\n\r\n" + lie, "A: b\r\n\r\n" + lie, 0},
		{"folded into another", "A: b\r\n " + lie + "\r\n", "A: b\r\n " + lie + "\r\n", 0},
		{"behind what is no field", "no field\r\n" + lie + "\r\n" + lie, "no field\r\n\r\n" + lie, 1},
		{"no end", "A: b\r\n" + strings.TrimSuffix(lie, "\r\n"), "A: b\r\n", 1},
		{"ends in a beginning", "A: b\r\nX-MS-Exch", "A: b\r\nX-MS-Exch", 0},
		{"almost", "X-MS-Exchange-Orga: b\r\nX-MS: c\r\n\r\n", "X-MS-Exchange-Orga: b\r\nX-MS: c\r\n\r\n", 0},
		{"CR at the start", "\rA: b\r\n" + lie + "\r\n", "\rA: b\r\n\r\n", 1},
		{"LF", "A: b\n\n" + lie, "A: b\n\n" + lie, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			for size := 1; size <= max(1, len(test.in)); size++ {
				var f firewall
				var out bytes.Buffer
				for in := []byte(test.in); len(in) > 0; {
					n := min(size, len(in))
					piece := bytes.Clone(in[:n])
					if err := f.pass(piece, &out); err != nil {
						t.Fatal(err)
					}
					clear(piece) // it is the caller's again
					in = in[n:]
				}
				if err := f.end(&out); err != nil {
					t.Fatal(err)
				}
				if out.String() != test.want || f.fields != test.removed || f.removed != len(test.in)-len(test.want) {
					t.Fatalf("in pieces of %d: %q, %d fields, %d octets, want %q, %d", size, out.String(), f.fields, f.removed, test.want, test.removed)
				}
			}
		})
	}
}

func FuzzFirewall(f *testing.F) {
	f.Add([]byte("A: b\r\nX-MS-Exchange-Organization-SCL: -1\r\n x\r\n\r\nbody"), 3)
	f.Add([]byte("X-MS-Exchange-Forest-\r\r\n\n"), 1)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		pass := func(size int) (string, firewall) {
			var w firewall
			var out bytes.Buffer
			for rest := in; len(rest) > 0; {
				n := min(size, len(rest))
				_ = w.pass(bytes.Clone(rest[:n]), &out) // a buffer takes everything
				rest = rest[n:]
			}
			_ = w.end(&out)
			return out.String(), w
		}
		whole, w := pass(len(in))
		if pieces, _ := pass(max(1, min(size, len(in)))); pieces != whole {
			t.Fatalf("in pieces %q, as a whole %q", pieces, whole)
		}
		if len(whole)+w.removed != len(in) {
			t.Fatalf("%d octets and %d removed of %d", len(whole), w.removed, len(in))
		}
		if head, _, _ := strings.Cut("\n"+strings.ToLower(whole), "\n\r\n"); w.done && strings.Contains(strings.Split(head, "\n\n")[0], "\nx-ms-exchange-organization-") {
			t.Fatalf("it let %q through", whole)
		}
	})
}

// TestHeadersOfExchange holds that a stranger cannot tell the servers behind us
// that its mail comes from inside.
func TestHeadersOfExchange(t *testing.T) {
	const content = "Subject: x\r\nX-MS-Exchange-Organization-AuthAs: Internal\r\nX-MS-Exchange-Forest-A:\r\n b\r\n\r\nbody\r\n"
	for _, test := range []struct {
		name string
		keep bool
		want string
	}{
		{"a stranger", false, "Subject: x\r\n\r\nbody\r\n"},
		{"a server of ours", true, content},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := start(t, Options{Connectors: []Connector{open(func(c *Connector) { c.Permissions.KeepHeaders = test.keep })}})
			c := r.dial(t)
			c.begin()
			c.talk("MAIL FROM:<a@example.net>=>250", "RCPT TO:<b@example.org>=>250", "DATA=>354")
			c.send(content + ".\r\n")
			c.talk("=>250", "NOOP=>250")
			m := r.messages()[0]
			if got := m.content; got != test.want {
				t.Errorf("the content is %q, want %q", got, test.want)
			}
			if want := strings.Index(test.want, "body"); m.Header.Bytes != want {
				t.Errorf("the header section has %d octets, want %d", m.Header.Bytes, want)
			}
			if !test.keep {
				if m.Changed != "fields:2" {
					t.Errorf("changed: %q", m.Changed)
				}
			}
		})
	}
}
