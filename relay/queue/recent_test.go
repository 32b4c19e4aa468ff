package queue

import (
	"io"
	"strings"
	"testing"
	"time"

	"waybill/relay/mail"

	"github.com/google/go-cmp/cmp"
)

// TestRecentRecordIsAsRead compares what a claim gets from memory with what is
// on the disk, for a draft that has something in every field.
func TestRecentRecordIsAsRead(t *testing.T) {
	h := open(t, nil)
	zone := time.FixedZone("there", 3600)
	d := fullRecord().Draft
	d.Changed = "newlines"
	d.Origin.MailAt = time.Now()
	d.Origin.DataEndedAt = time.Now().In(zone)
	d.Envelope.Release = time.Time{}
	d.Envelope.DeliverBy.Deadline = time.Now().Add(time.Hour).In(zone)
	trace, rcpts := d.Trace, d.Envelope.Recipients
	if err := h.Put(t.Context(), d, []byte("content")); err != nil {
		t.Fatal(err)
	}
	for i := range trace { // the draft's memory is its owner's again
		trace[i] = '?'
	}
	rcpts[0].Address.Local = "else"

	id, _ := parseIdent(d.ID)
	want, err := h.read(id)
	if err != nil {
		t.Fatal(err)
	}
	got := h.recent.record(id)
	if got == nil {
		t.Fatal("it is not remembered")
	}
	if d := cmp.Diff(want, got, compareStored); d != "" {
		t.Errorf("remembered (-read +remembered):\n%s", d)
	}
}

// TestRecentContent has a content read from memory once, and from the disk then.
func TestRecentContent(t *testing.T) {
	h := open(t, nil)
	in, err := h.Begin(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "some content"); err != nil {
		t.Fatal(err)
	}
	if err := in.Commit(t.Context(), draft(t, "a@example.com")); err != nil {
		t.Fatal(err)
	}
	if h.recent.octets == 0 {
		t.Error("nothing is remembered")
	}
	l := h.claim(t)
	if h.recent.octets > bufferSizes[0] {
		t.Errorf("%d octets are remembered after the claim, want no more than a content", h.recent.octets)
	}
	for _, from := range []string{"memory", "the disk"} {
		r, err := l.Open()
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || string(got) != "some content" {
			t.Errorf("from %s: %q, %v", from, got, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if h.recent.octets != 0 || len(h.recent.items) != 0 {
			t.Errorf("%d octets of %d messages are remembered, want none", h.recent.octets, len(h.recent.items))
		}
	}
	h.settle(t, l, mail.Relayed, time.Time{})
}

// TestRecentIsChanged has a message changed before it is claimed.
func TestRecentIsChanged(t *testing.T) {
	h := open(t, nil)
	id := h.put(t, "x", "a@example.com")
	for _, action := range []string{"hold", "release"} {
		if _, err := h.Act(t.Context(), Action{Action: action, Filter: Filter{ID: id}, Actor: "op"}); err != nil {
			t.Fatal(err)
		}
	}
	l := h.claim(t)
	at, _ := parseIdent(id)
	want, err := h.read(at)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, l.stored, compareStored); d != "" {
		t.Errorf("claimed (-read +claimed):\n%s", d)
	}
	l.Release()
}

// TestRecentComesAgain has a message removed and accepted again, with its identity
// and another content, when nothing more can be remembered.
func TestRecentComesAgain(t *testing.T) {
	for _, test := range []struct {
		name string
		full bool
	}{
		{"remembered", false},
		{"no room", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := open(t, nil)
			d := draft(t, "a@example.com")
			if err := h.Put(t.Context(), d, []byte("first")); err != nil {
				t.Fatal(err)
			}
			if _, err := h.Act(t.Context(), Action{Action: "remove", Filter: Filter{ID: d.ID}, Actor: "op"}); err != nil {
				t.Fatal(err)
			}
			if test.full {
				h.recent.add(ident{1}, &stored{}, recentOctets-h.recent.octets, time.Now())
			}
			d.Envelope.Recipients[0].Address = address(t, "b@example.com")
			if err := h.Put(t.Context(), d, []byte("the second")); err != nil {
				t.Fatal(err)
			}
			l := h.claim(t)
			if got := l.Message.Envelope.Recipients[0].Address.String(); got != "b@example.com" {
				t.Errorf("the recipient is %s, want b@example.com", got)
			}
			r, err := l.Open()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if got, err := io.ReadAll(r); err != nil || string(got) != "the second" {
				t.Errorf("the content is %q, %v, want that of the second", got, err)
			}
			h.settle(t, l, mail.Relayed, time.Time{})
		})
	}
}

