package pickup

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/policy"
	"waybill/relay/relaytest"
)

type accepted struct {
	mail.Draft
	content string
}

// acceptor keeps messages in memory.
type acceptor struct {
	mu     sync.Mutex
	got    []accepted
	open   int
	begin  func() error
	commit func() error
}

func (a *acceptor) Begin(context.Context, int64) (Incoming, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.begin != nil {
		if err := a.begin(); err != nil {
			return nil, err
		}
	}
	a.open++
	return &incoming{a: a}, nil
}

func (a *acceptor) messages() []accepted {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.got)
}

type incoming struct {
	a *acceptor
	bytes.Buffer
}

func (in *incoming) Commit(_ context.Context, d mail.Draft) error {
	in.a.mu.Lock()
	defer in.a.mu.Unlock()
	in.a.open--
	if in.a.commit != nil {
		if err := in.a.commit(); err != nil {
			return err
		}
	}
	in.a.got = append(in.a.got, accepted{d, in.String()})
	return nil
}

func (in *incoming) Abort() {
	in.a.mu.Lock()
	defer in.a.mu.Unlock()
	in.a.open--
}

type harness struct {
	*Pickup
	a   *acceptor
	rec *relaytest.Recorder
	dir string
}

func control(t testing.TB) *policy.Control {
	t.Helper()
	d, err := policy.NewDomains([]policy.Domain{{Name: "example.org", Type: "internal_relay"}})
	if err != nil {
		t.Fatal(err)
	}
	return &policy.Control{Domains: d}
}

