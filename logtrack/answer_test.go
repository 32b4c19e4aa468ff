package logtrack

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// story is a store with the facts of one message that was deferred, late, then
// relayed for one recipient and bounced for the other, with a report.
func story(t *testing.T) (*Store, mail.QueueID, mail.QueueID) {
	s := openStore(t, t.TempDir())
	t0 := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	id, dsn := mail.QueueID(mail.NewID(t0)), mail.QueueID(mail.NewID(t0.Add(10*time.Minute)))
	info := event.Info{MailFrom: "Alice@Example.COM", HeaderMessageID: "<one@example.com>", Size: 2048, ConnectorIn: "submission", ClientIP: netip.MustParseAddr("192.0.2.9"), AuthUser: "alice"}
	hop := event.Hop{ConnectorOut: "internet", Queue: "bücher.example", Provider: "other", RemoteName: "mx1.example.net", RemoteIP: netip.MustParseAddr("198.51.100.7"), RemotePort: 25}
	write := func(after time.Duration, session string, id mail.QueueID, ev event.Event) {
		at := t0.Add(after)
		s.Write(&event.Record{ID: mail.NewID(at), Time: at, Node: "mx1", Source: event.SourceQueue, Session: session, Message: id, UID: "u1", Event: ev})
	}
	bob, carol := event.Recipient{Address: "Bob@bücher.example"}, event.Recipient{Address: "carol@bücher.example"}
	write(0, "S1", id, event.MessageQueued{Info: info, Recipients: []event.Recipient{bob, carol}, TReceive: event.Secs(300 * time.Millisecond), TAccept: event.Secs(5 * time.Millisecond)})
	write(time.Second, "S1", "", event.SessionClosed{Direction: event.Inbound, Connector: "submission", ClientIP: info.ClientIP, Cause: "quit", Duration: event.Secs(time.Second)})
	write(time.Second, "S1", "", event.TranscriptKept{
		Direction: event.Inbound, Connector: "submission", ClientIP: info.ClientIP, Reason: "slow", Began: t0, Lines: 2,
		Transcript: []event.Line{{Seq: 1, From: "server", Text: "220 hello"}, {Seq: 2, From: "client", Text: "EHLO a"}},
	})
	write(time.Second, "S9", "", event.TranscriptKept{Direction: event.Inbound, Connector: "submission", ClientIP: info.ClientIP, Reason: "failed", Began: t0, Lines: 1, Transcript: []event.Line{{Seq: 1, From: "server", Text: "220 another"}}})
	with := func(r event.Recipient, d mail.Disposition, code int, class mail.Class) event.Recipient {
		r.Disposition, r.Code, r.Class = d, code, class
		return r
	}
	grey := event.Answer{Code: 451, Enhanced: "4.7.1", Reply: "greylisted", Verb: "RCPT", Class: mail.ClassGreylist}
	write(2*time.Second, "", id, event.AttemptFinished{
		Info: info, Hop: hop, Answer: grey, Disposition: mail.Deferred, OutSession: "S2", Attempt: 1,
		Recipients: []event.Recipient{with(bob, mail.Deferred, 451, mail.ClassGreylist), with(carol, mail.Deferred, 451, mail.ClassGreylist)},
		TSched:     event.Secs(100 * time.Millisecond), Stages: event.Stages{TDNS: event.Secs(50 * time.Millisecond), TConnect: event.Secs(150 * time.Millisecond)},
		NextAttempt: t0.Add(62 * time.Second),
	})
	write(2*time.Second, "S2", id, event.TranscriptKept{
		Direction: event.Outbound, Connector: "internet", RemoteName: hop.RemoteName, RemoteIP: hop.RemoteIP, Attempt: 1, Reason: "failed", Began: t0.Add(time.Second), Lines: 9, Cut: 8,
		Transcript: []event.Line{{Seq: 9, From: "server", Text: "451 4.7.1 greylisted", Bytes: 20}},
	})
	write(5*time.Minute, "", id, event.RecipientLate{Info: info, Recipient: "Bob@bücher.example", Target: event.Secs(5 * time.Minute)})
	no := event.Answer{Code: 550, Enhanced: "5.1.1", Reply: "no such user", Verb: "RCPT", Class: mail.ClassInvalidRecipient}
	yes := event.Answer{Code: 250, Enhanced: "2.0.0", Reply: "queued", Verb: "."}
	write(10*time.Minute, "", id, event.AttemptFinished{
		Info: info, Hop: hop, Answer: no, Disposition: mail.Bounced, OutSession: "S3", Attempt: 2,
		Recipients: []event.Recipient{with(bob, mail.Relayed, 250, ""), with(carol, mail.Bounced, 550, mail.ClassInvalidRecipient)},
	})
	write(10*time.Minute, "", id, event.RecipientRelayed{Final: event.Final{Info: info, Hop: hop, Answer: yes, Recipient: bob.Address, Attempts: 2, TTotal: event.Secs(10 * time.Minute)}})
	write(10*time.Minute, "", id, event.RecipientBounced{Final: event.Final{Info: info, Hop: hop, Answer: no, Recipient: carol.Address, Attempts: 2, TTotal: event.Secs(10 * time.Minute)}})
	write(10*time.Minute, "", id, event.DSNQueued{Info: info, Kind: "failed", Recipients: []event.Recipient{carol}, DSN: dsn})
	write(10*time.Minute, "", dsn, event.MessageQueued{Info: event.Info{MailFrom: event.NullSender, Size: 900}, Parent: id, Recipients: []event.Recipient{{Address: "Alice@Example.COM"}}})
	write(10*time.Minute, "", id, event.MessageRetired{Info: info, Recipients: 2, Relayed: 1, Bounced: 1, Attempts: 2, TTotal: event.Secs(10 * time.Minute)})
	return s, id, dsn
}