func TestRecentBounds(t *testing.T) {
	r := &recent{}
	now := time.Now()
	name := func(i int) (id ident) {
		id[0], id[1] = byte(i>>8), byte(i)
		return id
	}
	const n = 200
	contents := 0
	for i := range n {
		r.add(name(i), &stored{}, 1000, now)
		if b := getBuffer(smallContent); r.addContent(name(i), b, 1, now) {
			contents++
		}
		if r.octets > recentOctets {
			t.Fatalf("%d octets are remembered, at most %d", r.octets, recentOctets)
		}
	}
	if contents == 0 || contents == n {
		t.Errorf("%d contents of %d are remembered, want some", contents, n)
	}
	if r.addContent(name(n), &buffer{make([]byte, 10)}, 1, now) {
		t.Error("the content of a message that is not known was taken")
	}
	for range 2 { // the second time nothing is left
		if b, _ := r.contentOf(name(0)); b != nil {
			putBuffer(b)
			contents--
		}
		r.record(name(0))
	}
	if _, known := r.items[name(0)]; known {
		t.Error("a message is remembered of which everything was given out")
	}
	r.add(name(n), &stored{}, 1000, now.Add(time.Second))
	later := now.Add(recentFor + time.Second/2) // the others have had their time
	r.add(name(n+1), &stored{}, recentOctets-3000, later)
	if r.record(name(n+1)) == nil {
		t.Error("what is old has not made room")
	}
	if r.record(name(n)) == nil {
		t.Error("what is not old has been forgotten")
	}
	r.add(name(n+2), &stored{}, 1000, later)
	r.sweep(later)
	if len(r.items) != 1 {
		t.Errorf("%d are remembered, want the last one", len(r.items))
	}
	r.sweep(later.Add(time.Hour))
	if r.octets != 0 || len(r.items) != 0 || r.oldest != nil || r.newer != nil {
		t.Errorf("%d octets of %d messages are remembered, want none", r.octets, len(r.items))
	}
}

// TestSevenBit: what the sender's side found out of a content is known wherever it is.
func TestSevenBit(t *testing.T) {
	for _, test := range []struct {
		name string
		size int
		want bool
	}{
		{"small", 100, true},
		{"small, not known", 100, false},
		{"large", smallContent + 1, true},
		{"large, not known", smallContent + 1, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := open(t, nil)
			d := draft(t, "a@example.com")
			d.SevenBit = test.want
			if err := h.Put(t.Context(), d, []byte(strings.Repeat("x", test.size))); err != nil {
				t.Fatal(err)
			}
			l := h.claim(t)
			look := func(from string) {
				t.Helper()
				r, err := l.Open()
				if err != nil {
					t.Fatal(err)
				}
				if got := r.(interface{ SevenBit() bool }).SevenBit(); got != test.want {
					t.Errorf("SevenBit() = %t from %s, want %t", got, from, test.want)
				}
				if err := r.Close(); err != nil {
					t.Error(err)
				}
			}
			look("where it came to")
			look("the disk")
			if id, _ := parseIdent(d.ID); test.size <= smallContent {
				m, err := h.read(id)
				if err != nil {
					t.Fatal(err)
				}
				if err := h.moveContent(id, h.contents.find(m.loc.seq)); err != nil {
					t.Fatal(err)
				}
				look("elsewhere")
			}
			h.settle(t, l, mail.Relayed, time.Time{})
		})
	}
}
