package logtrack

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// The oracle answers queries by reading the JSON form of every record, one by
// one. It shares nothing with the store but the words.

type fact struct {
	json map[string]any
	line string
	rec  event.Record
}

func factOf(t testing.TB, r event.Record) fact {
	t.Helper()
	f := fact{line: jsonOf(t, &r), rec: r}
	dec := json.NewDecoder(strings.NewReader(f.line))
	if err := dec.Decode(&f.json); err != nil {
		t.Fatal(err)
	}
	return f
}

// values are the texts under the keys, of the fact and of its recipients.
func (f *fact) values(keys ...string) (list []string) {
	put := func(v any) {
		switch x := v.(type) {
		case string:
			if x != "" {
				list = append(list, x)
			}
		case float64:
			if x != 0 {
				list = append(list, fmt.Sprint(int64(x)))
			}
		}
	}
	for _, k := range keys {
		if key, child := strings.CutPrefix(k, "recipients."); child {
			rcpts, _ := f.json["recipients"].([]any)
			for _, r := range rcpts {
				put(r.(map[string]any)[key])
			}
			continue
		}
		put(f.json[k])
	}
	return list
}

func naiveGlob(pattern, s string) bool {
	if pattern == "" {
		return s == ""
	}
	if pattern[0] == '*' {
		for i := 0; i <= len(s); i++ {
			if naiveGlob(pattern[1:], s[i:]) {
				return true
			}
		}
		return false
	}
	return s != "" && s[0] == pattern[0] && naiveGlob(pattern[1:], s[1:])
}

func naiveAddress(want, got string) bool {
	want, got = strings.ToLower(want), strings.ToLower(got)
	if d, ok := strings.CutPrefix(want, "@"); ok {
		_, gd, _ := strings.Cut(got, "@")
		return gd == d
	}
	return naiveGlob(want, got)
}

// naive reports whether a fact passes one term, its negation apart.
func (f *fact) naive(term trackapi.Term) bool {
	some := func(list []string, ok func(string) bool) bool { return slices.ContainsFunc(list, ok) }
	oneOf := func(s string) bool { return slices.Contains(strings.Split(term.Value, ","), s) }
	v := term.Value
	switch term.Field {
	case "sender":
		return some(f.values("mail_from"), func(s string) bool { return naiveAddress(v, s) })
	case "recipient":
		return some(f.values("recipient", "recipients.address"), func(s string) bool { return naiveAddress(v, s) })
	case "domain":
		return some(f.values("recipient", "recipients.address"), func(s string) bool { return naiveAddress("*@"+v, s) })
	case "message_id":
		return some(f.values("header_message_id"), func(s string) bool { return strings.Trim(s, "<>") == strings.Trim(v, "<>") })
	case "queue_id":
		return some(f.values("queue_id"), func(s string) bool { return strings.HasPrefix(s, v) })
	case "client_ip":
		return some(f.values("client_ip"), func(s string) bool {
			a := netip.MustParseAddr(s)
			if n, err := netip.ParsePrefix(v); err == nil {
				return n.Contains(a)
			}
			return a == netip.MustParseAddr(v)
		})
	case "auth_user":
		return some(f.values("auth_user"), func(s string) bool { return naiveGlob(v, s) })
	case "connector":
		return some(f.values("connector", "connector_in", "connector_out"), oneOf)
	case "remote_host":
		return some(f.values("remote_name", "remote_ip"), func(s string) bool { return naiveGlob(v, s) })
	case "class":
		return some(f.values("class", "recipients.class"), oneOf)
	case "event":
		return oneOf(f.json["event"].(string))
	case "disposition":
		name := strings.TrimPrefix(f.json["event"].(string), "recipient_")
		if name == "message_queued" {
			name = "queued"
		}
		final := slices.Contains([]string{"queued", "relayed", "bounced", "expired", "dropped"}, name)
		return final && oneOf(name) || some(f.values("disposition", "recipients.disposition"), oneOf)
	case "code":
		return some(f.values("code", "recipients.code", "enhanced", "recipients.enhanced"), func(s string) bool {
			return s == v || len(v) == 3 && v[1:] == "xx" && len(s) == 3 && s[0] == v[0]
		})
	case "min_latency":
		d, _ := trackapi.ParseDuration(v)
		n, _ := f.json["t_total"].(float64)
		return n >= d.Seconds()
	case "max_latency":
		d, _ := trackapi.ParseDuration(v)
		n, _ := f.json["t_total"].(float64)
		return n > 0 && n <= d.Seconds()
	case "min_size", "max_size":
		limit, _ := trackapi.ParseSize(v)
		n, _ := f.json["size"].(float64)
		return n > 0 && (term.Field == "min_size" && int64(n) >= limit || term.Field == "max_size" && int64(n) <= limit)
	case "subject", "reason", "node", "source":
		return some(f.values(term.Field), func(s string) bool { return naiveGlob(strings.ToLower(v), strings.ToLower(s)) })
	}
	panic(term.Field)
}