func TestStory(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		t.Run(fmt.Sprintf("sealed %t", sealed), func(t *testing.T) {
			s, id, dsn := story(t)
			if sealed {
				seal(s)
			}
			tl := must1[*trackapi.Timeline](t)(s.Message(t.Context(), strings.ToLower(string(id))))
			m := tl.Message
			if m.Disposition != "bounced" || m.Attempts != 2 || m.Latency != 600 || m.Sender != "Alice@Example.COM" || m.SessionID != "S1" || len(m.Recipients) != 2 {
				t.Errorf("message %+v", m)
			}
			if r := m.Recipients[0]; r.Disposition != "relayed" || r.Code != 250 || r.Latency != 600 || r.RemoteHost != "mx1.example.net" || r.Attempts != 2 || !r.Next.IsZero() {
				t.Errorf("first recipient %+v", r)
			}
			var said []string
			for _, e := range tl.Timeline {
				said = append(said, e.Level+": "+e.Summary)
			}
			want := []string{
				"info: Accepted from Alice@Example.COM for Bob@bücher.example and carol@bücher.example (2048 octets), handed in by 192.0.2.9 as alice",
				"warning: Deferred by mx1.example.net: 451 4.7.1 greylisted; next attempt in 1 m",
				"warning: Bob@bücher.example: still not handed over after 5 m",
				"error: mx1.example.net refused carol@bücher.example for good: 550 5.1.1 no such user; took Bob@bücher.example: 250",
				"info: Bob@bücher.example: relayed to mx1.example.net after 10 m",
				"error: carol@bücher.example: failed for good at mx1.example.net: 550 5.1.1 no such user",
				"info: Queued a failed report to the sender about carol@bücher.example as " + string(dsn),
				"info: Finished after 10 m and 2 attempts: 1 relayed, 1 bounced",
			}
			if !slices.Equal(said, want) {
				t.Errorf("timeline:\n%s\nwant\n%s", strings.Join(said, "\n"), strings.Join(want, "\n"))
			}
			var stages []string
			for _, st := range tl.Timeline[1].Stages {
				stages = append(stages, fmt.Sprintf("%s %.2f", st.Name, st.Seconds))
			}
			if got := strings.Join(stages, ", "); got != "backoff 1.70, sched 0.10, dns 0.05, connect 0.15" {
				t.Errorf("stages of the attempt: %s", got)
			}
			if fmt.Sprint(tl.Related) != fmt.Sprintf("[{%s dsn}]", dsn) {
				t.Errorf("related: %v", tl.Related)
			}
			if back := must1[*trackapi.Timeline](t)(s.Message(t.Context(), string(dsn))); fmt.Sprint(back.Related) != fmt.Sprintf("[{%s parent}]", id) {
				t.Errorf("related of the report: %v", back.Related)
			}
			tr := must1[*trackapi.Transcript](t)(s.Transcript(t.Context(), string(id)))
			if len(tr.Conversations) != 2 || tr.Conversations[0].Direction != "inbound" || tr.Conversations[0].Peer != "192.0.2.9" || len(tr.Conversations[0].Lines) != 2 || tr.Conversations[0].Lines[1].Text != "EHLO a" || tr.Conversations[0].Reason != "slow" {
				t.Fatalf("transcript %+v", tr)
			}
			if c := tr.Conversations[1]; c.Session != "S2" || c.QueueID != string(id) || c.Attempt != 1 || c.Disposition != "deferred" || c.Peer != "mx1.example.net" || c.Said != 9 || c.Cut != 8 ||
				c.Lines[0] != (trackapi.TranscriptLine{Seq: 9, From: "server", Text: "451 4.7.1 greylisted", Bytes: 20}) {
				t.Errorf("transcript %+v", tr)
			}
			if tr := must1[*trackapi.Transcript](t)(s.SessionTranscript(t.Context(), "S9")); len(tr.Conversations) != 1 || tr.Conversations[0].Lines[0].Text != "220 another" {
				t.Errorf("transcript of the session %+v", tr)
			}
			if _, err := s.SessionTranscript(t.Context(), "S10"); !errors.Is(err, ErrNoSession) {
				t.Errorf("transcript of no session: %v", err)
			}
			if tr := must1[*trackapi.Transcript](t)(s.Transcript(t.Context(), string(dsn))); tr.Note == "" || len(tr.Conversations) != 0 {
				t.Errorf("transcript of the report %+v", tr)
			}
			if _, err := s.Message(t.Context(), mail.NewID(time.Now())); !errors.Is(err, ErrNotFound) {
				t.Errorf("message that is not there: %v", err)
			}
			for _, test := range []struct {
				name  string
				query trackapi.Query
				want  int
			}{
				{"recipient in another case", trackapi.Query{Recipient: "BOB@BÜCHER.example"}, 1},
				{"recipient with A-label", trackapi.Query{Recipient: "bob@xn--bcher-kva.example"}, 1},
				{"recipient in angle brackets", trackapi.Query{Recipient: "<bob@bücher.example>"}, 1},
				{"domain with A-label", trackapi.Query{Domain: "xn--bcher-kva.example"}, 1},
				{"at domain", trackapi.Query{Recipient: "@bücher.example"}, 1},
				{"sender folded", trackapi.Query{Sender: "alice@example.com"}, 1},
				{"sender by pattern", trackapi.Query{Sender: "*lic*"}, 1},
				{"null sender", trackapi.Query{Sender: "<>"}, 1},
				{"message id without brackets", trackapi.Query{MessageID: "one@example.com"}, 1},
				{"queue id prefix", trackapi.Query{QueueID: string(id[:24])}, 1},
				{"client network", trackapi.Query{ClientIP: "192.0.2.0/24"}, 1},
				{"mapped client", trackapi.Query{ClientIP: "::ffff:192.0.2.9"}, 1},
				{"remote address", trackapi.Query{RemoteHost: "198.51.100.7"}, 1},
				{"remote name", trackapi.Query{RemoteHost: "MX1.example.net."}, 1},
				{"once greylisted", trackapi.Query{Class: "greylist"}, 1},
				{"never greylisted", trackapi.Query{Q: "-class:greylist"}, 1},
				{"enhanced code", trackapi.Query{Code: "5.1.x"}, 1},
				{"code and class of different facts", trackapi.Query{Code: "250", Class: "greylist"}, 0},
				{"bounced", trackapi.Query{Disposition: "bounced"}, 1},
				{"relayed as a whole", trackapi.Query{Disposition: "relayed"}, 0},
				{"relayed for bob", trackapi.Query{Disposition: "relayed", Recipient: "bob@bücher.example"}, 1},
				{"bounced for bob", trackapi.Query{Disposition: "bounced", Recipient: "bob@bücher.example"}, 0},
				{"waiting", trackapi.Query{Disposition: "queued"}, 1},
				{"long on the way", trackapi.Query{MinLatency: 9 * time.Minute}, 2},
				{"longer", trackapi.Query{MinLatency: 11 * time.Minute}, 1},
				{"session", trackapi.Query{SessionID: "S3"}, 1},
				{"too late", trackapi.Query{From: time.Now().Add(-30 * time.Minute)}, 0},
			} {
				t.Run(test.name, func(t *testing.T) {
					got := must1[*trackapi.Messages](t)(s.Messages(t.Context(), test.query))
					if len(got.Messages) != test.want {
						t.Errorf("%d messages, want %d", len(got.Messages), test.want)
					}
				})
			}
		})
	}
}

