package trackapi

import (
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestQueryRoundTrip sets every field, so that one that is forgotten shows.
func TestQueryRoundTrip(t *testing.T) {
	q := Query{From: time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC), To: time.Date(2026, 2, 2, 0, 0, 0, 0, time.UTC), MinLatency: 90 * time.Second, Limit: 77, Explain: true, Sort: "time"}
	v := reflect.ValueOf(&q).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.String && f.String() == "" {
			f.SetString(v.Type().Field(i).Name + " é&=*@<>")
		}
	}
	if got, p := ParseQuery(q.Values()); p != nil || got != q {
		t.Errorf("query comes back as %+v, %v", got, p)
	}
	a := AggregateQuery{Query: q, Metric: "latency_p95,latency_max", By: []string{"provider", "class"}, Step: 90 * time.Second, Top: 5}
	a.Sort, a.Limit, a.Cursor, a.Explain = "", 0, "", false
	if got, p := ParseAggregateQuery(a.Values()); p != nil || !reflect.DeepEqual(got, a) {
		t.Errorf("aggregate comes back as %+v, %v", got, p)
	}
	x := ValuesQuery{Field: "recipient_domain", Prefix: "a b", From: q.From, To: q.To, Limit: 3}
	if got, p := ParseValuesQuery(x.Values()); p != nil || got != x {
		t.Errorf("values query comes back as %+v, %v", got, p)
	}
}

func TestEveryFilterIsAParameter(t *testing.T) {
	for _, name := range Filters() {
		v := "5m"
		q, p := ParseQuery(url.Values{name: {v}})
		if p != nil {
			t.Errorf("%s: %v", name, p)
			continue
		}
		terms, p := q.Terms()
		if p != nil || len(terms) != 1 || terms[0].Field != name {
			t.Errorf("%s gives the terms %v, %v", name, terms, p)
		}
	}
}

func TestParseQueryProblems(t *testing.T) {
	for _, test := range []struct {
		name  string
		query string
		field string
		hint  string
	}{
		{"misspelt", "recipent=a@b", "recipent", "did you mean recipient?"},
		{"unknown", "zzzzzzzzzz=1", "zzzzzzzzzz", "one of"},
		{"twice", "class=a&class=b", "class", "commas"},
		{"limit", "limit=0", "limit", "1000"},
		{"limit too high", "limit=1001", "limit", "1000"},
		{"sort", "sort=size", "sort", "-time"},
		{"from", "from=yesterday", "from", "now-1h"},
		{"from with a bad offset", "from=now*1h", "from", "now-1h"},
		{"latency", "min_latency=-5s", "min_latency", "90s"},
	} {
		t.Run(test.name, func(t *testing.T) {
			v, err := url.ParseQuery(test.query)
			if err != nil {
				t.Fatal(err)
			}
			_, p := ParseQuery(v)
			if p == nil || p.Status != 400 || p.Field != test.field || !strings.Contains(p.Hint, test.hint) {
				t.Errorf("ParseQuery(%q) = %+v", test.query, p)
			}
		})
	}
}

func TestParseAggregateQueryProblems(t *testing.T) {
	for _, test := range []struct{ query, field string }{
		{"metric=sum", "metric"},
		{"metric=latency_p50,count", "metric"},
		{"metric=latency_p50,latency_p50", "metric"},
		{"metric=latency_p50,", "metric"},
		{"by=subject", "by"},
		{"by=class,code,event", "by"},
		{"by=class,class", "by"},
		{"step=1ms", "step"},
		{"top=1000", "top"},
		{"cursor=x", "cursor"},
	} {
		v, _ := url.ParseQuery(test.query)
		if _, p := ParseAggregateQuery(v); p == nil || p.Field != test.field || p.Hint == "" {
			t.Errorf("ParseAggregateQuery(%q) = %+v, want a problem of %s with a hint", test.query, p, test.field)
		}
	}
}

