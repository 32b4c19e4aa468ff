package transcript

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"waybill/relay/event"
)

var start = time.Date(2026, 1, 31, 8, 0, 0, 0, time.UTC)

func text(l *Log) string {
	var b strings.Builder
	lines, _, _ := l.Lines()
	for _, s := range lines {
		fmt.Fprintf(&b, "%d %v %s %q %d\n", s.Seq, s.At.Float(), s.From, s.Text, s.Bytes)
	}
	return b.String()
}

func TestLog(t *testing.T) {
	l := New(start, true, nil, Party{})
	l.Server(start, []byte("220 mx ESMTP"))
	l.Client(start.Add(time.Millisecond), []byte("EHLO \x1b[31mme\xff\u202e"))
	l.Content(start.Add(2*time.Second), 12345)
	l.Note(start.Add(2*time.Second), "(closed)")
	want := `1 0 server "220 mx ESMTP" 12
2 0.001 client "EHLO \\x1b[31mme\\xff\\u202e" 16
3 2 client "(content)" 12345
4 2 note "(closed)" 0
`
	if got := text(l); got != want {
		t.Errorf("lines\n%swant\n%s", got, want)
	}
	if got := text(New(start, false, &Tap{}, Party{})); got != "" {
		t.Errorf("a Log that keeps nothing has %q", got)
	}
	var none *Log
	none.Client(start, []byte("x"))
	none.Server(start, nil)
	none.Content(start, 1)
	none.Note(start, "x")
	none.Identify(Party{})
	if lines, said, cut := none.Lines(); lines != nil || said+cut != 0 || !none.Began().IsZero() {
		t.Error("a nil Log keeps something")
	}
}

// TestSecretsAreMasked gives the Log what no caller should give it.
func TestSecretsAreMasked(t *testing.T) {
	for _, test := range []struct {
		name string
		talk string // C or S, and the line; apart by |
		want string
	}{
		{"initial response", "CAUTH PLAIN c2VjcmV0|S235 2.7.0 ok|CMAIL FROM:<a@b>", "AUTH PLAIN ***|235 2.7.0 ok|MAIL FROM:<a@b>"},
		{"continuation", "CAUTH LOGIN|S334 VXNlcm5hbWU6|Cc2VjcmV0|S334 UGFzc3dvcmQ6|Cc2VjcmV0|S535 5.7.8 no|CQUIT", "AUTH LOGIN|334 ***|***|334 ***|***|535 5.7.8 no|QUIT"},
		{"unknown mechanism", "CAUTH SECRET-1 c2VjcmV0|S334 c2VjcmV0|Cc2VjcmV0|S504 no", "AUTH other ***|334 ***|***|504 no"},
		{"credential in its place", "Cauth c2VjcmV0|S501 no", "AUTH other|501 no"},
		{"tabs", "CAuth\tplain\tc2VjcmV0|S501 no", "AUTH PLAIN ***|501 no"},
		{"cancelled", "CAUTH GSSAPI|S334 |C*|S501 cancelled", "AUTH GSSAPI|334 ***|*|501 cancelled"},
		{"nothing after it", "CAUTH|Csecret|S501 no", "AUTH|***|501 no"},
		{"another command", "CAUTHENTICATE me|S500 no", "AUTHENTICATE me|500 no"},
		{"challenge out of place", "S334 c2VjcmV0", "334 ***"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := New(start, true, nil, Party{})
			for line := range strings.SplitSeq(test.talk, "|") {
				if line[0] == 'C' {
					l.Client(start, []byte(line[1:]))
				} else {
					l.Server(start, []byte(line[1:]))
				}
			}
			var got []string
			lines, _, _ := l.Lines()
			for _, s := range lines {
				got = append(got, s.Text)
			}
			if s := strings.Join(got, "|"); s != test.want {
				t.Errorf("kept %s, want %s", s, test.want)
			}
		})
	}
}

func TestLogIsBounded(t *testing.T) {
	for _, size := range []int{0, 10, 100, 2000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			l := New(start, true, nil, Party{})
			const n = 50_000
			for i := range n {
				l.Client(start.Add(time.Duration(i)*time.Millisecond), fmt.Appendf(nil, "%d %s", i+1, strings.Repeat("x", size)))
			}
			if got := cap(l.head) + cap(l.older) + cap(l.newer); got > 2*MaxOctets {
				t.Errorf("%d octets", got)
			}
			lines, said, cut := l.Lines()
			if said != n || cut == 0 || len(lines) != said-cut+1 {
				t.Fatalf("%d lines of %d, %d left out", len(lines), said, cut)
			}
			gap := -1
			for i, s := range lines {
				if s.From == FromNote {
					gap = i
					if s.Text != fmt.Sprintf("(%d lines left out)", cut) {
						t.Errorf("line %d = %q", i, s.Text)
					}
				} else if !strings.HasPrefix(s.Text, fmt.Sprintf("%d ", s.Seq)) {
					t.Fatalf("line %d = %d %.20q", i, s.Seq, s.Text)
				}
				if i > 0 && s.Seq <= lines[i-1].Seq {
					t.Fatalf("line %d has number %d after %d", i, s.Seq, lines[i-1].Seq)
				}
			}
			if gap < 1 || lines[gap-1].Seq+cut != lines[gap].Seq || lines[gap].Seq+1 != lines[gap+1].Seq || lines[len(lines)-1].Seq != n {
				t.Errorf("gap at %d, last line %d", gap, lines[len(lines)-1].Seq)
			}
		})
	}
}