// naiveAggregate computes an aggregate from the JSON of the facts.
func naiveAggregate(facts []fact, q trackapi.AggregateQuery, explicit bool) map[string][]float64 {
	groups := map[string][]float64{}
	domain := func(s string) string { _, d, _ := strings.Cut(s, "@"); return d }
	for _, f := range facts {
		name := f.json["event"].(string)
		outcome := strings.HasPrefix(name, "recipient_") && name != "recipient_late"
		num := func(k string) float64 { n, _ := f.json[k].(float64); return n }
		str := func(k string) string { s, _ := f.json[k].(string); return s }
		put := func(rcpt, disp, class string) {
			var key []string
			for _, by := range q.By {
				switch by {
				case "recipient_domain":
					key = append(key, domain(rcpt))
				case "disposition":
					key = append(key, disp)
				case "class":
					key = append(key, class)
				case "sender_domain":
					if s := str("mail_from"); s == "<>" {
						key = append(key, s)
					} else {
						key = append(key, domain(s))
					}
				case "event":
					key = append(key, name)
				}
			}
			v := 1.0
			switch {
			case q.Metric == "bytes":
				v = num("size")
			case strings.HasPrefix(q.Metric, "latency"):
				v = num("t_total")
			}
			k := strings.Join(key, "|")
			groups[k] = append(groups[k], v)
		}
		each := slices.ContainsFunc(q.By, func(by string) bool { return by == "recipient_domain" || by == "disposition" || by == "class" })
		list, _ := f.json["recipients"].([]any)
		switch {
		case explicit || q.Metric == "bytes":
			if q.Event != "" && q.Event != name || q.Metric == "bytes" && name != "message_queued" {
				continue
			}
			if each && len(list) > 0 {
				for _, r := range list {
					r := r.(map[string]any)
					d, _ := r["disposition"].(string)
					if d == "" && name == "message_queued" {
						d = "queued"
					}
					c, _ := r["class"].(string)
					put(r["address"].(string), d, c)
				}
				continue
			}
			put(str("recipient"), strings.TrimPrefix(name, "recipient_"), str("class"))
		case outcome:
			put(str("recipient"), strings.TrimPrefix(name, "recipient_"), str("class"))
		case name == "attempt_finished" && !strings.HasPrefix(q.Metric, "latency"):
			for _, r := range list {
				r := r.(map[string]any)
				if r["disposition"] == "deferred" {
					c, _ := r["class"].(string)
					put(r["address"].(string), "deferred", c)
				}
			}
		}
	}
	return groups
}

