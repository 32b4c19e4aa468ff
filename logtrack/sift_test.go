package logtrack

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
)

// TestSiftEqualsView asks filters of a block by a picker and by a view.
func TestSiftEqualsView(t *testing.T) {
	rng := rand.New(rand.NewPCG(62, 1))
	recs := facts(62, 250)
	strange := []string{"Anna.Öst0@gmail.example", "ÜMIT@bücher.example.", "a@xn--bcher-kva.example", "Mixed.Case@GMAIL.Example", "no-domain", "quentin.x@y.example."}
	for i := range recs {
		if ev, ok := recs[i].Event.(event.RecipientRelayed); ok && rng.IntN(3) == 0 {
			ev.Recipient = strange[rng.IntN(len(strange))]
			recs[i].Event = ev
		}
	}
	plain := facts(63, 250)
	blocks := []*encoded{encodeBlock(1, recs), encodeBlock(2, plain), encodeBlock(3, randomRecords(rng, 300))}
	for n := range 12 { // in which messages begin and do not end, or the other way round
		blocks = append(blocks, encodeBlock(uint32(4+n), recs[100*n:100*n+100]))
	}
	terms := []trackapi.Term{
		{Field: "recipient", Value: "*ann*"},
		{Field: "recipient", Value: "*@*.example"},
		{Field: "recipient", Value: "@gmail.example"},
		{Field: "recipient", Value: "@bücher.example"},
		{Field: "recipient", Value: "mixed.case@gmail.example"},
		{Field: "recipient", Value: "*7*@*"},
		{Field: "recipient", Value: "@.example"},
		{Field: "domain", Value: "y.example"},
		{Field: "sender", Value: "*"},
		{Field: "sender", Value: "<>"},
		{Field: "disposition", Value: "bounced"},
		{Field: "disposition", Value: "deferred,relayed"},
		{Field: "code", Value: "550,4.x.x"},
		{Field: "event", Value: "attempt_finished"},
		{Field: "client_ip", Value: "10.0.0.0/8"},
		{Field: "auth_user", Value: "app1"},
		{Field: "connector", Value: "internet"},
		{Field: "min_size", Value: "5KiB"},
	}
	for _, r := range slices.Concat(recs, plain) {
		switch ev := r.Event.(type) { //nolint:gochecksumtype // values to look for
		case event.MessageQueued:
			terms = append(terms, trackapi.Term{Field: "sender", Value: ev.MailFrom}, trackapi.Term{Field: "message_id", Value: ev.HeaderMessageID}, trackapi.Term{Field: "queue_id", Value: string(r.Message)})
		case event.RecipientRelayed:
			if strings.Contains(ev.Recipient, "@") {
				terms = append(terms, trackapi.Term{Field: "recipient", Value: ev.Recipient})
			}
		}
		if len(terms) > 400 {
			break
		}
	}
	found := 0
	for i := range terms {
		list := []trackapi.Term{terms[i]}
		if i%3 == 0 {
			list = append(list, terms[rng.IntN(len(terms))])
		}
		var preds []*pred
		for _, term := range list {
			p, err := compileTerm(term)
			if err != nil {
				t.Fatal(err)
			}
			preds = append(preds, p)
		}
		for _, e := range blocks {
			want, err := viewOf(e).rows(preds, nil)
			if err != nil {
				t.Fatal(err)
			}
			k, err := newPicker(e.head, e.body)
			if err != nil {
				t.Fatal(err)
			}
			some, err := k.sift(preds)
			if err != nil && !errors.Is(err, errNotPicked) {
				t.Fatal(err)
			}
			var got []int
			for row := range k.keep {
				if some && k.keep[row] {
					got = append(got, row)
				}
			}
			if err == nil && !slices.Equal(got, want) {
				t.Errorf("block %d, %+v: rows %v by a picker, want %v", e.head.seq, list, got, want)
			}
			found += len(got)
			k.release()
			compareCandidates(t, e, preds)
		}
	}
	if found == 0 {
		t.Error("no row passes anything")
	}
}

// compareCandidates compares the messages that a picker finds in a block with
// those of the rows that a view finds.
func compareCandidates(t *testing.T, e *encoded, preds []*pred) {
	t.Helper()
	v := viewOf(e)
	rows, err := v.rows(preds, nil)
	if err == nil {
		err = v.need("queue_id")
	}
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, row := range rows {
		at, in := v.typeOf(row)
		if id := v.col("queue_id").textAt(at, in); acceptMS(id) > 0 {
			want = append(want, id)
		}
	}
	k, err := newPicker(e.head, e.body)
	if err != nil {
		t.Fatal(err)
	}
	defer k.release()
	list, codes, err := k.candidates(preds, &filter{from: -1 << 62, to: 1 << 62})
	if errors.Is(err, errNotPicked) {
		return
	}
	if err != nil || len(list) != len(codes) {
		t.Fatalf("%d messages, %d codes, %v", len(list), len(codes), err)
	}
	var got []string
	for _, pos := range list {
		got = append(got, pos.id)
	}
	slices.Sort(got)
	slices.Sort(want)
	if want = slices.Compact(want); !slices.Equal(got, want) {
		t.Errorf("block %d, %+v: messages %v by a picker, want %v", e.head.seq, preds[0].term, got, want)
	}
}

func TestIsFolded(t *testing.T) {
	for _, test := range []struct {
		text string
		want bool
	}{
		{"", true},
		{"a.b-c+1@example.com", true},
		{"@[`{", true},
		{"12345678A", false},
		{"1234Z678", false},
		{"A", false},
		{"1234567é", false},
		{"é", false},
	} {
		t.Run(test.text, func(t *testing.T) {
			if got := isFolded([]byte(test.text)); got != test.want {
				t.Errorf("isFolded(%q) = %t, want %t", test.text, got, test.want)
			}
		})
	}
	for c := range 256 {
		want := c < 0x80 && (c < 'A' || c > 'Z')
		for at := range 9 {
			b := []byte("abcdefghi")
			b[at] = byte(c)
			if got := isFolded(b); got != want {
				t.Fatalf("isFolded(%q) = %t, want %t", b, got, want)
			}
		}
	}
}

// FuzzSift reads bodies that may be damaged, with filters of every kind.
func FuzzSift(f *testing.F) {
	recs := facts(64, 40)
	e := encodeBlock(1, recs)
	f.Add(e.body, "*ann*", "gmail.example")
	f.Add(e.body, "<>", "y.example")
	f.Fuzz(func(_ *testing.T, body []byte, address, domain string) {
		if len(body) < bodyStart {
			return
		}
		body = sign(slices.Clone(body))
		k, err := newPicker(e.head, body)
		if err != nil {
			return
		}
		defer k.release()
		for _, term := range []trackapi.Term{{Field: "recipient", Value: address}, {Field: "domain", Value: domain}, {Field: "disposition", Value: "bounced"}, {Field: "code", Value: "5xx"}} {
			if p, err := compileTerm(term); err == nil {
				_, _, _ = k.candidates([]*pred{p}, &filter{to: 1 << 60}) // only that it ends
			}
		}
	})
}