func TestNewChooser(t *testing.T) {
	for _, test := range []struct {
		mode string
		want bool
	}{{"", true}, {"off", true}, {"failures", true}, {"all", true}, {"0", true}, {"0.25", true}, {"1", true}, {"2", false}, {"-1", false}, {"NaN", false}, {"some", false}} {
		if _, err := NewChooser(Rule{Mode: test.mode}); (err == nil) != test.want {
			t.Errorf("NewChooser(%q) = %v, want it taken %t", test.mode, err, test.want)
		}
	}
}

func TestChooser(t *testing.T) {
	also := func(mode string) Rule {
		return Rule{Mode: mode, ClientIP: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Users: []string{"Ann"}}
	}
	there := netip.MustParseAddr("192.0.2.7")
	for _, test := range []struct {
		name string
		rule Rule
		ses  Session
		want string
	}{
		{"orderly", Rule{}, Session{}, ""},
		{"failed", Rule{}, Session{Failed: true}, "failed"},
		{"slow", Rule{}, Session{Slow: true}, "slow"},
		{"uncertain", Rule{}, Session{Failed: true, Uncertain: true}, "uncertain"},
		{"off", Rule{Mode: "off"}, Session{Failed: true, Slow: true, Uncertain: true}, ""},
		{"all", Rule{Mode: "all"}, Session{}, "all"},
		{"share", Rule{Mode: "1.0"}, Session{}, "all"},
		{"source", also(""), Session{ClientIP: there}, "client_ip"},
		{"source, failed", also(""), Session{ClientIP: there, Failed: true}, "failed"},
		{"source, off", also("off"), Session{ClientIP: there, Failed: true}, "client_ip"},
		{"other source", also(""), Session{ClientIP: netip.MustParseAddr("198.51.100.1")}, ""},
		{"user", also("off"), Session{User: "ann"}, "user"},
		{"no user", Rule{Users: []string{""}}, Session{}, ""},
		{"sender", Rule{Mode: "off", Senders: []string{"x"}}, Session{Sender: true}, "sender"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := NewChooser(test.rule)
			if err != nil {
				t.Fatal(err)
			}
			got := c.Why(test.ses)
			if got != test.want || got != "" && !slices.Contains(Reasons(), got) {
				t.Errorf("Why() = %q, want %q", got, test.want)
			}
			if got != "" && !c.Keeps() {
				t.Error("Keeps() = false")
			}
		})
	}
	var none *Chooser
	if none.Why(Session{Failed: true}) != "failed" || none.Why(Session{}) != "" || !none.Keeps() || none.Sender("a@b") {
		t.Error("a nil Chooser does not keep failures")
	}
	if c, _ := NewChooser(Rule{Mode: "off"}); c.Keeps() {
		t.Error("off keeps")
	}
	half, _ := NewChooser(Rule{Mode: "0.5"})
	kept := 0
	for range 2000 {
		if half.Why(Session{}) == "sampled" {
			kept++
		}
	}
	if kept < 700 || kept > 1300 {
		t.Errorf("%d of 2000 kept, want about half", kept)
	}
}

func TestSenderPatterns(t *testing.T) {
	for _, test := range []struct {
		pattern, address string
		want             bool
	}{
		{"ann@example.com", "Ann@Example.com", true},
		{"ann@example.com", "joann@example.com", false},
		{"@example.com", "ann@example.com", true},
		{"@example.com", "ann@sub.example.com", false},
		{"*@*.example.com", "ann@sub.example.com", true},
		{"a*n@example.com", "ann@example.com", true},
		{"a*an@example.com", "an@example.com", false},
		{"*", "<>", true},
		{"<>", "<>", true},
		{"*bounce*@*", "x-bounce-1@example.com", true},
		{"", "a@b", false},
	} {
		if got := matches(test.pattern, test.address); got != test.want {
			t.Errorf("matches(%q, %q) = %t, want %t", test.pattern, test.address, got, test.want)
		}
	}
}