func TestAggregateEqualsOracle(t *testing.T) {
	s, facts := oracleStore(t, 14, 500)
	from, to := facts[0].rec.Time.Add(-time.Hour), facts[len(facts)-1].rec.Time.Add(time.Second)
	for _, test := range []struct {
		name     string
		query    trackapi.AggregateQuery
		explicit bool
	}{
		{"outcomes", trackapi.AggregateQuery{Metric: "count"}, false},
		{"by disposition", trackapi.AggregateQuery{Metric: "count", By: []string{"disposition"}, Top: 100}, false},
		{"by domain and class", trackapi.AggregateQuery{Metric: "count", By: []string{"recipient_domain", "class"}, Top: 100}, false},
		{"rate by sender domain", trackapi.AggregateQuery{Metric: "rate", By: []string{"sender_domain"}, Top: 100}, false},
		{"bytes by sender domain", trackapi.AggregateQuery{Metric: "bytes", By: []string{"sender_domain"}, Top: 100}, false},
		{"accepted by recipient domain", trackapi.AggregateQuery{Metric: "count", By: []string{"recipient_domain"}, Top: 100, Query: trackapi.Query{Event: "message_queued"}}, true},
		{"attempts by disposition", trackapi.AggregateQuery{Metric: "count", By: []string{"disposition"}, Query: trackapi.Query{Event: "attempt_finished"}}, true},
		{"by event", trackapi.AggregateQuery{Metric: "count", By: []string{"event"}, Top: 100}, true},
		{"median", trackapi.AggregateQuery{Metric: "latency_p50"}, false},
		{"p99 by disposition", trackapi.AggregateQuery{Metric: "latency_p99", By: []string{"disposition"}}, false},
		{"max by domain", trackapi.AggregateQuery{Metric: "latency_max", By: []string{"recipient_domain"}, Top: 100}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			q := test.query
			q.From, q.To = from, to
			groups := naiveAggregate(facts, q, test.explicit)
			value := func(list []float64) float64 {
				slices.Sort(list)
				sum := 0.0
				for _, v := range list {
					sum += v
				}
				at := func(p float64) float64 { return list[int(math.Ceil(p*float64(len(list))))-1] }
				switch q.Metric {
				case "rate":
					return sum / to.Sub(from).Seconds()
				case "latency_p50":
					return at(0.5)
				case "latency_p99":
					return at(0.99)
				case "latency_max":
					return list[len(list)-1]
				}
				return sum
			}
			got := must1[*trackapi.Aggregate](t)(s.Aggregate(t.Context(), q))
			if len(groups) <= 100 && len(got.Series) != len(groups) {
				t.Errorf("%d groups, want %d", len(got.Series), len(groups))
			}
			for _, series := range got.Series {
				var key []string
				for _, by := range q.By {
					key = append(key, series.Labels[by])
				}
				if slices.Contains(key, "other") {
					continue
				}
				want := value(groups[strings.Join(key, "|")])
				have := *series.Points[0].Value
				if off := math.Abs(have - want); off > 0.05*want+1e-6 || got.Exact && off > 1e-6 {
					t.Errorf("%v: %v, want %v (exact %t)", key, have, want, got.Exact)
				}
			}
			q.Step = 7 * time.Second
			stepped := must1[*trackapi.Aggregate](t)(s.Aggregate(t.Context(), q))
			if q.Metric != "count" && q.Metric != "bytes" {
				return
			}
			for i, series := range stepped.Series {
				sum := 0.0
				for _, p := range series.Points {
					sum += *p.Value
				}
				if want := *got.Series[i].Points[0].Value; math.Abs(sum-want) > 1e-6 {
					t.Errorf("%v: steps add up to %v, want %v", series.Labels, sum, want)
				}
			}
		})
	}
	if _, err := s.Aggregate(t.Context(), trackapi.AggregateQuery{Step: time.Second, Query: trackapi.Query{From: from.AddDate(-1, 0, 0)}}); err == nil {
		t.Error("a year of seconds is answered")
	}
}

