package dsn

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	relaymail "waybill/relay/mail"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	arrived = time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)
	now     = arrived.Add(5 * time.Minute)
)

func address(t testing.TB, s string) relaymail.Address {
	t.Helper()
	a, err := relaymail.ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

const original = "From: Alice <alice@example.org>\r\nTo: bob@example.com\r\nSubject: Lunch?\r\nMessage-ID: <m1@example.org>\r\n\r\nAre you there?\r\n"

func opener(content string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }
}

// options returns a failure of one recipient, for tests to change.
func options(t testing.TB) Options {
	return Options{
		Hostname: "mx1.example.net",
		Original: relaymail.Draft{
			ID:       "01J00000000000000000000000",
			Envelope: relaymail.Envelope{Sender: address(t, "alice@example.org"), EnvID: "env 1", DeliverBy: relaymail.DeliverBy{Deadline: now}},
			Origin:   relaymail.Origin{Helo: "laptop.example.org", Client: netip.MustParseAddrPort("192.0.2.7:4711")},
			Header:   relaymail.Header{MessageID: "<m1@example.org>", From: "alice@example.org", Subject: "Lunch?"},
			Trace:    []byte("Received: from laptop.example.org\r\n"),
		},
		AcceptedAt: arrived,
		Expires:    arrived.Add(48 * time.Hour),
		Now:        now,
		Recipients: []Recipient{{
			Recipient: relaymail.Recipient{Address: address(t, "bob@example.com"), ORcpt: "rfc822;bob+x@example.com"},
			Outcome: relaymail.Outcome{
				Disposition: relaymail.Bounced, Remote: true, Verb: "RCPT", Class: relaymail.ClassInvalidRecipient,
				Reply: relaymail.Reply{Code: 550, Enhanced: "5.1.1", Text: "no such user\nsee https://example.com/help"},
			},
			Host: "mx.example.com", Attempts: 1, At: now,
		}},
		Open: opener(original),
	}
}

// report is a parsed report.
type report struct {
	header    mail.Header
	kinds     []string
	text      string
	message   textproto.MIMEHeader
	perRcpt   []textproto.MIMEHeader
	returned  string
	encodings []string
}

func parse(t testing.TB, content []byte) report {
	t.Helper()
	for l := range bytes.SplitSeq(content, []byte("\r\n")) {
		if len(l) > maxLine || bytes.ContainsAny(l, "\r\n\x00") {
			t.Fatalf("bad line %.80q of %d octets", l, len(l))
		}
	}
	m, err := mail.ReadMessage(bytes.NewReader(content))
	if err != nil {
		t.Fatalf("%v in:\n%s", err, content)
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" || params["report-type"] != "delivery-status" {
		t.Fatalf("Content-Type %q %v: %v", kind, params, err)
	}
	r := report{header: m.Header}
	parts := multipart.NewReader(m.Body, params["boundary"])
	for {
		p, err := parts.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("part %d: %v", len(r.kinds), err)
		}
		kind, _, err := mime.ParseMediaType(p.Header.Get("Content-Type"))
		if err != nil || len(p.Header) != 3 {
			t.Fatalf("part header %v: %v", p.Header, err)
		}
		var body io.Reader = p
		encoding := p.Header.Get("Content-Transfer-Encoding")
		if encoding == "quoted-printable" {
			body = quotedprintable.NewReader(p)
		}
		b, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		switch len(r.kinds) {
		case 0:
			r.text = string(b)
		case 1:
			tr := textproto.NewReader(bufio.NewReader(bytes.NewReader(append(b, "\r\n\r\n"...))))
			if r.message, err = tr.ReadMIMEHeader(); err != nil {
				t.Fatalf("%v in:\n%s", err, b)
			}
			for {
				h, err := tr.ReadMIMEHeader()
				if err != nil || len(h) == 0 {
					break
				}
				r.perRcpt = append(r.perRcpt, h)
			}
		case 2:
			r.returned = string(b)
		}
		r.kinds, r.encodings = append(r.kinds, kind), append(r.encodings, encoding)
	}
	return r
}

func compose(t testing.TB, opts Options) (report, relaymail.Draft) {
	t.Helper()
	content, draft, err := Compose(opts)
	if err != nil {
		t.Fatal(err)
	}
	r := parse(t, content)
	head, _, _ := bytes.Cut(content, []byte("\r\n\r\n"))
	if want := len(head) + 4; draft.Header.Bytes != want {
		t.Errorf("Header.Bytes = %d, want %d", draft.Header.Bytes, want)
	}
	if draft.Envelope.Body == relaymail.Body7Bit && !isASCII(content) {
		t.Errorf("8-bit report in a 7-bit envelope")
	}
	return r, draft
}

