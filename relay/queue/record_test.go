package queue

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"hash/crc32"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"waybill/relay/mail"
	"waybill/relay/route"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var update = flag.Bool("update", false, "rewrite golden files")

// fullRecord has something in every field.
func fullRecord() *stored {
	at := time.UnixMicro(1_790_000_000_123_456).UTC()
	hop := route.Hop{Connector: "internet", Name: "example.com"}
	return &stored{
		Message: Message{
			Draft: mail.Draft{
				ID: "01J9ZQ3N8R7V5T2W4X6Y8Z0A1B", UID: "uid", Parent: "01J9ZQ3N8R7V5T2W4X6Y8Z0A1C", Priority: mail.PriorityLow,
				Envelope: mail.Envelope{
					Sender: mail.Address{Local: "a b", Domain: "example.org"}, Size: 7, Body: mail.Body8BitMIME, UTF8: true, Ret: "HDRS", EnvID: "e", Auth: "u",
					RequireTLS: true, Priority: -4, Release: at.Add(time.Minute),
					DeliverBy: mail.DeliverBy{Deadline: at.Add(time.Hour), Return: true, Trace: true},
					Recipients: []mail.Recipient{
						{Address: mail.Address{Local: "x", Domain: "example.com"}, Notify: mail.NotifyFailure | mail.NotifyDelay, ORcpt: "rfc822;x@example.com"},
						{Address: mail.Address{Local: "y", Domain: "bücher.example"}, ORcpt: "utf-8;café+a@example.com"},
					},
				},
				Origin: mail.Origin{
					Session: "s", Connector: "c", Client: netip.MustParseAddrPort("[2001:db8::1]:25"), ClientName: "n", Helo: "h", User: "u",
					Mechanism: "m", Protocol: "ESMTPSA", TLSVersion: "1.3", TLSCipher: "x", MailAt: at, DataEndedAt: at.Add(time.Second),
				},
				Header: mail.Header{MessageID: "<m>", From: "f", Subject: "s", Received: 3, Bytes: 400},
				Trace:  []byte("Received: x\r\n"),
			},
			Size: 123, AcceptedAt: at, ExpiresAt: at.Add(48 * time.Hour), HeldBy: "op", HeldWhy: "why", HeldUntil: at.Add(time.Hour), Poison: "p",
			States: []State{
				{
					Disposition: mail.Deferred, Hop: hop, Attempts: 3, Due: at.Add(time.Minute), Last: mail.Reply{Code: 451, Enhanced: "4.7.1", Text: "later"},
					LastClass: mail.ClassGreylist, LastRule: "greylisting", LastMeans: "later; nothing to do", LastAt: at, LastHost: "mx", DelaySent: true, Late: true, since: at, backoff: time.Minute, queued: time.Hour,
				},
				{Disposition: mail.Queued, Hop: route.Unroutable, Due: at},
			},
		},
		loc: location{9, 4096}, panics: 2, excused: true,
	}
}

var compareStored = cmp.Options{
	cmp.AllowUnexported(stored{}, State{}, location{}), cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty(),
}

func TestRecordOfKept(t *testing.T) {
	want := fullRecord()
	want.finished = want.AcceptedAt.Add(time.Hour)
	got, err := decodeRecord(encodeKept(nil, want))
	want.done, want.kept = true, true
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, compareStored); d != "" {
		t.Errorf("record (-want +got):\n%s", d)
	}
}

func TestRecordRoundTrip(t *testing.T) {
	want := fullRecord()
	got, err := decodeRecord(encodeRecord(nil, want))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, compareStored); d != "" {
		t.Errorf("round trip (-want +got):\n%s", d)
	}
	got, err = decodeRecord(encodeDone(nil, want.ID, want.loc))
	if err != nil || !got.done || got.ID != want.ID || got.loc != want.loc {
		t.Errorf("done = %+v, %v", got, err)
	}
}