func TestTopAndOther(t *testing.T) {
	s, facts := oracleStore(t, 15, 300)
	q := trackapi.AggregateQuery{Metric: "count", By: []string{"recipient_domain"}, Top: 3, Query: trackapi.Query{From: facts[0].rec.Time, To: time.Now()}}
	top := must1[*trackapi.Aggregate](t)(s.Aggregate(t.Context(), q))
	q.By = nil
	all := must1[*trackapi.Aggregate](t)(s.Aggregate(t.Context(), q))
	sum := 0.0
	for _, series := range top.Series {
		sum += *series.Points[0].Value
	}
	if len(top.Series) != 4 || top.Series[3].Labels["recipient_domain"] != "other" || sum != *all.Series[0].Points[0].Value {
		t.Errorf("%d groups with %v together, want 3 and other with %v", len(top.Series), sum, *all.Series[0].Points[0].Value)
	}
}

func TestValues(t *testing.T) {
	s, facts := oracleStore(t, 16, 200)
	for _, test := range []struct {
		field, prefix string
		keys          []string
		of            func(string) string
	}{
		{"recipient_domain", "dom1", []string{"recipient", "recipients.address"}, domainOf},
		{"sender", "NOREPLY-1", []string{"mail_from"}, same},
		{"class", "", []string{"class", "recipients.class"}, same},
		{"code", "", []string{"code", "recipients.code"}, same},
		{"event", "recipient", []string{"event"}, same},
		{"disposition", "", []string{"disposition", "recipients.disposition"}, same},
		{"connector", "", []string{"connector_out", "connector_in", "connector"}, same},
	} {
		t.Run(test.field, func(t *testing.T) {
			set := map[string]bool{}
			for _, f := range facts {
				for _, v := range f.values(test.keys...) {
					if v = test.of(v); v != "" && strings.HasPrefix(v, strings.ToLower(test.prefix)) {
						set[v] = true
					}
				}
			}
			var want []string
			for v := range set {
				want = append(want, v)
			}
			slices.Sort(want)
			got := must1[*trackapi.Values](t)(s.Values(t.Context(), trackapi.ValuesQuery{Field: test.field, Prefix: test.prefix, Limit: 1000}))
			if !slices.Equal(got.Values, want) {
				t.Errorf("%v, want %v", got.Values, want)
			}
		})
	}
}

