package mail

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestNewID(t *testing.T) {
	at := time.UnixMilli(1_760_000_000_123)
	last := ""
	for i := range 10_000 {
		id := NewID(at.Add(-time.Duration(i%3) * time.Millisecond)) // the clock may step back a little
		if !ValidID(id) || id <= last {
			t.Fatalf("NewID = %q after %q", id, last)
		}
		last = id
	}
	if got := IDTime(NewID(at.Add(time.Hour))); !got.Equal(at.Add(time.Hour)) {
		t.Errorf("IDTime = %v, want %v", got, at.Add(time.Hour))
	}
	if got := IDTime(NewID(at)); !got.Equal(at) { // more than a small step back: the true time counts
		t.Errorf("IDTime = %v, want %v", got, at)
	}
	for _, bad := range []string{"", "x", "8ZZZZZZZZZZZZZZZZZZZZZZZZZ", "01ARZ3NDEKTSV4RRFFQ69G5FAU", "01arz3ndektsv4rrffq69g5fav", "01ARZ3NDEKTSV4RRFFQ69G5FA!"} {
		if ValidID(bad) || !IDTime(bad).IsZero() {
			t.Errorf("ValidID(%q) = true", bad)
		}
	}
	if !ValidID("01ARZ3NDEKTSV4RRFFQ69G5FAV") || IDTime("01ARZ3NDEKTSV4RRFFQ69G5FAV").UnixMilli() != 1469922850259 { // the specification's example
		t.Error("the specification's example is not understood")
	}
}

func TestNewIDIsUniqueAtOnce(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			ids := make([]string, 0, 2000)
			for range cap(ids) {
				ids = append(ids, NewID(time.Now()))
			}
			mu.Lock()
			defer mu.Unlock()
			for _, id := range ids {
				if seen[id] {
					t.Errorf("%s came twice", id)
				}
				seen[id] = true
			}
		})
	}
	wg.Wait()
}

func TestNewUID(t *testing.T) {
	at := time.UnixMilli(1_645_557_742_000) // RFC 9562 appendix A.6
	uid := NewUID(at)
	if len(uid) != 36 || uid[:15] != "017f22e2-79b0-7" || !slices.Contains([]byte("89ab"), uid[19]) {
		t.Errorf("NewUID = %s, want 017f22e2-79b0-7… with variant 10", uid)
	}
	if NewUID(at) == uid {
		t.Error("NewUID gave the same identity twice")
	}
}

func TestDisposition(t *testing.T) {
	final := []string{"relayed", "bounced", "expired", "dropped", "moved"}
	for _, word := range Dispositions() {
		var d Disposition
		if err := d.UnmarshalText([]byte(word)); err != nil || d.String() != word {
			t.Errorf("disposition %q reads as %v, %v", word, d, err)
		}
		if d.Final() != slices.Contains(final, word) {
			t.Errorf("%s.Final() = %t", d, d.Final())
		}
	}
	var d Disposition
	if d.UnmarshalText([]byte("lost")) == nil || Disposition(99).String() != "disposition(99)" || Disposition(99).Final() {
		t.Error("an unknown disposition passes for a known one")
	}
}

func TestPriority(t *testing.T) {
	for _, p := range []Priority{PriorityLow, PriorityNormal, PriorityHigh} {
		text, err := p.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var got Priority
		if err := got.UnmarshalText(text); err != nil || got != p {
			t.Errorf("priority %s reads as %s, %v", p, got, err)
		}
	}
}

func TestReply(t *testing.T) {
	for _, test := range []struct {
		name      string
		reply     Reply
		temporary bool
		want      string
	}{
		{"greylisted", Reply{451, "4.7.1", "try again"}, true, "451 4.7.1 try again"},
		{"no such user", Reply{550, "5.1.1", "no such\nuser"}, false, "550 5.1.1 no such user"},
		{"no reply at all", Reply{}, true, ""},
		{"code alone", Reply{Code: 421}, true, "421"},
		{"text alone", Reply{Text: "timeout"}, true, "timeout"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.reply.String(); got != test.want {
				t.Errorf("String() = %q, want %q", got, test.want)
			}
			if got := (&ReplyError{Reply: test.reply}).Temporary(); got != test.temporary {
				t.Errorf("Temporary() = %t, want %t", got, test.temporary)
			}
		})
	}
}

func TestReplyError(t *testing.T) {
	cause := errors.New("disk is full")
	e := Refuse(452, "4.3.1", "storage", "try again later")
	if e.Error() != "452 4.3.1 try again later" || e.Reason != "storage" {
		t.Errorf("Refuse = %v", e)
	}
	e.Err = cause
	if !errors.Is(e, cause) || e.Error() != "disk is full" {
		t.Errorf("with a cause: %v", e)
	}
}

func BenchmarkNewID(b *testing.B) {
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		NewID(now)
	}
}