func open(t testing.TB, change func(*Options)) *harness {
	t.Helper()
	h := &harness{a: &acceptor{}, rec: &relaytest.Recorder{}, dir: t.TempDir()}
	o := Options{
		Name: "drop", Dir: h.dir, Hostname: "mx.example.com", Acceptor: h.a, Emitter: h.rec.Emitter(), Settle: time.Millisecond, Interval: time.Millisecond,
		Permissions: policy.Permissions{Submit: true, Relay: true}, Policy: func() *policy.Control { return control(t) },
	}
	if change != nil {
		change(&o)
	}
	var err error
	if h.Pickup, err = New(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// put writes a file that has been there for an hour.
func (h *harness) put(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(h.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	return path
}

// files are the names in a folder of the directory.
func (h *harness) files(t testing.TB, folder string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(h.dir, folder))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

func recipientsOf(list []mail.Recipient) string {
	var out []string
	for _, r := range list {
		out = append(out, r.Address.String())
	}
	return strings.Join(out, " ")
}

func TestMessages(t *testing.T) {
	for _, test := range []struct {
		name       string
		in         string
		sender     string
		recipients string
		content    string
	}{
		{
			"From, To and Cc", "From: Ann <ann@example.net>\r\nTo: b@example.org, \"C, D\" <c@example.org>\r\nCc: e@example.com\r\n\r\nhello\r\n",
			"ann@example.net", "b@example.org c@example.org e@example.com",
			"From: Ann <ann@example.net>\r\nTo: b@example.org, \"C, D\" <c@example.org>\r\nCc: e@example.com\r\n\r\nhello\r\n",
		},
		{
			"Bcc is taken out", "From: a@example.net\nTo: b@example.org\nBcc: secret@example.org,\n other@example.org\nSubject: x\n\nhello\n",
			"a@example.net", "b@example.org secret@example.org other@example.org",
			"From: a@example.net\r\nTo: b@example.org\r\nSubject: x\r\n\r\nhello\r\n",
		},
		{
			"X-Sender and X-Receiver, as of IIS", "x-sender: app@example.net\r\nx-receiver: b@example.org\r\nx-receiver: <c@example.org> NOTIFY=NEVER\r\nFrom: x@example.com\r\nTo: not-me@example.com\r\nBcc: y@example.com\r\n\r\nx",
			"app@example.net", "b@example.org c@example.org",
			"From: x@example.com\r\nTo: not-me@example.com\r\n\r\nx\r\n",
		},
		{
			"X-Sender with parameters, as of Exchange", "X-Sender: <a@example.net> BODY=8bitmime RET=HDRS ENVID=12345ABCD auth=<>\r\nX-Receiver: <b@example.org> NOTIFY=NEVER ORcpt=rfc822;b@example.org\r\nX-CreatedBy: MSExchange14\r\nX-HeloDomain: x\r\nX-EndOfInjectedXHeaders: 5\r\nSubject: y\r\n\r\n",
			"a@example.net", "b@example.org", "Subject: y\r\n\r\n",
		},
		{"null sender", "X-Sender: <>\nX-Receiver: b@example.org\nSubject: y\n\n", "", "b@example.org", "Subject: y\r\n\r\n"},
		{"Sender before From", "Sender: s@example.net\nFrom: a@example.net, b@example.net\nTo: c@example.org\n\n", "s@example.net", "c@example.org", "Sender: s@example.net\r\nFrom: a@example.net, b@example.net\r\nTo: c@example.org\r\n\r\n"},
		{"nobody twice", "From: a@example.net\nTo: b@example.org\nCc: B <b@EXAMPLE.org>\n\n", "a@example.net", "b@example.org", "From: a@example.net\r\nTo: b@example.org\r\nCc: B <b@EXAMPLE.org>\r\n\r\n"},
		{"odd octets", "From: a@example.net\nTo: b@example.org\n\na\rb\x00c\r\r\n.\n\xe4", "a@example.net", "b@example.org", "From: a@example.net\r\nTo: b@example.org\r\n\r\na b c \r\n.\r\n\xe4\r\n"},
		{"only a header section", "From: a@example.net\nTo: b@example.org", "a@example.net", "b@example.org", "From: a@example.net\r\nTo: b@example.org\r\n\r\n"},
		{"quoted", "From: \"a b\"@example.net\nTo: b@example.org\n\n", "\"a b\"@example.net", "b@example.org", "From: \"a b\"@example.net\r\nTo: b@example.org\r\n\r\n"},
		{"fields of servers of an organisation", "From: a@example.net\nX-MS-Exchange-Organization-SCL: -1\n x\nTo: b@example.org\n\n", "a@example.net", "b@example.org", "From: a@example.net\r\nTo: b@example.org\r\n\r\n"},
		{"undisclosed", "From: a@example.net\nTo: undisclosed-recipients:;\nBcc: b@example.org\n\n", "a@example.net", "b@example.org", "From: a@example.net\r\nTo: undisclosed-recipients:;\r\n\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := open(t, nil)
			h.put(t, "a.EML", test.in)
			if err := h.look(t.Context()); err != nil {
				t.Fatal(err)
			}
			got := h.a.messages()
			if len(got) != 1 {
				t.Fatalf("%d messages, bad: %q, facts: %+v", len(got), h.files(t, "bad"), h.rec.Records())
			}
			m := got[0]
			if s := m.Envelope.Sender.String(); s != test.sender {
				t.Errorf("sender %q, want %q", s, test.sender)
			}
			if r := recipientsOf(m.Envelope.Recipients); r != test.recipients {
				t.Errorf("recipients %q, want %q", r, test.recipients)
			}
			if m.content != test.content {
				t.Errorf("content %q, want %q", m.content, test.content)
			}
			if left := h.files(t, "."); len(left) != 0 {
				t.Errorf("left: %q", left)
			}
			if m.Origin.Connector != "drop" || m.Origin.Protocol != "PICKUP" || m.Origin.Helo != "a.EML" || m.Origin.Session == "" {
				t.Errorf("origin %+v", m.Origin)
			}
			want := `^Received: by mx\.example\.com \(Waybill\) with PICKUP id ` + string(m.ID) + `;\r\n\t[^\r\n]+\r\nDate: [^\r\n]+\r\nMessage-ID: <` + string(m.ID) + `@mx\.example\.com>\r\n`
			if ok, _ := regexp.Match(want, m.Trace); !ok {
				t.Errorf("trace %q, want %q", m.Trace, want)
			}
		})
	}
}

func TestEnvelopeParameters(t *testing.T) {
	h := open(t, nil)
	h.put(t, "a.eml", "X-Sender: <a@example.net> RET=HDRS ENVID=e MT-PRIORITY=4\nX-Receiver: <b@example.org> NOTIFY=SUCCESS\nSubject: =?utf-8?q?b=C3=A4r?=\nMessage-ID: <1@x>\nDate: x\nFrom: c@example.net\nReceived: x\n\n\xe4")
	if err := h.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	m := h.a.messages()[0]
	e := m.Envelope
	if e.Ret != "HDRS" || e.EnvID != "e" || e.Recipients[0].Notify != mail.NotifySuccess || m.Priority != mail.PriorityHigh || e.Body != mail.Body8BitMIME {
		t.Errorf("envelope %+v", e)
	}
	want := mail.Header{MessageID: "<1@x>", From: "c@example.net", Subject: "bär", Received: 1, Bytes: m.Header.Bytes}
	if m.Header != want || strings.Count(string(m.Trace), "\n") != 2 {
		t.Errorf("header %+v, trace %q", m.Header, m.Trace)
	}
}

func TestBadFiles(t *testing.T) {
	const ok = "From: a@example.net\nTo: b@example.org\n"
	for _, test := range []struct {
		name   string
		change func(*Options)
		in     string
		reason string // of the fact
		why    string // in the text file
	}{
		{"text", nil, "hello world\n", "syntax", "is not a header field"},
		{"nobody", nil, "From: a@example.net\nSubject: x\n\n", "syntax", "whom the message is for"},
		{"from nobody", nil, "To: b@example.org\n\n", "syntax", "whom the message is from"},
		{"a bad address", nil, "From: a@example.net\nTo: b@@example.org\n\n", "syntax", "To: "},
		{"a smuggled command", nil, "X-Sender: <a@example.net> X=1\nX-Receiver: b@example.org\n\n", "syntax", "X-Sender: "},
		{"a control character", nil, "X-Sender: <a@example.net>\nX-Receiver: b\x01@example.org\n\n", "syntax", "X-Receiver: "},
		{"a local user", nil, "From: root\nTo: b@example.org\n\n", "syntax", "From: "},
		{"two X-Sender", nil, "X-Sender: a@example.net\nX-Sender: b@example.net\nX-Receiver: b@example.org\n\n", "syntax", "two X-Sender"},
		{"too large", func(o *Options) { o.MessageSize = 100 }, ok + "\n" + strings.Repeat("x\n", 100), "size", "larger than 100 octets"},
		{"a large header section", func(o *Options) { o.HeaderSize = 100 }, ok + "X: " + strings.Repeat("x", 100) + "\n\n", "header", "larger than 100 octets"},
		{"too many recipients", func(o *Options) { o.Recipients = 1 }, ok + "Cc: c@example.org\n\n", "recipients", "2 recipients are more than 1"},
		{"a loop", nil, ok + strings.Repeat("Received: x\n", 31) + "\n", "hops", "mail loop"},
		{"no relaying", func(o *Options) { o.Permissions.Relay = false }, "From: a@example.net\nTo: b@example.org, c@example.com\n\n", "relay_denied", "may not relay"},
		{"a foreign sender", func(o *Options) { o.Senders = []string{"example.com"} }, ok + "\n", "sender_denied", "may not send as"},
		{"no right at all", func(o *Options) { o.Permissions = policy.Permissions{} }, ok + "\n", "sender_denied", "no permission"},
		{"the queue refuses for good", nil, ok + "\n", "header", "not like this"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := open(t, test.change)
			if test.why == "not like this" {
				h.a.commit = func() error {
					e := mail.Refuse(550, "5.6.0", "header", "no")
					e.Err = errors.New("not like this")
					return e
				}
			}
			h.put(t, "a.eml", test.in)
			if err := h.look(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := len(h.a.messages()); n != 0 || h.a.open != 0 {
				t.Errorf("%d messages, %d open contents", n, h.a.open)
			}
			if got := h.files(t, "."); len(got) != 0 {
				t.Errorf("left: %q", got)
			}
			if got := h.files(t, "bad"); !slices.Equal(got, []string{"a.eml", "a.eml.reason.txt"}) {
				t.Errorf("bad: %q", got)
			}
			content, err := os.ReadFile(filepath.Join(h.dir, "bad", "a.eml"))
			if err != nil || string(content) != test.in {
				t.Errorf("kept %q, %v", content, err)
			}
			why, err := os.ReadFile(filepath.Join(h.dir, "bad", "a.eml.reason.txt"))
			if err != nil || !strings.Contains(string(why), test.why) {
				t.Errorf("reason %q, %v, want %q", why, err, test.why)
			}
			var reasons []string
			for _, r := range h.rec.Records() {
				if r.Source != event.SourcePickup {
					t.Errorf("source %s", r.Source)
				}
				if e, ok := r.Event.(event.MessageRefused); ok {
					reasons = append(reasons, e.Reason)
				}
				if e, ok := r.Event.(event.SenderRefused); ok {
					reasons = append(reasons, e.Reason)
				}
				if e, ok := r.Event.(event.RecipientRefused); ok {
					reasons = append(reasons, e.Reason)
				}
			}
			if !slices.Equal(reasons, []string{test.reason}) {
				t.Errorf("facts %q, want one: %s", reasons, test.reason)
			}
			if !slices.Contains(event.Refusals(), test.reason) {
				t.Errorf("%s is no reason", test.reason)
			}
		})
	}
}

// TestTheSameNameAgain: bad files do not overwrite each other.
func TestTheSameNameAgain(t *testing.T) {
	h := open(t, nil)
	for range 3 {
		h.put(t, "a.eml", "x\n")
		if err := h.look(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := h.files(t, "bad"); len(got) != 6 {
		t.Errorf("bad: %q", got)
	}
}

const small = "From: a@example.net\nTo: b@example.org\n\nx\n"

// TestWholeFiles: a file that is still being written is left alone.
func TestWholeFiles(t *testing.T) {
	h := open(t, func(o *Options) { o.Settle = time.Hour })
	path := filepath.Join(h.dir, "a.eml")
	if err := os.WriteFile(path, []byte(small), 0o600); err != nil {
		t.Fatal(err)
	}
	look := func(want int) {
		t.Helper()
		if err := h.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := len(h.a.messages()); n != want {
			t.Fatalf("%d messages, want %d", n, want)
		}
	}
	look(0)
	h.put(t, "b.tmp", small) // not its final name
	h.put(t, "c.eml", "")    // still empty; an hour old, and taken for bad
	look(0)
	if got := h.files(t, "bad"); len(got) != 2 {
		t.Errorf("bad: %q", got)
	}
	if err := os.Rename(filepath.Join(h.dir, "b.tmp"), filepath.Join(h.dir, "b.eml")); err != nil {
		t.Fatal(err)
	}
	look(1)
	if got := h.files(t, "."); !slices.Equal(got, []string{"a.eml"}) {
		t.Errorf("left: %q", got)
	}
	// A file whose time is in the future is whole when it was seen unchanged.
	h.opts.Settle = time.Nanosecond
	future := time.Now().Add(24 * time.Hour)
	if err := os.Chtimes(path, future, future); err != nil {
		t.Fatal(err)
	}
	look(1)
	look(2)
}

// TestLinks: nothing but a regular file of its own is taken.
func TestLinks(t *testing.T) {
	h := open(t, nil)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(small), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(h.dir, "symbolic.eml")); err != nil {
		t.Fatal(err)
	}
	hard := os.Link(secret, filepath.Join(h.dir, "hard.eml"))
	if err := os.Mkdir(filepath.Join(h.dir, "folder.eml"), 0o700); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	_ = os.Chtimes(secret, old, old)
	if err := h.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(h.a.messages()); n != 0 {
		t.Errorf("%d messages", n)
	}
	if _, err := h.open("symbolic.eml"); err == nil {
		t.Error("a symbolic link was opened")
	}
	if hard == nil && !slices.Equal(h.files(t, "bad"), []string{"hard.eml", "hard.eml.reason.txt"}) {
		t.Errorf("bad: %q", h.files(t, "bad"))
	}
	if _, err := os.Stat(secret); err != nil {
		t.Error(err)
	}
}

// TestQueueIsFull: the files wait where they are, and nobody is told that they
// were refused.
func TestQueueIsFull(t *testing.T) {
	for _, where := range []string{"begin", "commit"} {
		t.Run(where, func(t *testing.T) {
			h := open(t, nil)
			full := func() error { return mail.Refuse(452, "4.3.1", "backpressure", "full") }
			if where == "begin" {
				h.a.begin = full
			} else {
				h.a.commit = full
			}
			h.put(t, "a.eml", small)
			h.put(t, "b.eml", small)
			if err := h.look(t.Context()); err == nil {
				t.Fatal("no error")
			}
			if got := h.files(t, "."); len(got) != 2 || len(h.files(t, "bad")) != 0 || h.a.open != 0 || len(h.rec.Records()) != 0 {
				t.Errorf("left %q, bad %q, %d open, facts %+v", got, h.files(t, "bad"), h.a.open, h.rec.Records())
			}
			h.a.begin, h.a.commit = nil, nil
			if err := h.look(t.Context()); err != nil || len(h.a.messages()) != 2 {
				t.Errorf("%v, %d messages", err, len(h.a.messages()))
			}
		})
	}
}

// TestNotReady: files wait while the relay takes no mail.
func TestNotReady(t *testing.T) {
	var short error
	h := open(t, func(o *Options) { o.Ready = func() error { return short } })
	h.put(t, "a.eml", small)
	for want, err := range []error{errors.New("short of memory"), nil} {
		short = err
		if err := h.look(t.Context()); err != nil || len(h.a.messages()) != want {
			t.Errorf("%v, %d messages, want %d", err, len(h.a.messages()), want)
		}
	}
}

// TestCrash: whoever ends between the commit and the deletion repeats that
// message once, and no other.
func TestCrash(t *testing.T) {
	h := open(t, nil)
	h.put(t, "a.eml", small)
	h.put(t, "b.eml", small)
	ctx, crash := context.WithCancel(t.Context())
	h.a.commit = func() error {
		if len(h.a.got) == 1 { // the first is committed, and its file has gone
			h.a.got = append(h.a.got, accepted{}) // the second is committed
			crash()
			return errors.New("nobody hears this")
		}
		return nil
	}
	_ = h.look(ctx) // it ends here
	if got := h.files(t, "."); len(got) != 1 {
		t.Fatalf("left: %q", got)
	}
	again, err := New(h.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	h.a.commit = nil
	for range 2 {
		if err := again.look(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(h.a.messages()); n != 3 || len(h.files(t, ".")) != 0 {
		t.Errorf("%d messages of two files, want 3; left: %q", n, h.files(t, "."))
	}
}

// TestPanic: a file that breaks its worker is put aside, and the next is taken.
func TestPanic(t *testing.T) {
	h := open(t, nil)
	h.a.begin = func() error {
		h.a.begin = nil
		panic("broken")
	}
	h.put(t, "a.eml", small)
	h.put(t, "b.eml", small)
	if err := h.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(h.a.messages()); n != 1 || !slices.Contains(h.files(t, "bad"), "a.eml") {
		t.Errorf("%d messages, bad: %q", n, h.files(t, "bad"))
	}
	h.rec.WaitFor(t, "panicked", 1)
}

// TestRate: more than so many files a minute wait.
func TestRate(t *testing.T) {
	h := open(t, func(o *Options) { o.FilesPerMinute = 5 })
	for i := range 8 {
		h.put(t, fmt.Sprintf("%d.eml", i), small)
	}
	for range 3 {
		if err := h.look(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(h.a.messages()); n != 5 {
		t.Errorf("%d messages, want 5", n)
	}
	n := 0
	for _, r := range h.rec.Records() {
		if e, ok := r.Event.(event.ThrottleEngaged); ok && e.Connector == "drop" && e.Limit == "files_per_minute" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("the limit was stated %d times, want once", n)
	}
}

// TestNew refuses directories that cannot be used.
func TestNew(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		dir  string
		want string
	}{
		{"not there", filepath.Join(dir, "none"), "no such file"},
		{"everybody's", dir, "chmod o-w"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, err := New(Options{Dir: test.dir})
			if err == nil {
				_ = p.Close()
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("New() = %v, want %q", err, test.want)
			}
		})
	}
}

// TestRun takes files as they come, and ends.
func TestRun(t *testing.T) {
	h := open(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	for i := range 3 {
		tmp := filepath.Join(h.dir, fmt.Sprintf("%d.tmp", i))
		if err := os.WriteFile(tmp, []byte(small), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(h.dir, fmt.Sprintf("%d.eml", i))); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(time.Minute)
	for len(h.a.messages()) < 3 {
		if time.Now().After(deadline) {
			t.Fatalf("%d messages, left %q", len(h.a.messages()), h.files(t, "."))
		}
		<-time.After(5 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// FuzzFile feeds whole files: nothing panics, and what is accepted is clean and
// holds no Bcc.
func FuzzFile(f *testing.F) {
	for _, s := range []string{
		small, "X-Sender: <a@b.example> RET=FULL\r\nX-Receiver: c@d.example\r\n\r\nx", "Bcc: a@b.example\nFrom: \"x\" <a@b.example>\n", ": x\n", " x\n",
		"To: a:b@c.example;\nFrom: =?utf-8?q?a?= <a@b.example>\n\n\x00\r\r\n", "X-Receiver: <>\n", "from:a@b.example\nbcc :c@d.example\n\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		section, err := readHeader(bufio.NewReader(bytes.NewReader(in)), 4096)
		if err != nil {
			return
		}
		p, err := parse(section, policy.Permissions{})
		if err != nil {
			return
		}
		var out bytes.Buffer
		w := &lines{to: &out}
		if err := errors.Join(w.write(p.section), w.end()); err != nil {
			t.Fatal(err)
		}
		s := out.String()
		if strings.Count(s, "\n") != strings.Count(s, "\r\n") || strings.Count(s, "\r") != strings.Count(s, "\r\n") || strings.ContainsRune(s, 0) || s != "\r\n" && !strings.HasSuffix(s, "\r\n\r\n") {
			t.Errorf("section %q", s)
		}
		for l := range strings.SplitSeq(strings.ToLower(s), "\r\n") {
			if name, _, _ := strings.Cut(l, ":"); strings.TrimRight(name, " \t") == "bcc" {
				t.Errorf("Bcc is left: %q", s)
			}
		}
		if len(p.env.Recipients) == 0 {
			t.Error("no recipients")
		}
		for _, r := range p.env.Recipients {
			if a, err := mail.ParseAddress(r.Address.String()); err != nil || a != r.Address {
				t.Errorf("recipient %q: %v", r.Address, err)
			}
		}
		for _, v := range []string{p.header.MessageID, p.header.From, p.header.Subject} {
			if strings.ContainsAny(v, "\r\n\x00\x1b") || len(v) > 600 {
				t.Errorf("header %q", v)
			}
		}
	})
}