func randomTerm(rng *rand.Rand, facts []fact) trackapi.Term {
	pick := func(list ...string) string { return list[rng.IntN(len(list))] }
	f := facts[rng.IntN(len(facts))]
	from := func(keys ...string) string {
		if l := f.values(keys...); len(l) > 0 {
			return l[rng.IntN(len(l))]
		}
		return "none@nowhere.example"
	}
	t := trackapi.Term{Field: pick("sender", "recipient", "domain", "message_id", "queue_id", "client_ip", "auth_user", "connector", "remote_host", "class", "event", "disposition", "code", "min_latency", "max_latency", "min_size", "max_size", "subject", "reason", "node", "source")}
	switch t.Field {
	case "sender":
		t.Value = from("mail_from")
		if t.Value != "<>" {
			local, _, _ := strings.Cut(t.Value, "@")
			t.Value = pick(t.Value, strings.ToUpper(t.Value), "@brand7.example", "*-1*", "noreply*", local+"@*", "*@*.example")
		}
	case "recipient":
		t.Value = pick(from("recipient", "recipients.address"), "@gmail.example", "anna*", "*@dom*", "*copy*")
	case "domain":
		t.Value = pick("gmail.example", "*.test", "dom3.test", "*.example")
	case "message_id":
		t.Value = pick(from("header_message_id"), strings.Trim(from("header_message_id"), "<>"))
	case "queue_id":
		t.Value = from("queue_id")
		if len(t.Value) != 26 {
			t.Value = "01J9ZZZZZZ"
		} else if rng.IntN(2) == 0 {
			t.Value = t.Value[:6+rng.IntN(14)]
		}
	case "client_ip":
		t.Value = pick("10.1.1.1", "10.0.0.0/8", "10.2.0.0/16")
	case "auth_user":
		t.Value = pick("app1", "app*", "app39")
	case "connector":
		t.Value = pick("internet", "submission", "internet,submission")
	case "remote_host":
		t.Value = pick("mx0.gmail.example", "mx*", "*.test", "198.51.0.0")
	case "class":
		t.Value = pick("greylist", "invalid_recipient", "greylist,invalid_recipient", "size")
	case "event":
		t.Value = pick("message_queued", "recipient_relayed,recipient_bounced", "attempt_finished", "session_closed")
	case "disposition":
		t.Value = pick("relayed", "bounced", "deferred", "bounced,deferred", "queued")
	case "code":
		t.Value = pick("550", "4xx", "5.1.1", "2xx")
	case "min_latency", "max_latency":
		t.Value = pick("100ms", "1m", "6m")
	case "min_size", "max_size":
		t.Value = pick("1", "4KiB", "20000", "1MiB")
	case "subject":
		t.Value = pick(from("subject"), "*a*", "x*")
	case "reason", "node", "source":
		t.Value = pick(from(t.Field), "queue", "relay*")
	}
	return t
}

// oracleStore is a store with the facts of some messages, in several sealed
// blocks, one waiting and one open, and the same facts for the oracle.
func oracleStore(t *testing.T, seed uint64, messages int) (*Store, []fact) {
	s := openStore(t, t.TempDir())
	m := newMailer(seed)
	m.step = time.Second
	var recs []event.Record
	for range messages {
		recs = append(recs, m.next()...)
	}
	slices.SortFunc(recs, func(a, b event.Record) int {
		return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.ID, b.ID))
	})
	facts := make([]fact, len(recs))
	for i := range recs {
		facts[i] = factOf(t, recs[i])
		s.Write(&recs[i])
		if i%(len(recs)/6) == len(recs)/12 { // smaller blocks than usual
			s.mu.Lock()
			s.rotate()
			s.mu.Unlock()
		}
	}
	return s, facts
}

