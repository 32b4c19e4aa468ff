package logtrack

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/mail"
)

// TestPostingsOfAStoredBlock works the postings out of a block's columns, and
// compares them with those that its facts gave.
func TestPostingsOfAStoredBlock(t *testing.T) {
	rng := rand.New(rand.NewPCG(61, 1))
	for round := range 40 {
		recs := randomRecords(rng, 200)
		if round%2 == 0 {
			recs = facts(uint64(round), 60)
		}
		e := encodeBlock(1, recs)
		got, err := postingsOf(viewOf(e))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, e.posts) {
			t.Errorf("round %d: %d postings of the stored block, %d of its facts", round, len(got), len(e.posts))
		}
		if !slices.ContainsFunc(e.posts, func(p posting) bool { return p.kind() == postUndelivered }) {
			t.Errorf("round %d: no posting of an undelivered recipient", round)
		}
	}
}

func TestOnlySearchesForTheUndeliveredUseTheirIndex(t *testing.T) {
	for _, test := range []struct {
		name string
		want bool
	}{
		{"bounced", true},
		{"expired,dropped", true},
		{"bounced,relayed", false},
		{"deferred", false},
		{"queued", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, err := compileTerm(trackapi.Term{Field: "disposition", Value: test.name})
			if err != nil || p.failed != test.want {
				t.Errorf("failed = %t, %v, want %t", p.failed, err, test.want)
			}
		})
	}
}

// TestUndeliveredOfAnOlderIndex asks a store whose run has postings of
// undelivered recipients, and then as if an older version had written it.
func TestUndeliveredOfAnOlderIndex(t *testing.T) {
	s, from := rollupStore(t)
	all, err := s.Messages(t.Context(), trackapi.Query{From: from.Add(-time.Hour), Disposition: "bounced", Limit: trackapi.MaxLimit})
	if err != nil || all.Cursor != "" {
		t.Fatalf("%v, cursor %q", err, all.Cursor)
	}
	bySender, byDomain := map[string][]string{}, map[string][]string{}
	for _, m := range all.Messages {
		bySender[addressKey(m.Sender)] = append(bySender[addressKey(m.Sender)], m.QueueID)
		for _, rc := range m.Recipients {
			if d := domainOf(rc.Address); rc.Disposition == mail.Bounced.String() && !slices.Contains(byDomain[d], m.QueueID) {
				byDomain[d] = append(byDomain[d], m.QueueID)
			}
		}
	}
	if len(bySender) < 2 || len(byDomain) < 2 {
		t.Fatalf("%d senders and %d domains of messages that bounced", len(bySender), len(byDomain))
	}
	ask := func(q trackapi.Query, want []string) {
		t.Helper()
		q.From, q.Disposition, q.Limit = from.Add(-time.Hour), "bounced", trackapi.MaxLimit
		got, err := s.Messages(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, m := range got.Messages {
			ids = append(ids, m.QueueID)
		}
		if !slices.Equal(ids, want) {
			t.Errorf("%d messages for %+v, want %d", len(ids), q, len(want))
		}
	}
	for _, version := range []byte{runVersion, 1} {
		for _, r := range s.parts[0].runs {
			r.version = version
		}
		for d, want := range byDomain {
			ask(trackapi.Query{Domain: d}, want)
		}
		for sender, want := range bySender {
			ask(trackapi.Query{Sender: sender}, want)
		}
	}
}