func TestTap(t *testing.T) {
	tap := &Tap{}
	l := New(start, false, tap, Party{Session: "S1", Direction: event.Inbound, Connector: "in", ClientIP: netip.MustParseAddr("192.0.2.1")})
	l.Client(start, []byte("before anybody listened"))
	all, err := tap.Watch(Filter{})
	if err != nil {
		t.Fatal(err)
	}
	var others []*Watcher
	for _, f := range []Filter{
		{Session: "S2"}, {Direction: event.Outbound}, {Connector: "out"}, {ClientIP: netip.MustParsePrefix("198.51.100.0/24")}, {RemoteHost: "mx.example"},
	} {
		w, err := tap.Watch(f)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		others = append(others, w)
	}
	l.Client(start, []byte("AUTH PLAIN c2VjcmV0"))
	if got := <-all.C; got.Line.Text != "AUTH PLAIN ***" || got.Line.Seq != 2 || got.Session != "S1" {
		t.Errorf("heard %+v", got)
	}
	for _, w := range others {
		if len(w.C) > 0 {
			t.Errorf("%+v heard a conversation that it did not ask for", w.f)
		}
	}
	l.Identify(Party{Session: "S2", Direction: event.Outbound, RemoteName: "MX.example"})
	out, err := tap.Watch(Filter{RemoteHost: "mx.example", Direction: event.Outbound})
	if err != nil {
		t.Fatal(err)
	}
	l.Server(start, []byte("250 ok"))
	if got := <-out.C; got.Line.Text != "250 ok" || got.Line.From != FromServer {
		t.Errorf("heard %+v", got)
	}
	out.Close()
	if _, ok := <-out.C; ok || out.Err() != nil {
		t.Errorf("closed reader: %v", out.Err())
	}
	l.Identify(Party{Session: "S3"}) // whom only the first reader wants
	for range watchRoom + 2 {        // nobody reads: the reader is ended, the session goes on
		l.Server(start, []byte("250 ok"))
	}
	for range all.C {
	}
	if !errors.Is(all.Err(), ErrSlow) {
		t.Errorf("slow reader: %v", all.Err())
	}
	if live, slow := tap.Stats(); live != 5 || slow != 1 {
		t.Errorf("Stats() = %d, %d, want 5, 1", live, slow)
	}
	for {
		if _, err := tap.Watch(Filter{Session: "none"}); err != nil {
			if !errors.Is(err, ErrMany) {
				t.Error(err)
			}
			break
		}
	}
	tap.Close()
	if _, err := tap.Watch(Filter{}); !errors.Is(err, ErrClosed) {
		t.Errorf("Watch after Close: %v", err)
	}
	l.Server(start, []byte("250 nobody hears"))
	if gen := tap.gen.Load(); gen != 0 {
		t.Errorf("gen = %d while nobody watches", gen)
	}
}

func FuzzLog(f *testing.F) {
	f.Add([]byte("AUTH PLAIN c2VjcmV0"), []byte("334 x"), []byte("secret"), 3)
	f.Add([]byte("auth\tx"), []byte("250-\xff"), []byte("*"), 500)
	f.Add([]byte(""), []byte(""), []byte("\u202e\x00"), 0)
	f.Fuzz(func(t *testing.T, a, b, c []byte, n int) {
		l := New(start, true, nil, Party{})
		for i := range max(1, min(n, 3000)) {
			at := start.Add(time.Duration(i) * time.Second)
			l.Client(at, a)
			l.Server(at, b)
			l.Client(at, c)
		}
		lines, said, cut := l.Lines()
		for i, s := range lines {
			if len(s.Text) > lineOctets+4 || !utf8.ValidString(s.Text) || strings.ContainsFunc(s.Text, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Fatalf("line %q", s.Text)
			}
			if i > 0 && s.Seq <= lines[i-1].Seq {
				t.Fatalf("number %d after %d", s.Seq, lines[i-1].Seq)
			}
		}
		if want := said - cut; len(lines) != want && len(lines) != want+1 {
			t.Fatalf("%d lines, want %d", len(lines), want)
		}
	})
}

// session is what a client and a server say for one message.
func session(l *Log, now time.Time) {
	for _, s := range []string{"220 mx ESMTP Waybill", "250-mx1.example.com", "250-PIPELINING", "250-SIZE 37748736", "250-8BITMIME", "250-SMTPUTF8", "250-CHUNKING", "250 DSN"} {
		l.Server(now, []byte(s))
	}
	for _, s := range []string{"EHLO client.example.com", "MAIL FROM:<ann@example.com> SIZE=1000", "RCPT TO:<bob@example.org>", "DATA", "QUIT"} {
		l.Client(now, []byte(s))
		l.Server(now, []byte("250 2.0.0 ok"))
	}
	l.Content(now, 1000)
}

func BenchmarkSession(b *testing.B) {
	watched := &Tap{}
	if _, err := watched.Watch(Filter{Session: "another"}); err != nil {
		b.Fatal(err)
	}
	for _, bench := range []struct {
		name string
		keep bool
		tap  *Tap
		read bool
	}{{"off", false, nil, false}, {"kept, forgotten", true, &Tap{}, false}, {"kept, stated", true, &Tap{}, true}, {"off, another is watched", false, watched, false}} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				l := New(start, bench.keep, bench.tap, Party{})
				session(l, start)
				if bench.read {
					l.Lines()
				}
			}
		})
	}
}