func TestEventsEqualOracle(t *testing.T) {
	s, facts := oracleStore(t, 11, 250)
	rng := rand.New(rand.NewPCG(3, 3))
	for i := range 160 {
		terms := []trackapi.Term{}
		var words []string
		for range 1 + rng.IntN(3) {
			term := randomTerm(rng, facts)
			term.Not = rng.IntN(5) == 0
			terms = append(terms, term)
			words = append(words, term.String())
		}
		from := facts[rng.IntN(len(facts)/2)].rec.Time
		q := trackapi.Query{Q: strings.Join(words, " "), From: from, To: from.Add(time.Duration(rng.Int64N(int64(10 * time.Minute)))), Limit: 1 + rng.IntN(40), Sort: []string{"time", "-time", ""}[rng.IntN(3)]}
		if !q.From.Before(q.To) {
			continue
		}
		var want []string
		for _, f := range facts {
			ok := !f.rec.Time.Before(q.From) && f.rec.Time.Before(q.To)
			for _, term := range terms {
				ok = ok && f.naive(term) != term.Not
			}
			if ok {
				want = append(want, f.line)
			}
		}
		if q.Sort != "time" {
			slices.Reverse(want)
		}
		var got []string
		for {
			page, err := s.Events(t.Context(), q)
			if err != nil {
				t.Fatalf("%d %q: %v", i, q.Q, err)
			}
			for _, e := range page.Events {
				got = append(got, string(e))
			}
			if page.Cut != "" {
				t.Fatalf("cut: %s", page.Cut)
			}
			if page.Cursor == "" {
				break
			}
			q.Cursor = page.Cursor
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%d %q sort %q from %s to %s: %d facts, want %d", i, q.Q, q.Sort, q.From, q.To, len(got), len(want))
		}
	}
}

// naiveMessages groups facts by message.
func naiveMessages(facts []fact) map[string][]fact {
	m := map[string][]fact{}
	for _, f := range facts {
		if f.rec.Message != "" {
			m[string(f.rec.Message)] = append(m[string(f.rec.Message)], f)
		}
	}
	return m
}

// naiveDisposition is the worst of the last states of the recipients that ok selects.
func naiveDisposition(facts []fact, ok func(address string) bool) string {
	state := map[string]string{}
	for _, f := range facts {
		switch name := f.json["event"].(string); name {
		case "message_queued":
			for _, a := range f.values("recipients.address") {
				state[a] = "queued"
			}
		case "attempt_finished":
			for _, r := range f.json["recipients"].([]any) {
				r := r.(map[string]any)
				state[r["address"].(string)] = r["disposition"].(string)
			}
		case "recipient_relayed", "recipient_bounced":
			state[f.json["recipient"].(string)] = strings.TrimPrefix(name, "recipient_")
		}
	}
	chosen := map[string]bool{}
	for a, d := range state {
		if ok(a) {
			chosen[d] = true
		}
	}
	if len(chosen) == 0 {
		for _, d := range state {
			chosen[d] = true
		}
	}
	for _, d := range []string{"bounced", "deferred", "queued", "relayed"} {
		if chosen[d] {
			return d
		}
	}
	return ""
}