func TestDescribeSaysEveryFact(t *testing.T) {
	for _, name := range event.Names() {
		r := event.Record{Time: time.Now()}
		line := fmt.Sprintf(`{"schema":1,"event":%q,"ts":"2026-01-01T00:00:00Z"}`, name)
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		if s, level := describe(&r); s == "" || level == "" {
			t.Errorf("%s is described as %q at level %q", name, s, level)
		}
	}
}

func TestDescribeSaysWhyThereIsNoReport(t *testing.T) {
	for _, why := range event.Suppressions() {
		if got, _ := describe(&event.Record{Event: event.DSNQueued{Kind: "failed", Suppressed: why}}); strings.HasSuffix(got, ": "+why) {
			t.Errorf("%s is not put into words: %s", why, got)
		}
	}
}

func TestDescribeAdmin(t *testing.T) {
	for _, test := range []struct {
		name  string
		in    event.AdminActed
		want  string
		level string
	}{
		{"one message", event.AdminActed{Actor: "ops", Action: "export", Filter: "queue_id=1", Affected: 1, Result: "ok"}, `ops did "export" (queue_id=1)`, levelInfo},
		{"many", event.AdminActed{Actor: "ops", Action: "redirect", Filter: "domain:b.test", Target: "mx:25", Affected: 7, Reason: "as agreed", Result: "ok"}, `ops did "redirect" to mx:25 (domain:b.test; 7 affected): as agreed`, levelInfo},
		{"nothing to say", event.AdminActed{Actor: "ops", Action: "import", Result: "ok"}, `ops did "import"`, levelInfo},
		{"a failure", event.AdminActed{Actor: "ops", Action: "backup", Filter: "dir=/x", Reason: "disk full", Result: "error"}, `ops did "backup" (dir=/x): disk full; it ended with error`, levelWarning},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got, level := describe(&event.Record{Event: test.in}); got != test.want || level != test.level {
				t.Errorf("= %q, %s, want %q, %s", got, level, test.want, test.level)
			}
		})
	}
}

