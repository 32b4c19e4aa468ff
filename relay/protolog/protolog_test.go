package protolog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"waybill/relay/event"
	"waybill/relay/mail"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var compare = cmp.Options{cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()}

// memory is an output in memory, which can be slow or broken.
type memory struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	err    error
	take   int           // octets taken before err
	gate   chan struct{} // when not nil, each Write waits for one
	synced int
	closed bool
}

func (m *memory) Write(p []byte) (int, error) {
	if m.gate != nil {
		<-m.gate
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		n := min(m.take, len(p))
		m.buf.Write(p[:n])
		return n, m.err
	}
	return m.buf.Write(p)
}
func (m *memory) Reopen() error { return nil }
func (m *memory) Sync() error   { m.synced++; return nil }
func (m *memory) Close() error  { m.closed = true; return nil }
func (m *memory) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.buf.String()
}

func (m *memory) fail(err error, take int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err, m.take = err, take
}

func open(t testing.TB, out output, level zapcore.Level, format string) *Log {
	t.Helper()
	enc, err := newEncoders(format)
	if err != nil {
		t.Fatal(err)
	}
	l := start(out, level, enc)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// zero returns the fact named name with every field zero.
func zero(t testing.TB, name string) event.Event {
	t.Helper()
	var r event.Record
	if err := json.Unmarshal(fmt.Appendf(nil, `{"ts":"2026-01-01T00:00:00Z","event_id":"x","schema":1,"event":%q}`, name), &r); err != nil {
		t.Fatal(err)
	}
	return r.Event
}

var texts = []string{
	"a", "two words", `quote" back\slash`, "é漢", "<tag>&", "line\u2028sep", "ctl\x01\x7f\r\n", "csi\u009b31m", "bidi\u202eevil\u2066", "\U000e0041tag", "\ufeff\ufffd",
}

func fill(v reflect.Value, rng *rand.Rand) {
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = time.UnixMicro(1_800_000_000_000_000 + rng.Int64N(1e15)).UTC()
		return
	case *netip.Addr:
		*x = netip.AddrFrom4([4]byte{192, 0, 2, byte(rng.IntN(256))})
		return
	case *event.Seconds:
		*x = event.Seconds(time.Duration(rng.Int64N(1e12)) * time.Microsecond)
		return
	case *mail.Disposition:
		*x = mail.Disposition(1 + rng.IntN(8))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for _, f := range v.Fields() {
			fill(f, rng)
		}
	case reflect.String:
		v.SetString(texts[rng.IntN(len(texts))])
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), rng)
		}
	case reflect.Bool:
		v.SetBool(true)
	default:
		if v.CanInt() {
			v.SetInt(1 + rng.Int64N(1e6))
		} else {
			v.SetUint(1 + rng.Uint64N(60000))
		}
	}
}

// full returns a record of each fact, with every field set and with none.
func full(t testing.TB, seed uint64) []event.Record {
	rng := rand.New(rand.NewPCG(seed, 1))
	em := event.NewEmitter("n1").Source(event.SourceQueue).Config("c1").Session("s1").Message("q1", "u1")
	var recs []event.Record
	for _, name := range event.Names() {
		ev := zero(t, name)
		v := reflect.New(reflect.TypeOf(ev))
		fill(v.Elem(), rng)
		recs = append(recs, em.Stamp(v.Elem().Interface().(event.Event)), event.NewEmitter("").Stamp(ev))
	}
	return recs
}

// TestReplay is the replay law: what Scan reads is what was written.
func TestReplay(t *testing.T) {
	for _, format := range []string{JSON, Console} {
		t.Run(format, func(t *testing.T) {
			var out memory
			l := open(t, &out, zapcore.DebugLevel, format)
			var want []event.Record
			for seed := range uint64(20) {
				want = append(want, full(t, seed)...)
			}
			for i := range want {
				if i%7 == 0 {
					l.Logger().Named("test").With(zap.Int("i", i)).Warn("a line of the program", zap.Error(errors.New("odd\u2028text\x1b[2J")))
				}
				l.Write(&want[i])
				if i%100 == 0 { // never behind
					if err := l.Sync(); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			var got []event.Record
			for r, err := range Scan(strings.NewReader(out.String())) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, r)
			}
			if d := cmp.Diff(want, got, compare); d != "" {
				t.Errorf("replay (-written +read):\n%s", d)
			}
			for _, r := range out.String() {
				if r != '\n' && r != '\t' && hidden(r) {
					t.Fatalf("output holds the raw character %U", r)
				}
			}
			if s := l.Stats(); s.Sampled+s.Dropped+s.Failed != 0 || s.Written == 0 {
				t.Errorf("Stats() = %+v, want all written", s)
			}
		})
	}
}