// TestRecordVersions reads what this version and those before it wrote, and
// writes what this one does.
func TestRecordVersions(t *testing.T) {
	meaningless := func(m *stored) { m.States[0].LastRule, m.States[0].LastMeans = "", "" }
	for _, test := range []struct {
		name  string
		since func(m *stored) // takes away what came later
	}{
		{"v1", func(m *stored) {
			v := &m.Envelope
			v.RequireTLS, v.Priority, v.Release, v.DeliverBy = false, 0, time.Time{}, mail.DeliverBy{}
			meaningless(m)
		}},
		{"v2", func(m *stored) {
			v := &m.Envelope
			v.RequireTLS, v.Priority, v.Release, v.DeliverBy = false, 0, time.Time{}, mail.DeliverBy{} // it could tell, but was not asked
			meaningless(m)
		}},
		{"v3", meaningless},
		{"v4", func(*stored) {}},
		{"v5", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			want := fullRecord()
			if test.since != nil {
				test.since(want)
			}
			path := filepath.Join("testdata", "record-"+test.name+".bin")
			if test.since == nil && *update {
				if err := os.WriteFile(path, encodeRecord(nil, want), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := decodeRecord(b)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got, compareStored); d != "" {
				t.Errorf("record (-want +got):\n%s", d)
			}
			if test.since == nil && !bytes.Equal(encodeRecord(nil, want), b) {
				t.Errorf("this version writes something else now: a change of the layout takes a new version")
			}
		})
	}
}

// TestRelocate has the committer write into a record where the content is: nothing
// else of it changes.
func TestRelocate(t *testing.T) {
	m := fullRecord()
	to := location{1 << 40, 1<<33 + 512}
	want := *m
	want.loc = to
	kept := want
	kept.done, kept.kept, kept.finished = true, true, time.UnixMicro(5).UTC()
	kept.loc = m.loc
	for name, test := range map[string]struct{ was, want []byte }{
		"live": {encodeRecord(nil, m), encodeRecord(nil, &want)},
		"kept": {encodeKept(nil, &kept), func() []byte { k := kept; k.loc = to; return encodeKept(nil, &k) }()},
		"done": {encodeDone(nil, m.ID, m.loc), encodeDone(nil, m.ID, to)},
	} {
		if relocate(test.was, to); !bytes.Equal(test.was, test.want) {
			t.Errorf("%s: relocated:\n%x\nwant\n%x", name, test.was, test.want)
		}
	}
}

// A record keeps so many different meanings of failures; all else stays.
func TestRecordOfManyMeanings(t *testing.T) {
	want := fullRecord()
	want.Envelope.Recipients, want.States = nil, nil
	for i := range maxWhys + 2 {
		want.Envelope.Recipients = append(want.Envelope.Recipients, mail.Recipient{Address: mail.Address{Local: "x", Domain: "example.com"}})
		want.States = append(want.States, State{Disposition: mail.Deferred, LastClass: mail.ClassOther, LastRule: fmt.Sprint("rule-", i), LastMeans: "it means"})
	}
	want.States = append(want.States, want.States[3])
	want.Envelope.Recipients = append(want.Envelope.Recipients, want.Envelope.Recipients[3])
	got, err := decodeRecord(encodeRecord(nil, want))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		s := &want.States[maxWhys+i]
		s.LastRule, s.LastMeans = "", ""
	}
	if d := cmp.Diff(want, got, compareStored); d != "" {
		t.Errorf("record (-want +got):\n%s", d)
	}
}

func TestDamagedRecordIsNoticed(t *testing.T) {
	b := encodeRecord(nil, fullRecord())
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 1 << (i % 8)
		if _, err := decodeRecord(c); err == nil {
			t.Fatalf("a flipped bit in octet %d was not noticed", i)
		}
		if _, err := decodeRecord(b[:i]); err == nil {
			t.Fatalf("a record cut at octet %d was not noticed", i)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(encodeRecord(nil, fullRecord())[2:])
	f.Add(encodeKept(nil, fullRecord())[2:])
	f.Add(encodeDone(nil, "01J9ZQ3N8R7V5T2W4X6Y8Z0A1B", location{1, 2})[2:])
	f.Add([]byte{0, 1, 2, 3, 4, 5})
	f.Fuzz(func(t *testing.T, body []byte) {
		for kind := byte(recordLive); kind <= recordKept; kind++ {
			b := append([]byte{recordVersion, kind}, body...)
			b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)) // past the checksum, to the fields
			m, err := decodeRecord(b)
			if err != nil || m.done && !m.kept {
				continue
			}
			encode := encodeRecord
			if m.kept {
				encode = encodeKept
			}
			again, err := decodeRecord(encode(nil, m))
			if err != nil {
				t.Fatalf("own record does not decode: %v", err)
			}
			if d := cmp.Diff(m, again, compareStored); d != "" {
				t.Fatalf("second round differs:\n%s", d)
			}
		}
	})
}