func TestFailed(t *testing.T) {
	r, draft := compose(t, options(t))
	env := draft.Envelope
	if !env.Sender.IsNull() || len(env.Recipients) != 1 || env.Recipients[0].Address.String() != "alice@example.org" || env.Recipients[0].Notify != relaymail.NotifyNever {
		t.Errorf("envelope %+v", env)
	}
	if draft.Parent != "01J00000000000000000000000" || !relaymail.ValidID(string(draft.ID)) || draft.UID == "" {
		t.Errorf("draft %+v", draft)
	}
	for key, want := range map[string]string{
		"From": "Mail Delivery System <postmaster@mx1.example.net>", "To": "<alice@example.org>", "Subject": "Undelivered mail: Lunch?",
		"Auto-Submitted": "auto-replied", "In-Reply-To": "<m1@example.org>", "Mime-Version": "1.0", "Message-Id": draft.Header.MessageID,
	} {
		if got := r.header.Get(key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	if want := []string{"text/plain", "message/delivery-status", "text/rfc822-headers"}; !slices.Equal(r.kinds, want) {
		t.Errorf("parts %v, want %v", r.kinds, want)
	}
	for key, want := range map[string]string{
		"Reporting-Mta": "dns; mx1.example.net", "Original-Envelope-Id": "env 1", "Received-From-Mta": "dns; laptop.example.org",
		"Arrival-Date": "Fri, 20 Nov 2026 10:00:00 +0000", "Deliver-By-Date": "Fri, 20 Nov 2026 10:05:00 +0000",
	} {
		if got := r.message.Get(key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	if len(r.perRcpt) != 1 {
		t.Fatalf("%d recipients, want 1", len(r.perRcpt))
	}
	for key, want := range map[string]string{
		"Original-Recipient": "rfc822; bob+x@example.com", "Final-Recipient": "rfc822; bob@example.com", "Action": "failed", "Status": "5.1.1",
		"Remote-Mta": "dns; mx.example.com", "Diagnostic-Code": "smtp; 550 5.1.1 no such user see https://example.com/help",
		"Last-Attempt-Date": "Fri, 20 Nov 2026 10:05:00 +0000", "Will-Retry-Until": "",
	} {
		if got := r.perRcpt[0].Get(key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	wantText := `This is the mail system at host mx1.example.net.

Your message could not be delivered to the recipient below. We will not
try again.

<bob@example.com>
    The address does not exist there.
    The mail server mx.example.com said in answer to the recipient's
    address (RCPT):
        550 5.1.1 no such user see https://example.com/help
    What you can do: Check the address for typing mistakes, and send the
    message again to the right one.

The message was:

    Subject:    Lunch?
    From:       alice@example.org
    Received:   Fri, 20 Nov 2026 10:00:00 +0000
    Message-ID: <m1@example.org>
    Queue ID:   01J00000000000000000000000

If you need help, forward this report to <postmaster@mx1.example.net>.
It has the technical details.
`
	if got := strings.ReplaceAll(r.text, "\r\n", "\n"); got != wantText {
		t.Errorf("text:\n%s\nwant:\n%s", got, wantText)
	}
	if want := "Received: from laptop.example.org\r\n" + original[:strings.Index(original, "\r\n\r\n")+2]; r.returned != want {
		t.Errorf("returned %q, want %q", r.returned, want)
	}
}

func TestStatusAndKind(t *testing.T) {
	last := relaymail.Reply{Code: 451, Enhanced: "4.7.1", Text: "later"}
	for _, test := range []struct {
		name       string
		outcome    relaymail.Outcome
		last       relaymail.Reply
		status     string
		action     string
		subject    string
		diagnostic string
	}{
		{
			"bounced without an enhanced code",
			relaymail.Outcome{Disposition: relaymail.Bounced, Remote: true, Reply: relaymail.Reply{Code: 554, Text: "no"}},
			relaymail.Reply{},
			"5.0.0", "failed", "Undelivered mail: Lunch?", "smtp; 554 no",
		},
		{
			"an enhanced code that does not fit",
			relaymail.Outcome{Disposition: relaymail.Bounced, Remote: true, Reply: relaymail.Reply{Code: 550, Enhanced: "4.7.1", Text: "no"}},
			relaymail.Reply{},
			"5.0.0", "failed", "Undelivered mail: Lunch?", "smtp; 550 4.7.1 no",
		},
		{
			"our own words",
			relaymail.Outcome{Disposition: relaymail.Bounced, Reply: relaymail.Reply{Enhanced: "5.1.10", Text: "null MX"}},
			relaymail.Reply{},
			"5.1.10", "failed", "Undelivered mail: Lunch?", "X-Waybill; 5.1.10 null MX",
		},
		{
			"expired tells the last answer",
			relaymail.Outcome{Disposition: relaymail.Expired, Reply: relaymail.Reply{Enhanced: "4.4.7", Text: "expired"}},
			last,
			"4.4.7", "failed", "Undelivered mail: Lunch?", "smtp; 451 4.7.1 later",
		},
		{
			"expired without an attempt",
			relaymail.Outcome{Disposition: relaymail.Expired, Reply: relaymail.Reply{Enhanced: "4.4.7", Text: "expired"}},
			relaymail.Reply{},
			"4.4.7", "failed", "Undelivered mail: Lunch?", "X-Waybill; 4.4.7 expired",
		},
		{
			"delayed",
			relaymail.Outcome{Disposition: relaymail.Deferred, Remote: true, Reply: last},
			relaymail.Reply{},
			"4.7.1", "delayed", "Delayed mail: Lunch?", "smtp; 451 4.7.1 later",
		},
		{
			"relayed",
			relaymail.Outcome{Disposition: relaymail.Relayed, Remote: true, Reply: relaymail.Reply{Code: 250, Text: "ok"}},
			relaymail.Reply{},
			"2.0.0", "relayed", "Relayed mail: Lunch?", "smtp; 250 ok",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			opts := options(t)
			opts.Recipients[0].Outcome, opts.Recipients[0].Last = test.outcome, test.last
			opts.Recipients[0].LastRemote = true
			opts.Recipients[0].Notify = relaymail.NotifySuccess | relaymail.NotifyFailure | relaymail.NotifyDelay
			r, _ := compose(t, opts)
			got := []string{r.perRcpt[0].Get("Status"), r.perRcpt[0].Get("Action"), r.header.Get("Subject"), r.perRcpt[0].Get("Diagnostic-Code")}
			if want := []string{test.status, test.action, test.subject, test.diagnostic}; !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
			wantUntil := ""
			if test.action == "delayed" {
				wantUntil = date(opts.Expires)
			}
			if got := r.perRcpt[0].Get("Will-Retry-Until"); got != wantUntil {
				t.Errorf("Will-Retry-Until: %q, want %q", got, wantUntil)
			}
		})
	}
}

func TestWanted(t *testing.T) {
	for _, test := range []struct {
		name        string
		notify      relaymail.Notify
		disposition relaymail.Disposition
		want        bool
	}{
		{"failure by default", 0, relaymail.Bounced, true},
		{"expiry by default", 0, relaymail.Expired, true},
		{"delay by default", 0, relaymail.Deferred, true},
		{"success not by default", 0, relaymail.Relayed, false},
		{"never failure", relaymail.NotifyNever, relaymail.Bounced, false},
		{"never delay", relaymail.NotifyNever, relaymail.Deferred, false},
		{"success asked", relaymail.NotifySuccess, relaymail.Relayed, true},
		{"traced", 0, relaymail.Relayed, true},
		{"traced, only failure asked", relaymail.NotifyFailure, relaymail.Relayed, true},
		{"traced, but never", relaymail.NotifyNever, relaymail.Relayed, false},
		{"only success asked", relaymail.NotifySuccess, relaymail.Bounced, false},
		{"only failure asked", relaymail.NotifyFailure, relaymail.Deferred, false},
		{"delay asked", relaymail.NotifyDelay, relaymail.Deferred, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			opts := options(t)
			opts.Recipients[0].Traced = strings.HasPrefix(test.name, "traced")
			opts.Recipients[0].Notify, opts.Recipients[0].Outcome.Disposition = test.notify, test.disposition
			if got := opts.Recipients[0].Wanted(); got != test.want {
				t.Errorf("Wanted() = %t, want %t", got, test.want)
			}
			_, _, err := Compose(opts)
			if got := err == nil; got != test.want {
				t.Errorf("Compose() = %v, want a report: %t", err, test.want)
			}
			if err != nil && !errors.Is(err, ErrNotWanted) {
				t.Errorf("Compose() = %v, want %v", err, ErrNotWanted)
			}
		})
	}
}

func TestNullSender(t *testing.T) {
	opts := options(t)
	opts.Original.Envelope.Sender = relaymail.Address{}
	if _, _, err := Compose(opts); !errors.Is(err, ErrNullSender) {
		t.Errorf("Compose() = %v, want %v", err, ErrNullSender)
	}
}

func TestSeveralRecipients(t *testing.T) {
	opts := options(t)
	add := func(addr string, notify relaymail.Notify, d relaymail.Disposition) {
		opts.Recipients = append(opts.Recipients, Recipient{
			Recipient: relaymail.Recipient{Address: address(t, addr), Notify: notify},
			Outcome:   relaymail.Outcome{Disposition: d},
		})
	}
	add("ok@example.com", relaymail.NotifySuccess, relaymail.Relayed)
	add("quiet@example.com", relaymail.NotifyNever, relaymail.Bounced)
	add("late@example.com", 0, relaymail.Deferred)
	add("gone@example.com", 0, relaymail.Expired)
	r, _ := compose(t, opts)
	var got []string
	for _, h := range r.perRcpt {
		got = append(got, h.Get("Final-Recipient")+" "+h.Get("Action"))
	}
	want := []string{"rfc822; bob@example.com failed", "rfc822; ok@example.com relayed", "rfc822; late@example.com delayed", "rfc822; gone@example.com failed"}
	if !slices.Equal(got, want) {
		t.Errorf("recipients %q, want %q", got, want)
	}
	if r.header.Get("Subject") != "Undelivered mail: Lunch?" {
		t.Errorf("Subject: %q", r.header.Get("Subject"))
	}
	if strings.Contains(r.text, "quiet") || !strings.Contains(r.text, "the 2 recipients below.") || !strings.Contains(r.text, "THIS IS ONLY") {
		t.Errorf("text:\n%s", r.text)
	}
	if len(opts.Recipients) != 5 {
		t.Errorf("Compose changed its options")
	}
}

func TestReturned(t *testing.T) {
	long := original + strings.Repeat("0123456789\r\n", 6000)
	for _, test := range []struct {
		name     string
		content  string
		ret      string
		utf8     bool
		body     relaymail.Body
		kind     string
		encoding string
		want     string // the end of what is returned
	}{
		{"headers by default", original, "", false, 0, "text/rfc822-headers", "7bit", "Message-ID: <m1@example.org>\r\n"},
		{"headers asked", original, "HDRS", false, 0, "text/rfc822-headers", "7bit", "Message-ID: <m1@example.org>\r\n"},
		{"all of it", original, "FULL", false, 0, "message/rfc822", "7bit", "Are you there?\r\n"},
		{"too large for all of it", long, "FULL", false, 0, "text/rfc822-headers", "7bit", "Message-ID: <m1@example.org>\r\n"},
		{"8-bit content", original + "\xe9\r\n", "FULL", false, relaymail.Body8BitMIME, "message/rfc822", "8bit", "\xe9\r\n"},
		{"binary content", original + "\x00\r\n", "FULL", false, 0, "text/rfc822-headers", "7bit", "Message-ID: <m1@example.org>\r\n"},
		{"declared binary", original, "FULL", false, relaymail.BodyBinaryMIME, "text/rfc822-headers", "7bit", "Message-ID: <m1@example.org>\r\n"},
		{"stray LF", original + "a\nb\r\n", "FULL", false, 0, "text/rfc822-headers", "7bit", "Message-ID: <m1@example.org>\r\n"},
		{"long line", original + strings.Repeat("x", 999) + "\r\n", "FULL", false, 0, "text/rfc822-headers", "7bit", "Message-ID: <m1@example.org>\r\n"},
		{"8-bit header", "Subject: caf\xe9\r\n\r\n", "", false, 0, "text/rfc822-headers", "quoted-printable", "Subject: caf\xe9\r\n"},
		{"long header line", "Subject: " + strings.Repeat("x", 2000) + "\r\n\r\n", "", false, 0, "text/rfc822-headers", "quoted-printable", "xxx\r\n"},
		{"UTF-8 header", "Subject: café\r\n\r\n", "", true, 0, "message/global-headers", "quoted-printable", "Subject: café\r\n"},
		{"UTF-8 message", "Subject: café\r\n\r\nhi\r\n", "FULL", true, 0, "message/global", "8bit", "hi\r\n"},
		{"UTF-8 declared, plain header", original, "", true, 0, "text/rfc822-headers", "7bit", "Message-ID: <m1@example.org>\r\n"},
		{"no end of the header section", "Subject: x\r\nTo: cut", "", false, 0, "text/rfc822-headers", "7bit", "Subject: x\r\n"},
		{"bare LF in the header", "Subject: x\nTo: y\n\nbody", "", false, 0, "text/rfc822-headers", "7bit", "Subject: x\r\nTo: y\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			opts := options(t)
			opts.Open = opener(test.content)
			env := &opts.Original.Envelope
			env.Ret, env.UTF8, env.Body = test.ret, test.utf8, test.body
			content, draft, err := Compose(opts)
			if err != nil {
				t.Fatal(err)
			}
			if len(content) > maxReturned+8<<10 {
				t.Errorf("report of %d octets", len(content))
			}
			r := parse(t, content)
			if len(r.kinds) != 3 || r.kinds[2] != test.kind || r.encodings[2] != test.encoding {
				t.Fatalf("parts %v %v, want %s %s", r.kinds, r.encodings, test.kind, test.encoding)
			}
			if !strings.HasPrefix(r.returned, "Received: from laptop") || !strings.HasSuffix(r.returned, test.want) {
				t.Errorf("returned …%q, want …%q", r.returned[max(0, len(r.returned)-80):], test.want)
			}
			wantBody := relaymail.Body7Bit
			if test.encoding == "8bit" {
				wantBody = relaymail.Body8BitMIME
			}
			if draft.Envelope.Body != wantBody {
				t.Errorf("BODY=%v, want %v", draft.Envelope.Body, wantBody)
			}
		})
	}
}

func TestContentGone(t *testing.T) {
	for _, test := range []struct {
		name string
		open func() (io.ReadCloser, error)
	}{
		{"no content", nil},
		{"cannot open", func() (io.ReadCloser, error) { return nil, errors.New("gone") }},
		{"cannot read", func() (io.ReadCloser, error) { return io.NopCloser(&broken{}), nil }},
	} {
		t.Run(test.name, func(t *testing.T) {
			opts := options(t)
			opts.Open = test.open
			if r, _ := compose(t, opts); len(r.kinds) != 2 {
				t.Errorf("parts %v, want two", r.kinds)
			}
		})
	}
}

type broken struct{}

func (*broken) Read([]byte) (int, error) { return 0, errors.New("damaged") }

func TestInternationalised(t *testing.T) {
	opts := options(t)
	opts.Recipients[0].Address = address(t, "jörg@bücher.example")
	opts.Recipients[0].ORcpt = ""
	opts.Original.Header.Subject = "Grüße, und noch eine sehr lange Betreffzeile, die gefaltet werden muss, weil sie so lang ist"
	opts.Open = opener("Subject: " + opts.Original.Header.Subject + "\r\n\r\n")
	r, draft := compose(t, opts)
	if draft.Envelope.UTF8 || draft.Envelope.Body != relaymail.Body7Bit {
		t.Errorf("envelope %+v: an ASCII sender's report must go anywhere", draft.Envelope)
	}
	if r.kinds[1] != "message/global-delivery-status" || r.encodings[1] != "quoted-printable" {
		t.Errorf("parts %v %v", r.kinds, r.encodings)
	}
	if got, want := r.perRcpt[0].Get("Final-Recipient"), "utf-8; jörg@bücher.example"; got != want {
		t.Errorf("Final-Recipient: %q, want %q", got, want)
	}
	if got, err := new(mime.WordDecoder).DecodeHeader(r.header.Get("Subject")); err != nil || got != draft.Header.Subject {
		t.Errorf("Subject: %q (%v), want %q", got, err, draft.Header.Subject)
	}

	opts.Original.Envelope.Sender = address(t, "françois@example.org")
	r, draft = compose(t, opts)
	if !draft.Envelope.UTF8 || draft.Envelope.Body != relaymail.Body8BitMIME {
		t.Errorf("envelope %+v: the sender needs SMTPUTF8", draft.Envelope)
	}
	if got, want := r.header.Get("To"), "<françois@example.org>"; got != want {
		t.Errorf("To: %q, want %q", got, want)
	}
}

func TestEveryClassHasWords(t *testing.T) {
	for _, class := range relaymail.Classes() {
		if p := phrases[class]; p.what == "" || p.advice == "" {
			t.Errorf("no words for class %s", class)
		}
	}
	if len(phrases) != len(relaymail.Classes()) {
		t.Errorf("%d phrases for %d classes", len(phrases), len(relaymail.Classes()))
	}
}

func TestFold(t *testing.T) {
	for _, test := range []struct {
		name  string
		field string
	}{
		{"short", "A: b"},
		{"words", "A: " + strings.Repeat("word ", 100) + "end"},
		{"one long word", "A: " + strings.Repeat("x", 5000)},
		{"long UTF-8 word", "A: " + strings.Repeat("é", 2500)},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := fold(test.field)
			for i, l := range strings.Split(got, "\r\n") {
				if len(l) > maxLine || strings.TrimSpace(l) == "" || i > 0 && l[0] != ' ' {
					t.Errorf("line %d is %q", i, l)
				}
			}
			squeeze := func(s string) string { return strings.NewReplacer(" ", "", "\r\n", "").Replace(s) }
			if squeeze(got) != squeeze(test.field) {
				t.Errorf("fold changed the text: %q", got)
			}
		})
	}
}

// FuzzInjection puts hostile text wherever a stranger's words can come from:
// the report has the same fields and parts as ever.
func FuzzInjection(f *testing.F) {
	f.Add("550 5.1.1 no\r\nX-Evil: 1\r\n\r\n--boundary", "<x@y>\r\nBcc: z@z", "host\r\nName", "rfc822;a@b\r\nAction: delivered", "Subject: x\r\n\r\n--=_\r\n", true)
	f.Add("\u2028\u0085\x00\x1b[2J\u202e", "=?utf-8?q?=0d=0aBcc:_x?=", "a;b\"c", "utf-8;\u202ex", "", false)
	f.Add(strings.Repeat("x", 5000), strings.Repeat("é", 3000), strings.Repeat("h.", 500), ";", strings.Repeat("a", 60000), true)
	f.Add("line\nline\n.\n", "\t folded\t ", "", "", "\r\n\r\n\r\n", true)
	f.Fuzz(func(t *testing.T, reply, header, host, orcpt, content string, full bool) {
		opts := options(t)
		o := &opts.Original
		o.Header = relaymail.Header{MessageID: header, From: header, Subject: header}
		o.Origin = relaymail.Origin{Helo: host, ClientName: header}
		o.Envelope.EnvID = header
		if full {
			o.Envelope.Ret = "FULL"
		}
		rcpt := &opts.Recipients[0]
		rcpt.Outcome.Reply.Text, rcpt.Outcome.Reply.Enhanced, rcpt.Outcome.Verb = reply, host, header
		rcpt.Host, rcpt.ORcpt = host, orcpt
		rcpt.Address = relaymail.Address{Local: "b", Domain: host + "x"}
		opts.Open = opener(content)
		msg, draft, err := Compose(opts)
		if err != nil {
			t.Fatal(err)
		}
		r := parse(t, msg)
		if len(r.kinds) < 2 || len(r.kinds) > 3 {
			t.Fatalf("parts %v", r.kinds)
		}
		for key := range r.header {
			if !slices.Contains([]string{"Date", "From", "To", "Subject", "Message-Id", "In-Reply-To", "References", "Auto-Submitted", "Mime-Version", "Content-Type"}, key) {
				t.Fatalf("field %q in the header section", key)
			}
		}
		for key := range r.message {
			if !slices.Contains([]string{"Reporting-Mta", "Original-Envelope-Id", "Received-From-Mta", "Arrival-Date", "Deliver-By-Date", "X-Waybill-Queue-Id"}, key) {
				t.Fatalf("per-message field %q", key)
			}
		}
		if len(r.perRcpt) != 1 {
			t.Fatalf("%d recipients", len(r.perRcpt))
		}
		for key, values := range r.perRcpt[0] {
			if !slices.Contains([]string{"Original-Recipient", "Final-Recipient", "Action", "Status", "Remote-Mta", "Diagnostic-Code", "Last-Attempt-Date", "X-Waybill-Class", "X-Waybill-Rule", "X-Waybill-Permanence", "X-Waybill-Explanation"}, key) || len(values) != 1 || len(values[0]) > maxDiagnostic+32 {
				t.Fatalf("per-recipient field %q: %.2000q", key, values)
			}
		}
		if got := r.perRcpt[0].Get("Action"); got != "failed" {
			t.Fatalf("Action: %q", got)
		}
		if len(msg) > 2*maxReturned+100<<10 || !isPlain(draft.Header.MessageID) {
			t.Fatalf("%d octets, Message-ID %q", len(msg), draft.Header.MessageID)
		}
	})
}

func BenchmarkCompose(b *testing.B) {
	opts := options(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Compose(opts); err != nil {
			b.Fatal(err)
		}
	}
}

func TestMeaning(t *testing.T) {
	opts := options(t)
	o := &opts.Recipients[0].Outcome
	o.Class, o.ClassRule, o.Permanence = relaymail.ClassThrottled, "ms-mailbox-rate", relaymail.Temporary
	o.Explanation = "Microsoft throttles this mailbox at 30 messages a minute; Waybill paces it,\r\nX-Evil: nothing to do"
	r, _ := compose(t, opts)
	for key, want := range map[string]string{
		"X-Waybill-Class": "throttled", "X-Waybill-Rule": "ms-mailbox-rate", "X-Waybill-Permanence": "temporary",
		"X-Waybill-Explanation": "Microsoft throttles this mailbox at 30 messages a minute; Waybill paces it, X-Evil: nothing to do",
	} {
		if got := r.perRcpt[0].Get(key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	text := strings.Join(strings.Fields(r.text), " ")
	if want := "For administrators: Microsoft throttles this mailbox at 30 messages a minute; Waybill paces it, X-Evil: nothing to do (throttled, temporary, rule ms-mailbox-rate)."; !strings.Contains(text, want) {
		t.Errorf("text %q, want %q in it", text, want)
	}
	o.Disposition = relaymail.Relayed
	opts.Recipients[0].Notify = relaymail.NotifySuccess
	if r, _ = compose(t, opts); r.perRcpt[0].Get("X-Waybill-Class") != "" {
		t.Error("a relayed recipient has a failure class")
	}
}

// What lies here is not said to be a next hop's.
func TestOurCauses(t *testing.T) {
	for rule, want := range map[string]string{
		"operator":   "An administrator of this mail system has stopped the message. Reason: 554 5.7.1 as agreed What you can do: Ask",
		"quota":      "This mail system has used up what it may send. Reason: 554 5.7.1 as agreed What you can do: Your own",
		"local":      "The message was not accepted. Reason: 554 5.7.1 as agreed What you can do: Ask your administrators, and send",
		"unroutable": "This mail system has no way for mail to that address. Reason: 554 5.7.1 as agreed What you can do: Check",
	} {
		opts := options(t)
		opts.Recipients[0].Outcome = relaymail.Outcome{
			Disposition: relaymail.Bounced, Class: relaymail.ClassOther, ClassRule: rule, Reply: relaymail.Reply{Code: 554, Enhanced: "5.7.1", Text: "as agreed"},
		}
		opts.Recipients[0].Host = ""
		r, _ := compose(t, opts)
		if text := strings.Join(strings.Fields(r.text), " "); !strings.Contains(text, want) {
			t.Errorf("%s: %s\nwant %q in it", rule, r.text, want)
		}
		if got := r.perRcpt[0].Get("Diagnostic-Code"); got != "X-Waybill; 554 5.7.1 as agreed" || r.perRcpt[0].Get("Remote-MTA") != "" {
			t.Errorf("%s: Diagnostic-Code %q, Remote-MTA %q", rule, got, r.perRcpt[0].Get("Remote-MTA"))
		}
	}
}

// Who sends again should know that the first one may be there.
func TestUncertain(t *testing.T) {
	opts := options(t)
	opts.Recipients[0].Outcome = relaymail.Outcome{
		Disposition: relaymail.Expired, Class: relaymail.ClassConnect, Uncertain: true, Reply: relaymail.Reply{Enhanced: "4.4.7", Text: "delivery time expired"},
	}
	const want = "could not be reached, or broke off. It may have arrived all the same: the server got the whole message,"
	r, _ := compose(t, opts)
	if !strings.Contains(strings.Join(strings.Fields(r.text), " "), want) {
		t.Errorf("%s\nwant %q in it", r.text, want)
	}
}

// RET=FULL is about failures: other reports have the header section only.
func TestReturnedByKind(t *testing.T) {
	for _, test := range []struct {
		name string
		what relaymail.Disposition
		ret  string
		want string
	}{
		{"failed, in full", relaymail.Bounced, "FULL", "message/rfc822"},
		{"failed, header section", relaymail.Bounced, "HDRS", "text/rfc822-headers"},
		{"failed, nothing said", relaymail.Bounced, "", "text/rfc822-headers"},
		{"delayed", relaymail.Deferred, "FULL", "text/rfc822-headers"},
		{"relayed", relaymail.Relayed, "FULL", "text/rfc822-headers"},
	} {
		t.Run(test.name, func(t *testing.T) {
			opts := options(t)
			opts.Original.Envelope.Ret = test.ret
			opts.Recipients[0].Outcome.Disposition = test.what
			opts.Recipients[0].Notify = relaymail.NotifySuccess | relaymail.NotifyFailure | relaymail.NotifyDelay
			if r, _ := compose(t, opts); len(r.kinds) != 3 || r.kinds[2] != test.want {
				t.Errorf("parts %v, want %s at the end", r.kinds, test.want)
			}
		})
	}
}

func TestPostmaster(t *testing.T) {
	opts := options(t)
	opts.Original.Envelope.Sender = relaymail.Address{}
	opts.Recipients[0].Notify = relaymail.NotifyNever
	opts.Postmaster = address(t, "postmaster@example.net")
	r, draft := compose(t, opts)
	env := draft.Envelope
	if !env.Sender.IsNull() || len(env.Recipients) != 1 || env.Recipients[0].Address != opts.Postmaster || env.Recipients[0].Notify != relaymail.NotifyNever {
		t.Errorf("envelope %+v", env)
	}
	if got := r.header.Get("To") + " " + r.header.Get("Subject"); got != "<postmaster@example.net> Undeliverable report: Lunch?" {
		t.Errorf("To and Subject: %q", got)
	}
	if r.kinds[2] != "message/rfc822" || !strings.Contains(r.returned, "Are you there?") {
		t.Errorf("returned %s %q, want all of it", r.kinds[2], r.returned)
	}
	if !strings.Contains(r.text, "A report, or another message without a sender") || strings.Contains(r.text, "Your message could not") {
		t.Errorf("text %q", r.text)
	}
	opts.Recipients[0].Outcome.Disposition = relaymail.Deferred
	if _, _, err := Compose(opts); !errors.Is(err, ErrNotWanted) {
		t.Errorf("a late report: %v, want %v", err, ErrNotWanted)
	}
}

func TestORcptOfTypeUTF8(t *testing.T) {
	for _, test := range []struct {
		name  string
		orcpt string
		want  string
		kind  string
	}{
		{"not of that type", `rfc822;a\x{E9}@example.com`, `rfc822; a\x{E9}@example.com`, "message/delivery-status"},
		{"international", "utf-8;café😀@example.com", "utf-8; café😀@example.com", "message/global-delivery-status"},
		{"ASCII", "UTF-8;bob@example.com", "UTF-8; bob@example.com", "message/delivery-status"},
		{"ASCII that is written in another way in 7 bits", `utf-8;"a\\b"+c=d@example.com`, `utf-8; "a\x{5C}\x{5C}b"\x{2B}c\x{3D}d@example.com`, "message/delivery-status"},
		{"the same in UTF-8", `utf-8;"a\\é"+c=d@example.com`, `utf-8; "a\\é"+c=d@example.com`, "message/global-delivery-status"},
		{"a control character", "utf-8;a\r\nX-Evil: b", "utf-8; a X-Evil: b", "message/global-delivery-status"},
		{"no address", "utf-8;", "", "message/delivery-status"},
	} {
		t.Run(test.name, func(t *testing.T) {
			opts := options(t)
			opts.Recipients[0].ORcpt = test.orcpt
			r, _ := compose(t, opts)
			if got := r.perRcpt[0].Get("Original-Recipient"); got != test.want || r.kinds[1] != test.kind {
				t.Errorf("%s in %s, want %s in %s", got, r.kinds[1], test.want, test.kind)
			}
		})
	}
}

// What the record does not keep is told to who wrote it, and still not kept.
func TestSubjectFromContent(t *testing.T) {
	for _, test := range []struct {
		name    string
		kept    string
		content string
		want    string
		record  string
	}{
		{"not kept", "", "Subject: =?utf-8?q?caf=C3=A9?= at\r\n noon\r\n\r\nx\r\n", "Undelivered mail: café at noon", "Undelivered mail: to bob@example.com"},
		{"hashed", "h:1234", "Subject: Lunch\r\n\r\nx\r\n", "Undelivered mail: Lunch", "Undelivered mail: h:1234"},
		{"none", "", "From: a\r\n\r\nx\r\n", "Undelivered mail: to bob@example.com", "Undelivered mail: to bob@example.com"},
		{"no header section", "", "nonsense", "Undelivered mail: to bob@example.com", "Undelivered mail: to bob@example.com"},
		{"unknown character set", "", "Subject: =?x-mine?q?a?=\r\n\r\n", "Undelivered mail: = ?x-mine?q?a?=", "Undelivered mail: to bob@example.com"},
	} {
		t.Run(test.name, func(t *testing.T) {
			opts := options(t)
			opts.Original.Header.Subject = test.kept
			opts.Open = opener(test.content)
			r, draft := compose(t, opts)
			got, err := new(mime.WordDecoder).DecodeHeader(r.header.Get("Subject"))
			if err != nil || got != test.want || draft.Header.Subject != test.record {
				t.Errorf("Subject: %q (%v), kept %q; want %q, kept %q", got, err, draft.Header.Subject, test.want, test.record)
			}
		})
	}
}