func TestLineHasLevelAndMessage(t *testing.T) {
	em := event.NewEmitter("n1")
	for _, test := range []struct {
		name string
		ev   event.Event
		want string
	}{
		{"ordinary", event.MessageQueued{}, `{"level":"info","msg":"message_queued","ts":"`},
		{"refusal", event.RecipientRefused{}, `{"level":"warn","msg":"recipient_refused","ts":"`},
		{"bounce", event.RecipientBounced{}, `{"level":"warn","msg":"recipient_bounced","ts":"`},
		{"panic", event.Panicked{}, `{"level":"error","msg":"panicked","ts":"`},
		{"protocol", event.CommandAnswered{}, `{"level":"debug","msg":"command_answered","ts":"`},
		{"certificate", event.CertificateReloaded{Error: "x"}, `{"level":"error","msg":"certificate_reloaded","ts":"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out memory
			l := open(t, &out, zapcore.DebugLevel, JSON)
			r := em.Stamp(test.ev)
			l.Write(&r)
			_ = l.Sync()
			if got := out.String(); !strings.HasPrefix(got, test.want) {
				t.Errorf("line = %s, want prefix %s", got, test.want)
			}
		})
	}
}

func TestLevel(t *testing.T) {
	var out memory
	l := open(t, &out, zapcore.WarnLevel, JSON)
	for _, ev := range []event.Event{event.MessageQueued{}, event.CommandAnswered{}, event.RecipientExpired{}} {
		r := event.NewEmitter("").Stamp(ev)
		l.Write(&r)
	}
	_ = l.Sync()
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "recipient_expired") {
		t.Errorf("output = %s, want one warning", got)
	}
}

// TestMinor leaves out what the stream has marked, and counts it.
func TestMinor(t *testing.T) {
	for _, test := range []struct {
		name  string
		level zapcore.Level
		want  uint64 // sampled
	}{
		{"debug", zapcore.DebugLevel, 1},
		{"a level that has none of them", zapcore.InfoLevel, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out memory
			l := open(t, &out, test.level, JSON)
			r := event.NewEmitter("").Stamp(event.CommandAnswered{Verb: "RCPT", Code: 250})
			r.Minor = true
			l.Write(&r)
			_ = l.Sync()
			if s := l.Stats(); out.String() != "" || s.Sampled != test.want || s.Written != 0 {
				t.Errorf("output %q, %+v, want nothing, and %d sampled", out.String(), s, test.want)
			}
		})
	}
}

func TestBadOptions(t *testing.T) {
	for _, test := range []struct {
		name string
		opts Options
	}{
		{"level", Options{Level: "loud"}},
		{"format", Options{Format: "xml"}},
		{"directory", Options{File: t.TempDir()}},
	} {
		if l, err := New(test.opts); err == nil {
			_ = l.Close()
			t.Errorf("%s: New succeeded, want an error", test.name)
		}
	}
}

func TestFlushesWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out memory
		l := open(t, &out, zapcore.InfoLevel, JSON)
		r := event.NewEmitter("").Stamp(event.QueueLoaded{})
		l.Write(&r)
		synctest.Wait()
		if got := out.String(); got != "" {
			t.Errorf("output at once = %q, want it buffered", got)
		}
		time.Sleep(flushInterval) // of the bubble
		synctest.Wait()
		if got := out.String(); got == "" {
			t.Error("output after a second is empty")
		}
		p := event.NewEmitter("").Stamp(event.Panicked{Where: "here"})
		l.Write(&p)
		synctest.Wait()
		if got := out.String(); !strings.Contains(got, "panicked") {
			t.Error("an error waited for the flush interval")
		}
		_ = l.Close()
		if out.synced == 0 || !out.closed {
			t.Error("Close did not sync and close the output")
		}
	})
}

// TestBehind holds the output still: protocol facts are sampled, then dropped;
// durable facts wait and all arrive.
func TestBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &memory{gate: make(chan struct{})}
		l := open(t, out, zapcore.DebugLevel, JSON)
		durable := event.NewEmitter("").Stamp(event.MessagePoisoned{Error: strings.Repeat("x", 10_000)})
		protocol := event.NewEmitter("").Stamp(event.CommandAnswered{Verb: "NOOP"})

		l.Write(&durable) // taken by the flusher, which now hangs in Write
		synctest.Wait()
		for l.Stats().Pending <= bufferSize/4 {
			l.Write(&durable)
		}
		for range 100 {
			l.Write(&protocol)
		}
		if s := l.Stats(); s.Sampled != 90 {
			t.Errorf("sampled %d of 100 when a quarter full, want 90", s.Sampled)
		}
		for l.Stats().Pending <= bufferSize/2 {
			l.Write(&durable)
		}
		for range 100 {
			l.Write(&protocol)
		}
		if s := l.Stats(); s.Dropped != 100 {
			t.Errorf("dropped %d of 100 when half full, want 100", s.Dropped)
		}
		const more = 200
		var wg sync.WaitGroup
		for range more {
			wg.Go(func() { r := durable; l.Write(&r) })
		}
		synctest.Wait()
		if s := l.Stats(); s.Waited == 0 || s.Pending > bufferSize {
			t.Errorf("Stats() = %+v, want waiting writers and a bounded buffer", s)
		}
		close(out.gate)
		wg.Wait()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		s := l.Stats()
		if got := uint64(strings.Count(out.String(), "\n")); got != s.Written || s.Failed != 0 {
			t.Errorf("%d lines, Stats() = %+v, want them equal and none failed", got, s)
		}
	})
}

func TestFailingOutput(t *testing.T) {
	var out memory
	l := open(t, &out, zapcore.InfoLevel, JSON)
	r := event.NewEmitter("").Stamp(event.QueueLoaded{Messages: 1})
	full := errors.New("no space")
	out.fail(full, 40)
	l.Write(&r)
	if err := l.Sync(); !errors.Is(err, full) {
		t.Errorf("Sync() = %v, want %v", err, full)
	}
	if s := l.Stats(); s.Failed != 1 || !errors.Is(s.Err, full) {
		t.Errorf("Stats() = %+v, want one line failed", s)
	}
	out.fail(nil, 0)
	l.Write(&r)
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	var good, bad int
	for _, err := range Scan(strings.NewReader(out.String())) {
		if _, ok := errors.AsType[*LineError](err); ok {
			bad++
		} else if err == nil {
			good++
		}
	}
	if good != 1 || bad != 1 {
		t.Errorf("after a torn line: %d good and %d bad lines, want 1 and 1\n%s", good, bad, out.String())
	}
	_ = l.Close()
	l.Write(&r)
	if s := l.Stats(); s.Failed != 2 {
		t.Errorf("Failed = %d after a write to a closed log, want 2", s.Failed)
	}
}

func TestFileRotates(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "waybill.log")
	l, err := New(Options{File: path, MaxSize: 2000, Backups: 3, Compress: true})
	if err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(dir, "sub", "waybill-notes.log")
	if err := os.WriteFile(foreign, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	em := event.NewEmitter("n1")
	for i := range 100 {
		r := em.Stamp(event.QueueLoaded{Messages: i})
		l.Write(&r)
		if err := l.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	f := &file{path: path, backups: 3, compress: true}
	if err := f.tidy(time.Now()); err != nil { // what the last goroutine aside may have missed
		t.Fatal(err)
	}
	names, _, err := f.rotated()
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != 3 || slices.ContainsFunc(names, func(s string) bool { return !strings.HasSuffix(s, ".log.gz") }) {
		t.Errorf("rotated files = %q, want 3 compressed", names)
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Errorf("a file of somebody else: %v", err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > 2000 || info.Size() == 0 {
		t.Errorf("current file: %v, %v, want at most 2000 octets", info, err)
	}
	if err := f.tidy(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	f.keep = time.Minute
	if err := f.tidy(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if names, _, _ := f.rotated(); len(names) != 0 {
		t.Errorf("files older than Keep: %q, want none", names)
	}
}

func TestFileRotatesByAge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "waybill.log")
	old := `{"level":"info","msg":"queue_loaded","ts":"2020-01-01T00:00:00Z","event_id":"x","schema":1,"event":"queue_loaded","messages":1,"took":0}` + "\n" + `{"torn`
	if err := os.WriteFile(path, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := openFile(Options{File: path, MaxAge: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("new\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("new\n")); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	names, _, err := f.rotated()
	if err != nil || len(names) != 1 {
		t.Fatalf("rotated() = %q, %v, want one file", names, err)
	}
	for name, want := range map[string]string{path: "new\nnew\n", names[0]: old + "\n"} {
		if got, err := os.ReadFile(name); err != nil || string(got) != want {
			t.Errorf("%s = %q, %v, want %q", filepath.Base(name), got, err, want)
		}
	}
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "waybill.log")
	l, err := New(Options{File: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := event.NewEmitter("n1").Stamp(event.QueueLoaded{})
	l.Write(&r)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	l.Write(&r)
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, path + ".1"} {
		if b, err := os.ReadFile(name); err != nil || bytes.Count(b, []byte("\n")) != 1 {
			t.Errorf("%s = %q, %v, want one line", filepath.Base(name), b, err)
		}
	}
}

func TestRotationFailureKeepsWriting(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "waybill.log")
	f, err := openFile(Options{File: path, MaxSize: 5})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write([]byte("one\n")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil { // somebody took the file away: the rename fails
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("two\n")); err != nil {
		t.Errorf("Write = %v, want the line in the old file", err)
	}
	if f.notUntil.IsZero() {
		t.Error("the failed rotation is tried again at once")
	}
}

// TestNoSecrets holds the vocabulary and the output free of credentials: no
// fact has a place for one, and a transcript is written as it was masked.
func TestNoSecrets(t *testing.T) {
	for _, name := range event.Names() {
		for _, key := range event.FieldNames(name) {
			for _, bad := range []string{"password", "secret", "token", "credential", "private"} {
				if strings.Contains(key, bad) {
					t.Errorf("fact %s has a field %s", name, key)
				}
			}
		}
	}
	const canary = "c4n4ry"
	var out memory
	l := open(t, &out, zapcore.DebugLevel, JSON)
	lines := []event.Line{{From: "client", Text: "AUTH PLAIN ***", Bytes: int64(len(canary))}}
	for _, ev := range []event.Event{
		event.AuthFailed{User: "u", Mechanism: "PLAIN", Reason: "credentials"}, event.TranscriptKept{Reason: "failed", Transcript: lines},
	} {
		r := event.NewEmitter("").Stamp(ev)
		l.Write(&r)
	}
	_ = l.Sync()
	if got := out.String(); strings.Contains(got, canary) || !strings.Contains(got, "AUTH PLAIN ***") {
		t.Errorf("output = %s", got)
	}
}

func TestNewLogger(t *testing.T) {
	var buf bytes.Buffer
	log, err := NewLogger(&buf, "info", JSON)
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("not written")
	log.Named("track").Info("store opened", zap.String("dir", "a\u202eb"), zap.Duration("took", 1500*time.Millisecond))
	var got struct {
		Level, Msg, Logger, Dir string
		TS                      time.Time
		Took                    float64
		Event                   *string
	}
	if err := json.Unmarshal(buf.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s", err, buf.Bytes())
	}
	if got.Level != "info" || got.Msg != "store opened" || got.Logger != "track" || got.Dir != "a\u202eb" || got.Took != 1.5 || got.TS.IsZero() {
		t.Errorf("line = %s", buf.Bytes())
	}
	if strings.Contains(buf.String(), "\u202e") {
		t.Error("line holds a raw bidi override")
	}
	buf.Reset()
	log, err = NewLogger(&buf, "", Console)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("forged\nline\x1b[2J")
	if got := buf.String(); strings.Count(got, "\n") != 1 || strings.ContainsRune(got, 0x1b) {
		t.Errorf("console line = %q", got)
	}
	for _, bad := range [][2]string{{"loud", JSON}, {"info", "xml"}} {
		if _, err := NewLogger(io.Discard, bad[0], bad[1]); err == nil {
			t.Errorf("NewLogger(%q) succeeded, want an error", bad)
		}
	}
}

func FuzzScan(f *testing.F) {
	var out memory
	l := open(f, &out, zapcore.DebugLevel, JSON)
	for _, r := range full(f, 1) {
		l.Write(&r)
	}
	_ = l.Sync()
	for line := range strings.Lines(out.String()) {
		f.Add([]byte(line))
	}
	f.Add([]byte("\x00\x00{}\nnot json\n\n{\"event\":1}\ninfo\tx\t{\"event\":\"cat_fed\"}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var again memory
		l := open(t, &again, zapcore.DebugLevel, JSON)
		defer l.Close()
		var want []event.Record
		for r, err := range Scan(bytes.NewReader(b)) {
			if err != nil {
				continue
			}
			if y := r.Time.Year(); y < 0 || y > 9999 {
				continue
			}
			want = append(want, r)
			l.Write(&r)
		}
		_ = l.Sync()
		if strings.Count(again.String(), "\n") != len(want) {
			t.Fatalf("%d records gave %q", len(want), again.String())
		}
	})
}

func FuzzEscape(f *testing.F) {
	for _, s := range texts {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		in, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		out := escape(in)
		var a, b string
		if json.Unmarshal(in, &a) != nil || json.Unmarshal(out, &b) != nil || a != b {
			t.Fatalf("%q became %q", in, out)
		}
		if i := bytes.IndexFunc(out, hidden); i >= 0 {
			t.Fatalf("%q holds a raw character at %d", out, i)
		}
	})
}

func attempt() event.AttemptFinished {
	return event.AttemptFinished{
		Info: event.Info{
			MailFrom: "alice@example.com", HeaderMessageID: "<1@example.com>", HeaderFrom: "alice@example.com", Size: 10_240,
			ConnectorIn: "submission", ClientIP: netip.MustParseAddr("192.0.2.1"), AuthUser: "alice", Priority: "normal",
		},
		Hop: event.Hop{
			ConnectorOut: "internet", Queue: "example.net", Provider: "other", RemoteName: "mx.example.net",
			RemoteIP: netip.MustParseAddr("198.51.100.7"), RemotePort: 25,
		},
		Answer: event.Answer{Code: 250, Enhanced: "2.0.0", Reply: "queued as 4711", Verb: "."}, Disposition: mail.Relayed,
		Recipients: []event.Recipient{{Address: "bob@example.net", Disposition: mail.Relayed, Code: 250, Enhanced: "2.0.0", Reply: "queued as 4711"}},
		OutSession: "01J9ZC8", LocalIP: netip.MustParseAddr("192.0.2.2"), TLSVersion: "1.3", TLSCipher: "TLS_AES_128_GCM_SHA256",
		TLSVerify: "pkix", TLSPolicy: "opportunistic", Attempt: 1, TSched: 100,
		Stages: event.Stages{TDNS: 1e6, TConnect: 2e7, TBanner: 3e7, TTLS: 4e7, TEnvelope: 5e7, TData: 6e7, TReply: 7e7},
	}
}

func BenchmarkWrite(b *testing.B) {
	l, err := New(Options{File: filepath.Join(b.TempDir(), "waybill.log")})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	em := event.NewEmitter("mx1.example.com").Source(event.SourceQueue).Config("c1").Message("01J9ZC8M8Q7W7Z9X4Y3V2T1S0R", mail.NewUID(time.Now()))
	for _, bench := range []struct {
		name string
		ev   event.Event
	}{
		{"attempt_finished", attempt()},
		{"recipient_relayed", event.RecipientRelayed{Final: event.Final{Info: attempt().Info, Hop: attempt().Hop, Answer: attempt().Answer, Recipient: "bob@example.net", Attempts: 1, TTotal: 1e9}}},
		{"session_opened", event.SessionOpened{Direction: event.Inbound, Connector: "submission", ClientIP: netip.MustParseAddr("192.0.2.1"), ClientPort: 4711}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			r := em.Stamp(bench.ev)
			b.ReportAllocs()
			for b.Loop() {
				l.Write(&r)
			}
		})
	}
}