func FuzzIdent(f *testing.F) {
	f.Add("01J9ZQ3N8R7V5T2W4X6Y8Z0A1B")
	f.Add("7ZZZZZZZZZZZZZZZZZZZZZZZZZ")
	f.Add("8ZZZZZZZZZZZZZZZZZZZZZZZZZ")
	f.Fuzz(func(t *testing.T, s string) {
		id, ok := parseIdent(mail.QueueID(s))
		if ok != mail.ValidID(s) {
			t.Fatalf("parseIdent(%q) = %t, ValidID = %t", s, ok, !ok)
		}
		if ok && string(id.QueueID()) != s {
			t.Fatalf("%q comes back as %q", s, id.QueueID())
		}
	})
}

func TestFilterString(t *testing.T) {
	for _, test := range []struct {
		name   string
		filter Filter
		want   string
	}{
		{"nothing", Filter{}, ""},
		{"all", Filter{All: true}, "all"},
		{"some", Filter{Hop: "example.com", State: "held", OlderThan: time.Hour}, "hop:example.com state:held older_than:1h0m0s"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.filter.String(); got != test.want {
				t.Errorf("String() = %q, want %q", got, test.want)
			}
		})
	}
}

func TestMatchAddress(t *testing.T) {
	addr := mail.Address{Local: "Ann.B", Domain: "Mail.Example.com"}
	for _, test := range []struct {
		name    string
		pattern string
		want    bool
	}{
		{"exact", "ann.b@mail.example.com", true},
		{"domain", "@mail.example.com", true},
		{"parent domain", "@example.com", false},
		{"star", "*@*.example.com", true},
		{"stars in a row", "ann**com", true},
		{"star too short", "ann.b@mail.example.com*x", false},
		{"overlap", "ann.b@mail.example.com*com", false},
		{"everything", "*", true},
		{"null", "<>", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := matchAddress(test.pattern, addr); got != test.want {
				t.Errorf("matchAddress(%q) = %t, want %t", test.pattern, got, test.want)
			}
		})
	}
}

// TestRecycle copies a record of few recipients into the memory of one of many.
func TestRecycle(t *testing.T) {
	many := &stored{Message: Message{States: make([]State, 9)}, panics: 2}
	for i := range many.States {
		many.States[i].Attempts = i + 1
	}
	few := &stored{Message: Message{States: []State{{Attempts: 7}}}}
	for range 100 { // a pool may be empty at any time
		c := many.copied()
		if !reflect.DeepEqual(c, many.clone()) {
			t.Fatalf("copied = %+v, want %+v", c, many)
		}
		c.States[0].Attempts++
		c.recycle()
		if many.States[0].Attempts != 1 {
			t.Fatal("a change of a copy is one of the record")
		}
		c = few.copied()
		if !reflect.DeepEqual(c, few.clone()) {
			t.Fatalf("copied = %+v, want %+v", c, few)
		}
		if rest := c.States[:cap(c.States)][1:]; slices.ContainsFunc(rest, func(s State) bool { return s.Attempts != 0 }) {
			t.Fatalf("memory of a copy has %+v of another", rest)
		}
		c.recycle()
	}
}

// TestFree has the memory of a message serve others, while parts of it are in use.
func TestFree(t *testing.T) {
	h := open(t, nil)
	put := func(rcpt string) *Lease {
		t.Helper()
		d := draft(t, rcpt)
		d.Trace = []byte("Received: for " + rcpt + "\r\n")
		if err := h.Put(t.Context(), d, []byte("text\r\n")); err != nil {
			t.Fatal(err)
		}
		l, err := h.Claim(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := put("first@example.com")
	if l.Free(); l.Message == nil || l.Message.States[0].Disposition != mail.Queued {
		t.Fatal("a lease that has not ended lost its message")
	}
	m := *l.Message
	settle := func(l *Lease) {
		t.Helper()
		if err := h.Settle(t.Context(), l, Settlement{Outcomes: outcomes(l, mail.Relayed)}); err != nil {
			t.Fatal(err)
		}
		l.Free()
		l.Free() // does nothing more
	}
	settle(l)
	if l.Message != nil {
		t.Error("a lease that is freed has a message")
	}
	for i := range 20 {
		l := put(fmt.Sprintf("u%d@example.com", i))
		if got := l.Message; got.UID == m.UID || got.HeldBy != "" || len(got.States) != 1 || got.States[0].Attempts != 0 || got.States[0].Last != (mail.Reply{}) {
			t.Errorf("a message has what another had: %+v", got)
		}
		settle(l)
	}
	if got := m.Envelope.Recipients[0].Address.String(); got != "first@example.com" {
		t.Errorf("recipient %s, want first@example.com", got)
	}
	if got, want := string(m.Trace), "Received: for first@example.com\r\n"; got != want {
		t.Errorf("trace %q, want %q", got, want)
	}
}