func TestParseFilter(t *testing.T) {
	for _, test := range []struct {
		name string
		q    string
		want []Term
		bad  string // part of the problem
	}{
		{name: "empty", q: "  "},
		{name: "three", q: "recipient:*@example.com disposition:bounced -class:greylist", want: []Term{{"recipient", "*@example.com", false}, {"disposition", "bounced", false}, {"class", "greylist", true}}},
		{name: "quoted", q: `sender:"a \"b\" \\c"  code:5xx`, want: []Term{{"sender", `a "b" \c`, false}, {"code", "5xx", false}}},
		{name: "colon in value", q: "client_ip:2001:db8::1", want: []Term{{"client_ip", "2001:db8::1", false}}},
		{name: "bare word", q: "alice", bad: "write for example recipient:alice@example.com"},
		{name: "bare address", q: "alice@example.com", bad: "write recipient:alice@example.com or sender:alice@example.com"},
		{name: "bare address, excluded", q: "-alice@example.com", bad: "write recipient:alice@example.com or sender:alice@example.com"},
		{name: "bare domain", q: "@example.com", bad: "write recipient:*@example.com or sender:*@example.com"},
		{name: "bare queue ID", q: "01J9ZC3K5V8Q2M7RXT4W6Y0ABC", bad: "write queue_id:01J9ZC3K5V8Q2M7RXT4W6Y0ABC"},
		{name: "bare quote", q: `al"ice@example.com`, bad: "write for example recipient:alice@example.com"},
		{name: "unknown field", q: "sendr:x", bad: "did you mean sender?"},
		{name: "no value", q: "sender: x", bad: "has no value"},
		{name: "open quote", q: `sender:"x`, bad: "not closed"},
		{name: "empty value", q: `sender:""`, bad: "empty value"},
		{name: "minus alone", q: "-", bad: "is not field:value"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, p := ParseFilter(test.q)
			if test.bad != "" {
				if p == nil || p.Field != "q" || !strings.Contains(p.Error(), test.bad) || p.Hint == "" {
					t.Errorf("ParseFilter(%q) = %v, %v, want a problem with %q", test.q, got, p, test.bad)
				}
				return
			}
			if p != nil || !slices.Equal(got, test.want) {
				t.Errorf("ParseFilter(%q) = %v, %v, want %v", test.q, got, p, test.want)
			}
		})
	}
}

func FuzzParseFilter(f *testing.F) {
	f.Add("recipient:*@example.com disposition:bounced -class:greylist")
	f.Add(`sender:"a \"b\" \\c"`)
	f.Fuzz(func(t *testing.T, q string) {
		terms, p := ParseFilter(q)
		if p != nil {
			if p.Field == "" || p.Hint == "" {
				t.Errorf("%q: problem %+v without a field or a hint", q, p)
			}
			return
		}
		var words []string
		for _, term := range terms {
			words = append(words, term.String())
		}
		again, p := ParseFilter(strings.Join(words, " "))
		if p != nil || !slices.Equal(again, terms) {
			t.Errorf("%q: terms %v come back as %v, %v", q, terms, again, p)
		}
	})
}

func TestParseTime(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		text string
		want time.Time
	}{
		{"now", now},
		{"now-1h", now.Add(-time.Hour)},
		{"now-7d", now.AddDate(0, 0, -7)},
		{"now+90s", now.Add(90 * time.Second)},
		{"now 90s", now.Add(90 * time.Second)},
		{"2026-01-02T03:04:05+01:00", time.Date(2026, 1, 2, 2, 4, 5, 0, time.UTC)},
		{"2026-01-02T03:04:05.000000001Z", time.Date(2026, 1, 2, 3, 4, 5, 1, time.UTC)},
		{"1h", time.Time{}},
		{"now--1h", time.Time{}},
	} {
		got, err := ParseTime(test.text, now)
		if !got.Equal(test.want) || (err != nil) != test.want.IsZero() {
			t.Errorf("ParseTime(%q) = %s, %v, want %s", test.text, got, err, test.want)
		}
	}
}
