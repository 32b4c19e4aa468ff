package trackimport

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

var update = flag.Bool("update", false, "rewrite testdata/*.jsonl")

var modified = time.Date(2024, 1, 9, 0, 0, 0, 0, time.UTC)

// read imports one text and gives its facts as log lines, and the bad lines.
func read(t testing.TB, format, text string) (facts []event.Record, bad []string) {
	t.Helper()
	im, err := New(format, Options{
		Zone: time.UTC, Host: "host",
		Bad:  func(file string, line int, err error) { bad = append(bad, fmt.Sprintf("%s:%d: %v", file, line, err)) },
		Each: func(r *event.Record) error { facts = append(facts, *r); return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(im.Read(t.Context(), "log", modified, strings.NewReader(text)), im.Close()); err != nil {
		t.Fatal(err)
	}
	if c := im.Counts(); c.Facts != len(facts) || c.Bad != len(bad) || c.Files != 1 {
		t.Errorf("counts %+v, with %d facts and %d bad lines", c, len(facts), len(bad))
	}
	return facts, bad
}

func lineOf(t testing.TB, r event.Record) string {
	t.Helper()
	b, err := r.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestGolden reads logs as the servers wrote them.
func TestGolden(t *testing.T) {
	for _, format := range Formats() {
		t.Run(format, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("testdata", format+".log"))
			if err != nil {
				t.Fatal(err)
			}
			facts, bad := read(t, format, string(text))
			var out strings.Builder
			for _, r := range facts {
				if r.Source != event.SourceImport || !mail.ValidID(r.ID) || r.Message != "" && !mail.ValidID(string(r.Message)) {
					t.Errorf("record %+v", r)
				}
				out.WriteString(lineOf(t, r) + "\n")
			}
			for _, b := range bad {
				out.WriteString("# " + b + "\n")
			}
			path := filepath.Join("testdata", format+".jsonl")
			if *update {
				if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if out.String() != string(want) {
				t.Errorf("the facts are not those of %s; run go test -update and look at the difference", path)
			}
			if strings.Contains(out.String(), "c2VjcmV0") || strings.Contains(out.String(), "AGFubg") {
				t.Error("a credential is in the facts")
			}

			// The same again, after itself and compressed: the same ids.
			var z bytes.Buffer
			w := gzip.NewWriter(&z)
			if _, err := w.Write(append([]byte("\xef\xbb\xbf"), text...)); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			var again []string
			im, err := New(format, Options{Zone: time.UTC, Host: "host", Each: func(r *event.Record) error { again = append(again, r.ID); return nil }})
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(im.Read(t.Context(), "log.gz", modified, &z), im.Close()); err != nil {
				t.Fatal(err)
			}
			first := make([]string, len(facts))
			for i := range facts {
				first[i] = facts[i].ID
			}
			if !slices.Equal(first, again) {
				t.Error("a second import gives other event ids")
			}
			if u := slices.Compact(slices.Sorted(slices.Values(first))); len(u) != len(first) {
				t.Errorf("%d facts have %d ids", len(first), len(u))
			}
		})
	}
}

// only picks the facts of one type.
func only[T event.Event](facts []event.Record) (list []T) {
	for _, r := range facts {
		if ev, ok := r.Event.(T); ok {
			list = append(list, ev)
		}
	}
	return list
}

func TestPostfixMessage(t *testing.T) {
	text, err := os.ReadFile("testdata/postfix.log")
	if err != nil {
		t.Fatal(err)
	}
	facts, bad := read(t, "postfix", string(text))
	if len(bad) != 3 {
		t.Errorf("bad lines %q, want 3", bad)
	}
	queued := only[event.MessageQueued](facts)
	if len(queued) != 3 {
		t.Fatalf("%d messages, want 3", len(queued))
	}
	q := queued[0]
	if q.MailFrom != "ann@example.org" || q.HeaderMessageID != "<20240101.1@client.example.org>" || q.Size != 2048 || q.AuthUser != "ann@example.org" || q.ClientIP.String() != "192.0.2.10" || q.External != "3F1D22A0B5" {
		t.Errorf("queued %+v", q)
	}
	if at := facts[0].Time; at.Format(time.RFC3339) != "2023-12-31T23:59:59Z" {
		t.Errorf("queued at %s: the year is wrong", at)
	}
	b := only[event.RecipientBounced](facts)
	if len(b) != 1 || b[0].Code != 550 || b[0].Enhanced != "5.1.1" || b[0].Verb != "RCPT" || !strings.Contains(b[0].Reply, "User unknown") || b[0].MailFrom != "ann@example.org" {
		t.Errorf("bounced %+v", b)
	}
	x := only[event.RecipientExpired](facts)
	if len(x) != 1 || x[0].Recipient != "late@slow.example" || x[0].Attempts != 2 {
		t.Errorf("expired %+v", x)
	}
	d := only[event.DSNQueued](facts)
	if len(d) != 1 || d[0].DSN == "" || queued[1].MailFrom != "<>" {
		t.Errorf("report %+v", d)
	}
	if to := d[0].Recipients; len(to) != 1 || to[0].Address != "nobody@dest.example" {
		t.Errorf("the report is about %+v, want the recipient that bounced before", to)
	}
	if queued[1].Parent == "" || queued[1].Parent != facts[0].Message {
		t.Errorf("the report is of %q, want %q", queued[1].Parent, facts[0].Message)
	}
	for _, r := range facts {
		if ev, ok := r.Event.(event.MessageQueued); ok && ev.MailFrom == "<>" && r.Message != d[0].DSN {
			t.Errorf("the report is %s, and is queued as %s", d[0].DSN, r.Message)
		}
	}
	ret := only[event.MessageRetired](facts)
	if len(ret) != 3 || ret[1].Relayed != 1 || ret[1].Bounced != 1 || ret[1].Expired != 1 || ret[1].Attempts != 4 {
		t.Errorf("retired %+v", ret)
	}
	if r := only[event.RecipientRefused](facts); len(r) != 2 || r[0].Reason != "relay_denied" || r[0].Recipient != "x@elsewhere.example" || r[1].Recipient != "bob@example.org" || r[1].MailFrom != "spam@bad.example" {
		t.Errorf("refused %+v", r)
	}
	if a := only[event.AuthFailed](facts); len(a) != 1 || a[0].User != "ann" || a[0].Connector != "submission" {
		t.Errorf("no login %+v", a)
	}
	if s := queued[2].MailFrom; s != `"odd > name"@example.org` {
		t.Errorf("sender %q", s)
	}
}

func TestExchangeTracking(t *testing.T) {
	text, err := os.ReadFile("testdata/exchange-tracking.log")
	if err != nil {
		t.Fatal(err)
	}
	facts, bad := read(t, "exchange-tracking", string(text))
	if len(bad) != 2 {
		t.Errorf("bad lines %q, want 2", bad)
	}
	q := only[event.MessageQueued](facts)
	if len(q) != 4 || q[0].Subject != `Invoice "42", overdue` || len(q[0].Recipients) != 2 || q[0].ClientIP.String() != "10.0.0.5" || q[0].ConnectorIn != `EX01\Relay` || q[0].External != "1234567" {
		t.Fatalf("queued %+v", q)
	}
	if r := only[event.RecipientRelayed](facts); len(r) != 3 || r[0].Recipient != "ann@dest.example" || r[0].RemoteName != "mx1.dest.example" || r[0].TTotal.Float() != 1.4 || r[0].Code != 250 {
		t.Errorf("relayed %+v", r)
	}
	if b := only[event.RecipientBounced](facts); len(b) != 2 || b[0].Enhanced != "5.1.1" || b[1].Enhanced != "5.2.2" {
		t.Errorf("bounced %+v", b)
	}
	if x := only[event.RecipientExpired](facts); len(x) != 1 || x[0].Recipient != "slow@dest.example" {
		t.Errorf("expired %+v", x)
	}
	for _, a := range only[event.AttemptFinished](facts) {
		if a.Disposition == mail.Deferred && (a.Code != 421 || a.Enhanced != "4.3.2") {
			t.Errorf("deferred %+v", a)
		}
	}
	ids := map[mail.QueueID]int{}
	for _, r := range facts {
		ids[r.Message]++
	}
	if len(ids) != 5 {
		t.Errorf("%d messages, want 5", len(ids))
	}
}

func TestExchangeProtocol(t *testing.T) {
	text, err := os.ReadFile("testdata/exchange-protocol.log")
	if err != nil {
		t.Fatal(err)
	}
	facts, bad := read(t, "exchange-protocol", string(text))
	if len(bad) != 2 {
		t.Errorf("bad lines %q, want 2", bad)
	}
	closed := only[event.SessionClosed](facts)
	if len(closed) != 3 || closed[0].Cause != "quit" || closed[1].Cause != "closed" || closed[2].Direction != event.Outbound {
		t.Errorf("closed %+v", closed)
	}
	if r := only[event.RecipientRefused](facts); len(r) != 1 || r[0].Recipient != "nobody@example.com" || r[0].AuthUser != `EXAMPLE\ann` || r[0].Reason != "unknown_recipient" {
		t.Errorf("refused %+v", r)
	}
	if v := only[event.TLSNegotiated](facts); len(v) != 1 || v[0].Version != "1.2" || v[0].Cipher != "CALG_AES_256" {
		t.Errorf("TLS %+v", v)
	}
	k := only[event.TranscriptKept](facts)
	if len(k) != 2 || len(k[0].Transcript) != 19 {
		t.Errorf("%d conversations, the first of %d lines", len(k), len(k[0].Transcript))
	}
}

func TestIIS(t *testing.T) {
	text, err := os.ReadFile("testdata/iis.log")
	if err != nil {
		t.Fatal(err)
	}
	facts, bad := read(t, "iis", string(text))
	if len(bad) != 2 {
		t.Errorf("bad lines %q, want 2", bad)
	}
	q := only[event.MessageQueued](facts)
	if len(q) != 1 || q[0].MailFrom != "app@example.com" || len(q[0].Recipients) != 1 || q[0].Size != 1500 || q[0].HeaderMessageID != "<SRV01abcdef@SRV01.example.com>" {
		t.Errorf("queued %+v", q)
	}
	if r := only[event.RecipientRefused](facts); len(r) != 1 || r[0].Recipient != "spam@elsewhere.example" {
		t.Errorf("refused %+v", r)
	}
	if r := only[event.RecipientRelayed](facts); len(r) != 1 || r[0].Recipient != "ann@dest.example" || r[0].Reply != "queued as 8A7C1" {
		t.Errorf("relayed %+v", r)
	}
	if b := only[event.RecipientBounced](facts); len(b) != 1 || b[0].Recipient != "gone@dest.example" || b[0].Enhanced != "5.1.1" {
		t.Errorf("bounced %+v", b)
	}
	var ids []mail.QueueID
	for _, r := range facts {
		if r.Message != "" && !slices.Contains(ids, r.Message) {
			ids = append(ids, r.Message)
		}
	}
	if len(ids) != 2 {
		t.Errorf("messages %v, want one in and one out", ids)
	}
}

func TestOddInput(t *testing.T) {
	long := strings.Repeat("a", 300) + "@" + strings.Repeat("b", 30) + ".example"
	for _, test := range []struct {
		name   string
		format string
		text   string
		want   string // a recipient
	}{
		{"320 octets", "postfix", "2024-01-06T08:00:06Z m postfix/smtp[1]: ABCDEF12: to=<" + long + ">, relay=none, delay=1, dsn=5.0.0, status=bounced (no)\n", long},
		{"NUL", "postfix", "2024-01-06T08:00:06Z m postfix/smtp[1]: ABCDEF12: to=<a\x00b@c.example>, relay=none, delay=1, dsn=5.0.0, status=bounced (no)\n", "a\x00b@c.example"},
		{"UTF-8", "postfix", "2024-01-06T08:00:06Z m postfix/smtp[1]: ABCDEF12: to=<jürgen@bücher.example>, relay=none, delay=1, dsn=5.0.0, status=bounced (no)\n", "jürgen@bücher.example"},
		{"no UTF-8", "postfix", "2024-01-06T08:00:06Z m postfix/smtp[1]: ABCDEF12: to=<j\xfcrgen@c.example>, relay=none, delay=1, dsn=5.0.0, status=bounced (no)\n", "j\uFFFDrgen@c.example"},
		{"star", "postfix", "2024-01-06T08:00:06Z m postfix/smtp[1]: ABCDEF12: to=<*@c.example>, relay=none, delay=1, dsn=5.0.0, status=bounced (no)\n", "*@c.example"},
		{"no end", "postfix", "2024-01-06T08:00:06Z m postfix/smtp[1]: ABCDEF12: to=<a@c.example>, relay=none, delay=1, dsn=5.0.0, status=bounced (no)", "a@c.example"},
		{"semicolon in quotes", "exchange-tracking", "#Fields: date-time,event-id,message-id,recipient-address,recipient-status\n2024-01-06T08:00:00Z,FAIL,<m>,\"\"\"a;b\"\"@c.example\",550 5.1.1 no\n", `"a;b"@c.example`},
	} {
		t.Run(test.name, func(t *testing.T) {
			facts, bad := read(t, test.format, test.text)
			b := only[event.RecipientBounced](facts)
			if len(b) != 1 || b[0].Recipient != test.want {
				t.Fatalf("bounced %+v, bad %q; want %q", b, bad, test.want)
			}
			var r event.Record
			if err := json.Unmarshal([]byte(lineOf(t, facts[len(facts)-1])), &r); err != nil || r.Event.(event.RecipientBounced).Recipient != test.want {
				t.Errorf("as a log line: %v, %v", r.Event, err)
			}
		})
	}
}

func TestReadErrors(t *testing.T) {
	if _, err := New("sendmail", Options{}); err == nil {
		t.Error("an unknown format is taken")
	}
	full := errors.New("full")
	im, err := New("postfix", Options{Each: func(*event.Record) error { return full }})
	if err != nil {
		t.Fatal(err)
	}
	text := "2024-01-06T08:00:06Z m postfix/smtp[1]: ABCDEF12: to=<a@c.example>, relay=none, delay=1, dsn=5.0.0, status=bounced (no)\n"
	if err := im.Read(t.Context(), "log", modified, strings.NewReader(text)); !errors.Is(err, full) {
		t.Errorf("Read() = %v", err)
	}
	if im, err = New("postfix", Options{Each: func(*event.Record) error { return nil }}); err != nil {
		t.Fatal(err)
	}
	if err := im.Read(t.Context(), "log", modified, strings.NewReader("\xff\xfea\x00")); err == nil || !strings.Contains(err.Error(), "UTF-16") {
		t.Errorf("Read() of UTF-16 = %v", err)
	}
	if err := im.Read(t.Context(), "log", modified, strings.NewReader("\x1f\x8bnot gzip at all")); err == nil {
		t.Error("broken gzip is taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := im.Read(ctx, "log", modified, strings.NewReader(strings.Repeat("x\n", 10000))); !errors.Is(err, context.Canceled) {
		t.Errorf("Read() = %v", err)
	}
	bad := 0
	im, _ = New("postfix", Options{Bad: func(string, int, error) { bad++ }, Each: func(*event.Record) error { return nil }})
	if err := im.Read(t.Context(), "log", modified, strings.NewReader(strings.Repeat("x", 3<<20)+"\n"+text)); err != nil || bad != 1 || im.Counts().Facts != 2 {
		t.Errorf("a line of 3 MiB: %v, %d bad, %+v", err, bad, im.Counts())
	}
}

func TestLines(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b.gz")
	if err := os.WriteFile(a, []byte("one\ntwo"), 0o600); err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	_, err := w.Write([]byte("three\n"))
	if err = errors.Join(err, w.Close(), os.WriteFile(b, z.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	l := Lines([]string{a, b, a})
	var out bytes.Buffer
	if _, err := out.ReadFrom(l); err != nil || out.String() != "one\ntwo\nthree\none\ntwo\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := out.ReadFrom(Lines([]string{filepath.Join(dir, "none")})); err == nil {
		t.Error("a file that is not there is read")
	}
}

// fuzz reads anything as a format: nothing panics, and facts come back from their log lines.
func fuzz(f *testing.F, format string) {
	text, err := os.ReadFile(filepath.Join("testdata", format+".log"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(text))
	head := ""
	for line := range strings.SplitAfterSeq(string(text), "\n") {
		if strings.HasPrefix(line, "#") {
			head += line
			continue
		}
		f.Add(head + line)
	}
	f.Fuzz(func(t *testing.T, text string) {
		facts, _ := read(t, format, text)
		for _, r := range facts {
			line := lineOf(t, r)
			var back event.Record
			if err := json.Unmarshal([]byte(line), &back); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			if again := lineOf(t, back); again != line {
				t.Fatalf("%s\n%s", line, again)
			}
		}
	})
}

func FuzzPostfix(f *testing.F)          { fuzz(f, "postfix") }
func FuzzExchangeTracking(f *testing.F) { fuzz(f, "exchange-tracking") }
func FuzzExchangeProtocol(f *testing.F) { fuzz(f, "exchange-protocol") }
func FuzzIIS(f *testing.F)              { fuzz(f, "iis") }