func TestMessagesEqualOracle(t *testing.T) {
	s, facts := oracleStore(t, 12, 250)
	groups := naiveMessages(facts)
	rng := rand.New(rand.NewPCG(4, 4))
	nonEmpty := 0
	for i := range 160 {
		var terms []trackapi.Term
		var words []string
		for range 1 + rng.IntN(3) {
			term := randomTerm(rng, facts)
			if term.Field == "min_latency" || term.Field == "disposition" && slices.ContainsFunc(terms, func(o trackapi.Term) bool { return o.Field == "disposition" }) {
				continue // asked of the row; two lists of dispositions are one
			}
			term.Not = rng.IntN(5) == 0
			terms = append(terms, term)
			words = append(words, term.String())
		}
		q := trackapi.Query{Q: strings.Join(words, " "), From: facts[0].rec.Time.Add(-time.Hour), Limit: 1 + rng.IntN(40), Sort: []string{"time", "-time"}[rng.IntN(2)]}
		if rng.IntN(3) == 0 {
			q.From = facts[rng.IntN(len(facts)/2)].rec.Time
		}
		var want []string
		for id, group := range groups {
			if at := mail.IDTime(id); at.Add(time.Millisecond).Before(q.From.Add(1)) {
				continue
			}
			selects := func(a string) bool {
				for _, term := range terms {
					if term.Not {
						continue
					}
					switch term.Field {
					case "recipient":
						if !naiveAddress(term.Value, a) {
							return false
						}
					case "domain":
						if !naiveAddress("*@"+term.Value, a) {
							return false
						}
					}
				}
				return true
			}
			ok, one := true, false
			for _, f := range group {
				all := true
				for _, term := range terms {
					switch {
					case term.Field == "disposition":
					case term.Not:
						ok = ok && !f.naive(term)
					default:
						all = all && f.naive(term)
					}
				}
				one = one || all
			}
			for _, term := range terms {
				if term.Field == "disposition" {
					ok = ok && slices.Contains(strings.Split(term.Value, ","), naiveDisposition(group, selects)) != term.Not
				}
			}
			if ok && one {
				want = append(want, id)
			}
		}
		slices.Sort(want)
		if q.Sort != "time" {
			slices.Reverse(want)
		}
		var got []string
		for {
			page, err := s.Messages(t.Context(), q)
			if err != nil {
				t.Fatalf("%d %q: %v", i, q.Q, err)
			}
			for _, m := range page.Messages {
				got = append(got, m.QueueID)
			}
			if page.Cursor == "" {
				break
			}
			if len(page.Messages) != q.Limit {
				t.Fatalf("a page of %d of %d has a next page", len(page.Messages), q.Limit)
			}
			q.Cursor = page.Cursor
		}
		if len(want) > 0 {
			nonEmpty++
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%d %q sort %q from %s: %d messages, want %d\n%v\n%v", i, q.Q, q.Sort, q.From, len(got), len(want), got, want)
		}
	}
	if nonEmpty < 50 {
		t.Errorf("only %d queries had an answer", nonEmpty)
	}
}

// TestReplayLaw: the index over the live stream equals the index over the
// parsed log lines.
func TestReplayLaw(t *testing.T) {
	s, facts := oracleStore(t, 13, 300)
	rng := rand.New(rand.NewPCG(9, 9))
	var log bytes.Buffer
	log.WriteString("not a record\n{\"level\":\"info\"}\n")
	for i, f := range facts {
		log.WriteString(f.line + "\n")
		if rng.IntN(10) == 0 {
			log.WriteString(facts[rng.IntN(i+1)].line + "\n") // written twice
		}
	}
	parsed := openStore(t, t.TempDir())
	done, err := parsed.Reindex(t.Context(), &log)
	if err != nil {
		t.Fatal(err)
	}
	if done.Added != len(facts) || done.Other != 2 {
		t.Errorf("Reindex = %+v, want %d added and 2 other lines", done, len(facts))
	}
	var a, b bytes.Buffer
	for s, w := range map[*Store]*bytes.Buffer{s: &a, parsed: &b} {
		if _, err := s.Export(t.Context(), w, time.Time{}, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Errorf("the two indexes differ: %d and %d octets", a.Len(), b.Len())
	}
	if got := bytes.Count(a.Bytes(), []byte("\n")); got != len(facts) {
		t.Errorf("export has %d lines, want %d", got, len(facts))
	}
	var q trackapi.Query
	q.From = facts[0].rec.Time.Add(-time.Minute)
	q.Limit = 1000
	x := must1[*trackapi.Messages](t)(s.Messages(t.Context(), q))
	y := must1[*trackapi.Messages](t)(parsed.Messages(t.Context(), q))
	x.TookMS, y.TookMS = 0, 0
	for i := range x.Messages {
		x.Messages[i].Latency, y.Messages[min(i, len(y.Messages)-1)].Latency = 0, 0
	}
	if fmt.Sprint(x) != fmt.Sprint(y) {
		t.Error("messages differ")
	}
}