func FuzzJournal(f *testing.F) {
	recs := facts(20, 3)
	good := bytes.Clone(journalStart)
	for i := range recs {
		good = appendRecord(good, &recs[i])
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte(journalMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		if _, err := readJournal(bytes.NewReader(b), func(event.Record) { n++ }); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzRecord feeds frames past the checksum.
func FuzzRecord(f *testing.F) {
	var schema []schemaType
	frame, _, _ := cutFrame(journalStart[len(journalMagic):])
	if err := json.Unmarshal(frame, &schema); err != nil {
		f.Fatal(err)
	}
	for _, r := range facts(21, 3) {
		b := appendRecord(nil, &r)
		f.Add(b[8:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := readRecord(b, schema)
		if err != nil {
			return
		}
		again, err := readRecord(appendRecord(nil, &r)[8:], schema)
		if err != nil {
			t.Fatal(err)
		}
		if x, err := r.MarshalJSON(); err == nil && string(x) != jsonOf(t, &again) {
			t.Errorf("record comes back as %s, want %s", jsonOf(t, &again), x)
		}
	})
}

func FuzzCompile(f *testing.F) {
	for _, q := range []string{"recipient:*@example.com -class:greylist", `sender:"a b"@x.example`, "client_ip:10.0.0.0/8 code:5.x.x", "queue_id:01J9Z8", "message_id:<a@b> event:message_queued"} {
		f.Add(q)
	}
	recs := facts(22, 5)
	e := encodeBlock(1, recs)
	f.Fuzz(func(t *testing.T, q string) {
		flt, err := compile(trackapi.Query{Q: q}, true)
		if err != nil {
			var p *trackapi.Problem
			if !errors.As(err, &p) || p.Field == "" || p.Hint == "" {
				t.Errorf("%q: %v is not a problem with a field and a hint", q, err)
			}
			return
		}
		flt.anyTime()
		want := 0
		for i := range recs {
			if flt.matches(&recs[i]) {
				want++
			}
		}
		rows, err := viewOf(e).rows(flt.preds, flt.nots)
		if err != nil || len(rows) != want {
			t.Errorf("%q: %d rows of the block, %d records (%v)", q, len(rows), want, err)
		}
	})
}

func FuzzCursor(f *testing.F) {
	f.Add(position{5, "01J9ZZZZZZZZZZZZZZZZZZZZZZ"}.cursor(7))
	f.Add("AQAAAAc")
	f.Fuzz(func(t *testing.T, s string) {
		if pos, ok, err := readCursor(s, 7); err == nil && ok {
			if again, _, err := readCursor(pos.cursor(7), 7); err != nil || again != pos {
				t.Errorf("cursor %q is %v, then %v", s, pos, again)
			}
		}
	})
}

func FuzzClientIP(f *testing.F) {
	f.Add("10.0.0.0/8", "10.1.1.1")
	f.Add("::ffff:10.0.0.0/104", "::ffff:10.1.1.1")
	f.Add("fe80::/10", "fe80::1%eth0")
	f.Fuzz(func(t *testing.T, filter, addr string) {
		p, err := compileTerm(trackapi.Term{Field: "client_ip", Value: filter})
		if err == nil {
			p.text(addr)
		}
	})
}
